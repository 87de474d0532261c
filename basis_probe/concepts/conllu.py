"""Part of speech, dependency and features of real text, carried from words over to tokens."""

import dataclasses
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from basis_probe import arguments
from basis_probe.brief import described

_FIELDS = 10
_NUMBER = re.compile(r"\d{1,9}(-\d{1,9}|\.\d{1,9})?", re.ASCII)


@dataclasses.dataclass(frozen=True)
class Word:
    """A word of a sentence, and which characters of the text it covers.

    Attributes:
        form: as written.
        start, end: its characters in the text.
        upos: universal part of speech: NOUN, VERB ...
        deprel: its dependency, subtypes left out: nsubj, obj ...
        feats: its features: "Number=Plur" ...
    """

    form: str
    start: int
    end: int
    upos: str
    deprel: str
    feats: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Sentence:
    """A sentence of a treebank."""

    text: str
    words: tuple[Word, ...]


def read_conllu(path: str | pathlib.Path) -> list[Sentence]:
    """The sentences of a CoNLL-U file, every word with its place in the text.

    Words that share one written form (don't = do + n't) each cover all of it; empty nodes are left
    out.

    Raises:
        OSError: if the file cannot be read.
        ValueError: for what is no text in UTF-8; a line that is not CoNLL-U, with its number; or a
            word that is not in its sentence's text.
    """
    sentences: list[Sentence] = []
    text: str | None = None
    rows: list[list[str]] = []
    file = pathlib.Path(arguments.path("path", path))
    try:
        whole = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is no text in UTF-8 ({error.reason} at byte {error.start:,}): give a CoNLL-U "
            "file, turned into UTF-8 first where it has another encoding"
        ) from error
    except (OSError, ValueError) as error:
        raise OSError(f"{described(str(path))} cannot be read: {error.args[-1]}") from error
    for number, line in enumerate([*whole.split("\n"), ""], start=1):
        if line.startswith("# text = "):
            text = line.removeprefix("# text = ")
        elif line.strip() and not line.startswith("#"):
            fields = line.split("\t")
            if len(fields) != _FIELDS:
                raise ValueError(
                    f"line {number} has {len(fields)} fields: CoNLL-U has {_FIELDS}, between tabs"
                )
            if _NUMBER.fullmatch(fields[0]) is None:
                raise ValueError(
                    f"line {number} is of word {described(fields[0])}: CoNLL-U numbers words as 1, "
                    "several of one form as 2-3, and empty nodes as 3.1"
                )
            rows.append(fields)
        elif not line.strip() and rows:
            sentences.append(_sentence(text, rows, number))
            text, rows = None, []
    return sentences


def _sentence(text: str | None, rows: list[list[str]], number: int) -> Sentence:
    if text is None:
        text = "".join(_spaced(rows))
    words: list[Word] = []
    reached, shared_until, shared = 0, 0, (0, 0)
    for fields in rows:
        name, form = fields[0], fields[1]
        if "." in name:
            continue
        first = int(name.split("-")[0])
        if first > shared_until:
            start = text.find(form, reached)
            if start < 0:
                raise ValueError(
                    f"the sentence before line {number} has the word {described(form)}, which its "
                    f"text {text[:60]!r} does not hold: give a file whose text and words agree"
                )
            reached = start + len(form)
            span = (start, reached)
        else:
            span = shared
        if "-" in name:
            shared, shared_until = span, int(name.split("-")[1])
            continue
        feats = () if fields[5] == "_" else tuple(fields[5].split("|"))
        words.append(Word(form, *span, fields[3], fields[7].split(":")[0], feats))
    return Sentence(text, tuple(words))


def _spaced(rows: list[list[str]]) -> Iterator[str]:
    covered = 0
    for fields in rows:
        if "." in fields[0] or int(fields[0].split("-")[0]) <= covered:
            continue
        if "-" in fields[0]:
            covered = int(fields[0].split("-")[1])
        yield fields[1]
        if "SpaceAfter=No" not in fields[9].split("|"):
            yield " "


@dataclasses.dataclass(frozen=True, eq=False)
class Annotated:
    """Sentences as tokens with their concepts, as `dissect` takes both.

    Attributes:
        batches: dicts of input_ids and attention_mask, padded on the right.
        concepts: name -> one bool tensor for every sentence, one entry a token.
    """

    batches: tuple[dict[str, Tensor], ...]
    concepts: dict[str, list[Tensor]]


def annotated(
    sentences: Sequence[Sentence], tokenizer: Any, *, batch_size: int = 32, longest: int = 512
) -> Annotated:
    """The sentences as batches of tokens, with part of speech, dependency and features as concepts.

    A token carries what the word carries that its first character (past spaces) lies in; special
    tokens carry nothing.

    Args:
        sentences: from `read_conllu`.
        tokenizer: a tokenizer that returns offsets: a fast one of Hugging Face.
        batch_size: sentences a batch.
        longest: longer sentences are cut after so many tokens.

    Raises:
        TypeError: if the tokenizer does not say where its tokens lie in the text.
        ValueError: for no sentences, or a number that makes no sense.
    """
    arguments.function("tokenizer", tokenizer, "a fast tokenizer of Hugging Face")
    batch_size = arguments.whole("batch_size", batch_size, least=1)
    longest = arguments.whole("longest", longest, least=1)
    rows: list[list[int]] = []
    carried: list[list[frozenset[str]]] = []
    for sentence in arguments.several("sentences", sentences, "what `read_conllu` returned"):
        sentence = arguments.instance(
            "one of sentences", sentence, Sentence, "what `read_conllu` returned"
        )
        try:
            made = tokenizer(sentence.text, return_offsets_mapping=True)
            ids, offsets = list(made["input_ids"]), list(made["offset_mapping"])
        except (NotImplementedError, TypeError, KeyError) as error:
            raise TypeError(
                f"a {type(tokenizer).__name__} does not say where its tokens lie in the text: give "
                "a fast tokenizer (AutoTokenizer.from_pretrained(..., use_fast=True))"
            ) from error
        rows.append(ids[:longest])
        carried.append([_of_token(sentence, *span) for span in offsets[:longest]])
    names = sorted({name for tokens in carried for names in tokens for name in names})
    concepts = {
        name: [torch.tensor([name in token for token in tokens]) for tokens in carried]
        for name in names
    }
    batches: list[dict[str, Tensor]] = []
    for start in range(0, len(rows), batch_size):
        some = rows[start : start + batch_size]
        ids = torch.zeros(len(some), max(map(len, some)), dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for place, row in enumerate(some):
            ids[place, : len(row)] = torch.tensor(row)
            mask[place, : len(row)] = 1
        batches.append({"input_ids": ids, "attention_mask": mask})
    return Annotated(tuple(batches), concepts)


def _of_token(sentence: Sentence, start: int, end: int) -> frozenset[str]:
    while start < end and sentence.text[start].isspace():
        start += 1
    found: set[str] = set()
    for word in sentence.words:
        if word.start <= start < word.end and start < end:
            found |= {f"upos={word.upos}", f"deprel={word.deprel}", *word.feats}
    return frozenset(found)
