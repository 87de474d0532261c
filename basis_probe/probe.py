"""The main job: a model and data in, a report out."""

import dataclasses
import fnmatch
import functools
import hashlib
import importlib.metadata
import itertools
import json
import math
import os
import pathlib
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from basis_probe.adapters.batches import Batch, batch_of
from basis_probe.adapters.layers import Layer, bend, layer
from basis_probe.adapters.models import Subject, device_of, fingerprint, prepared, recognise
from basis_probe.adapters.places import Site
from basis_probe.algebra.groups import GeneralLinear, Group, group_from_name
from basis_probe.architecture import proved, watched
from basis_probe.errors import DataError, SiteError, StreamError
from basis_probe.evidence import affordable, choose, untrained
from basis_probe.findings import (
    Case,
    Companions,
    Evidence,
    chosen_null,
    chosen_scores,
    chosen_seed,
    gather,
    halves_of,
    report,
)
from basis_probe.partial import Part, Partial, moved
from basis_probe.results import Provenance, Report, Symmetry
from basis_probe.roles import Role, role
from basis_probe.sites import asked, sensible
from basis_probe.statistics.nulls import (
    Geometry,
    LinearLayer,
    Null,
    Problem,
    RandomWeights,
    Rotation,
    geometry_of,
    outputs,
)
from basis_probe.statistics.sampling import hash_examples
from basis_probe.statistics.scores import Score
from basis_probe.stream import Plan, Seen, Stream
from basis_probe.symmetry import Derivation
from basis_probe.twins import reinitialised, settle
from basis_probe.verdict import LEVEL

if TYPE_CHECKING:
    from basis_probe.statistics.bases import Candidate

Groups = Mapping[str, Group | str] | Group | str
Twins = Mapping[str, Sequence[Mapping[str, Tensor]]]
"""Site -> the scores of every untrained twin's axes there, by name."""


@dataclasses.dataclass(frozen=True, eq=False)
class Placed:
    """A site with everything that does not depend on the data beyond the first batch."""

    site: Site
    role: Role
    shape: tuple[int, ...]
    symmetry: Symmetry
    plan: Plan
    layer: Layer | None
    geometry: Geometry
    bend: Callable[[Tensor], Tensor] | None
    notes: tuple[str, ...]

    @property
    def dim(self) -> int:
        return math.prod(self.shape)


def probe(
    model: nn.Module,
    data: Iterable[Any],
    *,
    sites: str | Iterable[str] | None = None,
    scores: Iterable[str | Score] | None = None,
    null: str | Null | None = None,
    groups: Groups | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    max_samples: int | None = None,
    progress: bool = True,
    certificates: bool | None = None,
    bases: "Iterable[str | Candidate | np.ndarray | Tensor] | str | Candidate | None" = None,
    paths: int = 0,
    examples: int = 0,
    memory_budget: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    reference: nn.Module | None = None,
) -> Report:
    """A verdict for every site: what the architecture allows, what the data show, what follows.

    The data pass through the model once, in evaluation mode and without gradients. The same seed
    gives the same numbers for every batch size and order of the data, on every device, to the
    model's own precision. The model is left as it was: hooks, weights, modes, random state.

    Args:
        model: a `TransformerBridge`, an older `HookedTransformer`, a Hugging Face model or any
            `nn.Module`.
        data: an iterable of batches. A batch is a tensor [batch, ...]; a dict of keywords, whose
            `attention_mask` [batch, positions] drops padding from all statistics; a tuple or list
            whose first element is one of these; or a list of strings if the model has a tokenizer.
            A tensor or array or a dict in place of the iterable is taken for one batch.
        sites: names or globs ("blocks.*.mlp.hook_post"); None for residual streams, attention
            outputs and neurons.
        scores: names of scores, any of `SCORES`; None for `DEFAULT_SCORES`.
        null: "rotation", "counterfactual" or a null as a value; None for the one each site calls
            for.
        groups: groups that override the derived ones: one for all sites, or name or glob -> group
            or its name.
        seed: seeds the sample of rows and the alternatives.
        device: where the model runs; it is put back afterwards. None: where it is.
        max_samples: at most this many samples (tokens, pixels, rows) at each site.
        progress: whether to show progress bars.
        certificates: whether to prove what is claimed of the architecture on a float64 copy of the
            model; None to do so if that is cheap, up to 150 million parameters.
        bases: other bases to compare the axes of every site with: names ("pca", "ica", "varimax"
            ...), candidates or matrices [directions, dim]; None for none. Each site's best one is
            returned, judged on samples that it was not fitted on.
        paths: to how many turned bases the deciding score is followed at every site, 0 for none.
        examples: how many contexts to show of each of the five axes that stand out most at every
            site, and of as many rotated directions, as `with_examples` does; the data pass through
            the model once more. 0 for none.
        memory_budget: about how many bytes may be held beyond the model and its forward pass. Where
            all sites need more, the data pass through the model several times, for some sites at a
            time; a warning says so before the first. None for one pass.
        checkpoint: a file to which what was seen is written every minute. If it exists, the run
            goes on where it ended; it is removed when the report is made.
        reference: another network with sites of the same names, trained from another seed: every
            site gets one more score, "convergence", which asks whether its axes are those of the
            other network rather than any turned ones.

    Raises:
        SiteError: if a name stands for no site; the message lists the nearest.
        DataError: if there is no batch, or the first one cannot be used.
        StreamError: if the data or the model fail later; its `report()` holds what was gathered.
        ValueError: for a score, null, group or number that makes no sense.

    Example:
        >>> import torch, basis_probe as bp
        >>> generator = torch.Generator().manual_seed(0)
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3)
        ... )
        >>> data = [torch.randn(100, 8, generator=generator) for _ in range(3)]
        >>> report = bp.probe(model, data, progress=False)
        >>> report.sites, report["1"].symmetry.group
        (('1',), PositiveMonomial(dim=16))
    """
    choices = Choices.of(
        sites=sites,
        scores=scores,
        null=null,
        groups=groups,
        seed=seed,
        max_samples=max_samples,
        certificates=certificates,
        progress=progress,
        companions=Companions.of(bases, paths),
    )
    twins = choices.null if isinstance(choices.null, RandomWeights) else None
    if twins is not None and iter(data) is data:
        raise DataError(
            "null='random-weights' reads the data once for every twin of the model, and the data "
            f"are a {type(data).__name__} that can be read only once: give a list or a DataLoader"
        )
    if examples < 0:
        raise ValueError(f"examples={examples}: give how many contexts to show, or 0 for none")
    if examples and iter(data) is data:
        raise DataError(
            f"examples={examples} reads the data a second time, once it is known which axes stand "
            f"out, and the data are a {type(data).__name__} that can be read only once: give a "
            "list or a DataLoader"
        )
    if memory_budget is not None and checkpoint is not None:
        raise ValueError(
            "memory_budget and checkpoint are both given, and a run of several passes keeps no "
            "checkpoint: give one of them"
        )
    if reference is not None and (memory_budget is not None or checkpoint is not None):
        raise ValueError(
            "a reference sees the data in the same single pass as the model, which memory_budget "
            "and checkpoint do not know: leave them out"
        )
    subject = recognise(model)
    target = None if device is None else device_of(device)
    with prepared(subject.model, target) as notes:
        if reference is not None:
            from basis_probe.comparison.convergence import probe_beside

            made = probe_beside(subject, reference, data, choices, notes)
            return _illustrated(made, subject, data, examples, choices)
        numbered = _numbered(data, subject)
        watching = Watched.of(subject, _first(numbered), choices)
        passes = _passes(watching, choices, data, memory_budget)
        notes = (*notes, *_announced(passes, memory_budget))
        concluding = _Concluding(watching, choices, {})
        for turn, names in enumerate(passes):
            if turn:
                numbered = _numbered(data, subject)
                _first(numbered)
            run = _Run(watching, choices, names, Part(), checkpoint)

            def finish(run: _Run = run) -> Report:
                return concluding.report(run.partial(), notes)

            run.read(numbered, finish, progress=progress)
            if twins is not None and run.part.whole:
                concluding.twins = _untrained(watching, choices, data, twins, run.part.batches)
            if not run.part.whole or turn + 1 == len(passes):
                made = finish()
                if checkpoint is not None and not made.partial:
                    pathlib.Path(checkpoint).unlink(missing_ok=True)
                return _illustrated(made, subject, data, examples, choices)
            concluding.gather(run.partial())
    raise AssertionError("there is always a last pass")


