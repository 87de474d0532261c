"""`probe` finds the places, counts what it should, and leaves everything as it was."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import math
import sys
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import basis_probe as bp
from basis_probe import demo
from basis_probe.run import report as concluding

# Few frames of a cheap null, on sites where it misleads and says so.
pytestmark = pytest.mark.filterwarnings("ignore::basis_probe.MisleadingNull")

FEW = bp.nulls.Rotation(frames=19, samples=64)


def _probe(model: nn.Module, data: Any, **settings: Any) -> bp.Report:
    return bp.probe(model, data, **{"progress": False, "null": FEW, **settings})


def _draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _tokens(*shape: int, high: int = 50, seed: int = 0) -> Tensor:
    return torch.randint(1, high, shape, generator=torch.Generator().manual_seed(seed))


def _kurtosis(x: Tensor) -> float:
    """Mean over axes of the fourth standardised moment, by another route than the package's."""
    values = x.detach().double().numpy()
    centred = values - values.mean(0)
    return float(np.mean((centred**4).mean(0) / (centred**2).mean(0) ** 2))


def _across(x: Tensor, *, centred: bool = False) -> float:
    """Mean over samples of the kurtosis across axes."""
    values = x.detach().double().numpy()
    if centred:
        values = values - values.mean(1, keepdims=True)
    return float(np.mean(values.shape[1] * (values**4).sum(1) / (values**2).sum(1) ** 2))


def _alike(one: bp.SiteReport, other: bp.SiteReport, *, within: float = 0.0) -> None:
    """The numbers of two sites agree, whatever the sites are called."""
    assert (one.dim, one.n_samples, one.n_dead) == (other.dim, other.n_samples, other.n_dead)
    assert one.scores.keys() == other.scores.keys()
    for name, here in one.scores.items():
        there = other.scores[name]
        for field in ("observed", "null_mean", "null_std", "all_samples"):
            assert getattr(here, field) == pytest.approx(
                getattr(there, field), rel=within, abs=within, nan_ok=True
            ), (name, field)
        np.testing.assert_allclose(
            here.per_direction, there.per_direction, rtol=within, atol=within
        )
    assert one.verdict.outcome is other.verdict.outcome


# --- models ---------------------------------------------------------------------------------------


def _native(**settings: Any) -> Any:
    from transformer_lens import TransformerBridge, TransformerBridgeConfig

    plan = {
        "d_model": 16, "d_head": 4, "n_heads": 4, "n_layers": 2, "n_ctx": 32, "d_vocab": 50,
        "d_mlp": 24, "seed": 0, "act_fn": "gelu_new", "normalization_type": "LN",
    }  # fmt: skip
    return TransformerBridge.boot_native(TransformerBridgeConfig(**{**plan, **settings})).eval()


@pytest.fixture(scope="module")
def gpt() -> Any:
    return _native()


@pytest.fixture(scope="module")
def llama() -> Any:
    return _native(
        act_fn="silu",
        normalization_type="RMS",
        gated_mlp=True,
        positional_embedding_type="rotary",
        n_key_value_heads=2,
        final_rms=True,
    )


@pytest.fixture(scope="module")
def bridge() -> Any:
    return demo.load()


@pytest.fixture(scope="module")
def hugging_face() -> tuple[Any, Any]:
    return demo.load_hf()


def _mlp(seed: int = 0, width: int = 12) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3)).eval()


