"""Results as Markdown, for notes and pull requests, and as a few lines of plain text."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from basis_probe.results.evidence import (
    BasisRanking,
    BasisRow,
    KurtosisSplit,
    OrderRecord,
    OutlierAxes,
    ScoreResult,
)
from basis_probe.results.report import Outcome, Report, SiteReport
from basis_probe.show import contexts, selection, words

if TYPE_CHECKING:
    from basis_probe.results.examples import Examples

_NAME = 96
_TEXT = 1500
_WIDTH = 88

_PLAIN = re.compile(r"[A-Za-z0-9_.,:/*+()-]+(?: [A-Za-z0-9_.,:/*+()-]+)*")
_LINKED = re.compile(r"://|www\.", re.IGNORECASE)
_SPECIAL = re.compile(r"[\\`*_{}\[\]<>#|~$&@!^]")
_OPENING = re.compile(r"^(\d*)([-+=.):])")


def markdown(report: Report) -> str:
    """The whole report in GitHub's Markdown: answer, table of the sites, every site, the method.

    Names and texts come out as text, whatever they hold: nothing in them becomes a heading, a
    link, an element or a further column.
    """
    parts = [
        f"# Can {text(report.provenance.model, 80)} be read neuron by neuron?",
        f"Model: {text(report.provenance.model, 160)}. Data: {text(report.provenance.data, 240)}. "
        f"Samples per site: {words.samples(report)}. Sites: {words.count(len(report))}.",
        *_partial(report),
        "\n".join(f"- {_label(said)}{text(said.text)}" for said in words.answer(report)),
        *_failed(report),
        *_bullets(report.notes, "Notes"),
    ]
    if len(report):
        parts += ["## All sites", _sites(report)]
        if any(site.routed for site in report):
            parts += ["## Experts", _experts(report)]
        parts += ["## Site by site"]
        for site in report.site_reports:
            parts += _site(site)
    parts += ["## How this was computed", *_method(report), "## How to cite", *_citation(report)]
    return "\n\n".join(parts) + "\n"


def summary(report: Report) -> str:
    """The answer in plain text, in lines of at most 88 characters."""
    head = (
        f"basis_probe: {_plain(report.provenance.model, 80)}, "
        f"{words.several(len(report), 'site')}, samples per site: {words.samples(report)}"
    )
    lines = textwrap.wrap(head, _WIDTH, subsequent_indent="  ")
    if report.partial:
        lines += textwrap.wrap(f"Partial report. {_interrupted(report)}", _WIDTH)
    for sentence in words.answer(report):
        label = "" if sentence.outcome is None else sentence.outcome.name.lower()
        lines += textwrap.wrap(
            _plain(sentence.text, _TEXT),
            _WIDTH,
            initial_indent=f"{label:<12}",
            subsequent_indent=" " * 12,
        )
    failed = selection.failed_certificates(report)
    if failed:
        lines += textwrap.wrap(f"Warning: {words.failure(failed)}", _WIDTH, subsequent_indent="  ")
    for note in report.notes:
        lines += textwrap.wrap(f"Note: {_plain(note, 300)}", _WIDTH, subsequent_indent="  ")
    return "\n".join(lines)


# --- texts of any origin ------------------------------------------------------------------------


def text(value: str, limit: int = _TEXT) -> str:
    r"""`value` as one line of Markdown that reads the same and does nothing else.

    Example:
        >>> print(text("<b> a|b [x](y) _z_"))
        \<b\> a\|b \[x\](y) \_z\_
    """
    shown = _SPECIAL.sub(r"\\\g<0>", _plain(value, limit))
    shown = _LINKED.sub(lambda found: "".join(_apart(letter) for letter in found.group()), shown)
    return _OPENING.sub(r"\1\\\2", shown)


def name(value: str, limit: int = _NAME) -> str:
    r"""`value` as code where nothing in it is special, else as text.

    Example:
        >>> print(name("hook_post"), name("a|b"))
        `hook_post` a\|b
    """
    shown = _plain(value, limit)
    return f"`{shown}`" if _PLAIN.fullmatch(shown) else text(value, limit)


def _plain(value: str, limit: int) -> str:
    return words.shorten(words.clean(value), limit).strip()


def _apart(letter: str) -> str:
    return letter if letter.isalpha() else "\\" + letter


# --- the parts ----------------------------------------------------------------------------------


def _label(sentence: words.Sentence) -> str:
    return "" if sentence.outcome is None else f"**{sentence.outcome.name.lower()}**: "


def _interrupted(report: Report) -> str:
    return (
        "The data stream was interrupted. The numbers cover what was seen until then: "
        f"{words.several(report.provenance.n_examples, 'example')} in "
        f"{words.several(report.provenance.n_batches, 'batch')}."
    )


def _partial(report: Report) -> list[str]:
    return [f"> **Partial report.** {_interrupted(report)}"] if report.partial else []


def _failed(report: Report) -> list[str]:
    failed = selection.failed_certificates(report)
    return [f"> **Warning.** {text(words.failure(failed))}"] if failed else []


def _bullets(entries: Sequence[str], title: str) -> list[str]:
    if not entries:
        return []
    return [f"{title}:", "\n".join(f"- {text(entry)}" for entry in entries)]


def table(heads: Sequence[str], right: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; the columns named in `right` are aligned to the right."""
    on_right = set(right)
    rules = ["---:" if head in on_right else "---" for head in heads]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, rules, *rows))


