"""Several reports side by side: what changed from one to the next."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from basis_probe.algebra.groups import Privileged
from basis_probe.brief import brief
from basis_probe.errors import nearest
from basis_probe.results.codec import Exact
from basis_probe.results.envelope import read, text_of, written
from basis_probe.results.report import Outcome

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_QUANTILE = 1.959963984540054
"""Of the normal distribution, for intervals of 95 %."""


@brief
@dataclasses.dataclass(frozen=True, eq=False)
class Standing(Exact):
    """A site in one of the reports.

    Attributes:
        outcome: what follows there; None where the report has no such site.
        privileged: what the architecture privileges there, or None.
        effect: of the score or order that is compared, in standard deviations of its null.
        effect_interval: 95 % interval of the effect; NaN where it is not known.
        difference: how far the axes lie from their alternatives, in units of the score.
        difference_error: its standard error; NaN where it is not known.
        p_adjusted: adjusted over all sites of that report alone.
        share: of the axes that stand out by themselves.
    """

    outcome: Outcome | None
    privileged: Privileged | None = None
    effect: float = math.nan
    effect_interval: tuple[float, ...] = (math.nan, math.nan)
    difference: float = math.nan
    difference_error: float = math.nan
    p_adjusted: float = math.nan
    share: float = math.nan

    def __post_init__(self) -> None:
        if (self.outcome is None) != (self.privileged is None):
            raise ValueError("it has an outcome or something privileged, and not both")
        if len(self.effect_interval) != 2:
            raise ValueError(f"its interval of the effect has {len(self.effect_interval)} ends")


@brief
@dataclasses.dataclass(frozen=True, eq=False)
class SiteAcross(Exact):
    """One site in every report.

    Attributes:
        site: its name, or its kind and place where the reports name sites differently.
        kind: what it is, in words.
        layer: index of its layer, or None.
        score: the score that is compared, or the order (offset, scale); empty where none is.
        standings: one for every report.
        apart: why its numbers cannot be compared, or an empty string.
    """

    site: str
    kind: str
    layer: int | None
    score: str
    standings: tuple[Standing, ...]
    apart: str = ""

    def __post_init__(self) -> None:
        if self.layer is not None and not 0 <= self.layer < 2**31:
            raise ValueError(f"{self.layer} is no index of a layer")

    @property
    def changed(self) -> bool:
        """Whether the outcome differs between reports that have the site."""
        return len({one.outcome for one in self.standings if one.outcome is not None}) > 1

    def change(self, to: int = -1) -> float:
        """The difference from alternatives in report `to`, minus that in the first with the site.

        In units of the score; NaN where the numbers cannot be compared.
        """
        ends = self._ends(to)
        return math.nan if ends is None else ends[1].difference - ends[0].difference

    def change_interval(self, to: int = -1) -> tuple[float, float]:
        """95 % interval of `change`, the reports taken as independent; NaN where not known."""
        ends = self._ends(to)
        if ends is None:
            return math.nan, math.nan
        half = _QUANTILE * math.hypot(ends[0].difference_error, ends[1].difference_error)
        return self.change(to) - half, self.change(to) + half

    def _ends(self, to: int) -> tuple[Standing, Standing] | None:
        last = self.standings[to]
        there = [one for one in self.standings if one.outcome is not None]
        if self.apart or last.outcome is None or there[0] is last:
            return None
        return there[0], last


@brief
@dataclasses.dataclass(frozen=True, eq=False)
class ReportComparison(Exact):
    """Reports side by side, site by site; see `compare_reports`.

    Attributes:
        names: of the reports, in the order in which they were given.
        rows: one for every site, in forward order.
        notes: what differs between the runs as a whole.
    """

    names: tuple[str, ...]
    rows: tuple[SiteAcross, ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row.standings) != len(self.names):
                raise ValueError(
                    f"site {row.site[:80]!r} stands in {len(row.standings)} reports, and there are "
                    f"{len(self.names)}"
                )
            if all(one.outcome is None for one in row.standings):
                raise ValueError(f"site {row.site[:80]!r} stands in none of the reports")

    @property
    def changed(self) -> tuple[SiteAcross, ...]:
        """The sites whose outcome differs between reports."""
        return tuple(row for row in self.rows if row.changed)

    def __getitem__(self, site: str) -> SiteAcross:
        for row in self.rows:
            if row.site == site:
                return row

        near = nearest(site, [row.site for row in self.rows])
        raise KeyError(f"the comparison has no site {site!r}; nearest: {near or 'none'}")

    def __iter__(self) -> Iterator[SiteAcross]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def to_dataframe(self) -> Any:
        """A `pandas.DataFrame` with one row for every site and report.

        `change` is from the first report that has the site, with its 95 % interval.
        """
        from basis_probe.show.across import dataframe

        return dataframe(self)

    def to_json(self) -> str:
        """A text from which `ReportComparison.from_json` makes an equal value."""
        return written("comparison", self)

    @classmethod
    def from_json(cls, text: str) -> ReportComparison:
        """The value that `to_json` wrote.

        Raises:
            ValueError: if the text is no such value, or of another format version.
        """
        return read("comparison", cls, text)

    @classmethod
    def load(cls, path: str | pathlib.Path) -> ReportComparison:
        """The comparison that `save` wrote as .json, equal to the one that was saved.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is no such comparison, or of another format version.
        """
        return cls.from_json(text_of(path, "comparison"))

    def save(self, path: str | pathlib.Path) -> pathlib.Path:
        """The path of the file written: .html, .json, .csv, .md, .tex, .pdf, .svg or .png.

        Raises:
            ValueError: for any other ending.
        """
        from basis_probe.show.across import save

        return save(self, pathlib.Path(path))

    def plot(
        self, *, ax: Axes | None = None, figsize: tuple[float, float] | str | None = None
    ) -> Figure:
        """A figure: sites down, reports across, marked as on the map of a report.

        Args:
            ax: matplotlib axes to draw on; None for a figure of its own, with keys.
            figsize: of a figure of its own, as for `Report.plot`.

        Raises:
            ValueError: for any other size, or for a size beside `ax`.
        """
        from basis_probe.show.across import figure

        return figure(self, ax, figsize)

    def _brief(self) -> Mapping[str, object]:
        return {"reports": self.names, "sites": len(self), "changed": len(self.changed)}

    def _repr_html_(self) -> str:
        from basis_probe.show.across import fragment

        return fragment(self)

    def __str__(self) -> str:
        from basis_probe.show.across import text

        return text(self)
