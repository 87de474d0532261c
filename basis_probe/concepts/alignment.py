"""How well every direction tells every concept, from ranks and from counts at a threshold.

Ranks are enough for average precision and for the area under the ROC curve; a 2 x 2 table of
active x true is enough for the others. Ties are treated as scikit-learn treats them: samples of
equal value are taken together.
"""

import dataclasses
import enum
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int, Int32, Int64
from torch import Tensor


class Measure(enum.Enum):
    """How well a direction tells a concept; the value says it in words.

    All are 1 at best but mutual information, which is in nats.
    """

    AVERAGE_PRECISION = "mean precision over the concept's samples, from the most active one down"
    AUC = "chance that a sample with the concept is more active than one without"
    IOU = "samples active and with the concept, over samples active or with it"
    PUBLISHED_IOU = (
        "the same, active being above a quantile over the cells of maps, before they are "
        "interpolated, and only images on which the concept's category is labelled: network "
        "dissection, Bau et al. 2017"
    )
    F1 = "harmonic mean of precision and recall of the active samples"
    MUTUAL_INFORMATION = "what being active says about the concept, in nats"

    @property
    def ranked(self) -> bool:
        """True if it needs the order of all samples, False if active or not is enough."""
        return self in (Measure.AVERAGE_PRECISION, Measure.AUC)

    @property
    def threshold(self) -> float:
        """From here on a concept counts as detected, if that is above chance too.

        0.04 for IoU is the published one (Bau et al. 2017); F1 = 2 IoU / (1 + IoU) makes it 0.077.
        """
        return _THRESHOLDS[self.name]


_THRESHOLDS = {
    "AVERAGE_PRECISION": 0.5,
    "AUC": 0.9,
    "IOU": 0.04,
    "PUBLISHED_IOU": 0.04,
    "F1": 2 * 0.04 / 1.04,
    "MUTUAL_INFORMATION": 0.0,
}


@dataclasses.dataclass(frozen=True, eq=False)
class Ranks:
    """Where every sample stands among all samples of a direction.

    Attributes:
        above: how many samples are more active, [directions, samples].
        reached: how many are as active or more, [directions, samples].
    """

    above: Int32[np.ndarray, "directions samples"]
    reached: Int32[np.ndarray, "directions samples"]

    @staticmethod
    def of(values: Float[Tensor, "samples directions"]) -> "Ranks":
        """The ranks of every direction's samples."""
        rows = np.ascontiguousarray(values.detach().cpu().numpy().T)
        samples = rows.shape[1]
        order = _order(rows)
        ordered = np.take_along_axis(rows, order, axis=1)
        places = np.arange(samples, dtype=np.int32)
        starts = np.zeros(rows.shape, dtype=np.int32)
        ends = np.full(rows.shape, samples - 1, dtype=np.int32)
        if samples > 1:
            new = ordered[:, 1:] != ordered[:, :-1]
            starts[:, 1:] = np.where(new, places[1:], 0)
            np.maximum.accumulate(starts, axis=1, out=starts)
            ends[:, :-1] = np.where(new, places[:-1], samples - 1)
            ends = np.minimum.accumulate(ends[:, ::-1], axis=1)[:, ::-1]
        above, reached = np.empty_like(starts), np.empty_like(starts)
        np.put_along_axis(above, order, samples - 1 - ends, axis=1)
        np.put_along_axis(reached, order, samples - starts, axis=1)
        return Ranks(above, reached)

    def flipped(self) -> "Ranks":
        """The ranks of the same directions read backwards."""
        samples = self.above.shape[1]
        return Ranks(samples - self.reached, samples - self.above)


def _order(
    rows: Float[np.ndarray, "directions samples"],
) -> Int[np.ndarray, "directions samples"]:
    """The places of every row's samples, the least active first."""
    if rows.dtype != np.float32:
        return np.argsort(rows, axis=1)
    # Bits that sort as the values do, the places below them: sorting numbers is faster than sorting
    # places, and does not slow down where most samples are equal.
    bits = rows.view(np.int32)
    keys = np.where(bits < 0, bits ^ np.int32(0x7FFFFFFF), bits).astype(np.int64)
    keys <<= 32
    keys |= np.arange(rows.shape[1])
    keys.sort(axis=1)
    return keys & 0xFFFFFFFF


