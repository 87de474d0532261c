"""Exact nulls: what a statistic averages to over all rotations of the data, without rotating.

Throughout, n is the number of axes, Q is uniform (Haar) on the rotations of the space and x is
fixed data, so every mean and standard deviation is over bases, not over samples.
"""

import dataclasses
import math

import torch
from jaxtyping import Float
from torch import Tensor

from basis_probe.statistics.gram import gram
from basis_probe.statistics.moments import float64_device

# The second moment of whitened data may miss the identity by rounding, not by estimation.
_WHITE = 1e-6
# Inner products of this many vectors with all others are held at a time.
_COLUMNS_AT_ONCE = 1024
# To which degree the variance of the sum of absolute values is taken apart.
_HIGHEST_DEGREE = 16


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
    std, rests_on = _std_of_mean(rows, n, variance, pairs=pairs, generator=generator)
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
    std, rests_on = _std_of_mean(rows, n - 1, variance, pairs=pairs, generator=generator)
    source = f"3(n-1)/(n+1), Gegenbauer P4 in n-1 = {n - 1}{rests_on}"
    return ClosedForm(3 * (n - 1) / (n + 1), std, source, True)


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
    # tr S^2 is a sum of squared inner products, of columns or of rows: whichever are fewer. Blocks
    # keep the products from filling memory at wide layers.
    vectors = rows if samples < dim else rows.T
    found = rows.new_zeros(())
    for block in vectors.split(_COLUMNS_AT_ONCE):
        found += (block @ vectors.T).square().sum()
    return pooled_kurtosis_of(rows.square().sum(1), float(found / max(1, samples) ** 2))


def pooled_kurtosis_of(squares: Float[Tensor, " samples"], trace_of_square: float) -> ClosedForm:
    """The same from the squared lengths of the samples about their mean, and tr S^2.

    Raises:
        ValueError: the data do not vary.
    """
    samples = len(squares)
    trace = float(squares.sum()) / samples if samples else math.nan
    if not trace > 0:
        raise ValueError(
            f"a kurtosis needs data that vary and hold no NaN, got {samples} samples of "
            f"total variance {trace}: leave this site out"
        )
    mean = 3 * float(squares.square().mean()) / (2 * trace_of_square + trace**2)
    return ClosedForm(mean, None, "3 E|x|^4 / (2 tr S^2 + (tr S)^2)", False)


def sample_hoyer_under_rotation(
    x: Float[Tensor, "samples dim"],
    *,
    pairs: int = 512,
    generator: torch.Generator | None = None,
) -> ClosedForm:
    """The null of Hoyer's sparsity across axes, averaged over samples, is known exactly.

    For u uniform on the sphere, as Qx / |x| is, the sum of absolute values has

        E|u|_1   = n G(n/2) / (sqrt(pi) G((n+1)/2))
        Var|u|_1 = 1 + 2 (n-1)/pi - (E|u|_1)^2,

    and h(x) = (sqrt n - |x|_1/|x|_2) / (sqrt n - 1) follows. |u|_1 is a sum over an orthonormal
    frame of one function of <e_j, u>, so its part of degree k on the sphere has the variance

        V_k = N_k (E |t| P_k(t))^2 (n + n (n-1) P_k(0)),

    N_k harmonics of degree k in n variables and P_k the Gegenbauer polynomial with P_k(1) = 1;
    V_2 = 0 because the frame is tight. Two samples at cosine r covary by sum_k V_k P_k(r). Degrees
    4 to 16 are summed; what is left of the variance is given to degree 16, whose polynomial is
    near 0 for all but parallel samples.

    Args:
        x: activations, [samples, dim]; rows of zeros are left out.
        pairs: as in `sample_kurtosis_under_rotation`.
        generator: as in `sample_kurtosis_under_rotation`.

    Raises:
        ValueError: `x` is not a matrix with two axes and a non-zero row, or `pairs` is below 2.

    Source: moments of the uniform law on the sphere; the theorems of Funk-Hecke and of addition.

    Example:
        >>> null = sample_hoyer_under_rotation(torch.eye(768)[:1])
        >>> round(null.mean, 4), round(null.std, 4)
        (0.2094, 0.0079)
    """
    rows = _nonzero_rows(x)
    n = rows.shape[1]
    if n < 2:
        raise ValueError(f"sparsity across axes needs at least two of them, got {n}")
    length = mean_absolute_sum(n)
    spread = max(1 + 2 * (n - 1) / math.pi - length**2, 0.0)
    parts = {k: _variance_of_absolute_sum(n, k) for k in range(4, _HIGHEST_DEGREE + 1, 2)}
    parts[_HIGHEST_DEGREE] += max(spread - sum(parts.values()), 0.0)
    std, rests_on = _std_of_zonal_mean(rows, parts, pairs=pairs, generator=generator)
    scale = math.sqrt(n) - 1
    return ClosedForm(
        (math.sqrt(n) - length) / scale,
        None if std is None else std / scale,
        f"(sqrt n - E|u|_1) / (sqrt n - 1), Gegenbauer to degree {_HIGHEST_DEGREE} in n = "
        f"{n}{rests_on}",
        True,
    )


def mean_absolute_sum(dim: int) -> float:
    """E|u|_1 = n G(n/2) / (sqrt(pi) G((n+1)/2)) for u uniform on the sphere in `dim` dimensions.

    Example:
        >>> round(mean_absolute_sum(2), 6) == round(4 / math.pi, 6)
        True
    """
    ratio = math.lgamma(dim / 2) - math.lgamma((dim + 1) / 2)
    return dim * math.exp(ratio) / math.sqrt(math.pi)


