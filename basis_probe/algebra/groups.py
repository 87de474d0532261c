"""Groups of changes of basis: which matrices A may act on the activations at a place, x' = A x.

A group is a value: it says which matrices it holds, draws one, and says in words what it does to
axes. Elementary groups act on all of R^n in one way; `Blocks` and `DirectSum` build larger ones
from them. `repr` writes a group as Python, and `eval` reads it back.
"""

from __future__ import annotations

import abc
import dataclasses
import difflib
import enum
import math
from typing import ClassVar, Literal, final

import torch
from jaxtyping import Float64
from torch import Tensor

from basis_probe.algebra.haar import haar, haar_fixing, require_cpu


class Privileged(enum.Enum):
    """Which directions a group leaves meaningful; the value says it in a sentence."""

    AXES = "Each axis has a meaning of its own, up to order, sign and scale."
    PLANES = (
        "Pairs of axes span planes that have a meaning; the directions inside a plane have none."
    )
    BLOCKS = (
        "Whole blocks of axes, such as heads, have a meaning; the axes inside a block have none."
    )
    LINE = "Only the all-ones direction has a meaning; the axes across it have none."
    NONE = "No direction has a meaning of its own: the basis is arbitrary."
    UNKNOWN = "It is not known which directions have a meaning: nothing is claimed."


@dataclasses.dataclass(frozen=True)
class Traits:
    """What is true of a whole group; see the attributes of `Group`."""

    privileged: Privileged
    latex: str
    rescales: bool
    rotates: bool
    sentence: str


class Group(abc.ABC):
    """A group of invertible real matrices that act on R^dim, x' = A x for a column vector x.

    Attributes:
        name: the group in kebab-case, as `group_from_name` reads it.
        dim: the n that the matrices act on.
    """

    name: ClassVar[str]
    dim: int

    @property
    def privileged(self) -> Privileged:
        """Which directions the group leaves meaningful."""
        return self._traits().privileged

    @property
    def latex(self) -> str:
        """The group as a formula, without dollar signs."""
        return self._traits().latex

    @property
    def rescales(self) -> bool:
        """True if lengths along different axes cannot be compared.

        That is, if the group holds a diagonal matrix with an entry other than 1 and -1.
        """
        return self._traits().rescales

    @property
    def rotates(self) -> bool:
        """True if the group holds an orthogonal matrix that mixes axes."""
        return self._traits().rotates

    def describe(self) -> str:
        """One sentence in plain English: what the group does to the axes."""
        return self._traits().sentence

    def sample(self, generator: torch.Generator) -> Float64[Tensor, "dim dim"]:
        """A well-conditioned element of the group, on the CPU; scales lie between 1/2 and 2.

        Args:
            generator: a generator on the CPU; one seed means one element.

        Raises:
            ValueError: if the group is unknown, or the generator is not on the CPU.
        """
        require_cpu(generator)
        return self._draw(generator)

    def contains(self, matrix: object, atol: float = 1e-6) -> bool:
        """True if the matrix is in the group.

        Args:
            matrix: [dim, dim], a tensor or an array of real numbers.
            atol: how far an entry may be from what the group demands; in groups that rescale axes,
                relative to the largest entry of its row. A singular matrix and one with NaN or
                infinity in it are in no group.

        Raises:
            ValueError: if the matrix has another shape or complex entries, or the group is unknown.
        """
        a = torch.as_tensor(matrix)
        if tuple(a.shape) != (self.dim, self.dim):
            raise ValueError(
                f"the matrix has shape {tuple(a.shape)}, the group {self.name} acts on "
                f"[{self.dim}, {self.dim}]: give a square matrix of that size"
            )
        if a.is_complex():
            raise ValueError(
                "the matrix is complex: the groups hold real matrices, give its real form"
            )
        rounding = torch.finfo(a.dtype).eps if a.is_floating_point() else 0.0
        exact = a.detach().to("cpu", torch.float64)
        rounding = max(rounding, torch.finfo(torch.float64).eps)
        return bool(exact.isfinite().all()) and self._holds(exact, atol, rounding)

    @abc.abstractmethod
    def _traits(self) -> Traits: ...

    @abc.abstractmethod
    def _draw(self, generator: torch.Generator) -> Float64[Tensor, "dim dim"]: ...

    @abc.abstractmethod
    def _holds(self, a: Float64[Tensor, "dim dim"], atol: float, rounding: float) -> bool:
        """Whether a finite matrix, known to `rounding` relative, is in the group."""


