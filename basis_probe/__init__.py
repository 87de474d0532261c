"""Is a layer's basis privileged? Symmetry from the architecture, evidence from data, a verdict.

The names below are the public interface; everything else is where its file says.
"""

import importlib
from typing import TYPE_CHECKING

from basis_probe.activations import probe_activations as probe_activations
from basis_probe.algebra.groups import Blocks as Blocks
from basis_probe.algebra.groups import DirectSum as DirectSum
from basis_probe.algebra.groups import GeneralLinear as GeneralLinear
from basis_probe.algebra.groups import Group as Group
from basis_probe.algebra.groups import LineStabiliser as LineStabiliser
from basis_probe.algebra.groups import Monomial as Monomial
from basis_probe.algebra.groups import Orthogonal as Orthogonal
from basis_probe.algebra.groups import Permutation as Permutation
from basis_probe.algebra.groups import Planes as Planes
from basis_probe.algebra.groups import PositiveMonomial as PositiveMonomial
from basis_probe.algebra.groups import Privileged as Privileged
from basis_probe.algebra.groups import SignedPermutation as SignedPermutation
from basis_probe.algebra.groups import Trivial as Trivial
from basis_probe.algebra.groups import Unknown as Unknown
from basis_probe.algebra.intertwiner import Intertwiner as Intertwiner
from basis_probe.algebra.intertwiner import intertwiner_group as intertwiner_group
from basis_probe.architecture import certify as certify
from basis_probe.architecture import reparametrize as reparametrize
from basis_probe.architecture import symmetries as symmetries
from basis_probe.attach import Attachment as Attachment
from basis_probe.attach import attach as attach
from basis_probe.distributed import gathered as gathered
from basis_probe.distributed import process_group as process_group
from basis_probe.errors import DataError as DataError
from basis_probe.errors import MisleadingNull as MisleadingNull
from basis_probe.errors import SiteError as SiteError
from basis_probe.errors import StreamError as StreamError
from basis_probe.partial import Partial as Partial
from basis_probe.probe import observe as observe
from basis_probe.probe import probe as probe
from basis_probe.results import BasisRanking as BasisRanking
from basis_probe.results import BasisStanding as BasisStanding
from basis_probe.results import Certificate as Certificate
from basis_probe.results import ClosedFormRecord as ClosedFormRecord
from basis_probe.results import NullRecord as NullRecord
from basis_probe.results import OrderRecord as OrderRecord
from basis_probe.results import Outcome as Outcome
from basis_probe.results import PathRecord as PathRecord
from basis_probe.results import Provenance as Provenance
from basis_probe.results import Report as Report
from basis_probe.results import ScoreResult as ScoreResult
from basis_probe.results import SiteReport as SiteReport
from basis_probe.results import Symmetries as Symmetries
from basis_probe.results import Symmetry as Symmetry
from basis_probe.results import Tail as Tail
from basis_probe.results import Verdict as Verdict
from basis_probe.statistics.nulls import Counterfactual as Counterfactual
from basis_probe.statistics.nulls import CovariancePreserving as CovariancePreserving
from basis_probe.statistics.nulls import GaussianSurrogate as GaussianSurrogate
from basis_probe.statistics.nulls import Geometry as Geometry
from basis_probe.statistics.nulls import Null as Null
from basis_probe.statistics.nulls import RandomWeights as RandomWeights
from basis_probe.statistics.nulls import Rotation as Rotation
from basis_probe.statistics.nulls import TurnedPreactivation as TurnedPreactivation
from basis_probe.statistics.scores import DEFAULT_SCORES as DEFAULT_SCORES
from basis_probe.statistics.scores import KURTOSIS as KURTOSIS
from basis_probe.statistics.scores import NEGENTROPY as NEGENTROPY
from basis_probe.statistics.scores import NON_GAUSSIANITY as NON_GAUSSIANITY
from basis_probe.statistics.scores import SAMPLE_KURTOSIS as SAMPLE_KURTOSIS
from basis_probe.statistics.scores import SCORES as SCORES
from basis_probe.statistics.scores import Invariance as Invariance
from basis_probe.statistics.scores import Score as Score
from basis_probe.twins import reinitialised as reinitialised

