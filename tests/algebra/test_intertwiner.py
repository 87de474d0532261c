"""Intertwiner groups from values alone: every row of the table, and functions made to deceive."""

from collections.abc import Callable

import pytest
import torch
from draws import seeded
from torch import Tensor, nn
from torch.nn import functional

from basis_probe.algebra.groups import (
    GeneralLinear,
    Group,
    Monomial,
    Orthogonal,
    Permutation,
    PositiveMonomial,
    Privileged,
    SignedPermutation,
    Unknown,
)
from basis_probe.algebra.intertwiner import Intertwiner, intertwiner_group

Function = str | nn.Module | Callable[[Tensor], Tensor]


def inputs(dim: int, seed: int = 0, samples: int = 200) -> Tensor:
    """Rows with entries from small to large, which no test inside the package uses."""
    x = torch.randn(samples, dim, generator=seeded(seed), dtype=torch.float64)
    return x * torch.logspace(-2, 1.2, samples, dtype=torch.float64)[:, None]


def misfit(function: Callable[[Tensor], Tensor], a: Tensor, seed: int = 1) -> float:
    """How far the best B is from f(A x) = B f(x), relative to f(A x)."""
    x = inputs(len(a), seed)
    before, after = function(x.clone()).double(), function(x @ a.T).double()
    # Every row counts alike, however fast the function grows.
    weight = 1 / after.norm(dim=1, keepdim=True).clamp_min(1e-300)
    before, after = before * weight, after * weight
    units = before.norm(dim=0).clamp_min(1e-300)
    best = torch.linalg.lstsq(before / units, after, driver="gelsd").solution
    return float((before / units @ best - after).norm() / after.norm())


# --- the table ------------------------------------------------------------------------------------

PERMUTATIONS: dict[str, list[Function]] = {
    "gelu": ["gelu", nn.GELU(), functional.gelu],
    "gelu_tanh": ["gelu_new", "gelu_tanh", nn.GELU(approximate="tanh")],
    "quick_gelu": ["quick_gelu", lambda x: x * torch.sigmoid(1.702 * x)],
    "silu": ["silu", "swish", nn.SiLU(), lambda x: x * x.sigmoid()],
    "mish": ["mish", nn.Mish(), functional.mish],
    "softplus": ["softplus", nn.Softplus(), functional.softplus],
    "sigmoid": ["sigmoid", nn.Sigmoid(), torch.sigmoid],
    "elu": ["elu", nn.ELU(), functional.elu],
    "selu": ["selu", nn.SELU(), functional.selu],
    "celu": ["celu", nn.CELU(alpha=0.5), functional.celu],
    "relu6": ["relu6", nn.ReLU6(), lambda x: x.clamp(0, 6)],
    "hardswish": ["hardswish", nn.Hardswish(), functional.hardswish],
    "xielu": ["xielu"],
    "exp": ["exp", torch.exp],
}
SCALES: list[tuple[list[Function], type[Group], type[Group], Callable[[Tensor], Tensor]]] = [
    # What is called, the group before, the group behind, and what φ makes of the entries of A.
    (
        ["relu", nn.ReLU(), nn.ReLU(inplace=True), torch.relu],
        PositiveMonomial,
        PositiveMonomial,
        lambda a: a,
    ),
    (
        ["leaky_relu", nn.LeakyReLU(0.3), lambda x: torch.where(x > 0, x, 0.1 * x)],
        PositiveMonomial,
        PositiveMonomial,
        lambda a: a,
    ),
    (["prelu", nn.PReLU(), nn.PReLU(init=0.7)], PositiveMonomial, PositiveMonomial, lambda a: a),
    (
        ["relu2", "relu²", "relu_squared", lambda x: x.relu() ** 2],
        PositiveMonomial,
        PositiveMonomial,
        torch.square,
    ),
    (
        ["abs", torch.abs, lambda x: functional.leaky_relu(x, -1.0)],
        Monomial,
        PositiveMonomial,
        torch.abs,
    ),
    (["square", lambda x: x * x], Monomial, PositiveMonomial, torch.square),
    (["cube", lambda x: x**3], Monomial, Monomial, lambda a: a**3),
    ([lambda x: x**4], Monomial, PositiveMonomial, lambda a: a**4),
    ([lambda x: x * x.abs()], Monomial, Monomial, lambda a: a * a.abs()),
    ([lambda x: x.abs().sqrt()], Monomial, PositiveMonomial, lambda a: a.abs().sqrt()),
    ([torch.sign], Monomial, SignedPermutation, torch.sign),
    (
        [lambda x: x > 0, lambda x: torch.heaviside(x, x.new_zeros(()))],
        PositiveMonomial,
        Permutation,
        lambda a: (a > 0).double(),
    ),
    (["tanh", nn.Tanh(), torch.tanh], SignedPermutation, SignedPermutation, lambda a: a),
    (["sin", torch.sin], SignedPermutation, SignedPermutation, lambda a: a),
    (["erf", torch.erf], SignedPermutation, SignedPermutation, lambda a: a),
    (["softsign", nn.Softsign()], SignedPermutation, SignedPermutation, lambda a: a),
    (
        ["hardtanh", nn.Hardtanh(), lambda x: x.clamp(-1, 1)],
        SignedPermutation,
        SignedPermutation,
        lambda a: a,
    ),
    (
        [nn.Tanhshrink(), nn.Softshrink(), nn.Hardshrink()],
        SignedPermutation,
        SignedPermutation,
        lambda a: a,
    ),
    (["cos", torch.cos], SignedPermutation, Permutation, torch.abs),
    (["gaussian", "rbf", lambda x: torch.exp(-x * x)], SignedPermutation, Permutation, torch.abs),
    *[(given, Permutation, Permutation, lambda a: a) for given in PERMUTATIONS.values()],
]
ROWS = [
    # No address in the name: parallel runs must collect the same names.
    pytest.param(function, before, behind, entries, id=f"{row}.{place}-{behind.__name__}")
    for row, (given, before, behind, entries) in enumerate(SCALES)
    for place, function in enumerate(given)
]


