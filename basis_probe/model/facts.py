"""What a model was seen to compute around each of its sites: facts, and nothing that follows.

Every function is measured on values, never looked up by its name or in a configuration: a region is
a norm because its outputs are a normalised input times a gain, a nonlinearity because each output
depends on one input only.
"""

import dataclasses
import enum
import functools
import itertools
import math
import re
import statistics
from collections.abc import Callable, Container, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from basis_probe.algebra.pairs import PairFactors, pair_factors
from basis_probe.errors import DataError
from basis_probe.model import experts
from basis_probe.model.attention import Attention, Side, attentions
from basis_probe.model.axes import Axes
from basis_probe.model.batches import Batch
from basis_probe.model.experts import Expert
from basis_probe.model.graph import (
    Graph,
    Kind,
    Layout,
    NotGivenError,
    Vertex,
    condense,
    constant,
    groups_of,
    is_one_number,
    looked_up,
    nonlinear,
    norm_argument,
)
from basis_probe.model.longer import further_positions
from basis_probe.model.network import Subject
from basis_probe.model.offloaded import fetched
from basis_probe.model.places import Site, piece, spoken
from basis_probe.model.positions import Rows
from basis_probe.model.rows import bias_of_blank, is_blank, picked_weight
from basis_probe.model.trace import Fixed, Node, Ref, Trace, fixed_in
from basis_probe.model.views import apart


class Shape(enum.Enum):
    """What a region was measured to do to a row of features."""

    SCALE = "multiplies by one number"
    SHIFT = "multiplies by one number and adds a weight vector"
    DIAGONAL = "multiplies every feature by its own number"
    ELEMENTWISE = "bends every feature by itself"
    RMS_NORM = "divides by the root mean square"
    LAYER_NORM = "subtracts the mean and divides by the standard deviation"
    PRODUCT = "multiplies two tensors, feature by feature"
    PAIRED = "joins two tensors, feature by feature, and not as a product"
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
        within: True if it acts on each head by itself, with one gain for all of them.
        apart: True if each of these heads has a gain of its own; `gain` and `bias` are then those
            of all heads, one behind the other.
        pooled: True for a norm whose moments run over positions too.
        pair: which factors of two tensors pass, where the shape is PAIRED.
    """

    shape: Shape
    function: Callable[[Tensor], Tensor] | None = None
    gain: Tensor | None = None
    bias: Tensor | None = None
    why: str = ""
    op: str = ""
    learned: bool = True
    within: bool = False
    apart: bool = False
    pooled: bool = False
    pair: PairFactors | None = None

    @functools.cached_property
    def is_generic(self) -> bool:
        """True if the gain differs from feature to feature."""
        gain = self.gain
        return gain is not None and float(gain.std()) > 1e-6 * float(gain.abs().mean())


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
class Facts:
    """Everything that was seen of a model in one forward pass.

    Attributes:
        graph: the condensed graph.
        sites: name -> site, in forward order.
        streams: the streams.
        stream_of: vertex -> index of its stream.
        regions: vertex -> what was measured of it.
        attentions: where queries meet keys.
        given: vertex -> what it uses in place of a weight that training could change.
        biases: linear map -> what it adds in place of a bias that training could change.
        recorded: the forward pass as it was; in the graph's, axes of examples and heads that were
            merged are kept apart.
    """

    graph: Graph
    sites: dict[str, Site]
    streams: tuple[Stream, ...]
    stream_of: dict[int, int]
    regions: dict[int, Region]
    attentions: tuple[Attention, ...] = ()
    given: dict[int, str] = dataclasses.field(default_factory=dict[int, str])
    biases: dict[int, str] = dataclasses.field(default_factory=dict[int, str])
    recorded: Trace | None = None

    @functools.cached_property
    def axes(self) -> Axes:
        """Which axis of a tensor is which axis of which input."""
        return Axes(self.graph.trace if self.recorded is None else self.recorded)

    def _is_merged(self, site: Site) -> bool:
        """True if examples and heads are one axis of a site's tensor."""
        if self.recorded is None:
            return False
        return self.recorded.node(site.node).shape != self.graph.trace.node(site.node).shape

    def _recorded_shape(self, site: Site) -> tuple[int, ...]:
        trace = self.graph.trace if self.recorded is None else self.recorded
        return trace.node(site.node).shape

    def rows(self, site: Site) -> Rows:
        """Which rows of a site belong to which example and position."""
        shape, layout = self._recorded_shape(site), self.layout(site)
        return Rows.of(self.axes, site.node, (len(shape) - 1,) if layout is None else layout.axes)

    def routed(self, site: Site) -> tuple[str, Rows] | None:
        """The module whose input's rows are given out to experts, and which rows these are.

        None where a site's own rows are known, or nothing around it tells.
        """
        address, trace = site.address, self.graph.trace
        root = address.root if isinstance(address, Expert) else ""
        if not isinstance(address, Expert) and self.expert(site) and not self.is_told(site.node):
            root = experts.root_of(trace, site.node, site.node, self.is_told)
        given = experts.input_of(trace, root) if root else None
        return None if given is None else (root, self._rows_of(given))

    def expert(self, site: Site) -> tuple[int, int] | None:
        """Which expert's neurons a site is of, and of how many; None where it is of none."""
        if isinstance(site.address, Expert):
            return site.address.index, site.address.count
        path = site.address.path
        if path not in self._members:
            self._members[path] = experts.member_of(self.graph.trace, path)
        found = self._members[path]
        return found if found is not None and not self.is_told(site.node) else None

    @functools.cached_property
    def _members(self) -> dict[str, tuple[int, int] | None]:
        """Of which experts the modules are, as far as that was asked."""
        return {}

    def is_neurons(self, node: int) -> bool:
        """True for a tensor that a nonlinearity wrote, or rows of one."""
        vertex = self.graph.same.get(node)
        while vertex is not None and self.graph.vertices[vertex].kind is Kind.CARRIER:
            carried = self.graph.vertices[vertex].carried
            vertex = carried[0] if len(carried) == 1 else None
        region = None if vertex is None else self.regions.get(vertex)
        return region is not None and region.shape in _NEURONS and node in self.graph.layouts

    def is_told(self, node: int) -> bool:
        """True if it is known which rows of a tensor are of which example."""
        rows = self._rows_of(node)
        runs = [run for axis in rows.axes for run in axis]
        return any(origin.source in rows.examples for run in runs for origin in run)

    def _rows_of(self, node: int) -> Rows:
        trace = self.graph.trace if self.recorded is None else self.recorded
        return Rows.of(self.axes, node, (len(trace.node(node).shape) - 1,))

    @functools.cached_property
    def pooled(self) -> dict[int, str]:
        """Vertex of neurons of several experts, whose rows are mixed -> the stack that reads them.

        So is everything between the stack that writes them and the one that reads them.
        """
        same = self.graph.same
        between = experts.between(self.graph.trace, self.is_neurons)
        return {same[node]: name for node, name in between.items() if node in same}

    def vertex(self, site: Site) -> Vertex | None:
        """The vertex of a site, or None if the site's tensor has no understood features."""
        place = None if self._is_merged(site) else self.graph.same.get(site.node)
        return None if place is None else self.graph.vertices[place]

    def layout(self, site: Site) -> Layout | None:
        """Where the features of a site are."""
        return None if self._is_merged(site) else self.graph.layouts.get(site.node)

    def shape(self, site: Site) -> tuple[int, ...]:
        """The sizes of a site's feature axes, e.g. (heads, d_head)."""
        layout, shape = self.layout(site), self._recorded_shape(site)
        return (shape[-1],) if layout is None else tuple(shape[axis] for axis in layout.axes)


