"""One pass over the data, or over a shard of them, and how many passes fit a budget."""

import dataclasses
import functools
import math
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from basis_probe.errors import DataError, StreamError
from basis_probe.files import require_writable
from basis_probe.interrupts import Ended, hold, stoppable, unstoppable
from basis_probe.model.batches import Batch, batch_of
from basis_probe.model.network import Subject
from basis_probe.model.positions import digest_of_batch
from basis_probe.results.report import Report
from basis_probe.run.gradients import Gradients
from basis_probe.run.parts import UNCHECKED, Part, Partial
from basis_probe.run.problems import dispensable, is_computed
from basis_probe.run.stream import Stream
from basis_probe.run.watch import Choices, Placed, Watched, require_same

Taken = TypeVar("Taken")


def batches_of(data: Iterable[Any], subject: Subject) -> Iterator[Batch]:
    """The batches of the data, checked one by one.

    Raises:
        DataError: for data that are no iterable of batches, or change their form on the way.
    """
    for _, batch in numbered(data, subject):
        assert batch is not None
        yield batch


def require_batches(data: object) -> None:
    """Raises DataError for data that cannot be an iterable of batches."""
    if isinstance(data, str | bytes):
        raise DataError(
            "the data are one string: give batches, for example [[text]], a list with one batch of "
            "one string"
        )
    if not isinstance(data, Iterable):
        raise DataError(
            f"the data are a {type(data).__name__}: give an iterable of batches, such as a "
            "DataLoader"
        )


def numbered(
    data: Iterable[Any], subject: Subject, shard: tuple[int, int] | None = None
) -> Iterator[tuple[int, Batch | None]]:
    """The batches and their numbers; None for all but the first that are not of the shard."""
    require_batches(data)
    data = in_batches(data)
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


def in_batches(data: Any) -> Any:
    """The data; a tensor, an array or a mapping stands for one batch."""
    return [data] if isinstance(data, Tensor | np.ndarray | Mapping) else data  # pyright: ignore[reportUnknownVariableType]


def count_of(data: object) -> int | None:
    """How many batches there are, where that is known without reading them."""
    data = in_batches(data)
    try:
        return len(data) if isinstance(data, Sized) else None
    except Exception:  # Streams may refuse to say, each in its own way; no run fails by that.
        return None


def progressing(
    batches: Iterable[Taken], what: str, *, total: int | None, progress: bool
) -> Iterator[Taken]:
    """The batches, with a bar that says how many have passed; asking for one may be broken off."""
    from tqdm.auto import tqdm

    rest = iter(batches)
    with tqdm(total=total, desc=what, unit="batch", disable=not progress, leave=False) as bar:
        with stoppable():
            batch = next(rest, None)
        while batch is not None:
            yield batch
            bar.update()
            with stoppable():
                batch = next(rest, None)


def first_of(numbered: Iterator[tuple[int, Batch | None]]) -> Batch:
    """The first batch, on which the model is watched.

    Raises:
        DataError: if there is none.
    """
    _, batch = next(numbered, (0, None))
    if batch is None:
        raise DataError("the data hold no batch: give at least one, better several")
    return batch


CHECKPOINT_SECONDS = 60.0
"""So often what was seen is written to the checkpoint."""


FAILED = "The run failed"


class _OtherData(DataError):
    """The data are not those that a checkpoint has seen."""


