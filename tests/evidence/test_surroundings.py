"""What is set around a call changes no number that is computed of activations."""

import contextlib
from collections.abc import Callable, Generator

import numpy as np
import pytest
import torch
from draws import seeded
from torch import Tensor, nn

import basis_probe as bp
from basis_probe.activations import symmetry_of
from basis_probe.algebra.groups import (
    Blocks,
    GeneralLinear,
    Group,
    LineStabiliser,
    Orthogonal,
    Permutation,
)
from basis_probe.evidence.site import Case, Evidence, gather
from basis_probe.statistics.nulls import Problem
from basis_probe.statistics.scores import DEFAULT

SAMPLES, DIM = 400, 16
FEW = bp.nulls.Rotation(frames=19)


@contextlib.contextmanager
def _default(dtype: torch.dtype) -> Generator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


AROUND: dict[str, Callable[[], contextlib.AbstractContextManager[object]]] = {
    "automatic casts": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "inference mode": torch.inference_mode,
    "default float64": lambda: _default(torch.float64),
    "default bfloat16": lambda: _default(torch.bfloat16),
}
GROUPS: dict[str, Group] = {
    "rotations": Orthogonal(DIM),
    "line": LineStabiliser(DIM),
    "every map": GeneralLinear(DIM),
    "axes": Permutation(DIM),
    "heads": Blocks(GeneralLinear(4), count=4),
}


def _evidence(group: Group) -> Evidence:
    """Of rows in single precision, one axis of which is as loud as those of trained streams."""
    x = torch.randn(SAMPLES, DIM, generator=seeded(0), dtype=torch.float64) ** 3
    x[:, 3] = 100 * x[:, 3] + 300
    halves = torch.arange(SAMPLES) % 2
    problem = Problem(x.float(), group, halves, examples=torch.arange(SAMPLES) // 10)
    symmetry = symmetry_of(group, DIM)
    case = Case("site", "activations", None, (DIM,), symmetry, SAMPLES, 0, problem, {})
    return gather(case, tuple(DEFAULT.values()), FEW, seed=0)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("around", AROUND)
def test_what_is_set_around_a_call_changes_no_number(around: str, group: str) -> None:
    wanted = _evidence(GROUPS[group])
    with AROUND[around]():
        found = _evidence(GROUPS[group])
    assert found.scores.keys() == wanted.scores.keys()
    for name, score in wanted.scores.items():
        for field in ("observed", "null_mean", "null_std", "difference_error"):
            same = getattr(found.scores[name], field)
            assert same == pytest.approx(getattr(score, field), rel=1e-9, nan_ok=True), (
                name,
                field,
            )
        assert np.array_equal(found.scores[name].null_values, score.null_values)
    if wanted.orders is not None:
        assert found.orders is not None
        for order, same in zip(wanted.orders.records, found.orders.records, strict=True):
            assert same.effect == pytest.approx(order.effect, rel=1e-9, nan_ok=True)


OVERWRITING = {
    "a function": (lambda x: x.relu_(), nn.ReLU()),
    "a module": (nn.ReLU(inplace=True), nn.ReLU()),
    "a leaky one": (nn.LeakyReLU(0.1, inplace=True), nn.LeakyReLU(0.1)),
    "several": (nn.Sequential(nn.ELU(inplace=True), nn.Hardtanh(inplace=True)), None),
}


@pytest.mark.parametrize("known", ["inputs", "pre"])
@pytest.mark.parametrize("name", OVERWRITING)
def test_a_function_that_overwrites_what_it_is_given_is_as_any_other(name: str, known: str) -> None:
    overwriting, plain = OVERWRITING[name]
    plain = plain or nn.Sequential(nn.ELU(), nn.Hardtanh())
    inputs = torch.randn(SAMPLES, 8, generator=seeded(0)).double() ** 3
    weight = torch.randn(DIM, 8, generator=seeded(1)).double()
    pre = inputs @ weight.T
    given: dict[str, Tensor] = {"pre": pre} if known == "pre" else {}
    if known == "inputs":
        given = {"inputs": inputs, "weight": weight}
    before = pre.clone()
    null: bp.nulls.Null = bp.nulls.Counterfactual(frames=19)
    if known == "pre":
        null = bp.nulls.TurnedPreactivation(frames=19)
    found, wanted = (
        bp.probe_activations(
            plain(pre.clone()), group="permutation", nonlinearity=function, null=null, **given
        )
        for function in (overwriting, plain)
    )
    assert torch.equal(pre, before)
    for score, same in zip(wanted.scores.values(), found.scores.values(), strict=True):
        assert same.observed == score.observed
        assert np.array_equal(same.null_values, score.null_values)
