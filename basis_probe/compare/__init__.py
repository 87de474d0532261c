"""Two networks compared and joined, up to the changes of basis that their architectures allow."""

from basis_probe.compare.rebasin import Rebasin as Rebasin
from basis_probe.compare.stitching import Stitched as Stitched
from basis_probe.compare.stitching import StitchingCurve as StitchingCurve

__all__ = [
    "Rebasin",
    "Stitched",
    "StitchingCurve",
]


def __dir__() -> list[str]:
    return list(__all__)
