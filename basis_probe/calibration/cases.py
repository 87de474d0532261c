"""Data with nothing on the axes, and data with something: what the instrument is tried on.

Every case draws one data set of a given size and returns the report of one site, by the public
functions that everybody calls. In a null case an axis is one direction among others by the way the
data were made: the data were turned by a uniform rotation, or the weights that made the axes are
Gaussian and as likely as any rotation of them. In a planted case the sources lie on the axes.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float64
from torch import Tensor, nn

from basis_probe.activations import probe_activations
from basis_probe.algebra.haar import haar_fixing
from basis_probe.calibration import sparse
from basis_probe.calibration.draw import Draw
from basis_probe.calibration.streams import (
    fixed_sinusoids,
    heavy_embedding,
    rogue_offset,
    rogue_variance,
    stream,
    uniform_embedding,
    uniform_everywhere,
)
from basis_probe.observation import probe
from basis_probe.results.report import SiteReport
from basis_probe.statistics.nulls import Counterfactual, Rotation, TurnedPreactivation

Data = Float64[Tensor, "samples dim"]


@dataclasses.dataclass(frozen=True)
class Trial:
    """A way to make data sets, and what is known of their axes.

    Attributes:
        name: what it is called in tables.
        planted: True if the sources lie on the axes, False if the axes are like any others.
        place: what kind of site it stands for.
        report: a draw -> the report of its site.
        excess: a number of axes -> the true value of what a bound of the verdict bounds; None where
            it is not known.
    """

    name: str
    planted: bool
    place: str
    report: Callable[[Draw], SiteReport]
    excess: Callable[[int], float] | None = None


# --- sources, of unit variance --------------------------------------------------------------------


def _gaussian(draw: Draw) -> Data:
    return draw.normal(draw.samples, draw.dim)


def _laplace(draw: Draw) -> Data:
    uniform = draw.uniform(draw.samples, draw.dim)
    return -uniform.sign() * (1 - 2 * uniform.abs()).log() * math.sqrt(0.5)


def _uniform(draw: Draw) -> Data:
    return draw.uniform(draw.samples, draw.dim) * math.sqrt(12)


def _sinusoid(draw: Draw) -> Data:
    return (2 * math.pi * draw.uniform(draw.samples, draw.dim)).sin() * math.sqrt(2)


def _binary(draw: Draw) -> Data:
    return draw.uniform(draw.samples, draw.dim).sign()


def _share(share: float) -> Callable[[Draw], Data]:
    """A share of the variance is Laplace, the rest Gaussian."""
    return lambda draw: math.sqrt(1 - share) * _gaussian(draw) + math.sqrt(share) * _laplace(draw)


_weak = _share(0.2)


def _excess_of(share: float) -> Callable[[int], float]:
    """What a bound bounds on such axes: a root of squares beyond those of random directions.

    Of z = sqrt(1 - w) g + sqrt(w) l the mean of exp(-z^2/2) over the Gaussian g is known, and over
    the Laplace l it is an integral. Directions of independent axes keep the share 3/(n+2) of the
    excess kurtosis, to first order.
    """

    def excess(dim: int) -> float:
        source = torch.linspace(0, 40, 400_001, dtype=torch.float64)
        density = math.sqrt(2) * (-math.sqrt(2) * source).exp()
        given = (-share * source.square() / (2 * (2 - share))).exp() / math.sqrt(2 - share)
        mean = float(torch.trapezoid(density * given, source))
        axes = (mean - math.sqrt(0.5)) / (math.sqrt(0.5) * 0.75 / 24)
        return axes * math.sqrt(1 - (3 / (dim + 2)) ** 2)

    return excess


def _nothing(dim: int) -> float:
    """All directions are alike."""
    return 0.0


# --- data without anything on the axes ------------------------------------------------------------


def _unequal(draw: Draw) -> Data:
    return _gaussian(draw) * (0.8 * draw.normal(draw.dim)).exp()


def _correlated(draw: Draw) -> Data:
    return _gaussian(draw) @ _mixing(draw)


def _mixing(draw: Draw) -> Tensor:
    """Variances of lognormal spread along uniformly random orthogonal directions."""
    return draw.turn() * (0.8 * draw.normal(draw.dim)).exp() @ draw.turn()


def _elliptical(draw: Draw) -> Data:
    """Student's t with five degrees of freedom: samples of very unequal length."""
    length = (draw.normal(draw.samples, 5).square().sum(1, keepdim=True) / 5).rsqrt()
    return _correlated(draw) * length


