"""From observed and null statistics to p-values, and from many p-values to an honest family."""

import dataclasses
import enum
import functools
import math

import torch
from jaxtyping import Float
from torch import Tensor

from basis_probe.statistics.moments import float64_device

# Two statistics closer than this, relative to their size, are equal: a statistic that rotations
# cannot change differs between frames by rounding alone, and must not be called extreme for it.
# Rows are turned in single precision, and the observed frame is not, so their rounding differs.
TIE = 1e-6

# Counting is trusted while this many null values exceed the observed one (Knijnenburg et al. 2009).
_ENOUGH_EXCEEDANCES = 10

# The tail is fitted to the top fifth of the null, to 40 values at most or to a tenth if that is
# more; to fewer null values than this it is not fitted.
_FEWEST_NULL_VALUES = 99
_TOP_FRACTION = 5
_TOP_VALUES = 40

# An exponential tail (shape 0) fits many nulls but is anticonservative for heavier ones; the shape
# is never taken lighter than this. Above the upper end the probability-weighted fit is not defined.
_SHAPE_FLOOR = 0.05
_SHAPE_CEILING = 0.95

_SMALLEST_P = 1e-300


class Tail(enum.Enum):
    """Which departures from the null count against it."""

    UPPER = "only values above the null count"
    TWO_SIDED = "values above and below the null count"


@dataclasses.dataclass(frozen=True)
class TailP:
    """A p-value, and how it was reached."""

    value: float
    """In [1e-300, 1]; NaN where the observed value is."""
    method: str
    """Counted or extrapolated, and from how many null values."""


def skewed_tail(effect: float, skewness: float) -> float:
    """The upper tail of a standardised law of known skewness, by the gamma law that has it.

    A mean of many values of a skewed law is nearly normal, but for its third moment: this is the
    tail of the Pearson law of type III with mean 0 and variance 1.

    Args:
        effect: in standard deviations from the mean.
        skewness: at least 0; 0 for the normal law.

    Source: K. Pearson, Philosophical Transactions A 186 (1895) 343.

    Example:
        >>> round(skewed_tail(3.0, 0.0), 5), round(skewed_tail(3.0, 0.4), 5)
        (0.00135, 0.00448)
    """
    if math.isnan(effect) or math.isnan(skewness):
        return math.nan
    # So nearly symmetric a law is normal to all digits, and the gamma function would have too few.
    if skewness < 3e-4:
        return 0.5 * math.erfc(effect / math.sqrt(2))
    shape = 4 / skewness**2
    at = shape + effect * math.sqrt(shape)
    if at <= 0:
        return 1.0
    # In single precision these were always given.
    given = torch.tensor([shape, at], dtype=torch.float32).double()
    return float(torch.special.gammaincc(given[0], given[1]))


def holm(p: Float[Tensor, " tests"]) -> Float[Tensor, " tests"]:
    """Adjusted p-values: rejecting at alpha errs anywhere in the family with probability <= alpha.

    Holds under any dependence between the tests. A NaN stays NaN and does not count as a test.

    Args:
        p: p-values in [0, 1], [tests].

    Raises:
        ValueError: a value lies outside [0, 1].

    Source: S. Holm, Scandinavian Journal of Statistics 6 (1979) 65.

    Example:
        >>> holm(torch.tensor([0.01, 0.04, torch.nan, 0.03], dtype=torch.float64))
        tensor([0.0300, 0.0600,    nan, 0.0600], dtype=torch.float64)
    """
    family, ascending = _family(p)
    tests = ascending.shape[0]
    still_open = torch.arange(tests, 0, -1, device=ascending.device)
    stepped = (ascending * still_open).cummax(0).values if tests else ascending
    return _restore(stepped.clamp_max(1.0), family)


