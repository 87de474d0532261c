"""The axes of one site against the directions of one null: every frame asked the same questions."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from basis_probe.arguments import seed_of, whole
from basis_probe.concepts.alignment import Measure
from basis_probe.concepts.chance import Chance, shuffled
from basis_probe.concepts.detection import Found, Setting, Sides, examine
from basis_probe.concepts.intervals import Pairs
from basis_probe.evidence.measure import Choice
from basis_probe.interrupts import hold, stoppable
from basis_probe.results.dissection import Comparison, ConceptFinding, DirectionFinding, Tally
from basis_probe.results.evidence import NullRecord
from basis_probe.statistics.moments import Moments
from basis_probe.statistics.nulls import (
    Alternatives,
    Counterfactual,
    Null,
    Problem,
    Rotation,
    SparseWiring,
)
from basis_probe.statistics.nulls.rotations import TurnedAxes
from basis_probe.statistics.p_values import Tail, monte_carlo_p, pooled_p

Seen = TypeVar("Seen")

_MOST_DRAWS = 1_000_000

CANDIDATES = 3
"""Of every concept so many of the best directions are scored again on resampled examples."""


@dataclasses.dataclass(frozen=True)
class Effort:
    """How many of everything that is drawn at random.

    Attributes:
        shuffles: how often labels are shuffled, over all frames together.
        resamples: how often examples are drawn again; 0 for no intervals.
        seed: seeds frames, shuffles and resamples.

    Raises:
        ValueError: for what is not a whole number from 0 to 1,000,000, or not a seed.
    """

    shuffles: int = 39
    resamples: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("shuffles", "resamples"):
            count = whole(name, getattr(self, name), most=_MOST_DRAWS)
            object.__setattr__(self, name, count)
        object.__setattr__(self, "seed", seed_of(self.seed))


@dataclasses.dataclass
class Interruption:
    """Ctrl-C while axes are compared: what is left is then compared with one alternative each.

    Attributes:
        most: so many are outlasted by what has come to nothing yet; the next one breaks it off.
        came: how many came.
    """

    most: int = 0
    came: int = 0


def in_turn(
    look: Callable[[int], Seen],
    count: int,
    generator: torch.Generator,
    interruption: Interruption,
) -> list[Seen]:
    """What each frame shows, the observed one first; after an interruption of two at least.

    Args:
        look: from the number of a frame to what it shows.
        count: how many alternatives there are.
        generator: draws them; a frame that is looked at once more is the same.
        interruption: whether one has come, and where one is written down.

    Raises:
        KeyboardInterrupt: where two have not been looked at, and no more is outlasted.
    """
    seen: list[Seen] = []
    while len(seen) < (2 if interruption.came else count + 1):
        before = generator.get_state()
        try:
            with stoppable():
                seen.append(look(len(seen)))
        except KeyboardInterrupt:
            generator.set_state(before)
            if len(seen) < 2 and interruption.came >= interruption.most:
                raise
            interruption.came += 1
        if len(seen) == 2:
            hold()
    return seen


def compare(
    problem: Problem,
    choice: Choice,
    setting: Setting,
    *,
    threshold: float | None,
    effort: Effort,
    interruption: Interruption,
) -> tuple[tuple[Comparison, ...], str]:
    """The axes against the frames of a null, by every measure of the setting.

    An interruption ends the comparison with the frames that there are, if one is of the null.

    Args:
        problem: what is known of the site, rows as `setting` has them (or spreads them).
        choice: the null, and why.
        setting: the concepts and how they are asked for.
        threshold: above this a concept counts as detected; None for the measure's own.
        effort: how many of everything.
        interruption: whether one has come, and where one is written down.

    Returns:
        One comparison for every measure, and what a reader must know of an interruption.
    """
    null = choice.null
    axes, kept, alternatives, samples = axes_beside(null, problem)
    generator = torch.Generator().manual_seed(effort.seed)
    mixing = torch.Generator().manual_seed(effort.seed + 1)
    scored = setting.labels.examples[setting.parts[1]]
    orders = [shuffled(scored, mixing) for _ in range(effort.shuffles)]

    def look(index: int) -> dict[Measure, Found]:
        # What the axes score is their own: it is asked of the activations, whatever the null.
        post = narrowed(alternatives.frame(generator).post, centred=True) if index else axes
        # Every frame has its share of the shuffles: the chance level is the same for all.
        return examine(post, setting, orders[index :: null.frames + 1])

    frames = in_turn(look, null.frames, generator, interruption)
    record = NullRecord(
        name=null.name,
        frames=len(frames) - 1,
        samples=samples,
        geometry=_geometry(problem, choice),
        holds_fixed=null.holds_fixed,
        because=choice.because,
        approximate=null.approximate or not choice.believable,
    )
    compared = tuple(
        _comparison(
            measure,
            [frame[measure] for frame in frames],
            record,
            setting,
            axes,
            kept,
            measure.threshold if threshold is None else threshold,
            effort,
            interruption,
        )
        for measure in setting.measures
    )
    if not interruption.came:
        return compared, ""
    shuffles = sum(len(orders[place :: null.frames + 1]) for place in range(len(frames)))
    said = (
        f"It was interrupted: {record.frames} of {null.frames} alternatives of the {null.name} "
        "null were drawn, and intervals may be missing."
    )
    if shuffles < effort.shuffles:
        said += (
            f" The chance level is of {shuffles} of {effort.shuffles} shuffles of the labels: "
            f"chance passes it in up to {1 / (shuffles + 1):.0%} of cases."
        )
    return compared, said


def axes_beside(null: Null, problem: Problem) -> tuple[Tensor, Tensor, Alternatives, int]:
    """The axes as they are, and the frames of a null beside them.

    Returns:
        The activations along the axes that vary, which these are, the frames of the null, and on
        how many samples they are.
    """
    dim = problem.x.shape[1]
    live = ~Moments.of(problem.x).constant.cpu()
    kept = torch.nonzero(live).flatten() if bool(live.any()) else torch.arange(dim)
    x = problem.x
    axes = narrowed(x if len(kept) == dim else x.index_select(1, kept.to(x.device)))
    if isinstance(null, Rotation):
        # A turn inside heads or planes needs all axes.
        plain = problem.group.dim == dim and null.geometry is None and not _structured(problem)
        null = TurnedAxes(null.frames, null.samples, null.directions, null.geometry)
        if plain and len(kept) < dim:
            problem = dataclasses.replace(problem, x=axes, pre=None, nonlinearity=None, layer=None)
    elif isinstance(null, Counterfactual | SparseWiring) and problem.layer is not None:
        # What comes before the nonlinearity is not looked at.
        problem = dataclasses.replace(problem, layer=dataclasses.replace(problem.layer, pre=None))
    return axes, kept, null.alternatives(problem), len(x)


def narrowed(x: Tensor, *, centred: bool = False) -> Tensor:
    """The same order of samples in single precision where that loses none, or about the means.

    Args:
        x: [samples, directions].
        centred: True if rounding may put samples together that differ by less than 1e-7 of a
            direction's spread; an offset, which no score sees, is taken off before.
    """
    if x.dtype is torch.float32:
        return x
    if centred:
        return (x.double() - x.double().mean(0)).float()
    single = x.float()
    return single if torch.equal(single.to(x.dtype), x) else x


def _structured(problem: Problem) -> bool:
    from basis_probe.statistics.nulls import Geometry, geometry_of

    return geometry_of(problem.group) in (
        Geometry.HEADS,
        Geometry.PLANES,
        Geometry.LINE,
        Geometry.PARTS,
    )


def _geometry(problem: Problem, choice: Choice) -> str:
    from basis_probe.statistics.nulls import Geometry, geometry_of

    if isinstance(choice.null, Rotation):
        geometry = choice.null.geometry or geometry_of(problem.group)
        if geometry in (Geometry.WHITENED, Geometry.RIDGE):
            geometry = Geometry.EUCLIDEAN
        return geometry.name.lower()
    if isinstance(choice.null, Counterfactual | SparseWiring) and problem.layer is not None:
        return problem.layer.geometry.name.lower()
    return Geometry.STANDARDISED.name.lower()


def _comparison(
    measure: Measure,
    frames: Sequence[Found],
    record: NullRecord,
    setting: Setting,
    observed: Tensor,
    kept: Tensor,
    threshold: float,
    effort: Effort,
    interruption: Interruption,
) -> Comparison:
    axes, others = frames[0], frames[1:]
    concepts = len(setting.labels.names)
    largest = torch.cat([frame.largest for frame in frames])
    chance = (
        Chance.of(largest)
        if len(largest)
        else Chance(torch.full((concepts,), -math.inf, dtype=torch.float64), 0)
    )
    least = chance.thresholds.clamp(min=threshold)
    again, best_again = _unless(
        interruption,
        effort.resamples,
        lambda times: _resampled(
            measure, axes, setting, observed, dataclasses.replace(effort, resamples=times)
        ),
    )
    detected = torch.stack([frame.detected(least) for frame in frames])
    distinct = detected.sum(1).double()
    units = torch.tensor([float(frame.units(least)) for frame in frames], dtype=torch.float32)
    each = torch.stack([frame.direction_score for frame in frames])
    best = each.mean(1)
    pairs, candidates = again
    passed = pairs > least[axes.concept[candidates]].numpy()
    resampled = np.zeros((len(pairs), concepts), dtype=bool)
    for place, concept in enumerate(axes.concept[candidates].tolist()):
        resampled[:, concept] |= passed[:, place]
    asked = setting.asked[1]
    coverage = asked.true / len(asked.labels)
    low, high = torch.quantile(each[1:], torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0)
    findings = tuple(
        ConceptFinding(
            concept=name,
            coverage=float(coverage[place]),
            direction=int(kept[axes.direction[place]]),
            sign=int(axes.direction_sign[place]),
            score=float(each[0, place]),
            null_mean=float(each[1:, place].mean()),
            null_low=float(low[place]),
            null_high=float(high[place]),
            p_value=monte_carlo_p(float(each[0, place]), each[1:, place], tail=Tail.UPPER),
            least=float(least[place]),
            detected=bool(detected[0, place]),
            null_detected=float(detected[1:, place].double().mean()),
        )
        for place, name in enumerate(setting.labels.names)
    )
    scores_of_others = torch.cat([frame.score for frame in others])
    p_values = pooled_p(axes.score, scores_of_others, tail=Tail.UPPER)
    directions = tuple(
        DirectionFinding(
            direction=int(kept[place]),
            concept=setting.labels.names[int(axes.concept[place])],
            sign=int(axes.sign[place]),
            fitted=float(axes.fitted[place]),
            score=float(axes.score[place]),
            p_value=float(p_values[place]),
        )
        for place in range(len(axes.score))
    )
    return Comparison(
        null=record,
        measure=measure.name.lower(),
        threshold=threshold,
        top=setting.top,
        sides="both" if setting.sides is Sides.BOTH else "positive",
        distinct=tally(distinct, resampled.sum(1)),
        units=tally(units.double(), None),
        mean_best=tally(best, best_again.mean(1)),
        chance_high=chance.most,
        concepts=findings,
        directions=directions,
    )


def _unless(interruption: Interruption, times: int, resampled: Callable[[int], Seen]) -> Seen:
    """What comes of so many examples drawn again; of none where an interruption comes."""
    try:
        with stoppable():
            return resampled(0 if interruption.came else times)
    except KeyboardInterrupt:
        interruption.came += 1
        return resampled(0)


def _resampled(
    measure: Measure, axes: Found, setting: Setting, observed: Tensor, effort: Effort
) -> tuple[tuple[np.ndarray, Tensor], np.ndarray]:
    """Scores on examples drawn again: of the best directions of each concept, and of its choice.

    Returns:
        ([times, candidates], which directions those are), and [times, concepts].
    """
    order = axes.score.argsort(descending=True)
    seen: dict[int, int] = {}
    candidates: list[int] = []
    for place in order.tolist():
        concept = int(axes.concept[place])
        seen[concept] = seen.get(concept, 0) + 1
        if seen[concept] <= CANDIDATES:
            candidates.append(place)
    chosen = torch.tensor(candidates)
    directions = torch.cat([chosen, axes.direction])
    signs = torch.cat([axes.sign[chosen], axes.direction_sign])
    concepts = torch.cat([axes.concept[chosen], torch.arange(len(axes.direction))])
    second = setting.parts[1]
    counting = setting.labels.counting if measure is Measure.PUBLISHED_IOU else None
    generator = torch.Generator().manual_seed(effort.seed + 2)
    found: list[np.ndarray] = []
    # All pairs see the same draws, whichever block they come in.
    state = generator.get_state()
    at_once = max(1, 2**23 // max(1, len(setting.labels.values)))
    for block in torch.arange(len(directions)).split(at_once):
        rows = observed[:, directions[block]] * signs[block]
        generator.set_state(state)
        pairs = Pairs(
            values=setting.values(rows)[second],
            limits=None if measure.ranked else setting.limits(rows, measure),
            labels=setting.labels.values[second][:, concepts[block]],
            examples=setting.labels.examples[second],
            counting=None if counting is None else counting[second][:, concepts[block]],
        )
        found.append(pairs.resampled(measure, times=effort.resamples, generator=generator))
    scores = np.concatenate(found, 1)
    return (scores[:, : len(chosen)], chosen), scores[:, len(chosen) :]


def tally(values: Tensor, resampled: np.ndarray | None) -> Tally:
    """A number in frame 0 beside the same in the other frames.

    Args:
        values: one for every frame, the observed one first.
        resampled: the same number on examples drawn again, for its interval; None or empty for
            none.
    """
    observed, others = float(values[0]), values[1:]
    low, high = (math.nan, math.nan)
    if resampled is not None and len(resampled):
        low, high = (float(edge) for edge in np.quantile(resampled, [0.025, 0.975]))
    mean = float(others.mean())
    std = float(others.std()) if len(others) > 1 else math.nan
    edges = np.quantile(others.numpy(), [0.025, 0.975])
    return Tally(
        observed=observed,
        low=low,
        high=high,
        null_mean=mean,
        null_std=std,
        null_low=float(edges[0]),
        null_high=float(edges[1]),
        effect=(observed - mean) / std if std > 1e-12 else math.nan,
        p_value=monte_carlo_p(observed, others, tail=Tail.UPPER),
        null_values=tuple(others.tolist()),
    )
