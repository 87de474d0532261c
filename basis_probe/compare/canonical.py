"""Directions in which two sets of axes agree most, as SVCCA and weighted CCA use them."""

import dataclasses

import torch
from jaxtyping import Float64
from torch import Tensor

from basis_probe.compare.alignments import Form, white
from basis_probe.errors import DataError
from basis_probe.statistics.second_moments import Crossed, Spread

VARIANCE = 0.99
"""SVCCA keeps the leading principal components with this share of the variance."""


@dataclasses.dataclass(frozen=True, eq=False)
class Canonical:
    """Pairs of directions, fitted on some samples.

    Attributes:
        x, y: the two directions of every pair.
        weights: how much each pair counts.
    """

    x: Float64[Tensor, "dim_x pairs"]
    y: Float64[Tensor, "dim_y pairs"]
    weights: Float64[Tensor, " pairs"]

    def similarity(self, moments: Crossed) -> float:
        """The weighted mean of the pairs' correlations on some samples, in [-1, 1]."""
        between = (self.x * (moments.sums @ self.y)).sum(0)
        sizes = (self.x * (moments.x.sums @ self.x)).sum(0)
        sizes = sizes * (self.y * (moments.y.sums @ self.y)).sum(0)
        correlations = torch.where(sizes > 0, between / sizes.clamp(min=1e-300).sqrt(), 0.0)
        return float((self.weights * correlations).sum() / self.weights.sum())


def singular(train: Crossed) -> Canonical:
    """Canonical pairs of the leading principal components of either side, each counting the same.

    Source: M. Raghu, J. Gilmer, J. Yosinski and J. Sohl-Dickstein (2017), SVCCA.
    """
    forms = _leading(train.x), _leading(train.y)
    return _pairs(train, *forms)


def projected(train: Crossed) -> Canonical:
    """Canonical pairs, weighted by how much of x's axes the pair's direction in x carries.

    The weight of a direction h is the sum over axes x_j of |<h, x_j>|: it depends on the axes of x,
    which may change places and signs, and on nothing of y.

    Source: A. Morcos, M. Raghu and S. Bengio (2018), Insights on representational similarity, 3.
    """
    found = _pairs(train, white(train.x), white(train.y))
    carried = (found.x.T @ train.x.sums).abs().sum(1)
    return dataclasses.replace(found, weights=carried)


def _pairs(train: Crossed, x: Form, y: Form) -> Canonical:
    widest = max(form.weights.shape[1] for form in (x, y))
    if train.count <= widest + 1:
        raise DataError(
            f"{widest} directions vary on {train.count} samples to fit with, as many as these can "
            "span about their mean, so that any two networks look alike; give more samples than "
            "axes in every part of the data, two more at least"
        )
    u, s, v = torch.linalg.svd(x.weights.T @ train.sums @ y.weights, full_matrices=False)
    return Canonical(x.weights @ u, y.weights @ v.T, torch.ones_like(s))


def _leading(side: Spread) -> Form:
    values, vectors = torch.linalg.eigh(side.sums)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    if not float(values[0]) > 0:
        raise DataError("one of the two is the same on every sample: there is nothing to compare")
    shares = values.cumsum(0) / values.sum()
    count = min(len(values), int((shares < VARIANCE).sum()) + 1)
    return Form(vectors[:, :count] * values[:count].rsqrt(), 0)
