"""What groups share, what fixes a vector, and groups in other bases: each holds what it should."""

import functools
import itertools
import math
from collections import Counter

import pytest
import torch
from draws import seeded
from torch import Tensor

import basis_probe.algebra.groups as groups
import basis_probe.algebra.subgroups as subgroups
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
    SignedPlanes,
    Signs,
    Trivial,
    Unknown,
)
from basis_probe.algebra.subgroups import (
    Conjugate,
    Intersection,
    Stabiliser,
    conjugate,
    meet,
    stabiliser,
)

NAMES = {**vars(groups), **vars(subgroups)}


def _turn(dim: int) -> Tensor:
    return Orthogonal(dim).sample(seeded(100))


DIM = 4
PLAIN: tuple[Group, ...] = (
    GeneralLinear(DIM),
    Orthogonal(DIM),
    LineStabiliser(DIM),
    Permutation(DIM),
    SignedPermutation(DIM),
    PositiveMonomial(DIM),
    Monomial(DIM),
    Trivial(DIM),
    Signs(DIM),
    Planes(DIM),
    Planes(DIM, pairing="adjacent"),
    SignedPlanes(DIM),
    SignedPlanes(DIM, pairing="adjacent"),
    Blocks(GeneralLinear(2), 2),
    Blocks(GeneralLinear(2), 2, order="kept"),
    Blocks(GeneralLinear(2), 1, copies=2),
    Blocks(GeneralLinear(1), 2, copies=2),
    Blocks(Orthogonal(2), 2),
    Blocks(Permutation(2), 2),
    Blocks(Planes(2), 2),
    Blocks(Trivial(2), 2),
    Blocks(Monomial(4), 1),
    DirectSum((GeneralLinear(2), GeneralLinear(2))),
    DirectSum((Monomial(1), Orthogonal(3))),
    DirectSum((Orthogonal(3), Signs(1))),
    DirectSum((Permutation(2), LineStabiliser(2))),
    DirectSum((Permutation(4),)),
)
MADE: tuple[Group, ...] = (
    Intersection((LineStabiliser(DIM), SignedPermutation(DIM))),
    Intersection((LineStabiliser(DIM), Signs(DIM))),
    Intersection((LineStabiliser(DIM), Orthogonal(DIM))),
    Intersection((Planes(DIM), Orthogonal(DIM))),
    Intersection((Planes(DIM), SignedPermutation(DIM))),
    Intersection((PositiveMonomial(DIM), Planes(DIM, pairing="adjacent"))),
    Intersection((Planes(DIM), Monomial(DIM))),
    Intersection((Planes(DIM), Signs(DIM))),
    Intersection((Permutation(DIM), SignedPlanes(DIM))),
    Intersection((Blocks(Permutation(2), 2), SignedPlanes(DIM))),
    Intersection((Orthogonal(DIM),)),
    Stabiliser(Orthogonal(DIM), (1.0, 2.0, 0.0, -1.0)),
    Stabiliser(Orthogonal(DIM), (0.0, 0.0, 0.0, 0.0)),
    Stabiliser(GeneralLinear(DIM), (1.0, 2.0, 0.0, -1.0)),
    Stabiliser(LineStabiliser(DIM), (1.0, 2.0, 0.0, -1.0)),
    Stabiliser(LineStabiliser(DIM), (1.0, 1.0, 1.0, 1.0)),
    Stabiliser(Permutation(DIM), (1.0, 1.0, 0.0, 0.0)),
    Stabiliser(SignedPermutation(DIM), (1.0, -1.0, 0.0, 2.0)),
    Stabiliser(PositiveMonomial(DIM), (1.0, 2.0, 0.0, -1.0)),
    Stabiliser(Monomial(DIM), (1.0, 2.0, 0.0, -1.0)),
    Stabiliser(Signs(DIM), (1.0, 0.0, 0.0, -1.0)),
    Stabiliser(Trivial(DIM), (1.0, 0.0, 0.0, -1.0)),
    Stabiliser(Planes(DIM), (1.0, 0.0, 0.0, 0.0)),
    Stabiliser(SignedPlanes(DIM), (1.0, 0.0, -1.0, 2.0)),
    Conjugate(Permutation(DIM), tuple(map(tuple, _turn(DIM).tolist()))),
    Conjugate(LineStabiliser(DIM), tuple(map(tuple, _turn(DIM).tolist()))),
    Conjugate(Permutation(DIM), tuple(map(tuple, torch.diag(torch.arange(1.0, 5.0)).tolist()))),
    Conjugate(Blocks(Orthogonal(2), 2), tuple(map(tuple, torch.eye(DIM)[[0, 2, 1, 3]].tolist()))),
)
ALL = PLAIN + MADE
EVERY_MADE = pytest.mark.parametrize("group", MADE, ids=lambda group: repr(group)[:70])
ALL_PAIRS = list(itertools.combinations_with_replacement(ALL, 2))


