"""How far a finding would move with other examples of the same kind.

Rows of one sequence or image are not independent, so examples are left out whole.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

MIN_GROUPS = 5
"""With fewer groups of examples no error is stated."""


def kurtosis_without(
    x: Float[Tensor, "samples dim"],
    groups: Int[Tensor, " samples"],
    parts: tuple[Tensor, Tensor] | None = None,
) -> Float[Tensor, "groups dim"]:
    """The kurtosis of every axis without each group of rows in turn.

    Args:
        x: [samples, dim].
        groups: the group of every row, from 0 on, [samples].
        parts: row sets (masks, [samples]) whose kurtoses are computed apart and averaged; None for
            all rows together.

    Example:
        >>> x = torch.tensor([[0.0], [2.0], [0.0], [6.0], [1.0], [9.0]])
        >>> without = kurtosis_without(x, torch.tensor([0, 0, 0, 0, 1, 1]))
        >>> without.shape, without[1].item()
        (torch.Size([2, 1]), 2.0)
    """
    count = int(groups.max()) + 1
    if parts is not None:
        return torch.stack(
            [_kurtosis_without(x[rows], groups[rows], count) for rows in parts if bool(rows.any())]
        ).nanmean(0)
    return _kurtosis_without(x, groups, count)


def _kurtosis_without(x: Tensor, groups: Tensor, count: int) -> Tensor:
    exact = x.double()
    # Powers about the mean of all rows: the sums of a group can be taken out again.
    d = exact - exact.mean(0)
    sums: list[Tensor] = []
    power = torch.ones_like(d)
    place = groups.to(d.device)
    for _ in range(4):
        power = power * d
        sums.append(d.new_zeros(count, d.shape[1]).index_add_(0, place, power))
    sizes = torch.bincount(place, minlength=count).to(d)
    left = (len(d) - sizes)[:, None]
    m1, m2, m3, m4 = ((total.sum(0) - total) / left for total in sums)
    second = m2 - m1**2
    fourth = m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4
    varies = second > 1e-12 * m2.amax(0).clamp_min(1e-300)
    return torch.where(varies, fourth / second.square(), math.nan)


def jackknife_error(values: Float[Tensor, " groups"]) -> float:
    """The standard error of a statistic from its values without each group in turn.

    NaN for fewer than five groups. Source: B. Efron and C. Stein, Ann. Statist. 9 (1981) 586.

    Example:
        >>> x = torch.arange(10.0, dtype=torch.float64)
        >>> without = (x.sum() - x) / 9
        >>> abs(jackknife_error(without) - x.std().item() / 10**0.5) < 1e-12
        True
    """
    groups = len(values)
    if groups < MIN_GROUPS or bool(values.isnan().any()):
        return math.nan
    return float(((groups - 1) / groups * (values - values.mean()).square().sum()).sqrt())
