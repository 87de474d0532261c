"""`basis-probe completion`: a script that lets a shell complete the commands."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from basis_probe.cli.command import Command, Status

if TYPE_CHECKING:
    from basis_probe.cli.screen import Screen

SHELLS = ("bash", "zsh", "tcsh")
FILES = ("FILE", "REPORT.json")
FOLDERS = ("MODEL", "FOLDER")


class CompletionCommand(Command):
    """Prints a completion script."""

    name = "completion"
    summary = "print a script with which a shell completes commands, options and file names"
    examples = (
        ('eval "$(basis-probe completion bash)"', "in this shell, or in ~/.bashrc"),
        (
            "basis-probe completion zsh > ~/.zfunc/_basis-probe",
            "for zsh, in a folder of its $fpath",
        ),
    )

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=", ".join(SHELLS))

    def run(self, parsed: argparse.Namespace, screen: Screen) -> Status:
        import shtab

        whole: argparse.ArgumentParser = parsed.parser
        for action in _actions(whole):
            if action.metavar in (*FILES, *FOLDERS):
                is_file = action.metavar in FILES
                # shtab looks for this attribute; argparse knows nothing of it.
                setattr(action, "complete", shtab.FILE if is_file else shtab.DIRECTORY)  # noqa: B010
        print(shtab.complete(whole, parsed.shell))
        return Status.DONE


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Every word that the parser takes, those of its commands too."""
    for action in parser._actions:  # pyright: ignore[reportPrivateUsage]
        yield action
        if isinstance(action, argparse._SubParsersAction):  # pyright: ignore[reportPrivateUsage]
            for inner in action.choices.values():
                yield from _actions(inner)
