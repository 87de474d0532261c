"""Where one sample dwarfs all others, scores differ by rounding, and rounding calls no layer."""

from __future__ import annotations

import hypothesis
import pytest
import torch
from hypothesis import strategies
from torch import Tensor, nn

import basis_probe as bp

STANDS_OUT = (bp.Outcome.PRIVILEGED, bp.Outcome.EMERGENT)
SIZES = strategies.sampled_from([1e8, 3e9, 1e12, 1e18, 1e25, 1e30])
SEEDS = strategies.integers(0, 2**16)


def _rows(size: float, seed: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(500, width, generator=generator)
    place = int(torch.randint(500, (), generator=generator))
    rows[place, int(torch.randint(width, (), generator=generator))] = size
    return rows


@pytest.mark.slow
@hypothesis.given(size=SIZES, seed=SEEDS)
@hypothesis.example(size=1e15, seed=0)
@hypothesis.example(size=1e15, seed=3)
@hypothesis.settings(max_examples=2, deadline=None, derandomize=True)
def test_an_untrained_network_is_not_called_for_a_sample_that_dwarfs_the_others(
    size: float, seed: int
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(
            *(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 16), nn.GELU(), nn.Linear(16, 3))
        )
        # With these neurons are compared with turned ones, and turns round what they turn.
        for weight in model.parameters():
            if weight.ndim > 1:
                nn.init.normal_(weight, std=0.3)
    report = bp.probe(
        model, [_rows(size, seed, 8)], effort="quick", certificates=False, progress=False
    )
    assert not [s.site for s in report.site_reports if s.verdict.outcome in STANDS_OUT]
    # What rounding alone decides has no effect.
    for site in report.site_reports:
        score = site.scores["negentropy"]
        assert not abs(score.null_std) > 0 or score.p_value > 0.5


@pytest.mark.parametrize("group", ["permutation", "positive-monomial", "orthogonal"])
@hypothesis.given(size=SIZES, seed=SEEDS)
@hypothesis.settings(max_examples=3, deadline=None, derandomize=True)
def test_given_activations_of_which_one_dwarfs_the_others_are_not_called(
    group: str, size: float, seed: int
) -> None:
    rows = _rows(size, seed, 12)
    turn = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(seed)))[0]
    site = bp.probe_activations(rows @ turn, group=group)
    assert site.verdict.outcome not in STANDS_OUT
