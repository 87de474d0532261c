"""What the data say of a site: every score against its null, and what stands beside."""

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np

from basis_probe.brief import brief
from basis_probe.results.codec import ALONG, Exact
from basis_probe.statistics.p_values import Tail as Tail

if TYPE_CHECKING:
    import pandas


@brief
@dataclasses.dataclass(frozen=True)
class NullRecord:
    """Against what the axes of a site were compared.

    Attributes:
        name: "rotation", "counterfactual", ...
        frames: number of alternatives drawn.
        samples: number of samples on which the axes and the alternatives were compared.
        geometry: the geometry in which directions are turned: "euclidean", "standardised", ...
        holds_fixed: what an alternative shares with the observed layer, in words.
        because: why this null was chosen here.
        approximate: True where the null is not exact for untrained networks.
        directions: how many axes were compared, drawn at random where that is not all of them, and
            as many directions of every alternative; 0 in reports that do not say.
        examples: how many sequences or images the compared samples are of; 0 if that is not known.
        distinct: how many of the compared samples differ from each other; 0 in reports that do not
            say.
        effective: as how many unrelated samples they count in an average of the kurtosis across
            axes: 1.5, however many there are, where any two have a cosine of 0.9; 0 in reports that
            do not say.
    """

    name: str
    frames: int
    samples: int
    geometry: str
    holds_fixed: str
    because: str
    approximate: bool = False
    directions: int = 0
    examples: int = 0
    distinct: int = 0
    effective: float = 0.0


@brief
@dataclasses.dataclass(frozen=True, eq=False)
class ClosedFormRecord(Exact):
    """The mean (and standard deviation, where known) that the null has without sampling."""

    mean: float
    std: float | None
    source: str
    exact: bool


@brief
@dataclasses.dataclass(frozen=True, eq=False)
class ScoreResult(Exact):
    """One score of one site against its null.

    Attributes:
        name: the score.
        observed: its value on the axes, on the samples that the null saw too.
        null_mean, null_std: over the frames of the null.
        effect: (observed - null_mean) / null_std.
        p_value: (1 + #{null at least as extreme}) / (frames + 1), exact where the frames are
            exchangeable with the axes.
        p_tail: the same where ten or more frames are as extreme, else from the named
            approximation `p_tail_method` of the null's tail.
        p_adjusted: `p_tail` after Holm over all deciding scores of all sites of the report; NaN for
            a score on which no verdict rests.
        tail: which departures count.
        decides: True if the verdict rests on it.
        null: the null's name.
        null_values: [frames], the score in every frame of the null.
        per_direction: [dim], its value on every axis; NaN where an axis is dead. Rounded to single
            precision where the score does not decide; empty in scores that stand beside.
        per_direction_p: [dim], p of every axis against the null's directions; rounded and empty
            where the values are.
        fraction_privileged: share of the axes that remain at a false discovery rate of 5 %.
        effect_without_top_axes: the effect when the three highest directions of every frame, the
            observed one included, are left out: whether a few axes carry the finding.
        all_samples: the value on the axes over every sample of the stream; NaN where not streamed.
        closed_form: the null without sampling, where a formula is known.
        note: what a reader must know, or an empty string.
        effect_interval: 95 % interval of the effect under resampling of whole sequences or images,
            by the jackknife; NaN where it is not known.
        difference: how far the mean over all axes lies from that of their alternatives, in units of
            the score; unlike the effect it does not grow with the number of axes that were
            compared. Where that was only some of them, what all alternatives score is estimated.
        difference_error: its standard error over other examples, other frames and, where only some
            of the axes were compared, other axes; NaN where one of these is not known.
        untrained: what the same difference is in untrained twins of the model, where a score is
            claimed only beyond theirs.
    """

    name: str
    observed: float
    null_mean: float
    null_std: float
    effect: float
    p_value: float
    p_tail: float
    p_tail_method: str
    p_adjusted: float
    tail: Tail
    decides: bool
    null: str
    null_values: np.ndarray
    per_direction: np.ndarray
    per_direction_p: np.ndarray = dataclasses.field(metadata={ALONG: "per_direction"})
    fraction_privileged: float
    effect_without_top_axes: float
    all_samples: float
    closed_form: ClosedFormRecord | None = None
    note: str = ""
    effect_interval: tuple[float, ...] = (math.nan, math.nan)
    difference: float = math.nan
    difference_error: float = math.nan
    untrained: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.decides:
            # They are most of what a report holds, and no more digits of them are known.
            for name in ("per_direction", "per_direction_p"):
                object.__setattr__(self, name, _single(getattr(self, name)))

    def without_axes(self) -> "ScoreResult":
        """The score with nothing said of single axes."""
        empty = np.zeros(0)
        return dataclasses.replace(self, per_direction=empty, per_direction_p=empty)


