"""Every layer of one network against every layer of another."""

import dataclasses
import functools
import math
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from basis_probe.algebra.groups import Group
from basis_probe.compare.alignments import align, axes_group, on_axes, require_kin
from basis_probe.compare.kernels import Hsic, Kernel, Maps, feature_hsic, kernel_hsic
from basis_probe.compare.running import Caught, Network, Spot, both, common_space, paired
from basis_probe.compare.similarity import (
    Plan,
    groups_for,
    jackknife,
    kernel_values,
    leave_one_out,
    plan_of,
)
from basis_probe.errors import DataError
from basis_probe.model.network import prepared
from basis_probe.results.similarity import LayerMatrix, spread_of
from basis_probe.statistics.second_moments import Crossed, Spread, rounding_of


def compare_layers(
    model: nn.Module,
    other: nn.Module,
    data: Iterable[Any],
    *,
    other_data: Iterable[Any] | None = None,
    sites: str | Iterable[str] | None = None,
    other_sites: str | Iterable[str] | None = None,
    group: Group | str | None = None,
    measure: Literal["procrustes", "cka"] = "cka",
    kernel: str | None = None,
    estimator: Literal["unbiased", "biased"] = "unbiased",
    folds: int = 5,
) -> LayerMatrix:
    """The similarity of every layer of a network with every layer of another, or of its own.

    Both networks run once over the data. Kernels are compared within batches and added up; elements
    of a group are fitted on some batches and scored on others. Axes that never vary match nothing.

    Args:
        model: the one network, as for `probe`.
        other: the other; the same one to compare a network with itself.
        data: batches as for `probe`; several of them, for there to be error bars.
        other_data: the same examples as the other model takes them, where that differs.
        sites: names or globs of the first model; None for the sensible ones.
        other_sites: those of the second; None for the same.
        group: a group by name; None for the one that all sites have. Where they have several that
            only move and multiply axes, as around the shortcuts of a ResNet, that is the smallest
            one that moves all axes and holds them.
        measure: "cka" or "procrustes", as for `similarity`.
        kernel: for CKA, as for `similarity`.
        estimator: for CKA, as for `similarity`.
        folds: into how many parts the batches are divided for Procrustes; 1 to hold nothing out.

    Raises:
        DataError: for data that cannot be compared, or values that are NaN.
        SiteError: for a name that stands for no site.
        ValueError: if the sites have groups of several kinds, and none was named.

    Example:
        >>> import torch, basis_probe as bp
        >>> generator = torch.Generator().manual_seed(0)
        >>> layers = torch.nn.Linear(4, 9), torch.nn.ReLU(), torch.nn.Linear(9, 9), torch.nn.ReLU()
        >>> model = torch.nn.Sequential(*layers, torch.nn.Linear(9, 2))
        >>> data = list(torch.randn(200, 4, generator=generator).split(50))
        >>> found = bp.compare_layers(model, model, data)
        >>> found.sites, found.matched
        (('1', '3'), ('1', '3'))
    """
    if measure not in ("cka", "procrustes"):
        raise ValueError(f"measure={measure!r}: layers are compared by 'cka' or 'procrustes'")
    plan = plan_of(measure, "shape", kernel, estimator, folds, "ignore", 0)
    # An iterator of names can be read only once.
    sites = sites if sites is None or isinstance(sites, str) else tuple(sites)
    subjects = both((model, other))
    table: _Table | None = None
    with prepared(model, None), prepared(other, None):
        networks: tuple[Network, Network] | None = None
        for batch, second in paired(subjects, data, other_data):
            if networks is None or table is None:
                networks = (
                    Network(subjects[0], batch, sites),
                    Network(subjects[1], second, sites if other_sites is None else other_sites),
                )
                table = _Table(plan, networks[0].spots, networks[1].spots, group)
            caught = networks[0].run(batch)
            table.see(caught, networks[1].run(second))
    assert table is not None
    return table.finish()


