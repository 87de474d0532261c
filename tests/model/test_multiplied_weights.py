"""A weight that a model multiplies by a number before it uses it is the parameter, multiplied."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import basis_probe as bp
from basis_probe.algebra.groups import PositiveMonomial
from basis_probe.model.deferred import DeferredWeights
from basis_probe.model.trace import Ref, record
from basis_probe.model.weights import CopiedWeights, Slots, WeightError, Weights

WAYS: dict[str, tuple[float, Callable[[Tensor, Tensor], Tensor]]] = {
    "by what keeps variances even": (1 / math.sqrt(12), lambda w, _: w * (1 / math.sqrt(12))),
    "divided": (1 / math.sqrt(12), lambda w, _: w / math.sqrt(12)),
    "negated": (-1.0, lambda w, _: -w),
    "subtracted from nothing": (-1.0, lambda w, _: 0.0 - w),
    "by a number of its own": (0.25, lambda w, number: w * number),
    "by its own width": (12.0, lambda w, _: w * w.shape[0]),
    "twice": (-1.5, lambda w, _: (w * 3).neg() / 2),
    "added to itself": (2.0, lambda w, _: w + w),
    "in place": (0.5, lambda w, _: w.clone().mul_(0.5)),
    "by little": (0.01, lambda w, _: w * 0.01),
}
"""What a model does with a weight, and by what it is multiplied."""

OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "rounded, too": lambda w: w.bfloat16().float() * 0.5,
    "made positive": lambda w: 2 * w.abs(),
    "by its own size": lambda w: w / w.norm(),
    "by nothing": lambda w: 0 * w,
    "by another number for each row": lambda w: w * torch.arange(1.0, 13.0)[:, None],
    "about its mean": lambda w: 2 * (w - w.mean()),
    "bent where it is large": lambda w: 0.5 * w.clamp(-1, 1),
    "to the third power": lambda w: w**3,
    "bounded below what it holds": lambda w: w.clamp(min=-40),
    "not below a number": lambda w: torch.maximum(w, torch.tensor(-40.0)),
    "bounded far above what it holds": lambda w: w.clamp(-1e4, 1e4),
    "made positive in its first row": lambda w: torch.cat([w[:1].abs(), w[1:]]),
    "made positive in one place": lambda w: torch.cat(
        [w[:, :3], torch.cat([w[:-1, 3:4], w[-1:, 3:4].abs()]), w[:, 4:]], 1
    ),
    "less where it is negative": lambda w: nn.functional.leaky_relu(w, 0.3),
    "without what is small": lambda w: nn.functional.hardshrink(w, 0.05),
}


class Multiplied(nn.Module):
    """Two linear maps, both of whose weights are multiplied first."""

    def __init__(self, way: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.write, self.read = (
            nn.Parameter(torch.randn(12, 12, generator=generator)) for _ in range(2)
        )
        self.bias = nn.Parameter(torch.randn(12, generator=generator))
        self.register_buffer("number", torch.tensor(0.25))
        self.way, self.neurons, self.out = way, nn.ReLU(), nn.Linear(12, 3)
        self.before: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        made = nn.functional.linear(x, self.way(self.write), self.way(self.bias))
        return self.out((self.neurons(made) @ self.way(self.read).T).tanh())


def _model(name: str) -> Multiplied:
    _, way = WAYS[name]
    return Multiplied(lambda w: way(w, torch.tensor(0.25))).eval()


X = torch.randn(7, 12, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("kind", [CopiedWeights, DeferredWeights])
def test_the_tensor_is_read_and_written_as_the_model_uses_it(
    name: str, kind: type[CopiedWeights] | type[DeferredWeights]
) -> None:
    factor, way = WAYS[name]
    model = _model(name)
    with torch.no_grad():
        trace = record(model, lambda: model(X), X, len(X))
    node = next(node for node in trace.nodes if node.op == "linear")
    slot = Slots(model, trace).slot(node, node.args[1])
    assert slot.name == "write" and slot.factor == pytest.approx(factor, rel=1e-6)
    weights: Weights = kind(model)
    used = way(model.write.detach(), torch.tensor(0.25)).double()
    torch.testing.assert_close(weights.get(slot), used, rtol=1e-6, atol=0)
    weights.set(slot, used + factor)
    torch.testing.assert_close(weights.get(slot), used + factor, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_multiple_of_a_parameter_is_not_taken_for_one(name: str) -> None:
    model = Multiplied(OTHERS[name]).eval()
    with torch.no_grad():
        trace = record(model, lambda: model.write @ model.way(model.read), X, 12)
    node = next(node for node in trace.nodes if node.op == "matmul")
    value = node.args[1]
    assert isinstance(value, Ref)
    with pytest.raises(WeightError):
        Slots(model, trace).slot(node, value)


@pytest.mark.parametrize("name", WAYS)
def test_claims_are_those_of_the_parameter_and_are_proved(name: str) -> None:
    model = _model(name)
    before = copy.deepcopy(model.state_dict())
    found = bp.symmetries(model, X)
    for site in ("neurons:in", "neurons"):
        assert isinstance(found[site].group, PositiveMonomial), site
        certificate = found[site].certificate
        assert certificate is not None and certificate.holds, (site, certificate)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", WAYS)
def test_a_network_in_another_basis_computes_the_same(name: str) -> None:
    model = _model(name).double()
    element = PositiveMonomial(12).sample(torch.Generator().manual_seed(3))
    changed = bp.reparametrize(model, "neurons", element, example_input=X.double())
    assert isinstance(changed, Multiplied)
    assert not torch.equal(changed.write, model.write)
    torch.testing.assert_close(changed(X.double()), model(X.double()))


APART: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "row by row": lambda x, w: torch.stack([x @ row for row in w], -1),
    "by numbers of rows": lambda x, w: torch.stack([x @ w[n] for n in range(len(w))], -1),
    "unbound": lambda x, w: torch.stack([torch.mv(x, row) for row in w.unbind(0)], -1),
    "column by column": lambda x, w: torch.stack([x @ column for column in w.T.unbind(1)], -1),
    "in two rows at a time": lambda x, w: torch.cat([x @ rows.T for rows in w.split(2)], -1),
}


@pytest.mark.parametrize("name", APART)
def test_a_matrix_may_be_taken_apart(name: str) -> None:
    """Whatever is said of the features that it makes, nothing fails."""

    class Apart(Multiplied):
        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.neurons(APART[name](x, self.write)) @ self.read.T)

    found = bp.symmetries(Apart(lambda w: w).eval(), X)
    for site in ("neurons:in", "neurons"):
        certificate = found[site].certificate
        assert certificate is None or certificate.holds


USED_AGAIN: dict[str, Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "both multiplied": lambda x, w, h: (x @ (0.5 * w).T, h @ (0.5 * w)),
    "one multiplied": lambda x, w, h: (x @ w.T, h @ (0.5 * w)),
    "one negated": lambda x, w, h: (x @ w.T, h @ -w),
    "another part, multiplied": lambda x, w, h: (x @ w.T, h @ torch.cat([w[:6], -w[6:]])),
    "its size is read": lambda x, w, h: (x @ (2 * w).T, h @ torch.ones_like(w) * w.norm()),
}


@pytest.mark.parametrize("name", USED_AGAIN)
def test_a_parameter_that_is_used_again_is_not_claimed_to_move_freely(name: str) -> None:
    """Without a proof, too: a rescaling of neurons would have to move the weights twice."""
    way = USED_AGAIN[name]

    class Tied(Multiplied):
        def forward(self, x: Tensor) -> Tensor:
            hidden = self.neurons(way(x, self.write, x)[0] + self.bias)
            return self.out(way(x, self.write, hidden)[1].tanh() + x)

    found = bp.symmetries(Tied(lambda w: w).eval(), X, certificates=False)
    assert not isinstance(found["neurons"].group, PositiveMonomial)


AGAIN: dict[str, Callable[[Multiplied, Tensor], Tensor]] = {
    "bare behind multiplied": lambda s, x: _two(s, x, s.write * 2, s.write),
    "multiplied behind bare": lambda s, x: _two(s, x, s.write, -s.write),
    "bare behind a copy": lambda s, x: _two(s, x, s.write.clone(), s.write),
    "part of a sum behind bare": lambda s, x: _two(s, x, s.write + s.read, s.write),
    "read by the transpose, multiplied": lambda s, x: _two(s, x, s.write * 0.5, s.write.T),
    "one bias for both": lambda s, x: _two(s, x, s.write, s.read, s.bias),
}


def _two(
    model: Multiplied, x: Tensor, one: Tensor, other: Tensor, bias: Tensor | None = None
) -> Tensor:
    first = model.neurons(nn.functional.linear(model.before(x), one, bias))
    return model.neurons(nn.functional.linear(first, other, bias))


@pytest.mark.parametrize("name", AGAIN)
def test_nothing_is_claimed_of_a_parameter_in_two_places_that_its_proof_refutes(name: str) -> None:
    class Twice(Multiplied):
        def __init__(self) -> None:
            super().__init__(lambda w: w)
            self.before = nn.Linear(12, 12)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(AGAIN[name](self, x))

    found = bp.symmetries(Twice().eval(), X)
    refuted = [
        site
        for site, one in found.items()
        if one.certificate is not None and not one.certificate.holds
    ]
    assert refuted == []
