"""How much of a layer's function is tied to its axes: turned neurons, refitted readers, the cost.

At neurons what is written to them is turned by degrees, the maps that read them are fitted anew,
and what is left of the difference is seen in the output. Where the group of a site holds the turns
nothing is left, whatever their angle.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from basis_probe.algebra.groups import Blocks, Planes, Privileged
from basis_probe.algebra.haar import haar, haar_fixing
from basis_probe.architecture.derive import Derivation
from basis_probe.arguments import flag, function, instance, one_of, seed_of, whole
from basis_probe.brief import brief
from basis_probe.concepts.output_change import Cost, Measure
from basis_probe.concepts.turned_neurons import (
    POWERS,
    Turned,
    bent_readers,
    fitted,
    neurons_of,
    proper,
    require_replaceable,
)
from basis_probe.devices import on_own_device
from basis_probe.errors import DataError, SiteError, clean
from basis_probe.interrupts import guarded
from basis_probe.model.batches import Batch
from basis_probe.model.facts import facts_of
from basis_probe.model.losses import Loss
from basis_probe.model.network import Subject, device_of, prepared, recognise
from basis_probe.model.sites import asked
from basis_probe.results.codec import Exact
from basis_probe.run.read import batches_of, progressing, require_batches
from basis_probe.run.watch import Placed, certified, placed
from basis_probe.statistics.nulls import Geometry, geometry_of
from basis_probe.statistics.path import fractional_power

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

_GROUPS = 20
"""The error is that over so many groups of examples, each left out in turn."""


@brief
@dataclasses.dataclass(frozen=True, eq=False)
class Stiffness(Exact):
    """What turning the axes of a site costs after everything linear has adapted to it.

    Attributes:
        site: its name.
        angles: [stations], radians: the angle whose cosine is the mean cosine between an axis and
            where it is turned to; 0 first, about pi/2 (a uniformly random rotation) last.
        cost: [stations], the mean over turns of what the turn costs in the output, in the unit of
            `measure`; 0 at angle 0. With a loss of one's own it may be negative.
        slope: at angle 0, of the root of the cost, per radian: the stiffness. 0 where the group
            holds the turns.
        slope_error: its standard error over other turns and other examples; 0 where the cost is.
        relative: the slope over the root of `removed`, which makes layers and networks comparable;
            NaN where removing the site costs nothing.
        removed: the cost of putting every axis to its mean.
        per_turn: [turns, stations], the cost of every turn.
        measure: what the cost is, in words.
        compensation: what adapts to the turn, in words.
        n_examples: on how many examples the cost was measured.
        n_rows: on how many rows the maps were refitted.
        notes: what a reader must know.
    """

    site: str
    angles: np.ndarray
    cost: np.ndarray
    slope: float
    slope_error: float
    relative: float
    removed: float
    per_turn: np.ndarray
    measure: str
    compensation: str
    n_examples: int
    n_rows: int
    notes: tuple[str, ...] = ()

    def to_dataframe(self) -> pandas.DataFrame:
        """One row for every station, as a pandas DataFrame: angle, cost, root, and the spread."""
        import pandas

        spread = self.per_turn.std(0, ddof=1) if len(self.per_turn) > 1 else np.nan * self.cost
        return pandas.DataFrame(
            {
                "site": self.site,
                "angle": self.angles,
                "cost": self.cost,
                "root": np.sqrt(np.clip(self.cost, 0, None)),
                "std_over_turns": spread,
            }
        )

    def plot(self, *, figsize: tuple[float, float] | str | None = None) -> Figure:
        """The root of the cost over the angle, whose slope at 0 is the stiffness.

        Args:
            figsize: as for `Report.plot`.

        Raises:
            ValueError: for any other size.
        """
        from basis_probe.show.heatmap import lines

        degrees = [f"{angle:.0f}" for angle in np.degrees(self.angles)]
        root = np.sqrt(np.clip(self.cost, 0, None))
        return lines(
            {self.site: list(zip(degrees, root.tolist(), strict=True))},
            label=f"root of the {self.measure.split(':')[0]} (axes turned by degrees)",
            size=figsize,
        )

    def __str__(self) -> str:
        if not self.cost.any():
            return clean(f"{self.site}: turning the axes costs nothing; {self.compensation}")
        error = "" if math.isnan(self.slope_error) else f" ± {self.slope_error:.2g}"
        known = not math.isnan(self.relative)
        share = f", {self.relative:.2f} of what removing the site costs" if known else ""
        return clean(
            f"{self.site}: stiffness {self.slope:.3g}{error} a radian{share}; a random rotation "
            f"costs {self.cost[-1]:.3g}, removing it {self.removed:.3g} ({self.measure})"
        )


@on_own_device
def stiffness(
    model: nn.Module,
    site: str,
    data: Iterable[Any],
    *,
    loss: Loss | None = None,
    measure: Measure | None = None,
    turns: int = 3,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> Stiffness:
    """What turning a site's axes costs, from no turn to a random one, and how steeply it begins.

    At neurons what is written to them, the pre-activations, is turned towards a uniformly random
    rotation (in units of their standard deviations, about their means, so that rescaling neurons
    changes nothing); a gated product's branches are turned alike. The maps that read the neurons
    are refitted to the turned ones by least squares; what cannot be refitted is seen in the output.
    A convolution that reads them is refitted in its channels, the same at every place of its
    window. At sites whose group holds the turns the group itself compensates them, which is proved
    on this model, and the cost is 0.

    It is a measure and no test: neurons of untrained networks are stiff too. Compare it with the
    same site of another network, or of `bp.reinitialised(model)`.

    Args:
        model: as for `probe`; one of half precision is measured as a copy in single precision.
        site: the name of one site.
        data: batches, all of which are kept; at least twice as many rows as the site has axes.
        loss: (output, the batch as the data gave it) -> loss, whose mean difference is the cost;
            None for what `measure` says. Away from a minimum a loss changes with the angle and not
            with its square, and the slope of its root says little.
        measure: "kl" for the divergence of the softmax over the last axis of the output (over
            channels where there are positions behind them) in nats, "error" for the squared change
            of the output over its variance; None for "kl" where the output is a tensor or has
            logits of at least two entries, else "error".
        turns: how many random rotations to turn towards, at least 2.
        seed: seeds them.
        device: as for `probe`.
        progress: whether to show a progress bar.

    Raises:
        SiteError: if the name stands for no site, or one that cannot be turned: why.
        DataError: if there is no batch, or there are too few rows.
        ValueError: for numbers that make no sense.

    Example:
        >>> import torch, basis_probe as bp
        >>> layers = torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3)
        >>> model, x = torch.nn.Sequential(*layers), torch.randn(400, 8)
        >>> found = bp.stiffness(model, "1", [x], progress=False)
        >>> float(found.cost[0]), found.slope > 0, bool(found.cost[-1] > found.cost[1])
        (0.0, True, True)
    """
    site = instance("site", site, str, "the name of one site, such as 'blocks.0.mlp'")
    turns = whole("turns", turns, least=2, most=1000)
    seed, progress = seed_of(seed), bool(flag("progress", progress))
    if loss is not None:
        function("loss", loss, "a function of (output, batch), or None")
    if measure is not None:
        one_of("measure", measure, ("kl", "error"))
    if loss is not None and measure is not None:
        raise ValueError("loss and measure are both given: give one of them")
    require_batches(data)
    subject, wide = _in_single(recognise(model))
    target = None if device is None else device_of(device)
    with guarded(), prepared(subject.model, target), torch.no_grad():
        reading = (wide(batch) for batch in batches_of(data, subject))
        first = next(reading, None)
        if first is None:
            raise DataError("the data hold no batch: give at least one")
        derivation = Derivation(facts_of(subject, first))
        chosen = asked(site, derivation.seen.sites, silent=subject.silent())
        if len(chosen) > 1:
            raise SiteError(f"{site!r} stands for {len(chosen)} sites: turn one at a time")
        place = next(iter(placed(derivation, chosen, None).values()))
        batches = [first, *reading]
        neurons = neurons_of(place, derivation)
        if isinstance(neurons, str):
            (place,) = certified(
                {place.site.name: place}, subject, first, derivation, True
            ).values()
            return _compensated(place, turns, seed, batches, neurons)
        require_replaceable(place, derivation)
        cost = Cost(loss, measure)
        turned = fitted(subject, place, neurons, batches, turns, seed)
        for batch in progressing(batches, "turning neurons", total=len(batches), progress=progress):
            cost.see(subject, batch, turned)
    notes = ["The model of half precision was measured as a copy in single precision."]
    notes = notes if wide is not _as_it_is else []
    if bent := bent_readers(place, derivation):
        notes.append(
            f"{', '.join(bent)} reads these neurons too, which is no linear map, and is given what "
            "the refitted maps are given: no weights can do better, so the cost is a lower bound."
        )
    return _concluded(place, turned, cost, notes)


def _as_it_is(batch: Batch) -> Batch:
    return batch


def _in_single(subject: Subject) -> tuple[Subject, Callable[[Batch], Batch]]:
    """The model in single precision at least, and what makes batches fit it.

    In half precision rounding costs more in the output than a small turn does.
    """
    half = (torch.float16, torch.bfloat16)
    if not any(p.dtype in half for p in subject.model.parameters()):
        return subject, _as_it_is
    copied = recognise(copy.deepcopy(subject.model).float())
    copied.own_tokenizer = subject.own_tokenizer

    def wide(value: Any) -> Any:
        return value.float() if isinstance(value, Tensor) and value.dtype in half else value

    return copied, lambda batch: batch.mapped(wide)


def _concluded(place: Placed, turned: Turned, cost: Cost, notes: list[str]) -> Stiffness:
    several = torch.cat(cost.costs, 1) / max(cost.scale, 1e-300)
    weights = torch.cat(cost.weights)
    turns, stations = len(turned.versions), len(POWERS)
    each = [[v.angle for v in versions] for versions in turned.versions]
    angles = torch.tensor(each, dtype=torch.float32).double()

    def curves(weights: Tensor) -> Tensor:
        mean = (several * weights).sum(1) / weights.sum()
        whole = torch.zeros(turns, stations, dtype=torch.float64)
        whole[:, 1:] = mean[:-1].reshape(turns, stations - 1)
        return whole

    def slopes(weights: Tensor) -> Tensor:
        found = curves(weights).clamp(min=0).sqrt()[:, 1:3] / angles[:, 1:3]
        # The ratio at angle 0, by a line through the two smallest angles.
        near, far = angles[:, 1], angles[:, 2]
        at = found[:, 0] - (found[:, 1] - found[:, 0]) * near / (far - near)
        return at.clamp(min=0)

    own = slopes(weights)
    groups = torch.arange(len(weights)) % min(_GROUPS, len(weights))
    left = [float(slopes(weights * (groups != g)).mean()) for g in groups.unique()]
    spread = (
        (len(left) - 1) / len(left) * sum((v - sum(left) / len(left)) ** 2 for v in left)
        if len(left) > 1
        else math.nan
    )
    removed = float((several[-1] * weights).sum() / weights.sum())
    curve, slope = curves(weights), float(own.mean())
    if turned.rows < 4 * place.dim:
        notes.append(
            f"Maps of {place.dim} axes were refitted on {turned.rows} rows, so that they fit these "
            "better than others; give more data."
        )
    if len(left) < 2:
        notes.append("One example or batch says nothing of others: its error is not known.")
    return Stiffness(
        site=place.site.name,
        angles=angles.mean(0).numpy().copy(),
        cost=curve.mean(0).numpy().copy(),
        slope=slope,
        slope_error=math.sqrt(float(own.var()) / turns + spread),
        relative=slope / math.sqrt(removed) if removed > 0 else math.nan,
        removed=removed,
        per_turn=curve.numpy().copy(),
        measure=cost.words,
        compensation="every map that reads the neurons, refitted by least squares",
        n_examples=len(weights) if cost.loss is None else int(weights.sum()),
        n_rows=turned.rows,
        notes=tuple(notes),
    )


def _compensated(
    place: Placed, turns: int, seed: int, batches: Sequence[Batch], reason: str
) -> Stiffness:
    """The curve of a site whose group holds the turns: 0 all along.

    Raises:
        SiteError: if the group does not, or it is not proved.
    """
    name, symmetry = place.site.name, place.symmetry
    generator = torch.Generator().manual_seed(seed)
    made_turns = [_in_group(place, generator) for _ in range(turns)]
    if any(turn is None for turn in made_turns):
        raise SiteError(
            f"{name} cannot be turned: {reason}, and its group ({symmetry.group.name}) holds no "
            "turns that others compensate; name neurons, such as what a nonlinearity returns, or "
            "a residual stream"
        )
    proof = symmetry.certificate
    if proof is None or not proof.holds:
        raise SiteError(
            f"{name} cannot be turned: that its group ({symmetry.group.name}) compensates turns "
            "was not proved on this model"
        )
    angles = [[_angle(turn, power) for power in POWERS] for turn in made_turns if turn is not None]
    zeros = np.zeros((turns, len(POWERS)))
    return Stiffness(
        site=name,
        angles=np.array(angles).mean(0),
        cost=zeros[0].copy(),
        slope=0.0,
        slope_error=0.0,
        relative=0.0,
        removed=math.nan,
        per_turn=zeros,
        measure="any: the outputs are the same",
        compensation=(
            f"the group of the site ({symmetry.group.name}) holds the turns, and in float64 the "
            f"outputs stay within {proof.max_error:.0e} of what they are"
        ),
        n_examples=sum(batch.size for batch in batches),
        n_rows=0,
    )


def _angle(turn: Tensor, power: float) -> float:
    cosine = float(fractional_power(turn, power).diagonal().mean())
    return math.acos(max(-1.0, min(1.0, cosine)))


def _in_group(place: Placed, generator: torch.Generator) -> Tensor | None:
    """A random turn that the group of a site holds, with powers that it holds too."""
    symmetry, dim = place.symmetry, place.dim
    group = symmetry.group
    geometry = geometry_of(group)
    if dim < 2 or symmetry.privileged is Privileged.UNKNOWN:
        return None
    if geometry is Geometry.LINE and dim > 2:
        return _fixing_line(dim, generator)
    if geometry in (Geometry.EUCLIDEAN, Geometry.WHITENED):
        turn = proper(haar(dim, generator))
        return turn if group.contains(turn, atol=1e-6) else None
    if geometry is Geometry.HEADS and isinstance(group, Blocks) and group.inner.dim > 1:
        heads = [proper(haar(group.inner.dim, generator)) for _ in range(group.count)]
        return torch.block_diag(*(head for head in heads for _ in range(group.copies)))
    if geometry is Geometry.PLANES and isinstance(group, Planes):
        half = dim // 2
        angle = 2 * math.pi * torch.rand(half, generator=generator, dtype=torch.float64)
        first = torch.arange(half) if group.pairing == "half" else 2 * torch.arange(half)
        second = first + (half if group.pairing == "half" else 1)
        turn = torch.eye(dim, dtype=torch.float64)
        turn[first, first] = turn[second, second] = angle.cos()
        turn[first, second], turn[second, first] = -angle.sin(), angle.sin()
        return turn
    return None


def _fixing_line(dim: int, generator: torch.Generator) -> Tensor:
    """A turn that leaves the all-ones direction alone and keeps orientation."""
    ones = torch.ones(1, dim, dtype=torch.float64)
    while True:
        turn = haar_fixing(ones, generator)
        if float(torch.linalg.det(turn)) > 0:
            return turn
