"""What was seen of a site, as a case to be judged."""

import functools
import math

import torch
from torch import Tensor

from basis_probe.evidence.site import Case
from basis_probe.results.evidence import Routed
from basis_probe.run.problems import (
    Weights,
    linear_layer,
    missed_by,
    problem_of,
    size_of,
    tolerance,
    weights_of,
)
from basis_probe.run.stream import Seen
from basis_probe.run.watch import Placed, compares_axes
from basis_probe.statistics.nulls import Geometry, Problem, geometry_of


def case_of(name: str, place: Placed, seen: Seen, batches: int, dtype: torch.dtype) -> Case:
    """What is known of a site before its axes are compared with anything."""
    notes = list(place.notes)
    trouble = place.trouble
    if place.expert is not None:
        if not seen.moments.count:
            trouble = "no row of the data reached this expert."
    elif seen.missed:
        notes.append(f"The site did not run in {seen.missed} of {batches} batches.")
    if seen.bad:
        number, count = seen.bad[0]
        more = f", and more in {len(seen.bad) - 1} later batches" if len(seen.bad) > 1 else ""
        trouble = (
            f"{count} values of {name} are NaN or infinite in batch {number}{more}; give data on "
            "which the model stays finite."
        )
    dead = int(seen.moments.constant.sum()) if seen.moments.count else 0
    problem = None
    if not trouble and len(seen.kept.priorities):
        problem, more_notes, trouble = _problem(place, seen, dtype)
        notes.extend(more_notes)
    return Case(
        site=name,
        kind=place.role.kind,
        layer=place.role.layer,
        shape=place.shape,
        symmetry=place.symmetry,
        n_samples=seen.moments.count,
        n_dead=dead,
        problem=problem,
        all_samples=_all_samples(place, seen),
        trouble=trouble,
        notes=tuple(notes),
        routed=_routed(place, seen),
        around=place.around,
    )


def _routed(place: Placed, seen: Seen) -> Routed | None:
    """Which expert a site is of."""
    return None if place.expert is None else Routed(*place.expert, seen.given)


def _all_samples(place: Placed, seen: Seen) -> dict[str, float]:
    geometry = geometry_of(place.symmetry.group)
    if geometry in (Geometry.WHITENED, Geometry.HEADS, Geometry.PARTS):
        # What is compared there is the whitened axes, and whitening needs a second pass.
        return {}
    found = {"kurtosis": float(seen.moments.kurtosis.nanmean())}
    if place.plan.across and compares_axes(place.symmetry.group):
        found["sample_kurtosis"] = float(seen.kurtosis.mean)
    # Behind a nonlinearity it is computed before it, and that is not streamed.
    if place.bend is None and (place.layer is None or place.layer.pre is None):
        found["non_gaussianity"] = float(seen.moments.excess_kurtosis.abs().nanmean())
    return found


def _problem(
    place: Placed, seen: Seen, dtype: torch.dtype
) -> tuple[Problem | None, tuple[str, ...], str]:
    """The rows as nulls need them, notes on them, and why they cannot be used, if they cannot."""
    weights: Weights | None = None
    if place.layer is not None and "inputs" in seen.kept.rows:
        weights = weights_of(place.layer, dtype)
    make = functools.partial(problem_of, place, seen, dtype, weights=weights)
    if place.layer is None or "x" in seen.kept.rows or not seen.proof.rows:
        return (*make(), "")
    x = seen.proof.rows["x"]
    # The rows that have their activations are the first of those that are kept.
    first = seen.kept.priorities[: len(x)]
    if torch.equal(first, seen.proof.priorities):
        try:
            problem, notes = make()
        except (ValueError, RuntimeError, IndexError):
            # It is said below if that is so of a part of the rows, too.
            pass
        else:
            made = problem.x[: len(x)]
            alike = made.shape == x.shape
            error = float((made.double() - x.double()).abs().max()) if alike else math.inf
            trouble = _unproven(error, x, dtype)
            return (None, (), trouble) if trouble else (problem, notes, "")
    linear = linear_layer(place.layer, seen.proof.rows, place.geometry, dtype, weights)
    trouble = _unproven(missed_by(linear, x), x, dtype)
    return (None, (), trouble) if trouble else (*make(), "")


def _unproven(error: float, x: Tensor, dtype: torch.dtype) -> str:
    """Why activations that were not kept cannot be computed again after all; empty if they can."""
    if error <= tolerance(dtype, x):
        return ""
    return (
        "the activations could be computed from the layer's input and weights in the first batch "
        f"and not in later ones (off by {error:.1g} at a size of {size_of(x):.1g}), so "
        "nothing was compared; give data of one kind."
    )
