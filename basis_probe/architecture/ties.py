"""Streams that one matrix reads, or writes, in several places: they change together."""

import dataclasses

from basis_probe.model.facts import Facts, shared
from basis_probe.model.graph import Kind


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


def ties_of(facts: Facts) -> dict[int, tuple[Tie, ...]]:
    """Stream -> its ties to others, and to itself by a transpose."""
    found: dict[int, list[Tie]] = {}
    stream_of = facts.stream_of

    def tie(a: int, b: int, transposed: bool) -> None:
        if stream_of[a] != stream_of[b] or transposed:
            found.setdefault(stream_of[a], []).append(Tie(a, b, stream_of[b], transposed))
            found.setdefault(stream_of[b], []).append(Tie(b, a, stream_of[a], transposed))

    layouts, vertices = facts.graph.layouts, facts.graph.vertices
    for first, second, transposed in shared(facts):
        # An embedding writes, and reads no features.
        a, b = (next(iter(vertices[v].used), None) for v in (first, second))
        if not transposed:
            tie(first, second, False)
            if a is not None and b is not None:
                tie(a, b, False)
            continue
        for read, written in ((b, first), (a, second)):
            if read is not None and layouts.get(read) is not None:
                tie(written, read, True)
    for stream in facts.streams:
        parts: dict[tuple[int, ...], int] = {}
        for reader in stream.readers:
            vertex = facts.graph.vertices[reader]
            if vertex.kind is Kind.PART and vertex.part is not None:
                # What takes the same part of a tensor twice is written by the same rows.
                tie(parts.setdefault(vertex.part, reader), reader, False)
    return {stream: tuple(dict.fromkeys(ties)) for stream, ties in found.items()}


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
