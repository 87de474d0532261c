"""Two trained networks brought into one basin: one is re-expressed in the axes of the other.

The weights of the second are permuted, its function unchanged, until they lie as near to those of
the first as an order of axes can bring them. Then the straight line between the two is walked.

Source: Ainsworth, Hayase and Srinivasa (2023), Git Re-Basin, section 3.2 (matching weights).
"""

import copy
import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from basis_probe.algebra.elements import MonomialElement
from basis_probe.algebra.groups import Monomial, OnAxes, SignedPermutation
from basis_probe.architecture.act import Action
from basis_probe.architecture.derive import Derivation
from basis_probe.architecture.symmetries import reparametrize_all
from basis_probe.arguments import function, instance, one_of, seed_of, whole
from basis_probe.brief import brief
from basis_probe.compare.matching import assignment
from basis_probe.compare.stitching import (
    Objective,
    Performance,
    Statistics,
    Work,
    require_several_readings,
)
from basis_probe.devices import on_own_device
from basis_probe.errors import SiteError
from basis_probe.model.facts import facts_of
from basis_probe.model.network import prepared, recognise
from basis_probe.model.places import Site
from basis_probe.model.weights import CopiedWeights, Slots, WeightError
from basis_probe.run.twins import settle

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ROUNDS = 100
"""At most so often all families are gone through; usually it settles within ten rounds."""

Scales = Literal["kept", "matched"]


@dataclasses.dataclass(frozen=True)
class _Slot:
    """An axis of a parameter along which a family's axes lie.

    Attributes:
        name: of the parameter.
        axis: which of its axes.
        repeat: how many consecutive entries belong to one axis of the family.
        power: 1 if it grows with the family's scale, -1 if it shrinks, 0 if it does not know it.
        turns: True if its sign changes with that of the family's axes.
    """

    name: str
    axis: int
    repeat: int
    power: int = 0
    turns: bool = False

    def rows(self, tensor: Tensor, dim: int) -> Tensor:
        """[dim, entries]: what belongs to every axis of the family."""
        return tensor.unflatten(self.axis, (dim, self.repeat)).movedim(self.axis, 0).flatten(1)

    def moved(self, tensor: Tensor, columns: Tensor, signs: Tensor | None = None) -> Tensor:
        """The parameter after the family's axes have changed places, and some their signs."""
        places = (columns[:, None] * self.repeat + torch.arange(self.repeat)).flatten()
        found = tensor.index_select(self.axis, places)
        return found if signs is None or not self.turns else self.scaled(found, signs)

    def scaled(self, tensor: Tensor, factors: Tensor) -> Tensor:
        """The parameter with what belongs to every axis of the family multiplied by a factor."""
        shape = [1] * tensor.ndim
        shape[self.axis] = -1
        return tensor * factors.repeat_interleave(self.repeat).to(tensor).reshape(shape)


