"""The form of directions and of samples: skewness, negentropy, and the measures of sparsity.

Columns are directions over samples, rows are samples across axes. Everything is computed in float64
from a few rows at a time; only the Gini index and the median have to sort.
"""

import itertools
import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from basis_probe.statistics.moments import EvenMoments, even_moments, small_chunks

# The two constants of Hyvarinen's approximation that make its terms estimates of one quantity.
_ODD_WEIGHT = 36 / (8 * math.sqrt(3) - 9)
_EVEN_WEIGHT = 24 / (16 * math.sqrt(3) - 27)
_GAUSSIAN_BUMP = math.sqrt(0.5)

BELL = -0.5 * math.log2(math.e)
"""exp(-z^2/2) is two to the power of this times z^2, and powers of two take half of the time."""

# Columns are sorted this many elements at a time.
_SORTED_AT_ONCE = 2**18


# --- columns --------------------------------------------------------------------------------------


def column_negentropy(
    x: Float[Tensor, "samples dim"], moments: EvenMoments | None = None
) -> Float[Tensor, " dim"]:
    """How far every column is from Gaussian, in nats to second order, whatever the departure.

    With z the column at mean 0 and variance 1,

        J = 36/(8 sqrt 3 - 9) (E z exp(-z^2/2))^2
            + 24/(16 sqrt 3 - 27) (E exp(-z^2/2) - sqrt(1/2))^2,

    the negentropy of the maximum-entropy law that has these two expectations. The first sees lack
    of symmetry; the second is positive before squaring for heavy tails and negative for flat laws,
    so both count. Both functions are bounded: one far value moves J through the variance only,
    where it would rule the kurtosis.

    The column is standardised by its standard deviation, not by median and absolute deviation: the
    approximation is one of laws with the Gaussian's variance, and the deviation about the median of
    a column that is mostly zero is zero.

    Args:
        x: activations of any floating type, [samples, dim]. Not changed.
        moments: those of x, where they are known.

    Returns:
        In [0, 6), [dim]: 0 for a Gaussian, 0.087 for a Laplace law (whose negentropy is 0.072),
        0.341 for two equally likely values; NaN for a column that does not vary.

    Source: A. Hyvarinen, "New approximations of differential entropy for independent component
        analysis and projection pursuit", NIPS 10 (1998), equations 16 and 17.

    Example:
        >>> coin = torch.tensor([[-1.0], [1.0]])
        >>> round(column_negentropy(coin).item(), 4)
        0.3406
    """
    moments = moments or even_moments(x)
    odd, even = torch.zeros_like(moments.mean), torch.zeros_like(moments.mean)
    scale = moments.variance.rsqrt()
    for chunk in small_chunks(x):
        z = (chunk - moments.mean).mul_(scale)
        bump = (z * z).mul_(-0.5).exp_()
        even += bump.sum(0)
        odd += torch.linalg.vecdot(z, bump, dim=0)
    samples = max(x.shape[0], 1)
    return torch.where(moments.varies, negentropy_of(odd / samples, even / samples), math.nan)


def negentropy_of(odd: Tensor, even: Tensor) -> Tensor:
    """The negentropy from E z exp(-z^2/2) and E exp(-z^2/2), as in `column_negentropy`."""
    return _ODD_WEIGHT * odd.square() + _EVEN_WEIGHT * (even - _GAUSSIAN_BUMP).square()


def column_hoyer(x: Float[Tensor, "samples dim"]) -> Float[Tensor, " dim"]:
    """Hoyer's sparsity of every column: 0 if all its values are equally large, 1 if one is not 0.

    (sqrt T - sum|x| / sqrt(sum x^2)) / (sqrt T - 1) over T samples; NaN for a column of zeros or a
    single sample.

    Source: P. O. Hoyer, JMLR 5 (2004) 1457.
    """
    samples = x.shape[0]
    if samples < 2:
        return torch.full((x.shape[1],), math.nan, dtype=torch.float64)
    absolute, square = _sums(x, torch.abs), _sums(x, torch.square)
    hoyer = (math.sqrt(samples) - absolute / square.sqrt()) / (math.sqrt(samples) - 1)
    return torch.where(square > 0, hoyer, math.nan)


