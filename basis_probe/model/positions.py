"""Which rows of a site belong to which example, and which of them are padding."""

import dataclasses
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from basis_probe.model.axes import EXTRA, PADDING, Axes, Labels, Source
from basis_probe.model.batches import MAIN, MASKS, Batch, Mask
from basis_probe.statistics.sampling import content_positions, hash_examples, join_hashes


@dataclasses.dataclass(frozen=True)
class Origin:
    """An axis of an input, as it is seen along an axis of a site.

    Attributes:
        source: the input and its axis.
        shift: entry i of the site's axis is entry i - shift of the input's.
        more: by how much the site's axis was longer than the input's.
        before, after: what stands before and behind the input's entries: `PADDING`, `EXTRA`, or 0
            for nothing.
    """

    source: Source
    shift: int = 0
    more: int = 0
    before: int = 0
    after: int = 0

    def indices(self, size: int, given: int) -> Tensor | None:
        """The input's entry at each entry of an axis of that size; None if it is not known.

        Args:
            size: of the site's axis.
            given: of the input's axis.
        """
        shift = self.shift
        if size - given != self.more:
            if self.more < 0 or size < given or not (self.before or self.after):
                return None
            if self.before and self.after:
                return None
            shift = size - given if self.before else 0
        found = torch.arange(size) - shift
        found[found < 0] = self.before or PADDING
        found[found >= given] = self.after or PADDING
        return found


Run = tuple[Origin, ...]
"""Axes of inputs that run side by side; none where nothing is known."""


@dataclasses.dataclass(frozen=True)
class Rows:
    """Where the rows of a site come from.

    Attributes:
        axes: for every axis of the site that is not of its features, the runs it is made of, the
            slowest first.
        examples: the inputs' axes of examples.
        dependent: the inputs that the site depends on.
        foreign: inputs that have no axis of examples.
        fixed: axes of inputs of which the site shows one entry, and which; from the end if below 0.
    """

    axes: tuple[tuple[Run, ...], ...]
    examples: frozenset[Source]
    dependent: frozenset[str]
    foreign: frozenset[str]
    fixed: tuple[tuple[Source, int], ...] = ()

    def __repr__(self) -> str:
        """The same text in every process, for plans are compared by it."""
        return (
            f"Rows({self.axes!r}, {sorted(self.examples)!r}, {sorted(self.dependent)!r}, "
            f"{sorted(self.foreign)!r}, {self.fixed!r})"
        )

    @staticmethod
    def of(axes: Axes, node: int, features: tuple[int, ...]) -> "Rows":
        """Where the rows of a tensor come from.

        Args:
            axes: what was followed through the trace.
            node: the tensor.
            features: its axes of features.
        """
        labels, main = axes.of(node), axes.trace.main
        sizes = axes.trace.node(node).shape
        lead = [k for k in range(len(sizes)) if k not in features]
        examples = axes.beside((main, example_axis(axes, main)))
        foreign = {
            name
            for name in axes.inputs
            if not any((name, k) in examples for k in range(len(axes.inputs[name].shape)))
            and axes.joined.get((name, 0))
        }
        own = {source[0] for k in lead for source in labels[k]}
        return Rows(
            tuple(_runs(labels[k], sizes[k], axes) for k in lead),
            examples,
            axes.origins(node) | own,
            frozenset(foreign),
            tuple(
                (source, -1 if entry and entry == _size(axes, source) - 1 else entry)
                for source, entry in sorted(axes.fixed[node].items())
            ),
        )

    def sizes(self, batch: Batch) -> tuple[int, ...] | None:
        """The sizes of the site's axes in a batch; None if they cannot be told before it runs."""
        named = batch.named()
        found: list[int] = []
        for runs in self.axes:
            known = [_extent(run, named) for run in runs]
            if None in known or not known:
                return None
            more = runs[0][0].more if len(runs) == 1 else 0
            found.append(math.prod(n for n in known if n is not None) + more)
        return tuple(found)

    def place(self, lead: tuple[int, ...], batch: Batch) -> "Placed | None":
        """The rows of a tensor of this site; None if they cannot be told apart.

        Args:
            lead: the sizes of its axes that are not of features.
            batch: the batch that ran.
        """
        if len(lead) != len(self.axes):
            return None
        named = _with_other_main(batch, self.dependent)
        dims: list[int] = []
        found: dict[Source, tuple[int, Tensor]] = {}
        for size, runs in zip(lead, self.axes, strict=True):
            sizes = _sizes(size, [_extent(run, named) for run in runs])
            if sizes is None:
                return None
            for extent, run in zip(sizes, runs, strict=True):
                for origin in run:
                    tensor = named.get(origin.source[0])
                    if tensor is None or tensor.ndim <= origin.source[1]:
                        continue
                    indices = origin.indices(extent, tensor.shape[origin.source[1]])
                    if indices is not None and origin.source not in found:
                        found[origin.source] = (len(dims), indices)
                dims.append(extent)
        # An axis of one entry shows that entry everywhere, also where it was not seen to be.
        single = {
            (name, axis): 0
            for name in self.dependent
            for axis, size in enumerate(named[name].shape if name in named else ())
            if size == 1 and (name, axis) not in found
        }
        for source, entry in self.fixed:
            size = _given(named, source)
            if source not in found and size is not None and -size <= entry < size:
                single[source] = entry % size
        if single:
            dims = [1, *dims]
            found = {source: (place + 1, index) for source, (place, index) in found.items()}
            found |= {source: (0, torch.tensor([entry])) for source, entry in single.items()}
        return Placed(tuple(dims), found, self.examples, batch)

    def unapplied(self, batch: Batch, placed: "Placed | None") -> tuple[str, ...]:
        """The masks that speak of what the site is made of and could not be laid on its rows."""
        if placed is not None and placed.is_told(self.examples):
            return ()
        missing: list[str] = []
        for mask in batch.masks:
            mains = set(MAIN) if mask.of in MAIN else set[str]()
            if not {mask.of, mask.name, *mains} & self.dependent:
                continue
            if placed is None or placed.axes_of(mask) is None:
                missing.append(mask.name)
        return tuple(missing)


