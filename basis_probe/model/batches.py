"""What users hand over as data, as batches that a model can be called with."""

import copy as copies
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence, Sized
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


_TOLD: dict[str, tuple[tuple[str, ...], bool]] = {
    "attention_mask": ((*MAIN, "input_features"), False),
    "one_zero_attention_mask": (MAIN, False),
    "decoder_attention_mask": (("decoder_input_ids", "decoder_inputs_embeds", "labels"), False),
    "encoder_attention_mask": (("encoder_hidden_states",), False),
    "pixel_attention_mask": (("pixel_values",), False),
    "pixel_mask": (("pixel_values",), False),
    "src_key_padding_mask": (("src",), True),
    "tgt_key_padding_mask": (("tgt",), True),
    "memory_key_padding_mask": (("memory",), True),
    "key_padding_mask": (("key", "src", "x", "query"), True),
}
"""Mask -> the inputs of which it may speak, and whether it marks what is padding."""

_WITH_EXAMPLES = frozenset(
    "input_ids attention_mask token_type_ids position_ids inputs_embeds pixel_values labels "
    "input_values input_features decoder_input_ids decoder_attention_mask decoder_inputs_embeds "
    "one_zero_attention_mask pixel_mask pixel_attention_mask start_positions end_positions "
    "special_tokens_mask bbox lengths length idx".split()
)
"""Under these keywords models take one entry for every example."""

_NO_PADDING = frozenset(
    "global_attention_mask special_tokens_mask head_mask decoder_head_mask cross_attn_head_mask "
    "bool_masked_pos".split()
)
"""Masks that say something else than what is padding."""

_WITHOUT_EXAMPLES = frozenset(
    "cache_position head_mask decoder_head_mask num_items_in_batch".split()
)