def evaluated(function: Function) -> Callable[[Tensor], Tensor]:
    """The function itself, by a way of its own: modules as they are, names by PyTorch's own."""
    named: dict[str, Callable[[Tensor], Tensor]] = {
        "relu2": lambda x: x.clamp(min=0) ** 2,
        "relu²": lambda x: x.clamp(min=0) ** 2,
        "relu_squared": lambda x: x.clamp(min=0) ** 2,
        "prelu": lambda x: functional.leaky_relu(x, 0.25),
        "cube": lambda x: x**3,
        "gaussian": lambda x: torch.exp(-(x**2)),
        "rbf": lambda x: torch.exp(-(x**2)),
        "gelu_new": lambda x: functional.gelu(x, approximate="tanh"),
        "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
        "quick_gelu": lambda x: x / (1 + torch.exp(-1.702 * x)),
        "swish": lambda x: x / (1 + torch.exp(-x)),
        "xielu": lambda x: torch.where(
            x > 0, 0.8 * x**2 + 0.5 * x, 0.8 * (torch.expm1(x.clamp(max=0)) - x) + 0.5 * x
        ),
    }
    if isinstance(function, str):
        if function in named:
            return named[function]
        return getattr(torch, function, None) or getattr(functional, function)
    if isinstance(function, nn.Module):
        return lambda x: function(x.to(_dtype(function))).detach().double()
    return lambda x: function(x).double()


def _dtype(module: nn.Module) -> torch.dtype:
    return next((p.dtype for p in module.parameters()), torch.float64)


@pytest.mark.sample(default=20)
@pytest.mark.parametrize("dim", [1, 5])
@pytest.mark.parametrize(("function", "before", "behind", "entries"), ROWS)
def test_the_table(
    function: Function,
    before: type[Group],
    behind: type[Group],
    entries: Callable[[Tensor], Tensor],
    dim: int,
) -> None:
    found = intertwiner_group(function, dim)
    assert type(found.group) is before and type(found.image) is behind
    assert found.name == before.name and found.dim == dim
    assert found.privileged is Privileged.AXES
    direct = evaluated(function)
    single = isinstance(function, nn.PReLU)
    generator = seeded(2)
    for seed in range(5):
        a = found.sample(generator)
        b = found.phi(a)
        assert found.contains(a) and found.image.contains(b)
        x = inputs(dim, seed)
        expected = direct(x) @ b.T
        error = (direct(x @ a.T) - expected).abs() / expected.abs().clamp_min(1e-6)
        assert float(error.max()) < (1e-5 if single else 1e-9)
        assert torch.allclose(b, torch.where(a == 0, a, entries(a)), rtol=1e-9, atol=0)


