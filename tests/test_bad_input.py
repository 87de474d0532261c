"""What is wrong is said: what was given, what was needed, what to do. Nothing else is lost."""

from __future__ import annotations

import math
import signal
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import basis_probe as bp
from basis_probe import demo

pytestmark = [
    pytest.mark.usefixtures("as_shipped"),
    # Few frames of a cheap null, on sites where it misleads and says so.
    pytest.mark.filterwarnings("ignore::basis_probe.MisleadingNull"),
]

FEW = bp.nulls.Rotation(frames=19, samples=128)


def _probe(model: nn.Module, data: Any, **settings: Any) -> bp.Report:
    return bp.probe(model, data, **{"progress": False, "null": FEW, **settings})


def _draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _mlp(width: int = 12) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3)).eval()


@pytest.fixture(scope="module")
def bridge() -> Any:
    return demo.load()


class Odd(nn.Module):
    """Has a part for everything that cannot be probed."""

    def __init__(self) -> None:
        super().__init__()
        self.real, self.whole, self.complex, self.row = (nn.Identity() for _ in range(4))
        self.never = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        self.whole(x.long())
        self.complex(torch.complex(x, x))
        self.row(x.sum(1))
        return self.real(2 * x)


# --- sites ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_name_that_matches_nothing_is_answered_with_the_nearest(bridge: Any) -> None:
    with pytest.raises(bp.SiteError) as caught:
        _probe(bridge, demo.texts(2, 0), sites="blocks.0.hook_resid_prre")
    message = str(caught.value)
    assert message.startswith("no site matches 'blocks.0.hook_resid_prre'; nearest: ")
    assert "blocks.0.hook_resid_pre" in message.split("nearest: ")[1].split(", ")
    with pytest.raises(bp.SiteError, match=r"no site matches '9\*'; the model has 0:in, 0, 1"):
        _probe(_mlp(), [_draw(4, 6)], sites="9*")
    with pytest.raises(ValueError, match="no site matches 'nought'"):
        _probe(_mlp(), [_draw(4, 6)], sites=["1", "nought"])


def test_no_site_at_all_is_refused() -> None:
    with pytest.raises(bp.SiteError, match="sites is empty: give names or globs of sites, or None"):
        _probe(_mlp(), [_draw(4, 6)], sites=[])
    with pytest.raises(bp.SiteError, match="sites holds 1: give names or globs"):
        _probe(_mlp(), [_draw(4, 6)], sites=[1])
    with pytest.raises(bp.SiteError, match="were recognised in this model; name the sites, for ex"):
        _probe(Odd(), [_draw(4, 6)])


@pytest.mark.parametrize("name", ["whole", "complex", "row", "never"])
def test_a_place_without_floating_features_is_no_site(name: str) -> None:
    with pytest.raises(bp.SiteError) as caught:
        _probe(Odd(), [_draw(300, 6)], sites=name)
    assert f"site {name!r} exists, but did not run in the first batch" in str(caught.value)
    assert "no floating-point tensor of shape [batch, ...]" in str(caught.value)
    # The others can be had.
    assert _probe(Odd(), [_draw(300, 6)], sites="real")["real"].n_samples == 300


def test_a_site_that_stops_running_is_said_to() -> None:
    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.side, self.calls = nn.ReLU(), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.side(x) if self.calls in (1, 3) else x

    report = _probe(Sometimes().eval(), list(_draw(500, 6).split(100)), sites="side")
    assert report["side"].n_samples == 200
    assert "The site did not run in 3 of 5 batches." in report["side"].notes

    times = iter(range(100))

    class Once(Sometimes):
        def forward(self, x: Tensor) -> Tensor:
            return self.side(x) if next(times) == 0 else x

    site = _probe(Once().eval(), list(_draw(500, 6).split(100)), sites="side")["side"]
    assert (site.n_samples, site.n_dead) == (0, 0)
    assert site.verdict.outcome is bp.Outcome.UNDECIDED
    assert "0 samples were seen and at least 200 are needed" in site.verdict.sentence
    assert "The site did not run in 5 of 5 batches." in site.notes


