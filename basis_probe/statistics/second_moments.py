"""Second moments of two sets of axes over the same samples: values that add, in float64."""

import dataclasses
import functools
from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from basis_probe.statistics.gram import gram

# So many entries are brought to float64 at a time.
_ENTRIES_AT_ONCE = 2**22

# From so many multiplications on, single precision is worth its rounding; so many rows in a block,
# of values between these.
_MUCH, _ROWS_AT_ONCE = 2**26, 1024
_LEAST, _LARGEST = 1e-12, 1e12


@dataclasses.dataclass(frozen=True, eq=False)
class Spread:
    """Count, mean and centred sums of products of some axes; `a + b` are those of both samples.

    Source: T. F. Chan, G. H. Golub and R. J. LeVeque (1979), for matrices.
    """

    count: int
    mean: Float[Tensor, " dim"]
    sizes: Float[Tensor, " dim"]
    """Sum over samples of (x - mean)^2."""
    between: Float[Tensor, "dim dim"] | None
    """Sum over samples of (x - mean) (x - mean)^T; None where only sizes were kept."""
    rounding: float = 0.0
    """The share of an axis' size about zero that rounding of its values may leave as spread."""

    @staticmethod
    def empty(dim: int, *, sizes_only: bool = False) -> "Spread":
        """The moments of nothing: the neutral element of `+`."""
        zeros = torch.zeros(dim, dtype=torch.float64)
        between = None if sizes_only else torch.zeros(dim, dim, dtype=torch.float64)
        return Spread(0, zeros, zeros, between)

    @staticmethod
    def of(
        x: Float[Tensor, "samples dim"], *, single: bool = False, sizes_only: bool = False
    ) -> "Spread":
        """The moments of some samples.

        Args:
            x: the samples.
            single: True if much single-precision data may be multiplied as it is, blocks of it
                added in double precision: right to 1e-6 of the axes' sizes. Enough for what is a
                sum of these products; never for what divides by small directions among them.
            sizes_only: True to keep no products of different axes.
        """
        return Samples(x, single=single).spread(sizes_only=sizes_only)

    def __add__(self, other: "Spread") -> "Spread":
        count = self.count + other.count
        if not self.count or not other.count:
            return self if self.count else other
        step = other.mean - self.mean
        mean = self.mean + step * (other.count / count)
        share = self.count * other.count / count
        between = None
        if self.between is not None and other.between is not None:
            between = self.between + other.between + torch.outer(step, step) * share
        sizes = self.sizes + other.sizes + step.square() * share
        return Spread(count, mean, sizes, between, max(self.rounding, other.rounding))

    @property
    def sums(self) -> Float[Tensor, "dim dim"]:
        """Sum over samples of (x - mean) (x - mean)^T.

        Raises:
            ValueError: if only sizes were kept.
        """
        if self.between is None:
            raise ValueError(
                "only the sizes of axes were kept: ask for moments with sizes_only=False"
            )
        return self.between

    @property
    def flat(self) -> Bool[Tensor, " dim"]:
        """True for axes that never vary, apart from rounding."""
        return self.sizes <= self.rounding * (self.sizes + self.count * self.mean.square())

    def least_squares(self, sums: Float[Tensor, "dim other"]) -> Float[Tensor, "dim other"]:
        """B with x B nearest to what has these products with x, however the axes are scaled.

        Args:
            sums: the sum over samples of x y^T, about the same centre as `sums` of this value.
        """
        scale = self.unit
        inverse = torch.linalg.pinv(scale[:, None] * self.sums * scale, hermitian=True)
        return scale[:, None] * (inverse @ (scale[:, None] * sums))

    @property
    def unit(self) -> Float[Tensor, " dim"]:
        """What brings every axis to unit size; 0 for those that never vary."""
        return torch.where(
            self.flat, torch.zeros_like(self.sizes), self.sizes.clamp(min=1e-300).rsqrt()
        )

    def part(self, axes: Int64[Tensor, " some"]) -> "Spread":
        """The moments of some of the axes."""
        between = None if self.between is None else self.between[axes][:, axes]
        return Spread(self.count, self.mean[axes], self.sizes[axes], between, self.rounding)

    def uncentred(self) -> "Spread":
        """The same with means of zero and products about zero."""
        between = self.between
        if between is not None:
            between = between + self.count * torch.outer(self.mean, self.mean)
        sizes = self.sizes + self.count * self.mean.square()
        return Spread(self.count, torch.zeros_like(self.mean), sizes, between, 0.0)


