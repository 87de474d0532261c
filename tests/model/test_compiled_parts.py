"""What torch compiles in a model runs as it is written, and nothing is compiled to watch it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import basis_probe as bp

# To load the compiler takes seconds, and it warns of what it meets in its own code.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

DATA = [torch.randn(150, 6, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]


class Counting:
    """A compiler that counts what it is given, and changes nothing."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: Any, _example: object) -> Any:
        self.graphs += 1
        return graph.forward


class Block(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor] = nn.functional.gelu) -> None:
        super().__init__()
        self.up, self.down, self.function = nn.Linear(6, 10), nn.Linear(10, 6), function

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.function(self.up(x)))


def _network(function: Callable[[Tensor], Tensor] = nn.functional.gelu) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 6), Block(function), Block(function), nn.Linear(6, 3)).eval()


def _parts_in_place(compiler: Counting) -> nn.Module:
    model = _network()
    for part in model:
        part.compile(backend=compiler)
    return model


def _in_place(compiler: Counting) -> nn.Module:
    model = _network()
    model.compile(backend=compiler)
    return model


def _function(compiler: Counting) -> nn.Module:
    return _network(torch.compile(nn.functional.gelu, backend=compiler))


WAYS = pytest.mark.parametrize("way", [_parts_in_place, _in_place, _function])


def _attached(model: nn.Module) -> bp.Report:
    with torch.no_grad(), bp.attach(model) as probe:
        for x in DATA:
            model(x)
    return probe.report()


def _run(model: nn.Module) -> None:
    with torch.no_grad():
        model(DATA[0])


def _probed(model: nn.Module) -> bp.Report:
    return bp.probe(model, DATA, progress=False)


def _numbers(report: bp.Report) -> list[Any]:
    return [
        (site.site, site.symmetry.group, site.verdict.outcome, score.observed, score.effect)
        for site in report.site_reports
        for score in site.scores.values()
    ]


@WAYS
def test_nothing_is_compiled_to_watch_a_model_and_the_numbers_are_those_of_its_own_code(
    way: Callable[[Counting], nn.Module],
) -> None:
    compiler = Counting()
    model = way(compiler)
    _run(model)
    before = compiler.graphs
    assert before, "nothing was compiled, so nothing is tried here"
    for door in (_probed, _attached):
        found = door(model)
        assert compiler.graphs == before
        assert _numbers(found) == _numbers(door(_network()))


@WAYS
def test_a_model_is_compiled_again_once_it_was_watched(
    way: Callable[[Counting], nn.Module],
) -> None:
    compiler = Counting()
    model = way(compiler)
    held = [part.__dict__.get("_compiled_call_impl") for part in model.modules()]
    _attached(model)
    _probed(model)
    assert not compiler.graphs
    assert [part.__dict__.get("_compiled_call_impl") for part in model.modules()] == held
    _run(model)
    assert compiler.graphs


def test_threads_that_watch_at_the_same_time_leave_the_compiler_as_it_was() -> None:
    compiler = Counting()
    together = threading.Barrier(3)
    models = [_function(compiler) for _ in range(3)]

    def work(place: int) -> None:
        together.wait()
        for _ in range(place + 1):
            _attached(models[place])

    threads = [threading.Thread(target=work, args=(place,)) for place in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not compiler.graphs
    _run(models[0])
    assert compiler.graphs
