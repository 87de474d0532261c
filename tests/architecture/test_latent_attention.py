"""Heads of queries and keys that are made of parts, as in multi-head latent attention."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import basis_probe as bp
from basis_probe import groups as G

WIDTH, HEADS, PLAIN, TURNED, VALUE, LATENT, TOKENS = 10, 3, 4, 4, 5, 6, 20


def turned(x: Tensor, *, adjacent: bool, parted: bool) -> Tensor:
    """Rotary embedding of [batch, head, position, axis]."""
    half = TURNED // 2
    angles = torch.arange(x.shape[2])[:, None] / 10.0 ** torch.arange(half).double()
    one, other = (x[..., 0::2], x[..., 1::2]) if adjacent else (x[..., :half], x[..., half:])
    made = one * angles.cos() - other * angles.sin(), other * angles.cos() + one * angles.sin()
    if adjacent and not parted:
        return torch.stack(made, -1).flatten(-2)
    return torch.cat(made, -1)


class Latent(nn.Module):
    """One layer, whose keys are expanded from a latent, beside a part that all heads share.

    Args:
        adjacent: True if planes (2i, 2i + 1) turn, False for (i, i + n/2).
        parted: True if planes (2i, 2i + 1) come out as (i, i + n/2).
        filled: True if keys are written into memory piece by piece, False if concatenated.
    """

    def __init__(self, *, adjacent: bool, parted: bool, filled: bool) -> None:
        super().__init__()
        self.adjacent, self.parted, self.filled = adjacent, parted, filled
        self.embed, self.head = nn.Embedding(TOKENS, WIDTH), nn.Linear(WIDTH, TOKENS)
        self.q = nn.Linear(WIDTH, HEADS * (PLAIN + TURNED))
        self.down = nn.Linear(WIDTH, LATENT + TURNED)
        self.norm = nn.RMSNorm(LATENT)
        self.up = nn.Linear(LATENT, HEADS * (PLAIN + VALUE))
        self.o = nn.Linear(HEADS * VALUE, WIDTH)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.add_(0.4 * torch.randn(parameter.shape, generator=generator))

    def turn(self, x: Tensor) -> Tensor:
        return turned(x, adjacent=self.adjacent, parted=self.parted)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embed(tokens)
        q = self.q(h).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        plain, turning = q.split([PLAIN, TURNED], -1)
        latent, shared = self.down(h).split([LATENT, TURNED], -1)
        shared = self.turn(shared[:, None]).expand(-1, HEADS, -1, -1)
        kv = self.up(self.norm(latent)).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        keys, values = kv.split([PLAIN, VALUE], -1)
        if self.filled:
            whole = keys.new_empty(*keys.shape[:-1], PLAIN + TURNED)
            whole[..., :PLAIN].copy_(keys)
            whole[..., PLAIN:].copy_(shared)
        else:
            whole = torch.cat([keys, shared], -1)
        q = torch.cat([plain, self.turn(turning)], -1)
        scores = (q @ whole.transpose(-1, -2)).tril()
        z = F.softmax(scores, -1) @ values
        return self.head(h + self.o(z.transpose(1, 2).flatten(2)))


def example(*shape: int) -> Tensor:
    return torch.randint(TOKENS, shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("filled", [False, True])
@pytest.mark.parametrize(("adjacent", "parted"), [(False, False), (True, False), (True, True)])
def test_each_part_of_a_head_has_the_group_of_what_it_meets(
    adjacent: bool, parted: bool, filled: bool
) -> None:
    model = Latent(adjacent=adjacent, parted=parted, filled=filled).double().eval()
    found = bp.symmetries(model, example(2, 6))
    planes = G.Planes(TURNED, "adjacent" if adjacent else "half")
    free = G.Blocks(G.GeneralLinear(PLAIN), HEADS, order="kept")
    wanted: dict[str, list[G.Group]] = {
        "q": [free, G.Blocks(planes, 1, HEADS, order="kept")],
        "k": [free, G.Blocks(planes, 1, order="kept")],
        "v": [G.Blocks(G.GeneralLinear(VALUE), HEADS, order="kept")],
    }
    whole = {
        "q": G.Blocks(
            G.DirectSum((G.GeneralLinear(PLAIN), G.Trivial(TURNED))), HEADS, order="kept"
        ),
        "down": G.DirectSum((G.Orthogonal(LATENT), G.Blocks(planes, 1, order="kept"))),
        "up": G.Blocks(
            G.DirectSum((G.GeneralLinear(PLAIN), G.GeneralLinear(VALUE))), HEADS, order="kept"
        ),
    }
    for name, group in whole.items():
        assert found[name].group == group, found[name].because
        proof = found[name].certificate
        assert proof is not None and proof.holds
    for kind, groups in wanted.items():
        names = [name for name in found if name.split(":")[0] == kind and ":in" not in name]
        seen = {name: found[name] for name in names if found[name].group in groups}
        assert {repr(s.group) for s in seen.values()} == {repr(group) for group in groups}, found
        for name, symmetry in seen.items():
            assert symmetry.certificate is not None and symmetry.certificate.holds
            element = symmetry.group.sample(torch.Generator().manual_seed(1))
            twin = bp.reparametrize(model, name, element, example_input=example(2, 6))
            with torch.no_grad():
                torch.testing.assert_close(twin(example(3, 9)), model(example(3, 9)))
