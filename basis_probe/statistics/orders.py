"""Three orders of privilege, never mixed: offsets, scale, and form at equal variance.

The kurtosis of a sample across axes answers to all three: a constant on one axis, unequal variances
and sparse features each raise it. Here each order has a statistic of its own, and a null in which
the axes are turned against it: mean and covariance turn along with the data, and so do the data
whitened by an equivariant rule, so that where the group holds the rotations each test is exact for
any activations whatever. Nothing is drawn at the width of the site but a few directions, so that
the tests are the same for 8 axes and for 8,192.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from basis_probe.algebra.haar import haar, haar_fixing
from basis_probe.algebra.remembered import remembered
from basis_probe.statistics.gram import gram
from basis_probe.statistics.p_values import Tail, tail_p

OFFSET, SCALE, FORM = "offset", "scale", "form"
"""The orders, by the moment that carries them: first, second, higher."""

RIDGE = 0.1
"""What is added to every variance before whitening, in units of the mean variance."""

SMALL = 0.1
"""An order that differs from its null by less than this part of it is small, however sure."""

_LARGE = 512
"""From so many axes principal directions of rows in single precision are found in it."""
_FAR_ABOVE_ROUNDING = 1e-3
"""At least half of the variances have to be larger than so much of the largest."""
_OFFSET_DRAWS = 9999
_SCALE_DRAWS = ((512, 1999), (1024, 999), (math.inf, 499))
_WIDE = 512
_LEADING = ((64, 32), (256, 16), (math.inf, 8))
"""Up to so many axes so many principal directions are drawn exactly: of more axes fewer shape the
law of their sum. With all 32 its tails are the same for spectra of seven kinds."""
_AT_ONCE = 2**17
"""So many numbers are drawn at a time: they stay in a cache, and are kept for other sites."""
_BULK = 0.02
_LEAST = 0.01
"""A principal direction with less than this part of the sum of squared variances is no leading one:
sums of many such are Gaussian. Without any that is larger, the tails of the law agree with those of
3,000 turned bases of 256 axes."""
_BEYOND_NOISE = 4.0
_GROUPS = 20
_FEWEST_GROUPS = 4
_FEWEST_LEFT = 8


@dataclasses.dataclass(frozen=True, eq=False)
class OrderTest:
    """One order: its statistic on the axes, and over turned axes.

    Attributes:
        order: "offset", "scale" or "form".
        statistic: what was computed, in words.
        observed: its value on the axes.
        null_mean, null_std: over turned axes; exact for offset and scale.
        effect: (observed - null_mean) / null_std.
        p_value: of at least as much on turned axes.
        contributions: [dim], what every axis adds to the statistic.
        gate: why the order may not be claimed however small p is, or an empty string.
    """

    order: str
    statistic: str
    observed: float
    null_mean: float
    null_std: float
    effect: float
    p_value: float
    contributions: Float[Tensor, " dim"]
    gate: str = ""


class Centred:
    """Rows about their mean, and what turns along with them: one decomposition for all orders.

    Args:
        x: activations, [samples, dim].
        line: True to take out the all-ones direction first, as where the group leaves it fixed.
        dtype: in which rows are whitened; None for float32, or float64 where they are that.
    """

    def __init__(
        self, x: Float[Tensor, "samples dim"], *, line: bool, dtype: torch.dtype | None = None
    ) -> None:
        rows = x.double()
        largest = rows.abs().max()
        if bool(largest > 0):
            # Nothing here depends on the unit: a power of two changes no digit, and keeps fourth
            # powers of very large and very small numbers finite.
            rows = torch.ldexp(rows, -torch.frexp(largest).exponent)
        if line:
            rows = rows - rows.mean(1, keepdim=True)
        own = torch.float64 if x.dtype is torch.float64 else torch.float32
        self.line, self.dtype = line, dtype or own
        self.mean = rows.mean(0)
        self.rows = rows - self.mean
        self.samples, self.dim = rows.shape
        # The dimension of the space that is turned.
        self.free = self.dim - 1 if line else self.dim

    @functools.cached_property
    def _products(self) -> Tensor:
        """The covariance, or the Gram matrix of the rows where that is smaller."""
        return self._products_of(self.rows)

    def _products_of(self, rows: Tensor) -> Tensor:
        return gram(rows.T if self.dim <= self.samples else rows) / self.samples

    @functools.cached_property
    def inner_products(self) -> Float[Tensor, "samples samples"]:
        """Those of the rows with each other, in the type in which rows are whitened."""
        return gram(self.rows.to(self.dtype))

    @functools.cached_property
    def _decomposed(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues, ascending, of the covariance or of the Gram matrix, and its vectors."""
        if min(self.dim, self.samples) >= _LARGE and self.dtype is torch.float32:
            # In half the time, and its error far below the ridge; but small variances would drown.
            values, vectors = torch.linalg.eigh(self._coarse_products)
            some = values[-self.free :]
            if float(some[len(some) // 2]) > _FAR_ABOVE_ROUNDING * float(some[-1]):
                return values.double().clamp_min_(0.0), vectors
        values, vectors = torch.linalg.eigh(self._products)
        return values.clamp_min(0.0), vectors

    @property
    def _coarse_products(self) -> Tensor:
        if self.dim <= self.samples:
            return self._products_of(self.rows.float())
        return self.inner_products / self.samples

    @property
    def spectrum(self) -> Float[Tensor, " rank"]:
        """The variances along the principal axes, the largest first."""
        return self._decomposed[0].flip(0)[: self.free]

    def without(self, gone: Sequence[int]) -> Centred:
        """The rows on the other axes; turns of these leave their own all-ones direction fixed."""
        kept = torch.ones(self.dim, dtype=torch.bool)
        kept[list(gone)] = False
        left = (self.rows + self.mean)[:, kept.to(self.rows.device)]
        return Centred(left, line=self.line, dtype=self.dtype)

    def spectrum_of(self, kept: Int[Tensor, " kept"]) -> Float[Tensor, " rank"]:
        """The variances along the principal axes of some of the axes, the largest first.

        Where turns leave the all-ones direction fixed, that of these axes is taken out.
        """
        if self.dim <= self.samples:
            products = self._products[kept[:, None], kept]
            if self.line:
                products = products - products.mean(0) - products.mean(1, keepdim=True)
                products = products + self._products[kept[:, None], kept].mean()
        else:
            gone = torch.ones(self.dim, dtype=torch.bool, device=kept.device)
            gone[kept] = False
            taken = self.rows[:, gone.to(self.rows.device)]
            products = self._products - taken @ taken.T / self.samples
            if self.line:
                # The sum of all axes is zero, so that of those left is that of the others, negated.
                sums = taken.sum(1)
                products = products - torch.outer(sums, sums) / (len(kept) * self.samples)
        free = len(kept) - 1 if self.line else len(kept)
        return torch.linalg.eigvalsh(products).clamp_min(0.0).flip(0)[:free]

    @functools.cached_property
    def variances(self) -> Float[Tensor, " dim"]:
        """The variances along the axes."""
        return self.rows.square().mean(0)

    def variances_of(self, kept: Int[Tensor, " kept"]) -> Float[Tensor, " kept"]:
        """The variances along some of the axes, off their own all-ones direction as above."""
        if not self.line or len(kept) == self.dim:
            return self.variances[kept]
        some = self.rows[:, kept]
        return (some - some.mean(1, keepdim=True)).square().mean(0)

    @functools.cached_property
    def whitened(self) -> Float[Tensor, "samples dim"]:
        """(S + ridge tr S / m I)^(-1/2) applied to the rows: turning the rows turns it along."""
        values, vectors = self._decomposed
        ridge = RIDGE * float(values.sum()) / self.free
        if not ridge > 0:
            return self.rows
        scale = (values + ridge).rsqrt()
        # Nothing is scaled by more than the ridge lets it be, so that products in single precision
        # are as exact as the rows they are made of.
        turn, rows = (vectors * scale).to(self.dtype), self.rows.to(self.dtype)
        back = vectors.to(self.dtype).T
        # The smaller of the three is made first.
        even = turn @ back
        return rows @ even if self.dim <= self.samples else even @ rows

    @functools.cached_property
    def whitened_root(self) -> Float[Tensor, "samples samples"] | None:
        """The symmetric root of the whitened rows' inner products; None where rows are no fewer.

        The whitened rows are this times an orthonormal frame of as many directions, and turned
        uniformly the frame has the law of any other: turned rows can be made of this alone.
        """
        values, vectors = self._decomposed
        ridge = RIDGE * float(values.sum()) / self.free
        if self.line or self.samples >= self.dim or not ridge > 0:
            return None
        size = (values / (values + ridge)).mul_(self.samples).sqrt_()
        return (vectors * size).to(self.dtype) @ vectors.to(self.dtype).T


def offset(
    rows: Centred, examples: Int[Tensor, " samples"], *, seed: int, draws: int = _OFFSET_DRAWS
) -> OrderTest:
    """Whether the mean activation lies along few axes: its kurtosis across axes, against turns.

    kappa = n sum_j m_j^4 / (sum_j m_j^2)^2, in [1, n]. Its law under turns is that of a direction
    drawn uniformly on the sphere, whatever the mean is. A mean that is sampling noise is no offset:
    the gate asks whether it is longer than the means of the examples allow by four standard errors,
    by what no turn changes, so that the test stays exact.

    Args:
        rows: the rows.
        examples: which sequence or image every row is of, [samples].
        seed: seeds the directions of the null.
        draws: how many of them.

    Example:
        >>> x = torch.randn(400, 32, generator=torch.Generator().manual_seed(0)).double()
        >>> x[:, 5] += 9
        >>> found = offset(Centred(x, line=False), torch.arange(400), seed=0)
        >>> int(found.contributions.argmax()), found.p_value < 1e-3, found.gate
        (5, True, '')
    """
    dim, line, mean = rows.dim, rows.line, rows.mean
    statistic = "kurtosis of the mean across axes"
    expected, std = sphere_kurtosis(dim, line=line)
    energy = float(mean.square().sum())
    if not energy > 0:
        nothing = torch.zeros(dim, dtype=torch.float64)
        return _untested(OFFSET, statistic, expected, std, nothing, "the mean is zero")
    contributions = dim * mean.pow(4) / energy**2
    null = _sphere_draws(dim, line, seed, draws)
    return _tested(OFFSET, statistic, contributions, null, expected, std, _noise(rows, examples))


def _noise(rows: Centred, examples: Tensor) -> str:
    """Why a mean is not taken for an offset: it is no longer than sampling makes it."""
    place = examples.unique(return_inverse=True)[1].to(rows.rows.device)
    count = int(place.max()) + 1
    if count < 2:
        return "all rows are of one example, so that its mean cannot be told from an offset"
    sums = torch.zeros(count, rows.dim, dtype=torch.float64, device=rows.rows.device)
    sums.index_add_(0, place, rows.rows + rows.mean)
    means = sums * (count / rows.samples)
    residual = (means - means.mean(0)) / math.sqrt(count * (count - 1))
    lengths = residual.square().sum(1)
    few = count <= rows.dim
    products = gram(residual if few else residual.T)
    pairs = (products.square().sum() - lengths.square().sum()) * count / (count - 1)
    spread = math.sqrt(2 * max(float(pairs), 1e-300))
    beyond = (float(rows.mean.square().sum()) - float(lengths.sum())) / spread
    return "" if beyond > _BEYOND_NOISE else "the mean is no longer than sampling makes it"


def scale(
    rows: Centred, examples: Int[Tensor, " samples"], *, seed: int, draws: int | None = None
) -> OrderTest:
    """Whether variance is more unequal on the axes than on turned axes.

    kappa = n sum_j S_jj^2 / (tr S)^2, in [1, n]. Its mean and variance under turns are exact; the
    shape of its law is that of a surrogate whose leading principal directions are drawn uniformly
    and whose remainder is Gaussian, shifted and scaled to them. Axes of one variance and heavy
    tails have unequal sample variances: the gate asks whether the inequality repeats between
    examples.

    Args:
        rows: the rows.
        examples: which sequence or image every row is of, [samples].
        seed: seeds the surrogate.
        draws: how many turned bases it has; None for 1,999, 999 above 512 axes, 499 above 1,024.

    Example:
        >>> x = torch.randn(400, 16, generator=torch.Generator().manual_seed(0)).double()
        >>> rows = Centred(x * torch.logspace(-1, 1, 16), line=False)
        >>> found = scale(rows, torch.arange(400), seed=0)
        >>> int(found.contributions.argmax()), found.p_value < 1e-3, found.gate
        (15, True, '')
    """
    dim = rows.dim
    statistic = "kurtosis of the axes' standard deviations"
    spectrum = rows.spectrum
    total = float(spectrum.sum())
    if not total > 0:
        nothing = torch.zeros(dim, dtype=torch.float64)
        return _untested(SCALE, statistic, math.nan, math.nan, nothing, "nothing varies")
    expected, variance = scale_moments(spectrum, dim, line=rows.line)
    std = math.sqrt(variance)
    contributions = dim * rows.variances.square() / total**2
    if not std > 1e-9 * expected:
        gate = "all directions vary alike, so that no axis can"
        return _untested(SCALE, statistic, expected, std, contributions, gate)
    if draws is None:
        draws = next(draws for width, draws in _SCALE_DRAWS if dim <= width)
    turned = turned_variances(spectrum, dim, draws, line=rows.line, seed=seed)
    null = dim * turned.square().sum(1) / turned.sum(1).square()
    if float(null.std()) > 0:
        null = expected + (null - null.mean()) * (std / null.std())
    return _tested(
        SCALE, statistic, contributions, null, expected, std, _unrepeated(rows, examples)
    )


def _unrepeated(rows: Centred, examples: Tensor) -> str:
    """Why unequal variances are not claimed: other examples need not share them."""
    place = examples.unique(return_inverse=True)[1].to(rows.rows.device)
    if int(place.max()) + 1 < _FEWEST_GROUPS:
        return "too few examples to see whether the inequality repeats between them"
    excess, error = repeated_inequality(rows, place % _GROUPS)
    if excess - 1.96 * error > 0:
        return ""
    return "the variances are no more unequal than other examples would make them"


def repeated_inequality(rows: Centred, groups: Int[Tensor, " samples"]) -> tuple[float, float]:
    """How unequal variances are beyond what turns and sampling give, and the standard error.

    Over pairs of different groups of examples, so that no sample is compared with itself:
    U = sum_{g != h} [n s_g . s_h - m/(m+2) (t_g t_h + 2 tr S_g S_h)] / sum_{g != h} t_g t_h, with
    s_g the variances of the axes in group g, t_g their sum and S_g its covariance. All are about
    the median of the groups' means: a far row moves the mean of all, and would be seen in every
    group about that.

    Args:
        rows: the rows.
        groups: 0, 1, ... for every row, [samples].
    """
    count, x = int(groups.max()) + 1, rows.rows
    belongs = (torch.arange(count, device=x.device)[:, None] == groups).double()
    sizes, sums = belongs.sum(1, keepdim=True), belongs @ x
    centre = (sums / sizes.clamp_min(1.0)).quantile(0.5, dim=0)
    shares = torch.zeros(count, rows.dim, dtype=torch.float64, device=x.device)
    if float(centre.square().sum()) > float(rows.variances.sum()):
        # A difference of squares would be rounded as the larger ones are.
        shares.index_add_(0, groups, (x - centre).square())
    else:
        shares.index_add_(0, groups, x.square())
        shares += centre * (sizes * centre - 2 * sums)
    shares /= rows.samples
    totals = shares.sum(1)
    if rows.dim <= rows.samples // 4:
        own = [x[groups == g] - centre for g in range(count)]
        flat = torch.stack([(part.T @ part / rows.samples).flatten() for part in own])
        products = flat @ flat.T
    else:
        pairs = rows.inner_products
        off = (rows.rows @ centre).to(pairs)
        pairs = pairs - off[:, None] - off + float(centre.square().sum())
        half = belongs.to(pairs) @ pairs.square()
        products = half.double() @ belongs.T / rows.samples**2
    weights = torch.outer(totals, totals)
    excess = rows.dim * shares @ shares.T - rows.free / (rows.free + 2) * (weights + 2 * products)
    apart = ~torch.eye(count, dtype=torch.bool, device=x.device)
    excess, weights = excess * apart, weights * apart
    total = float(weights.sum())
    found = float(excess.sum()) / total
    residual = excess - found * weights
    own = (2 * residual.sum(1) / total).square().sum() * count / (count - 1)
    pairs = 2 * (residual / total).square().sum()
    return found, math.sqrt(max(float(own - pairs), float(own) / 2))


def sphere_kurtosis(dim: int, *, line: bool) -> tuple[float, float]:
    """Mean and standard deviation of the kurtosis across axes of a uniform direction."""
    if line:
        mean = 3 * (dim - 1) / (dim + 1)
        variance = 24 * dim * (dim - 2) * (dim - 3) / ((dim + 1) ** 2 * (dim + 3) * (dim + 5))
    else:
        mean = 3 * dim / (dim + 2)
        variance = 24 * dim**2 * (dim - 1) / ((dim + 2) ** 2 * (dim + 4) * (dim + 6))
    return mean, math.sqrt(variance)


@functools.lru_cache(maxsize=16)
def _sphere_draws(dim: int, line: bool, seed: int, draws: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    found: list[Tensor] = []
    step = max(1, 2_000_000 // dim)
    for start in range(0, draws, step):
        drawn = torch.randn(min(step, draws - start), dim, generator=generator, dtype=torch.float32)
        if line:
            drawn = drawn - drawn.mean(1, keepdim=True)
        found.append((dim * drawn.pow(4).sum(1) / drawn.square().sum(1).square()).double())
    return torch.cat(found)


def scale_moments(spectrum: Float[Tensor, " rank"], dim: int, *, line: bool) -> tuple[float, float]:
    """Mean and variance over turns of n sum_j S_jj^2 / (tr S)^2, exactly.

    Two axes are conditioned on each other: axis j is c u + s w with u axis i and w uniform in its
    complement, and moments of quadratic forms of uniform directions are those of zonal polynomials.

    Args:
        spectrum: the variances along the principal axes.
        dim: the number of axes n.
        line: True where the all-ones direction is taken out and left fixed.
    """
    p1, p2, p3, p4 = (float(spectrum.pow(power).sum()) for power in (1, 2, 3, 4))
    m = dim - 1 if line else dim
    cosine = -1 / (dim - 1) if line else 0.0
    length = (dim - 1) / dim if line else 1.0
    d, sine = m - 1, 1 - cosine**2
    a2 = (p1**2 + 2 * p2) / (m * (m + 2))
    a3 = (p1**3 + 6 * p1 * p2 + 8 * p3) / (m * (m + 2) * (m + 4))
    a2b = (p1**2 * p2 + 4 * p1 * p3 + 2 * p2**2 + 8 * p4) / (m * (m + 2) * (m + 4))
    a4 = (p1**4 + 12 * p1**2 * p2 + 12 * p2**2 + 32 * p1 * p3 + 48 * p4) / (
        m * (m + 2) * (m + 4) * (m + 6)
    )
    rest = p1**2 * a2 - 2 * p1 * a3 + a4 + 2 * (p2 * a2 - 2 * a2b + a4)
    pair = (
        cosine**4 * a4
        + 4 * cosine**2 * sine * (a2b - a4) / d
        + 2 * cosine**2 * sine * (p1 * a3 - a4) / d
        + sine**2 * rest / (d * (d + 2))
    )
    mean = dim**2 * length**2 * a2 / p1**2
    second = (dim / p1**2) ** 2 * length**4 * (dim * a4 + dim * (dim - 1) * pair)
    return mean, max(second - mean**2, 0.0)


def turned_variances(
    spectrum: Float[Tensor, " rank"], dim: int, draws: int, *, line: bool, seed: int
) -> Float[Tensor, "draws dim"]:
    """Variances along turned axes: exact for the leading principal directions, Gaussian beyond.

    Args:
        spectrum: the variances along the principal axes, the largest first.
        dim: the number of axes.
        draws: how many turned bases.
        line: True where the all-ones direction is taken out and left fixed.
        seed: seeds them.
    """
    p1, p2 = float(spectrum.sum()), float(spectrum.square().sum())
    free = dim - 1 if line else dim
    missing = int((p2 - spectrum.square().cumsum(0) > _BULK * p2).sum()) + 1
    large = max(int((spectrum.square() > _LEAST * p2).sum()), 1)
    most = next(most for width, most in _LEADING if dim <= width)
    count = min(missing, large, most, len(spectrum), free)
    leading = spectrum[:count].cpu()
    left1 = max(p1 - float(leading.sum()), 0.0)
    left2 = max(p2 - float(leading.square().sum()), 0.0)
    bulk = free - count
    spread = 0.0
    if bulk > 1:
        spread = max(2 * (left2 - left1**2 / bulk) / (bulk * (bulk + 2)), 0.0)
    scaled = math.sqrt(spread)
    found: list[Tensor] = []
    for weights, noise in _turned_weights(dim, draws, count, line, bulk > 0, seed):
        turned = (weights @ leading.to(weights)).double()
        if noise is not None:
            left = ((dim - 1) / dim if line else 1.0) - weights.sum(2).double()
            left = left.clamp_min_(0.0)
            turned += left * (left1 / bulk)
            noise = left.mul_(scaled).mul_(noise)
            turned += noise.sub_(noise.mean(1, keepdim=True))
        found.append(turned)
    return torch.cat(found)


def _turned_weights(
    dim: int, draws: int, count: int, line: bool, more: bool, seed: int
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """What turned axes have of the leading directions, some bases at a time, and noise for others.

    They are the same at every site of one width, and kept while sites are compared.
    """
    generator = torch.Generator().manual_seed(seed)
    step = max(1, _AT_ONCE // (dim * count))
    for start in range(0, draws, step):
        several = min(step, draws - start)

        def make(several: int = several) -> tuple[Tensor, ...]:
            drawn = torch.randn(several, dim, count, generator=generator, dtype=torch.float32)
            if line:
                drawn = drawn - drawn.mean(1, keepdim=True)
            weights = _orthonormal(drawn).square_()
            if not more:
                return (weights,)
            noise = torch.randn(several, dim, generator=generator, dtype=torch.float32)
            return weights, noise

        made = remembered(generator, ("turned weights", several, dim, count, line, more), make)
        yield made[0], made[1] if more else None


def _orthonormal(drawn: Tensor) -> Tensor:
    """An orthonormal basis of the columns, uniform where they are Gaussian; up to signs."""
    if drawn.shape[2] > drawn.shape[1] // 2:
        return torch.linalg.qr(drawn.double())[0]
    # Fewer columns of Gaussian numbers than half of these are far from dependent.
    lower = torch.linalg.cholesky(drawn.mT @ drawn)
    unit = torch.eye(drawn.shape[2], dtype=drawn.dtype).to(drawn).expand_as(lower)
    # The inverse of so small a matrix is well known, and a product takes a third of solving.
    return drawn @ torch.linalg.solve_triangular(lower, unit, upper=False).mT


def outlier_axes(
    rows: Centred, *, seed: int, most: int = 32, draws: int = 199, level: float = 0.05
) -> tuple[int, ...]:
    """The axes whose variance exceeds that of the largest of turned axes, one after another.

    Axes are listed whose variance lies above the 95 % quantile of the largest variance among turned
    axes of what is left; they are taken out, and what is left is looked at again, until none is.

    Args:
        rows: the rows.
        seed: seeds the turned axes.
        most: after so many the list ends.
        draws: how many turned bases each step is compared with.
        level: the share of turned bases that may exceed it.

    Example:
        >>> x = torch.randn(400, 32, generator=torch.Generator().manual_seed(0)).double()
        >>> x[:, 7] *= 9
        >>> outlier_axes(Centred(x, line=False), seed=0)
        (7,)
    """
    order = rows.variances.argsort(descending=True)
    spectrum, found = rows.spectrum, 0
    while found < most and rows.dim - found > _FEWEST_LEFT:
        turned = turned_variances(spectrum, rows.dim - found, draws, line=rows.line, seed=seed)
        bound = float(turned.amax(1).quantile(1 - level))
        here = rows.variances_of(order[found:])
        order[found:] = order[found:][here.argsort(descending=True)]
        beyond = int((here > bound).sum())
        if not beyond:
            break
        found += beyond
        spectrum = rows.spectrum_of(order[found:])
    return tuple(order[: min(found, most)].tolist())


@dataclasses.dataclass(frozen=True)
class TokenKurtosis:
    """The kurtosis of a sample across axes, and what each order adds to it.

    `offset + scale + form + rotations` is `total`, exactly.

    Attributes:
        total: n sum_j x_j^4 / (sum_j x_j^2)^2, averaged over samples.
        offset: what falls away with the mean.
        scale: what unequal variances add.
        form: what the form of axes at equal variance adds to that of turned axes.
        rotations: what a sample has in a random basis.
    """

    total: float
    offset: float
    scale: float
    form: float
    rotations: float


_TURNS, _FEW_TURNS, _DENSE = 4, 2, 256
"""Above so many axes turns are fewer, for each averages over more directions, and made of random
signs and cosine transforms; above 512 one does."""


def split_kurtosis(rows: Centred, *, seed: int) -> TokenKurtosis:
    """The kurtosis per sample of the rows, split into the three orders and what rotations have.

    Args:
        rows: the rows.
        seed: seeds the turned bases, in which form is measured too.
    """
    dim = rows.dim
    turns = _TURNS if dim <= _DENSE else _FEW_TURNS if dim <= _WIDE else 1
    total = _per_sample(rows.rows, rows.mean)
    centred = _per_sample(rows.rows)
    values = rows.rows.to(rows.dtype)
    evened = _per_sample(_evened(values))
    generator = torch.Generator().manual_seed(seed)
    turned = [
        _per_sample(_evened(_turned(values, generator, line=rows.line))) for _ in range(turns)
    ]
    rotations = 3 * (dim - 1) / (dim + 1) if rows.line else 3 * dim / (dim + 2)
    form = evened - sum(turned) / turns
    return TokenKurtosis(
        total=total,
        offset=total - centred,
        scale=centred - rotations - form,
        form=form,
        rotations=rotations,
    )


_IN_CACHE = 2**16
"""So many numbers are worked on at a time on a processor."""


def _per_sample(x: Tensor, added: Tensor | None = None) -> float:
    """The mean kurtosis across axes of the rows, or of these with a vector added."""
    energies: list[Tensor] = []
    fourths: list[Tensor] = []
    for part in x.split(len(x) if x.is_cuda else max(1, _IN_CACHE // x.shape[1])):
        square = part.square() if added is None else (part + added).square_()
        energies.append(square.sum(1))
        fourths.append(torch.linalg.vecdot(square, square))
    energy, fourth = torch.cat(energies), torch.cat(fourths)
    some = energy > 0
    return float((x.shape[1] * fourth[some] / energy[some].square()).mean(dtype=torch.float64))


def _evened(x: Tensor) -> Tensor:
    centred = x - x.mean(0)
    std = centred.square().mean(0).sqrt()
    return centred.div_(torch.where(std > 0, std, torch.ones_like(std)))


def _turned(x: Tensor, generator: torch.Generator, *, line: bool) -> Tensor:
    """The rows in another orthonormal basis; with `line` the all-ones direction is left fixed."""
    dim = x.shape[1]
    if dim <= _DENSE:
        ones = torch.ones(1, dim, dtype=torch.float64)
        turn = haar_fixing(ones, generator) if line else haar(dim, generator)
        return x @ turn.to(x).T
    from scipy.fft import dct, idct

    def cosines(values: Tensor, *, back: bool = False) -> Tensor:
        transform = idct if back else dct
        return torch.from_numpy(np.asarray(transform(values.numpy(), norm="ortho", axis=1)))

    turned = x.cpu()
    if line:
        # The first cosine is the all-ones direction.
        turned = cosines(turned)[:, 1:]
    for _ in range(3):
        signs = torch.randint(0, 2, (turned.shape[1],), generator=generator) * 2.0 - 1
        turned = cosines(turned * signs)
    if line:
        none = turned.new_zeros(len(turned), 1)
        turned = cosines(torch.cat([none, turned], 1), back=True)
    return turned.to(x)


def _tested(
    order: str,
    statistic: str,
    contributions: Tensor,
    null: Tensor,
    expected: float,
    std: float,
    gate: str,
) -> OrderTest:
    observed = float(contributions.sum())
    p = tail_p(observed, null, tail=Tail.UPPER).value
    effect = (observed - expected) / std if std > 0 else math.nan
    return OrderTest(
        order, statistic, observed, expected, std, effect, p, contributions.cpu(), gate
    )


def _untested(
    order: str, statistic: str, expected: float, std: float, contributions: Tensor, gate: str
) -> OrderTest:
    observed = float(contributions.sum())
    return OrderTest(
        order, statistic, observed, expected, std, math.nan, 1.0, contributions.cpu(), gate
    )
