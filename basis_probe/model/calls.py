"""What a model is called with, as the batch that it is."""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from basis_probe.errors import DataError
from basis_probe.model.batches import MAIN, MASKS, Batch
from basis_probe.model.trace import tensors_in

FORM = "what the model was called with"

_EXAMPLES = 2


def batch_of_call(
    model: nn.Module,
    signature: Mapping[str, inspect.Parameter],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    number: int,
) -> Batch:
    """The batch of one forward pass, which somebody else makes.

    Where equal inputs may lead to other activations, in training mode and where the model goes on
    from what it remembers of earlier calls, examples of different calls are different examples.

    Args:
        model: the model that is called.
        signature: what its `forward` takes.
        args: what it is called with, by position.
        kwargs: what it is called with, by name.
        number: which forward pass it is.

    Raises:
        DataError: if nothing that it is called with holds examples.
    """
    named = _named(signature, args, kwargs)
    inputs, mask = _examples(model, named, args, number)
    inputs = inputs.detach()
    past = any(value is not None for name, value in named.items() if _remembers(name))
    if model.training or past:
        inputs = torch.stack([inputs, torch.full_like(inputs, number)], -1)
    return Batch(args, kwargs, inputs, mask, FORM)


def example_of_call(
    model: nn.Module,
    signature: Mapping[str, inspect.Parameter],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Batch:
    """The first examples of a forward pass, as a batch with which the model can be run beside it.

    It holds nothing that the model remembers of earlier calls, and tokens in place of texts. Its
    tensors are copies, for callers use theirs again.

    Args:
        model: the model that is called.
        signature: what its `forward` takes.
        args: what it is called with, by position.
        kwargs: what it is called with, by name.

    Raises:
        DataError: if nothing that it is called with holds examples.
    """
    inputs, mask = _examples(model, _named(signature, args, kwargs), args, 0)
    batch = Batch(
        tuple(inputs if _texts(value) else value for value in args),
        {
            name: inputs if _texts(value) and name in MAIN else value
            for name, value in kwargs.items()
            if not _remembers(name)
        },
        inputs,
        mask,
        FORM,
    ).first(_EXAMPLES)
    copies = {id(batch.inputs): batch.inputs.detach().clone()}

    def copied(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return copies.setdefault(id(value), value.detach().clone())

    return dataclasses.replace(
        batch,
        args=tuple(map(copied, batch.args)),
        kwargs={name: copied(value) for name, value in batch.kwargs.items()},
        inputs=copied(batch.inputs),
    )


def _remembers(name: str) -> bool:
    return name.startswith("past_") or (
        name.startswith("cache_") and name != "cache_implementation"
    )


def _named(
    signature: Mapping[str, inspect.Parameter], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """Everything that the model is called with, by name where it has one."""
    places = [
        name
        for name, parameter in signature.items()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    names = [*places[: len(args)], *(f"*{place}" for place in range(len(args) - len(places)))]
    return dict(zip(names, args, strict=True)) | kwargs


def _examples(
    model: nn.Module, named: dict[str, Any], args: tuple[Any, ...], number: int
) -> tuple[Tensor, Tensor | None]:
    """The tensor that tells examples apart, and which of its positions count."""
    candidates = [named[name] for name in MAIN if named.get(name) is not None]
    first = next((c for c in (*candidates, *args) if _texts(c) or isinstance(c, Tensor)), None)
    texts = _texts(first)
    if texts:
        return _of_texts(model, texts, named)
    if not isinstance(first, Tensor):
        first = next((tensor for tensor in tensors_in(list(named.values())) if tensor.ndim), None)
    if first is None or first.ndim == 0 or len(first) == 0:
        raise DataError(
            f"forward pass {number} holds no tensor with examples; it has "
            f"{', '.join(named) or 'nothing'}"
        )
    mask = next((named[name] for name in MASKS if named.get(name) is not None), None)
    return first, _mask(mask, first)


def _mask(mask: object, inputs: Tensor) -> Tensor | None:
    """Which positions count: a mask that covers earlier calls too ends with those of this one."""
    if not isinstance(mask, Tensor) or mask.ndim != 2 or inputs.ndim < 2:
        return None
    if mask.shape[1] > inputs.shape[1]:
        mask = mask[:, mask.shape[1] - inputs.shape[1] :]
    return (mask != 0) if mask.shape == inputs.shape[:2] else None


def _texts(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, tuple | list) and value and all(isinstance(v, str) for v in value):
        return [str(entry) for entry in value]
    return []


def _of_texts(
    model: nn.Module, texts: list[str], named: dict[str, Any]
) -> tuple[Tensor, Tensor | None]:
    """The tokens that a model of TransformerLens makes of texts, and which of them are padding."""
    to_tokens: Any = getattr(model, "to_tokens", None)
    if not callable(to_tokens):
        raise DataError(
            "the model is called with strings and has no to_tokens to say what tokens they are: "
            "call it with token ids"
        )
    options = {
        name: named[name] for name in ("prepend_bos", "padding_side") if named.get(name) is not None
    }
    made: Any = to_tokens(texts, **options)
    tokens = made if isinstance(made, Tensor) else torch.as_tensor(made)
    single: list[Any] = [to_tokens(text, **options) for text in texts]
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    width = tokens.shape[1]
    for row, alone in enumerate(single):
        length = alone.shape[1]
        on_right = torch.equal(tokens[row, :length], alone[0])
        mask[row, slice(0, length) if on_right else slice(width - length, width)] = True
    return tokens, mask
