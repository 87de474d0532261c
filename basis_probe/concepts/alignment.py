"""How well every direction tells every concept, from ranks and from counts at a threshold.

Ranks are enough for average precision and for the area under the ROC curve; a 2 x 2 table of
active x true is enough for the others. Ties are treated as scikit-learn treats them: samples of
equal value are taken together.
"""

import dataclasses
import enum
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int, Int32, Int64, Integer
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
        descending = np.arange(samples, 0, -1, dtype=np.int32)
        above, reached = np.empty(rows.shape, np.int32), np.empty(rows.shape, np.int32)
        # One direction at a time stays in the cache.
        for place, row in enumerate(rows):
            order, equal = _order(row)
            if not len(equal):
                reached[place][order] = descending
                np.subtract(reached[place], 1, out=above[place])
                continue
            # Of equals the first has as many above as the last, and is reached as the last is.
            starts, ends = _groups(equal)
            own, other = descending.copy(), descending - 1
            sizes = ends - starts + 1
            inside = np.repeat(starts - np.cumsum(sizes) + sizes, sizes) + np.arange(sizes.sum())
            own[inside] = np.repeat(samples - starts, sizes)
            other[inside] = np.repeat(samples - 1 - ends, sizes)
            reached[place][order], above[place][order] = own, other
        return Ranks(above, reached)

    def flipped(self) -> "Ranks":
        """The ranks of the same directions read backwards."""
        samples = self.above.shape[1]
        return Ranks(samples - self.reached, samples - self.above)

    @functools.cached_property
    def narrow(self) -> Integer[np.ndarray, "directions samples"]:
        """`reached` in a narrow type, which is sorted faster."""
        return self.reached.astype(np.uint16 if self.reached.shape[1] < 2**16 else np.int32)

    @functools.cached_property
    def above_of(self) -> Integer[np.ndarray, "directions places"]:
        """`above` by `reached`: of samples that so many reach, how many are more active."""
        found = np.zeros((len(self.reached), self.reached.shape[1] + 1), self.narrow.dtype)
        np.put_along_axis(found, self.reached, self.above.astype(found.dtype), axis=1)
        return found

    @functools.cached_property
    def ties(self) -> "_Ties":
        """Where samples are equally active."""
        return _Ties.of(self)

    @functools.cached_property
    def below(self) -> Float64[Tensor, "directions samples"]:
        """Twice the number of samples that are less active, ties counted half."""
        return torch.from_numpy(2.0 * self.above.shape[1] - self.above - self.reached)


def _order(
    row: Float[np.ndarray, " samples"],
) -> tuple[Int[np.ndarray, " samples"], Int[np.ndarray, " equal"]]:
    """The places of the samples, the least active first, and where the next one is equal."""
    if row.dtype != np.float32:
        order = np.argsort(row)
        keys = row[order]
        return order, np.flatnonzero(keys[1:] == keys[:-1])
    # Bits that sort as the values do, lower and upper half one after the other: halves are sorted
    # by counting, however many samples are equal. There is one zero.
    bits = (row + np.float32(0)).view(np.int32)
    keys = (bits ^ ((bits >> 31) | np.int32(-0x80000000))).view(np.uint32)
    lower, upper = keys.astype(np.uint16), (keys >> 16).astype(np.uint16)
    order = lower.argsort(kind="stable")
    order = order[upper[order].argsort(kind="stable")]
    keys = keys[order]
    return order, np.flatnonzero(keys[1:] == keys[:-1])


def _groups(
    equal: Int[np.ndarray, " equal"],
) -> tuple[Int[np.ndarray, " groups"], Int[np.ndarray, " groups"]]:
    """The first and the last place of every run of equal samples."""
    breaks = np.flatnonzero(np.diff(equal) > 1)
    starts = equal[np.concatenate([[0], breaks + 1])]
    ends = equal[np.concatenate([breaks, [len(equal) - 1]])] + 1
    return starts, ends


def average_precision(
    ranks: Ranks, labels: Bool[Tensor, "samples concepts"]
) -> Float64[Tensor, "directions concepts"]:
    """Average precision of every direction for every concept, [directions, concepts].

    The sum over thresholds of (gain in recall) x (precision), as `sklearn.metrics` has it. Its
    expectation under chance is about the share of samples that carry the concept. NaN for a
    concept that no sample carries.
    """
    return in_order(ranks, Carried.of(labels), (1,)).precision[0]


