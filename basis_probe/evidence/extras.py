"""What stands beside a verdict: other bases, and the way to turned bases.

None of it decides whether the axes stand out; it says what makes them, and where to look instead.
"""

import dataclasses
import math
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from basis_probe.algebra.groups import Blocks, DirectSum, Planes
from basis_probe.arguments import several
from basis_probe.brief import described
from basis_probe.evidence.measure import taken
from basis_probe.results.evidence import BasisRanking, BasisStanding, PathRecord
from basis_probe.statistics.nulls import (
    Frame,
    Geometry,
    Problem,
    Rotation,
    geometry_of,
    parts_of,
)
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
    from basis_probe.statistics.dictionaries import is_file_like, read_dictionary

    one = isinstance(wanted, str | os.PathLike | Candidate | np.ndarray | Tensor)
    names = f"names ({', '.join(ALL)}), paths, candidates or matrices [directions, dim]"
    given = (wanted,) if one else several("bases", wanted, names)
    found: list[Candidate] = []
    for basis in given:
        if isinstance(basis, Candidate):
            found.append(basis)
        elif isinstance(basis, np.ndarray | Tensor):
            half = isinstance(basis, Tensor) and basis.dtype in (torch.bfloat16, torch.float16)
            found.append(Given(basis.float() if half else basis))  # pyright: ignore
        elif isinstance(basis, str) and basis in ALL:
            found.append(ALL[basis])
        elif isinstance(basis, str | os.PathLike) and is_file_like(basis):  # pyright: ignore[reportUnknownArgumentType]
            found.append(read_dictionary(basis))  # pyright: ignore[reportUnknownArgumentType]
        else:
            raise ValueError(
                f"no basis is called {described(basis)}; there are {', '.join(ALL)}, or "
                "give the path of a dictionary, or directions as a matrix [directions, dim]"
            )
    # The axes take part unasked.
    return tuple(candidate for candidate in _named_apart(found) if candidate.name != "standard")


def _named_apart(found: "list[Candidate]") -> "list[Candidate]":
    """Given directions that bear one name get numbers behind it."""
    from basis_probe.statistics.bases import Given

    counts: dict[str, int] = {}
    named: list[Candidate] = []
    for candidate in found:
        counts[candidate.name] = count = counts.get(candidate.name, 0) + 1
        if count > 1 and isinstance(candidate, Given):
            candidate = dataclasses.replace(candidate, label=f"{candidate.label} {count}")
        named.append(candidate)
    return named


def ranked(
    problem: Problem, candidates: "Sequence[Candidate]", scores: Sequence[Score], *, seed: int
) -> tuple[BasisRanking | None, tuple[str, ...]]:
    """The axes and other bases side by side, and what a reader must know; None for none.

    They are ranked by one score in the geometry of the site: behind a nonlinearity the tensor
    before it is compared, because turned activations are no fair company for one-sided ones.
    Dictionaries are made for activations as they are, and ranked where those are compared. Where
    directions were given, a table has every score of all of them, of the activations as they are.
    """
    if not candidates:
        return None, ()
    from basis_probe.evidence.dictionaries import table
    from basis_probe.statistics.bases import Given
    from basis_probe.statistics.dictionaries import Dictionary

    given = any(isinstance(one, Given) for one in candidates)
    lines, notes = table(problem, candidates, scores, seed=seed) if given else ((), ())
    rows, geometry, reads = _rows(taken(problem, ROWS))
    plain = geometry in (Geometry.EUCLIDEAN, Geometry.LINE) and reads == ACTIVATIONS
    fits = [
        one
        for one in candidates
        if not isinstance(one, Given)
        or (one.directions.shape[1] == rows.shape[1] and (plain or not isinstance(one, Dictionary)))
    ]
    if any(isinstance(one, Dictionary) for one in candidates) and not plain:
        notes = (*notes, "Dictionaries are not ranked here: what is ranked is not the activations.")
    wide = (one for one in candidates if isinstance(one, Given))
    if len(candidates) == sum(one.directions.shape[1] != problem.x.shape[1] for one in wide):
        return None, notes
    found = _ranked(problem, fits, seed=seed)
    if isinstance(found, str):
        return None, (*notes, found)
    return dataclasses.replace(found, table=lines), notes


def _ranked(
    problem: Problem, candidates: "Sequence[Candidate]", *, seed: int
) -> BasisRanking | str:
    """The axes and other bases under one score, or why they could not be compared."""
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
    crossed = (Geometry.STANDARDISED, Geometry.WHITENED, Geometry.HEADS, Geometry.PARTS)
    halves = (problem.halves == 0, problem.halves == 1)
    return halves if geometry in crossed else ()


def _blocks(problem: Problem, geometry: Geometry) -> tuple[tuple[int, ...], ...]:
    """The axes that are turned among themselves; empty for all of them."""
    group, dim = problem.group, problem.x.shape[1]
    if geometry is Geometry.PARTS and isinstance(group, Blocks | DirectSum):
        found: list[tuple[int, ...]] = []
        for own, part, _ in parts_of(group):
            alone = Problem(problem.x[:, own], part, problem.halves)
            inside = _blocks(alone, geometry_of(part)) or (tuple(range(part.dim)),)
            found += [tuple(own.start + axis for axis in block) for block in inside]
        return tuple(found)
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
