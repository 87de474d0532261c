"""Groups made from groups on the same space: what several share, what fixes a vector, other bases.

`meet`, `stabiliser` and `conjugate` give the group in its plainest form. Where no simpler group is
the same one, that is an `Intersection`, a `Stabiliser` or a `Conjugate`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, cast, final

import torch
from jaxtyping import Float64
from torch import Tensor

from basis_probe.algebra.elements import (
    Dense,
    Element,
    Identity,
    MonomialElement,
    PlaneElement,
    Product,
    Sheared,
)
from basis_probe.algebra.groups import (
    Blocks,
    DirectSum,
    GeneralLinear,
    Group,
    LineStabiliser,
    Miss,
    Monomial,
    OnAxes,
    OnPlanes,
    Orthogonal,
    Permutation,
    Planes,
    PositiveMonomial,
    Privileged,
    SignedPermutation,
    SignedPlanes,
    Signs,
    Traits,
    Trivial,
    Unknown,
    bracketed,
    continued,
    monomial_parts,
    random_scales,
    random_signs,
    singularity,
)
from basis_probe.algebra.haar import haar_fixing

# --- intersections --------------------------------------------------------------------------------


@final
@dataclasses.dataclass(frozen=True)
class Intersection(Group):
    """The matrices that lie in all of several groups.

    `privileged` is AXES where one of the groups keeps axes, and UNKNOWN where what all of them
    leave was not derived. `rescales` and `rotates` are true where they are true of every group.

    Attributes:
        parts: the groups, at least one, all on the same space.

    Example:
        >>> both = Intersection((LineStabiliser(3), SignedPermutation(3)))
        >>> both.contains(-torch.eye(3)), both.contains(torch.diag(torch.tensor([1.0, -1.0, 1.0])))
        (True, False)
    """

    parts: tuple[Group, ...]

    name: ClassVar[str] = "intersection"

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("an intersection of no groups was asked for: give at least one part")
        _require_one_space(*self.parts)

    @property
    def dim(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The size that all parts share."""
        return self.parts[0].dim

    def _traits(self) -> Traits:
        parts = [part._traits() for part in self.parts]
        kinds = {part.privileged for part in parts}
        if len(parts) == 1:
            privileged = parts[0].privileged
        elif Privileged.AXES in kinds:
            privileged = Privileged.AXES
        elif len(parts) == 2 and self._has(Orthogonal) and self._has(LineStabiliser, Planes):
            # Rotations that keep the line or the planes can still turn what is across or inside.
            privileged = (kinds - {Privileged.NONE}).pop()
        else:
            privileged = Privileged.UNKNOWN
        said = ", and also ".join(f"({continued(part.sentence)})" for part in parts)
        return Traits(
            privileged=privileged,
            latex=r" \cap ".join(bracketed(part.latex) for part in parts),
            rescales=all(part.rescales for part in parts),
            rotates=all(part.rotates for part in parts),
            sentence=f"Only what each of {len(parts)} groups allows: {said}.",
        )

    def _has(self, *kinds: type[Group]) -> bool:
        return any(isinstance(part, kinds) for part in self.parts)

    def _draw(self, generator: torch.Generator) -> Element:
        if len(self.parts) == 1:
            return self.parts[0]._draw(generator)
        if len(self.parts) == 2:
            for one, other in itertools.permutations(self.parts):
                drawn = _shared_element(one, other, generator)
                if drawn is not None:
                    return drawn
        for finite in filter(_is_finite, self.parts):
            # Uniform on the finite group, so uniform on what of it lies in the others.
            for _ in range(_TRIES):
                drawn = finite._draw(generator)
                if self.contains(drawn):
                    return drawn
        raise ValueError(
            f"no way is known to draw from {self!r}: draw from one of its parts, or check single "
            "matrices with `contains`"
        )

    def _miss(self, a: Float64[Tensor, "dim dim"], atol: float, rounding: float) -> Miss:
        misses = [part._miss(a, atol, rounding) for part in self.parts]
        return max(misses, key=lambda miss: miss.by)

    def _read(self, a: Float64[Tensor, "dim dim"], atol: float) -> Element:
        read = [part._read(a, atol) for part in self.parts]
        return next((element for element in read if not isinstance(element, Dense)), read[0])


