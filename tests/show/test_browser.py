"""Reports in a real browser: they load clean, fit, and do what they offer."""

from __future__ import annotations

import base64
import csv
import dataclasses
import json
import pathlib
import re
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from fake_report import (
    HOSTILE,
    by_scale,
    fake_report,
    hostile_report,
    wide_report,
    with_examples,
)

import basis_probe as bp
from basis_probe.results.report import Report
from basis_probe.show import html as pages
from basis_probe.show import words

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None or DRIVER is None, reason="chromium and chromedriver are not installed"
    ),
]

REPORTS: dict[str, Callable[[], Report]] = {
    "usual": fake_report,
    "hostile": hostile_report,
    "wide": lambda: wide_report(40, frames=199),
    "examples": lambda: with_examples(fake_report(), sides=2),
    "pictures": lambda: with_examples(fake_report(), pictures=True),
    "empty": lambda: Report((), fake_report().provenance),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp("saved")


@pytest.fixture(scope="module")
def browser(saved: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium import webdriver

    assert CHROMIUM is not None and DRIVER is not None
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    profile = tmp_path_factory.mktemp("profile")
    for word in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--no-first-run",
        f"--user-data-dir={profile}",
    ):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    settings = {
        "download.default_directory": str(saved),
        # Else the second file of a page that nobody touched waits for a permission.
        "profile.default_content_setting_values.automatic_downloads": 1,
    }
    options.add_experimental_option("prefs", settings)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_script_timeout(60)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pathlib.Path]:
    folder = tmp_path_factory.mktemp("pages")
    return {name: made().save(folder / f"{name}.html") for name, made in REPORTS.items()}


def _open(browser: Any, path: pathlib.Path, width: int = 1280, *, dark: bool = False) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    browser.get(path.as_uri())


def _complaints(browser: Any) -> list[str]:
    return [entry["message"] for entry in browser.get_log("browser")]


def _press(browser: Any, script: str) -> None:
    """Presses what a script finds, as a user would."""
    browser.execute_script(f"({script}).click()")


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", REPORTS)
def test_a_page_loads_without_a_complaint_and_fits(
    browser: Any, written: dict[str, pathlib.Path], name: str, width: int
) -> None:
    _open(browser, written[name], width, dark=width == 390)
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert _complaints(browser) == []
    across = browser.execute_script(
        "return [document.documentElement.scrollWidth, window.innerWidth]"
    )
    assert across[0] <= across[1] == width
    # What is wider than the page scrolls in a box of its own, which the keyboard reaches.
    outside = browser.execute_script(
        """
        return Array.from(document.querySelectorAll("body *")).filter(element =>
          !element.closest(".scroll, .unseen, svg, [hidden]") &&
          element.getBoundingClientRect().right > window.innerWidth + 1
        ).map(element => element.outerHTML.slice(0, 80))
        """
    )
    assert outside == []
    boxes = browser.execute_script(
        "return Array.from(document.querySelectorAll('.scroll')).every(box => box.tabIndex === 0)"
    )
    assert boxes


def test_both_grounds(browser: Any, written: dict[str, pathlib.Path]) -> None:
    ground = "return getComputedStyle(document.body).backgroundColor"
    _open(browser, written["usual"])
    light = browser.execute_script(ground)
    _open(browser, written["usual"], dark=True)
    assert (light, browser.execute_script(ground)) == ("rgb(255, 255, 255)", "rgb(21, 24, 28)")


def test_a_column_sorts_up_down_and_back(browser: Any, written: dict[str, pathlib.Path]) -> None:
    _open(browser, written["usual"])
    cells = "Array.from(document.querySelectorAll('table.sites tbody tr'))"
    effects = f"return {cells}.map(row => row.cells[5].getAttribute('data-v'))"
    before = browser.execute_script(effects)
    known = sorted(float(value) for value in before if value != "nan")
    assert len(known) > 2
    assert [float(value) for value in before if value != "nan"] != known
    head = "document.querySelectorAll('table.sites thead th')[5]"
    said = f"return {head}.getAttribute('aria-sort')"
    for direction, expected in (("ascending", known), ("descending", known[::-1])):
        _press(browser, f"{head}.querySelector('button')")
        found = browser.execute_script(effects)
        assert browser.execute_script(said) == direction
        assert [float(value) for value in found if value != "nan"] == expected
        # Sites without a number stand last, whichever way.
        assert set(found[len(expected) :]) <= {"nan"}
    _press(browser, f"{head}.querySelector('button')")
    assert browser.execute_script(effects) == before
    assert browser.execute_script(said) is None