# --- measuring regions --------------------------------------------------------------------------


def _spread(x: Tensor, layout: Layout, ndim: int) -> Tensor:
    """[samples, dim] values laid out as the region expects them."""
    axis = max(1, layout.axes[-1])
    return x.reshape(len(x), *([1] * (axis - 1)), x.shape[1], *([1] * (ndim - axis - 1)))


def evaluate(
    graph: Graph,
    vertex: Vertex,
    values: tuple[Tensor, ...],
    fixed: dict[int, Tensor] | None = None,
    made: dict[int, Tensor] | None = None,
) -> Tensor:
    """What a region makes of rows of features [samples, dim], one tensor for each root.

    Args:
        graph: the graph.
        vertex: the region.
        values: the rows.
        fixed: id of a parameter -> what takes its place.
        made: call that makes a constant -> what takes its place.
    """
    layout, ndim = graph.layouts[vertex.node], len(graph.trace.node(vertex.node).shape)
    flat = [value.reshape(-1, value.shape[-1]) for value in values]
    laid = {root: _spread(f, layout, ndim) for root, f in zip(vertex.carried, flat, strict=True)}
    found = graph.replay(vertex.node, laid | (made or {}), fixed)
    if len(layout.axes) == 1 and found.numel() > flat[0].numel():
        found = _combined(found, layout.axes[0])
    return found.reshape(values[0].shape)


def _combined(made: Tensor, axis: int) -> Tensor:
    """A generic mean over positions, [samples, dim], where constants differ between these.

    What a change of basis does to every position it does to this, and the other way round.
    """
    rows = made.movedim(axis, -1)
    rows = rows.reshape(len(made), -1, rows.shape[-1])
    generator = torch.Generator().manual_seed(0)
    weights = 0.5 + torch.rand(rows.shape[1], generator=generator, dtype=torch.float64)
    return torch.einsum("p,npd->nd", (weights / weights.sum()).to(rows), rows)


def _measure(graph: Graph, vertex: Vertex) -> Region:
    trace = graph.trace
    node = trace.node(vertex.node)
    op = spoken(trace, node)
    layout = graph.layouts.get(vertex.node)
    several = Region(Shape.UNKNOWN, why=f"{op} on features in several axes", op=op)
    within = layout is not None and len(layout.axes) == 2 and layout.axes[-1] == len(node.shape) - 1
    if layout is None or (len(layout.axes) != 1 and not within):
        return several
    dim = node.shape[layout.axes[-1]]
    roots = vertex.carried
    device = _device(trace)

    def function(*values: Tensor) -> Tensor:
        return evaluate(graph, vertex, values)

    generator = torch.Generator().manual_seed(0)

    def draw(rows: int) -> Tensor:
        return torch.randn(rows, dim, generator=generator, dtype=torch.float64).to(device)

    if any(not _meets(graph, root, vertex.node) for root in roots):
        return Region(Shape.UNKNOWN, why=f"{op} changes the shape", op=op)
    try:
        if len(roots) == 1:
            # Truth values choose features, and no change of basis acts on them.
            vectors = [
                fixed
                for _, fixed in vectors_of(graph, vertex)
                if fixed.tensor.dtype is not torch.bool
            ]
            region = _measure_one(function, draw, op)
            learned = all(fixed.name is not None for fixed in vectors)
            # What is computed of nothing is no weight.
            learned = learned and bool(vectors or region.shape is not Shape.DIAGONAL)
            if region.shape is Shape.SHIFT and not (vectors and learned):
                # The same number added to every feature bends each of them by itself.
                alike = not vectors and region.bias is not None and len(region.bias.unique()) == 1
                kind = Shape.ELEMENTWISE if alike else Shape.DIAGONAL
                region, learned = dataclasses.replace(region, shape=kind), alike
            bent = region.shape is Shape.ELEMENTWISE and not vectors
            if within and not (region.shape.is_norm or region.shape is Shape.SCALE or bent):
                # One vector for all heads is not a vector for all features.
                return several
            return dataclasses.replace(region, learned=learned, within=within)
        if within:
            alike = all(graph.layouts[root].axes == layout.axes for root in roots)
            if not alike or any(True for _ in vectors_of(graph, vertex)):
                return several
        return _measure_two(function, draw, op)
    except NotGivenError:
        why = f"{op} reads more of the model than these features, such as one of its inputs"
        return Region(Shape.UNKNOWN, why=why, op=op)
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        if within:
            # A single head was replayed.
            unlike = Region(Shape.UNKNOWN, why=f"{op} is not the same for every head", op=op)
            return _measure_heads(graph, vertex, draw, op) or unlike
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return Region(Shape.UNKNOWN, why=f"{op} cannot be replayed: {reason}", op=op)


