"""From the architecture's answer and the data's to an outcome, and a sentence to quote."""

import collections
import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import torch

from basis_probe.algebra.groups import Privileged
from basis_probe.evidence.extras import ACTIVATIONS
from basis_probe.evidence.site import Evidence, Origin
from basis_probe.results.evidence import (
    BasisRanking,
    FewAxes,
    FormBound,
    NullRecord,
    OrderRecord,
    OutlierAxes,
    ScoreResult,
    Tail,
)
from basis_probe.results.report import Outcome, SiteReport, Verdict
from basis_probe.results.symmetry import Symmetry
from basis_probe.statistics.nulls import Geometry
from basis_probe.statistics.orders import FORM, OFFSET, SCALE
from basis_probe.statistics.p_values import holm
from basis_probe.statistics.scores import DECISIVE, KURTOSIS

LEVEL = 0.05
FEWEST_ALTERNATIVES = 10
"""With fewer different ones, as where an input of two features is turned about its mean, the axes
are among their own alternatives so often that nothing could stand out."""

_ROUNDING = 1e-6
"""Alternatives are scored in single precision: scores that differ by less than this part of their
size are the same."""


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
        orders: offset, scale and form, where they decide.
        few: whether a few axes stand out.
        outliers: the axes of outlying variance.
        bound: how far the axes could stand out in form.
        unbounded: why that is not known, where it is not.
        origin: what an untrained network shows here; None where none was asked.
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
    orders: tuple[OrderRecord, ...] = ()
    few: FewAxes | None = None
    outliers: OutlierAxes | None = None
    bound: FormBound | None = None
    unbounded: str = ""
    origin: Origin | None = None


def report(gathered: Sequence[Evidence]) -> tuple[SiteReport, ...]:
    """The reports of all sites, p-values adjusted for all of them together."""
    founds = adjust([_found(evidence) for evidence in gathered])
    return tuple(
        SiteReport(
            site=evidence.case.site,
            kind=evidence.case.kind,
            layer=evidence.case.layer,
            shape=evidence.case.shape,
            dim=evidence.case.dim,
            n_samples=evidence.case.n_samples,
            n_dead=evidence.case.n_dead,
            symmetry=evidence.case.symmetry,
            null=evidence.null,
            scores=found.scores,
            beside={name: raw.without_axes() for name, raw in evidence.beside.items()},
            verdict=decide(found),
            notes=evidence.case.notes,
            orders=found.orders,
            bases=evidence.bases,
            path=evidence.path,
            few=found.few,
            per_sample=None if evidence.orders is None else evidence.orders.per_sample,
            outliers=found.outliers,
            routed=evidence.case.routed,
        )
        for evidence, found in zip(gathered, founds, strict=True)
    )


_SHOWN_AXES = 6


def outliers_across(sites: Sequence[SiteReport]) -> tuple[str, ...]:
    """Whether axes of outlying variance are the same from site to site, a sentence for each space.

    Compared are sites of one kind and width at which scale stands out.
    """
    spaces: dict[tuple[str, int], list[SiteReport]] = {}
    for site in sites:
        spaces.setdefault((site.kind, site.dim), []).append(site)
    said: list[str] = []
    for (kind, _), several in spaces.items():
        lists = [s.outliers.axes for s in several if s.outliers and SCALE in s.verdict.orders]
        if len(lists) < 2:
            continue
        counts = collections.Counter(axis for axes in lists for axis in axes)
        often = [(axis, count) for axis, count in counts.most_common() if count > len(lists) / 2]
        where = f"Variances stand out at {len(lists)} sites ({kind})"
        if often:
            named = ", ".join(f"axis {axis} at {count}" for axis, count in often[:_SHOWN_AXES])
            more = f", and {len(often) - _SHOWN_AXES} more axes" if len(often) > _SHOWN_AXES else ""
            said.append(f"{where}, on the same axes: {named} of them{more}.")
        else:
            said.append(
                f"{where}, on different axes: {len(counts)} are listed, none at more than "
                f"{max(counts.values())} of them."
            )
    return tuple(said)


