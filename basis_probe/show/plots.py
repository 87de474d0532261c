"""Results as a figure: the map of all sites, and every site's observed value against its null."""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from basis_probe.algebra.groups import Privileged
from basis_probe.results.evidence import ScoreResult
from basis_probe.results.report import Outcome, Report, SiteReport
from basis_probe.show import drawing, selection, words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CELL = 0.34
_ROW = 0.25
_LABELS = 2.9
_PICTURE = 6.4
_FIGURES = 1.9
_INK = "#1b1f24"
_QUIET = "#5b6570"
_RULE = "#dfe3e7"
_COLOURS = {
    Outcome.PRIVILEGED: "#00735c",
    Outcome.UNUSED: "#1d5fa6",
    Outcome.EMERGENT: "#b93c0b",
    Outcome.ARBITRARY: "#5c656f",
    Outcome.UNDECIDED: "#5c656f",
}
_LINEAR = 4.0  # effects between -4 and 4 are drawn to scale, those beyond it logarithmically

_MARKERS = {
    Privileged.AXES: "s",
    Privileged.PLANES: "D",
    Privileged.BLOCKS: "h",
    Privileged.LINE: "^",
    Privileged.NONE: "o",
    Privileged.UNKNOWN: "X",
}


def overview(report: Report) -> Figure:
    """A figure with two parts, made without touching the state of pyplot.

    Above, a map of layers x kinds of site: the shape of a mark is what the architecture
    privileges, its colour the effect in the data, its letter the outcome. Below, for every site,
    the null of its leading score and the observed value on it, both in standard deviations of the
    null from the null's mean.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    grid = selection.grid(report)
    rows, sites = max(1, len(grid.rows)), max(1, len(report))
    legend = 1.25
    heights = (rows * _CELL + 0.35, legend, sites * _ROW + 0.3)
    across = max(_PICTURE, len(grid.columns) * _CELL)
    margin, gap = 0.35, 0.45
    width = margin + _LABELS + across + _FIGURES + margin
    height = 0.75 + sum(heights) + gap + 0.65
    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    # A figure that pyplot did not make is shown by a notebook only if it offers its own picture.
    vars(figure)["_repr_png_"] = functools.partial(_png, figure)

    def box(above: float, tall: float, wide: float) -> Axes:
        """Axes of a size in inches, `above` inches below the top."""
        place = (margin + _LABELS) / width, 1 - (above + tall) / height
        return figure.add_axes((*place, wide / width, tall / height))

    title = f"Can {_shown(report.provenance.model, 60)} be read neuron by neuron?"
    figure.text(
        margin / width,
        1 - 0.42 / height,
        title,
        fontsize=13,
        fontweight="bold",
        color=_INK,
        parse_math=False,
    )
    if report.partial:
        figure.text(
            margin / width,
            1 - 0.64 / height,
            "partial: the data stream was interrupted, the numbers cover what was seen until then",
            fontsize=8.5,
            color="#8a5200",
        )
    above = 0.75
    _map(box(above, heights[0], len(grid.columns) * _CELL or _CELL), report, grid)
    above += heights[0]
    _legend(box(above, heights[1], across + _FIGURES), across + _FIGURES)
    above += heights[1] + gap
    _nulls(box(above, heights[2], across), report)
    return figure


WIDTHS = {"column": 3.35, "page": 6.9}
"""Inches of one column and of both columns of a printed page."""

Size = tuple[float, float] | str | None
"""Width and height in inches, a name among `WIDTHS`, or None for what the content needs."""


def figure_on(
    axes: Axes | None, wide: float, tall: float, size: Size = None
) -> tuple[Figure, Axes]:
    """The axes to draw on with their figure; where none are given, a figure of that size in inches.

    A new one is made without touching the state of pyplot, and shows itself in a notebook.

    Raises:
        ValueError: for a size that is neither two numbers nor the name of a width, or given axes
            with a size.
    """
    if axes is not None and size is not None:
        raise ValueError("figsize is that of a new figure, and ax has one: give one of them")
    if isinstance(size, str):
        if size not in WIDTHS:
            raise ValueError(
                f"figsize={size!r}: give (width, height) in inches, or {' or '.join(WIDTHS)!s}"
            )
        wide = WIDTHS[size]
    elif size is not None:
        wide, tall = size
    if axes is not None:
        return axes.get_figure(root=True), axes  # pyright: ignore[reportReturnType]
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(wide, tall), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    vars(figure)["_repr_png_"] = functools.partial(_png, figure)
    return figure, figure.add_subplot()


def site_map(report: Report, axes: Axes | None = None, size: Size = None) -> Figure:
    """The map of layers x kinds of site, by itself."""
    grid = selection.grid(report)
    wide = _LABELS + len(grid.columns) * _CELL + 0.6
    own = axes is None
    tall = max(1, len(grid.rows)) * _CELL + 0.6 + _KEYS
    figure, axes = figure_on(axes, max(wide, _LEAST), tall, size)
    _map(axes, report, grid)
    if own:
        _key_of(figure, report, on_map=True)
    if figure.get_figwidth() < wide - 0.1:
        # Fewer inches for as many columns: marks and letters shrink alike.
        room = max(0.08, (figure.get_figwidth() - 1.75) / max(1, len(grid.columns)))
        _shrink(axes, min(1.0, room / _CELL))
    return figure


_KEYS = 0.95
"""Inches of the keys below a map."""

_LEAST = 5.5
"""Inches on which the keys have room."""


def keys(
    figure: Figure,
    privileged: Collection[Privileged],
    reached: Collection[Outcome],
    *,
    on_map: bool = True,
) -> None:
    """Puts the keys below a figure: the shapes and outcomes that are on it.

    On a map letters say the outcome, and colours the effect; else colours say the outcome.
    """
    from matplotlib.lines import Line2D

    def entry(marker: str, colour: str, fill: str, name: str) -> Line2D:
        return Line2D(
            [], [], marker=marker, color=colour, markerfacecolor=fill, linestyle="none", label=name
        )

    shapes = [
        entry(_MARKERS[one], _QUIET, "white", one.name.lower())
        for one in Privileged
        if one in privileged
    ]
    outcomes = [
        entry(
            f"$\\mathbf{{{words.LETTER[one]}}}$" if on_map else "o",
            _COLOURS[one],
            _COLOURS[one],
            one.name.lower(),
        )
        for one in Outcome
        if one in reached
    ]
    narrow = figure.get_figwidth() < _NARROW
    size = 6.5 if narrow else 8.0
    text: dict[str, Any] = {
        "fontsize": size, "title_fontsize": size, "ncols": 2 if narrow else 3, "frameon": False,
        "handletextpad": 0.2, "columnspacing": 1.0, "alignment": "left",
    }  # fmt: skip
    told = f"{'letter' if on_map else 'colour'}: what follows"
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
    bar.ax.set_xticklabels(signed, fontsize=size - 0.5, color=_QUIET)
    bar.ax.tick_params(length=0)
    bar.ax.minorticks_off()
    bar.set_label("effect, sd of the null", fontsize=size, color=_QUIET)
    bar.outline.set_visible(False)


def _key_of(figure: Figure, report: Report, *, on_map: bool) -> None:
    privileged = {site.symmetry.privileged for site in report}
    keys(figure, privileged, {site.verdict.outcome for site in report}, on_map=on_map)


def _shrink(axes: Axes, factor: float) -> None:
    """Makes the marks on a map, and their letters, smaller by a factor."""
    for line in axes.lines:
        line.set_markersize(line.get_markersize() * factor)
    for text in axes.texts:
        size = float(text.get_fontsize())
        text.set_fontsize(size * factor if text.get_fontweight() == "bold" else min(size, 7.5))


def all_nulls(report: Report, axes: Axes | None = None, size: Size = None) -> Figure:
    """Every site's leading score against its null, by itself."""
    wide = _LABELS + _PICTURE + _FIGURES
    own = axes is None
    figure, axes = figure_on(axes, wide, max(1, len(report)) * _ROW + 0.9 + _KEYS / 2, size)
    _nulls(axes, report)
    if own:
        _key_of(figure, report, on_map=False)
    return figure


