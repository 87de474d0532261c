"""Attention whose heads are merged with examples, or copied from one: what its weights absorb."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import basis_probe as bp
from basis_probe.algebra import groups as G
from basis_probe.model.graph import replay_all
from basis_probe.model.trace import Trace
from basis_probe.model.views import apart

BATCH, LENGTH, WIDTH, HEADS, SIZE, TOKENS = 2, 5, 12, 3, 4, 20
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def causal(length: int) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool).triu(1)


# --- heads and examples in one axis ---------------------------------------------------------------


def by_bmm(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    b, t, _ = q.shape
    q, k, v = (
        x.view(b, t, HEADS, SIZE).transpose(1, 2).reshape(b * HEADS, t, SIZE) for x in (q, k, v)
    )
    scores = torch.bmm(q, k.transpose(1, 2)) / 2
    pattern = scores.masked_fill(causal(t)[None], -1e9).softmax(-1)
    z = torch.bmm(pattern, v).view(b, HEADS, t, SIZE)
    return z.transpose(1, 2).reshape(b, t, HEADS * SIZE)


def positions_first(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    b, t, _ = q.shape

    def heads(x: Tensor) -> Tensor:
        return x.transpose(0, 1).contiguous().view(t, b * HEADS, SIZE).transpose(0, 1)

    q, k, v = heads(0.5 * q), heads(k), heads(v)
    mask = torch.zeros(t, t).masked_fill(causal(t), float("-inf")).unsqueeze(0)
    pattern = F.softmax(torch.bmm(q, k.transpose(1, 2)) + mask, dim=-1)
    z = torch.bmm(pattern, v).transpose(0, 1).contiguous().view(t, b, HEADS * SIZE)
    return z.transpose(0, 1)


def by_baddbmm(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    b, t, _ = q.shape
    q, k, v = (x.view(b, t, HEADS, SIZE).permute(0, 2, 1, 3).flatten(0, 1) for x in (q, k, v))
    scores = torch.baddbmm(torch.zeros(b * HEADS, t, t), q, k.mT, beta=0, alpha=0.5)
    apart = scores.view(b, HEADS, t, t).masked_fill(causal(t), -1e9)
    pattern = apart.softmax(-1).view(b * HEADS, t, t)
    return torch.bmm(pattern, v).unflatten(0, (b, HEADS)).permute(0, 2, 1, 3).flatten(2)


def with_a_mask_for_every_head(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    b, t, _ = q.shape
    q, k, v = (x.unflatten(-1, (HEADS, SIZE)).movedim(2, 1).reshape(-1, t, SIZE) for x in (q, k, v))
    scores = torch.einsum("b i d, b j d -> b i j", q, k) * 0.5
    mask = torch.ones(b, t, dtype=torch.bool).repeat_interleave(HEADS, 0)[:, None]
    scores = scores.masked_fill(~mask, -torch.finfo(scores.dtype).max)
    pattern = (scores - scores.amax(dim=-1, keepdim=True).detach()).softmax(dim=-1)
    z = torch.einsum("b i j, b j d -> b i d", pattern, v)
    return z.reshape(b, HEADS, t, SIZE).transpose(1, 2).flatten(-2)


def by_one_call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    b, t, _ = q.shape
    q, k, v = (x.view(b, t, HEADS, SIZE).transpose(1, 2).flatten(0, 1) for x in (q, k, v))
    z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return z.unflatten(0, (b, HEADS)).transpose(1, 2).flatten(-2)


def cut_short(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    # Keys and values of the first positions only, taken behind the merged axis.
    b, t, _ = q.shape
    q, k, v = (x.view(b, t, HEADS, SIZE).transpose(1, 2).flatten(0, 1) for x in (q, k, v))
    pattern = (q @ k[:, :3].transpose(1, 2)).softmax(2)
    z = pattern @ torch.cat([v[:, :1], v[..., 1:3, :]], dim=1)
    return z.view(b, HEADS, t, SIZE).transpose(1, 2).reshape(b, t, -1)


MERGED: tuple[Attend, ...] = (
    by_bmm, positions_first, by_baddbmm, with_a_mask_for_every_head, by_one_call, cut_short,
)  # fmt: skip


# --- one head of keys and values ------------------------------------------------------------------


def _heads(q: Tensor) -> Tensor:
    return q.unflatten(-1, (HEADS, SIZE)).transpose(1, 2)


def _mixed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    z = (q @ k.transpose(-1, -2) / 2).softmax(-1) @ v
    return z.transpose(1, 2).flatten(2)


def broadcast(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return _mixed(_heads(q), k[:, None], v[:, None])


def in_letters(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    pattern = torch.einsum("bthd,bsd->bhts", q.unflatten(-1, (HEADS, SIZE)), k).softmax(-1)
    return torch.einsum("bhts,bsd->bthd", pattern, v).flatten(2)


def repeated(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k = k.unsqueeze(2).expand(-1, -1, HEADS, -1).transpose(1, 2)
    return _mixed(_heads(q), k, v[:, :, None].repeat(1, 1, HEADS, 1).transpose(1, 2))


def interleaved(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k, v = (x.unflatten(-1, (1, SIZE)).transpose(1, 2).repeat_interleave(HEADS, 1) for x in (k, v))
    return _mixed(_heads(q), k, v)


def copied_beside(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    def copied(x: Tensor) -> Tensor:
        b, t, _ = x.shape
        x = x.view(b, t, 1, SIZE).transpose(1, 2)
        return x[:, :, None].expand(b, 1, HEADS, t, SIZE).reshape(b, HEADS, t, SIZE)

    return _mixed(_heads(q), copied(k), copied(v))


SINGLE: tuple[Attend, ...] = (broadcast, in_letters, repeated, interleaved, copied_beside)


class Decoder(nn.Module):
    """One layer of attention, whatever it is written like."""

    def __init__(self, attend: Attend, shared: int) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(TOKENS, WIDTH), nn.Linear(WIDTH, TOKENS)
        self.before, self.behind = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.q, self.o = nn.Linear(WIDTH, HEADS * SIZE), nn.Linear(HEADS * SIZE, WIDTH)
        self.k, self.v = nn.Linear(WIDTH, shared * SIZE), nn.Linear(WIDTH, shared * SIZE)
        self.attend = attend
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embed(tokens)
        x = self.before(h)
        h = h + self.o(self.attend(self.q(x), self.k(x), self.v(x)))
        return self.head(self.behind(h))


def example() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, TOKENS, (BATCH, LENGTH), generator=generator)


EVERY = [(attend, HEADS) for attend in MERGED] + [(attend, 1) for attend in SINGLE]


def _named(value: object) -> str:
    return getattr(value, "__name__", "")


@pytest.mark.sample(default=6)
@pytest.mark.parametrize(("attend", "shared"), EVERY, ids=_named)
def test_heads_are_the_same_however_they_are_written(attend: Attend, shared: int) -> None:
    found = bp.symmetries(Decoder(attend, shared).eval(), example())
    copies = HEADS // shared
    for name, times in (("q", copies), ("k", 1), ("v", 1), ("o:in", copies)):
        symmetry = found[name]
        assert symmetry.group == G.Blocks(G.GeneralLinear(SIZE), shared, times), name
        assert symmetry.certificate is not None and symmetry.certificate.holds, name


@pytest.mark.parametrize("attend", MERGED, ids=lambda attend: attend.__name__)
def test_a_record_with_axes_apart_computes_the_same(
    attend: Attend, monkeypatch: pytest.MonkeyPatch
) -> None:
    records: list[Trace] = []

    def kept(trace: Trace) -> Trace:
        records.append(trace)
        return apart(trace)

    monkeypatch.setattr("basis_probe.model.facts.apart", kept)
    model = Decoder(attend, HEADS).eval()
    bp.symmetries(model, example(), certificates=False)
    (whole,) = records
    changed = apart(whole)
    differing = [
        node.index
        for node, other in zip(whole.nodes, changed.nodes, strict=True)
        if node.shape != other.shape
    ]
    assert differing
    inputs = {0: example()}
    before, after = replay_all(whole, inputs, {}), replay_all(changed, inputs, {})
    assert set(before) == set(after)
    for index, value in before.items():
        other = after[index]
        assert other.shape == changed.node(index).shape
        torch.testing.assert_close(value, other.reshape(value.shape), rtol=1e-5, atol=1e-6)


def test_merged_axes_are_left_alone_where_they_are_returned_or_read_by_others() -> None:
    class Returned(Decoder):
        def forward(self, tokens: Tensor) -> Tensor:
            h = self.embed(tokens)
            b, t, _ = h.shape
            q, k = (
                x.view(b, t, HEADS, SIZE).transpose(1, 2).flatten(0, 1)
                for x in (self.q(h), self.k(h))
            )
            return torch.bmm(q, k.transpose(1, 2))

    found = bp.symmetries(Returned(by_bmm, HEADS).eval(), example())
    assert found["q"].privileged is bp.Privileged.UNKNOWN

    class Sorted(Decoder):
        def forward(self, tokens: Tensor) -> Tensor:
            h = self.embed(tokens)
            v = self.v(h).view(*h.shape[:2], HEADS, SIZE).transpose(1, 2).flatten(0, 1)
            mixed = torch.bmm((v @ v.transpose(1, 2)).softmax(-1), v).sort(0).values
            z = mixed.view(len(h), HEADS, -1, SIZE).transpose(1, 2).flatten(2)
            return self.head(self.o(z))

    found = bp.symmetries(Sorted(by_bmm, HEADS).eval(), example())
    assert found["v"].privileged is bp.Privileged.UNKNOWN


def test_activations_of_merged_axes_are_no_site_of_features() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.0)
            self.decoder = Decoder(self.attend, HEADS)

        def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            b, t, _ = q.shape
            q, k, v = (x.view(b, t, HEADS, SIZE).transpose(1, 2).flatten(0, 1) for x in (q, k, v))
            pattern = self.drop((q @ k.transpose(1, 2)).softmax(-1))
            return (pattern @ self.drop(v)).view(b, HEADS, t, SIZE).transpose(1, 2).flatten(2)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.decoder(tokens)

    found = bp.symmetries(Named().eval(), example())
    merged = [name for name in found if name.startswith("drop")]
    assert merged
    assert all(found[name].privileged is bp.Privileged.UNKNOWN for name in merged)
    assert found["decoder.v"].group == G.Blocks(G.GeneralLinear(SIZE), HEADS)
