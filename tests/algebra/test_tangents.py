"""The directions in which groups leave the identity."""

import pytest
import torch

from basis_probe.algebra.groups import (
    Blocks,
    DirectSum,
    GeneralLinear,
    Group,
    LineRotations,
    LineStabiliser,
    Monomial,
    Orthogonal,
    Permutation,
    PlaneRotations,
    Planes,
    PositiveMonomial,
    QuarterTurns,
    SignedPermutation,
    SignedPlanes,
    Trivial,
    Unknown,
)
from basis_probe.algebra.tangents import tangents

# The dimension of each group as a manifold, by hand.
DIMENSIONS: list[tuple[Group, int]] = [
    (GeneralLinear(4), 16),
    (Orthogonal(5), 10),
    (Orthogonal(1), 0),
    (LineStabiliser(5), 6 + 5),
    (LineStabiliser(2), 2),
    (LineRotations(5), 6),
    (LineRotations(2), 0),
    (Permutation(4), 0),
    (SignedPermutation(4), 0),
    (PositiveMonomial(4), 4),
    (Monomial(4), 4),
    (Trivial(4), 0),
    (Unknown(4), 0),
    (Planes(6), 6),
    (Planes(6, pairing="adjacent"), 6),
    (PlaneRotations(6), 3),
    (SignedPlanes(6), 0),
    (QuarterTurns(6), 0),
    (Blocks(GeneralLinear(2), count=3, copies=2), 12),
    (Blocks(Orthogonal(3), count=2, order="kept"), 6),
    (Blocks(Monomial(2), count=3, alike=True), 2),
    (DirectSum((GeneralLinear(2), Permutation(2), Orthogonal(3))), 4 + 0 + 3),
]


@pytest.mark.parametrize(("group", "dimension"), DIMENSIONS, ids=repr)
def test_there_are_as_many_as_the_group_has_dimensions(group: Group, dimension: int) -> None:
    found = [*tangents(group)]
    assert len(found) == dimension
    if found:
        assert torch.linalg.matrix_rank(torch.stack(found).flatten(1)) == dimension


@pytest.mark.parametrize(("group", "_"), DIMENSIONS, ids=repr)
def test_small_steps_along_them_stay_in_the_group(group: Group, _: int) -> None:
    for direction in tangents(group):
        for size in (0.7, -0.3):
            assert group.contains(torch.matrix_exp(size * direction))
