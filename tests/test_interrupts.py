"""A signal waits while something could be lost by it, and is raised where it may break off."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time

import pytest

from basis_probe.interrupts import Ended, guarded, hold, stoppable, unstoppable


def _strike(number: int = signal.SIGINT) -> None:
    signal.raise_signal(number)


def test_a_signal_is_raised_at_once_while_nothing_is_gathered() -> None:
    with pytest.raises(KeyboardInterrupt), guarded():
        _strike()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_waits_for_the_next_work_that_may_be_broken_off() -> None:
    done: list[str] = []
    with guarded() as guard:
        hold()
        _strike()
        done.append("sums")
        try:
            with stoppable():
                done.append("never")
        except KeyboardInterrupt:
            # Here another one waits again.
            _strike()
            done.append("kept")
        assert guard.late
    assert done == ["sums", "kept"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_work_within_work_closes_as_it_was() -> None:
    done: list[int] = []
    with guarded():
        hold()
        try:
            with stoppable():
                with stoppable():
                    done.append(1)
                _strike()
                done.append(2)
        except KeyboardInterrupt:
            _strike()
            done.append(3)
    assert done == [1, 3]


def test_many_signals_are_heard_wherever_they_come() -> None:
    count = 0
    with pytest.raises(KeyboardInterrupt), guarded():
        hold()
        for _ in range(20):
            _strike()
            count += 1
    assert count == 5


def test_what_is_done_as_a_whole_is_broken_off_after_it() -> None:
    done: list[int] = []
    with pytest.raises(KeyboardInterrupt), guarded():
        with unstoppable():
            _strike()
            done.append(1)
        done.append(2)
    with guarded() as guard:
        with unstoppable():
            _strike()
            hold()
        done.append(3)
        assert guard.late
    assert done == [1, 3]


class _Resource:
    """A context whose end takes some time."""

    def __init__(self) -> None:
        self.begun = self.ended = False

    def __enter__(self) -> None:
        _strike()
        self.begun = True

    def __exit__(self, *_: object) -> None:
        _strike()
        self.ended = True


@pytest.mark.slow
def test_what_is_set_up_is_set_up_and_put_back_before_a_signal_is_heard() -> None:
    resource = _Resource()
    with pytest.raises(KeyboardInterrupt), guarded():
        with resource:
            assert resource.begun
            time.sleep(20)
        raise AssertionError("it was not heard")
    assert resource.ended


def test_a_signal_that_was_put_off_comes_before_the_end_of_the_guard() -> None:
    resource = _Resource()
    with pytest.raises(KeyboardInterrupt), guarded(), resource:
        pass
    assert resource.ended
    time.sleep(0.1)


def test_signals_that_end_a_process_end_it_when_things_are_put_back() -> None:
    code = """
import signal
from basis_probe.interrupts import guarded, hold
try:
    with guarded(ending=True):
        signal.raise_signal(signal.SIGTERM)
        print("never")
finally:
    print("never")
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert (run.returncode, run.stdout) == (-signal.SIGTERM, ""), run.stderr
    held = code.replace("        signal", "        hold()\n        signal").replace(
        "never", "put back"
    )
    run = subprocess.run([sys.executable, "-u", "-c", held], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (-signal.SIGTERM, "put back\n"), run.stderr


def test_a_signal_that_waited_to_the_end_goes_to_its_handler() -> None:
    calls: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: calls.append(number))
    try:
        with guarded():
            hold()
            _strike(signal.SIGTERM)
            assert calls == []
        assert calls == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_handler_that_is_set_within_stays() -> None:
    before = signal.getsignal(signal.SIGTERM)
    inner = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with guarded():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
    assert inner == before


def test_a_guard_in_a_guard_leaves_signals_to_the_outer_one() -> None:
    with guarded() as outer:
        with guarded() as inner:
            hold()
        _strike()
        assert outer.late and not inner.late
    _, before = None, signal.getsignal(signal.SIGINT)
    assert before is signal.default_int_handler


def test_handlers_of_the_user_are_asked_and_put_back() -> None:
    calls: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: calls.append(number))
    mine = signal.getsignal(signal.SIGTERM)
    try:
        with guarded():
            _strike(signal.SIGTERM)
            hold()
            _strike(signal.SIGTERM)
            assert len(calls) == 1
            with stoppable():
                _strike(signal.SIGTERM)
        assert calls == [signal.SIGTERM] * 3
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)


def test_other_threads_are_left_alone() -> None:
    seen: list[object] = []

    def work() -> None:
        with guarded() as guard, stoppable():
            hold()
            seen.append((guard.late, signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, signal.default_int_handler)]


def test_a_signal_that_ends_the_process_has_a_name() -> None:
    assert "SIGTERM" in str(Ended(signal.SIGTERM))


def test_a_child_that_is_told_to_end_ends() -> None:
    code = """
import os, signal, time
from basis_probe.interrupts import guarded, hold
signal.signal(signal.SIGTERM, lambda *_: os._exit(7))
with guarded():
    hold()
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.write(write, b"here")
        time.sleep(60)
    os.read(read, 4)
    os.kill(child, signal.SIGTERM)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert run.stdout.strip() == "7", run.stderr
