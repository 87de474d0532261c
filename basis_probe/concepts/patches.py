"""Which part of the image a place of a feature map sees, measured.

A pixel that is not a number makes every place that sees it not a number, through convolutions,
pooling and nonlinearities alike. So one row of such pixels at a time tells which rows of the map
see it, whatever the network is made of; and columns likewise.
"""

import dataclasses
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from basis_probe.adapters.batches import Batch
from basis_probe.adapters.capture import catching
from basis_probe.adapters.models import Subject
from basis_probe.adapters.places import Address

Span = tuple[int, int]
"""From a row or column up to, and without, another."""


@dataclasses.dataclass(frozen=True)
class Fields:
    """What every place of a map sees of the image.

    Attributes:
        rows: for every row of the map, which rows of the image.
        columns: for every column of the map, which columns of the image.
    """

    rows: tuple[Span, ...]
    columns: tuple[Span, ...]

    def box(self, position: int) -> tuple[int, int, int, int]:
        """Top, left, bottom, right of what a place sees, the last two outside it.

        Args:
            position: of the place, row by row.
        """
        row, column = divmod(position, len(self.columns))
        (top, bottom), (left, right) = self.rows[row], self.columns[column]
        return top, left, bottom, right


def fields(subject: Subject, address: Address, batch: Batch) -> Fields | None:
    """What every place of a map sees; None where the inputs are no images or the site is no map.

    Costs a forward pass of one image for every row and column of it. A place that nothing can be
    told of is taken to see all.

    Args:
        subject: the model.
        address: of the site, a tensor [batch, channels, height, width].
        batch: any batch; its first image is used.
    """
    one = batch.first(1)
    image = one.inputs
    if image.ndim != 4 or not image.is_floating_point():
        return None
    if _blind(subject, address, one, image) is None:
        return None
    spans: list[tuple[Span, ...]] = []
    for axis in (2, 3):
        seen: list[Tensor] = []
        for place in range(image.shape[axis]):
            spoiled = image.clone()
            spoiled.select(axis, place).fill_(torch.nan)
            blind = _blind(subject, address, one, spoiled)
            if blind is None:
                return None
            seen.append(blind.any(3 - axis))
        spans.append(_spans(torch.stack(seen)))
    return Fields(*spans)


def _spans(seen: Bool[Tensor, "lines places"]) -> tuple[Span, ...]:
    """For every place from which line of the image on it sees, and up to which."""
    spans: list[Span] = []
    for lines in seen.T:
        places = torch.nonzero(lines).flatten().tolist()
        spans.append((places[0], places[-1] + 1) if places else (0, len(lines)))
    return tuple(spans)


def _blind(
    subject: Subject, address: Address, one: Batch, image: Float[Tensor, "1 channels rows columns"]
) -> Bool[Tensor, "height width"] | None:
    """Where the map is not a number; None if it is no map of one image."""

    def put(value: Any) -> Any:
        return image if value is one.inputs else value

    caught: list[Tensor] = []
    spoiled = dataclasses.replace(
        one,
        args=tuple(map(put, one.args)),
        kwargs={name: put(value) for name, value in one.kwargs.items()},
        inputs=image,
    )
    with catching(subject.model, {address: caught.append}):
        subject.call(spoiled)
    if not caught or caught[0].ndim != 4 or len(caught[0]) != 1:
        return None
    return caught[0][0].isnan().any(0).cpu()
