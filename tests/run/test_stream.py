"""One pass keeps sums that add and a sample that fits: nothing of it grows with the data."""

from __future__ import annotations

import dataclasses
import gc
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from basis_probe.model.batches import Batch
from basis_probe.model.graph import Layout
from basis_probe.model.linear_layer import Convolution
from basis_probe.model.places import Address, Place
from basis_probe.run.stream import Keeper, Plan, Seen, Stream
from basis_probe.statistics.moments import Moments, SampleKurtosis
from tests.draws import seeded

CAPACITY = 32


class Drift(nn.Module):
    """Hands on what it is given, with an offset that grows from batch to batch."""

    def __init__(self) -> None:
        super().__init__()
        self.out, self.side = nn.Identity(), nn.Identity()
        self.runs = True

    def forward(self, x: Tensor) -> Tensor:
        self.side(2 * x)
        return self.out(x) if self.runs else x


def _plan(path: str = "out", dim: int = 3, **settings: Any) -> Plan:
    return Plan(address=Address(Place.OUTPUT, path), layout=None, dim=dim, **settings)


def _batch(x: Tensor, mask: Tensor | None = None) -> Batch:
    return Batch((x,), {}, x, mask, "a tensor")


def _streamed(
    batches: list[Tensor], *, most: int | None = None, model: Drift | None = None, **plan: Any
) -> Stream:
    model = model or Drift()
    stream = Stream({"site": _plan(**plan)}, seed=0, capacity=CAPACITY, most=most)
    for x in batches:
        stream.see(model, _batch(x), lambda x=x: model(x))
    return stream


def _drifting(count: int = 20, rows: int = 50) -> list[Tensor]:
    """Heavy-tailed rows far from zero, whose mean and spread change from batch to batch."""
    generator = torch.Generator().manual_seed(0)
    made: list[Tensor] = []
    for number in range(count):
        z = torch.randn(rows, 3, generator=generator, dtype=torch.float64)
        made.append(1e3 + 20.0 * number + (1 + number) * z**3)
    return made


def test_sums_over_a_drifting_stream_are_those_of_two_passes() -> None:
    batches = _drifting()
    seen = _streamed(batches).seen["site"]
    x = torch.cat(batches)
    d = x - x.mean(0)
    assert seen.moments.count == len(x)
    for found, truth in (
        (seen.moments.mean, x.mean(0)),
        (seen.moments.variance, d.square().mean(0)),
        (seen.moments.kurtosis, d.pow(4).mean(0) / d.square().mean(0).square()),
        (seen.kurtosis.mean, (3 * x.pow(4).sum(1) / x.square().sum(1).square()).mean()),
    ):
        torch.testing.assert_close(torch.as_tensor(found), truth, rtol=1e-10, atol=0)


def test_a_variance_merged_wrongly_would_be_noticed() -> None:
    # The average of the batches' variances leaves the drift out.
    batches = _drifting()
    wrong = torch.stack([x.var(0, correction=0) for x in batches]).mean(0)
    right = _streamed(batches).seen["site"].moments.variance
    assert bool(((right - wrong) / right > 0.05).all())


@pytest.mark.sample(default=2)
@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_batches_may_be_cut_and_ordered_at_will(size: int) -> None:
    x = torch.cat(_drifting(12, rows=5))
    whole = _streamed([x]).seen["site"]
    shuffled = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(1))]
    for rows in (x, shuffled):
        seen = _streamed(list(rows.split(size))).seen["site"]
        torch.testing.assert_close(seen.moments.kurtosis, whole.moments.kurtosis, rtol=1e-9, atol=0)
        assert torch.equal(seen.kept.priorities, whole.kept.priorities)
        assert torch.equal(seen.kept.rows["x"], whole.kept.rows["x"])


