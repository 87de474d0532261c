"""Products with windows on a vector are those with the same numbers written out."""

from __future__ import annotations

import resource
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import basis_probe as bp
from basis_probe.model import sweep, windows
from basis_probe.model.windows import drawn_window, is_large_window, times, window_products

SHAPES = ((512, 512), (300, 1000), (1000, 300), (3, 2**17), (2**17, 3), (1021, 769))
"""[height, width], each of so many numbers that its products are correlations."""


def _window(shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> Tensor:
    return drawn_window(torch.Size(shape), dtype, torch.Generator().manual_seed(0))


def _rows(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("transposed", (False, True))
@pytest.mark.parametrize("outer", ((), (5,), (2, 3), (0,)), ids=str)
def test_products_are_those_of_the_same_numbers(
    shape: tuple[int, int], transposed: bool, outer: tuple[int, ...]
) -> None:
    window = _window(shape)
    assert is_large_window(window)
    whole = window.clone(memory_format=torch.contiguous_format).double()
    rows = _rows(*outer, shape[1] if transposed else shape[0])
    right = rows @ (whole.T if transposed else whole)
    found = times(rows, window, transposed=transposed)
    assert found.shape == right.shape and found.dtype is rows.dtype
    assert torch.allclose(
        found, right, rtol=0, atol=1e-12 * float(right.abs().amax()) if right.numel() else 0
    )


CALLS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "linear": lambda x, w, b: nn.functional.linear(x, w),
    "linear with a bias": lambda x, w, b: nn.functional.linear(x, w, b),
    "linear with names": lambda x, w, b: nn.functional.linear(input=x, weight=w, bias=b),
    "linear with a name": lambda x, w, b: nn.functional.linear(x, w, bias=None),
    "matmul": lambda x, w, b: torch.matmul(x, w.T),
    "the operator": lambda x, w, b: x @ w.T,
    "the operator, not turned": lambda x, w, b: b[: len(w)] @ w,
    "mm": lambda x, w, b: torch.mm(x, w.T),
    "its method": lambda x, w, b: x.mm(w.transpose(0, 1)),
    "addmm": lambda x, w, b: torch.addmm(b, x, w.T),
    "its method, with a bias": lambda x, w, b: b.addmm(x, w.T),
    "addmm with factors": lambda x, w, b: torch.addmm(b, x, w.T, beta=0.5, alpha=2.0),
    "matmul with a name": lambda x, w, b: torch.matmul(x, other=w.T),
    "a product from the left": lambda x, w, b: (w @ x.T).T,
    "rows of the window": lambda x, w, b: nn.functional.embedding(torch.tensor([3, 0]), w),
    "another product": lambda x, w, b: x @ x.T,
    "numbers of it": lambda x, w, b: w.sum(1) * 2,
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16), ids=str)
def test_calls_return_what_they_do_with_the_same_numbers(name: str, dtype: torch.dtype) -> None:
    window, x, b = _window((600, 500), dtype), _rows(7, 500, dtype=dtype), _rows(600, dtype=dtype)
    whole = window.clone(memory_format=torch.contiguous_format)
    right = CALLS[name](x.double(), whole.double(), b.double())
    with torch.no_grad(), window_products():
        found = CALLS[name](x, window, b)
    # A product of large windows is rounded once, and any other as torch rounds it.
    bound = float(right.abs().amax()) * max(8 * torch.finfo(dtype).eps, 1e-13)
    assert found.dtype is dtype and found.shape == right.shape
    assert float((found.double() - right).abs().amax()) <= bound


@pytest.mark.parametrize("transposed", (False, True))
def test_rows_in_the_middle_of_a_window_are_a_window(transposed: bool) -> None:
    part = _window((900, 700))[150:]
    assert is_large_window(part)
    whole = part.clone(memory_format=torch.contiguous_format).double()
    rows = _rows(3, 700 if transposed else 750)
    right = rows @ (whole.T if transposed else whole)
    assert torch.allclose(times(rows, part, transposed=transposed), right, rtol=0, atol=1e-12)


def _energy(x: Tensor, w: Tensor) -> Tensor:
    return nn.functional.linear(x, w).sin().sum()


def _by_autograd(x: Tensor, w: Tensor, *, by: int) -> Tensor:
    with torch.enable_grad():
        given = [x.detach().clone(), w.detach()]
        given[by] = given[by].requires_grad_()
        return torch.autograd.grad(_energy(*given), given[by])[0]


