"""The contexts that activate a direction most, for axes and for directions of the null alike."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor, nn

from basis_probe.adapters.batches import Batch
from basis_probe.adapters.capture import catching
from basis_probe.adapters.models import device_of, prepared, recognise
from basis_probe.algebra.haar import haar
from basis_probe.architecture import watched
from basis_probe.concepts.contexts import Context, Examples, TopContexts
from basis_probe.concepts.dissect import remembering
from basis_probe.concepts.labels import Concepts, Sources, rows_of
from basis_probe.concepts.tokens import pieces
from basis_probe.errors import DataError, SiteError
from basis_probe.probe import batches_of
from basis_probe.sites import asked
from basis_probe.stream import rows_last

WIDTH = 12
"""A context has so many tokens on each side of the one that activates."""


_PLACES = 2**32
"""A sample's key is its example times this, plus its position."""


@dataclasses.dataclass(frozen=True, eq=False)
class Top:
    """The `size` most active samples of every direction, so far; `a + b` is that of both streams.

    Equal values are ordered by their key, so that no order of the data changes what is kept.

    Attributes:
        size: how many are kept.
        values: [size or fewer, directions], falling.
        keys: which samples they are, [size or fewer, directions].
    """

    size: int
    values: Float64[Tensor, "kept directions"]
    keys: Int64[Tensor, "kept directions"]

    @staticmethod
    def empty(size: int, directions: int) -> "Top":
        """Of nothing: the neutral element of `+`."""
        return Top(
            size,
            torch.zeros(0, directions, dtype=torch.float64),
            torch.zeros(0, directions, dtype=torch.int64),
        )

    @staticmethod
    def of(
        values: Float[Tensor, "samples directions"], keys: Int64[Tensor, " samples"], size: int
    ) -> "Top":
        """Of some samples."""
        none = Top.empty(size, values.shape[1])
        return none._with(values.double(), keys[:, None].expand(values.shape))

    def __add__(self, other: "Top") -> "Top":
        return self._with(other.values, other.keys)

    def _with(self, values: Tensor, keys: Tensor) -> "Top":
        values, keys = torch.cat([self.values, values]), torch.cat([self.keys, keys])
        # Sorted by key first: the sort by value that follows keeps the order of equals.
        order = keys.argsort(dim=0, stable=True)
        values, keys = values.gather(0, order), keys.gather(0, order)
        order = values.argsort(dim=0, descending=True, stable=True)[: self.size]
        return Top(self.size, values.gather(0, order), keys.gather(0, order))


