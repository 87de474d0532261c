"""Weights that are moved or cast while their modules run are the weights that they were."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import families
import pytest
import torch
from torch import Tensor, nn

import basis_probe as bp

FAMILY = next(family for family in families.HUGGING_FACE if family.name == "Llama")
CPU: Any = "cpu"


def _state(model: nn.Module) -> dict[str, tuple[int, torch.dtype, Tensor]]:
    both = (*model.named_parameters(), *model.named_buffers())
    return {name: (id(tensor), tensor.dtype, tensor.detach().clone()) for name, tensor in both}


def _hooked(model: nn.Module) -> nn.Module:
    from accelerate import cpu_offload_with_hook

    return cpu_offload_with_hook(model, execution_device=CPU)[0]


def _aligned(model: nn.Module) -> nn.Module:
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    return add_hook_to_module(model, AlignDevicesHook(CPU, place_submodules=True))


def _stored_as(dtype: torch.dtype) -> Callable[[nn.Module], nn.Module]:
    def cast(model: nn.Module) -> nn.Module:
        from accelerate.big_modeling import attach_layerwise_casting_hooks

        skipped = ["embed", "norm"]
        attach_layerwise_casting_hooks(model, dtype, torch.float32, skip_modules_pattern=skipped)
        return model

    return cast


def _brought(module: nn.Module, _: object) -> None:
    module.to(CPU).float().requires_grad_(False)


def _as_they_run(model: nn.Module) -> nn.Module:
    for module in model.modules():
        module.register_forward_pre_hook(_brought)
    return model


WAYS = {
    "a hook that brings the model": _hooked,
    "a hook that aligns devices": _aligned,
    "every module by itself": _as_they_run,
    "kept in 16 bits": _stored_as(torch.bfloat16),
    "kept in 8 bits": _stored_as(torch.float8_e4m3fn),
    "kept in 8 bits of a wider range": _stored_as(torch.float8_e5m2),
}


@pytest.mark.sample(default=3)
@pytest.mark.parametrize("way", WAYS)
def test_claims_are_proved_and_weights_are_left_as_they_were(way: str) -> None:
    example = FAMILY.example(1)
    expected = bp.symmetries(FAMILY.make(0), example)
    model = WAYS[way](FAMILY.make(0)).eval()
    model(**example)
    before, random = _state(model), torch.get_rng_state()
    found = bp.symmetries(model, example)
    assert {n: s.group for n, s in found.items()} == {n: s.group for n, s in expected.items()}
    for name, symmetry in expected.items():
        made = found[name].certificate
        assert (made is None) == (symmetry.certificate is None), name
        assert made is None or made.holds, name
    after = _state(model)
    assert before.keys() == after.keys()
    for name, (place, dtype, numbers) in before.items():
        assert after[name][:2] == (place, dtype)
        assert torch.equal(after[name][2], numbers)
    assert torch.equal(torch.get_rng_state(), random)


class Asked(nn.Module):
    """A table and a map whose weights go through a call that returns them as they are."""

    def __init__(self, through: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.table, self.last = nn.Embedding(20, 8), nn.Linear(8, 3)
        self.gain = nn.Parameter(torch.rand(8) + 0.5)
        self.through = through

    def forward(self, ids: Tensor) -> Tensor:
        x = nn.functional.embedding(ids, self.through(self.table.weight))
        x = nn.functional.rms_norm(x, (8,), self.through(self.gain))
        return nn.functional.linear(x, self.through(self.last.weight), self.last.bias)


RETURNING: dict[str, Callable[[Tensor], Tensor]] = {
    "to a device": lambda w: w.to(CPU),
    "to a type": lambda w: w.to(torch.float32),
    "float": lambda w: w.float(),
    "cpu": lambda w: w.cpu(),
    "contiguous": lambda w: w.contiguous(),
    "requires_grad_": lambda w: w.requires_grad_(True),
    "all of them": lambda w: w.to(CPU).float().contiguous().cpu(),
}


@pytest.mark.parametrize("call", RETURNING)
def test_a_call_that_returns_a_weight_as_it_is_says_nothing_of_it(call: str) -> None:
    ids = torch.arange(12).reshape(2, 6)

    def found(through: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = Asked(through).eval()
        return bp.symmetries(model, ids)

    expected, told = found(lambda w: w), found(RETURNING[call])
    assert {n: s.group for n, s in told.items()} == {n: s.group for n, s in expected.items()}
    for name, symmetry in expected.items():
        assert (told[name].certificate is None) == (symmetry.certificate is None), name
