"""Reports are values: equal or not, written and read without losing a bit."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fake_report import fake_report, hostile_report, with_nan, without_null

import basis_probe as bp
from basis_probe.results.envelope import FORMAT

pytestmark = [
    pytest.mark.usefixtures("as_shipped"),
    # Few frames of a cheap null, on sites where it misleads and says so.
    pytest.mark.filterwarnings("ignore::basis_probe.MisleadingNull"),
]


@pytest.fixture(scope="module")
def report() -> bp.Report:
    return _small()


def _small() -> bp.Report:
    """A few sites of an invented report, with short nulls."""
    report = fake_report()
    sites: list[bp.SiteReport] = []
    for site in (*report.site_reports[:2], report["blocks.3.mlp.hook_post"], without_null()):
        scores = {
            name: dataclasses.replace(
                score,
                null_values=score.null_values[:5],
                per_direction=score.per_direction[:7],
                per_direction_p=score.per_direction_p[:7],
            )
            for name, score in site.scores.items()
        }
        sites.append(dataclasses.replace(site, scores=scores, beside=scores))
    return dataclasses.replace(report, site_reports=tuple(sites))


def _with_site(report: bp.Report, **changes: Any) -> bp.Report:
    first, *others = report.site_reports
    return dataclasses.replace(
        report, site_reports=(dataclasses.replace(first, **changes), *others)
    )


def _with_score(report: bp.Report, **changes: Any) -> bp.Report:
    first = report.site_reports[0]
    name, score = next(iter(first.scores.items()))
    return _with_site(report, scores={**first.scores, name: dataclasses.replace(score, **changes)})


# --- reading a report -----------------------------------------------------------------------------


def test_a_report_is_read_by_site(report: bp.Report) -> None:
    assert len(report) == len(report.sites) == len(list(report))
    assert [site.site for site in report] == list(report.sites)
    assert report["blocks.3.mlp.hook_post"].layer == 3
    assert report[report.sites[0]] is report.site_reports[0]


def test_a_site_that_is_not_there_is_answered_with_the_nearest(report: bp.Report) -> None:
    with pytest.raises(KeyError) as caught:
        report["blocks.3.mlp.hook_pst"]
    message = caught.value.args[0]
    assert message.startswith("the report has no site 'blocks.3.mlp.hook_pst'; nearest: blocks.3.")
    assert "blocks.3.mlp.hook_post" in message
    assert message.endswith("report.sites lists them all.")
    with pytest.raises(KeyError, match="nearest: none"):
        report["@@@@"]
    with pytest.raises(TypeError, match=r"by its name, got SiteReport: .*report\.sites"):
        report[next(iter(report))]


# --- equality -------------------------------------------------------------------------------------

CHANGES: dict[str, Callable[[bp.Report], bp.Report]] = {
    "a note": lambda r: dataclasses.replace(r, notes=("other",)),
    "partial": lambda r: dataclasses.replace(r, partial=True),
    "the order of sites": lambda r: dataclasses.replace(r, site_reports=r.site_reports[::-1]),
    "the seed": lambda r: dataclasses.replace(
        r, provenance=dataclasses.replace(r.provenance, seed=1)
    ),
    "a group": lambda r: _with_site(
        r, symmetry=dataclasses.replace(r.site_reports[0].symmetry, group=bp.groups.Monomial(64))
    ),
    "the last bit of a number": lambda r: _with_score(
        r, observed=math.nextafter(next(iter(r.site_reports[0].scores.values())).observed, 9)
    ),
    "a NaN for a number": lambda r: _with_score(r, effect=math.nan),
    "an array": lambda r: _with_score(r, null_values=np.zeros(3)),
    "an outcome": lambda r: _with_site(r, verdict=bp.Verdict(bp.Outcome.UNUSED, "so")),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_reports_that_differ_anywhere_are_not_equal(report: bp.Report, change: str) -> None:
    other = CHANGES[change](report)
    assert other != report
    assert CHANGES[change](_small()) == other
    assert bp.Report.from_json(other.to_json()) == other


def test_equal_reports_are_equal_with_nan_inside() -> None:
    one, other = with_nan(), with_nan()
    assert one == other
    score = next(iter(one.scores.values()))
    assert math.isnan(score.effect)
    assert score == next(iter(other.scores.values()))
    assert hash(score) == hash(next(iter(other.scores.values())))
    assert score != "a score"
    assert bp.Certificate(True, math.nan, 1e-9, 0.1) == bp.Certificate(True, math.nan, 1e-9, 0.1)
    assert bp.Certificate(True, math.nan, 1e-9, 0.1) != bp.Certificate(True, 0.0, 1e-9, 0.1)


# --- the text form --------------------------------------------------------------------------------

NUMBERS = (
    0.0, -0.0, 1.0, 0.1, 1 / 3, math.pi, 5e-324, 2.2250738585072014e-308, 1.7976931348623157e308,
    -1e-300, math.nan, math.inf, -math.inf, 123456789012345.67,
)  # fmt: skip


@pytest.mark.parametrize("number", NUMBERS, ids=repr)
def test_every_number_survives(report: bp.Report, number: float) -> None:
    changed = _with_score(
        report,
        observed=number,
        null_values=np.array([number, 0.5]),
        per_direction=np.array([0.25, number]),
    )
    again = bp.Report.from_json(changed.to_json())
    score = next(iter(again.site_reports[0].scores.values()))
    for found in (score.observed, score.null_values[0], score.per_direction[1]):
        assert type(found) in (float, np.float64)
        assert np.float64(found).tobytes() == np.float64(number).tobytes() or (
            math.isnan(found) and math.isnan(number)
        )
    assert score.null_values.dtype == score.per_direction.dtype == np.float64
    assert again == changed


GROUPS: list[bp.groups.Group] = [
    bp.groups.GeneralLinear(4),
    bp.groups.Orthogonal(4),
    bp.groups.LineStabiliser(4),
    bp.groups.Permutation(4),
    bp.groups.SignedPermutation(4),
    bp.groups.PositiveMonomial(4),
    bp.groups.Monomial(4),
    bp.groups.Trivial(4),
    bp.groups.Unknown(4),
    bp.groups.Planes(4),
    bp.groups.Planes(4, pairing="half"),
    bp.groups.Planes(4, pairing="adjacent"),
    bp.groups.PlaneRotations(4, pairing="adjacent"),
    bp.groups.Blocks(bp.groups.GeneralLinear(2), count=2),
    bp.groups.Blocks(bp.groups.Planes(2, pairing="half"), count=1, copies=2),
    bp.groups.DirectSum(
        (bp.groups.Permutation(1), bp.groups.Blocks(bp.groups.Orthogonal(1), count=3))
    ),
]


@pytest.mark.parametrize("group", GROUPS, ids=repr)
def test_every_group_survives(report: bp.Report, group: bp.groups.Group) -> None:
    symmetry = bp.Symmetry(
        group, group.privileged, "because", "source", bp.Certificate(True, 1e-13, 1e-9, math.inf)
    )
    changed = _with_site(report, symmetry=symmetry)
    again = bp.Report.from_json(changed.to_json())
    assert again.site_reports[0].symmetry == symmetry
    assert again.site_reports[0].symmetry.group == group
    assert again == changed


@pytest.mark.parametrize("outcome", bp.Outcome)
def test_every_outcome_survives(report: bp.Report, outcome: bp.Outcome) -> None:
    changed = _with_site(report, verdict=bp.Verdict(outcome, "ünïcode \u2028 \ud800 \x00"))
    assert bp.Report.from_json(changed.to_json()) == changed


def test_reports_with_gaps_survive(report: bp.Report) -> None:
    for other in (
        dataclasses.replace(report, site_reports=(without_null(), with_nan())),
        dataclasses.replace(report, site_reports=()),
        dataclasses.replace(report, partial=True, notes=()),
        hostile_report(),
    ):
        text = other.to_json()
        again = bp.Report.from_json(text)
        assert again == other
        assert again.to_json() == text


def test_the_text_is_json_that_others_can_read(report: bp.Report) -> None:
    text = _with_score(report, effect=math.nan, observed=math.inf).to_json()

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    value = json.loads(text, parse_constant=refuse)
    assert value["basis_probe"] == FORMAT
    assert text.isascii()


def _damaged(change: Callable[[dict[str, Any]], object]) -> str:
    value = json.loads(_small().to_json())
    change(value["report"])
    return json.dumps(value)


def _set(*path: Any, to: Any) -> Callable[[dict[str, Any]], object]:
    def change(value: Any) -> None:
        for step in path[:-1]:
            value = value[step]
        value[path[-1]] = to

    return change


FIRST = ("site_reports", 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a basis_probe report: not JSON"),
        ("<html></html>", "not a basis_probe report: not JSON"),
        ('{"basis_probe": 1, "report": {', "not a basis_probe report: not JSON"),
        ("[1, 2]", "not a basis_probe report: the key 'basis_probe' is missing"),
        ("null", "the key 'basis_probe' is missing"),
        ('{"format": 1}', "the key 'basis_probe' is missing"),
        (
            '{"basis_probe": 0, "report": {}}',
            "the report has format 0, this version reads 1; write",
        ),
        ('{"basis_probe": 99, "report": {}}', "the report has format 99, this version reads 1"),
        ('{"basis_probe": "x", "report": {}}', "the report has format 'x'"),
        ('{"basis_probe": 1}', "damaged at 'report'"),
        ('{"basis_probe": 1, "report": 5}', "damaged"),
        ('{"basis_probe": 1, "report": {}}', "damaged at 'site_reports'"),
    ],
)
def test_foreign_older_and_cut_texts_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bp.Report.from_json(text)


@pytest.mark.parametrize(
    "change",
    [
        _set("site_reports", to=5),
        _set("site_reports", to=["x"]),
        _set("notes", to=None),
        _set("provenance", to={}),
        _set("provenance", "seeds", to=1),
        _set(*FIRST, "shape", to=3),
        _set(*FIRST, "scores", to=[1]),
        _set(*FIRST, "scores", to={"kurtosis": {}}),
        _set(*FIRST, "verdict", to={"outcome": "MAYBE", "sentence": ""}),
        _set(*FIRST, "null", to={"name": "rotation"}),
        _set(*FIRST, "symmetry", "privileged", to="AXIS"),
        _set(*FIRST, "symmetry", "group", to="Orthogonal(dim="),
        _set(*FIRST, "symmetry", "group", to="Orthogonal(dim=-1)"),
        _set(*FIRST, "symmetry", "group", to="Orthogonal(size=4)"),
        _set(*FIRST, "symmetry", "group", to="Octahedral(dim=4)"),
        _set(*FIRST, "symmetry", "group", to="Group(dim=4)"),
        _set(*FIRST, "symmetry", "group", to="7"),
        _set(*FIRST, "symmetry", "group", to=7),
        _set(*FIRST, "scores", "non_gaussianity", "observed", to="many"),
        _set(*FIRST, "scores", "non_gaussianity", "observed", to=None),
        _set(*FIRST, "scores", "non_gaussianity", "null_values", to=3),
        _set(*FIRST, "scores", "non_gaussianity", "tail", to="LOWER"),
    ],
)
def test_damaged_texts_are_refused(change: Callable[[dict[str, Any]], object]) -> None:
    with pytest.raises(ValueError, match="not a basis_probe report: damaged at "):
        bp.Report.from_json(_damaged(change))


def test_a_text_is_never_run(tmp_path: pathlib.Path) -> None:
    place = tmp_path / "written"
    for group in (
        f"__import__('pathlib').Path({str(place)!r}).touch()",
        f"Orthogonal(dim=__import__('pathlib').Path({str(place)!r}).touch())",
        f"[Orthogonal(4) for _ in [open({str(place)!r}, 'w')]]",
        "json(4)",
        "Orthogonal.__init__(4)",
    ):
        with pytest.raises(ValueError, match="damaged"):
            bp.Report.from_json(_damaged(_set(*FIRST, "symmetry", "group", to=group)))
    assert not place.exists()


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["json", "csv", "md", "html", "htm", "JSON", "Html"])
def test_the_ending_chooses_the_form(
    report: bp.Report, tmp_path: pathlib.Path, ending: str
) -> None:
    path = report.save(tmp_path / f"r.{ending}")
    assert path == tmp_path / f"r.{ending}"
    text = path.read_text(encoding="utf-8")
    signs = {"json": '{\n "basis_probe"', "csv": "site,", "md": "# ", "html": "<!DOCTYPE html>"}
    assert text.lower().startswith(signs.get(ending.lower()[:4], "<!doctype html>").lower())
    assert report.save(str(tmp_path / f"again.{ending}")).read_text(encoding="utf-8") == text


@pytest.mark.parametrize("name", ["r", "r.", "r.doc", "r.json.gz", "html"])
def test_other_endings_are_refused_and_nothing_is_written(
    report: bp.Report, tmp_path: pathlib.Path, name: str
) -> None:
    with pytest.raises(ValueError) as caught:
        report.save(tmp_path / name)
    assert f"cannot tell the format from {name!r}: give a name that ends in .html" in str(
        caught.value
    )
    assert list(tmp_path.iterdir()) == []


def test_a_real_report_survives_the_file(tmp_path: pathlib.Path) -> None:
    import torch

    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2))
    x = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
    report = bp.probe(
        model, [x], sites="*", null=bp.nulls.Rotation(frames=19, samples=64), progress=False
    )
    path = report.save(tmp_path / "r.json")
    assert bp.Report.from_json(path.read_text(encoding="utf-8")) == report
    table = report.to_dataframe()
    assert set(table["site"]) == set(report.sites)
    assert list(table["observed"]) == [s.observed for site in report for s in site.scores.values()]
