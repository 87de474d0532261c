"""Memory that was freed, given back to the system.

What large and small tensors leave behind when they are freed in turns is kept by the allocator of
the C library in pieces, of which the next large one finds none that is long enough: a process may
hold half as much again as lives in it.
"""

import ctypes
import functools
import os
import sys
from collections.abc import Callable

_GROWN = 2**23
"""By so many bytes a process must hold more than it did the last time."""

_most = 0


def give_back() -> None:
    """Gives pages that hold nothing to the system, if the process holds more than the last time.

    What is needed again and again is kept: to give it back each time would take time, and not lower
    the most that the process holds. It does nothing where the C library is none that can be asked.
    """
    global _most
    trim = _trim()
    held = 0 if trim is None else _held()
    if trim is not None and held >= _most + _GROWN:
        trim(0)
        _most = held


@functools.cache
def _trim() -> Callable[[int], int] | None:
    """What glibc gives pages back with; None for other libraries."""
    if not sys.platform.startswith("linux") or not os.path.exists(_STATM):
        return None
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):
        return None


def _held() -> int:
    """How many bytes of memory the process holds."""
    with open(_STATM, encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


_STATM = "/proc/self/statm"
