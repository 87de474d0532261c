"""What a change of basis at one site does to all the weights, so that the function stays the same.

A change of basis of a stream is put into every linear map that writes to it and taken out of every
one that reads it. What is not a linear map has to let it pass: gains of norms are folded into the
maps behind them, batch statistics and depthwise kernels are permuted and rescaled, and a family of
streams that nonlinearities and products join moves as one.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from basis_probe.algebra.elements import (
    BlockElement,
    Dense,
    Element,
    Identity,
    Local,
    MonomialElement,
    Product,
    Sheared,
    SumElement,
)
from basis_probe.algebra.groups import monomial_parts
from basis_probe.architecture.claims import NOTHING
from basis_probe.architecture.commuting import is_plain
from basis_probe.architecture.composites import Composite
from basis_probe.architecture.derive import Derivation
from basis_probe.architecture.experts import Experts
from basis_probe.architecture.free_weights import following, learned_behind
from basis_probe.architecture.heads import Gated
from basis_probe.architecture.routers import Router, experts_of, require_alike
from basis_probe.model.attention import Attention, Side
from basis_probe.model.facts import (
    Facts,
    Region,
    Shape,
    bias_of,
    constants_of,
    evaluate,
    given_to,
    keeps_statistics,
    numbers_in,
    vectors_of,
)
from basis_probe.model.graph import Kind, Vertex, looked_up, norm_argument, replay
from basis_probe.model.longer import is_of_positions
from basis_probe.model.places import Site
from basis_probe.model.rows import GROUPED_PRODUCTS
from basis_probe.model.trace import Fixed, Node, Ref, fixed_in
from basis_probe.model.weights import (
    ContradictionError,
    MisfitError,
    Slot,
    Slots,
    WeightError,
    Weights,
    spoken_at,
)


@dataclasses.dataclass(frozen=True, eq=False)
class _Map:
    """The weights of one linear map: its matrix with outputs and inputs along two axes."""

    weight: Slot
    outputs: int
    inputs: int
    bias: object = None


class Action:
    """The action of changes of basis on the weights of a copy of a model.

    Args:
        derivation: what was derived of the model.
        slots: where its weights lie.
        weights: the weights that change.

    Attributes:
        rows: embedding -> the rows of its table that are in use; the others need not change.
    """

    def __init__(self, derivation: Derivation, slots: Slots, weights: Weights) -> None:
        self.derivation = derivation
        self.facts: Facts = derivation.facts
        self.graph = self.facts.graph
        self.slots = slots
        self.weights = weights
        self.rows: dict[int, Tensor] = {}
        self._done: set[tuple[object, ...]] = set()
        self._before: dict[tuple[object, ...], Tensor] = {}
        self._behind: dict[int, Element] = {}
        self._affines: dict[int, _Affine] = {}
        self._experts: Experts | None = None
        self._strict = False

    def move(self, site: Site, element: Element) -> dict[int, Element]:
        """Changes the weights so that the activations at a site become `element` times themselves.

        Everything behind the site stays the same.

        Args:
            site: the site.
            element: of the site's group, acting on its features.

        Returns:
            Stream -> the element that acted on it.

        Raises:
            WeightError: if a weight that must change is no parameter.
        """
        self._strict = True
        return self._start(site, element, self._move)

    def strain(self, site: Site, make: Callable[[int], Element | None]) -> dict[int, Element]:
        """Changes the weights around a site as `move` does, by a stranger to its group.

        Only linear maps change, as if what lies between them let the stranger pass.

        Args:
            site: the site.
            make: size -> the stranger on a stream of that size; None where it has no form.

        Returns:
            Stream -> the stranger that acted on it; empty if it has no form that fits, as where
            the axes of an input, such as moments of a sound, are none of the weights that read it.
        """
        vertex = self.facts.vertex(site)
        assert vertex is not None
        element = make(self._size(vertex.node))
        if element is None:
            return {}

        # What a stranger asks of a vector need not be what its parameters give.
        self._strict = False

        def strange(index: int, _: Element) -> dict[int, Element]:
            return self._strange(index, make)

        try:
            return self._start(site, element, strange)
        except MisfitError:
            stream = self.facts.streams[self.facts.stream_of[vertex.node]]
            if self.derivation.is_input(stream):
                return {}
            raise

    def _start(
        self, site: Site, element: Element, move: Callable[[int, Element], dict[int, Element]]
    ) -> dict[int, Element]:
        """Moves the stream of a site, and those that change with it as they share a matrix."""
        vertex = self.facts.vertex(site)
        assert vertex is not None
        self._done.clear()
        self._before.clear()
        self._behind.clear()
        waiting = [(self.facts.stream_of[vertex.node], element)]
        found: dict[int, Element] = {}
        while waiting:
            here, what = waiting.pop()
            if here in found:
                continue
            moved = move(here, what)
            # Also where less could be done than was asked: whoever looks will see the difference.
            found |= {**moved, here: what}
            for stream, own in moved.items():
                if stream != here and self.derivation.parts_of(stream):
                    continue  # It moved as its parts did, and so does what they are tied to.
                for tie in self.derivation.ties.get(stream, ()):
                    if tie.stream not in found and tie.stream not in self._behind:
                        after = own.inverse().transpose() if tie.transposed else own
                        waiting.append((tie.stream, after))
        return {**found, **self._behind}

    def _move(self, index: int, element: Element) -> dict[int, Element]:
        """Moves one stream with what belongs to it; says which streams moved, and by what."""
        derivation, stream = self.derivation, self.facts.streams[index]
        if isinstance(element, Identity):
            return {index: element}
        if any(derivation.sets_side_by_side(writer) for writer in stream.writers):
            return self._side_by_side(index, element)
        router = derivation.router(index)
        if router is not None:
            return self._exchange(index, router, element)
        bent = derivation.heads.bend_of(index)
        if bent is not None:
            return self._alike(derivation.heads.bent[bent][0], element)
        if index in derivation.heads.meetings:
            assert isinstance(element, BlockElement)
            return self._queries(index, element)
        normed = [reader for reader in stream.readers if reader in derivation.heads.normed]
        if normed:
            return self._before_norm(index, normed[0], element)
        values = derivation.heads.bent_values(index)
        if values is not None:
            return self._bent_values(values, element)
        gated = derivation.heads.gated_values(index)
        if gated is not None:
            return self._gated_values(gated, element)
        if derivation.permuting(index):
            return self._family(index, element)
        if derivation.parts_of(index):
            return self._in_one_order(index, element)
        joined = derivation.commuting.joined(index)
        if joined == "norm":
            return self._turned(index, element)
        if joined == "affine":
            return self._folded(index, element)
        composite = derivation.composites.of(index)
        if composite is not None:
            return self._part_by_part(index, composite, element)
        if derivation.is_norm_output(index):
            return self._norm_output(index, element)
        if stream.value_mixed:
            assert isinstance(element, BlockElement)
            return self._values(index, element)
        self._linear(index, element)
        return {index: element}

    def _side_by_side(self, index: int, element: Element) -> dict[int, Element]:
        """Each of the parts that stand side by side, by its own part of the element."""
        (writer,) = self.facts.streams[index].writers
        sources = self.graph.vertices[writer].carried
        parts = element.parts if isinstance(element, SumElement) else ()
        if tuple(part.dim for part in parts) != tuple(self._size(source) for source in sources):
            raise WeightError("the element does not act on each of the parts by itself")
        moved: dict[int, Element] = {}
        for source, part in zip(sources, parts, strict=True):
            moved |= self._move(self.facts.stream_of[source], part)
        return {**moved, index: element}

    def _part_by_part(
        self, index: int, composite: Composite, element: Element
    ) -> dict[int, Element]:
        """Each part of what maps write by its own part of the element."""
        moved: dict[int, Element] = {}
        for stream, part in zip(composite.streams, _own_parts(composite, element), strict=True):
            moved |= self._move(stream, part)
        return {**moved, index: element}

    def _exchange(self, index: int, router: Router, element: Element) -> dict[int, Element]:
        """Experts change places, with what the router says of them."""
        columns, _ = monomial(element)
        require_alike(self.weights.model, router)
        for writer in self.facts.streams[index].writers:
            self._write(writer, element)
        done = {key[0] for key in self._done}
        held = {name for several in self.slots.names.values() for name in several}
        names = [name for name in sorted(held) if name.startswith(router.owner)]
        modules = experts_of(names, router.owner, router.count)
        apart = done.union(*(members.values() for members in modules.values()))
        shapes = {name: tuple(self.weights.shape(name)) for name in names if name not in apart}
        stacks = {name for name, s in shapes.items() if len(s) > 2 and s[0] == router.count}
        beside = {name.rpartition(".")[0] for name in stacks}
        for name, shape in shapes.items():
            whose = name in stacks or name.rpartition(".")[0] in beside or len(shape) == 1
            if whose and shape[:1] == (router.count,):
                self.weights.act(Slot(name), 0, element, None)
            elif len(shape) > 1 and math.prod(shape) == shape[-1] == router.count:
                # One number for every expert, in a row.
                self.weights.act(Slot(name), len(shape) - 1, element, None)
        for members in modules.values():
            values = {place: self.weights.get(Slot(name)) for place, name in members.items()}
            for place, name in members.items():
                self.weights.set(Slot(name), values[int(columns[place])])
        return {index: element}

    def _turned(self, index: int, element: Element) -> dict[int, Element]:
        """All streams that norms without a gain join, by one turn."""
        commuting = self.derivation.commuting
        regions = [self.facts.regions[norm] for norm in commuting.maps(index)]
        layered = any(r.shape is Shape.LAYER_NORM and not r.pooled for r in regions)
        turn = _across(element) if layered else element
        moved = {m: element if m == index else turn for m in commuting.streams(index)}
        for member, own in moved.items():
            self._linear(member, own)
        return moved

    def _folded(self, index: int, element: Element) -> dict[int, Element]:
        """All streams that batch normalisation joins: its gains go into the linear maps.

        With y = s x + t, a change x' = M x is followed by y' = M D_s^-1 y if the gain becomes one
        and the shift M D_s^-1 t.
        """
        commuting = self.derivation.commuting
        moved: dict[int, Element] = {index: element}
        waiting = [index]
        while waiting:
            here = waiting.pop()
            for vertex in commuting.maps(index):
                source, target = commuting.ends(vertex)
                gain, _ = self._affine(vertex)
                if bool((gain == 0).any()):
                    raise WeightError("a gain is zero, so that its shift cannot be moved")
                axes = torch.arange(len(gain))
                if source == here and target not in moved:
                    moved[target] = Product((moved[here], MonomialElement(axes, 1.0 / gain)))
                    waiting.append(target)
                elif target == here and source not in moved:
                    moved[source] = Product((moved[here], MonomialElement(axes, gain)))
                    waiting.append(source)
        for vertex in commuting.maps(index):
            gain, shift = self._affine(vertex)
            target = commuting.ends(vertex)[1]
            self._set_affine(vertex, torch.ones_like(gain), moved[target].act(shift))
        for member, own in moved.items():
            self._linear(member, own)
        return moved

    # --- linear maps ------------------------------------------------------------------------------

    def _linear(
        self, index: int, element: Element, make: Callable[[int], Element | None] | None = None
    ) -> None:
        """Into whatever writes to a stream, and out of whatever reads it."""
        stream = self.facts.streams[index]
        # What no training changes stays as it is, which is what a stranger shows.
        still = set[int]() if make is None else set(self.facts.given)
        for writer in stream.writers:
            if not self._joins(writer) and writer not in still:
                self._write(writer, self._at(writer, element))
        added = stream.members if make is None else stream.members - still
        self._add(added, element)
        for reader in stream.readers:
            if reader in self.derivation.heads.inside or self._joins(reader):
                continue
            at = element
            if make is not None:
                # A stranger has a form of its own for every number of copies.
                vertex = self.graph.vertices[reader]
                joined = vertex.kind in (Kind.CONCAT, Kind.PADDED)
                for source in () if joined else (*vertex.used, *vertex.carried)[:1]:
                    if source in self.graph.layouts and self._size(source) != element.dim:
                        at = make(self._size(source)) or element
            self._read(reader, at, index, strange=make is not None)

    def _joins(self, vertex: int) -> bool:
        """True for a map that lets a change of one stream pass to the next."""
        commuting = self.derivation.commuting
        return (
            commuting.kind(vertex) is not None
            and commuting.joined(self.facts.stream_of[vertex]) is not None
        )

    def _at(self, vertex: int, element: Element) -> Element:
        """The element with as many copies of each head as there are at a vertex."""
        size = self._size(vertex)
        if size == element.dim or not isinstance(element, BlockElement):
            return element
        whole = element.dim // element.copies
        return element.copied(size // whole)

    def _size(self, vertex: int) -> int:
        layout, shape = self.graph.layouts[vertex], self.graph.trace.node(vertex).shape
        return torch.Size(shape[axis] for axis in layout.axes).numel()

    def _write(self, writer: int, element: Element, rows: Tensor | None = None) -> None:
        """The outputs of what writes at a vertex, or some of them, become element times them."""
        vertex = self.graph.vertices[writer]
        if vertex.kind is Kind.PART:
            assert vertex.part is not None
            part = torch.tensor(vertex.part)
            part = part if rows is None else part[rows]
            number = self.facts.stream_of[vertex.carried[0]]
            key = ("part", number, tuple(part.tolist()))
            if key in self._done:
                return
            self._done.add(key)
            source = self.facts.streams[number]
            for before in source.writers:
                self._write(before, element, part)
            self._add(source.members, element, part)
        elif vertex.kind is Kind.EMBEDDING and writer in self.rows and rows is None:
            slot = self._map(vertex).weight
            if (slot.name, 1, -1, None) not in self._done:
                self._done.add((slot.name, 1, -1, None))
                used = self.rows[writer]
                given = self.weights.rows(slot, used)
                self.weights.set_some(slot, 0, used, element.act(given))
        elif vertex.kind in (Kind.LINEAR, Kind.CONVOLUTION, Kind.GROUPED, Kind.EMBEDDING):
            found = self._map(vertex)
            self._edit(found.weight, found.outputs, element, rows)
            self._write_bias(self.graph.trace.node(writer), found.bias, element, rows)
        elif self.derivation.is_folded_gain(writer) and rows is None:
            # out = g * (W x + b) becomes 1 * (E D_g W x + E D_g b).
            source = self.facts.streams[self.facts.stream_of[vertex.carried[0]]]
            gain, bias = self._gain_now(writer)
            axes = torch.arange(len(gain))
            folded = Product((element, MonomialElement(axes, gain)))
            if bool(bias.any()):
                self._set_affine(writer, torch.ones_like(gain), element.act(bias))
            else:
                # The gain may stay as it is, however it is computed.
                folded = Product((MonomialElement(axes, 1.0 / gain), *folded.factors))
            for before in source.writers:
                self._write(before, folded)
            self._add(source.members, folded)

    def _write_bias(self, node: Node, value: object, element: Element, rows: Tensor | None) -> None:
        """The bias of a linear map becomes element times what it was."""
        try:
            bias = self._bias(node, value)
        except WeightError:
            if rows is None and self._made_of(value, -1, element):
                return
            raise
        if bias is not None:
            self._edit(bias, 0, element, rows)

    def _read(self, reader: int, element: Element, index: int, *, strange: bool = False) -> None:
        """The function of a stream stays the same after the stream has become element times it."""
        vertex = self.graph.vertices[reader]
        if vertex.kind in (Kind.LINEAR, Kind.CONVOLUTION):
            found = self._map(vertex)
            at = self._at(vertex.used[0], element)
            self._edit(found.weight, found.inputs, at.inverse().transpose(), None)
            return
        if vertex.kind is Kind.GROUPED:
            self._read_groups(vertex, element)
            return
        if self.derivation.sets_side_by_side(reader):
            self._read_parts(vertex, element, index)
            return
        region = self.facts.regions.get(reader, NOTHING)
        if self.derivation.heads.is_gainless(reader):
            # Inside heads there is no gain that could change.
            return
        if region.shape.is_norm and not self.derivation.is_link(reader):
            # What lies along the all-ones direction does not come through a LayerNorm.
            element = self._at(reader, element)
            blind = region.shape is Shape.LAYER_NORM and not region.pooled and not strange
            self._through_norm(reader, _across(element) if blind else element)
        elif self.derivation.commuting.kind(reader) == "affine" and (
            not self.derivation.is_link(reader)
        ):
            self._through_norm(reader, element)

    def _read_groups(self, vertex: Vertex, element: Element) -> None:
        """A convolution in groups reads channels that changed inside the groups."""
        slot = self._map(vertex).weight
        if (slot.name, "groups") in self._done:
            return
        self._done.add((slot.name, "groups"))
        values = self.weights.get(slot)
        size, groups = values.shape[1], element.dim // values.shape[1]
        taken = element.inverse().transpose().matrix()
        blocks = taken.unflatten(0, (groups, size)).unflatten(-1, (groups, size))
        inside = blocks[torch.arange(groups), :, torch.arange(groups)].to(values.device)
        each = values.unflatten(0, (groups, -1)).flatten(3)
        mixed = torch.einsum("gab,gobk->goak", inside, each)
        self.weights.set(slot, mixed.reshape(values.shape))

    def _read_parts(self, concat: Vertex, element: Element, index: int) -> None:
        """The maps behind a concatenation read a part of it, wherever that is, as before."""
        taken = element.inverse().transpose()
        start = 0
        for source in concat.carried:
            width = self._size(source)
            if self.facts.stream_of[source] == index:
                rows = torch.arange(start, start + width)
                for reader in self.facts.streams[self.facts.stream_of[concat.node]].readers:
                    found = self._map(self.graph.vertices[reader])
                    self._edit(found.weight, found.inputs, self._at(source, taken), rows)
            start += width

    def _edit(self, slot: Slot, axis: int, element: Element, rows: Tensor | None) -> None:
        # A matrix that is read where its transpose was written has changed already.
        place = self._axis(slot, axis)
        whole = (
            slot.entries is None or slot.entries.numel() == self.weights.shape(slot.name).numel()
        )
        start = -1 if slot.entries is None or whole else int(slot.entries.min())
        key = (slot.name, place, start, None if rows is None else tuple(rows.tolist()))
        if key in self._done:
            return
        self._done.add(key)
        for idle in self._idle(slot):
            self._edit(idle, axis, element, rows)
        self.weights.act(slot, axis, element, rows)

    def _idle(self, slot: Slot) -> list[Slot]:
        """The same weights of experts that no row of the example reached."""
        return self._expert().idle(slot)

    def _expert(self) -> Experts:
        if self._experts is None:
            self._experts = Experts(self.facts.graph.trace, self.slots)
        return self._experts

    def _axis(self, slot: Slot, axis: int) -> int:
        """Which axis of a parameter an axis of what was taken from it is; -1 if it is none."""
        shape = self.weights.shape(slot.name)
        if slot.entries is None:
            return axis % len(shape)
        others = slot.entries.ndim - 1
        step = slot.entries.movedim(axis, -1)[(0,) * others]
        stride = int(step[1] - step[0]) if len(step) > 1 else 0
        if not torch.equal(step, step[0] + stride * torch.arange(len(step), device=step.device)):
            return -1
        strides = torch.empty(shape, device="meta").stride()
        found = [a for a, s in enumerate(strides) if s == stride and shape[a] == len(step)]
        return found[0] if len(found) == 1 else -1

    def _map(self, vertex: Vertex) -> _Map:
        node = self.graph.trace.node(vertex.node)
        op = node.op

        def argument(place: int, name: str) -> object:
            return node.kwargs.get(name, node.args[place] if len(node.args) > place else None)

        if vertex.kind is Kind.EMBEDDING:
            table = next(fixed_in((node.args, node.kwargs)), None)
            along = looked_up(node) or 0
            return _Map(self.slots.slot(node, table), 1 - along, along)
        bias = bias_of(node)
        if op == "addmm":
            weight, outputs, inputs = argument(2, "mat2"), 1, 0
        elif op in GROUPED_PRODUCTS:
            # [group, inputs, outputs]: what one group takes, all of them take.
            weight, outputs, inputs = argument(1, "weight"), 2, 1
        elif op in ("matmul", "mm", "bmm"):
            weight = argument(1, "other" if op == "matmul" else "mat2")
            outputs, inputs = -1, -2
            if self._is_turned(vertex):
                weight, outputs, inputs = argument(0, "input"), -2, -1
        else:
            weight = argument(1, "weight")
            outputs, inputs = (1, 0) if "transpose" in op else (0, 1)
        turned = self.slots.turned(node, weight)
        if turned is None:
            slot = self.slots.slot(node, weight)
        else:
            slot, (outputs, inputs) = Slot(turned[0]), (turned[1][i] for i in (outputs, inputs))
        given = self.weights.shape(slot.name) if slot.entries is None else slot.entries.shape
        stacks = op in GROUPED_PRODUCTS or op in ("matmul", "bmm")
        if len(given) == 1 and op == "matmul" and inputs == -2:
            # A product with one vector, which is a number for every row: it has no other axis.
            return _Map(slot, 0, 0, bias)
        if len(given) < 2 or (vertex.kind is Kind.LINEAR and len(given) > 2 + stacks):
            raise WeightError(f"the weight of {spoken_at(node)} is no matrix")
        if stacks and len(given) == 3 and slot.entries is not None:
            # What one matrix of a stack takes, all of them take, those that are idle as well.
            outputs, inputs = self._axis(slot, outputs), self._axis(slot, inputs)
            if min(outputs, inputs) < 0:
                raise WeightError(f"the weight of {spoken_at(node)} is no stack of matrices")
            slot = dataclasses.replace(slot, entries=None)
        return _Map(slot, outputs, inputs, bias)

    def _is_turned(self, vertex: Vertex) -> bool:
        """True if the matrix of a linear map stands before what it reads."""
        node = self.graph.trace.node(vertex.node)
        value = node.args[1] if len(node.args) > 1 else None
        return isinstance(value, Ref) and self.graph.same.get(value.node) == vertex.used[0]

    def matrix_of(self, vertex: Vertex) -> tuple[Slot, int, int]:
        """Where the matrix of a linear map lies, and which of its axes are outputs and inputs.

        Raises:
            WeightError: if it is no parameter.
        """
        found = self._map(vertex)
        return found.weight, found.outputs, found.inputs

    def bias_of(self, vertex: Vertex) -> Slot | None:
        """Where the bias of a linear map lies; None if it has none.

        Raises:
            WeightError: if it is no parameter.
        """
        return self._bias(self.graph.trace.node(vertex.node), self._map(vertex).bias)

    def shifts_of(self, vertex: int) -> list[Slot]:
        """Where the numbers lie that a norm, or a gain for every feature, adds.

        Raises:
            WeightError: if they are no parameters.
        """
        return [vector.slot for vector in self._parts(vertex).vectors if vector.bias != 0]

    def gain_at(self, vertex: int) -> Tensor:
        """What a norm multiplies features by, as its weights are now.

        Raises:
            WeightError: if how it uses its parameters is not understood.
        """
        self._before.clear()
        return self._affine(vertex)[0]

    def growth_of(self, vertex: int) -> list[tuple[Slot, Tensor]]:
        """Where a norm's gain and shift lie, and how they change as its output grows.

        Raises:
            WeightError: if they are no parameters, or if how it uses them is not understood.
        """
        region = self.facts.regions.get(vertex, NOTHING)
        if region.function is None or not (region.shape.is_norm or region.shape is Shape.DIAGONAL):
            raise WeightError(f"{region.op} is no norm and no gain")
        self._before.clear()
        gain, bias = self._affine(vertex)
        found: list[tuple[Slot, Tensor]] = []
        for vector in self._parts(vertex).vectors:
            of, slope = (gain, vector.gain) if vector.gain else (bias, vector.bias)
            if not slope:
                continue
            own = self.weights.get(vector.slot).double().flatten().cpu()
            # What was measured is rounded, where norms compute in float32; a constant is not.
            constant = of.double().cpu() - slope * own if len(own) == len(of) else of.new_ones(2)
            near = constant.mean().round()
            alike = bool(((constant - near).abs() < 1e-3).all())
            found.append((vector.slot, own + near / slope if alike else of.double().cpu() / slope))
        return found

    def gains_of(self, vertex: int) -> list[Slot]:
        """Where a gain for every feature lies, and what is added behind it; none if there is none.

        Raises:
            WeightError: if they are no parameters.
        """
        found, node = self.graph.vertices[vertex], self.graph.trace.node(vertex)
        region = self.facts.regions.get(vertex, NOTHING)
        if found.kind in (Kind.BATCH_NORM, Kind.GROUP_NORM):
            given = (self._argument(node, name) for name in ("weight", "bias"))
            return [slot for slot in given if slot is not None]
        if region.function is None or not (region.shape.is_norm or region.shape is Shape.DIAGONAL):
            return []
        return [vector.slot for vector in self._parts(vertex).vectors]

    def _bias(self, node: Node, value: object) -> Slot | None:
        """Where the bias of a linear map lies; None if it has none, or one that is always zero."""
        if not isinstance(value, Fixed | Ref):
            return None
        unnamed = isinstance(value, Fixed) and self.slots.parameter(value.tensor, node) is None
        if isinstance(value, Fixed) and unnamed and bool((value.tensor == 0).all()):
            return None
        return self.slots.slot(node, value)

    def _add(self, members: Iterable[int], element: Element, rows: Tensor | None = None) -> None:
        """Learned vectors that are added to a stream become element times what they were."""
        for index in members:
            vertex = self.graph.vertices[index]
            node = self.graph.trace.node(index)
            region = self.facts.regions.get(index, NOTHING)
            if vertex.kind is Kind.SUM or (vertex.kind is Kind.CARRIER and node.op == "cat"):
                for value in constants_of(self.graph.trace, node):
                    at = element if rows is not None else self._at(index, element)
                    self._table(index, node, value, at, rows)
            elif region.shape is Shape.SHIFT:
                at = element if rows is not None else self._at(index, element)
                for vector in self._parts(index).vectors:
                    if vector.bias:
                        self._edit(vector.slot, -1, at, rows)

    def _table(
        self, index: int, node: Node, value: object, element: Element, rows: Tensor | None
    ) -> None:
        """A learned table, such as one vector for every position, along the axis of its features.

        Whole tables change, also where only some of their rows were used.
        """
        axis = self.graph.layouts[index].axes[-1] - len(node.shape)
        if isinstance(value, Ref):
            made = self.graph.trace.node(value.node)
            while made.op in ("view", "to", "getitem", "expand", "transpose", "contiguous") and (
                isinstance(made.args[0], Ref)
            ):
                made = self.graph.trace.node(made.args[0].node)
            if made.op == "embedding":
                fixed = fixed_in((made.args, made.kwargs))
                # The numbers of the rows may be fixed, too.
                table = next((one for one in fixed if one.tensor.is_floating_point()), None)
                slot = self.slots.slot(made, table)
                self._edit(slot, 1, element, rows)
                return
            if made.op in ("add", "sub") and not made.live:
                # A sum of tables: each changes alike.
                for term in made.args[:2]:
                    if isinstance(term, Ref | Fixed):
                        self._table(index, node, term, element, rows)
                return
        try:
            slot = self.slots.slot(node, value)
        except WeightError:
            if rows is None and self._made_of(value, axis, element):
                return
            raise
        heads = [place - len(node.shape) for place in self.graph.layouts[index].axes]
        if len(heads) > 1 and rows is None and self._by_heads(slot, heads, element):
            return
        one = slot.entries is not None and self._expert().holds(slot)
        if slot.entries is None or one:
            self._edit(slot, axis, element, rows)
            return
        found = self._axis(slot, axis)
        once = len(slot.entries.unique()) == slot.entries.numel()
        if found >= 0 and not (once and self.derivation.serves_others(index, value)):
            self._edit(dataclasses.replace(slot, entries=None), found, element, rows)
        elif rows is None and once:
            self._edit(slot, axis, element, None)
        elif rows is not None or not self._made_of(value, axis, element):
            raise WeightError(f"no axis of {slot.name} holds the features")

    def _made_of(self, value: object, axis: int, element: Element) -> bool:
        """Acts on the parameters that a vector is computed from; False if it would not follow."""
        if not isinstance(value, Ref):
            return False
        trace = self.graph.trace
        node, learned = trace.node(value.node), learned_behind(trace, value.node)
        names = [self.slots.parameter(tensor, node) for tensor in learned]
        if None in names:
            return False
        slots = [Slot(str(name)) for name in names]
        given = [
            (tensor, self.weights.get(slot)) for tensor, slot in zip(learned, slots, strict=True)
        ]
        axes = following(trace, value.node, axis, element, given, strict=self._strict)
        for slot, own in zip(slots, axes or (), strict=False):
            if own is not None:
                place = own % len(self.weights.shape(slot.name))
                key = (slot.name, place, -1, None)
                before = self._original(slot)
                if key not in self._done:
                    # What permutes it as the vector of a function starts from the same.
                    self._done.add(key)
                    self.weights.set(slot, element.act(before, place))
        return axes is not None

    def _by_heads(self, slot: Slot, axes: Sequence[int], element: Element) -> bool:
        """A table with one axis for heads and one for what is in a head; False if it is none."""
        values = self.weights.get(slot)
        if -min(axes) > values.ndim or math.prod(values.shape[a] for a in axes) != element.dim:
            return False
        key = (slot.name, "heads", *axes)
        if key not in self._done:
            self._done.add(key)
            ends = [*range(-len(axes), 0)]
            moved = values.movedim([*axes], ends)
            changed = element.act(moved.flatten(-len(axes)), -1).reshape(moved.shape)
            self.weights.set(slot, changed.movedim(ends, [*axes]))
        return True

    # --- norms ------------------------------------------------------------------------------------

    def _through_norm(self, norm: int, turn: Element) -> None:
        """A norm that reads a stream, and what reads the norm, after the stream was changed.

        With n the normalised stream, y = g n + b is read as W y. A turn U of n leaves W y the same
        if y' = U n + U (b / g) is read by W D_g U^-1. Elements on axes keep their gain instead.
        """
        if ("norm", norm) in self._done:
            return
        self._done.add(("norm", norm))
        axes = as_monomial(turn)
        stream = self.facts.streams[self.facts.stream_of[norm]]
        gain, bias = self._affine(norm)
        if axes is not None:
            columns, factors = axes
            self._set_affine(norm, gain[columns], bias[columns] * factors)
            self._behind[self.facts.stream_of[norm]] = turn
            self._add(stream.members, turn)
            self._readers(norm, turn)
            return
        direct = [r for r in stream.readers if self._is_map(r)]
        gained = [r for r in stream.readers if not self._is_map(r)]
        idle = torch.ones_like(gain), torch.zeros_like(bias)
        plain = is_plain(self.facts, norm)
        if gained and (direct or (not plain and largest_gap((gain, bias), idle) > 1e-9)):
            raise WeightError("a norm with a gain is read through another gain")
        for reader in gained:
            self._fold(reader, *self._affine(reader), turn)
        if is_plain(self.facts, norm):
            # One number for all features passes any turn.
            self._behind[self.facts.stream_of[norm]] = turn
            self._add(stream.members, turn)
            for reader in direct:
                self._read(reader, turn, self.facts.stream_of[norm])
        elif not gained:
            self._fold(norm, gain, bias, turn)

    def _is_map(self, vertex: int) -> bool:
        return self.derivation.is_map(vertex)

    def _fold(self, vertex: int, gain: Tensor, bias: Tensor, turn: Element) -> None:
        """Moves the gain at a vertex into the linear maps that read it, and turns between them."""
        axes = turn.axes if isinstance(turn, Local) else torch.arange(len(gain))
        inner = turn.inner if isinstance(turn, Local) else turn
        folding, carried = gain[axes], bias[axes]
        if bool((folding == 0).any()):
            raise WeightError("a gain is zero, so that its norm's bias cannot be moved")
        gain, bias = gain.clone(), bias.clone()
        gain[axes], bias[axes] = 1.0, inner.act(carried / folding)
        self._set_affine(vertex, gain, bias)
        folded: Element = MonomialElement(torch.arange(len(axes)), 1.0 / folding)
        folded = Product((inner, folded))
        if isinstance(turn, Local):
            # The axes that stay where they are keep their gain.
            folded = Local(turn.dim, axes, folded)
        self._add(self.facts.streams[self.facts.stream_of[vertex]].members, folded)
        self._readers(vertex, folded)

    def _readers(self, vertex: int, element: Element) -> None:
        """What reads the output of a norm, after that was changed."""
        index = self.facts.stream_of[vertex]
        for reader in self.facts.streams[index].readers:
            region = self.facts.regions.get(reader, NOTHING)
            if region.shape is Shape.DIAGONAL:
                columns, factors = monomial(element)
                gain, bias = self._affine(reader)
                # The signs stay with the normalised stream, so that the gain is only permuted.
                self._set_affine(reader, gain[columns], bias[columns] * factors)
                self._behind[self.facts.stream_of[reader]] = element
                self._readers(reader, element)
            else:
                self._read(reader, element, index)

    def _norm_output(self, index: int, element: Element) -> dict[int, Element]:
        """P D behind a norm: P for the stream that the norm reads, D for its gain."""
        stream = self.facts.streams[index]
        (writer,) = stream.writers
        vertex = self.derivation.norm_of(index)
        source = self.facts.stream_of[vertex.carried[0]]
        plain = is_plain(self.facts, vertex.node) and vertex.node == writer
        if plain or source in self.derivation.tied_to(index):
            return {**self._move(source, element), index: element}
        columns, factors = monomial(element)
        gain, bias = self._affine(writer)
        order = MonomialElement(columns, torch.ones_like(factors))
        moved: dict[int, Element] = {}
        if not torch.equal(columns, torch.arange(len(columns))):
            moved = self._move(self.facts.stream_of[vertex.carried[0]], order)
        # The gain was permuted with the stream; what is left is to rescale behind it.
        self._set_affine(writer, gain[columns] * factors, bias[columns] * factors)
        scale = MonomialElement(torch.arange(len(factors)), factors)
        again = self._read_by(stream.readers)
        self._done = {key for key in self._done if key[0] not in again}
        for reader in stream.readers:
            self._read(reader, scale, index)
        self._behind[index] = element
        return {**moved, index: element}

    def _read_by(self, readers: Iterable[int]) -> set[object]:
        """The names of the matrices of some maps, and of those behind what is put side by side."""
        found: set[object] = set()
        for reader in readers:
            vertex = self.graph.vertices[reader]
            if self.derivation.sets_side_by_side(reader):
                behind = self.facts.streams[self.facts.stream_of[reader]].readers
                found |= self._read_by(behind)
            elif vertex.kind in (Kind.LINEAR, Kind.CONVOLUTION, Kind.GROUPED):
                found.add(self._map(vertex).weight.name)
        return found

    # --- vectors in regions -----------------------------------------------------------------------

    def _original(self, slot: Slot) -> Tensor:
        """The vector as it was before this move."""
        places = slot.entries
        key = (slot.name, None if places is None else tuple(places.flatten().tolist()))
        if key not in self._before:
            self._before[key] = self.weights.get(slot).cpu()
        return self._before[key]

    def _affine(self, vertex: int) -> tuple[Tensor, Tensor]:
        """The gain and bias that a region had before this move, from its parameters."""
        if self.graph.vertices[vertex].kind is Kind.BATCH_NORM:
            return self._running(vertex)[:2]
        region = self.facts.regions[vertex]
        if region.function is None and region.gain is not None and region.bias is not None:
            return region.gain, region.bias
        parts = self._parts(vertex)
        gain, bias = parts.gain, parts.bias
        for vector in parts.vectors:
            values = self._original(vector.slot).flatten()
            gain, bias = gain + vector.gain * values, bias + vector.bias * values
        return gain, bias

    def _gain_now(self, index: int) -> tuple[Tensor, Tensor]:
        """The same, also where they are computed from parameters in a way of their own."""
        try:
            return self._affine(index)
        except WeightError:
            vertex = self.graph.vertices[index]
            put: dict[int, tuple[_Given, Tensor]] = {}
            for node, fixed in vectors_of(self.graph, vertex):
                name = self.slots.parameter(fixed.tensor, node)
                if name is not None:
                    values = self._original(Slot(name))
                    given = _Given(Slot(name), values, tensor=fixed.tensor)
                    put[id(fixed.tensor)] = given, values
            return self._gain(vertex, self.facts.regions[index], [*put.values()])

    def _set_affine(self, vertex: int, gain: Tensor, bias: Tensor) -> None:
        """Gives the vectors of a region the values that make this gain and bias."""
        if self.graph.vertices[vertex].kind is Kind.BATCH_NORM:
            self._set_running(vertex, gain, bias)
            return
        if self.facts.regions[vertex].function is None:
            return
        parts = self._parts(vertex)
        now = self._affine(vertex)
        for target, before, constant, field in (
            (gain, now[0], parts.gain, "gain"),
            (bias, now[1], parts.bias, "bias"),
        ):
            own = [vector for vector in parts.vectors if getattr(vector, field) != 0]
            if not own and float((target - before).abs().max()) <= 1e-9 * float(gain.abs().max()):
                continue
            if len(own) != 1 or (own[0].gain != 0 and own[0].bias != 0):
                node = self.graph.trace.node(vertex)
                raise WeightError(
                    f"{node.module or node.op} has no {field} of its own that could change"
                )
            values = (target - constant) / getattr(own[0], field)
            self.weights.set(own[0].slot, values.reshape(self._original(own[0].slot).shape))

    def _running(self, vertex: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What batch normalisation with kept statistics multiplies by and adds; mean and spread."""
        node = self.graph.trace.node(vertex)
        mean, variance, weight, shift = (
            self._argument(node, name) for name in ("running_mean", "running_var", "weight", "bias")
        )
        assert mean is not None and variance is not None
        spread = (self._original(variance) + _epsilon(node)).sqrt()
        centre = self._original(mean)
        gain = (1.0 if weight is None else self._original(weight)) / spread
        return (
            gain,
            (0.0 if shift is None else self._original(shift)) - centre * gain,
            centre,
            spread,
        )

    def _set_running(self, vertex: int, gain: Tensor, bias: Tensor) -> None:
        """Gives batch normalisation the parameters that make this factor and shift.

        Without parameters of its own its kept statistics take both.
        """
        node = self.graph.trace.node(vertex)
        _, _, centre, spread = self._running(vertex)
        weight, shift = self._argument(node, "weight"), self._argument(node, "bias")
        if weight is not None and shift is not None:
            self.weights.set(weight, gain * spread)
            self.weights.set(shift, bias + centre * gain)
            return
        wanted = gain.square().reciprocal() - _epsilon(node)
        mean, variance = self._argument(node, "running_mean"), self._argument(node, "running_var")
        if bool((gain <= 0).any()) or bool((wanted < 0).any()) or mean is None or variance is None:
            raise WeightError(f"{node.module or node.op} has no gain that could change")
        self.weights.set(variance, wanted)
        self.weights.set(mean, -bias / gain)

    def _parts(self, vertex: int) -> "_Affine":
        if vertex not in self._affines:
            self._affines[vertex] = self._measured(vertex)
        return self._affines[vertex]

    def _measured(self, index: int) -> "_Affine":
        """How the gain and bias of a region depend on its parameters, set to 0 and to 1."""
        vertex, region = self.graph.vertices[index], self.facts.regions[index]
        if region.apart:
            raise WeightError(f"{region.op} has gains of its own for every head")
        given = self._given(vertex)
        zeros = [_put(one, torch.zeros) for one in given]
        gain, bias = self._gain(vertex, region, zeros)
        if any(one.values.numel() not in (1, len(gain)) for one in given):
            raise WeightError(
                f"{spoken_at(self.graph.trace.node(index))} uses parameters that are not one "
                "number for each feature"
            )
        vectors: list[_Vector] = []
        now = [gain, bias]
        for place, one in enumerate(given):
            ones = [*zeros[:place], _put(one, torch.ones), *zeros[place + 1 :]]
            more = self._gain(vertex, region, ones)
            slope = [_slope(a - b) for a, b in zip(more, (gain, bias), strict=True)]
            vectors.append(_Vector(one.slot, *slope))
            values = one.values.detach().double().cpu().flatten()
            now = [was + by * values for was, by in zip(now, slope, strict=True)]
        found = _Affine(gain, bias, tuple(vectors))
        seen = self._gain(vertex, region, ())
        if any(float((a - b).abs().max()) > 1e-6 for a, b in zip(now, seen, strict=True)):
            name = self.graph.trace.node(index).module or self.graph.trace.node(index).op
            raise WeightError(f"how {name} uses its parameters is not understood")
        return found

    def _given(self, vertex: Vertex) -> list["_Given"]:
        """The numbers that a region is given beside features, each once."""
        found: dict[object, _Given] = {}
        for node, value in given_to(self.graph, vertex):
            for slot, one in self._held_in(node, value):
                if isinstance(one, Ref):
                    values = replay(self.graph.trace, one.node, {})
                    found[one.node] = _Given(slot, values, node=one.node)
                elif one.tensor.is_floating_point():
                    tensor = one.tensor
                    now = self.graph.trace.instead.get(id(tensor), tensor)
                    found[id(tensor)] = _Given(slot, now, tensor=tensor)
        return [*found.values()]

    def _held_in(
        self, node: Node, value: Fixed | Ref, *, learned: bool = False
    ) -> Iterator[tuple[Slot, Fixed | Ref]]:
        """Where the numbers of a constant lie: its own, or those that it is computed from.

        Args:
            node: the call that uses it.
            value: the constant.
            learned: whether numbers that are no parameters are passed over.
        """
        if isinstance(value, Ref):
            try:
                slot = self.slots.slot(node, value)
            except WeightError:
                slot = None
            if slot is not None and not self._is_some_of_more(slot, value):
                yield slot, value
                return
            made = self.graph.trace.node(value.node)
            for use, one in numbers_in(self.graph.trace, made):
                yield from self._held_in(use, one, learned=learned)
        elif not learned or isinstance(value.tensor, nn.Parameter):
            yield self.slots.slot(node, Fixed(value.tensor, None)), value

    def _is_some_of_more(self, slot: Slot, value: Ref) -> bool:
        """True for rows that are picked by positions, of which longer inputs use more."""
        if slot.entries is None or not is_of_positions(self.graph.trace, value.node):
            return False
        return len(slot.entries.unique()) < self.weights.shape(slot.name).numel()

    def _gain(
        self, vertex: Vertex, region: Region, put: Sequence[tuple["_Given", Tensor]]
    ) -> tuple[Tensor, Tensor]:
        layout = self.graph.layouts[vertex.node]
        dim = self.graph.trace.node(vertex.node).shape[layout.axes[-1]]
        device = next((t.device for t in self.weights.model.parameters()), torch.device("cpu"))
        fixed = {id(one.tensor): value for one, value in put if one.tensor is not None}
        made = {one.node: value for one, value in put if one.node is not None}
        if not region.shape.is_norm:
            x = torch.tensor([[0.0], [1.0]], dtype=torch.float64).repeat(1, dim).to(device)
            low, high = evaluate(self.graph, vertex, (x,), fixed, made).cpu()
            return high - low, low
        # Far from zero, so that the epsilon under the root does not show; no entry near the mean.
        place = torch.arange(dim, dtype=torch.float64)
        unit = (1.0 + place / dim) * (1 - 2 * (place % 2))
        if region.shape is Shape.LAYER_NORM:
            unit = unit - unit.mean()
        unit = unit / unit.square().mean().sqrt()
        both = 1e6 * torch.stack([unit, -unit]).to(device)
        plus, minus = evaluate(self.graph, vertex, (both,), fixed, made).cpu()
        return (plus - minus) / (2 * unit), (plus + minus) / 2

    # --- families ---------------------------------------------------------------------------------

    def _family(self, index: int, element: Element) -> dict[int, Element]:
        """All streams of a family move as one: each axis keeps its partners."""
        return self._together({index: element})

    def _in_one_order(self, index: int, element: Element) -> dict[int, Element]:
        """The parts of a tensor, whose axes change places together, each by its own scales."""
        parts = self.derivation.parts_of(index)
        given = element.parts if isinstance(element, SumElement) else ()
        sizes = tuple(self._width(part) for part in parts)
        if tuple(part.dim for part in given) != sizes:
            raise WeightError("the element does not act on each of the parts by itself")
        return self._together(dict(zip(parts, given, strict=True)))

    def _together(self, given: dict[int, Element]) -> dict[int, Element]:
        """All streams of a family, of which some move by elements of one order."""
        index = next(iter(given))
        columns, _ = monomial(given[index])
        family = self.derivation.family(index)
        relations = self.derivation.relations(family)
        followed = [
            (monomial(own)[1], relations.following(stream, given.keys() - {stream}))
            for stream, own in given.items()
        ]
        origins = self.derivation.origins(index, family)
        if any(
            not torch.equal(monomial(own)[0], columns)
            or not torch.equal(origins[stream], torch.arange(len(columns)))
            for stream, own in given.items()
        ):
            raise ContradictionError("features that belong together would change places apart")
        moved: dict[int, Element] = {}
        for member, origin in origins.items():
            known = origin >= 0
            inverse = torch.full((len(columns),), -1)
            inverse[origin[known]] = known.nonzero().flatten()
            own = torch.arange(len(origin))
            own[known] = inverse[columns[origin[known]]]
            if bool((own < 0).any()) or len(origin[known].unique()) < int(known.sum()):
                raise ContradictionError("features that belong together would change places apart")
            scale = torch.ones(len(origin), dtype=torch.float64)
            for factors, follow in followed:
                power, bit = follow[member]
                here = factors[origin[known]]
                scale[known] *= here.abs() ** power * (torch.sign(here) if bit else 1.0)
            moved[member] = MonomialElement(own, scale)
        for member, own in moved.items():
            self._linear(member, own)
        for link in self.derivation.family_links(family):
            self._link(link, moved)
        whole = self.derivation.parted(family)
        return moved | {
            source: SumElement(tuple(moved[part] for part in parts))
            for source, parts in whole.items()
        }

    def _width(self, index: int) -> int:
        """The number of features of a stream."""
        for member in sorted(self.facts.streams[index].members):
            layout = self.graph.layouts.get(member)
            if layout is not None and layout.repeat == 1:
                return self._size(member)
        raise WeightError("the features of a stream could not be counted")

    def _link(self, index: int, moved: dict[int, Element]) -> None:
        """What joins streams feature by feature, after they were changed."""
        vertex, node = self.graph.vertices[index], self.graph.trace.node(index)
        sources = self.derivation.sources(index)
        columns, before = monomial(moved[self.facts.stream_of[sources[0]]])
        _, after = monomial(moved[self.facts.stream_of[index]])
        region = self.facts.regions.get(index, NOTHING)
        if vertex.kind in (Kind.BATCH_NORM, Kind.GROUP_NORM):
            self._batch_norm(node, columns, before, after)
        elif vertex.kind is Kind.DEPTHWISE:
            found = self._map(vertex)
            bias = self._bias(node, found.bias)
            for slot, factors in ((found.weight, after / before), (bias, after)):
                if slot is not None:
                    self._edit(slot, 0, MonomialElement(columns, factors), None)
        elif (
            region.shape is Shape.DIAGONAL
            and _is_linear(region)
            and torch.allclose(before, after, rtol=1e-12, atol=0.0)
        ):
            # However a gain is computed, it changes places with what it is computed from.
            self._permute(vertex, columns)
        elif region.shape is Shape.DIAGONAL or region.shape.is_norm:
            gain, bias = self._affine(index)
            signs = before.sign() if region.shape.is_norm else before
            self._set_affine(index, gain[columns] * after / signs, bias[columns] * after)
        elif region.shape in (Shape.ELEMENTWISE, Shape.COUPLED):
            along = self.derivation.rescaling(index)
            if along is not None and not torch.allclose(before, torch.ones_like(before)):
                self._rescale(vertex, along.powers, columns, before)
            else:
                self._permute(vertex, columns)

    def _rescale(
        self, vertex: Vertex, powers: dict[int, int], columns: Tensor, factors: Tensor
    ) -> None:
        """The vectors of a nonlinear function change places, and take up scales of the features."""
        for node, value in given_to(self.graph, vertex):
            for slot, one in self._held_in(node, value, learned=True):
                power = powers.get(id(one.tensor)) if isinstance(one, Fixed) else None
                if power is None:
                    name = self.graph.trace.node(vertex.node).module or vertex.op
                    raise WeightError(f"how {name} uses its parameters is not understood")
                values = self._original(slot)
                moved = values.flatten()[columns] * factors**power
                self.weights.set(slot, moved.reshape(values.shape))

    def _permute(self, vertex: Vertex, columns: Tensor) -> None:
        """The vectors of a region change places with the features."""
        # What is no parameter of a nonlinear function, all features read alike.
        bent = self.facts.regions.get(vertex.node, NOTHING).shape is not Shape.DIAGONAL
        for node, value in given_to(self.graph, vertex):
            for held, _ in self._held_in(node, value, learned=bent):
                slot = self._of_all_positions(held, len(columns))
                values = self._original(slot)
                axes = [axis for axis, size in enumerate(values.shape) if size == len(columns)]
                if len(axes) == 1 or (axes and slot is not held):
                    self.weights.set(slot, values.index_select(axes[-1], columns))

    def _of_all_positions(self, slot: Slot, dim: int) -> Slot:
        """A table of vectors of which the first rows are used: a longer input uses more of them."""
        if slot.entries is None or slot.lengths is not None:
            return slot
        used, whole = slot.entries.cpu(), self.weights.shape(slot.name)
        first = torch.equal(used.flatten(), torch.arange(used.numel()))
        rows = [size for size in used.shape[:-1] if size > 1]
        more = [size for size in whole[:-1] if size > 1]
        table = used.ndim > 1 and used.shape[-1] == whole[-1] == dim
        table = table and len(rows) == len(more) == 1 and rows < more
        return Slot(slot.name, factor=slot.factor) if first and table else slot

    def _batch_norm(self, node: Node, columns: Tensor, before: Tensor, after: Tensor) -> None:
        statistics = "" if node.op in ("group_norm", "layer_norm") else "running_mean running_var"
        mean, variance, gain, bias = (
            self._argument(node, name) if name in f"{statistics} weight bias" else None
            for name in ("running_mean", "running_var", "weight", "bias")
        )
        own = torch.ones_like(before)
        if mean is not None and variance is not None and keeps_statistics(node):
            eps = _epsilon(node)
            spread = (self._original(variance) + eps)[columns]
            self.weights.set(mean, before * self._original(mean)[columns])
            if gain is None or bias is None:
                # Without a gain the variance takes the scale.
                wanted = spread * (before / after).square() - eps
                if bool((before * after < 0).any()) or bool((wanted < 0).any()):
                    raise WeightError(f"{node.module or node.op} has no gain that could change")
                self.weights.set(variance, wanted)
                return
            scaled = before.square() * self._original(variance)[columns]
            self.weights.set(variance, scaled)
            own = ((scaled + eps) / spread).sqrt()
        factors = own * after / before
        if gain is not None:
            self.weights.set(gain, self._original(gain)[columns] * factors)
        elif bool(((factors - 1).abs() > 1e-12).any()):
            raise WeightError(f"{node.module or node.op} has no gain that could change")
        if bias is not None:
            self.weights.set(bias, self._original(bias)[columns] * after)

    def _argument(self, node: Node, name: str) -> Slot | None:
        value = norm_argument(node, name)
        return None if value is None else self.slots.slot(node, value)

    # --- attention --------------------------------------------------------------------------------

    def _values(self, index: int, element: BlockElement) -> dict[int, Element]:
        self._linear(index, element)
        (attention,) = (
            a for a in self.facts.attentions if a.vertex in self.facts.streams[index].members
        )
        return {index: element, **self._order(attention, element.order, values=False)}

    def _bent_values(self, found: tuple[int, int, int], element: Element) -> dict[int, Element]:
        """Values before and behind what bends them, by the same."""
        if not isinstance(element, BlockElement):
            raise WeightError("the element does not act on each head by itself")
        _, before, behind = found
        self._change_bent(found, element)
        (attention,) = (
            a for a in self.facts.attentions if a.vertex in self.facts.streams[behind].members
        )
        moved: dict[int, Element] = {before: element.copied(1), behind: element}
        return {**moved, **self._order(attention, element.order, values=False)}

    def _change_bent(self, found: tuple[int, int, int], element: Element) -> None:
        """Into what writes values before they are bent, and out of what reads them behind it."""
        _, before, behind = found
        for writer in self.facts.streams[before].writers:
            self._write(writer, self._at(writer, element))
        for index in (before, behind):
            self._add(self.facts.streams[index].members, element)
        for reader in self.facts.streams[behind].readers:
            self._read(reader, element, behind)

    def _gated_values(self, found: Gated, element: Element) -> dict[int, Element]:
        """Values, their gate and their product: all in one order, the gate without scales."""
        if not isinstance(element, BlockElement):
            raise WeightError("the element does not act on each head by itself")
        (attention,) = (
            a for a in self.facts.attentions if a.vertex in self.facts.streams[found.values].members
        )
        moved = self._change_gated(found, element)
        return {**moved, **self._order(attention, element.order, values=False)}

    def _change_gated(self, found: Gated, element: BlockElement) -> dict[int, Element]:
        """Into what writes values and their gate, and out of what reads their product."""
        streams = self.facts.streams
        size = self._size(min(streams[found.product].members))
        whole = element.copied(size * element.copies // element.dim)
        order = BlockElement(element.order, tuple(map(_unscaled, element.parts)), whole.copies)
        for index, own in ((found.values, whole), (found.before, order)):
            for writer in streams[index].writers:
                self._write(writer, self._at(writer, own))
            self._add(streams[index].members, own)
        self._add(streams[found.product].members, whole)
        for reader in streams[found.product].readers:
            self._read(reader, whole, found.product)
        return {
            found.values: element, found.before: order, found.gate: order, found.product: whole,
        }  # fmt: skip

    def _queries(self, index: int, element: BlockElement) -> dict[int, Element]:
        """Queries take what is asked, keys its inverse transpose, or the other way round."""
        attention, side = self.derivation.heads.meetings[index][0]
        sides = self._both(attention)
        own = element.copied(1)
        moved: dict[int, Element] = {index: element}
        for other in sides:
            what = own if other is side else own.inverse().transpose()
            stream = self.facts.stream_of[other.source]
            at = what.copied(other.heads // len(own.parts))
            self._linear(stream, at)
            moved[stream] = at
            moved.setdefault(self.facts.stream_of[other.end], at.copied(at.copies * other.copies))
        values = self._order(attention, element.order, queries=False)
        return {**moved, **values}

    def _alike(self, attention: Attention, element: Element) -> dict[int, Element]:
        """Queries and keys by the same, before what they are read through and behind it."""
        if not isinstance(element, BlockElement):
            raise WeightError("the element does not act on each head by itself")
        moved: dict[int, Element] = {}
        for side in self._both(attention):
            at = element.copied(side.heads // len(element.parts))
            stream = self.facts.stream_of[self._start_of(side)]
            self._linear(stream, at)
            moved |= {stream: at, self.facts.stream_of[side.source]: at}
            moved |= {self.facts.stream_of[v]: at for v in self.derivation.heads.bends(side)}
            moved.setdefault(self.facts.stream_of[side.end], at.copied(at.copies * side.copies))
        return {**moved, **self._order(attention, element.order, queries=False)}

    def _start_of(self, side: Side) -> int:
        """The vertex that linear maps write, before any norm or function of queries or keys."""
        before = [*self.derivation.heads.bends(side)[-1:]]
        if side.source in self.derivation.heads.normed:
            before = [side.source]
        return self.graph.vertices[before[0]].carried[0] if before else side.source

    def _both(self, attention: Attention) -> tuple[Side, Side]:
        assert isinstance(attention.query, Side) and isinstance(attention.key, Side)
        return attention.query, attention.key

    def _order(
        self, attention: Attention, order: Tensor, *, values: bool = True, queries: bool = True
    ) -> dict[int, Element]:
        """Heads change places, with the values that they choose among."""
        moved: dict[int, Element] = {}
        count = len(order)
        if torch.equal(order, torch.arange(count)):
            return moved
        if queries:
            for side in self._both(attention):
                stream = self.facts.stream_of[self._start_of(side)]
                parts = (Identity(side.size),) * count
                moved[stream] = BlockElement(order, parts, side.heads // count)
        if values:
            stream = self.facts.stream_of[attention.vertex]
            parts = (Identity(self._width(stream) // count),) * count
            moved[stream] = BlockElement(order, parts)
        beside: dict[int, Element] = {}
        for stream, element in moved.items():
            bent = self.derivation.heads.bent_values(stream)
            gated = self.derivation.heads.gated_values(stream)
            if bent is not None:
                self._change_bent(bent, element)
            elif gated is not None and isinstance(element, BlockElement):
                beside |= self._change_gated(gated, element)
            else:
                self._linear(stream, element)
        moved |= beside
        for side in self._both(attention) if queries else ():
            if side.source in self.derivation.heads.normed and not (
                self.facts.regions[side.source].within
            ):
                # One norm reads all heads, and its gain changes places with them.
                before = self.graph.vertices[side.source].carried[0]
                columns, _ = monomial(moved[self.facts.stream_of[before]])
                gain, bias = self._affine(side.source)
                self._set_affine(side.source, gain[columns], bias[columns])
        if queries:
            for side in self._both(attention):
                parts = (Identity(side.size),) * count
                at = BlockElement(order, parts, side.heads * side.copies // count)
                moved.setdefault(self.facts.stream_of[side.end], at)
        return moved

    def _before_norm(self, index: int, norm: int, element: Element) -> dict[int, Element]:
        """Signed permutations before the norms of queries and keys, inside their planes.

        With n the normalised queries and g their gain, g n turns by C where n turns by A if the new
        gain is s g, permuted, with signs s that make C commute with what positions do.
        """
        attention, side = self.derivation.heads.normed[norm]
        if self.derivation.heads.is_gainless(norm):
            return self._alike(attention, element)
        if not isinstance(element, BlockElement):
            raise WeightError("the element does not act on each head by itself")
        still = torch.arange(len(element.order))
        columns, factors = monomial(BlockElement(still, element.parts, element.copies))
        turn = _commuting(columns, factors, side)
        moved: dict[int, Element] = {}
        for other in self._both(attention):
            vertex = self.graph.vertices[other.source]
            stream = self.facts.stream_of[vertex.carried[0]]
            inside = MonomialElement(columns, factors)
            wanted = turn
            if other is not side:
                inside = _resized(MonomialElement(columns, turn), side, other)
                wanted = inside.factors
            parts = (Identity(other.size),) * len(still)
            order = MonomialElement(
                *monomial(BlockElement(element.order, parts, other.heads // len(still)))
            )
            own = MonomialElement(*monomial(order @ inside))
            gain, bias = self._affine(other.source)
            places, given = monomial(inside if len(gain) == other.size else own)
            if len(gain) != other.size:
                wanted = wanted[order.columns]
            width = len(gain)
            places, given, wanted = places[:width], given[:width], wanted[:width]
            self._set_affine(other.source, gain[places] * wanted / given, bias[places] * wanted)
            self._linear(stream, own)
            moved[stream] = own
        return {**moved, **self._order(attention, element.order, queries=False)}

    # --- strangers --------------------------------------------------------------------------------

    def _strange(self, index: int, make: Callable[[int], Element | None]) -> dict[int, Element]:
        derivation = self.derivation
        streams = {index}
        inverse: set[int] = set()
        stream = self.facts.streams[index]
        normed = [reader for reader in stream.readers if reader in derivation.heads.normed]
        bent = derivation.heads.bend_of(index)
        if index in derivation.heads.meetings or normed or bent is not None:
            attention, side = (
                derivation.heads.normed[normed[0]]
                if normed
                else derivation.heads.meetings[index][0]
                if bent is None
                else derivation.heads.bent[bent]
            )
            streams = set()
            for other in self._both(attention):
                start = self.facts.stream_of[self._start_of(other)]
                streams.add(start)
                if other is not side:
                    inverse.add(start)
        elif (values := derivation.heads.bent_values(index)) is not None:
            streams = set(values[1:])
        elif derivation.permuting(index):
            streams = set(derivation.family(index))
        elif derivation.commuting.joined(index):
            streams = set(derivation.commuting.streams(index))
        moved: dict[int, Element] = {}
        for member in streams:
            element = make(self._width(member))
            if element is not None:
                element = element.inverse().transpose() if member in inverse else element
                moved[member] = element
                self._linear(member, element, make=make)
        return moved


@dataclasses.dataclass(frozen=True, eq=False)
class _Vector:
    """A parameter of a region: how much of it is in the gain, and in the bias."""

    slot: Slot
    gain: float
    bias: float


@dataclasses.dataclass(frozen=True, eq=False)
class _Given:
    """Numbers that a region is given: where they lie, and the tensor, or the call, that is them."""

    slot: Slot
    values: Tensor
    tensor: Tensor | None = None
    node: int | None = None


def _put(one: _Given, make: Callable[..., Tensor]) -> tuple[_Given, Tensor]:
    """The same numbers, all of them zero or one."""
    return one, make(one.values.shape, dtype=torch.float64, device=one.values.device)


@dataclasses.dataclass(frozen=True, eq=False)
class _Affine:
    """What the gain and bias of a region are made of: constants, and parameters."""

    gain: Tensor
    bias: Tensor
    vectors: tuple[_Vector, ...]


def _is_linear(region: Region) -> bool:
    """True if a gain for every feature comes without anything that is added."""
    return region.bias is not None and not bool(region.bias.any())


def _slope(change: Tensor) -> float:
    """How much of a parameter that became one is in each feature; whole numbers are exact."""
    mean = change.mean()
    return float(mean.round() if bool((mean - mean.round()).abs() < 1e-6) else mean)


def _epsilon(node: Node) -> float:
    """What batch normalisation adds to a variance."""
    given = norm_argument(node, "eps")
    return float(given) if isinstance(given, int | float) else 1e-5


def largest_gap(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> float:
    """The largest difference between two gains, or between two biases."""
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))


def as_monomial(element: Element) -> tuple[Tensor, Tensor] | None:
    """Columns and factors of an element that keeps axes; None for others.

    With (A v)_i = factors_i * v_columns_i, as in `MonomialElement`.
    """
    if isinstance(element, Identity):
        return torch.arange(element.dim), torch.ones(element.dim, dtype=torch.float64)
    if isinstance(element, MonomialElement):
        return element.columns, element.factors
    if isinstance(element, SumElement):
        parts = [as_monomial(part) for part in element.parts]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            return None
        starts = torch.tensor([0, *(part.dim for part in element.parts)]).cumsum(0).tolist()
        columns = [c + start for (c, _), start in zip(known, starts[:-1], strict=True)]
        return torch.cat(columns), torch.cat([factors for _, factors in known])
    if isinstance(element, Local):
        inner = as_monomial(element.inner)
        if inner is None:
            return None
        columns = torch.arange(element.dim)
        factors = torch.ones(element.dim, dtype=torch.float64)
        columns[element.axes], factors[element.axes] = element.axes[inner[0]], inner[1]
        return columns, factors
    if isinstance(element, BlockElement):
        return _block_by_block(element)
    if isinstance(element, Dense):
        return monomial_parts(element.matrix(), 1e-9)
    return None


def _block_by_block(element: BlockElement) -> tuple[Tensor, Tensor] | None:
    """The same of blocks that change places, without the whole matrix."""
    size, copies = element.parts[0].dim, element.copies
    columns = torch.empty(len(element.parts), copies, size, dtype=torch.int64)
    factors = torch.empty(len(element.parts), copies, size, dtype=torch.float64)
    known: dict[int, tuple[Tensor, Tensor]] = {}
    for block, (place, part) in enumerate(zip(element.order.tolist(), element.parts, strict=True)):
        found = known.get(id(part)) or as_monomial(part) or monomial_parts(part.matrix(), 1e-9)
        if found is None:
            return None
        known[id(part)] = found
        starts = (block * copies + torch.arange(copies)) * size
        columns[place], factors[place] = found[0] + starts[:, None], found[1]
    return columns.flatten(), factors.flatten()


def monomial(element: Element) -> tuple[Tensor, Tensor]:
    """Columns and factors of an element that is known to keep axes."""
    found = as_monomial(element)
    assert found is not None, "an element on axes was expected"
    return found


def _unscaled(element: Element) -> Element:
    """The order in which an element on axes puts them."""
    columns, factors = monomial(element)
    return MonomialElement(columns, torch.ones_like(factors))


def _across(element: Element) -> Element:
    """What is left of an element of the line stabiliser across the all-ones direction."""
    if isinstance(element, Sheared):
        return element.turn
    if isinstance(element, Dense):
        sums = torch.cat([element.entries.sum(0), element.entries.sum(1)])
        if bool(((sums.abs() - 1).abs() < 1e-9).all()) and bool((sums * sums[0] > 0).all()):
            return element  # It keeps the direction, or reverses it.
        entries = element.entries - element.entries.mean(0, keepdim=True)
        return Dense(entries - entries.mean(1, keepdim=True) + 1.0 / element.dim)
    return element


def _commuting(columns: Tensor, factors: Tensor, side: Side) -> Tensor:
    """Signs that make a signed permutation inside planes a multiple of a quarter turn of each."""
    signs = factors.sign()
    if side.turned is None:
        return signs
    first, last, size = side.turned.first, side.turned.last, side.size
    ahead = (last - first) // 2 if side.turned.pairing == "half" else 1
    for start in range(0, len(columns), size):
        for plane in range((last - first) // 2):
            one = start + first + (plane if side.turned.pairing == "half" else 2 * plane)
            other = one + ahead
            # [[c, -s], [s, c]]: equal signs on the diagonal, opposite ones beside it.
            signs[one] = signs[other] if int(columns[one]) == one else -signs[other]
    return signs


def _resized(element: MonomialElement, side: Side, other: Side) -> MonomialElement:
    """The same signed permutations in the heads of the other side of an attention."""
    size = side.size
    heads = [
        MonomialElement(element.columns[start : start + size] - start, part)
        for start, part in zip(
            range(0, element.dim, size), element.factors.split(size), strict=True
        )
    ]
    ratio = side.heads / other.heads
    chosen = tuple(heads[int(head * ratio)] for head in range(other.heads))
    return MonomialElement(*monomial(SumElement(chosen)))


def _own_parts(composite: Composite, element: Element) -> list[Element]:
    """The element of each part of what falls into parts."""
    count = len(composite.streams)
    if not composite.heads:
        if isinstance(element, SumElement) and len(element.parts) == count:
            return [*element.parts]
    elif isinstance(element, BlockElement) and torch.equal(
        element.order, torch.arange(len(element.order))
    ):
        inner = [head for head in element.parts if isinstance(head, SumElement)]
        if len(inner) == len(element.parts) and all(len(head.parts) == count for head in inner):
            several = [tuple(head.parts[place] for head in inner) for place in range(count)]
            still = [all(isinstance(part, Identity) for part in own) for own in several]
            if all(stays or free for stays, free in zip(still, composite.free, strict=True)):
                return [
                    Identity(len(own) * own[0].dim * element.copies)
                    if stays
                    else BlockElement(element.order, own, element.copies)
                    for own, stays in zip(several, still, strict=True)
                ]
    raise WeightError("the element does not act on each of the parts by itself")