def _sites(report: Report) -> str:
    heads = (
        "layer",
        "site",
        "kind",
        "group",
        "privileges",
        "leading score",
        "effect",
        "p, adjusted",
        "outcome",
    )
    rows: list[tuple[str, ...]] = []
    for site in report.site_reports:
        lead = selection.speaker(site)
        rows.append(
            (
                words.DASH if site.layer is None else str(site.layer),
                name(site.site),
                text(site.kind, 60),
                text(site.symmetry.group.name, 60),
                site.symmetry.privileged.name.lower(),
                words.DASH if lead is None else name(lead.name, 40),
                words.DASH if lead is None else words.effect(lead.effect),
                words.DASH if lead is None else words.p_value(lead.p_adjusted),
                text(words.outcome(site.verdict), 80),
            )
        )
    return table(heads, ("layer", "effect", "p, adjusted"), rows)


def _experts(report: Report) -> str:
    rows: list[tuple[str, ...]] = []
    for site in report.site_reports:
        if site.routed is None:
            continue
        given, lead = site.routed.given, selection.speaker(site)
        rows.append(
            (
                words.DASH if site.layer is None else str(site.layer),
                str(site.routed.expert),
                words.count(site.n_samples),
                words.fraction(site.n_samples / given) if given else words.DASH,
                words.DASH if lead is None else words.effect(lead.effect),
                words.DASH if lead is None else words.p_value(lead.p_adjusted),
                text(words.outcome(site.verdict), 80),
            )
        )
    heads = ("layer", "expert", "samples", "share", "effect", "p, adjusted", "outcome")
    return table(heads, heads[:-1], rows)


def _site(site: SiteReport) -> list[str]:
    found = site.symmetry
    architecture = [
        f"- Group: {text(found.group.name, 120)}, {text(found.group.describe(), 400)}",
        f"- Privileges: {found.privileged.name.lower()}, {found.privileged.value}",
        f"- Because: {text(found.because) or words.DASH}",
        f"- Reference: {text(found.reference) or words.DASH}",
        f"- Certificate: {words.certificate(site.symmetry)}",
    ]
    data = [f"- Samples: {words.samples_of(site)}; axes: {words.axes(site)}"]
    if site.null is None:
        data.append("- Null: nothing could be compared here")
    else:
        null = site.null
        data += [
            f"- Null: {text(null.name, 120)}{' (approximate)' if null.approximate else ''}, "
            f"{words.several(null.frames, 'alternative')} on "
            f"{words.several(null.samples, 'sample')}, {text(null.geometry, 60)} geometry",
            f"- Holds fixed: {text(null.holds_fixed) or words.DASH}",
            f"- Chosen because: {text(null.because) or words.DASH}",
        ]
    parts = [
        f"### {name(site.site)}",
        f"**{site.verdict.outcome.name.lower()}**: {text(site.verdict.sentence)}",
        *_bullets(site.notes, "Notes"),
        "\n".join((*architecture, *data)),
    ]
    if site.scores:
        parts.append(_scores(site))
        parts += [
            f"{name(score.name, 40)}: {text(score.note)}"
            for score in site.scores.values()
            if score.note
        ]
    if site.orders:
        parts += ["Offset, scale and form, which decide together:", _orders(site.orders)]
        parts += [] if site.per_sample is None else [_split(site.per_sample)]
        parts += _without(site.outliers)
    if site.bases is not None:
        parts += [_found_on(site.bases), _bases(site.bases)]
        if site.bases.table:
            parts += [_SCORES_OF_BASES, _scores_of_bases(site.bases)]
    if site.beside:
        said = (
            "Beside it: the raw rotation of the activations, in which an axis of outlying variance "
            "reaches into every turned one and hides form. No verdict rests on it."
            if site.orders
            else "Beside it, and misleading: the raw rotation of the activations, in which the "
            "axes behind a nonlinearity win for free. No verdict rests on it."
        )
        parts += [said, _beside(site)]
    if site.examples is not None:
        parts += [
            "What activates the axes that stand out most, and as many directions of a random "
            "rotation: the tokens at which each is most active. No verdict rests on it.",
            _examples(site, site.examples),
        ]
    return parts


