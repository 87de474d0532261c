"""Groups of changes of basis: which matrices A may act on the activations at a place, x' = A x.

A group is a value: it says which matrices it holds, draws one, and says in words what it does to
axes. Elementary groups act on all of R^n in one way; `Blocks` and `DirectSum` build larger ones
from them. `repr` writes a group as Python, and `eval` reads it back.
"""

from __future__ import annotations

import abc
import dataclasses
import enum
import html
import itertools
import math
import re
from collections.abc import Callable, Iterable
from typing import ClassVar, Literal, final

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from basis_probe.algebra.elements import (
    BlockElement,
    Dense,
    Element,
    Identity,
    MonomialElement,
    Pairing,
    PlaneElement,
    Product,
    Reflections,
    Sheared,
    SumElement,
    plane_axes,
)
from basis_probe.algebra.haar import haar, haar_fixing, require_cpu
from basis_probe.arguments import flag, instance, whole
from basis_probe.brief import described
from basis_probe.devices import on_own_device
from basis_probe.errors import nearest

__all__ = [
    "Blocks",
    "DirectSum",
    "GeneralLinear",
    "Group",
    "LineRotations",
    "LineStabiliser",
    "Monomial",
    "Orthogonal",
    "Permutation",
    "PlaneRotations",
    "Planes",
    "PositiveMonomial",
    "Privileged",
    "SignedPermutation",
    "Trivial",
    "Unknown",
]


def __dir__() -> list[str]:
    return list(__all__)


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


@dataclasses.dataclass(frozen=True)
class Miss:
    """By how much a matrix fails what a group demands of it.

    Attributes:
        by: the largest violation, in the unit that tolerances are given in; infinity for a matrix
            that is singular where the group looks.
        where: what is wrong, and where.
    """

    by: float
    where: str


class Group(abc.ABC):
    """A group of invertible real matrices that act on R^dim, x' = A x for a column vector x.

    Attributes:
        name: the group in kebab-case, as `group_from_name` reads it.
        dim: the n that the matrices act on.
    """

    name: ClassVar[str]
    dim: int

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "name" not in cls.__dict__:
            cls.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", cls.__name__).lower()

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

    def _repr_html_(self) -> str:
        said = html.escape(f"{self.dim} dimensions. {self.describe()}")
        return f"<div><b>{html.escape(self.name)}</b>, {said}</div>"

    @on_own_device
    def sample(self, generator: torch.Generator) -> Float64[Tensor, "dim dim"]:
        """The matrix of `draw`: a well-conditioned element, on the CPU, written out.

        Args:
            generator: a generator on the CPU; one seed means one element.

        Raises:
            ValueError: if the group is unknown, or the generator is not on the CPU.
        """
        return self.draw(generator).matrix()

    @on_own_device
    def draw(self, generator: torch.Generator) -> Element:
        """A random element, uniform where the group has a uniform law.

        Rotations are Haar distributed, orders and signs uniform; scales lie between 1/2 and 2,
        uniform in their logarithm.

        Args:
            generator: a generator on the CPU; one seed means one element.

        Raises:
            ValueError: if the group is unknown, or the generator is not on the CPU.

        Example:
            >>> Orthogonal(4).draw(torch.Generator().manual_seed(0)).dim
            4
        """
        require_cpu(generator)
        return self._draw(generator)

    def generic(self, generator: torch.Generator) -> Element:
        """A random element that is cheap to apply however large n is, and has no special form.

        Where `draw` takes a dense matrix this takes a few reflections, an order and scales instead:
        every axis is mixed with every other, but the law is not uniform. Elsewhere it is `draw`.

        Args:
            generator: a generator on the CPU; one seed means one element.

        Raises:
            ValueError: if the group is unknown, or the generator is not on the CPU.

        Example:
            >>> x = torch.ones(100_000, dtype=torch.float64)
            >>> turned = Orthogonal(100_000).generic(torch.Generator().manual_seed(0)).act(x)
            >>> torch.allclose(turned.norm(), x.norm())
            True
        """
        require_cpu(generator)
        return self._generic(generator)

    def contains(self, matrix: object, atol: float = 1e-6) -> bool:
        """True if the matrix is in the group.

        Args:
            matrix: [dim, dim], a tensor or an array of real numbers, or an element.
            atol: how far an entry may be from what the group demands; in groups that rescale axes,
                relative to the largest entry of its row. A singular matrix and one with NaN or
                infinity in it are in no group.

        Raises:
            ValueError: if the matrix has another shape or complex entries, the tolerance is not
                between 0 and 1, or the group is unknown.
        """
        return self._missed(matrix, atol).by <= atol

    def excess(self, matrix: object, atol: float = 1e-6) -> float:
        """By how much a matrix misses the group: 0 for members, infinity for singular matrices.

        Args:
            matrix: [dim, dim], a tensor or an array of real numbers, or an element.
            atol: what counts as a member, as in `contains`; the result is measured as it is.

        Raises:
            ValueError: as in `contains`.

        Example:
            >>> Permutation(2).excess([[0.0, 2.0], [1.0, 0.0]])
            1.0
        """
        return self._excess(matrix, atol).by

    def element(self, matrix: object, atol: float = 1e-6) -> Element:
        """The matrix as an element of the group, in the form that the group's elements have.

        What lies within the tolerance of the form is rounded to it. An `Element` that already has
        the form is returned as it is.

        Args:
            matrix: [dim, dim], a tensor or an array of real numbers, or an element.
            atol: as in `contains`.

        Raises:
            ValueError: as in `contains`, and if the matrix is not in the group; the message says by
                how much, and where.

        Example:
            >>> Monomial(2).element([[0.0, 3.0], [1.0, 0.0]])
            MonomialElement(columns=tensor (1, 0), factors=tensor (3, 1))
        """
        miss = self._excess(matrix, atol)
        if miss.by > atol:
            size = "" if math.isinf(miss.by) else f", {miss.by:.3g} off where {atol:.3g} is allowed"
            raise ValueError(
                f"the matrix is not in the group {self.name}: {miss.where}{size}; give an element "
                f"of {self!r}"
            )
        read = self._read(self._exact(matrix)[0], atol)
        return matrix if isinstance(matrix, Element) and _alike(matrix, read) else read

    def _exact(self, matrix: object) -> tuple[Float64[Tensor, "dim dim"], float]:
        """The matrix in float64 on the CPU, and how precisely its entries are known."""
        try:
            a = matrix.matrix() if isinstance(matrix, Element) else torch.as_tensor(matrix)
        except (TypeError, ValueError, RuntimeError):
            a = None
        if a is None or a.is_nested or a.is_meta or a.layout is not torch.strided:
            raise ValueError(
                f"{described(matrix)} is not a matrix of numbers: give a tensor or an array "
                f"[{self.dim}, {self.dim}], or an element"
            )
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
        return exact, max(rounding, torch.finfo(torch.float64).eps)

    def _missed(self, matrix: object, atol: float) -> Miss:
        if not 0 <= atol < 1:
            raise ValueError(f"the tolerance is {atol}: give a number from 0 to below 1")
        exact, rounding = self._exact(matrix)
        wrong = (~exact.isfinite()).nonzero()
        if len(wrong):
            row, column = wrong[0].tolist()
            return Miss(math.inf, f"entry [{row}, {column}] is {float(exact[row, column])}")
        return self._miss(exact, atol, rounding)

    def _excess(self, matrix: object, atol: float) -> Miss:
        """The miss, 0 for members, and infinite for all singular matrices."""
        miss = self._missed(matrix, atol)
        if miss.by <= atol:
            return Miss(0.0, "")
        if math.isfinite(miss.by):
            singular = singularity(*self._exact(matrix))
            return Miss(math.inf, singular) if singular else miss
        return miss

    @abc.abstractmethod
    def _traits(self) -> Traits: ...

    @abc.abstractmethod
    def _draw(self, generator: torch.Generator) -> Element: ...

    def _generic(self, generator: torch.Generator) -> Element:
        return self._draw(generator)

    @abc.abstractmethod
    def _miss(self, a: Float64[Tensor, "dim dim"], atol: float, rounding: float) -> Miss:
        """By how much a finite matrix, known to `rounding` relative, misses the group."""

    @abc.abstractmethod
    def _read(self, a: Float64[Tensor, "dim dim"], atol: float) -> Element:
        """A matrix of the group in the form of its elements."""


