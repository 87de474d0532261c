"""Every group obeys the laws of groups, holds what it says and nothing else, and is read back."""

import math

import numpy
import pytest
import torch
from draws import seeded
from torch import Tensor

import basis_probe.algebra.groups as groups
from basis_probe.algebra.elements import BlockElement, Dense, MonomialElement, SumElement
from basis_probe.algebra.groups import (
    Blocks,
    DirectSum,
    GeneralLinear,
    Group,
    LineRotations,
    LineStabiliser,
    Monomial,
    OnAxes,
    Orthogonal,
    Permutation,
    Planes,
    PositiveMonomial,
    Privileged,
    QuarterTurns,
    SignedPermutation,
    SignedPlanes,
    Signs,
    Trivial,
    Unknown,
    group_from_name,
)

ELEMENTARY: tuple[Group, ...] = (
    GeneralLinear(6),
    Orthogonal(6),
    LineStabiliser(6),
    LineRotations(6),
    Permutation(6),
    SignedPermutation(6),
    PositiveMonomial(6),
    Monomial(6),
    Trivial(6),
    Planes(6),
    Signs(6),
    SignedPlanes(6),
    Planes(6, pairing="adjacent"),
    SignedPlanes(6, pairing="adjacent"),
    QuarterTurns(6),
    QuarterTurns(6, pairing="adjacent"),
)
BUILT: tuple[Group, ...] = (
    Blocks(GeneralLinear(3), count=4, copies=2),
    Blocks(GeneralLinear(6), count=1),
    Blocks(Planes(4), count=3),
    Blocks(PositiveMonomial(2), count=3),
    Blocks(Trivial(2), count=3, copies=2),
    Blocks(GeneralLinear(2), count=3, order="kept"),
    Blocks(SignedPlanes(4), count=2, copies=2, order="kept"),
    Blocks(SignedPlanes(4), count=3, copies=2, alike=True),
    Blocks(Monomial(2), count=3, order="kept", alike=True),
    DirectSum((Permutation(3), Permutation(5))),
    DirectSum((GeneralLinear(2), SignedPermutation(3), Orthogonal(2))),
    DirectSum((Blocks(Orthogonal(2), count=2), Planes(2), LineStabiliser(4))),
    DirectSum((Permutation(4), Monomial(4)), order="shared"),
    DirectSum((PositiveMonomial(3), SignedPermutation(3), Permutation(3)), order="shared"),
)
SMALL: tuple[Group, ...] = (
    GeneralLinear(1),
    Orthogonal(1),
    LineStabiliser(1),
    LineStabiliser(2),
    LineRotations(1),
    LineRotations(2),
    Permutation(1),
    Monomial(1),
    Trivial(1),
    Planes(2),
    Signs(1),
    SignedPlanes(2),
    QuarterTurns(2),
)
ALL = ELEMENTARY + BUILT + SMALL
EVERYWHERE = pytest.mark.parametrize("group", ALL, ids=repr)


# --- the laws -------------------------------------------------------------------------------------


