"""Rates are counted right, go on where they stopped, and are what they should be."""

import json
import math
import pathlib

import pytest
import torch

from basis_probe import cli
from basis_probe.calibration import rates
from basis_probe.calibration.cases import OWN_AXES, TRIALS, WEAK, WEAK_NEURONS, Trial
from basis_probe.calibration.draw import Draw
from basis_probe.calibration.rates import Count, Tally, calibrate, markdown, read, wilson
from basis_probe.model.untrained import untrained_model

# Two of a kind, small: one where nothing is on the axes, one where something is.
FEW = [t for t in TRIALS if t.name in ("isotropic Gaussian", "sinusoids")]
# With fewer frames no p-value could pass the strictest of five tests.
SMALL = {"sizes": ((8, 300),), "frames": 99, "compared": 300}


def test_wilson_is_the_interval_of_the_score_test() -> None:
    # Its ends are the rates that the normal test of the observed one just does not reject.
    for successes, trials in ((0, 20), (5, 100), (20, 20), (7, 13)):
        found = wilson(successes, trials)
        assert found.low <= successes / trials <= found.high
        for end in (found.low, found.high):
            if 0 < end < 1:
                z = (successes / trials - end) / math.sqrt(end * (1 - end) / trials)
                assert abs(z) == pytest.approx(1.959964)
    assert (wilson(0, 0).low, wilson(0, 0).high) == (0, 1)
    assert str(wilson(1, 20)) == "5.0% [0.9%, 23.6%]"
    with pytest.raises(ValueError, match="3 of 2 is no rate"):
        wilson(3, 2)


def test_counts_add_to_those_of_all_data_sets() -> None:
    effects = [1.0, -2.0, 0.5, 4.0]
    total = sum((Count(1, int(e > 3), e, e * e) for e in effects), Count())
    values = torch.tensor(effects, dtype=torch.float64)
    assert (total.known, total.below) == (4, 1)
    assert total.mean == pytest.approx(float(values.mean()))
    assert total.std == pytest.approx(float(values.std()))
    assert math.isnan(Count().mean)
    assert math.isnan(Count(1).std)
    one = Tally("site", "a", False, 4, 100, 2, 1, 0, {"kurtosis": Count(2, 1)})
    other = Tally("site", "a", False, 4, 100, 3, 0, 1, {"hoyer": Count(3, 2)})
    both = one + other
    assert (both.datasets, both.called, both.undecided) == (5, 1, 1)
    assert both.scores == {"kurtosis": Count(2, 1), "hoyer": Count(3, 2)}
    assert Tally.from_json(both.to_json()) == both
    with pytest.raises(ValueError, match="do not add"):
        one + Tally("site", "b", False, 4, 100)


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on(tmp_path: pathlib.Path) -> None:
    whole, record = tmp_path / "whole.jsonl", tmp_path / "record.jsonl"
    list(calibrate(datasets=6, trials=FEW, record=whole, **SMALL))
    stopped = calibrate(datasets=6, trials=FEW, record=record, **SMALL)
    next(stopped)
    stopped.close()
    # A line that was being written when the power went is no count.
    with record.open("a") as file:
        file.write('{"place": "no nonl\n')
    list(calibrate(datasets=3, trials=FEW, record=record, **SMALL))
    added = list(calibrate(datasets=6, trials=FEW, record=record, **SMALL))
    assert added

    def figures(path: pathlib.Path) -> dict:
        return {t.key: (t.datasets, t.called, t.scores["kurtosis"].known) for t in read(path)}

    assert figures(record) == figures(whole)
    for mine, theirs in zip(read(record), read(whole), strict=True):
        assert mine.scores["kurtosis"].effect == pytest.approx(theirs.scores["kurtosis"].effect)
    assert list(calibrate(datasets=6, trials=FEW, record=record, **SMALL)) == []
    by_name = {tally.trial: tally for tally in read(whole)}
    assert by_name["sinusoids"].called == 6
    assert by_name["isotropic Gaussian"].called <= 4


