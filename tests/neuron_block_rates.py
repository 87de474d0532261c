"""How often wide layers are called whose neurons are compared as a block that stands for all.

By hand: python tests/neuron_block_rates.py [KIND ...] [--layers 40]

Layers of 768 neurons that read 192 inputs, drawn as torch draws them, on inputs of several kinds;
and some in which a few neurons have a law of their own, or carry a feature.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor, nn

import basis_probe as bp

NEURONS, INPUTS, SAMPLES = 768, 192, 1200


def _one_hot(rows: int) -> Tensor:
    """Tokens, the k-th as often as 1 / k."""
    often = 1 / torch.arange(1.0, INPUTS + 1)
    return nn.functional.one_hot(torch.multinomial(often, rows, True), INPUTS).float()


def _correlated(rows: int) -> Tensor:
    sizes = torch.logspace(0, -2, INPUTS)
    turn = torch.linalg.qr(torch.randn(INPUTS, INPUTS))[0]
    return torch.randn(rows, INPUTS) ** 3 * sizes @ turn


def _mixture(rows: int) -> Tensor:
    centres = 2 * torch.randn(8, INPUTS)
    return centres[torch.randint(8, (rows,))] + torch.randn(rows, INPUTS)


def _sparse(rows: int) -> Tensor:
    return torch.randn(rows, INPUTS) * (torch.rand(rows, INPUTS) < 0.05)


Planted = Callable[[nn.Linear, Tensor], None]


def _nothing(layer: nn.Linear, x: Tensor) -> None:
    pass


def _unequal(layer: nn.Linear, x: Tensor) -> None:
    layer.weight.mul_(torch.rand(NEURONS, 1) * 4)


def _two_inputs(layer: nn.Linear, x: Tensor) -> None:
    """Three neurons read two inputs each, and the others half of them."""
    layer.weight.mul_(torch.rand_like(layer.weight) < 0.5)
    layer.weight[:3] = 0
    for neuron in range(3):
        layer.weight[neuron, torch.randperm(INPUTS)[:2]] = torch.randn(2)


def _features(count: int) -> Planted:
    def plant(layer: nn.Linear, x: Tensor) -> None:
        """A strong sparse feature on each of a few neurons: its direction is of the input."""
        for neuron in torch.randperm(NEURONS)[:count].tolist():
            there = torch.rand(len(x)) < 0.02
            direction = torch.randn(INPUTS)
            direction /= direction.norm()
            x += 12 * there[:, None] * direction
            layer.weight[neuron] = direction * layer.weight[neuron].norm()

    return plant


KINDS: dict[str, tuple[Callable[[int], Tensor], Planted]] = {
    "Gaussian inputs": (lambda rows: torch.randn(rows, INPUTS), _nothing),
    "heavy tails": (lambda rows: torch.randn(rows, INPUTS) ** 3, _nothing),
    "mixtures": (_mixture, _nothing),
    "correlated, heavy tails": (_correlated, _nothing),
    "one in twenty": (_sparse, _nothing),
    "neurons of unequal lengths": (lambda rows: torch.randn(rows, INPUTS) ** 3, _unequal),
    "tokens of unequal frequency": (_one_hot, _nothing),
    "three neurons of two inputs": (lambda rows: torch.randn(rows, INPUTS) ** 3, _two_inputs),
    "planted: one feature": (lambda rows: torch.randn(rows, INPUTS), _features(1)),
    "planted: four features": (lambda rows: torch.randn(rows, INPUTS), _features(4)),
}


def found(kind: str, seed: int, null: bp.nulls.Null | None) -> bp.SiteReport:
    """What is said of the neurons of one layer."""
    drawn, planted = KINDS[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(INPUTS, NEURONS), nn.GELU(), nn.Linear(NEURONS, 3)).eval()
        x = drawn(SAMPLES)
        with torch.no_grad():
            planted(model.get_submodule("0"), x)  # type: ignore[arg-type]
    data = list(x.split(100))
    return bp.probe(
        model, data, sites=["1"], null=null, seed=seed, certificates=False, progress=False
    )["1"]


def main() -> None:
    """Prints a row for every kind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", metavar="KIND")
    parser.add_argument("--layers", type=int, default=40)
    parser.add_argument("--all", action="store_true", help="alternatives of all neurons")
    asked = parser.parse_args()
    whole = bp.nulls.Counterfactual(frames=99, samples=1024) if asked.all else None
    print("| layers | called | spread of effects | p at most 0.05 | 0.005 |")
    print("|---|---:|---:|---:|---:|")
    for kind in asked.kinds or KINDS:
        sites = [found(kind, seed, whole) for seed in range(asked.layers)]
        called = sum(site.verdict.outcome is bp.Outcome.PRIVILEGED for site in sites)
        scores = [[s for s in site.scores.values() if s.decides] for site in sites]
        names = sorted({score.name for several in scores for score in several})
        effects = torch.tensor(
            [[next(s.effect for s in several if s.name == n) for n in names] for several in scores]
        )
        p = torch.tensor([[s.p_tail for s in several] for several in scores]).flatten()
        spread = effects.std(0)
        print(
            f"| {kind} | {called} of {len(sites)} | {float(spread.min()):.2f} to "
            f"{float(spread.max()):.2f} | {float((p <= 0.05).double().mean()):.1%} | "
            f"{float((p <= 0.005).double().mean()):.1%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
