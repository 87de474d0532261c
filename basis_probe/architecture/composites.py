"""What one map writes side by side, and what reads it part by part, each in a way of its own."""

import dataclasses
import itertools
import math
from collections.abc import Callable

from basis_probe.algebra.groups import Blocks, DirectSum, Group, Trivial, Unknown
from basis_probe.model.facts import Facts
from basis_probe.model.graph import Kind


@dataclasses.dataclass(frozen=True)
class Composite:
    """A tensor of linear maps that falls into parts, each with a group of its own.

    Attributes:
        streams: of the parts, in the order of their features.
        groups: of each of them.
        heads: how many heads stand behind one another, each with its piece of every part; 0 where
            every part stands in one piece.
        copies: how many of them are copies of one.
    """

    streams: tuple[int, ...]
    groups: tuple[Group, ...]
    heads: int = 0
    copies: int = 1

    @property
    def group(self) -> Group:
        """The group of the whole: every part by itself."""
        if not self.heads:
            return DirectSum(self.groups)
        return Blocks(DirectSum(self._inner), self.heads // self.copies, self.copies, "kept")

    @property
    def free(self) -> tuple[bool, ...]:
        """For each part whether it changes inside of each head by itself."""
        return tuple(
            isinstance(group, Blocks)
            and group.copies == self.copies
            and (group.count == 1 or not group.alike)
            for group in self.groups
        )

    @property
    def _inner(self) -> tuple[Group, ...]:
        """What each part leaves free inside of a head; nothing where heads change alike."""
        return tuple(
            group.inner if free and isinstance(group, Blocks) else Trivial(group.dim // self.heads)
            for group, free in zip(self.groups, self.free, strict=True)
        )

    def said(self) -> str:
        """Why it has its group."""
        where = "inside each head " if self.heads else ""
        groups = self._inner if self.heads else self.groups
        alike = (
            "; what changes alike in all heads is left out"
            if any(isinstance(group, Trivial) for group in groups)
            else ""
        )
        return (
            f"linear maps write it, and {where}its {len(self.groups)} parts are read one by one, "
            f"each in its own way: they change independently of each other "
            f"({', '.join(group.name for group in groups)}{alike})."
        )


class Composites:
    """The tensors of a model that fall into parts.

    Args:
        facts: what was seen of the model.
        group_at: the group of the stream that a vertex writes; None if it is not understood.
        companions: the streams that change where a stream does, itself included.
        is_link: True for a vertex before and behind which axes change together.
        is_free: True for the part of a tensor that linear maps alone write.
    """

    def __init__(
        self,
        facts: Facts,
        *,
        group_at: Callable[[int], Group | None],
        companions: Callable[[int], frozenset[int]],
        is_link: Callable[[int], bool],
        is_free: Callable[[int], bool],
    ) -> None:
        self.facts, self.group_at, self.companions = facts, group_at, companions
        self.is_link, self.is_free = is_link, is_free
        self._found: dict[int, Composite | None] = {}

    def of(self, index: int) -> Composite | None:
        """The parts of a stream; None if it has none, or they do not change by themselves."""
        if index not in self._found:
            self._found[index] = None  # A part that is asked for the whole is none.
            self._found[index] = self._composite(index)
        return self._found[index]

    def _composite(self, index: int) -> Composite | None:
        vertices, stream = self.facts.graph.vertices, self.facts.streams[index]
        if stream.returned or len(stream.readers) < 2:
            return None
        parts: list[tuple[tuple[int, ...], int]] = []
        for reader in stream.readers:
            part = vertices[reader].part
            if vertices[reader].kind is not Kind.PART or part is None or self.is_link(reader):
                return None
            parts.append((part, reader))
        if not self.is_free(stream.readers[0]):
            return None
        parts.sort()
        taken = sorted(feature for features, _ in parts for feature in features)
        # What is left out must be known, too.
        if taken != list(range(max(map(self._width, stream.members)))):
            return None
        streams = tuple(self.facts.stream_of[reader] for _, reader in parts)
        around = [self.companions(stream) for stream in streams]
        if any(one & other for one, other in itertools.combinations(around, 2)):
            return None
        groups = [self.group_at(reader) for _, reader in parts]
        if any(group is None or isinstance(group, Unknown) for group in groups):
            return None
        known = tuple(group for group in groups if group is not None)
        pieces = [_pieces(features) for features, _ in parts]
        if all(len(several) == 1 for several in pieces):
            return Composite(streams, known)
        return self._in_heads(streams, known, pieces)

    def _width(self, index: int) -> int:
        """How many features a vertex has; 0 where that is not known."""
        layout = self.facts.graph.layouts.get(index)
        shape = self.facts.graph.trace.node(index).shape
        if layout is None or max(layout.axes) >= len(shape):
            return 0
        return math.prod(shape[axis] for axis in layout.axes)

    def _in_heads(
        self, streams: tuple[int, ...], groups: tuple[Group, ...], pieces: list[list[range]]
    ) -> Composite | None:
        """Parts of which every head has a piece, the heads behind one another."""
        heads = len(pieces[0])
        if {len(several) for several in pieces} != {heads}:
            return None
        order = [piece for head in zip(*pieces, strict=True) for piece in head]
        if any(one.stop != two.start for one, two in itertools.pairwise(order)):
            return None
        blocks = [group for group in groups if isinstance(group, Blocks)]
        sizes = [len(several[0]) for several in pieces]
        fits = all(group.count * group.copies == heads for group in blocks)
        if len(blocks) < len(groups) or not fits or [g.inner.dim for g in blocks] != sizes:
            return None
        return Composite(streams, groups, heads, min(group.copies for group in blocks))


def _pieces(features: tuple[int, ...]) -> list[range]:
    """Runs of neighbouring features."""
    found: list[range] = []
    for feature in features:
        if found and found[-1].stop == feature:
            found[-1] = range(found[-1].start, feature + 1)
        else:
            found.append(range(feature, feature + 1))
    return found