@dataclasses.dataclass(frozen=True)
class Elementary(Group):
    """A group that treats all n axes alike.

    Attributes:
        dim: n, at least 1.
    """

    dim: int

    def __post_init__(self) -> None:
        _require_size("dim", self.dim)


# --- groups that mix axes -------------------------------------------------------------------------


@final
@dataclasses.dataclass(frozen=True)
class GeneralLinear(Elementary):
    """Every invertible matrix.

    Example:
        >>> GeneralLinear(2).contains([[1.0, 2.0], [2.0, 4.0]])
        False
    """

    name: ClassVar[str] = "general-linear"

    def _traits(self) -> Traits:
        return Traits(
            privileged=Privileged.NONE,
            latex=r"\mathrm{GL}_n(\mathbb{R})",
            rescales=True,
            rotates=self.dim > 1,
            sentence="Every invertible linear change of basis, so that no direction is marked out.",
        )

    def _draw(self, generator: torch.Generator) -> Float64[Tensor, "dim dim"]:
        left, right = haar(self.dim, generator), haar(self.dim, generator)
        stretch = 1.4 * _uniform(self.dim, generator) - 0.7
        return left * stretch.exp() @ right

    def _holds(self, a: Float64[Tensor, "dim dim"], atol: float, rounding: float) -> bool:
        # Rows and columns of unit size first: a matrix is not singular for having small units.
        rows = a.abs().amax(dim=1, keepdim=True)
        if bool((rows == 0).any()):
            return False
        a = a / rows
        columns = a.abs().amax(dim=0, keepdim=True)
        if bool((columns == 0).any()):
            return False
        a = a / columns
        inverse, singular = torch.linalg.inv_ex(a)
        if int(singular) != 0:
            return False
        condition = torch.linalg.matrix_norm(a, 1) * torch.linalg.matrix_norm(inverse, 1)
        return bool(condition * rounding * self.dim < 1)


@final
@dataclasses.dataclass(frozen=True)
class Orthogonal(Elementary):
    """Every rotation and reflection.

    Example:
        >>> Orthogonal(2).contains([[0.6, -0.8], [0.8, 0.6]])
        True
    """

    name: ClassVar[str] = "orthogonal"

    def _traits(self) -> Traits:
        return Traits(
            privileged=Privileged.NONE,
            latex=r"\mathrm{O}(n)",
            rescales=False,
            rotates=self.dim > 1,
            sentence="Every rotation and reflection: lengths and angles are kept, but no axis is.",
        )

    def _draw(self, generator: torch.Generator) -> Float64[Tensor, "dim dim"]:
        return haar(self.dim, generator)

    def _holds(self, a: Float64[Tensor, "dim dim"], atol: float, rounding: float) -> bool:
        return _close(a.T @ a, torch.eye(self.dim, dtype=a.dtype), atol)