def _found(evidence: Evidence) -> Found:
    case, orders = evidence.case, evidence.orders
    return Found(
        kind=case.kind,
        dim=case.dim,
        n_samples=case.n_samples,
        needed=case.needed,
        n_dead=case.n_dead,
        symmetry=case.symmetry,
        null=evidence.null,
        scores=dict(evidence.scores),
        trouble=case.trouble,
        bases=evidence.bases,
        orders=() if orders is None else orders.records,
        few=evidence.few,
        outliers=None if orders is None else orders.outliers,
        bound=evidence.bound,
        unbounded=evidence.unbounded,
        origin=evidence.origin,
    )


def adjust(founds: Sequence[Found]) -> list[Found]:
    """The sites with p-values adjusted by Holm over all tests that decide at all of them.

    Tests are the deciding scores, the few largest axes, and offset and scale where they are asked;
    form is decided by its scores and by the few.
    """
    tests: list[tuple[int, str, float]] = []
    for index, found in enumerate(founds):
        tests += [
            (index, name, score.p_tail)
            for name, score in found.scores.items()
            if score.decides and not math.isnan(score.p_tail)
        ]
        if found.few is not None:
            tests.append((index, _FEW, found.few.p_tail))
        # Whether offset is asked depends on nothing that a turn changes, so that it is no test
        # where it is not; the gate of scale looks at the axes.
        tests += [
            (index, order.order, 1.0 if order.gate else order.p_value)
            for order in found.orders
            if order.order == SCALE or (order.order == OFFSET and not order.gate)
        ]
    if not tests:
        return list(founds)
    adjusted = holm(torch.tensor([p for _, _, p in tests], dtype=torch.float64)).tolist()
    of = {(index, name): p for (index, name, _), p in zip(tests, adjusted, strict=True)}
    return [_adjusted(found, index, of) for index, found in enumerate(founds)]


_FEW = "few axes"


def _adjusted(found: Found, index: int, of: dict[tuple[int, str], float]) -> Found:
    scores = {
        name: dataclasses.replace(score, p_adjusted=of.get((index, name), score.p_adjusted))
        for name, score in found.scores.items()
    }
    few = found.few
    if few is not None:
        few = dataclasses.replace(few, p_adjusted=of[index, _FEW])
    found = dataclasses.replace(found, scores=scores, few=few)
    orders: list[OrderRecord] = []
    for order in found.orders:
        p = of.get((index, order.order), math.nan)
        if order.order == FORM:
            p = min((of[index, name] for name in scores if (index, name) in of), default=math.nan)
            claimed = _stands_out(found)
        else:
            # Behind a gate that is shut p is one, or none.
            claimed = p <= LEVEL
        orders.append(dataclasses.replace(order, p_adjusted=p, claimed=claimed))
    return dataclasses.replace(found, orders=tuple(orders))


def _deciding(found: Found) -> list[ScoreResult]:
    return [s for s in found.scores.values() if s.decides and not math.isnan(s.p_adjusted)]


def _sure(found: Found) -> list[ScoreResult]:
    """The deciding scores that other samples would not turn round."""
    null = found.null
    known = [score for score in _deciding(found) if not math.isnan(score.effect)]
    return [score for score in known if null is None or not _by_accident(score, null)]


def _stands_out(found: Found) -> bool:
    """True if the mean over all axes, or a few of them, stand out in form."""
    return any(score.p_adjusted <= LEVEL for score in _sure(found)) or _few_stand_out(found)


def _few_stand_out(found: Found) -> bool:
    few = found.few
    return few is not None and few.repeated and few.p_adjusted <= LEVEL


_FITTED = (Geometry.WHITENED, Geometry.HEADS, Geometry.PARTS)
"""Geometries in which a covariance is fitted to the rows."""


