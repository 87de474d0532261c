"""Weights by name, one at a time: of a model, or of a folder that is never loaded as a whole."""

from __future__ import annotations

import abc
import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float32
from torch import Tensor, nn

from basis_probe.brief import described
from basis_probe.errors import DataError

_WRAPPERS = ("_original_component.", "_orig_mod.", "_fsdp_wrapped_module.")


class Stored(abc.ABC):
    """Weights by name.

    Attributes:
        shapes: name -> shape, in the order in which they are stored, of floating-point weights.
        config: what is known of the model besides, as its config.json says it; empty for nothing.
    """

    shapes: Mapping[str, tuple[int, ...]]
    config: Mapping[str, Any]

    def tensor(self, name: str) -> Float32[Tensor, "*shape"]:
        """One weight, whole."""
        return self._raw(name).float().cpu()

    def along(
        self, name: str, axis: int, places: Tensor, *, part: int | None = None
    ) -> Float32[Tensor, "row column"]:
        """Some rows (axis 0) or columns (axis 1) of a matrix; no other copy of it is made.

        Args:
            name: the weight.
            axis: 0 or 1.
            places: which rows or columns.
            part: which matrix of a stack, of which no more is read where the file allows it.
        """
        whole = self._raw(name) if part is None else self._part(name, part)
        if whole.dtype.itemsize == 1:
            # Numbers of one byte are not indexed.
            whole = whole.float()
        return whole.index_select(axis, places.to(whole.device)).float().cpu()

    @abc.abstractmethod
    def _raw(self, name: str) -> Tensor:
        """One weight as it is stored."""

    @abc.abstractmethod
    def _part(self, name: str, part: int) -> Tensor:
        """One matrix of a stack, as it is stored."""

    @abc.abstractmethod
    def rows(self, name: str, places: list[int]) -> Float32[Tensor, "row column"]:
        """Some rows of a matrix; no more is read where the file allows it."""

    def is_transposed(self, name: str) -> bool | None:
        """True for a matrix [inputs, outputs], False for [outputs, inputs], None if unknown."""
        return None


def stored(source: nn.Module | str | os.PathLike[str]) -> Stored:
    """The weights of a model, of a folder of Hugging Face, or of a .safetensors file.

    Raises:
        DataError: for what holds no weights, or weights without values.
    """
    if isinstance(source, nn.Module):
        return _OfModule(source)
    if not isinstance(source, str | os.PathLike) or not os.fspath(source):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise DataError(
            f"the weights are those of a model or a folder, got {described(source)}: give an "
            "nn.Module, a folder with .safetensors files, or one such file"
        )
    path = pathlib.Path(source)
    # What is no name of a file exists as little.
    if "\0" in str(path) or not os.path.exists(path):
        raise DataError(
            f"there is no file or folder {str(path)[:200]!r}: give the folder that a model was "
            "saved to; of a model of the hub the folder that huggingface_hub.snapshot_download "
            "returns"
        )
    return _OfFiles(path)


class _OfModule(Stored):
    """The weights of modules, as the modules use them, and parameters by other names."""

    def __init__(self, model: nn.Module) -> None:
        config = getattr(model, "config", None)
        said = config.to_dict() if config is not None and hasattr(config, "to_dict") else {}
        self.config: Mapping[str, Any] = said if isinstance(said, dict) else {}
        self._tensors: dict[str, Tensor] = {}
        self._modules: dict[str, nn.Module] = {}
        for path, module in model.named_modules():
            held = [name for name, _ in module.named_parameters(recurse=False)]
            for name in dict.fromkeys(["weight", *held]):
                value = getattr(module, name, None)
                if isinstance(value, Tensor) and value.is_floating_point():
                    whole = _plain(f"{path}.{name}" if path else name)
                    self._tensors[whole] = value.detach()
                    self._modules[whole] = module
        if any(value.is_meta for value in self._tensors.values()):
            raise DataError(
                "the model is on the meta device and its weights have no values: load them, or "
                "give the folder that they are in"
            )
        self.shapes = {name: tuple(value.shape) for name, value in self._tensors.items()}

    def _raw(self, name: str) -> Tensor:
        return self._tensors[name]

    def _part(self, name: str, part: int) -> Tensor:
        return self._tensors[name][part]

    def rows(self, name: str, places: list[int]) -> Tensor:
        whole = self._tensors[name]
        return whole[torch.tensor(places, device=whole.device)].float().cpu()

    def is_transposed(self, name: str) -> bool | None:
        module = self._modules[name]
        if isinstance(module, nn.Linear):
            return False
        return True if hasattr(module, "nf") and type(module).__name__ == "Conv1D" else None


