"""Against what the axes are compared: the same activations, or the same layer, in other frames.

Frame 0 is what was observed, frames 1..K are drawn; `Alternatives.frame(k)` makes each of them by
the same code, so that whatever is computed of one is computed of all. A null says what its frames
share with the observed one; it is exact where frame 0 and the others are exchangeable.
"""

import abc
import dataclasses
import enum
import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from basis_probe.algebra.groups import (
    Blocks,
    DirectSum,
    GeneralLinear,
    Group,
    LineStabiliser,
    Planes,
    Privileged,
)
from basis_probe.arguments import whole
from basis_probe.statistics.halves import Part
from basis_probe.statistics.orders import Centred

_AT_ONCE = 2**22
"""So many values are brought to double precision at a time."""
_KEPT = 2**24
"""So many outputs of a layer are kept, 64 MiB."""
_TOGETHER = 2**20
"""Frames of fewer values are measured several at a time: calls cost more than what they compute."""


class Geometry(enum.Enum):
    """The inner product in which directions are turned; the value says why it may be used."""

    EUCLIDEAN = "as the activations are: the group holds rotations, and no rescaling"
    STANDARDISED = (
        "every axis at unit variance: the group knows axes only, and may rescale them; so that one "
        "axis of great variance does not reach into every other"
    )
    WHITENED = "every direction at unit variance: the group holds every invertible map"
    LINE = "off the all-ones direction, which every turn leaves fixed"
    RIDGE = (
        "whitened with a ridge: turning the activations turns these along, so that form is "
        "compared exactly, and no axis of great variance reaches into every other"
    )
    HEADS = "whitened inside every head: the group holds every invertible map of a head"
    BALANCED = (
        "the layer's inputs and outputs scaled until every row and column of its weights has one "
        "length: the groups on both sides rescale axes"
    )
    POLAR = (
        "the layer's inputs turned and scaled until its weights are a partial isometry: the group "
        "of its input holds every invertible map"
    )
    PLANES = "inside every 2-d plane: the group turns and scales planes"
    PARTS = "inside every part by itself, as the group of that part has it"


def geometry_of(group: Group) -> Geometry:
    """The geometry in which turning axes is not changed by the group's own action."""
    if isinstance(group, GeneralLinear):
        return Geometry.WHITENED
    if isinstance(group, LineStabiliser):
        return Geometry.LINE
    if isinstance(group, Planes):
        return Geometry.PLANES
    if isinstance(group, Blocks) and isinstance(group.inner, GeneralLinear):
        return Geometry.HEADS
    known = group.privileged is not Privileged.UNKNOWN
    if known and isinstance(group, Blocks | DirectSum):
        kinds = {geometry_of(part) for _, part, _ in parts_of(group)}
        return Geometry.STANDARDISED if kinds == {Geometry.STANDARDISED} else Geometry.PARTS
    axes = group.privileged is Privileged.AXES
    return Geometry.STANDARDISED if axes else Geometry.EUCLIDEAN


def parts_of(group: Blocks | DirectSum) -> Iterator[tuple[slice, Group, int]]:
    """The parts of the axes on which a group acts by itself, in order.

    Yields:
        The axes of a part, its group, and a number that parts share which are changed alike.
    """
    if isinstance(group, DirectSum):
        several = [(part, number) for number, part in enumerate(group.parts)]
    else:
        blocks = [0 if group.alike else number for number in range(group.count)]
        several = [(group.inner, number) for number in blocks for _ in range(group.copies)]
    start = 0
    for part, number in several:
        yield slice(start, start + part.dim), part, number
        start += part.dim


@dataclasses.dataclass(frozen=True, eq=False)
class AsComputed:
    """What a layer reads and its weights in the type in which the model computes them.

    Attributes:
        inputs: [samples, entries]
        weights: for every linear map, [outputs, entries].
        biases: for each, [outputs] or None.
    """

    inputs: Float[Tensor, "samples entries"]
    weights: tuple[Float[Tensor, "outputs entries"], ...]
    biases: tuple[Float[Tensor, " outputs"] | None, ...]

    def __getitem__(self, rows: slice | Tensor) -> "AsComputed":
        """The same of some rows."""
        return dataclasses.replace(self, inputs=self.inputs[rows])

    def to(self, device: torch.device) -> "AsComputed":
        """The same on a device."""
        return AsComputed(
            self.inputs.to(device),
            tuple(weight.to(device) for weight in self.weights),
            tuple(None if bias is None else bias.to(device) for bias in self.biases),
        )

    def of(self, place: int) -> Float[Tensor, "samples outputs"]:
        """What one of the maps makes of the inputs, rounded as in the model."""
        return torch.nn.functional.linear(self.inputs, self.weights[place], self.biases[place])