def _offset(draw: Draw) -> Data:
    return _correlated(draw) + 3 * draw.normal(draw.dim)


def _rogue(draw: Draw) -> Data:
    x = _gaussian(draw)
    x[:, 0] = 20 * x[:, 0] + 30
    return x


def _low_variance_tails(draw: Draw) -> Data:
    """Heavy tails in the half of the directions that has a ninth of the variance."""
    x = _gaussian(draw)
    half = draw.dim // 2
    x[:, :half] *= 3
    x[:, half:] = _laplace(draw)[:, half:] ** 3 / math.sqrt(90)
    return x @ draw.turn()


def _turned(source: Callable[[Draw], Data], *, line: bool = False) -> Callable[[Draw], Data]:
    """The source with its axes turned; with `line` by a rotation about the all-ones direction."""

    def make(draw: Draw) -> Data:
        ones = torch.ones(1, draw.dim, dtype=torch.float64)
        x = source(draw)
        return x @ (haar_fixing(ones, draw.generator) if line else draw.turn())

    return make


def _constants(draw: Draw) -> Data:
    """A mean along two axes, of four standard deviations."""
    x = _gaussian(draw)
    x[:, :2] += 4.0
    return x


def _few_heavy(draw: Draw) -> Data:
    """Two axes of heavy tails among Gaussian ones of the same variance."""
    x, heavy = _gaussian(draw), _laplace(draw)
    x[:, :2] = heavy[:, :2] * heavy[:, :2].abs() / math.sqrt(6)
    return x


def _mixed(source: Callable[[Draw], Data]) -> Callable[[Draw], Data]:
    return lambda draw: source(draw) @ _mixing(draw)


def _texts(draw: Draw) -> Data:
    """Words of English sentences as random vectors, with a fading memory of the words before."""
    words = _words()
    start = int(torch.randint(len(words) - draw.samples, (1,), generator=draw.generator))
    vectors = draw.normal(int(words.max()) + 1, draw.dim)[words[start : start + draw.samples]]
    x = vectors.clone()
    for lag in range(1, 12):
        x[lag:] += 0.8**lag * vectors[:-lag]
    return x


@functools.cache
def _words() -> Tensor:
    from basis_probe import demo

    words = " ".join(demo.texts(3000, seed=1)).replace(".", " .").replace(",", " ,").split()
    numbers = {word: number for number, word in enumerate(sorted(set(words)))}
    return torch.tensor([numbers[word] for word in words])


def _clusters(draw: Draw) -> Data:
    """A mixture of thirty clusters of unequal frequency, size and shape."""
    count = 30
    frequency = 1 / torch.arange(1, count + 1, dtype=torch.float64)
    which = torch.multinomial(frequency, draw.samples, replacement=True, generator=draw.generator)
    size = (0.5 * draw.normal(count)).exp()[which, None]
    return draw.normal(count, draw.dim)[which] + 0.5 * size * _correlated(draw)


# --- sites ----------------------------------------------------------------------------------------

_GROUPS = {"relu": "positive-monomial", "gelu": "permutation", "tanh": "signed-permutation"}


def _linear(make: Callable[[Draw], Data], group: str) -> Callable[[Draw], SiteReport]:
    def report(draw: Draw) -> SiteReport:
        null = draw.null(Rotation)
        return probe_activations(make(draw), group=group, null=null, seed=draw.seed)

    return report