OUTSIDE = {
    "a rotation": Orthogonal(4).sample(seeded(3)),
    "a plane rotation": torch.block_diag(
        torch.tensor([[0.6, -0.8], [0.8, 0.6]]), torch.eye(2)
    ).double(),
    "a shear": torch.eye(4, dtype=torch.float64)
    + 0.5 * torch.eye(4, dtype=torch.float64).roll(1, 0),
    "one sign": torch.diag(torch.tensor([1.0, -1.0, 1.0, 1.0])).double(),
    "one scale": torch.diag(torch.tensor([1.0, 1.7, 1.0, 1.0])).double(),
    "one negative scale": torch.diag(torch.tensor([1.0, 1.0, 1.0, -0.6])).double(),
}


@pytest.mark.sample(default=23)
@pytest.mark.parametrize(("function", "before", "behind", "entries"), ROWS)
def test_what_is_outside_the_group_has_no_b(
    function: Function,
    before: type[Group],
    behind: type[Group],
    entries: Callable[[Tensor], Tensor],
) -> None:
    found = intertwiner_group(function, 4)
    direct = evaluated(function)
    for what, a in OUTSIDE.items():
        error = misfit(direct, a)
        if found.contains(a):
            assert error < 1e-5, what
        else:
            assert error > 1e-4, what
            with pytest.raises(ValueError, match="does not pass through"):
                found.phi(a)


@pytest.mark.parametrize(
    "function",
    [
        "identity",
        "linear",
        nn.Identity(),
        lambda x: 3 * x,
        lambda x: -x,
        lambda x: functional.leaky_relu(x, 1.0),
        nn.Dropout(0.5),
    ],
)
def test_linear_functions_let_everything_pass(function: Function) -> None:
    found = intertwiner_group(function, 4)
    assert found.group == found.image == GeneralLinear(4)
    assert found.privileged is Privileged.NONE and found.note == ""
    a = found.sample(seeded(4))
    assert torch.equal(found.phi(a), a)


def test_an_offset_is_left_to_the_next_bias() -> None:
    found = intertwiner_group(lambda x: 2 * x - 1, 4)
    assert found.group == GeneralLinear(4)
    assert "2 t - 1" in found.because and "the next bias absorbs" in found.note


def test_a_gain_for_every_channel_conjugates() -> None:
    gain = torch.tensor([2.0, -0.5, 1.0, 30.0], dtype=torch.float64)
    found = intertwiner_group(lambda x: x * gain, 4)
    assert found.group == GeneralLinear(4)
    a, x = found.sample(seeded(5)), inputs(4)
    assert torch.allclose((x @ a.T) * gain, (x * gain) @ found.phi(a).T, rtol=1e-9)


