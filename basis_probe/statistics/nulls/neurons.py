"""The same layer, its neurons pointing elsewhere in the input; or pre-activations, turned."""

import abc
import dataclasses
import enum
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, Protocol, TypeAlias, cast

import torch
from einops import rearrange
from jaxtyping import Float, Float64
from torch import Tensor

from basis_probe.algebra.haar import Turned
from basis_probe.arguments import number
from basis_probe.statistics.nulls.frames import (
    Alternatives,
    Frame,
    Geometry,
    LinearLayer,
    Null,
    Problem,
    column_blocks,
)

Function: TypeAlias = Callable[[tuple[Tensor, ...]], Tensor]
"""Of the outputs of a layer's linear maps."""


@dataclasses.dataclass(frozen=True)
class Counterfactual(Null):
    """The same layer with its neurons pointing elsewhere.

    The same weights, biases and nonlinearity read an input that is turned about its own mean
    direction: x' = Q x with Q m = m for the mean m and Haar otherwise. Every neuron's direction
    becomes a uniformly random one of the same length and the same mean pre-activation, while the
    data keep all their structure. Exact for initialisations that no rotation of the input changes:
    an untrained layer is one of its own counterfactuals.

    Attributes:
        bands: None to turn the whole input; else it is turned only among principal directions whose
            variances lie within this ratio of each other, so that neurons keep how much of the
            input's variance they read.
    """

    bands: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bands is not None:
            object.__setattr__(self, "bands", number("bands", self.bands, above=1.0))

    pools_directions: ClassVar[bool] = False

    @property
    def name(self) -> str:
        return "counterfactual" if self.bands is None else "counterfactual in bands"

    @property
    def holds_fixed(self) -> str:
        more = (
            ""
            if self.bands is None
            else f", how much of the input's variance it reads (within a factor of {self.bands:g})"
        )
        return (
            f"the data, every neuron's weight length, bias and mean pre-activation{more}, and the "
            "nonlinearity; only the directions that the neurons read are turned"
        )

    def alternatives(self, problem: Problem, axes: Tensor | None = None) -> Alternatives:
        if problem.layer is None:
            raise ValueError(
                "the counterfactual null needs the layer's inputs and weights; give inputs= and "
                "weight= (or use the fallback from pre= and nonlinearity=)"
            )
        return _TurnedInput(problem.layer, self.bands, axes)


