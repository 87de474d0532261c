"""The part of a network behind a place, run without what comes before it.

What a module returned for a batch says of which shape its answer is. Where nothing that the network
returns reads it but through the place, an answer of zeros does as well once the place's tensor is
replaced, and the module need not run.
"""

from collections import Counter
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from basis_probe.model.trace import STEPS, UNRECORDED, Node, Trace

Answer = Callable[[], Any]
"""Makes anew what stands in for the answer of a module."""


class _Unusual(Exception):
    """An answer that nothing can stand in for."""


def unread_before(model: nn.Module, trace: Trace, node: int) -> tuple[str, ...]:
    """The outermost modules of whose work nothing is read but through a tensor.

    Args:
        model: the network.
        trace: a pass of it.
        node: the tensor.

    Returns:
        Their paths; none where the network does things that were out of sight.
    """
    if any(made.op == UNRECORDED for made in trace.nodes):
        return ()
    needed = _needed(trace, node)
    inside: dict[str, bool] = {}
    for made in trace.nodes:
        for path in _around(made):
            unread = made.index < node and made.index not in needed
            inside[path] = inside.get(path, True) and unread
    calls = Counter(call.path for call in trace.calls)
    found: list[str] = []
    for path, module in model.named_modules():
        idle = inside.get(path, False) and calls[path] == 1
        if not path or not idle or any(path.startswith(f"{outer}.") for outer in found):
            continue
        if not any(_watched(part) for part in module.modules()):
            found.append(path)
    return tuple(found)


def _needed(trace: Trace, node: int) -> set[int]:
    """What the network's answer depends on, or what its code does, but for what comes before."""
    found: set[int] = set()
    waiting = [*trace.outputs, *trace.asked]
    while waiting:
        index = waiting.pop()
        if index < 0 or index in found:
            continue
        found.add(index)
        if index != node:
            waiting += trace.node(index).inputs
    return found


def _around(made: Node) -> list[str]:
    """The modules in which a tensor was made."""
    parts = made.module.split(STEPS)[0].split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


def _watched(module: nn.Module) -> bool:
    """True for a module that does other things when it is called than to compute its answer."""
    kinds = ("_forward_hooks", "_forward_pre_hooks")
    return any(vars(module).get(kind) for kind in kinds) or "forward" in vars(module)


class Answers:
    """What stands in for the answers of modules, as they come in one pass of a network.

    Args:
        model: the network.
        paths: the modules.

    Attributes:
        made: path -> what stands in for its answer.
        complete: False where that cannot be told of one of them.
    """

    def __init__(self, model: nn.Module, paths: tuple[str, ...]) -> None:
        self.model, self.paths = model, paths
        self.made: dict[str, Answer] = {}

    @property
    def complete(self) -> bool:
        return len(self.made) == len(self.paths)

    @contextmanager
    def noted(self) -> Generator[None]:
        """Within the context the answers of one pass are seen."""
        hooks = [
            self.model.get_submodule(path).register_forward_hook(self._noting(path))
            for path in self.paths
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _noting(self, path: str) -> Callable[..., None]:
        def note(_: nn.Module, args: Any, out: Any) -> None:
            try:
                self.made[path] = _like(out)
            except _Unusual:
                self.made.pop(path, None)

        return note


def _like(value: Any) -> Answer:
    """What makes zeros of the form of some value."""
    if isinstance(value, Tensor):
        if type(value) is not Tensor or value.layout != torch.strided:
            raise _Unusual
        shape, dtype, device = tuple(value.shape), value.dtype, value.device
        return lambda: torch.zeros(shape, dtype=dtype, device=device)
    if value is None or isinstance(value, bool | int | float | str):
        return lambda: value
    if type(value) in (tuple, list):
        parts = [_like(part) for part in value]
        kind = type(value)
        return lambda: kind([part() for part in parts])
    if type(value) is dict:
        entries = {name: _like(part) for name, part in value.items()}
        return lambda: {name: part() for name, part in entries.items()}
    raise _Unusual


@contextmanager
def standing_in(model: nn.Module, answers: Mapping[str, Answer]) -> Generator[None]:
    """Within the context modules give these answers and do not run."""
    modules = [model.get_submodule(path) for path in answers]
    try:
        for module, answer in zip(modules, answers.values(), strict=True):
            # An attribute of its own comes before the method of its class.
            vars(module)["forward"] = _giving(answer)
        yield
    finally:
        for module in modules:
            vars(module).pop("forward", None)


def _giving(answer: Answer) -> Callable[..., Any]:
    return lambda *args, **kwargs: answer()
