"""Putting another tensor in the place of one while a model runs."""

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from basis_probe.devices import on_own_device
from basis_probe.model.places import Address, Place
from basis_probe.model.trace import Follower, Trace, followed, spelling, tensors_in

Change = Callable[[Tensor], Tensor]


class NotReplaceable(ValueError):
    """A place whose tensor cannot be replaced."""


@contextmanager
def replacing(
    model: nn.Module, address: Address, change: Change, *, alone: bool = False
) -> Generator[None]:
    """Within the context, one forward pass goes on with `change` of the tensor at an address.

    Everything that reads the tensor later reads what took its place. Hooks are removed at the end,
    however it comes.

    Args:
        model: the model; it must be called once within the context.
        address: where the tensor is, at a module's end or what a function returns.
        change: what takes its place.
        alone: True where a module that is given the tensor is known to be its only reader.

    Raises:
        NotReplaceable: if others may have read the tensor under another name.
    """
    change = on_own_device(change)
    if address.place is Place.OUTPUT:
        with _at_module(model, address, change):
            yield
    elif address.place is Place.INPUT and alone:
        with _given_to(model, address, change):
            yield
    elif address.place is Place.FUNCTION:
        replacer = _Replacer(address, change)
        with followed(model, replacer), replacer:
            yield
    else:
        raise NotReplaceable(
            "what a module or a function is given may be read by others too: name the place where "
            "it is made"
        )


@contextmanager
def _at_module(model: nn.Module, address: Address, change: Change) -> Generator[None]:
    module = dict(model.named_modules())[address.path]
    calls = 0

    def after(_: nn.Module, args: Any, kwargs: Any, out: Any) -> Any:
        nonlocal calls
        due = calls == address.call
        calls += 1
        return _with(out, address.index, change) if due else None

    with ExitStack() as stack:
        stack.callback(module.register_forward_hook(after, with_kwargs=True).remove)
        yield


@contextmanager
def _given_to(model: nn.Module, address: Address, change: Change) -> Generator[None]:
    module = dict(model.named_modules())[address.path]
    calls = 0

    def before(_: nn.Module, args: Any, kwargs: Any) -> Any:
        nonlocal calls
        due = calls == address.call
        calls += 1
        if not due:
            return None
        keys, several = list(kwargs), (*args, *kwargs.values())
        changed = _with(several, address.index, change)
        return changed[: len(args)], dict(zip(keys, changed[len(args) :], strict=True))

    with ExitStack() as stack:
        stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
        yield


def read_alone(trace: Trace, address: Address, node: int) -> bool:
    """True if a module that is given a tensor is the only one that reads it."""
    inside = f"{address.path}."
    return address.place is Place.INPUT and all(
        f"{reader.module}.".startswith(inside) for reader in trace.nodes if node in reader.inputs
    )


def _with(value: Any, index: int, change: Change) -> Any:
    """What a module returned, one of its tensors replaced."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple | list):
        entries: list[Any] = []
        seen = 0
        for entry in value:
            count = len(list(tensors_in(entry)))
            inside = seen <= index < seen + count
            entries.append(_with(entry, index - seen, change) if inside else entry)
            seen += count
        if isinstance(value, list):
            return entries
        made: Any = type(value)
        return made(*entries) if hasattr(value, "_fields") else tuple(entries)
    raise NotReplaceable(
        f"the module returns a {type(value).__name__}, in which no tensor can be replaced: name a "
        "place further inside"
    )


class _Replacer(Follower):
    """Changes what one call of one function returns."""

    def __init__(self, address: Address, change: Change) -> None:
        super().__init__()
        self.wanted = (address.path, address.call, address.op, address.ordinal)
        self.change = change
        self.busy = False

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        op = None if self.busy else spelling(func)
        if op is None:
            return func(*args, **kwargs)
        due = self.place(op) == self.wanted
        out = func(*args, **kwargs)
        made = list(tensors_in(out))
        if made:
            self.step(op)
            if not isinstance(out, Tensor):
                for _ in made:
                    self.step("output")
        if not due or not isinstance(out, Tensor):
            return out
        # What the change computes is no part of what the model computes.
        self.busy = True
        try:
            return self.change(out)
        finally:
            self.busy = False
