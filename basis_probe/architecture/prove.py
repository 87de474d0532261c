"""The numerical proof of a claim about the architecture, on the user's own model.

Random elements of the claimed group act on the weights, in float64: the outputs must not move, and
the activations at the site must move by exactly the element. Then strangers to the group act: the
outputs must move.
"""

import abc
import dataclasses
import math
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Generic, TypeAlias, TypeVar

import torch
from torch import Tensor

from basis_probe.algebra.elements import (
    BlockElement,
    Element,
    Identity,
    Local,
    MonomialElement,
)
from basis_probe.algebra.groups import (
    Blocks,
    Group,
    Monomial,
    SignedPermutation,
    Trivial,
)
from basis_probe.architecture.act import Action, as_monomial, monomial
from basis_probe.architecture.strangers import FEW, Maker, strangers
from basis_probe.model.facts import Facts
from basis_probe.model.places import Site
from basis_probe.model.weights import WeightError, Weights
from basis_probe.results.symmetry import Certificate

TOLERANCE = 1e-9
"""By how much the outputs may move, relative to the largest of them, in float64."""

SINGLE = 1e-4
"""The same for a model that returns single precision whatever it is given."""

_UNIFORM = 256
"""Up to this dimension an element of each group is drawn uniformly, as a full matrix if need be."""

DRAWS = 4
"""So many strangers of a kind are tried at most, where those before moved nothing at all."""

MARGIN = 1000.0
"""How many times more strangers must move the outputs."""


Claim: TypeAlias = tuple[int, Group]
"""A stream, and the group that is claimed of it."""


_SHIFTS = 16

_FEW_AXES = 12
"""Groups on so few axes act by two elements."""


class Unproved(Exception):
    """Why no certificate could be made."""


W = TypeVar("W", bound=Weights)


