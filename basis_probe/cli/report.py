"""`basis-probe report`: a language model on a text."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from basis_probe.cli.arguments import add_model, add_probing, positive
from basis_probe.cli.command import Command, Refused, Status
from basis_probe.cli.probing import load, probe_and_write, windows

if TYPE_CHECKING:
    from basis_probe.cli.screen import Screen


class ReportCommand(Command):
    """Probes a language model on a text."""

    name = "report"
    summary = "probe a language model on a text, and write a report"
    examples = (
        ("basis-probe report ./my-model --text corpus.txt --out r.html", "a report to read"),
        (
            "basis-probe report ./my-model --text corpus.txt --out r.html --out r.json",
            "the same, and its numbers",
        ),
        (
            "basis-probe report ./my-model --text corpus.txt --json > r.json",
            "its numbers, for a program",
        ),
    )

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        add_model(parser)
        parser.add_argument("--text", type=Path, required=True, metavar="FILE", help="plain text")
        add_probing(parser, out="basis_probe_report.html")
        parser.add_argument(
            "--length", type=positive, default=128, help="tokens in one example (default 128)"
        )
        parser.add_argument(
            "--max-samples",
            type=positive,
            default=16384,
            help="tokens at each site (default 16384)",
        )

    def run(self, parsed: argparse.Namespace, screen: Screen) -> Status:
        if not parsed.text.is_file():
            raise Refused(f"there is no file {parsed.text}; --text takes a plain text file")
        text = parsed.text.read_text(encoding="utf-8", errors="replace")
        bridge = load(parsed.model, parsed.device, screen)
        data = windows(bridge, text, length=parsed.length, size=parsed.batch_size)
        return probe_and_write(bridge, data, parsed, screen, max_samples=parsed.max_samples)
