"""Vectors that take up scales: gains of norms before homogeneous functions, and thresholds."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import basis_probe as bp
from basis_probe import groups as G
from tests.draws import seeded

D = 8


class Own(nn.Module):
    """A norm as models write it; `weight` is the gain, or the gain less one."""

    def __init__(self, *, off: float) -> None:
        super().__init__()
        self.weight, self.off = nn.Parameter(torch.ones(D)), off

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * (self.weight + self.off)


class Net(nn.Module):
    def __init__(self, norm: nn.Module, between: "Between") -> None:
        super().__init__()
        self.a, self.n, self.z, self.b = nn.Linear(12, D), norm, nn.Linear(12, D), nn.Linear(D, 10)
        self.t, self.v = nn.Parameter(torch.zeros(D)), nn.Parameter(torch.zeros(D))
        self.one = nn.Parameter(torch.zeros(1))
        self.between = between
        for parameter in self.parameters():
            drawn = torch.randn(parameter.shape, generator=seeded(parameter.numel()))
            parameter.data = drawn
        for vector in (self.t, *([norm.weight] if isinstance(norm.weight, Tensor) else [])):
            vector.data = vector.data.abs() + 0.1

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.between(self, x))


Between = Callable[[Net, Tensor], Tensor]

NORMS: dict[str, Callable[[], nn.Module]] = {
    "layer norm": lambda: nn.LayerNorm(D),
    "no bias": lambda: nn.LayerNorm(D, bias=False),
    "RMS norm": lambda: nn.RMSNorm(D),
    "written out": lambda: Own(off=0.0),
    "gain less one": lambda: Own(off=1.0),
}
# What reads the norm, and the group behind it.
BEHIND: dict[str, tuple[Callable[[Net, Tensor, Tensor], Tensor], type[G.Group]]] = {
    "relu": (lambda s, n, x: n.relu(), G.PositiveMonomial),
    "leaky relu": (lambda s, n, x: F.leaky_relu(n), G.PositiveMonomial),
    "abs": (lambda s, n, x: n.abs(), G.PositiveMonomial),
    "squares": (lambda s, n, x: n.relu().square(), G.PositiveMonomial),
    "a gate": (lambda s, n, x: n * F.silu(s.z(x)), G.Monomial),
    "gelu": (lambda s, n, x: F.gelu(n), G.Permutation),
}


def proved(model: nn.Module, site: str, example: Tensor) -> G.Group:
    """The group of a site, which is proved, and whose elements leave outputs of any size alone."""
    claim = bp.symmetries(model, example)[site]
    assert claim.certificate is not None and claim.certificate.holds, claim
    element = claim.group.sample(seeded(3))
    other = bp.reparametrize(model, site, element, example_input=example)
    for size in (0.01, 1.0, 30.0):
        x = size * torch.randn(9, 12, generator=seeded(7), dtype=torch.float64)
        torch.testing.assert_close(other(x), model(x), rtol=1e-8, atol=1e-8)
    return claim.group


def rows() -> Tensor:
    return torch.randn(30, 12, generator=seeded(1), dtype=torch.float64)


@pytest.mark.filterwarnings("ignore:the example did not use:UserWarning")
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", BEHIND)
def test_the_gain_of_a_norm_takes_up_what_is_homogeneous_behind_it(name: str, norm: str) -> None:
    behind, expected = BEHIND[name]
    model = Net(NORMS[norm](), lambda s, x: behind(s, s.n(s.a(x)), x)).double()
    assert type(proved(model, "b:in", rows())) is expected
    # In front of the norm nothing is rescaled.
    assert type(proved(model, "a", rows())) in (G.Permutation, G.SignedPermutation)


def test_a_hand_made_change_of_the_gain_agrees() -> None:
    model = Net(nn.LayerNorm(D), lambda s, x: s.n(s.a(x)).relu()).double()
    x, scales = rows(), 0.5 + torch.rand(D, generator=seeded(5), dtype=torch.float64)
    before = model(x)
    with torch.no_grad():
        model.n.weight *= scales  # pyright: ignore
        model.n.bias *= scales  # pyright: ignore
        model.b.weight /= scales
    torch.testing.assert_close(model(x), before)


@pytest.mark.filterwarnings("ignore:the example did not use:UserWarning")
@pytest.mark.parametrize("norm", NORMS)
def test_a_gain_that_serves_twice_takes_up_nothing_alone(norm: str) -> None:
    model = Net(NORMS[norm](), lambda s, x: s.n(s.a(x)).relu() + F.gelu(s.n(s.z(x)))).double()
    assert type(proved(model, "b:in", rows())) is G.Permutation


@pytest.mark.parametrize("norm", NORMS)
def test_a_gain_that_serves_elsewhere_takes_up_no_scale(norm: str) -> None:
    class Twice(Net):
        def __init__(self) -> None:
            super().__init__(NORMS[norm](), lambda s, x: x)
            self.d = nn.Linear(D, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.n(self.a(x)).relu()) + self.d(F.gelu(self.n(self.z(x))))

    # What is not true must not be derived, not only fail its proof.
    found = bp.symmetries(Twice().double(), rows(), certificates=False)["b:in"]
    assert type(found.group) is G.Permutation


@pytest.mark.filterwarnings("ignore:the example did not use:UserWarning")
def test_a_number_that_no_parameter_gives_holds_the_gain() -> None:
    class Shifted(nn.LayerNorm):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) + 1.0

    model = Net(Shifted(D, bias=False), lambda s, x: s.n(s.a(x)).relu()).double()
    assert type(proved(model, "b:in", rows())) is G.Permutation


# What bends the features with vectors, and the group on both sides.
BENT: dict[str, tuple[Callable[[Net, Tensor], Tensor], type[G.Group]]] = {
    "swish with beta": (lambda s, h: h * torch.sigmoid(s.v * h), G.Monomial),
    "snake": (lambda s, h: h + torch.sin(s.v * h).square() / s.v, G.Monomial),
    "jump": (lambda s, h: h * (h > s.t), G.PositiveMonomial),
    "jump relu": (lambda s, h: h.relu() * (h > s.t), G.PositiveMonomial),
    "a bound": (lambda s, h: torch.minimum(h, s.v), G.PositiveMonomial),
    "one beta for all": (lambda s, h: h * torch.sigmoid(s.one * h), G.Permutation),
    "a bent sum": (lambda s, h: h + torch.sin(s.v * h).square(), G.Permutation),
    "a vector that serves twice": (
        lambda s, h: h * torch.sigmoid(s.v * h) + s.v,
        G.Permutation,
    ),
}


@pytest.mark.filterwarnings("ignore:the example did not use:UserWarning")
@pytest.mark.parametrize("name", BENT)
def test_vectors_inside_a_function_take_up_scales_if_it_can_follow(name: str) -> None:
    bent, expected = BENT[name]
    model = Net(nn.LayerNorm(D), lambda s, x: bent(s, s.a(x))).double()
    for site in ("a", "b:in"):
        found = bp.symmetries(model, rows())[site]
        if name == "a vector that serves twice" and isinstance(found.group, G.Unknown):
            continue
        assert type(proved(model, site, rows())) is expected
    if expected in (G.Monomial, G.PositiveMonomial):
        assert "its own vectors" in bp.symmetries(model, rows())["a"].because


@pytest.mark.filterwarnings("ignore:the example did not use:UserWarning")
def test_thresholds_move_with_the_neurons_of_a_dictionary() -> None:
    model = Net(nn.LayerNorm(D), lambda s, x: (h := s.a(x)).relu() * (h > s.t)).double()
    element = G.PositiveMonomial(D).sample(seeded(2)).double()
    other = bp.reparametrize(model, "b:in", element, example_input=rows())
    torch.testing.assert_close(other.t, (element @ model.t).detach())  # pyright: ignore
    torch.testing.assert_close(other(rows()), model(rows()))
