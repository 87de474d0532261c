"""Similarity up to a group: its laws, the oracles it agrees with, and what it refuses."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from draws import seeded
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import network
from torch import Tensor, nn

import basis_probe as bp
from basis_probe.algebra.groups import Group, QuarterTurns, SignedPlanes, Signs
from basis_probe.compare import matching
from basis_probe.compare.alignments import align, assignment, transport
from basis_probe.compare.kernels import Kernel, Maps, hsic_of, kernel_hsic, linear_hsic
from basis_probe.errors import DataError, SiteError
from basis_probe.statistics.second_moments import Crossed, Samples

DIM, SAMPLES = 8, 400


def data(seed: int, samples: int = SAMPLES, dim: int = DIM) -> Tensor:
    """Correlated, skewed axes of unequal size, none of them alike."""
    generator = seeded(seed)
    normal = torch.randn(samples, dim, generator=generator, dtype=torch.float64)
    mixed = normal + 0.3 * normal.roll(1, 1) + torch.linspace(-1, 1, dim, dtype=torch.float64)
    return mixed.relu() * torch.linspace(1.0, 2.0, dim, dtype=torch.float64) + 0.1 * normal**3


GROUPS: dict[str, Group] = {
    "orthogonal": bp.groups.Orthogonal(DIM),
    "general linear": bp.groups.GeneralLinear(DIM),
    "permutation": bp.groups.Permutation(DIM),
    "signed permutation": bp.groups.SignedPermutation(DIM),
    "positive monomial": bp.groups.PositiveMonomial(DIM),
    "monomial": bp.groups.Monomial(DIM),
    "trivial": bp.groups.Trivial(DIM),
    "signs": Signs(DIM),
    "planes": bp.groups.Planes(DIM),
    "plane-rotations": bp.groups.PlaneRotations(DIM),
    "signed planes": SignedPlanes(DIM),
    "quarter turns": QuarterTurns(DIM),
    "line": bp.groups.LineStabiliser(DIM),
    "heads": bp.groups.Blocks(bp.groups.GeneralLinear(2), count=4),
    "turned heads": bp.groups.Blocks(bp.groups.Orthogonal(2), count=2, copies=2),
    "kept blocks": bp.groups.Blocks(bp.groups.Permutation(2), count=4, order="kept"),
    "sum": bp.groups.DirectSum((bp.groups.Permutation(3), bp.groups.Orthogonal(5))),
}
LARGER: dict[str, Group] = {
    "orthogonal": bp.groups.Monomial(DIM),
    "permutation": bp.groups.SignedPermutation(DIM),
    "signed permutation": bp.groups.PositiveMonomial(DIM),
    "positive monomial": bp.groups.Monomial(DIM),
    "monomial": bp.groups.Orthogonal(DIM),
    "trivial": bp.groups.Permutation(DIM),
    "signs": bp.groups.SignedPermutation(DIM),
    "planes": bp.groups.Permutation(DIM),
    "signed planes": bp.groups.Orthogonal(DIM),
    "quarter turns": SignedPlanes(DIM),
    "line": bp.groups.GeneralLinear(DIM),
    "heads": bp.groups.Orthogonal(DIM),
    "turned heads": bp.groups.Blocks(bp.groups.GeneralLinear(2), count=2, copies=2),
    "kept blocks": bp.groups.Permutation(DIM),
    "sum": bp.groups.Orthogonal(DIM),
}


def distance(x: Tensor, y: Tensor, group: Group, **options: object) -> float:
    return bp.similarity(x, y, group=group, **options).distance


# --- laws -----------------------------------------------------------------------------------------


@pytest.mark.sample(default=8)
@pytest.mark.parametrize("name", GROUPS)
def test_the_distance_is_zero_on_the_orbit_and_the_element_is_found(name: str) -> None:
    group = GROUPS[name]
    for seed in range(3):
        x = data(seed)
        element = group.draw(seeded(seed + 50))
        found = bp.similarity(x, element.act(x) + 3.0, group=group)
        assert found.similarity > 1 - 1e-12 and found.distance < 2e-6
        assert found.in_sample > 1 - 1e-12
        alignment = found.alignment
        assert alignment is not None and alignment.element is not None
        if name == "line":
            # What is written along the ones is free.
            across = torch.eye(DIM, dtype=torch.float64) - 1 / DIM
            assert torch.allclose(
                across @ alignment.matrix @ across, across @ element.matrix() @ across
            )
        else:
            assert torch.allclose(alignment.element.matrix(), element.matrix(), atol=1e-8)


@pytest.mark.sample(default=7)
@pytest.mark.parametrize("name", LARGER)
def test_the_distance_is_positive_off_the_orbit(name: str) -> None:
    x = data(1)
    for seed in range(3):
        stranger = LARGER[name].draw(seeded(seed))
        assert distance(x, stranger.act(x), GROUPS[name]) > 0.02
    assert distance(x, data(2), GROUPS[name]) > 0.2


@pytest.mark.parametrize("name", [name for name in GROUPS if name != "general linear"])
def test_the_distance_is_the_same_for_both_and_under_the_group_on_either_side(name: str) -> None:
    group, x, y = GROUPS[name], data(3), 0.5 * data(3) + data(4)
    one = bp.similarity(x, y, group=group, folds=1)
    assert one.similarity == pytest.approx(
        bp.similarity(y, x, group=group, folds=1).similarity, abs=1e-10
    )
    for seed in range(2):
        a, b = group.draw(seeded(seed)), group.draw(seeded(seed + 9))
        moved = bp.similarity(a.act(x), b.act(y), group=group, folds=1)
        assert moved.similarity == pytest.approx(one.similarity, abs=1e-10)
    if name in LARGER:
        c = LARGER[name].draw(seeded(5))
        other = bp.similarity(c.act(x), y, group=group, folds=1)
        assert abs(other.similarity - one.similarity) > 1e-4


@pytest.mark.parametrize("name", GROUPS)
def test_the_triangle_inequality_holds(name: str) -> None:
    group = GROUPS[name]
    for seed in range(4):
        x, z = data(seed), data(seed + 20)
        y = group.draw(seeded(seed)).act(x) + 0.7 * z
        ab, bc, ac = (distance(*pair, group, folds=1) for pair in ((x, y), (y, z), (x, z)))
        assert ac <= ab + bc + 1e-9
        assert ab <= ac + bc + 1e-9 and bc <= ab + ac + 1e-9


@pytest.mark.parametrize("kernel", ["linear", "max", "median", "smooth"])
@pytest.mark.parametrize("name", ["permutation", "positive monomial"])
def test_kernels_keep_their_value_under_the_group_and_not_under_turns(
    kernel: str, name: str
) -> None:
    group, x, y = GROUPS[name], data(3), 0.5 * data(3) + data(4)

    def of(a: Tensor, b: Tensor) -> float:
        return bp.similarity(a, b, group=group, measure="cka", kernel=kernel, folds=1).similarity

    one = of(x, y)
    assert one == pytest.approx(of(y, x), abs=1e-12)
    assert of(x, group.draw(seeded(1)).act(x)) == pytest.approx(1.0, abs=1e-12)
    assert of(group.draw(seeded(2)).act(x), y) == pytest.approx(one, abs=1e-10)
    # Inner products of one axis with itself do not see its sign.
    assert of(Signs(DIM).draw(seeded(2)).act(x), y) == pytest.approx(one, abs=1e-10)
    if not (kernel == "linear" and name == "permutation"):
        turned = of(bp.groups.Orthogonal(DIM).draw(seeded(2)).act(x), y)
        assert abs(turned - one) > 1e-3
    if name == "permutation":
        assert abs(of(bp.groups.PositiveMonomial(DIM).draw(seeded(3)).act(x), y) - one) > 1e-4


def test_linear_cka_is_the_same_in_every_turned_basis_and_its_angle_is_a_metric() -> None:
    group = bp.groups.Orthogonal(DIM)
    x, y, z = data(1), data(1) + data(2), data(3)
    one = bp.similarity(x, y, group=group, measure="cka").similarity
    turned = bp.similarity(group.draw(seeded(1)).act(x), 7 * y + 2, group=group, measure="cka")
    assert turned.similarity == pytest.approx(one, abs=1e-12)
    stranger = bp.groups.Monomial(DIM).draw(seeded(1)).act(x)
    assert abs(bp.similarity(stranger, y, group=group, measure="cka").similarity - one) > 1e-3
    for kernel in ("linear", "max", "median", "smooth"):
        by = {"group": bp.groups.Permutation(DIM), "measure": "cka", "kernel": kernel}
        ab, bc, ac = (bp.similarity(*p, **by).distance for p in ((x, y), (y, z), (x, z)))
        assert ac <= ab + bc + 1e-9


def test_the_kernels_that_are_said_to_be_positive_are_and_the_others_are_not() -> None:
    x = torch.randn(40, 6, 3, generator=seeded(0), dtype=torch.float64)
    least = {
        kernel: float(torch.linalg.eigvalsh(Maps(x, kernel, unit_axes=True).whole)[0])
        for kernel in Kernel
    }
    assert least[Kernel.LINEAR] > -1e-9 and least[Kernel.SMOOTH] > -1e-9
    assert least[Kernel.MAX] < -0.1 and least[Kernel.MEDIAN] < -0.1


# --- oracles --------------------------------------------------------------------------------------


def centred(x: Tensor) -> Tensor:
    return x - x.mean(0)


def test_linear_cka_is_that_of_the_definition() -> None:
    x, y = data(1, 60), data(2, 60, 5)
    n = len(x)
    h = torch.eye(n, dtype=torch.float64) - 1 / n

    def biased(k: Tensor, el: Tensor) -> float:
        return float((h @ k @ h * el).sum()) / (n - 1) ** 2

    def unbiased(k: Tensor, el: Tensor) -> float:
        k, el = k - k.diag().diag(), el - el.diag().diag()
        one = torch.ones(n, dtype=torch.float64)
        inner = (k @ el).trace() + one @ k @ one * (one @ el @ one) / ((n - 1) * (n - 2))
        return float(inner - 2 / (n - 2) * (one @ k @ el @ one)) / (n * (n - 3))

    k, el = x @ x.T, y @ y.T
    for name, oracle in (("biased", biased), ("unbiased", unbiased)):
        value = oracle(k, el) / math.sqrt(oracle(k, k) * oracle(el, el))
        found = bp.similarity(x, y, group="orthogonal", measure="cka", estimator=name)
        assert found.similarity == pytest.approx(value, abs=1e-8)
        for made in (
            linear_hsic(Samples(x), Samples(y), unbiased=name == "unbiased"),
            kernel_hsic(k, el, unbiased=name == "unbiased"),
            hsic_of(
                Maps(x[:, :, None], Kernel.LINEAR, False),
                Maps(y[:, :, None], Kernel.LINEAR, False),
                unbiased=name == "unbiased",
            ).xy,
        ):
            assert made == pytest.approx(oracle(k, el), rel=1e-9)


def test_the_unbiased_criterion_is_zero_on_average_for_independent_axes() -> None:
    values = [linear_hsic(Samples(data(s, 30)), Samples(data(s + 500, 30))) for s in range(200)]
    mean, error = np.mean(values), np.std(values) / math.sqrt(len(values))
    assert abs(mean) < 4 * error
    biased = [
        linear_hsic(Samples(data(s, 30)), Samples(data(s + 500, 30)), unbiased=False)
        for s in range(200)
    ]
    assert np.mean(biased) > 10 * error


def test_orthogonal_procrustes_is_that_of_scipy() -> None:
    from scipy.linalg import orthogonal_procrustes

    x, y = data(1), 0.5 * data(1).roll(2, 1) + data(2)
    a, b = (centred(z) / centred(z).norm() for z in (x, y))
    turn, total = orthogonal_procrustes(a.numpy(), b.numpy())
    found = bp.similarity(x, y, group="orthogonal", folds=1)
    assert found.similarity == pytest.approx(total, abs=1e-8)
    assert found.distance == pytest.approx(float((a @ torch.as_tensor(turn) - b).norm()), abs=1e-8)
    assert found.alignment is not None
    assert torch.allclose(found.alignment.matrix, torch.as_tensor(turn).T, atol=1e-8)


def test_cca_is_that_of_the_definition() -> None:
    x, y = data(1), torch.cat([data(2)[:, :3], data(1)[:, :2]], 1)
    qx, qy = (torch.linalg.qr(centred(z)).Q for z in (x, y))
    correlations = torch.linalg.svdvals(qx.T @ qy)
    found = bp.similarity(x, y, group="general-linear", measure="cca", folds=1)
    assert found.similarity == pytest.approx(float(correlations.mean()), abs=1e-8)
    procrustes = bp.similarity(x, y, group="general-linear", folds=1)
    expected = float(correlations.sum()) / math.sqrt(x.shape[1] * y.shape[1])
    assert procrustes.similarity == pytest.approx(expected, abs=1e-8)


def test_regression_is_that_of_least_squares() -> None:
    x, y = data(1), data(1)[:, :3] ** 2 + data(2)[:, :3]
    predicted = centred(x) @ torch.linalg.lstsq(centred(x), centred(y)).solution
    residual = (centred(y) - predicted).square().sum() / centred(y).square().sum()
    found = bp.similarity(x, y, group="general-linear", measure="regression", folds=1)
    assert found.similarity == pytest.approx(1 - float(residual), abs=1e-8)
    held_out = bp.similarity(x, y, group="general-linear", measure="regression")
    assert held_out.similarity < found.similarity


def test_hungarian_matching_is_the_best_of_all_orders() -> None:
    from itertools import permutations

    x, y = data(1)[:, :6], data(1)[:, [3, 1, 0, 5, 4, 2]] + 1.5 * data(2)[:, :6]
    correlations = torch.corrcoef(torch.cat([x, y], 1).T)[:6, 6:]
    best = max(
        sum(float(correlations[j, i]) for i, j in enumerate(order)) / 6
        for order in permutations(range(6))
    )
    found = bp.similarity(x, y, group="positive-monomial", folds=1)
    assert found.similarity == pytest.approx(best, abs=1e-8)
    rows, columns = assignment(correlations)
    assert float(correlations[rows, columns].mean()) == pytest.approx(best, abs=1e-8)


@pytest.mark.parametrize(("wide", "narrow"), [(8, 6), (8, 4), (7, 5)])
def test_soft_matching_is_optimal_transport(wide: int, narrow: int) -> None:
    import ot

    x, y = data(1)[:, :wide], data(1)[:, :narrow] + data(2)[:, :narrow]
    a = centred(x) / centred(x).norm() * math.sqrt(wide)
    b = centred(y) / centred(y).norm() * math.sqrt(narrow)
    costs = (a[:, :, None] - b[:, None, :]).square().sum(0).numpy()
    weights = np.full(wide, 1 / wide), np.full(narrow, 1 / narrow)
    squared = ot.emd2(*weights, costs)
    found = bp.similarity(x, y, group="permutation", folds=1)
    assert found.distance**2 == pytest.approx(squared, abs=1e-8)
    gain = a.T @ b
    assert float((transport(gain) * gain).sum()) == pytest.approx(found.similarity, abs=1e-8)


@pytest.mark.parametrize(
    ("wide", "narrow"),
    [
        (97, 64),
        (2, 90),
        *(
            pytest.param(*dims, marks=pytest.mark.slow)
            for dims in ((64, 97), (128, 96), (300, 7), (150, 149))
        ),
    ],
)
@pytest.mark.parametrize("kind", ["drawn", "equal rows", "mostly zero", "huge", "all negative"])
@pytest.mark.parametrize("solver", [matching._by_columns, matching._by_network_simplex])
def test_large_transports_are_exact(
    wide: int, narrow: int, kind: str, solver: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ot

    monkeypatch.setattr(matching, "_linear_programme", solver)
    generator = torch.Generator().manual_seed(wide)
    gain = torch.randn(wide, narrow, generator=generator, dtype=torch.float64)
    if kind == "equal rows":
        gain = gain[torch.arange(wide) // 3]
    elif kind == "mostly zero":
        gain = gain * (gain > 1.5)
    elif kind == "huge":
        gain = gain.exp().pow(4) * 1e8
    elif kind == "all negative":
        gain = gain - 100
    plan = transport(gain)
    assert float(plan.min()) >= 0
    for axis, size in ((1, wide), (0, narrow)):
        torch.testing.assert_close(plan.sum(axis), torch.full_like(plan.sum(axis), 1 / size))
    weights = np.full(wide, 1 / wide), np.full(narrow, 1 / narrow)
    best = float((ot.emd(*weights, -gain.numpy(), numItermax=10**7) * gain.numpy()).sum())
    assert float((plan * gain).sum()) == pytest.approx(best, abs=1e-9 * float(gain.abs().max()))
    share = 0.37
    some = transport(gain, share)
    assert float(some.min()) >= 0 and float(some.sum()) == pytest.approx(share, abs=1e-9)
    assert float((some.sum(1) * wide).max()) < 1 + 1e-9
    assert float((some.sum(0) * narrow).max()) < 1 + 1e-9
    # POT's own function takes costs of at least zero.
    costs = (gain.max() - gain).numpy()
    wanted = ot.partial.partial_wasserstein(*weights, costs, m=share, numItermax=10**7)
    best = float((wanted * gain.numpy()).sum())
    assert float((some * gain).sum()) == pytest.approx(best, abs=1e-9 * float(gain.abs().max()))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.83, 1.0])
@pytest.mark.parametrize(("wide", "narrow"), [(6, 4), (5, 5), (1, 7)])
@pytest.mark.parametrize("offset", [-3.0, 0.0])
def test_a_share_of_a_transport_is_the_best_of_all_plans(
    wide: int, narrow: int, share: float, offset: float
) -> None:
    from scipy.optimize import linprog

    gain = torch.randn(wide, narrow, generator=torch.Generator().manual_seed(3)).double() + offset
    plan = transport(gain, share)
    rows = np.kron(np.eye(wide), np.ones(narrow))
    columns = np.kron(np.ones(wide), np.eye(narrow))
    limits = np.concatenate([np.full(wide, 1 / wide), np.full(narrow, 1 / narrow)])
    total = float(plan.sum())
    assert total == pytest.approx(share, abs=1e-12)
    best = linprog(
        -gain.numpy().ravel(), A_ub=np.vstack([rows, columns]), b_ub=limits + 1e-12,
        A_eq=np.ones((1, wide * narrow)), b_eq=[total],
    )  # fmt: skip
    assert float((plan * gain).sum()) == pytest.approx(-best.fun, abs=1e-9)


@pytest.mark.parametrize("name", ["positive-monomial", "monomial", "general-linear"])
@pytest.mark.parametrize("spread", [0, 8, 11])
def test_scales_that_the_group_holds_change_nothing_however_large(name: str, spread: int) -> None:
    x = data(1)[:, :6].double()
    y = x @ torch.randn(6, 6, generator=seeded(2), dtype=torch.float64) + data(2)[:, :6]
    scale = torch.logspace(-spread, 0, 6, dtype=torch.float64)
    wanted = bp.similarity(x, y, group=name)
    for one, other in ((x * scale, y), (x, y * scale), (x * scale.flip(0), y * scale)):
        found = bp.similarity(one, other, group=name)
        assert found.similarity == pytest.approx(wanted.similarity, abs=1e-6)
        assert found.notes == wanted.notes
    if name == "general-linear":
        wanted = bp.similarity(x, y, group=name, measure="regression")
        found = bp.similarity(x * scale, y, group=name, measure="regression")
        assert found.similarity == pytest.approx(wanted.similarity, abs=1e-6)


@pytest.mark.parametrize("spread", [1e-3, 1e-7, 1e-10])
def test_axes_far_from_zero_have_a_scale_in_double_precision(spread: float) -> None:
    x = data(1)[:, :6].double()
    order = torch.tensor([2, 0, 1, 5, 4, 3])
    moved = (1000 + 1000 * spread * x) * torch.arange(1, 7).double()
    found = bp.similarity(moved, x[:, order], group="positive-monomial")
    assert found.similarity == pytest.approx(1, abs=1e-3) and found.alignment is not None
    # What single precision leaves of a constant is none.
    with pytest.raises(bp.DataError, match="6 of 6 axes are the same on every sample"):
        rounded = (1000 + 1e-5 * x).float() + torch.zeros(1)
        bp.similarity(rounded, x.float(), group="positive-monomial")


@pytest.mark.parametrize("dims", [(30, 30), (50, 20)])
def test_turns_of_few_samples_are_computed_and_said_to_flatter(dims: tuple[int, int]) -> None:
    x, y = (torch.randn(30, dim, generator=seeded(seed)) for seed, dim in enumerate(dims))
    a, b = centred(x.double()), centred(y.double())
    wanted = float(torch.linalg.matrix_norm(a.T @ b, ord="nuc") / a.norm() / b.norm())
    found = bp.similarity(x, y, group="orthogonal", folds=1)
    assert found.similarity == pytest.approx(wanted, abs=1e-9)
    assert any("with no more samples than axes" in note for note in found.notes)
    held_out = bp.similarity(x, y, group="orthogonal")
    assert held_out.similarity < 0.5 < found.similarity


@pytest.mark.parametrize("measure", ["procrustes", "cca", "regression"])
def test_samples_that_repeat_count_once(measure: Any) -> None:
    tables = [torch.randn(19, 20, generator=seeded(seed)) for seed in (1, 2)]
    tokens = torch.randint(0, 19, (900,), generator=seeded(3))
    x, y = (table[tokens] for table in tables)
    refused = bp.similarity(x, y, group="general-linear", measure=measure)
    assert math.isnan(refused.similarity)
    assert "are 19 different ones that repeat, and 20 axes may" in refused.notes[0]
    turned = bp.similarity(x, y, group="orthogonal")
    assert any("20 axes and 19 different samples" in note for note in turned.notes)
    # Each one of the two may repeat, as long as they do not repeat together.
    bp.similarity(x[:, :8], y[:, :8] + torch.randn(900, 8, generator=seeded(4)), group="orthogonal")
    assert not any("different" in n for n in bp.similarity(x[:, :8], y[:, :8]).notes)


def paper_procrustes(h1: Tensor, h2: Tensor) -> float:
    """The formula of the paper, one channel after the other."""
    from scipy.optimize import linear_sum_assignment

    unit = []
    for h in (h1, h2):
        flat = h.transpose(0, 1).flatten(1)
        norm = flat.norm(dim=1, keepdim=True)
        unit.append(flat / torch.where(norm == 0, torch.ones_like(norm), norm))
    costs = unit[0] @ unit[1].T
    total = costs[linear_sum_assignment(costs.numpy(), maximize=True)].sum()
    squared = unit[0].square().sum() + unit[1].square().sum() - 2 * total
    return 1 - math.sqrt(float(squared) / (4 * len(costs)))


def paper_cka(h1: Tensor, h2: Tensor, choose: Callable[[Tensor], Tensor]) -> float:
    """The formula of the paper: a kernel built column by column, its diagonal left out."""
    kernels = []
    for h in (h1, h2):
        h = h - h.mean(dim=(0, 2, 3), keepdim=True)
        h = (
            h / h.norm(dim=(0, 2, 3), keepdim=True)
            if h.ndim == 3
            else h / h.square().sum(dim=(0, 2, 3), keepdim=True).sqrt()
        )
        k = torch.zeros(len(h), len(h), dtype=h.dtype)
        for j in range(1, len(h)):
            k[:j, j] = choose((h[:j] * h[j]).sum(dim=(-2, -1)))
        kernels.append(k + k.T)

    def hsic(k: Tensor, el: Tensor) -> Tensor:
        n = len(k)
        inner = (k * el).sum() + k.sum() * el.sum() / ((n - 1) * (n - 2))
        return (inner - 2 / (n - 2) * (k.sum(1) * el.sum(1)).sum()) / (n * (n - 3))

    k, el = kernels
    return float(hsic(k, el) / (hsic(k, k) * hsic(el, el)).sqrt())


def test_the_formulas_of_the_paper_are_reproduced() -> None:
    generator = seeded(0)
    h1 = torch.randn(24, 5, 4, 4, generator=generator, dtype=torch.float64).relu()
    h2 = (h1.roll(2, 1) + torch.randn(24, 5, 4, 4, generator=generator, dtype=torch.float64)).relu()
    by = {"normalization": "paper"}
    found = bp.similarity(h1, h2, group="positive-monomial", **by)
    assert found.similarity == pytest.approx(paper_procrustes(h1, h2), abs=1e-10)
    flat = [h.movedim(1, -1).flatten(0, 2) for h in (h1, h2)]
    nuclear = torch.linalg.matrix_norm(
        (flat[0] / flat[0].norm()).T @ (flat[1] / flat[1].norm()), "nuc"
    )
    found = bp.similarity(h1, h2, group="orthogonal", **by)
    assert found.similarity == pytest.approx(1 - math.sqrt(2 - 2 * float(nuclear)) / 2, abs=1e-10)
    for kernel, choose in (
        ("max", lambda z: z.max(dim=1).values),
        ("median", lambda z: z.median(dim=1).values),
    ):
        for options in (by, {}):
            found = bp.similarity(
                h1, h2, group="positive-monomial", measure="cka", kernel=kernel, **options
            )
            assert found.similarity == pytest.approx(paper_cka(h1, h2, choose), abs=1e-10)
    found = bp.similarity(h1, h2, group="orthogonal", measure="cka", **by)
    assert found.similarity == pytest.approx(paper_cka(h1, h2, lambda z: z.sum(1)), abs=1e-10)
    # A smaller map is enlarged by repetition, a narrower network by zeros.
    small = F.avg_pool2d(h2, 2)[:, :3]
    large = F.interpolate(small, scale_factor=2)
    padded = torch.cat([large, torch.zeros(24, 2, 4, 4, dtype=torch.float64)], 1)
    found = bp.similarity(h1, small, group="positive-monomial", **by)
    assert found.similarity == pytest.approx(paper_procrustes(h1, padded), abs=1e-10)
    with pytest.raises(ValueError, match="not among them"):
        bp.similarity(h1, h2, group="permutation", **by)


def test_a_kernel_of_blocks_is_the_kernel_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = (torch.randn(50, 4, 3, generator=seeded(s), dtype=torch.float64) for s in (0, 1))
    for kernel in Kernel:
        maps = [Maps(z, kernel, True) for z in (x, y)]
        whole = hsic_of(*maps)
        k, el = (m.whole for m in maps)
        monkeypatch.setattr("basis_probe.compare.kernels._BLOCK", 16)
        parts = hsic_of(*maps)
        monkeypatch.undo()
        for name, expected in (
            ("xy", kernel_hsic(k, el)),
            ("xx", kernel_hsic(k, k)),
            ("yy", kernel_hsic(el, el)),
        ):
            assert getattr(whole, name) == pytest.approx(expected, rel=1e-9)
            assert getattr(parts, name) == pytest.approx(expected, rel=1e-9)


# A mean of 1e12 is held to 1e-4 only, and so is every step between two: offsets end before.
@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 4))
def test_streamed_moments_are_those_of_all_samples(seed: int, parts: int, offset: int) -> None:
    x = data(seed, 50, 3) * 10.0**offset + 10.0 ** (2 * offset)
    y = data(seed + 1, 50, 2).cumsum(0)
    cuts = zip(x.tensor_split(parts), y.tensor_split(parts), strict=True)
    merged = sum((Crossed.of(a, b) for a, b in cuts), Crossed.empty(3, 2))
    expected = centred(x).T @ centred(y)
    scale = centred(x).norm() * centred(y).norm()
    assert float((merged.sums - expected).abs().max() / scale) < 1e-10
    assert torch.allclose(merged.x.sums, centred(x).T @ centred(x), rtol=1e-8)


# --- what is held out, widths, sizes --------------------------------------------------------------


def test_a_permutation_that_is_scored_where_it_was_fitted_flatters() -> None:
    generator = seeded(0)
    x, y = (torch.randn(100, 40, generator=generator, dtype=torch.float64) for _ in range(2))
    found = bp.similarity(x, y, group="permutation")
    assert found.in_sample > 0.15 and abs(found.similarity) < 0.05
    assert found.optimism > 0.1
    assert abs(found.similarity) < 4 * found.std_error
    alone = bp.similarity(x, y, group="permutation", folds=1)
    assert alone.similarity == pytest.approx(found.in_sample, abs=1e-12)
    assert math.isnan(alone.std_error) and "flatters" in alone.notes[0]


def test_different_widths_are_compared() -> None:
    x = data(1)
    doubled = torch.cat([x, x], 1)
    found = bp.similarity(x, doubled, group="permutation")
    assert found.similarity == pytest.approx(1.0, abs=1e-9)
    assert found.dims == (8, 16) and "soft matching" in found.notes[-1]
    assert found.alignment is not None and found.alignment.element is None
    narrower = bp.similarity(x, x[:, :5], group="orthogonal")
    assert 0.5 < narrower.similarity < 1


def test_feature_maps_of_different_size_are_averaged_to_the_smaller() -> None:
    x = torch.randn(40, 6, 8, 8, generator=seeded(0))
    y = bp.groups.PositiveMonomial(6).draw(seeded(1)).act(F.avg_pool2d(x, 2), axis=1)
    for measure in ("procrustes", "cka"):
        found = bp.similarity(x, y, group="positive-monomial", measure=measure)
        if measure == "procrustes":
            assert found.similarity == pytest.approx(1.0, abs=1e-6)
            assert found.n_samples == 40 * 16
    pooled = F.adaptive_avg_pool2d(x, 4).movedim(1, -1).flatten(0, 2)
    rows = y.movedim(1, -1).flatten(0, 2)
    expected = bp.similarity(pooled, rows, group="orthogonal", folds=1).similarity
    found = bp.similarity(x, y, group="orthogonal", folds=1).similarity
    assert found == pytest.approx(expected, abs=1e-9)


# --- what is refused ------------------------------------------------------------------------------

REFUSED: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "samples": (lambda: bp.similarity(data(1), data(1)[:-1]), DataError, "400 samples and y 399"),
    "nan": (
        lambda: bp.similarity(data(1), torch.where(data(1) > 2, math.nan, data(1))),
        DataError,
        "values that are NaN",
    ),
    "constant": (
        lambda: bp.similarity(data(1), data(1) * (torch.arange(8) != 2), group="monomial"),
        DataError,
        r"1 of 8 axes are the same on every sample \(2\)",
    ),
    "too few": (
        lambda: bp.similarity(data(1, 9), data(2, 9), group="GL"),
        DataError,
        "8 axes that may be mixed and 9 samples",
    ),
    "too few for regression": (
        lambda: bp.similarity(data(1, 9), data(2, 9), group="GL", measure="regression"),
        DataError,
        "8 axes and 9 samples",
    ),
    "nothing varies": (
        lambda: bp.similarity(torch.ones(50, 3), data(1, 50, 3), group="permutation"),
        DataError,
        "the same on every sample",
    ),
    "few examples": (
        lambda: bp.similarity(data(1, 3), data(2, 3), measure="cka"),
        DataError,
        "no batch holds four examples",
    ),
    "integers": (
        lambda: bp.similarity(torch.ones(5, 2, dtype=torch.int64), data(1, 5, 2)),
        TypeError,
        "floating-point",
    ),
    "one axis": (lambda: bp.similarity(torch.ones(5), torch.ones(5)), DataError, "give .samples"),
    "maps and rows": (
        lambda: bp.similarity(data(1), torch.randn(400, 8, 2, 2)),
        DataError,
        "compare two matrices",
    ),
    "kernel and turns": (
        lambda: bp.similarity(data(1), data(2), measure="cka", kernel="max"),
        ValueError,
        "changes when axes are turned",
    ),
    "kernel of blocks": (
        lambda: bp.similarity(data(1), data(2), measure="cka", group=GROUPS["heads"]),
        ValueError,
        "no kernel here",
    ),
    "kernel without cka": (
        lambda: bp.similarity(data(1), data(2), kernel="max"),
        ValueError,
        "belongs to measure='cka'",
    ),
    "no such kernel": (
        lambda: bp.similarity(data(1), data(2), measure="cka", kernel="cubic"),
        ValueError,
        "no kernel is called 'cubic'",
    ),
    "measure": (
        lambda: bp.similarity(data(1), data(2), measure="cosine"),
        ValueError,
        "measure='cosine' is not known",
    ),
    "cca up to turns": (
        lambda: bp.similarity(data(1), data(2), measure="cca", group="orthogonal"),
        ValueError,
        'give group="general-linear"',
    ),
    "widths in place": (
        lambda: bp.similarity(data(1), data(2)[:, :4], group="trivial"),
        ValueError,
        "keeps axes or blocks in their places",
    ),
    "unknown group": (
        lambda: bp.similarity(data(1), data(2), group=bp.groups.Unknown(8)),
        ValueError,
        "nothing is known",
    ),
    "size of the group": (
        lambda: bp.similarity(data(1), data(2), group=bp.groups.Permutation(5)),
        ValueError,
        "acts on 5 axes",
    ),
    "folds": (lambda: bp.similarity(data(1), data(2), folds=0), ValueError, "folds=0"),
    "sites of matrices": (
        lambda: bp.similarity(data(1), data(2), site="1"),
        ValueError,
        "two matrices were given",
    ),
    "a model and a matrix": (
        lambda: bp.similarity(nn.Linear(2, 2), data(2)),
        TypeError,
        "one of the two is a model",
    ),
    "no data": (lambda: bp.similarity(nn.ReLU(), nn.ReLU()), DataError, "without data"),
}


@pytest.mark.usefixtures("as_shipped")
@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_sense_is_refused(case: str) -> None:
    call, kind, message = REFUSED[case]
    with pytest.raises(kind, match=message):
        call()


def test_constant_axes_can_be_ignored() -> None:
    x = data(1)
    y = x * (torch.arange(8) != 2)
    found = bp.similarity(x[:, [0, 1, 3, 4, 5, 6, 7, 2]], y, group="monomial", constant="ignore")
    # Seven of eight axes match, and the norm of one side counts the dead one.
    assert found.in_sample == pytest.approx(7 / math.sqrt(7 * 8), abs=1e-9)
    assert "1 directions of the second never vary" in found.notes[0]
    assert bp.similarity(x, y, group="permutation").similarity > 0.8


def test_alignment_needs_groups_of_one_kind() -> None:
    moments = Crossed.of(data(1), data(2))
    with pytest.raises(ValueError, match="compare places of one kind"):
        align(bp.groups.Orthogonal(8), bp.groups.Permutation(8), moments)


# --- models ---------------------------------------------------------------------------------------


def batches(count: int = 6, size: int = 100) -> list[Tensor]:
    return list(torch.randn(count * size, 6, generator=seeded(7)).split(size))


def test_models_are_compared_up_to_the_group_of_each_site() -> None:
    a = network(0)
    twin = bp.reparametrize(
        a, "1", bp.groups.PositiveMonomial(12).draw(seeded(1)), example_input=batches()[0]
    )
    found = bp.similarity(a, twin, batches())
    assert list(found) == ["1", "3"]
    assert found["1"].group == bp.groups.PositiveMonomial(12)
    for result in found.values():
        assert result.similarity == pytest.approx(1.0, abs=1e-6)
        assert result.n_samples == result.n_examples == 600
    frame = found.to_dataframe()
    assert frame.loc["1", "group"] == "positive-monomial" and "similarity" in str(found)
    other = bp.similarity(a, network(1), batches(), site="1")
    assert 0 < other.similarity < 0.9 and other.std_error > 0
    kernels = bp.similarity(a, twin, batches(), site="1", measure="cka")
    assert kernels.similarity == pytest.approx(1.0, abs=1e-5)
    assert "within 6 batches" in kernels.notes[0] and kernels.std_error < 1e-5
    wide = bp.similarity(a, network(2, width=18), batches(), site="1")
    assert wide.dims == (12, 18)


def test_models_are_left_as_they_were() -> None:
    a, b = network(0).train(), network(1)
    b.eval()
    before = {name: value.clone() for name, value in a.state_dict().items()}
    state = torch.get_rng_state()
    bp.similarity(a, b, batches(2))
    assert a.training and not b.training
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in a.state_dict().items())
    assert not any(module._forward_hooks for module in a.modules())


def test_a_loader_that_shuffles_between_the_networks_is_noticed() -> None:
    inputs = torch.cat(batches())
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs), 100, shuffle=True)
    a, b = network(0), network(1)
    with pytest.raises(DataError, match="in another order to the second network"):
        bp.similarity(a, b, loader, other_data=loader)
    # One loader, shuffled or not, gives each batch to both.
    assert bp.similarity(a, b, loader, site="1").similarity < 0.9
    # Inputs in another form are not the same examples to a fingerprint, and are taken in order.
    scaled = [2 * batch for batch in batches()]
    assert bp.similarity(a, a, batches(), site="1", other_data=scaled).n_examples == 600
    with pytest.raises(DataError, match="100 examples and the other one of 0"):
        bp.similarity(a, b, batches(), other_data=batches(3))


def test_places_of_different_kinds_are_refused_unless_the_group_is_named() -> None:
    a, b = network(0), network(1, nn.GELU())
    with pytest.raises(SiteError, match="compare places of one kind"):
        bp.similarity(a, b, batches(), site="1")
    assert bp.similarity(a, b, batches(), site="1", group="permutation").similarity < 0.9
    with pytest.raises(SiteError, match="no site matches"):
        bp.similarity(a, b, batches(), site="nowhere")
    with pytest.raises(ValueError, match="other_site is given without site"):
        bp.similarity(a, b, batches(), other_site="1")
    with pytest.raises(SiteError, match="no site of the same name"):
        bp.similarity(a, nn.Sequential(nn.Sequential(*network(1))), batches())
    broken = network(0)
    nn.init.constant_(broken[0].weight, math.nan)
    with pytest.raises(DataError, match="values of 1 are NaN or infinite"):
        bp.similarity(broken, a, batches(), site="1")


def test_padding_counts_for_nothing() -> None:
    class Embedded(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            torch.manual_seed(seed)
            self.embed, self.up, self.down = nn.Embedding(20, 5), nn.Linear(5, 9), nn.Linear(9, 3)

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            return self.down(F.gelu(self.up(self.embed(input_ids))))

    ids = torch.randint(1, 20, (30, 7), generator=seeded(0))
    mask = (torch.arange(7) < torch.randint(2, 8, (30, 1), generator=seeded(1))).long()
    with torch.random.fork_rng(devices=[]):
        a, b = Embedded(0), Embedded(1)
    for group in ("permutation", "orthogonal"):
        found = [
            bp.similarity(
                a, b, [{"input_ids": torch.where(mask == 1, ids, fill), "attention_mask": mask}],
                site="gelu()", group=group, folds=1,
            )
            for fill in (0, 7)
        ]  # fmt: skip
        assert found[0].n_samples == int(mask.sum())
        assert found[0].similarity == pytest.approx(found[1].similarity, abs=1e-12)


@pytest.mark.parametrize("count", [1, 2, 40])
def test_how_far_samples_are_apart_keeps_the_digits_of_near_ones(count: int) -> None:
    """Far from the origin the digits of a product would be those of the offset."""
    from basis_probe.compare.samples import dissimilarities

    generator = torch.Generator().manual_seed(0)
    x = 2.0**20 + torch.randint(0, 9, (count, 5), generator=generator).double() * 2.0**-20
    found = dissimilarities(x, "euclidean")
    assert torch.allclose(found, (x[:, None] - x[None]).norm(dim=2), rtol=1e-11, atol=0)
    assert torch.equal(found, found.T)
