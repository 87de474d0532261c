"""What a direction does: the change of the loss without it, and the logits that it writes.

Whether effects are concentrated on few directions depends on the basis: axes that carry the
computation have a few large effects and many small ones, a rotation spreads them.
"""

import dataclasses
import enum
import math
import warnings
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from basis_probe.algebra.haar import haar
from basis_probe.arguments import (
    array_of,
    flag,
    function,
    instance,
    member,
    seed_of,
    several,
    whole,
)
from basis_probe.arrays import matrix
from basis_probe.brief import brief, described
from basis_probe.concepts.comparing import tally
from basis_probe.devices import on_own_device
from basis_probe.errors import DataError, SiteError, clean
from basis_probe.interrupts import guarded, hold, stoppable
from basis_probe.model.batches import Batch
from basis_probe.model.capture import catching
from basis_probe.model.facts import facts_of
from basis_probe.model.losses import Loss, next_token
from basis_probe.model.network import device_of, prepared, recognise
from basis_probe.model.places import Place, Site
from basis_probe.model.sites import asked
from basis_probe.model.trace import tensors_in
from basis_probe.results.codec import Exact
from basis_probe.results.dissection import Tally
from basis_probe.run.read import batches_of


class Held(enum.Enum):
    """What a direction's value is replaced by; the value says it in words."""

    MEAN = "its mean over the data"
    ZERO = "zero, which may lie far from where the data are"
    NOISE = "a Gaussian of its own mean and variance, drawn anew at every sample"
    RESAMPLED = "its value at another sample of the same batch, drawn at random"


@brief
@dataclasses.dataclass(frozen=True, eq=False)
class Effects(Exact):
    """The change of the loss when one direction at a time is replaced, by its mean for one.

    Attributes:
        site: its name.
        loss: of the model as it is.
        directions: which axes were ablated.
        axes: the change for each of them, [directions].
        rotated: the change for as many directions of each rotation, [rotations, directions].
        gini: of the absolute changes (0: all alike, 1: one has all), axes beside rotations.
        top_share: of the largest 1 % of directions (one at least) in the sum of absolute changes.
        mean: of the changes.
        how: what directions were replaced by: "mean", "zero", "noise" or "resampled".
    """

    site: str
    loss: float
    directions: tuple[int, ...]
    axes: np.ndarray
    rotated: np.ndarray
    gini: Tally
    top_share: Tally
    mean: Tally
    how: str = "mean"

    def __str__(self) -> str:
        return clean(
            f"{self.site} ({self.how}): loss {self.loss:.4f}; Gini of effects "
            f"{self.gini.observed:.3f} on axes, "
            f"{self.gini.null_mean:.3f} on rotated directions; top 1 % carry "
            f"{self.top_share.observed:.3f} against {self.top_share.null_mean:.3f}; mean change "
            f"{self.mean.observed:+.5f} against {self.mean.null_mean:+.5f}"
        )


