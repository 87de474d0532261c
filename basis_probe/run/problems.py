"""The rows that were kept of a site, as nulls need them."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from basis_probe.evidence.site import halves_of
from basis_probe.model.linear_layer import Layer
from basis_probe.run.stream import Seen
from basis_probe.run.watch import Placed
from basis_probe.statistics.nulls import AsComputed, Geometry, LinearLayer, Problem

# So many values are brought to double precision at a time.
_AT_ONCE = 2**22

_CACHED = 2**17
"""So many numbers of a weight are worked on at a time."""

_ROWS, _SHARE = 64, 16
"""All axes are computed again of at least so many rows, and of other rows one axis in so many."""

_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}


Weights = tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]
"""Those of every linear map of a layer, and the biases."""


def problem_of(
    place: Placed,
    seen: Seen,
    dtype: torch.dtype,
    *,
    pre: bool = True,
    weights: Weights | None = None,
) -> tuple[Problem, tuple[str, ...]]:
    """The kept rows of a site as nulls need them, and what a reader must know.

    Args:
        place: the site.
        seen: what was seen there.
        dtype: the model's own floating-point type, in which its layers are computed again.
        pre: False to leave out what comes before the nonlinearity where the layer makes it too.
        weights: those of the layer as numbers, if they were made already.
    """
    rows = seen.kept.rows
    halves = halves_of(seen.kept.priorities)
    notes: tuple[str, ...] = ()
    linear = None
    # Products are in single precision unless the model is in double; sums are in double.
    working = torch.float64 if dtype is torch.float64 else torch.float32
    if place.layer is not None and "inputs" in rows:
        linear = linear_layer(place.layer, rows, place.geometry, dtype, weights)
    if linear is not None and "x" not in rows:
        x = linear.post(linear.outputs).to(working)
    else:
        x = rows["x"].to(working)
        if linear is not None:
            error = missed_by(linear, x, keep=pre)
            if not error <= tolerance(dtype, x):
                linear = None
                notes = (
                    "The activations could not be computed again from the layer's input and "
                    f"weights (off by {error:.1g} at a size of {size_of(x):.1g}), so its "
                    "counterfactuals were not used.",
                )
    before = None
    if place.bend is not None and "pre" in rows:
        before = rows["pre"].to(working)
    elif pre and place.bend is not None and linear is not None:
        before = linear.before
        before = None if before is None else before.to(working)
    if before is not None and not bool(torch.isfinite(before).all()):
        before = None
        if linear is None:
            notes = (*notes, "Some pre-activations are NaN or infinite, so they were not turned.")
    return (
        Problem(
            x=x,
            group=place.symmetry.group,
            halves=halves,
            pre=before,
            nonlinearity=place.bend if before is not None else None,
            layer=linear,
            examples=rows.get("example"),
            bent_by=place.bent_by,
            unlike_mixtures=place.unlike_mixtures,
        ),
        notes,
    )


def weights_of(found: Layer, dtype: torch.dtype) -> Weights:
    """The weights and biases of a layer as numbers, a norm's gain moved from the input into them.

    Args:
        found: the layer.
        dtype: the model's own floating-point type.
    """
    working = torch.float64 if dtype is torch.float64 else torch.float32
    gain = shift = None
    if found.gain is not None:
        # One number for every feature, or for every entry where positions were flattened into them.
        gain = found.gain.cpu().double().reshape(found.width, -1)
        if found.bias is not None:
            shift = found.bias.cpu().double().reshape(found.width, -1)
    maps: list[Tensor] = []
    biases: list[Tensor | None] = []
    for given, bias in zip(found.weights, found.biases, strict=True):
        weight = given.detach().cpu().reshape(len(given), found.width, -1)
        made, moved = _behind_norm(weight, gain, shift, working)
        own = None if bias is None else bias.detach().cpu().double()
        if moved is not None:
            own = moved if own is None else own + moved
        maps.append(made)
        biases.append(None if own is None else own.to(working))
    return tuple(maps), tuple(biases)


def _behind_norm(
    weight: Tensor, gain: Tensor | None, shift: Tensor | None, working: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """A weight [outputs, width, positions] that reads what a norm writes before its gain and bias.

    Returns:
        The weight, and what the bias of the norm adds to its outputs, in float64.
    """
    if gain is None:
        return weight.to(working), None
    factor = gain.to(working)
    added = None if shift is None else shift.expand(weight.shape[1:]).reshape(-1)
    made = torch.empty_like(weight, dtype=working)
    moved: list[Tensor] = []
    # Pieces stay in the processor's cache: new memory for the whole would take most of the time.
    at_once = max(1, _CACHED // max(1, weight[:1].numel()))
    for new, old in zip(made.split(at_once), weight.split(at_once), strict=True):
        new.copy_(old)
        if added is not None:
            moved.append(new.double().reshape(len(new), -1) @ added)
        new.mul_(factor)
    return made, torch.cat(moved) if moved else None


def linear_layer(
    found: Layer,
    rows: Mapping[str, Tensor],
    geometry: Geometry,
    dtype: torch.dtype,
    weights: Weights | None = None,
) -> LinearLayer:
    """The layer as numbers, on some rows.

    Args:
        found: the layer.
        rows: what it reads, and what is added to its outputs.
        geometry: of the input space.
        dtype: the model's own floating-point type.
        weights: what `weights_of` gives for it, if that was asked already.
    """
    working = torch.float64 if dtype is torch.float64 else torch.float32
    inputs = rows["inputs"]
    held = tuple(rows[f"held {place}"].to(working) for place in range(len(found.held)))
    if found.gain is not None:
        inputs = inputs.double()
        if found.bias is not None:
            inputs = inputs - found.bias.cpu().double().reshape(found.width, -1)[None]
        inputs = inputs / found.gain.cpu().double().reshape(found.width, -1)[None]
    maps, biases = weights or weights_of(found, dtype)
    short = _short_type(found, rows["inputs"])
    return LinearLayer(
        inputs=inputs.to(working),
        weights=maps,
        biases=biases,
        pre=found.pre,
        post=found.post if short is None else _Rounded(found.post, short),
        geometry=geometry,
        centred=found.centred,
        held=held,
        computed=_as_computed(found, rows["inputs"]) if short is torch.bfloat16 else None,
        rounded_to=short,
    )


@dataclasses.dataclass(frozen=True)
class _Rounded:
    """A function whose results are rounded to a short type, and stand in that of its arguments."""

    function: Callable[[tuple[Tensor, ...]], Tensor]
    dtype: torch.dtype

    def __call__(self, outputs: tuple[Tensor, ...]) -> Tensor:
        return self.function(outputs).to(self.dtype).to(outputs[0].dtype)

    def __getattr__(self, name: str) -> Any:
        # What it reads, and itself for some axes, where the function knows that.
        if name.startswith("__") or name in ("function", "dtype"):
            raise AttributeError(name)
        known = getattr(self.function, name)
        if name != "along":
            return known
        return lambda axes, width: _Rounded(known(axes, width), self.dtype)


_SHORT = (torch.bfloat16, torch.float16)


def _short_type(found: Layer, inputs: Tensor) -> torch.dtype | None:
    """The short type in which the model computes the layer; None where it is none."""
    own = (inputs, *found.weights, *(bias for bias in found.biases if bias is not None))
    kinds = {tensor.dtype for tensor in own}
    return inputs.dtype if kinds == {inputs.dtype} and inputs.dtype in _SHORT else None


def _as_computed(found: Layer, inputs: Tensor) -> AsComputed | None:
    """A layer in bfloat16 as the model has it, where that is fast on this machine."""
    # Without these instructions a product takes longer than one in single precision.
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return None
    return AsComputed(
        inputs=inputs.cpu().flatten(1),
        weights=tuple(weight.detach().cpu().flatten(1) for weight in found.weights),
        biases=tuple(None if bias is None else bias.detach().cpu() for bias in found.biases),
    )


def missed_by(linear: LinearLayer, x: Tensor, *, keep: bool = False) -> float:
    """By how much a layer's outputs, computed from its inputs, miss the activations.

    Args:
        linear: the layer.
        x: the activations.
        keep: whether the outputs are wanted once more, and are kept.
    """
    worst = [torch.zeros((), dtype=torch.float64)]
    if keep:
        linear.prepare()
    at_once = max(1, _AT_ONCE // max(1, x.shape[1]))
    for start in range(0, len(x), at_once):
        some = slice(start, start + at_once)
        try:
            made = linear.post(linear.outputs_of(some)).double()
        except (ValueError, RuntimeError, IndexError):
            # What lies between reads more than the rows of the layer, as a graph's edges do.
            return math.inf
        if made.shape != x[some].shape:
            return math.inf
        worst.append((made - x[some].double()).abs().max().cpu())
    return float(torch.stack(worst).max())


def tolerance(dtype: torch.dtype, x: Tensor) -> float:
    """By how much activations may be missed, of their size, that are computed in this type."""
    return _TOLERANCE.get(dtype, 0.1) * max(size_of(x), 1e-30) * 10


def size_of(x: Tensor) -> float:
    """The root mean square of all values."""
    parts = x.split(max(1, _AT_ONCE // max(1, x.shape[1])))
    return math.sqrt(sum(float(part.double().square().sum()) for part in parts) / x.numel())


def dispensable(
    places: Mapping[str, Placed], dtype: torch.dtype, name: str, rows: Mapping[str, Tensor]
) -> frozenset[str]:
    """What need not be kept of a site, because it can be computed from what is kept.

    Args:
        places: the sites.
        dtype: the model's own floating-point type.
        name: of the site.
        rows: some of its rows.
    """
    place = places[name]
    if place.layer is None or "inputs" not in rows or not len(rows["x"]):
        return frozenset()
    linear = linear_layer(place.layer, rows, place.geometry, dtype)
    # What is close to the limit here may be beyond it elsewhere.
    if not _is_within(tolerance(dtype, rows["x"]) / 4, linear, rows["x"]):
        return frozenset()
    found = {"pre"} if place.layer.pre is not None else set[str]()
    return frozenset(found | {"x"} if is_computed(place) else found)


def _is_within(limit: float, linear: LinearLayer, x: Tensor) -> bool:
    """True if outputs computed from inputs miss the activations by no more.

    All axes are computed of some rows, and some axes of all rows where these can be computed alone.
    """
    every = max(1, len(x) // _ROWS)
    if not missed_by(linear[::every], x[::every]) <= limit:
        return False
    if every == 1:
        return True
    generator = torch.Generator().manual_seed(0)
    axes = torch.randperm(x.shape[1], generator=generator)[: -(-x.shape[1] // _SHARE)]
    try:
        alone = missed_by(_of_axes(linear, axes), x[:, axes.to(x.device)]) <= limit
    except Exception:
        # What differs from axis to axis does not fit fewer of them, whatever it says then.
        alone = False
    return alone or missed_by(linear, x) <= limit


def _of_axes(linear: LinearLayer, axes: Tensor) -> LinearLayer:
    """The layer, with functions of some axes alone where it knows them."""
    along = getattr(linear.post, "along", None)
    return dataclasses.replace(
        linear,
        weights=tuple(weight[axes] for weight in linear.weights),
        biases=tuple(None if bias is None else bias[axes] for bias in linear.biases),
        pre=None,
        post=linear.post if along is None else along(axes, len(linear.weights[0])),
        held=tuple(held[:, axes] for held in linear.held),
        computed=None,
    )


def is_computed(place: Placed) -> bool:
    """True if the activations are larger than what they can be computed of."""
    plan = place.plan
    return (
        place.layer is not None
        and plan.inputs is not None
        and plan.convolution is None
        and plan.dim > plan.width * plan.repeat
    )
