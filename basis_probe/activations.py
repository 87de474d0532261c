"""The main job for people who already have a matrix of activations."""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast, overload, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from basis_probe.algebra.groups import Group, Unknown, group_from_name
from basis_probe.algebra.intertwiner import callable_of
from basis_probe.arguments import array_of, seed_of
from basis_probe.arrays import Given, Matrix, Rows, matrix, shape_of, sites_in
from basis_probe.brief import described
from basis_probe.devices import on_own_device
from basis_probe.errors import DataError
from basis_probe.evidence.measure import affordable
from basis_probe.evidence.site import (
    Case,
    Companions,
    Evidence,
    chosen_null,
    chosen_scores,
    gather,
    listed_scores,
)
from basis_probe.model.roles import layer_number
from basis_probe.results.report import Provenance, Report, SiteReport
from basis_probe.results.symmetry import Symmetry
from basis_probe.run.report import versions
from basis_probe.run.watch import overrides
from basis_probe.statistics.moments import Moments, SampleKurtosis
from basis_probe.statistics.nulls import (
    Counterfactual,
    Geometry,
    LinearLayer,
    Null,
    Problem,
    RandomWeights,
    SparseWiring,
    geometry_of,
)
from basis_probe.statistics.scores import Score
from basis_probe.verdict import LEVEL, outliers_across, report

if TYPE_CHECKING:
    from basis_probe.statistics.bases import Candidate

Groups = Group | str | Mapping[str, Group | str]
Nonlinearity = str | Callable[[Tensor], Tensor] | nn.Module


@runtime_checkable
class Cache(Protocol):
    """What `run_with_cache` of TransformerLens returns: names and tensors."""

    def items(self) -> Iterable[tuple[str, Tensor]]: ...


@overload
def probe_activations(
    x: Given,
    *,
    group: Group | str | None = None,
    pre: Given | None = None,
    nonlinearity: Nonlinearity | None = None,
    inputs: Given | None = None,
    weight: Matrix | None = None,
    bias: Matrix | None = None,
    examples: Sequence[Any] | Matrix | None = None,
    mask: Matrix | None = None,
    null: str | Null | None = None,
    scores: Iterable[str | Score] | None = None,
    bases: "Iterable[str | Candidate | Matrix] | str | Candidate | None" = None,
    paths: int = 0,
    seed: int = 0,
) -> SiteReport: ...


@overload
def probe_activations(
    x: Mapping[str, Given] | Cache,
    *,
    group: Groups | None = None,
    examples: Sequence[Any] | Matrix | None = None,
    mask: Matrix | None = None,
    null: str | Null | None = None,
    scores: Iterable[str | Score] | None = None,
    bases: "Iterable[str | Candidate | Matrix] | str | Candidate | None" = None,
    paths: int = 0,
    seed: int = 0,
) -> Report: ...


