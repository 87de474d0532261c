"""Of which law weights look as if they were drawn: with zeros, even, or heavy-tailed."""

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

SPARSE = 0.5
"""From this share of zeros on, weights are called sparse."""

FLAT = 0.8
"""Weights whose kurtosis is below this part of that of turned ones are called flat: halfway between
those of a uniform law, as `torch.nn.Linear` draws them, and of a Gaussian one."""

SOME = 0.05
"""From this share of zeros on, weights were masked: training makes no weight exactly zero."""

HEAVY = 1.25
"""Weights whose kurtosis is above this many times that of turned ones are called heavy-tailed."""

_ALIKE = 1.05
"""Independent weights have no direction longer than this, in the length of what they cannot exceed:
at most 1.04 were seen in 20 draws each of 17 laws in shapes from 12 x 48 to 600 x 64."""

_APART = 0.8
"""Independent weights lie no further apart than this: the mean squared product of two neurons, or
of two inputs where these are fewer, over what it is on average."""

_MOST = 0.6
"""From this share on, what directions in common hold is more than what was drawn."""

_STILL = 0.85
"""Below this part of the kurtosis of turned ones, weights without their directions in common are
flat as they were drawn: of trained networks at least 0.94 was seen where these hold less."""

_ENOUGH = 12
"""Of fewer weights the scale says as much of their law as of itself."""

_FAR = 2.0
"""In units of the root mean square: about one Gaussian weight in twenty is further from zero."""

_ROUNDS = 10
"""Rows and columns in turn: by then neither changes."""

_CHANCE = 0.04
"""By so much at most may chance leave a mask of one half short of it."""


def is_sparse(weights: Sequence[Float[Tensor, "outputs inputs positions"]]) -> bool:
    """True if half of the weights are exactly zero, or as many as a mask of one half would leave.

    Neurons that read nothing do not count: they are not wired sparsely, but not at all. Nor is a
    layer sparse that only hands its inputs on, each to a neuron of its own: to exchange these would
    put the same neurons in another order.

    Example:
        >>> is_sparse([torch.eye(4).repeat(2, 1)[:, :, None]]), is_sparse([torch.ones(3, 3, 1)])
        (True, False)
    """
    if all(_hands_on(weight) for weight in weights):
        return False
    share, count = zeros(weights)
    return count > 0 and share + min(_CHANCE, 1 / math.sqrt(count)) >= SPARSE


def is_drawn(weights: Sequence[Float[Tensor, "outputs inputs positions"]]) -> bool:
    """True if weights look as if drawn one by one of a law that training does not make.

    Such laws are more even than the Gaussian one, as is the uniform one, or have some zeros. Turned
    neurons have weights of a Gaussian law, whatever theirs are. Where the data lie along the
    inputs' axes, untrained neurons of another law differ from those by that alone. Heavy tails do
    not count: training makes them, where neurons come to read few inputs (`is_heavy`).

    What training has made has directions in common: one that is longer than sqrt(outputs) +
    sqrt(inputs), which that of independent weights of variance one does not exceed by more than
    chance (Marchenko and Pastur 1967). Where these hold less than 0.6 of what the weights are, and
    the rest is flat still, training was brief and most is as it was drawn. Neurons that read one
    input each, no two the same, were not drawn one by one either: independent ones lie closer to
    each other.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> is_drawn([torch.rand(64, 32, 1, generator=generator) - 0.5])
        True
        >>> is_drawn([torch.randn(64, 32, 1, generator=generator)])
        False
        >>> is_drawn([torch.outer(torch.arange(64.0), 1 + torch.arange(32.0) % 3).cos()[..., None]])
        False
    """
    flat, heavy = _tails(weights)
    if (flat or zeros(weights)[0] >= SOME) and _one_by_one(weights):
        return True
    return not heavy and _most_one_by_one(weights)


def is_heavy(weights: Sequence[Float[Tensor, "outputs inputs positions"]]) -> bool:
    """True if weights look as if drawn one by one of a law of heavier tails than the Gaussian one.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> weight = torch.randn(64, 32, 1, generator=generator)
        >>> is_heavy([weight]), is_heavy([weight**3])
        (False, True)
    """
    _, heavy = _tails(weights)
    # One far weight is no direction in common.
    return heavy and _one_by_one(weights, within=_FAR)


def _tails(weights: Sequence[Float[Tensor, "outputs inputs positions"]]) -> tuple[bool, bool]:
    """Whether weights are spread more evenly than turned neurons', or with heavier tails."""
    # Some of many tell as much.
    each = _balanced(_some(weights, 64, 512))
    if not each.numel():
        return False, False
    ratio, error = _heaviness(each)
    return ratio < max(FLAT, 1 - 2 * error), ratio > max(HEAVY, 1 + 3 * error)


def _heaviness(each: Float[Tensor, "rows columns"]) -> tuple[float, float]:
    """The kurtosis of balanced weights over that of turned neurons, and its standard error."""
    gaussian = 3.0
    for size, balanced in zip(each.shape, _can_be_balanced(each), strict=True):
        # Of numbers whose squares have a known mean the fourth powers are smaller.
        gaussian *= size / (size + 2) if balanced else 1.0
    kurtosis = float(each.square().square().mean())
    return kurtosis / gaussian, math.sqrt(24 / each.numel()) / gaussian


