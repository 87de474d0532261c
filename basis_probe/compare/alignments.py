"""The element of a group that best lays one network's axes on another's, and how well that fits.

Every group is handled in two steps. First the data are brought to a form that the group's scales
cannot change: axes of unit size where it rescales them, white where it holds every linear map.
What is left of the group keeps lengths, and the best of its elements has a closed form: a polar
factor, an assignment, an angle. Everything is computed from second moments, so that data may be
streamed and the element that was found on one part of them scored on another.
"""

import abc
import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from typing import final

import torch
from jaxtyping import Float64
from torch import Tensor

from basis_probe.algebra.elements import Element
from basis_probe.algebra.groups import (
    Blocks,
    DirectSum,
    GeneralLinear,
    Group,
    LineStabiliser,
    Monomial,
    OnAxes,
    Orthogonal,
    Permutation,
    Planes,
    PositiveMonomial,
    QuarterTurns,
    SignedPermutation,
    SignedPlanes,
    Signs,
    Trivial,
    Unknown,
)
from basis_probe.compare.matching import Constant, assignment, may_be_flat, transport
from basis_probe.errors import DataError
from basis_probe.statistics.second_moments import Crossed, Spread

# Directions whose variance is below this share of the largest are not told from rounding.
_RANK = 1e-12


@dataclasses.dataclass(frozen=True, eq=False)
class Form:
    """A change of axes, x -> x W, after which the group's scales do not count.

    Attributes:
        weights: [dim, form], W; [dim] where it only multiplies axes.
        flat: axes, or directions, that never vary and count for nothing.
    """

    weights: Float64[Tensor, "dim form"] | Float64[Tensor, " dim"]
    flat: int

    def of(self, sums: Float64[Tensor, "dim other"]) -> Float64[Tensor, "form other"]:
        """W^T times a matrix."""
        if self.weights.ndim == 1:
            return self.weights[:, None] * sums
        return self.weights.T @ sums

    def size(self, side: Spread) -> float:
        """The sum over samples of squared lengths of x W."""
        if self.weights.ndim == 1:
            return float((self.weights.square() * side.sizes).sum())
        return float((self.of(side.sums) * self.weights.T).sum())

    @property
    def dense(self) -> Float64[Tensor, "dim form"]:
        """W as a matrix."""
        return torch.diag(self.weights) if self.weights.ndim == 1 else self.weights

    @property
    def inverse(self) -> Float64[Tensor, "form dim"]:
        """The pseudoinverse of W."""
        if self.weights.ndim == 2:
            return torch.linalg.pinv(self.weights)
        safe = torch.where(self.weights == 0, math.inf, self.weights)
        return torch.diag(1 / safe)


class Compact(abc.ABC):
    """What is left of a group once the data are in its form: maps that keep lengths."""

    @abc.abstractmethod
    def best(self, between: Float64[Tensor, "form_x form_y"]) -> Float64[Tensor, "form_y form_x"]:
        """The map with the largest inner product between what it makes of x, and y.

        Args:
            between: the sum over samples of x y^T.
        """


@final
class _Turn(Compact):
    """Every rotation and reflection, or a partial one between spaces of different size."""

    def best(self, between: Tensor) -> Tensor:
        u, _, v = torch.linalg.svd(between, full_matrices=False)
        return v.T @ u.T


@final
@dataclasses.dataclass(frozen=True)
class _Places(Compact):
    """Axes change places.

    Attributes:
        signs: True if they may be reversed too.
    """

    signs: bool

    def best(self, between: Tensor) -> Tensor:
        # Axes that are matched in part are mixed in proportion.
        scale = math.sqrt(between.shape[0] * between.shape[1])
        moved = transport(between.abs() if self.signs else between).T * scale
        return moved * between.T.sign() if self.signs else moved


@final
@dataclasses.dataclass(frozen=True)
class _InPlace(Compact):
    """Every axis stays.

    Attributes:
        signs: True if they may be reversed.
    """

    signs: bool

    def best(self, between: Tensor) -> Tensor:
        _require_square(between)
        diagonal = between.diagonal()
        ones = torch.ones_like(diagonal)
        return torch.diag(torch.where(diagonal < 0, -ones, ones) if self.signs else ones)


