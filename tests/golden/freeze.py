"""Writes what the runs return now into `values/`: `python tests/golden/freeze.py [RUN ...]`.

Without names, all of them. Look at the difference before it is committed: a number that changes
belongs into the changelog.
"""

from __future__ import annotations

import json
import pathlib
import re
import sys
import time

VALUES = pathlib.Path(__file__).parent / "values"


def main(names: list[str]) -> None:
    sys.path[:0] = [str(VALUES.parent), str(VALUES.parent.parent)]
    import torch
    from runs import RUNS

    torch.set_num_threads(1)
    strange = sorted(set(names) - set(RUNS))
    if strange:
        sys.exit(f"no run is called {', '.join(strange)}; there are {', '.join(RUNS)}")
    VALUES.mkdir(exist_ok=True)
    for name in names or RUNS:
        start = time.process_time()
        text = json.dumps(RUNS[name](), indent=0, ensure_ascii=False)
        text = re.sub(r"\[\n([^\[\]{}\"]*)\n\]", lambda m: f"[{' '.join(m[1].split())}]", text)
        (VALUES / f"{name}.json").write_text(text + "\n", encoding="utf-8")
        print(f"{name}: {len(text) / 1000:.0f} kB, {time.process_time() - start:.1f} s")
    if not names:
        for path in VALUES.glob("*.json"):
            if path.stem not in RUNS:
                path.unlink()


if __name__ == "__main__":
    main(sys.argv[1:])
