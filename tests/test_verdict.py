"""Scores and a symmetry make an outcome, a number that is missing makes none; both say why."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

import basis_probe as bp
from basis_probe.evidence.site import samples_needed
from basis_probe.results.evidence import Tail
from basis_probe.statistics.p_values import monte_carlo_p, tail_p
from basis_probe.verdict import LEVEL, Found, adjust, decide

NAN = math.nan
Outcome, Privileged = bp.Outcome, bp.Privileged

ROTATION = bp.results.NullRecord(
    "rotation", 199, 4096, "euclidean", "the data", "it was to be turned"
)
COUNTERFACTUAL = dataclasses.replace(ROTATION, name="counterfactual")

GROUPS: dict[Privileged, bp.groups.Group] = {
    Privileged.AXES: bp.groups.PositiveMonomial(8),
    Privileged.NONE: bp.groups.Orthogonal(8),
    Privileged.LINE: bp.groups.LineStabiliser(8),
    Privileged.BLOCKS: bp.groups.Blocks(bp.groups.GeneralLinear(4), count=2),
    Privileged.PLANES: bp.groups.Planes(8),
    Privileged.UNKNOWN: bp.groups.Unknown(8),
}


def _score(
    effect: float = 10.0,
    *,
    name: str = "non_gaussianity",
    frames: int = 199,
    tail: Tail = Tail.UPPER,
    **changes: Any,
) -> bp.ScoreResult:
    """A score `effect` standard deviations above a Gaussian null, with its own p-values."""
    null = 0.4 + 0.03 * torch.randn(
        frames, generator=torch.Generator().manual_seed(frames), dtype=torch.float64
    )
    observed = float(null.mean() + effect * null.std())
    approximated = tail_p(observed, null, tail=tail)
    made = bp.ScoreResult(
        name=name,
        observed=observed,
        null_mean=float(null.mean()),
        null_std=float(null.std()),
        effect=effect,
        p_value=monte_carlo_p(observed, null, tail=tail),
        p_tail=approximated.value,
        p_tail_method=approximated.method,
        p_adjusted=NAN,
        tail=tail,
        decides=True,
        null="rotation",
        null_values=null.numpy(),
        per_direction=np.linspace(0, 1, 8),
        per_direction_p=np.linspace(0.01, 1, 8),
        fraction_privileged=0.25,
        effect_without_top_axes=effect,
        all_samples=observed,
    )
    return dataclasses.replace(made, **changes)


def _found(
    *scores: bp.ScoreResult, privileged: Privileged = Privileged.NONE, **changes: Any
) -> Found:
    group = GROUPS[privileged]
    symmetry = bp.Symmetry(group, privileged, "for a reason", "a source")
    found = Found(
        "residual stream", 8, 1000, 200, 0, symmetry, ROTATION, {s.name: s for s in scores}
    )
    return dataclasses.replace(found, **changes)


def _verdict(found: Found) -> bp.Verdict:
    return decide(adjust([found])[0])


@pytest.mark.parametrize("privileged", [Privileged.AXES, Privileged.NONE, Privileged.UNKNOWN])
def test_axes_far_below_their_alternatives_are_said_to_be(privileged: Privileged) -> None:
    below, beside = _score(-10.0), _score(1.0, name="negentropy")
    verdict = _verdict(_found(below, beside, privileged=privileged))
    assert verdict.outcome not in (Outcome.PRIVILEGED, Outcome.EMERGENT)
    said = "in non-gaussianity (z = -10) the axes lie far below the alternatives"
    assert said in verdict.sentence
    near = _verdict(_found(_score(-3.0), beside, privileged=privileged))
    assert "below" not in near.sentence
    # Beside a finding it is said too, and changes nothing.
    both = _found(below, _score(12.0, name="negentropy"), privileged=privileged)
    assert (
        _verdict(both).outcome
        is _verdict(
            dataclasses.replace(both, scores={"negentropy": both.scores["negentropy"]})
        ).outcome
    )
    assert said in _verdict(both).sentence
    # Kurtosis is shown with its sign, where no outcome rests on it too.
    shown = _score(-9.67, name="kurtosis", tail=Tail.TWO_SIDED, decides=False)
    beside = _verdict(_found(_score(10.0), shown, privileged=privileged)).sentence
    assert "in kurtosis (z = -9.67) the axes lie far below the alternatives" in beside


def test_what_a_block_of_neurons_may_miss_is_said() -> None:
    block = dataclasses.replace(COUNTERFACTUAL, directions=3)
    quiet = _found(_score(0.3), privileged=Privileged.AXES, null=block)
    said = "Only 3 of the 8 axes, drawn at random, have alternatives of their own"
    assert said in _verdict(quiet).sentence
    whole = dataclasses.replace(quiet, null=dataclasses.replace(block, directions=8))
    dead = dataclasses.replace(quiet, n_dead=5)
    for other in (whole, dead, dataclasses.replace(quiet, null=COUNTERFACTUAL)):
        assert "Only" not in _verdict(other).sentence


# --- the four outcomes ----------------------------------------------------------------------------


@pytest.mark.parametrize("privileged", [p for p in Privileged if p is not Privileged.UNKNOWN])
@pytest.mark.parametrize("stands_out", [True, False])
def test_architecture_and_data_make_four_outcomes(privileged: Privileged, stands_out: bool) -> None:
    verdict = _verdict(_found(_score(10.0 if stands_out else 0.3), privileged=privileged))
    expected = {
        (True, True): Outcome.PRIVILEGED,
        (True, False): Outcome.UNUSED,
        (False, True): Outcome.EMERGENT,
        (False, False): Outcome.ARBITRARY,
    }
    assert verdict.outcome is expected[privileged is Privileged.AXES, stands_out]
    for words in {
        Privileged.AXES: ["The architecture fixes these axes"],
        Privileged.NONE: ["admits every rotation of this space"],
        Privileged.LINE: ["fixes no axis, only the all-ones direction"],
        Privileged.BLOCKS: ["fixes the heads but no axis inside them"],
        Privileged.PLANES: ["fixes planes but no axis inside them"],
    }[privileged]:
        assert words in verdict.sentence
    axes = "them" if privileged is Privileged.AXES else "the axes"
    assert (f"the data stand out on {axes} against" in verdict.sentence) == stands_out
    assert (f"the data do not stand out on {axes} against" in verdict.sentence) != stands_out
    assert verdict.sentence.endswith(".")


def test_a_sentence_holds_its_numbers() -> None:
    score = _score(10.0)
    sentence = _verdict(_found(score)).sentence
    for text in (
        f"{score.observed:.3g} against {score.null_mean:.3g} ± {score.null_std:.3g}",
        "non-gaussianity",
        "z = 10",
        "25% of the axes do so by themselves",
        "random rotations of the same space",
    ):
        assert text in sentence, text
    quiet = _score(0.3)
    found = _found(quiet, _score(-1.25, name="kurtosis"), null=COUNTERFACTUAL)
    sentence = _verdict(found).sentence
    adjusted = min(score.p_adjusted for score in adjust([found])[0].scores.values())
    assert f"(z = 0.3, -1.25; adjusted p = {adjusted:.3g})" in sentence
    assert "the same layer with its neurons pointing elsewhere" in sentence


@pytest.mark.parametrize("privileged", [Privileged.AXES, Privileged.NONE, Privileged.UNKNOWN])
@pytest.mark.parametrize("effect", [0.3, 30.0])
def test_scores_that_should_decide_and_could_not_are_named(
    privileged: Privileged, effect: float
) -> None:
    lost = _score(NAN, name="negentropy", null_values=np.full(199, 0.4))
    sentence = _verdict(_found(_score(effect), lost, privileged=privileged)).sentence
    assert "negentropy could not be compared" in sentence
    both = _found(_score(effect), _score(effect, name="negentropy"), privileged=privileged)
    assert "could not be compared" not in _verdict(both).sentence


def test_a_small_difference_is_said_to_be_small() -> None:
    big = _score(10.0)
    small = dataclasses.replace(big, observed=big.null_mean * 1.05)
    assert "a small difference of 5.0%, however sure" in _verdict(_found(small)).sentence
    assert "small difference" not in _verdict(_found(big)).sentence


def test_what_carries_a_finding_and_how_sure_its_null_is_are_said() -> None:
    carried = _score(10.0, effect_without_top_axes=1.0)
    assert "at most three axes carry the finding" in _verdict(_found(carried)).sentence
    assert "at most three" not in _verdict(_found(_score(10.0))).sentence
    rough = _found(_score(10.0), null=dataclasses.replace(ROTATION, name="x", approximate=True))
    assert "by an approximate null" in _verdict(rough).sentence
    assert "against the null 'x'" in _verdict(rough).sentence
    # A share that is not known is left unsaid.
    unknown = _verdict(_found(_score(10.0, fraction_privileged=NAN))).sentence
    assert "nan" not in unknown
    assert "of the axes" not in unknown


def test_a_score_across_axes_is_mentioned_where_only_it_stands_out() -> None:
    aside = _score(60.0, name="sample_kurtosis", tail=Tail.TWO_SIDED, decides=False)
    verdict = _verdict(_found(_score(0.3), aside))
    assert verdict.outcome is Outcome.ARBITRARY
    assert "only kurtosis across the axes of a sample is higher than by chance (z = 60)" in (
        verdict.sentence
    )
    lower = dataclasses.replace(aside, effect=-60.0)
    assert "is lower than by chance (z = -60)" in _verdict(_found(_score(0.3), lower)).sentence
    for found in (_found(_score(10.0), aside), _found(_score(0.3), _score(1.0, name="kurtosis"))):
        assert "only kurtosis across" not in _verdict(found).sentence


# --- undecided ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "scores", "words"),
    [
        ({"trouble": "7 values are NaN."}, [_score()], "Undecided: 7 values are NaN."),
        (
            {"n_samples": 150},
            [_score()],
            "Undecided: 150 samples were seen and at least 200 are needed for residual stream "
            "(8 axes); give more data.",
        ),
        ({"n_dead": 8, "null": None}, [], "Undecided: none of the 8 axes ever varied."),
        (
            {"null": None},
            [],
            "Undecided: nothing could be compared at residual stream (8 axes).",
        ),
        ({}, [_score(decides=False)], "Undecided: it was to be turned."),
        ({}, [_score(p_tail=NAN)], "Undecided: it was to be turned."),
        ({}, [], "Undecided: it was to be turned."),
        (
            {},
            [_score(effect=NAN, p_tail=1.0, p_value=1.0)],
            "Undecided: the 199 alternatives at residual stream (8 axes) have the same score, so "
            "there is nothing to stand out against.",
        ),
        (
            {},
            [_score(null_values=np.repeat([0.1, 0.2, 0.2 + 1e-9], [99, 50, 50]))],
            "Undecided: the 199 alternatives at residual stream (8 axes) have only 2 different "
            "scores, so there is nothing to stand out against.",
        ),
    ],
)
def test_every_reason_to_decide_nothing(
    changes: dict[str, Any], scores: list[bp.ScoreResult], words: str
) -> None:
    verdict = _verdict(_found(*scores, **changes))
    assert verdict.outcome is Outcome.UNDECIDED
    assert verdict.sentence == words


@pytest.mark.parametrize("effect", [10.0, 0.3])
def test_an_unknown_group_leaves_the_data_speaking(effect: float) -> None:
    verdict = _verdict(_found(_score(effect), privileged=Privileged.UNKNOWN))
    assert verdict.outcome is Outcome.UNDECIDED
    assert verdict.sentence.startswith(
        "Undecided about the architecture, whose group at this site is not known; the data "
    )
    assert ("do not stand out" in verdict.sentence) == (effect < 1)


def test_trouble_comes_before_every_other_reason() -> None:
    found = _found(trouble="broken.", n_samples=3, n_dead=8, null=None)
    assert _verdict(found).sentence == "Undecided: broken."
    assert _verdict(dataclasses.replace(found, trouble="")).sentence.startswith(
        "Undecided: 3 samples were seen"
    )


def test_the_number_of_samples_needed_grows_with_what_is_fitted() -> None:
    def needed(group: bp.groups.Group) -> int:
        return samples_needed(bp.Symmetry(group, group.privileged, "", ""), group.dim)

    assert needed(bp.groups.Orthogonal(1000)) == needed(bp.groups.PositiveMonomial(1000)) == 200
    assert needed(bp.groups.GeneralLinear(10)) == 200
    assert needed(bp.groups.GeneralLinear(100)) == 1000
    # Inside heads only a head's covariance is fitted.
    assert needed(bp.groups.Blocks(bp.groups.GeneralLinear(64), count=8)) == 640


# --- many sites -----------------------------------------------------------------------------------


def _closed_testing(p: list[float]) -> list[float]:
    """Holm's adjusted p-values from the closure principle: the worst Bonferroni of all families."""
    adjusted: list[float] = []
    for own in range(len(p)):
        others = [place for place in range(len(p)) if place != own]
        families = itertools.chain.from_iterable(
            itertools.combinations(others, size) for size in range(len(p))
        )
        worst = max(
            (1 + len(family)) * min([p[own], *(p[place] for place in family)])
            for family in families
        )
        adjusted.append(min(1.0, worst))
    return adjusted


