"""One data set to be made: its size, and what it is drawn with."""

from __future__ import annotations

import dataclasses
import functools

import torch
from torch import Tensor

from basis_probe.algebra.haar import haar
from basis_probe.statistics.nulls import Null


@dataclasses.dataclass(frozen=True)
class Draw:
    """One data set to be made and probed.

    Attributes:
        dim: number of axes, and of inputs to a layer.
        samples: number of samples.
        frames: alternatives that the axes are compared with.
        compared: at most so many of the samples are compared.
        seed: of the data, the weights and the frames.
    """

    dim: int
    samples: int
    frames: int
    compared: int
    seed: int

    @functools.cached_property
    def generator(self) -> torch.Generator:
        """What everything is drawn with, in turn."""
        return torch.Generator().manual_seed(self.seed)

    def normal(self, *shape: int) -> Tensor:
        """Standard Gaussian numbers."""
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def uniform(self, *shape: int) -> Tensor:
        """Uniform numbers in [-0.5, 0.5)."""
        return torch.rand(*shape, generator=self.generator, dtype=torch.float64) - 0.5

    def turn(self) -> Tensor:
        """A uniform rotation of the axes."""
        return haar(self.dim, self.generator)

    def null(self, kind: type[Null]) -> Null:
        """The null of a kind with the frames and samples of this draw."""
        return kind(frames=self.frames, samples=self.compared)