@dataclasses.dataclass(frozen=True, eq=False)
class Carried:
    """Which samples carry which concept, in the forms that sorting needs.

    Attributes:
        flags: [concepts, samples].
        places: for every concept the samples that carry it, rising.
    """

    flags: Bool[np.ndarray, "concepts samples"]
    places: Sequence[np.ndarray]

    @staticmethod
    def of(labels: Bool[Tensor, "samples concepts"]) -> "Carried":
        """From labels."""
        flags = np.ascontiguousarray(labels.cpu().numpy().T)
        return Carried(flags, tuple(np.flatnonzero(row) for row in flags))


_FEW_TIES = 4
"""Directions with more groups of equal samples than that have them taken together one by one."""
_AT_ONCE = 2**16
"""So many ranks of samples that carry a concept are sorted at a time: they stay in the cache."""
_RADIX = 700
"""From so many numbers on a radix sort is faster."""


@dataclasses.dataclass(frozen=True, eq=False)
class Sorted:
    """What the order of all samples says of every direction and concept.

    Attributes:
        precision: the average precision of directions that are read with each sign; NaN for a
            concept that no sample carries.
        area: the area under the ROC curve, read with sign 1.
    """

    precision: Float64[Tensor, "signs directions concepts"]
    area: Float64[Tensor, "directions concepts"]


