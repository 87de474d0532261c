"""How fast networks are compared, as ratios of processor time within one run.

Run it as `python benchmarks/comparison.py`; `--large` adds the kernel of 8,192 examples, and
`--assets FOLDER` the layer matrix of two trained ResNet20s on 1,000 images.
"""

from __future__ import annotations

import argparse
import pathlib
import resource
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

import basis_probe as bp
from basis_probe.compare.kernels import Kernel, Maps, hsic_of


def seconds(*runs: Callable[[], object], repeats: int = 5) -> list[float]:
    """The least processor time of each, in turns, so that a busy machine counts against neither."""
    found: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats):
        for run, taken in zip(runs, found, strict=True):
            start = time.process_time()
            run()
            taken.append(time.process_time() - start)
    return [min(taken) for taken in found]


def by_columns(h1: Tensor, h2: Tensor) -> float:
    """The paper's kernel and criterion, one column of the kernel after the other."""
    kernels = []
    for h in (h1, h2):
        h = h - h.mean(dim=(0, 2), keepdim=True)
        h = h / h.square().sum(dim=(0, 2), keepdim=True).sqrt()
        k = torch.zeros(len(h), len(h))
        for j in range(1, len(h)):
            k[:j, j] = (h[:j] * h[j]).sum(-1).amax(1)
        kernels.append(k + k.T)

    def hsic(k: Tensor, el: Tensor) -> Tensor:
        n = len(k)
        k, el = k.double(), el.double()
        inner = (k * el).sum() + k.sum() * el.sum() / ((n - 1) * (n - 2))
        return (inner - 2 / (n - 2) * (k.sum(1) * el.sum(1)).sum()) / (n * (n - 3))

    k, el = kernels
    return float(hsic(k, el) / (hsic(k, k) * hsic(el, el)).sqrt())


def small() -> None:
    """The max kernel of 512 samples x 64 channels x 64 positions against the loop over columns."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(512, 64, 64, generator=generator).relu()
    y = (x.roll(1, 1) + torch.randn(512, 64, 64, generator=generator)).relu()

    def ours() -> float:
        options = {"group": "positive-monomial", "measure": "cka", "kernel": "max"}
        return bp.similarity(x, y, folds=1, **options).similarity

    difference = abs(ours() - by_columns(x, y))
    fast, slow = seconds(ours, lambda: by_columns(x, y))
    print(
        f"G_ReLU-CKA, 512 x 64 x 64: {fast:.2f} s, loop over columns {slow:.2f} s: "
        f"{slow / fast:.1f} times as fast, values differ by {difference:.1e}"
    )


def large() -> None:
    """The max kernel of 8,192 samples x 256 channels x 64 positions, in bounded memory."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8192, 256, 64, generator=generator)
    y = x.roll(1, 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    start, work = time.perf_counter(), time.process_time()
    found = hsic_of(Maps(x, Kernel.MAX, True), Maps(y, Kernel.MAX, True))
    took, worked = time.perf_counter() - start, time.process_time() - work
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"G_ReLU-CKA, 8192 x 256 x 64: {worked:.0f} s of a processor, {took:.0f} s on the clock, "
        f"{after - before:.2f} GB over the "
        f"{before:.2f} GB of the activations (a kernel as a whole would hold 0.25 GB each); "
        f"value {found.cka:.6f} (the second is a permutation of the first)"
    )


def layers(assets: pathlib.Path) -> None:
    """All layers of a trained ResNet20 against all of another on 1,000 images."""
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests"))
    import os

    os.environ["BASIS_PROBE_ASSETS"] = str(assets.resolve())
    import assets as loaders  # pyright: ignore

    one, other = loaders.resnet(20), loaders.resnet(20, seed=1)
    images = loaders.cifar(1000, colours=loaders.RESNET_COLOURS)[0].split(100)
    for kernel in ("linear", "max"):
        start, work = time.perf_counter(), time.process_time()
        found = bp.compare_layers(one, other, list(images), kernel=kernel)
        took, worked = time.perf_counter() - start, time.process_time() - work
        print(
            f"layers of two ResNet20s, {kernel} CKA, 1,000 images, {found.similarity.shape}: "
            f"{worked:.0f} s of a processor, {took:.0f} s on the clock"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--assets", type=pathlib.Path)
    arguments = parser.parse_args()
    small()
    if arguments.assets is not None:
        layers(arguments.assets)
    if arguments.large:
        large()
