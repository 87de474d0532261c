"""Writes the documents that come with the package: `python examples/demo_texts/write.py`.

They are documents of the seed that no training used, with the concepts of every token.
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "basis_probe" / "demo" / "texts.json.gz"
NUMBER, SEED = 3072, 1


def shipped() -> bytes:
    """The file, the same for the same grammar.

    A document is its text and, for each of its tokens, the place of its concepts in `sets`.
    """
    from demo_texts.grammar import CONCEPTS, documents

    sets: dict[tuple[str, ...], int] = {}
    rows: list[list[object]] = []
    for document in documents(NUMBER, SEED):
        carried = [
            tuple(name for name in CONCEPTS if place in document.concepts[name])
            for place in range(len(document.tokens))
        ]
        places = [sets.setdefault(names, len(sets)) for names in carried]
        rows.append([document.text, places])
    value = {"sets": list(sets), "documents": rows}
    return gzip.compress(json.dumps(value, separators=(",", ":")).encode(), mtime=0)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    FILE.write_bytes(shipped())
    print(f"wrote {FILE}")
