"""The activations themselves, read in a basis that is turned."""

import dataclasses
from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from basis_probe.algebra.groups import Blocks, DirectSum, Group, Planes
from basis_probe.algebra.haar import Turned, turned_axes
from basis_probe.algebra.remembered import remembered
from basis_probe.statistics.halves import Part, halves_of
from basis_probe.statistics.nulls.frames import (
    Alternatives,
    Frame,
    Geometry,
    Null,
    Problem,
    column_blocks,
    geometry_of,
    parts_of,
)
from basis_probe.statistics.single_precision import deviations


@dataclasses.dataclass(frozen=True)
class Rotation(Null):
    """The activations in a basis turned by a Haar rotation, in the geometry that the group picks.

    Exact for any fixed activations where the group holds the rotations: if training is blind to the
    group, the trained model is as likely as any of its rotations. Behind a nonlinearity it credits
    the axes for being one-sided, and is not to be believed.

    Attributes:
        geometry: overrides the geometry that the group picks.
    """

    geometry: Geometry | None = None

    @property
    def name(self) -> str:
        return "rotation"

    @property
    def holds_fixed(self) -> str:
        return "the activations themselves; only the basis in which they are read is turned"

    def alternatives(self, problem: Problem, axes: Tensor | None = None) -> Alternatives:
        geometry = self.geometry or geometry_of(problem.group)
        x, dim = problem.x, problem.x.shape[1]
        read = torch.arange(dim) if axes is None else axes
        if geometry in (Geometry.WHITENED, Geometry.HEADS):
            return _WhitenedHeads(problem, _heads(problem.group, geometry, dim), read)
        if geometry is Geometry.PARTS:
            return _InParts(problem, read, self)
        if geometry is Geometry.PLANES:
            group = problem.group
            if not isinstance(group, Planes):
                raise ValueError("turning inside planes needs a group of planes")
            return _InPlanes(x, group.pairing, read)
        line = _fixes_line(problem.group, geometry)
        root = problem.centred.whitened_root if geometry is Geometry.RIDGE else None
        return _TurnedAxes(self.observed(problem), read, line=line, root=root)

    def observed(self, problem: Problem) -> Frame:
        geometry = self.geometry or geometry_of(problem.group)
        x, dim = problem.x, problem.x.shape[1]
        if geometry is Geometry.LINE:
            return Frame(x - x.mean(1, keepdim=True))
        if geometry is Geometry.RIDGE:
            return Frame(problem.centred.whitened.to(x.dtype))
        if geometry is Geometry.STANDARDISED:
            made = problem.made.get(geometry)
            if made is None:
                halves = halves_of(problem.halves)
                scaled = _standardised(x, [halves, (halves[1], halves[0])])
                made = problem.made[geometry] = Frame(scaled, parts=halves)
            return made
        if geometry in (Geometry.WHITENED, Geometry.HEADS):
            heads = _heads(problem.group, geometry, dim)
            return _WhitenedHeads(problem, heads, torch.arange(dim)).frame(None)
        if geometry is Geometry.PARTS:
            return _InParts(problem, torch.arange(dim), self).frame(None)
        return Frame(x)


@dataclasses.dataclass(frozen=True)
class TurnedAxes(Rotation):
    """The same where frame 0 is the activations as they are, apart from one factor for every axis.

    What the axes score of labels is then their own. No direction is mixed with another before the
    basis is turned: whitening is left out, and what lies along the all-ones direction stays.
    """

    def alternatives(self, problem: Problem, axes: Tensor | None = None) -> Alternatives:
        geometry = self.geometry or geometry_of(problem.group)
        dim = problem.x.shape[1]
        if geometry is Geometry.HEADS:
            read = torch.arange(dim) if axes is None else axes
            heads = _heads(problem.group, geometry, dim)
            return _WhitenedHeads(problem, heads, read, whiten=False)
        if geometry in (Geometry.WHITENED, Geometry.EUCLIDEAN, Geometry.STANDARDISED):
            read = torch.arange(problem.x.shape[1]) if axes is None else axes
            units = _deviations(problem.x) if geometry is Geometry.STANDARDISED else None
            return _TurnedAxes(Frame(problem.x), read, line=False, units=units)
        return Rotation.alternatives(self, problem, axes)

    def observed(self, problem: Problem) -> Frame:
        x = problem.x
        geometry = self.geometry or geometry_of(problem.group)
        if geometry is Geometry.PARTS:
            return _InParts(problem, torch.arange(x.shape[1]), self).frame(None)
        if geometry is not Geometry.STANDARDISED:
            return Frame(x)
        return Frame((x / _deviations(x)).to(x.dtype))


