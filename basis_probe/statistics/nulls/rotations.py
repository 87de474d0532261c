"""The activations themselves, read in a basis that is turned."""

import dataclasses
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

from basis_probe.algebra.groups import Blocks, DirectSum, Group, Planes
from basis_probe.algebra.haar import Turned, turned_axes
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
            return _WhitenedHeads(x, problem.halves, _heads(problem.group, geometry, dim), read)
        if geometry is Geometry.PARTS:
            return _InParts(problem, read, self)
        if geometry is Geometry.PLANES:
            group = problem.group
            if not isinstance(group, Planes):
                raise ValueError("turning inside planes needs a group of planes")
            return _InPlanes(x, group.pairing, read)
        return _TurnedAxes(self.observed(problem), read, line=_fixes_line(problem.group, geometry))

    def observed(self, problem: Problem) -> Frame:
        geometry = self.geometry or geometry_of(problem.group)
        x, dim = problem.x, problem.x.shape[1]
        if geometry is Geometry.LINE:
            return Frame(x - x.mean(1, keepdim=True))
        if geometry is Geometry.RIDGE:
            return Frame(problem.centred.whitened.to(x.dtype))
        if geometry is Geometry.STANDARDISED:
            halves = (problem.halves == 0, problem.halves == 1)
            return Frame(_standardised(x, [halves, (halves[1], halves[0])]), parts=halves)
        if geometry in (Geometry.WHITENED, Geometry.HEADS):
            heads = _heads(problem.group, geometry, dim)
            return _WhitenedHeads(x, problem.halves, heads, torch.arange(dim)).frame(None)
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
        x, dim = problem.x, problem.x.shape[1]
        if geometry is Geometry.HEADS:
            read = torch.arange(dim) if axes is None else axes
            heads = _heads(problem.group, geometry, dim)
            return _WhitenedHeads(x, problem.halves, heads, read, whiten=False)
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
    """

    def __init__(
        self, observed: Frame, axes: Tensor, *, line: bool, units: Tensor | None = None
    ) -> None:
        self.observed, self.axes, self.units = observed, axes, units
        x = observed.post
        dim = x.shape[1]
        blocks = column_blocks(*x.shape)
        mean = torch.cat([x[:, some].mean(0, dtype=torch.float64) for some in blocks])
        self.centred = x - mean.to(x.dtype)
        # What rounding leaves of the mean is turned with the rows; only the offset is added again.
        self.mean = mean.to(x.dtype).double()
        unit = torch.zeros(len(axes), dim, dtype=torch.float64)
        unit[torch.arange(len(axes)), axes.cpu()] = 1.0
        fixed = torch.ones(1, dim, dtype=torch.float64) if line else None
        self.turning = Turned(unit, fixed)

    def frame(self, generator: torch.Generator | None) -> Frame:
        parts = self.observed.parts
        if generator is None:
            axes = self.axes.to(self.centred.device)
            x = self.observed.post.index_select(1, axes)
            return Frame(x if self.units is None else (x / self.units[axes]).to(x), parts=parts)
        directions = self.turning.draw(generator).to(self.mean)
        if self.units is not None:
            directions = directions / self.units.to(self.mean)
        offset = (directions @ self.mean).to(self.centred)
        turned = torch.addmm(offset, self.centred, directions.T.to(self.centred))
        return Frame(turned, parts=parts)


def _deviations(x: Tensor) -> Tensor:
    """The standard deviation of every axis, in float64; one for those that hardly vary."""
    found: list[Tensor] = []
    for block in column_blocks(*x.shape):
        some = x[:, block].double()
        std = some.std(0, correction=0)
        # Of its own size: how large other axes are does not matter.
        found.append(torch.where(std > some.abs().amax(0) * 1e-12, std, torch.ones_like(std)))
    return torch.cat(found)


def _standardised(x: Tensor, pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Every axis of some rows in units of its standard deviation on others, pair by pair."""
    scaled = torch.empty_like(x)
    for own, other in pairs:
        scaled[own] = (x[own] / _deviations(x[other])).to(x.dtype)
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
        self,
        x: Tensor,
        halves: Tensor,
        heads: tuple[int, int, int],
        axes: Tensor,
        *,
        whiten: bool = True,
    ) -> None:
        self.size, self.count, self.copies = heads
        parts = (halves == 0, halves == 1)
        self.parts = parts if whiten else None
        white = torch.empty_like(x) if whiten else x
        blocks, whitened = self._by_head(x), self._by_head(white)
        for own, other in (parts, parts[::-1]) if whiten else ():
            for head in range(self.count):
                fitted = blocks[other, head].double()
                centred = (fitted - fitted.mean(0)).reshape(-1, self.size)
                inverse = roots(centred.T @ centred / max(1, len(centred)))[1]
                whitened[own, head] = (blocks[own, head].double() @ inverse).to(x.dtype)
        # One matrix of rows for each head: a product of views costs several times as much.
        self.white = rearrange(
            whitened, "sample head copy dim -> head (sample copy) dim"
        ).contiguous()
        self.whole = torch.equal(axes.cpu(), torch.arange(x.shape[1]))
        self.observed = white.index_select(1, axes.to(x.device))
        # Copies of a head are turned alike, and so are read together: the same directions of each.
        place = axes.cpu()
        self.head = place // (self.size * self.copies)
        self.copy = place // self.size % self.copies
        self.inside = place % self.size
        eye = torch.eye(self.size, dtype=torch.float64)
        self.turning: list[tuple[int, Tensor, Tensor, Turned]] = []
        for head in self.head.unique().tolist():
            here = torch.nonzero(self.head == head).flatten()
            wanted, back = self.inside[here].unique(return_inverse=True)
            self.turning.append((head, here, back, Turned(eye[wanted], None)))

    def frame(self, generator: torch.Generator | None) -> Frame:
        if generator is None:
            return Frame(self.observed, parts=self.parts)
        if self.whole:
            turns = turned_axes(self.count, self.size, generator).to(self.observed)
            turned = torch.bmm(self.white, turns.mT)
            post = rearrange(
                turned, "head (sample copy) dim -> sample (head copy dim)", copy=self.copies
            )
            return Frame(post, parts=self.parts)
        post = torch.empty_like(self.observed)
        for head, here, back, turning in self.turning:
            directions = turning.draw(generator).to(self.observed)
            turned = (self.white[head] @ directions.T).view(len(post), self.copies, -1)
            post[:, here] = turned[:, self.copy[here], back]
        return Frame(post, parts=self.parts)

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
        self.halves = (problem.halves == 0, problem.halves == 1)
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
        a, b = (x[:, side] for side in self.planes)
        size = (a.square() + b.square()).mean(0).div(2).sqrt()
        size = torch.where(size > 0, size, torch.ones_like(size))
        for side in self.planes:
            self.x[:, side] /= size

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
