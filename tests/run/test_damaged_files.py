"""Partials, records of a calibration and files of arrays that no run wrote are refused in words."""

from __future__ import annotations

import json
import pathlib
import random
import resource
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from partials import batches, observed

import basis_probe as bp
from basis_probe.calibration.rates import Count, Tally, read

HOME = str(pathlib.Path(bp.__file__).parent)
VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1.5, 2**63, 10**25, 1e308, "nan", "", "x" * 10_000, "\ud800", [], {}, [[]],
    [None], {"x": {}}, [10**12],
)  # fmt: skip
GROWTH = 200 * 2**20


def _memory() -> int:
    """The most memory that this process has had, in bytes."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _damaged(data: bytes, chance: random.Random) -> bytes:
    """The bytes after one to three flips, cuts, insertions or repetitions."""
    changed = bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 3])):
        # The header is short, and most of what can go wrong is in it.
        most = len(changed) if chance.random() < 0.5 else min(len(changed), 3000)
        at = chance.randrange(max(most, 1))
        kind = chance.randrange(4)
        if kind == 0 and changed:
            changed[min(at, len(changed) - 1)] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del changed[at : at + chance.randrange(1, 2000)]
        elif kind == 2:
            changed[at:at] = chance.randbytes(chance.randrange(1, 40))
        else:
            changed[at:at] = changed[at : at + chance.randrange(1, 500)]
    return bytes(changed)


def _altered(value: Any, chance: random.Random) -> Any:
    """The value with one of its entries, at any depth, replaced or missing."""
    if isinstance(value, dict | list) and value and chance.random() < 0.8:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = chance.choice(list(keys))
        changed = value.copy()
        if chance.random() < 0.1:
            del changed[key]
        else:
            changed[key] = _altered(value[key], chance)
        return changed
    return chance.choice(VALUES)


def _partial() -> bytes:
    return observed(batches(2, 12)).to_bytes()


def _record() -> bytes:
    tallies = [
        Tally("neurons", "normal", False, 8, 100, 5, 1, 2, {"kurtosis": Count(5, 1, 2.0, 3.0)}),
        Tally("neurons", "normal", True, 8, 100, 5, 4, 0, {"kurtosis": Count(5, 4, 9.0, 20.0)}, 3),
    ]
    return b"".join(tally.to_json().encode() + b"\n" for tally in tallies)


def _forged(data: bytes, chance: random.Random) -> bytes:
    """A partial of the form before, without a digest, whose words are others."""
    length = int.from_bytes(data[:8], "little")
    words = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["words"])
    metadata = {
        "format": "basis_probe partial 1",
        "words": json.dumps(_altered(words, chance)),
    }
    return safetensors.torch.save(safetensors.torch.load(data), metadata)


def _changed_line(data: bytes, chance: random.Random) -> bytes:
    lines = [json.loads(line) for line in data.splitlines()]
    place = chance.randrange(len(lines))
    lines[place] = _altered(lines[place], chance)
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def _compared(path: pathlib.Path) -> object:
    return bp.similarity(path, path)


def _npz(path: pathlib.Path) -> bytes:
    np.savez(path, a=np.random.default_rng(0).standard_normal((40, 3)))
    return path.read_bytes()


Case = tuple[str, Callable[[pathlib.Path], bytes], Callable[[pathlib.Path], object], Any]

CASES: dict[str, Case] = {
    "partial": ("x.safetensors", lambda _: _partial(), bp.Partial.load, _forged),
    "bytes of a partial": (
        "x", lambda _: _partial(), lambda p: bp.Partial.from_bytes(p.read_bytes()), _forged,
    ),
    "record": ("x.jsonl", lambda _: _record(), read, _changed_line),
    "npz": ("x.npz", _npz, _compared, None),
    "tensors": (
        "x.safetensors",
        lambda _: safetensors.torch.save({"a": torch.randn(40, 3)}),
        _compared,
        None,
    ),
}  # fmt: skip


def _try(kind: str, count: int, seed: int, folder: pathlib.Path) -> int:
    """How many of the damaged files were refused, all of them in our own words."""
    name, make, load, alter = CASES[kind]
    path = folder / name
    data, chance, refused = make(path), random.Random(seed), 0
    path.write_bytes(data)
    load(path)
    before = _memory()
    for number in range(count):
        changed = alter(data, chance) if alter and number % 2 else _damaged(data, chance)
        path.write_bytes(changed)
        start = time.monotonic()
        try:
            load(path)
        except ValueError as error:
            refused += 1
            last = traceback.extract_tb(error.__traceback__)[-1]
            assert last.filename.startswith(HOME), f"{number}: {last.filename}: {error!r}"
            assert len(str(error)) < 10_000, number
        assert time.monotonic() - start < 2, number
    assert _memory() - before < GROWTH
    return refused


@pytest.mark.parametrize("kind", CASES)
def test_damaged_files_are_refused_in_words(kind: str, tmp_path: pathlib.Path) -> None:
    assert _try(kind, 60, 1, tmp_path) > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", CASES)
def test_more_damaged_files_are_refused_in_words(kind: str, tmp_path: pathlib.Path) -> None:
    assert _try(kind, 1000, 2, tmp_path) > 0


@pytest.mark.battery
@pytest.mark.parametrize("kind", CASES)
def test_ten_thousand_damaged_files_are_refused_in_words(kind: str, tmp_path: pathlib.Path) -> None:
    assert _try(kind, 10_000, 3, tmp_path) > 0
