"""Networks whose neurons cannot stand out, on real data, and how far they seem to.

Untrained ones, and trained ones whose neurons are turned among themselves: R W in place of W for a
random rotation R. By hand: python tests/null_networks.py [NAME ...] [--seeds 10]
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import assets
import torch
from torch import Tensor, nn

import basis_probe as bp
from basis_probe.algebra.haar import haar

STANDS_OUT = (bp.Outcome.PRIVILEGED, bp.Outcome.EMERGENT)


# --- untrained ------------------------------------------------------------------------------------


def gpt2(seed: int, *, width: int = 96, layers: int = 3, heads: int = 4) -> nn.Module:
    """GPT-2's shape as its authors initialise it; GPT-2 small is 768 wide with 12 layers and heads.

    Its vocabulary is the Llama's, so that it can read the same text.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = GPT2Config(
        vocab_size=512,
        n_positions=128,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        bos_token_id=1,
        eos_token_id=2,
    )
    with assets.seeded(seed):
        return GPT2LMHeadModel(shape).eval()


def mlp(seed: int) -> nn.Module:
    """Three hidden layers of ReLUs that read CIFAR-10."""
    with assets.seeded(seed):
        return nn.Sequential(
            nn.Flatten(),
            *(nn.Linear(3072, 192), nn.ReLU(), nn.Linear(192, 192), nn.ReLU()),
            *(nn.Linear(192, 96), nn.ReLU(), nn.Linear(96, 10)),
        ).eval()


def sparse_mlp(seed: int) -> nn.Module:
    """Two hidden layers of ReLUs, 95 % of whose weights are zero, that read CIFAR-10."""
    with assets.seeded(seed):
        model = nn.Sequential(
            nn.Flatten(),
            *(nn.Linear(3072, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)),
        ).eval()
        for parameter in model.parameters():
            if parameter.ndim > 1:
                # Of the inputs of every neuron.
                nn.init.sparse_(parameter.T, 0.95, std=0.2)
        return model


# --- trained, their neurons turned ----------------------------------------------------------------


def turned_llama(seed: int) -> nn.Module:
    """The trained Llama, the neurons of every MLP turned among themselves, both branches alike."""
    model, generator = assets.llama(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in model.model.layers:
            turn = haar(layer.mlp.gate_proj.out_features, generator).float()
            for branch in (layer.mlp.gate_proj, layer.mlp.up_proj):
                branch.weight.copy_(turn @ branch.weight)
    return model


def turned_resnet(seed: int) -> nn.Module:
    """The trained ResNet20, the channels before every ReLU inside a block turned."""
    model, generator = assets.resnet(20), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for block in [*model.layer1, *model.layer2, *model.layer3]:
            convolution, norm = block.conv1, block.bn1
            turn = haar(convolution.out_channels, generator).float()
            # BatchNorm belongs to the weights; what is left of it does nothing but add the bias.
            gain = norm.weight / (norm.running_var + norm.eps).sqrt()
            bias = norm.bias - norm.running_mean * gain
            whole = convolution.weight * gain[:, None, None, None]
            convolution.weight.copy_(torch.einsum("oc,cihw->oihw", turn, whole))
            norm.running_mean.zero_()
            norm.running_var.fill_(1 - norm.eps)
            norm.weight.fill_(1)
            norm.bias.copy_(turn @ bias)
    return model


# --- what they are probed on ----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Network:
    """Networks of one kind, one for every seed, what they read, and the sites of their neurons."""

    make: Callable[[int], nn.Module]
    data: Callable[[], Sequence[Tensor]]
    sites: str | tuple[str, ...]

    def probe(self, seed: int, **settings: Any) -> bp.Report:
        """The report on the network of that seed."""
        return bp.probe(
            self.make(seed),
            self.data(),
            sites=self.sites,
            **{"seed": seed, "progress": False, "certificates": False, **settings},
        )


def _text() -> Sequence[Tensor]:
    return assets.story_tokens(64).split(32)


def _images(count: int) -> Callable[[], Sequence[Tensor]]:
    return lambda: assets.cifar(count, colours=assets.RESNET_COLOURS)[0].split(96)


GATED, BLOCKS = "model.layers.*.mlp.down_proj:in", "layer*.*.relu()"
NETWORKS = {
    "Llama shape": Network(lambda seed: assets.llama(seed=seed), _text, GATED),
    "GPT-2 shape": Network(gpt2, _text, "transformer.h.*.mlp.act"),
    "ReLU MLP": Network(mlp, _images(2000), ("2", "4", "6")),
    "ResNet20 shape": Network(
        lambda seed: assets.resnet(20, seed=seed), _images(96), ("*relu()", "layer?.?")
    ),
    "MLP of zeros, 1st layer": Network(sparse_mlp, _images(2000), ("2",)),
    "MLP of zeros, 2nd layer": Network(sparse_mlp, _images(2000), ("4",)),
    "trained Llama, turned": Network(turned_llama, _text, GATED),
    "trained ResNet20, turned": Network(turned_resnet, _images(96), BLOCKS),
}


# --- what is found --------------------------------------------------------------------------------


def effects(reports: Sequence[bp.Report]) -> dict[str, list[float]]:
    """For every score on which verdicts rest, its effects at all sites of all networks."""
    found: dict[str, list[float]] = {}
    for report in reports:
        for site in report:
            for name, score in site.scores.items():
                if score.decides:
                    found.setdefault(name, []).append(score.effect)
    return found


def standing_out(reports: Sequence[bp.Report]) -> int:
    """How many networks have a site at which the axes are said to stand out."""
    return sum(any(site.verdict.outcome in STANDS_OUT for site in report) for report in reports)


def _lines(name: str, seeds: int, null: bp.nulls.Null) -> Iterator[str]:
    start, reports = time.perf_counter(), []
    for seed in range(seeds):
        reports.append(NETWORKS[name].probe(seed, null=null))
        found = {
            score: [round(z, 2) for z in some] for score, some in effects(reports[-1:]).items()
        }
        print(f"{name}: {seed + 1} of {seeds}: {found}", file=sys.stderr)
    sites = [site for report in reports for site in report]
    called = sum(site.verdict.outcome in STANDS_OUT for site in sites)
    seconds = time.perf_counter() - start
    for score, values in effects(reports).items():
        yield (
            f"| {name} | {score} | {len(values)} | {statistics.mean(values):+.2f} | "
            f"{statistics.stdev(values):.2f} | {min(values):+.1f} … {max(values):+.1f} | "
            f"{called} of {len(sites)} | {standing_out(reports)} of {seeds} | {seconds:.0f} s |"
        )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NETWORKS))
    parser.add_argument("--seeds", type=int, default=10, help="networks of each kind (default 10)")
    parser.add_argument("--samples", type=int, default=4096, help="rows compared (default 4096)")
    asked = parser.parse_args()
    columns = "network score effects mean sd range sites-standing-out networks-standing-out time"
    print("|", " | ".join(column.replace("-", " ") for column in columns.split()), "|")
    print("|", " | ".join("---" for _ in columns.split()), "|")
    for name in asked.names or NETWORKS:
        for line in _lines(name, asked.seeds, bp.nulls.Counterfactual(samples=asked.samples)):
            print(line, flush=True)


if __name__ == "__main__":
    main()
