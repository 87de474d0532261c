"""The score "attribution": whose gradients, of which loss, beside what, what it leaves alone."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import assets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from attribution_rates import KINDS, p_of
from draws import seeded
from torch import Tensor, nn

import basis_probe as bp
from basis_probe.statistics.attribution import concentration

ASKED: dict[str, Any] = {"scores": "attribution", "certificates": False, "progress": False}


def network(seed: int = 0) -> nn.Sequential:
    with assets.seeded(seed):
        return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Dropout(0.5), nn.Linear(12, 4))


def labelled(rows: int = 240) -> tuple[Tensor, Tensor]:
    generator = seeded(1)
    x = torch.randn(rows, 6, generator=generator)
    return x, torch.randint(0, 4, (rows,), generator=generator)


def batches(size: int = 60) -> list[tuple[Tensor, Tensor]]:
    x, y = labelled()
    return list(zip(x.split(size), y.split(size), strict=True))


@pytest.mark.slow
def test_observed_is_activation_times_gradient() -> None:
    model = network().train()
    x, y = labelled()
    h = F.relu(model[0](x)).detach().requires_grad_(True)
    F.cross_entropy(model[3](h), y).backward()
    assert h.grad is not None
    want = concentration(h.detach(), h.grad)
    model.zero_grad()
    found = bp.probe(model, batches(), **ASKED)["1"].scores["attribution"]
    assert found.observed == pytest.approx(want.gini, rel=1e-6)
    order = np.argsort(found.per_direction)
    assert np.allclose(found.per_direction[order], want.per_axis.numpy()[order], rtol=1e-5)
    assert model.training and all(p.grad is None for p in model.parameters())


@pytest.mark.slow
def test_losses_batches_and_frozen_weights_give_one_number() -> None:
    seen: list[Any] = []

    def loss(output: Tensor, batch: Any) -> Tensor:
        seen.append(batch)
        return F.cross_entropy(output, batch[1], reduction="none")

    data, model = batches(), network().eval()
    own = bp.probe(model, data, **ASKED)["1"].scores["attribution"]
    given = bp.probe(model, data, loss=loss, **ASKED)["1"].scores["attribution"]
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with torch.inference_mode():
        frozen = bp.probe(model, iter(batches(37)), **ASKED)["1"].scores["attribution"]
    assert {id(batch) for batch in seen} <= {id(batch) for batch in data}
    for other in (given, frozen):
        assert other.observed == pytest.approx(own.observed, rel=1e-6)
        assert other.null_values == pytest.approx(own.null_values, rel=1e-5)
        assert other.p_value == pytest.approx(own.p_value, rel=1e-3)
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.slow
def test_integrated_gradients_are_those_on_the_way_from_zeros() -> None:
    model = network().eval()
    x, y = labelled()
    h = F.relu(model[0](x)).detach()
    way = torch.zeros_like(h)
    for step in range(200):
        leaf = (h * (step + 0.5) / 200).requires_grad_()
        way += torch.autograd.grad(F.cross_entropy(model[3](leaf), y), leaf)[0] / 200

    def loss(h: Tensor) -> float:
        return F.cross_entropy(model[3](h), y).item()

    # What the axes have is all that the loss changes by.
    assert float((h * way).sum()) == pytest.approx(loss(h) - loss(0 * h), rel=1e-4)
    asked = ASKED | {"scores": "integrated_attribution"}
    found = bp.probe(model, batches(), **asked)["1"].scores["integrated_attribution"]
    want = concentration(h, way)
    assert found.observed == pytest.approx(want.gini, rel=1e-4)
    order = np.argsort(found.per_direction)
    assert np.allclose(found.per_direction[order], np.sort(want.per_axis.numpy()), rtol=1e-3)
    assert len(found.untrained) == 6 and "integrated attribution" in found.note
    with pytest.raises(ValueError, match="one of them at a time"):
        bp.probe(model, batches(), **ASKED | {"scores": bp.scores.ATTRIBUTIONS})


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("name", bp.scores.ATTRIBUTIONS)
def test_the_group_of_neurons_changes_nothing(name: str) -> None:
    model = network().eval()
    moved = network().eval()
    order = torch.randperm(12, generator=seeded(4))
    scale = torch.rand(12, generator=seeded(5)) * 3 + 0.1
    with torch.no_grad():
        moved[0].weight.copy_(scale[:, None] * model[0].weight[order])
        moved[0].bias.copy_(scale * model[0].bias[order])
        moved[3].weight.copy_(model[3].weight[:, order] / scale)
    one, other = (
        bp.probe(m, batches(), **ASKED | {"scores": name})["1"].scores[name] for m in (model, moved)
    )
    assert other.observed == pytest.approx(one.observed, rel=1e-5)
    assert other.effect == pytest.approx(one.effect, abs=0.8)
    assert np.allclose(other.per_direction, one.per_direction[order], rtol=1e-4)


@pytest.mark.slow
def test_a_null_that_is_asked_for_is_the_one_compared_with() -> None:
    def asked(null: Any) -> bp.SiteReport:
        with pytest.warns(bp.MisleadingNull) if null == "rotation" else contextlib.nullcontext():
            return bp.probe(network(), batches(), null=null, **ASKED)["1"]

    own = asked(None).scores["attribution"]
    few = asked(bp.nulls.SparseWiring(frames=29)).scores["attribution"]
    assert (len(own.null_values), len(few.null_values)) == (99, 29)
    assert np.array_equal(own.null_values[:29], few.null_values)
    turned = asked("rotation").scores["attribution"]
    assert turned.null == "rotation" and math.isnan(turned.p_adjusted)
    assert turned.observed == own.observed and "Nothing is claimed: the rotation" in turned.note
    without = asked("gaussian-surrogate")
    assert not without.scores
    assert any("belong to no gradient" in note for note in without.notes)


class Tokens(nn.Module):
    """A small language model whose neurons write into a stream without an axis of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.e, self.up, self.down = nn.Embedding(20, 8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.norm, self.out = nn.RMSNorm(8), nn.Linear(8, 20)
        nn.init.normal_(self.up.weight, std=0.3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.e(input_ids)
        x = x + self.down(F.gelu(self.up(self.norm(x))))
        return self.out(self.norm(x))


@pytest.mark.slow
def test_the_next_token_is_the_usual_loss_and_padding_has_no_say() -> None:
    with assets.seeded(0):
        model = Tokens()
    ids, mask = torch.randint(0, 20, (40, 9), generator=seeded(2)), torch.ones(40, 9)
    mask[:, 6:] = 0

    def probed(ids: Tensor) -> bp.Report:
        pairs = zip(ids.split(8), mask.split(8), strict=True)
        data = [{"input_ids": i, "attention_mask": m} for i, m in pairs]
        return bp.probe(model, data, sites=["gelu()", "e"], **ASKED)

    padded = ids.clone()
    padded[:, 6:] = torch.randint(0, 20, (40, 3), generator=seeded(3))
    one, other = probed(ids), probed(padded)
    for site, null in (("gelu()", "counterfactual neurons, refitted"), ("e", "rotation")):
        found = one[site].scores["attribution"]
        assert found.null == null and not found.decides and 0 < found.observed < 1
        assert found.observed == pytest.approx(other[site].scores["attribution"].observed)
        assert len(found.untrained) == (6 if null != "rotation" else 0)
        assert "Nine tenths of a sample's attribution" in found.note
    assert bp.Report.from_json(one.to_json()) == one


@pytest.mark.slow
def test_models_that_remember_what_they_computed_have_twins() -> None:
    class Remembering(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.last = network(), (None, None)

        def forward(self, x: Tensor) -> Tensor:
            self.last = (self.body[0](x), None)
            return self.body(x)

    model = Remembering()
    found = bp.probe(model, batches(), **ASKED)["body.1"].scores["attribution"]
    own = bp.probe(network(), batches(), **ASKED)["1"].scores["attribution"]
    assert found.untrained == own.untrained and model.last == (None, None)


def test_what_has_no_gradient_is_left_out_and_says_so() -> None:
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = network()

        def forward(self, x: Tensor) -> Tensor:
            return self.body[3](F.relu(self.body[0](x)).detach())

    report = bp.probe(Cut(), batches(), **ASKED)
    assert not report["relu()"].scores
    assert any("Attribution was left out: 0 of 240" in note for note in report["relu()"].notes)
    with pytest.raises(bp.DataError, match="give loss="):
        bp.probe(network(), [labelled()[0]], **ASKED)
    x, y = labelled()
    with pytest.raises(bp.DataError, match="has the class 4, and the model returns scores of 4"):
        bp.probe(network(), [(x, y + 1)], **ASKED)
    with torch.inference_mode():
        made = network()
    with pytest.raises(bp.DataError, match="was made in torch"):
        bp.probe(made, batches(), **ASKED)
    x[7, 0] = math.nan
    site = bp.probe(network(), [(x, y)], **ASKED)["1"]
    assert any("left out: activations are NaN or infinite in batch 0" in n for n in site.notes)
    with pytest.raises(bp.DataError, match="returns a tensor of one number"):
        bp.probe(network(), batches(), loss=lambda o, b: 1.0, **ASKED)  # pyright: ignore
    with pytest.raises(ValueError, match="no score reads it"):
        bp.probe(network(), batches(), loss=lambda o, b: o.sum())
    with pytest.raises(ValueError, match="needs the model and its data"):
        bp.probe_activations(labelled()[0], scores=["attribution"])
    with pytest.raises(ValueError, match="one of them at a time"):
        bp.probe(network(), batches(), reference=network(1), **ASKED)


@pytest.mark.slow
def test_features_on_neurons_and_on_axes_are_found() -> None:
    for kind in ("planted neurons", "planted stream"):
        found = p_of(KINDS[kind](1), 1)
        assert found.p_value <= 0.05 and found.effect > 3, kind
        assert found.p_adjusted == pytest.approx(found.p_tail) and "Fewer axes" in found.note
    for kind in ("untrained relu", "turned stream"):
        found = p_of(KINDS[kind](1), 1)
        assert found.p_value > 0.05 and "That is not beyond" in found.note, kind
        assert not math.isnan(found.p_value)


@pytest.mark.battery
@pytest.mark.parametrize("kind", ["untrained relu", "untrained gelu", "turned stream"])
def test_the_level_is_held(kind: str) -> None:
    called = sum(p_of(KINDS[kind](seed), seed).p_value <= 0.05 for seed in range(200))
    assert called <= 0.08 * 200
