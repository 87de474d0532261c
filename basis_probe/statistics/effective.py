"""How many samples are worth counting: different ones, and unrelated ones."""

import torch
from jaxtyping import Float
from torch import Tensor

from basis_probe.statistics.gram import gram
from basis_probe.statistics.moments import float64_device

_ALIKE = 1e-5
"""Rows that differ by less than so much of their length are the same row, computed twice."""
_ROUNDING = 4
"""So are rows that differ by less than so many roundings of their length about zero."""
_SHORT, _LONG = 1e-15, 1e15
_DIRECTIONS = 8
_NEIGHBOURS = 16
_CACHED = 2**17
"""So many numbers are worked on at a time on a processor."""


def distinct_rows(x: Float[Tensor, "samples dim"], *, eps: float | None = None) -> int:
    """The number of different rows.

    What is fitted to rows, such as a covariance, learns nothing from a row that comes again. A
    row counts as seen before if it agrees with one of its neighbours to five digits of its length
    about the mean of the shorter half, or to the last digits of its values, in eight fixed random
    directions, where neighbours are the sixteen rows before it in the order along the first of
    these: batches of other sizes change the last digits of a row.

    Args:
        x: activations, [samples, dim]. Rows that are not finite count as one each. Rows that a
            model computed in half precision differ in the third digit, and may all count.
        eps: the relative rounding of the values; None for that of their type.

    Example:
        >>> distinct_rows(torch.tensor([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0]]))
        2
    """
    if eps is None:
        eps = torch.finfo(x.dtype).eps
    rows = x.detach()
    lengths = rows.norm(dim=1)
    # Rows are told apart by five digits, for which single precision is enough but for its range.
    known = rows.dtype is torch.float32 and ((lengths > _SHORT) & (lengths < _LONG)).all()
    if not known:
        rows = rows.to(float64_device(x)).to(torch.float64)
    alone = 0
    if not known:
        finite = rows.isfinite().all(1)
        alone = int((~finite).sum())
        rows = rows if not alone else rows[finite]
    if not len(rows):
        return alone
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(x.shape[1], _DIRECTIONS, generator=generator, dtype=torch.float64)
    rounding = _ROUNDING * eps * rows.norm(dim=1)
    directions = (directions / directions.norm(dim=0)).to(rows)
    about: list[Tensor] = []
    projected: list[Tensor] = []
    # Far rows would move the mean of all beyond the others.
    lengths = rows.norm(dim=1)
    near = (lengths <= lengths.median()).to(rows)
    mean = near @ rows / near.sum()
    for some in _pieces(rows):
        piece = some - mean
        about.append(piece.norm(dim=1))
        projected.append(piece @ directions)
    alike = (_ALIKE * torch.cat(about)).maximum(rounding)
    seen = torch.cat(projected)
    order = seen[:, 0].argsort()
    seen, alike = seen[order], alike[order]
    again = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    for back in range(1, min(_NEIGHBOURS, len(rows) - 1) + 1):
        apart = (seen[back:] - seen[:-back]).abs().amax(1)
        again[back:] |= apart <= alike[back:]
    return alone + int((~again).sum())


def effective_samples(
    x: Float[Tensor, "samples dim"],
    *,
    pairs: int = 1024,
    generator: torch.Generator | None = None,
) -> float:
    """As how many unrelated samples these count in an average over samples of a fourth power.

    1 / mean_{s,t} cos^4 of the angle between samples s and t, each with itself among them: T for
    orthogonal samples, 1 for parallel ones, 1.5 for any number at mean cosine 0.9. In n dimensions
    even unrelated samples are never quite orthogonal, so that it stays below n (n+2) / 3.

    Args:
        x: activations, [samples, dim]; rows of zeros are left out.
        pairs: above this many samples the mean is estimated from a random subset of this size.
        generator: draws the subset; needed where there are more samples than `pairs`.

    Raises:
        ValueError: if no row is other than zero, or a subset is needed and no generator given.

    Example:
        >>> round(effective_samples(torch.eye(5)), 6), round(effective_samples(torch.ones(5, 3)), 6)
        (5.0, 1.0)
    """
    rows = x.detach().to(float64_device(x))
    some = rows.any(1).nonzero().squeeze(1)
    samples = len(some)
    if samples == 0:
        raise ValueError(f"none of {len(x)} samples is other than zero: leave this site out")
    if samples > pairs:
        if generator is None:
            raise ValueError(f"{samples} samples are more than pairs={pairs}: give a generator")
        some = some[torch.randperm(samples, generator=generator)[:pairs].to(rows.device)]
    kind = torch.float64 if x.dtype is torch.float64 else torch.float32
    unit = rows.new_empty(len(some), rows.shape[1], dtype=kind)
    for place, chosen in zip(_pieces(unit), _pieces(unit, some), strict=True):
        piece = rows[chosen].to(torch.float64)
        place.copy_(piece.div_(piece.norm(dim=1, keepdim=True)))
    count = len(unit)
    fourth = gram(unit).square_().square_().fill_diagonal_(0.0).sum(dtype=torch.float64)
    apart = float(fourth) / (count * (count - 1)) if count > 1 else 0.0
    return 1 / (1 / samples + (1 - 1 / samples) * max(apart, 0.0))


def _pieces(rows: Tensor, values: Tensor | None = None) -> tuple[Tensor, ...]:
    """Rows, or values of theirs, in parts of which a processor's cache holds the rows of one.

    An accelerator is given all at once.
    """
    at_once = _CACHED // max(1, rows.shape[1]) if rows.device.type == "cpu" else len(rows)
    return (rows if values is None else values).split(max(1, at_once))
