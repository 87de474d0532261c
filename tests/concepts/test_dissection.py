"""Axes against rotations by the concepts they detect: planted, shuffled, streamed, badly given."""

from __future__ import annotations

import dataclasses
import gc
import math
from typing import Any, cast

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, jaccard_score, roc_auc_score
from torch import Tensor, nn

import basis_probe as bp
from basis_probe.concepts.alignment import Measure
from basis_probe.concepts.chance import Chance, shuffled
from basis_probe.concepts.detection import Setting, examine
from basis_probe.concepts.labels import BOTH, Labels
from basis_probe.statistics.nulls import Counterfactual
from basis_probe.statistics.nulls.rotations import TurnedAxes

QUICK = bp.concepts.Effort(shuffles=19, resamples=20)


def _planted(samples: int = 4000, dim: int = 12, seed: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    """Axis i carries concept i, two standard deviations above the noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.rand(samples, dim, generator=generator) < 0.05
    noise = torch.randn(samples, dim, generator=generator, dtype=torch.float64)
    return noise + 2.0 * labels, {f"concept {i}": labels[:, i] for i in range(dim)}


@pytest.mark.slow
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


GROUPS = (
    bp.groups.Orthogonal(8),
    bp.groups.Permutation(8),
    bp.groups.PositiveMonomial(8),
    bp.groups.Monomial(8),
    bp.groups.GeneralLinear(8),
    bp.groups.LineStabiliser(8),
    bp.groups.Planes(8, "half"),
    bp.groups.Blocks(bp.groups.GeneralLinear(4), 2),
    bp.groups.DirectSum((bp.groups.Orthogonal(4), bp.groups.Permutation(4))),
    bp.groups.Trivial(8),
)


@pytest.mark.sample(default=2)
@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.name)
@pytest.mark.parametrize("split", bp.concepts.Split)
def test_axes_score_what_they_score_whatever_they_are_compared_with(
    group: Any, split: bp.concepts.Split
) -> None:
    generator = torch.Generator().manual_seed(3)
    scale = torch.logspace(-4, 4, 8, dtype=torch.float64)
    raw = (torch.randn(480, 8, generator=generator, dtype=torch.float64) + 0.3).relu()
    # Large offsets and scales, rows of unequal size, ties at zero.
    raw = (raw * (1 + torch.rand(480, 1, generator=generator)) + 7.0) * scale
    labels = {"a": raw[:, 2] > raw[:, 2].quantile(0.8), "b": raw[:, 5] > raw[:, 5].quantile(0.7)}
    halves = np.arange(480) % 2
    halves = halves[torch.randperm(480, generator=torch.Generator().manual_seed(0)).numpy()]
    none = split is bp.concepts.Split.NONE
    own, other = (np.ones(480, dtype=bool),) * 2 if none else (halves == 0, halves == 1)
    found = bp.dissect_activations(
        raw, labels, group=group, measures=("average_precision", "auc", "iou", "published_iou"),
        split=split, frames=19, top=0.1, sides=bp.concepts.Sides.POSITIVE, effort=QUICK,
    )  # fmt: skip
    values = raw.numpy()
    limits = np.sort(values[own], axis=0)[-1 - int(0.1 * own.sum())]
    for comparison in found.comparisons:
        for one in comparison.directions:
            axis, true = values[other, one.direction], labels[one.concept].numpy()[other]
            expected = {
                "average_precision": average_precision_score,
                "auc": roc_auc_score,
                "iou": lambda t, a, d=one.direction: jaccard_score(t, a > limits[d]),
                "published_iou": lambda t, a, d=one.direction: jaccard_score(t, a > limits[d]),
            }[comparison.measure](true, axis)
            assert abs(one.score - expected) < 1e-9, (comparison.measure, one)


@pytest.mark.slow
def test_axes_score_the_same_beside_every_null() -> None:
    generator = torch.Generator().manual_seed(4)
    inputs = torch.randn(400, 6, generator=generator, dtype=torch.float64)
    weight = torch.randn(9, 6, generator=generator, dtype=torch.float64)
    weight[4] = 0
    x = (inputs @ weight.T - 0.2).relu()
    labels = {"a": inputs[:, 0] > 0.8, "b": inputs[:, 1] > 0.8}
    nulls = (
        None,
        "rotation",
        "counterfactual",
        bp.nulls.Rotation(geometry=bp.nulls.Geometry.RIDGE),
    )
    seen = [
        comparison.directions if comparison.measure == "auc" else None
        for null in nulls
        for comparison in bp.dissect_activations(
            x, labels, inputs=inputs, weight=weight, bias=torch.full((9,), -0.2), null=null,
            nonlinearity="relu", frames=19, effort=QUICK, sides=bp.concepts.Sides.BOTH,
        ).comparisons
    ]  # fmt: skip
    scores = [[(d.direction, d.concept, d.score) for d in one] for one in seen if one]
    assert len(scores) == 5 and all(one == scores[0] for one in scores)
    # The neuron that never fires tells nothing and is not among them.
    assert [direction for direction, _, _ in scores[0]] == [0, 1, 2, 3, 5, 6, 7, 8]


def test_turned_alternatives_hold_the_axes_themselves() -> None:
    # Turning by nothing is what was observed: frame 0 is one of the alternatives.
    x = torch.randn(200, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 3
    for group in GROUPS:
        problem = bp.nulls.Problem(x=x, group=group, halves=torch.arange(200) % 2)
        null = TurnedAxes()
        alternatives = null.alternatives(problem)
        ratio = alternatives.frame(None).post / x
        assert float(ratio.std(0).max()) < 1e-9, group
        drawn = alternatives.frame(torch.Generator().manual_seed(1)).post
        spread = [frame.double().var(0).sum() for frame in (drawn, alternatives.frame(None).post)]
        torch.testing.assert_close(spread[0], spread[1], rtol=1e-6, atol=0)


@pytest.mark.slow
def test_arbitrary_axes_stand_out_no_more_often_than_chance() -> None:
    # Directions of very unequal variance, and axes that are one rotation among all.
    generator = torch.Generator().manual_seed(11)
    p_values: list[float] = []
    for _ in range(30):
        z = torch.randn(300, 6, generator=generator, dtype=torch.float64)
        turn = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64)).Q
        x = (z * torch.logspace(1, -1, 6)) @ turn
        labels = {f"concept {i}": z[:, i] > 1 for i in range(6)}
        found = bp.dissect_activations(
            x, labels, group="general-linear", measures="auc", frames=19,
            effort=bp.concepts.Effort(shuffles=1, resamples=0),
        )  # fmt: skip
        p_values.append(found.comparison().mean_best.p_value)
    # 30 uniform values on twentieths: 5 or more at the least has probability 0.02.
    assert sum(p <= 0.05 for p in p_values) < 5


def test_the_sides_of_axes_do_not_depend_on_offset_or_scale() -> None:
    generator = torch.Generator().manual_seed(5)
    normal = torch.randn(500, 6, generator=generator, dtype=torch.float64)
    for x, wanted in ((normal, "both"), (normal.relu(), "positive")):
        labels = {"a": normal[:, 0] > 1}
        for moved in (x, x + 50, 1e-3 * x - 4):
            found = bp.dissect_activations(
                moved, labels, group="orthogonal", measures="auc", frames=19, effort=QUICK
            )
            assert found.comparison().sides == wanted


class _Same(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x)


def _network_dissection(
    maps: Tensor, masks: dict[str, Tensor], category: dict[str, str], top: float
) -> dict[tuple[int, str], float]:
    """Intersection over union image by image, as the published code adds it up."""
    units = maps.shape[1]
    tall, wide = next(iter(masks.values())).shape[1:]
    cells = np.sort(maps.movedim(1, 0).reshape(units, -1).numpy(), axis=1)
    limits = cells[:, -1 - int(top * cells.shape[1])]
    both, on, true = ({} for _ in range(3))
    for image in range(len(maps)):
        there = {category[name] for name, mask in masks.items() if mask[image].any()}
        for unit in range(units):
            large = nn.functional.interpolate(
                maps[image : image + 1, unit : unit + 1], (tall, wide), mode="bilinear"
            )[0, 0].numpy()
            active = large > limits[unit]
            for name, mask in masks.items():
                key = unit, name
                both[key] = both.get(key, 0) + int((active & mask[image].numpy()).sum())
                if category[name] in there:
                    on[key] = on.get(key, 0) + int(active.sum())
                true[key] = true.get(key, 0) + int(mask[image].sum())
    return {key: both[key] / (on.get(key, 0) + true[key] - both[key]) for key in both}


@pytest.mark.sample(default=2)
@pytest.mark.parametrize("again", [(), (2, 8, 15)])
@pytest.mark.parametrize("size", [(9, 9), (7, 11)])
def test_the_published_rule_cuts_cells_and_counts_images_of_the_category(
    size: tuple[int, int], again: tuple[int, ...]
) -> None:
    """Images that come again, labelled otherwise, count like all others."""
    generator = torch.Generator().manual_seed(6)
    noise = torch.randn(20, 3, size[0] + 2, size[1] + 2, generator=generator)
    maps = nn.functional.avg_pool2d(noise, 3, 1).relu()
    large = nn.functional.interpolate(maps, (22, 31), mode="bilinear")
    maps[list(again)] = maps[4].clone()
    masks = {"a": large[:, 0] > 0.5, "b": large[:, 1] > 0.6, "c": large[:, 2] > 0.4}
    # What is labelled for each category differs from image to image.
    masks["a"][:7], masks["b"][5:12], masks["c"][10:] = False, False, False
    category = {"a": "colour", "b": "colour", "c": "object"}
    expected = _network_dissection(maps, masks, category, 0.05)
    found = bp.dissect(
        _Same().eval(), maps.split(5), masks, sites="relu", measures=["iou", "published_iou"],
        categories=category, split=bp.concepts.Split.NONE, top=0.05, frames=19, null="rotation",
        sides=bp.concepts.Sides.POSITIVE, progress=False, effort=QUICK,
    )["relu"]  # fmt: skip
    published, ours = found.comparison(measure="published_iou"), found.comparison(measure="iou")
    for one in published.directions:
        assert one.score == pytest.approx(expected[one.direction, one.concept], abs=1e-3)
        assert one.score == max(
            d.score for d in published.directions if d.direction == one.direction
        )
    assert published.mean_best.low <= published.mean_best.observed <= published.mean_best.high
    assert [d.score for d in published.directions] != [d.score for d in ours.directions]
    assert sum("published_iou" in note for note in found.notes) == 2
    assert found.n_examples == 20


@pytest.mark.slow
def test_the_rows_of_a_site_are_held_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of maps all images are kept: activations and what the layer read, each of them once."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(24, 2, 12, 12, generator=generator)
    masks = {"bright": torch.nn.functional.interpolate(images, (24, 24))[:, 0] > 1}
    model = nn.Sequential(
        nn.Conv2d(2, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 32, 3, padding=1), nn.ReLU()
    ).eval()  # fmt: skip
    for weight in (model[0].weight, model[2].weight):
        nn.init.normal_(cast(Tensor, weight))
    held: list[int] = []
    plain = Counterfactual.alternatives

    def looked(self: Counterfactual, problem: Any, axes: Any = None) -> Any:
        gc.collect()
        tensors = [t for t in gc.get_objects() if issubclass(type(t), Tensor)]
        large = [t for t in tensors if t.ndim > 1 and len(t) == 24 * 12 * 12]
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in large}
        held.append(sum(storages.values()))
        return plain(self, problem, axes)

    monkeypatch.setattr(Counterfactual, "alternatives", looked)
    bp.dissect(
        model, images.split(8), masks, sites=["1", "3"], frames=19, progress=False,
        measures="published_iou", effort=bp.concepts.Effort(shuffles=0, resamples=0),
    )  # fmt: skip
    # First activations of both sites and their windows, then those of the second alone; besides
    # them the sizes of the maps of every row, two whole numbers.
    rows, own, other = 24 * 12 * 12, 24 + 2 * 9, 32 + 24 * 9
    assert held[0] <= rows * (4 * (own + other) + 2 * 32)
    assert held[1] <= rows * (4 * other + 2 * 32)


def test_categories_are_of_concepts_that_there_are() -> None:
    x, labels = _planted(400, 3)
    with pytest.raises(ValueError, match="categories names 'concept 9', which is no concept; th"):
        bp.dissect_activations(
            x, labels, measures="published_iou", categories={"concept 9": "colour"}
        )
    with pytest.raises(ValueError, match="no measure reads them: add"):
        bp.dissect_activations(x, labels, measures="iou", categories={"concept 1": "colour"})


@pytest.mark.sample(default=3)
@pytest.mark.parametrize("measure", bp.concepts.Measure)
def test_without_resamples_there_are_no_intervals_and_all_else_is_the_same(measure: Any) -> None:
    x, labels = _planted(400, 3)
    with_them, without = (
        bp.dissect_activations(
            x, labels, group="orthogonal", measures=measure, top=0.1,
            effort=bp.concepts.Effort(shuffles=19, resamples=resamples),
        ).comparison()
        for resamples in (5, 0)
    )  # fmt: skip
    assert math.isnan(without.distinct.low) and math.isnan(without.mean_best.high)
    assert (
        without.concepts == with_them.concepts
        and without.units.observed == with_them.units.observed
    )
    with pytest.raises(ValueError, match="resamples=-1: give a whole number from 0"):
        bp.concepts.Effort(resamples=-1)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"bias": torch.zeros(3)}, "bias is given without weight: give inputs and weight too"),
        ({"nonlinearity": "relu"}, "nonlinearity is given without what it reads: give pre, or"),
    ],
)
def test_nothing_that_would_not_be_used_is_taken(extra: dict[str, Any], message: str) -> None:
    x, labels = _planted(400, 3)
    with pytest.raises(ValueError, match=message):
        bp.dissect_activations(x, labels, group="orthogonal", **extra)


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


@pytest.mark.parametrize(
    "measure",
    [
        pytest.param("auc", marks=pytest.mark.battery),
        pytest.param("average_precision", marks=pytest.mark.battery),
        pytest.param("iou", marks=pytest.mark.slow),
    ],
)
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


@pytest.mark.parametrize("measure", ["iou", "f1", "published_iou", "average_precision", "auc"])
@pytest.mark.parametrize("sides", [bp.concepts.Sides.POSITIVE, bp.concepts.Sides.BOTH])
def test_a_shuffle_gives_samples_the_labels_of_others(measure: str, sides: Any) -> None:
    """The largest score of shuffled labels is that of labels that were put in another order."""
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(600, 5, generator=generator)
    values = torch.rand(600, 3, generator=generator) < 0.2
    examples = torch.arange(60).repeat_interleave(10)
    wanted = Measure[measure.upper()]
    labels = Labels(("a", "b", "c"), values, examples)
    if measure == "published_iou":
        labels = labels.categorised({"a": "one", "b": "one", "c": "other"})
    halves = (torch.arange(60) % 2).sort().values.repeat_interleave(10)
    for each in (halves, torch.full_like(halves, BOTH)):
        setting = Setting(labels, each, (wanted,), 0.05, sides)
        scored = setting.parts[1]
        order = shuffled(examples[scored], generator)
        moved = dataclasses.replace(
            labels,
            values=values.clone().index_put_((torch.arange(600)[scored],), values[scored][order]),
            counting=None
            if labels.counting is None
            else labels.counting.clone().index_put_(
                (torch.arange(600)[scored],), labels.counting[scored][order]
            ),
        )
        found = examine(x, setting, [order])[wanted].largest[0]
        plain = examine(x, dataclasses.replace(setting, labels=moved))[wanted]
        every = examine(x, dataclasses.replace(setting, labels=moved), [torch.arange(len(order))])
        assert torch.equal(found, every[wanted].largest[0])
        # No direction that was chosen scores above the largest of all.
        assert bool((plain.direction_score <= found + 1e-12).all())


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
        nn.init.normal_(self.up.weight, std=0.3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.down(self.act(self.up(self.embed(ids))))


def _ids(rows: int = 60) -> Tensor:
    return torch.randint(0, 30, (rows, 12), generator=torch.Generator().manual_seed(3))


def _token_labels(ids: Tensor) -> dict[str, Tensor]:
    return {"even": ids % 2 == 0, "low": ids < 6, "first": torch.arange(12).expand(ids.shape) < 3}


@pytest.mark.slow
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
    with pytest.raises(ValueError, match="measures='r2' is not known"):
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
