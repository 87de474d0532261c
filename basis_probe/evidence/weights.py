"""Neurons by their weights alone: of a model or a folder, and beside the data of a probe."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from basis_probe.arguments import seed_of
from basis_probe.devices import on_own_device
from basis_probe.errors import DataError
from basis_probe.evidence.own import OwnScore, Place, result
from basis_probe.model.neurons import (
    Matrix,
    Neurons,
    Vocabulary,
    adds_one,
    neurons,
    vocabulary,
)
from basis_probe.model.offloaded import at_hand
from basis_probe.model.stacked_neurons import of_few_experts, stacked_neurons
from basis_probe.model.stored import Stored, stored
from basis_probe.results.evidence import ScoreResult
from basis_probe.results.weights import WeightScore, WeightsPrivilege
from basis_probe.statistics.neuron_weights import (
    FEWEST,
    NEURONS,
    SAID,
    NeuronWeights,
    Turned,
    compare,
    live,
)
from basis_probe.statistics.p_values import Tail, holm, monte_carlo_p, tail_p
from basis_probe.statistics.single_precision import full_products

NAME = "weights"
_CANDIDATES = 4
"""So many times as many neurons are looked at, because some may be dead."""
_EXPERTS = 8
"""So many experts of a block are looked at."""
_TOKENS = 256
"""Among so many tokens, drawn at random, neurons are looked at."""


@on_own_device
@full_products()
def weights_privilege(
    model_or_folder: nn.Module | str | os.PathLike[str], *, seed: int = 0
) -> WeightsPrivilege:
    """Whether the neurons of every layer are unusual by their weights: no data, no forward pass.

    Compared are up to 128 neurons of each layer, drawn at random, with turns of the neuron index
    (what they read and what they write turned together), and in narrow spaces with neurons whose
    weights were exchanged; see `basis_probe.statistics.neuron_weights`. The scores are the squared
    cosine between reading and writing, the spread of lengths, and how far from Gaussian neurons are
    over embedded tokens and over logits; without a vocabulary over inputs and outputs. All of them
    do not change when neurons change places or scale, and where the gains of norms are known, when
    the residual stream is turned.

    Layers are found by the names of their weights, which are those of many families of models, or
    as matrices that stand behind each other in one module; matrices of attention and convolutions
    are left out. Every expert of a mixture is a layer, in a tensor of its own or in one of all
    experts; of more than eight in a block eight are compared. Weights are read one at a time.

    Args:
        model_or_folder: a model; a folder with .safetensors (an index and shards too) or
            pytorch_model.bin files, whose config.json is read if it is there; or one such file.
        seed: draws the neurons, the tokens and the alternatives.

    Raises:
        DataError: for what holds no weights, or no layers of neurons that are known.

    Example:
        >>> import torch, basis_probe as bp
        >>> layers = torch.nn.Linear(12, 64), torch.nn.ReLU(), torch.nn.Linear(64, 12)
        >>> found = bp.weights_privilege(torch.nn.Sequential(*layers))
        >>> found.sites, [row.score for row in found]
        (('2:in',), ['cosine', 'norms', 'reading_kurtosis', 'writing_kurtosis'])
    """
    seed = seed_of(seed)
    model = model_or_folder if isinstance(model_or_folder, nn.Module) else None
    with contextlib.nullcontext() if model is None else at_hand(model):
        return _of_weights(stored(model_or_folder), model, seed)


def _of_weights(source: Stored, model: nn.Module | None, seed: int) -> WeightsPrivilege:
    place = {name: index for index, name in enumerate(source.shapes)}
    found = (*neurons(source, model), *stacked_neurons(source))
    found = sorted(found, key=lambda layer: place[layer.writing.name])
    layers, said = of_few_experts(found, _EXPERTS)
    notes = [*said, *_left_out(source)]
    if not layers:
        some = ", ".join([name for name, s in source.shapes.items() if len(s) == 2][:4]) or "none"
        raise DataError(
            f"no layer of neurons was recognised by the names of its weights (matrices: {some}): "
            "that takes two linear maps of one module behind each other, or names such as "
            "gate_proj, up_proj and down_proj, and no convolutions; give "
            'scores=("weights", ...) to probe, which finds the maps around every site as the model '
            "runs"
        )
    ends: dict[int, Vocabulary] = {}
    rows: list[WeightScore] = []
    for layer in layers:
        for width in (layer.inputs, layer.outputs):
            if width not in ends:
                ends[width] = vocabulary(source, width)
        made = _of_layer(source, layer, ends, seed, notes)
        if isinstance(made, str):
            notes.append(f"{layer.site} was left out: {made}.")
            continue
        rows += made
    adjusted = holm(torch.tensor([row.p_tail for row in rows], dtype=torch.float64)).tolist()
    return WeightsPrivilege(
        tuple(
            dataclasses.replace(row, p_adjusted=p) for row, p in zip(rows, adjusted, strict=True)
        ),
        tuple(notes),
    )


def _left_out(source: Stored) -> list[str]:
    """What a reader must know of weights that are looked at nowhere."""
    count = sum(len(shape) in (4, 5) for shape in source.shapes.values())
    if not count:
        return []
    return [f"{count} convolutions were left out: by weights alone they are not compared."]


def _of_layer(
    source: Stored, layer: Neurons, ends: dict[int, Vocabulary], seed: int, notes: list[str]
) -> list[WeightScore] | str:
    """The rows of a layer, or why there are none; what a reader must know goes into the notes."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(layer.count, generator=generator)
    candidates = order[: _CANDIDATES * NEURONS]
    reading = [_along(source, matrix, candidates, reads=True) for matrix in layer.reading]
    writing = _along(source, layer.writing, candidates, reads=False)
    whole = NeuronWeights(tuple(reading), writing)
    dead = len(candidates) - int(live(whole).sum())
    alive = live(whole).nonzero().flatten()[:NEURONS]
    if dead and len(alive) >= FEWEST:
        notes.append(
            f"{layer.site}: {dead} of the {len(candidates)} neurons that were looked at are left "
            "out, as their weights are all zero on one side or not finite."
        )
    if len(alive) < FEWEST:
        return (
            f"{len(alive)} of the {len(candidates)} neurons that were looked at have weights that "
            f"are finite and not all zero, and turning takes {FEWEST}"
        )
    gain, centred = _gain(source, layer.norm)
    several = [_across(part[alive].double(), gain, centred) for part in reading]
    written = _across(writing[alive].double(), None, centred and layer.inputs == layer.outputs)
    weights = NeuronWeights(
        tuple(several),
        written,
        embedding=_tokens(source, ends[layer.inputs].embedding, seed),
        vocabulary=_logits(source, ends[layer.outputs], seed),
        shared=layer.inputs == layer.outputs,
    )
    found = compare(weights, seed=seed)
    names = [name for name in SAID if name in found]
    return [_row(layer, name, found[name], len(alive)) for name in names]


