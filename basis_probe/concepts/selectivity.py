"""How much of a direction's variance a label explains, for all directions of all rotations at once.

Of a direction q the share is q'Bq / q'Tq, with T the covariance of the activations and B that of
the means of the label's values. Both are n x n and need one pass over the data, whatever is turned
afterwards; no rotation of the data is needed.
"""

import dataclasses
import math

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from basis_probe.algebra.haar import haar
from basis_probe.arguments import instance, seed_of, whole
from basis_probe.brief import brief
from basis_probe.concepts.comparing import tally
from basis_probe.devices import on_own_device
from basis_probe.results.codec import Exact
from basis_probe.results.dissection import Tally


@brief
@dataclasses.dataclass(frozen=True, eq=False)
class Scatter:
    """Sums of activations for every value of a label; `a + b` is that of both streams.

    Attributes:
        counts: samples of every value, [values].
        sums: of the activations, [values, dim], less `shift`.
        products: of all activations with each other, [dim, dim], less `shift`.
        shift: subtracted from every sample, so that an offset costs no precision, [dim].
    """

    counts: Float64[Tensor, " values"]
    sums: Float64[Tensor, "values dim"]
    products: Float64[Tensor, "dim dim"]
    shift: Float64[Tensor, " dim"]

    @staticmethod
    def of(
        x: Float[Tensor, "samples dim"],
        labels: Int64[Tensor, " samples"],
        values: int,
        shift: Float64[Tensor, " dim"] | None = None,
    ) -> "Scatter":
        """Of some samples.

        Args:
            x: activations.
            labels: the value of every sample, from 0 to values - 1.
            values: how many values there are.
            shift: the same for all parts that are added up; None for the mean of these samples.

        Raises:
            ValueError: for a label outside its values.
        """
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < values:
            raise ValueError(
                f"labels go from {int(labels.min())} to {int(labels.max())} and there are {values} "
                "values: number the values from 0"
            )
        shift = x.double().mean(0) if shift is None else shift
        moved = x.double() - shift
        sums = torch.zeros(values, x.shape[1], dtype=torch.float64)
        sums.index_add_(0, labels, moved)
        counts = torch.bincount(labels, minlength=values).double()
        return Scatter(counts, sums, moved.T @ moved, shift)

    def __add__(self, other: "Scatter") -> "Scatter":
        """Raises ValueError where the two parts subtract different shifts."""
        if not torch.equal(self.shift, other.shift):
            raise ValueError("scatters of different shifts cannot be added: give both one shift")
        return Scatter(
            self.counts + other.counts,
            self.sums + other.sums,
            self.products + other.products,
            self.shift,
        )

    @property
    def total(self) -> Float64[Tensor, "dim dim"]:
        """T: the covariance of the activations."""
        number = self.counts.sum()
        mean = self.sums.sum(0) / number
        return self.products / number - mean[:, None] * mean

    @property
    def between(self) -> Float64[Tensor, "dim dim"]:
        """B: the covariance of the means of the label's values."""
        there = self.counts > 0
        number = self.counts.sum()
        means = self.sums[there] / self.counts[there, None] - self.sums.sum(0) / number
        return (means * (self.counts[there, None] / number)).T @ means


def shares(
    between: Float64[Tensor, "dim dim"],
    total: Float64[Tensor, "dim dim"],
    directions: Float64[Tensor, "dim some"],
) -> Float64[Tensor, " some"]:
    """Q'Bq / q'Tq of every column q; NaN where the direction does not vary."""
    explained = (directions * (between @ directions)).sum(0)
    varies = (directions * (total @ directions)).sum(0)
    floor = 1e-12 * total.diagonal().max()
    return torch.where(varies > floor, explained / varies, torch.nan)


