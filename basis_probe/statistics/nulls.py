"""Against what the axes are compared: the same activations, or the same layer, in other frames.

Frame 0 is what was observed, frames 1..K are drawn; `Alternatives.frame(k)` makes each of them by
the same code, so that whatever is computed of one is computed of all. A null says what its frames
share with the observed one; it is exact where frame 0 and the others are exchangeable.
"""

import abc
import dataclasses
import enum
from collections.abc import Callable

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from basis_probe.algebra.groups import (
    Blocks,
    DirectSum,
    GeneralLinear,
    Group,
    LineStabiliser,
    OnAxes,
    Planes,
    Trivial,
)
from basis_probe.algebra.haar import Turned


class Geometry(enum.Enum):
    """The inner product in which directions are turned; the value says why it may be used."""

    EUCLIDEAN = "as the activations are: the group holds rotations, and no rescaling"
    STANDARDISED = (
        "every axis at unit variance: the group knows axes only, and may rescale them; so that one "
        "axis of great variance does not reach into every other"
    )
    WHITENED = "every direction at unit variance: the group holds every invertible map"
    LINE = "off the all-ones direction, which every turn leaves fixed"
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
    if isinstance(group, DirectSum):
        kinds = {geometry_of(part) for part in group.parts}
        return kinds.pop() if len(kinds) == 1 else Geometry.STANDARDISED
    if isinstance(group, OnAxes | Trivial):
        return Geometry.STANDARDISED
    return Geometry.EUCLIDEAN


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
    """

    inputs: Float[Tensor, "samples inputs positions"]
    weights: tuple[Float[Tensor, "outputs inputs positions"], ...]
    biases: tuple[Float[Tensor, " outputs"] | None, ...]
    pre: Callable[[tuple[Tensor, ...]], Tensor] | None
    post: Callable[[tuple[Tensor, ...]], Tensor]
    geometry: Geometry
    centred: bool
    held: tuple[Float[Tensor, "samples outputs"], ...] = ()


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
    """

    x: Float[Tensor, "samples dim"]
    group: Group
    halves: Int[Tensor, " samples"]
    pre: Float[Tensor, "samples dim"] | None = None
    nonlinearity: Callable[[Tensor], Tensor] | None = None
    layer: LinearLayer | None = None
    examples: Int[Tensor, " samples"] | None = None


def outputs(layer: LinearLayer) -> tuple[Tensor, ...]:
    """What the layer's linear maps make of its input, and what is added to that."""
    flat = layer.inputs.reshape(len(layer.inputs), -1)
    made: list[Tensor] = []
    for weight, bias in zip(layer.weights, layer.biases, strict=True):
        out = flat @ weight.reshape(len(weight), -1).T
        made.append(out if bias is None else out + bias)
    return (*made, *layer.held)


@dataclasses.dataclass(frozen=True, eq=False)
class Frame:
    """The activations of a site in one frame.

    Attributes:
        post: [samples, dim] the activations.
        pre: [samples, dim] before the nonlinearity, where the null makes them.
        parts: row sets whose statistics are computed apart and averaged (the two halves of a
            cross-fit); None for all rows together.
    """

    post: Float[Tensor, "samples dim"]
    pre: Float[Tensor, "samples dim"] | None = None
    parts: tuple[Tensor, Tensor] | None = None


