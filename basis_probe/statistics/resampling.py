"""How far a finding would move with other examples of the same kind.

Rows of one sequence or image are not independent, so examples are left out whole.
"""

import functools
import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from basis_probe.statistics.sparsity import negentropy_of

MIN_GROUPS = 5
"""With fewer groups of examples no error is stated."""


class LeftOut:
    """Statistics of every axis without each group of rows in turn, computed when asked for.

    Args:
        x: [samples, dim].
        groups: the group of every row, from 0 on, [samples].
        parts: row sets (masks, [samples]) whose statistics are computed apart and averaged; None
            for all rows together.

    Example:
        >>> x = torch.tensor([[0.0], [2.0], [0.0], [6.0], [1.0], [9.0]])
        >>> without = LeftOut(x, torch.tensor([0, 0, 0, 0, 1, 1])).kurtosis
        >>> without.shape, round(without[1].item(), 12)
        (torch.Size([2, 1]), 2.0)
    """

    def __init__(
        self,
        x: Float[Tensor, "samples dim"],
        groups: Int[Tensor, " samples"],
        parts: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        count = int(groups.max()) + 1
        rows = [slice(None)] if parts is None else [part for part in parts if bool(part.any())]
        self._parts = [_GroupSums(x[part], groups[part], count) for part in rows]

    @functools.cached_property
    def kurtosis(self) -> Float[Tensor, "groups dim"]:
        """Kurtosis, [groups, dim]."""
        return torch.stack([part.kurtosis() for part in self._parts]).nanmean(0)

    @functools.cached_property
    def negentropy(self) -> Float[Tensor, "groups dim"]:
        """Negentropy, [groups, dim]: mean and variance without a group enter to first order."""
        return torch.stack([part.negentropy() for part in self._parts]).nanmean(0)


class _GroupSums:
    """Rows in units of all of them, and how to sum functions of them without each group."""

    def __init__(self, x: Tensor, groups: Tensor, count: int) -> None:
        exact = x.double()
        d = exact - exact.mean(0)
        std = d.square().mean(0).sqrt()
        self.varies = std > 1e-12 * exact.abs().amax(0).clamp_min(1e-300)
        self.z = d / torch.where(self.varies, std, 1.0)
        self.place, self.count = groups.to(d.device), count
        sizes = torch.bincount(self.place, minlength=count).to(d)
        self.left = (len(d) - sizes)[:, None]

    def mean(self, values: Tensor) -> Tensor:
        """The mean over rows without each group, [groups, dim]."""
        sums = values.new_zeros(self.count, values.shape[1]).index_add_(0, self.place, values)
        return (sums.sum(0) - sums) / self.left

    def kurtosis(self) -> Tensor:
        z = self.z
        square = z * z
        m1, m2, m3, m4 = map(self.mean, (z, square, square * z, square * square))
        second = m2 - m1**2
        fourth = m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4
        return torch.where(self.varies & (second > 0), fourth / second.square(), math.nan)

    def negentropy(self) -> Tensor:
        z = self.z
        square = z * z
        e = (-0.5 * square).exp()
        odd, even = z * e, square * e
        m1, m2, f2, f1, g2, g3 = map(self.mean, (z, square, e, odd, even, even * z))
        std = (m2 - m1**2).clamp_min(1e-12).sqrt()
        scale, shift = 1 / std - 1, -m1 / std
        # f(z') of the newly standardised z' = z + scale z + shift, with f' and z f' in closed form.
        first = f1 + scale * (f1 - g3) + shift * (f2 - g2)
        second = f2 - scale * g2 - shift * f1
        return torch.where(self.varies, negentropy_of(first, second), math.nan)


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
