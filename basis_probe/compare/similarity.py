"""How alike two networks are at a place, up to the changes of basis allowed there."""

import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, overload

import numpy as np
import torch
from torch import Tensor, nn

from basis_probe.algebra.groups import (
    GeneralLinear,
    Group,
    LineStabiliser,
    OnAxes,
    Orthogonal,
    Permutation,
    PositiveMonomial,
    Trivial,
    group_from_name,
)
from basis_probe.arguments import SEEDS, number, whole
from basis_probe.brief import described
from basis_probe.compare.alignments import (
    Alignment,
    Constant,
    align,
    assignment,
    mixed_axes,
    on_axes,
    require_kin,
    turned_axes,
)
from basis_probe.compare.canonical import projected, singular
from basis_probe.compare.kernels import Hsic, Kernel, Maps, hsic_of, kernel_from_name, linear_hsic
from basis_probe.compare.running import (
    Caught,
    Network,
    Repeated,
    Spot,
    both,
    common_space,
    fold_of,
    matched,
    paired,
)
from basis_probe.compare.samples import (
    Correlation,
    Dissimilarity,
    dissimilarities,
    gaussian_hsic,
    rsa,
    shared_neighbours,
)
from basis_probe.compare.saved import (
    Matrix,
    arrays_of,
    caught,
    checked,
    chosen,
    folds_of,
    is_saved,
    same_space,
)
from basis_probe.errors import DataError, SiteError
from basis_probe.model.network import prepared
from basis_probe.results.similarity import Chance, Similarities, Similarity, spread_of
from basis_probe.statistics.effective import distinct_rows
from basis_probe.statistics.second_moments import Crossed

Saved = Mapping[str, Matrix] | str | os.PathLike[str]
Measure = Literal[
    "procrustes", "cka", "cca", "regression", "svcca", "pwcca", "rsa", "knn", "jaccard"
]
Normalization = Literal["shape", "paper"]

MEASURES = ("procrustes", "cka", "cca", "regression", "svcca", "pwcca", "rsa", "knn", "jaccard")

FEWEST_SHUFFLED = 8
"""Examples change places within their batch; of fewer too many would stay where they are."""

MOST_SAMPLES = 4096
"""Pairs of samples are compared among at most so many, drawn uniformly."""

