"""A device that is not there: tensors that count as lying on it, and may not meet others.

Numbers are computed on the CPU, so that they are those of the CPU to the last digit; what is tried
is whether code keeps to one device, and how often it waits for it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("cuda", 0)

_WAITING = frozenset({"item", "tolist", "__bool__", "__int__", "__float__", "__index__", "cpu"})
_HOME = frozenset({"item", "tolist", "__bool__", "__int__", "__float__", "__index__", "__len__"})


class MixedDevices(RuntimeError):
    """As torch says it where tensors of two devices meet."""


class Elsewhere(TorchFunctionMode):
    """Within it tensors may lie on `DEVICE`; what is made of them lies there too.

    Attributes:
        waits: how often a number was fetched.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits = 0
        self._away: dict[int, Tensor] = {}

    def is_away(self, value: object) -> bool:
        """Whether a tensor lies there."""
        return isinstance(value, Tensor) and id(value) in self._away

    def send(self, value: Tensor) -> Tensor:
        """The tensor, as one that lies there."""
        return self._sent(value.detach().clone())

    def _sent(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            self._away[id(value)] = value
        return value

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        owner = getattr(getattr(func, "__self__", None), "__name__", "")
        first = args[0] if args else None
        if name == "__get__" and owner in ("device", "is_cuda", "is_cpu") and self.is_away(first):
            return {"device": DEVICE, "is_cuda": True, "is_cpu": False}[owner]
        if name in _WAITING and self.is_away(first):
            self.waits += 1
        if name in _HOME:
            return func(*args, **kwargs)
        if name == "cpu":
            return func(*args, **kwargs).clone() if self.is_away(first) else func(*args, **kwargs)
        if name in ("numpy", "__array__") and self.is_away(first):
            raise TypeError("a tensor that lies elsewhere is no array")
        if name in ("to", "type_as"):
            return self._moved(func, args, kwargs)
        if name in ("pin_memory", "record_stream"):
            return first
        wanted = kwargs.get("device")
        generator = kwargs.get("generator")
        if wanted is not None and torch.device(wanted).type == DEVICE.type:
            if generator is not None:
                raise MixedDevices(f"{name} draws elsewhere with a generator of the CPU")
            del kwargs["device"]
            return tree_map(self._sent, func(*args, **kwargs))
        home_wanted = wanted is not None
        given = [v for v in tree_flatten((args, kwargs))[0] if isinstance(v, Tensor)]
        away = [value for value in given if self.is_away(value)]
        at_home = [value for value in given if not self.is_away(value)]
        if away and any(self._meets(name, value, args) for value in at_home):
            sizes = [tuple(value.shape) for value in given]
            raise MixedDevices(f"{name} was given tensors of two devices, of the shapes {sizes}")
        if away and name in ("copy_", "__setitem__"):
            return func(*args, **kwargs)
        made = func(*args, **kwargs)
        if not away or home_wanted or (name == "__get__" and owner in ("shape", "dtype")):
            return made
        return tree_map(self._sent, made)

    def _meets(self, name: str, value: Tensor, args: Any) -> bool:
        """Whether a tensor that lies at home may not meet others here."""
        if value.ndim == 0 or name == "copy_":
            return False
        # What lies elsewhere is looked up by numbers at home, but not the other way round.
        if name in ("__getitem__", "__setitem__") and self.is_away(args[0]):
            return name == "__setitem__" and value is args[-1]
        return True

    def _moved(self, func: Any, args: Any, kwargs: Any) -> Any:
        first, target = args[0], None
        for value in (*args[1:], *kwargs.values()):
            if isinstance(value, Tensor):
                target = DEVICE if self.is_away(value) else torch.device("cpu")
            elif isinstance(value, torch.device):
                target = value
            elif isinstance(value, str):
                target = torch.device(value)
        if target is None:
            made = func(*args, **kwargs)
            return self._sent(made) if self.is_away(first) else made
        dtype = next((v for v in (*args[1:], *kwargs.values()) if isinstance(v, torch.dtype)), None)
        if dtype is None:
            like = next((v for v in (*args[1:], *kwargs.values()) if isinstance(v, Tensor)), first)
            dtype = like.dtype
        here, there = self.is_away(first), target.type == DEVICE.type
        if here and not there:
            self.waits += 1
        made = first.to(dtype)
        if here != there or (kwargs.get("copy") and made is first):
            made = made.clone()
        return self._sent(made) if there else made
