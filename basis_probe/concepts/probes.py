"""Probes that may read k directions: the best k axes against the best k of as many rotated ones.

Directions are ranked and the probe is fitted on one half of the examples and scored on the other,
in every frame alike: the winner's luck of choosing is the null's too.
"""

import dataclasses
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from basis_probe.brief import brief
from basis_probe.concepts.alignment import Ranks, auc
from basis_probe.concepts.comparing import tally
from basis_probe.errors import clean
from basis_probe.results.dissection import Tally
from basis_probe.statistics.nulls import Alternatives


@brief
@dataclasses.dataclass(frozen=True)
class Probe:
    """How well k directions together tell a concept.

    Attributes:
        concept: which.
        k: how many directions.
        axes: which axes were chosen, the most separating first.
        auc: of the probe on held-out examples, beside that of the null's frames.
    """

    concept: str
    k: int
    axes: tuple[int, ...]
    auc: Tally

    def __str__(self) -> str:
        return clean(
            f"{self.concept}, {self.k} directions: AUC {self.auc.observed:.3f} on axes, "
            f"{self.auc.null_mean:.3f} [{self.auc.null_low:.3f}, {self.auc.null_high:.3f}] "
            f"otherwise, p = {self.auc.p_value:.2g}"
        )


def sparse_probes(
    alternatives: Alternatives,
    labels: Bool[Tensor, "samples concepts"],
    names: Sequence[str],
    halves: Int64[Tensor, " samples"],
    *,
    sizes: Sequence[int] = (1, 4, 16),
    frames: int = 19,
    seed: int = 0,
) -> tuple[Probe, ...]:
    """How well the best k directions tell each concept, axes against the frames of a null.

    Directions are ranked by the distance of the two means in standard deviations; the probe is a
    linear discriminant with a little ridge.

    Args:
        alternatives: the frames, from `Null.alternatives`.
        labels: [samples, concepts].
        names: of the concepts.
        halves: 0 where probes are fitted, 1 where they are scored.
        sizes: the numbers of directions.
        frames: how many alternatives.
        seed: seeds them.

    Raises:
        ValueError: for a concept that either half lacks, or sizes that are not positive.
    """
    first, second = halves == 0, halves == 1
    for half in (first, second):
        count = labels[half].sum(0)
        bad = (count == 0) | (count == int(half.sum()))
        if bool(bad.any()):
            name = names[int(torch.nonzero(bad)[0])]
            raise ValueError(f"{name!r} is never or always true in one half: leave it out")
    if not sizes or min(sizes) < 1:
        raise ValueError(f"sizes={tuple(sizes)}: give numbers of directions, such as (1, 4, 16)")
    generator = torch.Generator().manual_seed(seed)
    scores: list[Tensor] = []
    chosen: Tensor = torch.zeros(0)
    for index in range(frames + 1):
        x = alternatives.frame(generator if index else None).post.double()
        found, order = _frame(x[first], x[second], labels[first], labels[second], sizes)
        scores.append(found)
        if index == 0:
            chosen = order
    values = torch.stack(scores)
    return tuple(
        Probe(
            concept=name,
            k=min(k, chosen.shape[0]),
            axes=tuple(chosen[:k, place].tolist()),
            auc=tally(values[:, at, place], None),
        )
        for place, name in enumerate(names)
        for at, k in enumerate(sizes)
    )


def _frame(
    fitted: Float64[Tensor, "fitted dim"],
    scored: Float64[Tensor, "scored dim"],
    own: Tensor,
    other: Tensor,
    sizes: Sequence[int],
) -> tuple[Float64[Tensor, "sizes concepts"], Tensor]:
    mean = fitted.mean(0)
    std = fitted.std(0, correction=0)
    std = torch.where(std > 0, std, torch.ones_like(std))
    unit, held = (fitted - mean) / std, (scored - mean) / std
    carried = own.double()
    with_it = unit.T @ carried / carried.sum(0)
    without = unit.T @ (1 - carried) / (1 - carried).sum(0)
    difference = with_it - without
    order = difference.abs().argsort(dim=0, descending=True)
    found = torch.zeros(len(sizes), own.shape[1], dtype=torch.float64)
    for place in range(own.shape[1]):
        for at, k in enumerate(sizes):
            best = order[:k, place]
            x = unit[:, best]
            within = x - carried[:, place, None] * with_it[best, place]
            within = within - (1 - carried[:, place, None]) * without[best, place]
            covariance = within.T @ within / len(x)
            ridge = 1e-3 * torch.eye(len(best), dtype=torch.float64)
            weight = torch.linalg.solve(covariance + ridge, difference[best, place])
            told = held[:, best] @ weight
            found[at, place] = auc(Ranks.of(told[:, None]), other[:, place, None])[0, 0]
    return found, order
