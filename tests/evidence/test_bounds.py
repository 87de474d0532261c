"""What is not seen on axes has a bound, whatever they were compared with."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from draws import seeded
from torch import Tensor

import basis_probe as bp
from basis_probe.algebra.haar import haar
from basis_probe.verdict import outliers_across

DIM, ROWS = 16, 1500


def _sources(share: float, seed: int) -> Tensor:
    generator = seeded(seed)
    uniform = torch.rand(ROWS, DIM, generator=generator, dtype=torch.float64) - 0.5
    laplace = -uniform.sign() * (1 - 2 * uniform.abs()).log() / math.sqrt(2)
    normal = torch.randn(ROWS, DIM, generator=generator, dtype=torch.float64)
    return math.sqrt(1 - share) * normal + math.sqrt(share) * laplace


def _layer(sources: Tensor, seed: int) -> dict[str, Any]:
    """Neurons that each read one of the sources, which a turn hides in their input."""
    turn = haar(DIM, seeded(seed))
    return {
        "activations": (sources + 0.2).relu(),
        "group": "positive-monomial",
        "inputs": sources @ turn,
        "weight": turn,
        "bias": torch.full((DIM,), 0.2, dtype=torch.float64),
        "nonlinearity": "relu",
    }


def _probed(made: dict[str, Any], **how: Any) -> bp.SiteReport:
    return bp.probe_activations(made.pop("activations"), **made, **how)


@pytest.mark.slow
def test_neurons_that_do_not_stand_out_have_a_bound_before_their_nonlinearity() -> None:
    held = stated = 0
    for seed in range(4):
        verdict = _probed(_layer(_sources(0.1, seed), seed), seed=seed).verdict
        if verdict.outcome is bp.Outcome.UNUSED:
            assert verdict.bound is not None and "before the nonlinearity" in verdict.bound.reads
            assert "95 % confidence the neurons' excess kurtosis" in verdict.sentence
            stated += 1
            held += verdict.bound.excess >= 3 * 0.1**2
    assert stated >= 2 and held >= stated - 1
    assert _probed(_layer(_sources(0.9, 1), 1)).verdict.bound is None


@pytest.mark.sample(default=1)
@pytest.mark.parametrize(
    "group", ["orthogonal", "general-linear", "line-stabiliser", "permutation"]
)
def test_every_geometry_has_a_bound_with_the_unit_left_out(group: str) -> None:
    x = torch.randn(ROWS, DIM, generator=seeded(5), dtype=torch.float64)
    if group in ("general-linear", "permutation"):
        x[:, 3] = 0.5  # never varies, and where the space may be rotated, stands out by that
    verdict = bp.probe_activations(x, group=group, seed=1).verdict
    other = bp.probe_activations(1e6 * x, group=group, seed=1).verdict
    assert verdict.outcome in (bp.Outcome.ARBITRARY, bp.Outcome.UNUSED)
    assert verdict.bound is not None and other.bound is not None
    assert 0 < verdict.bound.excess < 0.25
    assert other.bound.excess == pytest.approx(verdict.bound.excess, rel=1e-3)
    assert "95 % confidence the axes' excess kurtosis (root" in verdict.sentence


@pytest.mark.slow
def test_another_basis_that_stands_out_is_said_beside_the_bound() -> None:
    hidden = _sources(1.0, 7) ** 3
    hidden = hidden / hidden.std(0) @ haar(DIM, seeded(2))
    verdict = bp.probe_activations(hidden, group="orthogonal").verdict
    assert verdict.outcome is bp.Outcome.ARBITRARY and verdict.bound is not None
    assert verdict.bound.ceiling < 0.6
    assert "Directions that stand out were found" in verdict.sentence


@pytest.mark.slow
def test_outlying_axes_are_compared_from_site_to_site() -> None:
    def rows(axes: list[int], seed: int) -> Tensor:
        x = torch.randn(600, 30, generator=seeded(seed), dtype=torch.float64)
        x[:, axes] *= 12
        return x

    same = {f"layer {i}": rows([4, 17], i) for i in range(2)}
    report = bp.probe_activations(same, group="orthogonal")
    [said] = report.notes
    assert "on the same axes" in said and "axis 17 at 2" in said and "axis 4 at 2" in said
    # One bar a site: what adds to the kurtosis of a sample, right of zero, is its total.
    figure = report.plot("kurtosis")
    for place, site in enumerate(report):
        split = site.per_sample
        assert split is not None
        bars = [bar for bar in figure.axes[0].patches if abs(bar.get_y() + 0.35 - place) < 0.1]
        assert len(bars) == 4
        assert sum(bar.get_width() for bar in bars) == pytest.approx(split.total)
    apart = {f"layer {i}": rows([4 + i, 17 + i], i) for i in range(2)}
    [said] = outliers_across(bp.probe_activations(apart, group="orthogonal").site_reports)
    assert "on different axes" in said and "none at more than 1" in said
    one = {"a": rows([3], 0), "b": rows([], 1)}
    assert outliers_across(bp.probe_activations(one, group="orthogonal").site_reports) == ()
    neurons = bp.probe_activations({"a": rows([], 1)}, group="permutation")
    with pytest.raises(ValueError, match="no site of this report: give sites whose group holds"):
        neurons.plot("kurtosis")
