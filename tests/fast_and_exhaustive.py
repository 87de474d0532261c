"""Whether a block of axes on few samples says of a site what all its axes say.

`python tests/fast_and_exhaustive.py` prints the table: for every way to compare exhaustively, how
many outcomes agree, and how far the differences of deciding scores lie apart, in the error that is
stated for them. A run on as many samples draws others, and its own error counts too; one on more
samples has next to none.
"""

from __future__ import annotations

import argparse
import functools
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import assets
import torch
from torch import Tensor, nn

import basis_probe as bp

SIZE = {"frames": 99, "samples": 1024}
FAST = bp.nulls.Counterfactual(frames=30, samples=1024, directions=90)
EXHAUSTIVE = {"1,024 other samples": (SIZE, 7), "4,096 samples": ({**SIZE, "samples": 4096}, 0)}
Reports = Callable[[bp.nulls.Null, int], list[bp.SiteReport]]


def _minilm() -> Iterator[Reports]:
    """The six MLP layers of MiniLM on sentences."""
    text = assets.shakespeare(200_000).replace("\n", " ")
    sentences = [line for line in text.split(". ") if len(line) > 30][:256]
    model, read = assets.minilm(), assets.minilm_tokenizer()
    words = {"padding": True, "truncation": True, "max_length": 64, "return_tensors": "pt"}
    data = [dict(read(sentences[at : at + 16], **words)) for at in range(0, 256, 16)]
    yield lambda null, seed: _probed(model, data, "*intermediate_act_fn", null, seed)


def _probed(model: nn.Module, data: list[Any], sites: str, null: bp.nulls.Null, seed: int) -> Any:
    quick = {"certificates": False, "progress": False}
    return list(bp.probe(model, data, sites=sites, null=null, seed=seed, **quick))


LAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "Laplace": lambda u: -u.sign() * torch.log1p(-2 * u.abs()),
    "uniform": lambda u: u * math.sqrt(12),
    "binary": lambda u: u.sign(),
    "sparse": lambda u: torch.where(u.abs() < 0.05, 20 * u, 0.0),
    "Gaussian": lambda u: math.sqrt(2) * torch.erfinv(2 * u),
}


def _layers(*, planted: bool) -> Iterator[Reports]:
    """Layers of 512 neurons, each on a source of its own, or on a mixture of all 256."""
    for seed, (name, law) in enumerate(LAWS.items()):
        if planted and name == "Gaussian":
            continue
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(512, 256, generator=generator)
        lone = torch.cat([torch.eye(256), -torch.eye(256)]) + 0.02 * noise
        model = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 4))
        with torch.no_grad():
            model[0].weight.copy_(lone if planted else noise / 16)
            model[0].bias.zero_()
        uniform = torch.rand(8192, 256, generator=generator, dtype=torch.float64) - 0.5
        data = [law(uniform).float()]
        yield lambda null, seed, model=model, data=data: _probed(model, data, "1", null, seed)


SITES: dict[str, Callable[[], Iterator[Reports]]] = {
    "MiniLM": _minilm,
    "planted": functools.partial(_layers, planted=True),
    "nothing planted": functools.partial(_layers, planted=False),
}


def _apart(fast: bp.SiteReport, whole: bp.SiteReport, *, others: bool) -> list[float]:
    """The differences of deciding scores, one run's less the other's, in stated errors."""
    found: list[float] = []
    for name, score in fast.scores.items():
        if score.decides:
            other = whole.scores[name]
            error = math.hypot(score.difference_error, others * other.difference_error)
            found.append((score.difference - other.difference) / error)
    return found


def _lines(name: str, seeds: Sequence[int]) -> Iterator[str]:
    for words, (size, seed) in EXHAUSTIVE.items():
        agree, count, seconds = 0, 0, [0.0, 0.0]
        apart: list[float] = []
        for reports in SITES[name]():
            start = time.perf_counter()
            whole = reports(bp.nulls.Counterfactual(**size), seed)
            seconds[1] += time.perf_counter() - start
            for other in seeds:
                start = time.perf_counter()
                fast = reports(FAST, other)
                seconds[0] += (time.perf_counter() - start) / len(seeds)
                for one, all_axes in zip(fast, whole, strict=True):
                    agree += one.verdict.outcome is all_axes.verdict.outcome
                    count += 1
                    apart += _apart(one, all_axes, others=size["samples"] == SIZE["samples"])
            print(f"{name}, {words}: {agree} of {count}", file=sys.stderr)
        size_of = math.sqrt(sum(z * z for z in apart) / len(apart))
        within = sum(abs(z) < 2 for z in apart)
        yield (
            f"| {name} | {words} | {agree} of {count} | {size_of:.2f} | {within} of {len(apart)} | "
            f"{seconds[0]:.0f} s | {seconds[1]:.0f} s |"
        )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(SITES))
    parser.add_argument("--seeds", type=int, default=3, help="fast runs of each site (default 3)")
    asked = parser.parse_args()
    columns = "sites,exhaustive run,outcomes that agree,root mean square,within two,fast,exhaustive"
    print("|", " | ".join(columns.split(",")), "|")
    print("|", " | ".join("---" for _ in columns.split(",")), "|")
    for name in asked.names or SITES:
        for line in _lines(name, range(asked.seeds)):
            print(line, flush=True)


if __name__ == "__main__":
    main()