class Prover(abc.ABC, Generic[W]):
    """Proves claims about one model, one site at a time or many at once.

    Attributes:
        facts: what was seen of the model.
        seed: seeds the elements.
        weights: the weights that change.
        action: what changes of basis do to the weights.
        outputs: what the model returns before any change.
        tolerance: by how much that may move.
    """

    facts: Facts
    seed: int
    weights: W
    action: Action
    outputs: list[Tensor]
    tolerance: float
    _unlike: set[Claim]
    """Claims of which another element acted on the site than the group has."""

    def certify(self, site: Site, group: Group, *, elements: int = 2) -> Certificate:
        """What elements of a group and strangers to it do to the model, one after the other.

        Args:
            site: where they act.
            group: the claimed group.
            elements: how many elements to draw.

        Raises:
            Unproved: if a weight that must change is no parameter of the model.
        """
        generator = self.generator()
        before = self._at(site, self._untouched((site,))[site])
        error = moved = 0.0
        for element in self._elements(site, group, elements, generator):
            with self.restored():
                self.action.move(site, element)
                outputs, caught = self._run((site,))
            error = max(error, largest_change(self.outputs, outputs))
            moved = max(
                moved, largest_change([element.act(before)], [self._at(site, caught[site])])
            )
        if max(error, moved) > self.tolerance:
            self._doubted(site, group.generic(generator))
        changes: dict[str, float] = {}
        for name, make in self._strangers(group, generator, changes):
            with self.restored():
                if self.action.strain(site, make) and self.weights.changed:
                    changes[name] = largest_change(self.outputs, self._run()[0])
        return self._judged(error, moved, changes)

    @abc.abstractmethod
    def survey(self, claims: Sequence[tuple[Site, Group]]) -> list[Certificate | Unproved]:
        """A certificate for each of many claims, or why there is none, at the cost of few runs.

        Elements of all groups act at once, and if nothing moves that must not, all claims are
        proved. If something does, each claim stands for itself. Strangers act one by one, and are
        felt at the linear maps behind them, so that the rest of the model need not run.

        Args:
            claims: the sites, and the group claimed for each.
        """

    @abc.abstractmethod
    def _run(self, sites: Sequence[Site] = ()) -> tuple[list[Tensor], dict[Site, Tensor]]:
        """What the model returns with its weights as they are now, and what is at some sites."""

    @abc.abstractmethod
    def _untouched(self, sites: Sequence[Site]) -> dict[Site, Tensor]:
        """What the model does at some places before anything is changed.

        Raises:
            Unproved: if it does not do the same again.
        """

    @abc.abstractmethod
    def _doubted(self, site: Site, element: Element) -> None:
        """Raises `Unproved` if a claim may seem false for a reason that is not the model's."""

    def _elements(
        self, site: Site, group: Group, count: int, generator: torch.Generator
    ) -> Iterator[Element]:
        """Elements of a group: the first is uniform, the others are cheap in every size."""
        for number in range(1 if isinstance(group, Trivial) else count):
            uniform = number == 0 and group.dim <= _UNIFORM
            yield group.draw(generator) if uniform else group.generic(generator)
        if self.action.derivation.router(self._stream(site)) is not None:
            # Every expert must do what every other one does.
            yield from shifts(group)

    def _strangers(
        self, group: Group, generator: torch.Generator, changes: Mapping[str, float]
    ) -> Iterator[tuple[str, Maker]]:
        """Strangers to a group, by name; others of a name where those before moved nothing.

        On few rows all that a stranger changes can lie where nothing is read: in neurons that are
        off before and after.
        """
        for draw in range(DRAWS):
            for name, make in strangers(group, generator).items():
                if draw == 0 or changes.get(name) == 0.0:
                    yield name, make

    def _judged(self, error: float, moved: float, changes: Mapping[str, float]) -> Certificate:
        stranger = min(changes, key=lambda name: changes[name], default="")
        least = changes.get(stranger, math.inf)
        refuted = not stranger or least > MARGIN * max(error, min(self.tolerance, TOLERANCE))
        if self.tolerance > TOLERANCE and max(error, moved) <= self.tolerance and not refuted:
            raise Unproved(
                f"the model computes in single precision whatever it is given, and a {stranger} "
                f"moved its outputs by {least:.1e} only: too little to tell from rounding"
            )
        return Certificate(
            holds=max(error, moved) <= self.tolerance and refuted,
            max_error=error,
            tolerance=self.tolerance,
            violation=least if stranger else math.nan,
            action_error=moved,
            stranger=stranger,
        )

    # --- all at once ----------------------------------------------------------------------------

    def _rounds(
        self, claims: Mapping[Claim, tuple[Site, Group]]
    ) -> Iterator[Iterator[tuple[set[Claim], dict[int, Element]]]]:
        """Elements of all groups, and others of those on few axes.

        Of few axes an order is now and then one of a smaller group, too: a quarter turn of four
        places may keep two pairs together.
        """
        self._unlike = set[Claim]()
        generator = self.generator()
        few = {key: claim for key, claim in claims.items() if claim[1].dim <= _FEW_AXES}
        for some in (claims, few) if few else (claims,):
            yield self._phases(some, generator)

    def _phases(
        self, claims: Mapping[Claim, tuple[Site, Group]], generator: torch.Generator
    ) -> Iterator[tuple[set[Claim], dict[int, Element]]]:
        """Lets elements of all groups act; after each part, whose they are and where they acted.

        What a norm writes moves with the stream that it reads, but is not turned with it: it comes
        second.
        """
        behind = {k for k in claims if self.action.derivation.is_norm_output(k[0])}
        self._parts_of = self._composites({key[0] for key in claims})
        for phase in (set(claims) - behind, behind):
            made: dict[int, Element] = {}
            ordered: set[int] = set()
            for key in (key for key in claims if key in phase):
                site, group = claims[key]
                composite = key[0] in self._parts_of
                if not composite and self._is_covered(made.get(key[0]), group):
                    continue
                if isinstance(group, Blocks) and key[0] in made:
                    # Exchanged once more, two blocks would be where they were.
                    group = dataclasses.replace(group, order="kept")
                element = group.generic(generator)
                source = self._before_norm(key[0]) if key in behind else None
                if source in ordered:
                    # Its stream was permuted already; now only the gain is rescaled.
                    _, factors = monomial(element)
                    element = MonomialElement(torch.arange(len(factors)), factors)
                elif source is not None:
                    ordered.add(source)
                    element = _few_places(element)
                moved = self.action.move(site, element)
                if not _is_alike(moved.get(key[0]), element):
                    self._unlike.add(key)
                for stream, own in (*moved.items(), *self._in_wholes(moved)):
                    made[stream] = _after(own, made.get(stream))
            if made:
                yield phase, made

    def _composites(self, streams: Iterable[int]) -> dict[int, dict[int, tuple[int, ...]]]:
        """Streams that fall into parts -> part -> its features in the whole."""
        vertices = self.facts.graph.vertices
        found: dict[int, dict[int, tuple[int, ...]]] = {}
        for index in streams:
            if self.action.derivation.composites.of(index) is not None:
                readers = self.facts.streams[index].readers
                parts = {self.facts.stream_of[one]: vertices[one].part for one in readers}
                found[index] = {part: axes for part, axes in parts.items() if axes is not None}
        return found

    def _in_wholes(self, moved: Mapping[int, Element]) -> Iterator[tuple[int, Element]]:
        """What acts on tensors of which parts were moved, where they were not as wholes."""
        for whole, parts in self._parts_of.items():
            if whole in moved:
                continue
            size = sum(map(len, parts.values()))
            for part, axes in parts.items():
                if part in moved:
                    own = _fitted(moved[part], len(axes))
                    yield whole, Local(size, torch.tensor(axes), own)

    def _missed(self, claim: Claim, made: Mapping[int, Element], old: Tensor, new: Tensor) -> float:
        """By how much activations [sample, dim] missed what acted on them.

        Where that is not what was asked for, the claim must stand for itself.
        """
        if claim in self._unlike:
            return math.inf
        element = made.get(claim[0], Identity(old.shape[-1]))
        return largest_change([_fitted(element, old.shape[-1]).act(old)], [new])

    def _is_covered(self, element: Element | None, group: Group) -> bool:
        """True if what acts on a stream already is as general as the group of one of its sites."""
        if element is None:
            return False
        axes = as_monomial(element)
        if axes is None:
            if isinstance(group, Trivial):
                return False
            return not group.rescales or not _keeps_lengths(element)
        columns, factors = axes
        still = torch.equal(columns, torch.arange(len(columns))) and len(columns) > 2
        scaled = not group.rescales or bool((factors.abs() != 1).any())
        signed = not isinstance(group, SignedPermutation | Monomial) or bool((factors < 0).any())
        return not still and scaled and signed

    def _before_norm(self, index: int) -> int:
        """The stream that a norm reads, of a stream that the norm writes."""
        return self.facts.stream_of[self.action.derivation.norm_of(index).carried[0]]

    # --- sites ------------------------------------------------------------------------------------

    def _stream(self, site: Site) -> int:
        vertex = self.facts.vertex(site)
        assert vertex is not None
        return self.facts.stream_of[vertex.node]

    def generator(self) -> torch.Generator:
        """What elements are drawn with."""
        return torch.Generator().manual_seed(self.seed)

    @contextmanager
    def restored(self) -> Generator[None]:
        """Within the context weights change; then they are as they were."""
        try:
            yield
        except WeightError as error:
            raise Unproved(str(error)) from error
        finally:
            self.weights.restore()

    def _at(self, site: Site, tensor: Tensor) -> Tensor:
        """[sample, dim], the activations at a site, from its tensor."""
        layout = self.facts.layout(site)
        assert layout is not None
        last = tensor.movedim(layout.axes, tuple(range(-len(layout.axes), 0)))
        return last.flatten(last.ndim - len(layout.axes)).flatten(0, -2)


