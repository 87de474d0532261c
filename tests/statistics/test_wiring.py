"""Neurons of sparse layers are compared with neurons that read as many other inputs."""

import math
from typing import Any

import pytest
import torch
from draws import seeded
from torch import Tensor, nn

import basis_probe as bp
from basis_probe.algebra.groups import PositiveMonomial
from basis_probe.calibration import sparse
from basis_probe.calibration.draw import Draw
from basis_probe.statistics.nulls import Geometry, LinearLayer, Problem, SparseWiring
from basis_probe.statistics.p_values import Tail, monte_carlo_p
from basis_probe.statistics.scores import Measured
from basis_probe.statistics.weight_laws import is_drawn, is_heavy, is_sparse, zeros

WIDTH, NEURONS = 12, 7


def _weight(density: float, *shape: int, seed: int = 0) -> Tensor:
    generator = seeded(seed)
    weight = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return weight * (torch.rand(shape, generator=generator) < density)


def _problem(weights: list[Tensor], inputs: Tensor, geometry: Geometry = Geometry.EUCLIDEAN):
    layer = LinearLayer(
        inputs=inputs,
        weights=tuple(weights),
        biases=tuple(None for _ in weights),
        pre=None,
        post=lambda outputs: torch.cat(outputs, 1),
        geometry=geometry,
        centred=False,
    )
    x = torch.cat([inputs.flatten(1) @ w.flatten(1).T for w in weights], 1)
    halves = torch.arange(len(x)) % 2
    return Problem(x=x, group=PositiveMonomial(x.shape[1]), halves=halves, layer=layer)


def _drawn(problem: Problem, seed: int = 1) -> Tensor:
    """The weights that a frame reads: the inputs are the axes of the input space."""
    return SparseWiring().alternatives(problem).frame(seeded(seed)).post.T


def test_every_neuron_keeps_its_weights_and_reads_other_inputs() -> None:
    weight = _weight(0.3, NEURONS, WIDTH)
    drawn = _drawn(
        _problem([weight[:, :, None]], torch.eye(WIDTH, dtype=torch.float64)[:, :, None])
    )
    assert not torch.equal(drawn, weight)
    torch.testing.assert_close(drawn.sort(1).values, weight.sort(1).values, rtol=0, atol=0)
    # What neurons share, they share still: columns change places as a whole.
    columns = {tuple(column) for column in weight.T.tolist()}
    assert {tuple(column) for column in drawn.T.tolist()} == columns


def test_places_of_a_window_and_branches_of_a_gate_are_rewired_alike() -> None:
    gate, up = (_weight(0.4, NEURONS, WIDTH, 2, seed=s) for s in (1, 2))
    inputs = torch.eye(2 * WIDTH, dtype=torch.float64).reshape(2 * WIDTH, WIDTH, 2)
    drawn = _drawn(_problem([gate, up], inputs)).reshape(2 * NEURONS, WIDTH, 2)
    whole = torch.cat([gate, up])
    slabs = {tuple(slab.flatten().tolist()) for slab in whole.unbind(1)}
    assert {tuple(slab.flatten().tolist()) for slab in drawn.unbind(1)} == slabs


def test_inputs_that_never_vary_are_left_alone() -> None:
    weight = _weight(0.5, NEURONS, WIDTH)
    inputs = torch.eye(WIDTH, dtype=torch.float64)
    inputs[:, :3] = 1.0
    problem = _problem([weight[:, :, None]], inputs[:, :, None])
    for seed in range(5):
        drawn = _drawn(problem, seed)
        constant = weight[:, :3].sum(1)
        torch.testing.assert_close(
            (drawn - constant[:, None])[:, 3:].sort(1).values, weight[:, 3:].sort(1).values
        )


def test_every_input_is_as_likely_as_any_other() -> None:
    weight = torch.zeros(1, WIDTH, 1, dtype=torch.float64)
    weight[0, 4] = 1.0
    problem = _problem([weight], torch.eye(WIDTH, dtype=torch.float64)[:, :, None])
    alternatives, generator = SparseWiring().alternatives(problem), seeded(0)
    count = sum(alternatives.frame(generator).post.flatten() for _ in range(1200))
    expected = 1200 / WIDTH
    # Chi squared with 11 degrees of freedom: beyond 35 once in 4,000.
    assert float((count - expected).square().sum() / expected) < 35


