"""What is gathered of two sets of axes, batch by batch, and the measure that comes of it."""

import abc
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import final

import numpy as np
import torch
from torch import Tensor

from basis_probe.algebra.groups import Group, LineStabiliser, OnAxes, Orthogonal
from basis_probe.compare.alignments import (
    Alignment,
    align,
    mixed_axes,
    needs_products,
    require_kin,
    turned_axes,
)
from basis_probe.compare.canonical import projected, singular
from basis_probe.compare.kernels import (
    Hsic,
    Kernel,
    feature_hsic,
    hsic_of,
    linear_hsic,
    unit_factor,
)
from basis_probe.compare.matching import Matched, assignment, match
from basis_probe.compare.plan import FORMULAS, Plan, require_in_paper
from basis_probe.compare.running import Caught, Repeated, common_space, matched, unit_axes
from basis_probe.compare.samples import (
    all_alike,
    dissimilarities,
    gaussian_hsic,
    neighbours,
    rsa,
    shared_neighbours,
)
from basis_probe.compare.saved import caught, same_space
from basis_probe.errors import DataError
from basis_probe.results.similarity import Chance, Similarity, spread_of
from basis_probe.statistics.effective import distinct_rows
from basis_probe.statistics.second_moments import Crossed, Samples

FEWEST_SHUFFLED = 8
"""Examples change places within their batch; of fewer too many would stay where they are."""

MOST_SAMPLES = 4096
"""Pairs of samples are compared among at most so many, drawn uniformly."""


class Gathered(abc.ABC):
    """What was seen of two sets of axes so far, and the measure that comes of it.

    Args:
        plan: the measure.
        groups: the group of each.
        whole: True if all examples come at once, so that kernels need not be added up.
    """

    def __init__(self, plan: Plan, groups: tuple[Group, Group], *, whole: bool) -> None:
        self.plan, self.groups, self.whole = plan, groups, whole
        self.examples = self.samples = 0
        self.shuffling = torch.Generator().manual_seed(plan.seed + 1)
        alone = dataclasses.replace(plan, shuffles=0)
        self.shuffled = [gathering(alone, groups, whole=whole) for _ in range(plan.shuffles)]

    def see(self, x: Caught, y: Caught, fold: Tensor) -> None:
        """Adds the examples of one batch.

        Args:
            x: the activations of one network.
            y: those of the other for the same examples.
            fold: [examples], to which part of the data each belongs.
        """
        if self.plan.normalization == "paper" and x.space != y.space:
            x, y = map(caught, same_space(x.maps(), y.maps(), enlarge=True))
        common_space(x, y)
        self.examples += len(x.values)
        if self.shuffled and len(x.values) < FEWEST_SHUFFLED:
            raise DataError(
                f"a batch holds {len(x.values)} examples, which are too few to put in another "
                f"order: give batches of {FEWEST_SHUFFLED} or more, or shuffles=0"
            )
        for other in self.shuffled:
            order = torch.randperm(len(y.values), generator=self.shuffling)
            other.see(x, y.of_examples(order), fold)
        self._see(x, y, fold)

    def finish(self, sites: tuple[str, str]) -> Similarity:
        """The result.

        Raises:
            DataError: if what was seen does not suffice.
        """
        found = self._finished(sites)
        if not self.shuffled:
            return found
        values = [other.finish(sites).similarity for other in self.shuffled]
        return dataclasses.replace(found, chance=Chance.of(found.similarity, values))

    @abc.abstractmethod
    def _see(self, x: Caught, y: Caught, fold: Tensor) -> None:
        """Adds one batch to what is kept."""

    @abc.abstractmethod
    def _finished(self, sites: tuple[str, str]) -> Similarity:
        """The result without what chance gives."""

    @property
    def name(self) -> str:
        """What the measure is called in a table."""
        return self.plan.measure

    def distance(self, similarity: float) -> float:
        """The distance that belongs to a similarity."""
        if self.plan.measure == "cka":
            return math.acos(max(-1.0, min(1.0, similarity)))
        if self.plan.measure in ("procrustes", "cca", "svcca"):
            return chord(similarity)
        return max(0.0, 1 - similarity)

    def _result(
        self,
        value: float,
        distance: float,
        error: float,
        in_sample: float,
        sites: tuple[str, str],
        alignment: Alignment | Matched | None,
        notes: Sequence[str],
        formula: str,
    ) -> Similarity:
        return Similarity(
            measure=self.plan.measure,
            group=self.groups[0],
            similarity=value,
            distance=distance,
            std_error=error,
            in_sample=in_sample,
            dims=(self.groups[0].dim, self.groups[1].dim),
            n_samples=self.samples,
            n_examples=self.examples,
            formula=formula,
            sites=sites,
            alignment=alignment,
            notes=tuple(notes),
        )


