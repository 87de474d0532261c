"""Constants of positions as a longer input would show them.

A mask of the positions behind the sixteenth is all false for an example of five, and a table that
is one for the first positions multiplies nothing. What is derived of a model is to be true of every
input: such constants are taken as they are at positions far apart.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from basis_probe.model.graph import POINTWISE, Graph, constant, is_one_number, replay
from basis_probe.model.trace import Fixed, Node, Ref, Trace, fixed_in, tensors_in

_COUNTS = frozenset({"arange"})
_SIZED = frozenset(
    "tril triu eye cumsum cumprod linspace logspace range tensor as_tensor asarray scatter "
    "scatter_ scatter_add setitem overwritten pad cat stack hstack vstack getitem split output "
    "chunk narrow tensor_split as_strided unfold index_select gather take flip roll sort "
    "repeat_interleave "
    "index_fill index_put index_copy slice_scatter select_scatter one_hot bincount bucketize "
    "tril_indices triu_indices meshgrid cartesian_prod unrecorded".split()
)
"""Calls whose result may be another where the input is longer."""
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
    behind = _Behind(trace, sources)
    waiting: dict[int, frozenset[int]] = {}
    for index, axes in _acting(graph):
        if behind.sources(index) or not behind.is_understood(index):
            waiting[index] = waiting.get(index, frozenset()) | axes
    alike = {i: same for i, axes in waiting.items() if (same := _alike(trace, i, axes))}
    if not alike:
        return {}
    chosen = {i for index in alike for i in behind.without_parameters(index)}
    made = at_positions(trace, chosen) or {}
    there = dataclasses.replace(trace, further=made)
    differs = {i for i, axes in alike.items() if axes - _alike(there, i, axes)}
    found = {i: made[i] for index in differs for i in behind.without_parameters(index)}
    for index in alike.keys() - differs:
        everywhere = alike[index] == waiting[index]
        if everywhere and index not in found and not behind.is_understood(index):
            # Further positions may be apart from these, as one that is chosen by its number.
            found |= _mixed(trace, index, alike[index])
    return found


def of_one_position(graph: Graph) -> frozenset[int]:
    """The vertices around features that meet what belongs to a position, of which there is one.

    Nothing is seen of what others have there: a row of a mask, of a table, of an embedding.
    """
    trace = graph.trace
    found: set[int] = set()
    single = _Behind(trace, frozenset(n.index for n in trace.nodes if _is_single(trace, n)))
    for node in trace.nodes:
        layout = graph.layouts.get(node.index)
        if not node.live or node.op not in POINTWISE or layout is None:
            continue
        rest = [s for axis, s in enumerate(node.shape) if axis > 0 and axis not in layout.axes]
        if not rest or max(rest) > 1:
            continue  # Examples have no positions, or several.
        given = (*node.args, *node.kwargs.values())
        if any(isinstance(v, Ref) and single.sources(v.node) for v in given):
            found |= _nearest(graph, node.index, lambda index: trace.node(index).inputs)
            found |= _nearest(graph, node.index, lambda index: trace.readers.get(index, ()))
    return frozenset(found)


def _is_single(trace: Trace, node: Node) -> bool:
    """True for one position that is counted, and for the first row of a table of several."""
    if node.live or node.function is None:
        return False
    if node.op in _COUNTS:
        return not node.inputs and node.shape == (1,)
    table = node.args[0] if node.args else None
    if node.op not in _PICKS or is_one_number(trace, table):
        return False
    if isinstance(table, Fixed):
        shape = tuple(table.tensor.shape)
        if isinstance(table.tensor, nn.Parameter) and len(shape) < 2:
            return False  # An entry of a vector, which all features take.
    elif isinstance(table, Ref):
        shape = trace.node(table.node).shape
    else:
        return False
    places = node.args[1] if len(node.args) > 1 else ()
    items = places if isinstance(places, tuple) else (places,)
    ends = [item for item in items if isinstance(item, slice) and item.stop == 1]
    shown = any(item.start in (None, 0) for item in ends)
    return shown and math.prod(shape) > math.prod(node.shape)


def _nearest(graph: Graph, start: int, further: Callable[[int], Iterable[int]]) -> set[int]:
    """The first vertices on every way from a call."""
    found, seen, waiting = set[int](), set[int](), [start]
    while waiting:
        here = waiting.pop()
        if here in seen or not graph.trace.node(here).live:
            continue
        seen.add(here)
        if here in graph.same:
            found.add(graph.same[here])
        if here not in graph.same or here == start:
            waiting.extend(further(here))
    return found


def of_shorter(trace: Trace, further: dict[int, Tensor]) -> dict[int, Tensor]:
    """The same constants in another record of the same model, of a shorter example."""
    made = at_positions(trace, further) or {}
    found: dict[int, Tensor] = {}
    for index, value in further.items():
        plain, own = constant(trace, Ref(index)), made.get(index)
        if plain is None:
            continue
        if own is None or torch.equal(own, plain):
            own = value[tuple(slice(size) for size in plain.shape)]
        if own.shape == plain.shape:
            found[index] = own
    return found


def _mixed(trace: Trace, index: int, axes: frozenset[int]) -> dict[int, Tensor]:
    """Other numbers at every second position, where how positions made them is not followed."""
    value = constant(trace, Ref(index))
    if value is None:
        return {}
    axis = min(axes)
    places = torch.arange(1, value.shape[axis], 2, device=value.device)
    some = value.index_select(axis, places)
    if value.dtype is torch.bool:
        some = ~some
    elif value.is_floating_point():
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randn(some.shape, generator=generator, dtype=torch.float64).to(some)
        some = torch.where(some.isfinite(), some, torch.zeros_like(some)) + drawn
    else:
        some = some + 1
    return {index: value.index_copy(axis, places, some)}


def at_positions(trace: Trace, nodes: Iterable[int]) -> dict[int, Tensor] | None:
    """What some calls return at positions as far apart as can be run; None if at none.

    Args:
        trace: the record.
        nodes: calls that use neither an input nor a parameter.
    """
    chosen = [*nodes]
    tries = (_at(trace, chosen, size) for size in _FARTHEST)
    return next((found for found in tries if found is not None), None)


def _at(trace: Trace, nodes: Iterable[int], farthest: int) -> dict[int, Tensor] | None:
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


def _shortened(node: Node) -> Iterator[tuple[int, Tensor]]:
    """The axes of a table of which a part is shown, and the places along them that are."""
    table = node.args[0].tensor
    numbers = torch.arange(table.numel(), device=table.device).view(table.shape)
    assert node.function is not None
    shown: Tensor = node.function(numbers, *node.args[1:], **node.kwargs).flatten()
    for axis, size in enumerate(table.shape):
        used = (shown // numbers.stride(axis) % size).unique()
        if 1 < len(used) < size:
            yield axis, used


def _is_even(node: Node) -> bool:
    """True if the numbers of a table are the same along every axis of which a part is shown."""
    table = node.args[0].tensor
    return all(bool((table == table.narrow(axis, 0, 1)).all()) for axis, _ in _shortened(node))


def _moved(trace: Trace, node: Node, farthest: int) -> Tensor:
    """What a source would show at positions far apart."""
    if node.op in _COUNTS:
        counted = replay(trace, node.index, {})
        step = counted[1] - counted[0]
        far = _spread(len(counted), max(farthest, len(counted) - 1))
        return counted[0] + step * far.to(counted)
    table = node.args[0].tensor.detach()
    for axis, used in _shortened(node):
        size = table.shape[axis]
        order = torch.arange(size, device=table.device)
        order[used] = _spread(len(used), size - 1).to(order)
        table = table.index_select(axis, order)
    assert node.function is not None
    return node.function(table, *node.args[1:], **node.kwargs)


def _spread(count: int, farthest: int) -> Tensor:
    """Positions from the first to the farthest, more of them near than far."""
    far = [round((farthest + 1) ** (place / (count - 1))) - 1 for place in range(count)]
    return torch.tensor([max(place, found) for place, found in enumerate(far)])


class _Behind:
    """What constants are computed from."""

    def __init__(self, trace: Trace, sources: frozenset[int]) -> None:
        self.trace, self._sources, self._from = trace, sources, dict[int, bool]()
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

    def is_understood(self, index: int) -> bool:
        """True for numbers that no longer input changes: of whole or even tables, and fills."""
        if self._learned.get(index, False):
            return True  # Rows of a learned table differ, wherever they are.
        seen, waiting = set[int](), [index]
        while waiting:
            here = waiting.pop()
            node = self.trace.node(here)
            if here in seen or is_one_number(self.trace, Ref(here)):
                continue
            seen.add(here)
            if here in self._sources and node.op in _PICKS:
                if not _is_even(node):
                    return False
                continue
            if node.live or node.op in _COUNTS or node.op in _SIZED:
                return False
            waiting.extend(node.inputs)
        return True

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
        if not node.live or layout is None or node.op not in POINTWISE:
            continue
        for value in (*node.args, *node.kwargs.values()):
            if isinstance(value, Ref) and not trace.node(value.node).live:
                shape = trace.node(value.node).shape
                lead = len(node.shape) - len(shape)
                axes = {
                    axis
                    for axis, size in enumerate(shape)
                    if size > 1
                    and lead >= 0
                    and axis + lead not in layout.axes
                    and (axis + lead > 0 or size != trace.example_batch)
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
