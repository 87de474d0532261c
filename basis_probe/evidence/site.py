"""From what is known of sites to their reports: evidence for each, then verdicts for all."""

import contextlib
import dataclasses
import math
import warnings
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from basis_probe.algebra.groups import Privileged
from basis_probe.arguments import several, whole
from basis_probe.brief import described
from basis_probe.errors import MisleadingNull
from basis_probe.evidence.bounds import bound
from basis_probe.evidence.extras import ROWS, chosen_bases, path, ranked
from basis_probe.evidence.measure import (
    Choice,
    Compared,
    Counted,
    asks_orders,
    choose,
    live_axes,
    measure,
    taken,
    to_show,
)
from basis_probe.evidence.orders import Orders, orders
from basis_probe.model.around import Around
from basis_probe.parallel import one_thread
from basis_probe.results.evidence import (
    BasisRanking,
    FewAxes,
    FormBound,
    NullRecord,
    PathRecord,
    Routed,
    ScoreResult,
)
from basis_probe.results.symmetry import Symmetry
from basis_probe.statistics import scores as known
from basis_probe.statistics.nulls import (
    Counterfactual,
    CovariancePreserving,
    GaussianSurrogate,
    Null,
    Problem,
    RandomWeights,
    Rotation,
    SparseWiring,
)
from basis_probe.statistics.nulls import TurnedPreactivation as Turned
from basis_probe.statistics.nulls.wiring import FEWEST_INPUTS, rewirable
from basis_probe.statistics.scores import KURTOSIS, NON_GAUSSIANITY, Score
from basis_probe.statistics.single_precision import full_products

if TYPE_CHECKING:
    import numpy as np

    from basis_probe.evidence.own import OwnScore
    from basis_probe.statistics.bases import Candidate

_HERE = torch.device("cpu")
_DOUBLE = ("cpu", "cuda", "xpu")
"""Kinds of devices that know double precision."""
_SMALL = 4096 * 1024
"""Rows times axes below which one thread is the fastest."""

NULLS: dict[str, Null] = {
    "rotation": Rotation(),
    "counterfactual": Counterfactual(),
    "counterfactual-in-bands": Counterfactual(bands=2.0),
    "sparse-wiring": SparseWiring(),
    "turned-preactivation": Turned(),
    "covariance-preserving": CovariancePreserving(),
    "gaussian-surrogate": GaussianSurrogate(),
    "random-weights": RandomWeights(),
}
"""Every null that has a name; each says what it holds fixed."""


_LEAST, _MOST = 1e-70, 1e70
"""Sizes of activations whose fourth powers, and sums of them, are in the range of float64."""

FEWEST_SAMPLES = 200
"""With fewer samples nothing is decided."""


def samples_needed(symmetry: Symmetry, dim: int) -> int:
    """The number of samples below which no verdict is given.

    Where covariances are fitted, they need several samples for every direction of a block.
    """
    group = symmetry.group
    if symmetry.privileged is Privileged.NONE and group.name == "general-linear":
        return max(FEWEST_SAMPLES, 10 * dim)
    if symmetry.privileged is Privileged.BLOCKS:
        inner = getattr(group, "inner", None)
        return max(FEWEST_SAMPLES, 10 * (inner.dim if inner is not None else dim))
    return FEWEST_SAMPLES


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """What is known of a site before its axes are compared with anything.

    Attributes:
        site, kind, layer, shape: its name, what it is in words, its layer, its feature axes.
        symmetry: the architecture's answer.
        n_samples: samples streamed.
        n_dead: axes that never varied.
        problem: the samples on which nulls are computed; None if there are none.
        all_samples: the scores over all samples streamed.
        trouble: why nothing can be decided, or an empty string.
        notes: what a reader must know.
        routed: which expert of a mixture it is of; None elsewhere.
        around: gives the weights around the site.
    """

    site: str
    kind: str
    layer: int | None
    shape: tuple[int, ...]
    symmetry: Symmetry
    n_samples: int
    n_dead: int
    problem: Problem | None
    all_samples: Mapping[str, float]
    trouble: str = ""
    notes: tuple[str, ...] = ()
    routed: Routed | None = None
    around: Callable[[], Around] = Around

    @property
    def dim(self) -> int:
        """The number of axes."""
        return math.prod(self.shape)

    @property
    def needed(self) -> int:
        """The number of samples below which nothing is decided."""
        return samples_needed(self.symmetry, self.dim)


