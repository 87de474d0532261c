"""The numerical proof of a claim about the architecture, on the user's own model.

Random elements of the claimed group act on the weights of a float64 copy: its outputs must not
move, and the activations at the site must move by exactly the element. Then strangers to the group
act: the outputs must move.
"""

import dataclasses
import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from basis_probe.algebra.elements import (
    BlockElement,
    Element,
    Identity,
    Local,
    MonomialElement,
    Reflections,
    Sheared,
)
from basis_probe.algebra.groups import (
    Blocks,
    DirectSum,
    Elementary,
    GeneralLinear,
    Group,
    LineStabiliser,
    Monomial,
    Orthogonal,
    Permutation,
    PositiveMonomial,
    SignedPermutation,
    Trivial,
)
from basis_probe.architecture.act import Action, as_monomial, monomial
from basis_probe.architecture.derive import Derivation
from basis_probe.model.batches import Batch
from basis_probe.model.capture import catching
from basis_probe.model.facts import Facts, fixed_in
from basis_probe.model.graph import replay, replay_all
from basis_probe.model.network import recognise
from basis_probe.model.places import Site
from basis_probe.model.precision import doubled, in_double, with_noise
from basis_probe.model.trace import Node, tensors_in
from basis_probe.model.weights import Slot, Slots, WeightError, Weights
from basis_probe.results.symmetry import Certificate

TOLERANCE = 1e-9
"""By how much the outputs may move, relative to the largest of them, in float64."""

SINGLE = 1e-4
"""The same for a model that returns single precision whatever it is given."""

_UNIFORM = 256
"""Up to this dimension an element of each group is drawn uniformly, as a full matrix if need be."""

_WIDE = 512
"""Above this dimension elements that act together with others change only some axes."""

_FEW = 16
"""So many axes a stranger changes: it is just outside the group, and cheap in a wide layer."""

_DRAWS = 4
"""So many strangers of a kind are tried at most, where those before moved nothing at all."""

MARGIN = 1000.0
"""How many times more strangers must move the outputs."""


Maker = Callable[[int], Element | None]
"""Makes an element for a stream of some size; None where it has no form there."""


class Unproved(Exception):
    """Why no certificate could be made."""


