"""Ctrl-C while concepts are looked for keeps the pass over the data, and what was paid for."""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from interrupted import Counted, Strikes, moments, unchanged
from torch import Tensor, nn

import basis_probe as bp

# What checks annotations draws random numbers of its own.
pytestmark = pytest.mark.usefixtures("as_shipped")

ROWS, SIZE, FRAMES = 4, 80, 19
EFFORT = bp.concepts.Effort(shuffles=12, resamples=4)
SITES = ("0", "1")


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.ReLU())


def _data() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(SIZE, 5, generator=generator) for _ in range(ROWS)]


def _labels(batch: Tensor) -> dict[str, Tensor]:
    return {"first": batch[:, 0] > 0.3, "second": batch[:, 1] > 0.0}


def _dissect(data: Any, model: nn.Module, **settings: Any) -> bp.results.Dissection:
    settings = {"sites": SITES, "frames": FRAMES, "measures": "auc"} | settings
    return bp.dissect(model, data, _labels, effort=EFFORT, progress=False, **settings)


def _axes(site: bp.results.SiteDissection) -> list[list[tuple[Any, ...]]]:
    """What the axes score by themselves, whatever they are compared with."""
    return [
        [(d.direction, d.concept, d.sign, d.fitted, d.score) for d in one.directions]
        for one in site.comparisons
    ]


def _require_kept(
    found: bp.results.Dissection, done: int, clean: Callable[[int], bp.results.Dissection]
) -> None:
    """Fails unless the dissection is one of whole batches, all that were done among them."""
    assert len(found) >= 1
    batches = found.site_dissections[0].n_samples // SIZE
    assert batches >= done
    notes = " ".join((*found.notes, *(note for site in found for note in site.notes)))
    assert "interrupted" in notes or (batches == ROWS and len(found) == len(SITES))
    for site in found:
        right = clean(batches)[site.site]
        assert site.n_samples == batches * SIZE == right.n_samples
        assert _axes(site) == _axes(right)[: len(site.comparisons)]
        for one, other in zip(site.comparisons, right.comparisons, strict=False):
            drawn = one.distinct.null_values
            assert len(drawn) == one.null.frames
            # The chance level may be of fewer shuffles, the scores of a frame are what they are.
            few = len(one.mean_best.null_values)
            assert one.mean_best.null_values == other.mean_best.null_values[:few] and few >= 1
            assert few == FRAMES or "interrupted" in notes
    if batches < ROWS:
        assert f"after {batches} batches" in notes


def _try(count: int) -> None:
    clean = functools.cache(lambda batches: _dissect(_data()[:batches], _model()))
    with Strikes() as whole:
        _dissect(_data(), _model())
    early = 0
    for at, then in moments(count, whole.calls, seed=5):
        model, data = _model(), Counted(_data())
        with unchanged(model):
            try:
                with Strikes(signal.SIGINT, at, then):
                    found = _dissect(data, model)
            except KeyboardInterrupt:
                early += 1
                assert data.done == 0, (at, then)
            else:
                _require_kept(found, min(data.done, ROWS), clean)
    assert early < count


@pytest.mark.slow
def test_a_dissection_that_is_stopped_keeps_its_pass() -> None:
    _try(2)


@pytest.mark.slow
def test_a_dissection_that_is_stopped_anywhere_keeps_its_pass() -> None:
    _try(24)


class _Acting(nn.Module):
    """Does something whenever a whole batch of a given number has passed."""

    def __init__(self, at: int, act: Callable[[], object]) -> None:
        super().__init__()
        self.layers, self.at, self.act, self.passes = _model(), at, act, 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += len(x) == SIZE
        if self.passes == self.at:
            self.act()
        return self.layers(x)


@pytest.mark.slow
def test_a_batch_that_fails_leaves_the_dissection_of_those_before_it() -> None:
    def fail() -> None:
        raise RuntimeError("the card fell out")

    sites = {"sites": "layers.1"}
    with pytest.raises(bp.StreamError, match="batch 2 failed: RuntimeError: the card") as failed:
        _dissect(_data(), _Acting(3, fail), **sites)
    found, right = failed.value.report(), _dissect(_data()[:2], _Acting(9, fail), **sites)
    assert failed.value.batches == 2 and failed.value.partial() is None
    assert found.site_dissections == right.site_dissections
    assert "The run failed after 2 batches" in found.notes[-1]
    # What is wrong from the first batch on is said as it is.
    with pytest.raises(RuntimeError, match="the card fell out"):
        _dissect(_data(), _Acting(1, fail), **sites)
    # Where labels do not fit, it is not known that those before them did.
    labels = {"first": torch.cat(_data())[: 3 * SIZE, 0] > 0}
    with pytest.raises(bp.DataError, match="labels for 0 of examples"):
        bp.dissect(_model(), _data(), labels, sites="1", progress=False)


def test_labels_of_all_data_serve_a_pass_that_is_cut_short() -> None:
    labels = {"first": torch.cat(_data())[:, 0] > 0}
    settings = {"sites": "layers.1", "frames": FRAMES, "effort": EFFORT, "progress": False}
    model = _Acting(4, lambda: signal.raise_signal(signal.SIGINT))
    found = bp.dissect(model, _data(), labels, **settings)
    assert found["layers.1"].n_samples == 3 * SIZE
    assert "It was interrupted after 3 batches, which this is of." in found.notes