class _Side:
    """The rows of one site in one batch, at every size at which they are asked for."""

    def __init__(self, caught: Caught) -> None:
        self.caught = caught
        self._sized: dict[tuple[int, ...] | None, _Rows] = {}

    def at(self, space: tuple[int, ...] | None) -> "_Rows":
        if space not in self._sized:
            self._sized[space] = _Rows(self.caught.resized(space).rows)
        return self._sized[space]


class _Rows:
    """Rows of one batch about their mean, with what every pair of layers needs of them."""

    def __init__(self, rows: Tensor) -> None:
        self.rounding = rounding_of(rows.dtype)
        exact = rows.cpu().double()
        self.mean = exact.mean(0)
        self.centred = exact - self.mean

    @functools.cached_property
    def unit(self) -> "_Rows":
        """The same with axes of unit size; those that never vary stay zero."""
        size = self.centred.norm(dim=0)
        flat = size <= 1e-12 * self.mean.abs() * math.sqrt(len(self.centred))
        safe = torch.where(flat | (size == 0), torch.full_like(size, math.inf), size)
        return _Rows(self.centred / safe)

    @functools.cached_property
    def spread(self) -> Spread:
        products = self.centred.T @ self.centred
        return Spread(len(self.centred), self.mean, products, self.rounding)

    @functools.cached_property
    def sizes(self) -> Tensor:
        """[samples], the squared length of every row."""
        return self.centred.square().sum(1)


@dataclasses.dataclass
class _Pair:
    """What was gathered of one pair of layers."""

    moments: list[Crossed]
    kernels: list[Hsic]


