"""Streaming moments: values that add, so that any split of the data gives the same statistics."""

import dataclasses
import math
from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float
from torch import Tensor

# A chunk this large stays in the processor's cache through all passes over it; an accelerator wants
# fewer and larger kernels. Both bound the float64 working memory (1 MB and 128 MB a buffer).
_CHUNK_ELEMENTS_CPU = 2**17
_CHUNK_ELEMENTS_ACCELERATOR = 2**24

# Spread below this many units of rounding of the largest value is not spread.
_ROUNDING_UNITS = 64

# Below 2**15 elements torch runs a function on one thread, which for so little is the fastest.
_CACHED_ELEMENTS = 2**15

# A column whose standard deviation is below this share of its mean varies by rounding only.
_ROUNDING = 1e-13


@dataclasses.dataclass(frozen=True, eq=False)
class Moments:
    """The count, mean, central sums to 4th order and range of every direction, in float64.

    `a + b` are the moments of the two samples laid end to end, to rounding and in any order: no raw
    power sums are kept, so offset, drifting and heavy-tailed streams lose no digits. A NaN or an
    infinity in a direction makes its statistics NaN; the other directions are not affected.

    Source: T. F. Chan, G. H. Golub and R. J. LeVeque (1979); P. Pébay, SAND2008-6212 (2008).

    Example:
        >>> x = torch.tensor([[0.0, 5.0], [2.0, 5.0], [0.0, 5.0], [6.0, 5.0]])
        >>> whole = Moments.of(x)
        >>> parts = Moments.of(x[:1]) + Moments.of(x[1:])
        >>> whole.mean, whole.variance
        (tensor([2., 5.], dtype=torch.float64), tensor([6., 0.], dtype=torch.float64))
        >>> torch.allclose(whole.m4, parts.m4)
        True
        >>> whole.kurtosis
        tensor([2., nan], dtype=torch.float64)
        >>> whole.constant
        tensor([False,  True])
    """

    count: int
    """How many samples were seen."""
    mean: Float[Tensor, " dim"]
    """NaN where nothing was seen."""
    m2: Float[Tensor, " dim"]
    """Sum over samples of (x - mean)^2."""
    m3: Float[Tensor, " dim"]
    """Sum over samples of (x - mean)^3."""
    m4: Float[Tensor, " dim"]
    """Sum over samples of (x - mean)^4."""
    minimum: Float[Tensor, " dim"]
    """Smallest value seen; +inf where nothing was seen."""
    maximum: Float[Tensor, " dim"]
    """Largest value seen; -inf where nothing was seen."""

    @staticmethod
    def empty(dim: int, *, device: torch.device | str = "cpu") -> "Moments":
        """The moments of no samples: the neutral element of `+`.

        Example:
            >>> Moments.empty(3).count
            0
        """
        nan, zero, inf = (
            torch.full((dim,), value, dtype=torch.float64, device=device)
            for value in (math.nan, 0.0, math.inf)
        )
        return Moments(0, nan, zero, zero, zero, inf, -inf)

    @staticmethod
    def of(x: Float[Tensor, "samples dim"]) -> "Moments":
        """The moments of one batch, shifted by its mean before any power is taken.

        Args:
            x: activations of any floating type, [samples, dim]. Not kept, not changed.

        Raises:
            ValueError: `x` is not a matrix.
        """
        _require_matrix(x)
        samples, dim = x.shape
        if samples == 0 or dim == 0:
            none = Moments.empty(dim, device=float64_device(x))
            return dataclasses.replace(none, count=samples)
        total: Tensor | float = 0.0
        for chunk in _chunks(x):
            total = total + chunk.sum(0)
        shift = torch.as_tensor(total) / samples

        d1, d2, d3, d4 = (torch.zeros_like(shift) for _ in range(4))
        minimum, maximum = torch.full_like(shift, math.inf), torch.full_like(shift, -math.inf)
        for chunk in _chunks(x):
            minimum = torch.minimum(minimum, chunk.amin(0))
            maximum = torch.maximum(maximum, chunk.amax(0))
            d = chunk - shift
            square = d * d
            d1 += d.sum(0)
            d2 += square.sum(0)
            d3 += torch.linalg.vecdot(square, d, dim=0)
            d4 += torch.linalg.vecdot(square, square, dim=0)
        # The mean is itself rounded; what is left of it (d1) is taken out of the sums again, which
        # matters for the third one where the offset is many standard deviations.
        left = d1 / samples
        return Moments(
            count=samples,
            mean=shift + left,
            m2=(d2 - left * d1).clamp_min(0.0),
            m3=d3 - 3 * left * d2 + 2 * left**2 * d1,
            m4=d4 - 4 * left * d3 + 6 * left**2 * d2 - 3 * left**3 * d1,
            minimum=minimum,
            maximum=maximum,
        )

    def __add__(self, other: "Moments") -> "Moments":
        """The moments of both samples together.

        Raises:
            ValueError: the two do not have the same number of directions.
        """
        if self.dim != other.dim:
            raise ValueError(
                f"moments of {self.dim} and of {other.dim} directions cannot be added: "
                "add moments of the same site only"
            )
        if other.count == 0:
            return self
        if self.count == 0:
            return other
        a, b, n = self.count, other.count, self.count + other.count
        delta = other.mean - self.mean
        square = delta * delta
        weight = a * b / n
        m2 = self.m2 + other.m2 + square * weight
        m3 = (
            self.m3
            + other.m3
            + delta * square * (weight * ((a - b) / n))
            + 3 * delta * (a / n * other.m2 - b / n * self.m2)
        )
        m4 = (
            self.m4
            + other.m4
            + square * square * (weight * ((a * a - a * b + b * b) / n**2))
            + 6 * square * ((a / n) ** 2 * other.m2 + (b / n) ** 2 * self.m2)
            + 4 * delta * (a / n * other.m3 - b / n * self.m3)
        )
        return Moments(
            count=n,
            mean=self.mean + delta * (b / n),
            m2=m2,
            m3=m3,
            m4=m4,
            minimum=torch.minimum(self.minimum, other.minimum),
            maximum=torch.maximum(self.maximum, other.maximum),
        )

    @property
    def dim(self) -> int:
        """How many directions there are."""
        return self.mean.shape[0]

    @property
    def variance(self) -> Float[Tensor, " dim"]:
        """Population variance (divided by the count); NaN where nothing was seen."""
        return self.m2 / self.count if self.count else torch.full_like(self.m2, math.nan)

    @property
    def std(self) -> Float[Tensor, " dim"]:
        """Population standard deviation; NaN where nothing was seen."""
        return self.variance.sqrt()

    @property
    def constant(self) -> Bool[Tensor, " dim"]:
        """True where the values differ by no more than rounding: std <= 64 eps max|x|.

        A direction that holds NaN is not constant; one that was never seen is.
        """
        if self.count == 0:
            return torch.ones_like(self.m2, dtype=torch.bool)
        largest = torch.maximum(self.minimum.abs(), self.maximum.abs())
        rounding = _ROUNDING_UNITS * torch.finfo(torch.float64).eps * largest
        return self.variance <= rounding**2

    @property
    def skewness(self) -> Float[Tensor, " dim"]:
        """Third standardised moment; 0 for a symmetric law, NaN for a constant direction."""
        return self._standardised(self.m3 / self.variance**1.5)

    @property
    def kurtosis(self) -> Float[Tensor, " dim"]:
        """Fourth standardised moment; at least 1, Gaussian 3, NaN for a constant direction."""
        return self._standardised(self.m4 / self.variance**2)

    @property
    def excess_kurtosis(self) -> Float[Tensor, " dim"]:
        """Kurtosis minus the Gaussian 3; at least -2, NaN for a constant direction."""
        return self.kurtosis - 3

    def _standardised(self, ratio: Tensor) -> Tensor:
        count = self.count if self.count else math.nan
        return torch.where(self.constant, math.nan, ratio / count)


