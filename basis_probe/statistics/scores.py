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

from basis_probe.statistics.moments import column_kurtosis, root_mean_square, row_shares
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
        unit_axes: True where scores that compare axes divide each by its root mean square first.
    """

    def __init__(self, x: Float[Tensor, "samples dim"], *, unit_axes: bool = False) -> None:
        self.x, self.unit_axes = x, unit_axes

    @functools.cached_property
    def kurtosis(self) -> Float[Tensor, " dim"]:
        """Kurtosis of every axis over the rows."""
        return column_kurtosis(self.x)

    @functools.cached_property
    def shares(self) -> Float[Tensor, " dim"]:
        """Every axis' share of the kurtosis of the rows across axes."""
        return row_shares(self.x, units=root_mean_square(self.x) if self.unit_axes else None)


class Measured:
    """A frame as scores read it.

    Args:
        frame: the frame.
        unit_axes: True to divide every axis by its root mean square first, for scores that compare
            axes where the group rescales them.
    """

    def __init__(self, frame: Frame, *, unit_axes: bool) -> None:
        self._post = _split(frame.post, frame, unit_axes)
        self._pre = self._post if frame.pre is None else _split(frame.pre, frame, unit_axes)

    def of(self, score: "Score") -> Float[Tensor, " dim"]:
        """The score of every direction of the frame, [dim]."""
        rows = self._pre if score.reads is Reads.PREACTIVATIONS else self._post
        values = [score.per_direction(part) for part in rows]
        return values[0] if len(values) == 1 else torch.stack(values).mean(0)


def _split(x: Tensor, frame: Frame, unit_axes: bool) -> list[Rows]:
    if frame.parts is None:
        return [Rows(x, unit_axes=unit_axes)]
    return [Rows(x[rows], unit_axes=unit_axes) for rows in frame.parts if bool(rows.any())]


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
    return rows.kurtosis


def _non_gaussianity(rows: Rows) -> Tensor:
    return (rows.kurtosis - 3).abs()


def _sample_kurtosis(rows: Rows) -> Tensor:
    return rows.shares


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
