"""Samples of padded batches are those of single examples without padding, on many models."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import basis_probe as bp

transformers: Any = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()

SMALL = {
    "vocab_size": 60, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4,
}  # fmt: skip
WORDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LENGTHS = (9, 5, 7, 9, 4, 6)
WIDTH = 9


@dataclasses.dataclass(frozen=True)
class Padded:
    """A model with what it is called with.

    Attributes:
        make: the model.
        batch: from token ids and mask to what the model is called with.
        sites: where it is probed.
        left: whether padding stands on the left.
        lengths: site -> how many rows a single example of so many tokens has there; as many as
            tokens without an entry.
        exact: whether padding changes no number at all; false where it moves the others' places.
    """

    make: Callable[[], nn.Module]
    batch: Callable[[Tensor, Tensor], dict[str, Tensor]]
    sites: tuple[str, ...]
    left: bool = False
    lengths: dict[str, Callable[[int], int]] = dataclasses.field(default_factory=dict)
    exact: bool = True


def _plain(ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    return {"input_ids": ids, "attention_mask": mask}


def _model(name: str, config: str, **settings: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        torch.manual_seed(0)
        return getattr(transformers, name)(getattr(transformers, config)(**settings)).eval()

    return make


def _both(ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """An encoder and a decoder whose padding is where the other's is not."""
    flipped = mask.flip(0)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "decoder_input_ids": ids.flip(1).clamp(min=3) * flipped,
        "decoder_attention_mask": flipped,
    }


