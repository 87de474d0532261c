"""Which concepts the directions of a frame detect: chosen on one half of the data, scored on one.

Every frame goes through `examine`, the observed one and those of the null alike. Directions are
taken in blocks, so that memory does not grow with directions x concepts.
"""

import dataclasses
import enum
import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from basis_probe.concepts.alignment import (
    Active,
    Carried,
    Measure,
    Ranks,
    Table,
    auc,
    in_order,
    thresholds,
)
from basis_probe.concepts.labels import BOTH, Labels, parts
from basis_probe.concepts.maps import Maps
from basis_probe.parallel import threads_here
from basis_probe.statistics.halves import Part

_AT_ONCE = 2**24
"""This many values of activations are looked at at a time."""


Scores = dict[Measure, list[Float64[Tensor, "signs directions concepts"]]]
"""For every measure the scores for each of several label sets."""


class Sides(enum.Enum):
    """When a direction counts as active."""

    POSITIVE = "where it is most positive"
    BOTH = "where it is most positive or most negative, whichever tells the concept better"


@dataclasses.dataclass(frozen=True, eq=False)
class Setting:
    """What every frame of a site is asked.

    Attributes:
        labels: the concepts that can be scored, one row per labelled sample.
        halves: [samples], what each is used for: choosing, scoring, or both.
        measures: how well.
        top: the share of samples that count as active, where a threshold is needed.
        sides: when a direction counts as active.
        maps: between maps of activations and larger masks, whose pixels are the labelled samples;
            None where rows of activations are. Halves then stand together, one after the other.
    """

    labels: Labels
    halves: Int64[Tensor, " samples"]
    measures: tuple[Measure, ...]
    top: float
    sides: Sides
    maps: Maps | None = None

    @property
    def signs(self) -> tuple[int, ...]:
        """The signs with which a direction may be read."""
        return (1,) if self.sides is Sides.POSITIVE else (1, -1)

    @functools.cached_property
    def parts(self) -> tuple[Part, Part]:
        """Which samples choices are made on, and which they are scored on."""
        return parts(self.halves)

    @functools.cached_property
    def asked(self) -> "tuple[Asked, Asked]":
        """The labels of the samples that choices are made on, and of those that are scored."""
        first = Asked.of(self, self.parts[0])
        return first, first if self.same else Asked.of(self, self.parts[1])

    @functools.cached_property
    def same(self) -> bool:
        """True if choices are made and scored on the same samples."""
        return bool((self.halves == BOTH).all())

    def values(
        self, block: Float[Tensor, "rows directions"]
    ) -> Float[Tensor, "samples directions"]:
        """The activations at the labelled samples; those of one direction lie side by side."""
        return block.T.contiguous().T if self.maps is None else self.maps.spread(block)

    def limits(
        self, block: Float[Tensor, "rows directions"], measure: Measure
    ) -> Float[Tensor, " directions"]:
        """Above which value a sample is active, by the half on which concepts are chosen.

        Args:
            block: the activations.
            measure: one that counts active samples.
        """
        first = self.parts[0]
        maps = self.maps
        if maps is None:
            return thresholds(self.values(block)[first], self.top)
        if measure is Measure.PUBLISHED_IOU:
            return thresholds(self.cells(block, first), self.top)
        columns = self.cells(block, first).T.reshape(block.shape[1], -1, maps.cells)
        limits = [maps.limit(one, self.top) for one in columns]
        return torch.tensor(limits, dtype=torch.float32).to(block)

    def cells(
        self, block: Float[Tensor, "rows directions"], part: Part
    ) -> Float[Tensor, "cells directions"]:
        """The cells of the maps whose pixels are some of the labelled samples."""
        maps = self.maps
        if maps is None or not isinstance(part, slice):
            return block[part]
        images = part.start // maps.pixels, part.stop // maps.pixels
        return block[images[0] * maps.cells : images[1] * maps.cells]


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
    """What the directions of one frame detect, by one measure.

    Attributes:
        concept: [directions], the concept that each tells best on the first half.
        sign: [directions], the sign with which it is read for that.
        fitted: [directions], the score of that on the first half.
        score: [directions], and on the other half.
        direction: [concepts], the direction that tells each best on the first half.
        direction_sign: [concepts], the sign with which it is read for that.
        direction_score: [concepts], the score of that on the other half.
        largest: [shuffles, concepts], the largest score of any direction for shuffled labels.
    """

    concept: Int64[Tensor, " directions"]
    sign: Int64[Tensor, " directions"]
    fitted: Float64[Tensor, " directions"]
    score: Float64[Tensor, " directions"]
    direction: Int64[Tensor, " concepts"]
    direction_sign: Int64[Tensor, " concepts"]
    direction_score: Float64[Tensor, " concepts"]
    largest: Float64[Tensor, "shuffles concepts"]

    @property
    def best(self) -> Float64[Tensor, " concepts"]:
        """The highest score of a direction that tells the concept best of all; -inf if none."""
        best = torch.full_like(self.direction_score, -torch.inf)
        return best.scatter_reduce(0, self.concept, self.score, "amax")

    def detected(self, least: Float64[Tensor, " concepts"]) -> Tensor:
        """[concepts], True where a direction that tells the concept best scores above `least`."""
        return self.best > least

    def units(self, least: Float64[Tensor, " concepts"]) -> int:
        """How many directions score above `least` for the concept that they tell best."""
        return int((self.score > least[self.concept]).sum())


