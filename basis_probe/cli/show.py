"""`basis-probe show`: a saved report, or a saved comparison of several."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from basis_probe.cli.arguments import output
from basis_probe.cli.command import Command, Refused, Status
from basis_probe.cli.probing import save_each
from basis_probe.files import no_file, require_apart

if TYPE_CHECKING:
    from basis_probe.cli.screen import Screen


class ShowCommand(Command):
    """Shows a saved report, or a comparison of several."""

    name = "show"
    summary = "show a saved report or comparison, or write it in another form"
    examples = (
        ("basis-probe show r.json", "the answer and a table of the sites"),
        ("basis-probe show r.json --out r.html --out r.csv", "as a page and as a table"),
    )

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "report", type=Path, metavar="REPORT.json", help="a saved report, or what compare saved"
        )
        parser.add_argument(
            "--out", type=output, action="append", metavar="FILE", help="write it here too"
        )

    def run(self, parsed: argparse.Namespace, screen: Screen) -> Status:
        from basis_probe.results.comparison import ReportComparison
        from basis_probe.results.envelope import holds
        from basis_probe.results.report import Report
        from basis_probe.show.terminal import render, render_comparison

        if not parsed.report.is_file():
            raise Refused(f"{no_file(parsed.report)}; give a report saved as .json")
        text = parsed.report.read_text(encoding="utf-8-sig", errors="replace")
        if holds(text) == "comparison":
            found = ReportComparison.from_json(text)
            rendered = render_comparison(found)
        else:
            found = Report.from_json(text)
            rendered = render(found)
        paths = parsed.out or []
        require_apart(paths)
        written = save_each(found, paths, screen)
        screen.show(rendered)
        screen.give(found.to_json())
        for path in written:
            screen.say(f"wrote {path}")
        return Status.DONE if len(written) == len(paths) else Status.FAILED
