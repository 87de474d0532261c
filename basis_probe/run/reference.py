"""Do two networks come to the same axes? Their axes against each other, and against turned ones.

If nothing but the group ties a network to its axes, another network trained from another seed has
no reason to share them: score(X, Y) is then no larger than score(X', Y) for the axes X' of an
alternative frame. Where it is larger, training singles the axes out, in both networks alike.

Source: Khosla, Williams, McDermott and Kanwisher (2024), Privileged representational axes in
biological and artificial neural networks; Brown, Vyas and Bansal (2023), On Privileged and
Convergent Bases in Neural Network Representations.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from basis_probe.errors import DataError, SiteError, StreamError
from basis_probe.interrupts import hold, stoppable, unstoppable
from basis_probe.model.batches import Batch
from basis_probe.model.facts import facts_of
from basis_probe.model.network import Subject, prepared, recognise
from basis_probe.model.sites import asked
from basis_probe.results.report import Report
from basis_probe.run.read import batches_of, count_of
from basis_probe.run.report import Session
from basis_probe.run.stream import Plan, Seen, Stream
from basis_probe.run.watch import Choices
from basis_probe.statistics.p_values import Tail
from basis_probe.statistics.scores import Invariance, Reads, Rows, Score

NAME = "convergence"


def convergence_score(y: Float[Tensor, "samples dim_y"]) -> Score:
    """The score that asks of every axis how well the best axis of another network matches it.

    Args:
        y: the other network's activations for the very rows that the frames hold.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> y = torch.randn(200, 5, generator=generator)
        >>> score = convergence_score(y)
        >>> score.per_direction(Rows(-2 * y[:, [3, 1]].double())).round(decimals=6).tolist()
        [1.0, 1.0]
    """
    whole = y.double()

    @functools.lru_cache(maxsize=4)
    def standard(count: int) -> Tensor:
        return _standard(whole[:count])

    def per_direction(rows: Rows) -> Tensor:
        x = rows.x
        if rows.chosen is None:
            other = standard(len(x))
        else:
            other = _standard(whole[rows.chosen.to(whole.device)])
        size = x.std(0, correction=0)
        correlations = _standard(x).T @ other.to(x)
        best = correlations.abs().amax(1)
        return torch.where(size > 0, best, torch.full_like(best, torch.nan))

    return Score(
        name=NAME,
        per_direction=per_direction,
        reads=Reads.ACTIVATIONS,
        tail=Tail.UPPER,
        formula="for every axis the largest |correlation| with an axis of the other network",
        source="Khosla et al. 2024; Brown, Vyas and Bansal 2023",
        range="[0, 1]",
        invariant_under=frozenset(
            {
                Invariance.PERMUTATIONS,
                Invariance.POSITIVE_SCALES,
                Invariance.SIGNS,
                Invariance.OFFSETS,
                Invariance.ONE_SCALE,
            }
        ),
        not_for="saying that two networks hold the same information: turned axes hold it too",
    )


def _standard(x: Tensor) -> Tensor:
    """Columns of mean zero and unit length; those that never vary are zero."""
    centred = x - x.mean(0)
    size = centred.norm(dim=0)
    return centred / torch.where(size == 0, torch.full_like(size, torch.inf), size)


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    """Another network that sees the batches of a probe, and keeps the same rows.

    Attributes:
        subject: the network.
        stream: what has been seen at its sites.
        missing: sites of the probed model that it does not have.
    """

    subject: Subject
    stream: Stream
    missing: tuple[str, ...]

    @staticmethod
    def open(
        model: nn.Module,
        first: Batch,
        names: Iterable[str],
        *,
        seed: int,
        capacity: int,
        most: int | None,
    ) -> "Reference":
        """The other network at the sites of the same names, nothing seen at them yet.

        Args:
            model: the other network, in evaluation mode.
            first: the first batch; it is not counted yet.
            names: the sites of the probed model.
            seed: that of the probe, so that the same rows are kept.
            capacity: how many rows are kept at each site.
            most: at most this many samples at each site.

        Raises:
            SiteError: if it has none of the sites.
        """
        subject = recognise(model)
        facts = facts_of(subject, first)
        plans: dict[str, Plan] = {}
        missing: list[str] = []
        for name in names:
            if name not in facts.sites:
                missing.append(name)
                continue
            site = asked([name], facts.sites, silent=subject.silent())[name]
            dim = 1
            for size in facts.shape(site):
                dim *= size
            plans[name] = Plan(address=site.address, layout=facts.layout(site), dim=dim)
        if not plans:
            raise SiteError(
                f"the reference has none of the sites {', '.join(missing[:5])}: give a network "
                "with places of the same names"
            )
        stream = Stream(plans, seed=seed, capacity=capacity, most=most)
        return Reference(subject, stream, tuple(missing))

    def look(self, batch: Batch) -> Callable[[], None]:
        """What adds what a batch shows, once it is called."""
        call = functools.partial(self.subject.call, batch)
        return self.stream.look(self.subject.model, batch, call)

    def scores(self, seen: Mapping[str, Seen]) -> tuple[dict[str, tuple[Score, ...]], list[str]]:
        """The score of every site against the reference, and where there is none.

        Args:
            seen: what was seen of the probed model.
        """
        found: dict[str, tuple[Score, ...]] = {}
        notes: list[str] = []
        for name, own in seen.items():
            other = self.stream.seen.get(name)
            if other is None:
                notes.append(f"The reference has no site {name}.")
            elif other.bad or not torch.equal(own.kept.priorities, other.kept.priorities):
                notes.append(
                    f"The reference holds other samples than the model at {name}, or NaN, so that "
                    "their axes were not compared."
                )
            elif len(other.kept.priorities):
                found[name] = (convergence_score(other.kept.rows["x"]),)
        return found, notes


def probe_beside(
    subject: Subject,
    reference: nn.Module,
    data: Iterable[Any],
    choices: Choices,
    notes: tuple[str, ...],
) -> Report:
    """The report of a model whose axes are compared with those of another network.

    Args:
        subject: the model, in evaluation mode.
        reference: the other network; it is put on the model's device, and back.
        data: batches, each of which both networks see.
        choices: what the user asked for.
        notes: what a reader must know of how the model was run.

    Raises:
        DataError: if there is no batch.
        SiteError: if the reference has none of the sites.
        StreamError: if the data or one of the networks fail later.
    """
    from tqdm.auto import tqdm

    batches = batches_of(data, subject)
    first = next(batches, None)
    if first is None:
        raise DataError("the data hold no batch: give at least one, better several")
    session = Session.open(subject, first, choices)
    stream = session.stream
    with prepared(reference, subject.device) as more:
        other = Reference.open(
            reference,
            first,
            stream.plans,
            seed=choices.seed,
            capacity=choices.capacity,
            most=choices.max_samples,
        )
        more = tuple(note.replace("The model", "The reference", 1) for note in more)
        said = f"The axes were compared with those of another network, {other.subject.description}."

        def finish(*, partial: bool, why: str = "") -> Report:
            further, missing = other.scores(stream.seen)
            beside = dataclasses.replace(session, further=further)
            return beside.report(partial=partial, notes=(*notes, *more, *missing, why, said))

        bar = tqdm(
            total=count_of(data),
            desc="running both models",
            unit="batch",
            disable=not choices.progress,
            leave=False,
        )
        batch: Batch | None = first
        try:
            while batch is not None:
                # Both or none: a batch counts once both networks have run on it.
                mine = stream.look(subject.model, batch, functools.partial(subject.call, batch))
                theirs = other.look(batch)
                with unstoppable():
                    mine()
                    theirs()
                    hold()
                bar.update()
                with stoppable():
                    batch = None if stream.full else next(batches, None)
        except KeyboardInterrupt:
            if not stream.batches:
                raise
            hold()
            why = f"The run was interrupted after {stream.batches} batches."
            return finish(partial=True, why=why)
        except Exception as error:
            if not stream.batches:
                raise
            what = f"{type(error).__name__}: {error}"
            why = f"The run failed after {stream.batches} batches: {what}"
            raise StreamError(
                f"batch {stream.batches} failed: {what}. The {stream.batches} batches before it "
                "are kept: call .report() of this error for their report",
                batches=stream.batches,
                finish=lambda: finish(partial=True, why=why),
            ) from error
        finally:
            bar.close()
        return finish(partial=False)
