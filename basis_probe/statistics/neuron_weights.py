"""What the weights of neurons say without data, against turns of the neuron index.

Neurons read with the rows of W_in and write with the columns of W_out. Where both are drawn from
laws that no rotation of the neurons changes, as Gaussian and orthogonal ones, (R W_in, W_out R^T)
is as likely for every rotation R; so single neurons are compared with turned ones. Rows and columns
are first brought to one length, because the scale of a neuron may be free.

Uniform and sparse weights have no such law: single neurons then differ from turned ones before any
training. So in spaces of up to 256 dimensions neurons are compared a second time, with neurons
whose weights were exchanged coordinate by coordinate, which is exact where the weights of a
coordinate are independent and of one law, whatever it is; what counts is the comparison in which
the neurons stand out less. In wider spaces sums of many weights are Gaussian enough.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from basis_probe.algebra.haar import haar
from basis_probe.statistics.scores import NEGENTROPY, Rows

NEURONS = 128
"""At most so many neurons of a layer are compared: turns of some of them are turns of all."""
FEWEST = 8
"""Fewer are not compared."""
_COLUMNS = 256
_FEWEST_COORDINATES = 4
"""The kurtosis of two or three numbers is nearly, or quite, a constant."""
_FRAMES = 99

SAID: dict[str, str] = {
    "cosine": "the mean squared cosine of what a neuron reads and what it writes",
    "norms": "the spread of the neurons' lengths: standard deviation of log(|w_in| |w_out|)",
    "reading_kurtosis": "the kurtosis of what a neuron reads over its inputs",
    "writing_kurtosis": "the kurtosis of what a neuron writes over the outputs",
    "embedding_kurtosis": "the kurtosis of a neuron's reading over the embedded tokens",
    "embedding_negentropy": "how far a neuron's reading is from Gaussian over the embedded tokens",
    "vocabulary_kurtosis": "the kurtosis of a neuron's writing over the tokens' logits",
    "vocabulary_negentropy": "how far a neuron's writing is from Gaussian over the tokens' logits",
}
"""What the scores are, each averaged over neurons; all count upwards only."""


@dataclasses.dataclass(frozen=True, eq=False)
class NeuronWeights:
    """The weights of some neurons.

    Attributes:
        reading: [neuron, inputs] each, what the neurons read; the last one is what multiplies,
            where another one gates.
        writing: [neuron, outputs], what they write.
        embedding: [token, inputs], the embedding where the inputs are the residual stream.
        vocabulary: [token, outputs], what logits read where the outputs are.
        shared: True if inputs and outputs are one space.
    """

    reading: tuple[Float[Tensor, "neuron inputs"], ...]
    writing: Float[Tensor, "neuron outputs"]
    embedding: Float[Tensor, "token inputs"] | None = None
    vocabulary: Float[Tensor, "token outputs"] | None = None
    shared: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Turned:
    """One score on the neurons and on the alternatives that are nearer to them.

    Attributes:
        observed: the mean over neurons.
        others: the means over the neurons of every alternative.
        null: "turned neurons" or "exchanged weights".
        per_neuron: its value for every neuron.
    """

    observed: float
    others: tuple[float, ...]
    null: str
    per_neuron: Float[Tensor, " neuron"]


def live(weights: NeuronWeights) -> Tensor:
    """[neuron]: True for neurons that read and write something, in finite numbers."""
    parts = (*weights.reading, weights.writing)
    lengths = torch.stack([part.double().norm(dim=1) for part in parts])
    return (lengths.isfinite() & (lengths > 0)).all(0)


def compare(weights: NeuronWeights, *, seed: int, frames: int = _FRAMES) -> dict[str, Turned]:
    """The scores of neurons by name, each on the neurons and on `frames` alternatives.

    Args:
        weights: of neurons all of which are live, at most `NEURONS` of them.
        seed: seeds the alternatives.
        frames: how many of each kind.

    Raises:
        ValueError: if there are fewer than `FEWEST` neurons.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> w = torch.randn(40, 16, generator=generator)
        >>> found = compare(NeuronWeights((w,), w, shared=True), seed=0)
        >>> round(found["cosine"].observed, 6), found["cosine"].observed > max(
        ...     found["cosine"].others) - 1e-6
        (1.0, True)
    """
    count = len(weights.writing)
    if count < FEWEST:
        raise ValueError(f"{count} neurons can hardly be turned: give at least {FEWEST}")
    generator = torch.Generator().manual_seed(seed)
    measured = _measures(weights)
    observed = _values(measured, None)
    nulls = {TURNED: [_values(measured, haar(count, generator)) for _ in range(frames)]}
    if max(part.shape[1] for part in (*weights.reading, weights.writing)) <= _NARROW:
        nulls[EXCHANGED] = [
            _values(_measures(_exchanged(weights, generator)), None) for _ in range(frames)
        ]
    found: dict[str, Turned] = {}
    for name, values in observed.items():
        total = _total(name, values)
        drawn = {
            null: tuple(_total(name, frame[name]) for frame in several)
            for null, several in nulls.items()
        }
        # Exchanged weights may be those of hardly any neuron.
        known = {null: v for null, v in drawn.items() if all(map(math.isfinite, v))}
        drawn = known or drawn
        nearest = max(
            drawn, key=lambda null: (_reached(total, drawn[null]), -_far(total, drawn[null]))
        )
        found[name] = Turned(total, drawn[nearest], nearest, values)
    return found


TURNED, EXCHANGED = "turned neurons", "exchanged weights"
_NARROW = 256


def _values(measured: list[_Measure], turn: Tensor | None) -> dict[str, Tensor]:
    """The scores of every turned neuron, by name."""
    return {name: value for measure in measured for name, value in measure(turn).items()}


def _total(name: str, values: Tensor) -> float:
    return float(values[~values.isnan()].std() if name == "norms" else values.nanmean())


def _reached(observed: float, others: tuple[float, ...]) -> int:
    """How many alternatives are at least as large."""
    return sum(value >= observed for value in others)


def _far(observed: float, others: tuple[float, ...]) -> float:
    """How far above the alternatives, in their standard deviations."""
    values = torch.tensor(others, dtype=torch.float64)
    return float((observed - values.mean()) / values.std().clamp(min=1e-300))


def _exchanged(weights: NeuronWeights, generator: torch.Generator) -> NeuronWeights:
    """Every coordinate's weights handed to other neurons, with signs of their own."""

    def drawn(part: Tensor) -> Tensor:
        # Single precision may tie, and then leaves two places in their order: once in 2^24.
        order = torch.rand(part.T.shape, generator=generator, dtype=torch.float32).argsort(1)
        signs = 2.0 * torch.randint(0, 2, part.T.shape, generator=generator) - 1
        return (signs * part.T.gather(1, order)).T

    reading, writing = _even(weights)
    return dataclasses.replace(weights, reading=tuple(map(drawn, reading)), writing=drawn(writing))