@dataclasses.dataclass(frozen=True, eq=False)
class SampleKurtosis:
    """The kurtosis of every sample *across its axes*, averaged over samples, and each axis' share.

    For a row x of n values, kappa = n sum_j x_j^4 / (sum_j x_j^2)^2, not centred: 1 if all axes are
    equally large, n if one axis holds everything, 3n/(n+2) on average over all rotations of any
    row. Rows of zeros have no kurtosis: they are counted and left out. `a + b` is the value for
    both samples together.

    Source: N. Elhage, R. Lasenby and C. Olah, "Privileged Bases in the Transformer Residual Stream"
    (2023), where the metric is taken per token; `share` is its exact additive split over axes.

    Example:
        >>> value = SampleKurtosis.of(torch.tensor([[1.0, 0.0], [1.0, -1.0], [0.0, 0.0]]))
        >>> value.count, value.zeros, value.mean.item()
        (2, 1, 1.5)
        >>> value.share
        tensor([2.5000, 0.5000], dtype=torch.float64)
    """

    count: int
    """Rows that have a kurtosis."""
    zeros: int
    """Rows of zeros, left out of everything else."""
    mean: Float[Tensor, ""]
    """Mean over rows of kappa, in [1, dim]; NaN where there are no rows."""
    m2: Float[Tensor, ""]
    """Sum over rows of (kappa - mean)^2."""
    share: Float[Tensor, " dim"]
    """Mean over rows of n^2 x_j^4 / (sum x^2)^2; its mean over axes is `mean`."""

    @staticmethod
    def empty(dim: int, *, device: torch.device | str = "cpu") -> "SampleKurtosis":
        """The value of no rows: the neutral element of `+`."""
        nan = torch.full((dim,), math.nan, dtype=torch.float64, device=device)
        return SampleKurtosis(0, 0, nan.new_tensor(math.nan), nan.new_zeros(()), nan)

    @staticmethod
    def of(x: Float[Tensor, "samples dim"]) -> "SampleKurtosis":
        """The value of one batch.

        Args:
            x: activations of any floating type, [samples, dim]. Subtract each row's own mean first
                for the centred metric.

        Raises:
            ValueError: `x` is not a matrix, or has no axes.
        """
        _require_matrix(x)
        dim = x.shape[1]
        if dim == 0:
            raise ValueError(
                f"a kurtosis across axes needs at least one axis, got shape {list(x.shape)}"
            )
        whole = SampleKurtosis.empty(dim, device=float64_device(x))
        for chunk in _chunks(x):
            square = chunk * chunk
            total = square.sum(1, keepdim=True)
            kept = total.squeeze(1) != 0
            # Fractions of a row's energy lie in [0, 1]: squaring them cannot overflow.
            fraction = square[kept] / total[kept]
            rows = fraction.shape[0]
            zeros = chunk.shape[0] - rows
            if rows == 0:
                whole = dataclasses.replace(whole, zeros=whole.zeros + zeros)
                continue
            fourth = fraction * fraction
            kappa = dim * fourth.sum(1)
            mean = kappa.mean()
            whole = whole + SampleKurtosis(
                count=rows,
                zeros=zeros,
                mean=mean,
                m2=(kappa - mean).square().sum(),
                share=dim**2 * fourth.mean(0),
            )
        return whole

    def __add__(self, other: "SampleKurtosis") -> "SampleKurtosis":
        """The value for both samples together.

        Raises:
            ValueError: the two do not have the same number of axes.
        """
        if self.dim != other.dim:
            raise ValueError(
                f"kurtoses across {self.dim} and across {other.dim} axes cannot be added: "
                "add values of the same site only"
            )
        zeros = self.zeros + other.zeros
        if other.count == 0:
            return dataclasses.replace(self, zeros=zeros)
        if self.count == 0:
            return dataclasses.replace(other, zeros=zeros)
        a, b, n = self.count, other.count, self.count + other.count
        delta = other.mean - self.mean
        return SampleKurtosis(
            count=n,
            zeros=zeros,
            mean=self.mean + delta * (b / n),
            m2=self.m2 + other.m2 + delta**2 * (a * b / n),
            share=self.share + (other.share - self.share) * (b / n),
        )

    @property
    def dim(self) -> int:
        """How many axes there are."""
        return self.share.shape[0]

    @property
    def variance(self) -> Float[Tensor, ""]:
        """Population variance of kappa over rows; NaN where there are no rows."""
        return self.m2 / self.count if self.count else torch.full_like(self.m2, math.nan)

    @property
    def std(self) -> Float[Tensor, ""]:
        """Population standard deviation of kappa over rows; NaN where there are no rows."""
        return self.variance.sqrt()