@on_own_device
def ablate(
    model: nn.Module,
    data: Iterable[Any],
    *,
    site: str,
    axes: Sequence[int] | None = None,
    rotations: int = 3,
    loss: Loss | None = None,
    how: str | Held = Held.MEAN,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> Effects:
    """How concentrated effects on the loss are: axes replaced one by one, and rotated directions.

    Every direction costs a pass over the data, so give few batches. Rotations are Haar, and their
    directions are ablated in the same number and by the same code. Ctrl-C after the first axis
    gives the effects of the axes that are done, and of as many rotated directions, with a warning
    that says so.

    Args:
        model: as for `probe`.
        data: batches, all of which are kept.
        site: a name; what a module returns.
        axes: which; None for all.
        rotations: how many rotations to compare with.
        loss: (output, the batch as the data gave it) -> loss; None for the next token's
            cross-entropy.
        how: what a direction is replaced by: "mean", "zero", "noise" (a Gaussian of its own mean
            and variance) or "resampled" (its value at another sample). Where the loss is quadratic,
            noise of either kind changes it by twice as much as the mean does.
        seed: seeds the rotations, and the noise, which is the same for every direction.
        device: as for `probe`.
        progress: whether to show progress bars.

    Raises:
        SiteError: if the name stands for no site, or one whose value cannot be replaced.
        DataError: if there is no batch, or no loss can be computed.
        ValueError: for axes that the site does not have, no rotation, or another `how`.
    """
    from tqdm.auto import tqdm

    site = instance("site", site, str, "the name of one site, such as 'blocks.0.mlp'")
    rotations = whole("rotations", rotations, least=1)
    seed, progress = seed_of(seed), bool(flag("progress", progress))
    held = member("how", how, Held)
    if axes is not None:
        axes = [whole("axes", axis) for axis in several("axes", axes, "numbers of axes")]
    if loss is not None:
        function("loss", loss, "a function of (output, batch), or None")
    subject = recognise(model)
    measure = next_token if loss is None else _of_raw(loss)
    target = None if device is None else device_of(device)
    with guarded(), prepared(subject.model, target), torch.no_grad():
        reading = batches_of(data, subject)
        first = next(reading, None)
        if first is None:
            raise DataError("the data hold no batch: give at least one")
        facts = facts_of(subject, first)
        chosen = asked(site, facts.sites, silent=subject.silent())
        if len(chosen) > 1:
            raise SiteError(f"{site!r} stands for {len(chosen)} sites: ablate one at a time")
        place = next(iter(chosen.values()))
        if place.address.place is not Place.OUTPUT or place.address.call:
            raise SiteError(
                f"{place.name} is not what a module returns on its first call, so it cannot be "
                "replaced: give the name of a module or a hook point"
            )
        layout = facts.layout(place)
        feature = (-1,) if layout is None else layout.axes
        dim = math.prod(facts.shape(place))
        wanted = list(range(dim)) if axes is None else list(axes)
        if not wanted or any(axis >= dim for axis in wanted):
            raise ValueError(
                f"axes={described(wanted)}: {place.name} has axes 0 to {dim - 1}; name at least one"
            )
        if loss is None:
            # Whether there is a loss is known before the data are read.
            _mean_loss(subject, [first], measure, None)
        batches = [first, *reading]
        before = _mean_loss(subject, batches, measure, None)
        means, covariance = _moments(subject, batches, place, feature, held)
        generator = torch.Generator().manual_seed(seed)
        # Every axis with its rotated directions at once, so that both are equally many all along.
        turns = [torch.eye(dim, dtype=torch.float64)[:, wanted]]
        turns += [haar(dim, generator)[:, wanted] for _ in range(rotations)]

        def change(v: Tensor) -> float:
            edit = _Ablation(
                subject.model,
                place,
                feature,
                v,
                means=torch.zeros_like(means) if held is Held.ZERO else means,
                held=held,
                std=float((v @ covariance @ v).clamp(min=0).sqrt()),
                generator=torch.Generator().manual_seed(seed + 1),
            )
            return _mean_loss(subject, batches, measure, edit) - before

        columns: list[list[float]] = []
        with tqdm(
            total=len(wanted), desc="ablating", unit="axis", disable=not progress, leave=False
        ) as bar:
            try:
                for at in range(len(wanted)):
                    with stoppable():
                        column = [change(turn[:, at]) for turn in turns]
                    columns.append(column)
                    hold()
                    bar.update()
            except KeyboardInterrupt:
                if not columns:
                    raise
                said = (
                    f"It was interrupted after {len(columns)} of {len(wanted)} axes, which the "
                    "effects are of."
                )
                warnings.warn(said, stacklevel=2)
                wanted = wanted[: len(columns)]
    found = torch.tensor(columns, dtype=torch.float64).T
    return Effects(
        site=place.name,
        loss=before,
        directions=tuple(wanted),
        axes=found[0].numpy(),
        rotated=found[1:].numpy(),
        gini=tally(torch.stack([gini(row.abs()) for row in found]), None),
        top_share=tally(torch.stack([top_share(row.abs()) for row in found]), None),
        mean=tally(found.mean(1), None),
        how=held.name.lower(),
    )


def gini(values: Float64[Tensor, " values"]) -> Float64[Tensor, ""]:
    """The Gini coefficient of numbers that are not negative: 0 if alike, near 1 if one has all.

    It is 0 where all are zero.
    """
    ordered, count = values.sort().values, len(values)
    total = ordered.sum()
    if not float(total) > 0:
        return torch.zeros((), dtype=torch.float64)
    weights = 2 * torch.arange(1, count + 1, dtype=torch.float64) - count - 1
    return (weights * ordered).sum() / (count * total)


def top_share(values: Float64[Tensor, " values"], share: float = 0.01) -> Float64[Tensor, ""]:
    """What the largest `share` of the values, one at least, have of the sum of all."""
    count = max(1, round(share * len(values)))
    total = values.sum()
    if not float(total) > 0:
        return torch.zeros((), dtype=torch.float64)
    return values.sort(descending=True).values[:count].sum() / total


def _of_raw(loss: Loss) -> Callable[[Any, Batch], Tensor]:
    """The user's loss, given the user's batch."""
    return lambda output, batch: loss(output, batch.raw)


def _mean_loss(
    subject: Any,
    batches: Sequence[Batch],
    measure: Callable[[Any, Batch], Tensor],
    edit: "_Ablation | None",
) -> float:
    total, number = 0.0, 0
    for batch in batches:
        if edit is None:
            value = measure(subject.call(batch), batch)
        else:
            with edit.there(batch.mask):
                value = measure(subject.call(batch), batch)
        total += float(value) * batch.size
        number += batch.size
    return total / number


def _moments(
    subject: Any, batches: Sequence[Batch], site: Site, feature: tuple[int, ...], held: Held
) -> tuple[Tensor, Tensor]:
    """The mean of the site's samples, and their covariance where noise needs it (0 otherwise)."""
    sums: list[Tensor] = []
    squares: list[Tensor] = []
    count = 0

    def catch(tensor: Tensor) -> None:
        rows = _last(tensor, feature).double()
        if keep is not None and rows.shape[:2] == keep.shape:
            rows = rows[keep]
        rows = rows.reshape(-1, rows.shape[-1])
        sums.append(rows.sum(0))
        if held is Held.NOISE:
            # About the first batch's mean, which loses no digits where means are large.
            around = rows - sums[0] / first_count if squares else rows - rows.mean(0)
            squares.append(around.T @ around)
        nonlocal count
        count += len(rows)

    first_count = 1
    for batch in batches:
        keep = batch.mask
        with catching(subject.model, {site.address: catch}):
            subject.call(batch)
        first_count = count if len(sums) == 1 else first_count
    mean = torch.stack(sums).sum(0) / count
    if not squares:
        return mean, torch.zeros(len(mean), len(mean), dtype=torch.float64).to(mean)
    shift = mean - sums[0] / first_count
    return mean, torch.stack(squares).sum(0) / count - shift[:, None] * shift


def _last(tensor: Tensor, feature: tuple[int, ...]) -> Tensor:
    """The feature axes last, in one."""
    last = tuple(range(tensor.ndim - len(feature), tensor.ndim))
    return tensor.movedim(feature, last).flatten(-len(feature))


@dataclasses.dataclass(frozen=True, eq=False)
class _Ablation:
    """One direction of a site replaced by something else while the context lasts."""

    model: nn.Module
    site: Site
    feature: tuple[int, ...]
    direction: Tensor
    means: Tensor
    held: Held
    std: float
    generator: torch.Generator

    @contextmanager
    def there(self, mask: Tensor | None) -> Generator[None]:
        """Within the context the site's module returns the changed tensor.

        Args:
            mask: of the batch, where a token counts.
        """
        module = dict(self.model.named_modules())[self.site.address.path]

        def replace(_: nn.Module, args: Any, output: Any) -> Any:
            tensors = list(tensors_in(output))
            before = tensors[self.site.address.index]
            after = self.changed(before, mask)
            if isinstance(output, Tensor):
                return after
            if isinstance(output, tuple):
                return tuple(after if entry is before else entry for entry in output)
            raise SiteError(
                f"{self.site.name} returns a {type(output).__name__}, which cannot be replaced: "
                "give the name of a module that returns a tensor"
            )

        handle = module.register_forward_hook(replace)
        try:
            yield
        finally:
            handle.remove()

    def changed(self, tensor: Tensor, mask: Tensor | None) -> Tensor:
        """X - v (v'x - what takes its place)."""
        last = tuple(range(tensor.ndim - len(self.feature), tensor.ndim))
        moved = tensor.movedim(self.feature, last)
        rows = moved.flatten(-len(self.feature))
        v, mean = self.direction.to(rows), self.means.to(rows)
        away = (rows - mean) @ v
        rows = rows - (away - self._instead(away, mask))[..., None] * v
        return rows.reshape(moved.shape).movedim(last, self.feature)

    def _instead(self, away: Tensor, mask: Tensor | None) -> Tensor:
        """What every sample is put to, from the mean."""
        if self.held is Held.NOISE:
            drawn = torch.randn(away.shape, generator=self.generator, dtype=torch.float64)
            return (self.std * drawn).to(away)
        if self.held is Held.RESAMPLED:
            some = away.flatten()
            if mask is not None and mask.shape == away.shape[:2]:
                some = away[mask.to(away.device)].flatten()
            places = torch.randint(0, len(some), away.shape, generator=self.generator)
            return some[places.to(away.device)]
        return torch.zeros_like(away)


@brief
@dataclasses.dataclass(frozen=True, eq=False)
class LogitEffects(Exact):
    """The logits that each direction writes by itself, from weights alone.

    Attributes:
        kurtosis: over the vocabulary, of every axis, [dim]; 3 for a Gaussian. Large where a
            direction raises a few tokens only.
        mean_kurtosis: the mean over axes, beside that of rotations.
        raised: for every axis the tokens that it raises most, [dim, 5].
    """

    kurtosis: np.ndarray
    mean_kurtosis: Tally
    raised: np.ndarray


@on_own_device
def logit_effects(
    write: Float[Tensor, "dim stream"],
    unembed: Float[Tensor, "read vocabulary"],
    *,
    gain: Float[Tensor, " stream"] | None = None,
    frames: int = 19,
    seed: int = 0,
) -> LogitEffects:
    """What each direction of a site adds to the logits, and how few tokens it concerns.

    Args:
        write: what each axis writes to the residual stream: for neurons, the rows of the map behind
            them; for the stream itself, the identity.
        unembed: from the stream to the logits.
        gain: of the norm in front of the logits; its division by a number is left out.
        frames: how many rotations to compare with.
        seed: seeds them.

    Raises:
        ValueError: for shapes that do not fit.
    """
    write, unembed = matrix("write", write), matrix("unembed", unembed)
    frames = whole("frames", frames, least=1, most=1_000_000)
    seed = seed_of(seed)
    if write.ndim != 2 or unembed.ndim != 2 or write.shape[1] != unembed.shape[0]:
        raise ValueError(
            f"write has shape {list(write.shape)} and unembed {list(unembed.shape)}: give [dim, "
            "stream] and [stream, vocabulary]"
        )
    reads = unembed.double()
    if gain is not None:
        factors = array_of("gain", gain, "one number for every axis of the stream, or None")
        if factors.shape != (len(reads),) or factors.dtype.kind in "US":
            raise ValueError(
                f"gain={described(gain)}: give one number for each of the {len(reads)} axes of the "
                "stream, or None"
            )
        reads = torch.from_numpy(factors).double()[:, None] * reads
    reads = reads - reads.mean(1, keepdim=True)
    writes = write.double()
    generator = torch.Generator().manual_seed(seed)
    rows: list[Tensor] = []
    logits = writes @ reads
    raised = logits.topk(min(5, logits.shape[1]), dim=1).indices
    for index in range(frames + 1):
        turned = haar(len(writes), generator) @ writes if index else writes
        rows.append(_kurtosis(turned @ reads))
    found = torch.stack(rows)
    return LogitEffects(
        kurtosis=found[0].numpy(),
        mean_kurtosis=tally(found.nanmean(1), None),
        raised=raised.double().numpy(),
    )


def _kurtosis(logits: Tensor) -> Tensor:
    centred = logits - logits.mean(1, keepdim=True)
    variance = centred.square().mean(1)
    fourth = centred.pow(4).mean(1)
    return torch.where(variance > 0, fourth / variance.square(), torch.nan)
