"""The main job for people who already have a matrix of activations."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from basis_probe.algebra.groups import Group, Unknown, group_from_name
from basis_probe.algebra.intertwiner import callable_of
from basis_probe.evidence.measure import affordable
from basis_probe.evidence.site import (
    Case,
    Companions,
    chosen_null,
    chosen_scores,
    chosen_seed,
    gather,
)
from basis_probe.results.report import SiteReport
from basis_probe.results.symmetry import Symmetry
from basis_probe.statistics.moments import Moments, SampleKurtosis
from basis_probe.statistics.nulls import (
    Counterfactual,
    Geometry,
    LinearLayer,
    Null,
    Problem,
    RandomWeights,
    geometry_of,
)
from basis_probe.statistics.scores import Score
from basis_probe.verdict import report

if TYPE_CHECKING:
    from basis_probe.statistics.bases import Candidate

Matrix = Tensor | np.ndarray
Nonlinearity = str | Callable[[Tensor], Tensor] | nn.Module


def probe_activations(
    x: Matrix,
    *,
    group: Group | str | None = None,
    pre: Matrix | None = None,
    nonlinearity: Nonlinearity | None = None,
    inputs: Matrix | None = None,
    weight: Matrix | None = None,
    bias: Matrix | None = None,
    examples: Sequence[Any] | Matrix | None = None,
    null: str | Null | None = None,
    scores: Iterable[str | Score] | None = None,
    bases: "Iterable[str | Candidate | Matrix] | str | Candidate | None" = None,
    paths: int = 0,
    seed: int = 0,
) -> SiteReport:
    """The report of one site whose activations are at hand.

    Args:
        x: the activations, [samples, dim].
        group: which changes of basis the weights around the site absorb: a group, or its name
            ("orthogonal", "permutation", "positive-monomial", "general-linear" ...); None if that
            is not known, and then nothing is said about the architecture.
        pre: the pre-activations, [samples, dim]; with `nonlinearity` they make the approximate
            counterfactual null.
        nonlinearity: what makes x of pre: its name, a function or a module.
        inputs: the layer's inputs, [samples, in]; with `weight` they make the exact one.
        weight: [dim, in], as in `torch.nn.Linear`.
        bias: [dim].
        examples: which sequence or image every row is of, [samples]: rows of one are not
            independent of each other, and intervals leave them out together. None: each its own.
        null: "rotation", "counterfactual" or a null as a value; None for the one that fits.
        scores: names of scores, any of `bp.scores.ALL`; None for
            `bp.scores.DEFAULT`.
        bases: other bases to compare the axes with: names ("pca", "ica", "varimax" ...), candidates
            or matrices [directions, dim]; None for none. The best one is returned.
        paths: to how many turned bases the deciding score is followed, 0 for none.
        seed: seeds the sample of rows and the alternatives.

    Raises:
        TypeError: for integer or complex values.
        ValueError: for shapes that do not fit, or values that are NaN or infinite.

    Example:
        >>> import torch, basis_probe as bp
        >>> generator = torch.Generator().manual_seed(0)
        >>> uniform = torch.rand(4000, 16, generator=generator, dtype=torch.float64) - 0.5
        >>> laplace = -uniform.sign() * (1 - 2 * uniform.abs()).log()
        >>> bp.probe_activations(laplace, group="orthogonal").verdict.outcome.name
        'EMERGENT'
    """
    values = matrix("x", x)
    samples, dim = values.shape
    used, wanted, seed = chosen_scores(scores), chosen_null(null), chosen_seed(seed)
    besides = Companions.of(bases, paths)
    symmetry = symmetry_of(group, dim)
    before = None if pre is None else matrix("pre", pre, rows=samples, columns=dim)
    function = None if nonlinearity is None else callable_of(nonlinearity)[1]
    if before is not None and function is None:
        raise ValueError("pre is given without nonlinearity: name what makes x of pre")
    if (inputs is None) != (weight is None):
        raise ValueError("inputs and weight belong together: give both or neither")
    if bias is not None and weight is None:
        raise ValueError("bias is given without weight: give inputs and weight too")
    if function is not None and before is None and inputs is None:
        raise ValueError(
            "nonlinearity is given without what it reads: give pre, or inputs and weight"
        )
    if isinstance(wanted, Counterfactual) and before is None and inputs is None:
        raise ValueError(
            "the counterfactual null needs inputs and weight, or pre and nonlinearity; x alone "
            "allows the rotation null"
        )
    if isinstance(wanted, RandomWeights):
        raise ValueError(
            "the random-weights null needs the model itself: ask for it in bp.probe, with data "
            "that can be read several times"
        )
    moments = Moments.of(values)
    read = dim
    if inputs is not None and weight is not None:
        read = math.prod(weight.shape[1:])
    capacity = affordable(read, dim).samples if wanted is None else wanted.samples
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(samples, generator=generator)
    kept = order[: max(capacity, besides.rows)]
    problem = Problem(
        x=values[kept],
        group=symmetry.group,
        halves=torch.arange(len(kept)) % 2,
        pre=None if before is None else before[kept],
        nonlinearity=function if before is not None else None,
        examples=_examples(examples, samples)[kept],
        layer=None
        if inputs is None or weight is None
        else layer_of(inputs, weight, bias, function, values, kept),
    )
    line = geometry_of(symmetry.group) is Geometry.LINE
    compared = values - values.mean(1, keepdim=True) if line else values
    everywhere = {
        "kurtosis": float(moments.kurtosis.nanmean()),
        "sample_kurtosis": float(SampleKurtosis.of(compared).mean),
    }
    if function is None:
        everywhere["non_gaussianity"] = float(moments.excess_kurtosis.abs().nanmean())
    case = Case(
        site="activations",
        kind="activations" if function is None else "neurons behind a nonlinearity",
        layer=None,
        shape=(dim,),
        symmetry=symmetry,
        n_samples=samples,
        n_dead=int(moments.constant.sum()),
        problem=problem,
        all_samples=everywhere,
    )
    return report([gather(case, used, wanted, seed=seed, companions=besides)])[0]


def _examples(examples: Sequence[Any] | Matrix | None, samples: int) -> Tensor:
    """A whole number for every row, the same for rows of one example."""
    if examples is None:
        return torch.arange(samples)
    given = examples.detach().cpu().numpy() if isinstance(examples, Tensor) else examples
    names = np.asarray(given)
    if names.shape != (samples,):
        raise ValueError(
            f"examples has shape {names.shape}, and x has {samples} rows: name the sequence or "
            "image of every row"
        )
    return torch.from_numpy(np.unique(names, return_inverse=True)[1].astype(np.int64))


def symmetry_of(group: Group | str | None, dim: int) -> Symmetry:
    """The symmetry that a given group stands for; nothing is known without one."""
    if group is None:
        unknown = Unknown(dim)
        return Symmetry(unknown, unknown.privileged, "No group was given.", "none")
    if isinstance(group, str):
        group = group_from_name(group, dim)
    if group.dim != dim:
        raise ValueError(f"the group {group!r} acts on {group.dim} features, and x has {dim}")
    return Symmetry(group, group.privileged, "The group was given, not derived.", "the user")


def matrix(
    name: str, values: Matrix, *, rows: int | None = None, columns: int | None = None
) -> Tensor:
    """The values as a float64 matrix on the CPU, checked.

    Args:
        name: what they are called, for messages.
        values: what was given.
        rows: how many there must be; None for any number.
        columns: the same.

    Raises:
        TypeError, ValueError: if they are no matrix of finite floating-point numbers of that shape.
    """
    if not isinstance(values, Tensor | np.ndarray):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f"{name} is a {type(values).__name__}: give a numpy array or a torch tensor"
        )
    if isinstance(values, np.ndarray) and (
        not values.flags.writeable or any(stride < 0 for stride in values.strides)
    ):
        # Torch cannot share an array that is read-only or runs backwards.
        values = values.copy()
    tensor = torch.as_tensor(values).detach()
    if not tensor.is_floating_point():
        raise TypeError(
            f"{name} holds {str(tensor.dtype).removeprefix('torch.')}: activations are "
            "floating-point numbers; convert them, for example with .float()"
        )
    if tensor.ndim != 2:
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)}: give a matrix; positions and pixels are "
            "samples, so flatten them into the first axis"
        )
    for axis, wanted in enumerate((rows, columns)):
        if wanted is not None and tensor.shape[axis] != wanted:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}, and its axis {axis} must have {wanted} "
                "entries to fit x"
            )
    if tensor.numel() == 0:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}: it holds no numbers")
    bad = int((~torch.isfinite(tensor)).sum())
    if bad:
        raise ValueError(
            f"{name} holds {bad} values that are NaN or infinite: remove those rows first"
        )
    return tensor.cpu().double()


def layer_of(
    inputs: Matrix,
    weight: Matrix,
    bias: Matrix | None,
    function: Callable[[Tensor], Tensor] | None,
    x: Tensor,
    kept: Tensor,
) -> LinearLayer:
    """The layer as numbers.

    Raises:
        ValueError: if it does not make the activations that were given.
    """
    samples, dim = x.shape
    read = matrix("inputs", inputs, rows=samples)
    maps = matrix("weight", weight, rows=dim, columns=read.shape[1])
    offset = None
    if bias is not None:
        offset = torch.as_tensor(bias).detach().cpu().double().flatten()
        if len(offset) != dim:
            raise ValueError(f"bias has {len(offset)} entries, and x has {dim} axes")

    def bent(outputs: tuple[Tensor, ...]) -> Tensor:
        return outputs[0] if function is None else function(outputs[0])

    made = read[kept] @ maps.T
    made = bent((made if offset is None else made + offset,))
    error, scale = float((made - x[kept]).abs().max()), float(x[kept].square().mean().sqrt())
    if not error <= 1e-2 * max(scale, 1e-30):
        raise ValueError(
            f"inputs, weight, bias and nonlinearity do not make x: they are off by {error:.2g} "
            f"where x has a size of {scale:.2g}; give the inputs of this very layer"
        )
    return LinearLayer(
        inputs=read[kept][:, :, None],
        weights=(maps[:, :, None],),
        biases=(offset,),
        pre=None if function is None else (lambda outputs: outputs[0]),
        post=bent,
        geometry=Geometry.EUCLIDEAN,
        centred=False,
    )