@pytest.mark.slow
def test_the_kept_rows_are_a_uniform_sample_of_all() -> None:
    # Of batches with one mark each, a uniform sample of 32 rows in 1000 has the marks' mean.
    marks: list[float] = []
    for seed in range(25):
        generator = torch.Generator().manual_seed(seed)
        stream = Stream({"site": _plan()}, seed=seed, capacity=CAPACITY, most=None)
        model = Drift()
        for number in range(10):
            x = torch.randn(100, 3, generator=generator)
            x[:, 0] = number
            stream.see(model, _batch(x), lambda model=model, x=x: model(x))
        rows = stream.seen["site"].kept.rows["x"]
        assert rows.shape == (CAPACITY, 3)
        marks.extend(rows[:, 0].tolist())
    error = math.sqrt(8.25 / len(marks))
    assert abs(sum(marks) / len(marks) - 4.5) < 4 * error


def _held() -> int:
    gc.collect()
    tensors = [found for found in gc.get_objects() if issubclass(type(found), Tensor)]
    return sum(t.untyped_storage().nbytes() for t in tensors)


@pytest.mark.slow
def test_what_is_held_does_not_grow_with_the_data() -> None:
    model, held = Drift(), []
    stream = Stream({"site": _plan(dim=64)}, seed=0, capacity=CAPACITY, most=None)
    for number in range(30):
        x = torch.randn(500, 64, generator=torch.Generator().manual_seed(number))
        stream.see(model, _batch(x), lambda x=x: model(x))
        del x
        if number in (4, 29):
            held.append(_held())
    # One batch is 128 KB; of 25 more of them it is known which examples came, in 16 bytes each.
    assert abs(held[1] - held[0] - 16 * 25 * 500) < 4000
    kept = stream.seen["site"].kept
    assert stream.seen["site"].moments.count == 15_000
    assert kept.rows["x"].untyped_storage().nbytes() == CAPACITY * 64 * 4


def test_what_was_seen_in_two_streams_adds() -> None:
    batches = _drifting(6)
    one, other, both = _streamed(batches[:2]), _streamed(batches[2:]), _streamed(batches)
    added = one.seen["site"] + other.seen["site"]
    together = both.seen["site"]
    torch.testing.assert_close(added.moments.m4, together.moments.m4, rtol=1e-12, atol=0)
    assert torch.equal(added.kept.rows["x"], together.kept.rows["x"])
    nothing = Seen.nothing(3, capacity=CAPACITY)
    assert torch.equal((nothing + added).moments.m4, added.moments.m4)


def test_bad_values_are_counted_batch_by_batch() -> None:
    batches = _drifting(4)
    batches[1][0, 0] = math.nan
    batches[3][:, 1] = math.inf
    assert _streamed(batches).seen["site"].bad == ((1, 1), (3, 50))