@dataclasses.dataclass(frozen=True)
class Mask:
    """A tensor of a batch that says which positions of an input are no padding.

    Attributes:
        name: under which it was given.
        of: the input of which it speaks.
        axes: for every axis of the mask, the axis of that input.
        padding: True if it marks what is padding.
    """

    name: str
    of: str
    axes: tuple[int, ...]
    padding: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """One call of the model.

    Attributes:
        args, kwargs: what the model is called with.
        inputs: the tensor that tells examples apart, [batch, ...].
        mask: [batch, positions], True where a token of that tensor counts; None if all do.
        form: what kind of batch it is, in words.
        names: what the arguments without a keyword are called; their numbers where that is unknown.
        instead: name -> the tensor that a model makes of an argument that is none, such as a text.
        call: a number that tells its examples from equal ones of other calls; 0 if nothing does.
        raw: what the data gave.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: Tensor
    mask: Tensor | None
    form: str
    names: tuple[str, ...] = ()
    instead: dict[str, Tensor] = dataclasses.field(default_factory=dict[str, Tensor])
    call: int = 0
    raw: Any = None

    @property
    def size(self) -> int:
        """The number of examples."""
        return len(self.inputs)

    @functools.cached_property
    def main(self) -> str:
        """The name of the tensor that tells examples apart."""
        named = self.named()
        found = next((name for name, tensor in named.items() if tensor is self.inputs), None)
        return found or next(iter(named), "")

    def named(self) -> dict[str, Tensor]:
        """Every tensor that the model is called with, by name, in order."""
        return self._named

    @functools.cached_property
    def _named(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for place, value in enumerate(self.args):
            found |= _by_name(self.names[place] if place < len(self.names) else str(place), value)
        for name, value in self.kwargs.items():
            found |= _by_name(name, value)
        return found | self.instead

    @functools.cached_property
    def masks(self) -> tuple[Mask, ...]:
        """What says which positions are no padding."""
        named = self.named()
        found = (_mask_of(name, named, self.main) for name in named if name in _TOLD)
        masks = tuple(mask for mask in found if mask is not None)
        known = any(mask.of == self.main and mask.axes == (0, 1) for mask in masks)
        # One that came with the batch in no argument of its own.
        return masks if known or self.mask is None else (*masks, Mask("", self.main, (0, 1)))

    @functools.cached_property
    def unread(self) -> tuple[str, ...]:
        """Tensors that look like masks or lengths, of which it is not known what they mean."""
        named, read = self.named(), {mask.name for mask in self.masks}
        main = named.get(self.main)
        found: list[str] = []
        for name, tensor in named.items():
            if name in read or name == self.main or main is None:
                continue
            whole = not tensor.is_floating_point() and tensor.dtype is not torch.bool
            if "mask" in name and name not in _NO_PADDING and tensor.ndim > 1:
                # Whatever its shape: it says something, and it was not read.
                if bool((tensor != tensor.flatten()[:1]).any()):
                    found.append(name)
                continue
            if "length" in name and whole and tensor.shape == main.shape[:1] and main.ndim > 1:
                found.append(name)
            if tensor.ndim < 2:
                continue
            truth = tensor.dtype is torch.bool or not tensor.is_floating_point()
            plain = name not in _WITH_EXAMPLES and tensor.shape == main.shape[:2]
            if truth and (tensor.dtype is torch.bool or plain):
                told = tensor.shape == main.shape[: tensor.ndim] or name in _TOLD
                if told and bool(((tensor == 0) | (tensor == 1)).all()):
                    found.append(name)
        return (*found, *self._further)

    @property
    def _further(self) -> tuple[str, ...]:
        """What a tuple holds behind its first element and looks like a mask."""
        if not isinstance(self.raw, tuple | list) or len(self.args) != 1:
            return ()
        rest: Sequence[Any] = self.raw[1:]  # pyright: ignore[reportUnknownVariableType]
        ids = not self.inputs.is_floating_point()
        return tuple(
            f"element {place} of the tuple"
            for place, value in enumerate(rest, 1)
            if isinstance(value, Tensor)
            and ids
            and self.inputs.ndim > 1
            and value.shape == self.inputs.shape
            and not value.is_floating_point()
            and bool(((value == 0) | (value == 1)).all())
        )

    def counts(self, mask: Mask) -> Tensor:
        """What a mask says of its input, True where a position counts."""
        if not mask.name and self.mask is not None:
            return self.mask
        value = self.named()[mask.name]
        if value.is_floating_point() and mask.padding:
            counts = value == 0  # What is added to the scores: 0, or minus infinity at padding.
        else:
            counts = (value == 0) if mask.padding else (value != 0)
        length = self.named()[mask.of].shape[mask.axes[-1]]
        return counts[..., counts.shape[-1] - length :]

    def first(self, count: int) -> "Batch":
        """The first examples as a batch; all where it is not sure what belongs to which example."""
        return self if count >= self.size else self._of_examples(lambda rows: rows[:count])

    def repeated(self, times: int) -> "Batch":
        """The examples several times; once where it is not sure what belongs to which example."""
        return self._of_examples(lambda rows: rows.repeat(times, *[1] * (rows.ndim - 1)))

    def _of_examples(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """The batch with other examples, [example, ...] of each tensor that has them."""
        if not self._is_divisible():
            return self
        size = self.size

        def changed(name: str, value: Any) -> Any:
            if isinstance(value, Tensor):
                whole = name in _WITHOUT_EXAMPLES or value.ndim == 0 or len(value) != size
                return value if whole else change(value)
            if isinstance(value, np.ndarray):
                own = value.ndim and len(value) == size
                return value[change(torch.arange(size)).numpy()] if own else value
            return _rebuilt(value, lambda entry: changed(name, entry))

        return self.changed(changed)

    def copied(self) -> "Batch":
        """The batch with tensors of its own, so that a model may write into them."""

        def copy(value: Any) -> Any:
            if isinstance(value, np.ndarray):
                return value.copy()
            # What is differentiated by is nobody's to replace.
            return value if value.requires_grad else value.detach().clone()

        def whole(_: str, value: Any) -> Any:
            return own(value) if not _is_plain(value) else within(value)

        def own(value: Any) -> Any:
            """Such as a cache of keys and values, to which a model appends."""
            try:
                return copies.deepcopy(value)
            except Exception:
                return value

        def within(value: Any) -> Any:
            held = isinstance(value, Tensor | np.ndarray)
            return copy(value) if held else _rebuilt(value, within)

        return self.changed(whole)

    def to(self, device: torch.device) -> "Batch":
        """The batch with its tensors on a device."""
        return self.mapped(lambda value: value.to(device) if isinstance(value, Tensor) else value)

    def mapped(self, change: Callable[[Any], Any]) -> "Batch":
        """The batch with every tensor and array changed, in containers too."""

        def within(value: Any) -> Any:
            if isinstance(value, Tensor | np.ndarray):
                return change(value)  # pyright: ignore[reportUnknownArgumentType]
            return _rebuilt(value, within)

        return self.changed(lambda _, value: within(value))

    def changed(self, change: Callable[[str, Any], Any]) -> "Batch":
        """The batch with every argument changed, by its name and value."""
        main = self.main
        names = [self.names[i] if i < len(self.names) else str(i) for i in range(len(self.args))]
        args = tuple(change(name, value) for name, value in zip(names, self.args, strict=True))
        kwargs = {name: change(name, value) for name, value in self.kwargs.items()}
        instead = {name: change(name, value) for name, value in self.instead.items()}
        made = dataclasses.replace(self, args=args, kwargs=kwargs, instead=instead)
        inputs = made.named().get(main)
        if inputs is None:
            inputs = change(main, self.inputs)
        mask = self.mask
        if mask is not None:
            mask = mask[: len(inputs)].to(inputs.device)
        return dataclasses.replace(made, inputs=inputs, mask=mask)

    def _is_divisible(self) -> bool:
        """True if it is sure which entries belong to which example."""
        size, named = self.size, self.named()
        if any(not _is_plain(value) for value in (*self.args, *self.kwargs.values())):
            return False
        if len(named) == 1:
            return True
        for name, tensor in named.items():
            if name in _WITHOUT_EXAMPLES or (
                name in _WITH_EXAMPLES and size in (*tensor.shape[:1],)
            ):
                continue
            if name == "position_ids" and tensor.shape[:1] == (1,):
                continue
            if size not in tensor.shape[:1] or size in tensor.shape[1:]:
                return False
        return True


def _is_plain(value: Any) -> bool:
    """True for what is made of tensors, numbers and words, so that nothing is hidden in it."""
    if type(value) is dict:
        return all(map(_is_plain, value.values()))  # pyright: ignore[reportUnknownArgumentType]
    if type(value) in (tuple, list):
        return all(map(_is_plain, value))  # pyright: ignore[reportUnknownArgumentType]
    return value is None or isinstance(value, Tensor | np.ndarray | bool | int | float | str)


def _rebuilt(value: Any, change: Callable[[Any], Any]) -> Any:
    """A plain container with its entries changed; anything else as it is."""
    if type(value) is dict:
        return {key: change(entry) for key, entry in value.items()}  # pyright: ignore[reportUnknownVariableType]
    if type(value) in (tuple, list):
        return type(value)(change(entry) for entry in value)
    return value


def _by_name(name: str, value: Any) -> dict[str, Tensor]:
    """The tensors of an argument, in the order of `tensors_in`."""
    if isinstance(value, np.ndarray):
        return {name: torch.as_tensor(value)} if value.dtype.kind in "biuf" else {}
    if isinstance(value, Tensor):
        return {name: value}
    found: dict[str, Tensor] = {}
    if isinstance(value, dict):
        for key, entry in value.items():  # pyright: ignore[reportUnknownVariableType]
            found |= _by_name(f"{name}.{key}", entry)
    elif isinstance(value, tuple | list):
        for place, entry in enumerate(value):  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
            found |= _by_name(f"{name}.{place}", entry)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            found |= _by_name(f"{name}.{field.name}", getattr(value, field.name))
    return found


def _mask_of(name: str, named: Mapping[str, Tensor], main: str) -> Mask | None:
    """What a mask says; None if it is not known of which positions it speaks."""
    owners, padding = _TOLD[name]
    value = named[name]
    candidates = [*owners]
    if name in ("attention_mask", "one_zero_attention_mask", "key_padding_mask"):
        # A mask of no other input is one of the main input; a decoder has its own.
        encoded = [key for key in named if key.startswith("encoder_outputs")]
        candidates = [*owners, *(encoded[:1] or (() if main.startswith("decoder") else (main,)))]
    for of in dict.fromkeys(candidates):
        tensor = named.get(of)
        if tensor is None or of == name:
            continue
        axes = _axes_of(value, tensor, turned=padding)
        if axes is not None:
            return Mask(name, of, axes, padding)
    return None


def _axes_of(mask: Tensor, of: Tensor, *, turned: bool) -> tuple[int, ...] | None:
    """For every axis of a mask the axis of the tensor of which it speaks."""
    sizes, given = tuple(mask.shape), tuple(of.shape)
    if mask.ndim < 2 or of.ndim < mask.ndim:
        return None
    if sizes == given[: mask.ndim]:
        return tuple(range(mask.ndim))
    if mask.ndim == 3 and of.ndim == 4 and sizes == (given[0], *given[2:]):
        return (0, 2, 3)
    if mask.ndim != 2:
        return None
    if turned and sizes == (given[1], given[0]):
        return (1, 0)
    if sizes[0] != given[0]:
        return None
    fits = [k for k in range(1, of.ndim) if given[k] == sizes[1]]
    if len(fits) == 1:
        return (0, fits[0])
    # A mask that covers what came before as well ends with the positions of this call.
    return (0, 1) if not fits and not of.is_floating_point() and sizes[1] > given[1] else None


LISTS = "lists of token ids"
"""The form of batches that say how many ids each example has, and nothing of keywords."""

Tokenizer = Callable[[list[str]], Mapping[str, Tensor]]
"""Strings -> keywords for the model, padded, with an attention mask."""


def _require_dense(raw: object, number: int) -> None:
    """Raises DataError for tensors that a model cannot be watched on."""
    if isinstance(raw, Tensor) and not raw.is_nested and not raw.ndim:
        raise DataError(f"batch {number} has shape (): it holds no example; give [batch, ...]")
    for tensor in tensors_in(raw):
        sparse = tensor is raw and tensor.layout is not torch.strided
        if tensor.is_nested or tensor.is_meta or sparse:
            kind = "is nested" if tensor.is_nested else "is on the meta device and holds no numbers"
            kind = "is sparse" if sparse and not tensor.is_nested else kind
            raise DataError(
                f"batch {number} holds a tensor that {kind}: give dense tensors, with a mask where "
                "examples differ in length"
            )


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
    _require_dense(raw, number)
    made = _batch_of(raw, number=number, tokenizer=tokenizer, device=device)
    return dataclasses.replace(made, raw=raw)


def _batch_of(
    raw: object, *, number: int, tokenizer: Tokenizer | None, device: torch.device
) -> Batch:
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
            return _batch_of(first, number=number, tokenizer=tokenizer, device=device)
        raw = first
    if isinstance(raw, Mapping):
        texts = _texts(raw)
        if texts is not None:
            return _batch_of(texts, number=number, tokenizer=tokenizer, device=device)
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


def _is_set(value: object) -> bool:
    """True for a set of data by itself, as a split of `datasets` is."""
    return isinstance(value, Sized) and hasattr(value, "column_names")


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
        nested = [name for name, value in keywords.items() if _is_set(value)]
        way = f": of several sets of data give one, such as data[{nested[0]!r}]" if nested else ""
        raise DataError(f"batch {number} holds no tensor with examples; it has {names}{way}")
    made = Batch((), keywords, main, None, form)
    called = next((name for name in MASKS if isinstance(keywords.get(name), Tensor)), None)
    told = next((mask for mask in made.masks if mask.of == made.main and mask.axes == (0, 1)), None)
    ids = main.ndim == 2 and not main.is_floating_point()
    # A mask that covers what a cache holds is longer than the input.
    past = any(name.startswith("past_") and value is not None for name, value in keywords.items())
    if (
        called is not None
        and ids
        and not (past and told is not None)
        and keywords[called].ndim == 2
        and (told is None or keywords[called].shape != main.shape)
    ):
        raise DataError(
            f"batch {number}: {called} has shape {tuple(keywords[called].shape)} and the input "
            f"{tuple(main.shape)}: give one mask entry for every position, [batch, positions]"
        )
    if told is None:
        return made
    form = form if form == "strings" else f"{form} with an attention mask"
    return dataclasses.replace(made, mask=made.counts(told), form=form)
