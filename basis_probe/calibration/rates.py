"""From many data sets to rates with intervals: counts that add, written down as they come."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO

import torch

from basis_probe.calibration.cases import OWN_AXES, TRIALS, WEAK, WEAK_NEURONS, Trial
from basis_probe.calibration.draw import Draw
from basis_probe.results.codec import decode
from basis_probe.results.report import Outcome, SiteReport
from basis_probe.statistics.orders import FORM, OFFSET, SCALE

LEVEL = 0.05
SIZES = ((16, 1000), (64, 1000), (16, 8000), (64, 8000))
"""(axes, samples) of the data sets."""

FRAMES = 99
COMPARED = 2048
"""Of a null data set at most so many samples are compared, of a planted one twice as many: that is
what a probe compares unasked."""

# Data sets of one case between two lines of the record.
_BATCH = 5


@dataclasses.dataclass(frozen=True)
class Interval:
    """A rate and the interval that holds the true one in 95 cases of 100."""

    rate: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.rate:.1%} [{self.low:.1%}, {self.high:.1%}]"


def wilson(successes: int, trials: int, *, z: float = 1.959964) -> Interval:
    """Wilson's interval of a rate: never outside [0, 1], and right for rates near 0 too.

    Args:
        successes: how often it happened.
        trials: of how many; without any, the interval is [0, 1] and the rate NaN.
        z: the quantile of the normal law.

    Raises:
        ValueError: if the counts are not 0 <= successes <= trials.

    Source: E. B. Wilson, Journal of the American Statistical Association 22 (1927) 209.

    Example:
        >>> print(wilson(5, 100))
        5.0% [2.2%, 11.2%]
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} of {trials} is no rate: give 0 <= successes <= trials")
    if trials == 0:
        return Interval(math.nan, 0.0, 1.0)
    rate, shrink = successes / trials, 1 + z**2 / trials
    centre = (rate + z**2 / (2 * trials)) / shrink
    reach = z / shrink * math.sqrt(rate * (1 - rate) / trials + z**2 / (4 * trials**2))
    return Interval(rate, max(0.0, centre - reach), min(1.0, centre + reach))


@dataclasses.dataclass(frozen=True)
class Count:
    """How one score fared: `a + b` are both sets of data together.

    Attributes:
        known: data sets with a p-value.
        below: of these, with a p-value at or below 5 %.
        effect: sum of the effects.
        square: sum of their squares.
    """

    known: int = 0
    below: int = 0
    effect: float = 0.0
    square: float = 0.0

    def __add__(self, other: Count) -> Count:
        return Count(
            self.known + other.known,
            self.below + other.below,
            self.effect + other.effect,
            self.square + other.square,
        )

    @property
    def mean(self) -> float:
        """The mean effect."""
        return self.effect / self.known if self.known else math.nan

    @property
    def std(self) -> float:
        """The standard deviation of the effects."""
        if self.known < 2:
            return math.nan
        spread = self.square - self.effect**2 / self.known
        return math.sqrt(max(0.0, spread) / (self.known - 1))


