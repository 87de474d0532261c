"""How a family becomes a tiny random model, whose every gain, bias and matrix is generic.

New models have gains of one and biases of zero, which hide what an architecture does; here every
parameter is drawn anew, so that a claim about a model is a claim about its architecture.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Sizes:
    """How large the models are: two layers, and these numbers of axes, heads, tokens, positions."""

    width: int
    heads: int
    groups: int
    head: int
    mlp: int
    vocabulary: int
    positions: int
    image: int
    narrow: int
    spread: float
    length: int


SMALL = Sizes(32, 4, 2, 8, 40, 50, 32, 8, 16, 0.2, 7)
"""Large enough that sizes of different parts differ."""

TINY = Sizes(8, 2, 1, 4, 12, 64, 48, 4, 6, 0.4, 40)
"""So small that every direction of the parameters can be counted."""

D, HEADS, HEAD, MLP, VOCAB = SMALL.width, SMALL.heads, SMALL.head, SMALL.mlp, SMALL.vocabulary
BATCH = 2


@dataclass(frozen=True)
class Family:
    """One architecture.

    Attributes:
        name: what tables call it.
        make: seed -> a model in eval mode, generic in every parameter.
        example: seed -> a batch that both take.
        bridge: the name under which TransformerLens knows the architecture, "native" for models of
            its own, "" where its Bridge does not take the model.
    """

    name: str
    make: Callable[[int], nn.Module]
    example: Callable[[int], dict[str, Tensor]]
    bridge: str


def tokens(seed: int, vocabulary: int = VOCAB, length: int = SMALL.length) -> dict[str, Tensor]:
    """Token ids [batch, position], none of which any model takes for padding."""
    generator = torch.Generator().manual_seed(seed)
    return {"input_ids": torch.randint(5, vocabulary, (BATCH, length), generator=generator)}


def pixels(seed: int, image: int = SMALL.image) -> dict[str, Tensor]:
    """Images [batch, channel, height, width]."""
    generator = torch.Generator().manual_seed(seed)
    return {"pixel_values": torch.randn(BATCH, 3, image, image, generator=generator)}


def generic(model: nn.Module, seed: int, spread: float = SMALL.spread) -> nn.Module:
    """The model in eval mode, every parameter drawn anew, of a size that keeps outputs of order 1.

    Gains move away from where they started, which is one, or zero for norms that add one.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if parameter.ndim > 1 or "bias" in name.rsplit(".", 1)[-1]:
                parameter.copy_(spread * noise)
            else:
                parameter.add_(0.3 * noise)
    return model.eval().requires_grad_(False)


def without_epsilons(model: nn.Module) -> nn.Module:
    """The model with norms that see no length at all, however small the epsilon that they had."""
    for module in model.modules():
        for name in ("eps", "variance_epsilon"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 1e-14)
    return model