@final
@dataclasses.dataclass(frozen=True)
class _InPlanes(Compact):
    """Every plane is turned by an angle of its own."""

    group: Planes

    def best(self, between: Tensor) -> Tensor:
        _require_square(between)
        a, b = self.group.axes()
        real = between[a, a] + between[b, b]
        imaginary = between[a, b] - between[b, a]
        size = torch.hypot(real, imaginary)
        safe = torch.where(size == 0, torch.ones_like(size), size)
        cosine = torch.where(size == 0, torch.ones_like(real), real / safe)
        sine = imaginary / safe
        found = torch.zeros_like(between)
        found[a, a], found[b, b], found[a, b], found[b, a] = cosine, cosine, -sine, sine
        return found


@final
@dataclasses.dataclass(frozen=True)
class _SquareInPlanes(Compact):
    """In every plane one of the eight symmetries of a square."""

    group: SignedPlanes

    def best(self, between: Tensor) -> Tensor:
        _require_square(between)
        found = torch.zeros_like(between)
        for a, b in zip(*(axes.tolist() for axes in self.group.axes()), strict=True):
            place = torch.tensor([a, b])
            found[place[:, None], place] = _Places(signs=True).best(between[place][:, place])
        return found


@final
@dataclasses.dataclass(frozen=True)
class _QuarterTurns(Compact):
    """Every plane turned by a multiple of a right angle."""

    group: QuarterTurns

    def best(self, between: Tensor) -> Tensor:
        _require_square(between)
        a, b = self.group.axes()
        real = between[a, a] + between[b, b]
        imaginary = between[a, b] - between[b, a]
        straight = real.abs() >= imaginary.abs()
        cosine = torch.where(straight, torch.where(real < 0, -1.0, 1.0), 0.0).to(between)
        sine = torch.where(straight, 0.0, torch.where(imaginary < 0, -1.0, 1.0)).to(between)
        found = torch.zeros_like(between)
        found[a, a], found[b, b], found[a, b], found[b, a] = cosine, cosine, -sine, sine
        return found


@final
@dataclasses.dataclass(frozen=True)
class _Whole(Compact):
    """Blocks of axes, each changed by an element of its own, the same in all its copies.

    Attributes:
        inner: what changes a copy.
        x, y: where the axes of every block are, [block, copy, axis].
        free: True if blocks change places.
    """

    inner: Compact
    x: Tensor
    y: Tensor
    free: bool

    def best(self, between: Tensor) -> Tensor:
        count = len(self.x)
        gains = torch.zeros(count, len(self.y), dtype=torch.float64)
        parts: dict[tuple[int, int], Tensor] = {}
        for i in range(count):
            for j in range(len(self.y)):
                if self.free or i == j:
                    copies = zip(self.x[i], self.y[j], strict=True)
                    inside = torch.stack([between[a][:, b] for a, b in copies]).sum(0)
                    parts[i, j] = self.inner.best(inside)
                    gains[i, j] = (parts[i, j] * inside.T).sum()
        if self.free:
            rows, columns = assignment(gains)
        else:
            rows = columns = torch.arange(count)
        found = torch.zeros(between.shape[1], between.shape[0], dtype=torch.float64)
        for i, j in zip(rows.tolist(), columns.tolist(), strict=True):
            for a, b in zip(self.x[i], self.y[j], strict=True):
                found[b[:, None], a] = parts[i, j]
        return found


@final
@dataclasses.dataclass(frozen=True)
class _Beside(Compact):
    """Parts side by side, each with a group of its own."""

    parts: tuple[Compact, ...]
    x: tuple[slice, ...]
    y: tuple[slice, ...]

    def best(self, between: Tensor) -> Tensor:
        found = torch.zeros(between.shape[1], between.shape[0], dtype=torch.float64)
        for part, a, b in zip(self.parts, self.x, self.y, strict=True):
            found[b, a] = part.best(between[a, b])
        return found


