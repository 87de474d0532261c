"""The linear maps around a site: those that write it, and those that read it."""

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from basis_probe.model.facts import Facts, Shape, leaves_of, matrix, vectors_of
from basis_probe.model.graph import Kind, Vertex
from basis_probe.model.linear_layer import Layer
from basis_probe.model.places import Site
from basis_probe.model.trace import fixed_in

_LINEAR = (Kind.LINEAR, Kind.CONVOLUTION)
_NORMS = (Shape.RMS_NORM, Shape.LAYER_NORM)


@dataclasses.dataclass(frozen=True, eq=False)
class Around:
    """The weights around a site, as matrices along its axes.

    Attributes:
        writing: [dim, inputs] each: the maps that make the site or, of a residual stream, that add
            to it there. Of a convolution the inputs are those of its whole window.
        reading: [outputs, dim] each: the maps that read the site, behind a norm with its gain
            folded in. Of a convolution the outputs are those of every place of its window.
        centred: True if all that is read is read behind a LayerNorm.
    """

    writing: tuple[Tensor, ...] = ()
    reading: tuple[Tensor, ...] = ()
    centred: bool = False


def around(facts: Facts, site: Site, made_by: Layer | None) -> Around:
    """The maps around a site.

    Args:
        facts: what the model computes.
        site: where.
        made_by: the layer that makes it, where it is one linear map away from its input.
    """
    vertex = facts.vertex(site)
    if vertex is None:
        return Around()
    dim = 1
    for size in facts.shape(site):
        dim *= size
    made = [] if made_by is None else [_gained(weight, made_by) for weight in made_by.weights]
    if not made:
        carried = [facts.graph.vertices[index] for index in vertex.carried]
        sources = [vertex] if vertex.kind in _LINEAR else carried * (vertex.kind is Kind.SUM)
        found = [_weight(facts, one) for one in sources if one.kind in _LINEAR]
        made = [weight.flatten(1) for weight in found if weight is not None]
    read = [(_rows(weight, gain), centred) for _, weight, gain, centred in _read(facts, vertex)]
    return Around(
        writing=tuple(w for w in made if w.shape[0] == dim),
        reading=tuple(w for w, _ in read if w.shape[1] == dim),
        centred=bool(read) and all(centred for _, centred in read),
    )


def _read(facts: Facts, vertex: Vertex) -> Iterator[tuple[Vertex, Tensor, Tensor | None, bool]]:
    """The maps that read a vertex: weight, gain of the norm in front, whether that is LayerNorm."""
    for reader, norm in _readers(facts, vertex, None):
        weight = _weight(facts, reader)
        if weight is not None:
            gain, centred = (None, False) if norm is None else (norm.gain, norm.centred)
            yield reader, weight, gain, centred


def _rows(weight: Tensor, gain: Tensor | None) -> Tensor:
    """[outputs and window, dim], with the gain folded in."""
    # [outputs, dim, window] -> [outputs and window, dim]
    rows = weight.flatten(2).movedim(2, 1).flatten(0, 1) if weight.ndim > 2 else weight
    if gain is not None and len(gain) == rows.shape[1]:
        rows = rows * gain.to(rows)
    return rows


@dataclasses.dataclass(frozen=True, eq=False)
class _Norm:
    """A norm, and what multiplies features behind it.

    Attributes:
        gain: [dim], of all of them together.
        centred: True for a LayerNorm.
        regions: the norm first.
    """

    gain: Tensor | None
    centred: bool
    regions: tuple[Vertex, ...]


def _readers(
    facts: Facts, vertex: Vertex, norm: _Norm | None
) -> Iterator[tuple[Vertex, _Norm | None]]:
    """The maps that read a vertex, and the norm through which each does."""
    graph = facts.graph
    for index in graph.readers.get(vertex.node, ()):
        reader = graph.vertices[index]
        if reader.kind in _LINEAR and vertex.node in reader.used and not reader.across:
            yield reader, norm
        elif reader.kind is Kind.REGION:
            region = facts.regions[index]
            if region.shape in _NORMS and norm is None and not region.within:
                centred = region.shape is Shape.LAYER_NORM
                yield from _readers(facts, reader, _Norm(region.gain, centred, (reader,)))
            elif region.shape is Shape.DIAGONAL and norm is not None and region.gain is not None:
                gain = region.gain if norm.gain is None else norm.gain * region.gain
                behind = _Norm(gain, norm.centred, (*norm.regions, reader))
                yield from _readers(facts, reader, behind)