# --- data -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [[], (), iter([]), torch.utils.data.DataLoader([])])
def test_no_batch_is_refused(data: Any) -> None:
    with pytest.raises(bp.DataError, match="hold no batch: give at least one"):
        _probe(_mlp(), data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("some text", r"the data are one string: give batches, for example \[\[text\]\]"),
        (5, "the data are a int: give an iterable of batches, such as a DataLoader"),
        ([None], "batch 0 is of type NoneType: a batch is a tensor, a dict of keywords"),
        ([5.0], "batch 0 is of type float"),
        ([torch.tensor(1.0)], r"batch 0 has shape \(\): it holds no example"),
        ([np.array(1.0)], r"batch 0 has shape \(\)"),
        ([torch.zeros(0, 6)], r"batch 0 has shape \(0, 6\): it holds no example"),
        ([[]], "batch 0 is empty: give at least one example"),
        ([[[], 1]], "batch 0 is of type list"),
        ([["a", "b"]], "batch 0 holds strings, and the model has no tokenizer: give one"),
        (["a"], "batch 0 holds strings"),
        ([(["a", "b"], torch.zeros(2))], "batch 0 holds strings, and the model has no tokenizer"),
        ([{}], "batch 0 holds no tensor with examples; it has nothing"),
        ([{"input": "a", "y": 1}], "batch 0 holds no tensor with examples; it has input, y"),
        ([{"input": torch.zeros(0, 6)}], "holds no tensor with examples; it has input"),
        ([np.array(["a", "b"])], "batch 0 holds an array of <U1: give numbers that torch has"),
        ([{"input": np.array([None])}], "batch 0 holds an array of object"),
    ],
)
def test_what_is_no_batch_is_refused(data: Any, message: str) -> None:
    with pytest.raises(bp.DataError, match=message):
        _probe(_mlp(), data)


def test_a_batch_that_the_model_cannot_take_is_refused_with_the_reason() -> None:
    with pytest.raises(bp.DataError) as caught:
        _probe(_mlp(), [_draw(4, 5)])
    message = "the model failed on the first batch (a tensor, shape (4, 5)): RuntimeError: mat1"
    assert str(caught.value).startswith(message)
    assert isinstance(caught.value.__cause__, RuntimeError)
    with pytest.raises(bp.DataError, match=r"failed on the first batch \(keywords, shape \(4, 6\)"):
        _probe(_mlp(), [{"nonsense": _draw(4, 6)}])
    with pytest.raises(bp.DataError, match="the model failed on the first batch"):
        bp.symmetries(_mlp(), _draw(4, 5))


@pytest.mark.parametrize(("given", "needed"), [("float64", "float32"), ("float32", "bfloat16")])
def test_numbers_of_another_type_than_the_weights_are_named(given: str, needed: str) -> None:
    model, x = _mlp().to(getattr(torch, needed)), _draw(300, 6).to(getattr(torch, given))
    said = rf"The batch holds {given} numbers and the model has {needed} weights: convert one of"
    with pytest.raises(bp.DataError, match=said):
        _probe(model, [x])
    # Where the shape is at fault, nothing is said of types.
    with pytest.raises(bp.DataError, match=r"cannot be multiplied \(4x5 and 6x12\)$"):
        _probe(_mlp(), [_draw(4, 5)])


READING_REALS: dict[str, Callable[[], nn.Module]] = {
    "a map": lambda: nn.Linear(4, 3),
    "a convolution": lambda: nn.Conv1d(4, 3, 1),
    "a norm": lambda: nn.LayerNorm(4),
    "a norm of lengths": lambda: nn.RMSNorm(4),
    "a norm of batches": lambda: nn.BatchNorm1d(4),
    "a norm of groups": lambda: nn.GroupNorm(2, 4),
    "a nonlinearity": lambda: nn.GELU(),
    "a softmax": lambda: nn.Softmax(-1),
    "slopes": lambda: nn.PReLU(),
    "a recurrence": lambda: nn.LSTM(4, 3),
    "attention": lambda: nn.TransformerEncoderLayer(4, 2, 4, batch_first=True),
}


@pytest.mark.filterwarnings("ignore:Mismatch dtype")
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8, torch.bool])
@pytest.mark.parametrize("name", READING_REALS)
def test_whole_numbers_where_real_ones_are_read_are_named(name: str, dtype: torch.dtype) -> None:
    model = nn.Sequential(READING_REALS[name](), nn.Identity())
    given = str(dtype).removeprefix("torch.")
    said = rf"The batch holds {given} numbers and the model has float32 weights"
    with pytest.raises(bp.DataError, match=said):
        bp.symmetries(model, torch.ones(2, 4, 4).to(dtype))


