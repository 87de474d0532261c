"""What is computed of every frame: one number per direction, averaged over directions.

A score is a declaration: which tensor it reads, the number of a direction, which departures from
the null count, which changes of the activations leave it alone, and what it must not be used for.
Adding one is adding one value to `ALL`.

Scores of an *axis* look at its values over samples ("lifetime" sparseness); those whose names begin
with `sample_`, and the participation and max-median ratios, look at the values of one sample across
axes ("population" sparseness), and are credited to axes.
"""

import dataclasses
import enum
import functools
import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from basis_probe.brief import brief
from basis_probe.statistics import single_precision, sparsity
from basis_probe.statistics.halves import Part, is_empty
from basis_probe.statistics.moments import (
    ColumnMoments,
    EvenMoments,
    column_moments,
    even_moments,
    root_mean_square,
    row_shares,
)
from basis_probe.statistics.nulls import Frame
from basis_probe.statistics.p_values import Tail
from basis_probe.statistics.resampling import LeftOut
from basis_probe.statistics.single_precision import Columns

__all__ = [
    "ALL",
    "ATTRIBUTION",
    "ATTRIBUTIONS",
    "DECISIVE",
    "DEFAULT",
    "INTEGRATED",
    "KURTOSIS",
    "NEGENTROPY",
    "NON_GAUSSIANITY",
    "OWN",
    "SAMPLE_KURTOSIS",
    "Invariance",
    "Reads",
    "Score",
    "Tail",
]


def __dir__() -> list[str]:
    return list(__all__)


class Reads(enum.Enum):
    """Which tensor of a frame a score is computed on."""

    ACTIVATIONS = "the activations"
    PREACTIVATIONS = "the tensor before the nonlinearity, or the activations where there is none"


class Invariance(enum.Enum):
    """A change of the activations that moves no score of an axis, or carries it along."""

    PERMUTATIONS = "putting the axes in another order, their scores along"
    POSITIVE_SCALES = "multiplying single axes by positive numbers"
    SIGNS = "flipping the signs of single axes"
    OFFSETS = "adding constants to single axes"
    ONE_SCALE = "multiplying all axes by one number"
    SAMPLE_SCALES = "multiplying single samples by numbers of their own"


_BARE = frozenset({Invariance.PERMUTATIONS, Invariance.SIGNS, Invariance.ONE_SCALE})
_AXIS = _BARE | {Invariance.POSITIVE_SCALES}
_CENTRED = _AXIS | {Invariance.OFFSETS}
_SAMPLE = _BARE | {Invariance.SAMPLE_SCALES}


class Rows:
    """Rows of activations with what several scores need of them, computed once.

    Args:
        x: [samples, dim].
        unit_axes: True where scores that compare axes divide each by its root mean square first.
        chosen: their places among the samples that were given, a mask of these, or what gives the
            places when they are asked for; None for all, in order.
        bent: True where these are the activations, and what was before them is known too.
    """

    def __init__(
        self,
        x: Float[Tensor, "samples dim"],
        *,
        unit_axes: bool = False,
        chosen: Tensor | Callable[[], Tensor] | None = None,
        bent: bool = False,
    ) -> None:
        self.x, self.unit_axes, self._chosen, self._bent = x, unit_axes, chosen, bent

    @functools.cached_property
    def chosen(self) -> Int[Tensor, " samples"] | None:
        """The places of the rows among the samples that were given; None for all, in order."""
        places = self._chosen() if callable(self._chosen) else self._chosen
        if places is None or places.dtype is not torch.bool:
            return places
        return torch.nonzero(places).flatten()

    @functools.cached_property
    def _single(self) -> Columns | None:
        """The columns in single precision, in which they were computed; None for others."""
        if self.x.dtype is not torch.float32 or not len(self.x):
            return None
        return Columns(self.x, bumps=not self._bent)

    @functools.cached_property
    def even(self) -> EvenMoments:
        """Mean, variance and fourth moment of every axis over the rows."""
        return even_moments(self.x) if self._single is None else self._single.even

    @property
    def negentropy(self) -> Float[Tensor, " dim"]:
        """Negentropy of every axis over the rows."""
        if self._single is None:
            return sparsity.column_negentropy(self.x, self.even)
        found = sparsity.negentropy_of(*self._single.bumps)
        return torch.where(self.even.varies, found, math.nan)

    @property
    def kurtosis(self) -> Float[Tensor, " dim"]:
        """Kurtosis of every axis over the rows."""
        return self.even.kurtosis

    @functools.cached_property
    def moments(self) -> ColumnMoments:
        """Central moments of every axis over the rows."""
        return column_moments(self.x)

    @functools.cached_property
    def units(self) -> Float[Tensor, " dim"] | None:
        """By what scores that compare axes divide each of them; None for nothing."""
        if not self.unit_axes:
            return None
        if self._single is None:
            return root_mean_square(self.x)
        size = (self._single.variance + self._single.mean.square()).sqrt_()
        return torch.where(size > 0, size, 1.0)

    @functools.cached_property
    def shares(self) -> Float[Tensor, " dim"]:
        """Every axis' share of the kurtosis of the rows across axes."""
        if self.x.dtype is torch.float32:
            return single_precision.shares(self.x, units=self.units)
        return row_shares(self.x, units=self.units)

    def credited(self, measure: Callable[[Tensor], Tensor]) -> Float[Tensor, " dim"]:
        """A measure of rows across axes, credited to axes by their share of each row's energy."""
        return sparsity.credited(self.x, measure, units=self.units)


