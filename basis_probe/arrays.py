"""Arrays of activations that users have: whole or in parts, in memory or in files."""

import dataclasses
import math
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from basis_probe.brief import described
from basis_probe.files import no_file

Matrix = Tensor | np.ndarray

Given = Matrix | str | os.PathLike[str] | Sequence[Any]
"""One array, the path of a file of one, or a list of such parts that follow each other."""

BLOCK = 2**23
"""How many numbers are held in float64 at a time: 64 MiB."""


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """An array whose rows are samples, of which not more than a block is in memory at a time.

    Attributes:
        name: what it is called, for messages.
        parts: arrays that follow each other, alike but for their first axis.
        shape: of all of them together.
        features: how many last axes are features.
    """

    name: str
    parts: tuple[Any, ...]
    shape: tuple[int, ...]
    features: int = 1

    @staticmethod
    def of(name: str, given: Any, features: int = 1) -> "Rows":
        """The rows of what was given: an array, a file of one, or a list of these.

        Anything is an array that has a shape and can be sliced: those of torch, numpy and h5py, and
        the slices of `safetensors.safe_open`.

        Raises:
            TypeError, ValueError: if it is no array of that many axes, or the parts do not fit.
        """
        several = isinstance(given, list | tuple) and bool(given)
        parts = tuple(_opened(name, part) for part in (given if several else [given]))
        shapes = [shape_of(part) for part in parts]
        many = len(shapes[0]) - features
        if many not in (1, 2):
            raise ValueError(_no_matrix(name, shapes[0]))
        odd = next((shape for shape in shapes if shape[1:] != shapes[0][1:]), None)
        if odd is not None:
            raise ValueError(
                f"{name} has parts of shapes {shapes[0]} and {odd}: all axes but the first must be "
                "alike; flatten sequences of several lengths to [samples, dim]"
            )
        shape = (sum(each[0] for each in shapes), *shapes[0][1:])
        if math.prod(shape) == 0:
            raise ValueError(f"{name} has shape {shape}: it holds no numbers")
        return Rows(name, parts, shape, features)

    @property
    def leading(self) -> tuple[int, ...]:
        """[batch, position] of sequences; empty for a matrix."""
        front = self.shape[: len(self.shape) - self.features]
        return front if len(front) == 2 else ()

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """The axes of the features."""
        return self.shape[len(self.shape) - self.features :]

    @property
    def dim(self) -> int:
        """The number of features."""
        return math.prod(self.feature_shape)

    def __len__(self) -> int:
        return math.prod(self.shape[: len(self.shape) - self.features])

    def blocks(self, mask: Tensor | None = None) -> Iterator[Tensor]:
        """The rows that count in float64, [rows, dim], block by block.

        Args:
            mask: [rows], True where a row counts; None if all do.

        Raises:
            TypeError: for integer or complex values.
            ValueError: at the end, if rows that count hold NaN or infinite values.
        """
        each = self.leading[1] if self.leading else 1
        step = max(1, BLOCK // (each * self.dim))
        first, bad = 0, 0
        for part in self.parts:
            for start in range(0, shape_of(part)[0], step):
                rows = dense(self.name, part[start : start + step]).reshape(-1, self.dim)
                counted = None if mask is None else mask[first : first + len(rows)]
                first += len(rows)
                if counted is not None:
                    # What padding holds is nobody's business, NaN included.
                    rows = rows[counted]
                block = rows.cpu().double()
                bad += int((~torch.isfinite(block)).sum())
                if len(block) and not bad:
                    yield block
        require_finite(self.name, bad)


def _no_matrix(name: str, shape: tuple[int, ...]) -> str:
    """What is said of an array of another number of axes."""
    how = "x.movedim(1, -1).flatten(0, -2) of maps [images, channels, height, width]"
    said = "positions and pixels are samples, so flatten them into the first axis"
    return f"{name} has shape {shape}: give a matrix; {said}{f', as {how}' * (len(shape) > 3)}"


def _opened(name: str, part: Any) -> Any:
    """An array, if that is one or a file of one."""
    if isinstance(part, str | os.PathLike):
        path = pathlib.Path(part)
        if path.suffix != ".npy":
            read = "torch.load" if path.suffix in (".pt", ".pth") else "numpy.load"
            more = f"; {read} it first, and give an array of what it holds"
            raise ValueError(
                f"{name} is the file {described(path.name)}: give one that ends in .npy; a "
                ".safetensors file of several arrays is given in place of the whole mapping"
                f"{more if path.suffix in ('.pt', '.pth', '.npz') else ''}"
            )
        if not path.is_file():
            raise FileNotFoundError(f"{name}: {no_file(path)}")
        try:
            return np.load(path, mmap_mode="r")
        except Exception as error:
            # What numpy raises of damaged files are errors of many kinds.
            raise ValueError(
                f"{name}: {path} cannot be read ({type(error).__name__}: {str(error)[:200]}): "
                "write the file anew, with np.save"
            ) from error
    if isinstance(part, Tensor | np.ndarray):
        _require_dense(name, part)
        return part
    if hasattr(part, "__getitem__") and (hasattr(part, "shape") or hasattr(part, "get_shape")):
        return part
    raise TypeError(
        f"{name} is a {type(part).__name__}: give a numpy array or a torch tensor, the path of a "
        ".npy file, or a list of these"
    )


def shape_of(part: Any) -> tuple[int, ...]:
    """The shape of an array, or of a slice of a safetensors file; empty for anything else."""
    found = part.get_shape() if hasattr(part, "get_shape") else getattr(part, "shape", ())
    return tuple(found)


def sites_in(given: Any) -> Mapping[str, Any] | None:
    """Name -> parts, of one or several .safetensors files; None if no such files were given.

    Raises:
        ValueError: if a file cannot be read, or not all of them hold the same names.
    """
    paths = list(given) if isinstance(given, list | tuple) else [given]
    if not paths or not all(isinstance(path, str | os.PathLike) for path in paths):
        return None
    files = [pathlib.Path(path) for path in paths]
    if not all(file.suffix == ".safetensors" for file in files):
        return None
    from safetensors import safe_open

    found: dict[str, list[Any]] = {}
    for number, file in enumerate(files):
        if not file.is_file():
            raise FileNotFoundError(f"x: {no_file(file)}")
        try:
            held = safe_open(file, framework="pt")
            names = [*held.keys()]
        except Exception as error:
            raise ValueError(
                f"x: {file} cannot be read ({type(error).__name__}: {str(error)[:200]}): write the "
                "file anew, with safetensors"
            ) from error
        if number and set(names) != set(found):
            odd = sorted(set(names) ^ set(found))
            raise ValueError(
                f"x: {described(odd[0])} is in some of the files and not in {file.name} or only "
                "there: give files that hold rows of the same arrays"
            )
        for name in names:
            found.setdefault(name, []).append(held.get_slice(name))
    return found


def _require_dense(name: str, values: Matrix) -> None:
    """Raises TypeError for an array that is no plain block of numbers."""
    if isinstance(values, np.ndarray):
        if values.dtype.kind not in "fiubc":
            raise TypeError(
                f"{name} holds {values.dtype}: activations are floating-point numbers; convert "
                "them, for example with .astype(float)"
            )
    elif values.is_nested or values.layout != torch.strided or values.is_meta:
        kind = "nested" if values.is_nested else f"{values.layout} tensor on {values.device}"
        raise TypeError(
            f"{name} has another layout than rows of numbers ({kind}): give a dense array "
            "[samples, dim]"
        )


def dense(name: str, values: Any) -> Tensor:
    """The values as a tensor of floating-point numbers.

    Raises:
        TypeError: if they are none.
    """
    if not isinstance(values, Tensor | np.ndarray):
        raise TypeError(
            f"{name} is a {type(values).__name__}: give a numpy array or a torch tensor"
        )
    if isinstance(values, np.ndarray) and (
        not values.flags.writeable or any(stride < 0 for stride in values.strides)
    ):
        # Torch cannot share an array that is read-only or runs backwards.
        values = np.array(values)
    _require_dense(name, values)
    tensor = torch.as_tensor(values).detach()
    if not tensor.is_floating_point():
        how = "torch.view_as_real(x).flatten(-2)" if tensor.is_complex() else ".float()"
        raise TypeError(
            f"{name} holds {str(tensor.dtype).removeprefix('torch.')}: activations are "
            f"floating-point numbers; convert them, for example with {how}"
        )
    return tensor


def require_finite(name: str, bad: int) -> None:
    """Raises ValueError where a number of values is NaN or infinite."""
    if bad:
        raise ValueError(
            f"{name} holds {bad} values that are NaN or infinite: remove those rows first"
        )


def matrix(
    name: str, values: Matrix, *, rows: int | None = None, columns: int | None = None
) -> Tensor:
    """The values as a float64 matrix on the CPU, checked.

    Args:
        name: what they are called, for messages.
        values: what was given.
        rows: how many there must be; None for any number.
        columns: the same.

    Raises:
        TypeError, ValueError: if they are no matrix of finite floating-point numbers of that shape.
    """
    tensor = dense(name, values)
    if tensor.ndim != 2:
        raise ValueError(_no_matrix(name, tuple(tensor.shape)))
    for axis, wanted in enumerate((rows, columns)):
        if wanted is not None and tensor.shape[axis] != wanted:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}, and its axis {axis} must have {wanted} "
                "entries to fit x"
            )
    if tensor.numel() == 0:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}: it holds no numbers")
    require_finite(name, int((~torch.isfinite(tensor)).sum()))
    return tensor.cpu().double()
