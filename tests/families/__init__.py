"""Tiny random models of many families, whose every gain, bias and matrix is generic.

A family is a Hugging Face class with a small configuration, a shape of the Bridge's own model, or a
network of convolutions written in a few lines.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from families.building import (
    BATCH as BATCH,
)
from families.building import (
    HEAD as HEAD,
)
from families.building import (
    HEADS as HEADS,
)
from families.building import (
    MLP as MLP,
)
from families.building import (
    SMALL as SMALL,
)
from families.building import (
    TINY as TINY,
)
from families.building import (
    VOCAB as VOCAB,
)
from families.building import (
    D as D,
)
from families.building import (
    Family as Family,
)
from families.building import (
    Row as Row,
)
from families.building import (
    Sizes as Sizes,
)
from families.building import (
    bridged as bridged,
)
from families.building import (
    bridged_example as bridged_example,
)
from families.building import (
    from_row,
    measured,
)
from families.building import (
    generic as generic,
)
from families.building import (
    pixels as pixels,
)
from families.building import (
    tokens as tokens,
)
from families.building import (
    without_epsilons as without_epsilons,
)
from families.convolutional import NETWORKS as NETWORKS
from families.decoders import decoders
from families.encoders import encoders
from families.known import hugging_face, native
from families.speech import speech
from families.vision import vision

TABLES: dict[str, Callable[[Sizes], dict[str, Row]]] = {
    "decoders": decoders, "encoders": encoders, "vision": vision, "speech": speech,
}  # fmt: skip
"""Kind -> its families beyond those that are known site by site."""


def _image(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"input": torch.randn(BATCH, 3, 16, 16, generator=generator)}


def _network(name: str) -> Family:
    def make(seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return measured(generic(NETWORKS[name][0](), seed), seed)

    return Family(name, make, _image, "")


def _rows(s: Sizes) -> dict[str, Row]:
    return {name: row for table in TABLES.values() for name, row in table(s).items()}


ROWS: dict[str, Row] = _rows(SMALL)
"""What is expected of the families that come from a recipe."""

HUGGING_FACE, NATIVE = hugging_face(SMALL), native(SMALL)

FROM_RECIPE: tuple[Family, ...] = tuple(from_row(name, row, SMALL) for name, row in ROWS.items())

CONVOLUTIONAL: tuple[Family, ...] = tuple(map(_network, NETWORKS))

FAMILIES: tuple[Family, ...] = HUGGING_FACE + NATIVE

MORE: tuple[Family, ...] = FROM_RECIPE + CONVOLUTIONAL

TINIES: tuple[Family, ...] = hugging_face(TINY) + native(TINY)
"""The same families as FAMILIES at the smallest sizes, in the same order."""

MORE_TINIES: tuple[Family, ...] = (
    *(from_row(name, row, TINY) for name, row in _rows(TINY).items()),
    *CONVOLUTIONAL,
)
"""The same families as MORE at the smallest sizes, in the same order."""