@dataclasses.dataclass(frozen=True, eq=False)
class Alignment:
    """The element of a group that lays x on y, fitted on some samples, with its fit on others.

    Attributes:
        group: the group, acting on x.
        x, y: the forms in which the two are compared.
    """

    group: Group
    x: Form
    y: Form
    _compact: Compact
    _fitted_on: Crossed
    """What is left of the group in these forms, and the moments on which it was fitted."""

    def _between(self, moments: Crossed) -> Tensor:
        """[form_x, form_y], the sum over samples of products of the two in their forms."""
        return self.y.of(self.x.of(moments.sums).T).T

    @functools.cached_property
    def inner(self) -> Float64[Tensor, "form_y form_x"]:
        """The part of the element that keeps lengths."""
        return self._compact.best(self._between(self._fitted_on))

    @property
    def flat(self) -> tuple[int, int]:
        """How many axes or directions of either side never vary."""
        return self.x.flat, self.y.flat

    def similarity(self, moments: Crossed) -> float:
        """The cosine between x, after the element acted on it, and y, over samples, in [-1, 1].

        Raises:
            DataError: if one of the two does not vary on these samples.
        """
        sizes = self.x.size(moments.x), self.y.size(moments.y)
        if not min(sizes) > 0:
            raise DataError(
                "one of the two is the same on every sample: there is nothing to compare"
            )
        between = self._between(moments)
        if moments is self._fitted_on and isinstance(self._compact, _Turn):
            # The best turn reaches the sum of singular values: it is not needed to say so.
            reached = float(torch.linalg.svdvals(between).sum())
        else:
            reached = float((self.inner * between.T).sum())
        return reached / math.sqrt(sizes[0]) / math.sqrt(sizes[1])

    @functools.cached_property
    def matrix(self) -> Float64[Tensor, "dim_y dim_x"]:
        """A with y ~ A x, apart from a shift."""
        found = self.y.inverse.T @ self.inner @ self.x.dense.T
        if isinstance(self.group, LineStabiliser):
            # What lies along the ones is free; it is left as it is.
            return found + 1.0 / len(found)
        return found

    @functools.cached_property
    def element(self) -> Element | None:
        """A as an element of the group; None where the widths differ, or axes never vary."""
        if self.matrix.shape[0] != self.matrix.shape[1]:
            return None
        try:
            return self.group.element(self.matrix)
        except ValueError:
            return None


def align(
    group: Group,
    other: Group,
    moments: Crossed,
    *,
    constant: Constant = "refuse",
    whitening: float = 0.0,
) -> Alignment:
    """The element that lays x on y best, over the samples of some moments.

    Args:
        group: the group of x.
        other: that of y: the same, but for its size.
        moments: of x and y.
        constant: what to do about axes that never vary, where a scale of theirs would be needed:
            "refuse" them, or "ignore" them, so that they match nothing.
        whitening: how far the axes are brought towards white ones first, in [0, 1), for turns.

    Raises:
        DataError: for too few samples, or constant axes that are refused.
        ValueError: for groups of different kinds, or unequal sizes where those are needed.
    """
    require_kin(group, other)
    # Blocks that all change alike are aligned in their places.
    group, other = _in_place(group), _in_place(other)
    compact = _compact(group, other)
    for which, own, side in (("x", group, moments.x), ("y", other, moments.y)):
        _require_samples(which, own, side)
    forms = _form(group, moments.x, constant), _form(other, moments.y, constant)
    if whitening:
        forms = _partly_white(moments.x, whitening), _partly_white(moments.y, whitening)
    return Alignment(group, *forms, compact, moments)


def _in_place(group: Group) -> Group:
    """The same group, with blocks that are changed alike as copies of one block."""
    if not isinstance(group, Blocks) or not group.alike:
        return group
    copies = group.count * group.copies
    return dataclasses.replace(group, count=1, copies=copies, alike=False)


def on_axes(group: Group) -> bool:
    """True if the elements of a group only put axes in another order and multiply them."""
    if isinstance(group, DirectSum):
        return all(on_axes(part) for part in group.parts)
    return isinstance(group, OnAxes | Trivial | Signs)


def axes_group(groups: Iterable[Group], dim: int) -> Group:
    """The smallest group that puts all axes in any order and holds what several such groups do.

    Args:
        groups: groups of which `on_axes` is true.
        dim: how many axes it acts on.
    """
    waiting, kinds = [*groups], set[type[Group]]()
    while waiting:
        group = waiting.pop()
        if isinstance(group, DirectSum):
            waiting += group.parts
        else:
            kinds.add(type(group))
    scales = bool(kinds & {PositiveMonomial, Monomial})
    signs = bool(kinds & {SignedPermutation, Monomial, Signs})
    if scales:
        return Monomial(dim) if signs else PositiveMonomial(dim)
    return SignedPermutation(dim) if signs else Permutation(dim)


