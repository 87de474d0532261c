"""Signals sent at counted calls of the package, and what a run must leave as it was."""

from __future__ import annotations

import inspect
import pathlib
import random
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import nn

import basis_probe as bp
from basis_probe.interrupts import SIGNALS

HOME = str(pathlib.Path(bp.__file__).parent)


class Strikes:
    """A context that counts calls of the package, and sends a signal at one or two of them.

    The second comes so many calls after the first. An exception takes away the profiler that counts
    to the first, so that another of the interpreter's two counters counts to the second.

    Args:
        number: the signal.
        at: the call at which the first is sent; 0 for none.
        then: calls between both; 0 for one signal alone.
    """

    def __init__(self, number: int = signal.SIGINT, at: int = 0, then: int = 0) -> None:
        self.number, self.at, self.then, self.calls, self.after = number, at, then, 0, 0

    def __enter__(self) -> Strikes:
        sys.setprofile(self._count)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        sys.settrace(None)

    def _count(self, frame: FrameType, event: str, _: object) -> None:
        # A generator is also called to be closed, where Python swallows what is raised.
        generator = frame.f_code.co_flags & inspect.CO_GENERATOR
        if event == "call" and frame.f_code.co_filename.startswith(HOME) and not generator:
            self.calls += 1
            if self.calls == self.at:
                if self.then:
                    sys.settrace(self._again)
                signal.raise_signal(self.number)

    def _again(self, frame: FrameType, event: str, _: object) -> None:
        generator = frame.f_code.co_flags & inspect.CO_GENERATOR
        if frame.f_code.co_filename.startswith(HOME) and not generator:
            self.after += 1
            if self.after == self.then:
                sys.settrace(None)
                signal.raise_signal(self.number)


def moments(count: int, total: int, seed: int = 0) -> Iterator[tuple[int, int]]:
    """(call of the first signal, calls to the second), spread over a run; every other is double."""
    chance = random.Random(seed)
    for number in range(count):
        yield 1 + number * (total - 1) // count, chance.randrange(1, 400) if number % 2 else 0


class Counted:
    """Data that know how many of their batches are done: all before the one asked for last."""

    def __init__(self, data: Iterable[Any]) -> None:
        self.data, self.done = list(data), 0

    def __iter__(self) -> Iterator[Any]:
        for number, batch in enumerate(self.data):
            self.done = max(self.done, number)
            yield batch
        self.done = len(self.data)


@contextmanager
def unchanged(model: nn.Module, *, besides: str = "") -> Iterator[None]:
    """Fails if the context leaves hooks, modes, weights, random states or handlers as others."""

    def state() -> dict[str, Any]:
        modules = list(model.modules())
        return {
            "handlers": [signal.getsignal(number) for number in SIGNALS],
            "modes": [module.training for module in modules],
            "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in modules],
            "attributes": [sorted(vars(module)) for module in modules],
            "type": torch.get_default_dtype(),
            "gradients": torch.is_grad_enabled(),
            "threads of torch": torch.get_num_threads(),
            "functions watched": torch.overrides._len_torch_function_stack(),
            "threads": [t.name for t in threading.enumerate() if "basis_probe" in t.name],
            "random": random.getstate(),
            "random in numpy": str(np.random.get_state()),
            "random in torch": torch.get_rng_state().tolist(),
            "weights": {name: tensor.tolist() for name, tensor in model.state_dict().items()},
        }

    before = state()
    yield
    after = state()
    changed = [name for name in before if name != besides and before[name] != after[name]]
    assert not changed, changed
