"""What of a result is shown, and where: the leading score, the top axes, the places on the map."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np

from basis_probe.results.evidence import (
    BasisRanking,
    BasisRow,
    BasisStanding,
    OrderRecord,
    Routed,
    ScoreResult,
    Tail,
)
from basis_probe.results.examples import TopContexts
from basis_probe.results.report import Outcome, Report, SiteReport


def leading(site: SiteReport) -> ScoreResult | None:
    """The score that speaks for the site: of those that decide, the one least likely by chance.

    Where none decides, of all that have an effect; None where there is none.
    """
    known = [score for score in site.scores.values() if not math.isnan(score.effect)]
    candidates = [score for score in known if score.decides] or known
    return min(candidates, key=_chance, default=None)


@dataclasses.dataclass(frozen=True)
class Speaker:
    """What speaks for a site on a map or in a line of a table: a score, or an order that decides.

    Attributes:
        name: of the score, or of the order.
        effect: its distance from the null, in standard deviations of it.
        p_adjusted: over all tests of the report.
        is_order: True for an order.
        difference: from the mean of the null, in units of the score or of the order's statistic.
        difference_error: its standard error; NaN where it is not known, as for orders.
        effect_interval: 95 % interval of the effect; NaN where it is not known, as for orders.
    """

    name: str
    effect: float
    p_adjusted: float
    is_order: bool
    difference: float
    difference_error: float = math.nan
    effect_interval: tuple[float, ...] = (math.nan, math.nan)


def speaker(site: SiteReport) -> Speaker | None:
    """The order that adds most to the kurtosis of a sample, of those that stand out; else a score.

    Form is spoken for by its score.
    """
    first = site.verdict.orders[0] if site.verdict.orders else "form"
    for order in site.orders:
        if order.order == first != "form":
            return spoken(order)
    lead = leading(site)
    return None if lead is None else spoken(lead)


def spoken(found: ScoreResult | OrderRecord) -> Speaker:
    """A score or an order as what speaks for a site."""
    if isinstance(found, OrderRecord):
        apart = found.observed - found.null_mean
        return Speaker(found.order, found.effect, found.p_adjusted, True, apart)
    return Speaker(
        found.name,
        found.effect,
        found.p_adjusted,
        False,
        found.difference,
        found.difference_error,
        found.effect_interval,
    )


def _chance(score: ScoreResult) -> tuple[float, float, float]:
    departure = score.effect if score.tail is Tail.UPPER else abs(score.effect)
    return (
        math.inf if math.isnan(score.p_adjusted) else score.p_adjusted,
        math.inf if math.isnan(score.p_tail) else score.p_tail,
        -departure,
    )


def of_axes(site: SiteReport) -> ScoreResult | None:
    """The leading score, or the first that decides, of those that tell axes apart; None without."""
    known = [score for score in site.scores.values() if np.isfinite(score.per_direction).any()]
    lead = leading(site)
    if lead is not None and any(score is lead for score in known):
        return lead
    return next(iter(sorted(known, key=lambda score: not score.decides)), None)


def ranked(ranking: BasisRanking) -> tuple[BasisStanding, ...]:
    """The bases, the one that departs most from random rotations first, those without effect last.

    Each departs upwards or downwards, whichever its score says.
    """

    def key(standing: BasisStanding) -> tuple[bool, float]:
        unknown = math.isnan(standing.effect)
        return unknown, 0.0 if unknown else -abs(standing.effect)

    return tuple(sorted(ranking.standings, key=key))


@dataclasses.dataclass(frozen=True, eq=False)
class BasisLine:
    """One basis with all its scores.

    Attributes:
        basis, kind, directions, note: as of its rows.
        scores: name -> its row.
    """

    basis: str
    kind: str
    directions: int
    note: str
    scores: Mapping[str, BasisRow]


def basis_lines(ranking: BasisRanking) -> tuple[tuple[BasisLine, ...], tuple[str, ...]]:
    """A line for every basis and kind of its table, and the scores that any of them has."""
    found: dict[tuple[str, str], dict[str, BasisRow]] = {}
    for row in ranking.table:
        found.setdefault((row.basis, row.kind), {})[row.score] = row
    lines = [
        BasisLine(basis, kind, first.directions, first.note, scores)
        for (basis, kind), scores in found.items()
        for first in [next(iter(scores.values()))]
    ]
    return tuple(lines), tuple(dict.fromkeys(row.score for row in ranking.table))


def failed_certificates(report: Report) -> tuple[SiteReport, ...]:
    """The sites whose claimed symmetry did not hold on the model."""
    return tuple(
        site
        for site in report
        if site.symmetry.certificate is not None and not site.symmetry.certificate.holds
    )


def share_of_axes(site: SiteReport) -> float:
    """The share of axes that stand out by themselves; NaN where no score compares single axes."""
    score = of_axes(site)
    return math.nan if score is None else score.fraction_privileged


@dataclasses.dataclass(frozen=True)
class Axis:
    """One axis of a site, the score's value on it and its p-value."""

    index: int
    label: str
    value: float
    p_value: float


