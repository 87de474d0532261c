"""How far the axes of a site could stand out in form, where they are not seen to."""

import dataclasses

import torch
from torch import Tensor

from basis_probe.algebra.remembered import remembered
from basis_probe.evidence.extras import ACTIVATIONS, BEFORE
from basis_probe.evidence.measure import (
    CROSS_FITTED,
    NEURONS_KEPT,
    asks_orders,
    drawn_axes,
    geometry_under,
    varying,
)
from basis_probe.results.evidence import FormBound
from basis_probe.statistics.bound import FEWEST_GROUPS, bound_form, reached
from basis_probe.statistics.nulls import (
    Counterfactual,
    Null,
    Problem,
    Rotation,
    TurnedPreactivation,
)
from basis_probe.statistics.single_precision import deviations

_FEWEST_DISTINCT = 200
"""From fewer different rows no bound is inferred."""
_DIRECTIONS, _AT_ONCE = 512, 128
_NULLS = (Rotation, Counterfactual, TurnedPreactivation)


def bound(
    problem: Problem, null: Null, *, distinct: int, seed: int, drawn: Tensor | None = None
) -> FormBound | str:
    """The bound of one site, or why there is none.

    Where orders are asked, form is bounded on whitened rows, against random directions of them;
    behind a nonlinearity before it, against neurons that point elsewhere.

    Args:
        problem: what is known of the site, on the samples that are compared.
        null: its null.
        distinct: how many of the rows differ from each other.
        seed: seeds the directions.
        drawn: neurons of alternatives on the same rows, [samples, neurons]; drawn anew if None.
    """
    if not isinstance(null, _NULLS):
        return f"no bound is worked out for the null '{null.name}'"
    if distinct < _FEWEST_DISTINCT:
        return f"only {distinct} different rows were compared, and it takes {_FEWEST_DISTINCT}"
    examples = problem.examples
    if examples is None:
        examples = torch.arange(len(problem.x))
    problem, kept = varying(problem, null)
    if len(kept) < 2:
        return _TOO_NARROW
    count = int(examples.unique().numel())
    if count < FEWEST_GROUPS:
        several = "one example" if count == 1 else f"{count} examples"
        return f"the rows that were compared are of {several}, and it takes {FEWEST_GROUPS}"
    ceiling = float("nan")
    if asks_orders(problem, null):
        axes = problem.centred.whitened.float()
        directions = axes @ _unit_columns(axes.shape[1], seed).to(axes)
        ceiling = reached(axes, directions, examples, seed=seed)
        reads = ACTIVATIONS
    else:
        if geometry_under(null, problem) in CROSS_FITTED and isinstance(null, Rotation):
            problem, examples = problem.by_halves, examples[problem.halves.argsort(stable=True)]
        observed = null.observed(problem)
        axes = observed.post if observed.pre is None else observed.pre
        reads = ACTIVATIONS if observed.pre is None else BEFORE
        directions = _drawn(problem, null, seed) if drawn is None else drawn
    axes, directions = _alive(axes), _alive(directions)
    if axes.shape[1] < 2 or directions.shape[1] < 2:
        return _TOO_NARROW
    found = bound_form(axes, directions, examples)
    assert found is not None
    return FormBound(**dataclasses.asdict(found), reads=reads, ceiling=ceiling)


_TOO_NARROW = "fewer than two axes vary"


def _unit_columns(dim: int, seed: int) -> Tensor:
    """Directions, the same at every site of one width."""
    generator = torch.Generator().manual_seed(seed)

    def make() -> tuple[Tensor]:
        drawn = torch.randn(dim, _DIRECTIONS, generator=generator, dtype=torch.float64)
        return ((drawn / drawn.norm(dim=0)).float(),)

    return remembered(generator, ("unit columns", dim), make)[0]


def _drawn(problem: Problem, null: Null, seed: int) -> Tensor:
    """What the null's alternatives read, along as many directions as are needed."""
    some = drawn_axes(problem, geometry_under(null, problem), _AT_ONCE, seed)
    generator = torch.Generator().manual_seed(seed)
    alternatives = null.alternatives(problem, some)
    wanted = _DIRECTIONS if isinstance(null, Rotation) else NEURONS_KEPT
    frames = alternatives.several(generator, -(-wanted // len(some)))
    return torch.cat([f.post if f.pre is None else f.pre for f in frames], 1)


def _alive(columns: Tensor) -> Tensor:
    """The columns that vary by more than rounding, all finite."""
    alive = deviations(columns) > 1e-6 * columns.amax(0).maximum(-columns.amin(0))
    return columns if bool(alive.all()) else columns[:, alive]
