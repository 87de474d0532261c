"""Every instance of a sampled test runs in one of three runs, and always in the same one."""

import pathlib
import random
import subprocess
import sys

import pytest
from tiers import tiers

TESTS = pathlib.Path(__file__).resolve().parent


@pytest.mark.parametrize("count", [1, 2, 7, 100])
@pytest.mark.parametrize("default", [1, 3, 200])
@pytest.mark.parametrize("slow", [None, 1, 5, 200])
def test_the_three_runs_share_the_instances(count: int, default: int, slow: int | None) -> None:
    names = [f"case {number}" for number in range(count)]
    for seed in range(5):
        found = tiers(names, default=default, slow=slow, seed=seed)
        assert set(found) == set(names)
        held = [sum(tier == name for tier in found.values()) for name in ("default", "slow")]
        first = min(default, count)
        assert held == [first, count - first if slow is None else min(slow, count - first)]


def test_which_ones_depends_on_names_and_seed_alone() -> None:
    names = [f"case {number}" for number in range(40)]
    found = tiers(names, default=5, slow=10)
    mixed = random.Random(0).sample(names, len(names))
    assert tiers(mixed, default=5, slow=10) == found
    assert tiers(names, default=5, slow=10, seed=1) != found
    drawn = {
        name
        for seed in range(200)
        for name, tier in tiers(names, default=5, seed=seed).items()
        if tier == "default"
    }
    assert drawn == set(names)


def test_an_instance_that_is_added_moves_one_other_at_most_from_run_to_run() -> None:
    names = [f"case {number}" for number in range(40)]
    for number in range(20):
        more = tiers([*names, f"new {number}"], default=5)
        before = tiers(names, default=5)
        assert sum(more[name] != before[name] for name in names) <= 1


@pytest.mark.parametrize("counts", [{"default": 0}, {"default": 2, "slow": 0}])
def test_no_run_is_without_an_instance(counts: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="one instance in every run"):
        tiers(["a"], **counts)


SUITE = """
import pytest

@pytest.mark.sample(default=2, slow=3)
@pytest.mark.parametrize("a", range(4))
@pytest.mark.parametrize("b", [0, 1, pytest.param(2, marks=pytest.mark.slow)])
def test_sampled(a, b): ...

@pytest.mark.parametrize("a", range(4))
def test_whole(a): ...
"""
CONFTEST = """
import pytest, sys
sys.path.insert(0, {folder!r})
import tiers

@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    tiers.mark(items)

def pytest_configure(config):
    for name in ("sample", "slow", "battery"):
        config.addinivalue_line("markers", name)
"""


@pytest.mark.slow
def test_the_runs_of_the_makefile_are_the_three_and_run_all(tmp_path: pathlib.Path) -> None:
    (tmp_path / "test_it.py").write_text(SUITE)
    (tmp_path / "conftest.py").write_text(CONFTEST.format(folder=str(TESTS)))
    makefile = (TESTS.parent / "Makefile").read_text()
    runs = "not slow and not battery", "slow and not battery", "battery"
    for chosen in runs[1:]:
        assert f"-m {chosen} " in makefile.replace('"', "")
    assert f'"{runs[0]}"' in (TESTS.parent / "pyproject.toml").read_text()

    def collected(*words: str) -> list[str]:
        line = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
        run = subprocess.run(
            [*line, *words], check=False, capture_output=True, text=True, cwd=tmp_path, timeout=120
        )
        assert run.returncode == 0, run.stdout + run.stderr
        return [name for name in run.stdout.splitlines() if "::" in name]

    parts, whole = [collected("-m", chosen) for chosen in runs], collected()
    assert [len(part) for part in parts] == [4 + 2, 4 + 3, 3]
    assert sorted(name for part in parts for name in part) == sorted(whole)
    # Those that are slow by their own mark are not drawn.
    assert [name for name in whole if "[2-" in name and name not in parts[1]] == []