class Alternatives(abc.ABC):
    """The frames of one null at one site, each read along a block of its directions."""

    @abc.abstractmethod
    def frame(self, generator: torch.Generator | None) -> Frame:
        """The observed frame for None, else a frame drawn with the generator."""


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
    """

    frames: int = 199
    samples: int = 4096
    directions: int | None = None

    def __post_init__(self) -> None:
        if self.directions is not None and self.directions < 1:
            raise ValueError(
                f"directions={self.directions}: give a positive number, or None for all axes"
            )
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

    @property
    def approximate(self) -> bool:
        """True if frames are not exchangeable even for an untrained network."""
        return False

    @property
    def pools_directions(self) -> bool:
        """True if every direction of every frame has one law, so that p-values may pool them."""
        return True

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
        layer = problem.layer
        if layer is not None and layer.pre is not None:
            return Frame(problem.x, layer.pre(outputs(layer)))
        return Frame(problem.x, problem.pre)


# --- turning the activations ----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Rotation(Null):
    """The activations in a basis turned by a Haar rotation, in the geometry that the group picks.

    Exact for any fixed activations where the group holds the rotations: if training is blind to the
    group, the trained model is as likely as any of its rotations. Behind a nonlinearity it credits
    the axes for being one-sided, and is not to be believed.

    Attributes:
        geometry: overrides the geometry that the group picks.
    """

    geometry: Geometry | None = None

    @property
    def name(self) -> str:
        return "rotation"

    @property
    def holds_fixed(self) -> str:
        return "the activations themselves; only the basis in which they are read is turned"

    def alternatives(self, problem: Problem, axes: Tensor | None = None) -> Alternatives:
        geometry = self.geometry or geometry_of(problem.group)
        x, dim = problem.x, problem.x.shape[1]
        read = torch.arange(dim) if axes is None else axes
        if geometry in (Geometry.WHITENED, Geometry.HEADS):
            return _WhitenedHeads(x, problem.halves, _heads(problem.group, geometry, dim), read)
        if geometry is Geometry.PLANES:
            group = problem.group
            if not isinstance(group, Planes):
                raise ValueError("turning inside planes needs a group of planes")
            return _InPlanes(x, group.pairing, read)
        return _TurnedAxes(self.observed(problem), read, line=geometry is Geometry.LINE)

    def observed(self, problem: Problem) -> Frame:
        geometry = self.geometry or geometry_of(problem.group)
        x, dim = problem.x, problem.x.shape[1]
        if geometry is Geometry.LINE:
            return Frame(x - x.mean(1, keepdim=True))
        if geometry is Geometry.STANDARDISED:
            halves = (problem.halves == 0, problem.halves == 1)
            return Frame(_standardised(x, halves), parts=halves)
        if geometry in (Geometry.WHITENED, Geometry.HEADS):
            heads = _heads(problem.group, geometry, dim)
            return _WhitenedHeads(x, problem.halves, heads, torch.arange(dim)).frame(None)
        return Frame(x)


def _heads(group: Group, geometry: Geometry, dim: int) -> tuple[int, int, int]:
    """The size of the blocks that are whitened, their number, and the copies of each in a row."""
    if geometry is Geometry.WHITENED:
        return (dim, 1, 1)
    if not isinstance(group, Blocks):
        raise ValueError("turning inside heads needs a group of blocks")
    return (group.inner.dim, group.count, group.copies)


class _TurnedAxes(Alternatives):
    """Rows read along some axes, or along as many directions of a turned basis.

    Products are of rows about their mean: in single precision a large offset would drown the rest.
    """

    def __init__(self, observed: Frame, axes: Tensor, *, line: bool) -> None:
        x, self.parts = observed.post, observed.parts
        dim = x.shape[1]
        self.observed = x.index_select(1, axes.to(x.device))
        self.mean = x.mean(0, dtype=torch.float64)
        self.centred = x - self.mean.to(x.dtype)
        # What rounding leaves of the mean is turned with the rows; only the offset is added again.
        self.mean = self.mean.to(x.dtype).double()
        unit = torch.zeros(len(axes), dim, dtype=torch.float64)
        unit[torch.arange(len(axes)), axes.cpu()] = 1.0
        fixed = torch.ones(1, dim, dtype=torch.float64) if line else None
        self.turning = Turned(unit, fixed)

    def frame(self, generator: torch.Generator | None) -> Frame:
        if generator is None:
            return Frame(self.observed, parts=self.parts)
        directions = self.turning.draw(generator).to(self.mean)
        offset = (directions @ self.mean).to(self.centred)
        turned = torch.addmm(offset, self.centred, directions.T.to(self.centred))
        return Frame(turned, parts=self.parts)


def _standardised(x: Tensor, rows: tuple[Tensor, Tensor]) -> Tensor:
    """Every axis in units of its standard deviation on the other half of the rows."""
    scaled = torch.empty_like(x)
    for own, other in (rows, rows[::-1]):
        std = x[other].double().std(0, correction=0)
        floor = std.max() * 1e-12
        scaled[own] = (x[own] / torch.where(std > floor, std, torch.ones_like(std))).to(x.dtype)
    return scaled


def _roots(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """S^(1/2) and S^(-1/2) on the span of a covariance."""
    values, vectors = torch.linalg.eigh(covariance)
    keep = values > values.max() * 1e-10
    root = torch.where(keep, values.clamp(min=0).sqrt(), torch.zeros_like(values))
    inverse = torch.where(keep, values.clamp(min=1e-300).rsqrt(), torch.zeros_like(values))
    return (vectors * root) @ vectors.T, (vectors * inverse) @ vectors.T


class _WhitenedHeads(Alternatives):
    """Heads of `size` features, `count` of them, each repeated `copies` times in a row.

    Every head is whitened symmetrically, x S^(-1/2): of all bases in which its features are
    uncorrelated and of unit variance, the one nearest to the given axes. That one is compared with
    its rotations. (Turning x S^(-1/2) Q S^(1/2), which keeps the covariance, is not exact: an
    untrained layer is as likely as x Q, and so is its whitened form, but not as that.)
    """

    def __init__(
        self, x: Tensor, halves: Tensor, heads: tuple[int, int, int], axes: Tensor
    ) -> None:
        self.size, self.count, self.copies = heads
        self.parts = (halves == 0, halves == 1)
        white = torch.empty_like(x)
        blocks, whitened = self._by_head(x), self._by_head(white)
        for own, other in (self.parts, self.parts[::-1]):
            for head in range(self.count):
                fitted = blocks[other, head].double()
                centred = (fitted - fitted.mean(0)).reshape(-1, self.size)
                inverse = _roots(centred.T @ centred / max(1, len(centred)))[1]
                whitened[own, head] = (blocks[own, head].double() @ inverse).to(x.dtype)
        # One matrix of rows for each head: a product of views costs several times as much.
        self.white = [whitened[:, head].reshape(-1, self.size) for head in range(self.count)]
        self.observed = white.index_select(1, axes.to(x.device))
        # Copies of a head are turned alike, and so are read together: the same directions of each.
        place = axes.cpu()
        self.head = place // (self.size * self.copies)
        self.copy = place // self.size % self.copies
        self.inside = place % self.size
        eye = torch.eye(self.size, dtype=torch.float64)
        self.turning: list[tuple[int, Tensor, Tensor, Turned]] = []
        for head in self.head.unique().tolist():
            here = torch.nonzero(self.head == head).flatten()
            wanted, back = self.inside[here].unique(return_inverse=True)
            self.turning.append((head, here, back, Turned(eye[wanted], None)))

    def frame(self, generator: torch.Generator | None) -> Frame:
        if generator is None:
            return Frame(self.observed, parts=self.parts)
        post = torch.empty_like(self.observed)
        for head, here, back, turning in self.turning:
            directions = turning.draw(generator).to(self.observed)
            turned = (self.white[head] @ directions.T).view(len(post), self.copies, -1)
            post[:, here] = turned[:, self.copy[here], back]
        return Frame(post, parts=self.parts)

    def _by_head(self, x: Tensor) -> Tensor:
        """A view of the rows with heads, their copies and their features apart."""
        return rearrange(
            x, "sample (head copy dim) -> sample head copy dim", head=self.count, copy=self.copies
        )


class _InPlanes(Alternatives):
    """Every plane is brought to one size first, because the group scales planes."""

    def __init__(self, x: Tensor, pairing: str, axes: Tensor) -> None:
        self.axes = axes
        dim = x.shape[1]
        if pairing == "half":
            self.planes = slice(0, dim // 2), slice(dim // 2, 2 * (dim // 2))
        else:
            self.planes = slice(0, dim - dim % 2, 2), slice(1, dim, 2)
        self.x = x.clone()
        a, b = (x[:, side] for side in self.planes)
        size = (a.square() + b.square()).mean(0).div(2).sqrt()
        size = torch.where(size > 0, size, torch.ones_like(size))
        for side in self.planes:
            self.x[:, side] /= size

    def frame(self, generator: torch.Generator | None) -> Frame:
        read = self.axes.to(self.x.device)
        if generator is None:
            return Frame(self.x.index_select(1, read))
        dim = self.x.shape[1]
        angle = 2 * torch.pi * torch.rand(dim // 2, generator=generator, dtype=torch.float64)
        cos, sin = angle.cos().to(self.x), angle.sin().to(self.x)
        post = self.x.clone()
        first, second = self.planes
        a, b = self.x[:, first], self.x[:, second]
        post[:, first], post[:, second] = a * cos - b * sin, a * sin + b * cos
        return Frame(post.index_select(1, read))


# --- neurons that point elsewhere -----------------------------------------------------------------


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
        if self.bands is not None and not self.bands > 1:
            raise ValueError(f"bands={self.bands}: give a ratio above 1, for example 2, or None")

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

    @property
    def pools_directions(self) -> bool:
        return False

    def alternatives(self, problem: Problem, axes: Tensor | None = None) -> Alternatives:
        if problem.layer is None:
            raise ValueError(
                "the counterfactual null needs the layer's inputs and weights; give inputs= and "
                "weight= (or use the fallback from pre= and nonlinearity=)"
            )
        return _TurnedInput(problem.layer, self.bands, axes)


class _TurnedInput(Alternatives):
    """W (Q x): turning the weights costs less than turning every window of the input."""

    def __init__(self, layer: LinearLayer, bands: float | None, axes: Tensor | None) -> None:
        self.layer, self.axes = layer, axes
        self.reach = _Reach.ALL if axes is None else _reach(layer, axes)
        inputs = layer.inputs
        samples, width, positions = inputs.shape
        rows = rearrange(inputs, "sample width position -> (sample position) width").double()
        mean = rows.mean(0)
        weights = [weight.double() for weight in layer.weights]
        if axes is not None and self.reach is not _Reach.ALL:
            weights = [weight.index_select(0, axes.to(weight.device)) for weight in weights]
        self.shapes = [weight.shape for weight in weights]
        vectors = torch.cat(
            [rearrange(w, "out width position -> (out position) width") for w in weights]
        ).cpu()
        fixed = [mean.cpu(), torch.ones_like(mean).cpu()][: 1 + layer.centred]
        # Coordinates of the input's space in which turns are rotations: x there is `to(x)`, and a
        # neuron's direction w is `of(w)`, with `back` as the inverse of `of`.
        self.back: Callable[[Tensor], Tensor] = lambda w: w
        if layer.geometry is Geometry.BALANCED:
            scale = (1 / _column_lengths(layer.weights)).cpu()
            vectors, fixed = vectors * scale, [vector / scale for vector in fixed]
            rows = rows / scale.to(rows)
            self.back = lambda w: w / scale
        elif layer.geometry is Geometry.POLAR:
            gram = sum(torch.einsum("ocp,odp->cd", w.double(), w.double()) for w in layer.weights)
            values, directions = torch.linalg.eigh(torch.as_tensor(gram).cpu())
            read = values > values.max() * 1e-10
            # Only what the weights read is turned: the rest does not reach any neuron.
            to = values[read].sqrt()[:, None] * directions[:, read].T
            vectors = vectors @ (directions[:, read] / values[read].sqrt())
            fixed = [to @ vector for vector in fixed]
            rows = rows @ to.T.to(rows)
            self.back = lambda w: w @ to
        elif layer.geometry is not Geometry.EUCLIDEAN:
            raise ValueError(f"inputs of a layer cannot be turned {layer.geometry.name}")
        self.turning = (
            Turned(vectors, torch.stack(fixed))
            if bands is None
            else _TurnedInBands(vectors, torch.stack(fixed), rows.cpu(), bands)
        )
        self.flat = inputs.reshape(samples, width * positions)
        self.observed = torch.cat([weight.reshape(-1, width * positions) for weight in weights])

    def frame(self, generator: torch.Generator | None) -> Frame:
        layer = self.layer
        if generator is None:
            rows = self.observed
        else:
            drawn = self.back(self.turning.draw(generator))
            sizes = [shape[0] * shape[2] for shape in self.shapes]
            rows = torch.cat(
                [
                    rearrange(
                        part, "(out position) width -> out (width position)", position=shape[2]
                    )
                    for part, shape in zip(drawn.split(sizes), self.shapes, strict=True)
                ]
            )
        made = self.flat @ rows.to(self.flat).T
        outputs = [
            out if bias is None else out + self._own(bias[None])[0]
            for out, bias in zip(
                made.split([shape[0] for shape in self.shapes], dim=1), layer.biases, strict=True
            )
        ]
        return self._bent([*outputs, *map(self._own, layer.held)])

    def _own(self, values: Tensor) -> Tensor:
        """The columns of the axes that are computed."""
        if self.axes is None or self.reach is _Reach.ALL:
            return values
        return values.index_select(1, self.axes.to(values.device))

    def _bent(self, given: list[Tensor]) -> Frame:
        layer, axes = self.layer, self.axes
        if axes is not None and self.reach is _Reach.PLACED:
            given = [_placed(part, axes, self._width()) for part in given]
        values = tuple(given)
        post = layer.post(values)
        pre = None if layer.pre is None else layer.pre(values)
        if axes is not None and self.reach is not _Reach.NARROW:
            read = axes.to(post.device)
            post = post.index_select(1, read)
            pre = None if pre is None else pre.index_select(1, read)
        return Frame(post, pre)

    def _width(self) -> int:
        return len(self.layer.weights[0])


class _Reach(enum.Enum):
    """How much of a layer must be computed for some of its axes."""

    NARROW = "those axes alone"
    PLACED = "those axes alone, each in its own column: the function differs from axis to axis"
    ALL = "all axes: the function of one reads the others"


def _reach(layer: LinearLayer, axes: Tensor) -> _Reach:
    """The least that gives the same numbers on some of the layer's own samples."""
    few = slice(0, 32)
    given = outputs(
        dataclasses.replace(
            layer, inputs=layer.inputs[few], held=tuple(held[few] for held in layer.held)
        )
    )
    width = given[0].shape[1]
    functions = [layer.post] if layer.pre is None else [layer.post, layer.pre]
    wanted = [function(given) for function in functions]
    read = axes.to(given[0].device)
    if any(part.shape[1] != width for part in (*given, *wanted)):
        return _Reach.ALL
    narrow = [part.index_select(1, read) for part in given]

    def same(parts: list[Tensor], take: Callable[[Tensor], Tensor]) -> bool:
        try:
            made = [take(function(tuple(parts))) for function in functions]
        except (RuntimeError, ValueError, IndexError):
            # What differs from axis to axis does not fit fewer of them.
            return False
        return all(
            one.shape == (len(given[0]), len(axes))
            and torch.allclose(one, other.index_select(1, read), rtol=1e-5, atol=1e-7)
            for one, other in zip(made, wanted, strict=True)
        )

    if same(narrow, lambda made: made):
        return _Reach.NARROW
    placed = [_placed(part, axes, width) for part in narrow]
    if same(placed, lambda made: made.index_select(1, read)):
        return _Reach.PLACED
    return _Reach.ALL


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


