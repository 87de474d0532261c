"""The numerical proof of a claim about the architecture, on the user's own model.

Random elements of the claimed group act on the weights of a float64 copy: its outputs must not
move, and the activations at the site must move by exactly the element. Then strangers to the group
act: the outputs must move.
"""

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from basis_probe.action import Action
from basis_probe.adapters.batches import Batch
from basis_probe.adapters.capture import catching
from basis_probe.adapters.facts import Facts
from basis_probe.adapters.models import recognise
from basis_probe.adapters.places import Site
from basis_probe.adapters.precision import doubled, in_double
from basis_probe.adapters.trace import tensors_in
from basis_probe.adapters.weights import Slots, WeightError, Weights
from basis_probe.algebra.elements import (
    BlockElement,
    Dense,
    Element,
    MonomialElement,
    Reflections,
)
from basis_probe.algebra.groups import (
    Blocks,
    DirectSum,
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
from basis_probe.results import Certificate
from basis_probe.symmetry import Derivation

TOLERANCE = 1e-9
"""By how much the outputs may move, relative to the largest of them, in float64."""

SINGLE = 1e-4
"""The same for a model that returns single precision whatever it is given."""

MARGIN = 1000.0
"""How many times more strangers must move the outputs."""


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
        self.facts = facts
        self.seed = seed
        slots = Slots(model, facts.graph.trace)
        problems: list[str] = []
        for exact in (True, False):
            try:
                self.weights = Weights(model, torch.float64 if exact else None)
            except WeightError as error:
                raise Unproved(str(error)) from error
            self.exact = exact
            self.subject = recognise(self.weights.model)
            self.batch = doubled(batch) if exact else batch
            try:
                first, second = self._run({}), self._run({})
                break
            except Exception as error:
                problems.append(f"{type(error).__name__}: {error}".splitlines()[0])
        else:
            raise Unproved(f"the model does not run on a copy of itself: {problems[-1]}")
        if not first:
            raise Unproved("the model returns no floating-point tensor")
        if _change(first, second) != 0.0:
            raise Unproved(
                "the model is not deterministic: the same input gave outputs that differ by "
                f"{_change(first, second):.1e}"
            )
        if not all(bool(tensor.isfinite().any()) for tensor in first):
            raise Unproved("the model returns no finite number")
        self.outputs = first
        self.action = Action(derivation, slots, self.weights)
        double = exact and all(tensor.dtype is torch.float64 for tensor in first)
        self.tolerance = TOLERANCE if double else SINGLE

    def certify(self, site: Site, group: Group, *, elements: int = 2) -> Certificate:
        """What elements of a group and strangers to it do to the model.

        Args:
            site: where they act.
            group: the claimed group.
            elements: how many elements to draw.

        Raises:
            Unproved: if a weight that must change is no parameter of the model.
        """
        generator = torch.Generator().manual_seed(self.seed)
        caught: dict[Site, Tensor] = {}
        self._run(caught, (site,))
        before = self._features(site, caught)
        error = moved = 0.0
        for _ in range(1 if isinstance(group, Trivial) else elements):
            element = group.generic(generator)
            outputs, after = self._acted(lambda e=element: self.action.move(site, e), site)
            error = max(error, _change(self.outputs, outputs))
            moved = max(moved, _change([element.act(before)], [after]))
        least, stranger = math.inf, ""
        for name, make in strangers(group, generator).items():
            outputs, _ = self._acted(lambda m=make: self.action.strain(site, m), site)
            change = _change(self.outputs, outputs)
            # A stranger that has no form here has changed nothing at all.
            if self._strained and change < least:
                least, stranger = change, name
        refuted = stranger == "" or least > MARGIN * max(error, min(self.tolerance, TOLERANCE))
        return Certificate(
            holds=max(error, moved) <= self.tolerance and refuted,
            max_error=error,
            tolerance=self.tolerance,
            violation=least if stranger else math.nan,
            action_error=moved,
            stranger=stranger,
        )

    def _acted(self, act: Callable[[], object], site: Site) -> tuple[list[Tensor], Tensor]:
        try:
            self._strained = act() is not False
            caught: dict[Site, Tensor] = {}
            outputs = self._run(caught, (site,))
        except WeightError as error:
            raise Unproved(str(error)) from error
        finally:
            self.weights.restore()
        return outputs, self._features(site, caught)

    def _run(self, caught: dict[Site, Tensor], sites: tuple[Site, ...] = ()) -> list[Tensor]:
        def keep(site: Site) -> Callable[[Tensor], None]:
            def catch(tensor: Tensor) -> None:
                caught[site] = tensor.detach().clone()

            return catch

        wanted = {site.address: keep(site) for site in sites}
        precision = in_double() if self.exact else nullcontext()
        with torch.no_grad(), precision, catching(self.weights.model, wanted):
            returned = self.subject.call(self.batch)
        found = [tensor.detach().clone() for tensor in tensors_in(returned)]
        return [tensor for tensor in found if tensor.is_floating_point()]

    def _features(self, site: Site, caught: Mapping[Site, Tensor]) -> Tensor:
        """[sample, dim], the activations at a site."""
        layout = self.facts.layout(site)
        assert layout is not None
        last = caught[site].movedim(layout.axes, tuple(range(-len(layout.axes), 0)))
        return last.flatten(last.ndim - len(layout.axes)).flatten(0, -2)


def _change(before: list[Tensor], after: list[Tensor]) -> float:
    """The largest change of any number, relative to the largest number of its tensor."""
    largest = 0.0
    for old, new in zip(before, after, strict=True):
        finite = old.isfinite()
        if not torch.equal(finite, new.isfinite()):
            return math.inf
        if bool(finite.any()):
            size = float(old[finite].abs().max())
            gap = float((old - new)[finite].abs().max())
            largest = max(largest, gap / size if size else math.inf if gap else 0.0)
    return largest


# --- strangers ------------------------------------------------------------------------------------

Maker = Callable[[int], Element | None]


def strangers(group: Group, generator: torch.Generator) -> dict[str, Maker]:
    """Changes of basis just outside a group, by name: size -> the element, where it has a form.

    Args:
        group: the group.
        generator: seeds them.
    """
    seed = int(torch.randint(2**31, (1,), generator=generator))

    def fresh() -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    def rotation(size: int) -> Element | None:
        if size < 2:
            return None
        vectors = torch.randn(2, size, generator=fresh(), dtype=torch.float64)
        return Reflections(vectors)

    def scales(size: int) -> Element:
        factors = torch.rand(size, generator=fresh(), dtype=torch.float64)
        return MonomialElement(torch.arange(size), 0.5 + factors)

    def signs(size: int) -> Element:
        factors = torch.ones(size, dtype=torch.float64)
        factors[:: 2 if size > 1 else 1] = -1
        return MonomialElement(torch.arange(size), factors)

    def order(size: int) -> Element | None:
        if size < 2:
            return None
        return MonomialElement(torch.arange(size).roll(1), torch.ones(size, dtype=torch.float64))

    if isinstance(group, Permutation):
        return {"rotation": rotation, "scales": scales, "signs": signs}
    if isinstance(group, PositiveMonomial):
        return {"rotation": rotation, "signs": signs}
    if isinstance(group, SignedPermutation):
        return {"rotation": rotation, "scales": scales}
    if isinstance(group, Monomial):
        return {"rotation": rotation}
    if isinstance(group, Trivial):
        return {"rotation": rotation, "reordering": order}
    if isinstance(group, Orthogonal):
        return {"scales": scales}
    if isinstance(group, LineStabiliser):
        return {"rotation": rotation, "scales": scales}
    if isinstance(group, GeneralLinear):
        return {}
    if isinstance(group, DirectSum):
        return {"rotation": rotation, "reordering": order}
    if isinstance(group, Blocks):
        return _strange_blocks(group, rotation)
    return {"rotation": rotation}


def _strange_blocks(group: Blocks, rotation: Maker) -> dict[str, Maker]:
    count, inner = group.count, group.inner.dim

    def mixing(size: int) -> Element | None:
        turn = rotation(count)
        if turn is None or size % count:
            return None
        rest = torch.eye(size // count, dtype=torch.float64)
        return Dense(torch.kron(turn.matrix(), rest))

    def inside(size: int) -> Element | None:
        turn = rotation(inner)
        if turn is None or size % (count * inner):
            return None
        parts = (turn,) * count
        return BlockElement(torch.arange(count), parts, size // (count * inner))

    found: dict[str, Maker] = {}
    if count > 1:
        found["mixing of blocks"] = mixing
    if not isinstance(group.inner, GeneralLinear):
        found["rotation inside blocks"] = inside
    return found
