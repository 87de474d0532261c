"""Constants of positions as a longer input would show them.

A mask of the positions behind the sixteenth is all false for an example of five, and a table that
is one for the first positions multiplies nothing. What is derived of a model is to be true of every
input: such constants are taken as they are at positions far apart.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from basis_probe.model.graph import POINTWISE, Graph, constant, replay
from basis_probe.model.trace import Fixed, Node, Ref, Trace, fixed_in, tensors_in

_COUNTS = frozenset({"arange"})
_PICKS = frozenset({"getitem"})
_FARTHEST = (100_000, 4_000, 500, 60, 0)
"""How far apart the first and the last position are, at most; the farthest that can be run."""


def further_positions(graph: Graph) -> dict[int, Tensor]:
    """Calls whose results are alike at all positions of the example, and not at those further on.

    Only calls that use no parameter are among them, and only those that act on features in the end.

    Args:
        graph: the condensed graph.

    Returns:
        Node -> its numbers at positions far apart, of the shape that it has.
    """
    trace = graph.trace
    sources = frozenset(node.index for node in trace.nodes if _is_source(trace, node))
    if not sources:
        return {}
    behind = _Behind(trace, sources)
    waiting: dict[int, frozenset[int]] = {}
    for index, axes in _acting(graph):
        if behind.sources(index):
            waiting[index] = waiting.get(index, frozenset()) | axes
    alike = {i: same for i, axes in waiting.items() if (same := _alike(trace, i, axes))}
    if not alike:
        return {}
    chosen = {i for index in alike for i in behind.without_parameters(index)}
    for farthest in _FARTHEST:
        made = at_positions(trace, chosen, farthest)
        if made is not None:
            there = dataclasses.replace(trace, further=made)
            differs = {i for i, axes in alike.items() if axes - _alike(there, i, axes)}
            return {i: made[i] for index in differs for i in behind.without_parameters(index)}
    return {}


def at_positions(
    trace: Trace, nodes: Iterable[int], farthest: int | None = None
) -> dict[int, Tensor] | None:
    """What some calls return at positions far apart; None if they cannot be made there.

    Args:
        trace: the record.
        nodes: calls that use neither an input nor a parameter.
        farthest: how far apart the first and the last position are; None for as far as can be run.
    """
    if farthest is None:
        tries = (at_positions(trace, nodes, size) for size in _FARTHEST)
        return next((found for found in tries if found is not None), None)
    moved: dict[int, Tensor] = {}
    made: dict[int, Tensor] = {}
    try:
        for node in trace.nodes:
            if _is_source(trace, node):
                moved[node.index] = _moved(trace, node, farthest)
        for index in nodes:
            made[index] = replay(trace, index, moved) if index not in moved else moved[index]
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError):
        return None
    fits = all(tuple(tensor.shape) == trace.node(index).shape for index, tensor in made.items())
    return made if fits and _can_be_used(trace, made) else None


def _can_be_used(trace: Trace, made: dict[int, Tensor]) -> bool:
    """True if what other constants are made of can be made of it: a table may be shorter."""
    there, reached = dataclasses.replace(trace, further=made), set(made)
    for node in trace.nodes:
        if node.live or node.function is None or reached.isdisjoint(node.inputs):
            continue
        reached.add(node.index)
        try:
            replay(there, node.index, {})
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError):
            return False
    return True


def is_of_positions(trace: Trace, index: int) -> bool:
    """True if a call is computed from positions that are counted, or a part of a longer table."""
    seen, waiting = set[int](), [index]
    while waiting:
        here = waiting.pop()
        if here not in seen:
            seen.add(here)
            if _is_source(trace, trace.node(here)):
                return True
            waiting.extend(trace.node(here).inputs)
    return False


def _is_source(trace: Trace, node: Node) -> bool:
    """True for positions that are counted, and for a part of a longer table of constants."""
    if node.live or node.function is None or max(node.shape, default=1) == 1:
        return False
    if node.op in _COUNTS:
        return not node.inputs
    if node.op not in _PICKS or not node.args or not isinstance(node.args[0], Fixed):
        return False
    table = node.args[0].tensor
    part = table.numel() > math.prod(node.shape)
    plain = not any(True for _ in tensors_in((node.args[1:], node.kwargs))) and not node.inputs
    return part and plain and not isinstance(table, nn.Parameter) and not table.is_meta


def _moved(trace: Trace, node: Node, farthest: int) -> Tensor:
    """What a source would show at positions far apart."""
    if node.op in _COUNTS:
        counted = replay(trace, node.index, {})
        step = counted[1] - counted[0]
        far = _spread(len(counted), max(farthest, len(counted) - 1))
        return counted[0] + step * far.to(counted)
    table = node.args[0].tensor.detach()
    numbers = torch.arange(table.numel(), device=table.device).view(table.shape)
    assert node.function is not None
    shown: Tensor = node.function(numbers, *node.args[1:], **node.kwargs).flatten()
    for axis, size in enumerate(table.shape):
        stride = numbers.stride(axis)
        used = (shown // stride % size).unique()
        if 1 < len(used) < size:
            order = torch.arange(size, device=table.device)
            order[used] = _spread(len(used), size - 1).to(order)
            table = table.index_select(axis, order)
    return node.function(table, *node.args[1:], **node.kwargs)


def _spread(count: int, farthest: int) -> Tensor:
    """Positions from the first to the farthest, more of them near than far."""
    far = [round((farthest + 1) ** (place / (count - 1))) - 1 for place in range(count)]
    return torch.tensor([max(place, found) for place, found in enumerate(far)])


class _Behind:
    """What constants are computed from."""

    def __init__(self, trace: Trace, sources: frozenset[int]) -> None:
        self.trace, self._from = trace, dict[int, bool]()
        self._learned = dict[int, bool]()
        for node in trace.nodes:
            if node.live:
                continue
            index = node.index
            inputs = node.inputs
            self._from[index] = index in sources or any(self._from.get(i, False) for i in inputs)
            fixed = any(
                isinstance(value.tensor, nn.Parameter)
                for value in fixed_in((node.args, node.kwargs))
            )
            self._learned[index] = fixed or any(self._learned.get(i, False) for i in inputs)

    def sources(self, index: int) -> bool:
        """True if a constant is computed from positions."""
        return self._from.get(index, False)

    def without_parameters(self, index: int) -> Iterator[int]:
        """The last calls behind a constant that are made of positions and of no parameter."""
        seen, waiting = set[int](), [index]
        while waiting:
            here = waiting.pop()
            if here in seen or not self.sources(here):
                continue
            seen.add(here)
            if self._learned[here]:
                waiting.extend(self.trace.node(here).inputs)
            else:
                yield here


def _acting(graph: Graph) -> Iterator[tuple[int, frozenset[int]]]:
    """Constants that meet features, and those of their axes that are not the features'."""
    trace = graph.trace
    for node in trace.nodes:
        layout = graph.layouts.get(node.index)
        if not node.live or not node.floating or layout is None or node.op not in POINTWISE:
            continue
        for value in (*node.args, *node.kwargs.values()):
            if isinstance(value, Ref) and not trace.node(value.node).live:
                shape = trace.node(value.node).shape
                lead = len(node.shape) - len(shape)
                axes = {
                    axis
                    for axis, size in enumerate(shape)
                    if size > 1 and lead >= 0 and axis + lead not in layout.axes
                }
                if axes and all(
                    size in (1, own) for size, own in zip(shape, node.shape[lead:], strict=True)
                ):
                    yield value.node, frozenset(axes)


def _alike(trace: Trace, index: int, axes: frozenset[int]) -> frozenset[int]:
    """Those of the axes along which all numbers of a constant are alike."""
    value = constant(trace, Ref(index))
    if value is None or value.is_meta or value.dim() <= max(axes):
        return frozenset()
    return frozenset(axis for axis in axes if bool((value == value.narrow(axis, 0, 1)).all()))
