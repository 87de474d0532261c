"""`basis-probe calibrate`: how often the instrument errs, measured."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from basis_probe.cli.arguments import positive
from basis_probe.cli.command import Command, Status
from basis_probe.files import replace_text, require_apart, require_writable

if TYPE_CHECKING:
    from rich.table import Table

    from basis_probe.calibration.rates import Tally
    from basis_probe.cli.screen import Screen

QUICK = ((16, 1000),)


class CalibrateCommand(Command):
    """Tries the tests on data with nothing on the axes, and with something."""

    name = "calibrate"
    summary = (
        "measure how often the tests raise false alarms, and how often they find what is there"
    )
    examples = (
        ("basis-probe calibrate --quick", "twenty small data sets of each kind, some minutes"),
        (
            "basis-probe calibrate --datasets 400 --record rates.jsonl --out rates.md",
            "hours; stopped and started again, it goes on where it was",
        ),
    )

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--datasets",
            type=positive,
            metavar="N",
            help="data sets of each kind and size (default 100, with --quick 20)",
        )
        parser.add_argument(
            "--quick",
            action="store_true",
            help="16 axes and 1,000 samples only, not all four sizes",
        )
        parser.add_argument(
            "--record", type=Path, metavar="FILE", help="keep every count here, one JSON a line"
        )
        parser.add_argument("--out", type=Path, metavar="FILE", help="write the tables here (.md)")

    def run(self, parsed: argparse.Namespace, screen: Screen) -> Status:
        from basis_probe.calibration import rates

        require_apart([path for path in (parsed.out, parsed.record) if path is not None])
        for path in (parsed.out, parsed.record):
            if path is not None:
                require_writable(path)
        record = parsed.record
        totals = {t.key: t for t in rates.read(record)} if record else {}
        status = Status.DONE
        try:
            for tally in rates.calibrate(
                datasets=parsed.datasets or (20 if parsed.quick else 100),
                sizes=QUICK if parsed.quick else rates.SIZES,
                record=record,
            ):
                key = tally.key
                totals[key] = totals[key] + tally if key in totals else tally
                screen.say(f"{tally.place}, {tally.trial}: {totals[key].datasets} data sets")
        except KeyboardInterrupt:
            status = Status.INTERRUPTED
        tallies = list(totals.values())
        if parsed.out is not None:
            replace_text(parsed.out, rates.markdown(tallies))
        screen.show(_table(tallies))
        screen.give([dataclasses.asdict(tally) for tally in tallies])
        if parsed.out is not None:
            screen.say(f"wrote {parsed.out}")
        return status


def _table(tallies: list[Tally]) -> Table:
    from rich.table import Table

    from basis_probe.calibration.rates import wilson

    table = Table("site", "data", "axes", "samples", "data sets", "on the axes", "called")
    for tally in tallies:
        table.add_row(
            tally.place,
            tally.trial,
            *(str(number) for number in (tally.dim, tally.samples, tally.datasets)),
            "sources" if tally.planted else "nothing",
            str(wilson(tally.called, tally.datasets)),
        )
    return table
