"""Streams that one matrix, or one vector, acts on in several places: they change together."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from basis_probe.architecture.vectors import Meeting, places_of, span, with_one_vector
from basis_probe.model.facts import Facts, leaves_of, matrix, shared, vectors_of
from basis_probe.model.graph import Kind
from basis_probe.model.trace import Fixed, Trace, fixed_in


@dataclasses.dataclass(frozen=True)
class Tie:
    """Two vertices that one matrix reads, or writes, in two places.

    Attributes:
        own, other: the vertices.
        stream: the stream of the other.
        transposed: True if one changes by the inverse transpose of the other, as where a matrix
            reads what its transpose writes.
    """

    own: int
    other: int
    stream: int
    transposed: bool


_CHANNELWISE = (Kind.BATCH_NORM, Kind.GROUP_NORM, Kind.DEPTHWISE)


def ties_of(facts: Facts, meeting: Iterable[Meeting]) -> dict[int, tuple[Tie, ...]]:
    """Stream -> its ties to others, and to itself by a transpose.

    Args:
        facts: what was seen of the model.
        meeting: pairs of uses of vectors that have numbers in common.
    """
    found: dict[int, list[Tie]] = {}
    stream_of = facts.stream_of

    def tie(a: int, b: int, transposed: bool) -> None:
        streams = facts.streams[stream_of[a]], facts.streams[stream_of[b]]
        if not all(stream.readers or stream.returned for stream in streams):
            return  # Nothing depends on one of them.
        if stream_of[a] != stream_of[b] or transposed:
            found.setdefault(stream_of[a], []).append(Tie(a, b, stream_of[b], transposed))
            found.setdefault(stream_of[b], []).append(Tie(b, a, stream_of[a], transposed))

    layouts, vertices = facts.graph.layouts, facts.graph.vertices
    for first, second, transposed in shared(facts):
        # An embedding writes, and reads no features.
        a, b = (next(iter(vertices[v].used), None) for v in (first, second))
        if not transposed:
            tie(first, second, False)
            for one, other in _same_parts(facts, first, second):
                tie(one, other, False)
            if a is not None and b is not None:
                tie(a, b, False)
            continue
        for read, written in ((b, first), (a, second)):
            if read is not None and layouts.get(read) is not None:
                tie(written, read, True)
    for first, second in (*_sharing(facts), *with_one_vector(facts, meeting)):
        tie(first, second, False)
    for stream in facts.streams:
        parts: dict[tuple[int, ...], int] = {}
        for reader in stream.readers:
            vertex = facts.graph.vertices[reader]
            if vertex.kind is Kind.PART and vertex.part is not None:
                # What takes the same part of a tensor twice is written by the same rows.
                tie(parts.setdefault(vertex.part, reader), reader, False)
    return {stream: tuple(dict.fromkeys(ties)) for stream, ties in found.items()}


def _same_parts(facts: Facts, first: int, second: int) -> Iterator[tuple[int, int]]:
    """What is taken alike of what two maps write: the same rows of a matrix write both."""
    taken: list[dict[tuple[int, ...], int]] = []
    for writer in (first, second):
        readers = facts.streams[facts.stream_of[writer]].readers
        parts = (facts.graph.vertices[reader] for reader in readers)
        taken.append({v.part: v.node for v in parts if v.kind is Kind.PART and v.part is not None})
    for part in taken[0].keys() & taken[1].keys():
        yield taken[0][part], taken[1][part]


def _sharing(facts: Facts) -> Iterator[tuple[int, int]]:
    """Pairs of vertices whose features one vector acts on, such as the gain of a norm."""
    graph, users = facts.graph, dict[int, list[int]]()
    for index, vertex in graph.vertices.items():
        region = facts.regions.get(index)
        if vertex.kind in _CHANNELWISE:
            node = graph.trace.node(index)
            found = fixed_in((node.args, node.kwargs))
            used = [fixed.tensor for fixed in found if fixed.name is not None]
        elif region is not None and region.function is not None and not region.within:
            found = (fixed.tensor for _, fixed in vectors_of(graph, vertex))
            width = graph.trace.node(index).shape[graph.layouts[index].axes[-1]]
            learned = [tensor for tensor in found if isinstance(tensor, nn.Parameter)]
            used = [tensor for tensor in learned if tensor.numel() == width]
        else:
            continue
        for key in {id(tensor) for tensor in used}:
            users.setdefault(key, []).append(index)
    for several in users.values():
        for first, second in itertools.pairwise(several):
            if facts.stream_of[first] == facts.stream_of[second]:
                continue  # They belong together anyway.
            one, other = (_source(facts, v) for v in (first, second))
            yield one, other
            if all(_keeps(facts, v) for v in (first, second)):
                yield first, second


def _source(facts: Facts, vertex: int) -> int:
    """What a function of single features reads; behind a norm, what the norm reads."""
    found = facts.graph.vertices[vertex]
    source = (*found.carried, *found.used)[0]
    region = facts.regions.get(source)
    return _source(facts, source) if region is not None and region.shape.is_norm else source


def _keeps(facts: Facts, vertex: int) -> bool:
    """True if features keep their axes at a vertex, whatever reads them behind it."""
    region = facts.regions.get(vertex)
    source = (*facts.graph.vertices[vertex].carried, *facts.graph.vertices[vertex].used)[0]
    normed = region is not None and region.shape.is_norm
    return not normed and _source(facts, vertex) == source


def read_by_number(facts: Facts) -> dict[int, str]:
    """Stream -> why its axes stay, where a matrix on it is also a table that tokens read."""
    found: dict[int, str] = {}
    vertices = facts.graph.vertices
    for pair in shared(facts):
        first, second, transposed = pair
        tables = [v for v in (first, second) if vertices[v].kind is Kind.EMBEDDING]
        others = [v for v in (first, second) if vertices[v].kind is not Kind.EMBEDDING]
        if len(tables) == 1:
            (other,) = others
            # Of a matrix and its transpose the rows of one are the columns of the other.
            place = other if transposed else next(iter(vertices[other].used), other)
            found[facts.stream_of[place]] = (
                "its axes are the rows of a table from which tokens pick by number"
            )
    return found


def overlapping(facts: Facts) -> dict[int, str]:
    """Linear map -> why it cannot change, where its matrix lies partly in that of another."""
    trace, places = facts.graph.trace, dict[int, list[tuple[int, int, int, Tensor]]]()
    spread = dict(_spread(trace))
    for index, vertex in facts.graph.vertices.items():
        if vertex.kind in (Kind.LINEAR, Kind.CONVOLUTION, Kind.GROUPED, Kind.DEPTHWISE):
            weight = matrix(trace, trace.node(index))
            if weight is not None and weight.numel():
                key, first, last = span(weight)
                if key in spread:
                    weight = matrix(trace, trace.node(index), spread[key])
                    if weight is None:
                        continue
                    _, first, last = span(weight)
                places.setdefault(key, []).append((first, last, index, weight))
    found: dict[int, str] = {}
    for several in places.values():
        ordered = sorted(several, key=lambda entry: entry[:3])
        for one, other in itertools.pairwise(ordered):
            if one[1] >= other[0] and _meet_in_part(one[3], other[3]):
                why = "its matrix overlaps with another one in the same parameter"
                found |= dict.fromkeys((one[2], other[2]), why)
    return found | dict.fromkeys(_computed_beside(facts), _COMPUTED_BESIDE)


_COMPUTED_BESIDE = (
    "a parameter that its matrix is made of is used elsewhere, too, and one of the two is computed "
    "from it"
)


def _computed_beside(facts: Facts) -> Iterator[int]:
    """Linear maps that share a parameter with others, where a matrix is more than a view of it."""
    trace, users = facts.graph.trace, dict[int, set[int]]()
    computed: set[int] = set()
    for index, vertex in facts.graph.vertices.items():
        if vertex.kind not in (Kind.LINEAR, Kind.CONVOLUTION, Kind.GROUPED, Kind.DEPTHWISE):
            continue
        node = trace.node(index)
        made = [i for i in node.inputs if not trace.node(i).live]
        fixed = [*fixed_in((node.args, node.kwargs))]
        for place in made:
            fixed += leaves_of(trace, place)
        own = {span(one.tensor)[0] for one in fixed if _is_matrix(one)}
        for key in own:
            users.setdefault(key, set()).add(index)
        weight = matrix(trace, node) if made else None
        if made and (weight is None or not weight.numel() or span(weight)[0] not in own):
            computed.add(index)
    for several in users.values():
        if len(several) > 1 and several & computed:
            yield from several


def _is_matrix(fixed: Fixed) -> bool:
    tensor = fixed.tensor
    plain = tensor.layout is torch.strided and not tensor.is_meta and tensor.numel() > 0
    return plain and fixed.name is not None and tensor.ndim > 1


def _spread(trace: Trace) -> Iterator[tuple[int, dict[int, Tensor]]]:
    """Storages in which several entries of one parameter lie in one place, as windows on a vector.

    Yields:
        The storage, and the parameter -> a tensor without numbers that has a place for each entry.
    """
    for node in trace.nodes:
        for value in fixed_in((node.args, node.kwargs)):
            tensor = value.tensor
            if value.name is None or not tensor.numel() or tensor.layout is not torch.strided:
                continue
            key, first, last = span(tensor)
            if last - first + 1 < tensor.numel():
                apart = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
                yield key, {id(tensor): apart}


def _meet_in_part(one: Tensor, other: Tensor) -> bool:
    """True if two tensors in one storage have some numbers in common, and not all of them."""
    if {*zip(one.shape, one.stride(), strict=True)} == {
        *zip(other.shape, other.stride(), strict=True)
    } and one.storage_offset() == other.storage_offset():
        return False
    size = 1 + max(int(places_of(tensor).max()) for tensor in (one, other))
    taken = torch.zeros(2, size, dtype=torch.bool)
    for row, tensor in zip(taken, (one, other), strict=True):
        row[places_of(tensor).flatten()] = True
    both = taken[0] & taken[1]
    return bool(both.any()) and not torch.equal(taken[0], taken[1])
