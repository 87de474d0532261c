"""A model whose weights are not all there is no model to say something of."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import basis_probe as bp
from basis_probe.model.load import PretrainedError, from_directory, hugging_face

transformers = pytest.importorskip("transformers")
pytest.importorskip("transformer_lens")

SIZES: dict[str, Any] = {"vocab_size": 32, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}


def _gpt2() -> Any:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32, **SIZES)
    )


def _neox() -> Any:
    return transformers.GPTNeoXForCausalLM(
        transformers.GPTNeoXConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
            **SIZES,
        )
    )


@pytest.fixture(params=[_gpt2, _neox])
def folder(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> pathlib.Path:
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(0)
    request.param().save_pretrained(tmp_path)
    words = Tokenizer(models.WordLevel({f"w{n}": n for n in range(32)}, unk_token="w1"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="w1", bos_token="w0"
    )
    fast.save_pretrained(tmp_path)
    return tmp_path


def _change(folder: pathlib.Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, {"format": "pt"})


@pytest.mark.sample(default=2)
@pytest.mark.parametrize("part", ["wte|embed_in", "ln_1|input_layernorm", "c_proj|dense_4h"])
def test_a_missing_weight_that_matters_is_refused_by_name(folder: pathlib.Path, part: str) -> None:
    def without(weights: dict[str, Any]) -> dict[str, Any]:
        gone = [name for name in weights if any(word in name for word in part.split("|"))]
        assert gone
        return {name: tensor for name, tensor in weights.items() if name != gone[-1]}

    _change(folder, without)
    with pytest.raises(PretrainedError, match=f"lacks weights .*({part})"):
        from_directory(folder)
    with pytest.raises(PretrainedError, match=f"lacks weights .*({part})"):
        hugging_face(folder)


def test_layers_that_no_weights_belong_to_are_refused(folder: pathlib.Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    layers = "n_layer" if "n_layer" in config else "num_hidden_layers"
    (folder / "config.json").write_text(json.dumps(config | {layers: 5}))
    with pytest.raises(PretrainedError, match=r"lacks weights .*\.2\..* and \d+ more"):
        from_directory(folder)


def test_a_weight_of_another_shape_is_refused_by_name(folder: pathlib.Path) -> None:
    def cut(weights: dict[str, Any]) -> dict[str, Any]:
        return {
            n: t[:-1].clone() if n.endswith("mlp.c_fc.bias") or "h_to_4h.bias" in n else t
            for n, t in weights.items()
        }

    _change(folder, cut)
    with pytest.raises(PretrainedError, match=r"do not fit the configuration: .*bias \("):
        from_directory(folder)


@pytest.mark.sample(default=1)
def test_weights_without_a_place_are_named_in_the_report(folder: pathlib.Path) -> None:
    _change(folder, lambda weights: weights | {"extra.head": torch.zeros(3)})
    bridge = from_directory(folder)
    ids = torch.randint(3, 32, (40, 8), generator=torch.Generator().manual_seed(0))
    report = bp.probe(bridge, [ids], sites="blocks.0.hook_resid_pre", progress=False)
    assert any("extra.head" in note for note in report.notes)


def test_a_whole_model_has_no_notes(folder: pathlib.Path) -> None:
    assert from_directory(folder).__dict__["basis_probe_notes"] == ()
