"""The main job: a model and data in, a report out."""

import dataclasses
import itertools
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from basis_probe.arguments import function, path, whole
from basis_probe.brief import described
from basis_probe.devices import on_own_device
from basis_probe.errors import DataError, StreamError
from basis_probe.evidence.site import Companions, listed_scores
from basis_probe.interrupts import guarded, hold
from basis_probe.model.losses import Loss
from basis_probe.model.network import Subject, device_of, prepared, recognise
from basis_probe.results.report import Report
from basis_probe.run.attributions import Attributions, gradients_of
from basis_probe.run.gradients import require_loss
from basis_probe.run.origins import Batches, is_asked, require_another
from basis_probe.run.parts import Part, Partial
from basis_probe.run.read import (
    Again,
    Reading,
    announced,
    batches_of,
    count_of,
    first_of,
    numbered,
    others,
    passes_of,
    require_batches,
)
from basis_probe.run.report import Concluding, kept
from basis_probe.run.watch import Choices, Effort, Groups, Watched
from basis_probe.statistics.nulls import Null, RandomWeights
from basis_probe.statistics.scores import ATTRIBUTIONS, Score

if TYPE_CHECKING:
    from basis_probe.statistics.bases import Candidate


@on_own_device
def probe(
    model: nn.Module,
    data: Iterable[Any],
    *,
    sites: str | Iterable[str] | None = None,
    scores: Iterable[str | Score] | None = None,
    null: str | Null | None = None,
    groups: Groups | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    max_samples: int | None = None,
    effort: Effort = "full",
    progress: bool = True,
    certificates: bool | None = None,
    initialisation: bool | nn.Module | None = None,
    bases: "Iterable[str | Candidate | np.ndarray | Tensor] | str | Candidate | None" = None,
    paths: int = 0,
    examples: int = 0,
    memory_budget: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    reference: nn.Module | None = None,
    tokenizer: Any = None,
    loss: Loss | None = None,
) -> Report:
    """A verdict for every site: what the architecture allows, what the data show, what follows.

    The data pass through the model once, in evaluation mode and without gradients. The same seed
    gives the same numbers for every batch size and order of the data, on every device, to the
    model's own precision. The model is left as it was: hooks, weights, modes, attributes, buffers,
    random state. Masks leave out padding at the sites whose rows they speak of, which is followed
    through the model; where it could not be followed, the notes of the site say so.

    Args:
        model: a `TransformerBridge`, an older `HookedTransformer`, a Hugging Face model or any
            `nn.Module`.
        data: an iterable of batches. A batch is a tensor [batch, ...]; a dict of keywords, whose
            `attention_mask` [batch, positions] drops padding from all statistics; a list of token
            ids, or of such lists; a row of a tokenised data set; a tuple or list whose first
            element is one of these; or a list of strings if there is a tokenizer. A tensor or array
            or a dict in place of the iterable is taken for one batch.
        sites: names or globs ("blocks.*.mlp.hook_post"); None for residual streams, attention
            outputs and neurons.
        scores: names of scores, any of `bp.scores.ALL` and `bp.scores.OWN`; None for
            `bp.scores.DEFAULT`.
        null: "rotation", "counterfactual" or a null as a value; None for the one each site calls
            for. Attributions are compared with it too.
        groups: groups that override the derived ones: one for all sites, or name or glob -> group
            or its name.
        seed: seeds the sample of rows and the alternatives.
        device: where the model runs; it is put back afterwards. None: where it is.
        max_samples: at most this many samples (tokens, pixels, rows) at each site.
        effort: "quick" for a look during training: at most 1,024 samples at each site and no
            proofs, unless max_samples or certificates say otherwise. The tests keep their level,
            and miss what only more samples show. Sites of up to some 500 axes take a third of their
            time; wider ones little less, as they are compared on so many samples anyway.
        progress: whether to show progress bars.
        certificates: whether to prove what is claimed of the architecture, in float64 and without a
            copy of the model; None to do so unless `effort` is "quick".
        initialisation: whether an untrained network is asked if its axes stand out too, wherever
            those of the model do and the architecture does not fix them: the sentence then says
            "initialisation" or "training". True: a copy drawn by its modules' own rules, which
            reads as many of the data again as are compared; a network: that one, such as a
            checkpoint of step 0, at the same sites. None: a copy at embeddings, on the first batch;
            False: nowhere. Where no such copy can be drawn, a note says why.
        bases: other bases to compare the axes of every site with: names ("pca", "ica", "varimax"
            ...), candidates, matrices [directions, dim], or paths: the folder of a SAELens
            autoencoder, a .safetensors file with its decoder, a .npy matrix; None for none. Each
            site's best one is returned, judged on samples that it was not fitted on, and a table of
            all where directions were given.
        paths: to how many turned bases the deciding score is followed at every site, 0 for none.
        examples: how many contexts to show of each of the five axes that stand out most at every
            site, and of as many rotated directions, as `with_examples` does; the data pass through
            the model once more. 0 for none.
        memory_budget: about how many bytes may be held beyond the model and its forward pass. Where
            all sites need more, the data pass through the model several times, for some sites at a
            time; a warning says so before the first. None for one pass.
        checkpoint: a file to which what was seen is written every minute, and when the run is
            interrupted or fails, or the process is told to end (SIGTERM, SIGHUP). If it exists, the
            run goes on where it ended, once the batches that it has seen are seen to be those of
            the data; it is removed when the report is made, unless `observe` or `Partial.save`
            wrote it.
        reference: another network with sites of the same names, trained from another seed: every
            site gets one more score, "convergence", which asks whether its axes are those of the
            other network rather than any turned ones.
        tokenizer: what turns strings into tokens, and token ids into words for examples; None for
            the model's own (`model.tokenizer`), if it has one.
        loss: for the scores "attribution" and "integrated_attribution": (output, the batch as the
            data gave it) -> loss, or whatever number is asked about, such as the difference of two
            logits. None for the loss that the model returns; else the cross-entropy of the class
            that is the batch's second element; else of the next token. It is differentiated once a
            batch for all sites; of "integrated_attribution" five times more for each of them.

    Raises:
        SiteError: if a name stands for no site; the message lists the nearest.
        DataError: if there is no batch, or the first one cannot be used.
        StreamError: if the data or the model fail later; its `report()` holds what was gathered.
        OSError: if the checkpoint cannot be written where it is meant to be.
        ValueError: for a checkpoint that is damaged or of another model, other data or settings;
            for a score, null, group or number that makes no sense.
        TypeError: for a model, reference or initialisation that is no network.

    Example:
        >>> import torch, basis_probe as bp
        >>> generator = torch.Generator().manual_seed(0)
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3)
        ... )
        >>> data = [torch.randn(100, 8, generator=generator) for _ in range(3)]
        >>> report = bp.probe(model, data, progress=False)
        >>> report.sites, report["1"].symmetry.group
        (('1',), PositiveMonomial(dim=16))
    """
    scores = listed_scores(scores)
    choices = Choices.of(
        sites=sites,
        scores=scores,
        null=null,
        groups=groups,
        seed=seed,
        max_samples=max_samples,
        certificates=certificates,
        progress=progress,
        initialisation=initialisation,
        companions=Companions.of(bases, paths, scores),
        effort=effort,
        runs=True,
    )
    attributes = [name for name in choices.own if name in ATTRIBUTIONS]
    if len(attributes) > 1:
        raise ValueError(
            f"{' and '.join(attributes)} are both asked for, and one derivative is kept of every "
            "sample: ask for one of them at a time"
        )
    if loss is not None:
        function("loss", loss, "a function of (output, batch), or None")
        if not attributes:
            raise ValueError(
                "loss is given and no score reads it: ask for scores=(*bp.scores.DEFAULT, "
                '"attribution"), or leave it out'
            )
    if attributes and reference is not None:
        raise ValueError(
            "attribution and a reference are both asked for, and a pass that two networks share "
            "is not differentiated: ask for one of them at a time"
        )
    twins = choices.null if isinstance(choices.null, RandomWeights) else None
    require_batches(data)
    if twins is not None and iter(data) is data:
        raise DataError(
            "null='random-weights' reads the data once for every twin of the model, and the data "
            f"are a {type(data).__name__} that can be read only once: give a list or a DataLoader"
        )
    examples = whole("examples", examples, most=10_000, else_=": how many contexts to show")
    if memory_budget is not None:
        memory_budget = whole("memory_budget", memory_budget, least=1, else_=" of bytes, or None")
    if checkpoint is not None:
        checkpoint = path("checkpoint", checkpoint)
    if reference is not None:
        recognise(reference, called="reference")
    if examples and iter(data) is data:
        raise DataError(
            f"examples={examples} reads the data a second time, once it is known which axes stand "
            f"out, and the data are a {type(data).__name__} that can be read only once: give a "
            "list or a DataLoader"
        )
    if memory_budget is not None and checkpoint is not None:
        raise ValueError(
            "memory_budget and checkpoint are both given, and a run of several passes keeps no "
            "checkpoint: give one of them"
        )
    if reference is not None and (memory_budget is not None or checkpoint is not None):
        raise ValueError(
            "a reference sees the data in the same single pass as the model, which memory_budget "
            "and checkpoint do not know: leave them out"
        )
    subject = recognise(model, tokenizer)
    require_another(initialisation, subject)
    target = None if device is None else device_of(device)
    with guarded(ending=checkpoint is not None) as guard, prepared(subject.model, target) as notes:
        if reference is not None:
            from basis_probe.run.reference import probe_beside

            made = probe_beside(subject, reference, data, choices, notes)
            return _illustrated(made, subject, data, examples, choices)
        batches = numbered(data, subject)
        watching = Watched.of(subject, first_of(batches), choices)
        passes = passes_of(watching, choices, data, memory_budget)
        notes = (*notes, *announced(passes, memory_budget))
        gradients = gradients_of(watching, choices, loss)
        if gradients is not None:
            require_loss(subject, watching.first, loss)
        # A budget holds the work of one site at a time.
        concluding = Concluding(
            watching,
            choices,
            {},
            at_once=None if memory_budget is None else 1,
            again=_again(data, subject) if is_asked(initialisation) else None,
            attributions=None if gradients is None else Attributions(watching, choices, gradients),
        )
        total = 0
        for turn, names in enumerate(passes):
            if turn:
                batches = numbered(data, subject)
            run = Reading(
                watching,
                choices,
                names,
                Part(),
                checkpoint,
                passing=True,
                earlier=turn > 0,
                gradients=gradients,
            )

            def finish(run: Reading = run) -> Report:
                return concluding.report(run.partial(), notes)

            run.read(batches, finish, count=count_of(data), progress=progress)
            if not turn:
                total = run.total
            elif run.total != total and run.part.whole:
                concluding.notes = (*concluding.notes, others(f"Pass {turn + 1} over the data"))
            with kept(run, finish):
                if twins is not None and run.part.whole:
                    concluding.compare_with_twins(data, twins, run.part.batches, total)
                if run.part.whole and turn + 1 < len(passes):
                    concluding.gather(run.partial())
                    continue
                made = finish()
            if not made.partial:
                run.remove()
            made = _illustrated(made, subject, data, examples, choices, total)
            if guard.late:
                late = "It was interrupted when everything had been measured; nothing is missing."
                made = dataclasses.replace(made, notes=(*made.notes, late))
            return made
    raise AssertionError("there is always a last pass")


