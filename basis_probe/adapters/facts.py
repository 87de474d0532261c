"""What a model was seen to compute around each of its sites: facts, and nothing that follows.

Every function is measured on values, never looked up by its name or in a configuration: a region is
a norm because its outputs are a normalised input times a gain, a nonlinearity because each output
depends on one input only.
"""

import dataclasses
import enum
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from basis_probe.adapters.graph import (
    Graph,
    Kind,
    Layout,
    Vertex,
    condense,
    nonlinear,
    part_of_one,
    replay,
)
from basis_probe.adapters.trace import Fixed, Node, Ref, Trace


class Place(enum.Enum):
    """Where a tensor can be caught while the model runs."""

    OUTPUT = "what a module returns"
    INPUT = "what a module is given"
    FUNCTION = "what a function returns"
    ARGUMENT = "what a function is given"


@dataclasses.dataclass(frozen=True)
class Address:
    """How to find a tensor again in another forward pass of the same model.

    Attributes:
        place: at which end of what.
        path: the module.
        call: which call of the module, from 0.
        index: which of the tensors that went in or came out.
        op, ordinal: for functions, the name and which of its calls inside the module's call.
    """

    place: Place
    path: str
    call: int = 0
    index: int = 0
    op: str = ""
    ordinal: int = 0


@dataclasses.dataclass(frozen=True)
class Site:
    """A place in a model whose activations can be probed.

    Attributes:
        name: what users call it.
        address: where it is caught.
        node: its tensor in the trace.
    """

    name: str
    address: Address
    node: int


class Shape(enum.Enum):
    """What a region was measured to do to a row of features."""

    SCALE = "multiplies by one number"
    SHIFT = "multiplies by one number and adds a weight vector"
    DIAGONAL = "multiplies every feature by its own number"
    ELEMENTWISE = "bends every feature by itself"
    RMS_NORM = "divides by the root mean square"
    LAYER_NORM = "subtracts the mean and divides by the standard deviation"
    PRODUCT = "multiplies two tensors, feature by feature"
    COUPLED = "mixes the features of a row in a way that is not a known norm"
    UNKNOWN = "could not be measured"

    @property
    def is_norm(self) -> bool:
        """True for a norm of any kind."""
        return self in (Shape.RMS_NORM, Shape.LAYER_NORM)


@dataclasses.dataclass(frozen=True, eq=False)
class Region:
    """What was measured of a region.

    Attributes:
        shape: what it does.
        function: the region as a function of a tensor [samples, dim], for one-input regions.
        gain, bias: [dim], for norms and diagonal maps.
        why: the reason, where the shape is UNKNOWN.
        op: the function's name, for messages.
        learned: True if every vector in it is a weight of the model.
    """

    shape: Shape
    function: Callable[[Tensor], Tensor] | None = None
    gain: Tensor | None = None
    bias: Tensor | None = None
    why: str = ""
    op: str = ""
    learned: bool = True


@dataclasses.dataclass(frozen=True)
class Heads:
    """A stream whose features are kept apart in heads, by attention reading values.

    Attributes:
        count: how many different heads are written.
        size: features in one head.
        copies: how many times each is repeated, one behind the other (grouped queries).
    """

    count: int
    size: int
    copies: int = 1


