"""Results as what JSON holds, short: of long arrays a few entries and two sums."""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from basis_probe.results.codec import decode, unpacked

VOLATILE = {"versions", "model_digest", "data_digest"}
"""What differs between machines: other processors draw other last bits."""

LONG = 8
"""Arrays of more numbers than this are shortened."""


def plain(value: Any) -> Any:
    """The value in numbers, texts, lists and dicts; what is private or a network is left out."""
    if hasattr(value, "to_json"):
        return _short(json.loads(value.to_json(), object_hook=_listed))
    return _short(_open(value))


def _listed(value: dict[str, Any]) -> Any:
    """An array that was written as base64, as a list; anything else as it is."""
    kind = next((key for key in value if re.match(r"(float|u?int)\d+\b", key)), "")
    if "shape" in value and kind and "steps" not in kind:
        return _open(decode(np.ndarray, value))
    if isinstance(value.get("per_direction_p"), dict):
        # Steps along the values, which were listed before.
        values = decode(np.ndarray, value["per_direction"])
        return value | {"per_direction_p": _open(unpacked(value["per_direction_p"], values))}
    return value


def _open(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, torch.Tensor):
        return _open(value.detach().cpu().numpy())
    if isinstance(value, np.ndarray | np.generic):
        return _open(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): _open(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_open(entry) for entry in value]
    if _is_group(value):
        return repr(value)
    if dataclasses.is_dataclass(value):
        return {
            field.name: _open(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if not field.name.startswith("_")
            and not isinstance(getattr(value, field.name), nn.Module)
        }
    if hasattr(value, "matrix"):
        return _open(value.matrix())
    raise TypeError(f"{type(value).__name__} has no plain form here")


def _is_group(value: Any) -> bool:
    return hasattr(value, "privileged") and hasattr(value, "draw")


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def _short(value: Any) -> Any:
    """The same with long arrays shortened and what differs between machines left out."""
    if isinstance(value, dict):
        return {key: _short(entry) for key, entry in value.items() if key not in VOLATILE}
    if not isinstance(value, list):
        return value
    flat = _flat(value)
    if flat is None or len(flat) <= LONG:
        return [_short(entry) for entry in value]
    finite = [entry for entry in flat if math.isfinite(entry)]
    return {
        "shape": list(np.shape(np.array(value, dtype=object))),
        "first": [_number(entry) for entry in flat[:3]],
        "last": [_number(entry) for entry in flat[-2:]],
        "infinite or NaN": len(flat) - len(finite),
        "sum of sizes": sum(abs(entry) for entry in finite),
        "their mean place": sum(place * abs(entry) for place, entry in enumerate(finite))
        / (sum(abs(entry) for entry in finite) or 1.0),
    }


def _flat(value: list[Any]) -> list[float] | None:
    """All numbers of nested lists in order; None if they hold anything else."""
    found: list[float] = []
    for entry in value:
        if isinstance(entry, list):
            inner = _flat(entry)
            if inner is None:
                return None
            found += inner
        elif isinstance(entry, bool) or not (
            isinstance(entry, int | float) or entry in ("nan", "inf", "-inf")
        ):
            return None
        else:
            found.append(float(entry))
    return found