_TRIES = 1000
"""How many elements of a finite group are tried before drawing from a part of it is given up."""

# How far a plane may turn, in quarters, and whether it may be scaled, in each group.
_TURNS: dict[type[Group], tuple[tuple[int, ...], bool]] = {
    Signs: ((0, 2), False),
    SignedPermutation: ((0, 1, 2, 3), False),
    PositiveMonomial: ((0,), True),
    Monomial: ((0, 1, 2, 3), True),
}


def _shared_element(one: Group, other: Group, generator: torch.Generator) -> Element | None:
    """A uniform element of both groups, for pairs of which it is known how."""
    dim = one.dim
    if isinstance(one, LineStabiliser):
        # U + 1 w^T is orthogonal, and so is a signed order, only if U 1 = ±1 and w = 0.
        sign = MonomialElement(torch.arange(dim), random_signs(1, generator).expand(dim))
        if isinstance(other, Orthogonal):
            ones = torch.ones(1, dim, dtype=torch.float64)
            return sign @ Dense(haar_fixing(ones, generator))
        if isinstance(other, SignedPermutation):
            return sign @ Permutation(dim).draw(generator)
        return sign if isinstance(other, Signs) else None
    if isinstance(one, Planes):
        count = dim // 2
        if isinstance(other, Orthogonal):
            angle = 2 * math.pi * torch.rand(count, generator=generator, dtype=torch.float64)
            return PlaneElement(angle.cos(), angle.sin(), one.pairing)
        if type(other) in _TURNS:
            quarters, scaled = _TURNS[type(other)]
            chosen = torch.randint(len(quarters), (count,), generator=generator)
            number = torch.tensor([1, 1j, -1, -1j])[torch.tensor(quarters)[chosen]]
            size = random_scales(count, generator) if scaled else 1.0
            return PlaneElement(size * number.real, size * number.imag, one.pairing)
    if isinstance(one, SignedPlanes) and isinstance(other, Permutation):
        drawn = cast(MonomialElement, one.draw(generator))
        return MonomialElement(drawn.columns, torch.ones_like(drawn.factors))
    return None


def _is_finite(group: Group) -> bool:
    if isinstance(group, Blocks):
        return _is_finite(group.inner)
    if isinstance(group, DirectSum):
        return all(map(_is_finite, group.parts))
    if isinstance(group, Intersection):
        return any(map(_is_finite, group.parts))
    if isinstance(group, Stabiliser):
        return _is_finite(group.group)
    return isinstance(group, Permutation | SignedPermutation | Signs | SignedPlanes | Trivial)


def meet(a: Group, b: Group) -> Group:
    """The intersection of two groups: a group of its own kind where there is one.

    Where none is, it is an `Intersection` of the fewest groups. The order of `a` and `b` does not
    matter. With an unknown group it is unknown.

    Raises:
        ValueError: if the groups act on different dimensions.

    Example:
        >>> meet(Monomial(3), Orthogonal(3))
        SignedPermutation(dim=3)
        >>> meet(Blocks(GeneralLinear(2), count=3), Permutation(6))
        Blocks(inner=Permutation(dim=2), count=3, copies=1)
        >>> meet(LineStabiliser(3), Monomial(3))
        Intersection(parts=(LineStabiliser(dim=3), SignedPermutation(dim=3)))
    """
    _require_one_space(a, b)
    if a == b:
        return a
    if isinstance(a, Unknown) or isinstance(b, Unknown):
        return Unknown(a.dim)
    (one, fixed), (other, also) = _unfixed(a), _unfixed(b)
    if fixed or also:
        # Vectors last, so that it does not matter when each of them was asked to stay.
        return functools.reduce(stabiliser, sorted(fixed | also), meet(one, other))
    parts: list[Group] = []
    waiting = [*_parts(a), *_parts(b)]
    while waiting:
        new = waiting.pop(0)
        for part in parts:
            shared = _pair(new, part)
            if shared is not None:
                # What they share takes the place of both, and may have more to share.
                parts.remove(part)
                waiting[:0] = _parts(shared)
                break
        else:
            parts.append(new)
    if len(parts) == 1:
        return parts[0]
    return Intersection(tuple(sorted(parts, key=repr)))


def _parts(group: Group) -> tuple[Group, ...]:
    group = _plain(group)
    return group.parts if isinstance(group, Intersection) else (group,)


