"""Products with a matrix, or with each matrix of a stack, however a call writes them."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from basis_probe.model.trace import Fixed, Node, Ref, Trace, tensors_in

GROUPED = ("_grouped_mm", "grouped_mm", "grouped_mm_fallback")
"""Products of rows that stand in order of the matrix that each is multiplied with."""

PRODUCTS = frozenset(("linear", "matmul", "mm", "bmm", "addmm", "baddbmm", *GROUPED))
"""The names of calls that `readings` knows."""

Times: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Multiplies rows [..., input] with a matrix [input, output]."""


@dataclasses.dataclass(frozen=True, eq=False)
class Reading:
    """How a call multiplies rows with a weight.

    Attributes:
        rows: the argument that is multiplied.
        weight: the argument that it is multiplied with.
        axes: which axes of the weight are inputs and outputs; of a stack its matrices come first.
        added: the argument that is added, or None.
        ends: the argument that says where the rows of each matrix end, or None.
        columns: True if the rows are given as columns, as in `weight @ columns`.
        turned: True if the products are.
    """

    rows: Any
    weight: Any
    axes: tuple[int, ...]
    added: Any = None
    ends: Any = None
    columns: bool = False
    turned: bool = False

    def laid(self, rows: Tensor) -> Tensor:
        """What is multiplied, with its features last."""
        return rows.mT if self.columns else rows

    def back(self, product: Tensor) -> Tensor:
        """Products with their features last, as the call returns them."""
        return product.mT if self.turned else product


def readings(
    op: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    ndim: Callable[[Any], int | None],
) -> Iterator[Reading]:
    """The ways in which one of the arguments of a call is a weight that multiplies another.

    Args:
        op: the name of the function.
        args: what it is called with.
        kwargs: what it is called with by name.
        ndim: the number of axes of an argument; None if it is no tensor.
    """
    found = _factors(op, args, kwargs)
    if found is None:
        return
    one, other, added, ends = found
    axes = ndim(one), ndim(other)
    if axes[0] is None or axes[1] is None or (added is not None and ndim(added) is None):
        return
    if op == "linear":
        if axes[1] == 2 and axes[0] > 0:
            yield Reading(one, other, (1, 0), added)
        if axes == (2, 2) and added is None:
            yield Reading(other, one, (1, 0), turned=True)
        return
    if op in GROUPED:
        if axes == (2, 3) and ndim(ends) == 1:
            yield Reading(one, other, (0, 1, 2), None, ends)
        return
    several = op == "matmul"
    if axes[1] == 2 and (axes[0] == 2 or (several and axes[0] > 0)):
        yield Reading(one, other, (0, 1), added)
    elif axes == (3, 3):
        yield Reading(one, other, (0, 1, 2), added)
    if axes[0] == 2 and (axes[1] == 2 or (several and axes[1] > 0)):
        turned = axes[1] > 1
        yield Reading(other, one, (1, 0), added, columns=turned, turned=turned)
    elif axes == (3, 3):
        yield Reading(other, one, (0, 2, 1), added, columns=True, turned=True)


def _factors(
    op: str, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Any, Any, Any, Any] | None:
    """Both factors of a product, what is added to it, and where groups end."""
    names = _NAMES.get(op)
    if names is None or len(args) > len(names):
        return None
    given = dict(zip(names, args, strict=False))
    more = {name: value for name, value in kwargs.items() if value is not None}
    if given.keys() & more.keys() or not more.keys() <= {*names}:
        return None
    given |= more
    one, other = (given.get(name) for name in _FACTORS[op])
    added = given.get(_ADDED.get(op, ""))
    missing = op in ("addmm", "baddbmm") and added is None
    return (
        None if one is None or other is None or missing else (one, other, added, given.get("offs"))
    )


_NAMES: dict[str, tuple[str, ...]] = {
    "linear": ("input", "weight", "bias"),
    "matmul": ("input", "other"),
    "mm": ("input", "mat2"),
    "bmm": ("input", "mat2"),
    "addmm": ("input", "mat1", "mat2"),
    "baddbmm": ("input", "batch1", "batch2"),
    "_grouped_mm": ("input", "mat2", "offs"),
    "grouped_mm": ("mat_a", "mat_b", "offs"),
    "grouped_mm_fallback": ("input", "weight", "offs"),
}
_FACTORS = {op: names[-2:] for op, names in _NAMES.items()} | {
    op: _NAMES[op][:2] for op in ("linear", *GROUPED)
}
_ADDED = {"linear": "bias", "addmm": "input", "baddbmm": "input"}


# --- rows of each matrix --------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Shares:
    """Rows given out to the matrices of a stack, or all of them to one matrix.

    Attributes:
        rows: [..., input]; of a stack [matrix, ..., input], or [row, input] in order of matrices.
        places: the matrices of the stack; None for one matrix.
        ends: where the rows of each of them end, where they stand one after the other.
    """

    rows: Tensor
    places: Sequence[int] | None = None
    ends: Sequence[int] | None = None

    def each(self) -> list[tuple[int | None, Tensor]]:
        """Every matrix that is used, with its rows."""
        if self.places is None:
            return [(None, self.rows)]
        if self.ends is None:
            return [*zip(self.places, self.rows, strict=True)]
        return [
            (place, self.rows[start:end])
            for place, start, end in zip(self.places, (0, *self.ends), self.ends, strict=False)
            if end > start
        ]

    def together(self, products: Sequence[Tensor], outputs: int) -> Tensor:
        """The products of all rows, in their order; zero for rows that no matrix has."""
        if self.places is None:
            return products[0]
        if self.ends is None:
            return torch.stack([*products])
        found = self.rows.new_zeros(len(self.rows), outputs)
        done = 0
        for product in products:
            found = torch.cat([found[:done], product, found[done + len(product) :]])
            done += len(product)
        return found