def _measure_heads(
    graph: Graph, vertex: Vertex, draw: Callable[[int], Tensor], op: str
) -> Region | None:
    """A norm inside heads that have gains of their own; None for something else."""
    shape, (place, last) = graph.trace.node(vertex.node).shape, graph.layouts[vertex.node].axes
    if place == 0 or len(vertex.carried) != 1:
        return None

    def of(head: int) -> Callable[[Tensor], Tensor]:
        def function(x: Tensor) -> Tensor:
            sizes = [1] * len(shape)
            sizes[0], sizes[last] = x.shape
            laid = x.reshape(sizes).repeat_interleave(shape[place], place)
            made = graph.replay(vertex.node, {vertex.carried[0]: laid})
            return made.select(place, head).reshape(x.shape)

        return function

    try:
        heads = [_measure_one(of(head), draw, op) for head in range(shape[place])]
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError):
        return None
    gains = [head.gain for head in heads if head.gain is not None]
    biases = [head.bias for head in heads if head.bias is not None]
    kinds = {head.shape for head in heads}
    learned = all(fixed.name is not None for _, fixed in vectors_of(graph, vertex))
    if len(kinds) > 1 or not heads[0].shape.is_norm or not learned:
        return None
    gain, bias = torch.cat(gains), torch.cat(biases)
    return Region(heads[0].shape, None, gain, bias, op=op, within=True, apart=True)


def homogeneity(graph: Graph, index: int) -> tuple[float | None, int]:
    """What a function of one tensor does with factors: the degree, and 1 if even or -1 if odd.

    Args:
        graph: the graph.
        index: the vertex; it carries the features of one other.

    Returns:
        d where f(c x) is c^d f(x) for every positive c, None for no d; 0 for neither even nor odd.
    """
    before = graph.vertices[index].carried[0]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(graph.trace.node(before).shape, generator=generator, dtype=torch.float64)
    y, minus, double, half = (
        graph.replay(index, {before: factor * x}) for factor in (1.0, -1.0, 2.0, 0.5)
    )
    degree = float((double.abs().sum() / y.abs().sum()).log2().round())
    scales = _close(double, 2.0**degree * y) and _close(half, 0.5**degree * y)
    parity = 1 if _close(minus, y) else -1 if _close(minus, -y) else 0
    return degree if scales else None, parity


def _norms_of_all(graph: Graph) -> dict[int, Region]:
    """The normalisations of all channels as one group, which are norms of rows with channels."""
    found: dict[int, Region] = {}
    for vertex in graph.vertices.values():
        node = graph.trace.node(vertex.node)
        if vertex.kind is Kind.GROUP_NORM and groups_of(node) == 1:
            if node.op == "layer_norm":
                # Of one size of map only, so that it cannot be measured on single pixels.
                one = torch.ones(node.shape[1], dtype=torch.float64)
                region = Region(Shape.LAYER_NORM, gain=one, bias=0 * one, op=node.op)
            else:
                region = _measure(graph, vertex)
            if region.shape is Shape.LAYER_NORM:
                pooled = len(node.shape) > 2
                found[vertex.node] = dataclasses.replace(region, pooled=pooled)
    return found


def _meets(graph: Graph, root: int, target: int) -> bool:
    """True if what a region reads has the features of its result, at each position or for all."""
    given, made = graph.trace.node(root).shape, graph.trace.node(target).shape
    if given == made:
        return True
    here, there = graph.layouts.get(root), graph.layouts.get(target)
    if here is None or there is None or len(given) != len(made) or here.axes != there.axes:
        return False
    return all(
        a == b if axis in here.axes else a in (1, b)
        for axis, (a, b) in enumerate(zip(given, made, strict=True))
    )


def vectors_of(graph: Graph, vertex: Vertex) -> Iterator[tuple[Node, Fixed]]:
    """The constants of more than one number behind a region, up to what it carries.

    Of what comes down to one number, such as an entry of a vector, all features take the same.
    """
    return vectors_behind(graph.trace, vertex.node, vertex.carried)


def vectors_behind(
    trace: Trace, node: int, until: Iterable[int] = ()
) -> Iterator[tuple[Node, Fixed]]:
    """The same of what a node is computed from, up to some nodes."""
    seen, waiting = set(until), [node]
    while waiting:
        index = waiting.pop()
        if index in seen:
            continue
        seen.add(index)
        here = trace.node(index)
        if not here.live and math.prod(here.shape) == 1:
            continue
        for value in fixed_in((here.args, here.kwargs)):
            if value.tensor.numel() > 1:
                yield here, value
        waiting.extend(here.inputs)


def given_to(graph: Graph, vertex: Vertex) -> Iterator[tuple[Node, Fixed | Ref]]:
    """The constants of more than one number that the calls of a region use, as they use them."""
    for index in sorted(inside_of(graph, vertex)):
        yield from numbers_in(graph.trace, graph.trace.node(index))


def numbers_in(trace: Trace, node: Node) -> Iterator[tuple[Node, Fixed | Ref]]:
    """The constants of more than one number that a call uses."""
    if node.op == "output":
        # One of several that a call returned.
        yield from numbers_in(trace, trace.node(node.inputs[0]))
        return
    waiting: list[object] = [*reversed((*node.args, *node.kwargs.values()))]
    while waiting:
        value = waiting.pop()
        if isinstance(value, tuple | list):
            waiting.extend(reversed(value))  # pyright: ignore[reportUnknownArgumentType]
        elif isinstance(value, Fixed) and value.tensor.numel() > 1:
            yield node, value
        elif isinstance(value, Ref) and _are_numbers(trace, value):
            yield node, value


def _are_numbers(trace: Trace, value: Ref) -> bool:
    """True for a constant of more than one number."""
    node = trace.node(value.node)
    if node.live or any(trace.node(index).live for index in node.inputs):
        return False  # It is of the input, or made like what is.
    return math.prod(node.shape) > 1 and not is_one_number(trace, value)


def inside_of(graph: Graph, vertex: Vertex) -> frozenset[int]:
    """The calls on features that a region consists of, behind what it carries."""
    seen, waiting = set[int](), [vertex.node]
    while waiting:
        index = waiting.pop()
        if index not in seen and index not in vertex.carried and graph.trace.node(index).live:
            seen.add(index)
            waiting.extend(graph.trace.node(index).inputs)
    return frozenset(seen)


def signature(graph: Graph, vertex: Vertex) -> str | None:
    """The steps of a region, the same for regions that compute the same; None if it has weights."""
    trace, places = graph.trace, dict[int, int]()

    def said(value: object) -> str | None:
        if isinstance(value, Ref):
            return step(value.node)
        if isinstance(value, Fixed):
            number = value.tensor
            return str(number.item()) if number.numel() == 1 and value.name is None else None
        if isinstance(value, tuple | list):
            return joined(value)  # pyright: ignore[reportUnknownArgumentType]
        plain = value is None or isinstance(value, bool | int | float | str | torch.dtype)
        return repr(value) if plain else None

    def joined(values: Iterable[object]) -> str | None:
        found = [said(value) for value in values]
        return None if None in found else f"({','.join(map(str, found))})"

    def step(index: int) -> str | None:
        if index in vertex.carried:
            return f"x{vertex.carried.index(index)}"
        if index in places:
            return f"s{places[index]}"
        node = trace.node(index)
        if node.function is None and node.op != "output":
            return None
        names = joined([*node.kwargs])
        inside = joined([*node.args, *node.kwargs.values()])
        places[index] = len(places)
        return None if inside is None else f"{node.op}{names}{inside}"

    return step(vertex.node)


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


