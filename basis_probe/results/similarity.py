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
    from basis_probe.compare.matching import Matched


@brief
@dataclasses.dataclass(frozen=True)
class Chance:
    """What the measure gives when the examples of the second are in another order.

    Attributes:
        mean: over shuffles.
        low, high: between these lie 95 of 100 shuffles.
        p_value: (1 + #{shuffles with as much or more}) / (shuffles + 1).
        shuffles: how many there were.
    """

    mean: float
    low: float
    high: float
    p_value: float
    shuffles: int

    def __str__(self) -> str:
        return (
            f"by chance {self.mean:.4f} [{self.low:.4f}, {self.high:.4f}], p = {self.p_value:.2g}"
        )

    @staticmethod
    def of(value: float, shuffled: Sequence[float]) -> Chance:
        """From the value as it is and the values of shuffles."""
        low, high = np.quantile(shuffled, [0.025, 0.975])
        more = sum(other >= value for other in shuffled)
        return Chance(
            float(np.mean(shuffled)),
            float(low),
            float(high),
            (1 + more) / (len(shuffled) + 1),
            len(shuffled),
        )


@brief
@dataclasses.dataclass(frozen=True, eq=False)
class Similarity:
    """How alike two sets of activations are, up to a group.

    Attributes:
        measure: as it was asked for.
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
        alignment: the fitted element, or the axes that were matched; None where nothing is fitted.
        notes: what a reader must know.
        chance: what shuffled examples give; None if it was not asked for.
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
    alignment: Alignment | Matched | None = None
    notes: tuple[str, ...] = ()
    chance: Chance | None = None

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
            + ("" if self.chance is None else f"; {self.chance}")
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

    def plot(self, *, figsize: tuple[float, float] | str | None = None) -> Figure:
        """A heat map with the similarities and their error bars written into it.

        Args:
            figsize: as for `Report.plot`.

        Raises:
            ValueError: for any other size.
        """
        from basis_probe.show.heatmap import heat_map

        return heat_map(
            self.similarity,
            self.std_error,
            rows=self.sites,
            columns=self.other_sites,
            title=f"{self.measure}, up to {self.group}, {self.n_examples:,} examples",
            size=figsize,
        )

    def _repr_html_(self) -> str:
        return self.to_dataframe().to_html(float_format="{:.3f}".format)


@brief
class LayerMatrices(dict[str, LayerMatrix]):
    """Measure -> the similarities of all layers by it."""

    def to_dataframe(self) -> Any:
        """A `pandas.DataFrame` with one row per measure and pair of layers."""
        import pandas as pd

        parts = [found.to_long().assign(measure=name) for name, found in self.items()]
        return pd.concat(parts, ignore_index=True)

    def _brief(self) -> Mapping[str, object]:
        return {"measures": tuple(self), "layers": len(next(iter(self.values())).sites)}

    def _repr_html_(self) -> str:
        return self.to_dataframe().to_html()


@brief
@dataclasses.dataclass(frozen=True, eq=False)
class NetworkMatrix:
    """How far every two of several networks are apart.

    Attributes:
        names: of the networks.
        matrix: [networks, networks], distances: zero on the diagonal, symmetric.
        low, high: 95 % intervals of the distances, from disjoint parts of the examples; NaN where
            there was one part.
        similarity: [networks, networks].
        std_error: of the similarities.
        measure: how it was measured.
        group: the name of the group.
        formula: how the number is computed, and what the distance is good for.
        n_examples: how many examples were seen.
        notes: what a reader must know.
    """

    names: tuple[str, ...]
    matrix: np.ndarray
    low: np.ndarray
    high: np.ndarray
    similarity: np.ndarray
    std_error: np.ndarray
    measure: str
    group: str
    formula: str
    n_examples: int
    notes: tuple[str, ...] = ()

    def to_dataframe(self) -> Any:
        """A `pandas.DataFrame` of distances, networks by networks."""
        import pandas as pd

        return pd.DataFrame(self.matrix, index=list(self.names), columns=list(self.names))

    def to_long(self) -> Any:
        """A `pandas.DataFrame` with one row for every two networks, intervals included."""
        import pandas as pd

        rows = [
            {
                "network": self.names[i],
                "other": self.names[j],
                "distance": self.matrix[i, j],
                "low": self.low[i, j],
                "high": self.high[i, j],
                "similarity": self.similarity[i, j],
                "std_error": self.std_error[i, j],
            }
            for i in range(len(self.names))
            for j in range(i + 1, len(self.names))
        ]
        return pd.DataFrame(rows)

    def plot(self, *, figsize: tuple[float, float] | str | None = None) -> Figure:
        """A heat map of the similarities with their error bars written into it.

        Args:
            figsize: as for `Report.plot`.

        Raises:
            ValueError: for any other size.
        """
        from basis_probe.show.heatmap import heat_map

        title = f"{self.measure}, up to {self.group}, {self.n_examples:,} examples"
        return heat_map(
            self.similarity,
            self.std_error,
            rows=self.names,
            columns=self.names,
            title=title,
            size=figsize,
        )

    def dendrogram(self, *, figsize: tuple[float, float] | str | None = None) -> Figure:
        """The networks joined by average linkage: what is joined lower is nearer.

        Args:
            figsize: as for `Report.plot`.

        Raises:
            ValueError: for any other size.
        """
        from basis_probe.show.heatmap import dendrogram

        return dendrogram(self.matrix, self.names, label=f"distance ({self.measure})", size=figsize)

    def embedding(self) -> np.ndarray:
        """[networks, 2]: points whose distances are as near to the matrix as two axes allow.

        Source: classical scaling, W. Torgerson (1952).
        """
        count = len(self.names)
        centring = np.eye(count) - 1 / count
        values, vectors = np.linalg.eigh(-centring @ self.matrix**2 @ centring / 2)
        leading = np.argsort(-values)[:2]
        return vectors[:, leading] * np.sqrt(np.clip(values[leading], 0, None))

    def map(self, *, figsize: tuple[float, float] | str | None = None) -> Figure:
        """The embedding as points with names.

        Args:
            figsize: as for `Report.plot`.

        Raises:
            ValueError: for any other size.
        """
        from basis_probe.show.heatmap import points

        return points(
            self.embedding(), self.names, label=f"distance ({self.measure})", size=figsize
        )

    def _repr_html_(self) -> str:
        return self.to_dataframe().to_html(float_format="{:.3f}".format)


def spread_of(values: Sequence[float]) -> float:
    """The standard error of a mean of independent values; NaN for fewer than two."""
    known = np.asarray([value for value in values if not math.isnan(value)])
    return float(known.std(ddof=1) / math.sqrt(len(known))) if len(known) > 1 else math.nan