def _bend(name: str, x: Tensor) -> Tensor:
    return {"relu": F.relu, "gelu": F.gelu, "tanh": torch.tanh}[name](x)


def _layer(
    make: Callable[[Draw], Data], bend: str, *, depth: int = 1
) -> Callable[[Draw], SiteReport]:
    """The last of `depth` untrained layers with Gaussian weights and biases."""

    def report(draw: Draw) -> SiteReport:
        inputs = make(draw)
        inputs = inputs / inputs.square().mean().sqrt()
        for _ in range(depth - 1):
            weight = draw.normal(draw.dim, draw.dim) * math.sqrt(2 / draw.dim)
            inputs = _bend(bend, inputs @ weight.T + 0.1 * draw.normal(draw.dim))
        weight = draw.normal(draw.dim, draw.dim) * math.sqrt(2 / draw.dim)
        return _neurons(draw, inputs, weight, 0.3 * draw.normal(draw.dim), bend)

    return report


def _neurons(draw: Draw, inputs: Tensor, weight: Tensor, bias: Tensor, bend: str) -> SiteReport:
    return probe_activations(
        _bend(bend, inputs @ weight.T + bias),
        group=_GROUPS[bend],
        inputs=inputs,
        weight=weight,
        bias=bias,
        nonlinearity=bend,
        null=draw.null(Counterfactual),
        seed=draw.seed,
    )


def _before(make: Callable[[Draw], Data], bend: str) -> Callable[[Draw], SiteReport]:
    """The same where nothing is known of the layer but what is before the nonlinearity."""

    def report(draw: Draw) -> SiteReport:
        pre = make(draw)
        pre = pre / pre.std(0) + 0.3 * draw.normal(draw.dim)
        return probe_activations(
            _bend(bend, pre),
            group=_GROUPS[bend],
            pre=pre,
            nonlinearity=bend,
            null=draw.null(TurnedPreactivation),
            seed=draw.seed,
        )

    return report


def _on_neurons(source: Callable[[Draw], Data], bend: str) -> Callable[[Draw], SiteReport]:
    """A layer whose weights undo the turn that hides the sources in its input."""

    def report(draw: Draw) -> SiteReport:
        turn, bias = draw.turn(), 0.3 * draw.normal(draw.dim)
        return _neurons(draw, source(draw) @ turn, turn, bias, bend)

    return report


