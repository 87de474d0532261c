"""Every group obeys the laws of groups, holds what it says and nothing else, and is read back."""

import math

import numpy
import pytest
import torch
from torch import Tensor

import basis_probe.algebra.groups as groups
from basis_probe.algebra.groups import (
    Blocks,
    DirectSum,
    GeneralLinear,
    Group,
    LineStabiliser,
    Monomial,
    Orthogonal,
    Permutation,
    Planes,
    PositiveMonomial,
    Privileged,
    SignedPermutation,
    Trivial,
    Unknown,
    group_from_name,
    meet,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


ELEMENTARY: tuple[Group, ...] = (
    GeneralLinear(6),
    Orthogonal(6),
    LineStabiliser(6),
    Permutation(6),
    SignedPermutation(6),
    PositiveMonomial(6),
    Monomial(6),
    Trivial(6),
    Planes(6),
    Planes(6, pairing="adjacent"),
)
BUILT: tuple[Group, ...] = (
    Blocks(GeneralLinear(3), count=4, copies=2),
    Blocks(GeneralLinear(6), count=1),
    Blocks(Planes(4), count=3),
    Blocks(PositiveMonomial(2), count=3),
    Blocks(Trivial(2), count=3, copies=2),
    DirectSum((Permutation(3), Permutation(5))),
    DirectSum((GeneralLinear(2), SignedPermutation(3), Orthogonal(2))),
    DirectSum((Blocks(Orthogonal(2), count=2), Planes(2), LineStabiliser(4))),
)
SMALL: tuple[Group, ...] = (
    GeneralLinear(1),
    Orthogonal(1),
    LineStabiliser(1),
    LineStabiliser(2),
    Permutation(1),
    Monomial(1),
    Trivial(1),
    Planes(2),
)
ALL = ELEMENTARY + BUILT + SMALL
EVERYWHERE = pytest.mark.parametrize("group", ALL, ids=repr)


# --- the laws -------------------------------------------------------------------------------------


@EVERYWHERE
def test_samples_products_inverses_and_the_identity_are_elements(group: Group) -> None:
    generator = seeded(1)
    for _ in range(5):
        a, b = group.sample(generator), group.sample(generator)
        assert a.dtype == torch.float64 and a.shape == (group.dim, group.dim)
        assert group.contains(a) and group.contains(b)
        assert group.contains(a @ b)
        assert group.contains(torch.linalg.inv(a))
    assert group.contains(torch.eye(group.dim))


@EVERYWHERE
def test_what_is_not_an_element(group: Group) -> None:
    general = torch.randn(group.dim, group.dim, generator=seeded(2), dtype=torch.float64)
    everything = all(isinstance(part, GeneralLinear) for part in _leaves(group))
    if not (everything and _is_whole(group)) and group.dim > 1:
        assert not group.contains(general)
    assert not group.contains(torch.zeros(group.dim, group.dim))
    singular = group.sample(seeded(3))
    singular[:, 0] = 0
    assert not group.contains(singular)
    broken = group.sample(seeded(3))
    broken[0, 0] = math.nan
    assert not group.contains(broken)
    broken[0, 0] = math.inf
    assert not group.contains(broken)


def _leaves(group: Group) -> list[Group]:
    if isinstance(group, Blocks):
        return _leaves(group.inner)
    if isinstance(group, DirectSum):
        return [leaf for part in group.parts for leaf in _leaves(part)]
    return [group]


def _is_whole(group: Group) -> bool:
    """True if the group is no proper block structure."""
    return not isinstance(group, Blocks | DirectSum) or (
        isinstance(group, Blocks) and group.count * group.copies == 1
    )


@EVERYWHERE
def test_samples_differ_unless_there_is_only_one(group: Group) -> None:
    generator = seeded(4)
    drawn = [group.sample(generator) for _ in range(12)]
    single = group.dim == 1 and isinstance(group, Permutation)
    assert single or isinstance(group, Trivial) or any(not a.equal(drawn[0]) for a in drawn)


@EVERYWHERE
def test_one_seed_is_one_element(group: Group) -> None:
    before = torch.random.get_rng_state()
    assert torch.equal(group.sample(seeded(5)), group.sample(seeded(5)))
    assert torch.equal(torch.random.get_rng_state(), before)


@EVERYWHERE
def test_samples_are_well_conditioned(group: Group) -> None:
    generator = seeded(6)
    for _ in range(20):
        assert float(torch.linalg.cond(group.sample(generator))) < 50


@EVERYWHERE
def test_repr_is_read_back(group: Group) -> None:
    again = eval(repr(group), vars(groups))
    assert again == group and repr(again) == repr(group) and hash(again) == hash(group)


def test_repr_looks_like_this() -> None:
    assert repr(Orthogonal(64)) == "Orthogonal(dim=64)"
    assert repr(Planes(4)) == "Planes(dim=4, pairing='half')"
    built = DirectSum((Permutation(3), Blocks(GeneralLinear(8), 4, 2)))
    assert repr(built) == (
        "DirectSum(parts=(Permutation(dim=3), "
        "Blocks(inner=GeneralLinear(dim=8), count=4, copies=2)))"
    )


@EVERYWHERE
def test_half_a_tolerance_is_near_enough_and_a_thousandfold_is_not(group: Group) -> None:
    a = group.sample(seeded(7))
    noise = torch.randn(a.shape, generator=seeded(8), dtype=torch.float64)
    scale = a.abs().amax(dim=1, keepdim=True)
    assert group.contains(a + 1e-8 * scale * noise)
    if group.dim > 1 and not all(isinstance(leaf, GeneralLinear) for leaf in _leaves(group)):
        assert not group.contains(a + 1e-3 * scale * noise)
        assert group.contains(a + 1e-3 * scale * noise, atol=0.1)


# --- what the attributes say ----------------------------------------------------------------------


@EVERYWHERE
def test_rescales_and_rotates_are_true_of_the_elements(group: Group) -> None:
    """Asked by trying: every scale of an axis or a plane, every turn of two or three axes."""
    dim = group.dim
    diagonals = [_diagonal(dim, {i: 2.0}) for i in range(dim)]
    diagonals += [_diagonal(dim, {i: 2.0, j: 2.0}) for i in range(dim) for j in range(i)]
    diagonals.append(2 * torch.eye(dim, dtype=torch.float64))
    # Copies scale together: take the diagonal part that all copies of a block share.
    if isinstance(group, Blocks):
        size, copies = group.inner.dim, group.copies
        inner = [_diagonal(size, {i: 2.0}) for i in range(size)]
        inner += [_diagonal(size, {i: 2.0, j: 2.0}) for i in range(size) for j in range(i)]
        rest = torch.eye(dim - size * copies, dtype=torch.float64)
        diagonals += [torch.block_diag(*[part] * copies, rest) for part in inner]
    assert group.rescales == any(group.contains(d) for d in diagonals)

    turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=torch.float64)
    turns = [_placed(dim, (i, j), turn) for i in range(dim) for j in range(dim) if i != j]
    v = torch.tensor([1.0, 2.0, -3.0], dtype=torch.float64)
    around = torch.eye(3, dtype=torch.float64) - 2 * v.outer(v) / 14
    if dim >= 3:
        turns += [_placed(dim, (i, i + 1, i + 2), around) for i in range(dim - 2)]
    if isinstance(group, Blocks) and group.inner.dim >= 2:
        part = _placed(group.inner.dim, (0, 1), turn)
        rest = torch.eye(dim - group.inner.dim * group.copies, dtype=torch.float64)
        turns.append(torch.block_diag(*[part] * group.copies, rest))
    assert group.rotates == any(group.contains(t) for t in turns)


