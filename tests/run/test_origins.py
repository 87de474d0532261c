"""Beside an embedding whose axes stand out it is said whether an untrained copy's do too."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from draws import seeded
from torch import Tensor, nn

import basis_probe as bp
from basis_probe.run.twins import drawn_anew


class _Heavy(nn.Embedding):
    """Its own code draws heavy-tailed entries."""

    def reset_parameters(self) -> None:
        with torch.no_grad():
            self.weight.copy_(torch.randn_like(self.weight) ** 3)


class _Stream(nn.Module):
    def __init__(self, kind: type[nn.Embedding]) -> None:
        super().__init__()
        self.tokens, self.out = kind(400, 24), nn.Linear(24, 400)
        self.norm, self.last = nn.RMSNorm(24), nn.RMSNorm(24)
        self.up, self.down = nn.Linear(24, 48), nn.Linear(48, 24)

    def forward(self, x: Tensor) -> Tensor:
        h = self.tokens(x)
        h = h + self.down(self.up(self.norm(h)).relu())
        return self.out(self.last(h))


def _model(kind: type[nn.Embedding]) -> _Stream:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return _Stream(kind).eval()


def _refused(model: nn.Module) -> str:
    found = drawn_anew(model)
    assert isinstance(found, str)
    return found


def _data(batches: int = 2) -> list[Tensor]:
    return list(torch.randint(400, (64, 16), generator=seeded(0)).split(64 // batches))


_ASKED: dict[str, Any] = {"sites": "blocks.0", "certificates": False, "progress": False}
_WITHIN = "an untrained copy, drawn by its modules' own rules, stands out by form"


class _Deep(_Stream):
    """The stream behind the first layer is a site of its own, in a numbered block."""

    def __init__(self, kind: type[nn.Embedding]) -> None:
        super().__init__(kind)
        self.blocks = nn.ModuleList([nn.Identity()])

    def forward(self, x: Tensor) -> Tensor:
        h = self.tokens(x)
        h = self.blocks[0](h + 0.1 * self.down(self.up(self.norm(h)).relu()))
        return self.out(self.last(h))


def _deep(kind: type[nn.Embedding], seed: int = 3) -> _Deep:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _Deep(kind).eval()


@pytest.mark.slow
def test_every_site_is_asked_on_request_and_none_where_it_is_refused() -> None:
    model = _deep(_Heavy)
    unasked = bp.probe(model, _data(), **_ASKED)["blocks.0"].verdict
    assert "training, or an initialisation with axes of its own" in unasked.sentence
    asked = bp.probe(model, _data(), initialisation=True, **_ASKED)["blocks.0"].verdict
    # Two batches have fewer samples than are compared, so that both are read.
    assert _WITHIN in asked.sentence and "on the first 2 batches" in asked.sentence
    assert "initialisation, not training" in asked.sentence
    assert (asked.outcome, asked.orders) == (unasked.outcome, unasked.orders)
    embedding: dict[str, Any] = {**_ASKED, "sites": "tokens"}
    default = bp.probe(model, _data(), **embedding)["tokens"].verdict
    refused = bp.probe(model, _data(), initialisation=False, **embedding)["tokens"].verdict
    assert _WITHIN in default.sentence and _WITHIN not in refused.sentence


@pytest.mark.slow
def test_a_network_that_is_given_stands_for_the_initialisation() -> None:
    model = _deep(nn.Embedding)
    start = copy.deepcopy(model)
    with torch.no_grad():
        model.tokens.weight.copy_(torch.randn(400, 24, generator=seeded(1)) ** 3)
    # Where data can be read only once, the first batch is left.
    once = bp.probe(model, iter(_data()), initialisation=start, **_ASKED)["blocks.0"].verdict
    assert "the network that was given as untrained does not stand out by form" in once.sentence
    assert "on the first batch: training made these axes stand out" in once.sentence
    assert "other code" not in once.sentence
    both = bp.probe(model, _data(), initialisation=copy.deepcopy(model), **_ASKED)[
        "blocks.0"
    ].verdict
    assert "initialisation, not training" in both.sentence


@pytest.mark.slow
def test_all_doors_ask_an_untrained_network() -> None:
    model, data = _deep(_Heavy), _data()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    calls: list[int] = []
    model.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    with bp.attach(model, sites="blocks.0", certificates=False, initialisation=True) as attached:
        for batch in data:
            model(batch)
    seen = len(calls)
    assert "initialisation, not training" in attached.report()["blocks.0"].verdict.sentence
    assert len(calls) == seen, "hooks of the user's saw the report's own passes"
    partial = bp.observe(model, data, sites="blocks.0", progress=False)
    with pytest.raises(ValueError, match=r"first two examples only.*give data="):
        partial.report(model, initialisation=True)
    made = partial.report(model, initialisation=True, data=data, certificates=False, progress=False)
    assert "initialisation, not training" in made["blocks.0"].verdict.sentence
    beside = bp.probe(model, data, reference=_deep(_Heavy, 4), initialisation=True, **_ASKED)
    assert "initialisation, not training" in beside["blocks.0"].verdict.sentence
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class _Bare(_Deep):
    """No rule says how the factor was drawn."""

    def __init__(self, kind: type[nn.Embedding]) -> None:
        super().__init__(kind)
        self.factor = nn.Parameter(torch.ones(3))


@pytest.mark.slow
def test_what_is_not_known_of_the_initialisation_is_said() -> None:
    model, said = _Bare(_Heavy).eval(), "Whether the initialisation has such axes is not known of"
    report = bp.probe(model, _data(), initialisation=True, **_ASKED)
    verdict = report["blocks.0"].verdict
    assert f"{said} blocks.0: no rule is known by which factor was drawn." in report.notes
    assert "training, or an initialisation with axes of its own" in verdict.sentence
    other = bp.probe(model, _data(), initialisation=_model(_Heavy), **_ASKED)
    assert f"{said} blocks.0: the untrained network has no such site." in other.notes

    class Broken(_Deep):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("on purpose")

    broken = bp.probe(model, _data(), initialisation=Broken(_Heavy), **_ASKED)
    assert any(f"{said} blocks.0: the untrained network failed" in note for note in broken.notes)
    few = bp.probe(model, iter(_data(16)), initialisation=_deep(_Heavy), **_ASKED)
    assert any("64 samples were seen and at least 200" in note for note in few.notes)


@pytest.mark.parametrize("wrap", [lambda model: model, nn.DataParallel, nn.Sequential])
def test_the_model_itself_is_no_initialisation(wrap: Any) -> None:
    model = _deep(nn.Embedding)
    partial = bp.observe(model, _data(16), sites="blocks.0", progress=False)
    for door in (
        lambda: bp.probe(model, _data(), initialisation=wrap(model), **_ASKED),
        lambda: bp.attach(model, initialisation=wrap(model)),
        lambda: partial.report(model, initialisation=wrap(model), data=_data()),
    ):
        with pytest.raises(ValueError, match="initialisation is the model itself"):
            door()


@pytest.mark.slow
def test_a_compiled_network_is_asked_as_the_one_that_it_was_compiled_from() -> None:
    model, start = _deep(_Heavy), _deep(_Heavy, 4)
    compiled = torch.compile(start, backend="eager")
    reports = [bp.probe(model, _data(), initialisation=one, **_ASKED) for one in (start, compiled)]
    assert reports[0] == reports[1]


def test_layers_without_a_size_are_named_before_anything_runs() -> None:
    lazy = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, 3))
    data = [torch.randn(300, 5)]
    with pytest.raises(ValueError, match=r"0\.weight has no numbers yet.*run the model once"):
        bp.probe(lazy, data, progress=False)
    lazy(data[0])
    assert bp.probe(lazy, data, progress=False).sites


def _verdict(model: _Stream) -> bp.Verdict:
    data = list(torch.randint(400, (64, 16), generator=seeded(0)).split(32))
    report = bp.probe(model, data, sites="tokens", certificates=False, progress=False)
    return report["tokens"].verdict


@pytest.mark.slow
def test_axes_that_the_code_draws_are_of_the_initialisation() -> None:
    verdict = _verdict(_model(_Heavy))
    assert verdict.outcome is bp.Outcome.EMERGENT and "form" in verdict.orders
    assert "form too on the first batch: initialisation, not training" in verdict.sentence


@pytest.mark.slow
def test_axes_that_the_code_does_not_draw_are_of_the_training() -> None:
    model = _model(nn.Embedding)
    with torch.no_grad():
        model.tokens.weight.copy_(torch.randn(400, 24, generator=seeded(1)) ** 3)
    verdict = _verdict(model)
    assert verdict.outcome is bp.Outcome.EMERGENT and "form" in verdict.orders
    assert "training made these axes stand out" in verdict.sentence
    assert "initialisation, not training" not in verdict.sentence


@pytest.mark.slow
def test_nothing_is_said_of_parameters_without_a_rule() -> None:
    model = _model(_Heavy)
    model.register_parameter("factor", nn.Parameter(torch.ones(3)))
    verdict = _verdict(model)
    assert verdict.outcome is bp.Outcome.EMERGENT
    assert "training, or an initialisation with axes of its own" in verdict.sentence


def test_copies_are_drawn_by_rules_alone() -> None:
    model = _model(_Heavy)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    drawn = drawn_anew(model, seed=1)
    assert isinstance(drawn, _Stream) and torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    entries = drawn.tokens.weight.detach()
    assert float((entries**4).mean() / (entries**2).mean() ** 2) > 6
    assert bool(drawn.norm.weight.eq(1).all())
    other, again = drawn_anew(model, seed=2), drawn_anew(model, seed=1)
    assert isinstance(other, _Stream) and isinstance(again, _Stream)
    assert not torch.equal(other.tokens.weight, entries)
    assert torch.equal(again.tokens.weight, entries)

    class Around(nn.Module):
        """Answers with what the model inside it has, and has not itself."""

        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def __getattr__(self, name: str) -> Any:
            if name in ("inner", "_modules"):
                return super().__getattr__(name)
            return getattr(self.inner, name)

    inside = nn.Linear(3, 4)
    inside._is_hf_initialized = True  # pyright: ignore[reportAttributeAccessIssue]
    around = drawn_anew(Around(inside))
    assert isinstance(around, Around) and not torch.equal(around.inner.weight, inside.weight)

    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.factor = nn.Linear(3, 3), nn.Parameter(torch.ones(3))

    tied = _model(nn.Embedding)
    tied.out.weight = tied.tokens.weight
    # By the embedding's rule or the linear layer's.
    assert "tokens.weight" in _refused(tied)

    class Strange(nn.Linear):
        def reset_parameters(self, *given: int) -> None:
            if not hasattr(self, "weight") or given or self.weight.isnan().any():
                raise RuntimeError("not so")

    assert "RuntimeError: not so" in _refused(Strange(2, 2))
    assert "by which factor was drawn" in _refused(Bare())
    assert isinstance(drawn_anew(nn.Linear(3, 4)), nn.Module)
    assert "on meta" in _refused(nn.Linear(3, 4, device="meta"))
