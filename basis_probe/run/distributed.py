"""One probe in several processes: each sees a shard of the data, and their partials are added.

The processes are those that `torchrun` starts. Only partials travel, a few hundred
megabytes at the end of the run, and they lie on the CPU; so the group is a gloo one on every
machine, whether or not the models run on accelerators. Who has come, and who still runs, stands in
the store through which the processes found each other, so that nobody waits for the dead.
"""

import datetime
import functools
import itertools
import os
import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from typing import Generic, TypeVar, cast

import torch
import torch.distributed as dist

from basis_probe.arguments import instance, number
from basis_probe.run.parts import Partial

Answer = TypeVar("Answer")

_BEAT = 2.0
"""Seconds between two signs of life."""

_SILENT = 30.0
"""A process that gave signs of life is dead after so many seconds without one."""

_OVER = b"over"
"""The last sign of life of a process that gives no more of them."""

_MEETING = datetime.timedelta(minutes=10)
"""How long processes wait for each other at the beginning."""

_FAREWELL = 10.0
"""Seconds that process 0 waits for the others to have read how it ended."""

_LOOK = 0.1
"""Seconds between two looks at who has come."""

_LONGEST = 10**7
"""Seconds to wait for others, at most."""


@contextmanager
def process_group() -> Generator[tuple[int, int]]:
    """Within the context the processes that `torchrun` started know each other.

    Yields:
        The rank of this process and how many there are; (0, 1) for a process on its own. Where a
        group exists already, it is used and left.

    Raises:
        ConnectionError: if not all of them come within ten minutes.

    Example:
        >>> with process_group() as (rank, world):
        ...     rank, world
        (0, 1)
    """
    found = dist.is_available() and dist.is_initialized()
    if not found and int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield 0, 1
        return
    if not found:
        try:
            dist.init_process_group("gloo", timeout=_MEETING)
        except RuntimeError as error:
            raise ConnectionError(
                f"the {os.environ['WORLD_SIZE']} processes did not all find each other within "
                f"{_MEETING.total_seconds():g} seconds ({_first_line(error)}): see which of them "
                "ended, and why"
            ) from error
    rank, world = dist.get_rank(), dist.get_world_size()
    try:
        with _alive(_store(), _sign(rank)):
            yield rank, world
    finally:
        if not found:
            dist.destroy_process_group()


def local_device(device: str) -> str:
    """The accelerator of this process, where several share a machine and none is named."""
    rank = os.environ.get("LOCAL_RANK")
    return f"{device}:{rank}" if rank is not None and device == "cuda" else device


def gathered(partial: Partial, *, timeout: float = 1800.0) -> Partial | None:
    """The sum of the partials of all processes, on rank 0; None on the others.

    Partials are added in the order of ranks, so that the sum does not depend on which came first.

    Args:
        partial: what this process saw. Save it first: others may have died, and are not waited for
            without end.
        timeout: seconds after which a process that has not come, or does not hand over what it
            saw, is missing, at most 10**7. One that dies or hangs within `process_group`, or after
            it has come, is missing after half a minute.

    Raises:
        ConnectionError: if processes are missing; it names them, on every process that is left.
        TypeError, ValueError: for a partial or a timeout that is none; and on rank 0, if the
            partials do not belong together.
    """
    partial = instance("partial", partial, Partial, "what `observe` returned")
    timeout = number("timeout", timeout, most=_LONGEST)
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return partial
    store, rank = _store(), dist.get_rank()
    meeting = _Meeting(store, rank, dist.get_world_size())
    try:
        with _alive(store, meeting.sign(rank)):
            meeting.come(timeout)
            total = meeting.lead(partial, timeout) if rank == 0 else meeting.follow(partial)
            meeting.leave()
        return total
    except RuntimeError as error:
        raise ConnectionError(
            f"the processes lost each other ({_first_line(error)}): process 0 of {meeting.world}, "
            "or torchrun, ended, so that there is no sum of all parts."
        ) from error