def decide(found: Found) -> Verdict:
    """The outcome at a site, and its sentence.

    Args:
        found: what is known of the site, p-values adjusted.
    """
    what = f"{found.kind} ({found.dim} {'axis' if found.dim == 1 else 'axes'})"
    null, deciding = found.null, _deciding(found)
    if found.trouble:
        return _undecided(f"Undecided: {found.trouble}")
    if found.n_samples < found.needed:
        return _undecided(
            f"Undecided: {found.n_samples} samples were seen and at least {found.needed} are "
            f"needed for {what}; give more data."
        )
    if found.n_dead == found.dim:
        return _undecided(f"Undecided: none of the {found.dim} axes ever varied.")
    if null is None:
        return _undecided(f"Undecided: nothing could be compared at {what}.")
    fitted = null.geometry in [g.name.lower() for g in _FITTED]
    if fitted and 0 < null.distinct < min(found.needed, null.samples / 2):
        return _undecided(
            f"Undecided: only {null.distinct} of {null.samples} samples differ from each other, and"
            f" the covariance of {what} needs at least {found.needed}; give data that repeat less."
        )
    if not deciding and not found.orders:
        if found.scores and not {*DECISIVE, KURTOSIS.name} & found.scores.keys():
            return _undecided(
                "Undecided: none of the scores that were asked for decides; ask for "
                "non_gaussianity and negentropy besides."
            )
        return _undecided(f"Undecided: {null.because}.")
    known = [order for order in found.orders if not math.isnan(order.effect)]
    claimed = sorted(
        (order for order in known if order.claimed),
        key=lambda order: -abs(order.adds) if not math.isnan(order.adds) else 0.0,
    )
    different = max((_different(score) for score in deciding), default=FEWEST_ALTERNATIVES)
    if different < FEWEST_ALTERNATIVES and not claimed:
        same = "the same score" if different < 2 else f"only {different} different scores"
        return _undecided(
            f"Undecided: the {null.frames} alternatives at {what} have {same}, so there is "
            "nothing to stand out against."
        )
    stands_out = bool(claimed) or _stands_out(found)
    cut_short = [score for score in _sure(found) if _beyond_all(score)]
    if not stands_out and cut_short:
        drawn = len(cut_short[0].null_values)
        return _undecided(
            f"Undecided: {_spoken(cut_short[0].name)} at {what} lies beyond all {drawn} "
            f"alternatives (z = {_number(cut_short[0].effect)}), which is too few of them for the "
            f"tests of this report (adjusted p = {_number(cut_short[0].p_adjusted)}); compare with "
            f"more, for example frames={max(199, 2 * drawn + 1)}."
        )
    instead = "" if found.bases is None else f" {another_basis(found.bases)}"
    if found.orders:
        return _by_orders(found, claimed, instead)
    privileged = found.symmetry.privileged
    # Where the sentence has spoken of the axes already, they are not named again.
    data = _data_clause(found, "them" if privileged is Privileged.AXES else "the axes")
    data += _below(found.scores)
    data += _aside(found.scores, null, stands_out)
    data += _untold(found)
    if privileged is Privileged.UNKNOWN:
        return _undecided(
            f"Undecided about the architecture, whose group at this site is not known; {data}."
            f"{instead}"
        )
    if privileged is Privileged.AXES:
        if stands_out:
            advice = _reading(found)
            return Verdict(
                Outcome.PRIVILEGED,
                f"The architecture fixes these axes, and {data}: {advice}.{instead}",
                advice=advice,
            )
        advice = "look for a dictionary"
        return Verdict(
            Outcome.UNUSED,
            f"The architecture fixes these axes, but {data}: the neurons are real, but features "
            f"are not seen to lie on them; {advice}.{_some_alone(found)}{_bounded(found)}{instead}",
            advice=advice,
            bound=found.bound,
        )
    allowed = _allowed(privileged)
    if stands_out:
        advice = f"{_from_where((FORM,), found.origin)}; {_reading(found)}"
        return Verdict(
            Outcome.EMERGENT, f"{allowed}, yet {data}: {advice}.{instead}", (FORM,), advice
        )
    return _arbitrary(found, data, instead)


def _arbitrary(found: Found, data: str, instead: str) -> Verdict:
    """The verdict where nothing is seen on axes that the architecture does not fix."""
    advice = "do not read single coordinates here"
    allowed = _allowed(found.symmetry.privileged)
    return Verdict(
        Outcome.ARBITRARY,
        f"{allowed}, and {data}: {advice}.{_bounded(found)}{instead}",
        advice=advice,
        bound=found.bound,
    )


