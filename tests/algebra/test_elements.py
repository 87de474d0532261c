"""Every element is its matrix: acting, undoing, transposing, multiplying, in every form."""

import itertools
import re

import pytest
import torch
from draws import seeded
from torch import Tensor

from basis_probe.algebra.elements import (
    BlockElement,
    Dense,
    Element,
    Gathered,
    Identity,
    MonomialElement,
    PlaneElement,
    Product,
    Reflections,
    Sheared,
    SumElement,
    plane_axes,
)
from basis_probe.architecture.act import as_monomial


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def monomial(dim: int, seed: int) -> MonomialElement:
    return MonomialElement(torch.randperm(dim, generator=seeded(seed)), normal(dim, seed=seed))


def across(count: int, dim: int, seed: int) -> Reflections:
    vectors = normal(count, dim, seed=seed)
    return Reflections(vectors - vectors.mean(dim=1, keepdim=True))


DIM = 12


def elements(seed: int) -> tuple[Element, ...]:
    """One element of 12 axes in every form, with nothing special about it."""
    return (
        Identity(DIM),
        Dense(normal(DIM, DIM, seed=seed)),
        monomial(DIM, seed + 1),
        Reflections(normal(3, DIM, seed=seed + 2)),
        Reflections(torch.zeros(0, DIM)),
        Sheared(across(2, DIM, seed + 3), normal(DIM, seed=seed + 4)),
        Gathered(across(2, DIM, seed + 5), normal(DIM, seed=seed + 6)),
        PlaneElement(normal(6, seed=seed + 7), normal(6, seed=seed + 8), "half"),
        PlaneElement(normal(6, seed=seed + 9), normal(6, seed=seed + 10), "adjacent"),
        BlockElement(
            torch.randperm(3, generator=seeded(seed + 11)),
            (monomial(2, seed), Dense(normal(2, 2, seed=seed + 12)), Identity(2)),
            copies=2,
        ),
        BlockElement(
            torch.randperm(3, generator=seeded(seed + 13)),
            tuple(Dense(normal(4, 4, seed=seed + 14 + block)) for block in range(3)),
        ),
        SumElement((Dense(normal(5, 5, seed=seed + 18)), monomial(7, seed + 19))),
        Product((monomial(DIM, seed + 20), Reflections(normal(2, DIM, seed=seed + 21)))),
    )


ALL = elements(seed=100)
OTHERS = elements(seed=200)
EVERY = pytest.mark.parametrize("element", ALL, ids=lambda element: type(element).__name__)


def _close(a: Tensor, b: Tensor, tolerance: float = 1e-12) -> bool:
    return float((a - b).abs().max()) <= tolerance * max(1.0, float(b.abs().max()))


@EVERY
def test_the_matrix_is_in_float64_and_its_own(element: Element) -> None:
    matrix = element.matrix()
    assert matrix.shape == (element.dim, element.dim) == (DIM, DIM)
    assert matrix.dtype == torch.float64 and matrix.device.type == "cpu"
    again = element.matrix()
    matrix.zero_()
    assert torch.equal(element.matrix(), again)


@EVERY
@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
def test_acting_is_multiplying_along_the_axis(element: Element, axis: int) -> None:
    shape = [2, 3, 4]
    shape[axis] = DIM
    x = normal(*shape, seed=1)
    expected = torch.tensordot(element.matrix(), x, dims=([1], [axis])).movedim(0, axis)
    assert _close(element.act(x, axis=axis), expected)


@EVERY
def test_acting_on_one_vector(element: Element) -> None:
    v = normal(DIM, seed=2)
    assert _close(element.act(v), element.matrix() @ v)


@EVERY
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_acting_keeps_the_dtype(element: Element, dtype: torch.dtype) -> None:
    x = normal(5, DIM, seed=3).to(dtype)
    acted = element.act(x)
    assert acted.dtype == dtype and acted.shape == x.shape
    tolerance = 50 * torch.finfo(dtype).eps
    assert _close(acted.double(), x.double() @ element.matrix().T, tolerance)


