"""The axes of two networks against each other: twins share theirs, strangers do not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from draws import seeded
from networks import network
from torch import Tensor, nn

import basis_probe as bp
from basis_probe.run.reference import convergence_score
from basis_probe.statistics.nulls import Rotation
from basis_probe.statistics.scores import Rows


def batches(count: int = 4) -> list[Tensor]:
    return list(torch.randn(count * 100, 6, generator=seeded(7)).split(100))


def probed(model: nn.Module, reference: nn.Module, **options: object) -> bp.Report:
    options = {"null": bp.nulls.Counterfactual(frames=39), "certificates": False, **options}
    return bp.probe(model, batches(), progress=False, reference=reference, **options)


def test_the_score_is_the_best_correlation() -> None:
    x, y = (torch.randn(50, 4, generator=seeded(s), dtype=torch.float64) for s in (0, 1))
    x[:, 2] = 5.0
    found = convergence_score(y).per_direction(Rows(x))
    table = np.corrcoef(np.c_[x[:, [0, 1, 3]].numpy(), y.numpy()].T)[:3, 3:]
    assert np.allclose(found[[0, 1, 3]].numpy(), np.abs(table).max(1), atol=1e-12)
    assert bool(found[2].isnan())
    some = torch.arange(50) % 2 == 0
    half = convergence_score(y).per_direction(Rows(x[some], chosen=some))
    expected = convergence_score(y[some]).per_direction(Rows(x[some]))
    assert torch.allclose(half, expected, equal_nan=True)


@pytest.mark.slow
def test_twins_share_their_axes_and_strangers_do_not() -> None:
    a = network(0)
    element = bp.groups.PositiveMonomial(12).draw(seeded(1))
    twin = bp.reparametrize(a, "1", element, example_input=batches()[0])
    near = probed(a, twin)["1"].scores["convergence"]
    assert near.observed == pytest.approx(1.0, abs=1e-6) and near.effect > 4
    assert near.p_value == pytest.approx(1 / 40) and not near.decides
    far = probed(a, network(1))["1"].scores["convergence"]
    assert abs(far.effect) < 3 and far.p_value > 0.02
    assert 0 < far.null_mean < 1


@pytest.mark.slow
def test_untrained_networks_do_not_converge_more_often_than_the_level() -> None:
    reports = [probed(network(seed), network(seed + 100), sites="1") for seed in range(6)]
    p_values = [report["1"].scores["convergence"].p_value for report in reports]
    assert min(p_values) > 0.02 and 0.2 < float(np.mean(p_values)) < 0.8


@pytest.mark.slow
def test_the_report_is_the_same_but_for_the_score_and_says_what_was_compared() -> None:
    a, other = network(0), network(1)
    other.train()
    with_other, alone = (
        probed(a, other),
        bp.probe(
            a,
            batches(),
            progress=False,
            null=bp.nulls.Counterfactual(frames=39),
            certificates=False,
        ),
    )
    for site in alone.sites:
        for name, score in alone[site].scores.items():
            assert with_other[site].scores[name].observed == score.observed
            assert with_other[site].scores[name].p_value == score.p_value
        assert with_other[site].verdict.outcome is alone[site].verdict.outcome
    assert other.training and "another network" in with_other.notes[-1]
    assert bp.Report.from_json(with_other.to_json()).sites == with_other.sites
    assert "convergence" in set(with_other.to_dataframe().score)


@pytest.mark.slow
def test_bases_that_are_only_defined_up_to_a_turn_can_still_converge() -> None:
    """Linear sites: a turned copy holds the same information, and not the same axes."""
    a = nn.Sequential(nn.Linear(6, 8), nn.Identity(), nn.Linear(8, 2))
    turned = bp.reparametrize(
        a, "0", bp.groups.Orthogonal(8).draw(seeded(0)), example_input=batches()[0]
    )
    by = {"sites": "0", "null": Rotation(frames=39), "groups": "orthogonal"}
    same = probed(a, a, **by)["0"].scores["convergence"]
    other = probed(a, turned, **by)["0"].scores["convergence"]
    assert same.observed == pytest.approx(1.0, abs=1e-6) and same.p_value == pytest.approx(1 / 40)
    assert other.observed < 0.95 and other.p_value > 0.03


@pytest.mark.slow
def test_what_makes_no_sense_is_refused_or_said() -> None:
    with pytest.raises(bp.SiteError, match="the reference has none of the sites 1"):
        probed(network(0), nn.Sequential(nn.Linear(6, 2)), sites="1")
    smaller = network(1)[:2]
    report = probed(network(0), nn.Sequential(*smaller, nn.Linear(12, 3)))
    assert "convergence" in report["1"].scores and "convergence" not in report["3"].scores
    assert any("no site 3" in note for note in report.notes)
