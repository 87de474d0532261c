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


class Parted(nn.Module):
    """Rectified channels that something parts, or puts in another order, before a map reads them.

    Args:
        between: what it does; it may use the map `own`.
        groups: of the convolution behind; with one group there is a map `own` of a half.
    """

    def __init__(self, between, groups: int) -> None:
        super().__init__()
        self.between = between
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.own = nn.Conv2d(4, 4, 1) if groups == 1 else None
        self.b, self.o = nn.Conv2d(8, 8, 1, groups=groups), nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.between(self, torch.relu(self.a(x)))
        return self.o(torch.relu(self.b(h)))


def shuffled_by_hand(_: nn.Module, h: torch.Tensor) -> torch.Tensor:
    return h.unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2)


def half_of_it(s: nn.Module, h: torch.Tensor) -> torch.Tensor:
    """One half passes, a convolution reads the other, and both are joined again."""
    kept, taken = h.chunk(2, 1)
    return torch.cat([kept, torch.relu(s.own(taken))], 1)


def interleaved(s: nn.Module, h: torch.Tensor) -> torch.Tensor:
    return torch.cat([h[:, ::2], torch.relu(s.own(h[:, 1::2]))], 1)


POSITIVE = G.PositiveMonomial
PARTED = {
    "by hand": (shuffled_by_hand, 2, [2, 2, 2, 2], [4, 4]),
    "in one call": (lambda _, h: torch.channel_shuffle(h, 4), 2, [1] * 8, [4, 4]),
    "the other way round": (lambda _, h: h.flip(1), 4, [2] * 4, [2] * 4),
    "by numbers": (lambda _, h: h[:, [1, 0, 3, 2, 5, 4, 7, 6]], 4, [2] * 4, [2] * 4),
    "a half": (half_of_it, 1, [4, 4], [4, 4]),
    "every other one": (interleaved, 1, [1] * 8, [4, 4]),
}  # fmt: skip


@pytest.mark.sample(default=3)
@pytest.mark.parametrize("name", PARTED)
def test_channels_keep_to_their_part_wherever_it_goes(name: str) -> None:
    between, groups, before, behind = PARTED[name]
    model, generator = Parted(between, groups), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    model = model.double().eval().requires_grad_(False)
    x, y = (torch.randn(2, 3, size, 5, generator=generator).double() for size in (5, 7))
    claims = bp.symmetries(model, x, certificates=False)
    found = bp.symmetries(model, x)
    for site, sizes in (("a", before), ("b:in", behind)):
        group = G.DirectSum(tuple(map(POSITIVE, sizes)))
        assert found[site].group == claims[site].group == group
        assert found[site].certificate is not None and found[site].certificate.holds
        twin = bp.reparametrize(model, site, group.generic(generator).matrix(), example_input=x)
        for given in (x, y):
            torch.testing.assert_close(twin(given), model(given), rtol=1e-9, atol=1e-9)


def test_parts_that_belong_together_are_not_said_to_change_by_themselves() -> None:
    def gated(_: nn.Module, h: torch.Tensor) -> torch.Tensor:
        first, second = h.chunk(2, 1)
        return torch.cat([first * second, first], 1)

    found = bp.symmetries(Parted(gated, 2).eval(), torch.randn(2, 3, 5, 5), certificates=False)
    assert found["a"].group == G.Unknown(8)
    assert "change places together" in found["a"].because


def test_an_order_that_nothing_holds_is_not_guessed() -> None:
    layers = nn.Conv2d(3, 8, 1), nn.ChannelShuffle(2), nn.Conv2d(8, 2, 1)
    found = bp.symmetries(nn.Sequential(*layers), torch.randn(2, 3, 4, 4))["0"]
    assert found.group == G.Unknown(8)
    assert "another order" in found.because
