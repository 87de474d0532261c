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
    shape = found["trained"]["G-Procrustes"].shape
    notes.say(
        "*Likeness of layers* (its section 5): G-Procrustes and G-CKA compare activations up to "
        "the group of ReLU (permutations and positive scales) where Procrustes and CKA allow every "
        "rotation. G-CKA takes the largest product over channels where CKA takes their sum. "
        f"ResNet20 and ResNet32, which others trained on CIFAR-10, {len(images)} test images; all "
        f"{shape[0]} by {shape[1]} places behind a ReLU. *Depth missed*: how far the layer of "
        "ResNet32 that is most alike lies from the same depth (0 the first layer, 1 the last), "
        f"mean over layers of ResNet20; a layer drawn at random misses {by_chance(shape):.2f}, "
        f"one from the right stage of the three {by_chance(shape, in_stage=True):.2f}. *Right "
        "stage*: how many find a layer of their own stage. "
        "*Likeness*: of the layer that is most alike, mean over layers; fitted on all but "
        f"one of {settings.of(5, 2)} parts of the images and scored on it for "
        "Procrustes. Beside it pairs of the same networks "
        f"that were never trained ({len(untrained)} pair{'s' * (len(untrained) > 1)})."
    )
    rows: list[list[str]] = []
    for name in _measures(settings):
        own = found["trained"][name]
        depths = [depth_missed(one[name]) for one in untrained]
        stages = [in_right_stage(one[name]) for one in untrained]
        best = [_best(one[name]) for one in untrained]
        notes.number(f"{name}/missed", depth_missed(own))
        notes.number(f"{name}/missed untrained", min(depths))
        notes.number(f"{name}/right", in_right_stage(own))
        notes.number(f"{name}/right untrained", max(stages))
        notes.number(f"{name}/best", _best(own))
        notes.number(f"{name}/best untrained", sum(best) / len(best))
        notes.number(f"{name}/best of the first untrained", best[0])
        rows.append(
            [
                name, f"{in_right_stage(own)}", span(stages, "d"), f"{depth_missed(own):.2f}",
                span(depths, ".2f"), f"{_best(own):.2f}", span(best, ".2f"),
            ]
        )  # fmt: skip
    notes.number("layers", shape[0])
    notes.table(
        [
            "measure", f"right stage, of {shape[0]}", "untrained", "depth missed", "untrained",
            "likeness of the best", "untrained",
        ],
        rows,
    )  # fmt: skip
    if not settings.short:
        notes.figure(_figure(found), "layers", _CAPTION)
    _say_what_follows(notes, settings, trained, twins[0], images)


_CAPTION = (
    "Likeness of the layers of ResNet20 (down) with those of ResNet32 (across), from the input to "
    "the output; dots mark the most alike in every row. Above both trained, below both untrained."
)


