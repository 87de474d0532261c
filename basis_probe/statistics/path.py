"""The way from the axes to a random basis, and how a score falls along it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from basis_probe.algebra.haar import haar, haar_fixing
from basis_probe.statistics.scores import Rows, Score

POWERS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""The stations at which network dissection was published."""

_ORTHOGONAL = 1e-8


@dataclasses.dataclass(frozen=True, eq=False)
class RotationPath:
    """A score at several stations on the way to several random bases.

    Attributes:
        score: name of the score.
        powers: the stations: 0 is the axes, 1 a uniformly random basis, [power].
        values: the score at each, [turn, power].
    """

    score: str
    powers: Float64[Tensor, " power"]
    values: Float64[Tensor, "turn power"]

    @property
    def mean(self) -> Float64[Tensor, " power"]:
        """The mean over turns, [power]."""
        return self.values.mean(0)

    def band(self, coverage: float = 0.9) -> Float64[Tensor, "end power"]:
        """The lower and upper end of the middle part of the turns, [2, power].

        Args:
            coverage: which part of them, in (0, 1].

        Raises:
            ValueError: for another coverage.
        """
        if not 0 < coverage <= 1:
            raise ValueError(f"coverage={coverage}: give a part of the turns in (0, 1]")
        ends = torch.tensor([(1 - coverage) / 2, (1 + coverage) / 2], dtype=torch.float64)
        return self.values.quantile(ends, dim=0)


def rotation_path(
    x: Float[Tensor, "samples dim"],
    score: Score,
    *,
    powers: Sequence[int | float] = POWERS,
    turns: int = 10,
    generator: torch.Generator,
    blocks: Sequence[Sequence[int]] = (),
    fixed: bool = False,
    parts: Sequence[Tensor] = (),
) -> RotationPath:
    """The score along Q^a for several uniform Q: the whole picture of which a null is the end.

    Where Q reverses orientation, as half of all do, no path of rotations leads to it: it starts at
    the axes with the first one reversed, which no score notices, and ends at Q all the same.

    Args:
        x: activations in the geometry of their group, [samples, dim].
        score: averaged over directions.
        powers: the stations, in [0, 1].
        turns: how many random bases to go to.
        generator: draws them; on the CPU.
        blocks: the axes that are turned among themselves; empty for all together.
        fixed: True where every turn leaves the all-ones direction alone.
        parts: rows whose scores are computed apart and averaged; empty for all together.

    Raises:
        ValueError: if there are no stations or turns, or a station is outside [0, 1].

    Example:
        >>> from basis_probe.statistics.scores import KURTOSIS
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = torch.randn(2000, 8, generator=generator, dtype=torch.float64) ** 3
        >>> path = rotation_path(x, KURTOSIS, generator=generator)
        >>> path.values.shape, bool(path.mean[0] > 2 * path.mean[-1])
        (torch.Size([10, 6]), True)
    """
    stations = torch.tensor([float(power) for power in powers], dtype=torch.float64)
    if turns < 1 or len(stations) == 0 or bool(((stations < 0) | (stations > 1)).any()):
        raise ValueError(
            f"{turns} turns and powers {list(powers)}: give at least one turn, and powers in [0, 1]"
        )
    rows = x.to(torch.float64)
    values = torch.empty(turns, len(stations), dtype=torch.float64)
    for turn in range(turns):
        way = _way(x.shape[1], powers, blocks, fixed, generator)
        for station, frame in enumerate(way):
            turned = rows @ frame.to(rows)
            several = [turned[part] for part in parts] or [turned]
            scores = torch.stack(
                [score.per_direction(Rows(one)).nanmean().cpu() for one in several]
            )
            values[turn, station] = scores.mean()
    return RotationPath(score.name, stations, values)


def _way(
    dim: int,
    powers: Sequence[int | float],
    blocks: Sequence[Sequence[int]],
    fixed: bool,
    generator: torch.Generator,
) -> Tensor:
    """Matrices on the way to a uniform turn of all axes, or of every block, [power, dim, dim]."""
    if fixed:
        ones = torch.ones(1, dim, dtype=torch.float64)
        return path_to(haar_fixing(ones, generator), powers)
    if not blocks:
        return path_to(haar(dim, generator), powers)
    whole = torch.eye(dim, dtype=torch.float64).repeat(len(powers), 1, 1)
    for block in blocks:
        place = torch.tensor(block)
        whole[:, place[:, None], place] = path_to(haar(len(block), generator), powers)
    return whole