def _column_lengths(weights: tuple[Tensor, ...]) -> Tensor:
    """The length of every input's column once rows and columns are balanced against each other.

    Dividing column c by the c-th of these, and the rows by numbers of their own, gives every row
    and every column of the weights the same length: the fixed point of dividing by row and column
    lengths in turn (Sinkhorn and Knopp 1967, of the squared weights). It moves along when inputs
    are rescaled and does not change when outputs are.
    """
    power = torch.cat([w.double().square().sum(2) for w in weights])
    power = power[power.sum(1) > 0]
    columns = torch.ones(power.shape[1], dtype=torch.float64, device=power.device)
    if not len(power):
        return columns
    for _ in range(200):
        rows = (power / columns).mean(1, keepdim=True)
        new = (power / rows).mean(0)
        new = torch.where(new > 0, new, torch.ones_like(new))
        done = float((new / columns).log().abs().max()) < 1e-10
        columns = new
        if done:
            break
    return columns.sqrt()


@dataclasses.dataclass(frozen=True)
class TurnedPreactivation(Null):
    """The pre-activations turned inside their span about their mean, then bent again.

    Units are standardised, turned, and each unit's mean and variance restored. What is left where
    the layer's input is not one linear map away. It holds its level in simulations, but not on
    every real layer.
    """

    @property
    def name(self) -> str:
        return "turned pre-activation"

    @property
    def holds_fixed(self) -> str:
        return "every unit's mean and variance before the nonlinearity, and the nonlinearity"

    @property
    def approximate(self) -> bool:
        return True

    @property
    def pools_directions(self) -> bool:
        return False

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
        live = std > std.max() * 1e-12
        unit = torch.where(live, (exact - mean) / torch.where(live, std, 1.0), 0.0)
        values, vectors = torch.linalg.eigh(unit.T @ unit)
        span = vectors[:, values > values.max() * 1e-10]
        self.inside = (unit @ span).to(pre.dtype)
        read = torch.arange(pre.shape[1]) if axes is None else axes
        here = read.to(pre.device)
        self.mean, self.std, self.live = mean[here], std[here], live[here]
        self.observed = pre.index_select(1, here)
        self.turning = Turned(span[here], None)
        self.reach = _Reach.NARROW if axes is None else _reach_of(nonlinearity, pre, axes)
        if self.reach is not _Reach.NARROW:
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
        return _read(self.nonlinearity(pre), pre, self.axes, self.reach)