def column_treves_rolls(x: Float[Tensor, "samples dim"]) -> Float[Tensor, " dim"]:
    """(E|x|)^2 / E x^2 of every column, in (0, 1]: *small* where few samples are active.

    1/pi for a rectified Gaussian, 2/pi for a Gaussian; NaN for a column of zeros.

    Source: A. Treves and E. T. Rolls, Network 2 (1991) 371; E. T. Rolls and M. J. Tovee (1995).
    """
    absolute, square = _sums(x, torch.abs), _sums(x, torch.square)
    ratio = absolute.square() / (square * max(x.shape[0], 1))
    return torch.where(square > 0, ratio, math.nan)


def column_half_norm(x: Float[Tensor, "samples dim"]) -> Float[Tensor, " dim"]:
    """1 - (E|x|^(1/2))^2 / E|x| of every column, in [0, 1): 0 if all values are equally large.

    The root weighs small values more than Hoyer's measure does. NaN for a column of zeros.

    Source: the l^p measures in N. Hurley and S. Rickard, IEEE Trans. Inf. Theory 55 (2009) 4723,
        with p = 1/2, relative to p = 1.
    """
    absolute = _sums(x, torch.abs)
    root = _sums(x, lambda chunk: chunk.abs().sqrt_())
    ratio = root.square() / (absolute * max(x.shape[0], 1))
    return torch.where(absolute > 0, (1 - ratio).clamp_min(0.0), math.nan)


