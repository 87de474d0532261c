"""Neurons by their weights alone: exact nulls, layers that are found, what is planted."""

import json
import math
import pathlib
from collections.abc import Callable

import pytest
import safetensors.torch
import torch
from draws import seeded
from torch import Tensor, nn

import basis_probe as bp
from basis_probe.algebra.haar import haar
from basis_probe.errors import DataError
from basis_probe.model.neurons import neurons
from basis_probe.model.stacked_neurons import of_few_experts, stacked_neurons
from basis_probe.model.stored import stored
from basis_probe.statistics.neuron_weights import NeuronWeights, compare, live

LAWS = ("gaussian", "uniform", "truncated", "orthogonal", "rescaled", "sparse", "heavy")


def _drawn(law: str, rows: int, columns: int, generator: torch.Generator) -> Tensor:
    normal = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    if law == "uniform":
        return 2 * torch.rand(rows, columns, generator=generator, dtype=torch.float64) - 1
    if law == "truncated":
        return normal.clamp(-2, 2)
    if law == "orthogonal":
        return haar(rows, generator)[:, :columns]
    if law == "sparse":
        return normal * (torch.rand(rows, columns, generator=generator) < 0.3)
    return normal**3 if law == "heavy" else normal


def _weights(law: str, seed: int, count: int = 32, width: int = 16) -> NeuronWeights:
    generator = seeded(seed)
    reading, writing = (_drawn(law, count, width, generator) for _ in range(2))
    if law == "rescaled":
        scale = torch.randn(count, 1, generator=generator, dtype=torch.float64).exp()
        reading, writing = reading * scale, writing / scale
    tokens = _drawn("uniform" if law == "uniform" else "gaussian", 64, width, generator)
    ends = (tokens, tokens) if seed % 2 else (None, None)
    return NeuronWeights((reading,), writing, *ends, shared=True)


def _p(found) -> float:
    return (1 + sum(value >= found.observed for value in found.others)) / (len(found.others) + 1)