def _strangers() -> list[Tensor]:
    """Matrices of every kind: members of every group, and matrices near them."""
    generator = seeded(1)
    drawn = [group.sample(generator) for group in ALL for _ in range(4)]
    drawn += [torch.eye(DIM)[list(order)].double() for order in itertools.permutations(range(DIM))]
    signs = list(itertools.product((1.0, -1.0), repeat=DIM))
    drawn += [torch.tensor(sign, dtype=torch.float64).diag() for sign in signs]
    drawn += [2 * torch.eye(DIM).double(), -torch.eye(DIM).double()]
    # What two groups share is often met by products of few generators only.
    drawn += [a @ b for a, b in itertools.pairwise(drawn)]
    return drawn


STRANGERS = _strangers()


@functools.cache
def held(group: Group) -> list[bool]:
    """Which strangers are in a group."""
    return [group.contains(matrix) for matrix in STRANGERS]


@functools.cache
def telling() -> list[int]:
    """The first of all strangers that are in the same groups, for every such kind."""
    kinds = list(zip(*(held(group) for group in ALL), strict=True))
    return [kinds.index(kind) for kind in dict.fromkeys(kinds)]


@functools.cache
def some_held(group: Group) -> list[bool]:
    """Which of the telling strangers are in a group."""
    return [group.contains(STRANGERS[place]) for place in telling()]


# Annotations are checked in the other tests; here it would take most of the time.
EXHAUSTIVE = pytest.mark.usefixtures("as_shipped")

# --- meets ----------------------------------------------------------------------------------------


@EXHAUSTIVE
@pytest.mark.parametrize("one", ALL, ids=lambda group: repr(group)[:70])
def test_a_meet_holds_exactly_what_both_hold(one: Group) -> None:
    # One of ten is enough to notice; all pairs are tried with the slow tests.
    for other in ALL[ALL.index(one) % 10 :: 10]:
        shared = meet(one, other)
        both = [held(one)[place] and held(other)[place] for place in telling()]
        assert some_held(shared) == both, (other, shared)


@EXHAUSTIVE
@pytest.mark.slow
def test_no_meet_holds_a_stranger() -> None:
    shared = {meet(one, other): (one, other) for one, other in ALL_PAIRS}
    for group, (one, other) in shared.items():
        both = [a and b for a, b in zip(held(one), held(other), strict=True)]
        assert held(group) == both, (one, other, group)


@EXHAUSTIVE
@pytest.mark.parametrize("one", ALL, ids=lambda group: repr(group)[:70])
def test_meets_do_not_depend_on_the_order(one: Group) -> None:
    assert meet(one, one) == one
    for other in ALL:
        shared = meet(one, other)
        assert shared == meet(other, one)
        # What both share, shared again with either, is the same.
        again = meet(shared, one)
        assert meet(again, other) == again


@EXHAUSTIVE
def test_drawn_elements_of_a_meet_are_in_both_groups() -> None:
    generator = seeded(2)
    undrawn: set[str] = set()
    some = ALL_PAIRS[::3]
    for one, other in some:
        shared = meet(one, other)
        try:
            drawn = shared.draw(generator)
        except ValueError as error:
            assert "no way is known to draw" in str(error)
            undrawn.add(repr(shared))
            continue
        assert one.contains(drawn) and other.contains(drawn), (one, other)
    # Most are drawn; what is not contains a basis of its own or a line between blocks.
    assert len(undrawn) < len(some) / 2
    plain = [meet(*pair) for pair in itertools.combinations(PLAIN[:9], 2)]
    assert not [shared for shared in plain if repr(shared) in undrawn]


