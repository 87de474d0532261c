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


@pytest.mark.slow
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


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("both", [False, True])
def test_directions_and_lengths_follow_what_their_product_is_asked_for(
    axis: int, *, both: bool
) -> None:
    generator = seeded(4)
    layers = [nn.Linear(4, 6), nn.Linear(6, 3)]
    for layer in layers[: 1 + both]:
        parametrizations.weight_norm(layer, dim=axis)
    model = nn.Sequential(layers[0], nn.GELU(), layers[1])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    model = model.double().eval()
    found = bp.symmetries(model, X)["1"]
    assert found.group == bp.groups.Permutation(6)
    assert found.certificate is not None and found.certificate.holds, found.unproved
    element = found.group.sample(seeded(5))
    twin = bp.reparametrize(model, "1", element, example_input=X)
    others = torch.randn(7, 4, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(twin(others), model(others))
    torch.testing.assert_close(twin[:2](others), model[:2](others) @ torch.as_tensor(element).T)


class Placed(nn.Module):
    """Positions from a convolution in two groups with a length for each of its taps, as wav2vec."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.norm, self.last = nn.Linear(4, 6), nn.LayerNorm(6), nn.LayerNorm(6)
        self.places, self.head = nn.Conv1d(6, 6, 3, padding=1, groups=2), nn.Linear(6, 3)
        parametrizations.weight_norm(self.places, dim=2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.read(x)
        h = self.norm(h + F.gelu(self.places(h.mT)).mT)
        return self.head(self.last(h + h.mean(1, keepdim=True).tanh()))


@pytest.mark.slow
def test_axes_that_change_places_in_parts_do_so_behind_a_norm_and_rescale_there() -> None:
    model, generator = Placed(), seeded(6)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    model = model.double().eval()
    x, others = (torch.randn(2, n, 4, generator=generator, dtype=torch.float64) for n in (5, 8))
    found = bp.symmetries(model, x)
    ordered, scaled = (
        bp.groups.DirectSum((kind(3), kind(3)))
        for kind in (bp.groups.Permutation, bp.groups.Monomial)
    )
    right = {"read": ordered, "norm": ordered, "last": scaled}
    assert {site: found[site].group for site in right} == right
    for site, group in right.items():
        proof = found[site].certificate
        assert proof is not None and proof.holds, (site, found[site].unproved)
        twin = bp.reparametrize(model, site, group.sample(seeded(7)), example_input=x)
        torch.testing.assert_close(twin(others), model(others), rtol=1e-8, atol=1e-8)