def _single(values: np.ndarray) -> np.ndarray:
    """Rounded to single precision, in float64; as they are where they are too large for it."""
    with np.errstate(over="ignore"):
        rounded = np.asarray(values, np.float64).astype(np.float32).astype(np.float64)
    return values if (np.isinf(rounded) & np.isfinite(values)).any() else rounded


@brief
@dataclasses.dataclass(frozen=True, eq=False)
class BasisStanding(Exact):
    """How one basis of a site's space fared on samples that it was not fitted on.

    Attributes:
        name: what made it: "standard" (the axes), "pca", "ica" ...
        score: the score, averaged over its directions.
        effect: its distance from random rotations, in their standard deviations.
        ceiling: (score - random) / (best - random): 0 is random, 1 the best basis that was found;
            NaN where none stands out from random rotations.
        cosine: mean |cosine| between its directions and the axes, each paired with one other.
        directions: how many directions it has.
        note: what a reader must know of how it was found, or an empty string.
    """

    name: str
    score: float
    effect: float
    ceiling: float
    cosine: float
    directions: int
    note: str = ""


@brief
@dataclasses.dataclass(frozen=True, eq=False)
class BasisRow(Exact):
    """One score of one basis, of the activations as they are.

    Attributes:
        basis: its name; "axes" and "rotations" among them.
        kind: "directions", along which activations are read, or "codes", which the encoder of a
            dictionary makes of them.
        score: the score; "active" is how many codes of a sample are not zero.
        value: its mean over directions.
        low, high: 95 % interval over other examples, by the jackknife; of rotations their range.
            NaN for scores of codes, which rare events make: of those alone these samples say
            too little. It does not hold how much dictionaries differ that are trained alike.
        directions: how many were judged.
        note: what a reader must know, or an empty string.
    """

    basis: str
    kind: str
    score: str
    value: float
    low: float
    high: float
    directions: int
    note: str = ""


@brief
@dataclasses.dataclass(frozen=True, eq=False)
class BasisRanking(Exact):
    """Which basis, then? The axes and other bases of the same space, under one score.

    Attributes:
        score: the score.
        standings: the axes first, then the others in the order asked for.
        best: the name of the basis that departs most from random rotations.
        directions: its directions, one a row, [direction, dim], in the coordinates of `geometry`;
            empty where it is the axes themselves, or no basis stands out.
        geometry: of the rows that were compared: "euclidean", "standardised", "whitened" ...
        reads: what was compared: the activations, or the tensor before the nonlinearity.
        null_mean, null_std: of the score over random rotations, on the same held-out samples.
        frames: how many rotations.
        fitted_on, judged_on: numbers of samples.
        table: every score of the axes, rotations and all bases, of the activations as they are.
    """

    score: str
    standings: tuple[BasisStanding, ...]
    best: str
    directions: np.ndarray
    geometry: str
    reads: str
    null_mean: float
    null_std: float
    frames: int
    fitted_on: int
    judged_on: int
    table: tuple[BasisRow, ...] = ()

    def to_dataframe(self) -> "pandas.DataFrame":
        """`table` as a pandas DataFrame, one row for every basis, kind and score."""
        import pandas

        names = [field.name for field in dataclasses.fields(BasisRow)]
        return pandas.DataFrame([vars(row) for row in self.table], columns=names)

    @property
    def axes(self) -> BasisStanding:
        """How the axes fared."""
        return self.standings[0]

    def __getitem__(self, name: str) -> BasisStanding:
        for standing in self.standings:
            if standing.name == name:
                return standing
        known = ", ".join(standing.name for standing in self.standings)
        raise KeyError(f"no basis is called {name!r} here; there are {known}")


@brief
@dataclasses.dataclass(frozen=True, eq=False)
class OrderRecord(Exact):
    """One of the three orders in which axes can be privileged, by itself.

    Attributes:
        order: "offset" (the mean), "scale" (variances and covariance) or "form" (what is left at
            equal variance). Older files say "first", "second" and "higher".
        statistic: what was computed, in words.
        observed: its value on the axes.
        null_mean, null_std: over random rotations.
        effect: (observed - null_mean) / null_std; NaN where it says nothing here.
        p_value: against random rotations; NaN where it says nothing here.
        sentence: what follows, to quote.
        p_adjusted: `p_value` after Holm over all orders and deciding scores of all sites; NaN where
            it says nothing here.
        claimed: True if the axes stand out in this order.
        small: True if that is by less than a tenth of what rotations have, however sure.
        adds: what the order adds to the kurtosis of a sample across axes; NaN if not known.
        leading: the axes that make up more than half of the statistic, the largest first; empty
            where more than three are needed.
        gate: why the order is not claimed whatever p is, or an empty string.
    """

    order: str
    statistic: str
    observed: float
    null_mean: float
    null_std: float
    effect: float
    p_value: float
    sentence: str
    p_adjusted: float = math.nan
    claimed: bool = False
    small: bool = False
    adds: float = math.nan
    leading: tuple[int, ...] = ()
    gate: str = ""


