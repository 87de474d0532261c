"""How alike two networks are at a place, up to the changes of basis allowed there."""

import dataclasses
from collections.abc import Iterable
from typing import Any, Literal, overload

from torch import nn

from basis_probe.algebra.groups import Group, require_group
from basis_probe.arguments import flag, instance
from basis_probe.compare.gather import Gathered, gathering
from basis_probe.compare.matching import Constant
from basis_probe.compare.plan import (
    Measure,
    Normalization,
    Plan,
    groups_for,
    groups_of,
    plan_of,
)
from basis_probe.compare.running import Caught, Together, see_all, stopped_early, together
from basis_probe.compare.samples import Correlation, Dissimilarity
from basis_probe.compare.saved import (
    Matrix,
    Saved,
    arrays_of,
    caught,
    checked,
    chosen,
    folds_of,
    is_saved,
    require_same_samples,
    same_space,
)
from basis_probe.devices import on_own_device
from basis_probe.errors import DataError, SiteError
from basis_probe.interrupts import guarded
from basis_probe.results.similarity import Similarities, Similarity


@overload
def similarity(
    x: Matrix, y: Matrix, data: None = None, *,
    group: Group | str | None = None, measure: Measure = "procrustes",
    normalization: Normalization = "shape", kernel: str | None = None,
    estimator: Literal["unbiased", "biased"] = "unbiased", folds: int = 5,
    constant: Constant | None = None, seed: int = 0, whitening: float = 0.0, share: float = 0.5,
    dissimilarity: Dissimilarity = "euclidean", correlation: Correlation = "pearson",
    neighbours: int = 10, width: float = 0.4, shuffles: int = 0, progress: bool = True,
) -> Similarity: ...  # fmt: skip


@overload
def similarity(
    x: Saved | nn.Module, y: Saved | nn.Module, data: Iterable[Any] | None = None, *, site: str,
    other_site: str | None = None, other_data: Iterable[Any] | None = None,
    group: Group | str | None = None, measure: Measure = "procrustes",
    normalization: Normalization = "shape", kernel: str | None = None,
    estimator: Literal["unbiased", "biased"] = "unbiased", folds: int = 5,
    constant: Constant | None = None, seed: int = 0, whitening: float = 0.0, share: float = 0.5,
    dissimilarity: Dissimilarity = "euclidean", correlation: Correlation = "pearson",
    neighbours: int = 10, width: float = 0.4, shuffles: int = 0, progress: bool = True,
) -> Similarity: ...  # fmt: skip


@overload
def similarity(
    x: Saved | nn.Module, y: Saved | nn.Module, data: Iterable[Any] | None = None, *,
    site: None = None, other_site: None = None, other_data: Iterable[Any] | None = None,
    group: Group | str | None = None, measure: Measure = "procrustes",
    normalization: Normalization = "shape", kernel: str | None = None,
    estimator: Literal["unbiased", "biased"] = "unbiased", folds: int = 5,
    constant: Constant | None = None, seed: int = 0, whitening: float = 0.0, share: float = 0.5,
    dissimilarity: Dissimilarity = "euclidean", correlation: Correlation = "pearson",
    neighbours: int = 10, width: float = 0.4, shuffles: int = 0, progress: bool = True,
) -> Similarities: ...  # fmt: skip


