"""A probe as users first run it: little data, all default sites, every claim proved."""

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import basis_probe as bp
from basis_probe.run import read as reading
from basis_probe.run import report as concluding
from basis_probe.run.watch import Watched
from benchmarks.measure import Clock, peak, timed

Made = tuple[Any, list[Any]]


def _ids(vocabulary: int, tokens: int, length: int = 128) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    count = max(2, tokens // (4 * length))
    return [torch.randint(0, vocabulary, (4, length), generator=generator) for _ in range(count)]


def _drawn(kind: str, config: str, sizes: dict[str, Any], dtype: torch.dtype) -> Any:
    import transformers

    torch.manual_seed(0)
    made = getattr(transformers, kind)(getattr(transformers, config)(**sizes))
    return made.to(dtype).eval()


def _gpt2(tokens: int) -> Made:
    model = _drawn("GPT2LMHeadModel", "GPT2Config", {"vocab_size": 8192}, torch.float32)
    return model, _ids(8192, tokens)


def _llama(tokens: int) -> Made:
    sizes = {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 8, "vocab_size": 32000,
        "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 512,
    }  # fmt: skip
    model = _drawn("LlamaForCausalLM", "LlamaConfig", sizes, torch.bfloat16)
    return model, _ids(32000, tokens)


def _stories(tokens: int) -> Made:
    import transformers

    folder = pathlib.Path(os.environ["BASIS_PROBE_ASSETS"]) / "stories260k-llama"
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    return model, _ids(512, tokens)


def _demo(tokens: int) -> Made:
    from basis_probe import demo

    texts = demo.texts(max(48, tokens // 10), seed=1)
    return demo.load(), [texts[place : place + 24] for place in range(0, len(texts), 24)]


def _images(kind: str, config: str, count: int) -> Made:
    generator = torch.Generator().manual_seed(0)
    model = _drawn(kind, config, {}, torch.float32)
    return model, [torch.randn(4, 3, 224, 224, generator=generator) for _ in range(count // 4)]


MODELS: dict[str, tuple[str, Callable[[int], Made]]] = {
    "stories260k": ("stories260k, trained", _stories),
    "demo": ("the demo model, trained", _demo),
    "gpt2": ("GPT-2 small's shape, 92 M", _gpt2),
    "llama": ("a Llama shape, 0.6 B, bfloat16", _llama),
    "resnet": ("ResNet-50, 24 images", lambda _: _images("ResNetModel", "ResNetConfig", 24)),
    "vit": ("ViT-B, 64 images", lambda _: _images("ViTModel", "ViTConfig", 64)),
}
STAGES = ("forward", "watch", "proof", "read", "null")


def measured(name: str, tokens: int) -> dict[str, float]:
    """CPU seconds by stage, and megabytes over those that the model itself takes to run."""
    model, data = MODELS[name][1](tokens)
    clock = Clock("cpu")
    with torch.no_grad():
        run = model if isinstance(data[0], Tensor) else (lambda batch: model(batch))
        run(data[0])
        with clock.measuring("forward"):
            for batch in data:
                run(batch)
    held = peak()
    for stage, holder, attribute in (
        ("read", reading.Reading, "read"),
        ("watch", Watched, "of"),
        ("proof", concluding, "certified"),
        ("null", concluding.Concluding, "gather"),
    ):
        function = timed(clock, stage, getattr(holder, attribute))
        setattr(holder, attribute, staticmethod(function) if stage == "watch" else function)
    with clock.measuring("probe"):
        report = bp.probe(model, data, progress=False)
    found = {stage: sum(clock.cpu.get(stage, [])) for stage in (*STAGES, "probe")}
    # Claims are proved on the way to the nulls.
    found["null"] -= found["proof"]
    return {**found, "sites": len(report), "memory": peak() - held}


def table(tokens: int, names: list[str] | None = None) -> list[str]:
    """A row for every model, each measured in a process of its own."""
    rows = [
        f"| all default sites, certificates on, {tokens:,} tokens; CPU seconds | sites | forward | "
        "watching, deriving | certificates | streaming | nulls | **probe** | **/ forward** | MB |",
        "|---|" + "---:|" * 9,
    ]
    for name in names or MODELS:
        run = subprocess.run(
            [sys.executable, "-m", "benchmarks.whole", json.dumps([name, tokens])],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        one = json.loads(run.stdout.splitlines()[-1])
        parts = " | ".join(f"{one[stage]:.1f}" for stage in STAGES)
        rows.append(
            f"| {MODELS[name][0]} | {one['sites']} | {parts} | **{one['probe']:.1f}** | "
            f"**{one['probe'] / one['forward']:.1f}** | {one['memory']:,.0f} |"
        )
    return rows


if __name__ == "__main__":
    print(json.dumps(measured(*json.loads(sys.argv[1]))))
