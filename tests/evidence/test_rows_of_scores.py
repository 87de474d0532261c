"""A score that compares rows with others of its own finds each beside what belongs to it."""

from __future__ import annotations

import geometries
import numpy as np
import pytest
import torch
from draws import seeded
from torch import Tensor

from basis_probe.algebra.groups import Group
from basis_probe.evidence.measure import Choice, measure
from basis_probe.statistics.nulls import Problem, Rotation
from basis_probe.statistics.scores import Reads, Rows, Score, Tail

ROWS, DIM = 60, 12
GROUPS = geometries.groups(DIM)


def _with(y: Tensor) -> Score:
    """The covariance of every direction with the mean of y."""

    def per_direction(rows: Rows) -> Tensor:
        other = y if rows.chosen is None else y[rows.chosen]
        x = rows.x.double()
        return ((x - x.mean(0)) * (other - other.mean())[:, None]).mean(0).abs()

    return Score("beside", per_direction, Reads.ACTIVATIONS, Tail.UPPER, "", "")


@pytest.mark.parametrize("directions", [None, 8])
@pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS)
def test_shuffled_rows_have_the_scores_of_those_in_order(
    group: Group, directions: int | None
) -> None:
    x = torch.randn(ROWS, DIM, generator=seeded(0), dtype=torch.float64)
    y = x @ torch.randn(DIM, generator=seeded(1), dtype=torch.float64)
    halves = (torch.arange(ROWS) >= ROWS // 3).long()
    shuffled = torch.randperm(ROWS, generator=seeded(2))
    null = Rotation(frames=19, samples=ROWS, directions=directions)
    choice = Choice(null, "", frozenset({"beside"}), False)
    one, other = (
        measure(Problem(x[order], group, halves[order]), choice, [_with(y[order])], seed=0)
        for order in (torch.arange(ROWS), shuffled)
    )
    # Those of other rows would differ by the size of the score itself.
    for field in ("per_direction", "null_values"):
        wanted, found = (getattr(made.scores["beside"], field) for made in (one, other))
        assert np.nanmax(wanted) > 0.05
        np.testing.assert_allclose(found, wanted, rtol=1e-8, atol=1e-10)