class ReadElsewhere(Alternatives):
    """A layer whose weights read its input elsewhere in every frame, all else as it is.

    Args:
        layer: the layer.
        axes: which of its outputs are computed; None for all.
    """

    def __init__(self, layer: LinearLayer, axes: Tensor | None) -> None:
        self.axes = axes
        self.reach, self.layer = (Reach.ALL, layer) if axes is None else _read(layer, axes)
        samples, width, positions = layer.inputs.shape
        weights = layer.weights
        if axes is not None and self.reach is not Reach.ALL:
            weights = [weight.index_select(0, axes.to(weight.device)) for weight in weights]
        weights = [weight.double() for weight in weights]
        self.shapes = [weight.shape for weight in weights]
        self.vectors = torch.cat(
            [rearrange(w, "out width position -> (out position) width") for w in weights]
        ).cpu()
        self.flat = layer.inputs.reshape(samples, width * positions)
        self.observed = torch.cat([weight.reshape(-1, width * positions) for weight in weights])
        self.drawn_at_once = self.observed.numel()

    @abc.abstractmethod
    def drawn(self, generator: torch.Generator) -> Float64[Tensor, "row width"]:
        """What is read in place of `vectors`, a row for every output and position of its window."""

    def blocks(self) -> Iterator[Float64[Tensor, "place width"]]:
        """The inputs, some features at a time, a row for every sample and position."""
        samples, width, positions = self.layer.inputs.shape
        for some in column_blocks(samples * positions, width):
            rows = rearrange(
                self.layer.inputs[:, some], "sample width position -> (sample position) width"
            )
            yield rows.double().cpu()

    def frame(self, generator: torch.Generator | None) -> Frame:
        if generator is not None:
            return self.several(generator, 1)[0]
        made = self.flat @ self.observed.to(self.flat).T
        return self._bent(self._biased(made), [self._own(held) for held in self.layer.held])

    def several(self, generator: torch.Generator, count: int) -> Sequence[Frame]:
        made = self.made(generator, count)
        held = [self._own(held) for held in self.layer.held]
        if count == 1 or not self.by_rows:
            frames = [self._bent(self._biased(one), held) for one in made]
            return [Frame.side_by_side(frames)]
        # The function is asked once for the rows of all.
        rows = [held.repeat(count, 1) for held in held]
        frame = self._bent(self._biased(made.flatten(0, 1)), rows)
        post = _beside(frame.post, count)
        pre = None if frame.pre is None else _beside(frame.pre, count)
        return [Frame(post, pre, count=count)]

    def made(self, generator: torch.Generator, count: int) -> Float[Tensor, "frame sample output"]:
        """What the linear maps make of the inputs in as many frames, without biases."""
        rows = [self._as_weights(self.drawn(generator)) for _ in range(count)]
        made = self.flat @ torch.cat(rows).to(self.flat).T
        return made.unflatten(1, (count, -1)).movedim(1, 0)

    @functools.cached_property
    def by_rows(self) -> bool:
        """Whether the function makes each row of that row alone, as seen on some of them."""
        if self.axes is not None and self.reach is not Reach.NARROW:
            # Of all axes the rows of one frame are many enough.
            return False
        few = self.flat[:32]
        held = [self._own(held[:32]) for held in self.layer.held]
        given = [*self._biased(few @ self.observed.to(few).T), *held]
        layer = self.layer
        for function in (layer.post,) if layer.pre is None else (layer.post, layer.pre):
            try:
                whole = function(tuple(given))
                parts = [function(tuple(part[rows] for part in given)) for rows in _HALVES]
            except Exception:
                # Other numbers of rows do not fit it, whatever it says then.
                return False
            made = torch.cat(parts)
            if whole.shape != made.shape or not torch.allclose(made, whole, rtol=1e-5, atol=1e-7):
                return False
        return True

    def _biased(self, made: Tensor) -> list[Tensor]:
        """[rows, outputs] for every map, which is changed."""
        parts = made.split([shape[0] for shape in self.shapes], dim=1)
        biases = self.layer.biases
        biased = [
            out if bias is None else out.add_(self._own(bias[None])[0])
            for out, bias in zip(parts, biases, strict=True)
        ]
        return [self.layer.rounded(out) for out in biased]

    def _as_weights(self, drawn: Tensor) -> Tensor:
        """[outputs, width * positions]: what was drawn for every output and position."""
        if all(shape[2] == 1 for shape in self.shapes):
            return drawn
        sizes = [shape[0] * shape[2] for shape in self.shapes]
        parts = zip(drawn.split(sizes), self.shapes, strict=True)
        # [output, position, width] to [output, width * position].
        return torch.cat([p.unflatten(0, (-1, s[2])).mT.flatten(1) for p, s in parts])

    def _own(self, values: Tensor) -> Tensor:
        """The columns of the axes that are computed."""
        if self.axes is None or self.reach is Reach.ALL:
            return values
        return values.index_select(1, self.axes.to(values.device))

    def _bent(self, outputs: Sequence[Tensor], held: Sequence[Tensor]) -> Frame:
        layer, axes = self.layer, self.axes
        given = [*outputs, *held]
        if axes is not None and self.reach is Reach.PLACED:
            given = [_placed(part, axes, self._width()) for part in given]
        values = tuple(given)
        post = layer.post(values)
        pre = None if layer.pre is None else layer.pre(values)
        if axes is not None and self.reach is not Reach.NARROW:
            read = axes.to(post.device)
            post = post.index_select(1, read)
            pre = None if pre is None else pre.index_select(1, read)
        return Frame(post, pre)

    def _width(self) -> int:
        return len(self.layer.weights[0])


