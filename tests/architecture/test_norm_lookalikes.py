"""What looks like a norm, and what stands in place of rows, is claimed for what it is."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import basis_probe as bp
from basis_probe import groups as G
from tests.draws import seeded

D = 8


class Between(nn.Module):
    """Something between two linear maps."""

    def __init__(self, between: Callable[[Tensor], Tensor], dim: int = D, reads: int = 0) -> None:
        super().__init__()
        self.a, self.site = nn.Linear(14, dim), nn.Identity()
        self.b, self.between = nn.Linear(reads or dim, 12), between
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=seeded(parameter.numel()))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.site(self.between(self.a(x))))


def claimed(model: nn.Module, *shape: int) -> dict[str, bp.Symmetry]:
    x = torch.randn(*shape, 14, generator=seeded(1), dtype=torch.float64)
    found = bp.symmetries(model.double(), x)
    return {name: found[name] for name in ("a", "site")}


BENT: dict[str, tuple[Callable[[Tensor], Tensor], type[G.Group]]] = {
    "nothing": (lambda h: h, G.Orthogonal),
    "tanh": (torch.tanh, G.SignedPermutation),
    "softsign": (F.softsign, G.SignedPermutation),
    "gelu": (F.gelu, G.Permutation),
    "relu": (torch.relu, G.Permutation),
    "two halves": (
        lambda h: torch.cat([torch.tanh(h[:, : D // 2]), h[:, D // 2 :].sin()], 1),
        G.DirectSum,
    ),
}
UNGAINED: dict[str, Callable[[Tensor], Tensor]] = {
    "rms_norm": lambda h: F.rms_norm(h, (D,)),
    "normalize": lambda h: F.normalize(h, dim=-1),
    "by hand": lambda h: h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 1e-6),
    "by its length": lambda h: h / h.norm(dim=-1, keepdim=True).clamp(min=1e-8),
    "twice": lambda h: F.rms_norm(F.normalize(h, dim=-1), (D,)),
    "a number as gain": lambda h: 0.3 * F.normalize(h, dim=-1),
}


@pytest.mark.parametrize("norm", UNGAINED)
@pytest.mark.parametrize("bent", BENT)
def test_a_norm_without_a_gain_writes_what_the_stream_before_it_is(bent: str, norm: str) -> None:
    """No weight makes a row longer there, so that no claim may rescale single axes."""
    function, expected = BENT[bent]
    model = Between(lambda h: UNGAINED[norm](function(h)))
    found = claimed(model, 40)["site"]
    assert isinstance(found.group, expected)
    if isinstance(found.group, G.DirectSum):
        assert all(isinstance(part, G.SignedPermutation) for part in found.group.parts)
    assert not found.group.rescales
    assert found.certificate is not None and found.certificate.holds


LOOKALIKES: dict[str, Callable[[Tensor], Tensor]] = {
    "a clip behind rms": lambda h: F.rms_norm(h, (24,)).clamp(-4, 4),
    "a clip of one side": lambda h: F.rms_norm(h, (24,)).clamp(max=4),
    "a clip behind layer": lambda h: F.layer_norm(h, (24,)).clamp(-4, 4),
    "a clip behind a length": lambda h: F.hardtanh(F.normalize(h, dim=-1), -0.9, 0.9),
    "a mask of large rows": lambda h: F.rms_norm(h, (24,)) * (h.abs().amax(-1, keepdim=True) < 100),
    "a clip of one axis": lambda h: torch.minimum(
        F.rms_norm(h, (24,)), torch.full((24,), 9.0).index_fill(0, torch.tensor([17]), 4.0).to(h)
    ),
    "entropy": lambda h: -(h.softmax(-1) * h.log_softmax(-1)),
    "the largest entry": lambda h: h / h.abs().amax(-1, keepdim=True),
    "the sum of sizes": lambda h: h / h.abs().sum(-1, keepdim=True),
    "a fourth power": lambda h: h / h.pow(4).mean(-1, keepdim=True).pow(0.25),
    "a threshold of the mean": lambda h: (
        F.rms_norm(h, (24,)) - F.relu(F.rms_norm(h, (24,)).mean(-1, keepdim=True) - 0.8)
    ),
    "a gate of the mean": lambda h: (
        F.rms_norm(h, (24,))
        * (1 + F.hardsigmoid(8 * F.rms_norm(h, (24,)).mean(-1, keepdim=True) - 9))
    ),
    "all negative": lambda h: (
        F.rms_norm(h, (24,)) + 0.5 * F.relu(-F.rms_norm(h, (24,)).amax(-1, keepdim=True))
    ),
    "the larger of two lengths": lambda h: (
        h
        / torch.maximum(h.norm(dim=-1, keepdim=True), 1.1 * h.abs().sum(-1, keepdim=True) / 24**0.5)
    ),
    "a length or a sum": lambda h: (
        h
        / torch.maximum(h.norm(dim=-1, keepdim=True), 1.3 * h.sum(-1, keepdim=True).abs() / 24**0.5)
    ),
    "an alternating sum": lambda h: (
        h
        / torch.maximum(
            h.norm(dim=-1, keepdim=True),
            1.3
            * (h[:, ::2].sum(-1, keepdim=True) - h[:, 1::2].sum(-1, keepdim=True)).abs()
            / 24**0.5,
        )
    ),
    "a small dead zone": lambda h: F.hardshrink(F.rms_norm(h, (24,)), 1e-3),
}
OF_LENGTH: dict[str, tuple[Callable[[Tensor], Tensor], type[G.Group]]] = {
    "a large epsilon": (lambda h: F.rms_norm(h, (24,), eps=1.0), G.Orthogonal),
    "an epsilon outside the root": (
        lambda h: h / (h.square().mean(-1, keepdim=True).sqrt() + 0.1),
        G.Orthogonal,
    ),
    "one outside the deviation": (
        lambda h: (h - h.mean(-1, keepdim=True)) / (h.std(-1, keepdim=True) + 1),
        G.LineStabiliser,
    ),
    "a large epsilon in layer": (lambda h: F.layer_norm(h, (24,), eps=1.0), G.LineStabiliser),
    "a squash": (
        lambda h: h * h.norm(dim=-1, keepdim=True) / (1 + h.square().sum(-1, keepdim=True)),
        G.Orthogonal,
    ),
}


@pytest.mark.parametrize("name", [*LOOKALIKES, *OF_LENGTH])
def test_a_norm_is_what_asks_for_the_length_of_a_row_alone(name: str) -> None:
    """Rotations are claimed of nothing else, and of all of that."""
    if name in OF_LENGTH:
        function, expected = OF_LENGTH[name]
        found = claimed(Between(function, 24), 40)["a"]
        assert isinstance(found.group, expected)
        assert found.certificate is not None and found.certificate.holds
        return
    found = claimed(Between(LOOKALIKES[name], 24), 40)["a"]
    turning = (G.Orthogonal, G.LineStabiliser, G.GeneralLinear, G.LineRotations)
    assert not isinstance(found.group, turning)
    assert isinstance(found.group, G.Unknown) or found.certificate.holds  # pyright: ignore


ROWS: dict[str, Callable[[Tensor], Tensor]] = {
    "ones like": lambda h: torch.cat([torch.ones_like(h[:, :1]), h], 1),
    "new ones": lambda h: torch.cat([h.new_ones(len(h), 1, D), h], 1),
    "ones": lambda h: torch.cat([torch.ones(len(h), 1, D).to(h), h], 1),
    "a full row behind": lambda h: torch.cat([h, torch.full((len(h), 1, D), 0.3).to(h)], 1),
    "padding": lambda h: F.pad(h, (0, 0, 1, 0), value=1.0),
    "padding behind": lambda h: F.pad(h, (0, 0, 0, 2), value=-0.5),
    "padding by a module": lambda h: nn.ConstantPad1d(1, 0.5)(h.mT).mT,
}


@pytest.mark.parametrize("bent", [False, True])
@pytest.mark.parametrize("name", ROWS)
def test_rows_of_numbers_other_than_zero_do_not_move(name: str, bent: bool) -> None:
    """The maps that read a stream read these, too, and would write another thing of them."""
    found = claimed(Between(lambda h: ROWS[name](h.relu() if bent else h)), 4, 7)["a"]
    assert isinstance(found.group, G.Unknown) and not found.unproved
    assert found.certificate is None


@pytest.mark.parametrize("bent", [False, True])
def test_rows_of_zeros_stay_whatever_acts(bent: bool) -> None:
    for pad in (
        lambda h: F.pad(h, (0, 0, 1, 0)),
        lambda h: torch.cat([torch.zeros_like(h[:, :1]), h], 1),
    ):
        found = claimed(Between(lambda h, pad=pad: pad(h.relu() if bent else h)), 4, 7)["a"]
        assert isinstance(found.group, G.PositiveMonomial if bent else G.GeneralLinear)
        assert found.certificate is not None and found.certificate.holds


def test_parts_that_leave_features_out_are_no_group_of_all() -> None:
    model = Between(lambda h: torch.cat([h[..., :2].relu(), h[..., 2:4].tanh()], -1), reads=4)
    assert claimed(model, 40)["a"].group.dim == D


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.e, self.l = nn.Embedding(17, D), nn.Linear(D, D)
        self.h = nn.Linear(D, 17, bias=False)
        self.h.weight = self.e.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.h(F.gelu(self.l(self.e(ids))))


def test_it_is_said_where_a_table_counts_as_untied() -> None:
    found = bp.symmetries(Tied().eval(), torch.randint(17, (3, 5), generator=seeded(0)))
    assert "untied" in found["e"].because
    untied = Tied().eval()
    untied.h.weight = nn.Parameter(untied.h.weight.detach().clone())
    found = bp.symmetries(untied, torch.randint(17, (3, 5), generator=seeded(0)))
    assert "untied" not in found["e"].because


def rms(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


class Mixed(nn.Module):
    """A function that mixes features, with a gain and a bias for every feature inside."""

    def __init__(self, function: Callable[["Mixed", Tensor], Tensor]) -> None:
        super().__init__()
        self.g, self.p = nn.Parameter(torch.ones(D)), nn.Parameter(torch.zeros(D))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


MIXING: dict[str, tuple[Callable[[Mixed, Tensor], Tensor], type[G.Group]]] = {
    "a sum with a norm": (lambda s, x: x + F.layer_norm(x, (D,), s.g, s.p), G.Permutation),
    "relu of a gained norm": (lambda s, x: F.relu(rms(x) * s.g), G.Permutation),
    "a softmax with a gain": (lambda s, x: x.softmax(-1) * s.g, G.Permutation),
    "a bias before a softmax": (lambda s, x: (x * s.g).tanh().softmax(-1) * x, G.Permutation),
    "two norms": (lambda s, x: rms(rms(x) * s.g), G.SignedPermutation),
    "a sum of sizes": (
        lambda s, x: x / x.abs().sum(-1, keepdim=True) * s.g, G.SignedPermutation,
    ),
    "a fourth power": (
        lambda s, x: s.g * x / x.pow(4).mean(-1, keepdim=True).pow(0.25), G.SignedPermutation,
    ),
    "a clip behind a norm": (lambda s, x: (rms(x) * s.g).clamp(-0.5, 0.5), G.SignedPermutation),
    "tanh of a norm": (lambda s, x: torch.tanh(rms(x)) * s.g, G.SignedPermutation),
    "shares of squares": (
        lambda s, x: x.square() / x.square().sum(-1, keepdim=True) * s.g, G.SignedPermutation,
    ),
}  # fmt: skip


@pytest.mark.parametrize("inline", [False, True])
@pytest.mark.parametrize("name", MIXING)
def test_weights_inside_what_mixes_features_change_places_with_them(
    name: str, inline: bool
) -> None:
    function, expected = MIXING[name]
    mixed = Mixed(function)
    mixed.g.data = torch.randn(D, generator=seeded(3)) + 2
    mixed.p.data = torch.randn(D, generator=seeded(4))
    model = Between((lambda h: function(mixed, h)) if inline else mixed)
    model.mixed = mixed
    found = claimed(model, 40)["a"]
    assert isinstance(found.group, expected), found.because
    assert found.certificate is not None and found.certificate.holds


@pytest.mark.parametrize("name", MIXING)
def test_numbers_inside_that_are_no_weights_hold_the_axes(name: str) -> None:
    function, _ = MIXING[name]
    mixed = Mixed(function)
    for key in ("g", "p"):
        delattr(mixed, key)
        mixed.register_buffer(key, torch.randn(D, generator=seeded(ord(key))) + 2)
    found = claimed(Between(mixed), 40)["a"]
    assert isinstance(found.group, G.Unknown)