def test_p_values_are_adjusted_over_all_deciding_scores_of_all_sites() -> None:
    p = [0.004, 0.03, 0.2, 0.011, 0.0009, 0.011, 0.7]
    founds = [
        _found(_score(p_tail=p[0]), _score(p_tail=p[1], name="kurtosis")),
        _found(_score(p_tail=p[2]), _score(p_tail=1e-9, name="kurtosis", decides=False)),
        _found(_score(p_tail=p[3])),
        _found(_score(p_tail=p[4]), _score(p_tail=NAN, name="kurtosis")),
        _found(),
        _found(_score(p_tail=p[5]), _score(p_tail=p[6], name="kurtosis")),
    ]
    adjusted = [site.scores for site in adjust(founds)]
    found = [
        score.p_adjusted
        for scores, site in zip(adjusted, founds, strict=True)
        for score in scores.values()
        if score.decides and not math.isnan(site.scores[score.name].p_tail)
    ]
    assert found == pytest.approx(_closed_testing(p), rel=1e-12)
    # Nothing else changes, and what decides nothing is not adjusted.
    assert math.isnan(adjusted[1]["kurtosis"].p_adjusted)
    assert math.isnan(adjusted[3]["kurtosis"].p_adjusted)
    assert (
        dataclasses.replace(adjusted[0]["kurtosis"], p_adjusted=NAN) == founds[0].scores["kurtosis"]
    )
    assert math.isnan(founds[0].scores["kurtosis"].p_adjusted)