@EVERY
def test_acting_leaves_the_tensor_alone_and_shares_nothing_with_it(element: Element) -> None:
    x = normal(3, DIM, seed=4)
    before = x.clone()
    element.act(x).zero_()
    element.act(x.T, axis=0).zero_()
    assert torch.equal(x, before)


@EVERY
def test_acting_can_be_differentiated(element: Element) -> None:
    x = normal(DIM, seed=5).requires_grad_()
    (element.act(x) * normal(DIM, seed=6)).sum().backward()
    assert x.grad is not None
    assert _close(x.grad, element.matrix().T @ normal(DIM, seed=6))


@EVERY
def test_inverses_undo(element: Element) -> None:
    inverse = element.inverse()
    assert _close(inverse.matrix() @ element.matrix(), torch.eye(DIM), 1e-9)
    x = normal(4, DIM, seed=7)
    assert _close(inverse.act(element.act(x)), x, 1e-9)


@EVERY
def test_transposes_are_transposed(element: Element) -> None:
    assert _close(element.transpose().matrix(), element.matrix().T)
    assert _close(element.transpose().transpose().matrix(), element.matrix())


@EVERY
def test_inverses_and_transposes_keep_the_form(element: Element) -> None:
    assert type(element.inverse()) is type(element)
    turned = {Sheared: Gathered, Gathered: Sheared}.get(type(element), type(element))
    assert type(element.transpose()) is turned


@pytest.mark.parametrize(
    ("one", "other"),
    list(itertools.product(ALL, OTHERS)),
    ids=lambda element: type(element).__name__,
)
def test_products_are_products(one: Element, other: Element) -> None:
    product = one @ other
    assert _close(product.matrix(), one.matrix() @ other.matrix())
    x = normal(2, DIM, seed=8)
    assert _close(product.act(x), one.act(other.act(x)), 1e-11)


@pytest.mark.parametrize(
    ("one", "other"),
    list(zip(ALL, OTHERS, strict=True)),
    ids=lambda element: type(element).__name__,
)
def test_products_of_one_form_keep_it(one: Element, other: Element) -> None:
    assert type(one @ other) is type(one)
    assert type(one @ Identity(DIM)) is type(one)
    assert type(Identity(DIM) @ one) is type(one)


def test_products_of_two_forms_are_dense_unless_factors_are_kept() -> None:
    assert type(ALL[2] @ ALL[3]) is Dense
    assert type(ALL[7] @ ALL[8]) is Dense
    kept = ALL[12] @ ALL[2]
    assert isinstance(kept, Product) and len(kept.factors) == 3
    assert isinstance(ALL[2] @ ALL[12], Product)


def test_copies_of_a_block_are_changed_alike() -> None:
    parts = (Dense(normal(2, 2)), Dense(normal(2, 2, seed=1)))
    keys = BlockElement(torch.tensor([1, 0]), parts)
    queries = keys.copied(3)
    assert (keys.dim, queries.dim, queries.copies) == (4, 12, 3)
    first, second = parts[0].matrix(), parts[1].matrix()
    expected = torch.zeros(12, 12, dtype=torch.float64)
    expected[6:, :6] = torch.block_diag(first, first, first)
    expected[:6, 6:] = torch.block_diag(second, second, second)
    assert torch.equal(queries.matrix(), expected)
    assert torch.equal(queries.copied(1).matrix(), keys.matrix())
    with pytest.raises(ValueError, match="copies is 0"):
        keys.copied(0)


def test_blocks_of_different_sizes_multiply_as_matrices() -> None:
    two = BlockElement(torch.tensor([1, 0]), (Identity(2), Identity(2)))
    four = BlockElement(torch.tensor([1, 0, 3, 2]), tuple(Identity(1) for _ in range(4)))
    copied = BlockElement(torch.tensor([1, 0]), (Identity(1), Identity(1)), copies=2)
    for a, b in itertools.permutations((two, four, copied), 2):
        assert torch.equal((a @ b).matrix(), a.matrix() @ b.matrix())
    sums = SumElement((Identity(1), Identity(3))), SumElement((Identity(3), Identity(1)))
    assert type(sums[0] @ sums[1]) is Dense


