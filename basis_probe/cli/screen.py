"""What a command shows: tables for a reader, JSON for a program, or nothing at all."""

from __future__ import annotations

import dataclasses
import enum
import json
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from basis_probe.errors import clean

if TYPE_CHECKING:
    from rich.console import Console, RenderableType


_NARROWEST = 20
"""Columns at least, whatever the terminal says."""


class Voice(enum.Enum):
    """For whom a command speaks."""

    READER = "tables and sentences"
    PROGRAM = "one JSON value on standard output"
    SILENT = "nothing but errors"


@dataclasses.dataclass(frozen=True)
class Screen:
    """Standard output and standard error, and for whom they are.

    Attributes:
        voice: for whom the command speaks.
        output, errors: where results and complaints go.
    """

    voice: Voice
    output: Console
    errors: Console

    @staticmethod
    def of(voice: Voice) -> Screen:
        """The screen of this process."""
        from rich.console import Console

        output, errors = Console(), Console(stderr=True)
        # Nobody folds lines again that were folded for a terminal that is not there.
        width = max(output.width, _NARROWEST) if output.is_terminal else 200
        # Nothing at all is shown in no columns.
        folded = max(errors.width, _NARROWEST)
        return Screen(voice, Console(width=width), Console(stderr=True, width=folded))

    @property
    def draws_progress(self) -> bool:
        """Whether somebody is there to watch a bar grow."""
        return self.voice is not Voice.SILENT and sys.stderr.isatty()

    def show(self, what: RenderableType) -> None:
        """Shows a table or a text to a reader."""
        if self.voice is Voice.READER:
            self.output.print(what)

    def say(self, line: str) -> None:
        """Says one line to a reader; nothing in it is read as markup."""
        if self.voice is Voice.READER:
            self.output.print(clean(line), markup=False, highlight=False)

    def give(self, value: Any) -> None:
        """Hands a value to a program: text that is JSON already, or anything that JSON can hold."""
        if self.voice is Voice.PROGRAM:
            print(value if isinstance(value, str) else json.dumps(value, indent=1))

    def complain(self, line: str) -> None:
        """Says what is wrong, whoever listens."""
        self.errors.print(clean(line), style="red", markup=False, highlight=False)

    def waiting(self, what: str) -> AbstractContextManager[object]:
        """A sign of life on a terminal while something takes its time."""
        return self.output.status(what) if self.voice is Voice.READER else nullcontext()
