"""What rounding costs on the axes: against turned ones, and in words."""

import copy
import math

import pytest
import torch
from draws import seeded
from torch import Tensor, nn

import basis_probe as bp
from basis_probe.algebra.groups import Orthogonal, PositiveMonomial
from basis_probe.algebra.haar import haar
from basis_probe.evidence.measure import choose
from basis_probe.evidence.own import Place
from basis_probe.evidence.quantisation import QUANTISATION
from basis_probe.model.around import Around, around
from basis_probe.statistics.nulls import Geometry, LinearLayer, Problem
from basis_probe.statistics.quantisation import Turning, hadamard_rows, rounding_error

SCORES = ("non_gaussianity", "quantisation")


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


# --- rounding, and turns --------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_rounding_is_to_the_nearest_step(bits: int) -> None:
    x = _normal(20, 9)
    parts = rounding_error(x, bits)
    for row, own in zip(x.tolist(), parts.tolist(), strict=True):
        step = max(map(abs, row)) / (2 ** (bits - 1) - 1)
        energy = sum(value**2 for value in row)
        for value, part in zip(row, own, strict=True):
            nearest = min(abs(value - k * step) for k in range(-(2**bits), 2**bits))
            assert math.isclose(part, nearest**2 / energy, rel_tol=1e-9, abs_tol=1e-15)


def test_rounding_knows_no_scale_sign_or_order_and_more_bits_cost_less() -> None:
    x = _normal(30, 8)
    cost = rounding_error(x, 4)
    torch.testing.assert_close(rounding_error(x * -3.7, 4), cost)
    torch.testing.assert_close(
        rounding_error(x[:, [3, 1, 0, 2, 7, 6, 5, 4]], 4).sum(1), cost.sum(1)
    )
    assert (rounding_error(x, 8).sum(1) < cost.sum(1)).all()
    assert rounding_error(torch.zeros(1, 3), 4).isnan().all()
    with pytest.raises(ValueError, match="at least 2"):
        rounding_error(x, 1)


@pytest.mark.parametrize("line", [False, True])
@pytest.mark.parametrize("dim", [2, 5, 8, 12, 48])
def test_turns_keep_angles_and_the_line(dim: int, line: bool) -> None:
    rows = _normal(6, dim)
    turning = Turning(rows, line=line)
    for turned in (turning.haar(seeded(1)), turning.hadamard(seeded(1))):
        torch.testing.assert_close(turned @ turned.T, rows @ rows.T)
        if line:
            torch.testing.assert_close(turned.sum(1), rows.sum(1))


def test_hadamard_turns_spread_one_axis_over_all() -> None:
    turned = hadamard_rows(torch.eye(64, dtype=torch.float64), seeded(0), rounds=1)
    torch.testing.assert_close(turned.abs(), torch.full((64, 64), 1 / 8, dtype=torch.float64))


# --- the score of a site --------------------------------------------------------------------------


def _found(x: Tensor, group: str = "orthogonal", **more: object):
    return bp.probe_activations(x, group=group, scores=SCORES, **more)  # type: ignore[arg-type]


@pytest.mark.slow
def test_one_large_axis_is_what_rounding_pays_for() -> None:
    x = _normal(600, 32)
    x[:, 5] *= 12
    found = _found(x).scores["quantisation"]
    assert found.effect > 10
    assert found.p_value == 2 / 200
    assert found.observed > 1.5 * found.null_mean
    assert not found.decides
    assert "to 4 bits costs" in found.note
    assert "to 8 bits" in found.note
    # The same data turned: nothing is paid for beyond chance.
    turned = _found(x @ haar(32, seeded(3))).scores["quantisation"]
    assert turned.p_value > 0.01
    assert math.isclose(turned.null_mean, found.null_mean, rel_tol=0.05)


@pytest.mark.sample(default=1)
@pytest.mark.parametrize(
    "group", ["orthogonal", "line-stabiliser", "general-linear", "permutation"]
)
def test_every_kind_of_site_has_it(group: str) -> None:
    x = _normal(400, 12) @ _normal(12, 12, seed=1)
    report = _found(x, group)
    found = report.scores["quantisation"]
    assert 0 < found.observed < 1
    assert found.null == "rotation"
    assert found.per_direction.shape == (12,)
    # Of single axes single precision is held.
    assert math.isclose(float(found.per_direction.sum()), 1.0, rel_tol=1e-7)
    assert bp.Report.from_json(
        bp.probe_activations({"x": x}, group=group, scores=SCORES).to_json()
    )["x"].scores["quantisation"] == _several(x, group)


def _several(x: Tensor, group: str):
    return bp.probe_activations({"x": x}, group=group, scores=SCORES)["x"].scores["quantisation"]


@pytest.mark.slow
def test_axes_that_may_be_rescaled_are_taken_in_units_of_their_size() -> None:
    x = _normal(600, 10).relu()
    scale = torch.logspace(-2, 2, 10, dtype=torch.float64)
    one, other = (_found(rows, "positive-monomial").scores for rows in (x, x * scale))
    assert math.isclose(one["quantisation"].observed, other["quantisation"].observed)
    assert math.isclose(one["quantisation"].p_value, other["quantisation"].p_value)


