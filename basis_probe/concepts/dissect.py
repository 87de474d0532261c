"""Which concepts the axes of a layer detect, and how many its rotations do: the entry points."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from basis_probe.activations import Nonlinearity, example_numbers, layer_of, symmetry_of
from basis_probe.algebra.groups import Group
from basis_probe.algebra.intertwiner import callable_of
from basis_probe.architecture.derive import Derivation
from basis_probe.arguments import (
    flag,
    instance,
    member,
    number,
    seed_of,
    several,
    texts,
    whole,
)
from basis_probe.arrays import Matrix, matrix
from basis_probe.concepts.alignment import Measure
from basis_probe.concepts.comparing import Effort, Interruption, compare
from basis_probe.concepts.detection import Setting, Sides
from basis_probe.concepts.labels import (
    BOTH,
    Concepts,
    Labels,
    Resolution,
    Sources,
    Split,
    expanded,
    rows_of,
)
from basis_probe.concepts.maps import Maps
from basis_probe.devices import on_own_device
from basis_probe.errors import DataError, StreamError
from basis_probe.evidence.measure import Choice, choose
from basis_probe.evidence.site import chosen_null
from basis_probe.interrupts import guarded, hold, stoppable, unstoppable
from basis_probe.model.batches import Batch
from basis_probe.model.capture import catching
from basis_probe.model.facts import facts_of
from basis_probe.model.network import Subject, device_of, prepared, recognise
from basis_probe.model.sites import asked, sensible
from basis_probe.results.dissection import Comparison, Dissection, SiteDissection
from basis_probe.run.problems import dispensable, problem_of
from basis_probe.run.read import FAILED, batches_of, count_of, progressing
from basis_probe.run.stream import Seen, Stream
from basis_probe.run.watch import Groups, Placed, placed, require_groups
from basis_probe.statistics.nulls import Null, Problem, Rotation
from basis_probe.statistics.sampling import hash_examples

FRAMES = 19
"""Alternatives drawn unless a null says otherwise: as many as can reach p = 0.05."""

USUAL = (Measure.AVERAGE_PRECISION, Measure.AUC, Measure.IOU)
"""Measures of samples; maps interpolated to masks have too many for ranks, and are told by IoU."""

FEWEST_EXAMPLES = 8

Found = TypeVar("Found")
Result = TypeVar("Result")

_RULES = {
    Measure.IOU: (
        "The thresholds of iou are quantiles over pixels of the interpolated maps. Published "
        'totals take them over cells of the maps: ask for measures="published_iou".'
    ),
    Measure.PUBLISHED_IOU: (
        "The thresholds of published_iou are quantiles over cells of the maps, before they are "
        "interpolated, as network dissection takes them; published totals choose and score "
        "concepts on the same data (split=Split.NONE) and ask for no more than IoU above 0.04."
    ),
}
"""What a reader must know of a rule where maps are interpolated to larger masks."""


@on_own_device
def dissect(
    model: nn.Module,
    data: Iterable[Any],
    concepts: Concepts,
    *,
    sites: str | Iterable[str] | None = None,
    measures: str | Measure | Iterable[str | Measure] | None = None,
    null: str | Null | None = None,
    groups: Groups | None = None,
    top: float = 0.005,
    threshold: float | None = None,
    categories: Mapping[str, str] | None = None,
    sides: Sides | None = None,
    split: Split = Split.HALVES,
    resolution: Resolution = Resolution.LABELS,
    frames: int | None = None,
    effort: Effort | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    max_samples: int = 16384,
    progress: bool = True,
) -> Dissection:
    """Which concepts the axes of each site detect, and how many directions of the null do.

    For every direction the concept that it tells best is chosen on half of the examples and scored
    on the others; a concept is detected if the score of a direction that tells it best is above the
    threshold and above what shuffled labels reach. Axes and null go through the same code. Behind a
    nonlinearity the null is that of counterfactual neurons, and the raw rotation is shown beside.

    Ctrl-C after the first batch ends the pass: the batches before it are dissected. While sites are
    dissected it leaves the alternatives that were drawn, and one each at the sites that are left; a
    second one leaves these out. The notes say what is missing.

    Args:
        model: as for `probe`.
        data: as for `probe`.
        concepts: name -> labels over all data, or a function from a batch to name -> its labels, or
            `token_concepts`, or several of these in a list. Labels are true or false for every
            example, token [examples, positions] or pixel [examples, height, width].
        sites: as for `probe`.
        measures: "average_precision", "auc", "iou", "published_iou", "f1", "mutual_information";
            None for the first three, or "iou" alone for masks at their own resolution. For maps,
            "iou" takes thresholds over interpolated pixels, and "published_iou" over cells of the
            map before it is interpolated, as network dissection does.
        null: "rotation", "counterfactual" or a null as a value; None for the one each site calls
            for, and the rotation beside it.
        groups: as for `probe`.
        top: the share of samples that count as active, for measures that need a threshold.
        threshold: above this a concept counts as detected; None for the measure's own.
        categories: concept -> its category, for "published_iou": an image in which no concept of a
            category is labelled does not count for the concepts of that category, as published;
            None if every image counts for every concept.
        sides: whether a direction may be read where it is negative; None for yes, unless
            most axes hardly leave zero on that side, as behind a ReLU.
        split: on which data concepts are chosen, and scored.
        resolution: whether maps of activations are interpolated to the masks, as network dissection
            does, or masks are reduced to the maps.
        frames: how many alternatives; None for 19, or what the null says.
        effort: how many shuffles and resamples.
        seed: seeds everything drawn.
        device: as for `probe`.
        max_samples: at most this many samples are compared at each site, drawn uniformly; of maps
            that are interpolated all images are kept. Thresholds are exact on what is kept, in
            whatever order and batches it came; among m of more samples, the share of all that
            exceeds one differs from `top` by chance, with sd sqrt(top (1 - top) / m).
        progress: whether to show progress bars.

    Raises:
        SiteError, DataError, ValueError, TypeError: as `probe`, and for labels that do not fit.
        StreamError: as `probe`; its `.report()` is the dissection of the batches before.

    Example:
        >>> import torch, basis_probe as bp
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = torch.randn(400, 8, generator=generator)
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU())
        >>> weight = torch.nn.init.normal_(model[0].weight, generator=generator)
        >>> labels = {"first": x[:, 0] > 1}
        >>> found = bp.dissect(model, [x], labels, measures="auc", frames=19, progress=False)
        >>> [one.null.name for one in found["1"].comparisons]
        ['counterfactual', 'rotation']
    """
    resolution = member("resolution", resolution, Resolution)
    asked_for = _asked_for(
        measures=measures, null=null, frames=frames, top=top, threshold=threshold,
        categories=categories, sides=sides, split=split, effort=effort, seed=seed,
    )  # fmt: skip
    each = functools.partial(_dissected, **asked_for)
    used: Effort = asked_for["effort"]
    seed = used.seed
    settings = {
        "seed": str(seed),
        "max_samples": str(whole("max_samples", max_samples, least=1)),
        "top": str(asked_for["top"]),
        "resolution": resolution.name.lower(),
        "shuffles": str(used.shuffles),
        "resamples": str(used.resamples),
    }

    def conclude(gathered: Gathered[SiteDissection]) -> Dissection:
        described = {"model": gathered.model, "data": gathered.data}
        notes = (*gathered.notes, *gathered.interrupted)
        return Dissection(gathered.found, described | settings, notes)

    return gather(
        model, data, concepts, each, conclude, sites=sites, groups=groups, resolution=resolution,
        seed=seed, device=device, max_samples=max_samples, progress=progress,
        pre=asked_for["wanted"] is not None,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class Known:
    """What is known of one site before its axes are asked anything.

    Attributes:
        name, kind: its name, and what it is in words.
        problem: the activations and what made them.
        labels: which samples carry which concept.
        halves: [samples], on which half of the data each is.
        maps: between maps of activations and larger masks; None where rows are labelled.
        masks: True where masks are read at their own resolution.
        n_examples: how many examples there are.
        notes: what a reader must know.
    """

    name: str
    kind: str
    problem: Problem
    labels: Labels
    halves: Tensor
    maps: Maps | None
    masks: bool
    n_examples: int
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Gathered(Generic[Found]):
    """What one pass over labelled data gave.

    Attributes:
        found: what was made of every site, in forward order.
        model, data: in words.
        notes: of the run as a whole.
        interrupted: what is missing, and why; nothing where nothing is.
    """

    found: tuple[Found, ...]
    model: str
    data: str
    notes: tuple[str, ...]
    interrupted: tuple[str, ...]


def gather(
    model: nn.Module,
    data: Iterable[Any],
    concepts: Concepts,
    each: Callable[[Known, Interruption], Found],
    conclude: Callable[[Gathered[Found]], Result],
    *,
    sites: str | Iterable[str] | None,
    groups: Groups | None,
    resolution: Resolution,
    seed: int,
    device: str | torch.device | None,
    max_samples: int,
    progress: bool,
    pre: bool,
) -> Result:
    """What comes of the activations and labels of every site, from one pass over the data.

    Sites are taken one after the other, so that one at a time is unpacked: `each` says what is made
    of one of them, `conclude` what is made of all. With `pre` what comes before a nonlinearity is
    unpacked too. The other arguments, and what is raised, are those of `dissect`.
    """
    max_samples = whole("max_samples", max_samples, least=FEWEST_EXAMPLES)
    progress = bool(flag("progress", progress))
    if sites is not None:
        named = texts("sites", sites, "names or globs of sites")
        sites = sites if isinstance(sites, str) else named
    require_groups(groups)
    sources = Sources(concepts)
    subject = recognise(model)
    target = None if device is None else device_of(device)
    with guarded() as guard, prepared(subject.model, target) as notes:
        raws: list[object] = []
        batches = batches_of(remembering(data, raws), subject)
        first = next(batches, None)
        if first is None:
            raise DataError("the data hold no batch: give at least one, better several")
        facts = facts_of(subject, first)
        if sites is None:
            chosen = sensible(facts, facts.sites, subject.usual)
        else:
            chosen = asked(sites, facts.sites, silent=subject.silent())
        places = placed(Derivation(facts), chosen, groups)
        labelled = _Labelled(sources, resolution, capacity=max_samples)
        # The first labels are looked at before the data are run.
        labelled.read(raws.pop(0), first)
        stream = Stream(
            {name: place.plan for name, place in places.items()},
            seed=seed,
            capacity=_room(subject, first, places, labelled, data, max_samples),
            most=None,
            # The activations are kept as they are: what axes score is their own.
            dispensable=lambda *site: dispensable(places, subject.dtype, *site) - {"x"},
        )

        def finish(said: str = "", *, keep: bool = False) -> Result:
            def known(name: str) -> Known:
                # Nothing but the site itself holds its rows from here on, unless they are kept.
                return _known(
                    name, places[name], stream.seen[name] if keep else stream.release(name),
                    labelled, subject.dtype, pre=pre,
                )  # fmt: skip

            found, missing = _of_sites(tuple(places), known, each)
            late = "It was interrupted when everything had been found; nothing is missing."
            described = f"{stream.batches} batches of {first.form}, {stream.examples} examples"
            more = tuple(filter(None, (said, missing, late if guard.late else "")))
            return conclude(Gathered(found, subject.description, described, notes, more))

        try:
            passing = progressing(
                itertools.chain([first], batches),
                "running the model",
                total=count_of(data),
                progress=progress,
            )
            for batch in passing:
                with stoppable():
                    if batch is not first:
                        labelled.read(raws.pop(0), batch)
                    add = stream.look(
                        subject.model,
                        batch,
                        lambda b=batch: subject.call(b),
                        beside=labelled.beside,
                    )
                with unstoppable():
                    add()
                    hold()
        except KeyboardInterrupt:
            count = stream.batches
            if not count:
                raise
            try:
                return finish(f"It was interrupted after {count} batches, which this is of.")
            except ValueError as few:
                said = f"interrupted after {count} batches, which cannot be dissected: {few}"
                raise KeyboardInterrupt(said) from few
        except Exception as error:
            count = stream.batches
            if not count or isinstance(error, _LabelError):
                raise
            said = f"batch {count} failed: {type(error).__name__}: {error}"
            raise StreamError(
                f"{said}. The {count} batches before it are kept: call .report() of this error for "
                "what they show",
                batches=count,
                finish=functools.partial(
                    finish, f"{FAILED} after {count} batches: {said}", keep=True
                ),
            ) from error
        sources.finish()
        return finish()


PATIENCE = 5
"""So many interruptions are outlasted by the first site, so that the pass was not for nothing."""


def _of_sites(
    names: Sequence[str],
    known: Callable[[str], Known],
    each: Callable[[Known, Interruption], Found],
) -> tuple[tuple[Found, ...], str]:
    """What is made of every site, and what a reader must know of an interruption."""
    found: dict[str, Found] = {}
    # The site that is looked at, which is unpacked once, however often it is interrupted.
    ready: dict[str, Known] = {}
    interruption = Interruption(PATIENCE)
    while left := [name for name in names if name not in found]:
        try:
            if left[0] not in ready:
                ready.clear()
                ready[left[0]] = known(left[0])
            with stoppable():
                found[left[0]] = each(ready[left[0]], interruption)
                interruption.most = 1
        except KeyboardInterrupt:
            if interruption.came < interruption.most:
                interruption.came += 1
            elif found:
                return tuple(
                    found.values()
                ), f"It was interrupted; not dissected: {', '.join(left)}."
            else:
                raise
    return tuple(found.values()), ""


@on_own_device
def dissect_activations(
    x: Matrix,
    concepts: Mapping[str, Any],
    *,
    examples: Any = None,
    group: Group | str | None = None,
    pre: Matrix | None = None,
    nonlinearity: Nonlinearity | None = None,
    inputs: Matrix | None = None,
    weight: Matrix | None = None,
    bias: Matrix | None = None,
    null: str | Null | None = None,
    measures: str | Measure | Iterable[str | Measure] | None = None,
    top: float = 0.005,
    threshold: float | None = None,
    categories: Mapping[str, str] | None = None,
    sides: Sides | None = None,
    split: Split = Split.HALVES,
    frames: int | None = None,
    effort: Effort | None = None,
    seed: int = 0,
) -> SiteDissection:
    """Which concepts the axes of a matrix of activations detect, and how many of the null's do.

    Args:
        x: the activations, [samples, dim].
        concepts: name -> labels [samples]: true or false, or integers or strings for categories.
        examples: [samples], which example (sequence, image) each sample belongs to, as integers;
            None if samples are independent. Halves, shuffles and resamples take whole examples.
        group: as for `probe_activations`, like the next six.
        pre: [samples, dim].
        nonlinearity: its name, a function or a module.
        inputs: [samples, in].
        weight: [dim, in].
        bias: [dim].
        null: "rotation", "counterfactual" or a null as a value; None for the one that fits.
        measures: as for `dissect`, like all that follows.
        top: the share of samples that count as active.
        threshold: above this a concept counts as detected.
        categories: concept -> its category, for "published_iou".
        sides: whether a direction may be read where it is negative.
        split: on which data concepts are chosen, and scored.
        frames: how many alternatives.
        effort: how many shuffles and resamples.
        seed: seeds everything drawn.

    Raises:
        TypeError, ValueError: as `probe_activations`.
        DataError: for labels that do not fit.

    Example:
        >>> import torch, basis_probe as bp
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = torch.randn(2000, 16, generator=generator)
        >>> labels = {f"axis {i}": x[:, i] > 1.5 for i in range(8)}
        >>> found = bp.dissect_activations(x, labels, group="orthogonal", frames=19)
        >>> found.comparison().distinct.observed
        8.0
    """
    asked_for = _asked_for(
        measures=measures, null=null, frames=frames, top=top, threshold=threshold,
        categories=categories, sides=sides, split=split, effort=effort, seed=seed,
    )  # fmt: skip
    known = known_of(
        x, concepts, examples=examples, group=group, pre=pre, nonlinearity=nonlinearity,
        inputs=inputs, weight=weight, bias=bias, seed=asked_for["effort"].seed,
    )  # fmt: skip
    with guarded():
        return _dissected(known, Interruption(), **asked_for)


def known_of(
    x: Matrix,
    concepts: Mapping[str, Any],
    *,
    examples: Any,
    group: Group | str | None,
    pre: Matrix | None,
    nonlinearity: Nonlinearity | None,
    inputs: Matrix | None,
    weight: Matrix | None,
    bias: Matrix | None,
    seed: int,
) -> Known:
    """What is known of a matrix of activations and its labels.

    The arguments, and what is raised, are those of `dissect_activations`.
    """
    values = matrix("x", x)
    samples, dim = values.shape
    flags = expanded(concepts)
    for name, labels in flags.items():
        if not isinstance(labels, Tensor) or labels.shape != (samples,):
            shape = list(labels.shape) if isinstance(labels, Tensor) else "sequences"
            raise DataError(
                f"the labels of {name!r} have shape {shape} and x has {samples} samples: give one "
                "label for every sample"
            )
    belongs = example_numbers(examples, samples)
    order = belongs.argsort(stable=True)
    halves = _halves(belongs[order], generator=torch.Generator().manual_seed(seed))
    # Each half in one piece, so that it can be taken without a copy.
    order, halves = order[halves.argsort(stable=True)], halves.sort().values
    belongs = belongs[order]
    symmetry = symmetry_of(group, dim)
    before = None if pre is None else matrix("pre", pre, rows=samples, columns=dim)
    function = None if nonlinearity is None else callable_of(nonlinearity)[1]
    if before is not None and function is None:
        raise ValueError("pre is given without nonlinearity: name what makes x of pre")
    if (inputs is None) != (weight is None):
        raise ValueError("inputs and weight belong together: give both or neither")
    if bias is not None and weight is None:
        raise ValueError("bias is given without weight: give inputs and weight too")
    if function is not None and before is None and inputs is None:
        raise ValueError(
            "nonlinearity is given without what it reads: give pre, or inputs and weight"
        )
    problem = Problem(
        x=values[order],
        group=symmetry.group,
        halves=halves,
        pre=None if before is None else before[order],
        nonlinearity=function if before is not None else None,
        layer=None
        if inputs is None or weight is None
        else layer_of(
            matrix("inputs", inputs, rows=samples)[order], weight, bias, function, values[order]
        ),
    )
    labels = Labels(tuple(flags), torch.stack([flags[name][order] for name in flags], 1), belongs)
    return Known(
        name="activations",
        kind="activations" if function is None else "neurons behind a nonlinearity",
        problem=problem,
        labels=labels,
        halves=halves,
        maps=None,
        masks=False,
        n_examples=int(belongs.unique().numel()),
    )


# --- the data -------------------------------------------------------------------------------------


def _measures(
    wanted: str | Measure | Iterable[str | Measure] | None,
) -> tuple[Measure, ...] | None:
    if wanted is None:
        return None
    single = isinstance(wanted, str | Measure)
    each = (wanted,) if single else several("measures", wanted, "names of measures")
    return tuple(member("measures", one, Measure) for one in each)


def _asked_for(
    *,
    measures: str | Measure | Iterable[str | Measure] | None,
    null: str | Null | None,
    frames: int | None,
    top: float,
    threshold: float | None,
    categories: Mapping[str, str] | None,
    sides: Sides | None,
    split: Split,
    effort: Effort | None,
    seed: int,
) -> dict[str, Any]:
    """How a site is dissected, checked before anything is run.

    Raises:
        ValueError, TypeError: for what makes no sense.
    """
    used = _measures(measures)
    if categories is not None:
        instance("categories", categories, Mapping, "a dict from concepts to their categories")
        if used is None or Measure.PUBLISHED_IOU not in used:
            raise ValueError(
                'categories are given and no measure reads them: add "published_iou" to measures'
            )
    effort = (
        Effort() if effort is None else instance("effort", effort, Effort, "an Effort, or None")
    )
    return {
        "used": used,
        "wanted": chosen_null(null),
        # A null knows how many frames it needs.
        "frames": None if frames is None else Rotation(frames=frames).frames,
        "top": number("top", top, most=1.0),
        "threshold": None if threshold is None else number("threshold", threshold, above=-math.inf),
        "categories": categories,
        "sides": None if sides is None else member("sides", sides, Sides),
        "split": member("split", split, Split),
        "effort": dataclasses.replace(effort, seed=seed_of(seed)),
    }


def remembering(data: Iterable[Any], raws: list[object]) -> Iterable[Any]:
    """The same items, each put down before it is handed on.

    Args:
        data: as the user gave it.
        raws: where items are put.
    """
    if isinstance(data, str) or not isinstance(data, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
        return data
    if isinstance(data, Tensor | np.ndarray | Mapping):
        data = [data]

    def items() -> Iterator[Any]:
        for raw in data:
            raws.append(raw)
            yield raw

    return items()


def _room(
    subject: Subject,
    first: Batch,
    places: Mapping[str, Placed],
    labelled: "_Labelled",
    data: Iterable[Any],
    max_samples: int,
) -> int:
    """How many rows are kept: of maps that are interpolated all, for images are not cut.

    Raises:
        DataError: if it cannot be known how many there will be.
    """
    if not labelled.interpolated:
        return max_samples
    examples = labelled.sources.examples
    if examples is None and isinstance(data, Sized):
        examples = len(data) * first.size
    if examples is None:
        raise DataError(
            "how many images there are is not known beforehand, and all of them are kept: give "
            "the masks as whole arrays, or the data as a list of batches, or "
            "resolution=Resolution.MAPS"
        )
    sizes: list[int] = []

    def measure(tensor: Tensor) -> None:
        sizes.append(int(np.prod(tensor.shape[2:])))

    addresses = {place.plan.address: measure for place in places.values()}
    with torch.no_grad(), catching(subject.model, addresses):
        subject.call(first.first(1))
    return examples * max(sizes, default=1)


class _LabelError(DataError):
    """Labels do not fit the data, so that it is not known whether those before them did."""


class _Labelled:
    """The labels of every batch, for whichever rows a site keeps of it.

    Args:
        sources: what the user gave.
        resolution: at which resolution maps and masks meet.
        capacity: how many rows are kept at each site.
    """

    def __init__(self, sources: Sources, resolution: Resolution, *, capacity: int) -> None:
        self.sources, self.resolution, self.capacity = sources, resolution, capacity
        self.names: tuple[str, ...] = ()
        self.interpolated = False
        self.hashes: list[Tensor] = []
        self.masks: list[Tensor] = []
        self.current: dict[str, Tensor] = {}

    def read(self, raw: object, batch: Batch) -> None:
        """Takes the labels of the next batch.

        Raises:
            DataError: if they do not fit it.
        """
        try:
            self.current = self.sources.of(raw, batch.inputs, batch.mask)
        except DataError as error:
            raise _LabelError(str(error)) from error
        if not self.names:
            self.names = tuple(self.current)
            maps = [flags.ndim == 3 for flags in self.current.values()]
            self.interpolated = all(maps) and self.resolution is Resolution.LABELS
        self.hashes.append(hash_examples(batch.inputs, batch.mask).cpu())
        if self.interpolated:
            self.masks.append(torch.stack([*self.current.values()], -1))

    def beside(self, lead: torch.Size) -> dict[str, Tensor]:
        """What is kept beside every row: its example, its place, and its labels."""
        rows = int(np.prod(lead))
        hashes = self.hashes[-1]
        if rows % len(hashes):
            raise DataError(
                f"the site has {rows} samples for {len(hashes)} examples, which cannot be told "
                "apart: dissect sites whose first axis is the batch"
            )
        each = rows // len(hashes)
        found = {"place": torch.arange(rows) % each}
        if self.interpolated:
            if len(lead) != 3:
                raise DataError(
                    f"the labels are masks and a site has samples {list(lead)}: dissect sites that "
                    "are maps, [batch, channels, height, width]"
                )
            start = sum(map(len, self.hashes[:-1]))
            found["ordinal"] = torch.arange(start, start + len(hashes)).repeat_interleave(each)
            found["size"] = torch.tensor([lead[1], lead[2]]).expand(rows, 2)
        else:
            found["labels"] = torch.stack(
                [rows_of(name, flags, lead) for name, flags in self.current.items()], 1
            )
        return found


# --- after the data -------------------------------------------------------------------------------


def _known(
    name: str, place: Placed, seen: Seen, labelled: _Labelled, dtype: torch.dtype, *, pre: bool
) -> Known:
    if seen.bad:
        number, count = seen.bad[0]
        raise DataError(
            f"{count} values of {name} are NaN or infinite in batch {number}: give data on which "
            "the model stays finite"
        )
    rows = dict(seen.kept.rows)
    if not rows:
        raise DataError(f"{name} did not run in any batch")
    order = rows["place"].argsort(stable=True)
    if "ordinal" in rows:
        # Images that come again are in the same half, and maps of their own.
        order = order[rows["ordinal"][order].argsort(stable=True)]
    order = order[rows["example"][order].argsort(stable=True)]
    # Each half in one piece, so that it can be taken without a copy.
    order = order[_halves(rows["example"][order]).argsort(stable=True)]
    priorities = seen.kept.priorities[order]
    kept = dataclasses.replace(seen.kept, priorities=priorities, rows={})
    seen = dataclasses.replace(seen, kept=kept)
    # One after the other, so that there are never two copies of all of them.
    kept = dataclasses.replace(kept, rows={key: rows.pop(key)[order] for key in tuple(rows)})
    rows = kept.rows
    problem, notes = problem_of(place, dataclasses.replace(seen, kept=kept), dtype, pre=pre)
    belongs, halves = rows["example"], _halves(rows["example"])
    maps: Maps | None = None
    if labelled.interpolated:
        height, width = (int(size) for size in rows["size"][0])
        firsts = torch.arange(0, len(belongs), height * width)
        masks = torch.cat(labelled.masks)[rows["ordinal"][firsts]]
        _, tall, wide, concepts = masks.shape
        values = masks.reshape(-1, concepts)
        examples = rows["ordinal"][firsts].repeat_interleave(tall * wide)
        label_halves = halves[firsts].repeat_interleave(tall * wide)
        if (height, width) != (tall, wide):
            maps = Maps((height, width), (tall, wide))
    else:
        values, examples, label_halves = rows["labels"], belongs, halves
    labels = Labels(labelled.names, values, examples)
    problem = dataclasses.replace(
        problem, x=problem.x if dtype is torch.float64 else problem.x.float(), halves=halves
    )
    return Known(
        name=name,
        kind=place.role.kind,
        problem=problem,
        labels=labels,
        halves=label_halves,
        maps=maps,
        masks=labelled.interpolated,
        n_examples=int(examples.unique().numel()),
        notes=(*place.notes, *notes),
    )


def _dissected(
    known: Known, interruption: Interruption, *, used: tuple[Measure, ...] | None, **settings: Any
) -> SiteDissection:
    used = used or ((Measure.IOU,) if known.masks else USUAL)
    compared, left_out, notes = _compared(
        known.problem, known.labels, known.halves, known.maps, interruption, used=used, **settings
    )
    rules = [_RULES[measure] for measure in used if measure in _RULES and known.maps]
    return SiteDissection(
        site=known.name,
        kind=known.kind,
        dim=known.problem.x.shape[1],
        n_samples=len(known.labels.values),
        n_examples=known.n_examples,
        left_out=left_out,
        comparisons=compared,
        notes=(*known.notes, *rules, *notes),
    )


def _halves(examples: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """0 or 1 for every sample: every second example, in the order of what names them.

    Args:
        examples: equal for samples of one example; hashes, whose order is random.
        generator: draws the order where names are in an order of their own.

    Raises:
        DataError: if there are too few examples.
    """
    names, index = examples.unique(return_inverse=True)
    if len(names) < FEWEST_EXAMPLES:
        raise DataError(
            f"the samples come from {len(names)} different examples: concepts are chosen on half "
            f"of the examples and scored on the others, which needs at least {FEWEST_EXAMPLES}; "
            "cut long sequences into shorter ones"
        )
    turn = torch.arange(len(names)) % 2
    if generator is not None:
        turn = turn[torch.randperm(len(names), generator=generator)]
    return turn[index]


def _compared(
    problem: Problem,
    labels: Labels,
    halves: Tensor,
    maps: Maps | None,
    interruption: Interruption,
    *,
    used: tuple[Measure, ...],
    wanted: Null | None,
    frames: int | None,
    top: float,
    threshold: float | None,
    categories: Mapping[str, str] | None,
    sides: Sides | None,
    split: Split,
    effort: Effort,
) -> tuple[tuple[Comparison, ...], dict[str, str], tuple[str, ...]]:
    if split is Split.NONE:
        halves = torch.full_like(halves, BOTH)
    if categories is not None:
        labels = labels.categorised(categories)
    labels = labels.usable(halves)
    against = choices(problem, wanted, frames)
    if sides is None:
        sides = Sides.POSITIVE if _one_sided(problem.x) else Sides.BOTH
    setting = Setting(labels, halves, used, top, sides, maps)
    found: list[Comparison] = []
    notes: list[str] = []
    for choice in against:
        try:
            several, note = compare(
                problem, choice, setting, threshold=threshold, effort=effort,
                interruption=interruption,
            )  # fmt: skip
        except KeyboardInterrupt:
            if not found:
                raise
            interruption.came += 1
            several = ()
            note = f"It was interrupted before the {choice.null.name} null was compared with."
        found += several
        notes += [note] if note else []
    return tuple(found), dict(labels.left_out), tuple(notes)


def _one_sided(x: Tensor) -> bool:
    """True if most axes reach much less far below their median than above it.

    As behind a ReLU or GELU. Neither an offset nor the scale of an axis changes the answer.
    """
    middle = x.median(0).values
    low, high = middle - x.amin(0), x.amax(0) - middle
    return float((low < 0.25 * high).double().mean()) > 0.5


def choices(problem: Problem, wanted: Null | None, frames: int | None) -> list[Choice]:
    """The null that a site calls for, and the raw rotation beside it behind a nonlinearity."""
    choice = choose(problem, wanted)
    found = [choice]
    if wanted is None and not isinstance(choice.null, Rotation):
        beside = dataclasses.replace(
            choice,
            null=Rotation(),
            because=(
                "shown beside: behind a nonlinearity every axis is one-sided and no rotated axis "
                "is, so this null credits the axes for that"
            ),
            believable=False,
        )
        found.append(beside)
    sized: list[Choice] = []
    for one in found:
        asked_for = one.null.frames if wanted is not None else FRAMES
        count = asked_for if frames is None else frames
        # Concepts are chosen among all axes, never among a block of them.
        null = dataclasses.replace(one.null, frames=count, directions=None)
        sized.append(dataclasses.replace(one, null=null))
    return sized
