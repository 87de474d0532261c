"""Files of findings, whose endings say in which form they are written."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from basis_probe.files import replace_text, replacing, require_writable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from basis_probe.results.report import Report

FIGURES = (".pdf", ".svg", ".png")
"""Endings of figures."""


def save(
    path: pathlib.Path, made: Mapping[str, Callable[[], str]], drawn: Callable[[], Figure]
) -> pathlib.Path:
    """The path of the file written; its ending chooses the form.

    Args:
        path: where it is written.
        made: ending -> the text in that form.
        drawn: the figure, for the endings in `FIGURES`.

    Raises:
        ValueError: for an ending that names no form.
        OSError: if it cannot be written.
    """
    ending = path.suffix.lower()
    if ending in FIGURES:
        from basis_probe.show.canvas import save_figure

        require_writable(path)
        figure = drawn()
        with replacing(path) as file:
            save_figure(figure, file, ending.removeprefix("."))
    elif ending in made:
        require_writable(path)
        replace_text(path, made[ending]())
    else:
        known = [end for end in (*made, *FIGURES) if end != ".htm"]
        raise ValueError(
            f"cannot tell the format from {path.name!r}: give a name that ends in "
            f"{', '.join(known[:-1])} or {known[-1]}"
        )
    return path


def save_report(report: Report, path: pathlib.Path) -> pathlib.Path:
    """The path of the file written.

    Raises:
        ValueError: for an ending that names no form.
    """
    from basis_probe.show import html, latex, markdown, plots, tables

    made = {
        ".html": lambda: html.page(report),
        ".htm": lambda: html.page(report),
        ".json": report.to_json,
        ".csv": lambda: tables.csv(tables.dataframe(report)),
        ".md": lambda: markdown.markdown(report),
        ".tex": lambda: latex.table(report),
    }
    return save(path, made, lambda: plots.overview(report))
