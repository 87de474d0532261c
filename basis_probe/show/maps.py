"""Maps as figures: layers across and kinds of site down, or reports across and sites down."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from basis_probe.algebra.groups import Privileged
from basis_probe.results.comparison import ReportComparison
from basis_probe.results.report import Outcome, Report
from basis_probe.show import drawing, selection, words
from basis_probe.show.canvas import (
    COLOURS,
    INK,
    MARKERS,
    QUIET,
    Size,
    drawn,
    figure_on,
    is_narrow,
    shown,
    style,
    width_of,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CELL = 0.34
"""Inches between the marks of a map."""

_CLOSE = 0.17
"""The same, at least, where a figure is to have a width."""

_NAMES = 2.9
_NAMES_IN_PRINT = 1.75
"""Inches of the names of rows; the same where a figure is to have a width."""

_HEAD, _RISE = 1.2, 0.12
"""Lines of the heads of columns, and more of them for every letter of one that is slanted."""

_KEYS = 0.95
_LEAST = 5.5
"""Inches of the keys below a map, and on which they have room."""

_LONG = 40
"""A comparison of more sites is a map of each report."""


@dataclasses.dataclass(frozen=True)
class Mark:
    """A site on a map.

    Attributes:
        privileged: its shape.
        effect: its colour.
        outcome: its letter.
        orders: the small letters below, of the orders by which it is emergent.
    """

    privileged: Privileged
    effect: float
    outcome: Outcome
    orders: str = ""


@dataclasses.dataclass(frozen=True)
class Panel:
    """A table of marks.

    Attributes:
        title: of the whole, or an empty string.
        across: what the columns are.
        heads: of the columns.
        rows: a name each, and what stands below it, both or one of them empty.
        marks: row and column -> mark.
    """

    title: str
    across: str
    heads: Sequence[str]
    rows: Sequence[tuple[str, str]]
    marks: Mapping[tuple[int, int], Mark]

    def bands(self, most: int) -> list[range]:
        """The columns that stand side by side, at most so many; bands of like width."""
        count = max(1, -(-len(self.heads) // max(1, most)))
        width = max(1, -(-len(self.heads) // count))
        ends = range(0, max(1, len(self.heads)), width)
        return [range(start, min(start + width, len(self.heads))) for start in ends]

    @property
    def head(self) -> float:
        """How tall the heads of its columns are, in rows."""
        return _HEAD + (0 if self.across else _RISE * max(map(len, self.heads), default=0))

    def lines(self, most: int) -> float:
        """How tall it is, in rows."""
        return bool(self.title) + len(self.bands(most)) * (self.head + max(1, len(self.rows)))


def of_report(report: Report) -> Panel:
    """Layers across, kinds of site down."""
    speakers = [selection.speaker(site) for site in report]
    marks = [
        Mark(
            site.symmetry.privileged,
            math.nan if lead is None else lead.effect,
            site.verdict.outcome,
            words.orders(site.verdict),
        )
        for site, lead in zip(report, speakers, strict=True)
    ]
    return _panel("", selection.grid(report), marks)


def _panel(title: str, grid: selection.Grid, marks: Sequence[Mark | None]) -> Panel:
    kinds = [row.kind for row in grid.rows]
    rows: list[tuple[str, str]] = []
    for row in grid.rows:
        pattern = shown(row.pattern, 44) if kinds.count(row.kind) > 1 else ""
        rows.append((shown(row.kind, 44) if row.first_of_kind or not pattern else "", pattern))
    return Panel(
        title=title,
        across="layer" if grid.by_layer else "in forward order",
        heads=[words.DASH if layer is None else str(layer) for layer in grid.columns],
        rows=rows,
        marks={
            (line, column): mark
            for line, row in enumerate(grid.rows)
            for column, cell in enumerate(row.cells)
            if cell is not None and (mark := marks[cell]) is not None
        },
    )


def of_comparison(found: ReportComparison) -> list[Panel]:
    """Reports across and sites down; of many sites in layers, a map of each report."""

    def marks(place: int) -> list[Mark | None]:
        standings = [row.standings[place] for row in found]
        return [
            None
            if one.outcome is None or one.privileged is None
            else Mark(one.privileged, one.effect, one.outcome)
            for one in standings
        ]

    names = [shown(name, 24) for name in found.names]
    columns = [marks(place) for place in range(len(names))]
    if len(found) > _LONG and any(row.layer is not None for row in found):
        grid = selection.grid(found)
        return [_panel(name, grid, marks) for name, marks in zip(names, columns, strict=True)]
    return [
        Panel(
            title="",
            across="",
            heads=names,
            rows=[(shown(row.site, 44), "") for row in found],
            marks={
                (line, column): mark
                for column, marks in enumerate(columns)
                for line, mark in enumerate(marks)
                if mark is not None
            },
        )
    ]


@drawn
def figure(panels: Sequence[Panel], axes: Axes | None, size: Size) -> Figure:
    """The panels one below the other; a new figure has keys.

    Raises:
        ValueError: for a size that makes none.
    """
    columns = max((len(panel.heads) for panel in panels), default=1)
    natural = _NAMES + min(columns, selection.BAND) * CELL + 0.6
    wide = width_of(axes, max(natural, _LEAST), size)
    free = axes is None and size is None
    room = wide - (0.6 if axes is not None else _NAMES if free else _NAMES_IN_PRINT)
    most = selection.BAND if free else max(1, int(room / _CLOSE))
    most = max(1, *(len(band) for panel in panels for band in panel.bands(most)))
    close = min(1.0, room / max(1, most) / CELL)
    lines = sum(panel.lines(most) for panel in panels)
    tall = lines * CELL * max(0.75, close) + 0.3 + _KEYS
    own = axes is None
    drawn, axes = figure_on(axes, wide, tall, size)
    draw(axes, panels, most)
    if close < 1:
        _shrink(axes, close)
    if own:
        marks = [mark for panel in panels for mark in panel.marks.values()]
        keys(
            drawn,
            {mark.privileged for mark in marks},
            {mark.outcome for mark in marks},
            orders=any(mark.orders for mark in marks),
        )
    return drawn


def draw(axes: Axes, panels: Sequence[Panel], most: int) -> None:
    """Draws the panels one below the other, with at most so many columns side by side."""
    axes.axis("off")
    axes.set_xlim(-0.5, max(1, most) - 0.5)
    left, line = -0.75, 0.0
    for panel in panels:
        if panel.title:
            axes.text(left, line, panel.title, **style(INK, "left", size=9.5))
            line += 1
        for band in panel.bands(most):
            line += panel.head - 0.2
            _heads(axes, panel, band, line - 1)
            axes.text(left, line - 1, panel.across, **style(QUIET, "right"))
            for index, (name, below) in enumerate(panel.rows):
                _name(axes, left, line + index, name, below)
                for column, place in enumerate(band):
                    if (mark := panel.marks.get((index, place))) is not None:
                        _mark(axes, column, line + index, mark)
            line += max(1, len(panel.rows)) + 0.2
    axes.set_ylim(line - 0.7, -0.5)


def _heads(axes: Axes, panel: Panel, band: range, line: float) -> None:
    slanted: dict[str, Any] = {} if panel.across else {"rotation": 30, "va": "bottom"}
    look = style(QUIET, "center" if panel.across else "left") | slanted
    for column, place in enumerate(band):
        axes.text(column, line + 0.3 * bool(slanted), panel.heads[place], **look)


def _name(axes: Axes, left: float, at: float, name: str, below: str) -> None:
    both = bool(name and below)
    if name:
        axes.text(left, at - 0.2 * both, name, **style(INK, "right"))
    if below:
        axes.text(left, at + 0.2 * both, below, **style(QUIET, "right", size=7.0))


def _mark(axes: Axes, column: int, line: float, mark: Mark) -> None:
    """Draws a site: its shape, its colour and its letter."""
    step = drawing.step(mark.effect)
    fill = "#ffffff" if step is None else drawing.LIGHT[step + 5]
    small = mark.privileged in (Privileged.PLANES, Privileged.AXES)
    axes.plot(
        [column],
        [line],
        marker=MARKERS[mark.privileged],
        markersize=14 if small else 16.5,
        markerfacecolor=fill,
        markeredgecolor=QUIET,
        markeredgewidth=0.9,
        linestyle="none",
        clip_on=False,
    )
    look: dict[str, Any] = {
        "fontweight": "bold", "color": drawing.ink(fill), "ha": "center", "va": "center_baseline",
    }  # fmt: skip
    low = 0.07 if mark.privileged is Privileged.LINE else 0.0
    up = 0.13 - low if mark.orders else 0.0
    axes.text(column, line - up, words.LETTER[mark.outcome], fontsize=8, **look)
    if mark.orders:
        axes.text(column, line + 0.14 + low, mark.orders, fontsize=5.5, **look)


def _shrink(axes: Axes, factor: float) -> None:
    """Makes the marks on a map, and their letters, smaller by a factor."""
    for line in axes.lines:
        line.set_markersize(line.get_markersize() * factor)
        line.set_markeredgewidth(line.get_markeredgewidth() * max(0.5, factor))
    for text in axes.texts:
        size = float(text.get_fontsize())
        text.set_fontsize(
            max(5.0, size * factor) if text.get_fontweight() == "bold" else min(size, 7.5)
        )


# --- keys ---------------------------------------------------------------------------------------


def keys(
    figure: Figure,
    privileged: Collection[Privileged],
    reached: Collection[Outcome],
    *,
    on_map: bool = True,
    orders: bool = False,
) -> None:
    """Puts the keys below a figure: the shapes and outcomes that are on it.

    On a map letters say the outcome, small ones below with `orders` by which orders, and colours
    the effect; else colours say the outcome.
    """
    from matplotlib.lines import Line2D

    def entry(marker: str, colour: str, fill: str, name: str) -> Line2D:
        return Line2D(
            [], [], marker=marker, color=colour, markerfacecolor=fill, linestyle="none", label=name
        )

    shapes = [
        entry(MARKERS[one], QUIET, "white", one.name.lower())
        for one in Privileged
        if one in privileged
    ]
    outcomes = [
        entry(
            f"$\\mathbf{{{words.LETTER[one]}}}$" if on_map else "o",
            COLOURS[one],
            COLOURS[one],
            one.name.lower(),
        )
        for one in Outcome
        if one in reached
    ]
    narrow = is_narrow(figure)
    size = 6.5 if narrow else 8.0
    text: dict[str, Any] = {
        "fontsize": size, "title_fontsize": size, "ncols": 2 if narrow else 3, "frameon": False,
        "handletextpad": 0.2, "columnspacing": 1.0, "alignment": "left",
    }  # fmt: skip
    told = f"{'letter' if on_map else 'colour'}: what follows"
    if orders:
        told += f"\nbelow it: by {words.keys_of_orders()}"
    for side, title, handles in (
        ("left", "shape: fixed by the architecture", shapes),
        ("right", told, outcomes),
    ):
        text |= {"loc": f"outside lower {side}", "title": title}
        figure.legend(handles=handles, **text)
    if on_map:
        _colour_bar(figure, size, narrow=narrow)


def _colour_bar(figure: Figure, size: float, *, narrow: bool) -> None:
    """Puts the colours of effects below a map."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm, ListedColormap

    edges = [float(bound) for bound in drawing.legend_bounds()]
    told = [edges[place] for place in (1, 3, 6, 8)] if narrow else edges
    bounds = [edges[0] * 2, *edges, edges[-1] * 2]
    colours = ScalarMappable(
        BoundaryNorm(bounds, len(drawing.LIGHT)), ListedColormap(list(drawing.LIGHT))
    )
    look: dict[str, Any] = {"orientation": "horizontal", "spacing": "uniform", "aspect": 40}
    bar: Any = figure.colorbar(
        colours, ax=figure.axes[:1], ticks=told, pad=0.02, fraction=0.05, **look
    )
    signed = [f"{edge:+.0f}".replace("-", "\u2212") for edge in told]
    bar.ax.set_xticklabels(signed, fontsize=size - 0.5, color=QUIET)
    bar.ax.tick_params(length=0)
    bar.ax.minorticks_off()
    bar.set_label("effect, sd of the null", fontsize=size, color=QUIET)
    bar.outline.set_visible(False)


def keys_of(figure: Figure, report: Report) -> None:
    """Puts the keys below a figure of all sites in which colours say the outcome."""
    privileged = {site.symmetry.privileged for site in report}
    keys(figure, privileged, {site.verdict.outcome for site in report}, on_map=False)
