"""A matrix of activations, from wherever it comes. Half a minute."""

# %% Sparse features on the axes, and the same turned away.
import torch

import basis_probe as bp

SAMPLES = 4000

generator = torch.Generator().manual_seed(0)
signs = torch.randint(0, 2, (SAMPLES, 24), generator=generator) * 2.0 - 1.0
sparse = signs * torch.empty(SAMPLES, 24).exponential_(generator=generator)
turn = bp.groups.Orthogonal(24).sample(generator).float()

# %% Say which changes of basis the weights around could absorb; None if you do not know.
for name, x in (("on the axes", sparse), ("turned away", sparse @ turn)):
    for group in ("orthogonal", "permutation", None):
        site = bp.probe_activations(x, group=group)
        print(f"{name}, group {group}: {site.verdict.outcome.name}")

# %% Behind a nonlinearity, with the layer in front of it: the exact null.
inputs = torch.randn(SAMPLES, 16, generator=generator)
weight = torch.randn(24, 16, generator=generator) / 4
bias = torch.zeros(24)
hidden = torch.relu(inputs @ weight.T + bias)
site = bp.probe_activations(
    hidden, group="positive-monomial", nonlinearity="relu", inputs=inputs, weight=weight, bias=bias
)
print(f"a random layer: {site.verdict.outcome.name}. {site.verdict.sentence}")
print(f"kurtosis, effect {site.scores['kurtosis'].effect:+.1f}")
print(f"what a raw rotation would say: {site.beside['kurtosis'].effect:+.1f}")
