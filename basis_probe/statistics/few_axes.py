"""Whether a few axes stand out where the mean over all of them does not."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from basis_probe.statistics.p_values import TIE, Tail, UpperTail, monte_carlo_p, tail_p

_RANKS = (1, 2, 3, 5, 8, 13, 21, 34, 55, 89)
_SHARE = 4
_QUANTILE = 0.95


@dataclasses.dataclass(frozen=True, eq=False)
class FewTest:
    """The largest axes against the largest directions of every alternative.

    Attributes:
        observed: the largest standardised order statistic of the axes; where they were compared
            with single directions, the score of the axis furthest out.
        null_values: the same of every alternative, or of every direction.
        p_value: counted among the alternatives.
        p_tail: below 1/(frames + 1), where the alternatives' tail was approximated.
        axes: the axes beyond the largest direction of 95 % of the alternatives, the furthest first;
            where there is none, as many of the largest as stand out together.
        alone: how many of them do so by themselves: all, or none.
        looked_at: axes of which alternatives of their own were drawn.
    """

    observed: float
    null_values: Float[Tensor, " frames"]
    p_value: float
    p_tail: float
    axes: Int[Tensor, " few"]
    alone: int
    looked_at: Int[Tensor, " some"] | None = None


def few_axes(scores: list[Float[Tensor, "frames directions"]]) -> FewTest | None:
    """The k-th largest of the axes against the k-th largest of every alternative, over several k.

    The k-th largest value of every frame is taken for k = 1, 2, 3, 5, 8 ... up to a quarter of the
    directions, its logarithm standardised over all frames, the axes' own among them, and the
    largest of these numbers is the statistic: every frame is treated alike, so that the test is
    exact wherever the null is. A mean over all axes hides what a few of them carry.

    Args:
        scores: for every score that decides, the values of every direction of every frame, the
            observed one first; NaN where a direction has none.

    Example:
        >>> values = torch.rand(200, 40, generator=torch.Generator().manual_seed(0)).double()
        >>> values[0, [3, 9]] = 5.0
        >>> found = few_axes([values])
        >>> sorted(found.axes.tolist()), found.p_value
        ([3, 9], 0.005)
    """
    best: list[Tensor] = []
    which: list[tuple[int, int]] = []
    for index, values in enumerate(scores):
        if values.shape[0] < 20 or values.shape[1] < _SHARE:
            continue
        filled = torch.where(torch.isnan(values), torch.full_like(values, -torch.inf), values)
        ordered = filled.sort(1, descending=True).values
        for rank in _RANKS:
            if rank > max(1, values.shape[1] // _SHARE):
                break
            column = ordered[:, rank - 1]
            if not bool(torch.isfinite(column).all()):
                continue
            column = column.clamp_min(1e-12).log()
            spread = float(column.std())
            if spread > TIE:
                best.append((column - column.mean()) / spread)
                which.append((index, rank))
    if not best:
        return None
    together = torch.stack(best)
    statistic = together.amax(0)
    observed, null = float(statistic[0]), statistic[1:]
    index, rank = which[int(together[:, 0].argmax())]
    values = torch.where(
        torch.isnan(scores[index]), torch.full_like(scores[index], -torch.inf), scores[index]
    )
    order = values[0].argsort(descending=True)
    beyond = int((values[0] > values[1:].amax(1).quantile(_QUANTILE)).sum())
    return FewTest(
        observed=observed,
        null_values=null,
        p_value=monte_carlo_p(observed, null, tail=Tail.UPPER),
        p_tail=tail_p(observed, null, tail=Tail.UPPER).value,
        axes=order[: beyond or rank],
        alone=beyond,
    )


def repeated(
    axes: Int[Tensor, " few"],
    halves: list[tuple[Float[Tensor, " axes"], Float[Tensor, " axes"]]],
) -> Int[Tensor, " some"]:
    """Those of a few axes that stand out on both halves of the rows.

    Where one direction has nearly all variance, all turned directions read it and share its error
    of sampling, and axes whose own errors are larger lie beyond all of them by accident. What an
    axis is by accident it is on one half only. Errors are those of scores between the halves; an
    axis is kept whose smaller score exceeds the middle one by so many of them as none of all axes
    does by accident in 95 of 100 cases, where errors are exponential.

    Args:
        axes: the few axes.
        halves: for every score that decides, its value on every axis, on one half of the rows and
            on the other; NaN where it has none.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> one, other = torch.rand(2, 40, generator=generator).double()
        >>> one[7] = other[7] = 9.0
        >>> repeated(torch.tensor([7, 3]), [(one, other)]).tolist()
        [7]
    """
    kept = torch.zeros(len(axes), dtype=torch.bool)
    for one, other in halves:
        both = torch.stack([one, other])
        known = ~both.isnan().any(0)
        if not bool(known.any()):
            continue
        error = float((one - other)[known].abs().median())
        times = 0.7 * math.log(20 * int(known.sum())) - 1
        kept |= both.amin(0)[axes] > float(both[:, known].median()) + times * error
    return axes[kept]


_FURTHEST = 32
"""So many axes, those of the largest scores, are looked at one by one."""
_TOGETHER = (1, 2, 4, 8)

Own = Callable[[Int[Tensor, " few"]], list[Float[Tensor, "frames few"]]]


def few_of_many(
    values: list[Float[Tensor, " axes"]],
    blocks: list[Float[Tensor, "frames directions"]],
    own: Own | None = None,
    *,
    always: int = 0,
) -> FewTest | None:
    """Whether a few of many axes stand out, where alternatives were drawn for some of them only.

    Every axis is compared with the directions of all alternatives together, which have one law
    where an axis is as likely as any direction. The k-th smallest of n p-values is below t with
    probability n t / k at most, however they depend on each other: the smallest n p / k over
    k = 1, 2, 4, 8, times four, is a p-value. It needs tails far beyond what was drawn, which are
    extrapolated (see `tail_p`).

    Args:
        values: for every score that decides, its value on every axis; NaN where it has none.
        blocks: for each, the values of the directions of every alternative.
        own: axes -> for every score, their own alternatives. Where the axes have a law each, such
            as neurons of their own length and mean, an axis counts only if it stands out twice: as
            it is, and in standard deviations of its own alternatives from their mean. None where
            all have one law.
        always: of so many of the largest scores, alternatives are drawn in any case; those that do
            not stand out are no finding, and stand for themselves where a mean over all is asked.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> blocks = torch.rand(99, 64, generator=generator).double()
        >>> values = torch.rand(3000, generator=generator).double()
        >>> values[[3, 2009]] = 5.0
        >>> found = few_of_many([values], [blocks])
        >>> sorted(found.axes.tolist()), found.alone, found.p_tail < 1e-3
        ([3, 2009], 2, True)
    """
    count = max((int((~value.isnan()).sum()) for value in values), default=0)
    if count < _SHARE or not any(map(_differ, values, blocks)):
        return None
    tails = torch.stack([_furthest(v, b.flatten()) for v, b in zip(values, blocks, strict=True)])
    # Of several scores an axis has the smallest p, times their number.
    joint = (len(values) * tails.amin(0)).clamp_max(1.0)
    furthest = torch.nonzero(count * joint <= 1).flatten()
    furthest = furthest[joint[furthest].argsort()][:_FURTHEST]
    looked_at, apart = furthest, list[Tensor]()
    if own is not None and always:
        # What is furthest in a score need not have the smallest p-value of all.
        most = [v.nan_to_num(-math.inf).topk(min(always, len(v))).indices for v in values]
        looked_at = torch.cat([furthest, *most]).unique()
    if own is not None and len(looked_at):
        apart = own(looked_at)
        place = torch.searchsorted(looked_at.sort().values, furthest)
        columns = looked_at.argsort()[place]
        for score, alone in enumerate(alone[:, columns] for alone in apart):
            scaled = UpperTail(_scaled(blocks[score], blocks[score]).flatten())
            far = _scaled(values[score][furthest][None], alone)[0]
            for value, axis in zip(far.tolist(), furthest.tolist(), strict=True):
                tails[score, axis] = max(float(tails[score, axis]), _tail(value, scaled))
        kept = (len(values) * tails[:, furthest].amin(0)).clamp_max(1.0)
        joint = torch.ones_like(joint).index_copy(0, furthest, kept)
    ascending, order = joint.sort(stable=True)
    ranks = [rank for rank in _TOGETHER if rank <= max(1, count // _SHARE)]
    together = [count * float(ascending[rank - 1]) / rank for rank in ranks]
    alone = int((count * ascending[:_FURTHEST] <= 1 - _QUANTILE).sum())
    rank = ranks[min(range(len(ranks)), key=together.__getitem__)]
    first = int(order[0])
    score = int(tails[:, first].argmin())
    observed, directions = float(values[score][first]), blocks[score].flatten()
    directions = directions[~directions.isnan()]
    counted = monte_carlo_p(observed, directions, tail=Tail.UPPER)
    return FewTest(
        observed=observed,
        null_values=directions,
        p_value=min(1.0, count * len(values) * counted),
        p_tail=min(1.0, len(ranks) * min(together)),
        axes=order[: alone or rank],
        alone=alone,
        looked_at=looked_at if apart else None,
    )


def _differ(values: Tensor, directions: Tensor) -> bool:
    """Whether axes or directions differ in their scores by more than rounding."""
    every = torch.cat([values, directions.flatten()])
    every = every[~every.isnan()]
    return len(every) > 1 and float(every.std()) > TIE * float(every.abs().max())


def _furthest(values: Tensor, directions: Tensor) -> Tensor:
    """The p-value of every axis of the largest scores among single directions; one for others."""
    p = torch.ones(len(values), dtype=torch.float64)
    filled = torch.where(values.isnan(), torch.full_like(values, -torch.inf), values)
    tail = UpperTail(directions)
    for axis in filled.topk(min(2 * _FURTHEST, len(values))).indices.tolist():
        p[axis] = _tail(float(values[axis]), tail)
    return p


def _scaled(values: Tensor, alternatives: Tensor) -> Tensor:
    """In standard deviations of the alternatives of every column from their mean."""
    mean = alternatives.nanmean(0)
    std = (alternatives - mean).square().nanmean(0).sqrt()
    known = std > TIE * alternatives.abs().nan_to_num(0.0).amax(0)
    return (values - mean) / torch.where(known, std, torch.full_like(std, math.nan))


def _tail(value: float, tail: UpperTail) -> float:
    """The p-value of one axis; one where it has no value."""
    p = tail.p(value).value
    return 1.0 if math.isnan(p) else p
