"""Rotations that are uniform: orthogonal, unbiased where raw QR is not, fixed where told."""

import math

import pytest
import torch
from draws import seeded
from torch import Tensor

from basis_probe.algebra.haar import Turned, haar, haar_directions, haar_fixing


def z_of_mean(values: Tensor, expected: float) -> float:
    """By how many standard errors the mean of independent values is off."""
    return float((values.mean() - expected) / (values.std() / math.sqrt(len(values)) + 1e-12))


def first_moments(turns: Tensor) -> list[float]:
    """z of E Q_00 = 0, of E Q_nn = 0 and of E tr Q = 0, for turns [frame, dim, dim]."""
    trace = turns.diagonal(dim1=1, dim2=2).sum(1)
    return [z_of_mean(turns[:, 0, 0], 0), z_of_mean(turns[:, -1, -1], 0), z_of_mean(trace, 0)]


@pytest.mark.parametrize("dim", [1, 2, 3, 64])
def test_haar_is_orthogonal(dim: int) -> None:
    turn = haar(dim, seeded())
    assert turn.dtype == torch.float64 and turn.device.type == "cpu"
    assert float((turn.T @ turn - torch.eye(dim)).abs().max()) < 1e-12


def test_first_moments_vanish_and_the_check_rejects_raw_qr() -> None:
    generator = seeded(1)
    uniform = torch.stack([haar(4, generator) for _ in range(2000)])
    raw = torch.linalg.qr(torch.randn(2000, 4, 4, generator=generator, dtype=torch.float64))[0]
    assert max(map(abs, first_moments(uniform))) < 4.5
    assert max(map(abs, first_moments(raw))) > 20


@pytest.mark.parametrize("dim", [2, 5])
def test_second_and_fourth_moments_are_those_of_the_sphere(dim: int) -> None:
    generator = seeded(2)
    entries = torch.stack([haar(dim, generator)[:, -1] for _ in range(2000)])
    assert abs(z_of_mean(entries[:, 0] ** 2, 1 / dim)) < 4.5
    assert abs(z_of_mean(entries[:, 0] ** 4, 3 / (dim * (dim + 2)))) < 4.5
    mixed = entries[:, 0] ** 2 * entries[:, 1] ** 2
    assert abs(z_of_mean(mixed, 1 / (dim * (dim + 2)))) < 4.5


def test_reflections_are_as_likely_as_rotations() -> None:
    generator = seeded(3)
    signs = torch.stack([torch.linalg.det(haar(3, generator)) for _ in range(1000)])
    assert abs(z_of_mean(signs, 0.0)) < 4.5


@pytest.mark.parametrize(("dim", "count"), [(1, 1), (50, 3), (6, 6)])
def test_directions_are_orthonormal(dim: int, count: int) -> None:
    columns = haar_directions(dim, count, seeded())
    assert columns.shape == (dim, count)
    assert float((columns.T @ columns - torch.eye(count)).abs().max()) < 1e-12


def test_directions_are_unbiased() -> None:
    generator = seeded(4)
    drawn = torch.stack([haar_directions(5, 2, generator) for _ in range(2000)])
    assert abs(z_of_mean(drawn[:, 0, 0], 0)) < 4.5
    assert abs(z_of_mean(drawn[:, 1, 1], 0)) < 4.5
    assert abs(z_of_mean(drawn[:, 4, 1] ** 4, 3 / 35)) < 4.5


def test_one_seed_is_one_rotation() -> None:
    vectors = torch.ones(1, 6)
    assert torch.equal(haar(6, seeded(5)), haar(6, seeded(5)))
    assert torch.equal(haar_fixing(vectors, seeded(5)), haar_fixing(vectors, seeded(5)))
    assert not torch.equal(haar(6, seeded(5)), haar(6, seeded(6)))


def test_the_global_generator_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    haar(6, seeded())
    haar_fixing(torch.ones(1, 6), seeded())
    assert torch.equal(torch.random.get_rng_state(), before)


