"""The contexts that activate a direction most, for axes and for directions of the null alike."""

import dataclasses
import functools
import itertools
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor, nn

from basis_probe.algebra.haar import haar_directions
from basis_probe.arguments import flag, function, instance, seed_of, several, whole
from basis_probe.brief import described
from basis_probe.concepts.dissect import remembering
from basis_probe.concepts.labels import Concepts, Sources, rows_of
from basis_probe.concepts.patches import Fields, fields
from basis_probe.concepts.thumbnails import Thumbnails, encoded
from basis_probe.concepts.tokens import pieces
from basis_probe.devices import on_own_device
from basis_probe.errors import DataError, SiteError
from basis_probe.interrupts import guarded, hold, stoppable, unstoppable
from basis_probe.model.batches import Batch
from basis_probe.model.capture import Catcher, catching
from basis_probe.model.facts import Facts, facts_of
from basis_probe.model.network import Subject, device_of, prepared, recognise
from basis_probe.model.places import Address, Site
from basis_probe.model.sites import asked
from basis_probe.results.evidence import Tail
from basis_probe.results.examples import Context, Examples, TopContexts
from basis_probe.results.report import Report, SiteReport
from basis_probe.run.read import batches_of, count_of, progressing
from basis_probe.run.stream import rows_last

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


@on_own_device
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
    progress: bool = True,
) -> Examples:
    """The contexts that activate some axes most, and as many directions of a rotation.

    The data are streamed: of every direction the `size` most active samples are kept with the
    tokens around them. Where axes are active on either side, both senses are kept, of rotated
    directions too. At the maps of an image network every context has the box of the image that it
    sees, and a small picture of that; `Context.crop` cuts it out of the images.

    Ctrl-C after a batch gives the examples of the batches before it, with a warning that says so.

    Args:
        model: as for `probe`.
        data: as for `probe`; token ids, strings or images.
        site: a name.
        concepts: as for `dissect`; gives the purity of concepts. None for none.
        axes: which axes, or how many to draw at random.
        rotated: how many directions of a Haar rotation.
        size: contexts for each direction.
        tokenizer: what tokens are called; None for the model's own. Without one, tokens are shown
            as their ids.
        seed: draws the axes and the rotation.
        device: as for `probe`.
        progress: whether to show a progress bar.

    Raises:
        SiteError, DataError: as `probe`.
        ValueError: for axes that the site does not have, or nothing to keep.
    """
    instance("site", site, str, "the name of one site, such as 'blocks.0.mlp'")
    size, rotated = whole("size", size, least=1, most=10_000), whole("rotated", rotated)
    seed, progress = seed_of(seed), bool(flag("progress", progress))
    if isinstance(axes, Iterable):
        axes = [whole("axes", axis) for axis in several("axes", axes, "numbers of axes")]
    else:
        axes = whole("axes", axes)
    _require_tokenizer(tokenizer)
    subject = recognise(model, tokenizer if callable(tokenizer) else None)
    sources = None if concepts is None else Sources(concepts)
    target = None if device is None else device_of(device)
    with guarded(), prepared(subject.model, target), torch.no_grad():
        raws: list[object] = []
        batches = batches_of(remembering(data, raws), subject)
        first = next(batches, None)
        if first is None:
            raise DataError("the data hold no batch: give at least one")
        facts = facts_of(subject, first)
        chosen = asked(site, facts.sites, silent=subject.silent())
        if len(chosen) > 1:
            raise SiteError(f"{site!r} stands for {len(chosen)} sites: ask for one at a time")
        place = next(iter(chosen.values()))
        wanted, turn = _directions(axes, rotated, int(np.prod(facts.shape(place))), seed)
        kept = _Kept(size, turn, _reader(tokenizer or subject.own_tokenizer))
        kept.thumbnails = Thumbnails.of(first.inputs)
        kept.fields = fields(subject, [place.address], first)[0]
        passing = progressing(
            itertools.chain([first], batches),
            "collecting examples",
            total=count_of(data),
            progress=progress,
        )
        done = 0
        try:
            for batch in passing:
                raw = raws.pop(0)
                with stoppable():
                    labels = {} if sources is None else sources.of(raw, batch.inputs, batch.mask)
                _read(subject, facts, batch, [(place, kept)], labels)
                done += 1
            if sources is not None:
                sources.finish()
        except KeyboardInterrupt:
            if not done:
                raise
            said = f"It was interrupted after {done} batches, which the examples are of."
            warnings.warn(said, stacklevel=2)
        return kept.examples(place.name, wanted)