def mean_share(between: Float64[Tensor, "dim dim"], total: Float64[Tensor, "dim dim"]) -> float:
    """The expectation of q'Bq / q'Tq over all directions q, without drawing any.

    For z standard normal the ratio has the law of that of q, and 1 / z'Tz is the integral of
    exp(-t z'Tz) over t > 0, so that E = integral of prod_i (1 + 2 t l_i)^(-1/2) sum_i b_i /
    (1 + 2 t l_i) dt, with l the eigenvalues of T and b the diagonal of B in its eigenbasis.
    """
    values, vectors = torch.linalg.eigh(total)
    values = values.clamp(min=0)
    scale = float(values.mean())
    if not scale > 0:
        return math.nan
    # In units in which the eigenvalues are about one; t = exp(u) by the trapezoid rule, whose error
    # falls exponentially for an integrand that vanishes at both ends.
    values = values / scale
    along = (vectors * (between / scale @ vectors)).sum(0)
    u = torch.linspace(-60.0, 60.0, 6001, dtype=torch.float64)
    spread = 1 + 2 * u.exp()[:, None] * values
    integrand = (u - spread.log().sum(1) / 2).exp() * (along / spread).sum(1)
    return float(torch.trapezoid(integrand, u))


def best_share(
    between: Float64[Tensor, "dim dim"], total: Float64[Tensor, "dim dim"]
) -> tuple[float, Float64[Tensor, " dim"]]:
    """The largest share that any direction has, and that direction (linear discriminant analysis).

    Directions whose variance is below 1e-9 of the largest are not considered.
    """
    values, vectors = torch.linalg.eigh(total)
    keep = values > values.max() * 1e-9
    whiten = vectors[:, keep] / values[keep].sqrt()
    shares_, directions = torch.linalg.eigh(whiten.T @ between @ whiten)
    best = whiten @ directions[:, -1]
    return float(shares_[-1]), best / best.norm()


@brief
@dataclasses.dataclass(frozen=True, eq=False)
class Selectivity(Exact):
    """How much of each axis' variance a label explains, beside that of rotations.

    Attributes:
        label: what is asked of.
        per_direction: of every axis, [dim].
        mean: the mean over axes, beside that of rotations.
        highest: the highest of any axis, beside the highest of any rotated direction.
        expected: the mean over all directions, in closed form; the check on the rotations.
        ceiling: the largest share that any direction has (linear discriminant analysis).
        chance: what a label that means nothing explains on average, (values - 1) / (samples - 1).
    """

    label: str
    per_direction: np.ndarray
    mean: Tally
    highest: Tally
    expected: float
    ceiling: float
    chance: float

    def __str__(self) -> str:
        return (
            f"{self.label}: axes {self.mean.observed:.3f}, rotations {self.mean.null_mean:.3f} "
            f"(closed form {self.expected:.3f}), highest axis {self.highest.observed:.3f} against "
            f"{self.highest.null_mean:.3f}, ceiling {self.ceiling:.3f}"
        )


@on_own_device
def selectivity(
    scatter: Scatter, label: str = "label", *, frames: int = 99, seed: int = 0
) -> Selectivity:
    """How much of each axis' variance a label explains, against Haar rotations.

    Args:
        scatter: from `Scatter.of`, added up over all data.
        label: what it is called.
        frames: how many rotations; they cost two products of n x n matrices each.
        seed: seeds them.

    Raises:
        TypeError, ValueError: for a scatter, a name or a number that is none.

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> labels = torch.randint(0, 3, (2000,), generator=generator)
        >>> x = torch.randn(2000, 8, generator=generator).double()
        >>> x[:, 0] += 2 * labels
        >>> found = selectivity(Scatter.of(x, labels, 3), "class")
        >>> bool(found.per_direction[0] > 0.6), bool(found.per_direction[1:].max() < 0.02)
        (True, True)
    """
    instance("scatter", scatter, Scatter, "a Scatter, such as `Scatter.of` makes")
    instance("label", label, str, "what the label is called")
    frames, seed = whole("frames", frames, least=1, most=1_000_000), seed_of(seed)
    between, total = scatter.between, scatter.total
    dim = len(total)
    generator = torch.Generator().manual_seed(seed)
    rows: list[Tensor] = []
    for index in range(frames + 1):
        turn = haar(dim, generator) if index else torch.eye(dim, dtype=torch.float64)
        rows.append(shares(between, total, turn))
    found = torch.stack(rows)
    number = float(scatter.counts.sum())
    return Selectivity(
        label=label,
        per_direction=found[0].numpy(),
        mean=tally(found.nanmean(1), None),
        highest=tally(found.nan_to_num(-1.0).amax(1), None),
        expected=mean_share(between, total),
        ceiling=best_share(between, total)[0],
        chance=(float((scatter.counts > 0).sum()) - 1) / max(1.0, number - 1),
    )