def _by_orders(found: Found, claimed: Sequence[OrderRecord], instead: str) -> Verdict:
    """The verdict where offset, scale and form decide together."""
    allowed = _allowed(found.symmetry.privileged)
    unknown = found.symmetry.privileged is Privileged.UNKNOWN
    known = [order for order in found.orders if not math.isnan(order.effect)]
    if not claimed:
        data = _no_order(found) + _below(found.scores)
        if unknown:
            return _undecided(
                f"Undecided about the architecture, whose group at this site is not known; {data}."
                f"{instead}"
            )
        return _arbitrary(found, data, instead)
    names = tuple(order.order for order in claimed)
    said = "; ".join(_claim(order, found) for order in claimed)
    # A mean that is noise follows unequal variances, and is no finding that is withheld.
    scale = [order for order in known if order.order == SCALE]
    data = f"the data stand out on the axes by {_listed(names)} ({said}){_shut(scale)}"
    if unknown:
        return _undecided(
            f"Undecided about the architecture, whose group at this site is not known; {data}."
            f"{instead}"
        )
    advice = _emergent_advice(found, claimed)
    return Verdict(
        Outcome.EMERGENT,
        f"{allowed}, yet {data}: {_from_where(names, found.origin)}; {advice}.{instead}",
        names,
        advice,
    )


def _no_order(found: Found) -> str:
    known = [order for order in found.orders if not math.isnan(order.effect)]
    names = _listed([order.order for order in known], "or") if known else "any order"
    figures = ", ".join(f"{order.order} {_number(order.effect)}" for order in known)
    adjusted = [order.p_adjusted for order in known if not math.isnan(order.p_adjusted)]
    least = f"; adjusted p = {_number(min(adjusted))}" if adjusted else ""
    why = _shut(known, figures=False)
    near = [s for s in _deciding(found) if s.p_adjusted <= LEVEL]
    if near:
        low, high = near[0].effect_interval
        why += (
            "; form lies beyond its rotations by no more than other samples would move it (95 % "
            f"interval of z: {_number(low)} to {_number(high)})"
        )
    why += _unrepeated(found)
    return (
        f"the data do not stand out on the axes against random rotations of the same space, by "
        f"{names} (z: {figures}{least}){why}"
    )


def _unrepeated(found: Found) -> str:
    """That a few axes stand out on one half only; begins a clause, or empty."""
    few = found.few
    if few is None or few.repeated or not few.p_adjusted <= LEVEL:
        return ""
    return (
        "; a few axes lie beyond their rotations in form, but not the same ones on both halves of "
        "the examples"
    )


def _shut(orders: Sequence[OrderRecord], *, figures: bool = True) -> str:
    """Which orders stand out in these rows and are not claimed; begins a clause, or empty."""
    return "".join(
        f"; {order.order}{f' (z = {_number(order.effect)})' if figures else ''} is not claimed, "
        f"because {order.gate}"
        for order in orders
        if order.gate and order.p_value <= LEVEL
    )


_ORIGIN = "training, or an initialisation with axes of its own, made these axes stand out"


def _from_where(names: Sequence[str], origin: Origin | None) -> str:
    """Whether training or the initialisation made the axes stand out, where that is known."""
    if origin is None:
        return _ORIGIN
    both = [name for name in names if name in origin.untrained]
    alone = [name for name in names if name in origin.model and name not in origin.untrained]
    unseen = [name for name in names if name not in origin.model and name not in origin.untrained]
    if not both and not alone:
        return _ORIGIN
    who = "an untrained copy, drawn by its modules' own rules,"
    if origin.given:
        who = "the network that was given as untrained"
    parts: list[str] = []
    if both:
        parts.append(
            f"{who} stands out by {_listed(both)} too on {origin.seen}: initialisation, not "
            "training"
        )
    if alone:
        other = "" if origin.given else ", or weights that were drawn by other code"
        parts.append(
            f"{'it' if both else who} does not stand out by {_listed(alone)} on {origin.seen}: "
            f"training made these axes stand out{other}"
        )
    if unseen:
        parts.append(
            f"by {_listed(unseen)} the model itself does not on {origin.seen}, which leaves open "
            "where that comes from"
        )
    return "; ".join(parts)


_ORDER_WORDS = {
    OFFSET: "offset: the mean activation lies along few axes",
    SCALE: "scale: variances are more unequal than on turned axes",
    FORM: "form: at equal variance the axes have more form than turned axes",
}


def _claim(order: OrderRecord, found: Found) -> str:
    """One order that stands out, with its figures."""
    figures = (
        f"{_number(order.observed)} against {_number(order.null_mean)} ± "
        f"{_number(order.null_std)}, z = {_number(order.effect)}"
    )
    small = ", a small difference, however sure" if order.small else ""
    axes = ""
    if order.order == SCALE and found.outliers is not None:
        share = found.outliers.share
        several = len(found.outliers.axes)
        held = "axis has" if several == 1 else "axes have"
        axes = (
            f"; {several} outlying {held} {share:.0%} of the variance: {_some(found.outliers.axes)}"
        )
    elif order.leading:
        axes = f"; mostly on {_axes(order.leading)}"
    if order.order == SCALE and found.n_dead:
        axes += (
            f"; {found.n_dead} {'axis never varies' if found.n_dead == 1 else 'axes never vary'}"
        )
    return f"{_ORDER_WORDS[order.order]} ({figures}{small}{axes})"