@dataclasses.dataclass(frozen=True)
class Elementary(Group):
    """A group that treats all n axes alike.

    Attributes:
        dim: n, at least 1.
    """

    dim: int

    def __post_init__(self) -> None:
        _require_size(self, "dim")


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

    def _draw(self, generator: torch.Generator) -> Element:
        left, right = haar(self.dim, generator), haar(self.dim, generator)
        stretch = 1.4 * _uniform(self.dim, generator) - 0.7
        return Dense(left * stretch.exp() @ right)

    def _generic(self, generator: torch.Generator) -> Element:
        left = Reflections(torch.randn(2, self.dim, generator=generator, dtype=torch.float64))
        right = Reflections(torch.randn(2, self.dim, generator=generator, dtype=torch.float64))
        return Product((left, Monomial(self.dim).draw(generator), right))

    def _miss(self, a: Float64[Tensor, "dim dim"], atol: float, rounding: float) -> Miss:
        singular = singularity(a, rounding)
        return Miss(math.inf, singular) if singular else Miss(0.0, "")

    def _read(self, a: Float64[Tensor, "dim dim"], atol: float) -> Element:
        return Dense(a)


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

    def _draw(self, generator: torch.Generator) -> Element:
        return Dense(haar(self.dim, generator))

    def _generic(self, generator: torch.Generator) -> Element:
        left = Reflections(torch.randn(2, self.dim, generator=generator, dtype=torch.float64))
        right = Reflections(torch.randn(2, self.dim, generator=generator, dtype=torch.float64))
        return Product((left, SignedPermutation(self.dim).draw(generator), right))

    def _miss(self, a: Float64[Tensor, "dim dim"], atol: float, rounding: float) -> Miss:
        off, i, j = _worst((a.T @ a - torch.eye(self.dim, dtype=a.dtype)).abs())
        if i == j:
            return Miss(off, f"column {i} has length {float(a[:, i].norm()):.4g}, not 1")
        return Miss(off, f"columns {i} and {j} have the product {float(a[:, i] @ a[:, j]):.3g}")

    def _read(self, a: Float64[Tensor, "dim dim"], atol: float) -> Element:
        return Dense(a)


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

    def _draw(self, generator: torch.Generator) -> Element:
        turn = haar_fixing(torch.ones(1, self.dim, dtype=torch.float64), generator)
        return Dense(turn + self._written_along(generator))

    def _generic(self, generator: torch.Generator) -> Element:
        # Vectors across the ones mirror the space across them, and an order keeps the ones.
        normals = torch.randn(4, self.dim, generator=generator, dtype=torch.float64)
        normals = (normals - normals.mean(dim=1, keepdim=True))[: max(self.dim - 1, 0)]
        order = Permutation(self.dim).draw(generator)
        turn = Product((Reflections(normals[:2]), order, Reflections(normals[2:])))
        return Sheared(turn, self._written_along(generator))

    def _written_along(self, generator: torch.Generator) -> Float64[Tensor, " dim"]:
        along = (random_signs(1, generator) * random_scales(1, generator) - 1.0) / self.dim
        across = torch.randn(self.dim, generator=generator, dtype=torch.float64)
        # 1 w^T is as long as sqrt(n) w; half a unit of it keeps the element well conditioned.
        return along + 0.5 * (across - across.mean()) / self.dim

    def _miss(self, a: Float64[Tensor, "dim dim"], atol: float, rounding: float) -> Miss:
        across = a - a.mean(dim=0, keepdim=True)
        projection = torch.eye(self.dim, dtype=a.dtype) - 1.0 / self.dim
        if abs(float(a.sum()) / self.dim) <= atol:
            return Miss(math.inf, "the all-ones vector goes to zero along itself")
        turned, i, j = _worst((across @ across.T - projection).abs())
        leaving = float(across.sum(dim=1).abs().max()) / math.sqrt(self.dim)
        if leaving > turned:
            return Miss(leaving, "the all-ones vector leaves its line")
        return Miss(turned, f"across the all-ones vector, rows {i} and {j} are not those of a turn")

    def _read(self, a: Float64[Tensor, "dim dim"], atol: float) -> Element:
        return Dense(a)


