"""The geometry and the colours of the figures, the same on a page and in a plot."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from basis_probe.algebra.groups import Privileged
from basis_probe.results.evidence import PathRecord, ScoreResult

EDGES = (2.0, 5.0, 20.0, 100.0, 500.0)
"""Effects at which the colour changes, on either side of zero.

Effects run from minus five to plus a thousand: equal steps on a symmetric logarithmic scale.
"""

LIGHT = (
    "#0b3c70",
    "#2166ac",
    "#5b9bd0",
    "#97c4e2",
    "#cfe3f1",
    "#eceeef",
    "#fde3c4",
    "#fbbd7d",
    "#ec8f3a",
    "#c96315",
    "#7d3606",
)
"""Fills from the strongest negative effect to the strongest positive one, on a light ground."""

DARK = (
    "#c9e4fb",
    "#8cc0ec",
    "#5596cb",
    "#386c99",
    "#2d4c66",
    "#39414a",
    "#594632",
    "#8b5c2a",
    "#c07c2e",
    "#f0a24c",
    "#ffd6a3",
)
"""The same on a dark ground, where the strongest are the lightest."""

SHAPES = {
    Privileged.AXES: "M4 4H28V28H4Z",
    Privileged.PLANES: "M16 1L31 16L16 31L1 16Z",
    Privileged.BLOCKS: "M9 3H23L31 16L23 29H9L1 16Z",
    Privileged.LINE: "M16 1L31 29H1Z",
    Privileged.NONE: "M16 2A14 14 0 0 1 16 30A14 14 0 0 1 16 2Z",
    Privileged.UNKNOWN: "M8 2L16 8L24 2L30 8L24 16L30 24L24 30L16 24L8 30L2 24L8 16L2 8Z",
}
"""What the architecture privileges, as an outline in a square of side 32."""


def step(effect: float) -> int | None:
    """The colour of an effect, from -5 over 0 to 5; None for NaN.

    Example:
        >>> [step(value) for value in (-3.0, 1.5, 2.0, 138.0)]
        [-1, 0, 1, 4]
    """
    if math.isnan(effect):
        return None
    size = sum(abs(effect) >= edge for edge in EDGES)
    return size if effect > 0 else -size


def ink(fill: str) -> str:
    """Black or white, whichever reads better on `fill`.

    Source: WCAG 2.2, relative luminance and contrast ratio.

    Example:
        >>> ink("#eceeef"), ink("#0b3c70")
        ('#111111', '#ffffff')
    """

    def linear(channel: int) -> float:
        part = channel / 255
        return part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4

    red, green, blue = (linear(int(fill[at : at + 2], 16)) for at in (1, 3, 5))
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return "#111111" if (luminance + 0.05) ** 2 > 1.05 * 0.0565 else "#ffffff"


def legend_bounds() -> tuple[str, ...]:
    """The bounds between neighbouring colours, from the lowest to the highest."""
    return tuple(f"{edge:+.0f}" for edge in (*(-edge for edge in reversed(EDGES)), *EDGES))


# --- one score against its null -----------------------------------------------------------------

WIDTH, HEIGHT = 360, 58
_LEFT, _RIGHT, _TOP, _BASE = 6.0, 354.0, 18.0, 44.0
_NEAR = 1.0  # spans of the null beyond which the observed value is drawn behind a gap


@dataclasses.dataclass(frozen=True)
class Strip:
    """The null's histogram with the observed value on it, in a box of WIDTH x HEIGHT.

    Attributes:
        outline: the path of the histogram; empty without values.
        observed: where the observed value is marked, or None.
        mean: where the null's mean is marked, or None.
        closed_form: where the formula's mean is marked, or None where it is unknown or off the
            scale.
        gap: where the scale is interrupted, because the observed value lies far outside, or None.
        low, high: the range of the null; `low_at`, `high_at`: where its ends are.
        base: the height of the axis.
    """

    outline: str
    observed: float | None
    mean: float | None
    closed_form: float | None
    gap: float | None
    low: float
    high: float
    low_at: float
    high_at: float
    base: float = _BASE


def are_apart(values: np.ndarray) -> bool:
    """False for values that are all but equal, between which there are no bins."""
    low, high = float(values.min()), float(values.max())
    return high - low > 1e-12 * max(abs(low), abs(high))


def strip(score: ScoreResult, bins: int = 40) -> Strip | None:
    """The picture of `score` against its null; None where there is neither."""
    values = score.null_values[np.isfinite(score.null_values)]
    observed = score.observed
    if values.size == 0:
        return None
    low, high = float(values.min()), float(values.max())
    span = high - low if are_apart(values) else 0.0
    known = math.isfinite(observed)
    # A null without spread still needs a width to be drawn.
    unit = span if span > 0 else max(abs(low), 1.0) * 0.05
    above = known and observed > high + _NEAR * unit
    below = known and observed < low - _NEAR * unit
    room = (_RIGHT - _LEFT) * 0.62
    left, right = _LEFT, _RIGHT
    first, last = low, high
    if above:
        right = _LEFT + room
    elif below:
        left = _RIGHT - room
    elif known:
        first, last = min(low, observed), max(high, observed)
    first, last = first - 0.04 * unit, last + 0.04 * unit

    def place(value: float) -> float:
        return left + (right - left) * (value - first) / (last - first)

    if above:
        gap, at = right + 30.0, _RIGHT - 34.0
    elif below:
        gap, at = left - 30.0, _LEFT + 34.0
    else:
        gap, at = None, place(observed) if known else None
    formula = score.closed_form.mean if score.closed_form is not None else math.nan
    inside = math.isfinite(formula) and first <= formula <= last
    mean = score.null_mean
    return Strip(
        outline=_outline(values, low, high, place, bins),
        observed=at,
        mean=place(mean) if math.isfinite(mean) and first <= mean <= last else None,
        closed_form=place(formula) if inside else None,
        gap=gap,
        low=low,
        high=high,
        low_at=place(low),
        high_at=place(high),
    )


def _outline(
    values: np.ndarray, low: float, high: float, place: Callable[[float], float], bins: int
) -> str:
    """The upper edge of the histogram as a closed path; a spike where the null has no spread."""
    if are_apart(values):
        counts, edges = np.histogram(values, bins=bins, range=(low, high))
        places = [place(float(edge)) for edge in edges]
    else:
        counts = np.array([values.size])
        places = [place(low) - 1.5, place(low) + 1.5]
    tallest = float(counts.max())
    parts = [f"M{places[0]:.1f} {_BASE:.1f}"]
    for count, right in zip(counts.tolist(), places[1:], strict=True):
        parts.append(f"V{_BASE - (_BASE - _TOP) * count / tallest:.1f}H{right:.1f}")
    parts.append(f"V{_BASE:.1f}Z")
    return "".join(parts)


# --- on the way to turned bases -------------------------------------------------------------------

PATH_HEIGHT = 116
_PATH_LEFT, _PATH_RIGHT, _PATH_TOP, _PATH_BASE = 56.0, 356.0, 6.0, 96.0


@dataclasses.dataclass(frozen=True)
class PathPicture:
    """A score on the way to turned bases, in a box of WIDTH x PATH_HEIGHT.

    Attributes:
        ways: one line for every rotation.
        average: their mean.
        turns: how many there are.
        first, last: the mean at either end.
        low, high: the range of the values; `top` and `base` are where its ends are drawn.
    """

    ways: str
    average: str
    turns: int
    first: float
    last: float
    low: float
    high: float
    top: float = _PATH_TOP
    base: float = _PATH_BASE


def path(record: PathRecord) -> PathPicture | None:
    """The picture of a path; None where it has no finite value."""
    values = np.atleast_2d(np.asarray(record.values, dtype=np.float64))
    whole = values[np.isfinite(values).all(axis=1)] if values.size else values[:0]
    if not whole.size or whole.shape[1] != len(record.powers):
        return None
    low, high = float(whole.min()), float(whole.max())
    span = (high - low) or 1.0
    along = [_PATH_LEFT + (_PATH_RIGHT - _PATH_LEFT) * power for power in record.powers]

    def line(heights: np.ndarray) -> str:
        ups = (_PATH_BASE - (_PATH_BASE - _PATH_TOP) * (h - low) / span for h in heights.tolist())
        points = (f"{x:.1f} {y:.1f}" for x, y in zip(along, ups, strict=True))
        return "M" + "L".join(points)

    mean = whole.mean(axis=0)
    return PathPicture(
        ways="".join(map(line, whole)),
        average=line(mean),
        turns=len(whole),
        first=float(mean[0]),
        last=float(mean[-1]),
        low=low,
        high=high,
    )


# --- every axis by itself -----------------------------------------------------------------------

COLUMNS = 158
"""Columns of an axis strip; where a site has more axes, several share one."""

_FIRST, _LAST, _CEILING = 56.0, 356.0, 6.0
_FLAT = 2.0  # the least height of a mark, so that a single value is seen


@dataclasses.dataclass(frozen=True)
class AxisStrip:
    """A score on every axis, in the order of the axes, in a box of WIDTH x HEIGHT.

    Attributes:
        others_path: in every column, the range of the axes that do not stand out by themselves.
        standing_path: the same of those that do.
        below_path: ticks under the columns that hold one of those.
        standing: how many axes stand out, or None where single axes have no p-value.
        alive: how many axes have a value.
        per_column: how many axes share a column.
        width: of a column.
        low, high: the range of the values.
        top, base: the heights at which they are drawn.
    """

    others_path: str
    standing_path: str
    below_path: str
    standing: int | None
    alive: int
    per_column: int
    width: float
    low: float
    high: float
    top: float = _CEILING
    base: float = _BASE


def axis_strip(score: ScoreResult, most: int = COLUMNS) -> AxisStrip | None:
    """The picture of `score` on every axis, in at most so many columns; None where it has none."""
    values = np.asarray(score.per_direction, dtype=np.float64)
    alive = np.flatnonzero(np.isfinite(values))
    if alive.size == 0:
        return None
    per_column = -(-values.size // most)
    columns = -(-values.size // per_column)
    width = (_LAST - _FIRST) / columns
    low, high = float(values[alive].min()), float(values[alive].max())
    span = high - low

    def height(value: float) -> float:
        part = (value - low) / span if span > 0 else 0.5
        return _BASE - 3 - (_BASE - 3 - _CEILING) * part

    def path(axes: np.ndarray) -> str:
        if axes.size == 0:
            return ""
        places = axes // per_column
        starts = np.flatnonzero(np.diff(places, prepend=-1))
        lowest = np.minimum.reduceat(values[axes], starts).tolist()
        highest = np.maximum.reduceat(values[axes], starts).tolist()
        parts: list[str] = []
        for column, least, most in zip(places[starts].tolist(), lowest, highest, strict=True):
            bottom, top = height(least), height(most)
            missing = max(0.0, _FLAT - (bottom - top)) / 2
            parts.append(f"M{at(column)} {_half(bottom + missing)}V{_half(top - missing)}")
        return "".join(parts)

    def at(column: int) -> str:
        return _half(_FIRST + (column + 0.5) * width)

    standing = standing_axes(score)
    chosen = np.array([], dtype=np.int64) if standing is None else standing
    return AxisStrip(
        others_path=path(np.setdiff1d(alive, chosen)),
        standing_path=path(chosen),
        below_path="".join(
            f"M{at(column)} {_half(_BASE + 3)}v5"
            for column in np.unique(chosen // per_column).tolist()
        ),
        standing=None if standing is None else int(standing.size),
        alive=int(alive.size),
        per_column=per_column,
        width=max(0.9, width * 0.82),
        low=low,
        high=high,
    )


def _half(value: float) -> str:
    """A coordinate to the nearest half: short, because a page holds many of them."""
    return f"{round(2 * value) / 2:g}"


def standing_axes(score: ScoreResult) -> np.ndarray | None:
    """The axes counted in `fraction_privileged`; None where it is unknown.

    A step-up procedure keeps the smallest p-values, so the share and the p-values say which.
    """
    share = score.fraction_privileged
    if not math.isfinite(share):
        return None
    p = np.asarray(score.per_direction_p, dtype=np.float64)
    values = np.asarray(score.per_direction, dtype=np.float64)
    if p.size != values.size:
        return None
    alive = np.flatnonzero(np.isfinite(values) & np.isfinite(p))
    kept = round(share * alive.size)
    if kept == 0:
        return np.array([], dtype=np.int64)
    return np.sort(alive[np.argsort(p[alive], kind="stable")[:kept]])