@dataclasses.dataclass(frozen=True, eq=False)
class Stream:
    """Vertices that hold the same features, with what writes to them and what reads them.

    Attributes:
        members: the vertices.
        writers, readers: vertices outside that write to it and read it.
        learned: True if a learned vector that depends on the position is added.
        returned: True if the model returns it.
        max_pooled: True if max pooling passes over it.
        sums: how many sums are in it.
        value_mixed: True if attention mixes its positions, head by head.
    """

    members: frozenset[int]
    writers: tuple[int, ...]
    readers: tuple[int, ...]
    learned: bool
    returned: bool
    max_pooled: bool
    sums: int
    value_mixed: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Convolution:
    """How a convolution reads its input."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """How a site is computed from an input one linear map away.

    Attributes:
        source: the vertex of the input.
        address: where the input is caught.
        width: number of features of the input.
        repeat: how many consecutive entries of the input belong to one feature (more than one where
            positions were flattened into it).
        linears: the nodes of the linear maps, each with its weight [outputs, width * positions] and
            bias.
        weights, biases: for each of them.
        convolution: how windows are cut, where the maps are convolutions.
        pre: the tensor before the nonlinearity, as a function of the maps' outputs; None if there
            is no nonlinearity.
        post: the site itself as a function of the maps' outputs.
        held: where the tensors are that are added to the maps' outputs and are left as they are, as
            what a residual connection carries; `pre` and `post` take their rows behind the outputs.
        gain, bias: [width], where a norm's gain was peeled off the input.
        centred: True if the input comes from a LayerNorm, whose rows have mean zero.
        normalised: True if it comes from any norm.
    """

    source: int
    address: Address
    width: int
    repeat: int
    linears: tuple[int, ...]
    weights: tuple[Tensor, ...]
    biases: tuple[Tensor | None, ...]
    convolution: Convolution | None
    pre: Callable[[tuple[Tensor, ...]], Tensor] | None
    post: Callable[[tuple[Tensor, ...]], Tensor]
    held: tuple[Address, ...]
    gain: Tensor | None
    bias: Tensor | None
    centred: bool
    normalised: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Facts:
    """Everything that was seen of a model in one forward pass.

    Attributes:
        graph: the condensed graph.
        sites: name -> site, in forward order.
        streams: the streams.
        stream_of: vertex -> index of its stream.
        regions: vertex -> what was measured of it.
    """

    graph: Graph
    sites: dict[str, Site]
    streams: tuple[Stream, ...]
    stream_of: dict[int, int]
    regions: dict[int, Region]

    def vertex(self, site: Site) -> Vertex | None:
        """The vertex of a site, or None if the site's tensor has no understood features."""
        place = self.graph.same.get(site.node)
        return None if place is None else self.graph.vertices[place]

    def layout(self, site: Site) -> Layout | None:
        """Where the features of a site are."""
        return self.graph.layouts.get(site.node)

    def shape(self, site: Site) -> tuple[int, ...]:
        """The sizes of a site's feature axes, e.g. (heads, d_head)."""
        layout = self.layout(site)
        shape = self.graph.trace.node(site.node).shape
        return (shape[-1],) if layout is None else tuple(shape[axis] for axis in layout.axes)


# --- sites --------------------------------------------------------------------------------------


def module_sites(trace: Trace) -> dict[str, Site]:
    """Every place of a plain model that has a name: module outputs, inputs, functional calls.

    A module's output bears the module's path, a later call of the same module `path:2`, its input
    `path:in`; a nonlinearity called as a function inside a module `path.relu()`, the second one
    there `path.relu():2`.
    """
    found: list[tuple[int, str, Site]] = []

    def floating(index: int) -> bool:
        if index < 0:
            return False
        node = trace.node(index)
        return node.floating and node.live and len(node.shape) >= 2

    for call in trace.calls:
        again = f":{call.call + 1}" if call.call else ""
        for kind, nodes in ((Place.OUTPUT, call.outputs), (Place.INPUT, call.inputs)):
            usable = [(i, index) for i, index in enumerate(nodes) if floating(index)]
            if usable:
                i, index = usable[0]
                name = f"{call.path}{again}" if kind is Place.OUTPUT else f"{call.path}{again}:in"
                address = Address(kind, call.path, call.call, i)
                found.append((index, name, Site(name, address, index)))
    made = {index for call in trace.calls for index in call.outputs}
    counts: dict[tuple[str, str], int] = {}
    for node in trace.nodes:
        if nonlinear(node.op) and node.index not in made and floating(node.index):
            if part_of_one(trace, node):
                continue
            key = (node.module, node.op)
            counts[key] = counts.get(key, 0) + 1
            stem = f"{node.module}.{node.op}()" if node.module else f"{node.op}()"
            name = stem if counts[key] == 1 else f"{stem}:{counts[key]}"
            address = Address(
                Place.FUNCTION, node.module, node.call, op=node.op, ordinal=node.ordinal
            )
            found.append((node.index, name, Site(name, address, node.index)))
    return {name: site for _, name, site in sorted(found, key=lambda entry: entry[0])}


def catch(trace: Trace, reader: Node, argument: int) -> Address:
    """Where what a function reads can be caught: at its module, if it is the module's input."""
    for call in trace.calls:
        if call.path == reader.module and call.call == reader.call and argument in call.inputs:
            return Address(Place.INPUT, call.path, call.call, call.inputs.index(argument))
    place = list(_references((reader.args, reader.kwargs))).index(argument)
    return Address(
        Place.ARGUMENT, reader.module, reader.call, place, op=reader.op, ordinal=reader.ordinal
    )


