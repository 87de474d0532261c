"""Each order of privilege is found by its own statistic and by no other."""

import math

import pytest
import torch
from draws import seeded
from torch import Tensor

from basis_probe.algebra.haar import haar, haar_fixing
from basis_probe.statistics.nulls import Geometry
from basis_probe.statistics.orders import (
    Order,
    OrderResult,
    first_order,
    higher_order,
    second_order,
)
from basis_probe.statistics.scores import KURTOSIS, SAMPLE_KURTOSIS

SAMPLES, DIM = 4000, 16


def _gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def _all(x: Tensor, seed: int = 0, *, line: bool = False) -> dict[Order, OrderResult]:
    generator, halves = seeded(seed), torch.arange(len(x)) % 2
    first = first_order(
        x.mean(0), variance=x.var(0), samples=len(x), line=line, generator=generator
    )
    found = [
        first,
        second_order(x.T.cov(), line=line, generator=generator),
        higher_order(x, halves=halves, frames=99, generator=generator),
    ]
    return {result.order: result for result in found}


def _laplace(samples: int, dim: int, seed: int = 0) -> Tensor:
    return _gaussian(samples, dim, seed=seed) * _gaussian(samples, dim, seed=seed + 50).abs()


OFFSET = torch.zeros(DIM, dtype=torch.float64)
OFFSET[3] = 5.0
TURN = haar(DIM, seeded(77))
UNEQUAL = torch.logspace(-1, 1, DIM, dtype=torch.float64)

# Data whose axes stand out in these orders, and in no others.
DATA: dict[str, tuple[Tensor, set[Order]]] = {
    "nothing": (_gaussian(SAMPLES, DIM), set()),
    "one constant": (_gaussian(SAMPLES, DIM) + OFFSET, {Order.FIRST}),
    "a constant along no axis": (_gaussian(SAMPLES, DIM) + OFFSET @ TURN, set()),
    "unequal variances": (_gaussian(SAMPLES, DIM) * UNEQUAL, {Order.SECOND}),
    "unequal variances along no axis": (_gaussian(SAMPLES, DIM) * UNEQUAL @ TURN, set()),
    "sparse features": (_laplace(SAMPLES, DIM), {Order.HIGHER}),
    "sparse features along no axis": (_laplace(SAMPLES, DIM) @ TURN, set()),
    "flat features": (_gaussian(SAMPLES, DIM).sin(), {Order.HIGHER}),
    "samples of unequal length": (_gaussian(SAMPLES, DIM) * _gaussian(SAMPLES, 1, seed=4), set()),
    "offsets and sparse features": (_laplace(SAMPLES, DIM) + OFFSET, {Order.FIRST, Order.HIGHER}),
    "all of them": (_laplace(SAMPLES, DIM) * UNEQUAL + 4 * OFFSET, set(Order)),
}


@pytest.mark.parametrize("name", DATA)
def test_an_order_is_found_where_it_is_and_nowhere_else(name: str) -> None:
    x, expected = DATA[name]
    found = _all(x, seed=1)
    # At a threshold that a null passes once in a thousand.
    assert {order for order, result in found.items() if result.p.value < 1e-3} == expected
    for result in found.values():
        assert result.stands_out == (result.p.value <= 0.05)
        assert result.sentence.endswith(".")


def test_noise_of_unequal_variance_is_no_offset() -> None:
    x = _gaussian(SAMPLES, DIM) * torch.logspace(-2, 2, DIM, dtype=torch.float64)
    mean = x.mean(0)
    found = first_order(mean, variance=x.var(0), samples=SAMPLES, generator=seeded())
    assert "no offset beyond sampling noise" in found.sentence
    assert math.isnan(found.effect)
    assert found.p.value == 1
    # Unasked, the noise lies along axes because the variances do.
    assert first_order(mean, generator=seeded()).effect > 4


@pytest.mark.parametrize("line", [False, True])
def test_the_first_order_has_the_moments_and_the_law_of_turned_means(line: bool) -> None:
    dim = 6
    mean = _gaussian(dim, seed=3) + torch.eye(dim)[2]
    ones = torch.ones(1, dim).double()
    values = []
    for seed in range(1500):
        turn = haar_fixing(ones, seeded(seed)) if line else haar(dim, seeded(seed))
        turned = turn @ mean
        turned = turned - turned.mean() if line else turned
        values.append(dim * turned.pow(4).sum() / turned.square().sum() ** 2)
    null = torch.stack(values)
    found = first_order(mean, line=line, generator=seeded(9))
    assert abs(found.null_mean - null.mean()) < 4 * null.std() / math.sqrt(1500)
    assert found.null_std == pytest.approx(float(null.std()), rel=0.1)
    reached = float((null >= found.observed).double().mean())
    assert found.p.value == pytest.approx(reached, abs=0.05)


