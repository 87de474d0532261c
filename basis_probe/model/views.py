"""Views that merge an axis of examples with an axis of heads, taken apart again.

`(batch, heads, positions, d_head)` viewed as `(batch * heads, positions, d_head)` holds the same
numbers in the same order, but its first axis is one of examples and of features at once. Every call
up to the view that ends this can be made on the tensor of four axes as well: a record in which it
is, says where the features are.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from basis_probe.model.trace import Fixed, Node, Ref, Trace


def groups_of_axes(
    before: tuple[int, ...], after: tuple[int, ...]
) -> list[tuple[list[int], list[int]]] | None:
    """Which axes before a view are which axes after it, in the smallest groups of the same size."""
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        left, right = list[int](), list[int]()
        a = b = 1
        if i < len(before):
            a, left, i = before[i], [i], i + 1
        if j < len(after):
            b, right, j = after[j], [j], j + 1
        while a != b:
            if a < b and i < len(before):
                a, left, i = a * before[i], [*left, i], i + 1
            elif b < a and j < len(after):
                b, right, j = b * after[j], [*right, j], j + 1
            else:
                return None
        groups.append((left, right))
    return groups


@dataclasses.dataclass(frozen=True)
class _Merged:
    """An axis that is two axes, the first of `sizes` being the major one.

    The second may be a part of an axis of features, as heads are.
    """

    axis: int
    sizes: tuple[int, int]
    part: bool = dataclasses.field(default=False, compare=False)

    def apart(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape with the two axes in the place of the one."""
        return (*shape[: self.axis], *self.sizes, *shape[self.axis + 1 :])

    def place(self, axis: int, ndim: int) -> int:
        """The number of another axis, when the one is two.

        Raises:
            _NotTaken: for the axis itself.
        """
        axis %= ndim
        if axis == self.axis:
            raise _NotTaken
        return axis + (axis > self.axis)


class _NotTaken(Exception):
    """A call that is not understood on an axis that is two."""


def apart(trace: Trace) -> Trace:
    """The record with merged axes of examples and heads kept apart, where products join them.

    Returns:
        A record with the same nodes, some of them of another shape; the record itself where no
        axes are merged around a product.
    """
    return _Apart(trace).record()


