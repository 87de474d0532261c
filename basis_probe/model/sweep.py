"""A record run again, call by call, with other weights, several versions of them side by side.

A weight is in float64 only while the calls that use it run, whatever the number of versions, and a
tensor is let go after its last reader.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from basis_probe.memory import give_back
from basis_probe.model.deferred import Acted, Changes, after
from basis_probe.model.graph import called
from basis_probe.model.matrices import PRODUCTS, Reading, Shares, readings, shown
from basis_probe.model.offloaded import fetched
from basis_probe.model.precision import in_double, rounding_nothing
from basis_probe.model.trace import Fixed, Node, Ref, Trace, fixed_in, tensors_in
from basis_probe.model.weights import Slots, acted
from basis_probe.model.windows import is_large_window, times

LARGE = 2**18
"""Matrices of more entries stay as they are, and what they read and write is changed instead."""

_PIECE = 2**24
"""So many entries of a large matrix are in float64 at a time."""

_CACHED = 2**19
"""So many where a processor's cache holds them until they are used."""

_HEIGHT = 256
"""A product with fewer rows of a matrix at a time is slow."""


class ReplayError(Exception):
    """Why a record cannot be run again."""


@dataclasses.dataclass(frozen=True, eq=False)
class Version:
    """Weights that a record is run with.

    Attributes:
        changes: parameter -> what was done to it.
        ends: the nodes where its values are asked for; None for all that it changes.
    """

    changes: Changes
    ends: frozenset[int] | None = None


Look = Callable[[int, Tensor, dict[int, Tensor]], None]
"""Is told a node, the value there, and number of a version -> its value, where it is another."""


