"""Results as a LaTeX table, ruled as booktabs rules tables."""

from __future__ import annotations

import re
from collections.abc import Sequence

from basis_probe.results.comparison import ReportComparison
from basis_probe.results.report import Report, SiteReport
from basis_probe.show import selection, words

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "\u2212": "$-$",
    "\u2013": "--",
    "…": r"\ldots{}",
    "\u00d7": r"$\times$",
    "\u00b1": r"$\pm$",
} | {letter: f"\\{letter}" for letter in "&%$#_{}"}


def escape(text: str) -> str:
    r"""The text as LaTeX sets it letter by letter.

    Example:
        >>> print(escape("blocks.0_{x} 5 %"))
        blocks.0\_\{x\} 5 \%
    """
    return re.sub(".", lambda found: _SPECIAL.get(found[0], found[0]), words.clean(text))


def table(report: Report) -> str:
    r"""A table of all sites.

    It needs `\usepackage{booktabs}`, and `\usepackage{longtable}` for more than 45 rows. Effects
    are those of the score, or of the order (offset, scale), that speaks for the site, in standard
    deviations of the null, with their 95 % interval where it is known; p is adjusted over all
    sites; "Axes" is the share of axes that stand out by themselves.
    """
    heads = (
        "Site",
        "Architecture",
        "Score",
        "Effect",
        "95\\,\\% interval",
        "$p$",
        "Axes",
        "Outcome",
    )
    about = f"{report.provenance.model}; basis_probe, seed {report.provenance.seed}"
    return _ruled(heads, [_row(site) for site in report], "lllrrrrl", about)


def comparison(found: ReportComparison) -> str:
    """A table of all sites with the outcome and the effect of each report, and what changed."""
    heads = ("Site", *map(escape, found.names), "Change, first to last")
    rows: list[Sequence[str]] = []
    for row in found:
        cells = [
            "--"
            if one.outcome is None
            else f"{one.outcome.name.lower()} {_number(words.effect(one.effect))}"
            for one in row.standings
        ]
        low, high = (_number(words.number(end)) for end in row.change_interval())
        interval = "" if low == "--" else f" ({low} to {high})"
        change = _number(words.number(row.change())) + interval
        rows.append((f"\\texttt{{{escape(words.shorten(row.site, 60))}}}", *cells, change))
    return _ruled(heads, rows, f"l{'l' * len(found.names)}r", ", ".join(found.names))


def _ruled(heads: Sequence[str], rows: Sequence[Sequence[str]], columns: str, about: str) -> str:
    lined = [f"{' & '.join(cells)} \\\\" for cells in rows]
    long = len(rows) > _LONG
    kind = "longtable" if long else "tabular"
    lines = [
        f"% {words.clean(about)}",
        f"\\begin{{{kind}}}{{@{{}}{columns}@{{}}}}",
        "\\toprule",
        f"{' & '.join(heads)} \\\\",
        "\\midrule",
        *(["\\endhead"] if long else []),
        *lined,
        "\\bottomrule",
        f"\\end{{{kind}}}",
    ]
    return "\n".join(lines) + "\n"


_LONG = 45
"""More rows than this do not fit a page."""


def _row(site: SiteReport) -> Sequence[str]:
    lead = selection.speaker(site)
    share = selection.share_of_axes(site)
    name = f"\\texttt{{{escape(words.shorten(site.site, 60))}}}"
    fixes, outcome = site.symmetry.privileged.name.lower(), site.verdict.outcome.name.lower()
    if lead is None:
        return name, fixes, "--", "--", "--", "--", "--", outcome
    low, high = (_number(words.effect(end)) for end in lead.effect_interval)
    interval = "--" if low == "--" else f"{low} to {high}"
    p = _number(words.p_value(lead.p_adjusted))
    axes = escape(words.fraction(share)).replace(" ", "\\,")
    by = escape(words.shorten(lead.name, 30))
    return name, fixes, by, _number(words.effect(lead.effect)), interval, p, axes, outcome


def _number(text: str) -> str:
    """A number in mathematical type, powers of ten written as such."""
    if text == words.DASH:
        return "--"
    mantissa, e, power = text.replace("∞", "\\infty").partition("e")
    raised = f" \\cdot 10^{{{int(power)}}}" if e else ""
    return f"${mantissa}{raised}$"
