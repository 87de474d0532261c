"""What people write themselves has the groups of what it computes, whichever calls make it."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from written import Written, drawn, moved

import basis_probe as bp
from basis_probe import groups as G

D, H, HEADS, SIZE = 6, 8, 2, 4


class Net(Written):
    """The same between a map of the input and one behind."""

    def __init__(self, forward: Callable[..., Tensor], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__(forward, e=nn.Linear(9, D), o=nn.Linear(D, 3), **parts)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.run(self, self.e(x)))


def holds(model: nn.Module, site: str, group: bp.groups.Group, *inputs: Tensor) -> None:
    """The group is claimed, also without a proof, and proved, and a twin computes the same."""
    x = inputs[0]
    assert bp.symmetries(model, x, certificates=False)[site].group == group
    found = bp.symmetries(model, x)[site]
    assert found.group == group
    assert found.certificate is not None and found.certificate.holds
    twin = bp.reparametrize(
        model, site, group.generic(torch.Generator().manual_seed(1)).matrix(), example_input=x
    )
    for given in inputs:
        assert torch.allclose(twin(given), model(given), atol=1e-8)


def layer_norm(s: Net, h: Tensor) -> Tensor:
    """As tutorials write it, with the deviation of a sample."""
    mean, deviation = h.mean(-1, keepdim=True), h.std(-1, keepdim=True)
    return s.a * (h - mean) / (deviation + 1e-6) + s.b


def modulated(s: Net, h: Tensor) -> Tensor:
    """A norm without a gain, which a condition scales and shifts."""
    scale, shift = s.c(h.mean(1, keepdim=True)).chunk(2, -1)
    return F.layer_norm(h, (D,)) * (1 + scale) + shift


def recurrence(s: Net, h: Tensor) -> Tensor:
    state = torch.zeros(h.shape[0], D, dtype=h.dtype)
    for step in h.unbind(1):
        state = torch.tanh(step + s.back(state))
    return state


def decays(s: Net, h: Tensor) -> Tensor:
    state = torch.zeros_like(h[:, 0])
    for step in h.unbind(1):
        state = torch.sigmoid(s.decay) * state + step
    return state


def gated_steps(s: Net, h: Tensor) -> Tensor:
    gate, state = torch.sigmoid(s.gate(h)), torch.zeros_like(h[:, 0])
    for place in range(h.shape[1]):
        state = (1 - gate[:, place]) * state + gate[:, place] * h[:, place]
    return state


def vector() -> nn.Parameter:
    return nn.Parameter(torch.ones(D))


WRITTEN = {
    "a norm": (layer_norm, {"a": vector(), "b": vector()}, G.LineStabiliser(D)),
    "a modulated norm": (modulated, {"c": nn.Linear(D, 2 * D)}, G.Permutation(D)),
    "a recurrence": (recurrence, {"back": nn.Linear(D, D)}, G.SignedPermutation(D)),
    "without a bias": (recurrence, {"back": nn.Linear(D, D, bias=False)}, G.SignedPermutation(D)),
    "decays": (decays, {"decay": vector()}, G.Monomial(D)),
    "gated steps": (gated_steps, {"gate": nn.Linear(D, D)}, G.Monomial(D)),
    "a running sum": (lambda s, h: h.cumsum(1), {}, G.GeneralLinear(D)),
    "both directions": (lambda s, h: h + h.flip(1) + h.roll(1, 1), {}, G.GeneralLinear(D)),
    "the largest": (lambda s, h: h.amax(1), {}, G.PositiveMonomial(D)),
    "the largest, with places": (lambda s, h: h.max(dim=1).values, {}, G.PositiveMonomial(D)),
    "in order": (lambda s, h: h.sort(dim=1)[0], {}, G.PositiveMonomial(D)),
    "deviations": (lambda s, h: h.std(dim=1), {}, G.Monomial(D)),
    "a soft maximum": (lambda s, h: h.logsumexp(1), {}, G.Permutation(D)),
    "standardised": (
        lambda s, h: (h - h.mean(1, keepdim=True)) / (h.std(1, keepdim=True) + 1e-3),
        {}, G.SignedPermutation(D),
    ),
    "weighed along": (lambda s, h: (s.w(h).softmax(1) * h).sum(1), {"w": nn.Linear(D, D)},
                      G.Monomial(D)),
}  # fmt: skip


@pytest.mark.sample(default=8)
@pytest.mark.parametrize("name", WRITTEN)
def test_a_stream_has_what_its_readers_leave(name: str) -> None:
    forward, parts, group = WRITTEN[name]
    model = moved(Net(forward, **parts))
    holds(model, "e", group, drawn(4, 5, 9), drawn(3, 5, 9, seed=4))


def turned(x: Tensor) -> Tensor:
    angle = torch.arange(x.shape[-2]).to(x)[:, None] * torch.tensor([1.0, 0.3]).to(x)
    a, b = x.chunk(2, -1)
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)


def as_complex(x: Tensor) -> Tensor:
    """Planes (2i, 2i + 1) as complex numbers, as the first Llama turned them."""
    angle = torch.arange(x.shape[-2])[:, None] * torch.tensor([1.0, 0.3])
    factor = torch.polar(torch.ones_like(angle), angle)
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * factor).flatten(-2)


def unit(x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), eps=1e-30)


class Heads(nn.Module):
    """Attention whose queries and keys pass a function before they meet."""

    def __init__(self, before: Callable[..., Tensor], norm: type[nn.Module] | None = None) -> None:
        super().__init__()
        self.before = before
        self.q, self.k, self.v, self.o = *(nn.Linear(9, H) for _ in range(3)), nn.Linear(H, 3)
        self.sizes = nn.Parameter(torch.ones(HEADS, 1, 1))
        self.nq, self.nk = (nn.Identity() if norm is None else norm(SIZE) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        maps = (self.q, self.k, self.v)
        q, k, v = (m(x).unflatten(-1, (HEADS, SIZE)).transpose(1, 2) for m in maps)
        q, k = self.before(self.nq(q)), self.before(self.nk(k))
        z = (q @ k.mT).softmax(-1) @ (v * self.sizes)
        return self.o(z.transpose(1, 2).flatten(2))


def blocks(inner: bp.groups.Group, *, alike: bool = False) -> G.Blocks:
    """Heads keep their places, as each is multiplied by a number of its own."""
    return G.Blocks(inner, HEADS, order="kept", alike=alike)


MET = {
    "complex": (as_complex, None, G.Planes(SIZE, "adjacent"), False),
    "turned and normed": (lambda x: unit(turned(x)), None, G.PlaneRotations(SIZE), False),
    "normed and turned": (lambda x: turned(unit(x)), None, G.PlaneRotations(SIZE), False),
    "layer norm": (lambda x: x, nn.LayerNorm, G.Permutation(SIZE), True),
    "layer norm and turned": (turned, nn.LayerNorm, G.Trivial(SIZE), True),
    "layer norm, no gain": (
        lambda x: F.layer_norm(x, (SIZE,), eps=1e-30), None, G.LineRotations(SIZE), False,
    ),
}  # fmt: skip


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("name", MET)
def test_queries_and_keys_have_what_positions_and_norms_leave(name: str) -> None:
    before, norm, inner, alike = MET[name]
    model = moved(Heads(before, norm))
    for site in ("q", "k"):
        holds(model, site, blocks(inner, alike=alike), drawn(2, 5, 9), drawn(3, 7, 9, seed=4))
    holds(model, "v", blocks(G.GeneralLinear(SIZE)), drawn(2, 5, 9))


class Behind(nn.Module):
    """Attention of grouped or single queries; something multiplies, or divides, what it mixed."""

    def __init__(self, kind: str, copies: int) -> None:
        super().__init__()
        self.kind, self.copies = kind, copies
        self.q, self.o = nn.Linear(9, copies * H), nn.Linear(copies * H, 3)
        self.k, self.v = nn.Linear(9, H), nn.Linear(9, H)
        self.gate = nn.Linear(9, copies * H) if kind == "gate" else None
        self.norm = nn.RMSNorm(copies * H) if kind == "norm" else None

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (m(x).unflatten(-1, (-1, SIZE)).transpose(1, 2) for m in (self.q, self.k, self.v))
        k, v = (t.repeat_interleave(self.copies, 1) for t in (k, v))
        v = torch.tanh(v) if self.kind == "bends" else v
        z = ((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2)
        if self.kind == "bends":
            z = F.gelu(z)
        if self.gate is not None:
            z = z * torch.sigmoid(self.gate(x))
        return self.o(z if self.norm is None else self.norm(z))


HALVES = tuple(G.DirectSum((kind(SIZE),) * HEADS) for kind in (G.Monomial, G.Permutation))
MIXED = {
    ("gate", 1): {
        "v": G.Blocks(G.Monomial(SIZE), HEADS),
        "o:in": G.Blocks(G.Monomial(SIZE), HEADS),
        "gate": G.Blocks(G.Permutation(SIZE), HEADS),
    },
    ("gate", 2): {
        "v": G.Blocks(G.Monomial(SIZE), HEADS),
        "o:in": G.Blocks(G.Monomial(SIZE), HEADS, 2),
        "gate": G.Blocks(G.Permutation(SIZE), HEADS, 2),
    },
    ("bends", 1): {"v": HALVES[1], "o:in": HALVES[1]},
    ("norm", 1): {"v": blocks(G.Orthogonal(SIZE)), "norm:in": blocks(G.Orthogonal(SIZE))},
    ("norm", 2): {"v": blocks(G.Orthogonal(SIZE))},
}


@pytest.mark.sample(default=1)
@pytest.mark.parametrize(("kind", "copies"), MIXED)
def test_values_have_what_reads_them_behind_attention(kind: str, copies: int) -> None:
    model = moved(Behind(kind, copies))
    for site, group in MIXED[kind, copies].items():
        holds(model, site, group, drawn(2, 5, 9), drawn(3, 7, 9, seed=4))
    order = "free" if kind == "gate" else "kept"
    holds(model, "q", G.Blocks(G.GeneralLinear(SIZE), HEADS, copies, order), drawn(2, 5, 9))
