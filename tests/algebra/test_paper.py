"""What the paper states of intertwiner groups, held against their definition.

For a nonlinearity f, G = {A in GL(n) : there is B with f(A x) = B f(x) for all x}, and φ(A) = B.
Nothing here asks the package how it found a group: whether a matrix is in one is decided by fitting
B to samples and looking at others.

Source: C. Godfrey, D. Brown, T. Emerson, H. Kvinge, "On the Symmetries of Deep Learning Models and
their Internal Representations" (2022), arXiv 2205.14258, section 3, Table 1, appendix on GELU.
"""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from draws import seeded
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

import basis_probe as bp

Function = Callable[[Tensor], Tensor]
FIXED = settings(deadline=None, derandomize=True, database=None, max_examples=60)


class Row(NamedTuple):
    """A row of Table 1: f, the name of G, and what φ makes of the entries of A."""

    sigma: Function
    group: str
    phi: Function


def _power(d: int) -> Row:
    group = "general-linear" if d == 1 else "monomial"
    return Row(lambda x: x**d, group, lambda a: a**d)


TABLE: dict[str, Row] = {
    "x": Row(lambda x: x.clone(), "general-linear", lambda a: a),
    "sigmoid": Row(lambda x: 1 / (1 + torch.exp(-x)), "permutation", lambda a: a),
    "ReLU": Row(lambda x: torch.where(x > 0, x, 0), "positive-monomial", lambda a: a),
    "LeakyReLU": Row(lambda x: torch.where(x > 0, x, 0.01 * x), "positive-monomial", lambda a: a),
    "RBF": Row(
        lambda x: torch.exp(-x * x / 2) / math.sqrt(2 * math.pi), "signed-permutation", torch.abs
    ),
    **{f"x^{d}": _power(d) for d in (1, 2, 3, 4, 5)},
}
GELU: dict[str, Row] = {
    "GELU": Row(
        lambda x: x * (1 + torch.special.erf(x / math.sqrt(2))) / 2, "permutation", lambda a: a
    ),
    "GELU, by tanh": Row(
        lambda x: x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
        "permutation",
        lambda a: a,
    ),
    "torch's GELU": Row(functional.gelu, "permutation", lambda a: a),
}
ROWS = TABLE | GELU
BY_NAME = {"argnames": "name", "argvalues": list(ROWS)}


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def fitted(sigma: Function, a: Tensor, seed: int = 0) -> tuple[Tensor, float]:
    """The B nearest to f(A x) = B f(x), and how far other x are from obeying it, relative.

    Every sample weighs alike, however fast f grows, so that none hides the others.
    """
    dim = len(a)
    count = 40 * dim + 40
    x = normal(2 * count, dim, seed=seed)
    x = x * torch.logspace(-1, 0.7, 2 * count, dtype=torch.float64)[:, None]
    before, after = sigma(x), sigma(x @ a.T)
    weight = 1 / (before.norm(dim=1, keepdim=True) + after.norm(dim=1, keepdim=True) + 1e-300)
    before, after = before * weight, after * weight
    units = before.norm(dim=0)
    fit, check = slice(0, None, 2), slice(1, None, 2)
    b = torch.linalg.lstsq(before[fit] / units, after[fit], driver="gelsd").solution
    b = (b / units[:, None]).T
    error = (before[check] @ b.T - after[check]).norm() / after[check].norm()
    return b, float(error)


