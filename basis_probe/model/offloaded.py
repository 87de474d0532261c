"""Weights that lie elsewhere and are fetched as they are used, one at a time.

Libraries that off-load a model leave empty parameters in its modules, and hooks that fetch the
numbers while a module runs. Within `at_hand` a module holds parameters instead that know their
size, type and device, and fetch their numbers for every call that needs them. So whatever looks at
a weight, or at a view of it, sees the same tensor before, while and after the model runs, and no
two layers are held at once.
"""

from __future__ import annotations

import functools
import itertools
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

Values = MutableMapping[str, Tensor | None]

_COPIES = frozenset({"aten::_unsafe_view", "aten::view.dtype", "aten::real", "aten::imag"})
"""Calls whose results are taken as numbers, though some show the memory of what they get."""


class Home:
    """Where the numbers of a weight lie.

    Attributes:
        name: the path of the weight.
        device: where it is used.
    """

    def __init__(self, name: str, fetch: Callable[[], Tensor], like: Tensor, device: Any) -> None:
        self.name, self._fetch, self._like = name, fetch, like
        self.device = torch.device(device)
        # Weights are told apart by where they lie; this one lies nowhere that is its own.
        self.place = torch.UntypedStorage(1)

    def numbers(self) -> Tensor:
        """The whole weight, on the device where it is used, in the type that the model gave it."""
        like, found = self._like, fetched(self._fetch())
        if found.shape != like.shape:
            raise ValueError(
                f"{self.name} is of shape {list(like.shape)}, and where it was off-loaded to lies "
                f"something of shape {list(found.shape)}"
            )
        found = found.to(device=self.device, dtype=like.dtype)
        if found.stride() == like.stride():
            return found
        ordered = torch.empty_strided(
            like.size(), like.stride(), dtype=found.dtype, device=found.device
        )
        return ordered.copy_(found)


