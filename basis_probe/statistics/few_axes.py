"""Whether a few axes stand out where the mean over all of them does not."""

from __future__ import annotations

import dataclasses

import torch
from jaxtyping import Float, Int
from torch import Tensor

from basis_probe.statistics.p_values import Tail, monte_carlo_p, tail_p

_RANKS = (1, 2, 3, 5, 8, 13, 21, 34, 55, 89)
_SHARE = 4
_QUANTILE = 0.95


@dataclasses.dataclass(frozen=True, eq=False)
class FewTest:
    """The largest axes against the largest directions of every alternative.

    Attributes:
        observed: the largest standardised order statistic of the axes.
        null_values: [frames], the same of every alternative.
        p_value: counted among the alternatives.
        p_tail: below 1/(frames + 1), where the alternatives' tail was approximated.
        axes: the axes beyond the largest direction of 95 % of the alternatives, the furthest first;
            where there is none, as many of the largest as stand out together.
        alone: how many of them do so by themselves: all, or none.
    """

    observed: float
    null_values: Float[Tensor, " frames"]
    p_value: float
    p_tail: float
    axes: Int[Tensor, " few"]
    alone: int


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
            if spread > 1e-9:
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