def average_precision(
    ranks: Ranks, labels: Bool[Tensor, "samples concepts"]
) -> Float64[Tensor, "directions concepts"]:
    """Average precision of every direction for every concept, [directions, concepts].

    The sum over thresholds of (gain in recall) x (precision), as `sklearn.metrics` has it. Its
    expectation under chance is about the share of samples that carry the concept. NaN for a
    concept that no sample carries.
    """
    directions, samples = ranks.reached.shape
    # Narrow numbers are sorted faster.
    all_reached = ranks.reached.astype(np.uint16 if samples < 2**16 else np.int32)
    found = torch.full((directions, labels.shape[1]), torch.nan, dtype=torch.float64)
    for concept, carried in enumerate(labels.cpu().numpy().T):
        places = np.flatnonzero(carried)
        if not len(places):
            continue
        # A positive's precision is (positives as active or more) / (samples as active or more).
        reached = np.sort(np.take(all_reached, places, axis=1), axis=1)
        positives = np.arange(1, len(places) + 1, dtype=np.int32)
        precision = positives / reached
        tied = reached[:, :-1] == reached[:, 1:]
        rows = np.flatnonzero(tied.any(1))
        if len(rows):
            # Of equals each counts the positives up to the last of them.
            among = np.broadcast_to(positives, (len(rows), len(places))).copy()
            among[:, :-1][tied[rows]] = len(places)
            among = np.minimum.accumulate(among[:, ::-1], axis=1)[:, ::-1]
            precision[rows] = among / reached[rows]
        found[:, concept] = torch.from_numpy(precision.mean(1))
    return found


def auc(
    ranks: Ranks, labels: Bool[Tensor, "samples concepts"]
) -> Float64[Tensor, "directions concepts"]:
    """Area under the ROC curve of every direction for every concept; 0.5 is chance.

    From the sum of ranks of the concept's samples (Mann and Whitney 1947), ties at their mean rank.
    NaN for a concept that no sample carries, or all do.
    """
    samples = ranks.above.shape[1]
    # Twice the number of samples that are less active, ties counted half.
    below = torch.from_numpy(2.0 * samples - ranks.above - ranks.reached)
    carried = labels.double().cpu()
    positives = carried.sum(0)
    wins = below @ carried / 2 - positives.square() / 2
    return wins / (positives * (samples - positives))


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """How often directions are active and concepts true, alone and together.

    `a + b` is the table of both streams.

    Attributes:
        both: [directions, concepts].
        active: [directions, concepts]; the second axis has length one where all samples count for
            every concept.
        true: [concepts].
        samples: how many there are in all.
    """

    both: Float64[Tensor, "directions concepts"]
    active: Float64[Tensor, "directions some"]
    true: Float64[Tensor, " concepts"]
    samples: int

    @staticmethod
    def of(
        active: Bool[Tensor, "samples directions"], labels: Bool[Tensor, "samples concepts"]
    ) -> "Table":
        """The table of some samples."""
        found = Active.of(active)
        counts = found.counts.double()[:, None]
        return Table(found.together(labels.float()), counts, labels.sum(0).double(), found.samples)

    def __add__(self, other: "Table") -> "Table":
        return Table(
            self.both + other.both,
            self.active + other.active,
            self.true + other.true,
            self.samples + other.samples,
        )

    def of_measure(self, measure: Measure) -> Float64[Tensor, "directions concepts"]:
        """One of the measures that a table is enough for."""
        return counted(measure, self.both, self.active, self.true[None], self.samples)


