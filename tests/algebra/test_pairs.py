"""Functions of two features: which factors pass, against what algebra gives for each of them."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from basis_probe.algebra.pairs import pair_factors

Function = Callable[[Tensor, Tensor], Tensor]

# name -> (function, positive factors (of the first, of the second) -> that of the result or None,
# signs likewise)
KNOWN: dict[str, tuple[Function, Callable[[float, float], float | None]]] = {
    "larger": (torch.maximum, lambda c, d: c if c == d > 0 else None),
    "smaller": (torch.minimum, lambda c, d: c if c == d > 0 else None),
    "chosen": (lambda a, b: torch.where(a > b, a, b), lambda c, d: c if c == d > 0 else None),
    "product": (torch.mul, lambda c, d: c * d),
    "quotient": (torch.div, lambda c, d: c / d),
    "length": (lambda a, b: (a * a + b * b).sqrt(), lambda c, d: abs(c) if c in (d, -d) else None),
    "distance": (lambda a, b: (a - b).abs(), lambda c, d: abs(c) if c == d else None),
    "far one": (
        lambda a, b: torch.where(a.abs() > b.abs(), a, b),
        lambda c, d: c if c == d else None,
    ),
    "gated by a hinge": (lambda a, b: a * b.relu(), lambda c, d: c * d if d > 0 else None),
    "gated by a sigmoid": (lambda a, b: a * b.sigmoid(), lambda c, d: c if d == 1 else None),
    "divided by what grows": (
        lambda a, b: a / (1 + b.abs()),
        lambda c, d: c if d in (1, -1) else None,
    ),
    "square times": (lambda a, b: a * a * b, lambda c, d: c * c * d),
    "sign times": (lambda a, b: a.sign() * b, lambda c, d: d if c > 0 else -d),
    "sum of a square": (
        lambda a, b: a * a + b,
        lambda c, d: 1.0 if (c, d) in ((1, 1), (-1, 1)) else None,
    ),
    "bent difference": (
        lambda a, b: (a - b).tanh(),
        lambda c, d: c if (c, d) in ((1, 1), (-1, -1)) else None,
    ),
    "nearly a length": (
        lambda a, b: (a * a + b * b + 1e-8).sqrt(),
        lambda c, d: 1.0 if abs(c) == abs(d) == 1 else None,
    ),
    "highway": (
        lambda a, b: a * b.sigmoid() + (1 - b.sigmoid()) * a.tanh(),
        lambda c, d: c if d == 1 and c in (1, -1) else None,
    ),
}
TRIED = [c * s for c, s in itertools.product((1.0, 2.0, 0.5, 7.0), (1, -1))]


@pytest.mark.sample(default=25)
@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("dim", [2, 7])
def test_factors_pass_exactly_where_algebra_says_so(name: str, dim: int) -> None:
    function, law = KNOWN[name]
    found = pair_factors(function, dim)
    assert found is not None
    for c, d in itertools.product(TRIED, TRIED):
        expected = law(c, d)
        results = [expected] if expected is not None else [s * r for r in TRIED for s in (1, -1)]
        for result in results:
            factors = torch.tensor([c, d, result], dtype=torch.float64)
            logs, bits = factors.abs().log(), (factors < 0).int()
            held = all(
                abs(float(torch.tensor(powers, dtype=torch.float64) @ logs)) < 1e-9
                for powers in found.sizes
            ) and all(int(torch.tensor(odd).int() @ bits) % 2 == 0 for odd in found.signs)
            assert held == (expected is not None), (c, d, result)


@pytest.mark.parametrize("dim", [2, 3, 6, 8, 9])
def test_a_feature_that_reads_another_one_is_seen_wherever_that_is(dim: int) -> None:
    for distance in range(1, dim):
        assert pair_factors(lambda a, b, s=distance: torch.maximum(a, b.roll(s, 1)), dim) is None
    for one, other in itertools.permutations(range(dim), 2):

        def coupled(a: Tensor, b: Tensor, one: int = one, other: int = other) -> Tensor:
            y = torch.maximum(a, b)
            y[:, one] += a[:, other]
            return y

        assert pair_factors(coupled, dim) is None
    for one in range(dim):
        gains = torch.ones(dim, dtype=torch.float64)
        gains[one] = 1 + 1e-6
        assert pair_factors(lambda a, b, gains=gains: gains * torch.maximum(a, b), dim) is None


@pytest.mark.parametrize(
    "function",
    [
        lambda a, b: a * b.mean(1, keepdim=True),
        lambda a, b: a * b * torch.arange(1, a.shape[1] + 1),
        lambda a, b: torch.maximum(a, b.roll(1, 1)),
        lambda a, b: torch.maximum(a, b).cumsum(1),
        lambda a, b: a * b.norm(),
        lambda a, b: a * b.norm(dim=1, keepdim=True),
        lambda a, b: torch.maximum(a, b - b.mean(0)),
        lambda a, b: (a * b).sqrt(),
        lambda a, b: torch.zeros_like(a),
    ],
)
def test_what_mixes_or_tells_features_is_left_alone(function: Function) -> None:
    assert pair_factors(function, 6) is None
