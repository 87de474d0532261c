"""Which diagonal matrices the streams of a family admit together."""

import enum
from collections.abc import Iterable

import torch
from torch import Tensor


class Scales(enum.Enum):
    """Which diagonal matrices a stream of a family admits; the value orders them."""

    ANY = 3
    POSITIVE = 2
    SIGNS = 1
    ONE = 0

    def meet(self, other: "Scales") -> "Scales":
        """The diagonal matrices that both admit."""
        if {self, other} == {Scales.POSITIVE, Scales.SIGNS}:
            return Scales.ONE
        return self if self.value <= other.value else other


class Relations:
    """Which diagonal matrices the streams of a family admit together.

    A feature of stream s is multiplied by (-1)^b exp(r), with one sign bit b and one size r for
    each stream. What lies between streams makes linear relations among the sizes, and others among
    the bits; a stream is free in what is not zero in every solution.
    """

    def __init__(self, streams: frozenset[int]) -> None:
        self.place = {stream: column for column, stream in enumerate(sorted(streams))}
        self.sizes: list[Tensor] = []
        self.bits: list[int] = []
        self._solutions: Tensor | None = None
        self._scales: dict[int, Scales] | None = None

    def add(self, factors: dict[int, float], *, scales: bool = True, signs: bool = True) -> None:
        """The sum of factor times size over the streams is zero, and so is that of the bits."""
        self._solutions = self._scales = None
        known = {self.place[s]: factor for s, factor in factors.items() if s in self.place}
        if scales:
            row = torch.zeros(len(self.place), dtype=torch.float64)
            for column, factor in known.items():
                row[column] = factor
            self.sizes.append(row)
        if signs:
            self.bits.append(sum(1 << column for column, f in known.items() if round(f) % 2))

    def _directions(self) -> Tensor:
        """[solutions, streams], an orthonormal basis of the sizes that satisfy all relations."""
        if self._solutions is not None:
            return self._solutions
        rows = torch.stack([*self.sizes, torch.zeros(len(self.place), dtype=torch.float64)])
        if len(rows) > rows.shape[1]:
            rows = torch.linalg.qr(rows, mode="r")[1]
        _, values, directions = torch.linalg.svd(rows, full_matrices=True)
        rank = int((values > 1e-9 * max(1.0, float(values.max()))).sum())
        self._solutions = found = directions[rank:]
        return found

    def solved(self) -> dict[int, Scales]:
        """The diagonal matrices that each stream admits."""
        if self._scales is None:
            self._scales = self._solved()
        return self._scales

    def _solved(self) -> dict[int, Scales]:
        found = self._directions()
        free = found.abs().amax(0) > 1e-9 if len(found) else None
        flips = _free_bits(self.bits, len(self.place))
        named = {
            (True, True): Scales.ANY,
            (True, False): Scales.POSITIVE,
            (False, True): Scales.SIGNS,
            (False, False): Scales.ONE,
        }
        return {
            stream: named[free is not None and bool(free[column]), bool(flips >> column & 1)]
            for stream, column in self.place.items()
        }

    def following(self, stream: int, still: Iterable[int] = ()) -> dict[int, tuple[float, int]]:
        """What every stream does when one is rescaled: its power of the factor, and its sign bit.

        Of all solutions the one with the smallest powers. A stream that cannot be rescaled, or
        reversed, makes the others do nothing.

        Args:
            stream: the one that is rescaled.
            still: streams that are not.
        """
        column = self.place[stream]
        kept = [self.place[other] for other in still]
        found = self._directions()
        if kept and len(found):
            # Of the solutions those in which the others have no size.
            _, values, rows = torch.linalg.svd(found[:, kept].T, full_matrices=True)
            found = rows[int((values > 1e-9).sum()) :] @ found
        sizes = torch.zeros(len(self.place), dtype=torch.float64)
        if len(found) and float(found[:, column].norm()) > 1e-9:
            sizes = found.T @ found[:, column] / found[:, column].square().sum()
        bits = _solution([*self.bits, *(1 << place for place in kept)], column, len(self.place))
        return {
            other: (float(sizes[place]), bits >> place & 1) for other, place in self.place.items()
        }


def sum_of(first: dict[int, float], second: dict[int, float]) -> dict[int, float]:
    """Factors by stream, added."""
    return {key: first.get(key, 0.0) + second.get(key, 0.0) for key in {**first, **second}}


def _free_bits(rows: list[int], count: int) -> int:
    """The bits that are not zero in every solution of the equations modulo 2, one a row."""
    pivots: dict[int, int] = {}  # leading bit -> row, every other row without that bit
    for row in rows:
        for bit, known in pivots.items():
            if row >> bit & 1:
                row ^= known
        if row:
            lead = row.bit_length() - 1
            pivots = {b: r ^ row if r >> lead & 1 else r for b, r in pivots.items()} | {lead: row}
    free = sum(1 << bit for bit in range(count) if bit not in pivots)
    # A leading bit is free if its row holds a bit that is.
    return free | sum(1 << bit for bit, row in pivots.items() if row & free)


def _solution(rows: list[int], column: int, count: int) -> int:
    """Bits that satisfy the equations modulo 2, with one given bit set; 0 if there are none."""
    one = 1 << count  # the right-hand side, as a bit of its own
    pivots: dict[int, int] = {}
    for row in (*rows, 1 << column | one):
        for bit, known in pivots.items():
            if row >> bit & 1:
                row ^= known
        if row == one:
            return 0
        if row:
            lead = (row & ~one).bit_length() - 1
            pivots = {b: r ^ row if r >> lead & 1 else r for b, r in pivots.items()} | {lead: row}
    return sum(1 << bit for bit, row in pivots.items() if row & one)