def _gained(weight: Tensor, layer: Layer) -> Tensor:
    """[outputs, inputs]: with the gain of the norm in front folded in."""
    weight = weight.detach().to(torch.float64)
    if layer.gain is not None and weight.ndim == 2 and weight.shape[1] == len(layer.gain):
        weight = weight * layer.gain.to(weight)
    return weight.flatten(1)


def _weight(facts: Facts, vertex: Vertex) -> Tensor | None:
    """[outputs, inputs, ...]; None where it is not a weight, or of a map of groups."""
    trace = facts.graph.trace
    node = trace.node(vertex.node)
    if node.op == "embedding" or "transpose" in node.op:
        return None
    weight = matrix(trace, node)
    if weight is None or weight.ndim < 2 or not weight.is_floating_point():
        return None
    if node.op.startswith("conv") and node.kwargs.get("groups", 1) != 1:
        return None
    return weight.detach().to(torch.float64)


@dataclasses.dataclass(frozen=True, eq=False)
class Touching:
    """A parameter one of whose two axes lies along the axes of a site.

    Attributes:
        name: the parameter.
        axis: which of its axes, 0 or 1.
        gain: the parameter by which a norm in front multiplies what it reads, [dim]; None without.
        more: what that norm multiplies by besides: 1 if by one more than the parameter, else 0.
    """

    name: str
    axis: int
    gain: str | None = None
    more: int = 0


def touching(facts: Facts, site: Site, dim: int) -> tuple[Touching, ...]:
    """The parameters that are matrices around a site as they are, tables of embeddings too.

    Left out are those that read it behind a norm whose gain is no parameter by itself.

    Args:
        facts: what the model computes.
        site: where.
        dim: the number of its axes.
    """
    vertex = facts.vertex(site)
    if vertex is None:
        return ()
    carried = [facts.graph.vertices[index] for index in vertex.carried]
    writes = [vertex, *carried] if vertex.kind is Kind.SUM else [vertex]
    found = [
        Touching(name, int(transposed))
        for one in writes
        if one.kind in (Kind.LINEAR, Kind.EMBEDDING)
        for name, transposed in _parameter(facts, one, dim, 0)
    ]
    for reader, norm in _readers(facts, vertex, None):
        gain = (None, 0) if norm is None else _gain(facts, norm, dim)
        if gain is not None:
            for name, transposed in _parameter(facts, reader, dim, 1):
                found.append(Touching(name, int(not transposed), *gain))
    return tuple({one.name: one for one in found}.values())


def _gain(facts: Facts, norm: _Norm, dim: int) -> tuple[str | None, int] | None:
    """The parameter that is a norm's gain, and what is added to it; None where it is not known."""
    if norm.gain is None or len(norm.regions) != 1 or len(norm.gain) != dim:
        return None
    vectors = [value for _, value in vectors_of(facts.graph, norm.regions[0])]
    for more in (0, 1):
        for value in vectors:
            if value.name is not None and value.tensor.shape == (dim,):
                exact = value.tensor.detach().to(norm.gain) + more
                if bool((exact - norm.gain).abs().max() <= 1e-4 * norm.gain.abs().max()):
                    return value.name, more
    return (None, 0) if not vectors else None


def _parameter(facts: Facts, vertex: Vertex, dim: int, axis: int) -> Iterator[tuple[str, bool]]:
    """The parameter that is the matrix of a map, and whether it is stored transposed."""
    trace = facts.graph.trace
    node = trace.node(vertex.node)
    whole = matrix(trace, node)
    if whole is None or whole.ndim != 2 or whole.shape[axis] != dim:
        return
    leaves = [*fixed_in((node.args, node.kwargs))]
    for index in node.inputs:
        leaves += leaves_of(trace, index) if not trace.node(index).live else ()
    for leaf in leaves:
        same = leaf.tensor.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()
        alike = leaf.tensor.ndim == 2 and leaf.tensor.numel() == whole.numel()
        if leaf.name is not None and isinstance(leaf.tensor, nn.Parameter) and same and alike:
            straight = leaf.tensor.shape == whole.shape and leaf.tensor.stride() == whole.stride()
            yield leaf.name, not straight
            return
