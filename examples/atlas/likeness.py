"""Likeness of layers up to a group: every layer of one network with every layer of another."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import basis_probe as bp

from . import sources
from .entry import Notes, Settings, Verdict, span
from .image_networks import resnet, untrained_resnet

MEASURES = {
    "G-Procrustes": ("procrustes", "positive-monomial"),
    "Procrustes": ("procrustes", "orthogonal"),
    "G-CKA": ("cka", "positive-monomial"),
    "CKA": ("cka", "orthogonal"),
}
DEPTHS = (20, 32)
COLOURS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

Matrices = dict[str, Tensor]
"""Measure -> [layer of the first, layer of the second]."""


def run(notes: Notes, settings: Settings) -> None:
    """The matrices of two trained networks, beside those of untrained ones."""
    images = _images(settings.of(200, 40))
    trained, twins = _networks(images, settings)
    found = {"trained": _compared(settings, "trained", trained, images)}
    for seed, pair in enumerate(twins):
        found[f"untrained, {seed}"] = _compared(settings, f"untrained_{seed}", pair, images)
    untrained = [found[name] for name in found if name != "trained"]
    shape = found["trained"]["CKA"].shape
    notes.say(
        "*Likeness of layers* (its section 5): G-Procrustes and G-CKA compare activations up to "
        "the group of ReLU (permutations and positive scales) where Procrustes and CKA allow every "
        "rotation. G-CKA takes the largest product over channels where CKA takes their sum. "
        f"ResNet20 and ResNet32, which others trained on CIFAR-10, {len(images)} test images; all "
        f"{shape[0]} by {shape[1]} places behind a ReLU. *Depth missed*: how far the layer of "
        "ResNet32 that is most alike lies from the same depth (0 the first layer, 1 the last), "
        f"mean over layers of ResNet20; a layer drawn at random misses {_by_chance(shape):.2f}. "
        "*Likeness*: of the layer that is most alike, mean over layers; fitted on four fifths of "
        "the images and scored on the others for Procrustes. Beside it pairs of the same networks "
        f"that were never trained ({len(untrained)} pair{'s' * (len(untrained) > 1)})."
    )
    rows: list[list[str]] = []
    for name in MEASURES:
        missed, best = (
            [_missed(one[name]) for one in untrained],
            [_best(o[name]) for o in untrained],
        )
        notes.number(f"{name}/missed", _missed(found["trained"][name]))
        notes.number(f"{name}/missed untrained", min(missed))
        notes.number(f"{name}/best", _best(found["trained"][name]))
        notes.number(f"{name}/best untrained", sum(best) / len(best))
        rows.append(
            [
                name, f"{notes.numbers[f'{name}/missed']:.2f}", span(missed, ".2f"),
                f"{notes.numbers[f'{name}/best']:.2f}", span(best, ".2f"),
            ]
        )  # fmt: skip
    notes.table(["measure", "depth missed", "untrained", "likeness of the best", "untrained"], rows)
    if not settings.short:
        notes.figure(_figure(found), "layers", _CAPTION)
    _say_what_follows(notes, settings, trained, twins[0], images)


_CAPTION = (
    "Likeness of the layers of ResNet20 (down) with those of ResNet32 (across), from the input to "
    "the output; dots mark the most alike in every row. Above both trained, below both untrained."
)


def _images(count: int) -> Tensor:
    with np.load(sources.folder("cifar10_test") / "cifar10_test_4000.npz") as file:
        images = torch.as_tensor(file["x"]).movedim(-1, 1).float() / 255
    drawn = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:count]
    mean, size = (torch.tensor(colour)[:, None, None] for colour in COLOURS)
    return (images[drawn] - mean) / size


Pair = tuple[nn.Module, nn.Module]


def _networks(images: Tensor, settings: Settings) -> tuple[Pair, list[Pair]]:
    folder = sources.folder("resnet_cifar10")
    one, other = (resnet(folder, depth) for depth in DEPTHS)
    twins: list[Pair] = []
    for seed in range(settings.of(2, 1)):
        empty = [
            untrained_resnet(depth, images, seed=10 * seed + at) for at, depth in enumerate(DEPTHS)
        ]
        twins.append((empty[0], empty[1]))
    return (one, other), twins


def _compared(settings: Settings, name: str, pair: Pair, images: Tensor) -> Matrices:
    """All measures, from one pass for each group."""

    def compare() -> Matrices:
        made: Matrices = {}
        for group in ("positive-monomial", "orthogonal"):
            names = {n: measure for n, (measure, of) in MEASURES.items() if of == group}
            found = bp.compare_layers(
                *pair, images.split(len(images) // 4), measure=list(names.values()), group=group,
                progress=False,
            )  # fmt: skip
            for n, measure in names.items():
                made[n] = torch.tensor(found[measure].similarity)  # pyright: ignore
        return made

    return sources.kept(settings, f"likeness_{name}_{len(images)}", compare)


def _missed(matrix: Tensor) -> float:
    """How far in depth the most alike layer lies, mean over layers of the first."""
    own = torch.arange(len(matrix)) / (len(matrix) - 1)
    found = matrix.argmax(1) / (matrix.shape[1] - 1)
    return float((own - found).abs().mean())


def _by_chance(shape: Any) -> float:
    own, other = (torch.arange(size) / (size - 1) for size in shape)
    return float((own[:, None] - other).abs().mean())


def _best(matrix: Tensor) -> float:
    return float(matrix.amax(1).mean())


def _standardised(images: Tensor) -> Tensor:
    """Every image with mean 0 and variance 1, so that none is brighter or starker."""
    centred = images - images.mean((1, 2, 3), keepdim=True)
    return centred / centred.std((1, 2, 3), keepdim=True)


def _g_cka(settings: Settings, name: str, pair: Pair, images: Tensor) -> float:
    """The likeness of the best by G-CKA, of images without brightness and contrast."""

    def compare() -> Tensor:
        found: Any = bp.compare_layers(
            *pair, _standardised(images).split(len(images) // 4), measure="cka",
            group="positive-monomial", progress=False,
        )  # fmt: skip
        return torch.tensor(found.similarity)

    key = f"likeness_standardised_{name}_{len(images)}"
    return _best(sources.kept(settings, key, compare))


def _say_what_follows(
    notes: Notes, settings: Settings, trained: Pair, twin: Pair, images: Tensor
) -> None:
    number = notes.numbers
    missed = {name: number[f"{name}/missed"] for name in MEASURES}
    empty = {name: number[f"{name}/missed untrained"] for name in MEASURES}
    best, other = number["G-CKA/best"], number["G-CKA/best untrained"]
    bare, bare_other = (
        _g_cka(settings, name, pair, images)
        for name, pair in (("trained", trained), ("untrained_0", twin))
    )
    notes.number("standardised", bare)
    notes.number("standardised untrained", bare_other)
    notes.holds(
        "trained layers find the layer of the same depth, and untrained ones do not",
        all(missed[name] < 0.6 * empty[name] for name in MEASURES),
    )
    notes.holds("untrained networks have a higher G-CKA", other > best)
    notes.holds("less so without brightness and contrast", bare_other - bare < other - best)
    within, turned = (
        [missed[name] for name in names]
        for names in (("G-Procrustes", "G-CKA"), ("Procrustes", "CKA"))
    )
    ours = [empty[name] for name in ("G-Procrustes", "G-CKA")]
    notes.say(
        "Up to the group of ReLU the layer of the same depth is found as well as up to rotations: "
        f"missed by {span(within, '.2f')} and {span(turned, '.2f')}. That is learned: untrained "
        f"networks miss by {span([*empty.values()], '.2f')} at best. How *high* a likeness is does "
        "not tell it: by G-CKA the most alike layers of untrained networks have "
        f"{other:.2f} and those of trained ones {best:.2f}. What untrained ones share are the "
        "images: when each is brought to the same brightness and contrast it is "
        f"{bare_other:.2f} and {bare:.2f}. So a likeness is read along a row, and beside an "
        "untrained pair."
    )
    notes.row(
        "Likeness up to the group of ReLU finds the layer of the same depth",
        f"depth missed by {span(within, '.2f')}; up to rotations {span(turned, '.2f')}",
        f"untrained pairs miss by {span(ours, '.2f')}, a random layer by "
        f"{_by_chance((19, 31)):.2f}",
        Verdict.HOLDS,
    )
    notes.row(
        "A high G-CKA means that two layers learned alike",
        f"{best:.2f}, mean over layers",
        f"untrained {other:.2f}; of images of one brightness and contrast {bare:.2f} and "
        f"{bare_other:.2f}",
        Verdict.ARTEFACT,
    )


def _figure(found: dict[str, Matrices]) -> Figure:
    figure = Figure(figsize=(10, 4), layout="constrained")
    shown = {"trained": found["trained"], "untrained": found["untrained, 0"]}
    axes = figure.subplots(2, len(MEASURES), sharex=True, sharey=True)
    image = None
    for row, (kind, matrices) in zip(axes, shown.items(), strict=True):
        for place, name in zip(row, MEASURES, strict=True):
            values = matrices[name].numpy()
            image = place.imshow(values, vmin=0, vmax=1, cmap="Blues", aspect="auto")
            place.plot(values.argmax(1), range(len(values)), ".", color="C1", ms=4)
            if kind == "trained":
                place.set_title(name, fontsize=10)
            else:
                place.set_xlabel("ResNet32")
        row[0].set_ylabel(f"ResNet20, {kind}")
    figure.colorbar(image, ax=axes, shrink=0.8, label="likeness")
    return figure