@final
@dataclasses.dataclass(frozen=True)
class LineStabiliser(Elementary):
    """Rotations across the all-ones direction, with anything at all written along it.

    The matrices U + 1 w^T with U orthogonal and U 1 = ±1. A LayerNorm removes what lies along 1 and
    divides by the length of the rest, so it cannot see w; a scale other than ±1 of the rest would
    be seen, because of the norm's epsilon.

    Example:
        >>> LineStabiliser(2).contains([[2.0, 1.0], [1.0, 2.0]])
        True
        >>> LineStabiliser(2).contains([[2.0, 0.0], [0.0, 1.0]])
        False
    """

    name: ClassVar[str] = "line-stabiliser"

    def _traits(self) -> Traits:
        return Traits(
            privileged=Privileged.LINE,
            latex=(
                r"\{U + \mathbf{1} w^\top : U \in \mathrm{O}(n),\ U\mathbf{1} = \pm\mathbf{1}\}"
            ),
            rescales=self.dim == 1,
            rotates=self.dim > 2,
            sentence=(
                "Every rotation and reflection of the space across the all-ones direction, along "
                "which anything may be added."
            ),
        )

    def _draw(self, generator: torch.Generator) -> Float64[Tensor, "dim dim"]:
        turn = haar_fixing(torch.ones(1, self.dim, dtype=torch.float64), generator)
        along = (_signs(1, generator) * _scales(1, generator) - 1.0) / self.dim
        across = torch.randn(self.dim, generator=generator, dtype=torch.float64)
        # 1 w^T is as long as sqrt(n) w; half a unit of it keeps the element well conditioned.
        return turn + (along + 0.5 * (across - across.mean()) / self.dim)

    def _holds(self, a: Float64[Tensor, "dim dim"], atol: float, rounding: float) -> bool:
        across = a - a.mean(dim=0, keepdim=True)
        projection = torch.eye(self.dim, dtype=a.dtype) - 1.0 / self.dim
        along = float(a.sum()) / self.dim
        return (
            _close(across @ across.T, projection, atol)
            and bool((across.sum(dim=1).abs() <= atol * math.sqrt(self.dim)).all())
            and abs(along) > atol
        )


# --- groups that keep axes ------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class OnAxes(Elementary):
    """A group of matrices P D: the axes change places and each is multiplied by a number."""

    positive_scales: ClassVar[bool]
    signs: ClassVar[bool]
    latex_of_scales: ClassVar[str]
    change: ClassVar[str]

    def _traits(self) -> Traits:
        return Traits(
            privileged=Privileged.AXES,
            latex="S_n" + (rf" \ltimes {self.latex_of_scales}^n" if self.latex_of_scales else ""),
            rescales=self.positive_scales,
            rotates=False,
            sentence=f"The axes change places{self.change}.",
        )

    def _draw(self, generator: torch.Generator) -> Float64[Tensor, "dim dim"]:
        order = torch.randperm(self.dim, generator=generator)
        values = torch.ones(self.dim, dtype=torch.float64)
        if self.signs:
            values = values * _signs(self.dim, generator)
        if self.positive_scales:
            values = values * _scales(self.dim, generator)
        element = torch.zeros(self.dim, self.dim, dtype=torch.float64)
        element[order, torch.arange(self.dim)] = values
        return element

    def _holds(self, a: Float64[Tensor, "dim dim"], atol: float, rounding: float) -> bool:
        parts = monomial_parts(a, atol)
        if parts is None:
            return False
        _, scales = parts
        if not self.signs and bool((scales < 0).any()):
            return False
        return self.positive_scales or bool(((scales.abs() - 1).abs() <= atol).all())


@final
@dataclasses.dataclass(frozen=True)
class Permutation(OnAxes):
    """Every reordering of the axes.

    Example:
        >>> Permutation(2).contains([[0.0, 1.0], [1.0, 0.0]])
        True
    """

    name: ClassVar[str] = "permutation"
    positive_scales: ClassVar[bool] = False
    signs: ClassVar[bool] = False
    latex_of_scales: ClassVar[str] = ""
    change: ClassVar[str] = " and nothing else"


@final
@dataclasses.dataclass(frozen=True)
class SignedPermutation(OnAxes):
    """Every reordering of the axes, with any of them reversed.

    Example:
        >>> SignedPermutation(2).contains([[0.0, -1.0], [1.0, 0.0]])
        True
    """

    name: ClassVar[str] = "signed-permutation"
    positive_scales: ClassVar[bool] = False
    signs: ClassVar[bool] = True
    latex_of_scales: ClassVar[str] = r"\{\pm 1\}"
    change: ClassVar[str] = ", and each of them may be reversed"


@final
@dataclasses.dataclass(frozen=True)
class PositiveMonomial(OnAxes):
    """Every reordering of the axes, each multiplied by a positive number.

    Example:
        >>> PositiveMonomial(2).contains([[0.0, 3.0], [0.5, 0.0]])
        True
    """

    name: ClassVar[str] = "positive-monomial"
    positive_scales: ClassVar[bool] = True
    signs: ClassVar[bool] = False
    latex_of_scales: ClassVar[str] = r"\mathbb{R}_{>0}"
    change: ClassVar[str] = ", and each is multiplied by a positive number of its own"


