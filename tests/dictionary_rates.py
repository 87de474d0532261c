"""How often intervals beside dictionaries miss the truth, or part dictionaries that are alike.

Every data set is sparse features in a random basis, and two dictionaries of it are alike: frozen
random decoders, encoders trained in one way.

By hand: python tests/dictionary_rates.py [--sets 200]
"""

from __future__ import annotations

import argparse
import collections
import sys
import time

import torch
from attribution_rates import features
from torch import Tensor

import basis_probe as bp
from basis_probe.statistics.dictionaries import Dictionary

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


def rows_of(x: Tensor, several: list[Dictionary], seed: int) -> dict[tuple[str, str, str], object]:
    """The table of a data set: (basis, kind, score) -> row."""
    site = bp.probe_activations(x, group="orthogonal", bases=several, seed=seed)
    assert site.bases is not None
    return {(row.basis, row.kind, row.score): row for row in site.bases.table}


def rates(sets: int) -> dict[tuple[str, str], tuple[int, int]]:
    """(kind, score) -> how many intervals miss the truth, of both dictionaries; are disjoint."""
    missed: collections.Counter[tuple[str, str]] = collections.Counter()
    apart: collections.Counter[tuple[str, str]] = collections.Counter()
    for seed in range(sets):
        generator = torch.Generator().manual_seed(seed)
        whole = features(ROWS + MANY, DIM, generator)
        x, other = whole[:ROWS], whole[ROWS:]
        both = [dictionary(x, label, generator) for label in ("one", "two")]
        found = rows_of(x, both, seed)
        truth = rows_of(other, both, seed)
        for (basis, kind, score), row in found.items():
            if basis not in ("one", "two"):
                continue
            value = truth[basis, kind, score].value  # pyright: ignore
            missed[kind, score] += not row.low <= value <= row.high  # pyright: ignore
            if basis == "one":
                two = found["two", kind, score]
                apart[kind, score] += row.low > two.high or two.low > row.high  # pyright: ignore
    return {key: (missed[key], apart[key]) for key in {**missed, **apart}}


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
