"""From a site's samples to its scores: which null, which frames, which numbers."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from basis_probe.algebra.groups import Blocks, DirectSum, Group, Privileged
from basis_probe.evidence.scored import scored, without_frames
from basis_probe.results.evidence import ClosedFormRecord, FewAxes, NullRecord, ScoreResult
from basis_probe.statistics import closed_forms
from basis_probe.statistics.effective import distinct_rows, effective_samples
from basis_probe.statistics.few_axes import (
    FewTest,
    few_axes,
    few_of_many,
    repeated,
)
from basis_probe.statistics.floors import floor_of
from basis_probe.statistics.moments import Moments
from basis_probe.statistics.nulls import (
    Counterfactual,
    CovariancePreserving,
    Frame,
    GaussianSurrogate,
    Geometry,
    LinearLayer,
    Null,
    Problem,
    RandomWeights,
    Rotation,
    SparseWiring,
    TurnedPreactivation,
    geometry_of,
    parts_of,
)
from basis_probe.statistics.nulls.wiring import FEWEST_INPUTS, geometry_of_inputs, rewirable
from basis_probe.statistics.orders import RIDGE
from basis_probe.statistics.resampling import MIN_GROUPS
from basis_probe.statistics.scores import (
    DECISIVE,
    KURTOSIS,
    SAMPLE_HOYER,
    SAMPLE_KURTOSIS,
    Measured,
    Reads,
    Score,
)
from basis_probe.statistics.spread import Apart, Spread
from basis_probe.statistics.weight_laws import is_drawn, is_heavy, is_sparse, zeros

_MOST_FRAMES_WORK, _FULL_WORK = 2e10, 6e10
"""Multiplications and additions at one site up to which every axis is compared, in 199 frames, and
in 99."""
_SCORING = 500
"""About so many of them take as long as scoring one value."""
_LEAST_WORK = 2.2e9
"""About as many are spent on a wider site."""
_FRAMES, _FEWEST_DIRECTIONS = 30, 90
"""Frames and axes where some axes stand for all. Axes tell more than frames: what is not known of
those that are left out is an error of the axes that were drawn."""
_FEWEST_BLOCKS, _BLOCK = 19, 128
"""Where all directions have one law, so few blocks of so many directions: what counts is how many
directions there are together."""


@dataclasses.dataclass(frozen=True)
class Size:
    """How many frames, samples and directions a null has at a site where none were asked for."""

    frames: int
    samples: int
    directions: int | None

    def of(self, null: Null) -> Null:
        """The null in this size."""
        return dataclasses.replace(
            null, frames=self.frames, samples=self.samples, directions=self.directions
        )


def affordable(read: int, dim: int, *, one_law: bool = False) -> Size:
    """What can be compared at a site for little more than it costs to run a model of its width.

    Where all axes in 199 frames on 4,096 samples are too much to multiply and score, frames are 99:
    enough for the tail of their law. Where that is too much, a block of at least 90 axes is
    compared in 30 frames on 1,024 samples, in a test that is as exact, but less sharp.

    Args:
        read: how many numbers make one axis: the inputs of a neuron, or the axes that are turned.
        dim: the number of axes.
        one_law: whether every direction of every frame has the law that an axis has, so that axes
            are compared with the directions of all frames together: fewer and larger blocks do.

    Example:
        >>> affordable(64, 64), affordable(768, 3072)
        (Size(frames=99, samples=4096, directions=None), Size(frames=30, samples=1024, \
directions=90))
        >>> affordable(768, 768, one_law=True)
        Size(frames=19, samples=1024, directions=128)
    """
    each = (2.0 * read + _SCORING) * dim
    # The orders of a turned basis are told by p-values that few frames would make larger.
    for frames, work in ((199, _FULL_WORK if one_law else _MOST_FRAMES_WORK), (99, _FULL_WORK)):
        if 4096 * frames * each <= work:
            return Size(frames, 4096, None)
    several = int(_LEAST_WORK * dim / (1024 * each))
    if one_law:
        directions = min(_BLOCK, dim // 2)
        return Size(min(99, max(_FEWEST_BLOCKS, several // directions)), 1024, directions)
    directions = max(_FEWEST_DIRECTIONS, several // _FRAMES)
    # The law of whole frames is told by their number.
    return Size(99, 1024, None) if directions >= dim else Size(_FRAMES, 1024, directions)


def to_show(dim: int) -> Size:
    """In which size the raw rotation is drawn where it is but shown beside what decides.

    Args:
        dim: the number of axes.
    """
    if dim <= 256:
        return Size(_FEWEST_BLOCKS, 1024, None if dim <= 96 else 64)
    return Size(_FEWEST_BLOCKS, 1024, 32 if dim <= 1024 else 16)


def reads(problem: Problem) -> int:
    """How many numbers make one axis of a site."""
    layer = problem.layer
    if layer is not None:
        return layer.inputs.shape[1] * layer.inputs.shape[2] * len(layer.weights)
    group = problem.group
    if geometry_of(group) in (Geometry.HEADS, Geometry.PARTS):
        several = parts_of(group) if isinstance(group, Blocks | DirectSum) else ()
        return max((part.dim for _, part, _ in several), default=group.dim)
    return problem.x.shape[1]


_ONE_LAW = (Geometry.RIDGE, Geometry.STANDARDISED, Geometry.WHITENED)
"""Geometries in which all turned directions have one law, and so have the axes."""

_OTHER_QUESTIONS = (CovariancePreserving, GaussianSurrogate, RandomWeights)
"""Nulls that untrained networks, or data without a preferred direction, differ from too."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """The null of a site, why it was chosen, and which scores the verdict rests on.

    Attributes:
        null: the null.
        because: why.
        deciding: names of the scores that decide.
        behind_nonlinearity: True if the activations were bent just before the site.
        believable: False where no null that holds its level could be had.
        asked: whether the null was asked for.
    """

    null: Null
    because: str
    deciding: frozenset[str]
    behind_nonlinearity: bool
    believable: bool = True
    asked: bool = False


def choose(problem: Problem, wanted: Null | None = None) -> Choice:
    """The null of a site: the one asked for, or the one that its group and layer call for."""
    layer = problem.layer
    bent = (layer is not None and layer.pre is not None) or (
        problem.pre is not None and problem.nonlinearity is not None
    )
    # In either direction: by the fourth moment, and by bounded functions that no far value rules.
    one, both = DECISIVE, DECISIVE | {KURTOSIS.name}
    axes = problem.group.privileged is Privileged.AXES
    unknown = problem.group.privileged is Privileged.UNKNOWN
    floor = ""
    if not bent and layer is None and (axes or unknown):
        seen = "" if problem.bent_by else floor_of(problem.x)
        floor = f"{seen}{_UNTOLD}" if seen else problem.bent_by and problem.bent_by + _UNFOLLOWED
    if wanted is not None:
        deciding = both if bent and not isinstance(wanted, Rotation) else one
        because = f"the {wanted.name} null was asked for"
        if isinstance(wanted, Rotation) and wanted.geometry is None and not bent:
            because += _form_alone(problem.group)
        misleads = isinstance(wanted, Rotation) and bent
        if isinstance(wanted, Rotation) and floor:
            misleads = True
            because += f"; {floor}"
        if misleads and bent:
            because += (
                "; behind a nonlinearity every axis is one-sided and no rotated axis is, so this "
                "null credits the axes for nothing and no verdict rests on it"
            )
        elif isinstance(wanted, _OTHER_QUESTIONS):
            misleads = True
            because += f"; it holds fixed {wanted.holds_fixed}: no verdict rests on it"
        return Choice(wanted, because, deciding, bent, believable=not misleads, asked=True)
    size = affordable(reads(problem), problem.x.shape[1])
    if layer is not None and (bent or axes) and is_sparse(layer.weights):
        return Choice(
            size.of(SparseWiring()),
            f"{zeros(layer.weights)[0]:.0%} of the weights that make these neurons are exactly "
            "zero, so they are compared with neurons that read as many other inputs through the "
            "same weights",
            both if bent else one,
            bent,
        )
    if layer is not None and (bent or axes) and _exchanged(layer):
        return Choice(
            size.of(SparseWiring()),
            "the weights that make these neurons look as if drawn one by one, or most of what they "
            "are, of a law that no turned neuron's have, so they are compared with neurons that "
            "read other inputs through the same weights",
            both if bent else one,
            bent,
        )
    if bent and layer is not None:
        return Choice(
            size.of(Counterfactual()),
            "a nonlinearity makes every axis one-sided, so the axes are compared with those of the "
            "same layer whose neurons point elsewhere",
            both,
            True,
        )
    if bent and problem.unlike_mixtures:
        because = problem.unlike_mixtures + _OF_ALL
        return Choice(size.of(TurnedPreactivation()), because, both, True, believable=False)
    if bent:
        return Choice(
            size.of(TurnedPreactivation()),
            "a nonlinearity lies just before the site and its input is not one linear map away, so "
            "the pre-activations are turned instead; approximate",
            both,
            True,
        )
    if layer is not None and axes:
        return Choice(
            size.of(Counterfactual()),
            "the axes are neurons that read an input one linear map away, so they are compared "
            "with neurons that point elsewhere",
            one,
            False,
        )
    because = "no nonlinearity lies just before the site, so the basis itself is turned"
    because += _form_alone(problem.group)
    if floor:
        because = floor
    size = affordable(reads(problem), problem.x.shape[1], one_law=_one_law(problem.group))
    size = _for_those_that_vary(size, problem)
    return Choice(size.of(Rotation()), because, one, False, believable=not floor)


def _for_those_that_vary(size: Size, problem: Problem) -> Size:
    """The size, in more frames where a block of axes would hold all that vary.

    These are compared in whole frames, and the law of those is told by their number.
    """
    if size.directions is None:
        return size
    live = int(live_axes(taken(problem, size.samples).x).sum())
    if not 0 < live <= size.directions:
        return size
    return dataclasses.replace(size, frames=affordable(live, live).frames)


def _one_law(group: Group) -> bool:
    """Whether the directions that decide have one law where a basis is turned."""
    geometry = geometry_of(group)
    return geometry in (Geometry.EUCLIDEAN, Geometry.LINE) or geometry in _ONE_LAW


def _exchanged(layer: LinearLayer) -> bool:
    """Whether neurons are compared with those that read other inputs, though they read all."""
    return is_drawn(layer.weights) and rewirable(layer) >= FEWEST_INPUTS


def _form_alone(group: Group) -> str:
    """Why form alone is asked under a group; begins a clause, or is empty where all orders are."""
    geometry = geometry_of(group)
    if geometry in (Geometry.EUCLIDEAN, Geometry.LINE):
        return ""
    if geometry in (Geometry.WHITENED, Geometry.HEADS):
        why = "the group mixes axes, which changes both at will"
    elif geometry is Geometry.PARTS:
        why = "the group acts on every part by itself, and parts may differ in both"
    elif geometry is Geometry.PLANES:
        why = "the group turns no more than planes, and rotations of all axes would even both out"
    elif group.rescales:
        why = "the group rescales axes, which changes variances at will"
    else:
        why = "the group holds no rotation by which they could be even"
    return f"; offset and scale are not asked, because {why}"


_UNTOLD = (
    ", as behind a nonlinearity, and no turned axis is like that: turning the activations credits "
    "the axes for nothing, and no verdict rests on it; give the pre-activations and the "
    "nonlinearity, or the layer's inputs and weight"
)
_OF_ALL = (
    ", and turned ones mix all channels behind that, so that they differ before any training: "
    "nothing is known to compare the axes with, and no verdict rests on what turning says"
)

_UNFOLLOWED = (
    "; turning the activations credits the axes for nothing, and no verdict rests on it: give what "
    "linear maps read and their weights to probe_activations"
)


@dataclasses.dataclass(frozen=True, eq=False)
class Compared:
    """The axes of a site against the alternatives of its null.

    Attributes:
        record: what the null was.
        scores: name -> result, p-values not yet adjusted for their number.
        notes: what a reader must know.
        few: whether a few axes stand out; None where the largest ones were not compared.
        beside: the deciding scores under the raw rotation, where the verdict rests on another one.
        drawn: what some neurons of the alternatives are, before the nonlinearity where there is
            one, [samples, neurons]; None where no neurons were drawn.
    """

    record: NullRecord
    scores: dict[str, ScoreResult]
    notes: tuple[str, ...]
    few: FewAxes | None = None
    beside: Mapping[str, ScoreResult] = dataclasses.field(default_factory=dict[str, ScoreResult])
    drawn: Tensor | None = None


_CHEAP_TO_SHOW = 48
_SPARSE_ALONE = 16
NEURONS_KEPT = 256
"""So many neurons of alternatives are kept for the bound of form."""
FEWEST_AXES = 4
"""With fewer axes a kurtosis across them says nothing, and orders are not asked."""


def asks_orders(problem: Problem, null: Null) -> bool:
    """True where offset, scale and form decide together: turning the axes is the group's own."""
    turned = isinstance(null, Rotation) and null.geometry is None
    admitted = geometry_of(problem.group) in (Geometry.EUCLIDEAN, Geometry.LINE)
    return turned and admitted and problem.x.shape[1] >= FEWEST_AXES