def top_examples(
    model: nn.Module,
    data: Iterable[Any],
    *,
    site: str,
    concepts: Concepts | None = None,
    axes: Sequence[int] | int = 16,
    rotated: int = 16,
    size: int = 10,
    tokenizer: Any = None,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> Examples:
    """The contexts that activate some axes most, and as many directions of a rotation.

    The data are streamed: of every direction the `size` most active samples are kept with the
    tokens around them. Where axes are active on either side, both senses are kept, of rotated
    directions too.

    Args:
        model: as for `probe`.
        data: as for `probe`; token ids or strings.
        site: a name.
        concepts: as for `dissect`; gives the purity of concepts. None for none.
        axes: which axes, or how many to draw at random.
        rotated: how many directions of a Haar rotation.
        size: contexts for each direction.
        tokenizer: what tokens are called; None for the model's own. Without one, tokens are shown
            as their ids.
        seed: draws the axes and the rotation.
        device: as for `probe`.

    Raises:
        SiteError, DataError: as `probe`.
        ValueError: for axes that the site does not have, or nothing to keep.
    """
    if size < 1 or rotated < 0:
        raise ValueError(f"size={size}, rotated={rotated}: keep at least one context")
    subject = recognise(model)
    sources = None if concepts is None else Sources(concepts)
    with prepared(subject.model, None if device is None else device_of(device)), torch.no_grad():
        raws: list[object] = []
        batches = batches_of(remembering(data, raws), subject)
        first = next(batches, None)
        if first is None:
            raise DataError("the data hold no batch: give at least one")
        facts = watched(subject, first)
        chosen = asked(site, facts.sites, silent=subject.silent())
        if len(chosen) > 1:
            raise SiteError(f"{site!r} stands for {len(chosen)} sites: ask for one at a time")
        place = next(iter(chosen.values()))
        dim = int(np.prod(facts.shape(place)))
        wanted, turn = _directions(axes, rotated, dim, seed)
        layout = facts.layout(place)
        kept = _Kept(size, turn, _reader(tokenizer or getattr(subject.model, "tokenizer", None)))
        batch: Batch | None = first
        while batch is not None:
            raw = raws.pop(0)
            labels = {} if sources is None else sources.of(raw, batch.inputs, batch.mask)
            caught: list[Tensor] = []
            with catching(subject.model, {place.address: caught.append}):
                subject.call(batch)
            if caught:
                kept.take(rows_last(caught[0], layout), batch, labels)
            batch = next(batches, None)
        if sources is not None:
            sources.finish()
    sides = (1,) if kept.one_sided(len(wanted)) else (1, -1)
    return Examples(
        site=place.name,
        axes=tuple(
            kept.found(at, sign, f"axis {axis}", axis)
            for at, axis in enumerate(wanted)
            for sign in sides
        ),
        rotated=tuple(
            kept.found(len(wanted) + at, sign, f"rotated direction {at}", None)
            for at in range(rotated)
            for sign in sides
        ),
    )


def _directions(
    axes: Sequence[int] | int, rotated: int, dim: int, seed: int
) -> tuple[list[int], Float64[Tensor, "dim directions"]]:
    generator = torch.Generator().manual_seed(seed)
    if isinstance(axes, int):
        count = min(axes, dim)
        wanted = torch.randperm(dim, generator=generator)[:count].sort().values.tolist()
    else:
        wanted = [int(axis) for axis in axes]
    if not wanted or any(not 0 <= axis < dim for axis in wanted):
        raise ValueError(f"axes={axes}: the site has axes 0 to {dim - 1}; name at least one")
    turn = haar(dim, generator)[:, : min(rotated, dim)]
    return wanted, torch.cat([torch.eye(dim, dtype=torch.float64)[:, wanted], turn], 1)


def _reader(tokenizer: Any) -> Callable[[int], str]:
    """What a reader sees of a token id, the space in front included."""
    if tokenizer is None or not hasattr(tokenizer, "convert_ids_to_tokens"):
        return lambda token: f" {token}"
    known = pieces(tokenizer)
    marked = any(not piece.starts for piece in known)
    return lambda token: (
        f"{' ' if known[token].starts or not marked else ''}{known[token].text}"
        if 0 <= token < len(known)
        else f" {token}"
    )


class _Kept:
    """The most active samples of every direction in both senses, with what stands around them.

    Args:
        size: how many of each.
        directions: [dim, directions].
        reader: token id -> text.
    """

    def __init__(self, size: int, directions: Tensor, reader: Callable[[int], str]) -> None:
        self.size, self.directions, self.reader = size, directions, reader
        count = directions.shape[1]
        self.tops = {sign: Top.empty(size, count) for sign in (1, -1)}
        self.around: dict[tuple[int, int], tuple[list[int], list[float], int]] = {}
        self.carried: dict[int, frozenset[str]] = {}
        self.seen = 0

    def take(self, x: Tensor, batch: Batch, labels: Mapping[str, Tensor]) -> None:
        """Adds a batch.

        Args:
            x: its activations, [batch, positions, dim] or [batch, dim].
            batch: the batch.
            labels: of its tokens, by concept.
        """
        read = x.flatten(1, -2) if x.ndim > 2 else x[:, None]
        read = read.cpu().double() @ self.directions
        examples, positions, count = read.shape
        counts = torch.ones(examples, positions, dtype=torch.bool)
        if batch.mask is not None and batch.mask.shape == counts.shape:
            counts = batch.mask.cpu()
        keys = (self.seen + torch.arange(examples))[:, None] * _PLACES + torch.arange(positions)
        flat, some = read.reshape(-1, count)[counts.flatten()], keys[counts]
        for sign in self.tops:
            self.tops[sign] += Top.of(sign * flat, some, self.size)
        ids = batch.inputs.cpu()
        tokens = ids if ids.ndim == 2 and not ids.is_floating_point() else None
        if tokens is not None and tokens.shape[1] != positions:
            tokens = None
        flags = {
            name: rows_of(name, values, (examples, positions)).reshape(examples, positions)
            for name, values in labels.items()
        }
        kept: set[tuple[int, int]] = set()
        for top in self.tops.values():
            for direction in range(count):
                for key in top.keys[:, direction].tolist():
                    kept.add((direction, key))
                    example, position = key // _PLACES - self.seen, key % _PLACES
                    if example < 0 or (direction, key) in self.around:
                        continue
                    inside = torch.nonzero(counts[example]).flatten().tolist()
                    at = inside.index(position)
                    window = inside[max(0, at - WIDTH) : at + WIDTH + 1]
                    self.around[direction, key] = (
                        [int(tokens[example, p]) if tokens is not None else p for p in window],
                        [float(read[example, p, direction]) for p in window],
                        window.index(position),
                    )
                    self.carried[key] = frozenset(
                        name for name, values in flags.items() if bool(values[example, position])
                    )
        self.around = {key: value for key, value in self.around.items() if key in kept}
        needed = {key for _, key in kept}
        self.carried = {key: value for key, value in self.carried.items() if key in needed}
        self.seen += examples

    def one_sided(self, axes: int) -> bool:
        """True if the axes hardly leave zero on their negative side."""
        high, low = (self.tops[sign].values[:1, :axes] for sign in (1, -1))
        return bool(high.numel()) and float((low < 0.25 * high).double().mean()) > 0.5

    def found(self, direction: int, sign: int, label: str, axis: int | None) -> TopContexts:
        """The contexts of one direction in one sense."""
        contexts: list[Context] = []
        tokens: Counter[int] = Counter()
        concepts: Counter[str] = Counter()
        for key in self.tops[sign].keys[:, direction].tolist():
            ids, activations, at = self.around[direction, key]
            tokens[ids[at]] += 1
            concepts.update(self.carried[key])
            contexts.append(
                Context(
                    tokens=tuple(self.reader(token) for token in ids),
                    activations=tuple(sign * value for value in activations),
                    at=at,
                    example=key // _PLACES,
                    position=key % _PLACES,
                )
            )
        scores: dict[str, float] = {}
        concept = ""
        if contexts:
            scores["token purity"] = tokens.most_common(1)[0][1] / len(contexts)
        if concepts:
            # Of equally common ones the first by name.
            concept = min(concepts, key=lambda name: (-concepts[name], name))
            scores["concept purity"] = concepts[concept] / len(contexts)
        label = label if sign > 0 else f"{label}, negative"
        return TopContexts(label, axis, sign, tuple(contexts), scores, concept)
