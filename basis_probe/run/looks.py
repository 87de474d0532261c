"""Looks at single forward passes of a model that somebody else runs, and what adds up over them."""

import dataclasses
import functools
import math
from collections.abc import Mapping

from basis_probe.evidence.measure import choose
from basis_probe.evidence.site import Evidence, gather
from basis_probe.model.batches import Batch
from basis_probe.results.history import Glance, History, Look
from basis_probe.run.cases import case_of
from basis_probe.run.optimizers import NAME, OptimizerMoments
from basis_probe.run.report import Session
from basis_probe.run.stream import Seen, Stream
from basis_probe.run.watch import QUICK, Choices
from basis_probe.statistics.anytime import mean_e, weight
from basis_probe.statistics.nulls import Null, Problem

_FRAMES = 99
"""As many alternatives as the tail of their law takes."""


class Looking:
    """The looks of an attachment.

    Args:
        every: how many forward passes lie between looks.
        moments: what an optimiser is given; None where none is read.
    """

    def __init__(self, every: int, moments: OptimizerMoments | None = None) -> None:
        self.every, self.moments = every, moments
        self.looks: list[Look] = []
        self._sums: dict[str, float] = {}
        self._count = 0

    @property
    def history(self) -> History:
        """All looks so far."""
        return History(tuple(self.looks), self.every)

    def is_due(self, step: int) -> bool:
        """True if a pass is to be looked at."""
        return step % self.every == 0

    def look(self, session: Session, batch: Batch, step: int) -> None:
        """Runs the model on a batch, in evaluation mode, and adds what it shows."""
        stream = self._stream(session)
        call = functools.partial(session.subject.call, batch)
        stream.see(session.subject.model, batch, call)
        self._add(session, stream, step)

    def _stream(self, session: Session) -> Stream:
        return Stream(
            session.watching.plans,
            seed=session.choices.seed,
            capacity=min(QUICK, session.choices.capacity),
            most=session.choices.max_samples,
            forgiving=True,
        )

    def _add(self, session: Session, stream: Stream, step: int) -> None:
        self._count += 1
        seen = stream.seen
        found = {
            leader: _evidence(session, leader, seen[leader], step)
            for leader in session.watching.plans
        }
        moments, seed = self.moments, session.choices.seed
        steps = {leader: moments and moments.glance(leader, seed + step) for leader in found}
        own = {leader: _e_value(one, steps[leader]) for leader, one in found.items()}
        for leader, value in own.items():
            if not math.isnan(value):
                before = self._sums.get(leader, 0.0)
                self._sums[leader] = before + weight(self._count) * value
        for name, leader in session.watching.leaders.items():
            one = found[leader]
            self.looks.append(
                Look(
                    step=step,
                    site=name,
                    n_samples=one.case.n_samples,
                    null="" if one.null is None else one.null.name,
                    scores=_glances(one, steps[leader]),
                    e_value=self._sums.get(leader, math.nan),
                    note=_note(one) or (moments.said_of(leader, session.places) if moments else ""),
                )
            )


def _evidence(session: Session, name: str, seen: Seen, step: int) -> Evidence:
    choices: Choices = session.choices
    place = session.places[name]
    case = case_of(name, place, seen, 1, session.subject.dtype)
    null = choices.null
    if null is None and case.problem is not None:
        null = _quick(case.problem)
    seed, device = choices.seed + step, session.subject.device
    return gather(case, choices.scores, null, seed=seed, device=device)


def _quick(problem: Problem) -> Null:
    """The null that the site calls for, in the size of a quick look."""
    null = choose(problem).null
    return dataclasses.replace(null, frames=min(null.frames, _FRAMES), samples=QUICK)


def _e_value(found: Evidence, step: Glance | None) -> float:
    """The e-value of one look, where the axes can be compared with exact alternatives."""
    tests = [] if step is None else [step.p_value]
    if found.null is None or found.null.approximate:
        return mean_e([max(p, 1e-300) for p in tests])
    tests += [score.p_tail for score in found.scores.values() if score.decides]
    if found.orders is not None:
        tests += [r.p_value for r in found.orders.records if r.order != "form"]
    return mean_e([max(p, 1e-300) for p in tests])


def _glances(found: Evidence, step: Glance | None) -> Mapping[str, Glance]:
    glances = {
        name: Glance(s.observed, s.null_mean, s.null_std, s.effect, s.p_tail)
        for name, s in found.scores.items()
    }
    for r in () if found.orders is None else found.orders.records:
        if r.order != "form":
            glances[r.order] = Glance(r.observed, r.null_mean, r.null_std, r.effect, r.p_value)
    return glances if step is None else {**glances, NAME: step}


def _note(found: Evidence) -> str:
    if found.null is None:
        return found.case.trouble or "too few samples or none that vary"
    if found.null.approximate:
        return "no e-value: the alternatives are approximate here"
    return ""