def _fixes_line(group: Group, geometry: Geometry) -> bool:
    return geometry is Geometry.LINE or (
        geometry is Geometry.RIDGE and geometry_of(group) is Geometry.LINE
    )


def _heads(group: Group, geometry: Geometry, dim: int) -> tuple[int, int, int]:
    """The size of the blocks that are whitened, their number, and the copies of each in a row."""
    if geometry is Geometry.WHITENED:
        return (dim, 1, 1)
    if not isinstance(group, Blocks):
        raise ValueError("turning inside heads needs a group of blocks")
    return (group.inner.dim, group.count, group.copies)


class _TurnedAxes(Alternatives):
    """Rows read along some axes, or along as many directions of a turned basis.

    Products are of rows about their mean: in single precision a large offset would drown the rest.

    Args:
        observed: the rows.
        axes: along which they are read.
        line: whether the all-ones direction stays where it is.
        units: of every axis, [dim]; None if it is read as it is.
        root: what turned rows are made of in place of the rows, where these are fewer than axes:
            they are this times an orthonormal frame, and lie about their mean.
    """

    def __init__(
        self,
        observed: Frame,
        axes: Tensor,
        *,
        line: bool,
        units: Tensor | None = None,
        root: Float[Tensor, "samples samples"] | None = None,
    ) -> None:
        self.observed, self.axes, self.units = observed, axes, units
        x = observed.post
        dim = x.shape[1]
        blocks = column_blocks(*x.shape)
        mean = torch.cat([x[:, some].mean(0, dtype=torch.float64) for some in blocks])
        self.centred = x - mean.to(x.dtype)
        # What rounding leaves of the mean is turned with the rows; only the offset is added again.
        self.mean = mean.to(x.dtype).double()
        self.offset = bool(self.mean.any())
        unit = torch.zeros(len(axes), dim, dtype=torch.float64)
        unit[torch.arange(len(axes)), axes.cpu()] = 1.0
        fixed = torch.ones(1, dim, dtype=torch.float64) if line else None
        self.turning = Turned(unit, fixed)
        self.root = None if root is None else root.to(x.dtype)
        self._kind = ("turned axes", dim, line, x.dtype, tuple(axes.tolist()))

    def frame(self, generator: torch.Generator | None) -> Frame:
        parts = self.observed.parts
        if generator is None:
            axes = self.axes.to(self.centred.device)
            x = self.observed.post.index_select(1, axes)
            return Frame(x if self.units is None else (x / self.units[axes]).to(x), parts=parts)
        return Frame(self._read(self._directions(generator)), parts=parts)

    def several(self, generator: torch.Generator, count: int) -> Sequence[Frame]:
        directions = torch.cat([self._directions(generator) for _ in range(count)])
        return [Frame(self._read(directions), parts=self.observed.parts, count=count)]

    def _directions(self, generator: torch.Generator) -> Tensor:
        """Turned axes: those of every site of this width, where the same axes are read."""

        def make() -> tuple[Tensor]:
            exact = self.centred.dtype is torch.float64
            drawn = self.turning.draw(generator, dtype=torch.float64 if exact else torch.float32)
            return (drawn.to(self.centred.dtype),)

        return remembered(generator, self._kind, make)[0]

    def _read(self, directions: Tensor) -> Tensor:
        directions = directions.to(self.centred)
        if self.root is not None:
            return self.root @ directions[:, : len(self.root)].T
        if self.units is not None:
            directions = (directions / self.units.to(self.mean)).to(self.centred)
        if not self.offset:
            return self.centred @ directions.T
        offset = (directions.to(self.mean) @ self.mean).to(self.centred)
        return torch.addmm(offset, self.centred, directions.T)


def _deviations(x: Tensor) -> Tensor:
    """The standard deviation of every axis, in float64; one for those that hardly vary."""
    std = deviations(x)
    # Of its own size: how large other axes are does not matter.
    return torch.where(std > x.abs().amax(0).double() * 1e-12, std, torch.ones_like(std))


