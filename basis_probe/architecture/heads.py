"""Queries, keys and values: what attention leaves free in its heads."""

import dataclasses
import math
from collections.abc import Callable
from typing import Literal

from basis_probe.algebra.groups import (
    Blocks,
    DirectSum,
    GeneralLinear,
    Group,
    LineRotations,
    Monomial,
    Orthogonal,
    Permutation,
    PlaneRotations,
    Planes,
    PositiveMonomial,
    QuarterTurns,
    SignedPermutation,
    SignedPlanes,
    Trivial,
)
from basis_probe.algebra.intertwiner import Intertwiner
from basis_probe.architecture.claims import ALGEBRA, NOTHING, NotUnderstood
from basis_probe.architecture.commuting import is_plain
from basis_probe.model.attention import Attention, Side
from basis_probe.model.facts import Facts, Shape, Stream
from basis_probe.model.graph import Kind, Vertex

# What passes rotary embedding and a norm without a gain: in the planes that turn, and beside them.
_NORMED_PLANES = PlaneRotations, Orthogonal


@dataclasses.dataclass(frozen=True)
class Gated:
    """Values that a gate of their own multiplies behind attention, feature by feature.

    Attributes:
        values: their stream.
        before: the stream of linear maps that the gate's function reads.
        gate: the stream of the gate.
        product: the stream of what linear maps read.
    """

    values: int
    before: int
    gate: int
    product: int