class Measured:
    """A frame as scores read it.

    Args:
        frame: the frame.
        unit_axes: True to divide every axis by its root mean square first, for scores that compare
            axes where the group rescales them.
        order: the places of its rows among the samples that were given; None if they are all.

    Attributes:
        bent: True where something is known from before a nonlinearity.
    """

    def __init__(self, frame: Frame, *, unit_axes: bool, order: Tensor | None = None) -> None:
        self._frame, self._unit_axes, self._order = frame, unit_axes, order
        self.bent = frame.pre is not None
        self._post = self._split(frame.post, bent=self.bent)
        self._pre = self._post if frame.pre is None else self._split(frame.pre)

    def _split(self, x: Tensor, *, bent: bool = False) -> list[Rows]:
        parts, order = self._frame.parts, self._order
        unit = self._unit_axes
        if parts is None:
            return [Rows(x, unit_axes=unit, chosen=order, bent=bent)]

        def places(part: Part) -> Tensor:
            return (torch.arange(len(x), device=x.device) if order is None else order)[part]

        return [
            Rows(x[part], unit_axes=unit, chosen=functools.partial(places, part), bent=bent)
            for part in parts
            if not is_empty(part)
        ]

    def of(self, score: "Score") -> Float[Tensor, " dim"]:
        """The score of every direction of the frame, [dim]."""
        rows = self._pre if score.reads is Reads.PREACTIVATIONS else self._post
        values = [score.per_direction(part) for part in rows]
        # Counts are numbers, too.
        values = [one if one.is_floating_point() else one.double() for one in values]
        if any(one.shape != (part.x.shape[1],) for one, part in zip(values, rows, strict=True)):
            raise ValueError(
                f"per_direction of the score {score.name!r} gave the shape "
                f"{tuple(values[0].shape)} for {rows[0].x.shape[1]} directions: give one number "
                "for each of them"
            )
        return values[0] if len(values) == 1 else torch.stack(values).mean(0)

    def each(self, score: "Score") -> Float[Tensor, "frames dim"]:
        """The score of every direction of each frame that lies in this one, [frames, dim]."""
        if self._frame.count == 1:
            return self.of(score)[None]
        if score in (KURTOSIS, NON_GAUSSIANITY, NEGENTROPY):
            # Of a column alone, whatever stands beside it.
            return self.of(score).unflatten(0, (self._frame.count, -1))
        return torch.stack([one.of(score) for one in self._apart])

    @functools.cached_property
    def _apart(self) -> "list[Measured]":
        several = range(self._frame.count)
        unit, order = self._unit_axes, self._order
        return [Measured(self._frame.one(n), unit_axes=unit, order=order) for n in several]


@brief
@dataclasses.dataclass(frozen=True)
class Score:
    """A statistic of a direction, and of a frame by averaging over its directions.

    Attributes:
        name: what users call it.
        per_direction: rows -> [dim]; NaN for a direction that has none, as one that never varies.
        reads: which tensor it is computed on.
        tail: which departures from the null count.
        formula: how it is computed.
        source: where it is from.
        range: its values, and that of a Gaussian direction where it has one.
        invariant_under: which changes of the activations leave it alone. No score of axes is
            invariant under rotations of them: that is what it is for.
        not_for: what it must not be used for.
        across_axes: True if it compares the axes of one sample with each other, so that it means
            nothing where single axes may be changed by any linear map. Where single axes may be
            rescaled, each is divided by its root mean square first.
        left_out: the numbers of a direction without each group of samples in turn, where they are
            known for little: errors by resampling are then stated for it.
    """

    name: str
    per_direction: Callable[[Rows], Tensor]
    reads: Reads
    tail: Tail
    formula: str
    source: str
    range: str = ""
    invariant_under: frozenset[Invariance] = frozenset({Invariance.PERMUTATIONS})
    not_for: str = ""
    across_axes: bool = False
    left_out: Callable[[LeftOut], Tensor] | None = None

    @property
    def scale_free(self) -> bool:
        """True if rescaling single axes leaves it alone."""
        return Invariance.POSITIVE_SCALES in self.invariant_under


