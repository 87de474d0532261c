"""What is claimed is true of longer inputs than the example, whatever is made of positions."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import basis_probe as bp
from basis_probe import groups as G
from basis_probe.model.facts import generic
from basis_probe.model.longer import at_positions
from basis_probe.model.sweep import Sweep
from basis_probe.model.weights import Slots
from tests.draws import seeded
from tests.model.test_facts import facts_of

D, LIMIT = 8, 16


class Positions(nn.Module):
    """Two linear maps, and a function of positions between them."""

    def __init__(self, between: "Between") -> None:
        super().__init__()
        self.a, self.b, self.between = nn.Linear(12, D), nn.Linear(D, 10), between
        self.v = nn.Parameter(torch.zeros(D))
        self.rows = nn.Parameter(torch.zeros(4, D))
        self.table = nn.Parameter(torch.zeros(64, D))
        self.deep = nn.Parameter(torch.zeros(1, 64, D))
        self.register_buffer("late", torch.arange(64) >= LIMIT)
        gain = torch.randn(64, D, generator=seeded(9))
        gain[:LIMIT] = 1.0
        self.register_buffer("gain", gain)
        for parameter in self.parameters():
            drawn = torch.randn(parameter.shape, generator=seeded(parameter.numel()))
            parameter.data = drawn

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.between(self, self.a(x), x.shape[1]))


Between = Callable[[Positions, Tensor, int], Tensor]


def early(length: int) -> Tensor:
    return (torch.arange(length) < LIMIT)[:, None]


# What is done, and the largest group that may be claimed where `a` writes.
KINDS: dict[str, tuple[Between, type[G.Group] | None]] = {
    "a mask that is a buffer": (
        lambda s, h, t: h.masked_fill(s.late[:t, None], 1.0),
        G.Permutation,
    ),
    "zeros behind it": (lambda s, h, t: h.masked_fill(s.late[:t, None], 0.0), G.GeneralLinear),
    "a product with a mask": (lambda s, h, t: h * ~s.late[:t, None], G.GeneralLinear),
    "counted": (lambda s, h, t: torch.where(early(t), h, 1.0), G.Permutation),
    "bent later": (lambda s, h, t: torch.where(early(t), h, h.relu()), G.PositiveMonomial),
    "added later": (lambda s, h, t: h + ~early(t), G.Permutation),
    "clipped later": (
        lambda s, h, t: torch.minimum(h.relu(), torch.where(early(t), torch.inf, 1.0)),
        G.Permutation,
    ),
    "one number a row": (
        lambda s, h, t: h * torch.where(early(t), 1.0, 0.5),
        G.GeneralLinear,
    ),
    "a learned row later": (lambda s, h, t: torch.where(early(t), h, s.v), G.GeneralLinear),
    "one position": (
        lambda s, h, t: torch.where((torch.arange(t) == 20)[:, None], h.relu(), h),
        G.PositiveMonomial,
    ),
    "every so many": (
        lambda s, h, t: torch.where((torch.arange(t) % 32 == 31)[:, None], h.relu(), h),
        G.PositiveMonomial,
    ),
    "ones that are summed up": (
        lambda s, h, t: h + (torch.ones(t).cumsum(0) > LIMIT)[:, None],
        G.Permutation,
    ),
    "a list": (
        lambda s, h, t: h + torch.tensor([float(i >= LIMIT) for i in range(t)]).to(h)[:, None],
        G.Permutation,
    ),
    "a triangle": (
        lambda s, h, t: h + torch.ones(t, t).tril(-LIMIT).sum(1).to(h)[:, None],
        G.Permutation,
    ),
    "a copy of a table": (
        lambda s, h, t: h.masked_fill(s.late.clone()[:t, None], 1.0),
        G.Permutation,
    ),
    "a mask of a batch": (
        lambda s, h, t: h * torch.ones(len(h), 1, 1).to(h),
        G.GeneralLinear,
    ),
    "a bound of positions": (
        lambda s, h, t: torch.where(h > ~early(t), h, 0.0),
        G.Permutation,
    ),
    "a fixed table": (lambda s, h, t: h * s.gain[:t], None),
    "a table of gains": (lambda s, h, t: h * (1 + ~early(t) * s.v), None),
    "rows of learned gains": (lambda s, h, t: h * s.rows[torch.arange(t) // LIMIT], None),
    "rows of a learned table": (
        lambda s, h, t: h.relu() * s.rows[torch.arange(t) // LIMIT],
        G.PositiveMonomial,
    ),
    "such rows, added": (lambda s, h, t: h + s.rows[torch.arange(t) // LIMIT], G.GeneralLinear),
    "an embedding": (
        lambda s, h, t: h.relu() + F.embedding(torch.arange(t) // LIMIT, s.rows),
        G.PositiveMonomial,
    ),
    "the first rows": (lambda s, h, t: h.relu() * (1 + s.table[:t]), G.PositiveMonomial),
    "the first rows, bounding": (lambda s, h, t: torch.minimum(h, s.table[:t]), G.Permutation),
    "the first rows, within": (lambda s, h, t: (h * s.deep[:, :t]).tanh(), G.SignedPermutation),
    "zeros that are made": (lambda s, h, t: h + torch.zeros(t, D).to(h), G.GeneralLinear),
    "ones that are made": (
        lambda s, h, t: h.relu() * torch.ones(t, D).to(h),
        G.PositiveMonomial,
    ),
    "lengths that are all of it": (
        lambda s, h, t: h * (torch.arange(t) < torch.full((len(h), 1), t))[..., None],
        G.GeneralLinear,
    ),
}


def made(name: str) -> Positions:
    return Positions(KINDS[name][0]).double()


def drawn(seed: int, length: int) -> Tensor:
    return torch.randn(3, length, 12, generator=seeded(seed), dtype=torch.float64)


@pytest.mark.filterwarnings("ignore:the example did not use:UserWarning")
@pytest.mark.parametrize("length", [5, 20])
@pytest.mark.parametrize("name", KINDS)
def test_what_is_proved_on_a_short_example_is_true_of_a_long_one(name: str, length: int) -> None:
    model, example = made(name), drawn(1, length)
    found = bp.symmetries(model, example)
    largest = KINDS[name][1]
    for site in ("a", "b:in"):
        claim = found[site]
        if largest is None:
            assert isinstance(claim.group, G.Unknown)
            continue
        assert type(claim.group) is largest, (site, claim)
        assert claim.certificate is not None and claim.certificate.holds
        element = claim.group.sample(seeded(3))
        other = bp.reparametrize(model, site, element, example_input=example)
        for size in (length, 9, 40):
            x = drawn(size, size)
            torch.testing.assert_close(other(x), model(x), rtol=1e-9, atol=1e-9)


def test_an_example_of_other_lengths_has_the_same_groups() -> None:
    for name in KINDS:
        short, long = (bp.symmetries(made(name), drawn(2, size)) for size in (4, 30))
        for site in ("a", "b:in"):
            assert repr(short[site].group) == repr(long[site].group), (name, site)


MADE = frozenset({"zeros that are made", "ones that are made", "a mask of a batch"})

# Of one number it cannot be seen that there would be more of them.
NOT_SEEN = frozenset({"ones that are summed up", "a list", "a triangle"})


@pytest.mark.parametrize("name", KINDS)
def test_an_example_of_one_position_claims_nothing_of_others(name: str) -> None:
    found = bp.symmetries(made(name), drawn(1, 1))
    for site in ("a", "b:in"):
        group = found[site].group
        if name in MADE:
            assert type(group) is KINDS[name][1]
        elif name not in NOT_SEEN:
            assert isinstance(group, G.Unknown)
            assert "give an example of several positions" in found[site].because


def test_constants_that_are_alike_for_every_length_stay_as_they_are() -> None:
    for name in ("zeros that are made", "ones that are made"):
        model = made(name)
        seen = generic(facts_of(model, drawn(1, 5)))
        assert not seen.graph.trace.further


@pytest.mark.parametrize("size", [2, 5, 16])
def test_positions_far_apart_start_where_they_did_and_grow(size: int) -> None:
    class Counted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.arange(3, 3 + size)[:, None]

    facts = facts_of(Counted(), torch.randn(2, size, 4))
    trace = facts.graph.trace
    (counted,) = (node.index for node in trace.nodes if node.op == "arange")
    found = at_positions(trace, [counted])
    assert found is not None
    places = found[counted]
    assert int(places[0]) == 3 and bool((places.diff() > 0).all()) and int(places[-1]) > 10_000


def test_what_takes_the_place_of_constants_does_so_in_proofs_only() -> None:
    class Counted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.arange(3)[:, None]

    x, model = torch.randn(2, 3, 4, dtype=torch.float64, generator=seeded(1)), Counted()
    trace = facts_of(model, x).graph.trace
    sweep = Sweep(trace, Slots(model, trace))
    (counted,) = (node.index for node in trace.nodes if node.op == "arange")
    sweep.further = {counted: torch.tensor([5, 7, 9])}
    seen: dict[int, Tensor] = {}
    assert not sweep.run([x], [], lambda index, value, _: seen.update({index: value}))
    torch.testing.assert_close(seen[sweep.outputs[0]], x * torch.tensor([5, 7, 9])[:, None])
    torch.testing.assert_close(next(iter(sweep.own([x]))), model(x))


# --- numbers that leave torch ---------------------------------------------------------------------

LEAVING: dict[str, Callable[[Tensor], Tensor]] = {
    "a function of NumPy": lambda h: torch.from_numpy(np.tanh(h.detach().numpy())),
    "as an array": lambda h: torch.as_tensor(np.tanh(np.asarray(h.detach()))),
    "lists": lambda h: torch.tensor(h.tolist(), dtype=h.dtype),
    "beside it": lambda h: h + torch.from_numpy(np.tanh(h.detach().numpy())),
    "a gate": lambda h: h * torch.from_numpy(1 / (1 + np.exp(-h[..., :1].detach().numpy()))),
    "in place": lambda h: (np.maximum(h.numpy(), 0, out=h.numpy()), h)[1],
}


@pytest.mark.parametrize("name", LEAVING)
def test_what_other_libraries_make_of_numbers_is_not_known(name: str) -> None:
    class Left(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(12, D), nn.Linear(D, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(LEAVING[name](self.a(x).detach()))

    found = bp.symmetries(Left().double(), drawn(1, 5))
    assert isinstance(found["a"].group, G.Unknown)
    # What nobody saw being made may have no place of its own.
    assert "b:in" not in found or isinstance(found["b:in"].group, G.Unknown)
    if name in ("a function of NumPy", "lists", "in place"):
        assert "leave torch" in found["a"].because
