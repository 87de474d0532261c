"""Networks trained from different seeds, compared and stitched up to every group.

Two small convolutional networks are trained with ReLU and two with GELU, their layers compared and
stitched under larger and larger groups, and the orderings of Godfrey et al. 2022, sections 4 and 5,
checked; the outcome is printed whatever it is. Run it with `python examples/two_networks.py --cifar
FILE`, an npz file with images `x` [n, 32, 32, 3] and classes `y`, or without it on images that the
script draws itself. It takes some minutes on two cores.
"""

from __future__ import annotations

import argparse
import pathlib
import time

import numpy as np
import torch
from torch import Tensor, nn

import basis_probe as bp

Data = list[tuple[Tensor, Tensor]]

# The stitching layers of the paper, from none to all linear maps.
LAYERS: dict[str, dict[str, object]] = {
    "identity": {"group": "trivial"},
    "rank 1": {"group": "general-linear", "rank": 1},
    "rank 4": {"group": "general-linear", "rank": 4},
    "permutation": {"group": "permutation"},
    "positive monomial": {"group": "positive-monomial"},
    "positive monomial, Birkhoff": {"group": "positive-monomial", "method": "birkhoff"},
    "orthogonal": {"group": "orthogonal"},
    "lasso": {"group": "general-linear", "method": "lasso"},
    "linear": {"group": "general-linear"},
}

# What is said, and what loses less or is less alike than what.
ORDERS = (
    ("a linear map loses no more than a positive monomial one", "linear", "positive monomial"),
    (
        "a positive monomial map loses no more than a permutation",
        "positive monomial",
        "permutation",
    ),
    ("a positive monomial map loses no more than the identity", "positive monomial", "identity"),
    ("an orthogonal map loses no more than a permutation", "orthogonal", "permutation"),
    ("a larger rank loses no more", "rank 4", "rank 1"),
)
LIKENESS = (
    (
        "the two are more alike up to rotations than up to positive monomial maps",
        "Procrustes, positive monomial",
        "Procrustes, orthogonal",
    ),
    ("and so they are by kernels", "CKA, max", "CKA, linear"),
)


def drawn(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images of six textures, each a wave of its own direction and length under noise."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(0, 6, (count,), generator=generator)
    grid = torch.arange(32.0)
    angle = torch.pi * (classes % 3) / 3
    length = torch.where(classes < 3, 4.0, 7.0)
    shift = torch.rand(count, 3, generator=generator) * 2 * torch.pi
    along = angle.cos()[:, None, None] * grid[:, None] + angle.sin()[:, None, None] * grid
    phase = 2 * torch.pi * along / length[:, None, None]
    images = torch.sin(phase[:, None] + shift[:, :, None, None])
    return images + torch.randn(count, 3, 32, 32, generator=generator), classes


def cifar(path: pathlib.Path, count: int) -> tuple[Tensor, Tensor]:
    """CIFAR-10 images, standardised, and their classes."""
    with np.load(path) as file:
        images, classes = torch.as_tensor(file["x"]), torch.as_tensor(file["y"]).long()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:count]
    x = images[order].movedim(-1, 1).float() / 255
    return (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), keepdim=True), classes[order]


def network(bend: type[nn.Module], seed: int, classes: int) -> nn.Sequential:
    """Three convolutions with batch normalisation, and a linear map of the averaged channels."""
    torch.manual_seed(seed)
    blocks: list[nn.Module] = []
    for inputs, outputs in ((3, 16), (16, 24), (24, 32)):
        blocks += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.BatchNorm2d(outputs)]
        blocks += [bend()]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, classes))


def trained(bend: type[nn.Module], seed: int, data: Data, epochs: int) -> nn.Sequential:
    """The network after some epochs."""
    classes = int(max(int(y.max()) for _, y in data)) + 1
    model = network(bend, seed, classes)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    order = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for place in torch.randperm(len(data), generator=order).tolist():
            x, y = data[place]
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimiser.step()
    return model.eval()


def stitches(a: nn.Module, b: nn.Module, data: Data, test: Data, epochs: int):
    """The penalty of every stitching layer at every place."""
    rows = {}
    for name, options in LAYERS.items():
        for site in ("2", "5", "8"):
            found = bp.stitch(a, b, site, data, held_out=test, epochs=epochs, **options)
            rows.setdefault(name, []).append(found.penalty)
    return rows


def likeness(a: nn.Module, b: nn.Module, test: Data) -> dict[str, list[float]]:
    """The similarity of the two at every place, up to each group."""
    images = [x for x, _ in test]
    measures = {
        "Procrustes, positive monomial": {"group": "positive-monomial"},
        "Procrustes, orthogonal": {"group": "orthogonal"},
        "CKA, max": {"group": "positive-monomial", "measure": "cka", "kernel": "max"},
        "CKA, linear": {"group": "orthogonal", "measure": "cka"},
    }
    return {
        name: [bp.similarity(a, b, images, site=s, **options).similarity for s in ("2", "5", "8")]
        for name, options in measures.items()
    }


def show(title: str, rows: dict[str, list[float]]) -> None:
    """One line for each row, three places across."""
    print(f"\n{title:32s} layer 1  layer 2  layer 3")
    for name, values in rows.items():
        print(f"{name:32s}" + "".join(f"{value:8.3f} " for value in values))


def check(said: str, holds: list[bool]) -> None:
    """Whether an ordering holds, place by place."""
    verdict = "holds" if all(holds) else "does not hold" if not any(holds) else "holds in part"
    print(f"  {said}: {verdict} ({sum(holds)} of {len(holds)})")


def main(
    path: pathlib.Path | None = None,
    *,
    count: int = 3000,
    epochs: int = 10,
    stitch_epochs: int = 2,
    size: int = 100,
) -> None:
    """Trains, compares, stitches, and says which orderings hold."""
    start = time.perf_counter()
    x, y = drawn(count, 0) if path is None else cifar(path, count)
    cut = int(0.75 * len(x))
    data: Data = list(zip(x[:cut].split(size), y[:cut].split(size), strict=True))
    test: Data = list(zip(x[cut:].split(size), y[cut:].split(size), strict=True))
    data_few = data[: max(2, len(data) // 3)]
    for bend in (nn.ReLU, nn.GELU):
        a, b = (trained(bend, seed, data, epochs) for seed in (0, 1))
        with torch.no_grad():
            right = [
                float(torch.cat([m(x).argmax(1) == y for x, y in test]).double().mean())
                for m in (a, b)
            ]
        print(f"\n{bend.__name__}: accuracies {right[0]:.1%} and {right[1]:.1%}")
        lost = stitches(a, b, data_few, test, stitch_epochs)
        show("accuracy lost by stitching", lost)
        alike = likeness(a, b, test)
        show("similarity of the two networks", alike)
        print()
        slack = 0.005

        def ordered(
            less: str, more: str, of: dict[str, list[float]] = lost, by: float = slack
        ) -> list[bool]:
            return [p <= q + by for p, q in zip(of[less], of[more], strict=True)]

        for said, less, more in ORDERS:
            check(said, ordered(less, more))
        beyond = ordered("positive monomial", "rank 1", by=-slack)
        check("a positive monomial map loses less than a linear one of rank 1", beyond)
        for said, less, more in LIKENESS:
            check(said, ordered(less, more, alike))
    print(f"\nIt took {time.perf_counter() - start:.0f} seconds.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cifar", type=pathlib.Path)
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--epochs", type=int, default=10)
    arguments = parser.parse_args()
    main(arguments.cifar, count=arguments.count, epochs=arguments.epochs)