def require_kin(group: Group, other: Group) -> None:
    """Raises ValueError if two groups are not of one kind, or nothing is known of them."""
    if isinstance(group, Unknown) or isinstance(other, Unknown):
        raise ValueError(
            "nothing is known of the changes of basis that are allowed there: name the group, for "
            'example group="permutation"'
        )
    if type(group) is not type(other):
        raise ValueError(
            f"one of the two has the group {group!r} and the other {other!r}: compare places of "
            'one kind, or name the group, for example group="permutation"'
        )


def _compact(group: Group, other: Group) -> Compact:
    """What keeps lengths in a group, as maps from the form of one to that of the other."""
    if isinstance(group, GeneralLinear | Orthogonal | LineStabiliser):
        return _Turn()
    if isinstance(group, OnAxes):
        return _Places(signs=isinstance(group, SignedPermutation | Monomial))
    if group.dim != other.dim:
        raise ValueError(
            f"{group.name} keeps axes or blocks in their places, and one side has {group.dim} axes "
            f"and the other {other.dim}: name a group that does not, such as permutation"
        )
    if isinstance(group, Trivial | Signs):
        return _InPlace(signs=isinstance(group, Signs))
    if isinstance(group, Planes):
        return _InPlanes(group)
    if isinstance(group, SignedPlanes):
        return _SquareInPlanes(group)
    if isinstance(group, QuarterTurns):
        return _QuarterTurns(group)
    if isinstance(group, Blocks) and isinstance(other, Blocks):
        require_kin(group.inner, other.inner)
        return _Whole(
            _compact(group.inner, other.inner),
            _block_axes(group),
            _block_axes(other),
            free=group.order == "free",
        )
    if isinstance(group, DirectSum) and isinstance(other, DirectSum):
        if "shared" in (group.order, other.order):
            raise ValueError(
                "data whose parts share one order are not aligned as a whole: compare the parts at "
                "places of their own, such as what a gate multiplies"
            )
        pairs = list(zip(group.parts, other.parts, strict=True))
        for one, two in pairs:
            require_kin(one, two)
        return _Beside(
            tuple(_compact(*pair) for pair in pairs), _part_axes(group), _part_axes(other)
        )
    raise ValueError(f"how data are aligned up to {group!r} is not known: name another group")


def _form(group: Group, side: Spread, constant: Constant) -> Form:
    dim = len(side.mean)
    if group.dim != dim:
        raise ValueError(f"the group {group!r} acts on {group.dim} axes, and there are {dim}")
    flat = side.flat
    if isinstance(group, GeneralLinear):
        return white(side)
    if isinstance(group, PositiveMonomial | Monomial):
        may_be_flat(flat, constant)
        return Form(side.unit, int(flat.sum()))
    if isinstance(group, Planes) and group.rescales:
        a, b = group.axes()
        sizes = side.sizes
        both, still = sizes[a] + sizes[b], flat[a] & flat[b]
        may_be_flat(still, constant)
        scale = torch.zeros(dim, dtype=torch.float64)
        scale[a] = torch.where(still, torch.zeros_like(both), both.clamp(min=1e-300).rsqrt())
        scale[b] = scale[a]
        return Form(scale, 2 * int(still.sum()))
    if isinstance(group, LineStabiliser):
        across = torch.eye(dim, dtype=torch.float64) - 1.0 / dim
        return Form(across, 0)
    if isinstance(group, Blocks) and group.inner.rescales:
        axes = _block_axes(group)
        weights = torch.zeros(dim, dim, dtype=torch.float64)
        columns: list[Tensor] = []
        for block in axes:
            inside = sum((side.part(copy) for copy in block), Spread.empty(group.inner.dim))
            form = _form(group.inner, inside, constant)
            padded = _padded(form.dense)
            for copy in block:
                weights[copy[:, None], copy] = padded
            columns.append(torch.tensor(form.flat))
        return Form(weights, int(torch.stack(columns).sum()))
    if isinstance(group, DirectSum):
        parts = [
            _form(part, side.part(torch.arange(own.start, own.stop)), constant)
            for part, own in zip(group.parts, _part_axes(group), strict=True)
        ]
        flat_parts = sum(part.flat for part in parts)
        if all(part.weights.ndim == 1 for part in parts):
            return Form(torch.cat([part.weights for part in parts]), flat_parts)
        # Every part counts by its number of axes.
        return Form(torch.block_diag(*(_padded(part.dense) for part in parts)), flat_parts)
    return Form(torch.ones(dim, dtype=torch.float64), 0)


