"""The layer in front of a site: the linear maps that make it, and what is done to their outputs."""

import dataclasses
import functools
from collections.abc import Callable
from typing import ClassVar

from torch import Tensor

from basis_probe.model.experts import Expert, bias_of, use_of
from basis_probe.model.facts import (
    Facts,
    Region,
    Shape,
    constant,
    constants_of,
    keeps_statistics,
    matrix,
)
from basis_probe.model.graph import Graph, Kind, Vertex
from basis_probe.model.places import Address, Site, catch
from basis_probe.model.trace import Node, Trace, fixed_in


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


def layer(facts: Facts, site: Site) -> Layer | str:
    """How a site is computed from an input one linear map away, or why that is not known."""
    graph, trace = facts.graph, facts.graph.trace
    vertex = facts.vertex(site)
    if vertex is None:
        return "the features of the site are not understood"
    expert = site.address if isinstance(site.address, Expert) else None
    way = _Way(facts, expert)
    trouble = way.walk(vertex.node)
    if trouble is not None:
        return trouble
    if len(way.pres) > 1:
        return "several nonlinearities lie between the site and its linear maps"
    if any(_width(graph, kept) != _width(graph, vertex.node) for kept in way.held):
        return "what is added to the linear map holds features of other sites too"
    sources = {_picked_once(facts, graph.vertices[index].used[0]) for index in way.linears}
    if len(sources) != 1:
        return "the linear maps in front of the site read different inputs"
    source = sources.pop()
    width = _width(graph, source)
    layout = graph.layouts.get(source)
    if width is None or layout is None or len(layout.axes) != 1:
        return "the features of the layer's input are not understood"
    found = way.weights()
    if isinstance(found, str):
        return found
    weights, biases, convolution = found
    if convolution is not None and layout.repeat != 1:
        return "a convolution reads flattened positions"
    address = _read_at(facts, trace.node(way.linears[0]), source, expert)
    if address is None:
        return "what the layer reads is a step inside one call, and cannot be caught"
    gain, bias, centred, normalised = _peel(facts, source)
    given, channels = way.given, convolution is not None
    return Layer(
        source=source,
        address=address,
        width=width // layout.repeat,
        repeat=layout.repeat,
        linears=tuple(way.linears),
        weights=weights,
        biases=biases,
        convolution=convolution,
        pre=_Replayed(graph, given, way.pres[0], channels) if way.pres else None,
        post=_Replayed(graph, given, vertex.node, channels),
        held=tuple(way.addresses),
        gain=gain,
        bias=bias,
        centred=centred,
        normalised=normalised,
    )


