"""What may not change a finding does not: batches, order, precision, the site's own group."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from draws import seeded
from torch import Tensor, nn

import basis_probe as bp

ROTATED = bp.nulls.Rotation(frames=39, samples=256)
LAYER = bp.nulls.Counterfactual(frames=19, samples=256)


def _draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def _sparse(*shape: int, seed: int = 0) -> Tensor:
    return _draw(*shape, seed=seed) ** 3 / 4


def _probe(model: nn.Module, data: Any, **settings: Any) -> bp.Report:
    return bp.probe(model, data, **{"progress": False, "null": LAYER, **settings})


NUMBERS = (
    "observed", "null_mean", "null_std", "effect", "effect_without_top_axes", "all_samples",
    "difference",
)  # fmt: skip
COUNTED = ("p_value", "p_tail", "fraction_privileged")


def _same(
    one: bp.SiteReport,
    other: bp.SiteReport,
    *,
    within: float,
    order: Sequence[int] | None = None,
    scores: Sequence[str] | None = None,
) -> None:
    """Every number agrees; axis i of the one is axis order[i] of the other."""
    assert (one.dim, one.n_samples, one.n_dead) == (other.dim, other.n_samples, other.n_dead)
    assert one.symmetry.group == other.symmetry.group
    assert one.scores.keys() == other.scores.keys()
    order = range(one.dim) if order is None else order
    for name in scores or one.scores:
        here, there = one.scores[name], other.scores[name]
        for field in NUMBERS:
            assert getattr(here, field) == pytest.approx(
                getattr(there, field), rel=within, abs=within, nan_ok=True
            ), (one.site, name, field)
        np.testing.assert_allclose(
            here.per_direction, there.per_direction[list(order)], rtol=within, atol=within
        )
        # Rounding inside the model may carry a count over an edge: one alternative, one axis.
        exact = within < 1e-6
        step = 0.0 if exact else max(2 / len(here.null_values), 1.01 / one.dim)
        for field in COUNTED:
            assert getattr(here, field) == pytest.approx(
                getattr(there, field), rel=within, abs=step, nan_ok=True
            ), (one.site, name, field)
        np.testing.assert_allclose(
            here.per_direction_p, there.per_direction_p[list(order)], rtol=within, atol=step
        )
    assert one.verdict.outcome is other.verdict.outcome


# --- models ---------------------------------------------------------------------------------------


class Vision(nn.Module):
    """Convolutions with a residual sum, functional nonlinearities and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.out = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.first(x)))
        x = F.relu(x + self.second(x))
        return self.out(x.mean((2, 3)))


