"""Every layer of one network against every layer of another, and several networks at one layer."""

import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, overload

import numpy as np
from torch import nn

from basis_probe.algebra.groups import Group, require_group
from basis_probe.arguments import flag, instance, texts
from basis_probe.compare.alignments import axes_group, on_axes, require_kin
from basis_probe.compare.gather import Gathered, gathering
from basis_probe.compare.plan import Measure, Plan, groups_for, groups_of, plan_of
from basis_probe.compare.running import (
    Caught,
    Spot,
    Together,
    see_all,
    stopped_early,
    together,
)
from basis_probe.compare.samples import Correlation, Dissimilarity
from basis_probe.compare.saved import (
    Matrix,
    Saved,
    arrays_of,
    caught,
    checked,
    chosen,
    folds_of,
    require_same_samples,
)
from basis_probe.devices import on_own_device
from basis_probe.errors import DataError
from basis_probe.interrupts import guarded
from basis_probe.results.similarity import LayerMatrices, LayerMatrix, NetworkMatrix, Similarity

Named = Group | str | Mapping[str, str] | None

Pairs = dict[tuple[str, str], Gathered]
"""What is gathered of every pair of layers, or of networks."""

# Every two layers are compared: among so many samples, where it is pairs of samples.
_MOST_SAMPLES = 1024

# 95 of 100 normal values lie so many standard errors from the mean, or less.
_WIDE = 1.96


@overload
def compare_layers(
    model: nn.Module | Saved, other: nn.Module | Saved, data: Iterable[Any] | None = None, *,
    other_data: Iterable[Any] | None = None, sites: str | Iterable[str] | None = None,
    other_sites: str | Iterable[str] | None = None, group: Named = None,
    measure: Measure = "cka", kernel: str | None = None,
    estimator: Literal["unbiased", "biased"] = "unbiased", folds: int = 5,
    whitening: float = 0.0, share: float = 0.5,
    dissimilarity: Dissimilarity = "euclidean", correlation: Correlation = "pearson",
    neighbours: int = 10, width: float = 0.4, seed: int = 0, progress: bool = True,
) -> LayerMatrix: ...  # fmt: skip


@overload
def compare_layers(
    model: nn.Module | Saved, other: nn.Module | Saved, data: Iterable[Any] | None = None, *,
    other_data: Iterable[Any] | None = None, sites: str | Iterable[str] | None = None,
    other_sites: str | Iterable[str] | None = None, group: Named = None,
    measure: Sequence[Measure], kernel: str | None = None,
    estimator: Literal["unbiased", "biased"] = "unbiased", folds: int = 5,
    whitening: float = 0.0, share: float = 0.5,
    dissimilarity: Dissimilarity = "euclidean", correlation: Correlation = "pearson",
    neighbours: int = 10, width: float = 0.4, seed: int = 0, progress: bool = True,
) -> LayerMatrices: ...  # fmt: skip


