"""What tells axes that were bent from axes that merely have far values."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from basis_probe.statistics.floors import floor_of


def normal(seed: int, rows: int = 500, dim: int = 24) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, dim, generator=generator, dtype=torch.float64)


SYMMETRIC: dict[str, Callable[[Tensor], Tensor]] = {
    "cubes": lambda x: x**3,
    "fifth powers": lambda x: x**5,
    "ratios": lambda x: x / x.roll(1, 0),
    "few far values": lambda x: x * (1 + 20 * (x.roll(3, 0) > 2)),
}


@pytest.mark.sample(default=2)
@pytest.mark.parametrize("name", SYMMETRIC)
@pytest.mark.parametrize("dim", [8, 24, 100])
def test_heavy_tails_on_both_sides_are_no_lean(name: str, dim: int) -> None:
    """By chance single axes lean further than sums of many do, and to either side."""
    called = [floor_of(SYMMETRIC[name](normal(seed, dim=dim))) for seed in range(20)]
    assert sum("lean" in said for said in called) <= 2


@pytest.mark.parametrize("several", [2, 3, 5])
def test_maxima_lean(several: int) -> None:
    x = normal(0, 4096, 24 * several).view(4096, 24, several).amax(-1)
    assert "lean to one side" in floor_of(x)