class Stream(nn.Module):
    """A pre-norm residual stream with gains, and an MLP with the given nonlinearity."""

    def __init__(self, bend: Any = F.gelu, dim: int = 8, width: int = 12) -> None:
        super().__init__()
        self.bend = bend
        self.embed = nn.Embedding(40, dim)
        self.norms = nn.ModuleList(nn.RMSNorm(dim, eps=0.0) for _ in range(2))
        self.inner, self.outer = nn.Linear(dim, width), nn.Linear(width, dim)
        self.head = nn.Linear(dim, 5)
        for norm in self.norms:
            nn.init.uniform_(norm.weight, 0.5, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        x = x + self.outer(self.bend(self.inner(self.norms[0](x))))
        return self.head(self.norms[1](x))


def _made(kind: type[nn.Module], *arguments: Any, dtype: torch.dtype = torch.float32) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind(*arguments).to(dtype).eval()


def _tokens(count: int, length: int = 6, seed: int = 0) -> Tensor:
    return torch.randint(1, 40, (count, length), generator=seeded(seed))


# --- batches and order ----------------------------------------------------------------------------

CASES: dict[str, tuple[nn.Module, Tensor, list[str]]] = {
    "vision": (_made(Vision), _sparse(65, 3, 4, 4).float(), ["relu()", "relu():2"]),
    "stream": (_made(Stream), _tokens(65), ["gelu()", "head:in"]),
}


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("case", CASES)
def test_batches_may_have_any_size_and_any_order(case: str) -> None:
    model, x, sites = CASES[case]
    whole = _probe(model, x, sites=sites)
    shuffled = x[torch.randperm(len(x), generator=seeded(1))]
    for size, data in ((1, shuffled), (7, x), (64, shuffled.flip(0))):
        report = _probe(model, data.split(size), sites=sites)
        for name in sites:
            # Sums in float32 inside the model depend a little on the size of the batch.
            _same(report[name], whole[name], within=2e-4)


@pytest.mark.slow
def test_what_comes_first_makes_no_difference_to_the_architecture() -> None:
    # The model is watched on the first examples, so these must not decide.
    model, x, sites = CASES["vision"]
    x = torch.cat([torch.zeros_like(x[:3]), x])
    one = _probe(model, x.split(8), sites=sites)
    other = _probe(model, x.flip(0).split(8), sites=sites)
    for name in sites:
        assert one[name].symmetry == other[name].symmetry
        assert one[name].kind == other[name].kind
        _same(one[name], other[name], within=2e-4)


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("case", CASES)
def test_two_runs_with_one_seed_are_equal_and_another_seed_differs(case: str) -> None:
    model, x, sites = CASES[case]
    runs = [_probe(model, x.split(32), sites=sites, seed=seed) for seed in (3, 3, 4)]
    assert runs[0] == runs[1]
    assert runs[0].to_json() == runs[1].to_json()
    assert runs[0] != runs[2]
    for name in sites:
        for score, found in runs[0][name].scores.items():
            other = runs[2][name].scores[score]
            assert not np.array_equal(found.null_values, other.null_values)
            # What was streamed does not depend on the seed.
            assert found.all_samples == other.all_samples or np.isnan(found.all_samples)


@pytest.mark.slow
def test_a_seed_does_not_depend_on_what_else_is_probed() -> None:
    model, x, sites = CASES["vision"]
    together = _probe(model, x.split(32), sites=sites)
    alone = _probe(model, x.split(32), sites=sites[1])
    _same(alone[sites[1]], together[sites[1]], within=0.0)


def test_the_global_random_state_decides_nothing() -> None:
    model, x, sites = CASES["stream"]
    one = _probe(model, x, sites=sites)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        assert _probe(model, x, sites=sites) == one


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("case", CASES)
def test_single_and_double_precision_agree(case: str) -> None:
    model, x, sites = CASES[case]
    double = copy.deepcopy(model).double()
    other = x if case == "stream" else x.double()
    one, two = _probe(model, x, sites=sites), _probe(double, other, sites=sites)
    assert (one.provenance.dtype, two.provenance.dtype) == ("float32", "float64")
    for name in sites:
        _same(one[name], two[name], within=1e-3)


def test_the_order_of_a_matrix_is_the_order_of_its_samples_only() -> None:
    x = _sparse(500, 8)
    one = bp.probe_activations(
        x, group="orthogonal", null=bp.nulls.Rotation(frames=39, samples=4096)
    )
    other = bp.probe_activations(
        x.flip(0), group="orthogonal", null=bp.nulls.Rotation(frames=39, samples=4096)
    )
    # All rows are kept, and Euclidean turns do not care in which order.
    _same(one, other, within=1e-9)


# --- the site's own group -------------------------------------------------------------------------

DIM = 8

# The observed axes are permuted, negated or rescaled: nothing of the finding may move at all.
EXACT = ["permutation", "signed-permutation", "positive-monomial", "monomial", "trivial"]


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("name", EXACT)
def test_a_group_that_keeps_axes_moves_no_number(name: str) -> None:
    x = _sparse(600, DIM) * torch.logspace(-1, 1, DIM, dtype=torch.float64)
    element = bp.probe_activations(x[:8], group=name).symmetry.group.sample(seeded(3))
    kept = bp.nulls.Rotation(frames=39, samples=4096)
    before = bp.probe_activations(x, group=name, null=kept)
    after = bp.probe_activations(x @ element.T, group=name, null=kept)
    order = element.abs().argmax(1).tolist()
    for score in ("non_gaussianity", "kurtosis"):
        here, there = after.scores[score], before.scores[score]
        assert here.observed == pytest.approx(there.observed, rel=1e-9)
        np.testing.assert_allclose(here.per_direction, there.per_direction[order], rtol=1e-9)
    assert after.verdict.outcome is before.verdict.outcome
    # The alternatives are the same set, drawn in other coordinates.
    assert here.null_mean == pytest.approx(there.null_mean, rel=0.1)


ACTING: dict[str, bp.groups.Group] = {
    "orthogonal": bp.groups.Orthogonal(DIM),
    "line-stabiliser": bp.groups.LineStabiliser(DIM),
    "general-linear": bp.groups.GeneralLinear(DIM),
    "positive-monomial": bp.groups.PositiveMonomial(DIM),
    "monomial": bp.groups.Monomial(DIM),
    "heads": bp.groups.Blocks(bp.groups.GeneralLinear(4), count=2),
    "planes": bp.groups.Planes(DIM),
}


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("name", ACTING)
def test_the_null_does_not_move_when_the_group_acts(name: str) -> None:
    group = ACTING[name]
    x = _sparse(600, DIM)
    null = bp.nulls.Rotation(frames=199, samples=4096)
    before = bp.probe_activations(x, group=group, null=null)
    element = group.sample(seeded(2))
    after = bp.probe_activations(x @ element.T, group=group, null=null)
    for score in before.scores:
        if score == "sample_kurtosis" and group.rescales:
            continue
        here, there = after.scores[score].null_values, before.scores[score].null_values
        error = np.sqrt((here.var() + there.var()) / 199)
        assert abs(here.mean() - there.mean()) < 4 * error, score
        assert here.std() == pytest.approx(there.std(), rel=0.35), score


@pytest.mark.sample(default=2)
@pytest.mark.parametrize("name", ["orthogonal", "general-linear", "line-stabiliser"])
def test_data_without_special_axes_stay_so_when_the_group_acts(name: str) -> None:
    x = _draw(600, DIM)
    group = ACTING[name]
    for seed in range(2):
        element = group.sample(seeded(seed))
        site = bp.probe_activations(x @ element.T, group=group, null=ROTATED, seed=seed)
        assert site.scores["non_gaussianity"].p_value > 0.001
        assert site.symmetry.group.contains(element)


# --- the same function with other weights ---------------------------------------------------------


def _neurons(model: nn.Sequential, element: Tensor) -> nn.Sequential:
    """The same function, its neurons permuted and rescaled."""
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed[0].weight.copy_(element @ model[0].weight)
        changed[0].bias.copy_(element @ model[0].bias)
        changed[2].weight.copy_(model[2].weight @ torch.linalg.inv(element))
    return changed


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("seed", range(3))
def test_neurons_may_be_permuted_and_rescaled(seed: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3)).double().eval()
    element = bp.groups.PositiveMonomial(10).sample(seeded(seed))
    changed, x = _neurons(model, element), _sparse(500, 6)
    torch.testing.assert_close(changed(x), model(x), rtol=1e-9, atol=1e-9)
    order = element.argmax(1).tolist()
    before, after = (_probe(m, [x], sites=["0", "1"]) for m in (model, changed))
    for name in ("0", "1"):
        _same(
            after[name],
            before[name],
            within=1e-7,
            order=order,
            scores=["non_gaussianity", "kurtosis"],
        )
        for score in ("non_gaussianity", "kurtosis"):
            np.testing.assert_allclose(
                after[name].scores[score].null_values,
                before[name].scores[score].null_values,
                rtol=1e-7,
            )
    # Rescaled, it is other numbers across axes, unless these are put into units of their own.
    across = [report["1"].scores["sample_kurtosis"].observed for report in (before, after)]
    assert across[0] == pytest.approx(across[1], rel=1e-7)