def _rates(networks: int, laws: tuple[str, ...] = LAWS, frames: int = 19) -> dict[str, float]:
    values: dict[str, list[bool]] = {}
    for seed in range(networks):
        weights = _weights(laws[seed // 2 % len(laws)], seed)
        kept = live(weights)
        weights = NeuronWeights(
            (weights.reading[0][kept],), weights.writing[kept], weights.embedding,
            weights.vocabulary, shared=True,
        )  # fmt: skip
        for name, found in compare(weights, seed=seed, frames=frames).items():
            values.setdefault(name, []).append(_p(found) <= 0.1)
    return {name: sum(v) / len(v) for name, v in values.items()}


@pytest.mark.slow
def test_untrained_neurons_are_seldom_called() -> None:
    for name, rate in _rates(42).items():
        # Of 21 more than 8 at a rate of 10 %: once in 4,000.
        assert rate <= 8 / 21, name


@pytest.mark.battery
def test_untrained_neurons_keep_the_level() -> None:
    for name, rate in _rates(840).items():
        assert rate <= 0.1 + 3.7 * math.sqrt(0.09 / 420), name


# --- the scores -----------------------------------------------------------------------------------


def test_the_scores_are_those_of_their_names() -> None:
    weights = _weights("gaussian", 1)
    found = compare(weights, seed=0, frames=3)
    read, written = weights.reading[0], weights.writing
    cosines = [
        float(torch.dot(r, w) ** 2 / (r.norm() * w.norm()) ** 2)
        for r, w in zip(read, written, strict=True)
    ]
    assert math.isclose(found["cosine"].observed, sum(cosines) / len(cosines))
    lengths = (read.norm(dim=1) * written.norm(dim=1)).log()
    assert math.isclose(found["norms"].observed, float(lengths.std()))
    over = weights.vocabulary @ written.T
    centred = over - over.mean(0)
    kurtosis = (centred**4).mean(0) / (centred**2).mean(0) ** 2
    assert math.isclose(found["vocabulary_kurtosis"].observed, float(kurtosis.mean()), rel_tol=1e-5)


@pytest.mark.parametrize("seed", [0, 1])
def test_order_and_scale_of_neurons_change_no_score(seed: int) -> None:
    weights = _weights("gaussian", seed)
    order = torch.randperm(32, generator=seeded(1))
    scale = torch.randn(32, 1, generator=seeded(2), dtype=torch.float64).exp()
    other = NeuronWeights(
        (scale * weights.reading[0][order],), weights.writing[order] / scale,
        weights.embedding, weights.vocabulary, shared=True,
    )  # fmt: skip
    one, again = (compare(w, seed=0, frames=9) for w in (weights, other))
    for name in one:
        assert math.isclose(one[name].observed, again[name].observed, rel_tol=1e-5), name
    scaled = NeuronWeights(
        (weights.reading[0] * scale,), weights.writing / scale,
        weights.embedding, weights.vocabulary, shared=True,
    )  # fmt: skip
    for name, found in compare(scaled, seed=0, frames=9).items():
        torch.testing.assert_close(
            torch.tensor(found.others), torch.tensor(one[name].others), rtol=1e-4, atol=1e-7
        )


def test_a_turned_stream_changes_no_score_of_the_stream() -> None:
    weights, turn = _weights("gaussian", 1), haar(16, seeded(4))
    turned = NeuronWeights(
        (weights.reading[0] @ turn,), weights.writing @ turn,
        weights.embedding @ turn, weights.vocabulary @ turn, shared=True,
    )  # fmt: skip
    one, other = (compare(w, seed=0, frames=9) for w in (weights, turned))
    for name in one:
        assert math.isclose(one[name].observed, other[name].observed, rel_tol=1e-4), name


# --- what is planted ------------------------------------------------------------------------------


def _model(seed: int = 0, planted: str = "") -> nn.Sequential:
    generator = seeded(seed)
    layers = nn.Linear(24, 96), nn.ReLU(), nn.Linear(96, 24)
    for layer in (layers[0], layers[2]):
        nn.init.normal_(layer.weight, generator=generator)
    with torch.no_grad():
        if planted == "related":
            # With signs of their own: one relation of all neurons is one of turned ones too.
            signs = 2.0 * torch.randint(2, (96, 1), generator=generator) - 1
            layers[2].weight += (0.8 * signs * layers[0].weight).T
        if planted == "unequal":
            layers[0].weight *= torch.randn(96, 1, generator=generator).mul(0.5).exp()
        if planted == "selective":
            layers[0].weight *= torch.randn(96, 24, generator=generator).square()
            layers[0].weight[:, :] *= torch.eye(24).repeat(4, 1).mul(6).add(1)
    return nn.Sequential(*layers)


@pytest.mark.sample(default=1)
@pytest.mark.parametrize(
    ("planted", "score"),
    [("related", "cosine"), ("unequal", "norms"), ("selective", "reading_kurtosis")],
)
def test_what_was_planted_is_found(planted: str, score: str) -> None:
    found = bp.weights_privilege(_model(planted=planted))
    frame = found.to_dataframe().set_index("score")
    assert frame.loc[score, "p_value"] == 0.01
    assert frame.loc[score, "effect"] > 3
    assert frame.loc[score, "p_adjusted"] <= 0.05
    assert "z = " in found.sentence
    # The same neurons turned: W_in and W_out together.
    model, turn = _model(planted=planted), haar(96, seeded(3)).float()
    with torch.no_grad():
        model[0].weight.copy_(turn @ model[0].weight)
        model[2].weight.copy_(model[2].weight @ turn.T)
    turned = bp.weights_privilege(model).to_dataframe().set_index("score")
    assert turned.loc[score, "p_value"] > 0.02


# --- where weights are ----------------------------------------------------------------------------


class _Gated(nn.Module):
    def __init__(self, width: int = 16, hidden: int = 40) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(hidden, width, bias=False)


class _Attention(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.dense = nn.Linear(width, width)


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn, self.mlp = _Attention(), _Gated()
        self.post_attention_layernorm = nn.RMSNorm(16)


class _Language(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(60, 16)
        self.layers = nn.ModuleList([_Block(), _Block()])
        self.norm, self.lm_head = nn.RMSNorm(16), nn.Linear(16, 60, bias=False)


def _language(seed: int = 0) -> _Language:
    torch.manual_seed(seed)
    model = _Language()
    nn.init.normal_(model.layers[0].post_attention_layernorm.weight)
    return model


@pytest.mark.slow
def test_layers_are_found_by_their_names_and_attention_is_not_one() -> None:
    found = bp.weights_privilege(_language())
    assert found.sites == ("layers.0.mlp.down_proj:in", "layers.1.mlp.down_proj:in")
    assert set(found[found.sites[0]]) == {
        "cosine", "norms", "embedding_kurtosis", "embedding_negentropy", "vocabulary_kurtosis",
        "vocabulary_negentropy",
    }  # fmt: skip
    columns = "site score observed null_mean null_std effect p_value".split()
    assert set(columns) <= set(found.to_dataframe().columns)
    assert len(found.to_dataframe()) == len(found) == 12
    layer = neurons(stored(_language()))[0]
    assert layer.norm == ("layers.0.post_attention_layernorm.weight", None)
    assert [matrix.name.split(".")[-2] for matrix in layer.reading] == ["gate_proj", "up_proj"]


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_folder_of_shards_says_what_the_model_says(
    tmp_path: pathlib.Path, dtype: torch.dtype
) -> None:
    model = _language().to(dtype)
    tensors = {name: value.clone() for name, value in model.state_dict().items()}
    names, where = sorted(tensors), {}
    for part in range(3):
        mine = {name: tensors[name] for name in names[part::3]}
        safetensors.torch.save_file(mine, tmp_path / f"part-{part}.safetensors")
        where |= dict.fromkeys(mine, f"part-{part}.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    one, other = bp.weights_privilege(model), bp.weights_privilege(tmp_path)
    assert {(r.site, r.score): r for r in one} == {(r.site, r.score): r for r in other}
    (tmp_path / "part-1.safetensors").unlink()
    with pytest.raises(bp.DataError, match=r"lacks part-1\.safetensors"):
        bp.weights_privilege(tmp_path)


@pytest.mark.slow
def test_one_file_and_torch_files_are_read(tmp_path: pathlib.Path) -> None:
    model = _model()
    want = [row.effect for row in bp.weights_privilege(model)]
    file = tmp_path / "model.safetensors"
    safetensors.torch.save_file(model.state_dict(), file)
    assert [row.effect for row in bp.weights_privilege(file)] == want
    (tmp_path / "old").mkdir()
    torch.save(model.state_dict(), tmp_path / "old" / "pytorch_model.bin")
    assert [row.effect for row in bp.weights_privilege(tmp_path / "old")] == want


@pytest.mark.slow
def test_the_gain_of_a_norm_belongs_to_what_is_read() -> None:
    model = _language(3)
    folded = _language(3)
    with torch.no_grad():
        norm = folded.layers[0].post_attention_layernorm
        for part in (folded.layers[0].mlp.gate_proj, folded.layers[0].mlp.up_proj):
            part.weight.mul_(norm.weight)
        norm.weight.fill_(1.0)
    one, other = (bp.weights_privilege(m) for m in (model, folded))
    for row, again in zip(one, other, strict=True):
        assert math.isclose(row.observed, again.observed, rel_tol=1e-5)
        assert math.isclose(row.effect, again.effect, rel_tol=1e-3, abs_tol=1e-4)


def test_neurons_that_are_dead_or_not_numbers_are_left_out() -> None:
    model = _model()
    with torch.no_grad():
        model[0].weight[:30] = 0.0
        model[2].weight[:, 30:60] = math.nan
    found = bp.weights_privilege(model)
    assert {row.neurons for row in found} == {36}
    assert {row.of for row in found} == {96}
    assert all(math.isfinite(row.effect) for row in found)
    with torch.no_grad():
        model[0].weight[:92] = 0.0
    empty = bp.weights_privilege(model)
    assert len(empty) == 0
    assert "2:in was left out" in empty.notes[0]
    assert list(empty.to_dataframe().columns)


def test_exchanged_weights_that_make_no_neuron_count_for_nothing() -> None:
    generator = seeded(0)
    reading, writing = (
        torch.eye(16, dtype=torch.float64).repeat(2, 1)[torch.randperm(32, generator=generator)]
        for _ in range(2)
    )
    found = compare(NeuronWeights((reading,), writing, shared=True), seed=0, frames=9)
    for name, turned in found.items():
        assert all(math.isfinite(value) for value in turned.others), name
        assert max(map(abs, turned.others)) < 50


class _Transposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.W_in, self.W_out = (nn.Parameter(torch.randn(shape)) for shape in ((8, 32), (32, 8)))


class _Fused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj, self.down_proj = nn.Linear(8, 64), nn.Linear(32, 8)


class _Experts(nn.Module):
    """All experts of a block in one tensor, gate and product in it too."""

    def __init__(self, experts: int, *, transposed: bool) -> None:
        super().__init__()
        first, last = torch.randn(experts, 64, 8), torch.randn(experts, 8, 32)
        if transposed:
            first, last = first.mT.contiguous(), last.mT.contiguous()
        self.gate_up_proj, self.down_proj = nn.Parameter(first), nn.Parameter(last)

    def apart(self, *, transposed: bool) -> nn.ModuleList:
        """The same experts as modules."""
        several = nn.ModuleList()
        for first, last in zip(self.gate_up_proj, self.down_proj, strict=True):
            one = _Gated(8, 32)
            first, last = (first.T, last.T) if transposed else (first, last)
            one.gate_proj.weight.data.copy_(first[:32])
            one.up_proj.weight.data.copy_(first[32:])
            one.down_proj.weight.data.copy_(last)
            several.append(one)
        return several


def _block(experts: nn.Module) -> nn.ModuleDict:
    mlp = nn.ModuleDict({"experts": experts})
    norm = nn.RMSNorm(8)
    nn.init.uniform_(norm.weight, 0.5, 2, generator=seeded(1))
    return nn.ModuleDict({"0": nn.ModuleDict({"mlp": mlp, "post_attention_layernorm": norm})})


@pytest.mark.slow
@pytest.mark.parametrize("transposed", [False, True])
def test_a_stack_of_experts_says_what_they_say_as_modules(
    tmp_path: pathlib.Path, *, transposed: bool
) -> None:
    torch.manual_seed(0)
    stack = _Experts(3, transposed=transposed)
    with torch.no_grad():
        # Planted in the second one, with signs of their own.
        first, last = stack.gate_up_proj[1], stack.down_proj[1]
        first, last = (first.T, last.T) if transposed else (first, last)
        signs = 2.0 * torch.randint(2, (32, 1), generator=seeded(1)) - 1
        last += 3 * (signs * first[32:]).T
    one = bp.weights_privilege(_block(stack))
    apart = bp.weights_privilege(_block(stack.apart(transposed=transposed)))
    assert one.sites == tuple(f"0.mlp.experts.{index}.down_proj:in" for index in range(3))
    assert [(r.site, r.score, r.effect) for r in one] == [
        (r.site, r.score, pytest.approx(r.effect, rel=1e-4)) for r in apart
    ]
    assert [one[site]["cosine"].p_adjusted <= 0.05 for site in one.sites] == [False, True, False]
    file = tmp_path / "model.safetensors"
    safetensors.torch.save_file(_block(stack).state_dict(), file)
    assert [row.effect for row in bp.weights_privilege(file)] == [row.effect for row in one]


def test_of_many_experts_some_are_compared_and_convolutions_are_named() -> None:
    stack = _Experts(20, transposed=False)
    for experts in (stack, stack.apart(transposed=False)):
        source = stored(_block(experts))
        found, notes = of_few_experts((*neurons(source), *stacked_neurons(source)), 8)
        assert [layer.site for layer in found[::7]] == [
            f"0.mlp.experts.{index}.down_proj:in" for index in (0, 17)
        ]
        assert len(found) == 8 and "8 of 20 experts were compared" in notes[0]
        assert of_few_experts(found, 8) == (found, ())
    block = _block(_Experts(2, transposed=False))
    block["conv"] = nn.Conv2d(3, 4, 2)
    assert "1 convolutions were left out" in bp.weights_privilege(block).notes[0]


@pytest.mark.parametrize(
    ("model", "sites", "count"),
    [
        (_Transposed(), ["W_out:in"], 32),
        (_Fused(), ["down_proj:in"], 32),
        (nn.Sequential(nn.Linear(5, 20), nn.Tanh(), nn.Linear(20, 20), nn.Linear(20, 9)),
         ["2:in"], 20),
        (nn.TransformerEncoderLayer(8, 2, 24), ["linear2:in"], 24),
        (nn.Sequential(nn.Sequential(nn.Linear(5, 20), nn.Dropout(), nn.ReLU(), nn.Linear(20, 5))),
         ["0.3:in"], 20),
    ],
)  # fmt: skip
def test_other_ways_to_store_a_layer(model: nn.Module, sites: list[str], count: int) -> None:
    found = neurons(stored(model), model)
    assert [layer.site for layer in found] == sites
    assert found[0].count == count


def test_what_holds_no_neurons_is_refused(tmp_path: pathlib.Path) -> None:
    for model in (_Attention(), nn.Conv2d(3, 4, 2), nn.LSTM(3, 4)):
        with pytest.raises(bp.DataError, match="no layer of neurons was recognised"):
            bp.weights_privilege(model)
    with torch.device("meta"):
        empty = nn.Linear(3, 4)
    with pytest.raises(bp.DataError, match="meta device"):
        bp.weights_privilege(empty)
    with pytest.raises(bp.DataError, match="there is no file or folder"):
        bp.weights_privilege("org/model")
    with pytest.raises(bp.DataError, match=r"no \.safetensors"):
        bp.weights_privilege(tmp_path)
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(bp.DataError, match="could not be read as safetensors"):
        bp.weights_privilege(tmp_path)


# --- beside the data ------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_probe_has_it_at_every_site_with_maps_on_both_sides() -> None:
    model, x = _model(planted="related"), torch.randn(300, 24, generator=seeded(0))
    report = bp.probe(
        model, [x], scores=("non_gaussianity", "weights"), progress=False, effort="quick",
        sites=["1", "2"],
    )  # fmt: skip
    found = report["1"].scores["weights"]
    assert found.effect > 4
    assert found.p_value == 0.01
    assert found.per_direction.shape == (96,)
    assert not found.decides
    assert "norms z = " in found.note
    assert "weights" not in report["2"].scores
    assert any("read the site are not known" in note for note in report["2"].notes)
    alone = bp.weights_privilege(model)["2:in"]["cosine"]
    assert math.isclose(alone.observed, found.observed, rel_tol=1e-5)


def test_what_two_or_three_weights_say_is_no_kurtosis() -> None:
    for outputs in (2, 3, 4):
        torch.manual_seed(outputs)
        layers = nn.Linear(9, 40), nn.ReLU(), nn.Linear(40, outputs)
        scores = {row.score for row in bp.weights_privilege(nn.Sequential(*layers))}
        assert ("writing_kurtosis" in scores) == (outputs > 3)
        assert "reading_kurtosis" in scores


def test_neurons_without_numbers_are_counted() -> None:
    layers = nn.Linear(9, 40), nn.ReLU(), nn.Linear(40, 9)
    model = nn.Sequential(*layers)
    assert not bp.weights_privilege(model).notes
    with torch.no_grad():
        layers[0].weight[:7] = torch.nan
        layers[2].weight[:, 7:10] = 0.0
    (note,) = bp.weights_privilege(model).notes
    assert "10 of the 40 neurons" in note


def test_a_folder_that_lacks_a_part_is_refused_without_an_index(tmp_path: pathlib.Path) -> None:
    layers = nn.Linear(9, 40), nn.ReLU(), nn.Linear(40, 9)
    weights = nn.Sequential(*layers).state_dict()
    safetensors.torch.save_file(weights, tmp_path / "model-00001-of-00002.safetensors")
    with pytest.raises(DataError, match="lacks model-00002-of-00002"):
        bp.weights_privilege(tmp_path)


def _swap_first(where: dict[str, str], name: str) -> dict[str, str]:
    return {**where, next(iter(where)): name}


WRONG_INDEX: dict[str, tuple[Callable[[dict[str, str]], dict[str, str]], str]] = {
    "a shard is named for nothing": (
        lambda where: {k: v for k, v in where.items() if "00002-of" not in v},
        r"lacks model-00002-of-00003\.safetensors, or its .* does not name it",
    ),
    "the last shard, too": (
        lambda where: {k: v for k, v in where.items() if "00003-of" not in v},
        r"lacks model-00003-of-00003\.safetensors, or its .* does not name it",
    ),
    "a weight is in no shard": (
        lambda where: {**where, "3.down_proj.weight": "model-00001-of-00003.safetensors"},
        r"lacks 3\.down_proj\.weight, which its .* names and none of its files holds",
    ),
    "nothing is named": (lambda where: {}, "holds no floating-point weights"),
    "a shard is not there": (
        lambda where: _swap_first(where, "model-00004-of-00003.safetensors"),
        r"lacks model-00004-of-00003\.safetensors, which its .* names",
    ),
    "a shard is elsewhere": (
        lambda where: _swap_first(where, "../model-00001-of-00003.safetensors"),
        "names files that are not in the folder",
    ),
    "a shard is anywhere": (
        lambda where: _swap_first(where, "/etc/hostname"),
        "names files that are not in the folder",
    ),
}


@pytest.mark.sample(default=2)
@pytest.mark.parametrize("how", WRONG_INDEX)
def test_an_index_that_is_wrong_is_refused_and_no_part_is_taken_for_the_whole(
    how: str, tmp_path: pathlib.Path
) -> None:
    where: dict[str, str] = {}
    for part in range(3):
        name = f"model-0000{part + 1}-of-00003.safetensors"
        weights = {f"{part}.up_proj.weight": (40, 16), f"{part}.down_proj.weight": (16, 40)}
        made = {path: torch.randn(shape) for path, shape in weights.items()}
        safetensors.torch.save_file(made, tmp_path / name)
        where |= dict.fromkeys(made, name)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    assert len(bp.weights_privilege(tmp_path).sites) == 3
    change, said = WRONG_INDEX[how]
    index.write_text(json.dumps({"weight_map": change(where)}))
    with pytest.raises(bp.DataError, match=said):
        bp.weights_privilege(tmp_path)