def measure(
    problem: Problem,
    choice: Choice,
    scores: Sequence[Score],
    *,
    seed: int,
    all_samples: Mapping[str, float] | None = None,
    twins: Sequence[Mapping[str, Tensor]] = (),
    counted: "Counted | None" = None,
) -> Compared:
    """Every score of a site against its null.

    Where turning the axes is the group's own, the scores that decide are measured at equal
    variance, on whitened rows that turn along with the activations: against raw rotations one axis
    of great variance reaches into every turned one and hides form. What raw rotation gives stands
    beside.

    Args:
        problem: what is known of the site.
        choice: the null and the deciding scores.
        scores: which scores.
        seed: seeds the frames; the same seed gives the same turns at every site of one width.
        all_samples: the scores over all samples of the stream, where they were streamed.
        twins: what `untrained` gave for each twin of the model, where the null is made of them.
        counted: how many samples are worth counting; they are counted where it is None.
    """
    counted = counted or Counted.of(taken(problem, choice.null.samples).x, seed)
    if not asks_orders(problem, choice.null):
        return _measure(problem, choice, scores, seed, all_samples or {}, twins, counted)
    form = [score for score in scores if score.name in choice.deciding]
    aside = dataclasses.replace(choice, deciding=frozenset(), null=_for_show(choice, problem))
    raw = _measure(problem, aside, scores, seed, all_samples or {}, twins, counted)
    if not form:
        return raw
    null = dataclasses.replace(choice.null, geometry=Geometry.RIDGE)
    even = dataclasses.replace(choice, null=null)
    evened = _measure(problem, even, form, seed, {}, twins, counted)
    return Compared(
        record=evened.record,
        scores={name: evened.scores.get(name, score) for name, score in raw.scores.items()},
        notes=tuple(dict.fromkeys((*evened.notes, *raw.notes))),
        few=evened.few,
        beside={score.name: raw.scores[score.name] for score in form if score.name in raw.scores},
    )