@pytest.mark.slow
def test_neurons_are_compared_with_neurons() -> None:
    weight, inputs = _normal(16, 12, seed=2), _normal(500, 12)
    report = _found(
        (inputs @ weight.T).relu(),
        "positive-monomial",
        inputs=inputs,
        weight=weight,
        nonlinearity="relu",
    )
    found = report.scores["quantisation"]
    assert found.null == "counterfactual"
    assert abs(found.effect) < 4
    assert "weights around" not in _found(inputs).scores["quantisation"].note


def _untrained(kind: str, seed: int) -> Problem:
    x, halves = (
        _normal(60, 6, seed=seed) ** 3 @ _normal(6, 8, seed=900 + seed),
        torch.arange(60) % 2,
    )
    if kind == "stream":
        return Problem(x=x, group=Orthogonal(8), halves=halves)
    weight = _normal(8, 8, seed=500 + seed)
    layer = LinearLayer(
        inputs=x[:, :, None],
        weights=(weight[:, :, None],),
        biases=(None,),
        pre=lambda outputs: outputs[0],
        post=lambda outputs: outputs[0].relu(),
        geometry=Geometry.EUCLIDEAN,
        centred=False,
    )
    return Problem(x=(x @ weight.T).relu(), group=PositiveMonomial(8), halves=halves, layer=layer)


@pytest.mark.parametrize(
    ("kind", "datasets"),
    [
        ("stream", 20),
        ("neurons", 20),
        pytest.param("stream", 400, marks=pytest.mark.battery),
        pytest.param("neurons", 400, marks=pytest.mark.battery),
    ],
)
def test_untrained_axes_pay_no_more_than_others(kind: str, datasets: int) -> None:
    low = 0
    for seed in range(datasets):
        problem = _untrained(kind, seed)
        found = QUANTISATION.measure(Place(problem, choose(problem), Around(), seed))
        assert not isinstance(found, str)
        low += found.p_value <= 0.1
    # Of 20 more than 8 at a rate of 10 % come once in 2,000.
    assert low <= max(8, datasets * (0.1 + 3.7 * math.sqrt(0.09 / datasets)))


def test_scores_with_nulls_of_their_own_may_be_asked_for_alone() -> None:
    report = bp.probe_activations(_normal(300, 6), group="orthogonal", scores="quantisation")
    assert [*report.scores] == ["quantisation"]
    with pytest.raises(ValueError, match="quantisation"):
        bp.probe_activations(_normal(300, 6), scores=("quantisation", "nothing"))


# --- the weights around a site --------------------------------------------------------------------


def _around(model: nn.Module, x: Tensor, name: str):
    from basis_probe.architecture.derive import Derivation
    from basis_probe.model.batches import batch_of
    from basis_probe.model.facts import facts_of
    from basis_probe.model.network import recognise

    subject = recognise(model.eval())
    facts = Derivation(facts_of(subject, batch_of(x, number=0, tokenizer=None, device="cpu"))).facts
    return around(facts, facts.sites[name], None)


def test_the_weights_around_a_hidden_layer() -> None:
    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3), nn.ReLU(), nn.Linear(3, 2))
    found = _around(model, torch.randn(4, 5, generator=seeded(0)), "0")
    torch.testing.assert_close(found.writing[0], model[0].weight.double())
    torch.testing.assert_close(found.reading[0], model[1].weight.double())
    assert (len(found.writing), len(found.reading), found.centred) == (1, 1, False)
    behind = _around(model, torch.randn(4, 5, generator=seeded(0)), "2")
    torch.testing.assert_close(behind.reading[0], model[3].weight.double())


class _Block(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm, self.up, self.down = norm, nn.Linear(6, 9), nn.Linear(9, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(self.norm(x)).relu())


@pytest.mark.parametrize("centred", [False, True])
def test_the_weights_around_a_stream_hold_the_gain(centred: bool) -> None:
    norm = nn.LayerNorm(6) if centred else nn.RMSNorm(6)
    nn.init.normal_(norm.weight)
    model = nn.Sequential(nn.Linear(4, 6), _Block(norm), _Block(copy.deepcopy(norm)))
    x = torch.randn(4, 4, generator=seeded(0))
    found = _around(model, x, "1")
    torch.testing.assert_close(found.writing[-1], model[1].down.weight.double())
    gained = model[2].up.weight.double() * norm.weight.double()
    torch.testing.assert_close(found.reading[0], gained)
    assert found.centred is centred


def test_a_window_reads_channels() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 2))
    x = torch.randn(2, 2, 8, 8, generator=seeded(0))
    (weight,) = _around(model, x, "1").reading
    assert weight.shape == (20, 4)
    torch.testing.assert_close(
        weight.norm(dim=0), model[2].weight.double().square().sum((0, 2, 3)).sqrt()
    )