def benjamini_hochberg(p: Float[Tensor, " tests"]) -> Float[Tensor, " tests"]:
    """q-values: among those at or below alpha, at most a fraction alpha is expected to be false.

    Holds for independent and for positively dependent tests. A NaN stays NaN and does not count as
    a test.

    Args:
        p: p-values in [0, 1], [tests].

    Raises:
        ValueError: a value lies outside [0, 1].

    Source: Y. Benjamini and Y. Hochberg, JRSS B 57 (1995) 289.

    Example:
        >>> benjamini_hochberg(torch.tensor([0.01, 0.04, torch.nan, 0.03], dtype=torch.float64))
        tensor([0.0300, 0.0400,    nan, 0.0400], dtype=torch.float64)
    """
    family, ascending = _family(p)
    tests = ascending.shape[0]
    rank = torch.arange(1, tests + 1, device=ascending.device)
    scaled = ascending * tests / rank
    stepped = scaled.flip(0).cummin(0).values.flip(0) if tests else scaled
    return _restore(stepped.clamp_max(1.0), family)


def monte_carlo_p(observed: float, null: Float[Tensor, " frames"], *, tail: Tail) -> float:
    """The p-value (1 + #{null >= observed}) / (K + 1): exact where the frames are exchangeable.

    Two-sided, it is twice the smaller of the two tails, at most 1. Values equal to rounding count
    as reached. Null values that are NaN are left out of K; with none left the p-value is 1.

    Args:
        observed: the statistic in the observed basis; NaN gives NaN.
        null: the statistic in K random bases, [frames].
        tail: which departures count.

    Example:
        >>> monte_carlo_p(5.0, torch.arange(9.0), tail=Tail.UPPER)
        0.5
        >>> monte_carlo_p(8.5, torch.arange(9.0), tail=Tail.TWO_SIDED)
        0.2
    """
    if math.isnan(observed):
        return math.nan
    values = _null_values(null)
    upper = _counted_p(observed, values)
    if tail is Tail.UPPER:
        return upper
    return min(1.0, 2 * min(upper, _counted_p(-observed, -values)))


def tail_p(observed: float, null: Float[Tensor, " frames"], *, tail: Tail) -> TailP:
    """A p-value that can fall below 1/(K+1), with the approximation named where it is used.

    Where at least 10 null values reach the observed one, it is `monte_carlo_p`. Beyond, a
    generalised Pareto law is fitted by probability-weighted moments to the excesses over the top
    fifth of the null (at most 40 values, or a tenth of them if that is more), with its shape held
    at 0.05 or above so that the tail is heavier than exponential. The p-value never grows with the
    observed value. It may be larger or smaller than the Monte-Carlo one.

    With fewer than 99 null values, or with a null whose top is all one value, nothing is fitted.

    How often a true null falls below alpha, as a multiple of alpha, when fitted to K = 199 draws of
    each law:

        alpha              1e-2   1e-3   1e-4   1e-5
        normal             0.67   0.09   0.00   0.00
        chi-squared, 3     1.00   0.67   0.41   0.25
        lognormal, s=.5    1.04   0.97   1.11   1.49
        Student t, 10      0.89   0.57   0.44   0.43
        Student t, 5       1.03   1.27   2.35   5.76

    The usual alternative, a Pearson III law with the null's three moments, rejects 17 times too
    often for that lognormal and 130 times for Student's t with 10 degrees of freedom at 1e-5;
    taking the larger of the two p-values changes these rates by less than 0.1.

    Args:
        observed: the statistic in the observed basis; NaN gives NaN.
        null: the statistic in K random bases, [frames]; NaN values are left out.
        tail: which departures count. Two-sided, the p-value is twice that of the nearer tail.

    Source: T. A. Knijnenburg et al., Bioinformatics 25 (2009) i161; J. R. M. Hosking and
        J. R. Wallis, Technometrics 29 (1987) 339.

    Example:
        >>> null = torch.randn(199, generator=torch.Generator().manual_seed(0))
        >>> tail_p(0.0, null, tail=Tail.UPPER).method
        'counted among 199 null values'
        >>> far = tail_p(8.0, null, tail=Tail.UPPER)
        >>> far.method, far.value < 1e-4
        ('generalised Pareto tail of the top 39 of 199 null values', True)
    """
    if math.isnan(observed):
        return TailP(math.nan, "undefined: the observed value is NaN")
    upper = UpperTail(null).p(observed)
    if tail is Tail.UPPER:
        return upper
    lower = UpperTail(-null).p(-observed)
    nearer = upper if upper.value <= lower.value else lower
    return TailP(min(1.0, 2 * nearer.value), nearer.method)


