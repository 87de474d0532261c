"""Measures of other tools: their formulas, the groups under which they stay, what chance gives."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from draws import seeded
from networks import mlp, rows
from scipy.spatial.distance import pdist, squareform
from scipy.stats import pearsonr, spearmanr
from torch import Tensor

import basis_probe as bp
from basis_probe.compare.samples import dissimilarities, neighbours
from basis_probe.compare.saved import folds_of
from basis_probe.statistics.second_moments import Crossed

DIMS = (6, 9)
SLOW = pytest.mark.slow


def pair(seed: int, samples: int = 120, dims: tuple[int, int] = DIMS) -> tuple[Tensor, Tensor]:
    """Two sets of axes that share some of what they say, off zero and of unequal scale."""
    generator = seeded(seed)
    shared = torch.randn(samples, 4, generator=generator, dtype=torch.float64)
    made: list[Tensor] = []
    for dim in dims:
        mixed = shared @ torch.randn(4, dim, generator=generator, dtype=torch.float64)
        noise = torch.randn(samples, dim, generator=generator, dtype=torch.float64)
        made.append((mixed + 0.6 * noise) * torch.linspace(0.5, 2, dim).double() + 1)
    return made[0], made[1]


def centred(x: Tensor) -> Tensor:
    return x - x.mean(0)


def correlations(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Canonical correlations, and x's canonical variables, by orthogonal bases of the columns."""
    u, v = (torch.linalg.qr(centred(side)).Q for side in (x, y))
    left, rho, _ = torch.linalg.svd(u.T @ v)
    return rho, u @ left[:, : len(rho)]


@pytest.mark.parametrize("seed", range(3))
def test_svcca_is_the_mean_canonical_correlation_of_leading_components(seed: int) -> None:
    x, y = pair(seed)
    kept: list[Tensor] = []
    for side in (x, y):
        u, s, _ = torch.linalg.svd(centred(side), full_matrices=False)
        shares = (s**2).cumsum(0) / (s**2).sum()
        count = next(k for k in range(1, len(s) + 1) if float(shares[k - 1]) >= 0.99)
        kept.append(u[:, :count] * s[:count])
    wanted = float(correlations(kept[0], kept[1])[0].mean())
    found = bp.similarity(x, y, measure="svcca", folds=1)
    assert found.similarity == pytest.approx(wanted, abs=1e-9)
    turned = torch.linalg.qr(torch.randn(6, 6, generator=seeded(9), dtype=torch.float64)).Q
    again = bp.similarity(5 * x @ turned - 3, y, measure="svcca", folds=1)
    assert again.similarity == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_pwcca_weighs_by_what_the_axes_of_the_first_carry(seed: int) -> None:
    x, y = pair(seed)
    rho, variables = correlations(x, y)
    weights = (variables.T @ centred(x)).abs().sum(1)
    found = bp.similarity(x, y, measure="pwcca", folds=1)
    assert found.similarity == pytest.approx(float((weights * rho).sum() / weights.sum()), abs=1e-9)
    # Places and signs of the first's axes, and any linear map of the second.
    moved = x[:, [3, 1, 0, 5, 2, 4]] * torch.tensor([1.0, -1, 1, 1, -1, -1]).double()
    mixed = y @ torch.randn(9, 9, generator=seeded(7), dtype=torch.float64)
    again = bp.similarity(moved, mixed, measure="pwcca", folds=1)
    assert again.similarity == pytest.approx(found.similarity, abs=1e-8)


@pytest.mark.parametrize("kind", ["euclidean", "cosine", "correlation"])
@pytest.mark.parametrize("correlation", ["pearson", "spearman"])
def test_rsa_correlates_all_pairs_of_samples(kind: Any, correlation: Any) -> None:
    x, y = pair(3)
    function = pearsonr if correlation == "pearson" else spearmanr
    wanted = function(pdist(x.numpy(), kind), pdist(y.numpy(), kind))[0]
    found = bp.similarity(
        x, y, group="permutation", measure="rsa", dissimilarity=kind, correlation=correlation
    )
    assert found.similarity == pytest.approx(float(wanted), abs=1e-9)
    assert 0 < found.std_error < 0.2


