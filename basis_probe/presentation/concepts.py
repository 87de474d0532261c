"""Findings about concepts as one HTML element for a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from basis_probe.presentation.html import rendered

if TYPE_CHECKING:
    from basis_probe.concepts.findings import SiteDissection

MOST_CONCEPTS = 30
"""Of each comparison so many concepts are shown, the best told first."""


def fragment(sites: Sequence[SiteDissection], notes: Sequence[str]) -> str:
    """Distinct concepts of axes and of the null, and the axis that tells each concept best."""
    return rendered("concepts.jinja", sites=sites, notes=notes, most=MOST_CONCEPTS)


def contexts(found: Sequence[Any], title: str) -> str:
    """The most activating contexts of some directions, every token tinted by its activation.

    Args:
        found: values with `label`, `contexts` and `scores`, as `TopContexts` has them.
        title: what stands above them.
    """
    return rendered("contexts.jinja", found=found, title=title)