@on_own_device
def with_examples(
    report: Report,
    model: nn.Module,
    data: Iterable[Any],
    *,
    axes: int = 5,
    size: int = 5,
    tokenizer: Any = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> Report:
    """The report, with the contexts that activate the axes that stand out most at every site.

    Beside them, as many directions of a random rotation of the same activations. The data pass
    through the model once more, for all sites together. No verdict rests on the examples: they are
    for the eye. A site at which no axis has a score of its own gets none.

    Args:
        report: what was found, by `probe`, `attach` or from a file.
        model: the model that it is about.
        data: as for `probe`: the same data, or others.
        axes: how many axes at each site, those with the highest leading score first.
        size: contexts for each direction.
        tokenizer: what tokens are called; None for the model's own. Without one, tokens are shown
            as their ids.
        seed: draws the rotations.
        device: as for `probe`.
        progress: whether to show a progress bar.

    Raises:
        SiteError: if the model has no such sites.
        DataError: if there is no batch, or one cannot be used.
        ValueError: for no axes or no contexts.

    Example:
        >>> import torch, basis_probe as bp
        >>> _ = torch.manual_seed(0)
        >>> layers = torch.nn.Embedding(9, 8), torch.nn.Linear(8, 6), torch.nn.ReLU()
        >>> model = torch.nn.Sequential(*layers)
        >>> ids = torch.randint(0, 9, (40, 12), generator=torch.Generator().manual_seed(0))
        >>> report = bp.probe(model, [ids], sites="2", progress=False)
        >>> report = bp.with_examples(report, model, [ids], axes=2, size=3, progress=False)
        >>> found = report["2"].examples
        >>> len(found.axes), len(found.rotated), len(found.axes[0].contexts)
        (2, 2, 3)
    """
    seed, progress = seed_of(seed), bool(flag("progress", progress))
    _require_tokenizer(tokenizer)
    subject = recognise(model, tokenizer if callable(tokenizer) else None)
    with prepared(subject.model, None if device is None else device_of(device)):
        return illustrated(
            report,
            subject,
            batches_of(data, subject),
            axes=axes,
            size=size,
            tokenizer=tokenizer,
            seed=seed,
            count=count_of(data),
            progress=progress,
        )


@torch.no_grad()
def illustrated(
    report: Report,
    subject: Subject,
    batches: Iterator[Batch],
    *,
    axes: int,
    size: int,
    tokenizer: Any = None,
    seed: int,
    count: int | None,
    progress: bool,
) -> Report:
    """What `with_examples` returns, for a model in evaluation mode and batches of it."""
    instance("report", report, Report, "what `probe` returned")
    axes, size = whole("axes", axes, least=1), whole("size", size, least=1, most=10_000)
    first = next(batches, None)
    if first is None:
        raise DataError("the data hold no batch: give at least one")
    facts = facts_of(subject, first)
    picked = {site.site: standing_out(site, axes) for site in report}
    named = [name for name, (wanted, _) in picked.items() if wanted]
    if not named:
        return report
    places = asked(named, facts.sites, silent=subject.silent())
    reader = _reader(tokenizer or subject.own_tokenizer)
    kept: dict[str, _Kept] = {}
    for name in named:
        wanted, _ = picked[name]
        dim = int(np.prod(facts.shape(places[name])))
        kept[name] = _Kept(size, _directions(wanted, len(wanted), dim, seed)[1], reader)
    maps = fields(subject, [places[name].address for name in named], first)
    for name, found in zip(named, maps, strict=True):
        kept[name].fields, kept[name].thumbnails = found, Thumbnails.of(first.inputs)
    seen = [0, 0]
    pairs = [(places[name], one) for name, one in kept.items()]
    passing = progressing(
        itertools.chain([first], batches), "collecting examples", total=count, progress=progress
    )
    for batch in passing:
        _read(subject, facts, batch, pairs, {})
        seen = [seen[0] + 1, seen[1] + batch.size]
    sites = [
        dataclasses.replace(
            site,
            examples=dataclasses.replace(
                kept[site.site].examples(site.site, picked[site.site][0]),
                chosen=picked[site.site][1],
            ),
        )
        if site.site in kept
        else site
        for site in report
    ]
    said = (
        f"{size} contexts of each of the {axes} axes that stand out most and of as many directions "
        f"of a rotation (seed {seed}), from {seen[1]} examples in {seen[0]} batches"
    )
    settings = {**report.provenance.settings, "examples": said}
    provenance = dataclasses.replace(report.provenance, settings=settings)
    return dataclasses.replace(report, site_reports=tuple(sites), provenance=provenance)


def standing_out(site: SiteReport, most: int) -> tuple[tuple[int, ...], str]:
    """The axes that stand out most at a site, and in which score; none where no axis has one."""
    from basis_probe.show.selection import of_axes, top_axes

    score = of_axes(site)
    # One axis cannot stand out, and is its own rotation.
    if score is None or site.dim < 2:
        return (), ""
    compared = int(np.isfinite(score.per_direction).sum())
    among = f"of the {compared} axes that have one" if compared < site.dim else "of all axes"
    furthest = "the furthest from the middle" if score.tail is Tail.TWO_SIDED else "the highest"
    chosen = f"by {score.name.replace('_', ' ')}, {furthest} {among}"
    return tuple(axis.index for axis in top_axes(score, site.shape, most)), chosen


def _read(
    subject: Subject,
    facts: Facts,
    batch: Batch,
    pairs: Sequence[tuple[Site, "_Kept"]],
    labels: Mapping[str, Tensor],
) -> None:
    """Runs the model on a batch, and adds what every place showed to what is kept of it."""
    caught: dict[int, Tensor] = {}
    catchers: dict[Address, list[Catcher]] = {}
    for number, (place, kept) in enumerate(pairs):

        def read(
            tensor: Tensor, number: int = number, place: Site = place, kept: _Kept = kept
        ) -> None:
            # Read at once: later in-place operations may change what stands there.
            rows = rows_last(tensor.detach(), facts.layout(place)).cpu().double()
            caught[number] = rows @ kept.directions

        catchers.setdefault(place.address, []).append(read)

    def hand(several: list[Catcher], tensor: Tensor) -> None:
        for catcher in several:
            catcher(tensor)

    wanted = {address: functools.partial(hand, several) for address, several in catchers.items()}
    with catching(subject.model, wanted), stoppable():
        subject.call(batch)
    with unstoppable():
        for number, (_, kept) in enumerate(pairs):
            if number in caught:
                kept.take(caught[number], batch, labels)
            else:
                kept.seen += batch.size
        hold()


def _require_tokenizer(tokenizer: Any) -> None:
    """Raises TypeError for what neither makes tokens nor names them."""
    if tokenizer is not None and not hasattr(tokenizer, "convert_ids_to_tokens"):
        function("tokenizer", tokenizer, "a tokenizer, or None")


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
        raise ValueError(
            f"axes={described(axes)}: the site has axes 0 to {dim - 1}; name at least one"
        )
    straight = torch.zeros(dim, len(wanted), dtype=torch.float64)
    straight[wanted, range(len(wanted))] = 1.0
    if not rotated:
        return wanted, straight
    return wanted, torch.cat([straight, haar_directions(dim, min(rotated, dim), generator)], 1)


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
        self.places: tuple[int, ...] = ()
        self.fields: Fields | None = None
        self.thumbnails: Thumbnails | None = None
        self.pictures: dict[int, Tensor] = {}
        self.text = False

    def take(self, along: Tensor, batch: Batch, labels: Mapping[str, Tensor]) -> None:
        """Adds a batch.

        Args:
            along: its activations along the directions, [batch, positions ..., directions] or
                [batch, directions].
            batch: the batch.
            labels: of its tokens, by concept.
        """
        read = along.flatten(1, -2) if along.ndim > 2 else along[:, None]
        self.places = tuple(along.shape[1:-1])
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
        self.text = tokens is not None
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
                    # What stands beside a pixel is not read from left to right.
                    width = WIDTH if self.text else 0
                    window = inside[max(0, at - width) : at + width + 1]
                    self.around[direction, key] = (
                        [int(tokens[example, p]) if tokens is not None else p for p in window],
                        [float(read[example, p, direction]) for p in window],
                        window.index(position),
                    )
                    self.carried[key] = frozenset(
                        name for name, values in flags.items() if bool(values[example, position])
                    )
                    if self.fields is not None and self.thumbnails is not None:
                        self.pictures[key] = self.thumbnails.picture(
                            batch.inputs[example], self.fields.box(position)
                        )
        self.around = {key: value for key, value in self.around.items() if key in kept}
        needed = {key for _, key in kept}
        self.carried = {key: value for key, value in self.carried.items() if key in needed}
        self.pictures = {key: value for key, value in self.pictures.items() if key in needed}
        self.seen += examples

    def one_sided(self, axes: int) -> bool:
        """True if the axes hardly leave zero on their negative side."""
        high, low = (self.tops[sign].values[:1, :axes] for sign in (1, -1))
        return bool(high.numel()) and float((low < 0.25 * high).double().mean()) > 0.5

    def examples(self, site: str, axes: Sequence[int]) -> Examples:
        """The contexts of all directions, of which the first are the axes."""
        sides = (1,) if self.one_sided(len(axes)) else (1, -1)
        return Examples(
            site=site,
            axes=tuple(
                self.found(at, sign, f"axis {axis}", axis)
                for at, axis in enumerate(axes)
                for sign in sides
            ),
            rotated=tuple(
                self.found(at, sign, f"rotated direction {at - len(axes)}", None)
                for at in range(len(axes), self.directions.shape[1])
                for sign in sides
            ),
        )

    def where(self, key: int) -> str:
        """Which place of which example a sample is, in words."""
        said, position = f"example {key // _PLACES}", key % _PLACES
        if len(self.places) == 2:
            row, column = divmod(position, self.places[1])
            return f"{said}, row {row}, column {column}"
        return f"{said}, position {position}" if self.places else said

    def found(self, direction: int, sign: int, label: str, axis: int | None) -> TopContexts:
        """The contexts of one direction in one sense."""
        contexts: list[Context] = []
        tokens: Counter[int] = Counter()
        concepts: Counter[str] = Counter()
        for key in self.tops[sign].keys[:, direction].tolist():
            ids, activations, at = self.around[direction, key]
            tokens[ids[at]] += 1
            concepts.update(self.carried[key])
            where = (self.where(key),)
            contexts.append(
                Context(
                    tokens=tuple(self.reader(token) for token in ids) if self.text else where,
                    # More digits than a model computes with would only fill a file.
                    activations=tuple(float(f"{sign * value:.6g}") for value in activations),
                    at=at,
                    example=key // _PLACES,
                    position=key % _PLACES,
                    box=None if self.fields is None else self.fields.box(key % _PLACES),
                    picture=encoded(self.pictures[key]) if key in self.pictures else "",
                )
            )
        scores: dict[str, float] = {}
        concept = ""
        if contexts and self.text:
            scores["token purity"] = tokens.most_common(1)[0][1] / len(contexts)
        if concepts:
            # Of equally common ones the first by name.
            concept = min(concepts, key=lambda name: (-concepts[name], name))
            scores["concept purity"] = concepts[concept] / len(contexts)
        label = label if sign > 0 else f"{label}, negative"
        return TopContexts(label, axis, sign, tuple(contexts), scores, concept)