class Residual(nn.Module):
    """Calls its nonlinearities as functions, one of them in place."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.first, self.second, self.third = (nn.Linear(6, 6) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        y = torch.relu_(self.second(x))
        return self.third(x + y)


# --- names ----------------------------------------------------------------------------------------


ALIASES = {
    "blocks.0.hook_resid_pre": "blocks.0.hook_in",
    "blocks.0.attn.hook_q": "blocks.0.attn.q.hook_out",
    "blocks.0.mlp.hook_post": "blocks.0.mlp.out.hook_in",
    "blocks.1.attn.hook_z": "blocks.1.attn.o.hook_in",
    "blocks.1.mlp.hook_pre": "blocks.1.mlp.in.hook_out",
    "blocks.1.hook_resid_post": "blocks.1.hook_out",
}


@pytest.mark.slow
def test_a_place_has_one_set_of_numbers_under_both_of_its_names(gpt: Any) -> None:
    data = [_tokens(12, 20)]
    known, canonical = list(ALIASES), list(ALIASES.values())
    one, other = _probe(gpt, data, sites=known), _probe(gpt, data, sites=canonical)
    assert sorted(one.sites) == sorted(known)
    assert other.sites == tuple(ALIASES[name] for name in one.sites)
    for here, there in zip(one, other, strict=True):
        assert dataclasses.replace(there, site=here.site) == here
    # Both names of one place may be asked for together.
    both = _probe(_small_bridge(), data, sites=[known[0], canonical[0]])
    assert sorted(both.sites) == sorted([known[0], canonical[0]])
    assert dataclasses.replace(both[canonical[0]], site=known[0]) == both[known[0]]


@pytest.mark.slow
def test_globs_stand_for_every_name_that_they_match(gpt: Any) -> None:
    data = [_tokens(12, 20)]
    found = _probe(gpt, data, sites="blocks.*.mlp.hook_post")
    assert found.sites == ("blocks.0.mlp.hook_post", "blocks.1.mlp.hook_post")
    assert [site.layer for site in found] == [0, 1]
    found = _probe(gpt, data, sites=["blocks.1.attn.hook_?", "blocks.0.mlp.hook_post"])
    first, *attention = found.sites
    assert first == "blocks.0.mlp.hook_post"
    assert sorted(attention) == [f"blocks.1.attn.hook_{letter}" for letter in "kqvz"]


@pytest.mark.slow
def test_a_glob_counts_every_place_once_under_its_best_name() -> None:
    model, data = Residual().eval(), [_draw(300, 6)]
    found = _probe(model, data, sites="*")
    assert found.sites == ("first:in", "first", "relu()", "second", "relu():2", "third:in", "third")
    # Unless the other name is asked for.
    assert _probe(model, data, sites="*:in").sites == ("first:in", "second:in", "third:in")
    assert "second:in" in _probe(model, data, sites=["*", "second:in"]).sites
    assert "relu()" not in _probe(model, data, sites=["*", "second:in"]).sites


def test_an_iterator_of_names_is_read_once_and_recorded() -> None:
    report = _probe(_mlp(), [_draw(300, 6)], sites=iter(["1", "0"]))
    assert report.sites == ("0", "1")
    assert report.provenance.settings["sites"] == "1, 0"


@pytest.mark.slow
def test_by_default_the_sites_are_those_that_people_read(gpt: Any, llama: Any) -> None:
    expected = [
        f"blocks.{layer}.{name}"
        for layer in range(2)
        for name in ("hook_resid_pre", "attn.hook_z", "hook_resid_mid", "mlp.hook_post")
    ] + ["blocks.1.hook_resid_post"]
    for model in (gpt, llama):
        report = _probe(model, [_tokens(12, 20)])
        assert list(report.sites) == expected
    assert report["blocks.0.attn.hook_z"].symmetry.group.dim == 16
    assert report["blocks.0.mlp.hook_post"].shape == (24,)


@pytest.mark.slow
def test_the_architecture_speaks_through_the_report(gpt: Any, llama: Any) -> None:
    groups = {}
    for name, model in (("gpt", gpt), ("llama", llama)):
        report = _probe(model, [_tokens(12, 20)])
        groups |= {(name, site.site.split(".", 2)[2]): site.symmetry.privileged for site in report}
    kinds = bp.Privileged
    assert groups["gpt", "hook_resid_pre"] is kinds.LINE
    assert groups["llama", "hook_resid_pre"] is kinds.NONE
    for model in ("gpt", "llama"):
        assert groups[model, "mlp.hook_post"] is kinds.AXES
        assert groups[model, "attn.hook_z"] is kinds.BLOCKS


@pytest.mark.slow
def test_plain_modules_have_their_functional_nonlinearities_as_sites() -> None:
    model, x = Residual().eval(), _draw(400, 6)
    report = _probe(model, [x], sites="*")
    assert {"first", "relu()", "second", "relu():2", "third"} <= set(report.sites)
    first = F.relu(model.first(x))
    second = F.relu(model.second(first))
    for name, truth in (
        ("first:in", x),
        ("relu()", first),
        # Overwritten in place by the second relu: what the module returned is caught before.
        ("second", model.second(first)),
        ("relu():2", second),
        ("third:in", first + second),
    ):
        assert report[name].scores["kurtosis"].all_samples == pytest.approx(
            _kurtosis(truth), rel=1e-6
        ), name


@pytest.mark.slow
def test_channels_are_features_and_pixels_are_samples() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(2)
            self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
            self.out = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(F.relu(self.norm(self.conv(x))).mean((2, 3)))

    with torch.random.fork_rng(devices=[]):
        model = Net().eval()
    x = _draw(10, 3, 6, 5)
    report = _probe(model, [x[:4], x[4:]], null=None)
    assert report.sites == ("relu()",)
    site = report["relu()"]
    truth = F.relu(model.norm(model.conv(x))).movedim(1, -1).reshape(-1, 8)
    assert (site.dim, site.n_samples) == (8, 300)
    assert site.scores["kurtosis"].all_samples == pytest.approx(_kurtosis(truth), rel=1e-5)
    assert site.null is not None
    assert site.null.name == "counterfactual"


@pytest.mark.slow
def test_heads_are_kept_apart_in_a_hugging_face_model_and_its_bridge_says_the_same(
    bridge: Any, hugging_face: tuple[Any, Any]
) -> None:
    model, tokenizer = hugging_face
    texts = demo.texts(4, 5)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    pairs = {
        "model.layers.0": "blocks.0.hook_resid_post",
        "model.layers.1.mlp.down_proj:in": "blocks.1.mlp.hook_post",
        "model.layers.2.mlp.gate_proj": "blocks.2.mlp.hook_pre",
    }
    plain = _probe(model, [batch], sites=list(pairs))
    known = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    hooked = _probe(bridge, [known], sites=list(pairs.values()))
    assert set(plain.sites) == set(pairs)
    for here, there in pairs.items():
        assert plain[here].n_samples == int(batch["attention_mask"].sum())
        assert type(plain[here].symmetry.group) is type(hooked[there].symmetry.group)
        _alike(plain[here], hooked[there], within=1e-4)


class Point(nn.Identity):
    """A hook point as old models of TransformerLens have them."""

    def __init__(self) -> None:
        super().__init__()
        self.fwd_hooks: list[Any] = []


class OldModel(nn.Module):
    """What is needed of an older HookedTransformer, with a point that fires three times."""

    def __init__(self) -> None:
        super().__init__()
        self.cfg = type("Config", (), {"model_name": "old", "n_ctx": 16})()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.embed = nn.Embedding(50, 8)
            self.maps = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
            self.inner, self.outer = nn.Linear(8, 10), nn.Linear(10, 8)
        self.hook_embed, self.hook_scale, self.hook_post = Point(), Point(), Point()
        self.never = Point()

    @property
    def hook_dict(self) -> dict[str, nn.Module]:
        return {
            "hook_embed": self.hook_embed,
            "blocks.0.hook_scale": self.hook_scale,
            "blocks.0.mlp.hook_post": self.hook_post,
            "blocks.0.never": self.never,
        }

    def run_with_hooks(self) -> None:
        raise AssertionError("a plain call is enough")

    def forward(self, input: Tensor, return_type: str = "logits") -> Tensor:
        x = self.hook_embed(self.embed(input))
        for linear in self.maps:
            x = x + linear(self.hook_scale(F.layer_norm(x, (8,))))
        return x + self.outer(self.hook_post(F.gelu(self.inner(F.layer_norm(x, (8,))))))


def test_an_older_hooked_transformer_is_known_by_what_it_has() -> None:
    model, tokens = OldModel().eval(), _tokens(30, 10)
    report = _probe(model, [{"input_ids": tokens}], sites="*")
    assert report.sites == ("hook_embed", "blocks.0.hook_scale", "blocks.0.mlp.hook_post")
    assert report["blocks.0.mlp.hook_post"].symmetry.group == bp.groups.Permutation(10)
    assert report.provenance.model.startswith("OldModel old (")
    # A point that fires three times is not counted three times: its first call is the site.
    normed = F.layer_norm(model.embed(tokens), (8,)).reshape(-1, 8)
    site = report["blocks.0.hook_scale"]
    assert site.n_samples == 300
    assert site.scores["kurtosis"].all_samples == pytest.approx(_kurtosis(normed), rel=1e-5)


def test_later_calls_of_a_module_are_sites_of_their_own() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.ReLU()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(4)
                self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.two(self.act(self.one(x))))

    model, x = Twice().eval(), _draw(300, 6)
    report = _probe(model, [x[:100], x[100:]], sites=["act", "act:2"])
    first = F.relu(model.one(x))
    for name, truth in (("act", first), ("act:2", F.relu(model.two(first)))):
        assert report[name].n_samples == 300
        assert report[name].scores["kurtosis"].all_samples == pytest.approx(
            _kurtosis(truth), rel=1e-5
        )


def test_a_rotation_asked_for_behind_a_nonlinearity_leaves_still_units_out() -> None:
    model = _mlp()
    with torch.no_grad():
        model[0].weight[:4], model[0].bias[:4] = 0, -1
    for null in (FEW, bp.nulls.Counterfactual(frames=19, samples=64)):
        site = _probe(model, [_draw(300, 6)], sites="1", null=null)["1"]
        assert site.n_dead == 4
        assert np.isnan(site.scores["kurtosis"].per_direction).sum() == 4
        assert math.isfinite(site.scores["kurtosis"].effect)


# --- padding --------------------------------------------------------------------------------------


def _padded(rows: list[Tensor], side: str) -> dict[str, Tensor]:
    width = max(len(row) for row in rows)
    ids, mask = torch.zeros(len(rows), width, dtype=torch.int64), None
    mask = torch.zeros_like(ids)
    for place, row in enumerate(rows):
        where = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        ids[place, where], mask[place, where] = row, 1
    return {"input_ids": ids, "attention_mask": mask}


def _sentences(count: int = 6, seed: int = 0) -> list[Tensor]:
    lengths = _tokens(count, high=14, seed=seed + 100) + 2
    return [_tokens(int(length), seed=seed + row) for row, length in enumerate(lengths)]


@pytest.mark.parametrize(
    ("kind", "side"),
    [
        ("gpt", "left"),
        ("llama", "right"),
        pytest.param("gpt", "right", marks=pytest.mark.slow),
        pytest.param("llama", "left", marks=pytest.mark.slow),
    ],
)
def test_padding_counts_nowhere(kind: str, side: str, request: pytest.FixtureRequest) -> None:
    model, rows = request.getfixturevalue(kind), _sentences(4)
    sites = ["blocks.0.hook_resid_pre", "blocks.1.attn.hook_z", "blocks.1.mlp.hook_post"]
    padded = _probe(model, [_padded(rows[:2], side), _padded(rows[2:], side)], sites=sites)
    bare = _probe(model, [row[None] for row in rows], sites=sites)
    assert padded.sites == bare.sites
    for name in bare.sites:
        assert padded[name].n_samples == sum(len(row) for row in rows)
        _alike(padded[name], bare[name], within=2e-5)


def test_positions_of_a_few_images_are_said_to_be() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 3))
    images = [torch.randn(12, 3, 12, 12, generator=torch.Generator().manual_seed(0))]
    said = "positions of one example"
    few = _probe(model, images, sites="1", max_samples=90)["1"]
    assert few.n_samples == 90 and any(said in note for note in few.notes)
    assert not any("positions of" in note for note in _probe(model, images, sites="1")["1"].notes)


class _Encoder(nn.Module):
    """An encoder that calls its mask as those of TransformerLens do."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up, self.down = nn.Embedding(50, 6), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, input: Tensor, one_zero_attention_mask: Tensor | None = None) -> Tensor:
        return self.down(self.up(self.embed(input)).relu())


