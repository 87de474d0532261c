"""Findings as JSON under a name that says what they are, and back."""

import json
import pathlib
import re
import typing
from typing import TypeVar

from basis_probe.arguments import path as named
from basis_probe.brief import described
from basis_probe.files import no_file
from basis_probe.results.codec import Damaged, decode, encode, require_modest

FORMAT = 1
"""The version of the JSON form; a file with another one is refused."""

Value = TypeVar("Value")


def written(name: str, value: object, *, key: str = "") -> str:
    """JSON text of a value, under a name that says what it is."""
    return json.dumps({key or f"basis_probe_{name}": FORMAT, name: encode(value)}, indent=1)


def text_of(path: str | pathlib.Path, what: str) -> str:
    """The text of a .json file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if its name ends otherwise.
    """
    path = pathlib.Path(named("path", path))
    if path.suffix.lower() != ".json":
        raise ValueError(
            f"cannot load {path.name!r}: only .json holds the whole {what}; save it as one"
        )
    if not path.is_file():
        raise FileNotFoundError(no_file(path))
    # Editors of Windows put a mark in front.
    return path.read_text(encoding="utf-8-sig", errors="replace")


def holds(text: str) -> str:
    """What a text in JSON says that it holds, such as "report"; empty where it says nothing.

    Example:
        >>> holds('{"basis_probe_comparison": 1, "comparison": {}}')
        'comparison'
    """
    try:
        return _kind(json.loads(text))
    except (ValueError, RecursionError):
        return ""


def _kind(value: object) -> str:
    keys = [str(key) for key in value] if isinstance(value, dict) else []
    found = next((key for key in keys if re.fullmatch(r"basis_probe(_\w+)?", key)), "")
    return (found.removeprefix("basis_probe").strip("_") or "report") if found else ""


def read(name: str, kind: type[Value], text: str, *, key: str = "") -> Value:
    """The value that `written` wrote.

    Raises:
        ValueError: if the text is no such value, or of another format version; it names the field.
    """
    key = key or f"basis_probe_{name}"
    try:
        value = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ValueError(f"not a basis_probe {name}: not JSON ({why})") from None
    if not isinstance(value, dict) or key not in value:
        kind_of = _kind(value)
        other = f"; it holds a {kind_of.replace('_', ' ')}" if kind_of else ""
        raise ValueError(f"not a basis_probe {name}: the key {key!r} is missing{other}")
    found = typing.cast("dict[str, object]", value)
    if type(found[key]) is not int or found[key] != FORMAT:
        raise ValueError(
            f"the {name} has format {described(found[key])}, this version reads {FORMAT}; write it "
            "again with this version of basis_probe"
        )
    try:
        if name not in found:
            raise Damaged("it is missing", name)
        require_modest(name, found[name], len(text))
        return decode(kind, found[name])
    except Damaged as error:
        raise ValueError(f"not a basis_probe {name}: damaged at {error}") from error