class _TurnedInput(ReadElsewhere):
    """W (Q x): turning the weights costs less than turning every window of the input."""

    def __init__(self, layer: LinearLayer, bands: float | None, axes: Tensor | None) -> None:
        super().__init__(layer, axes)
        mean = torch.cat([rows.mean(0) for rows in self.blocks()])
        vectors = self.vectors
        fixed = [mean, torch.ones_like(mean)][: 1 + layer.centred]
        # Coordinates of the input's space in which turns are rotations: rows there are `seen(x)`,
        # and `back` brings a neuron's direction from there to where x is.
        self.back: Callable[[Tensor], Tensor] = lambda w: w
        self.seen: Callable[[Tensor], Tensor] = lambda x: x
        if layer.geometry is Geometry.BALANCED:
            scale = (1 / layer.column_lengths).cpu()
            vectors, fixed = vectors * scale, [vector / scale for vector in fixed]
            self.back = lambda w: w / scale
            self.seen = lambda x: x / scale.to(x)
        elif layer.geometry is Geometry.POLAR:
            gram = sum(torch.einsum("ocp,odp->cd", w.double(), w.double()) for w in layer.weights)
            values, directions = torch.linalg.eigh(torch.as_tensor(gram).cpu())
            read = values > values.max() * 1e-10
            # Only what the weights read is turned: the rest does not reach any neuron.
            to = values[read].sqrt()[:, None] * directions[:, read].T
            vectors = vectors @ (directions[:, read] / values[read].sqrt())
            fixed = [to @ vector for vector in fixed]
            self.back = lambda w: w @ to.to(w)
            self.seen = lambda x: x @ to.to(x).T
        elif layer.geometry is not Geometry.EUCLIDEAN:
            raise ValueError(f"inputs of a layer cannot be turned {layer.geometry.name}")
        if bands is None:
            self.turning = Turned(vectors, torch.stack(fixed))
        else:
            to = self.back(torch.eye(vectors.shape[1], dtype=torch.float64))
            rows = torch.cat(list(self.blocks()), 1) @ to.T
            self.turning = _TurnedInBands(vectors, torch.stack(fixed), rows, bands)

    def drawn(self, generator: torch.Generator) -> Tensor:
        if isinstance(self.turning, _TurnedInBands):
            return self.back(self.turning.draw(generator))
        return self.back(self.turning.draw(generator, dtype=self._working))

    def made(self, generator: torch.Generator, count: int) -> Tensor:
        turning = self.turning
        if self.shapes[0][2] > 1 or isinstance(turning, _TurnedInBands) or not turning.has_factors:
            return super().made(generator, count)
        # The turned weights are not made: they are products of what all sites of a width share.
        columns, weights = turning.factors(generator, count, dtype=self._working)
        across, kept = self._split
        along = across @ torch.cat(columns, 1).to(across)
        along = along.unflatten(1, (count, -1)).movedim(1, 0)
        return torch.baddbmm(kept, along, weights.to(across).mT)

    @property
    def _working(self) -> torch.dtype:
        return torch.float64 if self.flat.dtype is torch.float64 else torch.float32

    @functools.cached_property
    def _split(self) -> tuple[Float[Tensor, "sample width"], Float[Tensor, "sample output"]]:
        """The rows off what is fixed, and what the weights read of them along it."""
        assert isinstance(self.turning, Turned)
        rows, span = self.seen(self.flat), self.turning.span
        along = rows @ span.to(rows)
        kept = along @ self.turning.along.to(rows).T
        return torch.addmm(rows, along, span.to(rows).T, alpha=-1), kept


def _beside(rows: Tensor, count: int) -> Tensor:
    """[sample, frame * dim] of the rows of as many frames behind one another."""
    return rows.unflatten(0, (count, -1)).movedim(0, 1).flatten(1)


_HALVES = slice(0, 16), slice(16, None)
"""Rows of some that are looked at apart."""


