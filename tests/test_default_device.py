"""Where and of which type torch makes tensors by default changes no number, as no other mode does.

What a model makes itself is made as its user has it made.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import basis_probe as bp

ROWS = [torch.randn(150, 6, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]

LABELLED = [(x, torch.arange(len(x)) % 3) for x in ROWS]


class Noting(nn.Module):
    """Notes where a tensor is made that its code names no device for."""

    def forward(self, x: Tensor) -> Tensor:
        KINDS.append(torch.empty(1).device.type)
        return x


# What a model holds itself is put back when it was watched.
KINDS: list[str] = []


def _model(seed: int, last: nn.Module | None = None) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = (nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3))
        return nn.Sequential(*layers, last or nn.Identity()).eval()


def _attached() -> bp.Report:
    model = _model(0)
    with bp.attach(model) as probe:
        for x in ROWS:
            model(x)
    return probe.report()


def _generator() -> torch.Generator:
    return torch.Generator("cpu").manual_seed(0)


DOORS: dict[str, Callable[[], Any]] = {
    "probe": lambda: bp.probe(_model(0), ROWS, progress=False).to_json(),
    "parts": lambda: (
        (
            bp.observe(_model(0), ROWS, shard=(0, 2), progress=False)
            + bp.observe(_model(0), ROWS, shard=(1, 2), progress=False)
        )
        .report(_model(0))
        .to_json()
    ),
    "attach": lambda: _attached().to_json(),
    "probe_activations": lambda: bp.probe_activations(ROWS[0], group="orthogonal").verdict,
    "symmetries": lambda: {n: str(s.group) for n, s in bp.symmetries(_model(0), ROWS[0]).items()},
    "certify": lambda: bp.certify(_model(0), "1", ROWS[0]).holds,
    "weights_privilege": lambda: repr(bp.weights_privilege(_model(0)).rows),
    "similarity": lambda: bp.similarity(ROWS[0], ROWS[1]).similarity,
    "stiffness": lambda: bp.stiffness(_model(0), "1", ROWS, progress=False).slope,
    "stitch": lambda: repr(bp.stitch(_model(0), _model(1), "1", data=ROWS, progress=False)),
    "stitch in a group": lambda: repr(
        bp.stitch(_model(0), _model(1), "1", group="permutation", data=ROWS, progress=False)
    ),
    "attribution": lambda: bp.probe(
        _model(0),
        LABELLED,
        sites="1",
        scores=("attribution", "kurtosis"),
        progress=False,
    ).to_json(),
    "an element of a group": lambda: bp.groups.Orthogonal(4).sample(_generator()).tolist(),
    "intertwiner_group": lambda: bp.intertwiner_group("gelu", 4).sample(_generator()).tolist(),
}


@pytest.mark.sample(default=4)
@pytest.mark.parametrize("door", DOORS)
def test_numbers_do_not_depend_on_where_torch_makes_tensors(
    door: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = DOORS[door]()
    made = {seed: _model(seed) for seed in (0, 1)}
    monkeypatch.setattr(f"{__name__}._model", lambda seed: made[seed])
    torch.set_default_device("meta")
    try:
        found = DOORS[door]()
        assert torch.get_default_device().type == "meta"
    finally:
        torch.set_default_device(None)
    assert found == expected


@pytest.mark.sample(default=4)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("door", DOORS)
def test_numbers_do_not_depend_on_the_type_of_tensors_that_torch_makes(
    door: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All threads share it, and it is another while a thread proves or loads a model."""
    made = {seed: _model(seed) for seed in (0, 1)}
    monkeypatch.setattr(f"{__name__}._model", lambda seed: copy.deepcopy(made[seed]))
    expected = DOORS[door]()
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        assert DOORS[door]() == expected
        assert torch.get_default_dtype() is dtype
    finally:
        torch.set_default_dtype(before)


MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "no gradients": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
}
_RUN_MODELS = {
    "probe",
    "parts",
    "attach",
    "stiffness",
    "stitch",
    "stitch in a group",
    "attribution",
}
"""Under autocast these have other numbers, for the model has."""


@pytest.mark.sample(default=4)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("door", DOORS)
def test_numbers_do_not_depend_on_the_mode_that_a_call_is_made_in(
    door: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {seed: _model(seed) for seed in (0, 1)}
    monkeypatch.setattr(f"{__name__}._model", lambda seed: made[seed])
    expected = DOORS[door]()
    with MODES[mode]():
        found = DOORS[door]()
    assert (found == expected) or (mode == "autocast" and door in _RUN_MODELS)
    # What was computed in a mode and kept can be used outside of it.
    assert DOORS[door]() == expected


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("attached", [True, False])
def test_a_model_makes_its_tensors_where_its_user_has_it_make_them(attached: bool) -> None:
    KINDS.clear()
    model = _model(0, Noting())
    torch.set_default_device("meta")
    try:
        if attached:
            with bp.attach(model, sites="*") as probe:
                model(ROWS[0])
            probe.report()
        else:
            bp.probe(model, ROWS, sites="*", progress=False)
            bp.symmetries(model, ROWS[0])
    finally:
        torch.set_default_device(None)
    assert KINDS and set(KINDS) == {"meta"}
