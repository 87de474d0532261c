"""How far a finding would move with other examples of the same kind.

Rows of one sequence or image are not independent, so examples are left out whole.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from basis_probe.statistics.halves import Part, is_empty
from basis_probe.statistics.single_precision import Columns, rows_at_once
from basis_probe.statistics.sparsity import BELL, negentropy_of

MIN_GROUPS = 5
"""With fewer groups of examples no error is stated."""


_LEFT = 0.05
"""Where less than this part of the variance is left without a group, sums are in float64."""


_PIECES = 4
"""Where groups are of very unequal sizes, one of middle size is cut into so many pieces."""
_NOTHING = 1e-10
"""Where less than this part is left, a column is constant without the group."""


class Grouping:
    """Which rows are of which group; made once for all matrices whose rows are grouped alike.

    Args:
        groups: the group of every row, from 0 on, [samples].
        parts: row sets (slices, or masks, [samples]) that are grouped apart; None for all rows.
    """

    def __init__(
        self, groups: Int[Tensor, " samples"], parts: tuple[Part, Part] | None = None
    ) -> None:
        self.count = int(groups.max()) + 1
        rows = [slice(None)] if parts is None else [part for part in parts if not is_empty(part)]
        self.parts = [(part, _Padded(groups[part], self.count)) for part in rows]


class _Padded:
    """The rows of every group in pieces of one length, the last of a group filled up.

    Attributes:
        rows: [pieces, length], places of rows; of any where a piece has no more.
        known: [pieces, length], False where it has no more.
        of: the group of every piece, [pieces].
        sizes: of the groups, [groups, 1].
        missing: how many places of each are filled up, [groups, 1].
    """

    def __init__(self, groups: Tensor, count: int) -> None:
        groups = groups.cpu()
        sizes = torch.bincount(groups, minlength=count)
        # Where one group has most rows, filling up the others to as many would be most of the work.
        lengths = max(1, int(sizes.max())), max(1, len(groups) // (_PIECES * count))
        length = min(lengths, key=lambda length: length * int((-(-sizes // length)).sum()))
        pieces = -(-sizes // length)
        self.of = torch.arange(count).repeat_interleave(pieces)
        before = (pieces.cumsum(0) - pieces)[self.of]
        left = sizes[self.of] - (torch.arange(len(self.of)) - before) * length
        self.known = torch.arange(length) < left[:, None]
        self.rows = torch.zeros(len(self.of), length, dtype=torch.int64)
        self.rows[self.known] = groups.argsort(stable=True)
        self.sizes = sizes[:, None].double()
        self.missing = pieces[:, None] * length - self.sizes

    def joined(self, pieces: Float[Tensor, "pieces dim"]) -> Float[Tensor, "groups dim"]:
        """The sums over the pieces of every group."""
        groups = torch.arange(len(self.sizes))
        if torch.equal(self.of, groups):
            return pieces
        return (groups[:, None] == self.of).to(pieces) @ pieces


class LeftOut:
    """Statistics of every axis without each group of rows in turn, computed when asked for.

    Args:
        x: [samples, dim].
        groups: the group of every row, from 0 on, [samples], or which rows are of which group.
        parts: row sets (slices, or masks, [samples]) whose statistics are computed apart and
            averaged; None for all rows together.

    Example:
        >>> x = torch.tensor([[0.0], [2.0], [0.0], [6.0], [1.0], [9.0]])
        >>> without = LeftOut(x, torch.tensor([0, 0, 0, 0, 1, 1])).kurtosis
        >>> without.shape, round(without[1].item(), 6)
        (torch.Size([2, 1]), 2.0)
    """

    def __init__(
        self,
        x: Float[Tensor, "samples dim"],
        groups: Int[Tensor, " samples"] | Grouping,
        parts: tuple[Part, Part] | None = None,
    ) -> None:
        grouping = groups if isinstance(groups, Grouping) else Grouping(groups, parts)
        self._parts = [_GroupSums(x[part], padded) for part, padded in grouping.parts]

    @functools.cached_property
    def kurtosis(self) -> Float[Tensor, "groups dim"]:
        """Kurtosis, [groups, dim]."""
        return torch.stack([part.kurtosis() for part in self._parts]).nanmean(0)

    @functools.cached_property
    def negentropy(self) -> Float[Tensor, "groups dim"]:
        """Negentropy, [groups, dim]: mean and variance without a group enter to first order."""
        return torch.stack([part.negentropy() for part in self._parts]).nanmean(0)


class _GroupSums:
    """Rows in units of all of them, and how to sum functions of them without each group.

    What was computed in single precision is summed in it, every group apart.
    """

    def __init__(self, x: Tensor, padded: _Padded) -> None:
        self.x, self.padded = x, padded
        self.left = (len(x) - padded.sizes).to(x.device)
        self._single = Columns(x) if x.dtype is torch.float32 else None
        if self._single is not None:
            self.varies = self._single.varies
            self._scaled = self._single.scaled()
            return
        exact = x.double()
        mean = exact.mean(0)
        std = (exact - mean).square().mean(0).sqrt()
        self.varies = std > 1e-12 * exact.abs().amax(0).clamp_min(1e-300)
        unit = torch.where(self.varies, std, 1.0)
        self._scaled = lambda rows: (rows.double() - mean) / unit

    def _blocks(self) -> Iterator[Float[Tensor, "pieces length dim"]]:
        """Standardised rows of some pieces at a time; zeros where a piece has no more."""
        rows, known = (made.to(self.x.device) for made in (self.padded.rows, self.padded.known))
        length = rows.shape[1]
        several = max(1, rows_at_once(self.x) // length)
        for some, there in zip(rows.split(several), known.split(several), strict=True):
            z = self._scaled(self.x.index_select(0, some.flatten()))
            z *= there.view(-1, 1)
            yield z.view(len(some), length, -1)

    def means(
        self, functions: Callable[[Tensor], Sequence[Tensor]], *, at_zero: Sequence[float]
    ) -> list[Tensor]:
        """The means over rows of functions of the values, without each group, [groups, dim].

        Args:
            functions: of values of any shape.
            at_zero: what each is at zero.
        """
        sums = [[values.sum(1) for values in functions(z)] for z in self._blocks()]
        found: list[Tensor] = []
        missing = self.padded.missing.to(self.x.device)
        for one, value in zip(zip(*sums, strict=True), at_zero, strict=True):
            total = self.padded.joined(torch.cat(one).double()) - value * missing
            found.append((total.sum(0) - total) / self.left)
        return found

    @functools.cached_property
    def powers(self) -> list[Tensor]:
        """The means of the first four powers."""

        def functions(z: Tensor) -> tuple[Tensor, ...]:
            square = z * z
            return z, square, square * z, square * square

        return self.means(functions, at_zero=(0, 0, 0, 0))

    @functools.cached_property
    def _exact(self) -> "tuple[Tensor, _GroupSums] | None":
        """The columns of which a group has nearly all the variance, and their sums in float64.

        Without it what is left is far from the mean of all, in units of its own deviation.
        """
        m1, m2 = self.powers[:2]
        few = (m2 - m1.square() < _LEFT).any(0) & self.varies
        if self._single is None or not bool(few.any()):
            return None
        return few, _GroupSums(self.x[:, few].double(), self.padded)

    @property
    def _left_varying(self) -> Tensor:
        """Which columns vary without each group."""
        m1, m2 = self.powers[:2]
        return self.varies & (m2 - m1.square() > _NOTHING)

    def kurtosis(self) -> Tensor:
        m1, m2, m3, m4 = self.powers
        second = m2 - m1**2
        fourth = m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4
        found = torch.where(self._left_varying, fourth / second.square(), math.nan)
        if self._exact is not None:
            found[:, self._exact[0]] = self._exact[1].kurtosis()
        return found

    def negentropy(self) -> Tensor:
        def functions(z: Tensor) -> tuple[Tensor, ...]:
            square = z * z
            e = (square * BELL).exp2_()
            even = square.mul_(e)
            return e, z * e, even, even * z

        m1, m2 = self.powers[:2]
        f2, f1, g2, g3 = self.means(functions, at_zero=(1, 0, 0, 0))
        std = (m2 - m1**2).clamp_min(1e-12).sqrt()
        scale, shift = 1 / std - 1, -m1 / std
        # f(z') of the newly standardised z' = z + scale z + shift, with f' and z f' in closed form.
        first = f1 + scale * (f1 - g3) + shift * (f2 - g2)
        second = f2 - scale * g2 - shift * f1
        found = torch.where(self._left_varying, negentropy_of(first, second), math.nan)
        if self._exact is not None:
            found[:, self._exact[0]] = self._exact[1].negentropy()
        return found


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
