"""However a call multiplies with a parameter, the parameter is used as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from basis_probe.algebra.elements import Dense, MonomialElement
from basis_probe.architecture import symmetries as door
from basis_probe.model import sweep
from basis_probe.model.deferred import Acted, Changes, Put, PutSome, after
from basis_probe.model.facts import facts_of
from basis_probe.model.network import prepared, recognise
from basis_probe.model.precision import in_double
from basis_probe.model.sweep import Sweep, Version
from basis_probe.model.weights import Slots

IN, OUT, EXPERTS, ROWS = 8, 12, 4, 4

Way = Callable[[Tensor, Tensor], Tensor]
F = nn.functional


def _numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _chosen(x: Tensor) -> Tensor:
    """An expert for every row, as a router chooses."""
    return x[..., :EXPERTS].argmax(-1)


def _sorted(x: Tensor, w: Tensor) -> Tensor:
    """The grouped product, with rows in the order of experts; the last row is of none."""
    chosen, order = _chosen(x[:-1]).sort()
    ends = torch.bincount(chosen, minlength=EXPERTS).cumsum(0).to(torch.int32)
    rows = torch.cat([x[:-1][order], x[-1:]])
    return F.grouped_mm(rows, w, offs=ends)


def _each(x: Tensor, w: Tensor) -> Tensor:
    """Rows of each expert that is hit, one expert after the other."""
    chosen = _chosen(x)
    out = torch.zeros(len(x), w.shape[1], dtype=x.dtype)
    for expert in chosen.unique():
        (own,) = torch.where(chosen == expert)
        out.index_add_(0, own, F.linear(x[own], w[expert]))
    return out


def _repeated(x: Tensor) -> Tensor:
    """The same rows for every expert."""
    return x.expand(EXPERTS, *x.shape)


MATRIX: dict[str, Way] = {
    "linear": F.linear,
    "linear of three axes": lambda x, w: F.linear(x[None], w)[0],
    "linear with a bias": lambda x, w: F.linear(x, w, torch.arange(OUT).to(x)),
    "the operator": lambda x, w: x @ w.T,
    "the operator of one row": lambda x, w: x[0] @ w.T,
    "t": lambda x, w: x @ w.t(),
    "mT": lambda x, w: x[None] @ w.mT,
    "transpose": lambda x, w: torch.matmul(x, w.transpose(-1, 0)),
    "permute": lambda x, w: x.mm(w.permute(1, 0)),
    "two turns": lambda x, w: F.linear(x, w.T.T),
    "a cast to the same type": lambda x, w: F.linear(x, w.to(w.dtype)),
    "addmm": lambda x, w: torch.addmm(x[:, :1], x, w.T),
    "from the left": lambda x, w: (w @ x.T).T,
    "from the left of one vector": lambda x, w: w @ x[0],
    "from the left of several": lambda x, w: w @ x.unflatten(0, (2, -1)).mT,
    "einsum": lambda x, w: torch.einsum("ri,oi->ro", x, w),
    "einsum, turned": lambda x, w: torch.einsum("oi,ri->or", w, x),
    "einsum with dots": lambda x, w: torch.einsum("...i,oi->...o", x[None], w),
    "inner": torch.inner,
    "tensordot": lambda x, w: torch.tensordot(x, w, ([1], [1])),
    "a stack of one": lambda x, w: x[None].bmm(w.T[None])[0],
}
"""Of a parameter [OUT, IN]."""

STACK: dict[str, Way] = {
    "one expert": lambda x, w: F.linear(x, w[2]),
    "one expert, the last": lambda x, w: x @ w[-1].T,
    "one expert of the turned stack": lambda x, w: x @ w.mT[1],
    "select": lambda x, w: F.linear(x, w.select(0, 3)),
    "unbind": lambda x, w: F.linear(x, w.unbind()[1]),
    "each expert in turn": lambda x, w: torch.stack([F.linear(x, one) for one in w]),
    "bmm": lambda x, w: torch.bmm(_repeated(x), w.mT),
    "bmm from the left": lambda x, w: torch.bmm(w, _repeated(x).mT),
    "matmul": lambda x, w: _repeated(x) @ w.transpose(1, 2),
    "baddbmm": lambda x, w: torch.baddbmm(x[:, :1], _repeated(x), w.mT),
    "einsum": lambda x, w: torch.einsum("eri,eoi->ero", _repeated(x), w),
    "a grouped product": lambda x, w: _sorted(x, w.transpose(-2, -1)),
    "an expert that the input picks": lambda x, w: F.linear(x, w[_chosen(x)[0]]),
    "experts that the input picks": _each,
    "a copy of the expert of every row": lambda x, w: torch.bmm(
        w[_chosen(x)], x.unsqueeze(-1)
    ).squeeze(-1),
    "the same by index_select": lambda x, w: torch.bmm(
        x[:, None], w.index_select(0, _chosen(x)).mT
    ),
}
"""Of a parameter [EXPERTS, OUT, IN]."""

WAYS = {("matrix", name): way for name, way in MATRIX.items()} | {
    ("stack", name): way for name, way in STACK.items()
}
BY_CODE = {("stack", "experts that the input picks")}
"""Where other experts are picked, other code runs."""

UNFOLLOWED = {("matrix", "a stack of one")}
"""What is computed anew with the whole parameter."""


class Reader(nn.Module):
    """What comes to a parameter was computed from others, and its products go on."""

    def __init__(self, kind: str, way: Way) -> None:
        super().__init__()
        shape = (OUT, IN) if kind == "matrix" else (EXPERTS, OUT, IN)
        self.weight = nn.Parameter(_numbers(*shape, seed=1).float())
        self.before = nn.Parameter(1 + 0.1 * _numbers(IN, seed=2).abs().float())
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        rows = (x * self.before).flatten(0, 1)
        return self.way(rows, self.weight).tanh()


def _changes(weight: Tensor) -> list[tuple[Changes, bool]]:
    """Changes of a parameter, and whether each leaves it as it is where it is used."""
    generator = torch.Generator().manual_seed(3)
    found: list[tuple[Changes, bool]] = []
    several: list[Acted] = []
    for axis in (-1, weight.ndim - 2):
        size = weight.shape[axis]
        dense = Dense(_numbers(size, size, seed=axis + 9))
        columns = torch.randperm(size, generator=generator)
        axes = MonomialElement(columns, 1 + _numbers(size, seed=5).abs())
        some = torch.tensor([3, 1])
        each = [
            Acted(None, axis, dense, None),
            Acted(None, axis, axes, None),
            Acted(
                None, axis, MonomialElement(torch.tensor([1, 0]), torch.tensor([2.0, -1.0])), some
            ),
        ]
        several += each
        found += [({"weight": (change,)}, True) for change in each]
    found.append(({"weight": tuple(several)}, True))
    # What comes to the parameter changes as well, and with it which experts are chosen.
    before = Put(None, torch.linspace(-1.0, 2.0, IN, dtype=torch.float64))
    found += [({"before": (before,)}, True), ({"weight": (several[0],), "before": (before,)}, True)]
    other = _numbers(*weight.shape, seed=7)
    found.append(({"weight": (Put(None, other), several[1])}, False))
    found.append(({"weight": (PutSome(0, torch.tensor([1]), other[1:2]),)}, False))
    return found


def _replayed(model: Reader, x: Tensor, versions: list[Version]) -> list[Tensor]:
    subject = recognise(model)
    with prepared(model, None):
        facts = facts_of(subject, door._batch(subject, x.float()))
        trace = facts.graph.trace if facts.recorded is None else facts.recorded
        run = Sweep(trace, Slots(model, trace))
        found: list[Tensor] = []

        def look(index: int, value: Tensor, changed: dict[int, Tensor]) -> None:
            found[:] = [value, *(changed.get(number, value) for number in range(len(versions)))]

        assert not run.run([x], versions, look)
    return found


def _right(model: Reader, x: Tensor, changes: Changes) -> Tensor:
    """What the model returns with the changed parameters."""
    twin = Reader("matrix", model.way)
    for name, parameter in model.named_parameters():
        changed = after(parameter.detach().double(), changes.get(name, ()))
        setattr(twin, name, nn.Parameter(changed, requires_grad=False))
    with in_double():
        return twin(x).detach()


@pytest.mark.parametrize("way", WAYS, ids=": ".join)
@pytest.mark.parametrize("as_it_is", [True, False])
def test_a_replay_returns_what_the_model_does_with_changed_weights(
    way: tuple[str, str], as_it_is: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "LARGE", 1 if as_it_is else 10**9)
    monkeypatch.setattr(sweep, "_PIECE", 7)
    model, x = Reader(way[0], WAYS[way]), _numbers(2, ROWS, IN)
    changes = _changes(model.weight)
    changes = [c for c in changes if way not in BY_CODE or "before" not in c[0]]
    found = _replayed(model, x, [Version(one) for one, _ in changes])
    for ours, (one, _) in zip(found, [({}, True), *changes], strict=True):
        right = _right(model, x, one)
        assert ours.shape == right.shape
        assert torch.allclose(ours, right, rtol=0, atol=1e-12), one


@pytest.mark.parametrize("way", [way for way in WAYS if way not in UNFOLLOWED], ids=": ".join)
def test_no_version_of_a_large_parameter_is_made_where_elements_act_along_its_axes(
    way: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "LARGE", OUT * IN)
    model, x = Reader(way[0], WAYS[way]), _numbers(2, ROWS, IN)
    made: list[Any] = []

    def watched(whole: Tensor, changes: Any) -> Tensor:
        if whole.ndim > 1:
            made.append(changes)
        return after(whole, changes)

    monkeypatch.setattr(sweep, "after", watched)
    for one, as_it_is in _changes(model.weight):
        if way in BY_CODE and "before" in one:
            continue
        made.clear()
        _replayed(model, x, [Version(one)])
        assert bool(made) == (not as_it_is), one


def test_a_part_of_a_parameter_is_no_matrix_that_is_used_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ways: dict[str, Way] = {
        "some rows": lambda x, w: F.linear(x, w[1:4]),
        "some rows, turned": lambda x, w: x @ w[2:].T,
        "some columns": lambda x, w: F.linear(x[:, :5], w[:, 3:]),
        "every other row": lambda x, w: F.linear(x, w[::2]),
        "rows that the input picks": lambda x, w: F.linear(x, w[_chosen(x)]),
        "another order": lambda x, w: F.linear(x, w.flip(0)),
        "its negative": lambda x, w: F.linear(x, -w),
        "another shape of it": lambda x, w: F.linear(
            torch.cat([x, x[:, :4]], 1), w.reshape(IN, OUT)
        ),
        "a stack of parts": lambda x, w: torch.bmm(x[:, None, None, 0], w[_chosen(x)][:, None]),
        "numbers in other memory": lambda x, w: x @ w.as_strided((IN, OUT), (1, IN)),
    }
    monkeypatch.setattr(sweep, "LARGE", 1)
    for name, way in ways.items():
        model, x = Reader("matrix", way), _numbers(2, ROWS, IN)
        changes = [one for one, _ in _changes(model.weight)]
        found = _replayed(model, x, [Version(one) for one in changes])
        for ours, one in zip(found, [{}, *changes], strict=True):
            assert torch.allclose(ours, _right(model, x, one), rtol=0, atol=1e-12), name
