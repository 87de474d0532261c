"""What happens to queries and keys between the linear maps that write them and where they meet.

Rotary embeddings are written out differently in every library, so they are not recognised by their
steps: everything between the last place that holds a query's features and the place where queries
meet keys is replayed on random values, and what it does to a head is read off.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from basis_probe.model.graph import Graph, Kind, Layout, Vertex, constant
from basis_probe.model.trace import Fixed, Node, Ref


@dataclasses.dataclass(frozen=True)
class Turned:
    """Rotary embedding: axes first .. last - 1 of each head turn in planes, by position.

    Attributes:
        first, last: the axes.
        pairing: "half" for planes (i, i + n/2) of these axes, "adjacent" for (2i, 2i + 1).
        parted: True if planes (2i, 2i + 1) come out as (i, i + n/2).
    """

    first: int
    last: int
    pairing: Literal["half", "adjacent"]
    parted: bool = False


@dataclasses.dataclass(frozen=True)
class Side:
    """The queries, or the keys, of an attention.

    Attributes:
        source: the vertex that holds their features before they are turned.
        end: the vertex that holds them where queries meet keys.
        heads, size: number and size of the heads at the source.
        copies: how many heads each of them becomes.
        turned: how positions turn them, or None if they do not.
        inside: the vertices behind the source, up to where queries meet keys.
        normed: True if a norm without a gain lies behind the turn.
    """

    source: int
    end: int
    heads: int
    size: int
    copies: int
    turned: Turned | None
    inside: frozenset[int]
    normed: bool = False


@dataclasses.dataclass(frozen=True)
class Attention:
    """Where queries meet keys, and the values that they choose among.

    Attributes:
        vertex: the vertex that mixes values.
        scores: the node that is the product of queries and keys, or mixes values at once.
        query, key: the two sides; in words, why one is not understood.
        apart: what differs between the heads by something that is no weight, or "".
        parts: where heads of queries and keys are made of several parts, each written by itself,
            the attention of each part, with the same values.
    """

    vertex: int
    scores: int
    query: Side | str
    key: Side | str
    apart: str
    parts: tuple["Attention", ...] = ()

    @property
    def each(self) -> tuple["Attention", ...]:
        """Its parts; itself where it has none."""
        return self.parts or (self,)

    @property
    def understood(self) -> bool:
        """True if both sides are."""
        return isinstance(self.query, Side) and isinstance(self.key, Side)

    @property
    def why(self) -> str:
        """Why it is not understood."""
        return next((side for side in (self.query, self.key) if isinstance(side, str)), "")


def attentions(
    graph: Graph, norms: frozenset[int], plain: frozenset[int] = frozenset()
) -> tuple[Attention, ...]:
    """Every attention of a graph.

    Args:
        graph: the condensed graph.
        norms: the vertices that were measured to be norms, or to bend every feature by itself.
        plain: those of them that divide each head by its length, and have no gain.
    """
    try:
        return tuple(
            _attention(graph, vertex, norms, plain)
            for vertex in graph.vertices.values()
            if vertex.kind is Kind.ATTENTION
        )
    finally:
        _random.cache_clear()


def _attention(
    graph: Graph, vertex: Vertex, norms: frozenset[int], plain: frozenset[int]
) -> Attention:
    trace = graph.trace
    node = trace.node(vertex.node)
    if node.op == "scaled_dot_product_attention":
        mask = node.kwargs.get("attn_mask", node.args[3] if len(node.args) > 3 else None)
        apart = "a mask of its own for every head" if _by_head(graph, mask, node.shape) else ""
        found: _Meeting | str = _Meeting(node, (0, "query"), (1, "key"), -1, -1)
    else:
        pattern = node.args[0] if node.args else node.kwargs.get("input")
        start = pattern.node if isinstance(pattern, Ref) else -1
        found, apart = _meeting(graph, start)
    if isinstance(found, str):
        return Attention(vertex.node, vertex.node, found, found, apart)
    sides = [
        _side(graph, found, argument, axis, norms, plain)
        for argument, axis in ((found.query, found.query_axis), (found.key, found.key_axis))
    ]
    parts: tuple[Attention, ...] = ()
    if any(isinstance(side, str) for side in sides):
        parts = tuple(
            Attention(vertex.node, found.node.index, query, key, _IN_PARTS)
            for query, key in _in_parts(graph, found, norms)
        )
    return Attention(vertex.node, found.node.index, sides[0], sides[1], apart, parts)


_IN_PARTS = "heads are made of several parts, which would have to change places alike"


@dataclasses.dataclass(frozen=True)
class _Meeting:
    """The call in which queries meet keys, and along which axes of its arguments."""

    node: Node
    query: tuple[int, str]
    key: tuple[int, str]
    query_axis: int
    key_axis: int


_BILINEAR = frozenset("matmul bmm baddbmm einsum".split())
_MIXING = _BILINEAR | frozenset("linear mm addmm tensordot conv1d conv2d conv3d".split())


def _meeting(graph: Graph, pattern: int) -> tuple[_Meeting | str, str]:
    """The product of queries and keys behind an attention pattern; what differs between heads."""
    trace = graph.trace
    if pattern < 0:
        return "the attention pattern is not computed from the input", ""
    found: list[Node] = []
    seen: set[int] = set()
    waiting = [pattern]
    while waiting:
        index = waiting.pop()
        if index in seen:
            continue
        seen.add(index)
        node = trace.node(index)
        if node.op in _BILINEAR and sum(trace.node(i).live for i in set(node.inputs)) >= 2:
            found.append(node)
        else:
            waiting.extend(i for i in node.inputs if trace.node(i).live)
    if len(found) != 1:
        return f"its pattern is made of {len(found)} products of queries and keys", ""
    meeting = found[0]
    path = {index for index in seen if _reaches(graph, meeting.index, index, seen)}
    apart = ""
    for index in path:
        node = trace.node(index)
        operands = [*node.args, *node.kwargs.values()]
        if node.op in ("stack", "cat"):
            axis = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
            if isinstance(axis, int) and axis % len(node.shape) == len(node.shape) - 3:
                apart = f"{node.op}, before which heads are treated one by one"
        if index != meeting.index and node.op in _MIXING:
            apart = f"{node.op}, which mixes the patterns of heads"
        if index == meeting.index:
            added = node.op == "baddbmm" and node.kwargs.get("beta") != 0
            operands = operands[:1] if added else []
        for value in _each(operands):
            if isinstance(value, Ref) and value.node in path:
                continue
            if _by_head(graph, value, meeting.shape):
                apart = f"{node.op} with something of its own for every head"
    if meeting.op == "einsum":
        return _einsum(meeting), apart
    first = 1 if meeting.op == "baddbmm" else 0
    names = ("batch1", "batch2") if first else ("input", "mat2" if meeting.op == "bmm" else "other")
    return _Meeting(meeting, (first, names[0]), (first + 1, names[1]), -1, -2), apart


def _each(values: Iterable[object]) -> Iterator[object]:
    """The entries of nested lists, as those that are joined are given."""
    for value in values:
        if isinstance(value, tuple | list):
            yield from _each(value)  # pyright: ignore[reportUnknownArgumentType]
        else:
            yield value


def _einsum(node: Node) -> _Meeting | str:
    equation = node.args[0] if node.args else None
    if not isinstance(equation, str) or "..." in equation or len(node.args) != 3:
        return "queries and keys meet in an einsum that is not understood"
    left, _, out = equation.replace(" ", "").partition("->")
    first, _, second = left.partition(",")
    summed = [letter for letter in first if letter in second and letter not in out]
    if len(summed) != 1:
        return "queries and keys meet in an einsum that is not understood"
    axes = first.index(summed[0]) - len(first), second.index(summed[0]) - len(second)
    return _Meeting(node, (1, ""), (2, ""), *axes)


def _reaches(graph: Graph, source: int, target: int, among: set[int]) -> bool:
    waiting, seen = [target], set[int]()
    while waiting:
        index = waiting.pop()
        if index == source:
            return True
        if index not in seen:
            seen.add(index)
            waiting.extend(i for i in graph.trace.node(index).inputs if i in among)
    return False


def _by_head(graph: Graph, value: object, scores: tuple[int, ...]) -> bool:
    """True if an operand of the scores [batch, heads, queries, keys] differs between heads."""
    if isinstance(value, Ref):
        shape = graph.trace.node(value.node).shape
    elif isinstance(value, Fixed):
        shape = tuple(value.tensor.shape)
    else:
        return False
    if len(shape) < 3 or shape[-3] == 1:
        return False
    known = constant(graph.trace, value)
    if known is None:
        return True
    if len(shape) == 3 and len(scores) == 4 and shape[0] == scores[0] * scores[1]:
        known = known.unflatten(0, scores[:2])
    alike = torch.equal(known, known.narrow(-3, 0, 1).expand_as(known))
    return not alike or _tells_heads_apart(graph, value, known.shape[-3])


def _tells_heads_apart(graph: Graph, value: object, heads: int) -> bool:
    """True if constants that are the same for all heads are made of some that are not.

    So are windows of different lengths, all of which are longer than the example.
    """
    trace = graph.trace
    seen, waiting = set[int](), [value]
    while waiting:
        here = waiting.pop()
        if isinstance(here, Ref):
            if here.node in seen:
                continue
            seen.add(here.node)
            node = trace.node(here.node)
            if node.op in ("stack", "cat") and heads in node.shape:
                return True
            waiting += _each((*node.args, *node.kwargs.values()))
        known = constant(trace, here) if isinstance(here, Ref | Fixed) else None
        if known is not None and any(
            size == heads and not torch.equal(known, known.narrow(axis, 0, 1).expand_as(known))
            for axis, size in enumerate(known.shape)
        ):
            return True
    return False


def _side(
    graph: Graph,
    meeting: _Meeting,
    argument: tuple[int, str],
    axis: int,
    norms: frozenset[int],
    plain: frozenset[int],
) -> Side | str:
    node = meeting.node
    place, name = argument
    value = node.kwargs.get(name, node.args[place] if len(node.args) > place else None)
    if not isinstance(value, Ref) or value.node not in graph.same:
        return "queries or keys could not be followed to where they meet"
    end = value.node
    passed = [graph.vertices[graph.same[end]]]
    while passed[-1].kind is Kind.CARRIER and len(passed[-1].carried) == 1:
        passed.append(graph.vertices[passed[-1].carried[0]])
    norm = passed[-1]
    if norm.node in plain:
        # Turned before they are normed.
        before = _ending(graph, node, norm.carried[0], -1, norms)
        if isinstance(before, Side) and before.turned is not None:
            layout, shape = graph.layouts[end], graph.trace.node(end).shape
            count = math.prod(shape[feature] for feature in layout.axes)
            return dataclasses.replace(
                before,
                end=graph.same[end],
                copies=count // (before.heads * before.size),
                inside=before.inside | {vertex.node for vertex in passed},
                normed=True,
            )
    return _ending(graph, node, end, axis, norms)


def _ending(graph: Graph, node: Node, end: int, axis: int, norms: frozenset[int]) -> Side | str:
    """The queries, or the keys, that end at a node, and meet the others in a call."""
    trace = graph.trace
    found = _between(graph, end, norms)
    if isinstance(found, str):
        return found
    nodes, candidates = found
    axis %= len(trace.node(end).shape)
    size = trace.node(end).shape[axis]
    for source in candidates:
        layout = graph.layouts.get(source)
        if layout is None or source not in graph.same or layout.repeat != 1 or layout.channels:
            continue
        shape = trace.node(source).shape
        if max(layout.axes) >= len(shape):
            continue
        count = math.prod(shape[feature] for feature in layout.axes)
        if count % size:
            continue
        inside = frozenset(
            v.node
            for v in graph.vertices.values()
            if v.node in nodes and v.node > graph.same[source]
        ) | {node.index}
        side = _read_off(_Way(graph, source, end, axis, size), inside)
        if side is not None:
            return side
    return "what is done to queries or keys by position could not be read off"


@dataclasses.dataclass(frozen=True, eq=False)
class _Way:
    """The way of queries, or of keys, to where they meet the others.

    Attributes:
        graph: the graph.
        source, end: the nodes between which it lies.
        axis: the axis of the end along which they meet.
        size: how many axes of each head come this way.
        first: the first of them.
        others: the nodes that write the other axes, with zeros in the place of their values.
    """

    graph: Graph
    source: int
    end: int
    axis: int
    size: int
    first: int = 0
    others: dict[int, Tensor] = dataclasses.field(default_factory=dict[int, Tensor])

    def moved(self, given: Tensor) -> Tensor:
        """What arrives of what is given."""
        if self.end == self.source:
            return given
        made = self.graph.replay(self.end, {**self.others, self.source: given})
        return made.narrow(self.axis, self.first, self.size)


def _read_off(way: _Way, inside: frozenset[int]) -> Side | None:
    """What happens on the way, if it is understood."""
    graph, same = way.graph, way.graph.same
    shape = graph.trace.node(way.source).shape
    count = math.prod(shape[feature] for feature in graph.layouts[way.source].axes)
    try:
        copies, planes = _plain(way), None
        if not copies:
            turned = _turned(way)
            if turned is None:
                return None
            copies, planes = turned
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError):
        return None
    source, end = same[way.source], same[way.end]
    return Side(source, end, count // way.size, way.size, copies, planes, inside)


def _in_parts(graph: Graph, meeting: _Meeting, norms: frozenset[int]) -> list[tuple[Side, Side]]:
    """Queries and keys of heads of which each part is written by itself, part by part."""
    both: list[dict[int, Side]] = []
    for (place, name), axis in (
        (meeting.query, meeting.query_axis),
        (meeting.key, meeting.key_axis),
    ):
        node = meeting.node
        value = node.kwargs.get(name, node.args[place] if len(node.args) > place else None)
        if not isinstance(value, Ref) or value.node not in graph.same:
            return []
        both.append(_parted(graph, node, value.node, axis, norms))
    queries, keys = both
    alike = queries.keys() == keys.keys() and len(queries) > 1
    sizes = all(queries[first].size == keys[first].size for first in queries) if alike else False
    return [(queries[first], keys[first]) for first in sorted(queries)] if sizes else []


def _parted(
    graph: Graph, node: Node, end: int, axis: int, norms: frozenset[int]
) -> dict[int, Side]:
    """First axis of each part of the heads -> the queries, or keys, of that part; {} if unknown."""
    axis %= len(graph.trace.node(end).shape)
    nodes, roots = _written(graph, end, norms)
    options = [[*dict.fromkeys(((root,), _parts_of(graph, root, nodes)))] for root in sorted(roots)]
    for chosen in itertools.product(*(option[::-1] for option in options)):
        cut = [index for several in chosen for index in several]
        if any(index not in graph.layouts or index not in graph.same for index in cut):
            continue
        zeros = {
            index: torch.zeros(graph.trace.node(index).shape, dtype=torch.float64)
            for index in (*roots, *cut)
        }
        found: dict[int, Side] = {}
        for source in cut:
            try:
                given = {**zeros, source: _random(graph.trace.node(source).shape, 3)}
                made = graph.replay(end, given).movedim(axis, -1).flatten(0, -2)
            except (RuntimeError, ValueError, TypeError, LookupError, AttributeError):
                break
            reached = (made != 0).any(0).nonzero().flatten().tolist()
            if not reached or reached != [*range(reached[0], reached[-1] + 1)]:
                break
            others = {index: value for index, value in zeros.items() if index != source}
            way = _Way(graph, source, end, axis, len(reached), reached[0], others)
            between = frozenset(
                v.node for v in graph.vertices.values() if v.node in nodes and v.node > source
            )
            side = _read_off(way, between | {node.index, graph.same[end]})
            if side is None or reached[0] in found:
                break
            found[reached[0]] = side
        else:
            if sum(side.size for side in found.values()) == graph.trace.node(end).shape[axis]:
                return found
    return {}


def _written(graph: Graph, end: int, norms: frozenset[int]) -> tuple[set[int], set[int]]:
    """The nodes behind what writes the features of a node, with these; and what writes them."""
    nodes, roots = set[int](), set[int]()
    waiting = [end]
    while waiting:
        index = waiting.pop()
        if index in nodes:
            continue
        nodes.add(index)
        vertex = graph.vertices.get(index)
        if vertex is not None and (vertex.kind in _SOURCES or index in norms):
            roots.add(index)
        else:
            waiting.extend(i for i in graph.trace.node(index).inputs if graph.trace.node(i).live)
    return nodes, roots


def _parts_of(graph: Graph, root: int, nodes: set[int]) -> tuple[int, ...]:
    """The parts that a tensor is taken apart into, among some nodes."""
    found, waiting, seen = set[int](), [root], set[int]()
    while waiting:
        for reader in graph.readers.get(waiting.pop(), ()):
            if reader in seen or reader not in nodes:
                continue
            seen.add(reader)
            kind = graph.vertices[reader].kind
            if kind is Kind.PART:
                found.add(reader)
            elif kind is Kind.CARRIER:
                waiting.append(reader)
            else:
                return (root,)
    return tuple(sorted(found)) or (root,)


_MOVING = (Kind.CARRIER, Kind.PART)


def _only_moves(vertex: Vertex) -> bool:
    """True for a vertex behind which all features are still there, with a bias perhaps."""
    return vertex.kind in _MOVING or (vertex.kind is Kind.SUM and len(vertex.carried) == 1)


_SOURCES = (Kind.LINEAR, Kind.CONVOLUTION, Kind.EMBEDDING, Kind.INPUT, Kind.ATTENTION)


def _between(
    graph: Graph, end: int, norms: frozenset[int]
) -> tuple[frozenset[int], list[int]] | str:
    """The nodes from where the features of a node are written; those that all of it comes through.

    The second are in order, and end where more is done than to move or part features.
    """
    trace = graph.trace
    nodes, roots = _written(graph, end, norms)
    written = {index for index in roots if graph.vertices[index].kind is not Kind.INPUT}
    if len(written) != 1:
        return "queries or keys are made of more than one linear map's output"
    ordered = sorted(index for index in nodes if index not in roots - written)
    reach = 0
    passed: list[int] = []
    last = {
        index: max((r for r in trace.readers.get(index, ()) if r in nodes), default=index)
        for index in ordered
    }
    for index in ordered:
        vertex = graph.vertices.get(index)
        if vertex is not None and index not in written and not _only_moves(vertex):
            break
        if index >= reach:
            passed.append(index)
        reach = max(reach, last[index])
    return frozenset(nodes), passed


@functools.lru_cache(maxsize=4)
def _random(shape: tuple[int, ...], seed: int) -> Tensor:
    """Normals, the same tensor for the layers of a network that are alike: not to be changed."""
    generator = torch.Generator().manual_seed(seed)
    # Normals of single precision are drawn five times faster.
    return torch.randn(shape, generator=generator, dtype=torch.float32).double()


def _plain(way: _Way) -> int:
    """How often each head is copied, if features are only moved, and rows multiplied by numbers."""
    graph, source, axis, size, moved = way.graph, way.source, way.axis, way.size, way.moved
    shape = graph.trace.node(source).shape
    layout = graph.layouts[source]
    count = torch.Size(shape).numel()
    scale = moved(torch.ones(shape, dtype=torch.float64))
    if bool((scale == 0).any()) or not torch.equal(scale.amax(axis), scale.amin(axis)):
        return 0
    labels = torch.arange(1, count + 1, dtype=torch.float64).reshape(shape)
    places = (moved(labels) / scale).round().long() - 1
    if bool((places < 0).any()) or bool((places >= count).any()):
        return 0
    if not bool(places.flatten().bincount(minlength=count).all()):
        return 0
    x = _random(shape, 0)
    expected = scale * x.flatten()[places]
    if float((moved(x) - expected).abs().max()) > 1e-9 * float(scale.abs().max()):
        return 0
    # Each row along the contracted axis must be one head of one position, in order.
    features = torch.arange(count).reshape(shape)
    ordered = features.movedim(layout.axes, tuple(range(-len(layout.axes), 0))).reshape(-1, size)
    rows = places.movedim(axis, -1).reshape(-1, size)
    starts = torch.full((count,), -1)
    starts[ordered[:, 0]] = torch.arange(len(ordered))
    index = starts[rows[:, 0]]
    if bool((index < 0).any()) or not torch.equal(ordered[index], rows):
        return 0
    return len(rows) // len(ordered)


_Planes: TypeAlias = tuple[Tensor, Tensor]


def _rows(x: Tensor, axes: tuple[int, ...], size: int) -> Tensor:
    """[position, head, axis of the head]."""
    last = x.movedim(axes, tuple(range(-len(axes), 0)))
    positions = last.shape[: last.ndim - len(axes)].numel()
    return last.reshape(positions, -1, size)


def _turned(way: _Way) -> tuple[int, Turned] | None:
    """Copies, and the planes that turn with the position."""
    graph, source, end, axis, size = way.graph, way.source, way.end, way.axis, way.size
    shape = graph.trace.node(source).shape
    before, after = graph.layouts[source], graph.layouts.get(end)
    sizes = graph.trace.node(end).shape
    if after is None and len(sizes) == 4 and axis > 1:
        # [batch, head, ., .], put together from parts: what is measured below shows if it is so.
        after = Layout((1, axis))
    if after is None or after.axes[-1] != axis:
        return None
    behind = after.axes
    if len(behind) == 1:
        # A single head may have been copied.
        behind = (*(a for a in sorted(after.copies) if sizes[a] > 1), *behind)
    pairs: list[tuple[Tensor, Tensor]] = []
    copies = 0
    for seed in (1, 2):
        given = _random(shape, seed)
        taken = way.moved(given)
        x = _rows(given, before.axes, size)
        y = _rows(taken, behind, size)
        if len(x) != len(y) or y.shape[1] % x.shape[1]:
            return None
        copies = y.shape[1] // x.shape[1]
        pairs.append((x.repeat_interleave(copies, 1), y))
    ratios = torch.cat([y / x for x, y in pairs])
    still = (ratios.amax((0, 1)) - ratios.amin((0, 1))).abs() < 1e-10 * ratios.abs().amax()
    moving = (~still).nonzero().flatten().tolist()
    if not moving:
        return None
    first, last = moving[0], moving[-1] + 1
    if len(moving) != last - first or (last - first) % 2:
        return None
    width = last - first
    axes = torch.arange(first, last)
    halves, neighbours = (axes[: width // 2], axes[width // 2 :]), (axes[::2], axes[1::2])
    ways: tuple[tuple[Literal["half", "adjacent"], bool, _Planes, _Planes], ...] = (
        ("half", False, halves, halves),
        ("adjacent", False, neighbours, neighbours),
        ("adjacent", True, neighbours, halves),
    )
    for pairing, parted, (one, other), (new, beside) in ways:
        (x, y), (x2, y2) = pairs
        length = x[..., one].square() + x[..., other].square()
        a = (x[..., one] * y[..., new] + x[..., other] * y[..., beside]) / length
        b = (x[..., one] * y[..., beside] - x[..., other] * y[..., new]) / length
        errors = (
            a * x2[..., one] - b * x2[..., other] - y2[..., new],
            b * x2[..., one] + a * x2[..., other] - y2[..., beside],
        )
        if all(float(e.abs().max()) < 1e-9 * float(y2.abs().max()) for e in errors):
            return copies, Turned(first, last, pairing, parted)
    return None