def _padded(weights: Tensor) -> Tensor:
    """The weights with columns of zeros, so that there are as many as rows."""
    return torch.nn.functional.pad(weights, (0, len(weights) - weights.shape[1]))


def needs_products(group: Group) -> bool:
    """True if the form of a group mixes axes, so that the sizes of single axes do not suffice."""
    if isinstance(group, DirectSum):
        return any(map(needs_products, group.parts))
    if isinstance(group, Blocks):
        return group.inner.rescales
    return isinstance(group, GeneralLinear | LineStabiliser)


def white(side: Spread) -> Form:
    """The form in which every direction has unit size.

    Raises:
        DataError: if nothing varies.
    """
    # Of axes at unit size: which directions vary must not depend on how axes are scaled.
    scale = side.unit
    values, vectors = torch.linalg.eigh(scale[:, None] * side.sums * scale)
    kept = values > _RANK * values.max().clamp(min=1e-300)
    if not bool(kept.any()):
        raise DataError("one of the two is the same on every sample: there is nothing to compare")
    weights = scale[:, None] * vectors[:, kept] * values[kept].rsqrt()
    return Form(weights, int((~kept).sum()))


def _partly_white(side: Spread, whitening: float) -> Form:
    """X ((1 - w) I + w S^(-1/2)), S the covariance at a mean variance of one.

    Source: A. Williams, E. Kunz, S. Kornblith and S. Linderman (2021), Generalized shape metrics on
    neural representations, section 2; there alpha = 1 - w, and S as the data's size makes it.
    """
    values, vectors = torch.linalg.eigh(side.sums)
    mean = float(values.clamp(min=0).mean())
    if not mean > 0:
        raise DataError("one of the two is the same on every sample: there is nothing to compare")
    kept = values > _RANK * values.max()
    inverse = torch.where(kept, (values / mean).clamp(min=1e-300).rsqrt(), 0.0)
    scale = (1 - whitening) + whitening * inverse
    return Form((vectors * scale) @ vectors.T, int((~kept).sum()))


def _require_samples(which: str, group: Group, side: Spread) -> None:
    """Raises DataError where so few samples make any two sets of axes the same up to the group."""
    mixed = mixed_axes(group)
    # About their mean so many samples span one direction less.
    if mixed and side.count <= mixed + 1:
        raise DataError(
            f"{which} has {mixed} axes that may be mixed and {side.count} samples to fit with: "
            f"with so few, any two networks look alike; give more than {mixed + 1} samples in "
            'every part of the data, or compare what fits less: kernels (measure="cka"), or turns '
            '(group="orthogonal")'
        )


def mixed_axes(group: Group) -> int:
    """How many axes every invertible map of them is in a group; 0 if there are none."""
    return _mixed(group, lambda inner: isinstance(inner, GeneralLinear))


def turned_axes(group: Group) -> int:
    """How many axes a group mixes with each other at most; 0 if it mixes none."""
    return _mixed(group, lambda inner: inner.rotates)


def _mixed(group: Group, mixes: Callable[[Group], bool]) -> int:
    if isinstance(group, Blocks):
        return _mixed(group.inner, mixes)
    if isinstance(group, DirectSum):
        return max(_mixed(part, mixes) for part in group.parts)
    return group.dim if mixes(group) else 0


def _block_axes(group: Blocks) -> Tensor:
    """[block, copy, axis]: where the axes are."""
    return torch.arange(group.dim).reshape(group.count, group.copies, group.inner.dim)


def _part_axes(group: DirectSum) -> tuple[slice, ...]:
    found: list[slice] = []
    start = 0
    for part in group.parts:
        found.append(slice(start, start + part.dim))
        start += part.dim
    return tuple(found)


def _require_square(between: Tensor) -> None:
    if between.shape[0] != between.shape[1]:
        raise ValueError(f"{between.shape[0]} axes cannot be laid on {between.shape[1]} in place")
