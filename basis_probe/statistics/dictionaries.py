"""Dictionaries out of files: the decoder of a sparse autoencoder, and its encoder if it is known.

A folder of SAELens (version 6: `cfg.json` and `sae_weights.safetensors`), or a file of tensors.
"""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from basis_probe.brief import brief, described
from basis_probe.statistics.bases import Given

_CONFIG = "cfg.json"
_WEIGHTS = "sae_weights.safetensors"
_ROWS = ("W_dec", "decoder", "dictionary", "directions")
_COLUMNS = ("decoder.weight",)

Encoder = Callable[[Float[Tensor, "samples dim"]], Float[Tensor, "samples features"]]


@brief
@dataclasses.dataclass(frozen=True, eq=False)
class Dictionary(Given):
    """The directions of a dictionary and, where its encoder is known, what it makes of activations.

    Attributes:
        encode: from activations [samples, dim] to codes [samples, features]; None if not known.
        made_for: the site that it was made for, as its file says it; empty if it does not.
        note: what a reader must know, as why there are no codes.
    """

    encode: Encoder | None = None
    made_for: str = ""
    note: str = ""


def is_file_like(wanted: object) -> bool:
    """True for what may be the path of a dictionary."""
    if isinstance(wanted, os.PathLike):
        return True
    return isinstance(wanted, str) and (
        os.path.exists(wanted) or "/" in wanted or os.sep in wanted or wanted.endswith(_FILES)
    )


_FILES = (".safetensors", ".npy")


def read_dictionary(path: str | os.PathLike[str]) -> Dictionary:
    """The dictionary of a folder or a file.

    Args:
        path: a folder with `cfg.json` and `sae_weights.safetensors`, as SAELens saves one; or a
            `.safetensors` file with a decoder (`W_dec` [features, dim], or `decoder.weight`
            [dim, features] as a linear layer has it, or one matrix [features, dim] alone); or a
            matrix [features, dim] in a `.npy` file.

    Raises:
        ValueError: if there is no such file, or no decoder in it: what there is and what is needed.
    """
    where = pathlib.Path(os.fspath(path))
    try:
        if where.is_dir():
            return _of_folder(where)
        if not where.exists():
            raise ValueError("there is no such file or folder")
        if where.suffix == ".npy":
            import numpy as np

            return _made(torch.as_tensor(np.load(where, allow_pickle=False)), where.stem)
        if where.suffix != ".safetensors":
            raise ValueError(
                "it is no folder of SAELens, no .safetensors file and no matrix in a .npy file"
            )
        return _of_tensors(_loaded(where), {}, where.stem)
    except (ValueError, OSError) as error:
        raise ValueError(
            f"no dictionary could be read from {described(str(where))}: {error}"
        ) from error


def _of_folder(folder: pathlib.Path) -> Dictionary:
    weights = folder / _WEIGHTS
    if not weights.exists():
        found = sorted(folder.glob("*.safetensors"))
        found = [one for one in found if one.name != "sparsity.safetensors"]
        if len(found) != 1:
            raise ValueError(f"it holds no {_WEIGHTS}")
        (weights,) = found
    config: dict[str, Any] = {}
    if (folder / _CONFIG).exists():
        try:
            config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"its {_CONFIG} is no JSON: {error}") from error
        if not isinstance(config, dict):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"its {_CONFIG} holds no settings")
    return _of_tensors(_loaded(weights), config, folder.resolve().name)


def _loaded(path: pathlib.Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path.name} is damaged or no safetensors file: {error}") from error


def _of_tensors(tensors: Mapping[str, Tensor], config: Mapping[str, Any], label: str) -> Dictionary:
    decoder = _decoder(tensors)
    metadata = config.get("metadata") or {}
    made_for = str(metadata.get("hook_name") or config.get("hook_name") or "")
    told = config.get("d_in")
    if told is not None and told != decoder.shape[1]:
        raise ValueError(
            f"its decoder has directions of {decoder.shape[1]} entries, and {_CONFIG} says {told}"
        )
    encode, note = _encoder(tensors, config, decoder)
    return _made(decoder, label, encode, made_for, note)


