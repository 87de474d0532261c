"""How fast networks are compared, as ratios of processor time within one run.

`python -m benchmarks --only comparison` prints tables: `similarity` beside plain formulas, and
`stitch` and `rebasin` beside a forward pass, of small networks and of large ones. Run as
`python benchmarks/comparison.py` it measures
kernels; `--large` adds the kernel of 8,192 examples, and `--assets FOLDER` the layer matrix of two
trained ResNet20s on 1,000 images.
"""

from __future__ import annotations

import argparse
import itertools
import pathlib
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

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


def pair(
    samples: int, dims: tuple[int, int], dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """Two sets of activations that share 24 directions."""
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(samples, 24, generator=generator)
    x, y = (
        shared @ torch.randn(24, dim, generator=generator)
        + torch.randn(samples, dim, generator=generator)
        for dim in dims
    )
    return x.to(dtype), y.to(dtype)


# --- plain formulas -------------------------------------------------------------------------------


def plain_cka(one: Tensor, other: Tensor) -> float:
    """Linear CKA, biased."""
    p, q = one - one.mean(0), other - other.mean(0)
    return float((p.T @ q).norm() ** 2 / (p.T @ p).norm() / (q.T @ q).norm())


def plain_procrustes(one: Tensor, other: Tensor) -> float:
    """Of centred data of unit size, up to turns."""
    p, q = one - one.mean(0), other - other.mean(0)
    return float(torch.linalg.matrix_norm(p.T @ q, ord="nuc") / p.norm() / q.norm())


def plain_cca(one: Tensor, other: Tensor) -> float:
    """The mean canonical correlation."""
    p, q = (torch.linalg.qr(side - side.mean(0))[0] for side in (one, other))
    return float(torch.linalg.svdvals(p.T @ q).mean())


def plain_svcca(one: Tensor, other: Tensor) -> float:
    """The same of the components that hold 99 % of the variance."""
    kept: list[Tensor] = []
    for side in (one, other):
        u, s, _ = torch.linalg.svd(side - side.mean(0), full_matrices=False)
        held = s.square().cumsum(0) / s.square().sum()
        kept.append(u[:, : int((held < 0.99).sum()) + 1])
    return float(torch.linalg.svdvals(kept[0].T @ kept[1]).mean())


def plain_pwcca(one: Tensor, other: Tensor) -> float:
    """Canonical correlations weighted by how much of the first side their directions carry."""
    centred = one - one.mean(0)
    p, q = (torch.linalg.qr(side)[0] for side in (centred, other - other.mean(0)))
    u, s, _ = torch.linalg.svd(p.T @ q)
    weights = ((p @ u).T @ centred).abs().sum(1)
    return float((weights * s).sum() / weights.sum())


def plain_matching(one: Tensor, other: Tensor) -> float:
    """Of centred data of unit size, up to an order of the axes."""
    from scipy.optimize import linear_sum_assignment

    p, q = one - one.mean(0), other - other.mean(0)
    gain = (p.T @ q / p.norm() / q.norm()).numpy()
    return float(gain[linear_sum_assignment(gain, maximize=True)].sum())


def plain_rsa(one: Tensor, other: Tensor) -> float:
    """Pearson's correlation of Euclidean distances."""
    from scipy.spatial.distance import pdist

    return float(np.corrcoef(pdist(one.numpy()), pdist(other.numpy()))[0, 1])


def plain_neighbours(one: Tensor, other: Tensor) -> float:
    """The share of ten nearest neighbours that both have."""
    near: list[Tensor] = []
    for side in (one, other):
        distances = torch.cdist(side, side).fill_diagonal_(torch.inf)
        among = distances.topk(10, largest=False).indices
        near.append(torch.zeros_like(distances, dtype=torch.bool).scatter_(1, among, True))
    return int((near[0] & near[1]).sum()) / int(near[0].sum())


Plain = Callable[[Tensor, Tensor], float]


def similarities(samples: int = 8192, dim: int = 512, few: int = 1500) -> list[str]:
    """Lines of a table: `similarity` beside the plain formula on the same tensors.

    Args:
        samples: how many, of either side, in float32.
        dim: the axes of either side.
        few: so many samples for measures that compare every two of them.
    """
    whole = pair(samples, (dim, dim), torch.float32)
    fewer = whole[0][:few], whole[1][:few]
    small = whole[0][:200, :8], whole[1][:200, :8]
    cka = {"measure": "cka", "estimator": "biased"}
    rows: list[tuple[str, tuple[Tensor, Tensor], dict[str, Any], str, Plain]] = [
        ("Procrustes", whole, {}, "nuclear norm of the product", plain_procrustes),
        ("linear CKA, biased", whole, cka, "three products", plain_cka),
        ("CCA", whole, {"measure": "cca"}, "QR of either side, SVD of the product", plain_cca),
        ("SVCCA", whole, {"measure": "svcca"}, "SVD of either side and the product", plain_svcca),
        ("PWCCA", whole, {"measure": "pwcca"}, "QR of either side, SVD, weights", plain_pwcca),
        (
            "matched axes", whole, {"group": "permutation"},
            "`scipy.optimize.linear_sum_assignment`", plain_matching,
        ),
        ("RSA", fewer, {"measure": "rsa"}, "`scipy.spatial.distance.pdist`, Pearson", plain_rsa),
        (
            "nearest neighbours (from differences, in float64)", fewer, {"measure": "knn"},
            "`torch.cdist` in float32, by products, `topk`", plain_neighbours,
        ),
        ("Procrustes", small, {}, "nuclear norm of the product", plain_procrustes),
        ("linear CKA, biased", small, cka, "three products", plain_cka),
        (
            "Procrustes, five folds", whole, {"folds": 5},
            "nuclear norm of the product, of all samples", plain_procrustes,
        ),
        (
            "linear CKA, biased, five folds", whole, cka | {"folds": 5},
            "three products, of all samples", plain_cka,
        ),
    ]  # fmt: skip
    lines = [
        "| `similarity` | samples x axes | plain formula | difference to it in float64 | "
        "this, CPU ms | plain, CPU ms | ratio |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    for what, sides, options, words, formula in rows:

        def ours(sides: Any = sides, options: Any = options) -> float:
            return bp.similarity(*sides, **{"folds": 1, **options}).similarity

        def plain(sides: Any = sides, formula: Plain = formula) -> float:
            return formula(*sides)

        size = " x ".join(f"{length:,}" for length in sides[0].shape)
        # In single precision the formula's rounding would hide this package's.
        exact = formula(*(side.double() for side in sides))
        gap = "held out" if "folds" in options else f"{abs(ours() - exact):.0e}"
        own, other = seconds(ours, plain, repeats=3)
        lines.append(
            f"| {what} | {size} | {words} | {gap} | {1e3 * own:.2f} | {1e3 * other:.2f} | "
            f"{own / other:.1f} |"
        )
    return lines


def joining(width: int = 256, batches: int = 16, rows: int = 1024) -> list[str]:
    """Lines of a table: `stitch` and `rebasin` of two ReLU networks beside one forward pass."""
    generator = torch.Generator().manual_seed(0)
    nets: list[nn.Sequential] = []
    for seed in range(2):
        torch.manual_seed(seed)
        hidden = [(nn.Linear(width, width), nn.ReLU()) for _ in range(3)]
        nets.append(nn.Sequential(*itertools.chain(*hidden), nn.Linear(width, width)).eval())
    inputs = [torch.randn(rows, width, generator=generator) for _ in range(batches)]

    @torch.no_grad()
    def forward() -> list[Tensor]:
        return [nets[0](x) for x in inputs]

    data = [(x, y.argmax(1)) for x, y in zip(inputs, forward(), strict=True)]

    def stitched(group: str | None) -> object:
        return bp.stitch(*nets, "3", data, group=group, epochs=0, progress=False)

    bare, *taken = seconds(
        forward,
        lambda: stitched(None),
        lambda: stitched("general-linear"),
        lambda: bp.rebasin(*nets, data, points=0),
        lambda: bp.rebasin(*nets, data),
        lambda: bp.rebasin(*nets, data, points=11),
    )
    taken.append((taken[4] - taken[2]) / 11)
    words = (
        "`stitch`, closed form, within the group of the place",
        "`stitch`, closed form, any linear map",
        "`rebasin` without a line",
        "`rebasin`, the ends and the middle",
        "`rebasin`, a line of 11 points",
        "of it: a point of the line, both networks",
    )
    return [
        f"| a ReLU network, four layers of {width}, {batches} batches of {rows:,} rows | CPU ms | "
        "/ forward |",
        "|---|---:|---:|",
        f"| one forward pass | {1e3 * bare:.2f} | |",
        *(f"| {w} | {1e3 * t:.2f} | {t / bare:.1f} |" for w, t in zip(words, taken, strict=True)),
    ]


def joining_large(tokens: int = 8192, images: int = 24) -> list[str]:
    """Lines of a table: the same of networks as people have them.

    Args:
        tokens: how many, for the shape of GPT-2 small.
        images: how many, for a ResNet-50.
    """
    import transformers

    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(0, 8192, (8, 128), generator=generator) for _ in range(tokens // 1024)]
    shown = [torch.randn(4, 3, 224, 224, generator=generator) for _ in range(images // 4)]
    labels = torch.randint(0, 1000, (4,), generator=generator)
    kinds: list[tuple[str, str, str, dict[str, Any], list[Any], tuple[str, ...]]] = [
        (
            f"GPT-2 small's shape, {tokens:,} tokens", "GPT2LMHeadModel", "GPT2Config",
            {"vocab_size": 8192, "bos_token_id": 0, "eos_token_id": 0}, ids,
            ("transformer.h.6", "transformer.h.6.mlp.act"),
        ),
        (
            f"ResNet-50, {images} images", "ResNetForImageClassification", "ResNetConfig",
            {"num_labels": 1000}, [(batch, labels) for batch in shown],
            ("resnet.encoder.stages.2.layers.2",),
        ),
    ]  # fmt: skip
    lines = [
        "| two networks | | one forward pass, CPU s | CPU s | / forward |",
        "|---|---|---:|---:|---:|",
    ]
    for words, kind, config, sizes, data, sites in kinds:
        nets: list[Any] = []
        for seed in range(2):
            torch.manual_seed(seed)
            made = getattr(transformers, config)(**sizes)
            nets.append(getattr(transformers, kind)(made).eval())

        @torch.no_grad()
        def forward(net: Any = nets[0], data: Any = data) -> None:
            for batch in data:
                net(batch if isinstance(batch, Tensor) else batch[0])

        forward()
        [bare] = seconds(forward, repeats=2)
        for site in sites:

            def stitched(nets: Any = nets, site: str = site, data: Any = data) -> object:
                return bp.stitch(*nets, site, data, epochs=0, progress=False)

            [taken] = seconds(stitched, repeats=1)
            where = f"`stitch`, closed form, at `{site}`"
            lines.append(f"| {words} | {where} | {bare:.1f} | {taken:.1f} | {taken / bare:.1f} |")

        def moved(nets: Any = nets, data: Any = data) -> object:
            return bp.rebasin(*nets, data)

        [taken] = seconds(moved, repeats=1)
        where = "`rebasin`, the ends and the middle"
        lines.append(f"| {words} | {where} | {bare:.1f} | {taken:.1f} | {taken / bare:.1f} |")
    return lines


def table() -> list[str]:
    """All tables, on one thread."""
    torch.set_num_threads(1)
    return [*similarities(), "", *joining(), "", *joining_large()]


# --- kernels --------------------------------------------------------------------------------------


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
