"""What a notebook shows where it is not trusted: no style, no script, no drawing."""

from __future__ import annotations

import base64
import html.parser
import re
from typing import Any

import pytest
from fake_report import fake_report, hostile_report, wide_report, with_companions

from basis_probe.results.report import Report, SiteReport
from basis_probe.show import drawing, still, words
from basis_probe.show.selection import grid, top_axes


class _Sanitised(html.parser.HTMLParser):
    """The page as hosts of notebooks show it: what they do not know goes, its texts stay."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.images: list[dict[str, Any]] = []
        self.texts: list[str] = []
        self.hidden, self.within = "", False
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag in ("style", "script"):
            self.hidden = tag
        if tag == "img":
            self.images.append(dict(attrs))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")
            self.within = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self.within = False
        if tag == self.hidden:
            self.hidden = ""

    def handle_data(self, data: str) -> None:
        if self.hidden:
            return
        self.texts.append(data)
        if self.within:
            self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def _letters(shown: _Sanitised, report: Report) -> list[str]:
    """The letters of the map, row by row."""
    places = grid(report)
    rows = shown.rows[1 : 1 + len(places.rows)]
    return ["".join(cell.strip() for cell in row[1:]) for row in rows]


@pytest.mark.parametrize(
    "report",
    [fake_report(), wide_report(20, frames=9, dim=8), hostile_report()],
    ids=["llama", "20 sites", "hostile"],
)
def test_the_map_is_a_table_of_letters_and_an_image(report: Report) -> None:
    shown = _Sanitised(report._repr_html_())
    expected = [
        "".join(
            words.LETTER[report.site_reports[cell].verdict.outcome]
            + words.orders(report.site_reports[cell].verdict)
            for cell in row.cells
            if cell is not None
        )
        for row in grid(report).rows
    ]
    assert _letters(shown, report) == expected
    for said in words.answer(report):
        assert words.shorten(words.clean(said.text), 1500)[:60].split()[0] in shown.text
    assert [image["class"] for image in shown.images].count("static") == 1


def test_the_image_of_a_map_goes_on_below_and_names_its_colours() -> None:
    for count in (20, 160):
        report = wide_report(count, frames=9, dim=8)
        [shown] = [
            image for image in _Sanitised(report._repr_html_()).images if image["class"] == "static"
        ]
        svg = base64.b64decode(shown["src"].partition("base64,")[2]).decode()
        assert svg.count("<path ") == count
        width = re.search(r' width="(\d+)"', svg)
        assert width and int(width[1]) < 1500
        for bound in drawing.legend_bounds():
            assert f">{bound.replace('-', chr(0x2212))}</text>" in svg


def _site() -> SiteReport:
    return with_companions().site_reports[0]


def test_figures_of_a_site_are_images_of_their_own_size() -> None:
    site = _site()
    shown = _Sanitised(site._repr_html_())
    strips = [image for image in shown.images if image["class"] == "strip"]
    assert len(strips) >= len(site.scores)
    for image in shown.images:
        assert int(image["width"]) <= 700 and int(image["height"]) <= 700
        assert image["alt"]
    assert "<title>" not in site._repr_html_()
    # No numbers of a figure run into the text: what stands between two scores is words.
    assert f"{words.number(next(iter(site.scores.values())).observed)}" in shown.text
    for axis in top_axes(next(iter(site.scores.values())), site.shape):
        assert f"axis {axis.label} {words.number(axis.value)}" in shown.text
    assert not re.search(r"(\d\.\d+){3}", shown.text.replace(" ", ""))


def test_marks_without_a_letter_are_images_and_marks_with_one_leave_it() -> None:
    page = (
        '<svg class="mark bare" role="img" width="18" height="18" viewBox="-1 -1 34 34">'
        '<title>axes</title><path d="M0 0"/></svg>'
        '<svg class="mark e5" role="img" width="32" height="32" viewBox="-1 -1 34 34">'
        '<title>a site</title><path d="M0 0"/><text x="16" y="21">P</text></svg>'
    )
    shown = _Sanitised(still.stills(page))
    assert shown.text == "P"
    assert [image["alt"] for image in shown.images] == ["axes"]
