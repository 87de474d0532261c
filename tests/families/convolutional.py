"""Networks of convolutions as torchvision and timm shape them, written in a few lines each.

Channels of a stage that rectified sums hold together rescale by positive numbers and change places;
smooth nonlinearities leave their order, and linear bottlenecks leave every map that no depthwise
convolution reads.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Conv = nn.Conv2d


def conv(a: int, b: int, size: int = 3, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution and its norm."""
    where = {"padding": size // 2, "stride": stride, "groups": groups, "bias": False}
    return nn.Sequential(Conv(a, b, size, **where), nn.BatchNorm2d(b))


class Plus(nn.Module):
    """What a branch writes is added to what it reads."""

    def __init__(self, branch: nn.Module, behind: nn.Module | None = None) -> None:
        super().__init__()
        self.branch, self.behind = branch, behind

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.branch(x)
        return x if self.behind is None else self.behind(x)


class Beside(nn.Module):
    """What several branches write, side by side."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, width: int, bend: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.down, self.up = Conv(width, width // 2, 1), Conv(width // 2, width, 1)
        self.bend = bend()

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean((2, 3), keepdim=True)
        return x * self.up(self.bend(self.down(pooled))).sigmoid()


class Shuffled(nn.Module):
    """A unit of ShuffleNet v2: half of the channels go past it, then all are shuffled."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.branch = nn.Sequential(
            conv(half, half, 1), nn.ReLU(), conv(half, half, groups=half), conv(half, half, 1),
            nn.ReLU(),
        )  # fmt: skip
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        past, read = x.chunk(2, 1)
        return self.shuffle(torch.cat([past, self.branch(read)], 1))


