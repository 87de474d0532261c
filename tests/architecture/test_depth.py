"""Deriving the groups of a model takes as long as it is deep, and no longer."""

import pathlib
import sys
from types import FrameType
from typing import Any

import torch
import transformers

import basis_probe as bp
from basis_probe.architecture import derive
from basis_probe.architecture.derive import Derivation
from basis_probe.model.batches import batch_of
from basis_probe.model.facts import facts_of
from basis_probe.model.network import prepared, recognise

ROOM = str(pathlib.Path(derive.__file__).parent)


def _model(layers: int) -> torch.nn.Module:
    config = transformers.LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=20,
        max_position_embeddings=16,
    )
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config).eval()


def _calls(layers: int) -> int:
    """How many functions are called while all groups are derived."""
    subject = recognise(_model(layers))
    ids = torch.arange(8).reshape(2, 4)
    count = 0

    def see(frame: FrameType, event: str, _: Any) -> None:
        nonlocal count
        count += event == "call" and frame.f_code.co_filename.startswith(ROOM)

    with prepared(subject.model, None):
        batch = batch_of(ids, number=0, tokenizer=None, device=torch.device("cpu"))
        facts = facts_of(subject, batch)
        derivation = Derivation(facts)
        before = sys.getprofile()
        sys.setprofile(see)
        try:
            groups = {name: derivation.symmetry(site).group for name, site in facts.sites.items()}
        finally:
            sys.setprofile(before)
    assert len(groups) > 20 * layers
    return count


def test_calls_grow_with_the_layers() -> None:
    few, many = _calls(3), _calls(12)
    assert many < 4.1 * few


def test_what_is_found_out_once_is_what_is_found_out_each_time() -> None:
    model, ids = _model(3), torch.arange(8).reshape(2, 4)
    found = bp.symmetries(model, ids, certificates=False)
    subject = recognise(model)
    with prepared(subject.model, None):
        batch = batch_of(ids, number=0, tokenizer=None, device=torch.device("cpu"))
        facts = facts_of(subject, batch)
        for name in [*found][::7]:
            # Nothing was asked of this one before.
            alone = Derivation(facts).symmetry(facts.sites[name])
            assert (alone.group, alone.because) == (found[name].group, found[name].because)
