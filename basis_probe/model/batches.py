"""What users hand over as data, as batches that a model can be called with."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from basis_probe.errors import DataError
from basis_probe.model.trace import tensors_in

MAIN = ("input_ids", "inputs_embeds", "pixel_values", "input_values", "input", "x")
"""Under these keywords models take what an example consists of."""

MASKS = ("attention_mask", "one_zero_attention_mask")
"""Under these they take which positions are no padding, encoders of TransformerLens the second."""


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """One call of the model.

    Attributes:
        args, kwargs: what the model is called with.
        inputs: the tensor that tells examples apart, [batch, ...].
        mask: [batch, positions], True where a token counts; None if all do.
        form: what kind of batch it is, in words.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: Tensor
    mask: Tensor | None
    form: str

    @property
    def size(self) -> int:
        """The number of examples."""
        return len(self.inputs)

    def first(self, count: int) -> "Batch":
        """The first examples of the batch as a batch of its own."""
        if count >= self.size:
            return self

        inputs = self.inputs[:count]

        def cut(value: Any) -> Any:
            if value is self.inputs:
                return inputs
            whole = isinstance(value, Tensor) and value.ndim and len(value) == self.size
            return value[:count] if whole else value

        return Batch(
            tuple(cut(value) for value in self.args),
            {name: cut(value) for name, value in self.kwargs.items()},
            inputs,
            None if self.mask is None else self.mask[:count],
            self.form,
        )


LISTS = "lists of token ids"
"""The form of batches that say how many ids each example has, and nothing of keywords."""

Tokenizer = Callable[[list[str]], Mapping[str, Tensor]]
"""Strings -> keywords for the model, padded, with an attention mask."""


def batch_of(
    raw: object, *, number: int, tokenizer: Tokenizer | None, device: torch.device
) -> Batch:
    """The batch that a loader's item stands for.

    Args:
        raw: a tensor or array; a mapping of keywords, of a row of a data set too; a list of token
            ids, or of lists of them; a tuple or list whose first element is one of these; a string
            or a list of strings.
        number: which item it is, for messages.
        tokenizer: what turns strings into tokens; None if the model has none.
        device: where the model is.

    Raises:
        DataError: if it is none of these.
    """
    if isinstance(raw, str):
        raw = [raw]
    if isinstance(raw, tuple | list):
        entries: Sequence[object] = raw  # pyright: ignore[reportUnknownVariableType]
        if not entries:
            raise DataError(f"batch {number} is empty: give at least one example")
        if all(isinstance(entry, str) for entry in entries):
            if tokenizer is None:
                raise DataError(
                    f"batch {number} holds strings, and the model has no tokenizer: give one "
                    "(tokenizer=...), or batches of token ids, such as "
                    "tokenizer(texts, padding=True, return_tensors='pt')"
                )
            keywords = tokenizer([str(entry) for entry in entries])
            return _from_mapping(keywords, number, device, form="strings")
        if (ids := _token_ids(entries)) is not None:
            return _from_mapping(ids, number, device, form=LISTS)
        first = entries[0]
        if isinstance(first, tuple | list) and first and isinstance(first[0], str):
            return batch_of(first, number=number, tokenizer=tokenizer, device=device)
        raw = first
    if isinstance(raw, Mapping):
        texts = _texts(raw)
        if texts is not None:
            return batch_of(texts, number=number, tokenizer=tokenizer, device=device)
        return _from_mapping(_whole(raw), number, device, form="keywords")
    if isinstance(raw, np.ndarray):
        raw = _tensor(raw, number)
    if not isinstance(raw, Tensor):
        raise DataError(
            f"batch {number} is of type {type(raw).__name__}: a batch is a tensor, a dict of "
            "keywords, a tuple or list whose first element is one of these, or a list of strings"
        )
    if raw.ndim == 0 or len(raw) == 0:
        raise DataError(f"batch {number} has shape {tuple(raw.shape)}: it holds no example")
    moved = raw.to(device)
    return Batch((moved,), {}, moved, None, "a tensor")


