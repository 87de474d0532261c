"""Small networks to compare, join and align, and data for them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from draws import seeded
from torch import Tensor, nn


class Stage(nn.Module):
    """A residual stage with batch normalisation; every nonlinearity is a call."""

    def __init__(self, seed: int, width: int = 8) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.stem, self.norm = nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width)
            self.conv1, self.norm1 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
            self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
            self.head = nn.Linear(width, 5)
        with torch.no_grad():
            for _ in range(60):
                self(images())
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        y = F.relu(self.norm1(self.conv1(x)))
        x = F.relu(self.norm2(self.conv2(y)) + x)
        return self.head(x.mean((2, 3)))


def images() -> Tensor:
    return torch.randn(120, 3, 6, 6, generator=seeded(0))


def mlp(seed: int, bend: Callable[[], nn.Module] = nn.ReLU, width: int = 10) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(6, width), bend(), nn.Linear(width, width), bend(), nn.Linear(width, 4)
        )


def rows() -> Tensor:
    return torch.randn(400, 6, generator=seeded(0))


def labelled(model: nn.Module, x: Tensor, size: int = 100) -> list[tuple[Tensor, Tensor]]:
    """The examples with what the model makes of them, so that it is always right."""
    with torch.no_grad():
        return list(zip(x.split(size), model(x).argmax(1).split(size), strict=True))


def network(seed: int, bend: nn.Module | None = None, width: int = 12) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(6, width), bend or nn.ReLU(), nn.Linear(width, width), bend or nn.ReLU(),
            nn.Linear(width, 3),
        )  # fmt: skip
