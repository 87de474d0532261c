"""What is derived where parameters are zero, before training, is true of the trained model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, relu

import basis_probe as bp


class Net(nn.Module):
    """Linear maps, and parameters that are zero before training."""

    def __init__(self, way: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.up, self.down = nn.Linear(8, 10), nn.Linear(10, 8)
        self.one = nn.Parameter(torch.zeros(1))
        self.p, self.q = (nn.Parameter(torch.zeros(8)) for _ in range(2))
        self.table = nn.Parameter(torch.zeros(8, 5))
        self.register_buffer("grid", torch.linspace(-2, 2, 5))
        self.way = way
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.way(self, self.a(x)))


def _branch(m: Net, h: Tensor) -> Tensor:
    return m.down(gelu(m.up(layer_norm(h, (8,)))))


WAYS: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "a bias behind a function": lambda m, h: h.tanh() + m.p,
    "a bias before it": lambda m, h: relu(h + m.p),
    "a gain behind it": lambda m, h: relu(h) * (1 + m.p),
    "a gain and a bias": lambda m, h: relu(h * (1 + m.p) + m.q),
    "what stands for a norm": lambda m, h: (1 + m.q) * torch.tanh(0.5 * h) + m.p,
    "a gated function": lambda m, h: h + m.one * relu(h),
    "a mixture of two": lambda m, h: (1 - m.one) * h + m.one * h.tanh(),
    "slopes": lambda m, h: h * torch.sigmoid(m.p * h),
    "a polynomial": lambda m, h: h + m.p * h**2,
    "radial functions": lambda m, h: (
        ((-((h[..., None] - m.grid) ** 2)).exp() * m.table).sum(-1) + h
    ),
    "a scaled branch": lambda m, h: layer_norm(h + m.p * _branch(m, h), (8,)),
    "a scaled branch, gated": lambda m, h: layer_norm(h + m.p.tanh() * _branch(m, h), (8,)),
    "a scaled stream": lambda m, h: layer_norm((1 + m.p) * h + _branch(m, h), (8,)),
    "a shifted branch": lambda m, h: layer_norm(h + (1 + m.p) * _branch(m, h) + m.q, (8,)),
    "a bounded bias": lambda m, h: relu(h + m.p.tanh()),
    "one vector twice": lambda m, h: gelu(h * (1 + m.p) + m.p.flip(0)),
    "a running sum": lambda m, h: relu(m.b(relu(h + m.p)) + m.p.cumsum(0)),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_zeros_have_the_groups_of_the_numbers_that_they_become(
    way: Callable[[Net, Tensor], Tensor],
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        untrained, trained = Net(way), Net(way)
        x = torch.randn(12, 4).double()
        trained.load_state_dict(untrained.state_dict())
        for parameter in trained.parameters():
            if not parameter.any():
                parameter.data = 0.5 * torch.randn(parameter.shape).double()
    for certificates in (True, False):
        before, after = (
            bp.symmetries(model, x, certificates=certificates) for model in (untrained, trained)
        )
        assert {site: found.group for site, found in before.items()} == {
            site: found.group for site, found in after.items()
        }
        for site, found in before.items():
            assert (found.certificate is None) == (after[site].certificate is None), site
            assert found.certificate is None or found.certificate.holds, (site, found.because)


def test_the_model_keeps_its_zeros() -> None:
    model = Net(WAYS["a gain and a bias"])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x = torch.randn(12, 4).double()
    bp.symmetries(model, x)
    bp.certify(model, "c:in", x)
    bp.probe(model, [torch.randn(40, 4).double() for _ in range(3)], progress=False)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_what_is_probed_is_the_model_as_it_is() -> None:
    """Its scores and nulls are those of zeros, and not of what is put in their place."""
    model = Net(lambda m, h: relu(h + m.p))
    with_none = Net(lambda m, h: relu(h))
    with_none.load_state_dict(model.state_dict())
    data = [torch.randn(60, 4, generator=torch.Generator().manual_seed(k)).double() for k in (1, 2)]
    one, other = (
        bp.probe(net, data, sites=["relu()"], progress=False)["relu()"]
        for net in (model, with_none)
    )
    for name, score in one.scores.items():
        assert score.observed == pytest.approx(other.scores[name].observed, nan_ok=True), name
        assert score.null_mean == pytest.approx(
            other.scores[name].null_mean, rel=1e-5, nan_ok=True
        ), name


@pytest.mark.parametrize("seed", range(8))
def test_what_is_added_is_no_gain_however_it_is_rounded(seed: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Net(lambda m, h: h.tanh() + m.p)
        nn.init.normal_(model.p, std=3.0)
        found = bp.symmetries(model, torch.randn(12, 4).double())["c:in"]
    assert found.group.name == "signed-permutation", found.because
    assert found.certificate is not None and found.certificate.holds


@pytest.mark.parametrize("zero", [True, False])
def test_norms_that_are_written_out_turn_with_what_is_added_behind_them(zero: bool) -> None:
    """With a gain of ones, as before training, and a bias, whatever it is."""

    class Pieces(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.e, self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 8)
            self.o, self.normed = nn.Linear(8, 3), nn.Identity()
            self.gain, self.bias = nn.Parameter(torch.ones(8)), nn.Parameter(torch.zeros(8))
            if not zero:
                nn.init.normal_(self.bias)
            self.double()

        def forward(self, x: Tensor) -> Tensor:
            h = self.e(x)
            n = h - h.mean(-1, keepdim=True)
            n = self.normed(n / (n.square().mean(-1, keepdim=True) + 1e-5).sqrt())
            h = h + self.down(gelu(self.up(n * self.gain + self.bias)))
            return self.o(layer_norm(h, (8,)))

    found = bp.symmetries(Pieces(), torch.randn(6, 4).double())
    groups = {site: found[site].group.name for site in ("e", "normed", "up:in")}
    assert groups == {"e": "line-stabiliser", "normed": "line-rotations", "up:in": "line-rotations"}
    for site in groups:
        certificate = found[site].certificate
        assert certificate is not None and certificate.holds, found[site].because
