"""Results in words: numbers to three digits, names made safe, and the answer in a few sentences."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

from basis_probe.algebra.groups import Privileged
from basis_probe.errors import clean as clean
from basis_probe.results.evidence import ScoreResult, Tail
from basis_probe.results.report import Outcome, Provenance, Report, SiteReport, Verdict
from basis_probe.results.symmetry import Certificate, Symmetry
from basis_probe.show import selection

DASH = "\u2013"
"""What stands where there is no number."""

LETTER = {
    Outcome.PRIVILEGED: "P",
    Outcome.UNUSED: "U",
    Outcome.EMERGENT: "E",
    Outcome.ARBITRARY: "A",
    Outcome.UNDECIDED: "?",
}
"""One letter for every outcome, for maps."""

ORDERS = {"offset": "o", "scale": "s", "form": "f"}
"""One small letter for every order of privilege, below that of the outcome."""

NULLS = {
    "rotation": (
        "The activations are turned by uniformly random rotations, and every score is computed "
        "again on the turned axes. Where the site's group holds the rotations this assumes "
        "nothing: if training cannot tell a basis from its rotations, the trained network is as "
        "likely as any rotation of it."
    ),
    "counterfactual": (
        "The same weights, biases and nonlinearity read an input that is turned at random about "
        "its own mean direction. Every neuron then points in a uniformly random direction, with "
        "the same length and the same mean pre-activation, and the data keep all their structure. "
        "An untrained layer is one of its own counterfactuals, so what is paid for is exactly "
        "what the nonlinearity gives to any neuron for free."
    ),
}
"""What is done under each null, for readers."""

LIMITS = (
    "A privileged basis does not say that every neuron stands for one thing. It says that the axes "
    "stand out more than chance directions do; the share of axes that do so by themselves, and "
    "the effect without the top three, say how many of them carry it.",
    "Arbitrary axes do not mean that nothing is encoded. Features may lie along other directions; "
    "only the coordinates are no place to look for them.",
    "Unused axes are unused by these scores and on these data. Another score, or inputs that were "
    "not shown, may find what was missed.",
    "Emergent axes are a trace of training, such as an optimiser that treats coordinates one by "
    "one. The network would compute the same without them.",
    "A p-value speaks of chance, the effect of size. On many samples a tiny effect is significant "
    "and remains tiny. The effect counts standard deviations of the null.",
    "A claim about the architecture that has no certificate was derived from what the modules "
    "compute, and was not tested by changing the weights of this model.",
)
"""What a verdict does not mean."""

METHOD = (
    "Every score is computed on the axes as they are and, by the same code, on alternatives to "
    "them. The effect is the distance of the observed value from the mean of the alternatives, in "
    "their standard deviations. The p-value is the share of alternatives at least as extreme, the "
    "axes themselves counted among them. Where fewer than ten alternatives are as extreme, the "
    "tail is approximated, and the approximation is named beside the number. Adjusted p-values "
    "are corrected by Holm's method over all deciding scores of all sites, so that at level "
    "{level} the chance of a single false finding in this whole report is at most {level}. Where "
    "only some of the axes were compared, the effect is that of their mean, and an equal "
    "difference over all axes would be a larger one; the difference, in units of the score, is "
    "that of all axes."
)
"""How a score becomes a p-value; `level` is left open."""

PAPER = (
    "C. Godfrey, D. Brown, T. Emerson and H. Kvinge (2022). On the Symmetries of Deep Learning "
    "Models and their Internal Representations. Advances in Neural Information Processing "
    "Systems 35. arXiv:2205.14258"
)
"""Where the symmetries are proved."""

BIBTEX = """@inproceedings{godfrey2022symmetries,
  title     = {On the Symmetries of Deep Learning Models and their Internal Representations},
  author    = {Godfrey, Charles and Brown, Davis and Emerson, Tegan and Kvinge, Henry},
  booktitle = {Advances in Neural Information Processing Systems},
  volume    = {35},
  year      = {2022},
  note      = {arXiv:2205.14258}
}"""
"""The same for a bibliography."""


def keys_of_orders() -> str:
    """What the small letters of orders mean.

    Example:
        >>> keys_of_orders()
        'o offset, s scale, f form'
    """
    return ", ".join(f"{letter} {order}" for order, letter in ORDERS.items())


def outcome(verdict: Verdict) -> str:
    """The outcome in small letters, with the orders that carry it.

    Example:
        >>> outcome(Verdict(Outcome.EMERGENT, "", ("scale", "form")))
        'emergent (scale, form)'
    """
    told = f" ({', '.join(verdict.orders)})" if verdict.orders else ""
    return verdict.outcome.name.lower() + told


def orders(verdict: Verdict) -> str:
    """The letters of the orders by which axes are emergent, the one that adds most first.

    Example:
        >>> orders(Verdict(Outcome.EMERGENT, "", ("scale", "form")))
        'sf'
    """
    return "".join(ORDERS.get(order, "?") for order in verdict.orders)


# --- names and texts ----------------------------------------------------------------------------


def shorten(text: str, limit: int) -> str:
    """`text` in at most `limit` characters, both of its ends kept.

    Example:
        >>> shorten("blocks.0.mlp.hook_post", 12)
        'blocks.…post'
    """
    if len(text) <= limit:
        return text
    head = max(1, (limit - 1) * 2 // 3)
    tail = limit - 1 - head
    return text[:head] + "…" + (text[-tail:] if tail else "")


# --- numbers ------------------------------------------------------------------------------------


def _exponent(text: str) -> str:
    mantissa, _, exponent = text.partition("e")
    return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(exponent)}"


def number(value: float) -> str:
    """`value` to three significant digits; a dash for NaN.

    Example:
        >>> [number(value) for value in (0.81234, 1716.8, -3e-7)]
        ['0.812', '1720', '-3e-7']
    """
    if math.isnan(value):
        return DASH
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value == 0:
        return "0"
    rounded = f"{value:.2e}"
    power = int(rounded.partition("e")[2])
    if not -4 < power < 6:
        return _exponent(rounded)
    return f"{float(rounded):.{max(0, 2 - power)}f}"


def effect(value: float) -> str:
    """An effect in standard deviations of the null, with its sign; a dash for NaN.

    Example:
        >>> [effect(value) for value in (138.2, -5.0, 0.004)]
        ['+138', '-5.00', '0.00']
    """
    if math.isfinite(value) and abs(value) < 10:
        text = f"{value:+.2f}"
        return "0.00" if float(text) == 0 else text
    text = number(value)
    return text if text == DASH or text.startswith("-") else "+" + text


def p_value(value: float) -> str:
    """A p-value: two digits down to 0.001, the order of magnitude below; a dash for NaN.

    Example:
        >>> [p_value(value) for value in (1.0, 0.434, 0.001, 2.3e-12, 0.0)]
        ['1', '0.43', '0.001', '2e-12', '< 1e-300']
    """
    if math.isnan(value):
        return DASH
    if value <= 0:
        return "< 1e-300"
    rounded = f"{value:.0e}"
    if float(rounded) < 0.001:
        return _exponent(rounded)
    return f"{value:.2g}"


def fraction(value: float) -> str:
    """A share in per cent; a dash for NaN.

    Example:
        >>> [fraction(value) for value in (0.344, 0.004, 0.0)]
        ['34 %', '0.4 %', '0 %']
    """
    if not math.isfinite(value):
        return DASH
    percent = 100 * value
    return f"{percent:.1f} %" if 0 < percent < 1 else f"{percent:.0f} %"


def count(value: int) -> str:
    """A whole number, its thousands set apart.

    Example:
        >>> count(48213)
        '48,213'
    """
    return f"{value:,}"


def several(value: int, noun: str) -> str:
    """A count and its noun.

    Example:
        >>> several(1, "site"), several(3, "axis"), several(2, "batch")
        ('1 site', '3 axes', '2 batches')
    """
    if noun.endswith("is"):
        plural = noun.removesuffix("is") + "es"
    else:
        plural = noun + ("es" if noun.endswith(("ch", "x", "sh")) else "s")
    return f"{count(value)} {noun if value == 1 else plural}"


def shape(axes: Sequence[int]) -> str:
    """The feature axes, as a product.

    Example:
        >>> shape((4, 8)).split()[::2]
        ['4', '8']
    """
    return " \u00d7 ".join(str(axis) for axis in axes)


def axes(site: SiteReport) -> str:
    """The feature axes of a site, and how many of them never varied."""
    text = shape(site.shape)
    if len(site.shape) > 1:
        text += f" = {count(site.dim)}"
    if site.n_dead:
        text += f", of which {count(site.n_dead)} never varied and are left out"
    return text


# --- scores -------------------------------------------------------------------------------------


def rank(score: ScoreResult) -> str:
    """Where the observed value lies among the values of the null; empty where it has no place."""
    values = [value for value in score.null_values.tolist() if not math.isnan(value)]
    if not values or math.isnan(score.observed):
        return ""
    below = sum(value < score.observed for value in values)
    above = sum(value > score.observed for value in values)
    if below == len(values):
        return f"above all {count(len(values))}"
    if above == len(values):
        return f"below all {count(len(values))}"
    return f"above {count(below)} of {count(len(values))}"


def difference(score: ScoreResult) -> str:
    """How far all axes lie from the null's mean, and the error of that where it is known."""
    text = number(score.difference)
    if text == DASH:
        return DASH
    signed = text if text.startswith("-") else "+" + text
    error = number(score.difference_error)
    return signed if error == DASH else f"{signed} ± {error}"


