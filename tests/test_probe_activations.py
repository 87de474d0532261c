"""A truth that is planted in a matrix is what `probe_activations` finds, and nothing else."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from draws import seeded
from torch import Tensor, nn

import basis_probe as bp
from basis_probe.algebra.elements import Element, MonomialElement
from basis_probe.algebra.groups import Elementary, Miss, Traits, group_from_name
from basis_probe.algebra.haar import haar
from basis_probe.evidence.site import NULLS, chosen_null

ROTATED = bp.nulls.Rotation(frames=199, samples=1024)
SMALL = bp.nulls.Rotation(frames=99, samples=512)
LAYER = bp.nulls.Counterfactual(frames=99, samples=1024)
Outcome = bp.Outcome


def _gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def _laplace(samples: int = 2000, dim: int = 16, seed: int = 0) -> Tensor:
    uniform = torch.rand(samples, dim, generator=seeded(seed), dtype=torch.float64) - 0.5
    return -uniform.sign() * (1 - 2 * uniform.abs()).log()


def _rotation(dim: int, seed: int = 1) -> Tensor:
    """A Haar rotation by another route than the package's: the polar factor of a Gaussian."""
    u, _, v = torch.linalg.svd(_gaussian(dim, dim, seed=seed))
    return u @ v


def _elliptical(samples: int = 2000, dim: int = 16, seed: int = 0) -> Tensor:
    """Student-t rows: one scale for all axes of a row, so no direction is special."""
    z = _gaussian(samples, dim, seed=seed)
    scale = (_gaussian(samples, 5, seed=seed + 1000).square().sum(1, keepdim=True) / 5).sqrt()
    return z / scale


def _outcome(x: Tensor, group: Any = "orthogonal", **settings: Any) -> bp.Outcome:
    return bp.probe_activations(x, group=group, **{"null": ROTATED, **settings}).verdict.outcome


# --- linear sites ---------------------------------------------------------------------------------


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("seed", range(3))
def test_sources_on_the_axes_are_found_and_hidden_by_a_rotation(seed: int) -> None:
    x = _laplace(seed=seed)
    assert _outcome(x) is Outcome.EMERGENT
    assert _outcome(x @ _rotation(16, seed + 50)) is Outcome.ARBITRARY
    # Where the architecture fixes the axes the same two findings have other names.
    assert _outcome(x, "signed-permutation") is Outcome.PRIVILEGED
    assert _outcome(x @ _rotation(16, seed + 50), "signed-permutation") is Outcome.UNUSED


def test_flat_sources_stand_out_too() -> None:
    uniform = torch.rand(2000, 16, generator=seeded(0), dtype=torch.float64)
    site = bp.probe_activations(uniform, group="orthogonal", null=ROTATED)
    assert site.verdict.outcome is Outcome.EMERGENT
    assert site.scores["kurtosis"].effect < -5
    assert site.scores["kurtosis"].observed == pytest.approx(1.8, abs=0.05)


@pytest.mark.slow
def test_the_default_null_finds_them_as_well() -> None:
    site = bp.probe_activations(_laplace(), group="orthogonal")
    assert site.verdict.outcome is Outcome.EMERGENT
    assert site.null is not None
    assert (site.null.name, site.null.frames, site.null.geometry) == ("rotation", 199, "ridge")


@pytest.mark.slow
@pytest.mark.parametrize(
    "group",
    [
        "orthogonal",
        pytest.param("general-linear", marks=pytest.mark.slow),
        pytest.param("positive-monomial", marks=pytest.mark.slow),
    ],
)
def test_elliptical_data_are_not_called_special_more_often_than_the_level_allows(
    group: str,
) -> None:
    # At a true rate of 5 %, five or more of 12 have a probability of 0.0002.
    found = [_outcome(_elliptical(512, seed=seed), group, null=SMALL) for seed in range(12)]
    assert set(found) <= {Outcome.ARBITRARY, Outcome.EMERGENT, Outcome.UNUSED, Outcome.PRIVILEGED}
    special = sum(outcome in (Outcome.EMERGENT, Outcome.PRIVILEGED) for outcome in found)
    assert special < 5


