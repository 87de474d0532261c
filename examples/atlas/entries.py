"""All entries, in the order of the page."""

from __future__ import annotations

from . import (
    attribution,
    compiled,
    dissection,
    five_trainings,
    modular_addition,
    optimisers,
    other_statistics,
    quantisation,
    residual_stream,
    seed_paper,
)

ENTRIES = {
    module.ENTRY.name: module.ENTRY
    for module in (
        residual_stream,
        optimisers,
        modular_addition,
        dissection,
        seed_paper,
        five_trainings,
        other_statistics,
        compiled,
        attribution,
        quantisation,
    )
}
