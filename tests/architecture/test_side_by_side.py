"""Features side by side, which linear maps read: each part changes as if it stood alone."""

import pytest
import torch
from torch import Tensor, nn

import basis_probe as bp
from basis_probe import groups as G

GL = G.GeneralLinear


class Beside(nn.Module):
    """Two branches of the input, joined and read.

    Args:
        join: what joins them.
        bend: what the second passes before.
    """

    def __init__(self, join, bend=nn.Identity, width: int = 12) -> None:
        super().__init__()
        self.join, self.bend = join, bend()
        self.a, self.b, self.o = nn.Linear(5, 6), nn.Linear(5, 6), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.join(self.a(x), self.bend(self.b(x)), x))


def settled(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model.double().eval()


def rows(count: int) -> Tensor:
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(1)).double()


PARTS = {
    "two maps": (lambda a, b, x: torch.cat([a, b], -1), nn.Identity, 12, GL(6), GL(6)),
    "the input": (lambda a, b, x: torch.cat([a, x, b], -1), nn.Identity, 17, GL(6), GL(6)),
    "a bent one": (
        lambda a, b, x: torch.cat([a, b], -1), nn.ReLU, 12, GL(6), G.PositiveMonomial(6),
    ),
    "one twice": (
        lambda a, b, x: torch.cat([b, a, b], -1), nn.ReLU, 18, GL(6), G.PositiveMonomial(6),
    ),
    "a sum and its part": (
        lambda a, b, x: torch.cat([a + b, a], -1), nn.Identity, 12, GL(6), GL(6),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PARTS)
def test_each_part_changes_by_itself(name: str) -> None:
    join, bend, width, first, second = PARTS[name]
    model, x = settled(Beside(join, bend, width)), rows(4)
    found = bp.symmetries(model, x)
    for site, group in (("a", first), ("bend", second)):
        assert found[site].group == group, (site, found[site])
        assert found[site].certificate is not None and found[site].certificate.holds
        element = group.sample(torch.Generator().manual_seed(2))
        twin = bp.reparametrize(model, site, element, example_input=x)
        torch.testing.assert_close(twin(rows(9)), model(rows(9)), rtol=1e-8, atol=1e-8)


def test_what_is_joined_has_the_groups_of_its_parts() -> None:
    join, bend, width, *_ = PARTS["a bent one"]
    model, x = settled(Beside(join, bend, width)), rows(4)
    found = bp.symmetries(model, x)["o:in"]
    assert found.group == G.DirectSum((GL(6), G.PositiveMonomial(6)))
    assert found.certificate is not None and found.certificate.holds


def test_the_same_features_twice_are_told_of_where_they_are_made() -> None:
    join, bend, width, *_ = PARTS["one twice"]
    found = bp.symmetries(settled(Beside(join, bend, width)), rows(4))["o:in"]
    assert found.group == G.Unknown(18)
    assert found.because.startswith("Cat puts") and "change together" in found.because


def test_a_gain_folds_into_every_part_that_reads_its_norm() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.e, self.n, self.o = nn.Linear(5, 6), nn.LayerNorm(6), nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.n(self.e(x))
            return self.o(torch.cat([y[:, 0], y[:, 1:].mean(1)], -1))

    model, x = settled(Pooled()), rows(12).view(3, 4, 5)
    found = bp.symmetries(model, x)["e"]
    assert found.group == G.LineStabiliser(6), found
    assert found.certificate is not None and found.certificate.holds


# --- parts that meet feature by feature -----------------------------------------------------------


class Gated(nn.Module):
    """One map writes a gate and what it multiplies.

    Args:
        bend: what the gate passes.
        cut: what takes the two apart.
    """

    def __init__(self, bend, cut, count: int = 2) -> None:
        super().__init__()
        self.bend, self.cut = bend, cut
        self.e, self.up, self.o = nn.Linear(5, 8), nn.Linear(8, count * 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        first, *others = self.cut(self.up(self.e(x)))
        made = self.bend(first)
        for other in others:
            made = made * other
        return self.o(made)


def in_blocks(u: Tensor) -> tuple[Tensor, ...]:
    return u.chunk(2, -1)


BENT = {
    "silu": (nn.functional.silu, G.Permutation(6)),
    "relu": (torch.relu, G.PositiveMonomial(6)),
    "tanh": (torch.tanh, G.SignedPermutation(6)),
    "none": (lambda gate: gate, G.Monomial(6)),
}
CUTS = {
    "chunk": in_blocks,
    "split": lambda u: u.split([6, 6], -1),
    "slices": lambda u: (u[..., :6], u[..., 6:]),
    "an axis": lambda u: u.unflatten(-1, (2, 6)).unbind(-2),
}


def require_one_order(model: nn.Module, parts: tuple[G.Group, ...]) -> None:
    x, right = rows(4), G.DirectSum(parts, order="shared")
    assert bp.symmetries(model, x, certificates=False)["up"].group == right
    found = bp.symmetries(model, x)
    for name, claim in found.items():
        assert claim.certificate is None or claim.certificate.holds, name
    assert found["up"].group == right and found["up"].certificate is not None
    assert bp.certify(model, "up", x, elements=3).holds
    element = right.draw(torch.Generator().manual_seed(3)).matrix()
    twin = bp.reparametrize(model, "up", element, example_input=x)
    other = torch.randn(9, 5, generator=torch.Generator().manual_seed(4)).double()
    torch.testing.assert_close(twin(other), model(other), rtol=1e-9, atol=1e-9)


@pytest.mark.sample(default=4)
@pytest.mark.parametrize("bend", BENT)
@pytest.mark.parametrize("cut", CUTS)
def test_a_gate_and_what_it_multiplies_share_an_order(bend: str, cut: str) -> None:
    function, first = BENT[bend]
    require_one_order(settled(Gated(function, CUTS[cut])), (first, G.Monomial(6)))


def test_three_parts_share_an_order() -> None:
    model = settled(Gated(nn.functional.gelu, lambda u: u.chunk(3, -1), count=3))
    require_one_order(model, (G.Permutation(6), G.Monomial(6), G.Monomial(6)))


def test_parts_whose_scales_depend_on_each_other_are_not_claimed_apart() -> None:
    model = settled(Gated(lambda gate: gate, lambda u: [sum(u.chunk(2, -1)).relu()]))
    assert isinstance(bp.symmetries(model, rows(4))["up"].group, G.Unknown)


class Twice(nn.Module):
    """A gated layer whose weights serve twice, each time in a way of its own."""

    def __init__(self, first, second) -> None:
        super().__init__()
        self.ways = first, second
        self.e, self.up = nn.Linear(5, 8), nn.Linear(8, 12)
        self.down, self.o = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.e(x)
        for way in self.ways:
            x = x + self.down(way(*self.up(x).chunk(2, -1)))
        return self.o(x)


SILU, TANH = nn.functional.silu, torch.tanh
WAYS = {
    "alike": (lambda g, u: SILU(g) * u, lambda g, u: SILU(g) * u, G.Permutation(6), G.Monomial(6)),
    "bent in two ways": (
        lambda g, u: SILU(g) * u, lambda g, u: TANH(g) * u, G.Permutation(6), G.Monomial(6),
    ),
    "in exchanged roles": (
        lambda g, u: SILU(g) * u, lambda g, u: SILU(u) * g, G.Permutation(6), G.Permutation(6),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WAYS)
def test_parts_of_weights_that_serve_twice_are_bound_by_both(name: str) -> None:
    first, second, *groups = WAYS[name]
    require_one_order(settled(Twice(first, second)), tuple(groups))


class Sliced(nn.Module):
    """A gated layer whose matrix is a part of one that something else reads whole."""

    def __init__(self) -> None:
        super().__init__()
        self.e, self.whole = nn.Linear(5, 8), nn.Parameter(torch.zeros(15, 8))
        self.o, self.p = nn.Linear(6, 3), nn.Linear(15, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.e(x)
        gate, up = nn.functional.linear(x, self.whole[:12]).chunk(2, -1)
        return self.o(SILU(gate) * up) + self.p(nn.functional.linear(x, self.whole).tanh())


def test_parts_of_a_matrix_that_another_place_reads_are_not_claimed() -> None:
    found = bp.symmetries(settled(Sliced()), rows(4), certificates=False)
    assert isinstance(found["silu()"].group, G.Unknown)
    assert isinstance(found["o:in"].group, G.Unknown)


def test_parts_in_another_order_do_not_share_one() -> None:
    model = settled(Gated(lambda gate: SILU(gate.flip(-1)), in_blocks))
    found = bp.symmetries(model, rows(4), certificates=False)
    assert isinstance(found["up"].group, G.Unknown)
    assert found["o:in"].group == G.Monomial(6)
    assert bp.certify(model, "o:in", rows(4)).holds
