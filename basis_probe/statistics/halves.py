"""Some of the rows of a matrix: a slice, which costs no copy, where they stand together."""

from jaxtyping import Bool, Int
from torch import Tensor, nonzero

Part = slice | Tensor
"""Some of the rows: a slice, or a mask of them."""


def part_of(wanted: Bool[Tensor, " samples"]) -> Part:
    """The rows where it is true.

    Example:
        >>> import torch
        >>> part_of(torch.tensor([False, True, True])), part_of(torch.tensor([True, False, True]))
        (slice(1, 3, None), tensor([ True, False,  True]))
    """
    places = nonzero(wanted).flatten()
    if len(places) and int(places[-1] - places[0]) + 1 == len(places):
        return slice(int(places[0]), int(places[-1]) + 1)
    return wanted


def halves_of(halves: Int[Tensor, " samples"]) -> tuple[Part, Part]:
    """Both halves of the rows.

    Args:
        halves: 0 or 1 for every row.
    """
    return part_of(halves == 0), part_of(halves == 1)


def is_empty(part: Part) -> bool:
    """Whether no row is in it."""
    return part.start == part.stop if isinstance(part, slice) else not bool(part.any())