# --- of an axis over samples ----------------------------------------------------------------------

NON_GAUSSIANITY = Score(
    name="non_gaussianity",
    per_direction=lambda rows: (rows.kurtosis - 3).abs(),
    reads=Reads.PREACTIVATIONS,
    tail=Tail.UPPER,
    formula="|E(x - Ex)^4 / (E(x - Ex)^2)^2 - 3| of every axis over samples",
    source="mixtures are more Gaussian than their sources: Hyvarinen and Oja 2000, section 4",
    range="[0, inf), Gaussian 0",
    invariant_under=_CENTRED,
    not_for="laws that are lopsided but neither heavy nor flat; one far value rules it",
    left_out=lambda without: (without.kurtosis - 3).abs(),
)
"""How far the fourth moment of every axis is from a Gaussian's, in either direction."""
NEGENTROPY = Score(
    name="negentropy",
    per_direction=lambda rows: rows.negentropy,
    reads=Reads.PREACTIVATIONS,
    tail=Tail.UPPER,
    formula="36/(8 sqrt 3 - 9) (E z e^(-z^2/2))^2 + 24/(16 sqrt 3 - 27) (E e^(-z^2/2) - "
    "sqrt(1/2))^2 of every axis z at mean 0 and variance 1",
    source="Hyvarinen 1998, New approximations of differential entropy, equations 16 and 17",
    range="[0, 6), Gaussian 0, Laplace 0.087",
    invariant_under=_CENTRED,
    not_for="saying in which way an axis departs from the Gaussian; it is silent on that",
    left_out=lambda without: without.negentropy,
)
"""How far every axis is from Gaussian, by bounded functions that no far value rules."""
KURTOSIS = Score(
    name="kurtosis",
    per_direction=lambda rows: rows.kurtosis,
    reads=Reads.ACTIVATIONS,
    tail=Tail.TWO_SIDED,
    formula="E(x - Ex)^4 / (E(x - Ex)^2)^2 of every axis over samples",
    source="fourth standardised moment",
    range="[1, inf), Gaussian 3",
    invariant_under=_CENTRED,
    not_for="comparing with 3: samples of unequal length make it larger in every basis",
    left_out=lambda without: without.kurtosis,
)
"""The kurtosis of every axis over samples; 3 for a Gaussian."""
SKEWNESS = Score(
    name="skewness",
    per_direction=lambda rows: rows.moments.skewness.abs(),
    reads=Reads.ACTIVATIONS,
    tail=Tail.TWO_SIDED,
    formula="|E(x - Ex)^3| / (E(x - Ex)^2)^(3/2) of every axis over samples",
    source="third standardised moment",
    range="[0, inf), Gaussian 0",
    invariant_under=_CENTRED,
    not_for="one-sided axes against rotations of them, which are not one-sided; symmetric features",
)
BIMODALITY = Score(
    name="bimodality",
    per_direction=lambda rows: (rows.moments.skewness.square() + 1) / rows.moments.kurtosis,
    reads=Reads.ACTIVATIONS,
    tail=Tail.TWO_SIDED,
    formula="(skewness^2 + 1) / kurtosis of every axis over samples",
    source="Sarle's bimodality coefficient: SAS/STAT User's Guide 1990, MODECLUS and CLUSTER",
    range="(0, 1], Gaussian 1/3, uniform 5/9, two values 1",
    invariant_under=_CENTRED,
    not_for="telling two modes from one lopsided mode: an exponential law has 5/9 too",
)
HOYER = Score(
    name="hoyer",
    per_direction=lambda rows: sparsity.column_hoyer(rows.x),
    reads=Reads.ACTIVATIONS,
    tail=Tail.TWO_SIDED,
    formula="(sqrt T - sum|x| / sqrt(sum x^2)) / (sqrt T - 1) of every axis over T samples",
    source="Hoyer 2004, JMLR 5:1457",
    range="[0, 1], Gaussian 1 - sqrt(2/pi) = 0.202 for large T",
    invariant_under=_AXIS,
    not_for="axes far from 0 against rotations; one-sided axes, which it credits for nothing",
)
GINI = Score(
    name="gini",
    per_direction=lambda rows: sparsity.column_gini(rows.x),
    reads=Reads.ACTIVATIONS,
    tail=Tail.TWO_SIDED,
    formula="sum_i (2i - T - 1) |x|_(i) / (T sum |x|) of every axis over T samples, rising in i",
    source="Hurley and Rickard 2009, Comparing measures of sparsity",
    range="[0, 1), Gaussian sqrt 2 - 1 = 0.414",
    invariant_under=_AXIS,
    not_for="axes far from 0 against rotations; one-sided axes, which it credits for nothing",
)
TREVES_ROLLS = Score(
    name="treves_rolls",
    per_direction=lambda rows: sparsity.column_treves_rolls(rows.x),
    reads=Reads.ACTIVATIONS,
    tail=Tail.TWO_SIDED,
    formula="(E|x|)^2 / E x^2 of every axis over samples; small is sparse",
    source="Treves and Rolls 1991, Network 2:371",
    range="(0, 1], Gaussian 2/pi, rectified Gaussian 1/pi",
    invariant_under=_AXIS,
    not_for="axes far from 0 against rotations; one-sided axes, which it credits for nothing",
)
HALF_NORM = Score(
    name="half_norm",
    per_direction=lambda rows: sparsity.column_half_norm(rows.x),
    reads=Reads.ACTIVATIONS,
    tail=Tail.TWO_SIDED,
    formula="1 - (E|x|^(1/2))^2 / E|x| of every axis over samples",
    source="the L^0.5 measure of Hurley and Rickard 2009, relative to L^1",
    range="[0, 1), Gaussian 0.153",
    invariant_under=_AXIS,
    not_for="axes far from 0 against rotations; one-sided axes, which it credits for nothing",
)

