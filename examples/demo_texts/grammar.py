"""Short documents from a small grammar whose every concept is known, token by token.

The grammar writes stories, calendars, sums, nested brackets and lines of code. It knows what it is
writing while it writes, so each token carries the names of the concepts that it belongs to
(`CONCEPTS`). All chance passes through `random.Random(seed).random()`, whose sequence Python
guarantees for a seed, so a seed means the same documents on every machine.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from demo_texts.lexicon import vocabulary as vocabulary
from demo_texts.sentences import LONGEST_SENTENCE, THEMES
from demo_texts.writing import CONCEPTS as CONCEPTS
from demo_texts.writing import Document as Document
from demo_texts.writing import Writer

SHORTEST, LONGEST = 30, 120


def documents(n: int, seed: int) -> Iterator[Document]:
    """`n` documents, the same for the same seed; those of a smaller `n` are the first of a larger.

    Args:
        n: how many, at least 0.
        seed: at least 0.

    Raises:
        ValueError: if `n` or `seed` is negative.

    Example:
        >>> [document] = documents(1, 3)
        >>> 30 <= len(document.tokens) <= 120
        True
        >>> all(document.tokens[i].istitle() for i in document.concepts["name"])
        True
    """
    for given, name in ((n, "n"), (seed, "seed")):
        if given < 0:
            raise ValueError(f"{name}={given}: needs 0 or more; pass another {name}")
    source = random.Random(seed)
    return (_document(source) for _ in range(n))


def _document(source: random.Random) -> Document:
    writer = Writer(source)
    theme = writer.pick(THEMES)
    while len(writer) < SHORTEST or (
        len(writer) <= LONGEST - LONGEST_SENTENCE and not writer.chance(0.15)
    ):
        writer.pick(theme)(writer)
    return writer.document()


def labelled(n: int, seed: int) -> list[Document]:
    """`n` documents with their tokens and the positions of every concept.

    Args:
        n: how many, at least 0.
        seed: at least 0.

    Raises:
        ValueError: if `n` or `seed` is negative.

    Example:
        >>> document = labelled(1, 0)[0]
        >>> all(document.tokens[i] in "([{" for i in document.concepts["opening bracket"])
        True
    """
    return list(documents(n, seed))


def texts(n: int, seed: int) -> list[str]:
    """`n` documents as running text, 30 to 120 tokens each.

    Args:
        n: how many, at least 0.
        seed: at least 0.

    Raises:
        ValueError: if `n` or `seed` is negative.

    Example:
        >>> texts(2, 0) == texts(3, 0)[:2]
        True
    """
    return [document.text for document in documents(n, seed)]