@final
@dataclasses.dataclass(frozen=True)
class Monomial(OnAxes):
    """Every reordering of the axes, each multiplied by a number that is not zero.

    Example:
        >>> Monomial(2).contains([[0.0, -3.0], [0.5, 0.0]])
        True
    """

    name: ClassVar[str] = "monomial"
    positive_scales: ClassVar[bool] = True
    signs: ClassVar[bool] = True
    latex_of_scales: ClassVar[str] = r"(\mathbb{R} \setminus \{0\})"
    change: ClassVar[str] = ", and each is multiplied by a number of its own that is not zero"


@final
@dataclasses.dataclass(frozen=True)
class Trivial(Elementary):
    """The identity alone: nothing may change, not even the order of the axes.

    Example:
        >>> Trivial(2).contains([[0.0, 1.0], [1.0, 0.0]])
        False
    """

    name: ClassVar[str] = "trivial"

    def _traits(self) -> Traits:
        return Traits(
            privileged=Privileged.AXES,
            latex=r"\{I\}",
            rescales=False,
            rotates=False,
            sentence="Nothing changes: every axis has its place, its sign and its unit.",
        )

    def _draw(self, generator: torch.Generator) -> Float64[Tensor, "dim dim"]:
        return torch.eye(self.dim, dtype=torch.float64)

    def _holds(self, a: Float64[Tensor, "dim dim"], atol: float, rounding: float) -> bool:
        return _close(a, torch.eye(self.dim, dtype=a.dtype), atol)


