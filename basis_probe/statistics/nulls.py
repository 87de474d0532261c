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
from einops import einsum, rearrange
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
from basis_probe.algebra.haar import haar, haar_fixing


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


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """What is known of a site on the samples that nulls are computed on.

    Attributes:
        x: the activations, [samples, dim], float64.
        group: the group of the site.
        halves: [samples], 0 or 1: covariances are fitted on one half and used on the other.
        pre: the tensor before the nonlinearity, if known, [samples, dim].
        nonlinearity: what made x of it.
        layer: the layer one linear map behind its input, if known.
    """

    x: Float[Tensor, "samples dim"]
    group: Group
    halves: Int[Tensor, " samples"]
    pre: Float[Tensor, "samples dim"] | None = None
    nonlinearity: Callable[[Tensor], Tensor] | None = None
    layer: LinearLayer | None = None


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
    """The frames of one null at one site."""

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
    """

    frames: int = 199
    samples: int = 4096

    def __post_init__(self) -> None:
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
    def alternatives(self, problem: Problem) -> Alternatives:
        """The frames of this null for one site.

        Raises:
            ValueError: if the null needs something that is not known of the site.
        """


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

    def alternatives(self, problem: Problem) -> Alternatives:
        geometry = self.geometry or geometry_of(problem.group)
        x = problem.x
        if geometry is Geometry.LINE:
            return _Turned(x - x.mean(1, keepdim=True), line=True)
        if geometry is Geometry.STANDARDISED:
            return _Standardised(x, problem.halves)
        if geometry is Geometry.WHITENED:
            return _Whitened(x, problem.halves, (x.shape[1], 1, 1))
        if geometry is Geometry.HEADS:
            group = problem.group
            if not isinstance(group, Blocks):
                raise ValueError("turning inside heads needs a group of blocks")
            return _Whitened(x, problem.halves, (group.inner.dim, group.count, group.copies))
        if geometry is Geometry.PLANES:
            group = problem.group
            if not isinstance(group, Planes):
                raise ValueError("turning inside planes needs a group of planes")
            return _InPlanes(x, group.pairing)
        return _Turned(x, line=False)


class _Turned(Alternatives):
    def __init__(self, x: Tensor, *, line: bool) -> None:
        self.x, self.line = x, line

    def frame(self, generator: torch.Generator | None) -> Frame:
        if generator is None:
            return Frame(self.x)
        dim = self.x.shape[1]
        if self.line:
            turn = haar_fixing(torch.ones(1, dim, dtype=torch.float64), generator)
        else:
            turn = haar(dim, generator)
        return Frame(self.x @ turn.to(self.x))


class _Standardised(Alternatives):
    def __init__(self, x: Tensor, halves: Tensor) -> None:
        self.rows = (halves == 0, halves == 1)
        scaled = torch.empty_like(x)
        for own, other in (self.rows, self.rows[::-1]):
            std = x[other].std(0, correction=0)
            floor = std.max() * 1e-12
            scaled[own] = x[own] / torch.where(std > floor, std, torch.ones_like(std))
        self.x = scaled

    def frame(self, generator: torch.Generator | None) -> Frame:
        if generator is None:
            return Frame(self.x, parts=self.rows)
        turn = haar(self.x.shape[1], generator).to(self.x)
        return Frame(self.x @ turn, parts=self.rows)


def _roots(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """S^(1/2) and S^(-1/2) on the span of a covariance."""
    values, vectors = torch.linalg.eigh(covariance)
    keep = values > values.max() * 1e-10
    root = torch.where(keep, values.clamp(min=0).sqrt(), torch.zeros_like(values))
    inverse = torch.where(keep, values.clamp(min=1e-300).rsqrt(), torch.zeros_like(values))
    return (vectors * root) @ vectors.T, (vectors * inverse) @ vectors.T


class _Whitened(Alternatives):
    """Heads of `size` features, `count` of them, each repeated `copies` times in a row.

    Every head is whitened symmetrically, x S^(-1/2): of all bases in which its features are
    uncorrelated and of unit variance, the one nearest to the given axes. That one is compared with
    its rotations. (Turning x S^(-1/2) Q S^(1/2), which keeps the covariance, is not exact: an
    untrained layer is as likely as x Q, and so is its whitened form, but not as that.)
    """

    def __init__(self, x: Tensor, halves: Tensor, heads: tuple[int, int, int]) -> None:
        self.size, self.count, self.copies = heads
        self.rows = (halves == 0, halves == 1)
        self.x = torch.empty_like(x)
        blocks = self._by_head(x)
        white = self._by_head(self.x)
        for own, other in (self.rows, self.rows[::-1]):
            for head in range(self.count):
                fitted = blocks[other, head]
                centred = (fitted - fitted.mean(0)).reshape(-1, self.size)
                inverse = _roots(centred.T @ centred / max(1, len(centred)))[1]
                white[own, head] = blocks[own, head] @ inverse

    def frame(self, generator: torch.Generator | None) -> Frame:
        if generator is None:
            return Frame(self.x, parts=self.rows)
        turns = torch.stack([haar(self.size, generator) for _ in range(self.count)]).to(self.x)
        blocks = self._by_head(self.x)
        turned = einsum(blocks, turns, "sample head copy dim, head dim out -> sample head copy out")
        return Frame(turned.flatten(1), parts=self.rows)

    def _by_head(self, x: Tensor) -> Tensor:
        """A view of the rows with heads, their copies and their features apart."""
        return rearrange(
            x, "sample (head copy dim) -> sample head copy dim", head=self.count, copy=self.copies
        )


class _InPlanes(Alternatives):
    def __init__(self, x: Tensor, pairing: str) -> None:
        self.x, self.pairing = x, pairing

    def frame(self, generator: torch.Generator | None) -> Frame:
        if generator is None:
            return Frame(self.x)
        dim = self.x.shape[1]
        angle = 2 * torch.pi * torch.rand(dim // 2, generator=generator, dtype=torch.float64)
        cos, sin = angle.cos().to(self.x), angle.sin().to(self.x)
        post = self.x.clone()
        if self.pairing == "half":
            first, second = slice(0, dim // 2), slice(dim // 2, 2 * (dim // 2))
        else:
            first, second = slice(0, dim - dim % 2, 2), slice(1, dim, 2)
        a, b = self.x[:, first], self.x[:, second]
        post[:, first], post[:, second] = a * cos - b * sin, a * sin + b * cos
        return Frame(post)


# --- neurons that point elsewhere -----------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Counterfactual(Null):
    """The same layer with its neurons pointing elsewhere.

    The same weights, biases and nonlinearity read an input that is turned about its own mean
    direction: x' = Q x with Q m = m for the mean m and Haar otherwise. Every neuron's direction
    becomes a uniformly random one of the same length and the same mean pre-activation, while the
    data keep all their structure. Exact for initialisations that no rotation of the input changes:
    an untrained layer is one of its own counterfactuals.
    """

    @property
    def name(self) -> str:
        return "counterfactual"

    @property
    def holds_fixed(self) -> str:
        return (
            "the data, every neuron's weight length, bias and mean pre-activation, and the "
            "nonlinearity; only the directions that the neurons read are turned"
        )

    @property
    def pools_directions(self) -> bool:
        return False

    def alternatives(self, problem: Problem) -> Alternatives:
        if problem.layer is None:
            raise ValueError(
                "the counterfactual null needs the layer's inputs and weights; give inputs= and "
                "weight= (or use the fallback from pre= and nonlinearity=)"
            )
        return _TurnedInput(problem.layer)


class _TurnedInput(Alternatives):
    def __init__(self, layer: LinearLayer) -> None:
        self.layer = layer
        inputs = layer.inputs
        samples, width, positions = inputs.shape
        rows = rearrange(inputs, "sample width position -> (sample position) width").double()
        mean = rows.mean(0)
        self.to = self.back = None
        self.scale = None
        fixed = [mean]
        if layer.geometry is Geometry.BALANCED:
            self.scale = 1 / _column_lengths(layer.weights)
            fixed = [mean / self.scale]
        elif layer.geometry is Geometry.POLAR:
            gram = sum(torch.einsum("ocp,odp->cd", w.double(), w.double()) for w in layer.weights)
            values, vectors = torch.linalg.eigh(torch.as_tensor(gram))
            read = values > values.max() * 1e-10
            # Only what the weights read is turned: the rest does not reach any neuron.
            self.to = values[read].sqrt()[:, None] * vectors[:, read].T
            self.back = vectors[:, read] / values[read].sqrt()
            fixed = [self.to @ mean]
        elif layer.geometry is not Geometry.EUCLIDEAN:
            raise ValueError(f"inputs of a layer cannot be turned {layer.geometry.name}")
        if layer.centred:
            ones = torch.ones_like(mean)
            fixed.append(ones if self.to is None else self.to @ ones)
        self.fixed = torch.stack(fixed).cpu()
        self.flat = inputs.reshape(samples, width * positions)

    def frame(self, generator: torch.Generator | None) -> Frame:
        layer = self.layer
        outputs: list[Tensor] = []
        turn = None
        if generator is not None:
            turn = haar_fixing(self.fixed, generator).to(layer.inputs.device)
            if self.scale is not None:
                turn = self.scale[:, None] * turn / self.scale[None, :]
            elif self.to is not None and self.back is not None:
                turn = self.back @ turn @ self.to
            turn = turn.to(layer.inputs.dtype)
        for weight, bias in zip(layer.weights, layer.biases, strict=True):
            # W (Q x): turning the weights costs less than turning every window.
            turned = weight
            if turn is not None:
                turned = einsum(weight, turn, "out width position, width dim -> out dim position")
            out = self.flat @ turned.reshape(len(weight), -1).T
            outputs.append(out if bias is None else out + bias)
        made = tuple(outputs)
        pre = None if layer.pre is None else layer.pre(made)
        return Frame(layer.post(made), pre)


def _column_lengths(weights: tuple[Tensor, ...]) -> Tensor:
    """The length of every input's column once rows and columns are balanced against each other.

    Dividing column c by the c-th of these, and the rows by numbers of their own, gives every row
    and
    every column of the weights the same length: the fixed point of dividing by row and column
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

    def alternatives(self, problem: Problem) -> Alternatives:
        if problem.pre is None or problem.nonlinearity is None:
            raise ValueError(
                "turning pre-activations needs them and the nonlinearity; give pre= and "
                "nonlinearity="
            )
        return _TurnedPre(problem.pre.double(), problem.nonlinearity)


class _TurnedPre(Alternatives):
    def __init__(self, pre: Tensor, nonlinearity: Callable[[Tensor], Tensor]) -> None:
        self.nonlinearity = nonlinearity
        self.pre = pre
        self.mean = pre.mean(0)
        std = pre.std(0, correction=0)
        self.live = std > std.max() * 1e-12
        self.std = torch.where(self.live, std, torch.ones_like(std))
        unit = torch.where(self.live, (pre - self.mean) / self.std, torch.zeros_like(pre))
        values, vectors = torch.linalg.eigh(unit.T @ unit)
        self.span = vectors[:, values > values.max() * 1e-10]
        self.inside = unit @ self.span

    def frame(self, generator: torch.Generator | None) -> Frame:
        if generator is None:
            pre = self.pre
        else:
            turn = haar(self.span.shape[1], generator).to(self.inside)
            turned = self.inside @ turn @ self.span.T
            turned = turned - turned.mean(0)
            std = turned.std(0, correction=0)
            unit = turned / torch.where(std > 0, std, torch.ones_like(std))
            pre = self.mean + self.std * torch.where(self.live, unit, torch.zeros_like(unit))
        return Frame(self.nonlinearity(pre).double(), pre)
