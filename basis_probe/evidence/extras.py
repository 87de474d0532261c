"""What stands beside a verdict: other bases, and the way to turned bases.

None of it decides whether the axes stand out; it says what makes them, and where to look instead.
"""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from basis_probe.algebra.groups import Blocks, Planes
from basis_probe.arguments import several
from basis_probe.brief import described
from basis_probe.evidence.measure import taken
from basis_probe.results.evidence import BasisRanking, BasisStanding, PathRecord
from basis_probe.statistics.nulls import Frame, Geometry, Problem, Rotation, geometry_of
from basis_probe.statistics.scores import NON_GAUSSIANITY, Score

if TYPE_CHECKING:
    from basis_probe.statistics.bases import Candidate

ROWS = 16384
"""At most so many samples are used to find other bases: half to fit them, half to judge them."""

_BASIS_FRAMES = 49
ACTIVATIONS, BEFORE = "the activations", "the tensor before the nonlinearity"
_POWERS = tuple(step / 10 for step in range(11))


def chosen_bases(
    wanted: "Iterable[str | Candidate | np.ndarray | Tensor] | str | Candidate | None",
) -> "tuple[Candidate, ...]":
    """The bases that are meant: names, candidates, matrices, or None for no search.

    Raises:
        ValueError: for a name that no basis bears.
    """
    if wanted is None:
        return ()
    from basis_probe.statistics.bases import ALL, Candidate, Given

    one = isinstance(wanted, str | Candidate | np.ndarray | Tensor)
    names = f"names ({', '.join(ALL)}), candidates or matrices [directions, dim]"
    given = (wanted,) if one else several("bases", wanted, names)
    found: list[Candidate] = []
    for basis in given:
        if isinstance(basis, Candidate):
            found.append(basis)
        elif isinstance(basis, np.ndarray | Tensor):
            found.append(Given(basis))
        elif isinstance(basis, str) and basis in ALL:
            found.append(ALL[basis])
        else:
            raise ValueError(
                f"no basis is called {described(basis)}; there are {', '.join(ALL)}, or "
                "give directions as a matrix [directions, dim]"
            )
    # The axes take part unasked.
    return tuple(candidate for candidate in found if candidate.name != "standard")


def ranked(
    problem: Problem, candidates: "Sequence[Candidate]", *, seed: int
) -> BasisRanking | str | None:
    """The axes and other bases under one score, or why they could not be compared; None for none.

    Behind a nonlinearity the tensor before it is compared: turned activations are no fair company
    for one-sided ones.
    """
    if not candidates:
        return None
    from basis_probe.statistics.bases import compare_bases

    rows, geometry, reads = _rows(taken(problem, ROWS))
    varies = rows.double().std(0, correction=0) > 0
    if int(varies.sum()) < 2:
        return "Fewer than two axes vary, so no other basis was looked for."
    generator = torch.Generator().manual_seed(seed)
    try:
        found = compare_bases(
            rows.double(),
            candidates,
            NON_GAUSSIANITY,
            held_out=taken(problem, ROWS).halves == 1,
            frames=_BASIS_FRAMES,
            generator=generator,
        )
    except ValueError as error:
        return f"Other bases could not be compared: {error}."
    best = found.best
    own = best is found.axes or math.isnan(best.ceiling)
    return BasisRanking(
        score=found.score,
        standings=tuple(
            BasisStanding(
                name=standing.basis.name,
                score=standing.score,
                effect=standing.effect,
                ceiling=standing.ceiling,
                cosine=standing.to_axes.mean,
                directions=len(standing.basis.directions),
                note=standing.basis.note,
            )
            for standing in found.standings
        ),
        best=best.basis.name,
        directions=np.zeros((0, 0)) if own else best.basis.directions.numpy().copy(),
        geometry=geometry.name.lower(),
        reads=reads,
        null_mean=found.null_mean,
        null_std=found.null_std,
        frames=found.frames,
        fitted_on=found.fitted_on,
        judged_on=found.judged_on,
    )


def _rows(problem: Problem) -> tuple[Tensor, Geometry, str]:
    """The rows of a site in the geometry of its group; before its nonlinearity, if it has one."""
    pre = problem.before
    if pre is not None:
        bare = Problem(x=pre, group=problem.group, halves=problem.halves)
        frame = Rotation(geometry=Geometry.STANDARDISED).observed(bare)
        return frame.post, Geometry.STANDARDISED, BEFORE
    geometry = geometry_of(problem.group)
    return _frame(problem, geometry).post, geometry, ACTIVATIONS


def _frame(problem: Problem, geometry: Geometry) -> Frame:
    return Rotation(geometry=geometry).observed(problem)


def path(problem: Problem, turns: int, *, seed: int, score: Score) -> PathRecord | None:
    """The score on the way from the axes to turned bases; None for no turns.

    The rows are in the geometry in which the score is compared, and turns stay inside heads and
    planes where those of the null do.
    """
    if not turns:
        return None
    from basis_probe.statistics.path import rotation_path

    few = taken(problem, 1024)
    rows, geometry, reads = _rows(few)
    if geometry in (Geometry.EUCLIDEAN, Geometry.LINE):
        geometry = Geometry.RIDGE
        rows = _frame(few, geometry).post
    generator = torch.Generator().manual_seed(seed)
    found = rotation_path(
        rows.double(),
        score,
        powers=_POWERS,
        turns=turns,
        generator=generator,
        blocks=_blocks(problem, geometry),
        fixed=geometry is Geometry.RIDGE and geometry_of(problem.group) is Geometry.LINE,
        parts=_parts(few, geometry) if reads == ACTIVATIONS else (),
    )
    return PathRecord(score=score.name, powers=_POWERS, values=found.values.numpy().copy())


def _parts(problem: Problem, geometry: Geometry) -> tuple[Tensor, ...]:
    """The rows whose statistics are computed apart, as the null computes them."""
    crossed = (Geometry.STANDARDISED, Geometry.WHITENED, Geometry.HEADS)
    halves = (problem.halves == 0, problem.halves == 1)
    return halves if geometry in crossed else ()


def _blocks(problem: Problem, geometry: Geometry) -> tuple[tuple[int, ...], ...]:
    """The axes that are turned among themselves; empty for all of them."""
    group, dim = problem.group, problem.x.shape[1]
    if geometry is Geometry.HEADS and isinstance(group, Blocks):
        # Copies of a head are turned alike, and lie next to each other.
        size = group.inner.dim
        return tuple(tuple(range(start, start + size)) for start in range(0, dim, size))
    if geometry is Geometry.PLANES and isinstance(group, Planes):
        half = dim // 2
        if group.pairing == "half":
            return tuple((index, index + half) for index in range(half))
        return tuple((2 * index, 2 * index + 1) for index in range(half))
    return ()
