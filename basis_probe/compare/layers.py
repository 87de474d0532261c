"""Stitching layers: linear maps from the axes of one network to those of another, within a group.

Each is initialised in closed form, and what is left to train keeps it within its group. A layer
acts along one axis of a tensor, the same at every position: on feature maps it is a 1 x 1
convolution.
"""

import abc
import math
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from basis_probe.compare.matching import assignment

# Columns and rows of a doubly stochastic matrix are brought to one by so many rounds.
_ROUNDS = 32


class StitchingLayer(nn.Module, abc.ABC):
    """A linear map along one axis, y = A x."""

    @abc.abstractmethod
    def weight(self) -> Float[Tensor, "dim_y dim_x"]:
        """A, as the layer uses it now, with gradients."""

    def forward(self, x: Tensor, axis: int = -1) -> Tensor:
        """The tensor with every vector v along an axis replaced by A v."""
        moved = x.movedim(axis, -1)
        return (moved @ self.weight().T.to(moved)).movedim(-1, axis)

    def penalty(self) -> Tensor | None:
        """What training adds to the loss; None for nothing."""
        return None

    def project(self) -> None:
        """Brings the weights back into their set after a step of training."""

    def harden(self) -> None:
        """Rounds a relaxed layer to an element of its group."""


@final
class Fixed(StitchingLayer):
    """A matrix in which nothing is trained.

    Args:
        matrix: the matrix.
    """

    def __init__(self, matrix: Float[Tensor, "dim_y dim_x"]) -> None:
        super().__init__()
        self.matrix: Tensor
        self.register_buffer("matrix", matrix.float())

    def weight(self) -> Tensor:
        return self.matrix


@final
class Linear(StitchingLayer):
    """Any matrix.

    Args:
        matrix: to begin with.
        sparsity: the weight of the sum of absolute values that training adds to the loss (lasso).
        threshold: smaller entries are set to zero in the end.
    """

    def __init__(
        self,
        matrix: Float[Tensor, "dim_y dim_x"],
        *,
        sparsity: float = 0.0,
        threshold: float = 0.0,
    ) -> None:
        super().__init__()
        self.entries = nn.Parameter(matrix.float().clone())
        self.sparsity, self.threshold = sparsity, threshold

    def weight(self) -> Tensor:
        return self.entries

    def penalty(self) -> Tensor | None:
        return self.sparsity * self.entries.abs().sum() if self.sparsity else None

    def harden(self) -> None:
        with torch.no_grad():
            self.entries[self.entries.abs() < self.threshold] = 0


@final
class ReducedRank(StitchingLayer):
    """A matrix of at most some rank, as a product of two.

    Args:
        matrix: to begin with; the nearest one of that rank is taken.
        rank: the rank.
    """

    def __init__(self, matrix: Float[Tensor, "dim_y dim_x"], rank: int) -> None:
        super().__init__()
        u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
        root = s[:rank].sqrt()
        self.out = nn.Parameter((u[:, :rank] * root).float())
        self.into = nn.Parameter((root[:, None] * v[:rank]).float())

    def weight(self) -> Tensor:
        return self.out @ self.into


@final
class Turn(StitchingLayer):
    """An orthogonal matrix Q exp(S), S skew and trained, or some rows or columns of one.

    Args:
        matrix: Q; a partial isometry where the widths differ.
    """

    def __init__(self, matrix: Float[Tensor, "dim_y dim_x"]) -> None:
        super().__init__()
        self.start: Tensor
        self.register_buffer("start", matrix.float())
        self.skew = nn.Parameter(torch.zeros(2 * matrix.shape[1:], dtype=torch.float32))

    def weight(self) -> Tensor:
        return self.start @ torch.linalg.matrix_exp(self.skew.triu(1) - self.skew.triu(1).T)


