"""What turning axes costs: nothing where the group compensates it, else what the oracle says."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from draws import seeded
from networks import Stage, images, mlp, rows
from torch import Tensor, nn

import basis_probe as bp
from basis_probe.algebra.haar import haar
from basis_probe.concepts.rigidity import Stiffness
from basis_probe.concepts.turned_neurons import POWERS
from basis_probe.errors import DataError
from basis_probe.statistics.path import fractional_power


def stiff(model: nn.Module, site: str, data: Iterable[Any], **options: Any) -> Stiffness:
    return bp.stiffness(model, site, data, progress=False, **options)


def built(seed: int, *layers: nn.Module) -> nn.Module:
    """The layers, drawn anew in double precision, with a generic gain and bias everywhere."""
    model, generator = nn.Sequential(*layers).double().eval(), seeded(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(drawn / max(1, parameter.shape[-1]) ** 0.5)
    return model


BENT: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu in place": lambda: nn.ReLU(inplace=True),
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "slopes of their own": lambda: nn.PReLU(9),
}


@pytest.mark.parametrize("name", BENT)
def test_the_cost_is_that_of_turned_neurons_before_a_refitted_map(name: str) -> None:
    model = built(1, nn.Linear(5, 9), BENT[name](), nn.Linear(9, 4))
    x = torch.randn(300, 5, generator=seeded(2), dtype=torch.float64)
    found = stiff(model, "1", x.split(64), turns=2, seed=7)
    generator = seeded(7)
    z = model[0](x).detach()  # pyright: ignore[reportIndexIssue]
    unit = (z - z.mean(0)) / z.std(0, correction=0)
    own = model(x).detach().log_softmax(-1)
    for turn in range(2):
        q = haar(9, generator)
        q[:, 0] *= torch.linalg.det(q).sign()
        for station, power in enumerate(POWERS):
            frame = fractional_power(q, power)
            bent = model[1](z.mean(0) + z.std(0, correction=0) * (unit @ frame.T)).detach()  # pyright: ignore[reportIndexIssue]
            design = torch.cat([bent, torch.ones(300, 1, dtype=torch.float64)], 1)
            wanted = model[2](model[1](z.clone())).detach()  # pyright: ignore[reportIndexIssue]
            made = design @ torch.linalg.lstsq(design, wanted).solution
            cost = (own.exp() * (own - made.log_softmax(-1))).sum(1).mean()
            assert found.per_turn[turn, station] == pytest.approx(float(cost), rel=1e-6, abs=1e-13)
    near = found.per_turn[:, 1] ** 0.5
    assert found.slope == pytest.approx(float(near.mean() / found.angles[1]), rel=0.1)
    assert (np.diff(found.cost[:5]) > 0).all() and found.removed > found.cost[-1]


def test_the_slope_is_the_derivative_of_the_root() -> None:
    model = built(3, nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 5))
    x = torch.randn(500, 6, generator=seeded(4), dtype=torch.float64)
    z, own = model[0](x).detach(), model(x).detach().log_softmax(-1)  # pyright: ignore[reportIndexIssue]
    unit, generator, slopes = (z - z.mean(0)) / z.std(0, correction=0), seeded(0), []
    for _ in range(4):
        q = haar(12, generator)
        q[:, 0] *= torch.linalg.det(q).sign()
        frame = fractional_power(q, 1e-4)
        bent = model[1](z.mean(0) + z.std(0, correction=0) * (unit @ frame.T)).detach()  # pyright: ignore[reportIndexIssue]
        design = torch.cat([bent, torch.ones(500, 1, dtype=torch.float64)], 1)
        made = design @ torch.linalg.lstsq(design, model[2](model[1](z)).detach()).solution  # pyright: ignore[reportIndexIssue]
        cost = (own.exp() * (own - made.log_softmax(-1))).sum(1).mean()
        slopes.append(float(cost.sqrt() / torch.acos(frame.diagonal().mean())))
    found = stiff(model, "1", [x], turns=4)
    assert found.slope == pytest.approx(float(np.mean(slopes)), rel=0.01)


LINEAR: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "between two maps": (
        lambda: built(0, nn.Linear(6, 8), nn.Identity(), nn.Linear(8, 3)),
        "1",
    ),
    "before a root mean square": (
        lambda: built(0, nn.Linear(6, 8), nn.RMSNorm(8), nn.Linear(8, 3)),
        "0",
    ),
    "before a layer norm": (
        lambda: built(0, nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3)),
        "0",
    ),
}


@pytest.mark.parametrize("name", LINEAR)
def test_what_the_group_holds_costs_nothing(name: str) -> None:
    build, site = LINEAR[name]
    found = stiff(build(), site, [rows().double()])
    assert not found.cost.any() and found.slope == found.slope_error == found.relative == 0
    assert found.angles[0] == 0 and found.angles[-1] > 1 and "holds the turns" in str(found)


def test_neurons_that_are_always_on_are_almost_arbitrary() -> None:
    x = torch.randn(400, 6, generator=seeded(5), dtype=torch.float64)
    slopes: list[float] = []
    for shift in (0.0, 1.5, 3.0, 30.0):
        model = built(6, nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3))
        with torch.no_grad():
            model[0].bias += shift  # pyright: ignore
        slopes.append(stiff(model, "1", [x]).slope)
    assert slopes == sorted(slopes, reverse=True)
    assert slopes[0] > 3 * slopes[2] and slopes[3] < 1e-6


def test_elements_of_the_group_change_nothing() -> None:
    model, data = mlp(0).double().eval(), [rows().double()]
    scales = torch.logspace(-2, 2, 10, dtype=torch.float64)
    scaled = bp.reparametrize(model, "1", torch.diag(scales))
    found, other = stiff(model, "1", data), stiff(scaled, "1", data)
    assert np.allclose(found.per_turn, other.per_turn, rtol=1e-6, atol=1e-14)
    order = torch.eye(10, dtype=torch.float64)[torch.randperm(10, generator=seeded(1))]
    moved = stiff(bp.reparametrize(model, "1", order), "1", data, turns=20)
    error = (found.slope_error**2 + moved.slope_error**2) ** 0.5
    assert abs(moved.slope - found.slope) < 4 * error


def test_batches_and_seeds_decide_nothing_but_what_they_should() -> None:
    model, x = mlp(0).eval(), rows()
    whole, parts = stiff(model, "1", [x]), stiff(model, "1", x.split(37))
    assert np.allclose(whole.per_turn, parts.per_turn, rtol=1e-5)
    assert whole.slope_error == pytest.approx(parts.slope_error, rel=1e-4)
    assert whole == stiff(model, "1", [x]) != stiff(model, "1", [x], seed=1)


def test_the_users_loss_is_the_cost() -> None:
    model, x, seen = mlp(0).eval(), rows(), list[object]()
    with torch.no_grad():
        y = model(x)

    def loss(output: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        seen.append(batch)
        return (output - batch[1]).square().mean()

    found = stiff(model, "1", [(x, y)], loss=loss)
    error = stiff(model, "1", [x], measure="error")
    variance = float((y.var(0, correction=0)).mean())
    assert np.allclose(found.cost, error.cost * variance, rtol=1e-4)
    assert found.measure.startswith("loss") and isinstance(seen[0], tuple)


class Gated(nn.Module):
    """A gated layer; what reads it is given the product."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x)), None


