"""Sums over rows in single precision: what a frame of a null needs, in less than half the time.

Functions of values are computed in float32 and added up over a block of rows; blocks are added in
float64. Values are taken about the mean and in units of the deviation first, and the mean is known
to more digits than float32 has, so that no offset and no scale costs digits: moments agree with
those in float64 to about 1e-6 of their size. What is left to float64 are columns and rows whose
squares leave the range of float32, and columns whose spread is near the rounding of their values.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Generator, Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from basis_probe.parallel import OneForAll
from basis_probe.statistics.moments import EvenMoments, even_moments, row_shares

_BLOCK = 2**17
"""So many values at a time stay in a processor's cache through all that is done to them."""
_BLOCK_ACCELERATOR = 2**24

_SMALLEST, _LARGEST = 1e-24, 1e24
"""Variances of columns whose squares are in the range of float32, far from its ends."""
_SMALLEST_ENERGY, _LARGEST_ENERGY = 1e-18, 1e18
_STEADY = 1e-10
"""A column whose variance is less than this part of its squared mean is left to float64."""
_NEAR = 16.0
"""A column whose squared mean is more than so many variances loses digits to it."""
_UNIT = math.sqrt(0.5 * math.log2(math.e))
"""Values of this deviation have the bump 2^(-w^2), which is made in less than half of the time."""


_CAST = "cpu", "cuda"
"""Kinds of devices whose products `torch.autocast` may be making of fewer digits."""


@contextlib.contextmanager
def full_products() -> Generator[None]:
    """Within it, in every thread, products of float32 keep all digits that float32 has.

    `torch.set_float32_matmul_precision("high")`, which many scripts begin with, allows products of
    ten bits, and `torch.autocast`, in which models are run, makes them of eight; what was allowed
    is allowed again afterwards.
    """
    with _all_digits.within(), contextlib.ExitStack() as uncast:
        for kind in _CAST:
            # Each thread has its own, and where it is not set, some kinds would warn.
            if torch.is_autocast_enabled(kind):
                uncast.enter_context(torch.autocast(kind, enabled=False))
        yield


def _ask_for_all_digits() -> Callable[[], None]:
    before = tuple(backend.fp32_precision for backend in _backends())
    for backend in _backends():
        backend.fp32_precision = "ieee"

    def put_back() -> None:
        for backend, precision in zip(_backends(), before, strict=True):
            backend.fp32_precision = precision

    return put_back


_all_digits = OneForAll(_ask_for_all_digits)


def _backends() -> tuple[Any, ...]:
    """What makes products of float32, as far as torch lets one ask each by itself."""
    kinds = (torch.backends.cuda, torch.backends.mkldnn)
    found = tuple(getattr(kind, "matmul", None) for kind in kinds)
    if all(hasattr(backend, "fp32_precision") for backend in found):
        return found
    return (_ForAll(),)


class _ForAll:
    """The one setting of older versions of torch."""

    @property
    def fp32_precision(self) -> str:
        return torch.get_float32_matmul_precision()

    @fp32_precision.setter
    def fp32_precision(self, wanted: str) -> None:
        torch.set_float32_matmul_precision("highest" if wanted == "ieee" else wanted)


