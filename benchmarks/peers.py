"""The same numbers by other tools: how far apart they are, and how much time each takes.

Peers that are not installed are left out, and the table says so. Every row runs in this process, on
one thread; times are of the processor, the least of several.
"""

import contextlib
import dataclasses
import importlib
import io
import itertools
import math
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import basis_probe as bp
from basis_probe.statistics.p_values import benjamini_hochberg
from benchmarks.comparison import pair, plain_cka, plain_procrustes


@dataclasses.dataclass(frozen=True)
class Row:
    """One number, by this package and by a peer.

    Attributes:
        what: which number.
        peer: the other tool; the name of its module comes before the first space.
        ours, theirs: the two calls.
        exact: what both round, where the peer's rounding would hide this package's.
    """

    what: str
    peer: str
    ours: Callable[[], float]
    theirs: Callable[[], float]
    exact: Callable[[], float] | None = None


def table() -> list[str]:
    """The lines of a Markdown table."""
    torch.set_num_threads(1)
    lines = [
        "| number | peer | difference | this, CPU s | peer, CPU s | ratio |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for row in _rows():
        try:
            # Neither of the two is charged for it.
            importlib.import_module(row.peer.split()[0].replace("scikit-learn", "sklearn"))
        except ModuleNotFoundError:
            lines.append(f"| {row.what} | {row.peer} | not installed | | | |")
            continue
        (ours, own), (theirs, other) = _timed(row.ours), _timed(row.theirs)
        exact = theirs if row.exact is None else row.exact()
        lines.append(
            f"| {row.what} | {row.peer} | {abs(ours - exact):.0e} | {own:.3f} | {other:.3f} | "
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


def _rows() -> Iterator[Row]:
    x, y = pair(2000, (64, 64))
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
    one, other = pair(8192, (512, 512), torch.float32)

    yield Row(
        "linear CKA, float32, 8,192 x 512",
        "torch (formula in float32; difference to float64)",
        lambda: bp.similarity(one, other, measure="cka", estimator="biased", folds=1).similarity,
        lambda: plain_cka(one, other),
        lambda: plain_cka(one.double(), other.double()),
    )
    yield Row(
        "Procrustes, float32, 8,192 x 512",
        "torch (formula in float32; difference to float64)",
        lambda: bp.similarity(one, other, folds=1).similarity,
        lambda: plain_procrustes(one, other),
        lambda: plain_procrustes(one.double(), other.double()),
    )
    for dims in ((100, 64), (300, 257), (768, 512)):
        u, v = pair(1000, dims)

        def transport(u: Tensor = u, v: Tensor = v, dims: tuple[int, int] = dims) -> float:
            import ot

            p, q = u - u.mean(0), v - v.mean(0)
            gain = (p.T @ q / p.norm() / q.norm()).numpy()
            own, other = (np.full(dim, 1 / dim) for dim in dims)
            plan: np.ndarray = ot.emd(own, other, -gain, numItermax=10**7)
            return float((plan * gain).sum()) * math.sqrt(dims[0] * dims[1])

        yield Row(
            f"soft matching, {dims[0]} with {dims[1]} axes",
            "ot emd (POT)",
            lambda u=u, v=v: bp.similarity(u, v, group="permutation", folds=1).similarity,
            transport,
        )

    def partial() -> float:
        import ot

        p, q = (z - z.mean(0) for z in wide)
        gain = ((p / p.norm(dim=0)).T @ (q / q.norm(dim=0))).numpy()
        weights = [np.full(dim, 1 / dim) for dim in gain.shape]
        plan = ot.partial.partial_wasserstein(*weights, gain.max() - gain, m=0.5, numItermax=10**7)
        return float((plan * gain).sum()) / 0.5

    wide = pair(1000, (300, 257))
    yield Row(
        "half of the axes matched, 300 with 257",
        "ot partial_wasserstein (POT)",
        lambda: bp.similarity(*wide, measure="partial", folds=1).similarity,
        partial,
    )

    def canonical() -> float:
        from sklearn.cross_decomposition import CCA

        found = CCA(8, max_iter=5000, tol=1e-12).fit_transform(few, fewer)
        pairs = zip(found[0].T, found[1].T, strict=True)
        return float(np.mean([np.corrcoef(p, q)[0, 1] for p, q in pairs]))

    few, fewer = (side.numpy() for side in pair(1000, (8, 8)))
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

    sources = np.random.default_rng(0).laplace(size=(4000, 24))
    mixing = np.linalg.qr(np.random.default_rng(1).standard_normal((24, 24)))[0]
    mixed = sources @ mixing

    def found_again(directions: np.ndarray) -> float:
        """How near the directions are to the planted ones, in [0, 1]."""
        unit = directions / np.linalg.norm(directions, axis=1, keepdims=True)
        return float(np.abs(unit @ mixing.T).max(0).mean())

    def picard_ica() -> float:
        import picard  # pyright: ignore

        whitening, turn, _ = picard.picard(mixed.T, ortho=True, random_state=0, max_iter=400)
        return found_again(turn @ whitening)

    yield Row(
        "planted directions found by ICA, 4,000 x 24",
        "picard (ortho)",
        lambda: found_again(np.asarray(bp.bases.ICA().fit(torch.as_tensor(mixed)).directions)),
        picard_ica,
    )

    few_mixed = mixed[:200, :8] - mixed[:200, :8].mean(0)

    def varimax(turned: np.ndarray) -> float:
        """What varimax makes large, of rows that are turned already."""
        return float((np.mean(turned**4, 0) - np.mean(turned**2, 0) ** 2).sum())

    def statsmodels_varimax() -> float:
        from statsmodels.multivariate.factor_rotation import rotate_factors  # pyright: ignore

        return varimax(rotate_factors(few_mixed, "varimax")[0])

    yield Row(
        "varimax criterion, 200 x 8",
        "statsmodels rotate_factors",
        lambda: varimax(
            few_mixed @ np.asarray(bp.bases.Varimax().fit(torch.as_tensor(few_mixed)).directions).T
        ),
        statsmodels_varimax,
    )
    values_at = np.random.default_rng(2).random(100_000) ** 2

    def multiple() -> float:
        from statsmodels.stats.multitest import multipletests  # pyright: ignore

        return float(multipletests(values_at, method="fdr_bh")[1].mean())

    yield Row(
        "Benjamini and Hochberg, 100,000 p-values",
        "statsmodels multipletests",
        lambda: float(benjamini_hochberg(torch.as_tensor(values_at)).mean()),
        multiple,
    )
    nets = [_layers(seed) for seed in (0, 1)]
    batches = list(torch.randn(1024, 64, generator=torch.Generator().manual_seed(5)).split(256))

    def torch_cka() -> float:
        from torch_cka import CKA  # pyright: ignore

        loader = DataLoader(TensorDataset(torch.cat(batches)), 256)
        names = ["1", "3", "5"]
        with contextlib.redirect_stderr(io.StringIO()), torch.no_grad():
            peer = CKA(*nets, "one", "other", model1_layers=names, model2_layers=names)
            peer.compare(loader, loader)
        return float(peer.export()["CKA"].mean())

    yield Row(
        "linear CKA of 3 layers with 3, in 4 batches, 256 x 128",
        "torch_cka",
        lambda: float(
            bp.compare_layers(
                *nets, batches, sites=["1", "3", "5"], group="orthogonal"
            ).similarity.mean()
        ),
        torch_cka,
    )


def _layers(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    sizes = 64, 128, 128, 128
    parts = [[nn.Linear(a, b), nn.ReLU()] for a, b in itertools.pairwise(sizes)]
    return nn.Sequential(*itertools.chain(*parts), nn.Linear(128, 4)).eval()