class _Apart:
    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.merged: dict[int, _Merged] = {}
        self.nodes: dict[int, Node] = {}
        self.parent: dict[int, int] = {}
        self.failed: set[int] = set()
        self.joined: set[int] = set()  # nodes where two merged tensors meet in a product
        self.views: dict[int, tuple[int, Node]] = {}  # node -> its source, and the plain view of it

    def record(self) -> Trace:
        for node in self.trace.nodes:
            if node.live:
                self._visit(node)
        if not self.joined:
            return self.trace
        for index in self.trace.outputs:
            if index in self.merged:
                self.failed.add(index)
        failed = {self._root(index) for index in self.failed}
        good = {self._root(index) for index in self.joined} - failed
        taken = {
            index: node
            for index, (source, node) in self.views.items()
            if source in self.merged and self._root(source) in good
        }
        taken |= {i: n for i, n in self.nodes.items() if self._root(i) in good}
        nodes = tuple(taken.get(node.index, node) for node in self.trace.nodes)
        return dataclasses.replace(self.trace, nodes=nodes) if taken else self.trace

    def _root(self, index: int) -> int:
        self.parent.setdefault(index, index)
        while self.parent[index] != index:
            index = self.parent[index]
        return index

    def _visit(self, node: Node) -> None:
        sources = [i for i in dict.fromkeys(node.inputs) if i in self.merged]
        if not sources and node.op != "view":
            return
        if node.op == "view":
            self._view(node)
            return
        for source in sources:
            self.parent[self._root(node.index)] = self._root(source)
        try:
            self._call(node, sources)
        except _NotTaken:
            self.failed.add(node.index)

    def _keep(self, node: Node, merged: _Merged | None, **changes: Any) -> None:
        """Puts down a call as it is made on the axes apart."""
        shape = node.shape if merged is None else merged.apart(node.shape)
        if merged is not None:
            self.merged[node.index] = merged
        self.nodes[node.index] = dataclasses.replace(node, shape=shape, inplace=False, **changes)

    def _view(self, node: Node) -> None:
        given = node.args[0] if node.args else node.kwargs.get("input")
        if not isinstance(given, Ref):
            return
        source = self.trace.node(given.node)
        known = self.merged.get(given.node)
        before = source.shape if known is None else known.apart(source.shape)
        merged = _merges(before, node.shape)
        function, plain = torch.reshape, (given, node.shape)
        if known is not None:
            # The same numbers in the same order, whichever axes they had before.
            end = dataclasses.replace(node, function=function, args=plain, kwargs={}, inplace=False)
            self.views[node.index] = given.node, end
            if known.part and node.shape == before:
                # Heads are kept apart from examples again, before any product.
                self.joined.add(given.node)
        if merged is not None:
            args = (given, merged.apart(node.shape))
            self._keep(node, merged, function=function, args=args, kwargs={})

    def _call(self, node: Node, sources: list[int]) -> None:
        merged = self.merged[sources[0]]
        ndim = len(self.trace.node(sources[0]).shape)
        alike = all(
            self.merged[i] == merged and len(self.trace.node(i).shape) == ndim for i in sources
        )
        refs = [ref for ref in _refs((*node.args, *node.kwargs.values())) if ref in self.merged]
        if node.op in _MOVES and len(sources) == 1:
            self._move(node, merged, ndim)
        elif not alike:
            raise _NotTaken
        elif node.op in ("bmm", "matmul") and merged.axis == 0 and ndim == 3 and len(refs) == 2:
            self.joined.add(node.index)
            self._keep(node, merged, op="matmul", function=torch.matmul)
        elif node.op == "baddbmm" and merged.axis == 0 and len(refs) >= 2:
            self.joined.add(node.index)
            self._keep(node, merged, function=self._spread(node, merged, _added_product))
        elif node.op == "scaled_dot_product_attention" and merged.axis == 0 and len(refs) >= 3:
            self.joined.add(node.index)
            self._keep(node, merged, function=self._spread(node, merged, node.function))
        elif node.op in _OVER_ONE and len(node.shape) == ndim:
            self._keep(node, merged, **_with_dim(node, merged, ndim))
        elif node.op == "cat":
            # Zeros, or a row for all, may be joined that were made with one axis.
            function = self._spread(node, merged, node.function)
            self._keep(node, merged, function=function, **_with_dim(node, merged, ndim))
        elif node.op == "getitem":
            self._keep(node, merged, args=(node.args[0], _items(node, merged)))
        elif node.op in _ALONE and len(node.shape) == ndim:
            self._keep(node, merged)
        elif node.op in _ONE_BY_ONE and len(node.shape) == ndim:
            self._keep(node, merged, function=self._spread(node, merged, node.function))
        else:
            raise _NotTaken

    def _move(self, node: Node, merged: _Merged, ndim: int) -> None:
        """A call by which axes change places."""
        # Every axis has a size of its own, by which it is known again.
        sizes = tuple(range(2, ndim + 2))
        try:
            function: Any = node.function
            blank = torch.empty(sizes, device="meta")
            after = tuple(function(blank, *node.args[1:], **node.kwargs).shape)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise _NotTaken from error
        if sorted(after) != list(sizes):
            raise _NotTaken
        order: list[int] = []
        for size in after:
            axis = size - 2
            if axis == merged.axis:
                order += [axis, axis + 1]
            else:
                order.append(axis + (axis > merged.axis))
        moved = _Merged(after.index(merged.axis + 2), merged.sizes, merged.part)
        given = next(v for v in (*node.args, *node.kwargs.values()) if isinstance(v, Ref))
        args = (given, tuple(order))
        self._keep(node, moved, op="permute", function=torch.permute, args=args, kwargs={})

    def _spread(
        self, node: Node, merged: _Merged, function: Callable[..., Any] | None
    ) -> Callable[..., Any]:
        """The function for operands of which some have the merged axis still as one."""
        whole, ndim = merged.sizes[0] * merged.sizes[1], len(node.shape)
        some = False
        for value in _entries((*node.args, *node.kwargs.values())):
            if isinstance(value, Ref) and value.node not in self.merged:
                shape = self.trace.node(value.node).shape
            elif isinstance(value, Fixed):
                shape = tuple(value.tensor.shape)
            else:
                continue
            at = merged.axis - (ndim - len(shape))
            if at < 0 or (shape[at] == 1 and at == 0):
                continue
            if at != 0 or shape[at] != whole:
                raise _NotTaken
            some = True
        if function is None:
            raise _NotTaken
        return _Spread(function, merged.sizes, ndim) if some else function