def path_to(
    turn: Float64[Tensor, "dim dim"], powers: Sequence[int | float]
) -> Float64[Tensor, "power dim dim"]:
    """Orthogonal matrices on the way to `turn`, of either orientation, [power, dim, dim].

    For a turn that reverses orientation it is (Q F)^a F with F that reverses the first axis: F at 0
    and Q at 1.

    Args:
        turn: an orthogonal matrix.
        powers: where on the way; 0 gives the axes, up to the sign of the first, 1 `turn` itself.

    Raises:
        ValueError: if the matrix is not orthogonal.

    Example:
        >>> flip = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
        >>> path_to(flip, [0.0, 1.0])[0].diagonal()
        tensor([-1.,  1.], dtype=torch.float64)
    """
    flip = torch.ones(turn.shape[-1], dtype=torch.float64)
    if float(torch.linalg.det(_orthogonal(turn))) < 0:
        flip[0] = -1.0
    angles, vectors = _planes(turn * flip)
    frames = [_power(angles, vectors, turn * flip, power) * flip for power in powers]
    return torch.stack(frames)


def fractional_power(
    turn: Float64[Tensor, "dim dim"], power: int | float
) -> Float64[Tensor, "dim dim"]:
    """Q^a: every plane that Q turns by an angle is turned by a times that angle.

    The angles are in [-pi, pi], so the way is the shortest one. It is the identity at 0 and Q
    itself at 1, and Q^a Q^b = Q^(a+b), in odd dimensions too. Directions that Q reverses come in
    pairs, and each pair is a plane turned by pi; which two make a pair is not determined by Q.

    Args:
        turn: an orthogonal matrix of determinant 1.
        power: any number.

    Raises:
        ValueError: if the matrix is not orthogonal, or reverses orientation: then no real power of
            it exists, and `path_to` says how to go there.

    Source: the real Schur form of an orthogonal matrix; G. H. Golub and C. F. Van Loan, Matrix
        Computations, 4th ed., section 7.4.

    Example:
        >>> quarter = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
        >>> fractional_power(quarter, 2.0).round()
        tensor([[-1., -0.],
                [ 0., -1.]], dtype=torch.float64)
    """
    if float(torch.linalg.det(_orthogonal(turn))) < 0:
        raise ValueError(
            "the matrix reverses orientation (its determinant is -1), and no real power of it "
            "exists: use path_to, or reverse one axis first"
        )
    return _power(*_planes(turn), turn, power)


def _power(angles: Tensor, vectors: Tensor, turn: Tensor, power: int | float) -> Tensor:
    if power == 1:
        return turn.clone()
    if power == 0:
        return torch.eye(len(turn), dtype=torch.float64)
    count = len(angles)
    cos, sin = (power * angles).cos(), (power * angles).sin()
    first, second = vectors[:, 0 : 2 * count : 2], vectors[:, 1 : 2 * count : 2]
    fixed = vectors[:, 2 * count :]
    turned_first, turned_second = first * cos + second * sin, second * cos - first * sin
    return turned_first @ first.T + turned_second @ second.T + fixed @ fixed.T


def _planes(turn: Tensor) -> tuple[Tensor, Tensor]:
    """The angles of a rotation, and its planes: two columns for each, then what it leaves fixed."""
    import scipy.linalg

    form, basis = (torch.as_tensor(part) for part in scipy.linalg.schur(turn.numpy()))
    dim, place = len(turn), 0
    angles: list[float] = []
    planes: list[Tensor] = []
    reversed_: list[Tensor] = []
    fixed: list[Tensor] = []
    while place < dim:
        if place + 1 < dim and float(form[place + 1, place].abs()) > _ORTHOGONAL:
            sine = float(form[place + 1, place] - form[place, place + 1]) / 2
            angles.append(math.atan2(sine, float(form[place, place])))
            planes += [basis[:, place], basis[:, place + 1]]
            place += 2
            continue
        (fixed if float(form[place, place]) > 0 else reversed_).append(basis[:, place])
        place += 1
    # The determinant is 1, so that an even number of directions is reversed.
    angles += [math.pi] * (len(reversed_) // 2)
    ordered = torch.stack([*planes, *reversed_, *fixed], 1)
    return torch.tensor(angles, dtype=torch.float64), ordered


def _orthogonal(turn: Tensor) -> Tensor:
    missed = math.inf
    if turn.ndim == 2 and turn.shape[0] == turn.shape[1]:
        missed = float((turn @ turn.T - torch.eye(len(turn), dtype=torch.float64)).abs().max())
    if not missed < _ORTHOGONAL:
        raise ValueError(
            f"a matrix of shape {list(turn.shape)} was given that is not orthogonal: give a "
            "square one with turn @ turn.T = 1"
        )
    return turn
