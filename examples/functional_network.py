"""Probes a network that calls its nonlinearities as functions, before and after a little training.

The same layers are probed three times: untrained, trained on data whose features are sparse, and
trained but with the verdict asked of one layer only. Run it with `python
examples/functional_network.py`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import basis_probe as bp


class Network(nn.Module):
    """Two layers whose ReLUs are calls, not modules: there is no module to put a hook on."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(32, 64)
        self.second = nn.Linear(64, 64)
        self.last = nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.first(x))
        hidden = F.relu(self.second(hidden))
        return self.last(hidden)


def sparse_features(count: int, generator: torch.Generator) -> Tensor:
    """Inputs in which few of 32 features are on, turned so that no input axis is a feature."""
    features = torch.rand(count, 32, generator=generator)
    features = features * (torch.rand(count, 32, generator=generator) < 0.1)
    turn = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(5))).Q
    return features @ turn


def trained(steps: int) -> Network:
    """The network after some steps of reconstructing its input."""
    torch.manual_seed(0)
    network = Network()
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x = sparse_features(256, generator)
        loss = (network(x) - x).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return network


def main(steps: int = 2000) -> None:
    """Prints the verdicts."""
    data = sparse_features(8192, torch.Generator().manual_seed(2)).split(1024)
    for name, network in (("untrained", trained(0)), ("trained", trained(steps))):
        report = bp.probe(network, data, progress=False)
        print(name)
        for site in report:
            print(f"  {site.site:10s} {site.verdict.outcome.name:10s} {site.verdict.sentence}")


if __name__ == "__main__":
    main()
