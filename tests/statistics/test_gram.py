"""Inner products of rows with each other."""

import pytest
import torch

from basis_probe.statistics.gram import gram


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(0, 3), (1, 5), (128, 7), (129, 300), (515, 64), (700, 1)])
@pytest.mark.parametrize("turned", [False, True])
def test_it_is_the_product_of_the_rows_with_themselves(
    shape: tuple[int, int], dtype: torch.dtype, *, turned: bool
) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)
    rows = x.T.contiguous().T if turned else x
    before = rows.clone()
    found = gram(rows)
    assert found.dtype is dtype and torch.equal(rows, before)
    wanted, near = x.double() @ x.double().T, 1e-4 if dtype is torch.float32 else 1e-12
    torch.testing.assert_close(found.double(), wanted, rtol=near, atol=near)
    torch.testing.assert_close(found, found.T.contiguous(), rtol=near, atol=near)


def test_rows_stand_where_they_stood() -> None:
    """No product is written to another's place: every entry knows its two rows."""
    place = torch.arange(1, 401, dtype=torch.float64)
    assert torch.equal(gram(place[:, None]), torch.outer(place, place))
