"""A command that is told to stop, at any moment, leaves what it saw in a file, and nothing else."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import sys
import traceback
from typing import Any

import pytest
from interrupted import Strikes, moments, unchanged
from small_language_model import saved, text

import basis_probe as bp
from basis_probe.cli import main, report
from basis_probe.cli.windows import Windows

pytest.importorskip("transformer_lens")

# What checks annotations draws random numbers of its own.
pytestmark = [
    pytest.mark.usefixtures("as_shipped"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork"),
]

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A small language model, its words, and a text."""
    where = saved(tmp_path_factory.mktemp("model"))
    (where / "text.txt").write_text(text(), encoding="utf-8")
    return where


@pytest.fixture(scope="module")
def bridge(folder: pathlib.Path) -> Any:
    from basis_probe.model.load import from_directory

    return from_directory(str(folder), device="cpu")


def _words(folder: pathlib.Path, where: pathlib.Path, checkpoint: bool) -> list[str]:
    words = [
        "report", str(folder), "--text", str(folder / "text.txt"), "--length", "16",
        "--batch-size", "8", "--sites", "blocks.0.mlp.hook_post",
        "--out", str(where / "r.json"), "--out", str(where / "r.html"),
    ]  # fmt: skip
    return [*words, "--checkpoint", str(where / "run")] if checkpoint else words


def _run(
    words: list[str], bridge: Any, told: pathlib.Path, strikes: Strikes
) -> tuple[int, str, int]:
    """(exit status, what was said, batches that were done) of the command in a forked process."""
    process = os.fork()
    if not process:
        status = 99
        try:
            with told.open("w", buffering=1) as file:
                sys.stdout = sys.stderr = file
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
                for number in NUMBERS:
                    signal.signal(
                        number,
                        signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL,
                    )
                try:
                    status = _command(words, bridge, strikes)
                except BaseException:
                    traceback.print_exc()
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    said = told.read_text(encoding="utf-8")
    return status, said, said.count("another batch")


def _command(words: list[str], bridge: Any, strikes: Strikes) -> int:
    whole = Windows.__iter__

    def watched(self: Windows) -> Any:
        for number, batch in enumerate(whole(self)):
            if number:
                os.write(2, b"another batch\n")
            yield batch
        os.write(2, b"another batch\n")

    Windows.__iter__ = watched
    report.load = lambda *_: bridge
    # Tables are drawn with random numbers.
    with unchanged(bridge, besides="random"):
        try:
            with strikes:
                status = main(words)
        except KeyboardInterrupt:
            status = 128 + signal.SIGINT
    os.write(2, f"{strikes.calls} calls\n".encode())
    return status


def _kept(where: pathlib.Path) -> int:
    """From how many batches a report or a part can be read there; fails for a file of any else."""
    most = 0
    for path in where.iterdir():
        if path.suffix == ".html":
            assert path.read_text(encoding="utf-8").rstrip().endswith("</html>")
        elif path.suffix == ".json":
            most = max(most, bp.Report.load(path).provenance.n_batches)
        else:
            assert path.name == "run" or path.name == "r.part.safetensors", path.name
            most = max(most, bp.Partial.load(path).batches)
    return most


def _try(count: int, folder: pathlib.Path, bridge: Any, tmp_path: pathlib.Path) -> None:
    where, told = tmp_path / "out", tmp_path / "told"
    where.mkdir()
    words = _words(folder, where, checkpoint=False)
    status, said, batches = _run(words, bridge, told, Strikes())
    assert (status, _kept(where)) == (0, batches) and batches > 2, said
    calls = int(said.split()[-2])
    whole = json.loads((where / "r.json").read_text())["report"]["site_reports"]
    for place, (at, then) in enumerate(moments(count, calls, seed=4)):
        for path in where.iterdir():
            path.unlink()
        number, moment = NUMBERS[place % 3], (NUMBERS[place % 3], at, then)
        words = _words(folder, where, checkpoint=place % 4 > 1)
        status, said, done = _run(words, bridge, told, Strikes(number, at, then))
        assert status in (0, 128 + number, -number), (moment, status, said)
        assert "Traceback" not in said and "Error" not in said, (moment, said)
        assert _kept(where) >= done, (moment, status, said)
        if status == 0:
            assert {"r.json", "r.html"} == {path.name for path in where.iterdir()}, moment
        if "--checkpoint" in words and place % 10 == 2:
            status, said, _ = _run(words, bridge, told, Strikes())
            again = json.loads((where / "r.json").read_text())["report"]["site_reports"]
            assert (status, again) == (0, whole), (moment, said)
            assert {"r.json", "r.html"} == {path.name for path in where.iterdir()}, moment


@pytest.mark.slow
def test_a_command_that_is_stopped_anywhere_keeps_what_it_saw(
    folder: pathlib.Path, bridge: Any, tmp_path: pathlib.Path
) -> None:
    _try(30, folder, bridge, tmp_path)


@pytest.mark.battery
def test_a_command_that_is_stopped_at_200_moments_keeps_what_it_saw(
    folder: pathlib.Path, bridge: Any, tmp_path: pathlib.Path
) -> None:
    _try(200, folder, bridge, tmp_path)