@final
@dataclasses.dataclass(frozen=True)
class LineRotations(LineStabiliser):
    """Rotations and reflections that keep the all-ones direction.

    The matrices U with U orthogonal and U 1 = ±1: `LineStabiliser` without what it writes along the
    all-ones direction. A norm whose mean runs over positions too sees what is written there, and a
    LayerNorm without a gain writes nothing along it.

    Example:
        >>> swapped = [[0.0, 1.0], [1.0, 0.0]]
        >>> LineRotations(2).contains(swapped), LineRotations(2).contains([[2.0, 1.0], [1.0, 2.0]])
        (True, False)
    """

    name: ClassVar[str] = "line-rotations"

    def _traits(self) -> Traits:
        return dataclasses.replace(
            super()._traits(),
            latex=r"\{U \in \mathrm{O}(n) : U\mathbf{1} = \pm\mathbf{1}\}",
            rescales=False,
            sentence=(
                "Every rotation and reflection of the space across the all-ones direction, which "
                "itself is kept or reversed."
            ),
        )

    def _draw(self, generator: torch.Generator) -> Element:
        turn = haar_fixing(torch.ones(1, self.dim, dtype=torch.float64), generator)
        return Dense(turn * random_signs(1, generator))

    def _generic(self, generator: torch.Generator) -> Element:
        turn = super()._generic(generator)
        assert isinstance(turn, Sheared)
        sign = random_signs(1, generator).expand(self.dim)
        return Product((turn.turn, MonomialElement(torch.arange(self.dim), sign)))

    def _miss(self, a: Float64[Tensor, "dim dim"], atol: float, rounding: float) -> Miss:
        turned, i, j = _worst((a.T @ a - torch.eye(self.dim, dtype=a.dtype)).abs())
        ones = a.sum(dim=1)
        leaving = min(float((ones - sign).abs().max()) for sign in (1.0, -1.0))
        if leaving > turned:
            return Miss(leaving, "the all-ones vector is neither kept nor reversed")
        return Miss(turned, f"columns {i} and {j} are not those of a turn")


def _cycle(count: int, generator: torch.Generator) -> Int64[Tensor, " count"]:
    """An order in which everything comes to the place of something else, in one circle.

    No part is left among itself by it, so that what serves a part only is seen.
    """
    circle = torch.randperm(count, generator=generator)
    return torch.empty_like(circle).index_copy_(0, circle, circle.roll(-1))


def _mixed(signs: Float64[Tensor, " count"]) -> Float64[Tensor, " count"]:
    """The signs; where all are alike the first is another one, so that each counts by itself.

    A single one is negative.
    """
    if not bool((signs != signs[0]).any()):
        signs[0] = -signs[0] if len(signs) > 1 else -1.0
    return signs


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

    def _draw(self, generator: torch.Generator) -> Element:
        return self.ordered(torch.randperm(self.dim, generator=generator), generator, signed=False)

    def _generic(self, generator: torch.Generator) -> Element:
        return self.ordered(_cycle(self.dim, generator), generator, signed=True)

    def ordered(self, order: Tensor, generator: torch.Generator, *, signed: bool) -> Element:
        """An element with this order, with signs of both kinds if so wished."""
        values = torch.ones(self.dim, dtype=torch.float64)
        if self.signs:
            values = random_signs(self.dim, generator)
            if signed:
                values = _mixed(values)
        if self.positive_scales:
            values = values * random_scales(self.dim, generator)
        # Axis j goes to order[j].
        columns = order.argsort()
        return MonomialElement(columns, values[columns])

    def element(self, matrix: object, atol: float = 1e-6) -> Element:
        # What has the form of the group's elements is told without its matrix.
        if isinstance(matrix, MonomialElement) and 0 <= atol < 1 and self._holds(matrix):
            return matrix
        return super().element(matrix, atol)

    def _holds(self, given: MonomialElement) -> bool:
        """True if an element that moves axes is one of the group without any rounding."""
        factors = given.factors if not self.signs else given.factors.abs()
        allowed = factors > 0 if self.positive_scales else factors == 1
        return given.dim == self.dim and bool(allowed.all())

    def _miss(self, a: Float64[Tensor, "dim dim"], atol: float, rounding: float) -> Miss:
        return _off_axes(a, atol, signs=self.signs, positive_scales=self.positive_scales)

    def _read(self, a: Float64[Tensor, "dim dim"], atol: float) -> Element:
        columns, factors = _taken(a)
        return MonomialElement(columns, factors if self.positive_scales else factors.sign())


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

    def _draw(self, generator: torch.Generator) -> Element:
        return Identity(self.dim)

    def _miss(self, a: Float64[Tensor, "dim dim"], atol: float, rounding: float) -> Miss:
        off, i, j = _worst((a - torch.eye(self.dim, dtype=a.dtype)).abs())
        return Miss(off, f"entry [{i}, {j}] is {float(a[i, j]):.4g}, not {float(i == j):.0f}")

    def _read(self, a: Float64[Tensor, "dim dim"], atol: float) -> Element:
        return Identity(self.dim)