@on_own_device
def similarity(
    x: Matrix | Saved | nn.Module,
    y: Matrix | Saved | nn.Module,
    data: Iterable[Any] | None = None,
    *,
    site: str | None = None,
    other_site: str | None = None,
    other_data: Iterable[Any] | None = None,
    group: Group | str | None = None,
    measure: Measure = "procrustes",
    normalization: Normalization = "shape",
    kernel: str | None = None,
    estimator: Literal["unbiased", "biased"] = "unbiased",
    folds: int = 5,
    constant: Constant | None = None,
    seed: int = 0,
    whitening: float = 0.0,
    share: float = 0.5,
    dissimilarity: Dissimilarity = "euclidean",
    correlation: Correlation = "pearson",
    neighbours: int = 10,
    width: float = 0.4,
    shuffles: int = 0,
    progress: bool = True,
) -> Similarity | Similarities:
    """How alike two networks are, where their axes are only defined up to a group.

    An element that is fitted is scored on examples that it was not fitted on: a permutation that is
    fitted and scored on the same samples flatters. Feature maps have channels as axes and positions
    as samples; the larger of two maps is averaged down to the size of the smaller. Different widths
    are compared by a partial turn, or by soft matching where axes change places.

    Args:
        x: a matrix [samples, axes] or feature maps [samples, channels, *space], numpy or torch;
            names with several of these, as a dict, an ActivationCache, or the path of a
            `.safetensors` or `.npz` file; or a model as for `probe`.
        y: the same samples of the other network, or the other model.
        data: for models, batches as for `probe`; both networks see each batch in turn.
        site: the place in the first model, or the name of the activations; None for every sensible
            place that both have.
        other_site: the place in the second model; None for the same name.
        other_data: the same examples as the second model takes them, where that differs.
        group: a group, or its name; None for the one of the site, and for matrices "orthogonal",
            or "general-linear" for CCA and regression, "signed-permutation" for PWCCA and
            "positive-monomial" for partial matching.
        measure: "procrustes" for any group; "cka" for groups of rotations, permutations and
            monomial matrices; "cca" and "regression" for the general linear group; "svcca" for
            groups that rescale nothing; "pwcca" for those that only change places and signs of
            axes; "partial" for those that change places, signs and scales of axes: the mean
            correlation of the axes that match best, reversed ones too where the group has signs;
            "rsa", "knn" (mutual nearest neighbours) and "jaccard" (the same over the union)
            for groups of rotations, permutations and monomial matrices, axes brought to unit size
            where the group rescales them.
        normalization: "shape" for what the group leaves of centred data of unit size; "paper" for
            the formulas of Godfrey et al. 2022 as they stand: nothing is held out, axes are not
            centred for Procrustes, smaller maps and networks are enlarged by repetition and zeros,
            and CKA brings every axis to unit size whatever the group.
        kernel: for CKA: "linear", "rbf", "max", "median" or "smooth"; None for linear where axes
            may be turned and for max, which the paper uses, where they may not. All of them are
            blind to signs of axes. Max, median and smooth take inner products over positions,
            linear and rbf positions as samples.
        estimator: of the independence criterion in CKA.
        folds: into how many parts the examples are divided; 1 to hold nothing out.
        constant: "refuse" or "ignore" axes that never vary, where their scale would be needed; None
            to refuse them in matrices and to ignore them in models, where some neurons are dead.
        seed: seeds the division into parts, and shuffles.
        whitening: for Procrustes up to turns: how far both are brought towards white axes first,
            from 0 (not at all) to below 1 (all of the way is CCA).
        share: for partial matching: of how many varying axes of either side, 1 for all. By chance
            the best of them correlate the more the fewer they are: give shuffles.
        dissimilarity: for RSA and neighbours, of two samples: "euclidean", "cosine", or for RSA
            "correlation".
        correlation: for RSA, of the two tables: "pearson" or "spearman".
        neighbours: how many nearest neighbours a sample has.
        width: of the Gaussian kernel, as a share of the median distance of two samples.
        shuffles: how often the examples of the second are put in another order, to say what chance
            reaches; 0 for no chance level. Batches of a few examples cannot be shuffled.
        progress: whether to show a progress bar while models run.

    Returns:
        One result; for models without a site one for every site, by name. Its similarity is NaN,
        and its notes say why, where hardly any samples differ and any two networks would be alike.
        Ctrl-C after a batch gives the result of the batches before it, and its notes say so.

    Raises:
        DataError: for different samples in the two, too few of them, NaN, constant axes, or data
            that come in another order to the second model.
        SiteError: for a name that stands for no site.
        ValueError: for a group or measure that does not fit.

    Example:
        >>> import torch, basis_probe as bp
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = torch.randn(500, 6, generator=generator).relu()
        >>> y = bp.groups.PositiveMonomial(6).draw(generator).act(x)
        >>> found = bp.similarity(x, y, group="positive-monomial")
        >>> round(found.similarity, 6), found.alignment.element.__class__.__name__
        (1.0, 'MonomialElement')
        >>> bool(bp.similarity(x, y, group="permutation").similarity < 0.999)
        True
    """
    if constant is None:
        constant = "ignore" if isinstance(x, nn.Module) else "refuse"
    plan = plan_of(
        measure, normalization=normalization, kernel=kernel, estimator=estimator, folds=folds,
        constant=constant, seed=seed, whitening=whitening, share=share,
        dissimilarity=dissimilarity, correlation=correlation, neighbours=neighbours, width=width,
        shuffles=shuffles,
    )  # fmt: skip
    progress = bool(flag("progress", progress))
    require_group("group", group)
    for name, place in (("site", site), ("other_site", other_site)):
        if place is not None:
            instance(name, place, str, "the name of one site, or None")
    if isinstance(x, nn.Module) and isinstance(y, nn.Module):
        if data is None:
            raise DataError("two models are given without data: give batches to run them on")
        return _of_models((x, y), data, other_data, site, other_site, group, plan, progress)
    if isinstance(x, nn.Module) or isinstance(y, nn.Module):
        raise TypeError("one of the two is a model and the other is not: give two of one kind")
    if data is not None or other_data is not None:
        raise ValueError("data and sites belong to models; two matrices were given")
    if is_saved(x) and is_saved(y):
        return _of_saved(x, y, site, other_site, group, plan)
    if site is not None or other_site is not None:
        raise ValueError("data and sites belong to models; two matrices were given")
    own, other = checked("x", x), checked("y", y)
    require_same_samples(len(own), len(other))
    own, other = same_space(own, other, enlarge=plan.normalization == "paper")
    return of_caught(caught(own), caught(other), ("", ""), group, plan)


