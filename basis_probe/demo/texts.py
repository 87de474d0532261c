"""Short documents whose every concept is known, token by token.

A grammar wrote them: stories, calendars, sums, nested brackets and lines of code. It knew what it
was writing, so each token carries the names of the concepts that it belongs to. The documents come
with the package; the grammar stands beside the script that trained the model, in the sources of
the package under `examples/demo_texts`.
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
import importlib.resources
import json
import random
import re
from typing import Any

CONCEPTS: dict[str, str] = {
    "digit": "a decimal digit, in any context",
    "number word": "a number in letters: three, twelve, twenty",
    "operator": "one of + - * = > < between numbers or variables, or the word for it",
    "result": "what a sum, a count, a question of dates or a line of code comes to",
    "arithmetic": "any token of an arithmetic sentence",
    "date": "any token of a date",
    "year": "a digit of a year",
    "month": "the name of a month",
    "weekday": "the name of a day of the week",
    "opening bracket": "one of ( [ {",
    "closing bracket": "one of ) ] }",
    "depth 1": "a token directly inside one bracket, in any context",
    "depth 2": "a token directly inside two brackets",
    "depth 3": "a token directly inside three brackets",
    "name": "the name of a person",
    "place": "the name of a city",
    "pronoun": "he, she, they, him, her, them",
    "feminine": "a name or pronoun of a woman",
    "masculine": "a name or pronoun of a man",
    "animal": "an animal, singular or plural",
    "food": "something to eat, singular or plural",
    "thing": "an object, singular or plural",
    "singular noun": "a noun in the singular",
    "plural noun": "a noun in the plural",
    "colour": "a colour",
    "adjective": "an adjective that is not a colour",
    "verb": "a full verb, in any form",
    "past": "a verb or auxiliary in the past tense",
    "present": "a verb or auxiliary in the present tense",
    "future": "will, and the verb that it governs",
    "negation": "not, no, never",
    "question": "any token of a question, its mark included",
    "quote": "any token between quotation marks",
    "list": "any token of an enumeration",
    "code": "any token of a line of code",
    "variable": "a variable in a line of code",
    "keyword": "a keyword of the code: let, if, else, for, in, def, return, print, range, assert",
    "comment": "any token of a comment in the code",
    "sentence end": "a full stop or question mark that ends a sentence",
}
"""Every concept that a token can carry, and what it means."""


@dataclasses.dataclass(frozen=True, slots=True)
class Document:
    """One document: its tokens, its text, and where each concept is.

    Attributes:
        tokens: the words, digits and marks, in order, without any special token.
        text: the same as running text; a tokenizer that splits at spaces, marks and digits gives
            back `tokens`.
        concepts: for every name of `CONCEPTS`, the positions in `tokens` that carry it. A
            tokenizer that puts a beginning-of-text token in front moves them by one.
    """

    tokens: tuple[str, ...] = dataclasses.field(repr=False)
    text: str
    concepts: dict[str, frozenset[int]] = dataclasses.field(repr=False)


_TOKEN = re.compile(r"[A-Za-z]+|\S")


@functools.cache
def _shipped() -> dict[str, Any]:
    folder = importlib.resources.files(__package__ or __name__)
    return json.loads(gzip.decompress((folder / "texts.json.gz").read_bytes()))


def labelled(n: int, seed: int = 1) -> list[Document]:
    """`n` of the 3,072 documents, with their tokens and the positions of every concept.

    Args:
        n: how many, from 0 to 3,072.
        seed: 1 for the first `n`; any other, at least 0, for `n` of them in a random order. Those
            of a smaller `n` are the first of a larger. The model was trained on none of them.

    Raises:
        ValueError: if there are not so many documents, or `n` or `seed` is negative.

    Example:
        >>> [document] = labelled(1)
        >>> all(document.tokens[i].istitle() for i in document.concepts["name"])
        True
    """
    sets = _shipped()["sets"]
    found: list[Document] = []
    for text, places in _chosen(n, seed):
        where: dict[str, set[int]] = {name: set() for name in CONCEPTS}
        for place, carried in enumerate(places):
            for name in sets[carried]:
                where[name].add(place)
        fixed = {name: frozenset(positions) for name, positions in where.items()}
        found.append(Document(tuple(_TOKEN.findall(text)), text, fixed))
    return found


def texts(n: int, seed: int = 1) -> list[str]:
    """`n` of the 3,072 documents as running text, 30 to 120 tokens each; see `labelled`.

    Example:
        >>> texts(2) == texts(3)[:2]
        True
    """
    return [text for text, _ in _chosen(n, seed)]


def _chosen(n: int, seed: int) -> list[tuple[str, list[int]]]:
    for given, name in ((n, "n"), (seed, "seed")):
        if given < 0:
            raise ValueError(f"{name}={given}: needs 0 or more; pass another {name}")
    documents = _shipped()["documents"]
    if n > len(documents):
        raise ValueError(
            f"n={n}: {len(documents)} documents come with the package; ask for at most so many"
        )
    if seed != 1:
        source = random.Random(seed)
        # The sequence of `random()` is guaranteed for a seed, that of `shuffle` is not.
        documents = sorted(documents, key=lambda _: source.random())
    return documents[:n]
