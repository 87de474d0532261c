"""Results as a figure: the map of all sites, and every site's observed value against its null."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from basis_probe.algebra.groups import Privileged
from basis_probe.results.evidence import ScoreResult
from basis_probe.results.report import Outcome, Report, SiteReport
from basis_probe.show import drawing, maps, selection, words
from basis_probe.show.canvas import (
    COLOURS,
    INK,
    MARKERS,
    QUIET,
    RULE,
    Size,
    drawn,
    figure_on,
    is_narrow,
    show_itself,
    shown,
    style,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROW = 0.25
_LABELS = 2.9
_PICTURE = 6.4
_FIGURES = 1.9
_LINEAR = 4.0  # effects between -4 and 4 are drawn to scale, those beyond it logarithmically


@drawn
def overview(report: Report) -> Figure:
    """A figure with two parts, made without touching the state of pyplot.

    Above, a map of layers x kinds of site: the shape of a mark is what the architecture
    privileges, its colour the effect in the data, its letter the outcome. Below, for every site,
    the null of its leading score and the observed value on it, both in standard deviations of the
    null from the null's mean.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panel, sites = maps.of_report(report), max(1, len(report))
    legend = 1.25
    columns = len(panel.bands(selection.BAND)[0])
    heights = (panel.lines(columns) * maps.CELL, legend, sites * _ROW + 0.3)
    across = max(_PICTURE, columns * maps.CELL)
    margin, gap = 0.35, 0.45
    width = margin + _LABELS + across + _FIGURES + margin
    height = 0.75 + sum(heights) + gap + 0.65
    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    show_itself(figure)

    def box(above: float, tall: float, wide: float) -> Axes:
        """Axes of a size in inches, `above` inches below the top."""
        place = (margin + _LABELS) / width, 1 - (above + tall) / height
        return figure.add_axes((*place, wide / width, tall / height))

    title = f"Can {shown(report.provenance.model, 60)} be read neuron by neuron?"
    figure.text(
        margin / width,
        1 - 0.42 / height,
        title,
        fontsize=13,
        fontweight="bold",
        color=INK,
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
    maps.draw(box(above, heights[0], max(1, columns) * maps.CELL), [panel], columns)
    above += heights[0]
    _legend(box(above, heights[1], across + _FIGURES), across + _FIGURES)
    above += heights[1] + gap
    _nulls(box(above, heights[2], across), report)
    return figure


def all_nulls(report: Report, axes: Axes | None = None, size: Size = None) -> Figure:
    """Every site's leading score against its null, by itself."""
    wide = _LABELS + _PICTURE + _FIGURES
    own = axes is None
    figure, axes = figure_on(axes, wide, max(1, len(report)) * _ROW + 0.9 + 0.5, size)
    _nulls(axes, report)
    if own:
        maps.keys_of(figure, report)
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
            axes.text(right[place], place, f" {told}", **style(QUIET, "left", size=7.5))
    axes.set_yticks(places, [shown(site.site, 40) for site in sites])
    axes.set_ylim(len(sites) - 0.4, -0.6)
    axes.margins(x=0.08)
    axes.axvline(0, color=RULE, linewidth=0.8)
    axes.set_xlabel("kurtosis of a sample across axes")
    _plain(axes)
    axes.legend(frameon=False, fontsize=7.5, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


def one_null(score: ScoreResult, axes: Axes | None = None, size: Size = None) -> Figure:
    """One score: the histogram of its null, and its value on the axes as a line."""
    figure, axes = figure_on(axes, 4.8, 2.4, size)
    values = score.null_values[np.isfinite(score.null_values)]
    if values.size:
        bins = 40 if drawing.are_apart(values) else [values[0] - 0.5, values[0] + 0.5]
        axes.hist(values, bins=bins, color="#b3bcc6", label=f"{shown(score.null, 40)} null")
    if math.isfinite(score.observed):
        axes.axvline(score.observed, color=INK, linewidth=2, label="the axes")
    axes.set_xlabel(shown(score.name, 60))
    effect = words.effect(score.effect).replace("-", "\u2212")
    axes.set_title(f"effect {effect}", fontsize=9, loc="left", color=QUIET)
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
        (chosen, COLOURS[Outcome.EMERGENT], "stand out by themselves"),
    ):
        if which.any():
            axes.plot(places[which], values[which], ".", markersize=4, color=colour, label=name)
    axes.set_xlabel("axis")
    axes.set_ylabel(shown(score.name, 60))
    _plain(axes)
    if chosen.any():
        axes.legend(frameon=False, fontsize=8)
    return figure


def _plain(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(labelsize=8, labelcolor=QUIET, color=RULE)


@drawn
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
    kinds = {"map": _map_of, "nulls": all_nulls, "kurtosis": all_kurtoses}
    drawn = kinds.get(kind)
    if drawn is None:
        raise ValueError(f"kind={kind!r}: give one of 'overview', {str([*kinds])[1:-1]}")
    return drawn(report, axes, size)


def _map_of(report: Report, axes: Axes | None, size: Size) -> Figure:
    return maps.figure([maps.of_report(report)], axes, size)


@drawn
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


def _legend(axes: Axes, wide: float) -> None:
    """The keys to shape, colour and letter, in three lines on `wide` inches."""
    axes.set_xlim(0, wide)
    axes.set_ylim(1.25, 0)
    axes.axis("off")
    titles = (
        (0.3, "shape: privileged by the architecture"),
        (0.62, "colour: effect, sd of the null"),
        (1.02, "letter: what follows; small ones: by"),
    )
    for line, title in titles:
        axes.text(-0.1, line, title, **style(QUIET, "right"))
    at = 0.1
    for privileged in Privileged:
        axes.plot(
            [at],
            [0.3],
            marker=MARKERS[privileged],
            markersize=7.5,
            markerfacecolor="white",
            markeredgecolor=QUIET,
            linestyle="none",
        )
        axes.text(at + 0.14, 0.3, privileged.name.lower(), **style(INK, "left"))
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
            color=QUIET,
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
            color=COLOURS[outcome],
            va="center",
        )
        axes.text(at + 0.17, 1.02, outcome.name.lower(), **style(INK, "left"))
        at += 1.12
    axes.text(at, 1.02, words.keys_of_orders(), **style(QUIET, "left", size=7.5))


# --- every site against its null ----------------------------------------------------------------


_OBSERVED = "observed value (mark) and null (grey)"


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
    axes.spines["bottom"].set_color(RULE)
    axes.set_yticks([])
    narrow = is_narrow(axes.get_figure(root=True))
    ticks = (
        [-1000, -100, -10, 0, 10, 100, 1000, 10_000]
        if narrow
        else [-1000, -100, -10, -3, 0, 3, 10, 30, 100, 300, 1000, 10_000, 100_000]
    )
    marked = [tick for tick in ticks if low * 1.5 <= tick <= high * 1.5]
    axes.set_xticks(
        marked, [f"{tick:+,}".replace("-", "\u2212") if tick else "0" for tick in marked]
    )
    axes.minorticks_off()
    axes.tick_params(axis="x", labelsize=8, labelcolor=QUIET, color=RULE)
    what = "effect: mark observed, grey null"
    axes.set_xlabel(
        what if narrow else f"{_OBSERVED}, in standard deviations of the null from its mean",
        fontsize=7.0 if narrow else 8.5,
        color=QUIET,
    )
    axes.grid(axis="x", color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    sideways = axes.get_yaxis_transform()
    letters, size = (24, 6.0) if narrow else (40, 8.5)
    for index, (site, lead) in enumerate(zip(sites, leads, strict=True)):
        name, told = shown(site.site, letters), _said(lead, brief=narrow)
        axes.text(-0.02, index, name, transform=sideways, **style(INK, "right", size=size))
        axes.text(1.02, index, told, transform=sideways, **style(QUIET, "left", size=size))
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
        apart = drawing.are_apart(values)
        counts, edges = np.histogram(
            values, bins=24 if apart else [values[0] - 0.5, values[0] + 0.5]
        )
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
        marker=MARKERS[site.symmetry.privileged],
        markersize=6.5,
        markerfacecolor=COLOURS[site.verdict.outcome],
        markeredgecolor="white",
        markeredgewidth=0.7,
        linestyle="none",
        zorder=4,
        clip_on=False,
    )