_SIZES = (1.0, 30.0, 0.01, 3e3, 1e6)
"""What a function is measured at, in units of a normal variable."""


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
    # A clip may lie beyond every value of the example.
    if all(_close(function(size * x), gain * (size * x) + bias) for size in _SIZES):
        # A difference of sums is rounded as these are.
        rounding = 8 * torch.finfo(gain.dtype).eps * float(gain.abs().max() + bias.abs().max())
        alike = float((gain - gain[0]).abs().max()) <= rounding
        if alike and float(bias.abs().max()) == 0.0:
            return Region(Shape.SCALE, function, gain, bias, op=op)
        if alike and len(gain) > 1:
            return Region(Shape.SHIFT, function, gain, bias, op=op)
        return Region(Shape.DIAGONAL, function, gain, bias, op=op)
    return Region(Shape.ELEMENTWISE, function, op=op)


def _measure_coupled(
    function: Callable[..., Tensor], draw: Callable[[int], Tensor], op: str
) -> Region:
    drawn = draw(24)
    # Values far from zero, so that an epsilon does not show; less far for short types.
    for size in (1e12, 1e4):
        x = size * drawn
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
            alike = _close(gain * unit + bias, y, 1e-5)
            if alike and x.shape[1] <= 2:
                # Of two numbers a softmax says which is larger, as a norm does, but not of near
                # ones.
                near = function(drawn)
                alike = bool(near.std() > 0) and _close(near.abs(), y.abs(), 1e-2)
            if alike and _asks_for_length_alone(function, draw, shape, gain, bias):
                bias = torch.where(bias.abs() < 1e-5 * y.abs().max(), torch.zeros_like(bias), bias)
                return Region(shape, function, gain, bias, op=op)
    return Region(Shape.COUPLED, function, op=op)


_LENGTHS = {3.0: 1, 0.05: 7, 100.0: 5, 1e4: 9}
"""Of rows of the first length all are tried, of others some."""
_PLACES = 512
"""Up to so many features are each tried alone."""


def _asks_for_length_alone(
    function: Callable[..., Tensor],
    draw: Callable[[int], Tensor],
    shape: Shape,
    gain: Tensor,
    bias: Tensor,
) -> bool:
    """True if all rows of one length are divided by one number, whatever their direction is.

    A clip behind a norm is reached where one feature is most of a row, and what asks for the
    largest entry, as a softmax does, looks like a norm for large numbers.
    """
    count = 24 if len(gain) <= _PLACES else 6
    inner = _directions(draw(count), draw(count))
    shift = torch.zeros_like(inner[:, :1])
    if shape is Shape.LAYER_NORM:
        inner = inner - inner.mean(1, keepdim=True)
        inner = inner[inner.abs().amax(1) > 1e-9]
        shift = draw(len(inner))[:, :1]
    unit = inner / inner.square().mean(1, keepdim=True).sqrt()
    for length, step in _LENGTHS.items():
        some = unit[::step]
        made, y = gain * some, function(length * (some + shift[::step]))
        factor = ((y - bias) * made).sum() / made.square().sum().clamp_min(1e-300)
        if not _close(factor * made + bias, y, 1e-5):
            return False
    return True