@final
@dataclasses.dataclass(frozen=True)
class Planes(Group):
    """A rotation and a positive scale of each of n/2 planes, which keep their places.

    What rotary position embeddings leave free: each plane turns at a frequency of its own, so that
    planes cannot change places, and inside a plane only multiplication by a complex number commutes
    with turning.

    Attributes:
        dim: n, even.
        pairing: "half" for the planes (i, i + n/2), "adjacent" for (2i, 2i + 1).

    Example:
        >>> Planes(2, pairing="adjacent").contains([[1.0, -2.0], [2.0, 1.0]])
        True
    """

    dim: int
    pairing: Literal["half", "adjacent"] = "half"

    name: ClassVar[str] = "planes"

    def __post_init__(self) -> None:
        _require_size("dim", self.dim)
        if self.dim % 2:
            raise ValueError(f"{self.dim} axes do not divide into planes: give an even dim")
        if self.pairing not in ("half", "adjacent"):
            raise ValueError(
                f"pairing {self.pairing!r} is not known: give 'half' for planes (i, i + n/2) or "
                "'adjacent' for (2i, 2i + 1)"
            )

    def _traits(self) -> Traits:
        pairs = "i and i + n/2" if self.pairing == "half" else "2i and 2i + 1"
        return Traits(
            privileged=Privileged.PLANES,
            latex=r"(\mathbb{C} \setminus \{0\})^{n/2}",
            rescales=True,
            rotates=True,
            sentence=(
                f"Each plane of the axes {pairs} is turned and scaled as a whole, and keeps its "
                "place."
            ),
        )

    def _draw(self, generator: torch.Generator) -> Float64[Tensor, "dim dim"]:
        angle = 2 * math.pi * _uniform(self.dim // 2, generator)
        scale = _scales(self.dim // 2, generator)
        return self._element(scale * angle.cos(), scale * angle.sin())

    def _element(self, real: Tensor, imaginary: Tensor) -> Float64[Tensor, "dim dim"]:
        first, second = self._axes()
        element = torch.zeros(self.dim, self.dim, dtype=torch.float64)
        element[first, first], element[second, second] = real, real
        element[second, first], element[first, second] = imaginary, -imaginary
        return element

    def _axes(self) -> tuple[Tensor, Tensor]:
        axes = torch.arange(self.dim)
        halves = axes.view(2, -1) if self.pairing == "half" else axes.view(-1, 2).T
        return halves[0], halves[1]

    def _holds(self, a: Float64[Tensor, "dim dim"], atol: float, rounding: float) -> bool:
        first, second = self._axes()
        nearest = self._element(
            (a[first, first] + a[second, second]) / 2, (a[second, first] - a[first, second]) / 2
        )
        size = nearest.abs().amax(dim=1, keepdim=True)
        return bool((size > 0).all()) and bool(((a - nearest).abs() <= atol * size).all())


@final
@dataclasses.dataclass(frozen=True)
class Unknown(Elementary):
    """No claim: which changes of basis are free was not derived; none can be drawn or checked."""

    name: ClassVar[str] = "unknown"

    def _traits(self) -> Traits:
        return Traits(
            privileged=Privileged.UNKNOWN,
            latex="?",
            rescales=False,
            rotates=False,
            sentence="It is not known which changes of basis are free here.",
        )

    def _draw(self, generator: torch.Generator) -> Float64[Tensor, "dim dim"]:
        raise ValueError(
            f"the group on these {self.dim} axes is not known, so no element can be drawn from it: "
            "name a group"
        )

    def _holds(self, a: Float64[Tensor, "dim dim"], atol: float, rounding: float) -> bool:
        raise ValueError(
            f"the group on these {self.dim} axes is not known, so it cannot be said whether it "
            "holds a matrix: name a group"
        )


# --- groups built from groups ---------------------------------------------------------------------


@final
@dataclasses.dataclass(frozen=True)
class Blocks(Group):
    """One group inside each of several blocks of axes, and the blocks change places as wholes.

    The axes are ordered (block, copy, axis of `inner`). Each block draws an element of its own; its
    copies, such as the queries that share one key, get the same one and move with it.

    Attributes:
        inner: the group inside one copy of a block.
        count: number of blocks.
        copies: how often each block's axes are repeated, one copy after the other.

    Example:
        >>> heads = Blocks(GeneralLinear(8), count=4, copies=2)
        >>> heads.dim, heads.privileged.name
        (64, 'BLOCKS')
    """

    inner: Group
    count: int
    copies: int = 1

    name: ClassVar[str] = "blocks"

    def __post_init__(self) -> None:
        _require_size("count", self.count)
        _require_size("copies", self.copies)

    @property
    def dim(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The sum of the sizes of all blocks and their copies."""
        return self.inner.dim * self.count * self.copies

    def _traits(self) -> Traits:
        inner = self.inner._traits()
        # Finer meanings inside a block remain; without any, the blocks themselves are left.
        finer = (Privileged.AXES, Privileged.PLANES, Privileged.UNKNOWN)
        whole = self.count * self.copies == 1
        copies = f", the same in its {self.copies} copies" if self.copies > 1 else ""
        return Traits(
            privileged=(
                inner.privileged if inner.privileged in finer or whole else Privileged.BLOCKS
            ),
            latex=rf"{_bracketed(inner.latex)} \wr S_{{{self.count}}}",
            rescales=inner.rescales,
            rotates=inner.rotates,
            sentence=(
                f"{self.count} blocks of {self.inner.dim} axes change places as wholes, and inside "
                f"each{copies}: {_continued(inner.sentence)}."
            ),
        )

    def _draw(self, generator: torch.Generator) -> Float64[Tensor, "dim dim"]:
        order = torch.randperm(self.count, generator=generator)
        size, copies = self.inner.dim, self.copies
        element = torch.zeros(
            self.count, copies, size, self.count, copies, size, dtype=torch.float64
        )
        for block in range(self.count):
            part = self.inner._draw(generator)
            for copy in range(copies):
                element[order[block], copy, :, block, copy, :] = part
        return element.reshape(self.dim, self.dim)

    def _holds(self, a: Float64[Tensor, "dim dim"], atol: float, rounding: float) -> bool:
        count, copies, size = self.count, self.copies, self.inner.dim
        parts = a.reshape(count, copies, size, count, copies, size)
        sizes = parts.abs().amax(dim=(1, 2, 4, 5))
        scale, target = sizes.max(dim=1)
        if len(set(target.tolist())) < count or bool((scale == 0).any()):
            return False
        rest = parts.clone()
        for block, source in enumerate(target.tolist()):
            first = parts[block, 0, :, source, 0, :]
            for copy in range(copies):
                rest[block, copy, :, source, copy, :] -= first
            if not self.inner._holds(first, atol, rounding):
                return False
        return bool((rest.abs().amax(dim=(1, 2, 3, 4, 5)) <= atol * scale).all())


@final
@dataclasses.dataclass(frozen=True)
class DirectSum(Group):
    """Several groups side by side, each on axes of its own, in order.

    Attributes:
        parts: the groups, at least one.

    Example:
        >>> DirectSum((Permutation(2), Permutation(3)))
        DirectSum(parts=(Permutation(dim=2), Permutation(dim=3)))
    """

    parts: tuple[Group, ...]

    name: ClassVar[str] = "direct-sum"

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("a direct sum of no groups was asked for: give at least one part")

    @property
    def dim(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The sum of the parts' dimensions."""
        return sum(part.dim for part in self.parts)

    def _traits(self) -> Traits:
        parts = [part._traits() for part in self.parts]
        kinds = {part.privileged for part in parts}
        if len(parts) == 1 or kinds in ({Privileged.AXES}, {Privileged.PLANES}):
            privileged = parts[0].privileged
        else:
            # All that the parts have in common is that they are not mixed with each other.
            privileged = Privileged.UNKNOWN if Privileged.UNKNOWN in kinds else Privileged.BLOCKS
        said = "; then ".join(
            f"{part.dim} axes: {_continued(traits.sentence)}"
            for part, traits in zip(self.parts, parts, strict=True)
        )
        return Traits(
            privileged=privileged,
            latex=r" \oplus ".join(_bracketed(part.latex) for part in parts),
            rescales=any(part.rescales for part in parts),
            rotates=any(part.rotates for part in parts),
            sentence=f"The axes fall into {len(parts)} parts, in order: {said}.",
        )

    def _draw(self, generator: torch.Generator) -> Float64[Tensor, "dim dim"]:
        return torch.block_diag(*(part._draw(generator) for part in self.parts))

    def _holds(self, a: Float64[Tensor, "dim dim"], atol: float, rounding: float) -> bool:
        rest = a.clone()
        start = 0
        held: list[bool] = []
        for part in self.parts:
            own = slice(start, start + part.dim)
            held.append(part._holds(a[own, own], atol, rounding))
            rest[own, own] = 0
            start += part.dim
        scale = a.abs().amax(dim=1, keepdim=True)
        return all(held) and bool((rest.abs() <= atol * scale).all())


# --- names, intersections, monomial matrices ------------------------------------------------------

_NAMED: tuple[type[Elementary] | type[Planes], ...] = (
    GeneralLinear,
    Orthogonal,
    LineStabiliser,
    Permutation,
    SignedPermutation,
    PositiveMonomial,
    Monomial,
    Trivial,
    Planes,
    Unknown,
)

_ALIASES: dict[str, str] = {
    "gl": "general-linear",
    "gl(n)": "general-linear",
    "gl-n": "general-linear",
    "o": "orthogonal",
    "o(n)": "orthogonal",
    "rotation": "orthogonal",
    "rotations": "orthogonal",
    "line": "line-stabiliser",
    "line-stabilizer": "line-stabiliser",
    "permutations": "permutation",
    "sn": "permutation",
    "s(n)": "permutation",
    "s-n": "permutation",
    "symmetric": "permutation",
    "signed-permutations": "signed-permutation",
    "hyperoctahedral": "signed-permutation",
    "positive-monomials": "positive-monomial",
    "monomials": "monomial",
    "identity": "trivial",
}


def group_from_name(name: str, dim: int) -> Group:
    """The group of that name on R^dim.

    Args:
        name: as in `Group.name`, or a usual other name such as "O(n)", "rotations", "GL"; capitals,
            underscores and spaces do not matter.
        dim: the n that it acts on.

    Raises:
        ValueError: if no group has the name, or the group needs more than a dimension.

    Example:
        >>> group_from_name("positive_monomial", 3)
        PositiveMonomial(dim=3)
    """
    plain = "-".join(name.lower().replace("_", " ").replace("-", " ").split())
    plain = _ALIASES.get(plain, plain)
    for kind in _NAMED:
        if kind.name == plain:
            return kind(dim)
    if plain in (Blocks.name, DirectSum.name):
        example = (
            f"Blocks(GeneralLinear({dim}), count=1)"
            if plain == Blocks.name
            else f"DirectSum((Permutation({dim}),))"
        )
        raise ValueError(
            f"the group {plain!r} needs more than a dimension: build it, for example {example}"
        )
    names = [kind.name for kind in _NAMED]
    near = difflib.get_close_matches(plain, [*names, *_ALIASES], n=3, cutoff=0.4)
    raise ValueError(
        f"no group is called {name!r}; nearest: {', '.join(near) or 'none'}; "
        f"all names: {', '.join(names)}"
    )


# What generates each elementary group; an intersection of groups keeps what both have.
_GENERATORS: dict[type[Group], frozenset[str]] = {
    Permutation: frozenset({"orders"}),
    SignedPermutation: frozenset({"orders", "signs"}),
    PositiveMonomial: frozenset({"orders", "scales"}),
    Monomial: frozenset({"orders", "signs", "scales"}),
    Orthogonal: frozenset({"orders", "signs", "rotations"}),
}


def meet(a: Group, b: Group) -> Group:
    """The intersection of two groups on the same space, where it is one of the groups here.

    Raises:
        ValueError: if the groups act on different dimensions, or the intersection is not one of the
            elementary groups.

    Example:
        >>> meet(Monomial(3), Orthogonal(3))
        SignedPermutation(dim=3)
    """
    if a.dim != b.dim:
        raise ValueError(f"{a!r} and {b!r} act on different dimensions: give groups on one space")
    if isinstance(a, Unknown) or isinstance(b, Unknown):
        return Unknown(a.dim)
    for one, other in ((a, b), (b, a)):
        if one == other or isinstance(one, Trivial) or isinstance(other, GeneralLinear):
            return one
    if type(a) in _GENERATORS and type(b) in _GENERATORS:
        shared = _GENERATORS[type(a)] & _GENERATORS[type(b)]
        for kind, generators in _GENERATORS.items():
            if generators == shared:
                return kind(a.dim)  # pyright: ignore[reportCallIssue]
    raise ValueError(
        f"the intersection of {a!r} and {b!r} is none of the groups here: check with `contains` "
        "of both instead"
    )


def monomial_parts(
    a: Float64[Tensor, "dim dim"], atol: float
) -> tuple[Tensor, Float64[Tensor, " dim"]] | None:
    """Which column every row of a monomial matrix takes, and its factor; None for other matrices.

    Args:
        a: a finite matrix.
        atol: how large the other entries of a row may be, relative to its largest.

    Returns:
        columns [dim] and factors [dim] with (A x)_i = factors_i * x_columns_i.
    """
    dim = a.shape[0]
    size, column = a.abs().max(dim=1)
    if bool((size == 0).any()) or int(column.unique().numel()) < dim:
        return None
    rows = torch.arange(dim)
    factor = a[rows, column]
    rest = a.abs()
    rest[rows, column] = 0
    return (column, factor) if bool((rest.amax(dim=1) <= atol * size).all()) else None


def _close(a: Tensor, b: Tensor, atol: float) -> bool:
    return bool(((a - b).abs() <= atol).all())


def _require_size(what: str, size: object) -> None:
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ValueError(f"{what} is {size!r}: give a whole number of at least 1")


def _continued(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:].rstrip(".")


def _bracketed(latex: str) -> str:
    return f"({latex})" if " " in latex else latex


def _uniform(count: int, generator: torch.Generator) -> Float64[Tensor, " count"]:
    return torch.rand(count, generator=generator, dtype=torch.float64)


def _signs(count: int, generator: torch.Generator) -> Float64[Tensor, " count"]:
    return torch.where(_uniform(count, generator) < 0.5, -1.0, 1.0).double()


def _scales(count: int, generator: torch.Generator) -> Float64[Tensor, " count"]:
    """Factors between 1/2 and 2, uniform in their logarithm."""
    return torch.exp2(2 * _uniform(count, generator) - 1)
