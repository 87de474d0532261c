"""Attached to a model, a probe collects from what the user runs, and changes nothing of it."""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import basis_probe as bp
from basis_probe import demo

# Few frames of a cheap null, on sites where it misleads and says so.
pytestmark = pytest.mark.filterwarnings("ignore::basis_probe.MisleadingNull")

FEW = bp.nulls.Rotation(frames=19)
"""Enough for a report; what it says is tested elsewhere."""


def _net(*, dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 12),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(12, 8),
        nn.GELU(),
        nn.Linear(8, 3),
    )


def _data(batches: int = 4, size: int = 80) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, 6, generator=generator) for _ in range(batches)]


def _state(model: nn.Module) -> list[object]:
    """Everything of a model that an attachment could leave something in."""
    return [
        (
            path,
            sorted(vars(module)),
            list(module._forward_hooks.items()),
            list(module._forward_pre_hooks.items()),
            module.training,
        )
        for path, module in model.named_modules()
    ]


@pytest.fixture(scope="module")
def bridge() -> Any:
    return demo.load()


@pytest.fixture
def llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=50, pad_token_id=0, bos_token_id=1, eos_token_id=49,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


# --- it sees what is run --------------------------------------------------------------------------


@pytest.mark.slow
def test_an_evaluation_of_the_users_gives_the_report_that_a_probe_gives() -> None:
    model, data = _net().eval(), _data()
    with bp.attach(model, seed=3, null=FEW) as probe:
        for batch in data:
            model(batch)
    assert probe.passes == 4
    found = probe.report()
    expected = bp.probe(model, data, seed=3, null=FEW, progress=False)
    assert found.site_reports == expected.site_reports
    assert not found.partial
    assert found.provenance.data == "4 forward passes that the user made, 320 examples"