def _for_show(choice: Choice, problem: Problem) -> Null:
    """The raw rotation with as many frames as it takes to show it.

    Of all axes as many are drawn as were asked for; blocks of axes are but shown.
    """
    null = choice.null
    if null.directions is None or null.directions >= problem.x.shape[1]:
        if choice.asked:
            return null
        most = 49 if problem.x.shape[1] <= _CHEAP_TO_SHOW else 24
        return dataclasses.replace(null, frames=min(null.frames, most))
    if choice.asked:
        return dataclasses.replace(null, frames=min(null.frames, _FEWEST_BLOCKS))
    return to_show(problem.x.shape[1]).of(null)


@dataclasses.dataclass(frozen=True)
class Counted:
    """How many of the samples are worth counting.

    Attributes:
        distinct: how many differ from each other.
        effective: as how many unrelated ones they count.
    """

    distinct: int
    effective: float

    @staticmethod
    def of(x: Tensor, seed: int) -> "Counted":
        """That of some rows, [samples, dim]."""
        return Counted(distinct_rows(x), _effective(x, seed))


def _measure(
    problem: Problem,
    choice: Choice,
    scores: Sequence[Score],
    seed: int,
    all_samples: Mapping[str, float],
    twins: Sequence[Mapping[str, Tensor]],
    counted: Counted,
) -> Compared:
    null = choice.null
    problem = taken(problem, null.samples)
    geometry = geometry_under(null, problem)
    dim = problem.x.shape[1]
    problem, kept = varying(problem, null)
    if isinstance(null, Rotation) and geometry in CROSS_FITTED:
        problem = problem.by_halves
    used, notes = _applicable(scores, problem.group, geometry, null)
    notes += (*_wiring(problem, choice), *_few_examples(problem))
    notes += _repeated(counted.distinct, len(problem.x))
    axes = _block(null, problem, geometry, seed)
    compared = used if axes is None else [score for score in used if not score.across_axes]
    unit_axes = problem.group.rescales and not isinstance(null, Rotation)
    rows: dict[str, list[Tensor]] = {score.name: [] for score in compared}
    everywhere: Measured | None = None
    spread = Spread(problem, compared)
    kept_neurons, wanted = list[Tensor](), 0 if isinstance(null, Rotation) else NEURONS_KEPT
    if isinstance(null, RandomWeights):
        first = Measured(Frame(problem.x, problem.before), unit_axes=unit_axes)
        for score in compared:
            rows[score.name] = [first.of(score).cpu(), *(twin[score.name] for twin in twins)]
    else:
        alternatives = null.alternatives(problem, axes)
        generator = torch.Generator().manual_seed(seed)
        drawn = alternatives.drawn_together(generator, null.frames)
        observed = alternatives.frame(None)
        for frame in itertools.chain([observed], drawn):
            exact = frame.exact() if frame is observed else frame
            measured = Measured(exact, unit_axes=unit_axes, order=problem.order)
            for score in compared:
                rows[score.name].extend(measured.each(score).cpu())
            spread.see(frame)
            if frame is not observed and wanted > 0:
                kept_neurons.append(frame.post if frame.pre is None else frame.pre)
                wanted -= frame.post.shape[1]
        if axes is not None:
            whole = null.observed(problem)
            everywhere = Measured(whole, unit_axes=unit_axes, order=problem.order)
            spread.see_everywhere(whole)
    one_law = isinstance(null, Rotation) and geometry in _ONE_LAW
    deciding = [score for score in compared if score.name in choice.deciding and choice.believable]
    found, apart = None, dict[str, Apart]()
    several = {score.name: torch.stack(rows[score.name]) for score in deciding}
    if axes is None:
        found = few_axes([*several.values()])
    elif everywhere is not None:
        found, apart = _few_of_many(
            problem, null, deciding, several, everywhere, axes, seed, one_law=one_law
        )
    results: dict[str, ScoreResult] = {}
    for score in used:
        closed = _closed_form(score, problem, null, geometry, seed)
        if score not in compared:
            if closed is not None and closed.std is not None and everywhere is not None:
                values = everywhere.of(score).cpu()
                results[score.name] = without_frames(score, values, choice, closed, kept, dim)
            continue
        directions = torch.stack(rows[score.name])
        results[score.name] = scored(
            score,
            directions,
            choice,
            closed=closed,
            kept=kept,
            dim=dim,
            streamed=all_samples.get(score.name, math.nan),
            axes=axes,
            values=None if everywhere is None else everywhere.of(score).cpu(),
            error=functools.partial(spread.error, score),
            one_law=one_law,
            apart=apart.get(score.name),
        )
    left_out = [score.name for score in used if score.name not in results]
    if left_out:
        count = 0 if axes is None else len(axes)
        notes = (
            *notes,
            f"{', '.join(left_out)}: left out, because there all axes are compared with each "
            f"other, here {count} of {dim} were compared (a null with directions=None has all).",
        )
    record = NullRecord(
        name=null.name,
        frames=null.frames,
        samples=len(problem.x),
        geometry=geometry.name.lower(),
        holds_fixed=null.holds_fixed,
        because=choice.because,
        approximate=null.approximate or not choice.believable,
        directions=dim if axes is None else len(axes),
        examples=0 if problem.examples is None else int(problem.examples.unique().numel()),
        distinct=counted.distinct,
        effective=counted.effective,
    )
    few = _few(found, kept)
    shared = geometry is Geometry.RIDGE and _shares_an_error(problem)
    if few is not None and shared and few.p_tail <= _LEVEL:
        few = _on_both_halves(problem, null, deciding, few, kept)
    if shared:
        results = {name: _not_one_by_one(result) for name, result in results.items()}
    drawn = torch.cat(kept_neurons, 1)[:, :NEURONS_KEPT] if kept_neurons else None
    return Compared(record, results, notes, few, drawn=drawn)