class _Table:
    """What was gathered of all pairs.

    Args:
        plan: the measure.
        spots: the sites of the first network.
        others: those of the second.
        group: the group that was named.
    """

    def __init__(
        self, plan: Plan, spots: dict[str, Spot], others: dict[str, Spot], group: Group | str | None
    ) -> None:
        self.plan, self.spots, self.others = plan, spots, others
        self.batches = self.examples = 0
        own = [spot.symmetry.group for spot in (*spots.values(), *others.values())]
        self.notes: list[str] = []
        several = len({type(found) for found in own}) > 1
        if group is None and several and all(on_axes(found) for found in own):
            group = axes_group(own, 1).name
            self.notes.append(
                f"The sites have several groups; they were compared up to {group}, which holds all."
            )
        self.groups = {
            (a, b): _kin(first, second, group)
            for a, first in spots.items()
            for b, second in others.items()
        }
        one = next(iter(self.groups.values()))[0]
        self.name, self.rescales = one.name, one.rescales
        self.kernel = plan.kernel_for(one) if plan.measure == "cka" else None
        self.pairs = {
            key: _Pair([Crossed.empty(x.dim, y.dim) for _ in range(plan.folds)], [])
            for key, (x, y) in self.groups.items()
        }

    def see(self, caught: dict[str, Caught], others: dict[str, Caught]) -> None:
        """Adds one batch."""
        count = len(next(iter(caught.values())).values)
        if self.kernel in (None, Kernel.LINEAR):
            self._see_rows(caught, others, count)
        else:
            self._see_kernels(caught, others, count)
        self.batches += 1
        self.examples += count

    def _see_rows(self, caught: dict[str, Caught], others: dict[str, Caught], count: int) -> None:
        left = {name: _Side(side) for name, side in caught.items()}
        right = {name: _Side(side) for name, side in others.items()}
        own: dict[tuple[int, str, tuple[int, ...] | None], float] = {}
        for (a, b), pair in self.pairs.items():
            space = common_space(caught[a], others[b])
            x, y = left[a].at(space), right[b].at(space)
            if len(x.centred) != len(y.centred):
                raise DataError(
                    f"{a} holds {len(x.centred)} samples and {b} {len(y.centred)} in one batch: "
                    "compare layers with the same positions"
                )
            if self.kernel is None:
                moments = Crossed(x.spread, y.spread, x.centred.T @ y.centred)
                pair.moments[self.batches % self.plan.folds] += moments
                continue
            if self.rescales:
                x, y = x.unit, y.unit
            for side, name, rows in ((0, a, x), (1, b, y)):
                if (side, name, space) not in own:
                    own[side, name, space] = feature_hsic(
                        rows.spread.sums, rows.sizes, rows.sizes, unbiased=self.plan.unbiased
                    )
            cross = feature_hsic(
                x.centred.T @ y.centred, x.sizes, y.sizes, unbiased=self.plan.unbiased
            )
            pair.kernels.append(Hsic(cross, own[0, a, space], own[1, b, space], 1, count))

    def _see_kernels(
        self, caught: dict[str, Caught], others: dict[str, Caught], count: int
    ) -> None:
        assert self.kernel is not None
        if count < 4:
            return
        made = [
            {
                name: Maps(kernel_values(side), self.kernel, self.rescales).whole()
                for name, side in found.items()
            }
            for found in (caught, others)
        ]
        unbiased = self.plan.unbiased
        own = [
            {name: kernel_hsic(k, k, unbiased=unbiased) for name, k in kernels.items()}
            for kernels in made
        ]
        for (a, b), pair in self.pairs.items():
            cross = kernel_hsic(made[0][a], made[1][b], unbiased=unbiased)
            pair.kernels.append(Hsic(cross, own[0][a], own[1][b], 1, count))

    def finish(self) -> LayerMatrix:
        """The matrix."""
        shape = len(self.spots), len(self.others)
        values, errors = np.full(shape, math.nan), np.full(shape, math.nan)
        for i, a in enumerate(self.spots):
            for j, b in enumerate(self.others):
                values[i, j], errors[i, j] = self._value((a, b))
        notes = [*self.notes]
        if self.batches < 2:
            notes.append("All data came in one batch, so that there are no error bars.")
        if self.kernel is None and (self.plan.folds == 1 or self.batches < 2):
            notes.append("Nothing was held out, so that the fit flatters.")
        measure = self.plan.measure
        if self.kernel is not None:
            measure = f"{self.kernel.name.lower()} CKA"
            notes.append(f"The kernels were compared within {self.batches} batches and added up.")
            if self.kernel is not Kernel.LINEAR:
                notes.append(
                    f"The kernel is that of {self.name} axes, {self.kernel.name.lower()}; for the "
                    'linear CKA of Kornblith et al. (2019) give group="orthogonal" and '
                    'estimator="biased".'
                )
        return LayerMatrix(
            sites=tuple(self.spots),
            other_sites=tuple(self.others),
            similarity=values,
            std_error=errors,
            measure=measure,
            group=self.name,
            n_examples=self.examples,
            notes=tuple(notes),
        )

    def _value(self, key: tuple[str, str]) -> tuple[float, float]:
        pair, groups = self.pairs[key], self.groups[key]
        if self.kernel is not None:
            if not pair.kernels:
                raise DataError("no batch holds four examples, which a kernel needs")
            return sum(pair.kernels, Hsic()).cka, jackknife(leave_one_out(pair.kernels))
        parts = [part for part in pair.moments if part.count > 1]
        if len(parts) < 2:
            total = sum(parts[1:], parts[0])
            return align(*groups, total, constant="ignore").similarity(total), math.nan
        held_out: list[float] = []
        for place, test in enumerate(parts):
            rest = [part for other, part in enumerate(parts) if other != place]
            fitted = align(*groups, sum(rest[1:], rest[0]), constant="ignore")
            held_out.append(fitted.similarity(test))
        return float(np.mean(held_out)), spread_of(held_out)


def _kin(first: Spot, second: Spot, group: Group | str | None) -> tuple[Group, Group]:
    if group is not None:
        name = group if isinstance(group, str) else group.name
        return groups_for(name, first.dim, second.dim)
    own, other = first.symmetry.group, second.symmetry.group
    try:
        require_kin(own, other)
    except ValueError as error:
        raise ValueError(
            f"{first.site.name} ({first.role.kind}) has the group {own.name} and "
            f"{second.site.name} ({second.role.kind}) {other.name}: name sites of one kind, or the "
            "group in which all are compared"
        ) from error
    return own, other
