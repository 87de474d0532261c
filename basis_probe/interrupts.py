"""Ctrl-C, and signals that end a process, at moments at which nothing is lost by them.

Python raises KeyboardInterrupt wherever a signal finds it: in the middle of a sum, or of a file. In
`guarded` a signal waits once something has been gathered (`hold`), except in what takes long and
can be broken off (`stoppable`); there it is raised, and the next one waits again.
"""

import os
import signal
import threading
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)

_PATIENCE = 5
"""So many signals may wait; the next one is raised wherever it comes."""


class Ended(KeyboardInterrupt):
    """The process is told to end, by another signal than that of the keyboard.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"the process was told to end ({signal.Signals(number).name})")
        self.number = number


class _Gate:
    """Whether signals pass, and those that wait."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.open = True
        self.held = self.kept = False
        self.waiting: list[int] = []
        self.before: dict[int, Callable[[int, FrameType | None], Any]] = {}

    def arrive(self, number: int, frame: FrameType | None) -> None:
        """Answers a signal, now or later."""
        # Children, such as the workers of a DataLoader, have nothing of ours to lose.
        if not self.open and os.getpid() == self.process:
            self.waiting.append(number)
            if len(self.waiting) <= _PATIENCE:
                return
        self._answer(number, frame)

    def let_in(self) -> None:
        """Answers a signal that has waited."""
        if self.waiting:
            self._answer(self.waiting.pop(0), None)

    def _answer(self, number: int, frame: FrameType | None) -> None:
        before, self.open = self.open, not self.held
        self.before[number](number, frame)
        # Whoever handles it in another way than by an exception goes on.
        self.open = before


_gates: list[_Gate] = []
"""At most one, the outermost."""


class guarded:
    """A context in which signals wait while something gathered could be lost by them.

    Signals that nobody handles, or that the process ignores, are left alone, and so is every thread
    but the main one, which no signal reaches. Within another guard it does nothing.

    Example:
        >>> with guarded() as guard:
        ...     hold()
        ...     signal.raise_signal(signal.SIGINT)
        ...     kept = "what was gathered"
        >>> kept, guard.late
        ('what was gathered', True)
    """

    def __init__(self) -> None:
        self._mine: _Gate | None = None

    @property
    def late(self) -> bool:
        """Whether a signal came that nothing was broken off for."""
        return self._mine is not None and bool(self._mine.waiting)

    @property
    def gathered(self) -> bool:
        """Whether something had been gathered (`hold`)."""
        return self._mine is not None and self._mine.kept

    def __enter__(self) -> "guarded":
        if _gates or threading.current_thread() is not threading.main_thread():
            return self
        self._mine = gate = _Gate()
        for number in SIGNALS:
            handler = signal.getsignal(number)
            if callable(handler):
                gate.before[number] = handler
        try:
            _gates.append(gate)
            for number in gate.before:
                signal.signal(number, gate.arrive)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        gate = self._mine
        if gate is not None:
            gate.open, gate.held = False, True
            _gates.clear()
            for number, handler in gate.before.items():
                signal.signal(number, handler)


def hold() -> None:
    """From here to the end of the guard signals wait: something has been gathered."""
    for gate in _gates:
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


def unguarded() -> _Handlers:
    """A context in which every signal ends the process at once, for waits without Python."""
    heard = [n for n in SIGNALS if signal.getsignal(n) != signal.SIG_IGN]
    return _Handlers(dict.fromkeys(heard, signal.SIG_DFL))


class stoppable:
    """A context that a signal may break off, one that has waited too: KeyboardInterrupt is raised.

    It is for work that takes long and leaves nothing half done, inside a `try` that knows what to
    do then. In other threads than the main one it does nothing.
    """

    def __init__(self) -> None:
        self._gate: _Gate | None = None
        self._before = True

    def __enter__(self) -> None:
        if _gates and threading.current_thread() is threading.main_thread():
            self._gate = gate = _gates[0]
            self._before = gate.open
            gate.let_in()
            gate.open = True

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        gate = self._gate
        if gate is not None:
            broken = kind is not None and issubclass(kind, KeyboardInterrupt)
            gate.open = not gate.held if broken else self._before
