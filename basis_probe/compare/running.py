"""Two networks on the same data: what is caught at their sites, example by example."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from basis_probe.architecture.derive import Derivation
from basis_probe.compare.kernels import Kernel, Maps
from basis_probe.errors import DataError, SiteError
from basis_probe.interrupts import hold, stoppable, unstoppable
from basis_probe.model.batches import Batch
from basis_probe.model.capture import catching
from basis_probe.model.facts import Facts, facts_of
from basis_probe.model.graph import Layout
from basis_probe.model.network import Subject, prepared, recognise
from basis_probe.model.places import Site
from basis_probe.model.positions import Rows, hash_batch
from basis_probe.model.roles import Role, role
from basis_probe.model.sites import asked, sensible
from basis_probe.results.symmetry import Symmetry
from basis_probe.run.read import batches_of, count_of, progressing
from basis_probe.run.stream import rows_last
from basis_probe.statistics.sampling import hash_examples
from basis_probe.statistics.second_moments import Samples, rounding_of

Made = TypeVar("Made")


@dataclasses.dataclass(frozen=True, eq=False)
class Spot:
    """A site of a network that is compared.

    Attributes:
        site: the place.
        layout: where its features are; None for the last axis.
        dim: how many features.
        role: what it is, in words.
        symmetry: what its architecture allows there.
        rows: which of its rows belong to which example and position.
    """

    site: Site
    layout: Layout | None
    dim: int
    role: Role
    symmetry: Symmetry
    rows: Rows | None = None

    @property
    def spatial(self) -> bool:
        """True for feature maps, whose positions follow their channels."""
        return self.layout is not None and self.layout.channels


@dataclasses.dataclass(frozen=True, eq=False)
class Caught:
    """The activations of one batch at one site.

    Attributes:
        values: [examples, positions, dim].
        counted: [examples, positions], True where a position counts; None if all do.
        space: the size of a feature map, height by width; None for others.
        whole: [..., dim], as the network lays them out otherwise, padding too; None if not known.
    """

    values: Tensor
    counted: Tensor | None
    space: tuple[int, ...] | None
    whole: Tensor | None = None

    def of_fold(self, fold: Tensor, number: int) -> "Caught":
        """The examples of one part of the data; the same value whenever it is asked for."""
        inside = fold == number
        if bool(inside.all()):
            return self
        # The division is kept beside what it gave, so that no other takes its place.
        key = "fold", id(fold), number
        return self._once(key, lambda: (self.of_examples(inside.nonzero().flatten()), fold))[0]

    def _once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What is made for a key, once."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    @functools.cached_property
    def _kept(self) -> dict[Hashable, Any]:
        return {}

    def of_examples(self, chosen: Tensor) -> "Caught":
        """Some of the examples, or all of them in another order."""
        chosen = chosen.to(self.values.device)
        counted = None if self.counted is None else self.counted[chosen]
        return Caught(self.values[chosen], counted, self.space)

    def samples(self, *, single: bool) -> Samples:
        """The rows with their sums; the same value whenever they are asked for."""
        return self._once(("samples", single), lambda: Samples(self.rows, single=single))

    @functools.cached_property
    def unit(self) -> Samples:
        """The rows with every axis about its mean and of unit size; constant ones at zero."""
        return Samples(unit_axes(self.rows))

    def kernel_maps(self, kernel: Kernel, *, unit_axes: bool, factor: float) -> Maps:
        """What kernels read of the maps, positions that do not count at zero; made once."""
        key = "maps", kernel, unit_axes, factor
        return self._once(key, lambda: Maps(self._kernel_values(), kernel, unit_axes, factor))

    def _kernel_values(self) -> Tensor:
        """[examples, axes, positions]."""
        values = self.values
        if self.counted is not None:
            values = values * self.counted[..., None].to(values)
        if not values.dtype.is_floating_point or values.dtype.itemsize < 4:
            values = values.float()
        return values.movedim(2, 1)

    def resized(self, space: tuple[int, ...] | None) -> "Caught":
        """The feature maps averaged down to another size; the same value whenever asked for.

        An average over positions goes with every linear map of the channels.
        """
        if space is None or self.space is None or space == self.space:
            return self

        def made() -> "Caught":
            return Caught(pooled(self.maps(), space).flatten(2).movedim(1, 2), None, space)

        return self._once(("space", space), made)

    def maps(self) -> Tensor:
        """[examples, dim, *space]."""
        moved = self.values.movedim(2, 1)
        return moved if self.space is None else moved.unflatten(2, self.space)

    @functools.cached_property
    def rows(self) -> Tensor:
        """[samples, dim]: every position that counts."""
        flat = self.values.flatten(0, 1)
        return flat if self.counted is None else flat[self.counted.flatten()]

    @functools.cached_property
    def hashes(self) -> Int64[Tensor, " samples"]:
        """A number for every row, the same for rows that are."""
        some = self.rows[:, :: max(1, self.rows.shape[1] // 32)]
        if some.dtype is not torch.float64:
            return hash_examples(some.float(), None).cpu()
        # All but the last digits, which the batch that a row was in may change.
        bits = some.contiguous().view(torch.int64) >> _LAST_BITS
        return hash_examples(bits, None).cpu()


def unit_axes(rows: Tensor) -> Tensor:
    """The rows about their mean with axes of unit size, in float64; constant ones at zero."""
    exact = rows.double().cpu()
    spread = Samples(exact).spread(sizes_only=True)
    spread = dataclasses.replace(spread, rounding=rounding_of(rows.dtype))
    return (exact - spread.mean) * spread.unit


def pooled(maps: Tensor, space: tuple[int, ...]) -> Tensor:
    """Feature maps [examples, axes, *space] averaged down to another size."""
    pool: Any = (
        nn.functional.adaptive_avg_pool1d,
        nn.functional.adaptive_avg_pool2d,
        nn.functional.adaptive_avg_pool3d,
    )[len(space) - 1]
    return pool(maps, space)


class Network:
    """A network that is compared with another: watched once, then run batch by batch.

    Args:
        model: as for `probe`.
        batch: its first batch.
        sites: names or globs; None for the sensible ones.
        like: another network, perhaps of the same functions.
    """

    def __init__(
        self,
        subject: Subject,
        batch: Batch,
        sites: str | Iterable[str] | None,
        *,
        like: "Network | None" = None,
    ) -> None:
        self.subject = subject
        self.facts: Facts = facts_of(subject, batch)
        self.derivation = Derivation(self.facts, like=None if like is None else like.derivation)
        if sites is None:
            chosen = sensible(self.facts, self.facts.sites, subject.usual)
        else:
            chosen = asked(sites, self.facts.sites, silent=subject.silent())
        self.spots = {name: self._spot(site) for name, site in chosen.items()}

    def _spot(self, site: Site) -> Spot:
        return Spot(
            site=site,
            layout=self.facts.layout(site),
            dim=math.prod(self.facts.shape(site)),
            role=role(self.facts, site),
            symmetry=self.derivation.symmetry(site),
            rows=self.facts.rows(site),
        )

    def fold_of(self, batch: Batch, *, folds: int, seed: int) -> Int64[Tensor, " batch"]:
        """To which part of the data every example belongs, by its content alone."""
        rows = next((spot.rows for spot in self.spots.values()), None)
        return (hash_batch(batch, rows) + seed).remainder(folds)

    def one(self) -> tuple[str, Spot]:
        """The only site that was asked for.

        Raises:
            SiteError: if there are several.
        """
        if len(self.spots) != 1:
            raise SiteError(f"{len(self.spots)} sites were named where one is needed: name one")
        return next(iter(self.spots.items()))

    def run(self, batch: Batch) -> dict[str, Caught]:
        """What the sites hold for a batch, in evaluation mode and without gradients.

        Raises:
            DataError: if a site did not run, or holds NaN or infinities.
        """
        return self.answer(batch)[0]

    def answer(self, batch: Batch) -> tuple[dict[str, Caught], Any]:
        """The same, and what the network returns for the batch."""
        found: dict[str, Caught] = {}
        catchers = {
            spot.site.address: functools.partial(self._take, found, names, spot, batch)
            for names, spot in self._places()
        }
        with torch.no_grad(), catching(self.subject.model, catchers):
            output = self.subject.call(batch)
        for name in self.spots:
            if name not in found:
                raise DataError(f"{name} did not run in one of the batches")
        return {name: found[name] for name in self.spots}, output

    def _places(self) -> Iterator[tuple[tuple[str, ...], Spot]]:
        """Every place once, with all its names."""
        places: dict[object, list[str]] = {}
        for name, spot in self.spots.items():
            places.setdefault(spot.site.address, []).append(name)
        for names in places.values():
            yield tuple(names), self.spots[names[0]]

    @staticmethod
    def _take(
        found: dict[str, Caught], names: tuple[str, ...], spot: Spot, batch: Batch, tensor: Tensor
    ) -> None:
        # An in-place function may overwrite what is caught.
        caught = caught_of(tensor.detach(), spot, batch)
        rows = caught.rows
        bad = 0 if bool(rows.sum().isfinite()) else int((~torch.isfinite(rows)).sum())
        if bad:
            raise DataError(
                f"{bad} values of {names[0]} are NaN or infinite: give data on which both networks "
                "stay finite"
            )
        found |= dict.fromkeys(names, caught)


def caught_of(tensor: Tensor, spot: Spot, batch: Batch) -> Caught:
    """A site's tensor, example by example; a copy."""
    lead = rows_last(tensor, spot.layout).clone()
    if lead.shape[-1] != spot.dim:
        raise DataError(
            f"{spot.site.name} had {spot.dim} features in the first batch and has "
            f"{lead.shape[-1]} now"
        )
    space = tuple(lead.shape[1:-1]) if spot.spatial else None
    placed = None if spot.rows is None else spot.rows.place(lead.shape[:-1], batch)
    if placed is not None and placed.example is not None:
        axis, examples = placed.example
        if len(placed.dims) > 1 or axis == 0:
            values = lead.reshape(*placed.dims, spot.dim).movedim(axis, 0)
            counts = placed.counts().movedim(axis, 0).reshape(len(examples), -1)
            kept = None if bool(counts.all()) else counts.to(values.device)
            return Caught(values.reshape(len(examples), -1, spot.dim), kept, space, lead)
    total = lead.shape[:-1].numel()
    if total % max(1, batch.size):
        raise DataError(
            f"{spot.site.name} holds {total} rows for {batch.size} examples, so that they cannot "
            "be told apart"
        )
    return Caught(lead.reshape(batch.size, -1, spot.dim), None, space, lead)


