"""The lengths of a layer's columns once rows and columns are balanced."""

from __future__ import annotations

import pytest
import torch
from draws import seeded
from torch import Tensor

from basis_probe.statistics.nulls import Geometry, LinearLayer

INPUTS = 7
SHAPES: dict[str, tuple[tuple[int, int], ...]] = {
    "a matrix": ((12, 1),),
    "more inputs than outputs": ((4, 1),),
    "a kernel": ((12, 5),),
    "two matrices": ((12, 1), (12, 1)),
    "two kernels": ((12, 3), (12, 3)),
}
"""Of every weight of a layer the outputs and the positions of its window."""


def _weights(name: str) -> list[Tensor]:
    generator = seeded(3)
    return [
        torch.randn(outputs, INPUTS, positions, generator=generator, dtype=torch.float64)
        * torch.rand(outputs, 1, 1, generator=generator, dtype=torch.float64).exp()
        * (torch.arange(positions) + 1.0)
        for outputs, positions in SHAPES[name]
    ]


def _lengths(weights: list[Tensor]) -> Tensor:
    layer = LinearLayer(
        inputs=torch.zeros(3, INPUTS, weights[0].shape[2], dtype=torch.float64),
        weights=tuple(weights),
        biases=tuple(torch.zeros(len(weight)) for weight in weights),
        pre=lambda outputs: outputs[0],
        post=lambda outputs: outputs[0],
        geometry=Geometry.BALANCED,
        centred=False,
    )
    return layer.column_lengths


@pytest.mark.parametrize("name", SHAPES)
def test_rows_and_columns_are_of_one_length_once_they_are_divided(name: str) -> None:
    weights = _weights(name)
    balanced = torch.cat([w.square().sum(2).sqrt() / _lengths(weights) for w in weights])
    # A row is divided by its own length, over all positions of its window.
    balanced = balanced / balanced.norm(dim=1, keepdim=True)
    columns = balanced.norm(dim=0)
    torch.testing.assert_close(columns, columns.mean().expand_as(columns), rtol=1e-8, atol=0.0)


@pytest.mark.parametrize("name", SHAPES)
def test_lengths_move_along_with_inputs_and_not_with_outputs(name: str) -> None:
    weights = _weights(name)
    inputs = torch.linspace(0.2, 5.0, INPUTS, dtype=torch.float64)
    before, after = _lengths(weights), _lengths([w * inputs[:, None] for w in weights])
    ratio = after / before / inputs
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-8, atol=0.0)
    louder = [w * torch.linspace(0.1, 9.0, len(w), dtype=torch.float64)[:, None, None]
              for w in weights]  # fmt: skip
    ratio = _lengths(louder) / before
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-8, atol=0.0)


@pytest.mark.parametrize("name", SHAPES)
def test_outputs_that_read_nothing_and_inputs_that_nothing_reads_change_no_length(
    name: str,
) -> None:
    weights = _weights(name)
    idle = [torch.cat([w, torch.zeros_like(w[:2])]) for w in weights]
    torch.testing.assert_close(_lengths(idle), _lengths(weights), rtol=1e-12, atol=0.0)
    unread = [torch.cat([w[:, :-1], torch.zeros_like(w[:, :1])], 1) for w in weights]
    found = _lengths(unread)
    assert bool(found.isfinite().all()) and bool((found > 0).all())
