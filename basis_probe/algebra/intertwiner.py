"""The intertwiner group of a nonlinearity, measured from its values.

G = {A : there is B with f(A x) = B f(x) for all x}. For an f that acts on every feature by itself,
is continuous and not affine, G holds matrices P D only, a permutation times a diagonal, and D may
hold the scales c for which f(c t) is a multiple of f(t). So the group follows from the values of f
alone; the name of a function, which configurations get wrong, decides nothing.

Source: C. Godfrey, D. Brown, T. Emerson, H. Kvinge, "On the Symmetries of Deep Learning Models and
their Internal Representations" (2022), arXiv 2205.14258, section 3, Table 1 and appendix on GELU.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from typing import TypeAlias, cast

import torch
from jaxtyping import Float64, Shaped
from torch import Tensor, nn
from torch.nn import functional

from basis_probe.algebra.groups import (
    DirectSum,
    GeneralLinear,
    Group,
    Monomial,
    Permutation,
    PositiveMonomial,
    Privileged,
    SignedPermutation,
    Unknown,
    monomial_parts,
)
from basis_probe.arguments import whole
from basis_probe.brief import brief, described
from basis_probe.devices import on_own_device
from basis_probe.errors import nearest


@brief
@dataclasses.dataclass(frozen=True, eq=False)
class Intertwiner:
    """Which changes of basis pass through a nonlinearity f, f(A x) = B f(x), and as what.

    Attributes:
        function: the nonlinearity, in a word.
        group: the A, which act on the site before the nonlinearity.
        image: the B = φ(A), which act on the site behind it.
        because: what was measured, as a sentence without its full stop.
        note: what a reader must know besides, such as a constant that the next bias must absorb; or
            an empty string.
        degree, parity: f(c t) = |c|^degree f(t), times `parity` for negative c, where the group
            holds the scale c.
        gain: [dim], the factor of every channel where f is affine and these differ; else None.
    """

    function: str
    group: Group
    image: Group
    because: str
    note: str = ""
    degree: float = 0.0
    parity: int = 1
    gain: Float64[Tensor, " dim"] | None = None

    @property
    def name(self) -> str:
        """The name of the group before the nonlinearity, e.g. "positive-monomial"."""
        return self.group.name

    @property
    def dim(self) -> int:
        """The n that the group acts on."""
        return self.group.dim

    @property
    def privileged(self) -> Privileged:
        """Which directions the group leaves meaningful."""
        return self.group.privileged

    def contains(self, matrix: object, atol: float = 1e-6) -> bool:
        """True if the matrix passes through; see `Group.contains`."""
        return self.group.contains(matrix, atol=atol)

    def sample(self, generator: torch.Generator) -> Float64[Tensor, "dim dim"]:
        """An element of the group before the nonlinearity; see `Group.sample`."""
        return self.group.sample(generator)

    def phi(self, matrix: object) -> Float64[Tensor, "dim dim"]:
        """The B with f(A x) = B f(x) for all x, up to what `note` says.

        Args:
            matrix: A, [dim, dim].

        Raises:
            ValueError: if A is not in the group, or the group is unknown.

        Example:
            >>> squared = intertwiner_group("square", 2)
            >>> squared.phi([[0.0, -3.0], [1.0, 0.0]]).tolist()
            [[0.0, 9.0], [1.0, 0.0]]
        """
        if not self.contains(matrix):
            raise ValueError(
                f"the matrix does not pass through {self.function}: its intertwiner group is "
                f"{self.name}; check with `contains`, or draw one with `sample`"
            )
        a = torch.as_tensor(matrix).detach().to("cpu", torch.float64)
        if isinstance(self.group, GeneralLinear | DirectSum):
            return a.clone() if self.gain is None else self.gain[:, None] * a / self.gain
        parts = monomial_parts(a, atol=1e-6)
        assert parts is not None, "every group that is not general-linear is monomial"
        column, factor = parts
        factor_behind = (
            factor.abs() ** self.degree if self.group.rescales else torch.ones_like(factor)
        )
        b = torch.zeros_like(a)
        b[torch.arange(self.dim), column] = torch.where(
            factor < 0, self.parity * factor_behind, factor_behind
        )
        return b


@on_own_device
def intertwiner_group(
    nonlinearity: str | nn.Module | Callable[[Tensor], Tensor], dim: int
) -> Intertwiner:
    """The changes of basis that pass through a nonlinearity, as far as its values show them.

    The function is called on float64 values between -1e8 and 1e8 on the CPU, without gradients; a
    module is copied first and put in evaluation mode. A group is claimed only where the values
    agree to 1e-9 (1e-5 for functions that compute in float32). What is not understood, such as a
    norm, a constant, or a function that is not finite everywhere, gives the group `Unknown` and the
    reason.

    Args:
        nonlinearity: a name such as "relu" or "gelu_tanh", a module, or a function of a tensor
            [samples, dim].
        dim: number of features, at least 1.

    Raises:
        ValueError: if the name is not known, `dim` is below 1, or the function fails on [samples,
            dim], changes the shape, is random, or computes in less than float32.

    Source: Godfrey et al. (2022), arXiv 2205.14258, section 3.

    Example:
        >>> intertwiner_group("relu", 3).name
        'positive-monomial'
        >>> swish = intertwiner_group(lambda x: x * torch.sigmoid(x), 3)
        >>> swish.name, swish.privileged.name
        ('permutation', 'AXES')
    """
    own = isinstance(nonlinearity, nn.Module) and any(p.ndim for p in nonlinearity.parameters())
    return measured(nonlinearity, dim, moving=own or isinstance(nonlinearity, str))


Ordered: TypeAlias = Callable[[Tensor], Callable[[Tensor], Tensor]]
"""Order of the channels -> the function whose weights for single channels were put in it."""


def measured(
    nonlinearity: str | nn.Module | Callable[[Tensor], Tensor],
    dim: int,
    *,
    moving: bool,
    ordered: Ordered | None = None,
) -> Intertwiner:
    """`intertwiner_group`, where it is known whether slopes of channels move along with them.

    Args:
        nonlinearity: as for `intertwiner_group`.
        dim: number of features, at least 1.
        moving: True if numbers that differ from channel to channel are weights, which change
            places when the channels do.
        ordered: the function with these in another order, for one that mixes features; None where
            it has none.
    """
    nothing = Unknown(dim)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        function = _in_range(_function(nonlinearity, dim))
        try:
            _require_row_by_row(function)
            if _mixes(function):
                return _coupled(function, ordered)
            return _on_single_features(function, moving=moving)
        except _NotUnderstood as reason:
            return Intertwiner(function.name, nothing, nothing, str(reason))


class _NotUnderstood(Exception):
    """Why no group is claimed."""


# --- the function as a black box ------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Function:
    """A nonlinearity on [samples, dim], evaluated in the precision that it has.

    Attributes:
        name: for sentences.
        call: the function itself, which may change its argument.
        dim: number of features.
        dtype: the precision it computes in, whatever it is given.
        given: the precision that it accepts.
    """

    name: str
    call: Callable[[Tensor], Tensor]
    dim: int
    dtype: torch.dtype = torch.float64
    given: torch.dtype = torch.float64

    @property
    def tolerance(self) -> float:
        """How far two values may differ, relative to their size, and still be called equal."""
        return 1e-9 if self.dtype == torch.float64 else 1e-5

    @property
    def rounding(self) -> float:
        return 16 * torch.finfo(self.dtype).eps

    def __call__(self, x: Float64[Tensor, "sample dim"]) -> Float64[Tensor, "sample dim"]:
        return self.unrounded(x).to("cpu", torch.float64)

    def unrounded(self, x: Float64[Tensor, "sample dim"]) -> Shaped[Tensor, "sample dim"]:
        """The values as the function gives them, in a type of its own."""
        try:
            y = self.call(x.to(self.given, copy=True))
        except Exception as error:
            # The function is the user's and may raise anything.
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise _Failed(
                f"{self.name} failed on a {str(self.given).removeprefix('torch.')} tensor "
                f"{tuple(x.shape)} on the CPU: {reason[0]}; give a function of one tensor "
                "[samples, dim]"
            ) from error
        if not isinstance(y, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(
                f"{self.name} returned {type(y).__name__}: give a function that returns a tensor"
            )
        if y.shape != x.shape:
            raise ValueError(
                f"{self.name} made {tuple(y.shape)} from {tuple(x.shape)}: give the part of it "
                "that keeps the shape [samples, dim]; for a gated unit, the gate's nonlinearity"
            )
        if y.is_complex():
            raise ValueError(f"{self.name} returned complex numbers: give a real function")
        return y.detach()


class _Failed(ValueError):
    """A function that raised an error."""


_MOST_AXES = 1_000_000


def _function(nonlinearity: str | nn.Module | Callable[[Tensor], Tensor], dim: int) -> _Function:
    """The nonlinearity in the highest precision that it works in.

    Raises:
        ValueError: if it is nothing to call, fails, is random or computes in less than float32.
    """
    dim = whole("dim", dim, least=1, most=_MOST_AXES)
    name, call = callable_of(nonlinearity)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(-(-256 // dim) + 8, dim, generator=generator, dtype=torch.float64)
    function = _Function(name, call, dim)
    try:
        given = function.unrounded(x).dtype
    except _Failed as failed:
        function = _Function(name, call, dim, dtype=torch.float32, given=torch.float32)
        try:
            given = function.unrounded(x).dtype
        except _Failed:
            raise failed from failed.__cause__
    # Values of all sizes tell steps of any width from rounding, which has none.
    rows = 8 + 4096 // dim
    x = torch.randn(rows, dim, generator=generator, dtype=torch.float64)
    x = x * torch.logspace(-6, 3, rows, dtype=torch.float64)[:, None]
    y = function(x)
    if not _same(y, function(x)):
        raise ValueError(
            f"{name} gave two different results for the same values: it is random; give it without "
            "its noise, a module in evaluation mode"
        )
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        if given == dtype or _rounds(function, x, y, dtype):
            if dtype != torch.float32:
                raise ValueError(
                    f"{name} computes in {str(dtype).removeprefix('torch.')}, too coarse to tell "
                    "one nonlinearity from another: give it in float32 or float64"
                )
            return dataclasses.replace(function, dtype=dtype)
    return function


_STRETCHES = tuple(4.0**-power for power in range(1, 7))


def _in_range(function: _Function) -> _Function:
    """f(s t) for a small s where f(t) itself grows too large for its type within |t| <= 50.

    As exp(-16 t) does. Both have the same group, whatever s is.
    """
    t = torch.linspace(-_FINITE_WITHIN, _FINITE_WITHIN, 201, dtype=torch.float64)
    rows = t[:, None].expand(-1, function.dim)
    if not bool(function(rows[::200].contiguous()).isinf().any()):
        return function
    y = function(rows.contiguous())
    size = y.abs().amax(dim=1)
    if bool(y.isnan().any()):
        return function
    for side in (size[100:], size[:101].flip(0)):
        # It grows beyond all bounds towards one end, and comes back from nowhere.
        first = int(side.isinf().long().argmax()) if bool(side.isinf().any()) else len(side)
        if first == 0 or not bool(side[first:].isinf().all()):
            return function
        if first < len(side) and float(side[first - 1]) < _OVERFLOW:
            return function
    for s in _STRETCHES:
        if bool(function(s * rows[::25]).isfinite().all()):
            return dataclasses.replace(function, call=lambda x, s=s: function.call(s * x))
    return function


_SEEN_MOVING = 256


def _rounds(
    function: _Function,
    x: Float64[Tensor, "sample dim"],
    y: Float64[Tensor, "sample dim"],
    dtype: torch.dtype,
) -> bool:
    """True if f(x) = y shows that f rounds its inputs or its outputs to this type.

    A function that rounds its input cannot tell it from its rounded copy. Nor can one that makes
    steps, of one width or few in number, unless they are as fine as the rounding of a constant in
    f, nor one whose constant is so large that it swallows the difference: these are taken as they
    are.
    """
    if y[y.isfinite()].unique().numel() <= 16:
        return False
    kind, double = torch.finfo(dtype), torch.finfo(torch.float64)
    # Rounding moves x by a fifth of x eps on average. Where moves of 8 x eps cross 256 steps, those
    # of rounding cross six or so, and steps are told from rounding.
    moved = (function(x * (1 + 8 * kind.eps)) != y) & y.isfinite()
    if int(moved.sum()) < _SEEN_MOVING:
        return False
    rest = _at_zero(function)
    constant = float(rest.abs().max())
    varied = (y - rest)[(y != rest) & y.isfinite()].abs()
    if float(varied.max()) * kind.eps <= 16 * double.eps * constant:
        return False
    step = varied.min()
    even = bool(((varied / step - (varied / step).round()).abs() <= 1e-9 * varied / step).all())
    finest = max(constant * kind.eps, kind.smallest_normal * kind.eps)
    if even and float(step) > 2 * finest:
        return False
    return _same(y, y.to(dtype).double()) or _same(y, function(x.to(dtype).double()))


def callable_of(nonlinearity: object) -> tuple[str, Callable[[Tensor], Tensor]]:
    """What a nonlinearity is called, and a function that computes it: of a module, a float64 copy.

    Raises:
        ValueError: if it is neither a known name nor something to call.
    """
    if isinstance(nonlinearity, str):
        plain = "_".join(nonlinearity.lower().replace("²", "2").replace("-", " ").split())
        if plain in _NAMED:
            return plain, _NAMED[plain]
        near = nearest(plain, _NAMED)
        raise ValueError(
            f"no nonlinearity is called {described(nonlinearity)}; nearest: {near or 'none'}; "
            f"all names: {', '.join(_NAMED)}; or give the function itself"
        )
    if isinstance(nonlinearity, nn.Module):
        module = copy.deepcopy(nonlinearity).to("cpu", torch.float64).eval()
        for part in module.modules():
            # The user's hooks came with the copy; they are not to hear of these values.
            part._forward_hooks.clear()  # pyright: ignore[reportPrivateUsage]
            part._forward_pre_hooks.clear()  # pyright: ignore[reportPrivateUsage]
        return type(nonlinearity).__name__, _on_a_copy(module)
    if callable(nonlinearity):
        path = getattr(nonlinearity, "__qualname__", getattr(nonlinearity, "__name__", "<>"))
        # Functions made inside other functions bear no name that a reader would know.
        name = "f" if "<" in path else path.rpartition(".")[2]
        return name, _on_a_copy(cast("Callable[[Tensor], Tensor]", nonlinearity))
    raise ValueError(
        f"{nonlinearity!r} is no nonlinearity: give a name, a torch module or a function of a "
        "tensor"
    )


def _on_a_copy(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The function; where it overwrites what it is given, the values before it are kept."""
    return lambda values: function(values.clone())


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.nan_to_num(), b.nan_to_num()) and torch.equal(a.isnan(), b.isnan())