@brief
@dataclasses.dataclass(frozen=True, eq=False)
class KurtosisSplit(Exact):
    """The kurtosis of a sample across axes, and what each order adds to it.

    `offset + scale + form + rotations` is `total`, up to rounding. Where the group leaves the
    all-ones direction fixed, it is of samples without their mean over axes.

    Attributes:
        total: n sum_j x_j^4 / (sum_j x_j^2)^2, averaged over samples; from 1 to n.
        offset: what falls away when the mean over samples is taken out.
        scale: what unequal variances add.
        form: what the form of axes at equal variance adds to that of turned axes.
        rotations: what a sample has in a random basis, about 3.
    """

    total: float
    offset: float
    scale: float
    form: float
    rotations: float


@brief
@dataclasses.dataclass(frozen=True)
class Routed(Exact):
    """Which expert of a mixture a site is of, and how much it is given.

    Attributes:
        expert: its number, from 0.
        count: how many experts there are beside each other, itself included.
        given: how many samples were given out to all of them, each to as many experts as the router
            chooses; 0 where that is not known.
    """

    expert: int
    count: int
    given: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.expert < self.count or self.given < 0:
            raise ValueError(f"expert {self.expert} of {self.count}, given {self.given} samples")


@brief
@dataclasses.dataclass(frozen=True, eq=False)
class OutlierAxes(Exact):
    """The axes whose variance no turned axis reaches, found one after another.

    What is left without them is measured once more, against turns of what is left. No verdict rests
    on it, for the axes were chosen after the data were seen.

    Attributes:
        axes: the largest variance first; at most 32.
        share: their part of the variance, in [0, 1].
        scale_without: the statistic of scale on the other axes, whose null mean is next.
        scale_null_without: its mean over rotations of the other axes.
        kurtosis_without: the kurtosis of a sample across the other axes, about the mean.
        orders: offset, scale and form of the other axes; empty where there are fewer than four, or
            nothing varies. None is claimed, and their p-values are not adjusted.
        per_sample: the kurtosis of a sample across the other axes, split; None where `orders` is
            empty.
    """

    axes: tuple[int, ...]
    share: float
    scale_without: float
    scale_null_without: float
    kurtosis_without: float
    orders: tuple[OrderRecord, ...] = ()
    per_sample: KurtosisSplit | None = None


@brief
@dataclasses.dataclass(frozen=True, eq=False)
class FewAxes(Exact):
    """Whether a few axes stand out, however the mean over all of them fares.

    Attributes:
        axes: those beyond the largest direction of 95 % of the alternatives, the furthest first;
            where there is none, as many of the largest as stand out together.
        observed: the largest standardised order statistic of the axes; of many axes, where
            alternatives were drawn for a block of them, the score of the one furthest out.
        null_mean, null_std: over the alternatives; of many axes, over single directions.
        p_value: counted among the alternatives.
        p_tail: the same, smaller than counting allows by an approximated tail.
        p_adjusted: `p_tail` after Holm over all deciding tests of all sites.
        alone: how many of the axes stand out by themselves: all, or none where only several of the
            largest do so together.
        repeated: False where the axes that stand out on one half of the examples are not those of
            the other half, so that no finding rests on them.
    """

    axes: tuple[int, ...]
    observed: float
    null_mean: float
    null_std: float
    p_value: float
    p_tail: float
    p_adjusted: float = math.nan
    alone: int = 0
    repeated: bool = True


@brief
@dataclasses.dataclass(frozen=True, eq=False)
class FormBound(Exact):
    """How far the axes could stand out in form at most, with 95 % confidence.

    Attributes:
        excess: the root mean square over axes of their (bounded) excess kurtosis is at most this
            far beyond that of the alternatives: random directions, or neurons that point elsewhere.
        share: a Laplace feature with this part of the variance of every axis would make as much;
            NaN where no small part does.
        rare: True where events rarer than the data show may escape the bound.
        reads: what is bounded: the activations, or the tensor before the nonlinearity.
        ceiling: how much of the excess kurtosis of the directions that stand out most the axes have
            that stand out most, each found on some examples and judged on others; NaN where no
            such directions were found.
    """

    excess: float
    share: float
    rare: bool
    reads: str = "the activations"
    ceiling: float = math.nan


@brief
@dataclasses.dataclass(frozen=True, eq=False)
class PathRecord(Exact):
    """A score on the way from the axes to turned bases: along Q^a for a from 0 to 1.

    Attributes:
        score: the score.
        powers: the a, rising from 0 (the axes) to 1 (the turned basis).
        values: [turns, powers].
    """

    score: str
    powers: tuple[float, ...]
    values: np.ndarray
