"""Network dissection against rotations, with chance and with intervals: distinct concepts detected.

`python examples/network_dissection.py` trains a small network on images of shapes, whose masks are
known. `python examples/network_dissection.py FOLDER` dissects SqueezeNet v1.1 on the photographs of
MSRC v2, from a folder that holds squeezenet_imagenet/squeezenet_v1_1.npz, msrc_v2/msrc_v2.zip and
msrc_v2/classes.txt; that takes about an hour on two cores.
"""

# %% Images with a mask for every concept, and a network that has learned to see them.
import io
import pathlib
import sys
import zipfile

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import basis_probe as bp

# Under a test runner or in a notebook the arguments are those of something else.
OWN = pathlib.Path(sys.argv[0]).name == "network_dissection.py"
FOLDER = pathlib.Path(sys.argv[1]) if OWN and sys.argv[1:] else None
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


# %% The real thing: SqueezeNet v1.1 and MSRC v2.
class Fire(nn.Module):
    """A narrow 1x1 convolution read by a 1x1 and a 3x3 one, their channels side by side."""

    def __init__(self, inputs: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze1x1 = nn.Conv2d(inputs, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        narrow = F.relu(self.squeeze1x1(x))
        return torch.cat([F.relu(self.expand1x1(narrow)), F.relu(self.expand3x3(narrow))], 1)


class SqueezeNet(nn.Module):
    """The eight fire modules of SqueezeNet v1.1; what follows them is not needed here."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, stride=2)
        self.fire2, self.fire3 = Fire(64, 16, 64), Fire(128, 16, 64)
        self.fire4, self.fire5 = Fire(128, 32, 128), Fire(256, 32, 128)
        self.fire6, self.fire7 = Fire(256, 48, 192), Fire(384, 48, 192)
        self.fire8, self.fire9 = Fire(384, 64, 256), Fire(512, 64, 256)
        self.pool = nn.MaxPool2d(3, stride=2, ceil_mode=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(self.fire3(self.fire2(x)))
        x = self.pool(self.fire5(self.fire4(x)))
        return self.fire9(self.fire8(self.fire7(self.fire6(x))))


def squeezenet(folder: pathlib.Path) -> nn.Module:
    """The published weights."""
    network = SqueezeNet()
    with np.load(folder / "squeezenet_imagenet" / "squeezenet_v1_1.npz") as stored:
        weights = {
            name.replace("/", "."): torch.from_numpy(stored[name].astype(np.float32))
            for name in stored.files
        }
    network.load_state_dict({name: weights[name] for name in network.state_dict()})
    return network.eval()


def photographs(folder: pathlib.Path) -> tuple[Tensor, Tensor, dict[int, str]]:
    """Images as SqueezeNet reads them, the class of every pixel at 56 x 56, and their names."""
    from PIL import Image

    images: list[Tensor] = []
    masks: list[Tensor] = []
    with zipfile.ZipFile(folder / "msrc_v2" / "msrc_v2.zip") as archive:
        for name in sorted(name for name in archive.namelist() if name.endswith(".jpg")):
            mask_name = name.replace("images", "masks").replace(".jpg", ".png")
            photograph = Image.open(io.BytesIO(archive.read(name))).convert("RGB")
            mask = Image.open(io.BytesIO(archive.read(mask_name)))
            pixels = np.array(photograph.resize((227, 227), Image.Resampling.BILINEAR))
            colours = torch.from_numpy(pixels).flip(2).permute(2, 0, 1).float()
            images.append(colours - torch.tensor([104.0, 117.0, 123.0])[:, None, None])
            classes = np.array(mask.resize((56, 56), Image.Resampling.NEAREST))
            masks.append(torch.from_numpy(classes.astype(np.int64)))
    lines = (folder / "msrc_v2" / "classes.txt").read_text(encoding="utf-8").splitlines()
    names = {int(number): name for number, name in (line.split(maxsplit=1) for line in lines)}
    return torch.stack(images), torch.stack(masks), {k: v for k, v in names.items() if k}


if FOLDER is None:
    network, (images, masks) = small(), shapes(IMAGES, seed=10_000)
    names = dict(enumerate(["red", "green", "blue", "yellow", "magenta", "cyan"], start=1))
    before, after = "2", "3"
else:
    network, (images, masks, names) = squeezenet(FOLDER), photographs(FOLDER)
    before, after = "fire9.expand1x1", "fire9"

# %% As published: chosen and scored on all images, the raw activations turned.
concepts = bp.categories(masks, names)
turned = bp.Rotation(frames=FRAMES, geometry=bp.Geometry.EUCLIDEAN)
published = bp.dissect(
    network,
    images.split(32),
    concepts,
    sites=after,
    null=turned,
    sides=bp.Sides.POSITIVE,
    split=bp.Split.NONE,
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

# %% How far the activations must be turned: distinct concepts at powers of one rotation.
generator = torch.Generator().manual_seed(0)
with torch.no_grad():
    maps: list[Tensor] = []
    handle = dict(network.named_modules())[after].register_forward_hook(
        lambda module, given, made: maps.append(made.clone())
    )
    for batch in images.split(32):
        network(batch)
    handle.remove()
activations = torch.cat(maps)
count, channels, height, width = activations.shape
rows = activations.permute(0, 2, 3, 1).reshape(-1, channels)
cells = F.interpolate(masks[:, None].float(), size=(height, width), mode="nearest").flatten().long()
labels = bp.categories(cells, names)
turn = torch.linalg.qr(torch.randn(channels, channels, generator=generator).double()).Q
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
        sides=bp.Sides.POSITIVE,
        effort=bp.Effort(shuffles=0, resamples=20),
    ).comparison()
    tally = found.distinct
    print(f"turned by {power:.1f}: {tally.observed:.0f} [{tally.low:.0f}, {tally.high:.0f}]")