def gathering(plan: Plan, groups: tuple[Group, Group], *, whole: bool = False) -> Gathered:
    """What gathers for a measure, empty.

    Raises:
        ValueError: if the measure does not belong to the groups.
    """
    require_kin(*groups)
    plan.require_group(groups[0])
    if plan.normalization == "paper":
        require_in_paper(plan, groups[0])
    if plan.of_samples:
        return _OfSamples(plan, groups, whole=whole)
    if plan.measure == "cka":
        return _OfKernels(plan, groups, whole=whole)
    return _OfMoments(plan, groups, whole=whole)


# --- from second moments --------------------------------------------------------------------------

Fitted = tuple[float, Alignment | Matched | None]


@final
class _OfMoments(Gathered):
    """Measures that fit something to sums of products: all but kernels and pairs of samples."""

    def __init__(self, plan: Plan, groups: tuple[Group, Group], *, whole: bool) -> None:
        super().__init__(plan, groups, whole=whole)
        # Turns and orders of axes are found from sums of products alone.
        whitened = plan.whitening > 0 or max(map(mixed_axes, groups)) > 0
        self.single = plan.measure in ("procrustes", "partial") and not whitened
        self.sizes_only = self.single and not any(map(needs_products, groups))
        empty = Crossed.empty(groups[0].dim, groups[1].dim, sizes_only=self.sizes_only)
        self.moments = [empty for _ in range(plan.folds)]
        self.mixed, self.turned = (max(map(of, groups)) for of in (mixed_axes, turned_axes))
        if plan.measure == "pwcca":
            self.mixed = self.turned = max(group.dim for group in groups)
        self.different = Different(self.turned + 1 if self.turned else 0)
        self.repeated = Repeated(plan.folds)

    def _see(self, x: Caught, y: Caught, fold: Tensor) -> None:
        for part in range(self.plan.folds):
            own, other = matched(x.of_fold(fold, part), y.of_fold(fold, part))
            if not len(own.values):
                continue
            self.samples += len(own.rows)
            self.different.see(own.rows, other.rows)
            sides = own.samples(single=self.single), other.samples(single=self.single)
            self.moments[part] += Crossed.of(*sides, sizes_only=self.sizes_only)
            if self.plan.folds > 1:
                self.repeated.see(part, own, other)

    def _finished(self, sites: tuple[str, str]) -> Similarity:
        total = sum(self.moments[1:], self.moments[0])
        if self.plan.normalization == "paper":
            return self._paper(total, sites)
        if total.count < 2:
            raise DataError(f"{total.count} samples: give at least two, better thousands")
        few = min(total.count, self.different.count)
        if self.mixed and few < total.count and few <= self.mixed + 1:
            refused = (
                f"No similarity can be told: the {total.count} samples are {few} different ones "
                f"that repeat, and {self.mixed} axes may be mixed, so that any two networks look "
                f"alike; give more than {self.mixed + 1} different samples."
            )
            nan = math.nan
            return self._result(nan, nan, nan, nan, sites, None, [refused], self.plan.formula)
        in_sample, alignment = self._fit(total, total)
        held_out: list[float] = []
        if self.plan.folds > 1:
            for part, test in enumerate(self.moments):
                rest = [other for place, other in enumerate(self.moments) if place != part]
                if test.count > 1:
                    held_out.append(self._fit(sum(rest[1:], rest[0]), test)[0])
        value = float(np.mean(held_out)) if held_out else in_sample
        return self._result(
            value,
            self.distance(value),
            spread_of(held_out),
            in_sample,
            sites,
            alignment,
            [*self._notes(few, bool(held_out), alignment)],
            self.plan.formula,
        )

    def _notes(
        self, few: int | float, held_out: bool, alignment: Alignment | Matched | None
    ) -> Iterator[str]:
        if not held_out:
            yield "Nothing was held out, so that the fit flatters."
        if few <= self.turned:
            yield (
                f"There are {self.turned} axes and {few} different samples: with no more samples "
                "than axes the best turn makes unrelated networks alike too, so that a high value "
                "says little."
            )
        if held_out:
            yield from self._repetitions()
        if alignment is not None:
            for which, flat in zip(("first", "second"), alignment.flat, strict=True):
                if flat:
                    yield f"{flat} directions of the {which} never vary and count for nothing."
            if self.groups[0].dim != self.groups[1].dim and isinstance(self.groups[0], OnAxes):
                yield "The widths differ, so that axes are matched in parts (soft matching)."

    def _repetitions(self) -> Iterator[str]:
        """What a reader must know of rows that come both in what is fitted on and held out."""
        distinct, share = self.repeated.count()
        if share > 0.1:
            flatters = (
                "the result says how alike these rows are after a fit to them, and no more"
                if share > 0.9
                else "the fit flatters"
            )
            yield (
                f"Of {self.samples} samples {distinct} are distinct, and {share:.0%} lie in "
                f"several of the parts that are held out in turn, so that {flatters}."
            )

    @functools.cached_property
    def _fit(self) -> Callable[[Crossed, Crossed], Fitted]:
        """What is fitted on some samples, and its similarity on others."""
        fits: dict[str, Callable[[Crossed, Crossed], Fitted]] = {
            "regression": _regression,
            "svcca": lambda train, test: (singular(train).similarity(test), None),
            "pwcca": lambda train, test: (projected(train).similarity(test), None),
            "partial": self._matched,
        }
        return fits.get(self.plan.measure, self._aligned)

    def _matched(self, train: Crossed, test: Crossed) -> Fitted:
        found = match(*self.groups, train, share=self.plan.share, constant=self.plan.constant)
        return found.similarity(test), found

    def _aligned(self, train: Crossed, test: Crossed) -> Fitted:
        plan = self.plan
        found = align(*self.groups, train, constant=plan.constant, whitening=plan.whitening)
        value = found.similarity(test)
        if plan.measure == "cca":
            # The mean over the directions of the smaller one.
            ranks = [form.weights.shape[-1] for form in (found.x, found.y)]
            value *= math.sqrt(ranks[0] * ranks[1]) / min(ranks)
        return value, found

    def _paper(self, total: Crossed, sites: tuple[str, str]) -> Similarity:
        moments = total.uncentred()
        turns = isinstance(self.groups[0], Orthogonal)
        if turns:
            size = math.sqrt(float(moments.x.sizes.sum()) * float(moments.y.sizes.sum()))
            nuclear = float(torch.linalg.matrix_norm(moments.sums, ord="nuc")) / size
            distance = math.sqrt(max(0.0, 2 - 2 * nuclear)) / 2
        else:
            norms = [side.sizes.sqrt() for side in (moments.x, moments.y)]
            safe = [torch.where(norm == 0, torch.ones_like(norm), norm) for norm in norms]
            cosines = moments.sums / safe[0][:, None] / safe[1]
            matched_sum = float(cosines[assignment(cosines)].sum())
            live = sum(int((norm > 0).sum()) for norm in norms)
            width = max(len(norm) for norm in norms)
            distance = math.sqrt(max(0.0, live - 2 * matched_sum) / (4 * width))
        name = "paper orthogonal procrustes" if turns else "paper procrustes"
        notes = ["Nothing was held out, so that the fit flatters."]
        value = 1 - distance
        return self._result(value, distance, math.nan, value, sites, None, notes, FORMULAS[name])


