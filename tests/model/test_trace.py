"""The recorded graph: what read what, what is overwritten, and which functions are the same."""

import dataclasses
from collections.abc import Callable

import pytest
import small_models as small
import torch
import torch.nn.functional as F
from small_models import D, H
from torch import Tensor, nn
from torch.overrides import (
    BaseTorchFunctionMode,
    TorchFunctionMode,
    _get_current_function_mode_stack,
)

import basis_probe as bp
from basis_probe.model.graph import Kind, condense, replay
from basis_probe.model.trace import (
    STEPS,
    Fixed,
    Ref,
    Trace,
    record,
    spelling,
    tensors_in,
    unfollowed,
)


def watched(model: nn.Module, x: Tensor) -> Trace:
    return record(model, lambda: model(x), x, len(x))


class Runs(nn.Module):
    """A model that is nothing but a function."""

    def __init__(self, function: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.function, self.up = function, nn.Linear(D, H)

    def forward(self, x: Tensor) -> object:
        return self.function(self.up(x))


def traced(function: Callable[[Tensor], object]) -> Trace:
    return watched(Runs(function).double(), small.rows(4, D))


@pytest.mark.parametrize("name", small.ZOO)
def test_nodes_are_in_order_and_inputs_come_before(name: str) -> None:
    model, x = small.built(name)
    trace = watched(model, x)
    assert trace.example_batch == len(x)
    for place, node in enumerate(trace.nodes):
        assert node.index == place
        assert all(index < place for index in node.inputs)
        reads = node.op != "zeros_like" and any(trace.node(i).live for i in node.inputs)
        assert node.live == (node.op == "input" or reads)
        for index in node.inputs:
            assert place in trace.readers[index]
    assert trace.outputs
    assert all(trace.node(index).live for index in trace.outputs)
    paths = {path for path, _ in model.named_modules()}
    assert {node.module.removesuffix(STEPS) for node in trace.nodes} <= paths
    assert {call.path for call in trace.calls} <= paths - {""}


@pytest.mark.parametrize(
    "name",
    ["relu", "gelu by hand", "relu in place", "gated", "pre-norm RMS", "post-norm", "stage", "fire",
     "max pooled, flattened", "dilated", "twice", "tied", "softmax", "padded stage"],
)  # fmt: skip
def test_the_graph_computes_the_model_anew(name: str) -> None:
    model, x = small.built(name)
    trace = watched(model, x)
    start = next(node.index for node in trace.nodes if node.op == "input")
    other = x if x.dtype == torch.int64 else x.flip(0) * 1.3
    with torch.no_grad():
        found = next(tensors_in(model(other)))
    torch.testing.assert_close(replay(trace, trace.outputs[0], {start: other}), found)


def test_what_was_not_given_is_named() -> None:
    trace = traced(torch.relu)
    with pytest.raises(ValueError, match=r"node 0 \(input\) is needed and was not given"):
        replay(trace, trace.outputs[0], {})


@pytest.mark.parametrize(
    ("function", "op"),
    [(F.relu, "relu"), (torch.relu, "relu"), (lambda x: x.relu(), "relu"),
     (lambda x: x.relu_(), "relu"), (lambda x: F.relu(x, inplace=True), "relu"),
     (nn.ReLU(), "relu"), (lambda x: x + 1, "add"), (lambda x: 1 + x, "add"),
     (lambda x: torch.add(x, 1), "add"), (lambda x: x.add_(1), "add"),
     (lambda x: x.T, "transpose"), (lambda x: x.t(), "transpose"), (lambda x: x.mT, "mT"),
     (lambda x: x.data, "detach"), (lambda x: x.reshape(-1), "view"),
     (lambda x: x[None], "getitem"),
     (lambda x: torch.special.expit(x), "sigmoid"), (lambda x: x.flatten(), "view")],
)  # fmt: skip
def test_spellings_of_a_function_have_one_name(
    function: Callable[[Tensor], Tensor], op: str
) -> None:
    trace = traced(function)
    assert trace.node(trace.outputs[0]).op == op
    assert trace.node(trace.outputs[0]).live


def test_questions_about_a_tensor_are_no_nodes() -> None:
    def asks(x: Tensor) -> Tensor:
        assert x.shape[0] == 4
        assert x.dim() == 2
        assert x.is_floating_point()
        assert x.size(1) == H
        assert x.device.type == "cpu"
        return x.sin()

    assert [node.op for node in traced(asks).nodes] == ["input", "linear", "sin"]
    assert spelling(Tensor.size) is None


def test_arguments_say_which_are_recorded_and_which_are_weights() -> None:
    model = nn.Sequential(nn.Linear(D, H)).double()
    trace = watched(model, small.rows(4, D))
    node = trace.nodes[1]
    assert node.args[0] == Ref(0)
    assert isinstance(node.args[1], Fixed)
    assert node.args[1].tensor is model[0].weight
    assert [value.name for value in node.args[1:]] == ["0.weight", "0.bias"]


# --- what is overwritten --------------------------------------------------------------------------


def entries(x: Tensor) -> Tensor:
    x[:, 0] = 0
    return x.sin()


def rows_by_mask(x: Tensor) -> Tensor:
    x[x > 0] = 1.0
    return x.sin()


def half_view(x: Tensor) -> Tensor:
    x[:, :4].relu_()
    return x.sin()


def base_of_view(x: Tensor) -> Tensor:
    flat = x.view(-1)
    x.relu_()
    return flat.sin()


def copied(x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y.copy_(x.cos())
    return y.sin()


def collected(x: Tensor) -> Tensor:
    y = torch.zeros(4, H, dtype=x.dtype)
    y[:, 1] = x[:, 1]
    return y.sin()


def written_out(x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    torch.cos(x, out=y)
    return y.sin()


def added_by_index(x: Tensor) -> Tensor:
    y = torch.zeros(4, H, dtype=x.dtype)
    y.index_add_(0, torch.tensor([1, 2]), x[:2])
    return y.sin()


@pytest.mark.parametrize(
    "function",
    [
        entries,
        rows_by_mask,
        half_view,
        base_of_view,
        copied,
        collected,
        written_out,
        added_by_index,
    ],
)
def test_a_reader_of_overwritten_values_reads_the_new_ones(function) -> None:
    trace = traced(function)
    last = trace.node(trace.outputs[0])
    assert last.op == "sin"
    assert last.live
    source = trace.node(last.inputs[0])
    # Not what the tensor held when it was made.
    assert source.op in ("overwritten", "copy_", "cos", "index_add_", "setitem")
    assert source.live


def test_an_in_place_function_makes_a_node_of_its_own() -> None:
    trace = traced(lambda x: x.relu_())
    node = trace.node(trace.outputs[0])
    assert (node.op, node.inplace) == ("relu", True)
    assert trace.node(node.inputs[0]).op == "linear"
    x = small.rows(3, H)
    before = x.clone()
    assert torch.equal(replay(trace, node.index, {node.inputs[0]: x}), before.relu())
    assert torch.equal(x, before)


def test_a_call_that_changes_nothing_is_not_in_place_for_others() -> None:
    trace = traced(lambda x: x.contiguous().to(x.dtype).sin())
    assert [node.op for node in trace.nodes] == ["input", "linear", "contiguous", "to", "sin"]


# --- several outputs, nested outputs --------------------------------------------------------------


def test_pieces_of_a_split_are_nodes() -> None:
    trace = traced(lambda x: x.chunk(2, dim=-1)[1].sin())
    ops = [node.op for node in trace.nodes]
    assert ops == ["input", "linear", "chunk", "output", "output", "sin"]
    assert trace.node(5).inputs == (4,)
    assert trace.node(4).args == (1,)


@dataclasses.dataclass
class Answer:
    first: Tensor
    rest: dict[str, list[Tensor]]


def test_tensors_are_found_in_nested_outputs() -> None:
    a, b, c = (torch.full((2,), float(i)) for i in range(3))
    value = (Answer(a, {"x": [b, c]}), None, 3, "text", Answer)
    assert [int(t[0]) for t in tensors_in(value)] == [0, 1, 2]
    trace = traced(lambda x: Answer(x.sin(), {"x": [x.cos(), x]}))
    assert [trace.node(i).op for i in trace.outputs] == ["sin", "cos", "linear"]


def test_the_models_random_numbers_and_gradients_are_left_alone() -> None:
    model, x = small.built("relu")
    torch.manual_seed(3)
    before = torch.get_rng_state()
    trace = watched(model, x)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.is_grad_enabled()
    assert len(trace.nodes) == 4


# --- the condensed graph --------------------------------------------------------------------------


def kinds(function: Callable[[Tensor], Tensor], read: int = H) -> dict[str, Kind]:
    trace = watched(small.Through(function, read=read).double(), small.rows(4, D))
    graph = condense(trace, sites=frozenset())
    return {graph.vertices[v].op: graph.vertices[v].kind for v in graph.vertices}


@pytest.mark.parametrize(
    ("function", "op", "kind"),
    [(torch.relu, "relu", Kind.REGION), (lambda x: x + torch.sin(x @ x.T @ x), "add", Kind.SUM),
     (lambda x: x.view(4, 2, 4).reshape(4, H), "view", Kind.CARRIER),
     (lambda x: x[:, None, :][:, 0], "getitem", Kind.CARRIER),
     (lambda x: torch.cat([x[:, :4], x[:, 4:]], -1), "cat", Kind.CONCAT),
     (lambda x: torch.cat(tensors=(x[:, :4], x[:, 4:]), dim=-1), "cat", Kind.CONCAT),
     (lambda x: torch.cat([x[:, :6], torch.ones(len(x), 2)], -1), "cat", Kind.OTHER),
     (lambda x: F.pad(x[:, :6], (1, 1)), "pad", Kind.PADDED),
     (lambda x: F.pad(x[:, :6], (1, 1), value=1.0), "pad", Kind.OTHER),
     (lambda x: x.cumsum(-1), "cumsum", Kind.OTHER),
     (lambda x: x @ x.T @ x, "matmul", Kind.ATTENTION),
     (lambda x: F.dropout(x, 0.5, training=False).relu(), "relu", Kind.REGION),
     (lambda x: F.dropout(x, 0.5, training=True), "dropout", Kind.OTHER)],
)  # fmt: skip
def test_functions_become_vertices_of_their_kind(function, op: str, kind: Kind) -> None:
    assert kinds(function)[op] is kind


def test_a_formula_and_a_function_make_the_same_vertex() -> None:
    for formula in (
        lambda x: 0.5 * x * (1 + torch.erf(x / 2**0.5)),
        lambda x: x * torch.sigmoid(1.702 * x),
        lambda x: torch.where(x > 0, x, 0.1 * x),
        lambda x: x - F.relu(x),
    ):
        trace = watched(small.Through(formula).double(), small.rows(4, D))
        graph = condense(trace, sites=frozenset())
        linear, last = (v for v in graph.vertices.values() if v.kind is Kind.LINEAR)
        region = graph.vertices[last.used[0]]
        assert region.kind is Kind.REGION
        assert region.carried == (linear.node,)


def test_pieces_know_which_features_they_are() -> None:
    trace = watched(
        small.Through(lambda x: torch.cat([x.chunk(2, -1)[1], x[:, ::3]], -1), read=7).double(),
        small.rows(4, D),
    )
    graph = condense(trace, sites=frozenset())
    parts = {v.part for v in graph.vertices.values() if v.kind is Kind.PART}
    # The first half is not used, and so is no part of the graph.
    assert parts == {(4, 5, 6, 7), (0, 3, 6)}


PRODUCTS = {
    "...d,md->...m": (12, 8),
    "bpd,md->bpm": (12, 8),
    "bpd,dm->bpm": (8, 12),
    "...d,dm->...m": (8, 12),
}


@pytest.mark.sample(default=2)
@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("equation", PRODUCTS)
def test_an_einsum_with_a_matrix_is_a_linear_map(equation: str, listed: bool) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.before, self.after = nn.Linear(6, 8), nn.Linear(12, 3)
            self.weight = nn.Parameter(torch.randn(PRODUCTS[equation]))

        def forward(self, x: Tensor) -> Tensor:
            h = self.before(x)
            operands = ([h, self.weight],) if listed else (h, self.weight)
            return self.after(torch.einsum(equation, *operands).relu())

    model, x = Own().eval(), torch.randn(4, 5, 6)
    found = bp.symmetries(model, x)
    assert type(found["before"].group) is bp.groups.GeneralLinear
    assert type(found["relu()"].group) is bp.groups.PositiveMonomial
    assert found["relu()"].certificate is not None and found["relu()"].certificate.holds
    seen = bp.observe(model, [x] * 20, sites="relu()", progress=False).seen["relu()"]
    assert seen.moments.count == 400


@pytest.mark.parametrize("equation", ["bd,md->mb", "bd,bm->bm", "bd,dd->bd", "ab,cd->abcd"])
def test_other_einsums_are_no_linear_maps(equation: str) -> None:
    from basis_probe.model.trace import as_product

    assert as_product((equation, torch.zeros(2, 2), torch.zeros(2, 2))) is None


class Told(TorchFunctionMode):
    """Counts the calls that it is told of."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.calls += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("by", ["itself", "its kind"])
def test_the_mode_that_was_entered_last_is_told_of_nothing_for_a_while(by: str) -> None:
    mode, x = Told(), torch.ones(2)
    left = unfollowed(mode if by == "itself" else Told)
    with mode:
        x.exp()
        assert mode.calls == 1
        with pytest.raises(KeyError), left:
            x.exp().log()
            raise KeyError
        assert mode.calls == 1
        x.exp()
    assert mode.calls == 2
    assert not _get_current_function_mode_stack()


def test_a_mode_below_others_is_told_on() -> None:
    mode, above, x = Told(), BaseTorchFunctionMode(), torch.ones(2)
    with mode, above, unfollowed(mode), unfollowed(Told):
        assert _get_current_function_mode_stack() == [mode, above]
        x.exp()
    assert mode.calls == 1
    with unfollowed(mode):
        assert not _get_current_function_mode_stack()
