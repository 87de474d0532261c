"""Is a layer's basis privileged? Symmetry from the architecture, evidence from data, a verdict.

Here is what people call; what they hand over (groups, nulls, scores, bases, options of concepts and
comparisons) and what they get back stands in the namespaces `groups`, `nulls`, `scores`, `bases`,
`concepts`, `compare` and `results`.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from basis_probe import compare as compare
    from basis_probe import concepts as concepts
    from basis_probe import results as results
    from basis_probe.activations import probe_activations as probe_activations
    from basis_probe.algebra import groups as groups
    from basis_probe.algebra.groups import Privileged as Privileged
    from basis_probe.algebra.intertwiner import Intertwiner as Intertwiner
    from basis_probe.algebra.intertwiner import intertwiner_group as intertwiner_group
    from basis_probe.architecture.symmetries import certify as certify
    from basis_probe.architecture.symmetries import reparametrize as reparametrize
    from basis_probe.architecture.symmetries import symmetries as symmetries
    from basis_probe.attachment import Attachment as Attachment
    from basis_probe.attachment import attach as attach
    from basis_probe.compare.axes import compare_axes as compare_axes
    from basis_probe.compare.matrices import compare_layers as compare_layers
    from basis_probe.compare.matrices import compare_networks as compare_networks
    from basis_probe.compare.rebasin import rebasin as rebasin
    from basis_probe.compare.reports import compare_reports as compare_reports
    from basis_probe.compare.similarity import similarity as similarity
    from basis_probe.compare.stitching import stitch as stitch
    from basis_probe.compare.stitching import stitching_curve as stitching_curve
    from basis_probe.concepts.causes import ablate as ablate
    from basis_probe.concepts.causes import logit_effects as logit_effects
    from basis_probe.concepts.dissect import dissect as dissect
    from basis_probe.concepts.dissect import dissect_activations as dissect_activations
    from basis_probe.concepts.examples import top_examples as top_examples
    from basis_probe.concepts.examples import with_examples as with_examples
    from basis_probe.concepts.explain import explain as explain
    from basis_probe.concepts.export import export_basis as export_basis
    from basis_probe.concepts.neuronpedia import export_neuronpedia as export_neuronpedia
    from basis_probe.concepts.probes import sparse_probes as sparse_probes
    from basis_probe.concepts.rigidity import stiffness as stiffness
    from basis_probe.concepts.selectivity import selectivity as selectivity
    from basis_probe.errors import DataError as DataError
    from basis_probe.errors import MisleadingNull as MisleadingNull
    from basis_probe.errors import SiteError as SiteError
    from basis_probe.errors import StreamError as StreamError
    from basis_probe.evidence.resonance import spotlight_resonance as spotlight_resonance
    from basis_probe.evidence.weights import weights_privilege as weights_privilege
    from basis_probe.observation import observe as observe
    from basis_probe.observation import probe as probe
    from basis_probe.results.evidence import ScoreResult as ScoreResult
    from basis_probe.results.report import Outcome as Outcome
    from basis_probe.results.report import Report as Report
    from basis_probe.results.report import SiteReport as SiteReport
    from basis_probe.results.report import Verdict as Verdict
    from basis_probe.results.symmetry import Certificate as Certificate
    from basis_probe.results.symmetry import Symmetries as Symmetries
    from basis_probe.results.symmetry import Symmetry as Symmetry
    from basis_probe.run.distributed import gathered as gathered
    from basis_probe.run.distributed import process_group as process_group
    from basis_probe.run.parts import Partial as Partial
    from basis_probe.run.twins import reinitialised as reinitialised
    from basis_probe.statistics import bases as bases
    from basis_probe.statistics import nulls as nulls
    from basis_probe.statistics import scores as scores

__version__ = "0.1.0"

# Each is imported when it is first asked for, so that a command line without a model is there at
# once. No file of the package bears the name of a function here: importing it would take its place.
_NAMESPACES = {
    "bases": "statistics.bases",
    "compare": "compare",
    "concepts": "concepts",
    "groups": "algebra.groups",
    "nulls": "statistics.nulls",
    "results": "results",
    "scores": "statistics.scores",
}
_HOMES = {
    "Attachment": "attachment",
    "Certificate": "results.symmetry",
    "DataError": "errors",
    "Intertwiner": "algebra.intertwiner",
    "MisleadingNull": "errors",
    "Outcome": "results.report",
    "Partial": "run.parts",
    "Privileged": "algebra.groups",
    "Report": "results.report",
    "ScoreResult": "results.evidence",
    "SiteError": "errors",
    "SiteReport": "results.report",
    "StreamError": "errors",
    "Symmetries": "results.symmetry",
    "Symmetry": "results.symmetry",
    "Verdict": "results.report",
    "ablate": "concepts.causes",
    "attach": "attachment",
    "certify": "architecture.symmetries",
    "compare_axes": "compare.axes",
    "compare_layers": "compare.matrices",
    "compare_networks": "compare.matrices",
    "compare_reports": "compare.reports",
    "dissect": "concepts.dissect",
    "dissect_activations": "concepts.dissect",
    "explain": "concepts.explain",
    "export_basis": "concepts.export",
    "export_neuronpedia": "concepts.neuronpedia",
    "gathered": "run.distributed",
    "intertwiner_group": "algebra.intertwiner",
    "logit_effects": "concepts.causes",
    "observe": "observation",
    "probe": "observation",
    "probe_activations": "activations",
    "process_group": "run.distributed",
    "rebasin": "compare.rebasin",
    "reinitialised": "run.twins",
    "reparametrize": "architecture.symmetries",
    "selectivity": "concepts.selectivity",
    "similarity": "compare.similarity",
    "sparse_probes": "concepts.probes",
    "spotlight_resonance": "evidence.resonance",
    "stiffness": "concepts.rigidity",
    "stitch": "compare.stitching",
    "stitching_curve": "compare.stitching",
    "symmetries": "architecture.symmetries",
    "top_examples": "concepts.examples",
    "weights_privilege": "evidence.weights",
    "with_examples": "concepts.examples",
}

__all__ = [
    "Attachment",
    "Certificate",
    "DataError",
    "Intertwiner",
    "MisleadingNull",
    "Outcome",
    "Partial",
    "Privileged",
    "Report",
    "ScoreResult",
    "SiteError",
    "SiteReport",
    "StreamError",
    "Symmetries",
    "Symmetry",
    "Verdict",
    "__version__",
    "ablate",
    "attach",
    "bases",
    "certify",
    "compare",
    "compare_axes",
    "compare_layers",
    "compare_networks",
    "compare_reports",
    "concepts",
    "dissect",
    "dissect_activations",
    "explain",
    "export_basis",
    "export_neuronpedia",
    "gathered",
    "groups",
    "intertwiner_group",
    "logit_effects",
    "nulls",
    "observe",
    "probe",
    "probe_activations",
    "process_group",
    "rebasin",
    "reinitialised",
    "reparametrize",
    "results",
    "scores",
    "selectivity",
    "similarity",
    "sparse_probes",
    "spotlight_resonance",
    "stiffness",
    "stitch",
    "stitching_curve",
    "symmetries",
    "top_examples",
    "weights_privilege",
    "with_examples",
]


def __getattr__(name: str) -> object:
    if name in _NAMESPACES:
        found: object = importlib.import_module(f"{__name__}.{_NAMESPACES[name]}")
    elif name in _HOMES:
        found = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return list(__all__)
