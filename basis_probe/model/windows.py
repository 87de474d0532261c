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

_STEP = 2
"""Not 1: of a square matrix the transpose is another one."""

_LARGE = 2**18
"""A matrix of fewer numbers is multiplied as it is."""

_PIECE = 2**22
"""So many numbers are transformed at once, at most."""


def drawn_window(shape: torch.Size, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """A window of a shape: rows that differ, of full rank, with entries of variance 1 / columns."""
    inner = shape[1:].numel()
    strides = (_STEP, *torch.empty(shape[1:], device="meta").stride())
    size = _STEP * (shape[0] - 1) + inner
    vector = torch.randn(size, generator=generator, dtype=torch.float32) * inner**-0.5
    return vector.to(dtype).as_strided(shape, strides)


def is_large_window(matrix: Tensor) -> bool:
    """True for a large matrix that is a window on a vector."""
    return (
        matrix.layout is torch.strided
        and matrix.ndim == 2
        and matrix.stride() == (_STEP, 1)
        and matrix.shape[1] > _STEP
        and matrix.numel() >= _LARGE
    )


def times(rows: Tensor, window: Tensor, *, transposed: bool) -> Tensor:
    """[..., output] in the type of the rows, computed in float64.

    Args:
        rows: [..., input].
        window: [height, width].
        transposed: True for rows @ window.T, False for rows @ window.
    """
    from scipy.fft import next_fast_len

    height, width = window.shape
    size = _STEP * (height - 1) + width
    vector = window.as_strided((size,), (1,), window.storage_offset()).double()
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
        made = _product(func, args, kwargs) if func in _PRODUCTS else None
        return func(*args, **kwargs) if made is None else made


_PRODUCTS = {
    nn.functional.linear,
    torch.matmul,
    torch.mm,
    torch.addmm,
    Tensor.matmul,
    Tensor.mm,
    Tensor.addmm,
    Tensor.__matmul__,
}


def _product(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Tensor | None:
    """The product that a call asks for; None if it is not one with a large window."""
    bias: Any = None
    if func is nn.functional.linear:
        names = ("input", "weight", "bias")[len(args) :]
        given = [*args, *(kwargs[name] for name in names if name in kwargs)]
        if len(given) < 2 or len(args) + len(kwargs) > len(given):
            return None
        rows, matrix, *rest = given
        bias, transposed = next(iter(rest), None), True
    elif not kwargs and len(args) == 2 + (func in (torch.addmm, Tensor.addmm)):
        *more, rows, matrix = args
        bias = next(iter(more), None)
        if not isinstance(matrix, Tensor) or not isinstance(rows, Tensor):
            return None
        transposed = not is_large_window(matrix)
        matrix = matrix.T if transposed and matrix.ndim == 2 else matrix
    else:
        return None
    if not isinstance(matrix, Tensor) or not isinstance(rows, Tensor):
        return None
    if not is_large_window(matrix) or _followed(matrix) or not _dense(rows):
        return None
    # What torch refuses, or makes of another type, is left to it.
    several = func in (nn.functional.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__)
    fits = rows.ndim == 2 or (several and rows.ndim > 0)
    fits = fits and rows.shape[-1] == matrix.shape[-1 if transposed else 0]
    if not fits or rows.dtype is not matrix.dtype or torch.is_autocast_enabled(rows.device.type):
        return None
    out = times(rows, matrix, transposed=transposed)
    return out if bias is None else out + bias


def _dense(rows: Tensor) -> bool:
    return rows.layout is torch.strided and not rows.is_nested and not rows.is_meta


def _followed(matrix: Tensor) -> bool:
    """True if a matrix is differentiated by: its entries are not free in a vector."""
    tangent = torch.autograd.forward_ad.unpack_dual(matrix).tangent
    return matrix.requires_grad or tangent is not None
