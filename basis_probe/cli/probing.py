"""From a model and data to a report that is shown and written."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from basis_probe.cli.command import Refused, Status

if TYPE_CHECKING:
    from basis_probe.cli.screen import Screen
    from basis_probe.errors import StreamError
    from basis_probe.results.report import Report


def load(model: str, device: str, screen: Screen) -> Any:
    """The language model of a local folder or of the hub, on a device."""
    from basis_probe.model.load import from_directory
    from basis_probe.model.network import device_of

    device = str(device_of(device))
    with screen.waiting(f"loading {model}"):
        return from_directory(model, device=device)


def probe_and_write(
    model: Any,
    data: Sequence[Any],
    parsed: argparse.Namespace,
    screen: Screen,
    *,
    max_samples: int | None,
    memory_budget: int | None = None,
    checkpoint: Path | None = None,
) -> Status:
    """How a probe ended whose report was shown and written, a partial one too."""
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
        # What was gathered is written; that it is not everything is still a failure.
        raise failure
    return status


def probed(
    model: Any,
    data: Sequence[Any],
    parsed: argparse.Namespace,
    screen: Screen,
    *,
    max_samples: int | None,
    memory_budget: int | None = None,
    checkpoint: Path | None = None,
) -> tuple[Report, StreamError | None]:
    """The report, and what broke the run on the way, if anything did."""
    from basis_probe.errors import StreamError
    from basis_probe.probe import probe

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
            progress=screen.draws_progress,
            memory_budget=memory_budget,
            checkpoint=checkpoint,
        )
    except StreamError as error:
        return error.report(), error
    return report, None


def write(report: Report, parsed: argparse.Namespace, screen: Screen) -> Status:
    """How a probe ended, its report shown and written."""
    from basis_probe.show.terminal import render

    # Written before anything is shown: whoever reads the output may go away.
    paths = parsed.out or ([] if parsed.json else [parsed.default_out])
    written = [report.save(path) for path in paths]
    screen.show(render(report))
    screen.give(report.to_json())
    for path in written:
        screen.say(f"wrote {path}")
    return Status.INTERRUPTED if report.partial else Status.DONE


def windows(bridge: Any, text: str, *, length: int, size: int) -> list[Any]:
    """Batches [examples, length] of consecutive tokens, led by a text's first token, if any."""
    import torch

    tokenizer = bridge.tokenizer
    ids = list(tokenizer(text)["input_ids"])
    first = getattr(tokenizer, "bos_token_id", None)
    lead = [first] if first is not None and ids and ids[0] == first else []
    ids = ids[len(lead) :]
    room = length - len(lead)
    if room < 1 or len(ids) < room:
        raise Refused(
            f"the text has {len(ids)} tokens, fewer than one example of {length}; give a longer "
            "text or a smaller --length"
        )
    rows = [lead + ids[start : start + room] for start in range(0, len(ids) - room + 1, room)]
    return list(torch.tensor(rows, dtype=torch.int64).split(size))
