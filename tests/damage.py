"""What damaged files may do: raise an error of our own in little time and memory, or be read."""

from __future__ import annotations

import ast
import functools
import pathlib
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import basis_probe as bp

HOME = str(pathlib.Path(bp.__file__).parent)
SECONDS, GROWTH = 2.0, 200 * 2**20

Value = TypeVar("Value")


def memory() -> int:
    """The most memory that this process has had, in bytes."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


@functools.cache
def _raising(path: str) -> frozenset[int]:
    """The lines of a file on which a `raise` stands."""
    tree = ast.parse(pathlib.Path(path).read_text(encoding="utf-8"))
    return frozenset(
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.Raise)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    )


def require_own(error: BaseException) -> None:
    """Fails for an error that the package did not raise itself, in words."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{last.filename}:{last.lineno}: {type(error).__name__}: {str(error)[:300]}"
    assert last.filename.startswith(HOME), where
    assert last.lineno in _raising(last.filename), f"no raise of ours: {where}"
    assert len(str(error)) < 10_000, where


def refused(read: Callable[[], Value], number: int) -> Value | None:
    """What is read; None where it is refused, by an error of our own and in little time."""
    with prompt(number):
        try:
            found = read()
        except (ValueError, OSError) as error:
            require_own(error)
            found = None
    return found


@contextmanager
def prompt(number: int, seconds: float = SECONDS) -> Iterator[None]:
    """Fails if the context takes long: work is counted, so that a busy machine does not count."""
    start, work = time.monotonic(), time.process_time()
    yield
    assert time.process_time() - work < seconds, number
    assert time.monotonic() - start < 20 * seconds, number