_LEVEL = 0.05


_LOUD = 100.0


def _shares_an_error(problem: Problem) -> bool:
    """Whether a direction is so loud that whitening with a ridge leaves it far above the others.

    The variances along principal axes decide, which no turn changes: what is tested stays exact.
    """
    variances = problem.centred.spectrum
    ridge = RIDGE * float(variances.sum()) / problem.centred.free
    even = variances / (variances + ridge)
    even = even[variances > 1e-12 * variances.max()]
    return bool(len(even)) and float(even.max()) > _LOUD * float(even.median())


def _not_one_by_one(result: ScoreResult) -> ScoreResult:
    """The result without what is said of single axes, whose errors turned directions lack."""
    said = "one direction has nearly all variance, so that no axis is compared by itself"
    return dataclasses.replace(
        result,
        per_direction_p=np.full_like(result.per_direction_p, math.nan),
        fraction_privileged=math.nan,
        note="; ".join(filter(None, [result.note, said])),
    )


def _on_both_halves(
    problem: Problem,
    null: Null,
    scores: Sequence[Score],
    few: FewAxes,
    kept: Tensor,
) -> FewAxes:
    """The few axes that stand out in both halves of the examples."""
    place = torch.arange(len(problem.x))
    if problem.examples is not None:
        names, of = problem.examples.cpu().unique(return_inverse=True)
        place = of if len(names) >= 2 else place
    post = null.observed(problem).post
    measured = [
        Measured(Frame(post[(place % 2 == half).to(post.device)]).exact(), unit_axes=False)
        for half in (0, 1)
    ]
    halves = [(measured[0].of(s).cpu(), measured[1].of(s).cpu()) for s in scores]
    axes = torch.searchsorted(kept, torch.tensor(few.axes))
    left = repeated(axes, halves)
    if len(left) == len(axes):
        return few
    if not len(left):
        return dataclasses.replace(few, repeated=False)
    named = tuple(int(kept[axis]) for axis in left)
    return dataclasses.replace(few, axes=named, alone=len(named))


