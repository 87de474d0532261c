"""What the same directions score for concepts that mean nothing: labels shuffled between examples.

The labels of an example move as a block, so that a concept keeps its coverage and its labels their
neighbours (the next token's, the next pixel's): whatever the dependence within examples, it is in
the chance level too. The largest score of all directions is what a threshold must withstand, for
every concept at once (Westfall and Young 1993, max T).
"""

import dataclasses
import math

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

LEVEL = 0.05
"""With this probability at most, any concept at all is above its threshold by chance."""


def shuffled(
    examples: Int64[Tensor, " samples"], generator: torch.Generator
) -> Int64[Tensor, " samples"]:
    """For every sample, whose label it gets: whole examples change places.

    Args:
        examples: equal for samples of one example, which stand together.
        generator: draws the order.

    Example:
        >>> shuffled(torch.tensor([7, 7, 3, 3]), torch.Generator().manual_seed(1))
        tensor([2, 3, 0, 1])
    """
    new = torch.ones(len(examples), dtype=torch.bool)
    new[1:] = examples[1:] != examples[:-1]
    starts = torch.nonzero(new).flatten()
    blocks = torch.arange(len(examples)).tensor_split(starts[1:])
    order = torch.randperm(len(blocks), generator=generator)
    return torch.cat([blocks[place] for place in order.tolist()])


@dataclasses.dataclass(frozen=True, eq=False)
class Chance:
    """Thresholds above chance, and how many concepts chance alone lifts over them.

    Attributes:
        thresholds: [concepts]; with probability 1 - `LEVEL` none of them is passed by chance.
        most: the largest number of concepts that chance passes in 97.5 of 100 cases; the chance
            interval of the number of distinct concepts is from 0 to this.
    """

    thresholds: Float64[Tensor, " concepts"]
    most: int

    @staticmethod
    def of(largest: Float64[Tensor, "shuffles concepts"], level: float = LEVEL) -> "Chance":
        """The thresholds that follow from what shuffled labels reached.

        Args:
            largest: the largest score of all directions for every concept in every shuffle.
            level: the probability that any threshold is passed by chance.
        """
        count = len(largest)
        mean, std = largest.mean(0), largest.std(0, correction=min(1, count - 1))
        scale = std.clamp(min=1e-12)
        highest = ((largest - mean) / scale).max(1).values.sort().values
        place = min(count, math.ceil((1 - level) * (count + 1))) - 1
        thresholds = mean + highest[place] * scale
        passed = (largest > thresholds).sum(1).sort().values
        most = int(passed[min(count, math.ceil(0.975 * (count + 1))) - 1])
        return Chance(thresholds, most)
