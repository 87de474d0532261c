"""What a site needs is let go before the next one is compared."""

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import nn

import basis_probe as bp
from basis_probe.algebra import remembered
from basis_probe.evidence import site
from basis_probe.run import report as concluding

NULL = bp.nulls.Counterfactual(frames=19)


def _model(layers: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(part for _ in range(layers) for part in (nn.Linear(16, 16), nn.GELU())))


@pytest.mark.slow
def test_samples_are_let_go_site_by_site(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[int] = []
    problems: list[weakref.ref[Any]] = []
    measure = site.measure

    def watched(problem: Any, *given: Any, **named: Any) -> Any:
        problems.append(weakref.ref(problem.x))
        gc.collect()
        alive.append(len({id(one()) for one in problems if one() is not None}))
        return measure(problem, *given, **named)

    monkeypatch.setattr(site, "measure", watched)
    monkeypatch.setattr(concluding.Concluding, "_workers", lambda self: 1)
    data = [torch.randn(240, 16, generator=torch.Generator().manual_seed(0))]
    report = bp.probe(_model(5), data, null=NULL, progress=False)
    assert len(report) == 5
    # A site may be measured on its samples and on some of them.
    assert len(alive) >= 5
    assert max(alive) <= 2


def test_turns_are_drawn_once_in_a_run_and_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    kept = remembered.remembered

    def counted(generator: torch.Generator, kind: object, make: Any) -> Any:
        def making() -> Any:
            made.append(kind)
            return make()

        return kept(generator, kind, making)

    monkeypatch.setattr("basis_probe.algebra.haar.remembered", counted)
    monkeypatch.setattr(concluding.Concluding, "_workers", lambda self: 1)
    data = [torch.randn(240, 16, generator=torch.Generator().manual_seed(0))]
    several = []
    for layers in (2, 4):
        made.clear()
        several.append((bp.probe(_model(layers), data, null=NULL, progress=False), len(made)))
    (few, first), (many, second) = several
    assert len(many) > len(few)
    assert first == second > 0
    assert not remembered._kept
    # And nothing is another number for it.
    monkeypatch.setattr("basis_probe.algebra.haar.remembered", lambda g, kind, make: make())
    again = bp.probe(_model(4), data, null=NULL, progress=False)
    assert [site.scores for site in again] == [site.scores for site in many]
