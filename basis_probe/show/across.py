"""Reports side by side: as a table, a page, a figure and text."""

from __future__ import annotations

import math
import pathlib
import textwrap
from typing import TYPE_CHECKING, Any

from basis_probe.results.comparison import ReportComparison, SiteAcross, Standing
from basis_probe.show import files, html, latex, maps, markdown, still, words
from basis_probe.show.tables import csv

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from basis_probe.show.canvas import Size

_WIDTH = 88

_LISTED = 12
"""So many sites that differ are named one by one; all of them stand in the table."""


_COLUMNS = (
    "report site kind layer outcome privileged score effect effect_low effect_high difference "
    "difference_error p_adjusted fraction_privileged change change_low change_high not_comparable"
).split()
"""Of a table without rows."""


def dataframe(found: ReportComparison) -> pandas.DataFrame:
    """One row for every site and report, with the same columns and types for every comparison."""
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for row in found.rows:
        for place, (name, one) in enumerate(zip(found.names, row.standings, strict=True)):
            low, high = row.change_interval(place)
            rows.append(
                {
                    "report": words.clean(name),
                    "site": words.clean(row.site),
                    "kind": words.clean(row.kind),
                    "layer": row.layer,
                    "outcome": None if one.outcome is None else one.outcome.name,
                    "privileged": None if one.privileged is None else one.privileged.name,
                    "score": words.clean(row.score),
                    "effect": one.effect,
                    "effect_low": one.effect_interval[0],
                    "effect_high": one.effect_interval[1],
                    "difference": one.difference,
                    "difference_error": one.difference_error,
                    "p_adjusted": one.p_adjusted,
                    "fraction_privileged": one.share,
                    "change": row.change(place),
                    "change_low": low,
                    "change_high": high,
                    "not_comparable": words.clean(row.apart),
                }
            )
    texts = "report site kind outcome privileged score not_comparable".split()
    types = dict.fromkeys(texts, "string") | {"layer": "Int64"}
    return pd.DataFrame(rows, columns=None if rows else _COLUMNS).astype(types)


# --- in words -----------------------------------------------------------------------------------


def answer(found: ReportComparison) -> str:
    """How many sites changed their outcome, in a sentence."""
    shared = [row for row in found if sum(one.outcome is not None for one in row.standings) > 1]
    changed = found.changed
    if not changed:
        return f"No outcome differs at the {words.several(len(shared), 'site')} in common."
    sites = words.several(len(shared), "site")
    return f"The outcome differs at {words.count(len(changed))} of {sites} in common."


def outcomes(row: SiteAcross) -> str:
    """The outcomes of a site, report by report.

    Example:
        >>> from basis_probe.algebra.groups import Privileged
        >>> from basis_probe.results.report import Outcome
        >>> both = Outcome.ARBITRARY, Outcome.EMERGENT
        >>> standings = tuple(Standing(one, Privileged.NONE) for one in both)
        >>> outcomes(SiteAcross("a", "b", None, "", standings))
        'arbitrary, emergent'
    """
    return ", ".join(
        words.DASH if one.outcome is None else one.outcome.name.lower() for one in row.standings
    )


def change(row: SiteAcross) -> str:
    """How far the last report lies from the first, with the 95 % interval; a dash if not known."""
    value = words.number(row.change())
    if value == words.DASH:
        return value
    low, high = row.change_interval()
    signed = value if value.startswith("-") or value == "0" else "+" + value
    if math.isnan(low):
        return signed
    return f"{signed} ({words.number(low)} to {words.number(high)})"


def text(found: ReportComparison) -> str:
    """What changed, in plain text of at most 88 characters a line."""
    head = f"basis_probe: {len(found.names)} reports: {', '.join(found.names)}"
    lines = textwrap.wrap(words.clean(head), _WIDTH, subsequent_indent="  ")
    lines += textwrap.wrap(answer(found), _WIDTH)
    for row in found.changed[:_LISTED]:
        said = f"{words.shorten(words.clean(row.site), 60)}: {outcomes(row)}"
        lines += textwrap.wrap(said, _WIDTH, initial_indent="  ", subsequent_indent="    ")
    more = len(found.changed) - _LISTED
    lines += [f"  and {words.several(more, 'more site')}, see to_dataframe()"] if more > 0 else []
    for note in found.notes:
        said = f"Note: {words.shorten(words.clean(note), 300)}"
        lines += textwrap.wrap(said, _WIDTH, subsequent_indent="  ")
    return "\n".join(lines)


def in_markdown(found: ReportComparison) -> str:
    """The comparison in Markdown: the answer, the notes, a table of all sites."""
    names = [markdown.text(name, 60) for name in found.names]
    heads = ("site", "score", *names, "change, first to last (95 %)")
    rows = [
        (
            markdown.name(row.site),
            markdown.name(row.score, 40) if row.score else words.DASH,
            *(_cell(one) for one in row.standings),
            change(row) if not row.apart else f"{words.DASH} {markdown.text(row.apart, 120)}",
        )
        for row in found
    ]
    parts = [
        f"# {markdown.text(', '.join(found.names), 160)}",
        answer(found),
        *(f"- {markdown.text(note)}" for note in found.notes),
        markdown.table(heads, (), rows),
    ]
    return "\n\n".join(parts) + "\n"


def _cell(one: Standing) -> str:
    if one.outcome is None:
        return words.DASH
    return f"{one.outcome.name.lower()} {words.effect(one.effect)}"


# --- pages and files ----------------------------------------------------------------------------


def fragment(found: ReportComparison) -> str:
    """The comparison as one HTML element for a notebook."""
    return still.stills(html.rendered("across.jinja", found=found, page=False, across=_TOLD))


def page(found: ReportComparison) -> str:
    """The comparison as a whole HTML document that loads nothing."""
    return html.rendered("across.jinja", found=found, page=True, across=_TOLD)


_TOLD = {"answer": answer, "change": change, "outcomes": outcomes, "LISTED": _LISTED}


def save(found: ReportComparison, path: pathlib.Path) -> pathlib.Path:
    """The path of the file written; its ending chooses the format.

    Raises:
        ValueError: for an ending that names no format.
    """
    made = {
        ".html": lambda: page(found),
        ".htm": lambda: page(found),
        ".json": found.to_json,
        ".csv": lambda: csv(dataframe(found)),
        ".md": lambda: in_markdown(found),
        ".tex": lambda: latex.comparison(found),
    }
    return files.save(path, made, lambda: figure(found))


def figure(found: ReportComparison, axes: Axes | None = None, size: Size = None) -> Figure:
    """Sites down, reports across: shape, colour and letter of each as on the map of a report.

    Of many sites in layers, the map of each report.
    """
    return maps.figure(maps.of_comparison(found), axes, size)