def _standardised(x: Tensor, pairs: Sequence[tuple[Part, Part]]) -> Tensor:
    """Every axis of some rows in units of its standard deviation on others, pair by pair."""
    scaled = torch.empty_like(x)
    for own, other in pairs:
        units = _deviations(x[other]).to(x.dtype)
        scaled[own] = x[own] / units.clamp_min(torch.finfo(x.dtype).tiny)
    return scaled


def roots(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """S^(1/2) and S^(-1/2) on the span of a covariance."""
    values, vectors = torch.linalg.eigh(covariance)
    keep = values > values.max() * 1e-10
    root = torch.where(keep, values.clamp(min=0).sqrt(), torch.zeros_like(values))
    inverse = torch.where(keep, values.clamp(min=1e-300).rsqrt(), torch.zeros_like(values))
    return (vectors * root) @ vectors.T, (vectors * inverse) @ vectors.T


class _WhitenedHeads(Alternatives):
    """Heads of `size` features, `count` of them, each repeated `copies` times in a row.

    Every head is whitened symmetrically, x S^(-1/2): of all bases in which its features are
    uncorrelated and of unit variance, the one nearest to the given axes. That one is compared with
    its rotations. (Turning x S^(-1/2) Q S^(1/2), which keeps the covariance, is not exact: an
    untrained layer is as likely as x Q, and so is its whitened form, but not as that.)
    """

    def __init__(
        self, problem: Problem, heads: tuple[int, int, int], axes: Tensor, *, whiten: bool = True
    ) -> None:
        self.size, self.count, self.copies = heads
        key = (_WhitenedHeads, heads, whiten)
        if key not in problem.made:
            problem.made[key] = self._whitened(problem, whiten=whiten)
        white, self.white, parts = problem.made[key]
        self.parts = parts if whiten else None
        self.observed = white.index_select(1, axes.to(white.device))
        # Copies of a head are turned alike, and so are read together: the same directions of each.
        place = axes.cpu()
        self.head = place // (self.size * self.copies)
        self.copy = place // self.size % self.copies
        self.inside = place % self.size
        self.some = self._some(len(place))
        eye = torch.eye(self.size, dtype=torch.float64)
        self.turning: list[tuple[int, Tensor, Tensor, Turned]] = []
        for head in () if self.some else self.head.unique().tolist():
            here = torch.nonzero(self.head == head).flatten()
            wanted, back = self.inside[here].unique(return_inverse=True)
            self.turning.append((head, here, back, Turned(eye[wanted], None)))

    def _whitened(
        self, problem: Problem, *, whiten: bool
    ) -> tuple[Tensor, Tensor, tuple[Part, Part]]:
        """The rows with their heads whitened, one matrix of them for every head, and the halves."""
        x, parts = problem.x, halves_of(problem.halves)
        white = torch.empty_like(x) if whiten else x
        blocks, whitened = self._by_head(x), self._by_head(white)
        for own, other in (parts, parts[::-1]) if whiten else ():
            for head in range(self.count):
                fitted = blocks[other, head].double()
                centred = (fitted - fitted.mean(0)).reshape(-1, self.size)
                inverse = roots(centred.T @ centred / max(1, len(centred)))[1]
                whitened[own, head] = (blocks[own, head].double() @ inverse).to(x.dtype)
        # A product of views costs several times as much.
        order = "sample head copy dim -> head (sample copy) dim"
        return white, rearrange(whitened, order).contiguous(), parts

    def _some(self, axes: int) -> int:
        """Of how many features every copy of every head is read, if it is as many of each; else 0.

        Features stand in order, the same for all copies of a head.
        """
        some = axes // (self.count * self.copies)
        if some * self.count * self.copies != axes:
            return 0
        order = torch.arange(axes)
        own = self.inside.view(self.count, self.copies, some)
        alike = (own == own[:, :1]).all() and (own.diff() > 0).all()
        placed = torch.equal(self.head, order // (some * self.copies))
        placed &= torch.equal(self.copy, order // some % self.copies)
        return some if placed and bool(alike) else 0

    def frame(self, generator: torch.Generator | None) -> Frame:
        if generator is None:
            return Frame(self.observed, parts=self.parts)
        if self.some:
            return self.several(generator, 1)[0]
        post = torch.empty_like(self.observed)
        for head, here, back, turning in self.turning:
            directions = turning.draw(generator).to(self.observed)
            turned = (self.white[head] @ directions.T).view(len(post), self.copies, -1)
            post[:, here] = turned[:, self.copy[here], back]
        return Frame(post, parts=self.parts)

    def several(self, generator: torch.Generator, count: int) -> Sequence[Frame]:
        if not self.some:
            return super().several(generator, count)
        turns = [
            turned_axes(self.count, self.size, generator, some=self.some) for _ in range(count)
        ]
        turned = torch.bmm(self.white, torch.cat(turns, 1).to(self.observed).mT)
        post = rearrange(
            turned,
            "head (sample copy) (frame dim) -> sample (frame head copy dim)",
            copy=self.copies,
            frame=count,
        )
        return [Frame(post, parts=self.parts, count=count)]

    def _by_head(self, x: Tensor) -> Tensor:
        """A view of the rows with heads, their copies and their features apart."""
        return rearrange(
            x, "sample (head copy dim) -> sample head copy dim", head=self.count, copy=self.copies
        )


class _InParts(Alternatives):
    """Every part is turned by itself, as its own group has it; parts that change alike alike.

    Args:
        problem: the site.
        axes: along which its rows are read.
        null: how a part is turned.
    """

    def __init__(self, problem: Problem, axes: Tensor, null: Rotation) -> None:
        group = problem.group
        if not isinstance(group, Blocks | DirectSum):
            raise ValueError("turning inside parts needs a group of parts")
        self.halves = halves_of(problem.halves)
        self.x, self.width = problem.x, len(axes)
        self.parts: list[tuple[Tensor, Alternatives, int]] = []
        for own, part, number in parts_of(group):
            here = torch.nonzero((axes >= own.start) & (axes < own.stop)).flatten()
            if not len(here):
                continue
            alone = Problem(problem.x[:, own], part, problem.halves, examples=problem.examples)
            admitted = geometry_of(part) in (Geometry.EUCLIDEAN, Geometry.LINE)
            even = admitted and not isinstance(null, TurnedAxes)
            turning = dataclasses.replace(null, geometry=Geometry.RIDGE if even else None)
            self.parts.append((here, turning.alternatives(alone, axes[here] - own.start), number))

    def frame(self, generator: torch.Generator | None) -> Frame:
        post = torch.empty(len(self.x), self.width, dtype=self.x.dtype, device=self.x.device)
        crossed = False
        states: dict[int, Tensor] = {}
        for here, alternatives, number in self.parts:
            if generator is not None:
                generator.set_state(states.setdefault(number, generator.get_state()))
            frame = alternatives.frame(generator)
            post[:, here.to(post.device)] = frame.post.to(post)
            crossed |= frame.parts is not None
        return Frame(post, parts=self.halves if crossed else None)


class _InPlanes(Alternatives):
    """Every plane is brought to one size first, because the group scales planes."""

    def __init__(self, x: Tensor, pairing: str, axes: Tensor) -> None:
        self.axes = axes
        dim = x.shape[1]
        if pairing == "half":
            self.planes = slice(0, dim // 2), slice(dim // 2, 2 * (dim // 2))
        else:
            self.planes = slice(0, dim - dim % 2, 2), slice(1, dim, 2)
        self.x = x.clone()
        # Squares of very small or large values leave the range of single precision.
        a, b = (x[:, side].double() for side in self.planes)
        size = (a.square() + b.square()).mean(0).div(2).sqrt()
        size = torch.where(size > 0, size, torch.ones_like(size))
        for side, value in zip(self.planes, (a, b), strict=True):
            self.x[:, side] = (value / size).to(x.dtype)

    def frame(self, generator: torch.Generator | None) -> Frame:
        read = self.axes.to(self.x.device)
        if generator is None:
            return Frame(self.x.index_select(1, read))
        dim = self.x.shape[1]
        angle = 2 * torch.pi * torch.rand(dim // 2, generator=generator, dtype=torch.float64)
        cos, sin = angle.cos().to(self.x), angle.sin().to(self.x)
        post = self.x.clone()
        first, second = self.planes
        a, b = self.x[:, first], self.x[:, second]
        post[:, first], post[:, second] = a * cos - b * sin, a * sin + b * cos
        return Frame(post.index_select(1, read))