def pooled_direction_p(
    observed: Float[Tensor, " dim"],
    null: Float[Tensor, "frames dim"],
    *,
    pool: bool,
    tail: Tail,
) -> Float[Tensor, " dim"]:
    """Per-direction p-values that use the null values of all directions: down to 1 / (1 + K n).

    A null of K frames holds only K values per direction, too few to test thousands of them one by
    one; all K n together are enough.

    Args:
        observed: the statistic of every direction in the observed basis, [dim].
        null: the same in K random bases, [frames, dim]. Left out where NaN.
        pool: whether the directions are exchangeable under the null, as those of a random frame
            are. Then p_j = (1 + #{all null >= observed_j}) / (1 + K n). Otherwise (counterfactual
            neurons, each with its own mean and scale) every direction is first standardised by the
            mean and standard deviation over its own K + 1 frames, the observed one among them, so
            that the frames stay exchangeable. That takes out location and scale, not shape: the
            p-values are right on average over directions.
        tail: which departures count.

    Returns:
        p-values in (0, 1], [dim]; NaN where `observed` is. A direction that no frame changes has 1
        where each direction is standardised.

    Raises:
        ValueError: `null` does not have one column per observed direction.

    Example:
        >>> null = torch.arange(12.0).reshape(4, 3)
        >>> observed = torch.tensor([20.0, 6.0, torch.nan])
        >>> pooled_direction_p(observed, null, pool=True, tail=Tail.UPPER)
        tensor([0.0769, 0.5385,    nan], dtype=torch.float64)
    """
    _require_columns(observed, null)
    own, others = _float64(observed), _float64(null)
    if pool:
        return pooled_p(own, others.flatten(), tail=tail)
    own, others, unchanged = _standardise(own, others)
    p = pooled_p(own, others.flatten(), tail=tail)
    p = torch.where(unchanged, 1.0, p)
    return torch.where(own.isnan(), math.nan, p)


def pooled_p(
    observed: Float[Tensor, " dim"], null: Float[Tensor, " directions"], *, tail: Tail
) -> Float[Tensor, " dim"]:
    """Per-direction p-values against null directions of one law: (1 + #{null >= x}) / (1 + number).

    Args:
        observed: the statistic of every direction, [dim].
        null: the same of random directions, as many as there are; NaN values are left out.
        tail: which departures count.

    Returns:
        p-values in (0, 1], [dim]; NaN where `observed` is.

    Example:
        >>> pooled_p(torch.tensor([8.5, 3.0]), torch.arange(9.0), tail=Tail.UPPER)
        tensor([0.1000, 0.7000], dtype=torch.float64)
    """
    own, others = _float64(observed), _float64(null)
    values = others[~others.isnan()].sort().values
    tie = _tie(values)
    total = values.shape[0]
    reached = 1 + total - torch.searchsorted(values, own - tie, side="left")
    if tail is Tail.TWO_SIDED:
        reached_below = 1 + torch.searchsorted(values, own + tie, side="right")
        reached = 2 * torch.minimum(reached, reached_below)
    p = (reached.to(torch.float64) / (1 + total)).clamp_max(1.0)
    return torch.where(own.isnan(), math.nan, p)


def _require_columns(observed: Tensor, null: Tensor) -> None:
    if observed.ndim != 1 or null.ndim != 2 or null.shape[1] != observed.shape[0]:
        raise ValueError(
            "expected observed of shape [dim] and null of shape [frames, dim], got "
            f"{list(observed.shape)} and {list(null.shape)}: pass one null column per direction"
        )


