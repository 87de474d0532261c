"""A small input that a model runs on, where the user gave none."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from basis_probe.errors import DataError
from basis_probe.model.batches import Batch, batch_of
from basis_probe.model.network import Subject

_TOKENS = 6
_MOMENTS = 2000
_IMAGE_SIZES = (32, 224, 28, 64)


def example_for(subject: Subject) -> Batch:
    """A batch of two random examples that the model runs on.

    Args:
        subject: the model, in evaluation mode.

    Raises:
        DataError: if it runs on none of the usual inputs.
    """
    tried: list[str] = []
    why = ""
    for candidate in _candidates(subject.model):
        shape = candidate if isinstance(candidate, torch.Tensor) else next(iter(candidate.values()))
        try:
            batch = batch_of(candidate, number=0, tokenizer=None, device=subject.device)
            with torch.no_grad():
                subject.call(batch)
        except Exception as error:
            tried.append(str(tuple(shape.shape)))
            why = (
                why or f"; the first: {type(error).__name__}: {' '.join(str(error).split())[:160]}"
            )
            continue
        return batch
    raise DataError(
        f"no input was found that the model runs on (tried shapes "
        f"{', '.join(tried) or 'none'}{why}): "
        "give example_input, one batch as for probe"
    )


def _candidates(model: nn.Module) -> Iterator[Any]:
    generator = torch.Generator().manual_seed(0)

    floating = (p.dtype for p in model.parameters() if p.is_floating_point())
    dtype = next(floating, torch.float32)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float32).to(dtype)

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
    tokens: torch.Tensor | None = None
    if words is not None:
        room = _said(config, "max_position_embeddings", "n_positions") or _TOKENS
        tokens = torch.randint(0, words, (2, max(1, min(_TOKENS, room))), generator=generator)
    recorded = _recorded(model, config)
    if tokens is not None and not recorded:
        yield tokens
        yield {"input_ids": tokens}
        if getattr(config, "is_encoder_decoder", False):
            yield {"input_ids": tokens, "decoder_input_ids": tokens.flip(0)}
        side = _said(config, "image_size")
        if side:
            image = numbers(2, _said(config, "num_channels") or 3, side, side)
            yield {"input_ids": tokens, "pixel_values": image}
        # Who reads the last token of each text takes several only where padding has a number.
        yield {"input_ids": tokens[:1]}
    for name, shape in recorded:
        given = {name: numbers(*shape)}
        yield given
        if tokens is not None and getattr(config, "is_encoder_decoder", False):
            yield {**given, "decoder_input_ids": tokens}
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


def _recorded(model: nn.Module, config: Any) -> list[tuple[str, tuple[int, ...]]]:
    """The input of a model of images, videos or sounds by its name, and shapes that it may have."""
    name = getattr(model, "main_input_name", None)
    side, channels = _said(config, "image_size"), _said(config, "num_channels") or 3
    frames = _said(config, "num_frames")
    bins = _said(config, "num_mel_bins", "input_feat_per_channel")
    shapes: list[tuple[int, ...]] = []
    if name == "pixel_values" and side:
        shapes.append((2, channels, side, side))
        shapes += [(2, frames, channels, side, side)] if frames else []
    if name == "input_values":
        length = _said(config, "max_length")
        shapes += [(2, length, bins)] if bins and length else []
        shapes.append((2, _MOMENTS))
    if name == "input_features" and bins:
        # Some halve the moments before they number them.
        moments = 2 * (_said(config, "max_source_positions") or _MOMENTS)
        shapes += [(2, bins, moments), (2, 64, bins)]
    return [(str(name), shape) for shape in shapes]


def _said(config: Any, *names: str) -> int | None:
    """The first whole number above zero that a configuration has under one of the names.

    Its own come first, then those of its parts.
    """
    kinds = getattr(config, "sub_configs", None)
    parts = [getattr(config, str(part), None) for part in kinds] if isinstance(kinds, dict) else []
    for part in (config, *parts):
        for name in names:
            value = getattr(part, name, None)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return None