_ABSENT = {
    "difference": "the null gave no value",
    "p_adjusted": "no verdict rests on this score, so it takes no part in the adjustment",
    "p_tail": "no p-value was computed",
    "p_value": "no p-value was computed",
    "fraction_privileged": "this score gives no p-value to single axes",
    "effect_without_top_axes": "single axes cannot be left out of this score",
    "all_samples": "not computed over the whole stream",
    "closed_form": "no formula is known for this score under this null",
    "observed": "the score is undefined on these activations",
    "null_mean": "the null gave no value",
    "null_std": "the null gave no value",
}


def absent(score: ScoreResult, field: str) -> str:
    """Why `score` has no number in `field`, as far as it is known."""
    if field == "effect":
        if math.isnan(score.observed):
            reason = _ABSENT["observed"]
        elif score.null_std == 0:
            reason = "the null has no spread"
        else:
            reason = _ABSENT["null_mean"]
    else:
        reason = _ABSENT.get(field, "not available")
    return f"{reason}. {score.note}" if score.note else reason


def tail(score: ScoreResult) -> str:
    """Which departures count, in two words."""
    return "one-sided" if score.tail is Tail.UPPER else "two-sided"


def certificate(symmetry: Symmetry) -> str:
    """What the certificate of a claim says, or that there is none."""
    found = symmetry.certificate
    if found is None:
        if symmetry.privileged is Privileged.UNKNOWN:
            return "no certificate: nothing is claimed here"
        return f"no certificate: {symmetry.unproved or 'the claim was derived, not proved'}"
    return proof(found)