def _plain(group: Group) -> Group:
    """The same group without layers that say nothing."""
    if isinstance(group, LineStabiliser) and group.dim == 1:
        return GeneralLinear(1)
    if isinstance(group, OnPlanes) and group.dim == 2:
        # One plane, however its axes are paired.
        return dataclasses.replace(group, pairing="half")
    if isinstance(group, DirectSum) and len(group.parts) == 1:
        return _plain(group.parts[0])
    if isinstance(group, Blocks):
        if group.count * group.copies == 1:
            return _plain(group.inner)
        if (group.count == 1 or group.order == "kept") and isinstance(group.inner, Trivial):
            return Trivial(group.dim)
    if isinstance(group, DirectSum) and all(isinstance(part, Trivial) for part in group.parts):
        return Trivial(group.dim)
    return group


def _pair(a: Group, b: Group) -> Group | None:
    """What two groups share where it is not just the intersection of the two; None where it is."""
    for rule in _RULES:
        for one, other in ((a, b), (b, a)):
            shared = rule(one, other)
            if shared is not None:
                return _plain(shared)
    return None


def _unfixed(group: Group) -> tuple[Group, frozenset[tuple[float, ...]]]:
    """A group without the demand that vectors stay as they are, and those vectors."""
    if isinstance(group, Stabiliser):
        inner, fixed = _unfixed(group.group)
        return inner, fixed | {group.vector}
    if isinstance(group, Intersection | DirectSum):
        parts = [_unfixed(part) for part in group.parts]
        if any(fixed for _, fixed in parts):
            whole = dataclasses.replace(group, parts=tuple(part for part, _ in parts))
            if isinstance(group, Intersection):
                return whole, frozenset[tuple[float, ...]]().union(*(fixed for _, fixed in parts))
            return whole, frozenset(_beside(group.parts, [fixed for _, fixed in parts]))
    return group, frozenset()


def _beside(
    parts: Sequence[Group], fixed: Sequence[frozenset[tuple[float, ...]]]
) -> Iterator[tuple[float, ...]]:
    """Vectors of the parts of a sum as vectors of the whole."""
    ends = list(itertools.accumulate((part.dim for part in parts), initial=0))
    for start, end, vectors in zip(ends, ends[1:], fixed, strict=False):
        for vector in vectors:
            yield (0.0,) * start + vector + (0.0,) * (ends[-1] - end)


# Every rule says what the two groups share, or None where it does not know.


def _equal_or_everything(one: Group, other: Group) -> Group | None:
    if one == other or isinstance(one, Trivial) or isinstance(other, GeneralLinear):
        return one
    return None


# What generates each group that keeps axes, and the rotations; groups share what both have.
_GENERATORS: dict[type[Group], frozenset[str]] = {
    Trivial: frozenset(),
    Signs: frozenset({"signs"}),
    Permutation: frozenset({"orders"}),
    SignedPermutation: frozenset({"orders", "signs"}),
    PositiveMonomial: frozenset({"orders", "scales"}),
    Monomial: frozenset({"orders", "signs", "scales"}),
    Orthogonal: frozenset({"orders", "signs", "rotations"}),
}


def _of_one_kind(kind: type[Group], dim: int) -> Group:
    return cast("Callable[[int], Group]", kind)(dim)


def _by_generators(one: Group, other: Group) -> Group | None:
    if type(one) not in _GENERATORS or type(other) not in _GENERATORS:
        return None
    shared = _GENERATORS[type(one)] & _GENERATORS[type(other)]
    kind = next(kind for kind, generators in _GENERATORS.items() if generators == shared)
    return _of_one_kind(kind, one.dim)


def _with_line(one: Group, other: Group) -> Group | None:
    """Orders fix the ones; a monomial matrix that keeps their line has one factor, 1 or -1."""
    if not isinstance(one, LineStabiliser):
        return None
    if _only_orders(other):
        return other
    if isinstance(other, PositiveMonomial):
        return Permutation(one.dim)
    if isinstance(other, Monomial):
        return Intersection((one, SignedPermutation(one.dim)))
    return None


