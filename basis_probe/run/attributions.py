"""How few axes carry a loss, site by site: from rows and gradients, beside untrained twins."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

from basis_probe.architecture.derive import Derivation
from basis_probe.errors import DataError, SiteError
from basis_probe.evidence.attribution import ROWS, TWINS, Carried, Twins, carried, result
from basis_probe.evidence.site import Evidence
from basis_probe.model.experts import Expert
from basis_probe.model.facts import facts_of
from basis_probe.model.losses import Loss
from basis_probe.model.network import Subject, prepared, recognise
from basis_probe.run.gradients import Gradients, PathGradients
from basis_probe.run.problems import problem_of
from basis_probe.run.stream import Seen, Stream
from basis_probe.run.twins import drawn_anew, reinitialised, settle
from basis_probe.run.watch import Choices, Placed, Watched, placed
from basis_probe.statistics.nulls import Null
from basis_probe.statistics.p_values import holm
from basis_probe.statistics.scores import ATTRIBUTIONS, INTEGRATED

LEVEL = 0.05


class Attributions:
    """The score of every site, in the course of a run.

    Args:
        watching: the model and its sites.
        choices: what was asked for.
        gradients: those of the run, which holds the first batches.
    """

    def __init__(self, watching: Watched, choices: Choices, gradients: Gradients) -> None:
        self.watching, self.choices, self.gradients = watching, choices, gradients
        (self.name,) = (name for name in choices.own if name in ATTRIBUTIONS)
        self.found: dict[str, Carried] = {}
        self.troubles: dict[str, str] = {}
        self._twins: dict[str, Twins] = {}

    def see(self, name: str, seen: Seen) -> None:
        """Compares the axes of a site, whose rows were kept."""
        place = self.watching.places[name]
        found = self._of(place, seen, self.watching.subject.dtype, twin=False)
        if isinstance(found, str):
            more = f" ({self.gradients.trouble})" if self.gradients.trouble else ""
            self.troubles[name] = f"Attribution was left out: {found}{more}."
        else:
            self.found[name] = found

    def added(self, gathered: Mapping[str, Evidence]) -> dict[str, Evidence]:
        """The evidence of all sites with their scores, adjusted for the number of sites."""
        leaders = self.watching.leaders
        results = {
            name: result(
                self.name, self.found[leaders[name]], self._twins.get(leaders[name]), one.case.dim
            )
            for name, one in gathered.items()
            if leaders[name] in self.found
        }
        claims = [
            math.nan if self.found[leaders[name]].misleads else score.p_tail
            for name, score in results.items()
        ]
        adjusted = holm(torch.tensor(claims, dtype=torch.float64))
        made = dict(gathered)
        for (name, score), p in zip(results.items(), adjusted.tolist(), strict=True):
            found = self.found[leaders[name]]
            claimed = "" if math.isnan(p) or found.misleads else _claim(p, not found.neurons)
            score = dataclasses.replace(
                score, p_adjusted=p, note=f"{score.note}. {claimed}".strip()
            )
            made[name] = dataclasses.replace(
                made[name], scores={**made[name].scores, self.name: score}
            )
        for name, one in gathered.items():
            if leaders[name] in self.troubles:
                notes = (*one.case.notes, self.troubles[leaders[name]])
                made[name] = dataclasses.replace(
                    made[name], case=dataclasses.replace(one.case, notes=notes)
                )
        return made

    def compare_with_twins(self) -> tuple[str, ...]:
        """Runs untrained twins on the first batches; what a reader must know of it."""
        names = [name for name, found in self.found.items() if found.neurons]
        names = [name for name in names if name not in self._twins]
        if not names or not self.gradients.held:
            return ()
        # Twins are made here, and what is made in inference mode cannot be differentiated by.
        with torch.inference_mode(False):
            return self._compared(names)

    def _compared(self, names: Sequence[str]) -> tuple[str, ...]:
        model = self.watching.subject.model
        own = self._differences(
            self.watching.subject, self.watching.derivation, self.watching.places, names
        )
        untrained: dict[str, list[float]] = {name: [] for name in names}
        for index in range(TWINS):
            try:
                twin = _untrained(model, self.choices.seed + index)
            except ValueError as error:
                return (f"Attribution has no untrained twins beside it: {error}.",)
            try:
                for name, value in self._of_twin(twin, names).items():
                    untrained[name].append(value)
            except (DataError, SiteError):
                continue
        for name in names:
            values = tuple(value for value in untrained[name] if not math.isnan(value))
            self._twins[name] = Twins(own.get(name, math.nan), values)
        return ()

    def _of_twin(self, twin: nn.Module, names: Sequence[str]) -> dict[str, float]:
        subject = recognise(twin)
        held = self.gradients.held
        with prepared(subject.model, None):
            settle(subject.model, [lambda b=batch: subject.call(b) for batch in held])
            derivation = Derivation(facts_of(subject, held[0]))
            sites = {n: s for n, s in derivation.seen.sites.items() if n in names}
            groups = {name: self.watching.places[name].symmetry.group for name in sites}
            places = placed(derivation, sites, groups)
            return self._differences(subject, derivation, places, list(places))

    def _differences(
        self,
        subject: Subject,
        derivation: Derivation,
        places: Mapping[str, Placed],
        names: Iterable[str],
    ) -> dict[str, float]:
        """By how much neurons exceed their alternatives on the first batches."""
        plans = {name: places[name].plan for name in names}
        stream = Stream(plans, seed=self.choices.seed, capacity=ROWS, most=None)
        sites = [places[name].site for name in plans]
        gradients = self.gradients.beside(subject, derivation.seen.graph.trace, sites)
        for batch in self.gradients.held:
            stream.look(subject.model, batch, gradients.run(batch), gradients=gradients)()
        found: dict[str, float] = {}
        for name in plans:
            one = self._of(places[name], stream.seen[name], subject.dtype, twin=True)
            found[name] = one.difference if isinstance(one, Carried) and one.neurons else math.nan
        return found

    def _of(self, place: Placed, seen: Seen, dtype: torch.dtype, *, twin: bool) -> Carried | str:
        """How few axes carry the attribution of a site, or why that is not known."""
        if isinstance(place.site.address, Expert):
            return "derivatives are not followed to the rows of one expert"
        if seen.bad:
            return f"activations are NaN or infinite in batch {seen.bad[0][0]}"
        if not len(seen.kept.priorities):
            return "there are no activations"
        if "gradient" not in seen.kept.rows:
            return "no derivatives of a loss were kept"
        problem, _ = problem_of(place, seen, dtype)
        wanted: Null | None = self.choices.null
        gradient = seen.kept.rows["gradient"]
        return carried(problem, gradient, wanted=wanted, seed=self.choices.seed, twin=twin)


def gradients_of(watching: Watched, choices: Choices, loss: Loss | None) -> Gradients | None:
    """What differentiates a loss for the score that was asked for; None where none was.

    Raises:
        ValueError: if several were.
    """
    wanted = [name for name in choices.own if name in ATTRIBUTIONS]
    if not wanted:
        return None
    if wanted == [INTEGRATED]:
        trace = watching.derivation.seen.graph.trace
        sites = [place.site for place in watching.places.values()]
        return PathGradients(watching.subject, loss, trace, sites)
    return Gradients(watching.subject, loss)


def _untrained(model: nn.Module, seed: int) -> nn.Module:
    """A twin drawn by the model's own rules, or by Gaussian ones where those are not known."""
    drawn = drawn_anew(model, seed=seed)
    return reinitialised(model, seed=seed) if isinstance(drawn, str) else drawn


def _claim(p: float, turned: bool) -> str:
    others = "turned bases" if turned else "neurons that point elsewhere and untrained twins"
    if p <= LEVEL:
        return f"Fewer axes carry the loss than in {others} (adjusted p = {p:.2g})."
    return f"That is not beyond {others} (adjusted p = {p:.2g})."