def _emergent_advice(found: Found, claimed: Sequence[OrderRecord]) -> str:
    """What follows from the orders that stand out."""
    large = [order for order in claimed if not order.small]
    form = next((order for order in claimed if order.order == FORM), None)
    # A few axes can be read however small the mean over all is.
    if form is not None and form.small and _few_stand_out(found):
        large.append(form)
    if not large:
        return "the differences are small: do not read single coordinates here"
    parts: list[str] = []
    names = {order.order for order in large}
    if FORM in names:
        parts.append(_reading(found))
    if SCALE in names:
        text = "quantisation, cosine similarity, norms and kurtosis per token depend on the basis"
        if FORM not in names:
            text += ", and single coordinates need not mean anything"
        parts.append(text)
    if OFFSET in names:
        parts.append("subtract the mean before axes are compared")
    return "; ".join(parts)


_MOST = 0.5
"""From this share of axes on that stand out by themselves, a layer is read axis by axis."""


def _reading(found: Found) -> str:
    """How many of the axes may be read, and which: no more than stand out by themselves."""
    neurons = found.symmetry.privileged is Privileged.AXES
    unit = "neuron" if neurons else "coordinate"
    best = _leading_score(found)
    share = math.nan if best is None else best.fraction_privileged
    if best is not None and share >= _MOST:
        if neurons:
            return "this layer may be read neuron by neuron"
        return "coordinates can be read here, one by one"
    axes = _standing(found, best)
    if axes:
        known = np.zeros(0) if best is None else ~np.isnan(best.per_direction_p)
        compared, live = int(known.sum()), found.dim - found.n_dead
        block = 0 < compared < live and bool(known[list(axes)].all())
        among = f"the {compared} {unit}s that were compared" if block else f"{found.dim} {unit}s"
        return (
            f"{len(axes)} of {among} stand{'s' if len(axes) == 1 else ''} out by "
            f"{'itself' if len(axes) == 1 else 'themselves'} "
            f"({_axes(axes)}): read "
            f"{'it' if len(axes) == 1 else 'those'}, not the others"
        )
    return f"they do so together, and no {unit} does so by itself: read none of them alone"


def _standing(found: Found, best: ScoreResult | None) -> tuple[int, ...]:
    """The axes that stand out by themselves, the surest first."""
    axes: list[int] = []
    if best is not None and best.fraction_privileged > 0:
        p = best.per_direction_p
        count = round(best.fraction_privileged * int((~np.isnan(p)).sum()))
        filled = np.where(np.isnan(p), np.inf, p)
        axes = [int(axis) for axis in np.lexsort((-best.per_direction, filled))[:count]]
    if found.few is not None and _few_stand_out(found):
        axes += [axis for axis in found.few.axes[: found.few.alone] if axis not in axes]
    return tuple(axes)


def _leading_score(found: Found) -> ScoreResult | None:
    """The deciding score whose finding is surest."""
    candidates = _sure(found) or [s for s in _deciding(found) if not math.isnan(s.effect)]
    if not candidates:
        return None
    return min(candidates, key=lambda score: (score.p_adjusted, -score.effect))


def _axes(axes: Sequence[int]) -> str:
    return f"{'axis' if len(axes) == 1 else 'axes'} {_some(axes)}"


def _some(axes: Sequence[int], most: int = 8) -> str:
    more = f" and {len(axes) - most} more" if len(axes) > most else ""
    return ", ".join(map(str, axes[:most])) + more


def _listed(names: Sequence[str], last: str = "and") -> str:
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} {last} {names[-1]}"


def _some_alone(found: Found) -> str:
    """What may be missed where some of the axes were compared; begins with a space, or empty."""
    compared, live = 0 if found.null is None else found.null.directions, found.dim - found.n_dead
    if not 0 < compared < live:
        return ""
    return (
        f" Only {compared} of the {found.dim} axes, drawn at random, have alternatives of their "
        "own: of the others a single one is found only where it stands out far."
    )