@final
@dataclasses.dataclass(frozen=True)
class Signs(Elementary):
    """Every reversal of axes: each keeps its place and its unit.

    Example:
        >>> Signs(2).contains([[-1.0, 0.0], [0.0, 1.0]])
        True
    """

    name: ClassVar[str] = "signs"

    def _traits(self) -> Traits:
        return Traits(
            privileged=Privileged.AXES,
            latex=r"\{\pm 1\}^n",
            rescales=False,
            rotates=False,
            sentence="Each axis may be reversed, and none changes its place.",
        )

    def _draw(self, generator: torch.Generator) -> Element:
        return MonomialElement(torch.arange(self.dim), random_signs(self.dim, generator))

    def _generic(self, generator: torch.Generator) -> Element:
        signs = _mixed(random_signs(self.dim, generator))
        return MonomialElement(torch.arange(self.dim), signs)

    def _miss(self, a: Float64[Tensor, "dim dim"], atol: float, rounding: float) -> Miss:
        miss = _off_axes(a, atol, signs=True, positive_scales=False)
        if miss.by > atol:
            return miss
        moved = (_taken(a)[0] != torch.arange(self.dim)).nonzero().flatten().tolist()
        return Miss(1.0, f"row {moved[0]} takes another axis") if moved else miss

    def _read(self, a: Float64[Tensor, "dim dim"], atol: float) -> Element:
        return MonomialElement(torch.arange(self.dim), a.diagonal().sign())


# --- groups that keep planes ----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class OnPlanes(Group):
    """A group that acts inside n/2 planes of two axes, which keep their places.

    Attributes:
        dim: n, even.
        pairing: "half" for the planes (i, i + n/2), "adjacent" for (2i, 2i + 1).
    """

    dim: int
    pairing: Pairing = "half"

    def __post_init__(self) -> None:
        _require_size(self, "dim")
        if self.dim % 2:
            raise ValueError(f"{self.dim} axes do not divide into planes: give an even dim")
        if not isinstance(self.pairing, str) or self.pairing not in ("half", "adjacent"):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(
                f"pairing {described(self.pairing)} is not known: give 'half' for planes (i, "
                "i + n/2) or 'adjacent' for (2i, 2i + 1)"
            )

    def axes(self) -> tuple[Int64[Tensor, " direction"], Int64[Tensor, " direction"]]:
        """The first and the second axis of every plane."""
        return plane_axes(self.dim, self.pairing)

    def _pairs(self) -> str:
        return "i and i + n/2" if self.pairing == "half" else "2i and 2i + 1"

    def _partners(self) -> Tensor:
        """The other axis of every axis's plane."""
        first, second = self.axes()
        partners = torch.empty(self.dim, dtype=torch.int64)
        partners[first], partners[second] = second, first
        return partners


