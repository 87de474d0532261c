"""Concepts in real networks: the shipped decoder, whose concepts are known, and a small Llama."""

from __future__ import annotations

from typing import Any

import assets
import pytest
import torch

import basis_probe as bp
from basis_probe import demo

QUICK = bp.concepts.Effort(shuffles=19, resamples=20)


def _grammar(count: int, names: list[str]) -> tuple[Any, list[dict[str, Any]], dict[str, Any]]:
    """The decoder, batches of its documents, and which of their tokens carry which concept."""
    model, tokenizer = demo.load_hf()
    documents = demo.labelled(count, 123)
    made: Any = tokenizer(
        [document.text for document in documents],
        padding=True, padding_side="right", return_tensors="pt",
    )  # fmt: skip
    special = int(made["attention_mask"][0].sum()) - len(documents[0].tokens)
    concepts = {
        name: [
            [False] * special + [i in document.concepts[name] for i in range(len(document.tokens))]
            for document in documents
        ]
        for name in names
    }
    keys = ("input_ids", "attention_mask")
    batches = [{key: made[key][i : i + 20] for key in keys} for i in range(0, count, 20)]
    return model, batches, concepts


@pytest.mark.slow
def test_neurons_of_the_shipped_decoder_detect_concepts_of_its_grammar() -> None:
    names = ["name", "pronoun", "plural noun", "digit", "question"]
    model, batches, concepts = _grammar(60, names)
    site = "model.layers.0.mlp.down_proj:in"
    found = bp.dissect(
        model, batches, concepts, sites=site, measures="average_precision", threshold=0.9,
        frames=19, effort=QUICK, max_samples=3000, progress=False,
    )  # fmt: skip
    counterfactual, rotation = found[site].comparisons
    assert {concept.concept for concept in counterfactual.detected} >= {"name", "pronoun"}
    assert all(concept.score >= 0.9 for concept in counterfactual.detected)
    assert counterfactual.null.name == "counterfactual" and rotation.null.name == "rotation"
    assert rotation.distinct.null_mean < rotation.distinct.observed == len(rotation.detected)
    html = found._repr_html_()
    assert "name" in html and "pronoun" in html and "counterfactual" in html


@pytest.mark.slow
def test_the_first_layer_of_the_shipped_decoder_beats_its_counterfactuals() -> None:
    model, batches, concepts = _grammar(120, list(demo.CONCEPTS))
    site = "model.layers.0.mlp.down_proj:in"
    found = bp.dissect(
        model, batches, concepts, sites=site, measures="average_precision",
        frames=19, effort=QUICK, max_samples=6000, progress=False,
    )  # fmt: skip
    for comparison in found[site].comparisons:
        assert comparison.distinct.observed >= 15 > comparison.distinct.null_high
        assert comparison.mean_best.low > comparison.mean_best.null_high


@pytest.mark.slow
def test_parts_of_speech_in_a_small_llama() -> None:
    path = assets.folder("ud_english_ewt") / "en_ewt-ud-dev.conllu"
    made = bp.concepts.annotated(
        bp.concepts.read_conllu(path)[:300], assets.llama_tokenizer(), batch_size=50
    )
    kept = {name: rows for name, rows in made.concepts.items() if name.startswith("upos=")}
    site = "model.layers.3.mlp.down_proj:in"
    found = bp.dissect(
        assets.llama(), list(made.batches), kept, sites=site, measures="auc", frames=19,
        effort=QUICK, max_samples=5000, progress=False,
    )[site]  # fmt: skip
    counterfactual = found.comparison("counterfactual")
    assert counterfactual.concept("upos=NUM").score > 0.8
    assert torch.isfinite(torch.tensor([c.score for c in counterfactual.concepts])).all()


def test_tokens_of_a_real_tokenizer_make_concepts() -> None:
    tokenizer = assets.llama_tokenizer()
    ids = torch.tensor([tokenizer("Once upon a time, Lily had 3 cats.")["input_ids"]])
    found = bp.concepts.token_concepts(tokenizer)(ids)
    said = tokenizer.convert_ids_to_tokens(ids[0].tolist())
    digit = torch.nonzero(found["digit"][0]).flatten().tolist()
    assert [said[place].lstrip("▁") for place in digit] == ["3"]
    comma = torch.nonzero(found["comma"][0]).flatten().tolist()
    assert [said[place] for place in comma] == [","]
    assert bool(found["word start"][0, 1]) and not bool(found["word start"][0, 0])