def test_masked_positions_count_nowhere() -> None:
    x = torch.randn(4, 6, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(4, 6, dtype=torch.bool)
    mask[0, 3:] = mask[2, :2] = False
    x[~mask] = 1e6
    model = Drift()
    stream = Stream({"site": _plan()}, seed=0, capacity=CAPACITY, most=None)
    stream.see(model, _batch(x, mask), lambda: model(x))
    seen = stream.seen["site"]
    assert seen.moments.count == int(mask.sum())
    torch.testing.assert_close(seen.moments.mean, x[mask].double().mean(0))
    assert float(seen.kept.rows["x"].max()) < 1e3


def test_a_site_that_does_not_run_is_missed_and_counted() -> None:
    model = Drift()
    stream = Stream({"site": _plan()}, seed=0, capacity=CAPACITY, most=None)
    for number, x in enumerate(_drifting(4)):
        model.runs = number != 2
        stream.see(model, _batch(x), lambda x=x: model(x))
    seen = stream.seen["site"]
    assert (seen.missed, seen.moments.count, stream.batches) == (1, 150, 4)


def test_a_batch_that_fails_is_not_counted_at_any_site() -> None:
    model = Drift()
    plans = {"first": _plan("side"), "second": _plan("out")}
    stream = Stream(plans, seed=0, capacity=CAPACITY, most=None)
    x, y = _drifting(2)
    stream.see(model, _batch(x), lambda: model(x))

    def fails() -> None:
        model.side(2 * y)
        raise RuntimeError("on purpose")

    before = dict(stream.seen)
    with pytest.raises(RuntimeError, match="on purpose"):
        stream.see(model, _batch(y), fails)
    assert (stream.batches, stream.examples) == (1, 50)
    for name in plans:
        assert stream.seen[name].moments is before[name].moments
        assert torch.equal(stream.seen[name].kept.priorities, before[name].kept.priorities)
    stream.see(model, _batch(y), lambda: model(y))
    assert stream.seen["first"].moments.count == stream.seen["second"].moments.count == 100
    # Sums of all batches but the failed attempt: the second is half the first.
    torch.testing.assert_close(
        stream.seen["first"].moments.mean, 2 * stream.seen["second"].moments.mean
    )


def test_a_number_of_features_that_changes_is_refused() -> None:
    model = Drift()
    stream = Stream({"site": _plan()}, seed=0, capacity=CAPACITY, most=None)
    x = torch.zeros(5, 4)
    with pytest.raises(ValueError, match="had 3 features in the first batch and has 4 now"):
        stream.see(model, _batch(x), lambda: model(x))


@pytest.mark.parametrize("most", [1, 49, 50, 51, 149])
def test_the_limit_holds_exactly(most: int) -> None:
    batches = _drifting(5)
    stream = _streamed(batches, most=most)
    x = torch.cat(batches)[:most]
    seen = stream.seen["site"]
    assert seen.moments.count == most
    assert stream.full
    torch.testing.assert_close(seen.moments.mean, x.mean(0), rtol=1e-12, atol=0)
    assert len(seen.kept.priorities) == min(most, CAPACITY)
    assert not _streamed(batches, most=len(torch.cat(batches)) + 1).full


def test_rows_are_compared_off_their_mean_where_the_group_fixes_only_the_line() -> None:
    x = torch.cat(_drifting(2))
    centred = x - x.mean(1, keepdim=True)
    for plan, truth in (({"centred": True}, centred), ({}, x)):
        seen = _streamed([x], **plan).seen["site"]
        expected = (3 * truth.pow(4).sum(1) / truth.square().sum(1).square()).mean()
        assert float(seen.kurtosis.mean) == pytest.approx(float(expected), rel=1e-9)


def test_the_sums_of_nothing_are_neutral() -> None:
    nothing = Seen.nothing(3, capacity=CAPACITY)
    assert isinstance(nothing.moments, Moments)
    assert isinstance(nothing.kurtosis, SampleKurtosis)
    assert (nothing.moments.count, nothing.bad, nothing.missed) == (0, (), 0)
    assert dataclasses.replace(nothing, missed=2).missed == 2


# --- where a pass ends ----------------------------------------------------------------------------


class Deep(nn.Module):
    """Marks that a pass has begun, as some models do, and takes the mark away at its end."""

    def __init__(self) -> None:
        super().__init__()
        self.out, self.head = nn.Linear(3, 3), nn.Linear(3, 5)
        self.running: Tensor | None = None
        self.heads: list[int] = []
        self.keeps = False

    def forward(self, x: Tensor) -> Tensor:
        self.running = x
        x = self.out(x)
        if self.keeps:
            self.heads.append(1)
        x = self.head(x)
        self.running = None
        return x


def _stopping(model: nn.Module, batches: list[Tensor], **plan: Any) -> tuple[Stream, int]:
    """What was seen, and how many passes reached the model's end."""
    ends: list[int] = []
    stream = Stream({"site": _plan(**plan)}, seed=0, capacity=CAPACITY, most=None, stops=True)

    def run(x: Tensor) -> None:
        model(x)
        ends.append(1)

    for x in batches:
        stream.see(model, _batch(x), lambda x=x: run(x))
    return stream, len(ends)


def test_a_pass_ends_at_the_last_site_and_leaves_nothing_behind() -> None:
    model, batches = Deep().eval(), [x.float() for x in _drifting(5)]
    stream, ends = _stopping(model, batches)
    # The first one is run whole, to see that it leaves the model as it was.
    assert ends == 1
    assert model.running is None
    whole = Stream({"site": _plan()}, seed=0, capacity=CAPACITY, most=None)
    for x in batches:
        whole.see(model, _batch(x), lambda x=x: model(x))
    assert torch.equal(stream.seen["site"].moments.m4, whole.seen["site"].moments.m4)
    assert torch.equal(stream.seen["site"].kept.rows["x"], whole.seen["site"].kept.rows["x"])


def test_a_model_that_keeps_something_of_a_pass_is_run_to_its_end() -> None:
    model, batches = Deep().eval(), [x.float() for x in _drifting(4)]
    model.keeps = True
    assert _stopping(model, batches)[1] == 4
    assert len(model.heads) == 4


def test_hooks_of_others_behind_the_last_site_are_reached() -> None:
    model, batches = Deep().eval(), [x.float() for x in _drifting(4)]
    reached: list[int] = []
    handle = model.head.register_forward_hook(lambda *_: reached.append(1))
    assert _stopping(model, batches)[1] == len(reached) == 4
    handle.remove()
    assert _stopping(model, batches)[1] == 1


def test_a_site_that_does_not_run_does_not_end_a_pass() -> None:
    model, batches = Drift(), _drifting(4)
    model.runs = False
    stream, ends = _stopping(model, batches)
    assert (ends, stream.seen["site"].missed) == (4, 4)


@pytest.mark.parametrize("sizes", [[50], [20, 12, 40], [32, 32], [5, 0, 40, 3, 60]])
def test_rows_stay_with_their_priorities(sizes: list[int]) -> None:
    drawn = torch.rand(sum(sizes), dtype=torch.float64, generator=seeded(2))
    keeper = Keeper(CAPACITY)
    for priorities in drawn.split(sizes):
        # As an observer hands them on: the smallest by rising priority.
        near = priorities[priorities <= keeper.threshold].sort().values[:CAPACITY]
        rows = {"x": torch.stack([near, 2 * near], 1), "example": (near * 2**50).long()}
        keeper.add(len(priorities), near, rows)
    kept = keeper.value()
    assert kept.seen == len(drawn)
    assert torch.equal(kept.priorities, drawn.sort().values[:CAPACITY])
    assert torch.equal(kept.rows["x"], torch.stack([kept.priorities, 2 * kept.priorities], 1))
    assert torch.equal(kept.rows["example"], (kept.priorities * 2**50).long())


@pytest.mark.parametrize("padding", [(0, 0), (1, 1), (0, 2), (2, 0)])
def test_windows_are_what_a_convolution_makes_its_rows_of(padding: tuple[int, int]) -> None:
    conv = nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=padding, dilation=(1, 2)).double()
    model = nn.Sequential(conv)
    stream = Stream(
        {
            "site": Plan(
                address=Address(Place.OUTPUT, "0"),
                layout=Layout((1,)),
                dim=3,
                inputs=Address(Place.INPUT, "0"),
                width=2,
                convolution=Convolution(conv.kernel_size, conv.stride, padding, conv.dilation),
            )
        },
        seed=0,
        capacity=CAPACITY,
        most=None,
    )
    for seed in range(2):
        x = torch.randn(3, 2, 7, 6, generator=seeded(seed), dtype=torch.float64)
        stream.see(model, _batch(x), lambda x=x: model(x))
    kept = stream.seen["site"].kept.rows
    assert len(kept["x"]) == CAPACITY
    made = kept["inputs"].flatten(1) @ conv.weight.detach().flatten(1).T + conv.bias
    torch.testing.assert_close(made.detach(), kept["x"], rtol=1e-12, atol=1e-12)
