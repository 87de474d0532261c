"""Weights that a model keeps as small integers, and makes real numbers of whenever it runs.

What weights could absorb is said of real numbers. So in a record the matrix that is computed from
integers takes the place of a parameter: it is computed when a call needs it, from the calls that
the model made, and is thrown away after it. What the integers could not hold is said at the site.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from basis_probe.model.graph import replay
from basis_probe.model.offloaded import Home, Stored
from basis_probe.model.trace import Fixed, Node, Ref, Trace

_SMALL = (torch.int8, torch.uint8, torch.int16, torch.int32)
"""Types in which numbers are packed; positions and other indices are of a larger one."""

_CODES = 65_536
"""A table of at most so many numbers may say what integers stand for."""

_UNPACKING = frozenset(
    "to long int contiguous clone mul div sub rsub add neg view stack cat expand "
    "repeat_interleave bitwise_and bitwise_or bitwise_right_shift bitwise_left_shift __and__ "
    "__or__ __rshift__ __lshift__ remainder floor_divide __floordiv__ getitem embedding "
    "index_select take".split()
)
"""What makes numbers of the integers of a row, each row by itself."""

_BY_INDEX = frozenset({"getitem", "index_select", "take", "gather", "embedding"})
_PRODUCTS = {
    "linear": (1, "weight"), "matmul": (1, "other"), "mm": (1, "mat2"), "addmm": (2, "mat2"),
    "conv1d": (1, "weight"), "conv2d": (1, "weight"), "conv3d": (1, "weight"),
    "embedding": (1, "weight"),
}  # fmt: skip
"""Functions of rows and a matrix -> the matrix among their arguments."""


def with_real_weights(
    model: nn.Module, trace: Trace, known: Mapping[str, Tensor] | None = None
) -> Trace:
    """The record, in which matrices that are computed from integers are weights of their own.

    What a module that holds such a matrix adds besides, such as a bias that it keeps beside its
    integers, counts as a weight too.

    Args:
        model: the model that was recorded.
        trace: the record.
        known: the weights of another record of the model, to be found in this one.
    """
    return _Real(model, trace, known or {}).record()


class _Real:
    def __init__(self, model: nn.Module, trace: Trace, known: Mapping[str, Tensor]) -> None:
        self.trace, self.known = trace, known
        self.names: dict[int, str] = {}
        for path, module in model.named_modules():
            stem = f"{path}." if path else ""
            for leaf, tensor in _held(module):
                self.names.setdefault(id(tensor), stem + leaf)
        self.packed = {path: how for path, how in holders(model).items() if " in " in how}
        self.sources: dict[int, Tensor | None] = {}
        self.keys: dict[str, Any] = {}
        self.made: dict[str, Tensor] = {}
        self.stored: dict[Any, Fixed] = {}
        self.owners = dict(trace.owners)
        self.holders: set[str] = set()

    def record(self) -> Trace:
        nodes = [*self.trace.nodes]
        for node in self.trace.nodes:
            if node.live and node.op in _PRODUCTS:
                nodes[node.index] = self._product(node)
        for index, looked in self._tables().items():
            nodes[index] = looked
        if not self.made:
            return self.trace
        nodes = [self._with_vectors(node) for node in nodes]
        readers: dict[int, list[int]] = {}
        for node in nodes:
            for index in dict.fromkeys(node.inputs):
                readers.setdefault(index, []).append(node.index)
        return dataclasses.replace(
            self.trace,
            nodes=tuple(nodes),
            readers={index: tuple(found) for index, found in readers.items()},
            owners=self.owners,
            quantised=self.made,
        )

    def _product(self, node: Node) -> Node:
        place, name = _PRODUCTS[node.op]
        value = node.kwargs.get(name, node.args[place] if len(node.args) > place else None)
        if isinstance(value, Fixed) and value.name is None and node.module in self.packed:
            fixed = self._kept(value, node)
        elif isinstance(value, Ref):
            made = self.trace.node(value.node)
            integers = None if made.live or not made.floating else self._integers(value.node)
            if integers is None or len(made.shape) < 2 or self._is_mask(value.node, integers):
                return node
            fixed = self._weight(value.node, integers, node)
        else:
            return node
        args = tuple(fixed if one == value else one for one in node.args)
        kwargs = {key: fixed if one == value else one for key, one in node.kwargs.items()}
        spent = value.node if isinstance(value, Ref) else -1
        inputs = tuple(index for index in node.inputs if index != spent)
        return dataclasses.replace(node, args=args, kwargs=kwargs, inputs=inputs)

    def _tables(self) -> dict[int, Node]:
        """Rows of integers that are picked first and made real then -> the same of a real table."""
        found: dict[int, _Rows] = {}
        for node in self.trace.nodes:
            rows = self._unpacked(node, found) or self._picked(node)
            if rows is not None:
                found[node.index] = rows
        made: dict[int, Node] = {}
        for index, rows in found.items():
            node, readers = self.trace.node(index), self.trace.readers.get(index, ())
            inner = all(reader in found for reader in readers) and index not in self.trace.outputs
            numbers = self.trace.node(rows.numbers)
            if inner or not node.floating or node.shape[:-1] != numbers.shape:
                continue
            integers = next(
                (one for one in map(self._packed_in, rows.tables) if one is not None), None
            )
            if integers is None or _counts(rows.tables, node.shape[-1]):
                continue
            some = self._some_rows(index, rows)
            if some is None:
                continue
            fetch = functools.partial(self._table, index, rows)
            name = self._name(self.names[id(integers)])
            fixed = self._put(name, fetch, some, (rows.count, node.shape[-1]))
            path = self.names[id(integers)].rpartition(".")[0]
            self.holders.add(path)
            self.owners[id(fixed.tensor)] = frozenset({path, node.module})
            made[index] = dataclasses.replace(
                node,
                op="embedding",
                function=nn.functional.embedding,
                args=(Ref(rows.numbers), fixed),
                kwargs={},
                inputs=(rows.numbers,),
                inplace=False,
            )
        return made

    def _picked(self, node: Node) -> _Rows | None:
        """What a call picks of the rows of a constant table, by numbers that the model is given."""
        if not node.live or len(node.args) < 2:
            return None
        table, numbers = node.args[:2]
        if node.op == "embedding":
            table, numbers = numbers, table
        elif node.op == "index_select" and len(node.args) > 2 and numbers == 0:
            numbers = node.args[2]
        elif node.op != "getitem":
            return None
        if isinstance(numbers, tuple) and len(numbers) == 1:
            (numbers,) = numbers
        if not isinstance(table, Fixed) or not isinstance(numbers, Ref) or not table.tensor.ndim:
            return None
        by = self.trace.node(numbers.node)
        while by.op in ("to", "long", "int", "contiguous") and by.live and len(by.inputs) == 1:
            by = self.trace.node(by.inputs[0])
        if by.floating or by.boolean or not by.live:
            return None
        return _Rows(by.index, len(table.tensor), (node.module, node.call), (table.tensor,))

    def _unpacked(self, node: Node, found: Mapping[int, _Rows]) -> _Rows | None:
        """What a call makes of such rows and of nothing else, in the module that picked them."""
        live = [index for index in node.inputs if self.trace.node(index).live]
        before = [found[index] for index in live if index in found]
        if not live or len(before) < len(live) or node.op not in _UNPACKING | {"output"}:
            return None
        if len({(one.numbers, one.count, one.place) for one in before}) > 1:
            return None
        if before[0].place != (node.module, node.call):
            return None
        tables = dict.fromkeys(itertools.chain(*(one.tables for one in before)))
        beside = [one.tensor for one in _values(node) if isinstance(one, Fixed)]
        made = [self.trace.node(index) for index in node.inputs if index not in live]
        shapes = [tuple(one.shape) for one in beside if one.is_floating_point()]
        shapes += [one.shape for one in made if one.floating]
        if any(len(shape) > 1 and math.prod(shape) > 1 for shape in shapes):
            # Another matrix, such as one of positions, is no matter of these rows.
            return None
        if any(isinstance(one, nn.Parameter) and one.requires_grad for one in beside):
            return None
        return dataclasses.replace(before[0], tables=tuple(tables))

    def _packed_in(self, table: Tensor) -> Tensor | None:
        return self._source(Fixed(table, None))

    def _rows(self, index: int, rows: _Rows, which: Tensor) -> Tensor:
        """What is made of the rows of the given numbers, as many at once as there were."""
        shape = self.trace.node(rows.numbers).shape
        with torch.no_grad():
            made = replay(self.trace, index, {rows.numbers: which.view(shape)})
        return made.reshape(len(which), -1)

    def _size(self, rows: _Rows) -> int:
        return math.prod(self.trace.node(rows.numbers).shape)

    def _some_rows(self, index: int, rows: _Rows) -> Tensor | None:
        """Some rows of a table; None if what is made of a row depends on the others."""
        size = self._size(rows)
        which = torch.arange(size, device=rows.tables[0].device).mul(7).remainder(rows.count)
        made = self._rows(index, rows, which)
        return made if torch.equal(self._rows(index, rows, which.flip(0)), made.flip(0)) else None

    def _table(self, index: int, rows: _Rows) -> Tensor:
        """Every row, made real as the model does it, as many at once as it did."""
        size, parts = self._size(rows), list[Tensor]()
        for start in range(0, rows.count, size):
            which = torch.arange(start, start + size, device=rows.tables[0].device)
            part = self._rows(index, rows, which.clamp(max=rows.count - 1))
            parts.append(part[: rows.count - start])
        return torch.cat(parts)

    def _is_mask(self, index: int, integers: Tensor) -> bool:
        """True where integers say which numbers count, and are not what the numbers are made of.

        They are beside a matrix of their size, or zeros and ones that nothing scales.
        """
        size = math.prod(self.trace.node(index).shape)
        real = [tensor for tensor in self._leaves(index) if tensor.is_floating_point()]
        if any(tensor.ndim > 1 and tensor.numel() >= size for tensor in real):
            return True
        return not real and _are_truths(integers)

    def _leaves(self, index: int) -> Iterator[Tensor]:
        """The tensors that a constant is computed from; some of them more than once."""
        for value in _values(self.trace.node(index)):
            if isinstance(value, Fixed):
                yield value.tensor
            else:
                yield from self._leaves(value.node)

    def _with_vectors(self, node: Node) -> Node:
        """A call, with what the modules of such weights keep beside them for a parameter."""
        if node.module not in self.holders:
            return node

        def seen(value: Any) -> Any:
            if isinstance(value, Fixed) and self._is_beside(value.tensor, node.module):
                return self._vector(value.tensor)
            if isinstance(value, tuple | list):
                return type(value)(seen(one) for one in value)
            return value

        kwargs = {key: seen(value) for key, value in node.kwargs.items()}
        return dataclasses.replace(node, args=seen(node.args), kwargs=kwargs)

    def _is_beside(self, tensor: Tensor, module: str) -> bool:
        name = self.names.get(id(tensor), "")
        held = bool(name) and name.rpartition(".")[0] == module
        return held and not isinstance(tensor, nn.Parameter) and tensor.is_floating_point()

    def _vector(self, tensor: Tensor) -> Fixed:
        name = self.names[id(tensor)]
        if ("vector", name) not in self.stored:
            fetch = functools.partial(_itself, tensor)
            self.stored["vector", name] = self._put(name, fetch, tensor)
        return self.stored["vector", name]

    def _weight(self, index: int, integers: Tensor, node: Node) -> Fixed:
        key = self._key(index)
        if key not in self.stored:
            name = self._name(self.names[id(integers)])
            fetch = functools.partial(replay, self.trace, index, {})
            with torch.no_grad():
                like = fetch().detach()
            self.stored[key] = self._put(name, fetch, like)
        self.holders.add(self.names[id(integers)].rpartition(".")[0])
        path = self.names[id(integers)].rpartition(".")[0]
        self.owners[id(self.stored[key].tensor)] = frozenset({path, node.module})
        return self.stored[key]

    def _kept(self, value: Fixed, node: Node) -> Fixed:
        """A matrix that a module has made of its integers before, and holds on to."""
        key = "kept", id(value.tensor)
        if key not in self.stored:
            fetch = functools.partial(_itself, value.tensor)
            name = self._name(f"{node.module}.{self.packed[node.module].partition(' ')[0]}")
            self.stored[key] = self._put(name, fetch, value.tensor)
        self.holders.add(node.module)
        self.owners[id(self.stored[key].tensor)] = frozenset({node.module})
        return self.stored[key]

    def _name(self, name: str) -> str:
        """A name that no other weight has."""
        count, found = 1, name
        while found in self.made:
            count += 1
            found = f"{name}, {count}"
        return found

    def _put(
        self, name: str, fetch: Any, like: Tensor, shape: tuple[int, ...] | None = None
    ) -> Fixed:
        """A weight of that name, of the kind, and unless it is said otherwise the shape, of one."""
        tensor = self.known.get(name)
        if tensor is None or tensor.shape != (shape or like.shape):
            form = torch.empty_strided(like.size(), like.stride(), dtype=like.dtype, device="meta")
            form = form if shape is None else form.new_empty(shape)
            home = Home(name, fetch, form, like.device)
            tensor = Stored.of(home, form, parameter=True)
        self.made[name] = tensor
        return Fixed(tensor, name)

    def _key(self, index: int) -> Any:
        """The same for matrices that are made of the same tensors by the same calls."""
        node = self.trace.node(index)

        def said(value: Any) -> Any:
            if isinstance(value, Ref):
                return self._key(value.node)
            if isinstance(value, Fixed):
                return "fixed", id(value.tensor)
            if isinstance(value, tuple | list):
                return tuple(said(one) for one in value)
            return repr(value)

        kwargs = tuple((key, said(value)) for key, value in sorted(node.kwargs.items()))
        return node.op, said(node.args), kwargs

    def _integers(self, index: int) -> Tensor | None:
        """The packed numbers that a constant is computed from; None if there are none."""
        if index not in self.sources:
            self.sources[index] = None
            node = self.trace.node(index)
            given = _values(node)
            if node.op in _BY_INDEX:
                given = self._codes(given)
            found = (self._source(value) for value in given)
            self.sources[index] = next((one for one in found if one is not None), None)
        return self.sources[index]

    def _source(self, value: Fixed | Ref) -> Tensor | None:
        if isinstance(value, Ref):
            return self._integers(value.node)
        tensor = value.tensor
        packed = tensor.dtype in _SMALL and tensor.ndim >= 1 and tensor.numel() > 1
        return tensor if packed and id(tensor) in self.names else None

    def _codes(self, given: list[Fixed | Ref]) -> list[Fixed | Ref]:
        """What integers are of that pick numbers: packed ones, if a small table says what they are.

        A table of parameters is one that is learned, and what picks from it are positions.
        """
        if not given or not isinstance(table := given[0], Fixed):
            return given[:1]
        learned = isinstance(table.tensor, nn.Parameter) and table.tensor.requires_grad
        small = table.tensor.ndim == 1 and table.tensor.numel() <= _CODES
        return given[1:] if small and not learned else given[:1]


@dataclasses.dataclass(frozen=True, eq=False)
class _Rows:
    """Rows of tables, picked by number, and what is made of each of them.

    Attributes:
        numbers: the node of the numbers.
        count: how many rows the tables have.
        place: the module that picks them, and which call of it.
        tables: what they are picked of.
    """

    numbers: int
    count: int
    place: tuple[str, int]
    tables: tuple[Tensor, ...]


def _counts(tables: tuple[Tensor, ...], width: int) -> bool:
    """True where integers say which of the rows' numbers count, and are not what these are made of.

    They are picked beside rows of real numbers, or are zeros and ones that nothing scales.
    """
    real = [table for table in tables if table.is_floating_point()]
    if any(table.ndim > 1 and table.shape[-1] >= width > 1 for table in real):
        return True
    return not real and all(_are_truths(table) for table in tables)


def _values(node: Node) -> list[Fixed | Ref]:
    """Every tensor among the arguments of a call, in order."""

    def inside(value: Any) -> Iterator[Fixed | Ref]:
        if isinstance(value, Fixed | Ref):
            yield value
        elif isinstance(value, tuple | list):
            for one in value:
                yield from inside(one)

    return [*inside((node.args, tuple(node.kwargs.values())))]


def _are_truths(integers: Tensor) -> bool:
    return bool(((integers == 0) | (integers == 1)).all())


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def holders(model: nn.Module) -> dict[str, str]:
    """Path of a module that keeps its weights as integers, or packed -> how it keeps them."""
    found: dict[str, str] = {}
    for path, module in model.named_modules():
        if type(module).__module__.startswith("torch.ao.nn.quantized"):
            if not [*module.children()] or hasattr(module, "_packed_params"):
                found[path] = f"{type(module).__name__}, packed by torch.ao.quantization"
            continue
        for leaf, tensor in _held(module):
            packed = tensor.dtype in _SMALL and tensor.ndim >= 2 and not tensor.is_meta
            if packed and not _are_truths(tensor):
                said = str(tensor.dtype).removeprefix("torch.")
                found.setdefault(path, f"{leaf} in {said}")
    return found


def _held(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What a module itself holds, by name."""
    yield from module.named_parameters(recurse=False, remove_duplicate=False)
    yield from module.named_buffers(recurse=False, remove_duplicate=False)
