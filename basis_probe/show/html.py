"""Results as pages that need nothing but themselves: no network, no other file."""

from __future__ import annotations

import base64
import functools
import hashlib
import math
import re
import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from basis_probe.algebra.groups import Privileged
from basis_probe.results.report import Outcome, Report, SiteReport
from basis_probe.results.symmetry import Certificate, Symmetry
from basis_probe.show import contexts, drawing, figures, selection, still, words

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

    from basis_probe.show.architecture import Row

_MOST_DRAWN = 100
"""On a page of more sites, each has one picture of its axes, and is packed until it is opened."""

_WEIGHT = 5_000_000
"""Characters of a page beyond which it carries no numbers to save."""

_MOST_SECTIONS = 8
"""In a notebook a longer report shows its map and table only."""


def page(report: Report) -> str:
    """A whole HTML document with the answer, the map, every site and how it was computed."""
    from markupsafe import escape

    script = _environment().get_template("script.jinja").render()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    made = rendered(
        "page.jinja",
        report=report,
        grid=selection.grid(report),
        prefix="site",
        sections=True,
        thin=len(report) > _MOST_DRAWN,
        script=script,
        script_hash=digest,
    )
    # No text of the report holds this: in texts, quotes are escaped.
    head, place, tail = made.partition('data-numbers="')
    numbers = escape(figures.numbers(report, _WEIGHT - len(made)))
    return f"{head}{place}{numbers}{tail}"


def fragment(report: Report) -> str:
    """The answer, the map and the table as one HTML element for a notebook.

    Its styles touch nothing outside it. The sections of single sites are there in short reports;
    otherwise every site shows itself.
    """
    grid = selection.grid(report)
    page = rendered(
        "fragment.jinja",
        report=report,
        grid=grid,
        prefix=_prefix(report),
        sections=len(report) <= _MOST_SECTIONS,
        picture=still.map_of(report, grid),
    )
    return still.stills(page)


def site_fragment(site: SiteReport) -> str:
    """Everything found at one site as one HTML element for a notebook."""
    return still.stills(rendered("lone_site.jinja", site=site))


def symmetry_fragment(symmetry: Symmetry) -> str:
    """What the architecture says of one site, as one HTML element for a notebook."""
    return still.stills(rendered("claim.jinja", symmetry=symmetry))


def certificate_fragment(certificate: Certificate) -> str:
    """What a certificate says, as one HTML element for a notebook."""
    return rendered("certificate.jinja", certificate=certificate)


def architecture(rows: Sequence[Row], summary: str) -> str:
    """The architecture's answers as one HTML element for a notebook."""
    return rendered("architecture.jinja", rows=rows, summary=summary)


def rendered(template: str, **values: Any) -> str:
    """A template with its values filled in, every text escaped."""
    return _environment().get_template(template).render(**values)


def _prefix(report: Report) -> str:
    """A start of identifiers that two reports in one notebook do not share."""
    said = repr((report.provenance, [str(site) for site in report]))
    return "bp" + hashlib.sha256(said.encode("utf-8", "backslashreplace")).hexdigest()[:10]


def _shown(value: object) -> object:
    """`value` as a template shows it: text is cleaned, what is HTML already stays."""
    if isinstance(value, str) and not hasattr(value, "__html__"):
        return words.clean(value)
    return value


def _minus(text: str) -> str:
    """A number with the sign that is as wide as a plus."""
    return "\u2212" + text[1:] if text.startswith("-") else text


def _plainly(markup: Markup) -> Markup:
    """The same without explanations that are shown on demand."""
    return type(markup)(re.sub(r' title="[^"]*"', "", markup))


def _parted(name: str) -> Markup:
    """A name that is broken behind the signs that join its parts, if it has to be."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"(?<=\w)([._:/])(?=[\w*])", r"\1<wbr>", str(escape(name))))


def _packed(markup: str) -> str:
    """The same in fewer letters, which the script of the page unpacks: zlib, in base64."""
    return base64.b64encode(zlib.compress(markup.encode("utf-8", "replace"), 9)).decode("ascii")


_FILTERS: dict[str, Callable[..., str]] = {
    "packed": _packed,
    "parted": _parted,
    "plainly": _plainly,
    "minus": lambda text: text.replace("-", "\u2212"),
    "number": lambda value: _minus(words.number(value)),
    "effect": lambda value: _minus(words.effect(value)),
    "difference": lambda score: _minus(words.difference(score)),
    "p": words.p_value,
    "fraction": words.fraction,
    "count": words.count,
    "short": lambda text, limit: words.shorten(words.clean(text), limit),
}
"""What templates do to a value."""

_NAMES: dict[str, Any] = {
    "Outcome": Outcome,
    "Privileged": Privileged,
    "drawing": drawing,
    "selection": selection,
    "shown": contexts,
    "words": words,
    "len": len,
    "isnan": math.isnan,
    "inks": [tuple(map(drawing.ink, fills)) for fills in (drawing.LIGHT, drawing.DARK)],
}
"""What templates know besides the report."""


@functools.cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("basis_probe.show"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    environment.filters |= _FILTERS
    environment.globals |= _NAMES
    return environment
