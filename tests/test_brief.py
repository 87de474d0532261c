"""Every public value is short as text and as a table, however large it is."""

from __future__ import annotations

import dataclasses
import enum
import html.parser
import inspect
from typing import Any

import numpy as np
import pytest
import torch
from fake_report import HOSTILE, hostile_report, wide_report
from torch import nn

import basis_probe as bp
from basis_probe import brief as briefs
from basis_probe import results
from basis_probe.results import PathRecord

SPACES = (bp, bp.groups, bp.nulls, bp.scores, bp.bases, bp.concepts, bp.compare, bp.results)
PUBLIC = {
    name: kind
    for space in SPACES
    for name in dir(space)
    if not name.startswith("_") and inspect.isclass(kind := getattr(space, name))
}
NOT_VALUES = (BaseException, enum.Enum)
SPELLED_OUT = (bp.groups.Group, bp.nulls.Null)
"""Their text is the call that makes them, which files hold."""


def _wide() -> bp.Report:
    report = wide_report(300, frames=99, dim=32)
    path = PathRecord("s", tuple(np.linspace(0, 1, 99)), np.zeros((50, 99)))
    sites = tuple(dataclasses.replace(site, path=path) for site in report)
    return dataclasses.replace(report, site_reports=sites, notes=("a note " * 900,) * 50)


def _values(value: object, seen: dict[str, object]) -> dict[str, object]:
    """One value of every class that is found below."""
    seen.setdefault(type(value).__name__, value)
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            _values(getattr(value, field.name), seen)
    elif isinstance(value, dict):
        for entry in value.values():
            _values(entry, seen)
    elif isinstance(value, tuple | list):
        for entry in value[:3]:
            _values(entry, seen)
    return seen


def test_every_public_class_says_briefly_what_it_is() -> None:
    long = [
        name
        for name, kind in PUBLIC.items()
        if not issubclass(kind, (*NOT_VALUES, *SPELLED_OUT))
        and not inspect.isabstract(kind)
        and dataclasses.is_dataclass(kind)
        and kind.__repr__ is not briefs.text
        # What is made of a few numbers and names is as short as it is.
        and not all(
            field.type in ("int", "float", "str", "bool", int, float, str, bool)
            for field in dataclasses.fields(kind)
        )
    ]
    assert not long


@pytest.mark.parametrize("report", [_wide(), hostile_report()], ids=["wide", "hostile"])
def test_no_value_of_a_report_is_long(report: bp.Report) -> None:
    for name, value in _values(report, {}).items():
        shown = repr(value)
        if dataclasses.is_dataclass(value) or hasattr(value, "_repr_html_"):
            assert len(shown) <= 2000, name
        if type(value).__repr__ is briefs.text:
            assert shown.startswith(name) and "\n" not in shown
            # A notebook shows it too.
            assert len(briefs.table(value)) <= 60_000, name


def test_the_text_of_a_report_counts_its_outcomes() -> None:
    report = dataclasses.replace(wide_report(20, frames=9, dim=8), notes=())
    shown = repr(report)
    for outcome in bp.Outcome:
        count = sum(site.verdict.outcome is outcome for site in report)
        assert (f"{outcome.name.lower()}={count}" in shown) == (count > 0)
    assert "sites=20" in shown and "partial" not in shown
    assert "partial=True" in repr(dataclasses.replace(report, partial=True))


class _Cells(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_table_holds_text_only_and_no_script() -> None:
    for hostile in HOSTILE:
        parser = _Cells()
        parser.feed(briefs.table(bp.Verdict(bp.Outcome.UNUSED, hostile)))
        assert set(parser.tags) <= {"div", "p", "b", "table", "tbody", "tr", "td"}
        assert "UNUSED" in parser.text


def test_values_of_one_class_are_rows_of_a_table() -> None:
    standings = tuple(results.BasisStanding(f"b{n}", n / 2, n, 0.0, 1.0, 8) for n in range(50))
    ranking = results.BasisRanking("s", standings, "b1", np.eye(8), "euclidean", "x", 0, 1, 9, 9, 9)
    parser = _Cells()
    parser.feed(ranking._repr_html_())
    assert parser.text.count("'b") == 40 and "and 10 more" in parser.text
    assert "array [8, 8]" in parser.text and "cosine" in parser.text


def test_tensors_networks_and_long_lists_are_named_not_written_out() -> None:
    @briefs.brief
    @dataclasses.dataclass(frozen=True)
    class Held:
        model: nn.Module
        weight: torch.Tensor
        names: tuple[str, ...]
        scores: dict[str, float]
        note: str = ""

    held = Held(nn.Linear(3, 4), torch.zeros(5, 6), ("x",) * 9000, {"a": 0.5})
    assert repr(held) == (
        "Held(model=Linear with 16 parameters, weight=tensor [5, 6], "
        "names=('x', 'x', 'x', 'x', and 8,996 more), scores={'a': 0.5})"
    )
    assert "note='y'" in repr(dataclasses.replace(held, note="y"))


def test_more_fields_than_fit_are_counted() -> None:
    made = dataclasses.make_dataclass("Many", [(f"field_{n:02}", str) for n in range(60)])
    kind = briefs.brief(made)
    shown = repr(kind(*("w" * 300,) * 60))
    assert len(shown) <= briefs.LINE and "more fields" in shown


def test_results_of_comparisons_are_short() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(80, 40, generator=generator)
    found = bp.similarity(x, x.flip(1), group="permutation")
    assert isinstance(found, results.Similarity) and len(repr(found)) < 2000
    assert "Permutation" in found._repr_html_() and "alignment=Alignment(...)" in repr(found)
    element = bp.groups.Monomial(300).draw(generator)
    assert len(repr(element)) < 300
    nets = [nn.Sequential(nn.Linear(40, 9), nn.GELU(), nn.Linear(9, 3)).eval() for _ in range(2)]
    several = bp.similarity(*nets, [x])
    assert isinstance(several, results.Similarities) and len(repr(several)) < 2000
    assert "<table" in several._repr_html_()
    found = bp.symmetries(nets[0], x[:2], certificates=False)
    assert repr(found).startswith("Symmetries(sites=")
