"""Can a person read the directions of a layer? What its questions are asked with."""

from basis_probe.concepts.alignment import Measure as Measure
from basis_probe.concepts.causes import Effects as Effects
from basis_probe.concepts.causes import Held as Held
from basis_probe.concepts.causes import LogitEffects as LogitEffects
from basis_probe.concepts.comparing import Effort as Effort
from basis_probe.concepts.conllu import annotated as annotated
from basis_probe.concepts.conllu import read_conllu as read_conllu
from basis_probe.concepts.detection import Sides as Sides
from basis_probe.concepts.explain import Budget as Budget
from basis_probe.concepts.explain import Endpoint as Endpoint
from basis_probe.concepts.explain import Explained as Explained
from basis_probe.concepts.explain import Explanations as Explanations
from basis_probe.concepts.labels import Resolution as Resolution
from basis_probe.concepts.labels import Split as Split
from basis_probe.concepts.labels import categories as categories
from basis_probe.concepts.probes import Probe as Probe
from basis_probe.concepts.selectivity import Scatter as Scatter
from basis_probe.concepts.selectivity import Selectivity as Selectivity
from basis_probe.concepts.tokens import token_concepts as token_concepts

__all__ = [
    "Budget",
    "Effects",
    "Effort",
    "Endpoint",
    "Explained",
    "Explanations",
    "Held",
    "LogitEffects",
    "Measure",
    "Probe",
    "Resolution",
    "Scatter",
    "Selectivity",
    "Sides",
    "Split",
    "annotated",
    "categories",
    "read_conllu",
    "token_concepts",
]


def __dir__() -> list[str]:
    return list(__all__)
