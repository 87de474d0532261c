"""Zeros in place of whole rows leave the axes of the others alone, however they are written."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import basis_probe as bp
from basis_probe import groups as G
from tests.draws import seeded

D, T = 8, 7
Masks = Callable[[nn.Module, Tensor, Tensor], Tensor]


class Masked(nn.Module):
    def __init__(self, masks: Masks, *, bent: bool) -> None:
        super().__init__()
        self.a, self.b, self.masks, self.bent = nn.Linear(14, D), nn.Linear(D, 12), masks, bent
        self.register_buffer("m", torch.rand(1, T, 1, generator=seeded(0)) > 0.5)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        h = self.a(x)
        return self.b(self.masks(self, h.relu() if self.bent else h, mask))


ROWS: dict[str, Masks] = {
    "a buffer": lambda s, h, k: h.masked_fill(s.m, 0.0),
    "the example's mask": lambda s, h, k: h.masked_fill(~k[..., None], 0),
    "where": lambda s, h, k: torch.where(k[..., None], h, 0.0),
    "where, zeros first": lambda s, h, k: torch.where(k[..., None], torch.zeros_like(h), h),
    "by name": lambda s, h, k: torch.masked_fill(input=h, mask=~k[..., None], value=0.0),
    "places in the batch": lambda s, h, k: h.masked_fill(
        (torch.arange(len(h)) % 3 == 0)[:, None, None], 0.0
    ),
    "and then a mean": lambda s, h, k: (
        h.masked_fill(~k[..., None], 0.0).sum(1) / k.sum(1, keepdim=True)
    ),
    "a product": lambda s, h, k: h * k[..., None],
}
OTHERS: dict[str, Masks] = {
    "ones": lambda s, h, k: h.masked_fill(~k[..., None], 1.0),
    "a large number": lambda s, h, k: torch.where(k[..., None], h, -1e4),
    "rows that are long": lambda s, h, k: h.masked_fill((h.norm(dim=-1) > 3)[..., None], 0.0),
    "rows with a large feature": lambda s, h, k: torch.where((h.amax(-1) > 1.0)[..., None], h, 0.0),
    "one feature": lambda s, h, k: h.masked_fill(torch.arange(D) == 3, 0.0),
}


@pytest.mark.parametrize("bent", [False, True])
@pytest.mark.parametrize("name", [*ROWS, *OTHERS])
def test_only_zeros_in_place_of_rows_leave_the_group_as_it_is(name: str, bent: bool) -> None:
    model = Masked((ROWS | OTHERS)[name], bent=bent).double()
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=seeded(parameter.numel())).double()
    x = torch.randn(4, T, 14, generator=seeded(1), dtype=torch.float64)
    mask = torch.rand(4, T, generator=seeded(2)) > 0.4
    found = bp.symmetries(model, {"x": x, "mask": mask})["a"]
    full = G.PositiveMonomial if bent else G.GeneralLinear
    if name in ROWS:
        assert isinstance(found.group, full), found.because
        assert found.certificate is not None and found.certificate.holds
    else:
        # What is not true must not be derived, not only fail its proof.
        derived = bp.symmetries(model, {"x": x, "mask": mask}, certificates=False)["a"]
        assert not isinstance(derived.group, full) or (name == "one feature" and bent)
        assert isinstance(found.group, G.Unknown) or found.certificate.holds  # pyright: ignore
