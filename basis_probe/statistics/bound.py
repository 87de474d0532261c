"""How far the axes could stand out in form at most, where they were not seen to."""

from __future__ import annotations

import dataclasses
import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from basis_probe.statistics.sparsity import BELL

_HALF = math.sqrt(0.5)
_UNIT = 1 / (_HALF * 0.75 / 24)
"""So scaled, the bounded statistic is the excess kurtosis where that is small."""

_AT_ONCE = 2**18
"""So many values at a time stay in a cache."""
_GROUPS = 50
FEWEST_GROUPS = 20
_LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Bound:
    """An upper bound, with 95 % confidence, for the form of the axes beyond random directions.

    Attributes:
        excess: the root mean square over axes of their excess kurtosis is at most this far beyond
            that of random directions.
        share: an equal share of a Laplace feature in the variance of every axis; NaN where `excess`
            is 0.3 or more, which no small share makes.
        rare: True where a few samples carry so much of the variance that events rarer than the
            data show may escape the bound.
    """

    excess: float
    share: float
    rare: bool


def bound_form(
    axes: Float[Tensor, "samples axes"],
    directions: Float[Tensor, "samples directions"],
    examples: Int[Tensor, " samples"],
) -> Bound | None:
    """The bound for axes beside random directions; None with fewer than 20 examples.

    Of every direction the bounded excess kurtosis kappa = 45.25 (E exp(-z^2/2) - sqrt(1/2)) is
    computed, 3 w^2 for a share w of a Laplace variable. Its mean square over axes is compared with
    that over random directions, both free of the bias of their own noise: squares are taken between
    different groups of examples only.

    Args:
        axes: what is read along the axes, in any units.
        directions: the same samples along random directions of the same space.
        examples: which sequence or image every row is of, [samples].

    Example:
        >>> x = torch.randn(4000, 16, generator=torch.Generator().manual_seed(0))
        >>> directions = torch.randn(16, 512, generator=torch.Generator().manual_seed(1))
        >>> found = bound_form(x, x @ directions, torch.arange(4000))
        >>> found is not None and found.excess < 0.2
        True
    """
    place, count = _in_groups(examples)
    if count < FEWEST_GROUPS or axes.shape[1] < 2:
        return None
    # Less than nothing is noise, and says no more than nothing does.
    beyond = _beyond(_squares(axes, place, count), _squares(directions, place, count))
    lowest = max(beyond.value, 0.0)
    quantile = _student_quantile(count - 1)
    upper = lowest
    for _ in range(50):
        upper = lowest + quantile * beyond.error(upper)
    excess = math.sqrt(upper)
    share = math.sqrt(excess / 3) if excess < 0.3 else math.nan
    return Bound(excess, share, _rare(axes))


_UNITS, _STEPS = 16, 60
_ROWS_FOR_AN_AXIS = 4
"""With fewer rows for an axis than this a basis that is fitted to them says nothing of others."""


def reached(
    x: Float[Tensor, "samples dim"],
    directions: Float[Tensor, "samples directions"],
    examples: Int[Tensor, " samples"],
    *,
    seed: int,
) -> float:
    """How much of the form of the directions that stand out most the axes have, in [0, 1] or above.

    Sixteen directions are found by FastICA (symmetric, with the contrast u exp(-u^2/2)) on every
    other group of examples, and as many axes are chosen there; on the other groups the mean square
    of the bounded excess kurtosis of both is compared with that of random directions. The square
    root of the ratio is returned; NaN where the directions found exceed random ones by less than
    two standard errors, so that there is nothing to compare with, or rows are too few to fit any.

    Source: A. Hyvarinen, IEEE Transactions on Neural Networks 10 (1999) 626.

    Args:
        x: whitened rows.
        directions: the same samples along random directions of the same space.
        examples: which sequence or image every row is of, [samples].
        seed: seeds the search.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> sources = torch.randn(4000, 8, generator=generator) ** 3
        >>> turn = torch.linalg.qr(torch.randn(8, 8, generator=generator))[0]
        >>> x = sources / sources.std(0) @ turn
        >>> directions = x @ torch.randn(8, 512, generator=generator)
        >>> reached(x, directions, torch.arange(4000), seed=0) < 0.9
        True
    """
    place, count = _in_groups(examples)
    fitted = (place % 2 == 0).to(x.device)
    dim = x.shape[1]
    few = int(fitted.sum()) < _ROWS_FOR_AN_AXIS * dim
    if count < FEWEST_GROUPS or few or dim < 2:
        return math.nan
    own, other = place[fitted.to(place.device)] // 2, place[~fitted.to(place.device)] // 2
    found = _fast_ica(x[fitted], seed)
    fit = _squares(x[fitted], own, int(own.max()) + 1).values
    chosen = fit.topk(found.shape[1]).indices
    groups = int(other.max()) + 1
    null = _squares(directions[~fitted], other, groups)
    best = _beyond(_squares(x[~fitted] @ found, other, groups), null)
    if not best.value > 2 * best.error(max(best.value, 0.0)):
        return math.nan
    axes = _beyond(_squares(x[~fitted][:, chosen], other, groups), null)
    return math.sqrt(max(axes.value, 0.0) / best.value)