def _illustrated(
    made: Report, subject: Subject, data: Iterable[Any], examples: int, choices: "Choices"
) -> Report:
    """The report with examples, where they were asked for and its data are complete."""
    if not examples or made.partial:
        return made
    from basis_probe.concepts.examples import illustrated

    try:
        return illustrated(
            made,
            subject,
            itertools.islice(batches_of(data, subject), made.provenance.n_batches),
            axes=5,
            size=examples,
            seed=choices.seed,
            progress=choices.progress,
        )
    except KeyboardInterrupt:
        missing = "It was interrupted while examples were collected, and shows none."
        return dataclasses.replace(made, notes=(*made.notes, missing), partial=True)
    except Exception as error:
        raise StreamError(
            f"the second pass over the data, for the examples, failed: {type(error).__name__}: "
            f"{error}. Everything else is kept: call .report() of this error for the report",
            batches=made.provenance.n_batches,
            finish=lambda: made,
        ) from error


def observe(
    model: nn.Module,
    data: Iterable[Any],
    *,
    sites: str | Iterable[str] | None = None,
    null: str | Null | None = None,
    groups: Groups | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    max_samples: int | None = None,
    progress: bool = True,
    shard: tuple[int, int] = (0, 1),
    checkpoint: str | os.PathLike[str] | None = None,
) -> Partial:
    """What is seen of a model on a part of the data, to be added to what is seen of the others.

    `observe(model, data).report(model)` is `probe(model, data)`. The parts of the data may be seen
    by different processes and machines; their partials add.

    Args:
        model: as for `probe`.
        data: as for `probe`; every shard is given all of them, in the same order.
        sites: as for `probe`.
        null: as for `probe`.
        groups: as for `probe`.
        seed: as for `probe`.
        device: as for `probe`.
        max_samples: as for `probe`, in all shards together.
        progress: as for `probe`.
        shard: (i, n): batches i, i + n, i + 2 n ... of the data are seen, and the first examples of
            the first batch, on which the model is watched.
        checkpoint: a file to which the partial is written every minute and at the end; a run that
            finds it there goes on where it ended.

    Raises:
        SiteError, DataError, StreamError, ValueError: as `probe`; ValueError also for a checkpoint
            of another model, plan or seed.

    Example:
        >>> import torch, basis_probe as bp
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU())
        >>> data = list(torch.randn(3, 100, 8))
        >>> parts = [bp.observe(model, data, shard=(i, 2), progress=False) for i in range(2)]
        >>> report = (parts[0] + parts[1]).report(model, progress=False)
        >>> report == bp.probe(model, data, progress=False) or report["1"].n_samples
        300
    """
    index, of = shard
    if not 0 <= index < of:
        raise ValueError(
            f"shard=({index}, {of}): give (i, n) with i from 0 to n - 1, such as (0, 4) for the "
            "first of four"
        )
    choices = Choices.of(
        sites=sites,
        scores=None,
        null=null,
        groups=groups,
        seed=seed,
        max_samples=max_samples,
        certificates=None,
        progress=progress,
    )
    subject = recognise(model)
    target = None if device is None else device_of(device)
    with prepared(subject.model, target) as notes:
        # Without a limit to the samples, what other shards see need not be read here.
        mine = None if max_samples is not None else (index, of)
        numbered = _numbered(data, subject, mine)
        watching = Watched.of(subject, _first(numbered), choices)
        run = _Run(watching, choices, tuple(watching.plans), Part(index, of), checkpoint, True)
        run.notes = notes

        def finish() -> Report:
            return _Concluding(watching, choices, {}).report(run.partial(), notes)

        run.read(numbered, finish, progress=progress)
        return run.partial()


