"""Drawings as images, which say the same where a notebook is not trusted.

There, styles, scripts and drawings are removed from a page, and of a drawing only its texts stay,
one after the other. An image stays what it is. Its colours read on a light and on a dark ground.
"""

from __future__ import annotations

import base64
import html
import re

from basis_probe.algebra.groups import Privileged
from basis_probe.results.report import Report, SiteReport
from basis_probe.show import drawing, selection, words

_STYLE = """
text{font:10.5px system-ui,sans-serif;fill:#76818c}.value{font-size:11.5px;font-weight:600}
.axis,.dots{fill:none;stroke:#76818c}.hist,.part{fill:#9aa5b0}.way{fill:none;stroke:#9aa5b0}
.mean{stroke:#76818c;stroke-dasharray:2 2}.formula{fill:none;stroke:#76818c;stroke-width:1.2}
.seen,.average{fill:none;stroke:#76818c;stroke-width:2}.seen-head{fill:#76818c}
.gap{fill:none}.out,.below{fill:none;stroke:#dd5a24}.room{fill:none;stroke:#9aa5b0}
"""

_FIGURE = re.compile(
    r'<svg class="(strip|bar|mark bare)[^"]*"([^>]*)><title>((?:(?!</svg>).)*?)</title>'
    r"((?:(?!<text x=\"16\"|</svg>).)*)</svg>",
    re.DOTALL,
)
_MARK = re.compile(r'<svg class="(mark[^"]*)"([^>]*)><title>(.*?)</title>', re.DOTALL)


def stills(page: str) -> str:
    """The page with its figures as images, and the names of its marks out of the running text."""
    return _MARK.sub(r'<svg class="\1"\2 aria-label="\3">', _FIGURE.sub(_image, page))


def _image(found: re.Match[str]) -> str:
    kind, attributes, title, inner = found.groups()
    style = "path{fill:none;stroke:#76818c;stroke-width:2}" if kind == "mark bare" else _STYLE
    svg = f'<svg xmlns="http://www.w3.org/2000/svg"{attributes}><style>{style}</style>{inner}</svg>'
    return f'<img class="{kind}"{_size(attributes)} alt="{title}" src="{_uri(svg)}">'


def _size(attributes: str) -> str:
    """The size that a drawing has where nothing else says it: that of its own coordinates."""
    if given := re.search(r' width="\d+" height="\d+"', attributes):
        return given.group()
    found = re.search(r'viewBox="0 0 (\d+) (\d+)"', attributes)
    return f' width="{found[1]}" height="{found[2]}"' if found else ""


def _uri(svg: str) -> str:
    # References to entities of HTML mean nothing in SVG.
    plain = re.sub(r"&(?!(amp|lt|gt|quot|#\d+);)(\w+;)", r"&amp;\2", svg)
    return f"data:image/svg+xml;base64,{base64.b64encode(plain.encode('utf-8')).decode()}"


# --- the map ------------------------------------------------------------------------------------

_CELL, _LINE, _NAMES, _STEP = 34, 36, 250, 30


def map_of(report: Report, grid: selection.Grid) -> str:
    """The map of the sites as the address of an image: shape, colour and letter of every site.

    Below it stand the colours with their bounds. Many layers go on below, as on the page.
    """
    bands = grid.bands
    wide = max(_NAMES + _CELL * max(map(len, bands)), _NAMES + _STEP * len(drawing.LIGHT)) + 8
    tall = 24 + _LINE * len(grid.rows) + 8
    high = tall * len(bands) + 36
    parts = [f'<rect width="{wide}" height="{high}" fill="#ffffff"/>']
    for number, band in enumerate(bands):
        parts += [
            f'<g transform="translate(0,{tall * number})">',
            *_band(report, grid, band),
            "</g>",
        ]
    parts += _key(high - 36)
    if selection.any_orders(report):
        parts.append(_text(6, high - 7, f"below: by {words.keys_of_orders()}", "start", size=9))
    return _uri(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide}" height="{high}" '
        f'viewBox="0 0 {wide} {high}" font-family="system-ui,sans-serif">{"".join(parts)}</svg>'
    )


def _band(report: Report, grid: selection.Grid, band: range) -> list[str]:
    """Those columns of the map."""
    parts: list[str] = []
    for column, place in enumerate(band):
        layer = grid.columns[place]
        shown = words.DASH if layer is None else str(layer)
        parts.append(_text(_NAMES + _CELL * column + 17, 16, shown, "middle"))
    for line, row in enumerate(grid.rows):
        top = 24 + _LINE * line
        parts.append(_text(6, top + 15, words.shorten(words.clean(row.kind), 40), "start"))
        pattern = words.shorten(words.clean(row.pattern), 42)
        parts.append(_text(6, top + 27, pattern, "start", size=9))
        for column, place in enumerate(band):
            cell = row.cells[place]
            if cell is not None:
                at = f"{_NAMES + _CELL * column},{top}"
                parts.append(
                    f'<g transform="translate({at})">{_site(report.site_reports[cell])}</g>'
                )
    return parts


def _site(site: SiteReport) -> str:
    lead = selection.speaker(site)
    step = None if lead is None else drawing.step(lead.effect)
    fill = "#ffffff" if step is None else drawing.LIGHT[step + 5]
    letter, orders = words.LETTER[site.verdict.outcome], words.orders(site.verdict)
    low = 3 if site.symmetry.privileged is Privileged.LINE else 0
    below = _text(16, 25 + low, orders, "middle", 9, drawing.ink(fill)) if orders else ""
    return (
        f'<path d="{drawing.SHAPES[site.symmetry.privileged]}" fill="{fill}" stroke="#5b6570"/>'
        + _text(16, 17 + low if orders else 21, letter, "middle", 14, drawing.ink(fill))
        + below
    )


def _key(top: int) -> list[str]:
    """The colours of effects, with the bounds between them."""
    parts = [_text(6, top + 13, "effect, in sd of the null", "start")]
    for place, fill in enumerate(drawing.LIGHT):
        at = _NAMES + _STEP * place
        parts.append(f'<rect x="{at}" y="{top + 2}" width="{_STEP}" height="14" fill="{fill}"/>')
    for place, bound in enumerate(drawing.legend_bounds(), 1):
        shown = bound.replace("-", "\u2212")
        parts.append(_text(_NAMES + _STEP * place, top + 29, shown, "middle", size=9))
    return parts


def _text(x: int, y: int, shown: str, anchor: str, size: int = 11, fill: str = "#1b1f24") -> str:
    return (
        f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}" fill="{fill}">'
        f"{html.escape(shown)}</text>"
    )