def _directions(some: Tensor, other: Tensor) -> Tensor:
    """Rows in many directions: such as are nearly one feature, all alike, or of any sizes.

    Args:
        some: drawn rows.
        other: others.
    """
    dim, device = some.shape[1], some.device
    features = torch.arange(dim, device=device)
    # Every feature once, by itself or among others that are far from it.
    rows = dim if dim <= _PLACES else -(-dim // 64)
    alone = (features % rows == torch.arange(rows, device=device)[:, None]).to(some)
    signs = torch.where(other > 0, 1.0, -1.0).to(some)
    alternating = torch.where(features % 2 == 0, 1.0, -1.0).to(some)
    halves = torch.where(features < dim // 2, 1.0, -1.0).to(some)
    sizes = torch.logspace(-6, 0, dim, dtype=some.dtype, device=device)
    sized = sizes[other[:6].argsort(1)] * signs[:6]
    few = some * (other > other.sort(1).values[:, -min(dim, 3), None])
    special = torch.stack([torch.ones_like(alternating), alternating, halves])
    made = [some, some.abs(), other.abs().square(), sized, few[few.any(1)], alone, special]
    made = torch.cat([torch.cat([part, -part]) for part in made])
    return torch.cat([made, signs])


def _measure_two(function: Callable[..., Tensor], draw: Callable[[int], Tensor], op: str) -> Region:
    a, b = draw(16), draw(16)
    y = function(a, b)
    ratio = function(torch.ones_like(a), torch.ones_like(b))[0]
    alike = _close(ratio, ratio[:1].expand_as(ratio))
    if alike and all(
        _close(function(size * a, size * b), ratio * (size * a) * (size * b)) for size in _SIZES
    ):
        return Region(Shape.PRODUCT, None, gain=ratio, op=op)
    if alike and _close(y, ratio * a * b):
        why = f"{op} is a product for small numbers, and something else for large ones"
        return Region(Shape.UNKNOWN, why=why, op=op)
    pair = pair_factors(lambda *given: function(*(x.to(a) for x in given)).to("cpu"), a.shape[1])
    if pair is not None:
        return Region(Shape.PAIRED, None, op=op, pair=pair)
    why = f"{op} joins two tensors, but not feature by feature and alike for all of them"
    return Region(Shape.UNKNOWN, why=why, op=op)


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
            value_mixed=any(v.kind is Kind.ATTENTION or v.by_head for v in vertices),
        )
        stream_of |= dict.fromkeys(members, len(streams))
        streams.append(stream)
    return tuple(streams), stream_of


def facts_of(subject: Subject, batch: Batch) -> Facts:
    """What is seen of a model in one forward pass on the first examples of a batch.

    Raises:
        DataError: if the model fails on it.
    """
    try:
        trace = subject.watch(batch)
    except Exception as error:
        raise DataError(
            f"the model failed on the first batch ({batch.form}, shape "
            f"{tuple(batch.inputs.shape)}): {type(error).__name__}: {error}"
            f"{_types_apart(subject, batch, error)}"
        ) from error
    return collect(trace, subject.names(trace), all_named=subject.all_named)


_WHOLE = re.compile(
    r"\b(long|int|short|byte|char|bool(ean)?|u?int(8|16|32|64)|mixed dtype)\b", re.I
)
"""How torch names whole numbers where it needs others."""


def _types_apart(subject: Subject, batch: Batch, error: Exception) -> str:
    """What to do where the numbers of a batch are of another type than the weights.

    Integers are what many models take: they count where the model fails for their type.
    """
    given, needed, said = batch.inputs.dtype, subject.dtype, str(error)
    whole = not batch.inputs.is_floating_point()
    about_types = isinstance(error, RuntimeError | ValueError) and "indices" not in said
    if given == needed or (whole and not (about_types and _WHOLE.search(said))):
        return ""
    given, needed = (str(dtype).removeprefix("torch.") for dtype in (given, needed))
    return (
        f". The batch holds {given} numbers and the model has {needed} weights: convert one of "
        f"them, for example the batch with .to(torch.{needed})"
    )


def collect(trace: Trace, sites: dict[str, Site], *, all_named: bool = False) -> Facts:
    """What was seen of the model in a recorded forward pass.

    Args:
        trace: the forward pass.
        sites: the places that have names.
        all_named: True if the model itself names every place that its users know.
    """
    recorded, trace = trace, apart(trace)
    graph = condense(trace, sites=frozenset(site.node for site in sites.values()))
    regions = {
        vertex.node: _measure(graph, vertex)
        for vertex in graph.vertices.values()
        if vertex.kind is Kind.REGION
    }
    regions |= _norms_of_all(graph)
    facts = _with_streams(Facts(graph, sites, (), {}, regions, recorded=recorded))
    facts = dataclasses.replace(facts, sites=_with_unnamed(facts, all_named=all_named))
    return dataclasses.replace(facts, sites=_with_experts(facts, as_bridge=all_named))


def _with_streams(facts: Facts) -> Facts:
    """The facts, with what follows from the graph and the regions."""
    graph, regions = facts.graph, facts.regions
    streams, stream_of = _streams(graph, regions)
    norms = frozenset(
        vertex
        for vertex, region in regions.items()
        if region.shape.is_norm or region.shape is Shape.ELEMENTWISE
    )
    plain = frozenset(
        vertex
        for vertex, region in regions.items()
        if region.shape is Shape.RMS_NORM and region.within and _is_gainless(graph, vertex, region)
    )
    found = attentions(graph, norms, plain)
    given, biases = _given(graph, regions)
    return dataclasses.replace(
        facts,
        streams=streams,
        stream_of=stream_of,
        attentions=found,
        given=given,
        biases=biases,
    )


def generic(facts: Facts) -> Facts:
    """The same of a model whose parameters are no zeros, and of an input that is longer.

    Before training many parameters are zero throughout: a gain of zeros lets everything pass, and
    a bias of zeros is none. Tables and masks of positions may be alike for the first ones. What is
    derived is to be true of the model when it is trained, and of other lengths. Where there is
    neither, the facts as they are.
    """
    graph = facts.graph
    instead, further = _in_place_of_zeros(graph.trace), further_positions(graph)
    if not instead and not further:
        return facts
    trace = dataclasses.replace(graph.trace, instead=instead, further=further)
    graph = dataclasses.replace(graph, trace=trace)
    regions = dict(facts.regions)
    for vertex in graph.vertices.values():
        if vertex.kind is Kind.REGION and _reads(graph, vertex, instead, further):
            regions[vertex.node] = _measure(graph, vertex)
    return _with_streams(dataclasses.replace(facts, graph=graph, regions=regions))


_MOST_GENERIC = 1_000_000
"""Parameters of more numbers keep them."""

_MATRICES_FOR_SIZE = 5


def _in_place_of_zeros(trace: Trace) -> dict[int, Tensor]:
    """Id of a parameter that is zero throughout -> random numbers, of the size of other weights."""
    generator = torch.Generator().manual_seed(0)
    learned: dict[int, Tensor] = {}
    for node in trace.nodes:
        for fixed in fixed_in((node.args, node.kwargs)):
            if isinstance(fixed.tensor, nn.Parameter) and fixed.tensor.is_floating_point():
                learned.setdefault(id(fixed.tensor), fixed.tensor)
    zeros = {
        key: tensor
        for key, tensor in learned.items()
        if 0 < tensor.numel() <= _MOST_GENERIC and not tensor.is_meta and not tensor.detach().any()
    }
    size = _usual_size([t for key, t in learned.items() if key not in zeros]) if zeros else 0.0
    return {
        key: (2 * torch.rand(tensor.shape, generator=generator, dtype=torch.float64) - 1)
        .mul(size)
        .to(tensor.device)
        for key, tensor in zeros.items()
    }


def _usual_size(learned: Iterable[Tensor]) -> float:
    """The middle one of the sizes of the smallest matrices, neither very small nor large."""
    matrices = sorted((t for t in learned if t.ndim > 1 and not t.is_meta), key=Tensor.numel)
    some = (fetched(tensor).flatten().double() for tensor in matrices[:_MATRICES_FOR_SIZE])
    sizes = [float(numbers.square().mean().sqrt()) for numbers in some]
    return min(max(statistics.median(sizes), 1e-3), 0.5) if sizes else 0.5


def _reads(graph: Graph, vertex: Vertex, some: Container[int], calls: Container[int] = ()) -> bool:
    """True if a region is given some of the tensors, by id, or what some of the calls made."""
    seen, waiting = set(vertex.carried), [vertex.node]
    while waiting:
        index = waiting.pop()
        if index not in seen:
            seen.add(index)
            node = graph.trace.node(index)
            if index in calls or any(
                id(fixed.tensor) in some for fixed in fixed_in((node.args, node.kwargs))
            ):
                return True
            waiting.extend(node.inputs)
    return False


def _with_experts(facts: Facts, *, as_bridge: bool) -> dict[str, Site]:
    """The sites, with the neurons of every expert of a stack."""
    trace = facts.graph.trace
    found = experts.stacks(trace)
    if not found:
        return facts.sites
    more = experts.sites(found, trace, facts.is_neurons, facts.is_told, as_bridge=as_bridge)
    named = [*facts.sites.values(), *(site for site in more if site.name not in facts.sites)]
    return {site.name: site for site in sorted(named, key=lambda site: site.node)}


_NEURONS = (Shape.ELEMENTWISE, Shape.COUPLED, Shape.PAIRED, Shape.PRODUCT)


def _is_gainless(graph: Graph, vertex: int, region: Region) -> bool:
    """True for a norm with one number for all features in place of a gain."""
    gain = region.gain
    own = any(True for _ in vectors_of(graph, graph.vertices[vertex]))
    return not own and gain is not None and float((gain - gain[0]).abs().max()) <= 1e-4


_BENT = (Shape.ELEMENTWISE, Shape.PRODUCT)
_WRITTEN = (Kind.LINEAR, Kind.CONVOLUTION, Kind.EMBEDDING, Kind.ATTENTION, Kind.SUM)


def _with_unnamed(facts: Facts, *, all_named: bool) -> dict[str, Site]:
    """The sites, with those that no module returns and no nonlinear function writes.

    Queries, keys and values that one map wrote beside each other are `q`, `k` and `v` of their
    module. So are they where nothing of their stream has a name, and what attention writes is `z`
    there; other sums, and nonlinearities that are written out, bear the name of the operation.
    """
    graph, trace = facts.graph, facts.graph.trace
    recorded = facts.recorded or trace
    known = {graph.same[site.node] for site in facts.sites.values() if site.node in graph.same}
    origins = {_uncarried(graph, vertex) for vertex in known}
    named = {facts.stream_of[vertex] for vertex in known}
    wanted: dict[int, str] = {}

    def plain(index: int) -> bool:
        # Heads that are merged with examples are not told apart in what can be caught.
        node = trace.node(index)
        whole = node.floating and recorded.node(index).shape == node.shape
        return whole and index in graph.layouts and piece(trace, node, "") is not None

    forms: dict[int, list[int]] = {}
    for index in sorted(graph.vertices):
        forms.setdefault(_uncarried(graph, index), []).append(index)

    def shown(end: int) -> int:
        """The first form of some features in which they can be caught."""
        among = forms[_uncarried(graph, end)]
        return next(filter(plain, (end, *among)), end)

    for attention in (part for whole in facts.attentions for part in whole.each):
        value = _uncarried(graph, graph.vertices[attention.vertex].carried[0])
        sides = {"q": attention.query, "k": attention.key}
        ends = {name: side.source for name, side in sides.items() if isinstance(side, Side)}
        for name, end in {**ends, "v": value}.items():
            part = graph.vertices[end].kind is Kind.PART
            if part or (facts.stream_of[end] not in named and not all_named):
                wanted.setdefault(shown(end), name)
        if attention.vertex not in origins and not all_named:
            wanted.setdefault(shown(attention.vertex), "z")
    # Between where queries are written and where they meet keys nothing is a place of its own.
    between = {
        index
        for whole in facts.attentions
        for attention in (whole, *whole.parts)
        for side in (attention.query, attention.key)
        for index in _inside(side)
    }
    hidden = {facts.stream_of[index] for index in (*wanted, *between) if index in graph.vertices}
    named |= hidden
    for index, vertex in () if all_named else graph.vertices.items():
        node, region = trace.node(index), facts.regions.get(index)
        bent = region is not None and region.shape in _BENT and not nonlinear(node.op)
        joined = vertex.kind is Kind.SUM and len(vertex.carried) > 1 and index not in origins
        if joined and not _goes_on(graph, vertex):
            continue
        if (bent or joined) and facts.stream_of[index] not in (named if bent else hidden):
            wanted.setdefault(index, f"{node.op}()")
    sites = dict(facts.sites)
    for index, name in sorted(wanted.items()):
        site = piece(trace, trace.node(index), name)
        if site is None or not plain(index):
            continue
        free = (f"{site.name}:{number}" for number in itertools.count(2))
        own = site.name if site.name not in sites else next(n for n in free if n not in sites)
        sites[own] = dataclasses.replace(site, name=own)
    return {site.name: site for site in sorted(sites.values(), key=lambda site: site.node)}


def _goes_on(graph: Graph, vertex: Vertex) -> bool:
    """True for a sum to which a branch is added that was read off one of the others before."""
    for index in vertex.carried:
        origin = _uncarried(graph, index)
        while len(graph.readers.get(index, ())) < 2 and index != origin:
            index = graph.vertices[index].carried[0]
        if graph.vertices[origin].kind in _WRITTEN and len(graph.readers.get(index, ())) > 1:
            return True
    return False


def _inside(side: Side | str) -> frozenset[int]:
    return side.inside if isinstance(side, Side) else frozenset()


def _uncarried(graph: Graph, index: int) -> int:
    """The vertex whose features a vertex shows in another form."""
    while graph.vertices[index].kind is Kind.CARRIER and len(graph.vertices[index].carried) == 1:
        index = graph.vertices[index].carried[0]
    return index


def _given(graph: Graph, regions: Mapping[int, Region]) -> tuple[dict[int, str], dict[int, str]]:
    """Vertices whose matrix, table or added vector is no parameter, and maps of such a bias."""
    trace, found, biases = graph.trace, dict[int, str](), dict[int, str]()
    maps = (Kind.LINEAR, Kind.CONVOLUTION, Kind.EMBEDDING)
    for vertex in graph.vertices.values():
        node = trace.node(vertex.node)
        where = f" in {node.module}" if node.module else ""
        if vertex.kind in maps:
            used = [v for v in (*node.args, *node.kwargs.values()) if _is_matrix(trace, v)]
            if used and not any(is_learned(trace, value) for value in used):
                found[vertex.node] = f"the matrix of {node.op}{where} is no parameter of the model"
            said = _of_no_bias(trace, node)
            if said:
                biases[vertex.node] = f"the bias of {node.op}{where} is {said}"
        elif vertex.kind is Kind.BATCH_NORM:
            bias = node.kwargs.get("bias", node.args[4] if len(node.args) > 4 else None)
            if isinstance(bias, Fixed | Ref) and _is_constant(trace, bias):
                found[vertex.node] = f"the bias of {node.op}{where} is no parameter of the model"
        elif vertex.kind is Kind.REGION and _is_held(graph, vertex, regions.get(vertex.node)):
            found[vertex.node] = (
                f"{spoken(trace, node)}{where} treats features each in its own way, by numbers "
                "that are no parameters of the model"
            )
        elif vertex.kind is Kind.SUM or (vertex.kind is Kind.CARRIER and node.op == "cat"):
            for value in constants_of(trace, node):
                if not is_learned(trace, value):
                    found[vertex.node] = (
                        f"a constant{where} is added to it that is no parameter of the model, such "
                        "as a table of sines for positions"
                    )
                elif isinstance(value, Ref) and _is_scaled_constant(trace, value):
                    found[vertex.node] = (
                        f"a constant{where} is added to it that is no parameter of the model, "
                        "multiplied by learned numbers"
                    )
    return found, biases


def bias_of(node: Node) -> object:
    """What a linear map adds to its product; None if it is another call, or adds nothing."""
    name, place = {"addmm": ("input", 0)}.get(node.op, ("bias", 2))
    if node.op not in ("linear", "addmm") and not node.op.startswith("conv"):
        return None
    if node.kwargs.get("beta", 1) == 0:
        return None
    return node.kwargs.get(name, node.args[place] if len(node.args) > place else None)


def _of_no_bias(trace: Trace, node: Node) -> str:
    """What a linear map adds in place of a bias; empty if it is one, or nothing."""
    bias = bias_of(node)
    if not isinstance(bias, Fixed | Ref):
        return ""
    if _is_constant(trace, bias):
        return "no parameter of the model"
    shape = bias.tensor.shape if isinstance(bias, Fixed) else trace.node(bias.node).shape
    alike = node.op == "addmm" and shape[-1:] in ((), (1,)) and node.shape[-1] > 1
    return "one number for all features" if alike else ""


def _is_constant(trace: Trace, bias: Fixed | Ref) -> bool:
    """True for a bias that no parameter is among, and that is not zero."""
    if isinstance(bias, Ref):
        live = trace.node(bias.node).live
        return not live and not is_blank(trace, bias) and not is_learned(trace, bias)
    return not is_learned(trace, bias) and bool(bias.tensor.any())


def _is_scaled_constant(trace: Trace, value: Ref) -> bool:
    """True if all that is learned of a constant are numbers, each for all of its features."""
    held: list[Tensor] = []
    for node in nodes_behind(trace, value.node, lambda node: math.prod(node.shape) > 1):
        several = (fixed.tensor for fixed in fixed_in((node.args, node.kwargs)))
        held += [t for t in several if t.is_floating_point() and t.numel() > 1]
    return bool(held) and not any(isinstance(tensor, nn.Parameter) for tensor in held)


def _is_held(graph: Graph, vertex: Vertex, region: Region | None) -> bool:
    """True if a function of each feature by itself is another one for each, by fixed numbers.

    Gains that are not zero are made up for by what writes the features.
    """
    if region is None or region.shape not in (Shape.DIAGONAL, Shape.ELEMENTWISE):
        return False
    vectors = [fixed.tensor for _, fixed in vectors_of(graph, vertex)]
    if all(isinstance(tensor, nn.Parameter) for tensor in vectors):
        return False
    if _treats_alike(graph, vertex, vectors):
        return False
    if region.shape is Shape.ELEMENTWISE:
        return True
    gain, bias = region.gain, region.bias
    return bool(gain is not None and (gain == 0).any()) or bool(bias is not None and bias.any())


def _treats_alike(graph: Graph, vertex: Vertex, vectors: Iterable[Tensor]) -> bool:
    """True if a function of each feature is the same for all where their parameters are the same.

    The numbers that are no parameters may be a table that all features read.
    """
    made = graph.trace.node(vertex.node)
    dim = made.shape[graph.layouts[vertex.node].axes[-1]]
    learned = {
        id(tensor): torch.full_like(tensor, 0.7, dtype=torch.float64)
        for tensor in vectors
        if isinstance(tensor, nn.Parameter)
    }
    sizes = torch.logspace(-3, 6, 55, dtype=torch.float64, device=_device(graph.trace))
    grid = torch.cat([-sizes, sizes.new_zeros(1), sizes])
    try:
        values = evaluate(graph, vertex, (grid[:, None].expand(-1, dim),), learned)
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError):
        return False
    first = values[:, :1].expand_as(values)
    return torch.equal(values.nan_to_num(), first.nan_to_num())


