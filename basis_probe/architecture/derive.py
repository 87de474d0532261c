"""From facts to a group: which changes of basis the weights around a site could absorb.

Activations that are only ever added, copied or moved are one *stream*. What writes to a stream and
what
reads it decides its group: linear maps absorb every change of basis, a norm those that it commutes
with, a nonlinearity those that its own intertwiner group allows. Streams that are joined by
functions of single features (nonlinearities, products, diagonal maps) are one *family*: a
permutation must act on all of them at once, and what rescales one rescales, or does not rescale,
the next.
"""

import functools
import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from basis_probe.algebra.groups import (
    DirectSum,
    GeneralLinear,
    Group,
    LineRotations,
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
from basis_probe.algebra.intertwiner import Intertwiner, measured
from basis_probe.architecture.claims import ALGEBRA, NOTHING, PAPER, RESIDUAL, NotUnderstood
from basis_probe.architecture.commuting import Commuting, is_plain
from basis_probe.architecture.composites import Composites
from basis_probe.architecture.constants import held_by_constants
from basis_probe.architecture.free_weights import (
    Computed,
    computed_biases,
    computed_vectors,
    computed_weights,
    learned_behind,
    unreachable,
)
from basis_probe.architecture.heads import Heads
from basis_probe.architecture.rescaled import Rescaling, rescaling
from basis_probe.architecture.routers import Router, Routers
from basis_probe.architecture.scales import Relations, Scales, sum_of
from basis_probe.architecture.ties import Tie, overlapping, read_by_number, ties_of
from basis_probe.architecture.vectors import meeting_vectors, numbers_of, overlapping_vectors
from basis_probe.model.attention import Side
from basis_probe.model.experts import Expert
from basis_probe.model.facts import (
    Facts,
    Region,
    Shape,
    Stream,
    added_leaves,
    constants_of,
    evaluate,
    generic,
    given_to,
    homogeneity,
    is_learned,
    keeps_statistics,
    signature,
    spans_all_axes,
    untied,
    vectors_of,
    with_weights_in,
)
from basis_probe.model.graph import Kind, Vertex, groups_of, is_one_number, norm_argument
from basis_probe.model.longer import of_one_position
from basis_probe.model.places import Site
from basis_probe.model.recurrent import LONGEST, RECURRENT
from basis_probe.model.trace import Fixed, Ref, Trace, fixed_in
from basis_probe.results.symmetry import Symmetry

_SCALES: tuple[tuple[type[OnAxes], Scales], ...] = (
    (Monomial, Scales.ANY),
    (PositiveMonomial, Scales.POSITIVE),
    (SignedPermutation, Scales.SIGNS),
    (Permutation, Scales.ONE),
)
_GROUPS: dict[Scales, type[OnAxes]] = {scales: kind for kind, scales in _SCALES}


class Derivation:
    """The groups of all sites of a model, derived from its facts.

    Args:
        facts: what was seen of the model.
        like: that of another model, whose nonlinearities need not be measured again.

    Attributes:
        seen: what was seen of the model.
        facts: the same with random numbers in place of parameters that are zero throughout, of
            which groups are derived, and proved.
    """

    def __init__(self, facts: Facts, *, like: "Derivation | None" = None) -> None:
        self.seen, self.facts = facts, generic(facts)
        facts = self.facts
        self._needed: frozenset[int] | None = None
        self._users: dict[int, set[int]] | None = None
        self._intertwiners: dict[int, Intertwiner] = {}
        self._measured: dict[tuple[int, str | None], Intertwiner] = (
            {} if like is None else like._measured
        )
        self._families: dict[int, frozenset[int]] = {}
        self._family_links: dict[frozenset[int], list[int]] = {}
        self._links_known: dict[int, bool] = {}
        self._gains: dict[object, set[int]] | None = None
        self._rescalings: dict[int, Rescaling | None] = {}
        self._apart: set[frozenset[int]] = set()
        self._relations: dict[frozenset[int], Relations] = {}
        self._labels: dict[frozenset[int], dict[int, Tensor]] = {}
        self._adding: dict[int, bool] = {}
        self._folded: dict[int, bool] = {}
        self._folding: dict[int, bool] = {}
        self._permuting: dict[int, bool] = {}
        self._said: dict[tuple[str, int], str] = {}
        self._linear: dict[tuple[int, int], tuple[Group, str, str]] = {}
        self._parts_known: dict[int, tuple[int, ...]] = {}
        self.computed, self.biases = computed_weights(facts), computed_biases(facts)
        self._vectors = computed_vectors(facts)
        self._computed_around: dict[int, list[tuple[str, Computed, bool]]] = {}
        self._reached: dict[tuple[int, int, bool, str], bool] = {}
        meeting = [*meeting_vectors(facts)]
        self.ties = ties_of(facts, meeting)
        self.pinned = read_by_number(facts)
        self._untied = untied(facts)
        left = (facts.graph.same.get(index) for index in facts.graph.trace.left)
        self._left = frozenset(vertex for vertex in left if vertex is not None)
        self._of_one_position = of_one_position(facts.graph)
        self._held_by_constants = held_by_constants(facts)
        self._vectors_overlapping, maps = overlapping_vectors(facts, meeting)
        self._overlapping = maps | overlapping(facts)
        self._tied_groups: dict[int, Group | None] = {}
        self._free_ties: set[int] = set()
        self.heads = Heads(
            facts,
            require_understood=self._require_understood,
            intertwiner=self.intertwiner,
            tied_to=self.tied_to,
            norm_readers=self._norm_readers,
            is_link=self.is_link,
            is_fixed=self._fixed,
            is_transposed=self._is_transposed,
            permuting=self.permuting,
        )
        self._routers = Routers(facts)
        self.composites = Composites(
            facts,
            group_at=self._group_at,
            companions=self._companions,
            is_link=self.is_link,
            is_free=lambda reader: self._is_free_part(facts.graph.vertices[reader]),
        )
        self.commuting = Commuting(
            facts,
            keeps_axes=self._is_link_on_axes,
            is_folded=self._norm_is_folded,
            is_attended=self._is_attended,
            is_tied=lambda index: bool(self.ties.get(index)),
            is_map=self.is_map,
        )

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
            return _unknown(dim, self._not_followed(site.node))
        layout = facts.layout(site)
        if layout is not None and layout.repeat != 1:
            return _unknown(dim, "positions are flattened into its features")
        stream = facts.stream_of[vertex.node]
        unread = not facts.streams[stream].readers and not facts.streams[stream].returned
        if unread and not facts.graph.lost & facts.streams[stream].members:
            inner = bool(self._traced(site.node))
            return _unknown(
                dim,
                "it is a step inside a function of single features that is measured as a whole"
                if inner
                else "nothing that the model returns depends on it",
            )
        try:
            router = self.router(stream)
            group, because, reference = (
                self._group(stream, vertex, dim, shape)
                if router is None
                else (router.group, router.said(), ALGEBRA)
            )
            if stream in self.pinned and not isinstance(group, Trivial):
                raise NotUnderstood(self.pinned[stream])
            group, because = self._tied(stream, group, because)
            group, because = self._free(stream, group, because)
            if not isinstance(group, Trivial):
                self._once(
                    "fixed gain",
                    stream,
                    lambda: self._require_no_fixed_gain(facts.streams[stream]),
                )
            if facts.graph.trace.branches and not isinstance(group, Trivial):
                raise NotUnderstood(_chosen(facts.graph.trace.branches[0]))
        except NotUnderstood as reason:
            return _unknown(dim, str(reason))
        because = because[0].upper() + because[1:]
        if isinstance(site.address, Expert):
            because += " The proof changes all experts of the block alike."
        around = {*facts.streams[stream].writers, *facts.streams[stream].readers}
        if around & self._untied and not isinstance(group, Trivial) and "untied" not in because:
            because += " Tied embeddings count as untied."
        return Symmetry(group, group.privileged, because, reference)

    def router(self, index: int) -> Router | None:
        """The router whose numbers a stream holds, where nothing else is understood of them."""
        found = self._routers.of(index)
        if found is None:
            return None
        understood = self._group_at(min(self.facts.streams[index].writers)) is not None
        return None if understood else found

    def _not_followed(self, index: int) -> str:
        """Where the features were last seen on the way to a node, and what came then."""
        trace, known = self.facts.graph.trace, self.facts.graph.layouts
        seen, waiting = set[int](), [index]
        while waiting:
            here = waiting.pop()
            node = trace.node(here)
            before = [i for i in node.inputs if trace.node(i).live and trace.node(i).floating]
            if any(i in known for i in before) or not before:
                made = trace.node(node.inputs[0]) if node.op == "output" else node
                return (
                    f"which axes of what {made.op}{_where(self.facts, made.index)} makes are "
                    "features could not be told"
                )
            waiting += [i for i in before if i not in seen]
            seen.update(before)
        return "no operation on features made it"

    def _free(self, index: int, group: Group, because: str) -> tuple[Group, str]:
        """The claim, or the smaller one that weights computed from parameters allow.

        Raises:
            NotUnderstood: if such weights cannot follow the changes that are claimed.
        """
        if isinstance(group, Trivial) or not (self.computed or self.biases or self._vectors):
            return group, because
        several = self._companions(index)
        for here in sorted(several.union(*(self.tied_to(stream) for stream in several))):
            if here not in self._computed_around:
                self._computed_around[here] = [*self._computed_at(self.facts.streams[here])]
            for what, weight, writes in self._computed_around[here]:
                said = f"{what}{_where(self.facts, weight.vertex)} is computed from"
                alone = not self._has_other_uses(weight)
                if not alone and what == "the weight":
                    raise NotUnderstood(f"{said} a parameter that is used elsewhere too")
                if what == _VECTOR and self._keeps_scales(weight.vertex, group):
                    asked: tuple[Group, ...] = (Permutation(group.dim),)
                else:
                    asked = group, *_smaller(group)
                for smaller in asked:
                    key = (weight.node, weight.vertex, writes, repr(smaller))
                    if key not in self._reached:
                        self._reached[key] = not unreachable(
                            self.facts, weight, smaller, writes=writes, search=alone
                        )
                    if self._reached[key]:
                        break
                else:
                    raise NotUnderstood(
                        f"{said} parameters, which cannot give the values that a change of basis "
                        "asks of it"
                    )
                if smaller != group and asked[0] == group:
                    group = smaller
                    because += (
                        f" {said[0].upper()}{said[1:]} parameters, which cannot give what a larger "
                        "group would ask of it."
                    )
        return group, because

    def _keeps_scales(self, vertex: int, group: Group) -> bool:
        """True if the vectors of a function change places only, whatever rescales the features."""
        region = self.facts.regions.get(vertex, NOTHING)
        gain = region.shape is Shape.DIAGONAL and _adds_nothing(region)
        return isinstance(group, OnAxes) and (
            gain or region.shape in (Shape.ELEMENTWISE, Shape.COUPLED)
        )

    def _computed_at(self, stream: Stream) -> Iterator[tuple[str, Computed, bool]]:
        """What is computed of the weights around a stream, and whether it writes the stream."""
        for writer in stream.writers:
            if writer in self.computed:
                yield "the weight", self.computed[writer], True
            if writer in self.biases:
                yield "the bias", self.biases[writer], True
        for reader in stream.readers:
            if reader in self.computed:
                yield "the weight", self.computed[reader], False
        for vertex in (*stream.writers, *sorted(stream.members)):
            region = self.facts.regions.get(vertex, NOTHING)
            if self.is_folded_gain(vertex) and _adds_nothing(region):
                continue  # The map before it takes up what it is asked, divided by the gain.
            if region.shape is Shape.SCALE:
                continue  # As it is, all features are multiplied by one number.
            for vector in self._vectors.get(vertex, ()):
                yield _VECTOR, vector, True

    def _require_no_fixed_gain(self, stream: Stream) -> None:
        """Raises `NotUnderstood` if numbers that are no parameters multiply each feature of it.

        Before them axes may change places; behind them each would also be another multiple.
        """
        trace = self.facts.graph.trace
        for writer in stream.writers:
            vertex, node = self.facts.graph.vertices[writer], trace.node(writer)
            region = self.facts.regions.get(writer, NOTHING)
            values: list[object] = []
            if region.shape is Shape.DIAGONAL or region.shape.is_norm:
                if region.gain is None or len(region.gain.unique()) > 1:
                    values += (value for _, value in given_to(self.facts.graph, vertex))
            elif vertex.kind in (Kind.BATCH_NORM, Kind.GROUP_NORM):
                gain = norm_argument(node, "weight")
                values += (one for one in (gain,) if not _are_alike(trace, one))
            if any(not is_learned(trace, value) for value in values):
                raise NotUnderstood(
                    f"each feature is multiplied{_where(self.facts, writer)} by a number of its "
                    "own that is no parameter of the model"
                )

    def _traced(self, node: int) -> tuple[int, ...]:
        """The calls behind a node on whose results the model's outputs depend."""
        trace = self.facts.graph.trace
        if self._needed is None:
            needed, waiting = set[int](), [*trace.outputs, *trace.asked]
            while waiting:
                here = waiting.pop()
                if here not in needed:
                    needed.add(here)
                    waiting.extend(trace.node(here).inputs)
            self._needed = frozenset(needed)
        return tuple(r for r in trace.readers.get(node, ()) if r in self._needed)

    def read(self, vertex: int, width: int) -> Group:
        """The group of what a linear map reads, positions that were flattened into it aside."""
        found = self.facts.graph.vertices[vertex]
        stream = self.facts.stream_of[vertex]
        try:
            return self._group(stream, found, width, (width,))[0]
        except NotUnderstood:
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
            dim = node.shape[layout.axes[-1]]
            # The same steps with the same numbers are one function: it is measured once.
            graph, place = self.facts.graph, self.facts.graph.vertices[vertex]
            key = (dim, signature(graph, place))
            if key[1] is None or key not in self._measured:
                weighted = region.learned and any(True for _ in vectors_of(graph, place))
                ordered = functools.partial(with_weights_in, graph, place) if weighted else None
                self._measured[key] = measured(
                    region.function, dim, moving=weighted, ordered=ordered
                )
            self._intertwiners[vertex] = self._measured[key]
        return self._intertwiners[vertex]

    # --- one stream -----------------------------------------------------------------------------

    def _group(
        self, index: int, vertex: Vertex, dim: int, shape: tuple[int, ...]
    ) -> tuple[Group, str, str]:
        if (index, dim) in self._linear:
            return self._linear[index, dim]
        stream = self.facts.streams[index]
        if self._fixed(stream) and not self.permuting(index):
            return self._given(stream, dim)
        if any(self.sets_side_by_side(writer) for writer in stream.writers):
            return self._side_by_side(stream.writers[0], dim)
        bent = self.heads.bend_of(index)
        if bent is not None:
            return self.heads.bent_queries(index, bent, dim)
        if index in self.heads.meetings:
            return self.heads.queries(index, vertex, dim)
        normed = [reader for reader in stream.readers if reader in self.heads.normed]
        if normed:
            return self.heads.before_norm(stream, normed, dim)
        fixed = [member for member in sorted(stream.members) if member in self.facts.given]
        if fixed and spans_all_axes(self.facts, fixed[0]):
            because = (
                f"{self.facts.given[fixed[0]]}: it stays as it is, and its rows point along every "
                "axis, so that no change of basis is left but of what a norm does not see."
            )
            return Trivial(dim), because, ALGEBRA
        values = self.heads.bent_values(index)
        if values is not None:
            return self.heads.bent_heads(values, dim)
        gated = self.heads.gated_values(index)
        if gated is not None:
            return self.heads.gated_heads(index, gated, dim)
        family = self.family(index)
        if self.permuting(index):
            return self._axes(index, vertex, family, dim)
        if self.parts_of(index):
            return self._in_one_order(index, vertex)
        if self.commuting.joined(index):
            return self._joined_group(index, dim)
        composite = self.composites.of(index)
        if composite is not None:
            return composite.group, composite.said(), ALGEBRA
        self._require_understood(stream)
        if self.is_norm_output(index):
            return self._norm_output(index, dim)
        if any(self.facts.regions.get(w, NOTHING).shape.is_norm for w in stream.writers):
            raise NotUnderstood(
                "it is the output of a norm: the linear maps that read it absorb any change of "
                "basis, but the norm can write only what its gain and the stream before it allow"
            )
        self._require_own_scale(stream)
        if stream.value_mixed:
            return self.heads.values(stream, dim, shape)
        # All that led here is the same for every site of the stream.
        self._linear[index, dim] = found = self._between_linear_maps(index, dim)
        return found

    def _between_linear_maps(self, index: int, dim: int) -> tuple[Group, str, str]:
        """The group of what linear maps alone write and read, norms aside."""
        stream = self.facts.streams[index]
        self._require_no_gain_behind(stream)
        norms = self._norm_readers(stream)
        if any(self.facts.regions[norm].within for norm in norms):
            raise NotUnderstood("a norm inside each head reads it, and is no norm of queries")
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
        for norm in norms:
            self._require_own_readers(norm)
        kinds = {self.facts.regions[norm].shape for norm in norms}
        gains = (
            "; the gains of the norms fold exactly into the linear maps that read them"
            if any(self.facts.regions[norm].is_generic for norm in norms)
            else ""
        )
        if kinds == {Shape.RMS_NORM}:
            because = (
                f"written by linear maps only and read through RMSNorm ({len(norms)} of them), "
                f"which commutes with every rotation{gains}; tied embeddings count as untied."
            )
            return Orthogonal(dim), because, RESIDUAL
        if (
            kinds == {Shape.LAYER_NORM}
            and not self._is_transposed(index)
            and not self._pooled(norms)
        ):
            because = (
                f"written by linear maps only and read through LayerNorm ({len(norms)} of them), "
                "which commutes with the rotations that fix the all-ones direction and ignores "
                f"whatever is written along it{gains}; tied embeddings count as untied."
            )
            return LineStabiliser(dim), because, RESIDUAL
        because = (
            f"written by linear maps only and read through {len(norms)} norms, which commute with "
            f"the rotations that fix the all-ones direction{gains}; {self._along(index, norms)}."
        )
        return LineRotations(dim), because, RESIDUAL

    def _require_own_readers(self, norm: int) -> None:
        """Raises `NotUnderstood` if a map that a gain folds into reads something else, too."""
        self._once("readers", norm, lambda: self._check_own_readers(norm))

    def _once(self, what: str, index: int, check: Callable[[], None]) -> None:
        """Makes a check that many sites of one stream need, and raises again what it raised."""
        key = (what, index)
        if key not in self._said:
            try:
                check()
                self._said[key] = ""
            except NotUnderstood as reason:
                self._said[key] = str(reason)
        if self._said[key]:
            raise NotUnderstood(self._said[key])

    def _check_own_readers(self, norm: int) -> None:
        behind = self.facts.stream_of[norm]
        if not self._norm_is_folded(norm):
            return
        before = self.facts.stream_of[self.facts.graph.vertices[norm].carried[0]]
        for tie in self.ties.get(behind, ()):
            if tie.stream not in (behind, before) and not self._have_one_gain(norm, tie.stream):
                raise NotUnderstood(
                    f"a map behind the norm{_where(self.facts, norm)} is used elsewhere too, where "
                    "no gain can fold into it"
                )

    def _have_one_gain(self, norm: int, other: int) -> bool:
        """True if a norm writes another stream, too, or one with the same gain does."""
        if not self.is_norm_output(other):
            return False
        graph = self.facts.graph
        gains = (
            {id(fixed.tensor) for _, fixed in vectors_of(graph, vertex)}
            for vertex in (graph.vertices[norm], self.norm_of(other))
        )
        return next(gains) == next(gains)

    def _along(self, index: int, norms: list[int]) -> str:
        """Why it is not free what is written along the all-ones direction."""
        if self._pooled(norms):
            return "as means run over positions too, what is written along it is seen"
        if self._is_transposed(index):
            return "what reads it is the transpose of what writes it, so that rotations alone fit"
        if any(self.facts.regions[norm].shape is Shape.RMS_NORM for norm in norms):
            return "RMSNorm sees what is written along it"
        return "the norm that writes it writes nothing along it"

    def _pooled(self, norms: list[int]) -> bool:
        return any(self.facts.regions[norm].pooled for norm in norms)

    def _joined_group(self, index: int, dim: int) -> tuple[Group, str, str]:
        """Streams that norms without a gain, or batch normalisation in evaluation, join."""
        members = sorted(self.commuting.streams(index))
        for member in members:
            self._require_understood(self.facts.streams[member])
        if self.commuting.joined(index) == "affine":
            because = (
                "only linear maps write and read it, and batch normalisation, which in evaluation "
                "is a gain and a shift for every feature: both fold into the linear maps, so that "
                "every invertible change of basis is absorbed."
            )
            return GeneralLinear(dim), because, PAPER
        for member in members:
            self._require_own_scale(self.facts.streams[member])
            self._require_no_gain_behind(self.facts.streams[member])
        norms = [n for member in members for n in self._norm_readers(self.facts.streams[member])]
        said = f"linear maps and norms without a gain write and read it ({len(norms)} norms)"
        if {self.facts.regions[norm].shape for norm in norms} == {Shape.RMS_NORM}:
            because = f"{said}: RMSNorm commutes with every rotation, of all that it joins at once."
            return Orthogonal(dim), because, RESIDUAL
        stream = self.facts.streams[index]
        own = self._norm_readers(stream)
        written = any(self.commuting.kind(writer) for writer in stream.writers)
        layer = {self.facts.regions[norm].shape for norm in own} == {Shape.LAYER_NORM}
        because = (
            f"{said}: LayerNorm commutes with the rotations that fix the all-ones direction, of "
            "all that it joins at once"
        )
        if layer and not (written or self._pooled(own) or self._is_transposed(index)):
            return (
                LineStabiliser(dim),
                f"{because}, and ignores what is written along it.",
                RESIDUAL,
            )
        return LineRotations(dim), f"{because}; {self._along(index, norms)}.", RESIDUAL

    def _require_own_scale(self, stream: Stream) -> None:
        """Raises `NotUnderstood` if something that is no linear map gives features their size."""
        for writer in stream.writers:
            region = self.facts.regions.get(writer, NOTHING)
            if region.shape is Shape.DIAGONAL and not self.is_folded_gain(writer):
                raise NotUnderstood("a gain for every feature writes it, not a linear map")
            if self.commuting.kind(writer) == "affine" and not self.is_folded_gain(writer):
                raise NotUnderstood("batch normalisation writes it, and does not fold")

    def _require_no_gain_behind(self, stream: Stream) -> None:
        """Raises `NotUnderstood` if a gain writes another stream from this one."""
        for reader in stream.readers:
            behind = self.commuting.kind(reader) == "affine" and not self._norm_is_folded(reader)
            if behind or self.is_folded_gain(reader):
                raise NotUnderstood(
                    "a gain for every feature stands between it and the stream that it writes"
                )

    def _side_by_side(self, index: int, dim: int) -> tuple[Group, str, str]:
        """Features side by side, each part with the group that it has by itself."""
        graph, stream_of = self.facts.graph, self.facts.stream_of
        sources = graph.vertices[index].carried
        streams = [stream_of[source] for source in sources]
        families = [self.family(s) if self.permuting(s) else frozenset((s,)) for s in streams]
        if len(frozenset[int]().union(*families)) < sum(map(len, families)):
            raise NotUnderstood(
                f"{graph.vertices[index].op}{_where(self.facts, index)} puts features side by side "
                "that change together: what each of them may do stands where they are made"
            )
        parts: list[Group] = []
        for source in sources:
            shape, axes = graph.trace.node(source).shape, graph.layouts[source].axes
            sizes = tuple(shape[axis] for axis in axes)
            parts.append(
                self._group(stream_of[source], graph.vertices[source], math.prod(sizes), sizes)[0]
            )
        if sum(part.dim for part in parts) != dim:
            raise NotUnderstood("parts that were put side by side could not be counted")
        because = (
            "features are put side by side for linear maps to read: each part changes as it does "
            "by itself."
        )
        return DirectSum(tuple(parts)), because, ALGEBRA

    def _given(self, stream: Stream, dim: int) -> tuple[Group, str, str]:
        if self.is_input(stream):
            return Trivial(dim), "these are the model's input, whose axes are given.", ALGEBRA
        because = "the model returns this: its axes are the vocabulary, the classes or the outputs."
        return Trivial(dim), because, ALGEBRA

    # --- norms ----------------------------------------------------------------------------------

    def is_norm_output(self, index: int) -> bool:
        """True if a norm with a gain writes a stream, and only linear maps read it."""
        stream, regions = self.facts.streams[index], self.facts.regions
        if len(stream.writers) != 1 or stream.sums or stream.value_mixed or stream.returned:
            return False
        region = regions.get(stream.writers[0], NOTHING)
        if not (region.shape.is_norm or region.shape is Shape.DIAGONAL) or region.within:
            return False
        vertex = self.facts.graph.vertices[stream.writers[0]]
        if not region.learned:
            return False
        if not any(True for _ in vectors_of(self.facts.graph, vertex)) and not is_plain(
            self.facts, stream.writers[0]
        ):
            return False
        before = self.facts.streams[self.facts.stream_of[vertex.carried[0]]]
        if region.shape is Shape.DIAGONAL and not (
            len(before.writers) == 1
            and regions.get(before.writers[0], NOTHING).shape.is_norm
            and not regions[before.writers[0]].within
        ):
            return False
        return all(self.is_map(reader) for reader in stream.readers)

    def norm_source(self, index: int) -> int | None:
        """The stream that a norm reads, of one that the norm, or a gain behind it, writes."""
        if not self.is_norm_output(index):
            return None
        return self.facts.stream_of[self.norm_of(index).carried[0]]

    def norm_of(self, index: int) -> Vertex:
        """The norm that writes a stream, or that a gain reads which writes it."""
        (writer,) = self.facts.streams[index].writers
        vertex = self.facts.graph.vertices[writer]
        while not self.facts.regions[vertex.node].shape.is_norm:
            before = self.facts.streams[self.facts.stream_of[vertex.carried[0]]]
            vertex = self.facts.graph.vertices[before.writers[0]]
        return vertex

    def _norm_output(self, index: int, dim: int) -> tuple[Group, str, str]:
        (writer,) = self.facts.streams[index].writers
        vertex = self.norm_of(index)
        source = vertex.carried[0]
        self._require_no_constants(self.facts.stream_of[source])
        # Only orders of what the norm reads are asked for.
        self._free(self.facts.stream_of[source], Permutation(dim), "")
        before = self._group(
            self.facts.stream_of[source], self.facts.graph.vertices[source], dim, (dim,)
        )[0]
        plain = is_plain(self.facts, vertex.node)
        ungained = plain and vertex.node == writer
        as_before = "a norm without a gain writes it, which changes as the stream before it does."
        if ungained:
            if isinstance(before, LineStabiliser):
                return LineRotations(dim), as_before, RESIDUAL
            if isinstance(before, Orthogonal | Permutation | SignedPermutation):
                return before, as_before, RESIDUAL
        parts = before.parts if isinstance(before, DirectSum) else ()
        if not parts and not isinstance(
            before, Orthogonal | LineStabiliser | Permutation | SignedPermutation
        ):
            raise NotUnderstood(
                "it is the output of a norm, and the axes before the norm are not free to change "
                "places"
            )
        ordered = all(isinstance(part, Permutation | SignedPermutation) for part in parts)
        if parts and not ordered:
            raise NotUnderstood(
                "it is the output of a norm, and the axes before the norm change in parts, each in "
                "its own way"
            )
        if ungained and parts:
            return before, as_before, RESIDUAL
        if not self._has_own_gain(writer):
            if parts or isinstance(before, Permutation | SignedPermutation):
                because = (
                    "a norm's gain writes it, which serves another place too: the axes change "
                    "places together with those of the stream that the norm reads."
                )
                return before, because, ALGEBRA
            raise NotUnderstood("a norm's gain writes it, which serves another place too")
        because = (
            "a norm's gain writes it, feature by feature: the linear maps that read it would "
            "absorb any change of basis, but a gain is one again only after the axes were "
            "permuted, together with those of the stream that the norm reads, and rescaled."
        )
        if parts:
            return DirectSum(tuple(Monomial(part.dim) for part in parts)), because, ALGEBRA
        return Monomial(dim), because, ALGEBRA

    def _has_own_gain(self, vertex: int) -> bool:
        """True if nothing else uses the weights of a norm, or of a gain."""
        return not self._with_one_gain(vertex)

    def _takes_up_scales(self, vertex: int) -> bool:
        """True for a norm of whole rows whose own vectors can give any gain, with its bias."""
        region, graph = self.facts.regions[vertex], self.facts.graph
        if region.within or not region.learned or vertex in self._vectors:
            return False
        place = graph.vertices[vertex]
        if region.gain is None or region.bias is None or not self._has_own_gain(vertex):
            return False
        own = [fixed.tensor for _, fixed in vectors_of(graph, place)]
        if not own or any(not isinstance(tensor, nn.Parameter) for tensor in own):
            return False
        dim = len(region.gain)
        row = torch.linspace(-1.0, 2.0, dim, dtype=torch.float64, device=region.gain.device)
        rows = torch.stack([0 * row, row])
        doubled = {
            id(tensor): 2 * graph.trace.instead.get(id(tensor), tensor).detach().double()
            for tensor in own
        }
        try:
            (zero, at), (nought, there) = (
                evaluate(graph, place, (rows,), fixed) for fixed in ({}, doubled)
            )
        except (RuntimeError, ValueError, TypeError, LookupError):
            return False
        adds = torch.allclose(nought, 2 * zero, rtol=1e-4, atol=1e-6 * float(at.abs().max()))
        return adds and not torch.allclose(at - zero, there - nought, rtol=1e-3, atol=0.0)

    def _with_one_gain(self, vertex: int) -> frozenset[int]:
        """The other norms and functions that use some of the numbers that one uses."""
        vertices = self.facts.graph.vertices
        if vertex not in self.facts.regions:
            return frozenset()
        if self._gains is None:
            self._gains = {}
            for other in self.facts.regions:
                for key in numbers_of(self.facts, vertices[other]):
                    self._gains.setdefault(key, set()).add(other)
        own = numbers_of(self.facts, vertices[vertex])
        found = frozenset[int]().union(*(self._gains.get(key, ()) for key in own))
        return found - {vertex}

    def _axes(
        self, index: int, vertex: Vertex, family: frozenset[int], dim: int
    ) -> tuple[Group, str, str]:
        scales = self.relations(family).solved()
        stream = self.facts.streams[index]
        because = self._because_axes(stream)
        self._require_parts_apart(family)
        if any(self._fixed(self.facts.streams[member]) for member in family):
            because += (
                " The model's own input or output belongs to the same family of axes, so that "
                "not even their order is free."
            )
            return Trivial(dim), because, PAPER
        for link in self.family_links(family):
            region = self.facts.regions.get(link, NOTHING)
            if region.shape.is_norm and region.within:
                raise NotUnderstood(
                    f"{region.op}{_where(self.facts, link)} norms each head by itself, and "
                    "something besides linear maps reads what it writes"
                )
            if region.shape is Shape.DIAGONAL and not region.learned:
                raise NotUnderstood(
                    f"{region.op}{_where(self.facts, link)} acts on every feature with a "
                    "constant of its own that is no weight"
                )
        kind = _GROUPS[scales[index]]
        parts = self._parts(index, family, dim)
        if len(parts) > 1:
            because += (
                " Features were concatenated, parted, reordered or taken in groups or heads on the "
                "way, and change places only inside a part."
            )
            return DirectSum(tuple(_sized(kind, size) for size in parts)), because, PAPER
        return _sized(kind, dim), because, PAPER

    def parts_of(self, index: int) -> tuple[int, ...]:
        """The streams that a tensor falls into, in order, whose axes change places together.

        Empty where it does not fall into such parts, or they are not all of it.
        """
        if index not in self._parts_known:
            self._parts_known[index] = self._find_parts(index)
        return self._parts_known[index]

    def _find_parts(self, index: int) -> tuple[int, ...]:
        graph, stream = self.facts.graph, self.facts.streams[index]
        found: list[tuple[tuple[int, ...], int]] = []
        for reader in stream.readers:
            vertex = graph.vertices[reader]
            if vertex.kind is not Kind.PART or vertex.part is None or self.is_link(reader):
                return ()
            found.append((vertex.part, self.facts.stream_of[reader]))
        found.sort()
        parts = tuple(part for _, part in found)
        taken = [feature for features, _ in found for feature in features]
        if len(found) < 2 or taken != list(range(len(taken))):
            return ()
        if len({*parts}) < len(parts) or len({len(features) for features, _ in found}) > 1:
            return ()
        if not self._is_free_part(graph.vertices[stream.readers[0]]):
            return ()
        families = {self.family(part) for part in parts}
        if len(families) > 1 or not all(self.permuting(part) for part in parts):
            return ()
        family = families.pop()
        if any(min(self.facts.streams[member].members) not in graph.layouts for member in family):
            return ()
        origins = self.origins(parts[0], family)
        still = torch.arange(len(found[0][0]))
        return parts if all(torch.equal(origins[part], still) for part in parts) else ()

    def origins(self, index: int, family: frozenset[int]) -> dict[int, Tensor]:
        """Stream -> for every feature the feature of one stream that it belongs to, or -1."""
        found = {member: torch.full((self._width_of(member),), -1) for member in family}
        found[index] = torch.arange(self._width_of(index))
        changed = True
        while changed:
            changed = False
            for source, target, places in self.seams(family):
                inside = found[target][places]
                joined = torch.where(inside >= 0, inside, found[source])
                if not torch.equal(joined, inside) or not torch.equal(joined, found[source]):
                    found[target][places] = joined
                    found[source] = joined.clone()
                    changed = True
        return found

    def parted(self, family: frozenset[int]) -> dict[int, tuple[int, ...]]:
        """Tensors that fall into streams of a family -> these streams, in order."""
        graph = self.facts.graph
        sources = {
            self.facts.stream_of[graph.vertices[writer].carried[0]]
            for member in family
            for writer in self.facts.streams[member].writers
            if graph.vertices[writer].kind is Kind.PART
        }
        return {source: parts for source in sorted(sources) if (parts := self.parts_of(source))}

    def _in_one_order(self, index: int, vertex: Vertex) -> tuple[Group, str, str]:
        """What a map writes whose parts meet feature by feature, as a gate and its input do."""
        parts = self.parts_of(index)
        family = self.family(parts[0])
        relations = self.relations(family)
        groups: list[OnAxes] = []
        for part in parts:
            group = self._axes(part, vertex, family, self._width_of(part))[0]
            power, bit = relations.following(part, {*parts} - {part})[part]
            if not isinstance(group, OnAxes):
                raise NotUnderstood("the axes of its parts change places in several ways")
            if (group.positive_scales and abs(power - 1) > 1e-9) or (group.signs and not bit):
                raise NotUnderstood("the scales of its parts depend on each other")
            groups.append(group)
        because = (
            f"its {len(parts)} parts meet feature by feature, so that their axes change places "
            "together: "
            + "; ".join(
                f"part {number}: {type(group).__name__}" for number, group in enumerate(groups, 1)
            )
            + "."
        )
        return DirectSum(tuple(groups), order="shared"), because, ALGEBRA

    def _said_of(self, link: int) -> str:
        along = self.rescaling(link)
        if along is None:
            return _said(self.intertwiner(link))
        scales = "c other than zero" if along.signs else "positive c"
        power = "" if along.degree == 1 else f"^{along.degree}"
        return (
            f"f(c t) = c{power} f(t) for every {scales} if its own vectors are multiplied by c, or "
            "divided by it, measured at values of t from -1e6 to 1e6"
        )

    def _because_axes(self, stream: Stream) -> str:
        regions = self.facts.regions
        said: list[str] = []
        for reader in stream.readers:
            region = regions.get(reader)
            if region is not None and region.shape in (Shape.ELEMENTWISE, Shape.COUPLED):
                said.append(f"it is read by {region.op}, for which {self._said_of(reader)}")
        for writer in stream.writers:
            region = regions.get(writer)
            if region is None:
                continue
            if region.shape in (Shape.ELEMENTWISE, Shape.COUPLED):
                said.append(f"it is written by {region.op}, for which {self._said_of(writer)}")
            elif region.shape is Shape.PRODUCT:
                said.append("it is the product of two tensors, feature by feature")
            elif region.shape is Shape.PAIRED:
                said.append(f"{region.op} makes it of two tensors, feature by feature")
            elif region.shape in (Shape.RMS_NORM, Shape.LAYER_NORM):
                said.append("a norm with a gain of its own for every feature writes to it")
        if any(regions.get(r, NOTHING).shape is Shape.PRODUCT for r in stream.readers):
            said.append("it is multiplied with another tensor, feature by feature")
        said += [
            f"{regions[r].op} joins it with another tensor, feature by feature"
            for r in stream.readers
            if regions.get(r, NOTHING).shape is Shape.PAIRED
        ]
        vertices = self.facts.graph.vertices
        touching = (*stream.writers, *stream.readers)
        if any(vertices[w].kind is Kind.BATCH_NORM for w in stream.writers):
            said.append("batch normalisation writes it, channel by channel")
        if any(vertices[r].kind is Kind.BATCH_NORM for r in stream.readers):
            said.append("batch normalisation reads it, channel by channel")
        if any(vertices[v].kind is Kind.GROUPED for v in touching):
            said.append("a convolution mixes channels inside groups only")
        if any(vertices[v].kind is Kind.GROUP_NORM for v in touching):
            said.append("channels are normalised in groups")
        if any(vertices[r].kind is Kind.DEPTHWISE for r in stream.readers):
            said.append("a depthwise convolution reads it, channel by channel")
        if any(regions.get(v, NOTHING).shape is Shape.DIAGONAL for v in touching):
            said.append("it is multiplied with a weight vector, feature by feature")
        said += [
            f"{vertices[v].op} runs along the positions of each feature"
            for v in touching
            if vertices[v].kind is Kind.ALONG
        ]
        if stream.max_pooled:
            said.append(
                "max pooling, or another extreme, reads it, which only non-negative scales pass"
            )
        if not said:
            said.append("it shares its axes with a stream that a nonlinearity fixes")
        unique = list(dict.fromkeys(said))
        text = "; ".join(entry.rstrip(".") for entry in unique[:3])
        return text[0].upper() + text[1:] + "."

    # --- what writes and reads ------------------------------------------------------------------

    def _fixed(self, stream: Stream) -> bool:
        return stream.returned or self.is_input(stream)

    def is_input(self, stream: Stream) -> bool:
        """True if the model's input, or a part of it, is in a stream."""
        vertices = self.facts.graph.vertices
        for writer in stream.writers:
            vertex = vertices[writer]
            while vertex.kind in (Kind.PART, Kind.CARRIER) and len(vertex.carried) == 1:
                vertex = vertices[vertex.carried[0]]
            if vertex.kind is Kind.INPUT:
                return True
        return False

    def _norm_readers(self, stream: Stream) -> list[int]:
        regions = self.facts.regions
        return [r for r in stream.readers if r in regions and regions[r].shape.is_norm]

    def _norm_is_folded(self, norm: int) -> bool:
        """True if only linear maps read the norm's output, so that its gain folds into them."""
        if norm not in self._folded:
            self._folded[norm] = self._folds(norm)
        return self._folded[norm]

    def _folds(self, norm: int) -> bool:
        stream = self.facts.streams[self.facts.stream_of[norm]]
        if stream.returned or len(stream.writers) != 1 or stream.max_pooled:
            return False
        for reader in stream.readers:
            if self.is_map(reader):
                continue
            region = self.facts.regions.get(reader)
            if region is not None and region.shape is Shape.DIAGONAL and self._only_linear(reader):
                continue
            return False
        return True

    def _only_linear(self, vertex: int) -> bool:
        """True if a diagonal map's output is read by linear maps only."""
        stream = self.facts.streams[self.facts.stream_of[vertex]]
        return (
            not stream.returned
            and stream.writers == (vertex,)
            and all(self.is_map(reader) for reader in stream.readers)
        )

    def _parts(self, index: int, family: frozenset[int], dim: int) -> list[int]:
        """Sizes of the parts of a stream inside which features may change places.

        Where features were concatenated, parted or put in another order, the parts are handed on to
        every stream that shares its axes. Of a part whose features lie apart, each stretch counts.
        """
        if family not in self._labels:
            self._labels[family] = self._family_parts(family)
        found = self._labels[family][index]
        edges = (found.diff() != 0).nonzero().flatten() + 1
        ordered = sorted({0, dim} | {edge for edge in edges.tolist() if edge < dim})
        return [after - before for before, after in itertools.pairwise(ordered)]

    def seams(self, family: frozenset[int]) -> list[tuple[int, int, Tensor]]:
        """(source, target, places): where the features of one stream lie in another."""
        graph, stream_of = self.facts.graph, self.facts.stream_of
        seams: list[tuple[int, int, Tensor]] = []
        for vertex in self.family_links(family):
            found = graph.vertices[vertex]
            joined = found.kind in (Kind.CONCAT, Kind.PADDED)
            place = found.zeros[0]
            if found.part is not None:
                whole = stream_of[found.carried[0]]
                seams.append((stream_of[vertex], whole, torch.tensor(found.part)))
                continue
            for source in self.sources(vertex):
                width = self._width_at(source)
                places = torch.arange(place, place + width)
                seams.append((stream_of[source], stream_of[vertex], places))
                place += width if joined else 0
        for member in family:
            for tie in self.ties.get(member, ()):
                width = self._width_of(member)
                if tie.stream in family and width == self._width_of(tie.stream):
                    seams.append((member, tie.stream, torch.arange(width)))
        return seams

    def _family_parts(self, family: frozenset[int]) -> dict[int, Tensor]:
        """Stream -> for every feature the number of its part."""
        graph, stream_of = self.facts.graph, self.facts.stream_of
        seams = self.seams(family)
        parts = {m: torch.zeros(self._width_of(m), dtype=torch.int64) for m in family}
        for vertex in self.family_links(family):
            found, target = graph.vertices[vertex], stream_of[vertex]
            if found.kind is Kind.GROUP_NORM:
                parts[target] = _refined(
                    parts[target], _in_groups(parts[target], groups_of(graph.trace.node(vertex)))
                )
        for _, target, places in seams:
            inside = torch.zeros_like(parts[target])
            inside[places] = 1
            parts[target] = _refined(parts[target], inside)
        for member in family:
            heads = (
                self.heads.value_heads(member) if self.facts.streams[member].value_mixed else None
            )
            for groups in (*self._groups_around(member), *([heads] if heads else [])):
                parts[member] = _refined(parts[member], _in_groups(parts[member], groups))
        changed = True
        while changed:
            before = sum(int(labels.max()) for labels in parts.values())
            for source, target, places in seams:
                outside = torch.full_like(parts[target], -1)
                outside[places] = parts[source]
                parts[source] = _refined(parts[source], parts[target][places])
                parts[target] = _refined(parts[target], outside)
            changed = sum(int(labels.max()) for labels in parts.values()) != before
        return parts

    def _groups_around(self, index: int) -> list[int]:
        """Into how many groups convolutions divide the channels that they read or write."""
        stream, found = self.facts.streams[index], list[int]()
        for vertex in (*stream.readers, *stream.writers):
            if self.facts.graph.vertices[vertex].kind is Kind.GROUPED:
                node = self.facts.graph.trace.node(vertex)
                found.append(node.kwargs.get("groups", node.args[6] if len(node.args) > 6 else 1))
        return found

    def _width_of(self, index: int) -> int:
        return self._width_at(min(self.facts.streams[index].members))

    def _width_at(self, vertex: int) -> int:
        """The number of features at a vertex."""
        graph = self.facts.graph
        layout, shape = graph.layouts[vertex], graph.trace.node(vertex).shape
        return math.prod(shape[axis] for axis in layout.axes) // layout.repeat

    def family_links(self, family: frozenset[int]) -> list[int]:
        if family not in self._family_links:
            streams = self.facts.streams
            touching = {v for m in family for v in (*streams[m].writers, *streams[m].readers)}
            self._family_links[family] = sorted(v for v in touching if self.is_link(v))
        return self._family_links[family]

    def _require_understood(self, stream: Stream) -> None:
        """Raises `NotUnderstood` with the first neighbour that no rule covers."""
        index = self.facts.stream_of[min(stream.members)]
        self._once("neighbours", index, lambda: self._check_neighbours(stream))

    def _check_neighbours(self, stream: Stream) -> None:
        vertices, regions = self.facts.graph.vertices, self.facts.regions
        lost = self.facts.graph.lost & stream.members
        if self._of_one_position & {*stream.members, *stream.writers, *stream.readers}:
            raise NotUnderstood(
                "what it meets belongs to a position, and the example has one only: give an "
                "example of several positions"
            )
        if lost & self._left:
            raise NotUnderstood(
                f"numbers of {vertices[min(lost & self._left)].op}"
                f"{_where(self.facts, min(lost & self._left))} leave torch, for NumPy or another "
                "library, and what is made of them there cannot be seen"
            )
        if lost:
            raise NotUnderstood(
                f"what becomes of {vertices[min(lost)].op}{_where(self.facts, min(lost))} could "
                "not be followed"
            )
        for index in (*stream.members, *stream.writers, *stream.readers):
            why = self.facts.given.get(index) or self._overlapping.get(index)
            if why is None and index in stream.writers:
                why = self.facts.biases.get(index) or self._vectors_overlapping.get(index)
            if why is None and index in stream.members:
                why = self._vectors_overlapping.get(index)
            if why is not None and index not in self.heads.inside:
                # Constants that are acted on are the nearer reason.
                self._require_no_constants(self.facts.stream_of[min(stream.members)])
                raise NotUnderstood(why)
        first = min(stream.members)
        if first not in self._adding:
            self._adding[first] = self._adds_what_others_read(stream)
        if self._adding[first]:
            raise NotUnderstood("a learned vector that is added to it is used elsewhere too")
        index = self.facts.stream_of[first]
        if self._groups_around(index) and not self.permuting(index):
            raise NotUnderstood(
                "a convolution reads or writes it in groups, and nothing else keeps its axes apart"
            )
        for writer in stream.writers:
            vertex = vertices[writer]
            where = _where(self.facts, writer)
            if writer in self.heads.inside and self._holds_queries(stream):
                continue
            if vertex.kind is Kind.OTHER:
                raise NotUnderstood(f"it is written by {self._not_covered(vertex)}")
            if self.is_link(writer) and vertex.kind in (Kind.PART, Kind.REORDERED):
                continue
            if vertex.kind is Kind.REORDERED:
                raise NotUnderstood(
                    f"{vertex.op}{where} puts its features in another order, and nothing keeps "
                    "their axes apart"
                )
            if vertex.kind is Kind.PART and not self._is_free_part(vertex):
                raise NotUnderstood(
                    f"it is a part of a wider tensor{where} that not only linear maps write, or "
                    "whose parts are not read one by one"
                )
            if vertex.kind is Kind.REGION and regions[writer].shape is Shape.UNKNOWN:
                raise NotUnderstood(f"{regions[writer].why}{where}")
        for reader in stream.readers:
            vertex = vertices[reader]
            where = _where(self.facts, reader)
            if reader in self.heads.inside and self._holds_queries(stream):
                continue
            if vertex.kind is Kind.ATTENTION and set(vertex.used) & stream.members:
                raise NotUnderstood(f"queries or keys are read by {vertex.op}{where}")
            if vertex.kind is Kind.OTHER:
                raise NotUnderstood(f"it is read by {self._not_covered(vertex)}")
            if vertex.kind is Kind.CARRIER and set(vertex.used) & stream.members:
                raise NotUnderstood(
                    f"it is the factor of whole rows in a product, {vertex.op}{where}, which no "
                    "rule covers"
                )
            if self.is_link(reader) and vertex.kind in (Kind.PART, Kind.REORDERED):
                continue
            if vertex.kind is Kind.REORDERED:
                raise NotUnderstood(
                    f"{vertex.op}{where} puts its features in another order, and nothing keeps "
                    "their axes apart"
                )
            if vertex.kind is Kind.PART:
                raise NotUnderstood(f"its features are read in parts{where}, each in its own way")
            if vertex.across:
                raise NotUnderstood(
                    f"{vertex.op}{where} does not read its features, but acts across positions or "
                    "inside parts of the features"
                )
            if vertex.kind is Kind.REGION and regions[reader].shape is Shape.UNKNOWN:
                raise NotUnderstood(f"{regions[reader].why}{where}")

    def _adds_what_others_read(self, stream: Stream) -> bool:
        """True if a parameter that is added to a stream has other uses, which would not follow.

        Streams that share what writes them follow each other, with what is added to both.
        """
        graph = self.facts.graph
        for member in stream.members:
            node = graph.trace.node(member)
            if graph.vertices[member].kind is Kind.SUM or node.op == "cat":
                for value in constants_of(graph.trace, node):
                    for leaf in added_leaves(graph.trace, value):
                        if not self._follows(stream, leaf.tensor):
                            return True
        return False

    def _follows(self, stream: Stream, vector: Tensor) -> bool:
        """True if all that uses a parameter that is added to a stream changes as the stream does.

        So do sums in streams that share what writes them, and biases of the maps that write these:
        of a map of zeros, as a first state is, the bias is all that is left.
        """
        streams, vertices = self.facts.streams, self.facts.graph.vertices
        own = self.facts.stream_of[min(stream.members)]
        tied = {tie.stream for tie in self.ties.get(own, ()) if not tie.transposed}
        follow = stream.members.union(
            member
            for number in tied
            for member in streams[number].members
            if vertices[member].kind is Kind.SUM
        )
        if vector.ndim == 1:
            follow |= frozenset(
                writer
                for number in (own, *tied)
                for writer in streams[number].writers
                if vertices[writer].kind is Kind.LINEAR
            )
        return self._users_of().get(id(vector), set()) <= follow

    def serves_others(self, index: int, value: object) -> bool:
        """True if a parameter that is added at a vertex has uses that do not change along.

        Args:
            index: the vertex.
            value: what is added.
        """
        stream = self.facts.streams[self.facts.stream_of[index]]
        leaves = (
            learned_behind(self.facts.graph.trace, value.node) if isinstance(value, Ref) else ()
        )
        return any(not self._follows(stream, leaf) for leaf in leaves)

    def _has_other_uses(self, weight: Computed) -> bool:
        """True if what a weight is computed from is read by other calls than its linear map."""
        return any(
            not self._users_of().get(id(tensor), set()) <= weight.inner
            for tensor in learned_behind(self.facts.graph.trace, weight.node)
        )

    def _users_of(self) -> dict[int, set[int]]:
        """Parameter -> the calls on activations that read it, or what is computed from it."""
        if self._users is None:
            made: dict[int, set[int]] = {}
            self._users = {}
            for node in self.facts.graph.trace.nodes:
                leaves = {
                    id(fixed.tensor)
                    for fixed in fixed_in((node.args, node.kwargs))
                    if fixed.name is not None
                }
                for index in node.inputs:
                    leaves |= made.get(index, set())
                if not node.live:
                    made[node.index] = leaves
                    continue
                for leaf in leaves:
                    self._users.setdefault(leaf, set()).add(node.index)
        return self._users

    def _not_covered(self, vertex: Vertex) -> str:
        """What no rule covers, by the name of the function, and what to do where that is known."""
        trace = self.facts.graph.trace
        node = trace.node(vertex.node)
        if node.op == "output":
            node = trace.node(node.inputs[0])
        name = f"{node.op}{_where(self.facts, node.index)}"
        if node.op in RECURRENT:
            return (
                f"{name}, which is followed for sequences shorter than {LONGEST + 1} steps that "
                "are not packed: give such an example_input"
            )
        return f"{name}, which no rule covers"

    def _holds_queries(self, stream: Stream) -> bool:
        """True if queries or keys of an attention are in a stream, turned or not yet."""
        return any(
            side.source in stream.members or side.end in stream.members
            for whole in self.facts.attentions
            for attention in whole.each
            for side in (attention.query, attention.key)
            if isinstance(side, Side)
        )

    def _companions(self, index: int) -> frozenset[int]:
        """The streams that change where a stream does, and itself."""
        stream_of = self.facts.stream_of
        found = {index, *self.tied_to(index)}
        if self.permuting(index):
            found |= self.family(index)
        if self.commuting.joined(index):
            found |= set(self.commuting.streams(index))
        met = [attention for attention, _ in self.heads.meetings.get(index, ())]
        readers = self.facts.streams[index].readers
        met += [self.heads.normed[reader][0] for reader in readers if reader in self.heads.normed]
        for attention in met:
            for side in (attention.query, attention.key):
                if isinstance(side, Side):
                    normed = side.source in self.heads.normed
                    before = self.facts.graph.vertices[side.source].carried if normed else ()
                    found |= {stream_of[vertex] for vertex in (side.source, *before)}
        return frozenset(found)

    def _is_free_part(self, part: Vertex) -> bool:
        """True if a part of a wider tensor is written by linear maps as if it stood alone."""
        facts, graph = self.facts, self.facts.graph
        source = facts.streams[facts.stream_of[part.carried[0]]]
        if source.returned or source.value_mixed or source.max_pooled:
            return False
        for writer in source.writers:
            vertex = graph.vertices[writer]
            held = self._overlapping, self._vectors_overlapping, facts.given, facts.biases
            if any(writer in some for some in held):
                return False
            if vertex.kind is Kind.PART and not self._is_free_part(vertex):
                return False
            if vertex.kind not in (Kind.LINEAR, Kind.CONVOLUTION, Kind.EMBEDDING, Kind.PART):
                return False
        taken: set[int] = set()
        sizes: set[int] = set()
        parts: set[tuple[int, ...]] = set()
        for reader in source.readers:
            vertex = graph.vertices[reader]
            if vertex.kind is not Kind.PART or vertex.part is None:
                return False
            if vertex.part not in parts and taken & set(vertex.part):
                return False
            parts.add(vertex.part)
            taken |= set(vertex.part)
            layout = graph.layouts[vertex.carried[0]]
            shape = graph.trace.node(vertex.carried[0]).shape
            sizes.add(math.prod(shape[axis] for axis in layout.axes))
        # Features are counted alike only where there are as many of them.
        return len(sizes) == 1

    def _require_parts_apart(self, family: frozenset[int]) -> None:
        """Raises `NotUnderstood` if axes that were concatenated also belong together otherwise."""
        if family in self._apart:
            return
        links = {v: self._joined(v) for v in self.family_links(family)}
        for vertex, ends in links.items():
            if self.facts.graph.vertices[vertex].kind not in (Kind.CONCAT, Kind.PADDED):
                continue
            parent = {member: member for member in family}
            for other, others in links.items():
                if other != vertex:
                    for end in others[1:]:
                        parent[_root(parent, end)] = _root(parent, others[0])
            for member in family:
                for tie in self.ties.get(member, ()):
                    if tie.stream in family:
                        parent[_root(parent, tie.stream)] = _root(parent, member)
            if len({_root(parent, end) for end in ends}) < len(ends):
                raise NotUnderstood(
                    f"{self.facts.graph.vertices[vertex].op}{_where(self.facts, vertex)} joins "
                    "features that change places together"
                )
        self._require_features_apart(family)
        self._apart.add(family)

    def _require_features_apart(self, family: frozenset[int]) -> None:
        """Raises `NotUnderstood` if two features of one stream belong together by some way."""
        vertices = self.facts.graph.vertices
        moved = [v for v in self.family_links(family) if vertices[v].part is not None]
        if not moved:
            return
        seams, count = self.seams(family), 0
        firsts: dict[int, Tensor] = {}
        for member in sorted(family):
            width = self._width_of(member)
            firsts[member] = torch.arange(count, count + width)
            count += width
        changed = True
        while changed:
            before = sum(int(first.sum()) for first in firsts.values())
            for source, target, places in (*seams, *reversed(seams)):
                least = torch.minimum(firsts[source], firsts[target][places])
                firsts[source] = least.clone()
                firsts[target][places] = torch.minimum(firsts[target][places], least)
            changed = sum(int(first.sum()) for first in firsts.values()) != before
        if any(len(first.unique()) < len(first) for first in firsts.values()):
            node = self.facts.graph.trace.node(moved[0])
            made = self.facts.graph.trace.node(node.inputs[0]) if node.op == "output" else node
            raise NotUnderstood(
                f"{made.op}{_where(self.facts, moved[0])} takes features apart that change places "
                "together"
            )

    def _joined(self, link: int) -> list[int]:
        """The streams on both sides of a function of single features."""
        stream_of = self.facts.stream_of
        return [stream_of[link], *(stream_of[source] for source in self.sources(link))]

    # --- weights that are used more than once -----------------------------------------------------

    def _is_transposed(self, index: int) -> bool:
        """True if a matrix that writes the stream reads it too, transposed."""
        return True in self.tied_to(index).get(index, ())

    def tied_to(self, index: int) -> dict[int, set[bool]]:
        """Streams that ties lead to, and whether they change by the inverse transpose then."""
        found: dict[int, set[bool]] = {index: {False}}
        waiting = [(index, False)]
        while waiting:
            here, turned = waiting.pop()
            for tie in self.ties.get(here, ()):
                after = turned != tie.transposed
                if after not in found.setdefault(tie.stream, set()):
                    found[tie.stream].add(after)
                    waiting.append((tie.stream, after))
        return found

    def _tied(self, index: int, group: Group, because: str) -> tuple[Group, str]:
        """The claim, or the smaller one that weights used in several places leave.

        Streams that one matrix reads, or writes, in several places change together. Where one of
        them stands by itself, it may follow the others.

        Raises:
            NotUnderstood: if the streams have other symmetries, and none of them can follow.
        """
        if not isinstance(group, Trivial):
            self._require_no_constants(index)
        seen: set[int] = set()
        waiting = [index]
        smaller: Group | None = None
        while waiting:
            here = waiting.pop()
            if here in seen or here in self._free_ties:
                continue
            seen.add(here)
            if self.permuting(here):
                waiting.extend(self.family(here))
            waiting.extend(self._beside(here))
            for tie in self.ties.get(here, ()):
                waiting.append(tie.stream)
                own, other = self._group_at(tie.own), self._group_at(tie.other)
                line = tie.transposed and isinstance(own, LineStabiliser)
                if own is not None and own == other and not line:
                    continue
                # What is written along the all-ones direction here is read along it there.
                less = (
                    LineRotations(own.dim)
                    if own is not None and own == other
                    else self._following(here, own, tie, other)
                )
                if less is None or smaller not in (None, less) or self._beside(index):
                    names = [_name(self.facts, vertex) for vertex in (tie.own, tie.other)]
                    places = " and ".join(dict.fromkeys(names))
                    raise NotUnderstood(
                        f"weights are used in several places ({places}), whose symmetries are not "
                        "the same"
                    )
                smaller = less
        if smaller is None:
            self._free_ties |= seen
        elif group != smaller and (
            self._stands_alone(index, group) or isinstance(group, _TURNING | Monomial)
        ):
            because += (
                " The weights that read or write it are used elsewhere too, where less is free: it "
                f"changes as the axes there do ({smaller.name})."
            )
            return smaller, because
        return group, because

    def _require_no_constants(self, index: int) -> None:
        """Raises `NotUnderstood` if a stream changes with one that constants hold."""
        if not self._held_by_constants:
            return
        seen: set[int] = set()
        waiting = [index]
        while waiting:
            here = waiting.pop()
            if here in seen:
                continue
            seen.add(here)
            if here in self._held_by_constants:
                raise NotUnderstood(self._held_by_constants[here])
            if self.permuting(here):
                waiting.extend(self.family(here))
            waiting.extend(self._beside(here))
            waiting.extend(tie.stream for tie in self.ties.get(here, ()))

    def _beside(self, index: int) -> list[int]:
        """The streams whose features a stream holds side by side."""
        writers = self.facts.streams[index].writers
        if not writers or not self.sets_side_by_side(writers[0]):
            return []
        return [self.facts.stream_of[s] for s in self.facts.graph.vertices[writers[0]].carried]

    def _following(
        self, index: int, group: Group | None, tie: Tie, its: Group | None
    ) -> Group | None:
        """The smaller one of two groups, if the stream of the larger one can follow."""
        other = tie.stream
        if group is None or its is None or group.dim != its.dim:
            return None
        for one, alone, leads in ((index, group, its), (other, its, group)):
            if self._stands_alone(one, alone):
                if one == index and self.is_norm_output(other):
                    # What a norm wrote moves first: the map that both are read by follows it.
                    return None
                if isinstance(leads, LineStabiliser) and tie.transposed:
                    # What is written along the all-ones direction is read along it there.
                    return LineRotations(leads.dim)
                if isinstance(
                    leads, OnAxes | Trivial | Orthogonal | LineRotations | LineStabiliser
                ):
                    return leads
        for turning, behind, source, norm in (
            (group, its, index, other),
            (its, group, other, index),
        ):
            # A stream, and what the gain of a norm of it wrote, by a matrix and its transpose.
            if isinstance(turning, _TURNING) and self.norm_source(norm) == source:
                signed = isinstance(turning, Orthogonal) and isinstance(behind, Monomial)
                return _sized(SignedPermutation if signed else Permutation, group.dim)
        return None

    def _stands_alone(self, index: int, group: Group) -> bool:
        """True if any change of basis passes a stream, and nothing else changes with it."""
        return isinstance(group, GeneralLinear) and self.commuting.joined(index) is None

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
            except NotUnderstood:
                found = None
            self._tied_groups[vertex] = found if sizes else None
        return self._tied_groups[vertex]

    # --- families -------------------------------------------------------------------------------

    def _links(self, index: int) -> list[tuple[int, int]]:
        """(vertex, other stream) for every function of single features that touches a stream."""
        stream = self.facts.streams[index]
        found: list[tuple[int, int]] = []
        for writer in stream.writers:
            if self.is_link(writer):
                found += [(writer, self.facts.stream_of[source]) for source in self.sources(writer)]
        for reader in stream.readers:
            if self.is_link(reader):
                found.append((reader, self.facts.stream_of[reader]))
                found += [
                    (reader, self.facts.stream_of[source])
                    for source in self.sources(reader)
                    if self.facts.stream_of[source] != index
                ]
        # What one matrix binds in two places changes alike in both, orders and scales.
        found += [
            (tie.own, tie.stream)
            for tie in self.ties.get(index, ())
            if tie.stream != index and self.permuting(tie.stream)
        ]
        return found

    def sources(self, vertex: int) -> tuple[int, ...]:
        found = self.facts.graph.vertices[vertex]
        return found.used if found.kind is Kind.DEPTHWISE else found.carried

    def is_link(self, index: int) -> bool:
        """True if the axes before and behind a vertex change together, and only as axes."""
        if index not in self._links_known:
            self._links_known[index] = (
                self._is_link_on_axes(index)
                if self.commuting.kind(index) is None
                else self.commuting.on_axes(self.facts.stream_of[index])
            )
        return self._links_known[index]

    def _is_link_on_axes(self, index: int) -> bool:
        vertex = self.facts.graph.vertices[index]
        region = self.facts.regions.get(index, NOTHING)
        if region.shape.is_norm:
            return not self._norm_is_folded(index)
        if vertex.kind is Kind.PART or vertex.kind is Kind.REORDERED:
            return self._is_bound(index)
        if vertex.kind in _BETWEEN_CHANNELS:
            return not self.sets_side_by_side(index)
        if vertex.kind is not Kind.REGION:
            return False
        if region.shape is Shape.DIAGONAL and self._is_gain_of_folded_norm(vertex):
            return False
        if self.is_folded_gain(index):
            return False
        return region.shape in (
            Shape.ELEMENTWISE,
            Shape.COUPLED,
            Shape.PRODUCT,
            Shape.PAIRED,
            Shape.DIAGONAL,
        )

    def _is_bound(self, index: int) -> bool:
        """True if something else keeps the axes of features that are parted, or reordered."""
        graph, streams = self.facts.graph, self.facts.streams
        vertex = graph.vertices[index]
        if index in self.heads.inside or vertex.part is None:
            return False
        ends = [self.facts.stream_of[vertex.carried[0]], self.facts.stream_of[index]]
        if vertex.kind is Kind.PART:
            # A part that linear maps alone write is one by itself.
            if any(self.is_input(streams[end]) for end in ends):
                return False
            kinds = {graph.vertices[writer].kind for writer in streams[ends[0]].writers}
            if kinds <= {Kind.LINEAR, Kind.CONVOLUTION, Kind.EMBEDDING, Kind.PART}:
                return False
        layout = graph.layouts.get(min(streams[ends[0]].members))
        if layout is None or layout.repeat != 1:
            return False
        moving = (Kind.PART, Kind.REORDERED)
        touching = {v for end in ends for v in (*streams[end].writers, *streams[end].readers)}
        return any(
            graph.vertices[v].kind not in moving
            and self.commuting.kind(v) is None
            and self._is_link_on_axes(v)
            for v in touching - {index}
        )

    def sets_side_by_side(self, index: int) -> bool:
        """True for a concatenation that linear maps alone read: each part changes by itself."""
        vertices, layouts = self.facts.graph.vertices, self.facts.graph.layouts
        vertex = vertices[index]
        if vertex.kind is not Kind.CONCAT:
            return False
        stream = self.facts.streams[self.facts.stream_of[index]]
        layout = layouts[index]
        plain = stream.writers == (index,) and not stream.returned and layout.repeat == 1
        return (
            plain
            and bool(stream.readers)
            and not (stream.sums or stream.value_mixed or stream.max_pooled)
            and all(layouts[source].repeat == 1 for source in vertex.carried)
            and all(
                vertices[r].kind in (Kind.LINEAR, Kind.CONVOLUTION) and not vertices[r].across
                for r in stream.readers
            )
        )

    def is_map(self, index: int) -> bool:
        """True if a vertex reads whole features as a linear map does."""
        vertex = self.facts.graph.vertices[index]
        linear = vertex.kind in (Kind.LINEAR, Kind.CONVOLUTION) and not vertex.across
        return linear or self.sets_side_by_side(index)

    def is_folded_gain(self, index: int) -> bool:
        """True if the gain of a linear map's outputs, as of a layer scale, folds into that map.

        It stays as it is, and so no other use of it may change it.
        """
        if index not in self._folding:
            self._folding[index] = self._folds_into_map(index) and all(
                self._folds_into_map(other) for other in self._with_one_gain(index)
            )
        return self._folding[index]

    def _folds_into_map(self, index: int) -> bool:
        region = self.facts.regions.get(index, NOTHING)
        affine = self.commuting.kind(index) == "affine"
        if affine and self.commuting.on_axes(self.facts.stream_of[index]):
            return False
        if not affine and (region.shape is not Shape.DIAGONAL or not region.learned):
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
            and (affine or (gain is not None and bool((gain != 0).all())))
        )

    def _is_gain_of_folded_norm(self, vertex: Vertex) -> bool:
        writers = self.facts.streams[self.facts.stream_of[vertex.carried[0]]].writers
        return any(
            self.facts.regions.get(writer, NOTHING).shape.is_norm and self._norm_is_folded(writer)
            for writer in writers
        )

    def _is_attended(self, index: int) -> bool:
        """True if a stream holds queries or keys, before or behind what bends them."""
        readers = self.facts.streams[index].readers
        return (
            index in self.heads.meetings
            or self.heads.bend_of(index) is not None
            or any(reader in self.heads.normed for reader in readers)
        )

    def permuting(self, index: int) -> bool:
        """True if a function of single features touches the stream."""
        if index not in self._permuting:
            stream = self.facts.streams[index]
            touching = (*stream.writers, *stream.readers)
            self._permuting[index] = stream.max_pooled or any(map(self.is_link, touching))
        return self._permuting[index]

    def family(self, index: int) -> frozenset[int]:
        if index not in self._families:
            found: set[int] = set()
            waiting = [index]
            while waiting:
                here = waiting.pop()
                if here not in found:
                    found.add(here)
                    waiting.extend(other for _, other in self._links(here))
            stream = self.facts.streams[index]
            # What reads a stream only on the way to nowhere does not bind it.
            onpath = bool(stream.readers) or stream.returned
            self._families |= dict.fromkeys(found if onpath else (index,), frozenset(found))
        return self._families[index]

    def relations(self, family: frozenset[int]) -> Relations:
        """What the scales of the streams of a family have to do with each other.

        Raises:
            NotUnderstood: if any neighbour of any of its streams is not understood.
        """
        if family in self._relations:
            return self._relations[family]
        streams = self.facts.streams
        for member in family:
            self._require_understood(streams[member])
            if streams[member].value_mixed and self.heads.value_heads(member) is None:
                raise NotUnderstood(
                    "attention mixes it, something besides linear maps reads or writes it, and its "
                    "heads are shared or could not be counted"
                )
        relations = Relations(family)
        for member in family:
            stream = streams[member]
            if stream.max_pooled:
                relations.add({member: 1.0}, scales=False)
            for norm in self._norm_readers(stream):
                rms = self.facts.regions[norm].shape is Shape.RMS_NORM
                relations.add({member: 1.0}, signs=not rms)
            for tie in self.ties.get(member, ()):
                if tie.stream in family:
                    sizes = {tie.stream: 1.0 if tie.transposed else -1.0}
                    relations.add(sum_of({member: 1.0}, sizes), signs=False)
                    relations.add(sum_of({member: 1.0}, {tie.stream: 1.0}), scales=False)
        self._relate_shared(family, relations)
        for vertex in self.family_links(family):
            sources = [self.facts.stream_of[s] for s in self.sources(vertex)]
            self._relate(vertex, sources, self.facts.stream_of[vertex], relations)
        self._relations[family] = relations
        return relations

    def _relate(self, index: int, sources: list[int], target: int, relations: Relations) -> None:
        """What a function of single features demands of the diagonal matrices around it."""
        vertex = self.facts.graph.vertices[index]
        region = self.facts.regions.get(index, NOTHING)
        if vertex.kind in (Kind.CONCAT, Kind.PADDED, Kind.PART, Kind.REORDERED):
            for source in sources:
                relations.add(sum_of({source: 1.0}, {target: -1.0}))
        elif region.shape in (Shape.ELEMENTWISE, Shape.COUPLED):
            try:
                intertwiner = self.intertwiner(index)
            except ValueError as error:
                raise NotUnderstood(
                    f"{region.op}{_where(self.facts, index)} could not be measured: {error}"
                ) from error
            before = _scales_of(intertwiner.group)
            if isinstance(intertwiner.group, GeneralLinear):
                # A number that is added to every feature lets no scale pass.
                before = Scales.ONE
            if before is None:
                raise NotUnderstood(
                    f"{region.op}{_where(self.facts, index)}: {intertwiner.because}"
                )
            along = self.rescaling(index)
            if along is not None:
                relations.add(sum_of({target: 1.0}, {sources[0]: -along.degree}), signs=along.signs)
                if not along.signs:
                    relations.add({sources[0]: 1.0}, scales=False)
                    relations.add({target: 1.0}, scales=False)
                return
            if before in (Scales.ANY, Scales.POSITIVE):
                powers = sum_of({target: 1.0}, {sources[0]: -intertwiner.degree})
                relations.add(powers, signs=False)
            else:
                relations.add({sources[0]: 1.0}, signs=False)
                relations.add({target: 1.0}, signs=False)
            if before not in (Scales.ANY, Scales.SIGNS):
                relations.add({sources[0]: 1.0}, scales=False)
            odd = before in (Scales.ANY, Scales.SIGNS) and intertwiner.parity < 0
            flips = sum_of({target: 1.0}, {sources[0]: 1.0}) if odd else {target: 1.0}
            relations.add(flips, scales=False)
        elif vertex.kind in (Kind.BATCH_NORM, Kind.GROUP_NORM):
            self._relate_norm(index, sources[0], target, relations)
        elif vertex.kind is Kind.ALONG:
            self._relate_along(index, sources[0], target, relations)
        elif region.shape is Shape.PRODUCT:
            factors = {source: 0.0 for source in sources}
            for source in sources:
                factors[source] += 1.0
            relations.add(sum_of({target: -1.0}, factors))
        elif region.pair is not None:
            first, second = sources
            for powers in region.pair.sizes:
                relations.add(_factors(first, second, target, powers), signs=False)
            for bits in region.pair.signs:
                relations.add(_factors(first, second, target, bits), scales=False)
        elif region.shape is Shape.DIAGONAL and (
            index in self._vectors or not self._has_own_gain(index)
        ):
            # A gain that serves twice, as g and 1 - g, or is computed, cannot take up a scale.
            relations.add(sum_of({sources[0]: 1.0}, {target: -1.0}))
        elif region.shape.is_norm and not self._takes_up_scales(index):
            relations.add({target: 1.0}, signs=False)
            rms = region.shape is Shape.RMS_NORM
            relations.add(sum_of({target: 1.0}, {sources[0]: 1.0} if rms else {}), scales=False)

    def rescaling(self, index: int) -> Rescaling | None:
        """How the vectors of a nonlinear function take up scales; None if they do not."""
        if index not in self._rescalings:
            single = (
                self.facts.regions[index].shape is Shape.ELEMENTWISE
                and _scales_of(self.intertwiner(index).group) is Scales.ONE
            )
            # Steps inside it, which are measured with it, use the same vectors.
            others = filter(self._is_read, self._with_one_gain(index)) if single else ()
            own = single and index not in self._vectors and not any(True for _ in others)
            self._rescalings[index] = rescaling(self.facts, index) if own else None
        return self._rescalings[index]

    def _is_read(self, vertex: int) -> bool:
        stream = self.facts.streams[self.facts.stream_of[vertex]]
        return bool(stream.readers) or stream.returned

    def _relate_shared(self, family: frozenset[int], relations: Relations) -> None:
        """One batch normalisation, or one depthwise kernel, in two places scales alike in both."""
        graph, first = self.facts.graph, dict[int, int]()
        for vertex in self.family_links(family):
            if graph.vertices[vertex].kind in (Kind.BATCH_NORM, Kind.DEPTHWISE):
                node = graph.trace.node(vertex)
                for value in fixed_in((node.args, node.kwargs)):
                    other = first.setdefault(id(value.tensor), vertex)
                    if other != vertex:
                        for one, two in (
                            (vertex, other),
                            (self.sources(vertex)[0], self.sources(other)[0]),
                        ):
                            streams = self.facts.stream_of[one], self.facts.stream_of[two]
                            relations.add(sum_of({streams[0]: 1.0}, {streams[1]: -1.0}))

    def _relate_along(self, index: int, source: int, target: int, relations: Relations) -> None:
        """What a function of each feature along positions demands of the factors around it."""
        degree, parity = homogeneity(self.facts.graph, index)
        if degree is None:
            relations.add({source: 1.0}, signs=False)
            relations.add({target: 1.0}, signs=False)
        else:
            relations.add(sum_of({target: 1.0}, {source: -degree}), signs=False)
        if parity == 0:
            relations.add({source: 1.0}, scales=False)
        odd = {source: 1.0} if parity < 0 else {}
        relations.add(sum_of({target: 1.0}, odd), scales=False)

    def _relate_norm(self, index: int, source: int, target: int, relations: Relations) -> None:
        """What normalisation of channels, one by one or in groups, demands of their factors."""
        node = self.facts.graph.trace.node(index)
        running = node.op == "batch_norm" and keeps_statistics(node)
        gained = norm_argument(node, "weight") is not None
        if not running:
            # The epsilon beside the variance sees every scale.
            relations.add({source: 1.0}, signs=False)
        if self.facts.graph.vertices[index].kind is Kind.GROUP_NORM:
            # The mean of several channels sees every sign.
            relations.add({source: 1.0}, scales=False)
        if not gained:
            # Running statistics take a scale, but no sign.
            relations.add(sum_of({target: 1.0}, {source: 1.0}), scales=False)
            if not running:
                relations.add({target: 1.0}, signs=False)