@pytest.mark.parametrize("kind", ["euclidean", "cosine"])
@pytest.mark.parametrize("count", [1, 7])
def test_neighbours_are_counted_one_by_one(kind: Any, count: int) -> None:
    x, y = pair(4)
    near: list[list[set[int]]] = []
    for side in (x, y):
        distances = squareform(pdist(side.numpy(), kind))
        np.fill_diagonal(distances, np.inf)
        near.append([set(row) for row in np.argsort(distances, axis=1)[:, :count].tolist()])
    shares = [len(a & b) / count for a, b in zip(*near, strict=True)]
    unions = [len(a & b) / len(a | b) for a, b in zip(*near, strict=True)]
    for measure, each in (("knn", shares), ("jaccard", unions)):
        found = bp.similarity(x, y, measure=measure, dissimilarity=kind, neighbours=count)  # pyright: ignore
        assert found.similarity == pytest.approx(np.mean(each), abs=1e-12)
        error = np.std(each, ddof=1) / math.sqrt(len(each))
        assert found.std_error == pytest.approx(error, rel=1e-6)


def _line(samples: int, dim: int) -> Tensor:
    return torch.arange(float(samples))[:, None] * torch.arange(1.0, dim + 1)


def _circle(samples: int, dim: int) -> Tensor:
    turn = torch.arange(samples, dtype=torch.float64) * (2 * torch.pi / samples)
    return torch.stack([turn.cos(), turn.sin(), *turn.new_zeros(dim - 2, samples)], 1)


def _gaussian(samples: int, dim: int) -> Tensor:
    return torch.randn(samples, dim, generator=seeded(0), dtype=torch.float64)