def with_weights_in(graph: Graph, vertex: Vertex, order: Tensor) -> Callable[[Tensor], Tensor]:
    """A region as a function of rows, its vectors of one number for every feature in an order.

    Args:
        graph: the graph.
        vertex: the region; it carries the features of one other.
        order: where the number of each feature stood.
    """
    moved: dict[int, Tensor] = {}
    for _, value in vectors_of(graph, vertex):
        shape = [*value.tensor.shape]
        if isinstance(value.tensor, nn.Parameter) and shape.count(len(order)) == 1:
            own = graph.trace.instead.get(id(value.tensor), value.tensor).detach()
            axis = shape.index(len(order))
            moved[id(value.tensor)] = own.index_select(axis, order.to(own.device))
    return lambda x: evaluate(graph, vertex, (x,), moved)


def spans_all_axes(facts: Facts, index: int) -> bool:
    """True if the constants that a sum adds leave no direction out but the all-ones one.

    Args:
        facts: what was seen of the model.
        index: the vertex of the sum.
    """
    trace = facts.graph.trace
    node, layout = trace.node(index), facts.graph.layouts.get(index)
    if layout is None or layout.axes != (len(node.shape) - 1,):
        return False
    dim = node.shape[-1]
    rows: list[Tensor] = []
    for value in constants_of(trace, node):
        if not is_learned(trace, value):
            leaves = [value] if isinstance(value, Fixed) else [*leaves_of(trace, value.node)]
            tables = [leaf.tensor for leaf in leaves if leaf.tensor.ndim > 1]
            rows += [t.detach().double().reshape(-1, dim) for t in tables if t.shape[-1] == dim]
    if not rows:
        return False
    across = torch.cat(rows)
    return int(torch.linalg.matrix_rank(across - across.mean(1, keepdim=True))) >= dim - 1


