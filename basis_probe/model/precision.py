"""Running a model in float64 from end to end, whatever its modules cast to."""

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from basis_probe.model.batches import Batch
from basis_probe.model.trace import spelling, tensors_in, unfollowed
from basis_probe.parallel import OneForAll

_LOWER = (torch.float32, torch.float16, torch.bfloat16)

_outside: torch.dtype | None = None
"""The default type to put back; None where no thread has made it float64."""


def _make_double() -> Callable[[], None]:
    global _outside
    _outside = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    return _put_back


def _put_back() -> None:
    global _outside
    if _outside is not None:
        torch.set_default_dtype(_outside)
        _outside = None


_doubling = OneForAll(_make_double)


class _NoRounding(TorchFunctionMode):
    """Casts to a lower precision give float64 instead."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if kwargs.get("dtype") in _LOWER and any(
            tensor.dtype is torch.float64 for tensor in tensors_in((args, kwargs))
        ):
            kwargs = {**kwargs, "dtype": torch.float64}
        if getattr(func, "__name__", "") in ("_grouped_mm", "grouped_mm"):
            exact = _grouped(*args, **kwargs)
            if exact is not None:
                return exact
        out = func(*args, **kwargs)
        if isinstance(out, Tensor) and out.dtype in _LOWER and spelling(func) == "to":
            exact = args[0] if isinstance(args[0], Tensor) else out
            return exact.to(device=out.device, dtype=torch.float64)
        return out


def _grouped(
    a: Tensor, b: Tensor, *rest: object, offs: Tensor | None = None, **settings: object
) -> Tensor | None:
    """The product of rows [row, in] with one matrix [in, out] for each group, in float64.

    The kernels of torch know lower precisions only. None for what they are not given here.
    """
    plain = not rest and all(value is None for value in settings.values())
    if a.dtype is not torch.float64 or offs is None or not plain or (a.ndim, b.ndim) != (2, 3):
        return None
    ends = offs.tolist()
    out = a.new_zeros(len(a), b.shape[-1])
    for group, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        out[start:end] = a[start:end] @ b[group].to(a)
    return out


@contextmanager
def in_double() -> Generator[None]:
    """Within the context nothing is rounded to less than float64 on the way through a model.

    Norms of many libraries compute in float32 whatever they are given; what a change of weights
    does to the function could not be told from their rounding.
    """
    with _doubling.within(), _NoRounding():
        yield


def rounding_nothing() -> AbstractContextManager[None]:
    """A context for what rounds nothing by itself, of which `in_double` need not be told."""
    return unfollowed(_NoRounding)


def default_type() -> torch.dtype:
    """The default type of new tensors, as it is outside of every `in_double`."""
    with _doubling.gate:
        return _outside or torch.get_default_dtype()


def put_back_default_type(dtype: torch.dtype) -> None:
    """Sets the default type of new tensors to what `default_type` was.

    While a thread is within `in_double` it stays float64, and that puts it back.
    """
    global _outside
    with _doubling.gate:
        if _outside is not None:
            _outside, dtype = dtype, torch.float64
        torch.set_default_dtype(dtype)


def doubled(batch: Batch) -> Batch:
    """The batch with its floating-point numbers in float64."""

    def double(value: Any) -> Any:
        floating = isinstance(value, Tensor) and value.is_floating_point()
        return value.double() if floating else value

    return batch.mapped(double)


def with_noise(batch: Batch) -> Batch:
    """The batch with standard normal numbers for examples, if they are numbers; tokens stay.

    What is true of an architecture is true for every input, and what is false shows on a generic
    one: on an image that is black all over it may not.
    """
    if not batch.inputs.is_floating_point():
        return batch
    generator = torch.Generator().manual_seed(0)
    given = batch.inputs
    noise = torch.randn(given.shape, generator=generator, dtype=torch.float64).to(given)

    return batch.mapped(lambda value: noise if value is given else value)
