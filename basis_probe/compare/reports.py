"""Reports of several models, checkpoints or data, site by site."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from basis_probe.devices import on_own_device
from basis_probe.results.comparison import ReportComparison, SiteAcross, Standing
from basis_probe.results.evidence import ScoreResult
from basis_probe.results.report import Report, SiteReport
from basis_probe.show import selection


@on_own_device
def compare_reports(reports: Mapping[str, Report]) -> ReportComparison:
    """What the reports say of the same sites, and what changed from one to the next.

    Sites are the same where their names are; where no two reports share a name, as for models of
    different families, where their kind, their layer and their order within it are.

    Outcomes can always be compared. Numbers are compared by one score for every site, the one that
    decides and is least likely by chance in any report, or by the order (offset or scale) on which
    the outcome rests in one of them, and by its difference from the alternatives in units of the
    score: unlike the effect, that does not grow with the number of samples. They
    are not compared where the axes were held against different alternatives, and it is said why.

    Args:
        reports: name -> report, at least two, in the order of the story: checkpoints by step,
            models by size.

    Raises:
        ValueError: if there are fewer than two reports, or no two of them have a site in common.
        TypeError: if one of them is not a report.

    Example:
        >>> import basis_probe as bp
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> data = [torch.randn(300, 4, generator=torch.Generator().manual_seed(0))]
        >>> report = bp.probe(model, data, progress=False, certificates=False)
        >>> compared = bp.compare_reports({"before": report, "after": report})
        >>> compared.changed, compared["1"].change()
        ((), 0.0)
    """
    if not isinstance(reports, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f"reports is a {type(reports).__name__}: give a mapping of names to reports, such as "
            "{'step 100': one, 'step 200': other}"
        )
    for name, report in reports.items():
        if not isinstance(report, Report):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(
                f"{name!r} is a {type(report).__name__}, not a report: give what probe returns, or "
                "Report.load(path)"
            )
    if len(reports) < 2:
        raise ValueError(
            f"{len(reports)} reports were given, and at least 2 are compared: give a mapping such "
            "as {'step 100': one, 'step 200': other}"
        )
    found = [{site.site: site for site in report} for report in reports.values()]
    notes = [*_differences(reports)]
    if not _shared(found):
        found = [_by_place(report) for report in reports.values()]
        notes.insert(0, "The reports name sites differently: compared are sites by kind and layer.")
        if not _shared(found):
            kinds = "; ".join(
                f"{name}: {', '.join(dict.fromkeys(site.kind for site in report)) or 'none'}"
                for name, report in reports.items()
            )
            raise ValueError(
                "no two of the reports have a site in common, neither by name nor by kind and "
                f"layer; kinds of site: {kinds}"
            )
    keys = _merged([list(sites) for sites in found])
    rows = tuple(_row(key, [sites.get(key) for sites in found]) for key in keys)
    return ReportComparison(tuple(reports), rows, tuple(notes))


def _shared(found: Sequence[Mapping[str, SiteReport]]) -> bool:
    counts = Counter(name for sites in found for name in sites)
    return any(count > 1 for count in counts.values())


def _by_place(report: Report) -> dict[str, SiteReport]:
    """Kind, layer and order within the layer, in words -> site."""
    counts: Counter[str] = Counter()
    found: dict[str, SiteReport] = {}
    for site in report:
        place = site.kind if site.layer is None else f"{site.kind}, layer {site.layer}"
        counts[place] += 1
        found[place if counts[place] == 1 else f"{place} ({counts[place]})"] = site
    return found


def _merged(orders: Sequence[Sequence[str]]) -> list[str]:
    """All names; those that an order adds stand behind the one before them there."""
    found = list(orders[0])
    for order in orders[1:]:
        at = 0
        for name in order:
            if name in found:
                at = found.index(name) + 1
            else:
                found.insert(at, name)
                at += 1
    return found


def _row(name: str, sites: Sequence[SiteReport | None]) -> SiteAcross:
    there = [site for site in sites if site is not None]
    order = _order(there)
    score, apart = _score(there, order)
    standings = tuple(
        Standing(None) if site is None else _standing(site, score, order) for site in sites
    )
    return SiteAcross(name, there[0].kind, there[0].layer, score, standings, apart)


def _standing(site: SiteReport, name: str, order: str) -> Standing:
    known = (site.verdict.outcome, site.symmetry.privileged)
    if order:
        found = next(one for one in site.orders if one.order == order)
    elif name in site.scores:
        found = site.scores[name]
    else:
        return Standing(*known)
    said = selection.spoken(found)
    return Standing(
        *known,
        said.effect,
        said.effect_interval,
        said.difference,
        said.difference_error,
        said.p_adjusted,
        selection.share_of_axes(site) if order else site.scores[name].fraction_privileged,
    )


def _order(there: Sequence[SiteReport]) -> str:
    """The order (offset or scale) that speaks for the site in the first report in which one does.

    Empty where a score speaks everywhere, or the order is not known in all of the reports.
    """
    spoken = [said for site in there if (said := selection.speaker(site)) and said.is_order]
    for said in spoken:
        if all(any(one.order == said.name for one in site.orders) for site in there):
            return said.name
    return ""


def _score(there: Sequence[SiteReport], order: str) -> tuple[str, str]:
    """The score or the order to compare the site by, and why its numbers cannot be compared."""
    if len(there) < 2:
        alone = order or _likeliest(there[0].scores.values())
        return alone, "only one report has this site"
    common = set(there[0].scores)
    for site in there[1:]:
        common &= set(site.scores)
    candidates = [site.scores[name] for name in there[0].scores if name in common for site in there]
    name = order or _likeliest(candidates)
    if not name:
        return "", "no score was computed in all of the reports"
    drawn = {
        "no null" if site.null is None else f"{site.null.name} ({site.null.geometry} geometry)"
        for site in there
    }
    if len(drawn) > 1:
        return name, f"the axes were held against other alternatives: {', '.join(sorted(drawn))}"
    return name, ""


def _likeliest(scores: Iterable[ScoreResult]) -> str:
    """The name of the deciding score with the least p; of any score where none decides."""
    known = [score for score in scores if not math.isnan(score.effect)]
    deciding = [score for score in known if score.decides] or known
    if not deciding:
        return ""
    return min(
        deciding, key=lambda score: (_worst(score.p_adjusted), _worst(score.p_tail), -score.effect)
    ).name


def _worst(p: float) -> float:
    return math.inf if math.isnan(p) else p


def _differences(reports: Mapping[str, Report]) -> list[str]:
    """What differs between the runs, in sentences."""
    notes: list[str] = []
    runs = {name: report.provenance for name, report in reports.items()}
    batches = {run.data_digest for run in runs.values()}
    if len(batches) > 1 and "" not in batches and len({run.data for run in runs.values()}) == 1:
        notes.append("The data differ, or are batched otherwise, though they are alike in size.")
    weights = {run.model_digest for run in runs.values()}
    if len(weights) < len(runs) and "" not in weights:
        counts = Counter(run.model_digest for run in runs.values())
        alike = [name for name, run in runs.items() if counts[run.model_digest] > 1]
        notes.append(f"These are reports of the same weights: {', '.join(alike)}.")
    for what, of in (
        ("data", {name: run.data for name, run in runs.items()}),
        ("seeds", {name: str(run.seed) for name, run in runs.items()}),
        ("levels", {name: str(run.level) for name, run in runs.items()}),
    ):
        if len(set(of.values())) > 1:
            said = "; ".join(f"{name}: {value}" for name, value in of.items())
            notes.append(f"The {what} differ ({said}).")
    settings = {key for run in runs.values() for key in run.settings}
    # No number rests on examples.
    for key in sorted(settings - {"sites", "examples"}):
        values = {name: run.settings.get(key, "not said") for name, run in runs.items()}
        if len(set(values.values())) > 1:
            said = "; ".join(f"{name}: {value}" for name, value in values.items())
            notes.append(f"The setting {key} differs ({said}).")
    widths: dict[str, dict[str, int]] = {}
    for name, report in reports.items():
        for site in report:
            widths.setdefault(site.site, {})[name] = site.dim
    odd = {site: dims for site, dims in widths.items() if len(set(dims.values())) > 1}
    if odd:
        first, dims = next(iter(odd.items()))
        said = ", ".join(f"{dim} in {name}" for name, dim in dims.items())
        more = f", and at {len(odd) - 1} more" if len(odd) > 1 else ""
        notes.append(f"The models are of different widths at {first} ({said}){more}.")
    partial = [name for name, report in reports.items() if report.partial]
    if partial:
        notes.append(f"Partial, for their data were interrupted: {', '.join(partial)}.")
    return notes