@dataclasses.dataclass(frozen=True)
class _Spread:
    """A function whose operands get two axes for their first one, where they have it as one."""

    function: Callable[..., Any]
    sizes: tuple[int, int]
    ndim: int

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        whole = self.sizes[0] * self.sizes[1]

        def spread(value: Any) -> Any:
            if isinstance(value, Tensor) and value.ndim == self.ndim and len(value) == whole:
                return value.unflatten(0, self.sizes)
            if isinstance(value, tuple | list):
                return [spread(entry) for entry in cast("Sequence[Any]", value)]
            return value

        return self.function(
            *map(spread, args), **{name: spread(value) for name, value in kwargs.items()}
        )


_MOVES = frozenset("transpose permute movedim moveaxis mT mH".split())
_OVER_ONE = frozenset("softmax log_softmax cumsum amax amin sum mean logsumexp".split())
"""Calls along one axis that leave as many axes as there were."""

_ALONE = frozenset(
    "to contiguous clone detach dropout alias positive neg exp tanh sigmoid relu gelu silu sqrt "
    "rsqrt abs nan_to_num".split()
)
_ONE_BY_ONE = frozenset(
    "add sub rsub mul div rdiv where masked_fill minimum maximum clamp pow eq ne lt gt".split()
)


def _refs(value: object) -> list[int]:
    """The recorded tensors among some arguments, each as often as it is there."""
    return [entry.node for entry in _entries(value) if isinstance(entry, Ref)]


def _entries(value: object) -> Iterator[object]:
    """Some arguments, those in lists one by one."""
    if isinstance(value, tuple | list):
        for entry in cast("Sequence[object]", value):
            yield from _entries(entry)
    else:
        yield value


def _merges(before: tuple[int, ...], after: tuple[int, ...]) -> _Merged | None:
    """The one axis after a view that merges two axes, or one with the first part of another."""
    found: list[_Merged] = []
    for left, right in groups_of_axes(before, after) or ():
        left, right = [a for a in left if before[a] > 1], [a for a in right if after[a] > 1]
        if len(left) != 2 or not right:
            continue
        major, whole = before[left[0]], after[right[0]]
        split = len(right) == 2 and whole % major == 0 and before[left[1]] % after[right[1]] == 0
        if len(right) == 1 or (split and whole > major):
            found.append(_Merged(right[0], (major, whole // major), len(right) == 2))
    return found[0] if len(found) == 1 else None


def _with_dim(node: Node, merged: _Merged, ndim: int) -> dict[str, Any]:
    """The arguments of a call along one axis, with the number that this axis has then."""
    if isinstance(node.kwargs.get("dim"), int):
        return {"kwargs": {**node.kwargs, "dim": merged.place(node.kwargs["dim"], ndim)}}
    if len(node.args) > 1 and isinstance(node.args[1], int):
        return {"args": (node.args[0], merged.place(node.args[1], ndim), *node.args[2:])}
    raise _NotTaken


def _items(node: Node, merged: _Merged) -> tuple[Any, ...]:
    """What is taken of every axis, where nothing is taken of the merged one."""
    items = node.args[1] if len(node.args) == 2 else None
    items = items if isinstance(items, tuple) else (items,)
    if not all(isinstance(item, slice) or item is Ellipsis for item in items):
        raise _NotTaken
    if items[0] is Ellipsis:
        if len(items) > len(node.shape) - merged.axis:
            raise _NotTaken
        return items
    if len(items) <= merged.axis:
        return items
    if Ellipsis in items[: merged.axis + 1] or items[merged.axis] != slice(None):
        raise _NotTaken
    return (*items[: merged.axis], slice(None), *items[merged.axis :])


def _added_product(
    input: Tensor, batch1: Tensor, batch2: Tensor, *, beta: float = 1, alpha: float = 1
) -> Tensor:
    product = alpha * (batch1 @ batch2)
    return product if beta == 0 else beta * input + product