class Heads:
    """The groups of queries, keys and values.

    Args:
        facts: what was seen of the model.
        require_understood: raises `NotUnderstood` for a stream that no rule covers.
        intertwiner: vertex -> the intertwiner group of a function of single features.
        tied_to: stream -> streams that one matrix binds to it, and whether it is transposed there.
        norm_readers: the norms that read a stream.
        is_link: True for a vertex before and behind which axes change together.
        is_fixed: True for a stream whose axes are given.
        is_transposed: True for a stream that one matrix writes and, transposed, reads.
        permuting: True for a stream that a function of single features touches.
    """

    def __init__(
        self,
        facts: Facts,
        *,
        require_understood: Callable[[Stream], None],
        intertwiner: Callable[[int], Intertwiner],
        tied_to: Callable[[int], dict[int, set[bool]]],
        norm_readers: Callable[[Stream], list[int]],
        is_link: Callable[[int], bool],
        is_fixed: Callable[[Stream], bool],
        is_transposed: Callable[[int], bool],
        permuting: Callable[[int], bool],
    ) -> None:
        self.facts = facts
        self.require_understood, self.intertwiner = require_understood, intertwiner
        self.tied_to, self.norm_readers = tied_to, norm_readers
        self.is_link, self.is_fixed = is_link, is_fixed
        self.is_transposed, self.permuting = is_transposed, permuting
        self.meetings: dict[int, list[tuple[Attention, Side]]] = {}
        self.normed: dict[int, tuple[Attention, Side]] = {}
        self.bent: dict[int, tuple[Attention, Side]] = {}
        inside: set[int] = set()
        for attention in (part for whole in facts.attentions for part in whole.each):
            for side in (attention.query, attention.key):
                if isinstance(side, Side):
                    inside |= side.inside | {attention.vertex}
                    for vertex in dict.fromkeys((side.source, side.end)):
                        stream = facts.stream_of[vertex]
                        known = self.meetings.setdefault(stream, [])
                        if (attention, side) not in known:
                            known.append((attention, side))
                    if facts.regions.get(side.source, NOTHING).shape.is_norm:
                        self.normed[side.source] = (attention, side)
                    for bend in self.bends(side):
                        self.bent[bend] = (attention, side)
        self.inside = frozenset(inside)
        self._gated_known: dict[int, Gated | None] = {}

    def attention_before(self, index: int) -> Attention | None:
        """The attention whose queries or keys a stream holds, or will hold behind a norm."""
        if index in self.meetings:
            return self.meetings[index][0][0]
        for reader in self.facts.streams[index].readers:
            if reader in self.normed:
                return self.normed[reader][0]
        return None

    # --- attention ------------------------------------------------------------------------------

    def queries(self, index: int, vertex: Vertex, dim: int) -> tuple[Group, str, str]:
        """Queries or keys: what commutes with what positions do to them."""
        if len(self.meetings[index]) != 1:
            raise NotUnderstood("it is read by several attentions, or as queries and keys at once")
        attention, side = self.meetings[index][0]
        if attention.why:
            raise NotUnderstood(attention.why)
        assert isinstance(attention.query, Side) and isinstance(attention.key, Side)
        # What queries take is taken out of keys, and the other way round.
        for one in (side, attention.query, attention.key):
            if problem := self._side_problem(one):
                raise NotUnderstood(problem)
        if attention.query.turned != attention.key.turned or (
            attention.query.size != attention.key.size
        ):
            raise NotUnderstood("positions turn queries and keys in different ways")
        if side.source in self.normed:
            raise NotUnderstood(
                "it is the output of a norm, whose gain leaves only some turns of the planes free"
            )
        if any(other.source in self.normed for other in (attention.query, attention.key)):
            raise NotUnderstood("only one of queries and keys is read through a norm")
        if attention.query.normed != attention.key.normed:
            raise NotUnderstood("only one of queries and keys is divided by its length")
        alike = self._are_alike(attention.query, attention.key)
        if alike and side.turned is not None:
            raise NotUnderstood("one projection writes queries and keys, which positions turn")
        count, copies = attention.key.heads, dim // (attention.key.heads * side.size)
        if count * copies * side.size != dim:
            raise NotUnderstood(f"{dim} features do not divide into {count} heads")
        turned = side.turned
        if turned is None:
            inner: Group = GeneralLinear(side.size)
            freedom = f"any invertible {side.size} x {side.size} matrix"
            why = "queries and keys meet in a product that no position changes"
            if alike:
                inner = Orthogonal(side.size)
                freedom = "any rotation"
                why += ", and one projection writes both"
        else:
            normed = side.normed
            inner = _around(side, *(_NORMED_PLANES if normed else (Planes, GeneralLinear)))
            where = "(i, i + n/2)" if turned.pairing == "half" else "(2i, 2i + 1)"
            freedom = f"a turn{'' if normed else ' and a scale'} of every plane {where} of its axes"
            if turned.last - turned.first < side.size:
                rest = "rotation of" if normed else "invertible matrix on"
                freedom += f" {turned.first} to {turned.last - 1}, any {rest} the rest"
            why = "rotary position embedding turns these planes, each at a pace of its own"
        group = Blocks(inner, count, copies, self._order(attention))
        because = (
            f"{why}: a head absorbs {freedom}, its keys by the inverse transpose of what its "
            f"queries do{self._said_of_order(attention)}."
        )
        return group, because, ALGEBRA

    def _are_alike(self, query: Side, key: Side) -> bool:
        """True if queries and keys change by the same, as one matrix writes both."""
        one, other = (self.facts.stream_of[side.source] for side in (query, key))
        return one == other or False in self.tied_to(one).get(other, ())

    def bends(self, side: Side) -> list[int]:
        """The functions of single features that lie before where queries or keys are seen."""
        found: list[int] = []
        here = side.source
        while self.facts.regions.get(here, NOTHING).shape is Shape.ELEMENTWISE:
            found.append(here)
            here = self.facts.graph.vertices[here].carried[0]
        return found

    def bend_of(self, index: int) -> int | None:
        """The function of single features through which a stream of queries or keys is read."""
        stream = self.facts.streams[index]
        touching = (*stream.writers, *stream.readers)
        # Behind a turn by position too, where nothing that bends touches it.
        before = [bend for _, side in self.meetings.get(index, ()) for bend in self.bends(side)]
        return next((vertex for vertex in (*touching, *before) if vertex in self.bent), None)

    def bent_queries(self, index: int, bend: int, dim: int) -> tuple[Group, str, str]:
        """Queries or keys that a function bends, feature by feature, before they meet."""
        attention, side = self.bent[bend]
        self.require_understood(self.facts.streams[index])
        for problem in (attention.why, self._side_problem(side)):
            if problem:
                raise NotUnderstood(problem)
        assert isinstance(attention.query, Side) and isinstance(attention.key, Side)
        both = (attention.query, attention.key)
        if any(s.source not in self.bent for s in both):
            raise NotUnderstood("only one of queries and keys is bent")
        if attention.query.turned != attention.key.turned:
            raise NotUnderstood("positions turn queries and keys in different ways")
        for step in self.bends(side):
            before = self.facts.graph.vertices[step].carried[0]
            own = self.facts.streams[self.facts.stream_of[before]]
            self.require_understood(own)
            if own.readers != (step,) or own.value_mixed or self.is_fixed(own):
                raise NotUnderstood("queries or keys are read before they are bent")
        copies = dim // (attention.key.heads * side.size)
        op = self.facts.regions[bend].op
        odd = all(self.is_odd(step) for one in both for step in self.bends(one))
        rest: Callable[[int], Group] = SignedPermutation if odd else Permutation
        what = "change places and sign alike" if odd else "change places alike"
        if side.turned is None:
            inner = rest(side.size)
            how = f"inside a head the features of both {what}"
        else:
            inner = _around(side, QuarterTurns if odd else _still, rest)
            how = "rotary position embedding turns planes of a head" + (
                ", which right angles of both commute with" if odd else ", whose axes stay"
            )
            if side.turned.last - side.turned.first < side.size:
                how += f"; the other features of both {what}"
        because = (
            f"{op} bends queries and keys feature by feature before they meet: {how}"
            f"{self._said_of_order(attention)}."
        )
        group = Blocks(inner, attention.key.heads, copies, self._order(attention))
        return group, because, ALGEBRA

    def is_odd(self, bend: int) -> bool:
        """True if what a function of single features makes of -x is minus what it makes of x."""
        intertwiner = self.intertwiner(bend)
        signs = isinstance(intertwiner.group, SignedPermutation | Monomial)
        return signs and intertwiner.parity == -1

    def bent_values(self, index: int) -> tuple[int, int, int] | None:
        """The function, or the norm, through which attention reads values, and what is around it.

        None for a stream of other things; else the function, the stream of linear maps before it,
        and the stream of the values behind it.
        """
        streams, stream_of = self.facts.streams, self.facts.stream_of
        candidates = [index] if streams[index].value_mixed else []
        candidates += [stream_of[reader] for reader in streams[index].readers]
        for behind in candidates:
            if not streams[behind].value_mixed or len(streams[behind].writers) != 1:
                continue
            (bend,) = streams[behind].writers
            shape = self.facts.regions.get(bend, NOTHING).shape
            norms = shape is Shape.RMS_NORM and self.is_gainless(bend)
            if shape is not Shape.ELEMENTWISE and not norms:
                continue
            if any(self.is_link(reader) for reader in streams[behind].readers):
                continue
            before = stream_of[self.facts.graph.vertices[bend].carried[0]]
            if index in (before, behind) and streams[before].readers == (bend,):
                return bend, before, behind
        return None

    def bent_heads(self, found: tuple[int, int, int], dim: int) -> tuple[Group, str, str]:
        """Values that a function bends, feature by feature, before attention mixes positions."""
        bend, *both = found
        streams = [self.facts.streams[index] for index in both]
        for stream in streams:
            self.require_understood(stream)
            if self.is_fixed(stream) or stream.max_pooled:
                raise NotUnderstood("attention reads values that a nonlinearity has touched")
        read = {self.facts.graph.vertices[reader].kind for reader in streams[1].readers}
        if not (self._is_mapped(streams[0]) and read <= {Kind.LINEAR, Kind.CONVOLUTION}):
            raise NotUnderstood("not only linear maps write and read values that are bent")
        attention = self._attention(streams[1])
        if attention is None:
            raise NotUnderstood("several attentions read these values")
        count, size = self._head_sizes(streams[1])
        copies = dim // (count * size)
        if count * size * copies != dim:
            raise NotUnderstood(f"{dim} features do not divide into heads of {size}")
        order = self._order(attention) if count > 1 else "free"
        if self.facts.regions[bend].shape is Shape.RMS_NORM:
            because = (
                "the values of every head are divided by their length before attention mixes "
                f"positions: each of the {count} heads absorbs any rotation"
                f"{self._said_of_order(attention)}."
            )
            return Blocks(Orthogonal(size), count, copies, order), because, ALGEBRA
        inner: Group = Permutation(size)
        what = "change places"
        intertwiner = self.intertwiner(bend)
        if isinstance(intertwiner.group, PositiveMonomial) and intertwiner.degree == 1:
            inner = PositiveMonomial(size)
            what = "change places and are multiplied by positive numbers"
        elif self.is_odd(bend):
            inner, what = SignedPermutation(size), "change places and sign"
        because = (
            f"{self.facts.regions[bend].op} bends the values feature by feature before attention "
            f"mixes positions: inside each of the {count} heads the features {what}"
            f"{self._said_of_order(attention)}."
        )
        return Blocks(inner, count, copies, order), because, ALGEBRA

    def gated_values(self, index: int) -> Gated | None:
        """What a gate multiplies behind attention, where a stream holds a part of that."""
        if index not in self._gated_known:
            self._gated_known[index] = self._gated_values(index)
        return self._gated_known[index]

    def _gated_values(self, index: int) -> Gated | None:
        streams, stream_of = self.facts.streams, self.facts.stream_of
        touching = (*streams[index].writers, *streams[index].readers)
        behind = [r for v in touching for r in streams[stream_of[v]].readers]
        for vertex in dict.fromkeys((*touching, *behind)):
            if self.facts.regions.get(vertex, NOTHING).shape is not Shape.PRODUCT:
                continue
            sources = [stream_of[s] for s in self.facts.graph.vertices[vertex].carried]
            if len(sources) != 2:
                continue
            for values, gate in (sources, sources[::-1]):
                found = self._gated(values, gate, vertex)
                if found is not None and index in dataclasses.astuple(found):
                    return found
        return None

    def _gated(self, values: int, gate: int, product: int) -> Gated | None:
        """The streams around the product of values and a gate; None if it is none."""
        streams, stream_of = self.facts.streams, self.facts.stream_of
        own, factor, made = streams[values], streams[gate], streams[stream_of[product]]
        if not own.value_mixed or own.readers != (product,) or factor.readers != (product,):
            return None
        if made.writers != (product,) or made.value_mixed or len(factor.writers) != 1:
            return None
        (function,) = factor.writers
        if self.facts.regions.get(function, NOTHING).shape is not Shape.ELEMENTWISE:
            return None
        before = stream_of[self.facts.graph.vertices[function].carried[0]]
        if streams[before].readers != (function,) or streams[before].value_mixed:
            return None
        vertices = self.facts.graph.vertices
        read = {vertices[reader].kind for reader in made.readers}
        mapped = self._is_mapped(own) and self._is_mapped(streams[before])
        if not mapped or not read <= {Kind.LINEAR, Kind.CONVOLUTION}:
            return None
        try:
            if not isinstance(self.intertwiner(function).group, Permutation):
                return None
        except ValueError:
            return None
        return Gated(values, before, gate, stream_of[product])

    def gated_heads(self, index: int, found: Gated, dim: int) -> tuple[Group, str, str]:
        """Values that a gate multiplies behind attention, and the gate."""
        streams = self.facts.streams
        for member in dataclasses.astuple(found):
            stream = streams[member]
            self.require_understood(stream)
            if self.is_fixed(stream) or stream.max_pooled:
                raise NotUnderstood("the values, their gate or their product are given or pooled")
        attention = self._attention(streams[found.values])
        if attention is None:
            raise NotUnderstood("several attentions read these values")
        count, size = self._head_sizes(streams[found.values])
        copies = dim // (count * size)
        if count * size * copies != dim:
            raise NotUnderstood(f"{dim} features do not divide into heads of {size}")
        gates = index in (found.before, found.gate)
        inner = Permutation(size) if gates else Monomial(size)
        what = "change places" if gates else "change places and take any scale"
        order = self._order(attention) if count > 1 else "free"
        because = (
            "behind attention a gate multiplies the values feature by feature: inside each of the "
            f"{count} heads the features {what}, those of the "
            f"{'values' if gates else 'gate'} with them{self._said_of_order(attention)}."
        )
        return Blocks(inner, count, copies, order), because, ALGEBRA

    def before_norm(self, stream: Stream, norms: list[int], dim: int) -> tuple[Group, str, str]:
        """Queries or keys before a norm of their own: what its gain leaves."""
        if len(norms) != 1 or set(stream.readers) != set(norms):
            raise NotUnderstood("queries or keys are read by a norm, and by something else")
        region = self.facts.regions[norms[0]]
        attention, side = self.normed[norms[0]]
        if attention.query == attention.key:
            raise NotUnderstood("one norm writes queries and keys")
        self.require_understood(stream)
        for problem in (attention.why, self._side_problem(side)):
            if problem:
                raise NotUnderstood(problem)
        assert isinstance(attention.query, Side) and isinstance(attention.key, Side)
        if any(other.source not in self.normed for other in (attention.query, attention.key)):
            raise NotUnderstood("only one of queries and keys is read through a norm")
        shapes = {self.facts.regions[s.source].shape for s in (attention.query, attention.key)}
        if len(shapes) > 1:
            raise NotUnderstood("queries and keys are read through norms of two kinds")
        layered = region.shape is Shape.LAYER_NORM
        if any(self.facts.regions[s.source].apart for s in (attention.query, attention.key)):
            return self._before_norm_of_heads(attention, side, dim, layered=layered)
        if self.is_gainless(norms[0]):
            if not all(self.is_gainless(s.source) for s in (attention.query, attention.key)):
                raise NotUnderstood("only one of queries and keys has a gain behind its norm")
            if layered and side.turned is not None:
                raise NotUnderstood("LayerNorm reads queries or keys that positions turn")
            copies = side.heads // attention.key.heads
            inner = LineRotations(side.size) if layered else Orthogonal(side.size)
            what = "any rotation" + " that keeps the all-ones direction" * layered
            if side.turned is not None:
                inner = _around(side, *_NORMED_PLANES)
                what = "the rotations that turn what rotary embedding turns plane by plane"
            because = (
                "only the directions of queries and keys count, as each is divided by its length: "
                f"a head absorbs {what}, its keys the same{self._said_of_order(attention)}."
            )
            group = Blocks(inner, attention.key.heads, copies, self._order(attention))
            return group, because, ALGEBRA
        if layered:
            # A mean over the features sees every sign, and so every turn of a plane.
            inner = Permutation(side.size)
            if side.turned is not None:
                inner = _around(side, lambda size, _: Trivial(size), Permutation)
            what = "permutations of what no position turns"
        elif side.turned is None:
            inner = SignedPermutation(side.size)
            what = "permutations and signs"
        else:
            inner = _around(side, SignedPlanes, SignedPermutation)
            what = "the symmetries of the square in every plane that rotary embedding turns"
        count = attention.key.heads
        if count * (copies := dim // (count * side.size)) * side.size != dim:
            raise NotUnderstood(f"{dim} features do not divide into {count} heads")
        group = Blocks(inner, count, copies, self._order(attention), alike=region.within)
        which = (
            "the same ones in every head, as one gain serves them all"
            if region.within
            else "in every head by themselves"
        )
        because = (
            f"{'LayerNorm' if layered else 'RMSNorm'} reads it with a generic gain, which leaves "
            f"{what}, {which}: of all rotations only "
            f"these turn a gain into a gain{self._said_of_order(attention)}."
        )
        return group, because, ALGEBRA

    def _before_norm_of_heads(
        self, attention: Attention, side: Side, dim: int, *, layered: bool
    ) -> tuple[Group, str, str]:
        """Queries or keys before a norm that has a gain of its own for every head."""
        assert isinstance(attention.key, Side)
        whole = side.turned is not None and side.turned.last - side.turned.first == side.size
        if not (layered and whole):
            raise NotUnderstood("a norm reads every head of it with a gain of that head's own")
        count = attention.key.heads
        copies = dim // (count * side.size)
        because = (
            "LayerNorm reads every head with a gain of that head's own, and rotary embedding turns "
            "all of its planes, each at a pace of its own: no change of basis is left but of the "
            "sign of a head and of what the norm does not see."
        )
        return Blocks(Trivial(side.size), count, copies, "kept"), because, ALGEBRA

    def is_gainless(self, norm: int) -> bool:
        """True if a norm inside heads has one number for all features in place of a gain."""
        return self.facts.regions.get(norm, NOTHING).within and is_plain(self.facts, norm)

    def _side_problem(self, side: Side) -> str:
        """What stands in the way of changing queries or keys; empty if nothing does."""
        stream = self.facts.streams[self.facts.stream_of[side.source]]
        try:
            self.require_understood(stream)
        except NotUnderstood as problem:
            return str(problem)
        vertices = self.facts.graph.vertices
        if any(vertices[member].kind is Kind.ATTENTION for member in stream.members):
            return "queries or keys are values too"
        if stream.returned or any(reader not in self.inside for reader in stream.readers):
            return "queries or keys are read by something besides the attention"
        index = self.facts.stream_of[side.source]
        if any(self.permuting(other) for other in self.tied_to(index) if other != index):
            return "what writes queries or keys writes, or reads, what a nonlinearity touches, too"
        return ""

    def _order(self, attention: Attention) -> Literal["free", "kept"]:
        return "kept" if self._kept(attention) else "free"

    def _kept(self, attention: Attention) -> str:
        """Why heads cannot change places; empty if they can."""
        if attention.apart:
            return attention.apart
        if not isinstance(attention.query, Side) or not isinstance(attention.key, Side):
            return attention.why
        for side in (attention.query, attention.key):
            problem = self._side_problem(side)
            if side.source in self.normed:
                before = self.facts.graph.vertices[side.source].carried[0]
                try:
                    self.require_understood(self.facts.streams[self.facts.stream_of[before]])
                except NotUnderstood as reason:
                    problem = str(reason)
            if any(self.facts.graph.vertices[v].by_head for v in side.inside):
                problem = "heads are multiplied by numbers of their own"
            if not problem and len(self.meetings[self.facts.stream_of[side.source]]) != 1:
                problem = "queries or keys are shared by several attentions"
            if problem:
                return problem
        number = self.facts.stream_of[attention.vertex]
        values = self.facts.streams[number]
        if self._are_tied(attention, number):
            return "one projection writes values and keys or queries"
        plain = self.bent_values(number) is None and self.gated_values(number) is None
        if self.norm_readers(values) or (
            plain and (self.permuting(number) or not self._is_mapped(values))
        ):
            return "not only linear maps write and read the values"
        if any(self.facts.graph.vertices[member].by_head for member in values.members):
            return "heads are multiplied by numbers of their own"
        try:
            self.require_understood(values)
            count, _ = self._head_sizes(values)
        except NotUnderstood as problem:
            return str(problem)
        if count != attention.key.heads or attention.query.heads % attention.key.heads:
            return "there are not as many values as keys"
        return ""

    def _are_tied(self, attention: Attention, values: int) -> bool:
        """True if one matrix writes values and queries or keys."""
        tied = self.tied_to(values)
        sides = (attention.query, attention.key)
        return any(self.facts.stream_of[s.source] in tied for s in sides if isinstance(s, Side))

    def _is_mapped(self, stream: Stream) -> bool:
        """True if linear maps alone write a stream, or parts of what they wrote."""
        kinds = {self.facts.graph.vertices[writer].kind for writer in stream.writers}
        return kinds <= {Kind.LINEAR, Kind.CONVOLUTION, Kind.EMBEDDING, Kind.PART}

    def _said_of_order(self, attention: Attention) -> str:
        kept = self._kept(attention)
        return f"; heads keep their places ({kept})" if kept else "; heads change places as wholes"

    def _attention(self, stream: Stream) -> Attention | None:
        """The attention that mixes a stream of values; None if there are several."""
        found = [a for a in self.facts.attentions if a.vertex in stream.members]
        return found[0] if len(found) == 1 else None

    def values(self, stream: Stream, dim: int, shape: tuple[int, ...]) -> tuple[Group, str, str]:
        norms = self.norm_readers(stream)
        regions = [self.facts.regions[norm] for norm in norms]
        if any(r.shape is not Shape.RMS_NORM or r.within or r.pooled for r in regions):
            raise NotUnderstood("attention values are read through a norm other than RMSNorm")
        if self.is_transposed(self.facts.streams.index(stream)):
            raise NotUnderstood("one matrix writes the values and, transposed, reads them")
        count, size = self._head_sizes(stream)
        copies = dim // (count * size)
        if count * size * copies != dim:
            raise NotUnderstood(f"{dim} features do not divide into heads of {size}")
        attention = self._attention(stream)
        if attention is None:
            raise NotUnderstood("several attentions read these values")
        shared = f", the {copies} queries of a group together" if copies > 1 else ""
        because = (
            "attention mixes positions and leaves features alone, and only linear maps write and "
            f"read them: each of the {count} value heads may be changed by any invertible "
            f"{size} x {size} matrix{shared}{self._said_of_order(attention)}."
        )
        order = self._order(attention) if count > 1 else "free"
        if norms:
            because = (
                "attention mixes positions and leaves features alone, linear maps write them, and "
                f"RMSNorm reads all {count} heads at once, which passes any rotation of each"
                f"{shared}; its gain folds into the linear maps behind it."
            )
            return Blocks(Orthogonal(size), count, copies, order), because, ALGEBRA
        return Blocks(GeneralLinear(size), count, copies, order), because, ALGEBRA

    def value_heads(self, index: int) -> int | None:
        """The number of heads of values on axes of their own; None where heads share values."""
        stream, graph = self.facts.streams[index], self.facts.graph
        attention = self._attention(stream)
        if attention is None or not isinstance(attention.key, Side):
            return None
        widths: set[int] = set()
        for member in stream.members:
            layout, shape = graph.layouts.get(member), graph.trace.node(member).shape
            if layout is not None:
                widths.add(math.prod(shape[axis] for axis in layout.axes) // layout.repeat)
        heads = attention.key.heads
        return heads if len(widths) == 1 and widths.pop() % heads == 0 else None

    def _head_sizes(self, stream: Stream) -> tuple[int, int]:
        """Number and size of the heads, where the values are first kept apart."""
        graph = self.facts.graph
        attention = self._attention(stream)
        if attention is not None and isinstance(attention.key, Side):
            first = min(stream.members)
            layout = graph.layouts.get(first)
            if layout is not None and len(layout.axes) == 1 and layout.repeat == 1:
                width = graph.trace.node(first).shape[layout.axes[0]]
                if width % attention.key.heads == 0:
                    return attention.key.heads, width // attention.key.heads
        for index in sorted(stream.members):
            layout = graph.layouts.get(index)
            shape = graph.trace.node(index).shape
            if layout is not None and len(layout.axes) == 2:
                return shape[layout.axes[0]], shape[layout.axes[1]]
            if layout is None or len(layout.axes) != 1 or layout.repeat != 1:
                raise NotUnderstood("the heads of the values could not be followed")
        first = min(stream.members)
        return 1, graph.trace.node(first).shape[graph.layouts[first].axes[0]]


def _around(
    side: Side,
    planes: Callable[[int, Literal["half", "adjacent"]], Group],
    rest: Callable[[int], Group],
) -> Group:
    """A group of the planes that turn, beside another of the axes before and behind them."""
    assert side.turned is not None
    first, last, size = side.turned.first, side.turned.last, side.size
    parts: list[Group] = [rest(first)] if first else []
    parts.append(planes(last - first, side.turned.pairing))
    parts += [rest(size - last)] if last < size else []
    return parts[0] if len(parts) == 1 else DirectSum(tuple(parts))


def _still(dim: int, pairing: str) -> Group:
    """Planes whose axes stay where they are."""
    return Trivial(dim)