class Reach(enum.Enum):
    """How much of a layer must be computed for some of its axes."""

    NARROW = "those axes alone"
    PLACED = "those axes alone, each in its own column: the function differs from axis to axis"
    ALL = "all axes: the function of one reads the others"


class Along(Protocol):
    """A function of all axes of a layer that knows itself for some of them."""

    def along(self, axes: Tensor, width: int) -> "Function":
        """The function of the columns of some axes.

        Args:
            axes: which.
            width: how many there are in all.
        """
        ...


def _read(layer: LinearLayer, axes: Tensor) -> tuple[Reach, LinearLayer]:
    """The least that gives the same numbers on some of the layer's own samples.

    Returns:
        How much must be computed, and the layer with functions that take as much.
    """
    given = layer.outputs_of(slice(0, 32))
    width = given[0].shape[1]
    functions = [layer.post] if layer.pre is None else [layer.post, layer.pre]
    wanted = [function(given) for function in functions]
    read = axes.to(given[0].device)
    if any(part.shape[1] != width for part in (*given, *wanted)):
        return Reach.ALL, layer
    narrow = tuple(part.index_select(1, read) for part in given)

    def same(
        functions: Sequence[Function], parts: tuple[Tensor, ...], take: Callable[[Tensor], Tensor]
    ) -> bool:
        try:
            made = [take(function(parts)) for function in functions]
        except Exception:
            # What differs from axis to axis does not fit fewer of them, whatever it says then.
            return False
        return all(
            one.shape == (len(given[0]), len(axes))
            and torch.allclose(one, other.index_select(1, read), rtol=1e-5, atol=1e-7)
            for one, other in zip(made, wanted, strict=True)
        )

    if same(functions, narrow, lambda made: made):
        return Reach.NARROW, layer
    if all(hasattr(function, "along") for function in functions):
        short = [cast(Along, function).along(axes, width) for function in functions]
        if same(short, narrow, lambda made: made):
            pre = None if layer.pre is None else short[1]
            return Reach.NARROW, dataclasses.replace(layer, post=short[0], pre=pre)
    placed = tuple(_placed(part, axes, width) for part in narrow)
    if same(functions, placed, lambda made: made.index_select(1, read)):
        return Reach.PLACED, layer
    return Reach.ALL, layer


def _placed(part: Tensor, axes: Tensor, width: int) -> Tensor:
    """[samples, width]: the columns where they belong, zeros elsewhere."""
    whole = part.new_zeros(len(part), width)
    whole[:, axes.to(part.device)] = part
    return whole


class _TurnedInBands:
    """Vectors turned only among principal directions of the rows of similar variance.

    Args:
        vectors: what is turned, one per row.
        fixed: what is left where it is.
        rows: whose variances count.
        ratio: how far the variances in one band may be apart.
    """

    def __init__(self, vectors: Tensor, fixed: Tensor, rows: Tensor, ratio: float) -> None:
        dim = vectors.shape[1]
        span = torch.linalg.qr(fixed.T).Q
        across = torch.eye(dim, dtype=torch.float64) - span @ span.T
        centred = (rows - rows.mean(0)) @ across
        values, directions = torch.linalg.eigh(centred.T @ centred / max(1, len(rows)))
        # What is fixed has no variance left, and is no direction to turn.
        free = directions[:, (span.T @ directions).norm(dim=0) < 0.5]
        values = values[(span.T @ directions).norm(dim=0) < 0.5]
        order = values.argsort(descending=True)
        floor = float(values.max()) * 1e-10 if len(values) else 0.0
        self.kept = vectors - vectors @ free @ free.T
        self.bands: list[tuple[Tensor, Turned]] = []
        start = 0
        while start < len(order):
            least = float(values[order[start]]) / ratio
            if float(values[order[start]]) <= floor:
                end = len(order)
            else:
                inside = (values[order] >= max(least, floor)).sum()
                end = max(start + 1, int(inside))
            basis = free[:, order[start:end]]
            self.bands.append((basis, Turned(vectors @ basis, None)))
            start = end

    def draw(self, generator: torch.Generator) -> Tensor:
        """The vectors, turned."""
        turned = self.kept.clone()
        for basis, turning in self.bands:
            turned += turning.draw(generator) @ basis.T
        return turned


