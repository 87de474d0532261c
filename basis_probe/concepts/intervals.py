"""How much the number of detected concepts owes to the examples that were drawn.

Whole examples are drawn again with replacement (tokens and pixels of one example are no independent
samples), and the chosen directions are scored on them. Choices stay as they were: they were made on
the other half.
"""

import dataclasses
import functools

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from basis_probe.concepts.alignment import Measure, counted


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
    """Directions with the concept that each is scored for, on the second half.

    Attributes:
        values: the activations read with their signs, [samples, pairs].
        limits: [pairs], above which a sample is active; None where the measure needs none.
        labels: [samples, pairs], of each pair's concept.
        examples: [samples], equal for samples of one example, which stand together.
        counting: [samples, pairs], which samples count for the pair's concept; None for all.
    """

    values: Float[Tensor, "samples pairs"]
    limits: Float[Tensor, " pairs"] | None
    labels: Bool[Tensor, "samples pairs"]
    examples: Int64[Tensor, " samples"]
    counting: Bool[Tensor, "samples pairs"] | None = None

    def resampled(
        self, measure: Measure, *, times: int, generator: torch.Generator
    ) -> Float64[np.ndarray, "times pairs"]:
        """The score of every pair on examples drawn again, `times` times.

        Args:
            measure: how well.
            times: how often.
            generator: draws the examples.
        """
        if not times:
            return np.zeros((0, self.values.shape[1]))
        index = torch.unique_consecutive(self.examples, return_inverse=True)[1]
        count = int(index[-1]) + 1
        drawn = torch.randint(0, count, (times, count), generator=generator)
        weights = torch.zeros(times, count, dtype=torch.float64)
        weights.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
        if self.limits is None:
            return np.stack([self._ranked(measure, row[index].numpy()) for row in weights], 0)
        return self._counted(measure, self.values > self.limits, weights, index)

    def _counted(
        self, measure: Measure, active: Tensor, weights: Tensor, index: Tensor
    ) -> np.ndarray:
        examples = weights.shape[1]
        counting = active if self.counting is None else active & self.counting
        both, on, true = (
            weights @ _by_example(flags, index, examples)
            for flags in (active & self.labels, counting, self.labels)
        )
        sizes = weights @ torch.bincount(index, minlength=examples).double()
        return counted(measure, both, on, true, sizes[:, None]).numpy()

    def _ranked(self, measure: Measure, weights: np.ndarray) -> np.ndarray:
        order, starts, ends, carried = self._ordered
        weight = weights[order]
        true = np.cumsum(weight * carried, axis=1)
        reached = np.cumsum(weight, axis=1)
        places = np.arange(len(order))[:, None]
        at_end = true[places, ends]
        all_at_end = np.maximum(reached[places, ends], 1e-300)
        positives = np.maximum(true[:, -1], 1e-300)
        if measure is Measure.AVERAGE_PRECISION:
            return (weight * carried * at_end / all_at_end).sum(1) / positives
        # Of those above: all that were reached before this group of equals.
        over = np.where(starts > 0, reached[places, starts - 1], 0.0)
        true_over = np.where(starts > 0, true[places, starts - 1], 0.0)
        negatives = np.maximum(reached[:, -1] - true[:, -1], 1e-300)
        above = over - true_over
        equal = (all_at_end - over) - (at_end - true_over)
        lost = (weight * carried * (above + equal / 2)).sum(1)
        return 1 - lost / (positives * negatives)

    @functools.cached_property
    def _ordered(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The most active sample first, for each pair: order, groups of equals, labels."""
        rows = np.ascontiguousarray(self.values.numpy().T)
        order = np.argsort(-rows, axis=1)
        ordered = np.take_along_axis(rows, order, axis=1)
        places = np.arange(rows.shape[1])
        new = np.ones(rows.shape, dtype=bool)
        new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
        starts = np.maximum.accumulate(np.where(new, places, 0), axis=1)
        last = np.ones(rows.shape, dtype=bool)
        last[:, :-1] = new[:, 1:]
        ends = np.where(last, places, rows.shape[1])
        ends = np.minimum.accumulate(ends[:, ::-1], axis=1)[:, ::-1]
        carried = np.take_along_axis(self.labels.numpy().T, order, axis=1)
        return order, starts, ends, carried


def _by_example(
    flags: Bool[Tensor, "samples pairs"], index: Int64[Tensor, " samples"], examples: int
) -> Float64[Tensor, "examples pairs"]:
    """How many samples of every example are flagged."""
    counts = [
        torch.bincount(index[torch.from_numpy(np.flatnonzero(row.numpy()))], minlength=examples)
        for row in flags.T.contiguous()
    ]
    return torch.stack(counts, 1).double()
