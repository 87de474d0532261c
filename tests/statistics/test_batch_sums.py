"""Sums over a batch are those of two passes, whatever the values and wherever they lie."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import basis_probe as bp
from basis_probe.statistics.batch_sums import BatchSums, without_waiting
from basis_probe.statistics.moments import Moments, SampleKurtosis

ROWS, DIM = 2000, 48


def _normal(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(ROWS, DIM, dtype=torch.float64, generator=generator)


def _ramp() -> Tensor:
    return torch.linspace(-20, 20, ROWS, dtype=torch.float64)[:, None]


MATRICES = {
    "gaussian": _normal,
    "offsets of many sizes": lambda: _normal() + torch.logspace(-2, 6, DIM, dtype=torch.float64),
    "drifting": lambda: _normal() + _ramp(),
    "heavy-tailed": lambda: _normal() ** 5 / 7,
    "one-sided": lambda: _normal().clamp_min(0),
    "rogue": lambda: _normal() * torch.logspace(-4, 4, DIM, dtype=torch.float64),
    "tiny": lambda: _normal() * 1e-60,
    "denormal": lambda: _normal() * 1e-120,
    "huge": lambda: _normal() * 1e90,
    "constant and zero": lambda: torch.cat([_normal()[:, :40], torch.ones(ROWS, 8) * 7], 1).mul_(
        (torch.arange(DIM) != 3).double()
    ),
    "rows of zeros": lambda: _normal() * (torch.arange(ROWS) % 3 > 0)[:, None],
    "one row": lambda: _normal()[:1],
    "no row": lambda: _normal()[:0],
}  # fmt: skip


def _across(x: Tensor, *, centred: bool) -> tuple[float, Tensor]:
    """The mean kurtosis across axes and the shares, from their formulas."""
    rows = x - x.mean(1, keepdim=True) if centred else x
    rows = rows[rows.abs().amax(1) > 0]
    fraction = (rows / rows.abs().amax(1, keepdim=True)).square()
    fraction = (fraction / fraction.sum(1, keepdim=True)).square()
    return float(DIM * fraction.sum(1).mean()), DIM**2 * fraction.mean(0)


@pytest.mark.parametrize("make", [BatchSums.of, without_waiting])
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("name", MATRICES)
def test_sums_are_those_of_two_passes(name: str, centred: bool, make: object) -> None:
    x = MATRICES[name]()
    found = make(x, across=True, centred=centred)  # pyright: ignore
    moments = found.moments
    assert (moments.count, int(found.bad)) == (len(x), 0)
    if not len(x):
        assert found.kurtosis().count == 0
        return
    mean = x.mean(0)
    # The mean is itself rounded, which a second pass takes out.
    d = x - mean
    d = d - d.mean(0)
    torch.testing.assert_close(moments.mean, mean, rtol=1e-10, atol=1e-12 * float(x.abs().max()))
    # What a constant axis varies by is rounding, in the formula too.
    varies = d.abs().amax(0) > 1e-12 * mean.abs()
    for power, sums in ((2, moments.m2), (3, moments.m3), (4, moments.m4)):
        scale = d.abs().pow(power).sum(0)
        error = ((sums - d.pow(power).sum(0)).abs() / scale)[
            varies & (scale > 0) & scale.isfinite()
        ]
        assert float(error.max() if len(error) else 0.0) < 1e-10
    torch.testing.assert_close(moments.minimum, x.amin(0), rtol=0, atol=0)
    torch.testing.assert_close(moments.maximum, x.amax(0), rtol=0, atol=0)
    kurtosis = found.kurtosis()
    assert kurtosis is not None
    expected, share = _across(x, centred=centred)
    assert float(kurtosis.mean) == pytest.approx(expected, rel=1e-10)
    torch.testing.assert_close(kurtosis.share, share, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_powers_are_taken_in_float64_of_every_type(dtype: torch.dtype) -> None:
    x = (MATRICES["one-sided"]() * 3 + 0.5).to(dtype)
    found, truth = BatchSums.of(x), Moments.of(x.double())
    torch.testing.assert_close(found.moments.m4, truth.m4, rtol=1e-12, atol=0)
    mean = SampleKurtosis.of(x.double()).mean
    torch.testing.assert_close(found.kurtosis().mean, mean, rtol=1e-12, atol=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_bad_values_are_counted_and_spoil_their_axis_only(bad: float) -> None:
    x = _normal()
    x[3, 5] = x[7, 5] = bad
    found = BatchSums.of(x)
    assert int(found.bad) == 2
    others = [axis for axis in range(DIM) if axis != 5]
    assert bool(found.moments.m2[5].isnan())
    torch.testing.assert_close(
        found.moments.m4[others], Moments.of(x[:, others]).m4, rtol=1e-12, atol=0
    )


def test_axes_are_not_compared_where_nobody_asked() -> None:
    assert BatchSums.of(_normal(), across=False).kurtosis() is None


def test_a_probe_gives_the_same_numbers_on_every_device(device: torch.device) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 12), torch.nn.ReLU(), torch.nn.Linear(12, 4))
    data = [torch.randn(200, 6) for _ in range(3)]
    parts = [
        bp.observe(model, data, sites=["0", "1"], device=where, progress=False)
        for where in (None, device)
    ]
    for name, seen in parts[0].seen.items():
        other = parts[1].seen[name]
        assert torch.equal(seen.kept.priorities, other.kept.priorities)
        torch.testing.assert_close(seen.moments.m4, other.moments.m4, rtol=1e-4, atol=0)
        for key, rows in seen.kept.rows.items():
            torch.testing.assert_close(rows, other.kept.rows[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sums_of_axes_far_from_zero_are_those_of_float64(dtype: torch.dtype, across: bool) -> None:
    """Whatever row they are taken about: a far one, one like the others, or none."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(700, 30, generator=generator).abs() * torch.logspace(-3, 1, 30)
    x = x + torch.logspace(2, -2, 30)
    x[:, 3], x[:, 4] = 7.25, 0.0
    for far in (0.0, 300.0):
        x[350] += far
        given = x.to(dtype)
        found, exact = BatchSums.of(given, across=across).moments, given.double()
        off = exact - exact.mean(0)
        torch.testing.assert_close(found.mean, exact.mean(0), rtol=1e-12, atol=0)
        for power, made in ((2, found.m2), (3, found.m3), (4, found.m4)):
            size = off.abs().pow(power).sum(0)
            assert bool(((made - off.pow(power).sum(0)).abs() <= 1e-9 * size + 1e-24).all()), power
        assert far or float(found.m2[3]) == float(found.m2[4]) == 0.0
