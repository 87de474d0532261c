"""Axes against rotations by the concepts they detect: planted, shuffled, streamed, badly given."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, jaccard_score, roc_auc_score
from torch import Tensor, nn

import basis_probe as bp
from basis_probe.concepts.chance import Chance, shuffled
from basis_probe.concepts.labels import Labels

QUICK = bp.concepts.Effort(shuffles=19, resamples=20)


def _planted(samples: int = 4000, dim: int = 12, seed: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    """Axis i carries concept i, two standard deviations above the noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.rand(samples, dim, generator=generator) < 0.05
    noise = torch.randn(samples, dim, generator=generator, dtype=torch.float64)
    return noise + 2.0 * labels, {f"concept {i}": labels[:, i] for i in range(dim)}


def test_planted_concepts_are_found_with_their_analytic_scores() -> None:
    x, labels = _planted(10_000)
    found = bp.dissect_activations(
        x, labels, group="orthogonal", measures="auc", frames=19, effort=QUICK, threshold=0.88
    )
    comparison = found.comparison()
    # Two Gaussians two standard deviations apart: AUC = Phi(2 / sqrt 2).
    expected = 0.5 * (1 + math.erf(1.0))
    for place, concept in enumerate(comparison.concepts):
        assert (concept.direction, concept.sign) == (place, 1)
        assert abs(concept.score - expected) < 0.03
        assert concept.detected and concept.null_detected < 0.2
    assert comparison.distinct.observed == 12 and comparison.distinct.null_mean < 2
    assert comparison.distinct.low >= 11
    assert comparison.mean_best.p_value == 0.05 and comparison.mean_best.effect > 5


def test_scores_are_those_of_scikit_learn_on_the_second_half() -> None:
    x, labels = _planted(2000, 4)
    measures = ("average_precision", "auc", "iou")
    found = bp.dissect_activations(
        x, labels, group="orthogonal", measures=measures, frames=19, effort=QUICK, top=0.05
    )
    # Every second row, in a random order: the same draw as the library's.
    turn = torch.arange(2000) % 2
    half = turn[torch.randperm(2000, generator=torch.Generator().manual_seed(0))]
    rows = x.float()[half == 1].numpy()
    limit = np.sort(x.float()[half == 0].numpy(), axis=0)[-51]
    for concept in found.comparison(measure="auc").concepts:
        true = labels[concept.concept][half == 1].numpy()
        axis = rows[:, concept.direction]
        assert abs(concept.score - roc_auc_score(true, axis)) < 1e-6
    for concept in found.comparison(measure="average_precision").concepts:
        true = labels[concept.concept][half == 1].numpy()
        axis = rows[:, concept.direction]
        assert abs(concept.score - average_precision_score(true, axis)) < 1e-6
    for concept in found.comparison(measure="iou").concepts:
        true = labels[concept.concept][half == 1].numpy()
        axis = rows[:, concept.direction] > limit[concept.direction]
        assert abs(concept.score - jaccard_score(true, axis)) < 1e-6


def _meaningless(seed: int, measure: str) -> bool:
    """Whether labels that mean nothing are detected no more often than the interval says."""
    generator = torch.Generator().manual_seed(seed)
    examples = torch.arange(480) // 8
    # Both the activations and the labels of an example hang together.
    drift = torch.randn(60, 6, generator=generator, dtype=torch.float64)
    x = drift[examples] + torch.randn(480, 6, generator=generator, dtype=torch.float64)
    leaning = torch.randn(60, 8, generator=generator)[examples]
    labels = leaning + torch.randn(480, 8, generator=generator) > 1.2
    found = bp.dissect_activations(
        x,
        {f"c{i}": labels[:, i] for i in range(8)},
        examples=examples,
        group="orthogonal",
        measures=measure,
        threshold=0.0,
        frames=19,
        effort=bp.concepts.Effort(shuffles=39, resamples=2),
        seed=seed,
    ).comparison()
    return found.distinct.observed <= found.chance_high


