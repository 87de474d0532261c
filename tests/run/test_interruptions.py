"""Signals at any moment of a run lose nothing that was gathered, and leave nothing behind."""

from __future__ import annotations

import os
import pathlib
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from interrupted import Counted, Strikes, moments, unchanged
from torch import nn

import basis_probe as bp

ROWS, SIZE = 4, 60
NULL = bp.nulls.Rotation(frames=19, samples=64)

pytestmark = [
    pytest.mark.filterwarnings("ignore::basis_probe.MisleadingNull"),
    # What checks annotations draws random numbers of its own.
    pytest.mark.usefixtures("as_shipped"),
]


def _model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3))


def _data() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(SIZE, 8, generator=generator) for _ in range(ROWS)]


def _probe(data: Any, model: nn.Module, **settings: Any) -> bp.Report:
    settings = {"sites": "1", "progress": False, "certificates": False, "null": NULL} | settings
    return bp.probe(model, data, **settings)


def _numbers(report: bp.Report, site: str = "1") -> dict[str, float]:
    return {name: score.observed for name, score in report[site].scores.items()}


class _Clean:
    """What runs give that nothing interrupts, of the first so many batches."""

    def __init__(self) -> None:
        self._found = dict[int, bp.Report]()

    def __getitem__(self, batches: int) -> bp.Report:
        if batches not in self._found:
            self._found[batches] = _probe(_data()[:batches], _model(), sites=["0", "1"])
        return self._found[batches]