@dataclasses.dataclass(frozen=True, eq=False)
class _Family:
    """Places that share one order of axes, with everything in the weights that follows it."""

    site: Site
    dim: int
    rescales: bool
    slots: tuple[_Slot, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class PathPoint:
    """How well the networks on the line do at one point of it.

    Attributes:
        t: 0 at the first network, 1 at the second.
        before: on the line to the second network as it was.
        after: on the line to it in the axes of the first.
    """

    t: float
    before: Performance
    after: Performance


@brief
@dataclasses.dataclass(frozen=True, eq=False)
class Rebasin:
    """The second network in the axes of the first, and the line between them.

    Attributes:
        model: the second network in the axes of the first: the same function, other weights.
        elements: site -> the element that acted there, one for each family of places.
        distance: of the weights before and after, relative to the size of the first's.
        path: points on the line.
        notes: what a reader must know.
    """

    model: nn.Module
    elements: Mapping[str, MonomialElement]
    distance: tuple[float, float]
    path: tuple[PathPoint, ...]
    notes: tuple[str, ...] = ()

    @property
    def barriers(self) -> tuple[float, float]:
        """The most that the loss rises above the line between its ends, before and after.

        At the points that were walked: with three of them in the middle.
        """
        return self._barrier("before"), self._barrier("after")

    def _barrier(self, which: str) -> float:
        losses = np.asarray([getattr(point, which).loss for point in self.path])
        t = np.asarray([point.t for point in self.path])
        if len(losses) < 2:
            return math.nan
        return float((losses - (1 - t) * losses[0] - t * losses[-1]).max())

    def to_dataframe(self) -> Any:
        """A `pandas.DataFrame` with one row for each point of the line."""
        import pandas as pd

        rows = [
            {
                "t": point.t,
                "loss_before": point.before.loss,
                "loss_after": point.after.loss,
                "accuracy_before": point.before.accuracy,
                "accuracy_after": point.after.accuracy,
            }
            for point in self.path
        ]
        return pd.DataFrame(rows)

    def plot(self, *, figsize: tuple[float, float] | str | None = None) -> "Figure":
        """The loss along both lines.

        Args:
            figsize: as for `Report.plot`.

        Raises:
            ValueError: for any other size.
        """
        from basis_probe.show.heatmap import lines

        return lines(
            {
                "as trained": [(f"{p.t:.2f}", p.before.loss) for p in self.path],
                "in the axes of the first": [(f"{p.t:.2f}", p.after.loss) for p in self.path],
            },
            label="loss",
            size=figsize,
        )


@on_own_device
def rebasin(
    model_a: nn.Module,
    model_b: nn.Module,
    data: Iterable[Any],
    *,
    scales: Scales = "kept",
    points: int = 3,
    objective: Objective | None = None,
    batch_norm: Statistics = "recomputed",
    seed: int = 0,
) -> Rebasin:
    """`model_b` in the axes of `model_a`, and the loss on the straight line between the two.

    Every family of places that share their axes is permuted so that the weights around it match
    those of `model_a` best, one family after the other until nothing changes: an order that is the
    best for each family given the others. Where the group reverses axes, as behind tanh, signs are
    matched along with the order. The elements act as those of `reparametrize` do, so that the
    function of `model_b` stays the same, and that is checked.

    Args:
        model_a: the one network, as for `probe`.
        model_b: another of the same architecture.
        data: batches as for `stitch`, for the loss along the line.
        scales: "matched" to also give every axis of `model_b` the balance between what writes to it
            and what reads it that it has in `model_a`, where the group rescales axes; orders are
            then those that fit best where both are balanced.
        points: how many points on the line, the ends included; 0 for none. Each takes two passes
            over the data, one for either line. Three are the ends and the middle, where the loss of
            two trained networks mostly rises highest; 11 or 25 draw the line.
        objective: as for `stitch`.
        batch_norm: "recomputed" to average its running statistics anew over the data at every point
            between the ends, "kept" to interpolate them.
        seed: seeds the order in which families are gone through.

    Raises:
        DataError: for data that can be read once only, or that the models cannot be called with.
        SiteError: if no place has axes that could change places.
        ValueError: if the two do not have the same parameters.

    Example:
        >>> import torch, basis_probe as bp
        >>> generator = torch.Generator().manual_seed(0)
        >>> layers = torch.nn.Linear(4, 6), torch.nn.GELU(), torch.nn.Linear(6, 3)
        >>> model = torch.nn.Sequential(*layers)
        >>> x = torch.randn(50, 4, generator=generator)
        >>> other_order = bp.groups.Permutation(6).draw(generator)
        >>> twin = bp.reparametrize(model, "1", other_order, example_input=x)
        >>> found = bp.rebasin(model, twin, [(x, model(x).argmax(1))], points=3)
        >>> found.distance[0] > 0.1, found.distance[1], found.barriers[1] < 1e-6
        (True, 0.0, True)
    """
    require_several_readings(data)
    instance("model_a", model_a, nn.Module, "a torch module")
    instance("model_b", model_b, nn.Module, "a torch module")
    one_of("scales", scales, ("kept", "matched"))
    one_of("batch_norm", batch_norm, ("recomputed", "kept"))
    points, seed = whole("points", points, most=10_000), seed_of(seed)
    if objective is not None:
        function("objective", objective, "a function of (output, batch), or None")
    _require_same_shape(model_a, model_b)
    work = Work((model_a, model_b), data, objective)
    raw = next(work.items(data))[1]
    families, notes = _families(model_b, raw)
    if not families:
        raise SiteError("the second network has no place whose axes could change places")
    wanted, given = _tensors(model_a), _tensors(model_b)
    # Axes that the group rescales are matched at the same balance in both.
    rescaled = families if scales == "matched" else []
    own, first = _balanced(wanted, rescaled)
    other, second = _balanced(given, rescaled)
    matched = _match(own, other, families, seed)
    elements: dict[str, MonomialElement] = {}
    for place, (family, (order, signs)) in enumerate(zip(families, matched, strict=True)):
        factors = signs
        if place in second:
            factors = signs * second[place][order] / first[place]
        elements[family.site.name] = MonomialElement(order, factors)
    moved = reparametrize_all(model_b, elements, example_input=raw)
    path: list[PathPoint] = []
    line = _Line(work, model_a, batch_norm)
    for t in np.linspace(0, 1, points).tolist():
        # Both lines begin at the first network. What it computes with the weights in which they
        # end is the same only if it has the functions of the second.
        ends = (model_b, moved) if t > 0 else (model_b,)
        told = [line.performance(end, t) for end in ends]
        path.append(PathPoint(t, told[0], told[-1]))
    distance = _distance(wanted, given), _distance(wanted, _tensors(moved))
    return Rebasin(moved, elements, distance, tuple(path), tuple(notes))


def _require_same_shape(model_a: nn.Module, model_b: nn.Module) -> None:
    for model in (model_a, model_b):
        away = next((name for name, value in model.named_parameters() if value.is_meta), None)
        if away is not None:
            raise ValueError(
                f"{away} is off-loaded or on the meta device, and networks between the two are "
                "made in memory: load both"
            )
    shapes = [
        {name: tuple(value.shape) for name, value in model.state_dict().items()}
        for model in (model_a, model_b)
    ]
    if shapes[0] != shapes[1]:
        odd = sorted(set(shapes[0].items()) ^ set(shapes[1].items()))
        raise ValueError(
            f"the two networks differ in {odd[0][0]} and {len(odd) - 1} other entries of their "
            "weights: give two of the same architecture"
        )


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: value.detach().cpu().to(torch.float64, copy=True)
        for name, value in model.named_parameters()
    }


