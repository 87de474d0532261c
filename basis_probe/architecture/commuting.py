"""Streams that maps join which let more pass than an order of axes.

A norm without a gain commutes with every rotation of its geometry, and batch normalisation in
evaluation is a diagonal affine map, which any invertible map passes once its factors are folded
into the linear maps around it. Where nothing else keeps the axes of the streams that such maps
join, all of these streams change together, and none of them has axes.
"""

from collections.abc import Callable
from typing import Literal

from basis_probe.model.facts import Facts, Region, Shape, Stream, keeps_statistics, vectors_of
from basis_probe.model.graph import Kind

Passing = Literal["norm", "affine"]

_NOTHING = Region(Shape.UNKNOWN)


class Commuting:
    """Which streams are joined by maps that let more pass than an order of axes.

    Args:
        facts: what was seen of the model.
        keeps_axes: says of any other vertex whether the axes around it belong together.
        is_folded: says of a norm whether linear maps alone read it.
        is_attended: says of a stream whether it holds queries or keys.
        is_transposed: says of a stream whether one matrix both writes it and reads it.
    """

    def __init__(
        self,
        facts: Facts,
        *,
        keeps_axes: Callable[[int], bool],
        is_folded: Callable[[int], bool],
        is_attended: Callable[[int], bool],
        is_transposed: Callable[[int], bool],
    ) -> None:
        self.facts = facts
        self._keeps_axes = keeps_axes
        self._is_folded = is_folded
        self._is_attended = is_attended
        self._is_transposed = is_transposed
        self._kinds: dict[int, Passing | None] = {}
        self._streams: dict[int, frozenset[int]] = {}
        self._on_axes: dict[frozenset[int], bool] = {}
        self._free: dict[frozenset[int], bool] = {}

    def kind(self, vertex: int) -> Passing | None:
        """What lets more than an order of axes pass at a vertex; None if nothing does."""
        if vertex not in self._kinds:
            found: Passing | None = None
            if is_plain(self.facts, vertex) and not self.facts.regions[vertex].within:
                found = None if self._is_folded(vertex) else "norm"
            elif is_affine(self.facts, vertex):
                found = "affine"
            self._kinds[vertex] = found
        return self._kinds[vertex]

    def streams(self, index: int) -> frozenset[int]:
        """A stream with all that such maps join to it."""
        if index not in self._streams:
            found, waiting = set[int](), [index]
            while waiting:
                here = waiting.pop()
                if here not in found:
                    found.add(here)
                    for vertex in self._passing(here):
                        waiting += self.ends(vertex)
            self._streams |= dict.fromkeys(found, frozenset(found))
        return self._streams[index]

    def ends(self, vertex: int) -> tuple[int, int]:
        """The streams before and behind such a map."""
        source = self.facts.graph.vertices[vertex].carried[0]
        return self.facts.stream_of[source], self.facts.stream_of[vertex]

    def maps(self, index: int) -> list[int]:
        """The maps that join a stream to others, and those to theirs, in forward order."""
        return sorted({v for stream in self.streams(index) for v in self._passing(stream)})

    def on_axes(self, index: int) -> bool:
        """True if something besides such maps keeps the axes of the streams that they join."""
        streams = self.streams(index)
        if streams not in self._on_axes:
            kinds = {self.kind(vertex) for vertex in self.maps(index)}
            members = [self.facts.streams[stream] for stream in streams]
            # Around a circle of batch normalisations only orders and scales pass.
            circle = kinds == {"affine"} and len(self.maps(index)) >= len(streams)
            self._on_axes[streams] = (
                circle
                or len(kinds) > 1
                or any(self._is_kept(stream) for stream in members)
                or (
                    kinds == {"norm"}
                    and any(
                        stream.value_mixed or self._is_attended(number)
                        for number, stream in zip(streams, members, strict=True)
                    )
                )
            )
        return self._on_axes[streams]

    def joined(self, index: int) -> Passing | None:
        """What joins the streams that change together with one; None if it stands for itself."""
        maps = self.maps(index)
        if not maps or self.on_axes(index):
            return None
        kind = self.kind(maps[0])
        return None if kind == "affine" and not self._is_free(self.streams(index)) else kind

    def _is_free(self, streams: frozenset[int]) -> bool:
        """True if every invertible map passes streams that batch normalisation joins."""
        if streams not in self._free:
            regions = self.facts.regions
            vertices = [
                vertex
                for stream in streams
                for vertex in (*self.facts.streams[stream].writers, *self._readers(stream))
            ]
            self._free[streams] = (
                not any(
                    self.facts.streams[s].value_mixed
                    or self._is_attended(s)
                    or self._is_transposed(s)
                    for s in streams
                )
                and all(
                    self.kind(v) == "affine"
                    or self.facts.graph.vertices[v].kind
                    in (Kind.LINEAR, Kind.CONVOLUTION, Kind.EMBEDDING)
                    for v in vertices
                )
                and not any(v in regions for v in vertices)
            )
        return self._free[streams]

    def _is_kept(self, stream: Stream) -> bool:
        graph = self.facts.graph
        given = any(graph.vertices[writer].kind is Kind.INPUT for writer in stream.writers)
        return (
            given
            or stream.returned
            or stream.max_pooled
            or any(
                self.kind(vertex) is None and self._keeps_axes(vertex)
                for vertex in (*stream.writers, *stream.readers)
            )
        )

    def _passing(self, index: int) -> list[int]:
        stream = self.facts.streams[index]
        return [v for v in (*stream.writers, *stream.readers) if self.kind(v) is not None]

    def _readers(self, index: int) -> tuple[int, ...]:
        return self.facts.streams[index].readers


def is_plain(facts: Facts, vertex: int) -> bool:
    """True for a norm with one number for all features in place of a gain, and no bias."""
    region = facts.regions.get(vertex, _NOTHING)
    gain, bias = region.gain, region.bias
    return (
        region.shape.is_norm
        and gain is not None
        and bias is not None
        and not any(True for _ in vectors_of(facts.graph, facts.graph.vertices[vertex]))
        and float((gain - gain[0]).abs().max()) <= 1e-4 * float(gain.abs().max())
        and float(bias.abs().max()) == 0.0
    )


def is_affine(facts: Facts, vertex: int) -> bool:
    """True for batch normalisation in evaluation, which uses the statistics that it keeps."""
    node = facts.graph.trace.node(vertex)
    kind = facts.graph.vertices[vertex].kind
    return kind is Kind.BATCH_NORM and node.op == "batch_norm" and keeps_statistics(node)