def test_too_few_examples_for_a_dissection_are_an_interruption() -> None:
    batches = [batch[:4] for batch in _data()]

    def second(batch: Tensor) -> dict[str, Tensor]:
        if torch.equal(batch, batches[1]):
            signal.raise_signal(signal.SIGINT)
        return _labels(batch)

    with pytest.raises(KeyboardInterrupt, match="cannot be dissected: the samples come from 4"):
        bp.dissect(_model(), batches, second, sites="1", progress=False)


def test_a_matrix_that_is_stopped_is_compared_with_what_was_drawn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from basis_probe.concepts import comparing

    x = torch.cat(_data())
    settings = {"group": "orthogonal", "measures": "auc", "frames": FRAMES, "effort": EFFORT}
    whole = bp.dissect_activations(x, _labels(x), **settings).comparison()
    plain, calls = comparing.examine, list[int]()

    def examine(*given: Any) -> Any:
        calls.append(1)
        if len(calls) == stop:
            signal.raise_signal(signal.SIGINT)
        return plain(*given)

    monkeypatch.setattr(comparing, "examine", examine)
    stop = 5
    found = bp.dissect_activations(x, _labels(x), **settings)
    assert found.comparison().mean_best.null_values == whole.mean_best.null_values[:3]
    assert "3 of 19 alternatives of the rotation null" in found.notes[-1]
    assert "of 12 shuffles" in found.notes[-1]
    # Nothing was compared yet, and the matrix is the user's still.
    calls.clear()
    stop = 2
    with pytest.raises(KeyboardInterrupt):
        bp.dissect_activations(x, _labels(x), **settings)


def test_sparse_probes_that_are_stopped_say_so() -> None:
    settings = {"site": "layers.1", "sizes": (1,), "frames": FRAMES, "progress": False}
    quiet, stopped = (_Acting(4, act) for act in (int, lambda: signal.raise_signal(signal.SIGINT)))
    right = bp.sparse_probes(quiet, _data()[:3], _labels, **settings)
    with pytest.warns(UserWarning, match="after 3 batches, which this is of"):
        found = bp.sparse_probes(stopped, _data(), _labels, **settings)
    assert found == right


# --- explanations ---------------------------------------------------------------------------------


def _examples() -> bp.results.Examples:
    ids = torch.randint(0, 12, (60, 6), generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(12, 5), nn.ReLU())
    return bp.top_examples(model, [ids], site="1", axes=range(5), rotated=2, size=6)


class _Paid:
    """An explainer and a judge that write down what they answered."""

    def __init__(self) -> None:
        self.sentences: list[str] = []
        self.judged: list[str] = []

    def explain(self, contexts: Sequence[bp.results.Context]) -> str:
        self.sentences.append(f"sentence {len(self.sentences)}")
        return self.sentences[-1]

    def judge(self, explanation: str, contexts: Sequence[bp.results.Context]) -> list[bool]:
        self.judged.append(explanation)
        return [True] * len(contexts)


def _explain(paid: _Paid, examples: bp.results.Examples) -> bp.concepts.Explanations:
    budget = bp.concepts.Budget(wait=0.0, shown=3)
    return bp.explain(examples, paid.explain, paid.judge, budget=budget)


@pytest.mark.parametrize("count", [20, pytest.param(150, marks=pytest.mark.slow)])
def test_what_was_answered_before_an_interruption_is_returned(count: int) -> None:
    examples = _examples()
    with Strikes() as whole:
        right = _explain(_Paid(), examples)
    assert right.failed == (0, 0)
    ended = 0
    for at, then in moments(count, whole.calls, seed=6):
        paid = _Paid()
        try:
            with Strikes(signal.SIGINT, at, then):
                found = _explain(paid, examples)
        except KeyboardInterrupt:
            # What runs is not of the package: it has answered at most once.
            ended += 1
            assert len(paid.sentences) <= 1 and not paid.judged, (at, then)
            continue
        everything = [*found.axes, *found.rotated]
        assert {one.explanation for one in everything if one.explanation} >= set(
            paid.sentences[:-1]
        )
        assert {one.explanation for one in everything if one.scored} >= set(paid.judged[:-1])
        # The one that was interrupted may not have begun.
        assert 0 <= found.calls - len(paid.sentences) - len(paid.judged) <= 1
        for one, other in zip(everything, (*right.axes, *right.rotated), strict=True):
            assert one == other or "interrupted" in one.failures[-1]
    assert ended < count


def test_a_judge_that_is_interrupted_leaves_the_explanation() -> None:
    def judge(*_: object) -> list[bool]:
        raise KeyboardInterrupt

    paid = _Paid()
    found = bp.explain(_examples(), paid.explain, judge, budget=bp.concepts.Budget(wait=0.0))
    everything = [*found.axes, *found.rotated]
    assert [one.explanation for one in everything if one.explanation] == ["sentence 0"]
    assert found.calls == 2 and len(paid.sentences) == 1
    said = sorted({one.failures[-1] for one in everything})
    assert said == [
        "it was interrupted before it was answered",
        "it was interrupted before it was asked",
    ]
    with pytest.raises(KeyboardInterrupt):
        bp.explain(_examples(), judge, judge)