_TURNING = Orthogonal | LineStabiliser

_BETWEEN_CHANNELS = (
    Kind.BATCH_NORM,
    Kind.GROUP_NORM,
    Kind.DEPTHWISE,
    Kind.CONCAT,
    Kind.PADDED,
    Kind.ALONG,
    Kind.REORDERED,
)


def _chosen(module: str) -> str:
    """Why nothing is claimed of a model whose code chooses by numbers that it computed."""
    where = f" in {module}" if module else ""
    return (
        f"code{where} chooses what to do by features that it computed, and what it does otherwise "
        "was not seen"
    )


_VECTOR = "a vector for all features"


def _adds_nothing(region: Region) -> bool:
    """True if a gain for every feature comes without anything that is added."""
    return region.bias is not None and not bool(region.bias.any())


def _are_alike(trace: Trace, value: object) -> bool:
    """True for what is not given, or the same for all features."""
    if isinstance(value, Fixed):
        return len(value.tensor.unique()) == 1
    return not isinstance(value, Ref) or is_one_number(trace, value)


def _smaller(group: Group) -> tuple[Group, ...]:
    """Groups inside another that weights of a restricted form may still follow, the largest first.

    A group in whose proof the restriction plays no part is not offered: rotations of a stream that
    nothing else binds, and orders of axes.
    """
    dim = group.dim
    if isinstance(group, GeneralLinear):
        return (Orthogonal(dim),)
    if isinstance(group, Monomial):
        return PositiveMonomial(dim), SignedPermutation(dim), Permutation(dim)
    if isinstance(group, PositiveMonomial | SignedPermutation):
        return (Permutation(dim),)
    return ()