NEAR: dict[str, Callable[[int, int], Tensor]] = {
    "Gaussian": _gaussian,
    "small integers": lambda n, d: torch.randint(0, 3, (n, d), generator=seeded(0)).double(),
    "one sided": lambda n, d: _gaussian(n, d).relu(),
    "each several times": lambda n, d: _gaussian(n // 4, d).repeat(4, 1),
    "each twice, nearly": lambda n, d: (
        _gaussian(n // 2, d).repeat(2, 1) + 1e-9 * _gaussian(n // 2 * 2, d)
    ),
    "far from zero": lambda n, d: _gaussian(n, d) + 1e7,
    "some far from all": lambda n, d: (
        _gaussian(n, d) * (1 + 1e6 * (torch.arange(n) % 99 == 0))[:, None]
    ),
    "on a line": _line,
    "on a circle": _circle,
    "large": lambda n, d: 1e120 * _gaussian(n, d),
    "small": lambda n, d: 1e-120 * _gaussian(n, d),
    "some without length": lambda n, d: _gaussian(n, d) * (torch.arange(n) % 50 > 0)[:, None],
    "all in two places": lambda n, d: (torch.arange(n) % 2)[:, None] * torch.ones(d).double(),
}


@pytest.mark.sample(default=16)
@pytest.mark.parametrize("precision", ["highest", "medium"])
@pytest.mark.parametrize("kind", ["euclidean", "cosine", "correlation"])
@pytest.mark.parametrize("data", NEAR.values(), ids=NEAR)
def test_the_nearest_are_those_of_the_whole_table(data: Any, kind: Any, precision: str) -> None:
    x = data(400, 5).double()
    table = dissimilarities(x, kind).fill_diagonal_(torch.inf)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        for count in (1, 10, 399):
            last = table.sort(1).values[:, count - 1 : count]
            tied = table == last
            left = count - (table < last).sum(1, keepdim=True)
            found = neighbours(x, kind, count)
            if found is None:
                assert len(table.unique()) == 2
                continue
            share = left.double() / tied.sum(1, keepdim=True)
            assert torch.equal(found, (table < last) + tied * share)
    finally:
        torch.set_float32_matmul_precision(before)


def test_products_that_find_the_nearest_keep_the_digits_of_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[str] = []
    plain = torch.addmm

    def looked(*given: Any, **named: Any) -> Tensor:
        seen.append(torch.backends.mkldnn.matmul.fp32_precision)  # pyright: ignore
        return plain(*given, **named)

    monkeypatch.setattr(torch, "addmm", looked)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        neighbours(_gaussian(300, 8), "euclidean", 5)
        assert seen == ["ieee"]
    finally:
        torch.set_float32_matmul_precision(before)


def test_few_pairs_are_looked_at_closely(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Tensor:
        raise AssertionError("all pairs were compared")

    monkeypatch.setattr("basis_probe.compare.samples.dissimilarities", refuse)
    for name in ("Gaussian", "one sided", "each several times", "far from zero", "on a line"):
        assert neighbours(NEAR[name](400, 8).double(), "euclidean", 5) is not None


def test_samples_that_are_equally_far_share_the_last_places() -> None:
    x, y = pair(4, 60)
    # Three of four samples are the same in both networks: which of them is nearest is arbitrary.
    both = torch.arange(60) % 4 != 0
    x[both], y[both] = 0.0, 0.0
    found = bp.similarity(x, y, measure="knn", neighbours=5)
    orders = [torch.randperm(60, generator=seeded(seed)) for seed in range(5)]
    moved = [bp.similarity(x[o], y[o], measure="knn", neighbours=5).similarity for o in orders]
    assert moved == pytest.approx([found.similarity] * 5, abs=1e-12)
    with pytest.raises(bp.DataError, match="all pairs of samples are equally unlike"):
        bp.similarity(x[both], y[both], measure="knn")


@pytest.mark.parametrize("measure", ["rsa", "knn", "jaccard", "cka", "svcca"])
def test_maps_of_different_size_are_averaged_first(measure: Any) -> None:
    x, y = pair(2, 240)
    large = x.reshape(60, 2, 2, 6).movedim(3, 1).repeat_interleave(2, 2).repeat_interleave(2, 3)
    small = y.reshape(60, 2, 2, 9).movedim(3, 1)
    how = {"kernel": "rbf"} if measure == "cka" else {}
    found = bp.similarity(large, small, measure=measure, folds=1, **how)  # pyright: ignore
    wanted = bp.similarity(x, y, measure=measure, folds=1, **how)  # pyright: ignore
    assert found.similarity == pytest.approx(wanted.similarity, abs=1e-9)
    assert found.n_samples == 240 and found.n_examples == 60


@pytest.mark.parametrize("measure", ["rsa", "knn", "jaccard"])
def test_samples_that_repeat_are_said_to(measure: Any) -> None:
    x, y = pair(12, 60)
    again = torch.arange(180) // 3
    found = bp.similarity(x[again], y[again], measure=measure)
    assert any(note.startswith("60 of 180 samples are different") for note in found.notes)
    assert bp.similarity(x, y, measure=measure).notes == ()


def test_examples_one_by_one_cannot_be_shuffled() -> None:
    a, b = mlp(0), mlp(1)
    given = {"site": "1", "group": "orthogonal"}
    with pytest.raises(bp.DataError, match="a batch holds 1 examples, which are too few to put in"):
        bp.similarity(a, b, rows().split(1), shuffles=3, **given)  # pyright: ignore


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("width", [0.2, 0.4, 1.5])
def test_gaussian_cka_is_that_of_the_definition(unbiased: bool, width: float) -> None:
    x, y = pair(5, 40)
    kernels: list[np.ndarray] = []
    for side in (x, y):
        distances = pdist(side.numpy())
        middle = float(torch.as_tensor(distances).median())
        kernels.append(squareform(np.exp(-(distances**2) / (2 * (width * middle) ** 2))))
    k, el = kernels
    if unbiased:

        def criterion(a: np.ndarray, b: np.ndarray) -> float:
            n, ones = len(a), np.ones(len(a))
            total = ones @ a @ ones * (ones @ b @ ones) / (n - 1) / (n - 2)
            return float(np.trace(a @ b) + total - 2 / (n - 2) * ones @ a @ b @ ones)
    else:
        k, el = k + np.eye(len(k)), el + np.eye(len(el))

        def criterion(a: np.ndarray, b: np.ndarray) -> float:
            h = np.eye(len(a)) - 1 / len(a)
            return float(np.trace(a @ h @ b @ h))

    wanted = criterion(k, el) / math.sqrt(criterion(k, k) * criterion(el, el))
    found = bp.similarity(
        x, y, measure="cka", kernel="rbf", width=width,
        estimator="unbiased" if unbiased else "biased",
    )  # fmt: skip
    assert found.similarity == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_whitening_goes_from_procrustes_to_canonical_correlations(share: float) -> None:
    x, y = pair(6)
    made: list[Tensor] = []
    for side in (x, y):
        rows_ = centred(side) / centred(side).norm() * math.sqrt(len(side) * side.shape[1])
        values, vectors = torch.linalg.eigh(rows_.T @ rows_ / len(rows_))
        made.append(rows_ @ vectors @ torch.diag(1 - share + share * values.rsqrt()) @ vectors.T)
    a, b = made
    wanted = float(torch.linalg.matrix_norm(a.T @ b, ord="nuc") / a.norm() / b.norm())
    found = bp.similarity(x, y, whitening=share, folds=1)
    assert found.similarity == pytest.approx(wanted, abs=1e-9)
    # Neither the scale of the whole nor the number of samples moves it.
    twice = bp.similarity(torch.cat([x, x]) * 100, torch.cat([y, y]) / 7, whitening=share, folds=1)
    assert twice.similarity == pytest.approx(wanted, abs=1e-9)
    ends = bp.similarity(x, y, folds=1), bp.similarity(x, y, measure="cca", folds=1)
    near = [bp.similarity(x, y, whitening=w, folds=1).similarity for w in (1e-9, 1 - 1e-9)]
    assert near[0] == pytest.approx(ends[0].similarity, abs=1e-6)
    assert near[1] == pytest.approx(ends[1].similarity * math.sqrt(6 / 9), abs=1e-6)


KEPT: list[tuple[dict[str, Any], Any]] = [
    ({"measure": "svcca"}, bp.groups.Orthogonal),
    ({"measure": "svcca"}, bp.groups.SignedPermutation),
    ({"measure": "pwcca"}, bp.groups.SignedPermutation),
    ({"measure": "partial"}, bp.groups.PositiveMonomial),
    ({"measure": "partial", "share": 0.3}, bp.groups.Monomial),
    ({"measure": "partial", "share": 1.0}, bp.groups.SignedPermutation),
    ({"measure": "rsa"}, bp.groups.Orthogonal),
    ({"measure": "rsa"}, bp.groups.Monomial),
    ({"measure": "rsa", "dissimilarity": "cosine"}, bp.groups.SignedPermutation),
    ({"measure": "rsa", "dissimilarity": "correlation"}, bp.groups.Permutation),
    ({"measure": "rsa", "dissimilarity": "correlation"}, bp.groups.LineStabiliser),
    ({"measure": "rsa"}, bp.groups.LineStabiliser),
    ({"measure": "knn"}, bp.groups.Orthogonal),
    ({"measure": "knn"}, bp.groups.PositiveMonomial),
    ({"measure": "jaccard", "dissimilarity": "cosine"}, bp.groups.Orthogonal),
    ({"measure": "cka", "kernel": "rbf"}, bp.groups.Orthogonal),
    ({"measure": "cka", "kernel": "rbf"}, bp.groups.Monomial),
    ({"whitening": 0.4}, bp.groups.Orthogonal),
]


@pytest.mark.parametrize(("how", "group"), KEPT, ids=lambda value: getattr(value, "__name__", None))
@pytest.mark.parametrize("folds", [1, 4])
def test_a_measure_is_the_same_in_every_basis_of_its_group(
    how: dict[str, Any], group: Any, folds: int
) -> None:
    x, y = pair(7, dims=(6, 6))
    elements = [group(6).draw(seeded(seed)) for seed in (1, 2)]
    moved = [element.act(side) for element, side in zip(elements, (x, y), strict=True)]
    wanted = bp.similarity(x, y, group=group(6), folds=folds, **how)
    found = bp.similarity(moved[0], moved[1], group=group(6), folds=folds, **how)
    assert found.similarity == pytest.approx(wanted.similarity, abs=1e-7)
    if how.get("measure") != "pwcca":
        exact = bp.similarity(x, elements[0].act(x), group=group(6), folds=folds, **how)
        assert exact.similarity == pytest.approx(1, abs=1e-7) and exact.distance < 1e-3


@pytest.mark.sample(default=2)
@pytest.mark.parametrize("signs", [False, True])
@pytest.mark.parametrize("dims", [(7, 7), (6, 9)])
def test_partial_matching_finds_the_axes_that_two_networks_share(
    dims: tuple[int, int], signs: bool
) -> None:
    generator = seeded(4)
    x, y = (torch.randn(4000, dim, generator=generator, dtype=torch.float64) for dim in dims)
    # Three axes of x are axes of y, one of them reversed, at other scales, with a little noise.
    for own, other, factor in ((0, 4, 3.0), (2, 1, 0.1), (5, 3, -2.0)):
        y[:, other] = factor * (x[:, own] + 0.1 * y[:, other])
    group = "monomial" if signs else "positive-monomial"
    shared = (3 if signs else 2) / max(dims)
    found = bp.similarity(x, y, measure="partial", share=shared, group=group, shuffles=19)
    assert found.similarity == pytest.approx(1 / math.sqrt(1.01), abs=1e-3)
    assert found.chance is not None and found.chance.high < 0.1
    wanted = {(0, 4), (2, 1)} | ({(5, 3)} if signs else set())
    matched = found.alignment
    assert {(a, b) for a, b, mass in matched.pairs if mass > 1e-9} == wanted
    assert float(matched.plan.sum()) == pytest.approx(shared, abs=1e-9)
    # All axes of either side: what soft matching of unit axes gives.
    whole = bp.similarity(x, y, measure="partial", share=1, group=group, folds=1)
    soft = bp.similarity(x, y, group=group, folds=1)
    assert whole.similarity * math.sqrt(dims[0] * dims[1]) / math.sqrt(
        dims[0] * dims[1]
    ) == pytest.approx(soft.similarity, abs=1e-9)
    assert whole.similarity < found.similarity


@pytest.mark.parametrize("share", [0.4, 1.0])
def test_constant_axes_match_nothing_or_are_refused(share: float) -> None:
    x, y = pair(5, dims=(6, 5))
    wanted = bp.similarity(x[:, [0, 1, 3, 4, 5]], y, measure="partial", share=share)
    x[:, 2] = 3.0
    with pytest.raises(bp.DataError, match=r"1 of 6 axes are the same on every sample \(2\)"):
        bp.similarity(x, y, measure="partial", share=share)
    found = bp.similarity(x, y, measure="partial", share=share, constant="ignore")
    assert found.similarity == pytest.approx(wanted.similarity, abs=1e-12)
    assert all(own != 2 for own, _, _ in found.alignment.pairs)
    assert "1 directions of the first never vary and count for nothing." in found.notes


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"measure": "svcca", "group": "general-linear"}, "which components lead depends on the scal"),
    ({"measure": "pwcca", "group": "orthogonal"}, "the weights are sums over the axes of the fir"),
    ({"measure": "rsa", "group": "general-linear"}, "how far samples are apart is not the same in"),
    ({"measure": "knn", "group": "planes"}, "how far samples are apart is not the same in"),
    ({"measure": "rsa", "dissimilarity": "correlation"}, "a correlation over axes changes when ax"),
    ({"measure": "knn", "dissimilarity": "correlation"}, 'belongs to measure="rsa"'),
    ({"measure": "knn", "neighbours": 120}, "neighbours=120 and 120 samples: give fewer"),
    ({"measure": "knn", "neighbours": 0}, "neighbours=0: give a whole number above zero"),
    ({"measure": "cka", "kernel": "rbf", "width": 0.0}, "width=0.0: give a number above 0"),
    (
        {"measure": "cka", "width": 0.3},
        "width=0.3 belongs to kernel='rbf', and 'cka' was asked for: leave it out",
    ),
    (
        {"measure": "cca", "whitening": 0.3},
        "whitening=0.3 belongs to measure='procrustes', and 'cca'",
    ),
    ({"whitening": 1.0}, 'all of the way is measure="cca"'),
    ({"whitening": 0.5, "group": "permutation"}, "goes before turns and the group is permutation"),
    ({"measure": "partial", "group": "orthogonal"}, "single axes are matched, or left; give a gro"),
    ({"measure": "partial", "group": "signs"}, "single axes are matched, or left; give a group th"),
    ({"measure": "partial", "share": 0.0}, "share=0.0: give a number above 0"),
    ({"measure": "partial", "share": 1.2}, "share=1.2: give a number above 0 and at most 1"),
    ({"share": 0.2}, "share=0.2 belongs to measure='partial', and 'procrustes' was asked for"),
    ({"measure": "rsa", "correlation": "kendall"}, "correlation='kendall' is not known: give one"),
    ({"shuffles": -1}, "shuffles=-1: give a whole number of at least 0"),
]


