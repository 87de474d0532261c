"""How stiff untrained networks are, and how often the stated error holds the slope.

By hand: python tests/stiff_networks.py [--seeds 200]
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import torch
from torch import nn

import basis_probe as bp


def network(seed: int, bend: nn.Module, width: int = 16) -> nn.Module:
    """An untrained network of one hidden layer, as torch initialises it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(8, width), bend, nn.Linear(width, 4)).eval()


def rows(seed: int, count: int = 400) -> torch.Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(10_000 + seed))


def stiff(model: nn.Module, site: str, seed: int, **options: Any) -> Any:
    return bp.stiffness(model, site, [rows(seed)], progress=False, seed=seed, **options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=200)
    seeds = parser.parse_args().seeds
    held = sum(not stiff(network(s, nn.Identity()), "0", s).cost.any() for s in range(seeds))
    sys.stdout.write(f"linear sites of cost 0: {held} of {seeds}\n")
    for name, bend in (("relu", nn.ReLU()), ("tanh", nn.Tanh())):
        inside, relative, start = 0, list[float](), time.process_time()
        for seed in range(seeds):
            model = network(seed, bend)
            found = stiff(model, "1", seed)
            # The same network's slope on other data and towards many other turns.
            true = stiff(model, "1", seed + seeds, turns=24)
            inside += (
                abs(found.slope - true.slope)
                <= 1.96 * (found.slope_error**2 + true.slope_error**2) ** 0.5
            )
            relative.append(found.relative)
        spread = torch.tensor(relative)
        low, high = spread.quantile(0.05), spread.quantile(0.95)
        sys.stdout.write(
            f"{name}: {inside} of {seeds} within 1.96 errors; relative stiffness "
            f"{spread.median():.2f} ({low:.2f} to {high:.2f}); "
            f"{time.process_time() - start:.0f} s\n"
        )


if __name__ == "__main__":
    main()
