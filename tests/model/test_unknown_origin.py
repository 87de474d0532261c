"""Tensors that no recorded call made are not taken for constants, and constants stay constants."""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from draws import seeded
from torch import Tensor, nn
from torch.utils import dlpack

import basis_probe as bp
from basis_probe.algebra.haar import haar

X = torch.randn(5, 6, generator=seeded(), dtype=torch.float64)
TURN = haar(8, seeded(1)).numpy()
OLDER = torch.linspace(0.5, 1.5, 8, dtype=torch.float64)


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.7 * x)


with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    scripted = torch.jit.script(quick_gelu)


class InNumpy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.from_numpy(np.sin(x.detach().numpy()))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise NotImplementedError


def _in_place(h: Tensor) -> Tensor:
    other = h.clone()
    view = other.numpy()
    view[...] = np.tanh(view)
    return other


def _in_place_through_a_view(h: Tensor) -> Tensor:
    other = h.clone()
    flat = other.view(-1)[3:].numpy()
    flat[...] = np.tanh(flat)
    return other


def _on_a_thread(h: Tensor) -> Tensor:
    found: list[Tensor] = []
    thread = threading.Thread(target=lambda: found.append(torch.tanh(h)))
    thread.start()
    thread.join()
    return found[0]


def _pickled(h: Tensor) -> Tensor:
    file = io.BytesIO()
    torch.save(h, file)
    file.seek(0)
    return torch.load(file).tanh()


BENT: dict[str, Callable[[Tensor], Tensor]] = {
    "a script": scripted,
    "numpy": lambda h: torch.from_numpy(np.tanh(h.detach().numpy())),
    "numpy, as an array": lambda h: torch.as_tensor(np.tanh(np.asarray(h))),
    "numpy, in place": _in_place,
    "numpy, in place through a view": _in_place_through_a_view,
    "lists": lambda h: torch.tensor([[abs(v) for v in row] for row in h.tolist()]).double(),
    "numbers": lambda h: torch.stack(
        [torch.tensor([abs(v.item()) for v in row], dtype=torch.float64) for row in h]
    ),
    "another library's memory": lambda h: dlpack.from_dlpack(dlpack.to_dlpack(h)).tanh(),
    "bytes": lambda h: torch.frombuffer(
        bytearray(np.tanh(h.numpy()).tobytes()), dtype=torch.float64
    ).view(h.shape),
    "an autograd function": lambda h: InNumpy.apply(h),
    "a thread": _on_a_thread,
    "a file": _pickled,
}


class Stream(nn.Module):
    """A stream to which a branch is added that bends it axis by axis."""

    def __init__(self, bend: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.e, self.b, self.o = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.bend = bend
        self.held = [torch.ones(8, dtype=torch.float64)]

    def forward(self, x: Tensor) -> Tensor:
        h = self.e(x)
        return self.o(h + self.b(self.bend(h)))


@pytest.mark.parametrize("name", BENT)
def test_what_code_out_of_sight_made_of_a_stream_binds_it(name: str) -> None:
    model = Stream(BENT[name]).double().eval()
    for certificates in (False, None):
        found = bp.symmetries(model, X, certificates=certificates)["e"]
        unknown = found.privileged is bp.Privileged.UNKNOWN
        assert unknown or not found.group.contains(TURN)


def test_a_length_taken_as_a_number_counts() -> None:
    class Scaled(Stream):
        def forward(self, x: Tensor) -> Tensor:
            h = self.e(x)
            return self.o(h / h.norm().item())

    found = bp.symmetries(Scaled(torch.tanh).double().eval(), X, certificates=False)["e"]
    unknown = found.privileged is bp.Privileged.UNKNOWN
    assert unknown or not found.group.contains(TURN * np.linspace(1, 2, 8))


class Constants(Stream):
    """Constants of every origin that does not depend on the input."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.e(x * OLDER[:6])
        made = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64) + torch.arange(3)
        return self.o(h + self.b(h)) * made * self.held[0][:3]


def test_constants_stay_constants() -> None:
    found = bp.symmetries(Constants(torch.tanh).double().eval(), X)["b"]
    assert found.privileged is not bp.Privileged.UNKNOWN


def test_what_was_read_need_not_be_what_was_made_last() -> None:
    class Between(Stream):
        def forward(self, x: Tensor) -> Tensor:
            h = self.e(x)
            other = x * 2
            bent = scripted(h)
            return self.o(h + self.b(bent)) + other[:, :3]

    found = bp.symmetries(Between(torch.tanh).double().eval(), X, certificates=False)["e"]
    unknown = found.privileged is bp.Privileged.UNKNOWN
    assert unknown or not found.group.contains(TURN)