# --- from kernels ---------------------------------------------------------------------------------


@final
class _OfKernels(Gathered):
    """Centred kernel alignment, but for Gaussian kernels."""

    def __init__(self, plan: Plan, groups: tuple[Group, Group], *, whole: bool) -> None:
        super().__init__(plan, groups, whole=whole)
        self.kernel = plan.kernel_for(groups[0])
        self.units = plan.unit_axes_for(groups[0])
        self.of_axes = self.kernel is Kernel.LINEAR and plan.normalization == "shape"
        self.factors: tuple[float, float] | None = None
        self.kernels: list[Hsic] = []
        self.parts: list[float] = []

    @property
    def name(self) -> str:
        return f"{self.kernel.name.lower()} CKA"

    def _see(self, x: Caught, y: Caught, fold: Tensor) -> None:
        self.samples += len(x.values)
        if len(x.values) < 4:
            return
        if not self.whole or self.plan.folds == 1:
            self.kernels.append(self._hsic(x, y))
            return
        parts = [(x.of_fold(fold, part), y.of_fold(fold, part)) for part in range(self.plan.folds)]
        parts = [pair for pair in parts if len(pair[0].values) >= 4]
        if (
            self.of_axes
            and not self.units
            and sum(len(p[0].values) for p in parts) == len(x.values)
        ):
            self._see_folds(parts)
            return
        self.kernels.append(self._hsic(x, y))
        self.parts += [self._hsic(*pair).cka for pair in parts]

    def _see_folds(self, parts: Sequence[tuple[Caught, Caught]]) -> None:
        """The parts of the data and, from their sums, all of them."""
        pairs = [
            tuple(side.samples(single=True) for side in matched(own, other)) for own, other in parts
        ]
        moments = [Crossed.of(own, other) for own, other in pairs]
        each = zip(moments, pairs, strict=True)
        self.parts += [self._of_sums(one, [pair]).cka for one, pair in each]
        self.kernels.append(self._of_sums(sum(moments[1:], moments[0]), pairs))

    def _of_sums(self, moments: Crossed, pairs: Sequence[Sequence[Samples]]) -> Hsic:
        """The criteria of linear kernels of all samples that the moments are of."""
        own, other = (
            torch.cat([pair[side].lengths(about.mean) for pair in pairs])
            if self.plan.unbiased
            else torch.zeros(moments.count, dtype=torch.float64)
            for side, about in ((0, moments.x), (1, moments.y))
        )
        between = (
            (moments.sums, own, other),
            (moments.x.sums, own, own),
            (moments.y.sums, other, other),
        )
        sums = [feature_hsic(*each, unbiased=self.plan.unbiased) for each in between]
        return Hsic(*sums, batches=1, examples=len(own))

    def _hsic(self, x: Caught, y: Caught) -> Hsic:
        unbiased = self.plan.unbiased
        if self.of_axes:
            own, other = (
                side.unit if self.units else side.samples(single=True) for side in matched(x, y)
            )
            sums = [
                linear_hsic(a, b, unbiased=unbiased)
                for a, b in ((own, other), (own, own), (other, other))
            ]
            return Hsic(*sums, batches=1, examples=len(x.values))
        # The same for all batches, whose kernels are added.
        self.factors = self.factors or (unit_factor(x.values), unit_factor(y.values))
        own, other = (
            side.kernel_maps(self.kernel, unit_axes=self.units, factor=factor)
            for side, factor in zip((x, y), self.factors, strict=True)
        )
        return hsic_of(own, other, unbiased=unbiased)

    def _finished(self, sites: tuple[str, str]) -> Similarity:
        if not self.kernels:
            raise DataError(
                f"no batch holds four examples, which a kernel needs ({self.examples} examples "
                "were given)"
            )
        value = sum(self.kernels, Hsic()).cka
        if math.isnan(value):
            raise DataError(
                "one of the two is the same on every sample: there is nothing to compare"
            )
        error = spread_of(self.parts) if self.parts else jackknife(leave_one_out(self.kernels))
        formula = (
            f"the cosine of two centred kernels, {'un' if self.plan.unbiased else ''}biased; "
            f"of two samples, from the inner products of their axes: {self.kernel.value}. The "
            "distance is the angle between the kernels, a metric between kernels and blind to "
            "signs of axes"
        )
        notes = [*self._notes()]
        return self._result(value, self.distance(value), error, value, sites, None, notes, formula)

    def _notes(self) -> Iterator[str]:
        if len(self.kernels) > 1:
            yield f"The kernels were compared within {len(self.kernels)} batches and added up."
        elif not self.parts:
            yield "All data came in one batch, so that there are no error bars."
        if self.plan.kernel is None and self.kernel is not Kernel.LINEAR:
            yield (
                f"The kernel is that of {self.groups[0].name} axes, {self.kernel.name.lower()}; "
                'for the linear CKA of Kornblith et al. (2019) give group="orthogonal" and '
                'estimator="biased".'
            )