MEETS = [
    (Permutation(4), PositiveMonomial(4), Permutation(4)),
    (Permutation(4), Orthogonal(4), Permutation(4)),
    (SignedPermutation(4), PositiveMonomial(4), Permutation(4)),
    (Monomial(4), Orthogonal(4), SignedPermutation(4)),
    (Monomial(4), PositiveMonomial(4), PositiveMonomial(4)),
    (PositiveMonomial(4), Orthogonal(4), Permutation(4)),
    (GeneralLinear(4), LineStabiliser(4), LineStabiliser(4)),
    (Trivial(4), LineStabiliser(4), Trivial(4)),
    (Signs(4), Permutation(4), Trivial(4)),
    (Signs(4), Monomial(4), Signs(4)),
    (LineStabiliser(4), Permutation(4), Permutation(4)),
    (LineStabiliser(4), PositiveMonomial(4), Permutation(4)),
    (LineStabiliser(1), PositiveMonomial(1), PositiveMonomial(1)),
    (
        LineStabiliser(4),
        Monomial(4),
        Intersection((LineStabiliser(4), SignedPermutation(4))),
    ),
    (LineStabiliser(4), Blocks(Permutation(2), 2), Blocks(Permutation(2), 2)),
    (LineStabiliser(4), Blocks(PositiveMonomial(4), 1), Permutation(4)),
    (Planes(4), Permutation(4), Trivial(4)),
    (Planes(4), Planes(4, pairing="adjacent"), None),
    (Planes(2), Planes(2, pairing="adjacent"), Planes(2)),
    (SignedPlanes(4), SignedPlanes(4, pairing="adjacent"), Signs(4)),
    (SignedPlanes(2), SignedPlanes(2, pairing="adjacent"), SignedPlanes(2)),
    (SignedPlanes(4), Orthogonal(4), SignedPlanes(4)),
    (SignedPlanes(4), Planes(4), Intersection((Planes(4), SignedPermutation(4)))),
    (Blocks(GeneralLinear(2), 3, 2), Monomial(12), Blocks(Monomial(2), 3, 2)),
    (Blocks(GeneralLinear(2), 3), Signs(6), Blocks(Signs(2), 3, order="kept")),
    (Blocks(GeneralLinear(2), 3), Trivial(6), Trivial(6)),
    (
        Blocks(GeneralLinear(4), 2),
        Planes(8, pairing="adjacent"),
        Blocks(Planes(4, pairing="adjacent"), 2, order="kept"),
    ),
    (
        Blocks(GeneralLinear(2), 3, order="kept"),
        Blocks(Orthogonal(2), 3),
        Blocks(Orthogonal(2), 3, order="kept"),
    ),
    (Blocks(GeneralLinear(2), 2, 2), Blocks(Orthogonal(2), 4), Blocks(Orthogonal(2), 2, 2)),
    (
        DirectSum((Permutation(2), GeneralLinear(3))),
        DirectSum((GeneralLinear(2), Orthogonal(3))),
        DirectSum((Permutation(2), Orthogonal(3))),
    ),
    (
        DirectSum((Orthogonal(2), GeneralLinear(3))),
        DirectSum((GeneralLinear(3), Monomial(2))),
        DirectSum((Orthogonal(2), GeneralLinear(1), Monomial(2))),
    ),
    (
        DirectSum((GeneralLinear(4), GeneralLinear(2))),
        Blocks(Orthogonal(2), 3),
        DirectSum((Blocks(Orthogonal(2), 2), Orthogonal(2))),
    ),
    (
        DirectSum((GeneralLinear(2), GeneralLinear(3))),
        Monomial(5),
        DirectSum((Monomial(2), Monomial(3))),
    ),
    (
        Stabiliser(Orthogonal(3), (1.0, 0.0, 0.0)),
        Monomial(3),
        Stabiliser(SignedPermutation(3), (1.0, 0.0, 0.0)),
    ),
    (
        Stabiliser(Orthogonal(3), (1.0, 0.0, 0.0)),
        Stabiliser(Monomial(3), (1.0, 0.0, 0.0)),
        Stabiliser(SignedPermutation(3), (1.0, 0.0, 0.0)),
    ),
    (
        Conjugate(Orthogonal(2), ((1.0, 2.0), (0.0, 1.0))),
        Conjugate(Monomial(2), ((1.0, 2.0), (0.0, 1.0))),
        Conjugate(SignedPermutation(2), ((1.0, 2.0), (0.0, 1.0))),
    ),
]


