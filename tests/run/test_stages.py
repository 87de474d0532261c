"""A model that no process holds: stages that hand hidden states on, as the documentation has it."""

from __future__ import annotations

import pathlib
import re
from typing import Any

import families
import pytest
import torch
from torch import Tensor, nn

import basis_probe as bp

pytestmark = pytest.mark.filterwarnings("ignore::basis_probe.MisleadingNull")
DOCS = pathlib.Path(__file__).parents[2] / "docs" / "scale.md"


def _recipe() -> dict[str, Any]:
    (code,) = re.findall(r"```py\n(class Stage.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {"torch": torch, "bp": bp}
    exec(compile(code, str(DOCS), "exec"), names)
    return names


def _whole() -> tuple[Any, list[Tensor]]:
    family = next(family for family in families.HUGGING_FACE if family.name == "Llama")
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randint(0, 40, (16, 16), generator=generator) for _ in range(4)]
    return family.make(0), batches


def _stages(names: dict[str, Any], whole: Any) -> list[nn.Module]:
    half = len(whole.model.layers) // 2
    return [
        names["Stage"](whole, range(half), first=True).eval(),
        names["Stage"](whole, range(half, len(whole.model.layers)), last=True).eval(),
    ]


@pytest.mark.slow
def test_stages_say_of_their_sites_what_the_whole_model_says(tmp_path: pathlib.Path) -> None:
    names, (whole, batches) = _recipe(), _whole()
    expected = bp.probe(whole, batches, progress=False)
    claims = bp.symmetries(whole.config, batches[0])
    seen: set[str] = set()
    given: list[Tensor] = batches
    for stage in _stages(names, whole):
        sites = expected.sites
        found = names["probe_stage"](stage, given, claims, sites, progress=False)
        for site in found:
            other = expected[site.site]
            assert site.symmetry.group == other.symmetry.group
            proof = claims[site.site].certificate
            assert proof is not None and proof.holds
            if "self_attn" in site.site:
                # Its covariance is fitted to halves of the samples, which are told by the input.
                continue
            for name, score in site.scores.items():
                wanted = other.scores[name].effect
                assert score.effect == pytest.approx(wanted, rel=1e-3, abs=1e-3, nan_ok=True)
        seen |= {*found.sites}
        names["hand_on"](stage, given, tmp_path / "states.pt")
        given = torch.load(tmp_path / "states.pt")
    assert seen == {*expected.sites}
    with torch.no_grad():
        assert torch.equal(given[0], whole(batches[0]).logits)


def test_a_stage_alone_takes_the_stream_that_it_is_handed_for_given() -> None:
    names, (whole, batches) = _recipe(), _whole()
    first, second = _stages(names, whole)
    with torch.no_grad():
        states = first(batches[0])
    name = "model.layers.1"
    alone, claimed = bp.symmetries(second, states)[name], bp.symmetries(whole, batches[0])[name]
    assert alone.group.name == "trivial" and claimed.group.name == "orthogonal"
