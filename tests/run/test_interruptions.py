"""Signals at any moment after the first batch lose nothing, and leave nothing behind."""

from __future__ import annotations

import os
import pathlib
import random
import signal
import sys
from typing import Any

import pytest
import torch
from torch import nn

import basis_probe as bp

HOME = str(pathlib.Path(bp.__file__).parent)
ROWS, SIZE = 4, 60


class _Armed:
    """Counts calls of the package from the second batch on, and sends signals at some of them."""

    def __init__(self, at: tuple[int, ...]) -> None:
        self.at, self.calls = at, 0

    def __iter__(self) -> Any:
        generator = torch.Generator().manual_seed(0)
        for number in range(ROWS):
            if number == 1:
                sys.setprofile(self._count)
            yield torch.randn(SIZE, 8, generator=generator)

    def _count(self, frame: Any, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(HOME):
            self.calls += 1
            if self.calls in self.at:
                os.kill(os.getpid(), signal.SIGINT)


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3))


def _run(at: tuple[int, ...], checkpoint: pathlib.Path) -> tuple[int, bp.Report]:
    """How many calls there were, and the report."""
    data, model = _Armed(at), _model()
    modes = [module.training for module in model.modules()]
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    state = torch.get_rng_state()
    try:
        report = bp.probe(
            model, data, sites="1", progress=False, certificates=False, checkpoint=checkpoint,
            null=bp.nulls.Rotation(frames=19, samples=64),
        )  # fmt: skip
    finally:
        sys.setprofile(None)
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert modes == [module.training for module in model.modules()]
    assert torch.equal(state, torch.get_rng_state())
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
        assert "forward" not in vars(module)
    return data.calls, report


def _try(count: int, folder: pathlib.Path) -> None:
    path = folder / "run"
    total, whole = _run((), path)
    assert not whole.partial and not path.exists()
    chance = random.Random(0)
    for number in range(count):
        at = 1 + number * (total - 1) // count
        then = at + chance.randrange(1, 400) if number % 2 else 0
        _, report = _run((at, then), path)
        assert report["1"].n_samples >= SIZE, at
        assert report.partial or report["1"].n_samples == ROWS * SIZE
        # What a run that was interrupted left is what the next one goes on from.
        _, again = _run((), path)
        assert again.site_reports == whole.site_reports, at
        assert not again.partial and list(folder.iterdir()) == [], at


pytestmark = pytest.mark.filterwarnings("ignore::basis_probe.MisleadingNull")


def test_interruptions_lose_nothing(tmp_path: pathlib.Path) -> None:
    _try(8, tmp_path)


@pytest.mark.slow
def test_more_interruptions_lose_nothing(tmp_path: pathlib.Path) -> None:
    _try(40, tmp_path)


@pytest.mark.battery
def test_two_hundred_interruptions_lose_nothing(tmp_path: pathlib.Path) -> None:
    _try(200, tmp_path)