class Reading:
    """One pass over the data, or over a shard of it, for some sites.

    Args:
        watching: the model and its sites.
        choices: what was asked for.
        names: the sites, leaders among them.
        part: which part of the data.
        checkpoint: where what was seen is written.
        identified: True if what was seen may meet what was seen elsewhere.
        passing: True if the checkpoint is of no use once there is a report. One that is found and
            was made to stay does stay.
        earlier: True if something was gathered in a pass before, which this one adds to.
        gradients: what differentiates a loss by every row that is kept; None for no derivatives.
    """

    def __init__(
        self,
        watching: Watched,
        choices: Choices,
        names: tuple[str, ...],
        part: Part,
        checkpoint: str | os.PathLike[str] | None,
        identified: bool = False,
        passing: bool = False,
        earlier: bool = False,
        gradients: Gradients | None = None,
    ) -> None:
        self.gradients = gradients
        self.watching, self.choices, self.part = watching, choices, part
        self.notes: tuple[str, ...] = ()
        # A number of everything that was read, in whichever order.
        self.total = 0
        self.checkpoint = None if checkpoint is None else require_writable(checkpoint)
        self.passing, self.earlier = passing, earlier
        self.plan = watching.plan(choices, identified=identified or checkpoint is not None)
        self.stream = Stream(
            {name: watching.plans[name] for name in names},
            seed=choices.seed,
            capacity=choices.capacity,
            most=choices.max_samples,
            dispensable=functools.partial(dispensable, watching.places, watching.subject.dtype),
            stops=True,
        )
        self._written = time.monotonic()
        # Whether the data are known to be those that a checkpoint has seen.
        self._same = True
        if self.checkpoint is not None and self.checkpoint.exists():
            self._resume(Partial.load(self.checkpoint))

    def partial(self) -> Partial:
        """What was seen so far."""
        return Partial(
            seen=self.stream.seen if self.part.batches else {},
            first=self.watching.few,
            plan=self.plan,
            parts=(self.part,),
            notes=(*self.notes, *self.watching.later(self.stream)),
            passing=self.passing,
        )

    def remove(self) -> None:
        """Takes away the checkpoint, if this run or one like it made it only to go on from it."""
        if self.checkpoint is not None and self.passing:
            self.checkpoint.unlink(missing_ok=True)

    def _resume(self, before: Partial) -> None:
        require_same(before.plan, self.plan, f"the checkpoint {self.checkpoint} was made with")
        if len(before.parts) != 1:
            raise ValueError(
                f"the checkpoint {self.checkpoint} holds {len(before.parts)} parts that were "
                "added, and a run can go on only from one: give another file, or make the "
                "report of it with `Partial.report`"
            )
        (part,) = before.parts
        if (part.index, part.of) != (self.part.index, self.part.of):
            raise ValueError(
                f"the checkpoint {self.checkpoint} is of shard {part.index}/{part.of}, and shard "
                f"{self.part.index}/{self.part.of} was asked for: give each shard its own file"
            )
        self.part, self.passing = part, self.passing and before.passing
        self.notes = tuple(note for note in before.notes if note == UNCHECKED)
        self._same = False
        self.stream.restore(before.seen, batches=part.batches, examples=part.examples)

    def read(
        self,
        rest: Iterator[tuple[int, Batch | None]],
        finish: Callable[[], Report],
        *,
        count: int | None,
        progress: bool,
    ) -> None:
        """Streams all batches; if the user interrupts it after one, the part is not whole.

        Args:
            rest: the batches after the first one, with their numbers.
            finish: makes the report of what was gathered.
            count: how many batches the data have, where that is known.
            progress: whether to show a progress bar.

        Raises:
            StreamError: if the data or the model fail after a batch, or the process is told to end;
                `finish` makes its report.
        """
        from tqdm.auto import tqdm

        own = None if count is None else len(range(self.part.index, count, self.part.of))
        bar = tqdm(
            total=own,
            initial=self.part.batches,
            desc="running the model",
            unit="batch",
            disable=not progress,
            leave=False,
        )
        try:
            # The batch that the model was watched on has been taken from the data already.
            with stoppable():
                first = first_of(rest) if self.earlier else self.watching.first
            self._read(first, rest, bar.update)
        except BaseException as error:
            gathered = self.part.batches or self.earlier
            if not gathered or not self._same or isinstance(error, _OtherData):
                raise
            hold()
            if isinstance(error, SystemExit | GeneratorExit):
                self._write(always=True)
                raise
            batches = self.part.batches
            # The error itself is forgotten when this clause ends.
            what = str(error) if isinstance(error, Ended) else f"{type(error).__name__}: {error}"
            stopped = isinstance(error, KeyboardInterrupt)
            self._write(always=True)
            if not stopped:
                self.notes = (*self.notes, f"{FAILED} after {batches} batches: {what}")
            if stopped and not isinstance(error, Ended):
                return
            said = what if stopped else f"batch {batches} failed: {what}"
            raise StreamError(
                f"{said}. The {batches} batches before it are kept: call .report() of this error "
                "for their report, or .partial() for what was seen",
                batches=batches,
                finish=finish,
                part=self.partial,
            ) from error
        finally:
            bar.close()
        self.part = dataclasses.replace(self.part, whole=True)
        self._write(always=True)

    def _read(
        self,
        first: Batch,
        rest: Iterator[tuple[int, Batch | None]],
        update: Callable[[], object],
    ) -> None:
        subject, stream = self.watching.subject, self.stream
        index, of, reached = self.part.index, self.part.of, self.part.reached
        counting = _Counting(self.watching, self.stream) if of > 1 and stream.most else None
        digest = 0
        if index and not self.part.batches:
            few = self.watching.few
            stream.rehearse(subject.model, few, functools.partial(subject.call, few))
        number, batch = 0, first
        while True:
            spans = counting.spans(number, batch) if counting is not None and batch else None
            if number % of == index and batch is not None:
                if self.gradients is not None and not self.earlier:
                    self.gradients.hold(batch)
                if number < reached:
                    own = digest_of_batch(batch)
                    digest = _digested(digest, number, own)
                    self.total = (self.total + own) % 2**64
                    stream.pass_over(batch)
                else:
                    self._require_digest(digest)
                    self._see(number, batch, spans)
                    update()
            full = stream.full if counting is None else counting.full
            if full and number + 1 >= reached:
                break
            with stoppable():
                following = next(rest, None)
            if following is None:
                break
            number, batch = following
        if number < reached - 1:
            raise _OtherData(
                f"the checkpoint {self.checkpoint} has seen {reached} batches, and the data end "
                f"after {number + 1}: give the same data again, or start anew without it"
            )
        self._require_digest(digest)

    def _see(self, number: int, batch: Batch, spans: Mapping[str, range] | None) -> None:
        """Adds what a batch shows."""
        gradients = self.gradients
        call: Callable[[], object] = functools.partial(self.watching.subject.call, batch)
        call = call if gradients is None else gradients.run(batch)
        own = digest_of_batch(batch)
        digest = _digested(self.part.digest, number, own)
        model = self.watching.subject.model
        add = self.stream.look(model, batch, call, spans=spans, number=number, gradients=gradients)
        with unstoppable():
            add()
            self.part = dataclasses.replace(
                self.part,
                reached=number + 1,
                batches=self.stream.batches,
                examples=self.stream.examples,
                digest=digest,
                whole=False,
            )
            self.total = (self.total + own) % 2**64
            hold()
        self._write(always=False)

    def _require_digest(self, digest: int) -> None:
        if not self._same and digest != self.part.digest:
            raise _OtherData(
                f"the first {self.part.reached} batches are not those that the checkpoint "
                f"{self.checkpoint} has seen: give the same data in the same order, or start anew "
                "without it"
            )
        if self.part.batches:
            hold()
        self._same = True

    def _write(self, *, always: bool) -> None:
        if self.checkpoint is None:
            return
        if not always and time.monotonic() - self._written < CHECKPOINT_SECONDS:
            return
        self._written = time.monotonic()
        try:
            self.partial().save(self.checkpoint)
        except (OSError, MemoryError) as error:
            # What was gathered is worth more than its copy: the run goes on without.
            said = f"The checkpoint {self.checkpoint} could not be written: {error}."
            if said not in self.notes:
                self.notes = (*self.notes, said)
                warnings.warn(said, stacklevel=2)


