"""Every layer of one network against every layer of another."""

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, overload

import numpy as np
import torch
from torch import Tensor, nn

from basis_probe.algebra.groups import Group
from basis_probe.arguments import instance, texts
from basis_probe.compare.alignments import align, axes_group, on_axes, require_kin
from basis_probe.compare.kernels import Hsic, Kernel, Maps, feature_hsic, kernel_hsic
from basis_probe.compare.running import (
    Caught,
    Network,
    Spot,
    both,
    common_space,
    fold_of,
    paired,
)
from basis_probe.compare.samples import Correlation, Dissimilarity
from basis_probe.compare.saved import arrays_of, chosen, folds_of
from basis_probe.compare.similarity import (
    Measure,
    Plan,
    Saved,
    State,
    groups_for,
    jackknife,
    kernel_values,
    leave_one_out,
    plan_of,
    require_same_samples,
)
from basis_probe.errors import DataError
from basis_probe.model.network import prepared
from basis_probe.results.similarity import LayerMatrices, LayerMatrix, spread_of
from basis_probe.statistics.second_moments import Crossed, Spread, rounding_of

Named = Group | str | Mapping[str, str] | None


@overload
def compare_layers(
    model: nn.Module | Saved,
    other: nn.Module | Saved,
    data: Iterable[Any] | None = None,
    *,
    other_data: Iterable[Any] | None = None,
    sites: str | Iterable[str] | None = None,
    other_sites: str | Iterable[str] | None = None,
    group: Named = None,
    measure: Measure = "cka",
    kernel: str | None = None,
    estimator: Literal["unbiased", "biased"] = "unbiased",
    folds: int = 5,
    whitening: float = 0.0,
    dissimilarity: Dissimilarity = "euclidean",
    correlation: Correlation = "pearson",
    neighbours: int = 10,
    width: float = 0.4,
    seed: int = 0,
) -> LayerMatrix: ...


@overload
def compare_layers(
    model: nn.Module | Saved,
    other: nn.Module | Saved,
    data: Iterable[Any] | None = None,
    *,
    other_data: Iterable[Any] | None = None,
    sites: str | Iterable[str] | None = None,
    other_sites: str | Iterable[str] | None = None,
    group: Named = None,
    measure: Sequence[Measure],
    kernel: str | None = None,
    estimator: Literal["unbiased", "biased"] = "unbiased",
    folds: int = 5,
    whitening: float = 0.0,
    dissimilarity: Dissimilarity = "euclidean",
    correlation: Correlation = "pearson",
    neighbours: int = 10,
    width: float = 0.4,
    seed: int = 0,
) -> LayerMatrices: ...