class Prover:
    """Proves claims about one model, one site at a time.

    Args:
        model: in evaluation mode; it is copied, and stays as it is.
        batch: examples to run it on; a few are enough.
        facts: what was seen of the model.
        derivation: what was derived from that.
        seed: seeds the elements.

    Raises:
        Unproved: if the model cannot be copied, or does not run in float64.
    """

    def __init__(
        self,
        model: nn.Module,
        batch: Batch,
        facts: Facts,
        derivation: Derivation,
        *,
        seed: int = 0,
    ) -> None:
        self.model = model
        self.facts = facts
        self.seed = seed
        self.slots = Slots(model, facts.graph.trace)
        self._owned: set[str] = set()
        self._used: list[tuple[Node, Tensor, str]] | None = None
        problems: list[str] = []
        for exact in (True, False):
            try:
                self.weights = Weights(model, torch.float64 if exact else None)
            except WeightError as error:
                raise Unproved(str(error)) from error
            self.exact = exact
            self.subject = recognise(self.weights.model)
            self.batch = with_noise(doubled(batch) if exact else batch)
            try:
                first = self._run()[0]
                break
            except Exception as error:
                problems.append(f"{type(error).__name__}: {error}".splitlines()[0])
        else:
            raise Unproved(f"the model does not run on a copy of itself: {problems[-1]}")
        if not first:
            raise Unproved("the model returns no floating-point tensor")
        if not all(bool(tensor.isfinite().any()) for tensor in first):
            raise Unproved("the model returns no finite number")
        self.outputs = first
        self.differed = 0.0
        self.action = Action(derivation, self.slots, self.weights)
        double = exact and all(tensor.dtype is torch.float64 for tensor in first)
        self.tolerance = TOLERANCE if double else SINGLE

    def certify(self, site: Site, group: Group, *, elements: int = 2) -> Certificate:
        """What elements of a group and strangers to it do to the model, one after the other.

        Args:
            site: where they act.
            group: the claimed group.
            elements: how many elements to draw.

        Raises:
            Unproved: if a weight that must change is no parameter of the model.
        """
        generator = torch.Generator().manual_seed(self.seed)
        before = self._at(site, self._untouched((site,)))
        error = moved = 0.0
        for number in range(1 if isinstance(group, Trivial) else elements):
            # The first is uniform in the group, the others are cheap in every size.
            uniform = number == 0 and group.dim <= _UNIFORM
            element = group.draw(generator) if uniform else group.generic(generator)
            with self._restored():
                self.action.move(site, element)
                outputs, caught = self._run((site,))
            error = max(error, largest_change(self.outputs, outputs))
            moved = max(moved, largest_change([element.act(before)], [self._at(site, caught)]))
        if max(error, moved) > self.tolerance:
            self._require_own_weights(site, group.generic(generator))
        changes: dict[str, float] = {}
        for name, make in self._strangers(group, generator, changes):
            with self._restored():
                if self.action.strain(site, make) and self.weights.changed:
                    changes[name] = largest_change(self.outputs, self._run()[0])
        return self._judged(error, moved, changes)

    def survey(self, claims: Sequence[tuple[Site, Group]]) -> list[Certificate | Unproved]:
        """A certificate for each of many claims, or why there is none, at the cost of few runs.

        Elements of all groups act at once, and if nothing moves that must not, all claims are
        proved. If something does, each claim stands for itself. Strangers act one by one, and are
        felt at the linear maps behind them, so that the rest of the model need not run.

        Args:
            claims: the sites, and the group claimed for each.
        """
        found: dict[tuple[int, Group], Certificate | Unproved] = {}
        keys = [(self._stream(site), group) for site, group in claims]
        distinct = dict(zip(keys, claims, strict=True))
        try:
            error, moved = self._together(distinct)
        except Exception:
            # Which claim it is that cannot be proved, each says for itself.
            error, moved = math.inf, {}
        values = self.values() if error <= self.tolerance else None
        felt: dict[tuple[frozenset[int], str], float] = {}
        for key, (site, group) in distinct.items():
            try:
                if values is None or moved[key] > self.tolerance:
                    found[key] = self.certify(site, group)
                    continue
                generator = torch.Generator().manual_seed(self.seed)
                changes: dict[str, float] = {}
                for name, make in self._strangers(group, generator, changes):
                    change = self._felt(site, name, make, values, felt)
                    if change is not None:
                        changes[name] = change
                found[key] = self._judged(error, moved[key], changes)
            except Unproved as problem:
                found[key] = problem
            except Exception as problem:
                found[key] = Unproved(f"the copy failed: {type(problem).__name__}: {problem}")
        return [found[key] for key in keys]

    def _require_own_weights(self, site: Site, element: Element) -> None:
        """Raises `Unproved` if the copy does not compute with its own weights.

        Some libraries bind the forward of a model to the model itself; a copy of it goes on using
        the weights of the original, and nothing can be said from it.
        """
        with self._restored():
            self.action.move(site, element)
            changed = self.weights.changed
        for name in changed:
            if name in self._owned:
                continue
            with self._restored():
                self.weights.set(Slot(name), torch.full_like(self.weights.now(name), math.nan))
                outputs = self._run()[0]
            if largest_change(self.outputs, outputs) == 0.0:
                raise Unproved(
                    f"a copy of the model does not use its own {name}: its forward is bound to the "
                    "original"
                )
            self._owned.add(name)

    def _strangers(
        self, group: Group, generator: torch.Generator, changes: Mapping[str, float]
    ) -> Iterator[tuple[str, Maker]]:
        """Strangers to a group, by name; others of a name where those before moved nothing.

        On few rows all that a stranger changes can lie where nothing is read: in neurons that are
        off before and after.
        """
        for draw in range(_DRAWS):
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

    def _together(
        self, claims: Mapping[tuple[int, Group], tuple[Site, Group]]
    ) -> tuple[float, dict[tuple[int, Group], float]]:
        """By how much the outputs move when all groups act, and each site misses its element."""
        generator = torch.Generator().manual_seed(self.seed)
        # What a norm writes moves with the stream that it reads, but is not turned with it.
        behind = {k for k in claims if self.action.derivation.is_norm_output(k[0])}
        error, moved = 0.0, dict.fromkeys(claims, 0.0)
        with self._restored():
            before = self._untouched([site for site, _ in claims.values()])
            for phase in (set(claims) - behind, behind):
                made: dict[int, Element] = {}
                ordered: set[int] = set()
                for key in (key for key in claims if key in phase):
                    site, group = claims[key]
                    if self._is_covered(made.get(key[0]), group):
                        continue
                    if isinstance(group, Blocks) and key[0] in made:
                        # Exchanged once more, two blocks would be where they were.
                        group = dataclasses.replace(group, order="kept")
                    element = _acting(group, generator)
                    source = self._before_norm(key[0]) if key in behind else None
                    if source in ordered:
                        # Its stream was permuted already; now only the gain is rescaled.
                        _, factors = monomial(element)
                        element = MonomialElement(torch.arange(len(factors)), factors)
                    elif source is not None:
                        ordered.add(source)
                        element = _few_places(element)
                    for stream, own in self.action.move(site, element).items():
                        made[stream] = _after(own, made.get(stream))
                if not made:
                    continue
                outputs, after = self._run([site for site, _ in claims.values()])
                error = max(error, largest_change(self.outputs, outputs))
                for key in phase:
                    site = claims[key][0]
                    old, new = self._at(site, before), self._at(site, after)
                    element = _fitted(made.get(key[0], Identity(old.shape[-1])), old.shape[-1])
                    moved[key] = largest_change([element.act(old)], [new])
                before = after
        return error, moved

    def _is_covered(self, element: Element | None, group: Group) -> bool:
        """True if what acts on a stream already is as general as the group of one of its sites."""
        if element is None:
            return False
        axes = as_monomial(element)
        if axes is None:
            return not isinstance(group, Trivial)
        columns, factors = axes
        still = torch.equal(columns, torch.arange(len(columns))) and len(columns) > 2
        scaled = not group.rescales or bool((factors.abs() != 1).any())
        signed = not isinstance(group, SignedPermutation | Monomial) or bool((factors < 0).any())
        return not still and scaled and signed

    def _before_norm(self, index: int) -> int:
        """The stream that a norm reads, of a stream that the norm writes."""
        graph, facts = self.facts.graph, self.facts
        vertex = graph.vertices[facts.streams[index].writers[0]]
        while not facts.regions[vertex.node].shape.is_norm:
            vertex = graph.vertices[vertex.carried[0]]
        return facts.stream_of[vertex.carried[0]]

    # --- strangers, felt nearby -----------------------------------------------------------------

    def values(self) -> dict[int, Tensor] | None:
        """The recorded tensors that can be computed anew, in float64; None if inputs differ."""
        trace = self.facts.graph.trace
        given = list(tensors_in((self.batch.args, self.batch.kwargs)))
        inputs = [node.index for node in trace.nodes if node.op == "input"]
        if len(given) != len(inputs):
            return None
        known = dict(zip(inputs, given, strict=True))
        fixed = {key: self.weights.now(names[0]) for key, names in self.slots.names.items()}
        return replay_all(trace, known, fixed)

    def _felt(
        self,
        site: Site,
        name: str,
        make: Maker,
        values: dict[int, Tensor],
        felt: dict[tuple[frozenset[int], str], float],
    ) -> float | None:
        """By how much a stranger changes what the last linear maps around a site compute."""
        with self._restored():
            streams = self.action.strain(site, make)
            if not streams or not self.weights.changed:
                return None
            key = (frozenset(streams), name)
            if not felt.get(key):
                changed = set(self.weights.changed)
                felt[key] = self._change_behind(site, changed, values)
                returned = self.facts.streams[self._stream(site)].returned
                if felt[key] == 0.0 or returned:
                    felt[key] = largest_change(self.outputs, self._run()[0])
        return felt[key]

    def _change_behind(self, site: Site, changed: set[str], values: dict[int, Tensor]) -> float:
        trace = self.facts.graph.trace
        fixed: dict[int, Tensor] = {}
        users: list[Node] = []
        for node, tensor, name in self._uses():
            if name in changed:
                users.append(node)
                fixed[id(tensor)] = self.weights.now(name)
        stale = {node.index for node in users}
        for node in trace.nodes:
            if stale & set(node.inputs):
                stale.add(node.index)
        last = {node.index for node in users if node.live}
        for index in sorted(last):
            behind = {index}
            for other in trace.nodes[index + 1 :]:
                if behind & set(other.inputs):
                    behind.add(other.index)
            if behind & last != {index}:
                last.discard(index)
        meeting = self.action.derivation.attention_before(self._stream(site))
        ends = [meeting.vertex] if meeting is not None else sorted(last)
        known = {i: value for i, value in values.items() if i not in stale}
        largest = 0.0
        for end in ends:
            if end not in values:
                continue
            try:
                after = replay(trace, end, known, fixed)
            except (RuntimeError, ValueError, TypeError, LookupError, AttributeError):
                continue
            largest = max(largest, largest_change([values[end]], [after]))
        return largest

    def _uses(self) -> list[tuple[Node, Tensor, str]]:
        """Every use of a parameter in the record: by which node, which, and its name."""
        if self._used is None:
            self._used = [
                (node, use.tensor, name)
                for node in self.facts.graph.trace.nodes
                for use in fixed_in((node.args, node.kwargs))
                if (name := self.slots.parameter(use.tensor, node)) is not None
            ]
        return self._used

    # --- running --------------------------------------------------------------------------------

    def _stream(self, site: Site) -> int:
        vertex = self.facts.vertex(site)
        assert vertex is not None
        return self.facts.stream_of[vertex.node]

    @contextmanager
    def _restored(self) -> Generator[None]:
        """Within the context weights change; then they are as they were."""
        try:
            yield
        except WeightError as error:
            raise Unproved(str(error)) from error
        finally:
            self.weights.restore()

    def _untouched(self, sites: Sequence[Site]) -> dict[Site, Tensor]:
        """What the model does at some places before anything is changed.

        Raises:
            Unproved: if it does not do the same again.
        """
        if self.differed <= self.tolerance / MARGIN:
            outputs, caught = self._run(sites)
            # Where numbers lie in memory, or which thread was first, rounding may differ.
            self.differed = largest_change(self.outputs, outputs)
            if self.differed <= self.tolerance / MARGIN:
                return caught
        raise Unproved(
            "the model is not deterministic: the same input gave outputs that differ by "
            f"{self.differed:.1e}"
        )

    def _run(self, sites: Sequence[Site] = ()) -> tuple[list[Tensor], dict[Site, Tensor]]:
        caught: dict[Site, Tensor] = {}

        def keep(site: Site) -> Callable[[Tensor], None]:
            def catch(tensor: Tensor) -> None:
                caught[site] = tensor.detach().clone()

            return catch

        wanted = {site.address: keep(site) for site in sites}
        precision = in_double() if self.exact else nullcontext()
        with torch.no_grad(), precision, catching(self.weights.model, wanted):
            returned = self.subject.call(self.batch)
        found = [tensor.detach().clone() for tensor in tensors_in(returned)]
        return [tensor for tensor in found if tensor.is_floating_point()], caught

    def _at(self, site: Site, caught: Mapping[Site, Tensor]) -> Tensor:
        """[sample, dim], the activations at a site."""
        layout = self.facts.layout(site)
        assert layout is not None
        last = caught[site].movedim(layout.axes, tuple(range(-len(layout.axes), 0)))
        return last.flatten(last.ndim - len(layout.axes)).flatten(0, -2)


