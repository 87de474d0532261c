"""The trace of the best signed permutation between the axes of networks, and what chance gives.

Where the group of a site holds rotations, two networks are brought together by the best rotation R,
the orthogonal factor of X^T Y. If nothing ties a network to its axes, Y Q is as likely as Y for
every rotation Q, and R Q as likely as R: the best rotation is uniform, at any number of axes and
samples. Axes are the same where R is near a signed permutation, which its trace tells; eigenvalues
of R, or their spacings, are those of other rotations too and cannot see axes at all.

Neurons are not rotated to fit. Their correlations before the nonlinearity are matched one to one;
alternatives are the same neurons turned among themselves in one network, R W in place of W, fitted
anew. Gaussian weights make them as likely.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from basis_probe.algebra.haar import haar, haar_fixing

COMPARED = 256
"""So many axes of each network are turned at most, drawn at random: a turn of some is a turn."""


@dataclasses.dataclass(frozen=True, eq=False)
class Turn:
    """A rotation of some of the axes of a network; the others stay.

    Attributes:
        axes: which, [turned].
        matrix: [turned, turned], orthogonal; None for no turn.
    """

    axes: Int64[Tensor, " turned"]
    matrix: Float64[Tensor, "turned turned"] | None = None

    def columns(self, matrix: Tensor) -> Tensor:
        """The columns of a matrix at the turned axes, turned."""
        some = matrix[:, self.axes]
        return some if self.matrix is None else some @ self.matrix

    def rows(self, matrix: Tensor) -> Tensor:
        """A matrix with its rows turned, the others as they are."""
        if self.matrix is None:
            return matrix
        turned = matrix.clone()
        turned[self.axes] = self.matrix.T @ matrix[self.axes]
        return turned


class Turns(abc.ABC):
    """Which turns of a site's axes are as likely as none."""

    def __init__(self, axes: Int64[Tensor, " turned"]) -> None:
        self.axes = axes

    @abc.abstractmethod
    def draw(self, generator: torch.Generator) -> Turn:
        """A uniformly random one."""