def _even(weights: NeuronWeights) -> tuple[list[Tensor], Tensor]:
    """What neurons read and write in float64, the last reading and the writing of one length."""
    reading = [part.double().cpu() for part in weights.reading]
    writing = weights.writing.double().cpu()
    scale = (writing.norm(dim=1, keepdim=True) / reading[-1].norm(dim=1, keepdim=True)).sqrt()
    # A neuron of exchanged weights may read or write nothing.
    scale = torch.where(scale.isfinite() & (scale > 0), scale, 1.0)
    return [*reading[:-1], reading[-1] * scale], writing / scale


_Measure = Callable[[Tensor | None], Mapping[str, Tensor]]


def _measures(weights: NeuronWeights) -> list[_Measure]:
    """Functions of a turn, None for none, that give the scores of every turned neuron."""
    reading, writing = _even(weights)
    found: list[_Measure] = [_relations(reading, writing, shared=weights.shared)]
    if weights.embedding is None and weights.vocabulary is None:
        for name, part in (("reading", reading[-1]), ("writing", writing)):
            if part.shape[1] >= _FEWEST_COORDINATES:
                found.append(_along({f"{name}_kurtosis": _KURTOSIS}, _few(part.T)))
    if weights.embedding is not None:
        over = weights.embedding.double().cpu() @ reading[-1].T
        found.append(_along(_both("embedding"), over))
    if weights.vocabulary is not None:
        over = weights.vocabulary.double().cpu() @ writing.T
        found.append(_along(_both("vocabulary"), over))
    return found


def _relations(reading: list[Tensor], writing: Tensor, *, shared: bool) -> _Measure:
    """Cosines and lengths of turned neurons, by the products of their weights."""
    pairs = [(part, part) for part in (*reading, writing)]
    if shared:
        pairs += [(part, writing) for part in reading]
    products: list[Tensor] = []

    def measure(turn: Tensor | None) -> dict[str, Tensor]:
        if turn is None:
            forms = [(one * other).sum(1) for one, other in pairs]
        else:
            if not products:
                products.extend(one @ other.T for one, other in pairs)
            forms = [((turn @ matrix) * turn).sum(1) for matrix in products]
        count = len(reading)
        # What reads or writes nothing has neither a length nor a direction.
        sizes = [torch.where(form > 0, form, torch.nan) for form in forms[: count + 1]]
        lengths, written, between = sizes[:count], sizes[count], forms[count + 1 :]
        found = {"norms": (lengths[-1] * written).log() / 2}
        if shared:
            squares = [
                form.square() / (length * written)
                for form, length in zip(between, lengths, strict=True)
            ]
            found["cosine"] = torch.stack(squares).mean(0)
        return found

    return measure


_Statistic = Callable[[Rows], Tensor]


def _kurtosis(rows: Rows) -> Tensor:
    return rows.kurtosis


_KURTOSIS: _Statistic = _kurtosis


def _both(where: str) -> dict[str, _Statistic]:
    return {f"{where}_kurtosis": _KURTOSIS, f"{where}_negentropy": NEGENTROPY.per_direction}


def _along(statistics: Mapping[str, _Statistic], over: Tensor) -> _Measure:
    """Statistics of what turned neurons are over tokens, inputs or outputs, [..., neuron]."""
    single = (over / over.std().clamp(min=1e-300)).float()

    def measure(turn: Tensor | None) -> dict[str, Tensor]:
        rows = Rows(single if turn is None else single @ turn.T.float())
        return {name: statistic(rows).double() for name, statistic in statistics.items()}

    return measure


def _few(over: Tensor) -> Tensor:
    if len(over) <= _COLUMNS:
        return over
    generator = torch.Generator().manual_seed(0)
    return over[torch.randperm(len(over), generator=generator)[:_COLUMNS]]
