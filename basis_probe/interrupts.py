"""Ctrl-C, and signals that end a process, at moments at which nothing is lost by them.

Python raises KeyboardInterrupt wherever a signal finds it: in the middle of a sum, of a file, or of
what puts a model back as it was. In `guarded` a signal that comes while a context is entered or
left is put off for a moment. It waits in what is `unstoppable`, and once something has been
gathered (`hold`), except in what takes long and can be broken off (`stoppable`); there it is
raised, and the next one waits again.
"""

import _thread
import inspect
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)

_PATIENCE = 5
"""So many signals may wait; the next one is raised wherever it comes."""

_ENDS = ("__enter__", "__exit__")

_MOMENT, _LONGEST = 0.02, 2.0
"""Seconds after which a signal that was put off comes again, and for which it may be put off."""


class Ended(KeyboardInterrupt):
    """The process is told to end, by another signal than that of the keyboard.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"the process was told to end ({signal.Signals(number).name})")
        self.number = number


Handler = Callable[[int, FrameType | None], Any]


class _Gate:
    """Whether signals pass, and those that wait."""

    def __init__(self) -> None:
        self.process = os.getpid()
        # The function that is guarded.
        self.home: FrameType | None = None
        self.open = True
        self.held = self.kept = False
        self.first: int | None = None
        self.waiting: list[int] = []
        self.before: dict[int, Handler] = {}
        # Signals that end the process once everything is put back, and those that came of them.
        self.ends: set[int] = set()
        self.ended: list[int] = []
        # Those that were put off, and since when.
        self.off: dict[int, float] = {}
        self._timers: list[threading.Timer] = []

    def arrive(self, number: int, frame: FrameType | None) -> None:
        """Answers a signal, now or later."""
        # Children, such as the workers of a DataLoader, have nothing of ours to lose.
        if os.getpid() == self.process:
            self.first = number if self.first is None else self.first
            since = self.off.pop(number, time.monotonic())
            if not self.open:
                self.waiting.append(number)
                if len(self.waiting) <= _PATIENCE:
                    return
            elif self._sets_up(frame) and time.monotonic() - since < _LONGEST:
                self._put_off(number, since)
                return
        self._answer(number, frame)

    def let_in(self) -> None:
        """Answers a signal that has waited."""
        if self.waiting:
            self._answer(self.waiting.pop(0), None)

    def close(self) -> list[int]:
        """The signals that nothing was done about; what comes from here on waits."""
        self.open, self.held, self.home = False, True, None
        for timer in self._timers:
            timer.cancel()
        return [*self.ended, *self.waiting, *self.off]

    def end(self, number: int, _: FrameType | None) -> None:
        """Breaks off what runs; the process ends when it has put things back."""
        self.ended.append(number)
        raise Ended(number)

    def _sets_up(self, frame: FrameType | None) -> bool:
        """True while a context within the guard is entered or left."""
        while frame not in (None, self.home) and frame.f_code.co_name not in _ENDS:
            frame = frame.f_back
        return frame not in (None, self.home)

    def _put_off(self, number: int, since: float) -> None:
        self.off[number] = since
        timer = threading.Timer(_MOMENT, _send_again, (number,))
        timer.daemon = True
        self._timers.append(timer)
        timer.start()

    def _answer(self, number: int, frame: FrameType | None) -> None:
        # What is broken off puts things back, and the next signal is not to break that off.
        before, self.open = self.open, False
        self.before[number](number, frame)
        # Whoever handles it in another way than by an exception goes on.
        self.open = before


def _send_again(number: int) -> None:
    """Sends a signal to the main thread, which it wakes where it waits."""
    main = threading.main_thread().ident
    if main is not None and hasattr(signal, "pthread_kill"):
        signal.pthread_kill(main, number)
    else:
        _thread.interrupt_main(signal.Signals(number))


_gates: list[_Gate] = []
"""At most one, the outermost."""


def _gate() -> _Gate | None:
    """The gate of this thread; signals reach the main one alone."""
    main = threading.current_thread() is threading.main_thread()
    return _gates[0] if _gates and main else None


class guarded:
    """A context in which signals wait while something gathered could be lost by them.

    Signals that nobody handles, or that the process ignores, are left alone, and so is every thread
    but the main one, which no signal reaches. Within another guard it does nothing. At its end,
    signals that waited go to whoever handles them, except Ctrl-C where something was gathered: what
    was gathered is returned then.

    Args:
        ending: whether a signal that nobody handles, and that would end the process at once, ends
            it after what runs was broken off and things were put back.

    Example:
        >>> with guarded() as guard:
        ...     hold()
        ...     signal.raise_signal(signal.SIGINT)
        ...     kept = "what was gathered"
        >>> kept, guard.late
        ('what was gathered', True)
    """

    def __init__(self, *, ending: bool = False) -> None:
        self._mine: _Gate | None = None
        self._ending = ending

    @property
    def late(self) -> bool:
        """Whether a signal came that nothing was broken off for."""
        return self._mine is not None and bool(self._mine.waiting or self._mine.off)

    @property
    def number(self) -> int | None:
        """The first signal that came; None if none did."""
        return None if self._mine is None else self._mine.first

    @property
    def gathered(self) -> bool:
        """Whether something had been gathered (`hold`)."""
        return self._mine is not None and self._mine.kept

    def __enter__(self) -> "guarded":
        if _gates or threading.current_thread() is not threading.main_thread():
            return self
        self._mine = gate = _Gate()
        here = inspect.currentframe()
        gate.home = None if here is None else here.f_back
        for number in SIGNALS:
            handler = signal.getsignal(number)
            if callable(handler):
                gate.before[number] = handler
            elif self._ending and handler is signal.SIG_DFL:
                gate.ends.add(number)
                gate.before[number] = gate.end
        try:
            _gates.append(gate)
            for number in gate.before:
                signal.signal(number, gate.arrive)
        except BaseException:
            self.__exit__(None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        gate = self._mine
        if gate is None:
            return
        left = gate.close()
        _gates.clear()
        for number, handler in gate.before.items():
            # One that was set within is whoever's who set it.
            if signal.getsignal(number) == gate.arrive:
                signal.signal(number, signal.SIG_DFL if number in gate.ends else handler)
        for number in left:
            handler = gate.before[number]
            if number in gate.ends:
                signal.raise_signal(number)
            elif handler is not signal.default_int_handler or not (gate.kept or kind):
                try:
                    handler(number, None)
                except KeyboardInterrupt:
                    # What is on its way already says more.
                    if kind is None:
                        raise


def hold() -> None:
    """From here to the end of the guard signals wait: something has been gathered."""
    gate = _gate()
    if gate is not None:
        gate.open, gate.held, gate.kept = False, True, True


class _Handlers:
    """A context with other handlers of some signals, in the main thread."""

    def __init__(self, handlers: Mapping[int, Any]) -> None:
        self._wanted, self._before = handlers, dict[int, Any]()

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._wanted.items():
                self._before[number] = signal.getsignal(number)
                signal.signal(number, handler)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            if handler is not None:
                signal.signal(number, handler)


def answering_signals() -> _Handlers:
    """A context in which signals that would end the process raise `Ended`, if nobody handles them.

    It is for a process of one's own, such as a command: a library leaves them to its user.
    """

    def end(number: int, _: FrameType | None) -> None:
        raise Ended(number)

    untouched = [n for n in SIGNALS if signal.getsignal(n) == signal.SIG_DFL]
    return _Handlers(dict.fromkeys(untouched, end))


class _Passage:
    """A context in which signals pass or wait, and after which they do as before."""

    def __init__(self) -> None:
        self._gate: _Gate | None = None
        self._before, self._held = True, False

    def __enter__(self) -> None:
        self._gate = gate = _gate()
        if gate is not None:
            self._before, self._held = gate.open, gate.held
            self._begin(gate)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        gate = self._gate
        if gate is not None:
            broken = kind is not None and issubclass(kind, KeyboardInterrupt)
            gate.open = self._before and gate.held == self._held and not broken
            if gate.open and kind is None:
                gate.let_in()

    def _begin(self, gate: _Gate) -> None:
        """Lets signals pass, or not."""


class stoppable(_Passage):
    """A context that a signal may break off, one that has waited too: KeyboardInterrupt is raised.

    It is for work that takes long and leaves nothing half done, inside a `try` that knows what to
    do then. In other threads than the main one it does nothing.
    """

    def _begin(self, gate: _Gate) -> None:
        gate.let_in()
        gate.open = True


class unstoppable(_Passage):
    """A context in which signals wait, for work that is done as a whole or not at all.

    One that has waited is answered at its end, unless something has been gathered (`hold`).
    """

    def _begin(self, gate: _Gate) -> None:
        gate.open = False
