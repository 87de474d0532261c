"""`python -m examples.atlas [ENTRY ...] --out DIR`: runs entries and writes the page."""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
import time

import torch

import basis_probe

from .entries import ENTRIES
from .entry import Missing, Notes, Settings
from .page import page, sections

CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()


def main() -> int:
    """Runs what is asked for; 1 if nothing could be run."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.atlas",
        description="Published claims about axes, on trained models, under nulls that hold.",
    )
    parser.add_argument("entry", nargs="*", help=f"which of them: {', '.join(ENTRIES)}")
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default=pathlib.Path("build/atlas"),
        metavar="FOLDER",
        help="where atlas.md is written, and what entries say below it (default: %(default)s)",
    )
    parser.add_argument(
        "--cache",
        type=pathlib.Path,
        default=CACHE / "basis_probe_atlas",
        metavar="FOLDER",
        help="where fetched packages and trained networks are kept (default: %(default)s)",
    )
    parser.add_argument("--fetch", action="store_true", help="take packages from the index")
    parser.add_argument("--short", action="store_true", help="small, as in the tests")
    parser.add_argument("--list", action="store_true", help="say what every entry needs")
    parser.add_argument("--page", action="store_true", help="only write the page anew")
    asked = parser.parse_args()
    if unknown := [name for name in asked.entry if name not in ENTRIES]:
        parser.error(f"no entry is called {unknown[0]!r}; there are {', '.join(ENTRIES)}")
    if asked.list:
        for entry in ENTRIES.values():
            print(f"{entry.name:20s} {entry.title}\n{'':20s} {entry.needs}")
        return 0
    folder: pathlib.Path = asked.out / "atlas"
    for option, given in (("--out", asked.out), ("--out", folder), ("--cache", asked.cache)):
        if given.exists() and not given.is_dir():
            parser.error(f"{option} needs a folder, and {given} is a file")
    folder.mkdir(parents=True, exist_ok=True)
    settings = Settings(short=asked.short, cache=asked.cache, fetch=asked.fetch)
    run = [] if asked.page else [run_one(n, folder, settings) for n in asked.entry or ENTRIES]
    if run and not any(run):
        print("no entry was run, and no page is written", file=sys.stderr)
        return 1
    said = sections(folder, [*ENTRIES])
    if not said:
        parser.error(f"--page needs what entries have said, and there is nothing in {folder}")
    text = page(said)
    (asked.out / "atlas.md").write_text(text, encoding="utf-8")
    print(f"wrote {asked.out / 'atlas.md'}")
    return 0


def run_one(name: str, folder: pathlib.Path, settings: Settings) -> bool:
    """Runs one entry; False, with the reason printed, where something that it needs is absent."""
    entry = ENTRIES[name]
    notes, started = Notes(entry, folder), time.process_time()
    print(f"## {entry.title}\n", flush=True)
    try:
        entry.run(notes, settings)
    except Missing as reason:
        print(f"left out: {reason}", file=sys.stderr, flush=True)
        if (folder / f"{name}.json").exists():
            print(
                f"what {name} said in an earlier run is still in {folder}, and a page that is "
                "written there has it",
                file=sys.stderr,
                flush=True,
            )
        return False
    spent = time.process_time() - started
    print(f"{entry.name}: {spent:.0f} CPU seconds\n", flush=True)
    about = {"torch": torch.__version__, "basis_probe": basis_probe.__version__}
    notes.save(short=settings.short, about=about)
    return True


if __name__ == "__main__":
    sys.exit(main())