def test_the_observed_frame_and_single_axes_are_those_of_the_whole() -> None:
    problem = _problem([_weight(0.4, NEURONS, WIDTH, 1)], torch.randn(40, WIDTH, 1).double())
    some = torch.tensor([1, 4])
    whole, part = (SparseWiring().alternatives(problem, axes) for axes in (None, some))
    torch.testing.assert_close(whole.frame(None).post, problem.x)
    for first, second in ((None, None), (seeded(3), seeded(3))):
        torch.testing.assert_close(part.frame(second).post, whole.frame(first).post[:, some])


def test_rescaled_inputs_change_nothing_where_their_scale_can_be_told() -> None:
    weight = _weight(0.4, 60, WIDTH, 1)
    inputs = torch.rand(50, WIDTH, 1, generator=seeded(5), dtype=torch.float64)
    scale = torch.exp(torch.randn(WIDTH, 1, generator=seeded(6), dtype=torch.float64))
    one, other = (
        SparseWiring().alternatives(_problem([w], x, Geometry.BALANCED)).frame(seeded(2)).post
        for w, x in ((weight, inputs), (weight / scale, inputs * scale))
    )
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        (torch.ones(8, 8), False),
        (torch.eye(8), False),
        (2.0 * torch.eye(8)[[3, 0, 1, 2, 7, 6, 5, 4]], False),
        (torch.cat([torch.eye(8), torch.zeros(4, 8)]), False),
        (torch.cat([torch.eye(8), torch.eye(8)]), True),
        (torch.eye(8) + torch.eye(8).roll(1, 0), True),
        (torch.tensor([[0.0, 1.0]]).repeat(30, 30), True),
        (torch.cat([torch.zeros(30, 8), torch.ones(8, 8)]), False),
        (torch.zeros(8, 8), False),
        (_weight(0.5, 60, 60).float(), True),
        (_weight(0.6, 60, 60).float(), False),
        (_weight(0.3, 60, 60).bfloat16(), True),
    ],
)
def test_half_of_the_weights_make_a_layer_sparse(weight: Tensor, expected: bool) -> None:
    assert is_sparse([weight[:, :, None]]) is expected
    share, count = zeros([weight[:, :, None]])
    assert 0 <= share <= 1
    assert count <= weight.numel()


def _network(density: float, seed: int, kind: str) -> tuple[nn.Module, Tensor, str]:
    generator = seeded(seed)
    torch.manual_seed(seed)
    if kind == "convolution":
        layers = [nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.GELU(), nn.Flatten()]
        x = torch.randn(40, 8, 6, 6, generator=generator)
    else:
        layers = [nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 3)]
        x = torch.randn(300, 16, generator=generator)
    model = nn.Sequential(*layers)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.3)
                parameter *= torch.rand(parameter.shape, generator=generator) < density
    return model, x, "3"


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("kind", ["dense", "convolution"])
@pytest.mark.parametrize(
    ("density", "because"),
    [(0.2, "exactly zero"), (0.8, "drawn one by one"), (0.98, "point elsewhere")],
)
def test_the_null_is_chosen_by_how_many_weights_are_zero(
    kind: str, density: float, because: str
) -> None:
    model, x, site = _network(density, 0, kind)
    report = bp.probe(model, [x], sites=site, progress=False, effort="quick")
    found = report[site].null
    assert found is not None
    wired = because != "point elsewhere"
    assert found.name == ("sparse-wiring" if wired else "counterfactual")
    assert because in found.because
    dense = bp.nulls.Counterfactual(frames=19, samples=100)
    asked = bp.probe(model, [x], sites=site, progress=False, effort="quick", null=dense)
    assert any('null="sparse-wiring"' in note for note in asked[site].notes) == wired


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("planted", [True, False])
def test_a_layer_that_only_hands_its_inputs_on_is_compared_with_turned_inputs(
    planted: bool,
) -> None:
    generator = seeded(4)
    inputs = torch.randn(4000, 24, generator=generator, dtype=torch.float64)
    if planted:
        inputs = inputs.sign() * inputs.square()
    weight = (torch.eye(24) * torch.linspace(0.5, 2.0, 24))[torch.randperm(24, generator=generator)]
    found = bp.probe_activations(
        (inputs @ weight.double().T).relu(),
        group="positive-monomial",
        inputs=inputs,
        weight=weight,
        nonlinearity="relu",
    )
    assert found.null is not None and found.null.name == "counterfactual"
    assert found.verdict.outcome is (bp.Outcome.PRIVILEGED if planted else bp.Outcome.UNUSED)


