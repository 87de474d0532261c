"""How alike two networks are at a place, up to the changes of basis allowed there."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, overload

import numpy as np
import torch
from torch import Tensor, nn

from basis_probe.algebra.groups import (
    GeneralLinear,
    Group,
    OnAxes,
    Orthogonal,
    PositiveMonomial,
    group_from_name,
)
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
    pooled,
)
from basis_probe.errors import DataError, SiteError
from basis_probe.model.network import prepared
from basis_probe.results.similarity import Similarities, Similarity, spread_of
from basis_probe.statistics.effective import distinct_rows
from basis_probe.statistics.second_moments import Crossed

Matrix = Tensor | np.ndarray
Measure = Literal["procrustes", "cka", "cca", "regression"]
Normalization = Literal["shape", "paper"]

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
    """

    measure: Measure
    normalization: Normalization
    kernel: Kernel | None
    unbiased: bool
    folds: int
    constant: Constant
    seed: int

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
) -> Similarity: ...  # fmt: skip


@overload
def similarity(
    x: nn.Module, y: nn.Module, data: Iterable[Any], *, site: str,
    other_site: str | None = None, other_data: Iterable[Any] | None = None,
    group: Group | str | None = None, measure: Measure = "procrustes",
    normalization: Normalization = "shape", kernel: str | None = None,
    estimator: Literal["unbiased", "biased"] = "unbiased", folds: int = 5,
    constant: Constant | None = None, seed: int = 0,
) -> Similarity: ...  # fmt: skip


@overload
def similarity(
    x: nn.Module, y: nn.Module, data: Iterable[Any], *, site: None = None,
    other_site: None = None, other_data: Iterable[Any] | None = None,
    group: Group | str | None = None, measure: Measure = "procrustes",
    normalization: Normalization = "shape", kernel: str | None = None,
    estimator: Literal["unbiased", "biased"] = "unbiased", folds: int = 5,
    constant: Constant | None = None, seed: int = 0,
) -> Similarities: ...  # fmt: skip