class _Way:
    """What lies between a site and the linear maps in front of it.

    Args:
        facts: what was seen of the model.
        expert: the expert whose neurons the site is, if it is one's.

    Attributes:
        linears: the linear maps, in the order of the run.
        pres: what nonlinearities read.
        held: what is added to what the maps write, and left as it is.
        addresses: where that is caught.
        entries: linear map -> where its rows are given in, where that is not its own output.
        own: linear map -> the bias that its expert adds.
    """

    def __init__(self, facts: Facts, expert: Expert | None) -> None:
        self._facts, self._expert = facts, expert
        self.linears: list[int] = []
        self.pres: list[int] = []
        self.held: list[int] = []
        self.addresses: list[Address] = []
        self.entries: dict[int, int] = {}
        self.own: dict[int, Tensor] = {}

    def walk(self, start: int) -> str | None:
        """Goes from a site to all linear maps; why that is not possible, if it is not."""
        vertices = self._facts.graph.vertices
        waiting, seen = [start], set[int]()
        while waiting:
            here = vertices[waiting.pop()]
            if here.node in seen:
                continue
            seen.add(here.node)
            if here.kind in (Kind.LINEAR, Kind.CONVOLUTION):
                self.linears.append(here.node)
                continue
            before = self._before(here)
            if before is None:
                return f"{here.kind.value} ({here.op}) lies between the site and a linear map"
            waiting.extend(before)
        self.linears.sort()
        return None

    def _before(self, here: Vertex) -> tuple[int, ...] | None:
        """Where the way goes on from a place; None if no linear map is in front of it."""
        passes = self._passes(here)
        if _splits_positions(self._facts, here):
            # Rows are given to what is above a reshape of positions, which would not fit them.
            below = here.carried[0]
            self.entries[below] = self.entries.get(here.node, here.node)
            vertex = self._facts.graph.vertices[below]
            passes = vertex.kind is Kind.LINEAR or _splits_positions(self._facts, vertex)
        if here.kind is Kind.SUM:
            if self._adds_own_bias(here):
                return ()
            turned = self._beside_held(here)
            if turned is not None:
                return (turned,)
        return tuple(here.carried) if passes else None

    def _passes(self, here: Vertex) -> bool:
        """True if features are made of those before, row by row, one by one or by a norm."""
        if here.kind is Kind.REGION:
            shape = self._facts.regions[here.node].shape
            if shape in (Shape.ELEMENTWISE, Shape.COUPLED):
                self.pres.extend(here.carried)
            if shape in (Shape.RMS_NORM, Shape.LAYER_NORM):
                # Below a nonlinearity it is of the function that makes neurons of what maps write.
                return bool(self.pres)
            return shape is not Shape.UNKNOWN
        return (
            here.kind is Kind.PART
            or _parts_features(self._facts, here)
            or _is_rowwise_norm(self._facts, here)
            or _is_bias(self._facts.graph, here)
        )

    def _adds_own_bias(self, here: Vertex) -> bool:
        """True where every row gets the bias of its expert: it belongs to the linear map."""
        if self._expert is None:
            return False
        found = _with_bias(self._facts, here, self._expert)
        if found is None:
            return False
        linear, bias = found
        self.linears.append(linear)
        self.own[linear] = bias
        self.entries[linear] = here.node
        return True

    def _beside_held(self, here: Vertex) -> int | None:
        """The branch with the linear maps of a residual connection below a nonlinearity.

        What the other branch carries is held as it is.
        """
        if not self.pres or self.held or len(here.carried) != 2:
            return None
        branches = [_linears_below(self._facts, index) for index in here.carried]
        turned = max((0, 1), key=lambda place: max(branches[place], default=-1))
        if not branches[turned]:
            return None
        kept = here.carried[1 - turned]
        address = _summand(self._facts, here.node, kept)
        if address is None:
            return None
        self.held.append(kept)
        self.addresses.append(address)
        return here.carried[turned]

    def weights(
        self,
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...], Convolution | None] | str:
        """Weights and biases of all maps, and the windows that they read, or why not."""
        trace = self._facts.graph.trace
        weights: list[Tensor] = []
        biases: list[Tensor | None] = []
        convolution: Convolution | None = None
        for index in self.linears:
            node = trace.node(index)
            found = (
                _weight(trace, node)
                if self._expert is None
                else _weight_of(trace, node, self._expert, self.own.get(index))
            )
            if isinstance(found, str):
                return found
            weight, bias, windows = found
            if windows != convolution and index != self.linears[0]:
                return "the convolutions in front of the site read different windows"
            convolution = windows
            weights.append(weight)
            biases.append(bias)
        return tuple(weights), tuple(biases), convolution

    @property
    def given(self) -> tuple[int, ...]:
        """The places whose rows are given to compute the site: of every map, then what is held."""
        return (*(self.entries.get(index, index) for index in self.linears), *self.held)


def _read_at(facts: Facts, first: Node, source: int, expert: Expert | None) -> Address | None:
    """Where what a linear map reads can be caught."""
    graph, trace = facts.graph, facts.graph.trace
    if expert is not None:
        use = use_of(trace, first)
        return None if use is None else expert.at(use.name)
    argument = next(
        i
        for i in first.inputs
        if (read := graph.same.get(i)) is not None and _picked_once(facts, read) == source
    )
    return catch(trace, first, argument)


