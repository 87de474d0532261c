"""What a probe found: frozen values, and their exact text form.

Everything a figure, a table or a sentence shows is read from here, so that any of them can be drawn
again from a saved file.
"""

import collections
import dataclasses
import enum
import json
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from basis_probe.algebra.groups import Group, Privileged
from basis_probe.brief import brief
from basis_probe.concepts.contexts import Examples
from basis_probe.records import Exact, decode, encode
from basis_probe.statistics.multiplicity import Tail as Tail

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMAT = 1
"""The version of the JSON form; a file with another one is refused."""


class Outcome(enum.Enum):
    """What follows from the architecture and the data together; the value is the advice."""

    PRIVILEGED = "the architecture fixes the axes and the data stand out on them: read neurons"
    UNUSED = (
        "the architecture fixes the axes but the data do not stand out on them: "
        "look for a dictionary"
    )
    EMERGENT = (
        "the architecture does not fix the axes, yet the data stand out on them: "
        "training broke the symmetry"
    )
    ARBITRARY = (
        "the architecture does not fix the axes and the data do not stand out on them: "
        "do not read coordinates"
    )
    UNDECIDED = "no finding, for the reason given"


@brief
@dataclasses.dataclass(frozen=True, eq=False)
class Certificate(Exact):
    """How far the outputs moved when elements of the claimed group acted, and others outside it.

    Attributes:
        holds: True if no element moved the outputs, or the site otherwise than it says, by more
            than the tolerance, and every stranger moved the outputs a thousand times further.
        max_error: by how much an element of the group moved an output at most, relative to the
            largest output.
        tolerance: by how much it may: 1e-9 in float64; 1e-4 for a model that returns less.
        violation: by how much the stranger that did least moved the outputs; NaN if none was tried.
        action_error: by how much the activations at the site missed what the element makes of them,
            relative to the largest.
        stranger: what that stranger was.
    """

    holds: bool
    max_error: float
    tolerance: float
    violation: float
    action_error: float = 0.0
    stranger: str = ""

    def _repr_html_(self) -> str:
        from basis_probe.presentation.html import certificate_fragment

        return certificate_fragment(self)


@brief
@dataclasses.dataclass(frozen=True)
class Symmetry:
    """The changes of basis at one site that the surrounding weights could absorb, and why.

    Attributes:
        group: the group, acting on the activations of the site itself.
        privileged: which directions it leaves meaningful.
        because: the reason, in one or two sentences, from what the modules were seen to compute.
        reference: where the statement is proved or published.
        certificate: the numerical proof on this very model, or None where none was made.
        unproved: why none was made, or what the one that failed had claimed.
    """

    group: Group
    privileged: Privileged
    because: str
    reference: str
    certificate: Certificate | None = None
    unproved: str = ""

    def _repr_html_(self) -> str:
        from basis_probe.presentation.html import symmetry_fragment

        return symmetry_fragment(self)


@brief
class Symmetries(dict[str, Symmetry]):
    """Site name -> symmetry, in forward order; shows itself as a table."""

    def to_dataframe(self) -> Any:
        """A `pandas.DataFrame` with one row per site: group, what it privileges, certificate, why.

        Example:
            >>> from basis_probe import Permutation, Symmetries, Symmetry
            >>> group = Permutation(3)
            >>> found = Symmetries(mlp=Symmetry(group, group.privileged, "GELU.", "algebra"))
            >>> found.to_dataframe().loc["mlp", "privileges"]
            'AXES'
        """
        from basis_probe.presentation.architecture import dataframe

        return dataframe(self)

    def _brief(self) -> Mapping[str, object]:
        kinds = collections.Counter(symmetry.privileged for symmetry in self.values())
        return {"sites": len(self)} | {kind.name.lower(): n for kind, n in kinds.items()}

    def _repr_html_(self) -> str:
        from basis_probe.presentation.architecture import html

        return html(self)

    def __str__(self) -> str:
        from basis_probe.presentation.architecture import text

        return text(self)


