"""Whether axes were bent: by floors, ceilings and dead zones, or flatter than turned axes are."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

_TIED = 0.005
_FEWEST_TIED = 8
_TIMES = 4
_TAIL, _EDGE = 0.10, 0.01
_UNEVEN = 0.3
_NOISE = 10.0
_AXES = 256
_TURNED, _PARTS, _FEWEST_ROWS = 64, 10, 8
_FEWEST_AXES, _QUANTILE, _SURE = 8, 0.95, 3.0
_FLAT, _ERRORS = 0.03, 4.0
_EXCESS = 32 * math.sqrt(2)
"""So scaled the bounded excess kurtosis is the excess kurtosis where that is small."""


def floor_of(x: Float[Tensor, "samples dim"]) -> str:
    """What most axes have that a nonlinearity makes and no turned axis has; empty for nothing.

    Ties: one value, or two, is taken far more often than any other, as zero behind a ReLU or a
    shrinkage and both ends of a clamp. Piles: one tail, from the first to the tenth hundredth of
    the samples, is far shorter than the other, as behind a GELU or softplus. Leaning: most axes are
    more lopsided than nearly all turned ones, as behind a maximum. Flatness: on average
    the axes have less excess kurtosis than turned axes, in all parts of the samples, as behind a
    tanh or a sigmoid, which flatten whatever they are given. The smallest and the largest value
    alone say nothing: one far sample moves them.

    Args:
        x: activations, [samples, dim]; of more than 256 axes some are looked at.

    Example:
        >>> x = torch.randn(500, 6, generator=torch.Generator().manual_seed(0))
        >>> floor_of(x), floor_of(x.relu())
        ('', 'most axes take one value far more often than any other')
    """
    rows = x.detach()
    if rows.shape[1] > _AXES:
        rows = rows[:, torch.linspace(0, rows.shape[1] - 1, _AXES, dtype=torch.float32).long()]
    # A row that is there many times, as that of a first token, ties with itself on every axis.
    rows = rows.double().unique(dim=0)
    ordered = rows.sort(0).values
    live = ordered[-1] > ordered[0]
    if len(rows) < 2 * _FEWEST_TIED or not bool(live.any()):
        return ""
    ordered = ordered[:, live]
    if float(_ties(ordered).double().mean()) > 0.5:
        return "most axes take one value far more often than any other"
    if float(_unevenness(ordered)) > _UNEVEN + _NOISE / math.sqrt(len(rows)):
        return "most axes pile up on one side"
    return _bent(rows[:, live])


def _bent(rows: Tensor) -> str:
    """What the axes have beyond directions of a turned basis, both at unit variance."""
    samples, dim = rows.shape
    if samples < _PARTS * _FEWEST_ROWS or dim < 2:
        return ""
    rows = rows - rows.mean(0)
    rows = rows / rows.std(0, correction=0)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(dim, min(dim, _TURNED), generator=generator, dtype=torch.float64)
    turned = rows @ torch.linalg.qr(drawn)[0].to(rows)
    further = _lean(rows).abs().median() > _lean(turned).abs().quantile(_QUANTILE)
    if dim >= _FEWEST_AXES and bool(further) and _agreement(rows, generator) > _SURE:
        return "most axes lean to one side further than turned ones"
    if _flatter(rows, turned, generator):
        return "the axes are flatter than turned ones, as values that are squashed"
    return ""


def _lean(rows: Tensor) -> Tensor:
    """How far every column leans to one side: E z exp(-z^2/2), which no far value rules."""
    z = rows - rows.mean(0)
    z = z / z.std(0, correction=0).clamp_min(1e-300)
    return (z * (-z.square() / 2).exp()).mean(0)


def _agreement(rows: Tensor, generator: torch.Generator) -> float:
    """The mean product of what columns lean on two halves of the rows, in standard errors.

    Heavy tails make more of an axis' lean by chance than of a turned one's, to either side.
    """
    order = torch.randperm(len(rows), generator=generator).to(rows.device)
    one, other = (_lean(rows[part]) for part in order.tensor_split(2))
    both = one * other
    return float(both.mean() / both.std().clamp_min(1e-300)) * math.sqrt(len(both))


def _flatter(rows: Tensor, turned: Tensor, generator: torch.Generator) -> bool:
    """Whether the axes have less excess kurtosis than turned directions, on average.

    The bounded excess kurtosis, proportional to E exp(-z^2/2) - sqrt(1/2), which no far value
    rules; its error is that of ten parts of the samples.
    """
    samples = len(rows)
    order = torch.randperm(samples, generator=generator).to(rows.device)
    apart = torch.stack(
        [_bounded(rows[part]) - _bounded(turned[part]) for part in order.tensor_split(_PARTS)]
    )
    error = float(apart.std()) / math.sqrt(_PARTS)
    return float(apart.mean()) < -max(_FLAT, _ERRORS * error)


def _bounded(rows: Tensor) -> Tensor:
    """The mean over columns of their bounded excess kurtosis."""
    centred = rows - rows.mean(0)
    z = centred.square() / centred.square().mean(0).clamp_min(1e-300)
    return _EXCESS * ((-z / 2).exp().mean() - math.sqrt(0.5))


def _ties(ordered: Tensor) -> Tensor:
    """For every axis whether one or two values are taken far more often than the next, [dim]."""
    samples = len(ordered)
    found: list[bool] = []
    for column in ordered.T:
        counts = (
            torch.unique_consecutive(column, return_counts=True)[1].sort(descending=True).values
        )
        third = int(counts[2]) if len(counts) > 2 else 0
        most = int(counts[0])
        often = max(_FEWEST_TIED, _TIED * samples)
        found.append(most >= often and most >= _TIMES * third)
    return torch.tensor(found)


def _unevenness(ordered: Tensor) -> Tensor:
    """The median over axes of |log(lower tail / upper tail)|."""
    samples = len(ordered)

    def at(share: float) -> Tensor:
        return ordered[min(samples - 1, max(0, round(share * (samples - 1))))]

    lower = (at(_TAIL) - at(_EDGE)).clamp_min(1e-300)
    upper = (at(1 - _EDGE) - at(1 - _TAIL)).clamp_min(1e-300)
    return (lower.log() - upper.log()).abs().median()
