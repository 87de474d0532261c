"""`python -m benchmarks.gpu`: what a probe gives and takes on one accelerator, in eight minutes.

Whole probes of small models on the CPU and on the device, in float32 and bfloat16; how often the
device is waited for; what streaming and proofs cost on shapes of large models, with random weights
that are drawn on the device. Parts are begun in the order of their use while there is time for
them, and what was left out is said. `--small` runs all of it on small shapes, on a CPU too.
"""

import argparse
import contextlib
import dataclasses
import gc
import json
import math
import pathlib
import time
import warnings
from collections.abc import Callable, Generator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import basis_probe as bp
from basis_probe.results.report import Report
from basis_probe.run import read as reading
from benchmarks import whole

Part = Callable[["Asked"], dict[str, Any]]

ALIKE = 1e-3
"""By so much effects may differ between a CPU and a device in float32."""


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is measured: on which device, and whether on small shapes."""

    device: torch.device
    small: bool

    @property
    def tokens(self) -> tuple[int, ...]:
        """How many tokens are streamed."""
        return (1024,) if self.small else (16_384, 65_536)


# --- models ---------------------------------------------------------------------------------------

_LLAMA = {
    "0.6 B": (2048, 8192, 8, 32, 8, 32_000),
    "7 B": (4096, 11_008, 32, 32, 32, 32_000),
    "tiny": (64, 128, 2, 4, 2, 200),
}


def llama(name: str, device: torch.device) -> nn.Module:
    """A Llama shape in bfloat16 whose weights are drawn where they stay."""
    import transformers

    width, inner, layers, heads, shared, words = _LLAMA[name]
    config = transformers.LlamaConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=shared,
        vocab_size=words,
        max_position_embeddings=512,
    )
    before = torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device:
            model = transformers.LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                # A gain of ones has more symmetries than a trained one.
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def _batches(words: int, tokens: int, length: int = 128) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = 4 if tokens < 8192 else 16
    count = max(2, tokens // (rows * length))
    return [torch.randint(0, words, (rows, length), generator=generator) for _ in range(count)]


# --- parts ----------------------------------------------------------------------------------------


def agreement(asked: Asked, name: str) -> dict[str, Any]:
    """A whole probe on the CPU and on the device: by how much effects differ, and outcomes."""
    model, data = whole.MODELS[name][1](512 if asked.small else 2048)
    cpu, seconds = _probed(model, data, torch.device("cpu"))
    found: dict[str, Any] = {"sites": len(cpu), "CPU seconds": seconds}
    dtypes = [torch.float32, torch.bfloat16] if isinstance(data[0], Tensor) else [torch.float32]
    for dtype in dtypes:
        words = str(dtype).removeprefix("torch.")
        with _in_type(model, dtype):
            # Rounding the weights is no matter of the device.
            same = cpu if dtype is torch.float32 else _probed(model, data, torch.device("cpu"))[0]
            with _peak(asked.device) as memory:
                other, seconds = _probed(model, data, asked.device)
        apart = largest_gap(same, other)
        changed = [one.site for one in same if _outcome(one) != _outcome(other[one.site])]
        found |= {
            f"{words}: device seconds": seconds,
            f"{words}: largest difference of effects": apart,
            f"{words}: outcomes that differ": changed,
            f"{words}: peak GB": memory[0],
        }
        if dtype is torch.float32:
            found["as promised"] = apart < ALIKE and not changed
        else:
            found["as promised"] = found["as promised"] and not changed
    return found


def largest_gap(one: Report, other: Report) -> float:
    """By how much the effects of deciding scores differ most between two reports."""
    apart = 0.0
    for site in one:
        for name, score in site.scores.items():
            if score.decides:
                gap = abs(score.effect - other[site.site].scores[name].effect)
                apart = max(apart, math.inf if math.isnan(gap) else gap)
    return apart


def _outcome(site: Any) -> str:
    return site.verdict.outcome.name


def _probed(model: Any, data: list[Any], device: torch.device) -> tuple[Report, float]:
    start = time.perf_counter()
    report = bp.probe(model, data, device=device, progress=False)
    return report, round(time.perf_counter() - start, 1)


def synchronisations(asked: Asked) -> dict[str, Any]:
    """How often streaming waits for the device, by batch."""
    model = llama("tiny", asked.device)
    data = _batches(200, 4096)
    if asked.device.type != "cuda":
        bp.observe(model, data, device=asked.device, progress=False)
        return {"batches": len(data), "a batch": "only told by CUDA"}
    counts: list[int] = []
    see = reading.Reading._see  # pyright: ignore[reportPrivateUsage]

    def counted(self: Any, *given: Any, **named: Any) -> Any:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                return see(self, *given, **named)
            finally:
                torch.cuda.set_sync_debug_mode("default")
                counts.append(sum("synchroniz" in str(one.message) for one in caught))

    reading.Reading._see = counted  # pyright: ignore[reportPrivateUsage]
    try:
        part = bp.observe(model, data, device=asked.device, progress=False)
    finally:
        reading.Reading._see = see  # pyright: ignore[reportPrivateUsage]
    sites = len(part.report(model, certificates=False, progress=False))
    later = sorted(counts[2:])
    return {"batches": len(data), "sites": sites, "a batch": later[len(later) // 2]}


def streaming(asked: Asked, name: str) -> dict[str, Any]:
    """The time of the pass over the data at all default sites, over that of the bare forward."""
    name = "tiny" if asked.small else name
    model = llama(name, asked.device)
    found: dict[str, Any] = {}
    for tokens in asked.tokens:
        data = _batches(_LLAMA[name][-1], tokens)
        with torch.no_grad():
            model(data[0].to(asked.device))
            forward = _seconds(
                lambda data=data: [model(batch.to(asked.device)) for batch in data], asked
            )
        with _peak(asked.device) as memory:
            took = _seconds(
                lambda data=data: bp.observe(model, data, device=asked.device, progress=False),
                asked,
            )
        found |= {
            f"{tokens:,} tokens: forward seconds": round(forward, 2),
            f"{tokens:,} tokens: streaming / forward": round(took / forward, 2),
            f"{tokens:,} tokens: peak GB": memory[0],
        }
    return found


def certificates(asked: Asked, name: str) -> dict[str, Any]:
    """Groups and proofs of every site of a model."""
    name = "tiny" if asked.small else name
    model = llama(name, asked.device)
    ids = _batches(_LLAMA[name][-1], 512, 8)[0][:2].to(asked.device)
    with _peak(asked.device) as memory:
        start = time.perf_counter()
        found = bp.symmetries(model, ids)
        took = time.perf_counter() - start
    proofs = [one.certificate for one in found.values() if one.certificate is not None]
    return {
        "sites": len(found),
        "claims proved": sum(proof.holds for proof in proofs),
        "claims refuted": sum(not proof.holds for proof in proofs),
        "seconds": round(took, 1),
        "peak GB": memory[0],
    }


def nulls(asked: Asked, name: str) -> dict[str, Any]:
    """A whole probe of the sites of one layer, proofs left out."""
    name = "tiny" if asked.small else name
    model = llama(name, asked.device)
    data = _batches(_LLAMA[name][-1], asked.tokens[0])
    layer = _LLAMA[name][2] // 2
    with torch.no_grad():
        forward = _seconds(lambda: [model(batch.to(asked.device)) for batch in data], asked)
    sites = [f"model.layers.{layer}*"]
    with _peak(asked.device) as memory:
        start = time.perf_counter()
        report = bp.probe(
            model, data, sites=sites, device=asked.device, certificates=False, progress=False
        )
        took = time.perf_counter() - start
    return {
        "sites": len(report),
        "probe / forward": round(took / forward, 2),
        "seconds for a site beyond the forward": round((took - forward) / len(report), 2),
        "peak GB": memory[0],
    }


PARTS: dict[str, tuple[float, Part]] = {
    "stories260k, CPU and device": (60, lambda asked: agreement(asked, "stories260k")),
    "demo, CPU and device": (60, lambda asked: agreement(asked, "demo")),
    "synchronisations": (20, synchronisations),
    "0.6 B, streaming": (40, lambda asked: streaming(asked, "0.6 B")),
    "7 B, streaming": (90, lambda asked: streaming(asked, "7 B")),
    "7 B, certificates": (120, lambda asked: certificates(asked, "7 B")),
    "0.6 B, one layer": (40, lambda asked: nulls(asked, "0.6 B")),
    "GPT-2 small's shape, CPU and device": (120, lambda asked: agreement(asked, "gpt2")),
}
"""Name -> about how many seconds it takes on an H200 with 16 cores, and what measures it."""


# --- measuring ------------------------------------------------------------------------------------


def _seconds(function: Callable[[], object], asked: Asked) -> float:
    _wait(asked.device)
    start = time.perf_counter()
    function()
    _wait(asked.device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextlib.contextmanager
def _peak(device: torch.device) -> Generator[list[float | None]]:
    """A list that holds the most that the device had to hold in the context, in GB."""
    found: list[float | None] = [None]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    yield found
    if device.type == "cuda":
        found[0] = round(torch.cuda.max_memory_allocated(device) / 1e9, 2)


@contextlib.contextmanager
def _in_type(model: Any, dtype: torch.dtype) -> Generator[None]:
    """The model in another type for a while; its weights come back as they were."""
    if dtype is torch.float32:
        yield
        return
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    model.to(dtype)
    try:
        yield
    finally:
        model.to(torch.float32)
        model.load_state_dict(kept)


def measured(asked: Asked, *, minutes: float, only: Sequence[str] = ()) -> dict[str, Any]:
    """What every part found, as far as there was time; what failed is said in its place."""
    end = time.monotonic() + 60 * minutes
    found: dict[str, Any] = {}
    for name, (seconds, part) in PARTS.items():
        if only and not any(word in name for word in only):
            continue
        if time.monotonic() + (5 if asked.small else seconds) > end:
            found[name] = "left out: no time"
            continue
        start = time.monotonic()
        try:
            found[name] = part(asked) | {"took": round(time.monotonic() - start, 1)}
        except Exception as error:
            found[name] = f"failed: {type(error).__name__}: {str(error)[:500]}"
        gc.collect()
        if asked.device.type == "cuda":
            torch.cuda.empty_cache()
        print(json.dumps({name: found[name]}), flush=True)
    return found


def table(found: dict[str, Any]) -> str:
    """The same as Markdown."""
    rows = ["| part | | |", "|---|---|---:|"]
    for name, values in found.items():
        if isinstance(values, str):
            rows.append(f"| {name} | {values} | |")
            continue
        rows += [f"| {name} | {words} | {value} |" for words, value in values.items()]
    return "\n".join(rows)


def main() -> None:
    """Measures what the words of this process ask for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    there = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=there)
    parser.add_argument("--small", action="store_true", help="small shapes")
    parser.add_argument("--minutes", type=float, default=8.0, help="no part is begun too late")
    parser.add_argument("--only", nargs="+", default=[], help="parts whose names hold a word")
    parser.add_argument("--out", type=pathlib.Path, help="write the table here too")
    given = parser.parse_args()
    asked = Asked(torch.device(given.device), given.small)
    name = torch.cuda.get_device_name(asked.device) if asked.device.type == "cuda" else "CPU"
    text = table({"machine": {"device": name, "torch": torch.__version__}})
    text += "\n" + table(measured(asked, minutes=given.minutes, only=given.only))
    print(text)
    if given.out is not None:
        given.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
