"""The geometry and the colours of the figures, the same on a page and in a plot."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from basis_probe.algebra.groups import Privileged
from basis_probe.results import ScoreResult

EDGES = (2.0, 5.0, 20.0, 100.0, 500.0)
"""Effects at which the colour changes, on either side of zero.

Effects run from minus five to plus a thousand: equal steps on a symmetric logarithmic scale.
"""

LIGHT = (
    ("#0b3c70", "#2166ac", "#5b9bd0", "#97c4e2", "#cfe3f1")
    + ("#eceeef",)
    + ("#fde3c4", "#fbbd7d", "#ec8f3a", "#c45f12", "#7d3606")
)
"""Fills from the strongest negative effect to the strongest positive one, on a light ground."""

DARK = (
    ("#c9e4fb", "#8cc0ec", "#5596cb", "#386c99", "#2d4c66")
    + ("#39414a",)
    + ("#594632", "#8b5c2a", "#c07c2e", "#f0a24c", "#ffd6a3")
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


def strip(score: ScoreResult, bins: int = 40) -> Strip | None:
    """The picture of `score` against its null; None where there is neither."""
    values = score.null_values[np.isfinite(score.null_values)]
    observed = score.observed
    if values.size == 0:
        return None
    low, high = float(values.min()), float(values.max())
    span = high - low
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


def _outline(values: np.ndarray, low: float, high: float, place: Callable[[float], float], bins: int) -> str:
    """The upper edge of the histogram as a closed path; a spike where the null has no spread."""
    if high > low:
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
