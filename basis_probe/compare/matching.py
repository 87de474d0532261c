"""Axes that belong together: pairs, parts of axes, and the share of them that fits best."""

import dataclasses
import importlib.util
import itertools
import sys
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from basis_probe.algebra.groups import Group, Monomial, SignedPermutation
from basis_probe.errors import DataError
from basis_probe.statistics.second_moments import Crossed

# A transport over so many places is solved over all of them at once.
_ALL_AT_ONCE = 2**11

# From so many places on, or so many programmes, POT saves more time than importing it takes.
_WORTH_IMPORT, _MANY = 2**18, 100
_solved = itertools.count(1)

# Of axes that divide each other's number an assignment is faster, up to so many.
_MOST_COPIES = 512

_MOST_STEPS = 10**9

# Larger ones begin with the best few places of every axis, by prices that take so many rounds.
_PER_PLACE, _PRICE_ROUNDS = 3, 16

Constant = Literal["refuse", "ignore"]


@dataclasses.dataclass(frozen=True, eq=False)
class Matched:
    """Which axes of x belong to which of y, fitted on some samples; the others are left alone.

    Attributes:
        plan: [dim_x, dim_y], the share of all that is matched there; its sum is what was matched.
        signs: [dim_x, dim_y], -1 where an axis is matched to the other one reversed.
        flat: how many axes of either side never vary.
    """

    plan: Float64[Tensor, "dim_x dim_y"]
    signs: Float64[Tensor, "dim_x dim_y"]
    flat: tuple[int, int]

    def similarity(self, moments: Crossed) -> float:
        """The mean correlation between matched axes on some samples, in [-1, 1]."""
        found = (self.plan * self.signs * _correlations(moments)).sum() / self.plan.sum()
        return float(found)

    @property
    def pairs(self) -> tuple[tuple[int, int, float], ...]:
        """Axis of x, axis of y, and how much of all was matched there, the most first."""
        rows, columns = (self.plan > 0).nonzero(as_tuple=True)
        masses = self.plan[rows, columns].tolist()
        found = zip(rows.tolist(), columns.tolist(), masses, strict=True)
        return tuple(sorted(found, key=lambda pair: -pair[2]))


def match(
    group: Group, other: Group, moments: Crossed, *, share: float, constant: Constant
) -> Matched:
    """The axes of x and y that correlate most, so many of either side as are asked for.

    Args:
        group: the group of x; whether it reverses axes says whether signs count.
        other: that of y.
        moments: of x and y.
        share: of the axes of either side that vary, how many are matched; of unequal numbers in
            parts.
        constant: "refuse" axes that never vary, or "ignore" them, so that they match nothing.

    Raises:
        DataError: for constant axes that are refused, or if nothing varies.
        ValueError: if the groups do not act on so many axes.
    """
    for which, one, side in (("x", group, moments.x), ("y", other, moments.y)):
        if one.dim != len(side.mean):
            raise ValueError(
                f"the group {one!r} acts on {one.dim} axes, and {which} has {len(side.mean)}"
            )
        may_be_flat(side.flat, constant)
        if bool(side.flat.all()):
            raise DataError(
                "one of the two is the same on every sample: there is nothing to compare"
            )
    gain = _correlations(moments)
    signs = torch.ones_like(gain)
    if isinstance(group, SignedPermutation | Monomial):
        signs = torch.where(gain < 0, -signs, signs)
    # The share is of axes that vary: the others match nothing.
    rows, columns = ((~side.flat).nonzero().flatten() for side in (moments.x, moments.y))
    plan = torch.zeros_like(gain)
    plan[rows[:, None], columns] = transport((gain * signs)[rows[:, None], columns], share)
    flat = len(gain) - len(rows), gain.shape[1] - len(columns)
    return Matched(plan, signs, flat)


def _correlations(moments: Crossed) -> Tensor:
    return moments.x.unit[:, None] * moments.sums * moments.y.unit


def may_be_flat(flat: Tensor, constant: Constant) -> None:
    """Raises DataError for axes that never vary, unless they are to be ignored."""
    if constant == "ignore" or not bool(flat.any()):
        return
    which = flat.nonzero().flatten().tolist()
    some = ", ".join(map(str, which[:5])) + ("…" if len(which) > 5 else "")
    raise DataError(
        f"{len(which)} of {len(flat)} axes are the same on every sample ({some}), so that they "
        'have no scale to compare: leave them out, or give constant="ignore" to match them to '
        "nothing"
    )


def assignment(gain: Float[Tensor, "dim_x dim_y"]) -> tuple[Tensor, Tensor]:
    """Pairs of axes, each axis in at most one, with the largest sum of gains.

    Returns:
        The axes of x and those of y, in order of y where all of y are matched.

    Source: H. W. Kuhn (1955), by `scipy.optimize.linear_sum_assignment`.
    """
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(gain.cpu().double().numpy(), maximize=True)
    rows, columns = torch.as_tensor(rows), torch.as_tensor(columns)
    order = columns.argsort()
    return rows[order], columns[order]


