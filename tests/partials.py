"""A small model seen in parts, and what two partials must share to be the same."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

import basis_probe as bp

SITES = ["0", "1", "3"]


def model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(6, 24), nn.GELU(), nn.Linear(24, 8), nn.ReLU(), nn.Linear(8, 3)
    ).eval()


def batches(batches: int = 7, rows: int = 40) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    # Their mean drifts, so that parts differ from each other.
    return [torch.randn(rows, 6, generator=generator) + 0.3 * n for n in range(batches)]


def observed(data: Any, **settings: Any) -> bp.Partial:
    settings = {"sites": SITES, "null": bp.nulls.Rotation(frames=19, samples=64)} | settings
    return bp.observe(settings.pop("model", model()), data, progress=False, **settings)


def reported(partial: bp.Partial, **settings: Any) -> bp.Report:
    settings = {"null": bp.nulls.Rotation(frames=19, samples=64), "certificates": False} | settings
    return partial.report(settings.pop("model", model()), progress=False, **settings)


def require_equal(one: bp.Partial, other: bp.Partial, *, within: float) -> None:
    assert one.seen.keys() == other.seen.keys()
    for name, seen in one.seen.items():
        twin = other.seen[name]
        assert (seen.bad, seen.missed) == (twin.bad, twin.missed)
        for mine, theirs in ((seen.moments, twin.moments), (seen.kurtosis, twin.kurtosis)):
            for field in dataclasses.fields(mine):
                a, b = (torch.as_tensor(getattr(v, field.name)) for v in (mine, theirs))
                # A third central sum may be nearly zero; its size is that of its terms.
                size = float(mine.m4.abs().max()) if field.name == "m3" else 0.0
                torch.testing.assert_close(a, b, rtol=within, atol=within * size, equal_nan=True)
        for mine, theirs in ((seen.kept, twin.kept), (seen.proof, twin.proof)):
            assert torch.equal(mine.priorities, theirs.priorities)
            assert mine.rows.keys() == theirs.rows.keys()
            assert mine.seen == theirs.seen
            for key, rows in mine.rows.items():
                assert torch.equal(rows, theirs.rows[key])