@pytest.mark.parametrize(("one", "other", "expected"), MEETS, ids=lambda group: repr(group)[:50])
def test_meets_that_are_known(one: Group, other: Group, expected: Group | None) -> None:
    shared = meet(one, other)
    both = Intersection(tuple(sorted((one, other), key=repr)))
    assert shared == meet(other, one) == (expected or both)
    generator = seeded(3)
    samples = [group.sample(generator) for group in (one, other) for _ in range(5)]
    if expected is not None:
        samples += [expected.sample(generator) for _ in range(5)]
        assert all(one.contains(a) and other.contains(a) for a in samples[10:])
    for a in samples:
        assert shared.contains(a) == (one.contains(a) and other.contains(a))


def test_the_unknown_absorbs() -> None:
    assert meet(Unknown(4), Trivial(4)) == meet(Trivial(4), Unknown(4)) == Unknown(4)
    assert conjugate(Unknown(2), torch.eye(2)) == stabiliser(Unknown(2), (1.0, 0.0)) == Unknown(2)


def test_groups_on_other_spaces_share_nothing() -> None:
    for make in (meet, lambda a, b: Intersection((a, b))):
        with pytest.raises(ValueError, match="different dimensions: give groups on one space"):
            make(Permutation(4), Permutation(5))
    with pytest.raises(ValueError, match="at least one part"):
        Intersection(())


def test_no_way_to_draw_is_said() -> None:
    for group in (
        Intersection((LineStabiliser(4), Blocks(GeneralLinear(2), 2))),
        Stabiliser(Blocks(Orthogonal(2), 2), (1.0, 0.0, 0.0, 1.0)),
    ):
        with pytest.raises(ValueError, match=r"no way is known to draw from .* with `contains`"):
            group.draw(seeded())
        assert group.contains(torch.eye(4))


# --- every group made from groups -----------------------------------------------------------------


@EVERY_MADE
def test_samples_products_inverses_and_the_identity_are_elements(group: Group) -> None:
    generator = seeded(4)
    for _ in range(5):
        a, b = group.draw(generator), group.generic(generator)
        assert group.contains(a) and group.contains(b)
        assert group.contains(a @ b) and group.contains(a.inverse())
        assert group.contains(torch.linalg.inv(b.matrix()))
        assert float(torch.linalg.cond(a.matrix())) < 1000
    assert group.contains(torch.eye(group.dim))
    assert group.excess(torch.eye(group.dim)) == 0


@EVERY_MADE
def test_what_is_not_an_element(group: Group) -> None:
    general = torch.randn(DIM, DIM, generator=seeded(5), dtype=torch.float64)
    assert not group.contains(general) and 0 < group.excess(general) < math.inf
    with pytest.raises(ValueError, match=f"not in the group {group.name}"):
        group.element(general)
    for broken in (torch.zeros(DIM, DIM), torch.full((DIM, DIM), math.nan)):
        assert not group.contains(broken) and math.isinf(group.excess(broken))


@EVERY_MADE
def test_half_a_tolerance_is_near_enough_and_a_thousandfold_is_not(group: Group) -> None:
    a = group.sample(seeded(6))
    noise = torch.randn(a.shape, generator=seeded(7), dtype=torch.float64)
    assert group.contains(a + 1e-8 * noise)
    assert not group.contains(a + 1e-3 * noise)
    assert group.contains(a + 1e-3 * noise, atol=0.1)


@EVERY_MADE
def test_a_matrix_is_read_as_an_element(group: Group) -> None:
    a = group.sample(seeded(8))
    assert float((group.element(a).matrix() - a).abs().max()) < 1e-12
    assert torch.equal(group.sample(seeded(8)), a)


@EVERY_MADE
def test_repr_is_read_back(group: Group) -> None:
    again = eval(repr(group), NAMES)
    assert again == group and repr(again) == repr(group) and hash(again) == hash(group)


@EVERY_MADE
def test_words(group: Group) -> None:
    sentence = group.describe()
    assert (sentence[0].isupper() or sentence[0].isdigit()) and sentence.endswith(".")
    assert sentence.count(".") == 1
    assert group.latex.count("{") == group.latex.count("}")
    assert group.name == type(group).name and group.privileged in Privileged