@pytest.mark.parametrize("scale", ["unequal", pytest.param("equal", marks=pytest.mark.slow)])
def test_gaussian_data_are_not_called_special(scale: str) -> None:
    factors = torch.ones(16) if scale == "equal" else torch.logspace(-0.5, 0.5, 16)
    found = [
        _outcome(
            (_gaussian(512, 16, seed=seed) * factors.double()) @ haar(16, seeded(seed)), null=SMALL
        )
        for seed in range(10)
    ]
    # At a true rate of 5 %, four or more of 10 have a probability of 0.001.
    assert found.count(Outcome.EMERGENT) < 4


GROUPS: dict[str, tuple[Outcome, Outcome]] = {
    "orthogonal": (Outcome.EMERGENT, Outcome.ARBITRARY),
    "line-stabiliser": (Outcome.EMERGENT, Outcome.ARBITRARY),
    "general-linear": (Outcome.EMERGENT, Outcome.ARBITRARY),
    "permutation": (Outcome.PRIVILEGED, Outcome.UNUSED),
    "signed-permutation": (Outcome.PRIVILEGED, Outcome.UNUSED),
    "positive-monomial": (Outcome.PRIVILEGED, Outcome.UNUSED),
    "monomial": (Outcome.PRIVILEGED, Outcome.UNUSED),
    "signs": (Outcome.PRIVILEGED, Outcome.UNUSED),
    "signed-planes": (Outcome.PRIVILEGED, Outcome.UNUSED),
    "quarter-turns": (Outcome.PRIVILEGED, Outcome.UNUSED),
    "trivial": (Outcome.PRIVILEGED, Outcome.UNUSED),
    "line-rotations": (Outcome.EMERGENT, Outcome.ARBITRARY),
    "plane-rotations": (Outcome.EMERGENT, Outcome.ARBITRARY),
    "planes": (Outcome.EMERGENT, Outcome.ARBITRARY),
    "unknown": (Outcome.UNDECIDED, Outcome.UNDECIDED),
}


def test_every_group_with_a_name_is_tried() -> None:
    with pytest.raises(ValueError, match="all names") as refused:
        bp.probe_activations(torch.zeros(9, 4), group="nothing")
    named = str(refused.value).rpartition("all names: ")[2].split(", ")
    assert sorted(named) == sorted(GROUPS)


@dataclasses.dataclass(frozen=True)
class Rounds(Elementary):
    """Axes that move round, as somebody may add them."""

    name: ClassVar[str] = "rounds"

    def _traits(self) -> Traits:
        return Traits(bp.groups.Privileged.AXES, "C_n", False, False, "The axes move round.")

    def _draw(self, generator: torch.Generator) -> Element:
        by = int(torch.randint(self.dim, (), generator=generator))
        return MonomialElement(torch.arange(self.dim).roll(by), torch.ones(self.dim).double())

    def _miss(self, a: torch.Tensor, atol: float, rounding: float) -> Miss:
        by = int(a[0].argmax())
        off = (a - torch.eye(self.dim, dtype=a.dtype).roll(by, 1)).abs().max()
        return Miss(float(off), f"it is not the shift by {by}")

    def _read(self, a: torch.Tensor, atol: float) -> Element:
        return MonomialElement(a.argmax(1), torch.ones(self.dim).double())


