"""What stands beside a verdict: other bases, the three orders, untrained twins."""

import math

import numpy as np
import pytest
import torch
from draws import seeded
from torch import Tensor, nn

import basis_probe as bp
from basis_probe.run.twins import settle


def _laplace(samples: int, dim: int, seed: int = 0) -> Tensor:
    uniform = torch.rand(samples, dim, generator=seeded(seed), dtype=torch.float64) - 0.5
    return -uniform.sign() * (1 - 2 * uniform.abs()).log()


FEW = bp.nulls.Rotation(frames=99, samples=1024)
MANY = bp.nulls.Rotation(frames=199, samples=4096)


# --- which basis, then ----------------------------------------------------------------------------


def test_a_hidden_basis_is_found_named_and_returned() -> None:
    secret = torch.linalg.qr(torch.randn(16, 16, generator=seeded(7), dtype=torch.float64)).Q
    x = _laplace(12000, 16) @ secret
    site = bp.probe_activations(x, group="orthogonal", bases=("pca", "ica"), null=FEW)
    assert site.verdict.outcome is bp.Outcome.ARBITRARY
    ranking = site.bases
    assert ranking is not None and ranking.best == "ica"
    assert "Another basis stands out: ica" in site.verdict.sentence
    cosines = (ranking.directions @ secret.T.numpy()).__abs__().max(1)
    assert cosines.mean() > 0.98
    assert ranking.axes.ceiling < 0.3 < 0.9 < ranking["ica"].ceiling
    assert ranking["ica"].effect > 10 > ranking["pca"].effect
    with pytest.raises(KeyError, match="no basis is called 'umap' here; there are standard, pca"):
        ranking["umap"]


def test_a_basis_that_is_the_axes_is_called_so() -> None:
    site = bp.probe_activations(_laplace(8000, 12), group="orthogonal", bases="ica", null=FEW)
    assert site.verdict.outcome is bp.Outcome.EMERGENT
    assert site.bases is not None
    assert site.bases["ica"].cosine > 0.95
    best = site.bases.best
    said = "is that of the axes" if best == "ica" else "none stands out more than the axes"
    assert said in site.verdict.sentence


@pytest.mark.slow
def test_where_nothing_stands_out_it_is_said() -> None:
    x = torch.randn(6000, 8, generator=seeded(), dtype=torch.float64)
    site = bp.probe_activations(x, group="orthogonal", bases=["ica", "varimax"], null=FEW)
    assert site.bases is not None and math.isnan(site.bases.axes.ceiling)
    assert "No other basis stands out either (tried: ica, varimax)." in site.verdict.sentence
    assert site.bases.directions.size == 0


@pytest.mark.slow
def test_directions_that_are_at_hand_are_bases_too() -> None:
    secret = torch.linalg.qr(torch.randn(8, 8, generator=seeded(2), dtype=torch.float64)).Q
    x = _laplace(4000, 8) @ secret
    site = bp.probe_activations(x, group="orthogonal", bases=secret.numpy(), null=FEW)
    assert site.bases is not None and site.bases.best == "given"
    np.testing.assert_allclose(site.bases.directions, secret.numpy(), atol=1e-12)
    with pytest.raises(ValueError, match=r"no basis is called 'sae'; there are standard, pca"):
        bp.probe_activations(x, bases=["sae"])
    wrong = bp.probe_activations(x, group="orthogonal", bases=np.eye(3), null=FEW)
    assert wrong.bases is None
    assert any("given has directions of 3 entries" in note for note in wrong.notes)


def test_bases_are_compared_before_the_nonlinearity_and_in_the_geometry_of_the_group() -> None:
    inputs = _laplace(6000, 10)
    weight = torch.randn(20, 10, generator=seeded(3), dtype=torch.float64)
    pre = inputs @ weight.T
    site = bp.probe_activations(
        pre.relu(), group="positive-monomial", inputs=inputs, weight=weight, nonlinearity="relu",
        bases="ica", null=bp.nulls.Counterfactual(frames=19, samples=500),
    )  # fmt: skip
    assert site.bases is not None
    assert site.bases.reads == "the tensor before the nonlinearity"
    assert site.bases.geometry == "standardised"
    assert site.bases["ica"].directions == 10  # of the span that the inputs leave


def test_reports_with_bases_orders_and_paths_survive_the_file() -> None:
    x = _laplace(900, 6) * torch.tensor([1.0, 1, 1, 1, 1, 9]) + 2
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3)).double()
    report = bp.probe(
        model, [x], sites=["0"], groups="orthogonal", bases=("pca", "varimax"), paths=3,
        null=FEW, certificates=False, progress=False,
    )  # fmt: skip
    site = report["0"]
    assert site.bases is not None and site.path is not None and len(site.orders) == 3
    assert site.path.values.shape == (3, len(site.path.powers))
    assert bp.Report.from_json(report.to_json()) == report
    assert report.provenance.settings["bases"] == "pca, varimax"


