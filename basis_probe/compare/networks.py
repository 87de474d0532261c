"""Several networks against each other, at one layer of each."""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import numpy as np
from torch import nn

from basis_probe.algebra.groups import Group
from basis_probe.compare.running import Caught, Network, fold_of, moved
from basis_probe.compare.samples import Correlation, Dissimilarity
from basis_probe.compare.saved import Matrix, caught, checked, folds_of
from basis_probe.compare.similarity import (
    Measure,
    Plan,
    State,
    groups_for,
    groups_of,
    plan_of,
    require_same_samples,
)
from basis_probe.errors import DataError
from basis_probe.model.network import prepared, recognise
from basis_probe.results.similarity import NetworkMatrix, Similarity
from basis_probe.run.read import batches_of

# 95 of 100 normal values lie so many standard errors from the mean, or less.
_WIDE = 1.96


def compare_networks(
    networks: Mapping[str, nn.Module | Matrix],
    data: Iterable[Any] | None = None,
    *,
    sites: str | Mapping[str, str] | None = None,
    group: Group | str | None = None,
    measure: Measure = "procrustes",
    kernel: str | None = None,
    estimator: Literal["unbiased", "biased"] = "unbiased",
    folds: int = 5,
    whitening: float = 0.0,
    dissimilarity: Dissimilarity = "euclidean",
    correlation: Correlation = "pearson",
    neighbours: int = 10,
    width: float = 0.4,
    seed: int = 0,
) -> NetworkMatrix:
    """How far every two of several networks are apart, at one layer of each.

    All of them run once over the data. What is fitted is scored on examples that were held out.

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
        dissimilarity: for RSA and neighbours.
        correlation: for RSA.
        neighbours: how many.
        width: of a Gaussian kernel.
        seed: seeds the division into parts.

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
    if measure in ("regression", "pwcca"):
        raise ValueError(
            f"measure={measure!r} is not the same for both orders of two networks: compare them "
            "one by one with similarity, or give another measure"
        )
    plan = plan_of(
        measure, "shape", kernel, estimator, folds, "ignore", seed, whitening=whitening,
        dissimilarity=dissimilarity, correlation=correlation, neighbours=neighbours, width=width,
    )  # fmt: skip
    if not isinstance(networks, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f"networks is a {type(networks).__name__}: give a dict from names to activations or "
            "models"
        )
    if len(networks) < 2:
        raise ValueError(f"{len(networks)} networks: give at least two, by name")
    given = {str(name): value for name, value in networks.items()}
    models = {name: value for name, value in given.items() if isinstance(value, nn.Module)}
    if not models:
        if data is not None or sites is not None:
            raise ValueError("data and sites belong to models; activations were given")
        states = _of_arrays(given, group, plan)
    elif len(models) < len(given):
        odd = next(name for name in given if name not in models)
        raise TypeError(f"{odd!r} is no model and others are: give models, or activations of all")
    elif data is None:
        raise DataError("models are given without data: give batches to run them on")
    elif sites is None:
        raise ValueError("models are given without sites: name the place to compare them at")
    else:
        places = {name: sites if isinstance(sites, str) else sites.get(name) for name in models}
        states = _of_models(models, data, places, group, plan)
    return _matrix(tuple(given), states)


def _of_arrays(
    given: Mapping[str, Any], group: Group | str | None, plan: Plan
) -> dict[tuple[str, str], State]:
    held = {name: caught(checked(name, value)) for name, value in given.items()}
    count = len(next(iter(held.values())).values)
    for one in held.values():
        require_same_samples(count, len(one.values))
    named = group or plan.usual_group
    dims = {name: one.values.shape[2] for name, one in held.items()}
    states = {
        (a, b): State(plan, groups_for(named, dims[a], dims[b]), whole=True)
        for a, b in itertools.combinations(held, 2)
    }
    fold = folds_of(count, folds=plan.folds, seed=plan.seed)
    for (a, b), state in states.items():
        state.see(held[a], held[b], fold)
    return states


def _of_models(
    models: Mapping[str, nn.Module],
    data: Iterable[Any],
    places: Mapping[str, str | None],
    group: Group | str | None,
    plan: Plan,
) -> dict[tuple[str, str], State]:
    missing = [name for name, place in places.items() if place is None]
    if missing:
        raise ValueError(f"sites names no place in {missing[0]!r}: give one for every network")
    subjects = {name: recognise(model) for name, model in models.items()}
    watched: dict[str, Network] = {}
    states: dict[tuple[str, str], State] = {}
    with contextlib.ExitStack() as stack:
        for model in models.values():
            stack.enter_context(prepared(model, None))
        for batch in batches_of(data, next(iter(subjects.values()))):
            own = {name: moved(batch, subject.device) for name, subject in subjects.items()}
            if not watched:
                watched = {
                    name: Network(subject, own[name], places[name])
                    for name, subject in subjects.items()
                }
                spots = {name: network.one()[1] for name, network in watched.items()}
                states = {
                    (a, b): State(plan, groups_of(spots[a], spots[b], group))
                    for a, b in itertools.combinations(watched, 2)
                }
            held: dict[str, Caught] = {
                name: next(iter(network.run(own[name]).values()))
                for name, network in watched.items()
            }
            placed = next(iter(watched.values())).one()[1].rows
            fold = fold_of(batch, folds=plan.folds, seed=plan.seed, rows=placed)
            for (a, b), state in states.items():
                state.see(held[a], held[b], fold)
    if not states:
        raise DataError("the data hold no batch: give at least one, better several")
    return states


def _matrix(names: tuple[str, ...], states: Mapping[tuple[str, str], State]) -> NetworkMatrix:
    found = {pair: state.finish(pair) for pair, state in states.items()}
    one = next(iter(found.values()))

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
            return next(iter(states.values())).distance(min(1.0, max(-1.0, moved_by)))

        return of

    notes = dict.fromkeys(note for each in found.values() for note in each.notes)
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
        notes=tuple(notes),
    )