def bridged(family: Family, seed: int) -> nn.Module:
    """The same model inside a TransformerBridge.

    Raises:
        ValueError: if the Bridge does not take the family.
    """
    if family.bridge in ("", "native"):
        raise ValueError(f"{family.name} is not a model that a Bridge is put around")
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    model = family.make(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return build_bridge_from_module(model, family.bridge, hf_config=model.config).eval()


def bridged_example(family: Family, seed: int) -> dict[str, Tensor]:
    """The batch of the family under the name by which a Bridge takes it."""
    (batch,) = family.example(seed).values()
    return {"input": batch}


# --- from a recipe --------------------------------------------------------------------------------

Example = Callable[[int, Sizes], dict[str, Tensor]]
"""A seed and the sizes -> a batch."""

LOGITS = "logits"
"""The model returns its logits alone, and no hidden states beside them."""


@dataclass(frozen=True)
class Row:
    """A family in one line: the class of Hugging Face, and what is unlike the recipe.

    Attributes:
        built: the class.
        config: what the configuration has beside, or in place of, the small sizes.
        stream, neurons, z: the groups of all streams between blocks, of what the last maps of MLPs
            and of attention read, in the words of `places.spoken`, several with " / " between them;
            None where nothing is expected.
        takes: what it reads.
        wrap: LOGITS, or nothing.
    """

    built: str
    config: dict[str, Any]
    stream: str | None = None
    neurons: str | None = None
    z: str | None = None
    takes: Example = lambda seed, s: tokens(seed, s.vocabulary, s.length)
    wrap: str = ""


def both(seed: int, s: Sizes) -> dict[str, Tensor]:
    """Token ids for an encoder, and fewer of them for its decoder."""
    return {**tokens(seed, s.vocabulary, s.length), **_decoded(seed, s.vocabulary, s.length - 2)}


def images(size: int) -> Example:
    """Images of so many pixels on a side."""
    return lambda seed, _: pixels(seed, size)


def videos(frames: int, size: int, name: str = "pixel_values") -> Example:
    """Videos [batch, frame, channel, height, width]."""
    return lambda seed, _: {name: _noise(seed, BATCH, frames, 3, size, size)}


def waves(length: int, *, decoder: bool = False) -> Example:
    """Sounds [batch, moment], and token ids where there is a decoder."""

    def example(seed: int, s: Sizes) -> dict[str, Tensor]:
        return {
            "input_values": _noise(seed, BATCH, length),
            **_decoded(seed, s.vocabulary, 5 * decoder),
        }

    return example


def features(
    name: str, frames: int, bins: int, *, decoder: bool = False, turned: bool = False
) -> Example:
    """Spectrograms [batch, frame, bin], or [batch, bin, frame], and token ids for a decoder."""

    def example(seed: int, s: Sizes) -> dict[str, Tensor]:
        shape = (bins, frames) if turned else (frames, bins)
        return {name: _noise(seed, BATCH, *shape), **_decoded(seed, s.vocabulary, 5 * decoder)}

    return example


def _noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _decoded(seed: int, vocabulary: int, length: int) -> dict[str, Tensor]:
    ids = tokens(seed + 1, vocabulary, length)["input_ids"]
    return {"decoder_input_ids": ids} if length else {}


class _Logits(nn.Module):
    """A model that returns nothing but its logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **batch: Tensor) -> Tensor:
        return self.model(**batch).logits


def recipe(config: type, s: Sizes) -> dict[str, Any]:
    """The small sizes of a configuration, as far as it has fields of these names."""
    names = (
        (s.vocabulary, "vocab_size"),
        (s.width, "hidden_size d_model n_embd dim"),
        (s.mlp, "intermediate_size ffn_dim d_ff n_inner hidden_dim encoder_ffn_dim "
                "decoder_ffn_dim moe_intermediate_size"),
        (s.positions, "max_position_embeddings n_positions"),
        (s.head, "head_dim d_kv"),
        (s.narrow, "embedding_size"),
        (s.image, "image_size"),
    )  # fmt: skip
    sized = {name: size for size, some in names for name in some.split()}
    counted = {
        **dict.fromkeys(
            "num_attention_heads num_heads n_head n_heads encoder_attention_heads "
            "decoder_attention_heads mamba_n_heads".split(),
            s.heads,
        ),
        **dict.fromkeys(
            "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers "
            "num_decoder_layers num_encoder_layers".split(),
            2,
        ),
        **dict.fromkeys(
            "num_experts num_local_experts n_routed_experts moe_num_experts state_size "
            "mamba_d_state".split(),
            4,
        ),
        "num_key_value_heads": s.groups, "patch_size": s.image // 2, "num_experts_per_tok": 2,
        "sliding_window": 3, "type_vocab_size": 2, "pad_token_id": 0, "bos_token_id": 1,
        "eos_token_id": 2, "decoder_start_token_id": 1,
    }  # fmt: skip
    known = {field.name for field in fields(config)}
    return {name: value for name, value in {**sized, **counted}.items() if name in known}


def from_row(name: str, row: Row, s: Sizes) -> Family:
    """The family of a row."""

    def make(seed: int) -> nn.Module:
        import transformers

        built = getattr(transformers, row.built)
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(seed)
            settings = {**recipe(built.config_class, s), **row.config}
            model = built(built.config_class(**settings))
            model.config.use_cache = False
            return measured(generic(_Logits(model) if row.wrap else model, seed, s.spread), seed)

    return Family(name, make, lambda seed: row.takes(seed, s), "")


def measured(model: nn.Module, seed: int) -> nn.Module:
    """The model with running moments of batches that hide nothing by being zeros and ones."""
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.3 * torch.randn(buffer.shape, generator=generator))
            if name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return model
