"""How often neurons of experts are called special in mixtures that nothing was taught.

Every network is a small mixture as its authors initialise it, which reads text; every routed
expert of it is a site.

By hand: python tests/expert_rates.py [SHAPE ...] [--seeds 4]
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Iterator
from typing import Any

import assets
import torch
from torch import Tensor, nn

import basis_probe as bp
from basis_probe.calibration.rates import wilson
from basis_probe.demo.texts import texts

LETTERS, LENGTH = 128, 64
EXPERTS = 8

_SIZES = {
    "vocab_size": LETTERS, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "max_position_embeddings": LENGTH, "num_experts_per_tok": 2,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "Mixtral": ("MixtralForCausalLM", {"num_local_experts": EXPERTS}),
    "Qwen3-MoE": ("Qwen3MoeForCausalLM", {"num_experts": EXPERTS, "moe_intermediate_size": 40}),
    "OLMoE": ("OlmoeForCausalLM", {"num_experts": EXPERTS}),
    "DeepSeek-V3": (
        "DeepseekV3ForCausalLM",
        {"n_routed_experts": EXPERTS, "n_shared_experts": 1, "n_group": 2, "topk_group": 1,
         "moe_intermediate_size": 40, "first_k_dense_replace": 0, "num_key_value_heads": 4,
         "head_dim": 4, "kv_lora_rank": 12, "q_lora_rank": 16, "qk_rope_head_dim": 4,
         "qk_nope_head_dim": 6, "v_head_dim": 5},
    ),
}  # fmt: skip
"""Name -> the class of the model, and what its configuration has beside the sizes of all."""


@dataclasses.dataclass(frozen=True)
class Found:
    """What was said of the experts of networks.

    Attributes:
        networks, sites: how many there were.
        alarmed: networks at any of whose experts the axes are said to stand out.
        called: experts at which they are, after Holm's correction over all of a network.
        alone: experts at which they would be if nothing else had been looked at.
        undecided: experts of which nothing is said.
    """

    networks: int = 0
    sites: int = 0
    alarmed: int = 0
    called: int = 0
    alone: int = 0
    undecided: int = 0

    def __add__(self, other: Found) -> Found:
        both = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Found(*(one + another for one, another in both))


def text(rows: int) -> Tensor:
    """The letters [row, position] of stories, in order."""
    letters = [letter % LETTERS for story in texts(200) for letter in story.encode()]
    return torch.tensor(letters[: rows * LENGTH]).view(rows, LENGTH)


def untrained(shape: str, seed: int) -> nn.Module:
    """A mixture as it is before training."""
    import transformers

    kind, own = SHAPES[shape]
    built = getattr(transformers, kind)
    with assets.seeded(seed):
        return built(built.config_class(**{**_SIZES, **own})).eval()


def found(shape: str, seed: int, rows: int = 128) -> Found:
    """What is said of one network of that shape."""
    report = bp.probe(
        untrained(shape, seed), [text(rows)], sites="*.experts.*.down_proj:in", seed=seed,
        certificates=False, progress=False,
    )  # fmt: skip
    several = [site for site in report if site.routed is not None]
    outcomes = [site.verdict.outcome for site in several]
    called = sum(outcome in (bp.Outcome.PRIVILEGED, bp.Outcome.EMERGENT) for outcome in outcomes)
    return Found(
        networks=1, sites=len(several), alarmed=called > 0, called=called,
        alone=sum(_alone(site) for site in several),
        undecided=sum(outcome is bp.Outcome.UNDECIDED for outcome in outcomes),
    )  # fmt: skip


def _alone(site: bp.SiteReport) -> bool:
    """Whether the deciding scores of one site, corrected for their own number, are below 5 %."""
    p_values = [score.p_value for score in site.scores.values() if score.decides]
    return bool(p_values) and min(p_values) * len(p_values) <= 0.05


def _lines(shapes: list[str], seeds: int) -> Iterator[str]:
    total = Found()
    for shape in shapes:
        start, one = time.process_time(), Found()
        for seed in range(seeds):
            one = one + found(shape, seed)
        yield _line(shape, one, time.process_time() - start)
        total = total + one
    yield _line("*all*", total, time.process_time())


def _line(name: str, some: Found, seconds: float) -> str:
    return (
        f"| {name} | {some.networks} | {some.sites} | {wilson(some.called, some.sites)} | "
        f"{wilson(some.alone, some.sites)} | {some.alarmed} of {some.networks} | "
        f"{some.undecided} | {seconds:.0f} s |"
    )


def main() -> None:
    """Prints a table of the rates."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shapes", nargs="*", metavar="SHAPE", help=", ".join(SHAPES))
    parser.add_argument("--seeds", type=int, default=4, help="networks of each shape (default 4)")
    asked = parser.parse_args()
    for line in _lines(asked.shapes or [*SHAPES], asked.seeds):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