# --- channels that differ -------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [3, 8, 300])
def test_a_slope_for_every_channel(dim: int) -> None:
    module = nn.PReLU(dim)
    nn.init.uniform_(module.weight, -0.5, 0.9, generator=seeded(6))
    found = intertwiner_group(module, dim)
    assert found.group == found.image == PositiveMonomial(dim)
    assert "slopes" in found.note
    a, x = found.sample(seeded(7)), inputs(dim, samples=50)
    assert torch.equal(found.phi(a), a)
    slopes = module.weight.detach().double()
    moved = (a != 0).double() @ slopes
    before = torch.where(x > 0, x, slopes * x)
    after = torch.where(x @ a.T > 0, x @ a.T, moved * (x @ a.T))
    assert torch.allclose(after, before @ a.T, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("sizes", [(4, 4), (2, 3, 1), (5, 1)])
def test_slopes_that_are_no_weights_stay_where_they_are(sizes: tuple[int, ...]) -> None:
    slopes = torch.cat([torch.full((n,), 0.25 * k) for k, n in enumerate(sizes)]).double()
    slopes[sum(sizes[:-1]) :] = 1.0
    dim = len(slopes)

    def function(x: Tensor) -> Tensor:
        return torch.where(x > 0, x, slopes.to(x) * x)

    found, x = intertwiner_group(function, dim), inputs(dim, samples=50)
    a = found.sample(seeded(7))
    assert torch.allclose(function(x @ a.T), function(x) @ found.phi(a).T, rtol=1e-9, atol=1e-12)
    order = torch.arange(dim)
    order[[0, -1]] = order[[-1, 0]]
    across = torch.eye(dim, dtype=torch.float64)[order]
    assert not torch.allclose(function(x @ across.T), function(x) @ across.T)
    assert not found.contains(across)
    # The last stretch is the identity, through which everything passes.
    last = torch.eye(dim, dtype=torch.float64)
    last[-sizes[-1] :, -sizes[-1] :] = 2 * torch.eye(sizes[-1]) + 0.5
    assert found.contains(last)


class Weighted(nn.Module):
    """A function with a weight for every channel."""

    def __init__(self, bend: Callable[[Tensor, Tensor], Tensor], weights: Tensor) -> None:
        super().__init__()
        self.weights, self.bend = nn.Parameter(weights), bend

    def forward(self, x: Tensor) -> Tensor:
        return self.bend(self.weights.to(x), x)


WEIGHTED: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], type[Group]]] = {
    "exp": (lambda a, x: torch.exp(a * x), Permutation),
    "exp, steep": (lambda a, x: torch.exp(-30 * a * x), Permutation),
    "snake": (lambda a, x: x + (a * x).sin().square() / a, Permutation),
    "tanh": (lambda a, x: (a * x).tanh(), SignedPermutation),
    "cosh": (lambda a, x: (a * x).cosh(), SignedPermutation),
    "squares": (lambda a, x: a * x * x, Monomial),
    "hinges at 0": (lambda a, x: torch.where(x > 0, x * x, a * x * x), PositiveMonomial),
    "hinges elsewhere": (lambda a, x: torch.relu(x - a), Permutation),
    # Not all channels let the same pass.
    "odd and even": (lambda a, x: torch.where(a > 1, x.tanh(), (a * x).cosh()), Permutation),
    "powers": (lambda a, x: torch.where(a > 1, x**3, x), SignedPermutation),
}


@pytest.mark.parametrize("name", WEIGHTED)
def test_weights_of_channels_change_places_with_them(name: str) -> None:
    bend, kind = WEIGHTED[name]
    weights = torch.tensor([0.5, 1.3, 0.9, 2.1, 0.7])
    found = intertwiner_group(Weighted(bend, weights), 5)
    assert found.group == kind(5), found.because
    assert "weights of the channels are permuted along with them" in found.note
    # The same numbers, which no weight holds, stay where they are.
    fixed = intertwiner_group(lambda x: bend(weights.to(x), x), 5)
    assert fixed.group == Unknown(5)
    # By hand: the function with its weights in another order does to a moved x what it did to x.
    a = found.sample(seeded(3))
    order = a.abs().argmax(dim=1)
    x = 0.1 * inputs(5)
    before, after = bend(weights.double(), x)[:, order], bend(weights[order].double(), x @ a.T)
    largest = before.abs().argmax(dim=0), torch.arange(5)
    factors = (after[largest] / before[largest]).nan_to_num(1.0)
    torch.testing.assert_close(after, before * factors, rtol=1e-7, atol=1e-12)


def test_a_function_that_grows_too_large_is_measured_where_it_is_finite() -> None:
    for rate in (5, 16, -40, 300):
        assert intertwiner_group(lambda x, rate=rate: torch.exp(rate * x), 3).group == Permutation(
            3
        )
    for even_or_odd in (lambda x: torch.sinh(40 * x), lambda x: torch.exp(x * x)):
        assert intertwiner_group(even_or_odd, 3).group == SignedPermutation(3)
    # What is infinite elsewhere is no such function.
    for function in (
        lambda x: 1 / (x - 30),
        lambda x: torch.where(x > 30, torch.inf, x),
        lambda x: torch.where(x < 0, torch.inf, x),
        lambda x: torch.where((x > 30) & (x < 40), torch.inf, torch.exp(16 * x)),
    ):
        assert intertwiner_group(function, 3).group == Unknown(3)


def test_slopes_that_come_again_are_not_guessed_at() -> None:
    slopes = torch.tensor([0.5, 0.0, 0.5])
    found = intertwiner_group(lambda x: torch.where(x > 0, x, slopes.to(x) * x), 3)
    assert found.name == "unknown" and "on different channels" in found.because