def test_nothing_to_adjust() -> None:
    assert adjust([]) == []
    assert adjust([_found()])[0].scores == {}


def test_one_finding_among_many_sites_has_to_be_stronger() -> None:
    single = _found(_score(p_tail=0.01, p_value=0.01))
    others = [_found(_score(0.0, p_tail=0.5, p_value=0.5)) for _ in range(9)]
    assert decide(adjust([single])[0]).outcome is Outcome.EMERGENT
    assert decide(adjust([single, *others])[0]).outcome is Outcome.ARBITRARY
    at_the_level = _found(_score(p_tail=LEVEL / 10, p_value=LEVEL / 10))
    assert decide(adjust([at_the_level, *others])[0]).outcome is Outcome.EMERGENT


# --- the number of alternatives decides nothing ---------------------------------------------------


@pytest.mark.parametrize("tests", [1, 48])
def test_a_clear_finding_is_found_whatever_the_number_of_tests(tests: int) -> None:
    clear = _found(_score(60.0))
    family = [clear] + [_found(_score(0.0)) for _ in range(tests - 1)]
    score = adjust(family)[0].scores["non_gaussianity"]
    # Counted, its p could not fall below 1/200, and Holm over 48 tests would bury it.
    assert score.p_value == 1 / 200
    assert score.p_tail < 1e-4
    assert decide(adjust(family)[0]).outcome is Outcome.EMERGENT