def transport(
    gain: Float[Tensor, "dim_x dim_y"], share: float = 1.0
) -> Float64[Tensor, "dim_x dim_y"]:
    """How much of every axis of x goes to every axis of y, so that the sum of gains is largest.

    Every axis of x gives 1 / dim_x and every axis of y takes 1 / dim_y. For equal numbers it is an
    assignment, else a linear programme, solved exactly.

    Args:
        gain: of every two axes.
        share: how much goes in all; below 1 the axes that fit least stay where they are.

    Source: Khosla and Williams (2024), Soft matching distance; of a share: L. Caffarelli and R.
    McCann (2010), Free boundaries in optimal transport, by a place to which the rest goes.
    """
    rows, columns = gain.shape
    value = gain.detach().cpu().double()
    wide, narrow = max(rows, columns), min(rows, columns)
    if share == 1 and wide % narrow == 0 and (wide == narrow or wide <= _MOST_COPIES):
        # Every axis of the narrower side as often as it is matched.
        copies = wide // rows, wide // columns
        many = value.repeat_interleave(copies[0], 0).repeat_interleave(copies[1], 1)
        left, right = assignment(many)
        plan = torch.zeros(rows, columns, dtype=torch.float64)
        places = left // copies[0], right // copies[1]
        return plan.index_put_(places, torch.tensor(1.0 / wide, dtype=torch.float64))
    size = float(value.abs().max())
    scaled = (value / size if size > 0 else value).numpy()
    # In whole numbers, so that sums of masses are exact.
    given, taken = np.full(rows, float(columns)), np.full(columns, float(rows))
    rest = (1 - share) * rows * columns
    if rest:
        # Never from rest to rest: what goes there could go between two axes instead.
        scaled = np.pad(scaled, (0, 1))
        scaled[-1, -1] = -4.0
        given, taken = np.append(given, rest), np.append(taken, rest)
    plan = _linear_programme(scaled, given, taken)[:rows, :columns]
    return torch.as_tensor(plan / (rows * columns), dtype=torch.float64)


def _linear_programme(gain: np.ndarray, given: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """The best plan, of which every row gives and every column takes so much."""
    worth_it = gain.size >= _WORTH_IMPORT or next(_solved) > _MANY
    if "ot" in sys.modules or (worth_it and importlib.util.find_spec("ot")):
        return _by_network_simplex(gain, given, taken)
    return _by_columns(gain, given, taken)


def _by_network_simplex(gain: np.ndarray, given: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """The same by POT: N. Bonneel et al. (2011), Displacement interpolation, section 4.1."""
    import ot

    plan, told = ot.emd(given, taken, -gain, numItermax=_MOST_STEPS, log=True)
    if told["warning"] is not None:
        raise ValueError(f"the axes could not be matched: {told['warning']}")
    return np.asarray(plan)


def _by_columns(gain: np.ndarray, given: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """The same by scipy.

    The programme is solved over few places, and others are added as long as the prices that belong
    to its solution say that one of them would gain: what is found is the best over all places.
    """
    from scipy.optimize import linprog
    from scipy.sparse import coo_array

    rows, columns = gain.shape
    allowed = _promising(gain, given, taken)
    wanted = np.concatenate([given, taken])
    tight = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
    while True:
        left, right = np.nonzero(allowed)
        count = len(left)
        places = np.concatenate([left, right + rows]), np.tile(np.arange(count), 2)
        sums = coo_array((np.ones(2 * count), places), shape=(rows + columns, count))
        found = linprog(
            -gain[left, right],
            A_eq=sums.tocsc(),
            b_eq=wanted,
            method="highs-ds",
            # Looking for simplifications takes longer than solving it.
            options={"presolve": False, **tight},
        )
        if not found.success:
            raise ValueError(f"the axes could not be matched: {found.message}")
        prices = -found.eqlin.marginals
        better = gain - prices[:rows, None] - prices[rows:] > 1e-9
        if not (better & ~allowed).any():
            plan = np.zeros(gain.shape)
            plan[left, right] = np.clip(found.x, 0, None)
            return plan
        allowed |= better


def _promising(gain: np.ndarray, given: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """[rows, columns], True at places that the best plan may well use, some plan among them."""
    rows, columns = gain.shape
    if gain.size <= _ALL_AT_ONCE:
        return np.ones(gain.shape, dtype=bool)
    own, other = gain.max(1), np.zeros(columns)
    spread = max(float(gain.std()), 1e-12)
    # Prices of a plan that is spread a little, less from round to round (Cuturi 2013).
    for width in np.geomspace(spread, spread / 30, _PRICE_ROUNDS):
        own += width * np.log(np.exp((gain - own[:, None] - other) / width).sum(1) / given)
        over = (gain - own[:, None]) / width
        top = over.max(0)
        other = width * (top + np.log(np.exp(over - top).sum(0) / taken))
    over = gain - own[:, None] - other
    found = np.zeros(gain.shape, dtype=bool)
    for axis, (one, several) in enumerate(((columns, rows), (rows, columns))):
        count = min(several, _PER_PLACE * max(1, -(-several // one)))
        best = np.argpartition(-over, count - 1, axis=axis).take(np.arange(count), axis)
        np.put_along_axis(found, best, True, axis)
    # And one plan that there is in any case: one after the other, from corner to corner.
    ends = np.union1d(np.cumsum(given) - given, np.cumsum(taken) - taken)
    found[
        np.searchsorted(np.cumsum(given), ends, side="right"),
        np.searchsorted(np.cumsum(taken), ends, side="right"),
    ] = True
    return found
