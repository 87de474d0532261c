"""From a model and data to a report that is shown and written."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from basis_probe.cli.arguments import outputs
from basis_probe.cli.command import Status
from basis_probe.interrupts import stoppable

if TYPE_CHECKING:
    from basis_probe.cli.screen import Screen
    from basis_probe.errors import StreamError
    from basis_probe.results.report import Report
    from basis_probe.run.parts import Partial


def load(model: str, device: str, screen: Screen) -> Any:
    """The language model of a local folder or of the hub, on a device."""
    from basis_probe.model.load import from_directory
    from basis_probe.model.network import device_of

    device = str(device_of(device))
    with stoppable(), screen.waiting(f"loading {model}"):
        return from_directory(model, device=device)


def probe_and_write(
    model: Any,
    data: Iterable[Any],
    parsed: argparse.Namespace,
    screen: Screen,
    *,
    max_samples: int | None,
    memory_budget: int | None = None,
    checkpoint: Path | None = None,
) -> Status:
    """How a probe ended whose report was shown and written, a partial one too."""
    paths = outputs(parsed)
    report, failure = probed(
        model,
        data,
        parsed,
        screen,
        max_samples=max_samples,
        memory_budget=memory_budget,
        checkpoint=checkpoint,
    )
    status = write(report, parsed, screen)
    if failure is not None:
        if status is Status.INTERRUPTED:
            part_beside(paths).unlink(missing_ok=True)
        # What was gathered is written; that it is not everything is still a failure.
        raise failure
    return status


def part_beside(paths: Sequence[Path], which: str = "") -> Path:
    """Where what was seen is kept until its report is written."""
    first = paths[0] if paths else Path("basis_probe_report")
    return first.with_name(f"{first.stem}.part{which}.safetensors")


def keep(part: Partial | None, path: Path, screen: Screen) -> bool:
    """Whether what was seen is in a file now, which whoever listens is told of if it is not."""
    if part is None:
        return False
    try:
        part.save(path)
    except (OSError, ValueError) as error:
        screen.complain(f"what was seen could not be written to {path}: {error}")
        return False
    return True


def probed(
    model: Any,
    data: Iterable[Any],
    parsed: argparse.Namespace,
    screen: Screen,
    *,
    max_samples: int | None,
    memory_budget: int | None = None,
    checkpoint: Path | None = None,
) -> tuple[Report, StreamError | None]:
    """The report, and what broke the run on the way, if anything did."""
    from basis_probe.errors import StreamError
    from basis_probe.observation import probe

    try:
        report = probe(
            model,
            data,
            sites=parsed.sites,
            null=parsed.null,
            bases=parsed.bases,
            paths=parsed.paths,
            examples=parsed.examples,
            seed=parsed.seed,
            max_samples=max_samples,
            effort=parsed.effort,
            initialisation=parsed.initialisation,
            progress=screen.draws_progress,
            memory_budget=memory_budget,
            checkpoint=checkpoint,
        )
    except StreamError as error:
        # First what is quick: there may not be time for the report.
        kept = checkpoint is None and keep(error.partial(), part_beside(outputs(parsed)), screen)
        try:
            return error.report(), error
        except Exception as further:
            where = part_beside(outputs(parsed)) if kept else checkpoint
            raise StreamError(
                f"{error} No report could be made of it either ({further})"
                + (f"; what was seen is in {where}, of which `merge` makes one" if where else ""),
                batches=error.batches,
                finish=error.report,
                part=error.partial,
            ) from error
    return report, None


def write(report: Report, parsed: argparse.Namespace, screen: Screen) -> Status:
    """How a probe ended, its report shown and written."""
    from basis_probe.show.terminal import render

    # Written before anything is shown: whoever reads the output may go away.
    paths: list[Path] = parsed.out or ([] if parsed.json else [parsed.default_out])
    written = save_each(report, paths, screen)
    with stoppable():
        screen.show(render(report))
        screen.give(report.to_json())
        for path in written:
            screen.say(f"wrote {path}")
    if len(written) < len(paths):
        return Status.FAILED
    return Status.INTERRUPTED if report.partial else Status.DONE


def save_each(result: Savable, paths: Sequence[Path], screen: Screen) -> list[Path]:
    """The files that were written; what became of one has no bearing on the others."""
    written: list[Path] = []
    for path in paths:
        try:
            written.append(result.save(path))
        except (OSError, ValueError, MemoryError, RuntimeError) as error:
            screen.complain(f"{path} was not written: {error}")
    return written


class Savable(Protocol):
    """A finding that can be saved."""

    def save(self, path: Path) -> Path:
        """The file written."""
        ...