def varying(problem: Problem, null: Null) -> tuple[Problem, Tensor]:
    """The problem on the axes that a null turns, and which they are.

    Where it is the activations that are turned, axes that never vary are left out.
    """
    kept = torch.arange(problem.x.shape[1])
    if not isinstance(null, Rotation) or geometry_under(null, problem) not in (
        Geometry.EUCLIDEAN,
        Geometry.RIDGE,
        Geometry.STANDARDISED,
        Geometry.WHITENED,
    ):
        return problem, kept
    live = live_axes(problem.x)
    if bool(live.all()):
        return problem, kept
    # A rotation of the activations does not ask what made them.
    few = dataclasses.replace(
        problem, x=problem.x[:, live], pre=None, nonlinearity=None, layer=None
    )
    return few, torch.nonzero(live.cpu()).flatten()


def live_axes(x: Tensor) -> Tensor:
    """Which axes vary over some rows, [dim]."""
    # Single precision has no values that differ by less than what counts as rounding here.
    coarse = x.dtype is torch.float32
    return x.amin(0) != x.amax(0) if coarse else ~Moments.of(x).constant


def _few_of_many(
    problem: Problem,
    null: Null,
    scores: Sequence[Score],
    frames: Mapping[str, Tensor],
    everywhere: Measured,
    compared: Tensor,
    seed: int,
    *,
    one_law: bool,
) -> tuple[FewTest | None, dict[str, Apart]]:
    """Whether a few of all axes stand out where a block was compared.

    By scores of what is before the nonlinearity: behind it every neuron has a law of its own, which
    its bias makes.

    Args:
        problem: what is known of the site.
        null: the null.
        scores: those that decide.
        frames: for each, the values of the block in every frame, the observed one first.
        everywhere: the observed frame along all axes.
        compared: which axes the block has.
        seed: seeds the alternatives of single axes.
        one_law: whether all directions have one law.

    Returns:
        The test, and for every score the axes that were looked at one by one.
    """
    read = [score for score in scores if not everywhere.bent or score.reads is Reads.PREACTIVATIONS]

    drawn = dict[str, Tensor]()
    unit_axes = problem.group.rescales and not isinstance(null, Rotation)

    def own(axes: Tensor) -> list[Tensor]:
        alternatives = null.alternatives(problem, axes)
        generator = torch.Generator().manual_seed(seed + 1)
        values: dict[str, list[Tensor]] = {score.name: [] for score in scores}
        for frame in alternatives.drawn_together(generator, null.frames):
            measured = Measured(frame, unit_axes=unit_axes, order=problem.order)
            for score in scores:
                values[score.name].append(measured.each(score).cpu())
        drawn.update((name, torch.cat(several)) for name, several in values.items())
        return [drawn[score.name] for score in read]

    values = [everywhere.of(score).cpu() for score in read]
    blocks = [frames[score.name][1:] for score in read]
    # How many inputs a neuron reads makes its law, and a few may read fewer than the others.
    always = _SPARSE_ALONE if isinstance(null, SparseWiring) else 0
    found = few_of_many(values, blocks, None if one_law else own, always=always)
    if found is None or found.looked_at is None:
        return found, {}
    return found, {name: Apart(found.looked_at, alone, compared) for name, alone in drawn.items()}