KEEPING_AXES: tuple[bp.groups.Group, ...] = (
    *(bp.groups.Blocks(group_from_name(name, 4), 4) for name in (
        "trivial", "permutation", "signed-permutation", "monomial", "signs"
    )),
    bp.groups.DirectSum((bp.groups.Permutation(8), bp.groups.Trivial(8))),
    Rounds(16),
)  # fmt: skip


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("group", KEEPING_AXES, ids=repr)
def test_a_group_that_keeps_axes_is_never_said_to_admit_rotations(group: bp.groups.Group) -> None:
    x = _laplace()
    for data, outcome in ((x, Outcome.PRIVILEGED), (x @ haar(16, seeded(7)), Outcome.UNUSED)):
        site = bp.probe_activations(data, group=group, null=ROTATED)
        assert site.verdict.outcome is outcome
        assert site.orders == ()
        assert site.verdict.sentence.startswith("The architecture fixes these axes")


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("group", GROUPS)
def test_every_group_by_its_name(group: str) -> None:
    x = _laplace()
    on, off = GROUPS[group]
    site = bp.probe_activations(x, group=group, null=ROTATED)
    assert site.symmetry.group.name == group
    assert site.symmetry.group.dim == 16
    assert site.symmetry.because == "The group was given, not derived." or group == "unknown"
    assert site.verdict.outcome is on
    assert site.symmetry.privileged is site.symmetry.group.privileged
    hidden = x @ _rotation(16, seed=11)
    if group == "planes":
        # Sources that are mixed inside their own planes only are as hidden as can be there.
        hidden = x @ bp.groups.Planes(16).sample(seeded(5)).T
    assert _outcome(hidden, group) is off


@pytest.mark.slow
def test_groups_as_values() -> None:
    x = _laplace()
    heads = bp.groups.Blocks(bp.groups.GeneralLinear(4), count=4)
    assert _outcome(x, heads) is Outcome.EMERGENT
    turned = x @ heads.sample(seeded(1)).T
    assert _outcome(turned, heads) is Outcome.ARBITRARY
    both = bp.groups.DirectSum((bp.groups.Permutation(8), bp.groups.SignedPermutation(8)))
    assert _outcome(x, both) is Outcome.PRIVILEGED


@pytest.mark.slow
def test_without_a_group_nothing_is_said_about_the_architecture() -> None:
    site = bp.probe_activations(_laplace(), null=ROTATED)
    assert site.verdict.outcome is Outcome.UNDECIDED
    assert site.symmetry.privileged is bp.Privileged.UNKNOWN
    assert site.verdict.sentence.startswith("Undecided about the architecture, whose group at this")
    assert "the data stand out on the axes" in site.verdict.sentence
    # The evidence is there all the same.
    assert site.scores["non_gaussianity"].effect > 5


# --- behind a nonlinearity ------------------------------------------------------------------------