def _reach_of(function: Callable[[Tensor], Tensor], pre: Tensor, axes: Tensor) -> _Reach:
    """Whether a function can be computed for some axes alone."""
    few, read = pre[:32], axes.to(pre.device)
    whole = function(few)
    if whole.shape != few.shape:
        return _Reach.ALL
    try:
        part = function(few.index_select(1, read))
    except (RuntimeError, ValueError, IndexError):
        return _Reach.ALL
    wanted = whole.index_select(1, read)
    same = part.shape == wanted.shape and torch.allclose(part, wanted, rtol=1e-5, atol=1e-7)
    return _Reach.NARROW if same else _Reach.ALL


def _read(post: Tensor, pre: Tensor | None, axes: Tensor | None, reach: _Reach) -> Frame:
    """The frame along the axes that are compared."""
    if axes is None or reach is _Reach.NARROW:
        return Frame(post, pre)
    read = axes.to(post.device)
    return Frame(post.index_select(1, read), None if pre is None else pre.index_select(1, read))


# --- nulls that are known to mislead, or to ask something else ------------------------------------


@dataclasses.dataclass(frozen=True)
class CovariancePreserving(Null):
    """The activations turned so that their covariance stays, and bent again behind a nonlinearity.

    z' = m + (z - m) S^(-1/2) Q S^(1/2), with S fitted on the other half of the rows. It holds its
    level on Gaussian data of any covariance, and fails on real untrained networks, whose data have
    a structure of their own that it turns away.
    """

    @property
    def name(self) -> str:
        return "covariance-preserving"

    @property
    def holds_fixed(self) -> str:
        return (
            "the mean and the covariance of the axes, before the nonlinearity where there is one; "
            "the structure of the data themselves is turned away, so that even untrained networks "
            "differ from it"
        )

    @property
    def approximate(self) -> bool:
        return True

    @property
    def pools_directions(self) -> bool:
        return False

    def alternatives(self, problem: Problem, axes: Tensor | None = None) -> Alternatives:
        return _SameCovariance(problem, axes)