@dataclasses.dataclass(frozen=True)
class _Sizes:
    """How large the numbers are that may cancel inside f, of which rounding leaves a trace.

    Attributes:
        near: sizes that are known: f itself, at values that are not larger.
        far: sizes that are guessed, from f at 1. Their rounding may be seen only where it is small
            beside f itself, for else it would hide what f does at small values.
    """

    near: Tensor
    far: Tensor

    def __or__(self, other: _Sizes) -> _Sizes:
        """The larger of the two."""
        return _Sizes(torch.maximum(self.near, other.near), torch.maximum(self.far, other.far))


def _close(
    function: _Function, a: Tensor, b: Tensor, sizes: _Sizes, rest: float | Tensor = 0.0
) -> bool:
    """True if all values agree, relative to their distance from `rest` or to rounding.

    Args:
        function: whose values they are.
        a: values.
        b: other values, of the same shape or one that fits it.
        sizes: how large the numbers are whose rounding may be seen.
        rest: the value of f at 0. A constant in f, however large, must not hide how f varies.
    """
    varied = torch.maximum((a - rest).abs(), (b - rest).abs())
    guessed = torch.minimum(function.rounding * sizes.far, 1e-6 * torch.maximum(varied, sizes.near))
    allowed = function.tolerance * varied + function.rounding * sizes.near + guessed
    finite = a.isfinite() & b.isfinite()
    return bool(((a - b).abs() <= allowed)[finite].all())


