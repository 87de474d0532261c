"""What proofs of large models cost from their configurations alone: CPU seconds, and memory."""

import resource
import subprocess
import sys
import time
from typing import Any

import torch

import basis_probe as bp

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama 3 70B": (
        "LlamaConfig",
        {
            "hidden_size": 8192,
            "intermediate_size": 28672,
            "num_hidden_layers": 80,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "vocab_size": 128256,
        },
    ),
    "Qwen2 72B": (
        "Qwen2Config",
        {
            "hidden_size": 8192,
            "intermediate_size": 29568,
            "num_hidden_layers": 80,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "vocab_size": 152064,
        },
    ),
    "Falcon 180B": (
        "FalconConfig",
        {
            "hidden_size": 14848,
            "num_hidden_layers": 80,
            "num_attention_heads": 232,
            "num_kv_heads": 8,
            "new_decoder_architecture": True,
            "vocab_size": 65024,
        },
    ),
    "GPT-OSS 120B": ("GptOssConfig", {"num_hidden_layers": 36}),
    "Mixtral 8x7B": ("MixtralConfig", {"num_hidden_layers": 32}),
    "DeepSeek V3, four layers": ("DeepseekV3Config", {"num_hidden_layers": 4}),
    "GPT-2 XL": ("GPT2Config", {"n_embd": 1600, "n_layer": 48, "n_head": 25}),
}
"""Name -> class of transformers, and what it is given."""


def measured(name: str, layers: int | None = None) -> str:
    """A line of the table, of this process; only so many layers of the shape, if given."""
    import transformers

    torch.set_num_threads(1)
    kind, sizes = SHAPES[name]
    depth = next(key for key in sizes if "layer" in key)
    sizes = sizes if layers is None else {**sizes, depth: layers}
    config = getattr(transformers, kind)(**sizes)
    start = time.process_time()
    found = bp.symmetries(config)
    spent = time.process_time() - start
    claims = str(found).splitlines()[0].removesuffix(" on this model")
    # Kilobytes, and on macOS bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    peak = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return f"| {name} | {sizes[depth]} | {claims} | {spent:.0f} | {peak / 1e9:.1f} |"


def table() -> list[str]:
    """The lines of a Markdown table, one thread, a process for each."""
    lines = [
        "| configuration | layers | claims | CPU seconds | GB at most |",
        "|---|---:|---|---:|---:|",
    ]
    for name in SHAPES:
        run = subprocess.run(
            [sys.executable, "-m", "benchmarks.configuration", name],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        lines.append(run.stdout.splitlines()[-1])
    return lines


if __name__ == "__main__":
    print(measured(sys.argv[1]))
