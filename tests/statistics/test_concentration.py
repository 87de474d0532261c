"""Activation times gradient: the naive numbers, what changes nothing, gradients through a refit."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from draws import seeded
from torch import Tensor

import basis_probe as bp
from basis_probe.algebra.groups import Group
from basis_probe.algebra.haar import haar
from basis_probe.statistics.attribution import Refitted, TurnedAlike, concentration
from basis_probe.statistics.nulls import Geometry, Problem, geometry_of
from basis_probe.statistics.nulls.frames import Alternatives, Frame


def drawn(rows: int, dim: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = seeded(seed)
    x = torch.randn(rows, dim, generator=generator, dtype=torch.float64)
    return x, torch.randn(rows, dim, generator=generator, dtype=torch.float64)


def naive(x: Tensor, gradient: Tensor) -> tuple[float, float, float]:
    """Gini coefficient, share for nine tenths and participation, by loops."""
    ginis, shares, ratios = list[float](), list[float](), list[float]()
    for row in (x * gradient).abs().tolist():
        total, dim = sum(row), len(row)
        if total == 0:
            continue
        ginis.append(sum(abs(a - b) for a in row for b in row) / (2 * dim * total))
        ratios.append(total**2 / sum(a * a for a in row) / dim)
        reached, count = 0.0, 0
        for value in sorted(row, reverse=True):
            if reached >= 0.9 * total:
                break
            reached, count = reached + value, count + 1
        shares.append(count / dim)
    return tuple(sum(v) / len(v) for v in (ginis, shares, ratios))  # pyright: ignore[reportReturnType]


def test_the_numbers_are_the_naive_ones() -> None:
    x, gradient = drawn(40, 7)
    x[3], x[5, 2:] = 0.0, 0.0
    found = concentration(x, gradient)
    assert (found.gini, found.share, found.participation) == pytest.approx(naive(x, gradient))
    assert found.samples == 39 and float(found.per_axis.sum()) == pytest.approx(1)
    nothing = concentration(torch.zeros(4, 3), torch.ones(4, 3))
    assert nothing.samples == 0 and nothing.gini != nothing.gini


@pytest.mark.parametrize("scale", [1e-200, 1e-20, 1.0, 1e100])
def test_the_size_of_a_loss_changes_nothing(scale: float) -> None:
    x, gradient = drawn(30, 6)
    rows = torch.logspace(-3, 3, 30, dtype=torch.float64)[:, None]
    one, other = concentration(x, gradient), concentration(x, gradient * rows * scale)
    assert one.gini == pytest.approx(other.gini) and one.share == other.share


def test_scales_signs_and_order_of_axes_change_nothing() -> None:
    x, gradient = drawn(30, 6)
    d = torch.tensor([1e-4, -3.0, 0.5, -1e5, 2.0, 1.0], dtype=torch.float64)
    order = torch.tensor([3, 0, 5, 1, 2, 4])
    one, other = (
        concentration(x, gradient),
        concentration((x * d)[:, order], (gradient / d)[:, order]),
    )
    assert one.gini == pytest.approx(other.gini) and one.share == other.share
    assert torch.allclose(one.per_axis[order], other.per_axis)


GROUPS: dict[str, Group] = {
    "rotations": bp.groups.Orthogonal(8),
    "every map": bp.groups.GeneralLinear(8),
    "the all-ones direction": bp.groups.LineStabiliser(8),
    "heads": bp.groups.Blocks(bp.groups.GeneralLinear(2), 2, copies=2),
    "planes, halves apart": bp.groups.Planes(8, pairing="half"),
    "parts": bp.groups.DirectSum((bp.groups.Orthogonal(5), bp.groups.GeneralLinear(3))),
    "axes": bp.groups.PositiveMonomial(8),
}


@pytest.mark.parametrize("name", GROUPS)
def test_in_a_turned_basis_gradients_turn_along(name: str) -> None:
    group = GROUPS[name]
    x, gradient = drawn(60, 8)
    problem = Problem(x=x, group=group, halves=torch.zeros(60, dtype=torch.int64))
    geometry = geometry_of(group)
    made = TurnedAlike(problem, gradient, geometry)
    along = (x * gradient).sum(1)
    if geometry is Geometry.LINE:
        along = along - x.sum(1) * gradient.sum(1) / 8
    before, generator = made.frame(None), seeded(3)
    for frame in (None, generator, generator):
        rows, slopes = made.frame(frame)
        assert torch.allclose((rows * slopes).sum(1), along, atol=1e-9)
    assert not torch.allclose(made.frame(generator)[0], before[0])


@pytest.mark.sample(default=1)
@pytest.mark.parametrize(
    "name", ["rotations", "every map", "the all-ones direction", "heads", "parts"]
)
def test_the_group_changes_the_numbers_no_more_than_a_turn(name: str) -> None:
    group = GROUPS[name]
    x, gradient = drawn(4000, 8)
    x = x**3
    element = group.sample(seeded(5))
    moved = Problem(x=x @ element.T, group=group, halves=torch.zeros(4000, dtype=torch.int64))
    inverse = torch.linalg.inv(element)
    if geometry_of(group) is Geometry.LINE:
        gradient = gradient - gradient.mean(1, keepdim=True)
    one = TurnedAlike(dataclasses.replace(moved, x=x), gradient, geometry_of(group))
    other = TurnedAlike(moved, gradient @ inverse, geometry_of(group))
    (a, f), (b, g) = one.frame(None), other.frame(None)
    if geometry_of(group) is Geometry.LINE:
        return
    # The two differ by an orthogonal map, of which the null's law is free.
    assert torch.allclose((a @ a.T)[:50, :50], (b @ b.T)[:50, :50], atol=1e-6)
    assert torch.allclose((f @ f.T)[:50, :50], (g @ g.T)[:50, :50], atol=1e-6)


class Fixed(Alternatives):
    """One alternative, whatever is drawn."""

    def __init__(self, other: Tensor) -> None:
        self.other = other

    def frame(self, generator: torch.Generator | None) -> Frame:
        return Frame(self.other)


@pytest.mark.parametrize("rows", [60, 6])
def test_gradients_go_through_the_refitted_map(rows: int) -> None:
    dim = 9
    x, gradient = drawn(rows, dim)
    other = (x @ haar(dim, seeded(1)).T + 0.3).relu()
    other[:, 4] = 0.0
    made = Refitted(Fixed(other), x, gradient)
    away, units = other - other.mean(0), other.std(0, correction=0)
    z = torch.where(units > 0, away / units, 0.0)
    weight = (made.ridge * rows) ** 0.5 * torch.eye(dim, dtype=torch.float64)
    target = torch.cat([x - x.mean(0), torch.zeros(dim, dim, dtype=torch.float64)])
    fitted = torch.linalg.lstsq(torch.cat([z, weight]), target).solution
    leaf = other.clone().requires_grad_(True)
    scaled = torch.where(
        units > 0, (leaf - other.mean(0)) / torch.where(units > 0, units, 1.0), 0.0
    )
    # A loss that is linear in what was written, with these gradients.
    (((scaled @ fitted) + x.mean(0)) * gradient).sum().backward()
    found = made.frame(seeded(0))
    assert torch.equal(found[0], other)
    assert leaf.grad is not None and torch.allclose(found[1], leaf.grad, atol=1e-9)
    assert torch.equal(made.frame(None)[1], gradient)