def _diagonal(dim: int, values: dict[int, float]) -> Tensor:
    diagonal = torch.ones(dim, dtype=torch.float64)
    for i, value in values.items():
        diagonal[i] = value
    return diagonal.diag()


def _placed(dim: int, axes: tuple[int, ...], part: Tensor) -> Tensor:
    matrix = torch.eye(dim, dtype=torch.float64)
    for i, row in enumerate(axes):
        for j, column in enumerate(axes):
            matrix[row, column] = part[i, j]
    return matrix


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        (GeneralLinear(3), Privileged.NONE),
        (Orthogonal(3), Privileged.NONE),
        (LineStabiliser(3), Privileged.LINE),
        (Permutation(3), Privileged.AXES),
        (SignedPermutation(3), Privileged.AXES),
        (PositiveMonomial(3), Privileged.AXES),
        (Monomial(3), Privileged.AXES),
        (Trivial(3), Privileged.AXES),
        (Planes(4), Privileged.PLANES),
        (Unknown(3), Privileged.UNKNOWN),
        (Blocks(GeneralLinear(3), 4), Privileged.BLOCKS),
        (Blocks(GeneralLinear(3), 1, copies=2), Privileged.BLOCKS),
        (Blocks(GeneralLinear(3), 1), Privileged.NONE),
        (Blocks(Planes(4), 2), Privileged.PLANES),
        (Blocks(Monomial(4), 2), Privileged.AXES),
        (Blocks(Unknown(4), 2), Privileged.UNKNOWN),
        (DirectSum((Permutation(2), Monomial(2))), Privileged.AXES),
        (DirectSum((Planes(2), Planes(2))), Privileged.PLANES),
        (DirectSum((LineStabiliser(2), LineStabiliser(2))), Privileged.BLOCKS),
        (DirectSum((GeneralLinear(2), GeneralLinear(2))), Privileged.BLOCKS),
        (DirectSum((GeneralLinear(2), Permutation(2))), Privileged.BLOCKS),
        (DirectSum((Unknown(2), Permutation(2))), Privileged.UNKNOWN),
        (DirectSum((Orthogonal(2),)), Privileged.NONE),
    ],
    ids=repr,
)
def test_privileged(group: Group, expected: Privileged) -> None:
    assert group.privileged is expected