def _layer(
    *, on_axes: bool, width: int = 24, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs, weight, bias and pre-activation of a layer that reads features, or mixtures."""
    active = torch.rand(2000, width, generator=seeded(seed + 3), dtype=torch.float64) < 0.3
    features = _laplace(2000, width, seed=seed) * active
    # The input space mixes the features; the neurons undo it, or look elsewhere.
    mixing = _rotation(width, seed + 1)
    inputs = features @ mixing
    weight = mixing if on_axes else _rotation(width, seed + 2)
    bias = torch.full((width,), -0.1, dtype=torch.float64)
    return inputs, weight, bias, inputs @ weight.T + bias


BENDS: dict[str, Any] = {
    "relu": torch.relu,
    "gelu": nn.functional.gelu,
    "silu": nn.functional.silu,
}


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("name", BENDS)
@pytest.mark.parametrize("on_axes", [True, False])
def test_features_on_neurons_are_told_from_features_off_them(name: str, on_axes: bool) -> None:
    inputs, weight, bias, pre = _layer(on_axes=on_axes)
    x = BENDS[name](pre)
    expected = Outcome.PRIVILEGED if on_axes else Outcome.UNUSED
    group = "positive-monomial" if name == "relu" else "permutation"
    exact = bp.probe_activations(
        x, group=group, inputs=inputs, weight=weight, bias=bias, nonlinearity=name, null=LAYER
    )
    assert exact.verdict.outcome is expected
    assert exact.null is not None
    assert (exact.null.name, exact.null.approximate) == ("counterfactual", False)
    turned = bp.probe_activations(
        x,
        group=group,
        pre=pre,
        nonlinearity=BENDS[name],
        null=bp.nulls.TurnedPreactivation(99, 1024),
    )
    assert turned.verdict.outcome is expected
    assert turned.null is not None
    assert turned.null.approximate
    if on_axes:
        assert "by an approximate null" in turned.verdict.sentence


@pytest.mark.slow
def test_the_null_is_chosen_by_what_is_known() -> None:
    inputs, weight, bias, pre = _layer(on_axes=True)
    inputs, pre = inputs[:400], pre[:400]
    x = pre.relu()
    layer = {"inputs": inputs, "weight": weight, "bias": bias}
    bent = {"pre": pre, "nonlinearity": "relu"}
    for given, expected in (
        ({**layer, "nonlinearity": "relu"}, "counterfactual"),
        ({**layer, **bent}, "counterfactual"),
        (bent, "turned pre-activation"),
        ({}, "rotation"),
    ):
        site = bp.probe_activations(x, group="positive-monomial", **given)
        assert site.null is not None
        assert site.null.name == expected
        # What people ask for is shown beside, and nothing rests on it.
        assert bool(site.beside) == (expected != "rotation")
        assert not any(score.decides for score in site.beside.values())
    # A layer without a nonlinearity has neurons that can point elsewhere too.
    site = bp.probe_activations(pre, group="permutation", **layer)
    assert site.null is not None
    assert (site.null.name, site.beside) == ("counterfactual", {})


@pytest.mark.slow
def test_asking_for_the_counterfactual_null_takes_the_best_that_is_known() -> None:
    inputs, weight, bias, pre = _layer(on_axes=True)
    x = pre.relu()
    exact = bp.probe_activations(
        x, group="positive-monomial", inputs=inputs, weight=weight, bias=bias, nonlinearity="relu",
        null="counterfactual",
    )  # fmt: skip
    turned = bp.probe_activations(
        x, group="positive-monomial", pre=pre, nonlinearity="relu", null="counterfactual"
    )
    assert exact.null is not None
    assert turned.null is not None
    assert (exact.null.name, turned.null.name) == ("counterfactual", "turned pre-activation")


@pytest.mark.slow
def test_one_sided_activations_alone_decide_nothing() -> None:
    *_, pre = _layer(on_axes=False)
    site = bp.probe_activations(pre.relu(), group="positive-monomial", null=None)
    assert site.verdict.outcome is Outcome.UNDECIDED
    assert (
        "one value far more often than any other, as behind a nonlinearity" in site.verdict.sentence
    )
    # The raw rotation would have called them special; so would anyone who asks for it.
    assert site.scores["kurtosis"].effect > 5
    *_, pre = _layer(on_axes=True)
    with pytest.warns(bp.MisleadingNull, match=r"one-sided \(z = .* the same axes have z = "):
        asked = bp.probe_activations(
            pre.relu(), group="positive-monomial", pre=pre, nonlinearity="relu", null="rotation"
        )
    assert any("credits every axis for being one-sided" in note for note in asked.notes)
    assert asked.verdict.outcome is Outcome.UNDECIDED
    assert "this null credits the axes for nothing and no verdict rests on it" in (
        asked.verdict.sentence
    )


@pytest.mark.slow
def test_dense_gaussian_layers_are_not_called_special() -> None:
    found: list[Outcome] = []
    for seed in range(10):
        inputs = _gaussian(400, 16, seed=seed)
        weight, bias = _gaussian(16, 16, seed=seed + 100) / 4, _gaussian(16, seed=seed + 200) / 4
        x = (inputs @ weight.T + bias).relu()
        site = bp.probe_activations(
            x, group="positive-monomial", inputs=inputs, weight=weight, bias=bias,
            nonlinearity="relu", null=bp.nulls.Counterfactual(frames=99, samples=400),
        )  # fmt: skip
        found.append(site.verdict.outcome)
    assert found.count(Outcome.PRIVILEGED) < 4


# --- the form of the answer -----------------------------------------------------------------------


@pytest.mark.slow
def test_numpy_and_torch_and_every_precision_say_the_same() -> None:
    x = _laplace().float().double()
    frozen = x.numpy().copy()
    frozen.flags.writeable = False
    expected = bp.probe_activations(x, group="orthogonal", null=ROTATED)
    for given in (x.numpy(), x.float(), x.float().numpy(), frozen, x.clone().requires_grad_()):
        assert bp.probe_activations(given, group="orthogonal", null=ROTATED) == expected
    backwards = x.flip(0).numpy()[::-1]
    assert bp.probe_activations(backwards, group="orthogonal", null=ROTATED) == expected
    half = bp.probe_activations(x.bfloat16(), group="orthogonal", null=ROTATED)
    assert half.scores["kurtosis"].observed == pytest.approx(
        expected.scores["kurtosis"].observed, rel=0.01
    )


def test_what_is_given_is_not_changed() -> None:
    inputs, weight, bias, pre = _layer(on_axes=True)
    given = (inputs, weight, bias, pre, pre.relu())
    before = [tensor.clone() for tensor in given]
    state = torch.get_rng_state()
    bp.probe_activations(
        given[-1], group="positive-monomial", inputs=inputs, weight=weight, bias=bias, pre=pre,
        nonlinearity="relu", null=LAYER,
    )  # fmt: skip
    assert all(map(torch.equal, given, before))
    assert torch.equal(torch.get_rng_state(), state)


def test_numbers_are_those_of_their_definitions() -> None:
    x = _laplace(900, 8)
    site = bp.probe_activations(
        x, group="orthogonal", null=bp.nulls.Rotation(frames=49, samples=4096)
    )
    centred = x - x.mean(0)
    kurtosis = (centred**4).mean(0) / (centred**2).mean(0) ** 2
    score = site.scores["kurtosis"]
    # No verdict rests on it here, so single axes keep seven digits.
    np.testing.assert_allclose(score.per_direction, kurtosis, rtol=1e-6)
    assert score.observed == pytest.approx(float(kurtosis.mean()), rel=1e-12)
    assert score.all_samples == pytest.approx(float(kurtosis.mean()), rel=1e-12)
    other = site.beside["non_gaussianity"]
    assert other.observed == pytest.approx(float((kurtosis - 3).abs().mean()), rel=1e-12)
    for name, found in site.scores.items():
        null = found.null_values
        assert len(null) == 49
        assert found.null_mean == pytest.approx(null.mean(), rel=1e-12)
        assert found.null_std == pytest.approx(null.std(ddof=1), rel=1e-12)
        assert found.effect == pytest.approx((found.observed - null.mean()) / null.std(ddof=1))
        if found.tail is bp.results.Tail.UPPER:
            assert found.p_value == (1 + (null >= found.observed).sum()) / 50
        assert found.decides == (name in ("non_gaussianity", "negentropy"))
        assert math.isnan(found.p_adjusted) != found.decides
        assert 0 <= found.fraction_privileged <= 1
    across = (8 * (x**4).sum(1) / (x**2).sum(1) ** 2).mean()
    assert site.scores["sample_kurtosis"].observed == pytest.approx(float(across), rel=1e-12)


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("group", ["orthogonal", "line-stabiliser"])
def test_the_sampled_null_agrees_with_the_closed_form(group: str) -> None:
    site = bp.probe_activations(
        _laplace(600, 8), group=group, null=bp.nulls.Rotation(frames=999, samples=600)
    )
    score = site.scores["sample_kurtosis"]
    assert score.closed_form is not None
    assert score.closed_form.exact
    assert score.closed_form.std is not None
    assert score.null_mean == pytest.approx(
        score.closed_form.mean, abs=4 * score.closed_form.std / math.sqrt(999)
    )
    # The standard deviation of 999 draws is known to about 2 %.
    assert score.null_std == pytest.approx(score.closed_form.std, rel=0.1)


@pytest.mark.slow
def test_a_few_axes_that_carry_everything_are_said_to() -> None:
    x = _gaussian(2000, 32)
    x[:, 4] = x[:, 4] ** 5 / math.sqrt(945)
    site = bp.probe_activations(x, group="orthogonal", null=ROTATED)
    score = site.scores["non_gaussianity"]
    assert site.verdict.outcome is Outcome.EMERGENT
    assert int(np.argmax(score.per_direction)) == 4
    assert score.per_direction_p[4] < 0.001
    assert score.fraction_privileged < 0.2
    assert score.effect_without_top_axes < 2
    assert "1 of 32 coordinates stands out by itself (axis 4)" in site.verdict.advice
    assert site.few is not None and site.few.axes == (4,)
    many = bp.probe_activations(_laplace(), group="orthogonal", null=ROTATED)
    assert many.scores["non_gaussianity"].fraction_privileged > 0.8
    assert "coordinates can be read here, one by one" in many.verdict.advice


def test_the_report_of_a_matrix_can_be_saved_like_any_other() -> None:
    site = bp.probe_activations(_laplace(300, 4), group="monomial", null=bp.nulls.Rotation(19, 128))
    assert (site.site, site.dim, site.shape, site.layer) == ("activations", 4, (4,), None)
    assert str(site).startswith("activations: ")
    record = bp.results.Provenance("none", "a matrix", 0, 1, 300, {}, "cpu", "float64", 0.05, {})
    report = bp.Report((site,), record)
    assert bp.Report.from_json(report.to_json()) == report


@pytest.mark.slow
def test_every_score_may_be_asked_for_and_bears_its_own_closed_form() -> None:
    x = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
    found = bp.probe_activations(
        x, group="orthogonal", scores=list(bp.scores.ALL), null=bp.nulls.Rotation(frames=199)
    ).scores
    assert set(found) == set(bp.scores.ALL)
    known = {name: score.closed_form for name, score in found.items() if score.closed_form}
    assert set(known) == {"kurtosis", "sample_kurtosis", "sample_hoyer"}
    for name, form in known.items():
        error = 5 * found[name].null_std / 199**0.5
        assert abs(form.mean - found[name].null_mean) < error + 0.01 * (name == "kurtosis")
        if form.std is not None:
            assert form.std == pytest.approx(found[name].null_std, rel=0.25)


@pytest.mark.slow
def test_one_rogue_dimension_is_privileged_by_scale_and_offset_and_by_nothing_when_turned() -> None:
    turned: list[Outcome] = []
    for seed in range(6):
        x = torch.randn(1000, 16, generator=seeded(seed)).double()
        x[:, 0] = 20 * x[:, 0] + 30
        null = bp.nulls.Rotation(frames=99)
        found = bp.probe_activations(x, group="orthogonal", null=null)
        assert found.verdict.outcome is Outcome.EMERGENT
        assert set(found.verdict.orders) == {"offset", "scale"}
        assert found.outliers is not None and found.outliers.axes[0] == 0
        assert len(found.outliers.axes) <= 2
        assert "single coordinates need not mean anything" in found.verdict.advice
        twin = bp.probe_activations(x @ haar(16, seeded(seed)), group="orthogonal", null=null)
        turned.append(twin.verdict.outcome)
    # At a true rate of 5 %, three or more of 6 have a probability of 0.002.
    assert turned.count(Outcome.EMERGENT) < 3


@pytest.mark.parametrize("name", sorted(NULLS))
def test_a_null_is_found_by_its_key_and_by_the_name_that_reports_print(name: str) -> None:
    null = chosen_null(name)
    assert null is not None
    assert chosen_null(null.name) == null == NULLS[name]
