"""How often untrained neurons are called PRIVILEGED, by the law that their weights were drawn of.

By hand: python tests/weight_law_rates.py [LAW ...] [--seeds 30]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor, nn

import basis_probe as bp

NEURONS, SAMPLES = 40, 800
WIDTHS = (12, 40, 160)

LAWS: dict[str, Callable[[Tensor], object]] = {
    "uniform, as torch draws it": lambda weight: None,
    "signs": lambda weight: weight.sign_(),
    "of one sign": lambda weight: weight.abs_(),
    "cut at one deviation": lambda weight: nn.init.trunc_normal_(weight, 0, 0.2, -0.2, 0.2),
    "uniform, three in ten zero": lambda weight: weight.mul_(torch.rand_like(weight) > 0.3),
    "uniform, neurons of unequal lengths": lambda weight: weight.mul_(torch.rand(len(weight), 1)),
    "normal": lambda weight: nn.init.normal_(weight, std=0.2),
}
DATA: dict[str, Callable[[int], Tensor]] = {
    "cubes": lambda width: torch.randn(SAMPLES, width) ** 3,
    "one in ten": lambda width: torch.randn(SAMPLES, width) * (torch.rand(SAMPLES, width) < 0.1),
}


def called(law: str, data: str, width: int, seed: int, null: str | None) -> bool:
    """Whether the neurons of one network behind a LayerNorm are PRIVILEGED."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        x = DATA[data](width)
        model = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, NEURONS), nn.ReLU(), nn.Linear(NEURONS, 3)
        ).eval()
        with torch.no_grad():
            LAWS[law](model.get_parameter("1.weight"))
    site = bp.probe(
        model, list(x.split(100)), sites=["2"], null=null, certificates=False, progress=False
    )["2"]
    return site.verdict.outcome is bp.Outcome.PRIVILEGED


def main() -> None:
    """Prints a row for every law."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("laws", nargs="*", metavar="LAW")
    parser.add_argument("--seeds", type=int, default=30)
    asked = parser.parse_args()
    print("| weights | networks | PRIVILEGED | against turned inputs |")
    print("|---|---:|---:|---:|")
    for law in asked.laws or LAWS:
        cells = [(d, w, s) for d in DATA for w in WIDTHS for s in range(asked.seeds)]
        found = [
            sum(called(law, *cell, null) for cell in cells) for null in (None, "counterfactual")
        ]
        print(f"| {law} | {len(cells)} | {found[0]} | {found[1]} |", flush=True)


if __name__ == "__main__":
    main()
