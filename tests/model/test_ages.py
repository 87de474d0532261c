"""Older tensors are told from newer ones whatever Python's garbage collector does meanwhile."""

import gc
import weakref
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import pytest
import torch
from torch import Tensor, nn

import basis_probe as bp
from basis_probe.model.ages import Ages
from basis_probe.model.trace import UNRECORDED, record


@contextmanager
def _frozen() -> Generator[None]:
    gc.freeze()
    yield
    gc.unfreeze()


@contextmanager
def _disabled() -> Generator[None]:
    gc.disable()
    yield
    gc.enable()


@contextmanager
def _hasty() -> Generator[None]:
    before = gc.get_threshold()
    gc.set_threshold(1)
    yield
    gc.set_threshold(*before)


class Odd(Tensor):
    """A class of tensors that a user wrote."""


MAKERS: dict[str, Callable[[], Tensor]] = {
    "plain": lambda: torch.zeros(3),
    "parameter": lambda: nn.Parameter(torch.zeros(3)),
    "subclass": lambda: torch.zeros(3).as_subclass(Odd),
    "view": lambda: torch.zeros(3)[:2],
}


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("collector", [nullcontext, _frozen, _disabled, _hasty])
@pytest.mark.parametrize("collected", [(), (0,), (1,), (2,), (0, 1, 2)])
def test_what_was_there_before_is_older_and_nothing_else(
    make: Callable[[], Tensor],
    collector: Callable[[], AbstractContextManager[None]],
    collected: tuple[int, ...],
) -> None:
    def collect() -> None:
        for generation in collected:
            gc.collect(generation)

    early = make()
    collect()
    late = make()
    with collector():
        held = [*gc.callbacks]
        with Ages() as ages:
            first = make()
            collect()
            second = make()
            for _ in range(2):
                assert ages.is_older(early) and ages.is_older(late)
                assert not ages.is_older(first) and not ages.is_older(second)
            del first
            third = make()
            assert not ages.is_older(third)
            collect()
            assert not ages.is_older(third) and not ages.is_older(second)
            assert ages.is_older(late)
        assert gc.callbacks == held


def test_newer_tensors_are_not_kept_alive() -> None:
    with Ages() as ages:
        made = torch.zeros(3)
        gone = torch.zeros(3)
        assert not ages.is_older(gone)
        gc.collect(0)
        gc.collect(1)
        seen: list[bool] = []
        weakref.finalize(gone, lambda: seen.append(True))
        del gone
        assert seen == [True]
        assert not ages.is_older(made)


class Collecting(nn.Module):
    """Collects garbage in its forward, as code does that frees memory between layers."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 2)
        self.gain = [torch.rand(6) + 0.5]

    def forward(self, x: Tensor) -> Tensor:
        gc.collect()
        h = torch.relu(self.up(x))
        gc.collect()
        return self.down(h * self.gain[0])


class Hiding(Collecting):
    """Reads features where no record sees it."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.up(x))
        hidden = torch.from_numpy(2 * h.detach().numpy())
        gc.collect()
        return self.down(h * hidden)


@pytest.mark.slow
def test_constants_are_constants_and_what_is_of_unknown_origin_is_unknown() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 4)
    held = [*gc.callbacks]
    known = bp.symmetries(Collecting(), x)["up"].because
    assert "with a constant of its own" in known
    hiding = Hiding()
    trace = record(hiding, lambda: hiding(x), x, len(x))
    assert any(node.op == UNRECORDED and node.live for node in trace.nodes)
    assert "leave torch" in bp.symmetries(hiding, x)["up"].because
    assert gc.callbacks == held
