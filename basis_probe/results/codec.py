"""Frozen values as JSON and back, every number exact.

What can be written is what annotations can name: dataclasses, enums, groups, arrays, mappings and
tuples of these. A field that a file lacks has its default, so that older files stay readable.

Arrays of many numbers are `{"float64": text, "shape": [8192]}`, the text being the base64 of the
numbers, little-endian: `numpy.frombuffer(base64.b64decode(text), "<f8")`. Under "float32" are those
that lose nothing there; where " zlib" follows, what was decoded is to be decompressed.
"""

import ast
import base64
import binascii
import dataclasses
import enum
import functools
import inspect
import math
import types
import typing
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from basis_probe.algebra import groups as _groups
from basis_probe.algebra.groups import Group
from basis_probe.brief import described


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
        numbers = value.astype(np.float64)
        if numbers.size >= _MANY:
            return _packed(numbers)
        if value.ndim > 1:
            return [encode(row) for row in value]
        finite = bool(np.isfinite(numbers).all())
        return numbers.tolist() if finite else [encode(entry) for entry in numbers.tolist()]
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


_MANY = 256
"""Arrays of so many numbers are written as base64."""
_SAMPLE, _WORTH = 4096, 0.6
"""Bytes of which it is tried whether compressing brings them below that share."""
_KINDS = {"float32": "<f4", "float64": "<f8"}


def _packed(numbers: np.ndarray) -> dict[str, Any]:
    """Numbers as base64: as many bytes as they need, and fewer where they repeat."""
    # Equal arrays have one text: there is one NaN, and one zero.
    plain = np.where(np.isnan(numbers), np.nan, numbers + 0.0)
    with np.errstate(over="ignore"):
        small = plain.astype("<f4")
    name = "float32" if np.array_equal(small.astype("<f8"), plain, equal_nan=True) else "float64"
    data = (small if name == "float32" else plain.astype("<f8")).tobytes()
    if len(zlib.compress(data[:_SAMPLE], 1)) < _WORTH * len(data[:_SAMPLE]):
        name, data = f"{name} zlib", zlib.compress(data, 6)
    return {name: base64.b64encode(data).decode("ascii"), "shape": [*numbers.shape]}


class Damaged(ValueError):
    """What was read is no such value.

    Attributes:
        why: what is wrong.
        path: the names of the fields that lead to it, the outermost first.
    """

    def __init__(self, why: str, *path: str) -> None:
        super().__init__(f"{'.'.join(path)!r}: {why}" if path else why)
        self.why, self.path = why, path


_FARTHEST = 2**64
"""Whole numbers beyond it are those of no run."""

_WORDS = ("nan", "inf", "-inf")