class AllAxes(Turns):
    """Rotations of all axes, or of those that leave the all-ones direction where it is.

    Args:
        dim: the number of axes.
        line: whether the all-ones direction stays.
        seed: draws the axes where they are many.
    """

    def __init__(self, dim: int, *, line: bool = False, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        super().__init__(torch.randperm(dim, generator=generator)[:COMPARED].sort().values)
        self.line = line

    def draw(self, generator: torch.Generator) -> Turn:
        count = len(self.axes)
        if self.line:
            ones = torch.ones(1, count, dtype=torch.float64)
            return Turn(self.axes, haar_fixing(ones, generator))
        return Turn(self.axes, haar(count, generator))


class InBlocks(Turns):
    """Rotations inside blocks of axes, as of heads or planes.

    Args:
        blocks: the axes of each block, [block, copies, size]; copies are turned alike.
        reflections: False for turns of planes alone.
    """

    def __init__(self, blocks: Int64[Tensor, "block copy size"], *, reflections: bool) -> None:
        kept = blocks[: max(1, COMPARED // blocks[0].numel())]
        super().__init__(kept.flatten())
        self.shape, self.reflections = kept.shape, reflections

    def draw(self, generator: torch.Generator) -> Turn:
        count, copies, size = self.shape
        parts: list[Tensor] = []
        for _ in range(count):
            turn = haar(size, generator)
            if not self.reflections and float(torch.linalg.det(turn)) < 0:
                turn = turn * torch.tensor([-1.0] + [1.0] * (size - 1), dtype=torch.float64)
            parts += [turn] * copies
        return Turn(self.axes, torch.block_diag(*parts))


@dataclasses.dataclass(frozen=True, eq=False)
class Side:
    """The samples of one network at a site.

    Attributes:
        x: [samples, dim], as the axes are compared: about their mean.
        turns: what is as likely as no turn.
    """

    x: Float64[Tensor, "samples dim"]
    turns: Turns


@dataclasses.dataclass(frozen=True)
class Fit:
    """How two networks are brought together.

    Attributes:
        rotated: by the best rotation; else axes are matched as they are.
        line: whether that leaves the all-ones direction where it is.
        signs: whether an axis may be matched with another one reversed.
        seed: draws what of the rotation the samples do not say.
    """

    rotated: bool
    line: bool
    signs: bool
    seed: int


@dataclasses.dataclass(frozen=True, eq=False)
class Between:
    """Products between two networks over some samples.

    Attributes:
        cross: [dim, dim], X^T Y.
        first, second: X^T X and Y^T Y.
        rotation: the best rotation from X to Y; None where axes are matched as they are.
        signs: whether an axis may be matched with another one reversed.
    """

    cross: Float64[Tensor, "dim dim"]
    first: Float64[Tensor, "dim dim"]
    second: Float64[Tensor, "dim dim"]
    rotation: Float64[Tensor, "dim dim"] | None
    signs: bool

    def shared(self, one: Turn, other: Turn) -> float:
        """The mean |cosine| or correlation of the best matching, the networks turned."""
        if self.rotation is not None:
            values = other.columns(one.rows(self.rotation))
        else:
            values = self._correlations(one, other)
        return matched(values.abs() if self.signs else values)

    def convergence(self, one: Turn, other: Turn) -> float:
        """The mean over the second's axes of the largest |correlation| with one of the first's."""
        return float(self._correlations(one, other).abs().amax(0).mean())

    def _correlations(self, one: Turn, other: Turn) -> Tensor:
        cross = other.columns(one.rows(self.cross))
        rows = self.first.diagonal().clone()
        rows[one.axes] = _variances(self.first, one)
        size = torch.outer(rows, _variances(self.second, other)).clamp(min=0).sqrt()
        return torch.where(size > 0, cross / torch.where(size > 0, size, 1.0), 0.0)


def _variances(products: Tensor, turn: Turn) -> Tensor:
    some = products[turn.axes][:, turn.axes]
    if turn.matrix is None:
        return some.diagonal()
    return ((turn.matrix.T @ some) * turn.matrix.T).sum(1)


def matched(values: Float64[Tensor, "row column"]) -> float:
    """The mean over columns of their values in the best assignment to different rows.

    Example:
        >>> round(matched(torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.0, 0.0]]).double()), 6)
        0.85
    """
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(values.numpy(), maximize=True)
    return float(values[torch.from_numpy(rows), torch.from_numpy(columns)].mean())


def between(
    x: Float64[Tensor, "samples dim"], y: Float64[Tensor, "samples dim"], fit: Fit
) -> Between:
    """The products between two networks, and the best rotation where that is asked for.

    Args:
        x: the samples of one, about their mean.
        y: the same samples of the other.
        fit: how they are brought together.
    """
    cross = x.T @ y
    rotation = polar(cross, line=fit.line, seed=fit.seed) if fit.rotated else None
    return Between(cross, x.T @ x, y.T @ y, rotation, fit.signs)


def polar(
    cross: Float64[Tensor, "dim dim"], *, line: bool, seed: int
) -> Float64[Tensor, "dim dim"]:
    """The orthogonal factor of a matrix; directions that it says nothing of go to random ones.

    Random, because any rule would choose by the axes. With `line` of what lies across the all-ones
    direction, which is left out.

    Example:
        >>> turn = haar(5, torch.Generator().manual_seed(0))
        >>> torch.allclose(polar(3 * turn, line=False, seed=0), turn)
        True
    """
    dim = len(cross)
    if line:
        cross = cross - cross.mean(0)
        cross = cross - cross.mean(1, keepdim=True)
    left, sizes, right = torch.linalg.svd(cross)
    rank = int((sizes > max(float(sizes[0]), 1e-300) * dim * 1e-13).sum())
    found = left[:, :rank] @ right[:rank]
    missing = dim - rank - line
    if missing <= 0:
        return found
    ones = torch.full((dim, 1), 1 / math.sqrt(dim), dtype=torch.float64)[:, :line]
    spans = (torch.cat([left[:, :rank], ones], 1), torch.cat([right[:rank].T, ones], 1))
    rest = [torch.linalg.qr(span, mode="complete").Q[:, rank + line :] for span in spans]
    turn = haar(missing, torch.Generator().manual_seed(seed))
    return found + rest[0] @ turn @ rest[1].T


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
    """What networks share, and what chance gives: of every pair, and of their mean at last.

    Attributes:
        shared, convergence: [1 + frames] of every pair, what was observed first.
    """

    shared: list[Tensor]
    convergence: list[Tensor]


def compare(
    sides: Sequence[Side], pairs: Sequence[tuple[int, int, Between]], *, frames: int, seed: int
) -> Found:
    """Every pair of networks as they are, and with each network turned by itself.

    Args:
        sides: the networks.
        pairs: which, and the products between them.
        frames: how many alternatives.
        seed: seeds them.
    """
    generator = torch.Generator().manual_seed(seed)
    shared: list[list[float]] = [[] for _ in pairs]
    convergence: list[list[float]] = [[] for _ in pairs]
    for frame in range(frames + 1):
        # The first one stays: turning all others is enough, and itself a group of turns.
        turns = [
            side.turns.draw(generator) if frame and place else Turn(side.turns.axes)
            for place, side in enumerate(sides)
        ]
        for place, (one, other, products) in enumerate(pairs):
            shared[place].append(products.shared(turns[one], turns[other]))
            convergence[place].append(products.convergence(turns[one], turns[other]))
    tables = [[torch.tensor(v, dtype=torch.float64) for v in t] for t in (shared, convergence)]
    if len(pairs) > 1:
        for table in tables:
            table.append(torch.stack(table).mean(0))
    return Found(*tables)


def interval(
    sides: tuple[Side, Side], groups: Int64[Tensor, " samples"], observed: float, fit: Fit
) -> tuple[float, float]:
    """95 % interval of what two networks share over other examples, by leaving some out in turn.

    Args:
        sides: the networks.
        groups: to which part of the examples every sample belongs.
        observed: what they share on all samples.
        fit: how they are brought together.

    Returns:
        The interval, inside [0, 1]; NaN where there are fewer than four parts.

    Source: B. Efron and C. Stein (1981), The jackknife estimate of variance.
    """
    names = groups.unique()
    if len(names) < 4:
        return math.nan, math.nan
    turns = [Turn(side.turns.axes) for side in sides]
    values: list[float] = []
    for name in names:
        x, y = (side.x[groups != name] for side in sides)
        products = between(x - x.mean(0), y - y.mean(0), fit)
        values.append(products.shared(turns[0], turns[1]))
    from scipy.special import stdtrit

    several = torch.tensor(values, dtype=torch.float64)
    count = len(names)
    error = math.sqrt((count - 1) / count * float((several - several.mean()).square().sum()))
    reach = float(stdtrit(count - 1, 0.975)) * error
    return max(0.0, observed - reach), min(1.0, observed + reach)