@pytest.mark.parametrize(("first", "second"), [(1, 3), (3, 1), (2, 6), (6, 2)])
def test_blocks_of_one_size_multiply_in_blocks_whatever_their_copies(
    first: int, second: int
) -> None:
    generator = torch.Generator().manual_seed(first)
    one, other = (
        BlockElement(
            torch.randperm(6 // copies, generator=generator),
            tuple(Dense(normal(2, 2, seed=10 * copies + place)) for place in range(6 // copies)),
            copies,
        )
        for copies in (first, second)
    )
    product = one @ other
    assert isinstance(product, BlockElement) and len(product.parts) == 6
    assert _close(product.matrix(), one.matrix() @ other.matrix())


def test_products_on_many_axes_are_not_written_out() -> None:
    dim = 40_000
    blocks = BlockElement(torch.arange(dim // 2), (Dense(normal(2, 2)),) * (dim // 2))
    product = blocks @ monomial(dim, 1)
    x = normal(dim, seed=2)
    assert _close(product.act(x), blocks.act(monomial(dim, 1).act(x)))


def _on_axes() -> list[Element]:
    """Blocks that keep axes, and some that do not."""
    orders = torch.tensor([2, 0, 1])
    quarter = PlaneElement(torch.tensor([0.0, 2.0]), torch.tensor([-3.0, 0.0]), "half")
    turned = PlaneElement(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 0.0]), "half")
    axes = monomial(4, 3), quarter, Product((monomial(4, 5), monomial(4, 6)))
    return [
        BlockElement(orders, axes),
        BlockElement(orders, axes, copies=2),
        BlockElement(orders, (SumElement((Identity(2), monomial(2, 4))),) * 3, copies=3),
        BlockElement(orders, (*axes[:2], turned)),
        BlockElement(orders, (Dense(normal(4, 4)), *axes[:2]), copies=2),
    ]


@pytest.mark.parametrize("element", _on_axes())
def test_blocks_that_keep_axes_are_known_from_their_parts(element: Element) -> None:
    found, written = as_monomial(element), as_monomial(Dense(element.matrix()))
    assert (found is None) == (written is None)
    if found is not None and written is not None:
        assert torch.equal(found[0], written[0]) and _close(found[1], written[1])


def test_reflections_are_orthogonal_and_mirror_their_vectors() -> None:
    vectors = normal(4, DIM, seed=9)
    turn = Reflections(vectors).matrix()
    assert _close(turn.T @ turn, torch.eye(DIM))
    assert _close(Reflections(vectors[:1]).act(vectors[0]), -vectors[0])
    last_first = Reflections(vectors[:1]).matrix() @ Reflections(vectors[1:2]).matrix()
    assert _close(Reflections(vectors[:2]).matrix(), last_first)
    for scale in (1e-200, 1e200):
        assert _close(Reflections(vectors * scale).matrix(), turn)


def test_a_reflection_of_many_axes_needs_no_matrix() -> None:
    dim = 200_000  # as a matrix, 320 GB
    x = normal(2, dim, seed=10)
    turn = Reflections(normal(4, dim, seed=11))
    acted = turn.act(x)
    assert _close(acted.norm(dim=1), x.norm(dim=1))
    assert _close(turn.inverse().act(acted), x)
    wide = Sheared(across(2, dim, seed=12), normal(dim, seed=13) / dim)
    assert _close(wide.inverse().act(wide.act(x)), x, 1e-10)


def test_planes_multiply_complex_numbers() -> None:
    for pairing in ("half", "adjacent"):
        first, second = plane_axes(6, pairing)
        real, imaginary = normal(3, seed=14), normal(3, seed=15)
        x = normal(6, seed=16)
        acted = PlaneElement(real, imaginary, pairing).act(x)
        expected = torch.complex(real, imaginary) * torch.complex(x[first], x[second])
        assert _close(acted[first], expected.real) and _close(acted[second], expected.imag)
    size = torch.tensor([1e200], dtype=torch.float64)
    huge = PlaneElement(size, size).inverse()
    assert _close(huge.real * 1e200, torch.tensor([0.5], dtype=torch.float64))


def test_what_is_given_is_kept_in_float64_without_its_graph() -> None:
    entries = normal(2, 2).float().requires_grad_()
    kept = Dense(entries).entries
    assert kept.dtype == torch.float64 and not kept.requires_grad


def unchecked(kind: type[Element], **fields: object) -> Element:
    """The element, past the checks of annotations, which run in tests only."""
    element = object.__new__(kind)
    for name, value in fields.items():
        object.__setattr__(element, name, value)
    element.__post_init__()  # pyright: ignore
    return element


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: unchecked(Dense, entries=torch.ones(2, 3)),
            r"of shape \[2, 3\]: give a square matrix",
        ),
        (lambda: Dense(torch.tensor([[float("nan")]])), "the entries are not all finite"),
        (lambda: Dense(torch.ones(2, 2)).inverse(), "2 x 2 matrix is singular"),
        (lambda: MonomialElement(torch.tensor([0, 0]), torch.ones(2)), "columns are no order"),
        (
            lambda: unchecked(MonomialElement, columns=torch.tensor([0]), factors=torch.ones(2)),
            "1 columns and 2 factors",
        ),
        (lambda: MonomialElement(torch.tensor([0]), torch.zeros(1)), "a factor is zero"),
        (lambda: Reflections(torch.zeros(1, 3)), "a vector is zero"),
        (lambda: Sheared(Identity(2), torch.ones(3)), "3 entries and the turn acts on 2"),
        (lambda: Sheared(Reflections(torch.eye(2)[:1]), torch.ones(2)), "off its line"),
        (lambda: Gathered(Reflections(torch.eye(2)[:1]), torch.ones(2)), "off its line"),
        (lambda: Sheared(Identity(2), -torch.ones(2) / 2).inverse(), "all-ones vector to zero"),
        (
            lambda: unchecked(PlaneElement, real=torch.ones(1), imaginary=torch.ones(2)),
            "1 real and 2 imaginary parts",
        ),
        (
            lambda: unchecked(
                PlaneElement, real=torch.ones(1), imaginary=torch.ones(1), pairing="x"
            ),
            "pairing 'x' is not known",
        ),
        (lambda: PlaneElement(torch.zeros(1), torch.zeros(1)), "a plane is multiplied by zero"),
        (lambda: BlockElement(torch.tensor([1, 1]), (Identity(1),) * 2), "order are no order"),
        (lambda: BlockElement(torch.tensor([0]), (Identity(1),) * 2), "1 places and 2 parts"),
        (
            lambda: BlockElement(torch.tensor([0, 1]), (Identity(1), Identity(2))),
            r"sizes \[1, 2\]: give blocks of one size",
        ),
        (lambda: SumElement(()), "a sum of no elements"),
        (lambda: Product(()), "a product of no elements"),
        (lambda: Product((Identity(1), Identity(2))), r"factors have sizes \[1, 2\]"),
        (lambda: Identity(2) @ Identity(3), "on 2 axes was multiplied by one on 3"),
        (lambda: Identity(3).act(torch.ones(2)), "has no 3 entries along axis -1"),
        (lambda: Identity(3).act(torch.ones(3), axis=1), "has no 3 entries along axis 1"),
        (lambda: Identity(2).act(torch.tensor([1, 2])), "give floating-point numbers"),
    ],
)
def test_what_is_no_element(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        make()  # pyright: ignore
    assert re.search(r": give |: leave |and has no inverse", str(error.value))


def test_products_with_what_is_no_element() -> None:
    with pytest.raises(TypeError):
        _ = Identity(2) @ torch.eye(2)  # pyright: ignore