def _neighbours(size: int, most: int, generator: torch.Generator) -> Tensor:
    """Some axes, beside each other: a part of a matrix that can be changed where it lies."""
    count = min(size, most)
    first = int(torch.randint(size - count + 1, (1,), generator=generator))
    return torch.arange(first, first + count)


def _acting(group: Group, generator: torch.Generator) -> Element:
    """A generic element; in a wide layer one that changes few axes, among themselves."""
    if group.dim <= _WIDE or not isinstance(group, Elementary) or isinstance(group, Trivial):
        return group.generic(generator)
    axes = _neighbours(group.dim, 4 * _FEW, generator)
    inner = type(group)(len(axes)).generic(generator)
    if isinstance(inner, Sheared):
        # What is written along the all-ones direction would reach every axis.
        inner = inner.turn
    return Local(group.dim, axes, inner)


def _few_places(element: Element) -> Element:
    """The same factors, with few axes that change places: a whole stream moves with them."""
    if isinstance(element, Local):
        return element
    columns, factors = monomial(element)
    order = torch.arange(len(columns))
    order[: 4 * _FEW] = order[: 4 * _FEW].roll(1)
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


def largest_change(before: list[Tensor], after: list[Tensor]) -> float:
    """The largest change of any number, relative to the largest number of its tensor."""
    largest = 0.0
    for one, other in zip(before, after, strict=True):
        old, new = one.detach(), other.detach()
        finite = old.isfinite()
        if not torch.equal(finite, new.isfinite()):
            return math.inf
        if bool(finite.any()):
            size = float(old[finite].abs().max())
            gap = float((old - new)[finite].abs().max())
            largest = max(largest, gap / size if size else math.inf if gap else 0.0)
    return largest


