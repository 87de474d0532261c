"""What is computed of every frame: one number per direction, averaged over directions.

A score is a declaration: which tensor it reads, the number of a direction, which departures from
the null count, under which group it keeps its value. Adding one is adding one value to `SCORES`.
"""

import dataclasses
import enum
import functools
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from basis_probe.statistics.moments import Moments, SampleKurtosis
from basis_probe.statistics.multiplicity import Tail
from basis_probe.statistics.nulls import Frame


class Reads(enum.Enum):
    """Which tensor of a frame a score is computed on."""

    ACTIVATIONS = "the activations"
    PREACTIVATIONS = "the tensor before the nonlinearity, or the activations where there is none"


class Rows:
    """Rows of activations with what several scores need of them, computed once.

    Args:
        x: [samples, dim].
    """

    def __init__(self, x: Float[Tensor, "samples dim"]) -> None:
        self.x = x

    @functools.cached_property
    def moments(self) -> Moments:
        """Moments of every axis over the rows."""
        return Moments.of(self.x)

    @functools.cached_property
    def sample_kurtosis(self) -> SampleKurtosis:
        """Kurtosis of every row across the axes."""
        return SampleKurtosis.of(self.x)


class Measured:
    """A frame as scores read it.

    Args:
        frame: the frame.
        unit_axes: True to divide every axis by its root mean square first, for scores that compare
            axes where the group rescales them.
    """

    def __init__(self, frame: Frame, *, unit_axes: bool) -> None:
        self._post = _split(frame.post, frame)
        self._pre = self._post if frame.pre is None else _split(frame.pre, frame)
        self._unit = self._post
        if unit_axes:
            self._unit = [Rows(_unit_axes(rows.x)) for rows in self._post]

    def of(self, score: "Score") -> Float[Tensor, " dim"]:
        """The score of every direction of the frame, [dim]."""
        rows = self._pre if score.reads is Reads.PREACTIVATIONS else self._post
        if score.across_axes:
            rows = self._unit
        values = [score.per_direction(part) for part in rows]
        return values[0] if len(values) == 1 else torch.stack(values).mean(0)


def _split(x: Tensor, frame: Frame) -> list[Rows]:
    if frame.parts is None:
        return [Rows(x)]
    return [Rows(x[rows]) for rows in frame.parts if bool(rows.any())]


def _unit_axes(x: Tensor) -> Tensor:
    size = x.square().mean(0).sqrt()
    return x / torch.where(size > 0, size, torch.ones_like(size))


@dataclasses.dataclass(frozen=True)
class Score:
    """A statistic of a direction, and of a frame by averaging over its directions.

    Attributes:
        name: what users call it.
        per_direction: rows -> [dim]; NaN for a direction that never varies.
        reads: which tensor it is computed on.
        tail: which departures from the null count.
        formula: how it is computed, with its range.
        source: where it is from.
        scale_free: True if rescaling single axes leaves it alone.
        across_axes: True if it compares the axes of one sample with each other, so that it means
            nothing where single axes may be changed by any linear map.
    """

    name: str
    per_direction: Callable[[Rows], Tensor]
    reads: Reads
    tail: Tail
    formula: str
    source: str
    scale_free: bool
    across_axes: bool = False


def _kurtosis(rows: Rows) -> Tensor:
    return rows.moments.kurtosis


def _non_gaussianity(rows: Rows) -> Tensor:
    return rows.moments.excess_kurtosis.abs()


def _sample_kurtosis(rows: Rows) -> Tensor:
    return rows.sample_kurtosis.share


NON_GAUSSIANITY = Score(
    name="non_gaussianity",
    per_direction=_non_gaussianity,
    reads=Reads.PREACTIVATIONS,
    tail=Tail.UPPER,
    formula="|E(x - Ex)^4 / (E(x - Ex)^2)^2 - 3| of every axis over samples, in [0, inf)",
    source="mixtures are more Gaussian than their sources: Hyvarinen and Oja 2000, section 4",
    scale_free=True,
)
KURTOSIS = Score(
    name="kurtosis",
    per_direction=_kurtosis,
    reads=Reads.ACTIVATIONS,
    tail=Tail.TWO_SIDED,
    formula="E(x - Ex)^4 / (E(x - Ex)^2)^2 of every axis over samples, in [1, inf), Gaussian = 3",
    source="fourth standardised moment",
    scale_free=True,
)
SAMPLE_KURTOSIS = Score(
    name="sample_kurtosis",
    per_direction=_sample_kurtosis,
    reads=Reads.ACTIVATIONS,
    tail=Tail.TWO_SIDED,
    formula="n sum_j x_j^4 / (sum_j x_j^2)^2 of every sample across axes, averaged, in [1, n]",
    source="Elhage, Lasenby, Olah 2023, Privileged Bases in the Transformer Residual Stream",
    scale_free=False,
    across_axes=True,
)
SCORES: dict[str, Score] = {
    score.name: score for score in (NON_GAUSSIANITY, KURTOSIS, SAMPLE_KURTOSIS)
}
