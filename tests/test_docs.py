"""The documentation: its code runs, its links lead somewhere, nothing is fetched."""

from __future__ import annotations

import importlib.util
import inspect
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Callable
from types import ModuleType

import pytest
import tiers

from basis_probe.evidence.measure import Size, affordable

ROOT = pathlib.Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "examples" / "README.md", *sorted(DOCS.glob("*.md"))]


def _blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def _script(name: str) -> ModuleType:
    """A script of the documentation, imported."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    # Data classes look for their module by its name.
    sys.modules[name] = script
    spec.loader.exec_module(script)
    return script


@pytest.mark.sample(default=3)
@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda path: path.stem)
def test_the_code_of_a_page_runs(
    page: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in _blocks(page.read_text(encoding="utf-8")):
        exec(compile(block, page.name, "exec"), names)


def test_a_job_takes_at_most_six_lines() -> None:
    head, *jobs = re.split(r"^## ", (DOCS / "jobs.md").read_text(encoding="utf-8"), flags=re.M)
    assert _blocks(head) and len(jobs) >= 9
    for job in jobs:
        blocks = _blocks(job)
        assert blocks, job.splitlines()[0]
        for block in blocks:
            lines = [line for line in block.splitlines() if line.partition("#")[0].strip()]
            assert len(lines) <= 6, block


def test_the_sizes_from_which_less_is_compared_are_those_of_the_page() -> None:
    sites: tuple[Callable[[int], Size], ...] = (
        lambda dim: affordable(dim, dim, one_law=True),
        lambda dim: affordable(64, dim),
        lambda dim: affordable(512, dim),
    )

    def widest(holds: Callable[[Size], bool]) -> list[int]:
        """Of each kind of site the widest that is compared in such a size."""
        return [max(dim for dim in range(2, 1000) if holds(size(dim))) for size in sites]

    page = " ".join((DOCS / "scale.md").read_text(encoding="utf-8").split())
    most = "(above {} axes that are turned, {} neurons of 64 inputs, or {} of 512), frames are 99"
    assert most.format(*widest(lambda size: size.frames == 199)) in page
    every = "(above {} axes, {} neurons of 64 inputs, or {} of 512), a block"
    assert every.format(*widest(lambda size: size.samples == 4096)) in page
    block = affordable(768, 3072)
    said = f"at least {block.directions} axes, drawn with the seed, is compared in {block.frames}"
    assert said in page


def test_some_pages_have_code() -> None:
    assert sum(bool(_blocks(page.read_text(encoding="utf-8"))) for page in PAGES) >= 3


NAMESPACES = ("groups", "nulls", "scores", "bases", "concepts", "compare", "results")


def _places() -> dict[str, str]:
    """Every public name, as it is written behind the package's own, and where it is defined."""
    import basis_probe

    found: dict[str, str] = {}
    for space in ("", *NAMESPACES):
        home = getattr(basis_probe, space) if space else basis_probe
        for name in dir(home):
            value = getattr(home, name)
            if isinstance(value, ModuleType) or name == "__version__":
                continue
            own = inspect.isclass(value) or inspect.isroutine(value)
            module = value.__module__ if own else home.__name__
            found[f"{space}.{name}" if space else name] = f"{module}.{name}"
    return found


def test_the_reference_lists_every_public_name() -> None:
    places = _places()
    assert len(places) > 100
    listed = re.findall(
        r"^::: (\S+)$", (DOCS / "reference.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert len(set(listed)) == len(listed)
    missing = [
        place
        for place in places.values()
        if place not in listed and place.rpartition(".")[0] not in listed
    ]
    assert missing == []


def _slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_links_of_a_page_resolve(page: pathlib.Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{page.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", found.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(_slug, headings), f"{page.name} links to {target}"


def test_commands_that_pages_show_exist() -> None:
    from basis_probe.cli.entry import COMMANDS

    known = {command.name for command in COMMANDS} | {"COMMAND"}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for command in re.findall(r"basis-probe ([a-zA-Z]+)", text):
            assert command in known, f"{page.name} shows `basis-probe {command}`"


def test_targets_of_make_that_pages_show_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        for target in re.findall(r"`make ([\w-]+)|\$ make ([\w-]+)", page.read_text()):
            assert set(filter(None, target)) <= targets


TUTORIALS = sorted((DOCS / "tutorials").glob("*.ipynb"))
OFTEN = tiers.ranked([path.stem for path in TUTORIALS], seed=0)[:3]
"""Tutorials that slow runs try; the others are of the battery."""


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_the_page_of_a_tutorial_is_its_notebook(path: pathlib.Path) -> None:
    made = _script("tutorials").page(path)
    assert any(name.endswith(".md") for name in made)
    for name, content in made.items():
        assert (path.parent / name).read_bytes() == content, f"run docs/tutorials.py {path.stem}"
    assert len(TUTORIALS) == 5


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=() if path.stem in OFTEN else pytest.mark.battery)
        for path in TUTORIALS
    ],
)
def test_a_tutorial_runs(
    path: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = _blocks(path.with_suffix(".md").read_text(encoding="utf-8"))
    assert len(blocks) >= 4
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, path.name, "exec"), names)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="mkdocs is not installed")
def test_the_pages_are_built_without_a_warning_and_load_nothing_from_elsewhere(
    tmp_path: pathlib.Path,
) -> None:
    site = tmp_path / "site"
    run = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(site)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    reference = (site / "reference" / "index.html").read_text(encoding="utf-8")
    for name, place in _places().items():
        assert f'id="{place}"' in reference, f"the reference lacks {name}"
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r'<(?:script|img|iframe)[^>]+src="(?:https?:)?//', text)
        assert not re.findall(
            r'<link[^>]+rel="(?:stylesheet|preconnect)"[^>]+href="https?://', text
        )


@pytest.mark.slow
def test_the_picture_of_the_rooms_is_that_of_the_imports() -> None:
    assert (DOCS / "rooms.svg").read_text(encoding="utf-8") == _script("rooms").picture(), (
        "the imports have changed: run `python docs/rooms.py`"
    )


@pytest.mark.slow
def test_data_come_to_no_room_more_than_twice() -> None:
    flow = _script("data_flow")
    rooms = [line.room for line in flow.lines()]
    assert rooms[0] == "model" and rooms[-1] == "verdict"
    assert max(rooms.count(room) for room in rooms) <= 2, rooms
    if sys.version_info >= (3, 11):  # Earlier ones do not name the class of every function.
        assert flow.table() in (DOCS / "architecture.md").read_text(encoding="utf-8"), (
            "the calls have changed: run `python docs/data_flow.py`"
        )