@dataclasses.dataclass(frozen=True, eq=False)
class EvenMoments:
    """Mean, variance and fourth central moment of every column."""

    mean: Float[Tensor, " dim"]
    """Mean over samples."""
    variance: Float[Tensor, " dim"]
    """Population variance."""
    fourth: Float[Tensor, " dim"]
    """Mean over samples of (x - mean)^4."""

    @property
    def varies(self) -> Bool[Tensor, " dim"]:
        """False for a column that does not vary beyond rounding."""
        return self.variance > (_ROUNDING * self.mean).square()

    @property
    def kurtosis(self) -> Float[Tensor, " dim"]:
        """Fourth standardised moment, in [1, samples]; NaN for a column that does not vary."""
        return torch.where(self.varies, self.fourth / self.variance.square(), math.nan)


@dataclasses.dataclass(frozen=True, eq=False)
class ColumnMoments(EvenMoments):
    """The central moments of every column up to the fourth."""

    third: Float[Tensor, " dim"]
    """Mean over samples of (x - mean)^3."""

    @property
    def skewness(self) -> Float[Tensor, " dim"]:
        """Third standardised moment; NaN for a column that does not vary beyond rounding."""
        return torch.where(self.varies, self.third / self.variance**1.5, math.nan)


def even_moments(x: Float[Tensor, "samples dim"]) -> EvenMoments:
    """The even central moments of every column, as `Moments.of(x)` gives them.

    Args:
        x: activations of any floating type, [samples, dim]. Not changed.

    Example:
        >>> even_moments(torch.tensor([[0.0, 5.0], [2.0, 5.0], [0.0, 5.0], [6.0, 5.0]])).kurtosis
        tensor([2., nan], dtype=torch.float64)
    """
    samples, mean = _mean(x)
    second, fourth = _zeros(x), _zeros(x)
    for chunk in small_chunks(x):
        square = (chunk - mean).square_()
        second += square.sum(0)
        fourth += square.square_().sum(0)
    return EvenMoments(mean, second / samples, fourth / samples)


