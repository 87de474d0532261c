"""Rows that come again are counted once; rows that point the same way count for little."""

import math

import pytest
import torch
from draws import seeded

import basis_probe as bp
from basis_probe.statistics import effective
from basis_probe.statistics.effective import distinct_rows, effective_samples


def _gaussian(samples: int, dim: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(samples, dim, generator=seeded(seed), dtype=torch.float64)


def _repeated(different: int, samples: int, dim: int, seed: int = 0) -> torch.Tensor:
    """Each of some rows several times, in random order."""
    again = torch.arange(samples) % different
    order = torch.randperm(samples, generator=seeded(seed + 1))
    return _gaussian(different, dim, seed)[again[order]]


@pytest.mark.parametrize(("different", "samples", "dim"), [(1, 50, 3), (59, 3000, 24), (40, 40, 1)])
def test_distinct_rows_are_counted_once(different: int, samples: int, dim: int) -> None:
    x = _repeated(different, samples, dim)
    assert distinct_rows(x) == different
    # The last digits of a row depend on the batch that it was in.
    noise = 1 + 1e-7 * _gaussian(samples, dim, 5)
    assert distinct_rows((x * noise).float()) == different


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [2.0**-110, 2.0**-70, 1.0, 2.0**70, 2.0**110])
def test_the_scale_of_rows_does_not_count(scale: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(60, 8, generator=generator).to(dtype)
    again = rows[torch.randint(60, (400,), generator=generator)]
    assert distinct_rows(again * scale) == distinct_rows(again) == len(again.unique(dim=0))


def test_rows_that_differ_little_are_different() -> None:
    offset = 100 + _gaussian(2000, 16)
    assert distinct_rows(offset) == 2000
    one = torch.zeros(64, 64)
    one[:, 0] = 10.0
    assert distinct_rows(one + torch.eye(64)) == 64
    # Far from zero, too, as far as their digits say so.
    assert distinct_rows(1e6 + _gaussian(2000, 16)) == 2000
    assert distinct_rows(_repeated(59, 3000, 24) - 1e6) == 59
    far = (1e3 + _repeated(59, 3000, 24)) * (1 + 1e-7 * _gaussian(3000, 24, 5))
    assert distinct_rows(far.float()) == 59
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 5)
    assert distinct_rows(corners.repeat(30, 1)) == 32


def test_rows_that_are_not_finite_count_by_themselves() -> None:
    x = torch.ones(6, 2)
    x[0, 0], x[1, 1] = math.nan, math.inf
    assert distinct_rows(x) == 3
    assert distinct_rows(torch.full((2, 2), math.nan)) == 2
    assert distinct_rows(torch.zeros(0, 2)) == 0


def test_effective_samples_is_one_over_the_mean_fourth_power_of_cosines() -> None:
    x = _gaussian(40, 7)
    unit = x / x.norm(dim=1, keepdim=True)
    assert effective_samples(x) == pytest.approx(1 / float((unit @ unit.T).pow(4).mean()))
    assert effective_samples(torch.cat([x, torch.zeros(5, 7).double()])) == effective_samples(x)
    some = effective_samples(_gaussian(4000, 6), pairs=1000, generator=seeded(1))
    assert some == pytest.approx(6 * 8 / 3, rel=0.1)
    with pytest.raises(ValueError, match="other than zero"):
        effective_samples(torch.zeros(4, 3))
    with pytest.raises(ValueError, match="give a generator"):
        effective_samples(x, pairs=5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_in_whatever_pieces_rows_are_counted_they_count_the_same(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = (3 + _repeated(37, 300, 6)).to(dtype)
    x[5] = 0.0
    found: list[tuple[int, float]] = []
    for cached in (1, 13, 600, 10**6):
        monkeypatch.setattr(effective, "_CACHED", cached)
        unrelated = effective_samples(x, pairs=100, generator=seeded(1))
        found.append((distinct_rows(x), unrelated))
    counts, unrelated = zip(*found, strict=True)
    assert set(counts) == {len(x.unique(dim=0))}
    assert unrelated == pytest.approx((unrelated[-1],) * 4, rel=1e-6)


@pytest.mark.slow
def test_a_covariance_is_not_fitted_to_rows_that_repeat() -> None:
    x = _repeated(59, 4000, 24)
    site = bp.probe_activations(x, group="general-linear")
    assert site.null is not None and site.null.distinct == 59
    assert site.verdict.outcome is bp.Outcome.UNDECIDED
    assert "59 of 4000 samples differ" in site.verdict.sentence
    assert any("Only 59 of the 4000" in note for note in site.notes)
    enough = bp.probe_activations(_gaussian(4000, 24), group="general-linear")
    assert enough.verdict.outcome is bp.Outcome.ARBITRARY


@pytest.mark.slow
def test_turns_ask_for_no_number_of_different_rows_but_the_bound_does() -> None:
    """Offset and scale are compared exactly with turns, whatever the rows are."""
    x = _repeated(59, 4000, 24)
    x[:, 3] *= 6
    site = bp.probe_activations(x, group="orthogonal")
    assert site.verdict.outcome is bp.Outcome.EMERGENT and "scale" in site.verdict.orders
    plain = bp.probe_activations(_repeated(59, 4000, 24, seed=3), group="orthogonal")
    assert plain.verdict.outcome is bp.Outcome.ARBITRARY and plain.verdict.bound is None


@pytest.mark.slow
def test_reports_hold_both_numbers_and_old_ones_load_without() -> None:
    site = bp.probe_activations(_gaussian(900, 8) + 3, group="orthogonal")
    assert site.null is not None
    assert site.null.distinct == 900 and 1 < site.null.effective < 10
    report = bp.probe_activations({"a": _gaussian(900, 8)}, group="orthogonal")
    assert bp.Report.from_json(report.to_json()) == report
    frame = report.to_dataframe()
    assert frame["null_distinct"].tolist()[0] == 900


@pytest.mark.parametrize("size", [1e2, 1e6, 1e8, 1e12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_far_row_leaves_the_others_distinct(dtype: torch.dtype, size: float) -> None:
    x = torch.randn(500, 40, generator=seeded(0), dtype=torch.float64)
    x[7] *= size
    assert distinct_rows(x.to(dtype)) == 500
    again = torch.cat([x, x[:100]])
    assert distinct_rows(again.to(dtype)) == 500
