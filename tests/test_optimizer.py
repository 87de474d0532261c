"""What looks read of an optimiser: which weights, as Adam sums them, turned with the group."""

from __future__ import annotations

import math

import assets
import optimizer_rates
import pytest
import torch
from draws import seeded
from torch import Tensor, nn

import basis_probe as bp
from basis_probe.algebra.haar import haar, haar_fixing
from basis_probe.statistics.gradient_moments import Moment, unevenness


def spread(dim: int, seed: int) -> Tensor:
    rows = torch.randn(3 * dim, dim, generator=seeded(seed), dtype=torch.float64)
    rows = rows * torch.logspace(0, 1, dim, dtype=torch.float64)
    return rows.T @ rows


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("line", [False, True])
def test_the_law_is_that_of_turned_axes(*, line: bool) -> None:
    dim, moment = 12, spread(12, 0)
    if line:
        across = torch.eye(dim, dtype=torch.float64) - 1 / dim
        moment = across @ moment @ across
    value, mean, std, p = unevenness(moment, line=line, seed=0)
    own = moment.diagonal()
    assert value == pytest.approx(float(dim * (own**2).sum() / own.sum() ** 2))
    ones, generator, turned = torch.ones(1, dim, dtype=torch.float64), seeded(1), list[float]()
    for _ in range(2000):
        turn = haar_fixing(ones, generator) if line else haar(dim, generator)
        there = (turn @ moment @ turn.T).diagonal()
        turned.append(float(dim * there.square().sum() / there.sum() ** 2))
    law = torch.tensor(turned)
    assert mean == pytest.approx(float(law.mean()), abs=4 * std / math.sqrt(2000))
    assert std == pytest.approx(float(law.std()), rel=0.1)
    assert p < 0.01 and float((law >= value).double().mean()) < 0.01


def test_axes_that_are_too_even_depart_as_well_and_nothing_says_nothing() -> None:
    even = torch.ones(16, 16, dtype=torch.float64) + torch.eye(16, dtype=torch.float64)
    value, mean, _, p = unevenness(even, line=False, seed=0)
    assert value == pytest.approx(1.0) and mean > 1.3 and p < 0.01
    for nothing in (torch.zeros(8, 8), torch.eye(8), torch.full((8, 8), math.nan)):
        assert all(map(math.isnan, unevenness(nothing.double(), line=False, seed=0)))