@dataclasses.dataclass(frozen=True, eq=False)
class Crossed:
    """The moments of two sets of axes and between them; `a + b` are those of both samples.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> x, y = torch.randn(9, 2, generator=generator), torch.randn(9, 3, generator=generator)
        >>> parts = Crossed.of(x[:4], y[:4]) + Crossed.of(x[4:], y[4:])
        >>> torch.allclose(parts.sums, Crossed.of(x, y).sums)
        True
    """

    x: Spread
    y: Spread
    sums: Float[Tensor, "dim_x dim_y"]
    """Sum over samples of (x - mean x) (y - mean y)^T."""

    @staticmethod
    def empty(dim_x: int, dim_y: int, *, sizes_only: bool = False) -> "Crossed":
        """The moments of nothing: the neutral element of `+`, whatever sizes the other has only."""
        own, other = (Spread.empty(dim, sizes_only=sizes_only) for dim in (dim_x, dim_y))
        return Crossed(own, other, torch.zeros(dim_x, dim_y, dtype=torch.float64))

    @staticmethod
    def of(
        x: "Float[Tensor, 'samples dim_x'] | Samples",
        y: "Float[Tensor, 'samples dim_y'] | Samples",
        *,
        single: bool = False,
        sizes_only: bool | tuple[bool, bool] = False,
    ) -> "Crossed":
        """The moments of some samples.

        Args:
            x: the one set of axes.
            y: the other, over the same samples.
            single: as for `Spread`; of rows that are given as such it is known.
            sizes_only: as for `Spread`, of both or of either.
        """
        own, other = (
            side if isinstance(side, Samples) else Samples(side, single=single) for side in (x, y)
        )
        alone = sizes_only if isinstance(sizes_only, tuple) else (sizes_only, sizes_only)
        spread, others = own.spread(sizes_only=alone[0]), other.spread(sizes_only=alone[1])
        return Crossed(spread, others, own.products(other))

    def __add__(self, other: "Crossed") -> "Crossed":
        count = self.count + other.count
        if not self.count or not other.count:
            return self if self.count else other
        step = torch.outer(other.x.mean - self.x.mean, other.y.mean - self.y.mean)
        between = step * (self.count * other.count / count)
        return Crossed(self.x + other.x, self.y + other.y, self.sums + other.sums + between)

    @property
    def count(self) -> int:
        """How many samples were seen."""
        return self.x.count

    def uncentred(self) -> "Crossed":
        """The same with means of zero and products about zero."""
        between = self.sums + self.count * torch.outer(self.x.mean, self.y.mean)
        return Crossed(self.x.uncentred(), self.y.uncentred(), between)


class Samples:
    """Samples of some axes, whose sums are taken block by block, and each of them once.

    Args:
        values: [samples, dim].
        single: as for `Spread.of`.
    """

    def __init__(self, values: Float[Tensor, "samples dim"], *, single: bool = False) -> None:
        self.values = values
        much = values.numel() * values.shape[1] >= _MUCH
        self.single = single and much and values.dtype == torch.float32 and _of_usual_size(values)
        self._moments: Spread | None = None

    def __len__(self) -> int:
        return len(self.values)

    @functools.cached_property
    def centre(self) -> Float[Tensor, " dim"]:
        """What is near the mean of every axis, in the precision of the products."""
        if self.single:
            return self.values.mean(0).cpu()
        total = torch.zeros(self.values.shape[1], dtype=torch.float64)
        for rows in self.values.split(self._at_once):
            total += rows.double().sum(0).cpu()
        return total / max(1, len(self))

    @functools.cached_property
    def _about_centre(self) -> tuple[Tensor, Tensor]:
        """The mean and the sum of squares of every axis about the centre, in float64."""
        total = torch.zeros(self.values.shape[1], dtype=torch.float64)
        squares = torch.zeros_like(total)
        for rows in self.blocks():
            total += rows.sum(0)
            squares += rows.square().sum(0)
        return total / max(1, len(self)), squares

    @property
    def left(self) -> Float[Tensor, " dim"]:
        """The mean less the centre, in float64."""
        return self._about_centre[0] if self.single else torch.zeros_like(self.centre)

    @property
    def _at_once(self) -> int:
        if self.single:
            return _ROWS_AT_ONCE
        return max(1, _ENTRIES_AT_ONCE // max(1, self.values.shape[1]))

    def blocks(self, at_once: int | None = None) -> Iterator[Tensor]:
        """The samples about the centre, some at a time."""
        for rows in self.values.split(at_once or self._at_once):
            yield rows.cpu().to(self.centre.dtype) - self.centre

    def spread(self, *, sizes_only: bool = False) -> Spread:
        """The moments of these samples; the same value whenever they are asked for."""
        known = self._moments
        if known is None or (known.between is None and not sizes_only):
            between = None if sizes_only else self._products(self)
            if between is None:
                left, squares = self._about_centre
                sizes = squares - len(self) * left.square()
            else:
                sizes = between.diagonal().clone()
            mean = self.centre.double() + self.left
            rounding = rounding_of(self.values.dtype)
            self._moments = known = Spread(len(self), mean, sizes, between, rounding)
        return known

    def products(self, other: "Samples") -> Float[Tensor, "dim other"]:
        """The sums over samples of products about the means, in float64."""
        return self.spread().sums if self is other else self._products(other)

    def _products(self, other: "Samples") -> Tensor:
        sums = torch.zeros(self.values.shape[1], other.values.shape[1], dtype=torch.float64)
        at_once = min(self._at_once, other._at_once)
        if self is other:
            for rows in self.blocks(at_once):
                sums += gram(rows.T)
        else:
            kind = torch.float32 if self.single and other.single else torch.float64
            for rows, others in zip(self.blocks(at_once), other.blocks(at_once), strict=True):
                sums += rows.to(kind).T @ others.to(kind)
        return sums - len(self) * torch.outer(self.left, other.left)

    def lengths(self, mean: Float[Tensor, " dim"] | None = None) -> Float[Tensor, " samples"]:
        """The squared length of every sample about a mean, in float64.

        Args:
            mean: None for the mean of these samples.
        """
        left = self.left if mean is None else mean - self.centre
        return torch.cat([(rows.double() - left).square().sum(1) for rows in self.blocks()])


def _of_usual_size(values: Tensor) -> bool:
    """True if products of the values neither leave the range of float32 nor vanish in it."""
    if not values.numel():
        return False
    largest = torch.maximum(values.amax(0).abs(), values.amin(0).abs())
    used = largest[largest > 0]
    return not used.numel() or (float(used.max()) < _LARGEST and float(used.min()) > _LEAST)


def rounding_of(dtype: torch.dtype) -> float:
    """What rounding may leave of an axis that never varies, as a share of its size about zero."""
    return 1e-28 if dtype is torch.float64 else 1e-13
