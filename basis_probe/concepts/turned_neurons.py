"""Neurons whose inputs are turned, the maps behind them fitted anew: what is put in their place."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from basis_probe.algebra.haar import haar
from basis_probe.architecture.derive import Derivation
from basis_probe.errors import DataError, SiteError
from basis_probe.model.batches import Batch
from basis_probe.model.capture import catching
from basis_probe.model.graph import Kind
from basis_probe.model.linear_layer import layer as layer_of
from basis_probe.model.network import Subject
from basis_probe.model.places import Address, Place, made
from basis_probe.model.replace import read_alone, replacing
from basis_probe.run.problems import problem_of
from basis_probe.run.stream import Stream, rows_last
from basis_probe.run.watch import Placed
from basis_probe.statistics.nulls import Problem
from basis_probe.statistics.path import fractional_power

POWERS = (0.0, 1 / 36, 1 / 18, 1 / 9, 2 / 9, 4 / 9, 2 / 3, 1.0)
"""The stations on the way to a uniform turn; the second is an angle of about 0.05."""

_MOST_ROWS = 16384
_NEGLIGIBLE = 1e-10


@dataclasses.dataclass(frozen=True, eq=False)
class Neurons:
    """How a site is made of what is written to it.

    Attributes:
        written: where that is caught, each with the axes of its features.
        bent: rows of the site from rows of what is written.
        rows: the rows of what is written, of a problem.
    """

    written: tuple[tuple[Address, tuple[int, ...]], ...]
    bent: Callable[[Sequence[Tensor]], Tensor]
    rows: Callable[[Problem], list[Tensor] | None]


def neurons_of(place: Placed, derivation: Derivation) -> Neurons | str:
    """How a site is made of what is written to it, or why it is not neurons."""
    trace = derivation.seen.graph.trace
    feature = place.plan.layout.axes if place.plan.layout is not None else (-1,)
    if place.bend is not None and place.plan.pre is not None:
        bend = place.bend
        return Neurons(
            ((place.plan.pre, feature),), lambda z: bend(z[0]), lambda p: _only(p.before)
        )
    layer = place.layer
    if layer is None or layer.pre is None or layer.held or layer.convolution is not None:
        known = layer_of(derivation.seen, place.site)
        said = f": {known}" if isinstance(known, str) else ""
        return f"it lies behind no nonlinearity whose input is known{said}"
    found: list[tuple[Address, tuple[int, ...]]] = []
    for index in layer.linears:
        address, width = made(trace, index), trace.node(index).shape[-1]
        if address is None or width % place.dim:
            return "what is written to it is a step inside one call, and cannot be caught"
        found.append((address, (-1,)))
    post = layer.post
    return Neurons(
        tuple(found),
        lambda z: post(tuple(z)),
        lambda p: None if p.layer is None else list(p.layer.outputs),
    )


def _only(rows: Tensor | None) -> list[Tensor] | None:
    return None if rows is None else [rows]


_LINEAR = (Kind.LINEAR, Kind.CONVOLUTION)


def bent_readers(place: Placed, derivation: Derivation) -> tuple[str, ...]:
    """What reads a site and is no linear map of its features, by the names of functions."""
    facts = derivation.seen
    vertex = facts.vertex(place.site)
    found: dict[str, None] = {}
    waiting = [] if vertex is None else [vertex.node]
    while waiting:
        here = waiting.pop()
        for reader in facts.graph.vertices.values():
            if reader.node == here or here not in (*reader.carried, *reader.used):
                continue
            if reader.kind is Kind.CARRIER:
                waiting.append(reader.node)
            elif reader.kind not in _LINEAR:
                found[reader.op or reader.kind.value] = None
    return tuple(found)


def require_replaceable(place: Placed, derivation: Derivation) -> None:
    """Nothing; raises SiteError where others read what would be left as it is."""
    address = place.site.address
    if address.place not in (Place.OUTPUT, Place.FUNCTION) and not read_alone(
        derivation.seen.graph.trace, address, place.site.node
    ):
        raise SiteError(
            f"{place.site.name} is what a module is given, and others may read it too: name the "
            "place where it is made"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Version:
    """A site with what is written to it turned, and its readers refitted.

    Attributes:
        turn: [dim, dim].
        back: [dim, dim], what is added to a row of the turned site, of its units' distance from
            their means, so that its readers go on.
        centre, offset: [dim], the means of the turned site, and what is added at them.
        angle: the angle of the turn.
    """

    turn: Tensor
    back: Tensor
    centre: Tensor
    offset: Tensor
    angle: float


@dataclasses.dataclass(frozen=True, eq=False)
class Turned:
    """Everything that is put in a site's place.

    Attributes:
        place: the site.
        neurons: how it is made.
        means, units: of every tensor that is written, [outputs]; 0 for what never varies.
        versions: [turns][stations].
        mean: of the site, [dim].
        rows: on how many rows maps were fitted.
    """

    place: Placed
    neurons: Neurons
    means: tuple[Tensor, ...]
    units: tuple[Tensor, ...]
    versions: list[list[Version]]
    mean: Tensor
    rows: int

    def made(self, z: Sequence[Tensor], turn: Tensor) -> Tensor:
        """The site with what is written to it turned."""
        several = [
            _turned(rows, mean, unit, turn)
            for rows, mean, unit in zip(z, self.means, self.units, strict=True)
        ]
        return self.neurons.bent(several)


def _turned(z: Tensor, mean: Tensor, unit: Tensor, turn: Tensor) -> Tensor:
    """Rows whose units are turned about their means in units of their deviations."""
    dim, mean, unit = len(turn), mean.to(z), unit.to(z)
    away = (z - mean) / torch.where(unit > 0, unit, torch.ones_like(unit))
    # A map that writes gate and product at once has them one behind the other.
    parts = [part @ turn.T.to(z) for part in away.split(dim, dim=1)]
    return mean + unit * torch.cat(parts, 1)


def fitted(
    subject: Subject,
    place: Placed,
    neurons: Neurons,
    batches: Sequence[Batch],
    turns: int,
    seed: int,
) -> Turned:
    """The site's versions, the maps behind them fitted to a uniform sample of rows."""
    name, dim = place.site.name, place.dim
    if dim < 2:
        raise SiteError(f"{name} has one axis, and there is nothing to turn")
    room = min(_MOST_ROWS, max(4096, 8 * dim))
    stream = Stream({name: place.plan}, seed=seed, capacity=room, most=None)
    for number, batch in enumerate(batches):
        stream.look(subject.model, batch, lambda batch=batch: subject.call(batch), number=number)()
    seen = stream.seen[name]
    if seen.bad:
        raise DataError(
            f"{seen.bad[0][1]} values of {name} are NaN or infinite in batch {seen.bad[0][0]}: "
            "give data on which the model stays finite"
        )
    count = len(seen.kept.priorities)
    if count < 2 * dim:
        raise DataError(
            f"maps that read {dim} axes are refitted on {count} rows of {name}, and need at least "
            f"{2 * dim}: give more data"
        )
    problem, _ = problem_of(place, seen, subject.dtype)
    z = neurons.rows(problem)
    if z is None:
        raise SiteError(f"what is written to {name} could not be caught or computed again")
    x = problem.x.double()
    z = [rows.double() for rows in z]
    if any(rows.shape[1] != dim for rows in z) and not _commutes(neurons, z, dim, seed):
        raise SiteError(
            f"{name} reads what is written to it in an order of its own, so that it is not known "
            "which of it belongs to one neuron"
        )
    units = tuple(_deviations(rows) for rows in z)
    made_of = Turned(place, neurons, tuple(r.mean(0) for r in z), units, [], x.mean(0), count)
    live = torch.stack([(u > 0) for unit in units for u in unit.split(dim)]).all(0)
    if int(live.sum()) < 2:
        raise DataError(f"fewer than two axes of {name} vary on these data: nothing can be turned")
    generator = torch.Generator().manual_seed(seed)
    for _ in range(turns):
        whole = proper(haar(int(live.sum()), generator))
        made_of.versions.append(
            [_version(made_of, z, x, live, fractional_power(whole, power)) for power in POWERS]
        )
    return made_of


