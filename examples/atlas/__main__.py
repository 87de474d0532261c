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
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("build/atlas"))
    parser.add_argument("--cache", type=pathlib.Path, default=CACHE / "basis_probe_atlas")
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
    folder.mkdir(parents=True, exist_ok=True)
    settings = Settings(short=asked.short, cache=asked.cache, fetch=asked.fetch)
    run = [] if asked.page else [run_one(n, folder, settings) for n in asked.entry or ENTRIES]
    text = page(sections(folder, [*ENTRIES]))
    (asked.out / "atlas.md").write_text(text, encoding="utf-8")
    print(f"wrote {asked.out / 'atlas.md'}")
    return int(bool(run) and not any(run))


def run_one(name: str, folder: pathlib.Path, settings: Settings) -> bool:
    """Runs one entry; False, with the reason printed, where something that it needs is absent."""
    entry = ENTRIES[name]
    notes, started = Notes(entry, folder), time.process_time()
    print(f"## {entry.title}\n", flush=True)
    try:
        entry.run(notes, settings)
    except Missing as reason:
        print(f"left out: {reason}\n", file=sys.stderr, flush=True)
        return False
    spent = time.process_time() - started
    print(f"{entry.name}: {spent:.0f} CPU seconds\n", flush=True)
    about = {"torch": torch.__version__, "basis_probe": basis_probe.__version__}
    notes.save(short=settings.short, about=about)
    return True


if __name__ == "__main__":
    sys.exit(main())