def _row(layer: Neurons, name: str, found: Turned, count: int) -> WeightScore:
    others = torch.tensor(found.others, dtype=torch.float64)
    mean, std = float(others.mean()), float(others.std())
    return WeightScore(
        site=layer.site,
        score=name,
        observed=found.observed,
        null_mean=mean,
        null_std=std,
        effect=(found.observed - mean) / std if std > 0 else float("nan"),
        p_value=monte_carlo_p(found.observed, others, tail=Tail.UPPER),
        p_tail=tail_p(found.observed, others, tail=Tail.UPPER).value,
        p_adjusted=float("nan"),
        null=found.null,
        neurons=count,
        of=layer.count,
        formula=SAID[name],
        null_values=np.asarray(found.others),
    )


def _along(source: Stored, matrix: Matrix, neurons: Tensor, *, reads: bool) -> Tensor:
    """[neuron, inputs or outputs]: what some neurons read or write by a matrix."""
    axis = 0 if reads is not matrix.transposed else 1
    places = matrix.start + matrix.step * neurons if reads else neurons
    some = source.along(matrix.name, axis, places, part=matrix.expert)
    return some if axis == 0 else some.T


def _gain(source: Stored, norm: tuple[str, str | None] | None) -> tuple[Tensor | None, bool]:
    """What a norm multiplies by, and whether it takes the mean out, as those with a bias do."""
    if norm is None:
        return None, False
    weight = source.tensor(norm[0]).double()
    gain = weight + 1 if adds_one(source) else weight
    if not bool(gain.isfinite().all()):
        return None, False
    return gain, norm[1] is not None


