"""A report that no run wrote is refused with the field's name, or all its forms can be drawn."""

from __future__ import annotations

import copy
import json
import pathlib
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from damage import GROWTH, SECONDS, memory, prompt, refused
from fake_report import fake_report

import basis_probe as bp

VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 10**9, 2**63, 10**25, 10**400, 1.5, 1e308, -1e308, 1e-320, "nan", "-inf",
    "x", "", "=1+1", "\x1b]0;x\x07", "a" * 100_000, "\ud800", "<script>", [], {}, [[]], [1],
    ["nan"],
    [[1], [2, 3]], "Orthogonal(dim=3)", "Blocks(Orthogonal(dim=4), count=1000000000000)",
    "Blocks(7, 7)", "(" * 5000, "Orthogonal(dim=True)", "__import__('os')", "AXES", [None],
)  # fmt: skip

BASE = json.loads(fake_report().to_json())


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something can be changed; of a long list of numbers its first."""
    found: list[tuple[Any, ...]] = []
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    for key, entry in entries:
        found.append((*path, key))
        if isinstance(entry, dict | list):
            plain = isinstance(entry, list) and not any(isinstance(e, dict | list) for e in entry)
            found += [(*path, key, 0)] if plain and entry else _places(entry, (*path, key))
    return found


def _examples() -> bp.results.Examples:
    context = bp.results.Context((" a", "b"), (0.5, -1.0), 0, 3, 4, (0, 0, 2, 2), "iVBORw0KGgo=")
    top = bp.results.TopContexts("axis 1", 1, -1, (context, context), {"token purity": 1.0}, "x")
    return bp.results.Examples("site", (top, top), (top,), "by effect")


def _explanations() -> bp.concepts.Explanations:
    one = bp.concepts.Explained("axis 1", 1, "a word", 0.75, ("slow",), True)
    return bp.concepts.Explanations("site", (one,), (one,), 3)


def _dissection() -> bp.results.Dissection:
    generator = torch.Generator().manual_seed(0)
    labels = {"c": torch.arange(300) % 3 == 0, "d": torch.arange(300) % 2 == 0}
    effort = bp.concepts.Effort(shuffles=9, resamples=9)
    site = bp.dissect_activations(
        torch.randn(300, 4, generator=generator), labels, group="orthogonal", frames=19,
        effort=effort,
    )  # fmt: skip
    return bp.results.Dissection((site,), {"seed": "0"}, ("a note",))


def _drawn(value: Any, folder: pathlib.Path, endings: tuple[str, ...], *, pages: bool) -> None:
    """Fails for a finding that cannot be shown in one of its forms."""
    assert isinstance(str(value), str) and repr(value)
    assert type(value).from_json(value.to_json()).to_json() == value.to_json()
    if not pages:
        return
    for form in ("_repr_html_", "to_dataframe", "concepts_dataframe"):
        if hasattr(value, form):
            getattr(value, form)()
    if hasattr(value, "save"):
        for ending in endings:
            value.save(folder / f"r{ending}")


MAKERS: dict[str, Callable[[], Any]] = {
    "report": fake_report,
    "comparison": lambda: bp.compare_reports({"a": fake_report(), "b": fake_report()}),
    "examples": _examples,
    "explanations": _explanations,
    "dissection": _dissection,
}
FORMS: dict[str, tuple[str, ...]] = {
    "report": (".html", ".md", ".csv", ".tex"),
    "comparison": (".html", ".md", ".csv"),
}


def _mutated(base: Any, places: list[tuple[Any, ...]], chance: random.Random) -> str:
    value = copy.deepcopy(base)
    for _ in range(chance.choice([1, 1, 2, 3])):
        *path, last = chance.choice(places)
        parent = value
        try:
            for key in path:
                parent = parent[key]
            if chance.random() < 0.8:
                parent[last] = copy.deepcopy(chance.choice(VALUES))
            elif chance.random() < 0.5:
                del parent[last]
            else:
                parent[last] *= 2
        except (KeyError, IndexError, TypeError):
            continue
    return json.dumps(value)


def _try(
    kind: str,
    count: int,
    seed: int,
    folder: pathlib.Path,
    endings: tuple[str, ...],
    *,
    pages: int = 1,
) -> int:
    """How many of the mutated findings were taken; each of these can be drawn."""
    good, chance, taken = MAKERS[kind](), random.Random(seed), 0
    base = json.loads(good.to_json())
    places = _places(base)
    _drawn(good, folder, endings, pages=True)
    before = memory()
    for number in range(count):
        text = _mutated(base, places, chance)
        found = refused(lambda text=text: type(good).from_json(text), number)
        if found is not None:
            taken += 1
            # Pages take longest, and differ least.
            with prompt(number, 5 * SECONDS):
                _drawn(found, folder, endings, pages=taken % pages == 0)
    assert memory() - before < GROWTH
    return taken


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("kind", MAKERS)
def test_mutated_findings_are_refused_or_drawn(kind: str, tmp_path: pathlib.Path) -> None:
    assert 0 < _try(kind, 12, 1, tmp_path, ()) < 12


@pytest.mark.slow
@pytest.mark.parametrize("kind", MAKERS)
def test_many_mutated_findings_are_refused_or_drawn(kind: str, tmp_path: pathlib.Path) -> None:
    _try(kind, 400, 2, tmp_path, FORMS.get(kind, ()))


@pytest.mark.battery
@pytest.mark.parametrize("kind", MAKERS)
def test_thousands_of_mutated_findings_are_refused_or_drawn(
    kind: str, tmp_path: pathlib.Path
) -> None:
    # A report is large, and takes long to draw.
    pages = 20 if kind == "report" else 1
    _try(kind, 10_000, 3, tmp_path, FORMS.get(kind, ()), pages=pages)


@pytest.mark.sample(default=3)
@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("site_reports.0.dim", "64", "'site_reports.0.dim': '64' is no int"),
        ("site_reports.0.n_samples", -1, "'site_reports.0.n_samples': -1 is no count"),
        ("site_reports.0.shape", [3], "'site_reports.0.shape': no shape of"),
        (
            "site_reports.0.symmetry.group",
            "Blocks(3, 3)",
            "'site_reports.0.symmetry.group': 'Blocks",
        ),
        ("site_reports.0.verdict.outcome", "GOOD", "outcome': 'GOOD' is none of PRIVILEGED"),
        ("provenance.level", 2.0, "'provenance.level': 2.0 is no level"),
        ("partial", 1, "'partial': 1 is no bool"),
    ],
)
def test_what_is_damaged_is_named(path: str, value: Any, said: str) -> None:
    changed = copy.deepcopy(BASE)
    *keys, last = path.split(".")
    parent = changed["report"]
    for key in keys:
        parent = parent[int(key) if key.isdecimal() else key]
    parent[last] = value
    with pytest.raises(ValueError, match="damaged at") as refused:
        bp.Report.from_json(json.dumps(changed))
    assert said in str(refused.value)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "{" * 9, "null", "5", "", "\0", '{"basis_probe": []}']
)
def test_what_is_no_report_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a basis_probe report|has format"):
        bp.Report.from_json(text)
