"""From facts to a group: which changes of basis the weights around a site could absorb.

Activations that are only ever added, copied or moved are one *stream*. What writes to a stream and
what
reads it decides its group: linear maps absorb every change of basis, a norm those that it commutes
with, a nonlinearity those that its own intertwiner group allows. Streams that are joined by
functions of single features (nonlinearities, products, diagonal maps) are one *family*: a
permutation must act on all of them at once, and what rescales one rescales, or does not rescale,
the next.
"""

import dataclasses
import enum
import itertools
import math
import re

import torch
from torch import Tensor

from basis_probe.adapters.facts import Facts, Region, Shape, Stream, shared
from basis_probe.adapters.graph import Kind, Vertex
from basis_probe.adapters.places import Site
from basis_probe.algebra.groups import (
    Blocks,
    DirectSum,
    GeneralLinear,
    Group,
    LineStabiliser,
    Monomial,
    OnAxes,
    Orthogonal,
    Permutation,
    PositiveMonomial,
    SignedPermutation,
    Trivial,
    Unknown,
)
from basis_probe.algebra.intertwiner import Intertwiner, intertwiner_group
from basis_probe.results import Symmetry

PAPER = "Godfrey, Brown, Emerson, Kvinge 2022 (arXiv 2205.14258), section 3 and Table 1"
RESIDUAL = "Elhage, Lasenby, Olah 2023, Privileged Bases in the Transformer Residual Stream"
ALGEBRA = "algebra of the modules around the site"


class Scales(enum.Enum):
    """Which diagonal matrices a stream of a family admits; the value orders them."""

    ANY = 3
    POSITIVE = 2
    SIGNS = 1
    ONE = 0

    def meet(self, other: "Scales") -> "Scales":
        """The diagonal matrices that both admit."""
        if {self, other} == {Scales.POSITIVE, Scales.SIGNS}:
            return Scales.ONE
        return self if self.value <= other.value else other


_SCALES: tuple[tuple[type[OnAxes], Scales], ...] = (
    (Monomial, Scales.ANY),
    (PositiveMonomial, Scales.POSITIVE),
    (SignedPermutation, Scales.SIGNS),
    (Permutation, Scales.ONE),
)
_GROUPS: dict[Scales, type[OnAxes]] = {scales: kind for kind, scales in _SCALES}


class _NotUnderstood(Exception):
    """What stands in the way of a claim."""


