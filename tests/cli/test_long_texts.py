"""A text of any length costs what is used of it."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import pytest
from damage import memory
from small_language_model import saved, text

import basis_probe as bp
from basis_probe.cli import main, report
from basis_probe.cli.command import Refused
from basis_probe.cli.windows import Windows

pytest.importorskip("transformer_lens")

LARGE = 200 * 10**6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return saved(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def bridge(folder: pathlib.Path) -> Any:
    from basis_probe.model.load import from_directory

    return from_directory(str(folder), device="cpu")


def _filled(path: pathlib.Path, part: bytes, size: int, end: bytes = b"") -> None:
    block = part * (2**20 // len(part) + 1)
    with path.open("wb") as file:
        for _ in range(size // len(block) + 1):
            file.write(block)
        file.write(end)


def _cost(words: list[str], bridge: Any) -> tuple[int, int]:
    """(exit status, megabytes) of the command in a process of its own, its model loaded before."""
    read, write = os.pipe()
    process = os.fork()
    if not process:
        try:
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), 1)
                os.dup2(nowhere.fileno(), 2)
                report.load = lambda *_: bridge
                before = memory()
                status = main(words)
                os.write(write, f"{status} {(memory() - before) // 2**20}".encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as told:
        status, grown = map(int, told.read().split())
    os.waitpid(process, 0)
    return status, grown


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork")
@pytest.mark.parametrize(
    ("kind", "status"),
    [("lines", 0), ("one line", 0), ("not UTF-8", 0), ("one word", 2), ("blanks", 2)],
)
def test_two_hundred_megabytes_cost_what_is_used_of_them(
    kind: str, status: int, folder: pathlib.Path, bridge: Any, tmp_path: pathlib.Path
) -> None:
    path, part = tmp_path / "text.txt", text().encode()
    if kind == "not UTF-8":
        _filled(path, part + b" ", 10**8, b"\xff\xfe")
        with path.open("ab") as file:
            file.write((part + b" ") * (10**8 // len(part)))
    else:
        ends = {"lines": part + b"\n", "one line": part + b" ", "one word": b"w", "blanks": b" "}
        _filled(path, ends[kind], LARGE)
    out = tmp_path / "r.json"
    words = [
        "report", str(folder), "--text", str(path), "--length", "16", "--batch-size", "8",
        "--max-samples", "512", "--sites", "blocks.0.mlp.hook_post", "--out", str(out),
    ]  # fmt: skip
    found, grown = _cost(words, bridge)
    assert found == status
    assert grown < 100
    if not status:
        short, other = tmp_path / "short.txt", tmp_path / "other.json"
        short.write_bytes((part + b" ") * 4)
        words[words.index(str(path))], words[-1] = str(short), str(other)
        assert _cost(words, bridge)[0] == 0
        assert bp.Report.load(out).site_reports == bp.Report.load(other).site_reports


def test_what_holds_hardly_a_token_is_not_read_on(bridge: Any, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("w" * 2**20, encoding="utf-8")
    with pytest.raises(Refused, match=r"characters of .* hold fewer tokens than one example of 16"):
        Windows(bridge, path, length=16, size=4)
    path.write_text(text() + " " * 2**21 + text(), encoding="utf-8")
    with pytest.warns(UserWarning, match="what follows is not used"):
        batches = [*Windows(bridge, path, length=16, size=4)]
    # That the second text was read would double it.
    assert 600 < sum(batch.numel() for batch in batches) < 1100


def test_an_example_holds_more_than_the_token_that_begins_it(
    bridge: Any, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "t.txt"
    path.write_text(text(), encoding="utf-8")
    with pytest.raises(Refused, match="--length 1 holds the token that begins every example"):
        Windows(bridge, path, length=1, size=4)
    assert next(iter(Windows(bridge, path, length=2, size=4))).shape == (4, 2)
