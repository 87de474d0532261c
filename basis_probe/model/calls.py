"""What a model is called with, as the batch that it is."""

import copy
import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from basis_probe.errors import DataError
from basis_probe.model.batches import MAIN, Batch
from basis_probe.model.trace import tensors_in

FORM = "what the model was called with"


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
    past = any(value is not None for name, value in named.items() if _remembers(name))
    batch = _batch(model, named, args, kwargs, number)
    return dataclasses.replace(batch, call=number if model.training or past else 0)


def example_of_call(
    model: nn.Module,
    signature: Mapping[str, inspect.Parameter],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    past: bool = False,
) -> Batch:
    """The batch of a forward pass with which the model can be run beside it.

    It holds tokens in place of texts, and copies of tensors, for callers use theirs again.

    Args:
        model: the model that is called.
        signature: what its `forward` takes.
        args: what it is called with, by position.
        kwargs: what it is called with, by name.
        past: whether to keep a copy of what the model remembers of earlier calls.

    Raises:
        DataError: if nothing that it is called with holds examples.
    """
    batch = _batch(model, _named(signature, args, kwargs), args, kwargs, 0)
    tokens = batch.instead

    def plain(name: str, value: Any) -> Any:
        return tokens[name] if name in tokens and not isinstance(value, Tensor) else value

    kept = {
        name: copy.deepcopy(value) if _remembers(name) else value
        for name, value in batch.kwargs.items()
        if past or not _remembers(name)
    }
    made = dataclasses.replace(batch, kwargs=kept).changed(plain)
    return dataclasses.replace(made, instead={}).copied()


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


def _batch(
    model: nn.Module,
    named: dict[str, Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    number: int,
) -> Batch:
    """The batch of a call: the tensor that tells examples apart, and which positions count."""
    names = tuple(list(named)[: len(args)])
    candidates = [name for name in MAIN if named.get(name) is not None]
    main = next(
        (n for n in (*candidates, *names) if _texts(named[n]) or isinstance(named[n], Tensor)), None
    )
    texts = _texts(named[main]) if main is not None else []
    if main is not None and texts:
        tokens, mask = _of_texts(model, texts, named)
        return Batch(args, kwargs, tokens, mask, FORM, names, {main: tokens})
    found = named[main] if main is not None else None
    if not isinstance(found, Tensor):
        found = next((tensor for tensor in tensors_in(list(named.values())) if tensor.ndim), None)
    if found is None or found.ndim == 0 or len(found) == 0:
        raise DataError(
            f"forward pass {number} holds no tensor with examples; it has "
            f"{', '.join(named) or 'nothing'}"
        )
    made = Batch(args, kwargs, found, None, FORM, names)
    told = next((mask for mask in made.masks if mask.of == made.main and mask.axes == (0, 1)), None)
    return made if told is None else dataclasses.replace(made, mask=made.counts(told))


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
