"""`basis-probe compare`: saved reports under names, and what cannot be compared."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
import shutil

import pytest
from fake_report import fake_report

import basis_probe as bp
from basis_probe import demo
from basis_probe.cli import main
from basis_probe.results import ReportComparison

NEURONS = "blocks.0.mlp.hook_post"


@pytest.fixture
def saved(tmp_path: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    early = fake_report()
    sites = tuple(
        dataclasses.replace(site, verdict=bp.Verdict(bp.Outcome.UNUSED, "other"))
        if site.site == NEURONS
        else site
        for site in early
    )
    late = dataclasses.replace(early, site_reports=sites)
    return early.save(tmp_path / "early.json"), late.save(tmp_path / "late.json")


def test_two_files_are_compared_and_written(
    saved: tuple[pathlib.Path, ...], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "c.html"
    assert main(["compare", *map(str, saved), "--out", str(page)]) == 0
    said = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "The outcome differs at 1 of 32 sites in common." in said
    assert "early late change" in said and NEURONS in said
    assert NEURONS in page.read_text(encoding="utf-8")


def test_a_saved_comparison_is_shown_and_written_in_another_form(
    saved: tuple[pathlib.Path, ...], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept, page = tmp_path / "c.json", tmp_path / "c.html"
    assert main(["compare", *map(str, saved), "--out", str(kept)]) == 0
    first = capsys.readouterr().out
    assert main(["show", str(kept), "--out", str(page)]) == 0
    assert capsys.readouterr().out.splitlines()[:-1] == first.splitlines()[:-1]
    assert NEURONS in page.read_text(encoding="utf-8")


def test_files_have_names_of_their_own(
    saved: tuple[pathlib.Path, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"step {number}={path}" for number, path in enumerate(saved)]
    assert main(["compare", *words, "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["comparison"]["names"] == ["step 0", "step 1"]


def test_files_of_one_name_are_told_apart_by_their_folder(
    saved: tuple[pathlib.Path, ...], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    twin = other / "early.json"
    twin.write_bytes(saved[1].read_bytes())
    assert main(["compare", str(saved[0]), str(twin), "--json"]) == 0
    names = json.loads(capsys.readouterr().out)["comparison"]["names"]
    assert names == [str(path.with_suffix("")) for path in (saved[0], twin)]


@pytest.mark.sample(default=2)
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere.json", "early.json"], "there is no file nowhere.json"),
        (["a=early.json", "a=late.json"], "two reports are called 'a'"),
        (["early.json"], "at least two reports are compared: give the files of two"),
        (["early.json", "page.html"], "only .json holds the whole report"),
        (["early.json", "other.json"], "other.json: not a basis_probe report"),
    ],
)
def test_what_cannot_be_compared_is_one_line(
    words: list[str],
    said: str,
    saved: tuple[pathlib.Path, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(saved[0].parent)
    pathlib.Path("page.html").write_text("<html>")
    pathlib.Path("other.json").write_text("{}")
    assert main(["compare", *words]) == 2
    error = re.sub(r"\s+", " ", capsys.readouterr().err)
    assert said in error and "Traceback" not in error


def test_a_saved_report_is_loaded_as_it_was(saved: tuple[pathlib.Path, ...]) -> None:
    assert bp.Report.load(saved[0]) == fake_report()
    with pytest.raises(FileNotFoundError):
        bp.Report.load("nowhere.json")


@pytest.mark.slow
def test_several_models_are_probed_and_compared(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, out = tmp_path / "text.txt", tmp_path / "r.json"
    text.write_text("\n".join(demo.texts(20)), encoding="utf-8")
    twin = shutil.copytree(demo.MODEL_DIR, tmp_path / "twin")
    words = ["report", str(demo.MODEL_DIR), str(twin), "--text", str(text), "--length", "32"]
    words += ["--sites", "blocks.1.hook_resid_pre", "--out", str(out)]
    assert main(words) == 0
    said = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "No outcome differs at the 1 site in common." in said
    compared = ReportComparison.from_json(out.read_text(encoding="utf-8"))
    assert compared.names == ("model", "twin") and compared.rows[0].change() == 0
    reports = [bp.Report.load(tmp_path / f"r-{name}.json") for name in compared.names]
    assert reports[0].sites == reports[1].sites == ("blocks.1.hook_resid_pre",)
    assert main([*words, "--checkpoint", str(tmp_path / "c")]) == 2
    assert "--checkpoint are for one model" in re.sub(r"\s+", " ", capsys.readouterr().err)