@dataclasses.dataclass(frozen=True, eq=False)
class LinearLayer:
    """A layer one linear map behind its input, as numbers.

    Attributes:
        inputs: [samples, inputs, positions]; positions are the places of a convolution's window,
            one for a dense layer.
        weights: for every linear map of the layer (a gated one has two), [outputs, inputs,
            positions].
        biases: for each, [outputs] or None.
        pre: the tensor before the nonlinearity, [samples, dim], from the maps' outputs; None
            where there is none.
        post: the activations, [samples, dim], from the maps' outputs.
        held: [samples, outputs] each, what is added to the outputs and left as it is; `pre` and
            `post` take it behind the outputs.
        geometry: the geometry of the input space: EUCLIDEAN, BALANCED or POLAR.
        centred: True if the inputs' features sum to zero in every row, as behind a LayerNorm: turns
            leave the all-ones direction fixed.
        computed: the same inputs and weights as the model has them, where all outputs are computed
            from these: in a short type that takes a part of the time.
        rounded_to: the short type to which the model rounds the outputs of the maps; None for none.
            `post` rounds the activations by itself.
    """

    inputs: Float[Tensor, "samples inputs positions"]
    weights: tuple[Float[Tensor, "outputs inputs positions"], ...]
    biases: tuple[Float[Tensor, " outputs"] | None, ...]
    pre: Callable[[tuple[Tensor, ...]], Tensor] | None
    post: Callable[[tuple[Tensor, ...]], Tensor]
    geometry: Geometry
    centred: bool
    held: tuple[Float[Tensor, "samples outputs"], ...] = ()
    computed: AsComputed | None = None
    rounded_to: torch.dtype | None = None

    def to(self, device: torch.device) -> "LinearLayer":
        """The layer with its numbers on a device."""
        return dataclasses.replace(
            self,
            inputs=self.inputs.to(device),
            weights=tuple(weight.to(device) for weight in self.weights),
            biases=tuple(None if bias is None else bias.to(device) for bias in self.biases),
            held=tuple(held.to(device) for held in self.held),
            computed=None if self.computed is None else self.computed.to(device),
        )

    def __getitem__(self, rows: slice | Tensor) -> "LinearLayer":
        """The layer on some of its rows."""
        return dataclasses.replace(
            self,
            inputs=self.inputs[rows],
            held=tuple(held[rows] for held in self.held),
            computed=None if self.computed is None else self.computed[rows],
        )

    def rounded(self, outputs: Tensor) -> Tensor:
        """What a map gives, as the model has it."""
        return outputs if self.rounded_to is None else outputs.to(self.rounded_to).to(outputs)

    def _outputs(
        self, wanted: Collection[int] | None = None, rows: slice = slice(None)
    ) -> tuple[Tensor, ...]:
        some = self.inputs[rows]
        flat = some.reshape(len(some), -1)
        computed = None if self.computed is None else self.computed[rows]
        made: list[Tensor] = []
        for place, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if wanted is not None and place not in wanted:
                # Of the shape that is asked for, and read by nobody.
                made.append(flat.new_zeros(1).expand(len(flat), len(weight)))
                continue
            if computed is not None:
                made.append(computed.of(place).to(flat.dtype))
                continue
            out = flat @ weight.reshape(len(weight), -1).T
            made.append(self.rounded(out if bias is None else out.add_(bias)))
        return tuple(made)

    @property
    def before(self) -> Tensor | None:
        """What is before the nonlinearity, from those of the maps alone that it is made of."""
        if self.pre is None:
            return None
        wanted = getattr(self.pre, "reads", None)
        if wanted is None or "_kept_outputs" in self.__dict__:
            return self.pre(self.outputs)
        return self.pre((*self._outputs(wanted), *self.held))

    @functools.cached_property
    def _kept_outputs(self) -> tuple[Tensor, ...]:
        return self._outputs()

    @property
    def outputs(self) -> tuple[Float[Tensor, "samples outputs"], ...]:
        """What the linear maps make of the input, and what is added to that.

        They are computed once, unless they are large. The functions of the layer may change them.
        """
        return self.outputs_of(slice(None))

    def prepare(self) -> None:
        """Computes the outputs of all rows, of which some are asked for next, if they are kept."""
        if len(self.inputs) * sum(map(len, self.weights)) <= _KEPT:
            _ = self._kept_outputs

    def outputs_of(self, rows: slice) -> tuple[Float[Tensor, "samples outputs"], ...]:
        """The outputs of some of the rows, which the functions of the layer may change."""
        held = tuple(held[rows] for held in self.held)
        if rows == slice(None):
            self.prepare()
        if "_kept_outputs" not in self.__dict__:
            return (*self._outputs(rows=rows), *held)
        kept = tuple(out[rows] for out in self._kept_outputs)
        functions = [self.post] if self.pre is None else [self.post, self.pre]
        if not all(getattr(function, "leaves_as_given", False) for function in functions):
            kept = tuple(out.clone() for out in kept)
        return (*kept, *held)

    @functools.cached_property
    def column_lengths(self) -> Float64[Tensor, " inputs"]:
        """The length of every input's column once rows and columns are balanced.

        Dividing column c by the c-th of these, and the rows by numbers of their own, gives every
        row and every column of the weights the same length: the fixed point of dividing by row and
        column lengths in turn (Sinkhorn and Knopp 1967, of the squared weights). It moves along
        when inputs are rescaled and does not change when outputs are.
        """
        squares = [w.double().square() for w in self.weights]
        several = [each.sum(2) if each.shape[2] > 1 else each[..., 0] for each in squares]
        power = several[0] if len(several) == 1 else torch.cat(several)
        reading = power.sum(1) > 0
        if not bool(reading.all()):
            power = power[reading]
        columns = torch.ones(power.shape[1], dtype=torch.float64, device=power.device)
        if not len(power):
            return columns
        for _ in range(200):
            # A mean of quotients, as a product.
            rows = power @ columns.reciprocal() / len(columns)
            new = power.T @ rows.reciprocal() / len(power)
            new = torch.where(new > 0, new, torch.ones_like(new))
            done = float((new / columns).log().abs().max()) < 1e-10
            columns = new
            if done:
                break
        return columns.sqrt()


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """What is known of a site on the samples that nulls are computed on.

    Attributes:
        x: the activations, [samples, dim].
        group: the group of the site.
        halves: [samples], 0 or 1: covariances are fitted on one half and used on the other.
        pre: the tensor before the nonlinearity, if known, [samples, dim].
        nonlinearity: what made x of it.
        layer: the layer one linear map behind its input, if known.
        examples: which sequence or image every row is of, [samples]; None if that is not known.
        order: the places that the rows had when they were given; None if they stand as they stood.
        bent_by: which function is known to make the axes what no turned axis is; empty for none.
        unlike_mixtures: why no mixture of what was bent is like one of it before any training;
            empty where one may be.
    """

    x: Float[Tensor, "samples dim"]
    group: Group
    halves: Int[Tensor, " samples"]
    pre: Float[Tensor, "samples dim"] | None = None
    nonlinearity: Callable[[Tensor], Tensor] | None = None
    layer: LinearLayer | None = None
    examples: Int[Tensor, " samples"] | None = None
    order: Int[Tensor, " samples"] | None = None
    bent_by: str = ""
    unlike_mixtures: str = ""

    def to(self, device: torch.device) -> "Problem":
        """The problem with its numbers on a device; itself if they are there."""
        if self.x.device == device:
            return self
        moved = {
            name: value.to(device)
            for name in ("x", "halves", "pre", "examples", "order")
            if (value := getattr(self, name)) is not None
        }
        layer = None if self.layer is None else self.layer.to(device)
        return dataclasses.replace(self, **moved, layer=layer)

    @functools.cached_property
    def centred(self) -> Centred:
        """The activations about their mean, off the all-ones direction where turns leave that."""
        return Centred(self.x, line=geometry_of(self.group) is Geometry.LINE)

    @functools.cached_property
    def by_halves(self) -> "Problem":
        """The activations with the rows of each half together, so that a half is no copy."""
        order = self.halves.argsort(stable=True)
        examples = None if self.examples is None else self.examples[order]
        x, halves = self.x[order], self.halves[order]
        return Problem(x, self.group, halves, examples=examples, order=order)

    @functools.cached_property
    def made(self) -> dict[object, Any]:
        """What was made of the activations for one null, kept for the next."""
        return {}

    @functools.cached_property
    def before(self) -> Float[Tensor, "samples dim"] | None:
        """What is before the nonlinearity, from the layer where that is known; None without."""
        if self.layer is not None and self.layer.pre is not None:
            return self.layer.before
        return self.pre


