"""One face for every kind of model: how it is called, what its places are called, what it is.

A model is recognised by what it has, never by importing a library to ask.
"""

import abc
import dataclasses
import hashlib
import inspect
import re
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from basis_probe.brief import described
from basis_probe.devices import users_device
from basis_probe.errors import DataError
from basis_probe.interrupts import guarded
from basis_probe.model.batches import LISTS, Batch, Tokenizer
from basis_probe.model.offloaded import at_hand, fetching
from basis_probe.model.places import Address, Place, Site, module_sites
from basis_probe.model.quantised import with_real_weights
from basis_probe.model.state import alone, kept, random_kept
from basis_probe.model.trace import Trace, record, tensors_in
from basis_probe.parallel import OneForAll

_EXAMPLES = 2
"""The model is watched on this many examples: sites, layouts and functions do not need more."""


_FOR_EXPERTS = 16
"""On so many where some of the modules of a list did not run on those."""


_CPU = torch.device("cpu")


class Subject(abc.ABC):
    """A model as a probe sees it.

    Args:
        model: the user's model; nothing in it is changed but what `prepared` puts back.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.signature = _signature(model)
        self.own_tokenizer: Any = getattr(model, "tokenizer", None)

    @property
    def device(self) -> torch.device:
        """Where the model's first tensor is, or where it is brought to when it is needed."""
        first = self._first(floating=False)
        if first is not None and first.is_meta:
            return next((torch.device(h.execution_device) for _, h in fetching(self.model)), _CPU)
        return _CPU if first is None else first.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the model's first floating-point tensor."""
        first = self._first(floating=True)
        return torch.get_default_dtype() if first is None else first.dtype

    def _first(self, *, floating: bool) -> Tensor | None:
        for tensors in (self.model.parameters(), self.model.buffers()):
            for tensor in tensors:
                if tensor.is_floating_point() or not floating:
                    return tensor
        return None

    @property
    def tokenizer(self) -> Tokenizer | None:
        """What turns strings into tokens, if the model carries one or one was given."""
        if not callable(self.own_tokenizer):
            return None
        return _Padded(self.own_tokenizer, self._context_length())

    def _context_length(self) -> int | None:
        for holder, name in (("cfg", "n_ctx"), ("config", "max_position_embeddings")):
            length = getattr(getattr(self.model, holder, None), name, None)
            if isinstance(length, int):
                return length
        return None

    @property
    def description(self) -> str:
        """The model's class, its name if it has one, and its number of parameters."""
        names = [
            getattr(getattr(self.model, holder, None), name, None)
            for holder, name in (("cfg", "model_name"), ("config", "name_or_path"))
        ]
        name = next((str(found) for found in names if found), "")
        # Only the last part: a path says more about the machine than about the model.
        name = re.split(r"[\\/]", name.rstrip("\\/"))[-1] if name.startswith(("/", ".")) else name
        unique = {id(p): p.numel() for p in self.model.parameters()}
        size = f"{sum(unique.values()):,} parameters"
        kind = type(self.model).__name__
        return f"{kind} {name} ({size})" if name else f"{kind} ({size})"

    def call(self, batch: Batch) -> object:
        """What the model returns for a batch, of which it gets copies: it may write into them."""
        with eagerly(), users_device():
            return self._call(batch.copied())

    @abc.abstractmethod
    def _call(self, batch: Batch) -> object:
        """What the model returns for the very tensors of a batch."""

    @abc.abstractmethod
    def names(self, trace: Trace) -> dict[str, Site]:
        """Every place with a name that ran, in forward order; several names may be of one place."""

    @abc.abstractmethod
    def silent(self) -> frozenset[str]:
        """Names that the model knows, whether or not they ran."""

    @property
    def all_named(self) -> bool:
        """True if the model itself names every place that its users know."""
        return False

    @property
    def usual(self) -> tuple[str, ...]:
        """Patterns of the names that users of such a model mean by its sites; none if unknown."""
        return ()

    def watch(self, batch: Batch, like: Trace | None = None) -> Trace:
        """The trace of one forward pass on the first examples of a batch.

        On all of them, where it cannot be told what belongs to the first, or where the model takes
        no part of a batch.

        Args:
            batch: the batch.
            like: another record of the model, whose weights are found again in this one.
        """
        trace = self._watched(batch)
        return with_real_weights(self.model, trace, like.quantised if like else None)

    def _watched(self, batch: Batch) -> Trace:
        few = batch.first(_EXAMPLES)
        try:
            trace = self._record(few)
        except Exception:
            if few is batch:
                raise
            return self._record(batch)
        more = batch.first(_FOR_EXPERTS)
        return self._record(more) if more.size > few.size and self._has_idle(trace) else trace

    def _has_idle(self, trace: Trace) -> bool:
        """True if of modules in a list some ran and others did not, as experts without rows."""
        ran = {call.path for call in trace.calls}
        for path, module in self.model.named_modules():
            if isinstance(module, nn.ModuleList | nn.ModuleDict) and len(module) > 1:
                inside = [f"{path}.{name}" if path else name for name, _ in module.named_children()]
                if 0 < len(ran.intersection(inside)) < len(inside):
                    return True
        return False

    def _record(self, batch: Batch) -> Trace:
        own = batch.copied()
        fed = (own.args, own.kwargs)
        with kept(self.model), eagerly():
            trace = record(self.model, users_device()(lambda: self._call(own)), fed, own.size)
        known = {id(tensor): name for name, tensor in own.named().items()}
        names = tuple(known.get(id(tensor), "") for tensor in tensors_in(fed))
        return dataclasses.replace(trace, names=names, main=own.main)