@pytest.mark.parametrize("line", [False, True])
def test_the_second_order_has_its_exact_mean(line: bool) -> None:
    mixing = _gaussian(7, 7, seed=5)
    found = second_order(mixing @ mixing.T, line=line, frames=1500, generator=seeded(6))
    values = []
    ones = torch.ones(1, 7).double()
    for seed in range(1500):
        turn = haar_fixing(ones, seeded(seed)) if line else haar(7, seeded(seed))
        centre = torch.eye(7).double() - (1 / 7 if line else 0)
        turned = centre @ turn @ mixing @ mixing.T @ turn.T @ centre
        values.append(7 * turned.diagonal().square().sum() / turned.trace() ** 2)
    null = torch.stack(values)
    assert abs(found.null_mean - null.mean()) < 4 * null.std() / math.sqrt(1500)
    assert found.null_std == pytest.approx(float(null.std()), rel=0.1)


def test_energy_off_the_diagonal_is_the_same_test() -> None:
    mixing = _gaussian(6, 6, seed=7)
    covariance = mixing @ mixing.T
    off = covariance - covariance.diagonal().diag()
    share = off.square().sum() / covariance.square().sum()
    kappa = second_order(covariance, generator=seeded()).observed
    trace = covariance.trace()
    expected = 1 - kappa * trace**2 / (6 * covariance.square().sum())
    assert float(share) == pytest.approx(float(expected))


def test_leading_axes_are_named() -> None:
    x = _gaussian(SAMPLES, DIM) + OFFSET
    found = _all(x)[Order.FIRST]
    assert found.leading[0] == 3
    assert found.leading_share > 0.9
    assert "axes 3, " in found.sentence


def test_what_lies_along_the_line_is_no_offset_behind_a_layer_norm() -> None:
    mean = 10 + 0.1 * _gaussian(DIM, seed=8)
    lifted = first_order(mean + 100, line=True, generator=seeded())
    assert lifted.observed == pytest.approx(
        first_order(mean, line=True, generator=seeded()).observed
    )


def test_a_dead_axis_and_too_few_samples() -> None:
    x = _laplace(SAMPLES, DIM)
    x[:, 2] = 0.0
    halves = torch.arange(SAMPLES) % 2
    found = higher_order(x, halves=halves, frames=49, generator=seeded())
    assert found.effect > 5
    assert 2 not in found.leading
    few = higher_order(x[:100], halves=halves[:100], generator=seeded())
    assert "do not allow to take the covariance out" in few.sentence
    rough = higher_order(
        x[:100], halves=halves[:100], geometry=Geometry.STANDARDISED, generator=seeded()
    )
    assert not math.isnan(rough.observed)
    by_kurtosis = higher_order(x, halves=halves, score=KURTOSIS, frames=49, generator=seeded())
    assert by_kurtosis.observed > 4


@pytest.mark.usefixtures("as_shipped")
def test_errors_say_what_was_given_and_what_to_do() -> None:
    x, halves = _gaussian(100, 4), torch.arange(100) % 2
    with pytest.raises(ValueError, match=r"mean has shape \[3\]: give at least 4"):
        first_order(torch.ones(3), generator=seeded())
    with pytest.raises(ValueError, match=r"shape \[3, 4\]: give finite numbers \[dim, dim\]"):
        second_order(torch.ones(3, 4), generator=seeded())
    with pytest.raises(ValueError, match=r"trace of 0\.0: nothing varies"):
        second_order(torch.zeros(4, 4), generator=seeded())
    with pytest.raises(ValueError, match="EUCLIDEAN keeps variances in"):
        higher_order(x, halves=halves, geometry=Geometry.EUCLIDEAN, generator=seeded())
    with pytest.raises(ValueError, match="give a score of axes"):
        higher_order(x, halves=halves, score=SAMPLE_KURTOSIS, generator=seeded())
    assert first_order(torch.zeros(5), generator=seeded()).sentence.endswith("is zero.")