def proof(found: Certificate) -> str:
    """What a certificate says.

    Example:
        >>> proof(Certificate(True, 2e-15, 1e-9, 0.4, stranger="rotation")).partition(":")[0]
        'holds'
    """
    moved = (
        f"elements of the group moved the outputs by at most {number(found.max_error)} and missed "
        f"the site by {number(found.action_error)} (allowed: {number(found.tolerance)})"
    )
    outside = (
        "no element outside it was tried"
        if math.isnan(found.violation)
        else f"a {found.stranger or 'change'} outside it moved them by {number(found.violation)}"
    )
    return f"{'holds' if found.holds else 'fails'}: {moved}; {outside}"


def certified(report: Report) -> str:
    """At how many sites the claim about the architecture was proved on the model."""
    claims = [site for site in report if site.symmetry.privileged is not Privileged.UNKNOWN]
    proved = [
        site
        for site in claims
        if site.symmetry.certificate is not None and site.symmetry.certificate.holds
    ]
    if not claims:
        return "In this report nothing is claimed about the architecture."
    return (
        f"In this report a certificate holds for {count(len(proved))} of "
        f"{several(len(claims), 'claim')}."
    )


def failure(failed: Sequence[SiteReport]) -> str:
    """What it means that the claims about the architecture at these sites failed.

    At most five of the sites are named.
    """
    claims = "A claim" if len(failed) == 1 else several(len(failed), "claim")
    names = [shorten(clean(site.site), 64) for site in failed[:5]]
    if len(failed) > 5:
        names.append(several(len(failed) - 5, "other site"))
    return (
        f"{claims} about the architecture failed on this model: the outputs moved under changes "
        "that should leave them alone, or stayed under one that should not. Do not rely on the "
        f"verdict at {_listed(names)}."
    )