def column_gini(x: Float[Tensor, "samples dim"]) -> Float[Tensor, " dim"]:
    """The Gini index of |x| in every column, in [0, 1): 0 if all values are equally large.

    sqrt 2 - 1 for a Gaussian; NaN for a column of zeros.

    Source: N. Hurley and S. Rickard, IEEE Trans. Inf. Theory 55 (2009) 4723.
    """
    samples = max(x.shape[0], 1)
    columns = x.detach().T.split(max(1, _SORTED_AT_ONCE // samples))
    parts = [_gini(block.to(torch.float64).abs()) for block in columns]
    return torch.cat(parts) if parts else x.new_zeros(0, dtype=torch.float64)


def _sums(x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    total = torch.zeros(x.shape[1], dtype=torch.float64)
    for chunk in small_chunks(x):
        total = total.to(chunk.device) + function(chunk).sum(0)
    return total


def _gini(rows: Float[Tensor, "row value"]) -> Float[Tensor, " row"]:
    """The Gini index of non-negative rows."""
    count = rows.shape[1]
    ascending = rows.sort(1).values
    rank = 2 * torch.arange(1, count + 1, dtype=rows.dtype, device=rows.device) - count - 1
    total = rows.sum(1)
    return torch.where(total > 0, (ascending @ rank) / (count * total), math.nan)


# --- rows -----------------------------------------------------------------------------------------


def credited(
    x: Float[Tensor, "samples dim"],
    measure: Callable[[Tensor], Tensor],
    *,
    units: Float[Tensor, " dim"] | None = None,
) -> Float[Tensor, " dim"]:
    """A measure of samples, credited to axes by their share of each sample's energy.

    The axes of sample t with measure m_t get n m_t x_tj^2 / sum_k x_tk^2, so that their mean over
    axes is the measure, and everything is averaged over samples. Samples of zeros, and those whose
    measure is NaN, are left out.

    Args:
        x: activations of any floating type, [samples, dim]. Not changed.
        measure: absolute values, [rows, dim] -> one number a row, [rows].
        units: every axis is divided by its own first, [dim]; None for none.

    Returns:
        [dim]; NaN where no sample has a measure.

    Example:
        >>> x = torch.tensor([[3.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
        >>> credited(x, row_participation)
        tensor([2., 1.], dtype=torch.float64)
    """
    dim = x.shape[1]
    total, count = torch.zeros(dim, dtype=torch.float64), 0
    for chunk in small_chunks(x):
        size = (chunk if units is None else chunk / units).abs()
        # The largest first: squares of large values must not leave the range of float64.
        largest = size.amax(1)
        some = (largest > 0).nonzero().squeeze(1)
        size = size[some] / largest[some, None]
        values = measure(size)
        square = size.square()
        weight = (values / square.sum(1)).nan_to_num(0.0)
        total = total.to(chunk.device) + weight @ square
        count += int((~values.isnan()).sum())
    return total * (dim / count) if count else torch.full_like(total, math.nan)


def row_hoyer(rows: Float[Tensor, "row dim"]) -> Float[Tensor, " row"]:
    """Hoyer's sparsity of every row of absolute values across its axes; NaN for a single axis."""
    dim = rows.shape[1]
    if dim < 2:
        return torch.full((rows.shape[0],), math.nan, dtype=rows.dtype)
    return (math.sqrt(dim) - rows.sum(1) / rows.norm(dim=1)) / (math.sqrt(dim) - 1)


def row_treves_rolls(rows: Float[Tensor, "row dim"]) -> Float[Tensor, " row"]:
    """(mean |x|)^2 / mean x^2 of every row of absolute values, in [1/n, 1]."""
    return rows.mean(1).square() / rows.square().mean(1)


def row_half_norm(rows: Float[Tensor, "row dim"]) -> Float[Tensor, " row"]:
    """1 - (mean |x|^(1/2))^2 / mean |x| of every row of absolute values, in [0, 1 - 1/n]."""
    return (1 - rows.sqrt().mean(1).square() / rows.mean(1)).clamp_min(0.0)


def row_gini(rows: Float[Tensor, "row dim"]) -> Float[Tensor, " row"]:
    """The Gini index of every row of absolute values, in [0, 1 - 1/n]."""
    return _gini(rows)


def row_participation(rows: Float[Tensor, "row dim"]) -> Float[Tensor, " row"]:
    """(sum x^2)^2 / sum x^4 of every row of absolute values, in [1, n]: as many axes as count."""
    square = rows.square()
    return square.sum(1).square() / square.square().sum(1)


SPOTLIGHT = 0.8
"""How near a sample must be to a direction to lie in its cone; above cos 45 degrees."""

# So many of a row's largest values hold every pair whose sum is that of a cone between two axes.
_LEADING = 4


def spotlight(
    x: Float[Tensor, "samples dim"], *, units: Float[Tensor, " dim"] | None = None
) -> Float[Tensor, " dim"]:
    """For every axis the share of samples near it less that halfway to the others, in [-1/4, 1/2].

    Of the planes of the axis with each other one: half of the share of samples whose cosine with
    the axis, or with its opposite, is at least `SPOTLIGHT`, less a quarter of the share of those
    with such a cosine halfway to the other axis or its opposite, averaged over the others. NaN for
    a single axis, and where all samples are zero.

    Args:
        x: activations.
        units: by what axes are divided first; None for nothing.
    """
    rows = (x if units is None else x / units).abs()
    # Against the largest value, so that no square leaves the range of numbers.
    rows = rows / rows.amax(1, keepdim=True)
    rows = rows[rows.isfinite().all(1)]
    dim = x.shape[1]
    if dim < 2 or not len(rows):
        return torch.full((dim,), math.nan, dtype=x.dtype, device=x.device)
    rows = rows / rows.norm(dim=1, keepdim=True)
    near = (rows >= SPOTLIGHT).to(x.dtype).mean(0)
    values, axes = rows.topk(min(_LEADING, dim), dim=1)
    between = torch.zeros_like(near)
    for a, b in itertools.combinations(range(values.shape[1]), 2):
        inside = (values[:, a] + values[:, b]) / math.sqrt(2) >= SPOTLIGHT
        for place in (a, b):
            between += torch.bincount(axes[inside, place], minlength=dim).to(between)
    return near / 2 - between / (4 * (dim - 1) * len(rows))


def row_max_median(rows: Float[Tensor, "row dim"]) -> Float[Tensor, " row"]:
    """Largest over median of every row of absolute values, at least 1; NaN for a median of 0."""
    ascending = rows.sort(1).values
    dim = rows.shape[1]
    median = (ascending[:, (dim - 1) // 2] + ascending[:, dim // 2]) / 2
    return torch.where(median > 0, ascending[:, -1] / median, math.nan)
