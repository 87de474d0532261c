"""What is not what it should be is refused at once, in our own words; one table says what."""

from __future__ import annotations

import math
import pathlib
import time
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import basis_probe as bp
from basis_probe.arguments import flag, number, several, texts, whole

HOME = str(pathlib.Path(bp.__file__).parent)

NO_COUNT = (-1, 1.5, math.nan, math.inf, True, "3", b"3", [], [1], 10**25, np.float64(2), 1j)
LONG = "x" * 1_000_000

BAD: dict[str, tuple[Any, ...]] = {
    "seed": (1.5, math.nan, "3", None, True, 10**25, [], torch.tensor([1, 2])),
    "max_samples": (0, *NO_COUNT, torch.tensor([1, 2])),
    "effort": (5, "fast", None, [], True, LONG, b"quick", torch.tensor([1, 2])),
    "paths": (None, *NO_COUNT),
    "examples": (None, *NO_COUNT),
    "memory_budget": (0, *NO_COUNT, "1GB"),
    "sites": (5, [], [5], b"x", True, LONG, [None], object(), [["1"]]),
    "scores": (5, [], [5], b"kurtosis", True, LONG, [None], [[]], object()),
    "null": (5, [], True, LONG, b"rotation", {}, bp.nulls.Rotation),
    "groups": (5, [5], {"1": 5}, {5: "orthogonal"}, LONG, True, {"1": None}, {"1": LONG}),
    "bases": (5, [], [5], True, LONG, [None], b"pca", [[]]),
    "device": (5.5, [], LONG, "cuda:10000000000000000000000000", True),
    "certificates": (5, "yes", [], math.nan),
    "progress": (None, "no", 2, []),
    "checkpoint": (5, "", True, ["a"], b"", "/", "a\0b", LONG),
    "reference": (5, "x", True, [], nn.Linear),
    "tokenizer": (5, "gpt2", [], True),
}
"""Argument of `probe` -> what it refuses."""


def _data() -> tuple[Any, ...]:
    """What no data are; made when it is needed, so that other tests do not meet it."""
    return (
        None, 5, "text", b"text", object(), True, [5], [None], [[]], [object()], [True], [b"x"],
        [torch.zeros(3, 8, device="meta")], [torch.zeros(3, 8).to_sparse()], torch.tensor(1.0),
        [torch.nested.nested_tensor([torch.zeros(2, 8), torch.zeros(3, 8)], layout=torch.jagged)],
        [np.array(["a"], dtype=object)], [torch.zeros(0, 8)],
        [torch.zeros(3, 8, dtype=torch.complex64)], [torch.zeros(3, 8, dtype=torch.bool)], [{}],
        [{"x": None}], [{1: torch.zeros(3, 8)}],
    )  # fmt: skip


SHARDS: tuple[Any, ...] = (5, (0,), (2, 2), (0.5, 2), "01", (True, 2), None, (0, 0), (0, 10**25))


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3))


def _refused(call: Callable[[], object], *words: str) -> None:
    """The call is refused by the package itself, about one of the words, in little time."""
    start = time.monotonic()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = call()
    except (ValueError, TypeError, OSError) as error:
        message, last = str(error), traceback.extract_tb(error.__traceback__)[-1]
        assert last.filename.startswith(HOME), f"{last.filename}: {message[:200]}"
        assert any(word in message for word in words), message[:300]
        assert len(message) < 10_000
        assert time.monotonic() - start < 5
    else:
        pytest.fail(f"accepted: {str(found)[:100]}")


CASES = [(name, value) for name, values in BAD.items() for value in values]


@pytest.mark.parametrize(
    ("name", "value"), CASES, ids=[f"{n}-{i}" for i, (n, _) in enumerate(CASES)]
)
def test_probe_refuses(name: str, value: Any) -> None:
    data = [torch.randn(60, 8, generator=torch.Generator().manual_seed(0))]
    settings: dict[str, Any] = {"certificates": False, "progress": False, name: value}
    words = {
        "checkpoint": ("checkpoint", "file", "folder", "written"),
        "groups": ("group",),
        "sites": ("site",),
        "scores": ("score",),
        "bases": ("bas",),
    }
    _refused(lambda: bp.probe(_model(), data, **settings), *words.get(name, (name,)), "a string")