@EVERY_MADE
def test_rotates_and_rescales_are_not_denied_where_a_sample_shows_them(group: Group) -> None:
    generator = seeded(9)
    for _ in range(20):
        a = group.sample(generator)
        mixes = not Monomial(DIM).contains(a)
        if Orthogonal(DIM).contains(a) and mixes:
            assert group.rotates
        if bool((a - a.diagonal().diag() == 0).all()) and not Signs(DIM).contains(a):
            assert group.rescales


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        (Intersection((LineStabiliser(4), SignedPermutation(4))), Privileged.AXES),
        (Intersection((LineStabiliser(4), Orthogonal(4))), Privileged.LINE),
        (Intersection((Planes(4), Orthogonal(4))), Privileged.PLANES),
        (Intersection((Planes(4), LineStabiliser(4))), Privileged.UNKNOWN),
        (Intersection((Orthogonal(4),)), Privileged.NONE),
        (Stabiliser(Monomial(3), (1.0, 2.0, 3.0)), Privileged.AXES),
        (Stabiliser(Orthogonal(3), (1.0, 2.0, 3.0)), Privileged.NONE),
        (Stabiliser(Orthogonal(3), (2.0, 2.0, 2.0)), Privileged.LINE),
        (Stabiliser(Orthogonal(3), (0.0, 2.0, 0.0)), Privileged.BLOCKS),
        (Stabiliser(Orthogonal(3), (0.0, 0.0, 0.0)), Privileged.NONE),
        (Stabiliser(Orthogonal(2), (0.0, 1.0)), Privileged.AXES),
        (Stabiliser(Orthogonal(2), (1.0, -1.0)), Privileged.AXES),
        (Stabiliser(Orthogonal(2), (1.0, 2.0)), Privileged.UNKNOWN),
        (Stabiliser(Orthogonal(1), (1.0,)), Privileged.AXES),
        (Stabiliser(GeneralLinear(3), (1.0, 2.0, 3.0)), Privileged.NONE),
        (Stabiliser(GeneralLinear(3), (1.0, 0.0, 0.0)), Privileged.UNKNOWN),
        (Stabiliser(LineStabiliser(3), (1.0, 1.0, 1.0)), Privileged.LINE),
        (Stabiliser(LineStabiliser(4), (1.0, 2.0, 3.0, 4.0)), Privileged.LINE),
        (Stabiliser(LineStabiliser(3), (1.0, 2.0, 2.0)), Privileged.UNKNOWN),
        (Stabiliser(Planes(4), (0.0, 0.0, 0.0, 0.0)), Privileged.PLANES),
        (Stabiliser(Planes(4), (1.0, 0.0, 0.0, 0.0)), Privileged.BLOCKS),
        (Stabiliser(Planes(4), (1.0, 1.0, 0.0, 0.0)), Privileged.AXES),
        (Stabiliser(Blocks(Orthogonal(2), 2), (1.0, 1.0, 0.0, 0.0)), Privileged.UNKNOWN),
        (conjugate(Permutation(3), torch.diag(torch.arange(1.0, 4.0))), Privileged.AXES),
        (conjugate(Permutation(3), _turn(3)), Privileged.NONE),
        (
            conjugate(Permutation(3), torch.block_diag(torch.eye(1), _turn(2))),
            Privileged.UNKNOWN,
        ),
        (conjugate(LineStabiliser(3), _turn(3)), Privileged.NONE),
        (conjugate(LineStabiliser(3), 2 * torch.eye(3)), Privileged.LINE),
        (conjugate(Planes(4), torch.eye(4)[[1, 0, 2, 3]]), Privileged.PLANES),
        (conjugate(Planes(4), _turn(4)), Privileged.UNKNOWN),
        (Conjugate(GeneralLinear(2), ((1.0, 1.0), (0.0, 1.0))), Privileged.NONE),
        (Conjugate(Trivial(2), ((1.0, 1.0), (0.0, 1.0))), Privileged.AXES),
    ],
    ids=repr,
)
def test_privileged(group: Group, expected: Privileged) -> None:
    assert group.privileged is expected


