"""Frozen values as JSON and back, every number exact.

What can be written is what annotations can name: dataclasses, enums, groups, arrays, mappings and
tuples of these. A field that a file lacks has its default, so that older files stay readable.
"""

import ast
import dataclasses
import enum
import functools
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from basis_probe.algebra import groups as _groups
from basis_probe.algebra.groups import Group


class Exact:
    """Equality of every number, NaN included."""

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and encode(self) == encode(other)

    def __hash__(self) -> int:
        return hash(str(encode(self)))


def encode(value: object) -> Any:
    """The value as what JSON holds: numbers, texts, lists and objects.

    Raises:
        TypeError: for a value of another kind.

    Example:
        >>> encode((1.5, float("nan"), None))
        [1.5, 'nan', None]
    """
    if isinstance(value, np.ndarray):
        if value.ndim > 1:
            return [encode(row) for row in value]
        return [encode(float(entry)) for entry in value.tolist()]
    if isinstance(value, bool) or value is None or isinstance(value, int | str):
        return value
    if isinstance(value, float):
        # JSON has no NaN and no infinity; repr of a finite float is exact.
        return value if math.isfinite(value) else str(value)
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, Group):
        return repr(value)
    if isinstance(value, Mapping):
        return {str(key): encode(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [encode(entry) for entry in value]
    if dataclasses.is_dataclass(value):
        return {
            field.name: encode(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    raise TypeError(f"a report cannot hold {type(value).__name__}")


def decode(kind: Any, value: Any) -> Any:
    """The value of a given type that `encode` wrote.

    Args:
        kind: a class, or an annotation such as `tuple[int, ...]` or `float | None`.
        value: what was read.

    Raises:
        ValueError, TypeError, KeyError: if it is no such value.

    Example:
        >>> decode(tuple[float, ...], [1.5, "nan"])
        (1.5, nan)
    """
    origin = typing.get_origin(kind)
    if kind is Any or kind is object:
        return value
    if origin in (types.UnionType, typing.Union):
        several = typing.get_args(kind)
        if value is None and type(None) in several:
            return None
        (only,) = (one for one in several if one is not type(None))
        return decode(only, value)
    if origin is tuple:
        return tuple(decode(typing.get_args(kind)[0], entry) for entry in _listed(value))
    if origin is not None and issubclass(origin, Mapping):
        held = typing.get_args(kind)[1]
        return {str(key): decode(held, entry) for key, entry in value.items()}
    if kind is np.ndarray:
        return _array(value)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return kind[value]
    if isinstance(kind, type) and issubclass(kind, Group):
        return _group(value)
    if dataclasses.is_dataclass(kind):
        hints = _hints(typing.cast(type, kind))
        known = {f.name: f for f in dataclasses.fields(kind)}
        missing = [
            name
            for name, field in known.items()
            if name not in value
            and field.default is dataclasses.MISSING
            and field.default_factory is dataclasses.MISSING
        ]
        if missing:
            raise KeyError(missing[0])
        strange = [name for name in value if name not in known]
        if strange:
            raise KeyError(strange[0])
        read = {name: decode(hints[name], entry) for name, entry in value.items()}
        return typing.cast(Any, kind)(**read)
    if kind is float:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise TypeError(f"{value!r} is no number")
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _listed(value: object) -> Sequence[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is no list")
    return typing.cast("list[Any]", value)


def _array(value: object) -> np.ndarray:
    entries = _listed(value)
    if entries and isinstance(entries[0], list):
        return np.stack([_array(row) for row in entries])
    return np.array([float(entry) for entry in entries], dtype=np.float64)


def _group(text: str) -> Group:
    """The group whose repr is `text`, without evaluating anything."""

    def build(node: ast.expr) -> Any:
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.Tuple | ast.List):
            return tuple(build(entry) for entry in node.elts)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            name = node.func.id
            kind = getattr(_groups, name, None)
            if isinstance(kind, type) and issubclass(kind, Group):
                named = {word.arg: build(word.value) for word in node.keywords if word.arg}
                return kind(*(build(entry) for entry in node.args), **named)
        raise ValueError(f"not a group: {text!r}")

    group = build(ast.parse(text, mode="eval").body)
    if not isinstance(group, Group):
        raise ValueError(f"not a group: {text!r}")
    return group
