"""From the architecture's answer and the data's to an outcome, and a sentence to quote."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import torch

from basis_probe.algebra.groups import Privileged
from basis_probe.evidence.site import Evidence
from basis_probe.results.evidence import BasisRanking, NullRecord, ScoreResult, Tail
from basis_probe.results.report import Outcome, SiteReport, Verdict
from basis_probe.results.symmetry import Symmetry
from basis_probe.statistics.p_values import holm

LEVEL = 0.05
FEWEST_ALTERNATIVES = 10
"""With fewer different ones, as where an input of two features is turned about its mean, the axes
are among their own alternatives so often that nothing could stand out."""


@dataclasses.dataclass(frozen=True)
class Found:
    """What is known of a site when its verdict is due.

    Attributes:
        kind: what the site is, in words.
        dim: number of axes.
        n_samples: samples streamed.
        needed: the number of samples below which nothing is decided.
        n_dead: axes that never varied.
        symmetry: the architecture's answer.
        null: what the axes were compared with.
        scores: the scores, p-values not yet adjusted.
        trouble: a reason why nothing can be decided, or an empty string.
        bases: other bases beside the axes, where some were asked for.
    """

    kind: str
    dim: int
    n_samples: int
    needed: int
    n_dead: int
    symmetry: Symmetry
    null: NullRecord | None
    scores: dict[str, ScoreResult]
    trouble: str = ""
    bases: BasisRanking | None = None


def report(gathered: Sequence[Evidence]) -> tuple[SiteReport, ...]:
    """The reports of all sites, p-values adjusted for all of them together."""
    founds = [
        Found(
            kind=evidence.case.kind,
            dim=evidence.case.dim,
            n_samples=evidence.case.n_samples,
            needed=evidence.case.needed,
            n_dead=evidence.case.n_dead,
            symmetry=evidence.case.symmetry,
            null=evidence.null,
            scores=dict(evidence.scores),
            trouble=evidence.case.trouble,
            bases=evidence.bases,
        )
        for evidence in gathered
    ]
    reports: list[SiteReport] = []
    for evidence, found, scores in zip(gathered, founds, adjust(founds), strict=True):
        case = evidence.case
        reports.append(
            SiteReport(
                site=case.site,
                kind=case.kind,
                layer=case.layer,
                shape=case.shape,
                dim=case.dim,
                n_samples=case.n_samples,
                n_dead=case.n_dead,
                symmetry=case.symmetry,
                null=evidence.null,
                scores=scores,
                beside=dict(evidence.beside),
                verdict=decide(found, scores),
                notes=case.notes,
                orders=evidence.orders,
                bases=evidence.bases,
                path=evidence.path,
            )
        )
    return tuple(reports)


def adjust(founds: Sequence[Found]) -> list[dict[str, ScoreResult]]:
    """The scores of every site, p-values adjusted by Holm over the deciding ones of all sites."""
    places = [
        (index, name)
        for index, found in enumerate(founds)
        for name, score in found.scores.items()
        if score.decides and not math.isnan(score.p_tail)
    ]
    adjusted = [dict(found.scores) for found in founds]
    if not places:
        return adjusted
    p = torch.tensor([founds[i].scores[name].p_tail for i, name in places], dtype=torch.float64)
    for (index, name), value in zip(places, holm(p).tolist(), strict=True):
        adjusted[index][name] = dataclasses.replace(adjusted[index][name], p_adjusted=value)
    return adjusted


def decide(found: Found, scores: dict[str, ScoreResult]) -> Verdict:
    """The outcome at a site, and its sentence.

    Args:
        found: what is known of the site.
        scores: its scores with adjusted p-values.
    """
    what = f"{found.kind} ({found.dim} axes)"
    if found.trouble:
        return _undecided(f"Undecided: {found.trouble}")
    if found.n_samples < found.needed:
        return _undecided(
            f"Undecided: {found.n_samples} samples were seen and at least {found.needed} are "
            f"needed for {what}; give more data."
        )
    if found.n_dead == found.dim:
        return _undecided(f"Undecided: none of the {found.dim} axes ever varied.")
    if found.null is None:
        return _undecided(f"Undecided: nothing could be compared at {what}.")
    deciding = [s for s in scores.values() if s.decides and not math.isnan(s.p_adjusted)]
    if not deciding:
        return _undecided(f"Undecided: {found.null.because}.")
    different = max(_different(score) for score in deciding)
    if different < FEWEST_ALTERNATIVES:
        same = "the same score" if different < 2 else f"only {different} different scores"
        return _undecided(
            f"Undecided: the {found.null.frames} alternatives at {what} have {same}, so there is "
            "nothing to stand out against."
        )
    deciding = [score for score in deciding if not math.isnan(score.effect)]
    sure = [score for score in deciding if not _by_accident(score, found.null)]
    best = min(sure or deciding, key=lambda score: (score.p_adjusted, -score.effect))
    stands_out = bool(sure) and best.p_adjusted <= LEVEL
    cut_short = [score for score in sure if _beyond_all(score)]
    if not stands_out and cut_short:
        drawn = len(cut_short[0].null_values)
        return _undecided(
            f"Undecided: {_spoken(cut_short[0].name)} at {what} lies beyond all {drawn} "
            f"alternatives (z = {_number(cut_short[0].effect)}), which is too few of them for the "
            f"tests of this report (adjusted p = {_number(cut_short[0].p_adjusted)}); compare with "
            f"more, for example frames={max(199, 2 * drawn + 1)}."
        )
    # Where the sentence has spoken of the axes already, they are not named again.
    axes = "them" if found.symmetry.privileged is Privileged.AXES else "the axes"
    data = _data_clause(best, deciding, found.null, stands_out, axes)
    data += _below(scores)
    data += _aside(scores, found.null, stands_out)
    privileged = found.symmetry.privileged
    instead = "" if found.bases is None else f" {another_basis(found.bases)}"
    if privileged is Privileged.UNKNOWN:
        return _undecided(
            f"Undecided about the architecture, whose group at this site is not known; {data}."
            f"{instead}"
        )
    if privileged is Privileged.AXES:
        if stands_out:
            return Verdict(
                Outcome.PRIVILEGED,
                f"The architecture fixes these axes, and {data}: this layer may be read neuron by "
                f"neuron.{instead}",
            )
        return Verdict(
            Outcome.UNUSED,
            f"The architecture fixes these axes, but {data}: the neurons are real, but features "
            f"are not seen to lie on them; look for a dictionary.{instead}",
        )
    allowed = _allowed(privileged)
    if stands_out:
        return Verdict(
            Outcome.EMERGENT,
            f"{allowed}, yet {data}: training, not the architecture, made these axes stand out."
            f"{instead}",
        )
    return Verdict(
        Outcome.ARBITRARY,
        f"{allowed}, and {data}: do not read single coordinates here.{instead}",
    )


NEAR = 0.9
"""At this mean |cosine|, paired one by one, a basis that was found is called the axes."""


def another_basis(ranking: BasisRanking) -> str:
    """What the search for other bases says, in a sentence."""
    tried = ", ".join(standing.name for standing in ranking.standings[1:])
    best, axes = ranking[ranking.best], ranking.axes
    if math.isnan(best.ceiling):
        return f"No other basis stands out either (tried: {tried})."
    if best.name == axes.name:
        return f"Of the bases that were tried ({tried}) none stands out more than the axes."
    where = f"mean |cosine| with the axes {best.cosine:.2f}, paired one by one"
    if best.cosine >= NEAR:
        return f"The basis that stands out most ({best.name}) is that of the axes ({where})."
    return (
        f"Another basis stands out: {best.name}, with {_spoken(ranking.score)} "
        f"{_number(best.score)} on samples it was not fitted on, against {_number(axes.score)} on "
        f"the axes and {_number(ranking.null_mean)} ± {_number(ranking.null_std)} on random ones; "
        f"the axes come {axes.ceiling:.0%} of the way to it ({where})."
    )


def _different(score: ScoreResult) -> int:
    """How many of the first alternatives have scores that differ by more than rounding."""
    if math.isnan(score.effect):
        return 0
    values = np.sort(score.null_values[~np.isnan(score.null_values)][:199])
    return 1 + int((np.diff(values) > 1e-4 * (values[-1] - values[0])).sum())


def _beyond_all(score: ScoreResult) -> bool:
    """True if no alternative reaches the axes, and p is only what their number allows."""
    drawn = int((~np.isnan(score.null_values)).sum())
    least = (1 if score.tail is Tail.UPPER else 2) / (drawn + 1)
    return score.p_tail == score.p_value and score.p_value <= least * (1 + 1e-9)


def _undecided(sentence: str) -> Verdict:
    return Verdict(Outcome.UNDECIDED, sentence)


def _allowed(privileged: Privileged) -> str:
    if privileged is Privileged.LINE:
        return "The architecture fixes no axis, only the all-ones direction"
    if privileged is Privileged.BLOCKS:
        return "The architecture fixes the heads but no axis inside them"
    if privileged is Privileged.PLANES:
        return "The architecture fixes planes but no axis inside them"
    return "The architecture admits every rotation of this space"


def _data_clause(
    best: ScoreResult,
    deciding: list[ScoreResult],
    null: NullRecord,
    stands_out: bool,
    axes: str,
) -> str:
    against = {
        "counterfactual": "the same layer with its neurons pointing elsewhere",
        "rotation": "random rotations of the same space",
    }.get(null.name, f"the null '{null.name}'")
    if not stands_out:
        effects = ", ".join(f"{_number(s.effect)}" for s in deciding)
        figures = f"(z = {effects}; adjusted p = {_number(min(s.p_adjusted for s in deciding))})"
        beyond = min(deciding, key=lambda score: score.p_adjusted)
        if beyond.p_adjusted <= LEVEL:
            low, high = beyond.effect_interval
            return (
                f"the data lie beyond {against} {figures}, but by no more than other samples would "
                f"move them (95 % interval of z: {_number(low)} to {_number(high)})"
            )
        return f"the data do not stand out on {axes} against {against} {figures}"
    size = _relative(best)
    carried = ""
    if best.effect_without_top_axes < 2 <= best.effect:
        carried = "; at most three axes carry the finding"
    approximate = ", by an approximate null" if null.approximate else ""
    share = best.fraction_privileged
    one_by_one = "" if math.isnan(share) else f"; {share:.0%} of the axes do so by themselves"
    return (
        f"the data stand out on {axes} against {against} ({_spoken(best.name)} "
        f"{_number(best.observed)} against {_number(best.null_mean)} ± "
        f"{_number(best.null_std)}, z = {_number(best.effect)}{approximate}{size}"
        f"{one_by_one}{carried})"
    )


_FAR = -4.0
"""From this effect down, axes that lie below their alternatives are said to."""


def _below(scores: dict[str, ScoreResult]) -> str:
    """In which scores the axes lie far below their alternatives; empty where in none.

    No outcome rests on it: what marks an axis makes it less Gaussian, not more.
    """
    far = [
        score
        for score in scores.values()
        if score.effect <= _FAR and (score.decides or score.name == "kurtosis")
    ]
    if not far:
        return ""
    names = " and ".join(f"{_spoken(score.name)} (z = {_number(score.effect)})" for score in far)
    return f"; in {names} the axes lie far below the alternatives"


def _by_accident(score: ScoreResult, null: NullRecord) -> bool:
    """True if other samples might put the axes on the other side of their rotations.

    Where a few axes hold nearly all variance, every rotated axis reads them: rotations share one
    error of sampling, hardly differ from each other, and the axes lie beyond all of them by
    accident. Neurons that point elsewhere are exchangeable with the observed ones in any case.
    """
    return null.name == "rotation" and score.effect_interval[0] <= 0


def _aside(scores: dict[str, ScoreResult], null: NullRecord, stands_out: bool) -> str:
    """What a score says that compares axes with each other, where it says something else."""
    across = scores.get("sample_kurtosis")
    if across is None or across.decides or stands_out or math.isnan(across.effect):
        return ""
    if across.p_value > LEVEL or abs(across.effect) < 4:
        return ""
    how = "higher" if across.effect > 0 else "lower"
    causes = "offsets" if null.geometry == "standardised" else "offsets and unequal variances"
    return (
        f"; only kurtosis across the axes of a sample is {how} than by chance (z = "
        f"{_number(across.effect)}), as {causes} along axes make it"
    )


def _relative(score: ScoreResult) -> str:
    """A word where the difference is small, however sure."""
    reference = abs(score.null_mean)
    if reference > 0 and abs(score.observed - score.null_mean) < 0.1 * reference:
        change = (score.observed - score.null_mean) / reference
        return f"; a small difference of {change:.1%}, however sure"
    return ""


def _spoken(name: str) -> str:
    return name.replace("_", "-") if name == "non_gaussianity" else name.replace("_", " ")


def _number(value: float) -> str:
    if math.isnan(value):
        return "undefined"
    if value != 0 and (abs(value) < 0.001 or abs(value) >= 1e5):
        return f"{value:.1e}"
    return f"{value:.3g}"
