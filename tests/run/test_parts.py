"""Parts of the data, seen apart, add up to what one process sees; a run that was killed goes on."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from partials import SITES, batches, model, observed, reported, require_equal
from torch import Tensor, nn

import basis_probe as bp
from basis_probe.run import cases
from basis_probe.run import read as reading
from basis_probe.run.read import CHECKPOINT_SECONDS

# Few frames of a cheap null, on sites where it misleads and says so.
pytestmark = pytest.mark.filterwarnings("ignore::basis_probe.MisleadingNull")


# --- parts that add -------------------------------------------------------------------------------


@pytest.mark.sample(default=1)
@pytest.mark.parametrize(("of", "most"), [(2, None), (9, None), (3, 97)])
def test_shards_give_the_numbers_of_one_process(of: int, most: int | None) -> None:
    whole = observed(batches(), max_samples=most)
    parts = [observed(batches(), shard=(index, of), max_samples=most) for index in range(of)]
    random.Random(of).shuffle(parts)
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    require_equal(total, whole, within=1e-11)
    assert total.examples == (whole.examples if most is None else sum(p.examples for p in parts))
    assert total.missing == ""


def test_a_partial_is_read_as_it_was_written(tmp_path: pathlib.Path) -> None:
    partial = observed(batches())
    again = bp.Partial.load(partial.save(tmp_path / "part.safetensors"))
    require_equal(again, partial, within=0.0)
    for name in ("plan", "parts", "source", "notes"):
        assert getattr(again, name) == getattr(partial, name)
    assert torch.equal(again.first.inputs, partial.first.inputs)
    assert again.first.args[0] is again.first.inputs
    assert [path.name for path in tmp_path.iterdir()] == ["part.safetensors"]
    require_equal(bp.Partial.from_bytes(partial.to_bytes()), partial, within=0.0)


@pytest.mark.slow
def test_the_report_of_a_partial_is_that_of_a_probe(tmp_path: pathlib.Path) -> None:
    null = bp.nulls.Rotation(frames=19, samples=64)
    probed = bp.probe(
        model(), batches(), sites=SITES, null=null, certificates=False, progress=False
    )
    parts = [observed(batches(), shard=(index, 2)) for index in range(2)]
    merged = reported(parts[0] + bp.Partial.load(parts[1].save(tmp_path / "1.safetensors")))
    assert not merged.partial
    for one, other in zip(merged, probed, strict=True):
        assert (one.site, one.n_samples, one.verdict) == (
            other.site,
            other.n_samples,
            other.verdict,
        )
        for name, score in one.scores.items():
            twin = other.scores[name]
            assert score.observed == twin.observed
            assert score.effect == pytest.approx(twin.effect, rel=1e-9, nan_ok=True)
            assert score.all_samples == pytest.approx(twin.all_samples, rel=1e-9, nan_ok=True)
    assert merged.provenance.settings == probed.provenance.settings
    assert (merged.provenance.n_batches, merged.provenance.data) == (
        probed.provenance.n_batches,
        probed.provenance.data,
    )


@pytest.mark.slow
def test_a_missing_shard_is_said_to_be_missing() -> None:
    report = reported(observed(batches(), shard=(0, 3)) + observed(batches(), shard=(2, 3)))
    assert report.partial
    assert "Shards of the data are missing: 1/3." in report.notes


@pytest.mark.sample(default=2)
@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"seed": 1}, "seed"),
        ({"sites": ["0"]}, "names"),
        ({"model": model(1)}, "weights"),
        ({"null": bp.nulls.Rotation(frames=19, samples=65)}, "rows_for_nulls"),
        ({"shard": (1, 3)}, "parts of 2 and of 3 shards"),
        ({"shard": (0, 2)}, "shard 0/2 is in both"),
    ],
)
def test_partials_that_do_not_belong_together_are_refused(
    other: dict[str, Any], words: str
) -> None:
    one = observed(batches(), shard=(0, 2))
    two = observed(batches(), **({"shard": (1, 2)} | other))
    with pytest.raises(ValueError, match=words):
        one + two


def test_a_report_of_another_model_is_refused() -> None:
    with pytest.raises(ValueError, match="weights"):
        reported(observed(batches()), model=model(1))


def test_what_is_no_partial_is_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"no")
    with pytest.raises(ValueError, match="is no partial"):
        bp.Partial.load(path)


def test_batches_that_hold_more_than_numbers_and_words_cannot_be_saved(
    tmp_path: pathlib.Path,
) -> None:
    class Taking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model()

        def forward(self, x: Tensor, how: object) -> Tensor:
            return self.inner(x)

    data = [{"x": x, "how": object()} for x in batches()]
    partial = observed(data, model=Taking(), sites=["inner.0"])
    with pytest.raises(bp.DataError, match="hold a object under 'how'"):
        partial.save(tmp_path / "x.safetensors")


@pytest.mark.parametrize("shard", [(2, 2), (-1, 2), (0, 0)])
def test_a_shard_that_does_not_exist_is_refused(shard: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="i from 0 to n - 1"):
        observed(batches(), shard=shard)


def test_shards_of_uneven_batches_refuse_a_limit_that_they_cannot_place() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU()).eval()
    data = [torch.randn(3, 2, 8, 8), torch.randn(3, 2, 9, 9)]
    with pytest.raises(bp.StreamError, match="batches of one shape, or max_samples=None"):
        bp.observe(model, data, max_samples=150, shard=(0, 2), progress=False)
    part = bp.observe(model, data[:1] * 2, max_samples=150, shard=(1, 2), progress=False)
    assert next(iter(part.seen.values())).moments.count == 150 - 108


# --- a run that goes on ---------------------------------------------------------------------------


class _Breaks:
    """Data that fail at a batch."""

    def __init__(self, at: int) -> None:
        self.at = at

    def __iter__(self) -> Any:
        for number, batch in enumerate(batches()):
            if number == self.at:
                raise RuntimeError("on purpose")
            yield batch


@pytest.fixture
def written_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "CHECKPOINT_SECONDS", 0.0)


@pytest.mark.sample(default=1)
@pytest.mark.parametrize(("at", "shard"), [(3, (0, 1)), (6, (1, 2)), (1, (1, 2))])
def test_a_run_goes_on_exactly(
    at: int, shard: tuple[int, int], tmp_path: pathlib.Path, written_always: None
) -> None:
    path = tmp_path / "run.safetensors"
    settings = {"shard": shard, "checkpoint": path}
    if at > shard[0]:
        with pytest.raises((bp.StreamError, RuntimeError), match="on purpose"):
            observed(_Breaks(at), **settings)
    resumed = observed(batches(), **settings)
    require_equal(resumed, observed(batches(), shard=shard), within=0.0)
    assert bp.Partial.load(path).parts == resumed.parts
    # What is whole is not run again, and the data are seen to be those that were seen.
    ran = model()
    ran.register_forward_hook(lambda *_: runs.append(1))
    runs: list[int] = []
    require_equal(observed(batches(), model=ran, **settings), resumed, within=0.0)
    assert len(runs) == 1
    others = [*batches()[:-1], batches()[0]] if shard == (0, 1) else batches()[::-1]
    with pytest.raises(ValueError, match=r"not those|beginning with"):
        observed(others, **settings)
    grown = observed([*batches(), *batches(2)], **settings)
    require_equal(grown, observed([*batches(), *batches(2)], shard=shard), within=0.0)


@pytest.mark.slow
def test_a_checkpoint_of_something_else_is_refused(
    tmp_path: pathlib.Path, written_always: None
) -> None:
    path = tmp_path / "run.safetensors"
    with pytest.raises(bp.StreamError):
        observed(_Breaks(3), checkpoint=path)
    for other, words in (
        ({"model": model(1)}, "weights"),
        ({"seed": 3}, "seed '0' \\(now '3'\\)"),
        ({"sites": ["1"]}, "names"),
        ({"shard": (0, 2)}, "is of shard 0/1"),
    ):
        with pytest.raises(ValueError, match=words):
            observed(batches(), checkpoint=path, **other)
    others = [batches()[0], *batches()[:-1]]
    with pytest.raises(bp.DataError, match="the first 3 batches are not those"):
        observed(others, checkpoint=path)
    with pytest.raises(bp.DataError, match="the data end after 2"):
        observed(batches(2), checkpoint=path)


@pytest.mark.slow
def test_a_probe_removes_its_checkpoint_when_the_report_is_made(
    tmp_path: pathlib.Path, written_always: None
) -> None:
    path = tmp_path / "run.safetensors"
    settings: dict[str, Any] = {
        "sites": SITES,
        "null": bp.nulls.Rotation(frames=19, samples=64),
        "certificates": False,
        "progress": False,
    }
    with pytest.raises(bp.StreamError):
        bp.probe(model(), _Breaks(4), checkpoint=path, **settings)
    assert path.exists()
    resumed = bp.probe(model(), batches(), checkpoint=path, **settings)
    assert not path.exists()
    assert resumed.site_reports == bp.probe(model(), batches(), **settings).site_reports
    with pytest.raises(ValueError, match="give one of them"):
        bp.probe(model(), batches(), checkpoint=path, memory_budget=10**9)
    assert CHECKPOINT_SECONDS == 60.0


_KILLED = """
import sys, time, torch, basis_probe as bp
sys.path.insert(0, {tests!r})
import partials
import basis_probe.run.read
basis_probe.run.read.CHECKPOINT_SECONDS = 0.0
def slow():
    for batch in partials.batches(60):
        time.sleep(0.02)
        yield batch
