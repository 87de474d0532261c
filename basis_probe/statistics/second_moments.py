"""Second moments of two sets of axes over the same samples: values that add, in float64."""

import dataclasses

import torch
from jaxtyping import Bool, Float
from torch import Tensor

# So many entries are brought to float64 at a time.
_ENTRIES_AT_ONCE = 2**22

# From so many multiplications on, single precision is worth its rounding; so many rows in a block.
_MUCH, _ROWS_AT_ONCE = 2**28, 1024


@dataclasses.dataclass(frozen=True, eq=False)
class Spread:
    """Count, mean and centred sums of products of some axes; `a + b` are those of both samples.

    Source: T. F. Chan, G. H. Golub and R. J. LeVeque (1979), for matrices.
    """

    count: int
    mean: Float[Tensor, " dim"]
    sums: Float[Tensor, "dim dim"]
    """Sum over samples of (x - mean) (x - mean)^T."""
    rounding: float = 0.0
    """The share of an axis' size about zero that rounding of its values may leave as spread."""

    @staticmethod
    def empty(dim: int) -> "Spread":
        """The moments of nothing: the neutral element of `+`."""
        zeros = torch.zeros(dim, dtype=torch.float64)
        return Spread(0, zeros, torch.zeros(dim, dim, dtype=torch.float64))

    @staticmethod
    def of(x: Float[Tensor, "samples dim"], *, single: bool = False) -> "Spread":
        """The moments of some samples.

        Args:
            x: the samples.
            single: as for `products`.
        """
        mean = mean_of(x)
        sums = products(x, x, mean, mean, single=single)
        return Spread(len(x), mean, sums, rounding_of(x.dtype))

    def __add__(self, other: "Spread") -> "Spread":
        count = self.count + other.count
        if not self.count or not other.count:
            return self if self.count else other
        step = other.mean - self.mean
        mean = self.mean + step * (other.count / count)
        between = torch.outer(step, step) * (self.count * other.count / count)
        rounding = max(self.rounding, other.rounding)
        return Spread(count, mean, self.sums + other.sums + between, rounding)

    @property
    def flat(self) -> Bool[Tensor, " dim"]:
        """True for axes that never vary, apart from rounding."""
        return self.sums.diagonal() <= self.rounding * self.raw.diagonal()

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
        sizes = self.sums.diagonal()
        return torch.where(self.flat, torch.zeros_like(sizes), sizes.clamp(min=1e-300).rsqrt())

    @property
    def raw(self) -> Float[Tensor, "dim dim"]:
        """Sum over samples of x x^T, the mean included."""
        return self.sums + self.count * torch.outer(self.mean, self.mean)


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
    def empty(dim_x: int, dim_y: int) -> "Crossed":
        """The moments of nothing: the neutral element of `+`."""
        between = torch.zeros(dim_x, dim_y, dtype=torch.float64)
        return Crossed(Spread.empty(dim_x), Spread.empty(dim_y), between)

    @staticmethod
    def of(
        x: Float[Tensor, "samples dim_x"],
        y: Float[Tensor, "samples dim_y"],
        *,
        spreads: tuple[Spread, Spread] | None = None,
        single: bool = False,
    ) -> "Crossed":
        """The moments of some samples.

        Args:
            x: the one set of axes.
            y: the other, over the same samples.
            spreads: the moments of each, where they are known already.
            single: as for `products`.
        """
        own, other = spreads or (Spread.of(x, single=single), Spread.of(y, single=single))
        return Crossed(own, other, products(x, y, own.mean, other.mean, single=single))

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
        own, other = (
            Spread(side.count, torch.zeros_like(side.mean), side.raw, 0.0)
            for side in (self.x, self.y)
        )
        return Crossed(own, other, between)


def rounding_of(dtype: torch.dtype) -> float:
    """What rounding may leave of an axis that never varies, as a share of its size about zero."""
    return 1e-28 if dtype is torch.float64 else 1e-13


def mean_of(x: Float[Tensor, "samples dim"]) -> Float[Tensor, " dim"]:
    """The mean of every axis, in float64."""
    total = torch.zeros(x.shape[1], dtype=torch.float64)
    for rows in _chunks(x):
        total += rows.double().sum(0).cpu()
    return total / max(1, len(x))


def products(
    x: Float[Tensor, "samples dim_x"],
    y: Float[Tensor, "samples dim_y"],
    mean_x: Float[Tensor, " dim_x"],
    mean_y: Float[Tensor, " dim_y"],
    *,
    single: bool = False,
) -> Float[Tensor, "dim_x dim_y"]:
    """The sums over samples of products about the means, in float64.

    Args:
        x: the one set of axes.
        y: the other, over the same samples.
        mean_x: the means of the one.
        mean_y: those of the other.
        single: True if much single-precision data may be multiplied as it is, blocks of it added in
            double precision: right to 1e-6 of the axes' sizes. Enough for what is a sum of these
            products; never for what divides by small directions among them.
    """
    sums = torch.zeros(x.shape[1], y.shape[1], dtype=torch.float64)
    same = x is y
    much = x.numel() * y.shape[1] >= _MUCH
    single = single and much and x.dtype == y.dtype == torch.float32
    kind = torch.float32 if single else torch.float64
    most = _ROWS_AT_ONCE if single else None
    for rows, others in zip(_chunks(x, y, most), _chunks(y, x, most), strict=True):
        own = (rows.cpu().double() - mean_x).to(kind)
        other = own if same else (others.cpu().double() - mean_y).to(kind)
        sums += own.T @ other
    return sums


def _chunks(x: Tensor, beside: Tensor | None = None, most: int | None = None) -> tuple[Tensor, ...]:
    width = x.shape[1] + (0 if beside is None else beside.shape[1])
    rows = max(1, _ENTRIES_AT_ONCE // max(1, width))
    return x.split(rows if most is None else min(rows, most))