def constants_of(trace: Trace, node: Node) -> Iterator[Fixed | Ref]:
    """What a sum or a concatenation takes that does not depend on the input; nothing empty."""
    given = node.kwargs.get("tensors", node.args[0]) if node.op == "cat" else node.args
    for value in given if isinstance(given, tuple | list) else ():
        if isinstance(value, Fixed) and value.tensor.numel():
            yield value
        elif isinstance(value, Ref):
            made = trace.node(value.node)
            fixed = not made.live or picked_weight(trace, value.node)
            bias = bias_of_blank(trace, made)
            if isinstance(bias, Fixed | Ref):
                yield bias
            elif fixed and 0 not in made.shape and not is_blank(trace, value):
                yield value


def added_leaves(trace: Trace, value: Fixed | Ref) -> Iterator[Fixed]:
    """The parameters of which something that is added is made; none of one row out of a stack."""
    if isinstance(value, Fixed):
        yield value
    elif not (made := trace.node(value.node)).live:
        size = math.prod(made.shape)
        row = made.shape[-1:] == (size,)
        for leaf in leaves_of(trace, value.node):
            if not (row and leaf.tensor.numel() > size):
                yield leaf


def _is_matrix(trace: Trace, value: object) -> bool:
    if isinstance(value, Fixed):
        return value.tensor.ndim >= 2
    if isinstance(value, Ref):
        node = trace.node(value.node)
        return not node.live and len(node.shape) >= 2
    return False


