"""Samples that depend on what was seen, not on the order, the batches or the padding it came in."""

import dataclasses
import math
from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

# The increment and the two multipliers of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), as the
# signed 64-bit numbers that torch has. Its integer arithmetic wraps around, as theirs does.
_INCREMENT = 0x9E3779B97F4A7C15 - 2**64
_MULTIPLIERS = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)

# Every NaN hashes alike, whatever its payload.
_NAN_BITS = 0x7FC00000

# The hashes of this many elements are held at a time.
_ELEMENTS_AT_ONCE = 2**20


def priorities(
    example_hash: Int64[Tensor, " batch"],
    positions: Int64[Tensor, "batch positions"],
    *,
    seed: int,
) -> Float64[Tensor, "batch positions"]:
    """Uniform numbers in [0, 1) that depend on the example, the position in it and the seed alone.

    The rows with the smallest priorities are a uniform sample without replacement; the same row has
    the same priority on every device and in every batch, so the sample is the same too.

    Args:
        example_hash: one per example, from `hash_examples`, [batch].
        positions: what tells the rows of one example apart, [batch, positions]: `content_positions`
            where there is padding.
        seed: another seed, another sample.

    Example:
        >>> examples = torch.tensor([[5, 6, 7], [8, 9, 9]])
        >>> p = priorities(hash_examples(examples, None), content_positions(examples > 0), seed=0)
        >>> p.shape, bool(((p >= 0) & (p < 1)).all())
        (torch.Size([2, 3]), True)
    """
    start = _mix(torch.full_like(example_hash, _signed(seed)) + _INCREMENT)
    mixed = _mix(_mix(start ^ example_hash)[:, None] ^ _mix(positions + _INCREMENT))
    return _shifted(mixed, 11).to(torch.float64) * 2.0**-53


def content_positions(mask: Bool[Tensor, "batch positions"]) -> Int64[Tensor, "batch positions"]:
    """The place of every token among the unmasked tokens of its example, from 0, padding aside.

    Example:
        >>> content_positions(torch.tensor([[False, True, True]]))
        tensor([[-1,  0,  1]])
    """
    return mask.to(torch.int64).cumsum(1) - 1