def _positions(ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    places = (mask.cumsum(1) - 1).clamp(min=0)
    return {**_plain(ids, mask), "position_ids": places}


def _bert(name: str, config: str, site: str, **more: Any) -> Padded:
    make = _model(name, config, **SMALL, max_position_embeddings=40, **more)
    return Padded(make, _plain, (f"encoder.layer.0.{site}", f"encoder.layer.1.{site}"))


class Prompted(nn.Module):
    """A language model with learned vectors in front of every text."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.prompt = nn.Parameter(torch.randn(3, 16, generator=torch.Generator().manual_seed(1)))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        embedded = self.inner.get_input_embeddings()(input_ids)
        prompt = self.prompt.expand(len(input_ids), -1, -1)
        whole = torch.cat([prompt, embedded], 1)
        ones = attention_mask.new_ones(len(input_ids), 3)
        mask = torch.cat([ones, attention_mask], 1)
        return self.inner(inputs_embeds=whole, attention_mask=mask)


class Folded(nn.Module):
    """Rows of all examples behind one another, as where layers take no positions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(60, 16)
        self.first, self.last = nn.Linear(16, 32), nn.Linear(32, 4)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        rows = self.table(input_ids).flatten(0, 1)
        return self.last(self.first(rows).relu()).view(*input_ids.shape, -1)


class Turned(nn.Module):
    """Positions before examples on the inside, by einsum."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.weight = nn.Embedding(60, 16), nn.Parameter(torch.randn(16, 32))
        self.first, self.last = nn.GELU(), nn.Linear(32, 4)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        turned = self.table(input_ids).permute(1, 0, 2)
        hidden = self.first(torch.einsum("sbi,io->sbo", turned, self.weight))
        return self.last(hidden).transpose(0, 1)


class Torch(nn.Module):
    """torch's own encoder behind an embedding."""

    def __init__(self, *, batch_first: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.batch_first, self.table = batch_first, nn.Embedding(60, 16)
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.table(input_ids)
        x = x if self.batch_first else x.transpose(0, 1)
        return self.encoder(x, src_key_padding_mask=attention_mask == 0)


def _llama(**more: Any) -> Callable[[], nn.Module]:
    return _model(
        "LlamaForCausalLM", "LlamaConfig", **SMALL, num_key_value_heads=2, **WORDS, **more
    )


_SEQ = {
    "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
}  # fmt: skip
_WHOLE: Callable[[int], int] = lambda tokens: tokens  # noqa: E731


class Recurrent(nn.Module):
    """A recurrent layer over token ids, whose later steps do not change the earlier ones."""

    def __init__(self, kind: str, **options: Any) -> None:
        super().__init__()
        self.e = nn.Embedding(60, 16)
        self.r = getattr(nn, kind)(16, 16, **options)
        self.o = nn.Linear(16 * (1 + self.r.bidirectional), 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.e(input_ids)
        seen = self.r(x if self.r.batch_first else x.transpose(0, 1))[0]
        return self.o(seen)


def _recurrent(kind: str, *, exact: bool = True, **options: Any) -> Padded:
    def make() -> nn.Module:
        torch.manual_seed(0)
        return Recurrent(kind, **options).eval()

    return Padded(make, _plain, ("r", "o"), exact=exact)


MODELS: dict[str, Padded] = {
    "LSTM": _recurrent("LSTM", batch_first=True, num_layers=2),
    "GRU, positions first": _recurrent("GRU"),
    "RNN both ways": _recurrent("RNN", exact=False, batch_first=True, bidirectional=True),
    "BERT": _bert("BertModel", "BertConfig", "intermediate"),
    "RoBERTa": _bert("RobertaModel", "RobertaConfig", "intermediate"),
    "ELECTRA": _bert("ElectraModel", "ElectraConfig", "intermediate", embedding_size=16),
    "DeBERTa": _bert("DebertaModel", "DebertaConfig", "intermediate"),
    "DistilBERT": Padded(
        _model("DistilBertModel", "DistilBertConfig", vocab_size=60, dim=16, hidden_dim=32,
               n_layers=2, n_heads=4, max_position_embeddings=40),
        _plain, ("transformer.layer.0.ffn.lin1", "transformer.layer.1.ffn.lin1"),
    ),
    "ALBERT": Padded(
        _model("AlbertModel", "AlbertConfig", **SMALL, embedding_size=16,
               max_position_embeddings=40),
        _plain, ("embeddings", "encoder.embedding_hidden_mapping_in"),
    ),
    "XLNet": Padded(
        _model("XLNetModel", "XLNetConfig", vocab_size=60, d_model=16, n_layer=2, n_head=4,
               d_inner=32),
        _plain, ("layer.0.ff.layer_1", "layer.1.ff.layer_1"), exact=False,
    ),
    "Longformer": Padded(
        _model("LongformerModel", "LongformerConfig", **SMALL, attention_window=4,
               max_position_embeddings=64),
        _plain, ("encoder.layer.0.intermediate", "encoder.layer.1.intermediate"), exact=False,
    ),
    "GPT-2": Padded(
        _model("GPT2LMHeadModel", "GPT2Config", vocab_size=60, n_embd=16, n_layer=2, n_head=4,
               n_positions=40),
        _plain, ("transformer.h.0.mlp.act", "transformer.h.1"),
    ),
    "GPT-2, padding left": Padded(
        _model("GPT2LMHeadModel", "GPT2Config", vocab_size=60, n_embd=16, n_layer=2, n_head=4,
               n_positions=40),
        _positions, ("transformer.h.0.mlp.act", "transformer.h.1"), left=True,
    ),
    "Llama": Padded(_llama(), _plain, ("model.layers.0.mlp.act_fn", "model.layers.1")),
    "Llama, padding left": Padded(
        _llama(), _positions, ("model.layers.0.mlp.act_fn", "model.layers.1"), left=True
    ),
    "Llama, eager attention": Padded(
        _llama(attn_implementation="eager"), _plain, ("model.layers.0.self_attn", "model.norm")
    ),
    "GPT-NeoX": Padded(
        _model("GPTNeoXForCausalLM", "GPTNeoXConfig", **SMALL),
        _plain, ("gpt_neox.layers.0.mlp.act", "gpt_neox.layers.1"),
    ),
    "OPT": Padded(
        _model("OPTForCausalLM", "OPTConfig", vocab_size=60, hidden_size=16, ffn_dim=32,
               num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=16,
               max_position_embeddings=40, **WORDS),
        _plain, ("model.decoder.layers.0.fc1", "model.decoder.layers.1.fc1"),
    ),
    "BLOOM": Padded(
        _model("BloomForCausalLM", "BloomConfig", vocab_size=60, hidden_size=16, n_layer=2,
               n_head=4),
        _plain, ("transformer.h.0.mlp.dense_h_to_4h", "transformer.h.1"),
    ),
    "T5": Padded(
        _model("T5ForConditionalGeneration", "T5Config", vocab_size=60, d_model=16, d_kv=4,
               d_ff=32, num_layers=2, num_heads=4, decoder_start_token_id=0, **WORDS),
        _both, ("encoder.block.1.layer.1.DenseReluDense.wi",
                "decoder.block.1.layer.2.DenseReluDense.wi"),
    ),
    "BART": Padded(
        _model("BartModel", "BartConfig", vocab_size=60, max_position_embeddings=40, **_SEQ,
               decoder_start_token_id=2, forced_eos_token_id=2, **WORDS),
        _both, ("encoder.layers.1.fc1", "decoder.layers.1.fc1"),
    ),
    "Marian": Padded(
        _model("MarianModel", "MarianConfig", vocab_size=60, decoder_vocab_size=60,
               max_position_embeddings=40, **_SEQ, decoder_start_token_id=0, pad_token_id=0,
               eos_token_id=2, bos_token_id=1, forced_eos_token_id=2),
        _both, ("encoder.layers.1.fc1", "decoder.layers.1.fc1"),
    ),
    "prompts": Padded(
        lambda: Prompted(_llama()()).eval(), _plain,
        ("inner.model.layers.0", "inner.model.layers.1"),
        lengths=dict.fromkeys(("inner.model.layers.0", "inner.model.layers.1"), lambda n: n + 3),
    ),
    "prompts, padding left": Padded(
        lambda: Prompted(_llama()()).eval(), _plain,
        ("inner.model.layers.0", "inner.model.layers.1"),
        lengths=dict.fromkeys(("inner.model.layers.0", "inner.model.layers.1"), lambda n: n + 3),
        left=True,
        exact=False,
    ),
    "folded": Padded(lambda: Folded().eval(), _plain, ("first", "relu()")),
    "turned": Padded(lambda: Turned().eval(), _plain, ("first", "last:in")),
    "torch, examples first": Padded(
        lambda: Torch(batch_first=True).eval(), _plain,
        ("encoder.layers.0.linear1", "encoder.layers.1.linear1"),
    ),
    "torch, positions first": Padded(
        lambda: Torch(batch_first=False).eval(), _plain,
        ("encoder.layers.0.linear1", "encoder.layers.1.linear1"),
    ),
    "Mixtral": Padded(
        _model("MixtralForCausalLM", "MixtralConfig", **SMALL, num_key_value_heads=2,
               num_local_experts=4, **WORDS),
        _plain, ("model.layers.0", "model.layers.1"),
    ),
    "Gemma 2": Padded(
        _model("Gemma2ForCausalLM", "Gemma2Config", **SMALL, num_key_value_heads=2, head_dim=4,
               **WORDS),
        _plain, ("model.layers.0.mlp.act_fn", "model.layers.1"),
    ),
}  # fmt: skip


def _batch(padded: Padded) -> tuple[Tensor, Tensor]:
    ids = torch.randint(3, 60, (len(LENGTHS), WIDTH), generator=torch.Generator().manual_seed(3))
    mask = (torch.arange(WIDTH) < torch.tensor(LENGTHS)[:, None]).long()
    if padded.left:
        mask = mask.flip(1)
    return ids * mask, mask


def _kurtosis(rows: Tensor) -> float:
    centred = rows.double() - rows.double().mean(0)
    return float((centred.pow(4).mean(0) / centred.pow(2).mean(0).square()).mean())


@functools.cache
def _rows(name: str) -> dict[str, Tensor]:
    """The rows of every site, of one example after the other and without padding."""
    padded = MODELS[name]
    model, (ids, mask) = padded.make(), _batch(padded)
    found: dict[str, list[Tensor]] = {site: [] for site in padded.sites}
    whole = padded.batch(ids, mask)
    names = dict(model.named_modules())

    def catch(site: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, out: Any) -> None:
            found[site].append((out[0] if isinstance(out, tuple) else out).detach())

        return hook

    for site in padded.sites:
        if site in names:
            names[site].register_forward_hook(catch(site))
    for example in range(len(ids)):
        one = {key: value[example : example + 1] for key, value in whole.items()}
        kept = {key: one[key][:, one[_mask_for(key)][0].bool()] for key in one}
        model(**kept)
    return {
        site: torch.cat([rows.reshape(-1, rows.shape[-1]) for rows in values])
        for site, values in found.items()
        if values
    }


def _mask_for(key: str) -> str:
    return "decoder_attention_mask" if key.startswith("decoder") else "attention_mask"


QUICK = (
    "T5",
    "Longformer",
    "Llama, padding left",
    "prompts, padding left",
    "torch, positions first",
    "folded",
    "LSTM",
    "GRU, positions first",
    "RNN both ways",
)


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in MODELS]
)
def test_padding_changes_neither_counts_nor_numbers(name: str) -> None:
    padded = MODELS[name]
    batch = padded.batch(*_batch(padded))
    partial = bp.observe(padded.make(), [batch], sites=padded.sites, progress=False)
    for site, rows in _rows(name).items():
        found = partial.seen[site].moments
        more = padded.lengths.get(site, _WHOLE)
        decoder = "decoder_attention_mask" in batch and "decoder" in site
        own = batch[_mask_for("decoder" if decoder else "")]
        assert found.count == sum(more(int(tokens)) for tokens in own.sum(1))
        if padded.exact:
            assert float(found.kurtosis.nanmean()) == pytest.approx(_kurtosis(rows), rel=1e-4)


def test_there_are_as_many_kinds_as_are_spoken_of() -> None:
    assert len(MODELS) >= 25


@pytest.mark.slow
def test_a_mask_of_the_text_is_not_laid_on_pictures_or_sounds() -> None:
    ids, mask = _batch(MODELS["Llama"])
    tower = {**SMALL, "max_position_embeddings": 40}
    pictures = _model(
        "CLIPModel", "CLIPConfig", text_config={**tower, "eos_token_id": 2},
        vision_config={**SMALL, "image_size": 8, "patch_size": 4}, projection_dim=8,
    )()  # fmt: skip
    # Five places of a picture and nine of a text; six frames of a sound and nine words of it.
    seen = bp.observe(
        pictures, [{**_plain(ids, mask), "pixel_values": torch.randn(6, 3, 8, 8)}],
        sites=[f"{kind}_model.encoder.layers.1.mlp.fc1" for kind in ("vision", "text")],
        progress=False,
    ).seen  # fmt: skip
    assert [one.moments.count for one in seen.values()] == [30, int(mask.sum())]
    sounds = _model(
        "WhisperModel", "WhisperConfig", vocab_size=60, **_SEQ, max_source_positions=6,
        num_mel_bins=8, max_target_positions=20, decoder_start_token_id=1, **WORDS,
    )()  # fmt: skip
    seen = bp.observe(
        sounds,
        [{"input_features": torch.randn(6, 8, 12), "decoder_input_ids": ids,
          "decoder_attention_mask": mask}],
        sites=["encoder.layers.1.fc1", "decoder.layers.1.fc1"], progress=False,
    ).seen  # fmt: skip
    assert [one.moments.count for one in seen.values()] == [36, int(mask.sum())]


@pytest.mark.slow
def test_frames_of_a_sound_that_a_mask_cannot_be_laid_on_are_said_to_count() -> None:
    torch.manual_seed(0)
    config = transformers.Wav2Vec2Config(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=4,
        intermediate_size=32, conv_dim=(8, 8), conv_stride=(4, 2), conv_kernel=(8, 4),
        num_feat_extract_layers=2, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    model = transformers.Wav2Vec2Model(config).eval()
    mask = (torch.arange(400) < torch.tensor([400, 200, 300])[:, None]).long()
    site = "encoder.layers.0.feed_forward.intermediate_dense"
    batch = {"input_values": torch.randn(3, 400), "attention_mask": mask}
    report = bp.probe(model, [batch] * 3, sites=site, progress=False, certificates=False)
    assert any("attention_mask could not be applied" in note for note in report[site].notes)
