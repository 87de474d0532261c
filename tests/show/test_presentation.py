"""What is shown is what was found, for any name and any number."""

from __future__ import annotations

import base64
import csv
import dataclasses
import functools
import hashlib
import html.parser
import io
import itertools
import math
import pathlib
import re
import subprocess
import sys
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from fake_report import (
    HOSTILE,
    by_scale,
    fake_report,
    hostile_report,
    provenance,
    score,
    wide_report,
    with_companions,
    with_examples,
    with_nan,
    without_null,
)

import basis_probe as bp
from basis_probe.algebra.groups import Privileged
from basis_probe.compare.reports import compare_reports
from basis_probe.results.evidence import Tail
from basis_probe.results.report import Outcome, Report, SiteReport, Verdict
from basis_probe.results.symmetry import Certificate
from basis_probe.show import drawing, markdown, selection, tables, words
from basis_probe.show import html as pages


def _without_layers(report: Report) -> Report:
    sites = tuple(
        dataclasses.replace(site, layer=None, site=f"features.{index}")
        for index, site in enumerate(report)
    )
    return dataclasses.replace(report, site_reports=sites)


def _undecided(report: Report) -> Report:
    nothing = Verdict(Outcome.UNDECIDED, "Only 12 samples were seen.")
    sites = tuple(
        dataclasses.replace(site, scores={}, beside={}, null=None, verdict=nothing)
        for site in report
    )
    return dataclasses.replace(report, site_reports=sites)


def _extreme() -> Report:
    """Effects that are huge, infinite, negative and undefined, and a null without spread."""
    base = fake_report()["blocks.0.mlp.hook_post"]
    lead = base.scores["non_gaussianity"]
    changed = (
        score("huge", effect=700.0, seed=1),
        score("deep", effect=-700.0, seed=2, tail=Tail.TWO_SIDED),
        dataclasses.replace(lead, effect=math.inf, observed=math.inf),
        dataclasses.replace(lead, effect=-math.inf, observed=-math.inf),
        dataclasses.replace(lead, null_values=np.full(99, 3.0), null_std=0.0, effect=math.nan),
        dataclasses.replace(lead, null_values=np.array([]), per_direction=np.array([])),
        dataclasses.replace(lead, null_values=np.array([math.inf, math.nan, 1.0, 2.0])),
    )
    sites = tuple(
        dataclasses.replace(base, site=f"site.{index}", layer=index, scores={entry.name: entry})
        for index, entry in enumerate(changed)
    )
    return Report(sites, provenance())


def _failed() -> Report:
    report = fake_report()
    first = report.site_reports[0]
    broken = dataclasses.replace(
        first.symmetry, certificate=Certificate(False, 0.3, 1e-9, math.nan)
    )
    sites = (dataclasses.replace(first, symmetry=broken), *report.site_reports[1:])
    return dataclasses.replace(report, site_reports=sites)


REPORTS = {
    "llama": fake_report(),
    "one site": Report(fake_report().site_reports[:1], provenance()),
    "no site": Report((), provenance()),
    "20 sites": wide_report(20, frames=99, dim=32),
    "undecided": _undecided(fake_report()),
    "missing numbers": Report((with_nan(), without_null()), provenance()),
    "extreme numbers": _extreme(),
    "no layers": _without_layers(fake_report()),
    "partial": dataclasses.replace(fake_report(), partial=True),
    "failed certificate": _failed(),
    "hostile": hostile_report(),
    "companions": with_companions(),
    "hostile companions": with_companions("<script>alert(2)</script>\u202e"),
}

every_report = pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS.keys())
every_name = pytest.mark.parametrize("name", REPORTS)


_UNSAFE = "\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff"
"""What may stand in no text that is shown, as a class of characters."""


# --- the page -----------------------------------------------------------------------------------

_VOID = {"meta", "link", "br", "img", "input", "hr", "base", "wbr", "col", "source"}
_BLOCKS = set(re.findall(r"\w+", "p div ul dl table section h1 h2 h3 h4 details pre nav"))
_OTHERS = """
wbr
    html head title style script body header main meta li dt dd caption thead tbody tr th td
    span b i em a abbr bdi code small summary svg path text
"""
_ALLOWED = _BLOCKS | set(re.findall(r"\w+", _OTHERS))
_PARENTS = {
    "li": {"ul"},
    "dt": {"dl", "div"},
    "dd": {"dl", "div"},
    "tr": {"thead", "tbody"},
    "th": {"tr"},
    "td": {"tr"},
    "thead": {"table"},
    "tbody": {"table"},
    "caption": {"table"},
    "summary": {"details"},
    "path": {"svg"},
}