def _few(found: FewTest | None, places: Tensor) -> FewAxes | None:
    """Whether a few axes stand out, by the scores that decide.

    Args:
        found: the test.
        places: the axes that were compared.
    """
    if found is None:
        return None
    return FewAxes(
        axes=tuple(int(places[axis]) for axis in found.axes),
        observed=found.observed,
        null_mean=float(found.null_values.mean()),
        null_std=float(found.null_values.std()),
        p_value=found.p_value,
        p_tail=found.p_tail,
        alone=found.alone,
    )


def _wiring(problem: Problem, choice: Choice) -> tuple[str, ...]:
    """What must be said where most weights of the layer are exactly zero."""
    layer, null = problem.layer, choice.null
    if isinstance(null, SparseWiring) and layer is not None:
        rescaled = layer.geometry is not Geometry.EUCLIDEAN
        if not rescaled or geometry_of_inputs(layer) is not Geometry.EUCLIDEAN:
            return ()
        return (
            "Most inputs of these neurons have too few weights for their scale to be told, so that "
            "the comparison would change if those inputs were rescaled, though the network would "
            "compute the same.",
        )
    if layer is None or not isinstance(null, Counterfactual):
        return ()
    # Of such weights it would have been another null, had it not been asked for.
    if choice.asked and _exchanged(layer):
        return (
            "The weights that make these neurons look as if drawn one by one, of another law than "
            "those of the alternatives, which is Gaussian. On data that lie along the inputs' axes "
            'that alone stands out, before any training: compare with null="sparse-wiring", the '
            "one chosen unasked.",
        )
    if not is_sparse(layer.weights):
        if not is_heavy(layer.weights):
            return ()
        return (
            "The weights that make these neurons look as if drawn one by one of a law with heavy "
            "tails. Training makes such weights where neurons come to read few inputs, and so does "
            "a draw: on data that lie along the inputs' axes neurons then stand out before any "
            'training. null="sparse-wiring" compares them with neurons that read as few others.',
        )
    return (
        f"{zeros(layer.weights)[0]:.0%} of the weights that make these neurons are exactly "
        "zero. Neurons that read few inputs differ from the alternatives, which read all of them, "
        'before any training: compare with null="sparse-wiring", the one chosen unasked.',
    )