def _distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    squared = sum(float((one[name] - other[name]).square().sum()) for name in one)
    return math.sqrt(squared / sum(float(value.square().sum()) for value in one.values()))


def _families(model: nn.Module, raw: Any) -> tuple[list[_Family], list[str]]:
    """Every set of places that share an order of axes, once, and what was left out."""
    from basis_probe.model.batches import batch_of

    subject = recognise(model)
    found: dict[frozenset[int], _Family] = {}
    left_out: list[str] = []
    with prepared(model, None):
        batch = batch_of(raw, number=0, tokenizer=subject.tokenizer, device=subject.device)
        derivation = Derivation(facts_of(subject, batch))
        facts = derivation.facts
        slots, weights = Slots(model, facts.graph.trace), CopiedWeights(model)
        before = _tensors(weights.model)
        seen: set[int] = set()

        def moved_by(
            site: Site, columns: Tensor, factor: float
        ) -> tuple[frozenset[int], dict[str, Tensor]]:
            """The streams that an element moves, and the weights after it acted."""
            element = MonomialElement(
                columns, torch.full((len(columns),), factor, dtype=torch.float32)
            )
            try:
                with torch.no_grad():
                    streams = Action(derivation, slots, weights).move(site, element)
                return frozenset(streams), _tensors(weights.model)
            finally:
                weights.restore()

        for site in facts.sites.values():
            vertex = facts.vertex(site)
            group = derivation.symmetry(site).group
            if vertex is None or not isinstance(group, OnAxes) or group.dim < 2:
                continue
            if facts.stream_of[vertex.node] in seen:
                continue
            dim = group.dim
            stays = torch.arange(dim)
            try:
                order = torch.randperm(dim, generator=torch.Generator().manual_seed(1))
                key, after = moved_by(site, order, 1.0)
                seen |= key
                places = _followed(before, after, order)
                if places is not None and group.rescales:
                    _, after = moved_by(site, stays, 2.0)
                    places = _with_constants(places, before, after, dim)
                    places = places and [_powered(slot, before, after) for slot in places]
                if places is not None and isinstance(group, SignedPermutation | Monomial):
                    _, after = moved_by(site, stays, -1.0)
                    places = _with_constants(places, before, after, dim)
                    places = places and [
                        dataclasses.replace(
                            slot, turns=torch.equal(after[slot.name], -before[slot.name])
                        )
                        for slot in places
                    ]
            except WeightError as error:
                left_out.append(f"{site.name} was left out: {error}.")
                continue
            if places is None:
                left_out.append(f"{site.name} was left out: its axes lie in a weight in parts.")
            elif places:
                found[key] = _Family(site, group.dim, group.rescales, tuple(places))
    return list(found.values()), left_out


