"""How far a finding would move with other examples, and where some axes stand for all."""

import dataclasses
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from basis_probe.statistics.halves import Part
from basis_probe.statistics.nulls import Frame, Problem
from basis_probe.statistics.p_values import skewed_tail
from basis_probe.statistics.resampling import MIN_GROUPS, Grouping, LeftOut, jackknife_error
from basis_probe.statistics.scores import Reads, Score

_GROUPS = 20
_FRAMES, _DIRECTIONS = 24, 512
"""So many alternatives, of so many directions together, tell how their mean would move."""
_AXES = 512
_FEWEST_LEFT = 3


class Spread:
    """How far the difference between axes and alternatives would move with other examples.

    A delete-group jackknife over sequences or images: rows of one example stay together, because
    they are not independent of each other.
    """

    def __init__(self, problem: Problem, scores: Sequence[Score]) -> None:
        self.scores = [score for score in scores if score.left_out is not None]
        self.frames = 0
        self.groups: Tensor | None = None
        self._grouped: tuple[tuple[Part, Part] | None, Grouping] | None = None
        self.values: dict[str, list[Tensor]] = {score.name: [] for score in self.scores}
        self.everywhere: dict[str, Tensor] = {}
        if problem.examples is None or not self.scores:
            return
        names, place = problem.examples.unique(return_inverse=True)
        if len(names) >= 2 * MIN_GROUPS:
            self.groups = place % min(_GROUPS, len(names) // 2)

    def see(self, frame: Frame) -> None:
        """Takes one more frame into account, the observed one first."""
        width = frame.post.shape[1] // frame.count
        enough = 1 + min(_FRAMES, max(3, _DIRECTIONS // max(1, width)))
        if self.groups is None or self.frames >= enough:
            return
        some = frame.first(enough - self.frames)
        self.frames += some.count
        for name, values in self._means(some).items():
            self.values[name].extend(values)

    def see_everywhere(self, frame: Frame) -> None:
        """Takes the axes of the observed frame into account, where the others have but a few."""
        if self.groups is not None:
            # Hundreds of axes err as thousands do: by what they share.
            step = -(-frame.post.shape[1] // _AXES)
            means = self._means(frame, step)
            self.everywhere = {name: values[0] for name, values in means.items()}

    def _means(self, frame: Frame, step: int = 1) -> dict[str, Tensor]:
        """The mean of every score over every step-th axis, without each group in turn.

        Returns:
            [frames, groups] for every score: of each frame that lies in this one.
        """
        assert self.groups is not None
        found: dict[Reads, LeftOut] = {}
        means: dict[str, Tensor] = {}
        for score in self.scores:
            if score.reads not in found:
                pre = score.reads is Reads.PREACTIVATIONS and frame.pre is not None
                x = frame.pre if pre and frame.pre is not None else frame.post
                found[score.reads] = LeftOut(x[:, ::step], self._grouping(frame))
            if score.left_out is not None:
                values = score.left_out(found[score.reads])
                each = values.unflatten(1, (frame.count, -1)).nanmean(2)
                means[score.name] = each.T.cpu()
        return means

    def _grouping(self, frame: Frame) -> Grouping:
        """The groups in the halves of a frame, which are those of all frames or its own."""
        assert self.groups is not None
        if self._grouped is None or self._grouped[0] is not frame.parts:
            self._grouped = frame.parts, Grouping(self.groups, frame.parts)
        return self._grouped[1]

    def error(self, score: Score, *, slope: float = 1.0) -> float:
        """The standard error of the score's distance from the null's mean; NaN if not known.

        Args:
            score: which score.
            slope: 1 for the axes that were compared; where these stand for all, the weight that
                `for_all_axes` gives to them.
        """
        values = self.values.get(score.name)
        if self.groups is None or not values or len(values) < 2:
            return math.nan
        several = torch.stack(values)
        observed = several[0]
        if score.name in self.everywhere:
            observed = slope * observed + (1 - slope) * self.everywhere[score.name]
        return jackknife_error(observed - several[1:].mean(0))


@dataclasses.dataclass(frozen=True)
class MeanOfAll:
    """The mean of a score over all axes, against that of whole alternatives.

    Attributes:
        observed: over all axes.
        null_mean, null_std: over alternatives of all axes.
        skewness: of that law, where it is known; 0 elsewhere.
        slope: of the regression that made up for axes that were not compared, see `for_all_axes`;
            zero where all directions have one law.
        error: the standard error of `null_mean`, for the draw of axes and alternatives.
        pooled_std, pooled_skewness: the same by the moments of axes and directions together, which
            are of one law under the null, where that is all that varies; else as above.
    """

    observed: float
    null_mean: float
    null_std: float
    skewness: float
    slope: float
    error: float
    pooled_std: float
    pooled_skewness: float

    def tail(self, effect: float) -> float:
        """How likely a whole alternative is so far above the mean: what both estimates say of it.

        Args:
            effect: in units of `null_std`.
        """
        found = skewed_tail(effect, self.skewness)
        if not effect > 0:
            return found
        return max(
            found, skewed_tail(effect * self.null_std / self.pooled_std, self.pooled_skewness)
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Apart:
    """Axes that were looked at one by one, for their scores are unlike those that were compared.

    Attributes:
        axes: which they are.
        alternatives: their own.
        compared: which axes were compared as a block.
    """

    axes: Int[Tensor, " some"]
    alternatives: Float[Tensor, "frames some"]
    compared: Int[Tensor, " compared"]

    def split(
        self, directions: Tensor, values: Tensor
    ) -> tuple[Float[Tensor, "frames compared"], Float[Tensor, " axes"]]:
        """The block and the scores of all axes without these."""
        rest = values.index_fill(0, self.axes, math.nan)
        return directions[:, ~torch.isin(self.compared, self.axes)], rest


def mean_of_all(
    directions: Float[Tensor, "frames compared"],
    values: Float[Tensor, " axes"],
    *,
    one_law: bool,
    apart: Apart | None = None,
) -> MeanOfAll:
    """The mean over all axes against blocks of alternatives.

    The variance of a whole alternative's mean is that of its directions one by one over their
    number, and what directions of one alternative share. Where a basis is turned that is next to
    nothing, whatever is scored: a function on the sphere is a sum of harmonics, its part of degree
    k at two directions of cosine t covaries by the Gegenbauer polynomial P_k(t) with P_k(1) = 1,
    and for axes at right angles, or those of a simplex where the all-ones direction stays, P_k is
    at most 3 / (n - 2) over n - 1 (degrees 3 and 4). Elsewhere it is taken from the blocks. The
    variance of single directions in the first case, what is shared in the other, is rounded up by
    one standard error, so that effects err towards zero.

    Source: the addition theorem for spherical harmonics.

    Args:
        directions: the scores of the axes that were compared, first, and of their alternatives,
            [1 + frames, compared].
        values: the scores of all axes, [axes].
        one_law: whether every axis has the same alternatives, as where a basis is turned; else the
            alternatives of single axes, such as neurons, have laws of their own, and those of axes
            that were not compared are inferred from their scores.
        apart: axes whose own alternatives are known beside: nothing is inferred of them, nor from
            them of others.

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> directions = torch.randn(100, 16, generator=generator, dtype=torch.float64)
        >>> found = mean_of_all(directions, torch.full((400,), 0.5).double(), one_law=True)
        >>> found.observed, abs(found.null_mean) < 0.1, 0.04 < found.null_std < 0.08
        (0.5, True, True)
    """
    blocks = directions[1:]
    known = ~torch.isnan(blocks)
    if one_law:
        return _of_turned_bases(blocks[known], values[~torch.isnan(values)])
    observed, number = float(values.nanmean()), int((~torch.isnan(values)).sum())
    if apart is not None and apart.split(directions, values)[0].shape[1] < _FEWEST_LEFT:
        apart = None  # Too few are left to infer the others from.
    everywhere = for_all_axes(directions, values, apart)
    alone = third = 0.0
    if apart is not None:
        directions, rest = apart.split(directions, values)
        blocks, known = directions[1:], ~torch.isnan(directions[1:])
        alone = float(apart.alternatives.var(0).nansum()) / max(1, number) ** 2
        centred = apart.alternatives - apart.alternatives.nanmean(0)
        third = float(centred.pow(3).nanmean(0).nansum()) / max(1, number) ** 3
        number, others = int((~torch.isnan(rest)).sum()), number
    else:
        others = number
    count, size = blocks.shape
    single = float(
        (blocks - blocks.nanmean(0))[known].square().sum() / max(1, int(known.sum()) - 1)
    )
    between = float(blocks.nanmean(1).var())
    shared = max((size * between - single) / (size - 1), 0.0) if size > 1 else between
    ours = number / max(1, others)
    variance = ours * single / max(1, others) + alone + shared
    variance += between * math.sqrt(2 / (count - 1))
    error = math.sqrt(everywhere.error**2 + between / count)
    std = math.sqrt(variance + error**2)
    null_mean = observed - everywhere.difference
    # Few of a law of their own may make the mean's law as skewed as theirs is.
    skewness = max(third, 0.0) / std**3 if std > 0 else 0.0
    return MeanOfAll(observed, null_mean, std, skewness, everywhere.slope, error, std, skewness)


def _of_turned_bases(
    single: Float[Tensor, " directions"], values: Float[Tensor, " axes"]
) -> MeanOfAll:
    """The same from the scores of single directions of turned bases.

    The third moment is that of as many independent directions. Where directions happen to lack the
    rare large scores of a skewed law, their mean and their variance are too small together, and
    axes that have theirs seem to stand out: moments of both together do not err so.
    """
    count, number = len(single), max(1, len(values))
    mean, observed = float(single.mean()), float(values.mean())
    # In units of the largest, so that no power leaves the range of numbers.
    unit = float((torch.cat([single, values]) - mean).abs().max()) if count else math.nan
    if not 0 < unit < math.inf:
        # No direction has a score, or all have the same.
        std = 0.0 if unit == 0 else math.nan
        return MeanOfAll(observed, mean, std, 0.0, 0.0, std, std, 0.0)
    apart, every = (single - mean) / unit, (torch.cat([single, values]) - mean) / unit
    second, third, fourth = (float(apart.pow(power).mean()) for power in (2, 3, 4))
    rounded = math.sqrt(max(fourth / second**2 - 1, 0.0) / count) if second > 0 else 0.0
    shared = 1 + 3 / max(1, number - 2)
    std = math.sqrt(second * (1 + rounded) * shared * (1 / number + 1 / count))
    error = math.sqrt(second * (1 + rounded) * shared / count)
    every = every - every.mean()
    pooled = math.sqrt(float(every.square().mean()) * (shared / number + 1 / count))

    def skewness(moment: float, width: float) -> float:
        # The mean of what was drawn is taken away, and its own skewness with it.
        left = moment * (1 / number**2 - 1 / count**2)
        return max(left, 0.0) / width**3 if width > 0 else 0.0

    return MeanOfAll(
        observed,
        mean,
        unit * std,
        skewness(third, std),
        0.0,
        unit * error,
        unit * pooled,
        skewness(float(every.pow(3).mean()), pooled),
    )


@dataclasses.dataclass(frozen=True)
class AllAxes:
    """What the axes that were compared say of all.

    Attributes:
        difference: how far all axes lie from the mean of their alternatives.
        error: the standard error of that, for the axes were drawn.
        slope: by how much the mean of an axis's alternatives grows with its own score.
    """

    difference: float
    error: float
    slope: float


def for_all_axes(
    directions: Float[Tensor, "frames compared"],
    values: Float[Tensor, " axes"],
    apart: Apart | None = None,
) -> AllAxes:
    """The difference for all axes, from the frames of some and the scores of all.

    The regression estimator of a mean: what alternatives of an axis score is known for some axes,
    its own score, which goes along with that, for all.
    Source: W. G. Cochran, Sampling Techniques, 3rd edition (1977), chapter 7.

    Args:
        directions: the scores of the axes that were compared and of their alternatives, the axes
            first, [1 + frames, compared].
        values: the scores of all axes, [axes].
        apart: axes whose own alternatives are known beside, a stratum of which all were taken.

    Example:
        >>> import torch
        >>> values = torch.arange(8.0, dtype=torch.float64)
        >>> some = values[[1, 2, 5]]  # whose alternatives score a half of it
        >>> found = for_all_axes(torch.stack([some, some / 2 + 1, some / 2 - 1]), values)
        >>> round(found.difference, 9), round(found.error, 9), round(found.slope, 9)
        (1.75, 0.0, 0.5)
    """
    if apart is not None:
        block, rest = apart.split(directions, values)
        left = int((~torch.isnan(rest)).sum())
        difference = values[apart.axes] - apart.alternatives.nanmean(0)
        difference = difference[~torch.isnan(difference)]
        found = for_all_axes(block, rest) if left else AllAxes(0.0, 0.0, 1.0)
        every = left + len(difference)
        return AllAxes(
            (left * found.difference + float(difference.sum())) / max(1, every),
            found.error * left / max(1, every),
            found.slope,
        )
    own, others = directions[0], directions[1:].nanmean(0)
    known = ~(torch.isnan(own) | torch.isnan(others))
    own, others, count = own[known], others[known], int(known.sum())
    among = int((~torch.isnan(values)).sum())
    if len(values) == directions.shape[1] or count < 3:
        means = directions.nanmean(1)
        error = 0.0 if len(values) == directions.shape[1] else math.nan
        return AllAxes(float(means[0] - means[1:].nanmean()), error, 1.0)
    centred, others_centred = own - own.mean(), others - others.mean()
    spread = float(centred.square().sum())
    slope = float((centred * others_centred).sum()) / spread if spread > 0 else 0.0
    residual = float((others_centred - slope * centred).square().sum()) / (count - 2)
    everywhere = float(values.nanmean())
    return AllAxes(
        everywhere - float(others.mean()) - slope * (everywhere - float(own.mean())),
        math.sqrt(residual / count * max(0.0, 1 - count / among)),
        slope,
    )
