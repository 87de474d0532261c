"""What one map writes and others read part by part."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from written import Written, drawn, moved

import basis_probe as bp
from basis_probe import groups as G

A, B, C = 3, 4, 5
Forward = Callable[[Written, Tensor], Tensor]


def read_apart(s: Written, x: Tensor) -> Tensor:
    one, two, three = s.e(x).split([A, B, C], -1)
    return s.a(one) + s.b(F.rms_norm(two, (B,))) + s.c(torch.tanh(three))


def read_in_heads(s: Written, x: Tensor) -> Tensor:
    """Two heads, each with queries, keys and values of its own, and a gate for their sum."""
    q, k, v = s.e(x).unflatten(-1, (2, -1)).transpose(1, 2).split([A, A, B], -1)
    z = (q @ k.mT).softmax(-1) @ v
    return s.a(z.transpose(1, 2).flatten(2))


def read_twice(s: Written, x: Tensor) -> Tensor:
    one, two = s.e(x).split([A, A], -1)
    return s.a(one) + s.a(two)


def read_over(s: Written, x: Tensor) -> Tensor:
    h = s.e(x)
    return s.a(h[..., :A]) + s.b(h[..., A - 1 :])


def left_out(s: Written, x: Tensor) -> Tensor:
    h = s.e(x)
    return s.a(h[..., :A]) + s.b(h[..., A + 1 :])


def returned(s: Written, x: Tensor) -> tuple[Tensor, Tensor]:
    h = s.e(x)
    return s.a(h[..., :A]) + s.b(h[..., A:]), h


CASES: list[tuple[Forward, dict[str, int], G.Group | None]] = [
    (
        read_apart,
        {"e": A + B + C, "a": A, "b": B, "c": C},
        G.DirectSum((G.GeneralLinear(A), G.Orthogonal(B), G.SignedPermutation(C))),
    ),
    # Keys take the inverse transpose of what queries take: they are no product of two groups.
    (read_in_heads, {"e": 2 * (2 * A + B), "a": 2 * B}, None),
    # One map reads both parts: what one does the other must do.
    (read_twice, {"e": 2 * A, "a": A}, None),
    (read_over, {"e": A + B, "a": A, "b": B + 1}, None),
    (returned, {"e": A + B, "a": A, "b": B}, None),
]


@pytest.mark.parametrize(
    ("forward", "sizes", "group"), CASES, ids=lambda v: getattr(v, "__name__", "")
)
def test_parts_that_are_read_by_themselves_change_by_themselves(
    forward: Forward, sizes: dict[str, int], group: G.Group | None
) -> None:
    maps = {n: nn.Linear(9, size) if n == "e" else nn.Linear(size, 2) for n, size in sizes.items()}
    model = moved(Written(forward, **maps))
    if group is None:
        # What is not true must not be derived, not only fail its proof.
        found = bp.symmetries(model, drawn(4, 6, 9), certificates=False)["e"]
        assert found.group == G.Unknown(sizes["e"]) or isinstance(found.group, G.Trivial)
        return
    found = bp.symmetries(model, drawn(4, 6, 9))["e"]
    assert found.group == group, found.because
    assert found.certificate is not None and found.certificate.holds
    element = group.sample(torch.Generator().manual_seed(1))
    twin = bp.reparametrize(model, "e", element, example_input=drawn(4, 6, 9))
    torch.testing.assert_close(twin(drawn(7, 3, 9)), model(drawn(7, 3, 9)))


def one_gain(s: Written, x: Tensor) -> Tensor:
    """Queries of two heads that share the gain of a norm, and a gate for each head's values."""
    q, gate = s.e(x).unflatten(-1, (2, A + B)).split([A, B], -1)
    k, v = s.k(x).unflatten(-1, (2, A)), s.v(x).unflatten(-1, (2, B)).transpose(1, 2)
    q, k = (F.rms_norm(h, (A,), g).transpose(1, 2) for h, g in ((q, s.gain), (k, s.other)))
    z = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    return s.a(z * torch.sigmoid(gate.flatten(2)))


def test_a_part_that_changes_alike_in_all_heads_does_not_change_in_each_by_itself() -> None:
    maps: dict[str, nn.Module] = {
        "e": nn.Linear(9, 2 * (A + B)),
        "k": nn.Linear(9, 2 * A),
        "v": nn.Linear(9, 2 * B),
        "a": nn.Linear(2 * B, 2),
    }
    gains = {name: nn.Parameter(torch.ones(A)) for name in ("gain", "other")}
    model = moved(Written(one_gain, **maps, **gains))
    found = bp.symmetries(model, drawn(4, 6, 9))["e"]
    inner = G.DirectSum((G.Trivial(A), G.Permutation(B)))
    assert found.group == G.Blocks(inner, 2, order="kept"), found.because
    assert found.certificate is not None and found.certificate.holds


def test_a_part_that_nobody_reads_leaves_the_others_as_they_are() -> None:
    """Not all of it is read: it is not claimed that what is read is all there is."""
    maps: dict[str, nn.Module] = {
        "e": nn.Linear(9, A + B),
        "a": nn.Linear(A, 2),
        "b": nn.Linear(B - 1, 2),
    }
    found = bp.symmetries(moved(Written(left_out, **maps)), drawn(4, 6, 9), certificates=False)
    assert found["e"].group == G.Unknown(A + B)


def test_the_halves_of_a_mixer_change_places_together() -> None:
    """The halves of a mixer's first map meet behind a scan over time, channel by channel."""
    from transformers import JambaConfig, JambaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "vocab_size": 40}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "mamba_d_state": 4}
    config = JambaConfig(**sizes, **heads, mamba_dt_rank=4, num_experts=1, num_experts_per_tok=1)
    model = JambaForCausalLM(config).eval()
    ids = torch.randint(40, (2, 7), generator=torch.Generator().manual_seed(1))
    found = bp.symmetries(model, ids)["model.layers.0.mamba.in_proj"]
    # A kernel of single channels stands before the nonlinearity of the first half only.
    assert found.group == G.DirectSum((G.Monomial(32), G.Permutation(32)), order="shared")
    assert found.certificate is not None and found.certificate.holds