class _Gated(nn.Module):
    """Blocks of norm and gated layer on a residual stream, as in Llama, without attention."""

    def __init__(self, dim: int, depth: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(_GatedBlock(dim) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


class _GatedBlock(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(dim)
        self.gate, self.up, self.down = (nn.Linear(dim, dim, bias=False) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


def _swiglu(make: Callable[[Draw], Data], *, depth: int = 1) -> Callable[[Draw], SiteReport]:
    """The gated product of the last of `depth` untrained blocks, by probing the module."""

    def report(draw: Draw) -> SiteReport:
        model = _Gated(draw.dim, depth).double().eval()
        with torch.no_grad():
            for block in model.modules():
                if isinstance(block, nn.Linear):
                    block.weight.copy_(draw.normal(draw.dim, draw.dim) / math.sqrt(draw.dim))
        inputs = make(draw)
        found = probe(
            model,
            [inputs / inputs.square().mean().sqrt()],
            sites=f"blocks.{depth - 1}.down:in",
            null=draw.null(Counterfactual),
            seed=draw.seed % 2**31,
            certificates=False,
            progress=False,
        )
        return found.site_reports[0]

    return report


_AXES_FREE = "no nonlinearity, rotations admitted"
_LINE = "no nonlinearity, rotations about the all-ones direction admitted"
_LINE_GROUP = "line-stabiliser"
_FIXED = "no nonlinearity, axes rescaled"
_GENERAL = "no nonlinearity, every linear map admitted"
_BEHIND = "neurons, untrained layer"
_FALLBACK = "neurons, only the pre-activations known"
_NETWORK = "neurons, second layer of an untrained network"
_NEURONS = "neurons"
_SPARSE = "neurons that read few inputs"
_STREAM = "residual stream, untrained language model"
OWN_AXES = "residual stream, initialisation with axes of its own"
"""Sites of untrained networks whose weights are not drawn from rotation-invariant laws."""
WEAK = "no nonlinearity, rotations admitted, weak sources"
WEAK_NEURONS = "neurons, weak sources"
"""Sources that are often not found, and that a bound has to cover then."""

TRIALS: tuple[Trial, ...] = (
    Trial("isotropic Gaussian", False, _AXES_FREE, _linear(_gaussian, "orthogonal"), _nothing),
    Trial("rotated unequal variances", False, _AXES_FREE, _linear(_turned(_unequal), "orthogonal")),
    Trial("correlated Gaussian", False, _AXES_FREE, _linear(_correlated, "orthogonal")),
    Trial("offsets", False, _AXES_FREE, _linear(_offset, "orthogonal")),
    Trial("rotated constants", False, _AXES_FREE, _linear(_turned(_constants), "orthogonal")),
    Trial("rotated rogue dimension", False, _AXES_FREE, _linear(_turned(_rogue), "orthogonal")),
    Trial("elliptical Student t", False, _AXES_FREE, _linear(_elliptical, "orthogonal"), _nothing),
    Trial("rotated Laplace", False, _AXES_FREE, _linear(_turned(_laplace), "orthogonal")),
    Trial("rotated sinusoids", False, _AXES_FREE, _linear(_turned(_sinusoid), "orthogonal")),
    Trial(
        "rotated heavy tails in low variance",
        False,
        _AXES_FREE,
        _linear(_turned(_low_variance_tails), "orthogonal"),
    ),
    Trial("rotated Laplace", False, _LINE, _linear(_turned(_laplace, line=True), _LINE_GROUP)),
    Trial(
        "rotated unequal variances",
        False,
        _LINE,
        _linear(_turned(_unequal, line=True), _LINE_GROUP),
    ),
    Trial("unequal variances", False, _FIXED, _linear(_unequal, "positive-monomial")),
    Trial("elliptical Student t", False, _FIXED, _linear(_elliptical, "positive-monomial")),
    Trial("elliptical Student t", False, _GENERAL, _linear(_elliptical, "general-linear")),
    Trial("mixed Laplace", False, _GENERAL, _linear(_mixed(_laplace), "general-linear")),
    *(
        Trial(f"{name}, correlated inputs", False, _BEHIND, _layer(_offset, name.lower()))
        for name in ("ReLU", "GELU", "tanh")
    ),
    Trial("SwiGLU, correlated inputs", False, _BEHIND, _swiglu(_offset)),
    Trial("ReLU, elliptical inputs", False, _BEHIND, _layer(_elliptical, "relu")),
    Trial("ReLU, one rogue input", False, _BEHIND, _layer(_rogue, "relu")),
    Trial("ReLU, tails in low variance", False, _BEHIND, _layer(_low_variance_tails, "relu")),
    Trial("ReLU, sparse inputs", False, _BEHIND, _layer(_laplace, "relu")),
    Trial("ReLU, Gaussian inputs", False, _BEHIND, _layer(_gaussian, "relu"), _nothing),
    Trial("ReLU, correlated Gaussian", False, _FALLBACK, _before(_correlated, "relu")),
    Trial("GELU, rotated Laplace", False, _FALLBACK, _before(_turned(_laplace), "gelu")),
    Trial("ReLU on texts", False, _NETWORK, _layer(_texts, "relu", depth=2)),
    Trial("GELU on texts", False, _NETWORK, _layer(_texts, "gelu", depth=2)),
    Trial("SwiGLU on texts", False, _NETWORK, _swiglu(_texts, depth=2)),
    Trial("ReLU on clusters", False, _NETWORK, _layer(_clusters, "relu", depth=2)),
    Trial("GELU on clusters", False, _NETWORK, _layer(_clusters, "gelu", depth=2)),
    Trial("SwiGLU on clusters", False, _NETWORK, _swiglu(_clusters, depth=2)),
    *(
        Trial(
            f"{density:.0%} of the weights, {law}".replace("%", " %"),
            False,
            _SPARSE,
            sparse.untrained(_offset, density, law),
        )
        for law in ("mask", "pruned", "inputs")
        for density in (0.01, 0.05, 0.2, 0.5)
    ),
    Trial("GPT-2 shape", False, _STREAM, stream("gpt2")),
    Trial("GPT-2 shape, tied", False, _STREAM, stream("gpt2", tied=True)),
    Trial("Llama shape", False, _STREAM, stream("llama")),
    Trial("Llama shape, tied", False, _STREAM, stream("llama", tied=True)),
    Trial("GPT-2 shape, eight tokens", False, _STREAM, stream("gpt2", tokens=8)),
    Trial("Llama shape, two sequences", False, _STREAM, stream("llama", sequences=2)),
    Trial("Llama shape, turned rogue variance", False, _STREAM, stream("llama", rogue_variance)),
    Trial("Llama shape, turned rogue offset", False, _STREAM, stream("llama", rogue_offset)),
    Trial("GPT-2 shape, uniform embedding", False, OWN_AXES, stream("gpt2", uniform_embedding)),
    Trial("Llama shape, heavy-tailed embedding", False, OWN_AXES, stream("llama", heavy_embedding)),
    Trial(
        "Llama shape, tied, uniform everywhere",
        False,
        OWN_AXES,
        stream("llama", uniform_everywhere, tied=True),
    ),
    Trial("GPT-2 shape, fixed sinusoids", False, OWN_AXES, stream("gpt2", fixed_sinusoids)),
    *(
        Trial(
            f"{share:.0%} Laplace on every axis".replace("%", " %"),
            True,
            WEAK,
            _linear(_share(share), "orthogonal"),
            _excess_of(share),
        )
        for share in (0.02, 0.05, 0.1)
    ),
    *(
        Trial(
            f"ReLU, {share:.0%} Laplace on every neuron".replace("%", " %"),
            True,
            WEAK_NEURONS,
            _on_neurons(_share(share), "relu"),
            _excess_of(share),
        )
        for share in (0.02, 0.05, 0.1)
    ),
    Trial("Laplace", True, _AXES_FREE, _linear(_laplace, "orthogonal")),
    Trial("uniform", True, _AXES_FREE, _linear(_uniform, "orthogonal")),
    Trial("sinusoids", True, _AXES_FREE, _linear(_sinusoid, "orthogonal")),
    Trial("binary", True, _AXES_FREE, _linear(_binary, "orthogonal")),
    Trial("scale: unequal variances", True, _AXES_FREE, _linear(_unequal, "orthogonal")),
    Trial("scale: one rogue dimension", True, _AXES_FREE, _linear(_rogue, "orthogonal")),
    Trial("offset: constants on few axes", True, _AXES_FREE, _linear(_constants, "orthogonal")),
    Trial("form: two heavy axes", True, _AXES_FREE, _linear(_few_heavy, "orthogonal")),
    Trial("scale: unequal variances", True, _LINE, _linear(_unequal, _LINE_GROUP)),
    Trial("ReLU, weak: 20 % Laplace", True, _NEURONS, _on_neurons(_weak, "relu")),
    Trial("GELU, weak: 20 % Laplace", True, _NEURONS, _on_neurons(_weak, "gelu")),
    Trial("ReLU, sinusoids", True, _NEURONS, _on_neurons(_sinusoid, "relu")),
    *(
        Trial(
            f"{density:.0%} of the weights, Laplace".replace("%", " %"),
            True,
            _SPARSE,
            sparse.planted(_laplace, density),
        )
        for density in (0.05, 0.2, 0.5)
    ),
)
"""The null battery, then the planted one."""