class _Failing(nn.Module):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.table, self.error = nn.Embedding(9, 4), error

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        if len(self.table(ids)):
            raise self.error
        return ids


OTHER_FAILURES = (
    RuntimeError("value cannot be converted to type float without overflow"),
    RuntimeError("Expected mat_a to be Float32, BFloat16 or Float16 matrix, got Double"),
    RuntimeError("The size of tensor a (4) must match the size of tensor b (3)"),
    AttributeError("'int' object has no attribute 'shape'"),
    TypeError("forward() got an unexpected keyword argument of type bool"),
    IndexError("tensors used as indices must be long, int, byte or bool tensors"),
)


@pytest.mark.parametrize("error", OTHER_FAILURES, ids=str)
def test_whole_numbers_are_not_named_where_something_else_is_at_fault(error: Exception) -> None:
    with pytest.raises(bp.DataError) as caught:
        bp.symmetries(_Failing(error), torch.ones(2, 4, dtype=torch.int64))
    assert str(error) in str(caught.value) and "The batch holds" not in str(caught.value)


@pytest.mark.slow
def test_a_mask_must_fit_its_input(bridge: Any) -> None:
    ids = torch.ones(2, 5, dtype=torch.int64)
    with pytest.raises(bp.DataError) as caught:
        _probe(bridge, [{"input_ids": ids, "attention_mask": ids[:, :4]}])
    assert "batch 0: attention_mask has shape (2, 4) and the input (2, 5): give one" in str(
        caught.value
    )


def test_batches_that_change_their_form_are_refused_and_the_ones_before_kept() -> None:
    data = [_draw(150, 6), _draw(150, 6, seed=1), {"input": _draw(150, 6, seed=2)}]
    with pytest.raises(bp.StreamError) as caught:
        _probe(_mlp(), data, sites="0")
    message = str(caught.value)
    assert "batch 2 is keywords, the ones before were a tensor: give batches of one form" in message
    assert "The 2 batches before it are kept: call .report() of this error" in message
    assert caught.value.batches == 2
    report = caught.value.report()
    assert report.partial
    assert report["0"].n_samples == 300
    assert report.provenance.n_batches == 2
    assert "The run failed after 2 batches: DataError: batch 2 is keywords" in report.notes[-1]
    whole = _probe(_mlp(), data[:2], sites="0")
    assert report.site_reports == whole.site_reports
    assert not whole.partial
    # It can be asked for again, and be written down.
    assert caught.value.report() == report
    assert bp.Report.from_json(report.to_json()) == report


def test_a_loader_that_breaks_leaves_a_partial_report() -> None:
    def loader() -> Iterator[Tensor]:
        for number in range(3):
            yield _draw(100, 6, seed=number)
        raise OSError("the disk is gone")

    with pytest.raises(bp.StreamError, match="batch 3 failed: OSError: the disk is gone") as caught:
        _probe(_mlp(), loader(), sites="1")
    assert isinstance(caught.value.__cause__, OSError)
    report = caught.value.report()
    assert report.partial
    assert report["1"].n_samples == 300
    assert report.notes == ("The run failed after 3 batches: OSError: the disk is gone",)


@pytest.mark.parametrize("inside", ["the loader", "the model"])
def test_an_interrupt_from_the_keyboard_leaves_a_partial_report(inside: str) -> None:
    model, interrupts = _mlp(), iter([False, False, inside == "the model"])

    def between(*_: object) -> None:
        if next(interrupts, False):
            signal.raise_signal(signal.SIGINT)

    def loader() -> Iterator[Tensor]:
        yield _draw(150, 6)
        yield _draw(150, 6, seed=1)
        if inside == "the loader":
            signal.raise_signal(signal.SIGINT)
        yield _draw(150, 6, seed=2)

    # The first call only looks at the model.
    handle = model[0].register_forward_hook(between)
    report = _probe(model, loader(), sites="0")
    handle.remove()
    whole = 2 if inside == "the loader" else 1
    assert report.partial
    assert len(report.notes) == 1
    assert report.notes[0].startswith(f"The run was interrupted after {whole} batch")
    assert report["0"].n_samples == 150 * whole
    assert bp.Report.from_json(report.to_json()) == report
    # The next run is whole again.
    assert not _probe(model, [_draw(150, 6)], sites="0").partial


