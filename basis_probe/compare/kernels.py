"""Centred kernel alignment: how alike two networks arrange the same examples.

Kernels are made block by block and never held whole, so that memory does not grow with the square
of the examples.
"""

import dataclasses
import enum
import functools
import math
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from basis_probe.brief import described
from basis_probe.statistics.second_moments import Samples

_BLOCK = 1024
"""Examples along one side of a block of a kernel."""

_AT_ONCE = 2**21
"""So many entries of single axes' blocks are made in one go."""

_MEDIAN_ENTRIES = 2**26
"""A median needs every axis of a block at once: at most so many numbers."""


class Kernel(enum.Enum):
    """What is made of the inner products of two examples, one for every axis; the value says it."""

    LINEAR = "their sum: positive semi-definite, the same in every rotated basis"
    MAX = (
        "the largest: the same in every order of axes, and not positive semi-definite, so that it "
        "is no inner product of features (Godfrey et al. 2022, section 5)"
    )
    MEDIAN = (
        "their median: the same in every order of axes, not positive semi-definite, and hardly "
        "moved by a few axes"
    )
    SMOOTH = (
        "the sum of their third powers, a smooth stand-in for the largest: the same in every order "
        "of axes, and positive semi-definite as a product of such kernels"
    )


def kernel_from_name(name: object) -> Kernel:
    """The kernel of that name: "linear", "max", "median" or "smooth".

    Raises:
        ValueError: for any other.
    """
    if not isinstance(name, str) or name.upper() not in Kernel.__members__:
        known = ", ".join(kernel.name.lower() for kernel in Kernel)
        raise ValueError(f"no kernel is called {described(name)}; there are {known}, rbf")
    return Kernel[name.upper()]


