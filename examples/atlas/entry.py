"""What an entry of the atlas is, and what it says: numbers, tables, figures and its verdict."""

from __future__ import annotations

import dataclasses
import enum
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Missing(Exception):
    """What an entry needs and does not have, and how to get it."""


class NotSo(Exception):
    """A sentence of the page that the numbers of this run contradict."""


def span(values: Sequence[float], form: str) -> str:
    """The least and the greatest in that form, or one of them where they read the same."""
    least, most = format(min(values), form), format(max(values), form)
    return least if least == most else f"{least} to {most}"


class Verdict(enum.Enum):
    """What becomes of a claim under a null that holds its level."""

    HOLDS = "holds"
    PARTLY = "holds in part"
    OTHER_ORDER = "holds in another order"
    NOT_SEEN = "not seen"
    ARTEFACT = "artefact of the null"


@dataclasses.dataclass(frozen=True)
class Settings:
    """How an entry is run.

    Attributes:
        short: less data and fewer seeds, for tests; the central claims are the same.
        cache: where fetched packages and trained models are kept.
        fetch: whether packages may be fetched from the package index.
    """

    short: bool
    cache: pathlib.Path
    fetch: bool = False

    def of(self, whole: int, short: int) -> int:
        """A size in the form that is run."""
        return short if self.short else whole


@dataclasses.dataclass(frozen=True)
class Entry:
    """One published claim or several of one kind.

    Attributes:
        name: what it is called on the command line.
        title: the heading of its section.
        needs: models and data, in words.
        run: writes what it finds into the notes that it is given.
    """

    name: str
    title: str
    needs: str
    run: Callable[[Notes, Settings], None]


@dataclasses.dataclass(frozen=True)
class Row:
    """A claim in the table at the top of the page."""

    claim: str
    usual: str
    ours: str
    verdict: Verdict

    def line(self, link: str = "") -> str:
        """The row in Markdown, the claim a link where one is given."""
        claim = f"[{self.claim}]({link})" if link else self.claim
        return f"| {claim} | {self.usual} | {self.ours} | *{self.verdict.value}* |"


class Notes:
    """What an entry says, in order. Everything that comes on the page is printed as it is said."""

    def __init__(self, entry: Entry, folder: pathlib.Path) -> None:
        self.entry, self.folder = entry, folder
        self.parts: list[str] = []
        self.rows: list[Row] = []
        self.numbers: dict[str, float] = {}

    def say(self, text: str) -> None:
        """A paragraph."""
        self._add(" ".join(text.split()))

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table, its first column to the left."""
        ruled = "|---|" + "---:|" * (len(header) - 1)
        lines = ["| " + " | ".join(row) + " |" for row in (header, *rows)]
        self._add("\n".join([lines[0], ruled, *lines[1:]]))

    def figure(self, figure: Figure, name: str, caption: str) -> None:
        """A figure of modest size, and under it what it shows."""
        file = f"{self.entry.name}-{name}.png"
        figure.savefig(self.folder / file, dpi=100)
        self._add(f"![{caption}]({self.folder.name}/{file})\n\n*{caption}*")

    def number(self, name: str, value: float) -> float:
        """Keeps a number under a name, for whoever checks what is said."""
        self.numbers[name] = float(value)
        return value

    def row(self, claim: str, usual: str, ours: str, verdict: Verdict) -> None:
        """What comes into the table at the top of the page."""
        if "|" in claim + usual + ours:
            raise ValueError(f"a row of {self.entry.name} holds a bar, which ends a cell")
        self.rows.append(Row(claim, usual, ours, verdict))
        print(self.rows[-1].line(), flush=True)

    def holds(self, sentence: str, so: bool) -> None:
        """Stops the entry where the numbers contradict what its text says of them."""
        print(f"[{'so' if so else 'NOT SO'}] {sentence}", flush=True)
        if not so:
            raise NotSo(f"{self.entry.name} says {sentence!r}, and in this run that is not so")

    def _add(self, part: str) -> None:
        self.parts.append(part)
        print(part, end="\n\n", flush=True)

    def save(self, *, short: bool, about: Mapping[str, str]) -> None:
        """Writes what was said beside the figures."""
        kept = {
            "title": self.entry.title,
            "needs": self.entry.needs,
            "short": short,
            "about": dict(about),
            "rows": [{**dataclasses.asdict(row), "verdict": row.verdict.name} for row in self.rows],
            "numbers": self.numbers,
            "parts": self.parts,
        }
        text = json.dumps(kept, indent=1, ensure_ascii=False) + "\n"
        (self.folder / f"{self.entry.name}.json").write_text(text, encoding="utf-8")


@dataclasses.dataclass(frozen=True)
class Section:
    """What an entry said, read back from its file."""

    name: str
    title: str
    needs: str
    short: bool
    about: Mapping[str, str]
    rows: tuple[Row, ...]
    parts: tuple[str, ...]

    @classmethod
    def load(cls, path: pathlib.Path) -> Section:
        """The section in that file."""
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        rows = tuple(Row(**{**row, "verdict": Verdict[row["verdict"]]}) for row in kept["rows"])
        return cls(
            name=path.stem,
            title=kept["title"],
            needs=kept["needs"],
            short=kept["short"],
            about=kept["about"],
            rows=rows,
            parts=tuple(kept["parts"]),
        )