def _only_orders(group: Group) -> bool:
    """True if it is known that every element is a permutation."""
    if isinstance(group, Blocks):
        return _only_orders(group.inner)
    if isinstance(group, DirectSum):
        return all(map(_only_orders, group.parts))
    if isinstance(group, Stabiliser):
        return _only_orders(group.group)
    return isinstance(group, Permutation | Trivial)


def _inside_planes(one: Group, other: Group) -> Group | None:
    if isinstance(one, Planes) and isinstance(other, Permutation):
        # A quarter turn needs a sign, so that what only moves axes moves none.
        return Trivial(one.dim)
    if not isinstance(one, SignedPlanes):
        return None
    if isinstance(other, SignedPermutation | Monomial | Orthogonal):
        return one
    if isinstance(other, Signs):
        return other
    if isinstance(other, PositiveMonomial):
        return Intersection((one, Permutation(one.dim)))
    if isinstance(other, SignedPlanes):
        # The pairings differ, and no axis has the same partner in both.
        return Signs(one.dim)
    if isinstance(other, Planes):
        same = one.pairing == other.pairing
        return Intersection((other, SignedPermutation(one.dim) if same else Signs(one.dim)))
    return None


# A matrix of blocks is of these kinds exactly if its blocks are.
_BLOCKWISE = (Permutation, SignedPermutation, PositiveMonomial, Monomial, Orthogonal, Signs)


def _restricted(group: Group, dim: int) -> Group | None:
    """The group of the same kind on a block of axes; None where there is none.

    A matrix of blocks is in the whole group exactly if its blocks are in that one and, for groups
    that keep axes or planes in place, the blocks keep theirs.
    """
    if isinstance(group, _BLOCKWISE):
        return _of_one_kind(type(group), dim)
    if isinstance(group, OnPlanes) and group.pairing == "adjacent" and dim % 2 == 0:
        return dataclasses.replace(group, dim=dim)
    return None


def _blockwise(one: Group, other: Group) -> Group | None:
    if isinstance(one, Blocks):
        inner = _restricted(other, one.inner.dim)
        if inner is None:
            return None
        stays = isinstance(other, Signs | OnPlanes)
        return dataclasses.replace(
            one, inner=meet(one.inner, inner), order="kept" if stays else one.order
        )
    if isinstance(one, DirectSum):
        parts = [(part, _restricted(other, part.dim)) for part in one.parts]
        shared = tuple(meet(part, inner) for part, inner in parts if inner is not None)
        return DirectSum(shared) if len(shared) == len(parts) else None
    return None


def _blocks_with_blocks(one: Group, other: Group) -> Group | None:
    if not isinstance(one, Blocks) or not isinstance(other, Blocks):
        return None
    # Blocks with copies are also that many blocks without.
    blocks = one.count * one.copies
    same = (other.count, other.copies) in {(one.count, one.copies), (blocks, 1)}
    if not same or one.inner.dim != other.inner.dim:
        return None
    order = "kept" if "kept" in (one.order, other.order) else "free"
    return dataclasses.replace(one, inner=meet(one.inner, other.inner), order=order)


def _sums_with_sums(one: Group, other: Group) -> Group | None:
    """Part by part, on the finest division of the axes that the two make together."""
    if not isinstance(one, DirectSum) or not isinstance(other, DirectSum | Blocks):
        return None
    if isinstance(other, DirectSum):
        cuts = sorted(_cuts(one) | _cuts(other))
        divided = [_divided(group.parts, cuts) for group in (one, other)]
    else:
        divided = [list(one.parts), _divided((other,), sorted(_cuts(one)))]
    first, second = divided
    if first is None or second is None:
        return None
    return DirectSum(tuple(itertools.starmap(meet, zip(first, second, strict=True))))


def _cuts(group: DirectSum) -> set[int]:
    """Where one part ends and the next begins."""
    return set(itertools.accumulate(part.dim for part in group.parts))


def _divided(parts: Sequence[Group], cuts: Sequence[int]) -> list[Group] | None:
    """What of a sum is left when nothing may cross a cut, piece by piece; None if not known."""
    pieces: list[Group] = []
    start = 0
    for part in parts:
        ends = [cut - start for cut in cuts if start < cut <= start + part.dim]
        sizes = [end - before for before, end in itertools.pairwise([0, *ends])]
        start += part.dim
        if len(sizes) == 1:
            pieces.append(part)
            continue
        for size in sizes:
            piece = _piece(part, size)
            if piece is None:
                return None
            pieces.append(piece)
    return pieces