@dataclasses.dataclass(frozen=True, eq=False)
class Active:
    """Where directions are active: few samples, so they are named rather than all of them flagged.

    Attributes:
        places: the active samples of one direction after the other, rising, [active].
        counts: how many each direction has, [directions].
        samples: how many there are in all.
    """

    places: Int64[Tensor, " active"]
    counts: Int64[Tensor, " directions"]
    samples: int

    @staticmethod
    def of(active: Bool[Tensor, "samples directions"]) -> "Active":
        """From flags of all samples."""
        rows = active.T.contiguous()
        directions, samples = rows.shape
        places = torch.from_numpy(np.flatnonzero(rows.numpy()))
        starts = torch.arange(directions + 1) * samples
        counts = torch.searchsorted(places, starts).diff()
        return Active(places - starts[:-1].repeat_interleave(counts), counts, samples)

    def together(
        self, flags: Float[Tensor, "samples concepts"]
    ) -> Float64[Tensor, "directions concepts"]:
        """How many of each direction's active samples bear every flag, flags as 0 and 1."""
        starts = self.counts.cumsum(0) - self.counts
        # Counts below 2^24 are exact in single precision.
        exact = torch.float32 if int(self.counts.max()) < 2**24 else torch.float64
        return torch.nn.functional.embedding_bag(
            self.places, flags.to(exact), starts, mode="sum"
        ).double()


def counted(
    measure: Measure, both: Tensor, active: Tensor, true: Tensor, samples: Tensor | int
) -> Tensor:
    """A measure from counts of samples, of any shapes that broadcast.

    Args:
        measure: IOU, PUBLISHED_IOU or F1, which are 0 where nothing is active or true, or
            MUTUAL_INFORMATION.
        both: samples that are active and true.
        active: samples that are active.
        true: samples that are true.
        samples: all samples.

    Raises:
        ValueError: for a measure that needs more than counts.
    """
    if measure.ranked:
        raise ValueError(
            f"{measure.name} needs ranks; counts give IOU, PUBLISHED_IOU, F1, MUTUAL_INFORMATION"
        )
    if measure in (Measure.IOU, Measure.PUBLISHED_IOU):
        union = active + true - both
        return torch.where(union > 0, both / union, 0.0)
    if measure is Measure.F1:
        total = active + true
        return torch.where(total > 0, 2 * both / total, 0.0)
    information = torch.zeros_like(both)
    for count, row, column in (
        (both, active, true),
        (active - both, active, samples - true),
        (true - both, samples - active, true),
        (samples - active - true + both, samples - active, samples - true),
    ):
        term = count / samples * (count * samples / (row * column)).log()
        information = information + torch.where(count > 0, term, 0.0)
    return information.clamp(min=0)


def thresholds(
    values: Float[Tensor, "samples directions"], top: float
) -> Float[Tensor, " directions"]:
    """The smallest value that at most a share `top` of each direction's samples exceed.

    With 0.005 it is T_k of network dissection: P(a > T_k) = 0.005.

    Raises:
        ValueError: if `top` is not between 0 and 1.
    """
    few = beyond(len(values), top)
    rows = values.detach().cpu().numpy().T
    return torch.from_numpy(np.array([nth_largest(row, few) for row in rows]))


def beyond(samples: int, top: float) -> int:
    """How many samples may exceed the threshold of the share `top`.

    Raises:
        ValueError: if `top` is not between 0 and 1.
    """
    if not 0 < top < 1:
        raise ValueError(f"top={top}: give the share of samples that are active, such as 0.005")
    return min(samples - 1, int(np.floor(top * samples + 1e-9)))


def nth_largest(row: Float[np.ndarray, " samples"], few: int) -> np.floating[Any]:
    """The value that `few` others reach or exceed, found among those that can be it.

    Most samples of an axis behind a nonlinearity are equal, which partitioning is slow on; a few of
    them tell below which value it need not look.
    """
    some = row[::64]
    least = min(len(some), 2 * few * len(some) // len(row) + 8)
    rest = row[row > np.partition(some, len(some) - least)[len(some) - least]]
    if len(rest) <= few:
        return np.sort(row)[len(row) - 1 - few]
    return np.partition(rest, len(rest) - 1 - few)[len(rest) - 1 - few]
