"""The models that are measured, and what they are called with."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Shape:
    """A language model's shape, and in which batches it is run."""

    words: str
    settings: dict[str, Any]
    batch: int
    length: int


def _gpt2(**sizes: int) -> dict[str, Any]:
    return {"act_fn": "gelu_new", "normalization_type": "LN", "seed": 0} | sizes


SHAPES = {
    "small": Shape(
        "GPT-2 small's shape (12 layers, d_model 768, d_mlp 3,072)",
        _gpt2(
            d_model=768, d_head=64, n_heads=12, n_layers=12, n_ctx=1024, d_vocab=50257, d_mlp=3072
        ),
        8,
        128,
    ),
    "tiny": Shape(
        "a tiny shape (2 layers, d_model 64, d_mlp 256)",
        _gpt2(d_model=64, d_head=16, n_heads=4, n_layers=2, n_ctx=128, d_vocab=1000, d_mlp=256),
        8,
        128,
    ),
}