def _piece(group: Group, size: int) -> Group | None:
    """What a group does to a run of its axes that it may not mix with the others."""
    if isinstance(group, GeneralLinear | Trivial):
        return _of_one_kind(type(group), size)
    if isinstance(group, Blocks):
        count, rest = divmod(size, group.inner.dim * group.copies)
        return None if rest else dataclasses.replace(group, count=count)
    return _restricted(group, size)


def _in_one_basis(one: Group, other: Group) -> Group | None:
    if isinstance(one, Conjugate) and isinstance(other, Conjugate) and one.by == other.by:
        return conjugate(meet(one.group, other.group), one.by)
    return None


_RULES: tuple[Callable[[Group, Group], Group | None], ...] = (
    _equal_or_everything,
    _by_generators,
    _with_line,
    _inside_planes,
    _blockwise,
    _blocks_with_blocks,
    _sums_with_sums,
    _in_one_basis,
)

# --- groups that fix a vector ---------------------------------------------------------------------


@final
@dataclasses.dataclass(frozen=True)
class Stabiliser(Group):
    """The elements of a group that leave one vector as it is.

    `privileged` speaks of axes: it is NONE also where the vector itself is a direction with a
    meaning, if no axis has one.

    Attributes:
        group: the whole group.
        vector: the vector's entries, in order.

    Example:
        >>> ends = Stabiliser(Permutation(3), (1.0, 0.0, 1.0))
        >>> ends.contains(torch.eye(3)[[2, 1, 0]]), ends.contains(torch.eye(3)[[1, 0, 2]])
        (True, False)
    """

    group: Group
    vector: tuple[float, ...]

    name: ClassVar[str] = "stabiliser"

    def __post_init__(self) -> None:
        if len(self.vector) != self.group.dim:
            raise ValueError(
                f"the vector has {len(self.vector)} entries and {self.group!r} acts on "
                f"{self.group.dim}: give one entry for every axis"
            )
        if not all(map(math.isfinite, self.vector)):
            raise ValueError("the vector is not finite: give finite numbers")

    @property
    def dim(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The size of the vector."""
        return len(self.vector)

    def _traits(self) -> Traits:
        whole = self.group._traits()
        return Traits(
            privileged=self._privileged(whole.privileged),
            latex=rf"({whole.latex})_v",
            rescales=whole.rescales and 0.0 in self.vector,
            rotates=whole.rotates and self._leaves_room_to_turn(),
            sentence=f"{whole.sentence.rstrip('.')}, so far as one given vector stays as it is.",
        )

    def _privileged(self, whole: Privileged) -> Privileged:
        values = set(self.vector)
        if whole is Privileged.AXES or values == {0.0}:
            return whole
        if isinstance(self.group, Planes):
            free = self._free_planes()
            if not bool(free.any()):
                return Privileged.AXES
            return Privileged.PLANES if bool(free.all()) else Privileged.BLOCKS
        if not isinstance(self.group, Orthogonal | GeneralLinear | LineStabiliser):
            return Privileged.UNKNOWN
        alone = sum(value != 0 for value in self.vector) == 1
        if self.dim == 1:
            return Privileged.AXES
        if isinstance(self.group, Orthogonal) and self.dim == 2:
            # One reflection is left: along an axis, or swapping the two, or oblique.
            along = alone or abs(self.vector[0]) == abs(self.vector[1])
            return Privileged.AXES if along else Privileged.UNKNOWN
        if len(values) == 1:
            return Privileged.LINE
        if isinstance(self.group, LineStabiliser):
            # Next to the ones, a vector with one entry unlike the others marks that axis.
            most = max(self.vector.count(value) for value in values)
            return Privileged.UNKNOWN if most == self.dim - 1 else Privileged.LINE
        if not alone:
            return Privileged.NONE
        # One axis by itself, and the rotations of the others.
        return Privileged.BLOCKS if isinstance(self.group, Orthogonal) else Privileged.UNKNOWN

    def _leaves_room_to_turn(self) -> bool:
        if isinstance(self.group, Planes):
            return bool(self._free_planes().any())
        sizes = sorted(abs(value) for value in self.vector)
        # In two dimensions a single reflection is left, which mixes the axes if it is oblique.
        return self.dim > 2 or (self.dim == 2 and 0 < sizes[0] < sizes[1])

    def _free_planes(self) -> Tensor:
        assert isinstance(self.group, Planes)
        first, second = self.group.axes()
        return (self._v()[first] == 0) & (self._v()[second] == 0)

    def _v(self) -> Float64[Tensor, " dim"]:
        return torch.tensor(self.vector, dtype=torch.float64)

    def _draw(self, generator: torch.Generator) -> Element:
        group, v = self.group, self._v()
        if not bool(v.any()):
            return group._draw(generator)
        if isinstance(group, Trivial):
            return Identity(self.dim)
        if isinstance(group, Orthogonal):
            return Dense(haar_fixing(v[None], generator))
        if isinstance(group, OnAxes):
            return self._draw_on_axes(group, generator)
        if isinstance(group, Signs):
            signs = torch.where(v == 0, random_signs(self.dim, generator), 1.0)
            return MonomialElement(torch.arange(self.dim), signs)
        if isinstance(group, Planes):
            drawn = cast(PlaneElement, group.draw(generator))
            free = self._free_planes()
            real = torch.where(free, drawn.real, 1.0)
            return PlaneElement(real, torch.where(free, drawn.imaginary, 0.0), group.pairing)
        if isinstance(group, GeneralLinear):
            return Dense(self._draw_linear(generator))
        if isinstance(group, LineStabiliser):
            return self._draw_across_line(generator)
        if isinstance(group, SignedPlanes):
            return self._draw_in_signed_planes(group, generator)
        if isinstance(group, Intersection):
            parts = tuple(Stabiliser(part, self.vector) for part in group.parts)
            return Intersection(parts).draw(generator)
        raise ValueError(
            f"no way is known to draw from {self!r}: draw from a stabiliser in one of its parts, "
            "or check single matrices with `contains`"
        )

    def _draw_on_axes(self, group: OnAxes, generator: torch.Generator) -> Element:
        v = self._v()
        # An axis may take what another holds if a factor of the group turns that into its own.
        if group.positive_scales:
            kinds = (v != 0).double() if group.signs else v.sign()
        else:
            kinds = v.abs() if group.signs else v
        columns = torch.arange(self.dim)
        for kind in kinds.unique():
            alike = (kinds == kind).nonzero().flatten()
            columns[alike] = alike[torch.randperm(len(alike), generator=generator)]
        drawn = cast(MonomialElement, group.draw(generator))
        return MonomialElement(columns, torch.where(v == 0, drawn.factors, v / v[columns]))

    def _draw_in_signed_planes(self, group: SignedPlanes, generator: torch.Generator) -> Element:
        v = self._v()
        first, second = group.axes()
        drawn = cast(MonomialElement, group.draw(generator))
        # A plane whose axes hold different sizes keeps them in place.
        alike = torch.empty(self.dim, dtype=torch.bool)
        alike[first] = alike[second] = v[first].abs() == v[second].abs()
        columns = torch.where(alike, drawn.columns, torch.arange(self.dim))
        return MonomialElement(columns, torch.where(v == 0, drawn.factors, v / v[columns]))

    def _draw_linear(self, generator: torch.Generator) -> Tensor:
        v = self._v()
        if self.dim == 1:
            return torch.eye(1, dtype=torch.float64)
        # In a frame that begins with v: 1 and anything behind it, then any matrix.
        across = haar_fixing(v[None], generator) @ _complement(v)
        inside = GeneralLinear(self.dim - 1).sample(generator)
        along = torch.randn(self.dim - 1, generator=generator, dtype=torch.float64)
        unit = v / v.norm()
        spread = 0.5 * unit.outer(along) / math.sqrt(self.dim)
        return unit.outer(unit) + (spread + across @ inside) @ across.T

    def _draw_across_line(self, generator: torch.Generator) -> Element:
        v = self._v()
        if self.dim == 1:
            return Identity(1)
        turn = haar_fixing(torch.stack([torch.ones_like(v), v]), generator)
        # U fixes v, so that w has to be orthogonal to it; 1 + sum of w is what becomes of the ones.
        while True:
            w = torch.randn(self.dim, generator=generator, dtype=torch.float64) / self.dim
            w = w - v * (w @ v) / (v @ v)
            if 0.5 <= abs(1 + float(w.sum())) <= 2:
                return Sheared(Dense(turn), w)

    def _miss(self, a: Float64[Tensor, "dim dim"], atol: float, rounding: float) -> Miss:
        miss = self.group._miss(a, atol, rounding)
        v = self._v()
        size = float(v.abs().sum())
        if size == 0 or math.isinf(miss.by):
            return miss
        moved, place = (a @ v - v).abs().max(dim=0)
        # An error of atol in every entry moves the vector by no more than this.
        off = float(moved) / size / max(1.0, float(a.abs().max()))
        if off > miss.by:
            return Miss(off, f"the vector's entry {int(place)} changes by {float(moved):.3g}")
        return miss

    def _read(self, a: Float64[Tensor, "dim dim"], atol: float) -> Element:
        return self.group._read(a, atol)


def _complement(v: Float64[Tensor, " dim"]) -> Tensor:
    """An orthonormal basis of the space across a vector, in columns."""
    return torch.linalg.svd(v[None])[2][1:].T


def stabiliser(group: Group, vector: Tensor | Sequence[float]) -> Group:
    """The elements of a group that leave a vector as it is, in the plainest form.

    Args:
        group: the whole group.
        vector: [dim], finite real numbers.

    Raises:
        ValueError: if the vector has another size or is not finite.

    Example:
        >>> stabiliser(DirectSum((Trivial(1), Permutation(2))), (5.0, 1.0, 0.0))
        DirectSum(parts=(Trivial(dim=1), Stabiliser(group=Permutation(dim=2), vector=(1.0, 0.0))))
    """
    entries = torch.as_tensor(vector, dtype=torch.float64).detach().cpu()
    fixed = Stabiliser(group, tuple(entries.tolist()))
    if isinstance(group, Unknown | Trivial) or not bool(entries.any()):
        return group
    if isinstance(group, Stabiliser) and fixed.vector <= group.vector:
        # In order, and each once.
        inner = stabiliser(group.group, entries)
        return group if fixed.vector == group.vector else stabiliser(inner, group.vector)
    if isinstance(group, DirectSum):
        pieces = entries.split([part.dim for part in group.parts])
        return DirectSum(
            tuple(itertools.starmap(stabiliser, zip(group.parts, pieces, strict=True)))
        )
    if isinstance(group, Permutation) and len(set(fixed.vector)) == 1:
        return group
    return fixed


# --- groups in another basis ----------------------------------------------------------------------


@final
@dataclasses.dataclass(frozen=True)
class Conjugate(Group):
    """A group as it looks after a change of basis: the matrices B G B^-1.

    `privileged` speaks of the axes of the new basis: it is NONE where the directions with a meaning
    are columns of B, and none of these lies along an axis.

    Attributes:
        group: the group in its own basis.
        by: the rows of B.

    Example:
        >>> turned = Conjugate(Signs(2), ((0.6, -0.8), (0.8, 0.6)))
        >>> turned.contains([[-0.28, 0.96], [0.96, 0.28]])
        True
    """

    group: Group
    by: tuple[tuple[float, ...], ...]

    name: ClassVar[str] = "conjugate"

    def __post_init__(self) -> None:
        dim = self.group.dim
        if len(self.by) != dim or any(len(row) != dim for row in self.by):
            raise ValueError(
                f"the change of basis is not [{dim}, {dim}], the size of {self.group!r}: give its "
                "rows"
            )
        if not all(math.isfinite(entry) for row in self.by for entry in row):
            raise ValueError("the change of basis is not finite: give finite numbers")
        singular = singularity(self._b(), torch.finfo(torch.float64).eps)
        if singular:
            raise ValueError(f"no change of basis: {singular}; give an invertible matrix")

    @property
    def dim(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The size of the change of basis."""
        return len(self.by)

    def _b(self) -> Float64[Tensor, "dim dim"]:
        return torch.tensor(self.by, dtype=torch.float64)

    def _change(self) -> Element:
        """B as an element."""
        monomial = monomial_parts(self._b(), 0.0)
        return Dense(self._b()) if monomial is None else MonomialElement(*monomial)

    def _traits(self) -> Traits:
        whole = self.group._traits()
        monomial = isinstance(self._change(), MonomialElement)
        b = self._b()
        # Only where B keeps lengths is it known that a rotation remains one.
        turn = Orthogonal(self.dim).contains(b / (b.norm() / math.sqrt(self.dim)), atol=1e-9)
        return Traits(
            privileged=self._privileged(whole.privileged, monomial=monomial),
            latex=rf"B\,{bracketed(whole.latex)}\,B^{{-1}}",
            rescales=(
                whole.rescales
                if monomial
                else self.group.contains(2 * torch.eye(self.dim, dtype=torch.float64))
            ),
            rotates=whole.rotates if monomial else turn and not isinstance(self.group, Trivial),
            sentence=f"In another basis, which is given: {continued(whole.sentence)}.",
        )

    def _privileged(self, whole: Privileged, *, monomial: bool) -> Privileged:
        b = self._b()
        if whole is Privileged.LINE:
            image = b.sum(dim=1)
            if bool(((image - image.mean()).abs() <= 1e-9 * image.abs().max()).all()):
                return whole
            return Privileged.UNKNOWN if int((image != 0).sum()) == 1 else Privileged.NONE
        if monomial or whole in (Privileged.NONE, Privileged.UNKNOWN):
            return whole
        if isinstance(self.group, Trivial):
            return whole
        if whole is Privileged.AXES and not bool(((b != 0).sum(dim=0) == 1).any()):
            return Privileged.NONE
        return Privileged.UNKNOWN

    def _draw(self, generator: torch.Generator) -> Element:
        change = self._change()
        return change @ self.group._draw(generator) @ change.inverse()

    def _generic(self, generator: torch.Generator) -> Element:
        change = self._change()
        return Product((change, self.group._generic(generator), change.inverse()))

    def _miss(self, a: Float64[Tensor, "dim dim"], atol: float, rounding: float) -> Miss:
        miss = self.group._miss(self._home(a), atol, rounding)
        return dataclasses.replace(miss, where=f"in the group's own basis, {miss.where}")

    def _home(self, a: Float64[Tensor, "dim dim"]) -> Float64[Tensor, "dim dim"]:
        """The matrix in the group's own basis."""
        b = self._b()
        return torch.linalg.solve(b, a @ b)

    def _read(self, a: Float64[Tensor, "dim dim"], atol: float) -> Element:
        change = self._change()
        return change @ self.group._read(self._home(a), atol) @ change.inverse()


def conjugate(group: Group, by: object) -> Group:
    """The group after a change of basis, B G B^-1, in the plainest form that is known.

    Args:
        group: the group in its own basis.
        by: the B, [dim, dim]: a tensor, an array, rows, or an element.

    Raises:
        ValueError: if B has another size, or is not finite or not invertible.

    Example:
        >>> conjugate(Permutation(2), [[2.0, 0.0], [0.0, 1.0]])
        Conjugate(group=Permutation(dim=2), by=((2.0, 0.0), (0.0, 1.0)))
        >>> conjugate(Monomial(2), [[2.0, 0.0], [0.0, 1.0]])
        Monomial(dim=2)
    """
    b = by.matrix() if isinstance(by, Element) else torch.as_tensor(by, dtype=torch.float64)
    b = b.detach().to("cpu", torch.float64)
    if isinstance(group, Conjugate) and b.shape == (group.dim, group.dim):
        rows = torch.tensor(group.by, dtype=torch.float64)
        return conjugate(group.group, b @ rows)
    changed = Conjugate(group, tuple(map(tuple, b.tolist())) if b.ndim == 2 else ())
    return group if _is_kept(group, b) else changed


def _is_kept(group: Group, b: Float64[Tensor, "dim dim"]) -> bool:
    """True if it is known that B G B^-1 = G."""
    if isinstance(group, GeneralLinear | Trivial | Unknown):
        return True
    if isinstance(group, Monomial | Signs):
        return Monomial(group.dim).contains(b, atol=1e-12)
    # A multiple of the identity commutes with everything.
    size = b.norm() / math.sqrt(group.dim)
    return any(group.contains(b * c, atol=1e-12) for c in (1, -1, 1 / size, -1 / size))


def _require_one_space(*groups: Group) -> None:
    if len({group.dim for group in groups}) > 1:
        named = functools.reduce(lambda said, group: f"{said} and {group}", map(repr, groups))
        raise ValueError(f"{named} act on different dimensions: give groups on one space")
