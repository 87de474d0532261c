"""Convolutions in groups: channels change places inside the groups, and rescale as they may."""

import copy

import pytest
import torch
from torch import Tensor, nn

import basis_probe as bp
from basis_probe import groups as G


def settled(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model.double().eval()


def images(count: int) -> Tensor:
    return torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(1)).double()


def bottleneck(bend: nn.Module, normed: bool = False) -> nn.Sequential:
    norm = nn.BatchNorm2d(8) if normed else nn.Identity()
    return nn.Sequential(
        nn.Conv2d(3, 12, 1), bend, nn.Conv2d(12, 8, 3, padding=1, groups=4), norm,
        copy.deepcopy(bend),
        nn.Conv2d(8, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2),
    )  # fmt: skip


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize(
    ("bend", "kind"), [(nn.ReLU(), G.PositiveMonomial), (nn.SiLU(), G.Permutation)]
)
def test_channels_stay_in_their_groups(
    bend: nn.Module, kind: type[G.OnAxes], *, normed: bool
) -> None:
    model, x = settled(bottleneck(bend, normed)), images(2)
    found = bp.symmetries(model, x)
    for site, size in (("1", 3), ("4", 2)):
        group = G.DirectSum((kind(size),) * 4)
        assert found[site].group == group, (site, found[site])
        assert found[site].certificate is not None and found[site].certificate.holds
        element = group.sample(torch.Generator().manual_seed(2))
        twin = bp.reparametrize(model, site, element, example_input=x)
        torch.testing.assert_close(twin(images(5)), model(images(5)), rtol=1e-8, atol=1e-8)


def test_without_anything_that_keeps_axes_groups_are_unknown() -> None:
    model = settled(bottleneck(nn.Identity()))
    found = bp.symmetries(model, images(2))["0"]
    assert found.group == G.Unknown(12)
    assert "in groups" in found.because
