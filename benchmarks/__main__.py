"""`python -m benchmarks`: measures, prints a Markdown table, and writes it where it is told to."""

import argparse
import datetime
import json
import os
import pathlib
import platform
import subprocess
import sys
from typing import Any

from benchmarks import comparison, configuration, on_disk, peers, saving, whole
from benchmarks.shapes import SHAPES

_HERE = {
    "comparison": comparison.table,
    "saving": saving.table,
    "peers": peers.table,
    "configuration": configuration.table,
}
"""What needs no process of its own."""
_ASKED = {"on-disk": on_disk.table}
"""What takes so much disk that it is measured only where it is asked for."""
_TABLES = ("whole", "probe", "notebook", "growth", "dissection", *_HERE)


def main() -> None:
    """Measures what the words of this process ask for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--shape", choices=[*SHAPES], default="small", help="the model's shape")
    parser.add_argument("--tokens", type=int, nargs="+", default=[16384], help="lengths of data")
    parser.add_argument("--whole", type=int, default=2048, help="tokens of the first look")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of torch")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--out", type=pathlib.Path, help="write the table here too")
    parser.add_argument(
        "--only", nargs="+", choices=[*_TABLES, *_ASKED], help="leave the others out"
    )
    asked = parser.parse_args()
    shape = SHAPES[asked.shape]
    least = 3 * shape.batch * shape.length
    if min(asked.tokens) < least:
        # Two batches are for warming up.
        parser.error(f"--tokens {min(asked.tokens)}: give {least} or more, three batches")
    wanted = asked.only or [*_TABLES]
    table = [*_machine(asked), ""]
    if "whole" in wanted:
        table += [*whole.table(asked.whole), ""]
    if "probe" in wanted:
        found = [_measured(asked, "probe", tokens=tokens) for tokens in asked.tokens]
        table += [*_probe_table(found), ""]
    if "notebook" in wanted:
        table += [*_notebook_table(_measured(asked, "notebook", tokens=asked.tokens[0])), ""]
    if "growth" in wanted:
        table += [*_growth_table(_measured(asked, "growth", tokens=0)), ""]
    if "dissection" in wanted:
        found = _measured(asked, "dissection", tokens=asked.tokens[0])
        table += [*_dissection_table(asked, found), ""]
    for name, made in (_HERE | _ASKED).items():
        if name in wanted:
            table += [*made(), ""]
    text = "\n".join(table)
    print(text)
    if asked.out is not None:
        asked.out.write_text(text, encoding="utf-8")


def _measured(asked: argparse.Namespace, task: str, *, tokens: int) -> dict[str, Any]:
    """What one measurement found, in a process of its own, so that its peak of memory is its."""
    settings = {
        "task": task,
        "shape": asked.shape,
        "tokens": tokens,
        "threads": asked.threads,
        "device": asked.device,
        "dtype": asked.dtype,
    }
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.measure", json.dumps(settings)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(run.stdout.splitlines()[-1])


def _machine(asked: argparse.Namespace) -> list[str]:
    import torch

    cpu = platform.processor() or platform.machine()
    names = pathlib.Path("/proc/cpuinfo")
    if names.exists():
        lines = [line for line in names.read_text().splitlines() if line.startswith("model name")]
        cpu = lines[0].split(":", 1)[1].strip() if lines else cpu
    where = torch.cuda.get_device_name() if asked.device.startswith("cuda") else cpu
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    return [
        f"Machine: {where}, {os.cpu_count()} cores, {asked.threads} threads; torch "
        f"{torch.__version__}; Python {platform.python_version()}. "
        f"{datetime.date.today():%B %Y}; load average at the start {load}.",
        f"Model: {SHAPES[asked.shape].words}, random weights, {asked.dtype}.",
    ]


def _probe_table(found: list[dict[str, Any]]) -> list[str]:
    rows = [
        "| | " + " | ".join(f"{one['tokens']:,} tokens" for one in found) + " |",
        "|---|" + "---:|" * len(found),
    ]
    for words, name, form in (
        ("bare forward, CPU seconds", "bare_cpu", "{:.1f}"),
        ("streaming / bare forward, CPU time", "stream_cpu", "{:.2f}"),
        ("streaming / bare forward, wall", "stream_wall", "{:.2f}"),
        ("the same without stopping early, CPU time", "whole_cpu", "{:.2f}"),
        ("**probe / bare forward, CPU time**", "probe_cpu", "**{:.2f}**"),
        ("**probe / bare forward, wall**", "probe_wall", "**{:.2f}**"),
        ("of it: watching and deriving, CPU seconds", "watch_cpu", "{:.1f}"),
        ("of it: certificates, CPU seconds", "proof_cpu", "{:.1f}"),
        ("of it: nulls, CPU seconds", "null_cpu", "{:.1f}"),
        ("of it: nulls per site, CPU seconds", "null_per_site", "{:.2f}"),
        ("peak memory over the bare forward, streaming, MB", "stream_peak", "{:,.0f}"),
        ("peak memory over the bare forward, all, MB", "probe_peak", "{:,.0f}"),
    ):
        rows.append(f"| {words} | " + " | ".join(form.format(one[name]) for one in found) + " |")
    return rows


def _notebook_table(found: dict[str, Any]) -> list[str]:
    rows = ["| the notebook way, at as many frames | CPU seconds |", "|---|---:|"]
    for words, name in (
        ("run_with_cache and NumPy, of all tokens", "cache"),
        ("one frame at d_model: draw, turn, kurtosis", "narrow_frame"),
        ("one frame at d_mlp: draw, turn, kurtosis", "wide_frame"),
        ("all frames at all sites (measured per frame)", "frames"),
        ("probe", "probe"),
    ):
        rows.append(f"| {words} | {found[name]:.2f} |")
    rows.append(f"| **notebook / probe** | **{found['ratio']:.0f}** |")
    return rows


def _growth_table(found: dict[str, Any]) -> list[str]:
    rows = ["| streaming, microseconds of CPU per sample | |", "|---|---:|"]
    rows += [f"| {words} | {value:.2f} |" for words, value in found["rows"]]
    return rows


def _dissection_table(asked: argparse.Namespace, found: dict[str, Any]) -> list[str]:
    neurons = SHAPES[asked.shape].settings["d_mlp"]
    rows = [
        f"| dissection: 100 concepts, {neurons:,} neurons, {asked.tokens[0]:,} tokens, axes and 8 "
        "rotations, either sign | CPU seconds | wall |",
        "|---|---:|---:|",
    ]
    for words, name in (
        ("turning the activations", "turn"),
        ("average precision, AUC and IoU, chosen on one half and scored on the other", "all"),
        ("the same with the chance level, from 39 shuffles of the labels", "chance"),
    ):
        cpu, wall = found[f"{name}_cpu"], found[f"{name}_wall"]
        rows.append(f"| {words} | {cpu:.1f} | {wall:.1f} |")
    for words, name in (
        ("one frame by average precision alone", "AVERAGE_PRECISION"),
        ("one frame by AUC alone", "AUC"),
        ("one frame by IoU alone", "IOU"),
    ):
        rows.append(f"| {words} | {found[f'{name}_cpu']:.2f} | |")
    return rows


if __name__ == "__main__":
    main()