@pytest.mark.slow
def test_a_layer_of_few_inputs_is_not_decided() -> None:
    weight = _weight(0.5, 30, 4)
    weight[:, 0], weight[:, 1:3] = 1.0, 0.0
    inputs = torch.randn(400, 4, generator=seeded(1), dtype=torch.float64)
    report = bp.probe_activations(
        (inputs @ weight.T).relu(),
        group="positive-monomial",
        inputs=inputs,
        weight=weight,
        nonlinearity="relu",
    )
    assert report.verdict.outcome is bp.Outcome.UNDECIDED
    assert "4 input features that vary" in report.verdict.sentence


def test_what_the_null_needs_is_asked_for() -> None:
    x = torch.randn(300, 6, generator=seeded(0))
    with pytest.raises(ValueError, match="sparse-wiring null needs inputs and weight"):
        bp.probe_activations(x, null="sparse-wiring")
    problem = Problem(x=x, group=PositiveMonomial(6), halves=torch.arange(300) % 2)
    with pytest.raises(ValueError, match="give inputs= and weight="):
        SparseWiring().alternatives(problem)
    model = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 3))
    report = bp.probe(model, [x], null="sparse-wiring", progress=False, sites="0", effort="quick")
    assert report["0"].verdict.outcome is bp.Outcome.UNDECIDED
    assert "sparse-wiring null was asked for" in report["0"].verdict.sentence


# --- the level, and what is found -----------------------------------------------------------------

LAWS = ("mask", "rows", "pruned", "inputs")


def _untrained(law: str, density: float, dim: int, seed: int) -> Problem:
    """A layer of sparse weights that reads ReLUs of another one, whose input is heavy-tailed."""
    generator = seeded(seed)

    def weight() -> Tensor:
        drawn = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
        place = torch.rand(dim, dim, generator=generator)
        kept = max(1, round(density * dim))
        if law == "mask":
            return (drawn.abs() + 1) * (place < max(density, 1 / dim))
        if law == "pruned":
            return drawn * (drawn.abs() > drawn.abs().flatten().quantile(1 - density))
        return drawn * (place.argsort(int(law == "rows")).argsort(int(law == "rows")) < kept)

    sources = torch.randn(200, dim, generator=generator, dtype=torch.float64) ** 3
    return _problem([weight()[:, :, None]], (sources @ weight().T).relu()[:, :, None])


def _p_values(problem: Problem, frames: int = 19) -> dict[str, float]:
    alternatives, generator = SparseWiring().alternatives(problem), seeded(0)
    found: dict[str, float] = {}
    drawn = [alternatives.frame(None), *(alternatives.frame(generator) for _ in range(frames))]
    for score in bp.scores.DEFAULT.values():
        values = torch.stack([Measured(f, unit_axes=True).of(score).nanmean() for f in drawn])
        found[score.name] = monte_carlo_p(float(values[0]), values[1:], tail=Tail.UPPER)
    return found


