"""What comparing two networks gives."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from basis_probe.algebra.groups import Group
from basis_probe.brief import brief
from basis_probe.errors import clean

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from basis_probe.compare.alignments import Alignment


@brief
@dataclasses.dataclass(frozen=True, eq=False)
class Similarity:
    """How alike two sets of activations are, up to a group.

    Attributes:
        measure: "procrustes", "cka", "cca" or "regression".
        group: the group, acting on the first.
        similarity: 1 where an element of the group makes the second of the first; of what was held
            out where an element was fitted.
        distance: 0 there; sqrt(2 - 2 similarity) for Procrustes and CCA, the angle between the
            kernels for CKA, the share of variance that is not explained for regression.
        std_error: of the similarity, from disjoint parts of the examples; NaN with one part.
        in_sample: the similarity on the samples that the element was fitted on.
        dims: the widths of the two.
        n_samples: how many samples were compared; positions count, but not within kernels.
        n_examples: how many examples they belong to.
        sites: the names of the two places; empty for matrices.
        formula: how the number is computed, and what the distance is good for.
        alignment: the fitted element; None where nothing is fitted.
        notes: what a reader must know.
    """

    measure: str
    group: Group
    similarity: float
    distance: float
    std_error: float
    in_sample: float
    dims: tuple[int, int]
    n_samples: int
    n_examples: int
    formula: str
    sites: tuple[str, str] = ("", "")
    alignment: Alignment | None = None
    notes: tuple[str, ...] = ()

    @property
    def optimism(self) -> float:
        """By how much the samples it was fitted on flatter the element."""
        return self.in_sample - self.similarity

    def __str__(self) -> str:
        error = "" if math.isnan(self.std_error) else f" ± {self.std_error:.3f}"
        where = " and ".join(name for name in self.sites if name)
        return clean(
            f"{where + ': ' if where else ''}{self.measure} up to {self.group.name}: similarity "
            f"{self.similarity:.4f}{error}, distance {self.distance:.4f} "
            f"({self.dims[0]} and {self.dims[1]} axes, {self.n_samples:,} samples)"
        )


@brief
class Similarities(dict[str, Similarity]):
    """Site name -> similarity, in forward order."""

    def to_dataframe(self) -> Any:
        """A `pandas.DataFrame` with one row per site."""
        import pandas as pd

        rows = [
            {
                "site": name,
                "other_site": found.sites[1],
                "measure": found.measure,
                "group": found.group.name,
                "similarity": found.similarity,
                "std_error": found.std_error,
                "in_sample": found.in_sample,
                "distance": found.distance,
                "dim": found.dims[0],
                "other_dim": found.dims[1],
                "n_samples": found.n_samples,
                "n_examples": found.n_examples,
                "notes": " ".join(found.notes),
            }
            for name, found in self.items()
        ]
        return pd.DataFrame(rows).set_index("site")

    def _brief(self) -> Mapping[str, object]:
        return {"sites": len(self), "similarity": tuple(one.similarity for one in self.values())}

    def _repr_html_(self) -> str:
        return self.to_dataframe().to_html()

    def __str__(self) -> str:
        return "\n".join(str(found) for found in self.values())


@brief
@dataclasses.dataclass(frozen=True, eq=False)
class LayerMatrix:
    """The similarity of every layer of one network with every layer of another.

    Attributes:
        sites, other_sites: the layers, in forward order.
        similarity: [sites, other_sites].
        std_error: of each, from disjoint parts of the examples.
        measure: how it was measured.
        group: the name of the group.
        n_examples: how many examples were seen.
        notes: what a reader must know.
    """

    sites: tuple[str, ...]
    other_sites: tuple[str, ...]
    similarity: np.ndarray
    std_error: np.ndarray
    measure: str
    group: str
    n_examples: int
    notes: tuple[str, ...] = ()

    def to_dataframe(self) -> Any:
        """A `pandas.DataFrame` of similarities, layers of one by layers of the other."""
        import pandas as pd

        return pd.DataFrame(
            self.similarity,
            index=pd.Index(self.sites, name="site"),
            columns=pd.Index(self.other_sites, name="other_site"),
        )

    def to_long(self) -> Any:
        """A `pandas.DataFrame` with one row per pair, error bars included."""
        wide = self.to_dataframe()
        long = wide.stack().rename("similarity").reset_index()
        long["std_error"] = self.std_error.reshape(-1)
        return long

    @property
    def matched(self) -> tuple[str, ...]:
        """For every layer of the first network the most similar one of the other."""
        return tuple(self.other_sites[place] for place in self.similarity.argmax(1))

    def plot(self) -> Figure:
        """A heat map with the similarities and their error bars written into it."""
        from basis_probe.show.heatmap import heat_map

        return heat_map(
            self.similarity,
            self.std_error,
            rows=self.sites,
            columns=self.other_sites,
            title=f"{self.measure}, up to {self.group}, {self.n_examples:,} examples",
        )

    def _repr_html_(self) -> str:
        return self.to_dataframe().to_html(float_format="{:.3f}".format)


def spread_of(values: Sequence[float]) -> float:
    """The standard error of a mean of independent values; NaN for fewer than two."""
    known = np.asarray([value for value in values if not math.isnan(value)])
    return float(known.std(ddof=1) / math.sqrt(len(known))) if len(known) > 1 else math.nan