def test_a_single_different_channel_is_seen() -> None:
    module = nn.PReLU(4096)
    with torch.no_grad():
        module.weight[4095] = 0.9
    assert "slopes" in intertwiner_group(module, 4096).note


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.cat([x[:, :2].relu(), x[:, 2:].tanh()], dim=1),
        lambda x: torch.cat([x[:, :3], x[:, 3:].relu()[:, :0], x[:, 3:].tanh()], dim=1),
        lambda x: torch.tanh(x * torch.arange(1.0, 6.0).double()),
        lambda x: x.relu() * torch.arange(1.0, 6.0).double(),
        lambda x: x * torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0]).double(),
    ],
)
def test_channels_that_cannot_change_places(function: Function) -> None:
    found = intertwiner_group(function, 5)
    assert found.group == found.image == Unknown(5)
    assert "channels" in found.because


# --- functions made to deceive --------------------------------------------------------------------

DECEIVING: list[tuple[str, Callable[[Tensor], Tensor], type[Group]]] = [
    ("relu with a cap at 100", lambda x: x.clamp(0, 100), Permutation),
    ("relu with a cap at 1e6", lambda x: x.clamp(0, 1e6), Permutation),
    ("identity up to a thousand", lambda x: x.clamp(-1e3, 1e3), SignedPermutation),
    ("identity up to ten thousand", lambda x: x.clamp(-1e4, 1e4), SignedPermutation),
    ("relu off the origin", lambda x: (x - 0.01).relu(), Permutation),
    ("relu off the origin by a hair", lambda x: (x - 1e-6).relu(), Permutation),
    ("softplus like relu", lambda x: functional.softplus(x, beta=1e4), Permutation),
    ("gelu of large values only", lambda x: functional.gelu(1e3 * x), Permutation),
    ("leaky relu with a kink at -30", lambda x: torch.where(x > -30, x, 2 * x + 30), Permutation),
    ("identity with a ripple", lambda x: x + 1e-5 * x.sin(), SignedPermutation),
    ("ripple without lattice points", lambda x: (20 * torch.pi * x).sin(), SignedPermutation),
    ("a wave in the logarithm", lambda x: x * (2 + _wave(x)), SignedPermutation),
    ("threshold", lambda x: functional.threshold(x, 0.5, 0.0), Permutation),
    ("sine on a slope", lambda x: x.sin() + x, SignedPermutation),
    ("tanh off the origin", lambda x: (x + 1e-4).tanh(), Permutation),
    ("a hinge far out", lambda x: (x - 1000).relu(), Permutation),
    ("relu with a tail", lambda x: x.relu() + 1e-6 * torch.exp(-x * x), Permutation),
]


def _wave(x: Tensor) -> Tensor:
    """Periodic in log2 |x|: scales that are powers of two pass, no others."""
    return (2 * torch.pi * x.abs().clamp_min(1e-300).log2()).sin()


@pytest.mark.sample(default=10)
@pytest.mark.parametrize(("what", "function", "expected"), DECEIVING)
def test_a_group_is_never_too_large(
    what: str, function: Callable[[Tensor], Tensor], expected: type[Group]
) -> None:
    for dim in (1, 4, 700):
        assert intertwiner_group(function, dim).group == expected(dim), what


@pytest.mark.parametrize(
    ("function", "because"),
    [
        (lambda x: 0 * x, "constant"),
        (lambda x: torch.ones_like(x), "constant"),
        (torch.log, "not finite for all real inputs"),
        (torch.sqrt, "not finite for all real inputs"),
        (lambda x: 1 / x, "not finite for all real inputs, such as 0"),
        (lambda x: torch.where(x > 30, torch.inf, x), "not finite for all real inputs, such as 40"),
        (lambda x: functional.layer_norm(x, (5,)), "as norms do"),
        (nn.LayerNorm(5), "as norms do"),
        (nn.RMSNorm(5), "as norms do"),
        (lambda x: x / x.norm(dim=-1, keepdim=True), "as norms do"),
        (lambda x: x - x.mean(-1, keepdim=True), "lets more than permutations pass"),
        (lambda x: x.cumsum(-1), "not permuted"),
        (lambda x: x.sort(-1).values, "not permuted"),
        (lambda x: x.softmax(-1).flip(-1), "not permuted"),
        (lambda x: torch.where(x[:, :1] > 20, 2 * x, x), "not permuted"),
        (lambda x: x - x.mean(0), "mixes the samples"),
        (lambda x: x.softmax(0), "mixes the samples"),
    ],
)
def test_what_is_not_understood_is_not_claimed(function: Function, because: str) -> None:
    found = intertwiner_group(function, 5)
    assert found.group == found.image == Unknown(5)
    assert found.name == "unknown" and found.privileged is Privileged.UNKNOWN
    assert because in found.because
    with pytest.raises(ValueError, match="not known"):
        found.contains(torch.eye(5))
    with pytest.raises(ValueError, match="not known"):
        found.sample(seeded())
    with pytest.raises(ValueError, match="not known"):
        found.phi(torch.eye(5))