@pytest.mark.sample(default=21)
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
    kept = Blocks(Planes(2), 3, order="kept")
    assert repr(kept) == (
        "Blocks(inner=Planes(dim=2, pairing='half'), count=3, copies=1, order='kept')"
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


@pytest.mark.sample(default=20)
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
        (LineRotations(3), Privileged.LINE),
        (Blocks(SignedPlanes(4), 2, alike=True), Privileged.AXES),
        (Permutation(3), Privileged.AXES),
        (SignedPermutation(3), Privileged.AXES),
        (PositiveMonomial(3), Privileged.AXES),
        (Monomial(3), Privileged.AXES),
        (Trivial(3), Privileged.AXES),
        (Planes(4), Privileged.PLANES),
        (SignedPlanes(4), Privileged.AXES),
        (QuarterTurns(4), Privileged.AXES),
        (Signs(3), Privileged.AXES),
        (Blocks(GeneralLinear(3), 4, order="kept"), Privileged.BLOCKS),
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


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [(group.name, group) for group in (*ELEMENTARY[:11], Unknown(6))]
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
        ("sign", Signs(6)),
        ("sign flips", Signs(6)),
        ("signed_plane", SignedPlanes(6)),
        ("quarter_turn", QuarterTurns(6)),
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


# --- elements -------------------------------------------------------------------------------------


@EVERYWHERE
def test_a_draw_is_the_sample_in_its_own_form(group: Group) -> None:
    drawn = group.draw(seeded(20))
    assert torch.equal(drawn.matrix(), group.sample(seeded(20)))
    assert group.contains(drawn) and group.excess(drawn) == 0


@pytest.mark.sample(default=18)
@EVERYWHERE
def test_generic_elements_are_elements(group: Group) -> None:
    generator = seeded(21)
    before = torch.random.get_rng_state()
    for _ in range(5):
        a, b = group.generic(generator), group.generic(generator)
        assert group.contains(a) and group.contains(a @ b) and group.contains(a.inverse())
        assert float(torch.linalg.cond(a.matrix())) < 100
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("dim", [2, 3, 6, 64])
@pytest.mark.parametrize("kind", [GeneralLinear, Orthogonal, LineStabiliser])
def test_generic_elements_mix_every_axis_with_every_other(kind: type, dim: int) -> None:
    for seed in range(5):
        assert float(kind(dim).generic(seeded(seed)).matrix().abs().min()) > 0


@pytest.mark.parametrize("kind", [GeneralLinear, Orthogonal, LineStabiliser])
def test_generic_elements_of_many_axes_need_no_matrix(kind: type) -> None:
    dim = 100_000  # as a matrix, 80 GB
    x = torch.randn(2, dim, generator=seeded(22), dtype=torch.float64)
    element = kind(dim).generic(seeded(23))
    acted = element.act(x)
    assert float((acted - x).abs().median()) > 0.1
    assert float((element.inverse().act(acted) - x).abs().max()) < 1e-9


@EVERYWHERE
def test_a_matrix_is_read_as_an_element(group: Group) -> None:
    a = group.sample(seeded(24))
    read = group.element(a)
    assert torch.equal(read.matrix(), a) or float((read.matrix() - a).abs().max()) < 1e-15
    assert type(read) is type(group.draw(seeded(24)))
    assert torch.equal(group.element(a.numpy()).matrix(), read.matrix())
    x = torch.randn(3, group.dim, generator=seeded(25), dtype=torch.float64)
    assert float((read.act(x) - x @ a.T).abs().max()) < 1e-12
    noisy = a + 1e-8 * torch.randn(a.shape, generator=seeded(26), dtype=torch.float64)
    assert float((group.element(noisy).matrix() - a).abs().max()) < 1e-6


@EVERYWHERE
def test_an_element_of_the_right_form_is_kept(group: Group) -> None:
    for element in (group.draw(seeded(27)), group.generic(seeded(28))):
        assert group.element(element) is element
    written = Dense(group.sample(seeded(29)))
    read = group.element(written)
    assert float((read.matrix() - written.entries).abs().max()) < 1e-15
    # A matrix without a form gets the one that the group has.
    assert type(read) is type(group.draw(seeded(29)))


@pytest.mark.parametrize("factors", ["one", "signs", "scales", "signed scales", "tiny", "single"])
@pytest.mark.parametrize("kind", [Permutation, SignedPermutation, PositiveMonomial, Monomial])
@pytest.mark.parametrize("dim", [1, 5, 6])
def test_elements_that_move_axes_are_taken_where_their_matrices_are(
    kind: type[OnAxes], dim: int, factors: str
) -> None:
    scales = torch.rand(dim, generator=seeded(32), dtype=torch.float64) + 0.5
    signs = torch.where(torch.arange(dim) % 2 == 0, -1.0, 1.0).double()
    values = {
        "one": torch.ones(dim, dtype=torch.float64),
        "signs": signs,
        "scales": scales,
        "signed scales": signs * scales,
        "tiny": scales * 1e-30,
        "single": scales.float(),
    }[factors]
    element = MonomialElement(torch.randperm(dim, generator=seeded(33)), values)
    group = kind(6)
    try:
        read = group.element(element.matrix())
    except ValueError as error:
        with pytest.raises(ValueError) as raised:
            group.element(element)
        assert str(raised.value) == str(error)
    else:
        assert group.element(element) is element
        assert torch.equal(read.matrix(), element.matrix())
    with pytest.raises(ValueError, match="tolerance"):
        group.element(element, atol=2.0)


def test_blocks_in_another_division_are_read_again() -> None:
    four = Blocks(Orthogonal(1), 4).draw(seeded(30))
    two = DirectSum((Orthogonal(2), Orthogonal(2)))
    kept = Blocks(Orthogonal(2), 2, order="kept")
    signs = Blocks(Orthogonal(1), 4, order="kept").draw(seeded(30))
    assert isinstance(four, BlockElement) and len(four.parts) == 4
    for group in (two, kept):
        read = group.element(signs)
        assert read is not signs and isinstance(read, SumElement | BlockElement)
        assert len(read.parts) == 2
        assert torch.equal(read.matrix(), signs.matrix())


@EVERYWHERE
def test_excess_grows_with_the_violation(group: Group) -> None:
    if group.dim == 1 or all(isinstance(leaf, GeneralLinear) for leaf in _leaves(group)):
        return
    a = group.sample(seeded(31))
    noise = torch.randn(a.shape, generator=seeded(32), dtype=torch.float64)
    sizes = [group.excess(a + size * noise) for size in (1e-4, 1e-3, 1e-2)]
    assert 1e-5 < sizes[0] < sizes[1] < sizes[2] < 1
    assert sizes[1] == pytest.approx(10 * sizes[0], rel=0.2)
    for matrix in (torch.zeros(group.dim, group.dim), a * math.nan, a * math.inf):
        assert math.isinf(group.excess(matrix))
    # One row twice: no inverse, whatever else is wrong.
    twice = noise.clone()
    twice[0] = twice[1]
    assert math.isinf(group.excess(twice))


OUTSIDE = [
    (Orthogonal(2), [[1.0, 0.5], [0.0, 1.0]], r"columns 0 and 1 have the product 0.5, 0.5 off"),
    (Orthogonal(2), [[2.0, 0.0], [0.0, 1.0]], "column 0 has length 2, not 1, 3 off"),
    (LineStabiliser(3), [[1.0, 0, 0], [0, 2, 0], [0, 0, 1]], "rows 1 and 1 are not those of a"),
    (LineStabiliser(2), [[1.0, -1.0], [-1.0, 1.0]], "the all-ones vector goes to zero"),
    (LineStabiliser(2), [[1.1, 0.1], [-0.1, 0.9]], "the all-ones vector leaves its line"),
    (LineRotations(2), [[2.0, 1.0], [1.0, 2.0]], "are not those of a turn"),
    (LineRotations(2), [[0.0, -1.0], [1.0, 0.0]], "neither kept nor reversed"),
    (
        Blocks(Monomial(1), 2, order="kept", alike=True),
        [[1.0, 0.0], [0.0, 2.0]],
        "block 1 is not changed as block 0 is",
    ),
    (Permutation(3), [[1, 0, 0], [0, 1, 0.2], [0, 0, 1.0]], "row 1 has a second entry of 0.2 besi"),
    (Permutation(2), [[0.0, 3.0], [1.0, 0.0]], "row 0 has the factor 3, 2 off where 1e-06 is all"),
    (Permutation(2), [[1.0, 0.0], [0.0, -1.0]], "row 1 is reversed: its factor is -1, 2 off"),
    (Monomial(2), [[1.0, 0.0], [1.0, 0.0]], "two rows take the same axis"),
    (Monomial(2), [[1.0, 0.0], [0.0, 0.0]], "row 1 is zero"),
    (Trivial(2), [[1.0, 0.3], [0.0, 1.0]], r"entry \[0, 1\] is 0.3, not 0, 0.3 off"),
    (Signs(2), [[0.0, 1.0], [1.0, 0.0]], "row 0 takes another axis, 1 off"),
    (Planes(2), [[1.0, 0.0], [0.0, -1.0]], "no multiple of a complex number is near plane 0"),
    (
        Planes(2),
        [[1.0, 0.0], [0.4, 1.0]],
        r"entry \[0, 1\] is 0, where one complex number for every plane gives -0.2",
    ),
    (SignedPlanes(4), torch.eye(4)[[1, 0, 2, 3]], "row 0 takes an axis of another plane"),
    (QuarterTurns(2), [[1.0, 0.0], [0.0, -1.0]], "plane 0 is reflected, 2 off"),
    (Blocks(Permutation(1), 2, order="kept"), [[0.0, 1.0], [1.0, 0.0]], "takes from the blocks"),
    (Blocks(Permutation(1), 1, copies=2), [[1.0, 0.0], [0.0, 2.0]], "not the same in all its cop"),
    (Blocks(Trivial(1), 2), [[1.0, 0.0], [1.0, 0.0]], "two blocks take from one block"),
    (Blocks(Trivial(1), 2), [[1.0, 0.0], [0.0, 0.0]], "block 1 is zero"),
    (Blocks(Trivial(1), 2), [[1.0, 0.0], [0.0, 3.0]], r"in block 1, entry \[0, 0\] is 3, not 1"),
    (
        DirectSum((Trivial(1),) * 2),
        [[1.0, 0.5], [0.0, 1.0]],
        "row 0 takes 0.5 from column 1, which",
    ),
    (DirectSum((Trivial(1),) * 2), [[1.0, 0.0], [0.0, 2.0]], "in part 1, entry"),
    (DirectSum((Trivial(1),) * 2), [[1.0, 0.0], [0.0, 0.0]], "row 1 is zero"),
    (GeneralLinear(2), [[1.0, 1.0], [1.0, 1.0]], "the matrix is singular"),
    (GeneralLinear(2), [[1.0, 1.0], [1.0, 1.0 + 1e-16]], "the matrix is singular"),
    (GeneralLinear(2), [[1.0, 0.0], [1.0, 0.0]], "column 1 is zero, so the matrix is singular"),
    (GeneralLinear(3), [[1, 2, 3], [4, 5, 6], [7, 8, 9.0]], "singular"),
    (Orthogonal(2), [[math.nan, 0.0], [0.0, 1.0]], r"entry \[0, 0\] is nan"),
    (Orthogonal(2), [[1e300, 1e300], [1e300, -1e300]], "not in the group orthogonal"),
]


@pytest.mark.parametrize(("group", "matrix", "message"), OUTSIDE)
def test_what_is_outside_is_said_with_its_size(group: Group, matrix: object, message: str) -> None:
    exact = torch.as_tensor(matrix, dtype=torch.float64)
    assert not group.contains(exact)
    with pytest.raises(ValueError, match=message) as error:
        group.element(exact)
    assert f"not in the group {group.name}" in str(error.value)
    assert str(error.value).endswith(f"; give an element of {group!r}")


def test_precision_decides_what_is_singular() -> None:
    close = torch.tensor([[1.0, 1.0], [1.0, 1.0 + 1e-6]], dtype=torch.float64)
    assert GeneralLinear(2).contains(close)
    with pytest.raises(ValueError, match=r"singular to its precision of 1e-07"):
        GeneralLinear(2).element(close.float())


def test_blocks_that_keep_their_places() -> None:
    kept = Blocks(Permutation(2), 2, order="kept")
    swap = torch.eye(4)[[2, 3, 0, 1]]
    assert not kept.contains(swap) and Blocks(Permutation(2), 2).contains(swap)
    drawn = kept.draw(seeded(33))
    assert isinstance(drawn, BlockElement) and drawn.order.tolist() == [0, 1]
    assert "keep their places" in kept.describe()
    assert kept.latex == r"(S_n)^{2}"


def test_signed_planes_are_the_symmetries_of_squares() -> None:
    drawn = {
        tuple(SignedPlanes(2).sample(generator).flatten().tolist())
        for generator in [seeded(34)]
        for _ in range(200)
    }
    assert len(drawn) == 8


def _same_chance(counts: Tensor, expected: float) -> bool:
    """True unless a count is more than 4.5 standard deviations off a binomial expectation."""
    total = float(counts.sum())
    deviation = math.sqrt(total * expected * (1 - expected))
    return bool(((counts - total * expected).abs() < 4.5 * deviation).all())


@pytest.mark.sample(default=1)
@pytest.mark.parametrize(
    ("group", "size"),
    [
        (Permutation(3), 6),
        (SignedPermutation(2), 8),
        (Signs(3), 8),
        (SignedPlanes(2), 8),
        (QuarterTurns(2), 4),
        (QuarterTurns(4), 16),
        (Blocks(Permutation(2), 2), 8),
        (Blocks(Permutation(2), 2, order="kept"), 4),
        (DirectSum((Permutation(2), Signs(2))), 8),
        (Monomial(2), 8),
    ],
    ids=repr,
)
def test_orders_and_signs_are_uniform(group: Group, size: int) -> None:
    generator = seeded(35)
    seen: dict[tuple[float, ...], int] = {}
    for _ in range(1600):
        signs = tuple(group.sample(generator).sign().flatten().tolist())
        seen[signs] = seen.get(signs, 0) + 1
    assert len(seen) == size
    assert _same_chance(torch.tensor(list(seen.values())), 1 / size)


def test_the_check_of_chances_can_fail() -> None:
    assert not _same_chance(torch.tensor([600.0, 400.0]), 0.5)


def test_scales_are_uniform_in_their_logarithm() -> None:
    generator = seeded(36)
    sizes = torch.stack([Monomial(4).sample(generator).abs().sum(1) for _ in range(1000)]).log2()
    assert -1 <= float(sizes.min()) < -0.98 and 0.98 < float(sizes.max()) <= 1
    assert abs(float(sizes.mean())) < 4.5 * math.sqrt(1 / 3 / 4000)
    assert float(sizes.var()) == pytest.approx(1 / 3, abs=0.03)


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


_KINDS = tuple({type(group) for group in ELEMENTARY})


@pytest.mark.parametrize("dim", [0, -1, True, 2.0])
def test_dimensions_that_are_none(dim: object) -> None:
    for kind in (*_KINDS, Unknown):
        with pytest.raises((ValueError, TypeError), match=r"whole number above zero|int"):
            kind(dim)  # pyright: ignore


def test_blocks_planes_and_sums_that_are_none() -> None:
    with pytest.raises(ValueError, match="count=0: give a whole number"):
        Blocks(Permutation(2), 0)
    with pytest.raises(ValueError, match="copies=-1"):
        Blocks(Permutation(2), 1, copies=-1)
    with pytest.raises(ValueError, match="give an even dim"):
        Planes(5)
    with pytest.raises(ValueError, match="at least one part"):
        DirectSum(())
    with pytest.raises(ValueError, match="give an even dim"):
        SignedPlanes(3)
    for message, group, field in (
        ("pairing 'x' is not known", Planes(2), "pairing"),
        ("order 'x' is not known", Blocks(Permutation(2), 1), "order"),
    ):
        # The checks of annotations, which run in tests only, would stop it first.
        object.__setattr__(group, field, "x")
        with pytest.raises(ValueError, match=message):
            group.__post_init__()


def test_the_unknown_claims_nothing() -> None:
    with pytest.raises(ValueError, match="cannot be said whether it holds"):
        Unknown(3).contains(torch.eye(3))
    with pytest.raises(ValueError, match="no element can be drawn"):
        Unknown(3).sample(seeded())
    with pytest.raises(ValueError, match="not known"):
        Blocks(Unknown(3), 2).sample(seeded())
    for ask in (Unknown(3).element, Unknown(3).excess):
        with pytest.raises(ValueError, match="cannot be said whether it holds"):
            ask(torch.eye(3))
    with pytest.raises(ValueError, match="no element can be drawn"):
        Unknown(3).generic(seeded())


@pytest.mark.parametrize("atol", [-1.0, 1.0, math.inf, math.nan])
def test_tolerances_that_are_none(atol: float) -> None:
    for ask in (Permutation(2).contains, Permutation(2).excess, Permutation(2).element):
        with pytest.raises(ValueError, match="give a number from 0 to below 1"):
            ask(torch.eye(2), atol=atol)


def test_a_generator_elsewhere() -> None:
    class Elsewhere(torch.Generator):
        device = torch.device("cuda")  # pyright: ignore

    for group in (Trivial(2), Permutation(2), GeneralLinear(2)):
        for ask in (group.sample, group.draw, group.generic):
            with pytest.raises(ValueError, match="Generator on the CPU"):
                ask(Elsewhere())


@pytest.mark.parametrize("seed", range(20))
def test_a_generic_element_has_every_freedom_of_its_group(seed: int) -> None:
    """What proves a claim must not happen to leave out what is claimed."""
    for dim in (2, 3):
        for kind in (Permutation, SignedPermutation, PositiveMonomial, Monomial):
            matrix = kind(dim).generic(seeded(seed)).matrix()
            assert not bool(matrix.diagonal().all()), kind
            if kind in (SignedPermutation, Monomial):
                assert bool((matrix < 0).any())
        heads = Blocks(Orthogonal(2), count=dim).generic(seeded(seed)).matrix()
        blocks = heads.reshape(dim, 2, dim, 2).abs().amax(dim=(1, 3))
        assert not bool((blocks.diagonal() > 0).all())
        kept = Blocks(Orthogonal(2), count=dim, order="kept").generic(seeded(seed)).matrix()
        assert bool((kept.reshape(dim, 2, dim, 2).abs().amax(dim=(1, 3)).diagonal() > 0).all())


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("dim", [2, 3, 4, 6, 8, 17])
def test_a_generic_order_is_one_circle_and_generic_signs_are_mixed(dim: int, seed: int) -> None:
    """No part is left among itself, and signs do not change together."""
    for group in (Permutation(dim), SignedPermutation(dim), Monomial(dim), PositiveMonomial(dim)):
        matrix = group.generic(seeded(seed)).matrix()
        order = matrix.abs().argmax(1).tolist()
        place, steps = order[0], 1
        while place:
            place, steps = order[place], steps + 1
        assert steps == dim
        if isinstance(group, SignedPermutation | Monomial):
            assert bool((matrix < 0).any()) and bool((matrix > 0).any())
    signs = Signs(dim).generic(seeded(seed)).matrix().diagonal()
    assert bool((signs < 0).any()) and bool((signs > 0).any())
    blocks = Blocks(Trivial(2), count=dim).generic(seeded(seed)).matrix()
    sources = blocks.reshape(dim, 2, dim, 2).abs().amax(dim=(1, 3)).argmax(1)
    assert not bool((sources == torch.arange(dim)).any())


def test_parts_that_share_an_order_hold_it_in_all_parts_and_scales_in_each() -> None:
    group = DirectSum((Permutation(4), Monomial(4)), order="shared")
    one, two = (Permutation(4).sample(seeded(number)) for number in (1, 2))
    scales = torch.diag(torch.tensor([2.0, -3.0, 0.5, 1.0], dtype=torch.float64))
    assert group.contains(torch.block_diag(one, one @ scales))
    assert not one.equal(two) and not group.contains(torch.block_diag(one, two))
    assert not group.contains(torch.block_diag(one @ scales, one))
    assert group.excess(torch.block_diag(one, two)) == math.inf
    assert "together" in group.describe()
    assert eval(repr(group), vars(groups)) == group


@pytest.mark.parametrize(
    "parts", [(Orthogonal(2), Orthogonal(2)), (Permutation(2), Permutation(3)), (Trivial(2),) * 2]
)
def test_only_axes_of_one_size_share_an_order(parts: tuple[Group, ...]) -> None:
    with pytest.raises(ValueError, match="groups on axes of one size"):
        DirectSum(parts, order="shared")
    with pytest.raises(ValueError, match=r"'each' .* or 'shared'"):
        DirectSum(parts, order="both")  # pyright: ignore[reportArgumentType]


def test_a_group_of_ones_own_has_a_name_if_it_gives_none() -> None:
    class PairedAxes(Permutation):
        pass

    assert PairedAxes.name == "paired-axes"
    assert "paired-axes" in PairedAxes(4)._repr_html_()
