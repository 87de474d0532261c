"""Products with windows on a vector are those with the same numbers written out."""

from __future__ import annotations

import itertools
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


def _window(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
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
    found = times(rows, window.T if transposed else window)
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


def _ends(count: int) -> Tensor:
    """Where the rows of three matrices end; the second has none, and the last row none of them."""
    return torch.tensor([3, 3, count - 1], dtype=torch.int32)


STACKED: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "bmm": lambda x, w, b: torch.bmm(x, w.mT),
    "its method": lambda x, w, b: x.bmm(w.transpose(1, 2)),
    "bmm, not turned": lambda x, w, b: torch.bmm(b[:, :, : w.shape[1]], w),
    "matmul": lambda x, w, b: torch.matmul(x, w.mT),
    "the operator": lambda x, w, b: x @ w.mT,
    "baddbmm": lambda x, w, b: torch.baddbmm(b[:, :1], x, w.mT),
    "a product from the left": lambda x, w, b: w @ x.mT,
    "one matrix": lambda x, w, b: nn.functional.linear(x, w[1]),
    "each in turn": lambda x, w, b: torch.stack(
        [nn.functional.linear(*both) for both in zip(x, w, strict=True)]
    ),
    "einsum": lambda x, w, b: torch.einsum("eri,eoi->ero", x, w),
    "groups": lambda x, w, b: nn.functional.grouped_mm(x[0], w.mT, offs=_ends(7))[:-1],
    "groups, not turned": lambda x, w, b: nn.functional.grouped_mm(
        b[0, :, : w.shape[1]], w, offs=_ends(7)
    )[:-1],
    "groups without a name": lambda x, w, b: torch._grouped_mm(x[0], w.mT, _ends(7))[:-1],
    "sums of it": lambda x, w, b: w.sum(-1) * 2,
}


@pytest.mark.parametrize("name", STACKED)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_products_with_a_stack_of_windows_are_those_with_the_same_numbers(
    name: str, dtype: torch.dtype
) -> None:
    stack = drawn_window(torch.Size((3, 600, 504)), dtype, torch.Generator().manual_seed(0))
    assert is_large_window(stack) and stack.untyped_storage().nbytes() < 2**13 * dtype.itemsize
    x, b = _rows(3, 7, 504, dtype=dtype), _rows(3, 7, 600, dtype=dtype)
    whole = stack.clone(memory_format=torch.contiguous_format)
    with torch.no_grad():
        right = STACKED[name](x, whole, b)
        with window_products():
            found = STACKED[name](x, stack, b)
    # Both are rounded.
    bound = float(right.double().abs().amax()) * 32 * torch.finfo(dtype).eps
    assert found.dtype is dtype and found.shape == right.shape
    assert float((found.double() - right.double()).abs().amax()) <= bound


def test_matrices_of_a_stack_differ_and_have_full_rank() -> None:
    for shape in ((3, 600, 504), (5, 20, 30), (4, 700, 3), (6, 3, 40)):
        stack = _window(shape)
        for matrix in stack:
            assert int(torch.linalg.matrix_rank(matrix.double())) == min(shape[1:])
        for one, other in itertools.combinations(stack, 2):
            assert not torch.equal(one, other)
        assert float(stack.double().std()) == pytest.approx(shape[-1] ** -0.5, rel=0.15)


@pytest.mark.parametrize("transposed", (False, True))
def test_rows_in_the_middle_of_a_window_are_a_window(transposed: bool) -> None:
    part = _window((900, 700))[150:]
    assert is_large_window(part)
    whole = part.clone(memory_format=torch.contiguous_format).double()
    rows = _rows(3, 700 if transposed else 750)
    right = rows @ (whole.T if transposed else whole)
    assert torch.allclose(times(rows, part.T if transposed else part), right, rtol=0, atol=1e-12)


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


def _configs() -> dict[str, object]:
    import transformers

    sizes = {"num_hidden_layers": 2, "num_attention_heads": 8, "vocab_size": 700}
    experts = {"num_key_value_heads": 4, "num_local_experts": 3, "num_experts_per_tok": 2}
    return {
        "Llama": transformers.LlamaConfig(
            hidden_size=512, intermediate_size=1024, num_key_value_heads=4, **sizes
        ),
        "Falcon": transformers.FalconConfig(
            hidden_size=512, num_kv_heads=4, new_decoder_architecture=True, **sizes
        ),
        "Mixtral": transformers.MixtralConfig(
            hidden_size=512, intermediate_size=640, **experts, **sizes
        ),
        "GPT-OSS": transformers.GptOssConfig(
            hidden_size=512, intermediate_size=640, head_dim=64, **experts, **sizes
        ),
    }


def _written(value: object) -> object:
    return value.contiguous() if isinstance(value, Tensor) and value.ndim == 3 else value


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Llama", "Falcon", "Mixtral", "GPT-OSS"])
def test_claims_and_proofs_do_not_depend_on_how_products_are_made(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = bp.symmetries(_configs()[name])
    for module in (sweep, windows):
        monkeypatch.setattr(module, "is_large_window", lambda _: False)
    if name in ("Mixtral", "GPT-OSS"):
        # torch's own products of groups read no windows.
        monkeypatch.setattr(windows, "_written", _written)
    right = bp.symmetries(_configs()[name])
    assert {name: one.group for name, one in found.items()} == {
        name: one.group for name, one in right.items()
    }
    for site, one in found.items():
        both = one.certificate, right[site].certificate
        assert (both[0] is None) == (both[1] is None), site
        if both[0] is not None and both[1] is not None:
            assert both[0].holds and both[1].holds, site
            assert both[0].violation == pytest.approx(both[1].violation, rel=1e-3), site


SHAPES_OF_BILLIONS: dict[str, tuple[str, dict[str, object], int]] = {
    "Llama 3 70B": (
        "LlamaConfig",
        {
            "hidden_size": 8192,
            "intermediate_size": 28672,
            "num_hidden_layers": 2,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "vocab_size": 128256,
        },
        59,
    ),
    "Falcon 180B": (
        "FalconConfig",
        {
            "hidden_size": 14848,
            "num_hidden_layers": 1,
            "num_attention_heads": 232,
            "num_kv_heads": 8,
            "new_decoder_architecture": True,
        },
        29,
    ),
    "Mixtral 8x7B": ("MixtralConfig", {"num_hidden_layers": 1}, 39),
}
"""Name -> the class, some layers at their full width, and how many claims are proved."""


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES_OF_BILLIONS)
def test_a_model_of_billions_of_weights_is_proved_from_its_configuration(name: str) -> None:
    """In the memory of a small model."""
    import transformers

    kind, sizes, claims = SHAPES_OF_BILLIONS[name]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = bp.symmetries(getattr(transformers, kind)(**sizes))
    proofs = [one.certificate for one in found.values() if one.certificate is not None]
    assert len(proofs) == claims and all(proof.holds for proof in proofs)
    # One table of tokens, or all experts of one layer, would take 4 GB.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20