@pytest.mark.parametrize("pair", [(0, 1), (0, 4095), (2047, 2048), (4095, 17)])
def test_a_single_coupled_pair_among_many_features_is_seen(pair: tuple[int, int]) -> None:
    source, target = pair

    def function(x: Tensor) -> Tensor:
        y = x.relu()
        y[:, target] += 0.1 * x[:, source].sin()
        return y

    assert intertwiner_group(function, 4096).group == Unknown(4096)


# --- functions that mix features ------------------------------------------------------------------


@pytest.mark.parametrize("dim", [2, 3, 7, 64])
@pytest.mark.parametrize(
    ("function", "shifts"),
    [
        ("softmax", True),
        (nn.Softmax(dim=-1), True),
        (lambda x: (3 * x).softmax(-1), True),
        (lambda x: x.log_softmax(-1), True),
        ("solu", False),
        (lambda x: x * x.softmax(-1), False),
    ],
)
def test_softmax_and_solu_let_permutations_pass(function: Function, shifts: bool, dim: int) -> None:
    found = intertwiner_group(function, dim)
    assert found.group == found.image == Permutation(dim)
    assert ("all-ones" in found.note) == shifts
    a = found.sample(seeded(8))
    assert torch.equal(found.phi(a), a)


def test_softmax_of_one_feature_is_constant() -> None:
    assert "constant" in intertwiner_group("softmax", 1).because


def test_what_softmax_does_not_let_pass_has_no_b() -> None:
    for what, a in OUTSIDE.items():
        assert misfit(lambda x: x.softmax(-1), a) > 1e-4, what
        assert misfit(lambda x: x * x.softmax(-1), a) > 1e-4, what


# --- words ----------------------------------------------------------------------------------------


def test_because_says_what_was_measured() -> None:
    said = {name: intertwiner_group(name, 4).because for name in ("relu", "tanh", "abs", "gelu")}
    values = said["relu"].split("measured at ")[1].split(" ")[0]
    assert int(values) > 300
    among = f", measured at {values} values of t from -1e8 to 1e8"
    assert said == {
        "relu": f"relu(c t) = c relu(t) for every c > 0 and for no c < 0{among}",
        "tanh": "tanh(-t) = -tanh(t), and tanh(c t) is a multiple of tanh(t) for no other c"
        + among,
        "abs": f"abs(c t) = |c| abs(t) for every c other than 0{among}",
        "gelu": f"gelu(c t) is a multiple of gelu(t) for no c but 1{among}",
    }
    for function, start in (
        ("cube", "cube(c t) = c^3 cube(t)"),
        (lambda x: x * x.abs(), "f(c t) = sign(c) |c|^2 f(t)"),
        (torch.sign, "sign(c t) = sign(c) sign(t)"),
        (lambda x: x > 0, "f(c t) = f(t) for every c > 0"),
        ("relu2", "relu2(c t) = c^2 relu2(t)"),
        ("cos", "cos(-t) = cos(t), and"),
        (nn.ReLU(), "ReLU(c t) = c ReLU(t)"),
    ):
        assert intertwiner_group(function, 4).because.startswith(start)


@pytest.mark.parametrize(
    ("function", "note"),
    [
        ("sigmoid", "sigmoid(-t) = 1 - sigmoid(t), so signs are free too"),
        (nn.Hardsigmoid(), "Hardsigmoid(-t) = 1 - Hardsigmoid(t), so signs are free too"),
        (lambda x: x > 0, ""),
        (lambda x: x.relu() + 1, "positive scales are free too"),
        ("softplus", ""),
        ("silu", ""),
        ("relu", ""),
        ("gelu", ""),
    ],
)
def test_notes_name_the_shifts_that_a_bias_absorbs(function: Function, note: str) -> None:
    found = intertwiner_group(function, 4)
    assert found.note.startswith(note) or note in found.note
    if not note and not callable(function):
        assert found.note == ""


# --- the black box is left as it was --------------------------------------------------------------