def _scores(site: SiteReport) -> str:
    heads = (
        "score",
        "observed",
        "null, mean ± sd",
        "effect",
        "difference ± error",
        "p",
        "p, tail",
        "p, adjusted",
        "axes that stand out",
        "effect without top 3",
        "closed form",
        "all samples",
    )
    rows = [
        (
            f"{name(score.name, 40)}{'' if score.decides else ' (for information)'}",
            words.number(score.observed),
            _null(score),
            words.effect(score.effect),
            words.difference(score),
            words.p_value(score.p_value),
            _tail(score),
            words.p_value(score.p_adjusted),
            words.fraction(score.fraction_privileged),
            words.effect(score.effect_without_top_axes),
            _closed(score),
            words.number(score.all_samples),
        )
        for score in site.scores.values()
    ]
    return table(heads, heads[1:], rows)


def _beside(site: SiteReport) -> str:
    heads = ("score", "observed", "raw rotation, mean ± sd", "effect, raw rotation")
    rows = [
        (
            name(score.name, 40),
            words.number(score.observed),
            _null(score),
            words.effect(score.effect),
        )
        for score in site.beside.values()
    ]
    return table(heads, heads[1:], rows)


def _split(split: KurtosisSplit) -> str:
    return (
        f"Kurtosis per sample {words.number(split.total)}: offset {words.number(split.offset)}, "
        f"scale {words.number(split.scale)}, form {words.number(split.form)}, rotations "
        f"{words.number(split.rotations)}."
    )


def _without(outliers: OutlierAxes | None) -> list[str]:
    """The axes of outlying variance, and what is left without them."""
    if outliers is None:
        return []
    held = (
        f"{words.several(len(outliers.axes), 'axis')} of outlying variance "
        f"({', '.join(map(str, outliers.axes))}), {words.fraction(outliers.share)} of it."
    )
    if not outliers.orders or outliers.per_sample is None:
        return [held]
    said = (
        f"{held} Without them, against turns of the others; no verdict rests on it, because they "
        "were chosen after the data were seen:"
    )
    return [said, _orders(outliers.orders), _split(outliers.per_sample)]


def _orders(records: Sequence[OrderRecord]) -> str:
    heads = ("order", "observed", "random rotations, mean ± sd", "effect", "p", "what follows")
    rows = [
        (
            text(order.order, 40),
            words.number(order.observed),
            _spread(order.null_mean, order.null_std),
            words.effect(order.effect),
            words.p_value(order.p_value),
            text(order.sentence, 400),
        )
        for order in records
    ]
    return table(heads, heads[1:5], rows)


def _found_on(ranking: BasisRanking) -> str:
    return (
        f"Which basis, by {text(ranking.score, 40)}: each found on "
        f"{words.several(ranking.fitted_on, 'sample')} and judged on "
        f"{words.count(ranking.judged_on)} others, against "
        f"{words.several(ranking.frames, 'random rotation')} "
        f"({_spread(ranking.null_mean, ranking.null_std)}); 0 % of the way is a random rotation, "
        "100 % the best basis that was found."
    )


