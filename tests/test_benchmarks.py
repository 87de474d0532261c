"""The benchmarks run: what they read of the package by its inner names is there."""

import json
import subprocess
import sys

import pytest
import torch
from test_structure import PACKAGE
from torch import nn

import basis_probe as bp

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


def test_proofs_from_configurations_are_measured() -> None:
    from benchmarks import configuration

    threads = torch.get_num_threads()
    cells = [cell.strip() for cell in configuration.measured("GPT-2 XL", 2).split("|")]
    torch.set_num_threads(threads)
    _, name, layers, claims, seconds, memory, _ = cells
    assert (name, layers, claims) == ("GPT-2 XL", "2", "62 sites, 60 claims, 60 proved")
    assert float(seconds) >= 0 and float(memory) > 0


def test_proofs_of_models_on_disk_are_measured() -> None:
    from benchmarks import on_disk

    header, _, row = on_disk.table(layers=1, width=256, neurons=512)
    assert header.count("|") == row.count("|") == 7
    size, layers, claims, *figures = [cell.strip() for cell in row.split("|")[1:-1]]
    parameters = 2 * 32000 * 256 + 4 * 256**2 + 3 * 256 * 512 + 3 * 256
    assert float(size) == round(2 * parameters / 1e9, 1) and layers == "1"
    sites, claimed, proved = (int(words.split()[0]) for words in claims.split(", "))
    assert sites >= claimed == proved > 20
    assert all(float(figure) >= 0 for figure in figures)


def test_what_is_measured_on_an_accelerator_runs_on_a_cpu_in_small(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from benchmarks import gpu, whole

    def tiny(tokens: int) -> whole.Made:
        ids = torch.randint(0, 200, (4, 64), generator=torch.Generator().manual_seed(0))
        return gpu.llama("tiny", torch.device("cpu")).float(), [ids, ids.flip(1)]

    monkeypatch.setitem(whole.MODELS, "demo", ("tiny", tiny))
    asked = gpu.Asked(torch.device("cpu"), small=True)
    parts = [name for name in gpu.PARTS if "GPT" not in name and "stories" not in name]
    found = gpu.measured(asked, minutes=3, only=[name for name in parts if "layer" not in name])
    assert [*found] == [name for name in parts if "layer" not in name]
    assert not [values for values in found.values() if isinstance(values, str)]
    proofs = found["7 B, certificates"]
    assert proofs["claims proved"] == proofs["sites"] > 20 and not proofs["claims refuted"]
    alike = found["demo, CPU and device"]
    assert alike["as promised"] and alike["sites"] > 8
    assert alike["float32: largest difference of effects"] == 0
    assert alike["bfloat16: outcomes that differ"] == []
    assert all(line.count("|") == 4 for line in gpu.table(found).splitlines())


def test_what_there_is_no_time_for_is_left_out_and_what_fails_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from benchmarks import gpu

    asked = gpu.Asked(torch.device("cpu"), small=False)
    assert set(gpu.measured(asked, minutes=0).values()) == {"left out: no time"}

    def fails(asked: gpu.Asked) -> dict[str, object]:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(gpu, "PARTS", {"one": (0.0, fails), "two": (0.0, lambda asked: {"x": 1})})
    found = gpu.measured(asked, minutes=1)
    assert found["one"] == "failed: RuntimeError: out of memory" and found["two"]["x"] == 1
    assert "| one | failed: RuntimeError: out of memory | |" in gpu.table(found)


def test_comparisons_are_those_of_the_plain_formulas_and_measured_beside_them() -> None:
    from benchmarks import comparison

    rows = [line.split(" | ") for line in comparison.similarities(600, 24, 200)[2:]]
    assert len(rows) == 12
    gaps = [row[3] for row in rows]
    assert gaps[-2:] == ["held out"] * 2 and max(map(float, gaps[:-2])) < 1e-6
    for row in rows:
        own, plain, ratio = (float(cell.strip(" |")) for cell in row[4:])
        assert own > 0 and plain > 0 and ratio == pytest.approx(own / plain, rel=0.2)


def test_joining_and_saving_are_printed_by_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks import __main__ as command
    from benchmarks import comparison, saving

    monkeypatch.setitem(command._HERE, "comparison", lambda: comparison.joining(16, 3, 64))
    monkeypatch.setitem(command._HERE, "saving", lambda: saving.table(2, 128, 512))
    asked = ["benchmarks", "--only", "comparison", "saving", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", asked)
    threads = torch.get_num_threads()
    try:
        command.main()
    finally:
        torch.set_num_threads(threads)
    lines = capsys.readouterr().out.splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("| one forward pass"))
    joined = [float(line.split("|")[2]) for line in lines[start : start + 6]]
    assert 0 < joined[0] < min(joined[1:5]) and joined[3] < joined[4]
    json_row, page = (
        [cell.strip() for cell in line.split("|")[2:-1]]
        for line in lines
        if line.startswith(("| JSON", "| page"))
    )
    # Ten sites, of which one holds three values of every axis at the least.
    assert float(json_row[0]) > 10 * 128 * 3 / 1e6
    assert float(page[0]) > 0 and page[2] == "" != json_row[2]


def test_effects_that_differ_are_seen() -> None:
    from benchmarks import gpu

    def report(seed: int) -> bp.Report:
        model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        x = torch.randn(300, 8, generator=torch.Generator().manual_seed(seed))
        return bp.probe(model, [x], seed=0, progress=False)

    torch.manual_seed(0)
    one = report(0)
    assert gpu.largest_gap(one, one) == 0
    assert gpu.largest_gap(one, report(1)) > gpu.ALIKE