def _across(rows: Tensor, gain: Tensor | None, centred: bool) -> Tensor:
    """Rows with a gain folded in, and off the all-ones direction where a norm takes that out."""
    rows = rows if gain is None else rows * gain
    if not centred:
        return rows
    across = rows - rows.mean(1, keepdim=True)
    # Where nothing else is left, that is what there is.
    return torch.where((across.norm(dim=1) > 0)[:, None], across, rows)


def _tokens(source: Stored, name: str | None, seed: int) -> Tensor | None:
    return (
        None if name is None else _finite(source.rows(name, _places(source.shapes[name][0], seed)))
    )


def _logits(source: Stored, ends: Vocabulary, seed: int) -> Tensor | None:
    if ends.logits is None:
        return None
    places = _places(ends.logits.count, seed)
    if ends.logits.transposed:
        rows = source.tensor(ends.logits.name).T[places]
    else:
        rows = source.rows(ends.logits.name, places)
    gain, centred = _gain(source, ends.norm)
    return _finite(_across(rows.double(), gain, centred))


def _places(count: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(count, generator=generator)[:_TOKENS].sort().values.tolist()


def _finite(rows: Tensor) -> Tensor | None:
    """The rows of finite numbers that are not all zero, if they are enough to look over."""
    kept = rows.isfinite().all(1) & (rows != 0).any(1)
    return rows[kept] if int(kept.sum()) >= 16 else None


# --- beside the data of a probe -------------------------------------------------------------------


def _measure(place: Place) -> ScoreResult | str:
    """The weights around a site, its axes against turned ones."""
    around, dim = place.around, place.problem.x.shape[1]
    if not around.writing or not around.reading:
        missing = "write" if not around.writing else "read"
        return f"the maps that {missing} the site are not known, so its axes were not turned"
    spaces = list(_spaces(around.writing, around.reading))
    reading = tuple(part.float().cpu() for part in around.writing if part.shape == spaces[0])
    writing = torch.cat([part.float().cpu() for part in around.reading]).T
    whole = NeuronWeights(reading, writing)
    generator = torch.Generator().manual_seed(place.seed)
    order = torch.randperm(dim, generator=generator)
    order = order[live(whole)[order]][:NEURONS].sort().values
    if len(order) < FEWEST:
        return f"{len(order)} axes have weights on both sides, and turning takes {FEWEST}"
    shared = len(around.reading) == 1 and reading[-1].shape[1] == writing.shape[1]
    chosen = NeuronWeights(tuple(part[order] for part in reading), writing[order], shared=shared)
    found = compare(chosen, seed=place.seed)
    name = "cosine" if shared else "norms"
    best = found[name]
    beside = [
        f"{other} z = {_effect(turned):.3g}" for other, turned in found.items() if other != name
    ]
    several = "" if len(order) == dim else f"{len(order)} of {dim:,} axes, drawn at random; "
    values = best.per_neuron.tolist()
    return result(
        NAME,
        best.observed,
        best.others,
        tail=Tail.UPPER,
        null=best.null,
        dim=dim,
        per_direction=dict(zip(order.tolist(), values, strict=True)),
        note=f"{several}{SAID[name]}; beside it {', '.join(beside)}",
    )


def _spaces(writing: tuple[Tensor, ...], reading: tuple[Tensor, ...]) -> Iterator[torch.Size]:
    """The shapes of what makes the site, first those that what reads it writes to."""
    shapes = [part.shape for part in writing]
    outputs = {part.shape[0] for part in reading}
    yield from (shape for shape in shapes if shape[1] in outputs)
    yield from shapes


def _effect(turned: Turned) -> float:
    others = torch.tensor(turned.others, dtype=torch.float64)
    return float((turned.observed - others.mean()) / others.std().clamp(min=1e-300))


WEIGHTS = OwnScore(
    name=NAME,
    measure=_measure,
    formula="mean squared cosine of what an axis reads and what it writes, by the maps around the "
    "site; where these are of different spaces the spread of log lengths",
    source="W_in and W_out of neurons against turns of the neuron index",
    range="[0, 1] for cosines, 1/width for Gaussian weights",
    not_for="sites without a linear map on both sides",
    reads_weights=True,
)