_PARTS = (
    ("rotations", "#c9ced4", "what rotations have"),
    ("offset", "#4f86c6", "offset"),
    ("scale", "#d08a2e", "scale"),
    ("form", "#5d9e6e", "form"),
)
"""The parts of the kurtosis of a sample across axes, each with its colour and its words."""


def all_kurtoses(report: Report, axes: Axes | None = None, size: Size = None) -> Figure:
    """The kurtosis of a sample across axes, site by site, as one bar of what adds to it.

    What takes away from it lies left of zero, so that a bar's two sides sum to the figure beside.

    Raises:
        ValueError: if orders decide at no site of the report.
    """
    sites = [site for site in report if site.per_sample is not None]
    if not sites:
        raise ValueError(
            "the kurtosis of a sample is split into orders at no site of this report: give sites "
            "whose group holds rotations, such as the residual stream"
        )
    figure, axes = figure_on(axes, 6.4, 0.9 + 0.26 * len(sites), size)
    places = np.arange(len(sites))
    right, left = np.zeros(len(sites)), np.zeros(len(sites))
    for part, colour, told in _PARTS:
        values = np.array([getattr(site.per_sample, part) for site in sites])
        start = np.where(values >= 0, right, left)
        axes.barh(places, values, left=start, color=colour, height=0.7, label=told)
        right += np.maximum(values, 0)
        left += np.minimum(values, 0)
    for place, site in enumerate(sites):
        if site.per_sample is not None:
            told = words.number(site.per_sample.total)
            axes.text(right[place], place, f" {told}", **_text(_QUIET, "left", size=7.5))
    axes.set_yticks(places, [_shown(site.site, 40) for site in sites], parse_math=False)
    axes.set_ylim(len(sites) - 0.4, -0.6)
    axes.margins(x=0.08)
    axes.axvline(0, color=_RULE, linewidth=0.8)
    axes.set_xlabel("kurtosis of a sample across axes")
    _plain(axes)
    axes.legend(frameon=False, fontsize=7.5, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


def one_null(score: ScoreResult, axes: Axes | None = None, size: Size = None) -> Figure:
    """One score: the histogram of its null, and its value on the axes as a line."""
    figure, axes = figure_on(axes, 4.8, 2.4, size)
    values = score.null_values[np.isfinite(score.null_values)]
    if values.size:
        # Values that are all but equal have no bins between them.
        spread = float(values.max() - values.min()) > 1e-12 * max(1.0, float(np.abs(values).max()))
        bins = 40 if spread else [values[0] - 0.5, values[0] + 0.5]
        axes.hist(values, bins=bins, color="#b3bcc6", label=f"{_shown(score.null, 40)} null")
    if math.isfinite(score.observed):
        axes.axvline(score.observed, color=_INK, linewidth=2, label="the axes")
    axes.set_xlabel(_shown(score.name, 60), parse_math=False)
    effect = words.effect(score.effect).replace("-", "\u2212")
    axes.set_title(f"effect {effect}", fontsize=9, loc="left", color=_QUIET)
    _plain(axes)
    if values.size or math.isfinite(score.observed):
        axes.legend(frameon=False, fontsize=8)
    return figure


def every_axis(score: ScoreResult, axes: Axes | None = None, size: Size = None) -> Figure:
    """One score on every axis, in their order; those that stand out by themselves in colour."""
    figure, axes = figure_on(axes, 6.4, 2.4, size)
    values = np.asarray(score.per_direction, dtype=np.float64)
    places = np.arange(values.size)
    standing = drawing.standing_axes(score)
    chosen = np.zeros(values.size, dtype=bool)
    if standing is not None:
        chosen[standing] = True
    for which, colour, name in (
        (~chosen, "#8a949f", "axes"),
        (chosen, _COLOURS[Outcome.EMERGENT], "stand out by themselves"),
    ):
        if which.any():
            axes.plot(places[which], values[which], ".", markersize=4, color=colour, label=name)
    axes.set_xlabel("axis")
    axes.set_ylabel(_shown(score.name, 60), parse_math=False)
    _plain(axes)
    if chosen.any():
        axes.legend(frameon=False, fontsize=8)
    return figure


def save_figure(figure: Figure, file: BinaryIO, form: str) -> None:
    """Writes a figure whose letters stay letters, as journals ask for."""
    import matplotlib as mpl

    # Type 3 fonts are refused by many publishers; paths cannot be searched or edited.
    with mpl.rc_context({"pdf.fonttype": 42, "ps.fonttype": 42, "svg.fonttype": "none"}):
        figure.savefig(file, format=form, dpi=200, bbox_inches="tight")


def _plain(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(labelsize=8, labelcolor=_QUIET, color=_RULE)


def of_report(report: Report, kind: str, axes: Axes | None, size: Size) -> Figure:
    """The figure of that kind.

    Raises:
        ValueError: for an unknown kind, or axes for the one that fills a whole figure.
    """
    if kind == "overview":
        if axes is not None or size is not None:
            raise ValueError(
                "the overview has two parts and fills a figure of its own size: leave ax and "
                "figsize out, or draw its parts with kind='map' and kind='nulls'"
            )
        return overview(report)
    kinds = {"map": site_map, "nulls": all_nulls, "kurtosis": all_kurtoses}
    drawn = kinds.get(kind)
    if drawn is None:
        raise ValueError(f"kind={kind!r}: give one of 'overview', {str([*kinds])[1:-1]}")
    return drawn(report, axes, size)


def of_site(
    site: SiteReport, kind: str, score: str | None, axes: Axes | None, size: Size
) -> Figure:
    """The figure of that kind, of the named score or of the leading one.

    Raises:
        ValueError: for an unknown kind or score, or a site without scores.
    """
    drawn = {"null": one_null, "axes": every_axis}.get(kind)
    if drawn is None:
        raise ValueError(f"kind={kind!r}: give one of 'null', 'axes'")
    leading = selection.of_axes if kind == "axes" else selection.leading
    found = leading(site) if score is None else site.scores.get(score)
    if found is None:
        what = f"score {score!r}" if score is not None else "score that was compared with its null"
        there = ", ".join(site.scores) or "none"
        raise ValueError(f"the site {site.site!r} has no {what} to draw; name one of: {there}")
    return drawn(found, axes, size)


def _png(figure: Figure) -> bytes:
    held = io.BytesIO()
    figure.savefig(held, format="png", dpi=100)
    return held.getvalue()


def _shown(text: str, limit: int) -> str:
    return words.shorten(words.clean(text), limit)


def _fill(score: selection.Speaker | None) -> str:
    step = None if score is None else drawing.step(score.effect)
    return "#ffffff" if step is None else drawing.LIGHT[step + 5]


# --- the map ------------------------------------------------------------------------------------


def _map(axes: Axes, report: Report, grid: selection.Grid) -> None:
    rows = max(1, len(grid.rows))
    axes.set_xlim(-0.5, max(1, len(grid.columns)) - 0.5)
    axes.set_ylim(rows - 0.5, -0.5 - 0.35 / _CELL)
    axes.axis("off")
    head = -0.5 - 0.15 / _CELL
    left = -0.75
    for column, layer in enumerate(grid.columns):
        axes.text(
            column, head, words.DASH if layer is None else str(layer), **_text(_QUIET, "center")
        )
    across = "layer" if grid.by_layer else "in forward order"
    axes.text(left, head, across, **_text(_QUIET, "right"))
    kinds = [row.kind for row in grid.rows]
    for index, row in enumerate(grid.rows):
        _name(axes, left, index, row, several=kinds.count(row.kind) > 1)
        for column, cell in enumerate(row.cells):
            if cell is not None:
                site = report.site_reports[cell]
                fill = _fill(selection.speaker(site))
                site_mark(axes, column, index, site.symmetry.privileged, fill, site.verdict.outcome)


def site_mark(
    axes: Axes, column: int, row: int, privileged: Privileged, fill: str, outcome: Outcome
) -> None:
    """Draws a site on a map: its shape, its colour and its letter."""
    _mark(axes, column, row, privileged, fill)
    axes.text(
        column,
        row,
        words.LETTER[outcome],
        fontsize=8,
        fontweight="bold",
        color=drawing.ink(fill),
        ha="center",
        va="center_baseline",
    )


def _name(axes: Axes, left: float, index: int, row: selection.Row, *, several: bool) -> None:
    """The kind of a row and, where several rows are of it, the pattern of its names."""
    kind, pattern = _shown(row.kind, 44), _shown(row.pattern, 44)
    if not several or not pattern:
        axes.text(left, index, kind, **_text(_INK, "right"))
        return
    if row.first_of_kind:
        axes.text(left, index - 0.2, kind, **_text(_INK, "right"))
    at = index + 0.2 if row.first_of_kind else index
    axes.text(left, at, pattern, **_text(_QUIET, "right", size=7.0))


def _text(colour: str, side: str, *, size: float = 8.5) -> dict[str, Any]:
    return {
        "fontsize": size,
        "color": colour,
        "ha": side,
        "va": "center",
        "parse_math": False,
    }


def _mark(axes: Axes, column: int, row: int, privileged: Privileged, fill: str) -> None:
    small = privileged in (Privileged.PLANES, Privileged.AXES)
    axes.plot(
        [column],
        [row],
        marker=_MARKERS[privileged],
        markersize=14 if small else 16.5,
        markerfacecolor=fill,
        markeredgecolor=_QUIET,
        markeredgewidth=0.9,
        linestyle="none",
        clip_on=False,
    )


def _legend(axes: Axes, wide: float) -> None:
    """The keys to shape, colour and letter, in three lines on `wide` inches."""
    axes.set_xlim(0, wide)
    axes.set_ylim(1.25, 0)
    axes.axis("off")
    titles = (
        (0.3, "shape: privileged by the architecture"),
        (0.62, "colour: effect, sd of the null"),
        (1.02, "letter: what follows"),
    )
    for line, title in titles:
        axes.text(-0.1, line, title, **_text(_QUIET, "right"))
    at = 0.1
    for privileged in Privileged:
        axes.plot(
            [at],
            [0.3],
            marker=_MARKERS[privileged],
            markersize=7.5,
            markerfacecolor="white",
            markeredgecolor=_QUIET,
            linestyle="none",
        )
        axes.text(at + 0.14, 0.3, privileged.name.lower(), **_text(_INK, "left"))
        at += 0.95
    step = 0.46
    for index, fill in enumerate(drawing.LIGHT):
        axes.fill_between([index * step, (index + 1) * step], 0.54, 0.70, color=fill, linewidth=0)
    for index, bound in enumerate(drawing.legend_bounds()):
        axes.text(
            (index + 1) * step,
            0.78,
            bound.replace("-", "\u2212"),
            fontsize=6.5,
            color=_QUIET,
            ha="center",
            va="center",
        )
    at = 0.0
    for outcome in Outcome:
        axes.text(
            at,
            1.02,
            words.LETTER[outcome],
            fontsize=8.5,
            fontweight="bold",
            color=_COLOURS[outcome],
            va="center",
        )
        axes.text(at + 0.17, 1.02, outcome.name.lower(), **_text(_INK, "left"))
        at += 1.12


# --- every site against its null ----------------------------------------------------------------


_OBSERVED = "observed value (mark) and null (grey)"
_NARROW = 5.0  # inches below which a figure is one column of a page


def _is_narrow(axes: Axes) -> bool:
    figure: Any = axes.get_figure(root=True)
    return figure.get_figwidth() < _NARROW


def _nulls(axes: Axes, report: Report) -> None:
    sites = report.site_reports
    leads = [selection.speaker(site) for site in sites]
    effects = [lead.effect for lead in leads if lead is not None and math.isfinite(lead.effect)]
    reach = [_spoken_null(site) for site in sites]
    ends = [float(values.min()) for values in reach if values.size]
    tops = [float(values.max()) for values in reach if values.size]
    low = min([-_LINEAR, *effects, *ends])
    high = max([_LINEAR, *effects, *tops])
    axes.set_xscale("symlog", linthresh=_LINEAR, linscale=1.2)
    axes.set_xlim(low * 1.5, high * 1.5)
    axes.set_ylim(max(1, len(sites)) - 0.4, -0.8)
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_RULE)
    axes.set_yticks([])
    narrow = _is_narrow(axes)
    ticks = (
        [-1000, -100, -10, 0, 10, 100, 1000, 10_000]
        if narrow
        else [-1000, -100, -10, -3, 0, 3, 10, 30, 100, 300, 1000, 10_000, 100_000]
    )
    shown = [tick for tick in ticks if low * 1.5 <= tick <= high * 1.5]
    axes.set_xticks(shown, [f"{tick:+,}".replace("-", "\u2212") if tick else "0" for tick in shown])
    axes.minorticks_off()
    axes.tick_params(axis="x", labelsize=8, labelcolor=_QUIET, color=_RULE)
    what = "effect: mark observed, grey null"
    axes.set_xlabel(
        what if narrow else f"{_OBSERVED}, in standard deviations of the null from its mean",
        fontsize=7.0 if narrow else 8.5,
        color=_QUIET,
    )
    axes.grid(axis="x", color=_RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    sideways = axes.get_yaxis_transform()
    letters, size = (24, 6.0) if narrow else (40, 8.5)
    for index, (site, lead) in enumerate(zip(sites, leads, strict=True)):
        name, told = _shown(site.site, letters), _said(lead, brief=narrow)
        axes.text(-0.02, index, name, transform=sideways, **_text(_INK, "right", size=size))
        axes.text(1.02, index, told, transform=sideways, **_text(_QUIET, "left", size=size))
        if lead is not None:
            _against(axes, index, site, lead, low, high)


def _spoken_null(site: SiteReport) -> np.ndarray:
    """The null of the score that speaks for a site; empty where an order does."""
    lead, score = selection.speaker(site), selection.leading(site)
    if score is None or lead is None or lead.name != score.name:
        return np.zeros(0)
    return _standard(score)


def _said(lead: selection.Speaker | None, *, brief: bool) -> str:
    if lead is None:
        return words.DASH if brief else "not compared"
    effect = words.effect(lead.effect).replace("-", "\u2212")
    if brief:
        return effect
    if math.isnan(lead.p_adjusted):
        return f"{effect}  (decides nothing)"
    order = f"  {lead.name}" if lead.is_order else ""
    return f"{effect}  p {words.p_value(lead.p_adjusted)}{order}"


def _standard(score: ScoreResult) -> np.ndarray:
    """The null in its own standard deviations from its own mean; empty where it has no spread."""
    values = score.null_values[np.isfinite(score.null_values)]
    if not score.null_std > 0:
        return values[:0]
    return (values - score.null_mean) / score.null_std


def _against(
    axes: Axes, index: int, site: SiteReport, lead: selection.Speaker, low: float, high: float
) -> None:
    values = _spoken_null(site)
    if values.size:
        counts, edges = np.histogram(values, bins=24)
        tall = 0.78 * counts / counts.max()
        axes.fill_between(
            edges,
            index + 0.36,
            index + 0.36 - np.append(tall, tall[-1]),
            step="post",
            color="#b3bcc6",
            linewidth=0,
        )
    # An infinite effect stands at the edge: there is nowhere else to draw it.
    place = min(max(lead.effect, low * 1.4), high * 1.4)
    axes.plot(
        [place],
        [index],
        marker=_MARKERS[site.symmetry.privileged],
        markersize=6.5,
        markerfacecolor=_COLOURS[site.verdict.outcome],
        markeredgecolor="white",
        markeredgewidth=0.7,
        linestyle="none",
        zorder=4,
        clip_on=False,
    )