# --- three orders ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_orders_are_told_apart() -> None:
    normal = torch.randn(4000, 16, generator=seeded(5), dtype=torch.float64)
    cases = {
        "offset": normal + 6 * torch.eye(16, dtype=torch.float64)[3],
        "scale": normal * torch.logspace(0, 0.7, 16, dtype=torch.float64),
        "form": _laplace(4000, 16),
    }
    for order, x in cases.items():
        site = bp.probe_activations(x, group="orthogonal", null=MANY)
        found = {record.order: record for record in site.orders}
        assert list(found) == ["offset", "scale", "form"]
        assert found[order].p_value < 0.001 and found[order].effect > 4, order
        assert site.verdict.orders == (order,)
        for other in set(found) - {order}:
            assert not found[other].claimed, (order, other)
            assert found[other].sentence


@pytest.mark.slow
def test_orders_are_not_told_where_the_group_changes_them() -> None:
    x = _laplace(900, 6)
    for group in ("permutation", "general-linear"):
        assert bp.probe_activations(x, group=group, null=FEW).orders == ()


# --- untrained twins ------------------------------------------------------------------------------


def _network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(288, 4),
    )


def test_a_twin_is_untrained_and_the_model_is_left_alone() -> None:
    model = _network(0)
    with torch.no_grad():
        model[1].weight.copy_(torch.rand(8))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    twin = bp.reinitialised(model, seed=3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    same = bp.reinitialised(model, seed=3).state_dict()
    assert all(torch.equal(value, same[name]) for name, value in twin.state_dict().items())
    kernel = twin[0].weight.detach()
    assert not torch.isclose(kernel, model[0].weight).any()
    power = float(model[0].weight.detach().square().mean())
    assert float(kernel.square().mean()) == pytest.approx(power, rel=0.35)
    assert twin[1].weight.detach().unique().numel() == 1
    with pytest.raises(ValueError, match=r"weight holds torch.float32 on meta: an untrained twin"):
        bp.reinitialised(nn.Linear(2, 2, device="meta"))


def test_running_averages_are_settled_on_the_data() -> None:
    model = _network(0).eval()
    x = 5 + 3 * torch.randn(40, 3, 8, 8, generator=seeded())
    settle(model, [lambda: model(x)])
    made = model[0](x)
    torch.testing.assert_close(model[1].running_mean, made.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert not model[1].training and model[1].momentum == 0.1


@pytest.mark.slow
def test_neurons_that_were_wired_to_few_inputs_are_no_finding_against_twins_wired_alike() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))
    with torch.no_grad():
        # Three inputs for every neuron, by weights that nobody trained.
        weight = torch.randn(64, 64, generator=seeded())
        read = torch.rand(64, 64, generator=seeded(1)).argsort(1) < 3
        model[0].weight.copy_(weight * read)
        model[0].bias.zero_()
    zero = model[0].weight == 0
    assert torch.equal(bp.reinitialised(model)[0].weight == 0, zero)
    x = [_laplace(1500, 64).float()]
    settings = {"sites": ["1"], "certificates": False, "progress": False}
    turned = bp.probe(model, x, null="counterfactual", **settings)["1"]
    assert turned.verdict.outcome is bp.Outcome.PRIVILEGED
    assert any("95% of the weights" in note for note in turned.notes)
    alike = bp.probe(model, x, null=bp.nulls.RandomWeights(frames=19), **settings)["1"]
    assert abs(alike.scores["non_gaussianity"].effect) < 4
    chosen = bp.probe(model, x, **settings)["1"]
    assert chosen.null is not None and chosen.null.name == "sparse-wiring"
    assert chosen.verdict.outcome is bp.Outcome.UNUSED


def test_shared_tensors_stay_shared() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(5, 4)
            self.unembed = nn.Linear(4, 5, bias=False)
            self.unembed.weight = self.embed.weight

    twin = bp.reinitialised(Tied())
    assert twin.unembed.weight is twin.embed.weight


@pytest.mark.slow
def test_training_is_seen_against_random_weights_and_the_same_for_every_batch_size() -> None:
    model = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 3))
    with torch.no_grad():
        # Every neuron reads one input, and next to nothing of the others: what no untrained
        # network does that is wired densely.
        signs = torch.tensor([1.0, -1.0]).repeat(12)[:, None]
        model[0].weight.copy_(torch.eye(12).repeat(2, 1) * signs + 1e-3)
    x = _laplace(600, 12).float()
    null = bp.nulls.RandomWeights(frames=19, samples=512)
    found = []
    for size in (100, 300):
        report = bp.probe(
            model, list(x.split(size)), sites=["1"], null=null, certificates=False, progress=False
        )
        site = report["1"]
        found.append(site.scores["non_gaussianity"].null_values)
        assert site.null is not None and site.null.name == "random weights"
        assert site.scores["non_gaussianity"].effect > 3
        assert site.scores["non_gaussianity"].p_value == pytest.approx(1 / 20)
        # Another question than that of a basis: no verdict rests on it.
        assert site.verdict.outcome is bp.Outcome.UNDECIDED
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)
    with pytest.raises(bp.DataError, match="can be read only once: give a list or a DataLoader"):
        bp.probe(model, iter([x]), null="random-weights", progress=False)
    with pytest.raises(ValueError, match="the random-weights null needs the model itself"):
        bp.probe_activations(x, null="random-weights")