def test_every_kind_of_privilege_explains_itself() -> None:
    for kind in Privileged:
        assert kind.value[0].isupper() and kind.value.endswith(".")


@pytest.mark.parametrize("group", (*ALL, Unknown(3)), ids=repr)
def test_words(group: Group) -> None:
    sentence = group.describe()
    assert sentence[0].isupper() or sentence[0].isdigit()
    assert sentence.endswith(".") and ".." not in sentence and sentence.count(".") == 1
    assert group.latex.count("{") == group.latex.count("}")


# --- single groups --------------------------------------------------------------------------------


def test_general_linear_is_not_deceived_by_units() -> None:
    units = torch.tensor([1e-30, 1.0, 1e30], dtype=torch.float64).diag()
    assert GeneralLinear(3).contains(units @ haar_like(3) @ units)
    low_rank = torch.randn(5, 3, generator=seeded(9)) @ torch.randn(3, 5, generator=seeded(10))
    assert low_rank.dtype == torch.float32
    assert not GeneralLinear(5).contains(low_rank)
    # What is singular in float32 only is regular as it stands in float64.
    assert GeneralLinear(5).contains(low_rank.double())
    assert not GeneralLinear(2).contains([[1, 2], [2, 4]])
    assert GeneralLinear(2).contains([[1, 2], [3, 4]])


def haar_like(dim: int) -> Tensor:
    return Orthogonal(dim).sample(seeded(11))