@dataclasses.dataclass(frozen=True)
class TurnedPreactivation(Null):
    """The pre-activations turned inside their span about their mean, then bent again.

    Units are standardised, turned, and each unit's mean and variance restored. What is left where
    the layer's input is not one linear map away. It holds its level in simulations, but not on
    every real layer.
    """

    approximate: ClassVar[bool] = True
    pools_directions: ClassVar[bool] = False

    @property
    def name(self) -> str:
        return "turned pre-activation"

    @property
    def holds_fixed(self) -> str:
        return "every unit's mean and variance before the nonlinearity, and the nonlinearity"

    def alternatives(self, problem: Problem, axes: Tensor | None = None) -> Alternatives:
        if problem.pre is None or problem.nonlinearity is None:
            raise ValueError(
                "turning pre-activations needs them and the nonlinearity; give pre= and "
                "nonlinearity="
            )
        return _TurnedPre(problem.pre, problem.nonlinearity, axes)


class _TurnedPre(Alternatives):
    def __init__(
        self, pre: Tensor, nonlinearity: Callable[[Tensor], Tensor], axes: Tensor | None
    ) -> None:
        self.nonlinearity, self.axes = nonlinearity, axes
        exact = pre.double()
        mean, std = exact.mean(0), exact.std(0, correction=0)
        live = std > exact.abs().amax(0) * 1e-12
        unit = torch.where(live, (exact - mean) / torch.where(live, std, 1.0), 0.0)
        values, vectors = torch.linalg.eigh(unit.T @ unit)
        span = vectors[:, values > values.max() * 1e-10]
        self.inside = (unit @ span).to(pre.dtype)
        read = torch.arange(pre.shape[1]) if axes is None else axes
        here = read.to(pre.device)
        self.mean, self.std, self.live = mean[here], std[here], live[here]
        self.observed = pre.index_select(1, here)
        self.turning = Turned(span[here], None)
        self.reach = Reach.NARROW if axes is None else reach_of(nonlinearity, pre, axes)
        if self.reach is not Reach.NARROW:
            # The function of an axis reads the others: all of them are turned.
            self.mean, self.std, self.live = mean, std, live
            self.observed, self.turning = pre, Turned(span, None)

    def frame(self, generator: torch.Generator | None) -> Frame:
        if generator is None:
            pre = self.observed
        else:
            turned = (self.inside @ self.turning.draw(generator).T.to(self.inside)).double()
            turned = turned - turned.mean(0)
            std = turned.std(0, correction=0)
            unit = turned / torch.where(std > 0, std, torch.ones_like(std))
            unit = torch.where(self.live, unit, torch.zeros_like(unit))
            pre = (self.mean + self.std * unit).to(self.observed.dtype)
        return read_along(self.nonlinearity(pre), pre, self.axes, self.reach)


def reach_of(function: Callable[[Tensor], Tensor], pre: Tensor, axes: Tensor) -> Reach:
    """Whether a function can be computed for some axes alone."""
    few, read = pre[:32], axes.to(pre.device)
    whole = function(few)
    if whole.shape != few.shape:
        return Reach.ALL
    try:
        part = function(few.index_select(1, read))
    except Exception:
        return Reach.ALL
    wanted = whole.index_select(1, read)
    same = part.shape == wanted.shape and torch.allclose(part, wanted, rtol=1e-5, atol=1e-7)
    return Reach.NARROW if same else Reach.ALL


def read_along(post: Tensor, pre: Tensor | None, axes: Tensor | None, reach: Reach) -> Frame:
    """The frame along the axes that are compared."""
    if axes is None or reach is Reach.NARROW:
        return Frame(post, pre)
    read = axes.to(post.device)
    return Frame(post.index_select(1, read), None if pre is None else pre.index_select(1, read))
