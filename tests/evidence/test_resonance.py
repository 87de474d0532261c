"""Spotlight resonance: its curve by a naive count, what it sees, and what moves it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from draws import seeded

import basis_probe as bp


def test_the_curve_counts_samples_in_a_cone() -> None:
    x = torch.randn(40, 3, generator=seeded(0), dtype=torch.float64) + 0.2
    found = bp.spotlight_resonance(x, cosine=0.75, angles=16, frames=19)
    wanted = np.zeros(16)
    for place in range(16):
        angle = 2 * math.pi * place / 16
        for i, j in ((0, 1), (0, 2), (1, 2)):
            for row in x.numpy():
                at = math.cos(angle) * row[i] + math.sin(angle) * row[j]
                wanted[place] += at / np.linalg.norm(row) >= 0.75
    assert np.allclose(found.curve, wanted / (3 * 40)) and found.planes == 3
    assert found.plot().axes


def test_active_axes_and_active_pairs_are_told_apart() -> None:
    signs = torch.randint(0, 2, (600, 6), generator=seeded(1)).double() * 2 - 1
    one = torch.nn.functional.one_hot(torch.arange(600) % 6, 6) * signs
    noise = 0.1 * torch.randn(600, 6, generator=seeded(2), dtype=torch.float64)
    active = torch.rand(600, 6, generator=seeded(4)).argsort(1) < 2
    single = bp.spotlight_resonance(one + noise)
    two = bp.spotlight_resonance(active * signs + noise)
    assert single.contrast > 0 > two.contrast
    assert single.p_value == two.p_value == 1 / 40


def test_variance_and_offsets_move_it_and_standardising_takes_them_out() -> None:
    normal = torch.randn(3000, 6, generator=seeded(3), dtype=torch.float64)
    uneven = normal * torch.tensor([5.0, 1, 1, 1, 1, 1]).double() + torch.eye(6)[1] * 4
    assert bp.spotlight_resonance(uneven).p_value == 1 / 40
    calm = bp.spotlight_resonance(uneven, standardised=True)
    assert abs(calm.contrast - calm.null_mean) < 4 * calm.null_std


@pytest.mark.slow
def test_turned_bases_are_alike_where_no_axis_stands_out() -> None:
    p_values = [
        bp.spotlight_resonance(
            torch.randn(80, 4, generator=seeded(seed), dtype=torch.float64), frames=19, seed=seed
        ).p_value
        for seed in range(40)
    ]
    # 40 uniform values on twentieths: seven or more at the least has probability 0.003.
    assert sum(p <= 0.05 for p in p_values) < 7 and sum(p > 0.5 for p in p_values) > 8


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("dim", [2, 3, 5, 9])
def test_the_score_is_the_contrast_of_the_curve_over_all_planes(dim: int) -> None:
    generator = seeded(dim)
    active = torch.rand(800, dim, generator=generator).argsort(1) < 2
    x = active * torch.randn(800, dim, generator=generator, dtype=torch.float64)
    x[:7] = 0.0
    x += (
        0.1
        * torch.randn(800, dim, generator=generator, dtype=torch.float64)
        * (x.norm(dim=1) > 0)[:, None]
    )
    wanted = bp.spotlight_resonance(x, planes=1000, frames=19)
    found = bp.probe_activations(x, group="orthogonal", scores=["spotlight_resonance"])
    score = found.scores["spotlight_resonance"]
    assert score.observed == pytest.approx(wanted.contrast, abs=1e-12)


def test_the_score_sees_pairs_and_says_what_moves_it() -> None:
    signs = torch.randint(0, 2, (600, 6), generator=seeded(1)).double() * 2 - 1
    active = torch.rand(600, 6, generator=seeded(4)).argsort(1) < 2
    noise = 0.1 * torch.randn(600, 6, generator=seeded(2), dtype=torch.float64)
    found = bp.probe_activations(
        active * signs + noise, group="orthogonal", scores=["spotlight_resonance"]
    ).scores["spotlight_resonance"]
    assert found.observed < found.null_mean and found.p_value < 0.05
    declared = bp.scores.ALL["spotlight_resonance"]
    assert "unequal variances" in declared.not_for and "offsets" in declared.not_for


def test_a_curve_at_zero_says_that_it_says_nothing() -> None:
    found = bp.spotlight_resonance(torch.randn(50, 200, generator=seeded(0)), planes=9, frames=19)
    assert found.p_value == 1 and "nothing can be told" in str(found)


REFUSED: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    (torch.zeros(9, 3), {}, ValueError, "all samples are zero"),
    (torch.zeros(9, 3, dtype=torch.int64), {}, TypeError, "x holds int64"),
    (torch.ones(9, 1), {}, ValueError, "two axes or more"),
    (torch.full((9, 3), torch.nan), {}, ValueError, "NaN or infinite"),
    (torch.ones(9, 3), {"cosine": 1.0}, ValueError, "cosine=1.0: give a number above 0.7071"),
    (torch.ones(9, 3), {"cosine": 0.7}, ValueError, "holds the samples of both"),
    (torch.ones(9, 3), {"angles": 20}, ValueError, "angles=20: give a multiple of 16"),
    (torch.ones(9, 3), {"frames": 3}, ValueError, "frames=3: give at least 19"),
    (torch.ones(9, 3), {"standardised": True}, ValueError, "0 axes vary"),
]


@pytest.mark.parametrize(("x", "how", "kind", "message"), REFUSED)
def test_what_makes_no_sense_is_refused(
    x: Any, how: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        bp.spotlight_resonance(x, **how)
