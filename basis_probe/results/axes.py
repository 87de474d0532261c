"""Whether several trainings come to the same axes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from basis_probe.brief import brief
from basis_probe.results.codec import Exact


@brief
@dataclasses.dataclass(frozen=True, eq=False)
class AxesShared(Exact):
    """The axes of two networks at one site, or of all pairs of networks together.

    Attributes:
        site: where.
        first, second: the networks; "all" for the mean over all pairs.
        axes: how many axes the site has.
        compared: how many of the second network's were matched.
        observed: the mean |cosine| (of neurons the mean correlation) of the best signed permutation
            between the axes, 1 where they are the same; of residual streams after the best
            rotation: the trace of its best signed permutation over the number of axes.
        low, high: 95 % interval over other examples, by the jackknife; NaN where there are few.
        null_mean, null_std: over alternatives.
        effect: (observed - null_mean) / null_std.
        p_value: (1 + #{alternatives at least as large}) / (their number + 1).
        p_tail: the same, below what can be counted by a fitted tail.
        p_adjusted: `p_tail` after Holm over all rows.
        convergence: the mean over axes of the largest |correlation| with an axis of the other
            network, each by itself and nothing fitted.
        convergence_null: its mean over alternatives.
        convergence_p_value: as `p_value`.
        null: the alternatives, in words.
        samples: how many samples were compared.
        null_values: [alternatives], of `observed`.
    """

    site: str
    first: str
    second: str
    axes: int
    compared: int
    observed: float
    low: float
    high: float
    null_mean: float
    null_std: float
    effect: float
    p_value: float
    p_tail: float
    p_adjusted: float
    convergence: float
    convergence_null: float
    convergence_p_value: float
    null: str
    samples: int
    null_values: np.ndarray


@brief
@dataclasses.dataclass(frozen=True, eq=False)
class AxesComparison(Exact):
    """Whether several trainings come to the same axes, site by site; see `compare_axes`.

    Attributes:
        names: of the networks.
        rows: of every site a row for each pair, and one for all of more than two networks.
        notes: what was left out, and why.
    """

    names: tuple[str, ...]
    rows: tuple[AxesShared, ...]
    notes: tuple[str, ...] = ()

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites, in forward order."""
        return tuple(dict.fromkeys(row.site for row in self.rows))

    def __getitem__(self, site: str) -> AxesShared:
        """The row of a site: of all networks together, or of the one pair."""
        for row in self.rows:
            if row.site == site and (row.first == ALL or len(self.names) == 2):
                return row
        raise KeyError(f"no axes were compared at {site!r}; sites: {', '.join(self.sites[:8])}")

    def __iter__(self) -> Iterator[AxesShared]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def to_dataframe(self) -> Any:
        """A `pandas.DataFrame` with one row for every site and pair of networks."""
        import pandas as pd

        names = [f.name for f in dataclasses.fields(AxesShared) if f.name != "null_values"]
        rows = [{name: getattr(row, name) for name in names} for row in self.rows]
        return pd.DataFrame(rows, columns=names)

    @property
    def sentence(self) -> str:
        """What follows, to quote."""
        rows = [self[site] for site in self.sites]
        if not rows:
            return "No site could be compared."
        found = [row for row in rows if row.p_adjusted <= 0.05]
        if not found:
            return f"At none of {len(rows)} sites do the networks share axes beyond chance."
        best = max(found, key=lambda row: row.observed)
        return (
            f"At {len(found)} of {len(rows)} sites the networks share axes beyond chance, most at "
            f"{best.site} ({best.observed:.2f} of 1, by chance {best.null_mean:.2f})."
        )

    def __str__(self) -> str:
        return self.sentence

    def _repr_html_(self) -> str:
        return self.to_dataframe().to_html(index=False)


ALL = "all"
"""The name of the row of all pairs together."""
