"""p-values are exact where they claim to be, and hold their level where they approximate."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from basis_probe.statistics.p_values import (
    Tail,
    UpperTail,
    benjamini_hochberg,
    holm,
    monte_carlo_p,
    pooled_direction_p,
    tail_p,
)


def _doubles(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# --- adjusting a family ---------------------------------------------------------------------------


def _holm_by_closure(p: list[float]) -> list[float]:
    """Holm is the closed test: an adjusted p is the largest Bonferroni p of a set that holds it."""
    tests = range(len(p))
    sets = [
        chosen for size in range(1, len(p) + 1) for chosen in itertools.combinations(tests, size)
    ]
    bonferroni = {chosen: min(1.0, len(chosen) * min(p[i] for i in chosen)) for chosen in sets}
    return [max(bonferroni[chosen] for chosen in sets if i in chosen) for i in tests]


def _benjamini_hochberg_by_thresholds(p: list[float]) -> list[float]:
    """A q-value is the smallest level, of those where anything changes, that rejects the test."""

    def rejected(level: float) -> set[int]:
        order = sorted(p)
        passing = [k for k in range(1, len(p) + 1) if order[k - 1] <= level * k / len(p) + 1e-15]
        bar = order[passing[-1] - 1] if passing else -1.0
        return {i for i, value in enumerate(p) if value <= bar}

    levels = sorted({min(1.0, value * len(p) / k) for value in p for k in range(1, len(p) + 1)})
    return [next((level for level in levels if i in rejected(level)), 1.0) for i in range(len(p))]


FAMILIES = st.lists(
    st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.01, 0.05, 0.5, 1.0])), min_size=1, max_size=6
)


@settings(deadline=None, max_examples=100)
@given(FAMILIES)
def test_holm_is_the_closed_bonferroni_test(p: list[float]) -> None:
    torch.testing.assert_close(holm(_doubles(p)), _doubles(_holm_by_closure(p)))


@settings(deadline=None, max_examples=100)
@given(FAMILIES)
def test_benjamini_hochberg_rejects_at_its_level(p: list[float]) -> None:
    expected = _doubles(_benjamini_hochberg_by_thresholds(p))
    torch.testing.assert_close(benjamini_hochberg(_doubles(p)), expected)


@pytest.mark.parametrize("adjust", [holm, benjamini_hochberg])
def test_an_unknown_p_is_no_test_and_order_does_not_matter(adjust) -> None:
    p = _doubles([0.03, math.nan, 0.001, 0.2, math.nan, 0.03])
    known = ~p.isnan()
    adjusted = adjust(p)
    assert torch.equal(adjusted.isnan(), ~known)
    assert torch.equal(adjusted[known], adjust(p[known]))
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(adjust(p[order]), adjusted[order], equal_nan=True)
    assert adjust(torch.zeros(0)).shape == (0,)
    assert adjust(_doubles([math.nan])).isnan().all()


@pytest.mark.parametrize("adjust", [holm, benjamini_hochberg])
@pytest.mark.usefixtures("as_shipped")
def test_what_is_no_p_value_is_refused(adjust) -> None:
    with pytest.raises(ValueError, match=r"from -0\.5 to 2\.0: pass p-values, not statistics"):
        adjust(torch.tensor([-0.5, 2.0]))
    with pytest.raises(ValueError, match=r"shape \[tests\], got \[2, 2\]"):
        adjust(torch.zeros(2, 2))


# --- counting -------------------------------------------------------------------------------------


@pytest.mark.parametrize("tail", Tail)
@pytest.mark.parametrize("distinct", [20, 3])
def test_a_counted_p_is_exact_for_exchangeable_frames(tail: Tail, distinct: int) -> None:
    # Any of K + 1 exchangeable values may be the observed one: over all of them, P(p <= a) <= a for
    # every a; with an equality at each reachable a where there are no ties.
    values = torch.arange(20, dtype=torch.float64) % distinct
    others = [values[torch.arange(20) != place] for place in range(20)]
    found = torch.tensor(
        [
            monte_carlo_p(own, rest, tail=tail)
            for own, rest in zip(values.tolist(), others, strict=True)
        ]
    )
    for level in found.unique():
        assert (found <= level).double().mean() <= level + 1e-6
    if distinct == 20 and tail is Tail.UPPER:
        expected = torch.arange(1, 21, dtype=torch.float64) / 20
        torch.testing.assert_close(found.double().sort().values, expected, rtol=0, atol=1e-6)


def test_a_counted_p_of_known_ranks() -> None:
    null = torch.arange(9.0)
    assert monte_carlo_p(99.0, null, tail=Tail.UPPER) == 0.1
    assert monte_carlo_p(-99.0, null, tail=Tail.UPPER) == 1.0
    assert monte_carlo_p(-99.0, null, tail=Tail.TWO_SIDED) == 0.2
    assert monte_carlo_p(4.0, null, tail=Tail.TWO_SIDED) == 1.0
    assert monte_carlo_p(8.0, null, tail=Tail.UPPER) == 0.2


def test_equal_to_rounding_is_equal() -> None:
    # A statistic that rotations cannot change differs between frames by rounding alone.
    null = 3.0 + 1e-15 * torch.randn(99, dtype=torch.float64)
    assert monte_carlo_p(3.0 + 1e-14, null, tail=Tail.UPPER) == 1.0
    assert tail_p(3.0 + 1e-14, null, tail=Tail.UPPER).value == 1.0
    assert monte_carlo_p(3.1, null, tail=Tail.UPPER) == 0.01


def test_unknown_values_are_left_out() -> None:
    null = torch.tensor([1.0, math.nan, 2.0, math.nan])
    assert monte_carlo_p(3.0, null, tail=Tail.UPPER) == pytest.approx(1 / 3)
    assert math.isnan(monte_carlo_p(math.nan, null, tail=Tail.UPPER))
    assert monte_carlo_p(3.0, null * math.nan, tail=Tail.UPPER) == 1.0
    unknown = tail_p(math.nan, null, tail=Tail.UPPER)
    assert math.isnan(unknown.value)
    assert "NaN" in unknown.method
    assert monte_carlo_p(math.inf, torch.arange(9.0), tail=Tail.UPPER) == 0.1


# --- beyond counting ------------------------------------------------------------------------------

LAWS = {
    "normal": lambda shape, g: torch.randn(shape, generator=g, dtype=torch.float64),
    "chi-squared": lambda shape, g: (
        torch.randn(*shape, 3, generator=g, dtype=torch.float64).square().sum(-1)
    ),
    "lognormal": lambda shape, g: (
        0.5 * torch.randn(shape, generator=g, dtype=torch.float64)
    ).exp(),
}


@pytest.mark.parametrize("law", LAWS)
def test_the_tail_agrees_with_many_more_frames(law: str) -> None:
    # A value that a thousandth of the law exceeds, judged from 199 draws, again and again.
    generator = torch.Generator().manual_seed(0)
    draws = LAWS[law]((2_000_000,), generator)
    far = draws.kthvalue(int(2_000_000 * 0.999)).values.item()
    judged = torch.tensor(
        [tail_p(far, LAWS[law]((199,), generator), tail=Tail.UPPER).value for _ in range(300)]
    )
    # Right to a small factor on a logarithmic scale: too large for the normal law, whose tail is
    # lighter than any that is fitted, and hardly too small for any.
    typical = judged.log().mean().exp().item()
    assert 1e-3 / 1.5 < typical < 5e-3
    assert (judged < 1e-4).double().mean() < 0.05


@pytest.mark.sample(default=3)
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("tail", Tail)
def test_a_true_null_is_rejected_no_more_often_than_the_level(law: str, tail: Tail) -> None:
    generator = torch.Generator().manual_seed(1)
    repeats = 1500
    values = LAWS[law]((repeats, 200), generator)
    p = torch.tensor([tail_p(row[0].item(), row[1:], tail=tail).value for row in values])
    for level in (0.05, 0.01):
        # Three standard errors above the level; the documented excess at 1e-2 is 4 %.
        bound = level + 3 * math.sqrt(level * (1 - level) / repeats)
        assert (p <= level).double().mean().item() <= bound


def test_the_p_falls_with_the_observed_value() -> None:
    null = torch.randn(999, generator=torch.Generator().manual_seed(0))
    p = [tail_p(x, null, tail=Tail.UPPER).value for x in torch.linspace(-4, 40, 300).tolist()]
    assert all(later <= earlier for earlier, later in itertools.pairwise(p))
    assert p[-1] < 1e-6
    assert tail_p(1e300, null, tail=Tail.UPPER).value >= 1e-300


def test_the_p_does_not_depend_on_units() -> None:
    null = torch.randn(199, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for tail in Tail:
        one = tail_p(5.0, null, tail=tail).value
        assert tail_p(5.0 * 1e-9 + 1e-8, null * 1e-9 + 1e-8, tail=tail).value == pytest.approx(
            one, rel=1e-6
        )


def test_two_sided_is_twice_the_nearer_tail() -> None:
    null = torch.randn(199, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    high = tail_p(6.0, null, tail=Tail.UPPER).value
    assert tail_p(6.0, null, tail=Tail.TWO_SIDED).value == pytest.approx(2 * high)
    low = tail_p(6.0, -null, tail=Tail.UPPER).value
    assert tail_p(-6.0, null, tail=Tail.TWO_SIDED).value == pytest.approx(2 * low)


def test_how_a_p_was_reached_is_said() -> None:
    null = torch.randn(199, generator=torch.Generator().manual_seed(0))
    assert tail_p(0.0, null, tail=Tail.UPPER).method == "counted among 199 null values"
    assert "top 39 of 199" in tail_p(9.0, null, tail=Tail.UPPER).method
    few = tail_p(9.0, null[:50], tail=Tail.UPPER)
    assert few.method == "counted among 50 null values"
    assert few.value == pytest.approx(1 / 51)
    flat = tail_p(9.0, torch.ones(199), tail=Tail.UPPER)
    assert flat.value == 1 / 200
    assert "counted" in flat.method


@pytest.mark.usefixtures("as_shipped")
def test_a_null_of_the_wrong_shape_is_refused() -> None:
    for p in (monte_carlo_p, tail_p):
        with pytest.raises(ValueError, match=r"shape \[frames\], got \[3, 2\]"):
            p(1.0, torch.zeros(3, 2), tail=Tail.UPPER)
    with pytest.raises(ValueError, match=r"\[dim\] and null of shape \[frames, dim\]"):
        pooled_direction_p(torch.zeros(2), torch.zeros(4, 3), pool=True, tail=Tail.UPPER)


# --- every direction ------------------------------------------------------------------------------


def _pooled_by_counting(observed: Tensor, null: Tensor, tail: Tail) -> Tensor:
    values = null.flatten()
    above = torch.stack([(values >= x).sum() for x in observed]) + 1
    below = torch.stack([(values <= x).sum() for x in observed]) + 1
    counted = above if tail is Tail.UPPER else 2 * torch.minimum(above, below)
    return (counted.double() / (1 + values.numel())).clamp_max(1.0)


@pytest.mark.parametrize("tail", Tail)
@pytest.mark.parametrize("distinct", [None, 5])
def test_pooled_p_values_count_all_null_values(tail: Tail, distinct: int | None) -> None:
    frames = torch.randn(20, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    if distinct is not None:
        frames = (frames * 1.5).round()
    found = pooled_direction_p(frames[0], frames[1:], pool=True, tail=tail)
    torch.testing.assert_close(found, _pooled_by_counting(frames[0], frames[1:], tail))


def test_directions_of_different_scale_are_standardised() -> None:
    generator = torch.Generator().manual_seed(0)
    units = torch.logspace(-8, 8, 50, dtype=torch.float64)
    frames = torch.randn(200, 50, dtype=torch.float64, generator=generator)
    scaled = frames * units + 3 * units
    options = {"pool": False, "tail": Tail.UPPER}
    found = pooled_direction_p(scaled[0], scaled[1:], **options)
    torch.testing.assert_close(found, pooled_direction_p(frames[0], frames[1:], **options))
    # In raw units the direction with the largest one would take all that is far out.
    outlier = scaled[0].clone()
    outlier[3] += 8 * units[3]
    assert pooled_direction_p(outlier, scaled[1:], **options).argmin() == 3
    assert pooled_direction_p(outlier, scaled[1:], **options)[3] < 1e-3
    assert pooled_direction_p(outlier, scaled[1:], pool=True, tail=Tail.UPPER)[3] > 0.1


@pytest.mark.parametrize("pool", [True, False])
@pytest.mark.parametrize("tail", Tail)
def test_p_values_of_directions_are_uniform_under_the_null(pool: bool, tail: Tail) -> None:
    generator = torch.Generator().manual_seed(2)
    p = torch.cat(
        [
            pooled_direction_p(frames[0], frames[1:], pool=pool, tail=tail)
            for frames in torch.randn(150, 60, 20, dtype=torch.float64, generator=generator)
        ]
    )
    for level in (0.01, 0.05, 0.25, 0.5):
        bound = 4 * math.sqrt(level * (1 - level) / len(p))
        assert (p <= level).double().mean().item() == pytest.approx(level, abs=bound + 1e-3)


def test_a_direction_that_no_frame_changes_says_nothing() -> None:
    frames = torch.randn(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    frames[:, 1] = 2.0
    frames[0, 2] = math.nan
    frames[5, 3] = math.nan
    found = pooled_direction_p(frames[0], frames[1:], pool=False, tail=Tail.UPPER)
    assert found[1] == 1.0
    assert found.isnan().tolist() == [False, False, True, False]


@pytest.mark.parametrize("count", [20, 98, 99, 199, 6000])
@pytest.mark.parametrize("law", ["normal", "lognormal", "few values", "one value", "with NaN"])
def test_a_tail_that_is_prepared_once_gives_the_p_values_of_each(count: int, law: str) -> None:
    null = torch.randn(count, generator=torch.Generator().manual_seed(0)).double()
    null = {
        "normal": null,
        "lognormal": null.exp(),
        "few values": null.round(),
        "one value": torch.ones_like(null),
        "with NaN": torch.where(torch.arange(count) % 5 == 0, math.nan, null),
    }[law]
    prepared = UpperTail(null)
    far = [math.nan, -50.0, -1.0, 0.0, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, 50.0, 1e9]
    found = [prepared.p(value) for value in far]
    # Asked in another order, nothing changes; and it is what one value at a time has.
    assert [prepared.p(value) for value in reversed(far[1:])] == found[:0:-1]
    assert found[1:] == [tail_p(value, null, tail=Tail.UPPER) for value in far[1:]]
    values = [one.value for one in found]
    assert math.isnan(values[0])
    assert values[1:] == sorted(values[1:], reverse=True)
    known = null[~null.isnan()]
    for value, one in zip(far[1:], found[1:], strict=True):
        reached = int((known >= value).sum())
        if one.method.startswith("counted"):
            assert one.value == (1 + reached) / (len(known) + 1)
        else:
            assert reached < 10
            assert one.value <= 11 / (len(known) + 1)