def _decoder(tensors: Mapping[str, Tensor]) -> Tensor:
    for name in (*_ROWS, *_COLUMNS):
        if name in tensors:
            matrix = tensors[name]
            if matrix.ndim != 2:
                raise ValueError(
                    f"its {name} has shape {list(matrix.shape)}: give numbers [features, dim]"
                )
            return matrix.T if name in _COLUMNS else matrix
    alone = (
        next(iter(tensors.items()))
        if len(tensors) == 1
        else ("", torch.zeros(0, dtype=torch.float64))
    )
    if alone[1].ndim == 2 and "enc" not in alone[0].lower():
        return alone[1]
    raise ValueError(
        f"it has no decoder: its tensors are {', '.join(sorted(tensors)) or 'none'}; name one "
        "W_dec [features, dim]"
    )


def _made(
    decoder: Tensor,
    label: str,
    encode: Encoder | None = None,
    made_for: str = "",
    note: str = "it has no encoder, so there are no codes",
) -> Dictionary:
    if decoder.ndim != 2 or not decoder.is_floating_point() or not decoder.numel():
        raise ValueError(
            f"its decoder has shape {list(decoder.shape)} and type {decoder.dtype}: give numbers "
            "[features, dim]"
        )
    decoder = decoder.double()
    if not bool(decoder.isfinite().all()):
        raise ValueError("its decoder holds NaN or infinite numbers")
    live = (decoder != 0).any(1)
    if not bool(live.any()):
        raise ValueError("all directions of its decoder are zero")
    if not bool(live.all()):
        note = "; ".join(filter(None, [note, f"{int((~live).sum())} directions are zero"]))
    return Dictionary(decoder[live], label, encode if encode else None, made_for, note)


def _encoder(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], decoder: Tensor
) -> tuple[Encoder | None, str]:
    """What makes codes, or None and why it is not known."""
    features, dim = decoder.shape
    weight = tensors.get("W_enc")
    if weight is None and "encoder.weight" in tensors:
        weight = tensors["encoder.weight"].T
    if weight is None:
        return None, "it has no encoder, so there are no codes"
    if weight.shape != (dim, features):
        return None, (
            f"its encoder has shape {list(weight.shape)}, not {[dim, features]}, so there are no "
            "codes"
        )
    kind = str(config.get("architecture", "standard"))
    bend = _bend(kind, tensors, config)
    if bend is None:
        return None, f"codes of the architecture {described(kind)} are not known here"
    norm = _normalised(str(config.get("normalize_activations", "none")))
    if norm is None:
        return None, "codes are not known, because its inputs are rescaled by a number not saved"
    bias = tensors.get(
        "b_enc", tensors.get("encoder.bias", torch.zeros(features, dtype=torch.float64))
    ).double()
    centre = tensors.get(
        "b_dec", tensors.get("decoder.bias", torch.zeros(dim, dtype=torch.float64))
    ).double()
    shift = (
        centre
        if config.get("apply_b_dec_to_input", True)
        else torch.zeros(dim, dtype=torch.float64)
    )
    read = weight.double()

    def encode(x: Tensor) -> Tensor:
        return bend((norm(x.double().cpu()) - shift) @ read + bias)

    return encode, ""


def _bend(
    kind: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any]
) -> Callable[[Tensor], Tensor] | None:
    if kind == "standard":
        return torch.relu
    if kind == "jumprelu" and "threshold" in tensors:
        threshold = tensors["threshold"].double()
        return lambda pre: pre.relu() * (pre > threshold)
    count = config.get("k")
    if kind == "topk" and isinstance(count, int) and count > 0:

        def largest(pre: Tensor) -> Tensor:
            found = pre.topk(min(count, pre.shape[1]), dim=1)
            return torch.zeros_like(pre).scatter(1, found.indices, found.values.relu())

        return largest
    return None


def _normalised(how: str) -> Callable[[Tensor], Tensor] | None:
    if how in ("none", "None", ""):
        return lambda x: x
    if how == "layer_norm":

        def norm(x: Tensor) -> Tensor:
            away = x - x.mean(1, keepdim=True)
            return away / (away.std(1, keepdim=True) + 1e-5)

        return norm
    if how == "constant_norm_rescale":
        return lambda x: x * math.sqrt(x.shape[1]) / x.norm(dim=1, keepdim=True).clamp(min=1e-300)
    return None