def column_blocks(rows: int, columns: int) -> Iterator[slice]:
    """Some of the columns at a time, so that few of the values are held in double precision."""
    at_once = max(1, _AT_ONCE // max(1, rows))
    return (slice(start, start + at_once) for start in range(0, columns, at_once))


@dataclasses.dataclass(frozen=True, eq=False)
class Frame:
    """The activations of a site in one frame.

    Attributes:
        post: [samples, dim] the activations.
        pre: [samples, dim] before the nonlinearity, where the null makes them.
        parts: row sets whose statistics are computed apart and averaged (the two halves of a
            cross-fit); None for all rows together.
        count: how many frames lie side by side in it, each as many columns as the next.
    """

    post: Float[Tensor, "samples dim"]
    pre: Float[Tensor, "samples dim"] | None = None
    parts: tuple[Part, Part] | None = None
    count: int = 1

    def one(self, index: int) -> "Frame":
        """One of those that lie side by side."""
        width = self.post.shape[1] // self.count
        some = slice(index * width, (index + 1) * width)
        pre = None if self.pre is None else self.pre[:, some]
        return Frame(self.post[:, some], pre, self.parts)

    def first(self, count: int) -> "Frame":
        """The first of those that lie side by side, or all if there are no more."""
        if count >= self.count:
            return self
        width = count * (self.post.shape[1] // self.count)
        pre = None if self.pre is None else self.pre[:, :width]
        return Frame(self.post[:, :width], pre, self.parts, count)

    def exact(self) -> "Frame":
        """The same values in float64, in which what was observed is scored."""
        pre = None if self.pre is None else self.pre.double()
        return dataclasses.replace(self, post=self.post.double(), pre=pre)

    @staticmethod
    def side_by_side(frames: "Sequence[Frame]") -> "Frame":
        """Several frames of one width and one set of rows as one."""
        if len(frames) == 1:
            return frames[0]
        pre = [frame.pre for frame in frames if frame.pre is not None]
        post = torch.cat([frame.post for frame in frames], 1)
        return Frame(post, torch.cat(pre, 1) if pre else None, frames[0].parts, len(frames))


class Alternatives(abc.ABC):
    """The frames of one null at one site, each read along a block of its directions."""

    drawn_at_once: int = 0
    """How many numbers are drawn for one frame, where these are held until it is made."""

    @abc.abstractmethod
    def frame(self, generator: torch.Generator | None) -> Frame:
        """The observed frame for None, else a frame drawn with the generator."""

    def several(self, generator: torch.Generator, count: int) -> Sequence[Frame]:
        """As many frames, drawn one after the other; in one where they have the same halves."""
        frames = [self.frame(generator) for _ in range(count)]
        if all(frame.parts is frames[0].parts for frame in frames):
            return [Frame.side_by_side(frames)]
        return frames

    def drawn_together(self, generator: torch.Generator, count: int) -> Iterator[Frame]:
        """As many frames as are asked for, drawn one after the other, some of them side by side."""
        if not count:
            return
        first = self.frame(generator)
        yield first
        together = max(1, _TOGETHER // max(1, first.post.numel() + self.drawn_at_once // 4))
        for start in range(1, count, together):
            yield from self.several(generator, min(together, count - start))


@dataclasses.dataclass(frozen=True)
class Null(abc.ABC):
    """A null: how many frames it draws, on how many samples, and how.

    Attributes:
        frames: how many alternatives are drawn.
        samples: on how many samples of the stream, drawn uniformly, axes and alternatives are
            compared.
        directions: how many axes are compared, drawn uniformly with the seed, and as many
            directions of every alternative; None for all. Statistics that compare axes with each
            other are defined for all axes only.
        approximate: True if frames are not exchangeable even for an untrained network.
        pools_directions: True if every direction of every frame has one law, so that p-values may
            pool them.
    """

    frames: int = 199
    samples: int = 4096
    directions: int | None = None
    approximate: ClassVar[bool] = False
    pools_directions: ClassVar[bool] = True

    def __post_init__(self) -> None:
        # A null is a value that reports print: its numbers are those of Python.
        if self.directions is not None:
            count = whole("directions", self.directions, least=1, else_=", or None for all axes")
            object.__setattr__(self, "directions", count)
        object.__setattr__(self, "frames", whole("frames", self.frames))
        object.__setattr__(self, "samples", whole("samples", self.samples))
        if self.frames < 19:
            raise ValueError(
                f"frames={self.frames}: fewer than 19 frames cannot reach a p-value of 0.05; "
                "give at least 19, better 199"
            )
        if self.samples < 8:
            raise ValueError(f"samples={self.samples}: give at least 8, better 4096")

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """What the null is called."""

    @property
    @abc.abstractmethod
    def holds_fixed(self) -> str:
        """What every frame shares with the observed one."""

    @abc.abstractmethod
    def alternatives(self, problem: Problem, axes: Tensor | None = None) -> Alternatives:
        """The frames of this null for one site.

        Args:
            problem: what is known of the site.
            axes: which axes are compared, and as many directions of every alternative; None for
                all.

        Raises:
            ValueError: if the null needs something that is not known of the site.
        """

    def observed(self, problem: Problem) -> Frame:
        """The observed frame along all axes."""
        return Frame(problem.x, problem.before)
