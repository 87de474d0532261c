"""The directions in which a group leaves the identity: a basis of its Lie algebra."""

from collections.abc import Iterator

import torch
from torch import Tensor

from basis_probe.algebra.elements import plane_axes
from basis_probe.algebra.groups import (
    Blocks,
    DirectSum,
    GeneralLinear,
    Group,
    LineRotations,
    LineStabiliser,
    Monomial,
    Orthogonal,
    PlaneRotations,
    Planes,
    PositiveMonomial,
)


def tangents(group: Group) -> Iterator[Tensor]:
    """A basis of the matrices X with exp(t X) in the group for every t, each [dim, dim].

    A group whose elements cannot be reached from the identity in small steps, such as one of
    permutations, has none.

    Args:
        group: the group.

    Example:
        >>> from basis_probe.algebra.groups import Orthogonal
        >>> [x.tolist() for x in tangents(Orthogonal(2))]
        [[[0.0, -1.0], [1.0, 0.0]]]
    """
    dim = group.dim
    if isinstance(group, Blocks):
        yield from _in_blocks(group)
    elif isinstance(group, DirectSum):
        start = 0
        for part in group.parts:
            for inner in tangents(part):
                yield _placed(inner, dim, torch.arange(start, start + part.dim))
            start += part.dim
    elif isinstance(group, GeneralLinear):
        for place in range(dim * dim):
            yield _unit(dim, place // dim, place % dim)
    elif isinstance(group, Orthogonal):
        for i in range(dim):
            for j in range(i):
                yield _unit(dim, i, j) - _unit(dim, j, i)
    elif isinstance(group, LineStabiliser):
        ones = torch.ones(dim, 1, dtype=torch.float64)
        across = torch.linalg.qr(torch.cat([ones, torch.eye(dim, dtype=torch.float64)], 1))[0]
        across = across[:, 1:dim]
        for turn in tangents(Orthogonal(dim - 1)) if dim > 2 else ():
            yield across @ turn @ across.T
        if not isinstance(group, LineRotations):
            for axis in range(dim):
                along = torch.zeros(dim, dim, dtype=torch.float64)
                along[:, axis] = 1.0
                yield along
    elif isinstance(group, PositiveMonomial | Monomial):
        for axis in range(dim):
            yield _unit(dim, axis, axis)
    elif isinstance(group, Planes):
        for a, b in zip(*(axes.tolist() for axes in plane_axes(dim, group.pairing)), strict=True):
            if not isinstance(group, PlaneRotations):
                yield _unit(dim, a, a) + _unit(dim, b, b)
            yield _unit(dim, a, b) - _unit(dim, b, a)


def _in_blocks(group: Blocks) -> Iterator[Tensor]:
    size = group.inner.dim
    whole = torch.arange(group.dim).reshape(group.count, group.copies, size)
    for inner in tangents(group.inner):
        each = [
            sum(
                (_placed(inner, group.dim, whole[block, copy]) for copy in range(group.copies)),
                torch.zeros(group.dim, group.dim, dtype=torch.float64),
            )
            for block in range(group.count)
        ]
        if group.alike:
            yield torch.stack(each).sum(0)
        else:
            yield from each


def _unit(dim: int, row: int, column: int) -> Tensor:
    found = torch.zeros(dim, dim, dtype=torch.float64)
    found[row, column] = 1.0
    return found


def _placed(inner: Tensor, dim: int, axes: Tensor) -> Tensor:
    found = torch.zeros(dim, dim, dtype=torch.float64)
    found[axes[:, None], axes] = inner
    return found
