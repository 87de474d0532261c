"""Network dissection of SqueezeNet on MSRC v2 under the published rule and under this package's.

`python -m benchmarks.published ASSETS` prints the table of docs/peers.md. ASSETS is a folder with
squeezenet_imagenet/squeezenet_v1_1.npz, msrc_v2/msrc_v2.zip and msrc_v2/classes.txt.
"""

import argparse
import math
import os
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

import basis_probe as bp
from basis_probe.concepts import Effort, Sides, Split
from basis_probe.results.dissection import Dissection, Tally

SITES = ("fire5.act", "fire9.act")


def rules(
    network: nn.Module,
    images: Tensor,
    concepts: Mapping[str, Tensor],
    *,
    sites: tuple[str, ...] = SITES,
    frames: int = 19,
    resamples: int = 100,
) -> dict[str, Dissection]:
    """The same axes and nulls under both rules.

    Args:
        network: the network.
        images: what it reads.
        concepts: name -> masks [images, height, width].
        sites: where.
        frames: how many alternatives.
        resamples: how often images are drawn again for intervals.
    """
    shared = {
        "sites": sites, "sides": Sides.POSITIVE, "top": 0.005, "frames": frames, "progress": False,
    }  # fmt: skip
    batches = images.split(32)
    published = bp.dissect(
        network,
        batches,
        concepts,
        measures="published_iou",
        split=Split.NONE,
        categories=dict.fromkeys(concepts, "thing"),
        # Above 0.04 is enough there: no chance level.
        effort=Effort(shuffles=0, resamples=resamples),
        **shared,
    )
    held_out = bp.dissect(
        network, batches, concepts, measures="iou", effort=Effort(resamples=resamples), **shared
    )
    return {"published": published, "held out, above chance": held_out}


def table(found: Mapping[str, Dissection]) -> list[str]:
    """The lines of a Markdown table."""
    lines = [
        "| layer | rule | null | distinct concepts: axes | null | units: axes | null | "
        "mean best IoU: axes | null | p |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for site in next(iter(found.values())).sites:
        for rule, dissection in found.items():
            for one in dissection[site].comparisons:
                cells = [
                    *_sides(one.distinct, "{:.0f}"),
                    *_sides(one.units, "{:.0f}"),
                    *_sides(one.mean_best, "{:.3f}"),
                ]
                p_values = f"{one.distinct.p_value:.2f}, {one.mean_best.p_value:.2f}"
                lines.append(
                    f"| {site} | {rule} | {one.null.name} | {' | '.join(cells)} | {p_values} |"
                )
    return lines


def _sides(tally: Tally, form: str) -> list[str]:
    """The axes with their interval over images, and the null with that over its frames."""
    return [
        form.format(value)
        # No interval is made of units: a unit is one in every draw of the images.
        + ("" if math.isnan(low) else f" [{form.format(low)}, {form.format(high)}]")
        for value, low, high in (
            (tally.observed, tally.low, tally.high),
            (tally.null_mean, tally.null_low, tally.null_high),
        )
    ]


class Fire(nn.Module):
    """A fire module with one layer where the published one puts two side by side: the same values.

    Args:
        module: the module as published.
    """

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.squeeze, small, wide = module.squeeze1x1, module.expand1x1, module.expand3x3
        channels = small.out_channels + wide.out_channels
        self.expand = nn.Conv2d(small.in_channels, channels, 3, padding=1)
        # A filter of one pixel is one of three by three with zeros around.
        filters = [nn.functional.pad(small.weight, [1, 1, 1, 1]), wide.weight]
        with torch.no_grad():
            self.expand.weight.copy_(torch.cat(filters))
            self.expand.bias.copy_(torch.cat([small.bias, wide.bias]))
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """[images, channels, height, width]."""
        return self.act(self.expand(self.squeeze(x).relu()))


def loaded(images: int | None) -> tuple[nn.Module, Tensor, dict[str, Tensor]]:
    """SqueezeNet, photographs as it reads them, and masks by the name of the class.

    Args:
        images: how many, spread over all kinds of scenes; None for all of them.
    """
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests"))
    import assets  # pyright: ignore

    network: Any = assets.squeezenet()
    # Whose neurons could point elsewhere is one layer and its nonlinearity.
    network.fire5, network.fire9 = Fire(network.fire5), Fire(network.fire9)
    photographs, masks = assets.msrc(images)
    names = {number: name for name, number in assets.msrc_classes().items() if number}
    return network, photographs, bp.concepts.categories(masks, names)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.published", description=__doc__)
    parser.add_argument("assets", type=pathlib.Path)
    parser.add_argument("--images", type=int, help="so many photographs; all of them by default")
    asked = parser.parse_args()
    os.environ["BASIS_PROBE_ASSETS"] = str(asked.assets.resolve())
    print("\n".join(table(rules(*loaded(asked.images)))))


if __name__ == "__main__":
    main()