def _version(made_of: Turned, z: list[Tensor], x: Tensor, live: Tensor, inner: Tensor) -> Version:
    dim = x.shape[1]
    turn = torch.eye(dim, dtype=torch.float64)
    places = torch.nonzero(live).flatten()
    turn[places[:, None], places] = inner
    turned = made_of.made(z, turn).double()
    centre = turned.mean(0)
    away, missing = turned - centre, x - turned
    offset = missing.mean(0)
    units = _deviations(away)
    scaled = away / torch.where(units > 0, units, torch.ones_like(units))
    values, vectors = torch.linalg.eigh(scaled.T @ scaled)
    kept = values > values.max() * _NEGLIGIBLE
    inverse = (vectors[:, kept] / values[kept]) @ vectors[:, kept].T
    back = (inverse @ (scaled.T @ (missing - offset))).T
    back = back / torch.where(units > 0, units, torch.ones_like(units))
    cosine = float(inner.diagonal().mean())
    return Version(turn, back, centre, offset, math.acos(max(-1.0, min(1.0, cosine))))


def _commutes(neurons: Neurons, z: list[Tensor], dim: int, seed: int) -> bool:
    """Whether units of what is written lie one behind the other, each of one neuron."""
    order = torch.randperm(dim, generator=torch.Generator().manual_seed(seed))
    few = [rows[:32] for rows in z]
    moved = [torch.cat([p[:, order] for p in rows.split(dim, dim=1)], 1) for rows in few]
    return torch.allclose(neurons.bent(moved), neurons.bent(few)[:, order], rtol=1e-6, atol=1e-9)


