"""Scores are what their formulas say, and do not move when the site's own group acts."""

import dataclasses
import itertools
import math
from collections.abc import Callable

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
    LineStabiliser,
    Monomial,
    Orthogonal,
    Planes,
    PositiveMonomial,
)
from basis_probe.statistics.moments import EvenMoments
from basis_probe.statistics.nulls import (
    Alternatives,
    Counterfactual,
    Frame,
    Geometry,
    LinearLayer,
    Problem,
    Rotation,
)
from basis_probe.statistics.scores import (
    ALL as SCORES,
)
from basis_probe.statistics.scores import (
    DEFAULT as DEFAULT_SCORES,
)
from basis_probe.statistics.scores import (
    KURTOSIS,
    NEGENTROPY,
    NON_GAUSSIANITY,
    SAMPLE_KURTOSIS,
    Invariance,
    Measured,
    Reads,
    Rows,
    Score,
)

SAMPLES, DIM = 400, 8


def _gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def _data() -> Tensor:
    """Sparse sources on the axes, mixed a little, of unequal size, off the origin."""
    sources = _gaussian(SAMPLES, DIM) * (_gaussian(SAMPLES, DIM, seed=1).abs() > 0.8)
    mixed = sources + 0.3 * sources @ _gaussian(DIM, DIM, seed=2)
    return mixed * torch.logspace(-1, 1, DIM, dtype=torch.float64) + _gaussian(DIM, seed=3)


def _of(score: Score, frame: Frame, *, unit_axes: bool = False) -> Tensor:
    return Measured(frame, unit_axes=unit_axes).of(score)


# --- formulas -------------------------------------------------------------------------------------


def test_kurtosis_is_that_of_every_axis_over_samples() -> None:
    x = _data()
    d = x - x.mean(0)
    expected = d.pow(4).mean(0) / d.square().mean(0).square()
    torch.testing.assert_close(_of(KURTOSIS, Frame(x)), expected)
    torch.testing.assert_close(_of(NON_GAUSSIANITY, Frame(x)), (expected - 3).abs())


def test_non_gaussianity_counts_flat_axes_as_well_as_heavy_ones() -> None:
    steps = torch.linspace(0, 2 * math.pi, 1001, dtype=torch.float64)[:-1]
    sinusoid, gaussian = steps.sin(), _gaussian(1000)
    coin = (torch.arange(1000) % 2).double()
    sparse = torch.zeros(1000, dtype=torch.float64)
    sparse[::20] = 1.0
    found = _of(NON_GAUSSIANITY, Frame(torch.stack([sinusoid, coin, sparse, gaussian], 1)))
    torch.testing.assert_close(found[:2], torch.tensor([1.5, 2.0]).double(), rtol=1e-9, atol=1e-9)
    assert found[2] > 10
    assert found[3] < 0.5


def test_sample_kurtosis_is_shared_out_over_axes() -> None:
    x = _data()
    kappa = DIM * x.pow(4).sum(1) / x.square().sum(1).square()
    found = _of(SAMPLE_KURTOSIS, Frame(x))
    torch.testing.assert_close(found.mean(), kappa.mean())
    # In units of each axis' root mean square, units do not count.
    units = torch.logspace(-5, 5, DIM, dtype=torch.float64)
    torch.testing.assert_close(
        _of(SAMPLE_KURTOSIS, Frame(x * units), unit_axes=True),
        _of(SAMPLE_KURTOSIS, Frame(x), unit_axes=True),
    )
    assert (_of(SAMPLE_KURTOSIS, Frame(x * units)).mean() - kappa.mean()).abs() > 0.1


def test_an_axis_that_never_varies_has_no_score() -> None:
    x = _data()
    x[:, 2] = 0.25
    for score in (KURTOSIS, NON_GAUSSIANITY):
        assert _of(score, Frame(x)).isnan().tolist() == [axis == 2 for axis in range(DIM)]
    x[:, 2] = 0.0
    assert _of(SAMPLE_KURTOSIS, Frame(x), unit_axes=True).isfinite().all()


def test_a_score_reads_the_tensor_that_it_names() -> None:
    pre = _data()
    frame = Frame(pre.relu(), pre)
    torch.testing.assert_close(_of(NON_GAUSSIANITY, frame), _of(NON_GAUSSIANITY, Frame(pre)))
    torch.testing.assert_close(_of(KURTOSIS, frame), _of(KURTOSIS, Frame(pre.relu())))
    before = {score.name for score in SCORES.values() if score.reads is Reads.PREACTIVATIONS}
    assert before == {"non_gaussianity", "negentropy"}


