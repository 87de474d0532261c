"""A configuration says of an architecture what a model of it says."""

from __future__ import annotations

import io
import itertools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import families
import pytest
import torch
from torch import Tensor, nn

import basis_probe as bp
from basis_probe import groups as G
from basis_probe.cli import main
from basis_probe.model.from_config import from_config, with_weights

USUAL = ("GPT-2", "Gemma 2", "Mixtral", "ViT")


@pytest.mark.sample(default=1)
@pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, id=family.name, marks=[] if family.name in USUAL else pytest.mark.slow)
        for family in families.HUGGING_FACE
    ],
)
def test_sites_and_groups_are_those_of_the_model(family: families.Family) -> None:
    model = family.make(0)
    model.config.architectures = [type(model).__name__]
    expected = bp.symmetries(model, family.example(1))
    found = bp.symmetries(model.config, family.example(1))
    assert {n: s.group for n, s in found.items()} == {n: s.group for n, s in expected.items()}
    for name, symmetry in expected.items():
        made, ours = found[name].certificate, symmetry.certificate
        assert (made is None) == (ours is None), name
        assert made is None or (made.holds and made.stranger in (ours.stranger, made.stranger))


@pytest.mark.sample(default=1, slow=12)
@pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, id=family.name)
        for family in families.FROM_RECIPE
        if not families.ROWS[family.name].wrap
    ],
)
def test_a_configuration_says_what_a_model_of_a_recipe_says(family: families.Family) -> None:
    model: Any = family.make(0)
    model.config.architectures = [type(model).__name__]
    expected = bp.symmetries(model, family.example(1))
    found = bp.symmetries(model.config, family.example(1))
    # Which experts are called is a matter of the weights.
    assert all("expert" in name for name in found.keys() ^ expected.keys())
    for name in found.keys() & expected.keys():
        assert found[name].group == expected[name].group, name
        assert (found[name].certificate is None) == (expected[name].certificate is None), name


class Parted(nn.Module):
    """Two layers of neurons whose weights are parts of one parameter."""

    def __init__(self, shape: tuple[int, ...], take: Callable[[Tensor], list[Tensor]]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 16), nn.Linear(16, 3)
        self.weight = nn.Parameter(torch.randn(shape))
        self.take = take

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        parts = self.take(self.weight)
        for read, write in zip(parts[::2], parts[1::2], strict=True):
            x = x + (x @ read.T).relu() @ write.T
        return self.last(x)


PARTED: dict[str, tuple[tuple[int, ...], Callable[[Tensor], list[Tensor]]]] = {
    "rows": ((48, 16), lambda w: [w[:12], w[12:24].T, w[24:36], w[36:].T]),
    "chunks": ((48, 16), lambda w: [p if i % 2 == 0 else p.T for i, p in enumerate(w.chunk(4))]),
    "columns": ((12, 64), lambda w: [w[:, :16], w[:, 16:32].T, w[:, 32:48], w[:, 48:].T]),
    "matrices": ((4, 16, 16), lambda w: [w[0], w[1].T, w[2], w[3].T]),
    "matrices of matrices": ((2, 2, 16, 16), lambda w: [w[0, 0], w[0, 1].T, w[1, 0], w[1, 1].T]),
    "rows that two share": ((30, 16), lambda w: [w[:12], w[6:18].T]),
    "one matrix twice": ((12, 16), lambda w: [w, w.T, w, w.T]),
}


