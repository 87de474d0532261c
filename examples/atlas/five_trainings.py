"""Five trainings of one network: whose axes are shared, and what they tell at splice sites."""

from __future__ import annotations

import itertools
import json
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import basis_probe as bp

from . import sources
from .entry import Entry, Missing, Notes, Settings, Verdict, span

CHANNELS = 32
LETTERS = "ACGT"
KERNELS = [(11, 1)] * 4 + [(11, 4)] * 4 + [(21, 10)] * 4 + [(41, 25)] * 4
LOOKED_AT = (3, 7, 11, 15)
DRAWS = 20


class Block(nn.Module):
    """stream + two dilated convolutions, each behind a BatchNorm and a ReLU."""

    def __init__(self, kernel: int, dilation: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.BatchNorm1d(CHANNELS, eps=1e-3) for _ in range(2))
        self.conv1, self.conv2 = (
            nn.Conv1d(CHANNELS, CHANNELS, kernel, dilation=dilation, padding="same")
            for _ in range(2)
        )
        self.act1, self.act2 = nn.ReLU(), nn.ReLU()

    def forward(self, stream: Tensor) -> Tensor:
        first = self.conv1(self.act1(self.norm1(stream)))
        return stream + self.conv2(self.act2(self.norm2(first)))


class Splicing(nn.Module):
    """[batch, 4, positions] -> logits of neither, acceptor and donor at every position."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(4, CHANNELS, 1)
        self.blocks = nn.ModuleList(Block(*one) for one in KERNELS)
        self.skips = nn.ModuleList(nn.Conv1d(CHANNELS, CHANNELS, 1) for _ in range(5))
        self.answer = nn.Conv1d(CHANNELS, 3, 1)

    def forward(self, letters: Tensor) -> Tensor:
        stream = self.first(letters)
        total = self.skips[0](stream)
        for at, block in enumerate(self.blocks, start=1):
            stream = block(stream)
            if at % 4 == 0:
                total = total + self.skips[at // 4](stream)
        return self.answer(total)


def network(path: pathlib.Path, settings: Settings) -> Splicing:
    """One training, its weights read from the file."""
    h5py = _h5py(settings)
    made = Splicing().eval()
    convolutions: list[nn.Module] = [made.first, made.skips[0]]
    norms: list[nn.Module] = []
    for at, block in enumerate(made.blocks, start=1):
        parts: Any = block
        convolutions += [parts.conv1, parts.conv2]
        norms += [parts.norm1, parts.norm2]
        if at % 4 == 0:
            convolutions.append(made.skips[at // 4])
    convolutions.append(made.answer)
    with h5py.File(path) as file:
        layers = json.loads(file.attrs["model_config"])["config"]["layers"]
        for kind, targets in (("Conv1D", convolutions), ("BatchNormalization", norms)):
            # Keras numbers layers in the order in which they were made; the first and the skip
            # convolutions are numbered among the others.
            names = sorted((la["name"] for la in layers if la["class_name"] == kind), key=_number)
            for name, target in zip(names, targets, strict=True):
                _fill(target, file["model_weights"][name][name])
    return made


def _h5py(settings: Settings) -> Any:
    try:
        import h5py
    except ImportError:
        kept = settings.cache / "h5py"
        if not kept.is_dir():
            raise Missing("needs h5py: pip install h5py") from None
        sys.path.insert(0, str(kept))
        import h5py
    return h5py


def _number(name: str) -> int:
    return int(re.findall(r"\d+", name)[-1])


def _fill(target: Any, stored: Any) -> None:
    values = {name.split(":")[0]: torch.from_numpy(stored[name][()]).float() for name in stored}
    with torch.no_grad():
        if "kernel" in values:
            target.weight.copy_(values["kernel"].permute(2, 1, 0))
            target.bias.copy_(values["bias"])
            return
        target.weight.copy_(values["gamma"])
        target.bias.copy_(values["beta"])
        target.running_mean.copy_(values["moving_mean"])
        target.running_var.copy_(values["moving_variance"])


def genes(count: int, length: int) -> tuple[Tensor, Tensor]:
    """[count, 4, length] random letters with planted exons, and [count, length] their ends.

    1 where an exon begins (acceptor: a branch point, pyrimidines, AG) and 2 where one ends (donor:
    MAG, then GTAAGT), 0 elsewhere.
    """
    generator = torch.Generator().manual_seed(0)
    letters = torch.randint(0, 4, (count, length), generator=generator)
    ends = torch.zeros(count, length, dtype=torch.int64)
    for row in range(count):
        start = 200 + int(torch.randint(0, 60, (1,), generator=generator))
        while start + 260 < length - 200:
            size = 120 + int(torch.randint(0, 60, (1,), generator=generator))
            _plant(letters[row], start, "TACTAACTTTTCTTTCTTTTTCCTTCCTTTGCAG", before=True)
            last = start + size - 1
            _plant(letters[row], last + 1, "CAG", before=True)
            _plant(letters[row], last + 1, "GTAAGT", before=False)
            ends[row, start], ends[row, last] = 1, 2
            start = last + 250 + int(torch.randint(0, 100, (1,), generator=generator))
    return torch.nn.functional.one_hot(letters, 4).permute(0, 2, 1).float(), ends


def _plant(row: Tensor, place: int, word: str, *, before: bool) -> None:
    at = place - len(word) if before else place
    row[at : at + len(word)] = torch.tensor([LETTERS.index(letter) for letter in word])


def run(notes: Notes, settings: Settings) -> None:
    """Axes of five trainings matched, and units at splice sites."""
    home = sources.package("spliceai", "1.3.1", settings) / "spliceai" / "models"
    _h5py(settings)
    trainings = settings.of(5, 3)
    networks = [network(home / f"spliceai{at + 1}.h5", settings) for at in range(trainings)]
    letters, ends = genes(settings.of(16, 8), 2000)
    with torch.no_grad():
        said = [one(letters).softmax(1) for one in networks]
    sure = [
        float(torch.stack([chances[:, kind][ends == kind] for kind in (1, 2)]).median())
        for chances in said
    ]
    notes.say(
        "Do trainings that differ in their seed alone find the same axes? [SpliceAI]"
        "(https://doi.org/10.1016/j.cell.2018.12.015) comes as five trainings of one dilated "
        "residual network (32 channels, 16 blocks, ReLU, BatchNorm), whose average is "
        "its prediction. Their weights are read into a torch "
        f"module and shown {len(letters)} random sequences with planted exons, whose ends they "
        f"call with a median chance of {span(sure, '.2f')}. *Matched* is the mean |correlation| of "
        "channels before the second ReLU of a block, each paired with one of the other training by "
        "the best permutation; *turned* is the same with the other training's "
        f"channels, brought to unit variance, turned by a random rotation ({DRAWS} draws); "
        "*whitened* compares both after their covariances are taken out, so that what is shared is "
        "neither variances nor a common subspace. Mean over pairs."
    )
    notes.holds("planted sites are called in every training", min(sure) > 0.5)
    rows = [_layer_row(notes, networks, letters, layer) for layer in LOOKED_AT]
    notes.table(
        ["before the second ReLU of", "matched", "turned", "z, of the pairs", "whitened", "turned",
         "z, of the pairs", "channels shared"],
        rows,
    )  # fmt: skip
    _concepts(notes, networks, letters, ends)
    _say_what_follows(notes, trainings)


def _pre(one: Splicing, letters: Tensor, layer: int, every: int = 3) -> Tensor:
    """[rows, channels] before the second ReLU of a block; every third position off the edges."""
    caught: list[Tensor] = []
    block: Any = one.blocks[layer]
    handle = block.act2.register_forward_pre_hook(lambda _, given: caught.append(given[0].clone()))
    with torch.no_grad():
        one(letters)
    handle.remove()
    return caught[0][..., 100:-100:every].permute(0, 2, 1).reshape(-1, CHANNELS).double()


def _layer_row(
    notes: Notes, networks: Sequence[Splicing], letters: Tensor, layer: int
) -> list[str]:
    every = [_pre(one, letters, layer) for one in networks]
    forms = {"matched": [_standard(x) for x in every], "whitened": [_white(x) for x in every]}
    cells: list[str] = []
    for name, rows in forms.items():
        found: list[tuple[float, float, float]] = []
        for one, two in itertools.combinations(rows, 2):
            cosines = one.T @ two / len(one)
            own = _matched(cosines)
            generator = torch.Generator().manual_seed(0)
            null = torch.tensor(
                [
                    _matched(cosines @ bp.groups.Orthogonal(CHANNELS).sample(generator))
                    for _ in range(DRAWS)
                ]
            )
            found.append((own, float(null.mean()), (own - float(null.mean())) / float(null.std())))
        own, null, z = (sum(one[at] for one in found) / len(found) for at in range(3))
        low, high = min(one[2] for one in found), max(one[2] for one in found)
        cells += [f"{own:.3f}", f"{null:.3f}", f"{low:+.1f} to {high:+.1f}"]
        for key, value in (("own", own), ("null", null), ("z", z), ("least z", low)):
            notes.number(f"{layer}/{name} {key}", value)
    shared = notes.number(f"{layer}/shared", _shared(forms["matched"]))
    return [f"block {layer + 1}", *cells, f"{shared:.1%}"]


def _standard(rows: Tensor) -> Tensor:
    rows = rows - rows.mean(0)
    return rows / rows.std(0, correction=0).clamp_min(1e-9)


def _white(rows: Tensor) -> Tensor:
    """The rows with their covariance taken out symmetrically, so that axes stay near themselves."""
    rows = _standard(rows)
    values, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))
    ridge = 0.01 * float(values.mean())
    return rows @ (vectors * (values + ridge).rsqrt()) @ vectors.T


def _matched(cosines: Tensor) -> float:
    """The mean |cosine| over the best pairing."""
    from scipy.optimize import linear_sum_assignment

    size = cosines.abs().numpy()
    one, two = linear_sum_assignment(-size)
    return float(size[one, two].mean())


def _shared(rows: Sequence[Tensor]) -> float:
    """Of the channels of the first: best correlation 0.5 above that with turned ones, mean."""
    generator = torch.Generator().manual_seed(0)
    first, *others = rows
    excess = []
    for other in others:
        cosines = (first.T @ other / len(first)).abs().max(1).values
        turned = other @ bp.groups.Orthogonal(CHANNELS).sample(generator)
        excess.append(cosines - (first.T @ _standard(turned) / len(first)).abs().max(1).values)
    return float((torch.stack(excess).mean(0) > 0.5).double().mean())


def _concepts(notes: Notes, networks: Sequence[Splicing], letters: Tensor, ends: Tensor) -> None:
    """How well one channel of the last block tells a splice site, in every training."""
    labels = ends[:, 100:-100].flatten()
    cells: dict[str, list[float]] = {}
    generator = torch.Generator().manual_seed(0)
    # All sites, and as many other positions as make the labels rare but not hopeless.
    kept = (labels > 0) | (torch.rand(len(labels), generator=generator) < 0.15)
    for one in networks:
        pre = _pre(one, letters, 15, every=1)[kept]
        found = bp.dissect_activations(
            pre,
            {"acceptor": labels[kept] == 1, "donor": labels[kept] == 2},
            group="positive-monomial",
            measures="auc",
            null="rotation",
            frames=19,
        ).comparison()
        for concept in found.concepts:
            cells.setdefault(concept.concept, []).append(concept.score)
            cells.setdefault(f"{concept.concept} turned", []).append(concept.null_mean)
    for name, values in cells.items():
        notes.number(f"concept/{name}", sum(values) / len(values))
    notes.say(
        "What they tell: the best single channel before the last ReLU tells an acceptor with an "
        "AUC "
        f"of {span(cells['acceptor'], '.3f')} and a donor with {span(cells['donor'], '.3f')} over "
        f"the trainings; the best turned channel {span(cells['acceptor turned'], '.3f')} and "
        f"{span(cells['donor turned'], '.3f')}."
    )


def _say_what_follows(notes: Notes, trainings: int) -> None:
    number = notes.numbers
    zs = [number[f"{layer}/matched z"] for layer in LOOKED_AT]
    white = [number[f"{layer}/whitened z"] for layer in LOOKED_AT]
    shared = [number[f"{layer}/shared"] for layer in LOOKED_AT]
    own = [number[f"{layer}/matched own"] for layer in LOOKED_AT]
    null = [number[f"{layer}/matched null"] for layer in LOOKED_AT]
    notes.holds("axes of different trainings match better than turned ones", min(zs) > 2)
    notes.holds("few channels are the same channel in another training", max(shared) < 0.5)
    left = [layer + 1 for layer, z in zip(LOOKED_AT, white, strict=True) if z > 2]
    notes.say(
        f"Between {trainings} trainings axes agree beyond chance at every depth that was looked at "
        f"(z {span(zs, '+.1f')} on average over pairs; with covariances taken out "
        f"{span(white, '+.1f')}: beyond 2 at {_blocks(left)}), and by little: a matched "
        f"correlation of {span(own, '.2f')} where "
        f"turned ones have {span(null, '.2f')}. By the rule of universal neurons "
        f"{span(shared, '.0%')} of the channels are shared. Agreement of axes is a matter of "
        f"degree: "
        "a test that asks only whether it is there says yes, and a count of shared neurons says no."
    )
    notes.row(
        "Trainings from different seeds find the same channels",
        f"matched correlation {span(own, '.2f')}; {span(shared, '.0%')} shared",
        f"turned {span(null, '.2f')}, z {span(zs, '+.0f')}; without covariances "
        f"{span(white, '+.0f')}, beyond 2 at {_blocks(left)}",
        Verdict.HOLDS if min(white) > 2 else Verdict.PARTLY,
    )


def _blocks(which: Sequence[int]) -> str:
    return f"blocks {' and '.join(map(str, which))} only" if which else "none of the blocks"


ENTRY = Entry(
    name="five_trainings",
    title="Five trainings of one network",
    needs="the package spliceai 1.3.1 (GPLv3; not installed, its weights are read) and h5py.",
    run=run,
)