def test_a_line_stabiliser_is_blind_to_what_a_layer_norm_is_blind_to() -> None:
    x = torch.randn(20, 7, generator=seeded(12), dtype=torch.float64)

    def shape(rows: Tensor) -> Tensor:
        """Angles between the rows behind a LayerNorm: all that a linear reader can rely on."""
        normed = torch.nn.functional.layer_norm(rows, (7,))
        return normed @ normed.T

    element = LineStabiliser(7).sample(seeded(13))
    assert float((shape(x @ element.T) - shape(x)).abs().max()) < 1e-9
    assert not LineStabiliser(7).contains(2 * torch.eye(7))
    assert not LineStabiliser(7).contains(haar_like(7))
    assert LineStabiliser(7).contains(torch.eye(7) + torch.outer(torch.ones(7), torch.arange(7.0)))
    projection = torch.eye(7, dtype=torch.float64) - 1 / 7
    assert not LineStabiliser(7).contains(projection)


def test_signs_and_scales_are_told_apart() -> None:
    flip = torch.diag(torch.tensor([1.0, -1.0, 1.0]))
    scale = torch.diag(torch.tensor([1.0, 2.0, 1.0]))
    held = {
        kind: (kind(3).contains(flip), kind(3).contains(scale))
        for kind in (Permutation, SignedPermutation, PositiveMonomial, Monomial)
    }
    assert held == {
        Permutation: (False, False),
        SignedPermutation: (True, False),
        PositiveMonomial: (False, True),
        Monomial: (True, True),
    }


def test_a_monomial_matrix_may_have_very_small_and_very_large_entries() -> None:
    assert PositiveMonomial(2).contains([[0.0, 1e-9], [1e9, 0.0]])
    assert not PositiveMonomial(2).contains([[1e-9, 1e-9], [0.0, 1.0]])
    assert not Permutation(2).contains([[1.0, 0.0], [1.0, 0.0]])


def test_planes_commute_with_rotary_embeddings_of_their_pairing() -> None:
    for pairing, other in (("half", "adjacent"), ("adjacent", "half")):
        group = Planes(8, pairing=pairing)  # pyright: ignore
        element = group.sample(seeded(14))
        angles = torch.tensor([1.0, 0.3, 0.1, 0.03], dtype=torch.float64)
        rotary = rotary_at(angles, pairing)
        assert float((element @ rotary - rotary @ element).abs().max()) < 1e-12
        elsewhere = rotary_at(angles, other)
        assert float((element @ elsewhere - elsewhere @ element).abs().max()) > 1e-3
        assert not Planes(8, pairing=other).contains(element)  # pyright: ignore
    mirrored = torch.diag(torch.tensor([1.0, -1.0]))
    assert not Planes(2).contains(mirrored)


def rotary_at(angles: Tensor, pairing: str) -> Tensor:
    """The rotation of every plane by its own angle, written out pair by pair."""
    dim = 2 * len(angles)
    matrix = torch.zeros(dim, dim, dtype=torch.float64)
    for plane, angle in enumerate(angles.tolist()):
        first = plane if pairing == "half" else 2 * plane
        second = plane + dim // 2 if pairing == "half" else 2 * plane + 1
        matrix[first, first] = matrix[second, second] = math.cos(angle)
        matrix[second, first], matrix[first, second] = math.sin(angle), -math.sin(angle)
    return matrix


def test_blocks_move_heads_as_wholes_and_their_copies_together() -> None:
    group = Blocks(GeneralLinear(2), count=2, copies=2)
    part = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    other = torch.tensor([[0.0, 1.0], [5.0, 1.0]], dtype=torch.float64)
    assert group.dim == 8
    assert group.contains(torch.block_diag(part, part, other, other))
    assert not group.contains(torch.block_diag(part, other, part, other))
    heads = torch.eye(4, dtype=torch.float64)
    assert group.contains(torch.kron(heads[[2, 3, 0, 1]], torch.eye(2, dtype=torch.float64)))
    assert not group.contains(torch.kron(heads[[1, 0, 2, 3]], torch.eye(2, dtype=torch.float64)))
    assert not group.contains(torch.kron(heads[[2, 1, 0, 3]], torch.eye(2, dtype=torch.float64)))
    assert not group.contains(torch.eye(8)[[0, 2, 1, 3, 4, 5, 6, 7]])
    assert not group.contains(torch.block_diag(part, part, 0 * other, 0 * other))


