"""The numbers behind the figures of a page, small enough to travel in it."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping

import numpy as np

from basis_probe.results.evidence import ScoreResult
from basis_probe.results.report import Report, SiteReport
from basis_probe.show import words

MOST = 2_000_000
"""At most so many characters are spent on single axes; beyond that they are in the saved JSON."""

MOST_FRAMES = 1_500_000
"""The same for the values of the nulls."""


def numbers(report: Report, room: int = MOST + MOST_FRAMES) -> str:
    """JSON: for every site its name and, for every score, what is drawn of it.

    Arrays are float32, little-endian, in base64. Values of single axes, and of nulls, are left out
    of a page that would become too large to send around.

    Args:
        report: what is shown.
        room: characters that the page has left.
    """
    axes = sum(
        2 * len(_packed(np.zeros(score.per_direction.size)))
        for site in report
        for score in site.scores.values()
    )
    frames = sum(
        len(_packed(score.null_values)) for site in report for score in site.scores.values()
    )
    with_frames = frames <= min(MOST_FRAMES, room)
    with_axes = axes <= min(MOST, room - frames * with_frames)
    kept = {"with_axes": with_axes, "with_frames": with_frames}
    return json.dumps([_site(site, **kept) for site in report], separators=(",", ":"))


def _site(site: SiteReport, *, with_axes: bool, with_frames: bool) -> Mapping[str, object]:
    held: dict[str, object] = {
        "site": words.clean(site.site),
        "scores": {
            words.clean(name): _score(score, with_axes=with_axes, with_frames=with_frames)
            for name, score in site.scores.items()
        },
    }
    if site.path is not None:
        held["path"] = {
            "powers": _packed(np.array(site.path.powers)),
            "values": [_packed(values) for values in np.atleast_2d(site.path.values)],
        }
    return held


def _score(score: ScoreResult, *, with_axes: bool, with_frames: bool) -> Mapping[str, str]:
    drawn: dict[str, str] = {}
    if with_frames:
        drawn["frames"] = _packed(np.concatenate([[score.observed], score.null_values]))
    if with_axes and score.per_direction.size:
        drawn["axes"] = _packed(score.per_direction)
        drawn["p"] = _packed(score.per_direction_p)
    return drawn


def _packed(values: np.ndarray) -> str:
    with np.errstate(over="ignore"):
        return base64.b64encode(np.asarray(values).astype("<f4").tobytes()).decode("ascii")