def test_the_filter_hides_rows_and_says_how_many(
    browser: Any, written: dict[str, pathlib.Path]
) -> None:
    from selenium.webdriver.common.by import By

    _open(browser, written["usual"])
    field = browser.find_element(By.CSS_SELECTOR, "input[type=search]")
    field.send_keys("mlp privileged")
    shown = browser.execute_script(
        "return Array.from(document.querySelectorAll('table.sites tbody tr:not([hidden])'))"
        ".map(row => row.textContent.toLowerCase())"
    )
    assert 0 < len(shown) < len(fake_report())
    assert all("mlp" in text and "privileged" in text for text in shown)
    status = browser.find_element(By.CSS_SELECTOR, ".tools [role=status]").text
    assert status == f"{len(shown)} of {len(fake_report())}"


def test_a_mark_on_the_map_leads_to_its_site(
    browser: Any, written: dict[str, pathlib.Path]
) -> None:
    _open(browser, written["usual"])
    _press(browser, "document.querySelector('.map a[href=\"#site-3\"]')")
    seen = browser.execute_script(
        """
        const box = document.getElementById("site-3");
        return [box.closest("details").open, box.closest("details").querySelector("h3").textContent,
                box.getBoundingClientRect().top < window.innerHeight];
        """
    )
    assert seen[0] is True
    assert fake_report().sites[3] in seen[1]
    assert seen[2] is True


def _downloaded(saved: pathlib.Path, name: str) -> list[list[str]]:
    path = saved / name
    for _ in range(100):
        if path.is_file():
            return list(csv.reader(path.read_text(encoding="utf-8").splitlines()))
        time.sleep(0.05)
    raise AssertionError(f"no {name} among {sorted(p.name for p in saved.iterdir())}")


def test_the_numbers_of_a_figure_are_saved(
    browser: Any, written: dict[str, pathlib.Path], saved: pathlib.Path
) -> None:
    _open(browser, written["usual"])
    site = next(s for s in fake_report() if any(len(r.per_direction) for r in s.scores.values()))
    place = fake_report().sites.index(site.site)
    name, score = next((n, r) for n, r in site.scores.items() if len(r.per_direction))
    number = list(site.scores).index(name)
    row = f"document.querySelector('#site-{place} [data-drawn=DRAWN][data-score=\"{number}\"]')"
    stem = f"{site.site}.{name}"
    _press(browser, row.replace("DRAWN", "frames") + ".querySelector('.save')")
    table = _downloaded(saved, f"{stem}.null.csv")
    assert table[0] == ["frame", name]
    expected = [score.observed, *score.null_values.tolist()]
    assert [int(line[0]) for line in table[1:]] == list(range(len(expected)))
    np.testing.assert_allclose([float(line[1]) for line in table[1:]], expected, rtol=1e-6)
    _press(browser, row.replace("DRAWN", "axes") + ".querySelector('.save')")
    table = _downloaded(saved, f"{stem}.axes.csv")
    found = np.array([[float(cell) for cell in line[1:]] for line in table[1:]])
    np.testing.assert_allclose(found[:, 0], score.per_direction, rtol=1e-6)
    np.testing.assert_allclose(found[:, 1], score.per_direction_p, rtol=1e-6)
    assert _complaints(browser) == []


def test_the_table_is_saved_with_whole_names(
    browser: Any, written: dict[str, pathlib.Path], saved: pathlib.Path
) -> None:
    _open(browser, written["wide"])
    buttons = "Array.from(document.querySelectorAll('button'))"
    _press(browser, f"{buttons}.find(b => b.textContent.startsWith('Save the table'))")
    table = _downloaded(saved, "sites.csv")
    assert [line[2] for line in table[1:]] == list(REPORTS["wide"]().sites)