# --- the laws of draws ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("group", "size"),
    [
        (Intersection((LineStabiliser(3), SignedPermutation(3))), 12),
        (Intersection((LineStabiliser(3), Signs(3))), 2),
        (Intersection((Planes(4), SignedPermutation(4))), 16),
        (Intersection((Planes(4), Signs(4))), 4),
        (Intersection((Permutation(4), SignedPlanes(4))), 4),
        (Intersection((Blocks(Permutation(2), 2), SignedPlanes(4))), 2),
        (Stabiliser(Permutation(4), (1.0, 1.0, 0.0, 1.0)), 6),
        (Stabiliser(SignedPermutation(4), (1.0, -1.0, 0.0, 0.0)), 16),
        (Stabiliser(Signs(4), (1.0, 0.0, 0.0, 1.0)), 4),
        (Stabiliser(SignedPlanes(4), (1.0, 0.0, -1.0, 2.0)), 4),
        (Conjugate(Permutation(3), ((2.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, -1.0))), 6),
    ],
    ids=repr,
)
@EXHAUSTIVE
def test_draws_from_finite_groups_are_uniform_on_all_of_them(group: Group, size: int) -> None:
    generator = seeded(10)
    draws = 100 * size
    seen = Counter(
        tuple(group.sample(generator).mul(8).round().flatten().tolist()) for _ in range(draws)
    )
    assert len(seen) == size
    deviation = math.sqrt(draws / size * (1 - 1 / size))
    assert all(abs(count - draws / size) < 4.5 * deviation for count in seen.values())


def test_finite_groups_are_as_large_as_counted() -> None:
    """The sizes above, by trying every signed permutation."""
    orders = [torch.eye(4)[list(order)] for order in itertools.permutations(range(4))]
    signs = [torch.tensor(sign).diag() for sign in itertools.product((1.0, -1.0), repeat=4)]
    everything = [order @ sign for order in orders for sign in signs]
    for group, size in (
        (Intersection((Planes(4), SignedPermutation(4))), 16),
        (Intersection((Blocks(Permutation(2), 2), SignedPlanes(4))), 2),
        (Stabiliser(SignedPermutation(4), (1.0, -1.0, 0.0, 0.0)), 16),
        (Stabiliser(SignedPlanes(4), (1.0, 0.0, -1.0, 2.0)), 4),
    ):
        assert sum(map(group.contains, everything)) == size


def _z(values: Tensor, expected: float) -> float:
    return float((values.mean() - expected) / (values.std() / math.sqrt(len(values)) + 1e-12))


@EXHAUSTIVE
def test_draws_from_orthogonal_subgroups_are_uniform() -> None:
    generator = seeded(11)
    v = torch.tensor([1.0, 2.0, 0.0, -1.0], dtype=torch.float64)
    fixing = Stabiliser(Orthogonal(4), tuple(v.tolist()))
    drawn = torch.stack([fixing.sample(generator) for _ in range(1000)])
    # Across v the trace has mean 0 and variance 1, and v adds 1.
    trace = drawn.diagonal(dim1=1, dim2=2).sum(1)
    assert abs(_z(trace, 1.0)) < 4.5 and abs(_z((trace - 1) ** 2, 1.0)) < 4.5
    line = Intersection((LineStabiliser(4), Orthogonal(4)))
    drawn = torch.stack([line.sample(generator) for _ in range(1000)])
    along = drawn.sum(dim=(1, 2)) / 4
    assert float((along.abs() - 1).abs().max()) < 1e-12 and abs(_z(along, 0.0)) < 4.5
    across = drawn.diagonal(dim1=1, dim2=2).sum(1) - along
    assert abs(_z(across, 0.0)) < 4.5 and abs(_z(across**2, 1.0)) < 4.5
    assert abs(_z(across * along, 0.0)) < 4.5
    planes = Intersection((Planes(4), Orthogonal(4)))
    drawn = torch.stack([planes.sample(generator) for _ in range(1000)])
    assert abs(_z(drawn[:, 0, 0], 0.0)) < 4.5 and abs(_z(drawn[:, 0, 0] ** 2, 0.5)) < 4.5
    assert abs(_z(drawn[:, 0, 0] * drawn[:, 1, 1], 0.0)) < 4.5


def test_stabilisers_are_generic_among_what_fixes_the_vector() -> None:
    """Nothing else is fixed: the drawn elements span all that fixes the vector."""
    v = torch.tensor([1.0, 2.0, 0.0, -1.0], dtype=torch.float64)
    for group, dimension in ((GeneralLinear(4), 12), (LineStabiliser(4), None)):
        fixing = Stabiliser(group, tuple(v.tolist()))
        generator = seeded(12)
        drawn = torch.stack([fixing.sample(generator) for _ in range(60)])
        assert float((drawn @ v - v).abs().max()) < 1e-12
        moved = (drawn - torch.eye(4)).flatten(1)
        rank = int(torch.linalg.matrix_rank(moved, rtol=1e-9))
        if dimension is not None:
            # A v = v are 4 equations on 16 entries.
            assert rank == dimension
        else:
            # w across v: 3; turns across 1 and v span 2 x 2 matrices: 4.
            assert rank == 3 + 4


