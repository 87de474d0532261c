"""What rounding to few bits costs in a basis, and turns of rows that are few among many axes."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from basis_probe.algebra.haar import Turned


def rounding_error(rows: Float[Tensor, "row dim"], bits: int) -> Float64[Tensor, "row dim"]:
    """Every entry's part of what rounding a row to whole steps costs, relative to the row.

    Each row is rounded to the nearest multiple of its largest entry over 2^(bits-1) - 1, as
    activations are token by token and weights output by output. The parts of a row sum to
    |q(x) - x|^2 / |x|^2.

    Args:
        rows: what is rounded.
        bits: of a signed number; at least 2.

    Returns:
        The parts, not below 0; NaN for rows of zeros.

    Source: symmetric round-to-nearest with absmax scales: Nagel et al. 2021, A White Paper on
        Neural Network Quantization, section 2.

    Example:
        >>> rounding_error(torch.tensor([[7.0, 0.5]]), 4).sum().item() == 0.25 / 49.25
        True
    """
    if bits < 2:
        raise ValueError(f"bits={bits}: a signed number needs at least 2")
    x = rows.double()
    step = x.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    rounded = step * (x / torch.where(step > 0, step, 1.0)).round()
    return (rounded - x).square() / x.square().sum(1, keepdim=True)


class Turning:
    """Rows of a space in turned bases of it, few rows at little cost.

    Args:
        rows: what is read in other bases.
        line: whether the all-ones direction stays where it is.
    """

    def __init__(self, rows: Float[Tensor, "row dim"], *, line: bool) -> None:
        self.rows = rows.detach().cpu().double()
        self.line = line
        ones = torch.ones(1, self.rows.shape[1], dtype=torch.float64) if line else None
        self._turned = Turned(self.rows, ones)

    def haar(self, generator: torch.Generator) -> Float64[Tensor, "row dim"]:
        """The rows in a basis turned by a Haar rotation."""
        return self._turned.draw(generator)

    def hadamard(self, generator: torch.Generator) -> Float64[Tensor, "row dim"]:
        """The rows after three rounds of random signs and Hadamard transforms.

        Where the all-ones direction stays, what lies across it is transformed.
        """
        if not self.line:
            return hadamard_rows(self.rows, generator, rounds=3)
        reflected = _reflected(self.rows)
        across = hadamard_rows(reflected[:, 1:], generator, rounds=3)
        return _reflected(torch.cat([reflected[:, :1], across], 1))


def hadamard_rows(
    rows: Float64[Tensor, "row dim"], generator: torch.Generator, *, rounds: int
) -> Float64[Tensor, "row dim"]:
    """The rows turned as by `hadamard_rotation`, without its matrix.

    Example:
        >>> from basis_probe.statistics.bases import hadamard_rotation
        >>> one, other = (torch.Generator().manual_seed(0) for _ in range(2))
        >>> turn = hadamard_rotation(12, rounds=2, generator=one)
        >>> made = hadamard_rows(torch.eye(12).double(), other, rounds=2)
        >>> torch.allclose(made, turn.T)
        True
    """
    from basis_probe.statistics.bases import cosines

    dim = rows.shape[1]
    power = (dim & -dim).bit_length() - 1
    odd = dim >> power
    last = cosines(odd)
    for _ in range(rounds):
        signs = 2.0 * torch.randint(0, 2, (dim, 1), generator=generator).double() - 1
        rows = rows * signs[:, 0]
        for stage in range(power):
            pairs = rows.reshape(len(rows), 2**stage, 2, -1)
            first, second = pairs[:, :, 0], pairs[:, :, 1]
            rows = torch.stack([first + second, first - second], 2) * math.sqrt(0.5)
        rows = (rows.reshape(len(rows), 2**power, odd) @ last.T).reshape(len(rows), dim)
    return rows


def _reflected(rows: Tensor) -> Tensor:
    """The rows after the reflection that exchanges the all-ones direction and the first axis."""
    dim = rows.shape[1]
    normal = torch.full((dim,), 1 / math.sqrt(dim), dtype=torch.float64)
    normal[0] -= 1
    length = normal.square().sum()
    if not float(length) > 0:
        return rows
    return rows - torch.outer(rows @ normal, 2 * normal / length)