@dataclasses.dataclass(frozen=True)
class Tally:
    """What came of some data sets of one trial and one size: `a + b` is what came of both.

    Attributes:
        place, trial: which trial.
        planted: whether something was there to be found.
        dim, samples: the size.
        datasets: how many.
        called: how many verdicts said that the axes stand out: false alarms, or detections.
        undecided: how many said nothing.
        scores: score name -> how it fared, before any adjustment; of the orders, offset and scale
            and form, how often they were claimed.
        bounded: how many verdicts stated a bound whose true value is known.
        covered: how many of these bounds lay above it.
    """

    place: str
    trial: str
    planted: bool
    dim: int
    samples: int
    datasets: int = 0
    called: int = 0
    undecided: int = 0
    scores: Mapping[str, Count] = dataclasses.field(default_factory=dict[str, Count])
    bounded: int = 0
    covered: int = 0

    @property
    def key(self) -> tuple[str, str, bool, int, int]:
        """What has to agree for tallies to add."""
        return (self.place, self.trial, self.planted, self.dim, self.samples)

    def __add__(self, other: Tally) -> Tally:
        if self.key != other.key:
            raise ValueError(f"tallies of {self.key} and {other.key} do not add")
        names = [*self.scores, *(name for name in other.scores if name not in self.scores)]
        none = Count()
        return dataclasses.replace(
            self,
            datasets=self.datasets + other.datasets,
            called=self.called + other.called,
            undecided=self.undecided + other.undecided,
            scores={n: self.scores.get(n, none) + other.scores.get(n, none) for n in names},
            bounded=self.bounded + other.bounded,
            covered=self.covered + other.covered,
        )

    def with_report(self, report: SiteReport, excess: float | None = None) -> Tally:
        """This tally and one more data set.

        Args:
            report: what was found.
            excess: the true value of what a bound bounds, where it is known.
        """
        bound = None if excess is None else report.verdict.bound
        outcome = report.verdict.outcome
        scores = {
            name: Count(1, int(score.p_value <= LEVEL), score.effect, score.effect**2)
            for name, score in report.scores.items()
            if not (math.isnan(score.p_value) or math.isnan(score.effect))
        }
        # Orders claimed, after Holm and behind their gates; form has its scores above.
        scores |= {
            order.order: Count(1, int(order.claimed), order.effect, order.effect**2)
            for order in report.orders
            if not math.isnan(order.effect)
        }
        one = dataclasses.replace(
            self,
            datasets=1,
            called=int(outcome in (Outcome.PRIVILEGED, Outcome.EMERGENT)),
            undecided=int(outcome is Outcome.UNDECIDED),
            scores=scores,
            bounded=int(bound is not None),
            covered=int(bound is not None and excess is not None and bound.excess >= excess),
        )
        return self + one

    def to_json(self) -> str:
        """One line of text."""
        return json.dumps(dataclasses.asdict(self))

    @staticmethod
    def from_json(line: str) -> Tally:
        """The tally that `to_json` wrote.

        Raises:
            json.JSONDecodeError: if the line is cut short.
            ValueError: if it holds something else than a tally.
        """
        tally = decode(Tally, json.loads(line))
        counts = [count.known for count in tally.scores.values()]
        several = (tally.called + tally.undecided, tally.bounded, *counts)
        within = all(0 <= count <= tally.datasets for count in several)
        if not within or min(tally.called, tally.undecided, tally.dim, tally.samples) < 0:
            raise ValueError("its counts are no counts of its data sets")
        if any(not 0 <= count.below <= count.known for count in tally.scores.values()):
            raise ValueError("its scores are below 5 % more often than they are known")
        if not 0 <= tally.covered <= tally.bounded:
            raise ValueError("more bounds hold than there are")
        return tally


def read(record: pathlib.Path) -> list[Tally]:
    """The tallies in a record, added up; a line that was cut short is left out.

    Raises:
        ValueError: for a line that is whole and no tally; it is named.
    """
    totals: dict[tuple[str, str, bool, int, int], Tally] = {}
    data = record.read_bytes() if record.is_file() else b""
    for number, line in enumerate(data.split(b"\n"), start=1):
        try:
            tally = Tally.from_json(line.decode("utf-8", "replace"))
        except json.JSONDecodeError:
            continue
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{record}, line {number} is no tally that `calibrate` wrote ({str(error)[:200]}): "
                "delete the line to have its data sets drawn again, or give another file"
            ) from error
        totals[tally.key] = totals[tally.key] + tally if tally.key in totals else tally
    return list(totals.values())