@pytest.mark.parametrize("tail", [Tail.UPPER, Tail.TWO_SIDED])
@pytest.mark.parametrize("frames", [19, 60, 98])
def test_too_few_alternatives_are_no_finding_in_either_direction(frames: int, tail: Tail) -> None:
    clear = _found(_score(60.0, frames=frames, tail=tail), null=ROTATION)
    family = [clear] + [_found(_score(0.0)) for _ in range(20)]
    verdict = decide(adjust(family)[0])
    assert verdict.outcome is Outcome.UNDECIDED
    assert f"lies beyond all {frames} alternatives (z = 60), which is too few" in verdict.sentence
    assert "compare with more, for example frames=199" in verdict.sentence
    # What lies among its alternatives needs no more of them.
    quiet = _found(_score(0.2, frames=frames, tail=tail))
    assert decide(adjust([quiet, *family])[0]).outcome is Outcome.ARBITRARY


def test_few_alternatives_are_enough_where_there_are_few_tests() -> None:
    single = _found(_score(60.0, frames=19))
    assert _verdict(single).outcome is Outcome.EMERGENT
    # With two tests 1/20 is not enough any more.
    double = _found(_score(60.0, frames=19), _score(60.0, frames=19, name="kurtosis"))
    assert _verdict(double).outcome is Outcome.UNDECIDED


