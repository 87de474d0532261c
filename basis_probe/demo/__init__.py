"""A small language model that comes with the package, and documents of the kind that it learned.

The model is a Llama of 4 layers and 96 dimensions, trained on what a grammar wrote; its card
is `MODEL_DIR / "MODEL_CARD.md"`. Importing this module imports nothing beyond the standard library.
"""

from __future__ import annotations

import importlib.resources
from pathlib import Path
from typing import TYPE_CHECKING

from basis_probe.demo.texts import CONCEPTS as CONCEPTS
from basis_probe.demo.texts import Document as Document
from basis_probe.demo.texts import labelled as labelled
from basis_probe.demo.texts import texts as texts

if TYPE_CHECKING:
    import torch
    from transformer_lens import TransformerBridge
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MODEL_DIR = Path(str(importlib.resources.files(__name__) / "model"))
"""The folder with the weights, the tokenizer, the record of the training and the model card."""


def load(device: str | torch.device = "cpu") -> TransformerBridge:
    """The embedded model as a TransformerBridge with its tokenizer, in eval mode, in float32.

    Nothing is fetched: all files come with the package.

    Args:
        device: where the model is put.

    Example:
        >>> bridge = load()
        >>> bridge.cfg.n_layers, bridge.cfg.d_model
        (4, 96)
    """
    from basis_probe.model.load import from_directory

    bridge = from_directory(MODEL_DIR, device=device, local_files_only=True)
    bridge.cfg.model_name = "basis-probe-demo"
    return bridge


def load_hf() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The embedded model and its tokenizer as Hugging Face objects, in eval mode, on the CPU.

    Example:
        >>> model, tokenizer = load_hf()
        >>> ids = tokenizer(texts(1, 0), return_tensors="pt")
        >>> model(**ids).logits.shape[-1] == len(tokenizer)
        True
    """
    from basis_probe.model.load import hugging_face

    return hugging_face(MODEL_DIR)