def _references(value: object) -> Iterator[int | None]:
    """The node of every tensor among the arguments of a call, in order; None for fixed ones."""
    if isinstance(value, Ref):
        yield value.node
    elif isinstance(value, Fixed):
        yield None
    elif isinstance(value, dict):
        for entry in value.values():
            yield from _references(entry)
    elif isinstance(value, tuple | list):
        for entry in value:
            yield from _references(entry)


def spoken(trace: Trace, node: Node) -> str:
    """What a function is called: by its own name, or by its module's class if it is arithmetic."""
    if not nonlinear(node.op):
        for call in trace.calls:
            if (call.path, call.call) == (node.module, node.call) and node.index in call.outputs:
                return call.kind
    return node.op


# --- measuring regions --------------------------------------------------------------------------


def _spread(x: Tensor, layout: Layout | None, ndim: int) -> Tensor:
    """[samples, dim] values laid out as the region expects them."""
    if layout is not None and layout.channels:
        return x.reshape(*x.shape, *([1] * (ndim - 2)))
    return x.reshape(x.shape[0], *([1] * (ndim - 2)), x.shape[1]) if ndim > 2 else x


def _measure(graph: Graph, vertex: Vertex) -> Region:
    trace = graph.trace
    node = trace.node(vertex.node)
    op = spoken(trace, node)
    layout = graph.layouts.get(vertex.node)
    if layout is None or len(layout.axes) != 1:
        return Region(Shape.UNKNOWN, why=f"{op} on features in several axes", op=op)
    axis, ndim = layout.axes[0], len(node.shape)
    dim = node.shape[axis]
    roots = vertex.carried
    device = _device(trace)

    def function(*values: Tensor) -> Tensor:
        flat = [value.reshape(-1, value.shape[-1]) for value in values]
        laid = {root: _spread(f, layout, ndim) for root, f in zip(roots, flat, strict=True)}
        out = graph.replay(vertex.node, laid)
        return out.reshape(values[0].shape)

    generator = torch.Generator().manual_seed(0)

    def draw(rows: int) -> Tensor:
        return torch.randn(rows, dim, generator=generator, dtype=torch.float64).to(device)

    if any(trace.node(root).shape != node.shape for root in roots):
        return Region(Shape.UNKNOWN, why=f"{op} changes the shape", op=op)
    try:
        if len(roots) == 1:
            vectors = list(_vectors(graph, vertex))
            region = _measure_one(function, draw, op)
            learned = all(fixed.name is not None for fixed in vectors)
            if region.shape is Shape.SHIFT and not (vectors and learned):
                region, learned = dataclasses.replace(region, shape=Shape.DIAGONAL), False
            return dataclasses.replace(region, learned=learned)
        return _measure_two(function, draw, op)
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return Region(Shape.UNKNOWN, why=f"{op} cannot be replayed: {reason}", op=op)


def _vectors(graph: Graph, vertex: Vertex) -> Iterator[Fixed]:
    """The constants of more than one number in what lies between a vertex and what it carries."""
    trace, seen = graph.trace, set(vertex.carried)
    waiting = [vertex.node]
    while waiting:
        index = waiting.pop()
        if index in seen:
            continue
        seen.add(index)
        node = trace.node(index)
        for value in (*node.args, *node.kwargs.values()):
            if isinstance(value, Fixed) and value.tensor.numel() > 1:
                yield value
        waiting.extend(node.inputs)


def _device(trace: Trace) -> torch.device:
    for node in trace.nodes:
        for value in (*node.args, *node.kwargs.values()):
            if isinstance(value, Fixed) and value.tensor.ndim:
                return value.tensor.device
    return torch.device("cpu")


def _close(a: Tensor, b: Tensor, tolerance: float = 1e-9) -> bool:
    scale = float(b.abs().max()) if b.numel() else 0.0
    error = float((a - b).abs().max())
    return bool(torch.isfinite(a).all()) and error <= tolerance * max(scale, 1e-30)