def decode(kind: Any, value: Any) -> Any:
    """The value of a given type that `encode` wrote.

    Args:
        kind: a class, or an annotation such as `tuple[int, ...]` or `float | None`.
        value: what was read.

    Raises:
        Damaged: if it is no such value; it names the field.

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
        held = typing.get_args(kind)
        entries = _listed(value)
        if held[-1] is not ... and len(held) != len(entries):
            raise Damaged(f"it has {len(entries)} entries and needs {len(held)}")
        kinds = [held[0]] * len(entries) if held[-1] is ... else held
        return tuple(_inside(str(n), kinds[n], entry) for n, entry in enumerate(entries))
    if origin is not None and issubclass(origin, Mapping):
        held = typing.get_args(kind)[1]
        return {str(key): _inside(str(key), held, entry) for key, entry in _named(value).items()}
    if kind is np.ndarray:
        return _array(value)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        if not isinstance(value, str) or value not in kind.__members__:
            raise Damaged(f"{described(value)} is none of {', '.join(kind.__members__)}")
        return kind[value]
    if isinstance(kind, type) and issubclass(kind, Group):
        return _group(value)
    if dataclasses.is_dataclass(kind):
        return _fields(typing.cast(type, kind), _named(value))
    if kind is float:
        return _number(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise Damaged(f"{described(value)} is no {kind.__name__}")
    if kind is int and abs(value) >= _FARTHEST:
        raise Damaged("it is larger than any number of a run")
    return value


def _inside(name: str, kind: Any, value: Any) -> Any:
    """The value of a field; what is wrong with it bears its name."""
    try:
        return decode(kind, value)
    except Damaged as error:
        raise Damaged(error.why, name[:80], *error.path) from None


def _fields(kind: type, value: Mapping[str, Any]) -> Any:
    hints = _hints(kind)
    known = {field.name: field for field in dataclasses.fields(kind)}
    for name, field in known.items():
        needed = field.default is dataclasses.MISSING
        if name not in value and needed and field.default_factory is dataclasses.MISSING:
            raise Damaged("it is missing", name)
    read: dict[str, Any] = {}
    for name, entry in value.items():
        if name not in known:
            raise Damaged("there is no such field", name[:80])
        read[name] = _inside(name, hints[name], entry)
    try:
        return kind(**read)
    except (ValueError, TypeError) as error:
        raise Damaged(str(error)) from error


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise Damaged(f"{described(value)} is no number")
    if isinstance(value, str) and value not in _WORDS:
        raise Damaged(f"{described(value)} is no number")
    try:
        return float(value)
    except OverflowError:
        raise Damaged("it is larger than any number") from None


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _listed(value: object) -> Sequence[Any]:
    if not isinstance(value, list):
        raise Damaged(f"{described(value)} is no list")
    return typing.cast("list[Any]", value)


def _named(value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise Damaged(f"{described(value)} holds no fields")
    return typing.cast("dict[str, Any]", value)


_LARGEST = 2**28
"""Bytes of an array at most."""


def _unpacked(value: Mapping[str, Any]) -> np.ndarray:
    name = next((key for key in value if key != "shape"), "")
    kind, *how = name.split(" ")
    shape = value.get("shape")
    if (
        len(value) != 2
        or kind not in _KINDS
        or how not in ([], ["zlib"])
        or not isinstance(shape, list)
    ):
        raise Damaged("it holds no numbers")
    sizes = [size for size in typing.cast("list[object]", shape) if type(size) is int]
    count = math.prod(sizes)
    fits = 0 < len(sizes) == len(shape) <= 4 and min(sizes) >= 0 and max(sizes) < _LARGEST
    if not fits or count > _LARGEST // 8:
        raise Damaged("its shape is none")
    text, wanted = value[name], count * np.dtype(_KINDS[kind]).itemsize
    try:
        data = base64.b64decode(text, validate=True)
        if how:
            data = zlib.decompressobj().decompress(data, wanted + 1)
    except (TypeError, ValueError, binascii.Error, zlib.error) as error:
        raise Damaged(f"its numbers cannot be read ({str(error)[:80]})") from None
    if len(data) != wanted:
        raise Damaged(f"it holds other than {count} numbers")
    return np.frombuffer(data, _KINDS[kind]).astype(np.float64).reshape(sizes)


def _array(value: object) -> np.ndarray:
    if isinstance(value, dict):
        return _unpacked(typing.cast("dict[str, Any]", value))
    entries = _listed(value)
    if entries and isinstance(entries[0], list):
        rows = [_array(row) for row in entries]
        if len({row.shape for row in rows}) > 1:
            raise Damaged("its rows have different lengths")
        return np.stack(rows)
    return np.array([_number(entry) for entry in entries], dtype=np.float64)


_GROUP_LENGTH, _GROUP_SIZE = 20_000, 2**31
"""Characters of a group's text at most, and what its sizes are below."""


def _group(text: object) -> Group:
    """The group whose repr is `text`, without evaluating anything."""
    wrong = Damaged(f"{described(text)} is no group that this installation has")
    if not isinstance(text, str) or len(text) > _GROUP_LENGTH:
        raise wrong

    def build(node: ast.expr) -> Any:
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.Tuple | ast.List):
            return tuple(build(entry) for entry in node.elts)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            kind = getattr(_groups, node.func.id, None)
            if isinstance(kind, type) and issubclass(kind, Group) and not inspect.isabstract(kind):
                names = [field.name for field in dataclasses.fields(typing.cast(Any, kind))]
                given = dict(zip(names, map(build, node.args), strict=False))
                given |= {word.arg: build(word.value) for word in node.keywords if word.arg}
                hints = _hints(kind)
                if len(node.args) <= len(names) and all(
                    name in names and _fits(hints[name], value) for name, value in given.items()
                ):
                    return kind(**given)
        raise wrong

    try:
        group = build(ast.parse(text, mode="eval").body)
        fits = isinstance(group, Group) and 0 < group.dim < _GROUP_SIZE
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise wrong from error
    if not fits:
        raise wrong
    return group


def _fits(kind: Any, value: object) -> bool:
    """Whether an argument of a group is of the type that its annotation says."""
    origin = typing.get_origin(kind)
    if origin is typing.Literal:
        return value in typing.get_args(kind)
    if origin is tuple:
        held = typing.get_args(kind)[0]
        return isinstance(value, tuple) and all(_fits(held, entry) for entry in value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and 0 < value < _GROUP_SIZE
    return isinstance(kind, type) and isinstance(value, kind)