_FORMULAS = {
    "procrustes": (
        "axes centred, brought to the form that the group's scales cannot change, and the whole "
        "to unit size; the cosine after the best element of the group. The distance "
        "sqrt(2 - 2 cosine) is a metric between orbits of the group, shifts and one overall scale"
    ),
    "cca": (
        "the mean canonical correlation, over as many directions as the smaller of the two has; "
        "distance sqrt(2 - 2 mean)"
    ),
    "regression": (
        "the share of the second's variance that a linear map of the first predicts; not "
        "symmetric, and the distance, one minus it, is no metric"
    ),
    "svcca": (
        "the mean canonical correlation of the principal components that hold 99 % of either "
        "side's variance; distance sqrt(2 - 2 mean); Raghu et al. 2017"
    ),
    "pwcca": (
        "the mean canonical correlation, weighted by how much of the first's axes each canonical "
        "direction carries; not symmetric, and the distance, one minus it, is no metric; Morcos et "
        "al. 2018"
    ),
    "rsa": (
        "the correlation between the two tables of dissimilarities of all pairs of samples; the "
        "distance is one minus it; Kriegeskorte et al. 2008"
    ),
    "knn": (
        "the mean share of a sample's nearest neighbours that are among its nearest in the other "
        "network too; the distance is one minus it; Huh et al. 2024"
    ),
    "jaccard": (
        "the mean over samples of common nearest neighbours over all that are nearest in either "
        "network; the distance is one minus it"
    ),
    "paper procrustes": (
        "one minus sqrt((|X|^2 + |Y|^2 - 2 sum of matched inner products) / 4n), axes not centred "
        "and each of unit size; Godfrey et al. 2022, section 5"
    ),
    "paper orthogonal procrustes": (
        "one minus half of sqrt(|X|^2 + |Y|^2 - 2 nuclear norm of X^T Y), not centred, of unit "
        "size as a whole; Godfrey et al. 2022, section 5"
    ),
}


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is compared, and how.

    Attributes:
        measure, normalization, constant: as for `similarity`.
        kernel: for CKA, what is made of the axes' inner products; None to go by the group.
        unbiased: the estimate of the independence criterion.
        folds: into how many parts the examples are divided.
        seed: seeds the division.
        whitening, dissimilarity, correlation, neighbours, width, shuffles: as for `similarity`.
        rbf: True for CKA with Gaussian kernels.
    """

    measure: Measure
    normalization: Normalization
    kernel: Kernel | None
    unbiased: bool
    folds: int
    constant: Constant
    seed: int
    whitening: float = 0.0
    dissimilarity: Dissimilarity = "euclidean"
    correlation: Correlation = "pearson"
    neighbours: int = 10
    width: float = 0.4
    shuffles: int = 0
    rbf: bool = False

    @property
    def of_samples(self) -> bool:
        """True if pairs of samples are compared, so that all of them are needed at once."""
        return self.measure in ("rsa", "knn", "jaccard") or self.rbf

    @property
    def usual_group(self) -> str:
        """The group of two matrices of which none is said."""
        if self.measure in ("cca", "regression"):
            return "general-linear"
        return "signed-permutation" if self.measure == "pwcca" else "orthogonal"

    def require_group(self, group: Group) -> None:
        """Raises ValueError if the measure is not the same in every basis up to a group."""
        name = "" if self.measure != "cka" else " with a Gaussian kernel"
        what = f"{self.measure}{name} up to {group.name}"
        if self.whitening and not isinstance(group, Orthogonal):
            raise ValueError(
                f"whitening={self.whitening:g} goes before turns and the group is {group.name}: "
                'give group="orthogonal"'
            )
        if self.measure in ("cca", "regression") and not isinstance(group, GeneralLinear):
            raise ValueError(
                f"{self.measure} allows every linear map and the group is {group.name}: give "
                'group="general-linear", or measure="procrustes"'
            )
        if self.measure == "svcca" and group.rescales:
            raise ValueError(
                f"{what}: which components lead depends on the scales of axes; give "
                'group="orthogonal", or measure="cca" with group="general-linear"'
            )
        if self.measure == "pwcca" and (group.rescales or not on_axes(group)):
            raise ValueError(
                f"{what}: the weights are sums over the axes of the first as they are; give "
                'group="signed-permutation" or a smaller one'
            )
        if not self.of_samples:
            return
        if group.rescales and not on_axes(group):
            raise ValueError(
                f"{what}: how far samples are apart is not the same in all its bases; give "
                'group="orthogonal" or one that changes places, signs and scales of axes only'
            )
        plain = isinstance(group, Permutation | PositiveMonomial | Trivial | LineStabiliser)
        if self.measure == "rsa" and self.dissimilarity == "correlation" and not plain:
            raise ValueError(
                f'{what}, dissimilarity="correlation": a correlation over axes changes when axes '
                'are turned or reversed; give group="permutation", or dissimilarity="cosine"'
            )

    def kernel_for(self, group: Group) -> Kernel:
        """The kernel that keeps its value under a group.

        Raises:
            ValueError: if there is none, or the one that was named does not.
        """
        turns = isinstance(group, Orthogonal)
        if not (turns or on_axes(group)):
            raise ValueError(
                f"no kernel here is the same in every basis up to {group.name}: ask for "
                "measure='procrustes', or name a group of rotations or permutations"
            )
        if turns and self.kernel not in (None, Kernel.LINEAR):
            raise ValueError(
                f"the kernel {self.kernel.name.lower()!r} changes when axes are turned, and the "
                "group turns them: give kernel='linear', or name a group of permutations"
            )
        if self.kernel is None:
            return Kernel.LINEAR if turns else Kernel.MAX
        return self.kernel

    def unit_axes_for(self, group: Group) -> bool:
        """True if a kernel must not see the scale of single axes."""
        return group.rescales or self.normalization == "paper"


@overload
def similarity(
    x: Matrix, y: Matrix, data: None = None, *,
    group: Group | str | None = None, measure: Measure = "procrustes",
    normalization: Normalization = "shape", kernel: str | None = None,
    estimator: Literal["unbiased", "biased"] = "unbiased", folds: int = 5,
    constant: Constant | None = None, seed: int = 0,
    whitening: float = 0.0, dissimilarity: Dissimilarity = "euclidean",
    correlation: Correlation = "pearson", neighbours: int = 10, width: float = 0.4,
    shuffles: int = 0,
) -> Similarity: ...  # fmt: skip


@overload
def similarity(
    x: Saved, y: Saved, data: None = None, *, site: str, other_site: str | None = None,
    group: Group | str | None = None, measure: Measure = "procrustes",
    normalization: Normalization = "shape", kernel: str | None = None,
    estimator: Literal["unbiased", "biased"] = "unbiased", folds: int = 5,
    constant: Constant | None = None, seed: int = 0,
    whitening: float = 0.0, dissimilarity: Dissimilarity = "euclidean",
    correlation: Correlation = "pearson", neighbours: int = 10, width: float = 0.4,
    shuffles: int = 0,
) -> Similarity: ...  # fmt: skip


@overload
def similarity(
    x: Saved, y: Saved, data: None = None, *, site: None = None, other_site: None = None,
    group: Group | str | None = None, measure: Measure = "procrustes",
    normalization: Normalization = "shape", kernel: str | None = None,
    estimator: Literal["unbiased", "biased"] = "unbiased", folds: int = 5,
    constant: Constant | None = None, seed: int = 0,
    whitening: float = 0.0, dissimilarity: Dissimilarity = "euclidean",
    correlation: Correlation = "pearson", neighbours: int = 10, width: float = 0.4,
    shuffles: int = 0,
) -> Similarities: ...  # fmt: skip


@overload
def similarity(
    x: nn.Module, y: nn.Module, data: Iterable[Any], *, site: str,
    other_site: str | None = None, other_data: Iterable[Any] | None = None,
    group: Group | str | None = None, measure: Measure = "procrustes",
    normalization: Normalization = "shape", kernel: str | None = None,
    estimator: Literal["unbiased", "biased"] = "unbiased", folds: int = 5,
    constant: Constant | None = None, seed: int = 0,
    whitening: float = 0.0, dissimilarity: Dissimilarity = "euclidean",
    correlation: Correlation = "pearson", neighbours: int = 10, width: float = 0.4,
    shuffles: int = 0,
) -> Similarity: ...  # fmt: skip


@overload
def similarity(
    x: nn.Module, y: nn.Module, data: Iterable[Any], *, site: None = None,
    other_site: None = None, other_data: Iterable[Any] | None = None,
    group: Group | str | None = None, measure: Measure = "procrustes",
    normalization: Normalization = "shape", kernel: str | None = None,
    estimator: Literal["unbiased", "biased"] = "unbiased", folds: int = 5,
    constant: Constant | None = None, seed: int = 0,
    whitening: float = 0.0, dissimilarity: Dissimilarity = "euclidean",
    correlation: Correlation = "pearson", neighbours: int = 10, width: float = 0.4,
    shuffles: int = 0,
) -> Similarities: ...  # fmt: skip


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
    dissimilarity: Dissimilarity = "euclidean",
    correlation: Correlation = "pearson",
    neighbours: int = 10,
    width: float = 0.4,
    shuffles: int = 0,
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
            or "general-linear" for CCA and regression and "signed-permutation" for PWCCA.
        measure: "procrustes" for any group; "cka" for groups of rotations, permutations and
            monomial matrices; "cca" and "regression" for the general linear group; "svcca" for
            groups that rescale nothing; "pwcca" for those that only change places and signs of
            axes; "rsa", "knn" (mutual nearest neighbours) and "jaccard" (the same over the union)
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
        dissimilarity: for RSA and neighbours, of two samples: "euclidean", "cosine", or for RSA
            "correlation".
        correlation: for RSA, of the two tables: "pearson" or "spearman".
        neighbours: how many nearest neighbours a sample has.
        width: of the Gaussian kernel, as a share of the median distance of two samples.
        shuffles: how often the examples of the second are put in another order, to say what chance
            reaches; 0 for no chance level. Batches of a few examples cannot be shuffled.

    Returns:
        One result; for models without a site one for every site, by name. Its similarity is NaN,
        and its notes say why, where hardly any samples differ and any two networks would be alike.

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
        measure, normalization, kernel, estimator, folds, constant, seed, whitening=whitening,
        dissimilarity=dissimilarity, correlation=correlation, neighbours=neighbours, width=width,
        shuffles=shuffles,
    )  # fmt: skip
    if isinstance(x, nn.Module) and isinstance(y, nn.Module):
        if data is None:
            raise DataError("two models are given without data: give batches to run them on")
        return _of_models((x, y), data, other_data, site, other_site, group, plan)
    if isinstance(x, nn.Module) or isinstance(y, nn.Module):
        raise TypeError("one of the two is a model and the other is not: give two of one kind")
    if data is not None or other_data is not None:
        raise ValueError("data and sites belong to models; two matrices were given")
    if is_saved(x) and is_saved(y):
        return _of_saved(x, y, site, other_site, group, plan)
    if site is not None or other_site is not None:
        raise ValueError("data and sites belong to models; two matrices were given")
    return _of_matrices(x, y, group, plan)


_MOST_FOLDS = 10_000
"""Every part of the data has sums of its own in memory."""


def plan_of(
    measure: str,
    normalization: str,
    kernel: str | None,
    estimator: str,
    folds: int,
    constant: str,
    seed: int,
    *,
    whitening: float = 0.0,
    dissimilarity: str = "euclidean",
    correlation: str = "pearson",
    neighbours: int = 10,
    width: float = 0.4,
    shuffles: int = 0,
) -> Plan:
    """What is to be compared, checked.

    Raises:
        ValueError: for a name or number that makes no sense.
    """
    folds = whole("folds", folds, least=1, most=_MOST_FOLDS)
    neighbours, shuffles = whole("neighbours", neighbours, least=1), whole("shuffles", shuffles)
    seed = whole("seed", seed, least=SEEDS.start, most=SEEDS.stop - 1)
    width = number("width", width)
    whitening = 0.0 if whitening == 0 else number("whitening", whitening)
    _one_of("measure", measure, MEASURES)
    _one_of("dissimilarity", dissimilarity, ("euclidean", "cosine", "correlation"))
    _one_of("correlation", correlation, ("pearson", "spearman"))
    for name, value, usual, used in (
        ("whitening", whitening, 0.0, measure == "procrustes"),
        ("dissimilarity", dissimilarity, "euclidean", measure in ("rsa", "knn", "jaccard")),
        ("correlation", correlation, "pearson", measure == "rsa"),
        ("neighbours", neighbours, 10, measure in ("knn", "jaccard")),
        ("width", width, 0.4, kernel == "rbf"),
    ):
        if value != usual and not used:
            raise ValueError(f"{name}={value!r} is not used by measure={measure!r}: leave it out")
    if not whitening < 1:
        raise ValueError(
            f"whitening={whitening}: give a share from 0 to below 1; all of the way is "
            'measure="cca" with group="general-linear"'
        )
    if measure in ("knn", "jaccard") and dissimilarity == "correlation":
        raise ValueError('dissimilarity="correlation" belongs to measure="rsa"')
    if normalization == "paper" and (whitening or kernel == "rbf"):
        raise ValueError(
            'normalization="paper" has neither whitening nor a Gaussian kernel: leave them out'
        )
    _one_of("normalization", normalization, ("shape", "paper"))
    _one_of("estimator", estimator, ("unbiased", "biased"))
    _one_of("constant", constant, ("refuse", "ignore"))
    if kernel is not None and measure != "cka":
        raise ValueError(
            f"kernel={kernel!r} belongs to measure='cka', and {measure!r} was asked for"
        )
    return Plan(
        measure,  # pyright: ignore[reportArgumentType]
        normalization,  # pyright: ignore[reportArgumentType]
        None if kernel in (None, "rbf") else kernel_from_name(kernel),
        estimator == "unbiased",
        folds,
        constant,  # pyright: ignore[reportArgumentType]
        seed,
        whitening,
        dissimilarity,  # pyright: ignore[reportArgumentType]
        correlation,  # pyright: ignore[reportArgumentType]
        neighbours,
        width,
        shuffles,
        kernel == "rbf",
    )


def _one_of(what: str, given: object, known: tuple[str, ...]) -> None:
    if not isinstance(given, str) or given not in known:
        raise ValueError(f"{what}={described(given)} is not known: give one of {', '.join(known)}")


# --- two matrices ---------------------------------------------------------------------------------


def _of_matrices(x: Any, y: Any, group: Group | str | None, plan: Plan) -> Similarity:
    own, other = checked("x", x), checked("y", y)
    require_same_samples(len(own), len(other))
    own, other = same_space(own, other, enlarge=plan.normalization == "paper")
    return of_caught(caught(own), caught(other), ("", ""), group, plan)


def of_caught(
    x: Caught, y: Caught, names: tuple[str, str], group: Group | str | None, plan: Plan
) -> Similarity:
    """The result for the same samples of both, which are all there are."""
    dims = x.values.shape[2], y.values.shape[2]
    state = State(plan, groups_for(group or plan.usual_group, *dims), whole=True)
    state.see(x, y, folds_of(len(x.values), folds=plan.folds, seed=plan.seed))
    return state.finish(names)


def require_same_samples(own: int, other: int) -> None:
    """Raises DataError unless there are as many samples of both."""
    if own != other:
        raise DataError(
            f"x has {own} samples and y {other}: give the same samples of both, in the same order"
        )


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
        pairs = [(name, name) for name in own if name in other]
        if not pairs:
            raise SiteError(
                "the two have no name in common: name the activations with site and other_site, "
                f"such as {', '.join([*own][:3])} and {', '.join([*other][:3])}"
            )
    for a, b in pairs:
        require_same_samples(len(own[a].values), len(other[b].values))
    results = Similarities(
        (a, of_caught(*_sized(own[a], other[b], plan), (a, b), group, plan)) for a, b in pairs
    )
    return next(iter(results.values())) if site is not None else results


def groups_for(group: Group | str, dim: int, other_dim: int) -> tuple[Group, Group]:
    """A group on the axes of x and the same on those of y.

    Raises:
        ValueError: if it does not fit them.
    """
    if isinstance(group, str):
        return group_from_name(group, dim), group_from_name(group, other_dim)
    if group.dim != dim:
        raise ValueError(f"the group {group!r} acts on {group.dim} axes, and x has {dim}")
    if group.dim == other_dim:
        return group, group
    try:
        return group, group_from_name(group.name, other_dim)
    except ValueError as error:
        raise ValueError(
            f"the group {group!r} acts on {dim} axes, and y has {other_dim}: {error}"
        ) from error


# --- what is gathered and what comes of it --------------------------------------------------------


class State:
    """What was seen of two sets of axes so far, and the measure that comes of it.

    Args:
        plan: the measure.
        groups: the group of each.
        whole: True if all examples come at once, so that kernels need not be added up.
    """

    def __init__(self, plan: Plan, groups: tuple[Group, Group], *, whole: bool = False) -> None:
        require_kin(*groups)
        plan.require_group(groups[0])
        if plan.normalization == "paper":
            _require_in_paper(plan, groups[0])
        self.plan, self.groups, self.whole = plan, groups, whole
        self.kernel = None if plan.measure != "cka" or plan.rbf else plan.kernel_for(groups[0])
        self.moments = [Crossed.empty(groups[0].dim, groups[1].dim) for _ in range(plan.folds)]
        self.kernels: list[Hsic] = []
        self.parts: list[float] = []
        self.examples = self.samples = 0
        fitted = self.kernel is None and not plan.of_samples
        self.turned = max(map(turned_axes, groups)) if fitted else 0
        if plan.measure == "pwcca":
            self.turned = max(group.dim for group in groups)
        self.different = Different(self.turned)
        self.repeated = Repeated(plan.folds)
        # Turns and orders of axes are found from sums of products alone.
        whitened = plan.whitening > 0 or max(map(mixed_axes, groups)) > 0
        self.single = plan.measure == "procrustes" and not whitened
        self.rows = Rows(MOST_SAMPLES, torch.Generator().manual_seed(plan.seed))
        self.shuffling = torch.Generator().manual_seed(plan.seed + 1)
        alone = dataclasses.replace(plan, shuffles=0)
        self.shuffled = [State(alone, groups, whole=whole) for _ in range(plan.shuffles)]

    def see(self, x: Caught, y: Caught, fold: Tensor) -> None:
        """Adds the examples of one batch.

        Args:
            x: the activations of one network.
            y: those of the other for the same examples.
            fold: [examples], to which part of the data each belongs.
        """
        self.examples += len(x.values)
        if self.shuffled and len(x.values) < FEWEST_SHUFFLED:
            raise DataError(
                f"a batch holds {len(x.values)} examples, which are too few to put in another "
                f"order: give batches of {FEWEST_SHUFFLED} or more, or shuffles=0"
            )
        for other in self.shuffled:
            order = torch.randperm(len(y.values), generator=self.shuffling)
            other.see(x, _some(y, order), fold)
        if self.plan.of_samples:
            self._see_samples(x, y, fold)
            return
        if self.kernel is not None:
            self._see_kernels(x, y, fold)
            return
        plain = x.counted is None and y.counted is None and x.space == y.space
        for part in range(self.plan.folds):
            own, other = x.of_fold(fold, part), y.of_fold(fold, part)
            if not len(own.values):
                continue
            if plain:
                common_space(own, other)
                rows, spreads = (
                    (own.rows, other.rows),
                    (own.spread(single=self.single), other.spread(single=self.single)),
                )
            else:
                rows, spreads = matched({"x": own}, "x", other), None
            self.samples += len(rows[0])
            self.different.see(*rows)
            self.moments[part] += Crossed.of(*rows, spreads=spreads, single=self.single)
            if self.plan.folds > 1:
                self.repeated.see(part, *rows)

    def _see_samples(self, x: Caught, y: Caught, fold: Tensor) -> None:
        numbers = torch.arange(self.examples - len(x.values), self.examples)
        for part in range(self.plan.folds):
            own, other = x.of_fold(fold, part), y.of_fold(fold, part)
            rows = matched({"x": own}, "x", other)
            if len(own.values):
                belongs = numbers[fold.cpu() == part]
                masks = [side.counted for side in (own, other) if side.counted is not None]
                if masks:
                    shared = masks[0] if len(masks) == 1 else masks[0] & masks[1]
                    belongs = belongs.repeat_interleave(shared.sum(1).cpu())
                else:
                    belongs = belongs.repeat_interleave(len(rows[0]) // len(belongs))
                self.samples += len(rows[0])
                self.rows.see(*rows, belongs, torch.full_like(belongs, part))

    def _see_kernels(self, x: Caught, y: Caught, fold: Tensor) -> None:
        self.samples += len(x.values)
        if len(x.values) >= 4:
            self.kernels.append(self._hsic(x, y))
        if self.whole and self.plan.folds > 1:
            for part in range(self.plan.folds):
                chosen = (fold == part).nonzero().flatten()
                if len(chosen) >= 4:
                    self.parts.append(self._hsic(_some(x, chosen), _some(y, chosen)).cka)

    def _hsic(self, x: Caught, y: Caught) -> Hsic:
        assert self.kernel is not None
        units = self.plan.unit_axes_for(self.groups[0])
        if self.kernel is Kernel.LINEAR and self.plan.normalization == "shape":
            rows = matched({"x": x}, "x", y)
            if units:
                rows = _unit(rows[0]), _unit(rows[1])
            sums = [
                linear_hsic(a, b, unbiased=self.plan.unbiased)
                for a, b in (rows, (rows[0],) * 2, (rows[1],) * 2)
            ]
            return Hsic(*sums, batches=1, examples=len(x.values))
        maps = [Maps(kernel_values(side), self.kernel, units) for side in (x, y)]
        return hsic_of(*maps, unbiased=self.plan.unbiased)

    def finish(self, sites: tuple[str, str]) -> Similarity:
        """The result.

        Raises:
            DataError: if what was seen does not suffice.
        """
        found = self._finished(sites)
        if not self.shuffled:
            return found
        values = [other.finish(sites).similarity for other in self.shuffled]
        return dataclasses.replace(found, chance=Chance.of(found.similarity, values))

    def _finished(self, sites: tuple[str, str]) -> Similarity:
        if self.plan.of_samples:
            return self._of_samples(sites)
        if self.kernel is not None:
            return self._cka(sites)
        total = sum(self.moments[1:], self.moments[0])
        if self.plan.normalization == "paper":
            return self._paper(total, sites)
        if self.plan.measure == "regression":
            return self._fitted(total, sites, _regression)
        if self.plan.measure in ("svcca", "pwcca"):
            return self._fitted(total, sites, self._canonical)
        return self._fitted(total, sites, self._aligned)

    def distance(self, similarity: float) -> float:
        """The distance that belongs to a similarity."""
        if self.plan.measure == "cka":
            return math.acos(max(-1.0, min(1.0, similarity)))
        if self.plan.measure in ("procrustes", "cca", "svcca"):
            return chord(similarity)
        return max(0.0, 1 - similarity)

    def _canonical(self, train: Crossed, test: Crossed) -> tuple[float, None]:
        fit = singular if self.plan.measure == "svcca" else projected
        return fit(train).similarity(test), None

    def _of_samples(self, sites: tuple[str, str]) -> Similarity:
        plan, (x, y, belongs, fold) = self.plan, self.rows.kept()
        if len(x) < 4:
            raise DataError(f"{len(x)} samples: pairs of samples need at least four")
        sides = self._comparable(x, self.groups[0]), self._comparable(y, self.groups[1])
        kind = plan.dissimilarity
        tables = dissimilarities(sides[0], kind), dissimilarities(sides[1], kind)

        apart = ~torch.eye(len(x), dtype=torch.bool)
        if any(float(table[apart].min()) == float(table[apart].max()) for table in tables):
            raise DataError(
                "in one of the two all pairs of samples are equally unlike: there is nothing to "
                "compare"
            )

        def of(chosen: Tensor) -> float:
            parts = [table[chosen][:, chosen] for table in tables]
            if plan.measure == "rsa":
                return rsa(parts[0], parts[1], plan.correlation)
            return gaussian_hsic(parts[0], parts[1], plan.width, unbiased=plan.unbiased).cka

        error = math.nan
        if plan.measure in ("knn", "jaccard"):
            union = plan.measure == "jaccard"
            each = shared_neighbours(*tables, plan.neighbours, union=union)
            value = float(each.mean())
            # Samples of one example are not independent.
            index = belongs.unique(return_inverse=True)[1]
            sums = torch.zeros(int(index.max()) + 1, dtype=torch.float64)
            sums.index_add_(0, index, each - value)
            if len(sums) > 1:
                error = float(sums.norm()) / len(each) * math.sqrt(len(sums) / (len(sums) - 1))
        else:
            value = of(torch.arange(len(x)))
            parts = [(fold != part).nonzero().flatten() for part in fold.unique()]
            left = [of(chosen) for chosen in parts if 4 <= len(chosen) < len(x)]
            error = jackknife(left)
        if math.isnan(value):
            raise DataError(
                "one of the two kernels does not vary: the width is too small or too large for "
                "these samples"
            )
        notes: list[str] = []
        distinct = distinct_rows(torch.cat(sides, 1))
        if distinct < 0.9 * len(x):
            notes.append(
                f"{distinct} of {len(x)} samples are different: what repeats is alike in any two "
                "networks, so that the value is higher than of samples that do not; give shuffles= "
                "for what chance reaches, or each sample once."
            )
        if len(x) < self.samples:
            notes.append(
                f"Pairs were compared among {len(x)} of the {self.samples} samples, drawn "
                "uniformly."
            )
        formula = _FORMULAS.get(plan.measure, "")
        if plan.measure == "cka":
            formula = (
                "the cosine of two centred Gaussian kernels, "
                f"{'un' if plan.unbiased else ''}biased, {plan.width:g} median distances wide; the "
                "distance is the angle between them"
            )
        if plan.measure == "rsa":
            formula += f"; {kind} dissimilarities, {plan.correlation} correlation"
        if plan.measure in ("knn", "jaccard"):
            formula += f"; {plan.neighbours} neighbours by {kind} distance, of {len(x)} samples"
        distance = self.distance(value)
        return self._result(value, distance, error, value, sites, None, notes, formula)

    def _comparable(self, rows: Tensor, group: Group) -> Tensor:
        """The samples in a form that the group's scales cannot change."""
        rows = rows.double()
        if isinstance(group, LineStabiliser):
            return rows - rows.mean(1, keepdim=True)
        return _unit(rows) if group.rescales else rows

    def _aligned(self, train: Crossed, test: Crossed) -> tuple[float, Alignment]:
        plan = self.plan
        found = align(*self.groups, train, constant=plan.constant, whitening=plan.whitening)
        value = found.similarity(test)
        if self.plan.measure == "cca":
            # The mean over the directions of the smaller one.
            ranks = [form.weights.shape[1] for form in (found.x, found.y)]
            value *= math.sqrt(ranks[0] * ranks[1]) / min(ranks)
        return value, found

    @property
    def mixed(self) -> int:
        """How many axes every invertible map may mix."""
        if self.plan.measure == "pwcca":
            return self.turned
        return max(map(mixed_axes, self.groups)) if self.kernel is None else 0

    def _fitted(
        self,
        total: Crossed,
        sites: tuple[str, str],
        fit: Callable[[Crossed, Crossed], tuple[float, Alignment | None]],
    ) -> Similarity:
        if total.count < 2:
            raise DataError(f"{total.count} samples: give at least two, better thousands")
        few = min(total.count, self.different.count)
        if few < total.count and few <= self.mixed:
            refused = (
                f"No similarity can be told: the {total.count} samples are {few} different ones "
                f"that repeat, and {self.mixed} axes may be mixed, so that any two networks look "
                f"alike; give more than {self.mixed} different samples."
            )
            formula, nan = _FORMULAS[self.plan.measure], math.nan
            return self._result(nan, nan, nan, nan, sites, None, [refused], formula)
        in_sample, alignment = fit(total, total)
        held_out: list[float] = []
        if self.plan.folds > 1:
            for part, test in enumerate(self.moments):
                rest = [other for place, other in enumerate(self.moments) if place != part]
                if test.count > 1:
                    held_out.append(fit(sum(rest[1:], rest[0]), test)[0])
        value = float(np.mean(held_out)) if held_out else in_sample
        notes: list[str] = []
        if not held_out:
            notes.append("Nothing was held out, so that the fit flatters.")
        if few <= self.turned:
            notes.append(
                f"There are {self.turned} axes and {few} different samples: with no more samples "
                "than axes the best turn makes unrelated networks alike too, so that a high value "
                "says little."
            )
        if held_out:
            notes.extend(self._repetitions())
        if alignment is not None:
            for which, form in (("first", alignment.x), ("second", alignment.y)):
                if form.flat:
                    notes.append(
                        f"{form.flat} directions of the {which} never vary and count for nothing."
                    )
            if self.groups[0].dim != self.groups[1].dim and isinstance(self.groups[0], OnAxes):
                notes.append(
                    "The widths differ, so that axes are matched in parts (soft matching)."
                )
        formula = _FORMULAS[self.plan.measure]
        if self.plan.whitening:
            formula += (
                f". Both were brought {self.plan.whitening:g} of the way to white axes first: "
                "x ((1 - w) I + w S^(-1/2)), S the covariance at a mean variance of one"
            )
        return self._result(
            value,
            self.distance(value),
            spread_of(held_out),
            in_sample,
            sites,
            alignment,
            notes,
            formula,
        )

    def _repetitions(self) -> Iterator[str]:
        """What a reader must know of rows that come both in what is fitted on and held out."""
        distinct, share = self.repeated.count()
        if share > 0.1:
            flatters = (
                "the result says how alike these rows are after a fit to them, and no more"
                if share > 0.9
                else "the fit flatters"
            )
            yield (
                f"Of {self.samples} samples {distinct} are distinct, and {share:.0%} lie in "
                f"several of the parts that are held out in turn, so that {flatters}."
            )

    def _cka(self, sites: tuple[str, str]) -> Similarity:
        assert self.kernel is not None
        if not self.kernels:
            raise DataError(f"{self.examples} examples: a kernel needs at least four in a batch")
        value = sum(self.kernels, Hsic()).cka
        if math.isnan(value):
            raise DataError(
                "one of the two is the same on every sample: there is nothing to compare"
            )
        parts = self.parts or leave_one_out(self.kernels)
        error = spread_of(self.parts) if self.parts else jackknife(parts)
        notes: list[str] = []
        if len(self.kernels) > 1:
            notes.append(
                f"The kernels were compared within {len(self.kernels)} batches and added up."
            )
        angle = self.distance(value)
        formula = (
            f"the cosine of two centred kernels, {'un' if self.plan.unbiased else ''}biased; "
            f"of two samples, from the inner products of their axes: {self.kernel.value}. The "
            "distance is the angle between the kernels, a metric between kernels and blind to "
            "signs of axes"
        )
        return self._result(value, angle, error, value, sites, None, notes, formula)

    def _paper(self, total: Crossed, sites: tuple[str, str]) -> Similarity:
        moments = total.uncentred()
        turns = isinstance(self.groups[0], Orthogonal)
        if turns:
            size = math.sqrt(float(moments.x.sums.trace()) * float(moments.y.sums.trace()))
            nuclear = float(torch.linalg.matrix_norm(moments.sums, ord="nuc")) / size
            distance = math.sqrt(max(0.0, 2 - 2 * nuclear)) / 2
        else:
            norms = [side.sums.diagonal().sqrt() for side in (moments.x, moments.y)]
            safe = [torch.where(norm == 0, torch.ones_like(norm), norm) for norm in norms]
            cosines = moments.sums / safe[0][:, None] / safe[1]
            matched_sum = float(cosines[assignment(cosines)].sum())
            live = sum(int((norm > 0).sum()) for norm in norms)
            width = max(len(norm) for norm in norms)
            distance = math.sqrt(max(0.0, live - 2 * matched_sum) / (4 * width))
        name = "paper orthogonal procrustes" if turns else "paper procrustes"
        notes = ["Nothing was held out, so that the fit flatters."]
        value = 1 - distance
        return self._result(value, distance, math.nan, value, sites, None, notes, _FORMULAS[name])

    def _result(
        self,
        value: float,
        distance: float,
        error: float,
        in_sample: float,
        sites: tuple[str, str],
        alignment: Alignment | None,
        notes: Sequence[str],
        formula: str,
    ) -> Similarity:
        return Similarity(
            measure=self.plan.measure,
            group=self.groups[0],
            similarity=value,
            distance=distance,
            std_error=error,
            in_sample=in_sample,
            dims=(self.groups[0].dim, self.groups[1].dim),
            n_samples=self.samples,
            n_examples=self.examples,
            formula=formula,
            sites=sites,
            alignment=alignment,
            notes=tuple(notes),
        )


