"""What a probe found: frozen values, and their exact text form.

Everything a figure, a table or a sentence shows is read from here, so that any of them can be drawn
again from a saved file.
"""

import collections
import dataclasses
import enum
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from basis_probe.arguments import path as named
from basis_probe.brief import brief
from basis_probe.errors import clean, nearest
from basis_probe.results.aliases import of_bridge
from basis_probe.results.codec import Damaged
from basis_probe.results.envelope import read, text_of, written
from basis_probe.results.evidence import (
    BasisRanking,
    FewAxes,
    FormBound,
    KurtosisSplit,
    NullRecord,
    OrderRecord,
    OutlierAxes,
    PathRecord,
    Routed,
    ScoreResult,
)
from basis_probe.results.examples import Examples
from basis_probe.results.symmetry import Symmetry

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Outcome(enum.Enum):
    """What follows from the architecture and the data together; the value is the advice."""

    PRIVILEGED = "the architecture fixes the axes and the data stand out on them: read neurons"
    UNUSED = (
        "the architecture fixes the axes but the data do not stand out on them: "
        "look for a dictionary"
    )
    EMERGENT = (
        "the architecture does not fix the axes, yet the data stand out on them: "
        "training, or an initialisation with axes, broke the symmetry"
    )
    ARBITRARY = (
        "the architecture does not fix the axes and the data do not stand out on them: "
        "do not read coordinates"
    )
    UNDECIDED = "no finding, for the reason given"


@brief
@dataclasses.dataclass(frozen=True)
class Verdict:
    """The finding at one site, and a sentence that can be quoted.

    Attributes:
        outcome: the finding.
        sentence: what was found and what follows, to quote.
        orders: in which orders the axes stand out, "offset", "scale" or "form", the one that adds
            most to the kurtosis of a sample first; empty where the orders are not asked.
        advice: what follows, the last part of the sentence.
        bound: how far the axes could stand out in form all the same; None where they do, or where
            it is not known.
    """

    outcome: Outcome
    sentence: str
    orders: tuple[str, ...] = ()
    advice: str = ""
    bound: FormBound | None = None