def conclude(
    partial: Partial,
    model: nn.Module,
    *,
    scores: Iterable[str | Score] | None = None,
    null: str | Null | None = None,
    groups: Groups | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
    certificates: bool | None = None,
) -> Report:
    """The report of what was observed, as `Partial.report` says."""
    plan = partial.plan
    choices = dataclasses.replace(
        Choices.of(
            sites=tuple(json.loads(plan["names"])),
            scores=scores,
            null=null,
            groups=groups,
            seed=int(plan["seed"]),
            max_samples=None if plan["max_samples"] == "all" else int(plan["max_samples"]),
            certificates=certificates,
            progress=progress,
        ),
        asked=plan["sites"],
    )
    subject = recognise(model)
    target = None if device is None else device_of(device)
    with prepared(subject.model, target) as notes:
        watching = Watched.of(subject, moved(partial.first, subject.device), choices)
        _require_same(plan, watching.plan(choices, identified=True), "the partial was made with")
        concluding = _Concluding(watching, choices, {})
        return concluding.report(partial, tuple(dict.fromkeys((*partial.notes, *notes))))


# --- what was asked for, and where it is ----------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Choices:
    """What a user chose, checked as far as no model is needed for it.

    Attributes:
        sites: names or globs; None for the sensible ones.
        scores: the scores.
        null: the null for all sites; None for the one each site calls for.
        said: the null in the user's words.
        groups: groups that override the derived ones.
        seed: seeds the sample of rows and the alternatives.
        max_samples: at most this many samples at each site.
        certificates: whether to prove what is claimed; None if that is cheap.
        progress: whether to show progress bars.
        asked: the sites in the user's words, where `sites` says what they came to.
        companions: what is computed besides the evidence.
    """

    sites: str | tuple[str, ...] | None
    scores: tuple[Score, ...]
    null: Null | None
    said: str | Null | None
    groups: Groups | None
    seed: int
    max_samples: int | None
    certificates: bool | None
    progress: bool
    asked: str = ""
    companions: Companions = dataclasses.field(default_factory=Companions)

    @staticmethod
    def of(
        *,
        sites: str | Iterable[str] | None,
        scores: Iterable[str | Score] | None,
        null: str | Null | None,
        groups: Groups | None,
        seed: int,
        max_samples: int | None,
        certificates: bool | None,
        progress: bool,
        companions: Companions | None = None,
    ) -> "Choices":
        """The choices, if they make sense.

        Raises:
            ValueError: for a score, null or number that makes none.
        """
        used, wanted, seed = chosen_scores(scores), chosen_null(null), chosen_seed(seed)
        if max_samples is not None and max_samples < 1:
            raise ValueError(f"max_samples={max_samples}: give a positive number, or None for all")
        # An iterator can be read only once.
        sites = sites if sites is None or isinstance(sites, str) else tuple(sites)
        return Choices(
            sites=sites,
            scores=used,
            null=wanted,
            said=null,
            groups=groups,
            seed=seed,
            max_samples=max_samples,
            certificates=certificates,
            progress=progress,
            companions=companions or Companions(),
        )

    @property
    def settings(self) -> dict[str, str]:
        """The choices in words."""
        return {
            "sites": self.asked or _said(self.sites),
            "scores": ", ".join(score.name for score in self.scores),
            "null": "by site" if self.said is None else str(self.said),
            "groups": "derived" if self.groups is None else str(self.groups),
            "max_samples": "all" if self.max_samples is None else str(self.max_samples),
            "rows_for_nulls": str(self.capacity),
            "bases": ", ".join(basis.name for basis in self.companions.bases) or "none",
        }

    @property
    def capacity(self) -> int:
        """How many rows are kept of a site at most."""
        return max(_capacity(self.null), self.companions.rows)


@dataclasses.dataclass(frozen=True, eq=False)
class Session:
    """A model and its sites, and what has been seen at them so far.

    Attributes:
        choices: what the user asked for.
        watching: the model and its sites.
        stream: what has been seen at them.
        further: site -> scores that it gets besides those that were chosen.
    """

    choices: Choices
    watching: "Watched"
    stream: Stream
    further: Mapping[str, tuple[Score, ...]] = dataclasses.field(
        default_factory=dict[str, tuple[Score, ...]]
    )

    @staticmethod
    def open(subject: Subject, first: Batch, choices: Choices) -> "Session":
        """The sites of the model as it runs on a batch, nothing seen at them yet.

        Args:
            subject: the model, in evaluation mode.
            first: the batch; it is counted only when the stream sees it.
            choices: what the user asked for.

        Raises:
            SiteError: if a name stands for no site.
            DataError: if the model fails on the batch.
        """
        watching = Watched.of(subject, first, choices)
        stream = Stream(
            watching.plans, seed=choices.seed, capacity=choices.capacity, most=choices.max_samples
        )
        return Session(choices, watching, stream)

    @property
    def subject(self) -> Subject:
        """The model."""
        return self.watching.subject

    @property
    def places(self) -> Mapping[str, Placed]:
        """The sites."""
        return self.watching.places

    def report(
        self, *, partial: bool, notes: tuple[str, ...] = (), more: tuple[str, ...] = ()
    ) -> Report:
        """The verdicts on what has been seen so far.

        Args:
            partial: whether the data were meant to go on.
            notes: what a reader must know of how the model was run.
            more: what a reader must know besides.
        """
        stream = self.stream
        part = Part(batches=stream.batches, examples=stream.examples, whole=True)
        seen = Partial(stream.seen, self.watching.first, {}, (part,))
        concluding = _Concluding(self.watching, self.choices, {}, self.further)
        found = concluding.report(seen, (*notes, *more))
        return dataclasses.replace(found, partial=found.partial or partial)


@dataclasses.dataclass(frozen=True, eq=False)
class Watched:
    """A model that was watched on the first examples, and the sites that were asked for.

    Attributes:
        leaders: site -> the site whose numbers it shares, because both show one tensor.
        plans: what is caught at every leader.
    """

    subject: Subject
    first: Batch
    derivation: Derivation
    places: dict[str, Placed]
    leaders: dict[str, str]
    plans: dict[str, Plan]

    @staticmethod
    def of(subject: Subject, first: Batch, choices: Choices) -> "Watched":
        """The sites of a model as it runs on a batch.

        Raises:
            SiteError: if a name stands for no site.
            DataError: if the model fails on the batch.
        """
        facts = watched(subject, first)
        if choices.sites is None:
            chosen = sensible(facts, facts.sites, subject.usual)
        else:
            chosen = asked(choices.sites, facts.sites, silent=subject.silent())
        derivation = Derivation(facts)
        places = {
            name: dataclasses.replace(place, plan=_sized(place, choices))
            for name, place in placed(derivation, chosen, choices.groups).items()
        }
        leaders: dict[str, str] = {}
        plans: dict[str, Plan] = {}
        for name, place in places.items():
            leaders[name] = next(
                (
                    other
                    for other, plan in plans.items()
                    if places[other].site.node == place.site.node
                    and plan == dataclasses.replace(place.plan, address=plan.address)
                ),
                name,
            )
            if leaders[name] == name:
                plans[name] = place.plan
        return Watched(subject, first, derivation, places, leaders, plans)

    def plan(self, choices: Choices, *, identified: bool) -> dict[str, str]:
        """Everything that must agree for what was seen to be added."""
        settings = dict(choices.settings)
        # What is seen does not depend on the scores that are taken of it.
        del settings["scores"]
        caught = hashlib.sha256(repr(sorted(self.plans.items())).encode()).hexdigest()
        return {
            "model": self.subject.description,
            "weights": fingerprint(self.subject.model) if identified else "",
            "dtype": str(self.subject.dtype).removeprefix("torch."),
            "names": json.dumps([*self.places]),
            "seed": str(choices.seed),
            "caught": caught[:16],
        } | settings