class Rows:
    """Samples of two networks, at most so many, drawn uniformly.

    Args:
        most: how many.
        generator: draws which are kept.
    """

    def __init__(self, most: int, generator: torch.Generator) -> None:
        self.most, self.generator = most, generator
        self.parts: list[tuple[Tensor, ...]] = []
        self.held = 0

    def see(self, x: Tensor, y: Tensor, belongs: Tensor, fold: Tensor) -> None:
        """Adds the same samples of both, with the example and the fold of each."""
        priority = torch.rand(len(x), generator=self.generator, dtype=torch.float64)
        self.parts.append((x.cpu(), y.cpu(), belongs, fold, priority))
        self.held += len(x)
        if self.held > 4 * self.most:
            self._reduce()

    def kept(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The samples of both, and the example and the fold of each."""
        self._reduce()
        x, y, belongs, fold, _ = self.parts[0] if self.parts else (torch.zeros(0, 1),) * 5
        return x, y, belongs, fold

    def _reduce(self) -> None:
        if not self.parts:
            return
        joined = [torch.cat(column) for column in zip(*self.parts, strict=True)]
        chosen = joined[-1].argsort()[: self.most].sort().values
        self.parts = [tuple(column[chosen] for column in joined)]
        self.held = len(chosen)


class Different:
    """How many different samples there were, as long as they are few.

    Args:
        most: above so many it is no longer counted.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.rows: Tensor | None = None
        self.sizes: list[float] = []
        self.many = most == 0

    def see(self, x: Tensor, y: Tensor) -> None:
        """Adds the same samples of both networks."""
        if self.many:
            return
        generator = torch.Generator().manual_seed(0)
        parts: list[Tensor] = []
        for side in (x, y):
            exact = side.double().cpu()
            directions = torch.randn(side.shape[1], 8, generator=generator, dtype=torch.float64)
            parts.append(exact @ directions)
        if not self.sizes:
            self.sizes = [float(part.square().mean().sqrt().clamp(min=1e-300)) for part in parts]
        rows = torch.cat([part / size for part, size in zip(parts, self.sizes, strict=True)], 1)
        self.rows = rows if self.rows is None else torch.cat([self.rows, rows])
        if len(self.rows) > 2 * self.most:
            self.many = distinct_rows(self.rows) > self.most
            self.rows = None if self.many else self.rows.unique(dim=0)

    @property
    def count(self) -> float:
        """How many there were; infinite if more than are counted."""
        if self.many or self.rows is None:
            return math.inf
        return distinct_rows(self.rows)


def kernel_values(side: Caught) -> Tensor:
    """[examples, axes, positions], positions that do not count at zero."""
    values = side.values
    if side.counted is not None:
        values = values * side.counted[..., None].to(values)
    if not values.dtype.is_floating_point or values.dtype.itemsize < 4:
        values = values.float()
    return values.movedim(2, 1)


def _some(side: Caught, chosen: Tensor) -> Caught:
    chosen = chosen.to(side.values.device)
    counted = None if side.counted is None else side.counted[chosen]
    return Caught(side.values[chosen], counted, side.space)


def _unit(rows: Tensor) -> Tensor:
    centred = rows.double() - rows.double().mean(0)
    size = centred.norm(dim=0)
    return centred / torch.where(size == 0, torch.ones_like(size), size)


def chord(cosine: float) -> float:
    """The distance between two points of the unit sphere."""
    return math.sqrt(max(0.0, 2 - 2 * cosine))


def _regression(train: Crossed, test: Crossed) -> tuple[float, None]:
    """The share of variance of y that the linear map fitted on some samples predicts on others."""
    dim = len(train.x.mean)
    if train.count <= dim:
        raise DataError(
            f"x has {dim} axes and {train.count} samples to fit with: give more than {dim} "
            "samples in every part of the data"
        )
    fitted = train.x.least_squares(train.sums)
    explained = 2 * (fitted * test.sums).sum() - (fitted * (test.x.sums @ fitted)).sum()
    total = test.y.sums.trace()
    if not float(total) > 0:
        raise DataError("y is the same on every sample: there is nothing to predict")
    return float(explained / total), None


def leave_one_out(kernels: Sequence[Hsic]) -> list[float]:
    """The alignment without each batch in turn."""
    if len(kernels) < 2:
        return []
    return [
        sum((other for place, other in enumerate(kernels) if place != left), Hsic()).cka
        for left in range(len(kernels))
    ]


def jackknife(values: Sequence[float]) -> float:
    """The standard error from values that each leave one part out."""
    if len(values) < 2:
        return math.nan
    known = np.asarray(values)
    return float(np.sqrt((len(known) - 1) * known.var()))


def _require_in_paper(plan: Plan, group: Group) -> None:
    known = (PositiveMonomial, Orthogonal)
    if plan.measure not in ("procrustes", "cka") or not isinstance(group, known):
        raise ValueError(
            "the paper compares by Procrustes and CKA, up to the orthogonal group and positive "
            f"monomial matrices; {plan.measure} up to {group.name} is not among them"
        )


# --- two models -----------------------------------------------------------------------------------


def _of_models(
    models: tuple[nn.Module, nn.Module],
    data: Iterable[Any],
    other_data: Iterable[Any] | None,
    site: str | None,
    other_site: str | None,
    group: Group | str | None,
    plan: Plan,
) -> Similarity | Similarities:
    if site is None and other_site is not None:
        raise ValueError("other_site is given without site: give both")
    subjects = both(models)
    states: dict[tuple[str, str], State] = {}
    networks: tuple[Network, Network] | None = None
    with prepared(models[0], None), prepared(models[1], None):
        for batch, other in paired(subjects, data, other_data):
            if networks is None:
                networks = (
                    Network(subjects[0], batch, site),
                    Network(subjects[1], other, other_site or site),
                )
                states = _states(networks, site is not None, group, plan)
            held, others = networks[0].run(batch), networks[1].run(other)
            rows = next((spot.rows for spot in networks[0].spots.values()), None)
            fold = fold_of(batch, folds=plan.folds, seed=plan.seed, rows=rows)
            for (name, other_name), state in states.items():
                state.see(*_sized(held[name], others[other_name], plan), fold)
    results = Similarities((names[0], state.finish(names)) for names, state in states.items())
    return next(iter(results.values())) if site is not None else results


def _sized(x: Caught, y: Caught, plan: Plan) -> tuple[Caught, Caught]:
    if plan.normalization != "paper" or x.space == y.space:
        common_space(x, y)
        return x, y
    made = same_space(x.maps(), y.maps(), enlarge=True)
    return caught(made[0]), caught(made[1])


def _states(
    networks: tuple[Network, Network], one: bool, group: Group | str | None, plan: Plan
) -> dict[tuple[str, str], State]:
    if one:
        names = [(networks[0].one()[0], networks[1].one()[0])]
    else:
        names = [(name, name) for name in networks[0].spots if name in networks[1].spots]
        if not names:
            raise SiteError(
                "the two models have no site of the same name: name the places with site and "
                f"other_site, such as {', '.join([*networks[0].spots][:3])} and "
                f"{', '.join([*networks[1].spots][:3])}"
            )
    return {
        (a, b): State(plan, groups_of(networks[0].spots[a], networks[1].spots[b], group))
        for a, b in names
    }


def groups_of(first: Spot, second: Spot, group: Group | str | None) -> tuple[Group, Group]:
    """The groups in which two sites are compared: the one that was named, or each one's own.

    Raises:
        SiteError: if they are places of different kinds.
    """
    if group is not None:
        return groups_for(group, first.dim, second.dim)
    own, other = first.symmetry.group, second.symmetry.group
    if first.role.kind != second.role.kind or type(own) is not type(other):
        raise SiteError(
            f"{first.site.name} holds {first.role.kind} ({own.name}) and {second.site.name} "
            f"{second.role.kind} ({other.name}): compare places of one kind, or name the group in "
            "which they are to be compared"
        )
    require_kin(own, other)
    return own, other
