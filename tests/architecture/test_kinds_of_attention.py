"""Attention whose pattern is no softmax of plain products of queries and keys."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import basis_probe as bp
from basis_probe import groups as G

# One class has the parts of all kinds of attention, of which each uses some.
pytestmark = pytest.mark.filterwarnings("ignore:the example did not use scale:UserWarning")

HEADS, SIZE, D = 3, 4, 10


class Mixed(nn.Module):
    """One layer of attention with a pattern of its own.

    Args:
        pattern: makes it of queries and keys [batch, head, position, axis of the head].
        before: what queries and keys pass first.
    """

    def __init__(self, pattern: Callable[..., Tensor], before: Callable[..., Tensor]) -> None:
        super().__init__()
        self.pattern, self.before = pattern, before
        self.e, self.n, self.f = nn.Linear(5, D), nn.RMSNorm(D), nn.RMSNorm(D)
        self.q, self.k, self.v = (nn.Linear(D, HEADS * SIZE) for _ in range(3))
        self.o, self.out = nn.Linear(HEADS * SIZE, D), nn.Linear(D, 3)
        self.scale = nn.Parameter(torch.zeros(HEADS, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.e(x)
        q, k, v = (
            m(self.n(h)).unflatten(-1, (HEADS, SIZE)).transpose(1, 2)
            for m in (self.q, self.k, self.v)
        )
        z = self.pattern(self.before(q), self.before(k), self.scale) @ v
        return self.out(self.f(h + self.o(z.transpose(1, 2).flatten(2))))


def divided(q: Tensor, k: Tensor, _: Tensor) -> Tensor:
    scores = q @ k.mT
    return scores / (scores.sum(-1, keepdim=True) + 1e-6)


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


FREE = G.Blocks(G.GeneralLinear(SIZE), HEADS)
KEPT = G.Blocks(G.GeneralLinear(SIZE), HEADS, order="kept")
ANY_TURNS = G.Blocks(G.Orthogonal(SIZE), HEADS)
TURNS = G.Blocks(G.Orthogonal(SIZE), HEADS, order="kept")
ORDER = G.Blocks(G.Permutation(SIZE), HEADS)

# name -> (pattern, what comes before, the group of queries and keys)
KINDS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], G.Group]] = {
    "sigmoid": (lambda q, k, _: (q @ k.mT).sigmoid(), lambda x: x, FREE),
    "none": (lambda q, k, _: q @ k.mT, lambda x: x, FREE),
    "capped": (lambda q, k, _: (5 * torch.tanh(q @ k.mT / 5)).softmax(-1), lambda x: x, FREE),
    "by head": (lambda q, k, t: (q @ k.mT * t.exp()).softmax(-1), lambda x: x, KEPT),
    "sink": (
        lambda q, k, t: torch.cat(
            [q @ k.mT, t.expand(len(q), -1, q.shape[2], 1)], -1
        ).softmax(-1)[..., :-1],
        lambda x: x, KEPT,
    ),
    "angles": (lambda q, k, t: (q @ k.mT * t.exp()).softmax(-1), unit, TURNS),
    "normalised": (
        lambda q, k, _: (q @ k.mT).softmax(-1), lambda x: F.normalize(x, dim=-1), ANY_TURNS,
    ),
    "elu": (divided, lambda x: F.elu(x) + 1, ORDER),
    "squared": (divided, lambda x: x.relu().square(), ORDER),
    "softplus": (lambda q, k, _: q @ k.mT, F.softplus, ORDER),
}  # fmt: skip


def settled(name: str) -> Mixed:
    pattern, before, _ = KINDS[name]
    model, generator = Mixed(pattern, before), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return model.double().eval()


def rows(*shape: int) -> Tensor:
    return torch.randn(*shape, 5, generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.sample(default=3)
@pytest.mark.parametrize("name", KINDS)
def test_queries_keys_and_values_have_what_their_attention_leaves(name: str) -> None:
    model, x, group = settled(name), rows(2, 4), KINDS[name][2]
    found = bp.symmetries(model, x)
    assert found["e"].group == G.Orthogonal(D), found["e"]
    for site in ("q", "k"):
        assert found[site].group == group, (site, found[site])
    for site in ("v", "o:in"):
        assert found[site].group in (FREE, KEPT), (site, found[site])
    for site in ("e", "q", "k", "v", "o:in"):
        proof = found[site].certificate
        assert proof is not None and proof.holds, (site, found[site])
    element = group.sample(torch.Generator().manual_seed(2))
    twin = bp.reparametrize(model, "k", element, example_input=x)
    torch.testing.assert_close(twin(rows(3, 7)), model(rows(3, 7)), rtol=1e-7, atol=1e-9)


def test_heads_with_numbers_of_their_own_stay() -> None:
    assert bp.symmetries(settled("sink"), rows(2, 4))["v"].group == KEPT
    assert bp.symmetries(settled("none"), rows(2, 4))["v"].group == FREE


class UnderGains(nn.Module):
    """Grouped queries and keys, each read by an RMSNorm of its own.

    Args:
        shared: True for one gain for all heads, False for one that spans them.
        rotary: True if positions turn planes of queries and keys.
    """

    def __init__(self, *, shared: bool, rotary: bool) -> None:
        super().__init__()
        self.shared, self.rotary = shared, rotary
        self.e, self.n, self.f = nn.Linear(5, D), nn.RMSNorm(D), nn.RMSNorm(D)
        self.q, self.k, self.v = (nn.Linear(D, heads * SIZE) for heads in (6, 3, 3))
        self.q_norm, self.k_norm = (
            nn.RMSNorm(SIZE if shared else heads * SIZE) for heads in (6, 3)
        )
        self.o, self.out = nn.Linear(6 * SIZE, D), nn.Linear(D, 3)

    def turned(self, x: Tensor) -> Tensor:
        if not self.rotary:
            return x
        angle = torch.arange(x.shape[2]).to(x)[:, None] * torch.tensor([1.0, 0.3]).to(x)
        cos, sin = (f(torch.cat([angle, angle], -1)) for f in (torch.cos, torch.sin))
        a, b = x.chunk(2, -1)
        return x * cos + torch.cat([-b, a], -1) * sin

    def forward(self, x: Tensor) -> Tensor:
        h = self.e(x)
        q, k, v = self.q(self.n(h)), self.k(self.n(h)), self.v(self.n(h))
        if not self.shared:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (t.unflatten(-1, (-1, SIZE)).transpose(1, 2) for t in (q, k, v))
        if self.shared:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = self.turned(q), self.turned(k)
        k, v = (t.repeat_interleave(2, 1) for t in (k, v))
        z = (q @ k.mT).softmax(-1) @ v
        return self.out(self.f(h + self.o(z.transpose(1, 2).flatten(2))))


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("rotary", [True, False])
def test_heads_change_places_under_the_gain_of_their_norm(shared: bool, rotary: bool) -> None:
    model, generator = UnderGains(shared=shared, rotary=rotary), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    model, x = model.double().eval(), rows(2, 4)
    found = bp.symmetries(model, x)
    inner = G.SignedPlanes(SIZE) if rotary else G.SignedPermutation(SIZE)
    assert found["q"].group == G.Blocks(inner, 3, 2, alike=shared)
    assert found["k"].group == G.Blocks(inner, 3, 1, alike=shared)
    assert found["v"].group == G.Blocks(G.GeneralLinear(SIZE), 3)
    for site in ("q", "k", "v"):
        assert bp.certify(model, site, x, elements=4).holds
        for seed in range(3):
            element = found[site].group.sample(torch.Generator().manual_seed(seed))
            twin = bp.reparametrize(model, site, element, example_input=x)
            torch.testing.assert_close(twin(rows(3, 7)), model(rows(3, 7)), rtol=1e-7, atol=1e-9)


Scores = Callable[[Tensor], Tensor]


def _distances(scores: Tensor) -> Tensor:
    places = torch.arange(scores.shape[-1])
    return (places[:, None] - places).abs()


def _windows(scores: Tensor) -> Tensor:
    windows = torch.tensor([100, 10])[:, None, None]
    return scores.masked_fill(_distances(scores) >= windows, -1e9)


def _stacked(scores: Tensor) -> Tensor:
    far = _distances(scores)
    return scores.masked_fill(~torch.stack([far < 100, far < 10]), -1e9)


def _clipped(scores: Tensor) -> Tensor:
    far = _distances(scores).double()
    return scores - 0.1 * torch.stack([far.clamp(max=8.0), far])


def _capped(scores: Tensor) -> Tensor:
    return torch.stack([scores[:, 0].clamp(-1e4, 1e4), scores[:, 1]], 1)


@pytest.mark.parametrize("bent", [_windows, _stacked, _clipped, _capped])
def test_heads_that_differ_only_beyond_the_example_keep_their_places(bent: Scores) -> None:
    class Apart(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            parts = (m(x).unflatten(-1, (2, 4)).transpose(1, 2) for m in (self.q, self.k, self.v))
            q, k, v = parts
            z = bent(q @ k.transpose(-1, -2) / 2).softmax(-1) @ v
            return self.o(z.transpose(1, 2).flatten(2))

    torch.manual_seed(0)
    found = bp.symmetries(Apart().double().eval(), torch.randn(2, 6, 8).double())
    for site in ("q", "k", "v"):
        group = found[site].group
        assert isinstance(group, bp.groups.Blocks) and group.order == "kept", found[site]


class ValuesOfOneLength(Mixed):
    """Values that every head divides by their length, as Gemma 4 does."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.e(x)
        q, k, v = (
            m(self.n(h)).unflatten(-1, (HEADS, SIZE)).transpose(1, 2)
            for m in (self.q, self.k, self.v)
        )
        z = self.pattern(q, k, self.scale) @ F.rms_norm(v, (SIZE,))
        return self.out(self.f(h + self.o(z.transpose(1, 2).flatten(2))))


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("name", ["sigmoid", "by head"])
def test_values_of_one_length_turn_inside_their_heads(name: str) -> None:
    pattern, before, kept = KINDS[name]
    model, generator = ValuesOfOneLength(pattern, before), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    model, x = model.double().eval(), rows(2, 4)
    found = bp.symmetries(model, x)
    for site in ("v", "o:in"):
        assert found[site].group == (TURNS if kept is KEPT else ANY_TURNS), found[site]
        proof = found[site].certificate
        assert proof is not None and proof.holds, found[site]
        element = found[site].group.sample(torch.Generator().manual_seed(2))
        twin = bp.reparametrize(model, site, element, example_input=x)
        torch.testing.assert_close(twin(rows(3, 7)), model(rows(3, 7)), rtol=1e-7, atol=1e-9)
    assert found["q"].group == kept and found["q"].certificate is not None