@brief
@dataclasses.dataclass(frozen=True)
class NullRecord:
    """Against what the axes of a site were compared.

    Attributes:
        name: "rotation", "counterfactual", ...
        frames: number of alternatives drawn.
        samples: number of samples on which the axes and the alternatives were compared.
        geometry: the geometry in which directions are turned: "euclidean", "standardised", ...
        holds_fixed: what an alternative shares with the observed layer, in words.
        because: why this null was chosen here.
        approximate: True where the null is not exact for untrained networks.
        directions: how many axes were compared, drawn at random where that is not all of them, and
            as many directions of every alternative; 0 in reports that do not say.
        examples: how many sequences or images the compared samples are of; 0 if that is not known.
    """

    name: str
    frames: int
    samples: int
    geometry: str
    holds_fixed: str
    because: str
    approximate: bool = False
    directions: int = 0
    examples: int = 0


@brief
@dataclasses.dataclass(frozen=True, eq=False)
class ClosedFormRecord(Exact):
    """The mean (and standard deviation, where known) that the null has without sampling."""

    mean: float
    std: float | None
    source: str
    exact: bool


@brief
@dataclasses.dataclass(frozen=True, eq=False)
class ScoreResult(Exact):
    """One score of one site against its null.

    Attributes:
        name: the score.
        observed: its value on the axes, on the samples that the null saw too.
        null_mean, null_std: over the frames of the null.
        effect: (observed - null_mean) / null_std.
        p_value: (1 + #{null at least as extreme}) / (frames + 1), exact where the frames are
            exchangeable with the axes.
        p_tail: the same where ten or more frames are as extreme, else from the named
            approximation `p_tail_method` of the null's tail.
        p_adjusted: `p_tail` after Holm over all deciding scores of all sites of the report; NaN for
            a score on which no verdict rests.
        tail: which departures count.
        decides: True if the verdict rests on it.
        null: the null's name.
        null_values: [frames], the score in every frame of the null.
        per_direction: [dim], its value on every axis; NaN where an axis is dead.
        per_direction_p: [dim], p of every axis against the null's directions.
        fraction_privileged: share of the axes that remain at a false discovery rate of 5 %.
        effect_without_top_axes: the effect when the three highest directions of every frame, the
            observed one included, are left out: whether a few axes carry the finding.
        all_samples: the value on the axes over every sample of the stream; NaN where not streamed.
        closed_form: the null without sampling, where a formula is known.
        note: what a reader must know, or an empty string.
        effect_interval: 95 % interval of the effect under resampling of whole sequences or images,
            by the jackknife; NaN where it is not known.
        difference: how far the mean over all axes lies from that of their alternatives, in units of
            the score; unlike the effect it does not grow with the number of axes that were
            compared. Where that was only some of them, what all alternatives score is estimated.
        difference_error: its standard error over other examples, other frames and, where only some
            of the axes were compared, other axes; NaN where one of these is not known.
    """

    name: str
    observed: float
    null_mean: float
    null_std: float
    effect: float
    p_value: float
    p_tail: float
    p_tail_method: str
    p_adjusted: float
    tail: Tail
    decides: bool
    null: str
    null_values: np.ndarray
    per_direction: np.ndarray
    per_direction_p: np.ndarray
    fraction_privileged: float
    effect_without_top_axes: float
    all_samples: float
    closed_form: ClosedFormRecord | None = None
    note: str = ""
    effect_interval: tuple[float, ...] = (math.nan, math.nan)
    difference: float = math.nan
    difference_error: float = math.nan


