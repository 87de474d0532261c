"""From the words of a command line to the command that they name."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence

from basis_probe.cli.calibrate import CalibrateCommand
from basis_probe.cli.command import STATUSES, Command, Refused, Status
from basis_probe.cli.compare import CompareCommand
from basis_probe.cli.completion import CompletionCommand
from basis_probe.cli.demo import DemoCommand
from basis_probe.cli.doctor import DoctorCommand
from basis_probe.cli.merge import MergeCommand
from basis_probe.cli.report import ReportCommand
from basis_probe.cli.screen import Screen, Voice
from basis_probe.cli.show import ShowCommand
from basis_probe.cli.symmetries import SymmetriesCommand
from basis_probe.interrupts import Ended, answering_signals, guarded

COMMANDS: tuple[Command, ...] = (
    DemoCommand(),
    ReportCommand(),
    MergeCommand(),
    SymmetriesCommand(),
    ShowCommand(),
    CompareCommand(),
    CalibrateCommand(),
    DoctorCommand(),
    CompletionCommand(),
)
"""Every command, in the order in which the help lists them."""

DESCRIPTION = "May a layer be read neuron by neuron, or are its axes arbitrary?"


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0 done, 1 broken on the way, 2 cannot be done, 130 interrupted.

    Args:
        arguments: the words of the command line; None for those of this process.

    Example:
        >>> main(["show", "nowhere.json"])
        2
    """
    from basis_probe.errors import StreamError

    parser = parser_of_all()
    parsed = parser.parse_args(arguments)
    parsed.parser = parser
    voice = Voice.PROGRAM if parsed.json else Voice.SILENT if parsed.quiet else Voice.READER
    screen = Screen.of(voice)
    command: Command = parsed.chosen

    def ended(error: BaseException, status: Status, hint: str = "") -> Status:
        if parsed.debug:
            raise error
        screen.complain(f"basis-probe {command.name}: {error}{hint}")
        return status

    guard = guarded()
    try:
        with answering_signals(), guard:
            status = int(command.run(parsed, screen))
            sys.stdout.flush()
        if status == Status.INTERRUPTED or (guard.late and not status):
            return 128 + (guard.number or signal.SIGINT)
        return status
    except BrokenPipeError:
        # Whoever read what was printed has seen enough. Nothing is left to be written at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(Status.DONE)
    except SystemExit as leaving:
        # A table that nobody reads on is no failure either, as which its printer takes it.
        if isinstance(leaving.__context__, BrokenPipeError):
            return int(Status.DONE)
        raise
    except StreamError as error:
        ended(error, Status.FAILED)
        told = error.__cause__
        return 128 + told.number if isinstance(told, Ended) else int(Status.FAILED)
    except (Refused, ValueError, TypeError, RuntimeError, OSError) as error:
        return int(ended(error, Status.REFUSED))
    except KeyboardInterrupt as stopped:
        when = "when all had been measured" if guard.gathered else "before anything was measured"
        screen.complain(f"interrupted {when}")
        return 128 + (stopped.number if isinstance(stopped, Ended) else signal.SIGINT)
    except Exception as error:
        hint = f" ({type(error).__name__}; --debug shows where it came from)"
        return int(ended(error, Status.FAILED, hint))


def parser_of_all() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="basis-probe",
        description=DESCRIPTION,
        epilog=_epilog(
            (
                ("basis-probe demo", "see a report in two minutes"),
                ("basis-probe report ./my-model --text corpus.txt", "probe a model of yours"),
                ("basis-probe COMMAND --help", "what a command takes, with examples"),
            )
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    _add_manners(parser, default=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        summary = command.summary
        inner = commands.add_parser(
            command.name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=_epilog(command.examples),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.arguments(inner)
        # They may stand before or after the command; where they are absent here, what was said
        # before the command stays.
        _add_manners(inner.add_argument_group("manners"), default=argparse.SUPPRESS)
        inner.set_defaults(chosen=command)
    return parser


def _add_manners(parser: argparse._ActionsContainer, *, default: bool | str) -> None:  # pyright: ignore[reportPrivateUsage]
    """Adds how a command speaks."""
    for word, meaning in (
        ("--json", "print one JSON value for a program, nothing else"),
        ("--quiet", "print nothing but errors"),
        ("--debug", "show where an error came from"),
    ):
        parser.add_argument(word, action="store_true", default=default, help=meaning)


def _epilog(examples: Sequence[tuple[str, str]]) -> str:
    lines = [line for words, says in examples for line in (f"  {words}", f"      {says}")]
    return "\n".join(["examples:", *lines, "", STATUSES] if examples else [STATUSES])


class _Version(argparse.Action):
    """Shows the installed version."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        import importlib.metadata

        try:
            version = importlib.metadata.version("basis-probe")
        except importlib.metadata.PackageNotFoundError:
            version = "(run from its sources, not installed)"
        print(f"basis-probe {version}")
        parser.exit()
