"""What a model adds that no change of basis can move: numbers for all features, and constants."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm, conv1d, gelu, leaky_relu, linear, pad

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
        self.register_buffer("mask", (torch.arange(8) % 3 > 0).float())
        self.register_buffer("gain", torch.rand(8, generator=generator) + 0.5)
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
    "an entry, expanded": lambda m, x: m.write(x) + m.eight[0].expand(8),
    "an entry, repeated": lambda m, x: m.write(x) + m.five[:1].repeat(8),
    "ones times an entry": lambda m, x: m.write(x) + torch.ones(8) * m.five[0],
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


NOT_FREE: dict[str, Added] = {
    "learned beside zeros": lambda m, x: linear(
        x, m.write.weight, torch.cat([m.five, torch.zeros(3)])
    ),
    "padded": lambda m, x: linear(x, m.write.weight, pad(m.five, (0, 3))),
    "masked": lambda m, x: linear(x, m.write.weight, m.eight * m.mask),
    "a buffer times a learned number": lambda m, x: linear(x, m.write.weight, m.held * m.five[0]),
    "that is added": lambda m, x: linear(x, m.write.weight) + m.held * m.five[0],
    "one number of each half": lambda m, x: linear(x, m.write.weight, m.five[torch.arange(8) // 4]),
    "one number, by addmm": lambda m, x: torch.addmm(m.five[:1], x, m.write.weight.T),
    "features set to zero": lambda m, x: linear(x, m.write.weight) * m.mask,
    "features set to a number": lambda m, x: linear(x, m.write.weight).masked_fill(
        m.mask == 0, 0.3
    ),
    "features chosen": lambda m, x: torch.where(m.mask > 0, linear(x, m.write.weight), m.five[0]),
    "a shift behind a gain": lambda m, x: linear(x, m.write.weight) * m.gain + m.held,
    "frozen batch normalisation": lambda m, x: batch_norm(
        linear(x, m.write.weight), m.held, m.gain, m.gain, m.held
    ),
}


@pytest.mark.parametrize("bent", [torch.relu, torch.tanh])
@pytest.mark.parametrize("way", NOT_FREE.values(), ids=NOT_FREE)
def test_what_is_fixed_in_part_moves_with_no_change_of_basis_that_is_known(
    way: Added, bent: Callable[[Tensor], Tensor]
) -> None:
    found = _found(way, bent)
    assert found.group.name == "unknown", found.because


@pytest.mark.parametrize("count", [2, 3, 4, 6, 8, 16, 600])
def test_one_number_as_the_bias_of_all_neurons_changes_no_single_sign(count: int) -> None:
    """However many there are, and whatever element is drawn for so many."""

    class Alike(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.write, self.out = nn.Linear(6, count, bias=False), nn.Linear(count, 3)
            self.number = nn.Parameter(torch.tensor([0.7]))

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.tanh(linear(x, self.write.weight, self.number.expand(count))))

    found = bp.symmetries(Alike(), torch.randn(16, 6))["out:in"]
    assert found.group.name == "permutation", found.because
    assert found.certificate is not None and found.certificate.holds


@pytest.mark.slow
@pytest.mark.parametrize("bent", [torch.relu, torch.tanh, gelu])
@pytest.mark.parametrize("count", [4, 6, 8, 12, 600])
def test_halves_with_a_bias_each_do_not_change_places(
    count: int, bent: Callable[[Tensor], Tensor]
) -> None:
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.write, self.out = nn.Linear(6, count, bias=False), nn.Linear(count, 3)
            self.two = nn.Parameter(torch.tensor([0.7, -0.2]))

        def forward(self, x: Tensor) -> Tensor:
            bias = self.two.repeat_interleave(count // 2)
            return self.out(bent(linear(x, self.write.weight, bias)))

    assert bp.symmetries(Halves(), torch.randn(16, 6))["out:in"].group.name == "unknown"


def test_a_product_whose_other_term_counts_for_nothing_has_no_bias() -> None:
    found = _found(lambda m, x: torch.addmm(m.held, x, m.write.weight.T, beta=0), torch.relu)
    assert found.group.name == "positive-monomial"
    assert found.certificate is not None and found.certificate.holds


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("half", [4, 8, 400])
def test_halves_that_share_a_number_each_are_told_apart_though_neurons_are_off(
    half: int, seed: int
) -> None:
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.write, self.out = nn.Linear(6, 2 * half), nn.Linear(2 * half, 3)
            self.two = nn.Parameter(torch.randn(2))

        def forward(self, x: Tensor) -> Tensor:
            one, other = self.write(x).chunk(2, -1)
            return self.out(torch.cat([one + self.two[0], other + self.two[1]], -1).relu())

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        found = bp.symmetries(Halves(), torch.randn(16, 6))["out:in"]
    assert found.group == bp.groups.DirectSum((bp.groups.Permutation(half),) * 2), found.because
    assert found.certificate is not None and found.certificate.holds