def _measures(settings: Settings) -> list[str]:
    """Kernels take more images than the short form has."""
    return [*MEASURES][: settings.of(4, 2)]


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
    for seed in range(settings.of(4, 1)):
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
            names = {n: MEASURES[n][0] for n in _measures(settings) if MEASURES[n][1] == group}
            found = bp.compare_layers(
                *pair, images.split(len(images) // 4), measure=list(names.values()), group=group,
                progress=False, folds=settings.of(5, 2),
            )  # fmt: skip
            for n, measure in names.items():
                made[n] = torch.tensor(found[measure].similarity)  # pyright: ignore
        return made

    return sources.kept(settings, f"likeness_{name}_{len(images)}", compare)


def depth_missed(matrix: Tensor) -> float:
    """How far in depth the most alike layer lies, mean over layers of the first."""
    own = torch.arange(len(matrix)) / (len(matrix) - 1)
    found = matrix.argmax(1) / (matrix.shape[1] - 1)
    return float((own - found).abs().mean())


def _stages(count: int) -> Tensor:
    """The stage of every layer, of three of equal length; what comes first goes with the first."""
    return torch.arange(count).sub(1).clamp_min(0) // ((count - 1) // 3)


def in_right_stage(matrix: Tensor) -> int:
    """How many layers of the first find one of their own stage."""
    own, other = (_stages(size) for size in matrix.shape)
    return int((own == other[matrix.argmax(1)]).sum())


def by_chance(shape: Any, *, in_stage: bool = False) -> float:
    """How far a layer drawn at random lies, from all or from those of the right stage."""
    own, other = (torch.arange(size) / (size - 1) for size in shape)
    apart = (own[:, None] - other).abs()
    stages, others = (_stages(size) for size in shape)
    drawn = (stages[:, None] == others) | torch.tensor(not in_stage)
    return float(((apart * drawn).sum(1) / drawn.sum(1)).mean())


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
    missed, right, empty, most = (
        {name: number[f"{name}/{key}"] for name in _measures(settings)}
        for key in ("missed", "right", "missed untrained", "right untrained")
    )
    by_fit = ("G-Procrustes", "Procrustes")
    notes.holds(
        "by Procrustes trained layers find their stage more often than any untrained pair",
        all(right[name] > most[name] for name in by_fit),
    )
    notes.holds("and miss the depth by less", all(missed[name] < empty[name] for name in by_fit))
    layers, shape = number["layers"], (19, 31)
    stage = by_chance(shape, in_stage=True)
    notes.say(
        f"By G-Procrustes {right['G-Procrustes']:.0f} of {layers:.0f} layers find their stage, by "
        f"Procrustes {right['Procrustes']:.0f}; of untrained pairs at most "
        f"{most['G-Procrustes']:.0f} and {most['Procrustes']:.0f}. Within a stage little is found: "
        f"the depth is missed by {missed['G-Procrustes']:.2f} and {missed['Procrustes']:.2f}, by a "
        f"random layer of the right stage by {stage:.2f}."
    )
    notes.row(
        "G-Procrustes finds the layers that correspond (ReLU)",
        f"depth missed by {missed['G-Procrustes']:.2f}, a random layer {by_chance(shape):.2f}",
        f"right stage {right['G-Procrustes']:.0f} of {layers:.0f}, untrained at most "
        f"{most['G-Procrustes']:.0f}; within a stage {missed['G-Procrustes']:.2f} against "
        f"{stage:.2f}",
        Verdict.HOLDS,
    )
    if not settings.short:
        _say_of_g_cka(notes, settings, trained, twin, images)


def _say_of_g_cka(
    notes: Notes, settings: Settings, trained: Pair, twin: Pair, images: Tensor
) -> None:
    """Kernels of single channels: what untrained networks have as well."""
    number = notes.numbers
    best, other = number["G-CKA/best"], number["G-CKA/best untrained"]
    right, most = number["G-CKA/right"], number["G-CKA/right untrained"]
    bare, bare_other = (
        _g_cka(settings, name, pair, images)
        for name, pair in (("trained", trained), ("untrained_0", twin))
    )
    notes.number("standardised", bare)
    notes.number("standardised untrained", bare_other)
    notes.holds("untrained networks have a higher G-CKA", other > best)
    notes.holds("not without brightness and contrast", bare_other < bare)
    notes.holds("by G-CKA an untrained pair does as well", most >= right)
    notes.say(
        f"G-CKA finds the stage of {right:.0f} layers, but in an untrained pair of {most:.0f}: a "
        "stage has a resolution of its own, whatever was learned. On the images as they "
        f"are its height does not tell either: the most alike layers of untrained networks have "
        f"{other:.2f} on average, those of trained ones {best:.2f}. What untrained ones share are "
        "the images: when each is brought to the same brightness and contrast, height does tell: "
        f"it is {bare_other:.2f} untrained (the first pair, from "
        f"{number['G-CKA/best of the first untrained']:.2f}) and {bare:.2f} trained. So a "
        "likeness is "
        "read along a row, and beside several untrained pairs, since they differ "
        "much, and with the images."
    )
    notes.row(
        "A high G-CKA in the right place means that layers learned alike (read so)",
        f"{best:.2f}; right stage {right:.0f} of {number['layers']:.0f}",
        f"untrained {other:.2f}, right stage up to {most:.0f}; without brightness and contrast "
        f"{bare:.2f}, untrained {bare_other:.2f}",
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