def _few_examples(problem: Problem) -> tuple[str, ...]:
    """What must be said where all rows are from a few sequences or images."""
    if problem.examples is None:
        return ()
    count, rows = int(problem.examples.unique().numel()), len(problem.x)
    if count >= 2 * MIN_GROUPS or count == rows:
        return ()
    several = "one example" if count == 1 else f"{count} examples"
    return (
        f"The {rows:,} rows that were compared are positions of {several}: what they show may be "
        "true of those alone. Give more examples, and leave max_samples out or make it larger.",
    )


_PAIRED, _PAIRED_WIDE, _WIDE = 512, 256, 1024
"""Among so many samples it is measured how much they point the same way; fewer of many axes."""


def _effective(x: Tensor, seed: int) -> float:
    if not bool(x.any()):
        return 0.0
    generator = torch.Generator().manual_seed(seed)
    pairs = _PAIRED if x.shape[1] <= _WIDE else _PAIRED_WIDE
    return effective_samples(x, pairs=pairs, generator=generator)


def _repeated(distinct: int, samples: int) -> tuple[str, ...]:
    """A note where most samples come again."""
    if distinct * 2 >= samples:
        return ()
    return (
        f"Only {distinct} of the {samples} compared samples differ from each other; where something"
        " is fitted to them, the others count for nothing.",
    )


def taken(problem: Problem, samples: int) -> Problem:
    """The problem on its first rows only: they lie in the order of their random priorities."""
    if len(problem.x) <= samples:
        return problem
    return of_rows(problem, slice(0, samples))


def of_rows(problem: Problem, rows: slice | Tensor) -> Problem:
    """The problem on some of its rows."""
    return dataclasses.replace(
        problem,
        x=problem.x[rows],
        halves=problem.halves[rows],
        pre=None if problem.pre is None else problem.pre[rows],
        layer=None if problem.layer is None else problem.layer[rows],
        examples=None if problem.examples is None else problem.examples[rows],
    )


