"""Samples that depend on each other: how many they are worth, and how sure a number is.

Tokens of one sequence and pixels of one image are not independent draws. What is resampled here is
always the whole sequence or image.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from basis_probe.algebra.haar import haar
from basis_probe.statistics.moments import float64_device
from basis_probe.statistics.scores import Rows, Score


def effective_samples(
    x: Float[Tensor, "samples dim"],
    *,
    pairs: int = 1024,
    generator: torch.Generator | None = None,
) -> float:
    """As how many unrelated samples these count in an average over samples of a fourth power.

    1 / mean_{s,t} cos^4 of the angle between samples s and t, each with itself among them: T for
    orthogonal samples, 1 for parallel ones, 1.5 for any number at mean cosine 0.9. In n dimensions
    even unrelated samples are never quite orthogonal, so that it stays below n (n+2) / 3.

    Args:
        x: activations, [samples, dim]; rows of zeros are left out.
        pairs: above this many samples the mean is estimated from a random subset of this size.
        generator: draws the subset; needed where there are more samples than `pairs`.

    Raises:
        ValueError: if no row is other than zero, or a subset is needed and no generator given.

    Example:
        >>> round(effective_samples(torch.eye(5)), 6), round(effective_samples(torch.ones(5, 3)), 6)
        (5.0, 1.0)
    """
    rows = x.detach().to(float64_device(x)).to(torch.float64)
    rows = rows[rows.abs().amax(1) > 0]
    samples = len(rows)
    if samples == 0:
        raise ValueError(f"none of {len(x)} samples is other than zero: leave this site out")
    if samples > pairs:
        if generator is None:
            raise ValueError(f"{samples} samples are more than pairs={pairs}: give a generator")
        rows = rows[torch.randperm(samples, generator=generator)[:pairs].to(rows.device)]
    unit = rows / rows.norm(dim=1, keepdim=True)
    fourth = float((unit @ unit.T).square().square().sum())
    count = len(unit)
    apart = (fourth - count) / (count * (count - 1)) if count > 1 else 0.0
    return 1 / (1 / samples + (1 - 1 / samples) * max(apart, 0.0))


def design_effect(
    values: Float[Tensor, "samples number"], groups: Int64[Tensor, " samples"]
) -> Float64[Tensor, " number"]:
    """By what factor the variance of a mean exceeds that of independent samples.

    G/(G-1) sum_g (sum_{i in g} (v_i - mean))^2 / T^2, the variance of the mean when whole groups
    are drawn, over s^2/T. 1 for samples that do not depend on each other, m for groups of m equal
    samples; T / design effect is the effective number of samples for this mean.

    Args:
        values: numbers of every sample, [samples, number].
        groups: which sequence or image a sample belongs to, [samples].

    Returns:
        [number]; NaN for a number that does not vary.

    Raises:
        ValueError: if there are fewer than two groups.

    Source: L. Kish, Survey Sampling (1965), section 8.2; the cluster-robust variance of a mean.

    Example:
        >>> values = torch.tensor([[1.0], [1.0], [-1.0], [-1.0], [3.0], [3.0]])
        >>> round(design_effect(values, torch.tensor([0, 0, 1, 1, 2, 2])).item(), 3)
        2.5
    """
    labels, members = _members(groups, len(values))
    rows = values.to(torch.float64)
    samples = len(rows)
    centred = rows - rows.mean(0)
    sums = torch.zeros(labels, rows.shape[1], dtype=torch.float64).index_add_(0, members, centred)
    clustered = labels / (labels - 1) * sums.square().sum(0) / samples**2
    independent = centred.square().sum(0) / (samples - 1) / samples
    return torch.where(independent > 0, clustered / independent, math.nan)


@dataclasses.dataclass(frozen=True, eq=False)
class Resampled:
    """A number, and how it varies when whole sequences or images are drawn again.

    Attributes:
        value: from all samples.
        std: its standard error.
        low, high: ends of an interval that holds the true value in 95 cases of 100.
        groups: how many sequences or images there were.
        method: how it was resampled.
    """

    value: float
    std: float
    low: float
    high: float
    groups: int
    method: str


def cluster_bootstrap(
    statistic: Callable[[Int64[Tensor, " rows"]], float],
    groups: Int64[Tensor, " samples"],
    *,
    draws: int = 200,
    generator: torch.Generator,
) -> Resampled:
    """A statistic of samples with an interval from drawing whole groups with replacement.

    Args:
        statistic: numbers of rows, some of them several times -> a number.
        groups: which sequence or image a sample belongs to, [samples].
        draws: how many resamples; the interval is the middle 95 % of them, mirrored at the value
            (the basic bootstrap).
        generator: draws them; on the CPU.

    Raises:
        ValueError: if there are fewer than two groups, or draws.

    Source: A. C. Davison and D. V. Hinkley, Bootstrap Methods and their Application (1997),
        sections 3.8 and 5.2.

    Example:
        >>> x = torch.arange(40.0)
        >>> found = cluster_bootstrap(
        ...     lambda rows: float(x[rows].mean()), torch.arange(40) // 4,
        ...     generator=torch.Generator().manual_seed(0),
        ... )
        >>> found.value, found.groups, found.low < 19.5 < found.high
        (19.5, 10, True)
    """
    if draws < 2:
        raise ValueError(f"draws={draws}: give at least 2 resamples, better 200")
    count, members = _members(groups, len(groups))
    order = members.argsort(stable=True)
    rows_of = order.split(torch.bincount(members, minlength=count).tolist())
    values: list[float] = []
    for _ in range(draws):
        chosen = torch.randint(count, (count,), generator=generator).tolist()
        values.append(statistic(torch.cat([rows_of[group] for group in chosen])))
    drawn = torch.tensor(values, dtype=torch.float64)
    drawn = drawn[~drawn.isnan()]
    value = statistic(torch.arange(len(groups)))
    if len(drawn) < 2:
        return Resampled(value, math.nan, math.nan, math.nan, count, "bootstrap of groups")
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
    low, high = drawn.quantile(ends).tolist()
    return Resampled(
        value,
        float(drawn.std()),
        2 * value - high,
        2 * value - low,
        count,
        f"basic bootstrap of {count} groups, {draws} draws",
    )


def cluster_jackknife(
    statistic: Callable[[Int64[Tensor, " rows"]], float],
    groups: Int64[Tensor, " samples"],
    *,
    folds: int = 20,
    generator: torch.Generator,
) -> Resampled:
    """A statistic of samples with its standard error from leaving out whole groups in turn.

    Twenty computations in place of two hundred: the groups are dealt at random into folds, and with
    values v_f without fold f the variance is (F-1)/F sum_f (v_f - mean v)^2. The interval is that
    of Student's t with F - 1 degrees of freedom. For smooth statistics; not for medians.

    Args:
        statistic: numbers of rows -> a number.
        groups: which sequence or image a sample belongs to, [samples].
        folds: at most so many; fewer where there are fewer groups.
        generator: deals them; on the CPU.

    Raises:
        ValueError: if there are fewer than two groups or folds.

    Source: J. W. Tukey, Annals of Mathematical Statistics 29 (1958) 614, with groups left out.

    Example:
        >>> x = torch.arange(40.0)
        >>> found = cluster_jackknife(
        ...     lambda rows: float(x[rows].mean()), torch.arange(40), folds=40,
        ...     generator=torch.Generator().manual_seed(0),
        ... )
        >>> round(found.std, 6) == round(float(x.std() / 40**0.5), 6)
        True
    """
    if folds < 2:
        raise ValueError(f"folds={folds}: give at least 2, better 20")
    count, members = _members(groups, len(groups))
    used = min(folds, count)
    fold = torch.randperm(count, generator=generator).remainder(used)[members]
    values = torch.tensor(
        [statistic((fold != left_out).nonzero().squeeze(1)) for left_out in range(used)],
        dtype=torch.float64,
    )
    value = statistic(torch.arange(len(groups)))
    std = float(((used - 1) * (values - values.mean()).square().mean()).sqrt())
    reach = _student_975(used - 1) * std
    method = f"jackknife of {count} groups in {used} folds"
    return Resampled(value, std, value - reach, value + reach, count, method)


def excess_over_turns(
    x: Float[Tensor, "samples dim"],
    score: Score,
    groups: Int64[Tensor, " samples"],
    *,
    turns: int = 5,
    folds: int = 20,
    generator: torch.Generator,
) -> Resampled:
    """By how much the axes exceed turned axes in a score, and how sure that is *of the data*.

    A null over turns asks whether the axes are special for these very samples. Where a few
    directions hold nearly all variance, every turned axis reads them, and all turned axes share one
    error of sampling: they hardly differ from each other, and the axes lie beyond all of them by
    accident. The standard error here is over samples, and is not fooled.

    Args:
        x: activations in the geometry of their group, [samples, dim].
        score: averaged over directions.
        groups: which sequence or image a sample belongs to; every sample its own where they are
            independent.
        turns: how many turned bases the axes are compared with; the same for every fold.
        folds: as in `cluster_jackknife`.
        generator: draws turns and folds; on the CPU.

    Raises:
        ValueError: if there are fewer than two groups or folds, or no turns.

    Example:
        >>> from basis_probe.statistics.scores import NEGENTROPY
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = torch.randn(2000, 8, generator=generator, dtype=torch.float64) ** 3
        >>> found = excess_over_turns(x, NEGENTROPY, torch.arange(2000), generator=generator)
        >>> found.low > 0
        True
    """
    if turns < 1:
        raise ValueError(f"turns={turns}: give at least 1, better 5")
    rows = x.to(torch.float64)
    frames = [rows @ haar(x.shape[1], generator).to(rows) for _ in range(turns)]

    def excess(chosen: Tensor) -> float:
        of_frames = [float(score.per_direction(Rows(f[chosen])).nanmean()) for f in frames]
        observed = float(score.per_direction(Rows(rows[chosen])).nanmean())
        return observed - sum(of_frames) / turns

    return cluster_jackknife(excess, groups, folds=folds, generator=generator)


def _members(groups: Tensor, samples: int) -> tuple[int, Tensor]:
    """How many groups there are, and the number of each sample's."""
    if groups.ndim != 1 or len(groups) != samples:
        raise ValueError(
            f"groups have shape {list(groups.shape)} for {samples} samples: give one number each"
        )
    labels, members = groups.cpu().unique(return_inverse=True)
    if len(labels) < 2:
        raise ValueError(
            f"{samples} samples of {len(labels)} group: what varies between groups cannot be told "
            "from fewer than two; number the samples themselves if they are independent"
        )
    return len(labels), members


def _student_975(freedom: int) -> float:
    import scipy.stats

    return float(scipy.stats.t.ppf(0.975, freedom))
