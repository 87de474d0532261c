"""The proof by the record of the model, run again in float64 with changed weights.

No copy is made: a change of a weight is noted, and made only while the calls run that use it. So a
model is proved on the memory of one of its matrices, whatever its size.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from basis_probe.algebra.elements import Element
from basis_probe.algebra.groups import Group
from basis_probe.architecture.act import Action
from basis_probe.architecture.derive import Derivation
from basis_probe.architecture.prove import (
    DRAWS,
    MARGIN,
    TOLERANCE,
    Claim,
    Prover,
    Unproved,
    largest_change,
)
from basis_probe.architecture.strangers import Maker, strangers
from basis_probe.model.batches import Batch
from basis_probe.model.deferred import DeferredWeights
from basis_probe.model.facts import Facts
from basis_probe.model.longer import of_shorter
from basis_probe.model.network import Subject, prepared, recognise
from basis_probe.model.places import Site
from basis_probe.model.precision import doubled, with_noise
from basis_probe.model.shorter import shorter
from basis_probe.model.sweep import ReplayError, Sweep, Version
from basis_probe.model.trace import tensors_in
from basis_probe.model.weights import Slots, WeightError
from basis_probe.results.symmetry import Certificate

_NEAR = 100.0
"""So many times the model's precision what its record returns may differ from what it returns."""

Feel = tuple[frozenset[int], str]
"""The streams that a stranger changes, and what it is called."""

_UNFELT = MARGIN * TOLERANCE
"""What is changed by less, such as by rounding, is not felt."""


