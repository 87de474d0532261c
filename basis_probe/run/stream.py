"""One pass of data through a model: for every site, moments of all samples and rows of a few.

Memory does not grow with the data: moments are values that add, and the rows kept for the nulls are
a bottom-k sample whose priorities depend on the content of an example alone, so that batch size,
order and padding change nothing.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from basis_probe.interrupts import stoppable, unstoppable
from basis_probe.model.batches import Batch
from basis_probe.model.capture import Catcher, Enough, Settled, catching
from basis_probe.model.experts import Origin, origin_of
from basis_probe.model.graph import Layout
from basis_probe.model.linear_layer import Convolution
from basis_probe.model.places import Address
from basis_probe.model.positions import Placed, Rows, hash_batch
from basis_probe.run.gradients import Gradients
from basis_probe.statistics.batch_sums import BatchSums
from basis_probe.statistics.moments import Moments, SampleKurtosis
from basis_probe.statistics.sampling import (
    Occurrences,
    Reservoir,
    content_positions,
    numbered_apart,
    priorities,
)

_PROOF_ROWS = 64
"""So many rows of a site are kept where its others can be computed again, to see that they can."""

_TRIAL_EXAMPLES = 2
"""On so many examples of the first batch it is seen what need not be kept."""

_TRIAL_ROWS = 512

Dispensable = Callable[[str, Mapping[str, Tensor]], frozenset[str]]
"""From a site and some of its rows, by name, to the names whose rows need not be kept."""

Beside = Callable[[torch.Size], Mapping[str, Tensor]]
"""From the sizes of a site's axes before its features to what belongs to each of its rows, by name.

It is asked while the batch runs; every tensor has one row for every row of the site, on the CPU.
"""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is caught at one site.

    Attributes:
        address: where its activations are.
        layout: where the features are in them; None for the last axis.
        dim: the number of features.
        inputs: where the input of the linear map in front of it is, if that is known.
        width: the number of features of that input.
        repeat: how many consecutive entries of it belong to one feature.
        convolution: how windows are cut from that input, where the map is a convolution.
        pre: where the tensor before its nonlinearity is, if it is to be caught.
        held: where the tensors are that are added to what the linear map makes.
        centred: True to subtract each sample's mean over features before comparing features.
        across: whether features are compared with each other in every sample.
        capacity: how many rows are kept of it; None for as many as the stream keeps at most.
        rows: which of its rows belong to which example and position; None if that is not known.
        routed: the same of what is given out to experts, where the site is one expert's.
        root: the module that gives it out.
    """

    address: Address
    layout: Layout | None
    dim: int
    inputs: Address | None = None
    width: int = 0
    repeat: int = 1
    convolution: Convolution | None = None
    pre: Address | None = None
    held: tuple[Address, ...] = ()
    centred: bool = False
    across: bool = True
    capacity: int | None = None
    rows: Rows | None = None
    routed: Rows | None = None
    root: str = ""

    def room(self, most: int) -> int:
        """How many rows are kept of it in a stream that keeps so many at most."""
        return most if self.capacity is None else min(most, self.capacity)


@dataclasses.dataclass(frozen=True, eq=False)
class Seen:
    """What was seen at one site; `a + b` is what was seen in both streams.

    Attributes:
        moments: of every axis over all samples.
        kurtosis: of every sample across axes.
        kept: a uniform sample of rows: "x" [samples, dim], "example" [samples], a hash of the
            sequence or image that a row is of, and what was planned of "inputs"
            [samples, width, positions], "pre" and "held 0", "held 1" ... [samples, dim]; without
            what turned out to be dispensable.
        proof: where "x" was dispensable, a few rows that have it nevertheless.
        bad: (number of the batch, NaN or infinite values in it) for every batch that had some.
        missed: batches in which the site did not run.
        given: how many rows were given out to experts, where the site is one expert's.
    """

    moments: Moments
    kurtosis: SampleKurtosis
    kept: Reservoir
    bad: tuple[tuple[int, int], ...] = ()
    missed: int = 0
    given: int = 0
    proof: Reservoir = dataclasses.field(default_factory=lambda: Reservoir.empty(_PROOF_ROWS))

    @staticmethod
    def nothing(dim: int, *, capacity: int) -> "Seen":
        """What was seen before the first batch."""
        return Seen(Moments.empty(dim), SampleKurtosis.empty(dim), Reservoir.empty(capacity))

    def __add__(self, other: "Seen") -> "Seen":
        return Seen(
            self.moments + other.moments,
            self.kurtosis + other.kurtosis,
            self.kept + other.kept,
            tuple(sorted(self.bad + other.bad)),
            self.missed + other.missed,
            self.given + other.given,
            self.proof + other.proof,
        )


