"""Concepts of tokens and of annotated text, against small texts written out here."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import torch

import basis_probe as bp

WORDS = ("<s>", "▁The", "▁cat", "s", ".", "▁7", "▁NASA", "▁и", "▁", "<0x0A>")


class Letters:
    """A tokenizer of ten tokens that splits nothing."""

    all_special_ids = (0,)

    def __len__(self) -> int:
        return len(WORDS)

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [WORDS[i] for i in ids]


def test_concepts_of_tokens_are_what_they_look_like() -> None:
    counts = torch.tensor([0, 40, 20, 20, 10, 5, 3, 1, 1, 0])
    found = bp.concepts.token_concepts(Letters(), counts=counts)(
        torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7, 2, 2], [0, 5, 5, 1, 4, 9, 0, 0, 0, 0]]),
        torch.tensor([[1] * 10, [1] * 6 + [0] * 4]),
    )

    def places(name: str, row: int = 0) -> list[int]:
        return torch.nonzero(found[name][row]).flatten().tolist()

    assert places("word start") == [1, 2, 5, 6, 7, 8, 9]
    assert places("word continued") == [3]
    assert places("capitalised") == [1]
    assert places("all capitals") == [6]
    assert places("digit") == [5] and places("digit", 1) == [1, 2]
    assert places("punctuation") == [4] == places("sentence mark")
    assert places("cyrillic script") == [7]
    assert places("newline", 1) == [5]
    assert places("after: digit") == [6] and places("after: digit", 1) == [2, 3]
    assert places("before: digit") == [4] and places("before: digit", 1) == [0, 1]
    assert places("position 0") == [0] and places("position 1 to 3") == [1, 2, 3]
    assert places("repeated token") == [8, 9] and places("repeated token", 1) == [2]
    assert places("same as the previous token") == [9]
    assert places("frequency: commonest quarter") == [1]
    assert places("frequency: rarest quarter") == [4, 5, 6, 7]
    # Padding carries nothing, whatever its id.
    assert all(not bool(flags[1, 6:].any()) for flags in found.values())


def test_tokenizers_that_cannot_say_are_refused() -> None:
    with pytest.raises(TypeError, match="cannot say what its tokens are"):
        bp.concepts.token_concepts(len)
    with pytest.raises(ValueError, match=r"counts has shape \(3,\) and the tokenizer 10 tokens"):
        bp.concepts.token_concepts(Letters(), counts=torch.ones(3))
    with pytest.raises(ValueError, match="a token id is 77"):
        bp.concepts.token_concepts(Letters())(torch.tensor([[77]]))


CONLLU = """# sent_id = 1
# text = I don't know, Ann.
1	I	I	PRON	PRP	Number=Sing|Person=1	4	nsubj	_	_
2-3	don't	_	_	_	_	_	_	_	_
2	do	do	AUX	VBP	_	4	aux	_	_
3	n't	not	PART	RB	_	4	advmod	_	_
4	know	know	VERB	VB	VerbForm=Inf	0	root	_	SpaceAfter=No
4.1	empty	empty	VERB	VB	_	_	_	_	_
5	,	,	PUNCT	,	_	4	punct	_	_
6	Ann	Ann	PROPN	NNP	Number=Sing	4	nsubj:pass	_	SpaceAfter=No
7	.	.	PUNCT	.	_	4	punct	_	_

"""


class Spaces:
    """Splits at spaces, with the space in front of each token, as fast tokenizers do."""

    def __call__(self, text: str, return_offsets_mapping: bool) -> dict[str, Any]:
        starts = [0, *(i for i, c in enumerate(text) if c == " ")]
        spans = list(zip(starts, [*starts[1:], len(text)], strict=True))
        return {"input_ids": [1, *range(2, 2 + len(spans))], "offset_mapping": [(0, 0), *spans]}


def test_annotations_go_from_words_to_tokens(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.conllu"
    path.write_text(CONLLU, encoding="utf-8")
    sentences = bp.concepts.read_conllu(path)
    assert [word.form for word in sentences[0].words] == ["I", "do", "n't", "know", ",", "Ann", "."]
    assert [sentences[0].text[w.start : w.end] for w in sentences[0].words][1:3] == ["don't"] * 2
    found = bp.concepts.annotated(sentences, Spaces())
    assert found.batches[0]["input_ids"].tolist() == [[1, 2, 3, 4, 5]]
    carried = {name: rows[0].tolist() for name, rows in found.concepts.items()}
    assert carried["upos=PRON"] == [False, True, False, False, False]
    # Both words of "don't" cover all of it.
    assert carried["upos=AUX"] == carried["upos=PART"] == [False, False, True, False, False]
    assert carried["deprel=nsubj"] == [False, True, False, False, True]
    assert carried["Number=Sing"] == [False, True, False, False, True]


def test_treebanks_that_are_damaged_are_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "b.conllu"
    path.write_text("1\tI\tI\n\n", encoding="utf-8")
    with pytest.raises(ValueError, match="line 1 has 3 fields"):
        bp.concepts.read_conllu(path)
    path.write_text(CONLLU.replace("# text = I", "# text = You"), encoding="utf-8")
    with pytest.raises(ValueError, match="has the word 'I', which its text"):
        bp.concepts.read_conllu(path)
    path.write_text(CONLLU.replace("# text = I don't know, Ann.\n", ""), encoding="utf-8")
    assert bp.concepts.read_conllu(path)[0].text == "I don't know, Ann. "
    path.write_text(CONLLU, encoding="utf-8")
    with pytest.raises(TypeError, match="does not say where its tokens lie"):
        bp.concepts.annotated(bp.concepts.read_conllu(path), lambda text: {})
