"""Against what the axes are compared, each null a value with a name."""

from basis_probe.statistics.nulls.frames import Alternatives as Alternatives
from basis_probe.statistics.nulls.frames import AsComputed as AsComputed
from basis_probe.statistics.nulls.frames import Frame as Frame
from basis_probe.statistics.nulls.frames import Geometry as Geometry
from basis_probe.statistics.nulls.frames import LinearLayer as LinearLayer
from basis_probe.statistics.nulls.frames import Null as Null
from basis_probe.statistics.nulls.frames import Problem as Problem
from basis_probe.statistics.nulls.frames import geometry_of as geometry_of
from basis_probe.statistics.nulls.frames import parts_of as parts_of
from basis_probe.statistics.nulls.neurons import Counterfactual as Counterfactual
from basis_probe.statistics.nulls.neurons import TurnedPreactivation as TurnedPreactivation
from basis_probe.statistics.nulls.others import CovariancePreserving as CovariancePreserving
from basis_probe.statistics.nulls.others import GaussianSurrogate as GaussianSurrogate
from basis_probe.statistics.nulls.others import RandomWeights as RandomWeights
from basis_probe.statistics.nulls.rotations import Rotation as Rotation
from basis_probe.statistics.nulls.wiring import SparseWiring as SparseWiring

__all__ = [
    "Counterfactual",
    "CovariancePreserving",
    "GaussianSurrogate",
    "Geometry",
    "Null",
    "RandomWeights",
    "Rotation",
    "SparseWiring",
    "TurnedPreactivation",
]


def __dir__() -> list[str]:
    return list(__all__)
