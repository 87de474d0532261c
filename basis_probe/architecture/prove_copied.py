"""The proof on a copy of the model in float64, whose weights are changed in place."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from basis_probe.algebra.elements import Element
from basis_probe.algebra.groups import Group
from basis_probe.architecture.act import Action
from basis_probe.architecture.derive import Derivation
from basis_probe.architecture.prove import (
    MARGIN,
    SINGLE,
    TOLERANCE,
    Claim,
    Prover,
    Unproved,
    largest_change,
)
from basis_probe.architecture.strangers import Maker
from basis_probe.model.batches import Batch
from basis_probe.model.capture import catching
from basis_probe.model.facts import Facts
from basis_probe.model.graph import replay, replay_all
from basis_probe.model.network import recognise
from basis_probe.model.places import Site
from basis_probe.model.precision import doubled, in_double, with_noise
from basis_probe.model.trace import Node, fixed_in, tensors_in
from basis_probe.model.weights import CopiedWeights, Slot, Slots, WeightError, held
from basis_probe.results.symmetry import Certificate


class CopyProver(Prover[CopiedWeights]):
    """Proves claims on a copy of the model.

    Args:
        model: in evaluation mode; it is copied, and stays as it is.
        batch: examples to run it on; a few are enough.
        facts: what was seen of the model.
        derivation: what was derived from that.
        seed: seeds the elements.

    Raises:
        Unproved: if the model cannot be copied, or does not run.
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
                self.weights = CopiedWeights(model, torch.float64 if exact else None)
            except WeightError as error:
                raise Unproved(str(error)) from error
            self.exact = exact
            self._begin_with(model, facts.graph.trace.instead)
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

    def _begin_with(self, model: nn.Module, numbers: Mapping[int, Tensor]) -> None:
        """Gives the copy other numbers for some of the model's parameters."""
        with torch.no_grad():
            for name, parameter in held(model):
                if id(parameter) in numbers:
                    self.weights.now(name).copy_(numbers[id(parameter)])

    def survey(self, claims: Sequence[tuple[Site, Group]]) -> list[Certificate | Unproved]:
        found: dict[Claim, Certificate | Unproved] = {}
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
                generator = self.generator()
                changes: dict[str, float] = {}
                for name, make in self._strangers(group, generator, changes):
                    change = self._felt(site, name, make, values, felt)
                    if change is not None:
                        changes[name] = change
                found[key] = self._judged(error, moved[key], changes)
            except Unproved as problem:
                found[key] = problem
            except Exception as problem:
                found[key] = Unproved(
                    f"no element could act on a copy: {type(problem).__name__}: {problem}"
                )
        return [found[key] for key in keys]

    def _doubted(self, site: Site, element: Element) -> None:
        """Raises `Unproved` if the copy does not compute with its own weights.

        Some libraries bind the forward of a model to the model itself; a copy of it goes on using
        the weights of the original, and nothing can be said from it.
        """
        with self.restored():
            self.action.move(site, element)
            changed = self.weights.changed
        used = {name for *_, name in self._uses()}
        for name in changed:
            # What was idle, as an expert that no row reached, shows nothing.
            if name in self._owned or name not in used:
                continue
            with self.restored():
                self.weights.set(Slot(name), torch.full_like(self.weights.now(name), math.nan))
                outputs = self._run()[0]
            if largest_change(self.outputs, outputs) == 0.0:
                raise Unproved(
                    f"a copy of the model does not use its own {name}: its forward is bound to the "
                    "original"
                )
            self._owned.add(name)

    def _together(
        self, claims: Mapping[Claim, tuple[Site, Group]]
    ) -> tuple[float, dict[Claim, float]]:
        """By how much the outputs move when all groups act, and each site misses its element."""
        error, moved = 0.0, dict.fromkeys(claims, 0.0)
        sites = [site for site, _ in claims.values()]
        untouched = self._untouched(sites)
        for acting in self._rounds(claims):
            with self.restored():
                before = untouched
                for phase, made in acting:
                    outputs, after = self._run(sites)
                    error = max(error, largest_change(self.outputs, outputs))
                    for key in phase:
                        site = claims[key][0]
                        old, new = self._at(site, before[site]), self._at(site, after[site])
                        moved[key] = max(moved[key], self._missed(key, made, old, new))
                    before = after
        return error, moved

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
        with self.restored():
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
        known_as: dict[int, set[str]] = {}
        for node, tensor, name in self._uses():
            known_as.setdefault(id(tensor), set()).add(name)
            if name in changed:
                users.append(node)
                fixed[id(tensor)] = self.weights.now(name)
        if any(len(known_as[key]) > 1 for key in fixed):
            # What is tied was changed apart: it is felt where the model itself computes with it.
            return 0.0
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
        meeting = self.action.derivation.heads.attention_before(self._stream(site))
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

    def _untouched(self, sites: Sequence[Site]) -> dict[Site, Tensor]:
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
