"""Exact nulls: what a statistic averages to over all rotations of the data, without rotating.

Throughout, n is the number of axes, Q is uniform (Haar) on the rotations of the space and x is
fixed data, so every mean and standard deviation is over bases, not over samples.
"""

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

from basis_probe.statistics.moments import float64_device

# The second moment of whitened data may miss the identity by rounding, not by estimation.
_WHITE = 1e-6
# Inner products of this many vectors with all others are held at a time.
_COLUMNS_AT_ONCE = 1024


@dataclasses.dataclass(frozen=True)
class ClosedForm:
    """The mean of a statistic over all rotations, and its standard deviation where it is known."""

    mean: float
    """Expectation over rotations."""
    std: float | None
    """Standard deviation over rotations; None where no formula is known or asked for."""
    source: str
    """The formula, and how many pairs of samples the standard deviation rests on."""
    exact: bool
    """True where `mean` is the expectation itself, False where it is a ratio of expectations."""


def sample_kurtosis_under_rotation(
    x: Float[Tensor, "samples dim"],
    *,
    pairs: int = 512,
    generator: torch.Generator | None = None,
) -> ClosedForm:
    """The null of the per-sample kurtosis across axes, averaged over samples, is known exactly.

    kappa(x) = n sum_j x_j^4 / (sum_j x_j^2)^2 has, for any fixed x != 0,

        E kappa(Qx)   = 3n / (n+2)
        Var kappa(Qx) = V = 24 n^2 (n-1) / ((n+2)^2 (n+4) (n+6))
        Cov(kappa(Qx), kappa(Qy)) = V P(cos(x, y)),
        P(r) = [(n+2)(n+4) r^4 - 6(n+2) r^2 + 3] / (n^2 - 1),

    P being the Gegenbauer polynomial of degree 4 with P(1) = 1: kappa is a constant plus a harmonic
    of degree 4 on the sphere. So the average over T samples has the same mean and the variance
    V mean_{s,t} P(cos_st), which is V/T for unrelated samples and V itself for parallel ones.

    Args:
        x: activations, [samples, dim]; rows of zeros are left out.
        pairs: above this many samples the average of P over pairs is estimated from a random
            subset of this size (the diagonal, P = 1, is weighted for all samples). The estimate is
            unbiased but not below 0: with far more than `pairs` unrelated samples the standard
            deviation comes out too large, never as nothing.
        generator: draws the subset; without one, more samples than `pairs` leave `std` None.

    Raises:
        ValueError: `x` is not a matrix with axes and a non-zero row, or `pairs` is below 2.

    Source: moments of the uniform law on the sphere; the addition theorem for spherical harmonics.

    Example:
        >>> null = sample_kurtosis_under_rotation(torch.eye(768)[:1])
        >>> round(null.mean, 4), round(null.std, 4)
        (2.9922, 0.1751)
    """
    rows = _nonzero_rows(x)
    n = rows.shape[1]
    variance = 24 * n**2 * (n - 1) / ((n + 2) ** 2 * (n + 4) * (n + 6))
    unit = rows / rows.norm(dim=1, keepdim=True)
    std, rests_on = _std_of_mean(unit, n, variance, pairs=pairs, generator=generator)
    return ClosedForm(3 * n / (n + 2), std, f"3n/(n+2), Gegenbauer P4 in n = {n}{rests_on}", True)