def test_the_users_module_and_random_numbers_are_left_alone() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0
            self.slope = nn.Parameter(torch.tensor(0.3))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            if self.training:
                x = functional.dropout(x, 0.5, training=True)
            return torch.where(x > 0, x, self.slope * x)

    module = Noisy().train()
    seen: list[Tensor] = []
    module.register_forward_hook(lambda _module, _args, out: seen.append(out))
    before = torch.random.get_rng_state()
    found = intertwiner_group(module, 6)
    assert found.group == PositiveMonomial(6)
    assert module.training and module.calls == 0 and not seen
    assert module.slope.dtype == torch.float32 and module.slope.grad is None
    with pytest.raises(ValueError, match="random"):
        intertwiner_group(lambda x: functional.dropout(x, 0.1, training=True), 6)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_float32_and_half_precision_inside() -> None:
    assert intertwiner_group(lambda x: x.float().relu(), 6).group == PositiveMonomial(6)
    assert intertwiner_group(lambda x: functional.gelu(x.float()).double(), 6).name == "permutation"
    weight = torch.tensor([0.25])
    only_single: Callable[[Tensor], Tensor] = lambda x: functional.prelu(x, weight)  # noqa: E731
    assert intertwiner_group(only_single, 6).group == PositiveMonomial(6)
    assert intertwiner_group(nn.Linear(6, 6), 6).group == Unknown(6)
    for dtype, name in ((torch.bfloat16, "bfloat16"), (torch.float16, "float16")):
        with pytest.raises(ValueError, match=f"computes in {name}, too coarse"):
            intertwiner_group(lambda x, dtype=dtype: x.to(dtype).relu(), 6)


@pytest.mark.parametrize("dim", [2, 5, 64])
@pytest.mark.parametrize("width", [1.0, 0.25, 1e-3])
def test_steps_are_told_from_rounding(dim: int, width: float) -> None:
    """Steps of nearly one width on all channels, as rare in rounded inputs as in others."""
    factors = torch.ones(dim, dtype=torch.float64)
    factors[1] += 1e-5
    found = intertwiner_group(lambda x: factors * torch.round(x / width), dim)
    assert found.name == "unknown" and "on different channels" in found.because


def test_functions_that_write_into_their_input() -> None:
    assert intertwiner_group(lambda x: x.relu_(), 6).group == PositiveMonomial(6)
    assert intertwiner_group(lambda x: x.mul_(x.sigmoid()), 6).group == Permutation(6)


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "dim", "message"),
    [
        ("rleu", 4, "no nonlinearity is called 'rleu'; nearest: .*relu.*; all names: identity"),
        ("zzzzzzzz", 4, "nearest: none"),
        ("relu", 0, "dim=0: give a whole number above zero"),
        (nn.GLU(), 4, r"made \(72, 2\) from \(72, 4\).*for a gated unit, the gate's"),
        (nn.GLU(), 5, "GLU failed on a float64 tensor .* on the CPU: Halving dimension"),
        (nn.PReLU(3), 4, "PReLU failed on a float64 tensor"),
        (lambda x: x.tolist(), 4, "returned list: give a function that returns a tensor"),
        (lambda x: x.to(torch.complex128), 4, "returned complex numbers"),
        (lambda x: x + torch.rand(()), 4, "two different results for the same values"),
        (lambda: 0, 4, "failed on a float64 tensor"),
    ],
)
def test_bad_input(function: Function, dim: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        intertwiner_group(function, dim)


def test_what_is_no_function() -> None:
    with pytest.raises((ValueError, TypeError), match=r"no nonlinearity|3\.0"):
        intertwiner_group(3.0, 4)  # pyright: ignore


def test_matrices_outside_the_group() -> None:
    found = intertwiner_group("relu", 3)
    with pytest.raises(ValueError, match="its intertwiner group is positive-monomial; check with"):
        found.phi(-torch.eye(3))
    with pytest.raises(ValueError, match=r"acts on \[3, 3\]"):
        found.phi(torch.eye(4))


# --- speed ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [64, 4096])
def test_no_more_values_than_needed(dim: int) -> None:
    """Counts what the function is asked, which does not depend on how busy the machine is."""
    asked = 0

    def counted(x: Tensor) -> Tensor:
        nonlocal asked
        asked += x.numel()
        return functional.gelu(x)

    found: Intertwiner = intertwiner_group(counted, dim)
    assert found.name == "permutation"
    assert asked < 550 * dim + 100_000
