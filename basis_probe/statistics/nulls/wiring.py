"""The same layer, its neurons wired to other inputs: for weights of zeros, or of another law."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from basis_probe.statistics.nulls.frames import (
    Alternatives,
    Geometry,
    LinearLayer,
    Null,
    Problem,
)
from basis_probe.statistics.nulls.neurons import ReadElsewhere

FEWEST_INPUTS = 5
"""Fewer inputs can be exchanged in less than a hundred ways."""

_FEWEST_WEIGHTS = 8
"""From so many weights of an input its scale can be told."""


@dataclasses.dataclass(frozen=True)
class SparseWiring(Null):
    """The same layer with its neurons wired to other inputs.

    The inputs that vary are exchanged at random: W P x + b for a uniformly random permutation P, W
    with its zeros where they are. Every neuron then reads other inputs, as many of them as before
    and through the same weights; neurons that read one input together still do. Turned inputs, as
    in `Counterfactual`, would have every neuron read all of them.

    It is also chosen where the weights look as if drawn one by one of a law that is not Gaussian
    (`weight_laws.is_drawn`): turned neurons have Gaussian weights, and neurons that read inputs of
    which few are large at a time differ from those by the law of their weights alone.

    Exact for initialisations that draw the weights of all inputs alike, whatever the law of the
    weights, the share of zeros, and what the neurons share: masks drawn weight by weight, with so
    many zeros for each neuron or for each input, and weights pruned by their size before training.
    Where the group in front of the layer rescales inputs, they are exchanged in the scale in which
    their weights are of one size, if each has some eight of them; with fewer as they are, and then
    the scale of the inputs counts.

    It cannot tell neurons from others if their inputs are alike: with one weight a neuron is an
    input, and no other neuron would be less.
    """

    pools_directions: ClassVar[bool] = False

    @property
    def name(self) -> str:
        return "sparse-wiring"

    @property
    def holds_fixed(self) -> str:
        return (
            "the data, every neuron's weights, how many inputs it reads, its bias and the "
            "nonlinearity; only which inputs those are is drawn anew"
        )

    def alternatives(self, problem: Problem, axes: Tensor | None = None) -> Alternatives:
        if problem.layer is None:
            raise ValueError(
                "the sparse-wiring null needs the layer's inputs and weights; give inputs= and "
                "weight="
            )
        return _Rewired(problem.layer, axes)


class _Rewired(ReadElsewhere):
    """W (P x): the columns of the weights exchanged."""

    def __init__(self, layer: LinearLayer, axes: Tensor | None) -> None:
        super().__init__(layer, axes)
        kept = _vary(layer)
        self.scale = torch.ones(len(kept), dtype=torch.float64)
        if geometry_of_inputs(layer) is Geometry.BALANCED:
            self.scale = _sizes(layer.weights)
            kept &= _read(layer) > 0
        self.places = kept.nonzero().flatten()

    def drawn(self, generator: torch.Generator) -> Tensor:
        order = self.places[torch.randperm(len(self.places), generator=generator)]
        vectors = self.vectors.clone()
        vectors[:, self.places] = self.vectors[:, order] * (
            self.scale[self.places] / self.scale[order]
        )
        return vectors


def geometry_of_inputs(layer: LinearLayer) -> Geometry:
    """BALANCED if inputs are exchanged in the scale of their weights, EUCLIDEAN if as they are."""
    if layer.geometry is Geometry.EUCLIDEAN:
        return Geometry.EUCLIDEAN
    read = _read(layer)
    known = read[read > 0].double()
    enough = len(known) > 0 and float(known.median()) >= _FEWEST_WEIGHTS
    return Geometry.BALANCED if enough else Geometry.EUCLIDEAN


def _read(layer: LinearLayer) -> Tensor:
    """[inputs]: how many weights of every input are not zero."""
    return torch.cat([weight.cpu() != 0 for weight in layer.weights]).sum((0, 2))


def rewirable(layer: LinearLayer) -> int:
    """How many inputs of a layer vary, and so can be exchanged."""
    return int(_vary(layer).sum())


def _vary(layer: LinearLayer) -> Tensor:
    """[inputs]: True for an input that is not the same everywhere."""
    first = layer.inputs[:1, :, :1]
    return (layer.inputs != first).any(2).any(0).cpu()


def _sizes(weights: Sequence[Tensor]) -> Tensor:
    """The size of every input's weights, those of a neuron taken in units of its own.

    The root mean square of the weights that are not zero, rows and columns in turn until neither
    changes: it moves along when inputs are rescaled, and does not change when neurons are.
    """
    whole = torch.cat([w.double().cpu() for w in weights])
    power, count = whole.square().sum(2), (whole != 0).double().sum(2)
    of_rows, of_columns = count.sum(1, keepdim=True).clamp(min=1), count.sum(0).clamp(min=1)
    columns = torch.ones(power.shape[1], dtype=torch.float64)
    for _ in range(200):
        rows = (power / columns).sum(1, keepdim=True) / of_rows
        new = (power / torch.where(rows > 0, rows, 1.0)).sum(0) / of_columns
        new = torch.where(new > 0, new, 1.0)
        done = float((new / columns).log().abs().max()) < 1e-10
        columns = new
        if done:
            break
    return columns.sqrt()
