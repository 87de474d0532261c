"""A dictionary beside the axes and rotations: the same scores for all, with intervals."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from basis_probe.algebra.haar import haar
from basis_probe.evidence.measure import taken
from basis_probe.results.evidence import BasisRow
from basis_probe.statistics.bases import Candidate
from basis_probe.statistics.dictionaries import Dictionary
from basis_probe.statistics.nulls import Problem
from basis_probe.statistics.scores import Rows, Score

ROWS = 4096
"""So many samples are read along directions: half to fit those that are searched, half to judge."""
_MOST = 2048
"""Of a larger basis so many directions are judged, drawn at random."""
_GROUPS = 20
_TURNS = 19


def table(
    problem: Problem, candidates: Sequence[Candidate], scores: Sequence[Score], *, seed: int
) -> tuple[tuple[BasisRow, ...], tuple[str, ...]]:
    """Every score of the axes, of rotations and of other bases, and what a reader must know.

    All of them read the activations as they are, on samples that nothing was fitted on. Scores that
    compare the axes of a sample with each other are left out, because bases have more or fewer.

    Args:
        problem: the site.
        candidates: the bases; a dictionary's codes are read too.
        scores: which scores.
        seed: seeds rotations, and which directions of a large basis are judged.
    """
    few = taken(problem, ROWS)
    x = few.x.double().cpu()
    held = few.halves.cpu() == 1
    judged, dim = x[held], x.shape[1]
    used = [score for score in scores if not score.across_axes]
    if len(judged) < 8 or not used:
        return (), ()
    owners = torch.arange(len(x)) if few.examples is None else few.examples.cpu()
    groups = owners[held].unique(return_inverse=True)[1] % _GROUPS
    generator = torch.Generator().manual_seed(seed)
    found = _rows("axes", "directions", judged, used, groups, "")
    found += _turned(judged, used, generator)
    notes: list[str] = []
    for candidate in candidates:
        directions = getattr(candidate, "directions", None)
        if directions is not None and directions.shape[1] != dim:
            # A dictionary belongs to one width, and several sites may have been asked for.
            notes.append(
                f"{candidate.name} has directions of {directions.shape[1]} entries, and the site "
                f"{dim} axes, so it was left out here."
            )
            continue
        try:
            basis = candidate.fit(x[~held])
        except ValueError as error:
            notes.append(f"{candidate.name} was left out here: {error}.")
            continue
        which, said = _some(len(basis.directions), generator)
        values = judged @ basis.directions[which].T
        note = "; ".join(filter(None, [basis.note, said]))
        found += _rows(candidate.name, "directions", values, used, groups, note)
        if isinstance(candidate, Dictionary):
            found += _coded(candidate, judged, used, groups, generator)
            notes += _said_of(candidate)
    return tuple(found), tuple(notes)


def _said_of(dictionary: Dictionary) -> list[str]:
    found = [f"{dictionary.name}: {dictionary.note}."] if dictionary.note else []
    if dictionary.made_for:
        found.append(f"{dictionary.name} says that it was made for {dictionary.made_for}.")
    return found


def _coded(
    dictionary: Dictionary,
    judged: Tensor,
    scores: Sequence[Score],
    groups: Tensor,
    generator: torch.Generator,
) -> list[BasisRow]:
    """The codes of a dictionary, and how many of them are active in a sample."""
    if dictionary.encode is None:
        return []
    codes = dictionary.encode(judged)
    active = (codes > 0).double()
    which, said = _some(codes.shape[1], generator)
    silent = int((active.sum(0) == 0).sum())
    note = "; ".join(
        filter(None, [f"{silent} codes are never active here" if silent else "", said])
    )
    found = [
        # Rare events make these scores, and what these samples do not show is in no interval.
        dataclasses.replace(row, low=math.nan, high=math.nan)
        for row in _rows(dictionary.name, "codes", codes[:, which], scores, groups, note)
    ]
    value, low, high = _interval(lambda kept: float(active[kept].sum(1).mean()), groups)
    count = codes.shape[1]
    return [*found, BasisRow(dictionary.name, "codes", "active", value, low, high, count, note)]


def _some(count: int, generator: torch.Generator) -> tuple[Tensor, str]:
    if count <= _MOST:
        return torch.arange(count), ""
    some = torch.randperm(count, generator=generator)[:_MOST].sort().values
    return some, f"{_MOST:,} of {count:,} directions, drawn at random"


def _rows(
    name: str,
    kind: str,
    values: Tensor,
    scores: Sequence[Score],
    groups: Tensor,
    note: str,
) -> list[BasisRow]:
    found: list[BasisRow] = []
    for score in scores:
        value, low, high = _interval(lambda kept, s=score: _mean(s, values[kept]), groups)
        found.append(BasisRow(name, kind, score.name, value, low, high, values.shape[1], note))
    return found


def _mean(score: Score, values: Tensor) -> float:
    return float(score.per_direction(Rows(values)).nanmean())


def _interval(measure: Callable[[Tensor], float], groups: Tensor) -> tuple[float, float, float]:
    """A number of all rows, and its 95 % interval by leaving out groups of examples in turn."""
    value = measure(torch.ones(len(groups), dtype=torch.bool))
    left = [measure(kept) for kept in _without(groups)]
    if len(left) < 2:
        return value, math.nan, math.nan
    middle = sum(left) / len(left)
    spread = math.sqrt((len(left) - 1) / len(left) * sum((one - middle) ** 2 for one in left))
    # Student's t of 19 degrees of freedom; with fewer groups it is wider than this says.
    return value, value - 2.093 * spread, value + 2.093 * spread


def _without(groups: Tensor) -> Iterator[Tensor]:
    return (groups != group for group in groups.unique())


def _turned(judged: Tensor, scores: Sequence[Score], generator: torch.Generator) -> list[BasisRow]:
    """Rotations of the axes: the mean, and between which all but the outermost lie."""
    dim = judged.shape[1]
    values: dict[str, list[float]] = {score.name: [] for score in scores}
    for _ in range(_TURNS):
        rows = judged @ haar(dim, generator).T
        for score in scores:
            values[score.name].append(_mean(score, rows))
    note = f"the mean of {_TURNS} rotations, and their range"
    return [
        BasisRow("rotations", "directions", name, sum(v) / len(v), min(v), max(v), dim, note)
        for name, v in values.items()
    ]
