"""How means over whole turned bases fall against what few directions say of them.

Every basis is a true null: it is turned as those are from which the directions are drawn. Printed
for each kind of data and score: the spread of effects, which is 1 where the law is exact, and how
often p is at most 0.05, 0.01 and 0.001. With `--planted` how often a share of the variance of every
axis that is Laplace is called.

By hand: python tests/turned_basis_rates.py [KIND ...] [--axes 256] [--bases 1000] [--planted 0.1]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

import basis_probe as bp
from basis_probe.algebra.groups import Orthogonal
from basis_probe.algebra.haar import haar
from basis_probe.evidence.measure import affordable, choose, measure
from basis_probe.statistics.nulls import Geometry, Problem, Rotation
from basis_probe.statistics.scores import NEGENTROPY, NON_GAUSSIANITY, Measured
from basis_probe.statistics.spread import mean_of_all

SAMPLES, BASES_OF_ONE, BASES_OF_DRAWS = 1024, 40, 4
SCORES = (NON_GAUSSIANITY, NEGENTROPY)


def _normal(samples: int, dim: int) -> Tensor:
    return torch.randn(samples, dim)


def _laplace(samples: int, dim: int) -> Tensor:
    return torch.distributions.Laplace(0.0, math.sqrt(0.5)).sample((samples, dim))


KINDS: dict[str, Callable[[int, int], Tensor]] = {
    "Gaussian": _normal,
    "Laplace": _laplace,
    "rows of unequal length": lambda n, d: _normal(n, d) * _normal(n, 1).exp(),
    "one very sparse axis": lambda n, d: torch.cat(
        [10 * _normal(n, 1) * (torch.rand(n, 1) < 0.01), _normal(n, d - 1)], 1
    ),
    "all axes sparse": lambda n, d: 7 * _normal(n, d) * (torch.rand(n, d) < 0.02),
    "one row far out": lambda n, d: torch.cat([30 * _normal(1, d), _normal(n - 1, d)]),
    "one loud axis": lambda n, d: torch.cat([30 * _normal(n, 1).sign(), _normal(n, d - 1)], 1),
    "five heavy axes": lambda n, d: torch.cat([_laplace(n, 5) ** 3, _normal(n, d - 5)], 1),
}


def nulls(kind: str, axes: int, bases: int) -> Iterator[tuple[str, float, float]]:
    """Score, effect and p-value of one basis after the other."""
    torch.manual_seed(7)
    generator = torch.Generator().manual_seed(7)
    size = affordable(axes, axes, one_law=True)
    assert size.directions is not None, "give more axes: of so few all are compared"
    null = Rotation(geometry=Geometry.RIDGE)
    for _ in range(bases // BASES_OF_ONE):
        x = KINDS[kind](SAMPLES, axes)
        problem = Problem(x=x, group=Orthogonal(axes), halves=torch.arange(len(x)) % 2)
        some = null.alternatives(problem, torch.arange(size.directions))
        whole = null.alternatives(problem)
        for _ in range(BASES_OF_ONE // BASES_OF_DRAWS):
            frames = some.drawn_together(generator, size.frames)
            drawn = [Measured(frame, unit_axes=False) for frame in frames]
            blocks = {score: torch.cat([each.each(score) for each in drawn]) for score in SCORES}
            for _ in range(BASES_OF_DRAWS):
                basis = Measured(whole.frame(generator), unit_axes=False)
                for score in SCORES:
                    values = basis.of(score)
                    directions = torch.cat([values[None, : size.directions], blocks[score]])
                    found = mean_of_all(directions, values, one_law=True)
                    effect = (found.observed - found.null_mean) / found.null_std
                    yield score.name, effect, found.tail(effect)


def called(axes: int, share: float, seed: int) -> bool:
    """Whether planted form of every axis stands out at 0.05, by either score."""
    torch.manual_seed(seed)
    mixed = _normal(1200, axes) @ haar(axes, torch.Generator().manual_seed(seed)).float()
    x = math.sqrt(1 - share) * mixed + math.sqrt(share) * _laplace(1200, axes)
    problem = Problem(x=x, group=Orthogonal(axes), halves=torch.arange(len(x)) % 2)
    found = measure(problem, choose(problem), list(SCORES), seed=seed).scores.values()
    return 2 * min(score.p_tail for score in found) <= 0.05


def main() -> None:
    asked = argparse.ArgumentParser()
    asked.add_argument("kinds", nargs="*", default=[*KINDS])
    asked.add_argument("--axes", type=int, default=256)
    asked.add_argument("--bases", type=int, default=1000)
    asked.add_argument("--planted", type=float, default=0.0)
    given = asked.parse_args()
    print(f"basis_probe {bp.__version__}")
    if given.planted:
        several = sum(called(given.axes, given.planted, seed) for seed in range(given.bases))
        print(f"{given.axes} axes, {given.planted:.0%} Laplace: called {several} of {given.bases}")
        return
    print("| kind | score | spread | p <= 0.05 | 0.01 | 0.001 |")
    print("| --- | --- | --- | --- | --- | --- |")
    for kind in given.kinds:
        found = [*nulls(kind, given.axes, given.bases)]
        for score in SCORES:
            effects = torch.tensor([effect for name, effect, _ in found if name == score.name])
            p = torch.tensor([p for name, _, p in found if name == score.name])
            often = [float((p <= at).double().mean()) for at in (0.05, 0.01, 0.001)]
            shares = " | ".join(f"{share:.1%}" for share in often)
            print(f"| {kind} | {score.name} | {float(effects.std()):.2f} | {shares} |", flush=True)


if __name__ == "__main__":
    main()