def test_blocks_do_what_they_do_in_attention() -> None:
    """Values changed by an element, the output's reader changed back: the same output."""
    group = Blocks(GeneralLinear(3), count=2)
    element = group.sample(seeded(15))
    generator = seeded(16)
    value = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    reader = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    patterns = torch.rand(2, 4, 4, generator=generator, dtype=torch.float64)

    def attend(values: Tensor, patterns: Tensor, reader: Tensor) -> Tensor:
        heads = values.reshape(4, 2, 3).transpose(0, 1)
        return (patterns @ heads).transpose(0, 1).reshape(4, 6) @ reader

    # Where the heads went is read off the element; their patterns go with them.
    order = element.reshape(2, 3, 2, 3).abs().amax(dim=(1, 3)).argmax(dim=1)
    changed = attend(value @ element.T, patterns[order], torch.linalg.inv(element).T @ reader)
    assert float((changed - attend(value, patterns, reader)).abs().max()) < 1e-12


def test_a_direct_sum_mixes_nothing_between_its_parts() -> None:
    group = DirectSum((GeneralLinear(2), Permutation(2)))
    element = group.sample(seeded(17))
    assert group.contains(element)
    element[0, 3] = 1e-3
    assert not group.contains(element)
    assert not group.contains(torch.eye(4)[[2, 3, 0, 1]])


# --- names and intersections ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [(group.name, group) for group in (*ELEMENTARY[:9], Unknown(6))]
    + [
        ("GL", GeneralLinear(6)),
        ("GL(n)", GeneralLinear(6)),
        ("General Linear", GeneralLinear(6)),
        ("O(n)", Orthogonal(6)),
        ("rotation", Orthogonal(6)),
        ("Rotations", Orthogonal(6)),
        ("permutations", Permutation(6)),
        ("S_n", Permutation(6)),
        ("Sn", Permutation(6)),
        ("signed_permutation", SignedPermutation(6)),
        ("positive monomial", PositiveMonomial(6)),
        ("POSITIVE_MONOMIAL", PositiveMonomial(6)),
        ("line_stabilizer", LineStabiliser(6)),
        ("identity", Trivial(6)),
    ],
)
def test_names(name: str, expected: Group) -> None:
    assert group_from_name(name, 6) == expected


def test_a_name_that_is_none() -> None:
    with pytest.raises(ValueError, match=r"no group is called 'orthogonel'; nearest: orthogonal"):
        group_from_name("orthogonel", 4)
    with pytest.raises(ValueError, match=r"nearest: none; all names: general-linear, .*unknown"):
        group_from_name("???", 4)
    with pytest.raises(ValueError, match="no group is called 'none'"):
        group_from_name("none", 4)


@pytest.mark.parametrize("name", ["blocks", "direct_sum"])
def test_a_name_that_needs_more_than_a_dimension(name: str) -> None:
    with pytest.raises(
        ValueError, match="needs more than a dimension: build it, for example "
    ) as e:
        group_from_name(name, 4)
    assert eval(str(e.value).split("for example ")[1], vars(groups)).dim == 4


MEETS = [
    (Permutation, PositiveMonomial, Permutation),
    (Permutation, Orthogonal, Permutation),
    (SignedPermutation, Orthogonal, SignedPermutation),
    (SignedPermutation, PositiveMonomial, Permutation),
    (Monomial, Orthogonal, SignedPermutation),
    (Monomial, PositiveMonomial, PositiveMonomial),
    (Monomial, SignedPermutation, SignedPermutation),
    (PositiveMonomial, Orthogonal, Permutation),
    (GeneralLinear, Monomial, Monomial),
    (GeneralLinear, LineStabiliser, LineStabiliser),
    (Trivial, Permutation, Trivial),
    (Trivial, LineStabiliser, Trivial),
    (Monomial, Monomial, Monomial),
]


