"""Measures that compare how alike pairs of samples are in either network, and fit nothing."""

import math
from typing import Literal

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from basis_probe.compare.kernels import Hsic, kernel_hsic

Dissimilarity = Literal["euclidean", "cosine", "correlation"]
Correlation = Literal["pearson", "spearman"]

# The last bits of 52, which are rounding, and half of the first that is kept.
_BITS = 12
_HALF = 2 ** (_BITS - 1)

# Two samples of unit length that are no further apart point the same way, and what is left of a
# sample about its mean has no length.
_PARALLEL = 4e-15


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
    rows = x - x.mean(1, keepdim=True) if kind == "correlation" else x
    lengths = rows.norm(dim=1)
    if kind != "euclidean":
        rows = rows / lengths.clamp(min=1e-300)[:, None]
    from scipy.spatial.distance import pdist, squareform

    # From differences, so that near samples keep their digits; every pair once.
    apart = torch.from_numpy(squareform(pdist(rows.numpy()), checks=False))
    if kind != "euclidean":
        apart = torch.where(apart < _PARALLEL, 0.0, apart.square() / 2)
        none = lengths <= _PARALLEL * x.norm(dim=1)
        apart = torch.where(none[:, None] | none, 1.0, apart)
    # Pairs that are equally unlike but for the last digits are ties.
    return ((apart.view(torch.int64) + _HALF) >> _BITS << _BITS).view(torch.float64)


def rsa(
    x: Float64[Tensor, "samples samples"],
    y: Float64[Tensor, "samples samples"],
    correlation: Correlation,
    fold: Int64[Tensor, " samples"],
) -> tuple[float, list[float]]:
    """The correlation between two tables of dissimilarities over all pairs of samples, in [-1, 1].

    Args:
        x: how unlike every two samples are in the one network.
        y: the same in the other.
        correlation: of the dissimilarities, or of their ranks among all of them.
        fold: to which part of the data every sample belongs.

    Returns:
        The correlation, NaN where all pairs are equally unlike in one of them, and what it is
        without each part of the data.

    Source: N. Kriegeskorte, M. Mur and P. Bandettini (2008), Representational similarity analysis.
    """
    upper = torch.triu_indices(len(x), len(x), 1)
    sides = [table[upper[0], upper[1]] for table in (x, y)]
    if correlation == "spearman":
        from scipy.stats import rankdata

        sides = [torch.as_tensor(rankdata(side.numpy())) for side in sides]
    one, other = (side - side.mean() for side in sides)
    parts, index = fold.unique(return_inverse=True)
    count = len(parts)
    pair = index[upper[0]] * count + index[upper[1]]

    def by_parts(values: Tensor) -> Tensor:
        """[part, part], the sum over pairs of samples from two parts."""
        return torch.bincount(pair, values, count**2).reshape(count, count)

    ones = torch.ones_like(one)
    sums = torch.stack(
        [by_parts(v) for v in (ones, one, other, one * one, other * other, one * other)]
    )
    left: list[float] = []
    for part in range(count):
        others = torch.arange(count) != part
        if int(others[index].sum()) >= 4:
            left.append(_correlation(sums[:, others][:, :, others].sum((1, 2))))
    return _correlation(sums.sum((1, 2))), left


def _correlation(sums: Float64[Tensor, "6"]) -> float:
    """From the number of pairs, both sums, both sums of squares and that of products."""
    pairs, one, other, squares, others, products = sums.tolist()
    sizes = squares - one**2 / pairs, others - other**2 / pairs
    if not min(sizes) > 0:
        return math.nan
    return (products - one * other / pairs) / math.sqrt(sizes[0]) / math.sqrt(sizes[1])


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