def test_threads_are_as_before() -> None:
    before = torch.get_num_threads()
    next(calibrate(datasets=1, trials=FEW[:1], **SMALL))
    assert torch.get_num_threads() == before


QUICKLY = {"isotropic Gaussian", "mixed Laplace", "GELU, rotated Laplace", "ReLU, sinusoids"}
EACH = [
    pytest.param(trial, marks=() if trial.name in QUICKLY else pytest.mark.slow, id=trial.name)
    for trial in TRIALS
]


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("trial", EACH)
def test_every_trial_gives_a_report_and_the_same_again(trial: Trial) -> None:
    one, again = (trial.report(Draw(8, 400, 19, 200, seed=3)) for _ in range(2))
    assert one == again
    assert one.n_samples == 400
    assert one.dim == 8
    assert one.null is not None
    assert (one.null.frames, one.null.samples) == (19, 200)
    assert not math.isnan(one.scores["kurtosis"].effect)
    other = trial.report(Draw(8, 400, 19, 200, seed=4))
    assert other.scores["kurtosis"].observed != one.scores["kurtosis"].observed


def test_trials_have_names_of_their_own() -> None:
    assert len({(t.place, t.name) for t in TRIALS}) == len(TRIALS)
    assert {t.planted for t in TRIALS} == {True, False}


def test_tables_show_rates_with_intervals() -> None:
    tallies = [
        Tally("site", "null", False, 16, 1000, 100, 5, 2, {"kurtosis": Count(100, 4, 10.0, 120.0)}),
        Tally("site", "planted", True, 16, 1000, 20, 19, 0),
    ]
    text = markdown(tallies)
    assert "| site | null | 16 | 1000 | 100 | 5.0% [2.2%, 11.2%] | 2 | 4.0%; +0.1 ± 1.1 |" in text
    assert "All together, of 20 data sets: found 95.0% [76.4%, 99.1%]." in text


@pytest.mark.slow
def test_the_command_shows_and_writes(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: dict[str, object] = {}

    def few(**options: object):
        asked.update(options)
        return calibrate(datasets=2, trials=FEW, record=options["record"], **SMALL)

    monkeypatch.setattr(rates, "calibrate", few)
    out, record = tmp_path / "rates.md", tmp_path / "rates.jsonl"
    words = ["calibrate", "--quick", "--out", str(out), "--record", str(record)]
    assert cli.main(words) == 0
    assert asked["datasets"] == 20
    assert asked["sizes"] == ((16, 1000),)
    shown = capsys.readouterr().out
    assert "sinusoids" in shown
    assert "nothing" in shown
    assert "### Nothing on the axes" in out.read_text()
    assert len(record.read_text().splitlines()) == 2
    assert cli.main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [tally["trial"] for tally in found] == ["isotropic Gaussian", "sinusoids"]
    assert cli.main(["calibrate", "--out", str(tmp_path / "no" / "x.md")]) == 2
    assert "there is no folder" in capsys.readouterr().err


# --- the battery itself, in short -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("datasets", "most"),
    [
        pytest.param(5, 4, marks=pytest.mark.slow, id="five"),
        pytest.param(10, 5, marks=pytest.mark.battery, id="ten"),
    ],
)
def test_false_alarms_are_as_rare_as_promised(datasets: int, most: int) -> None:
    """Some data sets of each null: at 8 % more alarms than these come once in 20,000 rows."""
    nulls = [trial for trial in TRIALS if not trial.planted and trial.place != OWN_AXES]
    total: dict[tuple, Tally] = {}
    for tally in calibrate(datasets=datasets, sizes=((16, 1000),), trials=nulls):
        total[tally.key] = total[tally.key] + tally if tally.key in total else tally
    for tally in total.values():
        assert tally.datasets == datasets
        assert tally.called <= most, tally
    # Of 48,000 such data sets 3.3 % were called; more than 8 % of them all come hardly ever then.
    assert sum(t.called for t in total.values()) <= 0.08 * sum(t.datasets for t in total.values())