def test_a_padding_mask_drops_padding(llama: Any) -> None:
    tokens = torch.randint(2, 49, (3, 10), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(tokens)
    mask[1, 6:] = mask[2, :3] = 0
    with (
        torch.no_grad(),
        bp.attach(llama, sites="model.layers.0", null=FEW, certificates=False) as probe,
    ):
        llama(input_ids=tokens, attention_mask=mask)
        llama(tokens, mask)
    assert probe.report()["model.layers.0"].n_samples == 2 * int(mask.sum())


@pytest.mark.slow
def test_generation_with_a_cache(llama: Any) -> None:
    prompt = torch.randint(2, 49, (2, 5), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(prompt)
    mask[0, 0] = 0
    options = {"max_new_tokens": 6, "do_sample": False, "min_new_tokens": 6}
    expected = llama.generate(prompt, attention_mask=mask, **options)
    with bp.attach(
        llama, sites=["model.layers.1", "*.act_fn"], certificates=False, null=FEW
    ) as probe:
        found = llama.generate(prompt, attention_mask=mask, **options)
    assert torch.equal(found, expected)
    assert probe.passes == 6
    report = probe.report()
    # The prompt without its padding, then one token of either text in every further pass.
    assert {site.n_samples for site in report} == {9 + 5 * 2}


def test_equal_tokens_at_different_steps_are_different_samples(llama: Any) -> None:
    def kept(probe: bp.Attachment) -> int:
        session = probe._session
        assert session is not None
        return len(session.stream.seen["model.layers.0"].kept.rows["example"].unique())

    token = torch.full((1, 1), 7)
    with (
        torch.no_grad(),
        bp.attach(llama, sites="model.layers.0", null=FEW, certificates=False) as probe,
    ):
        past = None
        for _ in range(5):
            past = llama(token, past_key_values=past, use_cache=True).past_key_values
    # The first pass has no past; the others are told apart by it.
    assert kept(probe) == 5
    with (
        torch.no_grad(),
        bp.attach(llama, sites="model.layers.0", null=FEW, certificates=False) as probe,
    ):
        for _ in range(5):
            llama(token)
    assert kept(probe) == 1


@pytest.mark.slow
def test_strings_given_to_a_model_of_transformerlens(bridge: Any) -> None:
    texts = ["the cat sleeps", "a dog"]
    lengths = [bridge.to_tokens(text).shape[1] for text in texts]
    assert lengths[0] != lengths[1]
    site = "blocks.0.hook_resid_pre"
    with torch.no_grad(), bp.attach(bridge, sites=site, certificates=False, null=FEW) as probe:
        bridge(texts)
        bridge(texts[0])
    assert probe.report()[site].n_samples == 2 * lengths[0] + lengths[1]


@pytest.mark.slow
def test_run_with_hooks_and_run_with_cache(bridge: Any) -> None:
    tokens = bridge.to_tokens(demo.texts(4, seed=0)[0])
    site = "blocks.1.hook_resid_pre"

    def zeroed(value: Tensor, hook: object) -> Tensor:
        return torch.zeros_like(value)

    def run() -> tuple[Tensor, Tensor, Any]:
        with torch.no_grad():
            ablated = bridge.run_with_hooks(tokens, fwd_hooks=[(site, zeroed)])
            logits, cache = bridge.run_with_cache(tokens)
        return ablated, logits, cache

    ablated, logits, cache = run()
    with bp.attach(bridge, sites=site, certificates=False, null=FEW) as probe:
        again = run()
    assert torch.equal(again[0], ablated)
    assert torch.equal(again[1], logits)
    assert torch.equal(again[2][site], cache[site])
    assert probe.passes == 2
    session = probe._session
    assert session is not None
    moments = session.stream.seen[site].moments
    # The ablated pass is seen as the hook left it: zeros.
    torch.testing.assert_close(moments.mean, cache[site][0].double().sum(0) / (2 * tokens.numel()))


def test_max_samples_ends_the_collecting_and_not_the_run() -> None:
    model, data = _net().eval(), _data()
    with bp.attach(model, sites="1", null=FEW, max_samples=100) as probe:
        outputs = [model(batch) for batch in data]
    assert len(outputs) == 4
    assert probe.passes == 2
    assert probe.report()["1"].n_samples == 100


# --- it changes nothing ---------------------------------------------------------------------------


def _train(model: nn.Module, data: list[Tensor]) -> list[Tensor]:
    torch.manual_seed(5)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for batch in data:
        optimiser.zero_grad()
        model(batch).square().mean().backward()
        optimiser.step()
    return [parameter.detach().clone() for parameter in model.parameters()]


def test_training_comes_out_the_same_with_dropout_too() -> None:
    data = _data()
    expected = _train(_net(dropout=0.5), data)
    model = _net(dropout=0.5)
    with bp.attach(model, sites=["1", "2"], certificates=False, null=FEW) as probe:
        found = _train(model, data)
    assert all(map(torch.equal, found, expected))
    assert model.training
    report = probe.report()
    assert model.training
    assert any("in training mode in 4 of 4" in note for note in report.notes)
    # What dropout did is in the activations: more zeros behind it than before it.
    session = probe._session
    assert session is not None
    before, behind = (session.stream.seen[name].kept.rows["x"] for name in ("1", "2"))
    assert (behind == 0).float().mean() > (before == 0).float().mean() + 0.2


def test_hooks_of_the_users_see_their_own_passes_only() -> None:
    model = _net().eval()
    calls: list[int] = []
    early = model[1].register_forward_hook(lambda *_: calls.append(1))
    with bp.attach(model, sites="1", null=FEW) as probe:
        late = model[0].register_forward_hook(lambda _, __, out: 2 * out)
        doubled = model(_data()[0])
        late.remove()
        plain = model(_data()[0])
    early.remove()
    assert calls == [1, 1]
    assert not torch.equal(doubled, plain)
    session = probe._session
    assert session is not None
    moments = session.stream.seen["1"].moments
    seen = _net()[:2](_data()[0]).detach().double()
    torch.testing.assert_close(moments.mean, 1.5 * seen.mean(0))


def test_inference_mode_and_autocast() -> None:
    model, data = _net().eval(), _data()
    with torch.inference_mode(), bp.attach(model, sites="1", null=FEW) as probe:
        for batch in data:
            model(batch)
    assert probe.report()["1"].n_samples == 320
    with torch.autocast("cpu", torch.bfloat16), bp.attach(model, sites="1", null=FEW) as probe:
        model(data[0])
    assert probe.report()["1"].n_samples == 80


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_behind(error: type[BaseException] | None) -> None:
    model = _net()
    before, data = _state(model), _data()
    probe = bp.attach(model, sites="1", null=FEW)
    assert _state(model) == before
    with contextlib.suppress(RuntimeError, KeyboardInterrupt), probe:
        model(data[0])
        model(data[1])
        if error is not None:
            raise error("on purpose")
    assert _state(model) == before
    report = probe.report()
    assert _state(model) == before
    assert report.partial is (error is not None)
    assert report["1"].n_samples == 160


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_pass_that_fails_does_not_count(error: type[BaseException]) -> None:
    class Fragile(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(6, 6)

        def forward(self, x: Tensor, fails: bool = False) -> Tensor:
            out = self.inner(x)
            if fails:
                raise error("on purpose")
            return out

    model = Fragile().eval()
    before = _state(model)
    with bp.attach(model, sites="inner", null=FEW) as probe:
        model(_data()[0])
        with pytest.raises(error, match="on purpose"):
            model(_data()[1], fails=True)
        model(_data()[2])
    assert _state(model) == before
    report = probe.report()
    assert report["inner"].n_samples == 160
    assert "1 forward passes ended with an exception" in " ".join(report.notes)


def test_copies_of_the_model_are_models_of_their_own() -> None:
    model, x = _net().eval(), _data()[0]
    with bp.attach(model, sites="1", null=FEW) as probe:
        model(x)
        twin = copy.deepcopy(model)
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        loaded = torch.load(file, weights_only=False)
        with torch.no_grad():
            for other in (twin, loaded):
                other[0].weight.zero_()
        assert not torch.equal(twin(x), model(x))
        assert torch.equal(twin(x), loaded(x))
        assert probe.passes == 2
    assert torch.equal(twin(x), loaded(x))


# --- several at once ------------------------------------------------------------------------------


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("first_to_leave", [0, 1])
def test_two_at_once(first_to_leave: int) -> None:
    model, data = _net().eval(), _data()
    before = _state(model)
    alone: list[bp.Report] = []
    for site in ("1", "4"):
        with bp.attach(model, sites=site, null=FEW) as probe:
            for batch in data:
                model(batch)
        alone.append(probe.report())
    probes = [bp.attach(model, sites="1", null=FEW), bp.attach(model, sites="4", null=FEW)]
    for probe in probes:
        probe.__enter__()
    for batch in data:
        model(batch)
    probes[first_to_leave].__exit__(None, None, None)
    model(data[0])
    probes[1 - first_to_leave].__exit__(None, None, None)
    assert _state(model) == before
    assert probes[first_to_leave].report() == alone[first_to_leave]
    assert probes[1 - first_to_leave].passes == 5


@pytest.mark.slow
def test_a_part_of_a_model_and_the_whole() -> None:
    model, data = nn.Sequential(_net(), nn.Linear(3, 2)).eval(), _data()
    part = model[0]
    with (
        bp.attach(part, sites="1", null=FEW, example_input=data[0]) as inner,
        bp.attach(model, sites="0.1", null=FEW) as outer,
    ):
        for batch in data:
            model(batch)
    assert inner.report()["1"].n_samples == outer.report()["0.1"].n_samples == 320
    said = r"runs inside another one .* give example_input"
    with bp.attach(part) as inner, bp.attach(model), pytest.warns(UserWarning, match=said):
        assert torch.equal(model(data[0]), model(data[0]))
    with pytest.raises(ValueError, match=said):
        inner.report()


@pytest.mark.slow
def test_a_report_inside_the_block_and_more_after_it() -> None:
    model, data = _net().eval(), _data()
    with bp.attach(model, sites="1", null=FEW) as probe:
        model(data[0])
        early = probe.report()
        model(data[1])
    assert early["1"].n_samples == 80
    assert probe.report()["1"].n_samples == 160
    with probe:
        model(data[2])
    assert probe.report()["1"].n_samples == 240


# --- what it refuses ------------------------------------------------------------------------------


def test_what_cannot_be_collected() -> None:
    model = _net().eval()
    with pytest.raises(ValueError, match="max_samples=0"):
        bp.attach(model, max_samples=0)
    with bp.attach(model) as probe:
        pass
    with pytest.raises(bp.DataError, match="no forward pass of the model has been seen"):
        probe.report()
    unknown = pytest.raises(bp.SiteError, match="no site matches 'nowhere'")
    with bp.attach(model, sites="nowhere") as probe, pytest.warns(UserWarning, match="nowhere"):
        # The user's run goes on; the report is where it is an error.
        assert model(_data()[0]).shape[0] == len(_data()[0])
    with unknown:
        probe.report()
    unknown = pytest.raises(bp.SiteError, match="no site matches 'nowhere'")
    with unknown, bp.attach(model, sites="nowhere", example_input=_data()[0]):
        raise AssertionError("the block must not start")
    assert "forward" not in vars(model)
    with pytest.raises(RuntimeError, match="in use"), bp.attach(model) as probe, probe:
        pass


class Nothing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)

    def forward(self, x: Any = None, *, many: Any = None) -> Tensor:
        return self.inner(torch.ones(3, 2))


def test_a_call_without_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Nothing().eval()
    with bp.attach(model) as probe, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert model(many=3).shape == model(["a", "b"]).shape == (3, 2)
    assert "forward pass 0 holds no tensor with examples" in str(said[0].message)
    assert "called with strings and has no to_tokens" in str(said[1].message)
    with pytest.raises(bp.DataError, match="called with strings and has no to_tokens"):
        probe.report()


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