def test_a_width_that_changes_on_the_way_is_refused() -> None:
    data = [_draw(100, 6), _draw(100, 7)]
    with pytest.raises(bp.StreamError, match="had 6 features in the first batch and has 7 now"):
        _probe(nn.Sequential(nn.ReLU(), nn.Tanh()).eval(), data, sites="0")


# --- too little, or not finite --------------------------------------------------------------------


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("count", [1, 7, 8, 199])
def test_too_few_samples_decide_nothing_and_the_number_needed_is_said(count: int) -> None:
    report = _probe(_mlp(), [_draw(count, 6)], sites=["0", "1"])
    for site in report:
        assert site.verdict.outcome is bp.Outcome.UNDECIDED
        expected = f"Undecided: {count} samples were seen and at least 200 are needed for "
        assert site.verdict.sentence.startswith(expected)
        assert site.verdict.sentence.endswith("give more data.")
    enough = _probe(_mlp(), [_draw(200, 6)], sites="0")["0"]
    assert "samples were seen" not in enough.verdict.sentence


def test_where_covariances_are_fitted_more_samples_are_needed() -> None:
    model = _mlp(width=40)
    report = _probe(model, [_draw(300, 6)], sites=["0", "2"], groups={"0": "general-linear"})
    assert "300 samples were seen and at least 400 are needed" in report["0"].verdict.sentence
    assert "samples were seen" not in report["2"].verdict.sentence


class Fragile(nn.Module):
    """A part that overflows where the input is large, beside one that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.sound, self.fragile = nn.Identity(), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        self.fragile(torch.where(x > 50, x * math.inf, x))
        return self.sound(F.relu(x))


def test_values_that_are_not_finite_are_counted_and_the_other_sites_reported() -> None:
    data = [_draw(100, 6, seed=number) for number in range(4)]
    data[1][3, 2] = data[1][5, 0] = 100.0
    report = _probe(Fragile().eval(), data, sites=["fragile", "sound"])
    bad = report["fragile"]
    assert bad.verdict.outcome is bp.Outcome.UNDECIDED
    assert bad.verdict.sentence == (
        "Undecided: 2 values of fragile are NaN or infinite in batch 1; give data on which the "
        "model stays finite."
    )
    assert not bad.scores
    assert report["sound"].scores["kurtosis"].observed > 0
    assert report["sound"].n_samples == 400
    assert bp.Report.from_json(report.to_json()) == report
    data[3][0, 0] = 100.0
    later = _probe(Fragile().eval(), data, sites="fragile")["fragile"]
    assert "in batch 1, and more in 1 later batches; give" in later.verdict.sentence
    nan = _draw(300, 6)
    nan[7, 1] = math.nan
    report = _probe(_mlp(), [nan], sites=["0", "1"])
    assert "12 values of 0 are NaN or infinite in batch 0" in report["0"].verdict.sentence


@pytest.mark.slow
def test_a_pre_activation_that_is_not_finite_does_not_end_the_run() -> None:
    model = _mlp()
    with torch.no_grad():
        model[0].bias[3] = -math.inf
    for null in (None, bp.nulls.Counterfactual(frames=19, samples=128), FEW):
        report = _probe(model, [_draw(300, 6)], sites=["1", "2"], null=null)
        assert report["1"].n_dead == 1
        assert report["2"].scores["kurtosis"].observed > 0


class Gate(nn.Module):
    """A nonlinearity behind a sum, whose pre-activations are not one linear map away."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 6)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        return self.two(self.act(x.cumsum(1)))


def test_pre_activations_that_are_turned_must_be_finite_too() -> None:
    model = Gate().eval()
    with torch.no_grad():
        model.one.bias[5] = -math.inf
    site = _probe(model, [_draw(300, 6)], sites="act", null=None)["act"]
    assert site.n_dead == 1
    assert site.verdict.outcome is bp.Outcome.UNDECIDED
    assert "Some pre-activations are NaN or infinite, so they were not turned." in site.notes


# --- units that do nothing ------------------------------------------------------------------------


