"""Three orders of privilege, never mixed: offsets, variances, and what is left once both are gone.

The kurtosis of a sample across axes answers to all three: a constant on one axis, unequal variances
and sparse features each raise it. Here each order has a statistic of its own that the others do not
reach, and a null in which the axes are turned against it. First and second order need only the mean
and the covariance, so that they can be streamed; the higher one needs rows.
"""

from __future__ import annotations

import dataclasses
import enum
import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from basis_probe.algebra.groups import GeneralLinear
from basis_probe.algebra.haar import haar, haar_fixing
from basis_probe.statistics.nulls import Geometry, Problem, Rotation
from basis_probe.statistics.p_values import Tail, TailP, tail_p
from basis_probe.statistics.scores import NEGENTROPY, Measured, Score

# A mean within so many standard errors of no mean at all has no direction to speak of.
_BEYOND_NOISE = 4.0
_LEADING = 3
_LEVEL = 0.05

# Covariances are fitted to whiten by; they need several samples for every direction.
_SAMPLES_PER_AXIS = 10


class Order(enum.Enum):
    """What about an axis can stand out; the value says what it is."""

    FIRST = "constant offsets"
    SECOND = "unequal variances"
    HIGHER = "the form of the axes at equal variance, without correlations"


@dataclasses.dataclass(frozen=True, eq=False)
class OrderResult:
    """One order of privilege: its statistic on the axes, and over turned axes.

    Attributes:
        order: which.
        statistic: what was computed.
        observed: on the axes.
        null_mean: mean over turned axes, by a closed form where one is known.
        null_std: standard deviation over them.
        effect: (observed - null_mean) / null_std; NaN where there is nothing to speak of.
        p: of at least as much on turned axes.
        leading: the three axes that contribute most, the largest first.
        leading_share: what part of the statistic is theirs.
        sentence: the finding in words.
    """

    order: Order
    statistic: str
    observed: float
    null_mean: float
    null_std: float
    effect: float
    p: TailP
    leading: tuple[int, ...]
    leading_share: float
    sentence: str

    @property
    def stands_out(self) -> bool:
        """True if turned axes reach it in at most one case of twenty."""
        return self.p.value <= _LEVEL


def first_order(
    mean: Float[Tensor, " dim"],
    *,
    variance: Float[Tensor, " dim"] | None = None,
    samples: int | float | None = None,
    line: bool = False,
    frames: int = 9999,
    generator: torch.Generator,
) -> OrderResult:
    """Whether the mean activation lies along few axes: its kurtosis across axes, against turns.

    kappa = n sum_j m_j^4 / (sum_j m_j^2)^2, in [1, n]. Over all turns it has the mean 3n/(n+2) and
    a known variance, whatever the mean vector; the p-value is counted over directions drawn
    uniformly on the sphere, whose law it is.

    A mean that is noise is no offset: where variances are unequal, the noise lies along axes
    because they are. With `variance` and `samples` given, a mean that is not beyond four standard
    errors of nothing is said to be none.

    Args:
        mean: the mean over samples, [dim].
        variance: the variances over samples, [dim].
        samples: how many independent samples the mean is of: fewer than rows where rows depend on
            each other.
        line: True to take out the all-ones direction and leave it fixed (behind a LayerNorm).
        frames: directions drawn for the p-value.
        generator: draws them; on the CPU.

    Raises:
        ValueError: for a mean that is no vector of at least 4 finite numbers.

    Example:
        >>> mean = torch.ones(64)
        >>> mean[5] = 30.0
        >>> found = first_order(mean, generator=torch.Generator().manual_seed(0))
        >>> found.leading[0], found.observed > 50, found.stands_out
        (5, True, True)
    """
    offset = _vector("mean", mean)
    dim = len(offset)
    if line:
        offset = offset - offset.mean()
    energy = float(offset.square().sum())
    statistic = "kurtosis of the mean across axes"
    if line:
        expected = 3 * (dim - 1) / (dim + 1)
        spread = 24 * dim * (dim - 2) * (dim - 3) / ((dim + 1) ** 2 * (dim + 3) * (dim + 5))
    else:
        expected = 3 * dim / (dim + 2)
        spread = 24 * dim**2 * (dim - 1) / ((dim + 2) ** 2 * (dim + 4) * (dim + 6))
    std = math.sqrt(spread)
    if variance is not None and samples is not None:
        errors = _vector("variance", variance) / samples
        noise, uncertain = float(errors.sum()), math.sqrt(2 * float(errors.square().sum()))
        if energy <= noise + _BEYOND_NOISE * uncertain:
            return _nothing(
                Order.FIRST, statistic, expected, std, "There is no offset beyond sampling noise."
            )
    if not energy > 0:
        return _nothing(Order.FIRST, statistic, expected, std, "The mean activation is zero.")
    contributions = dim * offset.pow(4) / energy**2
    drawn = torch.randn(frames, dim, generator=generator, dtype=torch.float64)
    if line:
        drawn = drawn - drawn.mean(1, keepdim=True)
    null = dim * drawn.pow(4).sum(1) / drawn.square().sum(1).square()
    return _result(
        Order.FIRST,
        statistic,
        contributions,
        null,
        expected=expected,
        std=std,
        yes="The mean activation lies along few axes",
        no="The mean activation lies along no axes in particular",
    )


