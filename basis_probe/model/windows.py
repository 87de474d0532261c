"""Matrices that are windows on a vector, W[i, j] = v[2 i + j], and products with them.

It is every other row of a Hankel matrix, and takes the memory of a row. Its products are
correlations with the vector, which fast Fourier transforms give: y[i] = sum_j v[2 i + j] x[j] needs
as many numbers as v, not as W.
"""

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from basis_probe.model.matrices import GROUPED, Shares, readings
from basis_probe.model.trace import spelling

_STEP = 2
"""Not 1: of a square matrix the transpose is another one."""

_BETWEEN = 112
"""The matrices of a stack begin so far apart."""

_LARGE = 2**18
"""A matrix of fewer numbers is multiplied as it is."""

_PIECE = 2**22
"""So many numbers are transformed at once, at most."""


def drawn_window(shape: torch.Size, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """A window of a shape: rows that differ, of full rank, with entries of variance 1 / columns.

    Of three axes it is a stack of matrices, which begin at different places of one vector. Where
    they are small they are no windows, since the products of groups that torch has do not read any.
    """
    strides = [*torch.empty(shape, device="meta").stride()]
    columns = shape[1:].numel()
    if len(shape) != 3:
        strides[0] = _STEP
    else:
        columns = shape[-1]
        strides[0] = min(_BETWEEN, shape[1:].numel())
        if shape[1:].numel() >= _LARGE:
            strides[1] = _STEP
    size = 1 + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    vector = torch.randn(max(size, 0), generator=generator, dtype=torch.float32)
    return (vector * max(1, columns) ** -0.5).to(dtype).as_strided(shape, strides)


def is_large_window(matrix: Tensor) -> bool:
    """True for a large matrix that is a window on a vector, or the transpose of one.

    Of a stack of matrices, if they are.
    """
    return (
        matrix.layout is torch.strided
        and matrix.ndim in (2, 3)
        and sorted(matrix.stride()[-2:]) == [1, _STEP]
        and matrix.shape[-2 + matrix.stride()[-2:].index(1)] > _STEP
        and matrix.shape[-2:].numel() >= _LARGE
    )


def times(rows: Tensor, matrix: Tensor) -> Tensor:
    """[..., output] in the type of the rows, computed in float64.

    Args:
        rows: [..., input].
        matrix: [input, output], a window or the transpose of one.
    """
    from scipy.fft import next_fast_len

    transposed = matrix.stride() == (1, _STEP)
    height, width = matrix.mT.shape if transposed else matrix.shape
    size = _STEP * (height - 1) + width
    vector = matrix.as_strided((size,), (1,), matrix.storage_offset()).double()
    length = cast("int", next_fast_len(size, real=True))
    spectrum = torch.fft.rfft(vector, length)
    flat = rows.reshape(-1, rows.shape[-1])
    outputs = height if transposed else width
    if not len(flat):
        return flat.new_zeros(*rows.shape[:-1], outputs)
    made: list[Tensor] = []
    # Nothing is written in place, so that the rows may be differentiated by.
    for some in flat.split(max(1, _PIECE // length)):
        given = some.double()
        if not transposed:
            given = torch.stack([given, torch.zeros_like(given)], -1).flatten(-2)
        # No lag reaches beyond the vector, so that nothing comes around.
        lags = torch.fft.irfft(spectrum * torch.fft.rfft(given, length).conj(), length)
        asked = lags[:, : _STEP * height : _STEP] if transposed else lags[:, :width]
        made.append(asked.to(rows.dtype))
    found = made[0].contiguous() if len(made) == 1 else torch.cat(made)
    return found.reshape(*rows.shape[:-1], outputs)


class window_products(TorchFunctionMode):
    """A context in which products of rows with large windows are correlations with their vectors.

    Whatever else is done with a window is done as with any other matrix.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        op = _PRODUCTS.get(func)
        made = None if op is None else _product(op, args, kwargs)
        if made is None and op in GROUPED:
            # What torch has for it reads no windows.
            args = tuple(map(_written, args))
            kwargs = {name: _written(v) for name, v in kwargs.items()}
        return func(*args, **kwargs) if made is None else made


_PRODUCTS: dict[Callable[..., Any], str] = {
    getattr(home, name): spelling(getattr(home, name)) or name
    for home, names in (
        (nn.functional, ("linear", "grouped_mm")),
        (torch, ("matmul", "mm", "bmm", "addmm", "baddbmm", "_grouped_mm")),
        (Tensor, ("matmul", "mm", "bmm", "addmm", "baddbmm", "__matmul__")),
    )
    for name in names
    if hasattr(home, name)
}


def _product(op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The product that a call asks for; None if it is not one with a large window."""
    for reading in readings(op, args, kwargs, _axes):
        rows, weight = reading.rows, reading.weight
        if not is_large_window(weight) or _followed(weight) or not _dense(rows):
            continue
        given, matrix = reading.laid(rows), weight.permute(reading.axes)
        # What torch refuses, or makes of another type, is left to it.
        fits = given.shape[-1] == matrix.shape[-2] and rows.dtype is weight.dtype
        casts = torch.is_autocast_enabled(rows.device.type) and op not in GROUPED
        places = range(len(matrix)) if matrix.ndim == 3 else None
        ends = None if reading.ends is None else reading.ends.tolist()
        if not fits or casts or (places is not None and len(ends or given) != len(places)):
            continue
        shares = Shares(given, places, ends)
        made = [
            times(some, matrix if place is None else matrix[place]) for place, some in shares.each()
        ]
        out = reading.back(shares.together(made, matrix.shape[-1]))
        return out if reading.added is None else out + reading.added
    return None


def _axes(value: Any) -> int | None:
    return value.ndim if isinstance(value, Tensor) else None


def _written(value: Any) -> Any:
    """A value, with a window's numbers written out."""
    return value.contiguous() if isinstance(value, Tensor) and is_large_window(value) else value


def _dense(rows: Tensor) -> bool:
    return rows.layout is torch.strided and not rows.is_nested and not rows.is_meta


def _followed(matrix: Tensor) -> bool:
    """True if a matrix is differentiated by: its entries are not free in a vector."""
    tangent = torch.autograd.forward_ad.unpack_dual(matrix).tangent
    return matrix.requires_grad or tangent is not None
