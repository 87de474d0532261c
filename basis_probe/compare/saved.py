"""Activations that are at hand: arrays, files of arrays, and what a hooked run has cached."""

import fnmatch
import os
import pathlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from basis_probe.activations import features_of
from basis_probe.brief import described
from basis_probe.compare.running import Caught, pooled
from basis_probe.errors import DataError, SiteError
from basis_probe.files import no_file

Matrix = Tensor | np.ndarray
Saved = Mapping[str, Matrix] | str | os.PathLike[str]


def is_saved(given: object) -> bool:
    """True for names with arrays, and for the path of a file of arrays."""
    return isinstance(given, Mapping | str | os.PathLike)


def arrays_of(which: str, given: Any) -> dict[str, Caught]:
    """Name -> activations, of what a user has at hand.

    Args:
        which: what it is called, for messages.
        given: a dict from names to arrays [samples, axes] or feature maps [samples, channels,
            *space]; the path of a `.safetensors` or `.npz` file of such arrays; or the
            ActivationCache of a TransformerLens run, whose features come last.

    Raises:
        DataError, TypeError: if there are no arrays of activations in it.
    """
    cached = isinstance(given, Mapping) and not isinstance(given, dict)
    held = _read(which, given) if isinstance(given, str | os.PathLike) else given
    entries: dict[str, Any] = {str(name): value for name, value in held.items()}
    if cached:
        # A cache holds patterns, scales and token ids too.
        counts = {name: features_of(name, value) for name, value in entries.items()}
        leading = {
            name: tuple(entries[name].shape[:-count]) for name, count in counts.items() if count
        }
        # Tables of positions have features too, but are of no example.
        usual = Counter(leading.values()).most_common(1)[0][0] if leading else ()
        entries = {name: entries[name] for name, lead in leading.items() if lead == usual}
    if not entries:
        raise DataError(f"{which} holds no activations: give names with arrays [samples, axes]")
    found: dict[str, Caught] = {}
    for name, value in entries.items():
        if cached:
            features = features_of(name, value)
            values = checked(f"{which}[{name!r}]", value).flatten(-features)
            found[name] = Caught(values.reshape(len(values), -1, values.shape[-1]), None, None)
        else:
            found[name] = caught(checked(f"{which}[{name!r}]", value))
    sizes = {name: len(one.values) for name, one in found.items()}
    if len(set(sizes.values())) > 1:
        first, *others = sizes
        odd = next(name for name in others if sizes[name] != sizes[first])
        raise DataError(
            f"{which} has {sizes[first]} samples of {first!r} and {sizes[odd]} of {odd!r}: give "
            "the same samples of all"
        )
    return found


def _read(which: str, given: Any) -> dict[str, Matrix]:
    path = pathlib.Path(given)
    if not path.is_file():
        raise DataError(f"{which}: {no_file(path)}")
    if path.suffix in (".npz", ".safetensors"):
        try:
            return _arrays_in(path)
        except Exception as error:
            # What numpy, zipfile and safetensors raise of damaged files are errors of many kinds.
            raise DataError(
                f"{which}: {path} cannot be read ({type(error).__name__}: {str(error)[:200]}): "
                "write the file anew, with np.savez or safetensors"
            ) from error
    raise DataError(f"{which} is the file {path.name}: give one that ends in .safetensors or .npz")


def _arrays_in(path: pathlib.Path) -> dict[str, Matrix]:
    if path.suffix == ".npz":
        # Numpy leaves a file that it opened itself open where it is damaged.
        with path.open("rb") as file, np.load(file) as held:
            return dict(held)
    from safetensors.torch import load_file

    return dict(load_file(path))


def checked(name: str, values: Any) -> Tensor:
    """The values as a tensor of at least two axes, finite.

    Raises:
        TypeError, DataError: if they are no such numbers.
    """
    if not isinstance(values, Tensor | np.ndarray):
        raise TypeError(
            f"{name} is a {type(values).__name__}: give a numpy array or a torch tensor"
        )
    if isinstance(values, np.ndarray) and (
        not values.flags.writeable or any(stride < 0 for stride in values.strides)
    ):
        # Torch cannot share an array that is read-only or runs backwards.
        values = values.copy()
    if isinstance(values, np.ndarray) and values.dtype.kind not in "biufc":
        raise TypeError(f"{name} holds {values.dtype}: give floating-point numbers")
    tensor = torch.as_tensor(values).detach()
    if tensor.is_nested or tensor.is_meta or tensor.layout is not torch.strided:
        raise TypeError(f"{name} is {described(values)}, not a dense one: give dense numbers")
    if not tensor.is_floating_point():
        raise TypeError(
            f"{name} holds {str(tensor.dtype).removeprefix('torch.')}: activations are "
            "floating-point numbers; convert them, for example with .float()"
        )
    if tensor.ndim < 2 or tensor.numel() == 0:
        raise DataError(
            f"{name} has shape {tuple(tensor.shape)}: give [samples, axes], or feature maps "
            "[samples, channels, *space]"
        )
    # A sum is finite only if all of them are, and is looked at many times faster than each.
    bad = 0 if bool(tensor.sum().isfinite()) else int((~torch.isfinite(tensor)).sum())
    if bad:
        raise DataError(
            f"{name} holds {bad} values that are NaN or infinite: remove those samples from both"
        )
    return tensor


def caught(maps: Tensor) -> Caught:
    """Feature maps [samples, axes, *space] as they are caught at a site."""
    space = tuple(maps.shape[2:]) or None
    return Caught(maps.flatten(2).movedim(1, 2) if space else maps[:, None], None, space)


def require_same_samples(own: int, other: int) -> None:
    """Raises DataError unless there are as many samples of both."""
    if own != other:
        raise DataError(
            f"x has {own} samples and y {other}: give the same samples of both, in the same order"
        )


def same_space(x: Tensor, y: Tensor, *, enlarge: bool) -> tuple[Tensor, Tensor]:
    """Two feature maps at one size: the larger averaged down, or the smaller repeated.

    Raises:
        DataError: if one is a feature map and the other is not.
    """
    if x.ndim != y.ndim:
        raise DataError(
            f"x has shape {tuple(x.shape)} and y {tuple(y.shape)}: compare two matrices, or two "
            "sets of feature maps"
        )
    if x.shape[2:] == y.shape[2:]:
        return x, y
    pairs = list(zip(x.shape[2:], y.shape[2:], strict=True))
    if not enlarge:
        space = tuple(min(a, b) for a, b in pairs)
        return pooled(x, space), pooled(y, space)
    space = tuple(max(a, b) for a, b in pairs)
    return torch.nn.functional.interpolate(x, space), torch.nn.functional.interpolate(y, space)


def chosen(
    which: str, entries: Mapping[str, Caught], names: str | tuple[str, ...] | None
) -> dict[str, Caught]:
    """The entries of some names or globs, in the order of the entries.

    Raises:
        SiteError: for a name that no entry has.
    """
    if names is None:
        return dict(entries)
    several = (names,) if isinstance(names, str) else names
    for name in several:
        if not fnmatch.filter(entries, name):
            some = ", ".join([*entries][:8])
            raise SiteError(f"{which} has no activations called {name!r}; there are {some}")
    kept = {found for name in several for found in fnmatch.filter(entries, name)}
    return {name: one for name, one in entries.items() if name in kept}


def folds_of(count: int, *, folds: int, seed: int) -> Int64[Tensor, " examples"]:
    """To which part of the data every example belongs, drawn at random, all of one size."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    fold = torch.empty(count, dtype=torch.int64)
    fold[order] = torch.arange(count) % folds
    return fold
