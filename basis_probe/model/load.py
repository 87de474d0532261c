"""A TransformerBridge around pretrained weights: from a folder, from the hub, or already in memory.

`transformer_lens`, `transformers` and `huggingface_hub` are imported inside the functions, so that
importing this module costs nothing.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.metadata
import json
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from basis_probe.brief import described
from basis_probe.parallel import OneForAll, hearing

if TYPE_CHECKING:
    import torch
    from transformer_lens import TransformerBridge
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
TOKENIZERS = (
    "tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "merges.txt",
)  # fmt: skip


class PretrainedError(OSError):
    """Pretrained weights could not be had: a folder lacks a file, or the hub did not give them."""


class BridgeError(RuntimeError):
    """TransformerLens cannot be used here: it is absent, too old or broken."""


OLDEST = 4
"""The first major version of TransformerLens whose bridges hold what is asked of them."""


def bridge_class() -> type[TransformerBridge]:
    """The class TransformerBridge of a TransformerLens that can be used.

    Only what makes a bridge needs it: plain PyTorch and Hugging Face models are probed without.

    Raises:
        BridgeError: if TransformerLens is absent, too old or broken; the message says which, and
            what to do.
    """
    trouble, cause = bridge_trouble(), None
    if not trouble:
        try:
            with quiet():
                from transformer_lens import TransformerBridge
            return TransformerBridge
        except Exception as error:
            trouble = f"transformer-lens is installed but cannot be imported ({_brief(error)})"
            cause = error
    raise BridgeError(
        f"{trouble}, and a TransformerBridge needs it: pip install 'transformer-lens>={OLDEST},"
        f"<{OLDEST + 1}', in an environment of its own where another package, such as sae-lens, "
        "asks for an older one. Plain PyTorch and Hugging Face models need none: give the model "
        "itself to basis_probe.probe"
    ) from cause


def bridge_trouble() -> str:
    """What is wrong with the TransformerLens installed here, as far as its version tells."""
    try:
        version = importlib.metadata.version("transformer-lens")
    except importlib.metadata.PackageNotFoundError:
        return "transformer-lens is not installed"
    major = version.partition(".")[0]
    if major.isdecimal() and int(major) < OLDEST:
        return f"transformer-lens {version} is too old"
    return ""


def _silence() -> Callable[[], None]:
    """Silences the libraries, and has nobody asked anything; returns what undoes it."""
    from huggingface_hub.utils import logging as hub
    from transformers import dynamic_module_utils
    from transformers.utils import logging

    patience = dynamic_module_utils.TIME_OUT_REMOTE_CODE
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    told = hub.get_verbosity()

    def undo() -> None:
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = patience
        logging.set_verbosity(verbosity)
        hub.set_verbosity(told)
        if bars:
            logging.enable_progress_bar()

    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
    logging.set_verbosity_error()
    hub.set_verbosity_error()
    logging.disable_progress_bar()
    return undo


_silent = OneForAll(_silence)


@contextlib.contextmanager
def quiet() -> Generator[None, None, None]:
    """Loading inside is free of the libraries' advice and progress bars; errors pass through.

    Nobody is asked whether the code of a repository may be run: it is not, which is an error.
    """
    with hearing(), _silent.within():
        yield


def bridge(
    model: Any, tokenizer: Any, *, device: str | torch.device = "cpu", name: str = ""
) -> TransformerBridge:
    """A TransformerBridge that computes what `model` computes, in eval mode, without the network.

    The bridge wraps the model in place: its submodules become components of the bridge, and its
    attention is switched to the implementation whose patterns can be caught. The tokenizer is
    copied before the bridge adds the special tokens that it misses.

    Args:
        model: a Hugging Face model with its language-modelling head.
        tokenizer: its Hugging Face tokenizer.
        device: where the model is put.
        name: what reports call the model; its own name if empty.

    Returns:
        The bridge, on `device`, in the model's own floating-point type.

    Raises:
        BridgeError: if TransformerLens cannot be used here.
        TypeError: if `tokenizer` is not a Hugging Face tokenizer.
    """
    made = bridge_class()
    with quiet():
        from transformers import PreTrainedTokenizerBase

        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise TypeError(
                f"tokenizer is a {type(tokenizer).__name__}: needs a Hugging Face tokenizer; load "
                "one with transformers.AutoTokenizer.from_pretrained(folder)"
            )
        own = copy.deepcopy(tokenizer)
        # A tokenizer built in memory has no place that it could be loaded from again, which is
        # how TransformerLens switches the beginning-of-text token on.
        if not own.init_kwargs.get("name_or_path"):
            own.init_kwargs.update(name_or_path=name or "in memory", add_bos_token=True)
        wrapped = made.boot_transformers(
            name or getattr(model, "name_or_path", "") or type(model).__name__,
            hf_model=model.to(device).eval(),
            tokenizer=own,
            device=device,
            dtype=model.dtype,
        )
        return wrapped.eval()


def hugging_face(folder: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model and its tokenizer from a local folder, in eval mode, on the CPU.

    Args:
        folder: as `save_pretrained` writes it, weights as safetensors.

    Raises:
        PretrainedError: if weights are missing or of other shapes.
    """
    with quiet():
        from transformers import AutoModelForCausalLM, AutoTokenizer

        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
        model, found = loaded
        if found["missing_keys"]:
            raise PretrainedError(
                f"{folder} lacks weights ({_listed(sorted(found['missing_keys']))}): give the "
                "folder with all of them"
            )
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return model.eval(), tokenizer