def compare_layers(
    model: nn.Module | Saved,
    other: nn.Module | Saved,
    data: Iterable[Any] | None = None,
    *,
    other_data: Iterable[Any] | None = None,
    sites: str | Iterable[str] | None = None,
    other_sites: str | Iterable[str] | None = None,
    group: Named = None,
    measure: Measure | Sequence[Measure] = "cka",
    kernel: str | None = None,
    estimator: Literal["unbiased", "biased"] = "unbiased",
    folds: int = 5,
    whitening: float = 0.0,
    dissimilarity: Dissimilarity = "euclidean",
    correlation: Correlation = "pearson",
    neighbours: int = 10,
    width: float = 0.4,
    seed: int = 0,
) -> LayerMatrix | LayerMatrices:
    """The similarity of every layer of a network with every layer of another, or of its own.

    Both networks run once over the data. Kernels of axes that change places are compared within
    batches and added up; elements of a group are fitted on some of the data and scored on the rest.
    Axes that never vary match nothing.

    Args:
        model: the one network, as for `probe`; or its activations by name, as for `similarity`.
        other: the other; the same one to compare a network with itself.
        data: for models: batches as for `probe`; several of them, for there to be error bars.
        other_data: the same examples as the other model takes them, where that differs.
        sites: names or globs of the first model; None for the sensible ones.
        other_sites: those of the second; None for the same.
        group: a group by name, or measure -> group; None for the one that all sites have. Where
            they have several that only move and multiply axes, as around the shortcuts of a ResNet,
            that is the smallest one that moves all axes and holds them. For activations that are
            given, None is the usual group of the measure.
        measure: as for `similarity`; several to have all of them from one pass.
        kernel: for CKA, as for `similarity`, like all that follows.
        estimator: for CKA.
        folds: into how many parts the data are divided; 1 to hold nothing out.
        whitening: for Procrustes.
        dissimilarity: for RSA and neighbours.
        correlation: for RSA.
        neighbours: how many.
        width: of a Gaussian kernel.
        seed: seeds the division into parts.

    Returns:
        A matrix; for several measures one for each, by name.

    Raises:
        DataError: for data that cannot be compared, or values that are NaN.
        SiteError: for a name that stands for no site.
        ValueError: if the sites have groups of several kinds, and none was named; or a measure does
            not belong to the group.

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
    if group is not None:
        instance("group", group, (Group, str, Mapping), "a group, its name, or measure -> group")
    names = texts("measure", measure, "names of measures")
    plans = [
        _plan(
            name, kernel, estimator, folds, seed, whitening=whitening, dissimilarity=dissimilarity,
            correlation=correlation, neighbours=neighbours, width=width, alone=len(names) == 1,
        )
        for name in names
    ]  # fmt: skip
    # An iterator of names can be read only once.
    sites = None if sites is None else texts("sites", sites, "names of sites")
    if other_sites is None:
        other_sites = sites
    else:
        other_sites = texts("other_sites", other_sites, "names of sites")
    if isinstance(model, nn.Module) and isinstance(other, nn.Module):
        if data is None:
            raise DataError("two models are given without data: give batches to run them on")
        tables = _of_models((model, other), data, other_data, (sites, other_sites), group, plans)
    elif isinstance(model, nn.Module) or isinstance(other, nn.Module):
        raise TypeError("one of the two is a model and the other is not: give two of one kind")
    elif data is not None or other_data is not None:
        raise ValueError("data belong to models; activations were given")
    else:
        own = chosen("the first", arrays_of("the first", model), sites)
        others = chosen("the second", arrays_of("the second", other), other_sites)
        tables = _of_saved(own, others, group, plans)
    results = LayerMatrices(
        (plan.measure, table.finish()) for plan, table in zip(plans, tables, strict=True)
    )
    return next(iter(results.values())) if isinstance(measure, str) else results


def _plan(
    measure: str,
    kernel: str | None,
    estimator: str,
    folds: int,
    seed: int,
    *,
    alone: bool,
    **options: Any,
) -> Plan:
    """The plan of one measure; of several, each takes the options that it knows."""
    if not alone:
        uses = {
            "procrustes": ("whitening",),
            "rsa": ("dissimilarity", "correlation"),
            "knn": ("dissimilarity", "neighbours"),
            "jaccard": ("dissimilarity", "neighbours"),
            "cka": ("width",) if kernel == "rbf" else (),
        }.get(measure, ())
        options = {name: value for name, value in options.items() if name in uses}
        kernel = kernel if measure == "cka" else None
    return plan_of(measure, "shape", kernel, estimator, folds, "ignore", seed, **options)


def _named(group: Named, measure: str) -> Group | str | None:
    return group.get(measure) if isinstance(group, Mapping) else group


def _of_models(
    models: tuple[nn.Module, nn.Module],
    data: Iterable[Any],
    other_data: Iterable[Any] | None,
    sites: tuple[str | tuple[str, ...] | None, str | tuple[str, ...] | None],
    group: Named,
    plans: Sequence[Plan],
) -> list["_Table | _States"]:
    subjects = both(models)
    tables: list[_Table | _States] = []
    with prepared(models[0], None), prepared(models[1], None):
        networks: tuple[Network, Network] | None = None
        for batch, second in paired(subjects, data, other_data):
            if networks is None:
                networks = (
                    Network(subjects[0], batch, sites[0]),
                    Network(subjects[1], second, sites[1]),
                )
                spots = networks[0].spots, networks[1].spots
                for plan in plans:
                    named = _named(group, plan.measure)
                    groups, notes = _groups(*spots, named)
                    kind = _Table if _in_batches(plan) else _States
                    tables.append(kind(plan, groups, notes))
            held, others = networks[0].run(batch), networks[1].run(second)
            placed = next((spot.rows for spot in networks[0].spots.values()), None)
            for plan, table in zip(plans, tables, strict=True):
                fold = fold_of(batch, folds=plan.folds, seed=plan.seed, rows=placed)
                table.see(held, others, fold)
    return tables


def _in_batches(plan: Plan) -> bool:
    """True for what is gathered of all pairs of layers together, batch by batch."""
    return (plan.measure == "procrustes" and not plan.whitening) or (
        plan.measure == "cka" and not plan.rbf
    )


def _of_saved(
    own: dict[str, Caught], others: dict[str, Caught], group: Named, plans: Sequence[Plan]
) -> list["_Table | _States"]:
    tables: list[_Table | _States] = []
    count = len(next(iter(own.values())).values)
    require_same_samples(count, len(next(iter(others.values())).values))
    for plan in plans:
        named = _named(group, plan.measure) or plan.usual_group
        groups = {
            (a, b): groups_for(named, x.values.shape[2], y.values.shape[2])
            for a, x in own.items()
            for b, y in others.items()
        }
        table = _States(plan, groups, [], whole=True)
        table.see(own, others, folds_of(count, folds=plan.folds, seed=plan.seed))
        tables.append(table)
    return tables


class _States:
    """What was gathered of all pairs, each by itself.

    Args:
        plan: the measure.
        groups: the groups of every pair.
        notes: what a reader must know.
        whole: True if all examples come at once.
    """

    def __init__(
        self,
        plan: Plan,
        groups: Mapping[tuple[str, str], tuple[Group, Group]],
        notes: Sequence[str],
        *,
        whole: bool = False,
    ) -> None:
        self.notes = [*notes]
        self.states = {key: State(plan, pair, whole=whole) for key, pair in groups.items()}

    def see(self, caught: dict[str, Caught], others: dict[str, Caught], fold: Tensor) -> None:
        """Adds one batch."""
        for (a, b), state in self.states.items():
            common_space(caught[a], others[b])
            state.see(caught[a], others[b], fold)

    def finish(self) -> LayerMatrix:
        """The matrix."""
        found = {key: state.finish(key) for key, state in self.states.items()}
        rows, columns = (tuple(dict.fromkeys(key[side] for key in found)) for side in (0, 1))
        one = next(iter(found.values()))
        values = np.array([[found[a, b].similarity for b in columns] for a in rows])
        errors = np.array([[found[a, b].std_error for b in columns] for a in rows])
        told = dict.fromkeys(note for each in found.values() for note in each.notes)
        kernel = next(iter(self.states.values())).kernel
        return LayerMatrix(
            sites=rows,
            other_sites=columns,
            similarity=values,
            std_error=errors,
            measure=one.measure if kernel is None else f"{kernel.name.lower()} CKA",
            group=one.group.name,
            n_examples=one.n_examples,
            notes=(*self.notes, *told),
        )


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
        groups: the groups of every pair.
        notes: what a reader must know.
    """

    def __init__(
        self,
        plan: Plan,
        groups: Mapping[tuple[str, str], tuple[Group, Group]],
        notes: Sequence[str],
    ) -> None:
        self.plan, self.groups, self.notes = plan, groups, notes
        self.batches = self.examples = 0
        one = next(iter(self.groups.values()))[0]
        self.name, self.rescales = one.name, one.rescales
        self.kernel = plan.kernel_for(one) if plan.measure == "cka" else None
        self.pairs = {
            key: _Pair([Crossed.empty(x.dim, y.dim) for _ in range(plan.folds)], [])
            for key, (x, y) in self.groups.items()
        }

    def see(self, caught: dict[str, Caught], others: dict[str, Caught], fold: Tensor) -> None:
        """Adds one batch."""
        del fold  # whole batches are held out
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
        rows, columns = (tuple(dict.fromkeys(key[side] for key in self.groups)) for side in (0, 1))
        values = np.full((len(rows), len(columns)), math.nan)
        errors = values.copy()
        for i, a in enumerate(rows):
            for j, b in enumerate(columns):
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
            sites=rows,
            other_sites=columns,
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


def _groups(
    spots: dict[str, Spot], others: dict[str, Spot], group: Group | str | None
) -> tuple[dict[tuple[str, str], tuple[Group, Group]], list[str]]:
    """The groups of every pair of sites, and what a reader must know of them."""
    own = [spot.symmetry.group for spot in (*spots.values(), *others.values())]
    notes: list[str] = []
    several = len({type(found) for found in own}) > 1
    if group is None and several and all(on_axes(found) for found in own):
        group = axes_group(own, 1).name
        notes.append(
            f"The sites have several groups; they were compared up to {group}, which holds all."
        )
    found = {
        (a, b): _kin(first, second, group)
        for a, first in spots.items()
        for b, second in others.items()
    }
    return found, notes


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