class _Bending(Alternatives):
    """Pre-activations of some axes made anew in every frame, then bent; or activations, unbent."""

    def __init__(self, problem: Problem, axes: Tensor | None) -> None:
        self.function = problem.nonlinearity if problem.pre is not None else None
        self.source = problem.x if problem.pre is None else problem.pre
        self.axes = axes
        self.reach = _Reach.NARROW
        if axes is not None and self.function is not None:
            self.reach = _reach_of(self.function, self.source, axes)
        everything = torch.arange(self.source.shape[1])
        made = everything if axes is None or self.reach is not _Reach.NARROW else axes
        self.made = made.to(self.source.device)
        self.observed = self.source.index_select(1, self.made)

    @abc.abstractmethod
    def drawn(self, generator: torch.Generator) -> Tensor:
        """The axes that are made, in a new frame."""

    def frame(self, generator: torch.Generator | None) -> Frame:
        values = self.observed
        if generator is not None:
            values = self.drawn(generator).to(self.source.dtype)
        if self.function is None:
            return Frame(values)
        return _read(self.function(values), values, self.axes, self.reach)


class _SameCovariance(_Bending):
    def __init__(self, problem: Problem, axes: Tensor | None) -> None:
        super().__init__(problem, axes)
        exact = self.source.double()
        self.parts = (problem.halves == 0, problem.halves == 1)
        self.white = torch.empty_like(exact)
        self.means: list[Tensor] = []
        vectors: list[Tensor] = []
        for own, other in (self.parts, self.parts[::-1]):
            mean = exact[other].mean(0)
            centred = exact[other] - mean
            root, inverse = _roots(centred.T @ centred / max(1, len(centred)))
            self.white[own] = (exact[own] - mean) @ inverse
            self.means.append(mean[self.made])
            vectors.append(root[self.made].cpu())
        self.turning = Turned(torch.cat(vectors), None)

    def drawn(self, generator: torch.Generator) -> Tensor:
        made = torch.empty_like(self.observed, dtype=torch.float64)
        several = self.turning.draw(generator).to(self.white).chunk(2)
        for own, mean, directions in zip(self.parts, self.means, several, strict=True):
            made[own] = mean + self.white[own] @ directions.T
        return made