@on_own_device
def probe_activations(
    x: Given | Mapping[str, Given] | Cache,
    *,
    group: Groups | None = None,
    pre: Given | None = None,
    nonlinearity: Nonlinearity | None = None,
    inputs: Given | None = None,
    weight: Matrix | None = None,
    bias: Matrix | None = None,
    examples: Sequence[Any] | Matrix | None = None,
    mask: Matrix | None = None,
    null: str | Null | None = None,
    scores: Iterable[str | Score] | None = None,
    bases: "Iterable[str | Candidate | Matrix] | str | Candidate | None" = None,
    paths: int = 0,
    seed: int = 0,
) -> SiteReport | Report:
    """The report of sites whose activations are at hand.

    Without a model no untrained network can be asked, so that "training, or an initialisation with
    axes of its own" stays open where axes stand out that the group does not fix; `probe` can.

    Args:
        x: the activations, [samples, dim], or [batch, position, dim] of sequences. A mapping of
            names to such arrays, or an `ActivationCache` of TransformerLens, gives a report of them
            all, whose p-values are adjusted over all sites; of a cache, what has no feature axes is
            left out, and the report says what. In place of an array, the path of a .npy file, or a
            list of parts that follow each other: arrays, .npy files, slices of
            `safetensors.safe_open`, sets of h5py. In place of a mapping, the path of a .safetensors
            file, or a list of them, each with some rows of all arrays. They may be larger than
            memory: a block of rows is read at a time, and memory for the rows that are compared and
            a few bytes for each other one is all that is needed.
        group: which changes of basis the weights around the site absorb: a group, or its name
            ("orthogonal", "permutation", "positive-monomial", "general-linear" ...); None if that
            is not known, and then nothing is said about the architecture. For a mapping also name
            or glob -> group.
        pre: the pre-activations, shaped as x; with `nonlinearity` they make the approximate
            counterfactual null.
        nonlinearity: what makes x of pre: its name, a function or a module.
        inputs: the layer's inputs, [samples, in] or [batch, position, in]; with `weight` they make
            the exact one.
        weight: [dim, in], as in `torch.nn.Linear`.
        bias: [dim].
        examples: which sequence or image every row is of, [samples]: rows of one are not
            independent of each other, and intervals leave them out together. None: each its own,
            and of [batch, position, dim] the batch says it.
        mask: [batch, position], not zero where a position counts; None if all do. Padding is not
            seen in the numbers themselves, so give it where there is any.
        null: "rotation", "counterfactual" or a null as a value; None for the one that fits.
        scores: names of scores, any of `bp.scores.ALL`, and "quantisation" and "weights", which
            bring nulls of their own; None for `bp.scores.DEFAULT`.
        bases: other bases to compare the axes with: names ("pca", "ica", "varimax" ...), candidates
            or matrices [directions, dim]; None for none. The best one is returned.
        paths: to how many turned bases the deciding score is followed, 0 for none.
        seed: seeds the sample of rows and the alternatives.

    Raises:
        TypeError: for integer or complex values.
        ValueError: for shapes that do not fit, or values that are NaN or infinite.

    Example:
        >>> import torch, basis_probe as bp
        >>> generator = torch.Generator().manual_seed(0)
        >>> uniform = torch.rand(4000, 16, generator=generator, dtype=torch.float64) - 0.5
        >>> laplace = -uniform.sign() * (1 - 2 * uniform.abs()).log()
        >>> bp.probe_activations(laplace, group="orthogonal").verdict.outcome.name
        'EMERGENT'
        >>> several = {"one": laplace, "other": laplace.view(40, 100, 16)}
        >>> bp.probe_activations(several, group="orthogonal").sites
        ('one', 'other')
    """
    scores = listed_scores(scores)
    settings = _Settings(
        chosen_scores(scores),
        chosen_null(null),
        seed_of(seed),
        Companions.of(bases, paths, scores),
    )
    if hasattr(x, "to_numpy"):
        # A table of pandas or polars: its columns are the axes.
        x = cast("Any", x).to_numpy()
    stored = sites_in(x)
    if stored is not None:
        x = dict(stored)
    if not isinstance(x, Tensor | np.ndarray) and hasattr(x, "items"):
        own = {"pre": pre, "nonlinearity": nonlinearity, "inputs": inputs, "weight": weight}
        given = [name for name, value in {**own, "bias": bias}.items() if value is not None]
        if given:
            raise ValueError(
                f"{', '.join(given)} belong to one site: give them with its activations alone"
            )
        return _several(cast("Mapping[str, Any]", x), group, examples, mask, settings)
    if isinstance(group, Mapping):
        raise ValueError("group is a mapping, and x one array: give the group of x itself")
    rows = _Samples.of("x", x, examples, mask)
    case = _case(
        "activations",
        rows,
        symmetry_of(group, rows.rows.dim),
        settings,
        pre=None if pre is None else rows.alike("pre", pre),
        nonlinearity=nonlinearity,
        inputs=None if inputs is None else rows.alike("inputs", inputs),
        weight=weight,
        bias=bias,
    )
    return report([settings.gathered(case)])[0]


@dataclasses.dataclass(frozen=True)
class _Settings:
    """What was asked for, checked."""

    scores: tuple[Score, ...]
    null: Null | None
    seed: int
    companions: Companions

    def gathered(self, case: Case) -> Evidence:
        return gather(case, self.scores, self.null, seed=self.seed, companions=self.companions)


