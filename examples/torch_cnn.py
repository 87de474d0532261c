"""A plain convolutional network: its channels are axes, pixels are samples. About a minute."""

# %% Images with oriented bars; the class is the orientation.
import math

import torch
from torch import Tensor, nn

import basis_probe as bp

STEPS = 150
IMAGES = 256


def bars(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """[count, 1, 16, 16] images of one bar each, and which of four orientations it has."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(0, 4, (count,), generator=generator)
    angle = classes * math.pi / 4 + 0.1 * torch.randn(count, generator=generator)
    offset = 3 * torch.randn(count, generator=generator)
    grid = torch.arange(16.0) - 7.5
    across = (
        grid[None, :, None] * angle.cos()[:, None, None]
        + grid[None, None, :] * angle.sin()[:, None, None]
        - offset[:, None, None]
    )
    noise = 0.2 * torch.randn(count, 16, 16, generator=generator)
    return (torch.exp(-(across**2)) + noise)[:, None], classes


# %% Two convolutions with BatchNorm, ReLU, average pooling.
torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(1, 12, 5, padding=2),
    nn.BatchNorm2d(12),
    nn.ReLU(),
    nn.Conv2d(12, 16, 3, stride=2, padding=1),
    nn.BatchNorm2d(16),
    nn.ReLU(),
    nn.AdaptiveAvgPool2d(1),
    nn.Flatten(),
    nn.Linear(16, 4),
)
optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
for step in range(STEPS):
    images, classes = bars(64, seed=step)
    optimiser.zero_grad()
    loss = nn.functional.cross_entropy(model(images), classes)
    loss.backward()
    optimiser.step()
print(f"loss {loss.item():.3f} after {STEPS} steps")

# %% The probe puts the model into evaluation mode and back.
images, _ = bars(IMAGES, seed=10_000)
report = bp.probe(model, images.split(64), sites=["2", "5"], max_samples=8192, progress=False)
print(report)
for site in report:
    print(f"{site.site}: {site.symmetry.group}, {site.symmetry.because}")

# %% The same layers with the weights they began with: nothing stands out.
torch.manual_seed(0)
for module in model.modules():
    if hasattr(module, "reset_parameters"):
        module.reset_parameters()
model.train()
with torch.no_grad():
    for _ in range(20):
        model(images)  # statistics of the batches
untrained = bp.probe(model, images.split(64), sites=["2", "5"], max_samples=8192, progress=False)
print(untrained)