def from_directory(
    path_or_name: str | Path, *, device: str | torch.device = "cpu", local_files_only: bool = False
) -> TransformerBridge:
    """A TransformerBridge around the weights of a local folder or a hub repository.

    Weights are read as data, never as code: from safetensors, or else from a PyTorch file of plain
    tensors. Code that a repository brings is not run. Weights are held in float32.

    Args:
        path_or_name: a folder as `save_pretrained` writes it, with configuration, weights and
            tokenizer, or the name of a repository on the Hugging Face hub. An existing folder comes
            first.
        device: where the model is put.
        local_files_only: whether to do without the network and take a hub repository from the
            local cache.

    Returns:
        The bridge, in eval mode, on `device`.

    Raises:
        BridgeError: if TransformerLens cannot be used here.
        PretrainedError: if the folder does not exist or lacks a file, if its files cannot be read,
            if weights are missing that the output depends on, or if the hub cannot be reached or
            does not have the repository.
    """
    name = str(path_or_name)
    folder = Path(path_or_name).expanduser()
    if not name or not folder.is_dir():
        refuse_path(name, folder)
        folder = _snapshot(name, local_files_only=local_files_only)
    _check(folder, name)
    made = bridge_class()
    _require_sizes(folder, name)
    with quiet():
        try:
            wrapped = made.boot_transformers(str(folder), device=device)
            absent, unknown = _absent_weights(type(wrapped.original_model), folder)
            _require_weights(wrapped, absent, unknown, name)
        except PretrainedError:
            raise
        except Exception as error:
            if "trust_remote_code" in str(error):
                raise PretrainedError(
                    f"{name} brings the code of its model or tokenizer, which is not run: where "
                    "you trust it, load the model in Python with trust_remote_code=True and give "
                    "it to basis_probe.probe as it is"
                ) from error
            raise PretrainedError(
                f"{name} holds a configuration, weights and a tokenizer, but no TransformerBridge "
                f"could be built from them ({_brief(error)}{_misfits(folder)}): needs whole files "
                "of an architecture that TransformerLens knows; write them again with "
                "save_pretrained, or load the "
                "model in Python and give it to basis_probe.probe as it is"
            ) from error
        wrapped.cfg.model_name = name
        return wrapped.eval()


_LARGEST = 2**31
"""Larger than any size of a model."""

_LAYERS = 2000
"""More than any model has."""

_SPARE = 2**26
"""So many numbers beside its weights a model may hold, such as positions and masks."""


def _require_sizes(folder: Path, name: str) -> None:
    """Raises if the configuration is of a model that is far larger than the weights in the folder.

    It would be built before its weights are missed, which takes all memory there is.
    """
    import torch

    files = [path for pattern in WEIGHTS for path in folder.glob(pattern)]
    # At least four bits a number.
    room = 2 * sum(path.stat().st_size for path in files) + _SPARE
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise PretrainedError(
            f"{name}: config.json is no JSON ({_brief(error)}): write the folder again with "
            "save_pretrained"
        ) from error
    for key, size in _whole_numbers(config):
        if size >= _LARGEST or ("layer" in key and size > _LAYERS):
            raise PretrainedError(
                f"{name}: config.json says {key[-80:]} = {described(size)}, which no model has: "
                "write the folder again with save_pretrained"
            )
    with quiet():
        import transformers

        try:
            kind: Any = transformers.AutoModelForCausalLM
            found = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
            with torch.device("meta"):
                empty = kind.from_config(found)
        except Exception:
            # Whatever is wrong is said when the model is built.
            return
    needed = sum(tensor.numel() for tensor in (*empty.parameters(), *empty.buffers()))
    if needed > room:
        raise PretrainedError(
            f"{name}: config.json is of a model of {needed:,} numbers, and the weights are "
            f"{(room - _SPARE) // 2:,} bytes: give the configuration that belongs to them"
        )


def _whole_numbers(value: Any, name: str = "") -> Iterator[tuple[str, int]]:
    """Every whole number of a configuration, under its name."""
    if isinstance(value, dict):
        for key, entry in cast("dict[str, Any]", value).items():
            yield from _whole_numbers(entry, str(key))
    elif isinstance(value, list):
        for entry in cast("list[Any]", value):
            yield from _whole_numbers(entry, name)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield name, value


NOTES = "basis_probe_notes"
"""A model holds under this name what a reader of its reports must know of how it was loaded."""