@pytest.mark.slow
@pytest.mark.parametrize("measure", ["auc", "average_precision", "iou"])
def test_meaningless_labels_are_detected_as_often_as_chance_says(measure: str) -> None:
    inside = sum(_meaningless(seed, measure) for seed in range(200))
    assert inside >= 190, f"{inside} of 200 runs within the chance interval"


def test_few_runs_of_meaningless_labels_are_within_chance() -> None:
    assert sum(_meaningless(seed, "iou") for seed in range(1000, 1005)) >= 4


def test_shuffles_move_whole_examples() -> None:
    examples = torch.tensor([5, 5, 5, 2, 2, 9])
    seen: set[tuple[int, ...]] = set()
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        seen.add(tuple(shuffled(examples, generator).tolist()))
    blocks = [(0, 1, 2), (3, 4), (5,)]
    orders = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    assert seen == {tuple(row for b in order for row in blocks[b]) for order in orders}


def test_chance_levels_hold_for_all_concepts_together() -> None:
    generator = torch.Generator().manual_seed(0)
    passed = 0
    for _ in range(400):
        draws = torch.randn(40, 5, generator=generator, dtype=torch.float64)
        chance = Chance.of(draws[1:])
        passed += bool((draws[0] > chance.thresholds).any())
    assert passed / 400 < 0.085


# --- models ---------------------------------------------------------------------------------------


class Reader(nn.Module):
    """Token ids -> a stream, neurons behind a ReLU, logits."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(30, 10)
        self.up, self.act, self.down = nn.Linear(10, 14), nn.ReLU(), nn.Linear(14, 30)

    def forward(self, ids: Tensor) -> Tensor:
        return self.down(self.act(self.up(self.embed(ids))))


def _ids(rows: int = 60) -> Tensor:
    return torch.randint(0, 30, (rows, 12), generator=torch.Generator().manual_seed(3))


def _token_labels(ids: Tensor) -> dict[str, Tensor]:
    return {"even": ids % 2 == 0, "low": ids < 6, "first": torch.arange(12).expand(ids.shape) < 3}


def test_the_batches_and_their_order_change_nothing() -> None:
    ids = _ids()
    options: dict[str, Any] = {
        "sites": "act", "frames": 19, "effort": QUICK, "progress": False, "max_samples": 500,
    }  # fmt: skip
    model = Reader().eval()
    whole = bp.dissect(model, [ids], _token_labels, **options)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    parts = bp.dissect(model, ids[order].split(7), _token_labels, **options)
    given = bp.dissect(model, ids.split(11), _token_labels(ids), **options)
    assert whole.site_dissections == parts.site_dissections == given.site_dissections
    site = whole["act"]
    assert site.n_samples == 500
    assert [one.null.name for one in site.comparisons] == ["counterfactual"] * 3 + ["rotation"] * 3


def test_labels_of_examples_hold_for_all_their_tokens_and_padding_is_left_out() -> None:
    ids = _ids(40)
    mask = torch.ones_like(ids)
    mask[:, 9:] = 0

    class Masked(Reader):
        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            return super().forward(input_ids)

    found = bp.dissect(
        Masked().eval(),
        [{"input_ids": ids, "attention_mask": mask}],
        {"long": torch.arange(40) % 3 == 0, "ragged": [[True, False, True] * 3] * 40},
        sites="act",
        frames=19,
        measures="auc",
        effort=QUICK,
        progress=False,
    )["act"]
    assert found.n_samples == 40 * 9
    assert {concept.concept for concept in found.comparison().concepts} == {"long", "ragged"}
    assert abs(found.comparison().concept("ragged").coverage - 2 / 3) < 1e-9


class Pixels(nn.Module):
    """Images -> maps of half the size behind a ReLU."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.act = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        return self.act(self.conv(images)).mean((2, 3))