# --- of a sample across axes ----------------------------------------------------------------------

_ORDERS = (
    "telling sparse features from constant offsets or unequal variances, all of which raise it"
)

SAMPLE_KURTOSIS = Score(
    name="sample_kurtosis",
    per_direction=lambda rows: rows.shares,
    reads=Reads.ACTIVATIONS,
    tail=Tail.TWO_SIDED,
    formula="n sum_j x_j^4 / (sum_j x_j^2)^2 of every sample across n axes, averaged",
    source="Elhage, Lasenby, Olah 2023, Privileged Bases in the Transformer Residual Stream",
    range="[1, n], 3n/(n+2) over rotations of any sample",
    invariant_under=_SAMPLE,
    not_for=_ORDERS,
    across_axes=True,
)
"""The kurtosis across the axes of a sample, averaged over samples."""
SAMPLE_HOYER = Score(
    name="sample_hoyer",
    per_direction=lambda rows: rows.credited(sparsity.row_hoyer),
    reads=Reads.ACTIVATIONS,
    tail=Tail.TWO_SIDED,
    formula="(sqrt n - sum|x| / sqrt(sum x^2)) / (sqrt n - 1) of every sample across n axes, "
    "averaged",
    source="Hoyer 2004, JMLR 5:1457",
    range="[0, 1], 1 - sqrt(2/pi) = 0.202 over rotations for large n",
    invariant_under=_SAMPLE,
    not_for=_ORDERS,
    across_axes=True,
)
SAMPLE_GINI = Score(
    name="sample_gini",
    per_direction=lambda rows: rows.credited(sparsity.row_gini),
    reads=Reads.ACTIVATIONS,
    tail=Tail.TWO_SIDED,
    formula="Gini index of |x| of every sample across axes, averaged",
    source="Hurley and Rickard 2009, Comparing measures of sparsity",
    range="[0, 1 - 1/n], sqrt 2 - 1 = 0.414 over rotations for large n",
    invariant_under=_SAMPLE,
    not_for=_ORDERS,
    across_axes=True,
)
SAMPLE_TREVES_ROLLS = Score(
    name="sample_treves_rolls",
    per_direction=lambda rows: rows.credited(sparsity.row_treves_rolls),
    reads=Reads.ACTIVATIONS,
    tail=Tail.TWO_SIDED,
    formula="(mean_j |x_j|)^2 / mean_j x_j^2 of every sample across axes, averaged; small is "
    "sparse",
    source="Rolls and Tovee 1995, J. Neurophysiology 73:713",
    range="[1/n, 1], 2/pi over rotations for large n",
    invariant_under=_SAMPLE,
    not_for="telling sparse features from offsets or unequal variances, all of which lower it",
    across_axes=True,
)
SAMPLE_HALF_NORM = Score(
    name="sample_half_norm",
    per_direction=lambda rows: rows.credited(sparsity.row_half_norm),
    reads=Reads.ACTIVATIONS,
    tail=Tail.TWO_SIDED,
    formula="1 - (mean_j |x_j|^(1/2))^2 / mean_j |x_j| of every sample across axes, averaged",
    source="the L^0.5 measure of Hurley and Rickard 2009, relative to L^1",
    range="[0, 1 - 1/n], 0.153 over rotations for large n",
    invariant_under=_SAMPLE,
    not_for=_ORDERS,
    across_axes=True,
)
PARTICIPATION = Score(
    name="participation_ratio",
    per_direction=lambda rows: rows.credited(sparsity.row_participation),
    reads=Reads.ACTIVATIONS,
    tail=Tail.TWO_SIDED,
    formula="(sum_j x_j^2)^2 / sum_j x_j^4 of every sample across axes, averaged; small is sparse",
    source="inverse participation ratio: Bell and Dean 1970; as many axes as carry a sample",
    range="[1, n], n/3 over rotations for large n",
    invariant_under=_SAMPLE,
    not_for="telling sparse features from offsets or unequal variances, all of which lower it",
    across_axes=True,
)
MAX_MEDIAN = Score(
    name="max_median_ratio",
    per_direction=lambda rows: rows.credited(sparsity.row_max_median),
    reads=Reads.ACTIVATIONS,
    tail=Tail.TWO_SIDED,
    formula="max_j |x_j| / median_j |x_j| of every sample across axes, averaged",
    source="He et al. 2024, Understanding and Minimising Outlier Features in Transformer Training",
    range="[1, inf); samples with a median of 0 have none",
    invariant_under=_SAMPLE,
    not_for="samples that are mostly zero, as behind a ReLU; " + _ORDERS,
    across_axes=True,
)

