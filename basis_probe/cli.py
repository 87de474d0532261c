"""The command line: `basis-probe demo | report | symmetries | show`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from basis_probe.results import Report

ENDINGS = (".html", ".htm", ".json", ".csv", ".md")


class _Version(argparse.Action):
    """Shows the installed version."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        import importlib.metadata

        try:
            version = importlib.metadata.version("basis-probe")
        except importlib.metadata.PackageNotFoundError:
            version = "(run from its sources, not installed)"
        print(f"basis-probe {version}")
        parser.exit()


class _Refused(Exception):
    """What the user asked for cannot be done, and why."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0 for success, 2 for something that was asked for and cannot be done.

    Args:
        arguments: the words of the command line; None for those of this process.

    Example:
        >>> main(["show", "nowhere.json"])
        2
    """
    parsed = _parser().parse_args(arguments)
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        # Nobody folds lines again that were folded for a terminal that is not there.
        console = Console(width=200)
    try:
        parsed.run(parsed, console)
    except (_Refused, ValueError, TypeError, RuntimeError, OSError) as error:
        if parsed.debug:
            raise
        Console(stderr=True).print(
            f"basis-probe {parsed.command}: {error}", style="red", markup=False, highlight=False
        )
        return 2
    except KeyboardInterrupt:
        Console(stderr=True).print("interrupted before anything was measured", style="red")
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="basis-probe",
        description="May a layer be read neuron by neuron, or are its axes arbitrary?",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    parser.add_argument("--debug", action="store_true", help="show where an error came from")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser(
        "demo", help="probe the language model that comes with basis_probe, and write a report"
    )
    _probing(demo, out="basis_probe_demo.html")
    demo.add_argument("--texts", type=_positive, default=256, help="documents (default 256)")
    demo.set_defaults(run=_demo)

    report = commands.add_parser("report", help="probe a language model on a text")
    report.add_argument("model", metavar="MODEL", help="a local folder, or a name on the hub")
    report.add_argument("--text", type=Path, required=True, metavar="FILE", help="plain text")
    _probing(report, out="basis_probe_report.html")
    report.add_argument(
        "--length", type=_positive, default=128, help="tokens in one example (default 128)"
    )
    report.add_argument(
        "--max-samples", type=_positive, default=16384, help="tokens at each site (default 16384)"
    )
    report.set_defaults(run=_report)

    symmetries = commands.add_parser(
        "symmetries", help="list which changes of basis the architecture allows, site by site"
    )
    symmetries.add_argument("model", metavar="MODEL", help="a local folder, or a name on the hub")
    symmetries.add_argument("--sites", nargs="+", metavar="NAME", help="names or globs")
    symmetries.add_argument(
        "--certificates",
        action=argparse.BooleanOptionalAction,
        help="prove every claim on a float64 copy (default: if the model is small)",
    )
    symmetries.set_defaults(run=_symmetries)

    show = commands.add_parser("show", help="show a saved report, or write it in another form")
    show.add_argument("report", type=Path, metavar="REPORT.json")
    show.add_argument(
        "--out", type=_output, action="append", metavar="FILE", help="write it here too"
    )
    show.set_defaults(run=_show)
    return parser


def _probing(parser: argparse.ArgumentParser, *, out: str) -> None:
    parser.add_argument(
        "--out",
        type=_output,
        action="append",
        metavar="FILE",
        help=f".html, .json, .csv or .md; may be given several times (default {out})",
    )
    parser.set_defaults(default_out=Path(out))
    parser.add_argument("--sites", nargs="+", metavar="NAME", help="names or globs")
    parser.add_argument("--null", choices=("rotation", "counterfactual"), help="default: by site")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--batch-size", type=_positive, default=32, help="examples in one batch (default 32)"
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def _output(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() not in ENDINGS:
        raise argparse.ArgumentTypeError(f"{text!r} must end in {', '.join(ENDINGS)}")
    if not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path.absolute().parent}")
    return path


# --- the commands ---------------------------------------------------------------------------------


def _demo(parsed: argparse.Namespace, console: Console) -> None:
    import torch

    from basis_probe import demo
    from basis_probe.adapters.models import device_of

    threads = torch.get_num_threads()
    texts = demo.texts(parsed.texts, seed=1)
    size = parsed.batch_size
    data = [texts[start : start + size] for start in range(0, len(texts), size)]
    try:
        # The model is so small that threads would wait for each other more than they compute.
        torch.set_num_threads(1)
        _probe(demo.load(device_of(parsed.device)), data, parsed, console, max_samples=None)
    finally:
        torch.set_num_threads(threads)


