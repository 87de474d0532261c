"""`basis-probe merge`: one report of parts that were seen apart."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from basis_probe.cli.arguments import NULL_NAMES, output, outputs
from basis_probe.cli.command import Command, Refused, Status
from basis_probe.cli.probing import load, write
from basis_probe.errors import clean
from basis_probe.files import no_file

if TYPE_CHECKING:
    from basis_probe.cli.screen import Screen


class MergeCommand(Command):
    """Adds parts and writes their report."""

    name = "merge"
    summary = "write the report of parts that `report --shard` wrote"
    examples = (
        (
            "basis-probe merge *.safetensors --model ./my-model --out r.html",
            "the report of all parts",
        ),
    )

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("parts", type=Path, nargs="+", metavar="PART", help="parts to add")
        parser.add_argument(
            "--model",
            metavar="MODEL",
            help="the model that they were seen of: a local folder, or a name on the hub",
        )
        parser.add_argument(
            "--null",
            choices=NULL_NAMES,
            metavar="NULL",
            help="as it was when the parts were seen",
        )
        parser.add_argument("--device", default="cpu", help="where the model runs (default cpu)")
        parser.add_argument(
            "--out",
            type=output,
            action="append",
            metavar="FILE",
            help=".html, .json, .csv or .md; may be given several times",
        )
        parser.set_defaults(default_out=Path("basis_probe_report.html"))

    def run(self, parsed: argparse.Namespace, screen: Screen) -> Status:
        from basis_probe.run.parts import Partial

        for path in parsed.parts:
            if not path.is_file():
                raise Refused(f"{no_file(path)}; give parts that `report --shard` wrote")
        total = Partial.load(parsed.parts[0])
        for path in parsed.parts[1:]:
            total = total + Partial.load(path)
        if not parsed.model:
            # A file may name anything; what is loaded is for the user to say.
            said = f" (they say that it was {clean(total.source)})" if total.source else ""
            raise Refused(f"which model the parts are of is for you to say{said}: give --model")
        outputs(parsed)
        model = load(parsed.model, parsed.device, screen)
        report = total.report(model, null=parsed.null, progress=screen.draws_progress)
        return write(report, parsed, screen)