class Derivation:
    """The groups of all sites of a model, derived from its facts.

    Args:
        facts: what was seen of the model.
    """

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self._intertwiners: dict[int, Intertwiner] = {}
        self._families: dict[int, frozenset[int]] = {}
        self._scales: dict[frozenset[int], dict[int, Scales]] = {}
        self._bounds: dict[frozenset[int], dict[int, set[int]]] = {}
        self._ties = _ties(facts)
        self._tied_groups: dict[int, Group | None] = {}

    # --- one site -------------------------------------------------------------------------------

    def symmetry(self, site: Site) -> Symmetry:
        """The group of a site, what it privileges, and why."""
        facts = self.facts
        shape = facts.shape(site)
        dim = 1
        for size in shape:
            dim *= size
        vertex = facts.vertex(site)
        if vertex is None or facts.layout(site) is None:
            return _unknown(dim, "the features of this tensor could not be followed")
        layout = facts.layout(site)
        if layout is not None and layout.repeat != 1:
            return _unknown(dim, "positions are flattened into its features")
        stream = facts.stream_of[vertex.node]
        try:
            group, because, reference = self._group(stream, vertex, dim, shape)
            self._require_free_ties(stream)
        except _NotUnderstood as reason:
            return _unknown(dim, str(reason))
        because = because[0].upper() + because[1:]
        return Symmetry(group, group.privileged, because, reference)

    def read(self, vertex: int, width: int) -> Group:
        """The group of what a linear map reads, positions that were flattened into it aside."""
        found = self.facts.graph.vertices[vertex]
        stream = self.facts.stream_of[vertex]
        try:
            return self._group(stream, found, width, (width,))[0]
        except _NotUnderstood:
            return Unknown(width)

    def intertwiner(self, vertex: int) -> Intertwiner:
        """The measured intertwiner group of the nonlinearity at a vertex.

        Raises:
            ValueError: if the function cannot be measured.
        """
        if vertex not in self._intertwiners:
            region = self.facts.regions[vertex]
            if region.function is None:
                raise ValueError(f"{region.op} is no function of one tensor")
            node = self.facts.graph.trace.node(vertex)
            layout = self.facts.graph.layouts[vertex]
            self._intertwiners[vertex] = intertwiner_group(
                region.function, node.shape[layout.axes[-1]]
            )
        return self._intertwiners[vertex]

    # --- one stream -----------------------------------------------------------------------------

    def _group(
        self, index: int, vertex: Vertex, dim: int, shape: tuple[int, ...]
    ) -> tuple[Group, str, str]:
        stream = self.facts.streams[index]
        family = self._family(index)
        if self._permuting(index):
            return self._axes(index, vertex, family, dim)
        self._require_understood(stream)
        if any(self.facts.regions.get(w, _NOTHING).shape.is_norm for w in stream.writers):
            raise _NotUnderstood(
                "it is the output of a norm: the linear maps that read it absorb any change of "
                "basis, but the norm can write only what its gain and the stream before it allow"
            )
        if self._written_by(stream, Kind.INPUT):
            return Trivial(dim), "these are the model's input, whose axes are given.", ALGEBRA
        if stream.returned:
            return (
                Trivial(dim),
                "the model returns this: its axes are the vocabulary, the classes or the outputs.",
                ALGEBRA,
            )
        if stream.value_mixed:
            return self._heads(stream, dim, shape)
        if any(self._is_folded_gain(reader) for reader in stream.readers):
            raise _NotUnderstood(
                "a gain for every feature stands between it and the stream that it writes"
            )
        norms = self._norm_readers(stream)
        if not norms and self._is_transposed(index):
            return (
                Orthogonal(dim),
                "only linear maps write this and only linear maps read it, and one that reads it "
                "is the transpose of one that writes it, so that rotations are absorbed by both.",
                ALGEBRA,
            )
        if not norms:
            return (
                GeneralLinear(dim),
                "only linear maps write this and only linear maps read it, so every invertible "
                "change of basis is absorbed by their weights.",
                PAPER,
            )
        kinds = {self.facts.regions[norm].shape for norm in norms}
        gains = (
            "; the gains of the norms fold exactly into the linear maps that read them"
            if any(_generic(self.facts.regions[norm]) for norm in norms)
            else ""
        )
        if kinds == {Shape.RMS_NORM}:
            because = (
                f"written by linear maps only and read through RMSNorm ({len(norms)} of them), "
                f"which commutes with every rotation{gains}; tied embeddings count as untied."
            )
            return Orthogonal(dim), because, RESIDUAL
        if self._is_transposed(index):
            raise _NotUnderstood("it is read through a norm and by the transpose of what writes it")
        if kinds == {Shape.LAYER_NORM}:
            because = (
                f"written by linear maps only and read through LayerNorm ({len(norms)} of them), "
                "which commutes with the rotations that fix the all-ones direction and ignores "
                f"whatever is written along it{gains}; tied embeddings count as untied."
            )
            return LineStabiliser(dim), because, RESIDUAL
        raise _NotUnderstood("it is read through both LayerNorm and RMSNorm")

    def _heads(self, stream: Stream, dim: int, shape: tuple[int, ...]) -> tuple[Group, str, str]:
        if self._norm_readers(stream):
            raise _NotUnderstood("attention values are read through a norm")
        if self._is_transposed(self.facts.streams.index(stream)):
            raise _NotUnderstood("one matrix writes the values and, transposed, reads them")
        count, size = self._head_sizes(stream)
        copies = dim // (count * size)
        if count * size * copies != dim:
            raise _NotUnderstood(f"{dim} features do not divide into heads of {size}")
        shared = f", the {copies} queries of a group together" if copies > 1 else ""
        because = (
            "attention mixes positions and leaves features alone, and only linear maps write and "
            f"read them: each of the {count} value heads may be changed by any invertible "
            f"{size} x {size} matrix{shared}, and heads may change places as wholes."
        )
        return Blocks(GeneralLinear(size), count, copies), because, ALGEBRA

    def _head_sizes(self, stream: Stream) -> tuple[int, int]:
        """Number and size of the heads, where the values are first kept apart."""
        graph = self.facts.graph
        for index in sorted(stream.members):
            layout = graph.layouts.get(index)
            shape = graph.trace.node(index).shape
            if layout is not None and len(layout.axes) == 2:
                return shape[layout.axes[0]], shape[layout.axes[1]]
            if layout is None or len(layout.axes) != 1 or layout.repeat != 1:
                raise _NotUnderstood("the heads of the values could not be followed")
        width = graph.layouts[max(stream.members)].axes[0]
        return 1, graph.trace.node(max(stream.members)).shape[width]

    def _axes(
        self, index: int, vertex: Vertex, family: frozenset[int], dim: int
    ) -> tuple[Group, str, str]:
        scales = self._family_scales(family)
        stream = self.facts.streams[index]
        because = self._because_axes(stream)
        self._require_parts_apart(family)
        if any(self._fixed(self.facts.streams[member]) for member in family):
            because += (
                " The model's own input or output belongs to the same family of axes, so that "
                "not even their order is free."
            )
            return Trivial(dim), because, PAPER
        for link in self._family_links(family):
            region = self.facts.regions.get(link, _NOTHING)
            if region.shape is Shape.DIAGONAL and not region.learned:
                raise _NotUnderstood(
                    f"{region.op}{_where(self.facts, link)} acts on every feature with a "
                    "constant of its own that is no weight"
                )
        kind = _GROUPS[scales[index]]
        parts = self._parts(index, family, dim)
        if len(parts) > 1:
            because += (
                " Features were concatenated or padded on the way, and change places only inside "
                "a part."
            )
            return DirectSum(tuple(_sized(kind, size) for size in parts)), because, PAPER
        return _sized(kind, dim), because, PAPER

    def _because_axes(self, stream: Stream) -> str:
        regions = self.facts.regions
        said: list[str] = []
        for reader in stream.readers:
            region = regions.get(reader)
            if region is not None and region.shape in (Shape.ELEMENTWISE, Shape.COUPLED):
                said.append(
                    f"it is read by {region.op}, for which {self.intertwiner(reader).because}"
                )
        for writer in stream.writers:
            region = regions.get(writer)
            if region is None:
                continue
            if region.shape in (Shape.ELEMENTWISE, Shape.COUPLED):
                said.append(
                    f"it is written by {region.op}, for which {self.intertwiner(writer).because}"
                )
            elif region.shape is Shape.PRODUCT:
                said.append("it is the product of two tensors, feature by feature")
            elif region.shape in (Shape.RMS_NORM, Shape.LAYER_NORM):
                said.append("a norm with a gain of its own for every feature writes to it")
        if any(regions.get(r, _NOTHING).shape is Shape.PRODUCT for r in stream.readers):
            said.append("it is multiplied with another tensor, feature by feature")
        vertices = self.facts.graph.vertices
        touching = (*stream.writers, *stream.readers)
        if any(vertices[w].kind is Kind.BATCH_NORM for w in stream.writers):
            said.append("batch normalisation writes it, channel by channel")
        if any(vertices[r].kind is Kind.BATCH_NORM for r in stream.readers):
            said.append("batch normalisation reads it, channel by channel")
        if any(vertices[r].kind is Kind.DEPTHWISE for r in stream.readers):
            said.append("a depthwise convolution reads it, channel by channel")
        if any(regions.get(v, _NOTHING).shape is Shape.DIAGONAL for v in touching):
            said.append("it is multiplied with a weight vector, feature by feature")
        if stream.max_pooled:
            said.append("max pooling reads it, which only non-negative scales pass")
        if not said:
            said.append("it shares its axes with a stream that a nonlinearity fixes")
        unique = list(dict.fromkeys(said))
        text = "; ".join(entry.rstrip(".") for entry in unique[:3])
        return text[0].upper() + text[1:] + "."

    # --- what writes and reads ------------------------------------------------------------------

    def _written_by(self, stream: Stream, kind: Kind) -> bool:
        return any(self.facts.graph.vertices[w].kind is kind for w in stream.writers)

    def _fixed(self, stream: Stream) -> bool:
        return stream.returned or self._written_by(stream, Kind.INPUT)

    def _norm_readers(self, stream: Stream) -> list[int]:
        regions = self.facts.regions
        return [r for r in stream.readers if r in regions and regions[r].shape.is_norm]

    def _norm_is_folded(self, norm: int) -> bool:
        """True if only linear maps read the norm's output, so that its gain folds into them."""
        stream = self.facts.streams[self.facts.stream_of[norm]]
        if stream.returned or len(stream.writers) != 1 or stream.max_pooled:
            return False
        for reader in stream.readers:
            vertex = self.facts.graph.vertices[reader]
            if vertex.kind in (Kind.LINEAR, Kind.CONVOLUTION) and not vertex.across:
                continue
            region = self.facts.regions.get(reader)
            if region is not None and region.shape is Shape.DIAGONAL and self._only_linear(reader):
                continue
            return False
        return True

    def _only_linear(self, vertex: int) -> bool:
        """True if a diagonal map's output is read by linear maps only."""
        stream = self.facts.streams[self.facts.stream_of[vertex]]
        kinds = {self.facts.graph.vertices[reader].kind for reader in stream.readers}
        return (
            not stream.returned
            and stream.writers == (vertex,)
            and kinds <= {Kind.LINEAR, Kind.CONVOLUTION}
        )

    def _parts(self, index: int, family: frozenset[int], dim: int) -> list[int]:
        """Sizes of the parts of a stream inside which features may change places.

        Where features were concatenated or padded, the seams are handed on to every stream that
        shares its axes, and through further seams.
        """
        if family not in self._bounds:
            self._bounds[family] = self._family_bounds(family)
        ordered = sorted({0, dim} | {b for b in self._bounds[family][index] if b < dim})
        return [after - before for before, after in itertools.pairwise(ordered)]

    def _family_bounds(self, family: frozenset[int]) -> dict[int, set[int]]:
        graph, stream_of = self.facts.graph, self.facts.stream_of
        seams: list[tuple[int, int, int, int]] = []  # source, target, offset, width
        for vertex in self._family_links(family):
            found = graph.vertices[vertex]
            joined = found.kind in (Kind.CONCAT, Kind.PADDED)
            place = found.zeros[0]
            for source in self._sources(vertex):
                width = graph.trace.node(source).shape[graph.layouts[source].axes[-1]]
                seams.append((stream_of[source], stream_of[vertex], place, width))
                place += width if joined else 0
        bounds: dict[int, set[int]] = {member: set() for member in family}
        for vertex in self._family_links(family):
            found = graph.vertices[vertex]
            if found.kind in (Kind.CONCAT, Kind.PADDED):
                edges = [(o, o + w) for _, target, o, w in seams if target == stream_of[vertex]]
                bounds[stream_of[vertex]] |= {edge for pair in edges for edge in pair}
        changed = True
        while changed:
            before = sum(map(len, bounds.values()))
            for source, target, offset, width in seams:
                bounds[target] |= {offset + b for b in bounds[source]}
                inside = {b for b in bounds[target] if offset < b < offset + width}
                bounds[source] |= {b - offset for b in inside}
            changed = sum(map(len, bounds.values())) != before
        return bounds

    def _family_links(self, family: frozenset[int]) -> list[int]:
        streams = self.facts.streams
        touching = {v for m in family for v in (*streams[m].writers, *streams[m].readers)}
        return sorted(vertex for vertex in touching if self._is_link(vertex))

    def _require_understood(self, stream: Stream) -> None:
        """Raises `_NotUnderstood` with the first neighbour that no rule covers."""
        vertices, regions = self.facts.graph.vertices, self.facts.regions
        for writer in stream.writers:
            vertex = vertices[writer]
            where = _where(self.facts, writer)
            if vertex.kind is Kind.OTHER:
                raise _NotUnderstood(f"it is written by {vertex.op}{where}, which no rule covers")
            if vertex.kind is Kind.PART and not self._is_free_part(vertex):
                raise _NotUnderstood(
                    f"it is a part of a wider tensor{where} that not only linear maps write, or "
                    "whose parts are not read one by one"
                )
            if vertex.kind is Kind.REGION and regions[writer].shape is Shape.UNKNOWN:
                raise _NotUnderstood(f"{regions[writer].why}{where}")
        for reader in stream.readers:
            vertex = vertices[reader]
            where = _where(self.facts, reader)
            if vertex.kind is Kind.ATTENTION and not set(vertex.carried) & stream.members:
                raise _NotUnderstood(
                    f"queries and keys meet in {vertex.op}{where}: their rotary, norm and head "
                    "structure is not derived"
                )
            if vertex.kind is Kind.OTHER:
                raise _NotUnderstood(f"it is read by {vertex.op}{where}, which no rule covers")
            if vertex.kind is Kind.PART:
                raise _NotUnderstood(f"its features are read in parts{where}, each in its own way")
            if vertex.across:
                raise _NotUnderstood(
                    f"{vertex.op}{where} does not read its features, but acts across positions or "
                    "inside parts of the features"
                )
            if vertex.kind is Kind.REGION and regions[reader].shape is Shape.UNKNOWN:
                raise _NotUnderstood(f"{regions[reader].why}{where}")

    def _is_free_part(self, part: Vertex) -> bool:
        """True if a part of a wider tensor is written by linear maps as if it stood alone."""
        graph = self.facts.graph
        source = self.facts.streams[self.facts.stream_of[part.carried[0]]]
        if source.returned or source.sums or source.value_mixed or source.max_pooled:
            return False
        for writer in source.writers:
            vertex = graph.vertices[writer]
            if vertex.kind is Kind.PART and not self._is_free_part(vertex):
                return False
            if vertex.kind not in (Kind.LINEAR, Kind.CONVOLUTION, Kind.PART):
                return False
        taken: set[int] = set()
        sizes: set[int] = set()
        for reader in source.readers:
            vertex = graph.vertices[reader]
            if vertex.kind is not Kind.PART or vertex.part is None or taken & set(vertex.part):
                return False
            taken |= set(vertex.part)
            layout = graph.layouts[vertex.carried[0]]
            shape = graph.trace.node(vertex.carried[0]).shape
            sizes.add(math.prod(shape[axis] for axis in layout.axes))
        # Features are counted alike only where there are as many of them.
        return len(sizes) == 1

    def _require_parts_apart(self, family: frozenset[int]) -> None:
        """Raises `_NotUnderstood` if axes that were concatenated also belong together otherwise."""
        links = {v: self._joined(v) for v in self._family_links(family)}
        for vertex, ends in links.items():
            if self.facts.graph.vertices[vertex].kind not in (Kind.CONCAT, Kind.PADDED):
                continue
            parent = {member: member for member in family}
            for other, others in links.items():
                if other != vertex:
                    for end in others[1:]:
                        parent[_root(parent, end)] = _root(parent, others[0])
            if len({_root(parent, end) for end in ends}) < len(ends):
                raise _NotUnderstood(
                    f"{self.facts.graph.vertices[vertex].op}{_where(self.facts, vertex)} joins "
                    "features that change places together"
                )

    def _joined(self, link: int) -> list[int]:
        """The streams on both sides of a function of single features."""
        stream_of = self.facts.stream_of
        return [stream_of[link], *(stream_of[source] for source in self._sources(link))]

    # --- weights that are used more than once -----------------------------------------------------

    def _is_transposed(self, index: int) -> bool:
        """True if a matrix that writes the stream reads it too, transposed."""
        return any(tie.transposed and tie.stream == index for tie in self._ties.get(index, ()))

    def _require_free_ties(self, index: int) -> None:
        """Raises `_NotUnderstood` if a matrix is used elsewhere, where other changes are absorbed.

        Streams that one matrix reads, or writes, in several places change together.
        """
        seen: set[int] = set()
        waiting = [index]
        while waiting:
            here = waiting.pop()
            if here in seen:
                continue
            seen.add(here)
            if self._permuting(here):
                waiting.extend(self._family(here))
            for tie in self._ties.get(here, ()):
                waiting.append(tie.stream)
                own, other = self._group_at(tie.own), self._group_at(tie.other)
                if own is None or other is None or own != other:
                    raise _NotUnderstood(
                        f"the weights of {_name(self.facts, tie.other)} are used in several "
                        "places, whose symmetries are not the same"
                    )

    def _group_at(self, vertex: int) -> Group | None:
        """The group of the stream that holds a vertex, ties aside; None if it is not understood."""
        if vertex not in self._tied_groups:
            graph = self.facts.graph
            layout, shape = graph.layouts.get(vertex), graph.trace.node(vertex).shape
            sizes = () if layout is None else tuple(shape[axis] for axis in layout.axes)
            try:
                found = self._group(
                    self.facts.stream_of[vertex], graph.vertices[vertex], math.prod(sizes), sizes
                )[0]
            except _NotUnderstood:
                found = None
            self._tied_groups[vertex] = found if sizes else None
        return self._tied_groups[vertex]

    # --- families -------------------------------------------------------------------------------

    def _links(self, index: int) -> list[tuple[int, int]]:
        """(vertex, other stream) for every function of single features that touches a stream."""
        stream = self.facts.streams[index]
        found: list[tuple[int, int]] = []
        for writer in stream.writers:
            if self._is_link(writer):
                found += [
                    (writer, self.facts.stream_of[source]) for source in self._sources(writer)
                ]
        for reader in stream.readers:
            if self._is_link(reader):
                found.append((reader, self.facts.stream_of[reader]))
                found += [
                    (reader, self.facts.stream_of[source])
                    for source in self._sources(reader)
                    if self.facts.stream_of[source] != index
                ]
        return found

    def _sources(self, vertex: int) -> tuple[int, ...]:
        found = self.facts.graph.vertices[vertex]
        return found.used if found.kind is Kind.DEPTHWISE else found.carried

    def _is_link(self, index: int) -> bool:
        vertex = self.facts.graph.vertices[index]
        if vertex.kind in (Kind.BATCH_NORM, Kind.DEPTHWISE, Kind.CONCAT, Kind.PADDED):
            return True
        if vertex.kind is not Kind.REGION:
            return False
        region = self.facts.regions[index]
        if region.shape.is_norm:
            return not self._norm_is_folded(index)
        if region.shape is Shape.DIAGONAL and self._is_gain_of_folded_norm(vertex):
            return False
        if self._is_folded_gain(index):
            return False
        return region.shape in (
            Shape.ELEMENTWISE,
            Shape.COUPLED,
            Shape.PRODUCT,
            Shape.DIAGONAL,
        )

    def _is_folded_gain(self, index: int) -> bool:
        """True if the gain of a linear map's outputs, as of a layer scale, folds into that map."""
        region = self.facts.regions.get(index, _NOTHING)
        if region.shape is not Shape.DIAGONAL or not region.learned:
            return False
        vertices = self.facts.graph.vertices
        source = self.facts.streams[self.facts.stream_of[vertices[index].carried[0]]]
        kinds = {vertices[writer].kind for writer in source.writers}
        gain = region.gain
        return (
            kinds <= {Kind.LINEAR, Kind.CONVOLUTION}
            and source.readers == (index,)
            and not source.returned
            and not source.max_pooled
            and gain is not None
            and bool((gain != 0).all())
        )

    def _is_gain_of_folded_norm(self, vertex: Vertex) -> bool:
        writers = self.facts.streams[self.facts.stream_of[vertex.carried[0]]].writers
        return any(
            self.facts.regions.get(writer, _NOTHING).shape.is_norm and self._norm_is_folded(writer)
            for writer in writers
        )

    def _permuting(self, index: int) -> bool:
        """True if a function of single features touches the stream."""
        stream = self.facts.streams[index]
        return stream.max_pooled or any(
            self._is_link(vertex) for vertex in (*stream.writers, *stream.readers)
        )

    def _family(self, index: int) -> frozenset[int]:
        if index not in self._families:
            found: set[int] = set()
            waiting = [index]
            while waiting:
                here = waiting.pop()
                if here not in found:
                    found.add(here)
                    waiting.extend(other for _, other in self._links(here))
            # Not of the others: what reads a stream only on the way to nowhere does not bind it.
            self._families[index] = frozenset(found)
        return self._families[index]

    def _family_scales(self, family: frozenset[int]) -> dict[int, Scales]:
        """The diagonal matrices that each stream of a family admits.

        Raises:
            _NotUnderstood: if any neighbour of any of its streams is not understood.
        """
        if family in self._scales:
            return self._scales[family]
        streams = self.facts.streams
        for member in family:
            self._require_understood(streams[member])
            if streams[member].value_mixed:
                raise _NotUnderstood("attention reads values that a nonlinearity has touched")
        relations = _Relations(family)
        for member in family:
            stream = streams[member]
            if stream.max_pooled:
                relations.add({member: 1.0}, scales=False)
            for norm in self._norm_readers(stream):
                rms = self.facts.regions[norm].shape is Shape.RMS_NORM
                relations.add({member: 1.0}, signs=not rms)
            for tie in self._ties.get(member, ()):
                if tie.stream in family:
                    sizes = {tie.stream: 1.0 if tie.transposed else -1.0}
                    relations.add(_sum({member: 1.0}, sizes), signs=False)
                    relations.add(_sum({member: 1.0}, {tie.stream: 1.0}), scales=False)
        for vertex in self._family_links(family):
            sources = [self.facts.stream_of[s] for s in self._sources(vertex)]
            self._relate(vertex, sources, self.facts.stream_of[vertex], relations)
        self._scales[family] = relations.solved()
        return self._scales[family]

    def _relate(self, index: int, sources: list[int], target: int, relations: "_Relations") -> None:
        """What a function of single features demands of the diagonal matrices around it."""
        vertex = self.facts.graph.vertices[index]
        region = self.facts.regions.get(index, _NOTHING)
        if vertex.kind in (Kind.CONCAT, Kind.PADDED):
            for source in sources:
                relations.add(_sum({source: 1.0}, {target: -1.0}))
        elif region.shape in (Shape.ELEMENTWISE, Shape.COUPLED):
            try:
                intertwiner = self.intertwiner(index)
            except ValueError as error:
                raise _NotUnderstood(
                    f"{region.op}{_where(self.facts, index)} could not be measured: {error}"
                ) from error
            before = _scales_of(intertwiner.group)
            if before is None:
                raise _NotUnderstood(
                    f"{region.op}{_where(self.facts, index)}: {intertwiner.because}"
                )
            if before in (Scales.ANY, Scales.POSITIVE):
                powers = _sum({target: 1.0}, {sources[0]: -intertwiner.degree})
                relations.add(powers, signs=False)
            else:
                relations.add({sources[0]: 1.0}, signs=False)
                relations.add({target: 1.0}, signs=False)
            if before not in (Scales.ANY, Scales.SIGNS):
                relations.add({sources[0]: 1.0}, scales=False)
            odd = before in (Scales.ANY, Scales.SIGNS) and intertwiner.parity < 0
            flips = _sum({target: 1.0}, {sources[0]: 1.0}) if odd else {target: 1.0}
            relations.add(flips, scales=False)
        elif region.shape is Shape.PRODUCT:
            factors = {source: 0.0 for source in sources}
            for source in sources:
                factors[source] += 1.0
            relations.add(_sum({target: -1.0}, factors))
        elif region.shape.is_norm:
            relations.add({target: 1.0}, signs=False)
            rms = region.shape is Shape.RMS_NORM
            relations.add(_sum({target: 1.0}, {sources[0]: 1.0} if rms else {}), scales=False)


