"""The way to a random basis starts at the axes and ends exactly there."""

import math

import pytest
import torch
from draws import seeded
from torch import Tensor

from basis_probe.algebra.haar import haar
from basis_probe.statistics.path import RotationPath, fractional_power, path_to, rotation_path
from basis_probe.statistics.scores import KURTOSIS, NEGENTROPY


def _proper(dim: int, seed: int) -> Tensor:
    turn = haar(dim, seeded(seed))
    if torch.linalg.det(turn) < 0:
        turn[:, 0] *= -1
    return turn


def _close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


@pytest.mark.parametrize("dim", [2, 3, 7, 8, 33, 64])
def test_powers_of_a_rotation(dim: int) -> None:
    turn = _proper(dim, dim)
    eye = torch.eye(dim).double()
    assert torch.equal(fractional_power(turn, 1), turn)
    assert torch.equal(fractional_power(turn, 0), eye)
    # Near the end it is near Q: the end was not put there.
    assert (fractional_power(turn, 1 - 1e-9) - turn).abs().max() < 1e-7
    half = fractional_power(turn, 0.5)
    _close(half @ half, turn)
    _close(half @ half.T, eye)
    _close(fractional_power(turn, 0.3) @ fractional_power(turn, 0.45), fractional_power(turn, 0.75))
    _close(fractional_power(turn, 3.0), turn @ turn @ turn)
    assert torch.linalg.det(half) == pytest.approx(1)


def test_the_way_is_the_shortest_one() -> None:
    turn = _proper(9, 1)
    angles = torch.linalg.eigvals(turn).angle()
    small = fractional_power(turn, 1e-5)
    torch.testing.assert_close(
        torch.linalg.eigvals(small).angle().sort().values,
        (1e-5 * angles).sort().values,
        rtol=1e-5,
        atol=1e-12,
    )


def test_directions_that_are_reversed_are_turned_in_pairs() -> None:
    for signs in ([-1, -1, 1], [-1, -1, -1, -1, 1], [-1, -1]):
        basis = haar(len(signs), seeded(2))
        turn = basis * torch.tensor(signs).double() @ basis.T
        half = fractional_power(turn, 0.5)
        _close(half @ half, turn)
        _close(half @ half.T, torch.eye(len(signs)).double())
    axes = torch.diag(torch.tensor([-1.0, -1.0, 1.0])).double()
    _close(fractional_power(axes, 0.5)[2], torch.tensor([0.0, 0.0, 1.0]).double())


@pytest.mark.parametrize("dim", [4, 5])
def test_a_way_to_either_orientation(dim: int) -> None:
    seen = set()
    for seed in range(8):
        turn = haar(dim, seeded(seed))
        sign = round(float(torch.linalg.det(turn)))
        seen.add(sign)
        way = path_to(turn, [0.0, 0.25, 0.999999999, 1.0])
        expected = torch.eye(dim).double()
        expected[0, 0] = sign
        assert torch.equal(way[0], expected)
        assert torch.equal(way[3], turn)
        assert (way[2] - turn).abs().max() < 1e-7
        for frame in way:
            _close(frame @ frame.T, torch.eye(dim).double())
            assert torch.linalg.det(frame) == pytest.approx(sign)
    assert seen == {-1, 1}


def test_a_score_falls_from_the_axes_to_chance() -> None:
    x = torch.randn(3000, 9, generator=seeded(3), dtype=torch.float64) ** 3
    path = rotation_path(x, KURTOSIS, turns=12, generator=seeded(4))
    at_axes = KURTOSIS.per_direction(_rows(x)).mean()
    torch.testing.assert_close(path.values[:, 0], at_axes.expand(12))
    # It falls half of the way, and stays at chance for the rest.
    assert bool((path.mean[:4].diff() < -1).all())
    assert bool((path.mean[3:] < 0.5 * at_axes).all())
    generator = seeded(4)
    ends = [KURTOSIS.per_direction(_rows(x @ haar(9, generator))).mean() for _ in range(12)]
    torch.testing.assert_close(path.values[:, -1], torch.stack(ends))
    low, high = path.band(0.5)
    inside = ((path.values >= low) & (path.values <= high)).double().mean(0)
    assert bool((inside >= 0.5).all())
    again = rotation_path(x, KURTOSIS, turns=12, generator=seeded(4))
    assert torch.equal(again.values, path.values)
    assert path.score == "kurtosis"


def _rows(x: Tensor):
    from basis_probe.statistics.scores import Rows

    return Rows(x)


def test_powers_may_be_chosen() -> None:
    x = torch.randn(500, 4, generator=seeded(5))
    path = rotation_path(x, NEGENTROPY, powers=(0, 0.5, 1), turns=2, generator=seeded())
    assert path.powers.tolist() == [0.0, 0.5, 1.0]
    assert path.values.shape == (2, 3)


@pytest.mark.usefixtures("as_shipped")
def test_errors_say_what_was_given_and_what_to_do() -> None:
    x = torch.ones(10, 3)
    for options in ({"turns": 0}, {"powers": ()}, {"powers": (0.0, 1.5)}):
        with pytest.raises(ValueError, match="at least one turn, and powers in"):
            rotation_path(x, KURTOSIS, generator=seeded(), **options)
    with pytest.raises(ValueError, match="reverses orientation"):
        fractional_power(torch.tensor([[0.0, 1.0], [1.0, 0.0]]).double(), 0.5)
    for wrong in (torch.ones(2, 2).double(), torch.ones(2, 3).double()):
        with pytest.raises(ValueError, match="not orthogonal"):
            path_to(wrong, [0.5])
    path = RotationPath("x", torch.zeros(1).double(), torch.zeros(1, 1).double())
    with pytest.raises(ValueError, match=r"coverage=1\.5"):
        path.band(1.5)
    assert math.isclose(float(path.band(1.0)[0, 0]), 0.0)