def column_moments(x: Float[Tensor, "samples dim"]) -> ColumnMoments:
    """The central moments of every column, as `Moments.of(x)` gives them.

    Args:
        x: activations of any floating type, [samples, dim]. Not changed.

    Example:
        >>> column_moments(torch.tensor([[0.0], [2.0], [0.0], [6.0]])).kurtosis
        tensor([2.], dtype=torch.float64)
    """
    samples, mean = _mean(x)
    second, third, fourth = _zeros(x), _zeros(x), _zeros(x)
    for chunk in small_chunks(x):
        centred = chunk - mean
        square = centred.square()
        second += square.sum(0)
        third += torch.linalg.vecdot(square, centred, dim=0)
        fourth += square.square_().sum(0)
    return ColumnMoments(mean, second / samples, fourth / samples, third / samples)


def _mean(x: Tensor) -> tuple[int, Tensor]:
    """The number of rows, 1 where there are none, and the mean of every column."""
    _require_matrix(x)
    samples = max(x.shape[0], 1)
    return samples, sum((chunk.sum(0) for chunk in small_chunks(x)), start=_zeros(x)) / samples


def row_shares(
    x: Float[Tensor, "samples dim"], *, units: Float[Tensor, " dim"] | None = None
) -> Float[Tensor, " dim"]:
    """Every axis' share of the kurtosis across axes, as `SampleKurtosis.of(x / units).share`.

    Args:
        x: activations of any floating type, [samples, dim]. Not changed.
        units: every axis is divided by its own first, [dim]; None for none.

    Returns:
        [dim], with mean in [1, dim]; NaN where every row is zero.
    """
    _require_matrix(x)
    dim = x.shape[1]
    total, count = _zeros(x), 0
    for chunk in small_chunks(x):
        square = (chunk if units is None else chunk / units).square()
        energy = square.sum(1, keepdim=True)
        zero = energy == 0
        # Rows of zeros add zeros to the sum, and are not counted.
        fraction = square.div_(energy.masked_fill_(zero, 1.0))
        total += fraction.square_().sum(0)
        count += chunk.shape[0] - int(zero.sum())
    return total * (dim**2 / count) if count else torch.full_like(total, math.nan)


def root_mean_square(x: Float[Tensor, "samples dim"]) -> Float[Tensor, " dim"]:
    """The root mean square of every column, in float64, [dim]; 1 for a column of zeros."""
    power = sum((chunk.square().sum(0) for chunk in small_chunks(x)), start=_zeros(x))
    size = (power / max(x.shape[0], 1)).sqrt()
    return torch.where(size > 0, size, 1.0)


def float64_device(x: Tensor) -> torch.device:
    """The device that holds `x` in float64: its own, or the CPU where its own has no float64."""
    return torch.device("cpu") if x.device.type == "mps" else x.device


def _require_matrix(x: Tensor) -> None:
    if x.ndim != 2:
        raise ValueError(
            f"expected activations of shape [samples, dim], got {list(x.shape)}: "
            "move the feature axis last and flatten the others"
        )


def _zeros(x: Tensor) -> Tensor:
    return torch.zeros(x.shape[1], dtype=torch.float64, device=float64_device(x))


def small_chunks(x: Tensor) -> Iterator[Tensor]:
    """Consecutive rows in float64, few enough at a time to stay in a processor's cache."""
    device = float64_device(x)
    elements = _CACHED_ELEMENTS if device.type == "cpu" else _CHUNK_ELEMENTS_ACCELERATOR
    for rows in x.detach().split(max(1, elements // max(1, x.shape[1]))):
        yield rows.to(device=device, dtype=torch.float64)


def _chunks(x: Tensor) -> Iterator[Tensor]:
    """Consecutive rows of `x` in float64, few enough at a time that memory stays bounded."""
    device = float64_device(x)
    elements = _CHUNK_ELEMENTS_CPU if device.type == "cpu" else _CHUNK_ELEMENTS_ACCELERATOR
    for rows in x.detach().split(max(1, elements // x.shape[1])):
        yield rows.to(device=device, dtype=torch.float64)