@pytest.mark.parametrize(("one", "other", "expected"), MEETS)
def test_meet(one: type, other: type, expected: type) -> None:
    assert meet(one(4), other(4)) == meet(other(4), one(4)) == expected(4)


@pytest.mark.parametrize(("one", "other", "expected"), MEETS)
def test_a_meet_holds_what_both_hold(one: type, other: type, expected: type) -> None:
    generator = seeded(18)
    tried = [kind(4).sample(generator) for kind in _SUBGROUPS for _ in range(10)]
    for element in tried:
        both = one(4).contains(element) and other(4).contains(element)
        assert both == expected(4).contains(element)


_SUBGROUPS = (
    Trivial,
    Permutation,
    SignedPermutation,
    PositiveMonomial,
    Monomial,
    Orthogonal,
    LineStabiliser,
    GeneralLinear,
)


def test_the_unknown_absorbs() -> None:
    assert meet(Unknown(4), Trivial(4)) == meet(Trivial(4), Unknown(4)) == Unknown(4)


def test_meets_that_are_none_of_the_groups() -> None:
    with pytest.raises(ValueError, match="none of the groups here"):
        meet(LineStabiliser(4), Orthogonal(4))
    with pytest.raises(ValueError, match="different dimensions"):
        meet(Permutation(4), Permutation(5))
    assert meet(Planes(4), Planes(4)) == Planes(4)


# --- bad input ------------------------------------------------------------------------------------


@EVERYWHERE
def test_matrices_of_another_kind(group: Group) -> None:
    size = group.dim + 1
    with pytest.raises(ValueError, match=rf"shape \({size}, {size}\)"):
        group.contains(torch.eye(size))
    with pytest.raises(ValueError, match="give a square matrix"):
        group.contains(torch.ones(group.dim))
    with pytest.raises(ValueError, match="is complex"):
        group.contains(torch.eye(group.dim, dtype=torch.complex64))


def test_arrays_and_lists_and_other_dtypes_are_matrices_too() -> None:
    rows = [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    for matrix in (numpy.eye(3), torch.eye(3).half(), torch.eye(3).bool(), rows):
        for group in (Permutation(3), GeneralLinear(3), Orthogonal(3)):
            assert group.contains(matrix)
    assert Permutation(2).contains(torch.eye(2).requires_grad_())


@pytest.mark.parametrize("dim", [0, -1, True, 2.0])
def test_dimensions_that_are_none(dim: object) -> None:
    for kind in (*_SUBGROUPS, Unknown):
        with pytest.raises((ValueError, TypeError), match=r"whole number of at least 1|int"):
            kind(dim)  # pyright: ignore


def test_blocks_planes_and_sums_that_are_none() -> None:
    with pytest.raises(ValueError, match="count is 0"):
        Blocks(Permutation(2), 0)
    with pytest.raises(ValueError, match="copies is -1"):
        Blocks(Permutation(2), 1, copies=-1)
    with pytest.raises(ValueError, match="give an even dim"):
        Planes(5)
    with pytest.raises(ValueError, match="at least one part"):
        DirectSum(())


def test_the_unknown_claims_nothing() -> None:
    with pytest.raises(ValueError, match="cannot be said whether it holds"):
        Unknown(3).contains(torch.eye(3))
    with pytest.raises(ValueError, match="no element can be drawn"):
        Unknown(3).sample(seeded())
    with pytest.raises(ValueError, match="not known"):
        Blocks(Unknown(3), 2).sample(seeded())


def test_a_generator_elsewhere() -> None:
    class Elsewhere(torch.Generator):
        device = torch.device("cuda")  # pyright: ignore

    for group in (Trivial(2), Permutation(2), GeneralLinear(2)):
        with pytest.raises(ValueError, match="Generator on the CPU"):
            group.sample(Elsewhere())