# --- parameters as they are shown -----------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Shown:
    """A parameter as a call is given it: turned over, in part, or one of a stack.

    Attributes:
        fixed: the parameter.
        form: a tensor without numbers, whose strides are those in the parameter's entries.
        picks: which entries of the first axis are shown, where that is not read off the form: the
            number or numbers that the model picks by. Several stand in the place of that axis.
    """

    fixed: Fixed
    form: Tensor
    picks: Ref | Fixed | None = None
    several: bool = False

    def axes(self) -> tuple[int, ...] | None:
        """Which axis of the parameter each axis is, all of it; None if it is not so simple."""
        whole = _without_numbers(self.fixed.tensor)
        known = [*zip(whole.shape, whole.stride(), strict=True)]
        if len({*known}) < len(known):
            return None
        seen = [*zip(self.form.shape, self.form.stride(), strict=True)]
        if len({*seen}) < len(seen) or not {*seen} <= {*known}:
            return None
        return tuple(known.index(axis) for axis in seen)

    def place(self) -> int | None:
        """The entry of the first axis that is shown, where it is read off the form."""
        step = int(_without_numbers(self.fixed.tensor).stride(0))
        place, rest = divmod(int(self.form.storage_offset()), step)
        return None if rest else place


def shown(trace: Trace, value: object) -> Shown | None:
    """The parameter that an argument shows, if it is one or shows entries of one; else None."""
    if isinstance(value, Fixed):
        floating = value.tensor.is_floating_point() and value.tensor.layout is torch.strided
        return Shown(value, _without_numbers(value.tensor)) if floating else None
    if not isinstance(value, Ref):
        return None
    node = trace.node(value.node)
    call, number = node, None
    if node.op == "output" and node.inputs:
        call, number = trace.node(node.inputs[0]), node.args[0]
    if call.function is None or call.inplace or not call.args or call.op == "as_strided":
        return None
    inner = shown(trace, call.args[0])
    if inner is None:
        return None
    picks = _picks(call)
    if picks is not None:
        return _picked(trace, inner, picks)
    rest = (*call.args[1:], *call.kwargs.values())
    if any(isinstance(entry, Ref | Fixed) for entry in _entries(rest)):
        return None
    try:
        made = call.function(inner.form, *call.args[1:], **call.kwargs)
        form = made if number is None else [*tensors_in(made)][number]
    except Exception:
        # Code of a model's own may refuse what holds no numbers in any words.
        return None
    if not isinstance(form, Tensor) or form.dtype is not inner.form.dtype or form.is_neg():
        return None
    ours, theirs = form.untyped_storage(), inner.form.untyped_storage()
    same = ours._cdata == theirs._cdata  # pyright: ignore[reportPrivateUsage]
    return dataclasses.replace(inner, form=form) if same else None


def _picks(call: Node) -> Ref | Fixed | None:
    """The number or numbers by which a call picks entries of the first axis, all of each."""
    if call.op == "index_select" and len(call.args) + len(call.kwargs) == 3:
        axis = call.kwargs.get("dim", call.args[1] if len(call.args) > 1 else None)
        index = call.kwargs.get("index", call.args[2] if len(call.args) > 2 else None)
        return index if axis == 0 and isinstance(index, Ref | Fixed) else None
    if call.op != "getitem" or len(call.args) != 2:
        return None
    given = call.args[1]
    items: tuple[Any, ...] = given if isinstance(given, tuple) else (given,)
    whole = all(item is Ellipsis or item == slice(None) for item in items[1:])
    return items[0] if whole and items and isinstance(items[0], Ref | Fixed) else None


def _picked(trace: Trace, inner: Shown, picks: Ref | Fixed) -> Shown | None:
    whole = _without_numbers(inner.fixed.tensor)
    if isinstance(picks, Ref):
        node = trace.node(picks.node)
        numbers, axes = not (node.floating or node.boolean), len(node.shape)
    else:
        numbers = not picks.tensor.is_floating_point() and picks.tensor.dtype is not torch.bool
        axes = picks.tensor.ndim
    untouched = (
        inner.picks is None
        and inner.form.ndim > 0
        and inner.form.shape[0] == whole.shape[0]
        and inner.form.stride(0) == whole.stride(0)
        and inner.form.storage_offset() == 0
    )
    if not numbers or axes > 1 or not untouched:
        return None
    form = inner.form if axes else inner.form.select(0, 0)
    return Shown(inner.fixed, form, picks, several=bool(axes))


def _without_numbers(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


def _entries(value: object) -> Iterator[object]:
    if isinstance(value, tuple | list):
        for entry in value:
            yield from _entries(entry)
    else:
        yield value