_meetings = itertools.count()


class _Meeting:
    """One call of `gathered`, in all processes.

    Args:
        store: what all of them read and write.
        rank: of this process.
        world: how many there are.
    """

    def __init__(self, store: dist.distributed_c10d.Store, rank: int, world: int) -> None:
        self.store, self.rank, self.world = store, rank, world
        self.name = f"basis_probe/{next(_meetings)}"
        self.beats: dict[str, tuple[bytes, float]] = {}

    def sign(self, rank: int) -> str:
        """Where a process that has come gives signs of life."""
        return f"{self.name}/{_sign(rank)}"

    def come(self, timeout: float) -> None:
        """Returns when all have come.

        Raises:
            ConnectionError: if some do not.
        """
        self._write(str(self.rank), "here")
        until = time.monotonic() + timeout
        absent = [str(rank) for rank in range(self.world)]
        try:
            while absent := self._without(absent):
                self._require_no_end()
                late = time.monotonic() > until
                self._require_alive([r for r in map(int, absent) if late or self._is_silent(r)])
                time.sleep(_LOOK)
        except KeyboardInterrupt as stopped:
            said = _named(absent, self.world)
            stopped.args = (f"interrupted while waiting for {said}",)
            raise

    def lead(self, partial: Partial, timeout: float) -> Partial:
        """The sum of all partials, which the others hand over.

        Raises:
            ConnectionError: if one of them dies meanwhile, or takes longer than the timeout.
        """
        total, group = partial, _group()
        try:
            # One at a time, so that the sum and one more are held.
            for other in range(1, self.world):
                received = _Beside(functools.partial(_received, other, group))
                until = time.monotonic() + timeout
                while not received.over(_LOOK) and not self._is_silent(other):
                    if time.monotonic() > until:
                        break
                if received.value is None:
                    self._require_alive([other])
                else:
                    total = total + Partial.from_bytes(received.value)
        except ValueError:
            self._write("end", "")
            raise
        self._write("end", "")
        return total

    def follow(self, partial: Partial) -> None:
        """Hands the partial over, and returns when the sum is made.

        Raises:
            ConnectionError: if one of the others dies meanwhile.
        """
        group = _group()
        _Beside(lambda: _send(partial.to_bytes(), group))
        while self._without(["end"]):
            self._require_alive([0] if self._is_silent(0) else [])
            time.sleep(_LOOK)
        self._require_no_end()

    def leave(self, dead: Sequence[str] = ()) -> None:
        """Returns when nobody alive needs what process 0 may hold in its memory."""
        self._write(f"{self.rank} left", "")
        until = time.monotonic() + _FAREWELL
        names = [f"{rank} left" for rank in range(self.world) if str(rank) not in dead]
        while not self.rank and self._without(names) and time.monotonic() < until:
            time.sleep(_LOOK)

    def _require_alive(self, dead: list[int]) -> None:
        """Tells everybody of those that are dead, and raises ConnectionError if there are any."""
        if dead:
            self._write("end", ",".join(map(str, dead)))
            self._require_no_end()

    def _require_no_end(self) -> None:
        """Raises ConnectionError if somebody was found dead."""
        if self._without(["end"]):
            return
        said = self._ask(lambda: self.store.get(f"{self.name}/end")).decode()
        if said:
            dead = said.split(",")
            self.leave(dead)
            raise ConnectionError(
                f"{_named(dead, self.world)} died, or did not come in time, so that "
                "there is no sum of all parts."
            )

    def _write(self, name: str, value: str) -> None:
        self._ask(lambda: self.store.set(f"{self.name}/{name}", value))

    def _without(self, names: Iterable[str]) -> list[str]:
        """Those of the names that nothing stands under yet."""
        return [name for name in names if not self._stands(f"{self.name}/{name}")]

    def _stands(self, key: str) -> bool:
        return self._ask(lambda: self.store.check([key]))

    def _ask(self, job: Callable[[], Answer]) -> Answer:
        """What the store answers. A process that hangs answers nothing, and says nothing either.

        Raises:
            ConnectionError: if there is no answer in time.
        """
        asked = _Beside(job)
        if not asked.over(_SILENT):
            raise ConnectionError(
                f"process 0 of {self.world}, or torchrun, through which the processes know of each "
                f"other, has not answered for {_SILENT:g} seconds: it hangs, or its machine cannot "
                "be reached, so that there is no sum of all parts."
            )
        return asked.result()

    def _is_silent(self, rank: int) -> bool:
        """True for a process that gave signs of life, and gives none any more."""
        # Those of `process_group` come from its beginning on.
        return any([self._has_ceased(key) for key in (_sign(rank), self.sign(rank))])

    def _has_ceased(self, key: str) -> bool:
        now, beat = time.monotonic(), _OVER
        if self._stands(key):
            beat = self._ask(lambda: self.store.get(key))
        before, since = self.beats.get(key, (b"", now))
        if beat != before:
            self.beats[key] = beat, now
            return False
        return beat != _OVER and now - since > _SILENT