def _with_still_units(*, dead: int, constant: int) -> nn.Sequential:
    model = _mlp()
    with torch.no_grad():
        model[0].weight[: dead + constant] = 0
        model[0].bias[:dead] = -1
        model[0].bias[dead : dead + constant] = 0.25
    return model


@pytest.mark.parametrize(
    "null",
    [FEW, bp.nulls.Counterfactual(frames=19, samples=128), bp.nulls.TurnedPreactivation(19, 128)],
)
def test_units_that_never_vary_are_counted_and_left_out(null: bp.nulls.Null) -> None:
    model, x = _with_still_units(dead=3, constant=2), _draw(300, 6)
    site = _probe(model, [x], sites="1", null=null)["1"]
    assert (site.dim, site.n_dead) == (12, 5)
    values = torch.relu(model[0](x)).detach().double().numpy()[:, 5:]
    centred = values - values.mean(0)
    kurtosis = (centred**4).mean(0) / (centred**2).mean(0) ** 2
    score = site.scores["kurtosis"]
    assert score.all_samples == pytest.approx(kurtosis.mean(), rel=1e-5)
    assert np.isnan(score.per_direction).tolist() == [axis < 5 for axis in range(12)]
    assert np.isnan(score.per_direction_p).tolist() == [axis < 5 for axis in range(12)]
    assert math.isfinite(score.observed)
    assert math.isfinite(score.effect)


def test_a_layer_that_never_varies_is_undecided() -> None:
    model = _with_still_units(dead=10, constant=2)
    report = _probe(model, [_draw(300, 6)], sites=["1", "2"])
    assert report["1"].n_dead == 12
    assert report["1"].verdict.sentence == "Undecided: none of the 12 axes ever varied."
    assert report["2"].verdict.sentence == "Undecided: none of the 3 axes ever varied."


@pytest.mark.parametrize("group", ["orthogonal", "line-stabiliser", "general-linear", "planes"])
def test_still_axes_do_not_break_any_geometry(group: str) -> None:
    x = _draw(400, 8).double()
    x[:, 3] = 1.0
    site = bp.probe_activations(x, group=group, null=FEW)
    assert site.n_dead == 1
    assert math.isfinite(site.scores["non_gaussianity"].effect)


# --- models ---------------------------------------------------------------------------------------


