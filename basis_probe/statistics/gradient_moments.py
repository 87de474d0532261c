"""Second moments of gradients on the axes of a site, against turned axes.

An optimiser such as Adam keeps a second moment for every single weight, which cannot be turned: it
is known in one basis only. The sum of G'G over steps, weighted as the optimiser weights them, can:
its diagonal holds, axis by axis, what the optimiser's moments add up to over all weights of that
axis, and Q S Q' what they would have added up to in turned axes. Where training is blind to the
group, and weights began without axes, both have one law.

Source: D. P. Kingma and J. Ba, ICLR 2015, for the moments; N. Elhage et al., Privileged bases in
the transformer residual stream, 2023, for what they do to axes.
"""

import math

import torch
from jaxtyping import Float64
from torch import Tensor

from basis_probe.statistics.orders import scale_moments, turned_variances
from basis_probe.statistics.p_values import Tail, tail_p

_DRAWS, _WIDE_DRAWS, _WIDE = 1999, 999, 512


class Moment:
    """A sum of squares and products that fades, [dim, dim].

    Args:
        dim: the number of axes.
    """

    def __init__(self, dim: int) -> None:
        self.total = torch.zeros(dim, dim, dtype=torch.float64)
        self.steps = 0

    def add(self, products: Float64[Tensor, "dim dim"], beta: float) -> None:
        """Takes in a step, as Adam does: S becomes beta S + (1 - beta) times the products.

        Args:
            products: G'G of the step.
            beta: how much of what was is kept.
        """
        self.total.mul_(beta).add_(products, alpha=1 - beta)
        self.steps += 1


def unevenness(
    moment: Float64[Tensor, "dim dim"], *, line: bool, seed: int
) -> tuple[float, float, float, float]:
    """How uneven second moments are on the axes: n sum_j S_jj^2 / (tr S)^2, in [1, n].

    Its mean and variance under turns are exact, and the shape of its law is that of the variances
    of activations (`orders.scale`).

    Args:
        moment: S, symmetric and not negative.
        line: True to take out the all-ones direction, which every turn leaves fixed.
        seed: seeds the turns.

    Returns:
        The value on the axes, the mean and standard deviation over turned axes, and the p-value of
        a departure in either direction: axes may be more even, too. NaN where nothing can be told.

    Example:
        >>> own = torch.diag(torch.logspace(0, 2, 16, dtype=torch.float64))
        >>> value, mean, std, p = unevenness(own, line=False, seed=0)
        >>> round(value, 2), round(mean, 2), p < 1e-4
        (2.47, 1.16, True)
    """
    nothing = (math.nan, math.nan, math.nan, math.nan)
    dim = len(moment)
    if line:
        moment = moment - moment.mean(0, keepdim=True)
        moment = moment - moment.mean(1, keepdim=True)
    largest = float(moment.abs().max())
    if not 0 < largest < math.inf:
        return nothing
    moment = moment / largest
    spectrum = torch.linalg.eigvalsh(moment).clamp_min(0.0).flip(0)
    spectrum = spectrum[: dim - 1] if line else spectrum
    own = moment.diagonal()
    observed = float(dim * own.square().sum() / own.sum().square())
    mean, variance = scale_moments(spectrum, dim, line=line)
    std = math.sqrt(variance)
    if not std > 1e-9 * mean:
        return nothing
    draws = _DRAWS if dim <= _WIDE else _WIDE_DRAWS
    turned = turned_variances(spectrum, dim, draws, line=line, seed=seed)
    null = dim * turned.square().sum(1) / turned.sum(1).square()
    if float(null.std()) > 0:
        null = mean + (null - null.mean()) * (std / null.std())
    return observed, mean, std, tail_p(observed, null, tail=Tail.TWO_SIDED).value