@dataclasses.dataclass(frozen=True)
class Origin:
    """In which orders a site stands out on some data, and that of an untrained network on the same.

    Attributes:
        model: the orders claimed of the model.
        untrained: those claimed of a copy that the model's own code initialised, or of a network
            that was given.
        seen: the data, in words.
        given: whether the network was given.
    """

    model: tuple[str, ...]
    untrained: tuple[str, ...]
    seen: str = "the first batch"
    given: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Evidence:
    """A case with what its axes were compared with, and how they fared.

    Where there is no bound, `unbounded` says why.
    """

    case: Case
    null: NullRecord | None = None
    scores: Mapping[str, ScoreResult] = dataclasses.field(default_factory=dict[str, ScoreResult])
    beside: Mapping[str, ScoreResult] = dataclasses.field(default_factory=dict[str, ScoreResult])
    orders: Orders | None = None
    few: FewAxes | None = None
    bound: FormBound | None = None
    unbounded: str = ""
    bases: BasisRanking | None = None
    path: PathRecord | None = None
    origin: Origin | None = None


@dataclasses.dataclass(frozen=True)
class Companions:
    """What is computed besides the evidence, where it was asked for.

    Attributes:
        bases: other bases to compare the axes with.
        paths: how many turned bases to follow the deciding score to.
        own: scores with a null of their own.
    """

    bases: "tuple[Candidate, ...]" = ()
    paths: int = 0
    own: "tuple[OwnScore, ...]" = ()

    @staticmethod
    def of(
        bases: "Iterable[str | Candidate | np.ndarray | torch.Tensor] | str | Candidate | None",
        paths: int,
        scores: "Scores",
    ) -> "Companions":
        """What was asked for; of the scores those with a null of their own.

        Raises:
            ValueError: for a basis that has no such name, or a negative number of paths.
        """
        many = ": how many turned bases to go to, or 0 for none"
        count = whole("paths", paths, most=10_000, else_=many)
        return Companions(chosen_bases(bases), count, chosen_own(scores))

    @property
    def rows(self) -> int:
        """How many rows they want; 0 for no more than the null."""
        return ROWS if self.bases else 0


AT_SITES = ("quantisation", "weights")
"""Those of the scores with a null of their own that need no more than a site."""


def at_site(name: str) -> "OwnScore":
    """A score with a null of its own; loaded when it is asked for."""
    from basis_probe.evidence.quantisation import QUANTISATION
    from basis_probe.evidence.weights import WEIGHTS

    return {score.name: score for score in (QUANTISATION, WEIGHTS)}[name]


_NAMES = ", ".join([*known.ALL, *known.OWN])


Scores = Iterable[str | Score] | str | Score | None
"""Scores as users ask for them."""


def listed_scores(wanted: Scores) -> tuple[Any, ...] | None:
    """The names and values that were asked for, read once; None for none.

    Raises:
        ValueError: for what is no list of scores, or an empty one.
    """
    if wanted is None:
        return None
    if isinstance(wanted, str | Score):
        return (wanted,)
    return several("scores", wanted, f"some of {_NAMES}")


def chosen_own(wanted: Scores) -> "tuple[OwnScore, ...]":
    """Those of the scores that are meant which have a null of their own.

    Raises:
        ValueError: as `listed_scores`.
    """
    names = [score for score in listed_scores(wanted) or () if isinstance(score, str)]
    return tuple(at_site(name) for name in dict.fromkeys(names) if name in AT_SITES)


