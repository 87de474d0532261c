"""Several processes see a shard each, and rank 0 has the numbers of one process."""

from __future__ import annotations

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from interrupted import Strikes
from partials import batches, observed, reported, require_equal

import basis_probe as bp
from basis_probe import demo
from basis_probe.cli import main
from basis_probe.run import distributed
from basis_probe.run.distributed import gathered, local_device

pytestmark = pytest.mark.filterwarnings("ignore::basis_probe.MisleadingNull")

_SCRIPT = """
import sys, torch, basis_probe as bp
sys.path.insert(0, {tests!r})
from interrupted import Strikes
from partials import batches, observed
with bp.process_group() as (rank, world):
    assert world == {world}
    total = bp.gathered(observed(batches(), shard=(rank, world), max_samples={most}))
    assert (total is None) == (rank > 0)
    if total is not None:
        total.save({path!r})
"""


def _run_torchrun(processes: int, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes), *words]
    where = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    where |= {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=500, env=where
    )


def _torchrun(processes: int, *words: str) -> None:
    run = _run_torchrun(processes, *words)
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


# --- processes that die ---------------------------------------------------------------------------


def _four(
    work: Callable[[int], object], told: pathlib.Path, *, hanging: int | None = None
) -> list[tuple[int, str]]:
    """(exit code, or minus the signal; what it said) of four forked processes that form a group.

    One that hangs is ended when the others have ended.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes: list[int] = []
    for rank in range(4):
        process = os.fork()
        if process:
            processes.append(process)
            continue
        status = 1
        try:
            with open(told / f"{rank}.txt", "w") as file:
                sys.stdout = sys.stderr = file
                os.dup2(file.fileno(), 2)
                os.environ |= {
                    "WORLD_SIZE": "4", "RANK": str(rank), "LOCAL_RANK": str(rank),
                    "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
                    "GLOO_SOCKET_IFNAME": "lo",
                }  # fmt: skip
                try:
                    work(rank)
                    status = 0
                except Exception as error:
                    file.write(f"{type(error).__name__}: {error}")
        finally:
            os._exit(status)
    statuses: dict[int, int] = {}
    for rank in sorted(range(4), key=lambda rank: rank == hanging):
        if rank == hanging:
            os.kill(processes[rank], signal.SIGKILL)
        statuses[rank] = os.waitstatus_to_exitcode(os.waitpid(processes[rank], 0)[1])
    ended = [statuses[rank] for rank in range(4)]
    said = [(told / f"{rank}.txt").read_text(errors="replace") for rank in range(4)]
    return list(zip(ended, said, strict=True))


def _die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _stop(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def _until(number: int, act: Callable[[], object]) -> Iterator[Any]:
    """Batches, and something that happens in place of one of them."""
    for place, batch in enumerate(batches()):
        if place == number:
            act()
        yield batch


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "_BEAT", 0.1)
    monkeypatch.setattr(distributed, "_SILENT", 1.5)


@pytest.mark.usefixtures("impatient")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork")
@pytest.mark.parametrize(
    ("victim", "moment"),
    [
        (1, "gathering"),
        (3, "handing over"),
        pytest.param(2, "seeing", marks=pytest.mark.slow),
        pytest.param(0, "gathering", marks=pytest.mark.slow),
        pytest.param(0, "adding", marks=pytest.mark.slow),
    ],
)
def test_those_that_are_left_say_who_died(victim: int, moment: str, tmp_path: pathlib.Path) -> None:
    def work(rank: int) -> None:
        mine, path = rank == victim, tmp_path / f"{rank}.safetensors"
        with bp.process_group():
            data = _until(5, _die) if mine and moment == "seeing" else batches()
            observed(data, shard=(rank, 4)).save(path)
            if mine and moment == "gathering":
                _die()
            if mine:
                distributed._send = distributed._received = _die
            bp.gathered(bp.Partial.load(path))

    start = time.monotonic()
    ended = _four(work, tmp_path)
    assert time.monotonic() - start < 30
    for rank, (status, said) in enumerate(ended):
        if rank == victim:
            assert status == -signal.SIGKILL
            continue
        assert status == 1 and "ConnectionError" in said, said
        assert f"process {victim} of 4" in said, said
        assert bp.Partial.load(tmp_path / f"{rank}.safetensors").batches > 0


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork")
def test_a_process_that_hangs_is_missing_and_one_that_is_slow_is_not(
    tmp_path: pathlib.Path,
) -> None:
    def late(rank: int) -> None:
        with bp.process_group():
            part = observed(batches(), shard=(rank, 4))
            time.sleep(3.0 * (rank == 3))
            total = bp.gathered(part)
            assert total is None or total.batches == 7

    assert [status for status, _ in _four(late, tmp_path)] == [0] * 4

    def hanging(rank: int) -> None:
        with bp.process_group():
            if rank == 1:
                # Somebody has to let it go on, so that it ends.
                subprocess.Popen(["sh", "-c", f"sleep 8; kill -CONT {os.getpid()}"])
                _stop()
            bp.gathered(observed(batches(), shard=(rank, 4)))

    for rank, (status, said) in enumerate(_four(hanging, tmp_path)):
        assert status == 1, said
        assert rank == 1 or "process 1 of 4 died, or did not come" in said, said


@pytest.mark.usefixtures("impatient")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork")
@pytest.mark.parametrize(
    ("victim", "moment", "by_hand"),
    [
        (0, "seeing", True),
        pytest.param(2, "seeing", True, marks=pytest.mark.slow),
        pytest.param(3, "handing over", True, marks=pytest.mark.slow),
        pytest.param(0, "adding", False, marks=pytest.mark.slow),
    ],
)
def test_those_that_are_left_do_not_wait_for_one_that_hangs(
    victim: int, moment: str, by_hand: bool, tmp_path: pathlib.Path
) -> None:
    def work(rank: int) -> None:
        mine, path = rank == victim, tmp_path / f"{rank}.safetensors"
        if by_hand:
            torch.distributed.init_process_group("gloo")
        with nullcontext() if by_hand else bp.process_group():
            data = _until(5, _stop) if mine and moment == "seeing" else batches()
            observed(data, shard=(rank, 4)).save(path)
            if mine:
                distributed._send = distributed._received = _stop
            # Without `process_group` nothing is known of one before it comes.
            bp.gathered(bp.Partial.load(path), timeout=3.0 if by_hand else 100.0)

    start, ended = time.monotonic(), _four(work, tmp_path, hanging=victim)
    assert time.monotonic() - start < 30
    for rank, (status, said) in enumerate(ended):
        if rank == victim:
            assert status == -signal.SIGKILL
            continue
        assert status == 1 and "ConnectionError" in said, said
        assert f"process {victim} of 4" in said, said
        assert bp.Partial.load(tmp_path / f"{rank}.safetensors").batches > 0


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork")
@pytest.mark.usefixtures("impatient")
@pytest.mark.slow
def test_processes_may_take_their_time_between_two_sums(tmp_path: pathlib.Path) -> None:
    def work(rank: int) -> None:
        torch.distributed.init_process_group("gloo")
        for _ in range(2):
            total = bp.gathered(observed(batches(), shard=(rank, 4)))
            assert total is None or total.batches == 7
            time.sleep(3.0 * (rank == 1))

    assert [status for status, _ in _four(work, tmp_path)] == [0] * 4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork")
def test_a_process_that_does_not_come_in_time_is_missing(tmp_path: pathlib.Path) -> None:
    def work(rank: int) -> None:
        with bp.process_group():
            part = observed(batches(2), shard=(rank, 4))
            time.sleep(2.0 * (rank == 2))
            bp.gathered(part, timeout=0.5)

    for rank, (status, said) in enumerate(_four(work, tmp_path)):
        # The one that comes late finds nobody, unless it finds the others still leaving.
        assert status == 1 and "ConnectionError" in said, said
        assert rank == 2 or "process 2 of 4 died, or did not come in time" in said, said


_DYING = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from interrupted import Strikes
import basis_probe as bp
from interrupted import Strikes
from partials import batches, observed

class Fatal(Strikes):
    def _count(self, frame, event, _):
        if os.environ["RANK"] == {victim!r}:
            super()._count(frame, event, _)

def run():
    with bp.process_group() as (rank, world):
        part = observed(batches(), shard=(rank, world))
        part.save(f"{folder}/{{rank}}.safetensors")
        bp.gathered(part)

with Fatal(signal.SIGKILL, {at}):
    run()
"""


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param(moment, marks=pytest.mark.slow if moment in (0, 5, 8) else pytest.mark.battery)
        for moment in range(10)
    ],
)
def test_torchrun_ends_when_one_of_four_is_killed(moment: int, tmp_path: pathlib.Path) -> None:
    script, victim = tmp_path / "script.py", moment % 4
    here = str(pathlib.Path(__file__).parents[1])
    with Strikes() as whole:
        observed(batches(), shard=(victim, 4)).save(tmp_path / "counted")
    # The last ones come while it gathers.
    at = 1 + whole.calls * moment // 8 if moment < 8 else whole.calls + 10 * (moment - 7)
    script.write_text(_DYING.format(tests=here, victim=str(victim), folder=str(tmp_path), at=at))
    start = time.monotonic()
    run = _run_torchrun(4, str(script))
    assert time.monotonic() - start < 120
    assert run.returncode == 1 and "SIGKILL" in run.stderr, run.stderr[-3000:]
    for part in tmp_path.glob("*.safetensors"):
        assert bp.Partial.load(part).batches > 0
    # A process that was ended while it wrote leaves its new file behind until the next one writes.
    counted = bp.Partial.load(tmp_path / "counted")
    for rank in range(4):
        counted.save(tmp_path / f"{rank}.safetensors")
    assert list(tmp_path.glob(".*.tmp")) == []


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


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork")
@pytest.mark.parametrize("told", [False, True])
def test_commands_whose_company_dies_say_where_their_parts_are(
    told: bool, words: list[str], tmp_path: pathlib.Path
) -> None:
    out = tmp_path / "r.json"

    def work(rank: int) -> None:
        def end_soon(partial: bp.Partial) -> bp.Partial | None:
            # Launchers end the others when one of them dies.
            if told:
                subprocess.Popen(["sh", "-c", f"sleep 2; kill {os.getpid()}"])
                distributed._SILENT = 1000.0
            return gathered(partial)

        distributed.gathered = _die if rank == 2 else end_soon
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        status = main([*words, "--out", str(out)])
        sys.stderr.flush()
        os._exit(status)

    for rank, (status, said) in enumerate(_four(work, tmp_path)):
        if rank == 2:
            assert status == -signal.SIGKILL
            continue
        # The others may find that process 0 was ended before they are.
        first = told and not rank
        assert status == (128 + signal.SIGTERM if first else 1) or (told and status == 143), said
        found = "".join(said.split())
        named = re.search(r"process(es)?(\d,)*2(,\d)*of4", found)
        assert named or (told and not first and "process0of4" in found), said
        assert f"-{rank}-of-4.safetensors" in found, said
        assert "Traceback" not in said
    assert len(list(tmp_path.glob("r.part-*.safetensors"))) == 4
    assert not out.exists()