# --- from pairs of samples ------------------------------------------------------------------------


@final
class _OfSamples(Gathered):
    """Measures of how alike pairs of samples are, which fit nothing."""

    def __init__(self, plan: Plan, groups: tuple[Group, Group], *, whole: bool) -> None:
        super().__init__(plan, groups, whole=whole)
        self.rows = Drawn(plan.most or MOST_SAMPLES, torch.Generator().manual_seed(plan.seed))

    def _see(self, x: Caught, y: Caught, fold: Tensor) -> None:
        numbers = torch.arange(self.examples - len(x.values), self.examples)
        for part in range(self.plan.folds):
            own, other = matched(x.of_fold(fold, part), y.of_fold(fold, part))
            if not len(own.values):
                continue
            belongs = numbers[fold.cpu() == part]
            counts = (
                torch.full_like(belongs, own.values.shape[1])
                if own.counted is None
                else own.counted.sum(1).cpu()
            )
            belongs = belongs.repeat_interleave(counts)
            self.samples += len(own.rows)
            self.rows.see(own.rows, other.rows, belongs, torch.full_like(belongs, part))

    def _finished(self, sites: tuple[str, str]) -> Similarity:
        plan, (x, y, belongs, fold) = self.plan, self.rows.kept()
        if len(x) < 4:
            raise DataError(f"{len(x)} samples: pairs of samples need at least four")
        sides = self._comparable(x, self.groups[0]), self._comparable(y, self.groups[1])
        kind = plan.dissimilarity
        by_neighbours = plan.measure in ("knn", "jaccard")
        tables: list[Tensor] = []
        for side in sides:
            table = (
                neighbours(side, kind, plan.neighbours)
                if by_neighbours
                else dissimilarities(side, kind)
            )
            if table is None or (not by_neighbours and all_alike(table)):
                raise DataError(
                    "in one of the two all pairs of samples are equally unlike: there is nothing "
                    "to compare"
                )
            tables.append(table)

        def of(chosen: Tensor) -> float:
            parts = [table[chosen][:, chosen] for table in tables]
            return gaussian_hsic(parts[0], parts[1], plan.width, unbiased=plan.unbiased).cka

        error = math.nan
        if by_neighbours:
            each = shared_neighbours(tables[0], tables[1], union=plan.measure == "jaccard")
            value = float(each.mean())
            # Samples of one example are not independent.
            index = belongs.unique(return_inverse=True)[1]
            sums = torch.zeros(int(index.max()) + 1, dtype=torch.float64)
            sums.index_add_(0, index, each - value)
            if len(sums) > 1:
                error = float(sums.norm()) / len(each) * math.sqrt(len(sums) / (len(sums) - 1))
        elif plan.measure == "rsa":
            value, left = rsa(tables[0], tables[1], plan.correlation, fold)
            error = jackknife(left)
        else:
            value = of(torch.arange(len(x)))
            parts = [(fold != part).nonzero().flatten() for part in fold.unique()]
            left = [of(chosen) for chosen in parts if 4 <= len(chosen) < len(x)]
            error = jackknife(left)
        if math.isnan(value):
            raise DataError(
                "one of the two kernels does not vary: the width is too small or too large for "
                "these samples"
            )
        notes: list[str] = []
        distinct = distinct_rows(torch.cat(sides, 1))
        if distinct < 0.9 * len(x):
            notes.append(
                f"{distinct} of {len(x)} samples are different: what repeats is alike in any two "
                "networks, so that the value is higher than of samples that do not; give shuffles= "
                "for what chance reaches, or each sample once."
            )
        if len(x) < self.samples:
            notes.append(
                f"Pairs were compared among {len(x)} of the {self.samples} samples, drawn "
                "uniformly."
            )
        formula = "" if plan.rbf else plan.formula
        if plan.measure == "cka":
            formula = (
                "the cosine of two centred Gaussian kernels, "
                f"{'un' if plan.unbiased else ''}biased, {plan.width:g} median distances wide; the "
                "distance is the angle between them"
            )
        if plan.measure == "rsa":
            formula += f"; {kind} dissimilarities, {plan.correlation} correlation"
        if by_neighbours:
            formula += f"; {plan.neighbours} neighbours by {kind} distance, of {len(x)} samples"
        distance = self.distance(value)
        return self._result(value, distance, error, value, sites, None, notes, formula)

    def _comparable(self, rows: Tensor, group: Group) -> Tensor:
        """The samples in a form that the group's scales cannot change."""
        rows = rows.double()
        if isinstance(group, LineStabiliser):
            return rows - rows.mean(1, keepdim=True)
        return unit_axes(rows) if group.rescales else rows


