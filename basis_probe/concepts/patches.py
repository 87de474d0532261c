"""Which part of the image a place of a feature map sees, measured.

A pixel that is not a number makes every place that sees it not a number, through convolutions,
pooling and nonlinearities alike. So one row of such pixels at a time tells which rows of the map
see it, whatever the network is made of; and columns likewise.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from basis_probe.model.batches import Batch
from basis_probe.model.capture import catching
from basis_probe.model.network import Subject
from basis_probe.model.places import Address

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


def fields(subject: Subject, addresses: Sequence[Address], batch: Batch) -> list[Fields | None]:
    """What every place of some maps sees; None where the inputs are no images or a site is no map.

    Costs a forward pass of one image for every row and column of it, for all sites together. A
    place that nothing can be told of is taken to see all.

    Args:
        subject: the model.
        addresses: of the sites, tensors [batch, channels, height, width].
        batch: any batch; its first image is used.
    """
    one = batch.first(1)
    image = one.inputs
    found: list[Fields | None] = [None] * len(addresses)
    if image.ndim != 4 or not image.is_floating_point():
        return found
    maps = [
        place
        for place, blind in enumerate(_blind(subject, addresses, one, image))
        if blind is not None
    ]
    if not maps:
        return found
    wanted = [addresses[place] for place in maps]
    spans: list[list[tuple[Span, ...] | None]] = []
    for axis in (2, 3):
        seen: list[list[Tensor | None]] = []
        for line in range(image.shape[axis]):
            spoiled = image.clone()
            spoiled.select(axis, line).fill_(torch.nan)
            blinds = _blind(subject, wanted, one, spoiled)
            seen.append([None if blind is None else blind.any(3 - axis) for blind in blinds])
        spans.append([_spans(lines) for lines in zip(*seen, strict=True)])
    for place, rows, columns in zip(maps, *spans, strict=True):
        if rows is not None and columns is not None:
            found[place] = Fields(rows, columns)
    return found


def _spans(seen: Sequence[Tensor | None]) -> tuple[Span, ...] | None:
    """For every place from which line of the image on it sees, and up to which.

    Args:
        seen: for every line, at which places it is seen, [places].
    """
    known = [lines for lines in seen if lines is not None]
    if len(known) < len(seen):
        return None
    spans: list[Span] = []
    for lines in torch.stack(known).T:
        places = torch.nonzero(lines).flatten().tolist()
        spans.append((places[0], places[-1] + 1) if places else (0, len(lines)))
    return tuple(spans)


def _blind(
    subject: Subject,
    addresses: Sequence[Address],
    one: Batch,
    image: Float[Tensor, "1 channels rows columns"],
) -> list[Bool[Tensor, "height width"] | None]:
    """Where the maps are not a number; None for what is no map of one image."""

    def put(value: Any) -> Any:
        return image if value is one.inputs else value

    caught: dict[Address, Tensor] = {}

    def keep(address: Address, tensor: Tensor) -> None:
        # What is done in place later must not change what stands here now.
        if tensor.ndim == 4 and len(tensor) == 1:
            caught[address] = tensor[0].isnan().any(0).cpu()

    spoiled = dataclasses.replace(
        one,
        args=tuple(map(put, one.args)),
        kwargs={name: put(value) for name, value in one.kwargs.items()},
        inputs=image,
    )
    with catching(subject.model, {a: functools.partial(keep, a) for a in addresses}):
        subject.call(spoiled)
    return [caught.get(address) for address in addresses]