def test_hostile_tokens_are_text(browser: Any, written: dict[str, pathlib.Path]) -> None:
    _open(browser, written["hostile"])
    counts = browser.execute_script(
        "return [document.scripts.length, document.images.length, "
        "document.querySelectorAll('[onerror], [onload], iframe, object, embed').length]"
    )
    assert counts == [1, 0, 0]
    whole = browser.execute_script("return document.body.textContent")
    for text in HOSTILE:
        assert words.shorten(words.clean(text), 1500) in " ".join(whole.split())
    # Tokens too, on the line that they belong to, and as long as a line can hold.
    lines = browser.execute_script(
        "return Array.from(document.querySelectorAll('.card li')).map(line => line.textContent)"
    )
    for text in HOSTILE:
        assert any(words.shorten(words.clean(text.replace("\n", "↵")), 48) in li for li in lines)
    assert max(map(len, lines)) < 26 * 49
    assert "<script>alert(1)</script>" in whole
    from selenium.common.exceptions import NoAlertPresentException

    with pytest.raises(NoAlertPresentException):
        _ = browser.switch_to.alert.text


JUDGED = "document.querySelector('.judged')"


def _cards(browser: Any, within: str) -> list[list[Any]]:
    """Kind, whether its name is seen, and first line of every card, in the order of the page."""
    return browser.execute_script(
        f"""
        return Array.from({JUDGED}.querySelectorAll('{within} .card')).map(card => [
          card.dataset.kind, card.querySelector('.who').checkVisibility(),
          card.querySelector('li').textContent])
        """
    )


def test_examples_are_judged_blind_and_revealed(
    browser: Any, written: dict[str, pathlib.Path]
) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    _open(browser, written["examples"])
    browser.execute_script("document.querySelector('details.site').open = true")
    beside = _cards(browser, ".examples")
    assert "Directions of a random rotation\n" in browser.find_element(By.CLASS_NAME, "judged").text
    assert [kind for kind, _, _ in beside] == ["axis"] * 10 + ["rotated"] * 10
    assert all(seen for _, seen, _ in beside) and _cards(browser, ".blind") == []
    section = browser.find_element(By.CSS_SELECTOR, ".judged")
    control = section.find_element(By.CSS_SELECTOR, ".tools button")
    said = section.find_element(By.CSS_SELECTOR, "[role=status]")
    assert control.text == "Judge blind"
    # With the keyboard, as a reader without a mouse would.
    control.send_keys(Keys.ENTER)
    blind = _cards(browser, ".blind")
    assert _cards(browser, ".examples") == []
    assert sorted(line for *_, line in blind) == sorted(line for *_, line in beside)
    assert [line for *_, line in blind] != [line for *_, line in beside]
    assert not any(seen for _, seen, _ in blind)
    # Nothing that is shown, or read out, tells an axis from a rotated direction.
    shown = section.find_element(By.CSS_SELECTOR, ".blind").text.lower()
    assert "axis 0" not in shown and "rotated" not in shown
    assert "rotated" not in said.text and "Directions of a random rotation\n" not in section.text
    boxes = section.find_elements(By.CSS_SELECTOR, ".guess input")
    assert len(boxes) == 20
    for (kind, _, _), box in zip(blind, boxes, strict=True):
        if kind == "axis":
            box.send_keys(Keys.SPACE)
    wrong = next(box for (kind, _, _), box in zip(blind, boxes, strict=True) if kind == "rotated")
    wrong.send_keys(Keys.SPACE)
    assert control.text == "Reveal"
    control.send_keys(Keys.ENTER)
    revealed = _cards(browser, ".blind")
    assert [card[2] for card in revealed] == [card[2] for card in blind]
    assert all(seen for _, seen, _ in revealed)
    assert said.text == "You took 10 of 10 axes and 1 of 10 rotated directions for axes."
    control.send_keys(Keys.ENTER)
    assert _cards(browser, ".examples") == beside and _cards(browser, ".blind") == []
    assert not section.find_elements(By.CSS_SELECTOR, ".guess")
    assert _complaints(browser) == []


