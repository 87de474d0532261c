"""Spotlight resonance: how many samples lie near a direction that turns from axis to axis."""

import math

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from basis_probe.algebra.haar import haar
from basis_probe.arguments import flag, number, seed_of, whole
from basis_probe.arrays import matrix
from basis_probe.devices import on_own_device
from basis_probe.results.resonance import Resonance

_MOST_ANGLES = 100_000

_QUARTER = 4
"""A quarter of a turn is cut into a multiple of so many angles, so that halfway is among them."""


@on_own_device
def spotlight_resonance(
    x: Tensor | np.ndarray,
    *,
    cosine: float = 0.8,
    angles: int = 64,
    planes: int = 256,
    frames: int = 39,
    standardised: bool = False,
    seed: int = 0,
) -> Resonance:
    """The share of samples near a direction that turns in planes of axes, beside turned bases.

    It sees where samples point, whatever their length: many about the axes say that single axes are
    active, many halfway between them that pairs are. It does not see what rotations of the samples
    leave alone. Unequal variances draw samples to the axes that vary most and an offset draws all
    of them one way; both move the curve although no axis carries anything of its own, so compare
    with `standardised=True`, which takes both out. In many dimensions few samples lie near any
    plane, unless few axes are active at a time: where the curve is near zero it says nothing.

    Args:
        x: activations [samples, axes].
        cosine: how near a sample must be to count, above cos 45° = 0.7071 and below 1: a wider cone
            halfway between two axes would hold the samples of both.
        angles: into how many parts a full turn is cut, a multiple of 16.
        planes: at most so many planes of two axes, drawn at random.
        frames: how many turned bases.
        standardised: True to bring axes to mean zero and unit variance first; axes that never vary
            are left out.
        seed: draws planes and turns.

    Raises:
        TypeError: for what holds no floating-point numbers.
        ValueError: for fewer than two axes, samples without length, or numbers that make no sense.

    Source: G. Bird (2025), The Spotlight Resonance Method.

    Example:
        >>> import torch, basis_probe as bp
        >>> active = torch.randint(0, 8, (500,), generator=torch.Generator().manual_seed(0))
        >>> x = torch.nn.functional.one_hot(active, 8) + 0.1
        >>> found = bp.spotlight_resonance(x)
        >>> found.contrast > 0.02, found.p_value
        (True, 0.025)
    """
    rows = matrix("x", x)
    if rows.shape[1] < 2:
        raise ValueError(f"x has shape {tuple(rows.shape)}: give [samples, axes], two axes or more")
    cosine = number("cosine", cosine)
    angles, planes = whole("angles", angles), whole("planes", planes, least=1)
    frames, seed = whole("frames", frames, most=1_000_000), seed_of(seed)
    standardised = bool(flag("standardised", standardised))
    if not math.sqrt(0.5) < cosine < 1:
        raise ValueError(
            f"cosine={cosine}: give a number above 0.7071 and below 1, for a wider cone halfway "
            "between two axes holds the samples of both"
        )
    if not 16 <= angles <= _MOST_ANGLES or angles % (4 * _QUARTER):
        raise ValueError(
            f"angles={angles}: give a multiple of {4 * _QUARTER}, at most {_MOST_ANGLES:,}"
        )
    if frames < 19:
        raise ValueError(f"frames={frames}: give at least 19")
    if standardised:
        centred = rows - rows.mean(0)
        std = centred.std(0, correction=0)
        live = std > 1e-12 * rows.abs().amax(0)
        if int(live.sum()) < 2:
            raise ValueError(f"{int(live.sum())} axes vary: standardising needs two or more")
        rows = centred[:, live] / std[live]
    lengths = rows.norm(dim=1)
    rows = rows[lengths > 0] / lengths[lengths > 0, None]
    if not len(rows):
        raise ValueError("all samples are zero: there is no direction to look at")
    generator = torch.Generator().manual_seed(seed)
    dim = rows.shape[1]
    pairs = torch.combinations(torch.arange(dim), 2)
    pairs = pairs[torch.randperm(len(pairs), generator=generator)[:planes]]
    turns = 2 * torch.pi * torch.arange(angles, dtype=torch.float64) / angles
    curves = [_curve(rows, pairs, turns, cosine)]
    for _ in range(frames):
        turned = rows @ haar(dim, generator).T
        curves.append(_curve(turned, pairs, turns, cosine))
    found = torch.stack(curves)
    quarter = angles // 4
    contrasts = found[:, ::quarter].mean(1) - found[:, quarter // 2 :: quarter].mean(1)
    own, others = contrasts[0], contrasts[1:]
    # About the mean of all frames, so that the observed one is a frame like the others.
    far = (contrasts - contrasts.mean()).abs()
    edges = torch.tensor([0.025, 0.975], dtype=torch.float64)
    low, high = torch.quantile(found[1:], edges, dim=0)
    return Resonance(
        angles=turns.numpy(),
        curve=found[0].numpy(),
        low=low.numpy(),
        high=high.numpy(),
        contrast=float(own),
        null_mean=float(others.mean()),
        null_std=float(others.std()),
        p_value=float(1 + (far[1:] >= far[0]).sum()) / (frames + 1),
        cosine=cosine,
        planes=len(pairs),
        samples=len(rows),
    )


def _curve(
    unit: Float64[Tensor, "samples dim"],
    pairs: Int64[Tensor, "planes 2"],
    turns: Float64[Tensor, " angles"],
    cosine: float,
) -> Float64[Tensor, " angles"]:
    """The share of samples of unit length whose cosine with the direction is large, over planes."""
    ways = torch.stack([turns.cos(), turns.sin()])
    total = torch.zeros(len(turns), dtype=torch.float64)
    for pair in pairs:
        inside = unit[:, pair]
        # What lies further from the plane reaches the cosine at no angle.
        near = inside[inside.square().sum(1) >= cosine**2]
        total += (near @ ways >= cosine).sum(0)
    return total / (len(pairs) * len(unit))
