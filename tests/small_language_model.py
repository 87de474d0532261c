"""A language model of 32 words that fits in a few kilobytes, as `save_pretrained` writes it."""

from __future__ import annotations

import pathlib

import pytest
import torch


def saved(folder: pathlib.Path) -> pathlib.Path:
    """The folder, in which the model and its tokenizer are now."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("transformer_lens")
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(0)
    sizes = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 32, "vocab_size": 32}
    config = transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=1)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"w{n}": n for n in range(32)}, unk_token="w1"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="w1", bos_token="w0"
    ).save_pretrained(folder)
    return folder


def text(count: int = 700) -> str:
    """So many words that the model knows, drawn at random."""
    numbers = torch.randint(2, 32, (count,), generator=torch.Generator().manual_seed(1))
    return " ".join(f"w{n}" for n in numbers.tolist())
