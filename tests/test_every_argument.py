"""Every argument of every public function: what makes no sense is refused before a run."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import pathlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from damage import prompt, require_own
from torch import nn

import basis_probe as bp

# What checks annotations would refuse in its own words.
pytestmark = pytest.mark.usefixtures("as_shipped")

ELSEWHERE = object()
"""An argument whose values are tried in the test of another file, or that takes anything at all."""


# --- what is given --------------------------------------------------------------------------------


def _model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


def _rows() -> torch.Tensor:
    return torch.randn(80, 4, generator=torch.Generator().manual_seed(0))


class _Data:
    """Batches of which no more than the first may be read before all arguments are known."""

    def __iter__(self) -> Iterator[torch.Tensor]:
        yield _rows()
        pytest.fail("the second batch was read")


def _labels() -> dict[str, torch.Tensor]:
    return {"first": _rows()[:, 0] > 0}


class _Letters:
    """A tokenizer of three tokens."""

    def __len__(self) -> int:
        return 3

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return ["abc"[place] for place in ids]


@functools.cache
def _site() -> bp.Report:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        null = bp.nulls.Rotation(19, 8)
        settings: dict[str, Any] = {"sites": "1", "certificates": False, "progress": False}
        return bp.probe(_model(), [_rows()], null=null, **settings)


def _one_of_both(first: Any, second: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {"model_a": first(), "model_b": second(), "data": [_rows()]}


def _examples() -> bp.results.Examples:
    context = bp.results.Context((" a", "b"), (0.5, -1.0), 0, 3, 4)
    top = bp.results.TopContexts("axis 1", 1, 1, (context, context), {})
    return bp.results.Examples("1", (top,), (top,))


@functools.cache
def _partial() -> bp.Partial:
    return bp.observe(_model(), [_rows()], sites="1", null=None, progress=False)


def _scatter() -> bp.concepts.Scatter:
    return bp.concepts.Scatter.of(_rows(), torch.arange(80) % 2, 2)


def _of_data(**more: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {"model": _model(), "data": _Data(), **more}


BASE: dict[str, Callable[[], dict[str, Any]]] = {
    "ablate": _of_data(site="1"),
    "attach": lambda: {"model": _model()},
    "certify": lambda: {"model": _model(), "site": "1", "example_input": _rows()},
    "compare_axes": lambda: {"models": [_model(), _model()], "data": _Data(), "sites": "1"},
    "compare_layers": lambda: {"model": _model(), "other": _model(), "data": _Data()},
    "compare_networks": lambda: {
        "networks": {"a": _model(), "b": _model()}, "data": _Data(), "sites": "1",
    },
    "compare_reports": dict,
    "dissect": _of_data(concepts=lambda _: _labels(), sites="1", progress=False),
    "dissect_activations": lambda: {"x": _rows(), "concepts": _labels(), "group": "orthogonal"},
    "explain": lambda: {
        "examples": _examples(), "explainer": lambda _: "a", "judge": lambda *_: [True],
    },
    "export_basis": lambda: {
        "directions": torch.eye(4), "folder": "/", "hook_name": "a", "model_name": "b",
    },
    "export_neuronpedia": lambda: {
        "site": dataclasses.replace(_site().site_reports[0], examples=_examples()),
        "folder": "/", "model_name": "m",
    },
    "gathered": lambda: {"partial": _partial()},
    "intertwiner_group": lambda: {"nonlinearity": "relu", "dim": 3},
    "logit_effects": lambda: {"write": torch.eye(4), "unembed": _rows().T},
    "observe": _of_data(sites="1", progress=False),
    "probe": _of_data(sites="1", progress=False),
    "probe_activations": lambda: {"x": _rows(), "group": "orthogonal"},
    "process_group": dict,
    "rebasin": _one_of_both(_model, _model),
    "reinitialised": lambda: {"model": _model()},
    "reparametrize": lambda: {
        "model": _model(), "site": "1", "element": torch.eye(6), "example_input": _rows(),
    },
    "selectivity": lambda: {"scatter": _scatter()},
    "similarity": lambda: {"x": _rows(), "y": _rows()},
    "sparse_probes": lambda: {"x": _rows(), "concepts": _labels(), "group": "orthogonal"},
    "spotlight_resonance": lambda: {"x": _rows()},
    "stiffness": _of_data(site="1", progress=False),
    "stitch": lambda: {**_one_of_both(_model, _model)(), "site": "1"},
    "stitching_curve": lambda: {**_one_of_both(_model, _model)(), "sites": ["1"]},
    "symmetries": lambda: {"model": _model(), "example_input": _rows()},
    "top_examples": _of_data(site="1"),
    "weights_privilege": lambda: {"model_or_folder": _model()},
    "with_examples": _of_data(report=None, progress=False),
    "concepts.annotated": lambda: {"sentences": [], "tokenizer": len},
    "concepts.categories": lambda: {"values": [0, 1], "names": ["a", "b"]},
    "concepts.read_conllu": dict,
    "concepts.token_concepts": lambda: {"tokenizer": _Letters()},
    "concepts.Budget": dict,
    "concepts.Effort": dict,
    "concepts.Endpoint": lambda: {"url": "http://localhost/v1", "model": "m"},
    "bases.Given": lambda: {"directions": torch.eye(4)},
    **{f"bases.{name}": dict for name in ("Hadamard", "ICA", "PCA", "Quartimax", "Random")},
    **{f"bases.{name}": dict for name in ("Standard", "Varimax")},
    "groups.Blocks": lambda: {"inner": bp.groups.Orthogonal(2), "count": 2},
    "groups.DirectSum": lambda: {"parts": (bp.groups.Permutation(2),) * 2},
    **{
        f"groups.{name}": lambda: {"dim": 4}
        for name in (
            "GeneralLinear", "LineRotations", "LineStabiliser", "Monomial", "Orthogonal",
            "Permutation", "PlaneRotations", "Planes", "PositiveMonomial", "SignedPermutation",
            "Trivial", "Unknown",
        )
    },
    **{
        f"nulls.{name}": dict
        for name in (
            "Counterfactual", "CovariancePreserving", "GaussianSurrogate", "RandomWeights",
            "Rotation", "SparseWiring", "TurnedPreactivation",
        )
    },
}  # fmt: skip
"""Public function or value that users make -> arguments with which it makes sense."""


# --- what makes no sense --------------------------------------------------------------------------

LONG = "x" * 100_000
NOT_COUNTS = (-1, 1.5, math.nan, math.inf, True, "3", b"3", [1], 10**25, 1j, np.float64(2))
COUNTS = (0, *NOT_COUNTS, None, {}, object())
SEEDS = (1.5, math.nan, "3", None, True, 10**25, [], object(), torch.zeros(2))
FLAGS = (5, None, "yes", [], math.nan, object())
SHARES = (-1, math.nan, math.inf, "3", True, [], 1j, object())
NAMES = (5, 1.5, [5], True, object(), b"1", {5})
TEXTS = (*NAMES, None)
CHOICES = (5, 1.5, True, [], object(), "x", LONG, b"x", np.array(["a", "b"]))
FUNCTIONS = (5, "x", [], True)
MODELS = (None, 5, "x", [], nn.Linear, object())
BATCHES = (None, 5, "text", b"text", object(), True, [5], [None], [[]], [object()], [{}])
GROUPS = (5, [5], 1.5, True, object(), "x", LONG, b"orthogonal")
FRAMES = (18, *NOT_COUNTS, 0, {})
KERNELS = (5, 1.5, True, [], {}, "x", LONG)


def _odd() -> tuple[Any, ...]:
    """Tensors without plain numbers; made when needed, so that other tests do not meet them."""
    return (
        torch.zeros(40, 4, device="meta"), torch.zeros(40, 4).to_sparse(),
        torch.nested.nested_tensor([torch.zeros(2, 4), torch.zeros(3, 4)], layout=torch.jagged),
    )  # fmt: skip


def _matrices() -> tuple[Any, ...]:
    plain = (5, None, "x", [["a"]], torch.zeros(9, 4, dtype=torch.int64), {}, object())
    bad = (torch.full((40, 4), math.nan), torch.zeros(0, 4), torch.tensor(1.0))
    return (*plain, *bad, np.array([[None]]), *_odd())


def _batches() -> tuple[Any, ...]:
    return (*BATCHES, *([one] for one in _odd()))


COMMON: dict[str, Callable[[], tuple[Any, ...]]] = {
    name: lambda values=values: values
    for names, values in {
        "seed": SEEDS,
        "progress two_sided standardised complete alike": FLAGS,
        "frames": FRAMES,
        "dim rotations calls shown count size batch_size longest iterations folds neighbours": (
            COUNTS
        ),
        "turns": COUNTS,
        "every": (0, *NOT_COUNTS, {}),
        "points paths shuffles resamples retries epochs": (*NOT_COUNTS, None, {}),
        "max_samples planes": (0, *NOT_COUNTS, {}),
        "axes": (5.5, math.nan, object(), [], ["a"], [1.5], [-1], [10**25], [True], b""),
        "angles": (0, 5, *NOT_COUNTS, None),
        "site hook_name model_name label name creator_name creator_id": TEXTS,
        "sites other_sites": (5, 1.5, True, [5], [], object(), b"1", [None]),
        "null": (5, 1.5, [], True, LONG, b"rotation", {}, bp.nulls.Rotation, np.array(["a", "b"])),
        "device": (5.5, [], LONG, "cuda:" + "1" * 25, True, 10**25, object()),
        "group": GROUPS,
        "model model_a model_b": MODELS,
        "models": (None, 5, "x", [], [5, 5], nn.Linear, object(), {}, {"a": 5, "b": 6}),
        "model_or_folder": (None, 5, "", "x", "a\0b", b"x", [], nn.Linear, object(), LONG),
        "how split resolution layout scales batch_norm method pairing order estimator": CHOICES,
        "normalization": CHOICES,
        "correlation dissimilarity": (*CHOICES, None),
        "kernel": KERNELS,
        "measure measures": (5, 1.5, True, [], object(), "x", LONG, [None], b"auc"),
        "sides constant": (5, 1.5, True, [], object(), "x", LONG),
        "loss objective": FUNCTIONS,
        "explainer judge": (*FUNCTIONS, None),
        "effort": (5, "fast", [], True, LONG, b"quick", {}, object(), np.array(["full", "quick"])),
        "threshold": (math.nan, math.inf, "3", True, [], 1j, object(), 10**400),
        "top": (0, *SHARES, 2, None, LONG),
        "width share": (0, *SHARES, None),
        "cosine": (0, *SHARES, None, 0.5, 1),
        "whitening": (*SHARES, None, 1.0),
        "sparsity reward wait": (*SHARES, None),
        "learning_rate timeout": (0, *SHARES, 10**25),
        "rank": (0, *NOT_COUNTS, {}),
        "elements": (0, *NOT_COUNTS, None, 10**6),
        "examples": (5, None, "x", [5], True, object()),
        "concepts": (5, "x", [], [5], True, object()),
        "certificates": (5, "yes", [], math.nan),
        "initialisation": (5, "yes", [], math.nan, nn.Linear, object()),
        "tokenizer": (5, "gpt2", [], True),
        "categories": (5, "x", [], {}, object()),
        "budget": (5, "x", [], {}, object()),
        "samples": (5, *NOT_COUNTS, None),
        "directions": (0, *NOT_COUNTS, {}),
        "bands": (0, 1, math.nan, math.inf, "3", True, [], object()),
        "geometry": ELSEWHERE,
        "groups": (5, [5], 1.5, True, object(), b"orthogonal", LONG),
        "scores": (5, [], [5], b"kurtosis", True, LONG, [None], object()),
        "bases": (5, [], [5], True, LONG, [None], b"pca"),
        "sizes": (5, [], [0], [1.5], ["a"], "1", True, None, [10**25], object()),
        "element": (5, None, "x", [[1.0]], {}, object(), [["a"] * 6] * 6),
        "other_site": NAMES,
        "inner": (5, None, "orthogonal", [], object(), bp.groups.Orthogonal),
        "parts": (5, None, "x", [], (), (5,), ("orthogonal",), {}),
        "copies": COUNTS,
        "names": (5, None, "ab", object(), 1.5),
        "url": (5, None, "", "x", "ftp://a", "http://", LONG, b"http://a", ["http://a/v1"]),
        "key": (5, None, "a b", "a\nb", "é", b"k", []),
        "options": (5, None, "x", [], object()),
        "reference": (5, "x", True, [], nn.Linear),
        "checkpoint": (5, "", True, ["a"], b"", "/", "a\0b", LONG),
        "folder": (5, None, "", b"", [], "a\0b", object()),
        "path": (5, None, "", b"x", [], "a\0b", LONG, object(), "nowhere"),
        "memory_budget": (0, *NOT_COUNTS, {}),
        "shard": (5, (0,), (2, 2), (0.5, 2), "01", (True, 2), None, (0, 0), (0, 10**25)),
        "sentences": (5, None, "x", [], [5], object()),
        "report": (5, None, "x", [], object(), bp.Report),
        "partial": (5, None, "x", True, []),
        "reports": (5, None, "x", [], {1: 2}, {"a": 5}),
        "networks": (5, None, "x", [], {}, {"a": 5, "b": 6}),
        "scatter": (5, None, "x", [], object()),
        "nonlinearity": (5, None, "x", [], LONG, object()),
        "rotated": (*NOT_COUNTS, None),
        "other": MODELS,
    }.items()
    for name in names.split()
}
COMMON |= dict.fromkeys(("data", "held_out", "other_data"), _batches)
COMMON |= dict.fromkeys(("x", "y", "pre", "inputs", "weight", "write", "unembed"), _matrices)
COMMON["example_input"] = lambda: (5, object(), [5], [None], {}, *_odd())
COMMON["bias"] = COMMON["gain"] = lambda: (5, "x", {}, torch.zeros(9), object(), ["a"], *_odd())
COMMON["mask"] = COMMON["counts"] = lambda: (5, "x", {}, object(), torch.zeros(9), *_odd())
COMMON["values"] = lambda: (None, "x", [1.5], {}, object(), ["a"], *_odd())

OWN: dict[str, Callable[[], tuple[Any, ...]] | object] = {
    # They are shown beside each other, and no p-value rests on them.
    "logit_effects.frames": lambda: COUNTS,
    "selectivity.frames": lambda: COUNTS,
    # None for none; which ones are missing is said where others are given.
    **{
        f"{name}.{argument}": lambda: (5, "x", {}, object(), torch.zeros(9, 4), *_odd())
        for name in ("probe_activations", "dissect_activations", "sparse_probes")
        for argument in ("pre", "inputs", "weight")
    },
    "stitch.held_out": lambda: tuple(value for value in _batches() if value is not None),
    "compare_layers.other_data": lambda: tuple(v for v in _batches() if v is not None),
    "probe.examples": lambda: (*NOT_COUNTS, None),
    "probe_activations.examples": lambda: (5, "x", {}, object(), torch.zeros(9), *_odd()),
    "dissect_activations.examples": lambda: (5, "x", {}, object(), torch.zeros(9), *_odd()),
    "sparse_probes.examples": lambda: (5, "x", {}, object(), torch.zeros(9), *_odd()),
    "sparse_probes.labels": ELSEWHERE,
    "sparse_probes.site": ELSEWHERE,
    "sparse_probes.device": ELSEWHERE,
    "sparse_probes.max_samples": ELSEWHERE,
    "sparse_probes.progress": ELSEWHERE,
    "similarity.data": ELSEWHERE,
    "similarity.other_data": ELSEWHERE,
    # Places belong to models, and matrices were given.
    "similarity.site": lambda: ("x", *NAMES),
    "compare_layers.group": lambda: (5, [5], 1.5, True, object(), b"orthogonal"),
    # It is read when the model runs.
    "attach.example_input": ELSEWHERE,
    "attach.optimizer": (0, "x", True, [], nn.Linear),
    "compare_networks.sites": lambda: (5, 1.5, [5], object(), {"a": 5, "b": 5}, None),
    "top_examples.concepts": lambda: (5, "x", [], [5], True),
    "top_examples.size": COMMON["size"],
    "dissect.groups": COMMON["groups"],
    "stitching_curve.groups": lambda: (5, None, "orthogonal", [5], [], object(), [LONG]),
    "stitching_curve.sites": lambda: (5, 1.5, True, [5], [], object(), [None], b"1"),
    "bases.Given.directions": lambda: (5, None, "x", torch.zeros(4, 4), object(), *_odd()),
    "export_basis.directions": _matrices,
    "export_neuronpedia.site": lambda: (5, None, "1", [], {}, object(), _site()),
    "probe_activations.x": ELSEWHERE,
    "probe_activations.nonlinearity": lambda: (5, [], object()),
    "dissect_activations.nonlinearity": lambda: (5, [], object()),
    "sparse_probes.nonlinearity": lambda: (5, [], object()),
    "concepts.Endpoint.model": lambda: (5, None, [], b"m", object()),
    "concepts.annotated.tokenizer": lambda: (5, None, "x"),
    "concepts.token_concepts.tokenizer": lambda: (5, None, "x"),
}
"""Arguments that are meant otherwise than their name is elsewhere."""


def _found(name: str) -> Any:
    value: Any = bp
    for part in name.split("."):
        value = getattr(value, part)
    return value


def _public() -> Iterator[str]:
    """Public functions, and values that users make."""
    for space in ("", "groups", "nulls", "bases", "concepts", "compare", "results", "scores"):
        home = getattr(bp, space) if space else bp
        for name in dir(home):
            value = getattr(home, name)
            full = f"{space}.{name}" if space else name
            kinds = {"groups": bp.groups.Group, "nulls": bp.nulls.Null, "bases": bp.bases.Candidate}
            made = isinstance(value, type) and issubclass(value, kinds.get(space, ()))
            if inspect.isfunction(value) or (made and not inspect.isabstract(value)):
                yield full
    yield from ("concepts.Budget", "concepts.Effort", "concepts.Endpoint")


def _arguments() -> Iterator[tuple[str, str]]:
    for name in BASE:
        for argument in inspect.signature(_found(name)).parameters.values():
            if argument.kind not in (argument.VAR_KEYWORD, argument.VAR_POSITIONAL):
                yield name, argument.name


def _values(name: str, argument: str) -> tuple[Any, ...] | None:
    """What an argument refuses; None where that is tried elsewhere."""
    made = OWN.get(f"{name}.{argument}", COMMON.get(argument))
    if made is None:
        raise LookupError(f"{name} has an argument {argument!r} that no test tries")
    if made is ELSEWHERE:
        return None
    values = made() if callable(made) else made
    return None if values is ELSEWHERE else values


def test_the_table_holds_every_argument() -> None:
    assert sorted(_public()) == sorted(BASE)
    for name, argument in _arguments():
        _values(name, argument)
    known = {argument for _, argument in _arguments()}
    assert set(COMMON) <= known
    assert {key for key in OWN if tuple(key.rsplit(".", 1)) not in set(_arguments())} == set()


def _require_refused(name: str, given: Mapping[str, Any], what: str) -> None:
    """Fails unless the package refuses the arguments by itself, in little time."""
    function = _found(name)
    positional = [
        argument.name
        for argument in inspect.signature(function).parameters.values()
        if argument.kind is argument.POSITIONAL_ONLY and argument.name in given
    ]
    first = [given[argument] for argument in positional]
    rest = {argument: value for argument, value in given.items() if argument not in positional}
    with prompt(0), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = function(*first, **rest)
        except (ValueError, TypeError, OSError) as error:
            assert not isinstance(error, bp.StreamError), what
            try:
                require_own(error)
            except AssertionError as wrong:
                raise AssertionError(f"{what}: {wrong}") from error
            return
    pytest.fail(f"{what} was accepted: {str(found)[:100]}")


def _name(value: Any) -> str:
    try:
        return f"{type(value).__name__} {str(value)[:40]}"
    except Exception:
        return type(value).__name__


@pytest.mark.sample(default=5)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", BASE)
def test_what_makes_no_sense_is_refused(name: str, tmp_path: pathlib.Path) -> None:
    if name == "with_examples":
        BASE["with_examples"] = _of_data(report=_site(), progress=False)
    wrong: list[str] = []
    for argument in (argument for owner, argument in _arguments() if owner == name):
        for value in _values(name, argument) or ():
            given = BASE[name]() | {argument: value}
            if "folder" in given and argument != "folder":
                given["folder"] = tmp_path
            try:
                _require_refused(name, given, f"{argument}={_name(value)}")
            except (AssertionError, pytest.fail.Exception) as failed:
                wrong.append(str(failed)[:300])
            except Exception as failed:
                wrong.append(f"{argument}={_name(value)}: {type(failed).__name__}: {failed!s:.200}")
    assert not wrong, "\n".join(wrong)


def test_names_may_stand_for_members() -> None:
    x, labels = _rows(), {"first": _rows()[:, 0] > 0}
    settings: dict[str, Any] = {"group": "orthogonal", "measures": "auc", "frames": 19}
    effort = bp.concepts.Effort(shuffles=3, resamples=0)
    named = bp.dissect_activations(
        x, labels, split="none", sides="positive", effort=effort, **settings
    )
    meant = bp.dissect_activations(
        x, labels, split=bp.concepts.Split.NONE, sides=bp.concepts.Sides.POSITIVE, effort=effort,
        **settings,
    )  # fmt: skip
    halves = bp.dissect_activations(x, labels, effort=effort, **settings)
    assert named == meant != halves