@brief
@dataclasses.dataclass(frozen=True)
class SiteReport:
    """Everything found at one site.

    Attributes:
        site: its name.
        kind: what it is, in words: "residual stream", "neurons behind silu", "attention values" ...
        layer: index of its layer, or None.
        shape: the feature axes, e.g. (heads, d_head); their product is `dim`.
        dim: number of axes.
        n_samples: number of samples (tokens, pixels, rows) that were streamed.
        n_dead: number of axes that never varied; they are left out of every score.
        symmetry: the architecture's answer.
        null: what the axes were compared with; None if nothing could be compared.
        scores: name -> result.
        beside: the same scores under the raw rotation of the activations, which people ask for:
            behind a nonlinearity it misleads, and where axes of outlying variance reach into every
            turned one it hides form. No verdict rests on it, and nothing is said of single axes;
            empty where it is what decides.
        verdict: what follows.
        notes: anything that a reader must know.
        orders: offset, scale and form, which decide together where the group holds rotations; empty
            where the group changes them at will.
        bases: other bases of the same space beside the axes; None where none were asked for.
        path: the deciding score on the way to turned bases; None where it was not asked for.
        few: whether a few axes stand out, however the mean over all fares; None where the largest
            ones were not compared.
        per_sample: the kurtosis of a sample across axes split into the orders; None where the
            orders are not asked.
        outliers: the axes of outlying variance; None where there are none.
        examples: what activates the axes that stand out most, and as many rotated directions; None
            where that was not asked for.
        routed: which expert of a mixture it is of; None elsewhere.
    """

    site: str
    kind: str
    layer: int | None
    shape: tuple[int, ...]
    dim: int
    n_samples: int
    n_dead: int
    symmetry: Symmetry
    null: NullRecord | None
    scores: Mapping[str, ScoreResult]
    beside: Mapping[str, ScoreResult]
    verdict: Verdict
    notes: tuple[str, ...] = ()
    orders: tuple[OrderRecord, ...] = ()
    bases: BasisRanking | None = None
    path: PathRecord | None = None
    examples: Examples | None = None
    few: FewAxes | None = None
    per_sample: KurtosisSplit | None = None
    outliers: OutlierAxes | None = None
    routed: Routed | None = None

    @property
    def axes(self) -> "pandas.DataFrame":
        """One row for every axis, under its number, as a pandas DataFrame.

        `label` is the number within the feature axes, such as "head, axis"; `value` and `p_value`
        are those of `score`, the leading one of the scores that tell axes apart; `stands_out` is
        True for axes that remain at a false discovery rate of 5 %; `context` is the example that
        activates the axis most, where the report holds it.

        Example:
            >>> import basis_probe as bp
            >>> x = torch.randn(400, 3, generator=torch.Generator().manual_seed(0)) ** 3
            >>> bp.probe_activations(x).axes["stands_out"].shape
            (3,)
        """
        from basis_probe.show.tables import axes

        return axes(self)

    def top_axes(self, most: int = 10) -> tuple[int, ...]:
        """The numbers of at most `most` axes, those that stand out most by the score of `axes`.

        The first stands out most.
        """
        from basis_probe.show.selection import of_axes, top_axes

        score = of_axes(self)
        found = () if score is None else top_axes(score, self.shape, most)
        return tuple(axis.index for axis in found)

    def plot(
        self,
        kind: str = "null",
        *,
        score: str | None = None,
        ax: "Axes | None" = None,
        figsize: tuple[float, float] | str | None = None,
    ) -> "Figure":
        """A figure of one score.

        Args:
            kind: "null" for its value against its null, "axes" for its value on every axis.
            score: its name; None for the one that speaks for the site.
            ax: matplotlib axes to draw on; None for a figure of its own.
            figsize: of a figure of its own, as for `Report.plot`.

        Raises:
            ValueError: for any other kind, or a score that the site does not have.
        """
        from basis_probe.show.plots import of_site

        return of_site(self, kind, score, ax, figsize)

    def _brief(self) -> Mapping[str, object]:
        return {
            "site": self.site,
            "kind": self.kind,
            "dim": self.dim,
            "n_samples": self.n_samples,
            "group": self.symmetry.group.name,
            "outcome": self.verdict.outcome,
            "scores": tuple(self.scores),
            "notes": self.notes,
        }

    def _repr_html_(self) -> str:
        from basis_probe.show.html import site_fragment

        return site_fragment(self)

    def __str__(self) -> str:
        return clean(f"{self.site}: {self.verdict.outcome.name}. {self.verdict.sentence}")


@brief
@dataclasses.dataclass(frozen=True)
class Provenance:
    """What determined the numbers of a report.

    Attributes:
        model: its class, name and size.
        data: what was seen, in words.
        seed: of every random choice.
        n_batches, n_examples: how much was seen.
        versions: package -> version.
        device, dtype: where the model ran, and in which precision.
        level: at which verdicts are given.
        settings: what was asked for, in words.
        model_digest: a number of the weights that other weights do not share by accident; empty
            where it was not computed, as for models of more than 150 million parameters.
        data_digest: the same of the batches in their order; empty where it is not known.
    """

    model: str
    data: str
    seed: int
    n_batches: int
    n_examples: int
    versions: Mapping[str, str]
    device: str
    dtype: str
    level: float
    settings: Mapping[str, str]
    model_digest: str = ""
    data_digest: str = ""


