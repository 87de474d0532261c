"""Batches of tokens, cut from a text."""

from __future__ import annotations

import codecs
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from basis_probe.cli.command import Refused


class Windows:
    """Batches [examples, length] of consecutive tokens of a text, led by its first token, if any.

    The text is read and cut into tokens as far as batches are asked for, and can be gone through
    again.

    Args:
        bridge: the model, whose tokenizer is used.
        path: of the text.
        length: tokens in one example.
        size: examples in one batch.

    Raises:
        Refused: for what is no text, or shorter than one example, or examples that are longer than
            the model's context.
    """

    def __init__(self, bridge: Any, path: Path, *, length: int, size: int) -> None:
        self.tokenizer, self.path, self.length, self.size = bridge.tokenizer, path, length, size
        context = getattr(getattr(bridge, "cfg", None), "n_ctx", None)
        if isinstance(context, int) and length > context:
            raise Refused(
                f"--length {length} is more than the {context} tokens of the model's context: give "
                f"--length {context} or less"
            )
        self._rows = torch.zeros(0, length, dtype=torch.int64)
        self._characters = 4 * length * size
        self._whole = False
        self._extend()

    def __iter__(self) -> Iterator[Tensor]:
        start = 0
        while True:
            while len(self._rows) < start + self.size and not self._whole:
                self._extend()
            batch = self._rows[start : start + self.size]
            if not len(batch):
                return
            yield batch.clone()
            start += self.size

    def _extend(self) -> None:
        """Reads twice as far as before, until there is an example more."""
        before, start = len(self._rows), self._characters
        while not self._whole and len(self._rows) == before:
            if self._characters - start > max(_BARREN, 64 * self.length):
                if not before:
                    raise Refused(
                        f"the first {self._characters:,} characters of {self.path} hold fewer "
                        f"tokens than one example of {self.length}: this is no text in words that "
                        "the model knows; give another, or a smaller --length"
                    )
                warnings.warn(
                    f"{self.path} is read to character {self._characters:,}: what stands there is "
                    "hardly a token to the model, and what follows is not used",
                    stacklevel=2,
                )
                self._whole = True
                return
            self._characters *= 2
            text, self._whole = read_text(self.path, self._characters)
            self._rows, count = self._cut(text)
            if self._whole and not len(self._rows):
                if count >= self.length:
                    raise Refused(
                        f"--length {self.length} holds the token that begins every example and "
                        "nothing of the text: give a larger --length"
                    )
                raise Refused(
                    f"the text has {count} tokens, fewer than one example of {self.length}; give a "
                    "longer text or a smaller --length"
                )

    def _cut(self, text: str) -> tuple[Tensor, int]:
        """The examples of a text, and how many tokens it has."""
        # It would warn of a text that is longer than the context, and it is cut just here.
        ids = list(self.tokenizer(text, verbose=False)["input_ids"])
        first = getattr(self.tokenizer, "bos_token_id", None)
        lead = [first] if first is not None and ids and ids[0] == first else []
        ids = ids[len(lead) :]
        # Where a text is broken off its last words are not those that it goes on with.
        ids = ids if self._whole else ids[:-_BROKEN]
        room = self.length - len(lead)
        if room < 1 or len(ids) < room:
            return torch.zeros(0, self.length, dtype=torch.int64), len(ids)
        count = len(ids) // room
        rows = torch.tensor(ids[: count * room], dtype=torch.int64).reshape(count, room)
        leads = torch.tensor(lead, dtype=torch.int64).expand(count, len(lead))
        return torch.cat([leads, rows], 1), len(ids)


_BROKEN = 64
"""So many tokens at the end of a text that was broken off are not used."""

_BARREN = 2**18
"""After so many characters without a further example a text is not read on."""

_STRANGE = 0.01
"""With a larger share of characters that are none a file is no text."""


def read_text(path: Path, most: int) -> tuple[str, bool]:
    """At most so many characters of the beginning of a text, and whether they are all.

    Raises:
        Refused: if the file holds no text.
    """
    with path.open("rb") as file:
        raw = file.read(most + 1)
    whole = len(raw) <= most
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    # A character that is cut through is left out.
    text = decoder.decode(raw[:most], final=whole).replace("\r\n", "\n").replace("\r", "\n")
    strange = text.count("\ufffd")
    if "\0" in text or strange > max(1, _STRANGE * len(text)):
        raise Refused(
            f"{path} is no text in UTF-8 (it holds bytes that no text does): give plain text, and "
            "turn other encodings into UTF-8 first, for example with iconv"
        )
    if strange:
        warnings.warn(f"{path} holds bytes that are not UTF-8; they were replaced", stacklevel=2)
    return text, whole