def in_order(ranks: Ranks, carried: Carried, signs: tuple[int, ...]) -> Sorted:
    """Average precision and the area under the ROC curve, from sorting once.

    One order serves both signs: where no two are tied, a sample that `reached` samples are as
    active as or more has `samples + 1 - reached` of them in the other sense.

    Args:
        ranks: of the directions, read with sign 1.
        carried: the concepts.
        signs: 1, or -1, or both.
    """
    directions, samples = ranks.reached.shape
    found = np.full((len(signs), len(carried.places), directions), np.nan)
    # The sum over samples with the concept of how many are above and how many are reached.
    sums = np.zeros((len(carried.places), directions))
    ties = ranks.ties
    apart, together = np.flatnonzero(~ties.many), np.flatnonzero(ties.many)
    narrow = ranks.narrow[apart] if len(together) else ranks.narrow
    alike = ranks.narrow[together]
    above_of = ranks.above_of[together] if len(together) else alike
    for concept, places in enumerate(carried.places):
        count = len(places)
        if not count:
            continue
        # A positive's precision is
        # (positives as active or more) / (samples as active or more).
        numbers = {1: np.arange(1.0, count + 1), -1: np.arange(float(count), 0, -1)}
        hit = ties.touched(carried.flags[concept])
        told, total = np.empty((len(signs), len(apart))), np.empty(len(apart))
        some = max(1, _AT_ONCE // count)
        for start in range(0, len(apart), some):
            rows = slice(start, start + some)
            reached = np.take(narrow[rows], places, axis=1)
            reached.sort(axis=1, kind="stable" if count > _RADIX else "quicksort")
            exact = reached.astype(np.float64)
            total[rows] = 2 * np.einsum("ij->i", exact) - count
            inverse = np.empty_like(exact)
            for at, sign in enumerate(signs):
                divisor = exact if sign > 0 else np.subtract(samples + 1, exact, out=inverse)
                np.divide(1, divisor, out=inverse)
                told[at, rows] = np.einsum("ij,j->i", inverse, numbers[sign])
            touched = ties.of_rows(hit, int(apart[start]), int(apart[rows][-1]))
            if len(touched):
                place = np.searchsorted(apart, ties.row[touched])
                added, counted = ties.added(touched, reached[place - start], samples)
                np.add.at(total, place, counted)
                for at, sign in enumerate(signs):
                    np.add.at(told[at], place, added[sign])
        sums[concept, apart], found[:, concept, apart] = total, told / count
        if len(together):
            several, sums[concept, together] = _in_groups(alike, above_of, places)
            for at, sign in enumerate(signs):
                found[at, concept, together] = several[sign] / count
    counts = torch.tensor([len(places) for places in carried.places], dtype=torch.float64)
    won = counts * samples - torch.from_numpy(sums).mT / 2
    return Sorted(torch.from_numpy(found).mT, _area(won, counts, samples))


def _area(won: Tensor, positives: Tensor, samples: int) -> Tensor:
    """From how many samples are less active than those with the concept, ties counted half."""
    return (won - positives.square() / 2) / (positives * (samples - positives))


@dataclasses.dataclass(frozen=True, eq=False)
class _Ties:
    """Groups of samples that are equally active, where a direction has few of them.

    Attributes:
        many: [directions], True for directions that have more groups, which are not listed.
        row: the direction of every group, [groups].
        reached, above: what `Ranks` has of its samples, [groups].
        sample: samples that are in any group, [tied].
        group: and of which group each is, [tied].
    """

    many: Bool[np.ndarray, " directions"]
    row: Int[np.ndarray, " groups"]
    reached: Int[np.ndarray, " groups"]
    above: Int[np.ndarray, " groups"]
    sample: Int[np.ndarray, " tied"]
    group: Int[np.ndarray, " tied"]

    @staticmethod
    def of(ranks: Ranks) -> "_Ties":
        """The groups of all directions."""
        samples = ranks.reached.shape[1]
        tied = ranks.reached - ranks.above > 1
        # A group has two samples at least.
        many = tied.sum(1) > 2 * _FEW_TIES
        tied[many] = False
        row, sample = np.nonzero(tied)
        keys = row * (samples + 1) + ranks.reached[row, sample]
        found, first, group = np.unique(keys, return_index=True, return_inverse=True)
        above = ranks.above[row[first], sample[first]]
        return _Ties(many, found // (samples + 1), found % (samples + 1), above, sample, group)

    def touched(self, flags: Bool[np.ndarray, " samples"]) -> Int[np.ndarray, " some"]:
        """The groups in which a sample carries a concept, direction by direction."""
        return np.unique(self.group[flags[self.sample]])

    def of_rows(
        self, groups: Int[np.ndarray, " some"], first: int, last: int
    ) -> Int[np.ndarray, " few"]:
        """Those groups of some that are of directions from the first to the last."""
        row = self.row[groups]
        return groups[np.searchsorted(row, first) : np.searchsorted(row, last, "right")]

    def added(
        self,
        groups: Int[np.ndarray, " groups"],
        reached: Integer[np.ndarray, "groups positives"],
        samples: int,
    ) -> tuple[dict[int, Float64[np.ndarray, " groups"]], Float64[np.ndarray, " groups"]]:
        """What sums change by when the samples of a group are taken together.

        Those of precisions, for each sign, and that of how many samples are above and reached.

        Args:
            groups: which groups.
            reached: of the samples that carry the concept, in the direction of each group.
            samples: how many there are.
        """
        limit, above = self.reached[groups], self.above[groups]
        low = (reached < limit[:, None]).sum(1)
        high = (reached <= limit[:, None]).sum(1)
        held, count = high - low, reached.shape[1]
        # The places from low + 1 to high, and their sum.
        total = (low + 1 + high) * held / 2
        backwards = held * (count - low) / (samples - above)
        backwards -= (held * (count + 1) - total) / (samples + 1 - limit)
        return {1: (held * high - total) / limit, -1: backwards}, held * (above + 1.0 - limit)


def _in_groups(
    narrow: Integer[np.ndarray, "rows samples"],
    above_of: Integer[np.ndarray, "rows places"],
    places: Int[np.ndarray, " positives"],
) -> tuple[dict[int, Float64[np.ndarray, " rows"]], Float64[np.ndarray, " rows"]]:
    """Sums of precisions, by sign, and of how many are above and reached: equals one by one.

    Args:
        narrow: how many samples are as active or more.
        above_of: of samples that so many reach, how many are more active.
        places: the samples that carry the concept.
    """
    (rows, samples), count = narrow.shape, len(places)
    forth, back, sums = (np.empty(rows) for _ in range(3))
    some = max(1, _AT_ONCE // count)
    for start in range(0, rows, some):
        part = slice(start, start + some)
        reached = np.take(narrow[part], places, axis=1)
        reached.sort(axis=1, kind="stable" if count > _RADIX else "quicksort")
        last = np.ones(reached.shape, dtype=bool)
        np.not_equal(reached[:, 1:], reached[:, :-1], out=last[:, :-1])
        groups = np.count_nonzero(last, axis=1)
        starts = np.cumsum(groups) - groups
        which = np.flatnonzero(last)
        high = which + 1.0 - np.repeat(np.arange(len(reached)) * count, groups)
        limit = reached.reshape(-1)[which]
        offsets = np.repeat((start + np.arange(len(reached))) * above_of.shape[1], groups)
        above = above_of.reshape(-1)[offsets + limit].astype(np.float64)
        low = np.concatenate([[0.0], high[:-1]])
        low[starts] = 0
        held = high - low
        forth[part] = np.add.reduceat(held * high / limit, starts)
        back[part] = np.add.reduceat(held * (count - low) / (samples - above), starts)
        sums[part] = np.add.reduceat(held * (above + limit), starts)
    return {1: forth, -1: back}, sums


def auc(
    ranks: Ranks, labels: Bool[Tensor, "samples concepts"]
) -> Float64[Tensor, "directions concepts"]:
    """Area under the ROC curve of every direction for every concept; 0.5 is chance.

    From the sum of ranks of the concept's samples (Mann and Whitney 1947), ties at their mean rank.
    NaN for a concept that no sample carries, or all do.
    """
    carried = labels.double().cpu()
    return _area(ranks.below @ carried / 2, carried.sum(0), ranks.above.shape[1])


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
