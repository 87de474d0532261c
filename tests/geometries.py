"""A group of every geometry that axes are compared in."""

from basis_probe.algebra.groups import (
    Blocks,
    DirectSum,
    GeneralLinear,
    Group,
    LineStabiliser,
    Monomial,
    Orthogonal,
    Permutation,
    Planes,
)


def groups(dim: int) -> dict[str, Group]:
    """Name -> a group on so many axes, a multiple of twelve."""
    return {
        "orthogonal": Orthogonal(dim),
        "off the all-ones line": LineStabiliser(dim),
        "permutations": Permutation(dim),
        "permutations and scales": Monomial(dim),
        "all invertible maps": GeneralLinear(dim),
        "heads": Blocks(GeneralLinear(dim // 4), 4),
        "heads in copies": Blocks(GeneralLinear(dim // 6), 3, copies=2),
        "parts": DirectSum((Orthogonal(dim - 4), Permutation(4))),
        "blocks of rotations": Blocks(Orthogonal(dim // 3), 3),
        "planes": Planes(dim),
    }
