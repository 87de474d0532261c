"""Small networks, each a forward function with the parts that it uses."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Written(nn.Module):
    """A forward function with the modules and parameters that it uses.

    Args:
        forward: is given this module and its input.
        parts: attributes by which it reaches them.
    """

    def __init__(self, forward: Callable[..., Tensor], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.run = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def moved(model: nn.Module) -> nn.Module:
    """The model in evaluation and float64, its parameters and running statistics moved away."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        for name, buffer in model.named_buffers():
            if "running" in name:
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return model.double().eval()
