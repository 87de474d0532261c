"""How many samples lie near each direction as it turns from axis to axis."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from basis_probe.brief import brief

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@brief
@dataclasses.dataclass(frozen=True, eq=False)
class Resonance:
    """The share of samples in a cone about a direction that turns in planes of two axes.

    Attributes:
        angles: [angles], in radians; at multiples of pi / 2 the direction is an axis, or minus one.
        curve: [angles], the share of samples, the mean over planes.
        low, high: [angles], between these lie 95 of 100 turned bases.
        contrast: the mean share on axes minus that halfway between them.
        null_mean, null_std: of the contrast in turned bases.
        p_value: (1 + #{turned bases whose contrast is as far from their mean}) / (frames + 1).
        cosine: how near a sample must be to count.
        planes: how many planes were looked at.
        samples: how many samples.
    """

    angles: np.ndarray
    curve: np.ndarray
    low: np.ndarray
    high: np.ndarray
    contrast: float
    null_mean: float
    null_std: float
    p_value: float
    cosine: float
    planes: int
    samples: int

    def plot(self, *, figsize: tuple[float, float] | str | None = None) -> Figure:
        """The curve, with the band of turned bases.

        Args:
            figsize: as for `Report.plot`.

        Raises:
            ValueError: for any other size.
        """
        from basis_probe.show.heatmap import lines

        degrees = [f"{angle:.0f}" for angle in np.degrees(self.angles)]
        return lines(
            {
                "planes of axes": list(zip(degrees, self.curve.tolist(), strict=True)),
                "turned bases, low": list(zip(degrees, self.low.tolist(), strict=True)),
                "turned bases, high": list(zip(degrees, self.high.tolist(), strict=True)),
            },
            label=f"share of samples with cosine {self.cosine:g} or more",
            size=figsize,
        )

    def __str__(self) -> str:
        if not (self.curve.any() or self.high.any()):
            return (
                f"no sample has cosine {self.cosine:g} with a direction in a plane of two axes: "
                "nothing can be told; look at fewer axes, or lower cosine"
            )
        return (
            f"on axes {self.contrast:+.4f} of the samples more than between them, "
            f"{self.null_mean:+.4f} ± {self.null_std:.4f} in turned bases, p = {self.p_value:.2g}"
        )