def _measure_one(function: Callable[..., Tensor], draw: Callable[[int], Tensor], op: str) -> Region:
    x = draw(16)
    y = function(x)
    if not torch.equal(torch.nan_to_num(y), torch.nan_to_num(function(x))):
        return Region(Shape.UNKNOWN, why=f"{op} is not deterministic", op=op)
    dim = x.shape[1]
    moved = x.clone()
    place = dim // 2
    moved[:, place] += 0.5 + draw(16)[:, place].abs()
    change = (function(moved) - y).abs()
    change[:, place] = 0
    if dim > 1 and float(change.max()) > 1e-9 * max(1.0, float(y.abs().max())):
        return _measure_coupled(function, draw, op)
    one = torch.ones_like(x[:1])
    bias = function(0 * one)[0]
    gain = function(one)[0] - bias
    wide = torch.cat([x, 30 * x, 0.01 * x])
    if _close(function(wide), gain * wide + bias):
        if float((gain - gain[0]).abs().max()) == 0.0 and float(bias.abs().max()) == 0.0:
            return Region(Shape.SCALE, function, gain, bias, op=op)
        if float((gain - gain[0]).abs().max()) == 0.0 and len(gain) > 1:
            return Region(Shape.SHIFT, function, gain, bias, op=op)
        return Region(Shape.DIAGONAL, function, gain, bias, op=op)
    return Region(Shape.ELEMENTWISE, function, op=op)


def _measure_coupled(
    function: Callable[..., Tensor], draw: Callable[[int], Tensor], op: str
) -> Region:
    # Values far from zero, so that an epsilon under the root does not show.
    x = 1e4 * draw(24)
    y = function(x)
    for shape, inner in (
        (Shape.RMS_NORM, x),
        (Shape.LAYER_NORM, x - x.mean(1, keepdim=True)),
    ):
        unit = inner / inner.square().mean(1, keepdim=True).sqrt()
        centre, mean = unit.mean(0), y.mean(0)
        gain = ((unit - centre) * (y - mean)).sum(0) / (unit - centre).square().sum(0)
        bias = mean - gain * centre
        # Norms of Hugging Face models compute in float32 whatever they are given.
        if _close(gain * unit + bias, y, 1e-5):
            bias = torch.where(bias.abs() < 1e-5 * y.abs().max(), torch.zeros_like(bias), bias)
            return Region(shape, function, gain, bias, op=op)
    return Region(Shape.COUPLED, function, op=op)


def _measure_two(function: Callable[..., Tensor], draw: Callable[[int], Tensor], op: str) -> Region:
    a, b = draw(16), draw(16)
    y = function(a, b)
    ratio = function(torch.ones_like(a), torch.ones_like(b))[0]
    if _close(y, ratio * a * b) and _close(ratio, ratio[:1].expand_as(ratio)):
        return Region(Shape.PRODUCT, None, gain=ratio, op=op)
    return Region(Shape.UNKNOWN, why=f"{op} joins two tensors, but is not their product", op=op)


# --- streams ------------------------------------------------------------------------------------

_JOINING = (Kind.SUM, Kind.CARRIER, Kind.MAX_POOL, Kind.ATTENTION)