class Drawn:
    """Samples of two networks, at most so many, drawn uniformly.

    Args:
        most: how many.
        generator: draws which are kept.
    """

    def __init__(self, most: int, generator: torch.Generator) -> None:
        self.most, self.generator = most, generator
        self.parts: list[tuple[Tensor, ...]] = []
        self.held = 0

    def see(self, x: Tensor, y: Tensor, belongs: Tensor, fold: Tensor) -> None:
        """Adds the same samples of both, with the example and the fold of each."""
        priority = torch.rand(len(x), generator=self.generator, dtype=torch.float64)
        self.parts.append((x.cpu(), y.cpu(), belongs, fold, priority))
        self.held += len(x)
        if self.held > 4 * self.most:
            self._reduce()

    def kept(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The samples of both, and the example and the fold of each."""
        self._reduce()
        x, y, belongs, fold, _ = (
            self.parts[0] if self.parts else (torch.zeros(0, 1, dtype=torch.float64),) * 5
        )
        return x, y, belongs, fold

    def _reduce(self) -> None:
        if not self.parts:
            return
        joined = [torch.cat(column) for column in zip(*self.parts, strict=True)]
        chosen = joined[-1].argsort()[: self.most].sort().values
        self.parts = [tuple(column[chosen] for column in joined)]
        self.held = len(chosen)


class Different:
    """How many different samples there were, as long as they are few.

    Args:
        most: above so many it is no longer counted.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.rows: Tensor | None = None
        self.sizes: list[float] = []
        self.eps = 0.0
        self.many = most == 0

    def see(self, x: Tensor, y: Tensor) -> None:
        """Adds the same samples of both networks."""
        if self.many:
            return
        # Some at a time: where they are many, a few of them say so.
        at_once = 2 * self.most + 1
        for own, other in zip(x.split(at_once), y.split(at_once), strict=True):
            if self.many:
                return
            self._add(own, other)

    def _add(self, x: Tensor, y: Tensor) -> None:
        generator = torch.Generator().manual_seed(0)
        self.eps = max(self.eps, *(torch.finfo(side.dtype).eps for side in (x, y)))
        parts: list[Tensor] = []
        for side in (x, y):
            exact = side.double().cpu()
            directions = torch.randn(side.shape[1], 8, generator=generator, dtype=torch.float64)
            parts.append(exact @ directions)
        if not self.sizes:
            self.sizes = [_size_of(part) for part in parts]
        rows = torch.cat([part / size for part, size in zip(parts, self.sizes, strict=True)], 1)
        self.rows = rows if self.rows is None else torch.cat([self.rows, rows])
        if len(self.rows) > 2 * self.most:
            self.many = distinct_rows(self.rows, eps=self.eps) > self.most
            self.rows = None if self.many else self.rows.unique(dim=0)

    @property
    def count(self) -> float:
        """How many there were; infinite if more than are counted."""
        if self.many or self.rows is None:
            return math.inf
        return distinct_rows(self.rows, eps=self.eps)


def _size_of(rows: Tensor) -> float:
    """How far rows are from their mean, or from zero where they are all one row."""
    apart = float((rows - rows.mean(0)).square().mean().sqrt())
    about_zero = float(rows.square().mean().sqrt())
    return apart if apart > 1e-12 * about_zero else about_zero or 1.0


def chord(cosine: float) -> float:
    """The distance between two points of the unit sphere."""
    return math.sqrt(max(0.0, 2 - 2 * cosine))


def _regression(train: Crossed, test: Crossed) -> tuple[float, None]:
    """The share of variance of y that the linear map fitted on some samples predicts on others."""
    dim = len(train.x.mean)
    if train.count <= dim + 1:
        raise DataError(
            f"x has {dim} axes and {train.count} samples to fit with, about their mean: give more "
            f"than {dim + 1} samples in every part of the data"
        )
    fitted = train.x.least_squares(train.sums)
    explained = 2 * (fitted * test.sums).sum() - (fitted * (test.x.sums @ fitted)).sum()
    total = test.y.sums.trace()
    if not float(total) > 0:
        raise DataError("y is the same on every sample: there is nothing to predict")
    return float(explained / total), None


def leave_one_out(kernels: Sequence[Hsic]) -> list[float]:
    """The alignment without each batch in turn."""
    if len(kernels) < 2:
        return []
    return [
        sum((other for place, other in enumerate(kernels) if place != left), Hsic()).cka
        for left in range(len(kernels))
    ]


def jackknife(values: Sequence[float]) -> float:
    """The standard error from values that each leave one part out."""
    if len(values) < 2:
        return math.nan
    known = np.asarray(values)
    return float(np.sqrt((len(known) - 1) * known.var()))