def test_the_mask_of_an_encoder_counts_under_its_own_name() -> None:
    ids, mask = torch.arange(40).view(4, 10), torch.ones(4, 10, dtype=torch.int64)
    mask[:, 7:] = 0
    report = _probe(_Encoder(), [{"input": ids, "one_zero_attention_mask": mask}], sites="up")
    assert report["up"].n_samples == 28
    with pytest.raises(bp.DataError, match=r"one_zero_attention_mask has shape \(4, 7\)"):
        _probe(_Encoder(), [{"input": ids, "one_zero_attention_mask": mask[:, :7]}], sites="up")


@pytest.mark.slow
def test_statistics_are_those_of_the_real_tokens(gpt: Any) -> None:
    rows = _sentences()
    report = _probe(gpt, [_padded(rows, "right")])
    caches = [gpt.run_with_cache(row[None], return_type=None)[1] for row in rows]
    for site in report:
        real = torch.cat([cache[site.site][0].flatten(1) for cache in caches])
        centred = site.symmetry.privileged is bp.Privileged.LINE
        assert site.n_samples == len(real)
        streamed = site.scores["kurtosis"].all_samples
        if site.symmetry.privileged is bp.Privileged.BLOCKS:
            # Inside heads axes are whitened, which needs all samples at once.
            assert math.isnan(streamed)
        else:
            assert streamed == pytest.approx(_kurtosis(real), rel=1e-5)
        if site.symmetry.privileged is bp.Privileged.AXES:
            # Axes that have units of their own are put into these, of all samples at once.
            assert math.isnan(site.scores["sample_kurtosis"].all_samples)
        elif "sample_kurtosis" in site.scores:
            assert site.scores["sample_kurtosis"].all_samples == pytest.approx(
                _across(real, centred=centred), rel=1e-5
            )
    # With the padding counted the numbers would be others.
    whole = _padded(rows, "right")["input_ids"]
    cache = gpt.run_with_cache(whole, return_type=None)[1]
    wrong = _kurtosis(cache["blocks.0.hook_resid_pre"].flatten(0, 1))
    right = report["blocks.0.hook_resid_pre"].scores["kurtosis"].all_samples
    assert abs(wrong - right) > 1e-2