def paired(
    subjects: Sequence[Subject], data: Iterable[Any], other_data: Iterable[Any] | None
) -> Iterator[tuple[Batch, ...]]:
    """The batches of all networks, checked to be the same examples in the same order.

    Args:
        subjects: the networks.
        data: the data of the first, and of all if there are no others.
        other_data: the same examples as the second of two takes them, such as with another
            tokenizer or other colours.

    Raises:
        DataError: if there are none, or the examples come in another order, or not equally many.
    """
    ours, order, some = batches_of(data, subjects[0]), _Order(), False
    theirs = None if other_data is None else batches_of(other_data, subjects[1])
    for batch in ours:
        some = True
        if theirs is None:
            yield tuple(moved(batch, subject.device) for subject in subjects)
            continue
        other = next(theirs, None)
        _require_same_size(batch, other)
        assert other is not None
        order.see(hash_batch(batch), hash_batch(other))
        yield batch, other
    if theirs is not None:
        left = next(theirs, None)
        if left is not None:
            _require_same_size(None, left)
    if not some:
        raise DataError("the data hold no batch: give at least one, better several")


def _require_same_size(batch: Batch | None, other: Batch | None) -> None:
    sizes = [0 if one is None else one.size for one in (batch, other)]
    if sizes[0] != sizes[1]:
        raise DataError(
            f"one network was given a batch of {sizes[0]} examples and the other one of "
            f"{sizes[1]}: give the same examples to both, in batches of the same size"
        )