@pytest.mark.parametrize(
    "datasets",
    [
        pytest.param(2, marks=pytest.mark.slow, id="two"),
        pytest.param(4, marks=pytest.mark.battery, id="four"),
    ],
)
def test_what_is_there_is_found(datasets: int) -> None:
    planted = [
        trial for trial in TRIALS if trial.planted and trial.place not in (WEAK, WEAK_NEURONS)
    ]
    for tally in calibrate(datasets=datasets, sizes=((64, 8000),), trials=planted):
        assert tally.called >= datasets // 2, tally


def test_bounds_are_counted_where_their_truth_is_known() -> None:
    trial = next(t for t in TRIALS if t.name.startswith("5 % Laplace"))
    assert trial.excess is not None
    report = trial.report(Draw(16, 1000, 99, 1000, 3))
    bound = report.verdict.bound
    assert bound is not None
    tally = Tally("site", "bound", True, 16, 1000)
    for excess, covered in ((0.0, 1), (bound.excess, 1), (bound.excess + 0.01, 0)):
        one = tally.with_report(report, excess)
        assert (one.bounded, one.covered) == (1, covered)
    assert tally.with_report(report).bounded == 0
    both = tally.with_report(report, 0.0) + tally.with_report(report, 9.0)
    assert (both.bounded, both.covered) == (2, 1)
    assert "bound holds" in markdown([both]) and "50.0%" in markdown([both])
    # A record of before bounds were counted is read, and added to.
    line = json.loads(both.to_json())
    del line["bounded"], line["covered"]
    assert (Tally.from_json(json.dumps(line)) + both).bounded == 2


def test_the_truth_behind_a_bound_is_what_many_samples_show() -> None:
    trial = next(t for t in TRIALS if t.name.startswith("10 % Laplace"))
    assert trial.excess is not None
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(4_000_000, generator=generator, dtype=torch.float64) - 0.5
    laplace = -uniform.sign() * (1 - 2 * uniform.abs()).log() * math.sqrt(0.5)
    normal = torch.randn(4_000_000, generator=generator, dtype=torch.float64)
    z = math.sqrt(0.9) * normal + math.sqrt(0.1) * laplace
    axes = float((-z.square() / 2).exp().mean() - math.sqrt(0.5)) / (math.sqrt(0.5) * 0.75 / 24)
    # With many axes random directions have none of it, and 3 w^2 is the excess kurtosis.
    assert trial.excess(10_000) == pytest.approx(axes, abs=0.01)
    assert trial.excess(10_000) == pytest.approx(0.03, abs=0.01)
    assert trial.excess(4) < trial.excess(64) < trial.excess(10_000)


def test_initialisations_with_axes_are_a_table_of_their_own() -> None:
    text = markdown(
        [
            Tally(OWN_AXES, "uniform embedding", False, 16, 1000, 10, 9),
            Tally("stream", "Gaussian", False, 16, 1000, 10, 1, 0, {"scale": Count(10, 1)}),
        ]
    )
    assert "### Initialisation, not training" in text
    assert "of 10 data sets: false alarms 10.0%" in text
    assert "scale: claimed" in text


@pytest.mark.slow
def test_untrained_streams_are_made_without_touching_the_random_state() -> None:
    trial = next(t for t in TRIALS if t.name == "Llama shape, turned rogue variance")
    before = torch.get_rng_state()
    one, other = (trial.report(Draw(16, 400, 99, 400, 7)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert one == other
    assert one.orders and one.n_samples == 400


def test_shapes_that_nobody_knows_are_refused() -> None:
    with pytest.raises(ValueError, match="no shape is called 'bert'; there are 'gpt2' and 'llama'"):
        untrained_model("bert", width=16, layers=1, vocabulary=30, length=8)
