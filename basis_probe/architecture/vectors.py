"""Which numbers vectors for all features are made of, and where the same ones serve twice.

Such a vector is a bias, what is added to features, or what they are multiplied by. It may be a
parameter, show a part of one, or be computed from some.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from typing import TypeAlias

import torch
from torch import Tensor, nn

from basis_probe.architecture.free_weights import follow_together, learned_behind
from basis_probe.model.facts import (
    Facts,
    bias_of,
    constants_of,
    given_to,
    leaves_of,
    matrix,
    numbers_in,
    vectors_behind,
)
from basis_probe.model.graph import Kind, Vertex, norm_argument
from basis_probe.model.trace import Fixed, Ref, Trace
from basis_probe.model.weights import entries_of, view_of


@dataclasses.dataclass(frozen=True, eq=False)
class _Use:
    """Numbers of a storage that a vertex adds to features, multiplies them by, or maps them by.

    Attributes:
        vertex: the vertex.
        kind: "bias" of a linear map, "added", "factor" of a norm or function, or "matrix".
        value: the vector; None for a matrix.
        axis: that of the features, from the last one on.
        computed: whether the vector is a function of the numbers; else it is they.
        shown: a tensor that has the numbers' places by its strides, from `start` on.
        leaf: the parameter that they are of; None for a matrix.
        picked: the places of the numbers, where strides do not say them.
    """

    vertex: int
    kind: str
    value: Fixed | Ref | None
    axis: int
    computed: bool
    shown: Tensor
    start: int = 0
    leaf: Tensor | None = None
    picked: Tensor | None = None

    @property
    def ends(self) -> tuple[int, int]:
        """The first and the last place of the numbers."""
        _, first, last = span(self.shown)
        return self.start + first, self.start + last

    def entries(self) -> Tensor:
        """The place of each of the numbers, in their order."""
        if self.picked is not None:
            return self.start + self.picked.flatten()
        return self.start + places_of(self.shown).flatten()


Meeting: TypeAlias = tuple[_Use, _Use]


def with_one_vector(facts: Facts, meeting: Iterable[Meeting]) -> Iterator[tuple[int, int]]:
    """Pairs of vertices that add one vector to what they write, or functions of one."""
    for one, other in meeting:
        if not {one.kind, other.kind} <= {"bias", "added"} or one.vertex == other.vertex:
            continue
        # What is added to a stream as it is, is asked for elsewhere.
        asked = one.computed or other.computed or one.kind == other.kind == "bias"
        asked = asked or _are_rows(one, other)
        if asked and _changes_with(facts.graph.trace, one, other):
            yield one.vertex, other.vertex


def overlapping_vectors(
    facts: Facts, meeting: Iterable[Meeting]
) -> tuple[dict[int, str], dict[int, str]]:
    """Vertex -> why it cannot change, where a vector has numbers in common with what others use.

    Returns:
        The same of what adds the vector, or multiplies by it, and of linear maps whose matrix is
        the other.
    """
    vectors, maps = dict[int, str](), dict[int, str]()
    for one, other in meeting:
        if _changes_with(facts.graph.trace, one, other):
            continue
        for use in (one, other):
            if use.kind == "matrix":
                maps[use.vertex] = "its matrix overlaps with a vector in the same parameter"
            else:
                why = "a vector that it adds, or multiplies by, overlaps with other weights"
                vectors[use.vertex] = why
    return vectors, maps


def _changes_with(trace: Trace, one: _Use, other: _Use) -> bool:
    """True if two vectors are the same, or change alike when the numbers they share do."""
    if one.value is None or other.value is None:
        return False
    refs = [use.node for use in (one.value, other.value) if isinstance(use, Ref)]
    if len(refs) == 2 and refs[0] == refs[1]:
        return True
    if one.computed or other.computed:
        return follow_together(trace, (one.value, one.axis), (other.value, other.axis))
    if _are_rows(one, other):
        return True
    alike = one.kind == other.kind or {one.kind, other.kind} == {"bias", "added"}
    a, b = one.entries(), other.entries()
    return alike and a.shape == b.shape and torch.equal(a, b)


def _are_rows(one: _Use, other: _Use) -> bool:
    """True if both add rows of one table, with its features as theirs: it changes as a whole."""
    if one.kind != "added" or other.kind != "added" or one.leaf is not other.leaf:
        return False
    axes = [_axis_of(use) for use in (one, other)]
    return axes[0] is not None and axes[0] == axes[1]


def _axis_of(use: _Use) -> int | None:
    """Which axis of its parameter the features of a vector are, all of it; None if they are not."""
    leaf, shown = use.leaf, use.shown
    if leaf is None or use.computed or use.picked is not None or shown.ndim < -use.axis:
        return None
    stride, size = shown.stride(use.axis), shown.shape[use.axis]
    for axis, (step, length) in enumerate(zip(leaf.stride(), leaf.shape, strict=True)):
        if step == stride and length == size and int(shown.storage_offset()) // step % length == 0:
            return axis
    return None


def meeting_vectors(facts: Facts) -> Iterator[Meeting]:
    """Pairs of uses that have numbers in common, a vector among them."""
    for several in _uses(facts).values():
        seen = set[tuple[int, int]]()
        for one, other in itertools.combinations(several, 2):
            matrices = [use.kind for use in (one, other)].count("matrix")
            if matrices == 2 or (one.vertex == other.vertex and one.value is other.value):
                continue
            if one.vertex == other.vertex and not (matrices or one.computed or other.computed):
                continue
            (first, last), (start, end) = one.ends, other.ends
            if last < start or end < first or (id(one.value), id(other.value)) in seen:
                continue
            if bool(torch.isin(one.entries(), other.entries()).any()):
                seen.add((id(one.value), id(other.value)))
                yield one, other


def _uses(facts: Facts) -> dict[int, list[_Use]]:
    """Storage -> what is used of it, where that are several things and a vector among them."""
    trace, found = facts.graph.trace, dict[int, list[_Use]]()
    behind = dict[int, list[tuple[Tensor, Tensor]]]()
    for index, vertex in facts.graph.vertices.items():
        node, layout = trace.node(index), facts.graph.layouts.get(index)
        axis = -1 if layout is None else layout.axes[-1] - len(node.shape)
        values: list[tuple[str, object]] = []
        if vertex.kind in (Kind.LINEAR, Kind.CONVOLUTION, Kind.GROUPED, Kind.DEPTHWISE):
            values.append(("bias", bias_of(node)))
            axis, weight = -1, matrix(trace, node)
            if weight is not None and weight.numel():
                use = _Use(index, "matrix", None, 0, computed=False, shown=weight)
                found.setdefault(span(weight)[0], []).append(use)
        elif vertex.kind is Kind.SUM or (vertex.kind is Kind.CARRIER and node.op == "cat"):
            values += (("added", value) for value in constants_of(trace, node))
        elif vertex.kind is Kind.REGION:
            values += (("factor", value) for _, value in given_to(facts.graph, vertex))
        elif vertex.kind in (Kind.BATCH_NORM, Kind.GROUP_NORM):
            axis = -1
            values += (("factor", norm_argument(node, name)) for name in ("weight", "bias"))
        for kind, value in values:
            if not isinstance(value, Fixed | Ref):
                continue
            if isinstance(value, Ref) and trace.node(value.node).live:
                continue  # Rows that the input picks: what is added is asked for as a table.
            whole = shown_of(trace, value)
            for leaf, shown in (
                [whole] if whole is not None else _shown_behind(trace, value, behind)
            ):
                many = kind == "factor" and sum(size > 1 for size in shown.shape) > 1
                many = many and whole is not None
                if leaf.is_contiguous() and not many:
                    key, start, _ = span(leaf)
                    use = _Use(index, kind, value, axis, whole is None, shown, start, leaf)
                    found.setdefault(key, []).append(use)
    return {
        key: [_resolved(trace, use) for use in several]
        for key, several in found.items()
        if len(several) > 1 and any(use.kind != "matrix" for use in several)
    }


_MOST_PICKED = 10_000_000


def _resolved(trace: Trace, use: _Use) -> _Use:
    """The use, with the places of its numbers where entries of a parameter were picked."""
    leaf, value = use.leaf, use.value
    if not use.computed or leaf is None or not isinstance(value, Ref):
        return use
    if leaf.numel() > _MOST_PICKED or len(learned_behind(trace, value.node)) > 1:
        return use
    try:
        found = entries_of(trace, value.node, leaf, trace.picked)
    except (RuntimeError, ValueError, TypeError):
        return use
    if found is None or found[1] != 1.0 or len(found[0].unique()) < found[0].numel():
        return use
    return dataclasses.replace(use, computed=False, picked=found[0])


def _shown_behind(
    trace: Trace, value: Fixed | Ref, known: dict[int, list[tuple[Tensor, Tensor]]]
) -> list[tuple[Tensor, Tensor]]:
    """The same of the parts of parameters that a vector is computed from.

    Args:
        trace: the record.
        value: the vector.
        known: node -> what was found for it.
    """
    if not isinstance(value, Ref):
        return []
    if value.node not in known:
        found: list[tuple[Tensor, Tensor]] = []
        for _, one in numbers_in(trace, trace.node(value.node)):
            whole = shown_of(trace, one)
            found += _shown_behind(trace, one, known) if whole is None else [whole]
        known[value.node] = found
    return known[value.node]


def numbers_of(facts: Facts, vertex: Vertex) -> set[object]:
    """What tells the numbers that a region is given from those that others are."""
    found: set[object] = set()
    for _, value in given_to(facts.graph, vertex):
        shown = shown_of(facts.graph.trace, value)
        if shown is not None and shown[1].numel() < shown[0].numel():
            found.add((id(shown[0]), *span(shown[1])[1:]))
        elif isinstance(value, Fixed):
            found.add(id(value.tensor))
        else:
            leaves = vectors_behind(facts.graph.trace, value.node)
            found |= {id(leaf.tensor) for _, leaf in leaves}
    return found


def shown_of(trace: Trace, value: object) -> tuple[Tensor, Tensor] | None:
    """The parameter that a vector shows numbers of, and a tensor with the strides of these."""
    if isinstance(value, Fixed):
        tensor = value.tensor
        if not isinstance(tensor, nn.Parameter) or not _is_plain(tensor) or tensor.numel() < 2:
            return None
        return tensor, torch.empty(tensor.shape, device="meta")
    if not isinstance(value, Ref) or trace.node(value.node).live:
        return None
    leaves = {id(leaf.tensor): leaf.tensor for leaf in leaves_of(trace, value.node)}
    if len(leaves) != 1:
        return None
    (leaf,) = leaves.values()
    if not isinstance(leaf, nn.Parameter) or not _is_plain(leaf):
        return None
    view = view_of(trace, value.node, leaf)
    return None if view is None or view.numel() < 2 else (leaf, view)


def _is_plain(tensor: Tensor) -> bool:
    strided = tensor.layout is torch.strided and tensor.is_floating_point()
    return strided and not tensor.is_meta and tensor.numel() > 0


def span(weight: Tensor) -> tuple[int, int, int]:
    """The storage of a tensor that is not empty, and the first and the last place of it there."""
    first = int(weight.storage_offset())
    ahead = zip(weight.shape, weight.stride(), strict=True)
    last = first + sum((int(size) - 1) * int(step) for size, step in ahead)
    return weight.untyped_storage().data_ptr(), first, last


def places_of(tensor: Tensor) -> Tensor:
    """Where each number of a tensor lies in its storage."""
    found = torch.tensor(int(tensor.storage_offset()))
    for size, step in zip(tensor.shape, tensor.stride(), strict=True):
        found = found[..., None] + step * torch.arange(size)
    return found
