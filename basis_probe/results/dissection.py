"""What dissection found: frozen values that show themselves, and come back exactly from text."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from basis_probe.brief import brief
from basis_probe.errors import clean, nearest
from basis_probe.results.codec import Exact
from basis_probe.results.envelope import read, written
from basis_probe.results.evidence import NullRecord

if TYPE_CHECKING:
    import pandas


@brief
@dataclasses.dataclass(frozen=True, eq=False)
class Tally(Exact):
    """A number of the axes beside the same number of the null's frames.

    Attributes:
        observed: of the axes.
        low, high: 95 % interval of it over examples drawn again; NaN where none was made.
        null_mean, null_std: over the frames of the null.
        null_low, null_high: between these lie 95 of 100 frames.
        effect: (observed - null_mean) / null_std; NaN where the null does not vary.
        p_value: (1 + #{frames with as much or more}) / (frames + 1).
        null_values: one for every frame.
    """

    observed: float
    low: float
    high: float
    null_mean: float
    null_std: float
    null_low: float
    null_high: float
    effect: float
    p_value: float
    null_values: tuple[float, ...]


@brief
@dataclasses.dataclass(frozen=True)
class ConceptFinding:
    """The direction that tells a concept best, chosen on one half and scored on the other.

    Attributes:
        concept: its name.
        coverage: share of the scored samples that carry it.
        direction: the axis that tells it best on the first half.
        sign: 1 or -1, whether the axis tells it where it is positive or negative.
        score: on the second half.
        null_mean, null_low, null_high: the same for the best direction of the null's frames; 95 of
            100 frames lie between the last two.
        p_value: (1 + #{frames with as much or more}) / (frames + 1), for this concept alone.
        least: what a score must exceed to count as detection.
        detected: True if an axis that tells this concept best of all scores above `least`.
        null_detected: share of the null's frames in which a direction does.
    """

    concept: str
    coverage: float
    direction: int
    sign: int
    score: float
    null_mean: float
    null_low: float
    null_high: float
    p_value: float
    least: float
    detected: bool
    null_detected: float


@brief
@dataclasses.dataclass(frozen=True)
class DirectionFinding:
    """The concept that an axis tells best, chosen on one half and scored on the other.

    Attributes:
        direction: which axis.
        concept: its name.
        sign: 1 or -1.
        fitted: the score on the half on which the concept was chosen.
        score: the score on the other half.
        p_value: share of the null's directions that score as much for their best concept.
    """

    direction: int
    concept: str
    sign: int
    fitted: float
    score: float
    p_value: float


@brief
@dataclasses.dataclass(frozen=True)
class Comparison:
    """What the axes of a site detect, and what directions of one null do, by one measure.

    Attributes:
        null: against what.
        measure: by which measure, in lower case.
        threshold: above this a concept counts as detected, if that is above chance too.
        top: the share of samples that count as active, for measures that need a threshold.
        sides: "positive" or "both".
        distinct: distinct concepts detected (the published headline).
        units: directions above the threshold for the concept that they tell best; may go the other
            way, for many rotated directions can detect one concept.
        mean_best: the mean over concepts of the best direction's score; needs no threshold.
        chance_high: with labels that mean nothing, between 0 and this many distinct concepts pass
            the chance level (97.5 of 100 cases); without a threshold beside the chance level it is
            the chance interval of `distinct`.
        concepts: one for every concept.
        directions: one for every axis that varies.
    """

    null: NullRecord
    measure: str
    threshold: float
    top: float
    sides: str
    distinct: Tally
    units: Tally
    mean_best: Tally
    chance_high: int
    concepts: tuple[ConceptFinding, ...]
    directions: tuple[DirectionFinding, ...]

    @property
    def detected(self) -> tuple[ConceptFinding, ...]:
        """The concepts that axes detect, best score first."""
        found = [concept for concept in self.concepts if concept.detected]
        return tuple(sorted(found, key=lambda concept: -concept.score))

    def concept(self, name: str) -> ConceptFinding:
        """The finding of one concept.

        Raises:
            KeyError: for a concept that was not scored; the message lists the nearest.
        """
        for found in self.concepts:
            if found.concept == name:
                return found
        near = nearest(name, [found.concept for found in self.concepts])
        raise KeyError(f"no concept {name!r} was scored; nearest: {near or 'none'}")

    def __str__(self) -> str:
        d = self.distinct
        interval = "" if math.isnan(d.low) else f" [{d.low:.0f}, {d.high:.0f}]"
        return clean(
            f"{d.observed:.0f}{interval} distinct concepts on axes, {d.null_mean:.1f} "
            f"[{d.null_low:.0f}, {d.null_high:.0f}] under the {self.null.name} null "
            f"({self.measure} > {self.threshold:g}, p = {d.p_value:.2g})"
        )


@brief
@dataclasses.dataclass(frozen=True)
class SiteDissection:
    """What the axes of one site detect, against every null that was asked.

    Attributes:
        site, kind: its name, and what it is in words.
        dim: number of axes.
        n_samples, n_examples: on how many labelled samples of how many examples.
        left_out: concept -> why it could not be scored.
        comparisons: one for every null and measure; the null that a finding rests on comes first.
        notes: anything that a reader must know.
    """

    site: str
    kind: str
    dim: int
    n_samples: int
    n_examples: int
    left_out: Mapping[str, str]
    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...] = ()

    def comparison(self, null: str | None = None, measure: str | None = None) -> Comparison:
        """The comparison with one null by one measure; the first where they are not named.

        Raises:
            KeyError: if there is none.
        """
        for found in self.comparisons:
            if null in (None, found.null.name) and measure in (None, found.measure):
                return found
        there = ", ".join(f"{c.null.name}/{c.measure}" for c in self.comparisons) or "none"
        raise KeyError(f"no comparison {null or 'any'}/{measure or 'any'}; there are {there}")

    def _repr_html_(self) -> str:
        from basis_probe.show.concepts import fragment

        return fragment((self,), ())

    def __str__(self) -> str:
        return "\n".join([f"{clean(self.site)}:", *(f"  {found}" for found in self.comparisons)])


@brief
@dataclasses.dataclass(frozen=True)
class Dissection:
    """What the axes of every site detect, against the null's directions.

    Attributes:
        site_dissections: one per site, in forward order.
        settings: what determined the numbers.
        notes: what a reader must know about the run as a whole.
    """

    site_dissections: tuple[SiteDissection, ...]
    settings: Mapping[str, str]
    notes: tuple[str, ...] = ()

    @property
    def sites(self) -> tuple[str, ...]:
        """The names of the sites, in forward order."""
        return tuple(found.site for found in self.site_dissections)

    def __getitem__(self, site: str) -> SiteDissection:
        for found in self.site_dissections:
            if found.site == site:
                return found
        near = nearest(site, self.sites)
        raise KeyError(f"no site {site!r} was dissected; nearest: {near or 'none'}")

    def __iter__(self) -> Iterator[SiteDissection]:
        return iter(self.site_dissections)

    def __len__(self) -> int:
        return len(self.site_dissections)

    def to_json(self) -> str:
        """A text from which `Dissection.from_json` makes an equal value, every number exact."""
        return written("dissection", self)

    @classmethod
    def from_json(cls, text: str) -> "Dissection":
        """The dissection that `to_json` wrote.

        Raises:
            ValueError: if the text is no such value, or of another format version.
        """
        return read("dissection", cls, text)

    def to_dataframe(self) -> "pandas.DataFrame":
        """One row for every site, null and measure: distinct concepts of axes and of the null."""
        import pandas

        rows: list[dict[str, object]] = []
        for site in self:
            for found in site.comparisons:
                row: dict[str, object] = {
                    "site": site.site,
                    "null": found.null.name,
                    "measure": found.measure,
                    "threshold": found.threshold,
                }
                for name in ("distinct", "units", "mean_best"):
                    tally: Tally = getattr(found, name)
                    row |= {
                        name: tally.observed,
                        f"{name}_low": tally.low,
                        f"{name}_high": tally.high,
                        f"{name}_null": tally.null_mean,
                        f"{name}_null_low": tally.null_low,
                        f"{name}_null_high": tally.null_high,
                        f"{name}_effect": tally.effect,
                        f"{name}_p": tally.p_value,
                    }
                rows.append(row | {"concepts": len(found.concepts), "samples": site.n_samples})
        return pandas.DataFrame(map(_readable, rows))

    def concepts_dataframe(self) -> "pandas.DataFrame":
        """One row for every site, null, measure and concept."""
        import pandas

        rows = [
            {"site": site.site, "null": found.null.name, "measure": found.measure}
            | dataclasses.asdict(concept)
            for site in self
            for found in site.comparisons
            for concept in found.concepts
        ]
        return pandas.DataFrame(map(_readable, rows))

    def _repr_html_(self) -> str:
        from basis_probe.show.concepts import fragment

        return fragment(self.site_dissections, self.notes)

    def __str__(self) -> str:
        return "\n".join(map(str, self))


def _readable(row: Mapping[str, object]) -> dict[str, object]:
    """A row of a table whose texts can be shown and written anywhere."""
    return {name: clean(entry) if isinstance(entry, str) else entry for name, entry in row.items()}