def test_an_element_outside_the_group_does_move_the_finding() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3)).double().eval()
    u, _, v = torch.linalg.svd(_draw(10, 10, seed=5))
    changed, x = _neurons(model, u @ v), _sparse(500, 6)
    assert (changed(x) - model(x)).abs().max() > 0.01
    before, after = (_probe(m, [x], sites="1")["1"].scores["kurtosis"] for m in (model, changed))
    assert before.observed != pytest.approx(after.observed, rel=1e-3)


def _rotated(model: Stream, turn: Tensor) -> Stream:
    """The same function, its residual stream turned; gains are folded into what reads them."""
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for norm, reader in zip(changed.norms, (changed.inner, changed.head), strict=True):
            reader.weight.copy_(reader.weight * norm.weight @ turn.T)
            norm.weight.fill_(1.0)
        changed.embed.weight.copy_(model.embed.weight @ turn.T)
        changed.outer.weight.copy_(turn @ model.outer.weight)
        changed.outer.bias.copy_(turn @ model.outer.bias)
    return changed


@pytest.mark.slow
def test_a_residual_stream_may_be_turned() -> None:
    model = _made(Stream, dtype=torch.float64)
    assert isinstance(model, Stream)
    turn, tokens = bp.groups.Orthogonal(8).sample(seeded(1)), _tokens(80)
    changed = _rotated(model, turn)
    torch.testing.assert_close(changed(tokens), model(tokens), rtol=1e-9, atol=1e-9)
    before, after = (_probe(m, [tokens], sites=["gelu()"])["gelu()"] for m in (model, changed))
    # The neurons are where they were; only the draws of the alternatives are others.
    for score in ("non_gaussianity", "kurtosis"):
        here, there = after.scores[score], before.scores[score]
        assert here.observed == pytest.approx(there.observed, rel=1e-7)
        np.testing.assert_allclose(here.per_direction, there.per_direction, rtol=1e-7)
        error = np.hypot(here.null_std, there.null_std) / np.sqrt(19)
        assert abs(here.null_mean - there.null_mean) < 4 * error
    before, after = (
        _probe(m, [tokens], sites="norms.1:in", null=bp.nulls.Rotation(frames=199, samples=512))
        for m in (model, changed)
    )
    site, turned = before["norms.1:in"], after["norms.1:in"]
    assert site.symmetry.group == turned.symmetry.group == bp.groups.Orthogonal(8)
    for score in ("non_gaussianity", "kurtosis", "sample_kurtosis"):
        here, there = turned.scores[score], site.scores[score]
        assert here.observed != pytest.approx(there.observed, rel=1e-4)
        error = np.hypot(here.null_std, there.null_std) / np.sqrt(199)
        assert abs(here.null_mean - there.null_mean) < 4 * error
        if here.closed_form is not None and here.closed_form.exact:
            assert there.closed_form is not None
            # What needs no draws does not move at all.
            assert here.closed_form.mean == pytest.approx(there.closed_form.mean, rel=1e-9)


