"""A block of axes is compared as the whole is: the same null, less sharp; and intervals hold."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from draws import seeded
from neuron_block_rates import found as layer_report
from torch import Tensor, nn

import basis_probe as bp
from basis_probe.algebra.groups import (
    Blocks,
    GeneralLinear,
    Group,
    LineStabiliser,
    Orthogonal,
    Permutation,
    PositiveMonomial,
)
from basis_probe.algebra.haar import haar
from basis_probe.evidence.measure import affordable, choose, drawn_axes, measure
from basis_probe.statistics.closed_forms import pooled_kurtosis_under_rotation
from basis_probe.statistics.few_axes import few_of_many
from basis_probe.statistics.nulls import (
    Frame,
    Geometry,
    LinearLayer,
    Null,
    Problem,
    Rotation,
    neurons,
)
from basis_probe.statistics.p_values import skewed_tail
from basis_probe.statistics.resampling import LeftOut, jackknife_error
from basis_probe.statistics.scores import (
    KURTOSIS,
    NEGENTROPY,
    NON_GAUSSIANITY,
    SAMPLE_KURTOSIS,
    Measured,
)
from basis_probe.statistics.sparsity import column_negentropy
from basis_probe.statistics.spread import Apart, Spread, for_all_axes, mean_of_all

SAMPLES, DIM = 400, 24


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def _problem(group: Group, x: Tensor | None = None, **more: object) -> Problem:
    rows = _normal(SAMPLES, DIM) ** 3 if x is None else x
    return Problem(x=rows, group=group, halves=torch.arange(len(rows)) % 2, **more)  # type: ignore[arg-type]


def _layer(post: object, geometry: Geometry = Geometry.EUCLIDEAN) -> tuple[LinearLayer, Tensor]:
    inputs, weight, bias = _normal(SAMPLES, 10), _normal(DIM, 10, seed=1), _normal(DIM, seed=2)
    made = LinearLayer(
        inputs=inputs[:, :, None],
        weights=(weight[:, :, None],),
        biases=(bias,),
        pre=lambda outputs: outputs[0],
        post=post,  # type: ignore[arg-type]
        geometry=geometry,
        centred=False,
    )
    return made, inputs @ weight.T + bias


AXES = torch.tensor([1, 4, 5, 17])


@pytest.mark.parametrize(
    "group",
    [Orthogonal(DIM), PositiveMonomial(DIM), GeneralLinear(DIM), bp.groups.LineStabiliser(DIM),
     Blocks(GeneralLinear(4), count=3, copies=2), bp.groups.Planes(DIM, pairing="half")],
)  # fmt: skip
def test_a_block_shows_the_columns_of_the_whole(group: Group) -> None:
    problem = _problem(group)
    whole = Rotation().alternatives(problem).frame(None)
    block = Rotation().alternatives(problem, AXES).frame(None)
    torch.testing.assert_close(block.post, whole.post[:, AXES])
    assert Rotation().observed(problem).post.shape == (SAMPLES, DIM)
    turned = Rotation().alternatives(problem, AXES).frame(seeded())
    assert turned.post.shape == block.post.shape
    assert not torch.allclose(turned.post, block.post)


def test_a_block_of_turned_axes_has_the_law_of_the_whole() -> None:
    problem = _problem(Orthogonal(DIM))
    draws = 600
    thin, whole = (Rotation().alternatives(problem, axes) for axes in (AXES, None))
    one, other = seeded(1), seeded(2)
    a = torch.stack([KURTOSIS.per_direction(_rows(thin.frame(one).post)) for _ in range(draws)])
    b = torch.stack([KURTOSIS.per_direction(_rows(whole.frame(other).post)) for _ in range(draws)])
    b = b[:, AXES]
    error = ((a.var() + b.var()) / (4 * draws)).sqrt()
    assert abs(float(a.mean() - b.mean())) < 4 * float(error)
    # The block's mean varies as that of as many axes of a whole frame.
    assert 0.8 < float(a.mean(1).std() / b.mean(1).std()) < 1.25


def _rows(x: Tensor) -> object:
    from basis_probe.statistics.scores import Rows

    return Rows(x)


SLOPES = _normal(DIM, seed=9)


@pytest.mark.parametrize(
    ("post", "what"),
    [
        (lambda outputs: outputs[0].relu(), "each axis by itself"),
        (lambda outputs: (outputs[0] * SLOPES).tanh(), "each axis in its own way"),
        (lambda outputs: outputs[0].softmax(1), "all axes together"),
    ],
)
@pytest.mark.parametrize("geometry", [Geometry.EUCLIDEAN, Geometry.BALANCED, Geometry.POLAR])
def test_counterfactual_neurons_of_a_block_are_those_of_the_whole(
    post: object, what: str, geometry: Geometry
) -> None:
    layer, pre = _layer(post, geometry)
    problem = _problem(PositiveMonomial(DIM), layer.post((pre,)), layer=layer)
    block = bp.nulls.Counterfactual().alternatives(problem, AXES)
    for frame in (block.frame(None), block.frame(seeded())):
        assert frame.post.shape == (SAMPLES, len(AXES)), what
        assert frame.pre is not None
    observed = block.frame(None)
    torch.testing.assert_close(observed.post, problem.x[:, AXES])
    torch.testing.assert_close(observed.pre, pre[:, AXES])
    turned = block.frame(seeded())
    assert turned.pre is not None
    # What the null holds fixed: the mean pre-activation of every neuron.
    torch.testing.assert_close(turned.pre.mean(0), pre[:, AXES].mean(0))
    if what != "all axes together":
        whole = layer.post((_whole(turned.pre),))[:, AXES]
        torch.testing.assert_close(turned.post, whole)


def _whole(block: Tensor) -> Tensor:
    whole = torch.zeros(len(block), DIM, dtype=block.dtype)
    whole[:, AXES] = block
    return whole


@pytest.mark.parametrize("null", [bp.nulls.CovariancePreserving(), bp.nulls.GaussianSurrogate()])
def test_frames_that_keep_the_covariance_do(null: Null) -> None:
    x = _normal(8000, 5) @ _normal(5, 5, seed=3) + 2
    problem = _problem(PositiveMonomial(5), x)
    alternatives = null.alternatives(problem, torch.tensor([0, 3]))
    torch.testing.assert_close(alternatives.frame(None).post, x[:, [0, 3]])
    drawn = alternatives.frame(seeded()).post
    torch.testing.assert_close(drawn.mean(0), x[:, [0, 3]].mean(0), atol=0.1, rtol=0)
    torch.testing.assert_close(drawn.T.cov(), x[:, [0, 3]].T.cov(), atol=0.15, rtol=0.08)
    assert null.approximate and null.holds_fixed
    bent = _problem(PositiveMonomial(5), x.relu(), pre=x, nonlinearity=torch.relu)
    frame = null.alternatives(bent).frame(seeded())
    torch.testing.assert_close(frame.post, frame.pre.relu())


def test_neurons_in_bands_keep_how_much_variance_they_read() -> None:
    layer, _ = _layer(lambda outputs: outputs[0].relu())
    spread = torch.logspace(0, 1.5, 10, dtype=torch.float64)
    inputs = layer.inputs[:, :, 0] * spread
    layer = _replaced(layer, inputs)
    weight = layer.weights[0][:, :, 0]
    problem = _problem(PositiveMonomial(DIM), layer.post((inputs @ weight.T,)), layer=layer)
    variance = {}
    for bands in (None, 1.2):
        generator = seeded(4)
        alternatives = bp.nulls.Counterfactual(bands=bands).alternatives(problem)
        before = alternatives.frame(None).pre.var(0)
        after = torch.stack([alternatives.frame(generator).pre.var(0) for _ in range(20)])
        variance[bands] = float((after / before).log().abs().mean())
        mean = alternatives.frame(generator).pre.mean(0)
        torch.testing.assert_close(mean, alternatives.frame(None).pre.mean(0))
    assert variance[1.2] < 0.5 * variance[None]
    with pytest.raises(ValueError, match=r"bands=1.0: give a number above 1"):
        bp.nulls.Counterfactual(bands=1.0)


def _replaced(layer: LinearLayer, inputs: Tensor) -> LinearLayer:
    import dataclasses

    return dataclasses.replace(layer, inputs=inputs[:, :, None])


def _normed(width: int) -> nn.Module:
    norm = nn.BatchNorm1d(width)
    for given in (norm.weight, norm.bias, norm.running_mean):
        assert given is not None
        nn.init.normal_(given)
    return norm


@pytest.mark.parametrize(
    "between",
    [nn.Identity, lambda: _normed(300), lambda: nn.Dropout(0.3)],
    ids=["nothing", "batch normalisation", "dropout"],
)
def test_what_is_done_axis_by_axis_is_computed_along_the_axes_that_are_compared(
    between: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[neurons.Reach] = []
    read = neurons._read

    def looked(layer: LinearLayer, axes: Tensor) -> tuple[neurons.Reach, LinearLayer]:
        found = read(layer, axes)
        seen.append(found[0])
        return found

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 300), between(), nn.ReLU()).eval()
        nn.init.normal_(model[0].weight)  # type: ignore[arg-type]
    monkeypatch.setattr(neurons, "_read", looked)
    data = [_normal(400, 16).float()]
    bp.probe(model, data, sites=["2"], certificates=False, progress=False)
    assert seen and set(seen) == {neurons.Reach.NARROW}


@pytest.mark.parametrize("copies", [1, 2])
def test_as_many_axes_of_every_head_are_drawn_each_for_itself_and_the_same_of_copies(
    copies: int,
) -> None:
    heads, size = 5, 8
    group = Blocks(GeneralLinear(size), heads, copies=copies)
    problem = _problem(group, _normal(SAMPLES, group.dim))
    seen: list[set[int]] = []
    for seed in range(4):
        axes = drawn_axes(problem, Geometry.HEADS, 3 * heads * copies, seed)
        assert torch.equal(axes, axes.unique())
        blocks = range(heads * copies)
        inside = [set((axes[axes // size == block] % size).tolist()) for block in blocks]
        assert all(len(one) == 3 for one in inside)
        assert all(one == inside[place - place % copies] for place, one in enumerate(inside))
        seen += inside[::copies]
    # Of 20 draws of three of eight axes few are alike.
    assert len({frozenset(one) for one in seen}) > 10


@pytest.mark.parametrize("one_law", [True, False])
@pytest.mark.parametrize("read", [2, 64, 768, 9216, 10**6])
def test_a_block_has_fewer_axes_than_the_whole(read: int, one_law: bool) -> None:
    """Where a block would be no smaller, the whole is turned, in enough frames for its law."""
    for dim in (*range(2, 200), 256, 1000, 14336):
        size = affordable(read, dim, one_law=one_law)
        if size.directions is None:
            assert size.frames >= 99, (read, dim)
        else:
            assert 0 < size.directions < dim, (read, dim)
            # So many directions are compared that their law is known.
            assert size.frames * size.directions >= min(19 * (dim // 2), 2400), (read, dim)


@pytest.mark.slow
def test_wide_sites_are_compared_on_a_block_and_say_so() -> None:
    sizes = [affordable(*shape) for shape in ((32, 32), (64, 64), (128, 172), (768, 3072))]
    assert [(size.frames, size.samples, size.directions) for size in sizes] == [
        (199, 4096, None),
        (99, 4096, None),
        (99, 4096, None),
        (30, 1024, 90),
    ]
    assert affordable(103, 103, one_law=True).frames == 199
    assert affordable(104, 104, one_law=True).frames == 99
    for read, dim in ((9216, 96), (4608, 97), (64, 4096)):
        # Whole frames are as many as their law takes; blocks have more axes than frames.
        size = affordable(read, dim)
        assert size.frames == 99 if size.directions is None else size.frames < size.directions < dim
    for dim in (175, 256, 768, 4096):
        turned = affordable(dim, dim, one_law=True)
        assert turned.samples == 1024 and turned.directions is not None
        # As many directions together as there are axes, at least, up to what they cost.
        assert 19 <= turned.frames <= 99 and turned.directions <= dim // 2
        assert turned.frames * turned.directions >= min(2 * dim, 2432)
    x = _normal(900, 40) ** 3
    site = bp.probe_activations(
        x, group="orthogonal", null=bp.nulls.Rotation(99, 512, directions=8)
    )
    score = site.scores["non_gaussianity"]
    assert site.null is not None and site.null.directions == 8
    assert score.per_direction.shape == (40,) and not any(map(math.isnan, score.per_direction))
    # Directions of rotations have one law, so that axes outside the block have p-values too.
    assert not any(map(math.isnan, score.per_direction_p))
    assert score.note == "all 40 axes, against 792 turned directions"
    assert site.verdict.outcome is bp.Outcome.EMERGENT
    # What compares all axes has its null in closed form.
    across = site.scores["sample_kurtosis"]
    full = bp.probe_activations(x, group="orthogonal", null=bp.nulls.Rotation(999, 512))
    assert across.p_tail_method == "normal law with the null's exact mean and variance"
    assert across.effect == pytest.approx(full.scores["sample_kurtosis"].effect, rel=0.1)
    with pytest.raises(ValueError, match="directions=0: give a whole number above zero"):
        bp.nulls.Rotation(directions=0)


def test_the_same_axes_are_compared_for_one_seed() -> None:
    problem = _problem(Permutation(DIM))
    choice = choose(problem, Rotation(frames=19, samples=200, directions=6))
    one, again = (measure(problem, choice, [NON_GAUSSIANITY], seed=3).scores for _ in range(2))
    assert one == again
    other = measure(problem, choice, [NON_GAUSSIANITY], seed=4).scores
    assert one[NON_GAUSSIANITY.name].null_mean != other[NON_GAUSSIANITY.name].null_mean
    # The mean is over all axes, whichever are compared.
    assert one[NON_GAUSSIANITY.name].observed == other[NON_GAUSSIANITY.name].observed


@pytest.mark.slow
def test_the_difference_of_a_block_is_that_of_all_axes_within_its_error() -> None:
    weight = _normal(48, 12) * torch.linspace(0.5, 2, 48, dtype=torch.float64)[:, None]
    bias = torch.linspace(-1, 1, 48, dtype=torch.float64)
    blocks: list[bp.SiteReport] = []
    wholes: list[bp.SiteReport] = []
    for seed in range(12):
        inputs = _normal(400, 12, seed=seed)
        inputs = inputs * inputs.abs()
        for found, directions in ((blocks, 10), (wholes, None)):
            null = bp.nulls.Counterfactual(29, 400, directions)
            found.append(
                bp.probe_activations(
                    (inputs @ weight.T + bias).relu(), group="positive-monomial", inputs=inputs,
                    weight=weight, bias=bias, nonlinearity="relu", null=null, seed=seed,
                )
            )  # fmt: skip
    for name in ("kurtosis", "negentropy"):
        truth = sum(site.scores[name].difference for site in wholes) / len(wholes)
        for found in (blocks, wholes):
            several = [site.scores[name] for site in found]
            off = torch.tensor([(s.difference - truth) / s.difference_error for s in several])
            assert 0.6 < float(off.square().mean().sqrt()) < 1.5
    for site in wholes:
        for score in site.scores.values():
            assert score.difference == pytest.approx(score.observed - score.null_mean, nan_ok=True)


@pytest.mark.parametrize("slope", [0.0, 0.3, 1.0])
def test_other_examples_move_all_axes_and_those_compared_together(slope: float) -> None:
    x = _normal(300, 20) ** 3
    examples = torch.arange(300) // 3
    problem = Problem(x=x, group=Orthogonal(20), halves=torch.arange(300) % 2, examples=examples)
    few, others = Frame(x[:, :4]), [Frame(_normal(300, 4, seed=seed)) for seed in (1, 2)]
    spread = Spread(problem, [KURTOSIS])
    for frame in (few, *others):
        spread.see(frame)
    alone = spread.error(KURTOSIS)
    spread.see_everywhere(Frame(x))
    groups = examples % 20
    means = [LeftOut(f.post, groups).kurtosis.mean(1) for f in (few, Frame(x), *others)]
    null = (means[2] + means[3]) / 2
    expected = jackknife_error(slope * means[0] + (1 - slope) * means[1] - null)
    assert spread.error(KURTOSIS, slope=slope) == pytest.approx(expected, rel=1e-9)
    assert spread.error(KURTOSIS) == pytest.approx(alone, rel=1e-12)


@pytest.mark.parametrize("along", [0.0, 0.5, 1.0, 2.0])
def test_some_axes_stand_for_all_with_the_error_of_drawing_them(along: float) -> None:
    generator = seeded(3)
    own = torch.randn(200, generator=generator, dtype=torch.float64).exp()
    others = along * own + 0.3 * torch.randn(200, generator=generator, dtype=torch.float64)
    truth = float(own.mean() - others.mean())
    off: list[float] = []
    for _ in range(400):
        axes = torch.randperm(200, generator=generator)[:100]
        directions = torch.stack([own[axes], others[axes] + 1, others[axes] - 1])
        found = for_all_axes(directions, own)
        off.append((found.difference - truth) / found.error)
    assert 0.85 < float(torch.tensor(off).square().mean().sqrt()) < 1.15
    # Where all were compared nothing is left to chance.
    whole = for_all_axes(torch.stack([own, others]), own)
    assert whole.error == 0 and whole.difference == pytest.approx(truth, rel=1e-12)
    few = for_all_axes(torch.stack([own[:2], others[:2]]), own)
    assert math.isnan(few.error)


# --- few of many, and the mean of all -------------------------------------------------------------

LAWS = {
    "squares": lambda draws: draws.square(),
    "lognormal": lambda draws: draws.exp(),
    "bounded": lambda draws: draws.sigmoid(),
    "heavier": lambda draws: draws.abs() ** 3,
}


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("copies", [1, 5])
def test_no_few_of_many_axes_stand_out_where_all_have_one_law(law: str, copies: int) -> None:
    """Also where axes come in copies, so that their largest values do not come alone."""
    alarms = 0
    for seed in range(40):
        generator = seeded(seed)
        values = LAWS[law](torch.randn(300, generator=generator).double()).repeat(copies)
        blocks = LAWS[law](torch.randn(99, 16, generator=generator).double())
        found = few_of_many([values, values.log1p()], [blocks, blocks.log1p()])
        assert found is not None and 0 <= found.p_tail <= 1
        alarms += found.p_tail <= 0.05
    assert alarms <= 6  # of 40; more come by chance in one of 70 at a rate of 5 %


@pytest.mark.parametrize("several", [1, 3, 9])
def test_few_of_many_axes_are_named_wherever_they_are(several: int) -> None:
    generator = seeded(several)
    values = torch.randn(2000, generator=generator).double().square()
    blocks = torch.randn(99, 16, generator=generator).double().square()
    planted = torch.randperm(2000, generator=generator)[:several]
    values[planted] = 60.0
    found = few_of_many([values], [blocks])
    assert found is not None and found.p_tail < 1e-4 and found.alone == several
    assert sorted(found.axes.tolist()) == sorted(planted.tolist())
    # An axis whose own alternatives reach as far does not count.
    common = planted[:1]

    def own(axes: Tensor) -> list[Tensor]:
        drawn = torch.randn(99, len(axes), generator=generator).double().square()
        return [drawn + 58 * (axes == common).double()]

    left = few_of_many([values], [blocks], own)
    assert left is not None and int(common) not in left.axes[: left.alone].tolist()
    assert left.alone == several - 1 and (several == 1) == (left.p_tail > 0.05)
    assert few_of_many([], []) is None
    assert few_of_many([torch.full((9,), math.nan).double()], [blocks]) is None


def test_the_mean_of_all_errs_by_no_more_than_is_said() -> None:
    """With what alternatives share, and with axes that were not compared."""
    off: list[float] = []
    for seed in range(150):
        generator = seeded(seed)
        own = torch.randn(400, generator=generator).exp()
        common = 0.2 * torch.randn(100, 1, generator=generator)
        every = own + common + torch.randn(100, 400, generator=generator)
        axes = torch.randperm(400, generator=generator)[:24]
        found = mean_of_all(every[:, axes].double(), every[0].double(), one_law=False)
        assert found.observed == pytest.approx(float(every[0].mean()), rel=1e-5)
        off.append((found.observed - found.null_mean) / found.null_std)
    assert abs(sum(off) / len(off)) < 0.3
    assert 0.5 < float(torch.tensor(off).square().mean().sqrt()) < 1.1


def test_the_largest_are_looked_at_where_that_is_asked() -> None:
    generator = seeded(4)
    values = [torch.rand(500, generator=generator).double() for _ in range(2)]
    blocks = [torch.rand(99, 16, generator=generator).double() for _ in range(2)]
    asked: list[Tensor] = []

    def own(axes: Tensor) -> list[Tensor]:
        asked.append(axes)
        return [torch.rand(99, len(axes), generator=generator).double() for _ in range(2)]

    unasked = few_of_many(values, blocks, own)
    assert unasked is not None
    asked.clear()
    found = few_of_many(values, blocks, own, always=5)
    assert found is not None and found.looked_at is not None
    largest = {int(axis) for value in values for axis in value.topk(5).indices}
    assert largest <= set(found.looked_at.tolist())
    torch.testing.assert_close(asked[0], found.looked_at)
    # Looking at more of them makes none stand out.
    assert found.p_tail > 0.05 and found.alone == 0
    assert few_of_many(values, blocks, None, always=5) is not None


@pytest.mark.slow
def test_untrained_layers_in_which_a_few_neurons_read_few_inputs_are_not_called() -> None:
    called = sum(
        layer_report("three neurons of two inputs", seed, None).verdict.outcome
        is bp.Outcome.PRIVILEGED
        for seed in range(24)
    )
    # Of 24 at a rate of 5 % more than four come in one of 250.
    assert called <= 4


@pytest.mark.parametrize("above", [0.0, 40.0])
@pytest.mark.parametrize("several", [1, 3, 12])
def test_axes_that_are_looked_at_one_by_one_stand_for_themselves(
    several: int, above: float
) -> None:
    """A few of a law of their own are no finding, and they are one if they are above it."""
    off: dict[str, list[float]] = {"apart": [], "inferred": []}
    for seed in range(60):
        generator = seeded(seed)
        centre = torch.randn(600, generator=generator).double()
        odd = torch.randperm(600, generator=generator)[:several]
        # Either their alternatives score as much, or others do as well as all.
        centre[odd] += 40.0 - above
        values = centre + torch.randn(600, generator=generator)
        values[odd] += above
        axes = torch.randperm(600, generator=generator)[:90].sort().values
        blocks = centre[axes] + torch.randn(30, 90, generator=generator)
        directions = torch.cat([values[None, axes], blocks])
        own = centre[odd] + torch.randn(30, several, generator=generator)
        for name, apart in (("apart", Apart(odd, own, axes)), ("inferred", None)):
            found = mean_of_all(directions, values, one_law=False, apart=apart)
            off[name].append((found.observed - found.null_mean) / found.null_std)
            assert found.observed == pytest.approx(float(values.mean()))
        # What is known of all of them is no estimate.
        every = torch.arange(600)
        means = centre + torch.zeros(2, 600)
        exact = for_all_axes(directions, values, Apart(every, means, axes))
        assert exact.difference == pytest.approx(float((values - centre).mean()), abs=1e-9)
        assert exact.error == 0.0
    apart, inferred = (torch.tensor(off[name]) for name in ("apart", "inferred"))
    if above:
        assert float(apart.mean()) > 0.5 * 40 * several / 600 / 0.1
    else:
        assert abs(float(apart.mean())) < 0.4 and 0.4 < float(apart.std()) < 1.15
        assert float(inferred.abs().mean()) > float(apart.abs().mean())


@pytest.mark.parametrize("shared", [0.0, 0.1, 0.4])
def test_more_axes_in_fewer_frames_are_as_sharp_and_hold_the_level(shared: float) -> None:
    """The size that is chosen, against as many more frames of fewer axes."""
    size, dim = affordable(768, 3072), 3072
    assert size.directions is not None
    shapes = {"chosen": (size.frames, size.directions), "more frames": (99, 64)}
    called = dict.fromkeys(shapes, 0)
    width = dict.fromkeys(shapes, 0.0)
    for seed in range(300):
        generator = seeded(seed)
        # Every neuron has a law of its own, skewed, and what it scores beside others is one draw.
        own = torch.randn(dim, generator=generator).exp()
        drawn = (torch.randn(dim, generator=generator) / 2).exp()
        for name, (frames, count) in shapes.items():
            common = shared * torch.randn(frames + 1, 1, generator=generator)
            axes = torch.randperm(dim, generator=generator)[:count]
            every = (torch.randn(frames + 1, count, generator=generator) / 2).exp()
            every[0] = drawn[axes]
            values = (own + drawn + common[0]).double()
            found = mean_of_all((own[axes] + every + common).double(), values, one_law=False)
            called[name] += abs(found.observed - found.null_mean) > 1.96 * found.null_std
            width[name] += found.null_std / 300
    # One in twenty of 300 are 15.
    assert max(called.values()) <= 26
    # What all axes share is known the worse, the fewer frames there are.
    assert width["chosen"] < (1.0 if not shared else 1.05) * width["more frames"]


TURNED: dict[str, Callable[[Tensor], Tensor]] = {
    "Gaussian": lambda x: x,
    "Laplace": lambda x: x * x.abs(),
    "rows of unequal length": lambda x: x * (1.5 * _normal(len(x), 1, seed=5)).exp(),
    "one very sparse axis": lambda x: torch.cat([x[:, :1] ** 9, x[:, 1:]], 1),
    "one row far out": lambda x: torch.cat([20 * x[:1], x[1:]]),
    "one loud axis": lambda x: torch.cat([30 * x[:, :1].sign(), x[:, 1:]], 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("line", [False, True])
@pytest.mark.parametrize("name", TURNED)
def test_the_mean_over_a_turned_basis_varies_no_more_than_its_directions_let_it(
    name: str, line: bool
) -> None:
    """Whole turned bases against what few directions of others say of them; each a true null."""
    dim, bases = 48, 100
    x = TURNED[name](_normal(300, dim)).float()
    problem = _problem(LineStabiliser(dim) if line else Orthogonal(dim), x)
    null = Rotation(geometry=Geometry.RIDGE)
    generator = seeded(1)
    some = null.alternatives(problem, torch.arange(16))
    whole = null.alternatives(problem)
    off: dict[str, list[tuple[float, float]]] = {"non_gaussianity": [], "negentropy": []}
    for at in range(bases):
        if at % 20 == 0:
            blocks = [Measured(some.frame(generator), unit_axes=False) for _ in range(60)]
        every = Measured(whole.frame(generator), unit_axes=False)
        for score in (NON_GAUSSIANITY, NEGENTROPY):
            values = every.of(score)
            drawn = torch.stack([values[:16], *(block.of(score) for block in blocks)])
            found = mean_of_all(drawn, values, one_law=True)
            effect = (found.observed - found.null_mean) / found.null_std
            off[score.name].append((effect, found.tail(effect)))
    for several in off.values():
        effects, tails = torch.tensor(several).T
        assert float(effects.std()) < 1.15 and abs(float(effects.mean())) < 0.35
        assert float((tails <= 0.05).double().mean()) < 0.1 and float(tails.min()) > 1e-4


@pytest.mark.parametrize("dim", [5, 8, 24, 200, 3000])
def test_no_function_of_directions_is_shared_more_between_the_axes_of_a_turned_basis(
    dim: int,
) -> None:
    """P_k(t) of every degree, for right angles and for the axes beside the all-ones direction."""
    for m, cosine in ((dim, 0.0), (dim - 1, -1 / (dim - 1))):
        before, now = 1.0, cosine
        highest = now
        for k in range(1, 200):
            before, now = now, ((2 * k + m - 2) * cosine * now - k * before) / (k + m - 2)
            highest = max(highest, now)
        assert (dim - 1) * highest <= 3 / (dim - 2)


SKEWED: dict[str, Callable[[Tensor], Tensor]] = {
    "Gaussian": lambda draws: draws,
    "squares": lambda draws: draws.square(),
    "fourth powers": lambda draws: draws**4,
    "lognormal": lambda draws: (2 * draws).exp(),
}


@pytest.mark.parametrize("law", SKEWED)
@pytest.mark.parametrize("size", [2, 8, 64])
def test_the_mean_of_all_holds_its_level_where_few_directions_lack_rare_large_scores(
    law: str, size: int
) -> None:
    generator, alarms, far = seeded(size), 0, 0
    for _ in range(300):
        directions = SKEWED[law](torch.randn(20, size, generator=generator).double())
        values = SKEWED[law](torch.randn(200, generator=generator).double())
        found = mean_of_all(directions, values, one_law=True)
        p = found.tail((found.observed - found.null_mean) / found.null_std)
        alarms, far = alarms + (p <= 0.05), far + (p <= 0.001)
    # Of 300; more come by chance in one of 1,000 at rates of 5 % and 0.1 %.
    assert alarms <= 28 and far <= 3


@pytest.mark.parametrize("power", [-1000, -300, 0, 300, 1000])
def test_the_law_of_a_mean_over_a_turned_basis_scales_with_the_unit_of_the_score(
    power: int,
) -> None:
    unit = 2.0**power
    directions, values = _normal(20, 16).square(), _normal(300, seed=1).square()
    found = mean_of_all(unit * directions, unit * values, one_law=True)
    wanted = mean_of_all(directions, values, one_law=True)
    assert found.skewness == pytest.approx(wanted.skewness, rel=1e-9) and wanted.skewness > 0
    for part in ("observed", "null_mean", "null_std", "error", "pooled_std"):
        assert getattr(found, part) == pytest.approx(unit * getattr(wanted, part), rel=1e-9)
    # No direction has a score, or all have the same.
    none = mean_of_all(torch.full_like(directions, math.nan), values, one_law=True)
    assert math.isnan(none.null_mean) and math.isnan(none.null_std)
    alike = mean_of_all(torch.full_like(directions, unit), values, one_law=True)
    assert alike.null_mean == unit and alike.null_std == 0 and alike.error == 0


@pytest.mark.parametrize("group", ["positive-monomial", LineStabiliser(300)])
def test_axes_of_a_wide_site_are_compared_as_sharply_beside_many_that_never_vary(
    group: Group | str,
) -> None:
    x = torch.zeros(600, 300)
    x[:, 7:97] = (_normal(600, 90) ** 3).float()
    site = bp.probe_activations(x, group=group, scores=["negentropy"])
    assert site.null is not None and site.null.frames >= 99
    assert site.scores["negentropy"].p_adjusted < 1e-3 and site.few is not None
    assert site.verdict.outcome in (bp.Outcome.PRIVILEGED, bp.Outcome.EMERGENT)


@pytest.mark.parametrize("group", ["orthogonal", "positive-monomial", "general-linear"])
@pytest.mark.parametrize("rows", [900, 1500])
def test_nothing_is_said_of_rows_that_are_equal_but_for_one(group: str, rows: int) -> None:
    """Whether that one is among those that are compared or not."""
    x = torch.cat([_normal(1, 200).repeat(rows - 1, 1), _normal(1, 200, seed=1)]).float()
    site = bp.probe_activations(x, group=group, scores=["non_gaussianity", "negentropy"])
    assert site.verdict.outcome is bp.Outcome.UNDECIDED and site.few is None
    assert all(not score.p_tail < 1 for score in site.scores.values())
    said = "the 1,024 rows that were drawn to be compared are all equal"
    assert (said in site.verdict.sentence) == (rows > 1024)


def test_a_skewed_tail_is_that_of_the_gamma_law() -> None:
    from scipy.stats import pearson3

    for skewness in (0.0, 5e-4, 0.02, 0.3, 1.0, 3.0):
        for effect in (-2.0, -0.5, 0.0, 1.0, 2.5, 4.5):
            wanted = float(pearson3(skewness).sf(effect))
            assert skewed_tail(effect, skewness) == pytest.approx(wanted, rel=1e-2, abs=1e-12)
    assert math.isnan(skewed_tail(math.nan, 0.1)) and math.isnan(skewed_tail(1.0, math.nan))


@pytest.mark.slow
def test_neurons_outside_the_block_are_found_and_named() -> None:
    rows, width, count = 1500, 24, 400
    inputs, weight = _normal(rows, width), _normal(count, width, seed=1) / math.sqrt(width)
    carried = [17, 203]
    inputs[:, :2] = 3 * (_normal(rows, 2, seed=2) > 1.8).double() + 0.2 * inputs[:, :2]
    weight[carried] = torch.eye(width, dtype=torch.float64)[:2]
    turn = haar(width, seeded(3))
    inputs, weight = inputs @ turn, weight @ turn
    null = bp.nulls.Counterfactual(frames=99, samples=1024, directions=20)
    for planted in (True, False):
        if not planted:
            weight[carried] = _normal(2, width, seed=4) / math.sqrt(width)
        site = bp.probe_activations(
            (inputs @ weight.T).relu(), group="positive-monomial", inputs=inputs, weight=weight,
            nonlinearity="relu", null=null,
        )  # fmt: skip
        assert site.few is not None
        assert (site.few.p_adjusted <= 0.05) is planted
        if planted:
            assert sorted(site.few.axes) == carried and site.few.alone == 2
            assert site.verdict.outcome is bp.Outcome.PRIVILEGED
            assert "2 of 400 neurons stand out by themselves" in site.verdict.advice
        assert site.scores["negentropy"].observed == pytest.approx(
            float(np.nanmean(site.scores["negentropy"].per_direction)), rel=1e-12
        )


# --- other examples -------------------------------------------------------------------------------


def test_statistics_without_a_group_are_those_of_the_other_rows() -> None:
    x = _normal(600, 3) ** 3 + 100
    x[:, 2] = 5.0
    groups = torch.arange(600) % 20
    found = LeftOut(x, groups)
    for group in range(20):
        rows = x[groups != group]
        d = rows[:, :2] - rows[:, :2].mean(0)
        wanted = d.pow(4).mean(0) / d.square().mean(0).square()
        torch.testing.assert_close(found.kurtosis[group, :2], wanted)
    exact = torch.stack([column_negentropy(x[groups != group]) for group in range(20)])
    assert bool(found.kurtosis[:, 2].isnan().all() & found.negentropy[:, 2].isnan().all())
    # What a group moves is known to first order; it is small itself.
    moved = (exact - exact.mean(0))[:, :2]
    missed = (found.negentropy - exact)[:, :2]
    assert float(missed.std(0).max() / moved.std(0).min()) < 0.15


def test_errors_by_leaving_out_cover_what_they_should() -> None:
    covered = 0
    for seed in range(200):
        x = _normal(200, seed=seed)
        groups = torch.arange(200) % 20
        without = torch.stack([x[groups != group].mean() for group in range(20)])
        covered += abs(float(x.mean())) <= 1.96 * jackknife_error(without)
    assert 0.88 * 200 <= covered <= 0.99 * 200
    assert math.isnan(jackknife_error(torch.zeros(3)))


@pytest.mark.slow
def test_rows_of_one_example_are_left_out_together() -> None:
    """Copies of every row add nothing: the interval must not shrink as if they did."""
    x = _normal(307, 12) ** 3
    null = bp.nulls.Rotation(frames=49, samples=4096)
    alone = bp.probe_activations(x, group="orthogonal", null=null)
    copies = bp.probe_activations(
        x.repeat(4, 1), group="orthogonal", null=null, examples=torch.arange(307).repeat(4)
    )
    naive = bp.probe_activations(x.repeat(4, 1), group="orthogonal", null=null)
    width = {
        name: site.scores["kurtosis"].effect_interval[1] - site.scores["kurtosis"].effect
        for name, site in (("alone", alone), ("copies", copies), ("naive", naive))
    }
    assert copies.null is not None and copies.null.examples == 307
    assert width["copies"] == pytest.approx(width["alone"], rel=0.6)
    assert width["naive"] < 0.75 * width["copies"]
    with pytest.raises(ValueError, match=r"examples has shape \(3,\), and x has 307 rows"):
        bp.probe_activations(x, examples=[1, 2, 3])


def test_scores_across_axes_of_a_block_are_left_out_where_no_formula_is_known() -> None:
    x = _normal(600, 30).relu()
    site = bp.probe_activations(
        x,
        group="permutation",
        null=bp.nulls.GaussianSurrogate(frames=19, samples=600, directions=5),
    )
    assert SAMPLE_KURTOSIS.name not in site.scores
    assert any(note.startswith("sample_kurtosis: left out") for note in site.notes)


@pytest.mark.slow
def test_all_axes_against_blocks_hold_the_level_where_directions_share_their_errors() -> None:
    """Samples of unequal length move all directions of one data set together."""
    null = bp.nulls.Rotation(99, 400, directions=16)
    effects: list[float] = []
    for seed in range(12):
        lengths = _normal(400, 1, seed=seed + 50).abs() + 0.1
        x = _normal(400, 80, seed=seed) * lengths
        site = bp.probe_activations(x, group="orthogonal", null=null)
        effects.append(site.scores["non_gaussianity"].effect)
    # Exactly exchangeable: standard normal but for what the block's own error adds.
    assert max(map(abs, effects)) < 3.5
    assert sum(effect**2 for effect in effects) / len(effects) < 2.5


def test_all_axes_that_are_compared_count_in_the_error_however_many_they_are() -> None:
    # What turned axes share with the axes, such as their variance in all, cancels over all of them.
    x = _normal(90, 600) * torch.logspace(-1, 1, 600)
    problem = _problem(Orthogonal(600), x, examples=torch.arange(90))
    spread = Spread(problem, [KURTOSIS])
    frames = [x, *(x @ haar(600, seeded(seed)) for seed in range(3))]
    for frame in frames:
        spread.see(Frame(frame))
    groups = torch.arange(90) % 20
    means = [LeftOut(frame, groups).kurtosis.mean(1) for frame in frames]
    wanted = jackknife_error(means[0] - torch.stack(means[1:]).mean(0))
    assert spread.error(KURTOSIS) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("error", [AssertionError, KeyError, TypeError, RuntimeError])
@pytest.mark.parametrize("known", ["layer", "pre"])
def test_a_function_may_refuse_fewer_axes_in_whatever_words(
    known: str, error: type[Exception]
) -> None:
    def strict(values: Tensor) -> Tensor:
        if values.shape[1] != DIM:
            raise error("all axes, please")
        return values.relu()

    layer, post = _layer(lambda outputs: strict(outputs[0]))
    if known == "layer":
        problem = _problem(PositiveMonomial(DIM), post, layer=layer)
        null: Null = bp.nulls.Counterfactual(frames=19, directions=5)
    else:
        pre = layer.outputs[0]
        problem = _problem(PositiveMonomial(DIM), post, pre=pre, nonlinearity=strict)
        null = bp.nulls.TurnedPreactivation(frames=19, directions=5)
    found = measure(problem, choose(problem, null), [KURTOSIS], seed=0)
    assert math.isfinite(found.scores["kurtosis"].effect)


@pytest.mark.parametrize("group", [Orthogonal(DIM), LineStabiliser(DIM), Permutation(DIM)])
def test_a_mean_without_drawing_is_that_of_the_turns_asked_for_under_any_group(
    group: Group,
) -> None:
    """Also of rows that have much along the all-ones direction, which some groups leave fixed."""
    x = _normal(SAMPLES, DIM) ** 3 + 3 * _normal(SAMPLES, 1, seed=4)
    null = Rotation(frames=19, geometry=Geometry.EUCLIDEAN)
    problem = _problem(group, x)
    found = measure(problem, choose(problem, null), [KURTOSIS], seed=0).scores["kurtosis"]
    assert found.closed_form is not None
    wanted = pooled_kurtosis_under_rotation(x).mean
    assert found.closed_form.mean == pytest.approx(wanted, rel=1e-9)


def test_a_block_of_which_hardly_an_axis_is_left_is_taken_whole() -> None:
    generator = seeded(6)
    values = torch.randn(400, generator=generator).double()
    axes = torch.arange(8)
    directions = torch.cat([values[None, :8], torch.randn(30, 8, generator=generator).double()])
    own = torch.randn(30, 8, generator=generator).double()
    found = mean_of_all(directions, values, one_law=False, apart=Apart(axes, own, axes))
    assert found == mean_of_all(directions, values, one_law=False)
    assert math.isfinite(found.null_std)
