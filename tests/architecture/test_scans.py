"""Channels with a state each, which is carried along positions: they change places together."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from written import Written, drawn, moved

import basis_probe as bp
from basis_probe import groups as G

CHANNELS, RANK, WIDTH = 6, 3, 5
Scan = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def channels_first(x: Tensor, step: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Everything as [batch, channel, position, state]."""
    x, step = x.mT, step.mT
    decay = torch.exp(a[None, :, None, :] * step[..., None])
    given = step[..., None] * b[:, None] * x[..., None]
    state, made = torch.zeros(len(x), *a.shape).to(x), []
    for t in range(x.shape[-1]):
        state = decay[:, :, t] * state + given[:, :, t]
        made.append((state @ c[:, t, :, None])[..., 0])
    return torch.stack(made, -1).mT


def positions_first(x: Tensor, step: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Everything as [batch, position, channel, state]; the sum over states is written out."""
    decay = (step.unsqueeze(-1) * a).exp()
    given = step.unsqueeze(-1) * b.unsqueeze(2) * x.unsqueeze(-1)
    state, made = given[:, 0], [(given[:, 0] * c[:, 0].unsqueeze(1)).sum(-1)]
    for t in range(1, x.shape[1]):
        state = state * decay[:, t] + given[:, t]
        made.append((state * c[:, t].unsqueeze(1)).sum(-1))
    return torch.stack(made, 1)


def one_step_at_a_time(x: Tensor, step: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Nothing is laid out for all positions before."""
    state, made = None, []
    for t in range(x.shape[1]):
        fresh = (step[:, t] * x[:, t]).unsqueeze(-1) * b[:, t].unsqueeze(1)
        kept = torch.exp(step[:, t].unsqueeze(-1) * a)
        state = fresh if state is None else kept * state + fresh
        made.append(torch.bmm(state, c[:, t].unsqueeze(-1)).squeeze(-1))
    return torch.stack(made, dim=1)


def network(scan: Scan, states: int) -> Written:
    def forward(s: Written, x: Tensor) -> Tensor:
        h, gate = s.given(x).chunk(2, -1)
        h = F.silu(h)
        rank, b, c = s.read(h).split([RANK, states, states], -1)
        made = scan(h, F.softplus(s.steps(rank)), -s.log_a.exp(), b, c)
        return s.written((made + h * s.skip) * F.silu(gate))

    return Written(
        forward,
        given=nn.Linear(WIDTH, 2 * CHANNELS),
        read=nn.Linear(CHANNELS, RANK + 2 * states, bias=False),
        steps=nn.Linear(RANK, CHANNELS),
        log_a=nn.Parameter(torch.randn(CHANNELS, states)),
        skip=nn.Parameter(torch.randn(CHANNELS)),
        written=nn.Linear(CHANNELS, 4),
    )


@pytest.mark.parametrize(
    ("scan", "states"),
    [(channels_first, 4), (positions_first, 4), (positions_first, 1), (one_step_at_a_time, 4)],
)
def test_channels_of_a_scan_change_places_together(scan: Scan, states: int) -> None:
    model, x = moved(network(scan, states)), drawn(3, 5, WIDTH)
    found = bp.symmetries(model, x)
    both = G.DirectSum((G.Permutation(CHANNELS), G.Permutation(CHANNELS)), order="shared")
    # A first map writes channels that SiLU bends, and the gate, which SiLU bends as well.
    assert found["given"].group == both, found["given"].because
    assert found["read:in"].group == found["written:in"].group == G.Permutation(CHANNELS)
    proofs = [site.certificate for site in found.values() if site.certificate]
    assert len(proofs) > 6 and all(proof.holds for proof in proofs)

    # The same by hand.
    order = torch.randperm(CHANNELS, generator=torch.Generator().manual_seed(2))
    right = model(x)
    twice = torch.cat([order, order + CHANNELS])
    with torch.no_grad():
        for name, axis, rows in (
            ("given.weight", 0, twice), ("given.bias", 0, twice), ("read.weight", 1, order),
            ("steps.weight", 0, order), ("steps.bias", 0, order), ("log_a", 0, order),
            ("skip", 0, order), ("written.weight", 1, order),
        ):  # fmt: skip
            parameter = model.get_parameter(name)
            parameter.copy_(parameter.index_select(axis, rows))
    torch.testing.assert_close(model(x), right)


Bend = Callable[[Tensor, Tensor], Tensor]


def bent_by_place(bend: Bend) -> Written:
    """Every feature is laid out along a new axis and bent with a number of each place there."""

    def forward(s: Written, x: Tensor) -> Tensor:
        return s.written(bend(s.given(x)[..., None], s.numbers).sum(-1))

    maps = {"given": nn.Linear(WIDTH, CHANNELS), "written": nn.Linear(CHANNELS, 2)}
    model = moved(Written(forward, **maps, numbers=nn.Parameter(torch.zeros(3))))
    with torch.no_grad():
        model.get_parameter("numbers").copy_(torch.tensor([1.0, 2.0, 3.0]))
    return model


BENDS: dict[str, tuple[Bend, G.Group]] = {
    "slopes": (lambda x, n: torch.where(x > 0, x, n * x), G.PositiveMonomial(CHANNELS)),
    "rates": (lambda x, n: torch.exp(n * x), G.Permutation(CHANNELS)),
    "widths": (lambda x, n: torch.tanh(n * x), G.SignedPermutation(CHANNELS)),
    # The first place alone would let factors pass.
    "powers": (lambda x, n: x.abs() ** n, G.SignedPermutation(CHANNELS)),
    "kinks": (lambda x, n: torch.relu(x - (n - 1)), G.Permutation(CHANNELS)),
}


@pytest.mark.parametrize("name", BENDS)
def test_what_is_bent_differently_from_place_to_place_keeps_what_all_places_keep(
    name: str,
) -> None:
    bend, group = BENDS[name]
    found = bp.symmetries(bent_by_place(bend), drawn(3, 5, WIDTH))["given"]
    assert found.group == group, found.because
    assert found.certificate is not None and found.certificate.holds