def is_learned(trace: Trace, value: object) -> bool:
    """True if a parameter is among what a constant is computed from."""
    leaves = (value,) if isinstance(value, Fixed) else ()
    if isinstance(value, Ref):
        leaves = tuple(leaves_of(trace, value.node))
    return any(isinstance(leaf.tensor, nn.Parameter) for leaf in leaves)


def leaves_of(trace: Trace, index: int) -> Iterator[Fixed]:
    """Every fixed tensor from which a node was computed."""
    for node in nodes_behind(trace, index):
        yield from fixed_in((node.args, node.kwargs))


def nodes_behind(
    trace: Trace, index: int, through: Callable[[Node], bool] = lambda _: True
) -> Iterator[Node]:
    """A node, and those from which it was computed, by way of some."""
    seen: set[int] = set()
    waiting = [index]
    while waiting:
        here = waiting.pop()
        if here in seen:
            continue
        seen.add(here)
        node = trace.node(here)
        if not through(node):
            continue
        yield node
        # The numbers by which entries are picked are no part of them, nor is what a constant is
        # only made like.
        inputs = [(i, trace.node(i)) for i in node.inputs]
        waiting.extend(i for i, one in inputs if not one.live or (one.floating and node.live))


def keeps_statistics(node: Node) -> bool:
    """True if batch normalisation uses running statistics, not those of the batch."""
    mean, training = norm_argument(node, "running_mean"), norm_argument(node, "training")
    return isinstance(mean, Fixed) and not training


def shared(facts: Facts) -> Iterator[tuple[int, int, bool]]:
    """Pairs of linear maps with one matrix, and whether one of them uses it transposed."""
    for one, other, transposed, free in _with_one_matrix(facts):
        if not free:
            yield one, other, transposed


def untied(facts: Facts) -> frozenset[int]:
    """The maps whose matrix is a table that counts as untied."""
    pairs = _with_one_matrix(facts)
    return frozenset(i for one, other, _, free in pairs if free for i in (one, other))


def _with_one_matrix(facts: Facts) -> Iterator[tuple[int, int, bool, bool]]:
    """The same pairs, and whether each of the two can have a matrix of its own."""
    graph, trace = facts.graph, facts.graph.trace
    stored = {
        value.tensor.untyped_storage().data_ptr()
        for node in trace.nodes
        for value in (*node.args, *node.kwargs.values())
        if isinstance(value, Fixed) and value.name is not None
    }
    found: dict[tuple[int, int, tuple[int, ...]], list[tuple[int, Tensor]]] = {}
    for vertex in graph.vertices.values():
        if vertex.kind not in (Kind.LINEAR, Kind.CONVOLUTION, Kind.EMBEDDING):
            continue
        weight = matrix(trace, trace.node(vertex.node))
        if weight is None or weight.untyped_storage().data_ptr() not in stored:
            continue
        place = (
            weight.untyped_storage().data_ptr(),
            int(weight.storage_offset()),
            tuple(sorted(weight.shape)),
        )
        for other, known in found.setdefault(place, []):
            transposed = known.shape != weight.shape or known.stride() != weight.stride()
            if transposed and not _is_transposed(known, weight):
                continue
            free = _are_apart(graph, other, vertex.node)
            yield other, vertex.node, transposed, free
            if not free:
                break
        else:
            # Each is held against the first of its kind alone.
            found[place].append((vertex.node, weight))


def _is_transposed(one: Tensor, other: Tensor) -> bool:
    """True if outputs of one are inputs of the other, at every place of a kernel."""
    if one.ndim < 2:
        return False
    turned = one.transpose(0, 1)
    return turned.shape == other.shape and turned.stride() == other.stride()


def _are_apart(graph: Graph, one: int, other: int) -> bool:
    """True for an embedding whose table another module holds under a name of its own.

    Such a table can be given to one of them anew, so that tied embeddings count as untied.
    """
    trace = graph.trace
    if Kind.EMBEDDING not in {graph.vertices[one].kind, graph.vertices[other].kind}:
        return False
    holders = [_holder(trace, trace.node(vertex)) for vertex in (one, other)]
    return None not in holders and holders[0] != holders[1]


def _holder(trace: Trace, node: Node) -> str | None:
    """The module of a call, if it holds the matrix that the call uses under a name of its own."""
    leaves = [*fixed_in((node.args, node.kwargs))]
    for index in node.inputs:
        leaves += leaves_of(trace, index) if not trace.node(index).live else ()
    held = any(node.module in trace.owners.get(id(leaf.tensor), ()) for leaf in leaves)
    return node.module if held else None


def matrix(trace: Trace, node: Node, fixed: dict[int, Tensor] | None = None) -> Tensor | None:
    """The weight [outputs, inputs] (or [outputs, inputs, *kernel]) of a linear map.

    Of an embedding the table, with its features as the outputs.

    Args:
        trace: the record.
        node: the map.
        fixed: id of a parameter or constant -> what takes its place.
    """
    along = looked_up(node)
    if node.op == "embedding" or along is not None:
        table = next(fixed_in((node.args, node.kwargs)), None)
        if table is None:
            return None
        whole = (fixed or {}).get(id(table.tensor), table.tensor).detach()
        return whole if along == 1 else whole.T
    place = {"linear": 1, "addmm": 2, "matmul": 1, "mm": 1}.get(node.op, 1)
    name = "other" if node.op in ("matmul", "mm") else "mat2" if node.op == "addmm" else "weight"
    value = node.kwargs.get(name, node.args[place] if len(node.args) > place else None)
    weight = constant(trace, value, fixed)
    if weight is None or node.op not in ("addmm", "matmul", "mm"):
        return weight
    return weight.T if weight.ndim == 2 else None
