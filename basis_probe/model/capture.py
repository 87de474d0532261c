"""Catching tensors while a model runs, by the address at which they were once seen."""

import threading
from collections import Counter
from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from basis_probe.devices import own_device
from basis_probe.model.experts import Expert, Routing
from basis_probe.model.places import Address, Place
from basis_probe.model.precision import default_type, put_back_default_type
from basis_probe.model.trace import (
    Follower,
    as_product,
    followed,
    in_steps,
    spelling,
    tensors_in,
    unfollowed,
)

Catcher = Callable[[Tensor], None]


class Enough(BaseException):
    """Raised by a catcher to end a forward pass in which everything wanted has been caught."""


@contextmanager
def catching(
    model: nn.Module, wanted: Mapping[Address, Catcher], roots: Collection[str] = ()
) -> Generator[None]:
    """Within the context, one forward pass hands every tensor at a wanted address to its catcher.

    Catchers run where the tensor is made: they see it before any later in-place operation, and
    after whatever hooks the user has put at the same place. Every hook is removed at the end,
    however it comes.

    Args:
        model: the model; it must be called once within the context.
        wanted: address -> what to do with the tensor there. At an expert these are the rows that
            reached it, of which `experts.origin_of` says where they come from.
        roots: modules that give the rows of their input out; of what is caught in them
            `experts.origin_of` says the same.
    """
    at_modules: dict[str, dict[Address, Catcher]] = {}
    at_functions: dict[tuple[str, int, str, int], dict[Address, Catcher]] = {}
    at_experts: dict[Expert, Catcher] = {}
    for address, catcher in wanted.items():
        if isinstance(address, Expert):
            at_experts[address] = catcher
        elif address.place in (Place.OUTPUT, Place.INPUT):
            at_modules.setdefault(address.path, {})[address] = catcher
        else:
            key = (address.path, address.call, address.op, address.ordinal)
            at_functions.setdefault(key, {})[address] = catcher
    watcher = _Watcher(at_functions)
    with ExitStack() as stack:
        counts: Counter[tuple[str, Place]] = Counter()
        modules = dict(model.named_modules())
        for path, catchers in at_modules.items():
            _hook(modules[path], path, catchers, counts, watcher, stack)
        if at_functions:
            stack.enter_context(followed(model, watcher))
            stack.enter_context(watcher)
        if at_experts or roots:
            stack.enter_context(Routing(model, at_experts, roots).following())
        yield