def rows_at_once(x: Tensor) -> int:
    """So many rows that what is made of them stays in a cache."""
    values = _BLOCK if x.device.type == "cpu" else _BLOCK_ACCELERATOR
    return max(1, values // max(1, x.shape[1]))


def blocks(x: Tensor) -> Iterator[Tensor]:
    """Consecutive rows, few enough at a time that what is made of them stays in a cache."""
    return iter(x.split(rows_at_once(x)))


class Columns:
    """The columns of rows in single precision, and what is averaged over the rows.

    Args:
        x: [samples, dim], at least one row; not changed.
        bumps: whether `bumps` will be asked for: one pass computes all.

    Attributes:
        mean, variance: of every column, in float64, [dim].

    Example:
        >>> columns = Columns(torch.tensor([[0.0, 5.0], [2.0, 5.0], [0.0, 5.0], [6.0, 5.0]]))
        >>> columns.even.kurtosis.round(decimals=6)
        tensor([2., nan], dtype=torch.float64)
    """

    def __init__(self, x: Float32[Tensor, "samples dim"], *, bumps: bool = False) -> None:
        self.x, self._bumps = x.detach(), bumps
        self._sum()
        if bool((self.mean.square() > _NEAR * self.variance).any()):
            self._sum_about(next(blocks(self.x)).mean(0))
            if bool((self._left.square() > _NEAR * self.variance).any()):
                self._sum_about(self.mean.float())
        spread = self.variance > _STEADY * self.mean.square()
        known = spread & (self.variance > _SMALLEST) & (self.variance < _LARGEST)
        # Most of these are zero throughout, and that is seen.
        self._odd = ~known & ((self.variance != 0) | (self.mean != 0))
        self._any = bool(self._odd.any())
        if self._any:
            self._exact = even_moments(self.x[:, self._odd])
            self.mean[self._odd] = self._exact.mean
            self.variance[self._odd] = self._exact.variance

    def _sum(self) -> None:
        first, second = self._zeros(), self._zeros()
        for block in blocks(self.x):
            first += block.sum(0)
            second += torch.linalg.vecdot(block, block, dim=0)
        self._set(0.0, first, second)

    def _sum_about(self, near: Tensor) -> None:
        first, second = self._zeros(), self._zeros()
        for block in blocks(self.x):
            value = block - near
            first += value.sum(0)
            second += value.square_().sum(0)
        self._set(near.double(), first, second)

    def _set(self, near: Tensor | float, first: Tensor, second: Tensor) -> None:
        self._left = first / len(self.x)
        self.mean = self._left + near
        self.variance = (second / len(self.x)).sub_(self._left.square()).clamp_min_(0.0)

    def scaled(self, size: float = 1.0) -> Callable[[Tensor], Tensor]:
        """What brings rows to mean 0 and variance size^2, in single precision.

        What never varies is 0. Values are those of every call: they may be changed.
        """
        scale = self.variance.rsqrt().nan_to_num_(0.0, 0.0, 0.0).mul_(size)
        factor = scale.float()
        if not self._any and not bool((self.mean.square() > _NEAR * self.variance).any()):
            shift = -(self.mean * scale).float()
            return lambda rows: torch.addcmul(shift, rows, factor)
        # An offset goes first, in full: it is the sum of two numbers of single precision.
        near = self.mean.float()
        rest = ((self.mean - near.double()) * scale).float()
        odd = self._odd

        def scaled(rows: Tensor) -> Tensor:
            value = (rows - near).mul_(factor).sub_(rest)
            if self._any:
                # In single precision these have no digits to lose.
                exact = (rows[:, odd].double() - self.mean[odd]) * scale[odd]
                value[:, odd] = exact.float()
            return value

        return scaled

    @property
    def varies(self) -> Bool[Tensor, " dim"]:
        """False for a column that does not vary beyond rounding."""
        return EvenMoments(self.mean, self.variance, self.variance).varies

    @property
    def even(self) -> EvenMoments:
        """Mean, variance and fourth moment of every column."""
        return self._passed[0]

    @property
    def bumps(self) -> tuple[Float[Tensor, " dim"], Float[Tensor, " dim"]]:
        """E z exp(-z^2/2) and E exp(-z^2/2) of every standardised column."""
        if not self._bumps:
            self._bumps = True
            self.__dict__.pop("_passed", None)
        return self._passed[1:]

    @functools.cached_property
    def _passed(self) -> tuple[EvenMoments, Tensor, Tensor]:
        fourth, odd, even = (self._zeros() for _ in range(3))
        scaled = self.scaled(_UNIT)
        for block in blocks(self.x):
            w = scaled(block)
            square = w * w
            fourth += torch.linalg.vecdot(square, square, dim=0)
            if self._bumps:
                bump = square.neg_().exp2_()
                even += bump.sum(0)
                odd += w.mul_(bump).sum(0)
        count = len(self.x)
        fourth = self.variance.square() * (fourth / (count * _UNIT**4))
        if self._any:
            fourth[self._odd] = self._exact.fourth
        return EvenMoments(self.mean, self.variance, fourth), odd / (count * _UNIT), even / count

    def _zeros(self) -> Tensor:
        return torch.zeros(self.x.shape[1], dtype=torch.float64, device=self.x.device)


def deviations(x: Float[Tensor, "samples dim"]) -> Float[Tensor, " dim"]:
    """The standard deviation of every column, in float64; sums of float32 as above.

    Example:
        >>> deviations(torch.tensor([[0.0, 5.0], [2.0, 5.0]]))
        tensor([1., 0.], dtype=torch.float64)
    """
    if x.dtype is torch.float32 and len(x):
        return Columns(x).variance.sqrt()
    return even_moments(x).variance.sqrt()


def shares(
    x: Float32[Tensor, "samples dim"], *, units: Float[Tensor, " dim"] | None = None
) -> Float[Tensor, " dim"]:
    """Every axis' share of the kurtosis across axes, as `row_shares`, in single precision.

    Args:
        x: [samples, dim], not changed.
        units: every axis is divided by its own first, [dim]; None for none.

    Example:
        >>> shares(torch.tensor([[1.0, 0.0], [1.0, -1.0], [0.0, 0.0]]))
        tensor([2.5000, 0.5000], dtype=torch.float64)
    """
    dim = x.shape[1]
    total = torch.zeros(dim, dtype=torch.float64, device=x.device)
    count = 0
    left: list[Tensor] = []
    factor = None if units is None else units.reciprocal().to(x)
    for block in blocks(x.detach()):
        square = block.square() if factor is None else (block * factor).square_()
        energy = square.sum(1, keepdim=True)
        known = (energy > _SMALLEST_ENERGY) & (energy < _LARGEST_ENERGY)
        if not bool(known.all()):
            some = known.squeeze(1)
            left.append(block[~some])
            square, energy = square[some], energy[some]
        total += square.div_(energy).square_().sum(0)
        count += len(square)
    if left:
        rest = torch.cat(left)
        rest = rest[(rest != 0).any(1)]
        if len(rest):
            total += row_shares(rest, units=units).to(total) * (len(rest) / dim**2)
            count += len(rest)
    return total * (dim**2 / count) if count else torch.full_like(total, math.nan)
