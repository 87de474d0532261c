"""The atlas: its page is what its entries said, and what it claims holds in a short form too."""

from __future__ import annotations

import json
import pathlib
import re

import pytest
import tiers
from atlas.entries import ENTRIES
from atlas.entry import Entry, Missing, Notes, NotSo, Section, Settings, Verdict
from atlas.page import anchor, page, sections

ROOT = pathlib.Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
NONE = Settings(short=True, cache=pathlib.Path("nowhere"))


def _entry(name: str = "one") -> Entry:
    return Entry(name, "A title: of two words", "nothing.", lambda notes, settings: None)


def test_the_page_is_what_the_entries_said() -> None:
    said = sections(DOCS / "atlas", [*ENTRIES])
    assert said, "run python -m examples.atlas --out docs"
    assert (DOCS / "atlas.md").read_text(encoding="utf-8") == page(said)
    assert not [one.name for one in said if one.short], "the page is made of the whole form"


def test_every_figure_of_the_page_is_there_and_no_other() -> None:
    shown = re.findall(r"!\[[^]]*\]\(atlas/([^)]+)\)", (DOCS / "atlas.md").read_text())
    there = {path.name for path in (DOCS / "atlas").glob("*.png")}
    assert set(shown) == there and len(shown) == len(there)


def test_the_rows_of_the_readme_are_those_of_the_page() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    verdicts = "|".join(verdict.value for verdict in Verdict)
    rows = [line for line in readme.splitlines() if re.search(rf"\| \*({verdicts})\* \|$", line)]
    known = {row.line() for one in sections(DOCS / "atlas", [*ENTRIES]) for row in one.rows}
    assert len(rows) == 4
    assert [row for row in rows if row not in known] == []


