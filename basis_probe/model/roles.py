"""What a site is, in words: residual stream, neurons, attention output, from what was measured."""

import dataclasses
import re

from basis_probe.model.facts import Facts, Shape
from basis_probe.model.graph import Kind, Vertex
from basis_probe.model.places import Site


@dataclasses.dataclass(frozen=True)
class Role:
    """What a site is: its kind in words, and its layer."""

    kind: str
    layer: int | None


def layer_number(name: str) -> int | None:
    """The number of the layer that a name speaks of, or None.

    Example:
        >>> layer_number("blocks.3.hook_resid_pre"), layer_number("embed")
        (3, None)
    """
    stem = r"(?:^|\.)(?:blocks|layers|layer|h|encoder|decoder)\.?(\d+)(?=\.|$)"
    found = re.search(stem, name)
    return int(found.group(1)) if found else None


def role(facts: Facts, site: Site) -> Role:
    """What a site is, from what was measured around it."""
    found = _role(facts, site)
    if not found.kind.startswith("neurons") or facts.expert(site) is None:
        return found
    return dataclasses.replace(found, kind=f"experts' {found.kind}")


def _role(facts: Facts, site: Site) -> Role:
    number = layer_number(site.name)
    vertex = facts.vertex(site)
    if vertex is None:
        return Role("activations", number)
    stream = facts.streams[facts.stream_of[vertex.node]]
    regions = facts.regions
    region = regions.get(vertex.node)
    if stream.value_mixed:
        layout = facts.layout(site)
        before = facts.graph.vertices[vertex.node].kind is Kind.LINEAR
        mixed = not before and layout is not None and _behind_attention(facts, vertex)
        return Role("attention output z" if mixed else "attention values", number)
    if region is not None and region.shape in (Shape.PRODUCT, Shape.PAIRED):
        return Role("neurons (gated product)", number)
    if region is not None and region.shape in (Shape.ELEMENTWISE, Shape.COUPLED):
        return Role(f"neurons behind {region.op}", number)
    if region is not None and region.shape.is_norm and not stream.sums:
        return Role("output of a norm", number)
    for reader in stream.readers:
        read = regions.get(reader)
        bends = read is not None and read.shape in (Shape.ELEMENTWISE, Shape.COUPLED)
        if read is not None and bends and not stream.sums:
            return Role(f"neurons before {read.op}", number)
    if stream.sums and not stream.returned:
        return Role("residual stream", number)
    if stream.returned:
        return Role("model output", number)
    read = (regions.get(reader) for reader in stream.readers)
    if any(other is not None and other.shape is Shape.PRODUCT for other in read):
        return Role("neurons (linear branch)", number)
    return Role("linear map", number)


def _behind_attention(facts: Facts, vertex: Vertex) -> bool:
    while vertex.kind is Kind.CARRIER:
        vertex = facts.graph.vertices[vertex.carried[0]]
    return vertex.kind is Kind.ATTENTION
