"""Queries, keys and values that a function bends before attention, and constants that are added."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import basis_probe as bp
from basis_probe.algebra import groups as G

LENGTH, WIDTH, HEADS, SIZE, TOKENS = 6, 10, 3, 4, 20
Function = Callable[[Tensor], Tensor]


def turned(x: Tensor, first: int) -> Tensor:
    """Rotary embedding of the first axes of every head, planes (i, i + first / 2)."""
    angles = torch.arange(x.shape[1])[:, None] / 10.0 ** torch.arange(first // 2)
    cosine, sine = (torch.cat([f(angles)] * 2, -1)[:, None] for f in (torch.cos, torch.sin))
    one, rest = x[..., :first], x[..., first:]
    half = torch.cat([-one[..., first // 2 :], one[..., : first // 2]], -1)
    return torch.cat([one * cosine + half * sine, rest], -1)


class Decoder(nn.Module):
    """One layer of attention, whose queries and keys, and values, are bent by two functions.

    Args:
        bend: what bends queries and keys.
        values: what bends values.
        rotary: how many axes of each head turn.
        shared: how many heads of keys and values there are.
    """

    def __init__(
        self, bend: Function | None, values: Function | None, rotary: int = 0, shared: int = HEADS
    ) -> None:
        super().__init__()
        self.bend, self.values, self.rotary = bend, values, rotary
        self.embed, self.head = nn.Embedding(TOKENS, WIDTH), nn.Linear(WIDTH, TOKENS)
        self.norm = nn.LayerNorm(WIDTH)
        self.q, self.o = nn.Linear(WIDTH, HEADS * SIZE), nn.Linear(HEADS * SIZE, WIDTH)
        self.k, self.v = nn.Linear(WIDTH, shared * SIZE), nn.Linear(WIDTH, shared * SIZE)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embed(tokens)
        q, k, v = self.q(h), self.k(h), self.v(h)
        if self.bend is not None:
            q, k = self.bend(q), self.bend(k)
        v = v if self.values is None else self.values(v)
        q, k, v = (x.unflatten(-1, (-1, SIZE)) for x in (q, k, v))
        if self.rotary:
            q, k = turned(q, self.rotary), turned(k, self.rotary)
        times = HEADS // k.shape[2]
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        k, v = k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.head(self.norm(h + self.o(z.transpose(1, 2).flatten(2))))


def example() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, TOKENS, (2, LENGTH), generator=generator)


def clip(x: Tensor) -> Tensor:
    return x.clamp(-1.5, 1.5)


def uneven(x: Tensor) -> Tensor:
    return x.clamp(-1.0, 2.0)


KINDS: list[tuple[Function, int, int, G.Group]] = [
    (clip, 0, HEADS, G.SignedPermutation(SIZE)),
    (clip, 4, HEADS, G.QuarterTurns(SIZE)),
    (clip, 4, 1, G.QuarterTurns(SIZE)),
    (clip, 2, HEADS, G.DirectSum((G.QuarterTurns(2), G.SignedPermutation(2)))),
    (torch.tanh, 4, 1, G.QuarterTurns(SIZE)),
    (uneven, 0, HEADS, G.Permutation(SIZE)),
    (uneven, 4, HEADS, G.Trivial(SIZE)),
    (F.gelu, 2, HEADS, G.DirectSum((G.Trivial(2), G.Permutation(2)))),
]


@pytest.mark.sample(default=2)
@pytest.mark.parametrize(("bend", "rotary", "shared", "inner"), KINDS)
def test_what_bends_queries_and_keys_leaves_what_commutes_with_it(
    bend: Function, rotary: int, shared: int, inner: G.Group
) -> None:
    found = bp.symmetries(Decoder(bend, None, rotary, shared).eval(), example())
    for name, copies in (("q", HEADS // shared), ("k", 1)):
        symmetry = found[name]
        assert symmetry.group == G.Blocks(inner, shared, copies), symmetry.because
        assert symmetry.certificate is not None and symmetry.certificate.holds
    assert found["v"].group == G.Blocks(G.GeneralLinear(SIZE), shared)


@pytest.mark.sample(default=2)
@pytest.mark.parametrize(
    ("values", "inner"),
    [
        (clip, G.SignedPermutation(SIZE)),
        (torch.sin, G.SignedPermutation(SIZE)),
        (uneven, G.Permutation(SIZE)),
        (torch.cos, G.Permutation(SIZE)),
        (F.silu, G.Permutation(SIZE)),
        (F.relu, G.PositiveMonomial(SIZE)),
        (F.leaky_relu, G.PositiveMonomial(SIZE)),
    ],
)
@pytest.mark.parametrize("shared", [HEADS, 1])
@pytest.mark.parametrize("bend", [None, clip])
def test_what_bends_values_leaves_what_commutes_with_it(
    values: Function, inner: G.Group, shared: int, bend: Function | None
) -> None:
    found = bp.symmetries(Decoder(bend, values, 4, shared).eval(), example())
    for name, copies in (("v", 1), ("o:in", HEADS // shared)):
        symmetry = found[name]
        assert symmetry.group == G.Blocks(inner, shared, copies), symmetry.because
        assert symmetry.certificate is not None and symmetry.certificate.holds
    queries = found["q"].group
    assert isinstance(queries, G.Blocks) and queries.order == "free"


def test_values_that_are_read_before_they_are_bent_too_are_not_claimed() -> None:
    class Twice(Decoder):
        def forward(self, tokens: Tensor) -> Tensor:
            return super().forward(tokens) + self.v(self.embed(tokens)).sum(-1, keepdim=True)

    found = bp.symmetries(Twice(None, clip).eval(), example())
    assert found["o:in"].privileged is bp.Privileged.UNKNOWN


class Added(nn.Module):
    """A stream of linear maps to which the rows of a table are added that nobody trains."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.embed, self.up = nn.Embedding(TOKENS, WIDTH), nn.Linear(WIDTH, 2 * WIDTH)
        self.norm, self.down = nn.LayerNorm(WIDTH), nn.Linear(2 * WIDTH, 5)
        self.register_buffer("table", table)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embed(tokens) + self.table[: tokens.shape[1]]  # pyright: ignore[reportIndexIssue]
        return self.down(torch.tanh(self.up(self.norm(h))))