@pytest.mark.slow
def test_strings_are_padded_and_their_padding_dropped(bridge: Any) -> None:
    texts = demo.texts(3, 3)
    together = _probe(bridge, [texts], sites="blocks.[03].hook_resid_pre")
    single = _probe(bridge, texts, sites="blocks.[03].hook_resid_pre")
    tokens = [torch.tensor(bridge.tokenizer(text)["input_ids"])[None] for text in texts]
    given = _probe(bridge, tokens, sites="blocks.[03].hook_resid_pre")
    assert together.provenance.data == "1 batch of strings, 3 examples"
    for name in together.sites:
        _alike(together[name], single[name], within=1e-4)
        _alike(single[name], given[name])


# --- data -----------------------------------------------------------------------------------------


class Encoding(Mapping[str, Tensor]):
    """A mapping that is no dict, as tokenizers return them."""

    def __init__(self, entries: dict[str, Tensor]) -> None:
        self.entries = entries

    def __getitem__(self, name: str) -> Tensor:
        return self.entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def _chunks(x: Tensor) -> list[Tensor]:
    return list(x.split(100))


FORMS: dict[str, Callable[[Tensor], Any]] = {
    "a list of tensors": _chunks,
    "a generator": lambda x: (part for part in _chunks(x)),
    "one tensor": lambda x: x,
    "one array": lambda x: x.numpy(),
    "arrays": lambda x: [part.numpy() for part in _chunks(x)],
    "pairs": lambda x: [(part, torch.zeros(len(part))) for part in _chunks(x)],
    "lists": lambda x: [[part, "a label"] for part in _chunks(x)],
    "keywords": lambda x: [{"input": part} for part in _chunks(x)],
    "one dict": lambda x: {"input": x},
    "mappings": lambda x: [Encoding({"input": part}) for part in _chunks(x)],
    "pairs of mappings": lambda x: [({"input": part}, 1) for part in _chunks(x)],
    "dicts of arrays": lambda x: [{"input": part.numpy()} for part in _chunks(x)],
    "a loader": lambda x: torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x, torch.zeros(len(x))), batch_size=100
    ),
    "a shuffling loader": lambda x: torch.utils.data.DataLoader(x, batch_size=70, shuffle=True),
}  # fmt: skip