def second_order(
    covariance: Float[Tensor, "dim dim"],
    *,
    line: bool = False,
    frames: int = 199,
    generator: torch.Generator,
) -> OrderResult:
    """Whether variance is more unequal on the axes than on turned axes: principal axes near them.

    kappa = n sum_j S_jj^2 / (tr S)^2, in [1, n], with the null mean n/(n+2) (1 + 2 tr S^2/(tr S)^2)
    exactly. The share of the covariance's energy off the diagonal is 1 - kappa (tr S)^2 / (n tr
    S^2), and no turn changes what stands beside kappa: the two are one test.

    Of no use where the group of the site rescales single axes, for then variances are not its own.

    Args:
        covariance: [dim, dim].
        line: True to take out the all-ones direction and leave it fixed.
        frames: turned axes drawn for spread and p-value.
        generator: draws them; on the CPU.

    Raises:
        ValueError: for a covariance that is not square, finite and positive.

    Source: the statistic is that of B. He et al. (2024), of centred activations.

    Example:
        >>> variances = torch.logspace(-1, 1, 16).diag()
        >>> found = second_order(variances, generator=torch.Generator().manual_seed(0))
        >>> found.leading, found.stands_out
        ((15, 14, 13), True)
    """
    matrix = covariance.detach().to("cpu", torch.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not bool(matrix.isfinite().all()):
        raise ValueError(
            f"the covariance has shape {list(covariance.shape)}: give finite numbers [dim, dim]"
        )
    dim = matrix.shape[0]
    if line:
        matrix = matrix - matrix.mean(0, keepdim=True)
        matrix = matrix - matrix.mean(1, keepdim=True)
    trace = float(matrix.trace())
    statistic = "kurtosis of the axes' standard deviations"
    if not trace > 0:
        raise ValueError(
            f"the covariance has a trace of {trace}: nothing varies; leave this site out"
        )
    free = dim - 1 if line else dim
    expected = free / (free + 2) * (1 + 2 * float(matrix.square().sum()) / trace**2)
    values, vectors = torch.linalg.eigh(matrix)
    values = values.clamp_min(0.0)
    ones = torch.ones(1, dim, dtype=torch.float64)
    drawn: list[Tensor] = []
    for _ in range(frames):
        turn = haar_fixing(ones, generator) if line else haar(dim, generator)
        # Of every turned axis the squared coordinates on the principal axes.
        weights = (turn @ vectors if line else turn).square()
        drawn.append(dim * (weights @ values).square().sum() / trace**2)
    null = torch.stack(drawn)
    return _result(
        Order.SECOND,
        statistic,
        dim * matrix.diagonal().square() / trace**2,
        null,
        expected=expected,
        std=float(null.std()),
        yes="Variance is more unequal on the axes than on turned axes",
        no="Variance is no more unequal on the axes than on turned axes",
    )


def higher_order(
    x: Float[Tensor, "samples dim"],
    *,
    halves: Int[Tensor, " samples"],
    score: Score = NEGENTROPY,
    geometry: Geometry = Geometry.WHITENED,
    frames: int = 199,
    generator: torch.Generator,
) -> OrderResult:
    """Whether the axes have more form than turned axes once offsets and covariance are taken out.

    Every half of the samples is whitened symmetrically by the covariance of the other, which gives
    the uncorrelated basis of unit variance nearest to the axes; its rotations are the null. With
    Geometry.STANDARDISED the axes are only brought to unit variance, and correlations stay.

    Args:
        x: activations, [samples, dim].
        halves: 0 or 1 for every sample.
        score: a score of axes.
        geometry: WHITENED or STANDARDISED.
        frames: turned bases drawn.
        generator: draws them; on the CPU.

    Raises:
        ValueError: for another geometry, or a score that compares axes with each other.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = torch.randn(2000, 8, generator=generator, dtype=torch.float64) ** 3 + 5
        >>> halves = torch.arange(2000) % 2
        >>> higher_order(x, halves=halves, generator=generator).stands_out
        True
    """
    if geometry not in (Geometry.WHITENED, Geometry.STANDARDISED):
        raise ValueError(f"{geometry.name} keeps variances in: give WHITENED or STANDARDISED")
    if score.across_axes:
        raise ValueError(f"{score.name} compares axes with each other: give a score of axes")
    live = x.std(0, correction=0) > 0
    rows, dim = x[:, live].double(), int(live.sum())
    statistic = f"{score.name.replace('_', '-')} of axes at equal variance"
    if dim < 2 or (geometry is Geometry.WHITENED and len(rows) < _SAMPLES_PER_AXIS * dim):
        return _nothing(
            Order.HIGHER,
            statistic,
            math.nan,
            math.nan,
            f"{len(rows)} samples of {dim} live axes do not allow to take the covariance out.",
        )
    problem = Problem(x=rows, group=GeneralLinear(dim), halves=halves)
    alternatives = Rotation(geometry=geometry).alternatives(problem)
    observed = Measured(alternatives.frame(None), unit_axes=False).of(score)
    null = torch.stack(
        [
            Measured(alternatives.frame(generator), unit_axes=False).of(score).nanmean()
            for _ in range(frames)
        ]
    )
    contributions = torch.zeros(len(live), dtype=torch.float64)
    contributions[live.cpu()] = observed.cpu().nan_to_num(0.0) / dim
    return _result(
        Order.HIGHER,
        statistic,
        contributions,
        null.cpu(),
        expected=float(null.mean()),
        std=float(null.std()),
        yes="At equal variance and without correlations the axes have more form than turned axes",
        no="At equal variance and without correlations the axes have no more form than turned axes",
    )


def _result(
    order: Order,
    statistic: str,
    contributions: Tensor,
    null: Tensor,
    *,
    expected: float,
    std: float,
    yes: str,
    no: str,
) -> OrderResult:
    observed = float(contributions.sum())
    p = tail_p(observed, null, tail=Tail.UPPER)
    effect = (observed - expected) / std if std > 1e-12 * max(1.0, abs(expected)) else math.nan
    top = contributions.topk(min(_LEADING, len(contributions)))
    share = float(top.values.sum()) / observed if observed > 0 else math.nan
    leading = tuple(int(axis) for axis in top.indices)
    said = yes if p.value <= _LEVEL else no
    figures = f"{statistic} {observed:.3g} against {expected:.3g} ± {std:.2g}"
    if not math.isnan(effect):
        figures += f", z = {effect:.3g}"
    led = ""
    if p.value <= _LEVEL and share > 0.5:
        led = f"; axes {', '.join(map(str, leading))} make up {share:.0%} of it"
    return OrderResult(
        order,
        statistic,
        observed,
        expected,
        std,
        effect,
        p,
        leading,
        share,
        f"{said} ({figures}{led}).",
    )


def _nothing(
    order: Order, statistic: str, expected: float, std: float, sentence: str
) -> OrderResult:
    nan = math.nan
    none = TailP(1.0, "not computed: there is nothing to compare")
    return OrderResult(order, statistic, nan, expected, std, nan, none, (), nan, sentence)


def _vector(name: str, values: Tensor) -> Tensor:
    vector = values.detach().to("cpu", torch.float64)
    if vector.ndim != 1 or len(vector) < 4 or not bool(vector.isfinite().all()):
        raise ValueError(
            f"the {name} has shape {list(values.shape)}: give at least 4 finite numbers [dim]; "
            "fewer axes have no kurtosis to speak of"
        )
    return vector