def of_caught(
    x: Caught, y: Caught, names: tuple[str, str], group: Group | str | None, plan: Plan
) -> Similarity:
    """The result for the same samples of both, which are all there are."""
    dims = x.values.shape[2], y.values.shape[2]
    gathered = gathering(plan, groups_for(group or plan.usual_group, *dims), whole=True)
    gathered.see(x, y, folds_of(len(x.values), folds=plan.folds, seed=plan.seed))
    return gathered.finish(names)


def _of_saved(
    x: Any,
    y: Any,
    site: str | None,
    other_site: str | None,
    group: Group | str | None,
    plan: Plan,
) -> Similarity | Similarities:
    own, other = arrays_of("x", x), arrays_of("y", y)
    if site is not None:
        own = chosen("x", own, site)
        other = chosen("y", other, other_site or site)
        if len(own) != 1 or len(other) != 1:
            raise SiteError(f"{len(own)} and {len(other)} names fit where one is needed: name one")
        pairs = [(next(iter(own)), next(iter(other)))]
    elif other_site is not None:
        raise ValueError("other_site is given without site: give both")
    else:
        pairs = _shared(own, other, "the two have no name in common: name the activations")
    for a, b in pairs:
        require_same_samples(len(own[a].values), len(other[b].values))
    results = Similarities((a, of_caught(own[a], other[b], (a, b), group, plan)) for a, b in pairs)
    return next(iter(results.values())) if site is not None else results


def _of_models(
    models: tuple[nn.Module, nn.Module],
    data: Iterable[Any],
    other_data: Iterable[Any] | None,
    site: str | None,
    other_site: str | None,
    group: Group | str | None,
    plan: Plan,
    progress: bool,
) -> Similarity | Similarities:
    if site is None and other_site is not None:
        raise ValueError("other_site is given without site: give both")
    pairs: dict[tuple[str, str], Gathered] = {}

    def see(run: Together) -> None:
        networks, batch, (own, other) = run
        spots, others = (network.spots for network in networks)
        if not pairs:
            names = (
                _shared(
                    spots, others, "the two models have no site of the same name: name the places"
                )
                if site is None
                else [(networks[0].one()[0], networks[1].one()[0])]
            )
            pairs.update(
                ((a, b), gathering(plan, groups_of(spots[a], others[b], group))) for a, b in names
            )
        fold = networks[0].fold_of(batch, folds=plan.folds, seed=plan.seed)
        for (a, b), gathered in pairs.items():
            gathered.see(own[a], other[b], fold)

    with guarded():
        runs = together(models, data, other_data, (site, other_site or site), progress=progress)
        notes = see_all(runs, see)
        with stopped_early(notes):
            found = {names: gathered.finish(names) for names, gathered in pairs.items()}
    results = Similarities(
        (names[0], dataclasses.replace(one, notes=(*one.notes, *notes)))
        for names, one in found.items()
    )
    return next(iter(results.values())) if site is not None else results


def _shared(own: Iterable[str], other: Iterable[str], refused: str) -> list[tuple[str, str]]:
    """The names that both have, twice each."""
    names, others = [*own], [*other]
    found = [(name, name) for name in names if name in others]
    if not found:
        raise SiteError(
            f"{refused} with site and other_site, such as {', '.join(names[:3])} and "
            f"{', '.join(others[:3])}"
        )
    return found
