"""Values that a gate multiplies behind attention, as in recent decoders, feature by feature."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import basis_probe as bp
from basis_probe.algebra import groups as G

WIDTH, HEADS, SIZE, TOKENS = 10, 4, 3, 20
Function = Callable[[Tensor], Tensor]


class Gated(nn.Module):
    """One layer of attention whose result a gate multiplies.

    Args:
        function: what makes the gate.
        shared: how many heads of keys and values there are.
        fused: True if one map writes a head's query beside its gate.
    """

    def __init__(self, function: Function, shared: int = HEADS, *, fused: bool = False) -> None:
        super().__init__()
        self.function, self.fused = function, fused
        self.embed, self.head = nn.Embedding(TOKENS, WIDTH), nn.Linear(WIDTH, TOKENS)
        self.q = nn.Linear(WIDTH, (1 + fused) * HEADS * SIZE)
        self.k, self.v = nn.Linear(WIDTH, shared * SIZE), nn.Linear(WIDTH, shared * SIZE)
        self.o = nn.Linear(HEADS * SIZE, WIDTH)
        self.g = nn.Identity() if fused else nn.Linear(WIDTH, HEADS * SIZE)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embed(tokens)
        if self.fused:
            q, g = self.q(h).unflatten(-1, (HEADS, 2 * SIZE)).chunk(2, -1)
            g = g.flatten(2)
        else:
            q, g = self.q(h).unflatten(-1, (HEADS, SIZE)), self.g(h)
        k, v = (part(h).unflatten(-1, (-1, SIZE)) for part in (self.k, self.v))
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        times = HEADS // k.shape[1]
        k, v = k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        return self.head(h + self.o(z * self.function(g)))


def example(*shape: int) -> Tensor:
    return torch.randint(TOKENS, shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.sample(default=2)
@pytest.mark.parametrize("function", [torch.sigmoid, F.silu])
@pytest.mark.parametrize("shared", [HEADS, 2, 1])
@pytest.mark.parametrize("fused", [False, True])
def test_gated_values_change_places_and_scale_inside_heads_that_change_places(
    function: Function, shared: int, fused: bool
) -> None:
    model, copies = Gated(function, shared, fused=fused).double().eval(), HEADS // shared
    found = bp.symmetries(model, example(2, 6))
    wanted: dict[str, G.Group] = {
        "v": G.Blocks(G.Monomial(SIZE), shared),
        "o:in": G.Blocks(G.Monomial(SIZE), shared, copies),
    }
    if not fused:
        wanted["g"] = G.Blocks(G.Permutation(SIZE), shared, copies)
    for name, group in wanted.items():
        symmetry = found[name]
        assert symmetry.group == group, symmetry.because
        assert symmetry.certificate is not None and symmetry.certificate.holds
        element = group.sample(torch.Generator().manual_seed(3))
        twin = bp.reparametrize(model, name, element, example_input=example(2, 6))
        assert not torch.equal(twin.v.weight, model.v.weight)
        with torch.no_grad():
            torch.testing.assert_close(twin(example(3, 9)), model(example(3, 9)))


@pytest.mark.parametrize("by", ["gate", "values"])
def test_what_is_read_elsewhere_too_is_not_claimed(by: str) -> None:
    class Twice(Gated):
        def forward(self, tokens: Tensor) -> Tensor:
            part = self.g if by == "gate" else self.v
            return super().forward(tokens) + part(self.embed(tokens)).cos().cumsum(-1)[..., :1]

    found = bp.symmetries(Twice(torch.sigmoid, 2).double().eval(), example(2, 6))
    for name in ("v", "o:in", "g"):
        symmetry = found[name]
        proved = symmetry.certificate is not None and symmetry.certificate.holds
        assert symmetry.privileged is bp.Privileged.UNKNOWN or proved
        assert not isinstance(symmetry.group, G.Blocks)


@pytest.mark.parametrize("shared", [HEADS, 2])
def test_what_is_added_behind_the_gate_follows(shared: int) -> None:
    class Added(Gated):
        def __init__(self) -> None:
            super().__init__(torch.sigmoid, shared)
            self.shift = nn.Parameter(torch.linspace(-1.0, 1.0, HEADS * SIZE))

        def forward(self, tokens: Tensor) -> Tensor:
            h = self.embed(tokens)
            q, k, v = (part(h).unflatten(-1, (-1, SIZE)) for part in (self.q, self.k, self.v))
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
            times = HEADS // k.shape[1]
            k, v = k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)
            z = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            return self.head(h + self.o(z * self.g(h).sigmoid() + self.shift))

    found = bp.symmetries(Added().double().eval(), example(2, 6))["v"]
    if shared == HEADS:
        assert found.group == G.Blocks(G.Monomial(SIZE), shared)
    assert found.privileged is bp.Privileged.UNKNOWN or (
        found.certificate is not None and found.certificate.holds
    )


@pytest.mark.parametrize("asked", [True, False])
def test_keys_that_gate_values_leave_queries_unclaimed(asked: bool) -> None:
    class ByKeys(Gated):
        def forward(self, tokens: Tensor) -> Tensor:
            h = self.embed(tokens)
            q, k, v = (part(h).unflatten(-1, (-1, SIZE)) for part in (self.q, self.k, self.v))
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
            z = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            return self.head(h + self.o(z * self.k(h).sigmoid()))

    model = ByKeys(torch.sigmoid).double().eval()
    found = bp.symmetries(model, example(2, 6), certificates=asked)
    for site in ("q", "k", "v"):
        assert found[site].privileged is bp.Privileged.UNKNOWN, found[site]


def test_a_norm_of_each_head_before_a_gate_is_not_claimed_head_by_head() -> None:
    class Normed(Gated):
        def __init__(self) -> None:
            super().__init__(torch.sigmoid)
            self.norm = nn.RMSNorm(SIZE)

        def forward(self, tokens: Tensor) -> Tensor:
            h = self.embed(tokens)
            q, k, v = (part(h).unflatten(-1, (-1, SIZE)) for part in (self.q, self.k, self.v))
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
            z = self.norm(F.scaled_dot_product_attention(q, k, v)).transpose(1, 2).flatten(2)
            return self.head(h + self.o(z * self.g(h).sigmoid()))

    # One gain serves all heads, so that their features would change places alike.
    found = bp.symmetries(Normed().double().eval(), example(2, 6))
    for site in ("v", "o:in", "g"):
        assert found[site].privileged is bp.Privileged.UNKNOWN, found[site]