def top_axes(score: ScoreResult, shape: tuple[int, ...], most: int = 5) -> tuple[Axis, ...]:
    """The axes with the highest values, dead ones left out; empty for a score without any.

    Where departures count on both sides: the axes furthest from the middle one.
    """
    values = np.asarray(score.per_direction, dtype=np.float64)
    alive = np.flatnonzero(np.isfinite(values))
    if alive.size == 0:
        return ()
    height = values[alive]
    if score.tail is Tail.TWO_SIDED:
        height = np.abs(height - np.median(height))
    ordered = alive[np.argsort(-height, kind="stable")][:most]
    chances = np.asarray(score.per_direction_p, dtype=np.float64)
    return tuple(
        Axis(
            index=int(index),
            label=axis_label(int(index), shape),
            value=float(values[index]),
            p_value=float(chances[index]) if index < chances.size else math.nan,
        )
        for index in ordered
    )


def context(found: TopContexts | None) -> str:
    """The context that activates a direction most, as text; the token that does in brackets."""
    if found is None or not found.contexts:
        return ""
    top = found.contexts[0]
    parts = [f"[{token}]" if place == top.at else token for place, token in enumerate(top.tokens)]
    return "".join(parts).strip()


def axis_label(index: int, shape: tuple[int, ...]) -> str:
    """The number of an axis, within the feature axes where there are several.

    Example:
        >>> axis_label(5, (12,)), axis_label(5, (3, 4))
        ('5', '1, 1')
    """
    if len(shape) < 2:
        return str(index)
    return ", ".join(str(int(part)) for part in np.unravel_index(index, shape))


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the map: a kind of site, the pattern of its names, and a site per column."""

    kind: str
    pattern: str
    cells: tuple[int | None, ...]
    first_of_kind: bool


BAND = 34
"""So many columns of the map stand side by side; beyond that it goes on below."""


def any_orders(report: Report) -> bool:
    """True if axes are emergent by an order somewhere, so that a map explains its small letters."""
    return any(site.verdict.orders for site in report.site_reports)


@dataclasses.dataclass(frozen=True)
class Grid:
    """Layers x kinds; the cells are indices into the report's sites.

    Attributes:
        columns: the layer of every column, None for sites outside the layers: before the first
            layer where they come before all sites of layers, else behind the last.
        rows: grouped by kind, in forward order.
        by_layer: False where no site has a layer: then columns count sites in forward order.
    """

    columns: tuple[int | None, ...]
    rows: tuple[Row, ...]
    by_layer: bool

    @property
    def bands(self) -> tuple[range, ...]:
        """The columns that stand side by side, from the first to the last; bands of like width."""
        count = max(1, -(-len(self.columns) // BAND))
        width = max(1, -(-len(self.columns) // count))
        ends = range(0, max(1, len(self.columns)), width)
        return tuple(range(start, min(start + width, len(self.columns))) for start in ends)


class Placed(Protocol):
    """A site that has a place on a map."""

    @property
    def site(self) -> str:
        """Its name."""
        ...

    @property
    def kind(self) -> str:
        """What it is, in words."""
        ...

    @property
    def layer(self) -> int | None:
        """Index of its layer, or None."""
        ...


MOST_EXPERTS = 4
"""Of more experts beside each other a map shows the one that stands out most."""


def expert_of(site: Placed) -> Routed | None:
    """Which expert of a mixture a site is of."""
    return getattr(site, "routed", None)


def beside(site: Placed) -> tuple[str, int | None, str]:
    """What the experts of one block have in common."""
    return site.kind, site.layer, experts_pattern(site, site.site)


def experts_pattern(site: Placed, name: str) -> str:
    """The name of an expert's site, or a pattern of it, with the expert left open."""
    routed = expert_of(site)
    if routed is None:
        return name
    head, found, tail = name.rpartition(f".{routed.expert}.")
    if not found:
        head, found, tail = name.rpartition(f".{routed.expert}:")
    return f"{head}.*{found[-1]}{tail}" if found else name