def test_published_choices_are_made_and_scored_on_the_same_data() -> None:
    x, labels = _planted(800, 4)
    found = bp.dissect_activations(
        x, labels, group="orthogonal", measures="auc", frames=19, split=bp.concepts.Split.NONE,
        effort=bp.concepts.Effort(shuffles=0, resamples=2),
    ).comparison()  # fmt: skip
    assert found.chance_high == 0
    assert all(one.fitted == one.score for one in found.directions)


@pytest.mark.parametrize("resolution", bp.concepts.Resolution)
def test_masks_meet_maps_at_either_resolution(resolution: bp.concepts.Resolution) -> None:
    generator = torch.Generator().manual_seed(0)
    masks = torch.randint(0, 2, (24, 4, 4), generator=generator)
    masks = masks.repeat_interleave(4, 1).repeat_interleave(4, 2)
    images = torch.randn(24, 3, 16, 16, generator=generator) * 0.1
    model = Pixels().eval()
    with torch.no_grad():
        model.conv.weight[0], model.conv.bias[0] = 0.0, -0.5
        model.conv.weight[0, 0, 1, 1] = 1.0
    images[:, 0] += masks
    found = bp.dissect(
        model,
        images.split(5),
        bp.concepts.categories(masks, {1: "bright"}),
        sites="act",
        top=0.3,
        measures="iou",
        resolution=resolution,
        null=bp.nulls.Rotation(frames=19),
        effort=QUICK,
        progress=False,
    )["act"]
    wide = resolution is bp.concepts.Resolution.LABELS
    assert found.n_samples == 24 * (256 if wide else 64)
    concept = found.comparison().concept("bright")
    assert concept.direction == 0
    # By hand: the channel's map, interpolated or not, against the mask or every second pixel of it.
    with torch.no_grad():
        maps = model.act(model.conv(images))[:, 0:1]
    size = (16, 16) if wide else (8, 8)
    maps = nn.functional.interpolate(maps, size=size, mode="bilinear", align_corners=False)
    true = masks if wide else masks[:, ::2, ::2]
    rough = maps[:, 0] > maps.quantile(0.7)
    by_hand = float((rough & (true == 1)).sum() / (rough | (true == 1)).sum())
    assert abs(concept.score - by_hand) < 0.06
    assert found.comparison().concept("bright").score > 0.4


# --- what cannot be scored, and what cannot be read -----------------------------------------------


def test_concepts_that_cannot_be_told_are_named() -> None:
    x, labels = _planted(800, 4)
    few = torch.zeros(800, dtype=torch.bool)
    few[:7] = True
    labels |= {"never": torch.zeros(800), "always": torch.ones(800), "few": few}
    found = bp.dissect_activations(
        x, labels, group="orthogonal", measures="auc", frames=19, effort=QUICK
    )
    assert dict(found.left_out)["never"] == "no sample carries it"
    assert dict(found.left_out)["always"] == "every sample carries it"
    assert "10 are needed in each" in dict(found.left_out)["few"]
    assert len(found.comparison().concepts) == 4
    with pytest.raises(ValueError, match="none of the 1 concepts can be scored"):
        bp.dissect_activations(x, {"never": torch.zeros(800)}, frames=19)


@pytest.mark.parametrize(
    ("concepts", "message"),
    [
        ({"a": torch.ones(7)}, "x has 800 samples: give one label for every sample"),
        ({"a": torch.full((800,), math.nan)}, "800 labels of 'a' are NaN"),
        ({"a": torch.rand(800)}, "neither 0 nor 1"),
        ({}, "there are no concepts"),
        ({"a": True}, "are one bool: give an array"),
    ],
)
def test_labels_that_make_no_sense(concepts: dict[str, Any], message: str) -> None:
    x, _ = _planted(800, 4)
    with pytest.raises(bp.DataError, match=message):
        bp.dissect_activations(x, concepts)


