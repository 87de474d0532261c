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
from basis_probe.model.facts import fixed_in
from basis_probe.model.graph import called
from basis_probe.model.offloaded import fetched
from basis_probe.model.precision import in_double, rounding_nothing
from basis_probe.model.trace import Fixed, Node, Ref, Trace, tensors_in
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
    """

    def __init__(self, trace: Trace, slots: Slots, wanted: Iterable[int] = ()) -> None:
        self.trace = trace
        self.outputs = tuple(i for i in trace.outputs if i >= 0 and trace.node(i).floating)
        self.watched = frozenset({*self.outputs, *wanted})
        self.needed = self._behind({*trace.outputs, *wanted} - {-1})
        self.names: dict[int, dict[int, str]] = {}
        self._users: dict[str, list[int]] = {}
        last: dict[int, int] = {}
        for node in trace.nodes:
            if node.index not in self.needed:
                continue
            last |= dict.fromkeys(node.inputs, node.index)
            for fixed in fixed_in((node.args, node.kwargs)):
                name = slots.parameter(fixed.tensor, node)
                if name is not None:
                    self.names.setdefault(node.index, {})[id(fixed.tensor)] = name
                    self._users.setdefault(name, []).append(node.index)
        self.free: dict[int, list[int]] = {}
        for index, reader in last.items():
            self.free.setdefault(reader, []).append(index)

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
            if index not in self.sweep.needed:
                continue
            stale = [one for one in self.running if self._is_stale(one, node)]
            if not self._large(node, stale):
                self._small(node, stale)
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
        return any(i in one.own for i in node.inputs) or any(
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
        if one is not None and index in one.own:
            return one.own[index]
        return self.known[index]

    def _fixed(self, node: Node, tensor: Tensor, one: _Running | None) -> Tensor:
        """A parameter or a constant, as a version has it."""
        if self.dtype is None or not tensor.is_floating_point():
            return tensor.detach()
        if id(tensor) not in self.cast:
            self.cast[id(tensor)] = tensor.detach().to(self.dtype)
        whole = self.cast[id(tensor)]
        name = self.sweep.names.get(node.index, {}).get(id(tensor), "")
        return whole if one is None else after(whole, one.changes.get(name, ()))

    # --- large matrices ---------------------------------------------------------------------------

    def _large(self, node: Node, stale: Sequence[_Running]) -> bool:
        """Uses a large matrix as it is for all versions; False where that cannot be.

        Where W became A W B, y = A W B x is computed as A (W (B x)).
        """
        use = None if self.dtype is None else _use_of(node)
        if use is None or use.weight.numel() < LARGE:
            return False
        name = self.sweep.names.get(node.index, {}).get(id(use.weight), "")
        acts: list[list[Acted]] = []
        for one in stale:
            changes = one.changes.get(name, ())
            plain = [change for change in changes if isinstance(change, Acted)]
            if len(plain) < len(changes) or not all(map(use.passes, plain)):
                return False
            acts.append(plain)
        try:
            every = zip([None, *stale], [[], *acts], strict=True)
            if use.table:
                found = self._looked_up(node, use, every)
            else:
                with rounding_nothing():
                    found = self._products(node, use, every)
        except Exception as error:
            raise ReplayError(f"{_spoken(node)}: {_said(error)}") from error
        self.known[node.index] = found[0]
        for one, value in zip(stale, found[1:], strict=True):
            one.own[node.index] = value
        return True

    def _looked_up(
        self, node: Node, use: "_Use", every: Iterable[tuple[_Running | None, list[Acted]]]
    ) -> list[Tensor]:
        """The rows of a table that are used, with what was done to its columns done to them."""
        found: list[Tensor] = []
        table = fetched(use.weight)
        for one, acts in every:

            def value_of(value: Ref | Fixed, one: _Running | None = one) -> Any:
                return self._at(value.node, one) if isinstance(value, Ref) else table

            rows: Tensor = called(node, value_of, None).to(self.dtype)
            for change in acts:
                rows = acted(rows, -1, change.element, change.places)
            found.append(rows)
        return found

    def _products(
        self, node: Node, use: "_Use", every: Iterable[tuple[_Running | None, list[Acted]]]
    ) -> list[Tensor]:
        """A linear map of all versions at once, so that its matrix is cast once."""
        rows: list[Tensor] = []
        behind: list[tuple[_Running | None, list[Acted]]] = []
        assert use.rows is not None
        for one, acts in every:
            x = self._at(use.rows.node, one)
            for change in reversed(acts):
                if use.is_input(change):
                    x = acted(x, -1, change.element.transpose(), change.places)
            rows.append(x)
            behind.append((one, [change for change in acts if not use.is_input(change)]))
        sizes = [x.shape[:-1] for x in rows]
        stacked = torch.cat([x.reshape(-1, x.shape[-1]) for x in rows])
        product = use.times(stacked).split([size.numel() for size in sizes])
        found: list[Tensor] = []
        for y, size, (one, acts) in zip(product, sizes, behind, strict=True):
            for change in acts:
                y = acted(y, -1, change.element, change.places)
            if isinstance(use.bias, Ref):
                y = y + self._at(use.bias.node, one)
            elif use.bias is not None:
                y = y + self._fixed(node, use.bias.tensor, one)
            found.append(y.reshape(*size, -1))
        return found


@dataclasses.dataclass(frozen=True, eq=False)
class _Use:
    """How a call uses a matrix.

    Attributes:
        weight: the matrix.
        outputs: its axis of outputs, or of the features of a table.
        rows: what it multiplies; None for a table.
        bias: what is added.
    """

    weight: Tensor
    outputs: int
    rows: Ref | None = None
    bias: Ref | Fixed | None = None

    @property
    def table(self) -> bool:
        """True if rows are picked from it."""
        return self.rows is None

    def is_input(self, change: Acted) -> bool:
        """True if an element acts along the inputs of a linear map."""
        return change.axis % 2 != self.outputs

    def passes(self, change: Acted) -> bool:
        """True if a change of the matrix is one of what it reads or writes."""
        if change.entries is not None or (self.table and self.is_input(change)):
            return False
        size = self.weight.shape[change.axis]
        return change.places is not None or change.element.dim == size

    def times(self, rows: Tensor) -> Tensor:
        """[row, output], the product in the type of the rows, with a part of the matrix at once."""
        if is_large_window(self.weight):
            return times(rows, self.weight, transposed=self.outputs == 0)
        weight = fetched(self.weight)
        step = max(1, _PIECE // weight.shape[1])
        if rows.device.type == "cpu":
            step = min(step, max(_HEIGHT, _CACHED // weight.shape[1]))
        pieces = weight.split(step)
        # The same memory for every piece: new memory would take longer than the cast.
        place = rows.new_empty(min(step, len(weight)), weight.shape[1])
        cast = (place[: len(piece)].copy_(piece) for piece in pieces)
        if self.outputs == 0:
            return torch.cat([rows @ piece.T for piece in cast], -1)
        made = rows.new_zeros(len(rows), weight.shape[1])
        for part, piece in zip(rows.split(step, -1), cast, strict=True):
            made.addmm_(part, piece)
        return made


def _use_of(node: Node) -> _Use | None:
    """How a call uses a matrix, if it is one of those that are known here."""
    args, kwargs = node.args, node.kwargs
    if node.op == "embedding" and len(args) > 1 and isinstance(args[1], Fixed):
        renormalised = kwargs.get("max_norm", args[3] if len(args) > 3 else None)
        plain = args[1].tensor.ndim == 2 and renormalised is None
        return _Use(args[1].tensor, 1) if plain and args[1].tensor.is_floating_point() else None
    if node.op == "linear":
        names = ("input", "weight", "bias")[len(args) :]
        given = [*args, *(kwargs[name] for name in names if name in kwargs)]
        rows, weight, bias = (*given, None)[:3] if len(given) in (2, 3) else (None, None, None)
        outputs = 0
    elif node.op == "addmm" and len(args) == 3 and not kwargs:
        (bias, rows, weight), outputs = args, 1
    else:
        return None
    if not isinstance(rows, Ref) or not isinstance(weight, Fixed) or weight.tensor.ndim != 2:
        return None
    if not weight.tensor.is_floating_point() or not isinstance(bias, Ref | Fixed | None):
        return None
    return _Use(weight.tensor, outputs, rows, bias)


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