@final
class Monomial(StitchingLayer):
    """Axes that change places, each multiplied by a number that is trained and keeps its sign.

    Args:
        columns: for every axis of y the axis of x that comes to it; -1 for none.
        factors: what it is multiplied by; one where no scales are allowed.
        dim: how many axes x has.
        scales: True to train the factors.
    """

    def __init__(
        self,
        columns: Tensor,
        factors: Float[Tensor, " dim_y"],
        dim: int,
        *,
        scales: bool,
    ) -> None:
        super().__init__()
        self.columns: Tensor
        self.signs: Tensor
        self.register_buffer("columns", columns)
        self.register_buffer("signs", factors.float().sign())
        places = torch.zeros(len(columns), dim, dtype=torch.float32)
        used = columns >= 0
        places[used.nonzero().flatten(), columns[used]] = 1
        self.places: Tensor
        self.register_buffer("places", places)
        logs = factors.abs().clamp(min=1e-30).log().float()
        self.logs = nn.Parameter(logs, requires_grad=scales)

    def forward(self, x: Tensor, axis: int = -1) -> Tensor:
        # An axis that nothing comes to is the first, times zero.
        factors = (self.signs * self.logs.exp()).where(self.columns >= 0, 0.0)
        made = x.movedim(axis, -1)[..., self.columns.clamp(min=0)]
        return (made * factors.to(made)).movedim(-1, axis)

    def weight(self) -> Tensor:
        return self.places * (self.signs * self.logs.exp())[:, None]


@final
class Birkhoff(StitchingLayer):
    """A doubly stochastic matrix, trained by projected gradients, that ends as an order of axes.

    After every step negative entries are set to zero and rows and columns are brought to one in
    turn; the loss rewards a large norm, which the orders of axes have among these matrices. In the
    end the nearest order is taken.

    Args:
        dim: how many axes each of the two has.
        scales: True to train a positive factor for every axis of x, too.
        reward: the weight of the norm.
        generator: draws the matrix to begin with.
        start: to begin with this one instead.

    Source: Godfrey et al. 2022, section 4; projection by Sinkhorn and Knopp (1967).
    """

    def __init__(
        self,
        dim: int,
        *,
        scales: bool,
        reward: float,
        generator: torch.Generator,
        start: Float[Tensor, "dim dim"] | None = None,
    ) -> None:
        super().__init__()
        drawn = torch.rand(dim, dim, generator=generator, dtype=torch.float32)
        self.mixing = nn.Parameter(sinkhorn(drawn if start is None else start.float()))
        self.factors = nn.Parameter(torch.ones(dim, dtype=torch.float32), requires_grad=scales)
        self.reward, self.hard = reward, False

    def weight(self) -> Tensor:
        return self.mixing * self.factors

    def penalty(self) -> Tensor | None:
        return None if self.hard else -self.reward * self.mixing.norm()

    def project(self) -> None:
        with torch.no_grad():
            self.factors.clamp_(min=1e-6)
            if not self.hard:
                self.mixing.copy_(sinkhorn(self.mixing.clamp(min=0)))

    def harden(self) -> None:
        with torch.no_grad():
            rows, columns = assignment(self.mixing)
            self.mixing.zero_()
            self.mixing[rows, columns] = 1
        self.mixing.requires_grad_(False)
        self.hard = True


def sinkhorn(matrix: Float[Tensor, "dim dim"]) -> Float[Tensor, "dim dim"]:
    """A matrix of non-negative numbers with rows and columns brought to sum to one in turn.

    Example:
        >>> made = sinkhorn(torch.tensor([[1.0, 2.0], [3.0, 1.0]]))
        >>> bool((made.sum(0) - 1).abs().max() < 1e-5)
        True
    """
    for _ in range(_ROUNDS):
        for axis in (1, 0):
            total = matrix.sum(axis, keepdim=True)
            matrix = matrix / torch.where(total == 0, torch.ones_like(total), total)
    return matrix


def condition(matrix: Float[Tensor, "dim_y dim_x"]) -> float:
    """The largest singular value over the smallest; infinity for a singular matrix."""
    values = torch.linalg.svdvals(matrix.double())
    return float(values[0] / values[-1]) if float(values[-1]) > 0 else math.inf
