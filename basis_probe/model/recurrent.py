"""Recurrent layers and cells written out step by step, to see what they do to features.

torch runs a whole layer of `nn.RNN`, `nn.LSTM` or `nn.GRU` in one call. Here are the same numbers,
up to rounding, from linear maps and functions of single features, as the documentation of those
classes writes them.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

LONGEST = 128
"""Sequences of more steps are not written out."""

State = tuple[Tensor, ...]
Weights = Sequence[Tensor | None]
Step = Callable[[Tensor, State, Weights], State]


def recurrent_steps(
    func: Callable[..., Any], args: tuple[Any, ...], is_live: Callable[[Tensor], bool]
) -> Callable[..., Any] | None:
    """A recurrent layer or cell, written out; None for all other functions and for packed rows.

    Args:
        func: what is called.
        args: what it is called with.
        is_live: says of a tensor whether it depends on the model's input.
    """
    name = getattr(func, "__name__", "")
    if name.removesuffix("_cell") not in _STEPS:
        return None
    if name.endswith("_cell"):
        return functools.partial(_cell, _STEPS[name.removesuffix("_cell")], is_live)
    if len(args) != 9 or (isinstance(args[1], Tensor) and isinstance(args[2], Tensor)):
        return None
    steps = args[0].shape[1 if args[8] else 0] if args[0].ndim == 3 else LONGEST + 1
    if steps > LONGEST or (args[6] and args[5]):
        # Longer than that, or with dropout between layers.
        return None
    return functools.partial(_layers, _STEPS[name], is_live)


def _rnn(bend: Callable[[Tensor], Tensor]) -> Step:
    def step(given: Tensor, state: State, weights: Weights) -> State:
        return (bend(given + _mapped(state[0], weights)),)

    return step


def _lstm(given: Tensor, state: State, weights: Weights) -> State:
    taken, kept, new, shown = (given + _mapped(state[0], weights)).chunk(4, -1)
    cell = kept.sigmoid() * state[1] + taken.sigmoid() * new.tanh()
    hidden = shown.sigmoid() * cell.tanh()
    projection = weights[2]
    return (hidden if projection is None else functional.linear(hidden, projection), cell)


def _gru(given: Tensor, state: State, weights: Weights) -> State:
    reset, update, new = given.chunk(3, -1)
    own_reset, own_update, own_new = _mapped(state[0], weights).chunk(3, -1)
    fresh = (new + (reset + own_reset).sigmoid() * own_new).tanh()
    rest = (update + own_update).sigmoid()
    return (fresh * (1 - rest) + rest * state[0],)


_STEPS: dict[str, Step] = {
    "rnn_tanh": _rnn(torch.tanh),
    "rnn_relu": _rnn(torch.relu),
    "lstm": _lstm,
    "gru": _gru,
}
RECURRENT = frozenset(_STEPS)
"""The functions that run recurrent layers."""

# How many gates there are, and which of them is the new content of the state.
_GATES: dict[Step, tuple[int, int]] = {_lstm: (4, 2), _gru: (3, 2)}


def _mapped(state: Tensor, weights: Weights) -> Tensor:
    matrix = weights[0]
    assert matrix is not None
    return functional.linear(state, matrix, weights[1])


def _start(
    step: Step,
    given: Tensor,
    states: Sequence[Tensor],
    weights: Weights,
    is_live: Callable[[Tensor], bool],
) -> State:
    """The state before the first step.

    Where it is zero whatever the input is, it is zero times what the first step writes: zeros that
    have the axes of the state.
    """
    gates, new = _GATES.get(step, (1, 0))
    part = given.chunk(gates, -1)[new]
    own = 0.0 * (part.relu() if step is _STEPS["rnn_relu"] else part.tanh())
    projection = weights[2]
    blank = (own if projection is None else functional.linear(own, projection), own)
    found: list[Tensor] = []
    for zero, state in zip(blank, states, strict=False):
        if is_live(state):
            found.append(state)
        else:
            found.append(zero + state if bool(state.any()) else zero)
    return tuple(found)


def _layers(
    step: Step,
    is_live: Callable[[Tensor], bool],
    rows: Tensor,
    state: Tensor | tuple[Tensor, Tensor],
    weights: list[Tensor],
    biased: bool,
    layers: int,
    _dropout: float,
    _training: bool,
    both_ways: bool,
    batch_first: bool,
) -> tuple[Tensor, ...]:
    states = (state,) if isinstance(state, Tensor) else state
    ways, axis = 1 + both_ways, 1 if batch_first else 0
    size = len(weights) // (layers * ways)
    last: list[State] = []
    for layer in range(layers):
        written: list[Tensor] = []
        for way in range(ways):
            number = layer * ways + way
            own = weights[number * size : (number + 1) * size]
            into, back = own[0], own[1]
            shifts: Weights = own[2:4] if biased else (None, None)
            projection = own[4 if biased else 2] if size > (4 if biased else 2) else None
            given = functional.linear(rows, into, shifts[0])
            order = range(rows.shape[axis])
            order = order if way == 0 else order[::-1]
            took: Weights = (back, shifts[1], projection)
            now = _start(
                step,
                given.select(axis, order[0]),
                tuple(s[number] if is_live(s) or s.any() else s for s in states),
                took,
                is_live,
            )
            seen: dict[int, Tensor] = {}
            for place in order:
                now = step(given.select(axis, place), now, took)
                seen[place] = now[0]
            last.append(now)
            written.append(torch.stack([seen[place] for place in sorted(seen)], axis))
        rows = written[0] if ways == 1 else torch.cat(written, -1)
    ends = tuple(torch.stack([state[i] for state in last]) for i in range(len(states)))
    return rows, *ends


def _cell(
    step: Step,
    is_live: Callable[[Tensor], bool],
    rows: Tensor,
    state: Tensor | tuple[Tensor, Tensor],
    into: Tensor,
    back: Tensor,
    first: Tensor | None = None,
    second: Tensor | None = None,
) -> Any:
    states = (state,) if isinstance(state, Tensor) else state
    given = functional.linear(rows, into, first)
    took: Weights = (back, second, None)
    now = step(given, _start(step, given, states, took, is_live), took)
    return now[0] if isinstance(state, Tensor) else now
