"""Language models of known shapes with the weights that Hugging Face gives new ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from basis_probe.model.state import drawing

if TYPE_CHECKING:
    from torch import nn

_HEADS = 4


def untrained_model(
    shape: str,
    *,
    width: int,
    layers: int,
    vocabulary: int,
    length: int,
    tied: bool = False,
    seed: int = 0,
) -> nn.Module:
    """A model in evaluation mode that was never trained; the random state stays as it was.

    Args:
        shape: "gpt2" (LayerNorm, GELU, learned positions) or "llama" (RMSNorm, SwiGLU, rotary
            positions, two query heads for one key head).
        width: of the residual stream; a multiple of eight.
        layers: number of blocks.
        vocabulary: number of tokens.
        length: the longest sequence.
        tied: whether logits are read by the embedding.
        seed: of the weights.

    Raises:
        ValueError: for any other shape.

    Example:
        >>> made = {"width": 16, "layers": 1, "vocabulary": 30, "length": 8}
        >>> type(untrained_model("gpt2", **made)).__name__
        'GPT2LMHeadModel'
    """
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    config: Any
    if shape == "gpt2":
        kind: Any = GPT2LMHeadModel
        config = GPT2Config(
            vocab_size=vocabulary,
            n_embd=width,
            n_layer=layers,
            n_head=_HEADS,
            n_positions=length,
            bos_token_id=0,
            eos_token_id=0,
            tie_word_embeddings=tied,
        )
    elif shape == "llama":
        kind = LlamaForCausalLM
        config = LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=_HEADS,
            num_key_value_heads=_HEADS // 2,
            max_position_embeddings=length,
            tie_word_embeddings=tied,
        )
    else:
        raise ValueError(f"no shape is called {shape!r}; there are 'gpt2' and 'llama'")
    with drawing(seed):
        return kind(config).eval()
