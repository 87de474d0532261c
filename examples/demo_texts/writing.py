"""A document while it is written: its tokens, what each of them is, and the chances taken."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import random
from collections.abc import Generator, Sequence
from typing import TypeVar

from basis_probe.demo import CONCEPTS as CONCEPTS
from demo_texts.lexicon import MEN, TENSES, WOMEN

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, slots=True)
class Document:
    """One document: its tokens, its text, and where each concept is.

    Attributes:
        tokens: the words, digits and marks, in order, without any special token.
        text: the same as running text; a tokenizer that splits at spaces, marks and digits gives
            back `tokens`.
        concepts: for every name of `CONCEPTS`, the positions in `tokens` that carry it. A tokenizer
            that puts a beginning-of-text token in front moves them by one.
        surprisal: minus the log-probability, in nats, of the choices that led to the document.
    """

    tokens: tuple[str, ...]
    text: str
    concepts: dict[str, frozenset[int]]
    surprisal: float


@dataclasses.dataclass(frozen=True, slots=True)
class Person:
    """Who a document is about."""

    name: str
    pronoun: str
    object_pronoun: str
    gender: str


class Writer:
    """The tokens written so far, with the concepts of each and the chances taken.

    Args:
        source: the only source of chance.
    """

    def __init__(self, source: random.Random) -> None:
        """Starts an empty document."""
        self._source = source
        self._active: list[str] = []
        self._depth = 0
        self._glue_next = True
        self._marks: list[tuple[str, frozenset[str], bool]] = []
        self.surprisal = 0.0

    @functools.cached_property
    def person(self) -> Person:
        """Who the document is about, drawn when first mentioned."""
        return self.someone(woman=self.chance(0.5))

    @functools.cached_property
    def other(self) -> Person:
        """The second person, of the other gender, drawn when first mentioned."""
        return self.someone(woman=self.person.gender == "masculine")

    @functools.cached_property
    def tense(self) -> str:
        """The tense of the document's narration, drawn when first needed."""
        return self.pick(TENSES)

    def __len__(self) -> int:
        """The number of tokens written."""
        return len(self._marks)

    def pick(self, options: Sequence[T]) -> T:
        """One of `options`, each place equally likely: what stands twice comes twice as often."""
        chosen = options[int(self._source.random() * len(options))]
        self.surprisal += math.log(len(options) / options.count(chosen))
        return chosen

    def number(self, low: int, high: int) -> int:
        """An integer between `low` and `high`, both included, each equally likely."""
        return self.pick(range(low, high + 1))

    def chance(self, probability: float) -> bool:
        """True with the probability given."""
        hit = self._source.random() < probability
        self.surprisal -= math.log(probability if hit else 1.0 - probability)
        return hit

    def someone(self, *, woman: bool) -> Person:
        """A person of the gender asked for."""
        if woman:
            return Person(self.pick(WOMEN), "she", "her", "feminine")
        return Person(self.pick(MEN), "he", "him", "masculine")

    @contextlib.contextmanager
    def within(self, *concepts: str) -> Generator[None, None, None]:
        """Every token written inside carries `concepts` too."""
        self._active.extend(concepts)
        try:
            yield
        finally:
            del self._active[len(self._active) - len(concepts) :]

    def say(self, words: str, *concepts: str) -> None:
        """Appends the words of a string, one token each."""
        for word in words.split():
            self._append(word, concepts, glued=False)

    def mark(self, mark: str, *concepts: str) -> None:
        """Appends a mark that stands against the word before it."""
        self._append(mark, concepts, glued=True)

    def digits(self, value: int, *concepts: str) -> None:
        """Appends a number, one token a digit."""
        for place, digit in enumerate(str(value)):
            self._append(digit, ("digit", *concepts), glued=place > 0)

    def opening(self, bracket: str, *, glued: bool = False) -> None:
        """Appends an opening bracket; what follows lies one level deeper."""
        self._append(bracket, ("opening bracket",), glued=glued)
        self._depth += 1
        self._glue_next = True

    def closing(self, bracket: str) -> None:
        """Appends a closing bracket."""
        self._depth -= 1
        self._append(bracket, ("closing bracket",), glued=True)

    @contextlib.contextmanager
    def quotation(self) -> Generator[None, None, None]:
        """What is written inside stands between quotation marks."""
        self.say('"')
        self._glue_next = True
        with self.within("quote"):
            yield
        self.mark('"')

    def end(self) -> None:
        """Appends the full stop of a sentence."""
        self.mark(".", "sentence end")

    def document(self) -> Document:
        """What was written."""
        places: dict[str, set[int]] = {name: set() for name in CONCEPTS}
        pieces: list[str] = []
        for position, (word, concepts, glued) in enumerate(self._marks):
            pieces.append(word if glued else " " + word)
            for concept in concepts:
                places[concept].add(position)
        return Document(
            tokens=tuple(word for word, _, _ in self._marks),
            text="".join(pieces),
            concepts={name: frozenset(found) for name, found in places.items()},
            surprisal=self.surprisal,
        )

    def _append(self, word: str, concepts: Sequence[str], *, glued: bool) -> None:
        depth = (f"depth {self._depth}",) if self._depth else ()
        self._marks.append(
            (word, frozenset((*self._active, *depth, *concepts)), glued or self._glue_next)
        )
        self._glue_next = False
