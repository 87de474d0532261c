"""Beside an embedding whose axes stand out it is said whether an untrained copy's do too."""

from __future__ import annotations

import pytest
import torch
from draws import seeded
from torch import Tensor, nn

import basis_probe as bp
from basis_probe.run.twins import drawn_anew


class _Heavy(nn.Embedding):
    """Its own code draws heavy-tailed entries."""

    def reset_parameters(self) -> None:
        with torch.no_grad():
            self.weight.copy_(torch.randn_like(self.weight) ** 3)


class _Stream(nn.Module):
    def __init__(self, kind: type[nn.Embedding]) -> None:
        super().__init__()
        self.tokens, self.out = kind(400, 24), nn.Linear(24, 400)
        self.norm, self.last = nn.RMSNorm(24), nn.RMSNorm(24)
        self.up, self.down = nn.Linear(24, 48), nn.Linear(48, 24)

    def forward(self, x: Tensor) -> Tensor:
        h = self.tokens(x)
        h = h + self.down(self.up(self.norm(h)).relu())
        return self.out(self.last(h))


def _model(kind: type[nn.Embedding]) -> _Stream:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return _Stream(kind).eval()


def _verdict(model: _Stream) -> bp.Verdict:
    data = list(torch.randint(400, (64, 16), generator=seeded(0)).split(32))
    report = bp.probe(model, data, sites="tokens", certificates=False, progress=False)
    return report["tokens"].verdict


@pytest.mark.slow
def test_axes_that_the_code_draws_are_of_the_initialisation() -> None:
    verdict = _verdict(_model(_Heavy))
    assert verdict.outcome is bp.Outcome.EMERGENT and "form" in verdict.orders
    assert "form too on the first batch: initialisation, not training" in verdict.sentence


@pytest.mark.slow
def test_axes_that_the_code_does_not_draw_are_of_the_training() -> None:
    model = _model(nn.Embedding)
    with torch.no_grad():
        model.tokens.weight.copy_(torch.randn(400, 24, generator=seeded(1)) ** 3)
    verdict = _verdict(model)
    assert verdict.outcome is bp.Outcome.EMERGENT and "form" in verdict.orders
    assert "training made these axes stand out" in verdict.sentence
    assert "initialisation, not training" not in verdict.sentence


@pytest.mark.slow
def test_nothing_is_said_of_parameters_without_a_rule() -> None:
    model = _model(_Heavy)
    model.register_parameter("factor", nn.Parameter(torch.ones(3)))
    verdict = _verdict(model)
    assert verdict.outcome is bp.Outcome.EMERGENT
    assert "training, or an initialisation with axes of its own" in verdict.sentence


def test_copies_are_drawn_by_rules_alone() -> None:
    model = _model(_Heavy)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    copy = drawn_anew(model, seed=1)
    assert copy is not None and torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    drawn = copy.tokens.weight.detach()
    assert float((drawn**4).mean() / (drawn**2).mean() ** 2) > 6
    assert bool(copy.norm.weight.eq(1).all())
    other, again = drawn_anew(model, seed=2), drawn_anew(model, seed=1)
    assert other is not None and again is not None
    assert not torch.equal(other.tokens.weight, drawn)
    assert torch.equal(again.tokens.weight, drawn)

    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.factor = nn.Linear(3, 3), nn.Parameter(torch.ones(3))

    tied = _model(nn.Embedding)
    tied.out.weight = tied.tokens.weight
    # By the embedding's rule or the linear layer's.
    assert drawn_anew(tied) is None

    class Strange(nn.Linear):
        def reset_parameters(self, *given: int) -> None:
            if not hasattr(self, "weight") or given or self.weight.isnan().any():
                raise RuntimeError("not so")

    assert drawn_anew(Strange(2, 2)) is None
    # Nothing says how the factor was drawn.
    assert drawn_anew(Bare()) is None and drawn_anew(nn.Linear(3, 4)) is not None
    assert drawn_anew(nn.Linear(3, 4, device="meta")) is None