def plane_rotation(dim: int, angle: float) -> Tensor:
    turn = torch.eye(dim, dtype=torch.float64)
    turn[:2, :2] = torch.tensor(
        [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    )
    return turn


def candidates(dim: int, seed: int) -> dict[str, Tensor]:
    """Matrices of every kind, members of some group of the table and of no other."""
    order = torch.randperm(dim, generator=seeded(seed))
    p = torch.eye(dim, dtype=torch.float64)[order]
    scales = torch.exp2(2 * torch.rand(dim, generator=seeded(seed + 1), dtype=torch.float64) - 1)
    signs = torch.ones(dim, dtype=torch.float64)
    signs[seed % dim] = -1
    one = torch.ones(dim, dtype=torch.float64)
    one[-1] = 1.02
    found = {
        "the identity": torch.eye(dim, dtype=torch.float64),
        "a permutation": p,
        "a sign": p @ signs.diag(),
        "all signs": -p,
        "positive scales": p @ scales.diag(),
        "scales": p @ (scales * signs).diag(),
        "one scale near 1": p @ one.diag(),
        "all twice": 2 * p,
    }
    if dim > 1:
        shear = torch.eye(dim, dtype=torch.float64)
        shear[0, 1] = 0.5
        found |= {
            "any matrix": normal(dim, dim, seed=seed + 2) + 2 * torch.eye(dim),
            "a rotation": torch.linalg.qr(normal(dim, dim, seed=seed + 3)).Q,
            "a turn by 45 degrees": p @ plane_rotation(dim, math.pi / 4),
            "a turn by one degree": p @ plane_rotation(dim, math.pi / 180),
            "a shear": p @ shear,
            "a hair beside a permutation": p + 0.01 * normal(dim, dim, seed=seed + 4),
            "a mean added": p + 0.1,
        }
    return found


# --- Table 1 --------------------------------------------------------------------------------------


@pytest.mark.sample(default=27)
@pytest.mark.parametrize("dim", [1, 2, 3, 6])
@pytest.mark.parametrize(**BY_NAME)
def test_table_1_names_the_group(name: str, dim: int) -> None:
    row = ROWS[name]
    found = bp.intertwiner_group(row.sigma, dim)
    assert found.name == row.group
    assert found.dim == dim


@pytest.mark.sample(default=13)
@pytest.mark.parametrize("dim", [1, 2, 3, 6])
@pytest.mark.parametrize(**BY_NAME)
def test_every_member_has_the_b_that_the_table_says(name: str, dim: int) -> None:
    row = ROWS[name]
    found = bp.intertwiner_group(row.sigma, dim)
    generator = seeded(dim)
    for seed in range(6):
        a = found.sample(generator)
        b, error = fitted(row.sigma, a, seed)
        assert error < 1e-10
        assert torch.allclose(b, found.phi(a), rtol=1e-7, atol=1e-7 * float(b.abs().max()))
        assert torch.allclose(found.phi(a), row.phi(a), rtol=1e-12, atol=1e-12)


@pytest.mark.sample(default=10)
@pytest.mark.parametrize("dim", [1, 2, 3, 6])
@pytest.mark.parametrize(**BY_NAME)
def test_a_matrix_is_in_the_group_exactly_if_it_has_a_b(name: str, dim: int) -> None:
    row = ROWS[name]
    found = bp.intertwiner_group(row.sigma, dim)
    answers: set[bool] = set()
    for seed in range(3):
        for what, a in candidates(dim, seed).items():
            _, error = fitted(row.sigma, a, seed)
            # Nothing lies between the errors of rounding and those of a wrong claim.
            assert not 1e-10 < error < 1e-5, what
            assert found.contains(a) == (error < 1e-10), what
            answers.add(found.contains(a))
    assert answers == ({True} if row.group == "general-linear" else {True, False}) or (
        dim == 1 and row.group == "monomial"
    )


@pytest.mark.parametrize(**BY_NAME)
def test_singular_matrices_are_in_no_group(name: str) -> None:
    found = bp.intertwiner_group(ROWS[name].sigma, 3)
    assert not found.contains(torch.diag(torch.tensor([1.0, 0.0, 1.0])))
    assert not found.contains(torch.ones(3, 3))
    assert not found.contains(torch.zeros(3, 3))


# --- G is a group and φ a homomorphism ------------------------------------------------------------


@pytest.mark.sample(default=7)
@pytest.mark.parametrize("dim", [1, 2, 5])
@pytest.mark.parametrize(**BY_NAME)
def test_phi_is_a_homomorphism_of_groups(name: str, dim: int) -> None:
    found = bp.intertwiner_group(ROWS[name].sigma, dim)
    identity = torch.eye(dim, dtype=torch.float64)
    assert found.contains(identity) and torch.equal(found.phi(identity), identity)
    generator = seeded(17)
    drawn = [found.sample(generator) for _ in range(4)]
    for a, b in itertools.product(drawn, drawn):
        assert found.contains(a @ b) and found.image.contains(found.phi(a @ b))
        product = found.phi(a) @ found.phi(b)
        assert torch.allclose(found.phi(a @ b), product, rtol=1e-9, atol=1e-12)
    for a in drawn:
        inverse = torch.linalg.inv(a)
        assert found.contains(inverse)
        assert torch.allclose(found.phi(inverse) @ found.phi(a), identity, atol=1e-9)


@pytest.mark.sample(default=16)
@pytest.mark.parametrize("dim", [1, 2, 5])
@pytest.mark.parametrize(**BY_NAME)
def test_phi_is_sigma_of_a_by_the_inverse_of_sigma_of_one(name: str, dim: int) -> None:
    sigma = ROWS[name].sigma
    at_one = sigma(torch.eye(dim, dtype=torch.float64))
    assert float(torch.linalg.cond(at_one)) < 100
    found = bp.intertwiner_group(sigma, dim)
    generator = seeded(18)
    for _ in range(4):
        a = found.sample(generator)
        assert torch.allclose(found.phi(a), sigma(a) @ torch.linalg.inv(at_one), atol=1e-11)


@pytest.mark.parametrize(
    ("sigma", "dim"),
    [
        # f(1) = f(0), and f(1) = -(n - 1) f(0): where f(I) has no inverse.
        (lambda x: torch.sin(math.pi * x), 4),
        (lambda x: x**3 - x, 4),
        (lambda x: torch.cos(math.pi * x), 2),
        (lambda x: 1 - 4 * x * x, 4),
        (lambda x: x**4 - x * x, 3),
    ],
)
def test_phi_is_found_where_sigma_of_one_has_no_inverse(sigma: Function, dim: int) -> None:
    at_one = sigma(torch.eye(dim, dtype=torch.float64))
    assert float(torch.linalg.svdvals(at_one).min()) < 1e-12
    found = bp.intertwiner_group(sigma, dim)
    assert found.name == "signed-permutation"
    generator = seeded(19)
    for seed in range(4):
        a = found.sample(generator)
        b, error = fitted(sigma, a, seed)
        assert error < 1e-10
        assert torch.allclose(b, found.phi(a), atol=1e-7)


@pytest.mark.parametrize(("first", "last"), [(0.3, 1.0), (1.0, 1.0), (-1.0, 3.0), (0.5, -1.5)])
def test_sigma_of_one_is_invertible_as_the_two_values_say(first: float, last: float) -> None:
    """Because f(I) = (f(1) - f(0)) I + f(0) 1 1^T."""
    dim = 4
    at_one = torch.full((dim, dim), first, dtype=torch.float64).fill_diagonal_(last)
    said = last not in (first, -(dim - 1) * first)
    assert (int(torch.linalg.matrix_rank(at_one)) == dim) == said


def test_phi_forgets_the_signs_of_an_even_function_and_only_those() -> None:
    found = bp.intertwiner_group(TABLE["RBF"].sigma, 3)
    identity = torch.eye(3, dtype=torch.float64)
    generator = seeded(20)
    kernel = 0
    for _ in range(60):
        a = found.sample(generator)
        forgotten = torch.equal(found.phi(a), identity)
        assert forgotten == torch.equal(a.abs(), identity)
        kernel += forgotten
    assert kernel > 0


# --- the action on weights ------------------------------------------------------------------------

Layers = list[tuple[Tensor, Tensor]]
LEARNED = normal(3, 8, seed=99)


def _learned(x: Tensor) -> Tensor:
    """A small network of one number, which is in no table."""
    v, w, b = LEARNED
    return torch.tanh(x[..., None] * w + b) @ v


# Inside a network the powers stop at three: their composition must stay within double precision.
HIDDEN: dict[str, Function] = {
    **{name: row.sigma for name, row in ROWS.items() if name not in ("x^1", "x^4", "x^5")},
    "tanh": torch.tanh,
    "|x|": torch.abs,
    "ReLU²": lambda x: x.relu() ** 2,
    "learned": _learned,
}


def drawn_layers(widths: list[int], seed: int) -> Layers:
    generator = seeded(seed)
    layers: Layers = []
    for before, behind in itertools.pairwise(widths):
        w = torch.randn(behind, before, generator=generator, dtype=torch.float64)
        layers.append(
            (
                w / math.sqrt(before),
                torch.randn(behind, generator=generator, dtype=torch.float64),
            )
        )
    return layers


def run(x: Tensor, layers: Layers, sigmas: list[Function]) -> list[tuple[Tensor, Tensor]]:
    """Every layer's activations before and behind its nonlinearity; the last has none."""
    states: list[tuple[Tensor, Tensor]] = []
    for (w, b), sigma in itertools.zip_longest(layers, sigmas):
        z = x @ w.T + b
        x = z if sigma is None else sigma(z)
        states.append((z, x))
    return states


def acted(layers: Layers, elements: list[Tensor], images: list[Tensor]) -> Layers:
    """W_i' = A_i W_i φ(A_{i-1})^-1 and b_i' = A_i b_i, with nothing acting on input and output."""
    moved: Layers = []
    for place, (w, b) in enumerate(layers):
        if place > 0:
            w = torch.linalg.solve(images[place - 1], w, left=False)
        if place < len(elements):
            w, b = elements[place] @ w, elements[place] @ b
        moved.append((w, b))
    return moved


def apart(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the largest value; none between dead layers."""
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-300))


def differences(
    x: Tensor, layers: Layers, moved: Layers, elements: list[Tensor], sigmas: list[Function]
) -> tuple[float, float]:
    """How far the function moved, and the hidden states from A times what they were."""
    before, after = run(x, layers, sigmas), run(x, moved, sigmas)
    states = [
        apart(z_moved, z @ a.T)
        for (z, _), (z_moved, _), a in zip(before, after, elements, strict=False)
    ]
    return apart(after[-1][1], before[-1][1]), max(states)


@pytest.mark.slow
@FIXED
@given(
    st.lists(st.tuples(st.sampled_from(list(HIDDEN)), st.integers(1, 7)), min_size=1, max_size=4),
    st.integers(0, 10**6),
)
def test_the_action_keeps_the_function_and_moves_the_states(
    hidden: list[tuple[str, int]], seed: int
) -> None:
    sigmas = [HIDDEN[name] for name, _ in hidden]
    widths = [5, *(width for _, width in hidden), 3]
    layers = drawn_layers(widths, seed)
    x = normal(40, 5, seed=seed + 1)
    groups = [bp.intertwiner_group(HIDDEN[name], width) for name, width in hidden]
    generator = seeded(seed + 2)
    elements = [group.sample(generator) for group in groups]
    images = [group.phi(a) for group, a in zip(groups, elements, strict=True)]
    moved = acted(layers, elements, images)
    before, after = run(x, layers, sigmas), run(x, moved, sigmas)
    for place, (a, b) in enumerate(zip(elements, images, strict=True)):
        assert apart(after[place][0], before[place][0] @ a.T) < 1e-10
        assert apart(after[place][1], before[place][1] @ b.T) < 1e-10
        # What follows the layer undoes the change, of whatever comes to it and not of its own
        # hidden states alone: f_{>m}(B h; W') = f_{>m}(h; W).
        h = normal(40, len(a), seed=seed + 3)
        rest = slice(place + 1, None)
        undone = run(h @ b.T, moved[rest], sigmas[rest])[-1][1]
        assert apart(undone, run(h, layers[rest], sigmas[rest])[-1][1]) < 1e-10
    assert apart(after[-1][1], before[-1][1]) < 1e-10


@pytest.mark.parametrize("name", [name for name in HIDDEN if name != "x"])
def test_strangers_change_the_function(name: str) -> None:
    """Also with the B that serves them best on the very inputs."""
    sigma = HIDDEN[name]
    layers = drawn_layers([5, 4, 3], seed=7)
    x = normal(200, 5, seed=8)
    group = bp.intertwiner_group(sigma, 4)
    (z, h), _ = run(x, layers, [sigma])
    strangers = 0
    for what, a in candidates(4, seed=9).items():
        best = torch.linalg.lstsq(h, sigma(z @ a.T), driver="gelsd").solution.T
        moved = acted(layers, [a], [best])
        output, _ = differences(x, layers, moved, [a], [sigma])
        if group.contains(a):
            assert output < 1e-8, what
        else:
            assert output > 1e-4, what
            strangers += 1
    assert strangers >= 7


@pytest.mark.parametrize("name", ["RBF", "x^2", "x^3", "|x|", "ReLU²"])
def test_the_weights_behind_take_phi_of_a_and_not_a(name: str) -> None:
    sigma = HIDDEN[name]
    layers = drawn_layers([5, 4, 3], seed=10)
    x = normal(100, 5, seed=11)
    group = bp.intertwiner_group(sigma, 4)
    a = -group.sample(seeded(12)).abs() if name != "ReLU²" else group.sample(seeded(12))
    assert group.contains(a) and not torch.allclose(group.phi(a), a)
    right, states = differences(x, layers, acted(layers, [a], [group.phi(a)]), [a], [sigma])
    wrong, _ = differences(x, layers, acted(layers, [a], [a]), [a], [sigma])
    assert right < 1e-12 and states < 1e-12
    assert wrong > 0.1


def test_the_action_is_one_of_groups() -> None:
    """(A B) acts as B does first and A after it."""
    sigmas = [TABLE["x^2"].sigma, TABLE["ReLU"].sigma]
    layers = drawn_layers([5, 4, 6, 3], seed=13)
    groups = [bp.intertwiner_group(s, n) for s, n in zip(sigmas, (4, 6), strict=True)]
    generator = seeded(14)

    def images(elements: list[Tensor]) -> list[Tensor]:
        return [group.phi(a) for group, a in zip(groups, elements, strict=True)]

    first, second = ([group.sample(generator) for group in groups] for _ in range(2))
    both = [a @ b for a, b in zip(second, first, strict=True)]
    in_turn = acted(acted(layers, first, images(first)), second, images(second))
    for (w, b), (w_both, b_both) in zip(in_turn, acted(layers, both, images(both)), strict=True):
        assert torch.allclose(w, w_both, atol=1e-12) and torch.allclose(b, b_both, atol=1e-12)


# --- GELU -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(GELU))
def test_gelu_lets_permutations_pass_and_phi_is_the_identity_on_them(name: str) -> None:
    found = bp.intertwiner_group(GELU[name].sigma, 3)
    identity = torch.eye(3, dtype=torch.float64)
    for order in itertools.permutations(range(3)):
        p = identity[list(order)]
        assert found.contains(p) and torch.equal(found.phi(p), p)
    for scale in (-1.0, 0.5, 0.99, 1.01, 2.0):
        a = torch.diag(torch.tensor([1.0, scale, 1.0], dtype=torch.float64))
        assert not found.contains(a)
        assert fitted(GELU[name].sigma, a)[1] > 1e-4


@pytest.mark.parametrize("scale", [-3.0, -1.0, 0.5, 0.99, 1.01, 2.0])
def test_gelu_of_c_t_is_no_multiple_of_gelu_of_t(scale: float) -> None:
    """As its growth says: like t for large t and like t / 2 near 0, so the factor would be c twice.

    Between these, d = c would make Φ(c t) = Φ(t) for all t.
    """
    gelu = GELU["GELU"].sigma
    t = torch.linspace(-3, 3, 61, dtype=torch.float64)
    ratio = (gelu(scale * t) / gelu(t))[t != 0]
    assert float(ratio.max() - ratio.min()) > 1e-3
