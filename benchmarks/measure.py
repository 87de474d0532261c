"""One measurement in a process of its own; the last line it prints is what it found, as JSON."""

import contextlib
import functools
import json
import resource
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

import basis_probe as bp
from basis_probe.concepts.alignment import Measure
from basis_probe.concepts.chance import shuffled
from basis_probe.concepts.detection import Setting, Sides, examine
from basis_probe.concepts.labels import Labels
from basis_probe.model.batches import batch_of
from basis_probe.model.network import recognise
from basis_probe.run import read as reading
from basis_probe.run import report as concluding
from basis_probe.run.parts import Part
from basis_probe.run.watch import Choices, Watched
from basis_probe.statistics.nulls import Problem
from benchmarks.shapes import SHAPES, Shape

SITES = ["blocks.*.hook_resid_pre", "blocks.*.mlp.hook_post"]


class Clock:
    """Seconds of all processors and on the wall, by what they were spent on."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.cpu: dict[str, list[float]] = {}
        self.wall: dict[str, list[float]] = {}

    @contextlib.contextmanager
    def measuring(self, name: str) -> Iterator[None]:
        """Measures what happens in the context."""
        self._wait()
        cpu, wall = time.process_time(), time.perf_counter()
        yield
        self._wait()
        self.cpu.setdefault(name, []).append(time.process_time() - cpu)
        self.wall.setdefault(name, []).append(time.perf_counter() - wall)

    def _wait(self) -> None:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()


def _model(shape: Shape, device: str, dtype: str) -> Any:
    from transformer_lens import TransformerBridge, TransformerBridgeConfig

    bridge = TransformerBridge.boot_native(TransformerBridgeConfig(**shape.settings))
    return bridge.to(device=device, dtype=getattr(torch, dtype)).eval()


def _data(shape: Shape, tokens: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    size = (shape.batch, shape.length)
    count = max(1, tokens // (shape.batch * shape.length))
    high = shape.settings["d_vocab"]
    return [torch.randint(0, high, size, generator=generator) for _ in range(count)]


def peak() -> float:
    """Megabytes: the most that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def timed(clock: Clock, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, its calls measured under a name."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with clock.measuring(name):
            return function(*args, **kwargs)

    return run


def probe(shape: Shape, tokens: int, device: str, dtype: str) -> dict[str, Any]:
    """A probe beside the bare forward passes over the same batches."""
    model, data = _model(shape, device, dtype), _data(shape, tokens)
    clock = Clock(device)
    with torch.no_grad():
        model(data[0].to(device))
        for batch in data:
            with clock.measuring("bare"):
                model(batch.to(device))
    bare = peak()
    stages = {
        "read": (reading.Reading, "read"),
        "watch": (Watched, "of"),
        "proof": (concluding, "certified"),
        "null": (concluding.Concluding, "gather"),
    }
    peaks: dict[str, float] = {}
    for name, (holder, attribute) in stages.items():
        measured = timed(clock, name, getattr(holder, attribute))

        def run(*args: Any, measured: Any = measured, name: str = name, **kwargs: Any) -> Any:
            result = measured(*args, **kwargs)
            peaks[name] = peak()
            return result

        setattr(holder, attribute, staticmethod(run) if name == "watch" else run)
    with clock.measuring("probe"):
        report = bp.probe(model, data, sites=SITES, progress=False)
    # Batch by batch, one way after the other, so that a busy machine is busy for both.
    choices = Choices.of(
        sites=SITES,
        scores=None,
        null=None,
        groups=None,
        seed=0,
        max_samples=None,
        certificates=False,
        progress=False,
    )
    subject = recognise(model)
    batches = [
        batch_of(batch, number=0, tokenizer=None, device=torch.device(device)) for batch in data[:6]
    ]
    watching = Watched.of(subject, batches[0], choices)
    made = reading.Reading(watching, choices, tuple(watching.plans), Part(), None)
    for number, batch in enumerate(batches):
        call = functools.partial(subject.call, batch)
        if number >= 2:
            with clock.measuring("pair bare"), torch.no_grad():
                call()
            with clock.measuring("pair stream"):
                made.stream.see(model, batch, call)
            settled, made.stream._settled = made.stream._settled, None
            with clock.measuring("pair whole"):
                made.stream.see(model, batch, call)
            made.stream._settled = settled
        else:
            made.stream.see(model, batch, call)
    cpu = {name: sum(times) for name, times in clock.cpu.items()}
    wall = {name: sum(times) for name, times in clock.wall.items()}
    # Claims are proved on the way to the nulls.
    nulls = cpu["null"] - cpu.get("proof", 0.0)
    return {
        "tokens": tokens,
        "bare_cpu": cpu["bare"],
        "bare_wall": wall["bare"],
        "read_cpu": cpu["read"],
        "stream_cpu": _ratio(clock.cpu, "pair stream"),
        "stream_wall": _ratio(clock.wall, "pair stream"),
        "whole_cpu": _ratio(clock.cpu, "pair whole"),
        "probe_cpu": cpu["probe"] / cpu["bare"],
        "probe_wall": wall["probe"] / wall["bare"],
        "watch_cpu": clock.cpu["watch"][0],
        "proof_cpu": cpu.get("proof", 0.0),
        "null_cpu": nulls,
        "null_per_site": nulls / len(report.sites),
        "stream_peak": peaks["read"] - bare,
        "probe_peak": max(peaks.values()) - bare,
        "peaks": {name: most - bare for name, most in peaks.items()},
    }


def _ratio(times: dict[str, list[float]], name: str) -> float:
    """The median over batches of the time of one way over that of the bare forward."""
    pairs = zip(times[name], times["pair bare"], strict=True)
    return float(np.median([one / other for one, other in pairs]))


def notebook(shape: Shape, tokens: int, device: str, dtype: str) -> dict[str, Any]:
    """What a notebook does: everything cached, turned by full Haar frames, in NumPy."""
    model, data = _model(shape, device, dtype), _data(shape, tokens)
    clock = Clock(device)
    names = [
        name for name in model.hook_dict if name.endswith((".hook_resid_pre", "mlp.hook_post"))
    ]
    with torch.no_grad(), clock.measuring("cache"):
        _, cache = model.run_with_cache(data[0].to(device), names_filter=lambda n: n in names)
        rows = {name: cache[name].float().cpu().numpy() for name in names}
    del cache, rows
    generator = np.random.default_rng(0)
    for name in ("d_model", "d_mlp"):
        dim = shape.settings[name]
        x = generator.standard_normal((tokens, dim), dtype=np.float32)
        for _ in range(2):
            with clock.measuring(name):
                q, r = np.linalg.qr(generator.standard_normal((dim, dim)).astype(np.float32))
                y = x @ (q * np.sign(np.diag(r)))
                y -= y.mean(0)
                square = y * y
                (square * square).mean(0) / square.mean(0) ** 2
        del x, y, square
    with clock.measuring("probe"):
        bp.probe(model, data, sites=SITES, progress=False)
    frames = bp.nulls.Counterfactual().frames
    layers = shape.settings["n_layers"]
    one = {name: min(times) for name, times in clock.cpu.items()}
    turned = frames * layers * (one["d_model"] + one["d_mlp"])
    cached = one["cache"] * len(data)
    return {
        "cache": cached,
        "narrow_frame": one["d_model"],
        "wide_frame": one["d_mlp"],
        "frames": turned,
        "probe": one["probe"],
        "ratio": (cached + turned) / one["probe"],
    }


def growth(shape: Shape, tokens: int, device: str, dtype: str) -> dict[str, Any]:
    """How the cost of streaming grows with samples, width and sites."""
    rows: list[tuple[str, float]] = []
    for words, samples, dim, sites in (
        ("1,024 samples, 256 wide, one site", 1024, 256, 1),
        ("16,384 samples", 16384, 256, 1),
        ("131,072 samples", 131072, 256, 1),
        ("16,384 samples, 1,024 wide", 16384, 1024, 1),
        ("16,384 samples, 4,096 wide", 16384, 4096, 1),
        ("16,384 samples, 256 wide, 8 sites", 16384, 256, 8),
    ):
        layers = torch.nn.Sequential(*(torch.nn.Identity() for _ in range(sites)))
        layers = layers.to(device)
        clock = Clock(device)
        x = torch.randn(samples, dim, device=device)
        from basis_probe.model.places import Address, Place
        from basis_probe.run.stream import Plan, Stream

        plans = {str(n): Plan(Address(Place.OUTPUT, str(n)), None, dim) for n in range(sites)}
        stream = Stream(plans, seed=0, capacity=4096, most=None)
        for chunk in x.split(1024):
            batch = batch_of(chunk, number=0, tokenizer=None, device=torch.device(device))
            with clock.measuring("see"):
                stream.see(layers, batch, functools.partial(layers, chunk))
        rows.append((words, sum(clock.cpu["see"]) / samples * 1e6))
    return {"rows": rows}


def dissection(shape: Shape, tokens: int, device: str, dtype: str) -> dict[str, Any]:
    """A hundred concepts told by every neuron of a wide layer, and by eight rotations of it."""
    dim, concepts, length = shape.settings["d_mlp"], 100, 128
    generator = torch.Generator().manual_seed(0)
    x = torch.nn.functional.gelu(torch.randn(tokens, dim, generator=generator))
    # From one token in a thousand to one in five.
    coverage = torch.logspace(-3, -0.7, concepts)
    values = torch.rand(tokens, concepts, generator=generator) < coverage
    examples = torch.arange(tokens) // length
    halves = (examples >= int(examples[-1] + 1) // 2).long()
    labels = Labels(tuple(map(str, range(concepts))), values, examples)
    measures = (Measure.AVERAGE_PRECISION, Measure.AUC, Measure.IOU)
    clock, rows = Clock(device), {}
    null = bp.nulls.Rotation()
    alternatives = null.alternatives(Problem(x, bp.groups.Orthogonal(dim), halves))
    orders = [
        shuffled(examples[halves == 1], generator) for _ in range(bp.concepts.Effort().shuffles)
    ]
    for words, used in (("all", measures), *((measure.name, (measure,)) for measure in measures)):
        setting = Setting(labels, halves, used, 0.005, Sides.BOTH)
        for index in range(9 if words == "all" else 1):
            with clock.measuring("turn"):
                post = alternatives.frame(None if index == 0 else generator).post.float()
            with clock.measuring(words):
                examine(post, setting)
            if words == "all":
                # Every frame has its share of the shuffles.
                with clock.measuring("chance"):
                    examine(post, setting, orders[index::9])
    cpu, wall = ({name: sum(t) for name, t in times.items()} for times in (clock.cpu, clock.wall))
    for name in ("turn", "all", "chance"):
        rows[f"{name}_cpu"], rows[f"{name}_wall"] = cpu[name], wall[name]
    return rows | {f"{measure.name}_cpu": cpu[measure.name] for measure in measures}


def main() -> None:
    """Measures what the words of this process say."""
    settings = json.loads(sys.argv[1])
    warnings.filterwarnings("ignore")
    torch.set_num_threads(settings["threads"])
    tasks = {"probe": probe, "notebook": notebook, "growth": growth, "dissection": dissection}
    found = tasks[settings["task"]](
        SHAPES[settings["shape"]], settings["tokens"], settings["device"], settings["dtype"]
    )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
