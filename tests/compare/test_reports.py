"""Reports side by side: what is the same site, what changed, what cannot be compared."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import re

import pytest
from fake_report import HOSTILE, by_scale, fake_report, hostile_report, provenance, wide_report

import basis_probe as bp
from basis_probe.compare.reports import compare_reports
from basis_probe.results import NullRecord, ReportComparison
from basis_probe.show import across


def _with(report: bp.Report, site: str, **scores: float) -> bp.Report:
    """The report with other numbers of the deciding scores at one site."""
    changed = report[site]
    made = {
        name: dataclasses.replace(score, **scores) if score.decides else score
        for name, score in changed.scores.items()
    }
    return _replaced(report, dataclasses.replace(changed, scores=made))


def _replaced(report: bp.Report, *sites: bp.SiteReport) -> bp.Report:
    names = {site.site: site for site in sites}
    return dataclasses.replace(
        report, site_reports=tuple(names.get(site.site, site) for site in report)
    )


def _outcome(report: bp.Report, site: str, outcome: bp.Outcome) -> bp.Report:
    verdict = bp.Verdict(outcome, "otherwise")
    return _replaced(report, dataclasses.replace(report[site], verdict=verdict))


NEURONS = "blocks.0.mlp.hook_post"


def test_equal_reports_differ_nowhere() -> None:
    compared = bp.compare_reports({"a": fake_report(), "b": fake_report()})
    assert compared.changed == () and compared.notes == ()
    assert [row.site for row in compared] == list(fake_report().sites)
    assert compared[NEURONS].change() == 0
    low, high = compared[NEURONS].change_interval()
    assert low == -high < 0
    assert "No outcome differs at the 32 sites in common." in str(compared)


def test_a_site_is_compared_by_the_order_on_which_its_outcome_rests() -> None:
    site = fake_report().site_reports[0]
    early = _replaced(fake_report(), by_scale(site, effect=1.0, outcome=bp.Outcome.ARBITRARY))
    late = _replaced(fake_report(), by_scale(site, effect=9.0))
    compared = bp.compare_reports({"early": early, "late": late})
    row = compared[site.site]
    assert row.changed and row.score == "scale"
    assert [one.effect for one in row.standings] == [1.0, 9.0]
    assert row.change() == pytest.approx(0.16)
    assert all(math.isnan(end) for end in row.change_interval())
    assert ReportComparison.from_json(compared.to_json()) == compared
    # A report that does not know the order is compared by what all of them know.
    without = bp.compare_reports({"early": fake_report(), "late": late})[site.site]
    assert without.score in site.scores


def test_a_saved_comparison_is_loaded_and_told_apart_from_a_report(tmp_path: pathlib.Path) -> None:
    compared = bp.compare_reports({"a": fake_report(), "b": fake_report()})
    path = compared.save(tmp_path / "c.json")
    assert ReportComparison.load(path) == compared
    report = fake_report().save(tmp_path / "r.json")
    with pytest.raises(ValueError, match=r"'basis_probe' is missing; it holds a comparison"):
        bp.Report.load(path)
    with pytest.raises(ValueError, match=r"'basis_probe_comparison' is missing; it holds a report"):
        ReportComparison.load(report)
    with pytest.raises(ValueError, match=r"only \.json holds the whole comparison"):
        ReportComparison.load(tmp_path / "c.html")


@pytest.mark.slow
def test_many_sites_are_a_map_of_each_report() -> None:
    report = wide_report(80, frames=9, dim=8)
    few, many = (
        bp.compare_reports({"early": one, "late": one}).plot(figsize="page")
        for one in (fake_report(), report)
    )
    assert few.axes[0].texts[0].get_text() == "early"
    titles = [text.get_text() for text in many.axes[0].texts]
    assert titles.count("early") == titles.count("late") == 1
    assert len(many.axes[0].lines) == 160 and many.get_figheight() < 12


def test_what_changed_is_named_with_its_size() -> None:
    early = _with(fake_report(), NEURONS, difference=0.5, difference_error=0.03)
    late = _with(fake_report(), NEURONS, difference=0.9, difference_error=0.04)
    late = _outcome(late, NEURONS, bp.Outcome.UNUSED)
    compared = bp.compare_reports({"step 1": early, "step 2": early, "step 3": late})
    [row] = compared.changed
    assert row.site == NEURONS and row.change() == pytest.approx(0.4)
    # The errors of both reports add in squares.
    assert row.change_interval() == pytest.approx((0.4 - 1.96 * 0.05, 0.4 + 1.96 * 0.05), abs=1e-4)
    assert row.change(1) == 0
    assert math.isnan(row.change(0))
    assert f"{NEURONS}: privileged, privileged, unused" in str(compared)
    frame = compared.to_dataframe()
    assert len(frame) == 3 * 32
    at = frame[(frame.site == NEURONS) & (frame.report == "step 3")].iloc[0]
    assert at.outcome == "UNUSED" and at.change == pytest.approx(0.4)


def test_a_site_that_one_report_lacks_keeps_its_place() -> None:
    whole = fake_report()
    short = dataclasses.replace(whole, site_reports=whole.site_reports[3:])
    compared = bp.compare_reports({"short": short, "whole": whole})
    assert {row.site for row in compared} == set(whole.sites)
    assert [row.site for row in compared][3:6] == list(whole.sites[3:6])
    row = compared[whole.sites[0]]
    assert row.standings[0].outcome is None and not row.changed
    assert row.apart == "only one report has this site" and math.isnan(row.change())


def test_models_that_name_sites_differently_are_compared_by_kind_and_layer() -> None:
    report = fake_report()
    other = dataclasses.replace(
        report,
        site_reports=tuple(
            dataclasses.replace(site, site=f"model.{number}") for number, site in enumerate(report)
        ),
    )
    compared = bp.compare_reports({"one": report, "two": other})
    assert len(compared) == len(report) and not compared.changed
    assert compared["residual stream, layer 0 (2)"].standings[0].outcome is bp.Outcome.EMERGENT
    assert "by kind and layer" in compared.notes[0]


def test_numbers_under_other_alternatives_are_not_compared() -> None:
    report = fake_report()
    null = report[NEURONS].null
    assert isinstance(null, NullRecord)
    turned = dataclasses.replace(
        report[NEURONS], null=dataclasses.replace(null, name="rotation", geometry="whitened")
    )
    compared = bp.compare_reports({"a": report, "b": _replaced(report, turned)})
    row = compared[NEURONS]
    assert "counterfactual (euclidean geometry), rotation (whitened geometry)" in row.apart
    assert math.isnan(row.change()) and row.standings[1].outcome is not None
    without = dataclasses.replace(report[NEURONS], scores={})
    compared = bp.compare_reports({"a": report, "b": _replaced(report, without)})
    assert compared[NEURONS].apart == "no score was computed in all of the reports"


def test_runs_that_differ_are_said_to() -> None:
    report = fake_report()
    run = dataclasses.replace(
        report.provenance, seed=7, data="other text", settings={"null": "rotation"}
    )
    other = dataclasses.replace(report, provenance=run, partial=True)
    notes = " ".join(bp.compare_reports({"a": report, "b": other}).notes)
    for said in ("The data differ (a: ", "b: other text", "The seeds differ", "The setting null"):
        assert said in notes
    assert "Partial, for their data were interrupted: b." in notes


def test_models_of_different_widths_are_said_to_be() -> None:
    report = fake_report()
    site = dataclasses.replace(report[NEURONS], dim=7, shape=(7,))
    notes = bp.compare_reports({"a": report, "b": _replaced(report, site)}).notes
    dim = report[NEURONS].dim
    assert f"The models are of different widths at {NEURONS} ({dim} in a, 7 in b)." in notes


def test_what_no_number_rests_on_is_not_said_to_differ() -> None:
    report = fake_report()
    settings = {**report.provenance.settings, "examples": "5 contexts of each of the 5 axes"}
    run = dataclasses.replace(report.provenance, settings=settings)
    other = dataclasses.replace(report, provenance=run)
    assert "setting" not in " ".join(bp.compare_reports({"a": report, "b": other}).notes)


def test_of_many_sites_that_differ_it_is_said_how_many_are_not_named() -> None:
    report = wide_report(20)
    other = dataclasses.replace(
        report,
        site_reports=tuple(
            dataclasses.replace(
                site, verdict=dataclasses.replace(site.verdict, outcome=bp.Outcome.UNDECIDED)
            )
            for site in report
        ),
    )
    compared = bp.compare_reports({"a": report, "b": other})
    missing = f"and {len(compared.changed) - 12} more sites"
    assert len(compared.changed) > 12
    assert missing in str(compared) and missing in compared._repr_html_()


def test_what_cannot_be_compared_is_refused() -> None:
    report = fake_report()
    with pytest.raises(ValueError, match="1 reports were given, and at least 2 are compared"):
        bp.compare_reports({"a": report})
    with pytest.raises(TypeError, match="reports is a list: give a mapping"):
        bp.compare_reports([report, report])  # pyright: ignore
    with pytest.raises(TypeError, match="'b' is a str, not a report: give what probe returns"):
        bp.compare_reports({"a": report, "b": "b.json"})  # pyright: ignore
    stranger = dataclasses.replace(report.site_reports[0], site="x", kind="pixels", layer=77)
    with pytest.raises(ValueError, match=r"neither by name nor by kind.*b: pixels"):
        bp.compare_reports({"a": report, "b": bp.Report((stranger,), provenance())})
    with pytest.raises(KeyError, match=r"nearest: blocks.0.mlp.hook_post"):
        bp.compare_reports({"a": report, "b": report})["blocks.0.mlp.hook_pots"]


@pytest.mark.sample(default=2)
@pytest.mark.parametrize(
    "ending", [".html", ".json", ".csv", ".md", ".tex", ".pdf", ".svg", ".png"]
)
def test_comparisons_are_saved(tmp_path: pathlib.Path, ending: str) -> None:
    compared = bp.compare_reports({"a": fake_report(), "b <i>": fake_report()})
    path = compared.save(tmp_path / f"c{ending}")
    assert path.stat().st_size > 1000
    if ending == ".json":
        again = ReportComparison.from_json(path.read_text(encoding="utf-8"))
        assert again == compared
    with pytest.raises(ValueError, match=r"cannot tell the format from 'c.doc'"):
        compared.save(tmp_path / "c.doc")


def test_hostile_names_come_out_as_text() -> None:
    report = hostile_report()
    compared = compare_reports(dict.fromkeys(HOSTILE, report))
    for shown in (across.page(compared), across.fragment(compared)):
        assert "<script>alert(1)" not in shown and "onerror=alert" not in re.sub(
            r"&[^;]*;", "", shown.replace("src=x onerror", "")
        )
        shown.encode("utf-8")
    for line in across.in_markdown(compared).splitlines():
        assert "<script>" not in line.replace("\\<", "")
    assert len(repr(compared)) <= 2000