@dataclasses.dataclass(frozen=True, eq=False)
class Placed:
    """The rows of a site in one batch.

    Attributes:
        dims: the sizes that the rows are made of, the slowest first.
        found: axis of an input -> which of the sizes shows it, and its index at each entry.
        examples: the inputs' axes of examples.
        batch: the batch.
    """

    dims: tuple[int, ...]
    found: Mapping[Source, tuple[int, Tensor]]
    examples: frozenset[Source]
    batch: Batch

    @property
    def example(self) -> tuple[int, Tensor] | None:
        """Which of the sizes shows examples, and which example is at each entry."""
        return next((self.found[s] for s in sorted(self.examples) if s in self.found), None)

    def is_told(self, examples: frozenset[Source]) -> bool:
        """True if every size is one of examples, or of positions of some input."""
        shown = {place for place, _ in self.found.values()}
        return all(place in shown for place, size in enumerate(self.dims) if size > 1)

    def axes_of(self, mask: Mask) -> list[tuple[int, Tensor]] | None:
        """Where the axes of a mask are among the sizes; None if one of them is not there."""
        found: list[tuple[int, Tensor]] = []
        for place, axis in enumerate(mask.axes):
            # The model may have been watched on its main input under another name.
            mains = [(name, axis) for name in MAIN] if mask.of in MAIN else []
            for source in ((mask.of, axis), (mask.name, place), *mains):
                if source in self.found:
                    found.append(self.found[source])
                    break
            else:
                return None
        return found

    def counts(self) -> Tensor:
        """True for every row that is no padding, of shape `dims`."""
        counts = torch.ones(self.dims, dtype=torch.bool)
        for place, indices in self.found.values():
            counts &= _along(indices != PADDING, place, len(self.dims))
        for mask in self.batch.masks:
            axes = self.axes_of(mask)
            if axes is None:
                continue
            real = self.batch.counts(mask).cpu()
            index = [
                _along(indices.clamp(0, real.shape[axis] - 1), place, len(self.dims))
                for axis, (place, indices) in enumerate(axes)
            ]
            told = real[tuple(index)]
            for place, indices in axes:
                told = told | _along(indices == EXTRA, place, len(self.dims))
            counts = counts & told
        return counts

    def positions(self, counts: Tensor) -> Tensor:
        """The place of every row that counts among those of its example, from 0."""
        example = self.example
        assert example is not None
        ahead = counts.movedim(example[0], 0)
        placed = content_positions(ahead.reshape(len(ahead), -1))
        return placed.reshape(ahead.shape).movedim(0, example[0])

    def owners(self) -> Tensor:
        """The example of every row, of shape `dims`; -1 for none."""
        example = self.example
        assert example is not None
        place, indices = example
        return _along(indices.clamp(min=-1), place, len(self.dims)).expand(self.dims)


