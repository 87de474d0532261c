"""Which basis, then? Other bases of the same space, judged by the same scores on held-out samples.

A `Candidate` finds a basis in rows of activations; `compare_bases` fits every candidate on one half
of the rows, scores all of them and random rotations on the other, and says how far the axes come
towards the best basis that was found. Rows are taken in the geometry they are given in: standardise
or whiten them first where the group of the site asks for it, and read directions accordingly.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from basis_probe.algebra.haar import haar
from basis_probe.arguments import array_of, instance, seed_of, whole
from basis_probe.brief import brief
from basis_probe.parallel import hearing
from basis_probe.statistics.p_values import Tail
from basis_probe.statistics.scores import Rows, Score

__all__ = [
    "ALL",
    "ICA",
    "PCA",
    "Basis",
    "BasisComparison",
    "Candidate",
    "Given",
    "Hadamard",
    "Quartimax",
    "Random",
    "Standard",
    "Standing",
    "Varimax",
]


def __dir__() -> list[str]:
    return list(__all__)


# Directions of less than this share of the largest variance are left to rounding.
_NEGLIGIBLE = 1e-10

# No basis is called better than random ones for less than so many standard deviations of theirs.
_STANDS_OUT = 4.0


@brief
@dataclasses.dataclass(frozen=True, eq=False)
class Basis:
    """Directions in which activations are read: `x @ directions.T`.

    Attributes:
        name: what made it.
        directions: unit vectors, one a row, [direction, dim]; neither orthogonal nor as many as
            axes unless the candidate says so.
        note: what a reader must know of how it was found, or an empty string.
    """

    name: str
    directions: Float64[Tensor, "direction dim"]
    note: str = ""

    def read(self, x: Float[Tensor, "samples dim"]) -> Float64[Tensor, "samples direction"]:
        """The activations along every direction, [samples, direction]."""
        return x.to(torch.float64) @ self.directions.T.to(x.device)


class Candidate(abc.ABC):
    """A way to find a basis that may be the privileged one instead of the axes.

    Raises:
        ValueError: for a seed or a number of iterations that is none.
    """

    def __post_init__(self) -> None:
        # What is shown of a candidate are numbers of Python.
        given = vars(self)
        if "seed" in given:
            object.__setattr__(self, "seed", seed_of(given["seed"]))
        if "iterations" in given:
            count = whole("iterations", given["iterations"], least=1, most=1_000_000)
            object.__setattr__(self, "iterations", count)

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """What the basis is called."""

    @abc.abstractmethod
    def fit(self, x: Float[Tensor, "samples dim"]) -> Basis:
        """The basis found in rows of activations, [samples, dim].

        Raises:
            ValueError: if the rows do not allow it.
        """


@dataclasses.dataclass(frozen=True)
class Standard(Candidate):
    """The axes themselves.

    Example:
        >>> Standard().fit(torch.ones(5, 2)).directions
        tensor([[1., 0.],
                [0., 1.]], dtype=torch.float64)
    """

    @property
    def name(self) -> str:
        return "standard"

    def fit(self, x: Float[Tensor, "samples dim"]) -> Basis:
        return Basis(self.name, torch.eye(_centred(x).shape[1], dtype=torch.float64))


@dataclasses.dataclass(frozen=True)
class Random(Candidate):
    """A uniformly distributed (Haar) orthonormal basis.

    Attributes:
        seed: which one.
    """

    seed: int = 0

    @property
    def name(self) -> str:
        return "random"

    def fit(self, x: Float[Tensor, "samples dim"]) -> Basis:
        dim = _centred(x).shape[1]
        return Basis(self.name, haar(dim, torch.Generator().manual_seed(self.seed)).T.contiguous())


@dataclasses.dataclass(frozen=True)
class Hadamard(Candidate):
    """A randomised Hadamard transform of three rounds, as used to spread outliers before rounding.

    Attributes:
        seed: which signs.
    """

    seed: int = 0

    @property
    def name(self) -> str:
        return "hadamard"

    def fit(self, x: Float[Tensor, "samples dim"]) -> Basis:
        generator = torch.Generator().manual_seed(self.seed)
        turn = hadamard_rotation(_centred(x).shape[1], rounds=3, generator=generator)
        return Basis(self.name, turn)


@dataclasses.dataclass(frozen=True)
class PCA(Candidate):
    """The principal axes of the covariance, by falling variance: orthonormal.

    Where variances are nearly equal, as in standardised or whitened rows, they are arbitrary.
    """

    @property
    def name(self) -> str:
        return "pca"

    def fit(self, x: Float[Tensor, "samples dim"]) -> Basis:
        centred = _centred(x)
        _, vectors = torch.linalg.eigh(centred.T @ centred)
        return Basis(self.name, vectors.T.flip(0).contiguous().cpu())


@dataclasses.dataclass(frozen=True)
class ICA(Candidate):
    """The directions along which activations are least Gaussian, heavy-tailed or flat alike.

    Symmetric FastICA with the log cosh contrast, by scikit-learn. The rows of the unmixing matrix
    are scaled to unit length; they are orthogonal where the covariance is a multiple of the
    identity. As many as the covariance has directions. Fitted from a random start, so that the axes
    are not where the search begins.

    Attributes:
        seed: of the start.
        iterations: at most so many; a search that has not settled by then says so in its note.

    Source: A. Hyvarinen, IEEE Transactions on Neural Networks 10 (1999) 626.
    """

    seed: int = 0
    iterations: int = 400

    def __post_init__(self) -> None:
        super().__post_init__()
        # Those of numpy's older generators, which the search draws from.
        whole("seed", self.seed, most=2**32 - 1)

    @property
    def name(self) -> str:
        return "ica"

    def fit(self, x: Float[Tensor, "samples dim"]) -> Basis:
        import sklearn.decomposition
        import sklearn.exceptions

        centred = _centred(x).cpu()
        values = torch.linalg.eigvalsh(centred.T @ centred)
        rank = int((values > values.max() * _NEGLIGIBLE).sum())
        if rank == 0:
            raise ValueError("no direction of the activations varies: there is nothing to unmix")
        search: Any = sklearn.decomposition.FastICA(
            n_components=rank,
            whiten="unit-variance",
            whiten_solver="eigh" if len(centred) > centred.shape[1] else "svd",
            fun="logcosh",
            max_iter=self.iterations,
            tol=1e-4,
            random_state=self.seed,
        )
        with hearing() as heard:
            search.fit(centred.numpy())
        unsettled = any(issubclass(k, sklearn.exceptions.ConvergenceWarning) for k in heard)
        note = f"had not settled after {self.iterations} iterations" if unsettled else ""
        return Basis(self.name, _unit_rows(torch.as_tensor(search.components_)), note)


@dataclasses.dataclass(frozen=True)
class _Orthomax(Candidate):
    """An orthonormal basis that makes the loadings' fourth powers large.

    Attributes:
        seed: of the rotation from which the search starts; starting at the axes would favour them.
        iterations: at most so many.
    """

    seed: int = 0
    iterations: int = 500

    @property
    @abc.abstractmethod
    def weight(self) -> float:
        """How much of the squared variances is taken off: 0 or 1."""

    def fit(self, x: Float[Tensor, "samples dim"]) -> Basis:
        centred = _centred(x).cpu()
        scale = centred.square().mean().sqrt()
        if not scale > 0:
            raise ValueError("no direction of the activations varies: there is nothing to turn")
        centred = centred / scale
        samples, dim = centred.shape
        turn = haar(dim, torch.Generator().manual_seed(self.seed))
        before, settled = -math.inf, False
        for _ in range(self.iterations):
            loadings = centred @ turn
            square = loadings.square()
            variance = square.mean(0)
            value = float(square.square().mean(0).sum() - self.weight * variance.square().sum())
            if value - before <= 1e-9 * abs(value):
                settled = True
                break
            before = value
            cubed = loadings * (square - self.weight * variance)
            left, _, right = torch.linalg.svd(centred.T @ cubed / samples)
            turn = left @ right
        note = "" if settled else f"had not settled after {self.iterations} iterations"
        return Basis(self.name, turn.T.contiguous(), note)


@dataclasses.dataclass(frozen=True)
class Quartimax(_Orthomax):
    """The orthonormal basis with the largest sum of fourth powers: finds heavy tails, no flat laws.

    Source: J. O. Neuhaus and C. Wrigley, British Journal of Statistical Psychology 7 (1954) 81.
    """

    @property
    def name(self) -> str:
        return "quartimax"

    @property
    def weight(self) -> float:
        return 0.0


@dataclasses.dataclass(frozen=True)
class Varimax(_Orthomax):
    """The orthonormal basis in which squared loadings vary most: finds heavy tails, not flat laws.

    Source: H. F. Kaiser, Psychometrika 23 (1958) 187; for what it identifies: K. Rohe and M. Zeng,
        Journal of the Royal Statistical Society B 85 (2023) 1037.
    """

    @property
    def name(self) -> str:
        return "varimax"

    @property
    def weight(self) -> float:
        return 1.0


@brief
@dataclasses.dataclass(frozen=True, eq=False)
class Given(Candidate):
    """Directions that are at hand: a matrix, a dictionary, the decoder of a sparse autoencoder.

    Attributes:
        directions: [direction, dim], one a row, of any length but 0 and any number; in the
            coordinates of the rows that are compared.
        label: what they are called.
    """

    directions: Tensor | np.ndarray
    label: str = "given"

    def __post_init__(self) -> None:
        instance("label", self.label, str, "what the directions are called")
        what = "floating-point numbers [directions, dim], one direction a row"
        rows = array_of("directions", self.directions, what)
        if rows.ndim != 2 or rows.size == 0 or rows.dtype.kind != "f":
            raise ValueError(
                f"given directions have shape {list(rows.shape)} and type {rows.dtype}: give {what}"
            )
        if not np.isfinite(rows).all() or (rows == 0).all(1).any():
            raise ValueError("some given directions are zero, NaN or infinite: leave those out")

    @property
    def name(self) -> str:
        return self.label

    def fit(self, x: Float[Tensor, "samples dim"]) -> Basis:
        rows, dim = torch.as_tensor(self.directions), _centred(x).shape[1]
        if rows.shape[1] != dim:
            raise ValueError(
                f"{self.label} has directions of {rows.shape[1]} entries, and the activations have "
                f"{dim} axes: give [directions, {dim}]"
            )
        return Basis(self.name, _unit_rows(rows.detach().cpu()))


ALL: dict[str, Candidate] = {
    candidate.name: candidate
    for candidate in (Standard(), PCA(), ICA(), Varimax(), Quartimax(), Hadamard(), Random())
}
"""The candidates that have a name."""


def hadamard_rotation(
    dim: int, *, rounds: int, generator: torch.Generator
) -> Float64[Tensor, "dim dim"]:
    """An orthogonal matrix from `rounds` of random signs, each followed by a Hadamard transform.

    One round is biased just where it matters: it turns an axis into a vector of equal entries,
    whose kurtosis across axes is 1 where a uniform rotation has 3n/(n+2); at n = 64 an axis has
    1.000, 2.97 and 2.91 after one, two and three rounds. The mean is right from two rounds on, the
    spread from three.

    Where `dim` is 2^k m with m odd, the transform is that of size 2^k times a cosine transform of
    size m.

    Args:
        dim: the size, at least 1.
        rounds: at least 1.
        generator: draws the signs; on the CPU.

    Raises:
        ValueError: if `dim` or `rounds` is below 1.

    Example:
        >>> turn = hadamard_rotation(12, rounds=3, generator=torch.Generator().manual_seed(0))
        >>> torch.allclose(turn @ turn.T, torch.eye(12, dtype=torch.float64))
        True
    """
    if dim < 1 or rounds < 1:
        raise ValueError(f"got dim={dim} and rounds={rounds}: both must be at least 1")
    odd = dim
    transform = torch.ones(1, 1, dtype=torch.float64)
    pair = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64) * math.sqrt(0.5)
    while odd % 2 == 0:
        odd, transform = odd // 2, torch.kron(transform, pair)
    transform = torch.kron(transform, cosines(odd))
    turn = torch.eye(dim, dtype=torch.float64)
    for _ in range(rounds):
        signs = 2.0 * torch.randint(0, 2, (dim, 1), generator=generator).double() - 1
        turn = transform @ (signs * turn)
    return turn


def cosines(size: int) -> Tensor:
    """The orthonormal cosine transform of type II."""
    place = torch.arange(size, dtype=torch.float64)
    matrix = math.sqrt(2 / size) * torch.cos(math.pi / size * place[:, None] * (place + 0.5))
    matrix[0] = math.sqrt(1 / size)
    return matrix


# --- how bases lie to each other ------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Matching:
    """One direction of a basis for each of another, so that their |cosines| are largest in sum.

    Attributes:
        rows: which directions of the first, [pairs].
        columns: which of the second go with them, [pairs].
        cosines: their cosines, signs kept, [pairs].
    """

    rows: Int64[Tensor, " pairs"]
    columns: Int64[Tensor, " pairs"]
    cosines: Float64[Tensor, " pairs"]

    @property
    def mean(self) -> float:
        """The mean |cosine|: 1 for one basis in another order and with other signs."""
        return float(self.cosines.abs().mean())


def matched_cosines(
    first: Float[Tensor, "one dim"], second: Float[Tensor, "other dim"]
) -> Matching:
    """The directions of two bases paired off, each used once, by the Hungarian method.

    Two random bases in n dimensions have a mean |cosine| of about sqrt(2 log(n)/n), not 0: that
    much is chance.

    Args:
        first: directions, one a row.
        second: directions of the same space, as many or not.

    Raises:
        ValueError: if the directions are not of one space.

    Source: H. W. Kuhn, Naval Research Logistics Quarterly 2 (1955) 83.

    Example:
        >>> axes = torch.eye(3)
        >>> matched_cosines(axes[[2, 0, 1]] * torch.tensor([[1.0], [-1.0], [1.0]]), axes).columns
        tensor([2, 0, 1])
    """
    from scipy.optimize import linear_sum_assignment

    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise ValueError(
            f"directions of shape {list(first.shape)} and {list(second.shape)} are not of one "
            "space: give [directions, dim] twice with the same dim"
        )
    cosines = _unit_rows(first.detach().cpu()) @ _unit_rows(second.detach().cpu()).T
    rows, columns = linear_sum_assignment(cosines.abs().numpy(), maximize=True)
    one, other = torch.as_tensor(rows), torch.as_tensor(columns)
    return Matching(one, other, cosines[one, other])


# --- the comparison -------------------------------------------------------------------------------


@brief
@dataclasses.dataclass(frozen=True, eq=False)
class Standing:
    """How a basis fared on samples that it was not fitted on.

    Attributes:
        basis: the basis.
        score: the score, averaged over its directions.
        per_direction: the score of every direction, [direction].
        effect: by how many standard deviations of random rotations it differs from their mean.
        ceiling: (score - null mean) / (best score - null mean): 0 is random, 1 the best basis
            found. NaN where no basis stands out from random rotations.
        to_axes: its directions paired off with the axes.
    """

    basis: Basis
    score: float
    per_direction: Float64[Tensor, " direction"]
    effect: float
    ceiling: float
    to_axes: Matching


@brief
@dataclasses.dataclass(frozen=True, eq=False)
class BasisComparison:
    """All bases of one space under one score.

    Attributes:
        score: the name of the score.
        standings: of the axes first, then of the candidates in their order.
        null_mean: mean of the score over random rotations, on the same held-out samples.
        null_std: its standard deviation over them.
        frames: how many random rotations there were.
        fitted_on: number of samples that the bases were fitted on.
        judged_on: number of samples that they were scored on.
    """

    score: str
    standings: tuple[Standing, ...]
    null_mean: float
    null_std: float
    frames: int
    fitted_on: int
    judged_on: int

    @property
    def axes(self) -> Standing:
        """How the axes fared."""
        return self.standings[0]

    @property
    def best(self) -> Standing:
        """The basis that departs most from random rotations in the way that counts."""
        for standing in self.standings:
            if standing.ceiling == 1.0:
                return standing
        return max(self.standings, key=lambda standing: _never_nan(standing.effect))


def compare_bases(
    x: Float[Tensor, "samples dim"],
    candidates: Sequence[Candidate],
    score: Score,
    *,
    held_out: Bool[Tensor, " samples"],
    frames: int = 49,
    generator: torch.Generator,
) -> BasisComparison:
    """The axes, the candidates and random rotations under one score, on samples not used to fit.

    Args:
        x: activations in the geometry of their group, [samples, dim]. Behind a nonlinearity give
            what is before it: rotations of what is behind it are no fair company.
        candidates: the bases to try; the axes take part unasked.
        score: by which they are judged. One that compares axes with each other takes bases of as
            many directions as axes only.
        held_out: True for the samples to judge on; the bases are fitted on the others, [samples].
        frames: number of random rotations, at least 19.
        generator: draws them; on the CPU.

    Raises:
        ValueError: if a half has fewer than 8 samples, a candidate cannot be fitted, or the score
            cannot take it.

    Example:
        >>> from basis_probe.statistics.scores import NEGENTROPY
        >>> generator = torch.Generator().manual_seed(0)
        >>> sources = torch.randn(4000, 4, generator=generator, dtype=torch.float64) ** 3
        >>> x = sources @ haar(4, generator)
        >>> found = compare_bases(
        ...     x, [ICA()], NEGENTROPY, held_out=torch.arange(4000) % 2 == 1, generator=generator
        ... )
        >>> found.best.basis.name, found.axes.ceiling < 0.5
        ('ica', True)
    """
    fitted, judged = x[~held_out].double(), x[held_out].double()
    if min(len(fitted), len(judged)) < 8:
        raise ValueError(
            f"{len(fitted)} samples to fit on and {len(judged)} to judge on: give at least 8 each"
        )
    if frames < 19:
        raise ValueError(f"frames={frames}: give at least 19 random rotations, better 49")
    dim = x.shape[1]
    bases = [candidate.fit(fitted) for candidate in (Standard(), *candidates)]
    for basis in bases:
        if score.across_axes and len(basis.directions) != dim:
            raise ValueError(
                f"{score.name} compares the {dim} axes of a sample with each other, and "
                f"{basis.name} has {len(basis.directions)} directions: judge it by a score of axes"
            )
    per_direction = [score.per_direction(Rows(basis.read(judged))) for basis in bases]
    values = [float(of_basis.nanmean()) for of_basis in per_direction]
    null = torch.tensor(
        [
            float(score.per_direction(Rows(judged @ haar(dim, generator).to(judged))).nanmean())
            for _ in range(frames)
        ],
        dtype=torch.float64,
    )
    mean, std = float(null.mean()), float(null.std())
    best = max(values, key=lambda value: _never_nan(_departure(value, mean, score.tail)))
    tiny = 1e-12 * max(1.0, abs(mean))
    standings = [
        Standing(
            basis=basis,
            score=value,
            per_direction=of_basis.cpu(),
            effect=(value - mean) / std if std > tiny else math.nan,
            ceiling=ceiling_effect(value, best, null_mean=mean, null_std=std),
            to_axes=matched_cosines(basis.directions, bases[0].directions),
        )
        for basis, value, of_basis in zip(bases, values, per_direction, strict=True)
    ]
    return BasisComparison(
        score.name, tuple(standings), mean, std, frames, len(fitted), len(judged)
    )


def ceiling_effect(observed: float, best: float, *, null_mean: float, null_std: float) -> float:
    """How far a basis comes from random to best: (observed - null mean) / (best - null mean).

    0 is random, 1 the best basis that was found, below 0 on the other side of random. NaN where the
    best is within four standard deviations of random rotations: then there is nothing to come near.

    Args:
        observed: the score of the basis.
        best: that of the best one.
        null_mean: mean of the score over random rotations.
        null_std: its standard deviation over them.

    Example:
        >>> ceiling_effect(5.0, 7.0, null_mean=3.0, null_std=0.1)
        0.5
        >>> ceiling_effect(3.1, 3.2, null_mean=3.0, null_std=0.1)
        nan
    """
    if not abs(best - null_mean) > max(_STANDS_OUT * null_std, 1e-12 * abs(null_mean)):
        return math.nan
    return (observed - null_mean) / (best - null_mean)


def _departure(value: float, mean: float, tail: Tail) -> float:
    return value - mean if tail is Tail.UPPER else abs(value - mean)


def _never_nan(value: float) -> float:
    return -math.inf if math.isnan(value) else value


def _centred(x: Tensor) -> Tensor:
    if x.ndim != 2 or x.numel() == 0:
        raise ValueError(
            f"a basis is found in activations [samples, dim], got {list(x.shape)}: move the "
            "feature axis last and flatten the others"
        )
    rows = x.detach().to(torch.float64)
    return rows - rows.mean(0)


def _unit_rows(rows: Tensor) -> Float64[Tensor, "direction dim"]:
    rows = rows.to(torch.float64)
    return rows / rows.norm(dim=1, keepdim=True)
