"""How far the axes could stand out in form at most, where they were not seen to."""

from __future__ import annotations

import dataclasses
import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

_HALF = math.sqrt(0.5)
_UNIT = 1 / (_HALF * 0.75 / 24)
"""So scaled, the bounded statistic is the excess kurtosis where that is small."""

_GROUPS = 50
_FEWEST_GROUPS = 20
_RANDOM = 512
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
    x: Float[Tensor, "samples dim"], examples: Int[Tensor, " samples"], *, seed: int
) -> Bound | None:
    """The bound for rows in the geometry of their site; None with fewer than 20 examples.

    Of every direction the bounded excess kurtosis kappa = 45.25 (E exp(-z^2/2) - sqrt(1/2)) is
    computed, 3 w^2 for a share w of a Laplace variable. Its mean square over axes is compared with
    that over random directions, both free of the bias of their own noise: squares are taken between
    different groups of examples only.

    Args:
        x: whitened or standardised rows.
        examples: which sequence or image every row is of, [samples].
        seed: seeds the random directions.

    Example:
        >>> x = torch.randn(4000, 16, generator=torch.Generator().manual_seed(0))
        >>> found = bound_form(x, torch.arange(4000), seed=0)
        >>> found is not None and found.excess < 0.2
        True
    """
    names, place = examples.unique(return_inverse=True)
    count = min(_GROUPS, len(names))
    if count < _FEWEST_GROUPS or x.shape[1] < 2:
        return None
    place = (place % count).to(x.device)
    rows = x - x.mean(0)
    drawn = torch.randn(
        rows.shape[1], _RANDOM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    drawn = (drawn / drawn.norm(dim=0)).to(rows)
    axes, axes_parts = _bounded(rows, place, count)
    random, random_parts = _bounded(rows @ drawn, place, count)
    factor = count / (count - 1)
    axes_square = axes.square() - factor * axes_parts.square().sum(0)
    random_square = random.square() - factor * random_parts.square().sum(0)
    # Less than nothing is noise, and says no more than nothing does.
    difference = max(float(axes_square.mean() - random_square.mean()), 0.0)
    linear = 2 * ((axes_parts * axes).mean(1) - (random_parts * random).mean(1))
    products = axes_parts @ axes_parts.T / len(axes) - random_parts @ random_parts.T / _RANDOM
    pairs = 2 * float(products.square().sum() - products.diagonal().square().sum())
    alone = factor * float((linear - linear.mean()).square().sum())
    line = max(alone - 2 * pairs, 0.0)
    drawing = float(random_square.var()) / _RANDOM
    noise = float(axes_parts.square().sum(0).mean())
    quantile = _student_quantile(count - 1)
    upper = difference
    for _ in range(50):
        spread = max(line, 4 * noise * max(upper, 0.0) / len(axes))
        upper = difference + quantile * math.sqrt(pairs + spread + drawing)
    excess = math.sqrt(max(upper, 0.0))
    share = math.sqrt(excess / 3) if excess < 0.3 else math.nan
    return Bound(excess, share, _rare(rows))


def _bounded(y: Tensor, groups: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The bounded excess kurtosis of every column, and what every group adds to it."""
    std = y.std(0, correction=0).clamp_min(1e-30)
    z = (y - y.mean(0)) / std
    bell = (-z.square() / 2).exp()
    mean = bell.mean(0)
    second, first = (z.square() * bell).mean(0) / 2, (z * bell).mean(0)
    influence = ((bell - mean) + second * (z.square() - 1) + first * z).double()
    parts = torch.zeros(count, y.shape[1], dtype=torch.float64, device=y.device)
    parts.index_add_(0, groups, influence)
    return _UNIT * (mean.double() - _HALF), _UNIT * parts / len(y)


def _rare(rows: Tensor) -> bool:
    """True where the top hundredth of samples carries over 30 % of the median axis' variance."""
    squares = rows.square()
    top = squares.sort(0, descending=True).values[: max(1, len(rows) // 100)].sum(0)
    share = top / squares.sum(0).clamp_min(1e-30)
    return float(share.median()) > 0.3


def _student_quantile(freedom: int) -> float:
    from scipy.stats import t

    return float(t.ppf(_LEVEL, freedom))
