"""How often attribution is called concentrated where nothing is on the neurons, and where it is.

By hand: python tests/attribution_rates.py [KIND ...] [--seeds 200] [--score integrated_attribution]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import basis_probe as bp
from basis_probe.algebra.haar import haar

Made = tuple[nn.Module, list[Any], str]


def _labelled(x: Tensor, generator: torch.Generator, classes: int = 5) -> list[Any]:
    y = torch.randint(0, classes, (len(x),), generator=generator)
    return list(zip(x.split(100), y.split(100), strict=True))


def features(count: int, width: int, generator: torch.Generator) -> Tensor:
    """Sparse features in a random basis, as real inputs have structure of their own."""
    present = torch.rand(count, width, generator=generator) < 0.15
    sparse = present * torch.rand(count, width, generator=generator)
    return sparse @ haar(width, generator).float()


def untrained(bend: Callable[[], nn.Module]) -> Callable[[int], Made]:
    """Networks as torch initialises them."""

    def make(seed: int) -> Made:
        generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = nn.Sequential(nn.Linear(16, 32), bend(), nn.Linear(32, 24), bend())
            model.append(nn.Linear(24, 5))
        return model, _labelled(features(600, 16, generator), generator), "1"

    return make


class Stream(nn.Module):
    """A residual stream behind RMSNorm, whose basis is arbitrary."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.read, self.block = nn.Linear(width, width), nn.Linear(width, width)
        self.write = nn.Linear(width, width)
        self.norm, self.out = nn.RMSNorm(width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.read(x)
        x = x + self.write(torch.relu(self.block(self.norm(x))))
        return self.out(self.norm(x))


def turned_stream(seed: int) -> Made:
    """A stream with sparse features, in a basis that is drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Stream()
    with torch.no_grad():
        model.read.weight.copy_(haar(16, generator))
        # Uniform weights would know the axes.
        for layer in (model.block, model.write, model.out):
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) / 4)
        for bias in (model.read.bias, model.write.bias):
            bias.zero_()
    return model, _labelled(features(600, 16, generator), generator), "read"


def planted_stream(seed: int) -> Made:
    """The same with the features on the axes."""
    model, _, site = turned_stream(seed)
    generator = torch.Generator().manual_seed(seed)
    present = torch.rand(600, 16, generator=generator) < 0.15
    x = present * torch.rand(600, 16, generator=generator)
    with torch.no_grad():
        model.read.weight.copy_(torch.eye(16))  # pyright: ignore
        model.read.bias.zero_()  # pyright: ignore
    return model, _labelled(x, generator), site


def planted_neurons(seed: int) -> Made:
    """Neurons that read one sparse feature of their input each."""
    generator = torch.Generator().manual_seed(seed)
    turn = haar(24, generator).float()
    present = torch.rand(800, 24, generator=generator) < 0.1
    x = (present * torch.rand(800, 24, generator=generator)) @ turn
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        first, last = nn.Linear(24, 24), nn.Linear(24, 5)
    with torch.no_grad():
        first.weight.copy_(turn)
        first.bias.zero_()
    return nn.Sequential(first, nn.ReLU(), last), _labelled(x, generator), "1"


KINDS: dict[str, Callable[[int], Made]] = {
    "untrained relu": untrained(nn.ReLU),
    "untrained gelu": untrained(nn.GELU),
    "untrained tanh": untrained(nn.Tanh),
    "turned stream": turned_stream,
    "planted stream": planted_stream,
    "planted neurons": planted_neurons,
}


def p_of(made: Made, seed: int, score: str = "attribution") -> bp.ScoreResult:
    """The score of one network."""
    model, data, site = made
    report = bp.probe(
        model,
        data,
        sites=site,
        scores=score,
        certificates=False,
        progress=False,
        seed=seed,
    )
    return report[site].scores[score]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", default=[*KINDS], metavar="KIND")
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--score", choices=bp.scores.ATTRIBUTIONS, default="attribution")
    given = parser.parse_args()
    for kind in given.kinds:
        start = time.process_time()
        found = [p_of(KINDS[kind](seed), seed, given.score) for seed in range(given.seeds)]
        at = sum(score.p_value <= 0.05 for score in found)
        alone = sum(
            (1 + (score.null_values >= score.observed).sum()) / (1 + len(score.null_values)) <= 0.05
            for score in found
        )
        sys.stdout.write(
            f"{kind}: called in {at} of {given.seeds}, against its alternatives alone in {alone}; "
            f"{time.process_time() - start:.0f} s\n"
        )
        sys.stdout.flush()


if __name__ == "__main__":
    main()