def test_parts_are_scored_apart_and_averaged() -> None:
    x = _data()
    first = torch.arange(SAMPLES) < 150
    frame = Frame(x, parts=(first, ~first))
    for score in SCORES.values():
        apart = [_of(score, Frame(x[rows])) for rows in (first, ~first)]
        torch.testing.assert_close(_of(score, frame), (apart[0] + apart[1]) / 2)
    nothing = Frame(x, parts=(first | ~first, first & ~first))
    torch.testing.assert_close(_of(KURTOSIS, nothing), _of(KURTOSIS, Frame(x)))


def test_moments_are_computed_once_for_all_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    from basis_probe.statistics import scores as scores_module

    calls: list[int] = []
    of = scores_module.even_moments

    def counted(x: Tensor) -> EvenMoments:
        calls.append(1)
        return of(x)

    monkeypatch.setattr(scores_module, "even_moments", counted)
    rows = Rows(_data())
    torch.testing.assert_close(
        (KURTOSIS.per_direction(rows) - 3).abs(), NON_GAUSSIANITY.per_direction(rows)
    )
    assert bool((NEGENTROPY.per_direction(rows) > 0).all())
    assert calls == [1]


# The naive formula of every score: of one column of values, or of one row.
COLUMN = {
    "non_gaussianity": lambda x: abs(((x - x.mean()) ** 4).mean() / x.var(correction=0) ** 2 - 3),
    "negentropy": lambda x: _naive_negentropy((x - x.mean()) / x.std(correction=0)),
    "kurtosis": lambda x: ((x - x.mean()) ** 4).mean() / x.var(correction=0) ** 2,
    "skewness": lambda x: abs(((x - x.mean()) ** 3).mean()) / x.std(correction=0) ** 3,
    "bimodality": lambda x: (COLUMN["skewness"](x) ** 2 + 1) / COLUMN["kurtosis"](x),
    "hoyer": lambda x: (len(x) ** 0.5 - x.abs().sum() / x.norm()) / (len(x) ** 0.5 - 1),
    # Half the mean difference between two values, relative to the mean.
    "gini": lambda x: (x.abs()[:, None] - x.abs()).abs().mean() / (2 * x.abs().mean()),
    "treves_rolls": lambda x: x.abs().mean() ** 2 / (x**2).mean(),
    "half_norm": lambda x: 1 - x.abs().sqrt().mean() ** 2 / x.abs().mean(),
}
ROW = {
    "sample_kurtosis": lambda x: len(x) * (x**4).sum() / (x**2).sum() ** 2,
    "sample_hoyer": COLUMN["hoyer"],
    "sample_gini": COLUMN["gini"],
    "sample_treves_rolls": COLUMN["treves_rolls"],
    "sample_half_norm": COLUMN["half_norm"],
    "participation_ratio": lambda x: (x**2).sum() ** 2 / (x**4).sum(),
    "max_median_ratio": lambda x: x.abs().max() / x.abs().quantile(0.5),
    "spotlight_resonance": lambda x: _naive_resonance(x / x.norm()),
}


def _naive_resonance(x: Tensor) -> Tensor:
    """The eight directions of every plane, one by one."""
    planes = list(itertools.combinations(range(len(x)), 2))
    found: list[float] = []
    for i, j in planes:
        ways = [math.pi / 4 * way for way in range(8)]
        inside = [float(math.cos(a) * x[i] + math.sin(a) * x[j] >= 0.8) for a in ways]
        found.append(sum(inside[::2]) / 4 - sum(inside[1::2]) / 4)
    return torch.tensor(sum(found) / len(planes), dtype=x.dtype)


def _naive_negentropy(z: Tensor) -> Tensor:
    odd, even = (z * (-z * z / 2).exp()).mean(), (-z * z / 2).exp().mean()
    return 7.4129 * odd**2 + 33.6695 * (even - 0.5**0.5) ** 2


def test_every_score_has_its_naive_formula() -> None:
    assert set(SCORES) == {*COLUMN, *ROW}
    assert {name for name, score in SCORES.items() if score.across_axes} == set(ROW)
    assert set(DEFAULT_SCORES) <= set(SCORES)


@pytest.mark.parametrize("name", COLUMN)
def test_a_score_of_axes_is_its_formula(name: str) -> None:
    x = _data()
    expected = torch.stack([COLUMN[name](column) for column in x.T])
    torch.testing.assert_close(_of(SCORES[name], Frame(x)), expected, rtol=1e-4, atol=1e-8)


