"""Recurrent layers and cells: what passes their gates passes all steps alike."""

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import basis_probe as bp
from basis_probe import groups as G
from basis_probe.model.recurrent import LONGEST, recurrent_steps
from tests.draws import seeded

IN, STATE, KINDS = 5, 6, ("RNN", "LSTM", "GRU")


class Layers(nn.Module):
    """A recurrent layer between linear maps.

    Args:
        kind: its class.
        last: True to read the state after the last step, False to read all.
        options: of the layer.
    """

    def __init__(self, kind: str, *, last: bool = False, **options: object) -> None:
        super().__init__()
        self.e = nn.Linear(4, IN)
        self.r = getattr(nn, kind)(IN, STATE, **options)
        self.o = nn.Linear((self.r.proj_size or STATE) * (1 + self.r.bidirectional), 3)
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        states, end = self.r(self.e(x))
        end = end[0] if isinstance(end, tuple) else end
        if not self.last:
            return self.o(states)
        return self.o(torch.cat([end[-2], end[-1]], -1) if self.r.bidirectional else end[-1])


class Cells(nn.Module):
    """A cell that a loop of the user's own calls."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.e, self.o = nn.Linear(4, IN), nn.Linear(STATE, 3)
        self.cell = getattr(nn, f"{kind}Cell")(IN, STATE)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(x.shape[1], STATE)
        found = (state, state)
        for row in x:
            given = found if isinstance(self.cell, nn.LSTMCell) else found[0]
            made = self.cell(self.e(row), given)
            found = made if isinstance(made, tuple) else (made, made)
        return self.o(found[0])


class Started(nn.Module):
    """A layer whose first state comes from somewhere."""

    def __init__(self, kind: str, how: str) -> None:
        super().__init__()
        self.r, self.o = getattr(nn, kind)(4, STATE), nn.Linear(STATE, 3)
        self.how = how
        if how == "computed":
            self.f = nn.Linear(4, STATE)
        if how == "learned":
            self.first = nn.Parameter(torch.ones(1, 1, STATE))

    def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:
        if self.how == "learned":
            h = self.first.expand(1, x.shape[1], STATE).contiguous()
        elif self.how == "computed":
            h = self.f(x[0])[None]
        assert h is not None
        return self.o(self.r(x, (h, h) if isinstance(self.r, nn.LSTM) else h)[0])


def settled(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return model.double().eval()


def rows(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


OPTIONS: dict[str, dict[str, object]] = {
    "one layer": {},
    "the last state": {"last": True},
    "two layers": {"num_layers": 2},
    "the last state of two": {"num_layers": 2, "last": True},
    "both ways": {"bidirectional": True, "num_layers": 2},
    "the last states of both ways": {"bidirectional": True, "last": True},
    "without biases": {"bias": False},
}
SIGNS = G.SignedPermutation(STATE)


def require_acts(model: nn.Module, site: str, x: Tensor, *others: Tensor) -> None:
    """The group of a site is proved, and its elements are absorbed on other inputs too."""
    found = bp.symmetries(model, x)[site]
    assert bp.certify(model, site, x, elements=3).holds
    element = found.group.sample(torch.Generator().manual_seed(2))
    twin = bp.reparametrize(model, site, element, example_input=x)
    for other in (x, *others):
        torch.testing.assert_close(twin(other), model(other), rtol=1e-9, atol=1e-9)


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OPTIONS)
def test_the_state_of_a_layer_has_signed_axes(kind: str, name: str) -> None:
    model, x = settled(Layers(kind, **OPTIONS[name])), rows(3, 2, 4)
    found = bp.symmetries(model, x)
    ways = 1 + bool(OPTIONS[name].get("bidirectional"))
    assert found["o:in"].group == (SIGNS if ways == 1 else G.DirectSum((SIGNS, SIGNS)))
    assert found["e"].group == G.GeneralLinear(IN)
    require_acts(model, "o:in", x, rows(5, 3, 4, seed=4))


@pytest.mark.slow
def test_a_rectified_state_rescales_and_a_projected_one_is_free() -> None:
    x = rows(3, 2, 4)
    relu = settled(Layers("RNN", nonlinearity="relu"))
    assert bp.symmetries(relu, x)["r"].group == G.PositiveMonomial(STATE)
    require_acts(relu, "r", x, rows(6, 1, 4))
    projected = settled(Layers("LSTM", proj_size=3, num_layers=2))
    assert bp.symmetries(projected, x)["r"].group == G.GeneralLinear(3)
    require_acts(projected, "r", x, rows(6, 1, 4))


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("kind", KINDS)
def test_the_state_of_a_cell_has_signed_axes(kind: str) -> None:
    model, x = settled(Cells(kind)), rows(3, 2, 4)
    assert bp.symmetries(model, x)["o:in"].group == SIGNS
    require_acts(model, "o:in", x, rows(3, 5, 4, seed=4))


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("kind", KINDS)
def test_a_first_state_that_is_given_keeps_its_axes(kind: str) -> None:
    x, h = rows(3, 2, 4), rows(1, 2, STATE, seed=7)
    for how in ("learned", "computed"):
        model = settled(Started(kind, how))
        assert bp.symmetries(model, x)["r"].group == SIGNS, how
        require_acts(model, "r", x, rows(5, 3, 4, seed=4))
    found = bp.symmetries(settled(Started(kind, "given")), {"x": x, "h": h})["r"].group
    assert isinstance(found, G.Trivial | G.Unknown)


def test_longer_sequences_say_what_to_do() -> None:
    model = settled(Layers("LSTM", batch_first=True))
    found = bp.symmetries(model, rows(1, LONGEST + 1, 4))["r"]
    assert isinstance(found.group, G.Unknown)
    assert f"shorter than {LONGEST + 1} steps" in found.because


class _InSteps(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        steps = recurrent_steps(func, args, lambda _: False)
        return (func if steps is None else steps)(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [*OPTIONS.values(), {"batch_first": True}], ids=repr)
def test_written_out_a_layer_gives_what_it_gives(kind: str, options: dict[str, object]) -> None:
    options = {name: value for name, value in options.items() if name != "last"}
    layer = settled(getattr(nn, kind)(4, STATE, **options))
    x = rows(3, 2, 4)
    states, ends = layer(x)
    with torch.no_grad(), _InSteps():
        own_states, own_ends = layer(x)
    torch.testing.assert_close(own_states, states)
    torch.testing.assert_close(own_ends, ends)


# --- networks whose steps are written out -------------------------------------------------------


class Steps(nn.Module):
    """A recurrent network of two linear maps, from zeros.

    Args:
        how: what a step does.
        bias: whether the map of the state has one.
    """

    def __init__(self, how: str, *, bias: bool) -> None:
        super().__init__()
        self.i, self.h, self.o = nn.Linear(4, STATE), nn.Linear(STATE, STATE, bias), nn.Linear(6, 3)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), STATE)
        for step in range(x.shape[1]):
            both = self.i(x[:, step]) + self.h(state)
            if self.how == "linear":
                state = both
            elif self.how == "leaky":
                state = 0.9 * state + 0.1 * both.tanh()
            else:
                state = getattr(torch, self.how)(both)
        return self.o(state)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("how", "group"),
    [
        ("tanh", G.SignedPermutation),
        ("relu", G.PositiveMonomial),
        ("leaky", G.SignedPermutation),
        ("linear", G.GeneralLinear),
    ],
)
def test_steps_that_begin_with_zeros_are_those_of_a_layer(
    how: str, group: type[G.Group], bias: bool
) -> None:
    model = Steps(how, bias=bias).double()
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=seeded(7)).double() / 2
    x, longer = (torch.randn(5, n, 4, generator=seeded(n)).double() for n in (4, 9))
    found = bp.symmetries(model, x)["o:in"]
    assert type(found.group) is group
    assert found.certificate is not None and found.certificate.holds
    element = found.group.sample(seeded(1))
    other = bp.reparametrize(model, "o:in", element, example_input=x)
    torch.testing.assert_close(other(longer), model(longer))


def test_a_row_of_a_matrix_that_is_added_does_not_turn_with_the_matrix() -> None:
    class Added(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.i, self.o = nn.Linear(STATE, STATE), nn.Linear(STATE, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.o(self.i(x) + self.i.weight[0])

    found = bp.symmetries(Added().double(), torch.randn(5, STATE).double())["o:in"]
    assert not isinstance(found.group, G.GeneralLinear)
