"""No group is larger than what the weights absorb, measured on models that hide what they do.

Each model is `reader(core(writer(x)))`. An element acts on the writer by hand. It is allowed if the
writer's parameters can take the changed weight, and if some reader then returns the old outputs on
inputs of every size: the best reader is found by least squares.
"""

from __future__ import annotations

import array
import copy
import ctypes
import io
import json
import math
import pickle
import struct
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from draws import seeded
from torch import Tensor, nn
from torch.nn.utils import parametrize

import basis_probe as bp
from basis_probe.algebra.haar import haar

D = 4
EXAMPLE = torch.randn(5, 3, generator=seeded(), dtype=torch.float64)
SIZES = (1e-3, 1.0, 30.0, 1e3, 1e5, 1e7)


class Model(nn.Module):
    """A linear path around one site, "writer".

    Args:
        core: what lies between; it is given the gate too if there is one.
        gate: whether a linear map of the site is there for the core to use.
    """

    def __init__(self, core: Callable[..., Tensor], *, gate: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.writer = nn.Linear(3, D)
            self.reader = nn.Linear(D, 3)
            self.gate = nn.Linear(D, D) if gate else None
        self.core = core

    def forward(self, x: Tensor) -> Tensor:
        site = self.writer(x)
        return self.reader(self.core(site) if self.gate is None else self.core(site, self.gate))


def elements() -> Iterator[Tensor]:
    """Turns, signs, sizes, orders and general elements."""
    one = torch.eye(D, dtype=torch.float64)
    yield haar(D, seeded(1))
    yield 1e3 * haar(D, seeded(2))
    yield one * torch.tensor([1.0, -1.0, 1.0, 1.0])
    yield -one
    yield 3 * one
    yield one / 7
    yield one * torch.tensor([1.0, 2.5, 1.0, 0.3])
    yield one[[1, 0, 2, 3]]
    yield one[[1, 2, 3, 0]]
    yield torch.randn(D, D, generator=seeded(4), dtype=torch.float64)


def inputs() -> list[Tensor]:
    generator = seeded(9)
    return [
        size * torch.randn(20, 3, generator=generator, dtype=torch.float64) for size in SIZES
    ] + [torch.randn(rows, 3, generator=generator, dtype=torch.float64) for rows in (1, 5, 7)]


@torch.no_grad()
def is_absorbed(model: nn.Module, element: Tensor, given: list[Tensor]) -> bool:
    """True if some reader returns what the model returned, once the element acted on the writer.

    A gate undoes the element, and what it writes may change places and sizes with the axes.
    """
    changed = copy.deepcopy(model)
    changed.writer.weight.copy_(element @ model.writer.weight)
    changed.writer.bias.copy_(element @ model.writer.bias)
    if model.gate is None:
        return is_read(model, changed, given)
    undone = model.gate.weight @ torch.linalg.inv(element)
    on_axes = bool(((element != 0).sum(0) == 1).all() and ((element != 0).sum(1) == 1).all())
    places = (element != 0).to(element) if on_axes else torch.eye(D, dtype=element.dtype)
    for after in (places, element.abs() * places):
        changed.gate.weight.copy_(after @ undone)
        changed.gate.bias.copy_(after @ model.gate.bias)
        if is_read(model, changed, given):
            return True
    return False


def is_read(model: nn.Module, changed: nn.Module, given: list[Tensor]) -> bool:
    """True if the best linear reader of the changed model returns what the model returns."""
    read: list[Tensor] = []
    hook = changed.reader.register_forward_pre_hook(lambda _, args: read.append(args[0].clone()))
    wanted = torch.cat([model(x).clone().reshape(-1, 3) for x in given])
    for x in given:
        changed(x)
    hook.remove()
    features = torch.cat([h.reshape(-1, h.shape[-1]) for h in read])
    known = torch.cat((features, torch.ones(len(features), 1, dtype=features.dtype)), 1)
    finite = known.isfinite().all(1) & wanted.isfinite().all(1)
    known, wanted = known[finite], wanted[finite]
    size = wanted.norm(dim=1, keepdim=True)
    known, wanted = known / size, wanted / size
    scale = known.norm(dim=0).clamp(min=1e-300)
    found = torch.linalg.lstsq(known / scale, wanted, driver="gelsy").solution
    return float(((known / scale) @ found - wanted).abs().max()) <= 1e-7


def check(model: nn.Module, example: Any, allowed: Callable[[Tensor], bool]) -> None:
    """The claim at the writer holds no element, of ours or of its own, that is not allowed."""
    found = bp.symmetries(model, example, certificates=False)["writer"]
    if found.privileged is bp.Privileged.UNKNOWN:
        return
    generator = seeded(5)
    own = [found.group.sample(generator).double() for _ in range(10)]
    for element in (*elements(), *own):
        if found.group.contains(element.numpy()):
            assert allowed(element), (found, element)


def half_by_default(names: Iterable[str]) -> list[Any]:
    """Every second name, and the others among the slow tests."""
    marks = ((), pytest.mark.slow)
    return [pytest.param(name, marks=marks[row % 2]) for row, name in enumerate(names)]


# --- tensors of unknown origin --------------------------------------------------------------------


class Cubed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        return torch.from_numpy(np.maximum(h.detach().numpy(), 0))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


class Marked(torch.Tensor):
    pass


def halved(h: Tensor) -> Tensor:
    return torch.relu(h) * 0.5


with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
    scripted = torch.jit.script(halved)


@torch.library.custom_op("basis_probe_tests::bent", mutates_args=())
def bent(h: Tensor) -> Tensor:
    return torch.from_numpy(np.tanh(h.detach().numpy()))


CACHE: dict[str, Any] = {}


def cached(h: Tensor) -> Tensor:
    CACHE["last"] = np.abs(h.detach().numpy())
    return torch.tensor(CACHE["last"])


def on_a_thread(h: Tensor) -> Tensor:
    made: list[Tensor] = []
    thread = threading.Thread(target=lambda: made.append(h.detach().relu()))
    thread.start()
    thread.join()
    return made[0]


def in_a_pool(h: Tensor) -> Tensor:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(torch.relu, h.detach()).result()


def saved(h: Tensor) -> Tensor:
    file = io.BytesIO()
    torch.save(h.detach(), file)
    file.seek(0)
    return torch.load(file).relu()


def numpy_saved(h: Tensor) -> Tensor:
    file = io.BytesIO()
    np.save(file, h.detach().numpy())
    file.seek(0)
    return torch.from_numpy(np.load(file)).abs()


def in_place(h: Tensor) -> Tensor:
    h = h.clone()
    view = h.detach().numpy()
    view[view < 0] *= 0.1
    return h


def in_place_of_data(h: Tensor) -> Tensor:
    h = h.clone()
    h.data.clamp_(min=0)
    return h


def into_empty(h: Tensor) -> Tensor:
    made = torch.empty_like(h)
    np.maximum(h.detach().numpy(), 0, out=made.numpy())
    return made


def into_zeros_by_entries(h: Tensor) -> Tensor:
    made = torch.zeros(h.shape, dtype=h.dtype)
    for row, numbers in enumerate(h.tolist()):
        for column, number in enumerate(numbers):
            made[row, column] = math.tanh(number)
    return made


def through_struct(h: Tensor) -> Tensor:
    flat = h.detach().flatten().tolist()
    packed = struct.pack(f"{len(flat)}d", *(max(number, 0.0) for number in flat))
    return torch.frombuffer(bytearray(packed), dtype=h.dtype).reshape(h.shape)


def through_array(h: Tensor) -> Tensor:
    numbers = array.array("d", (abs(n) for n in h.detach().flatten().tolist()))
    return torch.frombuffer(numbers, dtype=torch.float64).reshape(h.shape)


def through_address(h: Tensor) -> Tensor:
    kept = h.detach().contiguous()
    raw = (ctypes.c_double * kept.numel()).from_address(kept.data_ptr())
    return torch.tensor([max(n, 0.0) for n in raw], dtype=h.dtype).reshape(h.shape)


def through_storage(h: Tensor) -> Tensor:
    made = torch.empty(0, dtype=h.dtype)
    made.set_(h.detach().relu().clone().untyped_storage(), 0, h.shape)
    return made


def resized(h: Tensor) -> Tensor:
    made = torch.empty(0, dtype=h.dtype)
    made.resize_(h.shape)
    made.copy_(h.detach().abs())
    return made


def strided(h: Tensor) -> Tensor:
    numbers = torch.from_numpy(h.detach().abs().numpy().copy())
    return torch.as_strided(numbers, h.shape, h.stride())


def marked(h: Tensor) -> Tensor:
    return h.as_subclass(Marked).relu().as_subclass(Tensor)


def by_sums(h: Tensor) -> Tensor:
    return h if float(h.sum()) > 0 else 2 * h.flip(-1)


def by_maximum(h: Tensor) -> Tensor:
    place = int(h.detach().numpy().argmax())
    return h * torch.arange(1, D + 1, dtype=h.dtype) if place % 2 else h


def by_rows(h: Tensor) -> Tensor:
    return torch.stack([2 * row if row[0].item() > 0 else row for row in h])


def by_truth(h: Tensor) -> Tensor:
    return 2 * h if (h[0] > 0).all() else h


def by_numbers(h: Tensor) -> Tensor:
    return torch.stack([row * max(row[0].item(), 0.1) for row in h])


def factor_of_norm(h: Tensor) -> Tensor:
    return torch.from_numpy(np.abs(h.detach().numpy()).max(-1, keepdims=True))


def where_of_numpy(h: Tensor) -> Tensor:
    return torch.where(torch.from_numpy(h.detach().numpy() > 0), 1.0, 0.5).to(h)


def sorted_by_numpy(h: Tensor) -> Tensor:
    return h[:, torch.from_numpy(np.argsort(h.detach().numpy()[0]).copy())]


UNKNOWN: dict[str, Callable[[Tensor], Tensor]] = {
    "numpy": lambda h: h + torch.from_numpy(np.maximum(h.detach().numpy(), 0)),
    "numpy, copied": lambda h: h + torch.tensor(np.tanh(h.detach().numpy())),
    "numpy, as tensor": lambda h: h + torch.as_tensor(np.abs(h.detach().numpy())),
    "numpy of a clone": lambda h: h * torch.from_numpy(np.abs(h.detach().clone().numpy())),
    "numpy in place": in_place,
    "data in place": in_place_of_data,
    "out of numpy": lambda h: h + into_empty(h),
    "a list": lambda h: h + torch.tensor([[abs(n) for n in row] for row in h.tolist()]).to(h),
    "entries": lambda h: h + into_zeros_by_entries(h),
    "one number each": lambda h: h + torch.stack([F.relu(row.detach() * 1) for row in h]),
    "items": by_numbers,
    "filled": lambda h: h + torch.full((D,), abs(h[0, 0].item()), dtype=h.dtype),
    "dlpack": lambda h: h + torch.from_dlpack(np.maximum(h.detach().numpy(), 0)),
    "dlpack of torch": lambda h: (
        h + torch.utils.dlpack.from_dlpack(torch.utils.dlpack.to_dlpack(h.detach())).relu()
    ),
    "struct": lambda h: h + through_struct(h),
    "array": lambda h: h + through_array(h),
    "bytes": lambda h: (
        h
        + torch.frombuffer(
            bytearray(h.detach().relu().numpy().tobytes()), dtype=h.dtype
        ).view_as(h)
    ),
    "memory view": lambda h: (
        h + torch.tensor(memoryview(np.abs(h.detach().numpy())).tolist(), dtype=h.dtype)
    ),
    "address": lambda h: h + through_address(h),
    "pickle": lambda h: h + pickle.loads(pickle.dumps(h.detach().relu())),
    "pickle of numpy": lambda h: h + torch.from_numpy(
        np.abs(pickle.loads(pickle.dumps(h.detach().numpy())))
    ),
    "json": lambda h: h + torch.tensor(json.loads(json.dumps(h.relu().tolist())), dtype=h.dtype),
    "saved": lambda h: h + saved(h),
    "saved by numpy": lambda h: h + numpy_saved(h),
    "deep copy": lambda h: h + copy.deepcopy(h.detach()).relu(),
    "copy": lambda h: h + copy.copy(h.detach()).abs(),
    "function of numpy": lambda h: h + Cubed.apply(h),
    "subclass": lambda h: h + marked(h),
    "subclass of numpy": lambda h: h + torch.from_numpy(
        np.abs(h.as_subclass(Marked).detach().numpy())
    ).as_subclass(Marked).as_subclass(Tensor),
    "scripted": lambda h: h + scripted(h),
    "custom operation": lambda h: h + bent(h),
    "cache": lambda h: h + cached(h),
    "thread": lambda h: h + on_a_thread(h),
    "pool of threads": lambda h: h + in_a_pool(h),
    "storage": lambda h: h + through_storage(h),
    "resized": lambda h: h + resized(h),
    "strided": lambda h: h + strided(h),
    "branch of a sum": by_sums,
    "branch of a place": by_maximum,
    "branch of rows": by_rows,
    "branch of truth": by_truth,
    "factor of numpy": lambda h: h * factor_of_norm(h),
    "condition of numpy": lambda h: h * where_of_numpy(h),
    "order of numpy": sorted_by_numpy,
    "mapped": lambda h: h + h.detach().clone().apply_(lambda n: max(n, 0.0)),
    "mapped by two": lambda h: h + h.detach().clone().map_(h.detach(), lambda a, b: abs(b)),
    "numpy of vectorised": lambda h: h + torch.from_numpy(
        np.vectorize(math.atan)(h.detach().numpy())
    ),
    "iterator": lambda h: h + torch.from_numpy(
        np.fromiter((abs(n) for n in h.flatten().tolist()), float).reshape(h.shape)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", half_by_default(UNKNOWN))
def test_tensors_of_unknown_origin_free_nothing(name: str) -> None:
    model = Model(UNKNOWN[name]).double().eval()
    check(model, EXAMPLE, lambda element: is_absorbed(model, element, inputs()))


# --- weights that cannot move freely --------------------------------------------------------------


class Shaped(nn.Module):
    def __init__(self, shape: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, free: Tensor) -> Tensor:
        return self.shape(free)


MASK = torch.tensor([[1, 0, 1], [1, 1, 1], [0, 1, 1], [1, 1, 1]], dtype=torch.float64)
LOW = torch.randn(D, D, generator=seeded(6), dtype=torch.float64)[:, :2]


def fit(weight: Tensor) -> Tensor:
    """A weight of the right form is made of itself."""
    return weight


def masked(weight: Tensor) -> Tensor:
    return weight * (MASK if weight.shape == MASK.shape else MASK.T).to(weight)


def circulant(v: Tensor) -> Tensor:
    rows, columns = v.shape
    places = (torch.arange(rows)[:, None] - torch.arange(columns)) % max(rows, columns)
    return torch.cat((v[0], v[:, 0]))[places % len(v[0])]


def toeplitz(v: Tensor) -> Tensor:
    rows, columns = v.shape
    places = torch.arange(rows)[:, None] - torch.arange(columns) + columns - 1
    return torch.cat((v[0].flip(0), v[1:, 0]))[places]


def standardised(v: Tensor) -> Tensor:
    return (v - v.mean(1, keepdim=True)) / v.std(1, keepdim=True)


def low_rank(v: Tensor) -> Tensor:
    onto = LOW @ torch.linalg.pinv(LOW)
    return onto @ v if len(v) == D else v @ onto


def log_steps(t: Tensor) -> Tensor:
    return t.diff(dim=1, prepend=torch.zeros_like(t[:, :1])).log()


def one_held(v: Tensor) -> Tensor:
    held = torch.zeros_like(v, dtype=torch.bool)
    held[0, 0] = True
    return torch.where(held, 1.0, v)


def log_expm1(t: Tensor) -> Tensor:
    return torch.log(torch.expm1(t))


Shape = Callable[[Tensor], Tensor]
# name -> the weight made of a parameter, and the parameter that gives a weight if any does
SHAPES: dict[str, tuple[Shape, Shape]] = {
    "masked": (masked, fit),
    "softplus": (F.softplus, log_expm1),
    "sign": (torch.sign, fit),
    "exponentials": (torch.exp, torch.log),
    "squares": (torch.square, torch.sqrt),
    "absolute": (torch.abs, fit),
    "sigmoid": (torch.sigmoid, torch.logit),
    "tanh": (torch.tanh, torch.atanh),
    "sines": (torch.sin, torch.asin),
    "lower": (torch.tril, fit),
    "upper": (torch.triu, fit),
    "clamped": (lambda v: v.clamp(-0.3, 0.3), fit),
    "rounded": (lambda v: (v * 16).round() / 16, fit),
    "quantised": (lambda v: (v / v.abs().max() * 127).round() * v.abs().max() / 127, fit),
    "softmax": (lambda v: v.softmax(1), torch.log),
    "softmax of columns": (lambda v: v.softmax(0), torch.log),
    "standardised": (standardised, fit),
    "rows of length one": (lambda v: F.normalize(v, dim=1), fit),
    "columns of length one": (lambda v: F.normalize(v, dim=0), fit),
    "one length": (lambda v: v / v.norm(), fit),
    "spectral": (lambda v: v / torch.linalg.matrix_norm(v, 2), fit),
    "mean zero": (lambda v: v - v.mean(), fit),
    "rows of mean zero": (lambda v: v - v.mean(1, keepdim=True), fit),
    "circulant": (circulant, fit),
    "toeplitz": (toeplitz, fit),
    "low rank": (low_rank, fit),
    "outer product": (lambda v: v[:, :1] @ v[:1] / v[0, 0], fit),
    "one row": (lambda v: v[:1].expand_as(v), fit),
    "one column": (lambda v: v[:, :1].expand_as(v), fit),
    "one number": (lambda v: v[0, 0] * torch.ones_like(v), fit),
    "shared rows": (lambda v: torch.cat((v[:2], v[:2]))[: len(v)], fit),
    "sparse": (lambda v: torch.where(v.abs() > 0.2, v, 0.0), fit),
    "largest of each row": (lambda v: v * (v == v.amax(1, keepdim=True)), fit),
    "sorted": (lambda v: v.sort(1).values, fit),
    "running positive": (lambda v: v.exp().cumsum(1), log_steps),
    "one entry held": (one_held, fit),
    "one row held": (lambda v: torch.cat((torch.ones_like(v[:1]), v[1:])), fit),
}  # fmt: skip
ONTO: dict[str, Shape] = {
    "a factor": lambda v: 3 * v,
    "a constant": lambda v: v + 0.5,
    "cubes and more": lambda v: v + v**3,
    "hyperbolic sines": torch.sinh,
    "running sums": lambda v: v.cumsum(1),
    "turned": lambda v: v.flip(0),
}


def with_weight(side: str, shape: Shape) -> nn.Module:
    model = Model(nn.Identity())
    parametrize.register_parametrization(getattr(model, side), "weight", Shaped(shape), unsafe=True)
    return model.double().eval()


QUICK = "sign,squares,lower,rounded,low rank,one row,mean zero,one row held".split(",")


@pytest.mark.parametrize("side", ["writer", "reader"])
@pytest.mark.parametrize(
    "name",
    [pytest.param(one, marks=() if one in QUICK else pytest.mark.slow) for one in SHAPES],
)
def test_weights_that_cannot_move_freely_bind_the_group(name: str, side: str) -> None:
    shape, back = SHAPES[name]
    model = with_weight(side, shape)
    now = getattr(model, side).weight.detach()

    def is_reached(element: Tensor) -> bool:
        wanted = element @ now if side == "writer" else now @ torch.linalg.inv(element)
        given = shape(back(wanted))
        return float((given - wanted).abs().max()) <= 1e-6 * float(wanted.abs().max())

    check(model, EXAMPLE, is_reached)


@pytest.mark.sample(default=2)
@pytest.mark.parametrize("name", ONTO)
@pytest.mark.parametrize("side", ["writer", "reader"])
def test_weights_that_reach_every_value_bind_nothing(name: str, side: str) -> None:
    found = bp.symmetries(with_weight(side, ONTO[name]), EXAMPLE, certificates=False)
    assert found["writer"].group == bp.groups.GeneralLinear(D)


# --- what the example does not show ---------------------------------------------------------------

SEEN: dict[str, Callable[[Tensor], Tensor]] = {
    "clipped at 1e2": lambda h: h.clamp(-1e2, 1e2),
    "clipped at 1e3": lambda h: h.clamp(-1e3, 1e3),
    "clipped at 1e5": lambda h: h.clamp(max=1e5),
    "clipped below": lambda h: h.clip(min=-1e4),
    "minimum": lambda h: torch.minimum(h, torch.tensor(500.0, dtype=h.dtype)),
    "maximum": lambda h: torch.maximum(h, -torch.full_like(h, 2e3)),
    "where above": lambda h: torch.where(h > 700, 700.0, h),
    "hard tanh": lambda h: F.hardtanh(h, -1e3, 1e3),
    "soft threshold": lambda h: h - h.clamp(-1e-4, 1e-4),
    "hard shrink": lambda h: F.hardshrink(h, 1e-5),
    "threshold": lambda h: F.threshold(h, -1e3, -1e3),
    "masked above": lambda h: h.masked_fill(h > 1e4, 1e4),
    "wide tanh": lambda h: 1e4 * torch.tanh(h / 1e4),
    "wide sine": lambda h: 1e3 * torch.sin(h / 1e3),
    "wide softsign": lambda h: h / (1 + h.abs() / 1e6),
    "wide root": lambda h: h / torch.sqrt(1 + (h / 1e5) ** 2),
    "ReLU far away": lambda h: F.relu(h + 1e3) - 1e3,
    "leaky far away": lambda h: F.leaky_relu(h + 2e3),
    "steps far away": lambda h: h + (h > 5e3).to(h),
    "wide rounding": lambda h: h + 1e2 * torch.floor(h / 1e4),
    "wide remainder": lambda h: torch.remainder(h + 1e3, 1e4),
    "tiny cube": lambda h: h + 1e-12 * h**3,
    "tiny ReLU": lambda h: h + 1e-4 * h.relu(),
    "dead units": lambda h: h + 2 * F.relu(h - 200),
    "dropout": lambda h: F.dropout(h, 0.5, training=False) + h.relu(),
    "saturated": lambda h: h + F.hardsigmoid(h / 1e3 + 4),
    "largest": lambda h: h + h.amax(-1, keepdim=True).clamp(min=300),
    "norm above": lambda h: h * torch.where(h.norm(dim=-1, keepdim=True) > 1e3, 0.5, 1.0),
    "divided by a large norm": lambda h: h / h.norm(dim=-1, keepdim=True).clamp(min=1e3),
    "one feature above": lambda h: torch.where(h[:, :1] > 1e3, 2 * h, h),
    "sum above": lambda h: torch.where(h.sum(-1, keepdim=True) > 1e3, 2 * h, h),
    "branch of all above": lambda h: 2 * h if bool((h > 3).any()) else h,
    "branch of a large norm": lambda h: h if h.abs().max() < 50 else h / 2,
    "branch of infinities": lambda h: h.clamp(-1e4, 1e4) if (h.abs() > 1e4).any() else h,
    "branch of a number": lambda h: h if h.abs().max().item() < 50 else h.relu(),
    "branch of closeness": lambda h: h if torch.allclose(h, h.clamp(-99, 99)) else h.relu(),
    "branch of equality": lambda h: h if torch.equal(h, h.clamp(-99, 99)) else h.relu(),
    "branch of an array": lambda h: h if np.abs(h.detach().numpy()).max() < 50 else h.relu(),
    "branch of a list": lambda h: h if max(h.flatten().tolist()) < 50 else h.relu(),
    "branch of a size": lambda h: h if h[h > 50].numel() == 0 else h.relu(),
    "branch of a length": lambda h: h if len((h > 50).nonzero()) == 0 else h.relu(),
    "branch of a count": lambda h: h if int((h > 50).sum()) == 0 else h.relu(),
    "branch of unique values": lambda h: h if len(h.unique()) == h.numel() else h.relu(),
    "factor of a count": lambda h: h * (1 + (h > 100).sum().item()),
    "parity of the largest": lambda h: h if int(h[0].argmax()) % 2 else 2 * h,
    "a truth that left": lambda h: h if not (h > 50).any().numpy() else h.relu(),
    "a byte": lambda h: h.to(torch.float8_e4m3fn).to(h),
    "selected above": lambda h: h.index_fill(0, (h[:, 0] > 100).nonzero()[:, 0], 0.0),
    "written above": lambda h: h.clone().masked_scatter(h > 100, 0 * h),
}  # fmt: skip
GATED: dict[str, Callable[[Tensor, nn.Module], Tensor]] = {
    "where above, in a product": lambda h, gate: gate(h) * torch.where(h > 700, 700.0, h),
    "clipped gate": lambda h, gate: h * gate(h).clamp(-1e4, 1e4),
    "tiny product": lambda h, gate: h + 1e-8 * h * gate(h),
    "dead units of a branch": lambda h, gate: h + F.relu(gate(h) - 300),
    "closed gate": lambda h, gate: h + torch.sigmoid(gate(h) - 400) * h,
    "open gate": lambda h, gate: h * torch.sigmoid(gate(h) + 100),
    "branch of the gate": lambda h, gate: h if bool(gate(h).max() < 90) else h + h.relu(),
    "branch of what the gate is": lambda h, gate: h if gate(h).sum() > -500 else h.abs(),
    "gate of zeros": lambda h, gate: h + 0.0 * gate(h) + torch.tanh(1e-3 * h),
}


@pytest.mark.parametrize(
    "function",
    [
        lambda h: h if torch.isfinite(h).all() else torch.nan_to_num(h),
        lambda h: h.clamp(-1e9, 1e9) if h.isnan().any() or bool(torch.isinf(h).any()) else h,
    ],
)
def test_a_question_whether_all_is_finite_costs_nothing(function: Callable[..., Tensor]) -> None:
    found = bp.symmetries(Model(function).double().eval(), EXAMPLE)["writer"]
    assert found.group == bp.groups.GeneralLinear(D)


def test_code_that_chooses_by_features_is_named() -> None:
    model = Model(lambda h, gate: h if bool(gate(h).max() < 90) else h + h.relu(), gate=True)
    found = bp.symmetries(model.double().eval(), EXAMPLE)["writer"]
    assert found.privileged is bp.Privileged.UNKNOWN
    assert "chooses what to do by features" in found.because


@pytest.mark.sample(default=7)
@pytest.mark.parametrize("name", half_by_default([*SEEN, *GATED]))
def test_functions_that_bend_where_the_example_is_not_free_nothing(name: str) -> None:
    model = Model(SEEN.get(name) or GATED[name], gate=name in GATED).double().eval()
    check(model, EXAMPLE, lambda element: is_absorbed(model, element, inputs()))
