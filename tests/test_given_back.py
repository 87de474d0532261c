"""Memory that holds nothing goes back to the system, and nobody asks for that all the time."""

import subprocess
import sys

import pytest

from basis_probe import memory
from basis_probe.memory import give_back

_IN_PIECES = """
import ctypes, torch
from basis_probe import memory
large = 2**22
# From then on the allocator keeps what is no larger than what it was given here.
del_me = torch.empty(2**23, dtype=torch.uint8).fill_(1); del del_me
torch.empty(2**25 - 2**16, dtype=torch.uint8).fill_(1)
memory.give_back()
kept, freed = [], []
for _ in range(60):
    freed.append(torch.empty(large, dtype=torch.uint8).fill_(1))
    kept.append(torch.empty(2**18, dtype=torch.uint8).fill_(1))
full = memory._held()
freed.clear()
between = memory._held()
memory.give_back()
print(full, between, memory._held())
"""


@pytest.mark.slow
@pytest.mark.skipif(memory._trim() is None, reason="the C library is not glibc")
def test_pages_between_what_is_kept_are_given_back() -> None:
    told = subprocess.run(
        [sys.executable, "-c", _IN_PIECES], check=True, capture_output=True, text=True
    ).stdout
    full, between, after = map(int, told.split())
    # Nothing but this gives most of it back: it lies between pieces that are in use.
    assert between > full - 60 * 2**21
    assert after < full - 50 * 2**22


def test_what_is_needed_again_and_again_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    held = 2**30
    monkeypatch.setattr(memory, "_trim", lambda: asked.append)
    monkeypatch.setattr(memory, "_held", lambda: held)
    monkeypatch.setattr(memory, "_most", 0)
    for now, times in ((2**30, 1), (2**30, 1), (2**29, 1), (2**30, 1), (2**31, 2), (2**31, 2)):
        held = now
        give_back()
        assert len(asked) == times


def test_where_nothing_can_be_asked_for_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    memory._trim.cache_clear()
    try:
        assert memory._trim() is None
        give_back()
    finally:
        memory._trim.cache_clear()