@pytest.mark.slow
def test_the_number_of_alternatives_is_no_reason_in_a_real_run() -> None:
    uniform = torch.rand(600, 8, generator=torch.Generator().manual_seed(0)) - 0.5
    x = -uniform.sign() * (1 - 2 * uniform.abs()).clamp_min(1e-9).log()
    model = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Identity())
    outcomes = {}
    for frames in (19, 99):
        report = bp.probe(
            model, [x], sites=["0", "1:in", "0:in", "1"], groups="orthogonal", progress=False,
            null=bp.nulls.Rotation(frames=frames, samples=600),
        )  # fmt: skip
        outcomes[frames] = {site.verdict.outcome for site in report}
    assert outcomes == {19: {Outcome.UNDECIDED}, 99: {Outcome.EMERGENT}}


def test_an_order_that_stands_out_behind_a_shut_gate_is_named_beside_those_claimed() -> None:
    def order(name: str, gate: str = "") -> bp.results.OrderRecord:
        return bp.results.OrderRecord(name, "kurtosis", 9.0, 3.0, 0.1, 60.0, 1e-9, "", gate=gate)

    shut = (order("offset"), order("scale", "other examples need not share them"))
    verdict = _verdict(_found(orders=shut))
    assert verdict.orders == ("offset",)
    said = "scale (z = 60) is not claimed, because other examples need not share them"
    assert said in verdict.sentence
    open_ = _verdict(_found(orders=(order("offset"), order("scale"))))
    assert set(open_.orders) == {"offset", "scale"} and "not claimed" not in open_.sentence
    none = _verdict(_found(orders=shut[1:]))
    assert none.outcome is Outcome.ARBITRARY
    assert "scale is not claimed, because other examples" in none.sentence
