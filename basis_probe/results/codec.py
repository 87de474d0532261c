"""Frozen values as JSON and back, every number exact.

What can be written is what annotations can name: dataclasses, enums, groups, arrays, mappings and
tuples of these. A field that a file lacks has its default, so that older files stay readable.

Arrays of many numbers are `{"float64": text, "shape": [8192]}`, the text being the base64 of the
numbers, little-endian: `numpy.frombuffer(base64.b64decode(text), "<f8")`. Nothing is lost, and what
follows only makes files smaller:

- Numbers that single precision holds exactly are under "float32".
- Whole numbers are under the smallest type that holds them, "uint8" to "int32", of which the
  largest value stands for NaN. Counted p-values are such counts: with `"over": 6337` every number
  is to be divided by that, and with `"as": "float32"` to be rounded to single precision then.
- Where " shuffled zlib" follows, what was decoded is to be decompressed, and holds the first byte
  of every number, then the second of every one, and so on: with n numbers of b bytes,
  `numpy.frombuffer(data, "u1").reshape(b, n).T.copy().view("<f8")`. Files of older versions have
  " zlib" alone, and their bytes in the usual order.

- Where " steps" follows, p-values are counts in the ascending order of the values of their axes,
  those of NaN last, and each is what is to be added to the one before it, modulo the type's range:
  `counts[values.argsort(kind="stable")] = numpy.cumsum(steps, dtype=steps.dtype)`.

Values and p-values of axes are float64 in scores on which a verdict rests, and rounded to single
precision in all others; `ScoreResult` does that, so that a report holds what its file does.
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
        # What holds no number has a shape all the same, which a list does not tell.
        if numbers.size >= _MANY or (value.ndim > 1 and not numbers.size):
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
        return {field.name: _field(value, field) for field in dataclasses.fields(value)}
    raise TypeError(f"a report cannot hold {type(value).__name__}")


ALONG = "along"
"""In the metadata of a field: the name of another one, in the order of whose values it is even."""


def _field(value: object, field: dataclasses.Field[Any]) -> Any:
    held = getattr(value, field.name)
    if ALONG in field.metadata and held.ndim == 1 and held.size >= _MANY:
        values = getattr(value, field.metadata[ALONG])
        if values.shape == held.shape:
            return _packed(held.astype(np.float64), _order(values))
    return encode(held)


def _order(values: np.ndarray) -> np.ndarray:
    return values.argsort(kind="stable")


_MANY = 64
"""Arrays of so many numbers are written as base64."""
_WORTH = 0.97
"""They are compressed where that brings their bytes below this share."""
_FLOATS = {"float32": "<f4", "float64": "<f8"}
_COUNTS = {
    "uint8": "u1", "uint16": "<u2", "uint32": "<u4", "int8": "i1", "int16": "<i2", "int32": "<i4",
}  # fmt: skip
_KINDS = _FLOATS | _COUNTS
_LEAST, _MOST = 256, 2**31
"""A count up to the first must be among counted p-values; they are out of fewer than the second."""


def _packed(numbers: np.ndarray, order: np.ndarray | None = None) -> dict[str, Any]:
    """Numbers as base64: as few bytes as they need, and fewer where bytes repeat.

    In the order that is given they may be even.
    """
    # Equal arrays have one text: there is one NaN, and one zero.
    plain = np.where(np.isnan(numbers), np.nan, numbers + 0.0).reshape(-1)
    with np.errstate(over="ignore"):
        small = plain.astype("<f4")
    single = np.array_equal(small, plain, equal_nan=True)
    counts, words = _counted(plain, single=single)
    if counts is None:
        name, held = ("float32", small) if single else ("float64", plain.astype("<f8"))
    else:
        name, held = _smallest(counts)
    data, tight = held.tobytes(), _compressed(held)
    if len(tight) < _WORTH * len(data):
        data, packed = tight, f"{name} shuffled zlib"
    else:
        packed = name
    if order is not None and counts is not None and held.dtype.kind in "iu":
        steps = held[order]
        steps[1:] -= steps[:-1].copy()
        even = _compressed(steps)
        if len(even) < len(data):
            data, packed = even, f"{name} steps shuffled zlib"
    return {packed: base64.b64encode(data).decode("ascii"), "shape": [*numbers.shape], **words}


def _counted(
    numbers: np.ndarray, *, single: bool
) -> tuple[np.ndarray | None, dict[str, int | str]]:
    """Whole numbers, NaN among them, and what makes the given ones of them; None without any."""
    known = numbers[~np.isnan(numbers)]
    if not known.size or not np.isfinite(known).all() or np.abs(known).max() >= _MOST:
        return None, {}
    if np.array_equal(np.rint(known), known):
        return numbers, {}
    if known.min() < 0 or known.max() > 1:
        return None, {}

    def ratios(of: np.ndarray, over: np.ndarray) -> np.ndarray:
        found = np.rint(of * over) / over
        return found.astype("<f4").astype(np.float64) if single else found

    # The smallest p-value is a small count over how many there are in all.
    least, some = known[known > 0].min(), known[:: max(1, known.size // 8), None]
    over = np.rint(np.arange(1, _LEAST + 1) / max(least, 1 / _MOST))
    over = over[over < _MOST]
    for each in over[(ratios(some, over) == some).all(0)]:
        if np.array_equal(ratios(known, each), known):
            words: dict[str, int | str] = {"over": int(each)}
            return np.rint(numbers * each), words | ({"as": "float32"} if single else {})
    return None, {}


def _smallest(counts: np.ndarray) -> tuple[str, np.ndarray]:
    """Whole numbers in the smallest type that holds them, and the type's name."""
    missing = np.isnan(counts)
    known = counts[~missing]
    least, most = known.min(), known.max()
    for name, kind in _COUNTS.items():
        held = np.iinfo(kind)
        if held.min <= least and most < held.max:
            return name, np.where(missing, held.max, counts).astype(kind)
    return "float64", counts.astype("<f8")


