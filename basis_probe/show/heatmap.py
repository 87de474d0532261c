"""Comparisons as pictures: a matrix as a heat map with error bars, penalties as lines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from basis_probe.show.canvas import Size, drawn, figure_on

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CELL = 0.55
_LETTER = 0.075
_INK, _PAPER = "#1b1f24", "#ffffff"


@drawn
def heat_map(
    values: np.ndarray,
    errors: np.ndarray,
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    size: Size = None,
) -> Figure:
    """A figure with one cell for each pair, made without touching the state of pyplot.

    Args:
        values: [rows, columns], from 0 (light) to 1 (dark); NaN stays empty.
        errors: of each, written below it.
        rows: their names, from above.
        columns: their names, from the left.
        title: what is shown.
        size: of the figure, in inches, or the name of a width; None for what the cells need.
    """
    wide = 0.7 + _LETTER * max(map(len, rows)) + _CELL * len(columns)
    tall = 0.9 + _LETTER * max(map(len, columns)) + _CELL * len(rows)
    figure, axes = figure_on(None, max(wide, 0.4 + _LETTER * len(title)), tall, size)
    axes.imshow(values, cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=8)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    axes.tick_params(length=0)
    for row in range(len(rows)):
        for column in range(len(columns)):
            value, error = float(values[row, column]), float(errors[row, column])
            if math.isnan(value):
                continue
            said = f"{value:.2f}" if math.isnan(error) else f"{value:.2f}\n±{error:.2f}"
            colour = _PAPER if value > 0.6 else _INK
            axes.text(column, row, said, ha="center", va="center", fontsize=6, color=colour)
    axes.set_title(title, fontsize=9, loc="left", wrap=True)
    return figure


@drawn
def dendrogram(
    distances: np.ndarray, names: Sequence[str], *, label: str, size: Size = None
) -> Figure:
    """A figure of what is nearest to what, made without touching the state of pyplot.

    Args:
        distances: [names, names].
        names: of what is joined.
        label: what the heights are.
        size: of the figure, in inches, or the name of a width; None for what it needs.
    """
    from scipy.cluster import hierarchy
    from scipy.spatial.distance import squareform

    joined = hierarchy.linkage(squareform(distances, checks=False), "average")
    tree: Any = hierarchy.dendrogram(joined, labels=list(names), no_plot=True)
    figure, axes = figure_on(None, 5.0, max(2.0, 0.25 * len(names) + 0.8), size)
    for across, along in zip(tree["dcoord"], tree["icoord"], strict=True):
        axes.plot(across, along, color=_INK, linewidth=1)
    # The leaves of a tree stand at 5, 15, 25 and so on.
    axes.set_yticks([10 * place + 5 for place in range(len(names))], tree["ivl"], fontsize=8)
    axes.set_xlabel(label, fontsize=9)
    return figure


@drawn
def points(places: np.ndarray, names: Sequence[str], *, label: str, size: Size = None) -> Figure:
    """A figure of named points in a plane, made without touching the state of pyplot.

    Args:
        places: [names, 2].
        names: of the points.
        label: what distances between them are.
        size: of the figure, in inches, or the name of a width; None for what it needs.
    """
    figure, axes = figure_on(None, 5.0, 5.0, size)
    axes.scatter(places[:, 0], places[:, 1], color=_INK, s=16)
    for name, (x, y) in zip(names, places, strict=True):
        axes.annotate(name, (x, y), (4, 3), textcoords="offset points", fontsize=8)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_title(label, fontsize=9, loc="left")
    return figure


@drawn
def lines(
    series: Mapping[str, Sequence[tuple[str, float]]], *, label: str, size: Size = None
) -> Figure:
    """A figure with one line for each series, made without touching the state of pyplot.

    Args:
        series: name -> (place, value), in order.
        label: what the values are.
        size: of the figure, in inches, or the name of a width; None for what it needs.
    """
    places = list(dict.fromkeys(place for points in series.values() for place, _ in points))
    figure, axes = figure_on(None, max(4.0, 0.5 * len(places) + 3.0), 3.4, size)
    for name, points in series.items():
        axes.plot(
            [places.index(place) for place, _ in points],
            [value for _, value in points],
            marker="o",
            markersize=4,
            label=name,
        )
    axes.set_xticks(range(len(places)), places, rotation=45, ha="right", fontsize=8)
    axes.set_ylabel(label, fontsize=9)
    axes.legend(fontsize=7, frameon=False)
    return figure