@on_own_device
def compare_layers(
    model: nn.Module | Saved, other: nn.Module | Saved, data: Iterable[Any] | None = None, *,
    other_data: Iterable[Any] | None = None, sites: str | Iterable[str] | None = None,
    other_sites: str | Iterable[str] | None = None, group: Named = None,
    measure: Measure | Sequence[Measure] = "cka", kernel: str | None = None,
    estimator: Literal["unbiased", "biased"] = "unbiased", folds: int = 5,
    whitening: float = 0.0, share: float = 0.5,
    dissimilarity: Dissimilarity = "euclidean", correlation: Correlation = "pearson",
    neighbours: int = 10, width: float = 0.4, seed: int = 0, progress: bool = True,
) -> LayerMatrix | LayerMatrices:  # fmt: skip
    """The similarity of every layer of a network with every layer of another, or of its own.

    Both networks run once over the data. Kernels are compared within batches and added up; what is
    fitted is scored on examples that were held out. Axes that never vary match nothing. Ctrl-C
    after a batch gives the matrix of the batches before it, and its notes say so.

    Args:
        model: the one network, as for `probe`; or its activations by name, as for `similarity`.
        other: the other; the same one to compare a network with itself.
        data: for models: batches as for `probe`; for kernels several, for there to be error bars.
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
        share: for partial matching.
        dissimilarity: for RSA and neighbours.
        correlation: for RSA.
        neighbours: how many.
        width: of a Gaussian kernel.
        seed: seeds the division into parts.
        progress: whether to show a progress bar while models run.

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
    progress = bool(flag("progress", progress))
    names = texts("measure", measure, "names of measures")
    plans = [
        plan_of(
            name, kernel=kernel, estimator=estimator, folds=folds, constant="ignore", seed=seed,
            several=len(names) > 1, whitening=whitening, share=share, dissimilarity=dissimilarity,
            correlation=correlation, neighbours=neighbours, width=width,
        )
        for name in names
    ]  # fmt: skip
    # An iterator of names can be read only once.
    sites = None if sites is None else texts("sites", sites, "names of sites")
    if other_sites is None:
        other_sites = sites
    else:
        other_sites = texts("other_sites", other_sites, "names of sites")
    plans = [dataclasses.replace(plan, most=_MOST_SAMPLES) for plan in plans]
    tables: list[Pairs] = []
    notes: list[list[str]] = [[] for _ in plans]
    if isinstance(model, nn.Module) and isinstance(other, nn.Module):
        if data is None:
            raise DataError("two models are given without data: give batches to run them on")

        def see(run: Together) -> None:
            networks, batch, held = run
            if not tables:
                made, told = _of_sites(networks[0].spots, networks[1].spots, group, plans)
                tables.extend(made)
                notes[:] = told
            fold = networks[0].fold_of(batch, folds=folds, seed=seed)
            for pairs in tables:
                for (a, b), gathered in pairs.items():
                    gathered.see(held[0][a], held[1][b], fold)

        with guarded():
            places = (sites, other_sites)
            runs = together((model, other), data, other_data, places, progress=progress)
            stopped = see_all(runs, see)
            notes = [[*told, *stopped] for told in notes]
            with stopped_early(stopped):
                return _layer_matrices(plans, tables, notes, several=measure)
    elif isinstance(model, nn.Module) or isinstance(other, nn.Module):
        raise TypeError("one of the two is a model and the other is not: give two of one kind")
    elif data is not None or other_data is not None:
        raise ValueError("data belong to models; activations were given")
    else:
        own = chosen("the first", arrays_of("the first", model), sites)
        others = chosen("the second", arrays_of("the second", other), other_sites)
        for plan in plans:
            tables.append(_of_arrays(own, others, itertools.product(own, others), group, plan))
    return _layer_matrices(plans, tables, notes, several=measure)


def _layer_matrices(
    plans: Sequence[Plan],
    tables: Sequence[Pairs],
    notes: Sequence[Sequence[str]],
    *,
    several: Measure | Sequence[Measure],
) -> LayerMatrix | LayerMatrices:
    """What was asked for: one matrix for one measure by name, or all of them."""
    results = LayerMatrices(
        (plan.measure, _layer_matrix(pairs, told))
        for plan, pairs, told in zip(plans, tables, notes, strict=True)
    )
    return next(iter(results.values())) if isinstance(several, str) else results


@on_own_device
def compare_networks(
    networks: Mapping[str, nn.Module | Matrix], data: Iterable[Any] | None = None, *,
    sites: str | Mapping[str, str] | None = None, group: Group | str | None = None,
    measure: Measure = "procrustes", kernel: str | None = None,
    estimator: Literal["unbiased", "biased"] = "unbiased", folds: int = 5,
    whitening: float = 0.0, share: float = 0.5,
    dissimilarity: Dissimilarity = "euclidean", correlation: Correlation = "pearson",
    neighbours: int = 10, width: float = 0.4, seed: int = 0, progress: bool = True,
) -> NetworkMatrix:  # fmt: skip
    """How far every two of several networks are apart, at one layer of each.

    All of them run once over the data. What is fitted is scored on examples that were held out.
    Ctrl-C after a batch gives the matrix of the batches before it, and its notes say so.

    Args:
        networks: name -> activations of the same samples, [samples, axes] or feature maps
            [samples, channels, *space]; or name -> model, as for `probe`.
        data: for models: batches as for `probe`; every network sees each of them.
        sites: for models: the place, the same in all, or name -> place.
        group: as for `similarity`.
        measure: one that is the same for both orders of two networks: not "regression" or "pwcca".
        kernel: as for `similarity`, like all that follows.
        estimator: for CKA.
        folds: into how many parts the examples are divided; 1 to hold nothing out.
        whitening: for Procrustes.
        share: for partial matching.
        dissimilarity: for RSA and neighbours.
        correlation: for RSA.
        neighbours: how many.
        width: of a Gaussian kernel.
        seed: seeds the division into parts.
        progress: whether to show a progress bar while models run.

    Raises:
        DataError: for data that cannot be compared.
        SiteError: for a name that stands for no site.
        ValueError: for fewer than two networks, or a measure that does not belong to the group.

    Example:
        >>> import torch, basis_probe as bp
        >>> generator = torch.Generator().manual_seed(0)
        >>> x, y = (torch.randn(200, 6, generator=generator) for _ in range(2))
        >>> found = bp.compare_networks({"x": x, "y": y, "twice x": 2 * x})
        >>> found.matrix.round(1)
        array([[0. , 1.4, 0. ],
               [1.4, 0. , 1.4],
               [0. , 1.4, 0. ]])
    """
    plan = plan_of(
        measure, kernel=kernel, estimator=estimator, folds=folds, constant="ignore", seed=seed,
        whitening=whitening, share=share, dissimilarity=dissimilarity, correlation=correlation,
        neighbours=neighbours, width=width,
    )  # fmt: skip
    if measure in ("regression", "pwcca"):
        raise ValueError(
            f"measure={measure!r} is not the same for both orders of two networks: compare them "
            "one by one with similarity, or give another measure"
        )
    progress = bool(flag("progress", progress))
    require_group("group", group)
    if sites is not None:
        instance("sites", sites, (str, Mapping), "the place, or name -> place")
    if not isinstance(networks, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f"networks is a {type(networks).__name__}: give a dict from names to activations or "
            "models"
        )
    if len(networks) < 2:
        raise ValueError(f"{len(networks)} networks: give at least two, by name")
    given = {str(name): value for name, value in networks.items()}
    models = {name: value for name, value in given.items() if isinstance(value, nn.Module)}
    two = itertools.combinations(given, 2)
    if not models:
        if data is not None or sites is not None:
            raise ValueError("data and sites belong to models; activations were given")
        held = {name: caught(checked(name, value)) for name, value in given.items()}
        pairs = _of_arrays(held, held, two, group, plan)
    elif len(models) < len(given):
        odd = next(name for name in given if name not in models)
        raise TypeError(f"{odd!r} is no model and others are: give models, or activations of all")
    elif data is None:
        raise DataError("models are given without data: give batches to run them on")
    elif sites is None:
        raise ValueError("models are given without sites: name the place to compare them at")
    else:
        places = [sites if isinstance(sites, str) else sites.get(name) for name in models]
        if None in places:
            missing = list(models)[places.index(None)]
            raise ValueError(f"sites names no place in {missing!r}: give one for every network")
        for place in places:
            instance("one of sites", place, str, "the name of a place")
        pairs = Pairs()

        def see(run: Together) -> None:
            several, batch, caught_at = run
            ones = dict(zip(models, (network.one() for network in several), strict=True))
            if not pairs:
                pairs.update(
                    ((a, b), gathering(plan, groups_of(ones[a][1], ones[b][1], group)))
                    for a, b in two
                )
            held = {name: at[ones[name][0]] for name, at in zip(models, caught_at, strict=True)}
            fold = several[0].fold_of(batch, folds=folds, seed=seed)
            for (a, b), gathered in pairs.items():
                gathered.see(held[a], held[b], fold)

        with guarded():
            runs = together([*models.values()], data, None, places, progress=progress)
            stopped = see_all(runs, see)
            with stopped_early(stopped):
                return _network_matrix(tuple(given), pairs, stopped)
    return _network_matrix(tuple(given), pairs)


def _of_arrays(
    own: Mapping[str, Caught],
    others: Mapping[str, Caught],
    pairs: Iterable[tuple[str, str]],
    group: Named,
    plan: Plan,
) -> Pairs:
    """What is gathered of pairs of activations, which are all there are."""
    count = len(next(iter(own.values())).values)
    for one in (*own.values(), *others.values()):
        require_same_samples(count, len(one.values))
    named = _named(group, plan) or plan.usual_group
    fold = folds_of(count, folds=plan.folds, seed=plan.seed)
    found: Pairs = {}
    for a, b in pairs:
        x, y = own[a], others[b]
        groups = groups_for(named, x.values.shape[2], y.values.shape[2])
        found[a, b] = gathering(plan, groups, whole=True)
        found[a, b].see(x, y, fold)
    return found


def _of_sites(
    spots: dict[str, Spot], others: dict[str, Spot], group: Named, plans: Sequence[Plan]
) -> tuple[list[Pairs], list[list[str]]]:
    """What gathers for every pair of sites, by measure, and what must be known of the groups."""
    own = [spot.symmetry.group for spot in (*spots.values(), *others.values())]
    notes: list[list[str]] = [[] for _ in plans]
    tables: list[Pairs] = []
    for plan, told in zip(plans, notes, strict=True):
        named = _named(group, plan)
        several = len({type(found) for found in own}) > 1
        if named is None and several and all(on_axes(found) for found in own):
            named = axes_group(own, 1).name
            told.append(
                f"The sites have several groups; they were compared up to {named}, which holds all."
            )
        tables.append(
            {
                (a, b): gathering(plan, _kin(first, second, named))
                for a, first in spots.items()
                for b, second in others.items()
            }
        )
    return tables, notes


def _named(group: Named, plan: Plan) -> Group | str | None:
    return group.get(plan.measure) if isinstance(group, Mapping) else group


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


def _finished(pairs: Pairs) -> dict[tuple[str, str], Similarity]:
    """The result of every pair, or an error that names it."""
    found: dict[tuple[str, str], Similarity] = {}
    for pair, gathered in pairs.items():
        try:
            found[pair] = gathered.finish(pair)
        except DataError as error:
            raise DataError(f"{pair[0]} and {pair[1]}: {error}") from error
    return found


def _layer_matrix(pairs: Pairs, notes: Sequence[str]) -> LayerMatrix:
    found = _finished(pairs)
    rows, columns = (tuple(dict.fromkeys(pair[side] for pair in found)) for side in (0, 1))
    one = next(iter(found.values()))
    return LayerMatrix(
        sites=rows,
        other_sites=columns,
        similarity=np.array([[found[a, b].similarity for b in columns] for a in rows]),
        std_error=np.array([[found[a, b].std_error for b in columns] for a in rows]),
        measure=next(iter(pairs.values())).name,
        group=one.group.name,
        n_examples=one.n_examples,
        notes=(*notes, *_told(found)),
    )


def _network_matrix(
    names: tuple[str, ...], pairs: Pairs, notes: tuple[str, ...] = ()
) -> NetworkMatrix:
    found = _finished(pairs)
    one, gathered = next(iter(found.values())), next(iter(pairs.values()))

    def table(of: Callable[[Similarity], float], own: float) -> np.ndarray:
        made = np.full((len(names), len(names)), own)
        for (a, b), each in found.items():
            i, j = names.index(a), names.index(b)
            made[i, j] = made[j, i] = of(each)
        return made

    def edge(sign: float) -> Callable[[Similarity], float]:
        def of(each: Similarity) -> float:
            if math.isnan(each.std_error):
                return math.nan
            moved_by = each.similarity + sign * _WIDE * each.std_error
            return gathered.distance(min(1.0, max(-1.0, moved_by)))

        return of

    return NetworkMatrix(
        names=names,
        matrix=table(lambda each: each.distance, 0.0),
        low=table(edge(1.0), 0.0),
        high=table(edge(-1.0), 0.0),
        similarity=table(lambda each: each.similarity, 1.0),
        std_error=table(lambda each: each.std_error, 0.0),
        measure=one.measure,
        group=one.group.name,
        formula=one.formula,
        n_examples=one.n_examples,
        notes=(*notes, *_told(found)),
    )


def _told(found: Mapping[tuple[str, str], Similarity]) -> tuple[str, ...]:
    """What is said of all pairs once, and of some with the first of them."""
    said: dict[str, list[tuple[str, str]]] = {}
    words: dict[str, str] = {}
    for pair, each in found.items():
        for note in each.notes:
            # The same may be said with other numbers.
            key = re.sub(r"[\d,]+", "0", note)
            words.setdefault(key, note)
            said.setdefault(key, []).append(pair)
    notes: list[str] = []
    for key, pairs in said.items():
        note = words[key]
        same = all(note in found[pair].notes for pair in pairs)
        if len(pairs) == len(found) and same:
            notes.append(note)
            continue
        more = len(pairs) - 1
        alike = "" if not more else f" The like holds of {more} more of {len(found)} pairs."
        notes.append(f"{' and '.join(pairs[0])}: {note}{alike}")
    return tuple(notes)