@dataclasses.dataclass(frozen=True, eq=False)
class _Replayed:
    """A place as a function of rows of the places that are given.

    Attributes:
        graph: what was seen of the model.
        given: the places whose rows the function takes, in this order.
        target: the place.
        channels: True if features are on the axis behind that of rows.
        fixed: id of a parameter or constant -> what takes its place.
    """

    leaves_as_given: ClassVar[bool] = True
    """What the model changes in place is copied before, so that no rows that are given change."""

    graph: Graph
    given: tuple[int, ...]
    target: int
    channels: bool
    fixed: dict[int, Tensor] = dataclasses.field(default_factory=dict[int, Tensor])

    def __call__(self, outputs: tuple[Tensor, ...]) -> Tensor:
        values: dict[int, Tensor] = {}
        for index, out in zip(self.given, outputs, strict=True):
            ones = [1] * (len(self.graph.trace.node(index).shape) - 2)
            shape = (*out.shape, *ones) if self.channels else (len(out), *ones, out.shape[1])
            values[index] = out.reshape(shape)
        out = self.graph.replay(self.target, values, self.fixed)
        count = outputs[0].shape[0]
        return out.reshape(count, out.numel() // count if count else out.shape[-1])

    @functools.cached_property
    def reads(self) -> frozenset[int]:
        """Which of the places that are given it is made of, by their position among them."""
        needed, left = {self.target}, [self.target]
        while left:
            index = left.pop()
            if index in self.given:
                continue
            fresh = set(self.graph.trace.node(index).inputs) - needed
            needed |= fresh
            left.extend(fresh)
        return frozenset(at for at, index in enumerate(self.given) if index in needed)

    def along(self, axes: Tensor, width: int) -> "_Replayed":
        """The same for some of the axes, as far as numbers for every axis stand in vectors.

        Args:
            axes: which.
            width: how many there are.
        """
        trace = self.graph.trace
        fixed: dict[int, Tensor] = {}
        seen, left = set(self.given), [self.target]
        while left:
            index = left.pop()
            if index in seen:
                continue
            seen.add(index)
            node = trace.node(index)
            left.extend(node.inputs)
            for value in fixed_in((node.args, node.kwargs)):
                tensor = value.tensor.detach()
                if list(tensor.shape).count(width) == 1:
                    place = list(tensor.shape).index(width)
                    fixed[id(value.tensor)] = tensor.index_select(place, axes.to(tensor.device))
        return dataclasses.replace(self, fixed=fixed)


_PARTS = ("chunk", "split", "tensor_split")


def _parts_features(facts: Facts, vertex: Vertex) -> bool:
    """True for a call that parts the last axis, of features, into several tensors."""
    if vertex.kind is not Kind.CARRIER or vertex.op not in _PARTS:
        return False
    layouts, trace = facts.graph.layouts, facts.graph.trace
    before, after = (trace.node(index).shape for index in (vertex.carried[0], vertex.node))
    return (
        layouts[vertex.carried[0]].axes == (len(before) - 1,)
        and before[:-1] == after[:-1]
        and before[-1] > after[-1]
    )


def _is_bias(graph: Graph, vertex: Vertex) -> bool:
    """True where one vector is added to what a linear map wrote."""
    if vertex.kind is not Kind.SUM or len(vertex.carried) != 1:
        return False
    trace, node = graph.trace, graph.trace.node(vertex.node)
    added = [constant(trace, value) for value in constants_of(trace, node)]
    return graph.vertices[vertex.carried[0]].kind is Kind.LINEAR and all(
        value is not None and value.numel() == node.shape[-1] for value in added
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


def _is_rowwise_norm(facts: Facts, vertex: Vertex) -> bool:
    """True for batch normalisation by running statistics, which does the same to every row."""
    return vertex.kind is Kind.BATCH_NORM and keeps_statistics(facts.graph.trace.node(vertex.node))


def _linears_below(facts: Facts, index: int) -> list[int]:
    """The linear maps that write a tensor with nothing but single-feature functions in between."""
    graph, found = facts.graph, list[int]()
    waiting = [index]
    while waiting:
        here = graph.vertices[waiting.pop()]
        if here.kind in (Kind.LINEAR, Kind.CONVOLUTION):
            found.append(here.node)
        elif _is_rowwise_norm(facts, here):
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
                address = catch(trace, node, argument)
                return None if address is None else (address, region.function)
            waiting.append(argument)
    return None


def unlike_mixtures(facts: Facts, site: Site) -> str:
    """Why no mixture of all channels is like one of those that a nonlinearity bends; or empty.

    Where a convolution made each of few channels, or the largest of several positions was taken,
    mixtures differ from them before any training.
    """
    vertices, vertex, bent = facts.graph.vertices, facts.vertex(site), False
    while vertex is not None:
        if vertex.kind in _NO_MIXTURES:
            return _NO_MIXTURES[vertex.kind] if bent else ""
        region = facts.regions.get(vertex.node)
        bent |= region is not None and region.shape in (Shape.ELEMENTWISE, Shape.COUPLED)
        passed = vertex.kind in (Kind.BATCH_NORM, Kind.CARRIER) or _is_of_single_features(region)
        single = passed and len(vertex.carried) == 1
        vertex = vertices.get(vertex.carried[0]) if single else None
    return ""


_NO_MIXTURES = {
    Kind.DEPTHWISE: "a convolution makes every channel of one channel",
    Kind.GROUPED: "a convolution makes every channel of one group of channels",
    Kind.MAX_POOL: "max pooling takes the largest of several positions of every channel",
}


def _is_of_single_features(region: Region | None) -> bool:
    return region is not None and region.shape in (
        Shape.ELEMENTWISE,
        Shape.SCALE,
        Shape.SHIFT,
        Shape.DIAGONAL,
    )


_KEPT_APART = frozenset(
    {Kind.CARRIER, Kind.PART, Kind.CONCAT, Kind.REORDERED, Kind.PADDED, Kind.SUM, Kind.BATCH_NORM}
)
"""What every feature passes by itself: what bent it before bends it still."""
_BENDING = frozenset({Shape.ELEMENTWISE, Shape.COUPLED, Shape.PRODUCT, Shape.PAIRED})


def bent_by(facts: Facts, site: Site) -> str:
    """The function that bends the features of a site one by one, or multiplies them.

    It need not lie just before the site: views, sums and norms between leave every axis what that
    function made of it. Empty where linear maps, attention or the model's input write the site.
    """
    vertex = facts.vertex(site)
    waiting, seen = [] if vertex is None else [vertex.node], set[int]()
    while waiting:
        here = facts.graph.vertices[waiting.pop()]
        if here.node in seen:
            continue
        seen.add(here.node)
        region = facts.regions.get(here.node)
        if here.kind is Kind.REGION and region is not None:
            if region.shape in _BENDING:
                return region.op
            if region.shape is not Shape.UNKNOWN:
                waiting.extend(here.carried)
        elif here.kind in _KEPT_APART:
            waiting.extend(here.carried)
    return ""


def _width(graph: Graph, vertex: int) -> int | None:
    layout = graph.layouts.get(vertex)
    return None if layout is None else graph.trace.node(vertex).shape[layout.axes[-1]]


def _weight(trace: Trace, node: Node) -> tuple[Tensor, Tensor | None, Convolution | None] | str:
    """The weight [outputs, inputs] (or [outputs, inputs, *kernel]) and bias of a linear map."""

    def given(name: str, place: int, default: object) -> object:
        return node.kwargs.get(name, node.args[place] if len(node.args) > place else default)

    weight, bias = matrix(trace, node), None
    if node.op == "linear":
        bias = constant(trace, given("bias", 2, None))
    elif node.op == "addmm":
        bias = constant(trace, node.args[0])
        if node.kwargs.get("alpha", 1) != 1 or node.kwargs.get("beta", 1) != 1:
            return "addmm scales its terms"
    elif node.op.startswith("conv") and "transpose" not in node.op:
        bias = constant(trace, given("bias", 2, None))
        if weight is None:
            return "the weight of the convolution is computed as the model runs"
        rank = weight.ndim - 2
        if given("groups", 6, 1) != 1:
            return "the convolution works in groups of channels"
        if len(node.shape) < weight.ndim:
            return "the convolution reads a single example without an axis of examples"

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


def _weight_of(
    trace: Trace, node: Node, expert: Expert, bias: Tensor | None
) -> tuple[Tensor, Tensor | None, None] | str:
    """The weight and bias of one expert, of a call that reads those of one or of all of them."""
    use = use_of(trace, node)
    if use is None or use.count != expert.count:
        return f"the weight of {node.op} is none of a stack of experts"
    given = node.kwargs.get("bias", node.args[2] if node.op == "linear" and node.args[2:] else None)
    if given is not None:
        found = bias_of(trace, given)
        if found is None or found[0] != expert.count:
            return f"the bias of {node.op} is none of a stack of experts"
        bias = found[1](expert.index)
    return use.matrix(expert.index), bias, None


def _picked_once(facts: Facts, source: int) -> int:
    """The first vertex of the same rows, picked out of one tensor by the same numbers."""
    trace, vertex = facts.graph.trace, facts.graph.vertices[source]
    node = trace.node(source)
    if vertex.kind is not Kind.CARRIER or node.op not in ("getitem", "index_select"):
        return source
    return next(
        index
        for index, other in facts.graph.vertices.items()
        if (other.kind, other.carried) == (vertex.kind, vertex.carried)
        and (trace.node(index).op, trace.node(index).args) == (node.op, node.args)
        and trace.node(index).kwargs == node.kwargs
    )


def _with_bias(facts: Facts, total: Vertex, expert: Expert) -> tuple[int, Tensor] | None:
    """The linear map in a sum, and the expert's own bias that is added to it."""
    trace = facts.graph.trace
    maps = [one for one in total.carried if facts.graph.vertices[one].kind is Kind.LINEAR]
    added = [bias_of(trace, value) for value in trace.node(total.node).args]
    own = [found for found in added if found is not None and found[0] == expert.count]
    if len(maps) != 1 or len(own) != 1 or len(trace.node(total.node).inputs) != 2:
        return None
    return maps[0], own[0][1](expert.index)


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
