"""Random draws that are the same in every run."""

import torch


def seeded(seed: int = 0) -> torch.Generator:
    """A generator of its own, so that no test depends on another one's draws."""
    return torch.Generator().manual_seed(seed)
