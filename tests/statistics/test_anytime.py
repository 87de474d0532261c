"""E-values that may be stopped at: their mean, their weights, what they do under dependence."""

from __future__ import annotations

import math

import pytest
import torch
from draws import seeded

from basis_probe.statistics.anytime import e_of, mean_e, weight


def test_an_e_value_is_the_mean_over_exponents() -> None:
    powers = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    for p in (1.0, 1 - 1e-9, 0.9999, 0.7, 0.05, 1e-3, 1e-8):
        want = float((powers * p ** (powers - 1)).mean())
        assert e_of(p) == pytest.approx(want, rel=1e-3), p
    assert e_of(1e-300) > 1e290 and math.isnan(e_of(math.nan))
    for p in (0.0, -1.0, 1.5):
        with pytest.raises(ValueError, match=r"\(0, 1\]"):
            e_of(p)


@pytest.mark.slow
def test_under_the_null_its_mean_is_one_and_less_where_p_is_coarse() -> None:
    # The integral over p is 1; substituting p = exp(-t) makes it smooth.
    t = torch.linspace(1e-6, 4000, 4_000_001, dtype=torch.float64)
    values = (1 - torch.exp(-t) - t * torch.exp(-t)) / t**2
    assert float(torch.trapezoid(values, t)) == pytest.approx(1, abs=1e-3)
    for frames in (19, 99, 999):
        assert sum(e_of((k + 1) / (frames + 1)) for k in range(frames + 1)) / (frames + 1) < 1


def test_weights_have_one_in_all_and_never_rise() -> None:
    weights = [weight(look) for look in range(1, 2**14)]
    assert sum(weights) == pytest.approx(1 - 1 / 15)
    assert weights == sorted(weights, reverse=True)


def test_looks_that_are_all_the_same_cross_no_more_often_than_one() -> None:
    p = torch.rand(20_000, generator=seeded(0), dtype=torch.float64).tolist()
    total = sum(weight(look) for look in range(1, 200))
    crossed = sum(total * e_of(each) >= 20 for each in p)
    assert crossed <= 0.05 * len(p)


def test_tests_that_said_nothing_are_left_out() -> None:
    assert mean_e([0.1, math.nan]) == e_of(0.1)
    assert math.isnan(mean_e([math.nan])) and math.isnan(mean_e([]))