def shifts(group: Group) -> Iterator[Element]:
    """Orders of experts in which each comes to the place of every other, or of sixteen others."""
    groups = group.count if isinstance(group, Blocks) else 1
    size = group.dim // groups
    places = torch.arange(group.dim).reshape(groups, size)
    for step in range(1, group.dim, max(1, group.dim // _SHIFTS)):
        columns = places.roll((step // size, step % size), (0, 1)).flatten()
        matrix = torch.eye(group.dim, dtype=torch.float64)[columns]
        yield group.element(matrix)


def _few_places(element: Element) -> Element:
    """The same factors, with few axes that change places: a whole stream moves with them."""
    columns, factors = monomial(element)
    order = torch.arange(len(columns))
    order[: 4 * FEW] = order[: 4 * FEW].roll(1)
    return MonomialElement(order, factors)


def _after(element: Element, before: Element | None) -> Element:
    """The element after another on the same stream, with as many copies of its blocks."""
    if before is None:
        return element
    last, first = as_monomial(element), as_monomial(before)
    if last is not None and first is not None and element.dim == before.dim:
        return MonomialElement(*last) @ MonomialElement(*first)
    return _fitted(element, before.dim) @ before


def _fitted(element: Element, size: int) -> Element:
    """The element with as many copies of its blocks as a place has."""
    if isinstance(element, BlockElement) and element.dim != size:
        return element.copied(size * element.copies // element.dim)
    return element


def _is_alike(acted: Element | None, asked: Element) -> bool:
    """True if what acted on a stream is what was asked for, or its size is not that of the site."""
    if acted is None or acted is asked:
        return True
    acted = _fitted(acted, asked.dim)
    if acted.dim != asked.dim:
        return True
    rows = _few_rows(asked.dim)
    return largest_change([asked.act(rows)], [acted.act(rows)]) <= TOLERANCE


def _keeps_lengths(element: Element) -> bool:
    rows = _few_rows(element.dim)
    return largest_change([rows.norm(dim=1)], [element.act(rows).norm(dim=1)]) <= TOLERANCE


def _few_rows(dim: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, dim, generator=generator, dtype=torch.float64)


def largest_change(before: list[Tensor], after: list[Tensor]) -> float:
    """The largest change of any number, relative to the largest number of its tensor."""
    largest = 0.0
    for one, other in zip(before, after, strict=True):
        old, new = one.detach(), other.detach()
        finite = old.isfinite()
        if not torch.equal(finite, new.isfinite()):
            return math.inf
        if bool(finite.any()):
            apart = old - new
            if not bool(finite.all()):
                old, apart = old[finite], apart[finite]
            size, gap = float(old.abs().max()), float(apart.abs().max())
            largest = max(largest, gap / size if size else math.inf if gap else 0.0)
    return largest
