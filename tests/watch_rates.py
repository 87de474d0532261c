"""How often runs that are watched and stopped at will cross an e-value of 20.

Where nothing is on the axes: untrained networks that are frozen, or whose weights are drawn anew as
they run. And where features come to the neurons half way.

By hand: python tests/watch_rates.py [KIND ...] [--seeds 200] [--looks 8]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import torch
from attribution_rates import Stream, features
from torch import Tensor, nn

import basis_probe as bp
from basis_probe.algebra.haar import haar

Step = Callable[[nn.Module, int, torch.Generator], Tensor]


def neurons() -> tuple[nn.Module, str]:
    return nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Dropout(0.3), nn.Linear(24, 3)), "1"


def stream() -> tuple[nn.Module, str]:
    return Stream(), "read"


def frozen(model: nn.Module, at: int, generator: torch.Generator) -> Tensor:
    """The same network, other data; a stream in a basis that was drawn once."""
    if at == 0 and isinstance(model, Stream):
        with torch.no_grad():
            model.read.weight.copy_(haar(16, generator))
    return features(300, 16 if isinstance(model, Stream) else 12, generator)


def drifting(model: nn.Module, at: int, generator: torch.Generator) -> Tensor:
    """A network that wanders, blind to its axes."""
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.05 * parameter.std() * noise)
    return frozen(model, at, generator)


def appearing(model: nn.Module, at: int, generator: torch.Generator) -> Tensor:
    """Sparse features that the neurons read from the fifth look on, one each."""
    turn = haar(12, torch.Generator().manual_seed(0)).float()
    present = torch.rand(300, 12, generator=generator) < 0.15
    x = (present * torch.rand(300, 12, generator=generator)) @ turn
    first = model[0]  # pyright: ignore[reportIndexIssue]
    if at == 4:
        with torch.no_grad():
            first.weight.copy_(torch.cat([turn, turn]))  # pyright: ignore
            first.bias.zero_()  # pyright: ignore
    return x


KINDS: dict[str, tuple[Callable[[], tuple[nn.Module, str]], Step]] = {
    "frozen neurons": (neurons, frozen),
    "drifting neurons": (neurons, drifting),
    "frozen stream": (stream, frozen),
    "appearing features": (neurons, appearing),
}


def watched(kind: str, seed: int, looks: int) -> bp.results.History:
    """The history of one run."""
    build, step = KINDS[kind]
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, site = build()
    with bp.attach(model, sites=site, every=1, seed=seed) as probe:
        for at in range(looks):
            model(step(model, at, generator))
    return probe.history


def crossed(history: bp.results.History) -> bool:
    return max((look.e_value for look in history.looks), default=0.0) >= 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", default=[*KINDS], metavar="KIND")
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--looks", type=int, default=8)
    given = parser.parse_args()
    for kind in given.kinds:
        start = time.process_time()
        count = sum(crossed(watched(kind, seed, given.looks)) for seed in range(given.seeds))
        sys.stdout.write(
            f"{kind}: {count} of {given.seeds} cross 20 in {given.looks} looks; "
            f"{time.process_time() - start:.0f} s\n"
        )
        sys.stdout.flush()


if __name__ == "__main__":
    main()
