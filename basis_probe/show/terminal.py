"""Results on a terminal: the answer, then a table of the sites."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from basis_probe.results.report import Outcome, Report, SiteReport
from basis_probe.show import across, selection, words

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.table import Table
    from rich.text import Text

    from basis_probe.results.comparison import ReportComparison

_STYLES = {
    Outcome.PRIVILEGED: "bold green",
    Outcome.UNUSED: "bold blue",
    Outcome.EMERGENT: "bold red",
    Outcome.ARBITRARY: "bold",
    Outcome.UNDECIDED: "dim",
}

_WIDE = 120

_MOST_ROWS = 60
"""More sites than this are shown by their kind."""


def render(report: Report) -> RenderableType:
    """The answer and a table of all sites, as something that a rich console prints.

    From 120 columns on, the table names the leading score too. No text of the report is read as
    markup or reaches the terminal as a command.
    """
    return _Rendered(report)


def render_comparison(found: ReportComparison) -> RenderableType:
    """What changed between reports, as something that a rich console prints."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("site", overflow="fold", min_width=14)
    for name in found.names:
        table.add_column(Text(_shown(name, 24)), overflow="fold")
    table.add_column("change (95 %)", overflow="fold")
    for row in found:
        cells = [
            Text(words.DASH)
            if one.outcome is None
            else Text.assemble(_outcome(one.outcome), " ", (words.effect(one.effect), "dim"))
            for one in row.standings
        ]
        told = Text(_shown(row.apart, 80), "dim") if row.apart else Text(across.change(row))
        site = Text(_shown(row.site, 96), "bold" if row.changed else "")
        table.add_row(site, *cells, told)
    notes = [Text(f"Note: {_shown(note, 300)}", "yellow") for note in found.notes]
    legend = Text(
        "number: effect, standard deviations of the null; change: in units of the score, first to "
        "last; bold: the outcome differs",
        "dim",
    )
    return Group(Text(across.answer(found)), *notes, Text(""), table, legend)


@dataclasses.dataclass(frozen=True)
class _Rendered:
    """What is printed depends on the width of the console."""

    report: Report

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        report = self.report
        yield Text(f"Can {_shown(report.provenance.model, 80)} be read neuron by neuron?", "bold")
        yield Text(
            f"{_shown(report.provenance.data, 240)}; samples per site: {words.samples(report)}",
            "dim",
        )
        yield Text("")
        yield _answer(report)
        if report.partial:
            yield Text(
                "\nPartial report: the data stream was interrupted; the numbers cover what was "
                "seen until then.",
                "yellow",
            )
        failed = selection.failed_certificates(report)
        if failed:
            yield Text(f"\n{words.failure(failed)}", "yellow")
        for note in report.notes:
            yield Text(f"\nNote: {_shown(note, 300)}", "yellow")
        if len(report) > _MOST_ROWS:
            yield Text("")
            yield _by_kind(report)
            yield Text(
                f"{words.count(len(report))} sites, those alike in one row; each by itself: "
                "report.summary(), or the page",
                "dim",
            )
        elif len(report):
            yield Text("")
            yield _table(report, wide=options.max_width >= _WIDE)
        if len(report):
            yield Text("effect: standard deviations of the null; p: adjusted over all sites", "dim")


def _answer(report: Report) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for sentence in words.answer(report):
        label = Text("") if sentence.outcome is None else _outcome(sentence.outcome)
        table.add_row(label, Text(_shown(sentence.text, 1500)))
    return table


def _table(report: Report, *, wide: bool) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("site", overflow="fold", min_width=14)
    table.add_column("kind", overflow="fold", min_width=10)
    if wide:
        table.add_column("group", overflow="fold")
    table.add_column("fixes", no_wrap=True)
    if wide:
        table.add_column("leading score", overflow="fold")
    table.add_column("effect", justify="right", no_wrap=True)
    table.add_column("p", justify="right", no_wrap=True)
    table.add_column("outcome", no_wrap=True)
    for site in report.site_reports:
        lead = selection.speaker(site)
        cells = [
            Text(_shown(site.site, 96)),
            Text(_shown(site.kind, 60)),
            *([Text(_shown(site.symmetry.group.name, 40))] if wide else []),
            Text(_privileged(site)),
            *([Text(words.DASH if lead is None else _shown(lead.name, 40))] if wide else []),
            Text(words.DASH if lead is None else words.effect(lead.effect)),
            Text(words.DASH if lead is None else words.p_value(lead.p_adjusted)),
            _outcome(site.verdict.outcome, site.verdict.orders if wide else ()),
        ]
        table.add_row(*cells)
    return table


def _by_kind(report: Report) -> Table:
    """One row for all sites of one kind, pattern of names and outcome."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    for head, right in (
        ("sites", False), ("kind", False), ("fixes", False), ("effect", True), ("p", True),
        ("outcome", False),
    ):  # fmt: skip
        justify = "right" if right else "left"
        table.add_column(head, overflow="fold", justify=justify)
    alike: dict[tuple[str, str, str, Outcome], list[SiteReport]] = {}
    for site in report:
        pattern = selection.pattern_of(site) or site.site
        key = (pattern, site.kind, _privileged(site), site.verdict.outcome)
        alike.setdefault(key, []).append(site)
    for (_, kind, fixes, outcome), sites in alike.items():
        leads = [lead for site in sites if (lead := selection.speaker(site)) is not None]
        table.add_row(
            Text(_shown(words.sites(sites), 96)),
            Text(_shown(kind, 60)),
            Text(fixes),
            Text(_range([lead.effect for lead in leads], words.effect)),
            Text(_range([lead.p_adjusted for lead in leads], words.p_value)),
            _outcome(outcome),
        )
    return table


def _range(values: Sequence[float], shown: Callable[[float], str]) -> str:
    """The least and the largest of the values that are known; a dash if none is."""
    known = sorted(value for value in values if not math.isnan(value))
    if not known:
        return words.DASH
    low, high = shown(known[0]), shown(known[-1])
    return low if low == high else f"{low} to {high}"


def _privileged(site: SiteReport) -> str:
    return site.symmetry.privileged.name.lower()


def _outcome(outcome: Outcome, orders: Sequence[str] = ()) -> Text:
    from rich.text import Text

    told = Text(outcome.name.lower(), _STYLES[outcome])
    return told.append(f" {', '.join(orders)}", "dim") if orders else told


def _shown(text: str, limit: int) -> str:
    return words.shorten(words.clean(text), limit)