def _with_other_main(batch: Batch, dependent: frozenset[str]) -> dict[str, Tensor]:
    """The tensors of a batch, its main input also under the name that the site knows it by.

    Models take token ids in one call and their embeddings in another; examples and positions are
    the first axes of both.
    """
    named = dict(batch.named())
    if batch.main in MAIN and not any(name in named for name in MAIN if name in dependent):
        named |= {name: named[batch.main] for name in MAIN if name in dependent}
    return named


def example_axis(axes: Axes, main: str) -> int:
    """Which axis of an input is that of examples: the first, unless its entries are mixed.

    Torch's own recurrent layers and attention take positions first unless they are told otherwise.
    """
    node = axes.inputs.get(main)
    if node is None or len(node.shape) < 2:
        return 0
    turned = (main, 0) in axes.mixed and (main, 1) not in axes.mixed
    # Features are mixed by matrices, behind which nothing shows them.
    shown = turned and any((main, 1) in axis for axis in _last(axes))
    return 1 if shown else 0


def _size(axes: Axes, source: Source) -> int:
    return axes.inputs[source[0]].shape[source[1]]


def _given(named: Mapping[str, Tensor], source: Source) -> int | None:
    """The size of an axis of an input; None if it is not given."""
    tensor = named.get(source[0])
    return None if tensor is None or tensor.ndim <= source[1] else tensor.shape[source[1]]


def _last(axes: Axes) -> Labels:
    for index in reversed(axes.trace.outputs):
        if any(axes.of(index)):
            return axes.of(index)
    return ()


def _along(values: Tensor, place: int, axes: int) -> Tensor:
    shape = [1] * axes
    shape[place] = -1
    return values.view(shape)


def _extent(run: Run, named: Mapping[str, Tensor]) -> int | None:
    """How many entries a run has; None if no input tells."""
    for origin in run:
        name, axis = origin.source
        if name in named and named[name].ndim > axis:
            return named[name].shape[axis]
    return None


