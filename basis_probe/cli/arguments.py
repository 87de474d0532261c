"""Words that several commands take, and what they must be."""

from __future__ import annotations

import argparse
from pathlib import Path

from basis_probe.brief import described
from basis_probe.files import require_apart, require_writable

ENDINGS = (".html", ".htm", ".json", ".csv", ".md", ".tex", ".pdf", ".svg", ".png")
PART = ".safetensors"
NULL_NAMES = (
    "rotation",
    "counterfactual",
    "counterfactual-in-bands",
    "sparse-wiring",
    "turned-preactivation",
    "covariance-preserving",
    "gaussian-surrogate",
    "random-weights",
)
NULL_HELP = f"what the axes are compared with: {', '.join(NULL_NAMES)} (default: by site)"
BASIS_NAMES = ("pca", "ica", "varimax", "quartimax", "hadamard", "random")


def positive(text: str) -> int:
    """A whole number above zero.

    Raises:
        ArgumentTypeError: for any other.
    """
    return _whole(text, 1)


def none_or_more(text: str) -> int:
    """A whole number from 0, for none, to ten thousand.

    Raises:
        ArgumentTypeError: for any other.
    """
    return _whole(text, 0, 10_000)


def _whole(text: str, least: int, most: int = 2**63 - 1) -> int:
    digits = text.strip().removeprefix("+")
    value = int(digits) if digits.isdecimal() and len(digits) < 30 else least - 1
    if not least <= value <= most:
        room = f"of at least {least}" if most == 2**63 - 1 else f"from {least} to {most:,}"
        raise argparse.ArgumentTypeError(f"{described(text)} is no whole number {room}")
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
    short = len(text) < 40
    if not (short and index.isdecimal() and of.isdecimal() and int(index) < int(of)):
        raise argparse.ArgumentTypeError(
            f"{described(text)} is no shard: give i/n with i from 0 to n - 1, such as 0/4"
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
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(
            f"{described(text)} is not a positive number of gigabytes; leave it out for no limit"
        )
    return int(value * 1e9)


def _file(text: str, endings: tuple[str, ...]) -> Path:
    path = Path(text)
    if path.suffix.lower() not in endings:
        raise argparse.ArgumentTypeError(f"{described(text)} must end in {', '.join(endings)}")
    return writable(text)


def writable(text: str) -> Path:
    """A file that can be written, as far as that can be seen before.

    Raises:
        ArgumentTypeError: for a folder that is not there or may not be written in, and for what is
            no file.
    """
    try:
        require_writable(text)
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return Path(text)


def outputs(parsed: argparse.Namespace) -> list[Path]:
    """The files that a report is written to.

    Raises:
        OSError, ValueError: if one cannot be written, is a file of the model, or is named twice or
            as something else too.
    """
    paths: list[Path] = parsed.out or ([] if parsed.json else [parsed.default_out])
    for path in paths:
        require_writable(path)
    named = [getattr(parsed, "model", None), *getattr(parsed, "models", [])]
    for path in paths:
        if any(_is_of_model(path, model) for model in named if model):
            raise ValueError(f"{described(str(path))} is a file of the model: give another name")
    others = [getattr(parsed, name, None) for name in ("checkpoint", "text")]
    require_apart([*paths, *(other for other in others if other is not None)])
    return paths


def _is_of_model(path: Path, model: str) -> bool:
    """True for a file in a model's folder that is there and was not written by this package."""
    path, folder = path.resolve(), Path(model)
    if not path.is_file() or not folder.is_dir() or not path.parent.samefile(folder):
        return False
    if path.suffix.lower() not in (".json", PART):
        return False
    with path.open("rb") as file:
        return b"basis_probe" not in file.read(4096)


def add_model(parser: argparse.ArgumentParser) -> None:
    """Adds MODEL, the language model."""
    parser.add_argument("model", metavar="MODEL", help="a local folder, or a name on the hub")


def add_sites(parser: argparse.ArgumentParser) -> None:
    """Adds --sites."""
    parser.add_argument("--sites", nargs="+", metavar="NAME", help="names or globs")


def add_initialisation(parser: argparse.ArgumentParser) -> None:
    """Adds --initialisation."""
    parser.add_argument(
        "--initialisation",
        action="store_true",
        default=None,
        help="wherever axes stand out that the architecture does not fix, ask a copy of the model "
        "that is drawn anew: training, or initialisation",
    )


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
        type=none_or_more,
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
    parser.add_argument(
        "--effort",
        choices=("full", "quick"),
        default="full",
        help="quick: at most 1,024 samples at each site, and no proofs (default full)",
    )
    add_initialisation(parser)
    parser.add_argument("--seed", type=int, default=0, help="seeds every random choice (default 0)")
    parser.add_argument("--device", default="cpu", help="where the model runs (default cpu)")
    parser.add_argument(
        "--batch-size", type=positive, default=32, help="examples in one batch (default 32)"
    )