def _again(data: Iterable[Any], subject: Subject) -> Batches | None:
    """The data from the first batch on; None where they can be read only once."""
    return None if iter(data) is data else lambda: batches_of(data, subject)


def _illustrated(
    made: Report,
    subject: Subject,
    data: Iterable[Any],
    examples: int,
    choices: "Choices",
    total: int | None = None,
) -> Report:
    """The report with examples, where they were asked for and its data are complete."""
    if not examples or made.partial:
        return made
    from basis_probe.concepts.examples import illustrated

    read = itertools.islice(batches_of(data, subject), made.provenance.n_batches)
    again = Again(read, total or 0, "The pass for the examples")
    try:
        found = illustrated(
            made,
            subject,
            iter(again),
            axes=5,
            size=examples,
            seed=choices.seed,
            count=made.provenance.n_batches,
            progress=choices.progress,
        )
        notes = () if total is None else again.notes
        return dataclasses.replace(found, notes=(*found.notes, *notes))
    except KeyboardInterrupt:
        hold()
        missing = "It was interrupted while examples were collected, and shows none."
        return dataclasses.replace(made, notes=(*made.notes, missing), partial=True)
    except Exception as error:
        raise StreamError(
            f"the second pass over the data, for the examples, failed: {type(error).__name__}: "
            f"{error}. Everything else is kept: call .report() of this error for the report",
            batches=made.provenance.n_batches,
            finish=lambda: made,
        ) from error


