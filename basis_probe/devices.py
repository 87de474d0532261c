"""Where tensors are made: those of the package on the CPU, a model's where its user makes them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import ParamSpec, TypeVar

import torch

_Given = ParamSpec("_Given")
_Made = TypeVar("_Made")

_users: ContextVar[torch.device | None] = ContextVar("users", default=None)


@contextmanager
def own_device() -> Generator[None]:
    """Within the context tensors are made on the CPU, whatever `torch.set_default_device` says.

    Random numbers are drawn there, so that one seed means the same alternatives on every device.
    """
    given = torch.get_default_device()
    if given.type == "cpu":
        yield
        return
    before = _users.set(given)
    try:
        with torch.device("cpu"):
            yield
    finally:
        _users.reset(before)


@contextmanager
def users_device() -> Generator[None]:
    """Within the context tensors are made where they were before `own_device`, as in a model."""
    given = _users.get()
    if given is None:
        yield
        return
    with given:
        yield


def on_own_device(door: Callable[_Given, _Made]) -> Callable[_Given, _Made]:
    """The function, inside of which tensors are made on the CPU.

    Example:
        >>> with torch.device("meta"):
        ...     on_own_device(torch.zeros)(2).device
        device(type='cpu')
    """

    @functools.wraps(door)
    def inside(*args: _Given.args, **kwargs: _Given.kwargs) -> _Made:
        with own_device():
            return door(*args, **kwargs)

    return inside