def moved(batch: Batch, device: torch.device) -> Batch:
    """The batch on a device."""
    return batch if batch.inputs.device == device else batch.to(device)


class _Order:
    """Notices examples that come in another order to the second network.

    Where no example is the same for both networks, they take their inputs in different forms, and
    nothing can be said of the order.
    """

    def __init__(self) -> None:
        self.ours: dict[int, list[int]] = {}
        self.theirs: dict[int, list[int]] = {}
        self.seen = 0

    def see(self, ours: Int64[Tensor, " batch"], theirs: Int64[Tensor, " batch"]) -> None:
        for place, (a, b) in enumerate(zip(ours.tolist(), theirs.tolist(), strict=True)):
            self.ours.setdefault(a, []).append(self.seen + place)
            self.theirs.setdefault(b, []).append(self.seen + place)
        self.seen += len(ours)
        for example in dict.fromkeys((*ours.tolist(), *theirs.tolist())):
            places = self.ours.get(example), self.theirs.get(example)
            if None not in places and places[0] != places[1]:
                raise DataError(
                    f"the data come in another order to the second network: example "
                    f"{self.ours[example][0]} of the first is example {self.theirs[example][0]} of "
                    "the second. A loader that shuffles does so anew every time it is read: give "
                    "shuffle=False, or one loader for both"
                )


