"""Residual streams of language models that nobody trained, as Hugging Face builds them.

Weights are drawn from Gaussian laws, so that nothing lies on the axes of the stream: a rotation of
all that is written to it is as likely. With other laws it is not, although nothing was learned.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from basis_probe.calibration.draw import Draw
from basis_probe.model.untrained import untrained_model
from basis_probe.observation import probe
from basis_probe.results.report import SiteReport
from basis_probe.statistics.nulls import Rotation

_LENGTH = 25
_VOCABULARY = 300
_LAYERS = 2

Change = Callable[[Draw, Any], None]
"""Changes the weights of a model that was just made."""


def stream(
    shape: str,
    *changes: Change,
    tied: bool = False,
    tokens: int = _VOCABULARY,
    sequences: int | None = None,
) -> Callable[[Draw], SiteReport]:
    """The last residual stream of an untrained model of a shape.

    Args:
        shape: "gpt2" (LayerNorm, positions learned) or "llama" (RMSNorm, rotary positions).
        changes: what is changed about its weights, in turn.
        tied: whether logits are read by the embedding.
        tokens: how many different tokens the data have.
        sequences: how many different sequences, repeated as often as needed; None for no repeats.
    """

    def report(draw: Draw) -> SiteReport:
        model = untrained_model(
            shape,
            width=draw.dim,
            layers=_LAYERS,
            vocabulary=_VOCABULARY,
            length=_LENGTH,
            tied=tied,
            seed=draw.seed,
        )
        with torch.no_grad():
            for change in (_gaussian, *changes):
                change(draw, model)
        count = max(2, draw.samples // _LENGTH)
        different = count if sequences is None else sequences
        data = torch.randint(tokens, (different, _LENGTH), generator=draw.generator)
        data = data[torch.arange(count) % different]
        found = probe(
            model,
            list(data.split(32)),
            sites=f"{'transformer.h' if shape == 'gpt2' else 'model.layers'}.{_LAYERS - 1}",
            null=draw.null(Rotation),
            seed=draw.seed % 2**31,
            certificates=False,
            progress=False,
        )
        return found.site_reports[0]

    return report


def _matrices(model: Any) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.ndim == 2]


def _embeddings(model: Any) -> list[Tensor]:
    return [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]


def _gaussian(draw: Draw, model: Any) -> None:
    for matrix in _matrices(model):
        matrix.copy_(draw.normal(*matrix.shape) / math.sqrt(draw.dim))


def _writers(model: Any) -> list[Tensor]:
    """What is written to the stream, features last; views of the parameters."""
    found: list[Tensor] = list(_embeddings(model))
    for name, matrix in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            found.append(matrix.T)
        elif name.endswith(("attn.c_proj.weight", "mlp.c_proj.weight")):
            found.append(matrix)
    return found


def rogue_variance(draw: Draw, model: Any) -> None:
    """One direction, the same for all writers, gets twenty times the size; turned at random."""
    turn, scale = draw.turn(), torch.ones(draw.dim, dtype=torch.float64)
    scale[0] = 20.0
    for writer in _writers(model):
        writer.copy_(writer.double() * scale @ turn)


def rogue_offset(draw: Draw, model: Any) -> None:
    """A constant of ten standard deviations along one random direction."""
    direction = draw.normal(draw.dim)
    table = _embeddings(model)[0]
    table.add_((10 * direction / direction.norm()).to(table))


def uniform_embedding(draw: Draw, model: Any) -> None:
    """Entries of the embedding are uniform: form on the axes that nobody trained."""
    table = _embeddings(model)[0]
    table.copy_(draw.uniform(*table.shape) * math.sqrt(12 / draw.dim))


def heavy_embedding(draw: Draw, model: Any) -> None:
    """Entries of the embedding have Student's law with three degrees of freedom."""
    table = _embeddings(model)[0]
    chi = draw.normal(3, *table.shape).square().sum(0) / 3
    table.copy_(draw.normal(*table.shape) * chi.rsqrt() / math.sqrt(3 * draw.dim))


def uniform_everywhere(draw: Draw, model: Any) -> None:
    """Every matrix as `torch.nn.Linear` draws it: uniform."""
    for matrix in _matrices(model):
        bound = 1 / math.sqrt(draw.dim)
        matrix.copy_(2 * bound * draw.uniform(*matrix.shape))


def fixed_sinusoids(draw: Draw, model: Any) -> None:
    """Positions are the fixed sinusoids of Vaswani et al. (2017)."""
    table = _embeddings(model)[1]
    places = torch.arange(len(table), dtype=torch.float64)[:, None]
    rates = 10000 ** (-torch.arange(0, draw.dim, 2, dtype=torch.float64) / draw.dim)
    waves = torch.cat([(places * rates).sin(), (places * rates).cos()], 1)
    table.copy_(waves * math.sqrt(2 / draw.dim))
