"""How often the second moments of gradients are called uneven where training is blind to the axes.

And where the loss depends on a few axes; and what looks cost beside the plain loop.

By hand: python tests/optimizer_rates.py [KIND ...] [--seeds 200] [--cost]
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from typing import Any

import assets
import torch
from attribution_rates import features
from torch import Tensor, nn

import basis_probe as bp
from basis_probe.algebra.haar import haar

WIDTH, HIDDEN, CLASSES = 16, 32, 5


class Stream(nn.Module):
    """A residual stream whose basis no part of the model knows, gains of norms left out."""

    def __init__(self, generator: torch.Generator, centred: bool = False) -> None:
        super().__init__()
        self.read = nn.Linear(WIDTH, WIDTH, bias=False)
        self.up, self.down = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH, bias=False)
        self.norm = nn.RMSNorm(WIDTH, elementwise_affine=False)
        if centred:
            self.norm = nn.LayerNorm(WIDTH, elementwise_affine=False)
        self.out = nn.Linear(WIDTH, CLASSES)
        with torch.no_grad():
            for layer in (self.read, self.up, self.down, self.out):
                size = layer.in_features**-0.5
                layer.weight.copy_(size * torch.randn(layer.weight.shape, generator=generator))
            self.read.weight.copy_(haar(WIDTH, generator))

    def forward(self, x: Tensor) -> Tensor:
        x = self.read(x)
        x = x + self.down(torch.relu(self.up(self.norm(x))))
        return self.out(self.norm(x))


KINDS = ("blind", "blind behind layer norm", "planted")


def watched(kind: str, seed: int, steps: int = 17, every: int = 8) -> bp.results.History:
    """The history of one run of stochastic gradient descent."""
    generator = torch.Generator().manual_seed(seed)
    model = Stream(generator, centred=kind.endswith("norm"))
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    told = torch.randn(WIDTH, CLASSES, generator=generator)
    if kind == "planted":
        # Three axes vary most, so that noise in the loss falls on their weights.
        scale = torch.ones(WIDTH)
        scale[:3] = 4.0
        with torch.no_grad():
            model.read.weight.copy_(torch.diag(scale))
            model.down.weight.zero_()
    with bp.attach(model, every=every, optimizer=optimizer, scores="kurtosis", seed=seed) as probe:
        for _ in range(steps):
            x, y = _drawn(kind, generator)
            y = (x @ told).argmax(1) if y is None else y
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    return probe.history


def _drawn(kind: str, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
    """Inputs, and classes where they have nothing to do with them."""
    if kind != "planted":
        return features(200, WIDTH, generator), None
    x = torch.randn(200, WIDTH, generator=generator)
    return x, torch.randint(0, CLASSES, (200,), generator=generator)


def p_values(history: bp.results.History) -> list[float]:
    """That of the last look at every site where the axes may be turned."""
    last = [look for look in history.looks if look.step == history.steps[-1]]
    return [look.scores["optimizer"].p_value for look in last if "optimizer" in look.scores]


def cost(steps: int = 101, every: int = 50) -> dict[str, float]:
    """CPU seconds of a training loop of a trained language model: alone, watched, with looks."""
    batches = assets.story_tokens(64).split(8)
    watched: dict[str, dict[str, Any] | None] = {"alone": None, "attached": {}}
    found: dict[str, float] = {}
    for name in ("alone", "attached", "looks", "looks and optimizer"):
        model = assets.llama()
        optimizer = torch.optim.Adam(model.parameters(), 1e-4)
        watched |= {"looks": {"every": every}}
        watched |= {"looks and optimizer": {"every": every, "optimizer": optimizer}}
        options = watched[name]
        start = time.process_time()
        around = contextlib.nullcontext() if options is None else bp.attach(model, **options)
        with around:
            for step in range(steps):
                ids = batches[step % len(batches)]
                optimizer.zero_grad()
                model(input_ids=ids, labels=ids).loss.backward()
                optimizer.step()
        found[name] = time.process_time() - start
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", default=[*KINDS], metavar="KIND")
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--cost", action="store_true", help="with stories260k, and nothing else")
    given = parser.parse_args()
    if given.cost:
        sys.stdout.write(f"{cost()}\n")
        return
    for kind in given.kinds:
        start = time.process_time()
        histories = [watched(kind, seed) for seed in range(given.seeds)]
        tests = [p for history in histories for p in p_values(history)]
        crossed = sum(history.e_value >= 20 for history in histories)
        sys.stdout.write(
            f"{kind}: {sum(p <= 0.05 for p in tests)} of {len(tests)} called at 5 %, "
            f"{crossed} runs cross 20; "
            f"{time.process_time() - start:.0f} s\n"
        )
        sys.stdout.flush()


if __name__ == "__main__":
    main()
