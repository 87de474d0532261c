"""What can go wrong, each with what was given, what was needed and what to do."""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from basis_probe.results.report import Report


class SiteError(ValueError):
    """A site was asked for that the model does not have, or that cannot be probed."""


class DataError(ValueError):
    """The data are not batches that the model can be called with."""


class StreamError(RuntimeError):
    """The data or the model failed after some batches; what was gathered so far is kept.

    Attributes:
        batches: how many batches were completed.
    """

    def __init__(self, message: str, *, batches: int, finish: "Callable[[], Report]") -> None:
        super().__init__(message)
        self.batches = batches
        self._finish = finish

    def report(self) -> "Report":
        """The report of the completed batches, marked partial."""
        return self._finish()


class MisleadingNull(UserWarning):
    """A null was asked for that credits the axes for nothing at a site, and by how much."""
