"""Channels made of few others, or of largest values, are not compared with mixtures of all."""

import pytest
import torch
from torch import Tensor, nn

import basis_probe as bp


def _network(groups: int, act: nn.Module, *, norm: bool) -> tuple[nn.Module, list[Tensor]]:
    torch.manual_seed(0)
    between = nn.BatchNorm2d(16) if norm else nn.Identity()
    model = nn.Sequential(
        nn.Conv2d(16, 16, 3, padding=1, groups=groups),
        between,
        act,
        nn.Flatten(),
        nn.Linear(16 * 36, 3),
    )
    return model.eval(), list((torch.randn(60, 16, 6, 6) ** 3).split(20))


@pytest.mark.sample(default=3)
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("act", [nn.ReLU(), nn.GELU(), nn.Hardswish()])
@pytest.mark.parametrize("groups", [4, 16])
def test_untrained_channels_made_of_few_others_are_undecided_with_the_reason(
    groups: int, act: nn.Module, norm: bool
) -> None:
    model, data = _network(groups, act, norm=norm)
    (site,) = bp.probe(model, data, sites=["2"], certificates=False, progress=False)
    assert site.verdict.outcome is bp.Outcome.UNDECIDED
    few = "one channel" if groups == 16 else "one group of channels"
    assert f"a convolution makes every channel of {few}" in site.verdict.sentence
    # What turning says is there to be seen.
    assert site.scores["negentropy"].p_value <= 0.05


@pytest.mark.parametrize("norm", [False, True])
def test_channels_that_a_convolution_makes_of_all_are_decided(norm: bool) -> None:
    model, data = _network(1, nn.ReLU(), norm=norm)
    (site,) = bp.probe(model, data, sites=["2"], certificates=False, progress=False)
    assert site.verdict.outcome is bp.Outcome.UNUSED


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("act", [nn.ReLU(), nn.SiLU()])
@pytest.mark.parametrize("norm", [False, True])
def test_channels_of_which_the_largest_are_taken_before_they_are_bent_are_undecided(
    act: nn.Module, norm: bool
) -> None:
    torch.manual_seed(0)
    between = nn.BatchNorm2d(16) if norm else nn.Identity()
    model = nn.Sequential(
        nn.Conv2d(6, 16, 3), nn.MaxPool2d(2), between, act, nn.Flatten(), nn.Linear(64, 3)
    ).eval()
    data = list((torch.randn(200, 6, 6, 6) ** 3).split(50))
    (site,) = bp.probe(model, data, sites=["3"], certificates=False, progress=False)
    assert site.verdict.outcome is bp.Outcome.UNDECIDED
    assert "max pooling takes the largest of several positions" in site.verdict.sentence
