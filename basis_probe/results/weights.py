"""What the weights of neurons say without data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from basis_probe.brief import brief
from basis_probe.results.codec import Exact


@brief
@dataclasses.dataclass(frozen=True, eq=False)
class WeightScore(Exact):
    """One score of one layer of neurons against alternatives to them.

    Attributes:
        site: the place of the neurons.
        score: its name.
        observed: its mean over the neurons that were compared.
        null_mean, null_std: over the alternatives.
        effect: (observed - null_mean) / null_std.
        p_value: (1 + #{alternatives at least as large}) / (their number + 1).
        p_tail: the same, below what can be counted by a fitted tail.
        p_adjusted: `p_tail` after Holm over all scores of all layers.
        null: the alternatives that are nearer: "turned neurons" or "exchanged weights".
        neurons: how many were compared.
        of: how many the layer has.
        formula: what the score is.
        null_values: [alternatives].
    """

    site: str
    score: str
    observed: float
    null_mean: float
    null_std: float
    effect: float
    p_value: float
    p_tail: float
    p_adjusted: float
    null: str
    neurons: int
    of: int
    formula: str
    null_values: np.ndarray


@brief
@dataclasses.dataclass(frozen=True, eq=False)
class WeightsPrivilege(Exact):
    """Whether neurons are unusual by their weights alone; see `weights_privilege`.

    Attributes:
        rows: a score of a layer each, in the order of the layers.
        notes: what was left out, and why.
    """

    rows: tuple[WeightScore, ...]
    notes: tuple[str, ...] = ()

    @property
    def sites(self) -> tuple[str, ...]:
        """The layers, each by the place of its neurons."""
        return tuple(dict.fromkeys(row.site for row in self.rows))

    def __getitem__(self, site: str) -> dict[str, WeightScore]:
        found = {row.score: row for row in self.rows if row.site == site}
        if not found:
            raise KeyError(f"no neurons stand at {site!r}; there are {', '.join(self.sites[:8])}")
        return found

    def __iter__(self) -> Iterator[WeightScore]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def to_dataframe(self) -> Any:
        """A `pandas.DataFrame` with one row for every site and score."""
        import pandas as pd

        left_out = ("null_values", "formula")
        names = [f.name for f in dataclasses.fields(WeightScore) if f.name not in left_out]
        return pd.DataFrame(
            [{n: getattr(row, n) for n in names} for row in self.rows], columns=names
        )

    @property
    def sentence(self) -> str:
        """What follows, to quote."""
        if not self.rows:
            return "No layer of neurons was compared."
        found = [row for row in self.rows if row.p_adjusted <= 0.05]
        if not found:
            return (
                f"At none of {len(self.sites)} layers do the weights tell the neurons from turned "
                "ones."
            )
        best = max(found, key=lambda row: row.effect if math.isfinite(row.effect) else 0.0)
        sites = len({row.site for row in found})
        return (
            f"At {sites} of {len(self.sites)} layers the weights alone tell the neurons from "
            f"turned ones, most at {best.site} by {best.score} (z = {best.effect:.3g}): these axes "
            "were singled out in training, if weights were drawn from one law for all neurons."
        )

    def __str__(self) -> str:
        return self.sentence

    def _repr_html_(self) -> str:
        return self.to_dataframe().to_html(index=False)
