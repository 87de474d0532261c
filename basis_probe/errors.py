"""What can go wrong, each with what was given, what was needed and what to do.

Names and texts come from models and data of others: `clean` makes them safe to show.
"""

import difflib
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from basis_probe.run.parts import Partial


_SPACE = re.compile("[\t\n\r\u2028\u2029]+")
# Illegal in HTML, or unwritable in UTF-8 (lone surrogates), or able to reorder the text around
# them (directional marks and overrides), or a command to a terminal (escape).
_UNSAFE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff"
    + "\ud800-\udfff\ufdd0-\ufdef"
    + "".join(chr(plane << 16 | last) for plane in range(17) for last in (0xFFFE, 0xFFFF))
    + "]"
)


def _escape(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def clean(text: str) -> str:
    r"""One line of `text` that is safe to show: unsafe characters are spelled out.

    Control characters, lone surrogates, non-characters and marks of text direction become
    escapes such as `\x1b`, so that two names that differ in them still look different.

    Example:
        >>> clean("blocks\n0")
        'blocks 0'
        >>> print(clean("a" + chr(0x202E) + "b"))
        a\u202eb
    """
    return _UNSAFE.sub(_escape, _SPACE.sub(" ", text))


def nearest(name: str, among: Iterable[str], most: int = 3) -> str:
    """The names most like one that nothing bears, the best first; empty where none is like it.

    Example:
        >>> nearest("kurtsis", ["kurtosis", "entropy"])
        'kurtosis'
    """
    # A long name is like none, and comparing it takes its length squared.
    known = list(among)
    found = difflib.get_close_matches(name, known, most, 0.4) if len(name) <= _LONG else []
    return ", ".join(clean(entry) for entry in found)


_LONG = 200
_LONGEST = 6000
"""Characters of a name that is compared, and of a message."""


def _said(message: object) -> str:
    text = clean(str(message))
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} … {text[-_LONGEST // 2 :]}"


class SiteError(ValueError):
    """A site was asked for that the model does not have, or that cannot be probed."""

    def __init__(self, message: str) -> None:
        super().__init__(_said(message))


class DataError(ValueError):
    """The data are not batches that the model can be called with."""

    def __init__(self, message: str) -> None:
        super().__init__(_said(message))


class StreamError(RuntimeError):
    """The data or the model failed after some batches; what was gathered so far is kept.

    Attributes:
        batches: how many batches were completed.
    """

    def __init__(
        self,
        message: str,
        *,
        batches: int,
        finish: Callable[[], Any],
        part: "Callable[[], Partial | None] | None" = None,
    ) -> None:
        super().__init__(_said(message))
        self.batches = batches
        self._finish, self._part = finish, part

    def report(self) -> Any:
        """What was asked for, of the completed batches: of `probe` a `Report`, marked partial."""
        return self._finish()

    def partial(self) -> "Partial | None":
        """What was seen in the completed batches, to be saved; None where that cannot be."""
        return None if self._part is None else self._part()


class MisleadingNull(UserWarning):
    """A null was asked for that credits the axes for nothing at a site, and by how much."""

    def __init__(self, message: str) -> None:
        super().__init__(_said(message))
