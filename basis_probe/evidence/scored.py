"""From the values of every direction of every frame to the result of one score."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from basis_probe.results.evidence import ClosedFormRecord, ScoreResult
from basis_probe.statistics.p_values import (
    TIE,
    Tail,
    benjamini_hochberg,
    monte_carlo_p,
    pooled_direction_p,
    pooled_p,
    skewed_tail,
    tail_p,
)
from basis_probe.statistics.scores import KURTOSIS, Score
from basis_probe.statistics.spread import Apart, for_all_axes, mean_of_all

if TYPE_CHECKING:
    from basis_probe.evidence.measure import Choice

FALSE_DISCOVERY_RATE = 0.05
TOP_AXES = 3


def scored(
    score: Score,
    directions: Tensor,
    choice: Choice,
    *,
    closed: ClosedFormRecord | None,
    kept: Tensor,
    dim: int,
    streamed: float,
    axes: Tensor | None,
    values: Tensor | None,
    error: Callable[..., float],
    one_law: bool,
    apart: Apart | None = None,
) -> ScoreResult:
    """The result of one score.

    Args:
        score: which score.
        directions: its value on every axis that is compared, and on as many directions of every
            alternative, [1 + frames, compared].
        choice: the null and the deciding scores.
        closed: what is known of its null without drawing.
        kept: which axes of the site have values.
        dim: the number of axes of the site.
        streamed: the score over all samples of the stream; NaN if unknown.
        axes: which of `kept` are compared; None for all.
        values: the score on all of `kept`; None where all are compared.
        error: the standard error of the difference for other examples, given a slope.
        one_law: whether all directions of all alternatives have one law.
        apart: axes that were looked at one by one.
    """
    decides = score.name in choice.deciding and choice.believable
    if (decides or one_law) and values is not None and axes is not None:
        return _of_all_axes(
            score, directions, choice, values, kept, dim, streamed, axes, error, one_law, apart
        )
    tail, note = _tail(score, choice)
    totals = directions.nanmean(1)
    top = _without_top(directions)
    observed, others = float(totals[0]), totals[1:]
    mean, std = _mean_std(others)
    effect = _effect(observed, mean, std)
    approximated = tail_p(observed, others, tail=tail)
    pools = choice.null.pools_directions
    per_direction_p = pooled_direction_p(directions[0], directions[1:], pool=pools, tail=tail)
    adjusted = benjamini_hochberg(per_direction_p)
    known = ~torch.isnan(adjusted)
    privileged = (adjusted[known] <= FALSE_DISCOVERY_RATE).double().mean() if known.any() else None
    if values is not None and axes is not None:
        several = f"on {len(axes)} of {len(values):,} axes, drawn at random"
        note = "; ".join(filter(None, [note, several]))
        if pools:
            per_direction_p = pooled_p(values, directions[1:].flatten(), tail=tail)
        else:
            # An axis that was not compared has no alternatives of its own.
            compared, per_direction_p = per_direction_p, torch.full_like(values, math.nan)
            per_direction_p[axes] = compared
    else:
        values = directions[0]
    shown, p_values = (_on_axes(found, kept, dim) for found in (values, per_direction_p))
    margin = 1.96 * error() / std if std > 0 and not math.isnan(effect) else math.nan
    everywhere = for_all_axes(directions, values)
    errors = (error(slope=everywhere.slope), everywhere.error, std / math.sqrt(len(others)))
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
        per_direction=shown,
        per_direction_p=p_values,
        fraction_privileged=math.nan if privileged is None else float(privileged),
        effect_without_top_axes=_effect(float(top[0]), *_mean_std(top[1:])),
        all_samples=streamed,
        closed_form=closed,
        note=note,
        effect_interval=(effect - margin, effect + margin),
        difference=everywhere.difference,
        difference_error=math.hypot(*errors),
    )


_LEAST_P = 1e-6
"""The law of a mean over all axes is not believed further out than this."""


def _of_all_axes(
    score: Score,
    directions: Tensor,
    choice: Choice,
    values: Tensor,
    kept: Tensor,
    dim: int,
    streamed: float,
    axes: Tensor,
    error: Callable[..., float],
    one_law: bool,
    apart: Apart | None,
) -> ScoreResult:
    """The mean over all axes against blocks of alternatives."""
    count, size = len(directions) - 1, directions.shape[1]
    found = mean_of_all(directions, values, one_law=one_law, apart=apart)
    mean, std = found.null_mean, found.null_std
    effect = _effect(found.observed, mean, std)
    tail, note = _tail(score, choice)
    far = abs(effect) if tail is Tail.TWO_SIDED else effect
    sides = 2 if tail is Tail.TWO_SIDED else 1
    above = found.tail(far)
    p = min(1.0, max(sides * above, _LEAST_P))
    if math.isnan(effect):
        # Where nothing varies, nothing stands out.
        p = 1.0 if max(std, abs(found.observed - mean)) <= TIE * abs(mean) else math.nan
    law = f"normal law, its variance from {count} blocks of {size} alternatives"
    if apart is not None:
        law = f"gamma law, its variance from {count} blocks of {size} alternatives"
        law += f" and those of {len(apart.axes)} axes by themselves, its skewness from these"
    if one_law:
        law = f"gamma law of three moments, those of {count * size:,} turned directions"
        if above > skewed_tail(far, found.skewness):
            law += f" and {len(values):,} axes"
        own = pooled_p(values, directions[1:].flatten(), tail=tail)
        known, against = own, f"against {count * size:,} turned directions"
    else:
        # An axis that was not compared has no alternatives of its own.
        known = pooled_direction_p(directions[0], directions[1:], pool=False, tail=tail)
        own = torch.full_like(values, math.nan).index_copy(0, axes, known)
        against = f"alternatives of {size} of them, drawn at random"
    if math.isnan(found.observed):
        law = "undefined: the observed value is NaN"
    elif math.isnan(effect):
        law = "undefined: the alternatives do not vary by more than rounding"
    adjusted = benjamini_hochberg(known)
    adjusted = adjusted[~torch.isnan(adjusted)]
    share = float((adjusted <= FALSE_DISCOVERY_RATE).double().mean()) if len(adjusted) else math.nan
    decides = score.name in choice.deciding and choice.believable
    shown, p_values = (_on_axes(found, kept, dim) for found in (values, own))
    others = error(slope=found.slope)
    margin = 1.96 * others / std if not math.isnan(effect) else math.nan
    means = directions[1:].nanmean(1)
    spread = float(means.std())
    return ScoreResult(
        name=score.name,
        observed=found.observed,
        null_mean=mean,
        null_std=std,
        effect=effect,
        p_value=math.nan,
        p_tail=p,
        p_tail_method=law,
        p_adjusted=math.nan,
        tail=tail,
        decides=decides,
        null=choice.null.name,
        # As whole frames would spread: blocks are fewer directions, and spread further.
        null_values=(mean + (means - means.mean()) * (std / spread if spread > 0 else 1.0))
        .numpy()
        .copy(),
        per_direction=shown,
        per_direction_p=p_values,
        fraction_privileged=share,
        effect_without_top_axes=math.nan,
        all_samples=streamed,
        note="; ".join(filter(None, [note, f"all {len(values):,} axes, {against}"])),
        effect_interval=(effect - margin, effect + margin),
        difference=found.observed - mean,
        difference_error=math.hypot(others, found.error),
    )


def _tail(score: Score, choice: Choice) -> tuple[Tail, str]:
    if choice.behind_nonlinearity and score is KURTOSIS and score.name in choice.deciding:
        return Tail.UPPER, "behind a nonlinearity: heavy tails, one-sided"
    return score.tail, ""


def without_frames(
    score: Score,
    values: Tensor,
    choice: Choice,
    closed: ClosedFormRecord,
    kept: Tensor,
    dim: int,
) -> ScoreResult:
    """A score of all axes together whose null is known without drawing a whole frame."""
    observed, std = float(values.nanmean()), closed.std or math.nan
    effect = _effect(observed, closed.mean, std)
    tail, _ = _tail(score, choice)
    sides = 2 if tail is Tail.TWO_SIDED else 1
    far = abs(effect) if tail is Tail.TWO_SIDED else effect
    p = min(1.0, sides * max(0.5 * math.erfc(far / math.sqrt(2)), 1e-300))
    shown = _on_axes(values, kept, dim)
    return ScoreResult(
        name=score.name,
        observed=observed,
        null_mean=closed.mean,
        null_std=std,
        effect=effect,
        p_value=math.nan,
        p_tail=math.nan if math.isnan(effect) else p,
        p_tail_method="normal law with the null's exact mean and variance",
        p_adjusted=math.nan,
        tail=tail,
        decides=False,
        null=choice.null.name,
        null_values=np.zeros(0),
        per_direction=shown,
        per_direction_p=np.full(dim, np.nan),
        fraction_privileged=math.nan,
        effect_without_top_axes=math.nan,
        all_samples=math.nan,
        closed_form=closed,
        difference=observed - closed.mean,
        note="no frame was drawn: the null's mean and variance are known",
    )


def _on_axes(values: Tensor, kept: Tensor, dim: int) -> np.ndarray:
    """[dim]: NaN on axes that were left out."""
    found = np.full(dim, np.nan)
    found[kept.numpy()] = values.numpy()
    return found


def _mean_std(values: Tensor) -> tuple[float, float]:
    finite = values[~torch.isnan(values)]
    if len(finite) < 2:
        return math.nan, math.nan
    return float(finite.mean()), float(finite.std())


def _effect(observed: float, mean: float, std: float) -> float:
    # A null that does not vary by more than rounding says nothing about the observed value.
    if not std > max(1e-12, TIE * abs(mean)):
        return math.nan
    return (observed - mean) / std


def _without_top(directions: Tensor) -> Tensor:
    """The score of every frame without its highest three directions."""
    if directions.shape[1] <= TOP_AXES:
        return torch.full((len(directions),), math.nan, dtype=torch.float64)
    filled = torch.where(torch.isnan(directions), -math.inf, directions)
    order = filled.argsort(dim=1, descending=True)[:, TOP_AXES:]
    return directions.gather(1, order).nanmean(1)
