"""Concepts and examples as parts of a page, and as HTML elements for a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from basis_probe.show import html

if TYPE_CHECKING:
    from basis_probe.results.dissection import SiteDissection
    from basis_probe.results.examples import Examples, TopContexts

MOST_CONCEPTS = 30
"""Of each comparison so many concepts are shown, the best told first."""


def fragment(sites: Sequence[SiteDissection], notes: Sequence[str]) -> str:
    """Distinct concepts of axes and of the null, and the axis that tells each concept best."""
    return html.rendered("concepts.jinja", sites=sites, notes=notes, most=MOST_CONCEPTS)


def contexts(found: Sequence[TopContexts], title: str) -> str:
    """The most activating contexts of some directions, every token tinted by its activation."""
    return html.rendered("contexts.jinja", found=found, title=title, examples=None)


def examples(found: Examples) -> str:
    """The same of axes and of rotated directions, side by side."""
    title = f"{found.site}: top contexts"
    return html.rendered("contexts.jinja", found=(), title=title, examples=found)
