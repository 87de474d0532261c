"""Numbers, sentences and pages are those that were frozen: see `freeze.py` where they change."""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest
from runs import RUNS, SLOW

VALUES = pathlib.Path(__file__).parent / "values"

RELATIVE, ABSOLUTE = 1e-6, 1e-9
SINGLE = 5e-6
"""Relative, for scores: the library turns rows in single precision, which CPUs round differently.
Other processors (SSE instead of AVX-512) moved scores by up to 2e-6 and fitted p by up to 4e-5."""

TOLERANCES = {
    # Field -> relative and absolute tolerance, for the field and all below it.
    "max_error": (0.0, 1e-9),
    "action_error": (0.0, 1e-9),
    # Differences of scores, in units of the null or of the score, may cancel.
    "effect": (SINGLE, 2e-5),
    "effect_without_top_axes": (SINGLE, 2e-5),
    "effect_interval": (SINGLE, 2e-5),
    "difference": (SINGLE, 1e-5),
    "difference_error": (SINGLE, 1e-5),
    "null_values": (SINGLE, 1e-9),
    "null_mean": (SINGLE, 1e-9),
    "null_std": (SINGLE, 1e-9),
    # From a curve fitted to the tail of the null, which is steep.
    "p_value": (2e-4, 1e-9),
    "p_tail": (2e-4, 1e-9),
    "p_adjusted": (2e-4, 1e-9),
    "per_direction_p": (2e-4, 1e-9),
}

# Annotations are checked in the other tests; here it would take most of the time.
pytestmark = pytest.mark.usefixtures("as_shipped")


def differences(frozen: Any, found: Any, path: str = "") -> Iterator[str]:
    """Every place where the found value is not the frozen one, with both; it may hold more keys."""
    if isinstance(frozen, dict) and isinstance(found, dict):
        for key, value in frozen.items():
            if key not in found:
                yield f"{path}.{key}: frozen {_short(value)}, now missing"
            else:
                yield from differences(value, found[key], f"{path}.{key}")
    elif isinstance(frozen, list) and isinstance(found, list):
        if len(frozen) != len(found):
            yield f"{path}: frozen {len(frozen)} entries, now {len(found)}"
        for place, (value, other) in enumerate(zip(frozen, found, strict=False)):
            yield from differences(value, other, f"{path}[{place}]")
    elif not _alike(frozen, found, path):
        yield f"{path}: frozen {_short(frozen)}, now {_short(found)}"


def _alike(frozen: Any, found: Any, path: str) -> bool:
    if isinstance(frozen, float) and isinstance(found, int | float):
        fields = [part.split("[")[0] for part in path.split(".")]
        named = [TOLERANCES[field] for field in fields if field in TOLERANCES]
        relative, absolute = named[-1] if named else (RELATIVE, ABSOLUTE)
        return math.isclose(frozen, found, rel_tol=relative, abs_tol=absolute)
    return type(frozen) is type(found) and frozen == found


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 400 else f"{text[:400]} ... ({len(text)} letters)"


def _parameters() -> list[Any]:
    return [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in RUNS]


@pytest.mark.sample(default=6)
@pytest.mark.parametrize("name", _parameters())
def test_a_run_gives_what_it_gave(name: str) -> None:
    frozen = json.loads((VALUES / f"{name}.json").read_text(encoding="utf-8"))
    found = json.loads(json.dumps(RUNS[name]()))
    seen = list(differences(frozen, found, name))
    if seen:
        more = f"\n... and {len(seen) - 20} more" if len(seen) > 20 else ""
        pytest.fail(f"{len(seen)} differences\n" + "\n".join(seen[:20]) + more, pytrace=False)


def test_a_difference_is_named_with_its_place_and_both_values() -> None:
    frozen = {"a": [1.0, {"b": "x"}], "c": 1e-12, "max_error": 1e-16, "n": 3}
    found = {"a": [1.0 + 1e-5, {"b": "y"}], "c": 0.0, "max_error": 3e-15, "n": 3, "new": 1}
    assert list(differences(frozen, found, "run")) == [
        "run.a[0]: frozen 1.0, now 1.00001",
        "run.a[1].b: frozen 'x', now 'y'",
    ]
    assert list(differences({"a": [1, 2], "b": 1}, {"a": [1]}, "run")) == [
        "run.a: frozen 2 entries, now 1",
        "run.b: frozen 1, now missing",
    ]
    assert not list(differences({"a": 1.0}, {"a": 1.0 + 1e-7}, "run"))


def test_every_run_is_frozen_and_nothing_else() -> None:
    assert {path.stem for path in VALUES.glob("*.json")} == set(RUNS)
