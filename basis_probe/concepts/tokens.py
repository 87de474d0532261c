"""Concepts that need no labels: what a tokenizer's tokens look like, and where they stand."""

import dataclasses
import functools
import re
import unicodedata
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from basis_probe.arguments import array_of
from basis_probe.brief import described

_SPACES = ("Ġ", "▁", " ")
_CONTINUES = "##"
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SCRIPTS = (
    "LATIN", "CYRILLIC", "GREEK", "ARABIC", "HEBREW", "DEVANAGARI", "THAI", "HANGUL", "CJK",
    "HIRAGANA", "KATAKANA",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Piece:
    """A token as a reader sees it.

    Attributes:
        text: its characters, without the mark of a leading space.
        starts: True if a word may start with it.
        special: True for a token that stands for no text.
    """

    text: str
    starts: bool
    special: bool


def pieces(tokenizer: Any) -> tuple[Piece, ...]:
    """Every token of a tokenizer's vocabulary, by id.

    Args:
        tokenizer: a Hugging Face tokenizer, or anything with `convert_ids_to_tokens` and `len`.

    Raises:
        TypeError: if it cannot say what its tokens are.
    """
    convert = getattr(tokenizer, "convert_ids_to_tokens", None)
    if convert is None:
        raise TypeError(
            f"a {type(tokenizer).__name__} cannot say what its tokens are: give a tokenizer with "
            "convert_ids_to_tokens, as Hugging Face tokenizers have"
        )
    special: set[int] = set(getattr(tokenizer, "all_special_ids", ()))
    raw = [str(token) for token in convert(list(range(len(tokenizer))))]
    continues = any(token.startswith(_CONTINUES) for token in raw)
    marked = any(token.startswith(_SPACES) for token in raw)
    to_text = getattr(tokenizer, "convert_tokens_to_string", None)
    found: list[Piece] = []
    for place, token in enumerate(raw):
        if continues:
            starts, text = not token.startswith(_CONTINUES), token.removeprefix(_CONTINUES)
        else:
            starts, text = token.startswith(_SPACES) or not marked, token
        # Bytes behind their own alphabet are put back; what is no text alone stays as it is.
        if to_text is not None and not continues and place not in special:
            made = str(to_text([token]))
            text = token if "\ufffd" in made else made
        byte = _BYTE.fullmatch(token)
        if byte is not None:
            # A byte that is no character by itself is shown as what it stands for.
            text = chr(int(byte[1], 16)) if int(byte[1], 16) < 128 else "\ufffd"
        found.append(Piece(text.lstrip(" ▁Ġ") or text, starts, place in special))
    return tuple(found)


def _length(low: int, high: int) -> Callable[[Piece], bool]:
    return lambda piece: low <= len(piece.text) <= high


def _script(name: str) -> Callable[[Piece], bool]:
    def written(piece: Piece) -> bool:
        letters = [character for character in piece.text if character.isalpha()]
        return bool(letters) and all(
            unicodedata.name(letter, "").startswith(name) for letter in letters
        )

    return written


CLASSES: dict[str, Callable[[Piece], bool]] = {
    "word start": lambda piece: piece.starts and piece.text[:1].isalnum(),
    "word continued": lambda piece: not piece.starts and piece.text[:1].isalpha(),
    "capitalised": lambda piece: piece.text[:1].isupper() and not piece.text[1:].isupper(),
    "all capitals": lambda piece: len(piece.text) > 1 and piece.text.isupper(),
    "lower case": lambda piece: piece.text.isalpha() and piece.text.islower(),
    "digit": lambda piece: any(character.isdigit() for character in piece.text),
    "punctuation": lambda piece: (
        bool(piece.text)
        and all(unicodedata.category(character)[0] in "PS" for character in piece.text)
    ),
    "sentence mark": lambda piece: piece.text in {".", "!", "?"},
    "comma": lambda piece: piece.text == ",",
    "quotation mark": lambda piece: piece.text in {'"', "'", "“", "”", "\u2018", "\u2019"},
    "bracket": lambda piece: bool(piece.text) and all(c in "()[]{}<>" for c in piece.text),
    "newline": lambda piece: "\n" in piece.text,
    "one character": _length(1, 1),
    "2 or 3 characters": _length(2, 3),
    "4 to 6 characters": _length(4, 6),
    "7 characters or more": _length(7, 10**9),
    **{f"{name.lower()} script": _script(name) for name in _SCRIPTS},
}
"""What can be said of a token by itself: name -> test."""

_AROUND = ("word start", "capitalised", "digit", "punctuation", "sentence mark", "comma")
"""Classes of which it is also asked whether the previous or the next token belongs to them."""

_POSITIONS = ((0, 0), (1, 3), (4, 15), (16, 63), (64, 255), (256, 10**9))


class TokenConcepts:
    """Concepts of token ids: by the token, by the ones around it, and by the place in the text.

    Among them: leading space, case, digits, punctuation, length, script, frequency band, position,
    repetition, the classes of the previous and of the next token. Special tokens carry none but
    their position.

    Args:
        tokenizer: a Hugging Face tokenizer.
        counts: how often each token occurs in some corpus, [vocabulary]; None for no frequency
            bands.

    Raises:
        TypeError, ValueError: for a tokenizer that does not name its tokens, or counts that do not
            fit it.
    """

    def __init__(self, tokenizer: Any, counts: Tensor | None = None) -> None:
        self.pieces = pieces(tokenizer)
        self.counts: Tensor | None = None
        if counts is None:
            return
        given = array_of("counts", counts, "how often each token occurs, or None")
        if given.shape != (len(self.pieces),):
            raise ValueError(
                f"counts has shape {given.shape} and the tokenizer {len(self.pieces)} tokens: "
                "count every token id, with zeros for those that do not occur"
            )
        if given.dtype.kind in "US" or not (given >= 0).all():
            raise ValueError(f"counts={described(given)}: give numbers of at least 0")
        self.counts = torch.from_numpy(given.astype(np.float64))

    @functools.cached_property
    def classes(self) -> dict[str, Bool[Tensor, " vocabulary"]]:
        """Name -> which tokens belong to the class; classes of no token are left out."""
        found: dict[str, Tensor] = {}
        for name, belongs in CLASSES.items():
            flags = torch.tensor([not piece.special and belongs(piece) for piece in self.pieces])
            if bool(flags.any()):
                found[name] = flags
        return found | self._bands()

    def _bands(self) -> dict[str, Tensor]:
        """Four bands of frequency, each with a quarter of all occurrences."""
        if self.counts is None:
            return {}
        order = self.counts.argsort(descending=True, stable=True)
        sorted_counts = self.counts[order].double()
        # What the more frequent tokens have together of all occurrences.
        before = (sorted_counts.cumsum(0) - sorted_counts) / sorted_counts.sum().clamp(min=1)
        bands: dict[str, Tensor] = {}
        for quarter, name in enumerate(("commonest", "common", "rare", "rarest")):
            inside = (before >= quarter / 4) & (before < (quarter + 1) / 4) & (sorted_counts > 0)
            flags = torch.zeros(len(self.pieces), dtype=torch.bool)
            flags[order] = inside
            if bool(flags.any()):
                bands[f"frequency: {name} quarter"] = flags
        return bands

    def __call__(
        self, ids: Int64[Tensor, "batch positions"], mask: Tensor | None = None
    ) -> dict[str, Bool[Tensor, "batch positions"]]:
        """Name -> which tokens of a batch carry the concept.

        Args:
            ids: token ids.
            mask: where a token counts; None if all do.
        """
        ids = ids.detach().cpu()
        counts = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.detach().cpu() > 0
        if int(ids.max()) >= len(self.pieces):
            raise ValueError(
                f"a token id is {int(ids.max())} and the tokenizer has {len(self.pieces)} tokens: "
                "give the tokenizer that made these ids"
            )
        found: dict[str, Tensor] = {}
        for name, belongs in self.classes.items():
            flags = belongs[ids] & counts
            found[name] = flags
            if name in _AROUND:
                before, after = torch.zeros_like(flags), torch.zeros_like(flags)
                before[:, 1:], after[:, :-1] = flags[:, :-1], flags[:, 1:]
                found[f"after: {name}"] = before & counts
                found[f"before: {name}"] = after & counts
        place = counts.long().cumsum(1) - 1
        for low, high in _POSITIONS:
            name = f"position {low}" if low == high else f"position {low} to {high}"
            name = f"position {low} and on" if high == 10**9 else name
            found[name] = (place >= low) & (place <= high) & counts
        found["repeated token"] = _repeated(ids, counts)
        same = torch.zeros_like(counts)
        same[:, 1:] = (ids[:, 1:] == ids[:, :-1]) & counts[:, 1:] & counts[:, :-1]
        found["same as the previous token"] = same
        return found


def _repeated(ids: Tensor, counts: Tensor) -> Tensor:
    """True where the same token stood earlier in the example."""
    masked = torch.where(counts, ids, -1)
    order = masked.sort(dim=1, stable=True)
    again = torch.zeros_like(counts)
    again[:, 1:] = order.values[:, 1:] == order.values[:, :-1]
    return torch.zeros_like(counts).scatter(1, order.indices, again) & counts


def token_concepts(tokenizer: Any, *, counts: Tensor | None = None) -> TokenConcepts:
    """The concepts of a tokenizer's tokens, as `dissect` takes them.

    Args:
        tokenizer: a Hugging Face tokenizer.
        counts: how often each token occurs, [vocabulary]; gives four bands of frequency.

    Example:
        >>> import torch
        >>> class Letters:
        ...     def __len__(self): return 3
        ...     def convert_ids_to_tokens(self, ids): return [["Ġthe", ".", "7"][i] for i in ids]
        >>> concepts = token_concepts(Letters())
        >>> concepts(torch.tensor([[0, 2, 1]]))["before: digit"]
        tensor([[ True, False, False]])
    """
    return TokenConcepts(tokenizer, counts)
