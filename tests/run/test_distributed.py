"""Several processes see a shard each, and rank 0 has the numbers of one process."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest
from partials import batches, observed, reported, require_equal

import basis_probe as bp
from basis_probe import demo
from basis_probe.cli import main
from basis_probe.run.distributed import gathered, local_device

pytestmark = pytest.mark.filterwarnings("ignore::basis_probe.MisleadingNull")

_SCRIPT = """
import sys, torch, basis_probe as bp
sys.path.insert(0, {tests!r})
from partials import batches, observed
with bp.process_group() as (rank, world):
    assert world == {world}
    total = bp.gathered(observed(batches(), shard=(rank, world), max_samples={most}))
    assert (total is None) == (rank > 0)
    if total is not None:
        total.save({path!r})
"""


def _torchrun(processes: int, *words: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes), *words]
    where = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    where |= {"OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=500, env=where
    )
    assert run.returncode == 0, run.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "most"), [(2, None), pytest.param(4, 150, marks=pytest.mark.slow)]
)
def test_processes_give_the_numbers_of_one(
    processes: int, most: int | None, tmp_path: pathlib.Path
) -> None:
    path, script = tmp_path / "total.safetensors", tmp_path / "script.py"
    here = str(pathlib.Path(__file__).parents[1])
    script.write_text(_SCRIPT.format(tests=here, world=processes, most=most, path=str(path)))
    _torchrun(processes, str(script))
    total, whole = bp.Partial.load(path), observed(batches(), max_samples=most)
    require_equal(total, whole, within=1e-11)
    one, other = reported(total), reported(whole)
    for site in one:
        for name, score in site.scores.items():
            twin = other[site.site].scores[name]
            assert score.effect == pytest.approx(twin.effect, rel=1e-9, nan_ok=True)


def test_a_process_on_its_own_is_all_there_is() -> None:
    with bp.process_group() as (rank, world):
        assert (rank, world) == (0, 1)
        partial = observed(batches(2))
        assert gathered(partial) is partial


def test_processes_of_one_machine_take_an_accelerator_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert local_device("cuda") == "cuda"
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert [local_device(name) for name in ("cuda", "cuda:1", "cpu")] == ["cuda:3", "cuda:1", "cpu"]


# --- on the command line --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("model")
    text = folder / "text.txt"
    text.write_text("\n".join(demo.texts(60, 2)), encoding="utf-8")
    return [
        "report", str(demo.MODEL_DIR), "--text", str(text), "--length", "16", "--batch-size", "8",
        "--sites", "blocks.1.hook_resid_pre", "--max-samples", "500",
    ]  # fmt: skip


def _alike(one: bp.Report, other: bp.Report) -> None:
    assert one.sites == other.sites
    for site in one:
        twin = other[site.site]
        assert (site.n_samples, site.verdict.outcome) == (twin.n_samples, twin.verdict.outcome)
        for name, score in site.scores.items():
            assert score.observed == pytest.approx(twin.scores[name].observed, rel=1e-9)
            assert score.effect == pytest.approx(twin.scores[name].effect, rel=1e-9)
            streamed = twin.scores[name].all_samples
            assert score.all_samples == pytest.approx(streamed, rel=1e-9, nan_ok=True)


def _read(path: pathlib.Path) -> bp.Report:
    return bp.Report.from_json(path.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_shards_are_merged(
    words: list[str], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = ["--model", str(demo.MODEL_DIR)]
    parts = [tmp_path / f"{index}.safetensors" for index in range(2)]
    for index, part in enumerate(parts):
        assert main([*words, "--shard", f"{index}/2", "--out", str(part)]) == 0
    assert main(["merge", *map(str, parts), *ours, "--out", str(tmp_path / "merged.json")]) == 0
    assert main([*words, "--out", str(tmp_path / "whole.json")]) == 0
    _alike(_read(tmp_path / "merged.json"), _read(tmp_path / "whole.json"))
    assert main(["merge", str(parts[0]), *ours, "--out", str(tmp_path / "half.json")]) == 130
    assert "Shards of the data are missing: 1/2." in _read(tmp_path / "half.json").notes
    capsys.readouterr()
    assert main(["merge", str(parts[0]), str(parts[0])]) == 2
    assert "is in both partials" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--shard", "0/2"], "give --shard I/N with one --out FILE.safetensors"),
        (["--out", "x.safetensors"], "give --shard I/N with one --out FILE.safetensors"),
        (["--shard", "2/2"], "'2/2' is no shard"),
        (
            ["--shard", "0/2", "--out", "x.safetensors", "--examples", "3"],
            "leave out one of --shard and --examples",
        ),
        (["--examples", "-1"], "-1' is no whole number from 0 to 10,000"),
        (["--memory-budget", "0"], "'0' is not a positive number of gigabytes"),
    ],
)
def test_words_that_do_not_fit_together(
    words: list[str], more: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = main([*words, *more])
    except SystemExit as leaving:
        status = leaving.code
    assert status == 2
    assert says in " ".join(capsys.readouterr().err.split())


def test_parts_that_are_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["merge", "nowhere.safetensors"]) == 2
    assert "there is no file nowhere.safetensors" in capsys.readouterr().err


@pytest.mark.slow
def test_torchrun_writes_one_report(words: list[str], tmp_path: pathlib.Path) -> None:
    words = [*words, "--examples", "2"]
    _torchrun(2, "-m", "basis_probe", *words, "--out", str(tmp_path / "two.json"))
    assert main([*words, "--out", str(tmp_path / "one.json")]) == 0
    two, one = _read(tmp_path / "two.json"), _read(tmp_path / "one.json")
    _alike(two, one)
    assert [site.examples for site in two] == [site.examples for site in one] != [None]
