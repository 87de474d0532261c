"""Jobs side by side give what they give one after another, and leave nothing of a thread behind."""

from __future__ import annotations

import contextlib
import itertools
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import matplotlib
import pytest
import torch
from matplotlib.figure import Figure

import basis_probe as bp
from basis_probe.model.load import quiet
from basis_probe.parallel import OneForAll, abreast, hearing, one_thread
from basis_probe.run import report as concluding
from basis_probe.run.report import Concluding
from basis_probe.show.canvas import drawn

WORKERS = [1, 2, 5]


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def _nothing() -> None:
    pass


def _one_after_the_other(count: int) -> list[Callable[[], int]]:
    """Jobs that can only end in the reverse of their order."""
    ended = [threading.Event() for _ in range(count + 1)]
    ended[count].set()

    def job(place: int) -> int:
        assert ended[place + 1].wait(20)
        ended[place].set()
        return place

    return [lambda place=place: job(place) for place in range(count)]


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("count", [0, 1, 7])
def test_results_lie_in_the_order_of_the_jobs(workers: int, count: int) -> None:
    seen: list[int] = []
    jobs = [lambda place=place: place**2 for place in range(count)]
    found = abreast(jobs, workers=workers, finished=lambda: seen.append(1))
    assert found == ([place**2 for place in range(count)], False)
    assert len(seen) == count


def test_jobs_run_at_the_same_time() -> None:
    assert abreast(_one_after_the_other(3), workers=3, finished=_nothing) == ([0, 1, 2], False)


@pytest.mark.parametrize("workers", WORKERS)
def test_a_failure_is_raised_and_what_runs_ends_first(workers: int) -> None:
    ended: list[int] = []

    def fails() -> int:
        raise LookupError("on purpose")

    jobs = [lambda: ended.append(0) or 0, fails, lambda: ended.append(2) or 2]
    with pytest.raises(LookupError, match="on purpose"):
        abreast(jobs, workers=workers, finished=_nothing)
    assert 0 in ended


@pytest.mark.parametrize("workers", WORKERS)
def test_an_interruption_keeps_what_is_done(workers: int) -> None:
    first = threading.Event()

    def one() -> int:
        first.set()
        return 1

    def interrupts() -> int:
        assert first.wait(20)
        raise KeyboardInterrupt

    found, interrupted = abreast([one, interrupts], workers=workers, finished=_nothing)
    assert interrupted
    assert found == [1, None]


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("grad", [True, False])
def test_threads_and_gradients_are_as_they_were(
    workers: int, grad: bool, two_threads: None
) -> None:
    jobs = [torch.is_grad_enabled] * 3
    with torch.set_grad_enabled(grad):
        assert abreast(jobs, workers=workers, finished=_nothing) == ([grad] * 3, False)
        if workers > 1:
            threads = abreast([torch.get_num_threads] * 3, workers=workers, finished=_nothing)
            assert threads == ([1, 1, 1], False)
    assert torch.get_num_threads() == 2
    new: list[int] = []
    thread = threading.Thread(target=lambda: new.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert new == [2]


def test_a_report_is_the_same_however_many_sites_are_compared_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    layers = [torch.nn.Linear(12, 12) if even else torch.nn.ReLU() for even in (1, 0) * 4]
    model, data = torch.nn.Sequential(*layers), [torch.randn(200, 12) ** 3]
    null, reports = bp.nulls.Counterfactual(frames=19, samples=200), list[bp.Report]()
    for workers in WORKERS:
        monkeypatch.setattr(Concluding, "_workers", lambda _, workers=workers: workers)
        reports.append(bp.probe(model, data, null=null, progress=False, certificates=False))
    assert len(reports[0].sites) == 4
    assert reports[0].site_reports == reports[1].site_reports == reports[2].site_reports


def test_a_memory_budget_holds_one_site_at_a_time(
    monkeypatch: pytest.MonkeyPatch, two_threads: None
) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2))
    data, seen = [torch.randn(100, 6)], list[int]()

    def watched(jobs: Any, *, workers: int, finished: Any) -> Any:
        seen.append(workers)
        return abreast(jobs, workers=workers, finished=finished)

    monkeypatch.setattr(concluding, "abreast", watched)
    bp.probe(model, data, progress=False, certificates=False)
    assert max(seen) == 2
    seen.clear()
    bp.probe(model, data, progress=False, certificates=False, memory_budget=10**9)
    assert max(seen) == 1


Context = Callable[[], AbstractContextManager[Any]]


