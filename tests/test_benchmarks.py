"""The benchmarks run: what they read of the package by its inner names is there."""

import json
import subprocess
import sys

import pytest
from test_structure import PACKAGE

pytestmark = pytest.mark.slow


def _measured(task: str, tokens: int) -> dict[str, float]:
    settings = {
        "task": task,
        "shape": "tiny",
        "tokens": tokens,
        "threads": 1,
        "device": "cpu",
        "dtype": "float32",
    }
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.measure", json.dumps(settings)],
        check=False,
        capture_output=True,
        text=True,
        cwd=PACKAGE.parent,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout.splitlines()[-1])


def test_a_probe_is_measured_beside_the_model() -> None:
    found = _measured("probe", 6144)
    assert found["tokens"] == 6144
    assert found["bare_cpu"] > 0 and found["read_cpu"] > 0


def test_a_first_look_is_measured_by_stages() -> None:
    from benchmarks import whole

    header, _, row = whole.table(1024, ["demo"])
    assert header.count("|") == row.count("|") == 11
    cells = [cell.strip(" *") for cell in row.split("|")[2:-1]]
    sites, forward, *stages, probe, ratio, _ = (float(cell.replace(",", "")) for cell in cells)
    assert sites == 17 and 0 < forward < probe and ratio > 1
    assert sum(stages) <= probe + 0.3
