"""Dependent samples are worth what they are worth, and intervals hold what they should."""

import math

import pytest
import torch
from draws import seeded
from torch import Tensor

from basis_probe.statistics.dependence import (
    cluster_bootstrap,
    cluster_jackknife,
    design_effect,
    effective_samples,
    excess_over_turns,
)
from basis_probe.statistics.scores import NEGENTROPY, NON_GAUSSIANITY


def _gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def test_effective_samples_is_one_over_the_mean_fourth_power_of_cosines() -> None:
    x = _gaussian(50, 7) + 1
    cosines = torch.nn.functional.cosine_similarity(x[:, None], x[None], dim=2)
    assert effective_samples(x) == pytest.approx(1 / float(cosines.pow(4).mean()))
    assert effective_samples(torch.cat([x, torch.zeros(5, 7).double()])) == effective_samples(x)
    assert effective_samples(torch.eye(9)[:1]) == 1


def test_tokens_at_cosine_nine_tenths_are_one_and_a_half() -> None:
    x = _gaussian(1, 768) + _gaussian(200, 768, seed=1) / 3
    found = effective_samples(x)
    assert found == pytest.approx(1.5, abs=0.05)
    many = _gaussian(1, 768) + _gaussian(5000, 768, seed=2) / 3
    some = effective_samples(many, pairs=200, generator=seeded())
    assert some == pytest.approx(1.5, abs=0.05)


def test_unrelated_samples_stay_below_what_the_space_allows() -> None:
    found = effective_samples(_gaussian(4000, 6), pairs=1000, generator=seeded(1))
    assert found == pytest.approx(6 * 8 / 3, rel=0.05)


def _grouped(groups: int, size: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Values of which a share of the variance is common to a group."""
    common = _gaussian(groups, 1, seed=seed).repeat_interleave(size, 0)
    own = _gaussian(groups * size, 1, seed=seed + 1000)
    labels = torch.arange(groups).repeat_interleave(size)
    return math.sqrt(share) * common + math.sqrt(1 - share) * own, labels


def test_design_effect_of_a_known_share() -> None:
    for share in (0.0, 0.3, 1.0):
        found = torch.stack([design_effect(*_grouped(60, 10, share, s)) for s in range(40)]).mean()
        assert float(found) == pytest.approx(1 + 9 * share, rel=0.08)
    values, labels = _grouped(5, 3, 0.5, 1)
    shuffled = torch.randperm(15, generator=seeded())
    torch.testing.assert_close(
        design_effect(values[shuffled], labels[shuffled] * 7 - 3), design_effect(values, labels)
    )
    assert design_effect(torch.ones(15, 1), labels).isnan().all()


@pytest.mark.parametrize("method", [cluster_bootstrap, cluster_jackknife])
def test_standard_errors_of_means_of_groups(method) -> None:
    values, labels = _grouped(100, 5, 0.5, 3)
    # The jackknife of single groups is the textbook's formula; the bootstrap comes near it.
    options, near = (
        ({"draws": 400}, 0.15) if method is cluster_bootstrap else ({"folds": 100}, 1e-6)
    )
    found = method(lambda rows: float(values[rows].mean()), labels, generator=seeded(), **options)
    expected = float(values.reshape(100, 5).mean(1).std()) / 10
    assert found.std == pytest.approx(expected, rel=near)
    assert found.value == pytest.approx(float(values.mean()))
    assert found.groups == 100
    assert found.low < found.value < found.high
    assert found.std > 1.2 * float(values.std()) / math.sqrt(500)
    assert "100 groups" in found.method
    # Which samples lie beside which is no matter.
    order = torch.randperm(500, generator=seeded(1))
    again = method(
        lambda rows: float(values[order][rows].mean()),
        labels[order],
        generator=seeded(),
        **options,
    )
    assert again.std == pytest.approx(found.std, rel=1e-6)


@pytest.mark.parametrize("method", [cluster_bootstrap, cluster_jackknife])
def test_intervals_hold_the_true_value_as_often_as_they_say(method) -> None:
    held = 0
    for seed in range(200):
        values, labels = _grouped(40, 5, 0.6, 10 * seed)
        options = {"draws": 100} if method is cluster_bootstrap else {}
        found = method(
            lambda rows, v=values: float(v[rows].mean()),
            labels,
            generator=seeded(seed),
            **options,
        )
        held += found.low <= 0 <= found.high
    assert 0.88 * 200 <= held <= 0.99 * 200


def test_the_jackknife_leaves_out_every_group_once() -> None:
    x, labels = _gaussian(30, 1)[:, 0], torch.arange(30) // 3
    seen = []
    cluster_jackknife(
        lambda rows: seen.append(rows) or float(x[rows].mean()), labels, generator=seeded()
    )
    left_out = [set(range(30)) - set(rows.tolist()) for rows in seen[:-1]]
    assert sorted(row for rows in left_out for row in rows) == list(range(30))
    assert all(len({int(labels[i]) for i in rows}) == 1 for rows in left_out)


def _rogue(seed: int) -> Tensor:
    x = _gaussian(1000, 16, seed=seed)
    x[:, 0] = 20 * x[:, 0] + 30
    return x


def test_one_rogue_dimension_is_no_excess_of_form() -> None:
    from basis_probe.algebra.haar import haar

    beyond, sure = 0, 0
    for seed in range(20):
        x, generator = _rogue(seed), seeded(seed)
        found = excess_over_turns(x, NON_GAUSSIANITY, torch.arange(1000), generator=generator)
        sure += found.low > 0
        turned = [
            NON_GAUSSIANITY.per_direction(_rows(x @ haar(16, generator))).mean() for _ in range(19)
        ]
        beyond += bool(NON_GAUSSIANITY.per_direction(_rows(x)).mean() > max(turned))
    # Against turns alone it is called again and again; against the samples, it is not.
    assert beyond >= 5
    assert sure <= 3


def _rows(x: Tensor):
    from basis_probe.statistics.scores import Rows

    return Rows(x)


def test_sources_on_the_axes_are_an_excess() -> None:
    x = _gaussian(1000, 16).sign() + 0.5 * _gaussian(1000, 16, seed=1)
    found = excess_over_turns(x, NEGENTROPY, torch.arange(1000), generator=seeded())
    assert found.low > 0.01
    assert found.value / found.std > 10


@pytest.mark.usefixtures("as_shipped")
def test_errors_say_what_was_given_and_what_to_do() -> None:
    x, own = _gaussian(10, 3), torch.arange(10)
    with pytest.raises(ValueError, match="none of 4 samples is other than zero"):
        effective_samples(torch.zeros(4, 3))
    with pytest.raises(ValueError, match="more than pairs=5: give a generator"):
        effective_samples(x, pairs=5)
    with pytest.raises(ValueError, match="fewer than two"):
        design_effect(x, torch.zeros(10, dtype=torch.int64))
    with pytest.raises(ValueError, match="give one number each"):
        design_effect(x, torch.arange(9))
    with pytest.raises(ValueError, match="draws=1"):
        cluster_bootstrap(lambda _: 0.0, own, draws=1, generator=seeded())
    with pytest.raises(ValueError, match="folds=1"):
        cluster_jackknife(lambda _: 0.0, own, folds=1, generator=seeded())
    with pytest.raises(ValueError, match="turns=0"):
        excess_over_turns(x, NEGENTROPY, own, turns=0, generator=seeded())
    nothing = cluster_bootstrap(lambda _: math.nan, own, draws=5, generator=seeded())
    assert math.isnan(nothing.std)