def hash_examples(
    x: Tensor, mask: Bool[Tensor, "batch positions"] | None
) -> Int64[Tensor, " batch"]:
    """A 64-bit hash of every example's content: equal for equal content, whatever surrounds it.

    It does not depend on the batch that an example comes in, on padding on either side, on the
    device, on whether token ids are int32 or int64, nor on the floating type of values that float32
    can hold: floating values are compared as float32, with one NaN and one zero.

    Args:
        x: token ids, embeddings or images, [batch, ...]; with a mask, [batch, positions, ...].
        mask: True where a token counts; only the order of those that count matters. None for all.

    Raises:
        ValueError: `x` has no batch axis, or `mask` does not have the shape of the first two axes.
        TypeError: `x` is complex.

    Example:
        >>> left, right = torch.tensor([[0, 4, 2]]), torch.tensor([[4, 2, 0]])
        >>> torch.equal(hash_examples(left, left > 0), hash_examples(right, right > 0))
        True
        >>> torch.equal(hash_examples(left, None), hash_examples(right, None))
        False
    """
    if x.ndim == 0:
        raise ValueError("expected examples of shape [batch, ...], got a single number")
    if x.is_complex():
        raise TypeError(f"cannot hash examples of type {x.dtype}: pass torch.view_as_real(x)")
    if mask is not None and mask.shape != x.shape[:2]:
        raise ValueError(
            f"the mask has shape {list(mask.shape)} and the examples {list(x.shape)}: "
            "the mask needs one entry for every position"
        )
    batch = x.shape[0]
    positions = x.shape[1] if x.ndim > 1 else 1
    elements = x.detach().reshape(batch, positions, x.shape[2:].numel())
    if mask is None:
        mask = torch.ones(batch, positions, dtype=torch.bool)
    whole = [torch.zeros(0, dtype=torch.int64, device=x.device)]
    at_once = max(1, _ELEMENTS_AT_ONCE // max(1, elements[:1].numel()))
    shares = zip(elements.split(at_once), mask.to(x.device).split(at_once), strict=True)
    for some, counted in shares:
        # Sums wrap around and do not depend on the order of adding; the order of the content is in
        # the key that every element and every token is mixed with.
        tokens = _mix(_bits(some) ^ _keys(some.shape[2], x.device)).sum(2)
        places = content_positions(counted)
        placed = _mix(_mix(tokens) ^ _mix(places + _INCREMENT)).masked_fill(~counted, 0)
        whole.append(_mix(placed.sum(1) ^ _mix(counted.sum(1) + _INCREMENT)))
    return torch.cat(whole)


def join_hashes(hashes: list[Int64[Tensor, " batch"]]) -> Int64[Tensor, " batch"]:
    """One hash of every example of several: of the inputs that a model is given of it.

    Args:
        hashes: each [batch], in an order that is always the same; 0 where one says nothing.

    Example:
        >>> one, other = torch.tensor([5, 5, 6]), torch.tensor([0, 8, 8])
        >>> joined = join_hashes([one, other])
        >>> bool(joined[0] == one[0]), joined.unique().numel()
        (True, 3)
    """
    found = hashes[0]
    for more in hashes[1:]:
        found = torch.where(more == 0, found, _mix(_mix(found) ^ more))
    return found


def numbered_apart(
    example_hash: Int64[Tensor, " batch"], numbers: Int64[Tensor, " batch"]
) -> Int64[Tensor, " batch"]:
    """Hashes that differ for examples of equal content, by how many there were before of each.

    Args:
        example_hash: of every example, [batch].
        numbers: how many examples of equal content came before it, [batch]; those of which none
            did keep their hash.
    """
    return torch.where(numbers == 0, example_hash, _mix(example_hash ^ _mix(numbers)))


class Occurrences:
    """How often every example has come so far, in 16 bytes for each that differs from the others.

    Equal examples have equal rows, so it makes no difference which of them is called the first:
    what is kept does not depend on their order.

    Example:
        >>> seen, examples = Occurrences(), torch.tensor([7, 5, 7])
        >>> seen.before(examples)
        tensor([0, 0, 1])
        >>> seen.add(examples)
        >>> seen.before(torch.tensor([7, 8]))
        tensor([2, 0])
    """

    def __init__(self) -> None:
        # Sorted tables, each at least twice as long as the next, so that few are searched.
        self._tables: list[tuple[Tensor, Tensor]] = []

    def before(self, example_hash: Int64[Tensor, " batch"]) -> Int64[Tensor, " batch"]:
        """How many equal examples came before each of these, those among these themselves too."""
        hashes = example_hash.cpu()
        values, inverse, counts = hashes.unique(return_inverse=True, return_counts=True)
        before = torch.zeros_like(values)
        for known, numbers in self._tables:
            place = torch.searchsorted(known, values).clamp(max=len(known) - 1)
            before += torch.where(known[place] == values, numbers[place], 0)
        order = inverse.argsort(stable=True)
        starts = counts.cumsum(0) - counts
        within = torch.empty_like(hashes)
        within[order] = torch.arange(len(hashes)) - starts.repeat_interleave(counts)
        return before[inverse] + within

    def add(self, example_hash: Int64[Tensor, " batch"]) -> None:
        """Counts these examples."""
        self._tables.append(example_hash.cpu().unique(return_counts=True))
        while len(self._tables) > 1 and len(self._tables[-2][0]) < 2 * len(self._tables[-1][0]):
            (a, m), (b, n) = self._tables.pop(), self._tables.pop()
            both, place = torch.cat([a, b]).unique(return_inverse=True)
            self._tables.append(
                (both, torch.zeros_like(both).index_add(0, place, torch.cat([m, n])))
            )


@dataclasses.dataclass(frozen=True, eq=False)
class Reservoir:
    """The rows with the smallest priorities of everything seen, by rising priority.

    Where priorities are independent of the values, that is a uniform sample without replacement.
    `a + b` is the reservoir of both streams together: any split and any order give the same rows.
    What is kept is copied, so the activations it came from can be freed.

    Source: the bottom-k sample; E. Cohen and H. Kaplan, PODC 2007.

    Example:
        >>> p = torch.tensor([0.9, 0.1, 0.5], dtype=torch.float64)
        >>> x = torch.tensor([[1.0], [2.0], [3.0]])
        >>> kept = Reservoir.of(p, {"x": x}, capacity=2)
        >>> kept.rows["x"].squeeze(1), kept.seen, kept.threshold
        (tensor([2., 3.]), 3, 0.5)
    """

    capacity: int
    """At most this many rows are kept."""
    seen: int
    """Rows offered so far."""
    priorities: Float64[Tensor, " samples"]
    """Rising; min(capacity, seen) of them."""
    rows: Mapping[str, Tensor]
    """What belongs to each kept row, by name, each [samples, ...]; empty before the first rows."""

    @staticmethod
    def empty(capacity: int) -> "Reservoir":
        """A reservoir of nothing: the neutral element of `+`.

        Raises:
            ValueError: `capacity` is below 1.
        """
        if capacity < 1:
            raise ValueError(f"a reservoir keeps at least one row, got capacity {capacity}")
        return Reservoir(capacity, 0, torch.zeros(0, dtype=torch.float64), {})

    @staticmethod
    def of(
        priorities: Float64[Tensor, " samples"], rows: Mapping[str, Tensor], *, capacity: int
    ) -> "Reservoir":
        """The reservoir of one batch.

        Args:
            priorities: one per row, [samples]; smaller stays longer.
            rows: tensors with one row per priority, by name, each [samples, ...].
            capacity: at most this many rows are kept.

        Raises:
            ValueError: a tensor does not have one row per priority, a priority is NaN, or
                `capacity` is below 1.
        """
        return Reservoir.empty(capacity).offer(priorities, rows)

    def offer(
        self, priorities: Float64[Tensor, " samples"], rows: Mapping[str, Tensor]
    ) -> "Reservoir":
        """`self` plus the reservoir of these rows; those that cannot enter any more are not copied.

        Args:
            priorities: one per row, [samples].
            rows: tensors with one row per priority, by name, each [samples, ...].

        Raises:
            ValueError: a tensor does not have one row per priority, a priority is NaN, or the names
                are not those of the rows already kept.
        """
        samples = priorities.shape[0]
        for name, values in rows.items():
            if values.ndim == 0 or values.shape[0] != samples:
                raise ValueError(
                    f"{name!r} has shape {list(values.shape)} for {samples} priorities: "
                    "pass one row per priority"
                )
        if bool(priorities.isnan().any()):
            raise ValueError("a priority is NaN: pass priorities in [0, 1), one per row")
        kept = (priorities <= self.threshold).nonzero().squeeze(1)
        kept = kept[priorities[kept].sort(stable=True).indices[: self.capacity]]
        batch = Reservoir(
            capacity=self.capacity,
            seen=samples,
            priorities=priorities[kept],
            # index_select copies, also where every row stays.
            rows={name: _take(values.detach(), kept) for name, values in rows.items()},
        )
        return self + batch

    def __add__(self, other: "Reservoir") -> "Reservoir":
        """The reservoir of both streams together.

        Raises:
            ValueError: the capacities or the names of the rows differ.
        """
        if self.capacity != other.capacity:
            raise ValueError(
                f"reservoirs of capacity {self.capacity} and {other.capacity} cannot be added: "
                "give both the same capacity"
            )
        seen = self.seen + other.seen
        if other.seen == 0:
            return self
        if self.seen == 0:
            return other
        if self.rows.keys() != other.rows.keys():
            raise ValueError(
                f"reservoirs of {sorted(self.rows)} and of {sorted(other.rows)} cannot be added: "
                "keep the same tensors in both"
            )
        if other.priorities.numel() == 0:
            return dataclasses.replace(self, seen=seen)
        both = torch.cat([self.priorities, other.priorities.to(self.priorities.device)])
        both, order = both.sort(stable=True)
        order = order[: self.capacity]
        return Reservoir(
            capacity=self.capacity,
            seen=seen,
            priorities=both[: self.capacity].clone(),
            rows={
                name: _take(torch.cat([values, other.rows[name].to(values.device)]), order)
                for name, values in self.rows.items()
            },
        )

    @property
    def threshold(self) -> float:
        """A row with a larger priority than this cannot enter any more; inf until full."""
        full = self.priorities.shape[0] == self.capacity
        return self.priorities[-1].item() if full else math.inf


def _take(values: Tensor, index: Tensor) -> Tensor:
    return values.index_select(0, index.to(values.device))


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Logical shift to the right; torch's own drags the sign along."""
    return (x >> bits) & (2 ** (64 - bits) - 1)


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser: a bijection of 64-bit integers that scatters every bit."""
    x = (x ^ _shifted(x, 30)) * _MULTIPLIERS[0]
    x = (x ^ _shifted(x, 27)) * _MULTIPLIERS[1]
    return x ^ _shifted(x, 31)


def _keys(count: int, device: torch.device) -> Tensor:
    """The first numbers of a SplitMix64 stream: one key per place."""
    return _mix(torch.arange(1, count + 1, device=device) * _INCREMENT)


def _signed(seed: int) -> int:
    return (seed + 2**63) % 2**64 - 2**63


def _bits(x: Tensor) -> Tensor:
    """What is hashed of a value: the integer itself, or the bits of the float32."""
    if not x.is_floating_point():
        return x.to(torch.int64)
    # Adding 0 turns -0 into 0.
    values = x.to(torch.float32) + 0.0
    bits = values.contiguous().view(torch.int32).to(torch.int64)
    return bits.masked_fill(values.isnan(), _NAN_BITS)