def _require_same(was: Mapping[str, str], now: Mapping[str, str], what: str) -> None:
    differing = [
        f"{name} {was.get(name, 'nothing')!r} (now {now.get(name, 'nothing')!r})"
        for name in sorted({*was, *now})
        if was.get(name) != now.get(name)
    ]
    if differing:
        raise ValueError(
            f"{what} {'; '.join(differing)}: give the same model and settings, or start anew "
            "without that file"
        )


# --- several passes -------------------------------------------------------------------------------


def _passes(
    watching: Watched, choices: Choices, data: object, budget: int | None
) -> list[tuple[str, ...]]:
    """The sites of every pass over the data, so that no pass holds more than the budget."""
    names = tuple(watching.plans)
    if budget is None:
        return [names]
    size = watching.subject.dtype.itemsize
    held = {name: _held(watching.places[name], choices.capacity, size) for name in names}
    # While axes are compared with alternatives, the rows of one site are there a few times more.
    plans = watching.plans.values()
    working = max(plan.room(choices.capacity) * plan.dim * 8 * 4 for plan in plans)
    if working + max(held.values()) > budget:
        raise ValueError(
            f"memory_budget={budget:,}: the largest site alone needs about "
            f"{working + max(held.values()):,} bytes; give that much, or a null with fewer samples"
        )
    passes: list[tuple[str, ...]] = []
    used = 0
    for name in names:
        if passes and working + used + held[name] <= budget:
            passes[-1] = (*passes[-1], name)
            used += held[name]
        else:
            passes.append((name,))
            used = held[name]
    if len(passes) > 1 and isinstance(data, Iterator):
        raise DataError(
            f"memory_budget={budget:,} needs {len(passes)} passes over the data, and an iterator "
            "can be read only once: give a list, a DataLoader, or anything that can be iterated "
            "again; or a larger budget"
        )
    return passes


def _held(place: Placed, capacity: int, size: int) -> int:
    """About how many bytes are kept of a site."""
    plan = place.plan
    window = 1 if plan.convolution is None else math.prod(plan.convolution.kernel)
    kept = plan.width * plan.repeat * window + plan.dim * len(plan.held)
    if not _computed(place):
        kept += plan.dim
    if plan.pre is not None and (place.layer is None or place.layer.pre is None):
        kept += plan.dim
    return plan.room(capacity) * kept * size + plan.dim * 8 * 16


def _computed(place: Placed) -> bool:
    """True if the activations are larger than what they can be computed of."""
    plan = place.plan
    return (
        place.layer is not None
        and plan.inputs is not None
        and plan.convolution is None
        and plan.dim > plan.width * plan.repeat
    )


def _announced(passes: list[tuple[str, ...]], budget: int | None) -> tuple[str, ...]:
    if len(passes) < 2 or budget is None:
        return ()
    said = (
        f"To stay within {budget:,} bytes, the data pass through the model {len(passes)} times, "
        f"for {max(len(names) for names in passes)} sites at a time."
    )
    warnings.warn(said, stacklevel=3)
    return (said,)


# --- before the data ------------------------------------------------------------------------------


def _proved(
    places: Mapping[str, Placed],
    subject: Subject,
    first: Batch,
    derivation: Derivation,
    wanted: bool | None,
) -> dict[str, Placed]:
    """The places with a certificate for what was derived of each; what fails becomes unknown."""
    derived = {n: place for n, place in places.items() if place.symmetry.reference != _GIVEN}
    found = proved(
        subject,
        first,
        derivation,
        {name: place.site for name, place in derived.items()},
        {name: place.symmetry for name, place in derived.items()},
        wanted,
    )
    return {
        name: dataclasses.replace(place, symmetry=found.get(name, place.symmetry))
        for name, place in places.items()
    }


_GIVEN = "the user"


def placed(
    derivation: Derivation, chosen: Mapping[str, Site], groups: Groups | None
) -> dict[str, Placed]:
    """The sites with their groups, and with what is known of the layers in front of them."""
    facts = derivation.facts
    places: dict[str, Placed] = {}
    overrides = _overrides(groups, chosen)
    for name, site in chosen.items():
        shape = facts.shape(site)
        symmetry = _overridden(derivation.symmetry(site), overrides.get(name), math.prod(shape))
        found = layer(facts, site)
        bent = bend(facts, site)
        notes: tuple[str, ...] = ()
        known = None if isinstance(found, str) else found
        if known is not None and known.address == site.address:
            known = None
        if bent is not None and bent[0] == site.address:
            bent = None
        if isinstance(found, str) and bent is not None:
            notes = (f"The layer in front of the site is not one linear map away: {found}.",)
        places[name] = Placed(
            site=site,
            role=role(facts, site),
            shape=shape,
            symmetry=symmetry,
            plan=Plan(
                address=site.address,
                layout=facts.layout(site),
                dim=math.prod(shape),
                inputs=None if known is None else known.address,
                width=0 if known is None else known.width,
                repeat=1 if known is None else known.repeat,
                convolution=None if known is None else known.convolution,
                pre=None if bent is None else bent[0],
                held=() if known is None else known.held,
                centred=geometry_of(symmetry.group) is Geometry.LINE,
                across=_across(symmetry.group),
            ),
            layer=known,
            geometry=_input_geometry(derivation, known),
            bend=None if bent is None else bent[1],
            notes=notes,
        )
    return places


