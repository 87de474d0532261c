"""Neurons that read channels of all positions through one norm are compared like any others."""

from __future__ import annotations

import hypothesis
import torch
from hypothesis import strategies
from torch import nn

import basis_probe as bp

NORMS = {"layer norm": nn.LayerNorm, "RMS norm": nn.RMSNorm, "batch norm": nn.BatchNorm1d}


@hypothesis.given(
    channels=strategies.integers(2, 6),
    positions=strategies.integers(2, 4),
    norm=strategies.sampled_from([*NORMS]),
    bends=strategies.booleans(),
    bias=strategies.booleans(),
    seed=strategies.integers(0, 2**16),
)
@hypothesis.settings(max_examples=3, deadline=None, derandomize=True)
def test_a_layer_behind_a_norm_over_all_positions_is_computed_again_from_what_it_reads(
    *, channels: int, positions: int, norm: str, bends: bool, bias: bool, seed: int
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        between = NORMS[norm](channels * positions**2)
        model = nn.Sequential(
            *(nn.Conv2d(2, channels, 3), nn.ReLU() if bends else nn.Identity(), nn.Flatten()),
            *(between, nn.Linear(channels * positions**2, 12, bias=bias), nn.ReLU()),
            nn.Linear(12, 3),
        ).eval()
        # A gain and a shift of their own for every channel at every position.
        for parameter in between.parameters():
            nn.init.uniform_(parameter, 0.5, 1.5)
        data = [torch.randn(110, 2, positions + 2, positions + 2) for _ in range(2)]
    site = bp.probe(model, data, sites="5", progress=False)["5"]
    # What cannot be computed again is compared with turned pre-activations, and a note says so.
    assert site.null is not None and site.null.name in ("counterfactual", "sparse-wiring")
    assert not site.notes
    assert site.symmetry.certificate is not None and site.symmetry.certificate.holds
