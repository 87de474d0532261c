"""Words that several commands take, and what they must be."""

from __future__ import annotations

import argparse
from pathlib import Path

from basis_probe.evidence.site import NULLS

ENDINGS = (".html", ".htm", ".json", ".csv", ".md", ".tex", ".pdf", ".svg", ".png")
PART = ".safetensors"
NULL_NAMES = tuple(NULLS)
NULL_HELP = f"what the axes are compared with: {', '.join(NULLS)} (default: by site)"
BASIS_NAMES = ("pca", "ica", "varimax", "quartimax", "hadamard", "random")


def positive(text: str) -> int:
    """A whole number above zero.

    Raises:
        ArgumentTypeError: for any other.
    """
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def none_or_more(text: str) -> int:
    """A whole number that is not negative.

    Raises:
        ArgumentTypeError: for any other.
    """
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative: give 0 for none")
    return value


def output(text: str) -> Path:
    """A file that a report can be written to.

    Raises:
        ArgumentTypeError: for an ending that names no format, or a folder that is not there.
    """
    return _file(text, ENDINGS)


def output_or_part(text: str) -> Path:
    """A file that a report or a part of one can be written to.

    Raises:
        ArgumentTypeError: as for `output`.
    """
    return _file(text, (*ENDINGS, PART))


def shard(text: str) -> tuple[int, int]:
    """(i, n) for i/n: the part of the data that one of n processes sees.

    Raises:
        ArgumentTypeError: for anything else.
    """
    index, _, of = text.partition("/")
    if not (index.isdecimal() and of.isdecimal() and int(index) < int(of)):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no shard: give i/n with i from 0 to n - 1, such as 0/4"
        )
    return int(index), int(of)


def gigabytes(text: str) -> int:
    """So many bytes.

    Raises:
        ArgumentTypeError: for what is no positive number.
    """
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of gigabytes")
    return int(value * 1e9)


def _file(text: str, endings: tuple[str, ...]) -> Path:
    path = Path(text)
    if path.suffix.lower() not in endings:
        raise argparse.ArgumentTypeError(f"{text!r} must end in {', '.join(endings)}")
    if not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path.absolute().parent}")
    return path


def add_model(parser: argparse.ArgumentParser) -> None:
    """Adds MODEL, the language model."""
    parser.add_argument("model", metavar="MODEL", help="a local folder, or a name on the hub")


def add_sites(parser: argparse.ArgumentParser) -> None:
    """Adds --sites."""
    parser.add_argument("--sites", nargs="+", metavar="NAME", help="names or globs")


def add_probing(
    parser: argparse.ArgumentParser, *, out: str, parts: bool = False, examples: int = 0
) -> None:
    """Adds what every command takes that runs a probe and writes a report.

    Args:
        parser: the parser of the command.
        out: the file that is written where none is named.
        parts: whether a part of a report may be written too.
        examples: how many contexts of a direction are shown where nothing is said.
    """
    parser.add_argument(
        "--out",
        type=output_or_part if parts else output,
        action="append",
        metavar="FILE",
        help=".html, .json, .csv, .md, .tex, .pdf, .svg or .png; may be given several times "
        f"(default {out}, or no file with --json)",
    )
    parser.set_defaults(default_out=Path(out))
    add_sites(parser)
    parser.add_argument("--null", choices=NULL_NAMES, metavar="NULL", help=NULL_HELP)
    parser.add_argument(
        "--bases",
        nargs="+",
        metavar="BASIS",
        choices=BASIS_NAMES,
        help=f"other bases to compare the axes with: {', '.join(BASIS_NAMES)}",
    )
    parser.add_argument(
        "--paths",
        type=int,
        default=0,
        metavar="N",
        help="follow the deciding score to N turned bases (default 0)",
    )
    parser.add_argument(
        "--examples",
        type=none_or_more,
        default=examples,
        metavar="N",
        help="show N contexts that activate each of the axes that stand out most, and as many "
        f"rotated directions; the text is read once more (default {examples})",
    )
    parser.add_argument("--seed", type=int, default=0, help="seeds every random choice (default 0)")
    parser.add_argument("--device", default="cpu", help="where the model runs (default cpu)")
    parser.add_argument(
        "--batch-size", type=positive, default=32, help="examples in one batch (default 32)"
    )