@pytest.mark.parametrize("which", range(len(_data())))
def test_probe_refuses_what_no_data_are(which: int) -> None:
    data = _data()[which]
    _refused(lambda: bp.probe(_model(), data, progress=False), "data", "batch")


@pytest.mark.parametrize("shard", SHARDS, ids=range(len(SHARDS)))
def test_observe_refuses_what_no_shard_is(shard: Any) -> None:
    data = [torch.zeros(60, 8)]
    _refused(lambda: bp.observe(_model(), data, shard=shard, progress=False), "shard")


@pytest.mark.parametrize(
    "door",
    [
        lambda **s: bp.observe(_model(), [torch.zeros(60, 8)], progress=False, **s),
        lambda **s: bp.attach(_model(), **s),
        lambda **s: bp.probe_activations(torch.randn(60, 8), **s),
    ],
    ids=["observe", "attach", "probe_activations"],
)
@pytest.mark.parametrize("name", ["seed", "null"])
def test_every_door_refuses_alike(door: Any, name: str) -> None:
    for value in BAD[name]:
        _refused(lambda value=value: door(**{name: value}), name)


def _x() -> tuple[Any, ...]:
    return (
        None, 5, "x", [[1.0, 2.0]], torch.zeros(9, 4, dtype=torch.int64),
        torch.zeros(9, 4).to_sparse(),
        torch.zeros(9, 4, device="meta"), np.array([["a"]]), np.array([[None]]), torch.tensor(1.0),
        torch.nested.nested_tensor([torch.zeros(2, 4), torch.zeros(3, 4)], layout=torch.jagged),
        torch.full((9, 4), math.nan), torch.zeros(0, 4), torch.zeros(9, 0), {},
        np.zeros((9, 4), "M8[s]"),
    )  # fmt: skip


@pytest.mark.parametrize("which", range(len(_x())))
def test_probe_activations_refuses_what_no_activations_are(which: int) -> None:
    x = _x()[which]
    _refused(lambda: bp.probe_activations(x, group="orthogonal"), "x ", "activations")


@pytest.mark.slow
def test_numbers_of_numpy_and_torch_are_numbers() -> None:
    data = [torch.randn(300, 8, generator=torch.Generator().manual_seed(0))]

    def run(kind: Callable[[int], Any]) -> bp.Report:
        settings = {"seed": kind(3), "max_samples": kind(250), "paths": kind(0)}
        return bp.probe(_model(), data, sites="1", progress=False, certificates=False, **settings)

    plain = run(int)
    for kind in (np.int64, np.uint8, torch.tensor, lambda n: np.array(n)):
        assert run(kind).site_reports == plain.site_reports


def test_the_checks_say_what_is_needed() -> None:
    for call, words in (
        (lambda: whole("n", 1.0), "n=1.0: give a whole number of at least 0"),
        (lambda: whole("n", 0, least=1, else_=", or None"), "above zero, or None"),
        (lambda: whole("n", 9, most=8), "from 0 to 8"),
        (lambda: number("t", "1"), "t='1': give a number above 0"),
        (lambda: number("t", 2, most=1), "at most 1"),
        (lambda: flag("f", 1), "f=1: give True or False"),
        (lambda: flag("f", 1, unknown=True), "or None to leave it open"),
        (lambda: several("s", (), "names"), "s is empty: give names"),
        (lambda: texts("s", ["a", 1], "names"), "s holds 1: give names"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    assert (number("t", np.float32(2)), flag("f", np.bool_(True)), texts("s", "a", "names")) == (
        2.0, True, ("a",),
    )  # fmt: skip


@pytest.mark.parametrize("name", ["frames", "samples", "directions"])
def test_a_null_refuses_what_no_number_is(name: str) -> None:
    for value in (19.5, math.nan, math.inf, "19", True, [], 10**25):
        _refused(lambda value=value: bp.nulls.Rotation(**{name: value}), name)
    assert repr(bp.nulls.Rotation(**{name: np.int64(64)})) == repr(bp.nulls.Rotation(**{name: 64}))