def _followed(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], columns: Tensor
) -> list[_Slot] | None:
    """Along which axis of which parameter an order of axes acted; None if that cannot be told."""
    found: list[_Slot] = []
    for name, given in before.items():
        made = after[name]
        if torch.equal(given, made):
            continue
        candidates = [
            _Slot(name, axis, size // len(columns))
            for axis, size in enumerate(given.shape)
            if size % len(columns) == 0
        ]
        fitting = [slot for slot in candidates if torch.equal(slot.moved(given, columns), made)]
        if len(fitting) != 1:
            return None
        found.append(fitting[0])
    return found


def _with_constants(
    places: Sequence[_Slot], before: Mapping[str, Tensor], after: Mapping[str, Tensor], dim: int
) -> list[_Slot] | None:
    """The places, and those of parameters that no order of axes changes, as gains that are one."""
    known = {slot.name for slot in places}
    found = [*places]
    for name, given in before.items():
        if name in known or torch.equal(given, after[name]):
            continue
        fitting = [
            _Slot(name, axis, size // dim)
            for axis, size in enumerate(given.shape)
            if size % dim == 0
        ]
        if len(fitting) != 1:
            return None
        found += fitting
    return found


def _powered(slot: _Slot, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> _Slot:
    for power, factor in ((1, 2.0), (-1, 0.5)):
        if torch.allclose(after[slot.name], factor * before[slot.name], rtol=1e-4):
            return dataclasses.replace(slot, power=power)
    return slot


def _match(
    wanted: Mapping[str, Tensor], weights: dict[str, Tensor], families: list[_Family], seed: int
) -> list[tuple[Tensor, Tensor]]:
    """For every family the order of axes, and their signs, under which the weights match best."""
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.arange(family.dim) for family in families]
    signs = [torch.ones(family.dim, dtype=torch.float64) for family in families]
    names = [{slot.name for slot in family.slots} for family in families]
    # Where no weight of a family has changed since it was matched, it fits best as it is.
    waiting = set(range(len(families)))
    for _ in range(_ROUNDS):
        for place in torch.randperm(len(families), generator=generator).tolist():
            if place not in waiting:
                continue
            waiting.remove(place)
            family = families[place]
            gain = torch.zeros(family.dim, family.dim, dtype=torch.float64)
            turned = torch.zeros_like(gain)
            for slot in family.slots:
                own, other = wanted[slot.name], weights[slot.name]
                products = slot.rows(own, family.dim) @ slot.rows(other, family.dim).T
                (turned if slot.turns else gain).add_(products)
            now = (gain + turned).trace()
            gain = gain + turned.abs()
            rows, columns = assignment(gain)
            order, places = columns[rows.argsort()], torch.arange(family.dim)
            sign = torch.where(turned[places, order] < 0, -1.0, 1.0).double()
            gained = gain[places, order].sum() - now
            if float(gained) <= 1e-9 * float(gain.abs().max()):
                continue
            waiting |= {other for other, own in enumerate(names) if own & names[place]} - {place}
            orders[place], signs[place] = orders[place][order], signs[place][order] * sign
            for slot in family.slots:
                weights[slot.name] = slot.moved(weights[slot.name], order, sign)
        if not waiting:
            break
    return list(zip(orders, signs, strict=True))


def _balanced(
    tensors: Mapping[str, Tensor], families: Sequence[_Family]
) -> tuple[dict[str, Tensor], dict[int, Tensor]]:
    """The weights with what writes to an axis as large as what reads it, and the axes' factors.

    Of all weights that the rescaled axes allow these are the smallest, and the same whichever of
    them were given.

    Args:
        tensors: the weights.
        families: those that are not rescaled are left out.
    """
    made = dict(tensors)
    factors = {
        place: torch.ones(family.dim, dtype=torch.float64)
        for place, family in enumerate(families)
        if family.rescales
    }
    for _ in range(_ROUNDS):
        furthest = 0.0
        for place, factor in factors.items():
            family = families[place]
            sizes = {1: torch.zeros_like(factor), -1: torch.zeros_like(factor)}
            for slot in family.slots:
                if slot.power:
                    sizes[slot.power] += slot.rows(made[slot.name], family.dim).square().sum(1)
            step = (sizes[-1] / sizes[1]).pow(0.25)
            # An axis that nothing writes to, or nothing reads, has no balance.
            step = torch.where(torch.isfinite(step) & (step > 0), step, torch.ones_like(step))
            for slot in family.slots:
                if slot.power:
                    made[slot.name] = slot.scaled(made[slot.name], step**slot.power)
            factors[place] = factor * step
            furthest = max(furthest, float(step.log().abs().max()))
        if furthest < 1e-9:
            break
    return made, factors


class _Line:
    """Networks on straight lines from one network to others, each made in the place of the last.

    Args:
        work: the data.
        start: the network at which the lines begin.
        statistics: what becomes of those of batch normalisation.
    """

    def __init__(self, work: Work, start: nn.Module, statistics: Statistics) -> None:
        self.work, self.start, self.statistics = work, start, statistics

    @functools.cached_property
    def made(self) -> nn.Module:
        """The network on the line that was asked for last."""
        return copy.deepcopy(self.start).eval()

    def performance(self, end: nn.Module, t: float) -> Performance:
        """How well the network does that lies at t on the line to another."""
        self._go(end, t)
        call = recognise(self.made).call
        if 0 < t < 1 and self.statistics == "recomputed":
            batches = self.work.items(self.work.data)
            settle(self.made, (functools.partial(call, batch) for batch, _ in batches))
        return self.work.performance(call, self.work.data)

    @torch.no_grad()
    def _go(self, end: nn.Module, t: float) -> None:
        """Brings weights and running statistics to a place on the line to another network."""
        start, there = self.start.state_dict(), end.state_dict()
        for name, value in self.made.state_dict().items():
            if value.is_floating_point():
                torch.lerp(start[name], there[name].to(value), t, out=value)
            else:
                value.copy_(start[name])
