"""Contexts as runs of tinted tokens, and what the directions that they belong to are called."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from basis_probe.show import words

if TYPE_CHECKING:
    from basis_probe.results.examples import Context, TopContexts

TINTS = 5
"""In so many steps a token is tinted."""

_LONGEST = 48
"""A token is shown in so many characters at most."""


@dataclasses.dataclass(frozen=True)
class Run:
    """Neighbouring tokens that look alike.

    Attributes:
        text: what they say, on one line, unsafe characters spelled out.
        tint: 0 for none, up to `TINTS`.
        peak: True for the token that activates, which stands alone.
    """

    text: str
    tint: int
    peak: bool


def runs(context: Context) -> tuple[Run, ...]:
    """A context as a page shows it.

    Example:
        >>> from basis_probe.results.examples import Context
        >>> runs(Context((" a", " b", " c"), (0.0, 0.01, 2.0), 2, 0, 0))
        (Run(text='a b ', tint=0, peak=False), Run(text='c', tint=5, peak=True))
    """
    made: list[Run] = []

    def add(text: str, tint: int, peak: bool) -> None:
        if made and not peak and not made[-1].peak and made[-1].tint == tint:
            made[-1] = dataclasses.replace(made[-1], text=made[-1].text + text)
        elif text:
            made.append(Run(text, tint, peak))

    for place, token in enumerate(context.tokens):
        tint, peak = round(TINTS * context.shade(place)), place == context.at
        text = words.shorten(words.clean(token.replace("\n", "↵")), _LONGEST)
        bare = text.lstrip(" ")
        # A space in front of a word belongs to no tint, and none begins a line.
        add(text[: len(text) - len(bare)] if place else "", 0, False)
        add(bare or ("·" if peak or tint else ""), tint, peak)
    return tuple(made)


def reads(top: TopContexts) -> bool:
    """True if its contexts are text; else each is one name of a place in the data."""
    return "token purity" in top.scores or any(len(found.tokens) > 1 for found in top.contexts)


def direction(top: TopContexts, shape: tuple[int, ...]) -> str:
    """What a direction is called, an axis by its place within the feature axes of its site."""
    from basis_probe.show.selection import axis_label

    if top.axis is None:
        return top.label
    label = f"axis {axis_label(top.axis, shape)}"
    return label if top.sign > 0 else f"{label}, negative"