def examine(
    post: Float[Tensor, "rows directions"],
    setting: Setting,
    shuffles: Sequence[Int64[Tensor, " scored"]] = (),
) -> dict[Measure, Found]:
    """What the directions of one frame detect, by every measure.

    Args:
        post: the activations in that frame.
        setting: the concepts and how they are asked for.
        shuffles: for every sample of the second half whose label it gets, once for each shuffle.
    """
    first, second = setting.parts
    own, other = setting.asked
    chosen = [own]
    asked = [other, *(dataclasses.replace(other, order=order) for order in shuffles)]
    gathered = {measure: _Gathered(measure, own) for measure in setting.measures}
    published = Measure.PUBLISHED_IOU in setting.measures
    plain = tuple(m for m in setting.measures if not m.ranked and m is not Measure.PUBLISHED_IOU)
    samples, dim = len(setting.labels.values), post.shape[1]

    def of_block(block: Tensor) -> tuple[Tensor, Scores, Scores]:
        # The rows of one direction side by side.
        given = post[:, int(block[0]) : int(block[-1]) + 1].T.contiguous().T
        choices: Scores = {}
        results: Scores = {}
        if any(measure.ranked for measure in setting.measures):
            values = setting.values(given)
            results |= ranked(values[second], asked, setting)
            if not setting.same:
                choices |= ranked(values[first], chosen, setting)
        for measures in (plain, (Measure.PUBLISHED_IOU,) * published):
            if measures:
                signed = [
                    activity(given if sign > 0 else -given, setting, measures[0])
                    for sign in setting.signs
                ]
                results |= counts([scored for _, scored in signed], asked, measures)
                if not setting.same:
                    choices |= counts([fitted for fitted, _ in signed], chosen, measures)
        return block, results if setting.same else choices, results

    blocks = torch.arange(dim).split(max(1, min(128, _AT_ONCE // max(1, samples))))
    # Sorting lets go of the interpreter, so threads help; results come in order all the same.
    count = torch.get_num_threads()
    with ThreadPoolExecutor(count, initializer=threads_here, initargs=(1,)) as pool:
        for block, choices, results in pool.map(of_block, blocks):
            for measure, into in gathered.items():
                observed, *by_chance = results[measure]
                into.take(block, choices[measure][0], observed, by_chance)
    return {measure: into.found() for measure, into in gathered.items()}


@dataclasses.dataclass(frozen=True, eq=False)
class Asked:
    """One label set, in the forms that measures read, made once for all directions.

    Attributes:
        labels: [samples, concepts].
        numbers: the same as 0 and 1; empty where no measure counts.
        true: how many samples carry each concept.
        counting: 0 for samples that do not count for a concept, 1 for the others; None if all do.
        order: whose labels every sample gets; None for its own.
    """

    labels: Bool[Tensor, "samples concepts"]
    numbers: Float[Tensor, "samples concepts"] | Float[Tensor, "0"]
    true: Float64[Tensor, " concepts"]
    counting: Float[Tensor, "samples concepts"] | None
    order: Int64[Tensor, " samples"] | None = None

    @staticmethod
    def of(setting: Setting, part: Part) -> "Asked":
        """The labels of some samples, for the measures of a setting."""
        labels = setting.labels.values[part]
        counts = any(not measure.ranked for measure in setting.measures)
        numbers = labels.float() if counts else torch.zeros(0, dtype=torch.float32)
        counting = setting.labels.counting
        if Measure.PUBLISHED_IOU not in setting.measures:
            counting = None
        return Asked(
            labels,
            numbers,
            labels.sum(0).double(),
            None if counting is None else counting[part].float(),
        )

    @functools.cached_property
    def ordered(self) -> Bool[Tensor, "samples concepts"]:
        """The labels that the samples get."""
        return self.labels if self.order is None else self.labels[self.order]

    @functools.cached_property
    def carried(self) -> Carried:
        """The same in the forms that sorting needs."""
        return Carried.of(self.ordered)

    def table(self, active: Active, measure: Measure) -> Table:
        """How often directions are active and concepts true, for measures that count."""
        if self.order is not None:
            active = dataclasses.replace(active, places=self.order[active.places])
        counted = active.counts.double()[:, None]
        if self.counting is not None and measure is Measure.PUBLISHED_IOU:
            counted = active.together(self.counting)
        return Table(active.together(self.numbers), counted, self.true, active.samples)


def activity(
    block: Float[Tensor, "rows directions"], setting: Setting, measure: Measure
) -> tuple[Active, Active]:
    """Where the directions are active in either half, by thresholds of the first."""
    maps, limits = setting.maps, setting.limits(block, measure)

    def of_part(part: Part) -> Active:
        if maps is None:
            return Active.of(setting.values(block)[part] > limits)
        columns = setting.cells(block, part).T.reshape(block.shape[1], -1, maps.cells)
        return maps.active(columns, limits)

    fitted = of_part(setting.parts[0])
    return fitted, fitted if setting.same else of_part(setting.parts[1])


def ranked(
    values: Float[Tensor, "samples directions"], asked: Sequence[Asked], setting: Setting
) -> Scores:
    """The scores that need the order of all samples, for each of the label sets, by every sign."""
    ranks = Ranks.of(values)
    found: Scores = {}
    areas: list[Tensor] = []
    if Measure.AVERAGE_PRECISION in setting.measures:
        told = [in_order(ranks, each.carried, setting.signs) for each in asked]
        found[Measure.AVERAGE_PRECISION] = [one.precision for one in told]
        areas = [one.area for one in told]
    if Measure.AUC in setting.measures:
        areas = areas or [auc(ranks, each.ordered) for each in asked]
        # Read backwards, every pair is the other way round.
        found[Measure.AUC] = [
            torch.stack([area if sign > 0 else 1 - area for sign in setting.signs])
            for area in areas
        ]
    return found


def counts(active: Sequence[Active], asked: Sequence[Asked], measures: Sequence[Measure]) -> Scores:
    """The scores that counts are enough for, for each of the label sets, by every sign.

    Args:
        active: where the directions are active, for every sign.
        asked: label sets.
        measures: which scores; the published one by itself.
    """
    made = [[each.table(one, measures[0]) for one in active] for each in asked]
    return {
        measure: [
            torch.stack([table.of_measure(measure) for table in of_signs]) for of_signs in made
        ]
        for measure in measures
    }


class _Gathered:
    """The best of all blocks of directions so far, by one measure.

    Args:
        measure: by which measure.
        asked: the labels of the first half.
    """

    def __init__(self, measure: Measure, asked: Asked) -> None:
        concepts = len(asked.true)
        # Precision is compared over what chance gives, for a common concept has much of it anyway.
        common = measure is Measure.AVERAGE_PRECISION
        self.free = asked.true / len(asked.labels) if common else torch.zeros_like(asked.true)
        self.rows: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self.fitted = torch.full((concepts,), -torch.inf, dtype=torch.float64)
        self.direction = torch.zeros(concepts, dtype=torch.int64)
        self.sign = torch.ones(concepts, dtype=torch.int64)
        self.score = torch.full((concepts,), torch.nan, dtype=torch.float64)
        self.largest: list[Tensor] = []

    def take(
        self, block: Tensor, chosen: Tensor, scored: Tensor, by_chance: Sequence[Tensor]
    ) -> None:
        """Adds a block of directions.

        Args:
            block: which directions.
            chosen: their scores on the first half, [signs, directions, concepts].
            scored: and on the second.
            by_chance: and there for shuffled labels.
        """
        fitted, which = chosen.max(0)
        held = scored.gather(0, which[None])[0]
        signs = 1 - 2 * which
        # Over what chance gives: for choosing between concepts, never for the score itself.
        concept = ((fitted - self.free) / (1 - self.free)).argmax(1)
        at = concept[:, None]
        self.rows.append(
            (
                concept,
                signs.gather(1, at)[:, 0],
                fitted.gather(1, at)[:, 0],
                held.gather(1, at)[:, 0],
            )
        )
        top, place = fitted.max(0)
        better = top > self.fitted
        self.fitted = torch.where(better, top, self.fitted)
        self.direction = torch.where(better, block[place], self.direction)
        self.sign = torch.where(better, signs.gather(0, place[None])[0], self.sign)
        self.score = torch.where(better, held.gather(0, place[None])[0], self.score)
        if by_chance:
            largest = torch.stack([found.amax((0, 1)) for found in by_chance])
            self.largest.append(largest)

    def found(self) -> Found:
        """What all blocks together detect."""
        columns = [torch.cat(column) for column in zip(*self.rows, strict=True)]
        largest = torch.zeros(0, len(self.free), dtype=torch.float64)
        if self.largest:
            largest = torch.stack(self.largest).amax(0)
        return Found(
            *columns,
            direction=self.direction,
            direction_sign=self.sign,
            direction_score=self.score,
            largest=largest,
        )