class _Relations:
    """Which diagonal matrices the streams of a family admit together.

    A feature of stream s is multiplied by (-1)^b exp(r), with one sign bit b and one size r for
    each stream. What lies between streams makes linear relations among the sizes, and others among
    the bits; a stream is free in what is not zero in every solution.
    """

    def __init__(self, streams: frozenset[int]) -> None:
        self.place = {stream: column for column, stream in enumerate(sorted(streams))}
        self.sizes: list[Tensor] = []
        self.bits: list[int] = []

    def add(self, factors: dict[int, float], *, scales: bool = True, signs: bool = True) -> None:
        """The sum of factor times size over the streams is zero, and so is that of the bits."""
        known = {self.place[s]: factor for s, factor in factors.items() if s in self.place}
        if scales:
            row = torch.zeros(len(self.place), dtype=torch.float64)
            for column, factor in known.items():
                row[column] = factor
            self.sizes.append(row)
        if signs:
            self.bits.append(sum(1 << column for column, f in known.items() if round(f) % 2))

    def solved(self) -> dict[int, Scales]:
        """The diagonal matrices that each stream admits."""
        rows = torch.stack([*self.sizes, torch.zeros(len(self.place), dtype=torch.float64)])
        _, values, directions = torch.linalg.svd(rows, full_matrices=True)
        rank = int((values > 1e-9 * max(1.0, float(values.max()))).sum())
        free = directions[rank:].abs().amax(0) > 1e-9 if rank < len(self.place) else None
        flips = _free_bits(self.bits, len(self.place))
        named = {
            (True, True): Scales.ANY,
            (True, False): Scales.POSITIVE,
            (False, True): Scales.SIGNS,
            (False, False): Scales.ONE,
        }
        return {
            stream: named[free is not None and bool(free[column]), bool(flips >> column & 1)]
            for stream, column in self.place.items()
        }