class UNet(nn.Module):
    """Two levels down, two up, with what was there before beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2)
        self.first, self.second, self.third = _twice(3, 8), _twice(8, 12), _twice(12, 16)
        self.up2, self.up1 = (
            nn.ConvTranspose2d(16, 12, 2, stride=2),
            nn.ConvTranspose2d(12, 8, 2, stride=2),
        )
        self.back2, self.back1, self.head = _twice(24, 12), _twice(16, 8), Conv(8, 5, 1)

    def forward(self, input: Tensor) -> Tensor:
        one = self.first(input)
        two = self.second(self.pool(one))
        up = self.back2(torch.cat([two, self.up2(self.third(self.pool(two)))], 1))
        return self.head(self.back1(torch.cat([one, self.up1(up)], 1)))


class Mixer(nn.Module):
    """A block of MLP-Mixer: a map along positions, and one along channels."""

    def __init__(self, width: int, places: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens = nn.Sequential(nn.Linear(places, 10), nn.GELU(), nn.Linear(10, places))
        self.channels = nn.Sequential(nn.Linear(width, 24), nn.GELU(), nn.Linear(24, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


class Patches(nn.Module):
    """Patches [batch, position, channel] of an image."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = Conv(3, width, 4, stride=4)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class Mean(nn.Module):
    """The mean over positions [batch, position, channel]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def _twice(a: int, b: int) -> nn.Sequential:
    return nn.Sequential(conv(a, b), nn.ReLU(), conv(b, b), nn.ReLU())


def _end(width: int) -> tuple[nn.Module, ...]:
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5)


def _inverted(
    width: int, wide: int, bend: type[nn.Module], *gate: nn.Module, size: int = 3
) -> nn.Module:
    """A block whose branch widens, convolves each channel by itself, and narrows linearly."""
    return Plus(
        nn.Sequential(
            conv(width, wide, 1),
            bend(),
            conv(wide, wide, size, groups=wide),
            bend(),
            *gate,
            conv(wide, width, 1),
        )
    )


def _bottleneck(width: int, wide: int, *, groups: int = 1, gate: bool = False) -> nn.Module:
    last = (Gate(width),) if gate else ()
    return Plus(
        nn.Sequential(
            conv(width, wide, 1),
            nn.ReLU(),
            conv(wide, wide, groups=groups),
            nn.ReLU(),
            conv(wide, width, 1),
            *last,
        ),
        nn.ReLU(),
    )


def _dense(a: int, grow: int) -> nn.Module:
    inside = nn.Sequential(
        nn.BatchNorm2d(a), nn.ReLU(), Conv(a, 2 * grow, 1, bias=False), nn.BatchNorm2d(2 * grow),
        nn.ReLU(), Conv(2 * grow, grow, 3, padding=1, bias=False),
    )  # fmt: skip
    return Beside(nn.Identity(), inside)


def _fire(a: int, squeezed: int, b: int) -> nn.Sequential:
    return nn.Sequential(
        Conv(a, squeezed, 1), nn.ReLU(),
        Beside(nn.Sequential(Conv(squeezed, b, 1), nn.ReLU()),
               nn.Sequential(Conv(squeezed, b, 3, padding=1), nn.ReLU())),
    )  # fmt: skip


def _several(a: int, b: int) -> Beside:
    """A module of GoogLeNet: kernels of several sizes, and a pool, side by side."""
    return Beside(
        nn.Sequential(conv(a, b, 1), nn.ReLU()),
        nn.Sequential(conv(a, 6, 1), nn.ReLU(), conv(6, b), nn.ReLU()),
        nn.Sequential(conv(a, 4, 1), nn.ReLU(), conv(4, b, 5), nn.ReLU()),
        nn.Sequential(nn.MaxPool2d(3, 1, 1), conv(a, b, 1), nn.ReLU()),
    )


Made = Callable[[], nn.Module]

NETWORKS: dict[str, tuple[Made, dict[str, str]]] = {
    "AlexNet": (
        lambda: nn.Sequential(
            Conv(3, 8, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), Conv(8, 12, 3, padding=1),
            nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48, 20), nn.ReLU(),
            nn.Linear(20, 5),
        ),
        {"1": "S>0(8)", "4": "S>0(12)", "8": "S>0(20)"},
    ),
    "VGG": (
        lambda: nn.Sequential(_twice(3, 8), nn.MaxPool2d(2), _twice(8, 12), *_end(12)),
        {"0.1": "S>0(8)", "0.3": "S>0(8)", "2.3": "S>0(12)"},
    ),
    "ResNeXt": (
        lambda: nn.Sequential(
            conv(3, 8), nn.ReLU(), _bottleneck(8, 12, groups=3), _bottleneck(8, 12, groups=3),
            *_end(8),
        ),
        {"1": "S>0(8)", "3": "S>0(8)"},
    ),
    "Wide ResNet": (
        lambda: nn.Sequential(
            conv(3, 8), nn.ReLU(), _bottleneck(8, 24), _bottleneck(8, 24), *_end(8)
        ),
        {"2": "S>0(8)", "3": "S>0(8)", "2.branch.1": "S>0(24)"},
    ),
    "SE-ResNet": (
        lambda: nn.Sequential(
            conv(3, 8), nn.ReLU(), _bottleneck(8, 12, gate=True), _bottleneck(8, 12, gate=True),
            *_end(8),
        ),
        {"2": "S>0(8)", "3": "S>0(8)", "2.branch.1": "S>0(12)"},
    ),
    "DenseNet": (
        lambda: nn.Sequential(
            conv(3, 8), nn.ReLU(), _dense(8, 4), _dense(12, 4), nn.BatchNorm2d(16), nn.ReLU(),
            *_end(16),
        ),
        {"2.branches.1.4": "S>0(8)", "3.branches.1.4": "S>0(8)"},
    ),
    "SqueezeNet": (
        lambda: nn.Sequential(
            Conv(3, 8, 3, padding=1), nn.ReLU(), _fire(8, 4, 6), nn.MaxPool2d(2), _fire(12, 5, 6),
            Conv(12, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        ),
        {"1": "S>0(8)", "2.1": "S>0(4)", "4.1": "S>0(5)"},
    ),
    "GoogLeNet": (
        lambda: nn.Sequential(conv(3, 8), nn.ReLU(), _several(8, 4), _several(16, 4), *_end(16)),
        {"1": "S>0(8)", "2.branches.1.1": "S>0(6)", "3.branches.2.1": "S>0(4)"},
    ),
    "ShuffleNet v2": (
        lambda: nn.Sequential(conv(3, 8), nn.ReLU(), Shuffled(8), Shuffled(8), *_end(8)),
        {"2.branch.1": "S>0(4)", "3.branch.1": "S>0(4)"},
    ),
    "MNASNet": (
        lambda: nn.Sequential(
            conv(3, 8), nn.ReLU(), conv(8, 6, 1), _inverted(6, 12, nn.ReLU),
            _inverted(6, 12, nn.ReLU, size=5), conv(6, 10, 1), nn.ReLU(), *_end(10),
        ),
        {"2": "GL(6)", "3": "GL(6)", "4": "GL(6)", "3.branch.1": "S>0(12)"},
    ),
    "MobileNet v3": (
        lambda: nn.Sequential(
            conv(3, 8), nn.Hardswish(), conv(8, 6, 1),
            _inverted(6, 12, nn.Hardswish, Gate(12)), _inverted(6, 12, nn.ReLU), *_end(6),
        ),
        {"3": "GL(6)", "3.branch.1": "S(12)", "4.branch.1": "S>0(12)"},
    ),
    "EfficientNet": (
        lambda: nn.Sequential(
            conv(3, 8), nn.SiLU(), conv(8, 6, 1), _inverted(6, 12, nn.SiLU, Gate(12, nn.SiLU)),
            _inverted(6, 12, nn.SiLU, Gate(12, nn.SiLU), size=5), conv(6, 10, 1), nn.SiLU(),
            *_end(10),
        ),
        {"3": "GL(6)", "4": "GL(6)", "3.branch.1": "S(12)"},
    ),
    "U-Net": (UNet, {"first.1": "S>0(8)", "second.1": "S>0(12)", "back1.1": "S>0(8)"}),
    "MLP-Mixer": (
        lambda: nn.Sequential(
            Patches(12), Mixer(12, 16), Mixer(12, 16), nn.LayerNorm(12), Mean(), nn.Linear(12, 5)
        ),
        {"1.channels.1": "S(24)", "2.channels.1": "S(24)"},
    ),
    # Every convolution of a single channel, and the norm behind it, acts axis by axis.
    "ConvMixer": (
        lambda: nn.Sequential(
            Conv(3, 8, 4, stride=4), nn.GELU(), nn.BatchNorm2d(8),
            *(nn.Sequential(
                Plus(nn.Sequential(Conv(8, 8, 3, padding=1, groups=8), nn.GELU(),
                                   nn.BatchNorm2d(8))),
                Conv(8, 8, 1), nn.GELU(), nn.BatchNorm2d(8),
            ) for _ in range(2)),
            *_end(8),
        ),
        {"1": "S(8)", "3.0.branch.1": "S(8)", "3.2": "S(8)"},
    ),
}  # fmt: skip
"""Name -> how a network is made, and sites with the group that each of them has."""
