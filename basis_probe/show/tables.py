"""Results as a table for further computation: one row for every site and score."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from basis_probe.results.evidence import ScoreResult
from basis_probe.results.report import Report, SiteReport
from basis_probe.show import words

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
    "null": "string",
    "null_approximate": "boolean",
    "null_geometry": "string",
    "null_frames": "Int64",
    "null_samples": "Int64",
    "score": "string",
    "decides": "boolean",
    "tail": "string",
    "observed": "float64",
    "null_mean": "float64",
    "null_std": "float64",
    "effect": "float64",
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
    `certified` is missing where nothing was tested; `null` names what the score was compared with;
    `raw_rotation_effect` is the effect of the same score under the raw rotation of the activations.
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