if TYPE_CHECKING:
    from basis_probe.comparison.matrices import compare_layers as compare_layers
    from basis_probe.comparison.rebasin import Rebasin as Rebasin
    from basis_probe.comparison.rebasin import rebasin as rebasin
    from basis_probe.comparison.results import LayerMatrix as LayerMatrix
    from basis_probe.comparison.results import Similarities as Similarities
    from basis_probe.comparison.results import Similarity as Similarity
    from basis_probe.comparison.similarity import similarity as similarity
    from basis_probe.comparison.stitching import Stitched as Stitched
    from basis_probe.comparison.stitching import StitchingCurve as StitchingCurve
    from basis_probe.comparison.stitching import stitch as stitch
    from basis_probe.comparison.stitching import stitching_curve as stitching_curve
    from basis_probe.concepts.alignment import Measure as Measure
    from basis_probe.concepts.causes import Effects as Effects
    from basis_probe.concepts.causes import Held as Held
    from basis_probe.concepts.causes import LogitEffects as LogitEffects
    from basis_probe.concepts.causes import ablate as ablate
    from basis_probe.concepts.causes import logit_effects as logit_effects
    from basis_probe.concepts.comparing import Effort as Effort
    from basis_probe.concepts.conllu import annotated as annotated
    from basis_probe.concepts.conllu import read_conllu as read_conllu
    from basis_probe.concepts.contexts import Context as Context
    from basis_probe.concepts.contexts import Examples as Examples
    from basis_probe.concepts.contexts import TopContexts as TopContexts
    from basis_probe.concepts.detection import Sides as Sides
    from basis_probe.concepts.dissect import dissect as dissect
    from basis_probe.concepts.dissect import dissect_activations as dissect_activations
    from basis_probe.concepts.examples import top_examples as top_examples
    from basis_probe.concepts.examples import with_examples as with_examples
    from basis_probe.concepts.explain import Budget as Budget
    from basis_probe.concepts.explain import Endpoint as Endpoint
    from basis_probe.concepts.explain import Explained as Explained
    from basis_probe.concepts.explain import Explanations as Explanations
    from basis_probe.concepts.explain import explain as explain
    from basis_probe.concepts.export import export_basis as export_basis
    from basis_probe.concepts.findings import Comparison as Comparison
    from basis_probe.concepts.findings import Dissection as Dissection
    from basis_probe.concepts.findings import SiteDissection as SiteDissection
    from basis_probe.concepts.labels import Resolution as Resolution
    from basis_probe.concepts.labels import Split as Split
    from basis_probe.concepts.labels import categories as categories
    from basis_probe.concepts.probes import Probe as Probe
    from basis_probe.concepts.probes import sparse_probes as sparse_probes
    from basis_probe.concepts.selectivity import Scatter as Scatter
    from basis_probe.concepts.selectivity import Selectivity as Selectivity
    from basis_probe.concepts.selectivity import selectivity as selectivity
    from basis_probe.concepts.tokens import token_concepts as token_concepts
    from basis_probe.statistics.bases import BASES as BASES
    from basis_probe.statistics.bases import ICA as ICA
    from basis_probe.statistics.bases import PCA as PCA
    from basis_probe.statistics.bases import Basis as Basis
    from basis_probe.statistics.bases import BasisComparison as BasisComparison
    from basis_probe.statistics.bases import Candidate as Candidate
    from basis_probe.statistics.bases import Given as Given
    from basis_probe.statistics.bases import Hadamard as Hadamard
    from basis_probe.statistics.bases import Quartimax as Quartimax
    from basis_probe.statistics.bases import Random as Random
    from basis_probe.statistics.bases import Standard as Standard
    from basis_probe.statistics.bases import Standing as Standing
    from basis_probe.statistics.bases import Varimax as Varimax

__version__ = "0.1.0"

# Not everybody compares two networks, looks for other bases or has labels: what that needs is
# imported when it is first asked for.
_LATER = {
    "LayerMatrix": "comparison.results",
    "Rebasin": "comparison.rebasin",
    "Similarities": "comparison.results",
    "Similarity": "comparison.results",
    "Stitched": "comparison.stitching",
    "StitchingCurve": "comparison.stitching",
    "compare_layers": "comparison.matrices",
    "rebasin": "comparison.rebasin",
    "similarity": "comparison.similarity",
    "Measure": "concepts.alignment",
    "Effort": "concepts.comparing",
    "ablate": "concepts.causes",
    "Effects": "concepts.causes",
    "Held": "concepts.causes",
    "LogitEffects": "concepts.causes",
    "logit_effects": "concepts.causes",
    "Context": "concepts.contexts",
    "Examples": "concepts.contexts",
    "TopContexts": "concepts.contexts",
    "top_examples": "concepts.examples",
    "with_examples": "concepts.examples",
    "Budget": "concepts.explain",
    "Endpoint": "concepts.explain",
    "Explained": "concepts.explain",
    "Explanations": "concepts.explain",
    "explain": "concepts.explain",
    "export_basis": "concepts.export",
    "Probe": "concepts.probes",
    "sparse_probes": "concepts.probes",
    "Scatter": "concepts.selectivity",
    "Selectivity": "concepts.selectivity",
    "selectivity": "concepts.selectivity",
    "annotated": "concepts.conllu",
    "read_conllu": "concepts.conllu",
    "Sides": "concepts.detection",
    "dissect": "concepts.dissect",
    "dissect_activations": "concepts.dissect",
    "Comparison": "concepts.findings",
    "Dissection": "concepts.findings",
    "SiteDissection": "concepts.findings",
    "Resolution": "concepts.labels",
    "Split": "concepts.labels",
    "categories": "concepts.labels",
    "token_concepts": "concepts.tokens",
    "BASES": "statistics.bases",
    "ICA": "statistics.bases",
    "PCA": "statistics.bases",
    "Basis": "statistics.bases",
    "BasisComparison": "statistics.bases",
    "Candidate": "statistics.bases",
    "Given": "statistics.bases",
    "Hadamard": "statistics.bases",
    "Quartimax": "statistics.bases",
    "Random": "statistics.bases",
    "Standard": "statistics.bases",
    "Standing": "statistics.bases",
    "Varimax": "statistics.bases",
    "stitch": "comparison.stitching",
    "stitching_curve": "comparison.stitching",
}


def __getattr__(name: str) -> object:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