@brief
@dataclasses.dataclass(frozen=True, eq=False)
class BasisStanding(Exact):
    """How one basis of a site's space fared on samples that it was not fitted on.

    Attributes:
        name: what made it: "standard" (the axes), "pca", "ica" ...
        score: the score, averaged over its directions.
        effect: its distance from random rotations, in their standard deviations.
        ceiling: (score - random) / (best - random): 0 is random, 1 the best basis that was found;
            NaN where none stands out from random rotations.
        cosine: mean |cosine| between its directions and the axes, each paired with one other.
        directions: how many directions it has.
        note: what a reader must know of how it was found, or an empty string.
    """

    name: str
    score: float
    effect: float
    ceiling: float
    cosine: float
    directions: int
    note: str = ""


@brief
@dataclasses.dataclass(frozen=True, eq=False)
class BasisRanking(Exact):
    """Which basis, then? The axes and other bases of the same space, under one score.

    Attributes:
        score: the score.
        standings: the axes first, then the others in the order asked for.
        best: the name of the basis that departs most from random rotations.
        directions: its directions, one a row, [direction, dim], in the coordinates of `geometry`;
            empty where it is the axes themselves, or no basis stands out.
        geometry: of the rows that were compared: "euclidean", "standardised", "whitened" ...
        reads: what was compared: the activations, or the tensor before the nonlinearity.
        null_mean, null_std: of the score over random rotations, on the same held-out samples.
        frames: how many rotations.
        fitted_on, judged_on: numbers of samples.
    """

    score: str
    standings: tuple[BasisStanding, ...]
    best: str
    directions: np.ndarray
    geometry: str
    reads: str
    null_mean: float
    null_std: float
    frames: int
    fitted_on: int
    judged_on: int

    @property
    def axes(self) -> BasisStanding:
        """How the axes fared."""
        return self.standings[0]

    def __getitem__(self, name: str) -> BasisStanding:
        for standing in self.standings:
            if standing.name == name:
                return standing
        known = ", ".join(standing.name for standing in self.standings)
        raise KeyError(f"no basis is called {name!r} here; there are {known}")


@brief
@dataclasses.dataclass(frozen=True, eq=False)
class OrderRecord(Exact):
    """One of the three orders in which axes can be privileged, by itself.

    Attributes:
        order: "first" (offsets), "second" (variances and covariance), "higher" (form).
        statistic: what was computed, in words.
        observed: its value on the axes.
        null_mean, null_std: over random rotations.
        effect: (observed - null_mean) / null_std; NaN where it says nothing here.
        p_value: against random rotations; NaN where it says nothing here.
        sentence: what follows, to quote.
    """

    order: str
    statistic: str
    observed: float
    null_mean: float
    null_std: float
    effect: float
    p_value: float
    sentence: str


@brief
@dataclasses.dataclass(frozen=True, eq=False)
class PathRecord(Exact):
    """A score on the way from the axes to turned bases: along Q^a for a from 0 to 1.

    Attributes:
        score: the score.
        powers: the a, rising from 0 (the axes) to 1 (the turned basis).
        values: [turns, powers].
    """

    score: str
    powers: tuple[float, ...]
    values: np.ndarray


@brief
@dataclasses.dataclass(frozen=True)
class Verdict:
    """The finding at one site, and a sentence that can be quoted."""

    outcome: Outcome
    sentence: str


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
        beside: the same scores under the raw rotation of the activations, which people ask for and
            which misleads behind a nonlinearity; empty elsewhere.
        verdict: what follows.
        notes: anything that a reader must know.
        orders: offsets, variances and form apart; empty where the group changes them at will.
        bases: other bases of the same space beside the axes; None where none were asked for.
        path: the deciding score on the way to turned bases; None where it was not asked for.
        examples: what activates the axes that stand out most, and as many rotated directions; None
            where that was not asked for.
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

    def plot(
        self, kind: str = "null", *, score: str | None = None, ax: "Axes | None" = None
    ) -> "Figure":
        """A figure of one score.

        Args:
            kind: "null" for its value against its null, "axes" for its value on every axis.
            score: its name; None for the one that speaks for the site.
            ax: matplotlib axes to draw on; None for a figure of its own.

        Raises:
            ValueError: for any other kind, or a score that the site does not have.
        """
        from basis_probe.presentation.plots import of_site

        return of_site(self, kind, score, ax)

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
        from basis_probe.presentation.html import site_fragment

        return site_fragment(self)

    def __str__(self) -> str:
        return f"{self.site}: {self.verdict.outcome.name}. {self.verdict.sentence}"


