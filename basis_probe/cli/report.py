"""`basis-probe report`: a language model on a text."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from basis_probe.cli.arguments import (
    PART,
    add_probing,
    gigabytes,
    outputs,
    positive,
    shard,
    writable,
)
from basis_probe.cli.command import Command, Refused, Status
from basis_probe.cli.probing import (
    keep,
    load,
    part_beside,
    probe_and_write,
    probed,
    save_each,
    write,
)
from basis_probe.files import no_file
from basis_probe.interrupts import Ended, stoppable

if TYPE_CHECKING:
    from basis_probe.cli.screen import Screen
    from basis_probe.results.report import Report


class ReportCommand(Command):
    """Probes a language model on a text."""

    name = "report"
    summary = "probe a language model on a text, and write a report"
    examples = (
        ("basis-probe report ./my-model --text corpus.txt --out r.html", "a report to read"),
        (
            "basis-probe report ./my-model --text corpus.txt --out r.html --out r.json",
            "the same, and its numbers",
        ),
        (
            "basis-probe report ./my-model --text corpus.txt --examples 5",
            "with the contexts that activate the axes that stand out most",
        ),
        ("basis-probe report ./my-model --text corpus.txt --effort quick", "a first look"),
        (
            "basis-probe report ./early ./late --text corpus.txt --out r.html",
            "two models side by side; each report of its own as r-early.html and r-late.html",
        ),
        (
            "basis-probe report ./my-model --text corpus.txt --json > r.json",
            "its numbers, for a program",
        ),
        (
            "basis-probe report ./my-model --text corpus.txt --shard 0/4 --out 0.safetensors",
            "a quarter of the text, to be merged with the others",
        ),
        (
            "torchrun --nproc-per-node 4 -m basis_probe report ./my-model --text corpus.txt",
            "four processes, one report",
        ),
    )

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "models",
            nargs="+",
            metavar="MODEL",
            help="a local folder, or a name on the hub; several are compared with each other",
        )
        parser.add_argument("--text", type=Path, required=True, metavar="FILE", help="plain text")
        add_probing(parser, out="basis_probe_report.html", parts=True)
        parser.add_argument(
            "--length", type=positive, default=128, help="tokens in one example (default 128)"
        )
        parser.add_argument(
            "--max-samples",
            type=positive,
            help=f"tokens at each site (default {SAMPLES}, with --effort quick 1024)",
        )

        larger = parser.add_argument_group("large runs")
        larger.add_argument(
            "--shard",
            type=shard,
            metavar="I/N",
            help="see only the I-th of N parts of the text (from 0), and write what `merge` adds",
        )
        larger.add_argument(
            "--checkpoint",
            type=writable,
            metavar="FILE",
            help="write what was seen here every minute, and go on from it after a stop",
        )
        larger.add_argument(
            "--memory-budget",
            type=gigabytes,
            metavar="GB",
            help="pass over the text several times rather than hold more than this",
        )

    def run(self, parsed: argparse.Namespace, screen: Screen) -> Status:
        from basis_probe.cli.windows import Windows
        from basis_probe.run.distributed import local_device, process_group

        _require_fitting(parsed)
        if not parsed.text.is_file():
            raise Refused(f"{no_file(parsed.text)}; --text takes a plain text file")
        outputs(parsed)
        if len(parsed.models) > 1:
            return _side_by_side(parsed, screen)
        [parsed.model] = parsed.models
        with process_group() as (rank, world):
            if world > 1 and parsed.shard:
                raise Refused("--shard and torchrun both cut the text into parts: use one of them")
            if world > 1 and parsed.effort == "quick":
                raise Refused("--effort quick is for runs of one process; leave it out")
            bridge = load(parsed.model, local_device(parsed.device), screen)
            data = Windows(bridge, parsed.text, length=parsed.length, size=parsed.batch_size)
            if world > 1 or parsed.shard:
                return _in_parts(bridge, data, parsed, screen, rank=rank, world=world)
            return probe_and_write(
                bridge,
                data,
                parsed,
                screen,
                max_samples=_samples(parsed),
                memory_budget=parsed.memory_budget,
                checkpoint=parsed.checkpoint,
            )


SAMPLES = 16384
"""Tokens at each site where nothing else is asked for."""


def _samples(parsed: argparse.Namespace) -> int | None:
    """Tokens at each site; None for as many as the effort takes."""
    if parsed.max_samples is not None:
        return parsed.max_samples
    return None if parsed.effort == "quick" else SAMPLES


def _side_by_side(parsed: argparse.Namespace, screen: Screen) -> Status:
    """How the probes of several models ended; each report is written, and what they compare to."""
    from basis_probe.cli.windows import Windows
    from basis_probe.compare.reports import compare_reports
    from basis_probe.model.network import device_of
    from basis_probe.show.terminal import render_comparison

    if parsed.shard or parsed.checkpoint:
        raise Refused("--shard and --checkpoint are for one model: leave them out, or the others")
    reports: dict[str, Report] = {}
    out = parsed.out or ([] if parsed.json else [parsed.default_out])
    for model in parsed.models:
        name = Path(model).name or model
        name = name if name not in reports else f"{name} {len(reports) + 1}"
        bridge = load(model, str(device_of(parsed.device)), screen)
        data = Windows(bridge, parsed.text, length=parsed.length, size=parsed.batch_size)
        report, failure = probed(
            bridge,
            data,
            parsed,
            screen,
            max_samples=_samples(parsed),
            memory_budget=parsed.memory_budget,
        )
        reports[name] = report
        mine = [p.with_name(f"{p.stem}-{name.replace(' ', '-')}{p.suffix}") for p in out]
        for path in save_each(report, mine, screen):
            screen.say(f"wrote {path}")
        if failure is not None:
            raise failure
        if report.partial:
            return Status.INTERRUPTED
    compared = compare_reports(reports)
    written = save_each(compared, out, screen)
    with stoppable():
        screen.show(render_comparison(compared))
        screen.give(compared.to_json())
        for path in written:
            screen.say(f"wrote {path}")
    return Status.DONE if len(written) == len(out) else Status.FAILED


def _require_fitting(parsed: argparse.Namespace) -> None:
    parts = [path for path in parsed.out or () if path.suffix.lower() == PART]
    if (
        bool(parts) != bool(parsed.shard)
        or len(parts) > 1
        or len(parsed.out or ()) > len(parts) > 0
    ):
        raise Refused(
            f"a part of a report, and nothing else, is written with --shard: give --shard I/N with "
            f"one --out FILE{PART}, or neither"
        )
    if parsed.shard and parsed.examples:
        raise Refused(
            "--examples reads the text once it is known which axes stand out, and a shard does not "
            "know: leave out one of --shard and --examples"
        )
    if parsed.shard and parsed.initialisation:
        raise Refused(
            "--initialisation is asked once it is known which axes stand out, and a shard does not "
            "know: leave out one of --shard and --initialisation"
        )
    if parsed.shard and parsed.effort == "quick":
        raise Refused("--effort quick is for runs of one process; give --max-samples with --shard")
    if parsed.shard and parsed.memory_budget:
        raise Refused("--memory-budget is for runs of one process; leave it out with --shard")


def _in_parts(
    bridge: Any,
    data: Iterable[Any],
    parsed: argparse.Namespace,
    screen: Screen,
    *,
    rank: int,
    world: int,
) -> Status:
    """How the part of this process ended; rank 0 writes the report of all."""
    from basis_probe.errors import StreamError
    from basis_probe.observation import observe
    from basis_probe.run.distributed import gathered

    checkpoint = parsed.checkpoint
    if checkpoint is not None and world > 1:
        checkpoint = checkpoint.with_name(f"{checkpoint.name}.{rank}")
    failure: StreamError | None = None
    try:
        partial = observe(
            bridge,
            data,
            sites=parsed.sites,
            null=parsed.null,
            seed=parsed.seed,
            max_samples=_samples(parsed),
            progress=screen.draws_progress and not rank,
            shard=parsed.shard or (rank, world),
            checkpoint=checkpoint,
        )
    except StreamError as error:
        found = error.partial()
        if found is None:
            raise
        partial, failure = found, error
    folder = Path(parsed.model)
    source = str(folder.resolve()) if folder.is_dir() else parsed.model
    partial = dataclasses.replace(partial, source=source, passing=False)
    if parsed.shard:
        path = partial.save(parsed.out[0])
        screen.say(f"wrote {path}; add it to the others with `basis-probe merge`")
        if failure is not None:
            raise failure
        return Status.INTERRUPTED if not partial.parts[0].whole else Status.DONE
    # Each keeps its own before it waits for the others, some of which may not live to come.
    paths = outputs(parsed)
    own = [part_beside(paths, f"-{other}-of-{world}") for other in range(world)]
    keep(partial, own[rank], screen)
    where = (
        f"What this process saw is in {own[rank]}; `basis-probe merge --model` makes a report of "
        "all such files that there are"
    )
    if failure is not None and isinstance(failure.__cause__, Ended):
        # Whoever ends a process does not wait for others.
        screen.complain(where)
        raise failure
    try:
        with stoppable():
            total = gathered(partial)
    except OSError as error:
        screen.complain(f"{error} {where}")
        return Status.FAILED
    except KeyboardInterrupt as stopped:
        screen.complain(f"{stopped}. {where}")
        raise
    if failure is not None and rank:
        raise failure
    if total is None:
        return Status.DONE
    report = total.report(
        bridge,
        null=parsed.null,
        progress=screen.draws_progress,
        initialisation=parsed.initialisation,
        data=data if parsed.initialisation else None,
    )
    if parsed.examples and not report.partial:
        from basis_probe.concepts.examples import with_examples

        report = with_examples(
            report,
            bridge,
            itertools.islice(data, report.provenance.n_batches),
            size=parsed.examples,
            seed=parsed.seed,
            progress=screen.draws_progress,
        )
    status = write(report, parsed, screen)
    if status is Status.DONE:
        left = (
            []
            if checkpoint is None
            else [
                parsed.checkpoint.with_name(f"{parsed.checkpoint.name}.{other}")
                for other in range(world)
            ]
        )
        for path in (*own, *left):
            path.unlink(missing_ok=True)
    if failure is not None:
        raise failure
    return status