def _report(parsed: argparse.Namespace, console: Console) -> None:
    if not parsed.text.is_file():
        raise _Refused(f"there is no file {parsed.text}; --text takes a plain text file")
    text = parsed.text.read_text(encoding="utf-8", errors="replace")
    bridge = _load(parsed.model, parsed.device, console)
    data = _windows(bridge, text, length=parsed.length, size=parsed.batch_size)
    _probe(bridge, data, parsed, console, max_samples=parsed.max_samples)


def _symmetries(parsed: argparse.Namespace, console: Console) -> None:
    from basis_probe.architecture import symmetries
    from basis_probe.presentation.architecture import terminal

    bridge = _load(parsed.model, "cpu", console)
    text = ["The quick brown fox jumps over the lazy dog."]
    with console.status("deriving and proving"):
        found = symmetries(bridge, text, certificates=parsed.certificates)
    console.print(terminal(_matching(found, parsed.sites) if parsed.sites else found))


def _show(parsed: argparse.Namespace, console: Console) -> None:
    from basis_probe.presentation.terminal import render
    from basis_probe.results import Report

    if not parsed.report.is_file():
        raise _Refused(f"there is no file {parsed.report}; give a report saved as .json")
    report = Report.from_json(parsed.report.read_text(encoding="utf-8"))
    console.print(render(report))
    for path in parsed.out or ():
        console.print(f"wrote {report.save(path)}", markup=False, highlight=False)


# --- what they share ------------------------------------------------------------------------------


def _load(model: str, device: str, console: Console) -> Any:
    from basis_probe.adapters.models import device_of
    from basis_probe.adapters.pretrained import from_directory

    device = str(device_of(device))
    with console.status(f"loading {model}"):
        return from_directory(model, device=device)


def _probe(
    bridge: Any,
    data: Sequence[Any],
    parsed: argparse.Namespace,
    console: Console,
    *,
    max_samples: int | None,
) -> Report:
    from basis_probe.errors import StreamError
    from basis_probe.presentation.terminal import render
    from basis_probe.probe import probe

    failure: StreamError | None = None
    try:
        report = probe(
            bridge,
            data,
            sites=parsed.sites,
            null=parsed.null,
            seed=parsed.seed,
            max_samples=max_samples,
            progress=sys.stderr.isatty(),
        )
    except StreamError as error:
        failure, report = error, error.report()
    console.print(render(report))
    for path in parsed.out or [parsed.default_out]:
        console.print(f"wrote {report.save(path)}", markup=False, highlight=False)
    if failure is not None:
        # What was gathered is written; that it is not everything is still a failure.
        raise failure
    return report


def _windows(bridge: Any, text: str, *, length: int, size: int) -> list[Any]:
    """Batches [examples, length] of consecutive tokens, led by a text's first token, if any."""
    import torch

    tokenizer = bridge.tokenizer
    ids = list(tokenizer(text)["input_ids"])
    first = getattr(tokenizer, "bos_token_id", None)
    lead = [first] if first is not None and ids and ids[0] == first else []
    ids = ids[len(lead) :]
    room = length - len(lead)
    if room < 1 or len(ids) < room:
        raise _Refused(
            f"the text has {len(ids)} tokens, fewer than one example of {length}; give a longer "
            "text or a smaller --length"
        )
    rows = [lead + ids[start : start + room] for start in range(0, len(ids) - room + 1, room)]
    return list(torch.tensor(rows, dtype=torch.int64).split(size))


def _matching(found: dict[str, Any], patterns: Sequence[str]) -> dict[str, Any]:
    import difflib
    import fnmatch

    kept: set[str] = set()
    for pattern in patterns:
        names = fnmatch.filter(found, pattern)
        if not names:
            near = difflib.get_close_matches(pattern, found, n=5, cutoff=0.4)
            raise _Refused(f"no site matches {pattern!r}; nearest: {', '.join(near) or 'none'}")
        kept.update(names)
    return {name: symmetry for name, symmetry in found.items() if name in kept}


if __name__ == "__main__":
    sys.exit(main())