class Again:
    """Batches that are read once more, which should be those that were read before.

    Args:
        batches: the batches.
        total: of those that were read before, as `Reading.total`.
        what: for which purpose, to be said where they are others.
    """

    def __init__(self, batches: Iterable[Batch], total: int, what: str) -> None:
        self._batches, self._before, self._what = batches, total, what
        self._total, self._whole = 0, False

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._batches:
            self._total = (self._total + digest_of_batch(batch)) % 2**64
            yield batch
        self._whole = True

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know; nothing where the data are the same."""
        if not self._whole or self._total == self._before:
            return ()
        return (others(self._what),)


def others(what: str) -> str:
    """What a reader must know of data that changed between two passes."""
    return (
        f"{what} saw other data than the first pass: they differ from one reading to the next, as "
        "where they are drawn anew or changed at random. What is beside each other here is not of "
        "the same samples; give data that are the same every time, such as a list."
    )


def _digested(digest: int, number: int, own: int) -> int:
    """A number that depends on the examples of all batches so far, and on which batch is which."""
    return (digest + own * (2 * number + 1)) % 2**64


class _Counting:
    """How many samples come before a batch at every site, in shards that others see too."""

    def __init__(self, watching: Watched, stream: Stream) -> None:
        self.first, self.most = watching.first, stream.most or 0
        trace = watching.derivation.seen.graph.trace
        self.plans = stream.plans
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

    def _known(self, name: str, batch: Batch) -> int | None:
        """How many samples of a batch count at a site, where its axes could be followed."""
        rows = self.plans[name].rows
        sizes = None if rows is None else rows.sizes(batch)
        placed = None if rows is None or sizes is None else rows.place(sizes, batch)
        return None if placed is None or placed.example is None else int(placed.counts().sum())

    def spans(self, number: int, batch: Batch) -> dict[str, range]:
        """Site -> which of the samples of the data the batch holds."""
        found: dict[str, range] = {}
        for name, (lead, examples) in self.rows.items():
            known = self._known(name, batch)
            if known is not None:
                found[name] = range(self.counts[name], self.counts[name] + known)
                self.counts[name] += known
                continue
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


# --- several passes -------------------------------------------------------------------------------


def passes_of(
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
    if not is_computed(place):
        kept += plan.dim
    if plan.pre is not None and (place.layer is None or place.layer.pre is None):
        kept += plan.dim
    return plan.room(capacity) * kept * size + plan.dim * 8 * 16


def announced(passes: list[tuple[str, ...]], budget: int | None) -> tuple[str, ...]:
    """What a reader must know of several passes, which the user is warned of first."""
    if len(passes) < 2 or budget is None:
        return ()
    said = (
        f"To stay within {budget:,} bytes, the data pass through the model {len(passes)} times, "
        f"for {max(len(names) for names in passes)} sites at a time."
    )
    warnings.warn(said, stacklevel=3)
    return (said,)