class _Page(html.parser.HTMLParser):
    """Every tag, attribute and text of a page; wrong nesting is collected."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.isolated: list[str] = []
        self.comments: list[str] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        parent = self.open[-1] if self.open else ""
        if tag in _PARENTS and parent not in _PARENTS[tag]:
            self.wrong.append(f"<{tag}> in <{parent}>")
        if tag in _BLOCKS and "p" in self.open:
            self.wrong.append(f"<{tag}> in <p>")
        if len({name for name, _ in attrs}) < len(attrs):
            self.wrong.append(f"<{tag}> repeats an attribute")
        self.tags.append((tag, dict(attrs)))
        if tag == "bdi":
            self.isolated.append("")
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag != "path":
            self.wrong.append(f"<{tag}/>")

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open[-1] != tag:
            self.wrong.append(f"</{tag}> where {self.open[-3:]} are open")
        else:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.append(data)
            if "bdi" in self.open:
                self.isolated[-1] += data

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def attributes(self, name: str) -> list[str]:
        return [attrs[name] or "" for _, attrs in self.tags if name in attrs]


@functools.cache
def _shown(name: str) -> tuple[tuple[str, _Page], ...]:
    """The page, the fragment and the first fragments of single sites, read once for all tests."""
    report = REPORTS[name]
    sites = (pages.site_fragment(site) for site in report.site_reports[:12])
    return tuple(
        (source, _Page(source)) for source in (pages.page(report), pages.fragment(report), *sites)
    )


def _check_image(address: str) -> None:
    """The image is in the address itself, is XML, and refers to nothing."""
    kind, _, data = address.partition(",")
    assert kind == "data:image/svg+xml;base64"
    source = base64.b64decode(data, validate=True).decode("utf-8")
    root = ElementTree.fromstring(source)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    tags = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert tags <= {"svg", "style", "path", "text", "g", "rect"}
    names = {name for element in root.iter() for name in element.attrib}
    assert not [name for name in names if name.startswith("on") or name.endswith("href")]
    assert "url(" not in source and not re.search(f"[{_UNSAFE}]", source)


@pytest.mark.sample(default=1)
@every_name
def test_html_is_nested_and_holds_known_elements_only(name: str) -> None:
    for place, (_, page) in enumerate(_shown(name)):
        assert page.wrong == []
        assert page.open == []
        assert page.comments == []
        # A page draws, a notebook holds images, which need no trust.
        assert {tag for tag, _ in page.tags} <= _ALLOWED | ({"img"} if place else set())
        assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]


@pytest.mark.sample(default=3)
@every_name
def test_html_loads_nothing(name: str) -> None:
    for place, (source, page) in enumerate(_shown(name)):
        images = page.attributes("src")
        assert place or not images
        for image in images:
            _check_image(image)
        assert not {"link", "base", "source", "iframe"} & {tag for tag, _ in page.tags}
        outside = [target for target in page.attributes("href") if not target.startswith("#")]
        assert set(outside) <= {"https://arxiv.org/abs/2205.14258"}
        styles = "".join(re.findall(r"<style>(.*?)</style>", source, re.DOTALL))
        assert "url(" not in styles
        assert "@import" not in styles


@every_name
def test_links_of_a_page_lead_somewhere_and_identifiers_are_unique(name: str) -> None:
    for _, page in _shown(name)[:2]:
        ids = page.attributes("id")
        assert len(set(ids)) == len(ids)
        named = page.attributes("aria-labelledby")
        linked = [target[1:] for target in page.attributes("href") if target.startswith("#")]
        assert set(linked) | set(named) <= set(ids)


def test_hostile_texts_come_out_as_text() -> None:
    report = hostile_report()
    page = _shown("hostile")[0][1]
    isolated = [" ".join(text.split()) for text in page.isolated]
    for site, hostile in zip(report, HOSTILE, strict=True):
        for told, limit in ((hostile, 1500), (site.site, 72)):
            assert " ".join(words.shorten(words.clean(told), limit).split()) in isolated
    assert "<script>alert(1)</script>" in page.text
    assert [tag for tag, _ in page.tags].count("script") == 1
    for source, _ in _shown("hostile"):
        assert not re.search(f"[{_UNSAFE}]", source)
        source.encode("utf-8")


@pytest.mark.slow
def test_the_only_script_of_a_page_is_the_one_that_its_policy_names() -> None:
    source = pages.page(hostile_report())
    (script,) = re.findall(r"<script>(.*?)</script>", source, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [
        attrs["content"]
        for tag, attrs in _Page(source).tags
        if tag == "meta" and attrs.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy is not None
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.count("script-src") == 1
    assert "<script" not in pages.fragment(fake_report())


@every_name
def test_headings_and_pictures_have_an_order_and_names(name: str) -> None:
    source, page = _shown(name)[0]
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    pictures = re.findall(r"<svg[^>]*>(.{0,9})", source)
    assert all(start.startswith("<title>") for start in pictures)
    assert source.count("<svg") == source.count('role="img" width') + source.count(
        'role="img" viewBox'
    )


@every_name
def test_the_answer_stands_before_the_evidence(name: str) -> None:
    report, text = REPORTS[name], _shown(name)[0][1].text
    first = " ".join(words.shorten(words.answer(report)[0].text, 1500).split())
    at = text.index(words.clean(first)[:200])
    assert at < text.index("How this was computed", at)
    if len(report):
        assert at < text.index("Site by site", at) < text.rindex("How this was computed")


def test_a_page_tells_what_was_found() -> None:
    report = fake_report()
    text = _Page(pages.page(report)).text
    for site in report:
        assert site.site in text
        assert " ".join(site.verdict.sentence.split()) in text
        assert site.symmetry.because in text
        for result in site.scores.values():
            assert words.number(result.observed).replace("-", "\u2212") in text
            assert words.effect(result.effect).replace("-", "\u2212") in text
    for said in (report.provenance.model, report.provenance.data, "2.13.0", "2205.14258"):
        assert said in text
    assert report.notes[0] in text


@pytest.mark.slow
def test_a_partial_report_and_a_failed_certificate_say_so_everywhere() -> None:
    for report, phrase in (
        (REPORTS["partial"], "Partial report"),
        (REPORTS["failed certificate"], "failed on this model"),
    ):
        shown = (
            _Page(pages.page(report)).text,
            _Page(pages.fragment(report)).text,
            markdown.markdown(report),
            " ".join(markdown.summary(report).split()),
            " ".join(_printed(report, 80).split()),
        )
        assert all(phrase in text for text in shown)
        assert phrase not in _Page(pages.page(fake_report())).text


def test_orders_bases_and_path_are_shown_where_they_are() -> None:
    report = with_companions()
    [site] = report
    text = _Page(pages.page(report)).text
    assert site.bases is not None and site.path is not None
    for order in site.orders:
        assert order.sentence in text
    places = [text.index(f" {basis} ", text.index("Which basis")) for basis in ("ica", "standard")]
    assert places == sorted(places), "the best basis comes first"
    assert "Found by FastICA." in text
    assert "on the way to turned bases" in text.lower()
    assert "+9.50 to +14.2" in text
    written = markdown.markdown(report)
    for order in site.orders:
        assert markdown.text(order.sentence) in written
    assert written.index("| ica |") < written.index("| standard |")
    assert "of rotations their range" in text and "of rotations their range" in written
    for shown in ("3.12 to 3.38", "6.25 to 6.75", "codes", "7.75", "2 zero"):
        assert shown in text
    assert f"| sae directions | 6.50 (6.25 to 6.75) | {words.DASH} | 40 |" in written
    assert f"| sae codes | {words.DASH} | 7.75 | 40 |" in written
    bare = dataclasses.replace(site, bases=dataclasses.replace(site.bases, table=()))
    bare = dataclasses.replace(report, site_reports=(bare,))
    for said in (markdown.markdown(bare), _Page(pages.page(bare)).text):
        assert "of rotations their range" not in said
    usual = _Page(pages.page(fake_report())).text
    assert "Which basis" not in markdown.markdown(fake_report())
    assert "Which basis" not in usual and "Three orders" not in usual


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("claimed", list(itertools.permutations(words.ORDERS, 2)))
def test_maps_and_tables_say_by_which_orders_a_site_is_emergent(claimed: tuple[str, ...]) -> None:
    report = fake_report()
    [place] = [index for index, site in enumerate(report) if site.site == report.sites[1]]
    emergent = dataclasses.replace(
        report.site_reports[place],
        verdict=Verdict(Outcome.EMERGENT, "By both.", orders=claimed),
    )
    sites = tuple(emergent if n == place else site for n, site in enumerate(report))
    report = dataclasses.replace(report, site_reports=sites)
    others = sum(bool(site.verdict.orders) for site in sites) - 1
    letters = "".join(order[0] for order in claimed)
    page = pages.page(report)
    marks = re.findall(r'class="orders"[^>]*>(\w+)<', page)
    assert marks.count(letters) == 1 and len(marks) == 1 + others
    assert f"emergent by {', '.join(claimed)}. By architecture" in page
    assert "Small letters" in page
    figure = report.plot("map")
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert letters in texts
    told = [text.get_text() for legend in figure.legends for text in [legend.get_title()]]
    assert any("o offset, s scale, f form" in text for text in told)
    assert f"| emergent ({', '.join(claimed)}) |" in markdown.markdown(report)
    plain = dataclasses.replace(emergent, verdict=Verdict(Outcome.ARBITRARY, "By none."))
    without = dataclasses.replace(report, site_reports=(plain,))
    assert 'class="orders"' not in pages.page(without)
    assert "Small letters" not in pages.page(without)


def test_a_path_is_drawn_from_the_axes_to_the_turned_basis() -> None:
    path = with_companions().site_reports[0].path
    assert path is not None
    drawn = drawing.path(path)
    assert drawn is not None
    assert drawn.turns == len(path.values) == drawn.ways.count("M")
    assert drawn.first == pytest.approx(path.values[:, 0].mean())
    assert drawn.last == pytest.approx(path.values[:, -1].mean())
    points = [tuple(map(float, point.split())) for point in drawn.average[1:].split("L")]
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    assert points[0][1] < points[-1][1], "higher values stand higher"
    nothing = dataclasses.replace(path, values=np.full_like(path.values, np.nan))
    assert drawing.path(nothing) is None


def test_pages_are_deterministic() -> None:
    again = Report.from_json(fake_report().to_json())
    assert pages.page(fake_report()) == pages.page(again)
    assert pages.fragment(fake_report()) == pages.fragment(again)
    assert markdown.markdown(fake_report()) == markdown.markdown(again)


@pytest.mark.slow
def test_a_page_of_60_wide_sites_stays_below_4_megabytes_with_its_numbers() -> None:
    report = wide_report(60, dim=4096)
    assert len(pages.page(report).encode()) < 4e6
    assert len(pages.fragment(report).encode()) < 3e5


def test_styles_of_a_fragment_touch_nothing_outside_it() -> None:
    (style,) = re.findall(r"<style>(.*?)</style>", pages.fragment(fake_report()), re.DOTALL)
    flat = re.sub(r"@media[^{]*\{", "", style)
    for selectors in re.findall(r"([^{}]+)\{[^{}]*\}", flat):
        for selector in selectors.strip().split(","):
            if "(" in selector or ")" in selector:
                continue
            assert ".bp" in selector, selector


def test_colours_read_well_on_both_grounds() -> None:
    (style,) = re.findall(r"<style>(.*?)</style>", pages.page(fake_report()), re.DOTALL)
    themes = [
        dict(re.findall(r"--([\w-]+):\s*(#[0-9a-f]{6})", part))
        for part in re.findall(r"color-scheme:(?:light|dark);([^}]*)", style)
    ]
    assert len(themes) >= 2
    texts = [("ink", "ground"), ("quiet", "ground"), ("quiet", "panel"), ("link", "ground")]
    texts += [("warn", "ground"), ("warn", "warn-ground"), ("bad", "ground")]
    texts += [("ink", "panel"), ("ink", "warn-ground"), ("quiet", "warn-ground")]
    texts += [("on", outcome) for outcome in "puea"]
    texts += [(f"i{step}", f"f{step}") for step in range(11)]
    for theme in themes:
        for front, back in texts:
            assert _contrast(theme[front], theme[back]) >= 4.5, (front, back)
        assert _contrast(theme["e"], theme["ground"]) >= 3
        assert _contrast(theme["quiet"], theme["ground"]) >= 3


def _contrast(one: str, other: str) -> float:
    """The contrast ratio of WCAG 2.2."""

    def luminance(colour: str) -> float:
        parts = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
        red, green, blue = (
            part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
        )
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


# --- the map and the strips ---------------------------------------------------------------------


@every_report
def test_every_site_has_one_place_on_the_map(report: Report) -> None:
    grid = selection.grid(report)
    placed = [cell for row in grid.rows for cell in row.cells if cell is not None]
    assert sorted(placed) == list(range(len(report)))
    for row in grid.rows:
        assert len(row.cells) == len(grid.columns)
        for column, cell in zip(grid.columns, row.cells, strict=True):
            if cell is not None:
                assert report.site_reports[cell].kind == row.kind
                if grid.by_layer:
                    assert report.site_reports[cell].layer == column


def test_outside_a_layered_model_the_map_counts_sites() -> None:
    grid = selection.grid(REPORTS["no layers"])
    assert not grid.by_layer
    assert grid.columns[0] == 1


@pytest.mark.parametrize("effect", [-700.0, -3.0, 0.0, 2.5, 5.0, 700.0])
def test_a_strip_marks_the_observed_value_on_the_right_side(effect: float) -> None:
    found = score("a", effect=effect, seed=3)
    strip = drawing.strip(found)
    assert strip is not None
    assert strip.observed is not None
    assert strip.mean is not None
    assert 0 <= strip.observed <= drawing.WIDTH
    if effect:
        assert (strip.observed > strip.mean) == (effect > 0)
    assert (strip.gap is not None) == (abs(effect) > 100)


def test_a_strip_has_the_shape_of_the_null() -> None:
    values = np.repeat([0.0, 1.0, 2.0], [10, 40, 20])
    found = dataclasses.replace(
        score("a", effect=1.0, seed=3), null_values=values, null_mean=1.1, observed=1.0
    )
    strip = drawing.strip(found, bins=3)
    assert strip is not None
    heights = [strip.base - float(at) for at in re.findall(r"V([\d.]+)H", strip.outline)]
    assert heights == pytest.approx([6.5, 26.0, 13.0])


def test_an_axis_strip_marks_the_axes_with_the_smallest_p() -> None:
    base = score("a", effect=9.0, seed=3, dim=10)
    values = np.arange(10.0)
    values[4] = math.nan
    chances = np.array([0.5, 0.001, 0.4, 0.9, math.nan, 0.3, 0.002, 0.7, 0.6, 0.8])
    found = dataclasses.replace(
        base, per_direction=values, per_direction_p=chances, fraction_privileged=2 / 9
    )
    standing = drawing.standing_axes(found)
    assert standing is not None
    assert standing.tolist() == [1, 6]
    strip = drawing.axis_strip(found)
    assert strip is not None
    assert (strip.standing, strip.alive, strip.low, strip.high) == (2, 9, 0.0, 9.0)
    assert strip.standing_path.count("M") == strip.below_path.count("M") == 2
    assert strip.others_path.count("M") == 7


@pytest.mark.parametrize("dim", [1, 157, 158, 159, 4096, 50_000])
def test_an_axis_strip_stays_small_and_inside(dim: int) -> None:
    strip = drawing.axis_strip(score("a", effect=9.0, seed=3, dim=dim))
    assert strip is not None
    drawn = strip.others_path + strip.standing_path + strip.below_path
    assert len(drawn) < 9000
    across = [float(at) for at in re.findall(r"M([\d.]+)", drawn)]
    assert 42 <= min(across) <= max(across) <= drawing.WIDTH
    down = [float(at) for at in re.findall(r"V([\d.]+)", drawn)]
    assert 0 <= min(down) <= max(down) <= drawing.HEIGHT


def test_without_p_of_single_axes_none_is_marked() -> None:
    found = dataclasses.replace(score("a", effect=9.0, seed=3), fraction_privileged=math.nan)
    assert drawing.standing_axes(found) is None
    assert drawing.axis_strip(score("a", effect=9.0, seed=3, per_direction=False)) is None


def test_top_axes_are_the_highest_and_are_named_by_head() -> None:
    values = np.arange(12.0)
    values[11] = math.nan
    found = dataclasses.replace(
        score("a", effect=1.0, seed=3, dim=12), per_direction=values, per_direction_p=values / 12
    )
    top = selection.top_axes(found, (3, 4), most=2)
    named = [(axis.index, axis.label, axis.value) for axis in top]
    assert named == [(10, "2, 2", 10.0), (9, "2, 1", 9.0)]


def test_the_leading_score_decides_and_is_the_least_likely() -> None:
    site = fake_report()["blocks.4.mlp.hook_post"]
    lead = selection.leading(site)
    assert lead is not None
    assert lead.name == "non_gaussianity"
    assert selection.leading(without_null()) is None
    assert selection.leading(with_nan()) is None


# --- the answer ---------------------------------------------------------------------------------


def test_the_answer_names_every_outcome_and_the_readable_first() -> None:
    sentences = words.answer(fake_report())
    assert [sentence.outcome for sentence in sentences] == [
        Outcome.PRIVILEGED,
        Outcome.EMERGENT,
        Outcome.UNUSED,
        Outcome.ARBITRARY,
        Outcome.UNDECIDED,
    ]
    assert sentences[0].text.startswith("In the gated neurons behind silu of layers 0\u20133, the")


def test_the_answer_names_the_sites_that_differ_from_others_of_their_layer() -> None:
    answer = {said.outcome: said.text for said in words.answer(fake_report())}
    assert "of layers 0 and 1 except blocks.1.hook_resid_mid," in answer[Outcome.EMERGENT]
    stream = [site for site in fake_report() if site.kind == "residual stream"][:6]

    known = {"E": Outcome.EMERGENT, "A": Outcome.ARBITRARY}

    def told(outcomes: str) -> str:
        sites = tuple(
            dataclasses.replace(site, verdict=Verdict(known[letter], ""))
            for site, letter in zip(stream, outcomes, strict=True)
        )
        return words.answer(Report(sites, provenance()))[1].text

    names = [site.site for site in stream]
    assert told("EAAAAA").startswith(f"In the residual stream at {names[0]}, the data")
    assert told("EAEAEA").startswith(
        "In the residual stream at blocks.*.hook_resid_pre of layers 0\u20132,"
    )
    assert f" of all 3 layers except {names[4]}, " in told("EEEEAE")
    assert f" at {names[0]} and {names[3]}, " in told("EAAEAA")


def test_the_answer_names_sites_outside_the_layers_beside_them() -> None:
    sites = tuple(
        dataclasses.replace(site, site="embed", layer=None) if place == 0 else site
        for place, site in enumerate(s for s in fake_report() if s.kind == "attention queries")
    )
    told = words.answer(Report(sites, provenance()))[1].text
    assert told.startswith("The attention queries of layers 1\u20134 and at embed cannot be read")


@pytest.mark.parametrize(
    ("shares", "advice"),
    [
        ((0.06, 0.06), "6 % of the neurons stand out by themselves, read those"),
        ((0.02, 0.7), "2 to 70 % of the neurons stand out by themselves, read those"),
        ((0.6, 0.9), "read them neuron by neuron (60 to 90 % of the neurons"),
        ((0.0, 0.0), "they do so together, and no neuron does so by itself"),
        ((math.nan, math.nan), "which neurons stand out by themselves is not known"),
        ((0.9, math.nan), "90 % of the neurons stand out by themselves, read those"),
    ],
)
def test_the_advice_is_no_stronger_than_the_share_of_axes(
    shares: tuple[float, ...], advice: str
) -> None:
    readable = [s for s in fake_report() if s.verdict.outcome is Outcome.PRIVILEGED][:2]
    sites = tuple(
        dataclasses.replace(
            site,
            scores={
                name: dataclasses.replace(score, fraction_privileged=share)
                for name, score in site.scores.items()
            },
        )
        for site, share in zip(readable, shares, strict=True)
    )
    [said] = words.answer(Report(sites, provenance()))
    assert advice in said.text
    assert ("neuron by neuron" in said.text) == all(share >= 0.5 for share in shares)


def test_the_answer_says_when_nothing_is_readable() -> None:
    arbitrary = tuple(site for site in fake_report() if site.verdict.outcome is Outcome.ARBITRARY)
    assert words.answer(Report(arbitrary, provenance()))[0].text.startswith("No site can be read")
    open_one = (*arbitrary, _undecided(Report(arbitrary[:1], provenance())).site_reports[0])
    said = words.answer(Report(open_one, provenance()))[0].text
    assert said == "No site that was decided can be read neuron by neuron."
    assert words.answer(REPORTS["undecided"])[0].text == "Nothing was decided."
    assert words.answer(REPORTS["no site"])[0].text == "The report holds no site."


def test_missing_numbers_have_a_reason() -> None:
    missing = with_nan().scores["kurtosis"]
    for field in ("effect", "observed", "p_adjusted", "all_samples"):
        assert words.absent(missing, field).endswith("Every axis was constant.")


def test_every_outcome_and_privilege_can_be_drawn() -> None:
    assert set(words.LETTER) == set(Outcome)
    assert set(drawing.SHAPES) == set(Privileged)
    assert len(set(drawing.SHAPES.values())) == len(Privileged)


# --- Markdown -----------------------------------------------------------------------------------


@every_report
def test_markdown_tables_keep_their_columns(report: Report) -> None:
    width = 0
    for line in markdown.markdown(report).split("\n"):
        bars = len(re.findall(r"(?<!\\)(?:\\\\)*\|", line))
        if not line.startswith("| "):
            width = 0
            assert bars == 0
            continue
        width = width or bars
        assert bars == width


def test_hostile_texts_do_nothing_in_markdown() -> None:
    text = markdown.markdown(hostile_report())
    ours = text.split("```bibtex")[0]
    assert not re.search(r"(?<!\\)(?:\\\\)*[<\[]", ours)
    assert not re.search(r"(?<!\\)(?:\\\\)*&\w+;", ours)
    headings = [line for line in ours.split("\n") if line.startswith("#")]
    assert len(headings) == 5 + len(hostile_report())
    assert not re.search(f"[\t{_UNSAFE}]", text)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("1. one", r"1\. one"),
        ("- item", r"\- item"),
        ("https://a.b", r"https\:\/\/a.b"),
        ("www.a.b", r"www\.a.b"),
        ("a\n\nb", "a b"),
        ("a|b", r"a\|b"),
        (r"a\|b", r"a\\\|b"),
    ],
)
def test_markdown_texts_stay_what_they_are(given: str, shown: str) -> None:
    assert markdown.text(given) == shown


def test_markdown_tells_what_was_found() -> None:
    report = fake_report()
    text = markdown.markdown(report)
    assert text.index("the architecture fixes the axes") < text.index("## All sites")
    heads = ("## All sites", "## Site by site", "## How this was computed", "## How to cite")
    places = [text.index(head) for head in heads]
    assert places == sorted(places)
    for site in report:
        assert f"### `{site.site}`" in text


@every_report
def test_summaries_are_short_lines_that_hold_the_answer(report: Report) -> None:
    text = str(report)
    assert text == markdown.summary(report)
    assert max(map(len, text.split("\n"))) <= 88
    for sentence in words.answer(report):
        start = words.clean(sentence.text).split()[:3]
        assert " ".join(start) in " ".join(text.split()) or len(" ".join(start)) > 70


# --- tables -------------------------------------------------------------------------------------


def _rows(report: Report) -> int:
    return sum(max(1, len(site.scores)) for site in report)


@every_report
def test_a_table_has_one_row_for_every_site_and_score(report: Report) -> None:
    frame = report.to_dataframe()
    assert len(frame) == _rows(report)
    assert list(frame.columns) == list(tables.dataframe(fake_report()).columns)
    assert frame.dtypes.equals(tables.dataframe(fake_report()).dtypes)


def test_types_of_a_table() -> None:
    types = fake_report().to_dataframe().dtypes.astype(str)
    assert types["layer"] == "Int64"
    assert types["decides"] == types["certified"] == "boolean"
    assert types["effect"] == types["p_adjusted"] == types["closed_form_std"] == "float64"
    assert types["dim"] == "int64"
    assert types["site"].startswith("str")


def test_a_table_holds_the_numbers_unrounded() -> None:
    report = fake_report()
    frame = report.to_dataframe().set_index(["site", "score"])
    for site in report:
        for result in site.scores.values():
            row = frame.loc[(site.site, result.name)]
            for field in ("observed", "null_mean", "effect", "p_tail", "p_adjusted"):
                want = getattr(result, field)
                assert row[field] == want or (math.isnan(row[field]) and math.isnan(want))
            raw = site.beside.get(result.name)
            assert math.isnan(row["raw_rotation_effect"]) == (raw is None)
    bare = report.to_dataframe().query("site == 'unembed.hook_logits'").iloc[0]
    assert bare["score"] is not None
    assert report.to_dataframe()["score"].isna().sum() == 1


def test_a_summary_has_one_row_a_site_and_speaks_with_its_leading_score() -> None:
    report = fake_report()
    frame = report.summary()
    assert list(frame.index) == list(report.sites)
    for site in report:
        lead, speaker = selection.leading(site), selection.speaker(site)
        row = frame.loc[site.site]
        assert row.outcome == site.verdict.outcome.name
        if speaker is not None and not math.isnan(speaker.effect):
            assert (row.score, row.effect) == (speaker.name, speaker.effect)
        if speaker is not None and speaker.is_order:
            assert math.isnan(row.effect_low) and not math.isnan(row.difference)
        elif lead is not None:
            assert row.score == lead.name and row.effect == lead.effect
            assert row.difference_error == lead.difference_error
    whole = report.to_dataframe()
    assert whole[whole.leads.fillna(False)].groupby("site").size().max() == 1
    empty = REPORTS["no site"].summary()
    assert len(empty) == 0 and list(empty.dtypes) == list(frame.dtypes)


def test_every_axis_of_a_site_is_a_row() -> None:
    site = with_examples(fake_report(), sides=1)["blocks.0.mlp.hook_post"]
    frame, score = site.axes, selection.of_axes(site)
    assert score is not None and len(frame) == 172
    assert frame["value"].tolist() == score.per_direction.tolist()
    assert frame["p_value"].tolist() == score.per_direction_p.tolist()
    assert frame["stands_out"].mean() == pytest.approx(score.fraction_privileged)
    assert frame[frame.stands_out].p_value.max() <= frame[~frame.stands_out].p_value.min() or (
        frame.stands_out.all()
    )
    assert site.examples is not None
    top = site.examples.axes[0]
    assert top.axis is not None
    said = frame.loc[top.axis, "context"]
    assert f"[{top.contexts[0].tokens[top.contexts[0].at]}]" in said
    heads = fake_report()["blocks.0.attn.hook_q"].axes
    assert heads.loc[9, "label"] == "1, 1"
    bare = without_null().axes
    assert len(bare) == 512 and not bare.stands_out.any() and bare.value.isna().all()


def test_the_axes_that_stand_out_most_have_the_highest_values() -> None:
    site = fake_report()["blocks.0.mlp.hook_post"]
    top = site.top_axes(4)
    assert list(top) == site.axes["value"].nlargest(4).index.tolist()
    assert without_null().top_axes() == ()


def test_neurons_are_the_axes_that_stand_out_at_privileged_sites() -> None:
    report = fake_report()
    found = report.neurons()
    privileged = [site for site in report if site.verdict.outcome is Outcome.PRIVILEGED]
    assert set(found.site) <= {site.site for site in privileged}
    assert len(found) == sum(int(site.axes.stands_out.sum()) for site in privileged)
    for _, part in found.groupby("site"):
        assert part.p_value.is_monotonic_increasing
    both = report.neurons(Outcome.EMERGENT, Outcome.PRIVILEGED)
    assert len(both) > len(found)
    assert REPORTS["no site"].neurons().columns.tolist() == found.columns.tolist()


@every_report
def test_csv_files_have_a_line_for_every_row(report: Report, tmp_path: pathlib.Path) -> None:
    text = report.save(tmp_path / "r.csv").read_text(encoding="utf-8")
    csv.field_size_limit(10**7)
    rows = list(csv.reader(io.StringIO(text)))
    assert len(rows) == 1 + _rows(report) == text.count("\n")
    assert len({len(row) for row in rows}) == 1


# --- figures ------------------------------------------------------------------------------------


@pytest.mark.sample(default=1)
@pytest.mark.filterwarnings("ignore:Glyph")
@every_report
def test_figures_can_be_drawn(report: Report) -> None:
    from matplotlib.figure import Figure

    figure = report.plot()
    assert isinstance(figure, Figure)
    held = io.BytesIO()
    figure.savefig(held, format="png", dpi=40)
    assert held.getvalue().startswith(b"\x89PNG")


def test_a_figure_shows_every_site_and_its_effect() -> None:
    report = fake_report()
    figure = report.plot()
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    for site in report:
        assert site.site in texts
    nulls = figure.axes[-1]
    places = [line.get_xdata()[0] for line in nulls.lines if line.get_marker() not in ("", "None")]
    leads = [selection.leading(site) for site in report]
    assert places == pytest.approx([lead.effect for lead in leads if lead is not None])
    letters = [text for text in texts if text in set(words.LETTER.values())]
    assert len(letters) >= len(report)


@pytest.mark.slow
def test_a_figure_leaves_pyplot_alone_and_shows_itself_in_a_notebook() -> None:
    here = pathlib.Path(__file__).parents[1]
    paths = [str(here), str(here.parent)]
    program = (
        f"import sys; sys.path[:0] = {paths}\n"
        "from fake_report import fake_report\n"
        "import basis_probe.show.html, basis_probe.show.markdown\n"
        "import basis_probe.show.tables, basis_probe.show.plots\n"
        "import basis_probe.show.terminal\n"
        "heavy = {'matplotlib', 'pandas', 'jinja2', 'markupsafe', 'rich', 'scipy'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "figure = fake_report().plot()\n"
        "assert figure._repr_png_().startswith(b'\\x89PNG')\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["map", "nulls"])
def test_parts_of_a_figure_are_drawn_alone_or_on_given_axes(kind: str) -> None:
    from matplotlib.figure import Figure

    for report in (REPORTS["llama"], REPORTS["hostile"], REPORTS["no site"]):
        alone = report.plot(kind)
        held = io.BytesIO()
        alone.savefig(held, format="png", dpi=40)
        assert held.getvalue().startswith(b"\x89PNG")
        whole = Figure()
        left, right = whole.subplots(1, 2)
        assert report.plot(kind, ax=right) is whole
        assert right.texts or right.lines or not len(report)
        assert not left.texts and not left.lines


@pytest.mark.parametrize("kind", ["null", "axes"])
def test_one_score_is_drawn_alone_or_on_given_axes(kind: str) -> None:
    from matplotlib.figure import Figure

    site = fake_report().site_reports[0]
    name, score = next(iter(site.scores.items()))
    whole = Figure()
    ax = whole.subplots()
    assert site.plot(kind, score=name, ax=ax) is whole
    if kind == "null":
        assert ax.lines[0].get_xdata()[0] == score.observed
        assert (
            sum(patch.get_height() for patch in ax.patches) == np.isfinite(score.null_values).sum()
        )
    else:
        drawn = np.concatenate([line.get_ydata() for line in ax.lines])
        assert sorted(drawn) == sorted(score.per_direction)
    assert site.plot(kind)._repr_png_().startswith(b"\x89PNG")


def test_figures_that_cannot_be_drawn() -> None:
    from matplotlib.figure import Figure

    report = fake_report()
    with pytest.raises(ValueError, match="kind='pie': give one of 'overview', 'map', 'nulls'"):
        report.plot("pie")
    with pytest.raises(ValueError, match="fills a figure of its own"):
        report.plot(ax=Figure().subplots())
    with pytest.raises(ValueError, match="kind='pie': give one of 'null', 'axes'"):
        report.site_reports[0].plot("pie")
    with pytest.raises(ValueError, match="has no score 'beauty' to draw; name one of: "):
        report.site_reports[0].plot(score="beauty")


def test_claims_and_groups_show_themselves() -> None:
    symmetry = fake_report().site_reports[0].symmetry
    page = _Page(symmetry._repr_html_())
    assert page.wrong == [] and page.open == []
    for said in (symmetry.group.name, symmetry.because, words.certificate(symmetry)):
        assert " ".join(said.split()) in page.text
    assert symmetry.certificate is not None
    page = _Page(symmetry.certificate._repr_html_())
    assert page.wrong == [] and page.open == []
    assert words.proof(symmetry.certificate) in page.text
    page = _Page(symmetry.group._repr_html_())
    assert page.wrong == [] and page.open == []
    assert symmetry.group.name in page.text
    assert symmetry.group.describe() in page.text
    hostile = _Page(hostile_report().site_reports[0].symmetry._repr_html_())
    assert "script" not in {tag for tag, _ in hostile.tags}


# --- the terminal -------------------------------------------------------------------------------


def _printed(report: Report, width: int, *, colours: bool = False) -> str:
    from rich.console import Console

    from basis_probe.show.terminal import render

    held = io.StringIO()
    console = Console(
        file=held,
        width=width,
        force_terminal=colours,
        color_system="truecolor" if colours else None,
    )
    console.print(render(report))
    return held.getvalue()


@pytest.mark.sample(default=26)
@pytest.mark.parametrize("width", [40, 80, 160])
@every_report
def test_terminal_lines_fit(report: Report, width: int) -> None:
    from rich.cells import cell_len

    text = _printed(report, width)
    assert max(cell_len(line) for line in text.split("\n")) <= width


def test_the_terminal_shows_the_answer_before_the_sites() -> None:
    for width in (80, 160):
        text = _printed(fake_report(), width)
        assert text.index("the architecture") < text.index("blocks.0.hook_resid_pre")
        line = next(line for line in text.split("\n") if line.startswith("blocks.0.mlp.hook_post"))
        for said in ("axes", "+138", "5e-260", "privileged"):
            assert said in line
    assert "orthogonal" in _printed(fake_report(), 160)


def test_many_sites_are_few_lines_on_a_terminal() -> None:
    sites = wide_report(160, frames=9, dim=8).site_reports
    changed = dataclasses.replace(sites[6], verdict=Verdict(Outcome.UNUSED, ""))
    report = Report((*sites[:6], changed, *sites[7:]), provenance())
    text = _printed(report, 120)
    assert len(text.splitlines()) < 20
    assert "blocks.*.mlp.hook_pre of layers 0\u201379" in text
    assert "blocks.*.mlp.hook_post of layers 0\u20132 and 4\u201379" in text
    assert re.search(r"blocks\.3\.mlp\.hook_post .* unused", text)
    effects = [lead.effect for site in sites[1::2] if (lead := selection.leading(site)) is not None]
    assert f"{words.effect(min(effects))} to {words.effect(max(effects))}" in text


def test_names_are_no_markup_and_no_commands_on_a_terminal() -> None:
    text = _printed(hostile_report(), 160, colours=True)
    plain = re.sub(r"\x1b\[[\d;]*m", "", text)
    assert "[red]markup[/red]" in plain
    assert "\\x1b[31m" in plain
    assert not re.search(f"[\t{_UNSAFE}]", plain)


# --- files --------------------------------------------------------------------------------------


@pytest.mark.sample(default=2)
@every_report
def test_json_round_trip_is_exact(report: Report) -> None:
    again = Report.from_json(report.to_json())
    assert again == report
    assert again.to_json() == report.to_json()


def test_reports_that_differ_in_one_number_are_not_equal() -> None:
    report = fake_report()
    first = report.site_reports[0]
    name, result = next(iter(first.scores.items()))
    moved = result.null_values.copy()
    moved[0] = np.nextafter(moved[0], 1.0)
    changed = dataclasses.replace(
        first, scores={**first.scores, name: dataclasses.replace(result, null_values=moved)}
    )
    other = dataclasses.replace(report, site_reports=(changed, *report.site_reports[1:]))
    assert other != report
    assert Report.from_json(other.to_json()) == other


@pytest.mark.sample(default=1)
@every_report
def test_reports_can_be_saved(report: Report, tmp_path: pathlib.Path) -> None:
    page = pages.page(report)
    assert report.save(tmp_path / "r.html").read_text(encoding="utf-8") == page
    text = report.save(tmp_path / "r.md").read_text(encoding="utf-8")
    assert text == markdown.markdown(report)
    text = report.save(tmp_path / "r.json").read_text(encoding="utf-8")
    assert text == report.to_json()


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("ending", ["pdf", "svg", "png"])
def test_a_report_is_saved_as_a_figure_whose_letters_stay_letters(
    ending: str, tmp_path: pathlib.Path
) -> None:
    made = fake_report().save(tmp_path / f"r.{ending}").read_bytes()
    if ending == "pdf":
        assert made.startswith(b"%PDF") and b"/Type3" not in made
    elif ending == "svg":
        assert b"blocks.0.hook_resid_pre</text>" in made
    else:
        assert made.startswith(b"\x89PNG")


@every_report
def test_a_latex_table_has_one_line_for_every_site(report: Report, tmp_path: pathlib.Path) -> None:
    text = report.save(tmp_path / "t.tex").read_text(encoding="utf-8")
    body = text.partition("\\midrule\n")[2].partition("\\bottomrule")[0]
    lines = body.replace("\\endhead\n", "").splitlines()
    assert len(lines) == len(report)
    for line in lines:
        assert line.endswith(" \\\\")
        # Nothing in a name is a command, a column or a comment.
        assert len(re.findall(r"(?<!\\)&", line)) == 7
        assert not re.search(r"(?<!\\)[%#_]", line)
        assert set(re.findall(r"\\([a-z]+)", line)) <= {
            *("texttt", "cdot", "infty", "textless", "textgreater", "textbar", "textasciitilde"),
            *("textasciicircum", "textbackslash", "ldots", "times", "pm"),
        }
    grouping = re.sub(r"\\[{}]", "", body)
    assert grouping.count("{") == grouping.count("}")


def test_a_latex_table_tells_the_order_on_which_an_outcome_rests(tmp_path: pathlib.Path) -> None:
    site = by_scale(fake_report().site_reports[0], effect=8.5)
    report = dataclasses.replace(fake_report(), site_reports=(site,))
    line = report.save(tmp_path / "t.tex").read_text(encoding="utf-8").splitlines()[5]
    assert line.split(" & ")[2:5] == ["scale", "$+8.50$", "--"]
    assert report.summary().iloc[0][["score", "effect"]].tolist() == ["scale", 8.5]


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("size", ["column", "page", (4.0, 3.0)])
def test_figures_have_the_size_that_a_page_asks_for(size: tuple[float, float] | str) -> None:
    report = fake_report()
    site = report["blocks.0.mlp.hook_post"]
    width = {"column": 3.35, "page": 6.9}.get(size, 4.0) if isinstance(size, str) else size[0]
    for figure in (
        report.plot("map", figsize=size),
        report.plot("nulls", figsize=size),
        site.plot("null", figsize=size),
        site.plot("axes", figsize=size),
        compare_reports({"a": report, "b": report}).plot(figsize=size),
    ):
        assert figure.get_figwidth() == pytest.approx(width)
        assert isinstance(size, str) or figure.get_figheight() == pytest.approx(size[1])
        drawn = [text.get_fontsize() for axes in figure.axes for text in axes.texts]
        assert not drawn or min(drawn) >= 5
    for wrong in ("poster", (3,), (-3, 2), ("a", "b"), (1, 2, 3), 5, (math.nan, 1)):
        size: Any = wrong
        with pytest.raises(ValueError, match=r"figsize=.*: give \(width, height\) in inches, or"):
            report.plot("map", figsize=size)
    with pytest.raises(ValueError, match="leave ax and figsize out"):
        report.plot(figsize="page")
    with pytest.raises(ValueError, match="give one of them"):
        site.plot(ax=site.plot().axes[0], figsize="page")


@pytest.mark.slow
def test_figures_can_be_read_under_any_style(tmp_path: pathlib.Path) -> None:
    import matplotlib as mpl
    from matplotlib.colors import to_rgb
    from matplotlib.text import Text

    from basis_probe.show import heatmap

    names = ["blocks.0.mlp_$x_", "r$\\frac{", "100 % & #1"]
    report, errors = hostile_report(), np.full((3, 3), 0.1)
    looks = {"text.usetex": True, "text.color": "white", "axes.labelcolor": "white"}
    looks |= {"xtick.color": "white", "figure.facecolor": "black", "axes.facecolor": "black"}
    with mpl.rc_context(looks):
        figures = [
            *(report.plot(kind) for kind in ("overview", "map", "nulls")),
            *(report.site_reports[0].plot(kind) for kind in ("null", "axes")),
            compare_reports({"a": report, "b": report}).plot(),
            heatmap.heat_map(errors, errors, rows=names, columns=names, title=names[1]),
            heatmap.dendrogram(np.ones((3, 3)) - np.eye(3), names, label=names[0]),
            heatmap.points(np.eye(3)[:, :2], names, label=names[1]),
            heatmap.lines({name: [("a$_", 0.1)] for name in names}, label=names[2]),
        ]
        for number, figure in enumerate(figures):
            # By TeX it would fail where there is none, and on these names where there is one.
            figure.savefig(tmp_path / f"{number}.png")
    for number, figure in enumerate(figures):
        assert to_rgb(figure.get_facecolor()[:3]) == (1, 1, 1)
        for legend in figure.legends:
            if legend.get_title().get_text().startswith("letter"):
                # The letters are drawn, each of many points.
                assert all(len(line.get_marker()) > 3 for line in legend.legend_handles)
                paths = [line._marker.get_path() for line in legend.legend_handles]
                assert all(len(path.vertices) > 8 for path in paths)
        for text in (text for text in figure.findobj(Text) if text.get_text()):
            assert not text.get_usetex() and not ("$" in text.get_text() and text.get_parse_math())
            # Only on a dark cell or mark is a text as bright as paper.
            assert sum(to_rgb(text.get_color())) < 2 or text.get_text() in "PUEA?" or number == 6


@pytest.mark.slow
def test_a_map_of_many_layers_goes_on_below_at_the_width_of_a_page() -> None:
    report = wide_report(160, frames=9, dim=8)
    for size, least in (("column", 5.0), ("page", 5.0), (None, 8.0)):
        figure = report.plot("map", figsize=size)
        axes = figure.axes[0]
        assert len(axes.lines) == 160
        places = {(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines}
        assert len(places) == 160
        figure.canvas.draw()
        apart = axes.get_window_extent().width / figure.dpi / (axes.get_xlim()[1] + 0.5)
        # Marks do not cover each other, and letters can be read.
        assert max(line.get_markersize() for line in axes.lines) / 72 <= 1.45 * apart
        letters = [t.get_fontsize() for t in axes.texts if t.get_fontweight() == "bold"]
        assert len(letters) == 160 and min(letters) >= least
        assert figure.get_figheight() < 25


@pytest.mark.slow
def test_keys_below_a_map_explain_the_marks_that_are_on_it() -> None:
    report = fake_report()
    compared = compare_reports({"a": report, "b": report})
    shapes = {site.symmetry.privileged.name.lower() for site in report}
    outcomes = {site.verdict.outcome.name.lower() for site in report}
    for figure, bars in (
        (report.plot("map"), 1), (compared.plot(), 1), (report.plot("nulls"), 0)
    ):  # fmt: skip
        told = [[text.get_text() for text in key.get_texts()] for key in figure.legends]
        assert [set(names) for names in told] == [shapes, outcomes]
        assert len(figure.axes) == 1 + bars
        figure.canvas.draw()
        boxes = [key.get_window_extent() for key in figure.legends]
        assert not boxes[0].overlaps(boxes[1])
        assert all(box.y1 <= figure.axes[0].get_window_extent().y0 for box in boxes)
    # Whoever composes a figure explains it.
    drawn = report.plot("map", ax=compared.plot().axes[0])
    assert len(drawn.axes) == 2


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("ending", ["htm", "HTML"])
def test_pages_have_several_endings(ending: str, tmp_path: pathlib.Path) -> None:
    report = fake_report()
    saved = report.save(tmp_path / f"r.{ending}").read_text(encoding="utf-8")
    assert saved == pages.page(report)


def test_other_endings_are_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match=r"cannot tell the format from 'r\.doc'"):
        fake_report().save(tmp_path / "r.doc")


def test_sites_show_themselves() -> None:
    site: SiteReport = fake_report()["blocks.0.mlp.hook_post"]
    assert _Page(site._repr_html_()).text.count(site.site) >= 1
    assert str(site).startswith("blocks.0.mlp.hook_post: PRIVILEGED.")
    assert fake_report()._repr_html_() == pages.fragment(fake_report())


@pytest.mark.parametrize("dim", [1, 6])
@pytest.mark.parametrize("group", ["orthogonal", "permutation"])
def test_sites_whose_axes_all_say_the_same_have_pages_and_figures(group: str, dim: int) -> None:
    """Every turned axis then scores what the axes do, to the last digits."""
    x = torch.randn(300, 1, generator=torch.Generator().manual_seed(0)).expand(300, dim)
    site = bp.probe_activations(x, group=group)
    assert site.site in site._repr_html_()
    for name in site.scores:
        figure = site.plot("null", score=name)
        figure.clear()


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_a_strip_of_values_that_are_all_but_equal_is_a_spike(scale: float) -> None:
    score = next(iter(fake_report().site_reports[0].scores.values()))
    near = scale * (1 + np.arange(3) * 2.0**-52)
    values = dataclasses.replace(score, null_values=near, observed=scale, null_mean=scale)
    strip = drawing.strip(values)
    assert strip is not None and strip.outline.count("H") == 1
    far = dataclasses.replace(score, null_values=scale * np.arange(1.0, 9.0))
    strip = drawing.strip(far)
    assert strip is not None and strip.outline.count("H") == 40
