"""Whoever gives a folder where a file is read is told that it is one, at every door."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import basis_probe as bp
from basis_probe.cli import main

READERS: dict[str, Callable[[str], object]] = {
    "Report.load": bp.Report.load,
    "ReportComparison.load": bp.results.ReportComparison.load,
    "Partial.load": bp.Partial.load,
    "probe_activations, one array": lambda path: bp.probe_activations([path, path]),
    "similarity": lambda path: bp.similarity(path, path),
}
COMMANDS = {
    "show": ["show", "{}"],
    "compare": ["compare", "{}", "a={}"],
    "merge": ["merge", "{}", "--model", "."],
    "report": ["report", ".", "--text", "{}"],
}
ENDINGS = {
    "Partial.load": ".safetensors",
    "similarity": ".npz",
    "probe_activations, one array": ".npy",
}


@pytest.mark.parametrize("door", READERS)
@pytest.mark.parametrize("there", [True, False])
def test_a_reader_says_what_is_there(door: str, there: bool, tmp_path: Path) -> None:
    path = tmp_path / f"held{ENDINGS.get(door, '.json')}"
    if there:
        path.mkdir()
    said = "held.* is a folder, and a file is needed" if there else "there is no file .*held"
    with pytest.raises((OSError, ValueError), match=said):
        READERS[door](str(path))


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("there", [True, False])
def test_a_command_says_what_is_there(
    command: str, there: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "held"
    if there:
        path.mkdir()
    assert main([word.format(path) for word in COMMANDS[command]]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert ("held is a folder, and a file is needed" in said) is there
    assert ("there is no file" in said) is not there
