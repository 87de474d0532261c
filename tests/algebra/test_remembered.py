"""What is remembered of a draw changes no number, of it or of any later draw."""

import os
import signal
import threading

import pytest
import torch

from basis_probe.algebra import remembered as module
from basis_probe.algebra.haar import Turned, haar, turned_axes
from basis_probe.algebra.remembered import remembered, remembering

VECTORS = torch.randn(5, 60, generator=torch.Generator().manual_seed(5)).double()
FIXED = torch.randn(2, 60, generator=torch.Generator().manual_seed(6)).double()
OTHERS = torch.randn(2, 60, generator=torch.Generator().manual_seed(7)).double()

DRAWS = {
    "few of many dimensions": Turned(VECTORS, None),
    "about what is fixed": Turned(VECTORS, FIXED),
    "about something else": Turned(VECTORS, OTHERS),
    "many": Turned(torch.eye(60).double()[:40], None),
    "many about what is fixed": Turned(torch.eye(60).double()[:40], FIXED),
    "all": Turned(torch.eye(60).double(), None),
}


def _sequence(names: list[str]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    drawn = [DRAWS[name].draw(generator) for name in names]
    return [*drawn, turned_axes(3, 5, generator), haar(4, generator)]


def test_draws_are_the_same_and_so_is_all_that_follows() -> None:
    names = [*DRAWS]
    alone = [_sequence(names[start:]) for start in range(len(names))]
    with remembering():
        for _ in range(2):
            for start, wanted in enumerate(alone):
                found = _sequence(names[start:])
                assert all(map(torch.equal, found, wanted))


def test_nothing_is_kept_outside_and_a_draw_is_made_once_inside() -> None:
    made: list[int] = []

    def draw() -> float:
        generator = torch.Generator().manual_seed(0)

        def make() -> tuple[torch.Tensor]:
            made.append(1)
            return (torch.randn(3, generator=generator),)

        remembered(generator, "kind", make)
        return float(torch.randn(1, generator=generator))

    following = {draw(), draw()}
    assert len(made) == 2
    with remembering():
        following |= {draw(), draw()}
        assert len(made) == 3
        with remembering():
            following.add(draw())
        following.add(draw())
        assert len(made) == 3
    following.add(draw())
    assert len(made) == 4
    assert len(following) == 1


def test_what_a_draw_is_made_of_is_not_kept_beside_it() -> None:
    made: list[str] = []

    def draw(kind: str, inner: str = "") -> None:
        generator = torch.Generator().manual_seed(0)

        def make() -> tuple[torch.Tensor]:
            made.append(kind)
            if inner:
                remembered(generator, inner, lambda: (torch.randn(2, generator=generator),))
            return (torch.randn(3, generator=generator),)

        remembered(generator, kind, make)

    with remembering():
        draw("outer", "inner")
        draw("outer", "inner")
        assert made == ["outer"]
        assert [kind for kind, _ in module._kept] == ["outer"]
        draw("inner")
        assert made == ["outer", "inner"]


def _makes(sizes: list[int], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Which of the draws of these sizes are made anew, where three of about 25,000 bytes fit."""
    monkeypatch.setattr(module, "_ALL", 100_000)
    monkeypatch.setattr(module, "_ONE", 40_000)
    made: list[int] = []

    def draw(size: int) -> None:
        generator = torch.Generator().manual_seed(0)

        def make() -> tuple[torch.Tensor]:
            made.append(size)
            return (torch.zeros(size, dtype=torch.uint8),)

        remembered(generator, size, make)

    with remembering():
        for size in sizes:
            draw(size)
            assert module._size <= 100_000
    return made


def test_no_more_is_kept_than_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [25_001, 25_002, 25_001, 25_003, 25_004, 25_001, 25_002, 50_000, 50_000]
    # Three fit: there is no room for the fourth, nor for one that is too large by itself.
    assert _makes(sizes, monkeypatch) == [25_001, 25_002, 25_003, 25_004, 50_000, 50_000]


@pytest.mark.parametrize("count", [3, 4, 5])
def test_where_more_comes_again_and_again_than_fits_most_of_what_fits_is_kept(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [25_000 + n for n in range(count)]
    made = _makes(sizes * 20, monkeypatch)
    assert len(made) == count + 19 * (count - 3)


def test_what_is_no_longer_asked_for_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = [25_001, 25_002, 25_003], [26_001, 26_002]
    made = _makes(before * 5 + after * 20, monkeypatch)
    assert made[:3] == before
    assert len(made) <= 3 + 2 * 4


def test_threads_share_what_is_kept() -> None:
    wanted = _sequence([*DRAWS])
    found: list[bool] = []

    def work() -> None:
        found.extend(all(map(torch.equal, _sequence([*DRAWS]), wanted)) for _ in range(5))

    with remembering():
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == [True] * 15


@pytest.mark.parametrize("fixed", [None, FIXED], ids=["nothing fixed", "two fixed"])
@pytest.mark.parametrize("count", [1, 5, 12])
def test_few_vectors_turn_as_a_frame_of_as_many_directions_does(
    count: int, fixed: torch.Tensor | None
) -> None:
    vectors = torch.randn(count, 60, generator=torch.Generator().manual_seed(2)).double()
    found = Turned(vectors, fixed).draw(torch.Generator().manual_seed(3))
    drawn = torch.randn(60, count, generator=torch.Generator().manual_seed(3)).double()
    span = torch.zeros(60, 0).double() if fixed is None else torch.linalg.qr(FIXED.T).Q
    kept = vectors @ span @ span.T
    across = drawn - span @ (span.T @ drawn)
    frame, upper = torch.linalg.qr(across)
    frame = frame * upper.diagonal().sign()
    basis = torch.linalg.qr((vectors - kept).T).R.T
    assert torch.allclose(found, kept + basis @ frame.T, atol=1e-12)
    assert torch.allclose(found @ found.T, vectors @ vectors.T, atol=1e-12)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
def test_a_process_that_was_forked_while_something_was_kept_draws_on() -> None:
    def draw() -> None:
        generator = torch.Generator().manual_seed(0)
        with remembering():
            remembered(generator, 1, lambda: (torch.randn(3, generator=generator),))

    with module._lock:
        child = os.fork()
        if not child:
            signal.alarm(10)
            draw()
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    draw()