def similarity(
    x: Matrix | nn.Module,
    y: Matrix | nn.Module,
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
) -> Similarity | Similarities:
    """How alike two networks are, where their axes are only defined up to a group.

    An element that is fitted is scored on examples that it was not fitted on: a permutation that is
    fitted and scored on the same samples flatters. Feature maps have channels as axes and positions
    as samples; the larger of two maps is averaged down to the size of the smaller. Different widths
    are compared by a partial turn, or by soft matching where axes change places.

    Args:
        x: a matrix [samples, axes] or feature maps [samples, channels, *space], numpy or torch; or
            a model as for `probe`.
        y: the same samples of the other network, or the other model.
        data: for models, batches as for `probe`; both networks see each batch in turn.
        site: the place in the first model; None for every sensible place that both have.
        other_site: the place in the second model; None for the same name.
        other_data: the same examples as the second model takes them, where that differs.
        group: a group, or its name; None for the one of the site, and for matrices "orthogonal".
        measure: "procrustes" for any group; "cka" for groups of rotations, permutations and
            monomial matrices; "cca" and "regression" for the general linear group.
        normalization: "shape" for what the group leaves of centred data of unit size; "paper" for
            the formulas of Godfrey et al. 2022 as they stand: nothing is held out, axes are not
            centred for Procrustes, smaller maps and networks are enlarged by repetition and zeros,
            and CKA brings every axis to unit size whatever the group.
        kernel: for CKA: "linear", "max", "median" or "smooth"; None for linear where axes may be
            turned and for max, which the paper uses, where they may not. All of them are blind to
            signs of axes. Max, median and smooth take inner products over positions; linear takes
            positions as samples.
        estimator: of the independence criterion in CKA.
        folds: into how many parts the examples are divided; 1 to hold nothing out.
        constant: "refuse" or "ignore" axes that never vary, where their scale would be needed; None
            to refuse them in matrices and to ignore them in models, where some neurons are dead.
        seed: seeds the division into parts.

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
    plan = plan_of(measure, normalization, kernel, estimator, folds, constant, seed)
    if isinstance(x, nn.Module) and isinstance(y, nn.Module):
        if data is None:
            raise DataError("two models are given without data: give batches to run them on")
        return _of_models((x, y), data, other_data, site, other_site, group, plan)
    if isinstance(x, nn.Module) or isinstance(y, nn.Module):
        raise TypeError("one of the two is a model and the other is not: give two of one kind")
    if data is not None or site is not None or other_site is not None or other_data is not None:
        raise ValueError("data and sites belong to models; two matrices were given")
    return _of_matrices(x, y, group, plan)


def plan_of(
    measure: str,
    normalization: str,
    kernel: str | None,
    estimator: str,
    folds: int,
    constant: str,
    seed: int,
) -> Plan:
    """What is to be compared, checked.

    Raises:
        ValueError: for a name or number that makes no sense.
    """
    _one_of("measure", measure, ("procrustes", "cka", "cca", "regression"))
    _one_of("normalization", normalization, ("shape", "paper"))
    _one_of("estimator", estimator, ("unbiased", "biased"))
    _one_of("constant", constant, ("refuse", "ignore"))
    if folds < 1:
        raise ValueError(f"folds={folds}: give a positive number")
    if kernel is not None and measure != "cka":
        raise ValueError(
            f"kernel={kernel!r} belongs to measure='cka', and {measure!r} was asked for"
        )
    return Plan(
        measure,  # pyright: ignore[reportArgumentType]
        normalization,  # pyright: ignore[reportArgumentType]
        None if kernel is None else kernel_from_name(kernel),
        estimator == "unbiased",
        folds,
        constant,  # pyright: ignore[reportArgumentType]
        seed,
    )


def _one_of(what: str, given: str, known: tuple[str, ...]) -> None:
    if given not in known:
        raise ValueError(f"{what}={given!r} is not known: give one of {', '.join(known)}")


# --- two matrices ---------------------------------------------------------------------------------


def _of_matrices(x: Matrix, y: Matrix, group: Group | str | None, plan: Plan) -> Similarity:
    own, other = _checked("x", x), _checked("y", y)
    if len(own) != len(other):
        raise DataError(
            f"x has {len(own)} samples and y {len(other)}: give the same samples of both, in the "
            "same order"
        )
    own, other = same_space(own, other, enlarge=plan.normalization == "paper")
    groups = groups_for(group or "orthogonal", own.shape[1], other.shape[1])
    state = State(plan, groups, whole=True)
    generator = torch.Generator().manual_seed(plan.seed)
    order = torch.randperm(len(own), generator=generator)
    fold = torch.empty(len(own), dtype=torch.int64)
    fold[order] = torch.arange(len(own)) % plan.folds
    state.see(_caught(own), _caught(other), fold)
    return state.finish(("", ""))


def _checked(name: str, values: Matrix) -> Tensor:
    if not isinstance(values, Tensor | np.ndarray):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f"{name} is a {type(values).__name__}: give a numpy array or a torch tensor"
        )
    tensor = torch.as_tensor(values).detach()
    if not tensor.is_floating_point():
        raise TypeError(
            f"{name} holds {str(tensor.dtype).removeprefix('torch.')}: activations are "
            "floating-point numbers; convert them, for example with .float()"
        )
    if tensor.ndim < 2 or tensor.numel() == 0:
        raise DataError(
            f"{name} has shape {tuple(tensor.shape)}: give [samples, axes], or feature maps "
            "[samples, channels, *space]"
        )
    bad = int((~torch.isfinite(tensor)).sum())
    if bad:
        raise DataError(
            f"{name} holds {bad} values that are NaN or infinite: remove those samples from both"
        )
    return tensor


def same_space(x: Tensor, y: Tensor, *, enlarge: bool) -> tuple[Tensor, Tensor]:
    """Two feature maps at one size: the larger averaged down, or the smaller repeated.

    Raises:
        DataError: if one is a feature map and the other is not.
    """
    if x.ndim != y.ndim:
        raise DataError(
            f"x has shape {tuple(x.shape)} and y {tuple(y.shape)}: compare two matrices, or two "
            "sets of feature maps"
        )
    if x.shape[2:] == y.shape[2:]:
        return x, y
    if not enlarge:
        space = tuple(min(a, b) for a, b in zip(x.shape[2:], y.shape[2:], strict=True))
        return pooled(x, space), pooled(y, space)
    space = tuple(max(a, b) for a, b in zip(x.shape[2:], y.shape[2:], strict=True))
    return nn.functional.interpolate(x, space), nn.functional.interpolate(y, space)


def _caught(maps: Tensor) -> Caught:
    """Feature maps [samples, axes, *space] as they are caught at a site."""
    space = tuple(maps.shape[2:]) or None
    return Caught(maps.flatten(2).movedim(1, 2) if space else maps[:, None], None, space)


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
        if plan.measure in ("cca", "regression") and not isinstance(groups[0], GeneralLinear):
            raise ValueError(
                f"{plan.measure} allows every linear map and the group is {groups[0].name}: give "
                'group="general-linear", or measure="procrustes"'
            )
        if plan.normalization == "paper":
            _require_in_paper(plan, groups[0])
        self.plan, self.groups, self.whole = plan, groups, whole
        self.kernel = plan.kernel_for(groups[0]) if plan.measure == "cka" else None
        self.moments = [Crossed.empty(groups[0].dim, groups[1].dim) for _ in range(plan.folds)]
        self.kernels: list[Hsic] = []
        self.parts: list[float] = []
        self.examples = self.samples = 0
        self.turned = max(map(turned_axes, groups)) if self.kernel is None else 0
        self.different = Different(self.turned)
        self.repeated = Repeated(plan.folds)

    def see(self, x: Caught, y: Caught, fold: Tensor) -> None:
        """Adds the examples of one batch.

        Args:
            x: the activations of one network.
            y: those of the other for the same examples.
            fold: [examples], to which part of the data each belongs.
        """
        self.examples += len(x.values)
        if self.kernel is not None:
            self._see_kernels(x, y, fold)
            return
        for part in range(self.plan.folds):
            chosen = (fold == part).nonzero().flatten()
            if len(chosen):
                rows = matched({"x": _some(x, chosen)}, "x", _some(y, chosen))
                self.samples += len(rows[0])
                self.different.see(*rows)
                self.moments[part] += Crossed.of(*rows)
                if self.plan.folds > 1:
                    self.repeated.see(part, *rows)

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
        if self.kernel is not None:
            return self._cka(sites)
        total = sum(self.moments[1:], self.moments[0])
        if self.plan.normalization == "paper":
            return self._paper(total, sites)
        if self.plan.measure == "regression":
            return self._fitted(total, sites, _regression, lambda value: 1 - value)
        return self._fitted(total, sites, self._aligned, chord)

    def _aligned(self, train: Crossed, test: Crossed) -> tuple[float, Alignment]:
        found = align(*self.groups, train, constant=self.plan.constant)
        value = found.similarity(test)
        if self.plan.measure == "cca":
            # The mean over the directions of the smaller one.
            ranks = [form.weights.shape[1] for form in (found.x, found.y)]
            value *= math.sqrt(ranks[0] * ranks[1]) / min(ranks)
        return value, found

    @property
    def mixed(self) -> int:
        """How many axes every invertible map may mix."""
        return max(map(mixed_axes, self.groups)) if self.kernel is None else 0

    def _fitted(
        self,
        total: Crossed,
        sites: tuple[str, str],
        fit: Callable[[Crossed, Crossed], tuple[float, Alignment | None]],
        distance: Callable[[float], float],
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
        return self._result(
            value, distance(value), spread_of(held_out), in_sample, sites, alignment, notes,
            _FORMULAS[self.plan.measure],
        )  # fmt: skip

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
        angle = math.acos(max(-1.0, min(1.0, value)))
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
            caught, others = networks[0].run(batch), networks[1].run(other)
            rows = next((spot.rows for spot in networks[0].spots.values()), None)
            fold = fold_of(batch, folds=plan.folds, seed=plan.seed, rows=rows)
            for (name, other_name), state in states.items():
                state.see(*_sized(caught[name], others[other_name], plan), fold)
    results = Similarities((names[0], state.finish(names)) for names, state in states.items())
    return next(iter(results.values())) if site is not None else results


def _sized(x: Caught, y: Caught, plan: Plan) -> tuple[Caught, Caught]:
    if plan.normalization != "paper" or x.space == y.space:
        common_space(x, y)
        return x, y
    made = same_space(x.maps(), y.maps(), enlarge=True)
    return _caught(made[0]), _caught(made[1])


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
