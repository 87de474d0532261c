"""Token ids in every form that tokenizers and data sets have them in give the same numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import basis_probe as bp

LENGTHS = (9, 5, 7, 9, 4, 6, 8, 9)


class Reader(nn.Module):
    """A small language model that knows masks, under the names of Hugging Face."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.up = nn.Embedding(30, 8), nn.Linear(8, 16)
        self.act, self.down = nn.GELU(), nn.Linear(16, 30)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> Tensor:
        return self.down(self.act(self.up(self.embed(input_ids))))


class Positional(Reader):
    """The same, with a keyword of its own."""

    def forward(self, tokens: Tensor) -> Tensor:  # pyright: ignore
        return super().forward(tokens)


class Tokenizer:
    """One id for every letter."""

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) - 96 for letter in text]}

    def __len__(self) -> int:
        return 30

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [chr(96 + number) for number in ids]


def _rows() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(1, 27, (n,), generator=generator).tolist() for n in LENGTHS * 8]


def _padded(rows: list[list[int]]) -> dict[str, Tensor]:
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = torch.tensor(row)
        mask[place, : len(row)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def _groups(rows: list[list[int]]) -> list[list[list[int]]]:
    return [rows[start : start + 16] for start in range(0, len(rows), 16)]


def _masked(row: list[int]) -> dict[str, Any]:
    return {"input_ids": row, "attention_mask": [1] * len(row)}


def _texts() -> list[str]:
    return ["".join(chr(96 + number) for number in row) for row in _rows()]


FORMS: dict[str, tuple[Any, dict[str, Any]]] = {
    "lists of ids": (_rows(), {}),
    "tuples of ids": ([tuple(row) for row in _rows()], {}),
    "batches of lists": (_groups(_rows()), {}),
    "what a tokenizer returns": ([{"input_ids": part} for part in _groups(_rows())], {}),
    "rows of a data set": ([_masked(row) for row in _rows()], {}),
    "rows of a data set as tensors": (
        [{name: torch.tensor(value) for name, value in _masked(row).items()} for row in _rows()],
        {},
    ),
    "rows with columns of other kinds": (
        [{**_masked(row), "label": 1, "words": "x", "token_type_ids": [0] * len(row)}
         for row in _rows()],
        {},
    ),
    "strings": ([_texts()[:30], _texts()[30:]], {"tokenizer": Tokenizer()}),
    "rows of texts": ([{"text": text} for text in _texts()], {"tokenizer": Tokenizer()}),
    "batches of texts": ([{"text": _texts()[:9]}, {"text": _texts()[9:]}],
                         {"tokenizer": Tokenizer()}),
}  # fmt: skip

OPTIONS: dict[str, Any] = {
    "sites": ["up", "act"], "progress": False, "certificates": False,
    "null": bp.nulls.Rotation(frames=19), "seed": 3,
}  # fmt: skip

pytestmark = pytest.mark.filterwarnings("ignore::basis_probe.MisleadingNull")


def _numbers(report: bp.Report) -> list[float]:
    assert all(site.n_samples == sum(LENGTHS) * 8 for site in report)
    return [score.observed for site in report for score in site.scores.values()]


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_token_ids_gives_the_numbers_of_padded_tensors(form: str) -> None:
    whole = bp.probe(Reader().eval(), [_padded(_rows())], **OPTIONS)
    data, more = FORMS[form]
    found = bp.probe(Reader().eval(), data, **OPTIONS, **more)
    assert _numbers(found) == pytest.approx(_numbers(whole), rel=1e-5)


def test_lists_reach_a_model_that_knows_no_keywords() -> None:
    rows = [row for row in _rows() if len(row) == 9]
    found = bp.probe(Positional().eval(), [rows], **OPTIONS)
    assert found.site_reports[0].n_samples == 9 * len(rows)


def test_a_partial_takes_a_tokenizer_too() -> None:
    options = {**OPTIONS}
    del options["certificates"]
    model = Reader().eval()
    part = bp.observe(model, [_texts()], tokenizer=Tokenizer(), **options)
    assert next(iter(part.seen.values())).moments.count == sum(LENGTHS) * 8


def test_examples_are_told_in_the_words_of_the_tokenizer_that_was_given() -> None:
    found = bp.probe(Reader().eval(), [_texts()], tokenizer=Tokenizer(), examples=1, **OPTIONS)
    shown = found["act"].examples
    assert shown is not None
    tokens = [token.strip() for top in shown.axes for token in top.contexts[0].tokens]
    assert tokens and not any(token.isdecimal() for token in tokens)
    assert any(token.isalpha() for token in tokens)


def test_what_is_missing_is_named_with_the_way_out() -> None:
    with pytest.raises(bp.DataError, match=r"give one \(tokenizer=\.\.\.\), or batches of"):
        bp.probe(Reader(), [_texts()], **OPTIONS)
    with pytest.raises(TypeError, match=r"tokenizer is a str: .*AutoTokenizer\.from_pretrained"):
        bp.probe(Reader(), [_texts()], tokenizer="gpt2", **OPTIONS)


def test_a_word_within_names_is_answered_with_a_glob() -> None:
    with pytest.raises(bp.SiteError, match=r"sites='\*ct\*' would match 2: act:in, act"):
        bp.probe(Reader(), _rows(), **{**OPTIONS, "sites": "ct"})


@pytest.mark.slow
def test_names_of_a_bridge_stand_for_places_of_a_hugging_face_model() -> None:
    from basis_probe import demo

    model, tokenizer = demo.load_hf()
    data = tokenizer(demo.texts(6), return_tensors="pt", padding=True)
    names = {
        "blocks.0.hook_resid_pre": "model.layers.0:in",
        "blocks.1.hook_resid_mid": "model.layers.1.post_attention_layernorm:in",
        "blocks.2.hook_resid_post": "model.layers.2",
        "blocks.1.mlp.hook_post": "model.layers.1.mlp.down_proj:in",
        "blocks.3.attn.hook_z": "model.layers.3.self_attn.o_proj:in",
    }
    options = {**OPTIONS, "sites": [*names]}
    found = bp.probe(model, [data], **options)
    assert set(found.sites) == set(names.values())
    bridge = demo.load()
    whole = bp.probe(bridge, [data], **options)
    # The same places hold the same numbers.
    for name, other in names.items():
        assert found[name] is found[other]
        for score in ("non_gaussianity", "kurtosis"):
            assert found[other].scores[score].observed == pytest.approx(
                whole[name].scores[score].observed, rel=1e-3
            )
    every = bp.probe(model, [data], **{**OPTIONS, "sites": "blocks.*.hook_resid_post"})
    assert every.sites == tuple(f"model.layers.{layer}" for layer in range(4))


def test_a_tokenizer_may_make_a_batch_of_one_text_or_only_its_ids() -> None:
    from basis_probe.model.network import _Padded

    wanted = [[1, 2, 3], [4, 0, 0]]
    texts = {"a": [1, 2, 3], "b": [4]}
    for make in (
        lambda text: {"input_ids": texts[text]},
        lambda text: {"input_ids": [texts[text]]},
        lambda text: {"input_ids": torch.tensor([texts[text]])},
        lambda text: texts[text],
    ):
        assert _Padded(make, None)(["a", "b"])["input_ids"].tolist() == wanted
    for wrong in ([[1, 2], [3]], ["a"], None, [1.5]):
        with pytest.raises(bp.DataError, match="of one text: give one that returns its token ids"):
            _Padded(lambda _, wrong=wrong: {"input_ids": wrong}, None)(["a"])
