"""What a model remembers is as it was after passes of ours, and no thread sees another's."""

import collections
import copy
import itertools
import multiprocessing
import os
import random
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import basis_probe as bp
from basis_probe.model.precision import default_type, in_double
from basis_probe.model.state import alone, beside, drawing, kept, random_kept
from basis_probe.statistics.single_precision import full_products


class History:
    """An object of a user's own that grows."""

    def __init__(self) -> None:
        self.sums: list[float] = []
        self.last: Tensor | None = None


class Slotted:
    """An object without a dict."""

    __slots__ = ("all", "last")

    def __init__(self) -> None:
        self.last, self.all = 0, [0]


class Remembering(nn.Module):
    """Keeps something of every pass in every way that was thought of."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 3)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("replaced", torch.zeros(2))
        self.count, self.state, self.seen = 0, None, []
        self.by_name: dict[str, Any] = {"deep": {"list": [1]}}
        self.kinds: set[int] = set()
        self.history, self.array = History(), np.zeros(3)
        self.counter: collections.Counter[str] = collections.Counter()
        self.plain = torch.zeros(3)
        self.row: collections.deque[int] = collections.deque([1], maxlen=2)
        self.slotted = Slotted()
        self.bytes, self.average = bytearray(b"0"), nn.Parameter(torch.zeros(16), False)
        self.generators = [
            torch.Generator().manual_seed(0), np.random.default_rng(0), random.Random(0),
        ]  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.calls += 1
        self.replaced = torch.ones(2) * self.count
        self.state = x.sum(0) if self.state is None else self.state + x.sum(0)
        self.seen.append(len(x))
        self.by_name["deep"]["list"].append(len(x))
        self.by_name[f"new {self.count}"] = 1
        self.kinds.add(self.count)
        self.history.sums.append(float(x.sum()))
        self.history.last = x
        self.array += 1
        self.row.append(self.count)
        self.slotted.last = self.count
        self.bytes.append(48)
        with torch.no_grad():
            self.average.lerp_(x.mean().expand(16), 0.5)
        torch.rand(1, generator=self.generators[0])
        self.generators[1].random(), self.generators[2].random()
        self.slotted.all.append(self.count)
        self.counter["calls"] += 1
        self.plain.mul_(2).add_(1)
        self.extra = self.count
        random.random(), np.random.rand(), torch.rand(1)
        return self.last(self.first(x).relu())


def _memory(model: Remembering) -> list[Any]:
    return copy.deepcopy(
        [
            model.count, model.calls.tolist(), model.replaced.tolist(), model.seen, model.by_name,
            model.kinds, model.history.sums, model.array.tolist(), dict(model.counter),
            model.plain.tolist(), list(model.row), model.slotted.last, model.slotted.all,
            bytes(model.bytes), model.average.tolist(),
            model.generators[0].get_state().tolist(), model.generators[1].bit_generator.state,
            model.generators[2].getstate(),
            hasattr(model, "extra"),
            None if model.state is None else model.state.tolist(),
            None if model.history.last is None else model.history.last.tolist(),
            random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist(),
        ]
    )  # fmt: skip


DOORS: dict[str, Any] = {
    "probe": lambda m, x: bp.probe(m, [x] * 3, sites="relu()", progress=False),
    "observe": lambda m, x: bp.observe(m, [x] * 3, sites="relu()", progress=False),
    "symmetries": lambda m, x: bp.symmetries(m, x),
    "certify": lambda m, x: bp.certify(m, "relu()", x),
    "reparametrize": lambda m, x: bp.reparametrize(m, "relu()", torch.eye(16), example_input=x),
    "similarity": lambda m, x: bp.similarity(m, copy.deepcopy(m), [x] * 3, site="first"),
}


@pytest.mark.sample(default=2)
@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("before", [0, 2])
def test_everything_that_a_model_remembers_is_put_back(door: str, before: int) -> None:
    torch.manual_seed(0)
    model, x = Remembering().eval(), torch.randn(40, 8)
    for _ in range(before):
        model(x)
    was = _memory(model)
    objects = [model.seen, model.by_name, model.history, model.plain, model.calls]
    DOORS[door](model, x)
    assert _memory(model) == was
    now = [model.seen, model.by_name, model.history, model.plain, model.calls]
    assert all(a is b for a, b in zip(objects, now, strict=True))


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("rows", [1, 2, 30])
def test_inside_attach_a_model_remembers_the_users_passes_alone(rows: int) -> None:
    torch.manual_seed(0)
    model = Remembering().eval()
    twin, data = copy.deepcopy(model), [torch.randn(rows, 8) for _ in range(4)]
    alone_ = [twin(x) for x in data]
    state = random.getstate(), torch.get_rng_state()
    random.setstate(state[0])
    with bp.attach(model, sites="relu()") as probe:
        inside = [model(x) for x in data]
    assert all(map(torch.equal, alone_, inside))
    assert _memory(model)[:-3] == _memory(twin)[:-3]
    assert probe.report()["relu()"].n_samples == 4 * rows


def test_what_is_put_back_survives_an_error() -> None:
    model, x = Remembering().eval(), torch.randn(5, 8)
    was = _memory(model)[:-3]
    with pytest.raises(KeyError), kept(model):
        model(x)
        raise KeyError
    assert _memory(model)[:-3] == was


def test_a_copy_shares_weights_and_nothing_that_a_pass_changes() -> None:
    model = Remembering().eval()
    model.state = (model.first.weight * 2).sum(0)  # Computed, so that deepcopy would refuse it.
    twin = beside(model)
    assert twin.first.weight is model.first.weight
    twin(torch.randn(5, 8))
    assert model.count == 0 and model.seen == [] and model.history.sums == []


@pytest.mark.slow
def test_two_threads_are_refused_and_copies_are_not() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    started, ended = threading.Event(), threading.Event()

    def hold() -> None:
        with alone(model):
            started.set()
            ended.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    started.wait(10)
    try:
        data = [torch.randn(50, 8)]
        with pytest.raises(bp.DataError, match="another thread"):
            bp.probe(model, data, progress=False)
        assert bp.probe(copy.deepcopy(model), data, progress=False)["1"].n_samples == 50
    finally:
        ended.set()
        thread.join()
    assert bp.probe(model, data, progress=False)["1"].n_samples == 50


@pytest.mark.parametrize("one", (in_double, random_kept))
@pytest.mark.parametrize("other", (in_double, random_kept))
@pytest.mark.parametrize("nested", (False, True))
def test_the_default_type_stays_whatever_thread_ends_last(
    one: Callable[[], AbstractContextManager[None]],
    other: Callable[[], AbstractContextManager[None]],
    nested: bool,
) -> None:
    """The other thread begins within the context of this one, and ends before or after it."""
    before, begun, may_end = torch.get_default_dtype(), threading.Event(), threading.Event()
    found: list[torch.dtype] = []

    def work() -> None:
        with other():
            begun.set()
            may_end.wait(10)
            found.append(torch.get_default_dtype())

    thread = threading.Thread(target=work)
    with one():
        thread.start()
        begun.wait(10)
        if nested:
            may_end.set()
            thread.join()
        if one is in_double:
            assert torch.get_default_dtype() is torch.float64
    if not nested:
        may_end.set()
        thread.join()
    if other is in_double:
        assert found == [torch.float64]
    assert torch.get_default_dtype() is before
    assert default_type() is before


def test_numbers_of_a_seed_are_the_same_whatever_other_threads_do() -> None:
    def draw(seed: int) -> Tensor:
        with drawing(seed):
            return torch.cat([torch.randn(7) for _ in range(200)])

    def other() -> None:
        with random_kept():
            pass

    before = torch.get_rng_state()
    alone = [draw(seed) for seed in range(20)]
    with ThreadPoolExecutor(4) as pool:
        drawn = [(pool.submit(draw, seed), pool.submit(other))[0] for seed in range(20)]
        assert all(
            torch.equal(one.result(), right) for one, right in zip(drawn, alone, strict=True)
        )
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
def test_a_pass_is_not_cut_short_while_it_holds_a_lock() -> None:
    class Locked(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            if not DOOR.acquire(timeout=10):
                raise RuntimeError("the lock is held")
            out = super().forward(x)
            DOOR.release()
            return out

    model = Locked(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    data = [torch.randn(50, 8) for _ in range(4)]
    assert bp.probe(model, data, sites="1", progress=False)["1"].n_samples == 200
    assert not DOOR.locked()


DOOR = threading.Lock()


def test_what_is_too_large_to_be_kept_aside_is_said_if_it_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from basis_probe.model import state

    monkeypatch.setattr(state, "_LARGE", 0)
    model = Remembering().eval()
    with pytest.warns(UserWarning, match="it is too large to be kept aside, and was not put back"):
        bp.observe(model, [torch.randn(40, 8)], sites="relu()", progress=False)
    quiet = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bp.observe(quiet, [torch.randn(40, 8)], sites="0", progress=False)


@pytest.mark.parametrize("most", [0, 2**20])
def test_of_frozen_weights_only_so_much_is_kept_aside(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from basis_probe.model import state

    monkeypatch.setattr(state, "_FROZEN", most)
    model = nn.Linear(8, 16).requires_grad_(False)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with state.kept(model), torch.no_grad():
            model.weight.zero_()
    assert bool((model.weight == 0).all()) == (most == 0)
    assert any("too large to be kept aside" in str(one.message) for one in said) == (most == 0)


GENERATORS: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
    "torch": (lambda: torch.get_rng_state().tolist(), lambda: torch.randn(3)),
    "numpy": (lambda: str(np.random.get_state()), np.random.rand),
    "python": (random.getstate, random.random),
}


@pytest.mark.parametrize("kind", GENERATORS)
@pytest.mark.parametrize("order", [*itertools.permutations(range(3))])
def test_generators_are_where_they_were_in_whatever_order_threads_end(
    kind: str, order: tuple[int, ...]
) -> None:
    where, draw = GENERATORS[kind]
    before = where()
    may_end = [threading.Event() for _ in order]
    begun = [threading.Event() for _ in order]

    def work(place: int) -> None:
        with random_kept():
            draw()
            with random_kept():
                draw()
            begun[place].set()
            assert may_end[place].wait(20)

    threads = [threading.Thread(target=work, args=(place,)) for place in range(3)]
    for thread, inside in zip(threads, begun, strict=True):
        thread.start()
        assert inside.wait(20)
    for place in order:
        may_end[place].set()
        threads[place].join()
    assert where() == before


def test_within_a_thread_generators_go_back_one_step_at_a_time() -> None:
    with random_kept():
        first = torch.rand(1)
        with random_kept():
            second = torch.rand(1)
        assert torch.equal(torch.rand(1), second)
    assert torch.equal(torch.rand(1), first)


@pytest.mark.parametrize("part", ["whole", "inner", "sibling", "other"])
def test_models_that_share_modules_are_probed_one_at_a_time(part: str) -> None:
    inner = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    model = nn.Sequential(inner, nn.Linear(4, 2))
    models = {
        "whole": model, "inner": inner, "sibling": nn.Sequential(inner, nn.Tanh()),
        "other": copy.deepcopy(model),
    }  # fmt: skip

    def ask() -> str:
        try:
            with alone(models[part]), alone(models[part]):
                return ""
        except bp.DataError as error:
            return str(error)

    with ThreadPoolExecutor(1) as pool:
        with alone(model):
            said = pool.submit(ask).result()
        assert ("a part of it is being probed in another thread" in said) == (part != "other")
        assert pool.submit(ask).result() == ""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork")
def test_a_process_that_is_forked_beside_a_probe_has_nothing_of_it() -> None:
    """Its other threads are gone: nothing waits for them, and what they had set is put back."""
    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    inside, may_end = threading.Event(), threading.Event()
    before = torch.get_default_dtype()

    def work() -> None:
        with alone(model), drawing(0), in_double(), full_products():
            inside.set()
            may_end.wait(20)

    def there(send: Any) -> None:
        # Whatever is asked for must not wait.
        with alone(other), drawing(0), random_kept(), in_double():
            pass
        try:
            with alone(model):
                said = ""
        except bp.DataError as error:
            said = str(error)
        send.send((torch.get_default_dtype(), default_type(), said))

    thread = threading.Thread(target=work)
    thread.start()
    assert inside.wait(20)
    receive, send = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=there, args=(send,))
    process.start()
    try:
        assert receive.poll(20), "the process waits for a thread that it does not have"
        dtype, outside, said = receive.recv()
    finally:
        may_end.set()
        thread.join()
        process.kill()
        process.join()
    assert (dtype, outside) == (before, before)
    assert "was being probed when this process was forked" in said
    with in_double():
        assert default_type() is before
    assert torch.get_default_dtype() is before
