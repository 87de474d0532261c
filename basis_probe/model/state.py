"""What a model remembers besides its weights, kept as it was while passes of ours run."""

import collections
import copy
import functools
import inspect
import os
import random
import threading
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from basis_probe.errors import DataError
from basis_probe.model.offloaded import hooks
from basis_probe.model.precision import default_type, put_back_default_type
from basis_probe.model.trace import tensor_version, tensors_in

_LARGE = 2**26
"""Tensors of more bytes are not kept aside."""

_FROZEN = 2**28
"""Of weights that are not trained so many bytes are kept aside in all."""

_MOST = 100_000
"""So many objects are looked at, at most."""


@contextmanager
def kept(model: nn.Module) -> Generator[None]:
    """Within the context a model may change what it remembers; then everything is as it was.

    Attributes of modules, buffers, lists, dicts, sets, and the attributes of other objects that
    modules hold, are put back in place. Of weights only those that are not trained are kept aside,
    such as running averages: a forward pass leaves the others alone.
    """
    memory = _Memory()
    for _, hook in hooks(model):
        # The weights that lie there are as large as the model.
        memory.leave(hook.weights_map)
    for module in model.modules():
        memory.see(vars(module))
    try:
        yield
    finally:
        memory.put_back()


class _Memory:
    """What mutable objects held at one time."""

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._frozen = 0
        self._undo: list[Callable[[], None]] = []
        # Nothing that was seen may be freed, for its id would be used again.
        self._alive: list[Any] = []

    def see(self, value: Any) -> None:
        """Takes in an object and everything that it holds."""
        waiting = [value]
        while waiting and len(self._seen) < _MOST:
            here = waiting.pop()
            if id(here) in self._seen or (isinstance(here, nn.Parameter) and here.requires_grad):
                continue
            held = self._take(here)
            if held is not None:
                self._seen.add(id(here))
                self._alive.append(here)
                waiting.extend(held)

    def leave(self, value: Any) -> None:
        """Takes an object for one that does not change."""
        self._seen.add(id(value))
        self._alive.append(value)

    def put_back(self) -> None:
        """Gives every object what it held."""
        for undo in self._undo:
            undo()

    def _take(self, value: Any) -> list[Any] | None:
        """What an object holds; None if it cannot change or is not looked into."""
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, dict):
            before: dict[Any, Any] = dict(value)  # pyright: ignore[reportUnknownArgumentType]

            def refill(value: dict[Any, Any] = value, before: dict[Any, Any] = before) -> None:
                same = len(value) == len(before) and all(
                    a is b and value[a] is before[b] for a, b in zip(value, before, strict=True)
                )
                if not same:
                    value.clear()
                    value.update(before)

            self._undo.append(refill)
            return [*before.values()]
        if isinstance(value, list):
            entries: list[Any] = list(value)  # pyright: ignore[reportUnknownArgumentType]

            def restore(value: list[Any] = value, entries: list[Any] = entries) -> None:
                value[:] = entries

            self._undo.append(restore)
            return entries
        if isinstance(value, set):
            members: set[Any] = set(value)  # pyright: ignore[reportUnknownArgumentType]

            def again(value: set[Any] = value, members: set[Any] = members) -> None:
                value.clear()
                value.update(members)

            self._undo.append(again)
            return []
        if isinstance(value, collections.deque):
            row: list[Any] = list(value)  # pyright: ignore[reportUnknownArgumentType]

            def fill(value: Any = value, row: list[Any] = row) -> None:
                value.clear()
                value.extend(row)

            self._undo.append(fill)
            return row
        if isinstance(value, torch.Generator):
            position = value.get_state()
            self._undo.append(functools.partial(_set_generator, value, position))
            return []
        if isinstance(value, np.random.Generator):
            numbers = copy.deepcopy(value.bit_generator.state)
            self._undo.append(lambda: setattr(value.bit_generator, "state", numbers))
            return []
        if isinstance(value, random.Random):
            drawn = value.getstate()
            self._undo.append(lambda: value.setstate(drawn))
            return []
        if isinstance(value, bytearray):
            content = bytes(value)
            self._undo.append(lambda: value.__setitem__(slice(None), content))
            return []
        if isinstance(value, tuple):
            # The states of recurrent layers; what else stands in a tuple is the user's to fill.
            parts = cast("tuple[Any, ...]", value)
            return [entry for entry in parts if isinstance(entry, Tensor | tuple)]
        if isinstance(value, np.ndarray):
            array: np.ndarray[Any, Any] = value.copy()
            self._undo.append(lambda: np.copyto(value, array) if value.flags.writeable else None)
            return []
        looked_into = not isinstance(value, type | nn.Module) and not callable(value)
        if not looked_into:
            return None
        slots = {
            name: getattr(value, name) for name in _slots_of(type(value)) if hasattr(value, name)
        }
        for name, entry in slots.items():
            self._undo.append(functools.partial(_set_slot, value, name, entry))
        held = [vars(value)] if isinstance(getattr(value, "__dict__", None), dict) else []
        return [*slots.values(), *held] if slots or held else None

    def _tensor(self, tensor: Tensor) -> list[Any]:
        if tensor.is_meta or tensor.layout != torch.strided:
            return []
        frozen = tensor.nbytes if isinstance(tensor, nn.Parameter) else 0
        if tensor.nbytes > _LARGE or self._frozen + frozen > _FROZEN:
            # Such as the weights of a quantised layer, which do not change as it runs.
            version = tensor_version(tensor)

            def look() -> None:
                if tensor_version(tensor) != version:
                    warnings.warn(
                        f"the model wrote into a tensor of {tensor.nbytes:,} bytes that it holds "
                        "and does not train; it is too large to be kept aside, and was not put "
                        "back",
                        stacklevel=2,
                    )

            self._undo.append(look)
            return []
        self._frozen += frozen
        before = tensor.detach().clone()

        def write() -> None:
            with torch.no_grad():
                if tensor.shape == before.shape and not _equal(tensor, before):
                    tensor.copy_(before)

        self._undo.append(write)
        return []


