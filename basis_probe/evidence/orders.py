"""Offset, scale and form of one site, where its group holds the rotations."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from basis_probe.algebra.groups import LineStabiliser, Orthogonal
from basis_probe.evidence.measure import FEWEST_AXES, Choice, measure
from basis_probe.results.evidence import (
    KurtosisSplit,
    OrderRecord,
    OutlierAxes,
    ScoreResult,
)
from basis_probe.statistics import scores as known
from basis_probe.statistics.nulls import Geometry, Null, Problem, Rotation
from basis_probe.statistics.orders import (
    FORM,
    OFFSET,
    SCALE,
    SMALL,
    Centred,
    OrderTest,
    offset,
    outlier_axes,
    scale,
    split_kurtosis,
)
from basis_probe.statistics.scores import Score

_LEADING = 3


@dataclasses.dataclass(frozen=True, eq=False)
class Orders:
    """What the orders of one site are.

    Attributes:
        records: offset, scale and form, p-values not yet adjusted.
        per_sample: the kurtosis of a sample across axes, split.
        outliers: the axes of outlying variance; None where there are none.
    """

    records: tuple[OrderRecord, ...]
    per_sample: KurtosisSplit
    outliers: OutlierAxes | None


def orders(
    problem: Problem, scores: Mapping[str, ScoreResult], null: Null, *, seed: int
) -> Orders | None:
    """The orders of a site; None where nothing varies.

    Offset and scale are those of all axes: one that never varies may hold a constant, and no turned
    axis would be still.

    Args:
        problem: what is known of the site, on the samples that are compared.
        scores: the scores of form, measured against turns of the whitened rows.
        null: what they were measured against.
        seed: seeds what is drawn.
    """
    x, rows = problem.x, problem.centred
    if not float(rows.variances.sum()) > 0:
        return None
    examples = torch.arange(len(x)) if problem.examples is None else problem.examples.cpu()
    split = split_kurtosis(rows, seed=seed)
    tests = (offset(rows, examples, seed=seed), scale(rows, examples, seed=seed))
    places = torch.arange(rows.dim)
    records = [_record(test, getattr(split, test.order), places) for test in tests]
    form = _form(scores, split.form)
    if form is not None:
        records.append(form)
    outliers: OutlierAxes | None = None
    if tests[1].p_value <= 0.05:
        form_scores = [known.ALL[s.name] for s in scores.values() if s.decides]
        outliers = _outliers(rows, examples, form_scores, null, seed)
    return Orders(
        records=tuple(records),
        per_sample=KurtosisSplit(**dataclasses.asdict(split)),
        outliers=outliers,
    )


_SAID = {
    OFFSET: (
        "The mean activation lies along few axes",
        "The mean activation lies along no axes in particular",
    ),
    SCALE: (
        "Variance is more unequal on the axes than on turned axes",
        "Variance is no more unequal on the axes than on turned axes",
    ),
    FORM: (
        "At equal variance the axes have more form than turned axes",
        "At equal variance the axes have no more form than turned axes",
    ),
}


def _record(test: OrderTest, adds: float, places: Tensor) -> OrderRecord:
    top = test.contributions.topk(min(_LEADING, len(test.contributions)))
    several = (top.values.cumsum(0) <= 0.5 * test.observed).sum() + 1
    leading: tuple[int, ...] = ()
    if test.observed > 0 and int(several) <= _LEADING:
        leading = tuple(int(places[axis]) for axis in top.indices[: int(several)])
    figures = f"{test.statistic} {test.observed:.3g}"
    if not math.isnan(test.null_mean):
        figures += f" against {test.null_mean:.3g} ± {test.null_std:.2g}"
    if not math.isnan(test.effect):
        figures += f", z = {test.effect:.3g}"
    if test.gate:
        said = f"Not claimed: {test.gate} ({figures})."
    else:
        stands_out = test.p_value <= 0.05
        led = f"; axes {', '.join(map(str, leading))} make up most of it" if leading else ""
        said = f"{_SAID[test.order][not stands_out]} ({figures}{led if stands_out else ''})."
    far = abs(test.observed - test.null_mean)
    return OrderRecord(
        order=test.order,
        statistic=test.statistic,
        observed=test.observed,
        null_mean=test.null_mean,
        null_std=test.null_std,
        effect=test.effect,
        p_value=test.p_value,
        sentence=said,
        small=far < SMALL * abs(test.null_mean),
        adds=adds,
        leading=leading,
        gate=test.gate,
    )


def _form(scores: Mapping[str, ScoreResult], adds: float) -> OrderRecord | None:
    """The order of form, by that of its scores which is surer."""
    known = [s for s in scores.values() if s.decides and not math.isnan(s.p_tail)]
    if not known:
        return None
    best = min(known, key=lambda score: (score.p_tail, -score.effect))
    said = _SAID[FORM][not best.p_tail <= 0.05]
    name = best.name.replace("_", "-")
    return OrderRecord(
        order=FORM,
        statistic=f"{name} of axes at equal variance",
        observed=best.observed,
        null_mean=best.null_mean,
        null_std=best.null_std,
        effect=best.effect,
        p_value=best.p_tail,
        sentence=(
            f"{said} ({name} {best.observed:.3g} against {best.null_mean:.3g} ± "
            f"{best.null_std:.2g}, z = {best.effect:.3g})."
        ),
        small=abs(best.observed - best.null_mean) < SMALL * abs(best.null_mean),
        adds=adds,
    )


def _outliers(
    rows: Centred, examples: Tensor, scores: Sequence[Score], null: Null, seed: int
) -> OutlierAxes | None:
    """The axes of outlying variance, and what is left without them."""
    found = outlier_axes(rows, seed=seed)
    if not found:
        return None
    kept = torch.ones(rows.dim, dtype=torch.bool)
    kept[list(found)] = False
    rest = rows.without(found)
    some = float(rest.variances.sum()) > 0
    records: tuple[OrderRecord, ...] = ()
    split: KurtosisSplit | None = None
    if some and rest.dim >= FEWEST_AXES:
        left = torch.nonzero(kept).flatten()
        records, split = _without(rest, left, examples, scores, null, seed)
    scaled = next((record for record in records if record.order == SCALE), None)
    return OutlierAxes(
        axes=found,
        share=float(rows.variances[~kept].sum() / rows.variances.sum()),
        scale_without=math.nan if scaled is None else scaled.observed,
        scale_null_without=math.nan if scaled is None else scaled.null_mean,
        kurtosis_without=_per_sample(rest.rows) if some else math.nan,
        orders=records,
        per_sample=split,
    )


_FRAMES, _BLOCKS, _DIRECTIONS = 24, 19, 64
"""So many alternatives show the form of what is left; blocks of so many axes at wide sites."""
_OFFSETS, _SCALES = 999, 199
"""So many directions and turned bases show its offset and its scale."""


def _without(
    rest: Centred,
    places: Tensor,
    examples: Tensor,
    scores: Sequence[Score],
    null: Null,
    seed: int,
) -> tuple[tuple[OrderRecord, ...], KurtosisSplit]:
    """The orders of the axes that are left, against turns of these."""
    split = split_kurtosis(rest, seed=seed)
    # Widths differ from site to site, so that no draws are shared; no verdict rests on these.
    tests = (
        offset(rest, examples, seed=seed, draws=_OFFSETS),
        scale(rest, examples, seed=seed, draws=_SCALES),
    )
    records = [_record(test, getattr(split, test.order), places) for test in tests]
    block = null.directions is not None and null.directions < rest.dim
    turned = Rotation(
        frames=min(null.frames, _BLOCKS if block else _FRAMES),
        samples=null.samples,
        directions=min(null.directions, _DIRECTIONS) if null.directions is not None else None,
        geometry=Geometry.RIDGE,
    )
    problem = Problem(
        x=rest.rows.to(rest.dtype),
        group=LineStabiliser(rest.dim) if rest.line else Orthogonal(rest.dim),
        halves=torch.zeros(len(rest.rows), dtype=torch.int64),
        examples=examples,
    )
    names = frozenset(score.name for score in scores)
    choice = Choice(turned, "the axes of outlying variance were taken out", names, False)
    form = _form(measure(problem, choice, scores, seed=seed).scores, split.form)
    if form is not None:
        records.append(form)
    return tuple(records), KurtosisSplit(**dataclasses.asdict(split))


def _per_sample(rows: Tensor) -> float:
    """The kurtosis of a sample across the axes."""
    squares = rows.square()
    energy = squares.sum(1)
    some = energy > 0
    fourth = squares[some].square().sum(1)
    return float((rows.shape[1] * fourth / energy[some].square()).mean())