def chosen_scores(wanted: Scores) -> tuple[Score, ...]:
    """The scores that are meant: names, values, or None for the default ones.

    Those with a null of their own are left out; `chosen_own` has them.

    Raises:
        ValueError: for a name that no score bears, or no score at all.
    """
    asked = listed_scores(wanted)
    if asked is None:
        return tuple(known.DEFAULT.values())
    at_sites = [score for score in asked if isinstance(score, str) and score in AT_SITES]
    found = tuple(_score_of(score) for score in asked if score not in at_sites)
    for score in found:
        if any(other.name == score.name and other is not score for other in found):
            raise ValueError(
                f"two scores are called {described(score.name)}: give one another name"
            )
    return found


def _score_of(wanted: object) -> Score:
    if isinstance(wanted, Score):
        return wanted
    if isinstance(wanted, str) and wanted in known.ALL:
        return known.ALL[wanted]
    if isinstance(wanted, str) and wanted in known.OWN:
        raise ValueError(f"{wanted} needs the model and its data: ask bp.probe for it")
    raise ValueError(f"no score is called {described(wanted)}; there are {_NAMES}")


def parted_scores(wanted: Scores) -> tuple[tuple[Score, ...], tuple[str, ...]]:
    """The scores that are meant, and the names of those for which the model itself is needed.

    Scores with a null of their own that need no more than a site are left out.

    Raises:
        ValueError: for a name that no score bears, or no score at all.
    """
    asked = listed_scores(wanted)
    if asked is None:
        return chosen_scores(None), ()
    own = [s for s in asked if isinstance(s, str) and s in known.OWN and s not in AT_SITES]
    rest = [score for score in asked if not (isinstance(score, str) and score in own)]
    return chosen_scores(rest) if rest else (), tuple(dict.fromkeys(own))


def chosen_null(wanted: str | Null | None) -> Null | None:
    """The null that is meant: a name, a value, or None for the one that each site calls for.

    A name may be spelled as reports print it, "turned pre-activation" for "turned-preactivation".

    Raises:
        ValueError: for a name that no null bears.
    """
    if wanted is None or isinstance(wanted, Null):
        return wanted
    for name, null in NULLS.items():
        if isinstance(wanted, str) and wanted in (name, null.name):  # pyright: ignore[reportUnnecessaryIsInstance]
            return null
    raise ValueError(
        f"no null is called {described(wanted)}; there are {', '.join(NULLS)}, or None to "
        "choose by the site"
    )


def gather(
    case: Case,
    scores: Sequence[Score],
    wanted: Null | None,
    *,
    seed: int,
    twins: Sequence[Mapping[str, torch.Tensor]] = (),
    companions: Companions = Companions(),
    device: torch.device = _HERE,
) -> Evidence:
    """The evidence of one site; its case no longer holds the samples.

    Args:
        case: what is known of it.
        scores: which scores.
        wanted: the null asked for; None for the one that the site calls for.
        seed: seeds the frames.
        twins: the scores of the untrained twins' axes, where the null is made of them.
        companions: what is computed besides.
        device: where axes are compared.
    """
    with full_products():
        found = _gathered(
            case, scores, wanted, seed=seed, twins=twins, companions=companions, device=device
        )
    # Rows and what was computed of them are large, and nobody reads them again.
    return dataclasses.replace(found, case=dataclasses.replace(found.case, problem=None))