def _standardise(own: Tensor, others: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Both in units of each direction's K + 1 frames, and which directions do not vary at all."""
    frames = torch.cat([own[None], others])
    mean = frames.nanmean(0)
    std = (frames - mean).square().nanmean(0).sqrt()
    largest = frames.abs().nan_to_num(0.0).amax(0)
    unchanged = (std <= TIE * largest) & ~own.isnan()
    # A direction whose observed value is unknown has no exchangeable frame 0: out of the pool too.
    outside = unchanged | own.isnan()
    scaled_own = torch.where(unchanged, 0.0, (own - mean) / std)
    return scaled_own, torch.where(outside, math.nan, (others - mean) / std), unchanged


class UpperTail:
    """The upper tail of a null, prepared once for any number of observed values.

    Args:
        null: the statistic in K random bases, [frames]; NaN values are left out.

    Example:
        >>> tail = UpperTail(torch.randn(199, generator=torch.Generator().manual_seed(0)))
        >>> tail.p(8.0).value < 1e-4, tail.p(0.0).method
        (True, 'counted among 199 null values')
    """

    def __init__(self, null: Float[Tensor, " frames"]) -> None:
        self._values = _null_values(null)
        self._tie = _tie(self._values)

    def p(self, observed: float) -> TailP:
        """The p-value of one observed value, as `tail_p` describes it; NaN gives NaN."""
        if math.isnan(observed):
            return TailP(math.nan, "undefined: the observed value is NaN")
        values = self._values
        total = len(values)
        reached = (1 + int((values >= observed - self._tie).sum())) / (total + 1)
        counted = TailP(reached, f"counted among {total} null values")
        enough = (1 + _ENOUGH_EXCEEDANCES) / (total + 1)
        if counted.value >= enough or total < _FEWEST_NULL_VALUES or self._fitted is None:
            return counted
        top, threshold, shape, scale = self._fitted
        beyond = math.log1p(shape * (observed - threshold) / scale) / shape
        p = min(top / total * math.exp(-beyond), enough)
        return TailP(
            max(p, _SMALLEST_P), f"generalised Pareto tail of the top {top} of {total} null values"
        )

    @functools.cached_property
    def _fitted(self) -> tuple[int, float, float, float] | None:
        """How many of the largest values, their threshold, and shape and scale of their law."""
        values = self._values
        top = max(min(len(values) // _TOP_FRACTION, _TOP_VALUES), len(values) // 10)
        largest = values.topk(top + 1, sorted=True).values.flip(0)
        threshold = (largest[0].item() + largest[1].item()) / 2
        excess = largest[1:] - threshold
        mean = excess.mean().item()
        if not mean > self._tie:
            return None
        # Probability-weighted moments a_r = E[y (1 - F)^r] give shape = 2 - a_0 / (a_0 - 2 a_1).
        weight = torch.arange(top - 1, -1, -1, dtype=torch.float64, device=values.device)
        curvature = mean - 2 * (weight / (top - 1) * excess).mean().item()
        shape = 2 - mean / curvature if curvature > 0 else _SHAPE_FLOOR
        shape = min(max(shape, _SHAPE_FLOOR), _SHAPE_CEILING)
        return top, threshold, shape, mean * (1 - shape)


def _counted_p(observed: float, values: Tensor) -> float:
    reached = int((values >= observed - _tie(values)).sum())
    return (1 + reached) / (values.shape[0] + 1)


def _tie(values: Tensor) -> float:
    """How far apart two null values may be and still count as equal."""
    finite = values[values.isfinite()]
    return TIE * finite.abs().max().item() if finite.numel() else 0.0


def _null_values(null: Tensor) -> Tensor:
    if null.ndim != 1:
        raise ValueError(
            f"expected null statistics of shape [frames], got {list(null.shape)}: "
            "pass one number per random basis"
        )
    values = _float64(null)
    return values[~values.isnan()]


def _family(p: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Where the tests are and in which order, and their p-values ascending."""
    if p.ndim != 1:
        raise ValueError(f"expected p-values of shape [tests], got {list(p.shape)}: flatten them")
    values = _float64(p)
    if bool(((values < 0) | (values > 1)).any()):
        raise ValueError(
            "p-values lie between 0 and 1, got values from "
            f"{values.nan_to_num(0.5).min().item()} to {values.nan_to_num(0.5).max().item()}: "
            "pass p-values, not statistics"
        )
    places = (~values.isnan()).nonzero().squeeze(1)
    ascending, order = values[places].sort()
    return (torch.full_like(values, math.nan), places[order]), ascending


def _restore(adjusted: Tensor, family: tuple[Tensor, Tensor]) -> Tensor:
    blank, places = family
    return blank.index_copy(0, places, adjusted)


def _float64(x: Tensor) -> Tensor:
    return x.detach().to(float64_device(x)).to(torch.float64)
