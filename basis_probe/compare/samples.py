"""Measures that compare how alike pairs of samples are in either network, and fit nothing."""

from typing import Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from basis_probe.compare.kernels import Hsic, kernel_hsic

Dissimilarity = Literal["euclidean", "cosine", "correlation"]
Correlation = Literal["pearson", "spearman"]


def dissimilarities(
    x: Float64[Tensor, "samples dim"], kind: Dissimilarity
) -> Float64[Tensor, "samples samples"]:
    """How unlike every two samples are.

    Args:
        x: the activations.
        kind: "euclidean" for the length of their difference; "cosine" for one minus the cosine of
            the angle between them, about zero; "correlation" for one minus the correlation over
            axes. A sample without length is as unlike all others as they can be on average, 1.
    """
    if kind == "euclidean":
        return torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    rows = x - x.mean(1, keepdim=True) if kind == "correlation" else x
    unit = rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-300)
    return 1 - unit @ unit.T


def rsa(
    x: Float64[Tensor, "samples samples"],
    y: Float64[Tensor, "samples samples"],
    correlation: Correlation,
) -> float:
    """The correlation between two tables of dissimilarities over all pairs of samples, in [-1, 1].

    NaN where all pairs are equally unlike in one of them.

    Source: N. Kriegeskorte, M. Mur and P. Bandettini (2008), Representational similarity analysis.
    """
    upper = torch.triu_indices(len(x), len(x), 1)
    one, other = x[upper[0], upper[1]], y[upper[0], upper[1]]
    if correlation == "spearman":
        from scipy.stats import rankdata

        one, other = (torch.as_tensor(rankdata(side.numpy())) for side in (one, other))
    one, other = one - one.mean(), other - other.mean()
    size = float(one.norm() * other.norm())
    return float(one @ other) / size if size > 0 else float("nan")


def shared_neighbours(
    x: Float64[Tensor, "samples samples"],
    y: Float64[Tensor, "samples samples"],
    count: int,
    *,
    union: bool,
) -> Float64[Tensor, " samples"]:
    """For every sample the share of its nearest neighbours that are so in both networks, in [0, 1].

    Args:
        x: how unlike every two samples are in the one network.
        y: the same in the other.
        count: how many neighbours a sample has.
        union: False to divide by `count` (mutual nearest neighbours; Huh et al. 2024), True to
            divide by how many are its neighbours in either network (Jaccard). Samples that are
            equally far share the last places.

    Raises:
        ValueError: if there are no more samples than neighbours.
    """
    if len(x) <= count:
        raise ValueError(
            f"neighbours={count} and {len(x)} samples: give fewer neighbours, or more samples"
        )
    near = [_nearest(side, count) for side in (x, y)]
    both = (near[0] * near[1]).sum(1)
    return both / (2 * count - both if union else count)


def _nearest(distances: Tensor, count: int) -> Tensor:
    """[samples, samples], the chance that the second is a nearest neighbour of the first.

    0 or 1, but for samples that are equally far, which share the places that are left.
    """
    others = distances.clone().fill_diagonal_(torch.inf)
    last = others.kthvalue(count, dim=1, keepdim=True).values
    nearer, equal = others < last, others == last
    left = count - nearer.sum(1, keepdim=True)
    return nearer + equal * (left / equal.sum(1, keepdim=True).double())


def gaussian(
    distances: Float64[Tensor, "samples samples"], width: float
) -> Float64[Tensor, "samples samples"]:
    """The kernel exp(-d^2 / (2 (width m)^2)), m the median distance of two different samples.

    Source: S. Kornblith, M. Norouzi, H. Lee and G. Hinton (2019), Similarity of neural network
    representations revisited, section 4.
    """
    upper = torch.triu_indices(len(distances), len(distances), 1)
    middle = float(distances[upper[0], upper[1]].median())
    if not middle > 0:
        return (distances == 0).double()
    return torch.exp(-distances.square() / (2 * (width * middle) ** 2))


def gaussian_hsic(x: Tensor, y: Tensor, width: float, *, unbiased: bool) -> Hsic:
    """The criteria of two Gaussian kernels, from how far apart every two samples are."""
    k, el = gaussian(x, width), gaussian(y, width)
    pairs = (k, el), (k, k), (el, el)
    sums = [kernel_hsic(a, b, unbiased=unbiased) for a, b in pairs]
    return Hsic(*sums, batches=1, examples=len(x))