class Block(nn.Module):
    """A stream that is written by an embedding and a map, and read behind norms of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.norm, self.last = nn.RMSNorm(8), nn.RMSNorm(8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8, bias=False)
        self.out = nn.Linear(8, 20)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        x = x + self.down(torch.tanh(self.up(self.norm(x))))
        return self.out(self.last(x))


def block() -> Block:
    with assets.seeded(0):
        return Block()


def trained(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 4) -> bp.Attachment:
    generator = seeded(2)
    with bp.attach(model, every=2, optimizer=optimizer, scores="kurtosis") as probe:
        for _ in range(steps):
            ids = torch.randint(0, 20, (40, 6), generator=generator)
            optimizer.zero_grad()
            out = model(ids[:, :-1])
            nn.functional.cross_entropy(out.flatten(0, 1), ids[:, 1:].flatten()).backward()
            optimizer.step()
    return probe


def test_moments_are_those_that_adam_keeps() -> None:
    model = block()
    model.last.weight.requires_grad_(False)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2, betas=(0.9, 0.8))
    probe = trained(model, optimizer, steps=5)
    look = [look for look in probe.history.looks if look.site == "last:in"][-1]
    assert look.step == 4
    # After four steps: what Adam had then is what a run of four has.
    again = block()
    again.last.weight.requires_grad_(False)
    other = torch.optim.Adam(again.parameters(), 1e-2, betas=(0.9, 0.8))
    trained(again, other)
    own = other.state[again.down.weight]["exp_avg_sq"].sum(1)
    for read in (again.out.weight, again.embed.weight):
        own = own + other.state[read]["exp_avg_sq"].sum(0)
    want = float(8 * own.square().sum() / own.sum() ** 2)
    assert look.scores["optimizer"].observed == pytest.approx(want, rel=1e-4)


def test_a_turned_model_has_the_same_law_and_gains_do_not_matter() -> None:
    model, turned = block(), block()
    with torch.no_grad():
        for one in (model, turned):
            one.last.weight.copy_(torch.rand(8, generator=seeded(4)) + 0.5)
        turn = haar(8, seeded(5)).float()
        # The gains are folded in, and everything is turned.
        turned.embed.weight.copy_(model.embed.weight @ turn.T)
        turned.down.weight.copy_(turn @ model.down.weight)
        turned.up.weight.copy_(model.up.weight @ turn.T)
        turned.out.weight.copy_(model.out.weight * model.last.weight @ turn.T)
        turned.last.weight.fill_(1.0)
    looks = [
        trained(one, torch.optim.SGD(one.parameters(), 0.0), steps=3).history.looks[-1]
        for one in (model, turned)
    ]
    one, other = (look.scores["optimizer"] for look in looks)
    assert looks[0].site == "last:in"
    assert other.null_mean == pytest.approx(one.null_mean, rel=1e-4)
    assert other.null_std == pytest.approx(one.null_std, rel=1e-4)
    assert other.observed != pytest.approx(one.observed, rel=1e-3)


def test_training_goes_on_as_it_would_and_what_is_not_read_is_said() -> None:
    alone, watched = block(), block()
    generator, optimizer = seeded(2), torch.optim.Adam(alone.parameters(), 1e-2)
    for _ in range(4):
        ids = torch.randint(0, 20, (40, 6), generator=generator)
        optimizer.zero_grad()
        out = alone(ids[:, :-1])
        nn.functional.cross_entropy(out.flatten(0, 1), ids[:, 1:].flatten()).backward()
        optimizer.step()
    probe = trained(watched, beside := torch.optim.Adam(watched.parameters(), 1e-2))
    assert all(map(torch.equal, alone.parameters(), watched.parameters()))
    assert not beside._optimizer_step_pre_hooks
    notes = {look.site: look.note for look in probe.history.looks if look.step == 2}
    assert "holds no rotations" in notes["tanh()"] and notes["last:in"] == ""


def test_an_optimizer_that_is_wrapped_is_read() -> None:
    class Wrapper(torch.optim.Optimizer):
        def __init__(self, optimizer: torch.optim.Optimizer) -> None:
            self.optimizer = optimizer

        def zero_grad(self, set_to_none: bool = True) -> None:
            self.optimizer.zero_grad(set_to_none)

        def step(self, closure: object = None) -> None:  # pyright: ignore
            self.optimizer.step()

    plain, wrapped = block(), block()
    looks = [
        trained(model, optimizer, steps=3).history.looks[-1].scores["optimizer"]
        for model, optimizer in (
            (plain, torch.optim.SGD(plain.parameters(), 0.1)),
            (wrapped, Wrapper(torch.optim.SGD(wrapped.parameters(), 0.1))),
        )
    ]
    assert looks[0] == looks[1]


def test_an_optimizer_of_something_else_is_refused() -> None:
    model = block()
    with pytest.raises(ValueError, match="none of the model's parameters"):
        bp.attach(model, every=2, optimizer=torch.optim.SGD(block().parameters(), 0.1))
    with pytest.raises(ValueError, match="give every="):
        bp.attach(model, optimizer=torch.optim.SGD(model.parameters(), 0.1))
    with pytest.raises(TypeError, match="optimizer="):
        bp.attach(model, every=2, optimizer=model)  # pyright: ignore
    only = torch.optim.SGD(model.up.parameters(), 0.1)
    last = trained(model, only).history.looks[-1]
    assert last.site == "last:in" and "trains no matrix" in last.note
    assert "optimizer" not in last.scores


def test_steps_without_numbers_do_not_count() -> None:
    moment = Moment(4)
    moment.add(torch.eye(4, dtype=torch.float64), 0.75)
    moment.add(torch.eye(4, dtype=torch.float64), 0.75)
    assert torch.equal(moment.total, 0.4375 * torch.eye(4, dtype=torch.float64))


@pytest.mark.slow
def test_blind_training_is_seldom_called_and_planted_axes_are() -> None:
    blind = [optimizer_rates.watched("blind", seed) for seed in range(24)]
    called = sum(p <= 0.05 for h in blind for p in optimizer_rates.p_values(h))
    assert called <= 5 and not any(history.e_value >= 20 for history in blind)
    for seed in range(3):
        assert optimizer_rates.watched("planted", seed).e_value >= 20