# --- stabilisers and conjugates -------------------------------------------------------------------


def test_stabilisers_in_their_plainest_form() -> None:
    assert stabiliser(Orthogonal(2), (0.0, 0.0)) == Orthogonal(2)
    assert stabiliser(Permutation(3), torch.full((3,), 2.0)) == Permutation(3)
    assert stabiliser(Trivial(2), (1.0, 2.0)) == Trivial(2)
    assert stabiliser(Orthogonal(2), torch.tensor([1, 0])) == Stabiliser(Orthogonal(2), (1.0, 0.0))


@EXHAUSTIVE
def test_a_stabiliser_is_what_fixes_the_vector() -> None:
    for group, vector in itertools.product(PLAIN, ((1.0, 1.0, 0.0, 2.0), (1.0, 1.0, 1.0, 1.0))):
        v = torch.tensor(vector, dtype=torch.float64)
        for kept in (stabiliser(group, vector), Stabiliser(group, vector)):
            for place, inside in zip(telling(), some_held(kept), strict=True):
                fixed = float((STRANGERS[place] @ v - v).abs().max()) < 1e-9
                assert inside == (held(group)[place] and fixed)


def test_a_moved_vector_is_named() -> None:
    with pytest.raises(ValueError, match=r"the vector's entry 0 changes by 1"):
        Stabiliser(Permutation(2), (1.0, 2.0)).element([[0.0, 1.0], [1.0, 0.0]])


@EXHAUSTIVE
@pytest.mark.parametrize("group", PLAIN, ids=lambda group: repr(group)[:70])
@pytest.mark.parametrize("by", [Monomial(DIM), GeneralLinear(DIM), Orthogonal(DIM)])
def test_a_conjugate_is_the_group_in_another_basis(group: Group, by: Group) -> None:
    change = by.draw(seeded(13))
    turned = conjugate(group, change)
    b = change.matrix()
    back = conjugate(turned, change.inverse())
    for matrix, inside in zip(STRANGERS[::7], held(group)[::7], strict=True):
        assert turned.contains(b @ matrix @ torch.linalg.inv(b), atol=1e-5) == inside
        assert back.contains(matrix, atol=1e-5) == inside


def test_conjugates_that_change_nothing() -> None:
    generator = seeded(14)
    for group in PLAIN:
        assert conjugate(group, group.draw(generator)) == group
        assert conjugate(group, 3 * torch.eye(DIM)) == group
    for group in (Monomial(4), Signs(4)):
        assert conjugate(group, Monomial(4).draw(generator)) == group
    # All signs may change, but not some of them: what was a positive number is one no more.
    positive = PositiveMonomial(4)
    assert conjugate(positive, -positive.sample(generator)) == positive
    assert isinstance(conjugate(positive, torch.diag(torch.tensor([1.0, 1, 1, -1]))), Conjugate)
    assert isinstance(conjugate(Permutation(4), Signs(4).draw(seeded(2))), Conjugate)
    assert conjugate(GeneralLinear(4), _turn(4)) == GeneralLinear(4)


def test_elements_of_a_monomial_conjugate_stay_monomial() -> None:
    changed = conjugate(Permutation(3), torch.diag(torch.tensor([1.0, 2.0, 4.0])))
    assert type(changed.draw(seeded(15))) is type(Permutation(3).draw(seeded(15)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Stabiliser(Permutation(2), (1.0,)), "1 entries and Permutation"),
        (lambda: Stabiliser(Permutation(1), (math.nan,)), "the vector is not finite"),
        (lambda: conjugate(Permutation(2), torch.eye(3)), r"not \[2, 2\], the size of"),
        (lambda: conjugate(Permutation(2), torch.ones(2)), r"not \[2, 2\], the size of"),
        (lambda: conjugate(Permutation(2), torch.eye(2) * math.inf), "is not finite"),
        (lambda: conjugate(Permutation(2), torch.ones(2, 2)), "no change of basis: the matrix is"),
        (lambda: Conjugate(Permutation(1), ((0.0,),)), "no change of basis: row 0 is zero"),
    ],
)
def test_what_is_no_group(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # pyright: ignore