@functools.cache
def _of_one_tensor() -> bp.SiteReport:
    return _probe(_mlp(), [_draw(400, 6)], sites="1")["1"]


@pytest.mark.sample(default=2)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_batch_gives_the_same_numbers(form: str) -> None:
    report = _probe(_mlp(), FORMS[form](_draw(400, 6)), sites="1")
    assert report.provenance.n_examples == 400
    _alike(report["1"], _of_one_tensor(), within=1e-6)


@pytest.mark.slow
def test_read_only_arrays_that_run_backwards_are_batches_too() -> None:
    x = np.ascontiguousarray(_draw(300, 6).numpy()[::-1])
    frozen = x.copy()
    frozen.flags.writeable = False
    expected = _probe(_mlp(), [x])["1"]
    for array in (frozen, frozen[::-1], frozen[::-1][::-1]):
        _alike(_probe(_mlp(), [array])["1"], expected, within=1e-6)


@pytest.mark.slow
def test_strings_beside_labels_are_a_batch(bridge: Any) -> None:
    texts = demo.texts(4, 3)
    loader = [(tuple(texts), torch.arange(4))]
    sites = "blocks.1.mlp.hook_post"
    expected = _probe(bridge, [texts], sites=sites)[sites]
    assert _probe(bridge, loader, sites=sites)[sites] == expected