def _sum(first: dict[int, float], second: dict[int, float]) -> dict[int, float]:
    return {key: first.get(key, 0.0) + second.get(key, 0.0) for key in {**first, **second}}


def _free_bits(rows: list[int], count: int) -> int:
    """The bits that are not zero in every solution of the equations modulo 2, one a row."""
    pivots: dict[int, int] = {}  # leading bit -> row, every other row without that bit
    for row in rows:
        for bit, known in pivots.items():
            if row >> bit & 1:
                row ^= known
        if row:
            lead = row.bit_length() - 1
            pivots = {b: r ^ row if r >> lead & 1 else r for b, r in pivots.items()} | {lead: row}
    free = sum(1 << bit for bit in range(count) if bit not in pivots)
    # A leading bit is free if its row holds a bit that is.
    return free | sum(1 << bit for bit, row in pivots.items() if row & free)


_NOTHING = Region(Shape.UNKNOWN)


def _sized(kind: type[OnAxes], dim: int) -> Group:
    return kind(dim)


@dataclasses.dataclass(frozen=True)
class _Tie:
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


def _ties(facts: Facts) -> dict[int, tuple[_Tie, ...]]:
    """Stream -> its ties to others, and to itself by a transpose."""
    found: dict[int, list[_Tie]] = {}
    stream_of = facts.stream_of

    def tie(a: int, b: int, transposed: bool) -> None:
        if stream_of[a] != stream_of[b] or transposed:
            found.setdefault(stream_of[a], []).append(_Tie(a, b, stream_of[b], transposed))
            found.setdefault(stream_of[b], []).append(_Tie(b, a, stream_of[a], transposed))

    for first, second, transposed in shared(facts):
        read, written = (facts.graph.vertices[v].used[0] for v in (first, second)), (first, second)
        (a, b), (c, d) = read, written
        if not transposed:
            tie(a, b, False)
            tie(c, d, False)
        elif facts.graph.layouts.get(a) is not None and facts.graph.layouts.get(b) is not None:
            tie(c, b, True)
            tie(a, d, True)
    return {stream: tuple(dict.fromkeys(ties)) for stream, ties in found.items()}


def _root(parent: dict[int, int], index: int) -> int:
    while parent[index] != index:
        index = parent[index]
    return index


def _name(facts: Facts, vertex: int) -> str:
    return _where(facts, vertex).removeprefix(" in ") or "one linear map"


def _scales_of(group: Group) -> Scales | None:
    for kind, scales in _SCALES:
        if type(group) is kind:
            return scales
    return None


def _generic(region: Region) -> bool:
    """True if a norm's gain differs from feature to feature."""
    gain = region.gain
    return gain is not None and float(gain.std()) > 1e-6 * float(gain.abs().mean())


def _where(facts: Facts, vertex: int) -> str:
    module = facts.graph.trace.node(vertex).module
    module = re.sub(r"\b_original_component\.?", "", module).rstrip(".")
    return f" in {module}" if module else ""


def _unknown(dim: int, why: str) -> Symmetry:
    group = Unknown(dim)
    text = why[0].upper() + why[1:].rstrip(".") + "; the group is not derived, and not guessed."
    return Symmetry(group, group.privileged, text, "none")
