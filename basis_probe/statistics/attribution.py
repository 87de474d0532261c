"""How few axes carry what a layer does to a loss: activation times gradient, on turned axes too.

The attribution of an axis at a sample is its activation times the derivative of the loss by it.
Whether few of them carry most of a sample's is asked of the axes, and of alternatives: the same
rows and gradients in turned bases; or neurons that point elsewhere before a map that is fitted to
what the layer wrote, and through which the gradient goes.
"""

import abc
import dataclasses
import math

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from basis_probe.algebra.groups import Blocks, DirectSum, Planes
from basis_probe.algebra.haar import haar, haar_fixing, turned_axes
from basis_probe.statistics.nulls.frames import (
    Alternatives,
    Geometry,
    Problem,
    geometry_of,
    parts_of,
)
from basis_probe.statistics.nulls.rotations import roots

SHARE = 0.9
"""Of so much of a sample's attribution it is asked how many axes carry it."""


@dataclasses.dataclass(frozen=True, eq=False)
class Concentration:
    """How concentrated attributions are on axes; all means over samples that have any.

    Attributes:
        gini: of a sample's absolute attributions across axes: 0 alike, near 1 if one has all.
        share: the part of the axes that carries nine tenths of a sample's.
        participation: (sum |a|)^2 / sum a^2 over the number of axes: 1 alike, 1/n if one has all.
        per_axis: [dim], the axis' part of a sample's, 1 in sum.
        share_on_average: as `share`, of `per_axis`: the axes that carry most of all samples.
        samples: how many samples have an attribution.
    """

    gini: float
    share: float
    participation: float
    per_axis: Float64[Tensor, " dim"]
    share_on_average: float
    samples: int


def concentration(
    x: Float[Tensor, "samples dim"], gradient: Float[Tensor, "samples dim"]
) -> Concentration:
    """How concentrated activation times gradient is on axes.

    It stays the same when axes are rescaled, reversed or permuted and gradients change along.

    Args:
        x: the activations, [samples, dim].
        gradient: the derivatives of the loss by them, of any scale in each sample, [samples, dim].

    Example:
        >>> one = concentration(torch.eye(4), torch.ones(4, 4))
        >>> one.gini, one.share, one.participation, one.share_on_average
        (0.75, 0.25, 0.25, 1.0)
    """
    size = (x.double() * gradient.double()).abs()
    size = size / size.amax(1, keepdim=True).clamp(min=1e-300)
    total = size.sum(1)
    size = size[total > 0] / total[total > 0, None]
    count, dim = size.shape
    if not count:
        nothing = torch.full((dim,), math.nan, dtype=torch.float64)
        return Concentration(math.nan, math.nan, math.nan, nothing, math.nan, 0)
    falling = size.sort(1, descending=True).values
    place = torch.arange(1, dim + 1, dtype=torch.float64, device=size.device)
    gini = ((dim + 1 - 2 * place) * falling).sum(1) / dim
    per_axis = size.mean(0)
    return Concentration(
        gini=float(gini.mean()),
        share=float(_share(falling).mean()),
        participation=float((1 / size.square().sum(1)).mean() / dim),
        per_axis=per_axis.cpu(),
        share_on_average=float(_share(per_axis.sort(descending=True).values[None])[0]),
        samples=count,
    )


def _share(falling: Tensor) -> Tensor:
    """[rows], the part of the entries, which fall and sum to 1, that makes up `SHARE`."""
    # Nine tenths reached but for rounding are reached.
    missing = falling.cumsum(1) < SHARE * (1 - 1e-12)
    return (missing.sum(1) + 1).float() / falling.shape[1]


