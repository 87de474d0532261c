"""Whether axes have a floor, a ceiling or a dead zone, by the values that they take."""

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


def floor_of(x: Float[Tensor, "samples dim"]) -> str:
    """What most axes have that a nonlinearity makes and no turned axis has; empty for nothing.

    Ties: one value, or two, is taken far more often than any other, as zero behind a ReLU or a
    shrinkage and both ends of a clamp. Piles: one tail, from the first to the tenth hundredth of
    the samples, is far shorter than the other, as behind a GELU or softplus. The smallest and the
    largest value alone say nothing: one far sample moves them.

    Args:
        x: activations, [samples, dim]; of more than 256 axes some are looked at.

    Example:
        >>> x = torch.randn(500, 6, generator=torch.Generator().manual_seed(0))
        >>> floor_of(x), floor_of(x.relu())
        ('', 'most axes take one value far more often than any other')
    """
    rows = x.detach()
    if rows.shape[1] > _AXES:
        rows = rows[:, torch.linspace(0, rows.shape[1] - 1, _AXES).long()]
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
    return ""


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
