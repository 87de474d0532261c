"""Products and joins of tensors, written out in the few calls whose effect on features is known.

`einsum`, `tensordot`, `inner` and their like say with letters and axes what is one product of
matrices; `hstack` and its like are concatenations. Written out, they are seen as such.
"""

import functools
import math
import string
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Steps = Callable[[], Tensor]


def written_out(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Steps | None:
    """The same in calls that are understood; None for all other functions and for rarer forms."""
    make = _FORMS.get(getattr(func, "__name__", ""))
    if make is None:
        return None
    try:
        return make(*args, **kwargs)
    except (TypeError, ValueError, IndexError, AttributeError):
        return None


def _einsum(equation: Any, *operands: Any) -> Steps | None:
    if not isinstance(equation, str):
        equation, operands = _of_lists((equation, *operands))
    if len(operands) == 1 and isinstance(operands[0], tuple | list):
        operands = tuple(operands[0])
    if len(operands) == 1 and isinstance(operands[0], Tensor):
        return _alone(equation, operands[0])
    if len(operands) != 2 or not all(isinstance(one, Tensor) for one in operands):
        return None
    one, two = operands
    first, second, out = letters(equation, one.ndim, two.ndim)
    if isinstance(one, nn.Parameter) and not isinstance(two, nn.Parameter):
        one, two, first, second = two, one, second, first
    elif not isinstance(two, nn.Parameter):
        own, other = (
            [out.index(x) for x in a if x in out and x not in b]
            for a, b in ((first, second), (second, first))
        )
        if own and other and min(other) < min(own):
            one, two, first, second = two, one, second, first
    summed = [x for x in first if x in second and x not in out]
    shared = [x for x in first if x in second and x in out]
    rows, columns = ([x for x in a if x not in b] for a, b in ((first, second), (second, first)))
    if two.ndim == 1 and summed == [*second] and rows == [*out]:
        # A number for every row.
        place = first.index(second[0])
        return lambda: torch.matmul(one if place == one.ndim - 1 else one.movedim(place, -1), two)
    alone = any(x not in out for x in (*rows, *columns))
    if alone or not summed or not columns or (shared and not rows):
        return None
    if shared and second[-1] in summed:
        # Queries meet keys, and their positions stand beside those of the keys in what is made.
        rows.sort(key=out.index)
    lead = [*shared, *rows]
    return functools.partial(_product, (one, two), (first, second, out), (lead, shared, summed))


def _alone(equation: str, one: Tensor) -> Steps | None:
    """An einsum of one tensor: its axes in another order, some of them summed."""
    letters, arrow, out = equation.replace(" ", "").partition("->")
    if (
        not arrow
        or "..." in equation
        or len({*letters}) != len(letters)
        or not {*out} <= {*letters}
    ):
        return None
    gone = [axis for axis, letter in enumerate(letters) if letter not in out]
    kept = "".join(letter for letter in letters if letter in out)
    return lambda: _ordered(one.sum(gone) if gone else one, kept, [*out])


def _product(
    operands: tuple[Tensor, Tensor], names: tuple[str, str, str], parts: tuple[list[str], ...]
) -> Tensor:
    (one, two), (first, second, out), (lead, shared, summed) = operands, names, parts
    columns = [x for x in second if x not in first]
    sizes = dict(zip(first + second, (*one.shape, *two.shape), strict=True))
    left = _ordered(one, first, [*lead, *summed])
    right = _ordered(two, second, [*shared, *summed, *columns])
    if len(summed) > 1:
        left = left.flatten(len(lead))
    if len(summed) > 1 or len(columns) > 1:
        whole = [math.prod(sizes[x] for x in part) for part in (summed, columns)]
        right = right.reshape([*(sizes[x] for x in shared), *whole])
    if shared:
        # As keys and values are for several heads of queries.
        for _ in lead[len(shared) + 1 :]:
            right = right.unsqueeze(-3)
    made = left @ right
    if len(columns) > 1:
        made = made.unflatten(-1, [sizes[x] for x in columns])
    return _ordered(made, "".join([*lead, *columns]), [*out])


def _ordered(tensor: Tensor, letters: str, wanted: Sequence[str]) -> Tensor:
    order = [letters.index(letter) for letter in wanted]
    return tensor if order == sorted(order) else tensor.permute(order)


def letters(equation: str, one: int, two: int) -> tuple[str, str, str]:
    """The letters of two factors and of the result, with letters for an ellipsis.

    Raises:
        ValueError: for another form.
    """
    left, arrow, out = equation.replace(" ", "").partition("->")
    first, second = left.split(",")
    free = [x for x in string.ascii_letters if x not in equation]
    counts = {
        name: ndim - len(name.replace("...", ""))
        for name, ndim in ((first, one), (second, two))
        if "..." in name
    }
    most = max(counts.values(), default=0)
    dots = "".join(free[:most])
    first, second = (
        name.replace("...", dots[most - counts.get(name, 0) :]) for name in (first, second)
    )
    if not arrow:
        once = sorted(x for x in first + second if (first + second).count(x) == 1)
        out = dots + "".join(x for x in once if x not in dots)
    out = out.replace("...", dots)
    if any(len(set(x)) != len(x) for x in (first, second, out)) or not set(out) <= {
        *first,
        *second,
    }:
        raise ValueError(equation)
    return first, second, out


def _of_lists(args: tuple[Any, ...]) -> tuple[str, tuple[Any, ...]]:
    """`einsum(x, [0, 1], w, [1, 2], [0, 2])` in letters."""
    operands, lists = args[0::2], args[1::2]
    if len(args) % 2:
        operands, lists = args[0:-1:2], (*args[1::2], args[-1])
    names = ["".join(string.ascii_letters[number] for number in entry) for entry in lists]
    inputs = ",".join(names[: len(operands)])
    return (f"{inputs}->{names[-1]}" if len(args) % 2 else inputs), operands


def _tensordot(a: Tensor, b: Tensor, dims: Any = 2, out: None = None) -> Steps | None:
    if out is not None:
        return None
    if isinstance(dims, int):
        dims = (list(range(a.ndim - dims, a.ndim)), list(range(dims)))
    over = [
        [axis % tensor.ndim for axis in axes] for axes, tensor in zip(dims, (a, b), strict=True)
    ]
    left, right = [*string.ascii_letters[: a.ndim]], [*string.ascii_letters[26 : 26 + b.ndim]]
    for i, j in zip(*over, strict=True):
        right[j] = left[i]
    kept = [x for x in left + right if (left + right).count(x) == 1]
    equation = f"{''.join(left)},{''.join(right)}->{''.join(kept)}"
    return functools.partial(torch.einsum, equation, a, b)


def _inner(input: Tensor, other: Tensor) -> Steps | None:
    if other.ndim != 2 or input.ndim < 2:
        return None
    return functools.partial(nn.functional.linear, input, other)


def _multi_dot(tensors: Sequence[Tensor], *, out: None = None) -> Steps | None:
    if out is not None or any(tensor.ndim != 2 for tensor in tensors):
        return None
    return functools.partial(functools.reduce, torch.matmul, tensors)


def _chain(*matrices: Tensor, out: None = None) -> Steps | None:
    return _multi_dot(matrices, out=out)


def _added_product(
    input: Tensor,
    batch1: Tensor,
    batch2: Tensor,
    *,
    beta: float = 1,
    alpha: float = 1,
    out: None = None,
) -> Steps | None:
    if out is not None or not any(map(_is_learned, (input, batch2))):
        # Queries that meet keys, with what is added to that, are seen as they are.
        return None

    def steps() -> Tensor:
        product = batch1 @ batch2
        product = product if alpha == 1 else alpha * product
        return product + (input if beta == 1 else beta * input) if beta != 0 else product

    return steps


def _added_product_in_place(
    input: Tensor, one: Tensor, two: Tensor, *, beta: float = 1, alpha: float = 1
) -> Steps | None:
    if beta == 0:
        return None

    def steps() -> Tensor:
        product = one @ two
        held = input if beta == 1 else input.mul_(beta)
        return held.add_(product if alpha == 1 else alpha * product)

    return steps


def _is_learned(tensor: Tensor) -> bool:
    """True for a parameter, and for what shows the numbers of one."""
    whole = tensor if tensor._base is None else tensor._base  # pyright: ignore[reportPrivateUsage]
    return isinstance(whole, nn.Parameter)


def _joined(axis: int, tensors: Sequence[Tensor], *, out: None = None) -> Steps | None:
    if out is not None or any(tensor.ndim <= axis for tensor in tensors):
        return None
    return functools.partial(torch.cat, tuple(tensors), axis)


def _addcmul(
    input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: float = 1, out: None = None
) -> Steps | None:
    if out is not None:
        return None

    def steps() -> Tensor:
        product = tensor1 * tensor2
        return input + (product if value == 1 else value * product)

    return steps


_FORMS: dict[str, Callable[..., Steps | None]] = {
    "einsum": _einsum,
    "tensordot": _tensordot,
    "inner": _inner,
    "multi_dot": _multi_dot,
    "linalg_multi_dot": _multi_dot,
    "chain_matmul": _chain,
    "baddbmm": _added_product,
    "baddbmm_": _added_product_in_place,
    "addmm_": _added_product_in_place,
    "hstack": functools.partial(_joined, 1),
    "column_stack": functools.partial(_joined, 1),
    "vstack": functools.partial(_joined, 0),
    "dstack": functools.partial(_joined, 2),
    "addcmul": _addcmul,
}
