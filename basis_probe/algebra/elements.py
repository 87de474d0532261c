"""Elements of groups: invertible matrices in the form that is cheapest to apply.

An element acts along one axis of any tensor, in the dtype and on the device of that tensor, and is
itself kept in float64 on the CPU. Products, inverses and transposes keep the form wherever the form
has them; `matrix` writes an element out.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from typing import Literal, final

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from basis_probe.brief import brief

_WRITTEN = 1024
"""Products of elements that share no form are written out as a matrix up to this size."""


class Element(abc.ABC):
    """One invertible real matrix A, x' = A x for a column vector x.

    Attributes:
        dim: the n of the n x n matrix.
    """

    dim: int

    @final
    def act(self, x: Tensor, axis: int = -1) -> Tensor:
        """The tensor with every vector v along the axis replaced by A v; a new tensor.

        Args:
            x: floating-point numbers of any shape whose size along `axis` is `dim`. The work is
                done in its dtype and on its device, and can be differentiated with respect to it.
            axis: the axis that the vectors lie along.

        Raises:
            ValueError: if the axis has another size, or the numbers are not floating-point.

        Example:
            >>> swap = MonomialElement(torch.tensor([1, 0]), torch.ones(2))
            >>> swap.act(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), axis=0)
            tensor([[4., 5., 6.],
                    [1., 2., 3.]])
        """
        if not -x.ndim <= axis < x.ndim or x.shape[axis] != self.dim:
            raise ValueError(
                f"a tensor of shape {tuple(x.shape)} has no {self.dim} entries along axis {axis}, "
                f"and the element acts on {self.dim}: give the axis that it belongs to"
            )
        if not x.is_floating_point():
            raise ValueError(f"the tensor holds {x.dtype}: give floating-point numbers")
        return self._act_along(x, axis % x.ndim)

    @final
    def __matmul__(self, other: Element) -> Element:
        """The product: `other` acts first, then this element.

        Raises:
            ValueError: if the two act on different dimensions.
        """
        if not isinstance(other, Element):  # pyright: ignore[reportUnnecessaryIsInstance]
            return NotImplemented
        if self.dim != other.dim:
            raise ValueError(
                f"an element on {self.dim} axes was multiplied by one on {other.dim}: give two "
                "elements of the same size"
            )
        if isinstance(other, Identity):
            return self
        product = self._times(other)
        if product is None:
            # One product of factors, however they were bracketed.
            if isinstance(self, Product) or isinstance(other, Product) or self.dim > _WRITTEN:
                return Product(_factors(self) + _factors(other))
            return Dense(self.act(other.matrix(), axis=0))
        return product

    def matrix(self) -> Float64[Tensor, "dim dim"]:
        """The matrix written out, on the CPU."""
        return self.act(torch.eye(self.dim, dtype=torch.float64), axis=0)

    @abc.abstractmethod
    def inverse(self) -> Element:
        """The element that undoes this one.

        Raises:
            ValueError: if the matrix is singular.
        """

    @abc.abstractmethod
    def transpose(self) -> Element:
        """The element of the transposed matrix."""

    def _act_along(self, x: Tensor, axis: int) -> Tensor:
        """As `act`, for an axis that is known to fit."""
        return self._act_on_rows(x.movedim(axis, -1)).movedim(-1, axis)

    @abc.abstractmethod
    def _act_on_rows(self, rows: Tensor) -> Tensor:
        """A v for every v along the last axis, in memory of its own."""

    @abc.abstractmethod
    def _times(self, other: Element) -> Element | None:
        """The product in a form that both share; None where there is none."""


@final
@brief
@dataclasses.dataclass(frozen=True, eq=False)
class Identity(Element):
    """The element that changes nothing.

    Attributes:
        dim: the size.

    Example:
        >>> Identity(2).matrix().tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """

    dim: int

    def inverse(self) -> Identity:
        return self

    def transpose(self) -> Identity:
        return self

    def _act_on_rows(self, rows: Tensor) -> Tensor:
        return rows.clone()

    def _times(self, other: Element) -> Element:
        return other


@final
@brief
@dataclasses.dataclass(frozen=True, eq=False)
class Dense(Element):
    """A matrix without a form that could be used.

    Attributes:
        entries: [dim, dim], the matrix.

    Example:
        >>> Dense(torch.tensor([[1.0, 2.0], [0.0, 1.0]])).act(torch.tensor([1.0, 1.0]))
        tensor([3., 1.])
    """

    entries: Float[Tensor, "dim dim"]

    def __post_init__(self) -> None:
        _keep(self, entries=_numbers("entries", self.entries, ndim=2))
        if self.entries.shape[0] != self.entries.shape[1]:
            raise ValueError(f"the entries are {_shape(self.entries)}: give a square matrix")

    @property
    def dim(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The number of rows."""
        return len(self.entries)

    def matrix(self) -> Float64[Tensor, "dim dim"]:
        return self.entries.clone()

    def inverse(self) -> Dense:
        inverse, singular = torch.linalg.inv_ex(self.entries)
        if int(singular) != 0 or not bool(inverse.isfinite().all()):
            raise ValueError(
                f"the {self.dim} x {self.dim} matrix is singular and has no inverse: give an "
                "invertible one"
            )
        return Dense(inverse)

    def transpose(self) -> Dense:
        return Dense(self.entries.T)

    def _act_on_rows(self, rows: Tensor) -> Tensor:
        return rows @ self.entries.T.to(rows)

    def _times(self, other: Element) -> Element | None:
        return Dense(self.entries @ other.entries) if isinstance(other, Dense) else None