def _refined(parts: Tensor, others: Tensor) -> Tensor:
    """The parts that two divisions of the same features make together, numbered from 0."""
    if not len(parts):
        return parts
    low, high = (int(edge) for edge in others.aminmax())
    return (parts * (high - low + 1) + others - low).unique(return_inverse=True)[1]


def _in_groups(parts: Tensor, groups: int) -> Tensor:
    """As many parts of one size as there are groups."""
    return torch.arange(len(parts)) // (len(parts) // groups)


def _sized(kind: type[OnAxes], dim: int) -> Group:
    return kind(dim)


def _root(parent: dict[int, int], index: int) -> int:
    while parent[index] != index:
        index = parent[index]
    return index


def _name(facts: Facts, vertex: int) -> str:
    return _where(facts, vertex).removeprefix(" in ") or "one linear map"


def _said(found: Intertwiner) -> str:
    """Why a nonlinearity has its group, and what a shift of the next bias would add to it."""
    return f"{found.because} ({found.note})" if found.note else found.because


def _factors(first: int, second: int, target: int, powers: Iterable[float]) -> dict[int, float]:
    """Powers by stream; two of the three may be one stream."""
    found: dict[int, float] = {}
    for stream, power in zip((first, second, target), powers, strict=True):
        found[stream] = found.get(stream, 0.0) + power
    return found


def _scales_of(group: Group) -> Scales | None:
    for kind, scales in _SCALES:
        if type(group) is kind:
            return scales
    return None


def _where(facts: Facts, vertex: int) -> str:
    return _inside(facts.graph.trace.node(vertex).module)


@functools.cache
def _inside(module: str) -> str:
    module = re.sub(r"\b_original_component\.?", "", module).rstrip(".")
    return f" in {module}" if module else ""


def _unknown(dim: int, why: str) -> Symmetry:
    group = Unknown(dim)
    text = why[0].upper() + why[1:].rstrip(".") + "; the group is not derived, and not guessed."
    return Symmetry(group, group.privileged, text, "none")