@dataclasses.dataclass(frozen=True)
class GaussianSurrogate(Null):
    """Gaussian samples of the same mean and covariance, bent again behind a nonlinearity.

    It asks whether the activations are Gaussian along the axes, not whether the axes differ from
    other directions: heavy-tailed data that have no preferred direction differ from it too.
    """

    @property
    def name(self) -> str:
        return "gaussian surrogate"

    @property
    def holds_fixed(self) -> str:
        return (
            "the mean and the covariance of the axes, before the nonlinearity where there is one; "
            "everything else is Gaussian, so that data without any preferred direction differ too"
        )

    @property
    def approximate(self) -> bool:
        return True

    @property
    def pools_directions(self) -> bool:
        return False

    def alternatives(self, problem: Problem, axes: Tensor | None = None) -> Alternatives:
        return _Surrogate(problem, axes)


class _Surrogate(_Bending):
    def __init__(self, problem: Problem, axes: Tensor | None) -> None:
        super().__init__(problem, axes)
        exact = self.observed.double()
        self.mean = exact.mean(0)
        centred = exact - self.mean
        self.root = _roots(centred.T @ centred / max(1, len(exact)))[0]

    def drawn(self, generator: torch.Generator) -> Tensor:
        normal = torch.randn(self.observed.shape, generator=generator, dtype=torch.float64)
        return self.mean + normal.to(self.root) @ self.root


@dataclasses.dataclass(frozen=True)
class RandomWeights(Null):
    """The same architecture with its weights drawn anew, on the same data.

    What is compared is training, not the basis: a trained network differs from its untrained twins
    in every direction. Every frame is one more pass of the data through a twin of the model.
    """

    frames: int = 19
    samples: int = 1024

    @property
    def name(self) -> str:
        return "random weights"

    @property
    def holds_fixed(self) -> str:
        return (
            "the architecture and the data; every weight is drawn anew, so that what training did "
            "to all directions alike counts too"
        )

    @property
    def approximate(self) -> bool:
        return True

    def alternatives(self, problem: Problem, axes: Tensor | None = None) -> Alternatives:
        raise ValueError(
            "the random-weights null needs the model itself: ask for it in bp.probe, with data "
            "that can be read several times"
        )
