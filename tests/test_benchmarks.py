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