@dataclasses.dataclass(frozen=True)
class Planes(OnPlanes):
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

    name: ClassVar[str] = "planes"

    def _traits(self) -> Traits:
        return Traits(
            privileged=Privileged.PLANES,
            latex=r"(\mathbb{C} \setminus \{0\})^{n/2}",
            rescales=True,
            rotates=True,
            sentence=(
                f"Each plane of the axes {self._pairs()} is turned and scaled as a whole, and "
                "keeps its place."
            ),
        )

    def _draw(self, generator: torch.Generator) -> Element:
        angle = 2 * math.pi * _uniform(self.dim // 2, generator)
        scale = random_scales(self.dim // 2, generator)
        return PlaneElement(scale * angle.cos(), scale * angle.sin(), self.pairing)

    def _miss(self, a: Float64[Tensor, "dim dim"], atol: float, rounding: float) -> Miss:
        real, imaginary = self._complex(a)
        zero = ((real == 0) & (imaginary == 0)).nonzero().flatten().tolist()
        if zero:
            return Miss(1.0, f"no multiple of a complex number is near plane {zero[0]}")
        nearest = PlaneElement(real, imaginary, self.pairing).matrix()
        size = nearest.abs().amax(dim=1, keepdim=True)
        off, i, j = _worst((a - nearest).abs() / size)
        where = f"entry [{i}, {j}] is {float(a[i, j]):.4g}, where one complex number for every "
        return Miss(off, f"{where}plane gives {float(nearest[i, j]):.4g}")

    def _complex(self, a: Float64[Tensor, "dim dim"]) -> tuple[Tensor, Tensor]:
        """The nearest complex number for every plane."""
        first, second = self.axes()
        real = (a[first, first] + a[second, second]) / 2
        return real, (a[second, first] - a[first, second]) / 2

    def _read(self, a: Float64[Tensor, "dim dim"], atol: float) -> Element:
        return PlaneElement(*self._complex(a), self.pairing)


@final
@dataclasses.dataclass(frozen=True)
class PlaneRotations(Planes):
    """A rotation of each of n/2 planes, which keep their places and their size.

    What rotary position embeddings leave free beside a norm of every head without a gain.

    Example:
        >>> turned = [[0.0, -1.0], [1.0, 0.0]]
        >>> PlaneRotations(2).contains(turned), PlaneRotations(2).contains([[2.0, 0.0], [0.0, 2.0]])
        (True, False)
    """

    name: ClassVar[str] = "plane-rotations"

    def _traits(self) -> Traits:
        return dataclasses.replace(
            super()._traits(),
            latex=r"\mathrm{SO}(2)^{n/2}",
            rescales=False,
            sentence=(
                f"Each plane of the axes {self._pairs()} is turned as a whole, and keeps its place."
            ),
        )

    def _draw(self, generator: torch.Generator) -> Element:
        angle = 2 * math.pi * _uniform(self.dim // 2, generator)
        return PlaneElement(angle.cos(), angle.sin(), self.pairing)

    def _miss(self, a: Float64[Tensor, "dim dim"], atol: float, rounding: float) -> Miss:
        miss = super()._miss(a, atol, rounding)
        if miss.by > atol:
            return miss
        off, plane = (torch.hypot(*self._complex(a)) - 1).abs().max(dim=0)
        return Miss(float(off), f"plane {int(plane)} changes its size")


@dataclasses.dataclass(frozen=True)
class _OnSquares(OnPlanes):
    """A group that moves and reverses the two axes of each plane inside it."""

    def _moved(
        self, generator: torch.Generator
    ) -> tuple[Int64[Tensor, " dim"], Bool[Tensor, " plane"]]:
        """The axis that each row takes, and in which planes the two change places."""
        swapped = random_signs(self.dim // 2, generator) < 0
        first, second = self.axes()
        columns = torch.arange(self.dim)
        columns[first] = torch.where(swapped, second, first)
        columns[second] = torch.where(swapped, first, second)
        return columns, swapped

    def _miss(self, a: Float64[Tensor, "dim dim"], atol: float, rounding: float) -> Miss:
        """By how much a matrix fails to move and reverse axes inside their planes."""
        miss = _off_axes(a, atol, signs=True, positive_scales=False)
        if miss.by > atol:
            return miss
        columns, own = _taken(a)[0], torch.arange(self.dim)
        left = ((columns != own) & (columns != self._partners())).nonzero().flatten().tolist()
        return Miss(1.0, f"row {left[0]} takes an axis of another plane") if left else miss

    def _read(self, a: Float64[Tensor, "dim dim"], atol: float) -> Element:
        columns, factors = _taken(a)
        return MonomialElement(columns, factors.sign())


@final
@dataclasses.dataclass(frozen=True)
class SignedPlanes(_OnSquares):
    """The axes of each of n/2 planes change places and are reversed, and the planes stay.

    Each plane takes one of the eight symmetries of a square: what rotary position embeddings behind
    a norm of every head can leave.

    Attributes:
        dim: n, even.
        pairing: "half" for the planes (i, i + n/2), "adjacent" for (2i, 2i + 1).

    Example:
        >>> SignedPlanes(4).contains(torch.eye(4)[[2, 1, 0, 3]])
        True
        >>> SignedPlanes(4).contains(torch.eye(4)[[1, 0, 3, 2]])
        False
    """

    name: ClassVar[str] = "signed-planes"

    def _traits(self) -> Traits:
        return Traits(
            privileged=Privileged.AXES,
            latex=r"(S_2 \ltimes \{\pm 1\}^2)^{n/2}",
            rescales=False,
            rotates=False,
            sentence=(
                f"In each plane of the axes {self._pairs()} the two axes may change places and be "
                "reversed, and the planes keep their places."
            ),
        )

    def _draw(self, generator: torch.Generator) -> Element:
        columns, _ = self._moved(generator)
        return MonomialElement(columns, random_signs(self.dim, generator))


@final
@dataclasses.dataclass(frozen=True)
class QuarterTurns(_OnSquares):
    """Each of n/2 planes is turned by a multiple of a right angle, and keeps its place.

    What commutes with turning every plane, as rotary position embeddings do, and with an odd
    function of every feature, such as a clip that is as far below zero as above.

    Attributes:
        dim: n, even.
        pairing: "half" for the planes (i, i + n/2), "adjacent" for (2i, 2i + 1).

    Example:
        >>> QuarterTurns(2).contains([[0.0, -1.0], [1.0, 0.0]])
        True
        >>> QuarterTurns(2).contains([[0.0, 1.0], [1.0, 0.0]])
        False
    """

    name: ClassVar[str] = "quarter-turns"

    def _traits(self) -> Traits:
        return Traits(
            privileged=Privileged.AXES,
            latex=r"(\mathbb{Z}/4)^{n/2}",
            rescales=False,
            rotates=False,
            sentence=(
                f"Each plane of the axes {self._pairs()} may be turned by a multiple of a right "
                "angle, and keeps its place."
            ),
        )

    def _draw(self, generator: torch.Generator) -> Element:
        columns, swapped = self._moved(generator)
        first, second = self.axes()
        signs = torch.empty(self.dim, dtype=torch.float64)
        signs[first] = random_signs(self.dim // 2, generator)
        signs[second] = torch.where(swapped, -signs[first], signs[first])
        return MonomialElement(columns, signs)

    def _miss(self, a: Float64[Tensor, "dim dim"], atol: float, rounding: float) -> Miss:
        miss = super()._miss(a, atol, rounding)
        if miss.by > atol:
            return miss
        first, second = self.axes()
        turned = a[first, first] * a[second, second] - a[first, second] * a[second, first]
        left = (turned < 0).nonzero().flatten().tolist()
        return Miss(2.0, f"plane {left[0]} is reflected") if left else miss


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

    def _draw(self, generator: torch.Generator) -> Element:
        raise ValueError(
            f"the group on these {self.dim} axes is not known, so no element can be drawn from it: "
            "name a group"
        )

    def _miss(self, a: Float64[Tensor, "dim dim"], atol: float, rounding: float) -> Miss:
        raise ValueError(
            f"the group on these {self.dim} axes is not known, so it cannot be said whether it "
            "holds a matrix: name a group"
        )

    def _read(self, a: Float64[Tensor, "dim dim"], atol: float) -> Element:
        raise AssertionError("no matrix is known to be in an unknown group")


# --- groups built from groups ---------------------------------------------------------------------


@final
@dataclasses.dataclass(frozen=True)
class Blocks(Group):
    """One group inside each of several blocks of axes, which change places as wholes or stay.

    The axes are ordered (block, copy, axis of `inner`). Each block draws an element of its own,
    unless they are alike; its copies, such as the queries that share one key, get the same one and
    move with it.

    Attributes:
        inner: the group inside one copy of a block.
        count: number of blocks.
        copies: how often each block's axes are repeated, one copy after the other.
        order: "free" if the blocks change places, "kept" if every block keeps its own.
        alike: True if all blocks get the same element, such as heads that share one gain.

    Example:
        >>> heads = Blocks(GeneralLinear(8), count=4, copies=2)
        >>> heads.dim, heads.privileged.name
        (64, 'BLOCKS')
    """

    inner: Group
    count: int
    copies: int = 1
    order: Literal["free", "kept"] = "free"
    alike: bool = False

    name: ClassVar[str] = "blocks"

    def __post_init__(self) -> None:
        _require_size(self, "count", "copies")
        instance("inner", self.inner, Group, "the group of a block")
        flag("alike", self.alike)
        if not isinstance(self.order, str) or self.order not in ("free", "kept"):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(
                f"order {described(self.order)} is not known: give 'free' for blocks that change "
                "places or 'kept' for blocks that do not"
            )

    def __repr__(self) -> str:
        rest = "" if self.order == "free" else f", order={self.order!r}"
        rest += ", alike=True" if self.alike else ""
        return f"Blocks(inner={self.inner!r}, count={self.count}, copies={self.copies}{rest})"

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
        copies += ", alike in all of them" if self.alike and self.count > 1 else ""
        places = "change places as wholes" if self.order == "free" else "keep their places"
        if self.alike:
            order = rf" \times S_{{{self.count}}}" if self.order == "free" else ""
            latex = bracketed(inner.latex) + order
        elif self.order == "free":
            latex = rf"{bracketed(inner.latex)} \wr S_{{{self.count}}}"
        else:
            latex = rf"({inner.latex})^{{{self.count}}}"
        return Traits(
            privileged=(
                inner.privileged if inner.privileged in finer or whole else Privileged.BLOCKS
            ),
            latex=latex,
            rescales=inner.rescales,
            rotates=inner.rotates,
            sentence=(
                f"{self.count} blocks of {self.inner.dim} axes {places}, and inside "
                f"each{copies}: {continued(inner.sentence)}."
            ),
        )

    def _draw(self, generator: torch.Generator) -> Element:
        order = self._random_order(generator)
        return BlockElement(order, self._several(self.inner._draw, generator), self.copies)

    def _generic(self, generator: torch.Generator) -> Element:
        free = self.order == "free"
        order = _cycle(self.count, generator) if free else self._random_order(generator)
        return BlockElement(order, self._several(self.inner._generic, generator), self.copies)

    def _several(
        self, make: Callable[[torch.Generator], Element], generator: torch.Generator
    ) -> tuple[Element, ...]:
        """An element for each of the blocks."""
        if self.alike:
            return (make(generator),) * self.count
        return tuple(make(generator) for _ in range(self.count))

    def _random_order(self, generator: torch.Generator) -> Tensor:
        if self.order == "kept":
            return torch.arange(self.count)
        return torch.randperm(self.count, generator=generator)

    def _miss(self, a: Float64[Tensor, "dim dim"], atol: float, rounding: float) -> Miss:
        parts = self._parts(a)
        scale = parts.abs().amax(dim=(1, 2, 3, 4, 5))
        empty = (scale == 0).nonzero().flatten().tolist()
        if empty:
            return Miss(math.inf, f"block {empty[0]} is zero")
        sources = self._sources(parts)
        rest = parts.clone()
        for block, source in enumerate(sources):
            first = parts[block, 0, :, source, 0, :]
            for copy in range(self.copies):
                rest[block, copy, :, source, copy, :] -= first
        off, block, source = _worst(rest.abs().amax(dim=(1, 2, 4, 5)) / scale[:, None])
        if off > atol:
            if source == sources[block]:
                return Miss(off, f"block {block} is not the same in all its copies")
            return Miss(off, f"block {block} takes from the blocks {sources[block]} and {source}")
        if len(set(sources)) < self.count:
            return Miss(math.inf, "two blocks take from one block, so the matrix is singular")
        if self.alike:
            whole = torch.stack([parts[b, 0, :, s, 0, :] for b, s in enumerate(sources)])
            unlike, block, _ = _worst((whole - whole[0]).abs().amax(dim=2) / scale[:, None])
            if unlike > atol:
                return Miss(unlike, f"block {block} is not changed as block 0 is")
        inside = (
            (block, self.inner._miss(parts[block, 0, :, source, 0, :], atol, rounding))
            for block, source in enumerate(sources)
        )
        return _worst_inside("block", inside, Miss(off, ""))

    def _parts(self, a: Float64[Tensor, "dim dim"]) -> Tensor:
        """The matrix as [block, copy, axis, block, copy, axis]."""
        shape = (self.count, self.copies, self.inner.dim)
        return a.reshape(*shape, *shape)

    def _sources(self, parts: Tensor) -> list[int]:
        """Which block comes to every place."""
        if self.order == "kept":
            return list(range(self.count))
        return parts.abs().amax(dim=(1, 2, 4, 5)).argmax(dim=1).tolist()

    def _read(self, a: Float64[Tensor, "dim dim"], atol: float) -> Element:
        parts = self._parts(a)
        sources = self._sources(parts)
        read = [
            self.inner._read(parts[block, 0, :, source, 0, :], atol)
            for block, source in enumerate(sources)
        ]
        order = torch.tensor(sources).argsort()
        return BlockElement(order, tuple(read[place] for place in order.tolist()), self.copies)


@final
@dataclasses.dataclass(frozen=True)
class DirectSum(Group):
    """Several groups side by side, each on axes of its own, in order.

    Attributes:
        parts: the groups, at least one.
        order: "each" if every part has an order of its own; "shared" if the axes of all parts
            change places together, as those of a gate and of what it multiplies: groups on axes of
            one size.

    Example:
        >>> DirectSum((Permutation(2), Permutation(3)))
        DirectSum(parts=(Permutation(dim=2), Permutation(dim=3)))
        >>> both = DirectSum((Permutation(2), Monomial(2)), order="shared")
        >>> both.contains([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
        False
    """

    parts: tuple[Group, ...]
    order: Literal["each", "shared"] = "each"

    name: ClassVar[str] = "direct-sum"

    def __post_init__(self) -> None:
        instance("parts", self.parts, tuple, "a tuple of groups")
        if not self.parts:
            raise ValueError("a direct sum of no groups was asked for: give at least one part")
        for part in self.parts:
            instance("one of parts", part, Group, "a group")
        if not isinstance(self.order, str) or self.order not in ("each", "shared"):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(
                f"order {described(self.order)} is not known: give 'each' for parts that have each "
                "an order of its own or 'shared' for parts whose axes change places together"
            )
        axes = all(isinstance(part, OnAxes) for part in self.parts)
        if self.order == "shared" and not (axes and len({part.dim for part in self.parts}) == 1):
            raise ValueError(
                f"parts that share an order are groups on axes of one size, got {self.parts!r}"
            )

    def __repr__(self) -> str:
        rest = "" if self.order == "each" else f", order={self.order!r}"
        return f"DirectSum(parts={self.parts!r}{rest})"

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
            f"{part.dim} axes: {continued(traits.sentence)}"
            for part, traits in zip(self.parts, parts, strict=True)
        )
        together = ", which change places together" if self.order == "shared" else ""
        return Traits(
            privileged=privileged,
            latex=r" \oplus ".join(bracketed(part.latex) for part in parts),
            rescales=any(part.rescales for part in parts),
            rotates=any(part.rotates for part in parts),
            sentence=f"The axes fall into {len(parts)} parts, in order{together}: {said}.",
        )

    def _draw(self, generator: torch.Generator) -> Element:
        if self.order == "shared":
            order = torch.randperm(self.parts[0].dim, generator=generator)
            return self._in_order(order, generator, signed=False)
        return SumElement(tuple(part._draw(generator) for part in self.parts))

    def _generic(self, generator: torch.Generator) -> Element:
        if self.order == "shared":
            order = _cycle(self.parts[0].dim, generator)
            return self._in_order(order, generator, signed=True)
        return SumElement(tuple(part._generic(generator) for part in self.parts))

    def _in_order(self, order: Tensor, generator: torch.Generator, *, signed: bool) -> Element:
        parts = [part for part in self.parts if isinstance(part, OnAxes)]
        return SumElement(tuple(part.ordered(order, generator, signed=signed) for part in parts))

    def _miss(self, a: Float64[Tensor, "dim dim"], atol: float, rounding: float) -> Miss:
        rest = a.clone()
        for own in self._places():
            rest[own, own] = 0
        scale = a.abs().amax(dim=1, keepdim=True)
        empty = (scale[:, 0] == 0).nonzero().flatten().tolist()
        if empty:
            return Miss(math.inf, f"row {empty[0]} is zero")
        off, i, j = _worst(rest.abs() / scale)
        if off > atol:
            where = f"row {i} takes {float(a[i, j]):.3g} from column {j}, which is in another part"
            return Miss(off, where)
        inside = (
            (number, part._miss(a[own, own], atol, rounding))
            for number, (part, own) in enumerate(zip(self.parts, self._places(), strict=True))
        )
        worst = _worst_inside("part", inside, Miss(off, ""))
        if self.order == "shared" and worst.by <= atol:
            orders = [a[own, own].abs().argmax(1) for own in self._places()]
            for number, order in enumerate(orders[1:], 1):
                if not torch.equal(order, orders[0]):
                    return Miss(math.inf, f"part {number} has an order of its own")
        return worst

    def _places(self) -> list[slice]:
        """Which axes every part acts on."""
        ends = [0]
        for part in self.parts:
            ends.append(ends[-1] + part.dim)
        return [slice(start, end) for start, end in itertools.pairwise(ends)]

    def _read(self, a: Float64[Tensor, "dim dim"], atol: float) -> Element:
        pairs = zip(self.parts, self._places(), strict=True)
        return SumElement(tuple(part._read(a[own, own], atol) for part, own in pairs))


# --- names, and what the parts of matrices are ----------------------------------------------------

_NAMED: tuple[type[Elementary] | type[OnPlanes], ...] = (
    GeneralLinear,
    Orthogonal,
    LineStabiliser,
    LineRotations,
    Permutation,
    SignedPermutation,
    PositiveMonomial,
    Monomial,
    Signs,
    Trivial,
    Planes,
    PlaneRotations,
    SignedPlanes,
    QuarterTurns,
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
    "line-rotation": "line-rotations",
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
    "sign": "signs",
    "sign-flips": "signs",
    "signed-plane": "signed-planes",
    "quarter-turn": "quarter-turns",
}


def require_group(name: str, group: object) -> None:
    """Raises TypeError or ValueError for what is neither a group, nor the name of one, nor None."""
    if group is not None:
        instance(name, group, (Group, str), "a group, its name, or None")
    if isinstance(group, str):
        # Every group that has a name can act on four axes.
        group_from_name(group, 4)


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
    near = nearest(plain, [*names, *_ALIASES])
    raise ValueError(
        f"no group is called {described(name)}; nearest: {near or 'none'}; "
        f"all names: {', '.join(names)}"
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
    miss = _off_axes(a, atol, signs=True, positive_scales=True)
    return _taken(a) if miss.by <= atol else None


def singularity(a: Float64[Tensor, "dim dim"], rounding: float) -> str:
    """Why a finite matrix, known to `rounding` relative, has no inverse; "" where it has one."""
    # Rows and columns of unit size first: a matrix is not singular for having small units.
    for kind, dim in (("row", 1), ("column", 0)):
        size = a.abs().amax(dim=dim, keepdim=True)
        zero = (size.flatten() == 0).nonzero().flatten().tolist()
        if zero:
            return f"{kind} {zero[0]} is zero, so the matrix is singular"
        a = a / size
    inverse, singular = torch.linalg.inv_ex(a)
    if int(singular) != 0:
        return "the matrix is singular"
    condition = torch.linalg.matrix_norm(a, 1) * torch.linalg.matrix_norm(inverse, 1)
    if not bool(condition * rounding * len(a) < 1):
        return f"the matrix is singular to its precision of {rounding:.1g}"
    return ""


def _taken(a: Float64[Tensor, "dim dim"]) -> tuple[Tensor, Float64[Tensor, " dim"]]:
    """The column of the largest entry of every row, and that entry."""
    columns = a.abs().argmax(dim=1)
    return columns, a[torch.arange(len(a)), columns]


def _off_axes(
    a: Float64[Tensor, "dim dim"], atol: float, *, signs: bool, positive_scales: bool
) -> Miss:
    """By how much a matrix fails to move axes and multiply each by a number that is allowed."""
    columns, factors = _taken(a)
    zero = (factors == 0).nonzero().flatten().tolist()
    if zero:
        return Miss(math.inf, f"row {zero[0]} is zero")
    rest = a.abs()
    rest[torch.arange(len(a)), columns] = 0
    second, i, j = _worst(rest / factors.abs()[:, None])
    if second > atol:
        where = f"row {i} has a second entry of {float(a[i, j]):.3g} beside {float(factors[i]):.3g}"
        return Miss(second, where)
    if int(columns.unique().numel()) < len(a):
        return Miss(math.inf, "two rows take the same axis, so the matrix is singular")
    if not signs and bool((factors < 0).any()):
        row = int((factors < 0).nonzero()[0])
        # As far as from a unit to its opposite.
        return Miss(2.0, f"row {row} is reversed: its factor is {factors[row]:.3g}")
    if positive_scales:
        return Miss(second, "")
    off, row = (factors.abs() - 1).abs().max(dim=0)
    return Miss(max(float(off), second), f"row {int(row)} has the factor {factors[row]:.4g}")


def _worst(off: Float64[Tensor, "out in"]) -> tuple[float, int, int]:
    """The largest entry and where it is; what left the range of float64 is infinitely large."""
    row, column = divmod(int(off.argmax()), off.shape[1])
    largest = float(off[row, column])
    return (math.inf if math.isnan(largest) else largest), row, column


def _worst_inside(what: str, inside: Iterable[tuple[int, Miss]], least: Miss) -> Miss:
    """The largest miss of all parts, with the part named."""
    worst = least
    for number, miss in inside:
        if miss.by > worst.by:
            worst = Miss(miss.by, f"in {what} {number}, {miss.where}")
    return worst


def _alike(given: Element, read: Element) -> bool:
    """True if the element that was given has at least the form that was read off its matrix."""
    if isinstance(read, BlockElement):
        return (
            isinstance(given, BlockElement)
            and (len(given.parts), given.copies) == (len(read.parts), read.copies)
            and all(_alike(*pair) for pair in zip(given.parts, read.parts, strict=True))
        )
    if isinstance(read, SumElement):
        return (
            isinstance(given, SumElement)
            and [part.dim for part in given.parts] == [part.dim for part in read.parts]
            and all(_alike(*pair) for pair in zip(given.parts, read.parts, strict=True))
        )
    if isinstance(read, PlaneElement):
        return isinstance(given, PlaneElement) and given.pairing == read.pairing
    return isinstance(read, Dense) or type(given) is type(read)


def _require_size(group: Group, *names: str) -> None:
    """Raises ValueError for sizes of a group that are none; those of numpy become Python's."""
    for name in names:
        object.__setattr__(group, name, whole(name, getattr(group, name), least=1))


def continued(sentence: str) -> str:
    """A sentence as a part of another."""
    return sentence[0].lower() + sentence[1:].rstrip(".")


def bracketed(latex: str) -> str:
    """A formula that can be put beside an operator."""
    return f"({latex})" if " " in latex else latex


def _uniform(count: int, generator: torch.Generator) -> Float64[Tensor, " count"]:
    return torch.rand(count, generator=generator, dtype=torch.float64)


def random_signs(count: int, generator: torch.Generator) -> Float64[Tensor, " count"]:
    """Each of 1 and -1 with the same chance."""
    return torch.where(_uniform(count, generator) < 0.5, -1.0, 1.0).double()


def random_scales(count: int, generator: torch.Generator) -> Float64[Tensor, " count"]:
    """Factors between 1/2 and 2, uniform in their logarithm."""
    return torch.exp2(2 * _uniform(count, generator) - 1)
