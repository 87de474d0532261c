"""A configuration says of an architecture what a model of it says."""

from __future__ import annotations

import pathlib

import families
import pytest
import torch
from torch import nn

import basis_probe as bp
from basis_probe import groups as G
from basis_probe.cli import main
from basis_probe.model.from_config import from_config, with_weights

USUAL = ("GPT-2", "Gemma 2", "Mixtral", "ViT")


@pytest.mark.sample(default=1)
@pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, id=family.name, marks=[] if family.name in USUAL else pytest.mark.slow)
        for family in families.HUGGING_FACE
    ],
)
def test_sites_and_groups_are_those_of_the_model(family: families.Family) -> None:
    model = family.make(0)
    model.config.architectures = [type(model).__name__]
    expected = bp.symmetries(model, family.example(1))
    found = bp.symmetries(model.config, family.example(1))
    assert {n: s.group for n, s in found.items()} == {n: s.group for n, s in expected.items()}
    for name, symmetry in expected.items():
        made, ours = found[name].certificate, symmetry.certificate
        assert (made is None) == (ours is None), name
        assert made is None or (made.holds and made.stranger in (ours.stranger, made.stranger))


@pytest.mark.slow
def test_a_large_model_takes_hardly_any_memory() -> None:
    import transformers

    config = transformers.LlamaConfig(num_hidden_layers=2)
    model = from_config(config)
    size = sum(parameter.numel() for parameter in model.parameters())
    held = sum(parameter.untyped_storage().nbytes() for parameter in model.parameters())
    assert size > 600_000_000 and held < 5_000_000
    found = bp.symmetries(config, certificates=False)
    assert found["model.layers.1.mlp.act_fn"].group == G.Permutation(11008)
    assert found["model.layers.0"].group == G.Orthogonal(4096)


def test_drawn_matrices_are_generic() -> None:
    with torch.device("meta"):
        empty = nn.Sequential(nn.Linear(24, 24), nn.BatchNorm1d(24), nn.Linear(24, 40))
    model = with_weights(empty)
    for layer in (model[0], model[2]):
        assert int(torch.linalg.matrix_rank(layer.weight)) == 24
    assert not torch.allclose(model[0].weight, model[0].weight.T)
    for vector in (model[0].bias, model[1].weight, model[1].running_mean, model[1].running_var):
        assert len(vector.unique()) == 24
    assert bool((model[1].running_var > 0).all())


def test_a_model_without_weights_is_left_as_it_is() -> None:
    with torch.device("meta"):
        empty = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    found = bp.symmetries(empty)
    assert found["1"].group == G.PositiveMonomial(8)
    assert found["1"].certificate is not None and found["1"].certificate.holds
    assert all(parameter.is_meta for parameter in empty.parameters())


def test_tied_weights_stay_tied() -> None:
    model = next(f for f in families.HUGGING_FACE if f.name == "Gemma").make(0)
    made = from_config(model.config)
    assert made.lm_head.weight is made.model.embed_tokens.weight


class Held(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("table", torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) * self.table


def test_what_cannot_be_known_is_said(tmp_path: pathlib.Path) -> None:
    with torch.device("meta"):
        empty = Held()
    with pytest.raises(ValueError, match="the buffer table of a Held is on the meta device"):
        bp.symmetries(empty, torch.randn(2, 4))
    with pytest.raises(ValueError, match=r"no model can be built from '.*none'"):
        bp.symmetries(str(tmp_path / "none"))
    whole = nn.Linear(2, 2)
    whole.register_parameter("q", nn.Parameter(torch.zeros(2, dtype=torch.int8), False))
    with pytest.raises(ValueError, match=r"holds torch\.int8: give a model or a configuration"):
        with_weights(whole)


def test_encoder_and_decoder_are_given_texts_of_their_own() -> None:
    import transformers

    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 20, "num_layers": 1, "num_heads": 2}
    found = bp.symmetries(transformers.T5Config(**sizes, vocab_size=40))
    name = "decoder.block.0.layer.2.DenseReluDense.act"
    assert found[name].group == G.PositiveMonomial(20)


def test_a_gain_may_stand_behind_a_norm_that_something_carries() -> None:
    import transformers

    config = transformers.Mamba2Config(
        hidden_size=32, num_hidden_layers=1, head_dim=8, num_heads=8, vocab_size=50, state_size=8,
        n_groups=1,
    )  # fmt: skip
    found = bp.symmetries(config)
    assert found["backbone.layers.0"].group == G.Orthogonal(32)
    proved = [symmetry for symmetry in found.values() if symmetry.certificate is not None]
    assert len(proved) > 10 and all(s.certificate and s.certificate.holds for s in proved)


@pytest.mark.slow
def test_the_command_reads_a_configuration_alone(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = next(f for f in families.HUGGING_FACE if f.name == "Llama").make(0)
    model.config.architectures = ["LlamaForCausalLM"]
    model.config.save_pretrained(tmp_path)
    assert bp.symmetries(tmp_path, certificates=False)["model.layers.1"].group == G.Orthogonal(32)
    assert main(["symmetries", str(tmp_path), "--config-only", "--sites", "model.layers.1"]) == 0
    assert "orthogonal (32)" in capsys.readouterr().out
    assert main(["symmetries", str(tmp_path / "none"), "--config-only"]) != 0
    assert "no model can be built from" in capsys.readouterr().err