class LocalProver(Prover[DeferredWeights]):
    """Proves claims on the record of the model, without a copy of it.

    Args:
        model: in evaluation mode; it stays as it is.
        batch: examples to run it on; a few are enough.
        facts: what was seen of the model.
        derivation: what was derived from that.
        seed: seeds the elements.

    Raises:
        Unproved: if the record cannot be run again, or does not return what the model returns.
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
        self.facts, self.seed = facts, seed
        try:
            self.weights = DeferredWeights(model, facts.graph.trace.quantised)
        except WeightError as error:
            raise Unproved(str(error)) from error
        subject = recognise(model)
        slots = Slots(model, facts.graph.trace)
        recorded = facts.graph.trace if facts.recorded is None else facts.recorded
        few, trace = shorter(subject, batch, recorded)
        self.asked = frozenset(trace.asked)
        self.nodes = {site.node for site in facts.sites.values()}
        self.sweep = Sweep(trace, slots, self.nodes | self.asked)
        self.action = Action(derivation, slots, self.weights)
        self.tolerance = TOLERANCE
        self.outputs = []
        self._inputs = _given(with_noise(doubled(few)))
        self._require_replay(subject, with_noise(few))
        self.sweep.instead = facts.graph.trace.instead
        self.weights.begin_with(self.sweep.instead)
        self.sweep.further = of_shorter(trace, facts.graph.trace.further)

    def _require_replay(self, subject: Subject, batch: Batch) -> None:
        """Raises `Unproved` if the record does not return what the model returns."""
        # The model itself runs: also where a report is made of what an interrupted run saw.
        try:
            with prepared(subject.model, None), torch.no_grad():
                first, again = (
                    [
                        tensor.detach().clone()
                        for tensor in tensors_in(subject.call(batch))
                        if tensor.is_floating_point()
                    ]
                    for _ in range(2)
                )
        except Exception as error:
            raise Unproved(
                f"the model does not run again on the example: {type(error).__name__}: {error}"
            ) from error
        if not first:
            raise Unproved("the model returns no floating-point tensor")
        if not all(bool(tensor.isfinite().any()) for tensor in first):
            raise Unproved("the model returns no finite number")
        precision = max(torch.finfo(tensor.dtype).eps for tensor in first)
        differed = largest_change(first, again)
        if differed > precision:
            raise Unproved(
                "the model is not deterministic: the same input gave outputs that differ by "
                f"{differed:.1e}"
            )
        try:
            replayed = self.sweep.own(_given(batch))
        except ReplayError as error:
            raise Unproved(f"what the model did cannot be done again: {error}") from error
        apart = max(change_of(*both) for both in zip(first, replayed, strict=True))
        if apart > min(_NEAR * precision, precision**0.5 / 2):
            raise Unproved(
                "what was recorded of the model does not return what the model returns: they "
                f"differ by {apart:.1e}"
            )

    # --- many claims ------------------------------------------------------------------------------

    def survey(self, claims: Sequence[tuple[Site, Group]]) -> list[Certificate | Unproved]:
        keys = [(self._stream(site), group) for site, group in claims]
        distinct = dict(zip(keys, claims, strict=True))
        found = self._surveyed(distinct)
        return [found[key] for key in keys]

    def _surveyed(
        self, claims: Mapping[Claim, tuple[Site, Group]]
    ) -> dict[Claim, Certificate | Unproved]:
        strange = _Strangers(self, claims)
        try:
            error, moved = self._together(claims, strange)
        except Exception:
            found = self._unmovable(claims)
            if found:
                left = {key: claim for key, claim in claims.items() if key not in found}
                return found | (self._surveyed(left) if left else {})
            error, moved = math.inf, {}
        if error > self.tolerance and len(claims) > 1:
            # In halves, until it is known which claim it is.
            both = [*claims.items()]
            half = len(both) // 2
            return self._surveyed(dict(both[:half])) | self._surveyed(dict(both[half:]))
        found = {
            key: self._alone(*claim)
            for key, claim in claims.items()
            if max(error, moved.get(key, math.inf)) > self.tolerance
        }
        strange.finish(set(claims) - set(found))
        for key in set(claims) - set(found):
            try:
                found[key] = strange.problems.get(key) or self._judged(
                    error, moved[key], strange.changes[key]
                )
            except Unproved as problem:
                found[key] = problem
        return found

    def _alone(self, site: Site, group: Group) -> Certificate | Unproved:
        try:
            return self.certify(site, group)
        except Unproved as problem:
            return problem
        except Exception as problem:
            return Unproved(f"the replay failed: {type(problem).__name__}: {problem}")

    def _unmovable(
        self, claims: Mapping[Claim, tuple[Site, Group]]
    ) -> dict[Claim, Certificate | Unproved]:
        """The claims of which no element can act on the weights, and why."""
        found: dict[Claim, Certificate | Unproved] = {}
        for key, (site, group) in claims.items():
            try:
                with self.restored():
                    self.action.move(site, group.generic(self.generator()))
            except Unproved as problem:
                found[key] = problem
            except Exception as problem:
                found[key] = Unproved(f"no element acts: {type(problem).__name__}: {problem}")
        return found

    def _together(
        self, claims: Mapping[Claim, tuple[Site, Group]], strange: "_Strangers"
    ) -> tuple[float, dict[Claim, float]]:
        """By how much the outputs move when all groups act, and each site misses its element.

        Strangers are felt in the same sweep.
        """
        phases: list[tuple[set[Claim], dict[int, Element]]] = []
        versions: list[Version] = []
        # Phase -> the one that its weights were changed from; 0 for the model as it is.
        bases: list[int] = []
        for acting in self._rounds(claims):
            with self.restored():
                base = 0
                for phase, made in acting:
                    phases.append((phase, made))
                    versions.append(Version(self.weights.changes))
                    bases.append(base)
                    base = len(phases)
        moved = dict.fromkeys(claims, 0.0)
        at: dict[int, list[tuple[int, Claim]]] = {}
        for number, (phase, _) in enumerate(phases):
            for key in phase:
                at.setdefault(claims[key][0].node, []).append((number, key))
        error = 0.0
        outputs: dict[int, Tensor] = {}

        def look(index: int, value: Tensor, changed: dict[int, Tensor]) -> None:
            nonlocal error
            every = [value, *(changed.get(number, value) for number in range(len(phases)))]
            if index in self.sweep.outputs:
                outputs[index] = value
                error = max(error, *(change_of(value, new) for new in every))
            if index in self.asked and not all(_alike(value, new) for new in every):
                error = math.inf
            for number, key in at.get(index, ()):
                site = claims[key][0]
                old, new = (self._at(site, every[one]) for one in (bases[number], number + 1))
                moved[key] = max(moved[key], self._missed(key, phases[number][1], old, new))
            strange.look(index, value, changed)

        strange.draw(claims)
        failed = self.sweep.run(self._inputs, [*versions, *strange.versions(len(versions))], look)
        if any(number < len(phases) for number in failed):
            error = math.inf
        self.outputs = [outputs[index] for index in self.sweep.outputs]
        return error, moved

    def feel(self, strange: "_Strangers") -> "dict[Feel, str]":
        """Lets strangers act; those that cannot run, and why."""
        versions = strange.versions()
        if not versions:
            return {}
        return strange.failures(self.sweep.run(self._inputs, versions, strange.look))

    # --- running ----------------------------------------------------------------------------------

    def _untouched(self, sites: Sequence[Site]) -> dict[Site, Tensor]:
        self.outputs, caught = self._run(sites)
        return caught

    def _run(self, sites: Sequence[Site] = ()) -> tuple[list[Tensor], dict[Site, Tensor]]:
        wanted = {*self.sweep.outputs, *(site.node for site in sites)}
        found: dict[int, Tensor] = {}

        def look(index: int, value: Tensor, changed: dict[int, Tensor]) -> None:
            new = changed.get(0, value)
            if index in self.asked and not _alike(value, new):
                raise Unproved("what the model's code chooses by changes with the weights")
            if index in wanted:
                found[index] = new

        failed = self.sweep.run(self._inputs, [Version(self.weights.changes)], look)
        if failed:
            raise Unproved(f"with changed weights it does not run: {failed[0]}")
        return [found[i] for i in self.sweep.outputs], {site: found[site.node] for site in sites}

    def _doubted(self, site: Site, element: Element) -> None:
        """Nothing stands between the record and the weights that it was made with."""

    def ends(self, site: Site, changed: Sequence[str]) -> frozenset[int]:
        """Where a change of weights around a site is felt first: at the last linear maps."""
        meeting = self.action.derivation.heads.attention_before(self._stream(site))
        if meeting is not None:
            return frozenset({meeting.vertex})
        trace = self.sweep.trace
        users = self.sweep.users(changed)
        live = {index for index in users if trace.node(index).live}
        reaching: set[int] = set()
        for index in range(users[-1], users[0] - 1, -1) if users else ():
            if any(i in live or i in reaching for i in trace.readers.get(index, ())):
                reaching.add(index)
        return frozenset(live - reaching)


class _Strangers:
    """Strangers to the groups of many claims, and by how much each changes what is computed.

    Attributes:
        changes: claim -> name of a stranger -> by how much it changed what is computed.
        problems: claim -> why no stranger could be made.
    """

    def __init__(self, prover: LocalProver, claims: Mapping[Claim, tuple[Site, Group]]) -> None:
        self.prover, self.claims = prover, claims
        self.changes: dict[Claim, dict[str, float]] = {key: {} for key in claims}
        self.problems: dict[Claim, Unproved] = {}
        self._generators = {key: prover.generator() for key in claims}
        self._felt: dict[Feel, float] = {}
        self._waiting: list[tuple[Claim, str, Feel]] = []
        self._versions: dict[Feel, Version] = {}
        self._numbers: dict[int, Feel] = {}

    def draw(self, claims: Iterable[Claim]) -> None:
        """Makes strangers to the groups of some claims; again where those before moved nothing."""
        for key in claims:
            site, group = self.claims[key]
            seen = dict(self.changes[key])
            for name, make in strangers(group, self._generators[key]).items():
                if not seen or seen.get(name, 1.0) <= _UNFELT:
                    try:
                        self._make(key, site, name, make)
                    except Unproved as problem:
                        self.problems[key] = problem
                        break

    def _make(self, key: Claim, site: Site, name: str, make: Maker) -> None:
        prover = self.prover
        with prover.restored():
            streams = prover.action.strain(site, make)
            changes = prover.weights.changes
        if not streams or not changes:
            return
        feel = frozenset(streams), name
        self._waiting.append((key, name, feel))
        if feel not in self._versions and self._felt.get(feel, 0.0) <= _UNFELT:
            returned = prover.facts.streams[key[0]].returned
            ends = None if returned else prover.ends(site, tuple(changes))
            self._versions[feel] = Version(changes, ends)

    def versions(self, first: int = 0) -> list[Version]:
        """The weights of all strangers that wait, numbered from the first on."""
        self._numbers = {first + place: feel for place, feel in enumerate(self._versions)}
        return [*self._versions.values()]

    def look(self, index: int, value: Tensor, changed: Mapping[int, Tensor]) -> None:
        """Takes in what strangers change at a node."""
        for number, new in changed.items():
            feel = self._numbers.get(number)
            if feel is None:
                continue
            if self._versions[feel].ends is None and index not in self.prover.sweep.outputs:
                continue
            # Where other rows are sent to an expert, all of it is another.
            change = change_of(value, new) if value.shape == new.shape else 1.0
            self._felt[feel] = max(self._felt.get(feel, 0.0), change)

    def finish(self, claims: Iterable[Claim]) -> None:
        """Says of each stranger what it changed; those that changed nothing are drawn again."""
        claims = [*claims]
        for draw in range(DRAWS if claims else 0):
            if draw:
                self.draw(claims)
                self.prover.feel(self)
            # What is not felt nearby may be felt in what the model returns.
            idle = {f: v for f, v in self._versions.items() if self._felt.get(f, 0.0) <= _UNFELT}
            self._versions = {
                feel: Version(v.changes) for feel, v in idle.items() if v.ends is not None
            }
            failed = self.prover.feel(self)
            for key, name, feel in self._waiting:
                if feel in failed:
                    self.problems[key] = Unproved(f"with a {name} it does not run: {failed[feel]}")
                self.changes[key][name] = self._felt.get(feel, 0.0)
            self._waiting.clear()
            self._versions.clear()
            least = {key: min(self.changes[key].values(), default=1.0) for key in claims}
            claims = [key for key in claims if least[key] <= _UNFELT]
            claims = [key for key in claims if key not in self.problems]
            if not claims:
                break

    def failures(self, failed: Mapping[int, str]) -> dict[Feel, str]:
        """The strangers among the versions that failed, and why."""
        return {self._numbers[n]: why for n, why in failed.items() if n in self._numbers}


def change_of(before: Tensor, after: Tensor) -> float:
    """The largest change of any number, relative to the largest; infinite for other shapes."""
    return largest_change([before], [after]) if before.shape == after.shape else math.inf


def _alike(before: Tensor, after: Tensor) -> bool:
    """True if code that reads the numbers does the same with both."""
    if before.is_floating_point():
        return change_of(before, after) <= TOLERANCE
    return torch.equal(before, after)


def _given(batch: Batch) -> list[Tensor]:
    """The tensors that a model is given, in the order of its record."""
    return [*tensors_in((batch.args, batch.kwargs))]
