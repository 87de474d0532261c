"""Networks whose neurons cannot stand out do not, on real data; trained ones do: the whole job."""

from __future__ import annotations

import math
import statistics

import assets
import null_networks
import pytest

import basis_probe as bp
from basis_probe import Outcome, Report

pytestmark = pytest.mark.slow

FEW = bp.nulls.Counterfactual(samples=1024)


# Neurons that were wired to few inputs stand out before any training: the report says so.
UNTRAINED = [
    name for name in null_networks.NETWORKS if "turned" not in name and "zeros" not in name
]
# The rates of language models are counted by hundreds elsewhere.
LANGUAGE = ("GPT-2", "Llama")
TURNED = [name for name in null_networks.NETWORKS if "turned" in name]


@pytest.mark.parametrize("name", TURNED)
def test_turned_neurons_of_trained_networks_hardly_stand_out(name: str) -> None:
    """They still read the subspace that training found, so that no null is exact for them.

    What is left of it is small beside the effects of a hundred that the neurons themselves have.
    """
    reports = [null_networks.NETWORKS[name].probe(seed, null=FEW) for seed in range(2)]
    for score, effects in null_networks.effects(reports).items():
        assert statistics.fmean(map(abs, effects)) <= 2, (score, effects)
        assert max(map(abs, effects)) <= 6, (score, effects)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.battery if name.split()[0] in LANGUAGE else ())
        for name in UNTRAINED
    ],
)
def test_networks_whose_neurons_cannot_stand_out_do_not(name: str) -> None:
    seeds = 2 if "ResNet20" in name else 4
    reports = [null_networks.NETWORKS[name].probe(seed, null=FEW) for seed in range(seeds)]
    # Holm holds the chance that any site of a report is called at 5 %.
    assert null_networks.standing_out(reports) <= 1
    for score, effects in null_networks.effects(reports).items():
        assert len(effects) >= 12
        # Effects of one network are not quite independent; three standard errors leave room for it.
        mean, spread = statistics.mean(effects), statistics.stdev(effects)
        assert abs(mean) <= 3 / math.sqrt(len(effects)) + 0.2, (score, effects)
        assert 0.5 <= spread <= 1.7, (score, effects)


def _llama() -> Report:
    return bp.probe(assets.llama(), assets.story_tokens(64).split(32), seed=7, progress=False)


def _resnet() -> Report:
    images, _ = assets.cifar(96, colours=assets.RESNET_COLOURS)
    return bp.probe(assets.resnet(20), images.split(48), seed=7, progress=False)


def test_the_neurons_of_a_trained_llama_stand_out() -> None:
    effects = [
        site.scores["kurtosis"].effect
        for site in _llama()
        if site.kind.startswith("neurons") and site.verdict.outcome is Outcome.PRIVILEGED
    ]
    # Measured before with 138, 14, 19, 12 and 9 on more text.
    assert len(effects) == 5
    assert effects[0] > 60
    assert min(effects) > 5


def test_a_raw_rotation_calls_an_untrained_network_special() -> None:
    for site in null_networks.NETWORKS["ReLU MLP"].probe(0, null=FEW):
        assert site.beside["kurtosis"].effect > 20
        assert abs(site.scores["kurtosis"].effect) < 4
        assert site.verdict.outcome is Outcome.UNUSED


def test_one_sidedness_explains_the_heavy_tails_of_a_trained_resnet() -> None:
    inner = [site for site in _resnet() if site.site.endswith(".relu()")]
    assert len(inner) == 9
    assert statistics.median(site.beside["kurtosis"].effect for site in inner) > 30
    assert abs(statistics.median(site.scores["kurtosis"].effect for site in inner)) < 3
