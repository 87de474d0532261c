"""Where a group acts on parts of the axes by themselves, what a part has of its own is nothing."""

from __future__ import annotations

import math

import pytest
import torch
from draws import seeded
from torch import Tensor

import basis_probe as bp
from basis_probe.algebra.groups import (
    Blocks,
    DirectSum,
    GeneralLinear,
    Group,
    LineRotations,
    Orthogonal,
    Planes,
)
from basis_probe.algebra.haar import haar

_SAMPLES = 1500

GROUPS: dict[str, Group] = {
    "heads that rotate": Blocks(Orthogonal(8), count=4),
    "heads that rotate, two queries each": Blocks(Orthogonal(8), count=2, copies=2),
    "heads of planes": Blocks(Planes(8), count=4),
    "two rotations side by side": DirectSum((Orthogonal(8), Orthogonal(24))),
    "two streams behind layer norms": DirectSum((LineRotations(12), LineRotations(20))),
    "two linear maps side by side": DirectSum((GeneralLinear(8), GeneralLinear(24))),
    "a linear map beside a rotation": DirectSum((GeneralLinear(16), Orthogonal(16))),
}


def _cut(group: Group) -> int:
    """Where the axes are cut in two that differ; no part lies on both sides."""
    if isinstance(group, DirectSum):
        return group.parts[0].dim
    assert isinstance(group, Blocks)
    return group.inner.dim * group.copies


def _unlike(group: Group, seed: int) -> Tensor:
    """Isotropic parts: the first is loud and heavy-tailed, the other quiet and Gaussian."""
    x = torch.randn(_SAMPLES, group.dim, generator=seeded(seed)).double()
    cut = _cut(group)
    chi = torch.randn(_SAMPLES, 4, generator=seeded(seed + 100)).double().square().mean(1)
    x[:, :cut] *= 10 * chi.rsqrt()[:, None]
    x[:, cut:] += 3 * torch.randn(group.dim - cut, generator=seeded(seed + 200)).double()
    return x


def _null() -> bp.nulls.Rotation:
    return bp.nulls.Rotation(frames=99, samples=_SAMPLES)


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("name", GROUPS)
def test_parts_that_differ_do_not_make_their_axes_stand_out(name: str) -> None:
    """Turned all together, the axes of the loud part stand out against mixtures of both."""
    group = GROUPS[name]
    found = bp.probe_activations(_unlike(group, 1), group=group, null=_null())
    assert found.verdict.outcome is bp.Outcome.ARBITRARY, found.verdict.sentence
    assert found.orders == () and found.null is not None
    assert found.null.geometry == "parts"
    assert "every part by itself" in found.null.because


@pytest.mark.battery
@pytest.mark.parametrize("name", GROUPS)
def test_parts_that_differ_are_called_at_the_level(name: str) -> None:
    group, called, count = GROUPS[name], 0, 100
    for seed in range(count):
        found = bp.probe_activations(_unlike(group, 1000 + seed), group=group, null=_null())
        called += found.verdict.outcome is not bp.Outcome.ARBITRARY
    # At a true rate of 5 %, more than 12 of 100 have a probability of 0.1 %.
    assert called <= 12


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("name", [n for n in GROUPS if "planes" not in n])
def test_sources_on_the_axes_of_a_part_are_found_and_turned_ones_are_not(name: str) -> None:
    group = GROUPS[name]
    uniform = torch.rand(_SAMPLES, group.dim, generator=seeded(3)).double() - 0.5
    sources = -uniform.sign() * (1 - 2 * uniform.abs()).log() / math.sqrt(2)
    x = _unlike(group, 2)
    first = group.parts[0].dim if isinstance(group, DirectSum) else 8
    copies = group.copies if isinstance(group, Blocks) else 1
    for on_axes in (True, False):
        one = sources[:, :first] if on_axes else sources[:, :first] @ haar(first, seeded(4))
        x[:, : first * copies] = one.repeat(1, copies)
        found = bp.probe_activations(x, group=group, null=_null()).verdict
        expected = bp.Outcome.EMERGENT if on_axes else bp.Outcome.ARBITRARY
        assert found.outcome is expected, found.sentence
        assert found.orders == (("form",) if on_axes else ())