@pytest.mark.parametrize("way", PARTED)
def test_parts_of_one_parameter_are_told_apart_without_its_numbers(way: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Parted(*PARTED[way]).eval()
    with torch.device("meta"):
        empty = Parted(*PARTED[way])
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
    expected, found = bp.symmetries(model, x), bp.symmetries(empty, x)
    assert {n: s.group for n, s in found.items()} == {n: s.group for n, s in expected.items()}
    assert isinstance(found["first"].group, G.Unknown) == (way == "rows that two share")
    for name, symmetry in found.items():
        assert (symmetry.certificate is None) == (expected[name].certificate is None), name


def test_weights_of_several_types_take_hardly_any_memory() -> None:
    with torch.device("meta"):
        layers = nn.Linear(1024, 1024), nn.LayerNorm(1024), nn.Linear(1024, 1024)
        empty = nn.Sequential(*layers)
    for part, dtype in zip(empty, (torch.bfloat16, torch.float32, torch.float16), strict=True):
        part.to(dtype)
    model = with_weights(empty)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    held = sum(parameter.untyped_storage().nbytes() for parameter in model.parameters())
    assert held < 100_000


def test_stacks_that_a_model_fills_with_zeros_take_hardly_any_memory() -> None:
    import transformers

    model = from_config(
        transformers.Llama4TextConfig(
            hidden_size=512, intermediate_size=640, intermediate_size_mlp=64, num_hidden_layers=1,
            num_attention_heads=4, num_key_value_heads=2, head_dim=128, vocab_size=100,
            num_local_experts=4, pad_token_id=0,
        )
    )  # fmt: skip
    stacks = {n: p for n, p in model.named_parameters() if p.ndim == 3}
    assert len(stacks) == 2
    for name, stack in stacks.items():
        assert stack.untyped_storage().nbytes() < 20_000, name
        assert all(float(matrix.std()) > 0 for matrix in stack), name


class Mixture(nn.Module):
    """Experts in two stacks of matrices, each of which all rows go through."""

    def __init__(self, layers: int, experts: int, width: int, neurons: int, dtype: Any) -> None:
        super().__init__()
        self.first = nn.Linear(5, width, dtype=dtype)
        for name, shape in (("up", (neurons, width)), ("down", (width, neurons))):
            stacks = [torch.empty(experts, *shape, dtype=dtype) for _ in range(layers)]
            self.register_module(name, nn.ParameterList(map(nn.Parameter, stacks)))
        self.last = nn.Linear(width, 3, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for up, down in zip(self.up, self.down, strict=True):
            for read, write in zip(up, down, strict=True):
                x = x + nn.functional.linear(nn.functional.linear(x, read).relu(), write)
        return self.last(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("layers", "experts"), [(1, 1), (1, 6), (6, 1), (5, 7)])
@pytest.mark.parametrize(("width", "neurons"), [(64, 96), (512, 576)])
def test_stacks_of_matrices_share_no_numbers_and_take_the_memory_of_few(
    layers: int, experts: int, width: int, neurons: int, dtype: torch.dtype
) -> None:
    with torch.device("meta"):
        empty = Mixture(layers, experts, width, neurons, dtype)
    model = with_weights(empty)
    small = width * neurons < 2**18
    held = 0
    for stacks in (model.up, model.down):
        matrices = [matrix for stack in stacks for matrix in stack]
        assert len({(m.untyped_storage().data_ptr(), m.storage_offset()) for m in matrices}) == len(
            matrices
        )
        for one, other in itertools.combinations(matrices, 2):
            assert not torch.equal(one, other)
        for matrix in matrices if small else matrices[:1]:
            assert int(torch.linalg.matrix_rank(matrix.double())) == width
        held += sum(stack.untyped_storage().nbytes() for stack in stacks)
    one = 2 * width * neurons if small else 3 * (width + neurons)
    assert held <= layers * (one + 2 * 112 * experts) * dtype.itemsize


@pytest.mark.parametrize(("layers", "experts"), [(1, 3), (3, 2)])
def test_experts_of_models_without_numbers_have_the_groups_of_those_with_some(
    layers: int, experts: int
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Mixture(layers, experts, 16, 24, torch.float32).eval()
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.2)
    with torch.device("meta"):
        empty = Mixture(layers, experts, 16, 24, torch.float32)
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
    expected, found = bp.symmetries(model, x), bp.symmetries(empty, x)
    assert {n: s.group for n, s in found.items()} == {n: s.group for n, s in expected.items()}
    assert found["first"].group == G.GeneralLinear(16)
    for name, symmetry in found.items():
        assert symmetry.certificate is not None and symmetry.certificate.holds, name


SIZES = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 40,
    "vocab_size": 50, "num_key_value_heads": 2,
}  # fmt: skip


def _groups(config: Any) -> dict[str, Any]:
    return {n: s.group for n, s in bp.symmetries(config, certificates=False).items()}


def test_every_form_of_a_configuration_says_the_same(tmp_path: pathlib.Path) -> None:
    import transformers

    said = {"model_type": "llama", **SIZES}
    (tmp_path / "config.json").write_text(json.dumps(said))
    expected = _groups(transformers.LlamaConfig(**SIZES))
    for form in (said, tmp_path, str(tmp_path), tmp_path / "config.json"):
        assert _groups(form) == expected
    for dtype in ("float16", "bfloat16", "float64"):
        assert _groups({**said, "dtype": dtype}) == expected
    with pytest.raises(ValueError, match=r"no model can be built from dict .*it has no model_type"):
        bp.symmetries(SIZES)


@pytest.mark.parametrize("name", ["", "./none", "~/none", "/none/none", "a/b/c", "."])
def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(
    name: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = r"there is no folder" if name != "." else "it holds no config.json"
    with pytest.raises(ValueError, match=f"no model can be built from '{name}' .*{said}"):
        bp.symmetries(name)


NO_MODELS = ("Trainer", "pipeline", "AutoModel", "GPT2LMHeadModel", "LlamaConfig", "NoSuchModel")


@pytest.mark.sample(default=3)
@pytest.mark.parametrize("name", NO_MODELS)
def test_a_configuration_names_models_of_its_own_kind_or_none(name: str) -> None:
    said = {"model_type": "llama", **SIZES}
    plain = _groups(said)
    assert _groups({**said, "architectures": [name]}) == plain
    assert _groups({**said, "architectures": name}) == plain


@pytest.mark.sample(default=3)
@pytest.mark.parametrize("kind", ["nonesuch", "llama"])
@pytest.mark.parametrize("answer", ["y\n", "n\n", ""])
def test_code_of_a_repository_is_not_run_whatever_is_answered(
    kind: str,
    answer: str,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    own = {"AutoConfig": "code.Config", "AutoModel": "code.M", "AutoModelForCausalLM": "code.M"}
    said = {"model_type": kind, "architectures": ["Own"], "auto_map": own, **SIZES}
    (tmp_path / "config.json").write_text(json.dumps(said))
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "tokenizer.json").write_text("{}")
    for form in ([str(tmp_path), "--config-only"], [str(tmp_path)]):
        monkeypatch.setattr("sys.stdin", io.StringIO(answer))
        assert main(["symmetries", *form]) == 2
        printed = capsys.readouterr()
        assert "[y/N]" not in printed.out + printed.err
        if kind == "nonesuch" or "--config-only" in form:
            assert "which is not run" in " ".join(printed.err.split())
    assert not (tmp_path / "ran").exists()


@pytest.mark.sample(default=1, slow=6)
@pytest.mark.parametrize(
    "name", [*families.vision(families.SMALL), *families.speech(families.SMALL)]
)
def test_what_reads_images_and_sounds_is_given_some(name: str) -> None:
    family = families.building.from_row(name, families.ROWS[name], families.SMALL)
    model: Any = family.make(0)
    model = model if hasattr(model, "config") else model.model
    model.config.architectures = [type(model).__name__]
    expected = bp.symmetries(model, family.example(1), certificates=False)
    found = bp.symmetries(model.config, certificates=False)
    # How long a sound is is not said by its network.
    known = {
        n: s.group for n, s in expected.items() if not isinstance(s.group, G.Unknown | G.Trivial)
    }
    assert known
    assert {n: found[n].group for n in known} == known


@pytest.mark.slow
def test_a_large_model_takes_hardly_any_memory() -> None:
    import transformers

    config = transformers.LlamaConfig(num_hidden_layers=2)
    model = from_config(config)
    size = sum(parameter.numel() for parameter in model.parameters())
    held = sum(parameter.untyped_storage().nbytes() for parameter in model.parameters())
    assert size > 600_000_000 and held < 5_000_000
    found = bp.symmetries(config, certificates=False)
    assert found["model.layers.1.mlp.act_fn"].group == G.Permutation(11008)
    assert found["model.layers.0"].group == G.Orthogonal(4096)


def test_drawn_matrices_are_generic() -> None:
    with torch.device("meta"):
        empty = nn.Sequential(nn.Linear(24, 24), nn.BatchNorm1d(24), nn.Linear(24, 40))
    model = with_weights(empty)
    for layer in (model[0], model[2]):
        assert int(torch.linalg.matrix_rank(layer.weight)) == 24
    assert not torch.allclose(model[0].weight, model[0].weight.T)
    for vector in (model[0].bias, model[1].weight, model[1].running_mean, model[1].running_var):
        assert len(vector.unique()) == 24
    assert bool((model[1].running_var > 0).all())


def test_a_model_without_weights_is_left_as_it_is() -> None:
    with torch.device("meta"):
        empty = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    found = bp.symmetries(empty)
    assert found["1"].group == G.PositiveMonomial(8)
    assert found["1"].certificate is not None and found["1"].certificate.holds
    assert all(parameter.is_meta for parameter in empty.parameters())


def test_tied_weights_stay_tied() -> None:
    model = next(f for f in families.HUGGING_FACE if f.name == "Gemma").make(0)
    made = from_config(model.config)
    assert made.lm_head.weight is made.model.embed_tokens.weight


class Held(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("table", torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) * self.table


def test_what_cannot_be_known_is_said(tmp_path: pathlib.Path) -> None:
    with torch.device("meta"):
        empty = Held()
    with pytest.raises(ValueError, match="the buffer table of a Held is on the meta device"):
        bp.symmetries(empty, torch.randn(2, 4))
    with pytest.raises(ValueError, match=r"no model can be built from '.*none'"):
        bp.symmetries(str(tmp_path / "none"))
    whole = nn.Linear(2, 2)
    whole.register_parameter("q", nn.Parameter(torch.zeros(2, dtype=torch.int8), False))
    with pytest.raises(ValueError, match=r"holds torch\.int8: give a model or a configuration"):
        with_weights(whole)


def test_encoder_and_decoder_are_given_texts_of_their_own() -> None:
    import transformers

    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 20, "num_layers": 1, "num_heads": 2}
    found = bp.symmetries(transformers.T5Config(**sizes, vocab_size=40))
    name = "decoder.block.0.layer.2.DenseReluDense.act"
    assert found[name].group == G.PositiveMonomial(20)


def test_a_gain_may_stand_behind_a_norm_that_something_carries() -> None:
    import transformers

    config = transformers.Mamba2Config(
        hidden_size=32, num_hidden_layers=1, head_dim=8, num_heads=8, vocab_size=50, state_size=8,
        n_groups=1,
    )  # fmt: skip
    found = bp.symmetries(config)
    assert found["backbone.layers.0"].group == G.Orthogonal(32)
    proved = [symmetry for symmetry in found.values() if symmetry.certificate is not None]
    assert len(proved) > 10 and all(s.certificate and s.certificate.holds for s in proved)


@pytest.mark.slow
def test_the_command_reads_a_configuration_alone(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = next(f for f in families.HUGGING_FACE if f.name == "Llama").make(0)
    model.config.architectures = ["LlamaForCausalLM"]
    model.config.save_pretrained(tmp_path)
    assert bp.symmetries(tmp_path, certificates=False)["model.layers.1"].group == G.Orthogonal(32)
    assert main(["symmetries", str(tmp_path), "--config-only", "--sites", "model.layers.1"]) == 0
    assert "orthogonal (32)" in capsys.readouterr().out
    assert main(["symmetries", str(tmp_path / "none"), "--config-only"]) != 0
    assert "no model can be built from" in capsys.readouterr().err
