"""Results as a table for further computation: one row for every site and score."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from basis_probe.results.evidence import ScoreResult
from basis_probe.results.report import Report, SiteReport
from basis_probe.show import drawing, selection, words

if TYPE_CHECKING:
    import pandas

_DTYPES = {
    "site": "string",
    "kind": "string",
    "layer": "Int64",
    "shape": "string",
    "dim": "int64",
    "n_samples": "int64",
    "n_dead": "int64",
    "group": "string",
    "privileged": "string",
    "certified": "boolean",
    "outcome": "string",
    "orders": "string",
    "null": "string",
    "null_approximate": "boolean",
    "null_geometry": "string",
    "null_frames": "Int64",
    "null_samples": "Int64",
    "null_distinct": "Int64",
    "null_effective": "float64",
    "score": "string",
    "decides": "boolean",
    "tail": "string",
    "observed": "float64",
    "null_mean": "float64",
    "null_std": "float64",
    "effect": "float64",
    "effect_low": "float64",
    "effect_high": "float64",
    "leads": "boolean",
    "difference": "float64",
    "difference_error": "float64",
    "p_value": "float64",
    "p_tail": "float64",
    "p_tail_method": "string",
    "p_adjusted": "float64",
    "fraction_privileged": "float64",
    "effect_without_top_axes": "float64",
    "all_samples": "float64",
    "closed_form_mean": "float64",
    "closed_form_std": "float64",
    "raw_rotation_effect": "float64",
    "sentence": "string",
    "note": "string",
}


def dataframe(report: Report) -> pandas.DataFrame:
    """One row for every site and score; one for a site without scores, its score missing.

    The columns and their types are the same for every report, an empty one too. Texts are on one
    line, with unsafe characters spelled out, so that a row stays a line in a file.
    `leads` marks the score that speaks for its site, and `effect_low` to `effect_high` is the 95 %
    interval of the effect. `certified` is missing where nothing was tested; `null` names what the
    score was compared with; `raw_rotation_effect` is the effect of the same score under the raw
    rotation of the activations.
    """
    import pandas

    rows = [
        _row(site, score)
        for site in report.site_reports
        for score in (*site.scores.values(), *(() if site.scores else (None,)))
    ]
    return pandas.DataFrame(
        {
            column: pandas.Series([row.get(column) for row in rows], dtype=dtype)
            for column, dtype in _DTYPES.items()
        }
    )


def csv(frame: pandas.DataFrame) -> str:
    """The table as CSV in which no text is a formula: one that looks like one is led by a quote.

    Example:
        >>> import pandas
        >>> print(csv(pandas.DataFrame({"site": ["=1+1", "mlp"], "effect": [-1.5, 2.0]})))
        site,effect
        '=1+1,-1.5
        mlp,2.0
        <BLANKLINE>
    """

    def led(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        # Wide forms of the signs count for some spreadsheets, and blanks in front for none.
        first = unicodedata.normalize("NFKC", value).lstrip()[:1]
        return f"'{value}" if first and first in "=+-@" else value

    texts = [name for name in frame.columns if frame[name].dtype in ("string", object)]
    return frame.assign(**{name: frame[name].map(led) for name in texts}).to_csv(index=False)


_SUMMARY = {
    "kind": "string",
    "layer": "Int64",
    "outcome": "string",
    "privileged": "string",
    "score": "string",
    "effect": "float64",
    "effect_low": "float64",
    "effect_high": "float64",
    "difference": "float64",
    "difference_error": "float64",
    "p_adjusted": "float64",
    "fraction_privileged": "float64",
    "n_samples": "int64",
}


def summary(report: Report) -> pandas.DataFrame:
    """One row for every site, under its name: the outcome and what speaks for it."""
    import pandas

    rows: list[dict[str, Any]] = []
    for site in report:
        lead = selection.leading(site)
        row = _row(site, lead)
        speaker = selection.speaker(site)
        if speaker is not None and speaker.is_order:
            low, high = speaker.effect_interval
            row |= {
                "score": speaker.name,
                "effect": speaker.effect,
                "effect_low": low,
                "effect_high": high,
                "difference": speaker.difference,
                "difference_error": speaker.difference_error,
                "p_adjusted": speaker.p_adjusted,
            }
        rows.append({column: row.get(column) for column in _SUMMARY})
    frame = pandas.DataFrame(rows, columns=[*_SUMMARY]).astype(_SUMMARY)
    return frame.set_axis(pandas.Index([words.clean(site.site) for site in report], name="site"))


def experts(report: Report) -> pandas.DataFrame:
    """One row for every expert of every mixture; the columns are those of `Report.experts`."""
    import pandas

    rows: list[dict[str, Any]] = []
    for site in report:
        if site.routed is None:
            continue
        lead = selection.speaker(site)
        given = site.routed.given
        rows.append(
            {
                "site": words.clean(site.site),
                "layer": site.layer,
                "expert": site.routed.expert,
                "n_samples": site.n_samples,
                "share": site.n_samples / given if given else math.nan,
                "outcome": site.verdict.outcome.name,
                "effect": math.nan if lead is None else lead.effect,
                "p_adjusted": math.nan if lead is None else lead.p_adjusted,
            }
        )
    kinds = {
        "site": "object", "layer": "Int64", "expert": "int64", "n_samples": "int64",
        "share": "float64", "outcome": "object", "effect": "float64", "p_adjusted": "float64",
    }  # fmt: skip
    return pandas.DataFrame(rows, columns=[*kinds]).astype(kinds)


def axes(site: SiteReport) -> pandas.DataFrame:
    """One row for every axis of a site, under its number.

    The columns are those of `SiteReport.axes`; without a score that tells axes apart, `value` and
    `p_value` are missing.
    """
    import pandas

    score = selection.of_axes(site)
    count = site.dim if score is None else score.per_direction.size
    missing = np.full(count, math.nan)
    stands = np.zeros(count, dtype=bool)
    chosen = None if score is None else drawing.standing_axes(score)
    if chosen is not None:
        stands[chosen] = True
    tops = {} if site.examples is None else {top.axis: top for top in site.examples.axes}
    contexts = [selection.context(tops.get(axis)) for axis in range(count)]
    known = score is not None and score.per_direction_p.size == count
    return pandas.DataFrame(
        {
            "label": [selection.axis_label(axis, site.shape) for axis in range(count)],
            "score": "" if score is None else score.name,
            "value": missing if score is None else score.per_direction,
            "p_value": score.per_direction_p if known and score is not None else missing,
            "stands_out": stands,
            "context": contexts,
        },
        index=pandas.RangeIndex(count, name="axis"),
    )


def neurons(sites: Iterable[SiteReport]) -> pandas.DataFrame:
    """One row for every axis of the sites that stands out by itself, the smallest p first.

    Sites stay in forward order.
    """
    import pandas

    frames: list[pandas.DataFrame] = []
    for site in sites:
        frame = axes(site).query("stands_out").drop(columns="stands_out").reset_index()
        frame.insert(0, "site", words.clean(site.site))
        frame.insert(1, "layer", pandas.array([site.layer] * len(frame), dtype="Int64"))
        frames.append(
            frame.sort_values(["p_value", "value"], ascending=[True, False], kind="stable")
        )
    if not frames:
        columns = ["site", "layer", "axis", "label", "score", "value", "p_value", "context"]
        return pandas.DataFrame(columns=columns)
    return pandas.concat(frames, ignore_index=True)


def _row(site: SiteReport, score: ScoreResult | None) -> dict[str, Any]:
    """The cells of one row; what is left out is missing."""
    proof = site.symmetry.certificate
    row: dict[str, Any] = {
        "site": words.clean(site.site),
        "kind": words.clean(site.kind),
        "layer": site.layer,
        "shape": "x".join(map(str, site.shape)),
        "dim": site.dim,
        "n_samples": site.n_samples,
        "n_dead": site.n_dead,
        "group": words.clean(site.symmetry.group.name),
        "privileged": site.symmetry.privileged.name,
        "certified": None if proof is None else proof.holds,
        "outcome": site.verdict.outcome.name,
        "orders": " ".join(site.verdict.orders),
        "sentence": words.clean(site.verdict.sentence),
        "note": words.clean(" ".join(site.notes)),
    }
    if site.null is not None:
        row |= {
            "null": words.clean(site.null.name),
            "null_approximate": site.null.approximate,
            "null_geometry": words.clean(site.null.geometry),
            "null_frames": site.null.frames,
            "null_samples": site.null.samples,
            "null_distinct": site.null.distinct or None,
            "null_effective": site.null.effective or None,
        }
    if score is None:
        return row
    closed, raw = score.closed_form, site.beside.get(score.name)
    return row | {
        "score": words.clean(score.name),
        "null": words.clean(score.null),
        "decides": score.decides,
        "tail": score.tail.name,
        "observed": score.observed,
        "null_mean": score.null_mean,
        "null_std": score.null_std,
        "effect": score.effect,
        "effect_low": score.effect_interval[0],
        "effect_high": score.effect_interval[1],
        "leads": score is selection.leading(site),
        "difference": score.difference,
        "difference_error": score.difference_error,
        "p_value": score.p_value,
        "p_tail": score.p_tail,
        "p_tail_method": words.clean(score.p_tail_method),
        "p_adjusted": score.p_adjusted,
        "fraction_privileged": score.fraction_privileged,
        "effect_without_top_axes": score.effect_without_top_axes,
        "all_samples": score.all_samples,
        "closed_form_mean": math.nan if closed is None else closed.mean,
        "closed_form_std": math.nan if closed is None or closed.std is None else closed.std,
        "raw_rotation_effect": math.nan if raw is None else raw.effect,
        "note": words.clean(" ".join((*site.notes, *([score.note] if score.note else [])))),
    }