def centred_sample_kurtosis_under_rotation(
    x: Float[Tensor, "samples dim"],
    *,
    pairs: int = 512,
    generator: torch.Generator | None = None,
) -> ClosedForm:
    """The null of the kurtosis about each row's own mean, under rotations that fix the ones line.

    With m_t the mean over axes of row t, b(x) = n sum_j (x_j - m)^4 / (sum_j (x_j - m)^2)^2 has the
    moments of the sample kurtosis of n Gaussian values,

        E b   = 3(n-1) / (n+1)
        Var b = V = 24 n (n-2) (n-3) / ((n+1)^2 (n+3) (n+5)).

    The complement of the all-ones line has dimension m = n - 1. On its sphere b is, up to a factor,
    the sum of <a_j, v>^4 over the corners a_1 .. a_n of a regular simplex. The Laplacian of that is
    a multiple of the sum of <a_j, v>^2, which is constant because a simplex is a tight frame, so
    there is no part of degree 2 and none of odd degree. Hence b is again a constant plus a harmonic
    of degree 4, now in m variables, and two rows covary by exactly V P(cos), with P the polynomial
    of `sample_kurtosis_under_rotation` for m in place of n.

    Rotations of the whole space with the rows centred afterwards share the mean, but not the
    standard deviation of the average: they do not keep the angles between centred rows.

    Args:
        x: activations, [samples, dim]; each row's mean is taken out here. Constant rows are left
            out.
        pairs: as in `sample_kurtosis_under_rotation`.
        generator: as in `sample_kurtosis_under_rotation`.

    Raises:
        ValueError: `x` is not a matrix with axes and a row that is not constant, or `pairs` is
            below 2.

    Source: R. A. Fisher (1930), moments of b2 in Gaussian samples; the addition theorem.

    Example:
        >>> null = centred_sample_kurtosis_under_rotation(torch.eye(768)[:1])
        >>> round(null.mean, 5), round(null.std, 4)
        (2.9922, 0.1751)
    """
    rows = _nonzero_rows(_without_row_means(x))
    n = rows.shape[1]
    variance = 24 * n * (n - 2) * (n - 3) / ((n + 1) ** 2 * (n + 3) * (n + 5))
    unit = rows / rows.norm(dim=1, keepdim=True)
    std, rests_on = _std_of_mean(unit, n - 1, variance, pairs=pairs, generator=generator)
    source = f"3(n-1)/(n+1), Gegenbauer P4 in n-1 = {n - 1}{rests_on}"
    return ClosedForm(3 * (n - 1) / (n + 1), std, source, True)


def kurtosis_under_whitened_rotation(
    w: Float[Tensor, "samples dim"],
    *,
    pairs: int = 512,
    generator: torch.Generator | None = None,
) -> ClosedForm:
    """The null of the per-axis kurtosis of whitened data, averaged over axes: Mardia's kurtosis.

    Every direction of whitened data has variance 1, so its kurtosis is E<q, w>^4 and the average
    over the axes of a random frame has the mean

        3 E|w|^4 / (n (n+2)).

    Written as the average over samples of |w_t|^4 kappa_t / n^2, it has the variance
    V mean_{s,t} |w_s|^4 |w_t|^4 P(cos_st) / n^4, with V and P of `sample_kurtosis_under_rotation`.

    Args:
        w: whitened activations, [samples, dim]: mean 0, second moments the identity. `exact` is
            True where this holds on `w` itself, False where the whitening was fitted elsewhere.
        pairs: as in `sample_kurtosis_under_rotation`. Heavy tails want more.
        generator: as in `sample_kurtosis_under_rotation`.

    Raises:
        ValueError: `w` is not a matrix with axes and a non-zero row, or `pairs` is below 2.

    Source: K. V. Mardia, Biometrika 57 (1970) 519, beta_{2,p} = E|w|^4.

    Example:
        >>> corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 3)
        >>> null = kurtosis_under_whitened_rotation(corners)
        >>> round(null.mean, 4), null.exact
        (1.8, True)
    """
    rows = _float64_matrix(w)
    n = rows.shape[1]
    _nonzero_rows(rows)
    squares = rows.square().sum(1)
    mean = 3 * squares.square().mean().item() / (n * (n + 2))
    variance = 24 * n**2 * (n - 1) / ((n + 2) ** 2 * (n + 4) * (n + 6)) / n**4
    std, rests_on = _std_of_mean(rows, n, variance, pairs=pairs, generator=generator)
    return ClosedForm(mean, std, f"Mardia: 3 E|w|^4 / (n(n+2)), n = {n}{rests_on}", _is_white(rows))


def pooled_kurtosis_under_rotation(x: Float[Tensor, "samples dim"]) -> ClosedForm:
    """The null of the pooled per-axis kurtosis, to leading order: 3 for Gaussian data.

    The pooled kurtosis mean_j E(x_j - mu_j)^4 / mean_j (Var x_j)^2 has numerator and denominator
    whose expectations over rotations are 3 E|x|^4 / (n(n+2)) and (2 tr S^2 + (tr S)^2) / (n(n+2))
    for the covariance S, so that their ratio is

        K0 = 3 E|x|^4 / (2 tr S^2 + (tr S)^2),    x centred.

    It is a ratio of expectations. The expectation of the ratio, or of a mean of per-axis ratios,
    differs from it unless S is a multiple of the identity.

    Args:
        x: activations, [samples, dim]; the mean over samples is taken out here.

    Raises:
        ValueError: `x` is not a matrix with axes, or does not vary.

    Source: fourth moments of the uniform law on the sphere, E u_i^4 = 3/(n(n+2)).

    Example:
        >>> x = torch.randn(4096, 8, generator=torch.Generator().manual_seed(0))
        >>> null = pooled_kurtosis_under_rotation(x * torch.arange(1, 9))
        >>> abs(null.mean - 3) < 0.1, null.std, null.exact
        (True, None, False)
    """
    rows = _float64_matrix(x)
    rows = rows - rows.mean(0)
    samples, dim = rows.shape
    squares = rows.square().sum(1)
    trace = squares.sum() / samples
    if samples == 0 or not trace > 0:
        raise ValueError(
            f"a kurtosis needs data that vary and hold no NaN, got {samples} samples of "
            f"total variance {trace.item()}: leave this site out"
        )
    # tr S^2 is a sum of squared inner products, of columns or of rows: whichever are fewer. Blocks
    # keep the products from filling memory at wide layers.
    vectors = rows if samples < dim else rows.T
    trace_of_square = torch.zeros_like(trace)
    for block in vectors.split(_COLUMNS_AT_ONCE):
        trace_of_square += (block @ vectors.T).square().sum()
    trace_of_square /= samples**2
    mean = 3 * squares.square().mean() / (2 * trace_of_square + trace**2)
    return ClosedForm(mean.item(), None, "3 E|x|^4 / (2 tr S^2 + (tr S)^2)", False)


