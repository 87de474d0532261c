"""Looks while a model runs: what they see, what they leave alone, what adds up."""

from __future__ import annotations

import math

import assets
import pytest
import torch
from draws import seeded
from torch import Tensor, nn
from watch_rates import crossed, watched

import basis_probe as bp
from basis_probe.results import Glance, History, Look
from basis_probe.statistics.anytime import weight


def network() -> nn.Sequential:
    with assets.seeded(0):
        return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Dropout(0.5), nn.Linear(12, 4))


def batches(count: int, rows: int = 250) -> list[Tensor]:
    generator = seeded(1)
    return [torch.randn(rows, 6, generator=generator) for _ in range(count)]


def trained(model: nn.Module, every: int | None) -> tuple[list[Tensor], bp.Attachment]:
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    with assets.seeded(3), bp.attach(model.train(), every=every) as probe:
        for x in batches(5):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    return [p.detach().clone() for p in model.parameters()], probe


@pytest.mark.slow
def test_training_is_what_it_is_without_looks() -> None:
    alone, plain = trained(network(), None)
    beside, probe = trained(network(), 3)
    assert all(map(torch.equal, alone, beside))
    assert probe.history.steps == (0, 3) and probe.history.every == 3
    assert plain.history.looks == () and plain.history.scalars() == {}
    assert probe.passes == plain.passes == 5


@pytest.mark.slow
def test_a_look_is_a_quick_probe_of_that_moment() -> None:
    model, data = network().train(), batches(3)
    with bp.attach(model, every=2, seed=5) as probe:
        for x in data:
            model(x)
            with torch.no_grad():
                model[0].weight.mul_(1.5).add_(0.1)
    again = network()
    for step, x in enumerate(data):
        if step % 2 == 0:
            (look,) = (look for look in probe.history.looks if look.step == step)
            kinds = {kind().name: kind for kind in (bp.nulls.Counterfactual, bp.nulls.SparseWiring)}
            null = kinds[look.null](frames=99, samples=1024)
            site = bp.probe(again, [x], null=null, seed=5 + step, progress=False)["1"]
            for name, score in site.scores.items():
                assert look.scores[name].observed == pytest.approx(score.observed, rel=1e-5)
                assert look.scores[name].effect == pytest.approx(score.effect, rel=1e-3)
        with torch.no_grad():
            again[0].weight.mul_(1.5).add_(0.1)


@pytest.mark.slow
def test_what_adds_up_never_falls_and_has_its_forms() -> None:
    _, probe = trained(network(), 2)
    history = probe.history
    values = [look.e_value for look in history.looks]
    assert values == sorted(values) and values[0] > 0
    frame = history.to_dataframe()
    assert list(frame.columns[:3]) == ["step", "site", "score"] and "e_value" in frame
    assert set(frame.score) == {*bp.scores.DEFAULT} and len(frame) == 4 * len(history.steps)
    scalars = history.scalars()
    assert scalars["1/e_value"] == scalars["e_value"] == history.e_value == values[-1]
    assert history.scalars(2)["1/e_value"] == values[1]
    assert history.plot().axes and history.plot("kurtosis").axes
    with pytest.raises(KeyError, match="looks at"):
        history.scalars(1)
    with pytest.raises(ValueError, match="no look has 'what' to draw"):
        history.plot("what")


@pytest.mark.slow
def test_offset_and_scale_speak_where_the_group_holds_rotations() -> None:
    history = watched("frozen stream", 0, 2)
    assert {"offset", "scale", "non_gaussianity"} <= {*history.looks[0].scores}


@pytest.mark.slow
def test_a_look_that_says_nothing_adds_nothing() -> None:
    model = network()
    with bp.attach(model, every=1) as probe, torch.inference_mode():
        for x in (batches(1)[0], batches(1, rows=3)[0], batches(1)[0] * math.nan, batches(1)[0]):
            model(x)
    first, few, bad, last = probe.history.looks
    assert few.e_value == bad.e_value == first.e_value < last.e_value
    assert "too few" in few.note and "NaN or infinite" in bad.note and not first.note
    assert last.e_value - first.e_value < 1000 * weight(4)


@pytest.mark.slow
def test_blocks_go_on_and_attachments_count_for_themselves() -> None:
    model, data = network(), batches(3)
    one, other = bp.attach(model, every=2), bp.attach(model, every=3)
    with one, other:
        for x in data:
            model(x)
    with pytest.raises(KeyboardInterrupt), one:
        model(data[0])
        model(data[0])
        raise KeyboardInterrupt
    assert one.history.steps == (0, 2, 4) and other.history.steps == (0,)
    with bp.attach(model, every=2, max_samples=300) as probe:
        for x in data:
            model(x)
    assert probe.history.steps == (0, 2) and probe.report()["1"].n_samples == 300


def test_sites_together_have_the_mean() -> None:
    glance = Glance(1.0, 0.0, 1.0, 1.0, 0.3)
    looks = tuple(
        Look(0, site, 9, "rotation", {"kurtosis": glance}, value)
        for site, value in (("a", 1.0), ("b", 4.0), ("c", math.nan))
    )
    assert History(looks, 1).e_value == 2.5
    assert "c/e_value" not in History(looks, 1).scalars()


@pytest.mark.slow
def test_features_that_appear_are_seen_and_frozen_networks_are_not() -> None:
    assert crossed(watched("appearing features", 1, 8))
    for seed in range(4):
        assert not crossed(watched("frozen neurons", seed, 4))


def test_passes_between_looks_are_counted() -> None:
    for every in (0, 1.5, True, "2"):
        with pytest.raises(ValueError, match="every"):
            bp.attach(network(), every=every)  # pyright: ignore[reportArgumentType]