@pytest.mark.sample(default=6)
@pytest.mark.parametrize("size", [1e-310, 1e-90, 1e90, 1e200, 1e300])
@pytest.mark.parametrize("group", ["orthogonal", "general-linear", "monomial", "planes"])
def test_numbers_whose_powers_are_out_of_range_decide_nothing_and_that_is_said(
    group: Any, size: float
) -> None:
    x = torch.randn(300, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = bp.probe_activations(x * size, group=group)
    assert "leave the range of float64" in found.verdict.sentence
    assert not found.scores
    wanted, near = (bp.probe_activations(part, group=group) for part in (x, x * 2.0**-200))
    assert near.verdict.outcome is wanted.verdict.outcome
    assert near.scores["kurtosis"].observed == pytest.approx(wanted.scores["kurtosis"].observed)


@pytest.mark.parametrize("model", [None, "gpt2", lambda x: x, np.zeros((5, 5))])
def test_what_is_no_module_is_refused(model: Any) -> None:
    with pytest.raises(TypeError) as caught:
        _probe(model, [_draw(4, 6)])
    assert f"cannot probe a {type(model).__name__}: give a torch.nn.Module" in str(caught.value)
    assert "there is probe_activations" in str(caught.value)
    loaded = "transformers.AutoModelForCausalLM.from_pretrained('gpt2')" in str(caught.value)
    assert loaded is isinstance(model, str)


def test_what_holds_a_model_and_sets_of_data_is_told_apart_from_them() -> None:
    held: Any = types.SimpleNamespace(model=nn.Linear(6, 4))
    with pytest.raises(TypeError, match=r"its own model is \.model$"):
        _probe(held, [_draw(4, 6)])
    held.tokenizer = len
    with pytest.raises(TypeError, match=r"probe\(it\.model, \.\.\., tokenizer=it\.tokenizer\)"):
        _probe(held, [_draw(4, 6)])
    split = _Split()
    with pytest.raises(
        bp.DataError, match=r"of several sets of data give one, such as data\['a'\]"
    ):
        _probe(nn.Linear(6, 4), {"a": split, "b": split})


class _Split:
    """A set of data that has columns, as those of `datasets` have."""

    column_names = ("x",)

    def __len__(self) -> int:
        return 4


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_probed_in_float64(dtype: torch.dtype) -> None:
    x = _draw(400, 6)
    full = _probe(
        _mlp(), [x], sites=["0", "1"], null=bp.nulls.Counterfactual(frames=19, samples=256)
    )
    model = _mlp().to(dtype)
    half = _probe(
        model, [x.to(dtype)], sites=["0", "1"], null=bp.nulls.Counterfactual(frames=19, samples=256)
    )
    assert half.provenance.dtype == str(dtype).removeprefix("torch.")
    assert model[0].weight.dtype is dtype
    for name in full.sites:
        here, there = half[name].scores["kurtosis"], full[name].scores["kurtosis"]
        assert here.all_samples == pytest.approx(there.all_samples, rel=0.03)
        assert math.isfinite(here.effect)


def test_modes_are_put_back_part_by_part_and_it_is_said() -> None:
    model = _mlp().train()
    model[1].eval()
    report = _probe(model, [_draw(300, 6)], sites="1")
    assert [module.training for module in model.modules()] == [True, True, False, True]
    assert report.notes == (
        "The model was in training mode; it was probed in evaluation mode and put back.",
    )


@pytest.mark.parametrize("device", ["meta", torch.device("meta")])
def test_a_device_without_numbers_is_refused_and_the_weights_stay(device: Any) -> None:
    model = _mlp()
    weight = model[0].weight.detach().clone()
    with pytest.raises(ValueError, match="device='meta' holds no numbers: give one that does"):
        _probe(model, [_draw(300, 6)], device=device)
    assert torch.equal(model[0].weight, weight)


@pytest.mark.parametrize("device", ["nonsense", "hpu", "cuda:99", 3.5])
def test_a_device_that_is_not_there_is_refused(device: Any) -> None:
    model = _mlp()
    with pytest.raises(ValueError) as caught:
        _probe(model, [_draw(300, 6)], device=device)
    assert f"device={str(device)!r} cannot be used here (" in str(caught.value)
    assert "give one that this machine has, such as 'cpu', or None" in str(caught.value)
    assert model[0].weight.device.type == "cpu"


def test_the_device_may_be_named() -> None:
    report = _probe(_mlp(), [_draw(300, 6)], device="cpu", sites="1")
    assert report.provenance.device == "cpu"
    assert report.notes == ()


def test_a_model_without_numbers_is_refused() -> None:
    model = _mlp().to("meta")
    with pytest.raises(ValueError, match=r"weights on the meta device, .*: load its weights first"):
        _probe(model, [_draw(300, 6)])


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"null": "rotations"}, ValueError, "no null is called 'rotations'; there are rotation, c"),
        ({"null": bp.nulls.Rotation}, ValueError, "no null is called Rotation; there are"),
        ({"scores": ["curtosis"]}, ValueError, "no score is called 'curtosis'; there are non_gau"),
        ({"scores": []}, ValueError, "scores is empty: give some of non_gaussianity, negentropy"),
        (
            {"max_samples": 0},
            ValueError,
            "max_samples=0: give a whole number above zero, or None",
        ),
        ({"seed": 0.5}, ValueError, r"seed=0.5: give a whole number from -2\*\*63 to"),
        ({"seed": 2**64}, ValueError, "seed=18446744073709551616: give a whole number"),
        ({"groups": "rotation group"}, ValueError, "no group is called 'rotation group'; near"),
        ({"groups": bp.groups.Orthogonal(5)}, ValueError, "acts on 5 features, the site has 12"),
        ({"groups": {"0": "orthogonal"}}, bp.SiteError, "groups names '0', which matches none of"),
        ({"groups": 5}, TypeError, "groups=5: give a group, its name, or a dict"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        _probe(_mlp(), [_draw(300, 6)], sites="1", **settings)


def test_a_null_needs_enough_frames_and_samples() -> None:
    with pytest.raises(ValueError, match="frames=18: fewer than 19 frames cannot reach"):
        bp.nulls.Rotation(frames=18)
    with pytest.raises(ValueError, match="samples=7: give at least 8, better 4096"):
        bp.nulls.Counterfactual(samples=7)


def test_the_counterfactual_null_is_not_to_be_had_everywhere() -> None:
    null = bp.nulls.Counterfactual(frames=19, samples=128)
    site = _probe(nn.Sequential(nn.Identity()), [_draw(300, 6)], sites="0", null=null)["0"]
    assert site.verdict.sentence.startswith(
        "Undecided: the counterfactual null was asked for, and neither the input of the linear map"
    )


# --- activations at hand --------------------------------------------------------------------------

X = np.random.default_rng(0).normal(size=(300, 4))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: {"x": X.tolist()}, TypeError, "x is a list: give a numpy array or a torch tensor"),
        (lambda: {"x": X.astype(int)}, TypeError, "x holds int64: activations are floating-point"),
        (lambda: {"x": X + 0j}, TypeError, "x holds complex128: activations are floating-point"),
        (lambda: {"x": X[0]}, ValueError, r"x has shape \(4,\): give a matrix; positions and pix"),
        (lambda: {"x": X[None, None]}, ValueError, r"x has shape \(1, 1, 300, 4\): give a matri"),
        (
            lambda: {"x": X[None, None]},
            ValueError,
            r"x.movedim\(1, -1\).flatten\(0, -2\) of m",
        ),
        (lambda: {"x": X + 0j}, TypeError, r"with torch.view_as_real\(x\).flatten\(-2\)"),
        (lambda: {"x": "x.npz"}, ValueError, "numpy.load it first, and give an array"),
        (lambda: {"x": "x.pt"}, ValueError, "torch.load it first, and give an array"),
        (lambda: {"x": X[:0]}, ValueError, r"x has shape \(0, 4\): it holds no numbers"),
        (lambda: {"x": X[:, :0]}, ValueError, r"x has shape \(300, 0\): it holds no numbers"),
        (lambda: {"x": np.where(X > 2, np.nan, X)}, ValueError, "x holds .* NaN or infinite: rem"),
        (lambda: {"x": X, "group": "rotated"}, ValueError, "no group is called 'rotated'"),
        (
            lambda: {"x": X, "group": bp.groups.Permutation(5)},
            ValueError,
            "acts on 5 features, and x has",
        ),
        (lambda: {"x": X, "pre": X}, ValueError, "pre is given without nonlinearity: name what"),
        (
            lambda: {"x": X, "pre": X[:, :3], "nonlinearity": "relu"},
            ValueError,
            r"pre has shape \(300, 3\), and its axis 1 must have 4 entries to fit x",
        ),
        (lambda: {"x": X, "nonlinearity": "relu"}, ValueError, "nonlinearity is given without"),
        (lambda: {"x": X, "inputs": X}, ValueError, "inputs and weight belong together"),
        (lambda: {"x": X, "weight": np.eye(4)}, ValueError, "inputs and weight belong together"),
        (lambda: {"x": X, "bias": X[0]}, ValueError, "bias is given without weight"),
        (
            lambda: {"x": X, "inputs": X[:200], "weight": np.eye(4)},
            ValueError,
            r"inputs has shape \(200, 4\), and its axis 0 must have 300",
        ),
        (
            lambda: {"x": X, "inputs": X, "weight": np.eye(4)[:3]},
            ValueError,
            r"weight has shape \(3, 4\), and its axis 0 must have 4",
        ),
        (
            lambda: {"x": X, "inputs": X, "weight": np.eye(4), "bias": np.zeros(3)},
            ValueError,
            "bias has 3 entries, and x has 4 axes",
        ),
        (
            lambda: {"x": X, "inputs": X, "weight": 2 * np.eye(4)},
            ValueError,
            "inputs, weight, bias and nonlinearity do not make x: they are off by",
        ),
        (
            lambda: {"x": X, "null": "counterfactual"},
            ValueError,
            "the counterfactual null needs inputs and weight, or pre and nonlinearity; x alone",
        ),
        (lambda: {"x": X, "null": "turned"}, ValueError, "no null is called 'turned'"),
        (lambda: {"x": X, "scores": "mean"}, ValueError, "no score is called 'mean'"),
        (lambda: {"x": X, "seed": "a"}, ValueError, "seed='a': give a whole number"),
    ],
)
def test_activations_that_make_no_sense_are_refused(
    make: Callable[[], dict[str, Any]], error: type[Exception], message: str
) -> None:
    settings = make()
    with pytest.raises(error, match=message):
        bp.probe_activations(settings.pop("x"), **settings)