# --- which inputs an output depends on ------------------------------------------------------------


_SIZES = (1.0, 0.1, 10.0)


def _rows(
    function: _Function, count: int, seed: int, sizes: tuple[float, ...] = _SIZES
) -> Float64[Tensor, "sample dim"]:
    """Normal values in rows of these sizes, in turn."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, function.dim, generator=generator, dtype=torch.float64)
    return x * torch.tensor(sizes, dtype=torch.float64).repeat(count)[:count, None]


def _require_row_by_row(function: _Function) -> None:
    """Raises `_NotUnderstood` if a sample's result depends on other samples or is not finite."""
    x = _rows(function, 12, seed=1)
    y = function(x)
    if not bool(y.isfinite().all()):
        at = float(x.flatten()[(~y.isfinite()).flatten()][0])
        raise _NotUnderstood(f"{function.name} is not finite for all real inputs, such as {at:.3g}")
    alone = torch.cat([function(x[:1]), function(x[7:9]).flip(0)])
    if not _close(function, alone, y[[0, 8, 7]], _largest(y), _at_zero(function)):
        raise _NotUnderstood(f"{function.name} mixes the samples of a batch")


def _mixes(function: _Function) -> bool:
    """True if some output depends on a feature other than its own.

    The features are redrawn in two halves for every bit of their index, so that every ordered pair
    of features is once separated into one that is redrawn and one that is kept. Few features are
    redrawn more often, to find those that matter only where they are large.
    """
    dim = function.dim
    count = min(256, max(12, 4096 // dim))
    x, other = (_rows(function, count, seed, (*_SIZES, 100.0, 1e4)) for seed in (2, 3))
    y, rest = function(x), _at_zero(function)
    # Every row by itself: the rounding of the large ones must not hide what the small ones show.
    size = _finite(y).abs().amax(dim=1, keepdim=True)
    sizes = _Sizes(size, torch.zeros_like(size))
    index = torch.arange(dim)
    for bit in range((dim - 1).bit_length()):
        high = (index >> bit) % 2 == 1
        for redrawn in (high, ~high):
            moved = function(torch.where(redrawn, other, x))
            kept = ~redrawn
            if not _close(function, moved[:, kept], y[:, kept], sizes, rest[:, kept]):
                return True
    return False


def _largest(y: Tensor) -> _Sizes:
    """The size of the largest of all values, wherever one is looked at."""
    return _Sizes(y.abs().max(), y.new_zeros(()))


def _finite(values: Tensor) -> Tensor:
    """The values, or 0 where they are not finite."""
    return values.nan_to_num(0.0, 0.0, 0.0)


def _at_zero(function: _Function) -> Float64[Tensor, "1 dim"]:
    """f(0), or 0 where it is not finite there, as of what divides by a length."""
    return _finite(function(torch.zeros(1, function.dim, dtype=torch.float64)))


# --- functions of single features -----------------------------------------------------------------


def _grid() -> Float64[Tensor, " position"]:
    """Inputs at which functions show themselves: tiny, around usual kinks, large, very large."""
    double = torch.float64
    even = torch.linspace(-8, 8, 129, dtype=double)
    wide = torch.linspace(-50, 50, 41, dtype=double)
    kinks = torch.tensor([0.5, 1, 2, 3, 4, 5, 6, 10, 20], dtype=double)
    near = torch.cat([kinks - 1e-3, kinks + 1e-3])
    powers = torch.logspace(-8, 8, 49, dtype=double)
    # Multiples of the golden ratio, modulo 1, lie on no lattice, on which a periodic f could hide.
    golden = torch.arange(1, 201, dtype=double).mul(0.5 * (math.sqrt(5) - 1)).frac() * 2 - 1
    return torch.cat(
        [torch.zeros(1, dtype=double), even, wide, near, -near, powers, -powers, 12 * golden]
    ).unique()


def _fine_grid() -> Float64[Tensor, " position"]:
    """More inputs, each for one feature only: 0.15 apart at most within 60, and 15 % beyond."""
    double = torch.float64
    golden = torch.arange(1, 1201, dtype=double).mul(0.5 * (math.sqrt(5) - 1)).frac() * 2 - 1
    powers = torch.logspace(-8, 8, 269, dtype=double)
    return torch.cat([_grid(), 60 * golden, powers, -powers]).unique()


_FINITE_WITHIN = 50.0
_POSITIVE_SCALES = (2.0, 0.5, 3.7, 1.01, 0.037, 31.0)


def _on_single_features(function: _Function, *, moving: bool) -> Intertwiner:
    # Fewer values for many channels: each of them is looked at, and shown to be like the first.
    ends = torch.tensor([-1e8, 1e8, -1.0, 0.0, 1.0], dtype=torch.float64)
    coarse = torch.cat([_grid()[::4], ends])
    table = function(coarse[:, None].expand(-1, function.dim).contiguous())
    _require_finite(function, coarse, table)
    sizes = _sizes(coarse, table)
    if _close(function, table, table[:, :1], sizes, table[-2:-1]):
        return _one_function(function)
    return _function_per_channel(function, coarse, table, sizes, moving=moving)


def _require_finite(function: _Function, t: Tensor, values: Tensor) -> None:
    broken = ~values.isfinite()
    if broken.ndim > t.ndim:
        broken = broken.any(dim=1)
    broken &= t.abs() <= _FINITE_WITHIN
    if bool(broken.any()):
        raise _NotUnderstood(
            f"{function.name} is not finite for all real inputs, such as {float(t[broken][0]):.3g}"
        )


def _sizes(t: Float64[Tensor, " position"], values: Tensor) -> _Sizes:
    """How large the numbers are that may cancel inside f(t).

    Near, as large as f is at smaller |t|. Far, as large as f is at 1, or as a slope times t, such
    as in a sum of hinges that ends in a constant.

    Args:
        t: where f was evaluated, 0 and 1 among it.
        values: what it was there, [position] or [position, dim].
    """
    table = _finite(values.reshape(len(t), -1))
    order = t.abs().argsort()
    near = torch.empty_like(t)
    near[order] = table.abs().amax(dim=1)[order].cummax(dim=0).values
    unit = t.abs() <= 1
    slope = (table[unit] - table[order[0]]).abs().max()
    far = near[unit].max() + slope * t.abs() / 4
    shape = (len(t),) + (1,) * (values.ndim - 1)
    return _Sizes(near.view(shape), far.view(shape))


@dataclasses.dataclass(frozen=True, eq=False)
class _Curve:
    """A function of one number, which acts on every feature alike.

    Attributes:
        function: f.
        t: where f was evaluated, in order, 0 among it.
        y: what it was there.
    """

    function: _Function
    t: Float64[Tensor, " position"]
    y: Float64[Tensor, " position"]

    @property
    def rest(self) -> float:
        """f(0)."""
        return float(self.y[int(self.t.abs().argmin())])

    def relation(self, c: float, *, constant: bool) -> tuple[float, float] | None:
        """The d and e with f(c t) = d f(t) + e at all values, if any; e = 0 unless `constant`."""
        t, y, scaled = self.t, self.y, _values(self.function, c * self.t)
        within = torch.where(t.abs() <= _FINITE_WITHIN, y, torch.zeros_like(y))
        if not bool(within.any()):
            within = torch.where(y.isfinite() & scaled.isfinite(), y, torch.zeros_like(y))
        high = int(within.argmax() if constant else within.abs().argmax())
        low = int(within.argmin())
        if constant:
            d = float((scaled[high] - scaled[low]) / (y[high] - y[low]))
            e = float(scaled[high]) - d * float(y[high])
        else:
            d, e = float(scaled[high] / y[high]), 0.0
        if not math.isfinite(d) or d == 0:
            return None
        # What is not finite must be so because it is too large for its type.
        expected = torch.where(y.isfinite(), d * y + e, (scaled - e) / d).abs()
        if bool((expected < _OVERFLOW)[y.isfinite() != scaled.isfinite()].any()):
            return None
        sizes = _sizes(t, d * y + e) | _sizes(t, scaled)
        return (d, e) if _close(self.function, scaled, d * y + e, sizes, self.rest) else None

    def degree(self, *, constant: bool) -> float | None:
        """The p with f(c t) = c^p f(t) (+ a constant) for all positive c."""
        powers: list[float] = []
        for c in _POSITIVE_SCALES:
            found = self.relation(c, constant=constant)
            if found is None or found[0] <= 0:
                return None
            powers.append(math.log(found[0]) / math.log(c))
        power, tolerance = powers[0], self.function.tolerance
        # The factor of 1.01 magnifies the error of its logarithm a hundredfold.
        if any(abs(other - power) > 200 * tolerance for other in powers):
            return None
        return float(round(power)) if abs(power - round(power)) <= 10 * tolerance else power


_OVERFLOW = 1e30


def _values(
    function: _Function, t: Float64[Tensor, " position"], shift: int = 0
) -> Float64[Tensor, " position"]:
    """f(t), each value on one channel; on another one where all are shifted."""
    rows = -(-len(t) // function.dim)
    filled = t.new_zeros(rows * function.dim)
    filled[: len(t)] = t
    y = function(filled.view(rows, function.dim).roll(shift, dims=1)).roll(-shift, dims=1)
    return y.flatten()[: len(t)]


def _one_function(function: _Function) -> Intertwiner:
    """The group of f applied to every feature alike."""
    t = _fine_grid()
    curve = _Curve(function, t, _values(function, t))
    y, rest = curve.y, curve.rest
    _require_finite(function, t, y)
    sizes = _sizes(t, y)
    name, dim, among = function.name, function.dim, f"at {len(t)} values of t from -1e8 to 1e8"
    for shift in range(1, min(dim, 8)):
        if not _close(function, _values(function, t, shift), y, sizes, rest):
            raise _NotUnderstood(_DIFFERENT_CHANNELS.format(name=name))
    slope = float((y[-1] - y[0]) / (t[-1] - t[0]))
    if math.isfinite(slope) and _close(function, y, slope * t + rest, sizes, rest):
        return _affine(name, dim, slope, rest, among)
    power, flip = curve.degree(constant=False), curve.relation(-1.0, constant=False)
    signs = flip is not None
    parity = -1 if flip is not None and flip[0] < 0 else 1
    group = _ON_AXES[signs, power is not None](dim)
    image = _ON_AXES[signs and parity < 0, power not in (None, 0.0)](dim)
    note = _note(
        name,
        None if signs else curve.relation(-1.0, constant=True),
        power is None and curve.degree(constant=True) is not None,
    )
    because = _because(name, power, flip, parity, among)
    return Intertwiner(name, group, image, because, note, power or 0.0, parity)


_ON_AXES: dict[tuple[bool, bool], Callable[[int], Group]] = {
    # (signs are free, positive scales are free)
    (False, False): Permutation,
    (True, False): SignedPermutation,
    (False, True): PositiveMonomial,
    (True, True): Monomial,
}


def _affine(name: str, dim: int, slope: float, offset: float, among: str) -> Intertwiner:
    if slope == 0:
        raise _NotUnderstood(f"{name} is constant: nothing passes through it")
    line = f"{slope:.6g} t".removeprefix("1 ")
    if offset:
        line += f" {'-' if offset < 0 else '+'} {abs(offset):.6g}"
    group = GeneralLinear(dim)
    because = f"{name}(t) = {line}, measured {among}"
    return Intertwiner(name, group, group, because, _OFFSET if offset else "", 1.0, -1)


_OFFSET = "f(A x) = A f(x) up to a constant vector, which the next bias absorbs"


def _function_per_channel(
    function: _Function, t: Tensor, table: Tensor, sizes: _Sizes, *, moving: bool
) -> Intertwiner:
    """The group of a f that differs from channel to channel, where one is known.

    Args:
        function: f.
        t: where it was evaluated; at the end stand -1e8, 1e8, -1, 0 and 1.
        table: what it was there on every channel, [position, dim].
        sizes: what may be rounded there.
        moving: whether what differs moves with the channels.
    """
    name, dim, scale = function.name, function.dim, float(sizes.near[-1])
    first, last, negative, zero, positive = table[-5:]
    gain = (last - first) / 2e8
    linear = bool(gain.isfinite().all())
    if linear and _close(function, table, t[:, None] * gain + zero, sizes, zero):
        if bool((gain.abs() <= function.rounding * scale).any()):
            raise _NotUnderstood(
                f"{name} is constant on some channels: nothing passes through them"
            )
        group = GeneralLinear(dim)
        because = f"{name} multiplies every channel by a number of its own"
        note = _OFFSET if bool((zero != 0).any()) else ""
        return Intertwiner(name, group, group, because, note, 1.0, -1, gain)
    lines = torch.where(t[:, None] < 0, -t[:, None] * negative, t[:, None] * positive)
    alike = bool(((positive - positive[0]).abs() <= function.tolerance * scale).all())
    if alike and positive[0] != 0 and _close(function, table, lines, sizes):
        if not moving:
            kinds = _kinds(negative, function.tolerance * scale)
            if kinds is None:
                raise _NotUnderstood(_DIFFERENT_CHANNELS.format(name=name))
            parts: list[Group] = []
            for start, size in kinds:
                straight = (
                    abs(float(negative[start] + positive[start])) <= function.tolerance * scale
                )
                parts.append(GeneralLinear(size) if straight else PositiveMonomial(size))
            group = DirectSum(tuple(parts))
            because = (
                f"{name} has {len(kinds)} slopes for negative t, each on a stretch of channels "
                f"that keep to it, measured at {len(t)} values of t from -1e8 to 1e8"
            )
            return Intertwiner(name, group, group, because, "", 1.0)
        group = PositiveMonomial(dim)
        return Intertwiner(
            name,
            group,
            group,
            f"{name}(c t) = c {name}(t) for every c > 0, on each of the {dim} channels, whose "
            f"slopes for negative t differ, measured at {len(t)} values of t from -1e8 to 1e8",
            "the slopes of the channels are permuted along with the channels",
            1.0,
        )
    if not moving:
        raise _NotUnderstood(_DIFFERENT_CHANNELS.format(name=name))
    return _all_channels(function)


def _all_channels(function: _Function) -> Intertwiner:
    """The group of a f whose channels differ by weights that change places with them.

    A factor passes through all channels if it passes through their sum with generic weights.
    """
    dim = function.dim
    generator = torch.Generator().manual_seed(0)
    weights = 0.5 + torch.rand(dim, generator=generator, dtype=torch.float64)
    weights = (weights / weights.sum())[:, None]

    def call(x: Tensor) -> Tensor:
        return function(x.expand(-1, dim).contiguous()) @ weights

    summed = dataclasses.replace(function, call=call, dim=1, given=torch.float64)
    found = _one_function(summed)
    wider = [
        next((make(dim) for make in _ON_AXES.values() if make(1) == one), None)
        for one in (found.group, found.image)
    ]
    if wider[0] is None or wider[1] is None:
        raise _NotUnderstood(_DIFFERENT_CHANNELS.format(name=function.name))
    return dataclasses.replace(
        found,
        group=wider[0],
        image=wider[1],
        because=f"{found.because}, of all {dim} channels, which differ by their weights",
        note="; ".join(
            filter(None, (found.note, "the weights of the channels are permuted along with them"))
        ),
    )


def _kinds(values: Tensor, tolerance: float) -> list[tuple[int, int]] | None:
    """Start and length of every stretch of equal values; None if a value comes again later."""
    starts = [0]
    for place in range(1, len(values)):
        if abs(float(values[place] - values[starts[-1]])) > tolerance:
            starts.append(place)
    first = values[torch.tensor(starts)]
    gaps = (first[:, None] - first[None, :]).abs() + torch.eye(len(first), dtype=first.dtype) * (
        tolerance + 1
    )
    if bool((gaps <= tolerance).any()):
        return None
    ends = [*starts[1:], len(values)]
    return [(start, end - start) for start, end in zip(starts, ends, strict=True)]


_DIFFERENT_CHANNELS = "{name} computes different functions on different channels"


# --- what was measured, in words ------------------------------------------------------------------


def _because(
    name: str, power: float | None, flip: tuple[float, float] | None, parity: int, among: str
) -> str:
    """What scaling t does to f(t), in one sentence."""
    if power is None and flip is None:
        return f"{name}(c t) is a multiple of {name}(t) for no c but 1, measured {among}"
    sign = "-" if parity < 0 else ""
    if power is None:
        return (
            f"{name}(-t) = {sign}{name}(t), and {name}(c t) is a multiple of {name}(t) for no "
            f"other c, measured {among}"
        )
    exponent = "" if power == 1 else f"^{power:.6g}"
    # c^p says it all where it has the right sign for negative c.
    plain = flip is None or (power == int(power) and (-1) ** int(power) == parity)
    sign = "" if plain or parity > 0 else "sign(c) "
    size = "" if power == 0 else f"c{exponent} " if plain else f"|c|{exponent} "
    which = "c > 0 and for no c < 0" if flip is None else "c other than 0"
    return f"{name}(c t) = {sign}{size}{name}(t) for every {which}, measured {among}"


def _note(name: str, flip: tuple[float, float] | None, scales: bool) -> str:
    said: list[str] = []
    if flip is not None:
        d, e = flip
        said.append(
            f"{name}(-t) = {e:.6g} {'-' if d < 0 else '+'} {name}(t), so signs are free too if the "
            "next bias absorbs the constant"
        )
    if scales:
        said.append(
            f"{name}(c t) is a multiple of {name}(t) plus a constant for every c > 0, so positive "
            "scales are free too if the next bias absorbs the constant"
        )
    return "; ".join(said)


# --- functions that mix features ------------------------------------------------------------------


def _coupled(function: _Function, ordered: Ordered | None) -> Intertwiner:
    """Permutations, where the function commutes with them and with nothing else that is usual."""
    name, dim = function.name, function.dim
    x = _rows(function, 48, seed=4)
    y, rest = function(x), _at_zero(function)
    _require_finite(function, x, y)
    sizes = _largest(y)
    generator = torch.Generator().manual_seed(5)
    orders = [torch.randperm(dim, generator=generator) for _ in range(3)]
    orders.append(torch.arange(dim).roll(1))
    swap = torch.arange(dim)
    swap[:2] = swap[:2].flip(0)
    for order in (*orders, swap):
        moved = function
        if ordered is not None:
            moved = dataclasses.replace(function, call=ordered(order))
        if not _close(function, moved(x[:, order]), y[:, order], sizes, rest[:, order]):
            raise _NotUnderstood(
                f"{name} mixes features, and its outputs are not permuted with them"
            )
    shifts = _close(function, function(x + 1.7), y, sizes, rest)
    drawn = torch.randint(0, 2, (3, 1, dim), generator=generator) * 2.0 - 1
    signs = [*drawn.double(), torch.tensor([-1.0, *[1.0] * (dim - 1)], dtype=torch.float64)]
    odd = all(_close(function, function(x * s), y * s, sizes, rest) for s in signs)
    even = not odd and all(_close(function, function(x * s), y, sizes, rest) for s in signs)
    passing = _SIGNS if odd or even else frozenset[str]()
    notes = ["shifts along the all-ones direction change nothing at all"] if shifts else []
    for what, factor in ((_TWICE, 2.0), (_NEGATIVE, -1.0)):
        # One number for all features is no change of axes; norms let it pass, too.
        if what not in passing and _scales_rows(function, x, y, factor):
            passing |= {what}
            notes.append(f"{what} passes besides")
    for what, size, change in _larger(dim, shifts):
        if what not in passing and _intertwines(function, y, function(change(x)), size):
            raise _NotUnderstood(
                f"{name} mixes features and lets more than permutations pass ({what}), as norms do"
            )
    group = SignedPermutation(dim) if odd or even else Permutation(dim)
    image = SignedPermutation(dim) if odd else Permutation(dim)
    because = f"{name} mixes features: its outputs are permuted with them, and neither " + (
        "scales nor rotations pass, but signs do"
        if odd or even
        else "scales, signs nor rotations pass"
    )
    return Intertwiner(name, group, image, because, "; ".join(notes), parity=-1 if odd else 1)


_TWICE, _NEGATIVE = "twice everything", "the negative of everything"
_SIGNS = frozenset({_NEGATIVE, "the negative of one feature", "the negatives of two features"})


def _scales_rows(function: _Function, x: Tensor, y: Tensor, factor: float) -> bool:
    """True if rows that are this many times as large become a multiple of what they became."""
    moved, largest = function(factor * x), y.abs().amax(1, keepdim=True)
    if not bool((largest > 0).all()) or not bool(moved.isfinite().all()):
        return False
    ratio = float((moved * y).sum(1).div(y.square().sum(1)).median())
    return bool(((moved - ratio * y).abs() <= 100 * function.tolerance * largest).all())


def _larger(dim: int, shifts: bool) -> list[tuple[str, int, Callable[[Tensor], Tensor]]]:
    """Changes of basis that are no permutations: their name, how many features change, and how."""

    def first(rows: list[list[float]]) -> Callable[[Tensor], Tensor]:
        matrix = torch.tensor(rows, dtype=torch.float64)
        size = len(rows)
        return lambda x: torch.cat([x[:, :size] @ matrix.T, x[:, size:]], dim=1)

    tried: list[tuple[str, int, Callable[[Tensor], Tensor]]] = [
        (_TWICE, 0, lambda x: 2 * x),
        (_NEGATIVE, 0, lambda x: -x),
        ("twice one feature", 1, first([[2.0]])),
        ("the negative of one feature", 1, first([[-1.0]])),
        ("a rotation of two features", 2, first([[0.6, -0.8], [0.8, 0.6]])),
        ("a shear of two features", 2, first([[1.0, 0.7], [0.0, 1.0]])),
        ("a blend of two features", 2, first([[0.8, 0.2], [0.2, 0.8]])),
        ("a blend that keeps the sum of two features", 2, first([[0.7, 0.2], [0.3, 0.8]])),
        ("a blend that keeps two equal features", 2, first([[0.7, 0.3], [0.2, 0.8]])),
    ]
    if shifts and dim == 2:
        # The negative of two features is their swap, up to a shift.
        del tried[1]
    if dim >= 3:
        tried.append(("the negatives of two features", 2, first([[-1.0, 0.0], [0.0, -1.0]])))
        # I - 2 v v^T / |v|^2 for v = (1, 2, -3), whose entries sum to zero.
        around = [[6, -2, 3], [-2, 3, 6], [3, 6, -2]]
        tried.append(
            ("a turn around the all-ones direction", 3, first([[v / 7 for v in r] for r in around]))
        )
    return tried


def _intertwines(function: _Function, y: Tensor, moved: Tensor, size: int) -> bool:
    """True if some B makes f(A x) from f(x), for an A that changes the first `size` features only.

    Where one B does, so does its average over the permutations of the other features, which commute
    with f and with A. It reads the first features one by one, the others by their sum, and writes
    each of the others from itself besides: few unknowns, however many features there are.
    """
    finite = (y.isfinite() & moved.isfinite()).all(dim=1)
    y, moved = y[finite], moved[finite]
    rest = y[:, size:].sum(1, keepdim=True)
    shared = torch.cat([y[:, :size], rest], dim=1)
    outputs = [(moved[:, i], shared) for i in range(size)]
    if y.shape[1] > size:
        outputs.append((moved[:, size], torch.cat([shared, y[:, size : size + 1]], dim=1)))
    for target, regressors in outputs:
        units = regressors.norm(dim=0).clamp_min(1e-300)
        weights = torch.linalg.lstsq(regressors / units, target[:, None], driver="gelsd").solution
        residual = (regressors / units @ weights)[:, 0] - target
        if float(residual.norm()) > 100 * function.tolerance * float(target.norm()):
            return False
    return True


# --- functions by their usual names ---------------------------------------------------------------


def _solu(x: Tensor) -> Tensor:
    return x * x.softmax(-1)


def _relu_squared(x: Tensor) -> Tensor:
    return x.relu().square()


def _gelu_tanh(x: Tensor) -> Tensor:
    return functional.gelu(x, approximate="tanh")


def _quick_gelu(x: Tensor) -> Tensor:
    return x * (1.702 * x).sigmoid()


def _gaussian(x: Tensor) -> Tensor:
    return (-x.square()).exp()


def _xielu(x: Tensor) -> Tensor:
    # Huang and Schlag, arXiv 2411.13010, with its initial parameters.
    below = 0.8 * (x.clamp(max=0).expm1() - x) + 0.5 * x
    return torch.where(x > 0, 0.8 * x.square() + 0.5 * x, below)


def _prelu(x: Tensor) -> Tensor:
    return functional.leaky_relu(x, 0.25)


def _softmax(x: Tensor) -> Tensor:
    return x.softmax(-1)


def _identity(x: Tensor) -> Tensor:
    return x


def _cube(x: Tensor) -> Tensor:
    return x * x * x


# What a name means; its group is measured like that of any other function.
_NAMED: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": _identity,
    "linear": _identity,
    "relu": torch.relu,
    "leaky_relu": functional.leaky_relu,
    "prelu": _prelu,
    "relu2": _relu_squared,
    "relu_squared": _relu_squared,
    "squared_relu": _relu_squared,
    "abs": torch.abs,
    "square": torch.square,
    "cube": _cube,
    "tanh": torch.tanh,
    "sin": torch.sin,
    "cos": torch.cos,
    "erf": torch.erf,
    "softsign": functional.softsign,
    "hardtanh": functional.hardtanh,
    "tanhshrink": functional.tanhshrink,
    "softshrink": functional.softshrink,
    "hardshrink": functional.hardshrink,
    "gelu": functional.gelu,
    "gelu_tanh": _gelu_tanh,
    "gelu_new": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "quick_gelu": _quick_gelu,
    "silu": functional.silu,
    "swish": functional.silu,
    "mish": functional.mish,
    "softplus": functional.softplus,
    "sigmoid": torch.sigmoid,
    "logsigmoid": functional.logsigmoid,
    "elu": functional.elu,
    "selu": functional.selu,
    "celu": functional.celu,
    "relu6": functional.relu6,
    "hardswish": functional.hardswish,
    "hardsigmoid": functional.hardsigmoid,
    "xielu": _xielu,
    "exp": torch.exp,
    "gaussian": _gaussian,
    "rbf": _gaussian,
    "softmax": _softmax,
    "solu": _solu,
}