@pytest.mark.sample(default=3)
@pytest.mark.parametrize("name", ROW)
@pytest.mark.parametrize("dim", [DIM, DIM - 1])
def test_a_score_of_samples_is_its_formula_averaged(name: str, dim: int) -> None:
    x = _data()[:, :dim]
    x[3] = 0.0
    expected = torch.stack([ROW[name](row) for row in x if row.any()]).mean()
    torch.testing.assert_close(_of(SCORES[name], Frame(x)).mean(), expected)


def test_samples_without_a_median_have_no_ratio() -> None:
    x = torch.tensor([[4.0, 0.0, 0.0], [4.0, 2.0, 1.0]])
    assert _of(SCORES["max_median_ratio"], Frame(x)).mean().item() == pytest.approx(2)
    assert _of(SCORES["max_median_ratio"], Frame(x[:1])).isnan().all()
    assert _of(SCORES["sample_gini"], Frame(0 * x)).isnan().all()


def test_large_values_do_not_overflow() -> None:
    x = _data() * 1e90
    for name in ("sample_hoyer", "participation_ratio", "sample_treves_rolls"):
        found = _of(SCORES[name], Frame(x))
        torch.testing.assert_close(found, _of(SCORES[name], Frame(x * 1e-90)))


def test_known_laws_have_known_values() -> None:
    """Quantiles of the law, so that only the step between them is in the way."""
    steps = (torch.arange(400_000, dtype=torch.float64) + 0.5) / 400_000
    normal = math.sqrt(2) * torch.erfinv(2 * steps - 1)
    exponential = -(1 - steps).log()
    laplace = torch.where(steps < 0.5, (2 * steps).log(), -(2 - 2 * steps).log())
    columns = {"normal": normal, "relu": normal.relu(), "uniform": steps, "laplace": laplace}
    columns["exponential"] = exponential
    frame, places = Frame(torch.stack(list(columns.values()), 1)), list(columns)
    known = {
        ("kurtosis", "relu"): 5.409,
        ("skewness", "relu"): 1.641,
        ("treves_rolls", "relu"): 1 / math.pi,
        ("treves_rolls", "normal"): 2 / math.pi,
        ("gini", "normal"): math.sqrt(2) - 1,
        ("hoyer", "normal"): 1 - math.sqrt(2 / math.pi),
        ("half_norm", "normal"): 0.15279,
        ("kurtosis", "normal"): 3.0,
        ("non_gaussianity", "normal"): 0.0,
        ("non_gaussianity", "uniform"): 1.2,
        ("negentropy", "normal"): 0.0,
        ("negentropy", "laplace"): 0.08677,
        ("skewness", "laplace"): 0.0,
        ("bimodality", "uniform"): 5 / 9,
        ("bimodality", "exponential"): 5 / 9,
        ("bimodality", "normal"): 1 / 3,
    }
    for (name, law), value in known.items():
        found = _of(SCORES[name], frame)[places.index(law)].item()
        assert found == pytest.approx(value, abs=2e-3), (name, law)


def test_directions_of_the_sphere_have_known_values() -> None:
    x = _gaussian(2000, 768)
    known = {
        "sample_hoyer": 0.2094,
        "sample_gini": math.sqrt(2) - 1,
        "sample_kurtosis": 3 * 768 / 770,
        "sample_treves_rolls": 2 / math.pi,
    }
    for name, value in known.items():
        found = _of(SCORES[name], Frame(x)).mean().item()
        assert found == pytest.approx(value, rel=5e-3), name
    assert _of(SCORES["participation_ratio"], Frame(x)).mean() / 768 == pytest.approx(
        1 / 3, rel=0.01
    )


def test_negentropy_hears_one_far_value_less_than_kurtosis_does() -> None:
    x = _gaussian(4000, 1)
    touched = x.clone()
    touched[0] = 12.0
    moved = {
        score.name: float(_of(score, Frame(touched)) - _of(score, Frame(x)))
        for score in (KURTOSIS, NEGENTROPY)
    }
    laplace = {"kurtosis": 3.0, "negentropy": 0.0868}
    relative = {name: moved[name] / laplace[name] for name in moved}
    assert relative["kurtosis"] > 1
    assert 0 < relative["negentropy"] < 0.05