SPOTLIGHT_RESONANCE = Score(
    name="spotlight_resonance",
    per_direction=lambda rows: sparsity.spotlight(rows.x, units=rows.units),
    reads=Reads.ACTIVATIONS,
    tail=Tail.TWO_SIDED,
    formula="in all planes of two axes, the share of samples with cosine 0.8 or more to an axis or "
    "its opposite, less that halfway between axes, averaged",
    source="Bird 2025, The Spotlight Resonance Method; its curve is bp.spotlight_resonance",
    range="[-1/4, 1/2]; 0 in many dimensions, where no sample is near a plane and it says nothing",
    invariant_under=_SAMPLE,
    not_for="telling axes that carry something from unequal variances, which draw samples to the "
    "axes that vary most, and from offsets, which draw all of them one way",
    across_axes=True,
)
"""Whether samples point along axes (above zero) or between two of them, whatever their length."""

ALL: dict[str, Score] = {
    score.name: score
    for score in (
        NON_GAUSSIANITY,
        NEGENTROPY,
        KURTOSIS,
        SKEWNESS,
        BIMODALITY,
        HOYER,
        GINI,
        TREVES_ROLLS,
        HALF_NORM,
        SAMPLE_KURTOSIS,
        SAMPLE_HOYER,
        SAMPLE_GINI,
        SAMPLE_TREVES_ROLLS,
        SAMPLE_HALF_NORM,
        PARTICIPATION,
        MAX_MEDIAN,
        SPOTLIGHT_RESONANCE,
    )
}
"""Every score that has a name."""

DEFAULT: dict[str, Score] = {
    score.name: score for score in (NON_GAUSSIANITY, NEGENTROPY, KURTOSIS, SAMPLE_KURTOSIS)
}
"""Those that are computed where none is asked for: each costs time in every frame."""

DECISIVE = frozenset({NON_GAUSSIANITY.name, NEGENTROPY.name})
"""The names of those that verdicts rest on; behind a nonlinearity the kurtosis is one, too."""

ATTRIBUTION = "attribution"
"""The name of the score that asks how few axes carry the loss."""

INTEGRATED = "integrated_attribution"
"""The name of the same with gradients averaged on the way from a site of zeros."""

ATTRIBUTIONS = (ATTRIBUTION, INTEGRATED)
"""The names of those for which a loss is differentiated."""

OWN: dict[str, str] = {
    ATTRIBUTION: "how few axes carry activation times the gradient of a loss: the Gini coefficient "
    "across axes of its absolute values, averaged over samples",
    INTEGRATED: "the same of integrated gradients: the gradient is averaged on the way from a site "
    "of zeros to what it holds, and several more passes are made for every site",
    "weights": "how what an axis reads is related to what it writes, by the weights around it",
    "quantisation": "what rounding a sample to 4 bits costs on the axes, as a share of its energy",
}
"""Scores that have a null of their own: name -> what they are."""