@pytest.mark.slow
def test_positive_scales_between_relu_layers_leave_the_second_layer_alone() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 3)
        ).double().eval()  # fmt: skip
    element, x = bp.groups.PositiveMonomial(10).sample(seeded(4)), _sparse(500, 6)
    changed = _neurons(model, element)  # type: ignore[arg-type]
    torch.testing.assert_close(changed(x), model(x), rtol=1e-9, atol=1e-9)
    before, after = (_probe(m, [x], sites="3")["3"] for m in (model, changed))
    for score in ("non_gaussianity", "kurtosis"):
        here, there = after.scores[score], before.scores[score]
        assert here.observed == pytest.approx(there.observed, rel=1e-7)
        error = np.hypot(here.null_std, there.null_std) / np.sqrt(19)
        assert abs(here.null_mean - there.null_mean) < 4 * error
    # Rescaled without being permuted, every alternative is the very same.
    scale = torch.diag(torch.logspace(-1, 1, 10, dtype=torch.float64))
    again = _probe(_neurons(model, scale), [x], sites="3")["3"]  # type: ignore[arg-type]
    for score in ("non_gaussianity", "kurtosis"):
        np.testing.assert_allclose(
            again.scores[score].null_values, before.scores[score].null_values, rtol=1e-5
        )