@brief
@dataclasses.dataclass(frozen=True)
class Report:
    """A verdict for every site of a model, with the evidence and how it was computed.

    Attributes:
        site_reports: one per site, in forward order.
        provenance: what determined the numbers.
        partial: True if the data stream was interrupted; the numbers cover what was seen.
        notes: what a reader must know about the run as a whole.
    """

    site_reports: tuple[SiteReport, ...]
    provenance: Provenance
    partial: bool = False
    notes: tuple[str, ...] = ()

    @property
    def sites(self) -> tuple[str, ...]:
        """The names of the sites, in forward order."""
        return tuple(site.site for site in self.site_reports)

    def __getitem__(self, site: str) -> SiteReport:
        for report in self.site_reports:
            if report.site == site:
                return report

        if not isinstance(site, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(
                f"a site is asked for by its name, got {type(site).__name__}: a loop over a report "
                "gives its sites themselves, and report.sites their names"
            )
        like = of_bridge(site, self.sites)
        if len(like) == 1:
            return self[like[0]]
        near = nearest(site, self.sites)
        raise KeyError(
            f"the report has no site {site!r}; nearest: {near or 'none'}. "
            "report.sites lists them all."
        )

    def __iter__(self) -> Iterator[SiteReport]:
        return iter(self.site_reports)

    def __len__(self) -> int:
        return len(self.site_reports)

    def to_json(self) -> str:
        """A text from which `Report.from_json` makes an equal report, every number exact."""
        return written("report", self, key="basis_probe")

    @classmethod
    def from_json(cls, text: str) -> "Report":
        """The report that `to_json` wrote.

        Raises:
            ValueError: if the text is no such report, or of another format version; it names the
                field that is damaged.
        """
        found = read("report", Report, text, key="basis_probe")
        try:
            for number, site in enumerate(found.site_reports):
                _require_sound(site, "site_reports", str(number))
            if len(set(found.sites)) < len(found.sites):
                raise Damaged("two sites have one name", "site_reports")
            run = found.provenance
            if not 0 < run.level < 1:
                raise Damaged(f"{run.level} is no level", "provenance", "level")
            if (
                not 0
                <= min(run.n_batches, run.n_examples)
                <= max(run.n_batches, run.n_examples)
                < _MOST
            ):
                raise Damaged("counts are not negative", "provenance", "n_batches")
        except Damaged as error:
            raise ValueError(f"not a basis_probe report: damaged at {error}") from error
        return found

    @classmethod
    def load(cls, path: str | pathlib.Path) -> "Report":
        """The report that `save` wrote as .json, equal to the one that was saved.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is no such report, or of another format version.
        """
        return cls.from_json(text_of(path, "report"))

    def to_dataframe(self) -> "pandas.DataFrame":
        """One row for every site and score, as a pandas DataFrame."""
        from basis_probe.show.tables import dataframe

        return dataframe(self)

    def summary(self) -> "pandas.DataFrame":
        """One row for every site, under its name, as a pandas DataFrame.

        Its outcome, and of what speaks for it, as on the map, the effect with its 95 % interval,
        the difference from the alternatives in its own units with its standard error, and p. That
        is a score, or "offset" or "scale" where axes stand out by these; of them no interval is
        known.
        """
        from basis_probe.show.tables import summary

        return summary(self)

    def experts(self) -> "pandas.DataFrame":
        """One row for every probed expert of a mixture of experts, as a pandas DataFrame.

        `site`, `layer`, the number of the `expert` among those of its block, `n_samples` that
        reached it, their `share` of the samples that were given out (they sum to the number of
        experts that each sample is given to; NaN where it is not known), and the `outcome`,
        `effect` and `p_adjusted` of what speaks for it. Empty for models without such experts.
        """
        from basis_probe.show.tables import experts

        return experts(self)

    def neurons(self, *outcomes: Outcome) -> "pandas.DataFrame":
        """One row for every axis that stands out by itself, as a pandas DataFrame.

        Sites in forward order, within each the smallest p first. "By itself" is at a false
        discovery rate of 5 % within the site, against single directions of its null.

        Args:
            outcomes: of the sites to list; none for `Outcome.PRIVILEGED`, whose axes are neurons
                that may be read.

        Example:
            >>> from basis_probe.results import Provenance
            >>> run = Provenance("m", "d", 0, 1, 1, {}, "cpu", "float32", 0.05, {})
            >>> len(Report((), run).neurons())
            0
        """
        from basis_probe.show.tables import neurons

        wanted = outcomes or (Outcome.PRIVILEGED,)
        return neurons([site for site in self if site.verdict.outcome in wanted])

    def save(self, path: str | pathlib.Path) -> pathlib.Path:
        """The path of the file written, whose ending chooses the form.

        Args:
            path: ending in .html, .json, .csv, .md or .tex, or, for a figure, in .pdf, .svg or
                .png.

        Raises:
            ValueError: for any other ending.
        """
        from basis_probe.show.files import save_report

        return save_report(self, pathlib.Path(named("path", path)))

    def plot(
        self,
        kind: str = "overview",
        *,
        ax: "Axes | None" = None,
        figsize: tuple[float, float] | str | None = None,
    ) -> "Figure":
        """A figure: a map of layers x sites, and every site's observed value against its null.

        Args:
            kind: "overview" for both, "map" or "nulls" for one of them; "kurtosis" for the
                kurtosis of a sample across axes and what each order adds to it, a bar a site.
            ax: matplotlib axes to draw a single one on; None for a figure of its own.
            figsize: of a single one, (width, height) in inches, or "column" or "page" for the width
                of one column or of both columns of a printed page.

        Raises:
            ValueError: for any other kind, axes or a size for the overview, or a report without
                the kurtosis of samples.
        """
        from basis_probe.show.plots import of_report

        return of_report(self, kind, ax, figsize)

    def _brief(self) -> Mapping[str, object]:
        reached = collections.Counter(site.verdict.outcome for site in self)
        counts = {outcome.name.lower(): reached[outcome] for outcome in Outcome if reached[outcome]}
        shown: dict[str, object] = {"model": self.provenance.model, "sites": len(self), **counts}
        return shown | ({"partial": True} if self.partial else {}) | {"notes": self.notes}

    def _repr_html_(self) -> str:
        from basis_probe.show.html import fragment

        return fragment(self)

    def __str__(self) -> str:
        from basis_probe.show.markdown import summary

        return summary(self)


_MOST = 2**63
"""What a table can hold of a count."""


def _require_sound(site: SiteReport, *path: str) -> None:
    """Raises Damaged where the parts of a site do not fit each other."""

    def require(holds: bool, name: str, why: str) -> None:
        if not holds:
            raise Damaged(why, *path, *name.split("."))

    dim = site.dim
    sized = 0 < len(site.shape) < 9 and min(site.shape) > 0
    require(sized and math.prod(site.shape) == dim < 2**31, "shape", f"no shape of {dim} axes")
    require(0 <= site.n_samples < _MOST, "n_samples", f"{site.n_samples} is no count")
    require(0 <= site.n_dead <= dim, "n_dead", f"{site.n_dead} of {dim} axes")
    require(site.layer is None or 0 <= site.layer < 10**6, "layer", f"{site.layer} is no layer")
    if site.null is not None:
        for name in ("frames", "samples", "directions", "examples", "distinct"):
            count = getattr(site.null, name)
            require(0 <= count < _MOST, f"null.{name}", f"{count} is no count")
    for where, scores in (("scores", site.scores), ("beside", site.beside)):
        for name, score in scores.items():
            here = f"{where}.{name}"
            require(score.name == name, f"{here}.name", "it is another than that of the entry")
            require(len(score.effect_interval) == 2, f"{here}.effect_interval", "needs two ends")
            drawn = score.null_values
            require(drawn.ndim == 1, f"{here}.null_values", "it is no list of numbers")
            known = drawn[np.isfinite(drawn)]
            spans = not known.size or math.isfinite(float(known.max()) - float(known.min()))
            require(spans, f"{here}.null_values", "numbers as far apart as these have no span")
            for field in ("per_direction", "per_direction_p"):
                values = getattr(score, field)
                require(values.ndim == 1, f"{here}.{field}", "it is no list of numbers")
                fits = values.size <= dim
                require(fits, f"{here}.{field}", f"{values.size} numbers for {dim} axes")
    for field in ("few", "outliers"):
        axes = getattr(getattr(site, field), "axes", ())
        require(all(0 <= axis < dim for axis in axes), f"{field}.axes", f"axes are 0 to {dim - 1}")
    left = () if site.outliers is None else site.outliers.orders
    for number, order in enumerate((*site.orders, *left)):
        fits = all(0 <= axis < dim for axis in order.leading)
        require(fits, f"orders.{number}.leading", f"axes are 0 to {dim - 1}")
