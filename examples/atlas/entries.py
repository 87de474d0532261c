"""All entries, in the order of the page."""

from __future__ import annotations

from . import modular_addition, residual_stream

ENTRIES = {module.ENTRY.name: module.ENTRY for module in (residual_stream, modular_addition)}