class PlainModule(Subject):
    """Any `nn.Module`, Hugging Face models among them."""

    def _call(self, batch: Batch) -> object:
        kwargs = dict(batch.kwargs)
        if batch.form.startswith(LISTS) and "input_ids" not in self.signature:
            # Whoever gives lists says nothing of keywords, and the model may know none.
            return self.model(kwargs["input_ids"])
        if "use_cache" in self.signature:
            # A cache of keys and values is of no use to a single pass.
            kwargs.setdefault("use_cache", False)
        return self.model(*batch.args, **kwargs)

    def names(self, trace: Trace) -> dict[str, Site]:
        return module_sites(trace)

    def silent(self) -> frozenset[str]:
        return frozenset(path for path, _ in self.model.named_modules() if path)


class HookedModel(Subject):
    """A model of TransformerLens, whose places are hook points with names of their own."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.hook_dict: dict[str, nn.Module] = dict(model.hook_dict)  # pyright: ignore

    def _call(self, batch: Batch) -> object:
        kwargs = dict(batch.kwargs)
        args = batch.args
        if not args and "input_ids" in kwargs and "input_ids" not in self.signature:
            args = (kwargs.pop("input_ids"),)
        if "return_type" in self.signature:
            kwargs.setdefault("return_type", "logits")
        return self.model(*args, **kwargs)

    def names(self, trace: Trace) -> dict[str, Site]:
        paths = {id(module): path for path, module in self.model.named_modules()}
        calls = {call.path: call for call in reversed(trace.calls)}
        found: list[tuple[int, bool, str, Site]] = []
        for name, point in self.hook_dict.items():
            path = paths.get(id(point))
            call = calls.get(path) if path is not None else None
            if path is None or call is None or not call.outputs or call.outputs[0] < 0:
                continue
            node = trace.node(call.outputs[0])
            if node.floating and node.live and len(node.shape) >= 2:
                site = Site(name, Address(Place.OUTPUT, path, call.call, 0), node.index)
                # Of one point's names the alias, which users know, comes before the canonical one.
                found.append((node.index, name == getattr(point, "name", name), name, site))
        return {name: site for *_, name, site in sorted(found, key=lambda entry: entry[:3])}

    def silent(self) -> frozenset[str]:
        return frozenset(self.hook_dict)

    @property
    def all_named(self) -> bool:
        return True

    @property
    def usual(self) -> tuple[str, ...]:
        return (
            r"blocks\.\d+\.hook_resid_(pre|mid)",
            r"blocks\.\d+\.attn\.hook_z",
            r"blocks\.\d+\.mlp\.hook_post",
        )


def _inside(given: object) -> str:
    """Where the model is that was meant, if that can be told."""
    if isinstance(given, str):
        return (
            "; a name is loaded first, for example by "
            f"transformers.AutoModelForCausalLM.from_pretrained({described(given)})"
        )
    held = getattr(given, "model", None)
    if not isinstance(held, nn.Module):
        return ""
    spelled = "; its own model is .model"
    own = callable(getattr(given, "tokenizer", None))
    return spelled + (": probe(it.model, ..., tokenizer=it.tokenizer)" if own else "")


def recognise(model: object, tokenizer: Any = None, *, called: str = "") -> Subject:
    """The model as a probe sees it.

    Args:
        model: any torch module.
        tokenizer: what turns strings into tokens; None for the model's own, if it has one.
        called: the argument that it is, where there are several models.

    Raises:
        TypeError: if it is no torch module, or the tokenizer cannot be called.
    """
    if tokenizer is not None and not callable(tokenizer):
        raise TypeError(
            f"tokenizer is a {type(tokenizer).__name__}: give one that can be called with a text, "
            "such as transformers.AutoTokenizer.from_pretrained(name)"
        )
    envoy = any(kind.__module__.partition(".")[0] == "nnsight" for kind in type(model).__mro__)
    if envoy and isinstance(inside := getattr(model, "_module", None), nn.Module):
        # What is traced through nnsight runs in the module that it was made of.
        tokenizer = tokenizer or getattr(model, "tokenizer", None)
        model = inside
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"{called + ': ' if called else ''}cannot probe a {type(model).__name__}: give a "
            "torch.nn.Module, a Hugging Face model or a TransformerLens model (for a matrix of "
            f"activations there is probe_activations){_inside(model)}"
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(
            f"the model is scripted or traced ({type(model).__name__}): it runs outside Python, "
            "where nothing inside it can be watched; give the module that it was made from"
        )
    inner = getattr(model, "_orig_mod", None)
    if isinstance(inner, nn.Module):
        # A compiled model: hooks and functions are seen in the module it was compiled from.
        model = inner
    hooked = all(hasattr(model, name) for name in ("hook_dict", "run_with_hooks", "cfg"))
    subject = HookedModel(model) if hooked else PlainModule(model)
    if tokenizer is not None:
        subject.own_tokenizer = tokenizer
    return subject


def _signature(model: nn.Module) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(model.forward).parameters
    except ValueError:
        return {}


@dataclasses.dataclass(frozen=True)
class _Padded:
    """A tokenizer whose batches do not depend on settings for padding: right, with a mask."""

    tokenizer: Any
    longest: int | None

    def __call__(self, texts: list[str]) -> dict[str, Tensor]:
        rows = [_ids(self.tokenizer(text))[: self.longest] for text in texts]
        width = max(1, *(len(row) for row in rows))
        pad = getattr(self.tokenizer, "pad_token_id", None) or 0
        ids = torch.full((len(rows), width), pad, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for place, row in enumerate(rows):
            ids[place, : len(row)] = torch.tensor(row, dtype=torch.int64)
            mask[place, : len(row)] = 1
        return {"input_ids": ids, "attention_mask": mask}


def _ids(made: Any) -> list[int]:
    """The ids of one text, of a tokenizer that may make a batch of it.

    Raises:
        DataError: for anything else.
    """
    ids = made["input_ids"] if isinstance(made, Mapping) else made
    found: Any = ids.tolist() if hasattr(ids, "tolist") else ids
    if isinstance(found, list | tuple) and len(found) == 1 and isinstance(found[0], list | tuple):
        found = found[0]
    if isinstance(found, list | tuple) and all(type(entry) is int for entry in found):
        return list(found)
    raise DataError(
        f"the tokenizer makes {described(made)} of one text: give one that returns its token ids, "
        'as {"input_ids": [5, 2, 7]} or the list itself'
    )


def _numbers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a model's state by name, also where it is fetched when it is needed."""
    stored = {path: hook.weights_map for path, hook in fetching(model)}
    for name, value in sorted(model.state_dict().items()):
        path, _, own = name.rpartition(".")
        # Layers that torch has quantised keep their weights and biases in one value.
        for tensor in tensors_in(value):
            found = stored[path][own] if tensor.is_meta and path in stored else tensor
            yield name, found.dequantize() if found.is_quantized else found