MOVES: dict[Invariance, Callable[[Tensor], Tensor]] = {
    Invariance.POSITIVE_SCALES: lambda x: x * torch.logspace(-3, 3, DIM, dtype=torch.float64),
    Invariance.SIGNS: lambda x: x * torch.tensor([1.0, -1.0] * (DIM // 2)),
    Invariance.OFFSETS: lambda x: x + 10 * torch.arange(1, DIM + 1),
    Invariance.ONE_SCALE: lambda x: 0.01 * x,
    Invariance.SAMPLE_SCALES: lambda x: x * _gaussian(len(x), 1, seed=21).exp(),
}


@pytest.mark.parametrize("move", MOVES, ids=lambda move: move.name)
@pytest.mark.parametrize("score", SCORES.values(), ids=list(SCORES))
def test_a_score_is_invariant_under_what_it_says_and_no_more(
    score: Score, move: Invariance
) -> None:
    x = _data()
    moved = _of(score, Frame(MOVES[move](x))) - _of(score, Frame(x))
    assert bool(moved.abs().max() < 1e-6) == (move in score.invariant_under)


@pytest.mark.parametrize("score", SCORES.values(), ids=list(SCORES))
def test_a_score_does_what_it_declares(score: Score) -> None:
    assert SCORES[score.name] is score
    for text in (score.formula, score.source, score.range, score.not_for):
        assert text
    x, order = _data(), torch.randperm(DIM, generator=seeded(3))
    assert Invariance.PERMUTATIONS in score.invariant_under
    torch.testing.assert_close(_of(score, Frame(x[:, order])), _of(score, Frame(x))[order])
    # A turn moves every score: that is what scores are for.
    turn = torch.linalg.qr(_gaussian(DIM, DIM, seed=22)).Q
    assert (_of(score, Frame(x @ turn)) - _of(score, Frame(x))).abs().max() > 0.01
    # Scores of an axis do not depend on the other axes; those across axes do.
    changed = x.clone()
    changed[:, 1:] = _gaussian(SAMPLES, DIM - 1, seed=8)
    same = torch.isclose(_of(score, Frame(changed))[0], _of(score, Frame(x))[0])
    assert bool(same) != score.across_axes
    if score.across_axes:
        units = torch.logspace(-3, 3, DIM, dtype=torch.float64)
        torch.testing.assert_close(
            _of(score, Frame(x * units), unit_axes=True), _of(score, Frame(x), unit_axes=True)
        )


# --- equivariance ---------------------------------------------------------------------------------

DRAWS = 200


def _draws(alternatives: Alternatives, score: Score, seed: int) -> Tensor:
    """The score of every direction of many frames, [DRAWS, dim]."""
    generator = seeded(seed)
    return torch.stack([_of(score, alternatives.frame(generator)) for _ in range(DRAWS)])


def _same_law(a: Tensor, b: Tensor) -> None:
    """Means, spreads and upper tenths of two sets of independent draws agree to their errors."""
    bar = torch.cat([a, b]).quantile(0.9)
    for left, right in (
        (a, b),
        ((a - a.mean()).square(), (b - b.mean()).square()),
        ((a > bar).double(), (b > bar).double()),
    ):
        error = math.sqrt(float(left.var() + right.var()) / DRAWS)
        assert abs(float(left.mean() - right.mean())) < 4 * error


ACTING: dict[str, Group] = {
    "orthogonal": Orthogonal(DIM),
    "positive-monomial": PositiveMonomial(DIM),
    "monomial": Monomial(DIM),
    "general-linear": GeneralLinear(DIM),
    "line-stabiliser": LineStabiliser(DIM),
    "heads": Blocks(GeneralLinear(2), count=2, copies=2),
    "planes": Planes(DIM, pairing="half"),
    "parts": DirectSum((GeneralLinear(3), Orthogonal(3), Planes(2))),
}


def _alternatives(x: Tensor, group: Group) -> Alternatives:
    halves = torch.arange(len(x)) % 2
    return Rotation().alternatives(Problem(x=x, group=group, halves=halves))


OF_AXES = [
    pytest.param(score, id=name, marks=() if name in DEFAULT_SCORES else pytest.mark.slow)
    for name, score in SCORES.items()
    if not score.across_axes
]


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("name", ACTING)
@pytest.mark.parametrize("score", OF_AXES)
def test_the_law_of_the_null_does_not_move_when_the_group_acts(name: str, score: Score) -> None:
    group = ACTING[name]
    element = group.sample(seeded(4))
    x = _data()
    before = _draws(_alternatives(x, group), score, seed=5)
    after = _draws(_alternatives(x @ element.T, group), score, seed=6)
    for here, there in _compared(name, element):
        _same_law(before[:, here].mean(1), after[:, there].mean(1))


def _compared(name: str, element: Tensor) -> list[tuple[list[int], list[int]]]:
    """Which directions have one law before and after: those in the first list, in the second."""
    if name == "planes":
        # A plane keeps its place: each has a law of its own.
        return [([p, p + DIM // 2], [p, p + DIM // 2]) for p in range(DIM // 2)]
    if name == "heads":
        # Heads change places. One direction of each: the angles between axes do change.
        blocks = element.reshape(2, 4, 2, 4).abs().amax((1, 3))
        return [([4 * int(source)], [4 * head]) for head, source in enumerate(blocks.argmax(1))]
    if name == "general-linear":
        return [([0], [0])]
    if name == "parts":
        return [([0], [0]), ([3, 4, 5], [3, 4, 5]), ([6, 7], [6, 7])]
    everything = list(range(DIM))
    return [(everything, everything)]


@pytest.mark.parametrize("name", ["positive-monomial", "monomial"])
@pytest.mark.parametrize("score", SCORES.values(), ids=list(SCORES))
def test_the_observed_axes_keep_their_scores_where_the_group_keeps_axes(
    name: str, score: Score
) -> None:
    group, x = ACTING[name], _data()
    element = group.sample(seeded(7))
    before = _of(score, _alternatives(x, group).frame(None))
    after = _of(score, _alternatives(x @ element.T, group).frame(None))
    order = element.abs().argmax(1)
    torch.testing.assert_close(after, before[order], rtol=1e-9, atol=1e-9)


ACROSS = [pytest.param(score, id=name) for name, score in SCORES.items() if score.across_axes]


@pytest.mark.sample(default=2)
@pytest.mark.parametrize("score", ACROSS)
def test_sizes_of_planes_are_not_compared_where_the_group_scales_them(score: Score) -> None:
    group, x = ACTING["planes"], _data()
    size = torch.logspace(-2, 2, DIM // 2, dtype=torch.float64).repeat(2)
    before, after = (_alternatives(y, group) for y in (x, x * size))
    for generator in (None, seeded):
        torch.testing.assert_close(
            _of(score, after.frame(generator and generator())),
            _of(score, before.frame(generator and generator())),
        )
    # A turn of planes moves the observed axes only among their alternatives.
    turned = _draws(_alternatives(x @ group.sample(seeded(18)).T, group), score, seed=19)
    _same_law(_draws(before, score, seed=20).mean(1), turned.mean(1))


def test_rescaled_axes_give_the_very_same_frames() -> None:
    x = _data()
    units = torch.logspace(-4, 4, DIM, dtype=torch.float64)
    group = PositiveMonomial(DIM)
    one, other = (_alternatives(y, group).frame(seeded()).post for y in (x, x * units))
    torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-9)


def test_what_lies_along_the_line_changes_no_frame() -> None:
    x, group = _data(), LineStabiliser(DIM)
    lifted = x + (x @ _gaussian(DIM, seed=9))[:, None]
    for generator in (None, seeded):
        one, other = (
            _alternatives(y, group).frame(generator and generator()).post for y in (x, lifted)
        )
        torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-9)


def _layer_alternatives(
    inputs: Tensor,
    weight: Tensor,
    bias: Tensor,
    geometry: Geometry,
    bend: Callable[[Tensor], Tensor] = torch.relu,
) -> Alternatives:
    layer = LinearLayer(
        inputs=inputs[..., None],
        weights=(weight[..., None],),
        biases=(bias,),
        pre=lambda made: made[0],
        post=lambda made: bend(made[0]),
        geometry=geometry,
        centred=False,
    )
    problem = Problem(
        x=bend(inputs @ weight.T + bias),
        group=PositiveMonomial(len(weight)),
        halves=torch.arange(len(inputs)) % 2,
        layer=layer,
    )
    return Counterfactual().alternatives(problem)


@dataclasses.dataclass(frozen=True)
class Numbers:
    """A layer's inputs, weights and biases."""

    inputs: Tensor
    weight: Tensor
    bias: Tensor


LAYER = Numbers(_data(), _gaussian(12, DIM, seed=10), _gaussian(12, seed=11))

INPUT_GROUPS: dict[Geometry, Group] = {
    Geometry.EUCLIDEAN: Orthogonal(DIM),
    Geometry.BALANCED: PositiveMonomial(DIM),
    Geometry.POLAR: GeneralLinear(DIM),
}


@pytest.mark.sample(default=2)
@pytest.mark.parametrize("geometry", INPUT_GROUPS)
@pytest.mark.parametrize("score", [KURTOSIS, NON_GAUSSIANITY], ids=lambda score: score.name)
def test_a_finding_does_not_move_when_the_group_of_the_input_acts(
    geometry: Geometry, score: Score
) -> None:
    element = INPUT_GROUPS[geometry].sample(seeded(12))
    before = _layer_alternatives(LAYER.inputs, LAYER.weight, LAYER.bias, geometry)
    after = _layer_alternatives(
        LAYER.inputs @ element.T, LAYER.weight @ torch.linalg.inv(element), LAYER.bias, geometry
    )
    torch.testing.assert_close(
        _of(score, after.frame(None)), _of(score, before.frame(None)), rtol=1e-8, atol=1e-8
    )
    # A neuron may be dead in some frames: it has no score there.
    _same_law(_draws(before, score, seed=13).nanmean(1), _draws(after, score, seed=14).nanmean(1))


@pytest.mark.parametrize("geometry", [Geometry.EUCLIDEAN, Geometry.BALANCED])
@pytest.mark.parametrize("score", [KURTOSIS, NON_GAUSSIANITY], ids=lambda score: score.name)
def test_a_finding_does_not_move_when_the_group_of_the_neurons_acts(
    geometry: Geometry, score: Score
) -> None:
    element = PositiveMonomial(12).sample(seeded(15))
    order = element.argmax(1)
    before = _layer_alternatives(LAYER.inputs, LAYER.weight, LAYER.bias, geometry)
    after = _layer_alternatives(
        LAYER.inputs, element @ LAYER.weight, element @ LAYER.bias, geometry
    )
    for generator in (None, seeded):
        torch.testing.assert_close(
            _of(score, after.frame(generator and generator())),
            _of(score, before.frame(generator and generator()))[order],
            rtol=1e-8,
            atol=1e-8,
        )


def test_the_check_of_laws_notices_a_geometry_that_the_group_moves() -> None:
    # Euclidean turns of axes that the group rescales: the wrong geometry, and the law moves.
    x, units = _data(), torch.logspace(0, 1.5, DIM, dtype=torch.float64)
    euclidean = [
        _draws(_alternatives(y, Orthogonal(DIM)), KURTOSIS, seed=16).mean(1) for y in (x, x / units)
    ]
    with pytest.raises(AssertionError):
        _same_law(*euclidean)


def test_scores_of_ones_own_are_refused_where_they_make_no_sense() -> None:
    own = dataclasses.replace(
        bp.scores.KURTOSIS, name="own", per_direction=lambda rows: rows.x.mean()
    )
    with pytest.raises(ValueError, match=r"'own' gave the shape \(\) for 6 directions: give one"):
        bp.probe_activations(torch.randn(300, 6), group="orthogonal", scores=[own])
    other = dataclasses.replace(own, name="kurtosis")
    with pytest.raises(ValueError, match="two scores are called 'kurtosis'"):
        bp.probe_activations(torch.randn(300, 6), scores=[other, "kurtosis"])
    twice = bp.probe_activations(torch.randn(300, 6), scores=["kurtosis", "kurtosis"])
    assert [*twice.scores] == ["kurtosis"]


@pytest.mark.parametrize("group", ["orthogonal", "permutation"])
def test_scores_of_ones_own_may_count(group: str) -> None:
    counts = dataclasses.replace(
        bp.scores.KURTOSIS, name="far", per_direction=lambda rows: (rows.x.abs() > 1).sum(0)
    )
    real = dataclasses.replace(
        counts, per_direction=lambda rows: (rows.x.abs() > 1).sum(0, dtype=torch.float64)
    )
    x = torch.randn(300, 6, generator=torch.Generator().manual_seed(0)) ** 3
    found, wanted = (bp.probe_activations(x, group=group, scores=[s]) for s in (counts, real))
    assert found.scores["far"] == wanted.scores["far"]


def test_where_no_score_decides_the_sentence_says_so() -> None:
    x = torch.randn(300, 6, generator=torch.Generator().manual_seed(0))
    alone = bp.probe_activations(x, group="permutation", scores=["hoyer"])
    assert "none of the scores that were asked for decides" in alone.verdict.sentence
    beside = bp.probe_activations(x, group="permutation", scores=["hoyer", "negentropy"])
    assert "none of the scores" not in beside.verdict.sentence
