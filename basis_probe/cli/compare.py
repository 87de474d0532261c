"""`basis-probe compare`: saved reports side by side."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from basis_probe.cli.arguments import output
from basis_probe.cli.command import Command, Refused, Status
from basis_probe.cli.probing import save_each
from basis_probe.files import no_file, require_apart

if TYPE_CHECKING:
    from basis_probe.cli.screen import Screen
    from basis_probe.results.report import Report


class CompareCommand(Command):
    """Compares saved reports."""

    name = "compare"
    summary = "show several saved reports side by side: what changed from one to the next"
    examples = (
        ("basis-probe compare early.json late.json", "which outcomes differ, and by how much"),
        (
            "basis-probe compare 'step 100=a.json' 'step 200=b.json' --out c.html",
            "under names of your own, as a page",
        ),
    )

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "reports",
            nargs="+",
            metavar="REPORT.json",
            help="a saved report, or NAME=REPORT.json to name it",
        )
        parser.add_argument(
            "--out", type=output, action="append", metavar="FILE", help="write it here too"
        )

    def run(self, parsed: argparse.Namespace, screen: Screen) -> Status:
        from basis_probe.compare.reports import compare_reports
        from basis_probe.show.terminal import render_comparison

        paths = _named(parsed.reports)
        if len(paths) < 2:
            raise Refused("at least two reports are compared: give the files of two or more")
        compared = compare_reports({name: _loaded(path) for name, path in paths.items()})
        paths = parsed.out or []
        require_apart(paths)
        written = save_each(compared, paths, screen)
        screen.show(render_comparison(compared))
        screen.give(compared.to_json())
        for path in written:
            screen.say(f"wrote {path}")
        return Status.DONE if len(written) == len(paths) else Status.FAILED


def _loaded(path: Path) -> Report:
    """The report in a file.

    Raises:
        Refused: if it holds none.
    """
    from basis_probe.results.report import Report

    try:
        return Report.load(path)
    except ValueError as error:
        raise Refused(f"{path}: {error}") from error


def _named(words: Sequence[str]) -> dict[str, Path]:
    """Name -> file; a file without a name is called by its own, with its folder where needed.

    Raises:
        Refused: if a file is not there, or two have one name.
    """
    found: dict[str, Path] = {}
    stems = [Path(word).stem for word in words]
    for word in words:
        path = Path(word)
        name = path.stem if stems.count(path.stem) == 1 else word.removesuffix(path.suffix)
        if not path.is_file() and "=" in word:
            name, _, rest = word.partition("=")
            path = Path(rest)
        if not path.is_file():
            raise Refused(f"{no_file(path)}; give reports saved as .json")
        if name in found:
            raise Refused(f"two reports are called {name!r}: give them names, as NAME=REPORT.json")
        found[name] = path
    return found
