"""Values on one line, whatever they hold, and as a small table for a notebook.

What a dataclass writes of itself by default is all of it: hundreds of thousands of characters for a
report. A class that is decorated with `brief` names its fields and of each as much as a reader can
use; the numbers themselves are in the fields.
"""

from __future__ import annotations

import dataclasses
import enum
import html
import itertools
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar, cast

Kind = TypeVar("Kind", bound=type)

LINE = 1000
"""The most characters of a value on one line."""

FIELD = 120
"""The most characters of one of its fields."""

_ENTRIES, _ROWS = 4, 40
"""So many entries of a long list are shown on a line, and in a table."""


def brief(kind: Kind) -> Kind:
    """The class, whose values are at most `LINE` characters long as text.

    In a notebook they are tables, unless the class says itself how it is shown. What is shown are
    the fields, or what a method `_brief` of the class returns, as name -> value.

    Example:
        >>> import numpy as np
        >>> @brief
        ... @dataclasses.dataclass(frozen=True)
        ... class Found:
        ...     score: float
        ...     values: np.ndarray
        >>> Found(0.123456, np.zeros((10, 300)))
        Found(score=0.1235, values=array [10, 300])
        >>> Found(1.0, np.array([0.5, 2.0]))
        Found(score=1, values=array (0.5, 2))
    """
    shown = cast("Any", kind)
    shown.__repr__ = text
    if not hasattr(kind, "_repr_html_"):
        shown._repr_html_ = table
    return kind


def text(value: object) -> str:
    """The class and the fields of a value on one line.

    Fields at their default are left out, and those for which there is no room are counted.
    """
    parts: list[str] = []
    room = LINE - len(type(value).__name__)
    fields = _fields(value)
    for number, (name, entry) in enumerate(fields.items()):
        part = f"{name}={described(entry, exact=False)}"
        room -= len(part) + 2
        if room < 40:
            parts.append(f"and {len(fields) - number} more fields")
            break
        parts.append(part)
    return f"{type(value).__name__}({', '.join(parts)})"


def table(value: object) -> str:
    """The fields of a value as an HTML table, which needs no style and no script."""
    fields = _fields(value)
    rows = [(f"<b>{html.escape(name)}</b>", _cell(entry)) for name, entry in fields.items()]
    return f"<div><p><b>{html.escape(type(value).__name__)}</b></p>{_grid((), rows)}</div>"


def _cell(value: object) -> str:
    """A value as HTML: several values of one class as a table with a column for each field."""
    if isinstance(value, str):
        return html.escape(value if len(value) <= 4 * FIELD else f"{value[: 4 * FIELD]} …")
    several = cast("tuple[Any, ...]", value) if isinstance(value, list | tuple) else ()
    if not several or any(type(entry).__repr__ is not text for entry in several):
        return html.escape(described(value, 4 * FIELD, exact=False))
    shown = [_fields(entry) for entry in several[:_ROWS]]
    heads = list(dict.fromkeys(name for entry in shown for name in entry))
    rows = [
        [
            html.escape(described(entry[name], exact=False)) if name in entry else ""
            for name in heads
        ]
        for entry in shown
    ]
    more = len(several) - len(shown)
    return _grid(heads, rows) + (f"<p>and {more:,} more</p>" if more else "")


def _grid(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """An HTML table; the cells are HTML already, the heads are not."""
    left = 'style="text-align:left;vertical-align:top"'
    top = "".join(f"<th {left}>{html.escape(head)}</th>" for head in heads)
    body = "".join(
        f"<tr>{''.join(f'<td {left}>{cell}</td>' for cell in cells)}</tr>" for cells in rows
    )
    return (
        f"<table>{f'<thead><tr>{top}</tr></thead>' if heads else ''}<tbody>{body}</tbody></table>"
    )


def described(value: object, limit: int = FIELD, *, exact: bool = True) -> str:
    """A value in a few words.

    Args:
        value: anything.
        limit: the most characters.
        exact: whether numbers are shown with all their digits, as a message about an argument has
            them; else with four.

    Example:
        >>> described((2.0, 1.00001, float("nan"))), described({"a": 1}), described(range(9000))
        ('(2.0, 1.00001, nan)', "{'a': 1}", '(0, 1, 2, 3, and 8,996 more)')
        >>> described((2.0, 1.00001), exact=False)
        '(2, 1)'
    """
    shown = _described(value, exact)
    if len(shown) <= limit:
        return shown
    return f"{shown[: limit - 2]} ..."


def _described(value: object, exact: bool) -> str:
    if isinstance(value, bool | None | int):
        return repr(value)
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) and not exact else str(float(value))
    if isinstance(value, str):
        return repr(value)
    if isinstance(value, enum.Enum):
        return value.name
    for kind, library, name in (("array", "numpy", "ndarray"), ("tensor", "torch", "Tensor")):
        if _is_a(value, library, name):
            several = cast("Any", value)
            if several.ndim == 1 and len(several) <= _ENTRIES:
                shown = (_described(one, exact=False) for one in several.tolist())
                return f"{kind} ({', '.join(shown)})"
            return f"{kind} {list(several.shape)}"
    if _is_a(value, "torch.nn", "Module"):
        size = sum(parameter.numel() for parameter in cast("Any", value).parameters())
        return f"{type(value).__name__} with {size:,} parameters"
    if type(value).__repr__ is text:
        return f"{type(value).__name__}(...)"
    if isinstance(value, Mapping):
        entries = (f"{key!r}: {described(entry, 40, exact=exact)}" for key, entry in value.items())
        return f"{{{_listed(entries, len(value))}}}"
    if isinstance(value, list | tuple | range):
        shown = (described(entry, 40, exact=exact) for entry in value)
        return f"({_listed(shown, len(value))})"
    if callable(value) and hasattr(value, "__name__"):
        return str(value.__name__)
    shown = " ".join(repr(value).split())
    if dataclasses.is_dataclass(value) and len(shown) > FIELD:
        return f"{type(value).__name__}(...)"
    return shown


def _is_a(value: object, library: str, name: str) -> bool:
    """True for a value of a class of a library, which is not imported to ask."""
    return isinstance(value, getattr(sys.modules.get(library), name, ()))


def _listed(entries: Iterable[str], size: int) -> str:
    """The first entries, and how many more there are."""
    shown = ", ".join(itertools.islice(entries, _ENTRIES))
    return shown if size <= _ENTRIES else f"{shown}, and {size - _ENTRIES:,} more"


def _fields(value: object) -> Mapping[str, object]:
    """Name -> value of what is shown."""
    own = getattr(value, "_brief", None)
    if callable(own):
        return cast("Mapping[str, object]", own())
    if not dataclasses.is_dataclass(value):
        return {}
    return {
        field.name: getattr(value, field.name)
        for field in dataclasses.fields(value)
        if field.repr and not _is_default(field, getattr(value, field.name))
    }


def _is_default(field: dataclasses.Field[Any], value: object) -> bool:
    """True for a default that says nothing: None, nothing, or not known."""
    if isinstance(value, float) and math.isnan(value):
        return isinstance(field.default, float) and math.isnan(field.default)
    plain = value is None or isinstance(value, str | tuple | bool)
    return plain and type(value) is type(field.default) and value == field.default
