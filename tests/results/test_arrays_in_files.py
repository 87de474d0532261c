"""Arrays in saved findings: what is read is what was written, and damage is named."""

import base64
import json
import math
import zlib
from typing import Any

import numpy as np
import pytest

from basis_probe.results.codec import Damaged, decode, encode

RANDOM = np.random.default_rng(0)
MANY = 1000

ARRAYS: dict[str, np.ndarray] = {
    "doubles": RANDOM.standard_normal(MANY),
    "singles": RANDOM.standard_normal(MANY).astype(np.float32).astype(np.float64),
    "counts": RANDOM.integers(0, 5, MANY).astype(np.float64),
    "NaN throughout": np.full(MANY, math.nan),
    "some NaN": np.where(np.arange(MANY) % 3, RANDOM.standard_normal(MANY), math.nan),
    "infinities": np.where(np.arange(MANY) % 7, RANDOM.standard_normal(MANY), -math.inf),
    "beyond single precision": RANDOM.standard_normal(MANY) * 1e300,
    "below single precision": RANDOM.standard_normal(MANY) * 1e-300,
    "matrix": RANDOM.standard_normal((40, 25)),
    "block": RANDOM.standard_normal((5, 20, 10)),
    "few": RANDOM.standard_normal(7),
    "few in a matrix": RANDOM.standard_normal((3, 2)),
    "none": np.zeros(0),
    "as many as are written as a list": RANDOM.standard_normal(255),
    "one more": RANDOM.standard_normal(256),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_what_is_read_is_what_was_written(name: str) -> None:
    array = ARRAYS[name]
    text = json.dumps(encode(array), allow_nan=False)
    found = decode(np.ndarray, json.loads(text))
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, array)
    found[...] = 0.0


@pytest.mark.parametrize("name", [name for name in ARRAYS if ARRAYS[name].ndim == 1])
def test_files_that_hold_lists_are_read(name: str) -> None:
    listed = [value if math.isfinite(value) else str(value) for value in ARRAYS[name].tolist()]
    np.testing.assert_array_equal(decode(np.ndarray, listed), ARRAYS[name])


def test_numbers_can_be_read_with_numpy_alone() -> None:
    for name, kind in (("doubles", "float64"), ("singles", "float32")):
        written = encode(ARRAYS[name])
        assert set(written) == {kind, "shape"}
        found = np.frombuffer(
            base64.b64decode(written[kind]), "<f8" if kind[-2:] == "64" else "<f4"
        )
        np.testing.assert_array_equal(found, ARRAYS[name])
    for name in ("counts", "NaN throughout"):
        assert "float32 zlib" in encode(ARRAYS[name])


def test_equal_arrays_have_one_text() -> None:
    array = ARRAYS["some NaN"].copy()
    array[1] = 0.0
    other = np.where(np.isnan(array), -np.nan, array)
    other[1] = -0.0
    assert encode(array) == encode(other)
    other[2] = np.nextafter(other[2], 9)
    assert encode(array) != encode(other)


def test_a_file_takes_far_less_than_lists_do() -> None:
    for name, most in (("singles", 0.35), ("doubles", 0.6), ("NaN throughout", 0.05)):
        array = np.tile(ARRAYS[name], 8)
        listed = len(json.dumps([str(v) if math.isnan(v) else v for v in array.tolist()]))
        assert len(json.dumps(encode(array))) < most * listed


def _text(numbers: bytes) -> str:
    return base64.b64encode(numbers).decode()


DAMAGED: dict[str, Any] = {
    "nothing": {},
    "no shape": {"float64": _text(bytes(80))},
    "no numbers": {"shape": [10]},
    "two kinds of numbers": {"float64": _text(bytes(80)), "float32": _text(bytes(40))},
    "another type": {"float16": _text(bytes(20)), "shape": [10]},
    "another way": {"float64 lzma": _text(bytes(80)), "shape": [10]},
    "more than that": {"float64": _text(bytes(80)), "shape": [10], "zlib": True},
    "too few": {"float64": _text(bytes(72)), "shape": [10]},
    "too many": {"float64": _text(bytes(88)), "shape": [10]},
    "no base64": {"float64": "ä" * 20, "shape": [10]},
    "a number": {"float64": 5, "shape": [10]},
    "a list": {"float64": [0.0] * 10, "shape": [10]},
    "not compressed": {"float64 zlib": _text(bytes(80)), "shape": [10]},
    "cut off": {"float64 zlib": _text(zlib.compress(bytes(range(80)))[:-9]), "shape": [10]},
    "more than it says": {"float64 zlib": _text(zlib.compress(bytes(10**6))), "shape": [10]},
    "less than it says": {"float64 zlib": _text(zlib.compress(bytes(80))), "shape": [10**7]},
    "a shape of no numbers": {"float64": _text(bytes(80)), "shape": ["10"]},
    "a shape of truths": {"float64": _text(bytes(8)), "shape": [True]},
    "a negative shape": {"float64": _text(bytes(80)), "shape": [-10, -1]},
    "an enormous shape": {"float64 zlib": _text(zlib.compress(bytes(80))), "shape": [2**40]},
    "an enormous shape of nothing": {"float64": "", "shape": [2**70, 0, 2**70]},
    "a shape of many axes": {"float64": _text(bytes(8)), "shape": [1] * 40},
    "a shape that is none": {"float64": _text(bytes(80)), "shape": 10},
    "an empty shape": {"float64": _text(bytes(8)), "shape": []},
    "words": "float64",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_refused(name: str) -> None:
    with pytest.raises(Damaged):
        decode(np.ndarray, DAMAGED[name])
    with pytest.raises(Damaged, match="'3'"):
        decode(tuple[np.ndarray, ...], [[1.0], [2.0], [], DAMAGED[name]])