def test_pictures_of_examples_are_seen(browser: Any, written: dict[str, pathlib.Path]) -> None:
    _open(browser, written["pictures"])
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    sizes = browser.execute_script(
        """
        return Array.from(document.querySelectorAll(".examples img")).map(
          image => [image.naturalWidth, image.naturalHeight, image.clientHeight, image.alt])
        """
    )
    sites = sum(site.examples is not None for site in REPORTS["pictures"]())
    assert len(sizes) == 50 * sites
    for wide, high, shown, named in sizes:
        assert 3 <= wide < 20 and 3 <= high < 20 and shown >= 50 and named
    assert _complaints(browser) == []


def test_all_examples_are_hidden_before_one_is_seen(
    browser: Any, written: dict[str, pathlib.Path]
) -> None:
    _open(browser, written["examples"])
    buttons = "Array.from(document.querySelectorAll('button'))"
    _press(browser, f"{buttons}.find(b => b.textContent === 'Judge all examples blind')")
    left = browser.execute_script("return document.querySelectorAll('.examples .card').length")
    sites = sum(site.examples is not None for site in REPORTS["examples"]())
    hidden = browser.execute_script(
        "return document.querySelectorAll('.blind .who[hidden]').length"
    )
    assert (left, hidden) == (0, 20 * sites)


def test_a_print_is_the_answer_the_map_the_table_and_what_is_open(
    browser: Any, written: dict[str, pathlib.Path]
) -> None:
    _open(browser, written["usual"])
    pages = [_printed(browser)]
    assert pages[0] <= 4
    shown = "return document.querySelector('{}').getClientRects().length > 0"
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    for there, what in (
        (True, ".map"),
        (True, ".sites"),
        (False, ".by-site"),
        (False, ".tools"),
        (False, "nav"),
        (False, ".explained"),
    ):
        assert browser.execute_script(shown.format(what)) is there, what
    # Paper is white, also for those whose screen is dark.
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": dark})
    for part in ("html", "body"):
        ground = f"return getComputedStyle(document.querySelector('{part}')).backgroundColor"
        assert browser.execute_script(ground) == "rgb(255, 255, 255)"
    browser.execute_script("document.querySelector('details.site').open = true")
    assert browser.execute_script(shown.format(".by-site"))
    assert browser.execute_script(shown.format("details.site .strips"))
    assert _printed(browser) in (pages[0] + 1, pages[0] + 2)


def _printed(browser: Any) -> int:
    """The number of pages on paper."""
    paper = {"paperWidth": 8.27, "paperHeight": 11.69}
    made = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", paper)["data"])
    return len(re.findall(rb"/Type\s*/Page\b(?!s)", made))


def test_a_map_of_many_layers_fits_and_goes_on_below(browser: Any, tmp_path: pathlib.Path) -> None:
    sites = wide_report(160, frames=9, dim=8).site_reports
    path = Report(sites, fake_report().provenance).save(tmp_path / "many.html")
    _open(browser, path)
    tables = browser.execute_script("return document.querySelectorAll('table.map').length")
    assert tables == 3
    over = browser.execute_script(
        "return [...document.querySelectorAll('.scroll:has(.map)')]"
        ".filter(box => box.scrollWidth > box.clientWidth).length"
    )
    assert over == 0
    marks = browser.execute_script("return document.querySelectorAll('table.map .mark').length")
    assert marks == len(sites)


def test_every_control_has_a_name_and_the_keyboard_reaches_it(
    browser: Any, written: dict[str, pathlib.Path]
) -> None:
    _open(browser, written["usual"])
    nameless = browser.execute_script(
        """
        return Array.from(document.querySelectorAll("a, button, input, summary")).filter(control =>
          !(control.textContent.trim() || control.getAttribute("aria-label") ||
            (control.labels && control.labels.length)) || control.tabIndex < 0
        ).map(control => control.outerHTML.slice(0, 100))
        """
    )
    assert nameless == []


def test_twelve_layers_stay_below_five_megabytes() -> None:
    layers = wide_report(36, frames=199, dim=768).site_reports
    neurons = wide_report(12, frames=199, dim=3072).site_reports
    whole = Report((*layers, *neurons), fake_report().provenance)
    page = pages.page(with_examples(whole, sides=2))
    assert len(page.encode()) < 5e6
    (data,) = [line for line in page.splitlines() if line.startswith('<div id="numbers"')]
    held = json.loads(data.split('data-numbers="')[1].split('"')[0].replace("&#34;", '"'))
    assert len(held) == 48