print("started", flush=True)
partials.observed(slow(), checkpoint={path!r})
"""


@pytest.mark.slow
def test_a_run_that_is_killed_at_any_moment_goes_on_exactly(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "run.safetensors"
    here = str(pathlib.Path(__file__).parents[1])
    code = _KILLED.format(tests=here, path=str(path))
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": ":".join(sys.path)},
    )
    assert process.stdout is not None
    process.stdout.readline()
    deadline = time.monotonic() + 120
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(random.random())
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    seen = bp.Partial.load(path)
    assert seen.batches > 0
    resumed = observed(batches(60), checkpoint=path)
    require_equal(resumed, observed(batches(60)), within=0.0)


# --- memory ---------------------------------------------------------------------------------------


def test_a_small_budget_passes_several_times_and_changes_no_number() -> None:
    settings: dict[str, Any] = {"sites": SITES, "certificates": False, "progress": False}
    settings["null"] = bp.nulls.Rotation(frames=19, samples=64)
    whole = bp.probe(model(), batches(), **settings)
    with pytest.warns(UserWarning, match=r"the data pass through the model 2 times, for 2 sites"):
        parts = bp.probe(model(), batches(), memory_budget=60_000, **settings)
    assert parts.site_reports == whole.site_reports
    assert any("2 times" in note for note in parts.notes)
    with pytest.raises(ValueError, match="the largest site alone needs about"):
        bp.probe(model(), batches(), memory_budget=1000, **settings)
    with pytest.raises(bp.DataError, match="an iterator can be read only once"):
        bp.probe(model(), iter(batches()), memory_budget=60_000, **settings)


@pytest.mark.slow
def test_activations_that_can_be_computed_again_are_not_kept() -> None:
    partial = observed(batches(), sites=["1"], null=None)
    seen = partial.seen["1"]
    # 24 neurons read 6 inputs: the inputs are kept, and a few activations to check them by.
    assert {name: rows.shape[1:2] for name, rows in seen.kept.rows.items()} == {
        "inputs": (6,),
        "example": (),
    }
    assert seen.proof.rows["x"].shape == (64, 24)
    full = bp.probe(model(), batches(), sites=["1"], certificates=False, progress=False)
    x = torch.cat([model()[:2](batch) for batch in batches()]).detach().double()
    d = x - x.mean(0)
    kurtosis = (d.pow(4).mean(0) / d.square().mean(0).square()).mean()
    score = full["1"].scores["kurtosis"]
    assert score.all_samples == pytest.approx(float(kurtosis), rel=1e-9)
    assert score.observed == pytest.approx(float(kurtosis), rel=1e-4)


class Fickle(nn.Module):
    """Adds something to its neurons from the third call on, which no linear map explains."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(6, 24), nn.Identity()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        h = torch.nn.functional.gelu(self.first(x))
        if self.calls > 3:
            h.mul_(1 + torch.arange(24) / 10)
        return self.out(h)