def _streams(graph: Graph, regions: dict[int, Region]) -> tuple[tuple[Stream, ...], dict[int, int]]:
    parent = {index: index for index in graph.vertices}

    def find(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    def joins(vertex: Vertex) -> bool:
        if vertex.kind is Kind.REGION:
            return regions[vertex.node].shape in (Shape.SCALE, Shape.SHIFT)
        return vertex.kind in _JOINING

    for vertex in graph.vertices.values():
        if joins(vertex):
            for index in vertex.carried:
                parent[find(vertex.node)] = find(index)
    groups: dict[int, list[int]] = {}
    for index in graph.vertices:
        groups.setdefault(find(index), []).append(index)
    streams: list[Stream] = []
    stream_of: dict[int, int] = {}
    for members in groups.values():
        inside = frozenset(members)
        vertices = [graph.vertices[index] for index in members]
        readers = [
            reader
            for index in members
            for reader in graph.readers.get(index, ())
            if reader not in inside or index in graph.vertices[reader].used
        ]
        stream = Stream(
            members=inside,
            writers=tuple(v.node for v in vertices if not joins(v)),
            readers=tuple(dict.fromkeys(readers)),
            learned=any(v.kind is Kind.SUM and len(v.carried) == 1 for v in vertices),
            returned=bool(inside & graph.returned),
            max_pooled=any(v.kind is Kind.MAX_POOL for v in vertices),
            sums=sum(v.kind is Kind.SUM for v in vertices),
            value_mixed=any(v.kind is Kind.ATTENTION for v in vertices),
        )
        stream_of |= dict.fromkeys(members, len(streams))
        streams.append(stream)
    return tuple(streams), stream_of


def collect(trace: Trace, sites: dict[str, Site]) -> Facts:
    """What was seen of the model in a recorded forward pass.

    Args:
        trace: the forward pass.
        sites: the places that have names.
    """
    graph = condense(trace, sites=frozenset(site.node for site in sites.values()))
    regions = {
        vertex.node: _measure(graph, vertex)
        for vertex in graph.vertices.values()
        if vertex.kind is Kind.REGION
    }
    streams, stream_of = _streams(graph, regions)
    return Facts(graph, sites, streams, stream_of, regions)


def shared(facts: Facts) -> Iterator[tuple[int, int, bool]]:
    """Pairs of linear maps with one matrix, and whether one of them uses it transposed."""
    graph, trace = facts.graph, facts.graph.trace
    stored = {
        value.tensor.untyped_storage().data_ptr()
        for node in trace.nodes
        for value in (*node.args, *node.kwargs.values())
        if isinstance(value, Fixed) and value.name is not None
    }
    found: dict[tuple[int, int, tuple[int, ...]], list[tuple[int, Tensor]]] = {}
    for vertex in graph.vertices.values():
        if vertex.kind not in (Kind.LINEAR, Kind.CONVOLUTION):
            continue
        weight = _matrix(trace, trace.node(vertex.node))
        if weight is None or weight.untyped_storage().data_ptr() not in stored:
            continue
        place = (
            weight.untyped_storage().data_ptr(),
            int(weight.storage_offset()),
            tuple(sorted(weight.shape)),
        )
        for other, known in found.setdefault(place, []):
            if known.shape == weight.shape and known.stride() == weight.stride():
                yield other, vertex.node, False
            elif known.ndim == 2 and known.T.stride() == weight.stride():
                yield other, vertex.node, True
        found[place].append((vertex.node, weight))


# --- the layer in front of a site ---------------------------------------------------------------


def layer(facts: Facts, site: Site) -> Layer | str:
    """How a site is computed from an input one linear map away, or why that is not known."""
    graph, trace = facts.graph, facts.graph.trace
    vertex = facts.vertex(site)
    if vertex is None:
        return "the features of the site are not understood"
    linears: list[int] = []
    pres: list[int] = []
    held: list[int] = []
    addresses: list[Address] = []
    entries: dict[int, int] = {}
    waiting = [vertex.node]
    seen: set[int] = set()
    while waiting:
        here = graph.vertices[waiting.pop()]
        if here.node in seen:
            continue
        seen.add(here.node)
        if here.kind in (Kind.LINEAR, Kind.CONVOLUTION):
            linears.append(here.node)
            continue
        passes = here.kind in (Kind.BATCH_NORM, Kind.PART)
        if here.kind is Kind.REGION:
            shape = facts.regions[here.node].shape
            if shape in (Shape.ELEMENTWISE, Shape.COUPLED):
                pres.extend(here.carried)
            passes = shape not in (Shape.UNKNOWN, Shape.RMS_NORM, Shape.LAYER_NORM)
        if _splits_positions(facts, here):
            # Rows are given to what is above a reshape of positions, which would not fit them.
            below = here.carried[0]
            entries[below] = entries.get(here.node, here.node)
            passes = graph.vertices[below].kind is Kind.LINEAR or _splits_positions(
                facts, graph.vertices[below]
            )
        if here.kind is Kind.SUM and pres and not held and len(here.carried) == 2:
            # A residual connection below a nonlinearity: what it carries is held as it is.
            branches = [_linears_below(facts, index) for index in here.carried]
            turned = max((0, 1), key=lambda place: max(branches[place], default=-1))
            if branches[turned]:
                kept = here.carried[1 - turned]
                address = _summand(facts, here.node, kept)
                if address is not None:
                    held.append(kept)
                    addresses.append(address)
                    waiting.append(here.carried[turned])
                    continue
        if not passes:
            return f"{here.kind.value} ({here.op}) lies between the site and a linear map"
        waiting.extend(here.carried)
    linears.sort()
    if len(pres) > 1:
        return "several nonlinearities lie between the site and its linear maps"
    sources = {graph.vertices[index].used[0] for index in linears}
    if len(sources) != 1:
        return "the linear maps in front of the site read different inputs"
    source = sources.pop()
    first = trace.node(linears[0])
    width = _width(graph, source)
    layout = graph.layouts.get(source)
    if width is None or layout is None or len(layout.axes) != 1:
        return "the features of the layer's input are not understood"
    weights: list[Tensor] = []
    biases: list[Tensor | None] = []
    convolution: Convolution | None = None
    for index in linears:
        found = _weight(trace, trace.node(index))
        if isinstance(found, str):
            return found
        weight, bias, windows = found
        if windows != convolution and index != linears[0]:
            return "the convolutions in front of the site read different windows"
        convolution = windows
        if windows is not None and layout.repeat != 1:
            return "a convolution reads flattened positions"
        weights.append(weight)
        biases.append(bias)
    gain, bias, centred, normalised = _peel(facts, source)
    argument = next(i for i in first.inputs if graph.same.get(i) == source)

    given = (*(entries.get(index, index) for index in linears), *held)

    def run(target: int) -> Callable[[tuple[Tensor, ...]], Tensor]:
        channels = convolution is not None

        def compute(outputs: tuple[Tensor, ...]) -> Tensor:
            values: dict[int, Tensor] = {}
            for index, out in zip(given, outputs, strict=True):
                ones = [1] * (len(trace.node(index).shape) - 2)
                shape = (*out.shape, *ones) if channels else (len(out), *ones, out.shape[1])
                values[index] = out.reshape(shape)
            out = graph.replay(target, values)
            return out.reshape(outputs[0].shape[0], -1)

        return compute

    return Layer(
        source=source,
        address=catch(trace, first, argument),
        width=width // layout.repeat,
        repeat=layout.repeat,
        linears=tuple(linears),
        weights=tuple(weights),
        biases=tuple(biases),
        convolution=convolution,
        pre=run(pres[0]) if pres else None,
        post=run(vertex.node),
        held=tuple(addresses),
        gain=gain,
        bias=bias,
        centred=centred,
        normalised=normalised,
    )


def _splits_positions(facts: Facts, vertex: Vertex) -> bool:
    """True for a reshape that leaves the feature axis last and whole."""
    if vertex.kind is not Kind.CARRIER or vertex.op != "view":
        return False
    trace, layouts = facts.graph.trace, facts.graph.layouts
    before, after = trace.node(vertex.carried[0]), trace.node(vertex.node)
    return (
        before.shape[-1] == after.shape[-1]
        and layouts[before.index].axes == (len(before.shape) - 1,)
        and layouts[after.index].axes == (len(after.shape) - 1,)
    )


def _linears_below(facts: Facts, index: int) -> list[int]:
    """The linear maps that write a tensor with nothing but single-feature functions in between."""
    graph, found = facts.graph, list[int]()
    waiting = [index]
    while waiting:
        here = graph.vertices[waiting.pop()]
        if here.kind in (Kind.LINEAR, Kind.CONVOLUTION):
            found.append(here.node)
        elif here.kind is Kind.BATCH_NORM:
            waiting.extend(here.carried)
        elif here.kind is Kind.REGION and facts.regions[here.node].shape in (
            Shape.SCALE,
            Shape.SHIFT,
            Shape.DIAGONAL,
        ):
            waiting.extend(here.carried)
        else:
            return []
    return found


def _summand(facts: Facts, total: int, part: int) -> Address | None:
    """Where one of the tensors that are added can be caught."""
    trace = facts.graph.trace
    node = trace.node(total)
    for argument in node.inputs:
        if facts.graph.same.get(argument) == part and trace.node(argument).shape == node.shape:
            return catch(trace, node, argument)
    return None


def bend(facts: Facts, site: Site) -> tuple[Address, Callable[[Tensor], Tensor]] | None:
    """Where the tensor before a site's nonlinearity is, and the nonlinearity itself, if any."""
    vertex = facts.vertex(site)
    region = None if vertex is None else facts.regions.get(vertex.node)
    if vertex is None or region is None or region.function is None:
        return None
    if region.shape not in (Shape.ELEMENTWISE, Shape.COUPLED):
        return None
    trace, source = facts.graph.trace, vertex.carried[0]
    waiting = [vertex.node]
    while waiting:
        node = trace.node(waiting.pop())
        for argument in node.inputs:
            if facts.graph.same.get(argument) == source:
                return catch(trace, node, argument), region.function
            waiting.append(argument)
    return None


def _width(graph: Graph, vertex: int) -> int | None:
    layout = graph.layouts.get(vertex)
    return None if layout is None else graph.trace.node(vertex).shape[layout.axes[-1]]


def _constant(trace: Trace, value: object) -> Tensor | None:
    """A tensor that does not depend on the input, computed anew if the model computes it."""
    if isinstance(value, Fixed):
        return value.tensor.detach()
    if isinstance(value, Ref) and not trace.node(value.node).live:
        try:
            found = replay(trace, value.node, {})
        except (RuntimeError, ValueError, TypeError):
            return None
        return found.detach()
    return None


def _matrix(trace: Trace, node: Node) -> Tensor | None:
    """The weight [outputs, inputs] (or [outputs, inputs, *kernel]) of a linear map."""
    place = {"linear": 1, "addmm": 2, "matmul": 1, "mm": 1}.get(node.op, 1)
    name = "other" if node.op in ("matmul", "mm") else "mat2" if node.op == "addmm" else "weight"
    value = node.kwargs.get(name, node.args[place] if len(node.args) > place else None)
    weight = _constant(trace, value)
    if weight is None or node.op not in ("addmm", "matmul", "mm"):
        return weight
    return weight.T if weight.ndim == 2 else None


def _weight(trace: Trace, node: Node) -> tuple[Tensor, Tensor | None, Convolution | None] | str:
    """The weight [outputs, inputs] (or [outputs, inputs, *kernel]) and bias of a linear map."""

    def given(name: str, place: int, default: object) -> object:
        return node.kwargs.get(name, node.args[place] if len(node.args) > place else default)

    weight, bias = _matrix(trace, node), None
    if node.op == "linear":
        bias = _constant(trace, given("bias", 2, None))
    elif node.op == "addmm":
        bias = _constant(trace, node.args[0])
        if node.kwargs.get("alpha", 1) != 1 or node.kwargs.get("beta", 1) != 1:
            return "addmm scales its terms"
    elif node.op.startswith("conv") and "transpose" not in node.op:
        bias = _constant(trace, given("bias", 2, None))
        if weight is None:
            return "the weight of the convolution is computed as the model runs"
        rank = weight.ndim - 2
        if given("groups", 6, 1) != 1:
            return "the convolution works in groups of channels"

        def several(value: object) -> tuple[int, ...] | None:
            if isinstance(value, int):
                return (value,) * rank
            return tuple(value) if isinstance(value, tuple | list) else None

        stride, padding = several(given("stride", 3, 1)), several(given("padding", 4, 0))
        dilation = several(given("dilation", 5, 1))
        if padding is None and given("padding", 4, 0) == "valid":
            padding = (0,) * rank
        if stride is None or padding is None or dilation is None or rank != 2:
            return f"windows of this convolution ({node.op}) are not cut by basis_probe"
        if len(stride) == 1:
            stride = stride * rank
        if len(padding) == 1:
            padding = padding * rank
        if len(dilation) == 1:
            dilation = dilation * rank
        return weight, bias, Convolution(tuple(weight.shape[2:]), stride, padding, dilation)
    elif node.op not in ("matmul", "mm"):
        return f"the weight of {node.op} is not understood"
    if weight is None:
        return f"the weight of {node.op} is computed as the model runs"
    return weight, bias, None


def _peel(facts: Facts, source: int) -> tuple[Tensor | None, Tensor | None, bool, bool]:
    """The gain and bias of a norm in front of a layer's input; is it centred; is there one."""
    vertex = facts.graph.vertices[source]
    region = facts.regions.get(source)
    if region is None:
        return None, None, False, False
    gain, bias = region.gain, region.bias
    if region.shape is Shape.DIAGONAL and vertex.carried[0] in facts.regions:
        inner = facts.regions[vertex.carried[0]]
        if inner.shape in (Shape.RMS_NORM, Shape.LAYER_NORM) and gain is not None:
            if inner.gain is not None and inner.bias is not None and bias is not None:
                bias, gain = bias + gain * inner.bias, gain * inner.gain
            region = dataclasses.replace(inner, gain=gain, bias=bias)
    if region.shape not in (Shape.RMS_NORM, Shape.LAYER_NORM) or gain is None:
        return None, None, False, False
    centred = region.shape is Shape.LAYER_NORM
    if float(gain.abs().min()) < 1e-6 * float(gain.abs().max()):
        # A feature that the gain switches off cannot be recovered; the gain stays in the input.
        return None, None, False, True
    return gain, bias, centred, True
