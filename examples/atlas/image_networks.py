"""Networks for images that others trained, as modules, and photographs with masks to dissect them.

The weights and the photographs lie in a folder of the user's; nothing is fetched.
"""

from __future__ import annotations

import io
import pathlib
import zipfile

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Fire(nn.Module):
    """A narrow 1x1 convolution read by a 1x1 and a 3x3 one, their channels side by side.

    The two that read are written as one: a 1x1 kernel is a 3x3 kernel of which only the middle is
    not zero. So all channels are neurons of one layer, and can be compared with neurons that point
    elsewhere.
    """

    def __init__(self, inputs: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze1x1 = nn.Conv2d(inputs, squeezed, 1)
        self.expand = nn.Conv2d(squeezed, 2 * expanded, 3, padding=1)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.expand(F.relu(self.squeeze1x1(x))))


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
    for name in [name for name in weights if "expand1x1" in name]:
        small, wide = weights.pop(name), weights.pop(name.replace("1x1", "3x3"))
        if small.ndim == 4:
            small = F.pad(small, [1, 1, 1, 1])
        weights[name.replace("expand1x1", "expand")] = torch.cat([small, wide])
    network.load_state_dict({name: weights[name] for name in network.state_dict()})
    return network.eval()


def photographs(folder: pathlib.Path, every: int = 1) -> tuple[Tensor, Tensor, dict[int, str]]:
    """Images as SqueezeNet reads them, the class of every pixel at 56 x 56, and their names."""
    from PIL import Image

    images: list[Tensor] = []
    masks: list[Tensor] = []
    with zipfile.ZipFile(folder / "msrc_v2" / "msrc_v2.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
        for name in names[::every]:
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


class Bottleneck(nn.Module):
    """Widened, filtered channel by channel, narrowed by a linear map, added to what came in."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, widening: int) -> None:
        super().__init__()
        wide = inputs * widening
        self.kernel, self.stride, self.skips = kernel, stride, stride == 1 and inputs == outputs
        if widening > 1:
            self._expand_conv = nn.Conv2d(inputs, wide, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(wide, eps=1e-3)
        self._depthwise_conv = nn.Conv2d(wide, wide, kernel, stride, groups=wide, bias=False)
        self._bn1 = nn.BatchNorm2d(wide, eps=1e-3)
        self._project_conv = nn.Conv2d(wide, outputs, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(outputs, eps=1e-3)
        self.widened, self.filtered = nn.ReLU6(), nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        wide = self.widened(self._bn0(self._expand_conv(x))) if hasattr(self, "_bn0") else x
        wide = self._depthwise_conv(padded(wide, self.kernel, self.stride))
        narrow = self._bn2(self._project_conv(self.filtered(self._bn1(wide))))
        return x + narrow if self.skips else narrow


def padded(x: Tensor, kernel: int, stride: int) -> Tensor:
    """Zeros around the maps as TensorFlow puts them: more at the end than at the start."""
    short = [max(0, (-(-size // stride) - 1) * stride + kernel - size) for size in x.shape[:1:-1]]
    return F.pad(x, [edge for size in short for edge in (size // 2, size - size // 2)])


class EfficientNetLite(nn.Module):
    """The sixteen blocks of EfficientNet-Lite0; what follows them is not needed here."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = nn.Conv2d(3, 32, 3, stride=2, bias=False)
        self._bn0, self.stem = nn.BatchNorm2d(32, eps=1e-3), nn.ReLU6()
        # Repeats, kernel, stride, widening, outputs.
        stages = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80),
                  (3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320))  # fmt: skip
        self._blocks = nn.Sequential()
        inputs = 32
        for repeats, kernel, stride, widening, outputs in stages:
            for place in range(repeats):
                step = 1 if place else stride
                self._blocks.append(Bottleneck(inputs, outputs, kernel, step, widening))
                inputs = outputs

    def forward(self, x: Tensor) -> Tensor:
        return self._blocks(self.stem(self._bn0(self._conv_stem(padded(x, 3, 2)))))


def efficientnet(weights: pathlib.Path) -> nn.Module:
    """The published weights; images as `photographs` gives them."""

    class FromCaffe(nn.Module):
        """Blue, green and red less their means -> red, green and blue in (x - 127) / 128."""

        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner
            self.register_buffer("mean", torch.tensor([104.0, 117.0, 123.0])[:, None, None])

        def forward(self, x: Tensor) -> Tensor:
            x = F.interpolate(x, size=(224, 224), mode="bilinear", align_corners=False)
            return self.inner(((x + self.mean).flip(1) - 127) / 128)

    network = EfficientNetLite()
    stored = torch.load(weights, weights_only=True)
    network.load_state_dict({name: stored[name] for name in network.state_dict()})
    return FromCaffe(network).eval()


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions added to what came in, every other pixel and padded with zeros."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride, self.missing = stride, outputs - inputs
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        around = x[:, :, :: self.stride, :: self.stride]
        edge = self.missing // 2
        return F.relu(inner + F.pad(around, [0, 0, 0, 0, edge, self.missing - edge]))


class CifarResNet(nn.Module):
    """Three stages of 16, 32 and 64 channels, (depth - 2) / 6 blocks each."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        count, inputs = (depth - 2) // 6, 16
        for place, outputs in enumerate((16, 32, 64), start=1):
            stage = nn.Sequential()
            for _ in range(count):
                stride = 2 if inputs != outputs else 1
                stage.append(ResidualBlock(inputs, outputs, stride))
                inputs = outputs
            self.add_module(f"layer{place}", stage)
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        return self.linear(out.mean((2, 3)))


def resnet(folder: pathlib.Path, depth: int) -> nn.Module:
    """The published weights of ResNet20 or ResNet32 for CIFAR-10."""
    from safetensors.torch import load_file

    network = CifarResNet(depth)
    # Counts of batches are not stored.
    network.load_state_dict(load_file(folder / f"resnet{depth}.safetensors"), strict=False)
    return network.eval()


def untrained_resnet(depth: int, images: Tensor, *, seed: int) -> nn.Module:
    """The same shape, never trained, whose batch normalisation has seen the images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = CifarResNet(depth)
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)
            elif isinstance(module, nn.BatchNorm2d):
                # The average over all batches seen, not a moving one.
                module.momentum = None
    network.train()
    with torch.no_grad():
        network(images)
    return network.eval()