@pytest.mark.parametrize(("how", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_a_measure_cannot_mean_is_refused(how: dict[str, Any], message: str) -> None:
    x, y = pair(8, dims=(6, 6))
    with pytest.raises(ValueError, match=message):
        bp.similarity(x, y, **how)


MEASURES: list[dict[str, Any]] = [
    {}, {"measure": "cka"}, {"measure": "cka", "kernel": "rbf"}, {"measure": "cca"},
    {"measure": "regression"}, {"measure": "svcca"}, {"measure": "pwcca"}, {"measure": "rsa"},
    {"measure": "knn"}, {"measure": "jaccard"}, {"whitening": 0.5}, {"group": "permutation"},
    {"measure": "partial"},
]  # fmt: skip


SOME_BY_DEFAULT = [
    how if how in ({}, {"measure": "pwcca"}, {"measure": "knn"}) else pytest.param(how, marks=SLOW)
    for how in MEASURES
]


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("how", SOME_BY_DEFAULT, ids=str)
def test_chance_says_what_unrelated_data_reach(how: dict[str, Any]) -> None:
    x, y = pair(9)
    found = bp.similarity(x, y, shuffles=39, **how)
    chance = found.chance
    assert chance is not None and chance.shuffles == 39
    assert chance.low <= chance.mean <= chance.high < found.similarity
    assert chance.p_value == 1 / 40 and "by chance" in str(found)
    plain = bp.similarity(x, y, **how)
    assert plain.similarity == found.similarity and plain.chance is None
    unrelated = bp.similarity(x, y[torch.randperm(120, generator=seeded(3))], shuffles=39, **how)
    assert unrelated.chance is not None and unrelated.chance.p_value > 0.025
    assert abs(unrelated.chance.mean - chance.mean) < 0.05


@pytest.mark.parametrize("how", SOME_BY_DEFAULT, ids=str)
def test_models_are_compared_as_their_activations_are(how: dict[str, Any]) -> None:
    a, b = mlp(0), mlp(1)
    x, y = (model[:2](rows()).detach() for model in (a, b))
    given = {
        "group": "general-linear" if how.get("measure") in ("cca", "regression") else "orthogonal"
    }
    if how.get("measure") == "pwcca":
        given["group"] = "signed-permutation"
    if how.get("measure") == "partial":
        given["group"] = "positive-monomial"
    given = given | how
    whole = bp.similarity(x, y, folds=1, **given)
    found = bp.similarity(a, b, [rows()], site="1", folds=1, **given)
    assert found.similarity == pytest.approx(whole.similarity, abs=1e-6)
    if how.get("kernel") != "rbf" and how.get("measure") == "cka":
        return
    # However the data come in batches, pairs of samples are among all of them.
    parts = bp.similarity(a, b, rows().split(17), site="1", folds=1, **given)
    assert parts.similarity == pytest.approx(whole.similarity, abs=1e-6)


def test_many_samples_are_drawn_uniformly_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, y = pair(10, 1000)
    whole = bp.similarity(x, y, measure="rsa")
    monkeypatch.setattr("basis_probe.compare.gather.MOST_SAMPLES", 300)
    found = bp.similarity(x, y, measure="rsa")
    assert found.n_samples == 1000
    assert any("among 300 of the 1000 samples" in note for note in found.notes)
    assert abs(found.similarity - whole.similarity) < 4 * found.std_error + 0.02


@pytest.mark.parametrize(
    ("scale", "offset"), [(1.0, 300.0), *(pytest.param(s, 0.0, marks=SLOW) for s in (1e-16, 1e16))]
)
def test_single_precision_sums_are_those_of_double_precision(
    offset: float, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = seeded(11)
    x = (torch.randn(3000, 40, generator=generator) + offset) * torch.logspace(-3, 3, 40)
    # What drifts has another mean in every block.
    x[:, 0] += torch.linspace(0, 50, 3000)
    y = x @ torch.randn(40, 30, generator=generator) + torch.randn(3000, 30, generator=generator)
    x, y = x * scale, y * scale
    exact = Crossed.of(x, y)
    monkeypatch.setattr("basis_probe.statistics.second_moments._MUCH", 1)
    assert torch.equal(exact.sums, Crossed.of(x, y).sums)
    single = Crossed.of(x, y, single=True)
    sizes = exact.x.sizes.sqrt()[:, None] * exact.y.sizes.sqrt()
    # Beyond the range of float32 products, it is float64 as before.
    assert torch.equal(exact.sums, single.sums) == (scale != 1)
    assert float(((exact.sums - single.sums) / sizes).abs().max()) < 1e-6
    short = Crossed.of(x, y, single=True, sizes_only=True)
    for whole, some in ((exact.x, short.x), (exact.y, short.y)):
        torch.testing.assert_close(whole.sizes, some.sizes, rtol=1e-6, atol=0.0)
        assert bool(((whole.mean - some.mean).abs() < 1e-6 * (whole.sizes / 3000).sqrt()).all())
        with pytest.raises(ValueError, match="only the sizes of axes were kept"):
            assert some.sums is None
    parts = [
        Crossed.of(a, b, single=True, sizes_only=True)
        for a, b in zip(x.split(700), y.split(700), strict=True)
    ]
    joined = sum(parts[1:], parts[0])
    assert float(((exact.sums - joined.sums) / sizes).abs().max()) < 1e-6
    torch.testing.assert_close(exact.x.sizes, joined.x.sizes, rtol=1e-6, atol=0.0)
    hows: list[dict[str, Any]] = [
        {}, {"group": "permutation"}, {"measure": "cka"}, {"measure": "cca"},
        {"measure": "partial"}, {"measure": "cka", "estimator": "biased"},
        {"group": "line-stabiliser"},
    ]  # fmt: skip
    for how in hows:
        found = bp.similarity(x, y, **how)
        wanted = bp.similarity(x.double(), y.double(), **how)
        assert found.similarity == pytest.approx(wanted.similarity, abs=1e-6)
        assert found.std_error == pytest.approx(wanted.std_error, abs=1e-6)


def test_parts_of_the_data_and_the_whole_come_from_the_same_sums() -> None:
    x, y = pair(13, 200)
    for estimator in ("biased", "unbiased"):
        whole = bp.similarity(x, y, measure="cka", estimator=estimator, folds=1)
        parts = bp.similarity(x, y, measure="cka", estimator=estimator)
        assert parts.similarity == pytest.approx(whole.similarity, abs=1e-12)
        fold = folds_of(200, folds=5, seed=0)
        chosen = [fold == part for part in range(5)]
        each = [
            bp.similarity(x[one], y[one], measure="cka", estimator=estimator, folds=1)
            for one in chosen
        ]
        values = np.array([one.similarity for one in each])
        assert parts.std_error == pytest.approx(values.std(ddof=1) / math.sqrt(5), abs=1e-9)


@pytest.mark.sample(default=8)
@pytest.mark.parametrize(
    "measure", ["procrustes", "cca", "regression", "svcca", "pwcca", "partial"]
)
@pytest.mark.parametrize("offset", [-3e4, 1e6])
def test_where_zero_is_does_not_matter(measure: Any, offset: float) -> None:
    """Far from zero single samples differ little from each other, relative to their length."""
    x, y = pair(8, 300)
    wanted = bp.similarity(x, y, measure=measure)
    found = bp.similarity(x + offset, 2 * y - offset, measure=measure)
    assert found.similarity == pytest.approx(wanted.similarity, abs=1e-6)
    assert found.notes == wanted.notes
    one = bp.similarity(x[:, :1] + offset, y[:, 3:4], group="orthogonal")
    assert one.notes == bp.similarity(x[:, :1], y[:, 3:4], group="orthogonal").notes


@pytest.mark.parametrize("kind", ["euclidean", "cosine", "correlation"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pairs_that_are_equally_unlike_are_ties(kind: Any, dtype: torch.dtype) -> None:
    """Samples that come again, and samples of zeros and ones, make many."""
    generator = seeded(3)
    again = torch.randint(0, 40, (160,), generator=generator)
    drawn = [torch.randn(40, dim, generator=generator)[again] for dim in DIMS]
    binary = [(torch.rand(160, dim, generator=generator) < 0.4).float() for dim in DIMS]
    for side in binary:
        side[:, 0] = 1
        side[:, 1] = 0
    for sides in (drawn, binary):
        # Rounded by hand: scipy's last digits break ties at random.
        tables = [pdist(side.double().numpy(), kind).round(11) for side in sides]
        wanted = spearmanr(*tables)[0]
        found = bp.similarity(
            sides[0].to(dtype), sides[1].to(dtype), group="permutation", measure="rsa",
            dissimilarity=kind, correlation="spearman",
        )  # fmt: skip
        assert found.similarity == pytest.approx(float(wanted), abs=1e-9)


def test_a_sample_that_is_the_same_on_all_axes_has_no_correlation() -> None:
    x, y = pair(5, 60)
    x[7], x[11] = 0.1, -7.3
    table = squareform(pdist(x.numpy(), "correlation"))
    table[[7, 11]] = table[:, [7, 11]] = 1.0
    np.fill_diagonal(table, 0)
    wanted = pearsonr(squareform(table, checks=False), pdist(y.numpy(), "correlation"))[0]
    found = bp.similarity(x, y, group="permutation", measure="rsa", dissimilarity="correlation")
    assert found.similarity == pytest.approx(float(wanted), abs=1e-9)


@pytest.mark.parametrize("samples", [5, 9, 10])
@pytest.mark.parametrize("measure", ["cca", "regression", "pwcca"])
def test_what_samples_span_whole_cannot_be_told(measure: Any, samples: int) -> None:
    """Nine axes about their mean need eleven samples, or any two networks are one."""
    generator = seeded(samples)
    x, y = (torch.randn(11, 9, generator=generator, dtype=torch.float64) for _ in range(2))
    with pytest.raises(bp.DataError, match="samples"):
        bp.similarity(x[:samples], y[:samples], measure=measure, folds=1)
    assert bp.similarity(x, y, measure=measure, folds=1).similarity < 1 - 1e-6
    again = torch.arange(40) % samples
    for own in (x, x + 1e5):
        found = bp.similarity(own[again], y[again], measure=measure)
        assert math.isnan(found.similarity) and "different ones" in found.notes[0]
    with pytest.raises(bp.DataError, match="4 directions vary on 5 samples"):
        bp.similarity(x[:5], y[:5], measure="svcca", folds=1)


@pytest.mark.parametrize("group", ["permutation", "positive-monomial"])
@pytest.mark.parametrize("kernel", ["max", "median", "smooth"])
def test_kernels_of_very_small_and_large_values_are_those_of_others(
    kernel: str, group: str
) -> None:
    """Products of three inner products leave the range of single precision early."""
    x, y = (side.float() for side in pair(2, 80))
    how: dict[str, Any] = {"measure": "cka", "kernel": kernel, "group": group}
    wanted = bp.similarity(x, y, **how)
    for exponent in (-100, -40, 40, 100):
        found = bp.similarity(x * 2.0**exponent, y * 2.0**-exponent, **how)
        assert found.similarity == pytest.approx(wanted.similarity, abs=1e-6)
        assert found.std_error == pytest.approx(wanted.std_error, abs=1e-6)
