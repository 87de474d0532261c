"""Writes picture.png: what was found in the language model that comes with the package.

python docs/picture.py
"""

from __future__ import annotations

import pathlib

import torch

import basis_probe as bp
from basis_probe import demo


def main() -> None:
    """Probes the model and writes the picture."""
    torch.set_num_threads(1)
    texts = demo.texts(128, seed=1)
    data = [texts[start : start + 32] for start in range(0, len(texts), 32)]
    report = bp.probe(demo.load(), data)
    figure = report.plot()
    figure.savefig(pathlib.Path(__file__).with_name("picture.png"), dpi=72)


if __name__ == "__main__":
    main()
