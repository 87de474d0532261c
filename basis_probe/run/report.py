"""After the data: from what was seen to the report."""

import dataclasses
import functools
import importlib.metadata
import itertools
import json
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from basis_probe.algebra.remembered import remembering
from basis_probe.architecture.derive import Derivation
from basis_probe.errors import StreamError
from basis_probe.evidence.measure import choose, untrained
from basis_probe.evidence.site import Case, Evidence, gather, is_small
from basis_probe.interrupts import hold, stoppable
from basis_probe.memory import give_back
from basis_probe.model.batches import Batch
from basis_probe.model.experts import Expert
from basis_probe.model.facts import facts_of
from basis_probe.model.network import Subject, device_of, fingerprint, prepared, recognise
from basis_probe.parallel import abreast
from basis_probe.results.report import Provenance, Report
from basis_probe.run.attributions import Attributions
from basis_probe.run.cases import case_of
from basis_probe.run.origins import Asked, Batches, ask, is_asked, require_another
from basis_probe.run.parts import Part, Partial, moved
from basis_probe.run.problems import problem_of
from basis_probe.run.read import FAILED, Again, Reading, batches_of
from basis_probe.run.stream import Seen, Stream
from basis_probe.run.twins import reinitialised, settle
from basis_probe.run.watch import (
    Choices,
    Groups,
    Placed,
    Watched,
    certified,
    placed,
    require_same,
)
from basis_probe.statistics.nulls import Null, RandomWeights
from basis_probe.statistics.scores import Score
from basis_probe.verdict import LEVEL, outliers_across, report

Twins = Mapping[str, Sequence[Mapping[str, Tensor]]]
"""Site -> the scores of every untrained twin's axes there, by name."""


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
            watching.plans,
            seed=choices.seed,
            capacity=choices.capacity,
            most=choices.max_samples,
            forgiving=True,
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
        concluding = Concluding(self.watching, self.choices, {}, self.further, rerun=False)
        found = concluding.report(seen, (*notes, *more, *self.watching.later(stream)))
        return dataclasses.replace(found, partial=found.partial or partial)


