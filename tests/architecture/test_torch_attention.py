"""torch's own attention and transformers have the groups of what they compute, with proofs."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import basis_probe as bp
from basis_probe.algebra.groups import (
    Blocks,
    GeneralLinear,
    LineStabiliser,
    Permutation,
    PositiveMonomial,
)
from tests.draws import seeded


class Around(nn.Module):
    """A part between two linear maps."""

    def __init__(self, part: nn.Module, call: Callable[..., Tensor]) -> None:
        super().__init__()
        self.before, self.beside = nn.Linear(8, 16), nn.Linear(8, 16)
        self.part, self.after, self.call = part, nn.Linear(16, 3), call

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.call(self.part, self.before(x), self.beside(x)))


def _generic(model: nn.Module) -> nn.Module:
    """No weight is zero or one, as they are before training."""
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            drawn = torch.randn(parameter.shape, generator=seeded(number))
            parameter.copy_(0.3 * drawn + (float(parameter.mean() > 0.5) if drawn.ndim == 1 else 0))
    return model.eval()


def _symmetries(part: nn.Module, call: Callable[..., Tensor]) -> dict[str, Any]:
    found = bp.symmetries(_generic(Around(part, call)), torch.randn(3, 5, 8, generator=seeded(0)))
    assert all(s.certificate is None or s.certificate.holds for s in found.values())
    return dict(found)


@pytest.mark.sample(default=6)
@pytest.mark.parametrize(
    "settings", [{}, {"bias": False}, {"add_bias_kv": True}, {"add_zero_attn": True}]
)
@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("first", [True, False])
def test_attention_leaves_what_it_reads_and_writes_free(
    settings: dict[str, bool], weights: bool, first: bool
) -> None:
    part = nn.MultiheadAttention(16, 4, batch_first=first, **settings)
    found = _symmetries(part, lambda m, x, y: m(x, y, y, need_weights=weights)[0])
    for site in ("before", "beside", "part"):
        assert type(found[site].group) is GeneralLinear and found[site].certificate.holds
    for name in ("part.q", "part.k", "part.v", "part.z"):
        assert found[name].group == Blocks(GeneralLinear(4), 4), name
        assert found[name].certificate.holds, name


@pytest.mark.sample(default=1)
@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning")
@pytest.mark.parametrize("first", [True, False])
def test_streams_and_neurons_of_encoders_and_decoders(first: bool) -> None:
    stream = LineStabiliser if first else Permutation
    kinds: list[tuple[nn.Module, Callable[..., Tensor], str]] = [
        (
            nn.TransformerEncoder(
                nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=first),
                2,
                enable_nested_tensor=False,
            ),
            lambda m, x, y: m(x),
            "part",
        ),
        (
            nn.Transformer(16, 4, 1, 1, 32, batch_first=True, norm_first=first),
            lambda m, x, y: m(x, y),
            "part.decoder",
        ),
    ]
    for part, call, path in kinds:
        found = _symmetries(part, call)
        assert type(found["before"].group) is stream
        assert type(found[f"{path}.layers.0.self_attn"].group) is stream
        assert type(found[f"{path}.layers.0.relu()"].group) is PositiveMonomial
        assert found[f"{path}.layers.0.relu()"].certificate.holds
        for name in ("q", "k", "v", "z"):
            claim = found[f"{path}.layers.0.self_attn.{name}"]
            assert claim.group == Blocks(GeneralLinear(4), 4), name
            assert claim.certificate.holds, name


@pytest.mark.slow
def test_outputs_are_those_of_torch_to_the_last_bit() -> None:
    part = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    model, x = _generic(Around(part, lambda m, x, y: m(x))), torch.randn(3, 5, 8)
    before = model(x)
    with bp.attach(model, sites=["part.self_attn", "part.relu()"]) as probe:
        assert torch.equal(model(x), before)
    assert probe.report()["part.relu()"].n_samples == 15