def _set_generator(generator: torch.Generator, state: Tensor) -> None:
    generator.set_state(state)


@functools.lru_cache(maxsize=1024)
def _slots_of(kind: type) -> tuple[str, ...]:
    """The names of all slots of a class."""
    kinds = inspect.getmro(kind)
    return tuple(name for each in kinds for name in _names(getattr(each, "__slots__", ())))


def _names(slots: Any) -> tuple[str, ...]:
    """The names of slots, which may be one word."""
    found = (slots,) if isinstance(slots, str) else tuple(slots)
    return tuple(name for name in found if not name.startswith("__"))


def _set_slot(value: Any, name: str, entry: Any) -> None:
    if getattr(value, name, None) is not entry:
        object.__setattr__(value, name, entry)


def _equal(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one, other) or torch.equal(
        one.detach().nan_to_num(0.5), other.nan_to_num(0.5)
    )


def beside(model: nn.Module) -> nn.Module:
    """A copy of a model with the same weights and buffers, and attributes of its own.

    What is shared costs nothing; so is what turns words into tokens.

    Raises:
        Exception: whatever an object raises that cannot be copied.
    """
    memo: dict[int, Any] = {
        id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())
    }
    for module in model.modules():
        memo |= {id(value): value for name, value in vars(module).items() if "tokenizer" in name}
    return copied(model, memo)


