"""Probes that may read k directions: the best k axes against the best k of as many rotated ones.

Directions are ranked and the probe is fitted on one half of the examples and scored on the other,
in every frame alike: the winner's luck of choosing is the null's too.
"""

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, overload

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor, nn

from basis_probe.activations import Nonlinearity
from basis_probe.algebra.groups import Group, require_group
from basis_probe.arguments import instance, seed_of, several, whole
from basis_probe.arrays import Matrix
from basis_probe.brief import brief
from basis_probe.concepts.alignment import Ranks, auc
from basis_probe.concepts.comparing import Interruption, axes_beside, in_turn, tally
from basis_probe.concepts.dissect import PATIENCE, Gathered, Known, choices, gather, known_of
from basis_probe.concepts.labels import Concepts, Resolution
from basis_probe.devices import on_own_device
from basis_probe.errors import SiteError, clean
from basis_probe.evidence.site import chosen_null
from basis_probe.interrupts import guarded
from basis_probe.results.dissection import Tally
from basis_probe.statistics.nulls import Null, Rotation


@brief
@dataclasses.dataclass(frozen=True)
class Probe:
    """How well k directions together tell a concept.

    Attributes:
        concept: which.
        k: how many directions.
        axes: which axes were chosen, the most separating first.
        auc: of the probe on held-out examples, beside that of the null's frames.
    """

    concept: str
    k: int
    axes: tuple[int, ...]
    auc: Tally

    def __str__(self) -> str:
        return clean(
            f"{self.concept}, {self.k} directions: AUC {self.auc.observed:.3f} on axes, "
            f"{self.auc.null_mean:.3f} [{self.auc.null_low:.3f}, {self.auc.null_high:.3f}] "
            f"otherwise, p = {self.auc.p_value:.2g}"
        )


@overload
def sparse_probes(
    x: Matrix, concepts: Mapping[str, Any], /, *, examples: Any = None,
    group: Group | str | None = None, pre: Matrix | None = None,
    nonlinearity: Nonlinearity | None = None, inputs: Matrix | None = None,
    weight: Matrix | None = None, bias: Matrix | None = None, null: str | Null | None = None,
    sizes: Sequence[int] = (1, 4, 16), frames: int | None = None, seed: int = 0,
) -> tuple[Probe, ...]: ...  # fmt: skip


@overload
def sparse_probes(
    x: nn.Module, concepts: Iterable[Any], labels: Concepts, /, *, site: str,
    group: Group | str | None = None, null: str | Null | None = None,
    sizes: Sequence[int] = (1, 4, 16), frames: int | None = None, seed: int = 0,
    device: str | torch.device | None = None, max_samples: int = 16384, progress: bool = True,
) -> tuple[Probe, ...]: ...  # fmt: skip


@on_own_device
def sparse_probes(
    x: Matrix | nn.Module,
    concepts: Any,
    labels: Concepts | None = None,
    /,
    *,
    site: str | None = None,
    examples: Any = None,
    group: Group | str | None = None,
    pre: Matrix | None = None,
    nonlinearity: Nonlinearity | None = None,
    inputs: Matrix | None = None,
    weight: Matrix | None = None,
    bias: Matrix | None = None,
    null: str | Null | None = None,
    sizes: Sequence[int] = (1, 4, 16),
    frames: int | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    max_samples: int = 16384,
    progress: bool = True,
) -> tuple[Probe, ...]:
    """How well the best k directions tell each concept, axes against the directions of a null.

    Called as `sparse_probes(x, concepts)` with a matrix of activations, or as
    `sparse_probes(model, data, concepts, site=...)`. Directions are ranked by the distance of the
    two means in standard deviations on one half of the examples; the probe is a linear discriminant
    with a little ridge, and is scored on the other half.

    Args:
        x: activations [samples, dim] as for `dissect_activations`, or a model as for `dissect`.
        concepts: for a matrix: name -> labels [samples]. For a model: the data.
        labels: for a model: the concepts, as for `dissect`; masks are reduced to the maps.
        site: for a model: its name.
        examples: for a matrix, as for `dissect_activations`, like the next six.
        group: a group, or its name; for a model None for the one of the site.
        pre: [samples, dim].
        nonlinearity: its name, a function or a module.
        inputs: [samples, in].
        weight: [dim, in].
        bias: [dim].
        null: "rotation", "counterfactual" or a null as a value; None for the one that fits.
        sizes: the numbers of directions.
        frames: how many alternatives; None for 19, or what the null says.
        seed: seeds them.
        device: for a model, as for `dissect`, like the last two.
        max_samples: at most so many samples are looked at.
        progress: whether to show progress bars.

    Returns:
        One probe for every concept and size. A concept that either half lacks is left out.

    Raises:
        SiteError, DataError, TypeError: as `dissect` and `dissect_activations`.
        ValueError: if no concept can be told, or for sizes that are not positive.

    Example:
        >>> import torch, basis_probe as bp
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = torch.randn(600, 8, generator=generator)
        >>> found = bp.sparse_probes(x, {"third": x[:, 2] > 1}, group="orthogonal", sizes=(1,))
        >>> found[0].axes, round(found[0].auc.observed, 2)
        ((2,), 1.0)
    """
    each = several("sizes", sizes, "numbers of directions, such as (1, 4, 16)")
    sizes = [whole("sizes", size, least=1) for size in each]
    wanted, seed = chosen_null(null), seed_of(seed)
    frames = None if frames is None else Rotation(frames=frames).frames
    if isinstance(x, nn.Module):
        if site is not None:
            instance("site", site, str, "the name of one site")
        require_group("group", group)
        if labels is None or site is None:
            raise ValueError(
                "a model is given: call sparse_probes(model, data, concepts, site=...), with the "
                "name of one site"
            )

        def conclude(gathered: Gathered[Known]) -> tuple[Probe, ...]:
            if len(gathered.found) != 1:
                raise SiteError(f"{len(gathered.found)} sites are called {site!r}: name one")
            for note in gathered.interrupted:
                warnings.warn(note, stacklevel=3)
            paid = Interruption(PATIENCE)
            return _probes(gathered.found[0], wanted, sizes, frames, seed, paid)

        return gather(
            x, concepts, labels, lambda known, _: known, conclude, sites=site,
            groups=None if group is None else {site: group},
            resolution=Resolution.MAPS, seed=seed, device=device, max_samples=max_samples,
            progress=progress, pre=wanted is not None,
        )  # fmt: skip
    if labels is not None or site is not None:
        raise ValueError("data and sites belong to models; a matrix was given")
    known = known_of(
        x, concepts, examples=examples, group=group, pre=pre, nonlinearity=nonlinearity,
        inputs=inputs, weight=weight, bias=bias, seed=seed,
    )  # fmt: skip
    with guarded():
        return _probes(known, wanted, sizes, frames, seed, Interruption())