@final
@brief
@dataclasses.dataclass(frozen=True, eq=False)
class MonomialElement(Element):
    """Axes that change places, each multiplied by a number: (A v)_i = factors_i * v_columns_i.

    Attributes:
        columns: [dim], which entry moves to place i; every entry once.
        factors: [dim], what it is multiplied by there; none is zero.

    Example:
        >>> MonomialElement(torch.tensor([1, 0]), torch.tensor([2.0, -1.0])).matrix().tolist()
        [[0.0, 2.0], [-1.0, 0.0]]
    """

    columns: Int64[Tensor, " dim"]
    factors: Float[Tensor, " dim"]

    def __post_init__(self) -> None:
        columns = _order("columns", self.columns)
        factors = _numbers("factors", self.factors, ndim=1)
        if len(columns) != len(factors):
            raise ValueError(
                f"there are {len(columns)} columns and {len(factors)} factors: give one factor for "
                "every column"
            )
        if bool((factors == 0).any()):
            raise ValueError("a factor is zero, which no inverse undoes: give factors other than 0")
        _keep(self, columns=columns, factors=factors)

    @property
    def dim(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The number of axes."""
        return len(self.columns)

    def matrix(self) -> Float64[Tensor, "dim dim"]:
        matrix = torch.zeros(self.dim, self.dim, dtype=torch.float64)
        matrix[torch.arange(self.dim), self.columns] = self.factors
        return matrix

    def inverse(self) -> MonomialElement:
        back = self.columns.argsort()
        return MonomialElement(back, 1.0 / self.factors[back])

    def transpose(self) -> MonomialElement:
        back = self.columns.argsort()
        return MonomialElement(back, self.factors[back])

    def _act_along(self, x: Tensor, axis: int) -> Tensor:
        # Along the axis where it lies: a large matrix is neither turned round nor copied twice.
        still = torch.equal(self.columns, torch.arange(self.dim))
        moved = x if still else x.index_select(axis, self.columns.to(x.device))
        if bool((self.factors == 1).all()):
            return x.clone() if still else moved
        return moved * self.factors.to(x).reshape(-1, *([1] * (x.ndim - 1 - axis)))

    def _act_on_rows(self, rows: Tensor) -> Tensor:
        return self._act_along(rows, rows.ndim - 1)

    def _times(self, other: Element) -> Element | None:
        if not isinstance(other, MonomialElement):
            return None
        factors = self.factors * other.factors[self.columns]
        return MonomialElement(other.columns[self.columns], factors)


@final
@brief
@dataclasses.dataclass(frozen=True, eq=False)
class Local(Element):
    """An element that changes a few axes only, and those among themselves.

    Attributes:
        dim: the number of axes.
        axes: the ones that change.
        inner: what it does to them.

    Example:
        >>> swap = MonomialElement(torch.tensor([1, 0]), torch.ones(2))
        >>> Local(4, torch.tensor([0, 3]), swap).act(torch.tensor([1.0, 2.0, 3.0, 4.0]))
        tensor([4., 2., 3., 1.])
    """

    dim: int
    axes: Int64[Tensor, " head"]
    inner: Element

    def __post_init__(self) -> None:
        if len(self.axes) != self.inner.dim or len(self.axes.unique()) != len(self.axes):
            raise ValueError(
                f"{len(self.axes)} axes were given for an element on {self.inner.dim}: give as "
                "many, each once"
            )

    def inverse(self) -> Local:
        return Local(self.dim, self.axes, self.inner.inverse())

    def transpose(self) -> Local:
        return Local(self.dim, self.axes, self.inner.transpose())

    def _act_along(self, x: Tensor, axis: int) -> Tensor:
        axes = self.axes.to(x.device)
        changed = self.inner.act(x.index_select(axis, axes), axis)
        return x.index_copy(axis, axes, changed)

    def _act_on_rows(self, rows: Tensor) -> Tensor:
        return self._act_along(rows, rows.ndim - 1)

    def _times(self, other: Element) -> Element | None:
        if not isinstance(other, Local) or not torch.equal(self.axes, other.axes):
            return None
        return Local(self.dim, self.axes, self.inner @ other.inner)


def local(element: Element) -> Element:
    """The element as one on the few axes that it changes, if it leaves most of them alone."""
    if not isinstance(element, MonomialElement):
        return element
    moving = (element.columns != torch.arange(element.dim)) | (element.factors != 1)
    axes = moving.nonzero().flatten()
    if len(axes) and 4 * int(axes[-1] - axes[0] + 1) <= element.dim:
        # Those between them come along: neighbours can be changed where they lie.
        axes = torch.arange(int(axes[0]), int(axes[-1]) + 1)
    if not 0 < len(axes) <= element.dim // 4:
        return element
    places = torch.full((element.dim,), -1)
    places[axes] = torch.arange(len(axes))
    inner = MonomialElement(places[element.columns[axes]], element.factors[axes])
    return Local(element.dim, axes, inner)


@final
@brief
@dataclasses.dataclass(frozen=True, eq=False)
class Reflections(Element):
    """A product of reflections I - 2 v v^T / |v|^2; orthogonal, and costs one product per vector.

    Attributes:
        vectors: [count, dim], one normal vector per row; the last one is applied first. Their
            lengths do not matter. With none, nothing is reflected.

    Example:
        >>> Reflections(torch.tensor([[3.0, 0.0]])).act(torch.tensor([1.0, 1.0]))
        tensor([-1.,  1.])
    """

    vectors: Float[Tensor, "direction dim"]

    def __post_init__(self) -> None:
        vectors = _numbers("vectors", self.vectors, ndim=2)
        largest = vectors.abs().amax(dim=1, keepdim=True)
        if bool((largest == 0).any()):
            raise ValueError("a vector is zero and marks no reflection: leave it out")
        # The largest entry first: squares of very small or large entries leave the range.
        vectors = vectors / largest
        _keep(self, vectors=vectors / vectors.norm(dim=1, keepdim=True))

    @property
    def dim(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The size of the vectors."""
        return self.vectors.shape[1]

    def inverse(self) -> Reflections:
        return Reflections(self.vectors.flip(0))

    def transpose(self) -> Reflections:
        return self.inverse()

    def _act_along(self, x: Tensor, axis: int) -> Tensor:
        vectors, inner = self.vectors.to(x), self._inner.to(x)
        if x.ndim == 2 and axis == 0:
            return torch.addmm(x, vectors.T, inner @ (vectors @ x), alpha=-1)
        rows = x.movedim(axis, -1)
        flat = rows.reshape(-1, self.dim)
        turned = torch.addmm(flat, flat @ vectors.T @ inner.T, vectors, alpha=-1)
        return turned.reshape(rows.shape).movedim(-1, axis)

    def _act_on_rows(self, rows: Tensor) -> Tensor:
        return self._act_along(rows, rows.ndim - 1)

    @functools.cached_property
    def _inner(self) -> Float64[Tensor, "direction direction"]:
        """The T of I - V^T T V: all reflections as one product, for one pass over the numbers.

        Source: Schreiber and Van Loan, SIAM J. Sci. Stat. Comput. 10 (1989), equation 5.
        """
        count = len(self.vectors)
        angles = self.vectors @ self.vectors.T
        inner = torch.zeros(count, count, dtype=torch.float64)
        for place in range(count):
            inner[place, place] = 2.0
            inner[:place, place] = -2.0 * inner[:place, :place] @ angles[:place, place]
        return inner

    def _times(self, other: Element) -> Element | None:
        if not isinstance(other, Reflections):
            return None
        return Reflections(torch.cat([self.vectors, other.vectors]))


@final
@brief
@dataclasses.dataclass(frozen=True, eq=False)
class Sheared(Element):
    """The matrix turn + 1 w^T: a turn that keeps the all-ones line, with more written along it.

    Attributes:
        turn: an element with turn(1) = s 1 for a number s.
        vector: [dim], the w; s + the sum of w is not zero.

    Example:
        >>> Sheared(Identity(2), torch.tensor([0.0, 3.0])).matrix().tolist()
        [[1.0, 3.0], [0.0, 4.0]]
    """

    turn: Element
    vector: Float[Tensor, " dim"]

    def __post_init__(self) -> None:
        _keep(self, vector=_numbers("vector", self.vector, ndim=1))
        if len(self.vector) != self.turn.dim:
            raise ValueError(
                f"the vector has {len(self.vector)} entries and the turn acts on {self.turn.dim}: "
                "give one entry for every axis"
            )
        ones = self.turn.act(torch.ones(self.dim, dtype=torch.float64))
        if float((ones - ones.mean()).abs().max()) > 1e-9 * float(ones.abs().max()):
            raise ValueError(
                "the turn moves the all-ones vector off its line: give one that keeps the line"
            )

    @property
    def dim(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The number of axes."""
        return self.turn.dim

    def inverse(self) -> Sheared:
        # Sherman and Morrison (1950), with turn^-1 1 = 1 / s.
        along = self._along()
        if along == 0:
            raise ValueError(
                "the element takes the all-ones vector to zero and has no inverse: give a vector "
                "with another sum"
            )
        back = self.turn.inverse()
        return Sheared(back, -back.transpose().act(self.vector) / along)

    def transpose(self) -> Gathered:
        return Gathered(self.turn.transpose(), self.vector)

    def _act_along(self, x: Tensor, axis: int) -> Tensor:
        vector = self.vector.to(x)
        if x.ndim == 2 and axis == 0:
            return self.turn.act(x, 0).add_(vector @ x)
        along = (x.movedim(axis, -1) @ vector).unsqueeze(-1)
        return self.turn.act(x, axis) + along.movedim(-1, axis)

    def _act_on_rows(self, rows: Tensor) -> Tensor:
        return self._act_along(rows, rows.ndim - 1)

    def _times(self, other: Element) -> Element | None:
        if not isinstance(other, Sheared):
            return None
        vector = other.turn.transpose().act(self.vector) + self._along() * other.vector
        return Sheared(self.turn @ other.turn, vector)

    def _along(self) -> float:
        """What the all-ones vector is multiplied by."""
        ones = self.turn.act(torch.ones(self.dim, dtype=torch.float64))
        return float(ones.mean() + self.vector.sum())


@final
@brief
@dataclasses.dataclass(frozen=True, eq=False)
class Gathered(Element):
    """The matrix turn + w 1^T: the transpose of a `Sheared`, which adds the sum to every entry.

    Attributes:
        turn: an element whose transpose keeps the all-ones line.
        vector: [dim], the w.

    Example:
        >>> Gathered(Identity(2), torch.tensor([0.0, 3.0])).matrix().tolist()
        [[1.0, 0.0], [3.0, 4.0]]
    """

    turn: Element
    vector: Float[Tensor, " dim"]

    def __post_init__(self) -> None:
        _keep(self, vector=Sheared(self.turn.transpose(), self.vector).vector)

    @property
    def dim(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The number of axes."""
        return self.turn.dim

    def inverse(self) -> Gathered:
        return self.transpose().inverse().transpose()

    def transpose(self) -> Sheared:
        return Sheared(self.turn.transpose(), self.vector)

    def _act_on_rows(self, rows: Tensor) -> Tensor:
        return self.turn.act(rows) + rows.sum(dim=-1, keepdim=True) * self.vector.to(rows)

    def _times(self, other: Element) -> Element | None:
        if not isinstance(other, Gathered):
            return None
        return (other.transpose() @ self.transpose()).transpose()


Pairing = Literal["half", "adjacent"]
"""Which two axes span a plane: (i, i + n/2), or (2i, 2i + 1)."""


def plane_axes(
    dim: int, pairing: Pairing
) -> tuple[Int64[Tensor, " direction"], Int64[Tensor, " direction"]]:
    """The first and the second axis of every plane.

    Example:
        >>> [axes.tolist() for axes in plane_axes(4, "adjacent")]
        [[0, 2], [1, 3]]
    """
    axes = torch.arange(dim)
    halves = axes.view(2, -1) if pairing == "half" else axes.view(-1, 2).T
    return halves[0], halves[1]


@final
@brief
@dataclasses.dataclass(frozen=True, eq=False)
class PlaneElement(Element):
    """Planes of two axes, each turned and scaled as by a complex number.

    Attributes:
        real: [dim / 2], the real parts; the first axis of a plane is the real one.
        imaginary: [dim / 2], the imaginary parts.
        pairing: which axes span a plane: "half" for (i, i + n/2), "adjacent" for (2i, 2i + 1).

    Example:
        >>> quarter = PlaneElement(torch.zeros(1), torch.ones(1), "half")
        >>> quarter.act(torch.tensor([1.0, 2.0]))
        tensor([-2.,  1.])
    """

    real: Float[Tensor, " direction"]
    imaginary: Float[Tensor, " direction"]
    pairing: Pairing = "half"

    def __post_init__(self) -> None:
        real = _numbers("real", self.real, ndim=1)
        imaginary = _numbers("imaginary", self.imaginary, ndim=1)
        if len(real) != len(imaginary):
            raise ValueError(
                f"there are {len(real)} real and {len(imaginary)} imaginary parts: give one of "
                "each for every plane"
            )
        if bool(((real == 0) & (imaginary == 0)).any()):
            raise ValueError("a plane is multiplied by zero: give complex numbers other than 0")
        if self.pairing not in ("half", "adjacent"):
            raise ValueError(f"pairing {self.pairing!r} is not known: give 'half' or 'adjacent'")
        _keep(self, real=real, imaginary=imaginary)

    @property
    def dim(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Twice the number of planes."""
        return 2 * len(self.real)

    def matrix(self) -> Float64[Tensor, "dim dim"]:
        first, second = plane_axes(self.dim, self.pairing)
        matrix = torch.zeros(self.dim, self.dim, dtype=torch.float64)
        matrix[first, first] = matrix[second, second] = self.real
        matrix[second, first], matrix[first, second] = self.imaginary, -self.imaginary
        return matrix

    def inverse(self) -> PlaneElement:
        # Divided one after the other: the square of a very large or small modulus is out of range.
        modulus = torch.hypot(self.real, self.imaginary)
        real, imaginary = self.real / modulus, self.imaginary / modulus
        return PlaneElement(real / modulus, -imaginary / modulus, self.pairing)

    def transpose(self) -> PlaneElement:
        return PlaneElement(self.real, -self.imaginary, self.pairing)

    def _act_on_rows(self, rows: Tensor) -> Tensor:
        first, second = (axes.to(rows.device) for axes in plane_axes(self.dim, self.pairing))
        real, imaginary = self.real.to(rows), self.imaginary.to(rows)
        a, b = rows[..., first], rows[..., second]
        turned = torch.cat([real * a - imaginary * b, imaginary * a + real * b], dim=-1)
        return turned[..., torch.cat([first, second]).argsort()]

    def _times(self, other: Element) -> Element | None:
        if not isinstance(other, PlaneElement) or other.pairing != self.pairing:
            return None
        real = self.real * other.real - self.imaginary * other.imaginary
        imaginary = self.real * other.imaginary + self.imaginary * other.real
        return PlaneElement(real, imaginary, self.pairing)


@final
@brief
@dataclasses.dataclass(frozen=True, eq=False)
class BlockElement(Element):
    """Blocks of axes that change places as wholes, each changed by an element of its own.

    The axes are ordered (block, copy, axis of the part). The copies of a block move together and
    are changed alike.

    Attributes:
        order: [count], block b goes to place order[b].
        parts: what acts inside block b, before it moves; all of the same size.
        copies: how often each block's axes are repeated.

    Example:
        >>> swap = BlockElement(torch.tensor([1, 0]), (Identity(1), Identity(1)), copies=2)
        >>> swap.act(torch.tensor([1.0, 2.0, 3.0, 4.0]))
        tensor([3., 4., 1., 2.])
    """

    order: Int64[Tensor, " head"]
    parts: tuple[Element, ...]
    copies: int = 1

    def __post_init__(self) -> None:
        _keep(self, order=_order("order", self.order))
        if len(self.order) != len(self.parts):
            raise ValueError(
                f"there are {len(self.order)} places and {len(self.parts)} parts: give one part "
                "for every block"
            )
        sizes = {part.dim for part in self.parts}
        if len(sizes) != 1:
            raise ValueError(f"the parts have sizes {sorted(sizes)}: give blocks of one size")
        if self.copies < 1:
            raise ValueError(f"copies is {self.copies}: give a whole number of at least 1")

    @property
    def dim(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The sum of the sizes of all blocks and their copies."""
        return len(self.parts) * self.copies * self.parts[0].dim

    def copied(self, copies: int) -> BlockElement:
        """The same element on blocks with another number of copies.

        What acts on 2 key heads acts on 2 * `copies` query heads.

        Raises:
            ValueError: if `copies` is below 1.
        """
        return BlockElement(self.order, self.parts, copies)

    def matrix(self) -> Float64[Tensor, "dim dim"]:
        count, copies, size = len(self.parts), self.copies, self.parts[0].dim
        matrix = torch.zeros(count, copies, size, count, copies, size, dtype=torch.float64)
        for block, part in enumerate(self.parts):
            written = part.matrix()
            for copy in range(copies):
                matrix[self.order[block], copy, :, block, copy, :] = written
        return matrix.reshape(self.dim, self.dim)

    def inverse(self) -> BlockElement:
        return self._reversed(tuple(part.inverse() for part in self.parts))

    def transpose(self) -> BlockElement:
        return self._reversed(tuple(part.transpose() for part in self.parts))

    def _reversed(self, parts: tuple[Element, ...]) -> BlockElement:
        """Every block goes back to where it came from, changed by the part given for it."""
        back = self.order.argsort()
        return BlockElement(back, tuple(parts[block] for block in back.tolist()), self.copies)

    def _act_on_rows(self, rows: Tensor) -> Tensor:
        count = len(self.parts)
        if all(isinstance(part, Identity) for part in self.parts):
            blocks = rows.unflatten(-1, (count, -1))
            return blocks.index_select(-2, self.order.argsort().to(rows.device)).flatten(-2)
        blocks = rows.unflatten(-1, (count, self.copies, self.parts[0].dim))
        back = self.order.argsort().tolist()
        moved = [self.parts[block].act(blocks[..., block, :, :]) for block in back]
        return torch.stack(moved, dim=-3).flatten(-3)

    def _times(self, other: Element) -> Element | None:
        if not isinstance(other, BlockElement) or other.parts[0].dim != self.parts[0].dim:
            return None
        if other.copies != self.copies:
            return self._one_by_one() @ other._one_by_one()
        between = other.order.tolist()
        parts = tuple(
            self.parts[place] @ part for place, part in zip(between, other.parts, strict=True)
        )
        return BlockElement(self.order[other.order], parts, self.copies)

    def _one_by_one(self) -> BlockElement:
        """The same with every copy as a block of its own."""
        places = self.order[:, None] * self.copies + torch.arange(self.copies)
        parts = tuple(part for part in self.parts for _ in range(self.copies))
        return BlockElement(places.flatten(), parts)


@final
@brief
@dataclasses.dataclass(frozen=True, eq=False)
class SumElement(Element):
    """Elements side by side, each on axes of its own, in order.

    Attributes:
        parts: the elements, at least one.

    Example:
        >>> SumElement((Identity(1), Dense(torch.tensor([[3.0]])))).matrix().tolist()
        [[1.0, 0.0], [0.0, 3.0]]
    """

    parts: tuple[Element, ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("a sum of no elements was asked for: give at least one part")

    @property
    def dim(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The sum of the parts' dimensions."""
        return sum(part.dim for part in self.parts)

    def matrix(self) -> Float64[Tensor, "dim dim"]:
        return torch.block_diag(*(part.matrix() for part in self.parts))

    def inverse(self) -> SumElement:
        return SumElement(tuple(part.inverse() for part in self.parts))

    def transpose(self) -> SumElement:
        return SumElement(tuple(part.transpose() for part in self.parts))

    def _act_on_rows(self, rows: Tensor) -> Tensor:
        pieces = rows.split([part.dim for part in self.parts], dim=-1)
        acted = [part.act(piece) for part, piece in zip(self.parts, pieces, strict=True)]
        return torch.cat(acted, dim=-1)

    def _times(self, other: Element) -> Element | None:
        if not isinstance(other, SumElement):
            return None
        if [part.dim for part in self.parts] != [part.dim for part in other.parts]:
            return None
        pairs = zip(self.parts, other.parts, strict=True)
        return SumElement(tuple(mine @ its for mine, its in pairs))


@final
@brief
@dataclasses.dataclass(frozen=True, eq=False)
class Product(Element):
    """A product that is left as it is, factor by factor; the last factor acts first.

    Attributes:
        factors: elements of one size, at least one.

    Example:
        >>> double = MonomialElement(torch.tensor([0, 1]), torch.tensor([2.0, 2.0]))
        >>> mirror = Reflections(torch.tensor([[1.0, 0.0]]))
        >>> Product((mirror, double)).act(torch.tensor([1.0, 1.0]))
        tensor([-2.,  2.])
    """

    factors: tuple[Element, ...]

    def __post_init__(self) -> None:
        if not self.factors:
            raise ValueError("a product of no elements was asked for: give at least one factor")
        sizes = sorted({factor.dim for factor in self.factors})
        if len(sizes) > 1:
            raise ValueError(f"the factors have sizes {sizes}: give elements of one size")

    @property
    def dim(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The size of every factor."""
        return self.factors[0].dim

    def inverse(self) -> Product:
        return Product(tuple(factor.inverse() for factor in reversed(self.factors)))

    def transpose(self) -> Product:
        return Product(tuple(factor.transpose() for factor in reversed(self.factors)))

    def _act_along(self, x: Tensor, axis: int) -> Tensor:
        for factor in reversed(self.factors):
            x = factor.act(x, axis)
        return x

    def _act_on_rows(self, rows: Tensor) -> Tensor:
        return self._act_along(rows, rows.ndim - 1)

    def _times(self, other: Element) -> Element | None:
        return None


def _factors(element: Element) -> tuple[Element, ...]:
    return element.factors if isinstance(element, Product) else (element,)


def _numbers(what: str, values: Tensor, *, ndim: int) -> Tensor:
    """The values in float64 on the CPU, apart from any graph."""
    if values.ndim != ndim:
        raise ValueError(f"the {what} are {_shape(values)}: give a tensor with {ndim} axes")
    if values.is_complex() or not bool(values.isfinite().all()):
        raise ValueError(f"the {what} are not all finite real numbers: give finite real numbers")
    return values.detach().to("cpu", torch.float64)


def _order(what: str, values: Tensor) -> Tensor:
    """The values as whole numbers on the CPU, each of 0 ... n - 1 once."""
    whole = not values.is_floating_point() and not values.is_complex() and values.ndim == 1
    if not whole or values.sort().values.tolist() != list(range(len(values))):
        raise ValueError(f"the {what} are no order: give each of the numbers 0 to n - 1 once")
    return values.detach().to("cpu", torch.int64)


def _keep(element: Element, **fields: Tensor) -> None:
    """Sets fields of a frozen element while it is made."""
    for name, value in fields.items():
        object.__setattr__(element, name, value)


def _shape(values: Tensor) -> str:
    return f"of shape {list(values.shape)}"
