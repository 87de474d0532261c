"""Findings as JSON under a name that says what they are, and back."""

import json
from typing import TypeVar

from basis_probe.results.codec import decode, encode

FORMAT = 1
"""The version of the JSON form; a file with another one is refused."""

Value = TypeVar("Value")


def written(name: str, value: object) -> str:
    """JSON text of a value, under a name that says what it is."""
    return json.dumps({f"basis_probe_{name}": FORMAT, name: encode(value)}, indent=1)


def read(name: str, kind: type[Value], text: str) -> Value:
    """The value that `written` wrote.

    Raises:
        ValueError: if the text is no such value, or of another format version.
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not a basis_probe {name}: not JSON ({error})") from error
    key = f"basis_probe_{name}"
    if not isinstance(value, dict) or key not in value:
        raise ValueError(f"not a basis_probe {name}: the key {key!r} is missing")
    if value[key] != FORMAT:
        raise ValueError(
            f"the {name} has format {value[key]!r}, this version reads {FORMAT}; write it again "
            "with this version of basis_probe"
        )
    try:
        return decode(kind, value[name])
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        raise ValueError(f"not a basis_probe {name}: damaged at {error}") from error
