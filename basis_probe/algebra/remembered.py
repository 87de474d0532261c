"""What is drawn again and again with one seed, kept while a model is compared site by site.

Sites of one width are compared with the same turns. Within `remembering` what a draw made is kept
with the state of its generator before and after, so that the next site has the same numbers for
nothing, and all that is drawn later is what it would have been.
"""

import contextlib
import dataclasses
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Generator

import torch
from torch import Tensor

_ALL = 88 * 10**6
"""Bytes that are kept at most."""
_STALE = 2
"""What was not asked for among so many times as many draws as are kept goes for what is new.

Sites of one width ask for the same draws in the same order. If these are more than can be kept, and
what was used longest ago always went, each would be gone just before it is asked for again.
"""
_ONE = 2**22 + 2**16
"""Bytes of one draw above which it is not kept: of so large ones few would fit."""

_lock = threading.Lock()
_inside = threading.local()
"""Whether a thread makes what is kept: what that is made of need not be."""
_depth = 0
_size = 0
_asked = 0
"""How often something was asked for."""


@dataclasses.dataclass
class _Draw:
    made: tuple[Tensor, ...]
    after: Tensor
    last: int
    """When it was asked for last."""


_kept: "OrderedDict[tuple[object, bytes], _Draw]" = OrderedDict()


@contextlib.contextmanager
def remembering() -> Generator[None]:
    """Within the context draws are kept, in every thread; behind it nothing is."""
    global _depth, _size
    with _lock:
        _depth += 1
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if not _depth:
                _kept.clear()
                _size = 0


def remembered(
    generator: torch.Generator, kind: object, make: Callable[[], tuple[Tensor, ...]]
) -> tuple[Tensor, ...]:
    """What `make` draws with the generator, which is then as if it had been drawn.

    Args:
        generator: on the CPU.
        kind: what determines it besides the state of the generator.
        make: draws it; the tensors are not to be changed.

    Example:
        >>> one, other = (torch.Generator().manual_seed(0) for _ in range(2))
        >>> with remembering():
        ...     a = remembered(one, 3, lambda: (torch.randn(3, generator=one),))
        ...     b = remembered(other, 3, lambda: (torch.randn(3, generator=other),))
        >>> a[0] is b[0], torch.equal(one.get_state(), other.get_state())
        (True, True)
    """
    global _size, _asked
    if not _depth:
        return make()
    inside = getattr(_inside, "value", False)
    key = (kind, generator.get_state().numpy().tobytes())
    with _lock:
        _asked += 1
        found = _kept.get(key)
        if found is not None:
            found.last = _asked
            _kept.move_to_end(key)
    if found is not None:
        generator.set_state(found.after)
        return found.made
    _inside.value = True
    try:
        made = make()
    finally:
        _inside.value = inside
    if not inside:
        _keep(key, made, generator.get_state())
    return made


def _keep(key: tuple[object, bytes], made: tuple[Tensor, ...], after: Tensor) -> None:
    """Keeps a draw where there is room for it, or can be made."""
    global _size
    size = _bytes(made)
    if size > _ONE:
        return
    with _lock:
        if not _depth or key in _kept:
            return
        while _size + size > _ALL:
            oldest = next(iter(_kept))
            if _asked - _kept[oldest].last <= _STALE * len(_kept):
                return
            _size -= _bytes(_kept.pop(oldest).made)
        _kept[key] = _Draw(made, after, _asked)
        _size += size


def _renew() -> None:
    """A process that was forked while another thread held the lock must not wait for it."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)


def _bytes(tensors: tuple[Tensor, ...]) -> int:
    """So many bytes, with about as much as the states of a generator take."""
    return 2**13 + sum(tensor.numel() * tensor.element_size() for tensor in tensors)