def _probes(
    known: Known,
    wanted: Null | None,
    sizes: Sequence[int],
    frames: int | None,
    seed: int,
    interruption: Interruption,
) -> tuple[Probe, ...]:
    usable = known.labels.usable(known.halves)
    choice = choices(known.problem, wanted, frames)[0]
    axes, kept, alternatives, _ = axes_beside(choice.null, known.problem)
    generator = torch.Generator().manual_seed(seed)
    return probes_of(
        lambda index: alternatives.frame(generator).post if index else axes,
        choice.null.frames,
        generator,
        usable.values,
        usable.names,
        known.halves,
        sizes,
        kept,
        interruption,
    )


def probes_of(
    frame: Callable[[int], Float[Tensor, "samples dim"]],
    count: int,
    generator: torch.Generator,
    labels: Bool[Tensor, "samples concepts"],
    names: Sequence[str],
    halves: Int64[Tensor, " samples"],
    sizes: Sequence[int],
    kept: Int64[Tensor, " dim"],
    interruption: Interruption,
) -> tuple[Probe, ...]:
    """One probe for every concept and size.

    Args:
        frame: from the number of a frame to the activations in it, the observed one first.
        count: how many alternatives there are.
        generator: draws them.
        labels: [samples, concepts], each carried and lacked in either half.
        names: of the concepts.
        halves: 0 where probes are fitted, 1 where they are scored.
        sizes: the numbers of directions.
        kept: which axes the observed directions are.
        interruption: as for `in_turn`.
    """
    first, second = halves == 0, halves == 1

    def look(index: int) -> tuple[Tensor, Tensor]:
        x = frame(index).double()
        return _frame(x[first], x[second], labels[first], labels[second], sizes)

    seen = in_turn(look, count, generator, interruption)
    if interruption.came:
        said = f"It was interrupted: {len(seen) - 1} of {count} alternatives were drawn."
        warnings.warn(said, stacklevel=2)
    chosen = kept[seen[0][1]]
    values = torch.stack([found for found, _ in seen])
    return tuple(
        Probe(
            concept=name,
            k=min(k, chosen.shape[0]),
            axes=tuple(chosen[:k, place].tolist()),
            auc=tally(values[:, at, place], None),
        )
        for place, name in enumerate(names)
        for at, k in enumerate(sizes)
    )


def _frame(
    fitted: Float64[Tensor, "fitted dim"],
    scored: Float64[Tensor, "scored dim"],
    own: Tensor,
    other: Tensor,
    sizes: Sequence[int],
) -> tuple[Float64[Tensor, "sizes concepts"], Tensor]:
    mean = fitted.mean(0)
    std = fitted.std(0, correction=0)
    std = torch.where(std > 0, std, torch.ones_like(std))
    unit, held = (fitted - mean) / std, (scored - mean) / std
    carried = own.double()
    with_it = unit.T @ carried / carried.sum(0)
    without = unit.T @ (1 - carried) / (1 - carried).sum(0)
    difference = with_it - without
    order = difference.abs().argsort(dim=0, descending=True)
    found = torch.zeros(len(sizes), own.shape[1], dtype=torch.float64)
    for place in range(own.shape[1]):
        for at, k in enumerate(sizes):
            best = order[:k, place]
            x = unit[:, best]
            within = x - carried[:, place, None] * with_it[best, place]
            within = within - (1 - carried[:, place, None]) * without[best, place]
            covariance = within.T @ within / len(x)
            ridge = 1e-3 * torch.eye(len(best), dtype=torch.float64)
            weight = torch.linalg.solve(covariance + ridge, difference[best, place])
            told = held[:, best] @ weight
            found[at, place] = auc(Ranks.of(told[:, None]), other[:, place, None])[0, 0]
    return found, order
