"""Vectors inside nonlinear functions that change along when features are rescaled.

Swish with a learned beta for every feature, f(x) = x sigmoid(beta x), satisfies f(d x) = d f(x)
where beta is divided by d; a learned threshold is multiplied.
"""

import dataclasses
import itertools

import torch
from torch import Tensor, nn

from basis_probe.model.facts import Facts, evaluate, vectors_of

_POWERS: tuple[int, ...] = (1, -1, 0)
_MOST_VECTORS = 3
_TOLERANCE = 1e-9


@dataclasses.dataclass(frozen=True)
class Rescaling:
    """How a function follows when its features are multiplied by d.

    Attributes:
        powers: id of a vector -> the power of d by which it is multiplied.
        degree: the power of d by which the result is multiplied.
        signs: True if d may be negative.
    """

    powers: dict[int, int]
    degree: int
    signs: bool


def rescaling(facts: Facts, index: int) -> Rescaling | None:
    """How the vectors of a function of single features take up scales; None if they do not.

    Args:
        facts: what was seen of the model.
        index: a vertex that bends the features of one other, each by itself.
    """
    graph = facts.graph
    vertex = graph.vertices[index]
    layout = graph.layouts.get(index)
    if layout is None or len(vertex.carried) != 1:
        return None
    dim = graph.trace.node(index).shape[layout.axes[-1]]
    own = {id(fixed.tensor): fixed.tensor for _, fixed in vectors_of(graph, vertex)}
    if not 0 < len(own) <= _MOST_VECTORS:
        return None
    if any(not isinstance(v, nn.Parameter) or v.numel() != dim for v in own.values()):
        return None
    instead = graph.trace.instead
    vectors = {key: instead.get(key, v).detach().double() for key, v in own.items()}
    device = next(iter(vectors.values())).device
    generator = torch.Generator().manual_seed(0)
    factors = (0.3 + 2.0 * torch.rand(dim, generator=generator, dtype=torch.float64)).to(device)
    x = _values(vectors, dim, device)

    def follows(powers: dict[int, int], degree: int, by: Tensor) -> bool:
        put = {
            key: vector * (by ** powers[key]).reshape(vector.shape)
            for key, vector in vectors.items()
        }
        made = evaluate(graph, vertex, (by * x,), put)
        wanted = by**degree * at
        close = (made - wanted).abs() <= _TOLERANCE * (wanted.abs() + (by**degree * x).abs())
        return bool(close.all()) and bool(made.isfinite().all())

    try:
        at = evaluate(graph, vertex, (x,), vectors)
        for some in itertools.product(_POWERS, repeat=len(vectors)):
            if not any(some):
                continue
            powers = dict(zip(vectors, some, strict=True))
            for degree in (1, 0, 2):
                if follows(powers, degree, factors):
                    alternating = factors * (1 - 2 * (torch.arange(dim, device=device) % 2))
                    either = all(follows(powers, degree, sign * alternating) for sign in (1, -1))
                    return Rescaling(powers, degree, either)
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError):
        return None
    return None


def _values(vectors: dict[int, Tensor], dim: int, device: torch.device) -> Tensor:
    """Values of any size for every feature, and such as are near its entries of the vectors."""
    sizes = torch.logspace(-6, 6, 49, dtype=torch.float64, device=device)
    either = torch.cat([sizes, -sizes, sizes.new_zeros(1)])[:, None].expand(-1, dim)
    near = [
        sign * factor * vector.reshape(1, dim)
        for vector in vectors.values()
        for sign in (1, -1)
        for factor in (0.9, 1.1)
    ]
    return torch.cat([either, *near])
