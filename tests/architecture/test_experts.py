"""Mixtures of experts, in the ways in which they are written, also where some experts are idle."""

import copy
import re

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import basis_probe as bp
from basis_probe import groups as G

D, WIDE, COUNT = 12, 10, 8


class Mixture(nn.Module):
    """A block of routed experts under RMSNorm; only the experts that rows reach do run.

    Args:
        kind: "modules" in a list; "stack" of matrices, read by `linear`; "transposed", the same
            read by a product; "all" at once, with the matrices of each row gathered.
        scored: what makes weights of the router's numbers.
    """

    def __init__(self, kind: str, scored: str = "softmax") -> None:
        super().__init__()
        self.kind, self.scored = kind, scored
        self.embed, self.norm = nn.Embedding(20, D), nn.RMSNorm(D)
        self.router, self.final, self.head = nn.Linear(D, COUNT), nn.RMSNorm(D), nn.Linear(D, 20)
        if kind == "modules":
            self.experts = nn.ModuleList(
                nn.Sequential(nn.Linear(D, WIDE), nn.GELU(), nn.Linear(WIDE, D))
                for _ in range(COUNT)
            )
        else:
            self.first = nn.Parameter(torch.zeros(COUNT, WIDE, D))
            self.bias = nn.Parameter(torch.zeros(COUNT, WIDE))
            self.second = nn.Parameter(torch.zeros(COUNT, D, WIDE))

    def expert(self, number: int, x: Tensor) -> Tensor:
        if self.kind == "modules":
            return self.experts[number](x)
        if self.kind == "stack":
            inner = F.gelu(F.linear(x, self.first[number], self.bias[number]))
            return F.linear(inner, self.second[number])
        return F.gelu(x @ self.first[number].T + self.bias[number]) @ self.second[number].T

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        rows = self.norm(x).flatten(0, 1)
        scores = self.router(rows)
        scores = scores.softmax(-1) if self.scored == "softmax" else scores.sigmoid()
        weights, chosen = scores.topk(2, -1)
        weights = weights / weights.sum(-1, keepdim=True)
        y = torch.zeros_like(rows)
        if self.kind == "all":
            for place in range(2):
                first, second = self.first[chosen[:, place]], self.second[chosen[:, place]]
                inner = torch.bmm(first, rows[..., None])[..., 0] + self.bias[chosen[:, place]]
                y = (
                    y
                    + torch.bmm(second, F.gelu(inner)[..., None])[..., 0] * weights[:, place, None]
                )
            return self.head(self.final(x + y.view_as(x)))
        for number in chosen.unique().tolist():
            picked, place = torch.where(chosen == number)
            out = self.expert(number, rows[picked]) * weights[picked, place, None]
            if self.kind == "modules":
                y[picked] += out
            else:
                y.index_add_(0, picked, out)
        return self.head(self.final(x + y.view_as(x)))


def mixture(kind: str, scored: str = "softmax") -> Mixture:
    model, generator = Mixture(kind, scored), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return model.double().eval()


def tokens(*shape: int) -> Tensor:
    return torch.randint(20, shape, generator=torch.Generator().manual_seed(sum(shape)))


