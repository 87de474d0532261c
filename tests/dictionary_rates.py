"""How often intervals beside dictionaries miss the truth, or part dictionaries that are alike.

Every data set is sparse features in a random basis, and two dictionaries of it are alike: frozen
random decoders, encoders trained in one way.

By hand: python tests/dictionary_rates.py [--sets 200]
"""

from __future__ import annotations

import argparse
import collections
import math
import sys
import time

import torch
from attribution_rates import features
from torch import Tensor

import basis_probe as bp
from basis_probe.evidence.dictionaries import table
from basis_probe.statistics.dictionaries import Dictionary
from basis_probe.statistics.nulls import Problem
from basis_probe.statistics.scores import Rows

DIM, DIRECTIONS = 16, 48
ROWS, MANY = 1600, 20_000


def dictionary(x: Tensor, label: str, generator: torch.Generator, steps: int = 60) -> Dictionary:
    """Random directions, and an encoder that was trained to make the rows of them."""
    decoder = torch.randn(DIRECTIONS, DIM, generator=generator)
    decoder = decoder / decoder.norm(dim=1, keepdim=True)
    weight, bias = decoder.T.clone().requires_grad_(), torch.zeros(DIRECTIONS, requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], 1e-2)
    for _ in range(steps):
        codes = torch.relu(x @ weight + bias)
        loss = (codes @ decoder - x).square().mean() + 1e-3 * codes.sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    read, shift = weight.detach().double(), bias.detach().double()
    return Dictionary(
        decoder.double(), label, lambda rows: torch.relu(rows.double() @ read + shift)
    )


def rates(sets: int) -> dict[tuple[str, str], tuple[int, int]]:
    """(kind, score) -> how many intervals miss the truth, of both dictionaries; are disjoint."""
    missed: collections.Counter[tuple[str, str]] = collections.Counter()
    apart: collections.Counter[tuple[str, str]] = collections.Counter()
    scores = [*bp.scores.DEFAULT.values()]
    for seed in range(sets):
        generator = torch.Generator().manual_seed(seed)
        whole = features(ROWS + MANY, DIM, generator).double()
        x, other = whole[:ROWS], whole[ROWS:]
        both = [dictionary(x.float(), label, generator) for label in ("one", "two")]
        halves = torch.arange(ROWS) % 2
        problem = Problem(x, bp.groups.Orthogonal(DIM), halves)
        lines = table(problem, both, scores, seed=seed)[0]
        found = {(row.basis, row.kind, row.score): row for row in lines}
        for one in both:
            for (kind, score), value in truth(one, other).items():
                row = found[one.name, kind, score]
                if not math.isnan(row.low):
                    missed[kind, score] += not row.low <= value <= row.high
        for kind, score in {*missed}:
            one, two = (found[label, kind, score] for label in ("one", "two"))
            apart[kind, score] += one.low > two.high or two.low > one.high
    return {key: (missed[key], apart[key]) for key in missed}


def truth(one: Dictionary, x: Tensor) -> dict[tuple[str, str], float]:
    """Every score of a dictionary over many rows."""
    assert one.encode is not None
    codes = one.encode(x)
    several = {"directions": Rows(x @ torch.as_tensor(one.directions).T), "codes": Rows(codes)}
    found = {
        (kind, score.name): float(score.per_direction(rows).nanmean())
        for kind, rows in several.items()
        for score in bp.scores.DEFAULT.values()
        if not score.across_axes
    }
    return found | {("codes", "active"): float((codes > 0).double().sum(1).mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", type=int, default=200)
    sets, start = parser.parse_args().sets, time.process_time()
    for (kind, score), (missed, apart) in rates(sets).items():
        sys.stdout.write(
            f"{score} of {kind}: {missed} of {2 * sets} intervals miss the truth, {apart} of "
            f"{sets} pairs are disjoint\n"
        )
    sys.stdout.write(f"{time.process_time() - start:.0f} s\n")


if __name__ == "__main__":
    main()