class Counting(nn.Module):
    """Counts the examples that it is called with."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = _mlp()
        # What a model holds itself is put back, and a method of a list is no holder of it.
        self.note = list[int]().append

    @property
    def calls(self) -> list[int]:
        return self.note.__self__

    def forward(self, x: Tensor) -> Tensor:
        self.note(len(x))
        return self.inner(x)


def test_the_data_pass_through_once_for_all_sites() -> None:
    handed: list[int] = []

    class Loader:
        passes = 0

        def __iter__(self) -> Iterator[Tensor]:
            self.passes += 1
            for seed in range(5):
                handed.append(seed)
                yield _draw(60, 6, seed=seed)

    loader, model = Loader(), Counting().eval()
    sites = ["inner.0", "inner.1", "inner.2"]
    report = _probe(model, loader, sites=sites, certificates=False)
    assert (loader.passes, handed) == (1, [0, 1, 2, 3, 4])
    # Two examples are run before the data, to see what the model computes.
    assert model.calls == [2, 60, 60, 60, 60, 60]
    assert {site.n_samples for site in report} == {300}
    assert (report.provenance.n_batches, report.provenance.n_examples) == (5, 300)


@pytest.mark.sample(default=2)
@pytest.mark.parametrize("most", [1, 50, 230, 300, 301])
def test_no_more_samples_are_counted_than_asked_for(most: int) -> None:
    x = _draw(300, 6)
    report = _probe(_mlp(), list(x.split(50)), sites=["0", "1"], max_samples=most)
    assert {site.n_samples for site in report} == {min(most, 300)}
    assert report.provenance.n_batches == math.ceil(min(most, 300) / 50)
    assert report.provenance.settings["max_samples"] == str(most)
    if most >= 50:
        expected = _kurtosis(_mlp()[0](x[:most]))
        assert report["0"].scores["kurtosis"].all_samples == pytest.approx(expected, rel=1e-5)


def test_data_without_end_are_read_only_as_far_as_needed() -> None:
    drawn: list[int] = []

    def forever() -> Iterator[Tensor]:
        for seed in range(10**6):
            drawn.append(seed)
            yield _draw(50, 6, seed=seed)

    report = _probe(_mlp(), forever(), max_samples=200)
    assert report["1"].n_samples == 200
    assert drawn == [0, 1, 2, 3]


@pytest.mark.slow
def test_positions_are_counted_one_by_one_up_to_the_limit(gpt: Any) -> None:
    rows = _sentences()
    report = _probe(gpt, [_padded(rows, "left")], max_samples=51, sites="blocks.0.*")
    assert {site.n_samples for site in report} == {51}


# --- what it says ---------------------------------------------------------------------------------


def test_progress_names_what_is_done() -> None:
    errors, output = io.StringIO(), io.StringIO()
    with redirect_stderr(errors), redirect_stdout(output):
        _probe(_mlp(), [_draw(150, 6), _draw(150, 6, seed=1)], progress=True)
    assert "running the model: " in errors.getvalue()
    assert "comparing axes with alternatives: " in errors.getvalue()
    assert output.getvalue() == ""


def test_without_progress_nothing_is_said() -> None:
    errors, output = io.StringIO(), io.StringIO()
    with redirect_stderr(errors), redirect_stdout(output):
        _probe(_mlp(), [_draw(150, 6), _draw(150, 6, seed=1)], progress=False)
    assert (errors.getvalue(), output.getvalue()) == ("", "")


def test_the_record_says_what_determined_the_numbers() -> None:
    report = _probe(
        _mlp(), [_draw(300, 6)], seed=7, scores=["kurtosis"], groups="monomial", sites="1"
    )
    record = report.provenance
    assert (record.seed, record.device, record.dtype, record.level) == (7, "cpu", "float32", 0.05)
    assert record.model == "Sequential (123 parameters)"
    assert record.settings["scores"] == "kurtosis"
    assert record.settings["groups"] == "monomial"
    assert "frames=19" in record.settings["null"]
    assert record.versions["torch"] == torch.__version__ or record.versions["torch"]
    assert report["1"].symmetry.group == bp.groups.Monomial(12)
    assert report["1"].symmetry.because == "The group was given, not derived."


@pytest.mark.slow
def test_groups_can_be_given_site_by_site() -> None:
    data = [_draw(300, 6)]
    sites = ["0", "1", "2"]
    report = _probe(_mlp(), data, sites=sites, groups={"1": "general-linear", "[02]": "trivial"})
    assert [site.symmetry.group.name for site in report] == ["trivial", "general-linear", "trivial"]
    derived = _probe(_mlp(), data, sites=sites, groups={"1": bp.groups.Orthogonal(12)})
    assert derived["1"].symmetry.group == bp.groups.Orthogonal(12)
    assert derived["0"].symmetry.group == bp.groups.PositiveMonomial(12)


def test_the_scores_asked_for_are_the_scores_reported() -> None:
    report = _probe(_mlp(), [_draw(300, 6)], scores=["kurtosis"], sites="0")
    assert list(report["0"].scores) == ["kurtosis"]
    report = _probe(
        _mlp(), [_draw(300, 6)], scores=[bp.scores.SAMPLE_KURTOSIS, "kurtosis"], sites="0"
    )
    assert list(report["0"].scores) == ["sample_kurtosis", "kurtosis"]


# --- nothing is left behind -----------------------------------------------------------------------


def _state(model: nn.Module) -> dict[str, object]:
    """Everything about a model and torch that a probe could leave changed."""
    hooks: Counter[str] = Counter()
    attributes: dict[str, list[str]] = {}
    for path, module in model.named_modules():
        for kind in (
            "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks",
            "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs",
            "_forward_hooks_always_called", "fwd_hooks", "bwd_hooks",
        ):  # fmt: skip
            held = getattr(module, kind, None) or ()
            hooks[f"{path} {kind}"] = len(held)
            if isinstance(held, OrderedDict):
                attributes[f"{path} {kind}"] = [repr(hook) for hook in held.values()]
        attributes[path] = sorted(vars(module))
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {
        "hooks": {name: count for name, count in hooks.items() if count},
        "attributes": attributes,
        "modes": {path: module.training for path, module in model.named_modules()},
        "weights": {name: tensor.detach().clone().numpy().tobytes() for name, tensor in tensors},
        "places": {name: tensor.data_ptr() for name, tensor in tensors},
        "gradients": {name: (t.requires_grad, t.grad is None) for name, t in tensors},
        "random": torch.get_rng_state().numpy().tobytes(),
        "modes of functions": torch._C._len_torch_function_stack(),
        "modes of dispatch": torch._C._len_torch_dispatch_stack(),
        "grad": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
    }


@contextmanager
def _left_as_it_was(model: nn.Module) -> Iterator[None]:
    before = _state(model)
    try:
        yield
    finally:
        after = _state(model)
        for what, value in before.items():
            assert after[what] == value, f"{what} changed"


class Broken(RuntimeError):
    """What goes wrong on purpose."""


def _failing_loader(at: int, error: type[BaseException], make: Callable[[int], Any]) -> Iterator:
    for number in range(4):
        if number == at:
            raise error("on purpose")
        yield make(number)


def _failing_model(model: nn.Module, part: str, at: int, error: type[BaseException]) -> Any:
    """A hook of the user that fails from the at-th time on that the part is called."""
    calls: list[int] = []

    def hook(*_: object) -> None:
        calls.append(1)
        if len(calls) >= at:
            raise error("on purpose")

    return model.get_submodule(part).register_forward_hook(hook)


@dataclasses.dataclass(frozen=True)
class Kind:
    """A model with what it is called with."""

    model: nn.Module
    make: Callable[[int], Any]
    part: str
    sites: list[str]


@functools.cache
def _small_bridge() -> Any:
    model = _native(n_layers=1, d_model=8)
    # The bridge itself puts hooks on its norms when it is called for the first time.
    model(_tokens(1, 2))
    return model


@pytest.fixture(params=["bridge", "plain"])
def kind(request: pytest.FixtureRequest) -> Kind:
    if request.param == "bridge":
        return Kind(
            _small_bridge(),
            lambda number: _tokens(12, 20, seed=number),
            "blocks.0.mlp",
            ["blocks.0.hook_resid_pre", "blocks.0.mlp.hook_post", "blocks.0.hook_resid_post"],
        )
    model = Residual()
    model.first.weight.requires_grad_(False)
    # In training mode, all but one part: every part gets back what it had.
    model.train()
    model.second.eval()
    return Kind(
        model, lambda number: _draw(100, 6, seed=number), "third", ["relu()", "third", "first"]
    )


@pytest.mark.sample(default=1)
def test_success_leaves_nothing_behind(kind: Kind) -> None:
    with _left_as_it_was(kind.model):
        _probe(kind.model, [kind.make(number) for number in range(2)], sites=kind.sites)
    with _left_as_it_was(kind.model):
        bp.symmetries(kind.model, kind.make(0))


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("error", [Broken, KeyboardInterrupt])
@pytest.mark.parametrize("at", [0, 2])
def test_a_loader_that_fails_leaves_nothing_behind(
    kind: Kind, at: int, error: type[BaseException]
) -> None:
    loader = _failing_loader(at, error, kind.make)
    with _left_as_it_was(kind.model):
        if at == 0:
            with pytest.raises(error, match="on purpose"):
                _probe(kind.model, loader, sites=kind.sites[:2])
        elif error is KeyboardInterrupt:
            report = _probe(kind.model, loader, sites=kind.sites[:2])
            assert report.partial
            assert report.notes[-1] == f"The run was interrupted after {at} batches."
        else:
            with pytest.raises(bp.StreamError, match="on purpose") as caught:
                _probe(kind.model, loader, sites=kind.sites[:2])
            report = caught.value.report()
            assert report.partial
    if at:
        # What was gathered is what those batches alone would have given.
        data = [kind.make(number) for number in range(at)]
        alone = _probe(kind.model, data, sites=kind.sites[:2])
        assert report.site_reports == alone.site_reports
        assert report.provenance.n_batches == at


@pytest.mark.sample(default=4)
@pytest.mark.parametrize("error", [Broken, KeyboardInterrupt])
@pytest.mark.parametrize("at", [1, 2, 4])
def test_a_model_that_fails_leaves_nothing_behind(
    kind: Kind, at: int, error: type[BaseException]
) -> None:
    handle = _failing_model(kind.model, kind.part, at, error)
    data = [kind.make(number) for number in range(4)]
    with _left_as_it_was(kind.model):
        if error is KeyboardInterrupt and at == 4:
            assert _probe(kind.model, data, sites=kind.sites[:2]).provenance.n_batches == 2
        else:
            # The first call only looks at the model; the second is the first batch.
            expected = {1: bp.DataError, 2: Broken, 4: bp.StreamError}[at]
            with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else expected):
                _probe(kind.model, data, sites=kind.sites[:2])
    handle.remove()


@pytest.mark.sample(default=1)
@pytest.mark.parametrize(
    ("error", "stage"),
    [(Broken, "gather"), (KeyboardInterrupt, "gather"), (KeyboardInterrupt, "case_of")],
)
def test_trouble_while_axes_are_compared_leaves_nothing_behind(
    kind: Kind, error: type[BaseException], stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = concluding
    works, calls = getattr(module, stage), []

    def fails(*arguments: Any, **settings: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise error("on purpose")
        return works(*arguments, **settings)

    data, sites = [kind.make(number) for number in range(2)], kind.sites
    whole = _probe(kind.model, data, sites=sites)
    monkeypatch.setattr(module, stage, fails)
    monkeypatch.setattr(module, "_WORKERS", 1)
    with _left_as_it_was(kind.model):
        if error is Broken:
            with pytest.raises(bp.StreamError, match="all 2 batches were seen") as failed:
                _probe(kind.model, data, sites=sites)
            assert isinstance(failed.value.__cause__, Broken)
            seen = failed.value.partial()
            assert seen is not None and seen.batches == 2
            return
        report = _probe(kind.model, data, sites=sites)
    assert report.partial
    assert report.sites == whole.sites
    first, *others = report
    assert first.scores["kurtosis"].observed == next(iter(whole)).scores["kurtosis"].observed
    for site in others:
        assert site.verdict.outcome is bp.Outcome.UNDECIDED
        assert "interrupted before these axes were compared" in site.verdict.sentence
        assert site.n_samples == whole[site.site].n_samples
    assert any("interrupted while axes were compared" in note for note in report.notes)


def test_hooks_are_as_before_even_if_none_is_taken_away(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.utils.hooks import RemovableHandle

    monkeypatch.setattr(RemovableHandle, "remove", lambda self: None)
    with _left_as_it_was(kind.model):
        _probe(kind.model, [kind.make(0)], sites=kind.sites[:2])


def test_other_things_left_behind_are_noticed() -> None:
    model = _mlp()

    def hook(*_: object) -> None:
        pass

    changes: dict[str, Callable[[], object]] = {
        "hooks": lambda: model[1].register_forward_pre_hook(hook),
        "modes": lambda: model[0].train(),
        "weights": lambda: model[2].weight.data.mul_(1.5),
        "places": lambda: setattr(model[0].bias, "data", model[0].bias.data.clone()),
        "gradients": lambda: model[0].weight.requires_grad_(False),
        "random": lambda: torch.rand(1),
    }
    with torch.random.fork_rng(devices=[]):
        for what, change in changes.items():
            with pytest.raises(AssertionError, match=f"{what} changed"), _left_as_it_was(model):
                change()


@pytest.mark.parametrize("fails", [False, True])
def test_the_number_of_threads_stays(fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if fails:
        module = sys.modules["basis_probe.evidence.site"]
        monkeypatch.setattr(module, "measure", lambda *_, **__: [][0])
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with _left_as_it_was(_mlp()), contextlib.suppress(bp.StreamError):
            _probe(_mlp(), [_draw(300, 6)], sites="1")
    finally:
        torch.set_num_threads(before)


def test_hooks_of_the_user_stay_and_are_seen() -> None:
    model, x = _mlp(), _draw(300, 6)
    model[0].register_forward_hook(lambda module, args, out: 2 * out + 1)
    with _left_as_it_was(model):
        report = _probe(model, [x], sites=["0", "1"])
    changed = 2 * nn.functional.linear(x, model[0].weight, model[0].bias) + 1
    for name, truth in (("0", changed), ("1", changed.relu())):
        assert report[name].scores["kurtosis"].all_samples == pytest.approx(
            _kurtosis(truth), rel=1e-5
        )


def test_dropout_does_nothing_and_comes_back() -> None:
    model = nn.Sequential(nn.Linear(6, 12), nn.Dropout(0.5), nn.ReLU(), nn.Linear(12, 3)).train()
    x = _draw(300, 6)
    with _left_as_it_was(model):
        report = _probe(model, [x], sites="2")
    truth = model[0](x).relu()
    assert report["2"].scores["kurtosis"].all_samples == pytest.approx(_kurtosis(truth), rel=1e-5)
    assert report.notes == (
        "The model was in training mode; it was probed in evaluation mode and put back.",
    )


def test_a_model_in_evaluation_mode_is_said_nothing_about() -> None:
    assert _probe(_mlp(), [_draw(300, 6)]).notes == ()


@pytest.mark.slow
def test_a_model_of_nnsight_is_the_module_inside_it() -> None:
    class Envoy:
        """What nnsight wraps around a module: no module itself."""

        def __init__(self, module: torch.nn.Module) -> None:
            self._module = module

    Envoy.__module__ = "nnsight.intervention.envoy"
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU())
    wrapped: Any = Envoy(model)
    data = [torch.randn(300, 4)]
    report = bp.probe(wrapped, data, progress=False)
    assert report == bp.probe(model, data, progress=False)


@pytest.mark.slow
def test_a_quick_look_is_one_of_few_samples_without_proofs() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    data = [torch.randn(700, 4) for _ in range(3)]
    quick = bp.probe(model, data, effort="quick", progress=False)
    same = bp.probe(model, data, max_samples=1024, certificates=False, progress=False)
    assert quick.site_reports == same.site_reports
    assert quick["1"].symmetry.certificate is None
    assert quick["1"].null is not None and quick["1"].null.samples == 1024
    assert quick.provenance.settings["effort"] == "quick"
    # What is asked for by itself is done.
    proved = bp.probe(
        model, data, effort="quick", max_samples=300, certificates=True, progress=False
    )
    assert proved["1"].symmetry.certificate is not None
    assert proved["1"].null is not None and proved["1"].null.samples == 300
    assert "effort" not in same.provenance.settings


def test_what_was_observed_is_scored_in_float64() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 12), nn.Linear(12, 3)).eval()
    x = torch.randn(700, 8, generator=torch.Generator().manual_seed(1)) ** 3
    settings = {"scores": ["kurtosis"], "groups": "orthogonal", "progress": False}
    found = bp.probe(model, [x], sites="0", **settings)["0"]
    with torch.no_grad():
        exact = model[0](x).double()
    centred = exact - exact.mean(0)
    right = float(((centred**4).mean(0) / (centred**2).mean(0) ** 2).mean())
    # All rows are compared; the activations themselves are those of single precision.
    assert found.scores["kurtosis"].observed == pytest.approx(right, rel=1e-11)