def _spoken_for(report: Sequence[Placed]) -> set[int]:
    """The sites of experts that another expert of their block stands for on a map."""
    alike: dict[tuple[str, int | None, str], list[int]] = {}
    for index, site in enumerate(report):
        if expert_of(site) is not None:
            alike.setdefault(beside(site), []).append(index)
    hidden: set[int] = set()
    for several in alike.values():
        if len(several) > MOST_EXPERTS:
            first = max(several, key=lambda index: (_prominence(report[index]), -index))
            hidden.update(index for index in several if index != first)
    return hidden


def _prominence(site: Placed) -> tuple[int, float]:
    """How much a site stands out: beyond chance, not so, or not known; and by how much."""
    if not isinstance(site, SiteReport):
        return 0, 0.0
    lead = speaker(site)
    effect = 0.0 if lead is None or math.isnan(lead.effect) else abs(lead.effect)
    outcome = site.verdict.outcome
    if outcome in (Outcome.PRIVILEGED, Outcome.EMERGENT):
        return 2, effect
    return int(outcome is not Outcome.UNDECIDED), effect


def grid(placed: Iterable[Placed]) -> Grid:
    """The places of all sites on a map, every site exactly once.

    Of more than four experts beside each other the one that stands out most is there for all.
    """
    report = tuple(placed)
    hidden = _spoken_for(report)
    numbered = sorted({site.layer for site in report if site.layer is not None})
    by_layer = bool(numbered)
    layered = [index for index, site in enumerate(report) if site.layer is not None]
    # Embeddings stand before the layers, as they do in the model.
    first = {
        i for i, site in enumerate(report) if site.layer is None and layered and i < layered[0]
    }
    before = [None] if by_layer and first else []
    after = by_layer and any(
        site.layer is None and index not in first for index, site in enumerate(report)
    )
    # kind -> pattern -> lines of the map, each from column to site.
    kinds: dict[str, dict[str, list[dict[int, int]]]] = {}
    column_of = {layer: column + len(before) for column, layer in enumerate(numbered)}
    spoken = {beside(report[index]) for index in hidden}
    for index, site in enumerate(report):
        if index in hidden:
            continue
        pattern = pattern_of(site) if by_layer else ""
        kind = site.kind
        if expert_of(site) is not None and beside(site) in spoken:
            pattern = experts_pattern(site, pattern)
            kind = "experts: of all the one furthest out"
        lines = kinds.setdefault(kind, {}).setdefault(pattern, [{}])
        if not by_layer:
            lines[0][len(lines[0])] = index
            continue
        column = 0 if index in first else len(before) + len(numbered)
        if site.layer is not None:
            column = column_of[site.layer]
        free = next((line for line in lines if column not in line), None)
        if free is None:
            free = {}
            lines.append(free)
        free[column] = index
    drawn = [
        (kind, pattern, line)
        for kind, patterns in kinds.items()
        for pattern, lines in patterns.items()
        for line in lines
    ]
    if by_layer:
        columns: tuple[int | None, ...] = (*before, *numbered, *([None] if after else []))
    else:
        columns = tuple(range(1, 1 + max((len(line) for _, _, line in drawn), default=0)))
    rows: list[Row] = []
    for kind, pattern, line in drawn:
        cells = tuple(line.get(column) for column in range(len(columns)))
        if len(line) == 1:
            only = report[next(iter(line.values()))]
            pattern = experts_pattern(only, only.site) if beside(only) in spoken else only.site
        first = not rows or rows[-1].kind != kind
        rows.append(Row(kind, pattern, cells, first))
    return Grid(columns, tuple(rows), by_layer)


def pattern_of(site: Placed) -> str:
    """The site's name with its layer left open; empty where the name does not say the layer."""
    if site.layer is None:
        return site.site
    opened, found = re.subn(rf"(?<!\d){site.layer}(?!\d)", "*", site.site, count=1)
    return opened if found else ""