def fingerprint(model: nn.Module) -> str:
    """A number of a model's weights that another model's weights do not share by accident.

    It is the same on every device, and does not depend on where or how weights are stored.
    """
    found = hashlib.sha256()
    for name, tensor in _numbers(model):
        line = f"{name} {tuple(tensor.shape)} {tensor.dtype}"
        found.update(line.encode("utf-8", "surrogatepass"))
        if tensor.is_meta or not tensor.numel():
            continue
        numbers = _integers(tensor)
        for axis in (0, 1):
            # Sums wrap around, so that their order does not matter.
            sums = numbers.sum(axis, dtype=torch.int64).cpu()
            places = torch.arange(1, len(sums) + 1) * 2 + 1
            found.update(str(int((sums * places).sum())).encode())
    return found.hexdigest()[:16]


_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _integers(tensor: Tensor) -> Tensor:
    """[rows, columns]: the bits of a tensor."""
    flat = tensor.detach().contiguous().reshape(len(tensor) if tensor.ndim else 1, -1)
    if flat.is_complex():
        flat = torch.view_as_real(flat).flatten(1)
    return flat if flat.dtype == torch.bool else flat.view(_INTEGERS[flat.dtype.itemsize])


def device_of(device: str | torch.device) -> torch.device:
    """The device that is meant, if tensors can be put there.

    Raises:
        ValueError: if this machine has no such device, or it holds no numbers.
    """
    try:
        found = torch.empty(0, dtype=torch.uint8, device=device).device
    except (RuntimeError, AssertionError, TypeError, ValueError, ImportError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"device={described(str(device))} cannot be used here ({described(reason)}): give "
            "one that this machine has, such as 'cpu', or None to leave the model where it is"
        ) from error
    if found.type == "meta":
        raise ValueError(
            "device='meta' holds no numbers: give one that does, such as 'cpu', or None to leave "
            "the model where it is"
        )
    return found


