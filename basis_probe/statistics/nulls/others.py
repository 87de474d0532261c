"""Nulls that are known to mislead, or that ask something else: offered, and marked."""

import abc
import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from basis_probe.algebra.haar import Turned
from basis_probe.statistics.nulls.frames import Alternatives, Frame, Null, Problem
from basis_probe.statistics.nulls.neurons import Reach, reach_of, read_along
from basis_probe.statistics.nulls.rotations import roots


@dataclasses.dataclass(frozen=True)
class CovariancePreserving(Null):
    """The activations turned so that their covariance stays, and bent again behind a nonlinearity.

    z' = m + (z - m) S^(-1/2) Q S^(1/2), with S fitted on the other half of the rows. It holds its
    level on Gaussian data of any covariance, and fails on real untrained networks, whose data have
    a structure of their own that it turns away.
    """

    approximate: ClassVar[bool] = True
    pools_directions: ClassVar[bool] = False

    @property
    def name(self) -> str:
        return "covariance-preserving"

    @property
    def holds_fixed(self) -> str:
        return (
            "the mean and the covariance of the axes, before the nonlinearity where there is one; "
            "the structure of the data themselves is turned away, so that even untrained networks "
            "differ from it"
        )

    def alternatives(self, problem: Problem, axes: Tensor | None = None) -> Alternatives:
        return _SameCovariance(problem, axes)


class _Bending(Alternatives):
    """Pre-activations of some axes made anew in every frame, then bent; or activations, unbent."""

    def __init__(self, problem: Problem, axes: Tensor | None) -> None:
        self.function = problem.nonlinearity if problem.pre is not None else None
        self.source = problem.x if problem.pre is None else problem.pre
        self.axes = axes
        self.reach = Reach.NARROW
        if axes is not None and self.function is not None:
            self.reach = reach_of(self.function, self.source, axes)
        everything = torch.arange(self.source.shape[1])
        made = everything if axes is None or self.reach is not Reach.NARROW else axes
        self.made = made.to(self.source.device)
        self.observed = self.source.index_select(1, self.made)

    @abc.abstractmethod
    def drawn(self, generator: torch.Generator) -> Tensor:
        """The axes that are made, in a new frame."""

    def frame(self, generator: torch.Generator | None) -> Frame:
        values = self.observed
        if generator is not None:
            values = self.drawn(generator).to(self.source.dtype)
        if self.function is None:
            return Frame(values)
        return read_along(self.function(values), values, self.axes, self.reach)


class _SameCovariance(_Bending):
    def __init__(self, problem: Problem, axes: Tensor | None) -> None:
        super().__init__(problem, axes)
        exact = self.source.double()
        self.parts = (problem.halves == 0, problem.halves == 1)
        self.white = torch.empty_like(exact)
        self.means: list[Tensor] = []
        vectors: list[Tensor] = []
        for own, other in (self.parts, self.parts[::-1]):
            mean = exact[other].mean(0)
            centred = exact[other] - mean
            root, inverse = roots(centred.T @ centred / max(1, len(centred)))
            self.white[own] = (exact[own] - mean) @ inverse
            self.means.append(mean[self.made])
            vectors.append(root[self.made].cpu())
        self.turning = Turned(torch.cat(vectors), None)

    def drawn(self, generator: torch.Generator) -> Tensor:
        made = torch.empty_like(self.observed, dtype=torch.float64)
        several = self.turning.draw(generator).to(self.white).chunk(2)
        for own, mean, directions in zip(self.parts, self.means, several, strict=True):
            made[own] = mean + self.white[own] @ directions.T
        return made


@dataclasses.dataclass(frozen=True)
class GaussianSurrogate(Null):
    """Gaussian samples of the same mean and covariance, bent again behind a nonlinearity.

    It asks whether the activations are Gaussian along the axes, not whether the axes differ from
    other directions: heavy-tailed data that have no preferred direction differ from it too.
    """

    approximate: ClassVar[bool] = True
    pools_directions: ClassVar[bool] = False

    @property
    def name(self) -> str:
        return "gaussian surrogate"

    @property
    def holds_fixed(self) -> str:
        return (
            "the mean and the covariance of the axes, before the nonlinearity where there is one; "
            "everything else is Gaussian, so that data without any preferred direction differ too"
        )

    def alternatives(self, problem: Problem, axes: Tensor | None = None) -> Alternatives:
        return _Surrogate(problem, axes)


class _Surrogate(_Bending):
    def __init__(self, problem: Problem, axes: Tensor | None) -> None:
        super().__init__(problem, axes)
        exact = self.observed.double()
        self.mean = exact.mean(0)
        centred = exact - self.mean
        self.root = roots(centred.T @ centred / max(1, len(exact)))[0]

    def drawn(self, generator: torch.Generator) -> Tensor:
        normal = torch.randn(self.observed.shape, generator=generator, dtype=torch.float64)
        return self.mean + normal.to(self.root) @ self.root


@dataclasses.dataclass(frozen=True)
class RandomWeights(Null):
    """The same architecture with its weights drawn anew, on the same data.

    What is compared is training, not the basis: a trained network differs from its untrained twins
    in every direction. Every frame is one more pass of the data through a twin of the model.
    """

    frames: int = 19
    samples: int = 1024

    approximate: ClassVar[bool] = True

    @property
    def name(self) -> str:
        return "random weights"

    @property
    def holds_fixed(self) -> str:
        return (
            "the architecture and the data; every weight is drawn anew, so that what training did "
            "to all directions alike counts too"
        )

    def alternatives(self, problem: Problem, axes: Tensor | None = None) -> Alternatives:
        raise ValueError(
            "the random-weights null needs the model itself: ask for it in bp.probe, with data "
            "that can be read several times"
        )
