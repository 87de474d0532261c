"""What a model adds that no change of basis can move: numbers for all features, and constants."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d, leaky_relu, linear

import basis_probe as bp

Added = Callable[["Adds", Tensor], Tensor]


class Adds(nn.Module):
    """Two linear maps with something in between, or in the place of the first one's bias."""

    def __init__(self, way: Added, bent: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.write, self.out = nn.Linear(6, 8), nn.Linear(8, 3)
        self.five, self.eight, self.table = (
            nn.Parameter(torch.randn(*shape, generator=generator)) for shape in ((5,), (8,), (3, 8))
        )
        self.register_buffer("held", torch.randn(8, generator=generator))
        self.register_buffer("nothing", torch.zeros(8))
        self.plain = torch.randn(8, generator=generator)
        self.way, self.bent = way, bent

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.bent(self.way(self, x)))


def _found(way: Added, bent: Callable[[Tensor], Tensor]) -> bp.Symmetry:
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(1))
    return bp.symmetries(Adds(way, bent), x)["out:in"]


NUMBERS: dict[str, Added] = {
    "an entry of a vector of another size": lambda m, x: m.write(x) + m.five[2],
    "an entry of a vector as long as the features": lambda m, x: m.write(x) + m.eight[0],
    "an entry kept as a vector of one": lambda m, x: m.write(x) + m.eight[2:3],
    "an entry taken away": lambda m, x: m.write(x) - m.eight[1],
    "from an entry": lambda m, x: m.eight[1] - m.write(x),
    "an entry of a table": lambda m, x: m.write(x) + m.table[1, 1],
    "a sum": lambda m, x: m.write(x) + m.eight.sum(),
    "the largest": lambda m, x: m.write(x) + m.table.amax(),
    "one of several that are unbound": lambda m, x: m.write(x) + m.five.unbind()[3],
}
BENT: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "leaky ReLU": leaky_relu,
    "as it is": lambda x: x,
}


@pytest.mark.parametrize("bent", BENT.values(), ids=BENT)
@pytest.mark.parametrize("way", NUMBERS.values(), ids=NUMBERS)
def test_one_number_for_all_features_leaves_permutations(
    way: Added, bent: Callable[[Tensor], Tensor]
) -> None:
    """It could be moved along by none of the signs and maps that there are without it."""
    found = _found(way, bent)
    assert found.group.name == "permutation", found.because
    assert found.certificate is not None and found.certificate.holds


def test_a_vector_that_is_added_moves_along() -> None:
    names = [
        _found(lambda m, x: m.write(x) + m.table[1], bent).group.name for bent in BENT.values()
    ]
    assert names == ["signed-permutation", "positive-monomial", "general-linear"]


CONSTANTS: dict[str, Added] = {
    "made on the way": lambda m, x: linear(x, m.write.weight, torch.ones(8)),
    "an attribute": lambda m, x: linear(x, m.write.weight, m.plain),
    "a buffer": lambda m, x: linear(x, m.write.weight, m.held),
    "a buffer, by addmm": lambda m, x: torch.addmm(m.held, x, m.write.weight.T),
    "computed from a buffer": lambda m, x: linear(x, m.write.weight, m.held.abs() + 1),
    "of a convolution": lambda m, x: conv1d(x[..., None], m.write.weight[..., None], m.held)[
        ..., 0
    ],
}


@pytest.mark.parametrize("bent", [torch.relu, torch.tanh, BENT["as it is"]])
@pytest.mark.parametrize("way", CONSTANTS.values(), ids=CONSTANTS)
def test_a_bias_that_is_no_parameter_holds_the_axes_in_a_way_that_is_not_derived(
    way: Added, bent: Callable[[Tensor], Tensor]
) -> None:
    found = _found(way, bent)
    assert found.group.name == "unknown"
    assert "no parameter of the model" in found.because


FREE: dict[str, Added] = {
    "nothing": lambda m, x: linear(x, m.write.weight),
    "a bias of zeros that is made on the way": lambda m, x: linear(
        x, m.write.weight, torch.zeros(8)
    ),
    "a buffer of zeros": lambda m, x: linear(x, m.write.weight, m.nothing),
    "a learned bias": lambda m, x: linear(x, m.write.weight, m.eight),
}


@pytest.mark.parametrize("way", FREE.values(), ids=FREE)
def test_no_bias_zeros_and_a_learned_one_hold_nothing(way: Added) -> None:
    found = _found(way, torch.relu)
    assert found.group.name == "positive-monomial", found.because


def test_what_is_read_with_a_constant_bias_is_free() -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.write, self.read, self.out = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            kept = self.write(x).relu()
            return self.out(linear(kept, self.read.weight, torch.ones(8)).relu())

    found = bp.symmetries(Reads(), torch.randn(16, 6))
    before, behind = found["write"], found["out:in"]
    assert before.group.name == "positive-monomial"
    assert before.certificate is not None and before.certificate.holds
    assert behind.group.name == "unknown"