def _bases(ranking: BasisRanking) -> str:
    heads = ("basis", "score", "effect", "way to the best", "close to the axes")
    rows = [
        (
            text(standing.name, 40),
            words.number(standing.score),
            words.effect(standing.effect),
            words.fraction(standing.ceiling),
            words.number(standing.cosine),
        )
        for standing in selection.ranked(ranking)
    ]
    return table(heads, heads[1:], rows)


_SCORES_OF_BASES = (
    "Every basis on the activations as they are, means over directions with 95 % intervals over "
    "other examples, of rotations their range; scores of codes, which rare events make, have none:"
)


def _scores_of_bases(ranking: BasisRanking) -> str:
    lines, scores = selection.basis_lines(ranking)
    rows = [
        (
            " ".join(text(part, 200) for part in (line.basis, line.kind)),
            *(_with_interval(line.scores.get(score)) for score in scores),
            words.count(line.directions),
        )
        for line in lines
    ]
    heads = ("basis", *(text(score, 40) for score in scores), "directions")
    return table(heads, heads[1:], rows)


def _with_interval(row: BasisRow | None) -> str:
    if row is None:
        return words.DASH
    if math.isnan(row.low):
        return words.number(row.value)
    return f"{words.number(row.value)} ({words.number(row.low)} to {words.number(row.high)})"


def _examples(site: SiteReport, found: Examples) -> str:
    rows = [
        (
            text(contexts.direction(top, site.shape), 80),
            " / ".join(
                text(run.text, 80)
                for context in top.contexts
                for run in contexts.runs(context)
                if run.peak
            ),
        )
        for top in (*found.axes, *found.rotated)
    ]
    return table(("direction", "most active at"), (), rows)


def _null(score: ScoreResult) -> str:
    return _spread(score.null_mean, score.null_std)


def _spread(mean: float, std: float | None) -> str:
    if std is None or math.isnan(std):
        return words.number(mean)
    return f"{words.number(mean)} ± {words.number(std)}"


def _tail(score: ScoreResult) -> str:
    shown = words.p_value(score.p_tail)
    return f"{shown} ({text(score.p_tail_method, 60)})" if score.p_tail_method else shown


def _closed(score: ScoreResult) -> str:
    if score.closed_form is None:
        return words.DASH
    exact = "exact" if score.closed_form.exact else "approximate"
    source = text(score.closed_form.source, 60)
    return f"{_spread(score.closed_form.mean, score.closed_form.std)} ({exact}: {source})"


def _method(report: Report) -> list[str]:
    made = report.provenance
    nulls = [
        f"- {text(null, 120)}: {words.NULLS[null]}"
        for null in dict.fromkeys(site.null.name for site in report if site.null is not None)
        if null in words.NULLS
    ]
    settings = [f"- {name(key, 60)}: {text(value, 300)}" for key, value in made.settings.items()]
    versions = ", ".join(
        f"{name(library, 60)} {text(version, 60)}" for library, version in made.versions.items()
    )
    return [
        words.METHOD.format(level=words.p_value(made.level)),
        *(["\n".join(nulls)] if nulls else []),
        words.certified(report),
        "\n".join(f"- {outcome.name.lower()}: {outcome.value}" for outcome in Outcome),
        "What a verdict does not mean:",
        "\n".join(f"- {limit}" for limit in words.LIMITS),
        "What determined the numbers:",
        "\n".join(
            (
                f"- model: {text(made.model, 300)}",
                f"- data: {text(made.data, 300)}, {words.several(made.n_examples, 'example')} in "
                f"{words.several(made.n_batches, 'batch')}",
                *(f"- {what}: {text(value, 40)}" for what, value in words.digests(made)),
                f"- seed: {made.seed}",
                f"- level: {words.p_value(made.level)}",
                f"- device: {text(made.device, 60)}, {text(made.dtype, 60)}",
                *settings,
                f"- versions: {versions}",
            )
        ),
    ]


def _citation(report: Report) -> list[str]:
    version = report.provenance.versions.get("basis_probe", "")
    ours = f"basis_probe, version {text(version, 40)}" if version else "basis_probe"
    return [
        f"The symmetries: {words.PAPER}.",
        f"The numbers: {ours}, seed {report.provenance.seed}.",
        f"```bibtex\n{words.BIBTEX}\n```",
    ]