def _require_weights(wrapped: Any, absent: dict[str, str], unknown: list[str], name: str) -> None:
    """Raises if weights that the model's output depends on are not in the folder.

    What else is missing is left without numbers, so that nothing can be said of it, and named in a
    note; so is what the folder holds and the model has no place for.
    """
    holding = {
        path.replace("._original_component", ""): tensor
        for tensors in (
            wrapped.original_model.named_parameters(remove_duplicate=False),
            wrapped.original_model.named_buffers(remove_duplicate=False),
        )
        for path, tensor in tensors
    }
    notes: list[str] = []
    if absent:
        tensors = [holding.get(path) for path in absent]
        for tensor in tensors:
            # Whole numbers are made by the model itself, as positions and counts are.
            if tensor is not None and tensor.is_floating_point():
                tensor.data.fill_(float("nan"))
        if any(tensor is None for tensor in tensors) or not _has_numbers(wrapped):
            raise PretrainedError(
                f"{name} lacks weights that the model's output depends on "
                f"({_listed(list(absent.values()))}): what stands in for them is random, and "
                "nothing can be said of it. Give the folder with all of its weights, and the "
                "configuration that belongs to them"
            )
        notes.append(
            f"The model's folder lacks {_listed(list(absent.values()))}. Its output on some "
            "tokens does not depend on them; what does holds no numbers."
        )
    if unknown:
        notes.append(
            f"The model's folder holds weights that the model has no place for, and they were not "
            f"used: {_listed(unknown)}."
        )
    wrapped.__dict__[NOTES] = tuple(notes)


def _absent_weights(kind: type[Any], folder: Path) -> tuple[dict[str, str], list[str]]:
    """Tensor -> what is wrong with it in the folder; and the tensors that the model does not have.

    Only the names and shapes of the weights are read.
    """
    _, found = kind.from_pretrained(
        folder,
        local_files_only=True,
        device_map="meta",
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    absent = {path: path for path in sorted(found["missing_keys"])}
    for path, there, needed in sorted(found["mismatched_keys"]):
        absent[path] = f"{path} ({tuple(there)} in place of {tuple(needed)})"
    return absent, sorted(found["unexpected_keys"])


def _has_numbers(wrapped: Any) -> bool:
    """Whether the model's output on some tokens holds no NaN."""
    import torch

    ids = torch.arange(1, 5, device=wrapped.cfg.device)[None] % wrapped.cfg.d_vocab
    with torch.no_grad():
        return not torch.isnan(wrapped(ids, return_type="logits")).any()


def _misfits(folder: Path) -> str:
    """Which weights of a folder have other shapes than its configuration says; empty if unknown."""
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        kind = getattr(transformers, (config.architectures or [""])[0])
        absent, _ = _absent_weights(kind, folder)
    except Exception:
        return ""
    wrong = [said for path, said in absent.items() if said != path]
    return f"; weights that do not fit the configuration: {_listed(wrong)}" if wrong else ""


def _listed(names: list[str], most: int = 6) -> str:
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def refuse_path(name: str, folder: Path) -> None:
    """Raises PretrainedError for what is a file, or looks like a folder that is not there."""
    looks_like_path = folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
    if name and folder.exists():
        raise PretrainedError(
            f"{name} is a file: needs the folder that holds config.json, the weights and the "
            "tokenizer; give its parent folder"
        )
    if looks_like_path or not name:
        raise PretrainedError(
            f"there is no folder {name!r}: needs a local folder as save_pretrained writes it, or a "
            "hub name such as 'openai-community/gpt2'; check the path"
        )


def _snapshot(name: str, *, local_files_only: bool) -> Path:
    """The folder of the local cache that holds a repository of the hub."""
    from huggingface_hub import snapshot_download

    small = ["*.json", "*.model", "*.txt"]
    try:
        folder = Path(
            snapshot_download(
                name, allow_patterns=[*small, WEIGHTS[0]], local_files_only=local_files_only
            )
        )
        if not any(folder.glob(WEIGHTS[0])):
            folder = Path(
                snapshot_download(
                    name, allow_patterns=[*small, WEIGHTS[1]], local_files_only=local_files_only
                )
            )
    except Exception as error:
        where = "in the local cache" if local_files_only else "from the Hugging Face hub"
        raise PretrainedError(
            f"{name!r} is no local folder and could not be had {where} ({_brief(error)}): needs a "
            "folder with config.json, weights and tokenizer, or a hub name and a connection to "
            "https://huggingface.co; check the name and the network, or download the model "
            "elsewhere and give its folder"
        ) from error
    return folder


def _check(folder: Path, name: str) -> None:
    """Raises if the folder lacks what a language model needs, naming all that is missing."""
    missing: list[str] = []
    if not (folder / "config.json").is_file():
        missing.append("config.json")
    if not any(any(folder.glob(pattern)) for pattern in WEIGHTS):
        missing.append("the weights (model.safetensors)")
    if not any((folder / file).is_file() for file in TOKENIZERS):
        missing.append("the tokenizer (tokenizer.json)")
    if missing:
        raise PretrainedError(
            f"{name} lacks {', '.join(missing)}: needs a folder as save_pretrained writes it; save "
            "the model and its tokenizer there, both with save_pretrained"
        )


def _brief(error: BaseException, longest: int = 160) -> str:
    line = (str(error).strip().splitlines() or [""])[0]
    short = line if len(line) <= longest else line[:longest].rstrip() + " ..."
    return f"{type(error).__name__}: {short}" if short else type(error).__name__
