"""One pass of data through a model: for every site, moments of all samples and rows of a few.

Memory does not grow with the data: moments are values that add, and the rows kept for the nulls are
a bottom-k sample whose priorities depend on the content of an example alone, so that batch size,
order and padding change nothing.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from einops import rearrange
from torch import Tensor

from basis_probe.adapters.batches import Batch
from basis_probe.adapters.capture import Catcher, catching
from basis_probe.adapters.graph import Layout
from basis_probe.adapters.layers import Convolution
from basis_probe.adapters.places import Address
from basis_probe.statistics.moments import Moments, SampleKurtosis
from basis_probe.statistics.sampling import (
    Reservoir,
    content_positions,
    hash_examples,
    priorities,
)

Sums = TypeVar("Sums", Moments, SampleKurtosis)

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


@dataclasses.dataclass(frozen=True, eq=False)
class Seen:
    """What was seen at one site; `a + b` is what was seen in both streams.

    Attributes:
        moments: of every axis over all samples.
        kurtosis: of every sample across axes.
        kept: a uniform sample of rows: "x" [samples, dim], and what was planned of "inputs"
            [samples, width, positions], "pre" and "held 0", "held 1" ... [samples, dim].
        bad: (number of the batch, NaN or infinite values in it) for every batch that had some.
        missed: batches in which the site did not run.
    """

    moments: Moments
    kurtosis: SampleKurtosis
    kept: Reservoir
    bad: tuple[tuple[int, int], ...] = ()
    missed: int = 0

    @staticmethod
    def nothing(dim: int, *, capacity: int) -> "Seen":
        """What was seen before the first batch."""
        return Seen(Moments.empty(dim), SampleKurtosis.empty(dim), Reservoir.empty(capacity))

    def __add__(self, other: "Seen") -> "Seen":
        return Seen(
            self.moments + other.moments,
            self.kurtosis + other.kurtosis,
            self.kept + other.kept,
            self.bad + other.bad,
            self.missed + other.missed,
        )


class Observer:
    """What one batch shows at one site, taken where the tensors are made.

    Args:
        plan: what to catch.
        batch: the batch that runs.
        number: its number.
        seed: seeds the sample of rows.
        capacity: how many rows are kept in all.
        threshold: rows with a larger priority cannot be kept any more.
        room: how many samples may still be counted; None for no limit.
        beside: what else is kept of every row that is kept.
    """

    def __init__(
        self,
        plan: Plan,
        batch: Batch,
        *,
        number: int,
        ranks: "Ranks",
        capacity: int,
        threshold: float,
        room: int | None,
        beside: Beside | None = None,
    ) -> None:
        self.beside = beside
        self.plan, self.batch, self.number, self.ranks = plan, batch, number, ranks
        self.capacity, self.threshold, self.room = capacity, threshold, room
        self.seen: Seen | None = None
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
        return found if self.plan.pre is None else [*found, ("pre", self.plan.pre)]

    def _take(self, name: str, tensor: Tensor) -> None:
        # An in-place function may overwrite what is caught before the site is reached.
        self.waiting[name] = tensor.detach().clone()

    def _finish(self, tensor: Tensor) -> None:
        plan = self.plan
        x = _rows(tensor.detach(), plan.layout)
        if x.shape[-1] != plan.dim:
            raise ValueError(
                f"the site had {plan.dim} features in the first batch and has {x.shape[-1]} now"
            )
        flat = x.reshape(-1, plan.dim)
        ranks = self.ranks.of(x.shape[:-1], tensor)
        counted = ranks.counted
        if self.room is not None:
            counted = counted[: self.room]
        rows = flat[counted]
        finite = torch.isfinite(rows)
        bad: tuple[tuple[int, int], ...] = ()
        if not bool(finite.all()):
            bad = ((self.number, int((~finite).sum())),)
        exact = _exact(rows)
        compared = exact - exact.mean(1, keepdim=True) if plan.centred else exact
        priority = ranks.priority[: len(counted)]
        near = torch.nonzero(priority <= self.threshold).flatten()
        chosen = counted[near.to(counted.device)]
        kept = {"x": flat[chosen].cpu()}
        if "inputs" in self.waiting:
            kept["inputs"] = self._windows(self.waiting["inputs"], tensor, chosen).cpu()
        for name, _ in self._beside():
            if name in self.waiting:
                beside = _rows(self.waiting[name], plan.layout)
                kept[name] = beside.reshape(-1, plan.dim)[chosen].cpu()
        if self.beside is not None:
            picked = chosen.cpu()
            kept |= {name: rows[picked] for name, rows in self.beside(x.shape[:-1]).items()}
        self.waiting = {}
        self.seen = Seen(
            _at_home(Moments.of(exact)),
            _at_home(SampleKurtosis.of(compared)),
            Reservoir.of(priority[near], kept, capacity=self.capacity),
            bad,
        )

    def _windows(self, inputs: Tensor, site: Tensor, chosen: Tensor) -> Tensor:
        """[samples, width, positions]: what the linear map read to make the chosen rows."""
        cut = self.plan.convolution
        if cut is None:
            return inputs.reshape(-1, self.plan.width, self.plan.repeat)[chosen]
        height, width = site.shape[-2:]
        example, place = chosen // (height * width), chosen % (height * width)
        row, column = place // width, place % width
        padded = torch.nn.functional.pad(
            inputs, (cut.padding[1], cut.padding[1], cut.padding[0], cut.padding[0])
        )
        down = torch.arange(cut.kernel[0], device=inputs.device) * cut.dilation[0]
        right = torch.arange(cut.kernel[1], device=inputs.device) * cut.dilation[1]
        rows = (row * cut.stride[0])[:, None, None] + down[None, :, None]
        columns = (column * cut.stride[1])[:, None, None] + right[None, None, :]
        windows = padded.movedim(1, -1)[example[:, None, None], rows, columns]
        return rearrange(windows, "sample row column width -> sample width (row column)")


@dataclasses.dataclass(frozen=True, eq=False)
class _Ranked:
    """The rows of a tensor that count, and the priority of each, on the CPU."""

    counted: Tensor
    priority: Tensor


class Ranks:
    """Which rows of a batch count, and with what priority they are kept.

    Args:
        batch: the batch.
        seed: seeds the priorities.
    """

    def __init__(self, batch: Batch, *, seed: int) -> None:
        self.batch, self.seed = batch, seed
        self._found: dict[tuple[int, ...], _Ranked] = {}

    @functools.cached_property
    def examples(self) -> Tensor:
        """A hash of every example."""
        return hash_examples(self.batch.inputs, self.batch.mask).cpu()

    def of(self, lead: torch.Size, tensor: Tensor) -> _Ranked:
        """The rows of a tensor whose axes before the features are `lead`."""
        key = tuple(lead)
        if key not in self._found:
            self._found[key] = self._rank(key)
        found = self._found[key]
        return _Ranked(found.counted.to(tensor.device), found.priority)

    def _rank(self, lead: tuple[int, ...]) -> _Ranked:
        size, mask = self.batch.size, self.batch.mask
        total = 1
        for axis in lead:
            total *= axis
        if mask is not None and total == mask.numel() and lead[0] in (size, total):
            counts = mask.cpu()
            place = content_positions(counts)
        elif size and total % size == 0 and lead and lead[0] in (size, total):
            counts = torch.ones(size, total // size, dtype=torch.bool)
            place = content_positions(counts)
        else:
            # Rows that do not belong to single examples: they are told apart by their place.
            counts = torch.ones(1, total, dtype=torch.bool)
            place = content_positions(counts)
            whole = self.examples.sum()[None]
            rank = priorities(whole, place, seed=self.seed)
            return _Ranked(torch.nonzero(counts.flatten()).flatten(), rank[counts])
        rank = priorities(self.examples, place, seed=self.seed)
        return _Ranked(torch.nonzero(counts.flatten()).flatten(), rank[counts])


def _rows(tensor: Tensor, layout: Layout | None) -> Tensor:
    """[..., features]: the tensor with its feature axes last, heads behind one another."""
    axes = (tensor.ndim - 1,) if layout is None else layout.axes
    last = tuple(range(tensor.ndim - len(axes), tensor.ndim))
    return tensor.movedim(axes, last).flatten(-len(axes))


def _exact(rows: Tensor) -> Tensor:
    """The rows in float64, on the CPU where the device has none."""
    return (rows.cpu() if rows.device.type == "mps" else rows).double()


def _at_home(value: Sums) -> Sums:
    """The sums on the CPU, where they are added up."""
    fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    moved = {name: field.cpu() for name, field in fields.items() if isinstance(field, Tensor)}
    return dataclasses.replace(value, **moved)


class Stream:
    """Everything seen so far, and how to see one more batch.

    Args:
        plans: site -> what is caught there.
        seed: seeds the sample of rows.
        capacity: how many rows are kept at each site.
        most: at most this many samples are counted at each site; None for all.
    """

    def __init__(
        self, plans: Mapping[str, Plan], *, seed: int, capacity: int, most: int | None
    ) -> None:
        self.plans, self.seed, self.capacity, self.most = dict(plans), seed, capacity, most
        self.seen = {
            name: Seen.nothing(plan.dim, capacity=capacity) for name, plan in plans.items()
        }
        self.batches = 0
        self.examples = 0

    @property
    def full(self) -> bool:
        """True if no site may count any more samples."""
        return self.most is not None and all(
            seen.moments.count >= self.most for seen in self.seen.values()
        )

    def see(
        self,
        model: torch.nn.Module,
        batch: Batch,
        run: Callable[[], object],
        *,
        beside: Beside | None = None,
    ) -> None:
        """Adds what a batch shows; if anything fails, nothing of the batch is counted.

        Args:
            model: the model.
            batch: the batch.
            run: calls the model with the batch, once.
            beside: what else is kept of every row that is kept, such as its labels.
        """
        ranks = Ranks(batch, seed=self.seed)
        observers = {
            name: Observer(
                plan,
                batch,
                number=self.batches,
                ranks=ranks,
                capacity=self.capacity,
                threshold=self.seen[name].kept.threshold,
                room=None if self.most is None else self.most - self.seen[name].moments.count,
                beside=beside,
            )
            for name, plan in self.plans.items()
            if self.most is None or self.seen[name].moments.count < self.most
        }
        catchers: dict[Address, list[Catcher]] = {}
        for observer in observers.values():
            for address, catcher in observer.catchers().items():
                catchers.setdefault(address, []).append(catcher)
        with torch.no_grad(), catching(model, {a: _each(c) for a, c in catchers.items()}):
            run()
        added = {
            name: self.seen[name] + observer.seen
            if observer.seen is not None
            else dataclasses.replace(self.seen[name], missed=self.seen[name].missed + 1)
            for name, observer in observers.items()
        }
        self.seen |= added
        self.batches += 1
        self.examples += batch.size


def _each(catchers: list[Catcher]) -> Catcher:
    def hand(tensor: Tensor) -> None:
        for catcher in catchers:
            catcher(tensor)

    return hand
