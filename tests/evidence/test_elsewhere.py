"""Rows that lie on an accelerator are compared there, with the numbers of the CPU."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import geometries
import numpy as np
import pytest
import torch
from draws import seeded
from elsewhere import DEVICE, Elsewhere, MixedDevices
from torch import Tensor, nn

import basis_probe as bp
from basis_probe.algebra.groups import (
    Blocks,
    GeneralLinear,
    Group,
    Orthogonal,
    Permutation,
)
from basis_probe.evidence import site
from basis_probe.evidence.bounds import bound
from basis_probe.evidence.measure import Compared, choose, measure
from basis_probe.evidence.orders import orders
from basis_probe.run import report as concluding
from basis_probe.statistics.nulls import (
    CovariancePreserving,
    GaussianSurrogate,
    Geometry,
    LinearLayer,
    Null,
    Problem,
    SparseWiring,
)
from basis_probe.statistics.scores import DEFAULT, Score

ROWS, DIM = 240, 12
SCORES: tuple[Score, ...] = tuple(DEFAULT.values())

GROUPS = geometries.groups(DIM)


@pytest.fixture
def away() -> Iterator[Elsewhere]:
    with Elsewhere() as mode:
        yield mode


def _rows(width: int = DIM, seed: int = 0, *, single: bool = True) -> Tensor:
    x = torch.randn(ROWS, width, generator=seeded(seed), dtype=torch.float64) ** 3
    x = x * torch.logspace(0, 1, width, dtype=torch.float64)
    return x.float() if single else x


def _problem(group: Group, **settings: Any) -> Problem:
    x = settings.pop("x", None)
    return Problem(
        x=_rows(group.dim) if x is None else x,
        group=group,
        halves=torch.randint(2, (ROWS,), generator=seeded(1)),
        examples=torch.arange(ROWS) // 8,
        **settings,
    )


def _layer(geometry: Geometry, *, positions: int = 1, sparse: bool = False) -> Problem:
    inputs = torch.randn(ROWS, 6, positions, generator=seeded(2))
    weight = torch.randn(DIM, 6, positions, generator=seeded(3))
    if sparse:
        weight = weight * (torch.rand(DIM, 6, positions, generator=seeded(5)) < 0.4)
    norm = nn.BatchNorm1d(DIM).eval()
    with torch.no_grad():
        norm.weight.copy_(torch.rand(DIM, generator=seeded(4)) + 0.5)

    def pre(outputs: tuple[Tensor, ...]) -> Tensor:
        given = outputs[0]
        return given * norm.weight.detach().to(given)

    layer = LinearLayer(
        inputs,
        (weight,),
        (torch.randn(DIM, generator=seeded(6)),),
        pre=pre,
        post=lambda outputs: pre(outputs).relu(),
        geometry=geometry,
        centred=False,
    )
    return _problem(Permutation(DIM), x=layer.post(layer.outputs), layer=layer)


PROBLEMS: dict[str, Callable[[], Problem]] = {
    **{name: (lambda group=group: _problem(group)) for name, group in GROUPS.items()},
    "in double precision": lambda: _problem(Orthogonal(DIM), x=_rows(single=False)),
    "wide": lambda: _problem(Orthogonal(300), x=_rows(300)),
    "wide heads": lambda: _problem(Blocks(GeneralLinear(32), 8), x=_rows(256)),
    "still axes": lambda: _problem(Orthogonal(DIM), x=_rows() * (torch.arange(DIM) > 3)),
    "neurons": lambda: _layer(Geometry.EUCLIDEAN),
    "neurons between scales": lambda: _layer(Geometry.BALANCED),
    "neurons behind every map": lambda: _layer(Geometry.POLAR),
    "neurons of windows": lambda: _layer(Geometry.EUCLIDEAN, positions=3),
    "neurons with few weights": lambda: _layer(Geometry.BALANCED, sparse=True),
    "neurons by what is before them": lambda: _problem(
        Permutation(DIM), x=_rows().relu(), pre=_rows(), nonlinearity=torch.relu
    ),
}
NULLS: dict[str, Null] = {
    "covariance": CovariancePreserving(frames=19, samples=ROWS),
    "gaussian": GaussianSurrogate(frames=19, samples=ROWS),
    "sparse": SparseWiring(frames=19, samples=ROWS),
}


def _same(found: Compared, wanted: Compared) -> None:
    assert found.scores.keys() == wanted.scores.keys()
    for name, score in wanted.scores.items():
        for field in dataclasses.fields(score):
            one, other = getattr(found.scores[name], field.name), getattr(score, field.name)
            if isinstance(other, np.ndarray):
                np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-8, err_msg=field.name)
            elif isinstance(other, float):
                assert one == pytest.approx(other, rel=1e-5, abs=1e-8, nan_ok=True), field.name
    assert found.record == wanted.record


@pytest.mark.sample(default=2)
@pytest.mark.parametrize("directions", [None, 5])
@pytest.mark.parametrize("name", PROBLEMS)
def test_what_is_compared_elsewhere_has_the_numbers_of_the_cpu(
    name: str, directions: int | None, away: Elsewhere
) -> None:
    home = PROBLEMS[name]()
    moved = home.to(DEVICE)
    assert moved.x.device == DEVICE
    found: list[Any] = []
    for problem in (home, moved):
        choice = choose(problem)
        size = {"frames": 25, "samples": ROWS, "directions": directions}
        choice = dataclasses.replace(choice, null=dataclasses.replace(choice.null, **size))
        made = measure(problem, choice, SCORES, seed=0)
        found.append(
            (
                made,
                orders(problem, made.scores, choice.null, seed=0),
                bound(problem, choice.null, distinct=ROWS, seed=0),
            )
        )
    _same(found[1][0], found[0][0])
    for one, other in zip(found[1][1:], found[0][1:], strict=True):
        assert repr(one) == repr(other)
    assert away.waits > 0


@pytest.mark.parametrize("null", NULLS)
def test_nulls_that_are_asked_for_are_drawn_elsewhere_too(null: str, away: Elsewhere) -> None:
    home = _layer(Geometry.EUCLIDEAN)
    found = [
        measure(problem, choose(problem, NULLS[null]), SCORES, seed=0)
        for problem in (home, home.to(DEVICE))
    ]
    _same(found[1], found[0])


class _Network(nn.Module):
    """A stream, heads that only linear maps make, and neurons, one behind the other."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, DIM)
        self.up, self.down = nn.Linear(DIM, 20), nn.Linear(20, DIM)
        self.norm = nn.LayerNorm(DIM, elementwise_affine=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        return self.norm(x + self.down(torch.relu(self.up(self.norm(x)))))


def _report(
    monkeypatch: pytest.MonkeyPatch, device: torch.device | None, **settings: Any
) -> bp.Report:
    torch.manual_seed(0)
    model = _Network().eval()
    data = [torch.randint(20, (6, 8), generator=seeded(seed)) for seed in range(6)]
    if device is not None:
        own = concluding.gather
        there = functools.partial(_gathered_at, own, device)
        monkeypatch.setattr(concluding, "gather", there)
    return bp.probe(model, data, progress=False, **settings)


def _gathered_at(own: Any, there: torch.device, *args: Any, **settings: Any) -> Any:
    return own(*args, **{**settings, "device": there})


@pytest.mark.slow
def test_a_whole_report_made_elsewhere_is_that_of_the_cpu(
    away: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"bases": ["pca", "random"], "paths": 1}
    home = _report(monkeypatch, None, **settings)
    seen: list[torch.device] = []
    own = site.measure

    def watched(problem: Problem, *args: Any, **more: Any) -> Compared:
        seen.append(problem.x.device)
        return own(problem, *args, **more)

    monkeypatch.setattr(site, "measure", watched)
    found = _report(monkeypatch, DEVICE, **settings)
    assert set(seen) == {DEVICE}
    for one, other in zip(found, home, strict=True):
        assert one.verdict.outcome is other.verdict.outcome
        for name, score in other.scores.items():
            assert one.scores[name].effect == pytest.approx(score.effect, rel=1e-5, nan_ok=True)


def test_a_site_for_which_a_device_has_no_room_is_compared_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = site.measure
    failed: list[int] = []

    def full(problem: Problem, *args: Any, **more: Any) -> Compared:
        if problem.x.device.type == "meta":
            failed.append(1)
            raise torch.OutOfMemoryError("no room")
        return own(problem, *args, **more)

    monkeypatch.setattr(site, "measure", full)
    monkeypatch.setattr(site, "_DOUBLE", ("cpu", "meta"))
    found = _report(monkeypatch, torch.device("meta"))
    assert failed and all(one.scores for one in found if one.null is not None)


def test_tensors_of_two_devices_do_not_meet(away: Elsewhere) -> None:
    x = torch.randn(4, 3)
    there = away.send(x)
    for mixed in (lambda: there @ x.T, lambda: x[there[:, 0] > 0], lambda: torch.cat([x, there])):
        with pytest.raises(MixedDevices):
            mixed()
    assert there[torch.tensor([1])].device == (there + 1.0).device == DEVICE