def test_few_activations_decide_nothing() -> None:
    for count in (1, 2, 7, 8, 199):
        site = bp.probe_activations(X[:count], group="permutation", null=FEW)
        assert site.verdict.sentence.startswith(
            f"Undecided: {count} samples were seen and at least 200 are needed"
        )
    wide = np.random.default_rng(0).normal(size=(300, 50))
    site = bp.probe_activations(wide, group="general-linear", null=FEW)
    assert "at least 500 are needed" in site.verdict.sentence


def test_a_single_axis_has_nothing_to_stand_out_against() -> None:
    site = bp.probe_activations(X[:, :1], group="permutation", null=FEW)
    assert site.verdict.outcome is bp.Outcome.UNDECIDED
    assert "the 19 alternatives" in site.verdict.sentence
    assert "have the same score, so there is nothing to stand out against" in site.verdict.sentence


@pytest.mark.parametrize("seed", range(6))
def test_alternatives_that_differ_by_rounding_only_are_no_alternatives(seed: int) -> None:
    """On inputs along one direction every neuron has the one law of that, wherever it points."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 3)).eval()
        model[0].bias.data.zero_()
    data = [_draw(800, 1) ** 3 @ torch.ones(1, 16)]
    site = _probe(model, data, sites="1", null=bp.nulls.Counterfactual(frames=99))["1"]
    assert site.verdict.outcome is bp.Outcome.UNDECIDED
    assert "so there is nothing to stand out against" in site.verdict.sentence


@pytest.mark.sample(default=1)
@pytest.mark.parametrize(
    ("width", "said"),
    [
        (1, "read one input feature, so there is no other direction for them to point to"),
        (2, "have only 2 different scores, so there is nothing to stand out against"),
    ],
)
def test_an_input_too_narrow_to_be_turned_decides_nothing(width: int, said: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(width, 12), nn.ReLU(), nn.Linear(12, 3)).eval()
    null = bp.nulls.Counterfactual(frames=99, samples=256)
    site = _probe(model, [_draw(300, width) + 1], sites="1", null=null)["1"]
    assert site.verdict.outcome is bp.Outcome.UNDECIDED
    assert said in site.verdict.sentence


NO_SITES = {
    "examples without an axis for them": (
        lambda: nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)),
        [torch.randn(8) for _ in range(3)],
        r"of shapes \[8\], \[6\]",
    ),
    "a model without modules inside": (
        lambda: nn.LSTM(8, 6, batch_first=True),
        [torch.randn(5, 4, 8)],
        r"of shapes \[\d, 4, 8\]",
    ),
    "complex numbers": (
        lambda: nn.Sequential(nn.Linear(8, 6, dtype=torch.complex64), nn.Tanh()),
        [torch.randn(5, 8, dtype=torch.complex64)],
        r"a real floating-point tensor .* of shapes \[\d, 8\], \[\d, 6\]",
    ),
}


@pytest.mark.parametrize("name", NO_SITES)
def test_where_nothing_can_be_a_site_it_is_said_what_ran_and_what_to_give(name: str) -> None:
    make, data, said = NO_SITES[name]
    with pytest.raises(bp.SiteError, match=said) as raised:
        bp.probe(make(), data, progress=False)
    assert "give batches of examples, and a model of which the layers are modules" in str(
        raised.value
    )


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64, torch.float64])
@pytest.mark.parametrize("first", [lambda: nn.Linear(6, 6), lambda: nn.Conv1d(6, 6, 1)])
def test_numbers_of_another_type_than_the_weights_are_named_with_what_to_do(
    dtype: torch.dtype, first: Callable[[], nn.Module]
) -> None:
    rows = torch.ones(6, 6, dtype=dtype)
    name = str(dtype).removeprefix("torch.")
    said = rf"The batch holds {name} numbers and .* float32 weights: .* \.to\(torch\.float32\)"
    with pytest.raises(bp.DataError, match=said):
        bp.probe(nn.Sequential(first(), nn.ReLU()), [rows], progress=False)
