"""Strides tell which entries of a parameter a call shows, as numbers in their place do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import basis_probe as bp
from basis_probe.algebra.groups import Permutation, Unknown
from basis_probe.architecture import free_weights
from basis_probe.architecture.free_weights import computed_weights
from basis_probe.model import weights
from basis_probe.model.facts import collect
from basis_probe.model.places import module_sites
from basis_probe.model.trace import Node, Ref, record
from basis_probe.model.weights import Slot, Slots, WeightError

WAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "turned over": lambda w: w.T,
    "turned over and back": lambda w: w.T.mT,
    "half of the rows": lambda w: w[:6],
    "every other row": lambda w: w[::2],
    "half of the columns, turned over": lambda w: w[:, 6:].transpose(0, 1),
    "the second of two chunks": lambda w: w.chunk(2)[1],
    "one of three parts": lambda w: w.split((3, 4, 5), dim=1)[1],
    "other sizes": lambda w: w.reshape(6, 24),
    "cut into heads and one taken": lambda w: w.view(3, 4, 12)[1],
    "a row for many": lambda w: w[:1].expand(5, 12),
    "windows": lambda w: w[0].unfold(0, 4, 2),
    "by where they lie in memory": lambda w: torch.as_strided(w, (6, 12), (24, 1)),
    "rows that are picked": lambda w: w[torch.tensor([3, 0, 7])],
    "columns in another order": lambda w: w.flip(1),
    "turned over and copied": lambda w: w.T.contiguous(),
    "rolled": lambda w: w.roll(1, 0),
    "cast to what it is": lambda w: w.to(torch.float32)[2:],
    "cast to more and back": lambda w: w.double().T.float(),
}
"""What a model does with a matrix of 12 x 12 before it multiplies by it."""

COMPUTED: dict[str, Callable[[Tensor], Tensor]] = {
    "doubled": lambda w: 2 * w,
    "its symmetric part": lambda w: w + w.T,
    "bent": torch.tanh,
    "turned over, and doubled in place": lambda w: w.detach().clone().T.mul_(2) + 0 * w,
    "half of it set to zero": lambda w: w.tril(),
    "rounded on the way": lambda w: w.T.to(torch.bfloat16).float(),
    "turned over, and overwritten as such": lambda w: w.T.mul_(2),
}

MULTIPLIED = {
    "doubled": lambda w: w,
    "turned over, and doubled in place": lambda w: w.T,
    "turned over, and overwritten as such": lambda w: w.T,
}
"""Those that are entries of the parameter times two, and which."""


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "row by row": lambda w: w,
    "column by column": lambda w: w.T,
    "with gaps": lambda w: torch.cat([w, w], 1)[:, :12],
    "behind other numbers": lambda w: torch.cat([w, w])[12:],
}
"""How the numbers of the parameter lie in memory."""


class Shown(nn.Module):
    """A linear map by what is made of a parameter."""

    def __init__(self, way: Callable[[Tensor], Tensor], layout: str) -> None:
        super().__init__()
        numbers = torch.randn(12, 12, generator=torch.Generator().manual_seed(0))
        self.weight = nn.Parameter(LAYOUTS[layout](numbers))
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        weight = self.way(self.weight)
        return nn.functional.linear(x[:, : weight.shape[1]].tanh().to(weight), weight)


def _use(way: Callable[[Tensor], Tensor], layout: str = "row by row") -> tuple[Slots, Node, Ref]:
    model, x = Shown(way, layout).eval(), torch.randn(4, 24)
    with torch.no_grad():
        trace = record(model, lambda: model(x), x, len(x))
    node = next(node for node in trace.nodes if node.op == "linear")
    value = node.args[1]
    assert isinstance(value, Ref)
    return Slots(model, trace), node, value


def _found(slots: Slots, node: Node, value: Ref) -> Slot | None:
    try:
        return slots.slot(node, value)
    except WeightError:
        return None


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", [*WAYS, *COMPUTED])
def test_entries_are_those_that_are_shown(
    name: str, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    way = (WAYS | COMPUTED)[name]
    use = _use(way, layout)
    found = _found(*use)
    monkeypatch.setattr(weights, "view_of", lambda *_: None)
    by_numbers = _found(*use)
    # Of a parameter that lies otherwise, numbers in its place lie row by row.
    elsewhere = "memory" in name and LAYOUTS[layout](torch.ones(12, 12)).stride() != (12, 1)
    none = name in COMPUTED.keys() - MULTIPLIED.keys() or elsewhere
    assert (found is None) == (by_numbers is None) == none
    if found is not None and by_numbers is not None:
        assert found.entries is not None and by_numbers.entries is not None
        assert torch.equal(found.entries, by_numbers.entries)
        entries = MULTIPLIED.get(name, way)(torch.arange(144).reshape(12, 12))
        assert torch.equal(found.entries, entries)
        assert found.factor == by_numbers.factor == (2 if name in MULTIPLIED else 1)


@pytest.mark.parametrize("name", [*WAYS, *COMPUTED])
def test_what_is_turned_over_is_the_whole_parameter_along_other_axes(name: str) -> None:
    slots, node, value = _use((WAYS | COMPUTED)[name])
    whole = {"turned over": (1, 0), "turned over and back": (0, 1)}
    found = slots.turned(node, value)
    assert found == (("weight", whole[name]) if name in whole else None)


REPEATED = ("a row for many", "windows")
"""Ways in which one number stands in several places."""


@pytest.mark.parametrize("name", [*WAYS, *COMPUTED])
def test_weights_that_cannot_move_freely_are_found_by_strides_as_by_numbers(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    slots, node, _ = _use((WAYS | COMPUTED)[name])
    facts = collect(slots.trace, module_sites(slots.trace))
    found = {one.node for one in computed_weights(facts).values()}
    monkeypatch.setattr(free_weights, "view_of", lambda *_: None)
    assert found == {one.node for one in computed_weights(facts).values()}
    value = node.args[1]
    assert isinstance(value, Ref)
    computed = COMPUTED.keys() - MULTIPLIED.keys()
    assert (value.node in found) == (name in computed or name in REPEATED)


PARTS: dict[str, Callable[[Tensor], Tensor]] = {
    "turned over": lambda w: w.mT,
    "conjugate": lambda w: w.conj(),
    "turned over and conjugate": lambda w: w.mH,
    "conjugate in memory": lambda w: w.conj().resolve_conj(),
    "real": lambda w: w.real,
    "imaginary": lambda w: w.imag,
    "imaginary, of the conjugate": lambda w: w.conj().imag,
    "both, side by side": lambda w: torch.view_as_real(w).flatten(1),
}


@pytest.mark.parametrize("name", PARTS)
def test_complex_numbers_show_no_entries(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LAYOUTS, "complex", lambda w: torch.complex(w, w.T))
    slots, node, value = _use(PARTS[name], "complex")
    assert slots.turned(node, value) is None
    with pytest.raises(WeightError, match="weight holds complex numbers"):
        slots.slot(node, value)


def test_strides_that_only_the_own_memory_bears_are_no_error() -> None:
    """A matrix within a larger storage, taken from it by its place there."""
    model = Shown(lambda w: w.as_strided((12, 12), (12, 1), 144), "behind other numbers")
    network = nn.Sequential(model, nn.Linear(12, 8), nn.GELU(), nn.Linear(8, 3)).eval()
    found = bp.symmetries(network, torch.randn(8, 24))
    assert isinstance(found["1:in"].group, Unknown) and found["1:in"].certificate is None
    assert isinstance(found["2"].group, Permutation)
