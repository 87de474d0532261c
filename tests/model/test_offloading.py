"""Models whose weights lie elsewhere and are fetched as they run."""

from __future__ import annotations

import pathlib
from typing import Any

import families
import pytest
import torch
from torch import nn

import basis_probe as bp
from basis_probe.model.network import fingerprint

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::basis_probe.MisleadingNull"),
]
FAMILY = next(family for family in families.HUGGING_FACE if family.name == "Llama")


def _to_cpu(model: nn.Module, folder: pathlib.Path) -> None:
    from accelerate import cpu_offload

    cpu_offload(model, execution_device="cpu")


def _to_disk(model: nn.Module, folder: pathlib.Path) -> None:
    from accelerate import disk_offload

    disk_offload(model, str(folder), execution_device="cpu")


def _in_part(model: nn.Module, folder: pathlib.Path) -> None:
    from accelerate import dispatch_model

    places: dict[str, Any] = {"model.layers.0": "disk"}
    for name, _ in model.named_parameters():
        if not name.startswith("model.layers.0."):
            places[name.rpartition(".")[0]] = "cpu"
    dispatch_model(model, places, main_device="cpu", offload_dir=str(folder), force_hooks=True)


def _data() -> list[Any]:
    return [FAMILY.example(seed) for seed in range(3)]


@pytest.mark.parametrize("offload", [_to_cpu, _to_disk, _in_part])
def test_fetched_weights_give_the_same_report(offload: Any, tmp_path: pathlib.Path) -> None:
    null = bp.nulls.Rotation(frames=19)
    here, there = FAMILY.make(0), FAMILY.make(0)
    offload(there, tmp_path)
    away = [name for name, parameter in there.named_parameters() if parameter.is_meta]
    assert away
    expected = bp.probe(here, _data(), null=null, progress=False, certificates=False)
    found = bp.probe(there, _data(), null=null, progress=False)
    assert [site.site for site in found] == [site.site for site in expected]
    for site, other in zip(found, expected, strict=True):
        assert site.symmetry.group == other.symmetry.group
        for name, score in site.scores.items():
            assert score.effect == pytest.approx(other.scores[name].effect, rel=1e-9, nan_ok=True)
    assert away == [name for name, parameter in there.named_parameters() if parameter.is_meta]


def test_weights_have_one_fingerprint_wherever_they_lie(tmp_path: pathlib.Path) -> None:
    model = FAMILY.make(0)
    before = fingerprint(model)
    _to_disk(model, tmp_path)
    assert fingerprint(model) == before != fingerprint(FAMILY.make(1))


def test_weights_that_are_nowhere_are_refused() -> None:
    with pytest.raises(ValueError, match="meta device, which holds no numbers"):
        bp.probe(FAMILY.make(0).to("meta"), _data(), progress=False)


def test_gathering_is_refused(tmp_path: pathlib.Path) -> None:
    model = FAMILY.make(0)
    _to_disk(model, tmp_path)
    with pytest.raises(ValueError, match="leave device=None"):
        bp.probe(model, _data(), device=torch.device("cpu"), progress=False)


def _mapped_file(tensor: torch.Tensor) -> str:
    """The file that the memory of a tensor is mapped from; empty if there is none."""
    place = tensor.data_ptr()
    for line in pathlib.Path("/proc/self/maps").read_text().splitlines():
        span, *_, path = line.split(maxsplit=5) if line.count(" ") >= 5 else (line, "")
        start, _, end = span.split()[0].partition("-")
        if int(start, 16) <= place < int(end, 16):
            return path.strip()
    return ""


@pytest.mark.skipif(not pathlib.Path("/proc/self/maps").exists(), reason="maps are Linux's")
def test_weights_that_are_mapped_from_shards_are_proved_where_they_lie(
    tmp_path: pathlib.Path,
) -> None:
    from accelerate import init_empty_weights
    from safetensors.torch import load_file, save_file

    here = FAMILY.make(0)
    numbers = {name: value.contiguous() for name, value in here.state_dict().items()}
    names = [*numbers]
    for number in range(3):
        save_file(
            {name: numbers[name] for name in names[number::3]}, tmp_path / f"{number}.safetensors"
        )
    files = sorted(tmp_path.glob("*.safetensors"))
    before = [file.read_bytes() for file in files]
    with init_empty_weights(include_buffers=False):
        there = FAMILY.make(0)
    for file in files:
        there.load_state_dict(load_file(file), strict=False, assign=True)
    parameters = dict(there.eval().named_parameters())
    assert not [name for name, parameter in parameters.items() if parameter.is_meta]
    assert all(
        _mapped_file(parameter).startswith(str(tmp_path)) for parameter in parameters.values()
    )
    found, expected = (bp.symmetries(model, FAMILY.example(0)) for model in (there, here))
    assert [*found] == [*expected]
    for name, claim in expected.items():
        wanted, proof = claim.certificate, found[name].certificate
        assert wanted is not None and proof is not None and proof.holds
        assert (found[name].group, proof.stranger) == (claim.group, wanted.stranger)
        assert proof.violation == pytest.approx(wanted.violation, rel=1e-6, nan_ok=True)
    # Nothing was written to them, and nothing took their place.
    assert all(
        _mapped_file(parameter).startswith(str(tmp_path)) for parameter in parameters.values()
    )
    assert [file.read_bytes() for file in files] == before
