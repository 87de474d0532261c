"""Every frozen finding, in its file form; each shows itself when asked to."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from basis_probe.results.axes import AxesComparison as AxesComparison
    from basis_probe.results.axes import AxesShared as AxesShared
    from basis_probe.results.comparison import ReportComparison as ReportComparison
    from basis_probe.results.dissection import Comparison as Comparison
    from basis_probe.results.dissection import Dissection as Dissection
    from basis_probe.results.dissection import SiteDissection as SiteDissection
    from basis_probe.results.evidence import BasisRanking as BasisRanking
    from basis_probe.results.evidence import BasisRow as BasisRow
    from basis_probe.results.evidence import BasisStanding as BasisStanding
    from basis_probe.results.evidence import ClosedFormRecord as ClosedFormRecord
    from basis_probe.results.evidence import FewAxes as FewAxes
    from basis_probe.results.evidence import FormBound as FormBound
    from basis_probe.results.evidence import KurtosisSplit as KurtosisSplit
    from basis_probe.results.evidence import NullRecord as NullRecord
    from basis_probe.results.evidence import OrderRecord as OrderRecord
    from basis_probe.results.evidence import OutlierAxes as OutlierAxes
    from basis_probe.results.evidence import PathRecord as PathRecord
    from basis_probe.results.evidence import ScoreResult as ScoreResult
    from basis_probe.results.evidence import Tail as Tail
    from basis_probe.results.examples import Context as Context
    from basis_probe.results.examples import Examples as Examples
    from basis_probe.results.examples import TopContexts as TopContexts
    from basis_probe.results.history import Glance as Glance
    from basis_probe.results.history import History as History
    from basis_probe.results.history import Look as Look
    from basis_probe.results.report import Outcome as Outcome
    from basis_probe.results.report import Provenance as Provenance
    from basis_probe.results.report import Report as Report
    from basis_probe.results.report import SiteReport as SiteReport
    from basis_probe.results.report import Verdict as Verdict
    from basis_probe.results.resonance import Resonance as Resonance
    from basis_probe.results.similarity import Chance as Chance
    from basis_probe.results.similarity import LayerMatrices as LayerMatrices
    from basis_probe.results.similarity import LayerMatrix as LayerMatrix
    from basis_probe.results.similarity import NetworkMatrix as NetworkMatrix
    from basis_probe.results.similarity import Similarities as Similarities
    from basis_probe.results.similarity import Similarity as Similarity
    from basis_probe.results.symmetry import Certificate as Certificate
    from basis_probe.results.symmetry import Symmetries as Symmetries
    from basis_probe.results.symmetry import Symmetry as Symmetry
    from basis_probe.results.weights import WeightScore as WeightScore
    from basis_probe.results.weights import WeightsPrivilege as WeightsPrivilege

# Each is imported when it is first asked for: a probe needs few of them.
_HOMES = {
    "AxesComparison": "axes",
    "AxesShared": "axes",
    "BasisRanking": "evidence",
    "BasisRow": "evidence",
    "BasisStanding": "evidence",
    "Certificate": "symmetry",
    "Chance": "similarity",
    "ClosedFormRecord": "evidence",
    "Comparison": "dissection",
    "Context": "examples",
    "Dissection": "dissection",
    "Examples": "examples",
    "FewAxes": "evidence",
    "FormBound": "evidence",
    "Glance": "history",
    "History": "history",
    "KurtosisSplit": "evidence",
    "LayerMatrices": "similarity",
    "LayerMatrix": "similarity",
    "Look": "history",
    "NetworkMatrix": "similarity",
    "NullRecord": "evidence",
    "OrderRecord": "evidence",
    "Outcome": "report",
    "OutlierAxes": "evidence",
    "PathRecord": "evidence",
    "Provenance": "report",
    "Report": "report",
    "ReportComparison": "comparison",
    "Resonance": "resonance",
    "ScoreResult": "evidence",
    "Similarities": "similarity",
    "Similarity": "similarity",
    "SiteDissection": "dissection",
    "SiteReport": "report",
    "Symmetries": "symmetry",
    "Symmetry": "symmetry",
    "Tail": "evidence",
    "TopContexts": "examples",
    "Verdict": "report",
    "WeightScore": "weights",
    "WeightsPrivilege": "weights",
}

__all__ = [
    "AxesComparison",
    "AxesShared",
    "BasisRanking",
    "BasisRow",
    "BasisStanding",
    "Certificate",
    "Chance",
    "ClosedFormRecord",
    "Comparison",
    "Context",
    "Dissection",
    "Examples",
    "FewAxes",
    "FormBound",
    "Glance",
    "History",
    "KurtosisSplit",
    "LayerMatrices",
    "LayerMatrix",
    "Look",
    "NetworkMatrix",
    "NullRecord",
    "OrderRecord",
    "Outcome",
    "OutlierAxes",
    "PathRecord",
    "Provenance",
    "Report",
    "ReportComparison",
    "Resonance",
    "ScoreResult",
    "Similarities",
    "Similarity",
    "SiteDissection",
    "SiteReport",
    "Symmetries",
    "Symmetry",
    "Tail",
    "TopContexts",
    "Verdict",
    "WeightScore",
    "WeightsPrivilege",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return [*__all__]