@dataclasses.dataclass(frozen=True, eq=False)
class _Samples:
    """Activations as rows that count.

    Attributes:
        rows: the activations.
        mask: which of their rows count, [rows]; None if all do.
        examples: of which sequence or image each that counts is.
    """

    rows: Rows
    mask: Tensor | None
    examples: Tensor

    @staticmethod
    def of(
        name: str,
        given: Any,
        examples: Sequence[Any] | Matrix | None,
        mask: Matrix | None,
        features: int = 1,
    ) -> "_Samples":
        """The rows of an array whose last axes are features, those that count.

        Raises:
            TypeError, ValueError: if it is no such array, or mask or examples do not fit it.
        """
        rows = Rows.of(name, given, features)
        counted = None
        if mask is not None:
            flags = array_of("mask", mask, "true or false for every position, or None")
            if flags.shape != rows.leading or not rows.leading:
                held = (
                    f"{rows.leading} [batch, position]" if rows.leading else "no array of sequences"
                )
                raise ValueError(
                    f"mask has shape {flags.shape}, and {name} is {held}: give one entry for every "
                    "position"
                )
            if flags.dtype.kind in "US":
                raise TypeError(f"mask holds texts, {described(flags)}: give true or false")
            counted = torch.from_numpy(flags.flatten() != 0)
            if not counted.any():
                raise ValueError(f"mask leaves no row of {name}: it is zero at every position")
        if rows.leading and examples is None:
            numbers = torch.arange(rows.leading[0]).repeat_interleave(rows.leading[1])
        else:
            numbers = example_numbers(examples, len(rows))
        return _Samples(rows, counted, numbers if counted is None else numbers[counted])

    def __len__(self) -> int:
        return len(self.examples)

    def alike(self, name: str, given: Any) -> "_Samples":
        """Another array of the same samples.

        Raises:
            ValueError: if it has another number of them.
        """
        rows = Rows.of(name, given)
        if len(rows) != len(self.rows):
            raise ValueError(
                f"{name} has shape {rows.shape}, and its axis 0 must have {len(self.rows)} "
                "entries to fit x"
            )
        return _Samples(rows, self.mask, self.examples)

    def picked(self, kept: Tensor, seen: Callable[[Tensor], None] | None = None) -> Tensor:
        """Some of the rows in float64, [kept, dim], in the order asked for.

        Args:
            kept: their numbers among the rows that count.
            seen: is called with every block on the way.
        """
        order = kept.argsort()
        wanted = kept[order]
        found = torch.empty(len(kept), self.rows.dim, dtype=torch.float64)
        first = 0
        for block in self.rows.blocks(self.mask):
            if seen is not None:
                seen(block)
            ends = torch.tensor([first, first + len(block)])
            start, stop = torch.searchsorted(wanted, ends).tolist()
            found[order[start:stop]] = block[wanted[start:stop] - first]
            first += len(block)
        return found


_HEADS = re.compile(r"(?:^|\.)hook_(?:q|k|v|z)$")
"""Names of caches whose last two axes are features: head, and axis within it."""


def _several(
    x: Mapping[str, Any],
    groups: Groups | None,
    examples: Sequence[Any] | Matrix | None,
    mask: Matrix | None,
    settings: _Settings,
) -> Report:
    """The report of all entries, p-values adjusted for all of them together."""
    entries = {str(name): value for name, value in x.items()}
    left_out: list[str] = []
    cached = not isinstance(x, dict)
    if cached:
        # A cache holds patterns, scales and token ids too.
        kept = {name: value for name, value in entries.items() if _has_features(name, value)}
        # Tables of positions have features too, but are of no example.
        leading = {
            name: tuple(value.shape[: value.ndim - _features(name, value, cached=True)])
            for name, value in kept.items()
        }
        usual = Counter(leading.values()).most_common(1)[0][0] if leading else ()
        kept = {name: value for name, value in kept.items() if leading[name] == usual}
        left_out = [name for name in entries if name not in kept]
        entries = kept
    if not entries:
        raise ValueError("x holds no activations: give names and arrays [samples, dim]")
    rows = {
        name: _Samples.of(name, value, examples, mask, _features(name, value, cached=cached))
        for name, value in entries.items()
    }
    chosen = overrides(groups, rows)
    cases = [
        _case(name, held, symmetry_of(chosen.get(name), held.rows.dim), settings)
        for name, held in rows.items()
    ]
    found = [settings.gathered(case) for case in cases]
    first = next(iter(rows.values()))
    notes = (
        () if not left_out else (f"Left out, as their features are not known: {_told(left_out)}.",)
    )
    provenance = Provenance(
        model="activations that were given",
        data=f"{len(rows)} arrays, {len(first)} samples in the first",
        seed=settings.seed,
        n_batches=1,
        n_examples=int(first.examples.unique().numel()),
        versions=versions(),
        device="cpu",
        dtype=str(getattr(first.rows.parts[0], "dtype", "")).removeprefix("torch."),
        level=LEVEL,
        settings={
            "sites": ", ".join(rows),
            "scores": ", ".join(
                score.name for score in (*settings.scores, *settings.companions.own)
            ),
            "null": "by site" if settings.null is None else repr(settings.null),
            "groups": "not given" if groups is None else str(groups),
        },
    )
    sites = report(found)
    return Report(sites, provenance, notes=(*notes, *outliers_across(sites)))


