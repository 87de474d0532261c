"""The same numbers by other tools: how far apart they are, and how much time each takes.

Peers that are not installed are left out, and the table says so. Every row runs in this process, on
one thread; times are of the processor, the least of several.
"""

import dataclasses
import importlib.util
import math
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

import basis_probe as bp


@dataclasses.dataclass(frozen=True)
class Row:
    """One number, by this package and by a peer.

    Attributes:
        what: which number.
        peer: the other tool; what must be importable comes before the first space.
        ours, theirs: the two calls.
    """

    what: str
    peer: str
    ours: Callable[[], float]
    theirs: Callable[[], float]


def table() -> list[str]:
    """The lines of a Markdown table."""
    torch.set_num_threads(1)
    lines = [
        "| number | peer | difference | this, CPU s | peer, CPU s | ratio |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for row in _rows():
        if importlib.util.find_spec(row.peer.split()[0].replace("scikit-learn", "sklearn")) is None:
            lines.append(f"| {row.what} | {row.peer} | not installed | | | |")
            continue
        (ours, own), (theirs, other) = _timed(row.ours), _timed(row.theirs)
        lines.append(
            f"| {row.what} | {row.peer} | {abs(ours - theirs):.0e} | {own:.3f} | {other:.3f} | "
            f"{own / other:.1f} |"
        )
    return lines


def _timed(call: Callable[[], float]) -> tuple[float, float]:
    """What a call gives, and its processor time, the least of three after one to warm up."""
    value, least = call(), math.inf
    for _ in range(3):
        start = time.process_time()
        call()
        least = min(least, time.process_time() - start)
    return value, max(least, 1e-6)


def _pair(
    samples: int, dims: tuple[int, int], dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(samples, 24, generator=generator)
    x, y = (
        shared @ torch.randn(24, dim, generator=generator)
        + torch.randn(samples, dim, generator=generator)
        for dim in dims
    )
    return x.to(dtype), y.to(dtype)


def _rows() -> Iterator[Row]:
    x, y = _pair(2000, (64, 64))
    a, b = (side - side.mean(0) for side in (x, y))
    arrays = a.numpy(), b.numpy()

    def scipy_procrustes() -> float:
        from scipy.linalg import orthogonal_procrustes

        _, scale = orthogonal_procrustes(*arrays)
        return float(scale / np.linalg.norm(arrays[0]) / np.linalg.norm(arrays[1]))

    yield Row(
        "Procrustes up to turns, 2,000 x 64",
        "scipy.linalg",
        lambda: bp.similarity(x, y, folds=1).similarity,
        scipy_procrustes,
    )

    def netrep_angle(whitening: float) -> float:
        from netrep.metrics import LinearMetric  # pyright: ignore

        # The size at which partial whitening does not depend on the number of samples.
        sized = [z * math.sqrt(z.shape[1]) / np.linalg.norm(z) for z in arrays]
        metric = LinearMetric(alpha=1 - whitening, center_columns=True, score_method="angular")
        return float(math.cos(metric.fit(*sized).score(*sized)))

    for share in (0.0, 0.5):
        yield Row(
            f"Procrustes, {share:g} of the way to white axes, 2,000 x 64",
            "netrep LinearMetric",
            lambda share=share: bp.similarity(x, y, folds=1, whitening=share).similarity,
            lambda share=share: netrep_angle(share),
        )
    one, other = _pair(8192, (512, 512), torch.float32)

    def plain_cka() -> float:
        p, q = one - one.mean(0), other - other.mean(0)
        return float((p.T @ q).norm() ** 2 / (p.T @ p).norm() / (q.T @ q).norm())

    def plain_procrustes() -> float:
        p, q = one - one.mean(0), other - other.mean(0)
        return float(torch.linalg.matrix_norm(p.T @ q, ord="nuc") / p.norm() / q.norm())

    yield Row(
        "linear CKA, float32, 8,192 x 512",
        "torch (formula in float32)",
        lambda: bp.similarity(one, other, measure="cka", estimator="biased", folds=1).similarity,
        plain_cka,
    )
    yield Row(
        "Procrustes, float32, 8,192 x 512",
        "torch (formula in float32)",
        lambda: bp.similarity(one, other, folds=1).similarity,
        plain_procrustes,
    )
    for dims in ((100, 64), (300, 257), (768, 512)):
        u, v = _pair(1000, dims)
        gain = ((u - u.mean(0)).T @ (v - v.mean(0)) / (u - u.mean(0)).norm()).numpy()
        gain /= float((v - v.mean(0)).norm())

        def transport(gain: np.ndarray = gain, dims: tuple[int, int] = dims) -> float:
            import ot

            own, other = (np.full(dim, 1 / dim) for dim in dims)
            plan: np.ndarray = ot.emd(own, other, -gain, numItermax=10**7)
            return float((plan * gain).sum()) * math.sqrt(dims[0] * dims[1])

        yield Row(
            f"soft matching, {dims[0]} with {dims[1]} axes",
            "ot emd (POT)",
            lambda u=u, v=v: bp.similarity(u, v, group="permutation", folds=1).similarity,
            transport,
        )

    def canonical() -> float:
        from sklearn.cross_decomposition import CCA

        found = CCA(8, max_iter=5000, tol=1e-12).fit_transform(few, fewer)
        pairs = zip(found[0].T, found[1].T, strict=True)
        return float(np.mean([np.corrcoef(p, q)[0, 1] for p, q in pairs]))

    few, fewer = (side.numpy() for side in _pair(1000, (8, 8)))
    yield Row(
        "mean canonical correlation, 1,000 x 8",
        "scikit-learn CCA",
        lambda: bp.similarity(few, fewer, measure="cca", folds=1).similarity,
        canonical,
    )

    def rsa() -> float:
        from scipy.spatial.distance import pdist
        from scipy.stats import spearmanr

        return float(spearmanr(pdist(arrays[0][:600]), pdist(arrays[1][:600]))[0])

    yield Row(
        "RSA, Euclidean, Spearman, 600 samples",
        "scipy.stats",
        lambda: (
            bp.similarity(
                a[:600], b[:600], measure="rsa", correlation="spearman", folds=1
            ).similarity
        ),
        rsa,
    )
    values, labels = x.float(), torch.stack([x[:, i] + y[:, i] > 3 for i in range(16)], 1)

    def precision() -> float:
        from sklearn.metrics import average_precision_score

        return max(
            float(average_precision_score(labels[:, 0], values[:, axis])) for axis in range(64)
        )

    effort = bp.concepts.Effort(shuffles=1, resamples=0)

    def dissected() -> float:
        found = bp.dissect_activations(
            values, {"first": labels[:, 0]}, group="orthogonal", measures="average_precision",
            split=bp.concepts.Split.NONE, sides=bp.concepts.Sides.POSITIVE, frames=19,
            effort=effort,
        )  # fmt: skip
        return found.comparison().concepts[0].score

    yield Row(
        "best axis' average precision, 2,000 x 64 (this: 19 rotations beside)",
        "scikit-learn average_precision_score",
        dissected,
        precision,
    )
