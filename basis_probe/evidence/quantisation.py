"""What rounding to few bits costs on the axes of a site, against turned ones."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from basis_probe.algebra.groups import Privileged
from basis_probe.evidence.measure import taken
from basis_probe.evidence.own import OwnScore, Place, result
from basis_probe.model.around import Around
from basis_probe.results.evidence import ScoreResult
from basis_probe.statistics.moments import root_mean_square
from basis_probe.statistics.nulls import Geometry, Problem, Rotation, geometry_of
from basis_probe.statistics.p_values import Tail
from basis_probe.statistics.quantisation import Turning, rounding_error

NAME = "quantisation"

_ROWS = 256
"""On so many samples at most is rounding looked at, and on so many rows of a matrix."""
_FRAMES, _FRAMES_OF_NEURONS = 199, 99
_DRAWS = 3
"""Turns that the row of costs is averaged over."""
_BITS = (8, 4)


def _measure(place: Place) -> ScoreResult | str:
    problem = place.problem
    dim = problem.x.shape[1]
    if dim < 2 or not bool(problem.x.any()):
        return "rounding was not looked at: it takes two axes, and activations that are not all 0"
    neurons = not isinstance(place.choice.null, Rotation)
    turning = _turning(problem)
    generator = torch.Generator().manual_seed(place.seed)
    axes = torch.arange(dim)
    if neurons:
        frames, axes = _of_neurons(place, generator)
        null = place.choice.null.name
    else:
        frames = [turning.rows, *(turning.haar(generator) for _ in range(_FRAMES))]
        null = "rotation"
    costs = [_cost(rows) for rows in frames]
    parts = rounding_error(frames[0], 4)
    shares = (parts / parts.nansum(1, keepdim=True)).nanmean(0)
    several = "" if len(axes) == dim else f"on {len(axes)} of {dim:,} axes, drawn at random; "
    return result(
        NAME,
        costs[0],
        costs[1:],
        tail=Tail.TWO_SIDED,
        null=null,
        dim=dim,
        per_direction=dict(zip(axes.tolist(), shares.tolist(), strict=True)),
        note=several + row_of_costs(turning, place.around, place.seed),
    )


def _cost(rows: Tensor, bits: int = 4) -> float:
    """The mean over rows of what rounding costs, as a share of their energy."""
    return float(rounding_error(rows, bits).sum(1).nanmean())


def _turning(problem: Problem) -> Turning:
    """Some rows of the site, as a turn of it reads them.

    Where the group rescales axes each is in units of its size on the other rows, which costs the
    network nothing.
    """
    few = taken(problem, _ROWS).x.double()
    line = geometry_of(problem.group) is Geometry.LINE
    if line:
        few = few - few.mean(1, keepdim=True)
    if _rescales(problem):
        rest = problem.x[_ROWS:] if len(problem.x) >= 2 * _ROWS else problem.x
        size = root_mean_square(rest.double())
        few = few / torch.where(size > 0, size, 1.0)
    return Turning(few, line=line)


def _rescales(problem: Problem) -> bool:
    return problem.group.privileged is Privileged.AXES and problem.group.rescales


def _of_neurons(place: Place, generator: torch.Generator) -> tuple[list[Tensor], Tensor]:
    """The rows along some neurons, and along neurons of the site's null."""
    few = taken(place.problem, _ROWS)
    dim, null = few.x.shape[1], place.choice.null
    axes = torch.arange(dim)
    if null.directions is not None and null.directions < dim:
        drawn = torch.Generator().manual_seed(place.seed)
        axes = torch.randperm(dim, generator=drawn)[: null.directions].sort().values
    alternatives = null.alternatives(few, None if len(axes) == dim else axes)
    given = [None, *([generator] * _FRAMES_OF_NEURONS)]
    frames: list[Tensor] = []
    for one in given:
        rows = alternatives.frame(one).post.double()
        if _rescales(place.problem):
            size = root_mean_square(rows)
            rows = rows / torch.where(size > 0, size, 1.0)
        frames.append(rows.cpu())
    return frames, axes


def row_of_costs(turning: Turning, around: Around, seed: int) -> str:
    """The costs of 8 and 4 bits on the axes, on Haar turns and on Hadamard turns, in words.

    Args:
        turning: rows of the site.
        around: the weights around it.
        seed: draws the turns, and the rows of large matrices.
    """
    said = [_said("activations", [_costs(turning, seed)])]
    weights = [
        *(_of_reading(weight, around, seed) for weight in around.reading),
        *(_of_writing(weight, seed) for weight in around.writing),
    ]
    if weights:
        said.append(_said("weights around", weights))
    return "; ".join(said)


def _costs(turning: Turning, seed: int, *, along: bool = True) -> tuple[float, ...]:
    """For 8 bits and for 4: on the axes, on Haar turns, on Hadamard turns."""
    generator = torch.Generator().manual_seed(seed)
    turned = (
        [turning.rows],
        [turning.haar(generator) for _ in range(_DRAWS)],
        [turning.hadamard(generator) for _ in range(_DRAWS)],
    )
    return tuple(
        sum(_cost(rows if along else rows.T, bits) for rows in several) / len(several)
        for bits in _BITS
        for several in turned
    )


def _of_reading(weight: Tensor, around: Around, seed: int) -> tuple[float, ...]:
    """Rows of a map that reads the site, each rounded by itself."""
    return _costs(Turning(_some(weight, seed), line=around.centred), seed)


def _of_writing(weight: Tensor, seed: int) -> tuple[float, ...]:
    """Rows of a map that writes the site: turning the site mixes them, along some of its inputs."""
    return _costs(Turning(_some(weight.T, seed), line=False), seed, along=False)


def _some(rows: Tensor, seed: int) -> Tensor:
    if len(rows) <= _ROWS:
        return rows
    generator = torch.Generator().manual_seed(seed)
    return rows[torch.randperm(len(rows), generator=generator)[:_ROWS].to(rows.device)]


def _said(what: str, costs: Sequence[tuple[float, ...]]) -> str:
    mean = [math.fsum(values) / len(costs) for values in zip(*costs, strict=True)]
    eight, four = (
        f"{axes:.2%} ({haar:.2%} on Haar turns, {hadamard:.2%} on Hadamard turns)"
        if axes >= 1e-3
        else f"{axes:.4%} ({haar:.4%}, {hadamard:.4%})"
        for axes, haar, hadamard in (mean[:3], mean[3:])
    )
    return f"rounding {what} to 4 bits costs {four} of their energy, to 8 bits {eight}"


QUANTISATION = OwnScore(
    name=NAME,
    measure=_measure,
    formula="mean over samples of |q(x) - x|^2 / |x|^2, q rounding to 4 bits in steps of "
    "max_j |x_j| / 7",
    source="absmax round-to-nearest: Nagel et al. 2021; turned: Ashkboos et al. 2024, QuaRot",
    range="[0, inf); about 0.01 for a Gaussian of 64 axes",
    reads_weights=True,
    not_for="telling form from scale: it is what unequal variances and heavy tails cost together",
)
