"""Streams that one matrix, or one vector, acts on in several places: they change together."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from basis_probe.model.facts import (
    Facts,
    bias_of,
    constants_of,
    fixed_in,
    given_to,
    inside_of,
    leaves_of,
    matrix,
    shared,
    vectors_behind,
    vectors_of,
)
from basis_probe.model.graph import Kind, Vertex
from basis_probe.model.trace import Fixed, Ref, Trace
from basis_probe.model.weights import view_of


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


def ties_of(facts: Facts) -> dict[int, tuple[Tie, ...]]:
    """Stream -> its ties to others, and to itself by a transpose."""
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
    for first, second in (*_sharing(facts), *_with_one_bias(facts)):
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


@dataclasses.dataclass(frozen=True)
class _Use:
    """Numbers of a storage that a vertex adds to features, or multiplies them by, or maps them by.

    Attributes:
        vertex: the vertex.
        kind: "bias" of a linear map, "added", "factor" of a norm or function, or "matrix".
        first, last: between which places they lie.
        entries: the place of each of them, in their order.
    """

    vertex: int
    kind: str
    first: int
    last: int
    entries: Callable[[], Tensor]


def _with_one_bias(facts: Facts) -> Iterator[tuple[int, int]]:
    """Pairs of linear maps that add one vector to what they write."""
    for several in _vectors_at(facts).values():
        biases = [use for use in several if use.kind == "bias"]
        for one, other in itertools.combinations(biases, 2):
            same = (one.first, one.last) == (other.first, other.last)
            if same and one.vertex != other.vertex and torch.equal(one.entries(), other.entries()):
                yield one.vertex, other.vertex


def overlapping_vectors(facts: Facts) -> tuple[dict[int, str], dict[int, str]]:
    """Vertex -> why it cannot change, where a vector has numbers in common with what others use.

    Returns:
        The same of what adds the vector, or multiplies by it, and of linear maps whose matrix is
        the other.
    """
    vectors, maps = dict[int, str](), dict[int, str]()
    for several in _vectors_at(facts).values():
        for one, other in itertools.combinations(several, 2):
            matrices = [use.kind for use in (one, other)].count("matrix")
            apart = one.last < other.first or other.last < one.first
            if apart or matrices == 2 or (one.vertex == other.vertex and not matrices):
                continue
            a, b = one.entries(), other.entries()
            alike = one.kind == other.kind or {one.kind, other.kind} == {"bias", "added"}
            if alike and a.shape == b.shape and torch.equal(a, b):
                continue  # They change together.
            if bool(torch.isin(a, b).any()):
                why = "a vector that it adds, or multiplies by, overlaps with other weights"
                for use in (one, other):
                    if use.kind == "matrix":
                        maps[use.vertex] = "its matrix overlaps with a vector in the same parameter"
                    else:
                        vectors[use.vertex] = why
    return vectors, maps


def _vectors_at(facts: Facts) -> dict[int, list[_Use]]:
    """Storage -> what is used of it, where that are several things and a vector among them."""
    trace, found = facts.graph.trace, dict[int, list[_Use]]()
    for index, vertex in facts.graph.vertices.items():
        node = trace.node(index)
        values: list[tuple[str, object]] = []
        if vertex.kind in (Kind.LINEAR, Kind.CONVOLUTION, Kind.GROUPED, Kind.DEPTHWISE):
            values.append(("bias", bias_of(node)))
            weight = matrix(trace, node)
            if weight is not None and weight.numel():
                key, first, last = span(weight)
                use = _Use(index, "matrix", first, last, partial(_flat_places, weight))
                found.setdefault(key, []).append(use)
        elif vertex.kind is Kind.SUM or (vertex.kind is Kind.CARRIER and node.op == "cat"):
            values += (("added", value) for value in constants_of(trace, node))
        elif vertex.kind is Kind.REGION:
            given = [trace.node(i) for i in inside_of(facts.graph, vertex)]
            values += (("factor", v) for own in given for v in (*own.args, *own.kwargs.values()))
        elif vertex.kind in (Kind.BATCH_NORM, Kind.GROUP_NORM):
            values += (("factor", value) for value in (*node.args, *node.kwargs.values()))
        for kind, value in values:
            found_at = shown_of(trace, value)
            if found_at is not None:
                leaf, shown = found_at
                if kind == "factor" and sum(size > 1 for size in shown.shape) > 1:
                    continue
                (key, start, _), (_, first, last) = span(leaf), span(shown)
                if not leaf.is_contiguous():
                    continue
                places = partial(_flat_places, shown, start)
                use = _Use(index, kind, start + first, start + last, places)
                found.setdefault(key, []).append(use)
    return {
        key: several
        for key, several in found.items()
        if len(several) > 1 and any(use.kind != "matrix" for use in several)
    }


def numbers_of(facts: Facts, vertex: Vertex) -> set[object]:
    """What tells the numbers that a region is given from those that others are."""
    found: set[object] = set()
    for _, value in given_to(facts.graph, vertex):
        shown = shown_of(facts.graph.trace, value)
        if shown is not None and shown[1].numel() < shown[0].numel():
            found.add((id(shown[0]), *span(shown[1])[1:]))
        elif isinstance(value, Fixed):
            found.add(id(value.tensor))
        else:
            leaves = vectors_behind(facts.graph.trace, value.node)
            found |= {id(leaf.tensor) for _, leaf in leaves}
    return found


def shown_of(trace: Trace, value: object) -> tuple[Tensor, Tensor] | None:
    """The parameter that a vector shows numbers of, and a tensor with the strides of these."""
    if isinstance(value, Fixed):
        tensor = value.tensor
        if not isinstance(tensor, nn.Parameter) or not _is_plain(tensor) or tensor.numel() < 2:
            return None
        return tensor, torch.empty(tensor.shape, device="meta")
    if not isinstance(value, Ref) or trace.node(value.node).live:
        return None
    leaves = {id(leaf.tensor): leaf.tensor for leaf in leaves_of(trace, value.node)}
    if len(leaves) != 1:
        return None
    (leaf,) = leaves.values()
    if not isinstance(leaf, nn.Parameter) or not _is_plain(leaf):
        return None
    view = view_of(trace, value.node, leaf)
    return None if view is None or view.numel() < 2 else (leaf, view)


def _is_plain(tensor: Tensor) -> bool:
    strided = tensor.layout is torch.strided and tensor.is_floating_point()
    return strided and not tensor.is_meta and tensor.numel() > 0


def _flat_places(tensor: Tensor, start: int = 0) -> Tensor:
    return start + _places(tensor).flatten()


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


def span(weight: Tensor) -> tuple[int, int, int]:
    """The storage of a tensor that is not empty, and the first and the last place of it there."""
    first = int(weight.storage_offset())
    ahead = zip(weight.shape, weight.stride(), strict=True)
    last = first + sum((int(size) - 1) * int(step) for size, step in ahead)
    return weight.untyped_storage().data_ptr(), first, last


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
    size = 1 + max(int(_places(tensor).max()) for tensor in (one, other))
    taken = torch.zeros(2, size, dtype=torch.bool)
    for row, tensor in zip(taken, (one, other), strict=True):
        row[_places(tensor).flatten()] = True
    both = taken[0] & taken[1]
    return bool(both.any()) and not torch.equal(taken[0], taken[1])


def _places(tensor: Tensor) -> Tensor:
    """Where each number of a tensor lies in its storage."""
    found = torch.tensor(int(tensor.storage_offset()))
    for size, step in zip(tensor.shape, tensor.stride(), strict=True):
        found = found[..., None] + step * torch.arange(size)
    return found