# --- strangers ------------------------------------------------------------------------------------


def strangers(group: Group, generator: torch.Generator) -> dict[str, Maker]:
    """Changes of basis just outside a group, by name: size -> the element, where it has a form.

    Args:
        group: the group.
        generator: seeds them.
    """
    seed = int(torch.randint(2**31, (1,), generator=generator))

    def fresh() -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    def some(size: int, most: int = _FEW) -> Tensor:
        return _neighbours(size, most, fresh())

    def rotation(size: int) -> Element | None:
        if size < 2:
            return None
        axes = some(size)
        vectors = torch.randn(2, len(axes), generator=fresh(), dtype=torch.float64)
        return Local(size, axes, Reflections(vectors))

    def scales(size: int) -> Element:
        axes = some(size)
        factors = 0.5 + torch.rand(len(axes), generator=fresh(), dtype=torch.float64)
        return Local(size, axes, MonomialElement(torch.arange(len(axes)), factors))

    def signs(size: int) -> Element:
        axes = some(size, max(1, min(size // 2, _FEW)))
        factors = -torch.ones(len(axes), dtype=torch.float64)
        return Local(size, axes, MonomialElement(torch.arange(len(axes)), factors))

    def order(size: int) -> Element | None:
        if size < 2:
            return None
        axes = some(size)
        ones = torch.ones(len(axes), dtype=torch.float64)
        return Local(size, axes, MonomialElement(torch.arange(len(axes)).roll(1), ones))

    if isinstance(group, Permutation):
        return {"rotation": rotation, "rescaling": scales, "sign change": signs}
    if isinstance(group, PositiveMonomial):
        return {"rotation": rotation, "sign change": signs}
    if isinstance(group, SignedPermutation):
        return {"rotation": rotation, "rescaling": scales}
    if isinstance(group, Monomial):
        return {"rotation": rotation}
    if isinstance(group, Trivial):
        return {"rotation": rotation, "reordering": order}
    if isinstance(group, Orthogonal):
        return {"rescaling": scales}
    if isinstance(group, LineStabiliser):
        return {"rotation": rotation}
    if isinstance(group, GeneralLinear):
        return {}
    if isinstance(group, DirectSum):
        return {"rotation": rotation, "reordering": order}
    if isinstance(group, Blocks):
        if isinstance(group.inner, Orthogonal):
            return _strange_blocks(group, rotation, scales, "rescaling inside blocks")
        return _strange_blocks(group, rotation, rotation, "rotation inside blocks")
    return {"rotation": rotation}


@dataclasses.dataclass(frozen=True, eq=False)
class _Mixing(Element):
    """Blocks of axes that are mixed with each other, axis by axis."""

    turn: Element
    size: int

    @property
    def dim(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.turn.dim * self.size

    def inverse(self) -> "_Mixing":
        return _Mixing(self.turn.inverse(), self.size)

    def transpose(self) -> "_Mixing":
        return _Mixing(self.turn.transpose(), self.size)

    def _act_on_rows(self, rows: Tensor) -> Tensor:
        return self.turn.act(rows.unflatten(-1, (self.turn.dim, self.size)), -2).flatten(-2)

    def _times(self, other: Element) -> Element | None:
        return None


def _strange_blocks(group: Blocks, rotation: Maker, other: Maker, name: str) -> dict[str, Maker]:
    count, inner = group.count, group.inner.dim

    def mixing(size: int) -> Element | None:
        turn = rotation(count)
        return None if turn is None or size % count else _Mixing(turn, size // count)

    def inside(size: int) -> Element | None:
        turn = other(inner)
        if turn is None or size % (count * inner):
            return None
        parts = (turn,) * count
        return BlockElement(torch.arange(count), parts, size // (count * inner))

    found: dict[str, Maker] = {}
    if count > 1:
        found["mixing of blocks"] = mixing
    if not isinstance(group.inner, GeneralLinear):
        found[name] = inside
    return found
