"""The linear maps around a site: those that write it, and those that read it."""

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from basis_probe.model.facts import Facts, Shape, matrix
from basis_probe.model.graph import Kind, Vertex
from basis_probe.model.linear_layer import Layer
from basis_probe.model.places import Site

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
    read = list(_readers(facts, vertex, None))
    return Around(
        writing=tuple(w for w in made if w.shape[0] == dim),
        reading=tuple(w for w, _ in read if w.shape[1] == dim),
        centred=bool(read) and all(centred for _, centred in read),
    )


def _readers(
    facts: Facts, vertex: Vertex, norm: tuple[Tensor | None, bool] | None
) -> Iterator[tuple[Tensor, bool]]:
    """The maps that read a vertex, and whether each does so behind a LayerNorm."""
    graph = facts.graph
    for index in graph.readers.get(vertex.node, ()):
        reader = graph.vertices[index]
        if reader.kind in _LINEAR and vertex.node in reader.used and not reader.across:
            weight = _weight(facts, reader)
            if weight is None:
                continue
            # [outputs, dim, window] -> [outputs and window, dim]
            rows = weight.flatten(2).movedim(2, 1).flatten(0, 1) if weight.ndim > 2 else weight
            gain, centred = norm if norm is not None else (None, False)
            if gain is not None and len(gain) == rows.shape[1]:
                rows = rows * gain.to(rows)
            yield rows, centred
        elif reader.kind is Kind.REGION:
            region = facts.regions[index]
            if region.shape in _NORMS and norm is None and not region.within:
                yield from _readers(facts, reader, (region.gain, region.shape is Shape.LAYER_NORM))
            elif region.shape is Shape.DIAGONAL and norm is not None and region.gain is not None:
                gain = region.gain if norm[0] is None else norm[0] * region.gain
                yield from _readers(facts, reader, (gain, norm[1]))


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