def test_what_is_said_comes_back_from_its_file(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notes = Notes(_entry(), tmp_path)
    notes.say("Of   seven\n things.")
    notes.table(["name", "value"], [["a", "1"], ["b", "2"]])
    notes.row("A claim", "10", "3", Verdict.OTHER_ORDER)
    notes.number("three", 3)
    notes.save(short=True, about={"torch": "9"})
    section = Section.load(tmp_path / "one.json")
    assert section.parts == (
        "Of seven things.",
        "| name | value |\n|---|---:|\n| a | 1 |\n| b | 2 |",
    )
    made = page([section])
    assert (
        "| [A claim](#a-title-of-two-words) | 10 | 3 | *holds in another order* |" in made
        and "## A title: of two words\n\nOf seven things." in made
        and "Short form." in made
    )
    assert anchor("A title: of two words") == "a-title-of-two-words"
    # Nothing comes on the page that was not printed.
    printed = capsys.readouterr().out
    assert all(part in printed for part in section.parts) and section.rows[0].line() in printed
    assert json.loads((tmp_path / "one.json").read_text())["numbers"] == {"three": 3.0}


def test_a_sentence_that_is_not_so_stops_the_entry(tmp_path: pathlib.Path) -> None:
    notes = Notes(_entry(), tmp_path)
    notes.holds("one is below two", 1 < 2)
    with pytest.raises(NotSo, match="one says 'two is below one', and in this run"):
        notes.holds("two is below one", 2 < 1)


def test_what_is_missing_is_named(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from atlas import sources

    settings = Settings(short=True, cache=tmp_path)
    with pytest.raises(Missing, match=r"needs the package iglm 0\.1\.0: --fetch takes it from"):
        sources.package("iglm", "0.1.0", settings)
    monkeypatch.setenv("BASIS_PROBE_ASSETS", str(tmp_path))
    with pytest.raises(Missing, match="needs weights: there is none in BASIS_PROBE_ASSETS="):
        sources.folder("weights")
    monkeypatch.delenv("BASIS_PROBE_ASSETS")
    with pytest.raises(Missing, match="needs weights: set BASIS_PROBE_ASSETS"):
        sources.folder("weights")


@pytest.mark.parametrize("option", ["--out", "--cache"])
def test_a_file_in_the_place_of_a_folder_is_an_error(
    option: str,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from atlas import __main__ as command

    file = tmp_path / "file"
    file.write_text("kept", encoding="utf-8")
    other = {"--out": "--cache", "--cache": "--out"}[option]
    given = ["atlas", "--page", option, str(file), other, str(tmp_path / "folder")]
    monkeypatch.setattr("sys.argv", given)
    with pytest.raises(SystemExit, match="2"):
        command.main()
    assert f"{option} needs a folder, and {file} is a file" in capsys.readouterr().err
    assert file.read_text(encoding="utf-8") == "kept"


def test_no_page_is_written_where_no_entry_ran(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from atlas import __main__ as command

    def absent(notes: Notes, settings: Settings) -> None:
        raise Missing("it needs a thing")

    def there(notes: Notes, settings: Settings) -> None:
        notes.say("Something.")

    entries = {name: Entry(name, name, "a thing.", absent) for name in ("one", "two")}
    monkeypatch.setattr(command, "ENTRIES", entries)
    monkeypatch.setattr("sys.argv", ["atlas", "--out", str(tmp_path)])
    assert command.main() == 1
    assert not (tmp_path / "atlas.md").exists()
    assert "earlier run" not in capsys.readouterr().err
    # One that ran once, and whose files are gone: its section stays, and that is said.
    entries["one"] = Entry("one", "one", "a thing.", there)
    assert command.main() == 0
    entries["one"], entries["two"] = (
        Entry("one", "one", "a thing.", absent),
        Entry("two", "two", "a thing.", there),
    )
    assert command.main() == 0
    error = capsys.readouterr().err
    assert error.count("said in an earlier run is still in") == 1 and "what one said" in error
    text = (tmp_path / "atlas.md").read_text(encoding="utf-8")
    assert "## one" in text and "## two" in text


def test_what_was_made_is_kept(tmp_path: pathlib.Path) -> None:
    import torch
    from atlas import sources

    settings = Settings(short=True, cache=tmp_path)
    made = [
        sources.kept(settings, "a", lambda value=value: torch.tensor(value)) for value in (1, 2)
    ]
    assert [int(value) for value in made] == [1, 1]
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_layers_of_the_same_depth_are_found_where_they_are_the_most_alike() -> None:
    import torch
    from atlas import likeness

    depths = torch.arange(19)[:, None] / 18, torch.arange(31) / 30
    matrix = -(depths[0] - depths[1]).abs()
    assert likeness.depth_missed(matrix) <= 0.5 / 30 and likeness.in_right_stage(matrix) == 19
    assert likeness.in_right_stage(-matrix) == 0
    # A layer drawn at random, and one of the right stage, by hand.
    every, staged = [], []
    for i in range(19):
        others = [j for j in range(31) if max(j - 1, 0) // 10 == max(i - 1, 0) // 6]
        every.append(sum(abs(i / 18 - j / 30) for j in range(31)) / 31)
        staged.append(sum(abs(i / 18 - j / 30) for j in others) / len(others))
    assert likeness.by_chance((19, 31)) == pytest.approx(sum(every) / 19, abs=1e-6)
    assert likeness.by_chance((19, 31), in_stage=True) == pytest.approx(sum(staged) / 19, abs=1e-6)


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_the_interval_over_seeds_is_that_of_student(seeds: int) -> None:
    import numpy as np
    import scipy.stats
    from atlas import optimisers

    zs = np.random.default_rng(seeds).normal(1.0, 2.0, (seeds, 3, 3))
    runs = [{"9": {"z": one.tolist()}} for one in zs]
    means = zs[:, :, 1].mean(1)
    low, high = scipy.stats.t.interval(0.95, seeds - 1, means.mean(), scipy.stats.sem(means))
    middle, wide = optimisers.over_seeds(runs, "9", 1)
    assert middle == pytest.approx(means.mean())
    assert wide == pytest.approx((high - low) / 2, rel=1e-3)


def test_rounding_touches_the_part_that_is_asked_for_and_vanishes_with_many_bits() -> None:
    import torch
    from atlas import rounded_networks as networks

    from basis_probe import demo

    model, tokenizer = demo.load_hf()
    batch = dict(tokenizer(demo.texts(2), return_tensors="pt", padding=True))
    whole = networks.loss(model, [batch])
    for part in networks.PARTS:
        assert networks.loss(networks.quantised(model, 16, part), [batch]) == pytest.approx(
            whole, abs=1e-3
        )
        rounded = networks.quantised(model, 4, part)
        changed = {
            name.split(".")[-2]
            for (name, one), other in zip(
                model.named_parameters(), rounded.parameters(), strict=True
            )
            if not torch.equal(one, other)
        }
        read, write = set(networks.READ[:5]), {"o_proj", "down_proj"}
        assert (
            changed
            == {
                "what is read": set(),
                "weights that read": read,
                "weights that write": write,
                "all three": read | write,
            }[part]
        )
        assert networks.loss(rounded, [batch]) != whole


FETCHED = {"compiled", "dissection", "five_trainings", "quantisation", "residual_stream"}
"""Entries that read packages which whoever runs them fetches."""
OFTEN = tiers.ranked([name for name in ENTRIES if name not in FETCHED], seed=0)[:2]
"""Those of the others that slow runs try."""


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in OFTEN else pytest.mark.battery) for n in ENTRIES],
)
def test_what_an_entry_claims_holds_in_a_short_form(name: str, tmp_path: pathlib.Path) -> None:
    entry = ENTRIES[name]
    # The cache of whoever runs this, where packages were fetched; nothing is fetched here.
    from atlas.__main__ import CACHE

    notes = Notes(entry, tmp_path)
    try:
        # Every central claim is a `holds` of the entry, which raises where it is not so.
        entry.run(notes, Settings(short=True, cache=CACHE / "basis_probe_atlas"))
    except Missing as reason:
        pytest.skip(str(reason))
    assert notes.rows and notes.numbers
    for row in notes.rows:
        assert not re.search(r"\bnan\b", row.line())