def _compressed(numbers: np.ndarray) -> bytes:
    """The first bytes of all numbers, then their second ones ...: those of exponents repeat."""
    packer = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_RLE)
    parts: list[bytes] = []
    for plane in _bytes_of(numbers).T:
        # Each has a code of its own.
        parts += packer.compress(plane.tobytes()), packer.flush(zlib.Z_SYNC_FLUSH)
    return b"".join([*parts, packer.flush()])


def _bytes_of(numbers: np.ndarray) -> np.ndarray:
    return numbers.view("u1").reshape(-1, numbers.itemsize)


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
    for name in value:
        if name not in known:
            raise Damaged("there is no such field", name[:80])
    # What is in the order of another field comes behind it.
    for name in sorted(value, key=lambda name: ALONG in known[name].metadata):
        along = read.get(known[name].metadata.get(ALONG, ""))
        if along is not None and isinstance(value[name], dict):
            try:
                read[name] = unpacked(value[name], along)
            except Damaged as error:
                raise Damaged(error.why, name, *error.path) from None
        else:
            read[name] = _inside(name, hints[name], value[name])
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


_WAYS: tuple[list[str], ...] = ([], ["zlib"], ["shuffled", "zlib"], ["steps", "shuffled", "zlib"])
"""What may follow a type."""
_LARGEST = 2**28
"""Bytes of an array at most."""
_ALL, _EACH = 2**31, 64
"""Bytes of all arrays of a file at most, and as many more for each of its characters."""


def require_modest(name: str, value: object, characters: int) -> None:
    """Fails for findings whose arrays would take far more memory than their text.

    Looks at shapes alone, before any array is decompressed.

    Args:
        name: what they are called.
        value: what was read of JSON.
        characters: how long the text was.

    Raises:
        Damaged: if they would.
    """
    most = (_ALL + _EACH * characters) // 8
    count, waiting = 0, [value]
    while waiting:
        held = waiting.pop()
        if isinstance(held, list):
            waiting += typing.cast("list[object]", held)
        elif isinstance(held, dict):
            named = typing.cast("dict[str, object]", held)
            waiting += named.values()
            shape = named.get("shape")
            # Sites have a shape, too.
            if isinstance(shape, list) and any(key.split(" ")[0] in _KINDS for key in named):
                sizes = typing.cast("list[object]", shape)
                count += math.prod(size for size in sizes if type(size) is int and size > 0)
        if count > most:
            raise Damaged(
                "its arrays would take far more memory than a text of this length holds", name
            )


def unpacked(value: Mapping[str, Any], along: np.ndarray | None = None) -> np.ndarray:
    """The numbers of an array that was written as base64.

    Args:
        value: what was read.
        along: in the order of which values steps are; None for an array by itself.

    Raises:
        Damaged: if it holds no such numbers.
    """
    names = [key for key in value if key not in ("shape", "over", "as")]
    kind, *how = names[0].split(" ") if len(names) == 1 else ("",)
    shape, over, rounded = value.get("shape"), value.get("over", 1), value.get("as")
    if (
        kind not in _KINDS
        or how not in _WAYS
        or ("steps" in how and not (kind in _COUNTS and along is not None))
        or not isinstance(shape, list)
        or not (type(over) is int and 0 < over < _MOST)
        or ("over" in value and kind not in _COUNTS)
        or ("as" in value and not (rounded == "float32" and "over" in value))
    ):
        raise Damaged("it holds no numbers")
    sizes = [size for size in typing.cast("list[object]", shape) if type(size) is int]
    count = math.prod(sizes)
    fits = 0 < len(sizes) == len(shape) <= 4 and min(sizes) >= 0 and max(sizes) < _LARGEST
    if not fits or count > _LARGEST // 8:
        raise Damaged("its shape is none")
    size = np.dtype(_KINDS[kind]).itemsize
    text, wanted = value[names[0]], count * size
    try:
        data = base64.b64decode(text, validate=True)
        if how:
            data = _decompressed(data, wanted)
    except (TypeError, ValueError, binascii.Error, zlib.error) as error:
        raise Damaged(f"its numbers cannot be read ({str(error)[:80]})") from None
    if len(data) != wanted:
        raise Damaged(f"it holds other than {count} numbers")
    if "shuffled" in how:
        data = np.frombuffer(data, "u1").reshape(size, count).T.tobytes()
    found = np.frombuffer(data, _KINDS[kind])
    if "steps" in how and along is not None:
        if [*along.shape] != sizes:
            raise Damaged(f"it holds {count} numbers for {along.size} values")
        steps, found = found, np.empty_like(found)
        found[_order(along)] = np.cumsum(steps, dtype=steps.dtype)
    numbers = found.astype(np.float64)
    if kind in _COUNTS:
        numbers[found == np.iinfo(found.dtype).max] = np.nan
        numbers /= over
    if rounded is not None:
        numbers = numbers.astype(np.float32).astype(np.float64)
    return numbers.reshape(sizes)


def _decompressed(data: bytes, most: int) -> bytes:
    """What was compressed, up to the first byte too many.

    Raises:
        ValueError: if its end, which says that all of it is right, is missing or is not the end.
    """
    packer = zlib.decompressobj()
    found = packer.decompress(data, most + 1)
    if len(found) <= most and not packer.eof:
        raise ValueError("they are cut off")
    if packer.unused_data:
        raise ValueError("something stands behind them")
    return found


def _array(value: object) -> np.ndarray:
    if isinstance(value, dict):
        return unpacked(typing.cast("dict[str, Any]", value))
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