def _told(names: Sequence[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more


def _features(name: str, value: Any, *, cached: bool) -> int:
    """How many axes are features; a cache may hold one sequence without an axis for the batch."""
    heads = _HEADS.search(name) is not None
    shape = shape_of(value[0] if isinstance(value, list | tuple) and value else value)
    return 2 if heads and len(shape) in ((3, 4) if cached else (4,)) else 1


def features_of(name: str, value: Any) -> int:
    """How many last axes of a cached array are features; 0 where it holds no activations."""
    return _features(name, value, cached=True) if _has_features(name, value) else 0


def _has_features(name: str, value: Any) -> bool:
    """True for floating-point numbers whose last axis, or last two, are known to be features."""
    if not isinstance(value, Tensor | np.ndarray) or value.shape[-1:] in ((), (1,)):
        return False
    return torch.as_tensor(value[:0]).is_floating_point() and (
        value.ndim - _features(name, value, cached=True) in (1, 2)
    )


def _case(
    name: str,
    rows: _Samples,
    symmetry: Symmetry,
    settings: _Settings,
    *,
    pre: _Samples | None = None,
    nonlinearity: Nonlinearity | None = None,
    inputs: _Samples | None = None,
    weight: Matrix | None = None,
    bias: Matrix | None = None,
) -> Case:
    """What is known of one site before its axes are compared with anything."""
    samples, dim = len(rows), rows.rows.dim
    wanted = settings.null
    if pre is not None and pre.rows.dim != dim:
        raise ValueError(
            f"pre has shape {pre.rows.shape}, and its axis {len(pre.rows.shape) - 1} must have "
            f"{dim} entries to fit x"
        )
    function = None if nonlinearity is None else callable_of(nonlinearity)[1]
    if pre is not None and function is None:
        raise ValueError("pre is given without nonlinearity: name what makes x of pre")
    if (inputs is None) != (weight is None):
        raise ValueError("inputs and weight belong together: give both or neither")
    if bias is not None and weight is None:
        raise ValueError("bias is given without weight: give inputs and weight too")
    if function is not None and pre is None and inputs is None:
        raise ValueError(
            "nonlinearity is given without what it reads: give pre, or inputs and weight"
        )
    if isinstance(wanted, Counterfactual) and pre is None and inputs is None:
        raise ValueError(
            "the counterfactual null needs inputs and weight, or pre and nonlinearity; x alone "
            "allows the rotation null"
        )
    if isinstance(wanted, SparseWiring) and inputs is None:
        raise ValueError(
            "the sparse-wiring null needs inputs and weight; x alone allows the rotation null"
        )
    if isinstance(wanted, RandomWeights):
        raise ValueError(
            "the random-weights null needs the model itself: ask for it in bp.probe, with data "
            "that can be read several times"
        )
    read = dim
    if inputs is not None and weight is not None:
        read = math.prod(weight.shape[1:])
    capacity = affordable(read, dim).samples if wanted is None else wanted.samples
    generator = torch.Generator().manual_seed(settings.seed)
    order = torch.randperm(samples, generator=generator)
    kept = order[: max(capacity, settings.companions.rows)]
    line = geometry_of(symmetry.group) is Geometry.LINE
    moments, across = Moments.empty(dim), SampleKurtosis.empty(dim)

    def see(block: Tensor) -> None:
        nonlocal moments, across
        moments = moments + Moments.of(block)
        across = across + SampleKurtosis.of(block - block.mean(1, keepdim=True) if line else block)

    x = rows.picked(kept, see)
    problem = Problem(
        x=x,
        group=symmetry.group,
        halves=torch.arange(len(kept)) % 2,
        pre=None if pre is None else pre.picked(kept),
        nonlinearity=function if pre is not None else None,
        examples=rows.examples[kept],
        layer=None
        if inputs is None or weight is None
        else layer_of(inputs.picked(kept), weight, bias, function, x),
    )
    everywhere = {
        "kurtosis": float(moments.kurtosis.nanmean()),
        "sample_kurtosis": float(across.mean),
    }
    if function is None:
        everywhere["non_gaussianity"] = float(moments.excess_kurtosis.abs().nanmean())
    return Case(
        site=name,
        kind="activations" if function is None else "neurons behind a nonlinearity",
        layer=layer_number(name),
        shape=rows.rows.feature_shape,
        symmetry=symmetry,
        n_samples=samples,
        n_dead=int(moments.constant.sum()),
        problem=problem,
        all_samples=everywhere,
    )


def example_numbers(examples: Sequence[Any] | Matrix | None, samples: int) -> Tensor:
    """A whole number for every row, the same for rows of one example.

    Raises:
        TypeError, DataError: for what does not name an example for every row.
    """
    if examples is None:
        return torch.arange(samples)
    names = array_of("examples", examples, "a number or a text for every row")
    if names.shape != (samples,):
        raise DataError(
            f"examples has shape {names.shape}, and x has {samples} rows: name the sequence or "
            "image of every row"
        )
    return torch.from_numpy(np.unique(names, return_inverse=True)[1].astype(np.int64))


def symmetry_of(group: Group | str | None, dim: int) -> Symmetry:
    """The symmetry that a given group stands for; nothing is known without one."""
    if group is None:
        unknown = Unknown(dim)
        return Symmetry(unknown, unknown.privileged, "No group was given.", "none")
    if isinstance(group, str):
        group = group_from_name(group, dim)
    if not isinstance(group, Group):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"group={described(group)}: give a group or its name, or None")
    if group.dim != dim:
        raise ValueError(f"the group {group!r} acts on {group.dim} features, and x has {dim}")
    return Symmetry(group, group.privileged, "The group was given, not derived.", "the user")


def layer_of(
    inputs: Matrix,
    weight: Matrix,
    bias: Matrix | None,
    function: Callable[[Tensor], Tensor] | None,
    x: Tensor,
) -> LinearLayer:
    """The layer as numbers, from what it reads and writes at some samples.

    Raises:
        ValueError: if it does not make the activations that were given.
    """
    samples, dim = x.shape
    read = matrix("inputs", inputs, rows=samples)
    maps = matrix("weight", weight, rows=dim, columns=read.shape[1])
    offset = None
    if bias is not None:
        offset = torch.as_tensor(bias).detach().cpu().double().flatten()
        if len(offset) != dim:
            raise ValueError(f"bias has {len(offset)} entries, and x has {dim} axes")

    def bent(outputs: tuple[Tensor, ...]) -> Tensor:
        return outputs[0] if function is None else function(outputs[0])

    made = read @ maps.T
    made = bent((made if offset is None else made + offset,))
    error, scale = float((made - x).abs().max()), float(x.square().mean().sqrt())
    if not error <= 1e-2 * max(scale, 1e-30):
        raise ValueError(
            f"inputs, weight, bias and nonlinearity do not make x: they are off by {error:.2g} "
            f"where x has a size of {scale:.2g}; give the inputs of this very layer"
        )
    return LinearLayer(
        inputs=read[:, :, None],
        weights=(maps[:, :, None],),
        biases=(offset,),
        pre=None if function is None else (lambda outputs: outputs[0]),
        post=bent,
        geometry=Geometry.EUCLIDEAN,
        centred=False,
    )