def _fast_ica(x: Tensor, seed: int) -> Tensor:
    """[dim, units]: directions of the rows along which they are least Gaussian.

    They are no more than the directions in which the rows vary.
    """
    rows = (x - x.mean(0)).double()
    values, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))
    kept = values > 1e-6 * values.max()
    back = vectors[:, kept] * values[kept].rsqrt()
    white = (rows @ back).float()
    generator = torch.Generator().manual_seed(seed)
    units = min(_UNITS, white.shape[1])
    drawn = torch.randn(white.shape[1], units, generator=generator, dtype=torch.float32)
    weights = _decorrelated(drawn.to(white))
    for _ in range(_STEPS):
        along = white @ weights
        square = along.square()
        bell = (square * BELL).exp2_()
        slope = ((1 - square) * bell).mean(0)
        weights = _decorrelated(white.T @ (along * bell) / len(white) - weights * slope)
    return (back @ weights.double()).to(x)


def _decorrelated(weights: Tensor) -> Tensor:
    left, _, right = torch.linalg.svd(weights, full_matrices=False)
    return left @ right


def _in_groups(examples: Tensor) -> tuple[Tensor, int]:
    """The group of every row, and how many groups there are."""
    names, place = examples.unique(return_inverse=True)
    count = min(_GROUPS, len(names))
    return place % count, count


@dataclasses.dataclass(frozen=True, eq=False)
class _Squares:
    """The squared bounded excess kurtosis of some directions, free of the bias of its own noise.

    Attributes:
        kurtosis: of every direction.
        parts: [groups, directions], what every group of examples adds to it.
        values: the squares.
    """

    kurtosis: Tensor
    parts: Tensor
    values: Tensor


def _squares(y: Tensor, place: Tensor, count: int) -> _Squares:
    kurtosis, parts = _bounded(y, place.to(y.device), count)
    factor = count / (count - 1)
    return _Squares(kurtosis, parts, kurtosis.square() - factor * parts.square().sum(0))


@dataclasses.dataclass(frozen=True)
class _Beyond:
    """How far the mean square of some directions lies beyond that of random ones.

    Attributes:
        value: the difference; below zero by chance.
        pairs, line, drawing: parts of its variance: of pairs of groups, of single groups, and of
            the draw of the directions.
        noise: the part of single groups, for a true difference of one.
    """

    value: float
    pairs: float
    line: float
    drawing: float
    noise: float

    def error(self, true: float) -> float:
        """Its standard error if the true difference were that."""
        return math.sqrt(self.pairs + max(self.line, self.noise * true) + self.drawing)


def _beyond(axes: _Squares, random: _Squares) -> _Beyond:
    count, dim, drawn = len(axes.parts), len(axes.kurtosis), len(random.kurtosis)
    linear = 2 * ((axes.parts * axes.kurtosis).mean(1) - (random.parts * random.kurtosis).mean(1))
    products = axes.parts @ axes.parts.T / dim - random.parts @ random.parts.T / drawn
    pairs = 2 * float(products.square().sum() - products.diagonal().square().sum())
    alone = count / (count - 1) * float((linear - linear.mean()).square().sum())
    return _Beyond(
        value=float(axes.values.mean() - random.values.mean()),
        pairs=pairs,
        line=max(alone - 2 * pairs, 0.0),
        drawing=float(random.values.var()) / drawn,
        noise=4 * float(axes.parts.square().sum(0).mean()) / dim,
    )


def _bounded(y: Tensor, groups: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The bounded excess kurtosis of every column, and what every group adds to it."""
    belongs = (torch.arange(count, device=y.device)[:, None] == groups).to(y.dtype)
    sizes = belongs.sum(1, keepdim=True).double()
    bounded: list[Tensor] = []
    parts: list[Tensor] = []
    for columns in y.split(max(1, _AT_ONCE // len(y)), dim=1):
        centred = columns - columns.mean(0)
        z = centred.div_(centred.square().mean(0).sqrt_().clamp_min_(1e-30))
        square = z.square()
        bell = (square * BELL).exp2_()
        mean = bell.mean(0).double()
        second, first = (square * bell).mean(0) / 2, (z * bell).mean(0)
        # What a row adds is linear in these, and sums over groups are products with ones.
        influence = (belongs @ bell).double() - sizes * mean
        influence += second * ((belongs @ square).double() - sizes)
        influence += first * (belongs @ z).double()
        bounded.append(_UNIT * (mean - _HALF))
        parts.append(_UNIT * influence / len(y))
    return torch.cat(bounded), torch.cat(parts, 1)


def _rare(rows: Tensor) -> bool:
    """True where the top hundredth of samples carries over 30 % of the median axis' variance."""
    squares = (rows - rows.mean(0)).square()
    top = squares.topk(max(1, len(rows) // 100), dim=0).values.sum(0)
    share = top / squares.sum(0).clamp_min(1e-30)
    return float(share.median()) > 0.3


def _student_quantile(freedom: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, _LEVEL))
