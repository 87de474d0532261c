"""What can go wrong, each with what was given, what was needed and what to do."""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from basis_probe.results.report import Report
    from basis_probe.run.parts import Partial


class SiteError(ValueError):
    """A site was asked for that the model does not have, or that cannot be probed."""


class DataError(ValueError):
    """The data are not batches that the model can be called with."""


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
        finish: "Callable[[], Report]",
        part: "Callable[[], Partial] | None" = None,
    ) -> None:
        super().__init__(message)
        self.batches = batches
        self._finish, self._part = finish, part

    def report(self) -> "Report":
        """The report of the completed batches, marked partial."""
        return self._finish()

    def partial(self) -> "Partial | None":
        """What was seen in the completed batches, to be saved; None where two networks were run."""
        return None if self._part is None else self._part()


class MisleadingNull(UserWarning):
    """A null was asked for that credits the axes for nothing at a site, and by how much."""