class Sweep:
    """The calls of a record, to be made again in order.

    Args:
        trace: the record.
        slots: its parameters by name.
        wanted: the nodes whose values are asked for, besides those that the model returned.

    Attributes:
        shown: the nodes that do nothing but show a parameter. Whoever reads them uses it, and only
            where its numbers are needed they are computed, there.
        uses: node -> how it uses a large parameter, if it does so in a way that is known.
        names: node -> the parameters that it uses.
        instead: id of a parameter -> the numbers that it has in `run`, in place of its own.
        further: call that depends on neither inputs nor parameters -> what takes the place of its
            result in `run`.
    """

    def __init__(self, trace: Trace, slots: Slots, wanted: Iterable[int] = ()) -> None:
        self.trace = trace
        self.instead: dict[int, Tensor] = {}
        self.further: dict[int, Tensor] = {}
        self.outputs = tuple(i for i in trace.outputs if i >= 0 and trace.node(i).floating)
        self.watched = frozenset({*self.outputs, *wanted})
        self.needed = self._behind({*trace.outputs, *wanted} - {-1})
        self.names: dict[int, dict[int, str]] = {}
        self.shown = frozenset(self._shown(slots))
        self.uses: dict[int, _Table | _Matrix] = {}
        self._users: dict[str, list[int]] = {}
        last: dict[int, int] = {}
        for node in trace.nodes:
            if node.index not in self.needed:
                continue
            names = self.names.setdefault(node.index, {})
            for index in self.shown.intersection(node.inputs):
                names |= self.names[index]
            for fixed in fixed_in((node.args, node.kwargs)):
                name = slots.parameter(fixed.tensor, node)
                if name is not None:
                    names[id(fixed.tensor)] = name
            if node.index in self.shown:
                continue
            last |= dict.fromkeys(self.read(node), node.index)
            for name in names.values():
                self._users.setdefault(name, []).append(node.index)
            use = _use_of(trace, node)
            if use is not None and (id(use.whole) in names or id(use.whole) not in slots.names):
                self.uses[node.index] = use
        self.free: dict[int, list[int]] = {}
        for index, reader in last.items():
            self.free.setdefault(reader, []).append(index)

    def _shown(self, slots: Slots) -> Iterator[int]:
        """Nodes that do nothing but show a parameter, such as turned over or one of a stack."""
        for node in self.trace.nodes:
            if node.index in self.needed and node.index not in self.watched and node.floating:
                seen = shown(self.trace, Ref(node.index))
                if seen is not None and id(seen.fixed.tensor) in slots.names:
                    yield node.index
                    if node.op == "output":
                        # The call that showed it in several parts.
                        yield node.inputs[0]

    def read(self, node: Node) -> Iterator[int]:
        """What a call reads, and in place of what shows a parameter what that reads."""
        for index in node.inputs:
            if index in self.shown:
                yield from self.read(self.trace.node(index))
            else:
                yield index

    def users(self, names: Iterable[str]) -> list[int]:
        """The nodes that use some of the parameters, in order."""
        return sorted({index for name in names for index in self._users.get(name, ())})

    def own(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The floating-point tensors that the record returns, in the types of the model.

        Args:
            inputs: what the model is given.

        Raises:
            ReplayError: if a call cannot be made again.
        """
        with torch.no_grad():
            found: dict[int, Tensor] = {}

            def keep(index: int, value: Tensor, _: object) -> None:
                found[index] = value

            _Pass(self, inputs, (), None).go(keep)
        return [found[index] for index in self.outputs]

    def run(
        self, inputs: Sequence[Tensor], versions: Sequence[Version], look: Look
    ) -> dict[int, str]:
        """Runs the record in float64, with its own weights and with other versions of them.

        Args:
            inputs: what the model is given; what is a floating-point number in float64.
            versions: the other weights.
            look: is told the values of the wanted nodes, of the outputs and of the ends.

        Returns:
            Number of a version -> why it could not be run to its end; only those that could not.

        Raises:
            ReplayError: if a call cannot be made again with the weights as they are.
        """
        with torch.no_grad(), in_double():
            return _Pass(self, inputs, versions, torch.float64).go(look)

    def whole(self, weight: Tensor) -> Tensor:
        """The numbers of a parameter, or those that it has in their place."""
        own = self.instead.get(id(weight))
        return fetched(weight) if own is None else own.to(weight.dtype)

    def _behind(self, targets: Iterable[int], first: int = 0) -> frozenset[int]:
        """Some nodes, and those that they are computed from; none before the first."""
        found, waiting = set[int](), [index for index in targets if index >= first]
        while waiting:
            index = waiting.pop()
            if index not in found:
                found.add(index)
                waiting.extend(i for i in self.trace.node(index).inputs if i >= first)
        return frozenset(found)

    def window(self, version: Version) -> tuple[int, int, frozenset[int]]:
        """The first node that a version changes, its last end, and what it must compute."""
        users = self.users(version.changes)
        if not users:
            return 0, -1, frozenset()
        if version.ends is None:
            return users[0], len(self.trace.nodes), self.needed
        needed = self._behind(version.ends, users[0]) & self.needed
        return users[0], max(needed, default=-1), needed


class _Running:
    """A version while it runs: the values that are not those of the weights as they are."""

    def __init__(self, number: int, version: Version, sweep: Sweep) -> None:
        self.number = number
        self.changes = version.changes
        self.watched = sweep.watched if version.ends is None else version.ends
        self.first, self.last, self.needed = sweep.window(version)
        self.own: dict[int, Any] = {}


class _Pass:
    """One pass over a record."""

    def __init__(
        self,
        sweep: Sweep,
        inputs: Sequence[Tensor],
        versions: Sequence[Version],
        dtype: torch.dtype | None,
    ) -> None:
        self.sweep, self.dtype = sweep, dtype
        self.known: dict[int, Any] = {}
        nodes = [node.index for node in sweep.trace.nodes if node.op == "input"]
        if len(nodes) != len(inputs):
            raise ReplayError(
                f"the model was given {len(inputs)} tensors, and {len(nodes)} were recorded"
            )
        self.known = dict(zip(nodes, inputs, strict=True))
        self.starting: dict[int, list[_Running]] = {}
        for number, version in enumerate(versions):
            running = _Running(number, version, sweep)
            if running.first <= running.last:
                self.starting.setdefault(running.first, []).append(running)
        self.running: list[_Running] = []
        self.cast: dict[int, Tensor] = {}
        self.failed: dict[int, str] = {}

    def go(self, look: Look) -> dict[int, str]:
        """Makes all calls; see `Sweep.run`."""
        for node in self.sweep.trace.nodes:
            index = node.index
            self.running += self.starting.get(index, ())
            if index not in self.sweep.needed or index in self.sweep.shown:
                continue
            stale = [one for one in self.running if self._is_stale(one, node)]
            self._small(node, self._large(node, stale))
            self.cast.clear()
            changed = {
                one.number: one.own[index]
                for one in stale
                if index in one.watched and index in one.own
            }
            if changed or index in self.sweep.watched:
                with rounding_nothing():
                    look(index, self.known[index], changed)
            for spent in self.sweep.free.get(index, ()):
                self.known.pop(spent, None)
                for one in self.running:
                    one.own.pop(spent, None)
            give_back()
            self.running = [
                one for one in self.running if index < one.last and one.number not in self.failed
            ]
        return self.failed

    def _is_stale(self, one: _Running, node: Node) -> bool:
        """True if a version computes another value at a node."""
        if node.index not in one.needed:
            return False
        names = self.sweep.names.get(node.index, {})
        return any(i in one.own for i in self.sweep.read(node)) or any(
            n in one.changes for n in names.values()
        )

    # --- calls ------------------------------------------------------------------------------------

    def _small(self, node: Node, stale: Sequence[_Running]) -> None:
        """One call after the other, with weights that were changed."""
        if node.index not in self.known:
            try:
                self.known[node.index] = self._value(node, None)
            except Exception as error:
                raise ReplayError(f"{_spoken(node)}: {_said(error)}") from error
        for one in stale:
            try:
                one.own[node.index] = self._value(node, one)
            except Exception as error:
                self.failed[one.number] = f"{_spoken(node)}: {_said(error)}"

    def _value(self, node: Node, one: _Running | None) -> Any:
        there = None if self.dtype is None else self.sweep.further.get(node.index)
        if there is not None:
            return there.to(self.dtype) if there.is_floating_point() else there
        if node.op == "output":
            return [*tensors_in(self._at(node.inputs[0], one))][node.args[0]]
        if node.op == "overwritten":
            return self._overwritten(node, one)
        if node.function is None:
            raise ValueError("it was computed where nobody could see it")
        return self._called(node, one, {})

    def _called(self, node: Node, one: _Running | None, instead: dict[int, Any]) -> Any:
        """What a call returns, with other values of some nodes."""

        def value_of(value: Ref | Fixed) -> Any:
            if isinstance(value, Fixed):
                found = self._fixed(node, value.tensor, one)
                return found if self.dtype or not value.dtype else found.to(value.dtype)
            return instead[value.node] if value.node in instead else self._at(value.node, one)

        return called(node, value_of, self.dtype)

    def _overwritten(self, node: Node, one: _Running | None) -> Tensor:
        """A tensor that shows values which were overwritten through another that shows them."""
        before, *_, made = node.inputs
        through = next(_references(self.sweep.trace.node(made).args), -1)
        inside, outside = self._views(through, before), self._views(before, through)
        if inside is not None:
            # A part of it was overwritten, through a view.
            whole: Tensor = self._at(before, one).clone()
            view = self._seen_through(inside, before, whole, one)
            if view.untyped_storage().data_ptr() != whole.untyped_storage().data_ptr():
                raise ValueError("what it was overwritten through is no view of it")
            view.copy_(self._at(made, one))
            return whole
        if outside is not None:
            return self._seen_through(outside, through, self._at(made, one), one)
        raise ValueError("it was overwritten where nobody could see it")

    def _views(self, last: int, first: int) -> list[Node] | None:
        """The calls that make one tensor from another, each from the one before; None if not."""
        chain: list[Node] = []
        while last > first >= 0:
            node = self.sweep.trace.node(last)
            if node.function is None or not node.inputs or node.inplace:
                return None
            chain.append(node)
            last = node.inputs[0]
        return chain[::-1] if last == first else None

    def _seen_through(
        self, views: Sequence[Node], first: int, value: Tensor, one: _Running | None
    ) -> Tensor:
        for node in views:
            value, first = self._called(node, one, {first: value}), node.index
        return value

    def _at(self, index: int, one: _Running | None) -> Any:
        if index in self.sweep.shown:
            return self._value(self.sweep.trace.node(index), one)
        if one is not None and index in one.own:
            return one.own[index]
        return self.known[index]

    def _fixed(self, node: Node, tensor: Tensor, one: _Running | None) -> Tensor:
        """A parameter or a constant, as a version has it."""
        if self.dtype is None or not tensor.is_floating_point():
            return tensor.detach()
        if id(tensor) not in self.cast:
            own = self.sweep.instead.get(id(tensor), tensor)
            self.cast[id(tensor)] = own.detach().to(self.dtype)
        whole = self.cast[id(tensor)]
        name = self.sweep.names.get(node.index, {}).get(id(tensor), "")
        return whole if one is None else after(whole, one.changes.get(name, ()))

    # --- large matrices ---------------------------------------------------------------------------

    def _large(self, node: Node, stale: Sequence[_Running]) -> Sequence[_Running]:
        """Uses a large matrix as it is, where versions did nothing to it but along its axes.

        Where W became A W B, y = A W B x is computed as A (W (B x)).

        Returns:
            The versions that are left, with the numbers that they have in its place.
        """
        use = None if self.dtype is None else self.sweep.uses.get(node.index)
        if use is None:
            return stale
        name = self._name(node, use.whole)
        acts: list[tuple[_Running | None, list[Acted]]] = [(None, [])]
        left: list[_Running] = []
        for one in stale:
            changes = one.changes.get(name, ())
            plain = [change for change in changes if isinstance(change, Acted)]
            if len(plain) < len(changes) or not all(map(use.passes, plain)):
                left.append(one)
            else:
                acts.append((one, plain))
        try:
            if isinstance(use, _Table):
                made = self._looked_up(node, use, acts)
            else:
                with rounding_nothing():
                    made = self._products(node, use, acts)
        except Exception as error:
            raise ReplayError(f"{_spoken(node)}: {_said(error)}") from error
        for (one, _), value in zip(acts, made, strict=True):
            (self.known if one is None else one.own)[node.index] = value
        return left

    def _name(self, node: Node, weight: Tensor) -> str:
        return self.sweep.names.get(node.index, {}).get(id(weight), "")

    def _looked_up(
        self, node: Node, use: "_Table", every: Iterable[tuple[_Running | None, list[Acted]]]
    ) -> list[Tensor]:
        """The rows of a table that are used, with what was done to its columns done to them."""
        found: list[Tensor] = []
        table = self.sweep.whole(use.whole)
        for one, acts in every:

            def value_of(value: Ref | Fixed, one: _Running | None = one) -> Any:
                return self._at(value.node, one) if isinstance(value, Ref) else table

            rows: Tensor = called(node, value_of, None).to(self.dtype)
            for change in acts:
                rows = acted(rows, -1, change.element, change.places)
            found.append(rows)
        return found

    def _products(
        self, node: Node, use: "_Matrix", every: Sequence[tuple[_Running | None, list[Acted]]]
    ) -> list[Tensor]:
        """A linear map of all versions at once, so that each of its matrices is cast once."""
        whole, reading = self.sweep.whole(use.whole), use.reading
        shares: list[Shares] = []
        waiting: dict[int | None, list[tuple[int, int, Tensor]]] = {}
        for number, (one, acts) in enumerate(every):
            x = reading.laid(self._argument(node, reading.rows, one))
            for change in reversed(acts):
                if use.is_input(change):
                    x = acted(x, -1, change.element.transpose(), change.places)
            ends = None if reading.ends is None else self._argument(node, reading.ends, one)
            places = self._places(node, use, one)
            ended = None if ends is None else ends.tolist()
            shares.append(Shares(x, places if use.stacked else None, ended))
            for part, (place, rows) in enumerate(shares[-1].each()):
                place = place if use.stacked else next(iter(places), None)
                waiting.setdefault(place, []).append((number, part, rows))
        products: list[dict[int, Tensor]] = [{} for _ in shares]
        for place, several in waiting.items():
            stacked = torch.cat([rows.reshape(-1, rows.shape[-1]) for *_, rows in several])
            made = _times(stacked, use.matrix(whole, place))
            sizes = [rows.shape[:-1] for *_, rows in several]
            split = made.split([size.numel() for size in sizes])
            for (number, part, _), size, product in zip(several, sizes, split, strict=True):
                products[number][part] = product.reshape(*size, -1)
        found: list[Tensor] = []
        for (one, acts), share, parts in zip(every, shares, products, strict=True):
            y = share.together([parts[part] for part in range(len(parts))], use.outputs)
            for change in acts:
                if not use.is_input(change):
                    y = acted(y, -1, change.element, change.places)
            y = reading.back(y)
            if reading.added is not None:
                y = y + self._argument(node, reading.added, one)
            found.append(y)
        return found

    def _places(self, node: Node, use: "_Matrix", one: _Running | None) -> Sequence[int]:
        """The matrices of a stack that a call uses; none where the parameter is no stack."""
        if use.picks is not None:
            return self._argument(node, use.picks, one).flatten().tolist()
        if use.stacked:
            return range(use.whole.shape[use.axes[0]])
        return () if use.place is None else (use.place,)

    def _argument(self, node: Node, value: Ref | Fixed, one: _Running | None) -> Tensor:
        if isinstance(value, Ref):
            return self._at(value.node, one)
        return self._fixed(node, value.tensor, one)


@dataclasses.dataclass(frozen=True, eq=False)
class _Table:
    """How a call picks rows of a large matrix.

    Attributes:
        whole: the matrix.
    """

    whole: Tensor

    def passes(self, change: Acted) -> bool:
        """True if a change of the matrix is one of its features."""
        return change.entries is None and change.axis % 2 == 1 and _fits(change, self.whole)


@dataclasses.dataclass(frozen=True, eq=False)
class _Matrix:
    """How a call multiplies with a large parameter.

    Attributes:
        whole: the parameter, a matrix or a stack of matrices.
        reading: what it multiplies, and how.
        axes: the axes of the parameter that are inputs and outputs; of a stack its matrices first.
        place: the matrix of a stack that is meant, if it is always one.
        picks: the argument with the number of the matrix, or of several.
        several: True if these numbers are a list.
    """

    whole: Tensor
    reading: Reading
    axes: tuple[int, ...]
    place: int | None = None
    picks: Ref | Fixed | None = None
    several: bool = False

    @property
    def stacked(self) -> bool:
        """True if several matrices of a stack are meant."""
        return len(self.axes) == 3

    @property
    def outputs(self) -> int:
        """The number of outputs."""
        return self.whole.shape[self.axes[-1]]

    def is_input(self, change: Acted) -> bool:
        """True if an element acts along the inputs of a linear map."""
        return change.axis % self.whole.ndim == self.axes[-2]

    def passes(self, change: Acted) -> bool:
        """True if a change of the parameter is one of what it reads or writes."""
        within = change.axis % self.whole.ndim in self.axes[-2:]
        return change.entries is None and within and _fits(change, self.whole)

    def matrix(self, whole: Tensor, place: int | None) -> Tensor:
        """One matrix [input, output] of the parameter."""
        order = self.axes[-2:]
        if place is None:
            return whole.permute(order)
        (stack,) = {0, 1, 2} - {*order}
        one = whole.select(stack, place)
        return one if order[0] < order[1] else one.T


def _fits(change: Acted, weight: Tensor) -> bool:
    """True if an element acts on each feature along an axis, or on some of them."""
    return change.places is not None or change.element.dim == weight.shape[change.axis]


def _times(rows: Tensor, matrix: Tensor) -> Tensor:
    """[row, output], the product in the type of the rows, with a part of the matrix at once."""
    if is_large_window(matrix):
        return times(rows, matrix)
    # As it lies in memory: [output, input], or the other way round.
    turned = matrix.stride(0) < matrix.stride(1)
    weight = matrix.T if turned else matrix
    step = max(1, _PIECE // weight.shape[1])
    if rows.device.type == "cpu":
        step = min(step, max(_HEIGHT, _CACHED // weight.shape[1]))
    pieces = weight.split(step)
    # The same memory for every piece: new memory would take longer than the cast.
    place = rows.new_empty(min(step, len(weight)), weight.shape[1])
    cast = (place[: len(piece)].copy_(piece) for piece in pieces)
    if turned:
        return torch.cat([rows @ piece.T for piece in cast], -1)
    made = rows.new_zeros(len(rows), weight.shape[1])
    for part, piece in zip(rows.split(step, -1), cast, strict=True):
        made.addmm_(part, piece)
    return made


def _use_of(trace: Trace, node: Node) -> _Table | _Matrix | None:
    """How a call uses a large parameter, if it is one of the ways that are known here."""
    args, kwargs = node.args, node.kwargs
    if node.op == "embedding" and len(args) > 1 and isinstance(args[1], Fixed):
        table = args[1].tensor
        renormalised = kwargs.get("max_norm", args[3] if len(args) > 3 else None)
        plain = table.ndim == 2 and table.is_floating_point() and renormalised is None
        return _Table(table) if plain and table.numel() >= LARGE else None
    if node.op not in PRODUCTS or node.function is None or node.inplace:
        return None

    def ndim(value: Any) -> int | None:
        if isinstance(value, Ref):
            return len(trace.node(value.node).shape)
        return value.tensor.ndim if isinstance(value, Fixed) else None

    for reading in readings(node.op, args, kwargs, ndim):
        use = _matrix_of(trace, reading)
        if use is not None and isinstance(reading.rows, Ref):
            return use
    return None


def _matrix_of(trace: Trace, reading: Reading) -> _Matrix | None:
    """The large parameter that is the weight of a product; None if it is no such."""
    seen = shown(trace, reading.weight)
    axes = None if seen is None or seen.fixed.tensor.numel() < LARGE else seen.axes()
    if seen is None or axes is None:
        return None
    whole, order = seen.fixed.tensor, tuple(axes[axis] for axis in reading.axes)
    missing = {*range(whole.ndim)} - {*order}
    if missing and (missing != {0} or len(order) != 2):
        return None
    if seen.several and (len(order) != 3 or order[0] != 0):
        return None
    place = seen.place() if missing and seen.picks is None else None
    if missing and seen.picks is None and place is None:
        return None
    return _Matrix(whole, reading, order, place, seen.picks, seen.several)


def _references(value: object) -> Iterator[int]:
    """The recorded tensors among the arguments of a call, in order."""
    if isinstance(value, Ref):
        yield value.node
    elif isinstance(value, tuple | list):
        for entry in value:
            yield from _references(entry)


def _spoken(node: Node) -> str:
    return f"{node.op} in {node.module}" if node.module else node.op


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
