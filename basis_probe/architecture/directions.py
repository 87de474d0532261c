"""Directions of the parameters that no group of a site holds, and that may change nothing.

A bias that the next one absorbs, what LayerNorm does not let through, a gain against what reads it,
the size of a stream: each is a symmetry at some places and none at others. Here are the candidates;
which sums of them leave a function alone is measured.
"""

import dataclasses
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from basis_probe.architecture.act import Action
from basis_probe.architecture.claims import NOTHING
from basis_probe.model.facts import Facts, Shape, Stream, constants_of, vectors_of
from basis_probe.model.graph import Kind, Vertex, norm_argument
from basis_probe.model.places import Site
from basis_probe.model.trace import Node, fixed_in
from basis_probe.model.weights import Slot, WeightError

_MAPS = (Kind.LINEAR, Kind.CONVOLUTION, Kind.EMBEDDING)


class Directions:
    """Candidates, each a vector of all numbers in the parameters.

    Args:
        facts: what was seen of the model.
        action: acts on its weights, and knows where they lie.
        places: parameter -> where its numbers are among all numbers.
        count: how many numbers there are.
        values: what was seen at the nodes of the record, with the weights as they are now.
    """

    def __init__(
        self,
        facts: Facts,
        action: Action,
        places: dict[str, slice],
        count: int,
        values: dict[int, Tensor],
    ) -> None:
        self.facts, self.action, self.places, self.count = facts, action, places, count
        self.values = values
        self.weights = action.weights

    # --- what is added ----------------------------------------------------------------------------

    def shifts(self) -> Iterator[Tensor]:
        """Directions in which a number alone is added somewhere: biases, tables of positions."""
        for vertex in self.facts.graph.vertices.values():
            for slot in self._biases(vertex):
                for place in self._coordinates(slot):
                    yield self._direction(place)
        for node in self.facts.graph.trace.nodes:
            vertex = self.facts.graph.vertices.get(node.index)
            known = vertex is not None and vertex.kind is Kind.EMBEDDING
            if known or (node.op == "embedding" and not node.live):
                yield from self._in_table(node)

    def _in_table(self, node: Node) -> Iterator[Tensor]:
        """The same number in a column of a table, and every number of the row for padding."""
        slot = self._slot_of_table(node)
        if slot is None or slot.entries is not None or slot.name not in self.places:
            return
        table = self._coordinates(slot).reshape(self.weights.shape(slot.name))
        for column in table.T:
            yield self._direction(column)
        padding = node.kwargs.get("padding_idx", node.args[2] if len(node.args) > 2 else None)
        if node.op == "embedding" and isinstance(padding, int):
            for place in table[padding]:
                yield self._direction(place)

    def _biases(self, vertex: Vertex) -> Iterator[Slot]:
        """Where numbers lie that a vertex adds."""
        action, node = self.action, self.facts.graph.trace.node(vertex.node)
        region = self.facts.regions.get(vertex.node, NOTHING)
        try:
            if vertex.kind in (*_MAPS, Kind.GROUPED, Kind.DEPTHWISE):
                slot = None if vertex.kind is Kind.EMBEDDING else action.bias_of(vertex)
                yield from () if slot is None else (slot,)
            elif vertex.kind in (Kind.BATCH_NORM, Kind.GROUP_NORM):
                value = norm_argument(node, "bias")
                yield from () if value is None else (action.slots.slot(node, value),)
            elif vertex.kind is Kind.SUM or (vertex.kind is Kind.CARRIER and node.op == "cat"):
                for value in constants_of(self.facts.graph.trace, node):
                    yield action.slots.slot(node, value)
            elif region.shape.is_norm or region.shape in (Shape.SHIFT, Shape.DIAGONAL):
                yield from action.shifts_of(vertex.node)
        except WeightError:
            return

    # --- what LayerNorm hides ---------------------------------------------------------------------

    def hidden(self) -> Iterator[Tensor]:
        """What is written along the all-ones direction, or read along what LayerNorm leaves out."""
        graph, streams = self.facts.graph, self.facts.streams
        for norm, region in self.facts.regions.items():
            if region.shape is not Shape.LAYER_NORM or norm not in graph.vertices:
                continue
            size = self._width(norm)
            source = streams[self.facts.stream_of[graph.vertices[norm].carried[0]]]
            for writer in source.writers:
                for along in _heads(self._width(writer), size):
                    yield from self._into(writer, along)
            try:
                gain = self.action.gain_at(norm)
            except WeightError:
                gain = torch.ones(size, dtype=torch.float64) if region.gain is None else region.gain
            if not region.within:
                yield from self._out_of(streams[self.facts.stream_of[norm]], gain.double().cpu())
        for stream in streams:
            yield from self._sheared(stream)
            yield from self._rows(stream)
            yield from self._unwritten(stream)

    def _into(self, writer: int, along: Tensor) -> Iterator[Tensor]:
        """Something written along a direction, for each of the inputs of what writes."""
        vertex = self.facts.graph.vertices[writer]
        if vertex.kind is Kind.PART and vertex.part is not None:
            whole = torch.zeros(self._width(vertex.carried[0], heads=False), dtype=torch.float64)
            whole[torch.tensor(vertex.part)] = along
            for before in self.facts.streams[self.facts.stream_of[vertex.carried[0]]].writers:
                yield from self._into(before, whole)
        for line, _ in self._lines(vertex, writes=True):
            if len(line) == len(along):
                yield self._direction(line, along)

    def _out_of(self, stream: Stream, gain: Tensor) -> Iterator[Tensor]:
        """Something read along what a norm and the gains behind it never write."""
        for reader in stream.readers:
            vertex = self.facts.graph.vertices[reader]
            if self.facts.regions.get(reader, NOTHING).shape is Shape.DIAGONAL:
                try:
                    more = self.action.gain_at(reader).double().cpu()
                except WeightError:
                    continue
                behind = self.facts.streams[self.facts.stream_of[reader]]
                yield from self._out_of(behind, gain * more)
            for line, _ in self._lines(vertex, writes=False):
                if len(line) == len(gain) and bool((gain != 0).all()):
                    yield self._direction(line, 1.0 / gain)

    def _sheared(self, stream: Stream) -> Iterator[Tensor]:
        """Multiples of one feature written along the all-ones direction, and not read again."""
        regions, vertices = self.facts.regions, self.facts.graph.vertices
        norms = {r for r in stream.readers if regions.get(r, NOTHING).shape is Shape.LAYER_NORM}
        maps = [vertices[reader] for reader in stream.readers if reader not in norms]
        writers = [vertices[writer] for writer in stream.writers]
        if not norms or not writers or stream.returned:
            return
        if any(vertex.kind not in _MAPS for vertex in (*maps, *writers)):
            return
        width = self._width(writers[0].node)
        for axis in range(width):
            found = torch.zeros(self.count, dtype=torch.float64)
            for vertex in writers:
                for line, values in self._lines(vertex, writes=True):
                    found[line] = values[axis] if len(line) == width else 0.0
            for member in stream.members:
                for slot in self._biases(vertices[member]):
                    places, values = self._coordinates(slot), self._values(slot)
                    if len(places) % width == 0:
                        rows = values.reshape(-1, width)[:, axis]
                        found[places] = rows.repeat_interleave(width)
            for vertex in maps:
                for line, values in self._lines(vertex, writes=False):
                    if len(line) == width:
                        found[line[axis]] = -values.sum()
            yield found

    def _rows(self, stream: Stream) -> Iterator[Tensor]:
        """The length of every row of a table that norms alone read."""
        regions, vertices = self.facts.regions, self.facts.graph.vertices
        writers = [vertices[writer] for writer in stream.writers]
        norms = all(regions.get(r, NOTHING).shape.is_norm for r in stream.readers)
        sums = any(vertices[member].kind is Kind.SUM for member in stream.members)
        if len(writers) != 1 or writers[0].kind is not Kind.EMBEDDING or sums or not norms:
            return
        for line, values in self._lines(writers[0], writes=True):
            yield self._direction(line, values)

    def _unwritten(self, stream: Stream) -> Iterator[Tensor]:
        """Something read along directions in which nothing was seen, for each output."""
        vertices = self.facts.graph.vertices
        for reader in stream.readers:
            vertex = vertices[reader]
            if vertex.kind not in _MAPS or not vertex.used:
                continue
            seen = self.values.get(self._argument(vertex), torch.zeros(0, dtype=torch.float64))
            width = self._width(vertex.used[0])
            if seen.ndim < 2 or seen.shape[-1] != width or seen.numel() < 2 * width * width:
                continue
            # What is the same for all of them, a bias takes.
            rows = seen.double().reshape(-1, width).cpu()
            rows = rows - rows.mean(0)
            _, values, right = torch.linalg.svd(rows, full_matrices=True)
            rank = int((values > 1e-10 * values.max()).sum())
            for hidden in right[rank:]:
                for line, _ in self._lines(vertex, writes=False):
                    if len(line) == width:
                        yield self._direction(line, hidden)

    def _argument(self, vertex: Vertex) -> int:
        """The tensor that a linear map reads."""
        graph = self.facts.graph
        inputs = graph.trace.node(vertex.node).inputs
        return next((i for i in inputs if graph.same.get(i) == vertex.used[0]), vertex.used[0])

    # --- gains and sizes --------------------------------------------------------------------------

    def gains(self) -> Iterator[Tensor]:
        """A gain for every feature, with its shift, against what reads it, or against another."""
        graph, streams = self.facts.graph, self.facts.streams
        for norm, region in self.facts.regions.items():
            if not region.shape.is_norm or norm not in graph.vertices:
                continue
            if region.within or self._is_in_parts(norm):
                for slot in self._vectors(norm):
                    for place in self._coordinates(slot):
                        yield self._direction(place)
            source = streams[self.facts.stream_of[graph.vertices[norm].carried[0]]]
            if all(self.facts.regions.get(r, NOTHING).shape.is_norm for r in source.readers):
                for writer in source.writers:
                    for head in _heads(self._width(writer), self._width(norm)):
                        yield self._grown(writer, head)
        for vertex in graph.vertices.values():
            try:
                slots = self.action.gains_of(vertex.node)
            except WeightError:
                continue
            stream = streams[self.facts.stream_of[vertex.node]]
            if not slots or stream.writers != (vertex.node,):
                continue
            whole = [(self._coordinates(slot), self._values(slot)) for slot in slots]
            for axis in range(len(whole[0][0])):
                found = torch.zeros(self.count, dtype=torch.float64)
                for places, values in whole:
                    if len(places) == len(whole[0][0]):
                        found[places[axis]] = values[axis]
                for reader in stream.readers:
                    for line, values in self._lines(graph.vertices[reader], writes=False):
                        if len(line) == len(whole[0][0]):
                            found[line[axis]] = -values[axis]
                yield found

    def followed(self) -> Iterator[Tensor]:
        """Turns of a stream that a norm behind a table writes, with the norm and the table.

        What such a norm writes lies on an ellipsoid, and some turns, with a shear and other gains,
        lead to another one of them: the rows of the table follow by moving along it.
        """
        regions, graph, streams = self.facts.regions, self.facts.graph, self.facts.streams
        for norm, region in regions.items():
            if not region.shape.is_norm or region.within or norm not in graph.vertices:
                continue
            table = streams[self.facts.stream_of[graph.vertices[norm].carried[0]]]
            kinds = [graph.vertices[writer].kind for writer in table.writers]
            stream = streams[self.facts.stream_of[norm]]
            turns = [*self._turns(stream, norm)] if kinds == [Kind.EMBEDDING] else []
            if not turns or any(graph.vertices[m].kind is Kind.SUM for m in table.members):
                continue
            yield from turns
            slots = [*self._vectors(norm)]
            lines = [line for line, _ in self._lines(graph.vertices[table.writers[0]], writes=True)]
            for place in torch.cat([*lines, *map(self._coordinates, slots)]):
                yield self._direction(place)

    def _turns(self, stream: Stream, norm: int) -> Iterator[Tensor]:
        """All small linear changes of a stream that a norm and linear maps write; none for others.

        What reads it undoes them; norms that read it let through what commutes with them.
        """
        vertices, width = self.facts.graph.vertices, self._width(norm)
        writers = [vertices[writer] for writer in stream.writers if writer != norm]
        if stream.returned or any(vertex.kind not in _MAPS for vertex in writers):
            return
        ends: list[tuple[Vertex, Tensor, Tensor]] = []
        shifts: list[tuple[Slot, Tensor, Tensor]] = []
        same = torch.eye(width, dtype=torch.float64)
        for reader in stream.readers:
            region = self.facts.regions.get(reader, NOTHING)
            try:
                gain = self.action.gain_at(reader).double().cpu() if region.shape.is_norm else None
            except WeightError:
                return
            behind = (
                [reader]
                if gain is None
                else [*self.facts.streams[self.facts.stream_of[reader]].readers]
            )
            if any(vertices[one].kind not in _MAPS for one in behind):
                return
            # What lies along the all-ones direction does not come through LayerNorm.
            seen = same - 1 / width if region.shape is Shape.LAYER_NORM else same
            gain = torch.ones(width, dtype=torch.float64) if gain is None else gain
            ends += [(vertices[one], gain, seen) for one in behind]
            if region.shape.is_norm:
                shifts += [(slot, gain, seen) for slot in self.action.shifts_of(reader)]
        for i in range(width):
            for j in range(width):
                change = torch.zeros(width, width, dtype=torch.float64)
                change[i, j] = 1.0
                found = torch.zeros(self.count, dtype=torch.float64)
                for vertex in writers:
                    for line, values in self._lines(vertex, writes=True):
                        found[line] += change @ values.double()
                for member in stream.members:
                    for slot in self._biases(vertices[member]):
                        found[self._coordinates(slot)] += change @ self._values(slot).double()
                for vertex, gain, seen in ends:
                    moved = gain[:, None] * (seen @ change @ seen) / gain
                    for line, values in self._lines(vertex, writes=False):
                        found[line] -= moved.T @ values.double()
                for slot, gain, seen in shifts:
                    moved = gain[:, None] * (seen @ change @ seen) / gain
                    found[self._coordinates(slot)] += moved @ self._values(slot).double()
                yield found

    def _vectors(self, norm: int) -> Iterator[Slot]:
        """Where the weights of a norm lie."""
        for node, fixed in vectors_of(self.facts.graph, self.facts.graph.vertices[norm]):
            try:
                yield self.action.slots.slot(node, fixed)
            except WeightError:
                continue

    def _grown(self, writer: int, some: Tensor) -> Tensor:
        """Some of the features at a writer times a number, those where `some` is one."""
        found, vertex = (
            torch.zeros(self.count, dtype=torch.float64),
            self.facts.graph.vertices[writer],
        )
        if vertex.kind is Kind.PART and vertex.part is not None:
            whole = torch.zeros(self._width(vertex.carried[0], heads=False), dtype=torch.float64)
            whole[torch.tensor(vertex.part)] = some
            source = self.facts.streams[self.facts.stream_of[vertex.carried[0]]]
            return sum((self._grown(before, whole) for before in source.writers), found)
        for line, values in self._lines(vertex, writes=True):
            if len(line) == len(some):
                found[line] = some * values
        stream = self.facts.streams[self.facts.stream_of[writer]]
        for member in sorted(stream.members):
            for slot in self._biases(self.facts.graph.vertices[member]):
                places = self._coordinates(slot)
                if len(places) == len(some):
                    found[places] = some * self._values(slot)
        return found

    def _is_in_parts(self, norm: int) -> bool:
        """True for a norm of a part of the features, as one head is."""
        region, vertex = self.facts.regions[norm], self.facts.graph.vertices.get(norm)
        if not region.shape.is_norm or vertex is None:
            return False
        source = self.facts.streams[self.facts.stream_of[vertex.carried[0]]]
        kinds = {self.facts.graph.vertices[writer].kind for writer in source.writers}
        return kinds == {Kind.PART}

    def sizes(self, sites: Iterable[Site]) -> dict[str, Tensor]:
        """A place of every stream that norms read -> the direction in which all of it grows.

        Its writers grow, and what reads it besides norms shrinks; norms do not see it, but for the
        epsilon under their root. Streams that share a weight grow together.
        """
        facts = self.facts
        names: dict[int, str] = {}
        for site in sites:
            vertex = facts.vertex(site)
            if vertex is not None:
                names.setdefault(facts.stream_of[vertex.node], site.name)
        known: list[_Growing] = []
        for number, stream in enumerate(facts.streams):
            norms = {r for r in stream.readers if facts.regions.get(r, NOTHING).shape.is_norm}
            grown = {} if stream.returned else self._growth(stream, norms)
            if number in names and grown:
                known = _united(known, _Growing(names[number] if norms else "", grown))
        found: dict[str, Tensor] = {}
        for one in known:
            if one.name:
                steps = torch.tensor([*one.steps.values()], dtype=torch.float64)
                found[one.name] = self._direction(torch.tensor([*one.steps]), steps)
        return found

    def _growth(self, stream: Stream, norms: set[int]) -> dict[int, float]:
        """Number of a parameter -> by how much it grows with a stream; {} if that is unknown."""
        regions = self.facts.regions
        ends = [(end, 1.0) for end in (*stream.writers, *sorted(stream.members))]
        ends += [(end, -1.0) for end in stream.readers if end not in norms]
        found: dict[int, float] = {}
        for end, sign in dict.fromkeys(ends):
            vertex = self.facts.graph.vertices[end]
            slots = [*self._biases(vertex)] if sign > 0 else []
            try:
                if vertex.kind in _MAPS:
                    slots.append(self.action.matrix_of(vertex)[0])
                elif regions.get(end, NOTHING).shape in (Shape.SCALE, Shape.SHIFT):
                    pass
                elif vertex.kind is Kind.REGION and sign > 0:
                    slots.clear()
                    for slot, step in self.action.growth_of(end):
                        found |= zip(self._coordinates(slot).tolist(), step.tolist(), strict=True)
                elif vertex.kind not in (Kind.SUM, Kind.CARRIER):
                    return {}
            except (WeightError, ValueError):
                return {}
            for slot in slots:
                steps = (sign * self._values(slot)).tolist()
                found |= zip(self._coordinates(slot).tolist(), steps, strict=False)
        return found

    # --- where the numbers lie --------------------------------------------------------------------

    def _width(self, vertex: int, *, heads: bool = True) -> int:
        """How many features there are at a vertex, or in a head where a norm reads heads."""
        vertices = self.facts.graph.vertices
        while vertices[vertex].op in ("chunk", "split"):
            # Its shape is that of the first piece.
            vertex = vertices[vertex].carried[0]
        layout, shape = self.facts.graph.layouts.get(vertex), self._shape(vertex)
        if layout is None:
            return 0
        if heads and self.facts.regions.get(vertex, NOTHING).within:
            return shape[layout.axes[-1]]
        return torch.Size(shape[axis] for axis in layout.axes).numel()

    def _shape(self, vertex: int) -> tuple[int, ...]:
        return self.facts.graph.trace.node(vertex).shape

    def _values(self, slot: Slot) -> Tensor:
        return self.weights.get(slot).flatten().cpu()

    def _lines(self, vertex: Vertex, *, writes: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """Where the numbers of a map lie along its outputs or inputs, one line after another."""
        if vertex.kind not in _MAPS:
            return
        try:
            slot, outputs, inputs = self.action.matrix_of(vertex)
        except WeightError:
            return
        shape = self.weights.shape(slot.name)
        if slot.entries is not None:
            shape = slot.entries.shape
        axis = outputs if writes else inputs
        places, values = (
            flat.reshape(shape).movedim(axis, -1).flatten(0, -2)
            for flat in (self._coordinates(slot), self._values(slot))
        )
        yield from zip(places, values, strict=True)

    def _slot_of_table(self, node: Node) -> Slot | None:
        try:
            return self.action.slots.slot(node, next(fixed_in((node.args, node.kwargs)), None))
        except WeightError:
            return None

    def _coordinates(self, slot: Slot) -> Tensor:
        where = self.places.get(slot.name)
        if where is None:
            return torch.zeros(0, dtype=torch.long)
        if slot.entries is None:
            return torch.arange(where.start, where.stop)
        return where.start + slot.entries.flatten().cpu()

    def _direction(self, places: Tensor, values: Tensor | None = None) -> Tensor:
        found = torch.zeros(self.count, dtype=torch.float64)
        found[places] = 1.0 if values is None else values.double().cpu()
        return found


def _heads(width: int, size: int) -> Iterator[Tensor]:
    """Ones for each head in turn, [width]; for all features where there is one head."""
    if size and width % size == 0:
        for start in range(0, width, size):
            found = torch.zeros(width, dtype=torch.float64)
            found[start : start + size] = 1.0
            yield found


@dataclasses.dataclass(frozen=True)
class _Growing:
    """A place of a stream that norms read, "" for others; number of a parameter -> its step."""

    name: str
    steps: dict[int, float]


def _united(known: list[_Growing], new: _Growing) -> list[_Growing]:
    """The streams that grow, with one more, which joins those whose weights it shares."""
    apart: list[_Growing] = []
    for other in known:
        shared = other.steps.keys() & new.steps.keys()
        if shared and all(other.steps[place] == new.steps[place] for place in shared):
            new = _Growing(other.name or new.name, {**other.steps, **new.steps})
        else:
            apart.append(other)
    return [*apart, new]