class Keeper:
    """The rows with the smallest priorities so far, in memory that is claimed once.

    Args:
        capacity: how many rows are kept.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity, self.seen, self.filled = capacity, 0, 0
        self.priorities = torch.empty(capacity, dtype=torch.float64)
        self.rows: dict[str, Tensor] = {}
        self.threshold = math.inf

    def add(self, offered: int, priorities: Tensor, rows: Mapping[str, Tensor]) -> None:
        """Takes in the rows of a batch that may stay.

        Args:
            offered: how many rows the batch had in all.
            priorities: of the rows that may stay, [samples].
            rows: what belongs to each of them, by name.
        """
        self.seen += offered
        if not len(priorities):
            return
        if not self.rows:
            self.rows = {
                name: torch.empty(
                    (self.capacity, *values.shape[1:]), dtype=values.dtype, device="cpu"
                )
                for name, values in rows.items()
            }
        both = torch.cat([self.priorities[: self.filled], priorities])
        stays = torch.zeros(len(both), dtype=torch.bool)
        stays[both.sort(stable=True).indices[: self.capacity]] = True
        new = torch.nonzero(stays[self.filled :]).flatten()
        free = torch.nonzero(~stays[: self.filled]).flatten()
        end = self.filled + len(new) - len(free)
        places = torch.cat([free, torch.arange(self.filled, end)])
        self.priorities[places] = priorities[new]
        for name, kept in self.rows.items():
            if not self.filled and len(new) == len(priorities):
                kept[:end] = rows[name]
            else:
                kept.index_copy_(0, places, rows[name].index_select(0, new))
        self.filled = end
        if end == self.capacity:
            self.threshold = float(self.priorities.max())

    def restore(self, reservoir: Reservoir) -> None:
        """Goes on from what was kept elsewhere."""
        self.seen, self.filled, self.rows = 0, 0, {}
        self.add(reservoir.seen, reservoir.priorities, reservoir.rows)
        if self.filled == self.capacity:
            self.threshold = float(self.priorities.max())

    def value(self) -> Reservoir:
        """What is kept now, by rising priority; a copy."""
        return self._value(self.rows.__getitem__)

    def release(self) -> Reservoir:
        """The same, no longer kept here: at no time are there two copies of all of it."""
        found = self._value(self.rows.pop)
        self.filled = 0
        return found

    def _value(self, take: Callable[[str], Tensor]) -> Reservoir:
        order = self.priorities[: self.filled].argsort(stable=True)
        return Reservoir(
            capacity=self.capacity,
            seen=self.seen,
            priorities=self.priorities[order],
            rows={name: take(name).index_select(0, order) for name in tuple(self.rows)},
        )


_MOMENTS = tuple(field.name for field in dataclasses.fields(Moments))
_SUMS = tuple(field.name for field in dataclasses.fields(BatchSums) if field.name != "moments")


@dataclasses.dataclass(frozen=True, eq=False)
class _Caught:
    """What one batch showed at one site, still on its device."""

    sums: BatchSums
    counted: int
    offered: int
    priorities: Tensor
    rows: dict[str, Tensor]
    without: frozenset[str]
    unapplied: tuple[str, ...]
    places: Tensor

    def tensors(self) -> list[Tensor]:
        """Everything that may lie on a device, in a fixed order."""
        moments = (getattr(self.sums.moments, name) for name in _MOMENTS)
        sums = (getattr(self.sums, name) for name in _SUMS)
        return [t for t in (*moments, *sums, *self.rows.values()) if isinstance(t, Tensor)]

    def with_tensors(self, home: Iterator[Tensor]) -> "_Caught":
        """The same with others for what `tensors` gives."""

        def put(value: object) -> object:
            return next(home) if isinstance(value, Tensor) else value

        moments = {name: put(getattr(self.sums.moments, name)) for name in _MOMENTS}
        sums = {name: put(getattr(self.sums, name)) for name in _SUMS}
        changed: Any = {"moments": dataclasses.replace(self.sums.moments, **moments), **sums}
        rows = {name: next(home) for name in self.rows}
        return dataclasses.replace(self, sums=dataclasses.replace(self.sums, **changed), rows=rows)

    def with_gradient(self, gradient: Tensor | None, plan: Plan) -> "_Caught":
        """With the derivatives by its rows; NaN where there are none."""
        if gradient is None:
            shape = (len(self.priorities), plan.dim)
            rows = torch.full(shape, torch.nan, dtype=torch.float32, device=self.places.device)
        else:
            flat = rows_last(gradient, plan.layout).reshape(-1, plan.dim)
            rows = flat[self.places.to(flat.device)]
            rows = rows if rows.dtype is torch.float64 else rows.float()
        return dataclasses.replace(self, rows=self.rows | {"gradient": rows})


class Observer:
    """What one batch shows at one site, taken where the tensors are made.

    Args:
        plan: what to catch.
        batch: the batch that runs.
        ranks: which of its rows count, and their priorities.
        capacity: how many rows are kept in all.
        threshold: rows with a larger priority cannot be kept any more.
        room: how many samples may still be counted; None for no limit.
        without: what need not be kept.
        proves: how many rows are kept of what need not be; 0 for none.
        tries: asked what need not be kept, from some rows of the first examples that have
            everything that was planned; None if that is known.
        beside: what else is kept of every row that is kept.
    """

    def __init__(
        self,
        plan: Plan,
        batch: Batch,
        *,
        ranks: "Ranks",
        capacity: int,
        threshold: float,
        room: int | None,
        without: frozenset[str] = frozenset(),
        proves: int = 0,
        tries: Callable[[Mapping[str, Tensor]], frozenset[str]] | None = None,
        beside: Beside | None = None,
    ) -> None:
        self.plan, self.batch, self.ranks, self.beside = plan, batch, ranks, beside
        self.capacity, self.threshold, self.room = capacity, threshold, room
        self.without, self.proves, self.tries = without, proves, tries
        self.caught: _Caught | None = None
        self.waiting: dict[str, Tensor] = {}

    def catchers(self) -> dict[Address, Catcher]:
        """What to do at which address; the site's own tensor comes last."""
        found: dict[Address, Catcher] = {}
        if self.plan.inputs is not None:
            found[self.plan.inputs] = functools.partial(self._take, "inputs")
        for name, address in self._beside():
            found[address] = functools.partial(self._take, name)
        if self.plan.address in found:
            raise ValueError("a site cannot be its own input")
        found[self.plan.address] = self._finish
        return found

    def _beside(self) -> list[tuple[str, Address]]:
        """What is caught besides, feature by feature as the site itself."""
        found = [(f"held {place}", address) for place, address in enumerate(self.plan.held)]
        if self.plan.pre is not None and "pre" not in self.without:
            found.append(("pre", self.plan.pre))
        return found

    def _take(self, name: str, tensor: Tensor) -> None:
        with torch.inference_mode(False):
            self._note(name, tensor)

    def _finish(self, tensor: Tensor) -> None:
        # Sums go on in passes outside of inference mode, which may not write to what is made in it.
        with torch.inference_mode(False), torch.no_grad():
            self._see(tensor)

    def _note(self, name: str, tensor: Tensor) -> None:
        # An in-place function may overwrite what is caught before the site is reached.
        self.waiting[name] = tensor.detach().clone()

    def _see(self, tensor: Tensor) -> None:
        plan = self.plan
        x = rows_last(tensor.detach(), plan.layout)
        if x.shape[-1] != plan.dim:
            raise ValueError(
                f"the site had {plan.dim} features in the first batch and has {x.shape[-1]} now"
            )
        flat = x.reshape(-1, plan.dim)
        origin = origin_of(tensor) if plan.routed is not None else None
        ranks = (
            self.ranks.of(x.shape[:-1], plan.rows)
            if origin is None
            else routed(self.ranks.of(origin.lead, plan.routed), origin)
        )
        counted, priority = ranks.counted, ranks.priority
        if self.room is not None:
            counted, priority = counted[: self.room], priority[: self.room]
        everything = len(counted) == len(flat)
        rows = flat if everything else flat[counted.to(flat.device)]
        if self.tries is not None:
            first = self.ranks.examples[:_TRIAL_EXAMPLES]
            few = counted[torch.isin(ranks.owner[counted], first)]
            step = max(1, len(few) // _TRIAL_ROWS)
            trial = self._gather(flat, tensor, few[::step], ranks.owner)
            self.without = self.tries({name: values.cpu() for name, values in trial.items()})
        near = _smallest(priority, self.capacity, self.threshold)
        kept = self._gather(flat, tensor, counted[near], ranks.owner)
        if self.beside is not None:
            chosen, lead = counted[near], x.shape[:-1]
            if origin is not None:
                chosen, lead = origin.rows.cpu()[chosen], torch.Size(origin.lead)
            kept |= {name: rows[chosen] for name, rows in self.beside(lead).items()}
        self.waiting = {}
        self.caught = _Caught(
            sums=BatchSums.of(rows, across=plan.across, centred=plan.centred),
            counted=len(ranks.counted),
            offered=len(counted),
            priorities=priority[near],
            rows=kept,
            without=self.without,
            unapplied=ranks.unapplied,
            places=counted[near],
        )

    def _gather(
        self, flat: Tensor, site: Tensor, chosen: Tensor, owner: Tensor
    ) -> dict[str, Tensor]:
        """What belongs to the chosen rows, on their device."""
        here = chosen.to(flat.device)
        kept = {"example": owner[chosen]}
        if "x" not in self.without:
            kept["x"] = flat[here]
        elif self.proves:
            kept["x"] = flat[here[: self.proves]]
        if "inputs" in self.waiting:
            kept["inputs"] = self._windows(self.waiting["inputs"], site, here)
        for name, _ in self._beside():
            if name in self.waiting:
                values = rows_last(self.waiting[name], self.plan.layout)
                kept[name] = values.reshape(-1, self.plan.dim)[here.to(values.device)]
        return kept

    def _windows(self, inputs: Tensor, site: Tensor, chosen: Tensor) -> Tensor:
        """[samples, width, positions]: what the linear map read to make the chosen rows."""
        chosen = chosen.to(inputs.device)
        cut = self.plan.convolution
        if cut is None:
            return inputs.reshape(-1, self.plan.width, self.plan.repeat)[chosen]
        height, width = site.shape[-2:]
        example, place = chosen // (height * width), chosen % (height * width)
        row, column = place // width, place % width
        padded = inputs
        if any(cut.padding):
            padded = torch.nn.functional.pad(
                inputs, (cut.padding[1], cut.padding[1], cut.padding[0], cut.padding[0])
            )
        down = torch.arange(cut.kernel[0], device=inputs.device) * cut.dilation[0]
        right = torch.arange(cut.kernel[1], device=inputs.device) * cut.dilation[1]
        rows = (row * cut.stride[0])[:, None, None] + down[None, :, None]
        columns = (column * cut.stride[1])[:, None, None] + right[None, None, :]
        windows = padded.movedim(1, -1)[example[:, None, None], rows, columns]
        return rearrange(windows, "sample row column width -> sample width (row column)")


def _smallest(priority: Tensor, capacity: int, threshold: float) -> Tensor:
    """The places of the smallest priorities that may still be kept, by rising priority."""
    near = torch.nonzero(priority <= threshold).flatten()
    return near[priority[near].sort(stable=True).indices[:capacity]]


@dataclasses.dataclass(frozen=True, eq=False)
class Ranked:
    """The rows of a tensor that count and the priority of each; the example of every row.

    Attributes:
        counted: the places of the rows that count, [counted].
        priority: of each of them, [counted].
        owner: a hash of the example of every row, [rows].
        unapplied: masks that speak of what the tensor is made of and could not be laid on its rows.
    """

    counted: Tensor
    priority: Tensor
    owner: Tensor
    unapplied: tuple[str, ...] = ()


class Ranks:
    """Which rows of a batch count, and with what priority they are kept.

    Args:
        batch: the batch, before the model runs on it.
        seed: seeds the priorities.
        rows: what was seen of the inputs' axes, by any of the sites.
        occurrences: tells equal examples apart; None to take them for one.
    """

    def __init__(
        self,
        batch: Batch,
        *,
        seed: int,
        rows: Rows | None = None,
        occurrences: Occurrences | None = None,
    ) -> None:
        self.batch, self.seed = batch, seed
        self.examples = hash_batch(batch, rows)
        self._occurrences = occurrences
        self._found: dict[tuple[tuple[int, ...], Rows | None], Ranked] = {}
        self._given: dict[Rows, int] = {}

    @functools.cached_property
    def apart(self) -> Tensor:
        """The hashes, equal ones numbered: they are kept or left out independently."""
        if self._occurrences is None:
            return self.examples
        return numbered_apart(self.examples, self._occurrences.before(self.examples))

    @property
    def size(self) -> int:
        """The number of examples."""
        return len(self.examples)

    def of(self, lead: torch.Size | tuple[int, ...], rows: Rows | None = None) -> Ranked:
        """The rows of a tensor.

        Args:
            lead: the sizes of its axes before its features.
            rows: which of them belong to which example; None to guess it from their number.
        """
        key = tuple(lead), rows
        if key not in self._found:
            placed = None if rows is None else rows.place(key[0], self.batch)
            unapplied = () if rows is None else rows.unapplied(self.batch, placed)
            if placed is None or placed.example is None:
                found = self._by_place(key[0], self.batch.mask if rows is None else None)
            else:
                found = self._by_example(placed)
            self._found[key] = dataclasses.replace(found, unapplied=unapplied)
        return self._found[key]

    def given(self, rows: Rows | None) -> int:
        """How many rows that count the batch gives out to experts; 0 where that is not known."""
        if rows is None:
            return 0
        if rows not in self._given:
            lead = rows.sizes(self.batch)
            self._given[rows] = 0 if lead is None else len(self.of(lead, rows).counted)
        return self._given[rows]

    def _by_example(self, placed: Placed) -> Ranked:
        example = placed.example
        assert example is not None
        axis, index = example
        counts = placed.counts()
        ahead = placed.positions(counts).movedim(axis, 0)
        hashes = self.apart[index.clamp(0, self.size - 1)]
        rank = priorities(
            hashes, ahead.flatten(1) if ahead.ndim > 1 else ahead[:, None], seed=self.seed
        )
        ranks = rank.reshape(ahead.shape).movedim(0, axis)
        owners = self.examples[placed.owners().clamp(0, self.size - 1)]
        return _ranked(counts, ranks, owners)

    def _by_place(self, lead: tuple[int, ...], mask: Tensor | None) -> Ranked:
        """Where nothing is known of the rows: the first axis is that of examples if it may be."""
        total, size = math.prod(lead), self.size
        if mask is not None and total == mask.numel() and lead[0] in (size, total):
            rank = priorities(self.apart, content_positions(mask.cpu()), seed=self.seed)
            return _ranked(mask.cpu(), rank, self.examples[:, None].expand_as(mask))
        if size and total % size == 0 and lead and lead[0] in (size, total):
            counts = torch.ones(size, total // size, dtype=torch.bool)
            rank = priorities(self.apart, content_positions(counts), seed=self.seed)
            return _ranked(counts, rank, self.examples[:, None].expand_as(counts))
        # Rows that do not belong to single examples: they are told apart by their place.
        counts = torch.ones(1, total, dtype=torch.bool)
        rank = priorities(self.apart.sum()[None], content_positions(counts), seed=self.seed)
        return _ranked(counts, rank, self.examples.sum()[None, None].expand_as(counts))


def routed(ranked: Ranked, origin: Origin) -> Ranked:
    """The rows that reached an expert, ranked as those that they are among all that were given."""
    rows = origin.rows.cpu()
    place = torch.full((len(ranked.owner),), -1)
    place[ranked.counted] = torch.arange(len(ranked.counted))
    own = place[rows]
    counted = torch.nonzero(own >= 0).flatten()
    return Ranked(counted, ranked.priority[own[counted]], ranked.owner[rows], ranked.unapplied)


def _ranked(counts: Tensor, rank: Tensor, owners: Tensor) -> Ranked:
    return Ranked(torch.nonzero(counts.flatten()).flatten(), rank[counts], owners.flatten())


def rows_last(tensor: Tensor, layout: Layout | None) -> Tensor:
    """[..., features]: the tensor with its feature axes last, heads behind one another."""
    axes = (tensor.ndim - 1,) if layout is None else layout.axes
    last = tuple(range(tensor.ndim - len(axes), tensor.ndim))
    return tensor.movedim(axes, last).flatten(-len(axes))


class _Sums:
    """What was seen at one site so far."""

    def __init__(self, plan: Plan, capacity: int) -> None:
        self.plan = plan
        self.moments = Moments.empty(plan.dim)
        self.kurtosis = SampleKurtosis.empty(plan.dim)
        self.kept, self.proof = Keeper(capacity), Keeper(_PROOF_ROWS)
        self.bad: tuple[tuple[int, int], ...] = ()
        self.missed = self.given = 0
        self.tried = False
        self.without: frozenset[str] = frozenset()
        self.unapplied: dict[str, int] = {}

    def add(self, caught: _Caught, number: int) -> None:
        """Takes in what a batch showed, its numbers on the CPU."""
        self.tried, self.without = True, caught.without
        for mask in caught.unapplied:
            self.unapplied[mask] = self.unapplied.get(mask, 0) + 1
        self.moments = self.moments + caught.sums.moments
        kurtosis = caught.sums.kurtosis()
        if kurtosis is not None:
            self.kurtosis = self.kurtosis + kurtosis
        bad = int(caught.sums.bad)
        if bad:
            self.bad = (*self.bad, (number, bad))
        rows = dict(caught.rows)
        if "x" in self.without:
            few = len(rows["x"])
            self.proof.add(
                caught.offered,
                caught.priorities[:few],
                {name: values[:few] for name, values in rows.items()},
            )
            del rows["x"]
        self.kept.add(caught.offered, caught.priorities, rows)

    def restore(self, seen: Seen) -> None:
        """Goes on from what was seen before."""
        self.moments, self.kurtosis = seen.moments, seen.kurtosis
        self.bad, self.missed, self.given = seen.bad, seen.missed, seen.given
        self.kept.restore(seen.kept)
        self.proof.restore(seen.proof)
        if seen.kept.rows:
            planned = {"x"} | ({"pre"} if self.plan.pre is not None else set[str]())
            self.tried, self.without = True, frozenset(planned - seen.kept.rows.keys())

    def value(self, *, release: bool = False) -> Seen:
        """What was seen, as a value: a copy, or all that there was."""
        return Seen(
            self.moments,
            self.kurtosis,
            self.kept.release() if release else self.kept.value(),
            self.bad,
            self.missed,
            self.given,
            self.proof.value(),
        )


class Values(Mapping[str, Seen]):
    """What was seen at every site, copied when it is asked for."""

    def __init__(self, sums: Mapping[str, _Sums]) -> None:
        self._sums = sums

    def __getitem__(self, name: str) -> Seen:
        return self._sums[name].value()

    def __iter__(self) -> Iterator[str]:
        return iter(self._sums)

    def __len__(self) -> int:
        return len(self._sums)


class Stream:
    """Everything seen so far, and how to see one more batch.

    Args:
        plans: site -> what is caught there.
        seed: seeds the sample of rows.
        capacity: how many rows are kept at each site.
        most: at most this many samples are counted at each site; None for all.
        dispensable: asked once for every site what of its rows need not be kept; None to keep all
            that is planned.
        stops: True if the model may be stopped once every site has been seen in a batch. A model
            that keeps something of a pass is run to its end all the same.
        forgiving: True to leave a site out of a batch in which it cannot be followed; otherwise
            that is an error.
    """

    def __init__(
        self,
        plans: Mapping[str, Plan],
        *,
        seed: int,
        capacity: int,
        most: int | None,
        dispensable: Dispensable | None = None,
        stops: bool = False,
        forgiving: bool = False,
    ) -> None:
        self.plans, self.seed, self.capacity, self.most = dict(plans), seed, capacity, most
        self.dispensable = dispensable
        self.sums = {name: _Sums(plan, plan.room(capacity)) for name, plan in plans.items()}
        self.batches = 0
        self.examples = 0
        self.occurrences = Occurrences()
        self.forgiving = forgiving
        self.failures: dict[str, tuple[int, str]] = {}
        self._settled = Settled() if stops else None

    @property
    def seen(self) -> Mapping[str, Seen]:
        """What was seen at every site."""
        return Values(self.sums)

    def release(self, name: str) -> Seen:
        """What was seen at a site, which is kept here no longer."""
        return self.sums.pop(name).value(release=True)

    @property
    def full(self) -> bool:
        """True if no site may count any more samples."""
        return self.most is not None and all(
            sums.moments.count >= self.most for sums in self.sums.values()
        )

    def see(
        self,
        model: torch.nn.Module,
        batch: Batch,
        run: Callable[[], object],
        *,
        beside: Beside | None = None,
        spans: Mapping[str, range] | None = None,
        number: int | None = None,
    ) -> None:
        """Adds what a batch shows; if anything fails, nothing of the batch is counted.

        Args:
            model: the model.
            batch: the batch.
            run: calls the model with the batch, once.
            beside: what else is kept of every row that is kept, such as its labels.
            spans: which of the samples of the data the batch holds at each site, where other
                batches are seen elsewhere; None if they are those after the samples seen here.
            number: which batch of the data it is; None for the next one.
        """
        self.look(model, batch, run, beside=beside, spans=spans, number=number)()

    def look(
        self,
        model: torch.nn.Module,
        batch: Batch,
        run: Callable[[], object],
        *,
        beside: Beside | None = None,
        spans: Mapping[str, range] | None = None,
        number: int | None = None,
        gradients: Gradients | None = None,
    ) -> Callable[[], None]:
        """What adds what a batch shows, once it is called; the arguments are those of `see`.

        Where `gradients` are given, `run` is theirs, and the derivatives by every row that is kept
        are kept too.
        """
        number = self.batches if number is None else number
        # Before the model runs, which may write into what it is given.
        with torch.inference_mode(False):
            ranks = self._ranks(batch, self.occurrences)
        rooms = {name: self._room(name, spans) for name in self.plans}
        observers = self._observers(batch, rooms, beside, ranks)
        self._run(model, observers, run, gradients)
        if gradients is not None:
            for name, observer in observers.items():
                if observer.caught is not None:
                    own = gradients.at(self.plans[name].address)
                    observer.caught = observer.caught.with_gradient(own, self.plans[name])
        if spans is not None:
            _require_spans(observers, spans, number)
        return functools.partial(self._add, observers, ranks, number)

    def _add(self, observers: Mapping[str, Observer], ranks: Ranks, number: int) -> None:
        with unstoppable():
            _bring_home(observers.values())
            for name, observer in observers.items():
                sums = self.sums[name]
                sums.given += ranks.given(self.plans[name].routed)
                if observer.caught is None:
                    sums.missed += 1
                    continue
                with torch.inference_mode(False):
                    sums.add(observer.caught, number)
                observer.caught = None
            self.occurrences.add(ranks.examples)
            self.batches += 1
            self.examples += ranks.size

    def rehearse(self, model: torch.nn.Module, batch: Batch, run: Callable[[], object]) -> None:
        """Sees what need not be kept, on a batch that is counted elsewhere."""
        if self.dispensable is None:
            return
        ranks = self._ranks(batch, None)
        observers = self._observers(batch, dict.fromkeys(self.plans), None, ranks)
        self._run(model, observers, run)
        for name, observer in observers.items():
            if observer.caught is not None:
                sums = self.sums[name]
                sums.tried, sums.without = True, observer.caught.without

    def restore(self, seen: Mapping[str, Seen], *, batches: int, examples: int) -> None:
        """Goes on from what was seen before."""
        for name, sums in self.sums.items():
            sums.restore(seen[name])
        self.batches, self.examples = batches, examples

    def _forgive(self, name: str, catcher: Catcher, tensor: Tensor) -> None:
        try:
            catcher(tensor)
        except Exception as error:
            often, said = self.failures.get(name, (0, ""))
            self.failures[name] = often + 1, said or f"{type(error).__name__}: {error}"

    def pass_over(self, batch: Batch) -> None:
        """Counts the examples of a batch that was seen before."""
        self.occurrences.add(self._ranks(batch, None).examples)

    @property
    def unapplied(self) -> dict[str, tuple[tuple[str, ...], int]]:
        """Site -> masks that could not be laid on its rows, and in how many batches."""
        return {
            name: (tuple(sums.unapplied), max(sums.unapplied.values()))
            for name, sums in self.sums.items()
            if sums.unapplied
        }

    def _ranks(self, batch: Batch, occurrences: Occurrences | None) -> Ranks:
        rows = next((plan.rows for plan in self.plans.values() if plan.rows is not None), None)
        return Ranks(batch, seed=self.seed, rows=rows, occurrences=occurrences)

    def _room(self, name: str, spans: Mapping[str, range] | None) -> int | None:
        if self.most is None:
            return None
        come = self.sums[name].moments.count if spans is None else spans[name].start
        return max(0, self.most - come)

    def _observers(
        self,
        batch: Batch,
        rooms: Mapping[str, int | None],
        beside: Beside | None,
        ranks: Ranks,
    ) -> dict[str, Observer]:
        return {
            name: Observer(
                plan,
                batch,
                ranks=ranks,
                capacity=plan.room(self.capacity),
                threshold=self.sums[name].kept.threshold,
                room=rooms[name],
                without=self.sums[name].without,
                proves=_PROOF_ROWS,
                tries=None
                if self.dispensable is None or self.sums[name].tried
                else functools.partial(self.dispensable, name),
                beside=beside,
            )
            for name, plan in self.plans.items()
            if rooms[name] != 0
        }

    def _run(
        self,
        model: torch.nn.Module,
        observers: Mapping[str, Observer],
        run: Callable[[], object],
        gradients: Gradients | None = None,
    ) -> None:
        catchers: dict[Address, list[Catcher]] = {}
        for name, observer in observers.items():
            if gradients is not None:
                address = self.plans[name].address
                catchers.setdefault(address, []).append(gradients.catcher(address))
            for address, catcher in observer.catchers().items():
                taken = functools.partial(self._forgive, name, catcher)
                catchers.setdefault(address, []).append(taken if self.forgiving else catcher)
        # A loss is made of what the model returns at its end.
        settled = self._settled if gradients is None else None
        ends = settled is not None and settled.may_stop(model)

        def hand(each: list[Catcher], tensor: Tensor) -> None:
            for catcher in each:
                catcher(tensor)
            if ends and all(observer.caught is not None for observer in observers.values()):
                raise Enough

        def passes() -> None:
            # Only here: what is set up and put back around it is not to be broken off.
            with stoppable():
                run()

        roots = {observer.plan.root for observer in observers.values()} - {""}
        wanted = {address: functools.partial(hand, each) for address, each in catchers.items()}
        with torch.no_grad(), catching(model, wanted, roots):
            if settled is None:
                passes()
            else:
                settled.run(model, passes)


def _require_spans(
    observers: Mapping[str, Observer], spans: Mapping[str, range], number: int
) -> None:
    for name, observer in observers.items():
        if observer.caught is not None and observer.caught.counted != len(spans[name]):
            raise ValueError(
                f"batch {number} holds {observer.caught.counted} samples at {name}, and "
                f"{len(spans[name])} were foreseen from its shape, so it is not known where "
                "max_samples falls in other shards: give max_samples=None"
            )


def _bring_home(observers: Iterable[Observer]) -> None:
    """Brings what a batch showed to the CPU, where it is added up; each device is waited for once.

    Copies are begun for all sites, and run while others are begun.
    """
    caught = [observer for observer in observers if observer.caught is not None]
    every = [observer.caught.tensors() for observer in caught if observer.caught is not None]
    devices = {tensor.device for each in every for tensor in each} - {_CPU}
    if not devices:
        return
    # An accelerator copies into memory that is pinned for it.
    homes = [[tensor.to(_CPU, non_blocking=True) for tensor in each] for each in every]
    for device in devices:
        _wait_for(device)
    for observer, home in zip(caught, homes, strict=True):
        if observer.caught is not None:
            observer.caught = observer.caught.with_tensors(iter(home))


def _wait_for(device: torch.device) -> None:
    """Returns when a device has done all that it was told to do."""
    torch.accelerator.synchronize(device)


_CPU = torch.device("cpu")
