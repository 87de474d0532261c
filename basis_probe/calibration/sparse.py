"""Layers of neurons that read few inputs: untrained ones, and ones with a source on every neuron.

Their null is the one that a probe chooses unasked.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from basis_probe.activations import probe_activations
from basis_probe.algebra.haar import turned_axes
from basis_probe.calibration.draw import Draw
from basis_probe.results.report import SiteReport
from basis_probe.statistics.nulls import SparseWiring

Data = Callable[[Draw], Tensor]


def untrained(make: Data, density: float, law: str) -> Callable[[Draw], SiteReport]:
    """The ReLUs behind a second untrained layer, both of them sparse.

    Args:
        make: the data that the first layer reads.
        density: the share of weights that are not zero; at least one weight of a neuron, on
            average.
        law: "mask", uniform weights and a mask drawn weight by weight; "pruned", Gaussian weights
            of which the largest are left; "inputs", Gaussian weights and as many of them for every
            input.
    """

    def report(draw: Draw) -> SiteReport:
        inputs = make(draw)
        inputs = inputs / inputs.square().mean().sqrt()
        hidden = (inputs @ _sparse(draw, density, law).T + 0.1 * draw.normal(draw.dim)).relu()
        return _neurons(draw, hidden, _sparse(draw, density, law), 0.3 * draw.normal(draw.dim))

    return report


def planted(source: Data, density: float) -> Callable[[Draw], SiteReport]:
    """ReLUs each of which undoes the mixing of a source with as many others as the density says."""

    def report(draw: Draw) -> SiteReport:
        size = max(2, round(density * draw.dim))
        weight = torch.zeros(draw.dim, draw.dim, dtype=torch.float64)
        for start in range(0, draw.dim, size):
            here = slice(start, min(start + size, draw.dim))
            weight[here, here] = turned_axes(1, min(size, draw.dim - start), draw.generator)[0]
        weight = weight[:, torch.randperm(draw.dim, generator=draw.generator)]
        return _neurons(draw, source(draw) @ weight, weight, 0.3 * draw.normal(draw.dim))

    return report


def _sparse(draw: Draw, density: float, law: str) -> Tensor:
    dim = draw.dim
    density = max(density, 1 / dim)
    size = math.sqrt(2 / (density * dim))
    if law == "mask":
        weight = math.sqrt(12) * draw.uniform(dim, dim)
        return size * weight * (draw.uniform(dim, dim) + 0.5 < density)
    weight = draw.normal(dim, dim)
    if law == "pruned":
        return size * weight * (weight.abs() > weight.abs().flatten().quantile(1 - density))
    kept = max(1, round(density * dim))
    rank = draw.uniform(dim, dim).argsort(0).argsort(0)
    return size * weight * (rank < kept)


def _neurons(draw: Draw, inputs: Tensor, weight: Tensor, bias: Tensor) -> SiteReport:
    return probe_activations(
        (inputs @ weight.T + bias).relu(),
        group="positive-monomial",
        inputs=inputs,
        weight=weight,
        bias=bias,
        nonlinearity="relu",
        null=draw.null(SparseWiring),
        seed=draw.seed,
    )