def _force_eager() -> Callable[[], None]:
    stance = ExitStack()
    stance.enter_context(torch.compiler.set_stance("force_eager"))
    return stance.close


_eager = OneForAll(_force_eager)


@contextmanager
def eagerly() -> Generator[None]:
    """Within the context nothing is compiled: parts that torch compiles run as they are written.

    Where a whole model was compiled, what it was compiled of is run anyway. Parts and functions of
    one would be compiled anew, with everything that watches them, and then be run once.
    """
    # Nothing was compiled before the compiler was loaded, and it takes seconds to load.
    if "torch._dynamo" not in sys.modules or torch.compiler.is_compiling():
        yield
        return
    with _eager.within():
        yield


@contextmanager
def prepared(model: nn.Module, device: torch.device | None) -> Generator[tuple[str, ...]]:
    """Within the context the model is in evaluation mode and on the device; then all is as it was.

    What is put back: every module's train/eval mode, the device, what the model remembers besides
    its weights, and the state of all random number generators.

    Yields:
        What a reader of the report must know.

    Raises:
        ValueError: if the model has no numbers for weights, or would have to be gathered.
        DataError: if another thread probes the model.
    """
    notes: list[str] = [*getattr(model, "basis_probe_notes", ())]
    modes = {module: module.training for module in model.modules()}
    unmade = [n for n, p in model.named_parameters() if isinstance(p, nn.UninitializedParameter)]
    if unmade:
        raise ValueError(
            f"{unmade[0]} has no numbers yet, since its layer takes its size from what it reads "
            "first: run the model once on a batch"
        )
    home = next((p.device for p in model.parameters()), None)
    empty = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if empty and not any(True for _ in fetching(model)):
        raise ValueError(
            f"the model has weights on the meta device, which holds no numbers ({empty[0]}): load "
            "its weights first"
        )
    homes = {p.device for p in model.parameters()}
    if device is not None and (len(homes) > 1 or empty):
        raise ValueError(
            f"the model is spread over {len(homes)} devices, and device={str(device)!r} would "
            "gather it on one: leave device=None"
        )
    if any(modes.values()):
        notes.append(
            "The model was in training mode; it was probed in evaluation mode and put back."
        )
    with ExitStack() as stack:
        # Whatever breaks the work off, everything is put back.
        stack.enter_context(guarded())
        if torch.is_inference_mode_enabled():
            # Sums that are made in it could not be added to outside of it.
            stack.enter_context(torch.inference_mode(False))
        stack.enter_context(alone(model))
        stack.enter_context(random_kept())
        stack.enter_context(kept(model))
        stack.enter_context(at_hand(model))
        try:
            for module in modes:
                # Not model.eval(): some models override it, and a mode is a plain attribute.
                module.training = False
            if device is not None and home is not None and device != home:
                notes.append(
                    f"The model was moved from {home} to {device} for the probe, and back."
                )
                model.to(device)
            yield tuple(notes)
        finally:
            if device is not None and home is not None and device != home:
                model.to(home)
            for module, training in modes.items():
                module.training = training
