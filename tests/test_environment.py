"""Terminals, folders and locales as they are found on clusters and in containers."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest
import torch
from torch import nn

import basis_probe as bp

ROOT = str(pathlib.Path(bp.__file__).parents[1])

SCRIPT = """
import os, sys, torch, basis_probe as bp
from basis_probe.cli import main

NAME = "schicht_ä_層_" + "whose_name_no_table_has_room_for_" * 3

class Named(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.add_module(NAME, torch.nn.Linear(8, 12))

    def forward(self, x):
        return torch.relu(self.get_submodule(NAME)(x))

folder = sys.argv[1]
report = bp.probe(Named(), [torch.randn(200, 8)], certificates=False)
print(report)
print(repr(report))
for ending in (".html", ".md", ".csv", ".tex", ".json"):
    report.save(folder + "/r" + ending)
assert bp.Report.load(folder + "/r.json").sites == report.sites
status = main(["show", folder + "/r.json"])
sys.exit(status or main(["show", folder + "/r.json", "--json"]))
"""


def _run(
    folder: pathlib.Path, where: pathlib.Path | None = None, **settings: str | None
) -> subprocess.CompletedProcess[bytes]:
    """What the script says in an environment with these settings; None takes one away."""
    script = folder / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    found = os.environ | {"PYTHONPATH": ROOT, "MPLCONFIGDIR": str(folder)}
    for name, value in settings.items():
        found.pop(name, None)
        if value is not None:
            found[name] = value
    return subprocess.run(
        [sys.executable, "-W", "error::EncodingWarning", str(script), str(folder)],
        env=found, cwd=where or folder, capture_output=True, timeout=100, check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


ENVIRONMENTS: dict[str, dict[str, str | None]] = {
    "C": {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "cp1252": {"PYTHONIOENCODING": "cp1252", "NO_COLOR": "1"},
    "narrow": {"COLUMNS": "20", "TERM": "dumb"},
    "no home": {"HOME": None, "USERPROFILE": None, "XDG_CACHE_HOME": None, "MPLCONFIGDIR": None},
    "a home that is not there": {"HOME": "/nowhere", "MPLCONFIGDIR": None},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_a_report_is_made_and_shown_in_every_environment(name: str, tmp_path: pathlib.Path) -> None:
    run = _run(tmp_path, **ENVIRONMENTS[name])
    said = run.stdout + run.stderr
    assert run.returncode == 0, said.decode("utf-8", "replace")[-3000:]
    assert b"Traceback" not in said
    assert len(list(tmp_path.glob("r.*"))) == 5


@pytest.mark.slow
def test_folders_that_cannot_be_written_in_are_not_written_in(tmp_path: pathlib.Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(0o555)
    try:
        run = _run(tmp_path, home, HOME=str(home), XDG_CACHE_HOME=None)
        assert run.returncode == 0, run.stderr.decode("utf-8", "replace")[-3000:]
        assert list(home.iterdir()) == []
    finally:
        home.chmod(0o755)


class _Rows(torch.utils.data.Dataset[torch.Tensor]):
    """Rows that a worker process hands over."""

    def __len__(self) -> int:
        return 240

    def __getitem__(self, place: int) -> torch.Tensor:
        return torch.randn(8, generator=torch.Generator().manual_seed(place))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork")
def test_workers_of_every_kind_hand_over_the_same_rows(method: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 12), nn.ReLU())
    loader = torch.utils.data.DataLoader(
        _Rows(), batch_size=60, num_workers=2, multiprocessing_context=method
    )
    plain = torch.utils.data.DataLoader(_Rows(), batch_size=60)
    reports = [
        bp.probe(model, data, sites="1", progress=False, certificates=False)
        for data in (loader, plain)
    ]
    assert reports[0].site_reports == reports[1].site_reports
