"""Everything that is summed over a batch, taken while its values are in the processor's cache."""

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

from basis_probe.statistics.moments import Moments, SampleKurtosis, float64_device

# Two buffers of this many float64 numbers stay in a core's second-level cache.
_CACHED_ELEMENTS = 2**16

# An accelerator wants few large kernels; this bounds a buffer of float64 numbers to 128 MB.
_ACCELERATOR_ELEMENTS = 2**24

_CENTRED = 9.0
"""Raw power sums are believed where mean^2 is at most this many variances.

The fourth central sum loses about (mean / std)^4 units of rounding, below 1e-13 of it here.
"""

_SAFE_ROW = 1e-140
"""A row whose sum of squares is below this would lose its fourth powers to underflow."""


@dataclasses.dataclass(frozen=True, eq=False)
class BatchSums:
    """What was summed over one batch, on its own device, so that nothing waits for it yet.

    Attributes:
        moments: of every axis.
        kappa: the kurtosis across axes of every row, 0 for rows of zeros, [rows]; None if it was
            not asked for.
        energy: the sum of squares of every row, [rows]; None likewise.
        share: the sum over rows of x_j^4 / (sum x^2)^2, [dim]; None likewise.
        bad: how many values are NaN or infinite.
    """

    moments: Moments
    kappa: Tensor | None
    energy: Tensor | None
    share: Tensor | None
    bad: Tensor

    @staticmethod
    def of(
        x: Float[Tensor, "samples dim"], *, across: bool = True, centred: bool = False
    ) -> "BatchSums":
        """The sums over the rows of a matrix, in float64 whatever its type.

        Args:
            x: activations, [samples, dim]. Not kept, not changed.
            across: whether axes are compared with each other in every row.
            centred: True to subtract each row's mean first for that.

        Example:
            >>> sums = BatchSums.of(torch.tensor([[1.0, 0.0], [1.0, -1.0], [0.0, 0.0]]))
            >>> sums.moments.count, sums.kurtosis().mean.item(), int(sums.bad)
            (3, 1.5, 0)
        """
        x = x.detach().to(float64_device(x))
        if x.device.type != "cpu":
            return without_waiting(x, across=across, centred=centred)
        if not len(x) or not x.shape[1]:
            return _carefully(x, across=across, centred=centred)
        # Rows are compared as they are; without that, sums about a row lose less to rounding.
        about = None if across and not centred else x[len(x) // 2].double()
        sums, rows = _powers(x, about)
        finite = bool(torch.isfinite(sums).all())
        if not finite or (x.dtype == torch.float64 and _extreme(rows)):
            return _carefully(x, across=across, centred=centred)
        if across and centred:
            rows = _across(x, centred=True, elements=_CACHED_ELEMENTS)
            if x.dtype == torch.float64 and _extreme(rows):
                return _carefully(x, across=across, centred=centred)
        none_bad = torch.zeros((), dtype=torch.float32)
        return BatchSums(_moments(x, sums, about), *(rows or (None, None, None)), none_bad)

    def kurtosis(self) -> SampleKurtosis | None:
        """The kurtosis across axes of the batch, on the CPU; None if it was not asked for."""
        if self.kappa is None or self.energy is None or self.share is None:
            return None
        kappa, energy, share = self.kappa.cpu(), self.energy.cpu(), self.share.cpu()
        dim = share.shape[0]
        known = energy != 0
        kappa = kappa[known]
        zeros = int((~known).sum())
        if not len(kappa):
            return dataclasses.replace(SampleKurtosis.empty(dim), zeros=zeros)
        mean = kappa.mean()
        return SampleKurtosis(
            count=len(kappa),
            zeros=zeros,
            mean=mean,
            m2=(kappa - mean).square().sum(),
            share=share * (dim**2 / len(kappa)),
        )


def without_waiting(x: Tensor, *, across: bool, centred: bool) -> BatchSums:
    """The sums of a matrix on an accelerator, for which the processor never waits.

    Nothing is decided by values, which would have to come off the device for that.
    """
    bad = x.numel() - torch.isfinite(x).sum()
    rows = _across(x, centred=centred, elements=_ACCELERATOR_ELEMENTS) if across else None
    return BatchSums(Moments.of(x), *(rows or (None, None, None)), bad)


Rows = tuple[Tensor, Tensor, Tensor]
"""The kurtosis across axes of every row, its sum of squares, and the sum of every axis' shares."""


def _powers(x: Tensor, about: Tensor | None) -> tuple[Tensor, Rows | None]:
    """Sums over rows of x, x^2, x^3 and x^4, [4, dim], about some row; or what belongs to rows."""
    across = about is None
    samples, dim = x.shape
    sums = torch.zeros(4, dim, dtype=torch.float64)
    first, second, third, fourth = sums
    share = torch.zeros(dim, dtype=torch.float64)
    energies: list[Tensor] = []
    kappas: list[Tensor] = []
    height = max(1, min(samples, _CACHED_ELEMENTS // dim))
    buffers = torch.empty(2, height, dim, dtype=torch.float64)
    # The pieces are so small that every further call, such as an index, would be felt.
    value, square = buffers
    for rows in x.split(height):
        if len(rows) < height:
            value, square = buffers[:, : len(rows)]
        value.copy_(rows)
        if about is not None:
            value.sub_(about)
        torch.mul(value, value, out=square)
        first.add_(value.sum(0))
        second.add_(square.sum(0))
        value.mul_(square)
        third.add_(value.sum(0))
        if across:
            energies.append(square.sum(1))
        square.mul_(square)
        fourth.add_(square.sum(0))
        if across:
            share.add_(_weight(energies[-1]) @ square)
            kappas.append(square.sum(1))
    if not across:
        return sums, None
    energy = torch.cat(energies)
    return sums, (torch.cat(kappas) * _weight(energy) * dim, energy, share)


def _across(x: Tensor, *, centred: bool, elements: int) -> Rows:
    dim = x.shape[1]
    share = torch.zeros(dim, dtype=torch.float64, device=x.device)
    energies: list[Tensor] = []
    kappas: list[Tensor] = []
    for rows in x.split(max(1, elements // max(1, dim))):
        value = rows.to(torch.float64)
        if centred:
            value = value - value.mean(1, keepdim=True)
        square = value * value
        energy = square.sum(1)
        # Fractions of a row's energy lie in [0, 1]: squaring them cannot overflow.
        fraction = square.div_(torch.where(energy == 0, 1.0, energy)[:, None])
        fraction.mul_(fraction)
        share += fraction.sum(0)
        energies.append(energy)
        kappas.append(fraction.sum(1) * dim)
    nothing = x.new_zeros(0, dtype=torch.float64)
    return torch.cat([nothing, *kappas]), torch.cat([nothing, *energies]), share


def _weight(energy: Tensor) -> Tensor:
    """1 / energy^2, 0 where the energy is 0."""
    inverse = torch.where(energy == 0, 0.0, 1 / energy)
    return inverse * inverse


def _extreme(rows: Rows | None) -> bool:
    """True if the powers of some row are lost in float64 itself."""
    if rows is None:
        return False
    energy = rows[1]
    return bool(((energy != 0) & (energy < _SAFE_ROW)).any())


def _moments(x: Tensor, sums: Tensor, about: Tensor | None) -> Moments:
    """Central sums from those about a row, and from the values where these are not exact enough."""
    count = len(x)
    s1, s2, s3, s4 = sums
    mean = s1 / count
    square = mean * mean
    m2 = s2 - mean * s1
    minimum, maximum = x.amin(0).double(), x.amax(0).double()
    found = Moments(
        count=count,
        mean=mean if about is None else mean + about,
        m2=m2.clamp_min(0.0),
        m3=s3 - 3 * mean * s2 + 2 * square * s1,
        m4=s4 - 4 * mean * s3 + 6 * square * s2 - 3 * square * mean * s1,
        minimum=minimum,
        maximum=maximum,
    )
    far = torch.nonzero(~(count * square <= _CENTRED * m2) | (s2 == 0)).flatten()
    # An axis that is always the same has nothing to lose, unless its squares were.
    constant = minimum == maximum
    far = far[~(constant & ((minimum == 0) | (about is not None)))[far]]
    if not len(far):
        return found
    some, about = x[:, far], found.mean[far]
    if x.dtype is torch.float64:
        # Powers of these may leave its range.
        exact = Moments.of(some)
    else:
        # About their means, which are known now, nothing is lost.
        about = torch.where(constant[far], minimum[far], about)
        exact = _about_means(some, _powers(some, about)[0], about)
    for name in ("mean", "m2", "m3", "m4"):
        getattr(found, name)[far] = getattr(exact, name)
    return found


def _about_means(x: Tensor, sums: Tensor, about: Tensor) -> Moments:
    """Central sums from those about what differs from the means by rounding alone."""
    count = len(x)
    s1, s2, s3, s4 = sums
    off = s1 / count
    return Moments(
        count=count,
        mean=about + off,
        m2=(s2 - off * s1).clamp_min(0.0),
        m3=s3 - 3 * off * s2,
        m4=s4 - 4 * off * s3 + 6 * off.square() * s2,
        minimum=x.amin(0).double(),
        maximum=x.amax(0).double(),
    )


def _carefully(x: Tensor, *, across: bool, centred: bool) -> BatchSums:
    """The same sums where values are NaN, infinite, or too large or small for their powers."""
    bad = x.numel() - torch.isfinite(x).sum()
    moments = Moments.of(x)
    if not across or not x.shape[1]:
        return BatchSums(moments, None, None, None, bad)
    return BatchSums(moments, *_across(x, centred=centred, elements=_CACHED_ELEMENTS), bad)
