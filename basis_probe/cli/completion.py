"""`basis-probe completion`: a script that lets a shell complete the commands."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from basis_probe.cli.command import Command, Status

if TYPE_CHECKING:
    from basis_probe.cli.screen import Screen

SHELLS = ("bash", "zsh", "tcsh", "fish")
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
        (
            "basis-probe completion fish > ~/.config/fish/completions/basis-probe.fish",
            "for fish",
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
        if parsed.shell == "fish":
            print("\n".join(_fish(whole)))
        else:
            print(shtab.complete(whole, parsed.shell))
        return Status.DONE


def _fish(parser: argparse.ArgumentParser) -> Iterator[str]:
    """The lines of a script for fish, which shtab does not write."""
    program = parser.prog
    yield f"# complete -c {program}: save as ~/.config/fish/completions/{program}.fish"
    yield f"complete -c {program} -f"
    yield from _options(program, parser, "__fish_use_subcommand")
    for action in parser._actions:  # pyright: ignore[reportPrivateUsage]
        if not isinstance(action, argparse._SubParsersAction):  # pyright: ignore[reportPrivateUsage]
            continue
        about = {choice.dest: choice.help or "" for choice in action._choices_actions}  # pyright: ignore[reportPrivateUsage]
        for name, inner in action.choices.items():
            told = _quoted(about.get(name, ""))
            yield f"complete -c {program} -n __fish_use_subcommand -a {name} -d {told}"
            yield from _options(program, inner, f"'__fish_seen_subcommand_from {name}'")


def _options(program: str, parser: argparse.ArgumentParser, when: str) -> Iterator[str]:
    for action in parser._actions:  # pyright: ignore[reportPrivateUsage]
        words = [f"-l {word[2:]}" for word in action.option_strings if word.startswith("--")]
        words += [f"-s {word[1:]}" for word in action.option_strings if not word.startswith("--")]
        if isinstance(action, argparse._SubParsersAction) or (  # pyright: ignore[reportPrivateUsage]
            not words and action.metavar not in (*FILES, *FOLDERS) and not action.choices
        ):
            continue
        if action.nargs != 0 and words:
            words.append("-r")
        if action.metavar in (*FILES, *FOLDERS):
            words.append("-F")
        elif action.choices:
            words.append(f"-a {_quoted(' '.join(map(str, action.choices)))}")
        told = (action.help or "").replace("%%", "%")
        yield f"complete -c {program} -n {when} {' '.join(words)} -d {_quoted(told)}"


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Every word that the parser takes, those of its commands too."""
    for action in parser._actions:  # pyright: ignore[reportPrivateUsage]
        yield action
        if isinstance(action, argparse._SubParsersAction):  # pyright: ignore[reportPrivateUsage]
            for inner in action.choices.values():
                yield from _actions(inner)