def _deviations(rows: Tensor) -> Tensor:
    """The standard deviation of every column, 0 where it is no more than rounding."""
    std = rows.std(0, correction=0)
    return torch.where(std > rows.abs().amax(0) * 1e-7, std, torch.zeros_like(std))


def proper(turn: Tensor) -> Tensor:
    """The turn, one column reversed where it reverses orientation: then it has powers."""
    if float(torch.linalg.det(turn)) < 0:
        turn = turn.clone()
        turn[:, 0] *= -1
    return turn


def run(subject: Subject, batch: Batch, turned: Turned, version: Version | None) -> Any:
    """What the model returns with a version in the site's place, or the site's mean for None."""
    place, caught = turned.place, dict[int, Tensor]()

    def keep(index: int) -> Callable[[Tensor], None]:
        def catch(tensor: Tensor) -> None:
            caught[index] = tensor.clone()

        return catch

    def change(x: Tensor) -> Tensor:
        rows = rows_last(x, place.plan.layout)
        flat = rows.reshape(-1, rows.shape[-1])
        if version is None:
            made_rows = turned.mean.to(flat).expand_as(flat)
        else:
            z = [
                _last(caught[i], axes).reshape(len(flat), -1).double()
                for i, (_, axes) in enumerate(turned.neurons.written)
            ]
            other = turned.made(z, version.turn).double()
            missing = (other - version.centre.to(other)) @ version.back.T.to(other)
            made_rows = (other + missing + version.offset.to(other)).to(flat)
        axes = (x.ndim - 1,) if place.plan.layout is None else place.plan.layout.axes
        split = made_rows.reshape(*rows.shape[:-1], *(x.shape[axis] for axis in axes))
        last = tuple(range(x.ndim - len(axes), x.ndim))
        return split.movedim(last, axes).to(x.dtype)

    with ExitStack() as stack:
        if version is not None:
            wanted = {address: keep(i) for i, (address, _) in enumerate(turned.neurons.written)}
            stack.enter_context(catching(subject.model, wanted))
        stack.enter_context(replacing(subject.model, place.site.address, change, alone=True))
        return subject.call(batch)


def _last(tensor: Tensor, axes: tuple[int, ...]) -> Tensor:
    last = tuple(range(tensor.ndim - len(axes), tensor.ndim))
    return tensor.movedim(axes, last).flatten(-len(axes))
