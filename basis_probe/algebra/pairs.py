"""Which factors of two tensors pass through a function that joins them, feature by feature."""

import dataclasses
import itertools
import math
from collections.abc import Callable

import torch
from jaxtyping import Float64
from torch import Tensor

_FACTORS = (2.0, 0.5, 3.7, 1.01, 0.037, 31.0)
_TOLERANCE = 1e-9

Pair = Callable[[Tensor, Tensor], Tensor]


@dataclasses.dataclass(frozen=True)
class PairFactors:
    """Relations between what multiplies the first tensor, the second, and what is made of them.

    Every relation is (f, s, r): of positive factors a, b and c, a^f b^s c^r = 1; of signs the same
    with exponents modulo 2. No relations would leave all three free.

    Attributes:
        sizes: relations of the positive factors.
        signs: relations of the signs.
    """

    sizes: tuple[tuple[float, float, float], ...]
    signs: tuple[tuple[int, int, int], ...]


def pair_factors(function: Pair, dim: int) -> PairFactors | None:
    """What a function of two tensors [samples, dim] lets pass; None if it mixes or tells features.

    A function of pairs of features lets every permutation of them pass. Measured at values of all
    sizes: a function that bends beyond them, or by less than 1e-9, is taken for one that does not.

    Args:
        function: it; float64 in and out.
        dim: number of features.

    Example:
        >>> pair_factors(torch.maximum, 4).sizes
        ((1.0, -1.0, 0.0), (1.0, 0.0, -1.0))
        >>> pair_factors(torch.mul, 4).sizes
        ((1.0, 1.0, -1.0),)
    """
    a, b = _draw(dim)
    y = function(a, b)
    if not bool(y.isfinite().all()) or not bool((y != y[:1]).any()):
        return None
    if not _feature_by_feature(function, a, b, y):
        return None
    first = _degree(lambda c: function(c * a, b), y)
    second = _degree(lambda c: function(a, c * b), y)
    both = _degree(lambda c: function(c * a, c * b), y)
    if first is not None and second is not None:
        sizes = ((first, second, -1.0),)
    elif first is not None:
        sizes = ((0.0, 1.0, 0.0), (first, 0.0, -1.0))
    elif second is not None:
        sizes = ((1.0, 0.0, 0.0), (0.0, second, -1.0))
    elif both is not None:
        sizes = ((1.0, -1.0, 0.0), (both, 0.0, -1.0))
    else:
        sizes = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    return PairFactors(sizes, _signs(function, a, b, y))


def _draw(dim: int) -> tuple[Tensor, Tensor]:
    """Two tensors of normal values in rows of many sizes, alike and unlike."""
    generator = torch.Generator().manual_seed(0)
    even, small = (
        torch.linspace(-4, 4, 33, dtype=torch.float32),
        torch.zeros(24, dtype=torch.float32),
    )
    powers = torch.cat([small, even]).double()
    unlike = torch.cat([small, even.roll(7)]).double()
    shape = (len(powers), dim)
    a = torch.randn(shape, generator=generator, dtype=torch.float64) * 10 ** powers[:, None]
    b = torch.randn(shape, generator=generator, dtype=torch.float64) * 10 ** unlike[:, None]
    return torch.cat([a, a]), torch.cat([b, b.roll(1, 0) * 0.3 + a])


def _feature_by_feature(function: Pair, a: Tensor, b: Tensor, y: Tensor) -> bool:
    """True if every output depends on its own two features only, in the same way for all."""
    if not _same(function(a[:3], b[:3]), y[:3]):
        return False
    dim = a.shape[1]
    # Where no feature reads another, one cycle through all of them shows that they are alike.
    order = torch.arange(dim).roll(1)
    if not _same(function(a[:, order], b[:, order]), y[:, order]):
        return False
    # For every bit of their index features are moved in two halves, so that of every two features
    # each is once moved while the other is kept.
    index = torch.arange(dim)
    for bit in range((dim - 1).bit_length()):
        high = (index >> bit) % 2 == 1
        for kept, moved in itertools.product(
            (high, ~high), ((1.5 * a.flip(0), b), (a, 1.5 * b.flip(0)))
        ):
            new = function(*(torch.where(kept, x, z) for x, z in zip((a, b), moved, strict=True)))
            if not _same(new[:, kept], y[:, kept]):
                return False
    return True


def _degree(scaled: Callable[[float], Tensor], y: Float64[Tensor, "sample dim"]) -> float | None:
    """The p with scaled(c) = c^p y for all positive c."""
    at = int(y.abs().argmax())
    powers: list[float] = []
    for c in _FACTORS:
        found = scaled(c)
        ratio = float(found.flatten()[at] / y.flatten()[at])
        if not (0 < ratio < math.inf) or not _same(found, ratio * y):
            return None
        powers.append(math.log(ratio) / math.log(c))
    degree = powers[0]
    if any(abs(power - degree) > 1e-6 for power in powers):
        return None
    return float(round(degree)) if abs(degree - round(degree)) < 1e-6 else degree


def _signs(function: Pair, a: Tensor, b: Tensor, y: Tensor) -> tuple[tuple[int, int, int], ...]:
    def bit(made: Tensor) -> int | None:
        return 0 if _same(made, y) else 1 if _same(made, -y) else None

    first, second, both = bit(function(-a, b)), bit(function(a, -b)), bit(function(-a, -b))
    if first is not None and second is not None:
        return ((first, second, 1),)
    if first is not None:
        return ((0, 1, 0), (first, 0, 1))
    if second is not None:
        return ((1, 0, 0), (0, second, 1))
    if both is not None:
        return ((1, 1, 0), (both, 0, 1))
    return ((1, 0, 0), (0, 1, 0), (0, 0, 1))


def _same(found: Tensor, expected: Tensor) -> bool:
    """True if all values agree, relative to themselves: small ones count as large ones do."""
    size = torch.maximum(found.abs(), expected.abs())
    return bool(((found - expected).abs() <= _TOLERANCE * size).all())
