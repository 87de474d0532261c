"""A changed model computes the same, says what the example did not show, and keeps its settings."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from draws import seeded
from torch import Tensor, nn

import basis_probe as bp
from basis_probe.algebra.haar import haar

X = torch.randn(4, 7, 6, generator=seeded(), dtype=torch.float64)


class Sometimes(nn.Module):
    """A stream that a part of the model reads on long inputs only."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.e, self.o = nn.Linear(6, 8), nn.Linear(8, 3)
            self.long = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.e(x)
        return self.o(h + self.long(h) if x.shape[1] > 9 else h)


class InSinglePrecision(nn.Module):
    """A norm that casts to float32, whatever the model is in."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.e, self.o = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(F.rms_norm(self.e(x).float(), (8,)).to(x.dtype))


class Clipped(nn.Module):
    """A gate whose other factor is clipped far beyond any example."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.g, self.u, self.o = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)
        self.limit = limit

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.g(x) * self.u(x).clamp(-self.limit, self.limit))


def test_parts_that_the_example_did_not_use_are_named() -> None:
    model = Sometimes().double().eval()
    turn = haar(8, seeded(1))
    with pytest.warns(UserWarning, match="did not use long.weight, long.bias"):
        twin = bp.reparametrize(model, "e", turn, example_input=X)
    assert torch.allclose(twin(X), model(X))
    longer = torch.randn(4, 12, 6, generator=seeded(2), dtype=torch.float64)
    whole = bp.reparametrize(model, "e", turn, example_input=longer)
    assert torch.allclose(whole(longer), model(longer))


def test_a_model_that_computes_in_a_lower_type_has_twins() -> None:
    model = InSinglePrecision().double().eval()
    twin = bp.reparametrize(model, "e", haar(8, seeded(1)), example_input=X)
    assert torch.allclose(twin(X), model(X), atol=1e-5)


@pytest.mark.parametrize("limit", [10.0, 1e3, 1e5])
def test_a_clip_beyond_the_example_is_seen(limit: float) -> None:
    found = bp.symmetries(Clipped(limit).double().eval(), X)["u"]
    unknown = found.privileged is bp.Privileged.UNKNOWN
    assert unknown or not found.group.contains(2 * torch.eye(8).double().numpy())
