"""`basis-probe symmetries`: what the architecture alone says."""

from __future__ import annotations

import argparse
import fnmatch
from collections.abc import Sequence
from typing import TYPE_CHECKING

from basis_probe.cli.arguments import add_model, add_sites
from basis_probe.cli.command import Command, Refused, Status
from basis_probe.cli.probing import load
from basis_probe.errors import nearest

if TYPE_CHECKING:
    from basis_probe.cli.screen import Screen
    from basis_probe.results.symmetry import Symmetries, Symmetry


class SymmetriesCommand(Command):
    """Lists the groups of a model's sites."""

    name = "symmetries"
    summary = "list which changes of basis the architecture allows, site by site"
    examples = (
        ("basis-probe symmetries ./my-model", "every site that has a name"),
        ("basis-probe symmetries ./my-model --sites '*.hook_resid_*' --json", "for a program"),
        ("basis-probe symmetries org/model --config-only", "without its weights"),
    )

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        add_model(parser)
        add_sites(parser)
        parser.add_argument(
            "--certificates",
            action=argparse.BooleanOptionalAction,
            help="prove every claim in float64 (default: do)",
        )

        parser.add_argument(
            "--config-only",
            action="store_true",
            help="read the configuration and no weights; sites have the names of Hugging Face",
        )

    def run(self, parsed: argparse.Namespace, screen: Screen) -> Status:
        from basis_probe.architecture.symmetries import symmetries
        from basis_probe.show.architecture import records, terminal

        if parsed.config_only:
            model, example = parsed.model, None
        else:
            model = load(parsed.model, "cpu", screen)
            example = ["The quick brown fox jumps over the lazy dog."]
        with screen.waiting("deriving and proving"):
            try:
                found = symmetries(model, example, certificates=parsed.certificates)
            except ValueError as error:
                if not parsed.config_only:
                    raise
                raise Refused(str(error)) from error
        if parsed.sites:
            found = _matching(found, parsed.sites)
        screen.show(terminal(found))
        screen.give(records(found))
        return Status.DONE


def _matching(found: Symmetries, patterns: Sequence[str]) -> dict[str, Symmetry]:
    kept: set[str] = set()
    for pattern in patterns:
        names = fnmatch.filter(found, pattern)
        if not names:
            near = nearest(pattern, found, 5)
            raise Refused(f"no site matches {pattern!r}; nearest: {near or 'none'}")
        kept.update(names)
    return {name: symmetry for name, symmetry in found.items() if name in kept}
