"""Weights that act on constants as well hold the axes that they act on, unless both move alike."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from written import Written, drawn, moved

import basis_probe as bp
from basis_probe import groups as G

D = 6


def behind(shared: Callable[[Written, Tensor], Tensor]) -> Callable[..., Tensor]:
    """A function of the features, and the same function, or another's weights, of constants."""

    def forward(s: Written, x: Tensor) -> Tensor:
        return s.a(shared(s, s.e(x))) + s.b(shared(s.twin, s.c))

    return forward


def attention(s: Written, x: Tensor) -> Tensor:
    """Keys of tokens, and of constants beside them."""
    h = s.e(x)
    scores = s.a(h) @ s.k(h).mT + s.a(h) @ s.twin.k(F.layer_norm(s.c, (D,))).mT
    return scores.softmax(-1) @ s.b(h)


def fused(s: Written, x: Tensor) -> Tensor:
    """The same where queries, keys and values are made by one matrix, and a part is used again."""
    h = s.e(x)
    q, k, v = s.p(h).chunk(3, -1)
    far = F.linear(s.c, s.twin.p.weight[D : 2 * D], s.twin.p.bias[D : 2 * D])
    return s.a((q @ k.mT + q @ far.mT).softmax(-1) @ v)


PARTS: dict[str, tuple[Callable[..., Tensor], dict[str, Callable[[], object]], G.Group]] = {
    "a map": (behind(lambda s, h: s.m(h)), {"m": lambda: nn.Linear(D, D)}, G.GeneralLinear(D)),
    "a convolution": (
        behind(lambda s, h: s.m(h[..., None])[..., 0]),
        {"m": lambda: nn.Conv1d(D, D, 1)},
        G.GeneralLinear(D),
    ),
    "a map and a function": (
        behind(lambda s, h: torch.tanh(s.m(h))),
        {"m": lambda: nn.Linear(D, D)},
        G.GeneralLinear(D),
    ),
    "RMSNorm": (behind(lambda s, h: s.m(h)), {"m": lambda: nn.RMSNorm(D)}, G.Orthogonal(D)),
    "LayerNorm": (behind(lambda s, h: s.m(h)), {"m": lambda: nn.LayerNorm(D)}, G.LineStabiliser(D)),
    "batch normalisation": (
        behind(lambda s, h: s.m(h)),
        {"m": lambda: nn.BatchNorm1d(D)},
        G.GeneralLinear(D),
    ),
    "gains": (
        behind(lambda s, h: F.relu(s.g * h)),
        {"g": lambda: nn.Parameter(1 + drawn(D))},
        G.PositiveMonomial(D),
    ),
    "keys": (attention, {"k": lambda: nn.Linear(D, D)}, G.GeneralLinear(D)),
    "a part of a fused matrix": (fused, {"p": lambda: nn.Linear(D, 3 * D)}, G.GeneralLinear(D)),
}


def model(name: str, *, shared: bool) -> nn.Module:
    """A network whose parts act on constants too, or have twins for these."""
    forward, parts, _ = PARTS[name]
    own = {part: make() for part, make in parts.items()}
    twin = Written(forward, **({part: make() for part, make in parts.items()}))  # type: ignore[arg-type]
    ends = {"e": nn.Linear(9, D), "a": nn.Linear(D, D), "b": nn.Linear(D, D)}
    made = Written(forward, c=nn.Parameter(drawn(5, D)), **ends, **own)  # type: ignore[arg-type]
    if shared:
        # Not a part: a network that holds itself would never be walked to its end.
        object.__setattr__(made, "twin", made)
    else:
        made.twin = twin
    return moved(made)


@pytest.mark.parametrize("name", PARTS)
def test_what_acts_on_constants_too_keeps_its_axes(name: str) -> None:
    found = bp.symmetries(model(name, shared=True), drawn(5, 9))
    made = [claim.certificate for claim in found.values()]
    assert all(proof is None or proof.holds for proof in made)
    assert found["e"].group == G.Unknown(D)
    assert "do not depend on the input" in found["e"].because


@pytest.mark.parametrize("name", PARTS)
def test_what_has_a_twin_for_constants_is_free(name: str) -> None:
    found = bp.symmetries(model(name, shared=False), drawn(5, 9))
    proof = found["e"].certificate
    assert found["e"].group == PARTS[name][2]
    assert proof is not None and proof.holds


@pytest.mark.parametrize("held", [True, False])
def test_a_table_whose_rows_are_read_by_themselves_keeps_its_axes(held: bool) -> None:
    other = nn.Embedding(5, D)
    parts = {"table": nn.Embedding(9, D), "other": other, "a": nn.Linear(D, 3)}

    def forward(s: Written, t: Tensor) -> Tensor:
        rows = (s.table if held else s.other)(torch.arange(5))
        return s.a(s.table(t)) + s.b(rows)

    made = moved(Written(forward, b=nn.Linear(D, 3), **parts))
    found = bp.symmetries(made, torch.randint(0, 9, (5,)))["a:in"]
    assert found.group == (G.Unknown(D) if held else G.GeneralLinear(D))
    assert ("do not depend on the input" in found.because) is held


def test_a_gain_and_what_is_left_of_one_change_places_together() -> None:
    def shifted(s: Written, x: Tensor) -> Tensor:
        h = s.e(x)
        return s.o(F.gelu(h * s.g + F.pad(h, (0, 0, 1, -1)) * (1 - s.g)))

    parts = {"e": nn.Linear(9, D), "o": nn.Linear(D, 2), "g": nn.Parameter(drawn(D))}
    found = bp.symmetries(moved(Written(shifted, **parts)), drawn(2, 5, 9))["e"]
    assert found.group == G.Permutation(D)
    assert found.certificate is not None and found.certificate.holds


def test_a_first_state_of_zeros_holds_nothing() -> None:
    def recurrence(s: Written, x: Tensor) -> Tensor:
        h = torch.zeros(len(x), D, dtype=x.dtype)
        for step in s.e(x).unbind(1):
            h = torch.tanh(step + s.back(h))
        return s.o(h)

    parts = {"e": nn.Linear(9, D), "back": nn.Linear(D, D), "o": nn.Linear(D, 2)}
    found = bp.symmetries(moved(Written(recurrence, **parts)), drawn(2, 5, 9))
    assert found["e"].group == G.SignedPermutation(D)
