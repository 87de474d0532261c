"""Measures that compare how alike pairs of samples are in either network, and fit nothing."""

import math
from typing import Literal

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from basis_probe.compare.kernels import Hsic, kernel_hsic
from basis_probe.statistics.single_precision import full_products

Dissimilarity = Literal["euclidean", "cosine", "correlation"]
Correlation = Literal["pearson", "spearman"]

# The last bits of 52, which are rounding, and half of the first that is kept.
_BITS = 12
_HALF = 2 ** (_BITS - 1)

# Two samples of unit length that are no further apart point the same way, and what is left of a
# sample about its mean has no length.
_PARALLEL = 4e-15

# What is between two ties at most, in parts of a squared distance; what squares of single precision
# lose where they are small; and so many numbers are subtracted at a time.
_TIES, _UNDERFLOW, _AT_ONCE = 1e-10, 1e-36, 2**20


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
    from scipy.spatial.distance import pdist, squareform

    rows, none = _compared(x, kind)
    # From differences, so that near samples keep their digits; every pair once.
    apart = torch.from_numpy(squareform(pdist(rows.numpy()), checks=False))
    return _tied(torch.where(none[:, None] | none, 1.0, _unlike(apart, kind)))


def _compared(x: Tensor, kind: Dissimilarity) -> tuple[Tensor, Tensor]:
    """The samples as they are compared by length, and which of them have none."""
    rows = x - x.mean(1, keepdim=True) if kind == "correlation" else x
    if kind == "euclidean":
        return rows, torch.zeros(len(x), dtype=torch.bool)
    lengths = rows.norm(dim=1)
    return rows / lengths.clamp(min=1e-300)[:, None], lengths <= _PARALLEL * x.norm(dim=1)


def _unlike(apart: Tensor, kind: Dissimilarity) -> Tensor:
    """How unlike samples are, by how long their differences are."""
    if kind == "euclidean":
        return apart
    return torch.where(apart < _PARALLEL, 0.0, apart.square() / 2)


def _tied(apart: Tensor) -> Tensor:
    """Pairs that are equally unlike but for the last digits are ties."""
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
    x: Float64[Tensor, "samples samples"], y: Float64[Tensor, "samples samples"], *, union: bool
) -> Float64[Tensor, " samples"]:
    """For every sample the share of its nearest neighbours that are so in both networks, in [0, 1].

    Args:
        x: which samples are the nearest of which in the one network, as `neighbours` finds them.
        y: the same in the other, as many of each.
        union: False to divide by how many neighbours a sample has (mutual nearest neighbours; Huh
            et al. 2024), True to divide by how many are its neighbours in either network (Jaccard).
    """
    both, count = (x * y).sum(1), x.sum(1)
    return both / (2 * count - both if union else count)


def neighbours(
    x: Float64[Tensor, "samples dim"], kind: Dissimilarity, count: int
) -> Float64[Tensor, "samples samples"] | None:
    """[samples, samples], the chance that the second is a nearest neighbour of the first.

    0 or 1, but for samples that are equally far, which share the places that are left. Which may
    be near is found by products; how far those are, from differences, as in `dissimilarities`.

    Args:
        x: the activations.
        kind: how unlike two samples are, as in `dissimilarities`.
        count: how many neighbours a sample has.

    Returns:
        The chances; None where all pairs are equally unlike.

    Raises:
        ValueError: if there are no more samples than neighbours.
    """
    if len(x) <= count:
        raise ValueError(
            f"neighbours={count} and {len(x)} samples: give fewer neighbours, or more samples"
        )
    found = _near(x, kind, count)
    if found is not None:
        return found
    table = dissimilarities(x, kind)
    return None if all_alike(table) else _nearest(table.fill_diagonal_(torch.inf), count)


def _near(x: Tensor, kind: Dissimilarity, count: int) -> Tensor | None:
    """What `neighbours` returns, without looking at most pairs closely; None for too many."""
    rows, none = _compared(x, kind)
    centred = rows - rows.mean(0)
    longest = float(torch.linalg.vector_norm(centred, dim=1).max())
    if none.any() or not 0 < longest < math.inf:
        return None
    rough = (centred / longest).float()
    squares = rough.square().sum(1)
    with full_products():
        about = torch.addmm(squares[:, None] + squares, rough, rough.T, alpha=-2)
    about.fill_diagonal_(torch.inf)
    # No product of numbers that were rounded, however it is added up, errs by more.
    doubt = 4 * (rows.shape[1] + 8) * torch.finfo(torch.float32).eps * (squares + squares.max())
    limit = about.kthvalue(count, dim=1).values + 2 * doubt
    near = about <= (limit * (1 + _TIES) + _UNDERFLOW)[:, None]
    held = near.sum(1)
    if int(held.sum()) > len(x) ** 2 / 8:
        return None
    one, other = near.nonzero().unbind(1)
    lengths = torch.cat(
        [
            torch.linalg.vector_norm(rows[some] - rows[those], dim=1)
            for some, those in zip(
                *(v.split(max(1, _AT_ONCE // rows.shape[1])) for v in (one, other)), strict=True
            )
        ]
    )
    # Those that may be near to one sample in one row.
    apart = rows.new_full((len(x), int(held.max())), torch.inf)
    place = torch.arange(len(one)) - (held.cumsum(0) - held)[one]
    apart[one, place] = _tied(_unlike(lengths, kind))
    found = rows.new_zeros(len(x), len(x))
    found[one, other] = _nearest(apart, count)[one, place]
    return found


def _nearest(others: Tensor, count: int) -> Tensor:
    """The chance that each of a row is among its least."""
    last = others.kthvalue(count, dim=1, keepdim=True).values
    nearer, equal = others < last, others == last
    left = count - nearer.sum(1, keepdim=True)
    return nearer + equal * (left / equal.sum(1, keepdim=True).double())


def all_alike(table: Float64[Tensor, "samples samples"]) -> bool:
    """True if all pairs of different samples are equally unlike."""
    least = table.clone().fill_diagonal_(math.inf).min()
    return float(least) == float(table.clone().fill_diagonal_(-math.inf).max())


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