def _settings() -> tuple[Any, ...]:
    """What threads share, as this one finds it and one that begins."""
    with ThreadPoolExecutor(1) as new:
        threads = torch.get_num_threads(), new.submit(torch.get_num_threads).result()
    rc = {name: str(value) for name, value in matplotlib.rcParams.items()}
    return threads, list(warnings.filters), warnings.showwarning, rc


@contextlib.contextmanager
def _drawing() -> Iterator[None]:
    """Within the context a figure is drawn in the calling thread."""

    @drawn
    def make() -> Figure:
        yielding.set()
        may_end.wait(0.15)
        return Figure()

    yielding, may_end = threading.Event(), threading.Event()
    thread = threading.Thread(target=make)
    thread.start()
    yielding.wait(0.05)
    try:
        yield
    finally:
        may_end.set()
        thread.join()


SHARED: dict[str, Context] = {"one_thread": one_thread, "hearing": hearing, "drawing": _drawing}


@pytest.mark.parametrize("setting", SHARED)
@pytest.mark.parametrize("order", [*itertools.permutations(range(3))])
def test_what_threads_share_stays_in_whatever_order_they_end(
    setting: str, order: tuple[int, ...], two_threads: None
) -> None:
    """Three threads are within one context at once, each since another moment."""
    before = _settings()
    inside = [threading.Event() for _ in order]
    may_end = [threading.Event() for _ in order]

    def work(place: int) -> None:
        with SHARED[setting]():
            inside[place].set()
            assert may_end[place].wait(20)

    threads = [threading.Thread(target=work, args=(place,)) for place in range(3)]
    for thread, begun in zip(threads, inside, strict=True):
        thread.start()
        assert begun.wait(20)
    for place in order:
        may_end[place].set()
        threads[place].join()
    assert _settings() == before


@pytest.mark.slow
@pytest.mark.parametrize("first_ends_first", [True, False])
def test_nobody_is_asked_anything_while_any_thread_loads(first_ends_first: bool) -> None:
    from transformers import dynamic_module_utils
    from transformers.utils import logging

    def told() -> tuple[int, int, bool]:
        patience = dynamic_module_utils.TIME_OUT_REMOTE_CODE
        return patience, logging.get_verbosity(), logging.is_progress_bar_enabled()

    before, first, second = told(), contextlib.ExitStack(), contextlib.ExitStack()
    with ThreadPoolExecutor(1) as other:
        other.submit(first.enter_context, quiet()).result()
        silent = told()
        second.enter_context(quiet())
        if first_ends_first:
            other.submit(first.close).result()
        else:
            second.close()
        assert told() == silent
        assert silent[0] == 0
        second.close()
        other.submit(first.close).result()
    assert told() == before


def test_a_setting_for_all_is_made_once_and_put_back_by_the_last() -> None:
    said: list[str] = []

    def change() -> Callable[[], None]:
        said.append("set")
        return lambda: said.append("put back")

    setting, contexts = OneForAll(change), [contextlib.ExitStack() for _ in range(3)]
    with ThreadPoolExecutor(1) as other:
        for stack in contexts[:2]:
            stack.enter_context(setting.within())
        other.submit(contexts[2].enter_context, setting.within()).result()
        for stack in contexts[:2]:
            stack.close()
        assert said == ["set"]
        with pytest.raises(LookupError), setting.within():
            raise LookupError("on purpose")
        assert said == ["set"]
        other.submit(contexts[2].close).result()
    assert said == ["set", "put back"]
    with setting.within():
        assert said == ["set", "put back", "set"]


def test_a_thread_that_begins_beside_one_has_its_own_number_of_threads(two_threads: None) -> None:
    with one_thread() as count, ThreadPoolExecutor(1) as new:
        assert count == 2
        assert torch.get_num_threads() == 1
        assert new.submit(torch.get_num_threads).result() == 2


def test_warnings_of_others_are_shown_while_a_thread_listens() -> None:
    def other() -> None:
        warnings.warn("of another thread", DeprecationWarning, stacklevel=1)

    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        with hearing() as heard, ThreadPoolExecutor(1) as new:
            warnings.warn("of this thread", RuntimeWarning, stacklevel=1)
            new.submit(other).result()
        warnings.warn("later", FutureWarning, stacklevel=1)
    assert heard == [RuntimeWarning]
    assert [one.category for one in shown] == [DeprecationWarning, FutureWarning]


def test_what_one_thread_hears_another_does_not() -> None:
    def listen(kind: type[Warning]) -> list[type[Warning]]:
        with hearing() as heard:
            barrier.wait(20)
            warnings.warn("one", kind, stacklevel=1)
            barrier.wait(20)
        return heard

    kinds, barrier = [UserWarning, RuntimeWarning, FutureWarning], threading.Barrier(3)
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(listen, kinds)) == [[kind] for kind in kinds]