@on_own_device
def observe(
    model: nn.Module,
    data: Iterable[Any],
    *,
    sites: str | Iterable[str] | None = None,
    null: str | Null | None = None,
    groups: Groups | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    max_samples: int | None = None,
    progress: bool = True,
    shard: tuple[int, int] = (0, 1),
    checkpoint: str | os.PathLike[str] | None = None,
    tokenizer: Any = None,
) -> Partial:
    """What is seen of a model on a part of the data, to be added to what is seen of the others.

    `observe(model, data).report(model)` is `probe(model, data)`. The parts of the data may be seen
    by different processes and machines; their partials add.

    Args:
        model: as for `probe`.
        data: as for `probe`; every shard is given all of them, in the same order.
        sites: as for `probe`.
        null: as for `probe`.
        groups: as for `probe`.
        seed: as for `probe`.
        device: as for `probe`.
        max_samples: as for `probe`, in all shards together.
        progress: as for `probe`.
        shard: (i, n): batches i, i + n, i + 2 n ... of the data are seen, and the first examples of
            the first batch, on which the model is watched.
        checkpoint: a file to which the partial is written every minute, at the end, and when the
            run is interrupted or fails or the process is told to end (SIGTERM, SIGHUP); a run that
            finds it there goes on where it ended.
        tokenizer: as for `probe`.

    Raises:
        SiteError, DataError, StreamError, OSError, ValueError: as `probe`.

    Example:
        >>> import torch, basis_probe as bp
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU())
        >>> data = list(torch.randn(3, 100, 8))
        >>> parts = [bp.observe(model, data, shard=(i, 2), progress=False) for i in range(2)]
        >>> report = (parts[0] + parts[1]).report(model, progress=False)
        >>> whole = bp.probe(model, data, progress=False)
        >>> report.sites == whole.sites, report["1"].n_samples, whole["1"].n_samples
        (True, 300, 300)
    """
    index, of = _shard(shard)
    if checkpoint is not None:
        checkpoint = path("checkpoint", checkpoint)
    choices = Choices.of(
        sites=sites,
        scores=None,
        null=null,
        groups=groups,
        seed=seed,
        max_samples=max_samples,
        certificates=None,
        progress=progress,
    )
    subject = recognise(model, tokenizer)
    target = None if device is None else device_of(device)
    with guarded(ending=checkpoint is not None), prepared(subject.model, target) as notes:
        # Without a limit to the samples, what other shards see need not be read here.
        mine = None if max_samples is not None else (index, of)
        batches = numbered(data, subject, mine)
        watching = Watched.of(subject, first_of(batches), choices)
        part = Part(index, of)
        run = Reading(watching, choices, tuple(watching.plans), part, checkpoint, identified=True)
        run.notes = tuple(dict.fromkeys((*run.notes, *notes)))

        def finish() -> Report:
            return Concluding(watching, choices, {}).report(run.partial(), notes)

        run.read(batches, finish, count=count_of(data), progress=progress)
        return run.partial()


def _shard(shard: object) -> tuple[int, int]:
    """(i, n): the part of the data that is meant.

    Raises:
        ValueError: for anything else.
    """
    given = tuple(shard) if isinstance(shard, tuple | list) else ()
    try:
        if len(given) == 2:
            of = whole("shard", given[1], least=1)
            return whole("shard", given[0], most=of - 1), of
    except ValueError:
        pass
    raise ValueError(
        f"shard={described(shard)}: give (i, n) with i from 0 to n - 1, such as (0, 4) for the "
        "first of four"
    )
