"""Whether an untrained network stands out where a model does: initialisation, or training."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack

from torch import nn

from basis_probe.architecture.derive import Derivation
from basis_probe.evidence.site import Origin, gather
from basis_probe.interrupts import stoppable
from basis_probe.model.batches import Batch
from basis_probe.model.facts import facts_of
from basis_probe.model.network import Subject, prepared, recognise
from basis_probe.results.report import Outcome, SiteReport
from basis_probe.run.cases import case_of
from basis_probe.run.stream import Stream
from basis_probe.run.twins import drawn_anew, settle
from basis_probe.run.watch import Choices, Placed, Watched, placed
from basis_probe.verdict import report

Batches = Callable[[], Iterable[Batch]]
"""Gives the first batches once more."""


@dataclasses.dataclass(frozen=True)
class Asked:
    """What was found out.

    Attributes:
        origins: site -> what an untrained network shows there.
        notes: where nothing was found out, and why.
        interrupted: whether the user broke it off.
    """

    origins: Mapping[str, Origin] = dataclasses.field(default_factory=dict[str, Origin])
    notes: tuple[str, ...] = ()
    interrupted: bool = False


def is_asked(wanted: bool | nn.Module | None) -> bool:
    """True where an untrained network is asked about every site.

    Not whether it is true: containers of layers, and whatever torch compiles, have a length.
    """
    return wanted is not None and wanted is not False


def require_another(wanted: bool | nn.Module | None, subject: Subject) -> None:
    """Fails for an untrained network that cannot be watched, or is the very model that is asked of.

    Raises:
        TypeError: for what cannot be watched.
        ValueError: for the model itself, compiled, wrapped or as it is.
    """
    if not isinstance(wanted, nn.Module):
        return
    other = recognise(wanted, called="initialisation").model
    own = {id(parameter) for parameter in subject.model.parameters()}
    its = {id(parameter) for parameter in other.parameters()}
    if other is subject.model or (its and its <= own):
        raise ValueError(
            "initialisation is the model itself, or holds the very same parameters: give the "
            "network as it was before training, such as a copy (copy.deepcopy) of then, or True "
            "for a copy that is drawn anew"
        )


def ask(watching: Watched, choices: Choices, sites: Sequence[SiteReport], again: Batches) -> Asked:
    """What an untrained network shows where the axes of a model stand out unasked.

    Model and untrained network see the same batches, from the first on, until as many samples were
    kept as are compared. Where nobody asked for it, embeddings alone are looked at, on the first
    batch.

    Args:
        watching: the model and its sites.
        choices: what was asked for.
        sites: the verdicts on what was seen.
        again: the first batches.
    """
    wanted = choices.initialisation
    names = [
        site.site
        for site in sites
        if site.verdict.outcome is Outcome.EMERGENT
        and (wanted is not None or (site.orders and site.layer is None))
    ]
    if not names or wanted is False:
        return Asked()
    try:
        with stoppable():
            given = isinstance(wanted, nn.Module)
            twin = wanted if given else drawn_anew(watching.subject.model, seed=choices.seed)
            if isinstance(twin, str):
                found = Asked(notes=(_untold(names, twin),))
            else:
                batches = again() if wanted is not None else [watching.first]
                found = _compared(watching, choices, names, twin, batches, given=given)
    except KeyboardInterrupt:
        said = "It was interrupted while an untrained network was run."
        found = Asked(notes=(said,), interrupted=True)
        return found if wanted is not None else Asked()
    except Exception as error:
        # The report of the model is made, and what the other network does is no matter of it.
        found = Asked(notes=(_untold(names, f"the untrained network failed: {error}"),))
    return found if wanted is not None else Asked(found.origins)


def _untold(names: Sequence[str], why: str) -> str:
    return f"Whether the initialisation has such axes is not known of {', '.join(names)}: {why}."


class _Side:
    """A network, and what was seen at the sites that are asked about."""

    def __init__(self, subject: Subject, places: Mapping[str, Placed], choices: Choices) -> None:
        self.subject, self.places, self.choices = subject, places, choices
        self.stream = Stream(
            {name: place.plan for name, place in places.items()},
            seed=choices.seed,
            capacity=choices.capacity,
            most=choices.max_samples,
        )

    def see(self, batch: Batch) -> None:
        model = self.subject.model
        self.stream.see(model, batch, functools.partial(self.subject.call, batch))

    @property
    def full(self) -> bool:
        """Whether no more samples would be compared than there are."""
        least = min(seen.moments.count for seen in self.stream.seen.values())
        return self.stream.full or least >= self.choices.capacity

    def sites(self) -> tuple[SiteReport, ...]:
        """The verdicts."""
        choices, stream = self.choices, self.stream
        return report(
            [
                gather(
                    case_of(name, place, stream.seen[name], stream.batches, self.subject.dtype),
                    choices.scores,
                    choices.null,
                    seed=choices.seed,
                    device=self.subject.device,
                )
                for name, place in self.places.items()
            ]
        )


def _compared(
    watching: Watched,
    choices: Choices,
    names: Sequence[str],
    twin: nn.Module,
    batches: Iterable[Batch],
    *,
    given: bool,
) -> Asked:
    """What both networks show on the same batches."""
    untrained = recognise(twin, called="initialisation")
    untrained.own_tokenizer = watching.subject.own_tokenizer
    with ExitStack() as stack:
        stack.enter_context(prepared(untrained.model, watching.subject.device if given else None))
        if not given:
            settle(untrained.model, [functools.partial(untrained.call, watching.first)])
        derivation = Derivation(facts_of(untrained, watching.first))
        here = {n: s for n, s in derivation.seen.sites.items() if n in names}
        if not here:
            return Asked(notes=(_untold(names, "the untrained network has no such site"),))
        groups = {name: watching.places[name].symmetry.group for name in here}
        mine = _Side(watching.subject, {name: watching.places[name] for name in here}, choices)
        other = _Side(untrained, placed(derivation, here, groups), choices)
        for batch in batches:
            mine.see(batch)
            other.see(batch)
            if mine.full and other.full:
                break
        count = mine.stream.batches
        seen = "the first batch" if count == 1 else f"the first {count} batches"
        own, others = ({site.site: site for site in side.sites()} for side in (mine, other))
    origins: dict[str, Origin] = {}
    notes = [_untold([n for n in names if n not in here], "the untrained network has no such site")]
    for name in here:
        undecided = [s for s in (own[name], others[name]) if s.verdict.outcome not in _DECIDED]
        if undecided:
            what = "the untrained network" if undecided[0] is others[name] else "the model"
            said = undecided[0].verdict.sentence.rstrip(".")
            notes.append(_untold([name], f"of {what} on {seen} it is said: {said}"))
            continue
        orders = own[name].verdict.orders, others[name].verdict.orders
        origins[name] = Origin(*orders, seen=seen, given=given)
    return Asked(origins, tuple(notes[len(here) == len(names) :]))


_DECIDED = (Outcome.EMERGENT, Outcome.ARBITRARY)