def copied(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """A copy of a model, in which what it remembers of a pass is there by its value.

    Args:
        model: the model.
        memo: id -> what takes the place of an object in the copy.

    Raises:
        Exception: whatever an object raises that cannot be copied.
    """
    memo = {} if memo is None else memo
    memo |= {id(hook.weights_map): hook.weights_map for _, hook in hooks(model)}
    for module in model.modules():
        for value in vars(module).values():
            for tensor in tensors_in(value):
                if id(tensor) not in memo and tensor.grad_fn is not None:
                    # What is computed cannot be copied as it is.
                    memo[id(tensor)] = tensor.detach().clone()
    return copy.deepcopy(model, memo)


@contextmanager
def none_running(model: nn.Module) -> Generator[list[nn.Module]]:
    """Within the context it is noted which modules of a model run while a copy of it does.

    Yields:
        The modules that ran.
    """
    own = {id(module) for module in model.modules()}
    ran: list[nn.Module] = []
    here = threading.get_ident()

    def note(module: nn.Module, _: Any) -> None:
        if id(module) in own and threading.get_ident() == here:
            ran.append(module)

    handle = torch.nn.modules.module.register_module_forward_pre_hook(note)
    try:
        yield ran
    finally:
        handle.remove()


_users: dict[int, tuple[int, int]] = {}
"""Id of a module -> the thread that probes a model it is part of, and how often within itself."""
_NOBODY = -1
"""In place of a thread that a forked process does not have."""
_door = threading.Lock()


@contextmanager
def alone(model: nn.Module) -> Generator[None]:
    """Within the context no other thread may probe the model, or one that shares modules with it.

    Raises:
        DataError: if another thread does so now.
    """
    here, parts = threading.get_ident(), [*model.modules()]
    with _door:
        owners = {_users.get(id(part), (here, 0))[0] for part in parts} - {here}
        if _NOBODY in owners:
            raise DataError(
                f"this {type(model).__name__} or a part of it was being probed when this process "
                "was forked, and is left here as it was in the middle of that: load it anew, or "
                "fork at another time"
            )
        if owners:
            raise DataError(
                f"this {type(model).__name__} or a part of it is being probed in another thread, "
                "and two at a time would see each other's passes: wait for it, or give each thread "
                "a copy (copy.deepcopy)"
            )
        for part in parts:
            _users[id(part)] = (here, _users.get(id(part), (here, 0))[1] + 1)
    try:
        yield
    finally:
        with _door:
            for part in parts:
                owner, depth = _users.pop(id(part))
                if depth > 1:
                    _users[id(part)] = (owner, depth - 1)


class _Generators:
    """Where the generators are that all threads share."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
        self._python, self._numpy = random.getstate(), np.random.get_state()

    def put_back(self) -> None:
        torch.set_rng_state(self._cpu)
        if self._cuda is not None:
            torch.cuda.set_rng_state_all(self._cuda)
        random.setstate(self._python)
        np.random.set_state(self._numpy)


_drawing = threading.RLock()
"""Held by what draws of a seed: all threads share the generators."""
_found: list[_Generators] = []
"""Where each thread found the generators, that will put them back there."""


@contextmanager
def random_kept() -> Generator[None]:
    """Within the context random numbers may be drawn; then every generator is where it was.

    That is where it was before any thread came that is still within.
    """
    with _drawing:
        here, dtype = threading.get_ident(), default_type()
        # What another thread has drawn meanwhile is not where its user left them.
        before = next((one for one in _found if one.thread != here), None)
        mine = _Generators()
        if before is not None:
            mine = copy.copy(before)
            mine.thread = here
        _found.append(mine)
    try:
        yield
    finally:
        with _drawing:
            _found.remove(mine)
            mine.put_back()
        put_back_default_type(dtype)


def _forked() -> None:
    """A process that was forked has one thread: what others held is given up, or left behind."""
    global _door, _drawing, _users, _found
    here = threading.get_ident()
    _door, _drawing = threading.Lock(), threading.RLock()
    _users = {
        part: (owner if owner == here else _NOBODY, depth)
        for part, (owner, depth) in _users.items()
    }
    _found = [one for one in _found if one.thread == here]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


@contextmanager
def drawing(seed: int) -> Generator[None]:
    """Within the context torch draws the numbers of a seed; then its generator is where it was.

    One thread at a time does so, for all share that generator.
    """
    with _drawing, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
