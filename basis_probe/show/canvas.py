"""What figures are drawn on and with: their size, their colours, their letters."""

from __future__ import annotations

import contextlib
import functools
import io
import math
import os
import threading
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, cast

from basis_probe.algebra.groups import Privileged
from basis_probe.brief import described
from basis_probe.results.report import Outcome
from basis_probe.show import words

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#1b1f24"
QUIET = "#5b6570"
RULE = "#dfe3e7"
COLOURS = {
    Outcome.PRIVILEGED: "#00735c",
    Outcome.UNUSED: "#1d5fa6",
    Outcome.EMERGENT: "#b93c0b",
    Outcome.ARBITRARY: "#5c656f",
    Outcome.UNDECIDED: "#5c656f",
}
MARKERS = {
    Privileged.AXES: "s",
    Privileged.PLANES: "D",
    Privileged.BLOCKS: "h",
    Privileged.LINE: "^",
    Privileged.NONE: "o",
    Privileged.UNKNOWN: "X",
}

WIDTHS = {"column": 3.35, "page": 6.9}
"""Inches of one column and of both columns of a printed page."""

Size = tuple[float, float] | str | None
"""Width and height in inches, a name among `WIDTHS`, or None for what the content needs."""

_NARROW = 5.0
"""Inches below which a figure is one column of a page."""


Drawing = TypeVar("Drawing", bound="Callable[..., Figure]")

_TEXTS: dict[str, Any] = {"text.usetex": False}

# A figure of its own is dark on white, whatever style is in use.
_COLOURS: dict[str, Any] = {
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.edgecolor": INK,
    "axes.facecolor": "white",
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}


_door = threading.RLock()
"""Held while settings of matplotlib are others: all threads share them."""


def _renew() -> None:
    """A process that was forked while another thread held the lock must not wait for it."""
    global _door
    _door = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)


def drawn(make: Drawing) -> Drawing:
    """The function, whose figures can be read under any style and hold names of any letters."""

    @functools.wraps(make)
    def within(*given: Any, **settings: Any) -> Figure:
        import matplotlib as mpl
        from matplotlib.axes import Axes
        from matplotlib.text import Text

        lent = [value for value in (*given, *settings.values()) if isinstance(value, Axes)]
        theirs = {id(text) for axes in lent for text in axes.findobj(Text)}
        look: dict[Any, Any] = _TEXTS if lent else _TEXTS | _COLOURS
        with _door:
            by_tex = bool(mpl.rcParams["text.usetex"])
            with mpl.rc_context(look):
                figure = make(*given, **settings)
                for drawn_on in lent or [figure]:
                    for text in drawn_on.findobj(Text):
                        # Names of sites are texts, not formulas.
                        if id(text) not in theirs:
                            text.set_parse_math(False)
                if by_tex:
                    # Numbers along axes are made when they are drawn, and stay as they are then.
                    figure.draw_without_rendering()
        return figure

    return cast("Drawing", within)


def width_of(axes: Axes | None, wide: float, size: Size) -> float:
    """The inches across: of the axes that are given, of the size that is asked for, or `wide`.

    Raises:
        ValueError: for a size that is neither two positive numbers nor the name of a width, or
            given axes with a size.
    """
    if axes is not None:
        if size is not None:
            raise ValueError("figsize is that of a new figure, and ax has one: give one of them")
        figure: Any = axes.get_figure(root=True)
        return float(axes.get_position().width * figure.get_figwidth())
    if size is None:
        return wide
    if isinstance(size, str) and size in WIDTHS:
        return WIDTHS[size]
    across = down = math.nan
    if not isinstance(size, str):
        with contextlib.suppress(TypeError, ValueError):
            across, down = map(float, size)
    if not (0 < across < math.inf and 0 < down < math.inf):
        raise ValueError(
            f"figsize={described(size)}: give (width, height) in inches, or {' or '.join(WIDTHS)}"
        )
    return across


def figure_on(
    axes: Axes | None, wide: float, tall: float, size: Size = None
) -> tuple[Figure, Axes]:
    """The axes to draw on with their figure; where none are given, a figure of that size in inches.

    A new one is made without touching the state of pyplot, and shows itself in a notebook.

    Raises:
        ValueError: as for `width_of`.
    """
    wide = width_of(axes, wide, size)
    if axes is not None:
        return axes.get_figure(root=True), axes  # pyright: ignore[reportReturnType]
    if size is not None and not isinstance(size, str):
        tall = float(size[1])
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(wide, tall), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    show_itself(figure)
    return figure, figure.add_subplot()


def show_itself(figure: Figure) -> None:
    """Makes a notebook show a figure that pyplot did not make: it offers its own picture."""
    vars(figure)["_repr_png_"] = functools.partial(_png, figure)


def _png(figure: Figure) -> bytes:
    held = io.BytesIO()
    figure.savefig(held, format="png", dpi=100)
    return held.getvalue()


def save_figure(figure: Figure, file: BinaryIO, form: str) -> None:
    """Writes a figure whose letters stay letters, as journals ask for."""
    import matplotlib as mpl

    # Type 3 fonts are refused by many publishers; paths cannot be searched or edited.
    with _door, mpl.rc_context({"pdf.fonttype": 42, "ps.fonttype": 42, "svg.fonttype": "none"}):
        figure.savefig(file, format=form, dpi=200, bbox_inches="tight")


def is_narrow(figure: Any) -> bool:
    """True for a figure of one column of a page."""
    return figure.get_figwidth() < _NARROW


def shown(text: str, limit: int) -> str:
    """A text of any origin, made safe and short."""
    return words.shorten(words.clean(text), limit)


def style(colour: str, side: str, *, size: float = 8.5) -> dict[str, Any]:
    """How a text beside a drawing looks."""
    return {
        "fontsize": size,
        "color": colour,
        "ha": side,
        "va": "center",
    }