def require_same(model: nn.Module, twin: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(twin(x), model(x), rtol=1e-9, atol=1e-9)


KINDS = ("modules", "stack", "transposed", "all")


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scored", ["softmax", "sigmoid"])
def test_a_stream_turns_with_all_experts_also_those_that_no_row_reached(
    kind: str, scored: str
) -> None:
    model, few, many = mixture(kind, scored), tokens(1, 2), tokens(9, 11)
    found = bp.symmetries(model, few)["embed"]
    assert found.group == G.Orthogonal(D), found
    assert found.certificate is not None and found.certificate.holds
    twin = bp.reparametrize(model, "embed", found.group.sample(torch.Generator().manual_seed(1)),
                            example_input=few)  # fmt: skip
    # Here all experts are reached.
    require_same(model, twin, many)


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("kind", KINDS)
def test_neurons_of_experts_change_places(kind: str) -> None:
    model, x = mixture(kind), tokens(2, 5)
    found = bp.symmetries(model, x)
    sites = [name for name in found if "gelu" in name or re.fullmatch(r"experts.\d.1", name)]
    assert sites
    for name in sites:
        assert found[name].group == G.Permutation(WIDE), found[name]
        assert found[name].certificate is not None and found[name].certificate.holds
    element = found[sites[0]].group.sample(torch.Generator().manual_seed(1))
    twin = bp.reparametrize(model, sites[0], element, example_input=x)
    require_same(model, twin, tokens(9, 11))
    if kind in ("stack", "transposed"):
        # One expert's neurons, and no other's.
        changed = (twin.first != model.first).flatten(1).any(1)
        reached = {int(place) for place in changed.nonzero()}
        assert 1 <= len(reached) < COUNT


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scored", ["softmax", "sigmoid"])
def test_experts_change_places_with_the_numbers_of_their_router(kind: str, scored: str) -> None:
    model, few, many = mixture(kind, scored), tokens(1, 3), tokens(9, 11)
    found = bp.symmetries(model, few)["router"]
    assert found.group == G.Permutation(COUNT), found
    assert "experts" in found.because
    assert found.certificate is not None and found.certificate.holds
    order = torch.eye(COUNT, dtype=torch.float64)[torch.randperm(COUNT)]
    twin = bp.reparametrize(model, "router", order, example_input=few)
    # Here all experts are reached, also those that were idle.
    require_same(model, twin, many)
    assert not torch.equal(twin.router.weight, model.router.weight)
    with pytest.raises(ValueError, match="cannot act"):
        bp.reparametrize(model, "router", 2 * order, example_input=few)


def test_experts_in_groups_change_places_inside_them_and_as_groups() -> None:
    class Grouped(Mixture):
        def forward(self, tokens: Tensor) -> Tensor:
            x = self.embed(tokens)
            rows = self.norm(x).flatten(0, 1)
            scores = self.router(rows).sigmoid()
            best = scores.view(-1, 2, COUNT // 2).topk(2, -1)[0].sum(-1).argmax(-1)
            mask = F.one_hot(best, 2).repeat_interleave(COUNT // 2, 1)
            weights, chosen = scores.masked_fill(mask == 0, 0.0).topk(2, -1)
            y = torch.zeros_like(rows)
            for number in chosen.unique().tolist():
                picked, place = torch.where(chosen == number)
                y[picked] += self.expert(number, rows[picked]) * weights[picked, place, None]
            return self.head(self.final(x + y.view_as(x)))

    model, generator = Grouped("modules"), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    model = model.double().eval()
    found = bp.symmetries(model, tokens(2, 5))["router"]
    assert found.group == G.Blocks(G.Permutation(COUNT // 2), 2), found
    assert found.certificate is not None and found.certificate.holds
    element = found.group.sample(generator)
    twin = bp.reparametrize(model, "router", element, example_input=tokens(2, 5))
    require_same(model, twin, tokens(9, 11))


def test_a_router_whose_experts_are_told_apart_is_not_claimed() -> None:
    class Weighted(Mixture):
        def expert(self, number: int, x: Tensor) -> Tensor:
            return (number + 1) * super().expert(number, x)

    model = Weighted("modules")
    model.load_state_dict(mixture("modules").state_dict())
    found = bp.symmetries(model.double().eval(), tokens(2, 5))["router"]
    assert found.privileged is bp.Privileged.UNKNOWN
    assert found.certificate is not None and not found.certificate.holds


def test_a_width_that_is_the_number_of_layers_makes_no_router() -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(5, 4), nn.Linear(4, 6)
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            for layer in self.layers:
                h = h + layer(h)
            return self.last(h).topk(2, -1).values

    torch.manual_seed(0)
    found = bp.symmetries(Deep().double().eval(), torch.randn(3, 5).double())["first"]
    assert found.group == G.GeneralLinear(4), found.because
    assert found.certificate is not None and found.certificate.holds


class Bent(nn.Module):
    """An expert whose function is its own."""

    def __init__(self, width: int, limit: float) -> None:
        super().__init__()
        self.first, self.second, self.limit = nn.Linear(D, width), nn.Linear(width, D), limit

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).clamp(0.0, self.limit))


@pytest.mark.parametrize("experts", [[(9, 1e3)] * 3 + [(9, 1e9)], [(9, 1e3)] * 3 + [(5, 1e3)]])
@pytest.mark.parametrize("asked", [True, False])
def test_experts_that_differ_where_no_example_shows_it_do_not_change_places(
    experts: list[tuple[int, float]], asked: bool
) -> None:
    class Few(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.router = nn.Embedding(20, D), nn.Linear(D, 4)
            self.experts = nn.ModuleList(Bent(*form) for form in experts)
            self.head = nn.Linear(D, 5)

        def forward(self, tokens: Tensor) -> Tensor:
            h = self.embed(tokens).flatten(0, 1)
            p, chosen = self.router(h).softmax(-1).max(-1)
            y = torch.zeros_like(h)
            for number, expert in enumerate(self.experts):
                y[chosen == number] += expert(h[chosen == number])
            return self.head(h + p[:, None] * y)

    torch.manual_seed(0)
    model = Few().double().eval()
    found = bp.symmetries(model, tokens(4, 9), certificates=asked)["router"]
    assert found.privileged is bp.Privileged.UNKNOWN
    assert "differ" in found.because if asked else "not asked for" in found.because
    with pytest.raises(ValueError, match="differ by more than the numbers"):
        order = torch.eye(4, dtype=torch.float64).roll(1, 0)
        bp.reparametrize(model, "router", order, example_input=tokens(4, 9))


def test_a_place_that_holds_fewer_rows_is_found_beyond_the_example() -> None:
    class Crowded(Mixture):
        def expert(self, number: int, x: Tensor) -> Tensor:
            rows = torch.arange(len(x))[:, None] < (99 if number else 5)
            return torch.where(rows, super().expert(number, x), 0.0)

    model = Crowded("stack")
    model.load_state_dict(mixture("stack").state_dict())
    model = model.double().eval()
    # With so few rows the place is not full, and with some more it is.
    found = bp.symmetries(model, tokens(2, 4))["router"]
    assert found.privileged is bp.Privileged.UNKNOWN


@pytest.mark.slow
def test_a_budget_that_experts_spend_in_order_is_found_beyond_the_example() -> None:
    class Budget(Mixture):
        def forward(self, tokens: Tensor) -> Tensor:
            rows = self.norm(self.embed(tokens)).flatten(0, 1)
            p, chosen = self.router(rows).softmax(-1).max(-1)
            served = torch.argsort(torch.argsort(chosen, stable=True)) < 20
            y = torch.zeros_like(rows)
            for number in range(COUNT):
                own = (chosen == number) & served
                y[own] = self.expert(number, rows[own]) * p[own, None]
            return self.head(self.final(rows + y))

    model = Budget("modules")
    model.load_state_dict(mixture("modules").state_dict())
    model = model.double().eval()
    # All ten rows are served.
    found = bp.symmetries(model, tokens(2, 5))["router"]
    assert found.privileged is bp.Privileged.UNKNOWN
    order = torch.eye(COUNT, dtype=torch.float64).flip(0)
    with pytest.raises(ValueError, match="does not compute the same"):
        bp.reparametrize(model, "router", order, example_input=tokens(2, 5))


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("special", range(2, COUNT))
def test_an_idle_expert_that_is_another_function_is_found(special: int) -> None:
    class Odd(Mixture):
        def expert(self, number: int, x: Tensor) -> Tensor:
            return super().expert(number, x.tanh() if number == special else x)

    model = Odd("stack")
    model.load_state_dict(mixture("stack").state_dict())
    with torch.no_grad():
        # The first two do all the work.
        model.router.bias[:2] += 100.0
    found = bp.symmetries(model.double().eval(), tokens(2, 5))["router"]
    assert found.privileged is bp.Privileged.UNKNOWN


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("turned", [False, True])
def test_an_expert_without_rows_is_no_failure(turned: bool) -> None:
    class All(Mixture):
        def forward(self, tokens: Tensor) -> Tensor:
            rows = self.norm(self.embed(tokens)).flatten(0, 1)
            p = self.router(rows).softmax(-1)
            chosen, y = p.argmax(-1), torch.zeros_like(rows)
            for number in range(COUNT):
                own = rows[chosen == number]
                made = self.expert(number, own.flip(-1) if turned else own)
                y[chosen == number] = made * p[chosen == number, number][:, None]
            return self.head(self.final(rows + y))

    model = All("modules")
    model.load_state_dict(mixture("modules").state_dict())
    with torch.no_grad():
        model.router.bias[0] += 100.0
    found = bp.symmetries(model.double().eval(), tokens(2, 5))
    assert found["head"].group == G.Trivial(20)


def test_a_stream_that_no_rule_covers_is_no_router_for_its_width() -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(5, 4), nn.Linear(4, 6)
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x).cumsum(-1)
            for layer in self.layers:
                h = h + layer(h)
            return self.last(h).topk(2, -1).values

    torch.manual_seed(0)
    found = bp.symmetries(Deep().double().eval(), torch.randn(3, 5).double())["first"]
    assert "experts" not in found.because and found.certificate is None


def test_a_stream_that_scales_its_own_rows_is_no_factor_from_elsewhere() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(5, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.up(x)
            return self.down(y * y.amax(-1, keepdim=True))

    found = bp.symmetries(Own().double().eval(), torch.randn(4, 5).double())
    assert found["up"].privileged in (bp.Privileged.UNKNOWN, bp.Privileged.AXES)


def test_a_gate_of_one_number_leaves_the_axes_of_what_it_multiplies_free() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.gate, self.down = nn.Linear(5, 6), nn.Linear(5, 1), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.down(self.up(x) * self.gate(x).sigmoid())

    model, x = Gated().double().eval(), torch.randn(4, 5).double()
    found = bp.symmetries(copy.deepcopy(model), x)
    assert found["up"].group == G.GeneralLinear(6)
    assert found["up"].certificate is not None and found["up"].certificate.holds
