"""Changes of basis that lie just outside a group, which must change what a model computes."""

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from basis_probe.algebra.elements import (
    BlockElement,
    Element,
    Local,
    MonomialElement,
    Reflections,
)
from basis_probe.algebra.groups import (
    Blocks,
    DirectSum,
    GeneralLinear,
    Group,
    LineStabiliser,
    Monomial,
    Orthogonal,
    Permutation,
    PositiveMonomial,
    SignedPermutation,
    Trivial,
)

FEW = 16
"""So many axes a stranger changes: it is just outside the group, and cheap in a wide layer."""

Maker = Callable[[int], Element | None]
"""Makes an element for a stream of some size; None where it has no form there."""


def neighbours(size: int, most: int, generator: torch.Generator) -> Tensor:
    """Some axes, beside each other: a part of a matrix that can be changed where it lies."""
    count = min(size, most)
    first = int(torch.randint(size - count + 1, (1,), generator=generator))
    return torch.arange(first, first + count)


def strangers(group: Group, generator: torch.Generator) -> dict[str, Maker]:
    """Changes of basis just outside a group, by name: size -> the element, where it has a form.

    Args:
        group: the group.
        generator: seeds them.
    """
    seed = int(torch.randint(2**31, (1,), generator=generator))

    def fresh() -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    def some(size: int, most: int = FEW) -> Tensor:
        return neighbours(size, most, fresh())

    def rotation(size: int) -> Element | None:
        if size < 2:
            return None
        axes = some(size)
        vectors = torch.randn(2, len(axes), generator=fresh(), dtype=torch.float64)
        return Local(size, axes, Reflections(vectors))

    def scales(size: int) -> Element:
        axes = some(size)
        factors = 0.5 + torch.rand(len(axes), generator=fresh(), dtype=torch.float64)
        return Local(size, axes, MonomialElement(torch.arange(len(axes)), factors))

    def signs(size: int) -> Element:
        axes = some(size, max(1, min(size // 2, FEW)))
        factors = -torch.ones(len(axes), dtype=torch.float64)
        return Local(size, axes, MonomialElement(torch.arange(len(axes)), factors))

    def order(size: int) -> Element | None:
        if size < 2:
            return None
        axes = some(size)
        ones = torch.ones(len(axes), dtype=torch.float64)
        return Local(size, axes, MonomialElement(torch.arange(len(axes)).roll(1), ones))

    if isinstance(group, Permutation):
        return {"rotation": rotation, "rescaling": scales, "sign change": signs}
    if isinstance(group, PositiveMonomial):
        return {"rotation": rotation, "sign change": signs}
    if isinstance(group, SignedPermutation):
        return {"rotation": rotation, "rescaling": scales}
    if isinstance(group, Monomial):
        return {"rotation": rotation}
    if isinstance(group, Trivial):
        return {"rotation": rotation, "reordering": order}
    if isinstance(group, Orthogonal):
        return {"rescaling": scales}
    if isinstance(group, LineStabiliser):
        return {"rotation": rotation}
    if isinstance(group, GeneralLinear):
        return {}
    if isinstance(group, DirectSum):
        return {"rotation": rotation, "reordering": _exchange(group, order, fresh)}
    if isinstance(group, Blocks):
        if isinstance(group.inner, Orthogonal):
            return _strange_blocks(group, rotation, scales, "rescaling inside blocks")
        return _strange_blocks(group, rotation, rotation, "rotation inside blocks")
    return {"rotation": rotation}


@dataclasses.dataclass(frozen=True, eq=False)
class _Mixing(Element):
    """Blocks of axes that are mixed with each other, axis by axis."""

    turn: Element
    size: int

    @property
    def dim(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.turn.dim * self.size

    def inverse(self) -> "_Mixing":
        return _Mixing(self.turn.inverse(), self.size)

    def transpose(self) -> "_Mixing":
        return _Mixing(self.turn.transpose(), self.size)

    def _act_on_rows(self, rows: Tensor) -> Tensor:
        return self.turn.act(rows.unflatten(-1, (self.turn.dim, self.size)), -2).flatten(-2)

    def _times(self, other: Element) -> Element | None:
        return None


def _exchange(group: DirectSum, order: Maker, fresh: Callable[[], torch.Generator]) -> Maker:
    """Axes of two parts that change places: some of either, as many as may be.

    One axis of each might be a neuron that is off.
    """
    sizes = [part.dim for part in group.parts]

    def exchange(size: int) -> Element | None:
        if size != group.dim or len(sizes) < 2:
            return order(size)
        part = int(torch.randint(len(sizes) - 1, (1,), generator=fresh()))
        pair = sizes[part : part + 2]
        # Two parts that are alike might change places as wholes, as both factors of a product do.
        count = min(FEW // 2, *pair) - (pair[0] == pair[1] <= FEW // 2)
        if not count:
            return order(size)
        first = sum(sizes[: part + 1]) - count
        axes = torch.arange(first, first + 2 * count)
        ones = torch.ones(2 * count, dtype=torch.float64)
        return Local(size, axes, MonomialElement(torch.arange(2 * count).roll(count), ones))

    return exchange


def _strange_blocks(group: Blocks, rotation: Maker, other: Maker, name: str) -> dict[str, Maker]:
    count, inner = group.count, group.inner.dim

    def mixing(size: int) -> Element | None:
        turn = rotation(count)
        return None if turn is None or size % count else _Mixing(turn, size // count)

    def inside(size: int) -> Element | None:
        turn = other(inner)
        if turn is None or size % (count * inner):
            return None
        parts = (turn,) * count
        return BlockElement(torch.arange(count), parts, size // (count * inner))

    found: dict[str, Maker] = {}
    if count > 1:
        found["mixing of blocks"] = mixing
    if not isinstance(group.inner, GeneralLinear):
        found[name] = inside
    return found