def test_a_layer_that_changes_under_way_is_noticed() -> None:
    report = bp.probe(Fickle().eval(), batches(), sites=["out"], certificates=False, progress=False)
    assert "not in later ones" in report["out"].verdict.sentence


def test_a_layer_that_cannot_be_computed_again_on_all_rows_is_told_by_a_few(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("rows do not fit")

    monkeypatch.setattr(cases, "problem_of", fails)
    settings: dict[str, Any] = {"certificates": False, "progress": False}
    report = bp.probe(Fickle().eval(), batches(), sites=["out"], **settings)
    assert "not in later ones" in report["out"].verdict.sentence
    # Where the few rows are right, it is no fault of the layer.
    with pytest.raises(bp.StreamError, match="rows do not fit"):
        bp.probe(model(), batches(), sites=["1"], **settings)


def test_two_names_of_one_tensor_are_seen_once_and_reported_twice() -> None:
    partial = observed(batches(2), sites=["0", "1:in"])
    assert len(partial.seen) == 1
    report = reported(partial)
    assert report.sites == ("0", "1:in")
    assert report["0"].scores == report["1:in"].scores


# --- files that are not what was written ----------------------------------------------------------


def _flipped(data: bytes, place: int, bit: int) -> bytes:
    changed = bytearray(data)
    changed[place % len(data)] ^= 1 << bit
    return bytes(changed)


WHOLE = observed(batches(2, 12)).to_bytes()


def _read_both_ways(data: bytes, folder: pathlib.Path) -> None:
    """Reads a partial that is none."""
    path = folder / "part.safetensors"
    path.write_bytes(data)
    for read in (lambda: bp.Partial.from_bytes(data), lambda: bp.Partial.load(path)):
        with pytest.raises(ValueError, match=r"no partial|damaged"):
            read()


_TRIES = settings(
    max_examples=50,
    deadline=2000,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@_TRIES
@given(place=st.integers(0, len(WHOLE) - 1), bit=st.integers(0, 7))
def test_a_bit_that_flips_anywhere_is_noticed(tmp_path: pathlib.Path, place: int, bit: int) -> None:
    _read_both_ways(_flipped(WHOLE, place, bit), tmp_path)


@_TRIES
@given(
    start=st.integers(0, len(WHOLE)),
    length=st.integers(1, 4000),
    new=st.binary(max_size=30),
)
def test_a_file_that_is_cut_or_overwritten_is_noticed(
    tmp_path: pathlib.Path, start: int, length: int, new: bytes
) -> None:
    data = WHOLE[:start] + new + WHOLE[start + length :]
    if data != WHOLE:
        _read_both_ways(data, tmp_path)


def _forged(words: dict[str, Any], form: str, **changes: Any) -> bytes:
    """A file of the bare form, which has no digest, whose words are others."""
    tensors = safetensors.torch.load(WHOLE)
    metadata = {"format": form, "words": json.dumps(words | changes)}
    return safetensors.torch.save(tensors, metadata)


def _words() -> dict[str, Any]:
    length = int.from_bytes(WHOLE[:8], "little")
    return json.loads(json.loads(WHOLE[8 : 8 + length])["__metadata__"]["words"])


@pytest.mark.slow
def test_a_file_of_the_form_before_is_read_with_a_note() -> None:
    words = _words()
    del words["plan"]["data"], words["passing"]
    old = bp.Partial.from_bytes(_forged(words, "basis_probe partial 1"))
    require_equal(old, bp.Partial.from_bytes(WHOLE), within=0.0)
    report = reported(old)
    assert any("older version" in note for note in report.notes)
    with pytest.raises(ValueError, match="no partial that this version can read"):
        bp.Partial.from_bytes(_forged(words, "basis_probe partial 3"))


@pytest.mark.sample(default=5)
@pytest.mark.parametrize("entry", [None, 7, -1, 1e400, "x", [], {}, [7], {"x": {}}, True])
def test_words_that_make_no_sense_are_damage(entry: Any, tmp_path: pathlib.Path) -> None:
    words = _words()
    for name in words:
        if name not in ("notes", "passing", "source"):
            _read_both_ways(_forged(words, "basis_probe partial 1", **{name: entry}), tmp_path)
    for name in ("index", "of", "reached", "batches", "examples", "digest"):
        if entry not in (7, True) or isinstance(entry, bool):
            parts = [words["parts"][0] | {name: entry}]
            _read_both_ways(_forged(words, "basis_probe partial 1", parts=parts), tmp_path)


def test_shards_of_other_data_are_not_added() -> None:
    one = observed(batches(), shard=(0, 2))
    others = [batch + 1 for batch in batches()]
    with pytest.raises(ValueError, match=r"differ in data .* the same model, data"):
        one + observed(others, shard=(1, 2))


def test_missing_shards_are_counted_where_they_are_many() -> None:
    part = observed(batches(), shard=(3, 10**12))
    assert "and 999,999,999,989 more" in part.missing
    assert len(part.missing) < 400


@pytest.mark.slow
def test_a_checkpoint_that_observe_finished_stays(
    tmp_path: pathlib.Path, written_always: None
) -> None:
    path = tmp_path / "part.safetensors"
    observed(batches(), checkpoint=path)
    null = bp.nulls.Rotation(frames=19, samples=64)
    bp.probe(model(), batches(), sites=SITES, null=null, checkpoint=path, progress=False)
    require_equal(bp.Partial.load(path), observed(batches()), within=0.0)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_stop_writes_the_checkpoint(tmp_path: pathlib.Path, error: type[BaseException]) -> None:
    path = tmp_path / "run.safetensors"

    def data() -> Any:
        yield from batches(3)
        raise error

    with contextlib.suppress(bp.StreamError):
        assert not observed(data(), checkpoint=path).parts[0].whole
    assert bp.Partial.load(path).batches == 3
    assert not any("failed" in note for note in observed(batches(), checkpoint=path).notes)


def test_a_checkpoint_that_cannot_be_written_costs_nothing(
    tmp_path: pathlib.Path, written_always: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bp.Partial, "save", full)
    path = tmp_path / "run.safetensors"
    with pytest.warns(UserWarning, match="could not be written"):
        part = observed(batches(), checkpoint=path)
    require_equal(part, observed(batches()), within=0.0)
    assert [note for note in part.notes if "No space left" in note]
