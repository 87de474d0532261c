"""The table of a model's symmetries: every site once, every number said, nothing read as markup."""

from __future__ import annotations

import io
import math

import pytest
import torch
from rich.console import Console
from torch import nn

import basis_probe as bp
from basis_probe.show import words
from basis_probe.show.architecture import proof, rows, summary, terminal, text

GROUP = bp.groups.Permutation(3)
HOLDS = bp.Certificate(True, 2e-15, 1e-9, 0.25, 1e-15, "rotation")
FAILS = bp.Certificate(False, 0.5, 1e-9, 0.25, 0.1, "rotation")


def _claim(certificate: bp.Certificate | None = None, unproved: str = "") -> bp.Symmetry:
    return bp.Symmetry(GROUP, GROUP.privileged, "GELU reads it.", "algebra", certificate, unproved)


def _unknown(because: str, certificate: bp.Certificate | None = None) -> bp.Symmetry:
    return bp.Symmetry(bp.groups.Unknown(3), bp.Privileged.UNKNOWN, because, "none", certificate)


def _printed(found: bp.Symmetries, width: int) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width).print(terminal(found))
    return stream.getvalue()


@pytest.fixture(scope="module")
def found() -> bp.Symmetries:
    torch.manual_seed(0)
    layers = nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 5), nn.Linear(5, 2)
    return bp.symmetries(nn.Sequential(*layers).eval(), torch.randn(3, 4))


def test_every_site_is_in_one_row_and_rows_are_in_forward_order(found: bp.Symmetries) -> None:
    gathered = rows(found)
    names = [name for row in gathered for name in row.sites]
    assert sorted(names) == sorted(found)
    for row in gathered:
        for name in row.sites:
            assert found[name].group == row.symmetry.group
            assert found[name].because == row.symmetry.because
    firsts = [[*found].index(row.sites[0]) for row in gathered]
    assert firsts == sorted(firsts)


def test_what_differs_in_the_number_of_a_block_only_is_one_row() -> None:
    names = [f"h.{index}.scale" for index in range(3)]
    several = {name: _unknown(f"What sqrt in {name} makes is 0.25.") for name in names}
    [row] = rows(several)
    assert (
        row.sites == tuple(names)
        and row.symmetry.because == "What sqrt in h.*.scale makes is 0.25."
    )
    [alone] = rows({names[1]: several[names[1]]})
    assert alone.symmetry.because == several[names[1]].because
    assert len(rows({"a": _unknown("It is 0.25."), "b": _unknown("It is 0.5.")})) == 2


def test_all_forms_say_the_same(found: bp.Symmetries) -> None:
    page, plain, shown = found._repr_html_(), str(found), _printed(found, 200)
    for row in rows(found):
        for form in (page, plain, shown):
            assert row.sites[0] in form
            assert row.group.split(" (")[0] in form
    assert f"{len(found)} sites" in plain and f"{len(found)} sites" in page
    assert plain == text(found)


def test_the_data_frame_has_a_row_for_every_site_and_the_numbers(found: bp.Symmetries) -> None:
    frame = found.to_dataframe()
    assert [*frame.index] == [*found]
    assert frame.loc["1", "group"] == "permutation"
    assert frame.loc["1", "certified"]
    assert frame.loc["1", "max_error"] < 1e-9 < frame.loc["1", "violation"]
    empty = bp.Symmetries().to_dataframe()
    assert [*empty.columns] == [*frame.columns] and len(empty) == 0
    assert (empty.dtypes == frame.dtypes).all()


def test_a_certificate_is_said_with_both_numbers() -> None:
    assert proof(_claim(HOLDS)) == "holds: moved by 2e-15; a rotation outside it by 0.2"
    assert proof(_claim(FAILS)).startswith("FAILS: moved by 0.5")
    alone = bp.Certificate(True, 0.0, 1e-9, math.nan)
    assert proof(_claim(alone)) == "holds: moved by 0; nothing outside it to try"
    assert proof(_claim(unproved="the model is on the moon")) == "none: the model is on the moon"
    assert proof(_claim()) == "none: not asked for"
    assert proof(_unknown("Who knows.")) == words.DASH


def test_refuted_claims_are_counted() -> None:
    made = bp.Symmetries(a=_claim(HOLDS), b=_unknown("It failed.", FAILS), c=_claim())
    assert summary(made) == "3 sites, 2 claims, 1 proved on this model; 1 claim refuted"
    assert summary(bp.Symmetries(a=_claim(HOLDS))) == "1 site, 1 claim, 1 proved on this model"


def test_names_and_reasons_are_never_markup() -> None:
    name = "<script>alert(1)</script>[bold]"
    made = bp.Symmetries({name: _unknown("<img src=x onerror=alert(2)> [red]it[/red]")})
    page = made._repr_html_()
    assert "<script" not in page and "<img" not in page
    assert "&lt;script&gt;" in page
    assert "[bold]" in _printed(made, 200) and "[red]it[/red]" in _printed(made, 200)


@pytest.mark.parametrize("width", [40, 80, 160])
def test_the_terminal_table_keeps_its_width(found: bp.Symmetries, width: int) -> None:
    assert max(map(len, _printed(found, width).splitlines())) <= width


def test_an_empty_answer_is_shown_too() -> None:
    assert str(bp.Symmetries()) == "No site ran."
    assert "0 sites" in bp.Symmetries()._repr_html_()


def test_many_names_of_one_answer_are_counted() -> None:
    made = bp.Symmetries({f"site.{number}": _claim(HOLDS) for number in range(9)})
    (row,) = rows(made)
    assert row.named == "site.* (9)"
    assert all(f"site.{number}" in made._repr_html_() for number in range(9))
    named = bp.Symmetries(
        dict.fromkeys("a.0.x a.1.x b.0.y b.1.y c d e.7 f.x2 g".split(), _claim(HOLDS))
    )
    (row,) = rows(named)
    assert row.named == "a.*.x (2), b.*.y (2), c, d and 3 more"


def test_one_answer_of_many_sites_is_as_sure_as_at_the_least_sure() -> None:
    wide = bp.Certificate(True, 1e-15, 1e-9, 0.4, 2e-16, stranger="rotation")
    narrow = bp.Certificate(True, 3e-14, 1e-9, 0.02, 1e-15, stranger="rescaling")
    made = bp.Symmetries(a=_claim(wide), b=_claim(narrow), c=_claim(None))
    both, bare = rows(made)
    assert both.sites == ("a", "b") and bare.sites == ("c",)
    assert both.symmetry.certificate == narrow
    assert "holds: moved by 3e-14; a rescaling outside it by 0.02" in both.proof
