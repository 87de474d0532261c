"""Neurons that are multiplied, and read different inputs, are not held against rotations.

Products have heavier tails than sums of them, in networks that were never trained too: turned axes
are sums, so that the axes would stand out against them for nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import basis_probe as bp

WIDTH = 16
STANDS_OUT = (bp.Outcome.PRIVILEGED, bp.Outcome.EMERGENT)


class Cell(nn.Module):
    """A recurrence of torch, step by step."""

    def __init__(self, kind: type[nn.RNNCellBase]) -> None:
        super().__init__()
        self.cell, self.out = kind(8, WIDTH), nn.Linear(WIDTH, 3)  # pyright: ignore

    def forward(self, x: Tensor) -> Tensor:
        hidden = cell = x.new_zeros(len(x), WIDTH)
        for step in x.unbind(1):
            if isinstance(self.cell, nn.LSTMCell):
                hidden, cell = self.cell(step, (hidden, cell))
            else:
                hidden = self.cell(step, hidden)
        return self.out(hidden)


class ByHand(nn.Module):
    """Two gates, each of two maps that read different inputs."""

    def __init__(self, join: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.given, self.before = nn.Linear(8, 2 * WIDTH), nn.Linear(WIDTH, 2 * WIDTH)
        self.out, self.join = nn.Linear(WIDTH, 3), join

    def forward(self, x: Tensor) -> Tensor:
        hidden = x.new_zeros(len(x), WIDTH)
        for step in x.unbind(1):
            gate, value = (self.given(step) + self.before(hidden)).chunk(2, -1)
            hidden = self.join(3 * gate, 2 * value)
        return self.out(hidden)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "LSTM": lambda: Cell(nn.LSTMCell),
    "GRU": lambda: Cell(nn.GRUCell),
    "sigmoid times tanh": lambda: ByHand(lambda gate, value: gate.sigmoid() * value.tanh()),
    "a product": lambda: ByHand(lambda gate, value: gate.tanh() * value),
    "a sum of functions": lambda: ByHand(lambda gate, value: gate.sinh() / 9 + value.cos()),
}


def _sites(make: Callable[[], nn.Module], seed: int) -> list[bp.SiteReport]:
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make().eval()
    data = [torch.randn(500, 3, 8, generator=generator) for _ in range(2)]
    return [*bp.probe(model, data, effort="quick", progress=False).site_reports]


@pytest.mark.sample(default=2)
@pytest.mark.parametrize("name", NETWORKS)
def test_untrained_networks_that_multiply_neurons_are_not_called(name: str) -> None:
    sites = _sites(NETWORKS[name], seed=1)
    assert sites
    turned = [site for site in sites if site.null is not None and site.null.name == "rotation"]
    assert turned, "all of them were compared with other neurons, so nothing is tried here"
    for site in turned:
        assert site.verdict.outcome is bp.Outcome.UNDECIDED
        assert "makes the axes, and no neurons that point elsewhere" in site.verdict.sentence


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_no_turned_basis_has_them_called(name: str) -> None:
    called = [
        (seed, site.site)
        for seed in range(6)
        for site in _sites(NETWORKS[name], seed)
        if site.null is not None and site.null.name == "rotation"
        if site.verdict.outcome in STANDS_OUT
    ]
    assert not called


class Gated(nn.Module):
    """Gates and values that read one input."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.value, self.out = (
            nn.Linear(*shape) for shape in ((8, 24), (8, 24), (24, 3))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.out(nn.functional.silu(self.gate(x)) * self.value(x))


def test_products_whose_maps_read_one_input_are_compared_with_other_neurons() -> None:
    (site,) = (site for site in _sites(Gated, seed=0) if site.kind == "neurons (gated product)")
    assert site.null is not None and site.null.name != "rotation"
    assert site.verdict.outcome is bp.Outcome.UNUSED


def test_a_rotation_that_is_asked_for_says_that_it_credits_the_axes_for_nothing() -> None:
    model = NETWORKS["sigmoid times tanh"]().eval()
    data = [torch.randn(400, 3, 8, generator=torch.Generator().manual_seed(0))]
    with pytest.warns(bp.MisleadingNull, match="makes the axes"):
        report = bp.probe(model, data, null="rotation", effort="quick", progress=False)
    assert {site.verdict.outcome for site in report.site_reports} == {bp.Outcome.UNDECIDED}