def untrained(problem: Problem, choice: Choice, scores: Sequence[Score]) -> dict[str, Tensor]:
    """The scores of every axis of a twin, as the model's own are computed, by name."""
    few = taken(problem, choice.null.samples)
    measured = Measured(Frame(few.x, few.before), unit_axes=few.group.rescales)
    return {score.name: measured.of(score).cpu() for score in scores}


def _block(null: Null, problem: Problem, geometry: Geometry, seed: int) -> Tensor | None:
    """The axes that are compared; None for all."""
    dim = problem.x.shape[1]
    if null.directions is None or null.directions >= dim or isinstance(null, RandomWeights):
        return None
    axes = drawn_axes(problem, geometry, null.directions, seed)
    return None if len(axes) == dim else axes


def drawn_axes(problem: Problem, geometry: Geometry, count: int, seed: int) -> Tensor:
    """About as many axes, drawn with the seed, in order.

    Where heads are turned, as many of every head, and the same ones of its copies.
    """
    dim, group = problem.x.shape[1], problem.group
    generator = torch.Generator().manual_seed(seed)
    if geometry is Geometry.HEADS and isinstance(group, Blocks):
        size, copies = group.inner.dim, group.copies
        some = min(size, max(1, count // (group.count * copies)))
        drawn = [torch.randperm(size, generator=generator)[:some] for _ in range(group.count)]
        inside = torch.stack(drawn).sort(1).values
        starts = torch.arange(0, dim, size).view(group.count, copies, 1)
        return (starts + inside[:, None]).flatten()
    return torch.randperm(dim, generator=generator)[:count].sort().values


CROSS_FITTED = (Geometry.STANDARDISED, Geometry.WHITENED, Geometry.HEADS, Geometry.PARTS)
"""Geometries that are fitted on one half of the rows and used on the other."""


def geometry_under(null: Null, problem: Problem) -> Geometry:
    """In which geometry a null turns what it turns at a site."""
    if isinstance(null, Rotation):
        return null.geometry or geometry_of(problem.group)
    if isinstance(null, SparseWiring) and problem.layer is not None:
        return geometry_of_inputs(problem.layer)
    if isinstance(null, Counterfactual) and problem.layer is not None:
        return problem.layer.geometry
    return Geometry.STANDARDISED


_MIXED = (Geometry.WHITENED, Geometry.HEADS, Geometry.PARTS)
"""Geometries of groups under which comparing the axes of a sample with each other says nothing."""


def _applicable(
    scores: Sequence[Score], group: Group, geometry: Geometry, null: Null
) -> tuple[list[Score], tuple[str, ...]]:
    used: list[Score] = []
    notes: list[str] = []
    for score in scores:
        mixed = isinstance(null, Rotation) and geometry in _MIXED
        if score.across_axes and mixed:
            notes.append(
                f"{score.name} was left out: it compares axes with each other, and the group "
                f"({group.name}) changes that at will."
            )
            continue
        used.append(score)
    return used, tuple(notes)


def _closed_form(
    score: Score, problem: Problem, null: Null, geometry: Geometry, seed: int
) -> ClosedFormRecord | None:
    if not isinstance(null, Rotation) or problem.x.shape[1] < 4:
        return None
    generator = torch.Generator().manual_seed(seed)
    x = problem.x
    found = None
    try:
        if score is SAMPLE_KURTOSIS and geometry is Geometry.EUCLIDEAN:
            found = closed_forms.sample_kurtosis_under_rotation(x, generator=generator)
        elif score is SAMPLE_KURTOSIS and geometry is Geometry.LINE:
            found = closed_forms.centred_sample_kurtosis_under_rotation(x, generator=generator)
        elif score is SAMPLE_HOYER and geometry is Geometry.EUCLIDEAN:
            found = closed_forms.sample_hoyer_under_rotation(x, generator=generator)
        elif score is KURTOSIS and geometry is Geometry.EUCLIDEAN:
            rows = problem.centred
            if rows.line:
                # They lack the all-ones direction, which these turns do not leave where it is.
                found = closed_forms.pooled_kurtosis_under_rotation(x)
            else:
                # The unit cancels in which the rows are there.
                again = float(rows.spectrum.square().sum())
                found = closed_forms.pooled_kurtosis_of(rows.rows.square().sum(1), again)
    except ValueError:
        # All rows are zero: there is nothing to turn.
        return None
    if found is None:
        return None
    return ClosedFormRecord(found.mean, found.std, found.source, found.exact)
