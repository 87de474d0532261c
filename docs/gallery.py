"""Writes the pictures of gallery.md into gallery/.

python docs/gallery.py
"""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING

import torch
from torch import nn

import basis_probe as bp
from basis_probe import demo

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDER = pathlib.Path(__file__).with_name("gallery")
NEURONS = "blocks.0.mlp.hook_post"


def main() -> None:
    """Probes two models and writes what they look like."""
    torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    texts = demo.texts(128)
    data = [texts[start : start + 32] for start in range(0, len(texts), 32)]
    report = bp.probe(demo.load(), data, progress=False)
    save(report.plot("map", figsize="page"), "map")
    save(report.plot("nulls", figsize="page"), "nulls")
    save(report[NEURONS].plot("null", figsize="column"), "null")
    save(report[NEURONS].plot("axes", figsize="page"), "axes")
    save(trained().plot(), "training")


def trained() -> bp.results.ReportComparison:
    """A small network at three steps of a training; its answer is the sign of each input."""
    reports: dict[str, bp.Report] = {}
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 32), nn.GELU())
    model.append(nn.Linear(32, 16))
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    seen = [torch.randn(2048, 16, generator=generator)]
    for step in range(2001):
        if step in (0, 200, 2000):
            reports[f"step {step}"] = bp.probe(model, seen, sites="*", progress=False)
        x = torch.randn(256, 16, generator=generator)
        loss = nn.functional.mse_loss(model(x), x.sign())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return bp.compare_reports(reports)


def save(figure: Figure, name: str) -> None:
    """Writes a picture as a web page shows it."""
    figure.savefig(FOLDER / f"{name}.png", dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    main()