def _std_of_mean(
    rows: Float[Tensor, "samples dim"],
    sphere: int,
    variance: float,
    *,
    pairs: int,
    generator: torch.Generator | None,
) -> tuple[float | None, str]:
    """sqrt(variance * mean_{s,t} |x_s|^4 |x_t|^4 P(cos_st)), and words for what it rests on."""
    if pairs < 2:
        raise ValueError(f"pairs must be at least 2 samples to form pairs of, got {pairs}")
    samples = rows.shape[0]
    if variance == 0:
        return 0.0, ""
    if samples <= pairs:
        return (variance * max(_zonal_sum(rows, sphere) / samples**2, 0.0)) ** 0.5, ""
    if generator is None:
        return None, ""
    chosen = torch.randperm(samples, generator=generator)[:pairs].to(rows.device)
    subset = rows[chosen]
    diagonal = subset.square().sum(1).square().square().sum().item()
    off_diagonal = (_zonal_sum(subset, sphere) - diagonal) / (pairs * (pairs - 1))
    # The diagonal needs no subset: it is the mean of |x|^8 over all samples.
    diagonal = rows.square().sum(1).square().square().mean().item()
    mean = diagonal / samples + (1 - 1 / samples) * max(off_diagonal, 0.0)
    return (variance * mean) ** 0.5, f"; std from {pairs} of {samples} samples"


def _zonal_sum(rows: Float[Tensor, "samples dim"], sphere: int) -> float:
    """sum_{s,t} |x_s|^4 |x_t|^4 P(cos_st), P the degree-4 Gegenbauer polynomial in R^sphere."""
    n = sphere
    product = (rows @ rows.T).square()
    lengths = rows.square().sum(1)
    bound = torch.outer(lengths, lengths)
    terms = (n + 2) * (n + 4) * product**2 - 6 * (n + 2) * product * bound + 3 * bound**2
    return terms.sum().item() / (n**2 - 1)


def _float64_matrix(x: Tensor) -> Tensor:
    if x.ndim != 2 or x.shape[1] == 0:
        raise ValueError(
            f"expected activations of shape [samples, dim] with dim > 0, got {list(x.shape)}: "
            "move the feature axis last and flatten the others"
        )
    return x.detach().to(float64_device(x)).to(torch.float64)


def _without_row_means(x: Tensor) -> Tensor:
    """Rows off the all-ones line; rows that were constant become exactly zero."""
    rows = _float64_matrix(x)
    centred = rows - rows.mean(1, keepdim=True)
    rounding = 64 * torch.finfo(torch.float64).eps * rows.abs().amax(1, keepdim=True)
    constant = centred.abs().amax(1, keepdim=True) <= rounding
    return torch.where(constant, 0.0, centred)


def _nonzero_rows(x: Tensor) -> Tensor:
    rows = _float64_matrix(x)
    rows = rows[rows.abs().amax(1) > 0]
    if rows.shape[0] == 0:
        raise ValueError(
            f"a kurtosis needs a row that is not constant, got none among {x.shape[0]}: "
            "leave this site out"
        )
    return rows


def _is_white(rows: Tensor) -> bool:
    samples, dim = rows.shape
    if samples < dim:
        return False
    moments = rows.T @ rows / samples - torch.eye(dim, dtype=rows.dtype, device=rows.device)
    return bool(moments.abs().max() <= _WHITE and rows.mean(0).abs().max() <= _WHITE)
