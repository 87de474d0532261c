"""Do few axes carry what a layer does to a loss? Its axes against turned ones, and against twins.

Neurons that point elsewhere before a refitted map are no exact alternatives: a fit leaves something
over, and untrained neurons, which were fitted to nothing, stand out against them too. So the score
is claimed only where neurons stand out from them by more than those of untrained twins do.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from basis_probe.evidence.measure import of_rows
from basis_probe.evidence.site import choice_of
from basis_probe.results.evidence import ScoreResult
from basis_probe.statistics.attribution import (
    Attributed,
    Concentration,
    Refitted,
    TurnedAlike,
    concentration,
)
from basis_probe.statistics.nulls import (
    CovariancePreserving,
    GaussianSurrogate,
    Null,
    Problem,
    RandomWeights,
    Rotation,
    geometry_of,
)
from basis_probe.statistics.p_values import (
    Tail,
    benjamini_hochberg,
    monte_carlo_p,
    pooled_direction_p,
    tail_p,
)
from basis_probe.statistics.scores import INTEGRATED

ROWS = 1024
"""Attributions are compared on so many samples."""
TWINS = 6
"""So many untrained twins stand beside."""
_TWIN_FRAMES = 9
_MOST_FRAMES, _FEWEST_FRAMES = 99, 19
_WORK = 4e10
"""About so many multiplications and additions are spent on a site."""
_FEWEST_ROWS = 8


@dataclasses.dataclass(frozen=True, eq=False)
class Carried:
    """How few axes carry the attribution of a site, in the observed frame and in alternatives.

    Attributes:
        observed: on the axes.
        others: in every alternative.
        neurons: True if the alternatives are neurons before a refitted map.
        null: what they are.
        misleads: why nothing may be claimed from them; empty where something may.
    """

    observed: Concentration
    others: tuple[Concentration, ...]
    neurons: bool
    null: str
    misleads: str = ""

    @property
    def difference(self) -> float:
        """By how much the axes' Gini coefficient is larger than that of the alternatives."""
        return self.observed.gini - float(np.mean([other.gini for other in self.others]))


_WITHOUT = (CovariancePreserving, GaussianSurrogate, RandomWeights)
"""Nulls whose rows belong to no gradient of the model's."""


def carried(
    problem: Problem,
    gradient: Tensor,
    *,
    wanted: Null | None = None,
    seed: int,
    twin: bool = False,
) -> Carried | str:
    """How few axes carry the attribution of a site, or why that is not known.

    Args:
        problem: what is known of the site.
        gradient: the derivatives of the loss by its rows, [samples, dim]; NaN where there are none.
        wanted: the null asked for; None for the one that the site calls for.
        seed: seeds the alternatives.
        twin: True for as many alternatives as it takes to know their mean.
    """
    known = gradient.isfinite().all(1) & (gradient != 0).any(1)
    places = torch.nonzero(known).flatten()[:ROWS]
    if len(places) < _FEWEST_ROWS:
        return (
            f"{len(places)} of {len(gradient)} samples have derivatives of the loss by them that "
            "are not zero"
        )
    few, gradient = of_rows(problem, places), gradient[places]
    if isinstance(wanted, _WITHOUT):
        return (
            f"rows of the {wanted.name} null belong to no gradient of the model; ask for rotation, "
            "counterfactual, sparse-wiring or turned-preactivation, or for none"
        )
    choice = choice_of(few, wanted)
    if isinstance(choice, str):
        return choice
    frames = _frames(few, isinstance(choice.null, Rotation))
    frames = frames if wanted is None else min(frames, wanted.frames)
    made: Attributed
    if isinstance(choice.null, Rotation):
        geometry = geometry_of(few.group)
        made, name = TurnedAlike(few, gradient, geometry), choice.null.name
    else:
        made = Refitted(choice.null.alternatives(few), few.x, gradient)
        name = f"{choice.null.name} neurons, refitted"
    generator = torch.Generator().manual_seed(seed)
    count = min(frames, _TWIN_FRAMES) if twin else frames
    observed = concentration(*made.frame(None))
    if not observed.samples:
        return "activation times gradient is zero at every sample"
    others = tuple(concentration(*made.frame(generator)) for _ in range(count))
    misleads = "" if choice.believable else choice.because
    return Carried(observed, others, isinstance(made, Refitted), name, misleads)


