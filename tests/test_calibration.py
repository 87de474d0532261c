"""Untrained networks do not stand out on real data, trained ones do: the whole job, for real."""

from __future__ import annotations

import math
import statistics

import assets
import pytest
import torch
from torch import nn

import basis_probe as bp
from basis_probe import Outcome, Report

pytestmark = pytest.mark.slow

NEURONS = "neurons"


def _llama(seed: int | None) -> Report:
    return bp.probe(
        assets.llama(seed=seed), assets.story_tokens(64).split(32), seed=7, progress=False
    )


def _gpt2(seed: int | None) -> Report:
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = GPT2Config(
        vocab_size=512,
        n_positions=128,
        n_embd=96,
        n_layer=3,
        n_head=4,
        bos_token_id=1,
        eos_token_id=2,
    )
    with assets.seeded(seed):
        model = GPT2LMHeadModel(shape).eval()
    return bp.probe(model, assets.story_tokens(64).split(32), seed=7, progress=False)


def _mlp(seed: int | None) -> Report:
    with assets.seeded(seed):
        model = nn.Sequential(
            nn.Flatten(),
            *(nn.Linear(3072, 192), nn.ReLU(), nn.Linear(192, 192), nn.ReLU()),
            *(nn.Linear(192, 96), nn.ReLU(), nn.Linear(96, 10)),
        ).eval()
    images, _ = assets.cifar(2000, colours=assets.SMALL_CNN_COLOURS)
    return bp.probe(model, images.split(500), seed=7, progress=False)


def _resnet(seed: int | None) -> Report:
    images, _ = assets.cifar(96, colours=assets.RESNET_COLOURS)
    model = assets.resnet(20, seed=seed)
    if seed is not None:
        # An untrained network has seen no data: what its batch norms expect is estimated on them.
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
                module.momentum = None
        model.train()
        with torch.no_grad():
            model(images)
        model.eval()
    return bp.probe(model, images.split(48), seed=7, progress=False)


@pytest.mark.parametrize(
    ("make", "seeds"),
    [(_llama, range(3)), (_gpt2, range(3)), (_mlp, range(5)), (_resnet, range(1))],
    ids=["Llama shape", "GPT-2 shape", "ReLU MLP", "ResNet20 shape"],
)
def test_untrained_networks_do_not_stand_out(make, seeds) -> None:
    reports = [make(seed) for seed in seeds]
    sites = [site for report in reports for site in report]
    called = [
        site for site in sites if site.verdict.outcome in (Outcome.PRIVILEGED, Outcome.EMERGENT)
    ]
    # Holm holds the chance that any site of a report is called at 5 %.
    assert len({id(r) for r in reports for s in r if s in called}) <= 1
    for score in ("non_gaussianity", "kurtosis"):
        effects = [
            site.scores[score].effect
            for site in sites
            if site.kind.startswith(NEURONS) and site.scores[score].decides
        ]
        assert len(effects) >= 9
        # Effects of one network are not quite independent; three standard errors leave room for it.
        assert abs(statistics.mean(effects)) <= 3 / math.sqrt(len(effects)) + 0.1
        assert 0.5 <= statistics.stdev(effects) <= 1.6


def test_the_neurons_of_a_trained_llama_stand_out() -> None:
    effects = [
        site.scores["kurtosis"].effect
        for site in _llama(None)
        if site.kind.startswith(NEURONS) and site.verdict.outcome is Outcome.PRIVILEGED
    ]
    # Measured before with 138, 14, 19, 12 and 9 on more text.
    assert len(effects) == 5
    assert effects[0] > 60
    assert min(effects) > 5


def test_a_raw_rotation_calls_an_untrained_network_special() -> None:
    for site in _mlp(0):
        assert site.beside["kurtosis"].effect > 20
        assert abs(site.scores["kurtosis"].effect) < 4
        assert site.verdict.outcome is Outcome.UNUSED


def test_one_sidedness_explains_the_heavy_tails_of_a_trained_resnet() -> None:
    inner = [site for site in _resnet(None) if site.site.endswith(".relu()")]
    assert len(inner) == 9
    assert statistics.median(site.beside["kurtosis"].effect for site in inner) > 30
    assert abs(statistics.median(site.scores["kurtosis"].effect for site in inner)) < 3
