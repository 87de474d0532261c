"""What a command is, and how a command ends."""

from __future__ import annotations

import abc
import argparse
import enum
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from basis_probe.cli.screen import Screen


class Status(enum.IntEnum):
    """How a command ended, as the number that a shell sees."""

    DONE = 0
    FAILED = 1
    """It broke on the way; what was gathered until then is written."""
    REFUSED = 2
    """What was asked for cannot be done."""
    INTERRUPTED = 130
    """The user stopped it; what was gathered until then is written."""


STATUSES = """exit status:
  0    done
  1    it broke on the way; what was gathered until then is written
  2    what was asked for cannot be done
  130  interrupted; what was gathered until then is written
  143  told to end (SIGTERM; 129 for SIGHUP); what was gathered until then is written"""
"""The same for readers."""


class Refused(Exception):
    """What the user asked for cannot be done, and why."""


class Command(abc.ABC):
    """One command: what it is called, which words it takes, what it does.

    Attributes:
        name: the word after `basis-probe`.
        summary: what it does, in half a sentence without a full stop.
        examples: lines to type, with what they do.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    examples: ClassVar[tuple[tuple[str, str], ...]] = ()

    @abc.abstractmethod
    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds the words that the command takes."""

    @abc.abstractmethod
    def run(self, parsed: argparse.Namespace, screen: Screen) -> Status:
        """How the command ended, once it has.

        Raises:
            Refused: if what was asked for cannot be done.
        """
