"""A report that no run wrote is refused with the field's name, or all its forms can be drawn."""

from __future__ import annotations

import copy
import json
import pathlib
import random
import time
from typing import Any

import pytest
from fake_report import fake_report

import basis_probe as bp

VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 10**9, 2**63, 10**25, 10**400, 1.5, 1e308, -1e308, 1e-320, "nan", "-inf",
    "x", "", "=1+1", "\x1b]0;x\x07", "a" * 100_000, "\ud800", "<script>", [], {}, [[]], [1],
    ["nan"],
    [[1], [2, 3]], "Orthogonal(dim=3)", "Blocks(Orthogonal(dim=4), count=1000000000000)",
    "Blocks(7, 7)", "(" * 5000, "Orthogonal(dim=True)", "__import__('os')", "AXES", [None],
)  # fmt: skip

BASE = json.loads(fake_report().to_json())


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something can be changed; of a long list of numbers its first."""
    found: list[tuple[Any, ...]] = []
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    for key, entry in entries:
        found.append((*path, key))
        if isinstance(entry, dict | list):
            plain = isinstance(entry, list) and not any(isinstance(e, dict | list) for e in entry)
            found += [(*path, key, 0)] if plain and entry else _places(entry, (*path, key))
    return found


PLACES = _places(BASE)


def _mutated(chance: random.Random) -> str:
    value = copy.deepcopy(BASE)
    for _ in range(chance.choice([1, 1, 2, 3])):
        *path, last = chance.choice(PLACES)
        parent = value
        try:
            for key in path:
                parent = parent[key]
            if chance.random() < 0.8:
                parent[last] = chance.choice(VALUES)
            elif chance.random() < 0.5:
                del parent[last]
            else:
                parent[last] *= 2
        except (KeyError, IndexError, TypeError):
            continue
    return json.dumps(value)


def _try(count: int, seed: int, folder: pathlib.Path, endings: tuple[str, ...]) -> int:
    """How many of the mutated reports were taken; each of these can be drawn."""
    chance, taken = random.Random(seed), 0
    for _ in range(count):
        text, start = _mutated(chance), time.monotonic()
        try:
            report = bp.Report.from_json(text)
        except ValueError as error:
            assert "not a basis_probe report" in str(error) or "has format" in str(error)
            assert len(str(error)) < 1000
            assert time.monotonic() - start < 2
            continue
        taken += 1
        for ending in endings:
            report.save(folder / f"r{ending}")
        assert str(report) and repr(report)
    return taken


def test_mutated_reports_are_refused_or_drawn(tmp_path: pathlib.Path) -> None:
    assert 0 < _try(25, 1, tmp_path, (".md", ".csv")) < 25


@pytest.mark.slow
def test_many_mutated_reports_are_refused_or_drawn(tmp_path: pathlib.Path) -> None:
    _try(400, 2, tmp_path, (".html", ".md", ".csv", ".tex"))


@pytest.mark.battery
def test_ten_thousand_mutated_reports_are_refused_or_drawn(tmp_path: pathlib.Path) -> None:
    _try(10_000, 3, tmp_path, (".html", ".md", ".csv", ".tex", ".json"))


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("site_reports.0.dim", "64", "'site_reports.0.dim': '64' is no int"),
        ("site_reports.0.n_samples", -1, "'site_reports.0.n_samples': -1 is no count"),
        ("site_reports.0.shape", [3], "'site_reports.0.shape': no shape of"),
        (
            "site_reports.0.symmetry.group",
            "Blocks(3, 3)",
            "'site_reports.0.symmetry.group': 'Blocks",
        ),
        ("site_reports.0.verdict.outcome", "GOOD", "outcome': 'GOOD' is none of PRIVILEGED"),
        ("provenance.level", 2.0, "'provenance.level': 2.0 is no level"),
        ("partial", 1, "'partial': 1 is no bool"),
    ],
)
def test_what_is_damaged_is_named(path: str, value: Any, said: str) -> None:
    changed = copy.deepcopy(BASE)
    *keys, last = path.split(".")
    parent = changed["report"]
    for key in keys:
        parent = parent[int(key) if key.isdecimal() else key]
    parent[last] = value
    with pytest.raises(ValueError, match="damaged at") as refused:
        bp.Report.from_json(json.dumps(changed))
    assert said in str(refused.value)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "{" * 9, "null", "5", "", "\0", '{"basis_probe": []}']
)
def test_what_is_no_report_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a basis_probe report|has format"):
        bp.Report.from_json(text)
