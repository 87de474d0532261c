"""Norms without a gain and batch normalisation in evaluation, which let more pass than an order."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import basis_probe as bp
from basis_probe import groups as G

GL, ROTATIONS, LINE, TURNS = G.GeneralLinear, G.Orthogonal, G.LineStabiliser, G.LineRotations
ORDER, POSITIVE, ANY = G.Permutation, G.PositiveMonomial, G.Monomial


class Written(nn.Module):
    """A forward function with the modules that it uses."""

    def __init__(self, forward: Callable[..., Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.run = forward
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def settled(model: nn.Module) -> nn.Module:
    """Weights, gains, biases and kept moments that hide nothing by being zeros or ones."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if tensor.is_floating_point():
                drawn = torch.randn(tensor.shape, generator=generator)
                size = drawn[0].numel() ** -0.5 if tensor.ndim > 1 else 0.4
                away = tensor if tensor.ndim == 1 else 0.0
                tensor.copy_((size * drawn + away).abs() if "var" in name else size * drawn + away)
    return model.double().eval()


def values(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def linear(*sizes: int, **options: bool) -> nn.Linear:
    return nn.Linear(*sizes, **options)


def rms(x: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:])


def by_hand(x: Tensor) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + 1e-3).rsqrt()


def layer(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:])


def blocks(first: Callable[[Tensor], Tensor], second: Callable[[Tensor], Tensor]) -> nn.Module:
    """A stream that one norm writes and another reads, behind a layer that adds to it."""

    def forward(own: nn.Module, x: Tensor) -> Tensor:
        h = first(own.e(x))
        h = h + own.b(F.gelu(own.a(h)))
        return own.o(second(own.i(h)))

    return Written(
        forward,
        e=linear(6, 8),
        a=linear(8, 12),
        b=linear(12, 8),
        i=nn.Identity(),
        o=linear(8, 3),
    )


def convolved(*middle: nn.Module) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        *middle,
        nn.Conv2d(8, 6, 3, padding=1),
        nn.Tanh(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        linear(6, 2),
    )


