"""What proofs of a model cost whose weights are on disk, and mapped into memory."""

import pathlib
import tempfile
import time
from typing import Any

import torch

import basis_probe as bp

_SHARD = 2**28
"""So many numbers are in one file."""


def table(layers: int = 32, width: int = 4096, neurons: int = 11008) -> list[str]:
    """The lines of a Markdown table: a Llama of random weights in bfloat16, 13.5 GB unless asked.

    The files are written to the folder for temporary ones, and removed.
    """
    import accelerate
    import safetensors.torch
    import transformers

    config = transformers.LlamaConfig(
        hidden_size=width, intermediate_size=neurons, num_hidden_layers=layers,
        num_attention_heads=width // 128, vocab_size=32000,
    )  # fmt: skip
    with accelerate.init_empty_weights(include_buffers=False):
        model: Any = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    with tempfile.TemporaryDirectory() as folder:
        size = _write(model, pathlib.Path(folder))
        for shard in sorted(pathlib.Path(folder).iterdir()):
            held = safetensors.torch.load_file(shard)
            model.load_state_dict(held, strict=False, assign=True)
        del held
        model.tie_weights()
        ids = torch.randint(0, 32000, (2, 16), generator=torch.Generator().manual_seed(1))
        start, wall = time.process_time(), time.perf_counter()
        found = bp.symmetries(model.eval(), ids)
        spent, passed = time.process_time() - start, time.perf_counter() - wall
        own = _own_memory()
        del model
    claims = str(found).splitlines()[0].removesuffix(" on this model")
    return [
        "| on disk, GB | layers | claims | CPU seconds | seconds | GB beside the files |",
        "|---:|---:|---|---:|---:|---:|",
        f"| {size / 1e9:.1f} | {layers} | {claims} | {spent:.0f} | {passed:.0f} | {own} |",
    ]


def _write(model: torch.nn.Module, folder: pathlib.Path) -> int:
    """Writes random numbers for all parameters in shards; how many bytes that were."""
    import safetensors.torch

    generator = torch.Generator().manual_seed(0)
    shard: dict[str, torch.Tensor] = {}
    written, size = 0, 0
    names = [*model.named_parameters()]
    for place, (name, parameter) in enumerate(names):
        drawn = torch.empty(parameter.shape).normal_(generator=generator)
        # Gains of norms are around one.
        made = 1 + 0.3 * drawn if parameter.ndim == 1 else 0.02 * drawn
        shard[name] = made.bfloat16()
        if sum(map(torch.numel, shard.values())) >= _SHARD or place == len(names) - 1:
            path = folder / f"{written:03d}.safetensors"
            safetensors.torch.save_file(shard, path)
            size += path.stat().st_size
            written, shard = written + 1, {}
    return size


def _own_memory() -> str:
    """The memory of this process that is no page of a file, in GB, where the system says it."""
    status = pathlib.Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    found = [int(line.split()[1]) for line in lines if line.startswith("RssAnon")]
    return f"{found[0] / 1e6:.1f}" if found else "-"