def _gathered(
    case: Case,
    scores: Sequence[Score],
    wanted: Null | None,
    *,
    seed: int,
    twins: Sequence[Mapping[str, torch.Tensor]],
    companions: Companions,
    device: torch.device,
) -> Evidence:
    problem = case.problem
    if problem is not None and not case.trouble:
        case = dataclasses.replace(case, trouble=_out_of_range(problem))
    if case.trouble or problem is None or case.n_dead == case.dim:
        return Evidence(case)
    if len(problem.x) < 8:
        return Evidence(case)
    choice = choice_of(problem, wanted)
    if isinstance(wanted, RandomWeights) and len(twins) < 2:
        choice = "no untrained twin of the model stayed finite here, or the run was cut short"
    if isinstance(choice, Choice) and isinstance(choice.null, Rotation):
        compared = taken(problem, choice.null.samples).x
        if not bool(live_axes(compared).any()):
            choice = (
                f"the {len(compared):,} rows that were drawn to be compared are all equal: give "
                "more that differ"
            )
    if isinstance(choice, str):
        return Evidence(dataclasses.replace(case, trouble=choice))
    with _threads_for(problem):
        try:
            made = _measured(
                case, problem.to(_device_for(device)), choice, wanted, scores, seed, twins
            )
        except torch.OutOfMemoryError:
            # The accelerator is full of the model: the processor has room.
            made = _measured(case, problem, choice, wanted, scores, seed, twins)
        found, notes = made.compared, made.notes
        ranking, said_of_bases = ranked(problem, companions.bases, scores, seed=seed)
        way = path(problem, companions.paths, seed=seed, score=NON_GAUSSIANITY)
        own: dict[str, ScoreResult] = {}
        for score in companions.own:
            from basis_probe.evidence.own import Place

            around = case.around() if score.reads_weights else Around()
            result = score.measure(Place(problem, choice, around, seed))
            if isinstance(result, str):
                notes = (*notes, f"{score.name}: {result}.")
            else:
                own[score.name] = result
    notes = (*notes, *said_of_bases)
    return Evidence(
        case=dataclasses.replace(
            case, notes=case.notes + notes, trouble=_too_narrow(problem, choice.null)
        ),
        null=found.record,
        scores={**found.scores, **own},
        beside=made.beside,
        orders=made.orders,
        few=found.few,
        bound=None if isinstance(made.bound, str) else made.bound,
        unbounded=made.bound if isinstance(made.bound, str) else "",
        bases=ranking,
        path=way,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _Measured:
    """What was measured of a site against its null.

    Attributes:
        compared: the scores.
        notes: what a reader must know.
        beside: the scores under a null that is shown beside.
        orders: offset, scale and form, where they are asked.
        bound: the bound of form, or why there is none; empty where none is asked.
    """

    compared: Compared
    notes: tuple[str, ...]
    beside: Mapping[str, ScoreResult]
    orders: Orders | None = None
    bound: FormBound | str = ""


def _measured(
    case: Case,
    problem: Problem,
    choice: Choice,
    wanted: Null | None,
    scores: Sequence[Score],
    seed: int,
    twins: Sequence[Mapping[str, torch.Tensor]],
) -> _Measured:
    """The scores, orders and bound of a site, computed where its rows lie."""
    compared = taken(problem, choice.null.samples)
    found = measure(compared, choice, scores, seed=seed, all_samples=case.all_samples, twins=twins)
    notes, beside = found.notes, found.beside
    if choice.behind_nonlinearity and not isinstance(choice.null, Rotation):
        beside = _beside(problem, scores, seed, found.record)
    elif choice.behind_nonlinearity:
        said = _misleading(problem, choice.null, found.scores, seed)
        notes = (*notes, said)
        warnings.warn(f"{case.site}: {said}", MisleadingNull, stacklevel=2)
    elif not choice.believable and isinstance(wanted, Rotation):
        warnings.warn(f"{case.site}: {choice.because}", MisleadingNull, stacklevel=2)
    if not choice.believable:
        return _Measured(found, notes, beside)
    apart: Orders | None = None
    if asks_orders(compared, choice.null):
        apart = orders(compared, found.scores, choice.null, seed=seed)
    bounded = bound(
        compared, choice.null, distinct=found.record.distinct, seed=seed, drawn=found.drawn
    )
    found = dataclasses.replace(found, drawn=None)
    return _Measured(found, notes, beside, apart, bounded)


def _device_for(device: torch.device) -> torch.device:
    """Where axes are compared: where the model is, if it knows double precision there."""
    return device if device.type in _DOUBLE else torch.device("cpu")


def is_small(samples: int, dim: int) -> bool:
    """True for a site of which one thread makes the most."""
    return samples * dim < _SMALL


@contextlib.contextmanager
def _threads_for(problem: Problem) -> Generator[None]:
    """Within the context torch uses one thread for a small site, as many as before for a large one.

    Turning a small basis takes about a millisecond, and a second thread mostly waits for the first:
    the decomposition of a 96 x 96 matrix took 85 ms with two threads and 0.3 ms with one, on a busy
    machine with two cores.
    """
    with one_thread(if_=is_small(*problem.x.shape)):
        yield


def choice_of(problem: Problem, wanted: Null | None) -> Choice | str:
    """The null of a site, the one asked for or its own; or why the one asked for cannot be had."""
    if isinstance(wanted, SparseWiring) and problem.layer is None:
        return (
            "the sparse-wiring null was asked for, and the input of the linear map in front of "
            "this site is not known"
        )
    if isinstance(wanted, Counterfactual) and problem.layer is None:
        if problem.pre is None:
            return (
                "the counterfactual null was asked for, and neither the input of the linear map in "
                "front of this site nor its pre-activations are known"
            )
        wanted = Turned(frames=wanted.frames, samples=wanted.samples)
    return choose(problem, wanted)


def _out_of_range(problem: Problem) -> str:
    """Why no moments can be computed, or an empty string."""
    if not problem.x.numel():
        return ""
    largest = max(abs(float(end)) for end in problem.x.aminmax())
    if not largest or not math.isfinite(largest) or _LEAST < largest < _MOST:
        return ""
    return (
        f"the largest activation is {largest:.1e} in size, and the fourth powers of such "
        "numbers leave the range of float64: give them divided by a power of two."
    )


def _too_narrow(problem: Problem, null: Null) -> str:
    """Why neurons have no alternatives, or an empty string."""
    layer = problem.layer
    if layer is None:
        return ""
    what = "channel" if layer.inputs.shape[2] > 1 else "feature"
    if isinstance(null, SparseWiring) and rewirable(layer) < FEWEST_INPUTS:
        return (
            f"the layer has {rewirable(layer)} input {what}s that vary, and neurons can be wired "
            f"to others in too few ways: that takes at least {FEWEST_INPUTS}."
        )
    if not isinstance(null, Counterfactual) or layer.inputs.shape[1] > 1:
        return ""
    return (
        f"these neurons read one input {what}, so there is no other direction for them to point "
        "to and nothing to turn."
    )


def _beside(
    problem: Problem, scores: Sequence[Score], seed: int, record: NullRecord
) -> Mapping[str, ScoreResult]:
    bare = Problem(x=problem.x, group=problem.group, halves=problem.halves)
    # Of activations behind a nonlinearity raw rotation is shown because people ask for it.
    null = to_show(problem.x.shape[1]).of(Rotation())
    choice = Choice(null, "shown beside", frozenset(), True, believable=False)
    counted = Counted(record.distinct, record.effective)
    return measure(bare, choice, scores, seed=seed, counted=counted).scores


def _misleading(problem: Problem, asked: Null, found: Mapping[str, ScoreResult], seed: int) -> str:
    """By how much the raw rotation of activations behind a nonlinearity misleads at a site."""
    better = choose(problem)
    size = {"frames": asked.frames, "samples": asked.samples, "directions": asked.directions}
    better = dataclasses.replace(better, null=dataclasses.replace(better.null, **size))
    honest = measure(problem, better, [KURTOSIS], seed=seed).scores[KURTOSIS.name]
    raw = found.get(KURTOSIS.name)
    said = "" if raw is None else f" (z = {raw.effect:.3g} in kurtosis here)"
    return (
        f"Turning the activations behind a nonlinearity credits every axis for being "
        f"one-sided{said}; against {better.null.name} neurons the same axes have z = "
        f"{honest.effect:.3g}. No verdict rests on it."
    )


def halves_of(priority: torch.Tensor) -> torch.Tensor:
    """0 or 1 for every row, by a digit of its priority that its rank does not depend on."""
    return ((priority * 2.0**40) % 2 >= 1).to(torch.int64)