# What JupyterLab says of everything that a cell returns, and what a fragment must not inherit.
LAB = """
.jp-RenderedHTMLCommon{font-size:13px}
.jp-RenderedHTMLCommon img,.jp-RenderedHTMLCommon svg{max-width:100%;height:auto}
.jp-RenderedHTMLCommon dl dt{float:left;width:20%;display:block;font-weight:bold}
.jp-RenderedHTMLCommon dl dd{display:block;margin-left:20%}
.jp-RenderedHTMLCommon ul:not(.list-inline){padding-left:2em}
.jp-RenderedHTMLCommon table{table-layout:fixed;margin-left:auto;border:none}
.jp-RenderedHTMLCommon td,.jp-RenderedHTMLCommon th{text-align:right;max-width:none;padding:.5em}
.jp-RenderedHTMLCommon code{background:#eee;padding:1px 5px}
"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_fragment_keeps_its_form_among_the_styles_of_a_notebook(
    browser: Any, tmp_path: pathlib.Path, dark: bool
) -> None:
    page = tmp_path / "lab.html"
    page.write_text(
        f'<!doctype html><meta charset="utf-8"><style>{LAB}</style>'
        f'<body data-jp-theme-light="{"false" if dark else "true"}">'
        f'<div class="jp-RenderedHTMLCommon">{fake_report()._repr_html_()}</div>',
        encoding="utf-8",
    )
    _open(browser, page)
    measure = "return [...document.querySelectorAll('{}')].map(e => e.getBoundingClientRect().{})"
    widths = browser.execute_script(measure.format(".map .mark", "width"))
    assert widths and min(widths) >= 30
    lines = browser.execute_script(measure.format(".asked dt", "height"))
    assert lines and max(lines) < 30
    hidden = "return getComputedStyle(document.querySelector('.static')).display"
    assert browser.execute_script(hidden) == "none"
    ground = "return getComputedStyle(document.querySelector('.bp')).backgroundColor"
    assert browser.execute_script(ground) == ("rgb(21, 24, 28)" if dark else "rgb(255, 255, 255)")


def test_eighty_layers_of_wide_sites_stay_small_and_are_unpacked_when_opened(
    browser: Any, tmp_path: pathlib.Path
) -> None:
    report = Report(wide_report(400, frames=199, dim=8192).site_reports, fake_report().provenance)

    def usual(site: bp.SiteReport) -> bp.SiteReport:
        """Two scores decide, two are for information, as by default; scale is asked too."""
        scores = {
            name: dataclasses.replace(score, decides=place < 2)
            for place, (name, score) in enumerate(site.scores.items())
        }
        return by_scale(dataclasses.replace(site, scores=scores), effect=7.0)

    report = dataclasses.replace(report, site_reports=tuple(map(usual, report)))
    report = with_examples(report, sides=2, text=HOSTILE[1])
    path = report.save(tmp_path / "large.html")
    assert path.stat().st_size <= 5_000_000
    _open(browser, path)
    assert browser.execute_script("return document.querySelectorAll('*').length") < 30_000
    _press(browser, "document.querySelector('.map a[href=\"#site-7\"]')")
    for _ in range(100):
        if browser.execute_script("return document.querySelector('#site-7 .judged') !== null"):
            break
        time.sleep(0.05)
    text = browser.execute_script("return document.querySelector('#site-7').textContent")
    site = report.site_reports[7]
    assert site.verdict.sentence in text and site.examples is not None
    # Names are text there too, and the section does what it offers.
    assert HOSTILE[1] in text
    assert browser.execute_script("return document.images.length") == 0
    _press(browser, "[...document.querySelectorAll('#site-7 button')].find(b => b.textContent)")
    guesses = browser.execute_script("return document.querySelectorAll('.guess').length")
    assert guesses == len(site.examples.axes) + len(site.examples.rotated)
    shut = browser.execute_script("return document.querySelectorAll('[data-held]').length")
    assert shut == len(report) - 1
    assert _complaints(browser) == []
