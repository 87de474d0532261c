"""Concept scores against scikit-learn and against formulas written out here."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    average_precision_score,
    f1_score,
    jaccard_score,
    mutual_info_score,
    roc_auc_score,
)
from torch import Tensor

import basis_probe as bp
from basis_probe.concepts import alignment
from basis_probe.concepts.alignment import (
    Active,
    Carried,
    Measure,
    Ranks,
    Table,
    auc,
    average_precision,
    beyond,
    in_order,
    thresholds,
)
from basis_probe.concepts.examples import Top
from basis_probe.concepts.intervals import Pairs
from basis_probe.concepts.maps import Maps
from basis_probe.statistics.sampling import Reservoir


def _data(seed: int, *, tied: bool) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(600, 5, generator=generator)
    labels = torch.rand(600, 4, generator=generator) < torch.tensor([0.02, 0.1, 0.4, 0.9])
    labels[:, 2] |= values[:, 1] > 0.8
    # Behind a ReLU half of the samples are equal, and after rounding many more.
    return (torch.relu(values).mul(4).round() if tied else values), labels


@pytest.mark.parametrize("tied", [False, True])
def test_ranked_measures_agree_with_scikit_learn(tied: bool) -> None:
    values, labels = _data(0, tied=tied)
    for sign in (1, -1):
        ranks = Ranks.of(values) if sign > 0 else Ranks.of(values).flipped()
        precision, area = average_precision(ranks, labels), auc(ranks, labels)
        for d in range(5):
            for c in range(4):
                true, score = labels[:, c].numpy(), sign * values[:, d].numpy()
                assert abs(precision[d, c] - average_precision_score(true, score)) < 1e-12
                assert abs(area[d, c] - roc_auc_score(true, score)) < 1e-12


@pytest.mark.parametrize("tied", [False, True])
def test_counted_measures_agree_with_scikit_learn(tied: bool) -> None:
    values, labels = _data(1, tied=tied)
    active = values > thresholds(values, 0.05)
    order = torch.randperm(600, generator=torch.Generator().manual_seed(2))
    table = Table.of(active[order[:100]], labels[order[:100]])
    table = Table.of(active[order[100:]], labels[order[100:]]) + table
    oracles = {
        Measure.IOU: jaccard_score,
        Measure.F1: f1_score,
        Measure.MUTUAL_INFORMATION: mutual_info_score,
    }
    for measure, oracle in oracles.items():
        found = table.of_measure(measure)
        for d in range(5):
            for c in range(4):
                assert abs(found[d, c] - oracle(labels[:, c].numpy(), active[:, d].numpy())) < 1e-12


def test_at_most_the_wanted_share_is_active() -> None:
    values, _ = _data(2, tied=False)
    for top in (0.005, 0.1, 0.5):
        limits = thresholds(values, top)
        assert torch.equal((values > limits).sum(0), torch.full((5,), int(600 * top)))
    tied, _ = _data(2, tied=True)
    assert bool(((tied > thresholds(tied, 0.1)).sum(0) <= 60).all())
    with pytest.raises(ValueError, match="share of samples that are active"):
        thresholds(values, 5.0)


@pytest.mark.parametrize("measure", Measure)
@pytest.mark.parametrize("tied", [False, True])
def test_resampled_scores_are_those_of_the_resampled_data(measure: Measure, tied: bool) -> None:
    values, labels = _data(3, tied=tied)
    values, labels = values[:, :4], labels[:, :4]
    examples = torch.arange(600) // 6
    limits = thresholds(values, 0.1)
    # Of every example the first two samples count for the first pair alone.
    counting = torch.ones(600, 4, dtype=torch.bool)
    counting[::6, 1:] = counting[1::6, 1:] = False
    labels &= counting
    pairs = Pairs(values, None if measure.ranked else limits, labels, examples, counting)
    if measure is not Measure.PUBLISHED_IOU:
        pairs = dataclasses.replace(pairs, counting=None)
    assert pairs.resampled(measure, times=0, generator=torch.Generator()).shape == (0, 4)
    found = pairs.resampled(measure, times=3, generator=torch.Generator().manual_seed(5))
    drawn = torch.randint(0, 100, (3, 100), generator=torch.Generator().manual_seed(5))
    for time in range(3):
        rows = (drawn[time][:, None] * 6 + torch.arange(6)).flatten()
        for pair in range(4):
            true, score = labels[rows, pair].numpy(), values[rows, pair].numpy()
            active = score > limits[pair].item()
            counted = active & counting[rows, pair].numpy()
            expected = {
                Measure.AVERAGE_PRECISION: lambda t=true, s=score: average_precision_score(t, s),
                Measure.AUC: lambda t=true, s=score: roc_auc_score(t, s),
                Measure.IOU: lambda t=true, a=active: jaccard_score(t, a),
                Measure.PUBLISHED_IOU: lambda t=true, a=counted: jaccard_score(t, a),
                Measure.F1: lambda t=true, a=active: f1_score(t, a),
                Measure.MUTUAL_INFORMATION: lambda t=true, a=active: mutual_info_score(t, a),
            }[measure]()
            assert abs(found[time, pair] - expected) < 1e-10


def test_a_concept_that_nobody_carries_has_no_score() -> None:
    values, labels = _data(4, tied=False)
    labels[:, 0] = False
    ranks = Ranks.of(values)
    assert bool(average_precision(ranks, labels)[:, 0].isnan().all())
    assert bool(auc(ranks, labels)[:, 0].isnan().all())


def test_measures_have_names() -> None:
    x = torch.randn(60, 3)
    for wanted in ("kappa", ["auc", 5], ["auc", None]):
        with pytest.raises(ValueError, match=r"measures=.* is not known: give one of average"):
            bp.dissect_activations(x, {"a": x[:, 0] > 0}, measures=wanted)
    with pytest.raises(ValueError, match="needs ranks"):
        Table.of(torch.ones(3, 1, dtype=torch.bool), torch.ones(3, 1, dtype=torch.bool)).of_measure(
            Measure.AUC
        )


def test_scores_of_a_planted_direction_are_the_analytic_ones() -> None:
    # Two Gaussians a distance d apart: AUC = Phi(d / sqrt 2).
    generator = np.random.default_rng(0)
    true = generator.random(200_000) < 0.1
    values = torch.from_numpy(generator.standard_normal((200_000, 1)) + 1.5 * true[:, None])
    labels = torch.from_numpy(true)[:, None]
    phi = torch.distributions.Normal(0.0, 1.0).cdf
    area = auc(Ranks.of(values), labels)
    assert abs(float(area) - float(phi(torch.tensor(1.5 / 2**0.5)))) < 0.004
    # Active above t: P(active, true) = p Phi(d - t), P(active) = that + (1 - p) Phi(-t).
    limit = thresholds(values, 0.1)
    hit, false = 0.1 * float(phi(1.5 - limit)), 0.9 * float(phi(-limit))
    table = Table.of(values > limit, labels)
    assert abs(float(table.of_measure(Measure.IOU)) - hit / (0.1 + false)) < 0.01
    assert abs(float(table.of_measure(Measure.F1)) - 2 * hit / (0.1 + hit + false)) < 0.01
    # Average precision: the integral of precision over recall, by the trapezoid rule.
    t = torch.linspace(8, -6, 4001, dtype=torch.float64)
    recall, other = phi(1.5 - t), phi(-t)
    precision = 0.1 * recall / (0.1 * recall + 0.9 * other)
    expected = float(torch.trapezoid(precision[100:], recall[100:]))
    assert abs(float(average_precision(Ranks.of(values), labels)) - expected) < 0.01


@pytest.mark.parametrize("top", [0.005, 0.3])
def test_maps_enlarged_only_where_they_are_high_have_the_active_pixels_of_all(top: float) -> None:
    generator = torch.Generator().manual_seed(0)
    # Some images are high and some flat, and behind a ReLU most cells are zero.
    maps = torch.randn(5, 90, 6, 5, generator=generator)
    maps = maps * torch.rand(5, 90, 1, 1, generator=generator) + torch.tensor(
        [-3.0, -0.5, 0.0, 0.5, -9.0]
    ).reshape(5, 1, 1, 1)
    maps = torch.relu(maps)
    between = Maps((6, 5), (24, 15))
    dense = torch.nn.functional.interpolate(
        maps, size=(24, 15), mode="bilinear", align_corners=False
    ).reshape(5, -1)
    rows = maps.flatten(1).T
    spread = between.spread(rows)
    assert torch.allclose(spread, dense.T, atol=1e-6)
    limits = torch.tensor([between.limit(one.flatten(1), top) for one in maps])
    assert torch.equal(limits, thresholds(spread, top))
    found = between.active(maps.flatten(2), limits)
    expected = Active.of(spread > limits)
    assert torch.equal(found.places, expected.places)
    assert torch.equal(found.counts, expected.counts) and found.samples == 90 * 360


def _merged(parts: list[Any], order: list[int]) -> Any:
    """The same parts added in some order, in a tree that the order makes too."""
    several = [parts[place] for place in order]
    while len(several) > 1:
        at = order[len(several) % len(order)] % (len(several) - 1)
        several[at : at + 2] = [several[at] + several[at + 1]]
    return several[0]


@pytest.mark.parametrize("seed", range(3))
def test_thresholds_of_streams_are_those_of_whole_data_however_they_are_merged(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    count, top = 6000, 0.005
    # It drifts, and its tails are heavy: a part of it tells little of the whole.
    x = torch.randn(count, 4, generator=generator).pow(3) + torch.linspace(0, 3, count)[:, None]
    x[:, 3] = torch.relu(x[:, 3]).round()
    whole = thresholds(x, top)
    limit = beyond(count, top)
    places = torch.arange(count).tensor_split([7, 400, 401, 2500, 5990])
    chance = torch.rand(count, generator=generator, dtype=torch.float64)
    tails = [Top.of(x[some], some, limit + 1) for some in places]
    kept = [Reservoir.of(chance[some], {"x": x[some]}, capacity=count) for some in places]
    few = [Reservoir.of(chance[some], {"x": x[some]}, capacity=1500) for some in places]
    sampled: set[tuple[float, ...]] = set()
    for _ in range(6):
        order = torch.randperm(len(places), generator=generator).tolist()
        # The most active samples are enough, and so are all rows: exact.
        assert torch.equal(_merged(tails, order).values[limit].float(), whole)
        assert torch.equal(thresholds(_merged(kept, order).rows["x"], top), whole)
        # From a sample of the rows the same numbers in any order, at a rank that is off by chance.
        limits = thresholds(_merged(few, order).rows["x"], top)
        sampled.add(tuple(limits.tolist()))
        share = (x[:, :3] > limits[:3]).double().mean(0)
        assert bool(((share - top).abs() < 4.5 * (top * (1 - top) / 1500) ** 0.5).all())
    assert len(sampled) == 1


def _plain(row: np.ndarray, carried: np.ndarray) -> tuple[float, float]:
    """Average precision and AUC by going through all thresholds, and all pairs."""
    precision, found = 0.0, 0
    for value in np.unique(row)[::-1]:
        gained = int(carried[row == value].sum())
        found += gained
        precision += gained * found / int((row >= value).sum())
    pairs = np.sign(row[carried][:, None] - row[~carried][None])
    return precision / carried.sum(), float((1 + pairs.mean(dtype=np.float64)) / 2)


def _tied(kind: str, samples: int, generator: np.random.Generator) -> np.ndarray:
    """[4, samples], of which some are equal."""
    rows = generator.standard_normal((4, samples)).astype(np.float32)
    if kind == "a pair":
        rows[:, 7] = rows[:, 40]
    if kind == "in some directions":
        rows[1:3, :9] = rows[1:3, 20:29]
        rows[1, 50:54] = rows[1, 3]
    if kind == "zeros of either sign":
        rows = np.where(generator.random(rows.shape) < 0.01, 0.0, rows)
        rows = np.where(generator.random(rows.shape) < 0.01, -0.0, rows)
    if kind == "most":
        rows = np.maximum(rows, 0.0)
    if kind == "few values":
        rows = rows.round()
    if kind == "all":
        rows = np.zeros_like(rows)
    return rows.astype(np.float32)


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize(
    "kind",
    ["none", "a pair", "in some directions", "zeros of either sign", "most", "few values", "all"],
)
def test_sorting_once_gives_what_going_through_all_thresholds_gives(
    kind: str, double: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For both signs, whatever is tied, and however the work is cut into parts."""
    generator = np.random.default_rng(3)
    samples = 240
    rows = _tied(kind, samples, generator)
    flags = generator.random((samples, 6)) < np.array([0.02, 0.1, 0.3, 0.5, 0.9, 0.0])
    # Of what is tied, one or both carry a concept.
    flags[[7, 40], 1] = True
    flags[7, 2], flags[40, 2] = True, False
    values = torch.from_numpy(rows.astype(np.float64) if double else rows).T
    for at_once, radix in ((2**16, 700), (100, 20), (1, 10**9)):
        monkeypatch.setattr(alignment, "_AT_ONCE", at_once)
        monkeypatch.setattr(alignment, "_RADIX", radix)
        told = in_order(Ranks.of(values), Carried.of(torch.from_numpy(flags)), (1, -1))
        assert told.precision.shape == (2, 4, 6)
        other_way = in_order(Ranks.of(values), Carried.of(torch.from_numpy(flags)), (-1, 1))
        assert torch.equal(other_way.precision.flip(0).nan_to_num(), told.precision.nan_to_num())
        assert bool(told.precision[:, :, 5].isnan().all())
        assert bool(told.area[:, 5].isnan().all())
        for direction in range(4):
            for concept in range(5):
                for at, sign in enumerate((1, -1)):
                    precision, area = _plain(sign * rows[direction], flags[:, concept])
                    assert abs(float(told.precision[at, direction, concept]) - precision) < 1e-14
                    own = float(told.area[direction, concept])
                    assert abs((own if sign > 0 else 1 - own) - area) < 1e-14


def test_ranks_are_those_that_counting_gives() -> None:
    generator = np.random.default_rng(4)
    for kind in ("none", "a pair", "in some directions", "zeros of either sign", "most", "all"):
        rows = _tied(kind, 130, generator) * np.float32(1e-30)
        for values in (rows, rows.astype(np.float64)):
            ranks = Ranks.of(torch.from_numpy(values).T)
            above = (values[:, None, :] > values[:, :, None]).sum(2)
            reached = (values[:, None, :] >= values[:, :, None]).sum(2)
            np.testing.assert_array_equal(ranks.above, above)
            np.testing.assert_array_equal(ranks.reached, reached)
            back = Ranks.of(torch.from_numpy(-values).T)
            np.testing.assert_array_equal(ranks.flipped().reached, back.reached)
