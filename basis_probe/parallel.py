"""Small independent jobs side by side, with the numbers of one after another.

Settings that all threads share are changed for the thread alone that changes them.
"""

import concurrent.futures
import contextlib
import os
import threading
import warnings
from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

import torch

from basis_probe.interrupts import stoppable

Result = TypeVar("Result")

_gate = threading.Lock()
_listening = 0


def _renew() -> None:
    """A process that was forked while another thread held the lock must not wait for it."""
    global _gate, _listening
    _gate, _listening = threading.Lock(), _ears.kinds is not None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)


class OneForAll:
    """A setting that all threads share: the first one that needs it sets it, the last puts it back.

    A process that is forked within has the one thread that forked it: for others' sake nothing
    stays set there.

    Attributes:
        gate: held while it is set or put back.

    Args:
        change: sets it, and returns what puts it back.

    Example:
        >>> said = []
        >>> setting = OneForAll(lambda: said.append("set") or (lambda: said.append("put back")))
        >>> with setting.within(), setting.within():
        ...     said.append("work")
        >>> said
        ['set', 'work', 'put back']
    """

    def __init__(self, change: Callable[[], Callable[[], object]]) -> None:
        self.gate = threading.Lock()
        self._change = change
        self._put_back: Callable[[], object] | None = None
        self._threads: list[int] = []
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forked)

    @contextlib.contextmanager
    def within(self) -> Generator[None]:
        """Within the context it is set."""
        mine = threading.get_ident()
        with self.gate:
            if not self._threads:
                self._put_back = self._change()
            self._threads.append(mine)
        try:
            yield
        finally:
            with self.gate:
                self._threads.remove(mine)
                self._end()

    def _end(self) -> None:
        if not self._threads and self._put_back is not None:
            put_back, self._put_back = self._put_back, None
            put_back()

    def _forked(self) -> None:
        self.gate = threading.Lock()
        self._threads = [one for one in self._threads if one == threading.get_ident()]
        self._end()


@contextlib.contextmanager
def one_thread(*, if_: bool = True) -> Generator[int]:
    """Within the context torch computes with one thread, where the calling thread asks it to.

    Args:
        if_: False for a context that changes nothing.

    Yields:
        With how many threads it computed before, and computes afterwards.

    Example:
        >>> with one_thread() as before:
        ...     torch.get_num_threads()
        1
        >>> torch.get_num_threads() == before
        True
    """
    before = torch.get_num_threads()
    if not if_:
        yield before
        return
    try:
        threads_here(1)
        yield before
    finally:
        threads_here(before)


def threads_here(count: int) -> None:
    """Has torch compute with so many threads for the calling thread, and for no other.

    What torch is told holds for the thread that tells it and for all that begin later, which keep
    it for good. Those are to have what they would have had, so a new thread tells it once more.
    """
    if torch.get_num_threads() == count:
        return
    with _gate, concurrent.futures.ThreadPoolExecutor(1) as new:
        others = new.submit(torch.get_num_threads).result()
        torch.set_num_threads(count)
        new.submit(torch.set_num_threads, others).result()


def abreast(
    jobs: Sequence[Callable[[], Result]], *, workers: int, finished: Callable[[], object]
) -> tuple[list[Result | None], bool]:
    """What every job returned, None for one that an interruption left out, and whether one came.

    A job whose tensors are small gains nothing from a second thread, which mostly waits for the
    first; two such jobs do. Side by side, each has one thread of torch.

    Args:
        jobs: functions that share nothing they change.
        workers: at most so many at once; 1 for one after another in the calling thread.
        finished: called in the calling thread for every job that is done.

    Raises:
        Exception: what the first job that failed raised, once those that run have ended.

    Example:
        >>> abreast([lambda: 1, lambda: 2, lambda: 3], workers=2, finished=lambda: None)
        ([1, 2, 3], False)
    """
    found: list[Result | None] = [None] * len(jobs)
    grad = torch.is_grad_enabled()
    if workers == 1 or len(jobs) < 2:
        try:
            for place, job in enumerate(jobs):
                with stoppable():
                    found[place] = job()
                finished()
        except KeyboardInterrupt:
            return found, True
        return found, False

    def alone(job: Callable[[], Result]) -> Result:
        # Gradients are a setting of a thread, as the number of threads is.
        with torch.set_grad_enabled(grad):
            return job()

    interrupted = False
    pool = concurrent.futures.ThreadPoolExecutor(
        min(workers, len(jobs)), "basis_probe", initializer=threads_here, initargs=(1,)
    )
    places = {pool.submit(alone, job): place for place, job in enumerate(jobs)}
    try:
        with stoppable():
            for future in concurrent.futures.as_completed(places):
                future.result()
                finished()
    except KeyboardInterrupt:
        interrupted = True
    finally:
        pool.shutdown(cancel_futures=True)
    for future, place in places.items():
        if future.cancelled() or isinstance(future.exception(), KeyboardInterrupt):
            continue
        found[place] = future.result()
    return found, interrupted


class _Ears(threading.local):
    """The kinds of warnings that a thread was given while it listens; None while it does not."""

    kinds: list[type[Warning]] | None = None


_ears = _Ears()


class _AnyHere(type):
    """Takes every kind of warning for one of its own, in threads that listen."""

    def __subclasscheck__(cls, kind: type) -> bool:
        if _ears.kinds is None:
            return False
        _ears.kinds.append(kind)
        return True


class _Heard(Warning, metaclass=_AnyHere):
    """Any warning that is given in a thread that listens."""


@contextlib.contextmanager
def hearing() -> Generator[list[type[Warning]]]:
    """Within the context no warning of the calling thread is shown; those of others are.

    `warnings.catch_warnings` changes the filters of all threads, and of several the last puts back
    those of another.

    Yields:
        The kinds of the warnings that the thread was given.

    Example:
        >>> with hearing() as heard:
        ...     warnings.warn("nobody needs to know", UserWarning)
        >>> heard
        [<class 'UserWarning'>]
    """
    global _listening
    before, heard = _ears.kinds, list[type[Warning]]()
    with _gate:
        _listening += 1
        warnings.simplefilter("ignore", _Heard)
        _ears.kinds = heard
    try:
        yield heard
    finally:
        _ears.kinds = before
        with _gate:
            _listening -= 1
            if not _listening:
                # A filter that somebody else has put away hears nothing when it comes back.
                with contextlib.suppress(ValueError):
                    warnings.filters.remove(("ignore", None, _Heard, None, 0))  # pyright: ignore