FIXED = {
    "ones": torch.ones(1, 7),
    "several": torch.randn(3, 7, generator=seeded(7)),
    "an axis": torch.eye(7)[2:3],
    "dependent": torch.stack([torch.arange(7.0), 2 * torch.arange(7.0), torch.ones(7)]),
    "of very different lengths": torch.stack([1e-30 * torch.arange(7.0), 1e9 * torch.ones(7)]),
    "with a zero": torch.stack([torch.zeros(7), torch.ones(7)]),
    "all but one": torch.randn(6, 7, generator=seeded(8)),
}


@pytest.mark.parametrize("name", FIXED)
def test_fixing_fixes_what_it_was_given(name: str) -> None:
    vectors = FIXED[name].double()
    turn = haar_fixing(vectors, seeded())
    assert float((turn.T @ turn - torch.eye(7)).abs().max()) < 1e-12
    moved = vectors @ turn.T - vectors
    assert bool((moved.norm(dim=1) <= 1e-12 * vectors.norm(dim=1)).all())


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("name", FIXED)
def test_fixing_is_uniform_across_the_fixed_vectors(name: str) -> None:
    vectors = FIXED[name].double()
    units = vectors / vectors.norm(dim=1, keepdim=True).clamp_min(1e-300)
    rank = int(torch.linalg.matrix_rank(units))
    generator = seeded(9)
    turns = torch.stack([haar_fixing(vectors, generator) for _ in range(1000)])
    traces = turns.diagonal(dim1=1, dim2=2).sum(1)
    # The trace of a uniform element of O(m) has mean 0 and variance 1.
    assert abs(z_of_mean(traces, rank)) < 4.5
    assert abs(z_of_mean((traces - rank) ** 2, 1.0)) < 4.5
    # A direction across the fixed ones goes to every direction across them alike.
    basis = torch.linalg.svd(units, full_matrices=True)[2][rank:]
    across = basis @ turns @ basis[0]
    size = 7 - rank
    assert abs(z_of_mean(across[:, 0], 0)) < 4.5
    assert size == 1 or abs(z_of_mean(across[:, -1] ** 4, 3 / (size * (size + 2)))) < 4.5


def test_nothing_to_fix_is_a_plain_rotation() -> None:
    assert torch.equal(haar_fixing(torch.zeros(2, 5), seeded()), haar(5, seeded()))
    assert torch.equal(haar_fixing(torch.zeros(0, 5), seeded()), haar(5, seeded()))


@pytest.mark.parametrize("rows", [5, 8])
def test_everything_fixed_is_the_identity(rows: int) -> None:
    vectors = torch.randn(rows, 5, generator=seeded(10))
    assert float((haar_fixing(vectors, seeded()) - torch.eye(5)).abs().max()) < 1e-12


@pytest.mark.parametrize("dim", [0, -3])
def test_no_dimensions(dim: int) -> None:
    with pytest.raises(ValueError, match="give dim >= 1"):
        haar(dim, seeded())


@pytest.mark.parametrize("count", [0, 6])
def test_more_directions_than_there_are(count: int) -> None:
    with pytest.raises(ValueError, match="between 1 and 5"):
        haar_directions(5, count, seeded())


@pytest.mark.parametrize("vectors", [torch.ones(5, 0), torch.ones(2, 5, dtype=torch.float64) / 0])
def test_vectors_that_fix_nothing_sensible(vectors: Tensor) -> None:
    with pytest.raises(ValueError, match=r"one per row|not all finite"):
        haar_fixing(vectors, seeded())


def test_a_generator_elsewhere() -> None:
    class Elsewhere(torch.Generator):
        device = torch.device("cuda")  # pyright: ignore

    with pytest.raises(ValueError, match="Generator on the CPU"):
        haar(3, Elsewhere())