def _bounded(found: Found) -> str:
    """How far the axes could stand out all the same; begins with a space, or empty."""
    bound, null = found.bound, found.null
    if bound is None and found.unbounded:
        return f" How far the axes could stand out all the same is not known: {found.unbounded}."
    if bound is None or null is None:
        return ""
    neurons = null.name != "rotation"
    unit = "neuron" if neurons else "axis"
    where = "" if bound.reads == ACTIVATIONS else " before the nonlinearity"
    text = (
        f" With 95 % confidence the {'neurons' if neurons else 'axes'}' excess kurtosis{where} "
        f"(root mean square) is at most {_number(bound.excess)} beyond that of "
        f"{'neurons that point elsewhere' if neurons else 'random directions'}"
    )
    if not math.isnan(bound.share):
        text += (
            f"; a weak feature on every {unit} with less than {bound.share:.0%} of its variance "
            "would not be seen"
        )
    if bound.rare:
        text += "; events rarer than these data show may escape this bound"
    if not math.isnan(bound.ceiling):
        text += (
            f". Directions that stand out were found (FastICA); the axes that stand out most have "
            f"{bound.ceiling:.0%} of their excess kurtosis on other examples"
        )
    return text + "."


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
    rounding = _ROUNDING * max(abs(values[0]), abs(values[-1]))
    return 1 + int((np.diff(values) > max(1e-4 * (values[-1] - values[0]), rounding)).sum())


def _untold(found: Found) -> str:
    """Which of the scores that decide could not, where others did."""
    deciding = [score for score in found.scores.values() if score.decides]
    lost = [score.name for score in deciding if math.isnan(score.effect)]
    if not lost or len(lost) == len(deciding):
        return ""
    names = " and ".join(_spoken(name) for name in lost)
    return f"; {names} could not be compared, for alternatives have but one value of it"


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


def _data_clause(found: Found, axes: str) -> str:
    """What the data say on the axes, for one clause of a sentence."""
    null, best = found.null, _leading_score(found)
    assert null is not None
    against = {
        "counterfactual": "the same layer with its neurons pointing elsewhere",
        "rotation": "random rotations of the same space",
    }.get(null.name, f"the null '{null.name}'")
    deciding = [score for score in _deciding(found) if not math.isnan(score.effect)]
    if best is None or not _stands_out(found):
        effects = ", ".join(f"{_number(s.effect)}" for s in deciding)
        least = min((s.p_adjusted for s in deciding), default=math.nan)
        figures = f"(z = {effects}; adjusted p = {_number(least)})"
        if least <= LEVEL:
            low, high = min(deciding, key=lambda score: score.p_adjusted).effect_interval
            return (
                f"the data lie beyond {against} {figures}, but by no more than other samples would "
                f"move them (95 % interval of z: {_number(low)} to {_number(high)})"
            )
        return f"the data do not stand out on {axes} against {against} {figures}"
    approximate = ", by an approximate null" if null.approximate else ""
    if not best.p_adjusted <= LEVEL and found.few is not None:
        few, several = found.few, len(found.few.axes)
        return (
            f"{several} of {found.dim} axes stand out against {against}, though the mean over all "
            f"does not (the largest ones: z = {_number(_few_effect(few))}, adjusted p = "
            f"{_number(few.p_adjusted)}{approximate}; all: z = {_number(best.effect)})"
        )
    carried = ""
    if best.effect_without_top_axes < 2 <= best.effect:
        carried = "; at most three axes carry the finding"
    share = best.fraction_privileged
    among = "the axes"
    known = int((~np.isnan(best.per_direction_p)).sum())
    if 0 < known < found.dim - found.n_dead:
        among = f"the {known} axes that were compared one by one"
    one_by_one = "" if math.isnan(share) else f"; {share:.0%} of {among} do so by themselves"
    return (
        f"the data stand out on {axes} against {against} ({_spoken(best.name)} "
        f"{_number(best.observed)} against {_number(best.null_mean)} ± "
        f"{_number(best.null_std)}, z = {_number(best.effect)}{approximate}{_relative(best)}"
        f"{one_by_one}{carried})"
    )


def _few_effect(few: FewAxes) -> float:
    return (few.observed - few.null_mean) / few.null_std if few.null_std > 0 else math.nan


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