# --- the answer ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Sentence:
    """One sentence of the answer, and the outcome it speaks of."""

    outcome: Outcome | None
    text: str


def layers(indices: Iterable[int]) -> str:
    """Layer numbers as ranges.

    Example:
        >>> layers([0, 1, 2, 5]) == f"layers 0{DASH}2 and 5"
        True
        >>> layers([3])
        'layer 3'
    """
    ordered = sorted(set(indices))
    runs: list[list[int]] = []
    for index in ordered:
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    parts: list[str] = []
    for first, last in runs:
        if last == first + 1:
            parts += [str(first), str(last)]
        else:
            parts.append(str(first) if first == last else f"{first}{DASH}{last}")
    return f"layer{'s' if len(ordered) > 1 else ''} {_listed(parts)}"


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _place(kind: str, of_kind: Sequence[SiteReport], outcome: Outcome) -> str:
    """`kind`, and the layers in which it came to `outcome`."""
    here = [site for site in of_kind if site.verdict.outcome is outcome]
    text = f"the {shorten(clean(kind), 60)}"
    numbered = sorted({site.layer for site in here if site.layer is not None})
    everywhere = {site.layer for site in of_kind if site.layer is not None}
    # "All" only where no layer in between was left out of the report.
    gapless = numbered == list(range(len(numbered)))
    if gapless and set(numbered) == everywhere and len(numbered) > 1:
        layered = f" of all {len(numbered)} layers"
    else:
        layered = f" of {layers(numbered)}" if numbered else ""
    outside = [site for site in here if site.layer is None] if numbered else []
    if outside:
        layered += f" and at {sites(outside)}"
    # Sites of one kind and layer may differ in outcome: then it is said which are meant.
    places = {site.layer for site in here}
    others = [
        site for site in of_kind if site.layer in places and site.verdict.outcome is not outcome
    ]
    if not others:
        several_without = len(here) > 1 and not numbered
        return text + layered + (f" ({several(len(here), 'site')})" if several_without else "")
    if all(site.routed is not None for site in of_kind):
        return f"{text}{layered}: {len(here)} of {len(here) + len(others)} experts"
    if len(others) <= 2 < len(here):
        return f"{text}{layered} except {_listed([_named(site.site) for site in others])}"
    return f"{text} at {sites(here)}"


_NAMED = 4
"""So many names of sites, or patterns of names, are listed in a sentence."""


def sites(several: Sequence[SiteReport]) -> str:
    """The names of sites; those that differ by their layer or their expert only are one name."""
    alike: dict[str, list[SiteReport]] = {}
    for site in several:
        pattern = selection.pattern_of(site) or site.site
        if site.routed is not None:
            pattern = selection.experts_pattern(site, pattern)
        alike.setdefault(pattern, []).append(site)
    parts = [
        _named(of[0].site) if len(of) == 1 else _named(pattern) + _experts(of) + _of_layers(of)
        for pattern, of in alike.items()
    ]
    if len(parts) > _NAMED:
        more = len(parts) - _NAMED + 1
        parts = [*parts[: _NAMED - 1], f"{more} others like them"]
    return _listed(parts)


def _experts(alike: Sequence[SiteReport]) -> str:
    """How many of them are experts; empty for other sites."""
    if any(site.routed is None for site in alike):
        return ""
    return f" ({several(len(alike), 'expert')})"


def _of_layers(alike: Sequence[SiteReport]) -> str:
    numbered = [site.layer for site in alike if site.layer is not None]
    return f" of {layers(numbered)}" if numbered else ""


def _named(name: str) -> str:
    return shorten(clean(name), 64)