class Stored(Tensor):
    """A weight that lies elsewhere, or a view of one; a call that needs its numbers fetches them.

    Views of it are as it is: they fetch nothing, and show that they are views of one weight.
    """

    home: Home
    form: Tensor

    @staticmethod
    def of(home: Home, form: Tensor, *, parameter: bool = False, learned: bool = False) -> Stored:
        """The weight of a home, or a view of it.

        Args:
            home: where it lies.
            form: a tensor without numbers that is as large and lies in memory as the view does.
            parameter: whether it is a parameter of the model.
            learned: whether derivatives by it are wanted.
        """
        return Stored(home, form, parameter, learned)

    def __new__(cls, home: Home, form: Tensor, parameter: bool, learned: bool) -> Stored:
        made = Tensor._make_wrapper_subclass(  # pyright: ignore
            cls,
            form.size(),
            strides=form.stride(),
            storage_offset=form.storage_offset(),
            dtype=form.dtype,
            layout=form.layout,
            device=home.device,
            requires_grad=learned,
        )
        made.home, made.form = home, form
        if parameter:
            # By this torch knows what is a parameter.
            made._is_param = True
        return made

    def __init__(self, home: Home, form: Tensor, parameter: bool, learned: bool) -> None:
        super().__init__()

    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore

    @classmethod
    def __torch_dispatch__(  # pyright: ignore
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        first = args[0] if args else None
        if isinstance(first, Stored) and _is_view(func):
            others = [t for t in pytree.tree_leaves((args[1:], kwargs)) if isinstance(t, Tensor)]
            if not others:
                forms = func(first.form, *args[1:], **kwargs)
                shown = functools.partial(Stored.of, first.home)
                return pytree.tree_map_only(Tensor, shown, forms)
        for place, argument in enumerate(func._schema.arguments):
            written = argument.alias_info is not None and argument.alias_info.is_write
            value = args[place] if place < len(args) else kwargs.get(argument.name)
            if written and any(isinstance(t, Stored) for t in pytree.tree_leaves(value)):
                raise RuntimeError(
                    "a weight that is off-loaded cannot be written to: what is fetched of it is "
                    "thrown away after the call"
                )
        given: Any = pytree.tree_map_only(Stored, fetched, (args, kwargs))
        return func(*given[0], **given[1])

    def untyped_storage(self) -> torch.UntypedStorage:
        """The same for all views of one weight, and for nothing else; it holds no numbers."""
        return self.home.place

    @property
    def data(self) -> Tensor:  # pyright: ignore
        return self.detach()

    def numpy(self, *, force: bool = False) -> Any:
        return fetched(self).numpy(force=force)

    def tolist(self) -> Any:
        return fetched(self).tolist()

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        numbers = fetched(self).clone()
        if isinstance(self, nn.Parameter):
            numbers = nn.Parameter(numbers, self.requires_grad)
        memo[id(self)] = numbers
        return numbers

    def __repr__(self, **_: object) -> str:
        return f"Stored({self.home.name}, {list(self.shape)}, {self.dtype})"


def _is_view(func: Any) -> bool:
    """True if what a call returns shows the memory of what it is given first."""
    if func._schema.name + (f".{name}" if (name := func._schema.overload_name) else "") in _COPIES:
        return False
    returned = func._schema.returns
    return bool(returned) and all(
        one.alias_info is not None and not one.alias_info.is_write for one in returned
    )


def fetched(tensor: Tensor) -> Tensor:
    """The numbers of a tensor, fetched once if they lie elsewhere; otherwise the tensor itself."""
    if not isinstance(tensor, Stored):
        return tensor.detach()
    whole, form = tensor.home.numbers(), tensor.form
    start = whole.storage_offset() + form.storage_offset()
    return whole.as_strided(form.size(), form.stride(), int(start))


def is_plain(tensor: Tensor) -> bool:
    """True for parameters whose numbers are what they show, in memory or elsewhere."""
    return type(tensor) in (nn.Parameter, Stored)


def is_away(tensor: Tensor) -> bool:
    """True for a tensor that has no numbers in memory: a copy of it would have to fetch them."""
    return tensor.is_meta or isinstance(tensor, Stored)


# --- hooks ----------------------------------------------------------------------------------------


def hooks(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """(path, hook) of all hooks that know where weights lie, as accelerate has them."""
    for path, module in model.named_modules():
        hook = vars(module).get("_hf_hook")
        for part in getattr(hook, "hooks", (hook,)):
            if getattr(part, "weights_map", None) is not None:
                yield path, part


def fetching(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """(path, hook) of the modules whose weights are fetched as they run."""
    return ((path, hook) for path, hook in hooks(model) if getattr(hook, "offload", False))


@contextmanager
def at_hand(model: nn.Module) -> Generator[None]:
    """Within the context weights that lie elsewhere can be read like others, one at a time.

    Hooks go on bringing inputs to the devices of modules; they fetch no weights meanwhile. Then
    everything is as it was. Weights of kinds of their own, as quantised ones, are left to the
    hooks.
    """
    modules = dict(model.named_modules())
    told = [(path, hook, [*_away(modules[path], hook)]) for path, hook in fetching(model)]
    known = _Homes(model, told)
    before: list[tuple[Values, str, Tensor | None]] = []
    held: list[Any] = []
    try:
        for path, hook, away in told:
            if not all(_is_ordinary(empty) for *_, empty in away):
                continue
            for inner in away:
                kept, _, leaf, empty = inner
                before.append((kept, leaf, empty))
                kept[leaf] = known.stored(path, hook, inner)
            hook.offload = False
            held.append(hook)
        yield
    finally:
        for hook in held:
            hook.offload = True
        for kept, leaf, empty in before:
            kept[leaf] = empty


_Inner = tuple[Values, str, str, Tensor]
"""Where a module holds a tensor, its path below the module with the hook, its name, and itself."""


def _away(module: nn.Module, hook: Any) -> Iterator[_Inner]:
    """The empty tensors of a module, and of those below it where the hook is for all of them."""
    inner = module.named_modules() if getattr(hook, "place_submodules", False) else [("", module)]
    for path, one in inner:
        for kept in (vars(one).get("_parameters", {}), vars(one).get("_buffers", {})):
            for leaf, tensor in kept.items():
                if tensor is not None and tensor.is_meta:
                    yield kept, f"{path}.{leaf}" if path else leaf, leaf, tensor


def _is_ordinary(empty: Tensor) -> bool:
    return type(empty) in (Tensor, nn.Parameter) and empty.layout is torch.strided


_HANDED: weakref.WeakKeyDictionary[
    nn.Module, weakref.WeakValueDictionary[tuple[str, int], Stored]
] = weakref.WeakKeyDictionary()
"""Model -> what stood for its weights, by their paths and by where they are fetched from.

As long as a record holds it, the same stands there again: so what was recorded in one context is
known in another.
"""


class _Homes:
    """The homes of the weights of a model: one for what its modules share."""

    def __init__(self, model: nn.Module, told: Iterable[tuple[str, Any, list[_Inner]]]) -> None:
        # What lies in memory may be shared with what does not.
        self._made: dict[str, Tensor] = {
            name: parameter for name, parameter in model.named_parameters() if not parameter.is_meta
        }
        self._tied = _tied(model, told, self._made)
        self._handed = _HANDED.setdefault(model, weakref.WeakValueDictionary())

    def stored(self, path: str, hook: Any, inner: _Inner) -> Tensor:
        _, name, _, empty = inner
        weights, whole = hook.weights_map, f"{path}.{name}" if path else name
        if _is_count(empty):
            # Models write to it as they run; what they write is thrown away with it.
            return Home(whole, lambda: weights[name], empty, _device_of(hook)).numbers().clone()
        key = self._tied[whole]
        if key not in self._made:
            # It holds on to where it is fetched from, which so cannot be another one of that id.
            place = whole, id(weights)
            before = self._handed.get(place)
            if before is None or not _stands_for(before, empty, hook):
                before = self._handed[place] = _standing(whole, name, empty, hook)
            self._made[key] = before
        return self._made[key]


def _standing(whole: str, name: str, empty: Tensor, hook: Any) -> Stored:
    """What stands for a weight of a path, which its module calls by a name."""
    fetch = functools.partial(hook.weights_map.__getitem__, name)
    return Stored.of(
        Home(whole, fetch, empty, _device_of(hook)),
        empty.detach(),
        parameter=isinstance(empty, nn.Parameter),
        learned=empty.requires_grad,
    )


def _device_of(hook: Any) -> Any:
    return "cpu" if hook.execution_device is None else hook.execution_device


def _is_count(empty: Tensor) -> bool:
    """True for whole numbers that a model keeps beside its weights, such as how often it ran."""
    kept = not isinstance(empty, nn.Parameter) and not empty.is_floating_point()
    return kept and empty.numel() <= _FEW and not empty.is_complex()


_FEW = 64
"""So many numbers are held in memory as they are."""


def _stands_for(before: Stored, empty: Tensor, hook: Any) -> bool:
    """True if what stood for a weight can stand for it still."""
    same = (before.shape, before.stride(), before.dtype, before.requires_grad) == (
        empty.shape, empty.stride(), empty.dtype, empty.requires_grad
    )  # fmt: skip
    kind = isinstance(before, nn.Parameter) is isinstance(empty, nn.Parameter)
    return same and kind and before.home.device == torch.device(_device_of(hook))


def _address(weights: Any, name: str) -> tuple[Any, ...] | None:
    """What tells where a weight lies; None where nothing does without a look at it."""
    while hasattr(weights, "dataset") and hasattr(weights, "prefix"):
        weights, name = weights.dataset, f"{weights.prefix}{name}"
    held = weights if isinstance(weights, dict) else getattr(weights, "state_dict", None)
    tensor = held.get(name) if isinstance(held, Mapping) else None
    if isinstance(tensor, Tensor):
        if not tensor.numel() or tensor.is_meta or tensor.layout is not torch.strided:
            return None
        form = tuple(tensor.shape), tensor.stride(), tensor.storage_offset()
        return tensor.untyped_storage().data_ptr(), *form, tensor.dtype
    index = getattr(weights, "index", None)
    entry = index.get(name) if isinstance(index, Mapping) else None
    if isinstance(entry, Mapping) and entry.get("safetensors_file"):
        return str(entry["safetensors_file"]), str(entry.get("weight_name", name))
    return None


def _tied(
    model: nn.Module,
    told: Iterable[tuple[str, Any, list[_Inner]]],
    present: Mapping[str, Tensor],
) -> dict[str, str]:
    """Path of a weight -> the first path of the same weight: its own, if no module shares it.

    Modules share what is one empty parameter still, what lies in one place, and what the model or
    its hooks say is tied where it holds the same numbers.
    """
    found: dict[str, str] = {}
    first: dict[Any, str] = {}
    declared = _declared(model)
    places = {
        place for _, hook, _ in told for place in getattr(hook, "tied_params_map", None) or ()
    }
    said: dict[str, tuple[Mapping[str, Tensor], str]] = {
        name: (present, name)
        for name, parameter in present.items()
        if name in declared or parameter.data_ptr() in places
    }
    for path, hook, away in told:
        for _, name, _, empty in away:
            whole = f"{path}.{name}" if path else name
            keys = (
                [id(empty), address]
                if (address := _address(hook.weights_map, name))
                else [id(empty)]
            )
            found[whole] = next((first[key] for key in keys if key in first), whole)
            first |= dict.fromkeys(keys, found[whole])
            if found[whole] == whole and (
                name in getattr(hook, "tied_params_names", ()) or whole in declared
            ):
                said[whole] = hook.weights_map, name
    alike = _alike(said)
    return {whole: alike.get(before, before) for whole, before in found.items()}


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)


def _declared(model: nn.Module) -> set[str]:
    """The paths of the parameters that transformers ties."""
    found: set[str] = set()
    for path, module in model.named_modules():
        ties = getattr(module, "all_tied_weights_keys", None)
        if isinstance(ties, Mapping):
            names = itertools.chain(ties.keys(), ties.values())
            found |= {f"{path}.{name}" if path else str(name) for name in names}
    return found


def _alike(said: Mapping[str, tuple[Any, str]]) -> dict[str, str]:
    """Of weights that are tied, those that hold the same numbers, by the first of them."""
    result: dict[str, str] = {}
    firsts: list[str] = []
    for whole, (weights, name) in said.items():
        tensor = weights[name]
        for other in firsts:
            source, place = said[other]
            if _equal(source[place], tensor):
                result[whole] = other
                break
        else:
            firsts.append(whole)
    return result
