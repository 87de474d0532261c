"""What is compared and how: the measures, the options of each, and the groups they belong to."""

import dataclasses
from typing import Any, Literal

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
from basis_probe.arguments import number, one_of, seed_of, whole
from basis_probe.compare.alignments import on_axes, require_kin
from basis_probe.compare.kernels import Kernel, kernel_from_name
from basis_probe.compare.matching import Constant
from basis_probe.compare.running import Spot
from basis_probe.compare.samples import Correlation, Dissimilarity
from basis_probe.errors import SiteError

Measure = Literal[
    "procrustes", "cka", "cca", "regression", "svcca", "pwcca", "partial", "rsa", "knn", "jaccard"
]
Normalization = Literal["shape", "paper"]

MEASURES = (
    "procrustes", "cka", "cca", "regression", "svcca", "pwcca", "partial", "rsa", "knn", "jaccard",
)  # fmt: skip

FORMULAS = {
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
    "partial": (
        "the mean correlation between axes that are matched, so many of either side that fit best; "
        "the distance, one minus it, is no metric"
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
        whitening, share, dissimilarity, correlation, neighbours, width, shuffles: as for
            `similarity`.
        rbf: True for CKA with Gaussian kernels.
        most: among so many samples pairs are compared; None for as many as of one pair of sites.
    """

    measure: Measure
    normalization: Normalization
    kernel: Kernel | None
    unbiased: bool
    folds: int
    constant: Constant
    seed: int
    whitening: float = 0.0
    share: float = 0.5
    dissimilarity: Dissimilarity = "euclidean"
    correlation: Correlation = "pearson"
    neighbours: int = 10
    width: float = 0.4
    shuffles: int = 0
    rbf: bool = False
    most: int | None = None

    @property
    def of_samples(self) -> bool:
        """True if pairs of samples are compared, so that all of them are needed at once."""
        return self.measure in ("rsa", "knn", "jaccard") or self.rbf

    @property
    def usual_group(self) -> str:
        """The group of two matrices of which none is said."""
        if self.measure in ("cca", "regression"):
            return "general-linear"
        usual = {"pwcca": "signed-permutation", "partial": "positive-monomial"}
        return usual.get(self.measure, "orthogonal")

    @property
    def formula(self) -> str:
        """How the number is computed, for what the measure's name alone stands for."""
        formula = FORMULAS[self.measure]
        if self.whitening:
            formula += (
                f". Both were brought {self.whitening:g} of the way to white axes first: "
                "x ((1 - w) I + w S^(-1/2)), S the covariance at a mean variance of one"
            )
        if self.measure == "partial":
            formula += f". Matched were {self.share:.0%}"
        return formula

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
        if self.measure == "partial" and not isinstance(group, OnAxes):
            raise ValueError(
                f"{what}: single axes are matched, or left; give a group that moves them, such as "
                'group="positive-monomial"'
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


_MOST_FOLDS = 10_000
"""Every part of the data has sums of its own in memory."""

_USUAL: dict[str, Any] = {
    "whitening": 0.0, "share": 0.5, "dissimilarity": "euclidean", "correlation": "pearson",
    "neighbours": 10, "width": 0.4, "kernel": None,
}  # fmt: skip
"""What an option is unless it is given."""

_USES = {
    "procrustes": ("whitening",),
    "cka": ("kernel",),
    "partial": ("share",),
    "rsa": ("dissimilarity", "correlation"),
    "knn": ("dissimilarity", "neighbours"),
    "jaccard": ("dissimilarity", "neighbours"),
}
"""Which options belong to a measure."""


def plan_of(
    measure: str,
    *,
    kernel: str | None,
    estimator: str,
    folds: int,
    constant: str,
    seed: int,
    normalization: str = "shape",
    several: bool = False,
    shuffles: int = 0,
    **options: Any,
) -> Plan:
    """What is to be compared, checked.

    All options mean what they mean for `similarity`, and those without a default must be given.
    With `several` they are meant for other measures, too: those that this one does not use are left
    out.

    Raises:
        ValueError: for a name or number that makes no sense.
    """
    one_of("measure", measure, MEASURES)
    rbf = isinstance(kernel, str) and kernel == "rbf"
    named = None if kernel is None or rbf else kernel_from_name(kernel)
    given: dict[str, Any] = {**options, "kernel": kernel}
    uses = _USES.get(measure, ())
    if measure == "cka" and rbf:
        uses = ("kernel", "width")
    if several:
        given = {name: given[name] if name in uses else _USUAL[name] for name in given}
        named, rbf = (named, rbf) if "kernel" in uses else (None, False)
    folds = whole("folds", folds, least=1, most=_MOST_FOLDS)
    neighbours = whole("neighbours", given["neighbours"], least=1)
    shuffles = whole("shuffles", shuffles)
    seed = seed_of(seed)
    width, share = number("width", given["width"]), number("share", given["share"], most=1.0)
    whitening = number("whitening", given["whitening"], least=0.0)
    one_of("dissimilarity", given["dissimilarity"], ("euclidean", "cosine", "correlation"))
    one_of("correlation", given["correlation"], ("pearson", "spearman"))
    for name, value in given.items():
        if value != _USUAL[name] and name not in uses:
            belongs = [other for other, used in _USES.items() if name in used]
            where = " or ".join(f"measure={other!r}" for other in belongs) or "kernel='rbf'"
            raise ValueError(
                f"{name}={value!r} belongs to {where}, and {measure!r} was asked for: leave it out"
            )
    if not whitening < 1:
        raise ValueError(
            f"whitening={whitening}: give a share from 0 to below 1; all of the way is "
            'measure="cca" with group="general-linear"'
        )
    one_of("normalization", normalization, ("shape", "paper"))
    one_of("estimator", estimator, ("unbiased", "biased"))
    one_of("constant", constant, ("refuse", "ignore"))
    if measure in ("knn", "jaccard") and given["dissimilarity"] == "correlation":
        raise ValueError('dissimilarity="correlation" belongs to measure="rsa"')
    if normalization == "paper" and (whitening or rbf):
        raise ValueError(
            'normalization="paper" has neither whitening nor a Gaussian kernel: leave them out'
        )
    return Plan(
        measure=measure,  # pyright: ignore[reportArgumentType]
        normalization=normalization,  # pyright: ignore[reportArgumentType]
        kernel=named,
        unbiased=estimator == "unbiased",
        folds=folds,
        constant=constant,  # pyright: ignore[reportArgumentType]
        seed=seed,
        whitening=whitening,
        share=share,
        dissimilarity=given["dissimilarity"],
        correlation=given["correlation"],
        neighbours=neighbours,
        width=width,
        shuffles=shuffles,
        rbf=rbf,
    )


def require_in_paper(plan: Plan, group: Group) -> None:
    """Raises ValueError unless the paper has a formula for the measure up to a group."""
    known = (PositiveMonomial, Orthogonal)
    if plan.measure not in ("procrustes", "cka") or not isinstance(group, known):
        raise ValueError(
            "the paper compares by Procrustes and CKA, up to the orthogonal group and positive "
            f"monomial matrices; {plan.measure} up to {group.name} is not among them"
        )


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