def _rates(datasets: int, dim: int) -> dict[str, float]:
    """The share of p-values up to 10 % among untrained layers."""
    found: dict[str, list[bool]] = {}
    for seed in range(datasets):
        problem = _untrained(LAWS[seed % 4], (0.02, 0.05, 0.2, 0.5)[seed // 4 % 4], dim, seed)
        for name, p in _p_values(problem).items():
            found.setdefault(name, []).append(p <= 0.1)
    return {name: sum(values) / len(values) for name, values in found.items()}


@pytest.mark.slow
def test_untrained_sparse_layers_are_seldom_called() -> None:
    for name, rate in _rates(64, 16).items():
        # Above 16 of 64 at a rate of 10 %: once in 10,000.
        assert rate <= 16 / 64, name


@pytest.mark.slow
def test_untrained_sparse_layers_keep_the_level() -> None:
    for name, rate in _rates(960, 40).items():
        assert rate <= 0.1 + 3.7 * math.sqrt(0.09 / 960), name


@pytest.mark.parametrize("density", [0.15, 0.5])
def test_a_source_on_every_neuron_is_found(density: float) -> None:
    def laplace(draw: Draw) -> Tensor:
        uniform = draw.uniform(draw.samples, draw.dim)
        return -uniform.sign() * (1 - 2 * uniform.abs()).log()

    report = sparse.planted(laplace, density)(Draw(24, 1000, 99, 1000, seed=1))
    assert report.verdict.outcome is bp.Outcome.PRIVILEGED


def _each_neuron_with_a_scale_of_its_own(weight: Tensor) -> None:
    weight *= torch.randn(len(weight), 1).exp()


OF_ANOTHER_LAW: dict[str, Any] = {
    "as torch draws them": lambda weight: None,
    "Xavier's uniform law": nn.init.xavier_uniform_,
    "signs": lambda weight: weight.sign_(),
    "of one sign": lambda weight: weight.abs_(),
    "neurons of unequal lengths": _each_neuron_with_a_scale_of_its_own,
    "cut at one standard deviation": lambda weight: nn.init.trunc_normal_(weight, a=-1.0, b=1.0),
    "three in ten zero": lambda weight: nn.init.sparse_(weight, 0.3, std=0.2),
    "three values": lambda weight: weight.copy_(torch.randint(-1, 2, weight.shape)),
}
INITIALISATIONS: dict[str, Any] = OF_ANOTHER_LAW | {
    "a normal law": lambda weight: nn.init.normal_(weight, std=0.2),
    "orthogonal": nn.init.orthogonal_,
}


def _behind_a_norm(width: int, seed: int, initialisation: Any) -> tuple[nn.Module, list[Tensor]]:
    """Neurons that read what a norm made of sparse features, each along an axis of its own."""
    torch.manual_seed(seed)
    x = torch.randn(800, width) ** 3
    model = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 40), nn.ReLU(), nn.Linear(40, 3))
    with torch.no_grad():
        initialisation(model[1].weight)
    return model.eval(), list(x.split(100))


@pytest.mark.sample(default=2)
@pytest.mark.parametrize("width", [12, 40])
@pytest.mark.parametrize("name", INITIALISATIONS)
def test_untrained_neurons_do_not_stand_out_whatever_law_their_weights_have(
    name: str, width: int
) -> None:
    found: list[bp.SiteReport] = []
    for seed in range(4):
        model, data = _behind_a_norm(width, seed, INITIALISATIONS[name])
        found += bp.probe(model, data, sites=["2"], certificates=False, progress=False)
    outcomes = [site.verdict.outcome for site in found]
    assert sum(outcome is bp.Outcome.PRIVILEGED for outcome in outcomes) <= 1, outcomes
    wanted = "sparse-wiring" if name in OF_ANOTHER_LAW else "counterfactual"
    assert all(site.null is not None and site.null.name == wanted for site in found)


@pytest.mark.sample(default=6)
@pytest.mark.parametrize("share", [0.0, 0.001, 0.05, 0.6, 1.0])
@pytest.mark.parametrize("idle", [0, 1, 3])
@pytest.mark.parametrize("places", [1, 3])
def test_zeros_are_those_of_neurons_that_read_something(
    share: float, idle: int, places: int
) -> None:
    generator = seeded(0)
    weights = [torch.randn(6, 40, places, generator=generator) for _ in range(2)]
    nothing, count = 0, 0
    for weight in weights:
        weight[torch.rand(weight.shape, generator=generator) < share] = 0.0
        weight[:idle] = 0.0
        for neuron in weight:
            if bool(neuron.any()):
                nothing += int((neuron == 0).sum())
                count += neuron.numel()
    assert zeros(weights) == (nothing / count if count else 0.0, count)


@pytest.mark.parametrize("width", [8, 60, 2000])
@pytest.mark.parametrize("outputs", [30, 500])
@pytest.mark.parametrize("law", ["even", "with some zeros"])
def test_weights_of_another_law_are_told_in_the_scale_of_inputs_and_neurons(
    law: str, width: int, outputs: int
) -> None:
    generator = seeded(0)
    gain = torch.logspace(-3, 3, width)
    lengths = torch.logspace(0, 2, outputs)[:, None] if width >= 60 else torch.ones(outputs, 1)
    drawn = torch.rand(outputs, width, generator=generator) - 0.5
    if law == "with some zeros":
        drawn = torch.where(drawn > 0.3, 0.0, torch.randn(outputs, width, generator=generator))
    turned = torch.randn(outputs, width, generator=generator)
    for made, wanted in ((drawn, True), (turned, False)):
        assert is_drawn([(lengths * made * gain)[:, :, None]]) == wanted
    # What a neuron reads of all inputs alike is not told from what others would read.
    assert is_drawn([(drawn + 2 * lengths)[:, :, None]])
    # Neurons that share what they read are no draw, though weights are even one by one.
    phases = 7 * torch.rand(outputs, 1, generator=generator) + torch.arange(width) % 5
    assert not is_drawn([(gain * (phases.cos() + 0.1 * drawn))[:, :, None]])


