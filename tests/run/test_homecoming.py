"""What a batch showed comes to the CPU at once for all sites, and a device is waited for once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import basis_probe as bp
from basis_probe.run import stream as streaming

_BLOCKING = {"cpu", "item", "tolist", "numpy", "__int__", "__float__", "__bool__"}


class _Elsewhere(TorchFunctionMode):
    """Takes the numbers that are caught for those of a device, and counts who waits for them."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device, self.begun, self.blocking = device, 0, 0
        self.away: dict[int, Tensor] = {}

    def send(self, tensor: Tensor) -> Tensor:
        self.away[id(tensor)] = tensor
        return tensor

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        first: Any = args[0] if args else None
        if id(first) in self.away:
            owner = getattr(getattr(func, "__self__", None), "__name__", "")
            if name == "__get__" and owner == "device":
                return self.device
            if name == "to" and kwargs.get("non_blocking"):
                self.begun += 1
                return first.detach().clone()
            self.blocking += name in _BLOCKING
        return func(*args, **kwargs)


def _seen(layers: int, monkeypatch: pytest.MonkeyPatch) -> tuple[_Elsewhere, list[Any], Any]:
    """What streaming does of a model of some layers whose numbers lie on a device."""
    torch.manual_seed(0)
    parts = [part for _ in range(layers) for part in (nn.Linear(6, 6), nn.ReLU())]
    model = nn.Sequential(*parts).eval()
    away, waits = _Elsewhere(torch.device("cuda", 0)), list[Any]()
    tensors = streaming._Caught.tensors  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(streaming, "_wait_for", waits.append)
    monkeypatch.setattr(
        streaming._Caught,  # pyright: ignore[reportPrivateUsage]
        "tensors",
        lambda caught: [away.send(tensor) for tensor in tensors(caught)],
    )
    generator = torch.Generator().manual_seed(1)
    data = [torch.randn(20, 6, generator=generator) for _ in range(3)]
    with away:
        part = bp.observe(
            model, data, sites=[str(2 * i + 1) for i in range(layers)], progress=False
        )
    monkeypatch.undo()
    return away, waits, (part, model, data)


def test_a_device_is_waited_for_once_a_batch_whatever_the_number_of_sites(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few, waits, _ = _seen(1, monkeypatch)
    many, more, _ = _seen(4, monkeypatch)
    assert waits == more == [torch.device("cuda", 0)] * 3
    assert many.begun == 4 * few.begun > 0
    assert few.blocking == many.blocking == 0


def test_copies_that_wait_are_counted() -> None:
    away = _Elsewhere(torch.device("cuda", 0))
    with away:
        away.send(number := torch.ones(()))
        number.cpu()
        float(number)
    assert away.blocking == 2


def test_what_comes_home_is_what_was_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, (part, model, data) = _seen(2, monkeypatch)
    here = bp.observe(model, data, sites=["1", "3"], progress=False)
    for name, seen in here.seen.items():
        other = part.seen[name]
        assert torch.equal(seen.moments.m4, other.moments.m4)
        torch.testing.assert_close(
            seen.kurtosis.share, other.kurtosis.share, rtol=0, atol=0, equal_nan=True
        )
        assert seen.kept.rows.keys() == other.kept.rows.keys()
        for key, rows in seen.kept.rows.items():
            assert torch.equal(rows, other.kept.rows[key])