class Concluding:
    """From what was seen to the report.

    Args:
        watching: the model and its sites.
        choices: what was asked for.
        gathered: the evidence so far, by site; more is added to it.
        further: site -> scores that it gets besides those that were chosen.
        at_once: how many sites are compared side by side; None for as many as makes it fast.
        rerun: whether the model may be run again on the first batch unasked.
        again: the first batches, which the model may be run on again where that was asked for; None
            for the very first one alone.
        attributions: the score of that name, where it was asked for.
    """

    def __init__(
        self,
        watching: Watched,
        choices: Choices,
        gathered: dict[str, Evidence],
        further: Mapping[str, tuple[Score, ...]] | None = None,
        *,
        at_once: int | None = None,
        rerun: bool = True,
        again: Batches | None = None,
        attributions: Attributions | None = None,
    ) -> None:
        self.attributions = attributions
        self.watching, self.choices, self.gathered = watching, choices, gathered
        self.further = further or {}
        self.at_once = at_once
        self.rerun = rerun
        self.again: Batches = again or (lambda: [watching.first])
        self.notes: tuple[str, ...] = ()
        self.twins: Twins = {}
        self.untwinned = False
        self._places: dict[str, Placed] | None = None

    def report(self, partial: Partial, notes: tuple[str, ...]) -> Report:
        """The report of all sites with evidence so far and of those that the partial saw."""
        watching, choices = self.watching, self.choices
        interrupted = self.gather(partial)
        # A run that failed says where; that it ended there need not be said again.
        failed = any(note.startswith(FAILED) for note in (*notes, *partial.notes))
        missing = "" if failed else partial.missing
        notes = (*notes, *partial.notes, missing, *self.notes, *watching.notes)
        if len(self.gathered) < len(watching.places):
            absent = [name for name in watching.places if name not in self.gathered]
            notes = (*notes, f"No data passed for {len(absent)} sites: {', '.join(absent)}.")
        attributed = self._attributed(interrupted)
        notes = (*notes, *self.notes)
        seen = sum(part.digest for part in partial.parts) % 2**64
        provenance = Provenance(
            model=watching.subject.description,
            data=(
                f"{partial.batches} {'batch' if partial.batches == 1 else 'batches'} of "
                f"{watching.first.form}, {partial.examples} examples"
            ),
            seed=choices.seed,
            n_batches=partial.batches,
            n_examples=partial.examples,
            versions=versions(),
            device=str(watching.subject.device),
            dtype=str(watching.subject.dtype).removeprefix("torch."),
            level=LEVEL,
            settings=choices.settings,
            model_digest=_digest_of(watching.subject.model),
            data_digest=f"{seen:016x}" if seen else "",
        )
        gathered = [attributed[name] for name in watching.places if name in attributed]
        sites = report(gathered)
        asked = Asked()
        if not interrupted and (self.rerun or choices.initialisation is not None):
            asked = ask(watching, choices, sites, self.again)
        if asked.origins:
            sites = report(
                [dataclasses.replace(e, origin=asked.origins.get(e.case.site)) for e in gathered]
            )
        notes = (*notes, *outliers_across(sites), *asked.notes)
        return Report(
            sites,
            provenance,
            interrupted or self.untwinned or asked.interrupted or bool(partial.missing),
            tuple(dict.fromkeys(note for note in notes if note)),
        )

    def _attributed(self, interrupted: bool) -> Mapping[str, Evidence]:
        """The evidence, with attributions beside untrained twins where they were asked for."""
        attributions = self.attributions
        if attributions is None:
            return self.gathered
        try:
            with stoppable():
                if not interrupted:
                    self.notes = (*self.notes, *attributions.compare_with_twins())
        except KeyboardInterrupt:
            self.untwinned = True
            self.notes = (*self.notes, "It was interrupted while untrained twins were run.")
        return attributions.added(self.gathered)

    def compare_with_twins(
        self, data: Iterable[Any], wanted: RandomWeights, batches: int, total: int
    ) -> None:
        """Runs untrained twins of the model; if that is interrupted, none are compared with."""
        try:
            with stoppable():
                self.twins, notes = untrained_twins(
                    self.watching, self.choices, data, wanted, batches, total
                )
                self.notes = (*self.notes, *notes)
        except KeyboardInterrupt:
            self.untwinned = True
            self.notes = (*self.notes, "It was interrupted while untrained twins were run.")

    def gather(self, partial: Partial) -> bool:
        """Adds the evidence of the sites that were seen; True if the user interrupted it."""
        from tqdm.auto import tqdm

        give_back()
        stopped = self._prove()
        give_back()
        places, leaders = self._places or self.watching.places, self.watching.leaders
        mine = [name for name in places if leaders[name] in partial.seen]
        alike = {n for n in mine if leaders[n] != n and _alike(places[n], places[leaders[n]])}
        apart = [name for name in mine if name not in alike]
        small = [name for name in apart if is_small(*_extent(partial.seen[leaders[name]]))]
        large = [name for name in apart if name not in small]
        interrupted = False
        with (
            remembering(),
            tqdm(
                total=len(apart),
                desc="comparing axes with alternatives",
                unit="site",
                disable=not self.choices.progress,
                leave=False,
            ) as bar,
        ):
            for names, workers in ((small, self._workers()), (large, 1)):
                jobs = [functools.partial(self._evidence, name, partial) for name in names]
                if not interrupted:
                    found, interrupted = abreast(jobs, workers=workers, finished=bar.update)
                    done = zip(names, found, strict=True)
                    self.gathered |= {name: one for name, one in done if one is not None}
        if interrupted:
            self.notes = (
                *self.notes,
                "It was interrupted while axes were compared with alternatives.",
            )
        for name in mine:
            if name in alike and leaders[name] in self.gathered:
                self.gathered[name] = _renamed(self.gathered[leaders[name]], name)
            elif name not in self.gathered:
                case = self._case(name, partial)
                self.gathered[name] = Evidence(dataclasses.replace(case, trouble=_INTERRUPTED))
        return interrupted or stopped

    def _workers(self) -> int:
        """How many small sites are compared at once: an accelerator is busy with one."""
        if self.at_once is not None:
            return self.at_once
        # Searches for bases have the threads of other libraries.
        alone = self.watching.subject.device.type != "cpu" or self.choices.companions.bases
        return 1 if alone else min(torch.get_num_threads(), _WORKERS)

    def _case(self, name: str, partial: Partial) -> Case:
        place = (self._places or self.watching.places)[name]
        seen = partial.seen[self.watching.leaders[name]]
        case = case_of(name, place, seen, partial.batches, self.watching.subject.dtype)
        stack = isinstance(place.site.address, Expert) and place.site.address.path
        beside = (n for n, p in self.watching.places.items() if p.site.address.path == stack)
        if stack and not any(partial.seen[self.watching.leaders[n]].moments.count for n in beside):
            case = dataclasses.replace(case, trouble=_SILENT)
        return case

    def _evidence(self, name: str, partial: Partial) -> Evidence:
        leader = self.watching.leaders[name]
        if self.attributions is not None:
            self.attributions.see(leader, partial.seen[leader])
        try:
            return gather(
                self._case(name, partial),
                (*self.choices.scores, *self.further.get(leader, ())),
                self.choices.null,
                seed=self.choices.seed,
                twins=self.twins.get(leader, ()),
                companions=self.choices.companions,
                device=self.watching.subject.device,
            )
        finally:
            give_back()

    def _prove(self) -> bool:
        """Proves the claims, once; True if the user interrupted it."""
        if self._places is not None:
            return False
        watching = self.watching
        try:
            with stoppable():
                self._places = certified(
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


@contextmanager
def kept(run: Reading, finish: Callable[[], Report]) -> Generator[None]:
    """A context in which a failure after the data still offers what was seen of them.

    Raises:
        StreamError: for any failure but a refusal of what was asked for.
    """
    try:
        yield
    except (StreamError, ValueError, TypeError):
        raise
    except Exception as error:
        raise StreamError(
            f"all {run.part.batches} batches were seen, and what followed failed: "
            f"{type(error).__name__}: {error}. Call .partial() of this error for what was seen",
            batches=run.part.batches,
            finish=finish,
            part=run.partial,
        ) from error


_WORKERS = 4
"""Sites that are compared at once, at most: each takes some hundred megabytes."""


def _extent(seen: Seen) -> tuple[int, int]:
    """How many rows were kept of a site, and its axes."""
    return len(seen.kept.priorities), len(seen.moments.mean)


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


def untrained_twins(
    watching: Watched,
    choices: Choices,
    data: Iterable[Any],
    wanted: RandomWeights,
    batches: int,
    total: int,
) -> tuple[Twins, tuple[str, ...]]:
    """What every untrained twin of the model shows on the same rows of the first batches.

    Args:
        watching: the model and its sites.
        choices: what was asked for.
        data: what the model has seen, read again for every twin.
        wanted: how many twins.
        batches: how many batches the model has seen.
        total: of what it has seen, as `Reading.total`.

    Returns:
        The scores, and what a reader must know.
    """
    from tqdm.auto import tqdm

    notes: dict[str, None] = {}
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
            read = Again(itertools.islice(batches_of(data, twin), batches), total, "A twin's pass")
            several = iter(read)
            first = next(several)
            derivation = Derivation(facts_of(twin, first))
            sites = {n: s for n, s in derivation.seen.sites.items() if n in watching.plans}
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
        notes |= dict.fromkeys(read.notes)
        for name, place in own.items():
            seen = stream.seen[name]
            if not seen.bad and len(seen.kept.priorities):
                problem, _ = problem_of(place, seen, twin.dtype)
                found[name].append(untrained(problem, choose(problem, wanted), choices.scores))
    return found, tuple(notes)


_SILENT = (
    "no row of the data was seen at any probed expert of the block: either none reached these, or "
    "the model hands rows to them in a way that is not followed."
)
_INTERRUPTED = "the run was interrupted before these axes were compared with alternatives."


_DIGESTED = 150_000_000
"""Of models of more parameters no digest is made."""


def _digest_of(model: nn.Module) -> str:
    """A number of the weights; empty where it would take longer than anything else."""
    size = sum(parameter.numel() for parameter in model.parameters())
    return fingerprint(model) if size <= _DIGESTED else ""


def versions() -> dict[str, str]:
    """Package -> installed version, of those that determine numbers."""
    found: dict[str, str] = {}
    for name in ("basis-probe", "torch", "transformer-lens", "transformers", "numpy"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


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
    initialisation: bool | nn.Module | None = None,
    data: Iterable[Any] | None = None,
) -> Report:
    """The report of what was observed, as `Partial.report` says."""
    if is_asked(initialisation) and data is None:
        raise ValueError(
            "initialisation is given, and a partial holds the first two examples only, on which "
            "nothing can be compared: give data=, some batches that both networks read"
        )
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
            initialisation=initialisation,
        ),
        asked=plan["sites"],
    )
    subject = recognise(model)
    require_another(initialisation, subject)
    target = None if device is None else device_of(device)
    with prepared(subject.model, target) as notes:
        watching = Watched.of(subject, moved(partial.first, subject.device), choices)
        require_same(plan, watching.plan(choices, identified=True), "the partial was made with")
        again = None if data is None else lambda: batches_of(data, subject)
        concluding = Concluding(watching, choices, {}, again=again)
        hold()
        return concluding.report(partial, tuple(dict.fromkeys((*partial.notes, *notes))))