@dataclasses.dataclass(frozen=True, eq=False)
class Maps:
    """Examples with their axes, each at some positions, as a kernel reads them.

    Args:
        values: [examples, axes, positions]; one position for a matrix of activations.
        kernel: what is made of the inner products.
        unit_axes: True to bring every axis to mean zero and unit size first, over all examples and
            positions, so that its scale does not count. An axis that never varies stays zero.
        factor: the values are multiplied by it, a power of two that keeps products in range.
    """

    values: Float[Tensor, "examples axes positions"]
    kernel: Kernel
    unit_axes: bool
    factor: float = 1.0

    def __len__(self) -> int:
        return len(self.values)

    def blocks(self, size: int) -> Callable[[slice, slice], Tensor]:
        """Which block of the kernel two ranges of examples make, as a function of them.

        Args:
            size: of the ranges; where one holds all examples, the kernel is made once and kept.
        """
        if len(self) <= size:
            return lambda left, right: self.whole[left, right]
        return self._blocks()

    def _blocks(self) -> Callable[[slice, slice], Tensor]:
        mean, scale = self._units()
        axes = self.values.shape[1]

        def some(first: int, count: int, rows: slice) -> Tensor:
            """[axes, examples, positions] of some of the axes, at their units."""
            own = slice(first, first + count)
            centred = self.values[rows, own].transpose(0, 1) - mean[own, None, None]
            return centred.mul_(scale[own, None, None])

        def products(left: slice, right: slice, count: int) -> Iterator[Tensor]:
            """[axes, examples, examples], a few axes at a time."""
            for first in range(0, axes, count):
                a = some(first, count, left)
                b = a if left == right else some(first, count, right)
                yield torch.bmm(a, b.transpose(1, 2))

        def few(left: slice, right: slice) -> int:
            entries = (left.stop - left.start) * (right.stop - right.start)
            return max(1, min(axes, _AT_ONCE // max(1, entries)))

        def linear(left: slice, right: slice) -> Tensor:
            a, b = (
                ((self.values[rows] - mean[:, None]) * scale[:, None]).flatten(1)
                for rows in (left, right)
            )
            return a @ b.T

        def largest(left: slice, right: slice) -> Tensor:
            several = (part.amax(0) for part in products(left, right, few(left, right)))
            return functools.reduce(lambda a, b: torch.maximum(a, b, out=a), several)

        def smooth(left: slice, right: slice) -> Tensor:
            several = (part.pow_(3).sum(0) for part in products(left, right, few(left, right)))
            return functools.reduce(lambda a, b: a.add_(b), several)

        def median(left: slice, right: slice) -> Tensor:
            return next(products(left, right, axes)).median(dim=0).values

        return {
            Kernel.LINEAR: linear,
            Kernel.MAX: largest,
            Kernel.SMOOTH: smooth,
            Kernel.MEDIAN: median,
        }[self.kernel]

    def _units(self) -> tuple[Tensor, Tensor]:
        """The mean and one over the size of every axis, in the type of the values."""
        values, axes = self.values, self.values.shape[1]
        if not self.unit_axes:
            factors = torch.full((axes,), self.factor, dtype=torch.float64)
            return torch.zeros(axes, dtype=values.dtype).to(values), factors.to(values)
        # A few examples at a time, so that no second copy of all of them is ever held.
        chunks = values.split(max(1, _AT_ONCE // max(1, values[0].numel())))
        mean = torch.zeros(axes, dtype=torch.float64, device=values.device)
        squares = torch.zeros_like(mean)
        for rows in chunks:
            mean += rows.sum((0, 2), dtype=torch.float64)
        mean /= values.shape[0] * values.shape[2]
        for rows in chunks:
            centred = (rows - mean[:, None].to(rows)).mul_(self.factor)
            squares += centred.square_().sum((0, 2), dtype=torch.float64)
        size = squares.sqrt() / self.factor
        # Against the size of what was subtracted, rounding is not spread.
        eps = torch.finfo(values.dtype).eps
        count = values.shape[0] * values.shape[2]
        flat = size <= 8 * eps * mean.abs() * math.sqrt(count)
        # Inner products of the size of one: their third powers must not leave the range.
        root = math.sqrt(len(values))
        scale = torch.where(flat, torch.zeros_like(size), root / size.clamp(min=1e-300))
        return mean.to(values), scale.to(values)

    @functools.cached_property
    def whole(self) -> Float[Tensor, "examples examples"]:
        """The kernel of all examples, in float64; for few of them."""
        make = self._blocks()
        found = torch.empty(len(self), len(self), dtype=torch.float64)
        for left, right in _pairs(len(self), self.side):
            block = make(left, right).double().cpu()
            found[left, right], found[right, left] = block, block.T
        return found

    @property
    def side(self) -> int:
        """How many examples along the side of a block."""
        if self.kernel is Kernel.MEDIAN:
            most = math.isqrt(_MEDIAN_ENTRIES // self.values.shape[1])
            return max(16, min(_BLOCK, most))
        return _BLOCK


@dataclasses.dataclass(frozen=True)
class Hsic:
    """The Hilbert-Schmidt independence criteria of two kernels on the same examples.

    `a + b` are the sums over two sets of examples: minibatches, as Nguyen, Raghu and Kornblith
    (2021) add them.

    Attributes:
        xy, xx, yy: between the two, and of each with itself.
        batches: over how many sets of examples they were summed.
        examples: how many examples were in them.
    """

    xy: float = 0.0
    xx: float = 0.0
    yy: float = 0.0
    batches: int = 0
    examples: int = 0

    def __add__(self, other: "Hsic") -> "Hsic":
        mine, others = dataclasses.astuple(self), dataclasses.astuple(other)
        return Hsic(*(a + b for a, b in zip(mine, others, strict=True)))

    @property
    def cka(self) -> float:
        """Xy / sqrt(xx yy): 1 for kernels that are proportional; NaN where one does not vary.

        With unbiased estimates it is 0 on average for independent kernels, so it may be negative.
        """
        if not self.xx > 0 or not self.yy > 0:
            return math.nan
        return self.xy / math.sqrt(self.xx * self.yy)


def unit_factor(values: Tensor) -> float:
    """The power of two that brings the largest of some values near one; 1 where all are zero."""
    largest = float(max(abs(edge) for edge in torch.aminmax(values)))
    return 2.0 ** -round(math.log2(largest)) if largest > 0 else 1.0


def hsic_of(x: Maps, y: Maps, *, unbiased: bool = True) -> Hsic:
    """The criteria of two sets of maps of the same examples.

    Args:
        x: the maps of one network.
        y: those of the other; the n-th example of one is the n-th of the other.
        unbiased: True for the estimate without bias, which leaves the diagonals out; False for the
            one with a positive bias.

    Raises:
        ValueError: for different numbers of examples, or fewer than four.

    Source: Gretton et al. (2005), equation 9; Song et al. (2012), equation 5.
    """
    if len(x) != len(y):
        raise ValueError(
            f"{len(x)} examples were given of one network and {len(y)} of the other: give the same "
            "examples to both"
        )
    _require_four(len(x))
    side = min(x.side, y.side)
    made = x.blocks(side), y.blocks(side)
    count = len(x)
    rows = [torch.zeros(count, dtype=torch.float64) for _ in made]
    products = torch.zeros(3, dtype=torch.float64)
    for left, right in _pairs(count, side):
        # Float32 blocks are fine, their sums are not.
        k, el = (make(left, right).to(torch.float64, copy=True) for make in made)
        if left == right:
            if unbiased:
                k.fill_diagonal_(0)
                el.fill_diagonal_(0)
            times = 1.0
        else:
            times = 2.0
        for place, (a, b) in enumerate(((k, el), (k, k), (el, el))):
            products[place] += times * float((a * b).sum())
        for total, block in zip(rows, (k, el), strict=True):
            total[left] += block.sum(1).cpu()
            if left != right:
                total[right] += block.sum(0).cpu()
    sides = ((0, 1), (0, 0), (1, 1))
    found = [
        _estimate(
            float(products[place]),
            float(rows[a] @ rows[b]),
            float(rows[a].sum()) * float(rows[b].sum()),
            count,
            unbiased=unbiased,
        )
        for place, (a, b) in enumerate(sides)
    ]
    return Hsic(*found, batches=1, examples=count)


def kernel_hsic(
    k: Float[Tensor, "examples examples"],
    el: Float[Tensor, "examples examples"],
    *,
    unbiased: bool = True,
) -> float:
    """The criterion of two kernels that are at hand.

    Raises:
        ValueError: for kernels of different size, or of fewer than four examples.
    """
    if k.shape != el.shape:
        raise ValueError(f"kernels of {len(k)} and {len(el)} examples: give the same examples")
    _require_four(len(k))
    products, rows, others = float((k * el).sum()), k.sum(1), el.sum(1)
    if unbiased:
        own, other = k.diagonal(), el.diagonal()
        products -= float(own @ other)
        rows, others = rows - own, others - other
    totals = float(rows.sum()) * float(others.sum())
    return _estimate(products, float(rows @ others), totals, len(k), unbiased=unbiased)


def linear_hsic(x: Samples, y: Samples, *, unbiased: bool = True) -> float:
    """The criterion of the linear kernels of two matrices, from their axes and not their samples.

    The cost grows with the number of samples and not with its square.

    Raises:
        ValueError: for different numbers of samples, or fewer than four.
    """
    if len(x) != len(y):
        raise ValueError(f"{len(x)} samples and {len(y)}: give the same samples of both")
    _require_four(len(x))
    # The criterion does not ask where zero is, and about the mean no digits are lost.
    return feature_hsic(x.products(y), x.lengths(), y.lengths(), unbiased=unbiased)


def feature_hsic(
    between: Float[Tensor, "dim_x dim_y"],
    own: Float[Tensor, " samples"],
    other: Float[Tensor, " samples"],
    *,
    unbiased: bool = True,
) -> float:
    """The criterion of linear kernels, from axes that have mean zero.

    Args:
        between: the sum over samples of x y^T.
        own: the squared length of x for every sample.
        other: that of y.
        unbiased: as for `hsic_of`.
    """
    count, product = len(own), float(between.square().sum())
    if not unbiased:
        return product / (count - 1) ** 2
    # With centred axes the rows of a kernel sum to zero, and to minus the diagonal without it.
    shared = float(own @ other)
    totals = float(own.sum()) * float(other.sum())
    return _estimate(product - shared, shared, totals, count, unbiased=True)


def _estimate(products: float, rows: float, totals: float, count: int, *, unbiased: bool) -> float:
    """From the sum of products, that of products of row sums, and the product of the totals."""
    if unbiased:
        inner = products + totals / ((count - 1) * (count - 2)) - 2 * rows / (count - 2)
        return inner / (count * (count - 3))
    return (products - 2 * rows / count + totals / count**2) / (count - 1) ** 2


def _pairs(count: int, side: int) -> Iterator[tuple[slice, slice]]:
    """The blocks of one half of a symmetric matrix, the diagonal ones included."""
    starts = range(0, count, side)
    for left in starts:
        for right in starts:
            if right >= left:
                yield slice(left, min(left + side, count)), slice(right, min(right + side, count))


def _require_four(count: int) -> None:
    if count < 4:
        raise ValueError(f"{count} examples: a kernel needs at least four")
