"""A small input that a model runs on, where the user gave none."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from basis_probe.errors import DataError
from basis_probe.model.batches import Batch, batch_of
from basis_probe.model.network import Subject

_TOKENS = 6
_IMAGE_SIZES = (32, 224, 28, 64)


def example_for(subject: Subject) -> Batch:
    """A batch of two random examples that the model runs on.

    Args:
        subject: the model, in evaluation mode.

    Raises:
        DataError: if it runs on none of the usual inputs.
    """
    tried: list[str] = []
    for candidate in _candidates(subject.model):
        shape = candidate if isinstance(candidate, torch.Tensor) else next(iter(candidate.values()))
        try:
            batch = batch_of(candidate, number=0, tokenizer=None, device=subject.device)
            with torch.no_grad():
                subject.call(batch)
        except Exception:
            tried.append(str(tuple(shape.shape)))
            continue
        return batch
    raise DataError(
        f"no input was found that the model runs on (tried shapes {', '.join(tried) or 'none'}): "
        "give example_input, one batch as for probe"
    )


def _candidates(model: nn.Module) -> Iterator[Any]:
    generator = torch.Generator().manual_seed(0)

    floating = (p.dtype for p in model.parameters() if p.is_floating_point())
    dtype = next(floating, torch.float32)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    config = getattr(model, "config", None) or getattr(model, "cfg", None)
    words = next(
        (
            value
            for name in ("vocab_size", "d_vocab")
            if isinstance(value := getattr(config, name, None), int) and value > 1
        ),
        None,
    )
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    if words is None and tables:
        words = tables[0].num_embeddings
    if words is not None:
        tokens = torch.randint(0, words, (2, _TOKENS), generator=generator)
        yield tokens
        yield {"input_ids": tokens}
        if getattr(config, "is_encoder_decoder", False):
            yield {"input_ids": tokens, "decoder_input_ids": tokens.flip(0)}
    for module in model.modules():
        if isinstance(module, nn.Linear):
            yield numbers(2, module.in_features)
            yield numbers(2, _TOKENS, module.in_features)
            break
        if isinstance(module, nn.Conv2d):
            given = getattr(config, "image_size", None)
            sizes = (given, *_IMAGE_SIZES) if isinstance(given, int) else _IMAGE_SIZES
            for size in sizes:
                image = numbers(2, module.in_channels, size, size)
                yield {"pixel_values": image}
                yield image
            break
        if isinstance(module, nn.Conv1d):
            yield numbers(2, module.in_channels, 64)
            break
        if isinstance(module, nn.Conv3d):
            yield numbers(2, module.in_channels, 16, 16, 16)
            break
