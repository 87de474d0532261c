"""Scores with a null of their own: asked for as any other, and compared with what fits them.

No verdict rests on them. Adding one is adding one value to `OWN`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from basis_probe.evidence.measure import Choice
from basis_probe.model.around import Around
from basis_probe.results.evidence import ScoreResult
from basis_probe.statistics.nulls import Problem
from basis_probe.statistics.p_values import Tail, monte_carlo_p, tail_p


@dataclasses.dataclass(frozen=True, eq=False)
class Place:
    """What a score with a null of its own may look at.

    Attributes:
        problem: the samples of the site, and what is known of it.
        choice: the null of the site.
        around: the weights around it.
        seed: seeds what is drawn.
    """

    problem: Problem
    choice: Choice
    around: Around
    seed: int


@dataclasses.dataclass(frozen=True)
class OwnScore:
    """A score that brings its null.

    Attributes:
        name: what users call it.
        measure: a place -> its result, or why there is none.
        formula, source, range, not_for: as of any score.
        reads_weights: True if it reads the weights around the site.
    """

    name: str
    measure: Callable[[Place], ScoreResult | str]
    formula: str
    source: str
    range: str = ""
    not_for: str = ""
    reads_weights: bool = False


def result(
    name: str,
    observed: float,
    others: Sequence[float] | Tensor,
    *,
    tail: Tail,
    null: str,
    dim: int,
    per_direction: Mapping[int, float] | None = None,
    note: str = "",
) -> ScoreResult:
    """The result of a score with a null of its own, on which no verdict rests.

    Args:
        name: the score.
        observed: its value.
        others: its values in the frames of the null.
        tail: which departures count.
        null: the null in words.
        dim: the number of axes of the site.
        per_direction: its value on some of the axes.
        note: what a reader must know.
    """
    values = torch.as_tensor(others, dtype=torch.float64)
    mean, std = float(values.mean()), float(values.std())
    shown = np.full(dim, np.nan)
    for axis, value in (per_direction or {}).items():
        shown[axis] = value
    approximated = tail_p(observed, values, tail=tail)
    return ScoreResult(
        name=name,
        observed=observed,
        null_mean=mean,
        null_std=std,
        effect=(observed - mean) / std if std > 0 else float("nan"),
        p_value=monte_carlo_p(observed, values, tail=tail),
        p_tail=approximated.value,
        p_tail_method=approximated.method,
        p_adjusted=float("nan"),
        tail=tail,
        decides=False,
        null=null,
        null_values=values.numpy().copy(),
        per_direction=shown,
        per_direction_p=np.full(dim, np.nan),
        fraction_privileged=float("nan"),
        effect_without_top_axes=float("nan"),
        all_samples=float("nan"),
        note=note,
        difference=observed - mean,
    )
