"""One list of hostile texts through every output: none is a command, a formula or markup."""

from __future__ import annotations

import csv
import io
import pathlib

import pytest
import torch
from rich.console import Console
from torch import nn

import basis_probe as bp
from basis_probe.errors import clean
from basis_probe.show.terminal import render

HOSTILE = (
    "=1+1", "+1", "-li", "@SUM(1)", "\uff1d1+1", " =1", "\x1b]0;owned\x07q", "\x9b31m", "a\u202eb",
    "<script>x</script>", "a\tb", "[red]x", "\\input{x}", "${x}", "{{x}}", "'\"", "|a|", "`x`",
)  # fmt: skip


class Named(nn.Module):
    """A model whose parts have these names."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        for name in HOSTILE:
            self._modules[name] = nn.Sequential(nn.Linear(8, 8), nn.Tanh())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for part in self._modules.values():
            assert part is not None
            x = x + part(x)
        return x


def _commands(text: str) -> list[str]:
    return [c for c in text if (ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160]


@pytest.fixture(scope="module")
def report() -> bp.Report:
    x = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    return bp.probe(Named(), [x], progress=False, certificates=False)


@pytest.mark.slow
def test_no_output_holds_a_command(report: bp.Report, tmp_path: pathlib.Path) -> None:
    shown = io.StringIO()
    Console(file=shown, width=200).print(render(report))
    said = [str(report), repr(report), shown.getvalue(), *map(str, report), *map(repr, report)]
    for ending in (".html", ".md", ".csv", ".json", ".tex"):
        said.append(report.save(tmp_path / f"r{ending}").read_text(encoding="utf-8"))
    for sites in ("zz", "\x1b]0;nothing\x07"):
        with pytest.raises(bp.SiteError) as refused:
            bp.probe(Named(), [torch.zeros(9, 8)], sites=sites, progress=False)
        said.append(str(refused.value))
    assert [text[:80] for text in said if _commands(text) or "\u202e" in text] == []
    assert "<script>x" not in said[-7] and "[red]x" in said[2]


@pytest.mark.slow
def test_no_cell_is_a_formula(report: bp.Report, tmp_path: pathlib.Path) -> None:
    path = report.save(tmp_path / "r.csv")
    with path.open(newline="", encoding="utf-8") as file:
        rows = [*csv.DictReader(file)]
    texts = [row[name] for row in rows for name in ("site", "kind", "sentence", "note")]
    assert texts and not any(text.strip()[:1] in set("=+-@\uff1d") for text in texts if text)
    assert len({row["site"] for row in rows}) == len(report)


def test_names_that_differ_still_look_different() -> None:
    assert clean("a\x1bb") == r"a\x1bb"
    assert len({clean(text) for text in HOSTILE}) == len(HOSTILE)


@pytest.mark.slow
def test_names_that_no_encoding_has_are_probed_and_saved(tmp_path: pathlib.Path) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module("a\ud800\n=1", nn.Sequential(nn.Linear(4, 4), nn.ReLU()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for module in self._modules.values():
                x = module(x)
            return x

    torch.manual_seed(0)
    data, quick = [torch.randn(60, 4)], {"progress": False}
    report = bp.probe(Odd(), data, certificates=False, checkpoint=tmp_path / "run", **quick)
    for ending in (".json", ".html", ".md", ".csv", ".tex"):
        report.save(tmp_path / f"r{ending}")
    assert bp.Report.load(tmp_path / "r.json") == report
    part = bp.observe(Odd(), data, **quick)
    assert bp.Partial.from_bytes(part.to_bytes()).seen.keys() == part.seen.keys()