class Attributed(abc.ABC):
    """Activations and gradients in the observed frame and in alternatives."""

    @abc.abstractmethod
    def frame(self, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """The observed frame for None, else one drawn with the generator; [samples, dim] each."""


class Refitted(Attributed):
    """Neurons that point elsewhere, a map behind them fitted to what the layer wrote.

    Whatever linear maps read the neurons, the best fit to what they wrote is them behind the best
    fit to the neurons themselves, x ~ M x' + c; so the gradient by x' is M' times that by x. The
    fit is a ridge regression of standardised neurons, a tenth of their number over that of the
    rows.

    Args:
        alternatives: of the neurons, along all axes.
        x: the neurons, [samples, dim].
        gradient: [samples, dim].
    """

    def __init__(self, alternatives: Alternatives, x: Tensor, gradient: Tensor) -> None:
        self.alternatives, self.x, self.gradient = alternatives, x, gradient.double()
        self.centred = x.double() - x.double().mean(0)
        samples, dim = x.shape
        self.ridge = min(1.0, max(1e-3, 0.1 * dim / samples))
        # Of every row's gradient, what it says of each of the others, where that is the smaller.
        self.across = self.gradient @ self.centred.T if samples < dim else None

    def frame(self, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        if generator is None:
            return self.x, self.gradient
        other = self.alternatives.frame(generator).post.double()
        return other, self._through(other)

    def _through(self, other: Tensor) -> Tensor:
        samples, dim = other.shape
        away = other - other.mean(0)
        units = away.square().mean(0).sqrt()
        units = torch.where(units > other.abs().amax(0) * 1e-7, units, torch.inf)
        z = away / units
        if self.across is not None:
            kernel = z @ z.T + self.ridge * samples * torch.eye(samples, dtype=z.dtype).to(z)
            return self.across @ torch.cholesky_solve(z, torch.linalg.cholesky(kernel)) / units
        gram = z.T @ z + self.ridge * samples * torch.eye(dim, dtype=z.dtype).to(z)
        through = self.gradient @ (self.centred.T @ z)
        return torch.cholesky_solve(through.T, torch.linalg.cholesky(gram)).T / units


class TurnedAlike(Attributed):
    """Activations in a turned basis, and gradients in the one that belongs to it.

    Exact for any rows where the group holds the turns and training is blind to it. Where the group
    holds every invertible map activations are whitened and gradients changed by the inverse.

    Args:
        problem: the site, whose group says what is turned.
        gradient: [samples, dim].
        geometry: in which the axes are turned.
    """

    def __init__(self, problem: Problem, gradient: Tensor, geometry: Geometry) -> None:
        x, gradient = problem.x.double(), gradient.double()
        self.geometry, self.group = geometry, problem.group
        self.parts: list[tuple[TurnedAlike, int]] = []
        if geometry is Geometry.PARTS and isinstance(self.group, Blocks | DirectSum):
            for own, part, number in parts_of(self.group):
                alone = Problem(x[:, own], part, problem.halves)
                made = TurnedAlike(alone, gradient[:, own], geometry_of(part))
                self.parts.append((made, number))
        dim = x.shape[1]
        self.blocks: tuple[int, int, int] = (dim, 1, 1)
        if geometry is Geometry.LINE:
            x = x - x.mean(1, keepdim=True)
            gradient = gradient - gradient.mean(1, keepdim=True)
        elif geometry is Geometry.STANDARDISED:
            units = x.std(0, correction=0)
            units = torch.where(units > x.abs().amax(0) * 1e-12, units, torch.ones_like(units))
            x, gradient = x / units, gradient * units
        elif geometry is Geometry.PLANES:
            x, gradient = self._even(x, gradient)
        elif geometry in (Geometry.WHITENED, Geometry.HEADS):
            if isinstance(self.group, Blocks):
                self.blocks = (self.group.inner.dim, self.group.count, self.group.copies)
            x, gradient = self._whitened(x, gradient)
        self.x, self.gradient = x, gradient

    def frame(self, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        if self.parts:
            states: dict[int, Tensor] = {}
            several: list[tuple[Tensor, Tensor]] = []
            for part, number in self.parts:
                if generator is not None:
                    generator.set_state(states.setdefault(number, generator.get_state()))
                several.append(part.frame(generator))
            x, gradient = zip(*several, strict=True)
            return torch.cat(x, 1), torch.cat(gradient, 1)
        if generator is None:
            return self.x, self.gradient
        dim = self.x.shape[1]
        if self.geometry is Geometry.PLANES:
            angle = 2 * torch.pi * torch.rand(dim // 2, generator=generator, dtype=torch.float64)
            return self._in_planes(self.x, angle), self._in_planes(self.gradient, angle)
        if self.geometry is Geometry.LINE:
            turn = haar_fixing(torch.ones(1, dim, dtype=torch.float64), generator).to(self.x)
        elif self.blocks[1] == 1 and self.blocks[2] == 1:
            turn = haar(dim, generator).to(self.x)
        else:
            size, count, _ = self.blocks
            turns = turned_axes(count, size, generator).to(self.x)
            return self._by_head(self.x, turns), self._by_head(self.gradient, turns)
        return self.x @ turn.T, self.gradient @ turn.T

    def _by_head(self, rows: Tensor, matrices: Tensor) -> Tensor:
        """Every head's rows times its own matrix, transposed; copies of a head alike."""
        size, count, copies = self.blocks
        apart = rows.view(len(rows), count, copies, size)
        return torch.einsum("shcd,hed->shce", apart, matrices).reshape(rows.shape)

    def _whitened(self, x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        size, count, _ = self.blocks
        apart = x.view(len(x), count, -1, size)
        centred = apart - apart.mean(0)
        pairs: list[tuple[Tensor, Tensor]] = []
        for head in range(count):
            rows = centred[:, head].reshape(-1, size)
            pairs.append(roots(rows.T @ rows / max(1, len(rows))))
        root = torch.stack([pair[0] for pair in pairs])
        inverse = torch.stack([pair[1] for pair in pairs])
        return self._by_head(x, inverse), self._by_head(gradient, root)

    def _planes(self, dim: int) -> tuple[slice, slice]:
        assert isinstance(self.group, Planes)
        if self.group.pairing == "half":
            return slice(0, dim // 2), slice(dim // 2, 2 * (dim // 2))
        return slice(0, dim - dim % 2, 2), slice(1, dim, 2)

    def _even(self, x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Every plane of one size: the group scales planes."""
        x, gradient = x.clone(), gradient.clone()
        first, second = self._planes(x.shape[1])
        size = (x[:, first].square() + x[:, second].square()).mean(0).div(2).sqrt()
        size = torch.where(size > 0, size, torch.ones_like(size))
        for side in (first, second):
            x[:, side] /= size
            gradient[:, side] *= size
        return x, gradient

    def _in_planes(self, rows: Tensor, angle: Tensor) -> Tensor:
        first, second = self._planes(rows.shape[1])
        cos, sin = angle.cos().to(rows), angle.sin().to(rows)
        turned = rows.clone()
        a, b = rows[:, first], rows[:, second]
        turned[:, first], turned[:, second] = a * cos - b * sin, a * sin + b * cos
        return turned