def test_kinds_of_neurons_and_what_reads_them() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        gated = Gated()
    for parameter in gated.parameters():
        parameter.requires_grad_(False)
    before = copy.deepcopy(gated.state_dict())
    product = stiff(gated, "down:in", [rows()])
    assert product.slope > 0 and not product.notes and product.measure.startswith("error")
    gate = stiff(gated, "silu()", [rows()])
    assert "mul reads these neurons too" in gate.notes[0] and "lower bound" in gate.notes[0]
    assert all(torch.equal(before[name], value) for name, value in gated.state_dict().items())
    stage = stiff(Stage(0).train(), "relu()", [images()])
    assert stage.slope > 0 and "add reads" in stage.notes[0]
    half = stiff(mlp(0).bfloat16(), "1", [rows().bfloat16()])
    assert "half precision" in half.notes[0] and half.slope > 0
    assert stiff(mlp(0), "1", [rows()]).plot().axes


REFUSED: dict[str, tuple[str, str]] = {
    "several": ("*", "stands for 6 sites: turn one at a time"),
    "before a nonlinearity": ("0", "its group (positive-monomial) holds no turns"),
    "no such site": ("9", "9"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_turned_is_refused(name: str) -> None:
    site, message = REFUSED[name]
    with pytest.raises(bp.SiteError, match=r"(?s).*") as caught:
        stiff(mlp(0), site, [rows()])
    assert message in str(caught.value)


def test_data_that_say_too_little_are_refused() -> None:
    with pytest.raises(bp.DataError, match="need at least 20: give more data"):
        stiff(mlp(0), "1", [rows()[:19]])
    with pytest.raises(bp.DataError, match="no batch"):
        stiff(mlp(0), "1", [])
    with pytest.raises(bp.DataError, match="fewer than two axes"):
        stiff(mlp(0), "1", [torch.zeros(50, 6)])
    with pytest.raises(bp.DataError, match="NaN or infinite in batch 0"):
        stiff(mlp(0), "1", [torch.full((50, 6), torch.nan)])
    with pytest.raises(ValueError, match="give one of them"):
        stiff(mlp(0), "1", [rows()], loss=lambda o, b: o.sum(), measure="kl")


@pytest.mark.slow
def test_untrained_networks_cost_nothing_where_the_group_turns() -> None:
    for seed in range(200):
        model = built(seed, nn.Linear(6, 8), nn.RMSNorm(8), nn.Linear(8, 3))
        found = stiff(model, "0", [rows()[:40].double()], turns=2)
        assert not found.cost.any()


def test_a_softmax_of_one_entry_is_no_measure() -> None:
    layers = nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 1)
    model = nn.Sequential(*layers).eval()
    data = [torch.randn(200, 6, generator=torch.Generator().manual_seed(0))]
    with pytest.raises(ValueError, match="ask for measure='error'"):
        bp.stiffness(model, "1", data, measure="kl", progress=False)
    assert bp.stiffness(model, "1", data, measure="error", progress=False).slope > 0.1


def test_losses_of_every_example_are_averaged_and_must_be_finite() -> None:
    layers = nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3)
    model = nn.Sequential(*layers).eval()
    data = [torch.randn(200, 6, generator=torch.Generator().manual_seed(0))]

    def each(output: torch.Tensor, _: object) -> torch.Tensor:
        return output.square().sum(1)

    one = bp.stiffness(model, "1", data, loss=each, progress=False)
    mean = bp.stiffness(model, "1", data, loss=lambda *g: each(*g).mean(), progress=False)
    np.testing.assert_allclose(one.cost, mean.cost, atol=1e-6)
    with pytest.raises(DataError, match="the loss is nan for the model as it is"):
        bp.stiffness(model, "1", data, loss=lambda *g: each(*g).sum() * torch.nan, progress=False)