@brief
@dataclasses.dataclass(frozen=True)
class Provenance:
    """What determined the numbers of a report."""

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
        import difflib

        near = difflib.get_close_matches(site, self.sites, n=3, cutoff=0.3)
        raise KeyError(
            f"the report has no site {site!r}; nearest: {', '.join(near) or 'none'}. "
            "report.sites lists them all."
        )

    def __iter__(self) -> Iterator[SiteReport]:
        return iter(self.site_reports)

    def __len__(self) -> int:
        return len(self.site_reports)

    def to_json(self) -> str:
        """A text from which `Report.from_json` makes an equal report, every number exact."""
        return json.dumps({"basis_probe": FORMAT, "report": encode(self)}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Report":
        """The report that `to_json` wrote.

        Raises:
            ValueError: if the text is no such report, or of another format version.
        """
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"not a basis_probe report: not JSON ({error})") from error
        if not isinstance(value, dict) or "basis_probe" not in value:
            raise ValueError("not a basis_probe report: the key 'basis_probe' is missing")
        if value["basis_probe"] != FORMAT:
            raise ValueError(
                f"the report has format {value['basis_probe']!r}, this version reads {FORMAT}; "
                "write it again with this version of basis_probe"
            )
        try:
            return decode(Report, value["report"])
        except (KeyError, TypeError, IndexError, AttributeError, ValueError, SyntaxError) as error:
            raise ValueError(f"not a basis_probe report: damaged at {error}") from error

    def to_dataframe(self) -> "pandas.DataFrame":
        """One row for every site and score, as a pandas DataFrame."""
        from basis_probe.presentation.tables import dataframe

        return dataframe(self)

    def save(self, path: str | pathlib.Path) -> pathlib.Path:
        """The path of the file written; its ending chooses .html, .json, .csv or .md.

        Raises:
            ValueError: for any other ending.
        """
        path = pathlib.Path(path)
        ending = path.suffix.lower()
        if ending == ".json":
            text = self.to_json()
        elif ending == ".csv":
            text = self.to_dataframe().to_csv(index=False)
        elif ending == ".md":
            from basis_probe.presentation.markdown import markdown

            text = markdown(self)
        elif ending in (".html", ".htm"):
            from basis_probe.presentation.html import page

            text = page(self)
        else:
            raise ValueError(
                f"cannot tell the format from {path.name!r}: give a name that ends in "
                ".html, .json, .csv or .md"
            )
        path.write_text(text, encoding="utf-8")
        return path

    def plot(self, kind: str = "overview", *, ax: "Axes | None" = None) -> "Figure":
        """A figure: a map of layers x sites, and every site's observed value against its null.

        Args:
            kind: "overview" for both, "map" or "nulls" for one of them.
            ax: matplotlib axes to draw a single one on; None for a figure of its own.

        Raises:
            ValueError: for any other kind, or axes for the overview.
        """
        from basis_probe.presentation.plots import of_report

        return of_report(self, kind, ax)

    def _brief(self) -> Mapping[str, object]:
        reached = collections.Counter(site.verdict.outcome for site in self)
        counts = {outcome.name.lower(): reached[outcome] for outcome in Outcome if reached[outcome]}
        shown: dict[str, object] = {"model": self.provenance.model, "sites": len(self), **counts}
        return shown | ({"partial": True} if self.partial else {}) | {"notes": self.notes}

    def _repr_html_(self) -> str:
        from basis_probe.presentation.html import fragment

        return fragment(self)

    def __str__(self) -> str:
        from basis_probe.presentation.markdown import summary

        return summary(self)