def _places(report: Report, outcome: Outcome, most: int = 5) -> str:
    kinds: dict[str, list[SiteReport]] = {}
    for site in report.site_reports:
        kinds.setdefault(site.kind, []).append(site)
    parts = [
        _place(kind, sites, outcome)
        for kind, sites in kinds.items()
        if any(site.verdict.outcome is outcome for site in sites)
    ]
    if len(parts) > most:
        parts = [*parts[: most - 1], f"{len(parts) - most + 1} other kinds of site"]
    # Places that hold an "and" of their own are easier to tell apart behind semicolons.
    if len(parts) > 1 and any(" and " in part or ", " in part for part in parts):
        return f"{'; '.join(parts[:-1])}; and {parts[-1]}"
    return _listed(parts)


_SAYS = {
    Outcome.PRIVILEGED: (
        "In {where}, the architecture fixes the axes and the data stand out on them: {advice}."
    ),
    Outcome.EMERGENT: (
        "In {where}, the data stand out on axes that the architecture does not fix: "
        "training, or an initialisation with axes, broke the symmetry."
    ),
    Outcome.UNUSED: (
        "In {where}, the architecture fixes the axes but the data do not stand out on them: "
        "look for a dictionary."
    ),
    Outcome.ARBITRARY: (
        "{Where} cannot be read by coordinates: the architecture does not fix the axes and the "
        "data do not stand out on them."
    ),
    Outcome.UNDECIDED: "Undecided: {where}. The reason stands with each site.",
}


def _advice(report: Report) -> str:
    """How the readable sites may be read, by how many of their axes stand out by themselves."""
    readable = [site for site in report if site.verdict.outcome is Outcome.PRIVILEGED]
    shares = [selection.share_of_axes(site) for site in readable]
    known = sorted(share for share in shares if not math.isnan(share))
    if not known:
        return "they may be read together; which neurons stand out by themselves is not known"
    low, high = fraction(known[0]), fraction(known[-1])
    some = low if low == high else f"{low.removesuffix(' %')} to {high}"
    if known[-1] == 0:
        return "they do so together, and no neuron does so by itself"
    if len(known) == len(shares) and known[0] >= 0.5:
        return f"read them neuron by neuron ({some} of the neurons stand out by themselves)"
    return f"{some} of the neurons stand out by themselves, read those (listed with each site)"


def answer(report: Report) -> tuple[Sentence, ...]:
    """What can be read neuron by neuron, what cannot, and what stayed undecided.

    One sentence for every outcome that occurs, the readable sites first; for a report of one site,
    its own sentence.
    """
    if len(report) == 0:
        return (Sentence(None, "The report holds no site."),)
    if len(report) == 1:
        verdict = report.site_reports[0].verdict
        return (Sentence(verdict.outcome, verdict.sentence),)
    present = {site.verdict.outcome for site in report}
    sentences: list[Sentence] = []
    if present == {Outcome.UNDECIDED}:
        sentences.append(Sentence(None, "Nothing was decided."))
    elif Outcome.PRIVILEGED not in present:
        known = " that was decided" if Outcome.UNDECIDED in present else ""
        sentences.append(Sentence(None, f"No site{known} can be read neuron by neuron."))
    for outcome, words in _SAYS.items():
        if outcome in present:
            where = _places(report, outcome)
            capital = where[:1].upper() + where[1:]
            text = words.replace("{advice}", _advice(report))
            text = text.replace("{Where}", capital).replace("{where}", where)
            sentences.append(Sentence(outcome, text))
    return tuple(sentences)


def digests(made: Provenance) -> list[tuple[str, str]]:
    """(what, number) of the weights and of the data, where they are known."""
    both = [("digest of the weights", made.model_digest), ("digest of the data", made.data_digest)]
    return [(what, value) for what, value in both if value]


def samples_of(site: SiteReport) -> str:
    """How many samples a site saw, and how many of those that were compared count."""
    text = f"{count(site.n_samples)} streamed"
    if site.null is not None and site.null.distinct:
        text += (
            f"; of {count(site.null.samples)} compared {count(site.null.distinct)} differ, worth "
            f"{number(site.null.effective)} unrelated ones across axes"
        )
    return text


def samples(report: Report) -> str:
    """How many samples the sites saw."""
    seen = sorted({site.n_samples for site in report})
    if not seen:
        return "0"
    return count(seen[0]) if len(seen) == 1 else f"{count(seen[0])} to {count(seen[-1])}"
