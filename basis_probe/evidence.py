"""From a site's samples to its scores: which null, which frames, which numbers."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from basis_probe.algebra.groups import Group, Privileged
from basis_probe.results import ClosedFormRecord, NullRecord, ScoreResult
from basis_probe.statistics import closed_forms
from basis_probe.statistics.moments import Moments
from basis_probe.statistics.multiplicity import (
    Tail,
    benjamini_hochberg,
    monte_carlo_p,
    pooled_direction_p,
    tail_p,
)
from basis_probe.statistics.nulls import (
    Counterfactual,
    Geometry,
    Null,
    Problem,
    Rotation,
    TurnedPreactivation,
    geometry_of,
)
from basis_probe.statistics.scores import (
    KURTOSIS,
    NON_GAUSSIANITY,
    SAMPLE_HOYER,
    SAMPLE_KURTOSIS,
    Measured,
    Score,
)

FALSE_DISCOVERY_RATE = 0.05
TOP_AXES = 3


@dataclasses.dataclass(frozen=True)
class Choice:
    """The null of a site, why it was chosen, and which scores the verdict rests on.

    Attributes:
        null: the null.
        because: why.
        deciding: names of the scores that decide.
        behind_nonlinearity: True if the activations were bent just before the site.
        believable: False where no null that holds its level could be had.
    """

    null: Null
    because: str
    deciding: frozenset[str]
    behind_nonlinearity: bool
    believable: bool = True


def choose(problem: Problem, wanted: Null | None) -> Choice:
    """The null of a site: the one asked for, or the one that its group and layer call for."""
    layer = problem.layer
    bent = (layer is not None and layer.pre is not None) or (
        problem.pre is not None and problem.nonlinearity is not None
    )
    one = frozenset({NON_GAUSSIANITY.name})
    both = one | {KURTOSIS.name}
    axes = problem.group.privileged is Privileged.AXES
    if wanted is not None:
        deciding = both if bent and not isinstance(wanted, Rotation) else one
        misleads = isinstance(wanted, Rotation) and bent
        because = "it was asked for"
        if misleads:
            because += (
                "; behind a nonlinearity every axis is one-sided and no rotated axis is, so this "
                "null credits the axes for nothing and no verdict rests on it"
            )
        return Choice(wanted, because, deciding, bent, believable=not misleads)
    if bent and layer is not None:
        return Choice(
            Counterfactual(),
            "a nonlinearity makes every axis one-sided, so the axes are compared with those of the "
            "same layer whose neurons point elsewhere",
            both,
            True,
        )
    if bent:
        return Choice(
            TurnedPreactivation(),
            "a nonlinearity lies just before the site and its input is not one linear map away, so "
            "the pre-activations are turned instead; approximate",
            both,
            True,
        )
    if layer is not None and axes:
        return Choice(
            Counterfactual(),
            "the axes are neurons that read an input one linear map away, so they are compared "
            "with neurons that point elsewhere",
            one,
            False,
        )
    one_sided = axes and _one_sided(problem.x)
    because = "no nonlinearity lies just before the site, so the basis itself is turned"
    if one_sided:
        because = (
            "the axes are one-sided, as behind a nonlinearity, but neither the pre-activations nor "
            "the layer's input are known: turning the activations credits the axes for nothing, "
            "and no verdict rests on it"
        )
    return Choice(Rotation(), because, one, False, believable=not one_sided)


def _one_sided(x: Tensor) -> bool:
    """True if most axes stop short of their mean's mirror image on one side, as a ReLU's do."""
    centred = x - x.mean(0)
    low, high = -centred.amin(0), centred.amax(0)
    shorter, longer = torch.minimum(low, high), torch.maximum(low, high)
    live = longer > 0
    if not bool(live.any()):
        return False
    return float((shorter[live] < 0.25 * longer[live]).double().mean()) > 0.5


def measure(
    problem: Problem,
    choice: Choice,
    scores: Sequence[Score],
    *,
    seed: int,
    all_samples: dict[str, float] | None = None,
) -> tuple[NullRecord, dict[str, ScoreResult], tuple[str, ...]]:
    """Every score of a site against its null, p-values not yet adjusted for their number.

    Args:
        problem: what is known of the site.
        choice: the null and the deciding scores.
        scores: which scores.
        seed: seeds the frames; the same seed gives the same turns at every site of one width.
        all_samples: the scores over all samples of the stream, where they were streamed.

    Returns:
        What the null was, the results by name, and what a reader must know.
    """
    null = choice.null
    geometry = _geometry(null, problem)
    dim = problem.x.shape[1]
    kept = torch.arange(dim)
    if isinstance(null, Rotation) and geometry in (
        Geometry.EUCLIDEAN,
        Geometry.STANDARDISED,
        Geometry.WHITENED,
    ):
        live = ~Moments.of(problem.x).constant
        kept = torch.nonzero(live.cpu()).flatten()
        if len(kept) < dim:
            # A rotation of the activations does not ask what made them.
            problem = dataclasses.replace(
                problem, x=problem.x[:, live], pre=None, nonlinearity=None, layer=None
            )
    used, notes = _applicable(scores, problem.group, geometry, null)
    unit_axes = problem.group.rescales and not isinstance(null, Rotation)
    alternatives = null.alternatives(problem)
    generator = torch.Generator().manual_seed(seed)
    rows: dict[str, list[Tensor]] = {score.name: [] for score in used}
    for index in range(null.frames + 1):
        measured = Measured(
            alternatives.frame(None if index == 0 else generator), unit_axes=unit_axes
        )
        for score in used:
            rows[score.name].append(measured.of(score).cpu())
    results: dict[str, ScoreResult] = {}
    for score in used:
        directions = torch.stack(rows[score.name])
        results[score.name] = _result(
            score,
            directions,
            choice,
            closed=_closed_form(score, problem, null, geometry, seed),
            kept=kept,
            dim=dim,
            streamed=(all_samples or {}).get(score.name, math.nan),
        )
    record = NullRecord(
        name=null.name,
        frames=null.frames,
        samples=len(problem.x),
        geometry=geometry.name.lower(),
        holds_fixed=null.holds_fixed,
        because=choice.because,
        approximate=null.approximate or not choice.believable,
    )
    return record, results, notes


def _geometry(null: Null, problem: Problem) -> Geometry:
    if isinstance(null, Rotation):
        return null.geometry or geometry_of(problem.group)
    if isinstance(null, Counterfactual) and problem.layer is not None:
        return problem.layer.geometry
    return Geometry.STANDARDISED


def _applicable(
    scores: Sequence[Score], group: Group, geometry: Geometry, null: Null
) -> tuple[list[Score], tuple[str, ...]]:
    used: list[Score] = []
    notes: list[str] = []
    for score in scores:
        mixed = isinstance(null, Rotation) and geometry in (Geometry.WHITENED, Geometry.HEADS)
        if score.across_axes and mixed:
            notes.append(
                f"{score.name} was left out: it compares axes with each other, and the group "
                f"({group.name}) changes that at will."
            )
            continue
        used.append(score)
    return used, tuple(notes)


def _result(
    score: Score,
    directions: Tensor,
    choice: Choice,
    *,
    closed: ClosedFormRecord | None,
    kept: Tensor,
    dim: int,
    streamed: float,
) -> ScoreResult:
    decides = score.name in choice.deciding and choice.believable
    tail = score.tail
    note = ""
    if choice.behind_nonlinearity and score is KURTOSIS and score.name in choice.deciding:
        tail = Tail.UPPER
        note = "behind a nonlinearity: heavy tails, one-sided"
    totals = directions.nanmean(1)
    top = _without_top(directions)
    observed, others = float(totals[0]), totals[1:]
    mean, std = _mean_std(others)
    effect = _effect(observed, mean, std)
    approximated = tail_p(observed, others, tail=tail)
    per_direction_p = pooled_direction_p(
        directions[0], directions[1:], pool=choice.null.pools_directions, tail=tail
    )
    adjusted = benjamini_hochberg(per_direction_p)
    known = ~torch.isnan(adjusted)
    privileged = (adjusted[known] <= FALSE_DISCOVERY_RATE).double().mean() if known.any() else None
    values = np.full(dim, np.nan)
    values[kept.numpy()] = directions[0].numpy()
    p_values = np.full(dim, np.nan)
    p_values[kept.numpy()] = per_direction_p.numpy()
    return ScoreResult(
        name=score.name,
        observed=observed,
        null_mean=mean,
        null_std=std,
        effect=effect,
        p_value=monte_carlo_p(observed, others, tail=tail),
        p_tail=approximated.value,
        p_tail_method=approximated.method,
        p_adjusted=math.nan,
        tail=tail,
        decides=decides,
        null=choice.null.name,
        null_values=others.numpy().copy(),
        per_direction=values,
        per_direction_p=p_values,
        fraction_privileged=math.nan if privileged is None else float(privileged),
        effect_without_top_axes=_effect(float(top[0]), *_mean_std(top[1:])),
        all_samples=streamed,
        closed_form=closed,
        note=note,
    )


def _mean_std(values: Tensor) -> tuple[float, float]:
    finite = values[~torch.isnan(values)]
    if len(finite) < 2:
        return math.nan, math.nan
    return float(finite.mean()), float(finite.std())


def _effect(observed: float, mean: float, std: float) -> float:
    # A null that does not vary by more than rounding says nothing about the observed value.
    if not std > 1e-12 * max(1.0, abs(mean)):
        return math.nan
    return (observed - mean) / std


def _without_top(directions: Tensor) -> Tensor:
    """The score of every frame without its highest three directions."""
    if directions.shape[1] <= TOP_AXES:
        return torch.full((len(directions),), math.nan, dtype=torch.float64)
    filled = torch.where(torch.isnan(directions), -math.inf, directions)
    order = filled.argsort(dim=1, descending=True)[:, TOP_AXES:]
    return directions.gather(1, order).nanmean(1)


def _closed_form(
    score: Score, problem: Problem, null: Null, geometry: Geometry, seed: int
) -> ClosedFormRecord | None:
    if not isinstance(null, Rotation) or problem.x.shape[1] < 4:
        return None
    generator = torch.Generator().manual_seed(seed)
    x = problem.x
    found = None
    try:
        if score is SAMPLE_KURTOSIS and geometry is Geometry.EUCLIDEAN:
            found = closed_forms.sample_kurtosis_under_rotation(x, generator=generator)
        elif score is SAMPLE_KURTOSIS and geometry is Geometry.LINE:
            found = closed_forms.centred_sample_kurtosis_under_rotation(x, generator=generator)
        elif score is SAMPLE_HOYER and geometry is Geometry.EUCLIDEAN:
            found = closed_forms.sample_hoyer_under_rotation(x, generator=generator)
        elif score is KURTOSIS and geometry is Geometry.EUCLIDEAN:
            found = closed_forms.pooled_kurtosis_under_rotation(x)
    except ValueError:
        # All rows are zero: there is nothing to turn.
        return None
    if found is None:
        return None
    return ClosedFormRecord(found.mean, found.std, found.source, found.exact)