def _sizes(size: int, known: list[int | None]) -> list[int] | None:
    """The sizes of the runs of an axis of that size; None if they cannot be told."""
    if len(known) == 1:
        return [size]
    rest = math.prod(n for n in known if n is not None)
    missing = known.count(None)
    if missing > 1 or not rest or size % rest or (not missing and size != rest):
        return None
    return [size // rest if n is None else n for n in known]


def _runs(labels: Mapping[Source, Tensor], size: int, axes: Axes) -> tuple[Run, ...]:
    """An axis of a tensor as runs of axes of inputs."""
    plain: list[Origin] = []
    steps: dict[tuple[int, int], list[Origin]] = {}
    for source, vector in sorted(labels.items()):
        origin = _origin(source, vector, axes.inputs[source[0]].shape[source[1]])
        if origin is not None:
            plain.append(origin)
            continue
        step = _step(vector)
        if step is not None:
            steps.setdefault(step, []).append(Origin(source))
    if plain or not steps:
        return (tuple(plain),)
    runs: list[Run] = []
    rest = size
    for (stride, count), origins in sorted(steps.items(), reverse=True):
        if rest % (stride * count):
            return ((),)
        if rest > stride * count:
            runs.append(())
        runs.append(tuple(origins))
        rest = stride
    return (*runs, ()) if rest > 1 else tuple(runs)


def _origin(source: Source, vector: Tensor, given: int) -> Origin | None:
    """An axis that is seen as it is, perhaps with something before or behind it."""
    real = torch.nonzero(vector >= 0).flatten()
    first, last = int(real[0]), int(real[-1])
    start, end = int(vector[first]), int(vector[last])
    whole = torch.arange(start, start + len(real))
    if last - first + 1 != len(real) or not torch.equal(vector[real], whole):
        return None
    before, after = vector[:first], vector[last + 1 :]
    if any(len(part.unique()) > 1 for part in (before, after)):
        return None
    if (len(before) and start) or end < 0:
        return None
    return Origin(
        source,
        shift=first - start,
        more=len(vector) - given,
        before=int(before[0]) if len(before) else 0,
        after=int(after[0]) if len(after) else 0,
    )


def _step(vector: Tensor) -> tuple[int, int] | None:
    """How often an index is repeated, and how many indices there are, where all are alike."""
    if bool((vector < 0).any()):
        return None
    count = int(vector.max()) + 1
    changes = torch.nonzero(vector != vector[0]).flatten()
    if not len(changes):
        return None
    stride = int(changes[0])
    if not torch.equal(vector, torch.arange(len(vector)) // stride % count):
        return None
    return stride, count


def digest_of_batch(batch: Batch) -> int:
    """A number of everything that a batch holds, the same for any order of its examples."""
    found = int(hash_examples(batch.inputs, batch.mask).sum())
    named = {**{str(place): value for place, value in enumerate(batch.args)}, **batch.kwargs}
    for place, (name, value) in enumerate(sorted(named.items()), start=1):
        if isinstance(value, Tensor) and value is not batch.inputs and name not in MASKS:
            held = torch.view_as_real(value) if value.is_complex() else value
            each = hash_examples(held if held.ndim else held[None], None)
            found += int(each.sum()) * (2 * place + 1)
    return found % 2**64


def hash_batch(batch: Batch, rows: Rows | None = None) -> Tensor:
    """A hash of every example of a batch, of everything that the model is given of it.

    Args:
        batch: the batch.
        rows: what was seen of the inputs' axes; None to take the first for that of examples.

    Returns:
        [examples], int64, on the CPU.
    """
    named, main = batch.named(), batch.main
    known = frozenset[Source]() if rows is None else rows.examples
    foreign = frozenset[str]() if rows is None else rows.foreign

    def axis_of(name: str) -> int:
        return next((axis for source, axis in sorted(known) if source == name), 0)

    size = named[main].shape[axis_of(main)] if main in named else batch.size
    hashes = [_hash(batch, main, named.get(main, batch.inputs), axis_of(main))]
    for name, tensor in sorted(named.items()):
        axis = axis_of(name)
        if name == main or name in foreign or "mask" in name or tensor.ndim <= axis:
            continue
        if tensor.shape[axis] == size and not tensor.is_complex():
            entries = tensor.movedim(axis, 0).reshape(size, -1)
            # What is zero throughout, as the types of the tokens of one text, says nothing.
            told = (entries != 0).any(1).cpu()
            hashes.append(_hash(batch, name, tensor, axis).masked_fill(~told, 0))
    if batch.call:
        hashes.append(torch.full_like(hashes[0], batch.call))
    return join_hashes(hashes)


def _hash(batch: Batch, name: str, tensor: Tensor, axis: int) -> Tensor:
    own = next((mask for mask in batch.masks if mask.of == name), None)
    if own is None:
        shape = tuple(tensor.shape[:2])
        beside = not name.startswith(("decoder", "encoder"))
        like = (mask for mask in batch.masks if mask.of == batch.main and mask.axes == (0, 1))
        own = next(
            (mask for mask in like if beside and tuple(batch.counts(mask).shape) == shape), None
        )
    if own is None or axis not in own.axes:
        return hash_examples(tensor.movedim(axis, 0), None).cpu()
    place = own.axes.index(axis)
    others = [k for k in own.axes if k != axis]
    moved = tensor.movedim([axis, *others], [*range(len(own.axes))])
    counts = batch.counts(own).movedim(place, 0).flatten(1)
    return hash_examples(moved.flatten(1, len(others)), counts.to(moved.device)).cpu()