class Unmapped(nn.Module):
    """The same over all channels and positions."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[1:])


def bottlenecks() -> nn.Module:
    """Linear bottlenecks that are added, each written by batch normalisation."""

    def forward(own: nn.Module, x: Tensor) -> Tensor:
        h = own.n0(own.c0(x))
        h = h + own.n1(own.c1(F.relu(own.m0(own.e0(h)))))
        return own.o(F.relu(own.e1(own.i(h))).mean((-2, -1)))

    conv, norm = nn.Conv2d, nn.BatchNorm2d
    return Written(
        forward,
        c0=conv(3, 8, 3, padding=1, bias=False),
        n0=norm(8),
        e0=conv(8, 12, 1, bias=False),
        m0=norm(12),
        c1=conv(12, 8, 3, padding=1, bias=False),
        n1=norm(8),
        i=nn.Identity(),
        e1=conv(8, 10, 1),
        o=linear(10, 2),
    )


def circle() -> nn.Module:
    """Two normalisations of one stream that are added: only an order and scales pass both."""
    return Written(
        lambda own, x: own.o(own.n1(h := own.e(x)) + own.n2(h)),
        e=linear(6, 8),
        n1=nn.BatchNorm1d(8),
        n2=nn.BatchNorm1d(8),
        o=linear(8, 3),
    )


def before_a_norm() -> nn.Module:
    """Batch normalisation writes a stream that a norm reads."""
    return Written(
        lambda own, x: own.o(own.r(own.n(own.e(x)))),
        e=linear(6, 8),
        n=nn.BatchNorm1d(8),
        r=nn.RMSNorm(8),
        o=linear(8, 3),
    )


def shared(*, apart: bool) -> nn.Module:
    """One batch norm in two places: beside each other, or one behind the other."""

    def forward(own: nn.Module, x: Tensor) -> Tensor:
        h = own.n(own.e(x))
        return own.o(own.n(own.b(h)) if apart else h + own.n(own.f(x)))

    return Written(
        forward,
        e=linear(6, 8),
        f=linear(6, 8),
        b=linear(8, 8),
        n=nn.BatchNorm1d(8),
        o=linear(8, 3),
    )


def dead() -> nn.Module:
    """A channel whose gain is zero, as training leaves some: its shift cannot be moved."""
    model = nn.Sequential(linear(6, 8), nn.BatchNorm1d(8), linear(8, 3))
    settled(model)
    with torch.no_grad():
        model[1].weight[3] = 0.0
    return model


ROWS, DEEP, MAPS = (5, 6), (2, 4, 6), (2, 3, 5, 5)

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, object]]] = {
    "RMS, RMS": (lambda: blocks(rms, rms), DEEP, dict.fromkeys(("e", "b", "o:in"), ROTATIONS(8))),
    "RMS by hand": (lambda: blocks(by_hand, by_hand), DEEP, {"e": ROTATIONS(8), "i": ROTATIONS(8)}),
    "LN, LN": (
        lambda: blocks(layer, layer), DEEP, {"e": LINE(8), "b": TURNS(8), "o:in": TURNS(8)},
    ),
    "LN, RMS": (lambda: blocks(layer, rms), DEEP, {"e": LINE(8), "b": TURNS(8)}),
    "RMS, LN": (lambda: blocks(rms, layer), DEEP, {"e": TURNS(8), "b": TURNS(8)}),
    "a norm before a ReLU": (
        lambda: nn.Sequential(linear(6, 8), nn.RMSNorm(8, elementwise_affine=False), nn.ReLU(),
                              linear(8, 3)), ROWS, {"0": ORDER(8), "1": ORDER(8)},
    ),
    "the output of the last norm behind a ReLU": (
        lambda: nn.Sequential(linear(6, 8), nn.ReLU(), nn.RMSNorm(8), linear(8, 3)), ROWS,
        {"1": ORDER(8), "2": ANY(8)},
    ),
    "the output of a norm without a gain behind a ReLU": (
        lambda: nn.Sequential(linear(6, 8), nn.ReLU(),
                              nn.LayerNorm(8, elementwise_affine=False), linear(8, 3)), ROWS,
        {"1": ORDER(8), "2": ORDER(8)},
    ),
    "batch norm": (
        lambda: nn.Sequential(linear(6, 8), nn.BatchNorm1d(8), linear(8, 3)), ROWS,
        {"0": GL(8), "1": GL(8)},
    ),
    "two batch norms in a row": (
        lambda: nn.Sequential(linear(6, 8), nn.BatchNorm1d(8), nn.BatchNorm1d(8, affine=False),
                              linear(8, 3, bias=False)), ROWS, {"0": GL(8), "1": GL(8), "2": GL(8)},
    ),
    "batch norm between convolutions": (
        lambda: convolved(nn.BatchNorm2d(8)), MAPS, {"0": GL(8), "1": GL(8)},
    ),
    "batch norm before a ReLU": (
        lambda: convolved(nn.BatchNorm2d(8), nn.ReLU()), MAPS,
        {"0": ANY(8), "1": POSITIVE(8), "2": POSITIVE(8)},
    ),
    "bottlenecks": (
        bottlenecks, MAPS, {"c0": GL(8), "n0": GL(8), "c1": GL(8), "i": GL(8), "e0": ANY(12)},
    ),
    "a circle of batch norms": (circle, ROWS, {"e": ANY(8), "o:in": ANY(8)}),
    "batch norm before a norm": (before_a_norm, ROWS, {"n": ROTATIONS(8), "r": ANY(8)}),
    "one group": (lambda: convolved(nn.GroupNorm(1, 8)), MAPS, {"0": TURNS(8), "1": ANY(8)}),
    "one group without a gain": (
        lambda: convolved(nn.GroupNorm(1, 8, affine=False)), MAPS, {"0": TURNS(8), "1": TURNS(8)},
    ),
    "all channels and positions": (
        lambda: convolved(Unmapped()), MAPS, {"0": TURNS(8), "1": TURNS(8)},
    ),
    "one group before a ReLU": (
        lambda: convolved(nn.GroupNorm(1, 8), nn.ReLU()), MAPS, {"0": ORDER(8), "2": POSITIVE(8)},
    ),
    "one group of rows": (
        lambda: nn.Sequential(linear(6, 8), nn.GroupNorm(1, 8), linear(8, 3)), ROWS,
        {"0": LINE(8)},
    ),
}  # fmt: skip


def test_a_gain_of_zero_leaves_axes() -> None:
    found = bp.symmetries(dead(), values(*ROWS))["0"]
    assert found.group == ANY(8)
    assert found.certificate is not None and found.certificate.holds


@pytest.mark.parametrize("apart", [False, True])
def test_a_norm_in_two_places_is_one(apart: bool) -> None:
    # What is derived of it without a proof is not larger than what a proof leaves.
    model, x = settled(shared(apart=apart)), values(*ROWS)
    for site in ("e", "n", "o:in"):
        proved, derived = (
            bp.symmetries(model, x, certificates=wanted)[site].group for wanted in (True, False)
        )
        assert derived == (ANY(8) if apart else GL(8))
        assert proved in (derived, G.Unknown(8))


@pytest.mark.sample(default=2)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_stream_keeps_what_its_norms_let_pass(name: str) -> None:
    make, shape, right = NETWORKS[name]
    model, x = settled(make()), values(*shape)
    found = bp.symmetries(model, x)
    assert {site: found[site].group for site in right} == right
    generator = torch.Generator().manual_seed(3)
    for site in right:
        assert bp.certify(model, site, x, elements=4).holds
        element = found[site].group.sample(generator)
        twin = bp.reparametrize(model, site, element, example_input=x)
        for other in (x, values(7, *shape[1:], seed=5)):
            assert torch.allclose(twin(other), model(other), rtol=1e-9, atol=1e-9)


@pytest.mark.sample(default=8)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_claim_is_proved(name: str) -> None:
    make, shape, _ = NETWORKS[name]
    for site, found in bp.symmetries(settled(make()), values(*shape)).items():
        assert found.certificate is None or found.certificate.holds, site