def _across(group: Group) -> bool:
    """True if comparing a sample's axes with each other says something under the group."""
    return geometry_of(group) not in (Geometry.WHITENED, Geometry.HEADS, Geometry.STANDARDISED)


def _input_geometry(derivation: Derivation, known: Layer | None) -> Geometry:
    """The geometry in which the input of a layer is turned: the one that its group picks."""
    if known is None or known.normalised:
        return Geometry.EUCLIDEAN
    group = derivation.read(known.source, known.width)
    if isinstance(group, GeneralLinear):
        return Geometry.POLAR
    return Geometry.BALANCED if group.rescales else Geometry.EUCLIDEAN


def _overrides(groups: Groups | None, chosen: Mapping[str, Site]) -> dict[str, Group | str]:
    if groups is None:
        return {}
    if isinstance(groups, Group | str):
        return dict.fromkeys(chosen, groups)
    if not isinstance(groups, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f"groups is a {type(groups).__name__}: give a group, its name, or a dict from site "
            "names or globs to groups"
        )
    found: dict[str, Group | str] = {}
    for pattern, group in groups.items():
        names = [pattern] if pattern in chosen else fnmatch.filter(chosen, pattern)
        if not names:
            raise SiteError(
                f"groups names {pattern!r}, which matches none of the probed sites: "
                f"{', '.join([*chosen][:5])}{'…' if len(chosen) > 5 else ''}"
            )
        found |= dict.fromkeys(names, group)
    return found


def _overridden(symmetry: Symmetry, group: Group | str | None, dim: int) -> Symmetry:
    if group is None:
        return symmetry
    if isinstance(group, str):
        group = group_from_name(group, dim)
    if group.dim != dim:
        raise ValueError(f"the group {group!r} acts on {group.dim} features, the site has {dim}")
    return Symmetry(group, group.privileged, "The group was given, not derived.", _GIVEN)


def _capacity(wanted: Null | None) -> int:
    return Rotation().samples if wanted is None else wanted.samples


def _sized(place: Placed, choices: Choices) -> Plan:
    """The plan of a site with as many rows as will be used of it."""
    if choices.null is not None or choices.companions.rows:
        return place.plan
    known = place.layer
    read = place.dim
    if known is not None:
        windows = place.plan.convolution
        positions = known.repeat if windows is None else math.prod(windows.kernel)
        read = known.width * positions * len(known.weights)
    return dataclasses.replace(place.plan, capacity=affordable(read, place.dim).samples)