class _OfFiles(Stored):
    """The weights of files: .safetensors are opened and read by parts, .bin are mapped."""

    def __init__(self, path: pathlib.Path) -> None:
        files, self.config = _files(path)
        self._where: dict[str, Any] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        for file in files:
            for name, opened, shape in _entries(file):
                whole = _plain(name)
                self._where[whole] = (opened, name)
                shapes[whole] = shape
        self.shapes = shapes
        if not shapes:
            raise DataError(f"{path} holds no floating-point weights: give another folder or file")

    def _raw(self, name: str) -> Tensor:
        opened, own = self._where[name]
        return opened[own] if isinstance(opened, dict) else opened.get_tensor(own)

    def _part(self, name: str, part: int) -> Tensor:
        opened, own = self._where[name]
        return opened[own][part] if isinstance(opened, dict) else opened.get_slice(own)[part]

    def rows(self, name: str, places: list[int]) -> Tensor:
        opened, own = self._where[name]
        if isinstance(opened, dict):
            return opened[own][torch.tensor(places)].float()
        whole = opened.get_slice(own)
        return torch.cat([whole[place : place + 1] for place in places]).float()


_FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")


def _entries(file: pathlib.Path) -> list[tuple[str, Any, tuple[int, ...]]]:
    """The floating-point tensors of a file: name, what gives it, shape."""
    if file.suffix == ".safetensors":
        import safetensors

        try:
            opened: Any = safetensors.safe_open(str(file), framework="pt")
        except Exception as error:
            raise DataError(f"{file} could not be read as safetensors: {error}") from error
        found: list[tuple[str, Any, tuple[int, ...]]] = []
        for name in opened.keys():  # noqa: SIM118
            part = opened.get_slice(name)
            if part.get_dtype() in _FLOATS:
                found.append((name, opened, tuple(part.get_shape())))
        return found
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise DataError(
            f"{file} could not be read: {str(error)[:200]}; save the model as safetensors"
        ) from error
    values = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else {}
    return [
        (name, values, tuple(value.shape))
        for name, value in values.items()
        if isinstance(value, Tensor) and value.is_floating_point()
    ]


def _files(path: pathlib.Path) -> tuple[list[pathlib.Path], Mapping[str, Any]]:
    """The files of weights at a path, and the configuration beside them."""
    folder = path if path.is_dir() else path.parent
    config = _json(folder / "config.json") if path.is_dir() else {}
    if path.is_file():
        return [path], config
    for index, single in (
        ("model.safetensors.index.json", "*.safetensors"),
        ("pytorch_model.bin.index.json", "pytorch_model*.bin"),
    ):
        named = _json(folder / index).get("weight_map")
        if isinstance(named, dict):
            files = [folder / str(name) for name in dict.fromkeys(named.values())]
            if any(folder not in file.parents or ".." in file.parts for file in files):
                raise DataError(
                    f"{index} in {folder} names files that are not in the folder: download the "
                    "folder again"
                )
            missing = [file.name for file in files if not file.is_file()]
            if missing:
                raise DataError(
                    f"{folder} lacks {', '.join(missing[:3])}, which its {index} names: download "
                    "the folder again"
                )
            _require_named(folder, index, named, files)
            return files, config
        found = sorted(folder.glob(single))
        if found:
            _require_all_parts(folder, [file.name for file in found])
            return found, config
    raise DataError(
        f"{folder} holds no .safetensors and no pytorch_model.bin files: give the folder that a "
        "model was saved to"
    )


def _require_named(
    folder: pathlib.Path, index: str, named: Mapping[str, Any], files: list[pathlib.Path]
) -> None:
    """Raises DataError if an index leaves out parts of a model, or names weights that are nowhere.

    What is read would be a part of the model, and look like a whole one.
    """
    _require_all_parts(folder, [file.name for file in files], f"or its {index} does not name it")
    if all(file.suffix == ".safetensors" for file in files):
        there = {name for file in files for name in _names(file)}
        absent = [str(name) for name in named if name not in there]
        if absent:
            more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
            raise DataError(
                f"{folder} lacks {', '.join(absent[:3])}{more}, which its {index} names and none "
                "of its files holds: download the folder again"
            )


def _names(file: pathlib.Path) -> list[str]:
    """The names of all tensors of a .safetensors file."""
    import safetensors

    try:
        return [*safetensors.safe_open(str(file), framework="pt").keys()]
    except Exception as error:
        raise DataError(f"{file} could not be read as safetensors: {error}") from error


def _require_all_parts(folder: pathlib.Path, names: list[str], why: str = "") -> None:
    """Raises DataError if a file says by its name that there are more parts than those named."""
    for name in names:
        part = re.fullmatch(r"(.*)-(\d{5})-of-(\d{5})(\..*)", name)
        if part is None:
            continue
        stem, _, count, ending = part.groups()
        wanted = [f"{stem}-{number:05d}-of-{count}{ending}" for number in range(1, int(count) + 1)]
        missing = [other for other in wanted if other not in names]
        if missing:
            raise DataError(
                f"{folder} lacks {', '.join(missing[:3])}, {why or f'which {name} belongs to'}: "
                "download the folder again"
            )


def _json(file: pathlib.Path) -> Mapping[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _plain(name: str) -> str:
    """The name without what wraps modules."""
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name