class Repeated:
    """How many rows are different, and how many come again in other parts of the data.

    Args:
        folds: how many parts there are.
    """

    def __init__(self, folds: int) -> None:
        self._rows: list[list[Tensor]] = [[] for _ in range(folds)]
        self.seen = 0

    def see(self, part: int, x: Caught, y: Caught) -> None:
        """Adds the rows of both networks, of one part."""
        if self.seen > _MOST_ROWS:
            return
        self._rows[part].append(x.hashes * _ODD + y.hashes)
        self.seen += len(x.rows)

    def count(self) -> tuple[int, float]:
        """The number of different rows, and the share of all that come in several parts."""
        parts = [
            torch.cat(rows) if rows else torch.zeros(0, dtype=torch.int64) for rows in self._rows
        ]
        values, inverse, counts = torch.cat(parts).unique(return_inverse=True, return_counts=True)
        spread = torch.zeros_like(values)
        start = 0
        for rows in parts:
            present = inverse[start : start + len(rows)].unique()
            spread[present] += 1
            start += len(rows)
        return len(values), float(counts[spread > 1].sum().float() / max(1, start))


_LAST_BITS = 12
"""Of 52 in a double: two rows agree to twelve digits."""

_ODD = 6364136223846793005

_MOST_ROWS = 200_000
"""Of so many rows it is looked whether they come again."""


def common_space(first: Caught, second: Caught) -> tuple[int, ...] | None:
    """The size to which the larger of two feature maps is averaged down; None where there is none.

    Raises:
        DataError: if the two have different numbers of positions that cannot be matched.
    """
    if first.space is not None and second.space is not None:
        if len(first.space) != len(second.space):
            raise DataError(
                f"feature maps with {len(first.space)} and {len(second.space)} axes in space "
                "cannot be matched position by position"
            )
        return tuple(min(a, b) for a, b in zip(first.space, second.space, strict=True))
    if first.values.shape[1] != second.values.shape[1]:
        raise DataError(
            f"one of the two has {first.values.shape[1]} positions for an example and the other "
            f"{second.values.shape[1]}: compare places with the same positions"
        )
    return None


def matched(first: Caught, other: Caught) -> tuple[Caught, Caught]:
    """The same examples of two sites at the same positions, so that their rows belong together."""
    space = common_space(first, other)
    a, b = first.resized(space), other.resized(space)
    masks = [side.counted for side in (a, b) if side.counted is not None]
    if not masks or (len(masks) == 2 and torch.equal(*masks)):
        return a, b
    shared = masks[0] if len(masks) == 1 else masks[0] & masks[1]
    return dataclasses.replace(a, counted=shared), dataclasses.replace(b, counted=shared)


Together = tuple[list[Network], Batch, list[dict[str, Caught]]]


def together(
    models: Sequence[nn.Module],
    data: Iterable[Any],
    other_data: Iterable[Any] | None,
    sites: Sequence[str | Iterable[str] | None],
    *,
    progress: bool,
) -> Iterator[Together]:
    """For every batch the networks, the batch of the first, and what the sites of each hold.

    Args:
        models: as for `probe`.
        data: their data.
        other_data: the same examples as the second takes them, where that differs.
        sites: of each: names or globs, None for the sensible ones.
        progress: whether to show a progress bar.
    """
    subjects = [recognise(model) for model in models]
    networks: list[Network] = []
    with contextlib.ExitStack() as stack:
        for model in models:
            stack.enter_context(prepared(model, None))
        for batches in progressing(
            paired(subjects, data, other_data),
            "running the models",
            total=count_of(data),
            progress=progress,
        ):
            if not networks:
                for each in zip(subjects, batches, sites, strict=True):
                    networks.append(Network(*each, like=networks[0] if networks else None))
            with stoppable():
                runs = zip(networks, batches, strict=True)
                held = [network.run(batch) for network, batch in runs]
            yield networks, batches[0], held


def see_all(runs: Iterator[Together], see: Callable[[Together], None]) -> tuple[str, ...]:
    """Shows every batch; what must be known of an interruption after one, nothing without.

    It is for the inside of a `guarded` context.
    """
    done = 0
    try:
        for one in runs:
            with unstoppable():
                see(one)
                hold()
            done += 1
    except KeyboardInterrupt:
        if not done:
            raise
        return (f"It was interrupted after {done} batches, which this is of.",)
    return ()


@contextlib.contextmanager
def stopped_early(notes: tuple[str, ...]) -> Generator[None]:
    """Within the context a result that cannot be had of too few batches is the interruption."""
    try:
        yield
    except DataError as few:
        if not notes:
            raise
        raise KeyboardInterrupt(f"{notes[0]} No result comes of them: {few}") from few