@pytest.mark.parametrize("count", [1, 3, 6, 9])
@pytest.mark.parametrize("held", [0, 1, 2])
def test_turned_vectors_keep_what_is_fixed_and_their_angles(count: int, held: int) -> None:
    generator = torch.Generator().manual_seed(3)
    vectors = torch.randn(count, 6, generator=generator, dtype=torch.float64)
    fixed = torch.randn(held, 6, generator=generator, dtype=torch.float64) if held else None
    turned = Turned(vectors, fixed).draw(generator)
    torch.testing.assert_close(turned @ turned.T, vectors @ vectors.T)
    if fixed is not None:
        torch.testing.assert_close(turned @ fixed.T, vectors @ fixed.T)
    assert not torch.allclose(turned, vectors)


@pytest.mark.slow
def test_turned_vectors_have_the_law_of_whole_turns() -> None:
    generator = torch.Generator().manual_seed(4)
    vectors = torch.randn(2, 5, generator=generator, dtype=torch.float64)
    fixed = torch.ones(1, 5, dtype=torch.float64)
    turning = Turned(vectors, fixed)
    draws = 4000
    thin = torch.stack([turning.draw(generator) for _ in range(draws)]).flatten(1)
    whole = torch.stack([vectors @ haar_fixing(fixed, generator) for _ in range(draws)]).flatten(1)
    for power in (1, 2, 4):
        one, other = thin**power, whole**power
        error = ((one.var(0) + other.var(0)) / draws).sqrt()
        assert bool(((one.mean(0) - other.mean(0)).abs() < 4.5 * error).all()), power
    between = (thin[:, :1] * thin, whole[:, :1] * whole)
    error = sum(part.var(0) / draws for part in between) ** 0.5
    assert bool(((between[0].mean(0) - between[1].mean(0)).abs() < 4.5 * error).all())


def test_vectors_in_what_is_fixed_do_not_turn() -> None:
    fixed = torch.eye(2, dtype=torch.float64)
    vectors = torch.tensor([[1.0, 2.0], [3.0, -1.0]], dtype=torch.float64)
    torch.testing.assert_close(Turned(vectors, fixed).draw(torch.Generator()), vectors)
    with pytest.raises(ValueError, match="not all finite"):
        Turned(vectors / 0, None)


@pytest.mark.parametrize("count", [2, 5, 12])
@pytest.mark.parametrize("held", [0, 1, 2])
@pytest.mark.parametrize("dim", [8, 60])
def test_draws_in_single_precision_are_those_in_double(dim: int, count: int, held: int) -> None:
    vectors, fixed = (
        torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)).double()
        for seed, rows in ((3, count), (4, held))
    )
    turning = Turned(vectors, fixed if held else None)
    one, other = (torch.Generator().manual_seed(0) for _ in range(2))
    exact = turning.draw(one)
    found = turning.draw(other, dtype=torch.float32)
    assert (exact.dtype, found.dtype) == (torch.float64, torch.float32)
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=1e-5)
    assert torch.equal(one.get_state(), other.get_state())


@pytest.mark.parametrize("move", [1e-13, 1e-8])
@pytest.mark.parametrize("fixed", [1, 2, 3])
@pytest.mark.parametrize("turned", [1, 4, 40])
def test_turns_move_as_little_as_what_they_leave_fixed(
    turned: int, fixed: int, move: float
) -> None:
    """Also of orthogonal vectors of one length, between which no direction is the largest."""
    dim = 40
    some = torch.linalg.qr(torch.randn(dim, fixed, generator=seeded(0), dtype=torch.float64)).Q.T
    moved = some + move * torch.randn(fixed, dim, generator=seeded(1), dtype=torch.float64)
    vectors = torch.randn(turned, dim, generator=seeded(2), dtype=torch.float64)
    here, there = (Turned(vectors, kept).draw(seeded(3)) for kept in (some, moved))
    assert float((here - there).abs().max()) < 1e3 * move