def test_a_table_that_points_along_every_axis_leaves_nothing() -> None:
    table = torch.randn(WIDTH + 3, WIDTH, generator=torch.Generator().manual_seed(2))
    found = bp.symmetries(Added(table).eval(), example())["embed"]
    assert found.group == G.Trivial(WIDTH)
    assert "a constant is added" in found.because.lower()
    assert found.certificate is not None and found.certificate.holds
    # Along the all-ones direction a norm sees nothing, and a short table leaves directions free.
    almost = bp.symmetries(Added(table - table[:, -1:]).eval(), example())["embed"]
    assert almost.group == G.Trivial(WIDTH)
    short = bp.symmetries(Added(table[: WIDTH - 2]).eval(), example())["embed"]
    assert short.privileged is bp.Privileged.UNKNOWN


def test_a_norm_that_ends_in_a_cast_is_a_norm_for_all_that_read_it() -> None:
    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.linspace(0.5, 1.5, SIZE))

        def forward(self, x: Tensor) -> Tensor:
            unit = x.float() * (x.float().pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt()
            return (unit * self.gain).type_as(x)

    class Normed(Decoder):
        def __init__(self) -> None:
            super().__init__(None, None)
            self.of_queries, self.of_keys = Norm(), Norm()

        def forward(self, tokens: Tensor) -> Tensor:
            h = self.embed(tokens)
            q, k, v = (x(h).unflatten(-1, (HEADS, SIZE)) for x in (self.q, self.k, self.v))
            q, k = turned(self.of_queries(q), SIZE), turned(self.of_keys(k), SIZE)
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
            z = F.scaled_dot_product_attention(q, k, v)
            return self.head(self.norm(h + self.o(z.transpose(1, 2).flatten(2))))

    found = bp.symmetries(Normed().eval(), example())
    assert found["q"].group == G.Blocks(G.SignedPlanes(SIZE), HEADS, alike=True)
    assert found["q"].certificate is not None and found["q"].certificate.holds