def _token_ids(entries: Sequence[Any]) -> dict[str, Tensor] | None:
    """Keywords for one list of token ids, or for lists of them; None for anything else."""
    rows = [entries] if _are_ids(entries) else entries
    if not all(_are_ids(row) for row in rows):
        return None
    ids = _padded(rows)
    # As tokenizers pad: on the right, with a mask that says where.
    return {"input_ids": ids, "attention_mask": _padded([[1] * len(row) for row in rows])}


def _are_ids(row: object) -> bool:
    """True for a list of whole numbers."""
    return (
        isinstance(row, list | tuple) and len(row) > 0 and all(type(entry) is int for entry in row)  # pyright: ignore[reportUnknownVariableType]
    )


def _padded(rows: Sequence[Sequence[int]]) -> Tensor:
    found = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
    for place, row in enumerate(rows):
        found[place, : len(row)] = torch.tensor(row, dtype=torch.int64)
    return found


def _texts(raw: Mapping[Any, Any]) -> list[str] | None:
    """The texts of a row of a data set that holds nothing else; None for anything else."""
    found = raw.get("text")
    if isinstance(found, str):
        found = [found]
    if not isinstance(found, list) or "input_ids" in raw:
        return None
    texts = cast("list[Any]", found)
    return texts if texts and all(isinstance(text, str) for text in texts) else None


def _whole(raw: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """The keywords with token ids [batch, position], whatever form a data set holds them in.

    Lists become tensors, padded on the right as a tokenizer pads them; a single example becomes a
    batch of one.
    """
    main = raw.get("input_ids")
    if isinstance(main, list | tuple):
        entries = cast("Sequence[Any]", main)
        ids = _token_ids(entries)
        if ids is None:
            return raw
        rows = 1 if _are_ids(entries) else len(entries)
        return {**ids, **{name: _listed(value, rows) for name, value in raw.items()}}
    if isinstance(main, Tensor) and main.ndim == 1 and not main.is_floating_point():
        return {
            name: value[None]
            if isinstance(value, Tensor) and value.ndim == 1 and len(value) == len(main)
            else value
            for name, value in raw.items()
        }
    return raw


def _listed(value: Any, rows: int) -> Any:
    """A list of a data set as a tensor whose first axis are its rows; anything else as it is."""
    if not isinstance(value, list | tuple):
        return value
    entries = cast("Sequence[Any]", value)
    made = _token_ids(entries)
    if made is not None and len(made["input_ids"]) == rows:
        return made["input_ids"]
    return torch.tensor(entries) if _are_ids(entries) and len(entries) == rows else value


def _tensor(array: np.ndarray, number: int) -> Tensor:
    # Torch cannot share an array that is read-only or runs backwards.
    shared = array.flags.writeable and all(stride >= 0 for stride in array.strides)
    try:
        return torch.as_tensor(array if shared else array.copy())
    except TypeError as error:
        raise DataError(
            f"batch {number} holds an array of {array.dtype}: give numbers that torch has, such as "
            "float32 or int64"
        ) from error


def _from_mapping(raw: Mapping[Any, Any], number: int, device: torch.device, *, form: str) -> Batch:
    keywords: dict[str, Any] = {}
    for name, value in raw.items():
        value = _tensor(value, number) if isinstance(value, np.ndarray) else value
        keywords[str(name)] = value.to(device) if isinstance(value, Tensor) else value
    main = next((keywords[name] for name in MAIN if isinstance(keywords.get(name), Tensor)), None)
    if main is None:
        main = next((tensor for tensor in tensors_in(keywords) if tensor.ndim), None)
    if main is None or main.ndim == 0 or len(main) == 0:
        names = ", ".join(keywords) or "nothing"
        raise DataError(f"batch {number} holds no tensor with examples; it has {names}")
    called = next((name for name in MASKS if name in keywords), MASKS[0])
    mask = keywords.get(called)
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        mask = None
    elif main.ndim < 2 or mask.shape != main.shape[:2]:
        raise DataError(
            f"batch {number}: {called} has shape {tuple(mask.shape)} and the input "
            f"{tuple(main.shape)}: give one mask entry for every position, [batch, positions]"
        )
    form = form if mask is None or form == "strings" else f"{form} with an attention mask"
    return Batch((), keywords, main, None if mask is None else mask != 0, form)
