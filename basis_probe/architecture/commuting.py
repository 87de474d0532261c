"""Streams that maps join which let more pass than an order of axes.

A norm without a gain commutes with every rotation of its geometry, and batch normalisation in
evaluation is a diagonal affine map, which any invertible map passes once its factors are folded
into the linear maps around it. Where nothing else keeps the axes of the streams that such maps
join, all of these streams change together, and none of them has axes.
"""

from collections.abc import Callable, Iterator
from typing import Literal

from torch import Tensor

from basis_probe.model.facts import Facts, Region, Shape, Stream, keeps_statistics, vectors_of
from basis_probe.model.graph import Kind, norm_argument
from basis_probe.model.trace import Fixed

Passing = Literal["norm", "affine"]

_NOTHING = Region(Shape.UNKNOWN)
_WRITERS = (Kind.LINEAR, Kind.CONVOLUTION, Kind.EMBEDDING)
_IN_GROUPS = (Kind.GROUPED, Kind.DEPTHWISE)


class Commuting:
    """Which streams are joined by maps that let more pass than an order of axes.

    Args:
        facts: what was seen of the model.
        keeps_axes: says of any other vertex whether the axes around it belong together.
        is_folded: says of a norm whether linear maps alone read it.
        is_attended: says of a stream whether it holds queries or keys.
        is_tied: says of a stream whether weights around it are used elsewhere too.
        is_map: says of a vertex whether it reads whole features as a linear map does.
    """

    def __init__(
        self,
        facts: Facts,
        *,
        keeps_axes: Callable[[int], bool],
        is_folded: Callable[[int], bool],
        is_attended: Callable[[int], bool],
        is_tied: Callable[[int], bool],
        is_map: Callable[[int], bool],
    ) -> None:
        self.facts = facts
        self._keeps_axes = keeps_axes
        self._is_folded = is_folded
        self._is_attended = is_attended
        self._is_tied, self._is_map = is_tied, is_map
        self._kinds: dict[int, Passing | None] = {}
        self._streams: dict[int, frozenset[int]] = {}
        self._on_axes: dict[frozenset[int], bool] = {}
        self._free: dict[frozenset[int], bool] = {}
        self._users: dict[int, set[int]] | None = None

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
            self._on_axes[streams] = (
                len(kinds) > 1
                or any(self._is_kept(stream) for stream in members)
                or (
                    kinds == {"norm"}
                    and any(
                        stream.value_mixed or self._is_attended(number)
                        for number, stream in zip(streams, members, strict=True)
                    )
                )
                or (
                    kinds == {"affine"}
                    and not (self._is_free(streams) or self._write_one(self.maps(index)))
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
            maps = self.maps(next(iter(streams)))
            self._free[streams] = (
                # Around a circle of batch normalisations only orders and scales pass.
                len(maps) < len(streams)
                and self._have_own_gains(maps)
                and not any(
                    self.facts.streams[s].value_mixed or self._is_attended(s) or self._is_tied(s)
                    for s in streams
                )
                and all(
                    self.kind(v) == "affine" or self.facts.graph.vertices[v].kind in _WRITERS
                    for s in streams
                    for v in self.facts.streams[s].writers
                )
                and all(
                    self.kind(v) == "affine" or self._is_map(v)
                    for s in streams
                    for v in self.facts.streams[s].readers
                )
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

    def _write_one(self, maps: list[int]) -> bool:
        """True if all such maps write one stream, each from features that nothing else reads.

        Their gains then fold into the linear maps that write those.
        """
        facts = self.facts
        targets = {self.ends(vertex)[1] for vertex in maps}
        if len(targets) != 1 or not self._have_own_gains(maps):
            return False
        (target,) = targets
        touching = (*facts.streams[target].writers, *facts.streams[target].readers)
        if any(facts.graph.vertices[vertex].kind in _IN_GROUPS for vertex in touching):
            return False
        sources = [self.ends(vertex)[0] for vertex in maps]
        return not any(self._is_tied(stream) for stream in (target, *sources)) and all(
            facts.streams[source].readers == (vertex,) and source != target
            for vertex, source in zip(maps, sources, strict=True)
        )

    def _have_own_gains(self, maps: list[int]) -> bool:
        """True if no gain is zero, and none serves features that change in different ways."""
        return not any(
            len(self._served(value)) > 1
            or (name == "weight" and bool((self._now(value) == 0).any()))
            for vertex in maps
            for name, value in self._gains(vertex)
        )

    def _gains(self, vertex: int) -> Iterator[tuple[str, Fixed]]:
        node = self.facts.graph.trace.node(vertex)
        for name in ("weight", "running_var"):
            value = norm_argument(node, name)
            if isinstance(value, Fixed):
                yield name, value

    def _now(self, value: Fixed) -> Tensor:
        """The numbers with which a parameter counts."""
        return self.facts.graph.trace.instead.get(id(value.tensor), value.tensor)

    def _served(self, value: Fixed) -> set[int]:
        """The streams that a gain, or a kept variance, is used to write."""
        if self._users is None:
            self._users = {}
            for vertex in self.facts.graph.vertices:
                for _, gain in self._gains(vertex) if is_affine(self.facts, vertex) else ():
                    users = self._users.setdefault(id(gain.tensor), set())
                    users.add(self.facts.stream_of[vertex])
        return self._users.get(id(value.tensor), set())


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
