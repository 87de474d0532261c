"""Weights that are functions of parameters follow a change of basis only where parameters can."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from draws import seeded
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import basis_probe as bp
from basis_probe.algebra.haar import haar

X = torch.randn(5, 4, generator=seeded(), dtype=torch.float64)


class Shaped(nn.Module):
    def __init__(self, shape: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, free: Tensor) -> Tensor:
        return self.shape(free)


def between(shape: Callable[[Tensor], Tensor], *inner: nn.Module) -> nn.Sequential:
    """Two linear maps whose weights are always shape(V) for a free V."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Linear(4, 8), nn.Linear(8, 3)]
    for layer in layers:
        parametrize.register_parametrization(layer, "weight", Shaped(shape))
    return nn.Sequential(layers[0], *inner, layers[1]).double().eval()


ONTO: dict[str, Callable[[Tensor], Tensor]] = {
    "a factor": lambda v: 2 * v,
    "a constant": lambda v: v + 0.1,
    "running sums": lambda v: v.cumsum(0),
    "turned": lambda v: v.flip(0).flip(1),
}
BOUND: dict[str, Callable[[Tensor], Tensor]] = {
    "positive": F.softplus,
    "exponentials": torch.exp,
    "squares": torch.square,
    "in an interval": torch.tanh,
    "in a wide interval": lambda v: 50 * (v / 50).tanh(),
    "clamped": lambda v: v.clamp(-0.2, 0.2),
    "one triangle": torch.triu,
    "rows of mean zero": lambda v: v - v.mean(1, keepdim=True),
    "probabilities": lambda v: v.softmax(1),
    "signs": torch.sign,
    "rounded": lambda v: (8 * v).round() / 8,
}


@pytest.mark.parametrize("name", ONTO)
def test_weights_that_reach_every_value_are_as_free_as_parameters(name: str) -> None:
    found = bp.symmetries(between(ONTO[name]), X, certificates=False)["0"]
    assert found.group == bp.groups.GeneralLinear(8)


QUICK = ("positive", "one triangle", "signs")
EACH = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow, id=name) for name in BOUND
]


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("name", EACH)
def test_weights_of_a_restricted_form_are_not_turned(name: str) -> None:
    found = bp.symmetries(between(BOUND[name]), X)["0"]
    unknown = found.privileged is bp.Privileged.UNKNOWN
    if name != "in a wide interval":
        assert unknown or not found.group.contains(haar(8, seeded(1)).numpy())
    assert unknown or not found.group.contains(1e3 * haar(8, seeded(1)).numpy())
    if unknown:
        assert "is computed from parameters" in found.because


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("bend", [nn.ReLU, nn.GELU])
def test_rows_of_one_length_change_places_and_no_size(bend: type[nn.Module]) -> None:
    model = between(lambda v: F.normalize(v, dim=1), bend())
    assert bp.symmetries(model, X)["1"].group == bp.groups.Permutation(8)
    # A positive weight can be rescaled by what ReLU lets through.
    if bend is nn.ReLU:
        positive = between(F.softplus, bend())
        assert bp.symmetries(positive, X)["1"].group == bp.groups.PositiveMonomial(8)


@pytest.mark.slow
def test_masks_normalised_and_orthogonal_weights_as_torch_makes_them() -> None:
    first, last = nn.Linear(4, 8), nn.Linear(8, 3)
    masked = nn.Sequential(
        prune.l1_unstructured(nn.Linear(4, 8), "weight", 0.3), nn.ReLU(), nn.Linear(8, 3)
    ).double()
    assert bp.symmetries(masked.eval(), X)["1"].privileged is bp.Privileged.UNKNOWN
    free = nn.Sequential(parametrizations.weight_norm(first), nn.ReLU(), last).double().eval()
    assert bp.symmetries(free, X)["1"].group == bp.groups.PositiveMonomial(8)
    square = torch.randn(5, 8, generator=seeded(2), dtype=torch.float64)
    turned = nn.Sequential(parametrizations.orthogonal(nn.Linear(8, 8)), nn.Linear(8, 3))
    found = bp.symmetries(turned.double().eval(), square)["0"]
    # One of the two halves of the orthogonal matrices is reached from where the weight is.
    unknown = found.privileged is bp.Privileged.UNKNOWN
    assert unknown or found.group == bp.groups.Orthogonal(8)


@pytest.mark.slow
def test_large_weights_that_are_free_for_a_plain_reason_are_free() -> None:
    class Merged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down = nn.Parameter(0.1 * torch.randn(2, 4, generator=seeded(3)))

        def forward(self, free: Tensor) -> Tensor:
            return free + torch.ones(len(free), 2, dtype=free.dtype) @ self.down

    wide = [nn.Linear(4, 30_000), nn.ReLU(), nn.Linear(30_000, 1)]
    parametrize.register_parametrization(wide[0], "weight", Merged())
    model = nn.Sequential(*wide).double().eval()
    assert bp.symmetries(model, X, certificates=False)["1"].group == bp.groups.PositiveMonomial(
        30_000
    )
    named = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 30_000)), *wide[1:])
    named[2] = nn.Linear(30_000, 1)
    found = bp.symmetries(named.double().eval(), X, certificates=False)["1"]
    assert found.group == bp.groups.PositiveMonomial(30_000)
    masked = prune.l1_unstructured(nn.Linear(4, 30_000), "weight", 0.3)
    bound = nn.Sequential(masked, nn.ReLU(), nn.Linear(30_000, 1)).double().eval()
    assert bp.symmetries(bound, X, certificates=False)["1"].privileged is bp.Privileged.UNKNOWN