def _said(sites: str | Iterable[str] | None) -> str:
    if sites is None:
        return "the sensible ones"
    return sites if isinstance(sites, str) else ", ".join(sites)


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for name in ("basis-probe", "torch", "transformer-lens", "transformers", "numpy"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


# --- the data -------------------------------------------------------------------------------------


def batches_of(data: Iterable[Any], subject: Subject) -> Iterator[Batch]:
    """The batches of the data, checked one by one.

    Raises:
        DataError: for data that are no iterable of batches, or change their form on the way.
    """
    for _, batch in _numbered(data, subject):
        assert batch is not None
        yield batch


def _numbered(
    data: Iterable[Any], subject: Subject, shard: tuple[int, int] | None = None
) -> Iterator[tuple[int, Batch | None]]:
    """The batches and their numbers; None for all but the first that are not of the shard."""
    if isinstance(data, str):
        raise DataError(
            "the data are one string: give batches, for example [[text]], a list with one batch of "
            "one string"
        )
    if isinstance(data, Tensor | np.ndarray | Mapping):
        data = [data]
    if not isinstance(data, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise DataError(
            f"the data are a {type(data).__name__}: give an iterable of batches, such as a "
            "DataLoader"
        )
    tokenizer, device, form = subject.tokenizer, subject.device, None
    for number, raw in enumerate(data):
        if shard is not None and number and number % shard[1] != shard[0]:
            yield number, None
            continue
        batch = batch_of(raw, number=number, tokenizer=tokenizer, device=device)
        if form is not None and batch.form != form:
            raise DataError(
                f"batch {number} is {batch.form}, the ones before were {form}: give batches of one "
                "form"
            )
        form = batch.form
        yield number, batch


def _first(numbered: Iterator[tuple[int, Batch | None]]) -> Batch:
    _, batch = next(numbered, (0, None))
    if batch is None:
        raise DataError("the data hold no batch: give at least one, better several")
    return batch


CHECKPOINT_SECONDS = 60.0
"""So often what was seen is written to the checkpoint."""


_FAILED = "The run failed"


class _OtherData(DataError):
    """The data are not those that a checkpoint has seen."""


class _Run:
    """One pass over the data, or over a shard of it, for some sites.

    Args:
        watching: the model and its sites.
        choices: what was asked for.
        names: the sites, leaders among them.
        part: which part of the data.
        checkpoint: where what was seen is written.
        identified: True if what was seen may meet what was seen elsewhere.
    """

    def __init__(
        self,
        watching: Watched,
        choices: Choices,
        names: tuple[str, ...],
        part: Part,
        checkpoint: str | os.PathLike[str] | None,
        identified: bool = False,
    ) -> None:
        self.watching, self.choices, self.part = watching, choices, part
        self.notes: tuple[str, ...] = ()
        self.checkpoint = None if checkpoint is None else pathlib.Path(checkpoint)
        self.plan = watching.plan(choices, identified=identified or checkpoint is not None)
        self.stream = Stream(
            {name: watching.plans[name] for name in names},
            seed=choices.seed,
            capacity=choices.capacity,
            most=choices.max_samples,
            dispensable=functools.partial(_dispensable, watching),
            stops=True,
        )
        self._written = time.monotonic()
        if self.checkpoint is not None and self.checkpoint.exists():
            self._resume(Partial.load(self.checkpoint))

    def partial(self) -> Partial:
        """What was seen so far."""
        return Partial(
            seen=self.stream.seen,
            first=self.watching.first.first(2),
            plan=self.plan,
            parts=(self.part,),
            notes=self.notes,
        )

    def _resume(self, before: Partial) -> None:
        _require_same(before.plan, self.plan, f"the checkpoint {self.checkpoint} was made with")
        [part] = before.parts
        if (part.index, part.of) != (self.part.index, self.part.of):
            raise ValueError(
                f"the checkpoint {self.checkpoint} is of shard {part.index}/{part.of}, and shard "
                f"{self.part.index}/{self.part.of} was asked for: give each shard its own file"
            )
        self.part = part
        self.stream.restore(before.seen, batches=part.batches, examples=part.examples)

    def read(
        self,
        rest: Iterator[tuple[int, Batch | None]],
        finish: Callable[[], Report],
        *,
        progress: bool,
    ) -> None:
        """Streams all batches; if the user interrupts it after one, the part is not whole.

        Raises:
            StreamError: if the data or the model fail after a batch; `finish` makes its report.
        """
        from tqdm.auto import tqdm

        if self.part.whole:
            return
        bar = tqdm(desc="running the model", unit="batch", disable=not progress, leave=False)
        try:
            self._read(rest, bar.update)
        except KeyboardInterrupt:
            if not self.part.batches:
                raise
            return
        except Exception as error:
            if not self.part.batches or isinstance(error, _OtherData):
                raise
            # The error itself is forgotten when this clause ends.
            what = f"{type(error).__name__}: {error}"
            batches = self.part.batches
            self.notes = (*self.notes, f"{_FAILED} after {batches} batches: {what}")
            raise StreamError(
                f"batch {batches} failed: {what}. The {batches} batches before it are kept: call "
                ".report() of this error for their report",
                batches=batches,
                finish=finish,
            ) from error
        finally:
            bar.close()
        self.part = dataclasses.replace(self.part, whole=True)
        self._write(always=True)

    def _read(self, rest: Iterator[tuple[int, Batch | None]], update: Callable[[], object]) -> None:
        subject, first, stream = self.watching.subject, self.watching.first, self.stream
        index, of, reached = self.part.index, self.part.of, self.part.reached
        counting = _Counting(self.watching, self.stream) if of > 1 and stream.most else None
        digest = 0
        if index and not self.part.batches:
            few = first.first(2)
            stream.rehearse(subject.model, few, functools.partial(subject.call, few))
        number, batch = 0, first
        while True:
            spans = counting.spans(number, batch) if counting is not None and batch else None
            if number % of == index and batch is not None:
                if number < reached:
                    digest = _digested(digest, number, batch)
                else:
                    if number == reached or number - of < reached:
                        self._require_digest(digest)
                    stream.see(
                        subject.model,
                        batch,
                        functools.partial(subject.call, batch),
                        spans=spans,
                        number=number,
                    )
                    self.part = dataclasses.replace(
                        self.part,
                        reached=number + 1,
                        batches=stream.batches,
                        examples=stream.examples,
                        digest=_digested(self.part.digest, number, batch),
                    )
                    self._write(always=False)
                    update()
            if stream.full if counting is None else counting.full:
                break
            following = next(rest, None)
            if following is None:
                break
            number, batch = following
        if number < reached - 1:
            raise _OtherData(
                f"the checkpoint {self.checkpoint} has seen {reached} batches, and the data end "
                f"after {number + 1}: give the same data again, or start anew without it"
            )

    def _require_digest(self, digest: int) -> None:
        if digest != self.part.digest:
            raise _OtherData(
                f"the first {self.part.reached} batches are not those that the checkpoint "
                f"{self.checkpoint} has seen: give the same data in the same order, or start anew "
                "without it"
            )

    def _write(self, *, always: bool) -> None:
        if self.checkpoint is None:
            return
        if always or time.monotonic() - self._written >= CHECKPOINT_SECONDS:
            self.partial().save(self.checkpoint)
            self._written = time.monotonic()


def _digested(digest: int, number: int, batch: Batch) -> int:
    """A number that depends on the examples of all batches so far, and on which batch is which."""
    examples = hash_examples(batch.inputs, batch.mask)
    return (digest + int(examples.sum()) * (2 * number + 1)) % 2**64


class _Counting:
    """How many samples come before a batch at every site, in shards that others see too."""

    def __init__(self, watching: Watched, stream: Stream) -> None:
        self.first, self.most = watching.first, stream.most or 0
        trace = watching.derivation.facts.graph.trace
        self.rows: dict[str, tuple[int, int]] = {}
        for name, plan in stream.plans.items():
            shape = trace.node(watching.places[name].site.node).shape
            axes = (len(shape) - 1,) if plan.layout is None else plan.layout.axes
            lead = math.prod(size for axis, size in enumerate(shape) if axis not in axes)
            self.rows[name] = (lead, trace.example_batch)
        self.counts = dict.fromkeys(self.rows, 0)

    @property
    def full(self) -> bool:
        return all(count >= self.most for count in self.counts.values())

    def spans(self, number: int, batch: Batch) -> dict[str, range]:
        """Site -> which of the samples of the data the batch holds."""
        found: dict[str, range] = {}
        for name, (lead, examples) in self.rows.items():
            positions = self.first.inputs.shape[1] if self.first.inputs.ndim > 1 else 1
            if lead == examples * positions:
                shape = batch.inputs.shape[:2]
                count = math.prod(shape) if batch.mask is None else int(batch.mask.sum())
            elif batch.inputs.shape[1:] == self.first.inputs.shape[1:] and lead % examples == 0:
                count = lead // examples * batch.size
            else:
                raise DataError(
                    f"batch {number} has shape {tuple(batch.inputs.shape)} and the first had "
                    f"{tuple(self.first.inputs.shape)}, so it is not known how many samples come "
                    "before those of this shard: give batches of one shape, or max_samples=None"
                )
            start = self.counts[name]
            found[name] = range(start, start + count)
            self.counts[name] += count
        return found


def _dispensable(watching: Watched, name: str, rows: Mapping[str, Tensor]) -> frozenset[str]:
    """What need not be kept of a site, because it can be computed from what is kept."""
    place = watching.places[name]
    if place.layer is None or "inputs" not in rows or not len(rows["x"]):
        return frozenset()
    dtype = watching.subject.dtype
    linear = _linear_layer(place.layer, rows, place.geometry, dtype)
    # What is close to the limit here may be beyond it elsewhere.
    if not _off(linear, rows["x"]) <= _tolerance(dtype, rows["x"]) / 4:
        return frozenset()
    found = {"pre"} if place.layer.pre is not None else set[str]()
    return frozenset(found | {"x"} if _computed(place) else found)


def _unproven(place: Placed, seen: Seen, dtype: torch.dtype) -> str:
    """Why activations that were not kept cannot be computed again after all; empty if they can."""
    rows = seen.proof.rows
    if place.layer is None or "x" in seen.kept.rows or not rows:
        return ""
    error = _off(_linear_layer(place.layer, rows, place.geometry, dtype), rows["x"])
    if error <= _tolerance(dtype, rows["x"]):
        return ""
    return (
        "the activations could be computed from the layer's input and weights in the first batch "
        f"and not in later ones (off by {error:.1g} at a size of {_size(rows['x']):.1g}), so "
        "nothing was compared; give data of one kind."
    )


def _off(linear: LinearLayer, x: Tensor) -> float:
    """By how much a layer's outputs, computed from its inputs, miss the activations."""
    made = linear.post(outputs(linear)).double()
    return float((made - x.double()).abs().max()) if made.shape == x.shape else math.inf


def _tolerance(dtype: torch.dtype, x: Tensor) -> float:
    return _TOLERANCE.get(dtype, 0.1) * max(_size(x), 1e-30) * 10


def _size(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


# --- after the data -------------------------------------------------------------------------------


class _Concluding:
    """From what was seen to the report.

    Args:
        watching: the model and its sites.
        choices: what was asked for.
        gathered: the evidence so far, by site; more is added to it.
        further: site -> scores that it gets besides those that were chosen.
    """

    def __init__(
        self,
        watching: Watched,
        choices: Choices,
        gathered: dict[str, Evidence],
        further: Mapping[str, tuple[Score, ...]] | None = None,
    ) -> None:
        self.watching, self.choices, self.gathered = watching, choices, gathered
        self.further = further or {}
        self.notes: tuple[str, ...] = ()
        self.twins: Twins = {}
        self._places: dict[str, Placed] | None = None

    def report(self, partial: Partial, notes: tuple[str, ...]) -> Report:
        """The report of all sites with evidence so far and of those that the partial saw."""
        watching, choices = self.watching, self.choices
        interrupted = self.gather(partial)
        # A run that failed says where; that it ended there need not be said again.
        failed = any(note.startswith(_FAILED) for note in (*notes, *partial.notes))
        missing = "" if failed else partial.missing
        notes = (*notes, *partial.notes, missing, *self.notes)
        if len(self.gathered) < len(watching.places):
            absent = [name for name in watching.places if name not in self.gathered]
            notes = (*notes, f"No data passed for {len(absent)} sites: {', '.join(absent)}.")
        provenance = Provenance(
            model=watching.subject.description,
            data=(
                f"{partial.batches} batches of {watching.first.form}, {partial.examples} examples"
            ),
            seed=choices.seed,
            n_batches=partial.batches,
            n_examples=partial.examples,
            versions=_versions(),
            device=str(watching.subject.device),
            dtype=str(watching.subject.dtype).removeprefix("torch."),
            level=LEVEL,
            settings=choices.settings,
        )
        gathered = [self.gathered[name] for name in watching.places if name in self.gathered]
        return Report(
            report(gathered),
            provenance,
            interrupted or bool(partial.missing),
            tuple(dict.fromkeys(note for note in notes if note)),
        )

    def gather(self, partial: Partial) -> bool:
        """Adds the evidence of the sites that were seen; True if the user interrupted it."""
        from tqdm.auto import tqdm

        stopped = self._prove()
        places, leaders = self._places or self.watching.places, self.watching.leaders
        dtype = self.watching.subject.dtype
        mine = [name for name in places if leaders[name] in partial.seen]
        interrupted = False
        bar = tqdm(
            mine,
            desc="comparing axes with alternatives",
            unit="site",
            disable=not self.choices.progress,
            leave=False,
        )
        for name in bar:
            place, leader = places[name], leaders[name]
            if not interrupted:
                try:
                    if leader != name and _alike(place, places[leader]):
                        self.gathered[name] = _renamed(self.gathered[leader], name)
                        continue
                    case = _case(name, place, partial.seen[leader], partial.batches, dtype)
                    found = gather(
                        case,
                        (*self.choices.scores, *self.further.get(leader, ())),
                        self.choices.null,
                        seed=self.choices.seed,
                        twins=self.twins.get(leader, ()),
                        companions=self.choices.companions,
                    )
                    self.gathered[name] = found
                    continue
                except KeyboardInterrupt:
                    interrupted = True
                    self.notes = (
                        *self.notes,
                        "It was interrupted while axes were compared with alternatives.",
                    )
            case = _case(name, place, partial.seen[leader], partial.batches, dtype)
            self.gathered[name] = Evidence(dataclasses.replace(case, trouble=_INTERRUPTED))
        return interrupted or stopped

    def _prove(self) -> bool:
        """Proves the claims, once; True if the user interrupted it."""
        if self._places is not None:
            return False
        watching = self.watching
        try:
            self._places = _proved(
                watching.places,
                watching.subject,
                watching.first,
                watching.derivation,
                self.choices.certificates,
            )
        except KeyboardInterrupt:
            self.notes = (
                *self.notes,
                "It was interrupted while the architecture was proved.",
            )
            return True
        return False


def _alike(one: Placed, other: Placed) -> bool:
    """True if two names of one tensor are to be judged alike."""
    return (one.symmetry.group, one.role.kind, one.shape, one.geometry, one.notes) == (
        other.symmetry.group,
        other.role.kind,
        other.shape,
        other.geometry,
        other.notes,
    ) and (one.layer is None) == (other.layer is None)


def _renamed(evidence: Evidence, name: str) -> Evidence:
    return dataclasses.replace(evidence, case=dataclasses.replace(evidence.case, site=name))


def _untrained(
    watching: Watched, choices: Choices, data: Iterable[Any], wanted: RandomWeights, batches: int
) -> Twins:
    """What every untrained twin of the model shows on the same rows of the first batches."""
    from tqdm.auto import tqdm

    found: dict[str, list[Mapping[str, Tensor]]] = {name: [] for name in watching.plans}
    for index in tqdm(
        range(wanted.frames),
        desc="running untrained twins",
        unit="twin",
        disable=not choices.progress,
        leave=False,
    ):
        twin = recognise(reinitialised(watching.subject.model, seed=choices.seed + index))
        with prepared(twin.model, None):
            again = itertools.islice(batches_of(data, twin), batches)
            settle(twin.model, (functools.partial(twin.call, batch) for batch in again))
            several = itertools.islice(batches_of(data, twin), batches)
            first = next(several)
            derivation = Derivation(watched(twin, first))
            sites = {n: s for n, s in derivation.facts.sites.items() if n in watching.plans}
            groups = {name: watching.places[name].symmetry.group for name in sites}
            own = placed(derivation, sites, groups)
            stream = Stream(
                {name: place.plan for name, place in own.items()},
                seed=choices.seed,
                capacity=choices.capacity,
                most=choices.max_samples,
            )
            for batch in itertools.chain([first], several):
                stream.see(twin.model, batch, functools.partial(twin.call, batch))
        for name, place in own.items():
            seen = stream.seen[name]
            if not seen.bad and len(seen.kept.priorities):
                problem, _ = problem_of(place, seen, twin.dtype)
                found[name].append(untrained(problem, choose(problem, wanted), choices.scores))
    return found


_INTERRUPTED = "the run was interrupted before these axes were compared with alternatives."


def _case(name: str, place: Placed, seen: Seen, batches: int, dtype: torch.dtype) -> Case:
    notes = list(place.notes)
    trouble = ""
    if seen.missed:
        notes.append(f"The site did not run in {seen.missed} of {batches} batches.")
    if seen.bad:
        number, count = seen.bad[0]
        more = f", and more in {len(seen.bad) - 1} later batches" if len(seen.bad) > 1 else ""
        trouble = (
            f"{count} values of {name} are NaN or infinite in batch {number}{more}; give data on "
            "which the model stays finite."
        )
    dead = int(seen.moments.constant.sum()) if seen.moments.count else 0
    problem = None
    if not trouble and len(seen.kept.priorities):
        trouble = _unproven(place, seen, dtype)
    if not trouble and len(seen.kept.priorities):
        problem, more_notes = problem_of(place, seen, dtype)
        notes.extend(more_notes)
    return Case(
        site=name,
        kind=place.role.kind,
        layer=place.role.layer,
        shape=place.shape,
        symmetry=place.symmetry,
        n_samples=seen.moments.count,
        n_dead=dead,
        problem=problem,
        all_samples=_all_samples(place, seen),
        trouble=trouble,
        notes=tuple(notes),
    )


def _all_samples(place: Placed, seen: Seen) -> dict[str, float]:
    geometry = geometry_of(place.symmetry.group)
    if geometry in (Geometry.WHITENED, Geometry.HEADS):
        # What is compared there is the whitened axes, and whitening needs a second pass.
        return {}
    found = {"kurtosis": float(seen.moments.kurtosis.nanmean())}
    if place.plan.across and _across(place.symmetry.group):
        found["sample_kurtosis"] = float(seen.kurtosis.mean)
    # Behind a nonlinearity it is computed before it, and that is not streamed.
    if place.bend is None and (place.layer is None or place.layer.pre is None):
        found["non_gaussianity"] = float(seen.moments.excess_kurtosis.abs().nanmean())
    return found


_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}


def problem_of(place: Placed, seen: Seen, dtype: torch.dtype) -> tuple[Problem, tuple[str, ...]]:
    """The kept rows of a site as nulls need them, and what a reader must know.

    Args:
        place: the site.
        seen: what was seen there.
        dtype: the model's own floating-point type, in which its layers are computed again.
    """
    rows = seen.kept.rows
    halves = halves_of(seen.kept.priorities)
    notes: tuple[str, ...] = ()
    linear = None
    # Products are in single precision unless the model is in double; sums are in double.
    working = torch.float64 if dtype is torch.float64 else torch.float32
    if place.layer is not None and "inputs" in rows:
        linear = _linear_layer(place.layer, rows, place.geometry, dtype)
    if linear is not None and "x" not in rows:
        x = linear.post(outputs(linear)).to(working)
    else:
        x = rows["x"].to(working)
        if linear is not None:
            error = _off(linear, x)
            if not error <= _tolerance(dtype, x):
                linear = None
                notes = (
                    "The activations could not be computed again from the layer's input and "
                    f"weights (off by {error:.1g} at a size of {_size(x):.1g}), so its "
                    "counterfactuals were not used.",
                )
    pre = None
    if place.bend is not None and "pre" in rows:
        pre = rows["pre"].to(working)
    elif place.bend is not None and linear is not None and linear.pre is not None:
        pre = linear.pre(outputs(linear)).to(working)
    if pre is not None and not bool(torch.isfinite(pre).all()):
        pre = None
        if linear is None:
            notes = (*notes, "Some pre-activations are NaN or infinite, so they were not turned.")
    return (
        Problem(
            x=x,
            group=place.symmetry.group,
            halves=halves,
            pre=pre,
            nonlinearity=place.bend if pre is not None else None,
            layer=linear,
            examples=rows.get("example"),
        ),
        notes,
    )


def _linear_layer(
    found: Layer, rows: Mapping[str, Tensor], geometry: Geometry, dtype: torch.dtype
) -> LinearLayer:
    """The layer as numbers, a norm's gain moved from the input into the weights."""
    working = torch.float64 if dtype is torch.float64 else torch.float32
    inputs = rows["inputs"].double()
    held = tuple(rows[f"held {place}"].to(working) for place in range(len(found.held)))
    weights = [
        weight.detach().cpu().double().reshape(len(weight), found.width, -1)
        for weight in found.weights
    ]
    biases = [None if bias is None else bias.detach().cpu().double() for bias in found.biases]
    if found.gain is not None:
        gain = found.gain.cpu().double()
        shift = torch.zeros_like(gain) if found.bias is None else found.bias.cpu().double()
        inputs = (inputs - shift[None, :, None]) / gain[None, :, None]
        moved = [torch.einsum("ocp,c->o", weight, shift) for weight in weights]
        biases = [
            more if bias is None else bias + more for bias, more in zip(biases, moved, strict=True)
        ]
        weights = [weight * gain[None, :, None] for weight in weights]
    return LinearLayer(
        inputs=inputs.to(working),
        weights=tuple(weight.to(working) for weight in weights),
        biases=tuple(None if bias is None else bias.to(working) for bias in biases),
        pre=found.pre,
        post=found.post,
        geometry=geometry,
        centred=found.centred,
        held=held,
    )