def _named(ranks: Iterable[str], world: int) -> str:
    found = list(ranks)
    return f"{'process' if len(found) == 1 else 'processes'} {', '.join(found)} of {world}"


class _Beside(Generic[Answer]):
    """A job in a thread of its own, which may never end: what waits for a process cannot be ended.

    Args:
        job: what is run at once.
    """

    def __init__(self, job: Callable[[], Answer]) -> None:
        self.value: Answer | None = None
        self.error: Exception | None = None
        self._job = job
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def over(self, seconds: float) -> bool:
        """Whether it has ended, after so many seconds at most."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def result(self) -> Answer:
        """What the job returned, or raises what it raised; for one that has ended."""
        if self.error is not None:
            raise self.error
        return cast("Answer", self.value)

    def _run(self) -> None:
        try:
            self.value = self._job()
        except Exception as error:
            self.error = error


def _store() -> dist.distributed_c10d.Store:
    """What the processes of the group read and write in common."""
    return dist.distributed_c10d._get_default_store()  # pyright: ignore[reportPrivateUsage]


def _sign(rank: int) -> str:
    return f"basis_probe/sign of {rank}"


@contextmanager
def _alive(store: dist.distributed_c10d.Store, key: str) -> Generator[None]:
    """A context in which the others can see, under a key of the store, that this process lives."""
    over = threading.Event()
    signs = threading.Thread(target=_give_signs, args=(store, key, over), daemon=True)
    signs.start()
    try:
        yield
    finally:
        over.set()
        # Where process 0 hangs, a sign that it should take waits without end.
        signs.join(_BEAT)


def _give_signs(store: dist.distributed_c10d.Store, key: str, over: threading.Event) -> None:
    """Writes that this process lives, until it is over."""
    with suppress(RuntimeError):
        for count in itertools.count():
            store.set(key, str(count))
            if over.wait(_BEAT):
                break
        store.set(key, _OVER.decode())


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _group() -> dist.ProcessGroup | None:
    """A group whose tensors lie on the CPU: the one that there is, where it does."""
    if dist.get_backend() == "gloo":
        return None
    return cast("dist.ProcessGroup", dist.new_group(backend="gloo", timeout=_MEETING))


def _send(data: bytes, group: dist.ProcessGroup | None) -> None:
    """Sends bytes to rank 0, their length first."""
    dist.send(torch.tensor([len(data)]), dst=0, group=group)
    dist.send(torch.frombuffer(bytearray(data), dtype=torch.uint8), dst=0, group=group)


def _received(rank: int, group: dist.ProcessGroup | None) -> bytes:
    """The bytes that a process sent."""
    length = torch.zeros(1, dtype=torch.int64)
    dist.recv(length, src=rank, group=group)
    data = torch.empty(int(length), dtype=torch.uint8)
    dist.recv(data, src=rank, group=group)
    return data.numpy().tobytes()