def _one_by_one(
    weights: Sequence[Float[Tensor, "outputs inputs positions"]], within: float = math.inf
) -> bool:
    """Whether weights look as if each was drawn by itself, for all that their scales tell.

    Args:
        weights: the weights.
        within: what is further from zero, in units of its neuron and input, counts as so far.
    """
    some = _some(weights, 512, 1024)
    # What a neuron reads of all inputs alike it reads of others, too.
    kinds = (some, some - some.mean(1, keepdim=True))
    balanced = [_balanced(kind).clamp(-within, within) for kind in kinds]
    return any(_independent(each if within == math.inf else _balanced(each)) for each in balanced)


def _most_one_by_one(weights: Sequence[Float[Tensor, "outputs inputs positions"]]) -> bool:
    """Whether most of what weights are is flat, once their directions in common are left out."""
    some = _some(weights, 256, 512)
    each = _balanced(some - some.mean(1, keepdim=True))
    each = each if len(each) <= each.shape[1] else each.T
    if not each.numel():
        return False
    products = each @ each.T
    # Directions take three times as long as their lengths, and of most layers none is asked for.
    power = torch.linalg.eigvalsh(products)
    held = float(power[power >= _longest(each) ** 2].sum()) / float(power.sum())
    if not 0 < held < _MOST:
        return False
    power, directions = torch.linalg.eigh(products)
    common = directions[:, power >= _longest(each) ** 2]
    rest = _balanced(each - common @ (common.T @ each))
    return bool(rest.numel()) and _heaviness(rest)[0] < _STILL and not _kept_apart(rest)


def _independent(each: Float[Tensor, "rows columns"]) -> bool:
    """Whether balanced weights have neither a direction in common nor are kept apart."""
    each = each if len(each) <= each.shape[1] else each.T
    if not len(each):
        return False
    longest = float(torch.linalg.eigvalsh(each @ each.T)[-1])
    return longest < _longest(each) ** 2 and not _kept_apart(each)


def _longest(each: Float[Tensor, "rows columns"]) -> float:
    """How long a direction of independent weights may be."""
    return _ALIKE * (math.sqrt(len(each)) + math.sqrt(each.shape[1]))


def _kept_apart(each: Float[Tensor, "rows columns"]) -> bool:
    """Whether neurons, or inputs where these are fewer, are further apart than independent ones."""
    each = each if len(each) <= each.shape[1] else each.T
    few, many = each.shape
    pairs = few * (few - 1) / 2
    if not pairs:
        return False
    products = (each @ each.T).fill_diagonal_(0.0)
    together = float(products.square().sum()) / (2 * pairs * many)
    return together < min(_APART, 1 - 3 * math.sqrt(2 / pairs))


def _can_be_balanced(each: Float[Tensor, "rows columns"]) -> tuple[bool, bool]:
    """Whether the scales of a matrix's columns can be told, and those of its rows."""
    rows, columns = each.shape
    return rows >= _ENOUGH, columns >= _ENOUGH


def _balanced(each: Float[Tensor, "rows columns"]) -> Float[Tensor, "live read"]:
    """Weights in scales in which those of every input and neuron are of mean square one.

    A gain in front of the layer is no form, nor is the length of a neuron. Of a few weights no
    scale can be told.
    """
    each = each[each.square().sum(1) > 0]
    each = each[:, each.square().sum(0) > 0]
    if not each.numel():
        return each
    each = each / each.square().mean().sqrt()
    of_columns, of_rows = _can_be_balanced(each)
    # Means over rows and columns of what is divided by numbers of their own are products.
    power, (count, width) = each.square(), each.shape
    rows, columns = each.new_ones(count), each.new_ones(width)
    for _ in range(_ROUNDS):
        if of_rows:
            rows = power @ columns.reciprocal() / width
        if of_columns:
            columns = power.T @ rows.reciprocal() / count
    return each / rows.sqrt()[:, None] / columns.sqrt()


def _some(
    weights: Sequence[Float[Tensor, "outputs inputs positions"]], outputs: int, inputs: int
) -> Float[Tensor, "rows columns"]:
    """About so many of the weights, a row for every output and position."""
    some = [
        weight[:: _step(len(weight), outputs), :: _step(weight.shape[1], inputs)]
        for weight in weights
    ]
    each = torch.cat([rearrange(w, "out width position -> (out position) width") for w in some])
    return each.double().cpu()


def _step(size: int, enough: int) -> int:
    return max(1, size // enough)


def _hands_on(weight: Float[Tensor, "outputs inputs positions"]) -> bool:
    """True if no neuron reads more than one number, and no input is read by more than one."""
    if len(weight) and int(torch.count_nonzero(weight[0])) > 1:
        return False
    read = weight.flatten(1) != 0
    return bool((read.sum(1) <= 1).all()) and bool(((weight != 0).any(2).sum(0) <= 1).all())


def zeros(weights: Sequence[Float[Tensor, "outputs inputs positions"]]) -> tuple[float, int]:
    """The share of exact zeros among the weights of neurons that read something, and their number.

    Example:
        >>> zeros([torch.tensor([[1.0, 0.0], [0.0, 0.0]])[:, :, None]])
        (0.5, 2)
    """
    nothing, count = 0, 0
    for weight in weights:
        some = weight.numel() - int(torch.count_nonzero(weight))
        if some < weight[0].numel() if len(weight) else True:
            # Too few for a neuron that reads nothing. Nearly all layers are like this, and counting
            # along axes takes much longer.
            nothing, count = nothing + some, count + weight.numel()
            continue
        zero = weight == 0
        live = zero[~zero.flatten(1).all(1)]
        nothing, count = nothing + int(live.sum()), count + live.numel()
    return (nothing / count if count else 0.0), count
