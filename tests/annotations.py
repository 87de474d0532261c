"""Which annotations are checked while tests run, and how often.

Those that give shapes: pyright has checked the rest, and functions without arrays are called by
the million. Not those of functions inside functions: they are made anew whenever the outer one
runs, and the code that checks them would be compiled anew too. And not of one function without end:
after many calls in one test the next one shows nothing new.
"""

import collections
import functools
import re
from collections.abc import Callable
from typing import Any

import jaxtyping

CALLS_PER_TEST = 20

_jaxtyped: Any = jaxtyping.jaxtyped
_calls: collections.Counter[Any] = collections.Counter()

# As types say what they are, and as they are written where annotations are not evaluated.
_SHAPED = re.compile(r"jaxtyping\.|\b(Bool|Complex|Float|Inexact|Int|Num|Shaped|UInt)\d*\[")


def check_shapes() -> None:
    """Has the hook on imports use `_checked`; before anything that it decorates is imported."""
    jaxtyping.jaxtyped = _checked


def start_counting() -> None:
    """The next test begins."""
    _calls.clear()


def _checked(*given: Any, **settings: Any) -> Any:
    if given:
        return _jaxtyped(*given, **settings)

    def decorated(found: Any) -> Any:
        if not _gives_shapes(found):
            return found
        decorate = _jaxtyped(**settings)
        return decorate(found) if isinstance(found, type) else _at_first(found, decorate(found))

    return decorated


def _gives_shapes(found: object) -> bool:
    if "<locals>" in getattr(found, "__qualname__", ""):
        return False
    annotations: dict[str, object] = getattr(found, "__annotations__", {})
    return any(_SHAPED.search(str(annotation)) for annotation in annotations.values())


def _at_first(plain: Callable[..., Any], checked: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(plain)
    def called(*args: Any, **kwargs: Any) -> Any:
        _calls[called] += 1
        return (checked if _calls[called] <= CALLS_PER_TEST else plain)(*args, **kwargs)

    return called