DERIVATIVES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "by rows": lambda x, w: _by_autograd(x, w, by=0),
    "by the matrix": lambda x, w: _by_autograd(x, w, by=1),
    "by rows, as a function": lambda x, w: torch.func.grad(_energy)(x, w),
    "by the matrix, as a function": lambda x, w: torch.func.grad(_energy, argnums=1)(x, w),
    "by rows of the other product": lambda x, w: torch.func.grad(lambda y: (y @ w.T @ w).sum())(x),
    "of every row": lambda x, w: torch.func.vmap(torch.func.grad(_energy), (0, None))(x, w),
    "of every row at once": lambda x, w: torch.func.grad(
        lambda y: torch.func.vmap(_energy, (0, None))(y, w).sum()
    )(x),
    "along rows": lambda x, w: torch.func.jvp(lambda y: (y @ w.T).sin(), (x,), (x.cos(),))[1],
    "along the matrix": lambda x, w: torch.func.jvp(
        lambda v: (x @ v.T).sin(), (w,), (w.detach().cos(),)
    )[1],
}
"""What a model that differentiates while it runs does: it has an energy, or learns as it reads."""


@pytest.mark.parametrize("name", DERIVATIVES)
@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # torch's own
def test_derivatives_are_those_with_the_same_numbers(name: str) -> None:
    window, x = _window((600, 500), torch.float64), _rows(3, 500)
    right = DERIVATIVES[name](x, window.clone(memory_format=torch.contiguous_format))
    with torch.no_grad(), window_products():
        found = DERIVATIVES[name](x, window)
    assert found.shape == right.shape
    assert torch.allclose(found, right, rtol=0, atol=1e-10 * float(right.abs().amax()))


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "coordinates": Tensor.to_sparse,
    "compressed rows": Tensor.to_sparse_csr,
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.filterwarnings("ignore:Sparse")
def test_rows_that_are_mostly_zero_may_be_held_as_such(name: str) -> None:
    window, x = _window((500, 600)), _rows(7, 500, dtype=torch.float32).relu()
    with torch.no_grad(), window_products():
        found = LAYOUTS[name](x) @ window
    assert torch.allclose(found, x @ window, rtol=0, atol=1e-5)


def test_products_are_of_the_type_that_torch_makes_them_of() -> None:
    window, x, b = _window((600, 500)), _rows(7, 500, dtype=torch.float32), torch.randn(600)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for name in ("linear with a bias", "matmul", "the operator", "addmm"):
            right = CALLS[name](x, window, b)
            with window_products():
                assert CALLS[name](x, window, b).dtype is right.dtype is torch.bfloat16, name


@pytest.mark.parametrize(
    "call",
    (
        lambda x, w: nn.functional.linear(x.double(), w),
        lambda x, w: x.double() @ w.T,
        lambda x, w: torch.mm(x[None], w.T),
        lambda x, w: torch.addmm(torch.zeros(600), x[0], w.T),
    ),
    ids=("two types", "two types, by the operator", "a stack", "a vector"),
)
def test_what_torch_refuses_is_refused(call: Callable[[Tensor, Tensor], Tensor]) -> None:
    window, x = _window((600, 500)), _rows(7, 500, dtype=torch.float32)
    with pytest.raises(RuntimeError):
        call(x, window.contiguous())
    with window_products(), pytest.raises(RuntimeError):
        call(x, window)


def test_a_wrong_size_is_refused_in_the_words_of_torch() -> None:
    window = _window((600, 500))
    with window_products(), pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        nn.functional.linear(torch.randn(2, 400), window)


def _config() -> object:
    from transformers import LlamaConfig

    return LlamaConfig(
        hidden_size=512,
        intermediate_size=1024,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=700,
    )


@pytest.mark.slow
def test_claims_and_proofs_do_not_depend_on_how_products_are_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = bp.symmetries(_config())
    for module in (sweep, windows):
        monkeypatch.setattr(module, "is_large_window", lambda _: False)
    right = bp.symmetries(_config())
    assert {name: one.group for name, one in found.items()} == {
        name: one.group for name, one in right.items()
    }
    for name, one in found.items():
        both = one.certificate, right[name].certificate
        assert None not in both and both[0].holds and both[1].holds, name


@pytest.mark.slow
def test_a_model_of_seventy_billion_weights_is_proved_from_its_configuration() -> None:
    """Two of its eighty layers, at their full width, in the memory of a small model."""
    from transformers import LlamaConfig

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = bp.symmetries(
        LlamaConfig(
            hidden_size=8192,
            intermediate_size=28672,
            num_hidden_layers=2,
            num_attention_heads=64,
            num_key_value_heads=8,
            vocab_size=128256,
        )
    )
    assert len(found) == 59
    assert all(one.certificate is not None and one.certificate.holds for one in found.values())
    # The table of tokens alone would take 4 GB.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20