def calibrate(
    *,
    datasets: int,
    sizes: Sequence[tuple[int, int]] = SIZES,
    trials: Sequence[Trial] = TRIALS,
    frames: int = FRAMES,
    compared: int = COMPARED,
    record: pathlib.Path | None = None,
) -> Iterator[Tally]:
    """Every trial at every size, a few data sets of each in turn, each batch yielded as it is done.

    With a record, each batch is added to it as one line, and data sets that are already in it are
    not drawn again: a run that was stopped goes on where it was. Data set k of a trial and size is
    the same in every run.

    Args:
        datasets: how many of each trial and size.
        sizes: (axes, samples).
        trials: which.
        frames: alternatives for each data set.
        compared: at most so many samples of a null data set are compared, and twice as many of a
            planted one.
        record: a file of one JSON object a line.
    """
    done = {tally.key: tally.datasets for tally in (read(record) if record else [])}
    threads = torch.get_num_threads()
    try:
        # The data sets are so small that threads would mostly wait for each other.
        torch.set_num_threads(1)
        for stop in range(_BATCH, datasets + _BATCH, _BATCH):
            for trial in trials:
                for dim, samples in sizes:
                    tally = Tally(trial.place, trial.name, trial.planted, dim, samples)
                    start = done.get(tally.key, 0)
                    if start >= min(stop, datasets):
                        continue
                    for index in range(start, min(stop, datasets)):
                        draw = Draw(
                            dim,
                            samples,
                            frames,
                            compared * (2 if trial.planted else 1),
                            zlib.crc32(f"{tally.key} {index}".encode()),
                        )
                        excess = None if trial.excess is None else trial.excess(dim)
                        tally = tally.with_report(trial.report(draw), excess)
                    done[tally.key] = min(stop, datasets)
                    if record:
                        with record.open("a+b") as file:
                            # A line that was cut short stays one, and takes no other along.
                            cut = file.tell() and not _ends_a_line(file)
                            file.write(b"\n" * cut + tally.to_json().encode() + b"\n")
                    yield tally
    finally:
        torch.set_num_threads(threads)


def _ends_a_line(file: BinaryIO) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def markdown(tallies: Sequence[Tally]) -> str:
    """The tallies as tables in Markdown, one for each kind of truth."""
    own = [tally for tally in tallies if tally.place == OWN_AXES]
    weak = [tally for tally in tallies if tally.place in (WEAK, WEAK_NEURONS)]
    rest = [tally for tally in tallies if tally.place not in (OWN_AXES, WEAK, WEAK_NEURONS)]
    parts: list[str] = []
    for some, title, what in (
        ([t for t in rest if not t.planted], "Nothing on the axes", "false alarms"),
        (own, "Initialisation, not training", "called"),
        ([t for t in rest if t.planted], "Sources on the axes", "found"),
        (weak, "Weak sources, and the bound that covers them", "found"),
    ):
        if not some:
            continue
        names = list(dict.fromkeys(name for tally in some for name in tally.scores))
        head = ["site", "data", "axes", "samples", "data sets", what, "undecided"]
        head += [_heading(name) for name in names]
        head += ["bound holds"] if any(tally.bounded for tally in some) else []
        lines = [f"### {title}", "", _row(head), _row(["---"] * len(head))]
        for tally in some:
            cells = [tally.place, tally.trial, tally.dim, tally.samples, tally.datasets]
            cells += [wilson(tally.called, tally.datasets), tally.undecided]
            cells += [_cell(tally.scores.get(name)) for name in names]
            if head[-1] == "bound holds":
                cells.append(wilson(tally.covered, tally.bounded) if tally.bounded else "")
            lines.append(_row(cells))
        total = sum(tally.datasets for tally in some)
        called = wilson(sum(tally.called for tally in some), total)
        lines += ["", f"All together, of {total} data sets: {what} {called}."]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _heading(name: str) -> str:
    if name in (OFFSET, SCALE, FORM):
        return f"{name}: claimed; z"
    return f"{name.replace('_', ' ')}: p ≤ 5 %; z"


def _row(cells: Sequence[object]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def _cell(count: Count | None) -> str:
    if count is None or not count.known:
        return ""
    return f"{count.below / count.known:.1%}; {count.mean:+.1f} ± {count.std:.1f}"