def _require_kept(report: bp.Report, done: int, clean: _Clean) -> None:
    """Fails unless the report is one of whole batches, all that were done among them."""
    # Where there are several passes, the first one is of the first site.
    site = report.sites[0]
    samples = report[site].n_samples
    assert samples % SIZE == 0 and samples >= done * SIZE
    # What the null did not come to is missing; what there is are the numbers of these batches.
    found, right = _numbers(report, site), _numbers(clean[samples // SIZE], site)
    assert {name: found[name] for name in found if name in right} == {
        name: right[name] for name in right if name in found
    }
    assert report.partial or done == ROWS


def _with_checkpoint(count: int, folder: pathlib.Path) -> None:
    path, clean = folder / "run", _Clean()
    with Strikes() as whole:
        whole_report = _probe(_data(), _model(), checkpoint=path)
    early = 0
    for at, then in moments(count, whole.calls):
        model, data = _model(), Counted(_data())
        with unchanged(model):
            try:
                with Strikes(signal.SIGINT, at, then):
                    report = _probe(data, model, checkpoint=path)
            except KeyboardInterrupt:
                early += 1
                assert data.done == 0 and list(folder.iterdir()) == [], (at, then)
            else:
                _require_kept(report, data.done, clean)
        # What a run that was interrupted left is what the next one goes on from.
        again = _probe(_data(), _model(), checkpoint=path)
        assert again["1"] == whole_report["1"], (at, then)
        assert not again.partial and list(folder.iterdir()) == [], (at, then)
    assert 0 < early < count


@pytest.mark.slow
def test_interruptions_lose_nothing(tmp_path: pathlib.Path) -> None:
    _with_checkpoint(5, tmp_path)


@pytest.mark.battery
def test_two_hundred_interruptions_lose_nothing(tmp_path: pathlib.Path) -> None:
    _with_checkpoint(200, tmp_path)


OTHER = _model(1)


def _beside(data: Any, model: nn.Module) -> bp.Report:
    return _probe(data, model, reference=OTHER)


def _in_parts(data: Any, model: nn.Module) -> bp.Report:
    part = bp.observe(model, data, sites="1", null=NULL, progress=False)
    while True:
        try:
            return part.report(model, null=NULL, progress=False, certificates=False)
        except KeyboardInterrupt:
            # The user has the part still.
            continue


def _with_examples(data: Any, model: nn.Module) -> bp.Report:
    return _probe(data, model, examples=1)


def _in_two_passes(data: Any, model: nn.Module) -> bp.Report:
    return _probe(data, model, sites=["0", "1"], memory_budget=30_000)


DOORS: dict[str, Callable[[Any, nn.Module], bp.Report]] = {
    "with a reference": _beside,
    "observe and report": _in_parts,
    "with examples": _with_examples,
    "in two passes": _in_two_passes,
}


def _through(door: Callable[[Any, nn.Module], bp.Report], count: int) -> None:
    clean = _Clean()
    with Strikes() as whole:
        door(_data(), _model())
    early = 0
    for at, then in moments(count, whole.calls, seed=1):
        model, data = _model(), Counted(_data())
        with unchanged(model):
            try:
                with Strikes(signal.SIGINT, at, then):
                    report = door(data, model)
            except KeyboardInterrupt:
                early += 1
                assert data.done == 0, (at, then)
            else:
                _require_kept(report, min(data.done, ROWS), clean)
    assert early < count


@pytest.mark.sample(default=1)
@pytest.mark.filterwarnings("ignore:To stay within")
@pytest.mark.parametrize("name", DOORS)
def test_interruptions_at_every_door_lose_nothing(name: str) -> None:
    _through(DOORS[name], 4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:To stay within")
@pytest.mark.parametrize("name", DOORS)
def test_more_interruptions_at_every_door_lose_nothing(name: str) -> None:
    _through(DOORS[name], 60)


class _Failing:
    """Data that can be read once; the next time their first batch does something else."""

    def __init__(self, act: Callable[[], object]) -> None:
        self.act, self.readings = act, 0

    def __iter__(self) -> Iterator[torch.Tensor]:
        self.readings += 1
        if self.readings == 2:
            self.act()
        yield from _data()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:To stay within")
def test_a_second_pass_that_does_not_begin_leaves_what_the_first_one_saw() -> None:
    def fail() -> None:
        raise OSError("the disk is gone")

    whole = _in_two_passes(_data(), _model())
    stopped = _in_two_passes(_Failing(lambda: signal.raise_signal(signal.SIGINT)), _model())
    with pytest.raises(bp.StreamError, match="the disk is gone") as failed:
        _in_two_passes(_Failing(fail), _model())
    for report in (stopped, failed.value.report()):
        assert report.partial and len(report.site_reports) == 1
        assert report.site_reports[0].scores == whole.site_reports[0].scores
        assert any("No data passed for 1 sites" in note for note in report.notes)


def _attached(count: int) -> None:
    """A loop of the user's is broken off; what was collected is what whole passes show."""
    clean: dict[int, dict[str, float]] = {}

    def collected(model: nn.Module, data: Any, strikes: Strikes) -> tuple[Any, bool]:
        probe = bp.attach(model, sites="1", null=NULL, progress=False, certificates=False)
        try:
            with strikes, probe:
                for batch in data:
                    model(batch)
        except KeyboardInterrupt:
            return probe, True
        return probe, False

    for batches in range(1, ROWS + 1):
        probe, _ = collected(_model(), _data()[:batches], Strikes())
        clean[batches] = _numbers(probe.report())
    whole = Strikes()
    collected(_model(), _data(), whole)
    for at, then in moments(count, whole.calls, seed=2):
        model, data = _model(), Counted(_data())
        with unchanged(model):
            probe, stopped = collected(model, data, Strikes(signal.SIGINT, at, then))
        assert stopped and probe.passes >= data.done - (data.done == ROWS)
        if probe.passes:
            report = probe.report()
            assert report["1"].n_samples == probe.passes * SIZE
            assert _numbers(report) == clean[probe.passes], (at, then)


@pytest.mark.slow
def test_a_loop_that_is_broken_off_leaves_whole_passes() -> None:
    _attached(5)


@pytest.mark.slow
def test_a_loop_that_is_broken_off_anywhere_leaves_whole_passes() -> None:
    _attached(100)


class _Stopping(nn.Module):
    """Does something in one of its passes over a whole batch."""

    def __init__(self, at: int, act: Callable[[], object]) -> None:
        super().__init__()
        self.layers = _model()
        self.at, self.act, self.passes = at, act, [0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.passes[0] += len(x) == SIZE
        if self.passes[0] == self.at:
            self.act()
        return self.layers(x)


def _child(job: Callable[[], object]) -> int:
    """How a forked process ended in which a job ran: its exit code, or minus its signal."""
    process = os.fork()
    if not process:
        status = 1
        try:
            for number in (signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), 2)
            job()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("at", [2, 3])
def test_a_process_that_is_told_to_end_writes_its_checkpoint_and_ends(
    number: int, at: int, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "run"

    def job() -> None:
        model = _Stopping(at, lambda: os.kill(os.getpid(), number))
        bp.probe(model, _data(), sites="layers.1", checkpoint=path, progress=False)

    assert _child(job) == -number
    assert bp.Partial.load(path).batches == at - 1
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
def test_a_process_that_is_told_to_end_anywhere_keeps_what_it_saw(tmp_path: pathlib.Path) -> None:
    path, told = tmp_path / "run", tmp_path / "told"
    with Strikes() as whole:
        whole_report = _probe(_data(), _model(), checkpoint=path)
    for place, (at, then) in enumerate(moments(200, whole.calls, seed=3)):
        number, data = (signal.SIGTERM, signal.SIGHUP)[place % 2], Counted(_data())

        def job(number: int = number, at: int = at, then: int = then, data: Counted = data) -> None:
            class Telling(Counted):
                def __iter__(self) -> Iterator[Any]:
                    for batch in super().__iter__():
                        told.write_text(str(self.done))
                        yield batch

            with Strikes(number, at, then):
                _probe(Telling(data.data), _model(), checkpoint=path)

        told.write_text("0")
        assert _child(job) in (-number, 0), (at, then)
        done = int(told.read_text())
        told.unlink()
        if path.exists():
            assert bp.Partial.load(path).batches >= done, (at, then)
        else:
            assert done in (0, ROWS - 1), (at, then)
        again = _probe(_data(), _model(), checkpoint=path)
        assert again["1"] == whole_report["1"]
        assert list(tmp_path.iterdir()) == [], (at, then)


def test_a_handler_that_leaves_the_program_leaves_a_checkpoint(tmp_path: pathlib.Path) -> None:
    def leave(*_: object) -> None:
        sys.exit(3)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        model = _Stopping(3, lambda: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(SystemExit):
            bp.probe(model, _data(), sites="layers.1", checkpoint=tmp_path / "run", progress=False)
        assert signal.getsignal(signal.SIGTERM) is leave
    finally:
        signal.signal(signal.SIGTERM, before)
    assert bp.Partial.load(tmp_path / "run").batches == 2
