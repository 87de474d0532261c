"""The same record on fewer positions of texts, or on a part of images."""

import functools
from typing import Any

import torch
from torch import Tensor

from basis_probe.model.batches import Batch
from basis_probe.model.network import Subject
from basis_probe.model.trace import Node, Trace, fixed_in

POSITIONS, FEWEST = 16, 8
"""So many positions of all texts are enough to try whether a function stays the same, and of each
text at least so many."""
_CHOOSING = frozenset({"topk", "sort", "argsort", "argmax", "nonzero", "one_hot"})
"""What chooses among experts: of more texts more experts are given rows."""
PIXELS = 96
"""So many rows and columns of every image are: halved five times they still are three."""


def shorter(subject: Subject, batch: Batch, trace: Trace) -> tuple[Batch, Trace]:
    """A batch of shorter texts or smaller images, and the model's record on it, node by node.

    Args:
        subject: the model.
        batch: what the record was made of.
        trace: the record.

    Returns:
        Batch and record as they were given where the texts are short, where it is not known which
        axes are positions, or where the model does something else on shorter texts. Where the model
        may give rows out to experts, every text keeps as many positions as all have elsewhere.
    """
    chooses = any(node.live and node.op in _CHOOSING for node in trace.nodes)
    each = POSITIONS if chooses else max(FEWEST, POSITIONS // max(1, batch.size))
    for change in (functools.partial(_cut, positions=each), _cut, _cropped, _alone):
        few = change(batch)
        if few is None:
            continue
        try:
            made = subject.watch(few, trace)
        except Exception:
            continue
        if _does_the_same(trace, made):
            return few, made
    return batch, trace


def _cut(batch: Batch, positions: int = POSITIONS) -> Batch | None:
    ids = batch.inputs
    if ids.ndim != 2 or ids.is_floating_point() or ids.shape[1] <= positions:
        return None
    length = ids.shape[1]
    for tensor in batch.named().values():
        if length in (*tensor.shape[:1], *tensor.shape[2:]):
            return None
    masks = [batch.counts(mask) for mask in batch.masks if mask.axes == (0, 1)]
    starts = (0, length - positions)
    # Where padding stands in front, the last positions are those that count.
    start = max(starts, key=lambda s: sum(int(m[:, s : s + positions].sum()) for m in masks))

    def cut(value: Any) -> Any:
        along = isinstance(value, Tensor) and value.ndim > 1 and value.shape[1] == length
        return value[:, start : start + positions].clone() if along else value

    return batch.mapped(cut)


def _cropped(batch: Batch) -> Batch | None:
    """The middle of every image, where it is known which axes are rows and columns of pixels."""
    images = batch.inputs
    if images.ndim != 4 or not images.is_floating_point() or min(images.shape[2:]) < 2 * PIXELS:
        return None
    others = [tensor for tensor in batch.named().values() if tensor is not images]
    if any(size in tensor.shape for tensor in others for size in images.shape[2:]):
        return None
    some = tuple(slice((size - PIXELS) // 2, (size + PIXELS) // 2) for size in images.shape[2:])

    def cropped(value: Any) -> Any:
        return value[..., some[0], some[1]].clone() if value is images else value

    return batch.mapped(cropped)


def _alone(batch: Batch) -> Batch | None:
    """The first of some images, where they are large."""
    images = batch.inputs
    large = images.is_floating_point() and images[:1].numel() > PIXELS**2
    return batch.first(1) if large and images.ndim == 4 and batch.size > 1 else None


def _does_the_same(one: Trace, other: Trace) -> bool:
    """True if two records hold the same calls, of the same weights, in the same order."""
    if (len(one.nodes), one.outputs, one.asked) != (len(other.nodes), other.outputs, other.asked):
        return False
    return all(map(_is_same, one.nodes, other.nodes))


def _is_same(one: Node, other: Node) -> bool:
    places = ("op", "inputs", "live", "floating", "module", "call", "ordinal", "inplace")
    if any(getattr(one, place) != getattr(other, place) for place in places):
        return False
    weights = (
        [id(fixed.tensor) for fixed in fixed_in((n.args, n.kwargs)) if _is_weight(fixed.tensor)]
        for n in (one, other)
    )
    return next(weights) == next(weights)


def _is_weight(tensor: Tensor) -> bool:
    return isinstance(tensor, torch.nn.Parameter)