def _frames(problem: Problem, turned: bool) -> int:
    """As many alternatives as a site's width allows."""
    samples, dim = problem.x.shape
    smaller = min(samples, dim)
    work = 4 * samples * dim * (dim if turned else smaller) + smaller**3
    return max(_FEWEST_FRAMES, min(_MOST_FRAMES, int(_WORK / work)))


@dataclasses.dataclass(frozen=True)
class Twins:
    """What neurons exceed their alternatives by, on the first examples.

    Attributes:
        model: those of the model.
        untrained: those of every twin.
    """

    model: float
    untrained: tuple[float, ...]

    @functools.cached_property
    def p_value(self) -> float:
        """Of the model as one more twin, by Student's t; NaN with fewer than two twins."""
        import scipy.stats

        count = len(self.untrained)
        if count < 2 or math.isnan(self.model):
            return math.nan
        mean, std = float(np.mean(self.untrained)), float(np.std(self.untrained, ddof=1))
        if not std > 0:
            return math.nan
        t = (self.model - mean) / (std * math.sqrt(1 + 1 / count))
        return float(scipy.stats.t.sf(t, count - 1))


def result(name: str, found: Carried, twins: Twins | None, dim: int) -> ScoreResult:
    """The score of a site; of neurons its p-value is the larger one, beyond both.

    Args:
        name: of the score.
        found: how few axes carry its attribution.
        twins: what untrained twins show; None where there are none.
        dim: of the site.
    """
    values = torch.tensor([other.gini for other in found.others], dtype=torch.float64)
    mean, std = float(values.mean()), float(values.std())
    own = found.observed
    p = monte_carlo_p(own.gini, values, tail=Tail.UPPER)
    approximated = tail_p(own.gini, values, tail=Tail.UPPER)
    beyond, method = approximated.value, approximated.method
    if found.neurons:
        other = math.nan if twins is None else twins.p_value
        # Of a maximum NaN is lost: what is not known of both is not known.
        p = math.nan if math.isnan(other) else max(p, other)
        beyond = math.nan if math.isnan(other) else max(beyond, other)
        method = f"the larger of that and of Student's t over untrained twins; {method}"
    directions = torch.stack([one.per_axis for one in (own, *found.others)])
    per_axis = pooled_direction_p(
        directions[0], directions[1:], pool=not found.neurons, tail=Tail.UPPER
    )
    known = per_axis[~torch.isnan(per_axis)]
    share = float((benjamini_hochberg(known) <= 0.05).double().mean()) if len(known) else math.nan
    return ScoreResult(
        name=name,
        observed=own.gini,
        null_mean=mean,
        null_std=std,
        effect=(own.gini - mean) / std if std > 1e-12 else math.nan,
        p_value=p,
        p_tail=beyond,
        p_tail_method=method,
        p_adjusted=math.nan,
        tail=Tail.UPPER,
        decides=False,
        null=found.null,
        null_values=values.numpy().copy(),
        per_direction=own.per_axis.numpy().copy(),
        per_direction_p=per_axis.numpy().copy(),
        fraction_privileged=share,
        effect_without_top_axes=math.nan,
        all_samples=math.nan,
        note=_sentence(name, found, twins, dim),
        difference=own.gini - mean,
        untrained=() if twins is None else twins.untrained,
    )


def _sentence(name: str, found: Carried, twins: Twins | None, dim: int) -> str:
    own, others = found.observed, found.others
    shares = _mean([other.share for other in others])
    several = _mean([other.share_on_average for other in others])
    where = "where neurons point elsewhere" if found.neurons else "in turned bases"
    what = "integrated attribution" if name == INTEGRATED else "attribution"
    said = (
        f"Nine tenths of a sample's {what} lie on {own.share:.1%} of the {dim} axes, on "
        f"{shares:.1%} {where}; of all samples together on {own.share_on_average:.1%} and "
        f"{several:.1%}; participation {own.participation:.1%} and "
        f"{_mean([other.participation for other in others]):.1%}"
    )
    if found.misleads:
        return f"{said}. Nothing is claimed: {found.misleads}"
    if not found.neurons:
        return said
    if twins is None or math.isnan(twins.p_value):
        return f"{said}. No untrained twins could stand beside, so nothing is claimed"
    mean, spread = _mean(twins.untrained), float(np.std(twins.untrained, ddof=1))
    return (
        f"{said}. Their Gini coefficient is {twins.model:+.3f} beyond that of neurons that point "
        f"elsewhere, in {len(twins.untrained)} untrained twins {mean:+.3f} ± {spread:.3f}"
    )


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
