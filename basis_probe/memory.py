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

_GROWN = 2**26
"""By so many bytes a process must have grown before it is worth the while."""

_before = 0


def give_back() -> None:
    """Gives pages that hold nothing to the system, if the process has grown since the last time.

    It does nothing where the C library is none that can be asked.
    """
    global _before
    trim = _trim()
    if trim is None or _held() < _before + _GROWN:
        return
    trim(0)
    _before = _held()


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