def _variance_of_absolute_sum(n: int, degree: int) -> float:
    """The variance over rotations of the part of `degree`, even, of |Qu|_1 for a unit vector u.

    By Rodrigues' formula E |t| P_k(t) is the k-th derivative of |t|, twice the (k-2)-nd of a delta,
    against (1 - t^2)^(k + (n-3)/2), up to known factors.
    """
    k, half = degree, degree // 2
    if n == 2:
        harmonics = 2.0
    else:
        harmonics = math.exp(
            math.log(2 * k + n - 2)
            + math.lgamma(k + n - 2)
            - math.lgamma(k + 1)
            - math.lgamma(n - 1)
        )
    power = k + (n - 3) / 2
    log_projection = (
        math.log(2)
        + math.lgamma(n / 2)
        - 0.5 * math.log(math.pi)
        - k * math.log(2)
        - math.lgamma(k + (n - 1) / 2)
        + math.lgamma(k - 1)
        + math.lgamma(power + 1)
        - math.lgamma(half)
        - math.lgamma(power - half + 2)
    )
    log_at_zero = (
        math.lgamma(half + 0.5)
        - math.lgamma(0.5)
        + math.lgamma((n - 1) / 2)
        - math.lgamma(half + (n - 1) / 2)
    )
    at_zero = (-1) ** half * math.exp(log_at_zero)
    frame = n + n * (n - 1) * at_zero
    return math.exp(2 * log_projection) * harmonics * max(frame, 0.0)


def _std_of_zonal_mean(
    rows: Float[Tensor, "samples dim"],
    variances: dict[int, float],
    *,
    pairs: int,
    generator: torch.Generator | None,
) -> tuple[float | None, str]:
    """sqrt(mean_{s,t} sum_k V_k P_k(cos_st)), and words for what it rests on."""
    if pairs < 2:
        raise ValueError(f"pairs must be at least 2 samples to form pairs of, got {pairs}")
    samples, n = rows.shape
    subset, words = rows, ""
    if samples > pairs:
        if generator is None:
            return None, ""
        chosen = torch.randperm(samples, generator=generator)[:pairs].to(rows.device)
        subset, words = rows[chosen], f"; std from {pairs} of {samples} samples"
    subset = _of_length_one(subset)
    cosines = (subset @ subset.T).clamp(-1, 1)
    before, now = torch.ones_like(cosines), cosines
    total = torch.zeros_like(cosines)
    for k in range(1, max(variances)):
        # (k + n - 2) P_{k+1} = (2k + n - 2) r P_k - k P_{k-1}
        before, now = now, ((2 * k + n - 2) * cosines * now - k * before) / (k + n - 2)
        if k + 1 in variances:
            total += variances[k + 1] * now
    whole = sum(variances.values())
    count = len(subset)
    off_diagonal = (total.sum().item() - count * whole) / max(1, count * (count - 1))
    if samples > pairs:
        off_diagonal = max(off_diagonal, 0.0)
    mean = whole / samples + (1 - 1 / samples) * off_diagonal
    return math.sqrt(max(mean, 0.0)), words


def _std_of_mean(
    rows: Float[Tensor, "samples dim"],
    sphere: int,
    variance: float,
    *,
    pairs: int,
    generator: torch.Generator | None,
) -> tuple[float | None, str]:
    """sqrt(variance * mean_{s,t} P(cos_st)) over rows that are not zero, and what it rests on."""
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
    # A row with itself has P = 1, of those in the subset and of all.
    off_diagonal = (_zonal_sum(rows[chosen], sphere) - pairs) / (pairs * (pairs - 1))
    mean = 1 / samples + (1 - 1 / samples) * max(off_diagonal, 0.0)
    return (variance * mean) ** 0.5, f"; std from {pairs} of {samples} samples"


def _zonal_sum(rows: Float[Tensor, "samples dim"], sphere: int) -> float:
    """sum_{s,t} P(cos_st), P the degree-4 Gegenbauer polynomial in R^sphere."""
    n, count = sphere, len(rows)
    product = gram(_of_length_one(rows)).square_()
    fourth = float(product.flatten().dot(product.flatten()))
    second = float(product.sum())
    return ((n + 2) * (n + 4) * fourth - 6 * (n + 2) * second + 3 * count**2) / (n**2 - 1)


def _of_length_one(rows: Tensor) -> Tensor:
    exact = rows.to(float64_device(rows)).to(torch.float64)
    return exact / exact.norm(dim=1, keepdim=True)


def _matrix(x: Tensor) -> Tensor:
    if x.ndim != 2 or x.shape[1] == 0:
        raise ValueError(
            f"expected activations of shape [samples, dim] with dim > 0, got {list(x.shape)}: "
            "move the feature axis last and flatten the others"
        )
    return x.detach()


def _float64_matrix(x: Tensor) -> Tensor:
    return _matrix(x).to(float64_device(x)).to(torch.float64)


def _without_row_means(x: Tensor) -> Tensor:
    """Rows off the all-ones line; rows that were constant become exactly zero."""
    rows = _float64_matrix(x)
    centred = rows - rows.mean(1, keepdim=True)
    rounding = 64 * torch.finfo(torch.float64).eps * rows.abs().amax(1, keepdim=True)
    constant = centred.abs().amax(1, keepdim=True) <= rounding
    return torch.where(constant, 0.0, centred)


def _nonzero_rows(x: Tensor) -> Tensor:
    rows = _matrix(x)
    some = rows.any(1)
    rows = rows if bool(some.all()) else rows[some]
    if rows.shape[0] == 0:
        raise ValueError(
            f"a kurtosis needs a row that is not constant, got none among {x.shape[0]}: "
            "leave this site out"
        )
    return rows
