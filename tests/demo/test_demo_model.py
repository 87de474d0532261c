"""The embedded model, the grammar that it learned, and the ways to put a bridge around weights."""

from __future__ import annotations

import importlib.util
import itertools
import json
import operator
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from demo_texts import grammar

from basis_probe import demo
from basis_probe.model.load import PretrainedError, bridge, from_directory

ROOT = Path(__file__).resolve().parents[2]
OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul}
OPERATIONS |= {"plus": operator.add, "minus": operator.sub, "times": operator.mul}


@pytest.fixture(scope="module")
def documents() -> list[grammar.Document]:
    return grammar.labelled(800, 7)


@pytest.fixture(scope="module")
def hugging_face():
    return demo.load_hf()


@pytest.fixture(scope="module")
def bridged():
    return demo.load()


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The models here are too small to share: two threads on a busy machine wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here may reach for the network."""
    import socket

    def refuse(*_: object, **__: object) -> None:
        raise OSError("the network is not there")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def training_script() -> ModuleType:
    place = ROOT / "examples" / "train_demo_model.py"
    spec = importlib.util.spec_from_file_location("train_demo_model", place)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# The model


def test_the_folder_is_small_and_complete() -> None:
    files = {file.name: file.stat().st_size for file in demo.MODEL_DIR.iterdir() if file.is_file()}
    assert sum(files.values()) <= 3_000_000
    assert {
        "model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json",
        "training.json", "MODEL_CARD.md",
    } <= set(files)  # fmt: skip


def test_generated_text_has_no_unknown_word(
    hugging_face, documents: list[grammar.Document]
) -> None:
    """The tokenizer gives back exactly the tokens of the grammar, one `<bos>` in front."""
    _, tokenizer = hugging_face
    rows = tokenizer([document.text for document in documents])["input_ids"]
    assert tokenizer.unk_token_id not in set(itertools.chain.from_iterable(rows))
    for document, row in zip(documents, rows, strict=True):
        assert tokenizer.convert_ids_to_tokens(row) == ["<bos>", *document.tokens]
    assert tokenizer("Xylophone")["input_ids"] == [1, tokenizer.unk_token_id]


@pytest.mark.slow
def test_held_out_loss_is_the_recorded_one(hugging_face) -> None:
    model, tokenizer = hugging_face
    record = json.loads((demo.MODEL_DIR / "training.json").read_text())
    held_out = grammar.labelled(record["held_out_documents"], record["held_out_seed"])
    loss = training_script().mean_loss(model, tokenizer, held_out)
    assert loss == pytest.approx(record["held_out_loss"], abs=2e-4)
    # Choices that leave no trace in the text make the bound loose; sampling makes it uncertain.
    bound = record["grammar_choices_nats_per_token"]
    assert 0.95 * bound < loss < 1.05 * bound
    n_tokens = sum(len(document.tokens) + 1 for document in held_out)
    assert n_tokens == record["held_out_tokens"]
    assert sum(document.surprisal for document in held_out) / n_tokens == pytest.approx(bound)
    assert record["held_out_seed"] not in (record["seed"], 0)


def test_the_bridge_computes_what_the_model_computes(hugging_face, bridged) -> None:
    model, tokenizer = hugging_face
    batch = tokenizer(demo.texts(8, 3), return_tensors="pt", padding=True)
    with torch.no_grad():
        expected = model(**batch).logits
        given = bridged(batch["input_ids"], attention_mask=batch["attention_mask"])
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(given[real], expected[real], atol=2e-5, rtol=0)
    assert not bridged.training
    assert bridged.cfg.model_name == "basis-probe-demo"


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_does_not_change_what_real_tokens_get(bridged, side: str) -> None:
    """Every hook of the residual stream and the neurons, at every real position."""
    texts = sorted(demo.texts(6, 5), key=len)
    rows = [bridged.tokenizer(text)["input_ids"] for text in texts]
    longest = max(map(len, rows))
    assert min(map(len, rows)) < longest - 10
    tokens = torch.full((len(rows), longest), bridged.tokenizer.pad_token_id)
    for i, row in enumerate(rows):
        start = 0 if side == "right" else longest - len(row)
        tokens[i, start : start + len(row)] = torch.tensor(row)
    mask = (tokens != bridged.tokenizer.pad_token_id).long()

    names = ["blocks.1.mlp.hook_post", "blocks.3.hook_resid_post"]
    with torch.no_grad():
        _, padded = bridged.run_with_cache(tokens, names_filter=names, attention_mask=mask)
        for i, row in enumerate(rows):
            _, alone = bridged.run_with_cache(torch.tensor([row]), names_filter=names)
            for name in names:
                torch.testing.assert_close(
                    padded[name][i][mask[i].bool()], alone[name][0], atol=5e-5, rtol=0
                )


def test_importing_the_demo_loads_no_heavy_library() -> None:
    code = (
        "import sys, basis_probe.demo\n"
        "heavy = {'transformers', 'transformer_lens', 'tokenizers', 'huggingface_hub'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


# Training


@pytest.mark.slow
def test_the_training_script_writes_a_folder_that_loads(tmp_path: Path) -> None:
    script = training_script()
    folders = tmp_path / "first", tmp_path / "second"
    for folder in folders:
        script.main(["--steps", "2", "--held-out", "8", "--seed", "3", "--out", str(folder)])
    first, second = ((folder / "model.safetensors").read_bytes() for folder in folders)
    assert first == second
    loaded = from_directory(folders[0])
    assert loaded.cfg.model_name == str(folders[0])
    record = json.loads((folders[0] / "training.json").read_text())
    assert record["steps"] == 2 and len(record["samples"]) == 8
    tokens = loaded.tokenizer(demo.texts(1, 0), return_tensors="pt")["input_ids"]
    assert loaded(tokens).isfinite().all()
    shipped = json.loads((demo.MODEL_DIR / "tokenizer.json").read_text())
    assert json.loads((folders[0] / "tokenizer.json").read_text()) == shipped


def test_the_rate_rises_and_falls() -> None:
    rate = training_script().rate
    rates = [rate(step, 1000) for step in range(1000)]
    assert max(rates) == pytest.approx(1.0)
    assert rates.index(max(rates)) in (99, 100)
    assert rates[:100] == sorted(rates[:100])
    assert rates[100:] == sorted(rates[100:], reverse=True)
    assert rates[-1] == pytest.approx(0.02, abs=1e-4)


# A bridge around other weights


def test_a_bridge_leaves_the_tokenizer_of_its_user_alone(hugging_face) -> None:
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    _, shipped = hugging_face
    inner = Tokenizer(models.WordLevel({"a": 0, "<bos>": 1}, unk_token="a"))
    bare = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<bos>")
    config = LlamaConfig(
        vocab_size=8, hidden_size=8, intermediate_size=12, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, pad_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config).double().eval()
    tokens = torch.tensor([[1, 0, 0]])
    with torch.no_grad():
        expected = model(tokens).logits
        wrapped = bridge(model, bare, name="tiny")
        torch.testing.assert_close(wrapped(tokens), expected, atol=1e-6, rtol=0)
    assert wrapped.cfg.model_name == "tiny"
    assert bare.pad_token is None and bare.eos_token is None
    assert shipped.pad_token == "<pad>"


def test_a_bridge_needs_a_tokenizer(hugging_face) -> None:
    with pytest.raises(TypeError, match=r"tokenizer is a NoneType: needs .*AutoTokenizer"):
        bridge(hugging_face[0], None)


def test_an_empty_folder_is_told_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(PretrainedError, match=r"lacks config.json, the weights .*, the tokenizer"):
        from_directory(tmp_path)
    for file in ("config.json", "tokenizer.json"):
        shutil.copy(demo.MODEL_DIR / file, tmp_path)
    with pytest.raises(PretrainedError, match=r"lacks the weights .*: needs a folder"):
        from_directory(tmp_path)


def test_a_path_that_is_no_folder_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(PretrainedError, match=r"there is no folder '.*nowhere'"):
        from_directory(tmp_path / "nowhere")
    with pytest.raises(PretrainedError, match=r"config.json is a file: needs the folder"):
        from_directory(demo.MODEL_DIR / "config.json")


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("damage", ["weights", "architecture"])
def test_files_that_cannot_be_read_are_said_so(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(demo.MODEL_DIR, folder)
    if damage == "weights":
        (folder / "model.safetensors").write_bytes(b"no tensors here")
    else:
        config = json.loads((folder / "config.json").read_text())
        config |= {"architectures": ["ResNetForImageClassification"], "model_type": "resnet"}
        (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(PretrainedError, match="no TransformerBridge could be built") as caught:
        from_directory(folder)
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize(
    ("local", "where"), [(False, "from the Hugging Face hub"), (True, "in the local cache")]
)
def test_a_hub_that_cannot_be_reached_is_said_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local: bool, where: str
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(PretrainedError, match=f"'some/model' is no local folder .* {where}"):
        from_directory("some/model", local_files_only=local)


def test_a_hub_name_is_taken_from_the_cache_with_safetensors_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked: list[list[str]] = []

    def snapshot(name: str, *, allow_patterns: list[str], local_files_only: bool) -> str:
        assert (name, local_files_only) == ("some/model", True)
        asked.append(allow_patterns)
        return str(demo.MODEL_DIR)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    loaded = from_directory("some/model", local_files_only=True)
    assert loaded.cfg.model_name == "some/model"
    assert asked == [["*.json", "*.model", "*.txt", "*.safetensors"]]