@pytest.mark.parametrize("width", [24, 60, 700])
@pytest.mark.parametrize("several", [1, 3])
def test_even_weights_are_still_as_drawn_until_directions_in_common_hold_most(
    several: int, width: int
) -> None:
    generator = seeded(several)
    drawn = math.sqrt(12) * (torch.rand(100, width, generator=generator) - 0.5)
    left, right = (torch.randn(size, several, generator=generator) for size in (100, width))
    common = left.sign() @ right.T / math.sqrt(several)
    for share, wanted in ((0.3, True), (0.95, False)):
        weight = math.sqrt(1 - share) * drawn + math.sqrt(share) * common
        assert is_drawn([weight[:, :, None]]) == wanted


@pytest.mark.slow
@pytest.mark.parametrize("steps", [60, 120])
def test_briefly_trained_neurons_do_not_stand_out_by_the_law_their_weights_were_drawn_of(
    steps: int,
) -> None:
    found: list[bp.SiteReport] = []
    for seed in range(4):
        torch.manual_seed(seed)
        teacher, width = torch.randn(40, 5), 40
        model = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 100), nn.ReLU(), nn.Linear(100, 5)
        )
        optimizer = torch.optim.Adam(model.parameters())
        for _ in range(steps):
            x = torch.randn(128, width) ** 3
            wanted = (nn.functional.layer_norm(x, (width,)) @ teacher).argmax(1)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), wanted).backward()
            optimizer.step()
        data = list((torch.randn(2000, width) ** 3).split(500))
        found += bp.probe(model.eval(), data, sites=["2"], certificates=False, progress=False)
    outcomes = [site.verdict.outcome for site in found]
    assert sum(outcome is bp.Outcome.PRIVILEGED for outcome in outcomes) <= 1, outcomes


@pytest.mark.parametrize("size", [16, 40, 300])
def test_neurons_that_copy_an_input_of_their_own_are_not_taken_for_drawn_one_by_one(
    size: int,
) -> None:
    noise = 0.05 * torch.randn(size, size, generator=seeded(0)) / math.sqrt(size / 16)
    copies = torch.eye(size)[torch.randperm(size, generator=seeded(1))] + noise
    assert not is_drawn([copies[:, :, None]])


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("inputs", [16, 60])
def test_a_note_says_that_heavy_tails_of_weights_may_have_been_drawn(inputs: int) -> None:
    def cubes(weight: Tensor) -> Tensor:
        return weight.copy_(torch.randn(weight.shape) ** 3)

    for initialisation, heavy in ((cubes, True), (nn.init.normal_, False)):
        model, data = _behind_a_norm(inputs, 1, initialisation)
        (site,) = bp.probe(model, data, sites=["2"], certificates=False, progress=False)
        weight = model.get_parameter("1.weight").detach()
        assert is_heavy([weight[:, :, None]]) == heavy
        assert site.null is not None and site.null.name == "counterfactual"
        assert any("heavy tails" in note for note in site.notes) == heavy


def test_of_weights_that_are_all_zero_no_law_is_told() -> None:
    assert not is_drawn([torch.zeros(8, 8, 1)])


def test_flat_weights_of_which_the_group_takes_the_scale_are_exchanged_in_one_scale() -> None:
    model, data = _behind_a_norm(16, 0, lambda weight: None)
    (site,) = bp.probe(model, data, sites=["2"], certificates=False, progress=False)
    assert site.null is not None and "drawn one by one" in site.null.because
    asked = bp.probe(
        model, data, sites=["2"], null="counterfactual", certificates=False, progress=False
    )
    assert [one.null is not None and one.null.name for one in asked] == ["counterfactual"]
    assert any("drawn one by one" in note for note in asked["2"].notes)
    assert not any("drawn one by one" in note for note in site.notes)


def test_heavy_tails_around_a_direction_in_common_were_not_drawn_one_by_one() -> None:
    generator = seeded(0)
    heavy = torch.randn(60, 40, generator=generator) ** 3
    assert is_heavy([heavy[:, :, None]])
    both = torch.outer(
        torch.randn(60, generator=generator), torch.randn(40, generator=generator)
    ).double()
    common = both * heavy.std() * 3 / both.std() + heavy
    assert not is_heavy([common[:, :, None]])