@pytest.mark.parametrize(
    ("concepts", "message"),
    [
        ({"a": torch.ones(50, 12)}, "has labels for 50 of examples 0 to 59"),
        ({"a": torch.ones(61, 12)}, "has labels for 61 examples and the data hold 60"),
        ({"a": torch.ones(60, 5)}, "have shape"),
        ({"a": torch.ones(60), "b": torch.ones(59)}, "label every example for every concept"),
        (lambda ids: {"a": ids}, "a function of a batch returns 0 and 1"),
        ([{"a": torch.ones(60)}, {"a": torch.ones(60)}], "two sources have a concept 'a'"),
    ],
)
def test_labels_that_do_not_fit_the_data(concepts: Any, message: str) -> None:
    ids = _ids()
    model = Reader().eval()
    with pytest.raises(bp.DataError, match=message):
        bp.dissect(model, [ids], concepts, sites="act", progress=False)
    assert not model.act._forward_hooks


def test_names_may_not_change_on_the_way() -> None:
    count = iter(range(9))

    def concepts(ids: Tensor) -> dict[str, Tensor]:
        return {f"c{next(count)}": ids > 3}

    with pytest.raises(bp.DataError, match="the concepts of one batch are not those of the first"):
        bp.dissect(Reader(), _ids().split(20), concepts, sites="act", progress=False)


def test_other_bad_input() -> None:
    x, labels = _planted(800, 4)
    with pytest.raises(ValueError, match="no measure is called 'r2'"):
        bp.dissect_activations(x, labels, measures="r2")
    with pytest.raises(ValueError, match="measures is empty"):
        bp.dissect_activations(x, labels, measures=())
    with pytest.raises(bp.DataError, match="come from 2 different examples"):
        bp.dissect_activations(x, labels, examples=torch.arange(800) // 400)
    with pytest.raises(bp.DataError, match="examples has shape"):
        bp.dissect_activations(x, labels, examples=torch.arange(3))
    with pytest.raises(ValueError, match="max_samples=0"):
        bp.dissect(Reader(), [_ids()], _token_labels, max_samples=0)


def test_findings_come_back_from_text_and_are_shown_escaped() -> None:
    x, labels = _planted(800, 3)
    evil = "<script>alert(1)</script>"
    site = bp.dissect_activations(
        x, labels | {evil: labels["concept 0"]}, group="orthogonal", frames=19, effort=QUICK
    )
    found = bp.results.Dissection((site,), {"seed": "0"}, ("a <b>note</b>",))
    again = bp.results.Dissection.from_json(found.to_json())
    assert again == found
    assert again.to_dataframe().equals(found.to_dataframe())
    assert len(found.concepts_dataframe()) == 3 * 4
    html = found._repr_html_()
    assert evil not in html and "&lt;script&gt;" in html and "<b>note" not in html
    assert "distinct concepts on axes" in str(found)
    for text, message in (
        ("{", "not JSON"),
        ("{}", "the key 'basis_probe_dissection' is missing"),
        ('{"basis_probe_dissection": 99}', "has format 99"),
        ('{"basis_probe_dissection": 1, "dissection": {}}', "damaged at"),
    ):
        with pytest.raises(ValueError, match=message):
            bp.results.Dissection.from_json(text)
    with pytest.raises(KeyError, match="no site 'activation' was dissected; nearest: activations"):
        found["activation"]
    with pytest.raises(KeyError, match="no comparison"):
        site.comparison(measure="f1")
    with pytest.raises(KeyError, match="nearest: concept"):
        site.comparison().concept("concept 9")
    assert dataclasses.replace(site.comparison().distinct) == site.comparison().distinct


def test_usable_labels_are_a_value_of_their_own() -> None:
    values = torch.arange(80).reshape(80, 1) % 2 == 0
    labels = Labels(("even",), values, torch.arange(80))
    kept = labels.usable((torch.arange(80) // 2) % 2)
    assert kept.names == ("even",) and torch.equal(kept.values, values)