def _hook(
    module: nn.Module,
    path: str,
    catchers: dict[Address, Catcher],
    counts: Counter[tuple[str, Place]],
    watcher: "_Watcher",
    stack: ExitStack,
) -> None:
    here = threading.get_ident()

    def hand(place: Place, value: object) -> None:
        if threading.get_ident() != here:
            return  # Somebody else runs the model at the same time.
        call = counts[path, place]
        counts[path, place] += 1
        due = [address for address in catchers if (address.place, address.call) == (place, call)]
        if due:
            found = list(tensors_in(value))
            # What a catcher computes is no part of what the model computes.
            with watcher.resting():
                for address in due:
                    if address.index < len(found):
                        catchers[address](found[address.index])

    def before(_: nn.Module, args: Any, kwargs: Any) -> None:
        hand(Place.INPUT, (args, kwargs))

    def after(_: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        hand(Place.OUTPUT, out)

    places = {address.place for address in catchers}
    if Place.INPUT in places:
        stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
    if Place.OUTPUT in places:
        stack.callback(module.register_forward_hook(after, with_kwargs=True).remove)


class _Watcher(Follower):
    """Hands over what functions are given and return."""

    def __init__(self, wanted: dict[tuple[str, int, str, int], dict[Address, Catcher]]) -> None:
        super().__init__()
        self.wanted = wanted
        self.rests = False

    @contextmanager
    def resting(self) -> Generator[None]:
        """Within the context functions are not counted."""
        self.rests = True
        try:
            # To be told of a call takes longer than many a call does.
            with unfollowed(self), own_device():
                yield
        finally:
            self.rests = False

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        whole = None if self.rests else in_steps(func)
        if whole is not None:
            with self:
                return whole(*args, **kwargs)
        op = None if self.rests else spelling(func)
        if op is None:
            return func(*args, **kwargs)
        product = as_product(args) if op == "einsum" else None
        op = op if product is None else product[0]
        due = self.wanted.get(self.place(op), {})
        for address, catcher in due.items():
            if address.place is Place.ARGUMENT:
                catcher(list(tensors_in((args, kwargs)))[address.index])
        out = func(*args, **kwargs)
        made = list(tensors_in(out))
        if made:
            for address, catcher in due.items():
                if address.place is Place.FUNCTION:
                    catcher(made[address.index])
            self.step(op)
            if not isinstance(out, Tensor):
                for _ in made:
                    self.step("output")
        return out


_CONTAINERS = (list, dict, set, Counter)


class Settled:
    """Whether a model keeps anything of a forward pass, which decides if one may be cut short.

    A pass may be cut short once a whole one has left every attribute of every module as it was.
    What one that is cut short, or fails, leaves behind, such as a mark that it has begun, is put
    back.
    """

    def __init__(self) -> None:
        self.allowed = False
        self._grown = False

    def may_stop(self, model: nn.Module) -> bool:
        """True if the pass that comes next may be cut short."""
        return self.allowed and not _followed_by_others(model) and not _takes_locks(model)

    def run(self, model: nn.Module, run: Callable[[], object]) -> None:
        """Runs one pass, which may be cut short by `Enough`."""
        before, dtype = _attributes(model), default_type()
        try:
            run()
        except BaseException as error:
            for held, values, sizes in before:
                if any(len(values[name]) != size for name, size in sizes.items()):
                    # What a list has taken in cannot be told from what belongs there.
                    self._grown, self.allowed = True, False
                if held.keys() != values.keys() or any(held[n] is not values[n] for n in held):
                    held.clear()
                    held.update(values)
            put_back_default_type(dtype)
            if not isinstance(error, Enough):
                raise
        else:
            self.allowed = not self._grown and not _changed(before)


def _attributes(model: nn.Module) -> list[tuple[dict[str, Any], dict[str, Any], dict[str, int]]]:
    """Of every module: its attributes, what they are, and the lengths of those that may grow."""
    found: list[tuple[dict[str, Any], dict[str, Any], dict[str, int]]] = []
    for module in model.modules():
        # A script has no buffers of this kind.
        for held in (vars(module), vars(module).get("_buffers", {})):
            sizes = {
                name: len(value)
                for name, value in held.items()
                if isinstance(value, _CONTAINERS) and not name.startswith("_")
            }
            found.append((held, dict(held), sizes))
    return found


def _changed(before: list[tuple[dict[str, Any], dict[str, Any], dict[str, int]]]) -> bool:
    return any(
        held.keys() != values.keys()
        or any(held[name] is not value for name, value in values.items())
        or any(len(held[name]) != size for name, size in sizes.items())
        for held, values, sizes in before
    )


def _followed_by_others(model: nn.Module) -> bool:
    """True if somebody else's hooks wait for modules, which a pass cut short may not reach."""
    for module in model.modules():
        if getattr(module, "_hf_hook", None) is not None or getattr(module, "fwd_hooks", None):
            return True
        held = vars(module)
        kinds = ("_forward_hooks", "_forward_pre_hooks")
        hooks = [hook for kind in kinds for hook in held.get(kind, {}).values()]
        # TransformerLens hooks the norms of a model to see inside them.
        if any(not _module_of(hook).startswith("transformer_lens.") for hook in hooks):
            return True
    return False


def _takes_locks(model: nn.Module) -> bool:
    """True if a pass that is cut short might keep a lock that it took."""
    for module in model.modules():
        code = getattr(getattr(type(module), "forward", None), "__code__", None)
        if "acquire" in getattr(code, "co_names", ()):
            return True
        if any(hasattr(held, "acquire") for held in vars(module).values()):
            return True
    return False


def _module_of(hook: object) -> str:
    return str(getattr(getattr(hook, "func", hook), "__module__", ""))
