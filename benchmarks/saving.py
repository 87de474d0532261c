"""What files of a large report take: megabytes, and processor time to write and to read them."""

import dataclasses
import pathlib
import tempfile
import tracemalloc

import torch
from torch import nn

import basis_probe as bp
from benchmarks.comparison import seconds


def large(layers: int, dim: int, samples: int) -> bp.Report:
    """A report of four sites of a residual stream in every layer, and one of neurons behind SiLU.

    Two sites are probed, and stand for all others of their kind.
    """
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, dim), nn.SiLU(), nn.Linear(dim, 64)).eval()
    data = torch.randn(samples, 64, generator=generator).split(256)
    probed = bp.probe(model, data, sites=["1"], progress=False)
    stream = bp.probe_activations(
        torch.randn(samples, dim, generator=generator), group="orthogonal"
    )
    sites = [
        dataclasses.replace(kind, site=f"layers.{layer}.{name}", layer=layer)
        for layer in range(layers)
        for name, kind in [
            *((f"stream.{place}", stream) for place in range(4)),
            ("neurons", probed.site_reports[0]),
        ]
    ]
    return dataclasses.replace(probed, site_reports=tuple(sites))


def table(layers: int = 80, dim: int = 8192, samples: int = 4096) -> list[str]:
    """The lines of a Markdown table, on one thread."""
    torch.set_num_threads(1)
    report = large(layers, dim, samples)
    lines = [
        f"| {len(report):,} sites of {dim:,} axes, probed with {samples:,} samples | MB | "
        "CPU seconds to save | to load | MB of memory to save |",
        "|---|---:|---:|---:|---:|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for words, name in (("JSON", "report.json"), ("page (HTML)", "report.html")):
            path = pathlib.Path(folder) / name
            (save,) = seconds(lambda path=path: report.save(path), repeats=2)
            load = ""
            if name.endswith("json"):
                load = f"{seconds(lambda path=path: bp.Report.load(path), repeats=2)[0]:.1f}"
            tracemalloc.start()
            report.save(path)
            memory = tracemalloc.get_traced_memory()[1] / 1e6
            tracemalloc.stop()
            size = path.stat().st_size / 1e6
            lines.append(f"| {words} | {size:.1f} | {save:.1f} | {load} | {memory:,.0f} |")
    return lines
