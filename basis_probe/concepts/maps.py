"""Maps of activations read at the resolution of larger masks, as network dissection does.

Interpolating is most of the work, and only the highest few pixels of a direction matter. An
interpolated pixel is no higher than the highest cell of its map, so images whose highest cell is
below the threshold need not be interpolated at all; what is found is the same.
"""

import dataclasses
import functools

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from basis_probe.concepts.alignment import Active, beyond, nth_largest

_FIRST = 32
"""So many images with the highest cells are interpolated before the threshold is guessed."""


@dataclasses.dataclass(frozen=True, eq=False)
class Maps:
    """Between maps of two sizes, bilinear.

    Attributes:
        small: height and width of the activations.
        large: height and width of the masks.
    """

    small: tuple[int, int]
    large: tuple[int, int]

    @property
    def cells(self) -> int:
        """How many cells a map has."""
        return self.small[0] * self.small[1]

    @property
    def pixels(self) -> int:
        """How many pixels a mask has."""
        return self.large[0] * self.large[1]

    @functools.cached_property
    def _products(self) -> tuple[Tensor, Tensor]:
        """What rows are multiplied by, and columns."""
        down, across = (
            torch.nn.functional.interpolate(
                torch.eye(few, dtype=torch.float32)[None],
                size=many,
                mode="linear",
                align_corners=False,
            )[0]
            for few, many in zip(self.small, self.large, strict=True)
        )
        return down.T.contiguous(), across

    def enlarged(self, maps: Float[Tensor, "images cells"]) -> Float[Tensor, "images pixels"]:
        """The maps at the resolution of the masks."""
        down, across = (product.to(maps) for product in self._products)
        # Rows, then columns, as two products: many times faster than pixel by pixel.
        return (down @ (maps.reshape(-1, *self.small) @ across)).flatten(1)

    def spread(self, rows: Float[Tensor, "cells directions"]) -> Float[Tensor, "pixels directions"]:
        """All pixels of all directions; those of one direction lie side by side."""
        directions = rows.shape[1]
        return self.enlarged(rows.T.reshape(-1, self.cells)).reshape(directions, -1).T

    def limit(self, maps: Float[Tensor, "images cells"], top: float) -> float:
        """The smallest value that at most a share `top` of all pixels exceed."""
        images = len(maps)
        few = beyond(images * self.pixels, top)
        peaks = _peaks(maps)
        order = peaks.argsort(descending=True)
        taken = min(images, _FIRST)
        while True:
            pixels = self.enlarged(maps[order[:taken]]).flatten()
            # Of some images, so that of all it can only be higher.
            least = float(nth_largest(pixels.numpy(), few)) if len(pixels) > few else -torch.inf
            if taken == images or float(peaks[order[taken]]) <= least:
                return least
            taken = min(images, max(2 * taken, int((peaks > least).sum())))

    def active(
        self,
        columns: Float[Tensor, "directions images cells"],
        limits: Float[Tensor, " directions"],
    ) -> Active:
        """Which pixels of which directions are above their threshold."""
        places: list[Tensor] = []
        for maps, limit, peaks in zip(columns, limits, _peaks(columns), strict=True):
            images = torch.nonzero(peaks > limit).flatten()
            over = (self.enlarged(maps[images]) > limit).flatten()
            found = torch.from_numpy(np.flatnonzero(over.numpy()))
            places.append(images[found // self.pixels] * self.pixels + found % self.pixels)
        counts = torch.tensor([len(some) for some in places])
        return Active(torch.cat(places), counts, columns.shape[1] * self.pixels)


def _peaks(maps: Float[Tensor, "*some cells"]) -> Float[Tensor, "*some"]:
    """No pixel of an image is higher, rounding included."""
    lowest, highest = maps.aminmax(dim=-1)
    return highest + 1e-5 * torch.maximum(highest.abs(), lowest.abs())
