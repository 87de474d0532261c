"""What is measured of a model: layers that replay their sites exactly, norms, streams, regions."""

import functools
import math
from collections.abc import Callable

import pytest
import small_models as small
import torch
import torch.nn.functional as F
from small_models import D, H
from torch import Tensor, nn

from basis_probe.model.capture import catching
from basis_probe.model.facts import Facts, Shape, collect, shared
from basis_probe.model.graph import Kind
from basis_probe.model.linear_layer import Layer, bend, layer
from basis_probe.model.places import Address, module_sites
from basis_probe.model.trace import record


def facts_of(model: nn.Module, x: Tensor) -> Facts:
    trace = record(model, lambda: model(x), x, len(x))
    return collect(trace, module_sites(trace))


@functools.cache
def zoo(name: str) -> tuple[nn.Module, Tensor, Facts]:
    """A model of the zoo, its input and its facts, made once; no test changes them."""
    model, x = small.built(name)
    return model, x, facts_of(model, x)


def caught(model: nn.Module, x: Tensor, *addresses: Address) -> list[Tensor]:
    """The tensors at some addresses in a further forward pass."""
    found: dict[Address, Tensor] = {}

    def keep(address: Address) -> Callable[[Tensor], None]:
        return lambda tensor: found.__setitem__(address, tensor.clone())

    with torch.no_grad(), catching(model, {address: keep(address) for address in addresses}):
        model(x)
    return [found[address] for address in addresses]


def rows(tensor: Tensor, *, channels: bool) -> Tensor:
    tensor = tensor.movedim(1, -1) if channels and tensor.ndim > 2 else tensor
    return tensor.reshape(-1, tensor.shape[-1])


def outputs(found: Layer, inputs: Tensor) -> tuple[Tensor, ...]:
    """What the linear maps in front of a site make of their input, without the package's code."""
    made: list[Tensor] = []
    for weight, bias in zip(found.weights, found.biases, strict=True):
        cut = found.convolution
        if cut is None:
            flat = inputs.reshape(-1, weight.shape[1])
            assert weight.shape[1] == found.width * found.repeat
        else:
            windows = F.unfold(
                inputs, cut.kernel, dilation=cut.dilation, padding=cut.padding, stride=cut.stride
            )
            flat = windows.movedim(1, -1).reshape(-1, windows.shape[1])
            assert inputs.shape[1] == found.width
        out = flat @ weight.reshape(len(weight), -1).T
        made.append(out if bias is None else out + bias)
    return tuple(made)


# which sites must have a layer in front of them, and after how many linear maps
EXPECTED: dict[str, dict[str, int]] = {
    "relu": {"up": 1, "act": 1, "down:in": 1, "down": 1},
    "functional relu": {"up": 1, "relu()": 1},
    "gelu by hand": {"up": 1, "down:in": 1},
    "relu in place": {"up": 1, "act:in": 1, "act": 1},
    "method in place": {"sin()": 1},
    "softmax": {"down:in": 1},
    "gated": {"gate": 1, "act": 1, "up": 1, "product": 2},
    "fused gate": {"both": 1},
    "linear chain": {"a": 1, "b": 1, "c": 1},
    "pre-norm RMS": {"blocks.0.mlp.1": 1, "blocks.1.mlp.2": 1, "blocks.0.attn.v": 1},
    "pre-norm RMS by hand": {"blocks.0.mlp.1": 1, "blocks.1.mlp.2": 1},
    "pre-norm LayerNorm": {"blocks.0.mlp.0": 1, "blocks.1.mlp.1": 1},
    "post-norm": {"blocks.0.mlp.1": 1, "blocks.1.mlp.1": 1},
    "sublayer norm": {"blocks.0.mlp.1": 1},
    "stage": {"stem": 1, "norm0": 1, "relu()": 1, "relu():2": 1, "relu():3": 1},
    "padded stage": {"conv1": 1, "relu():2": 1, "relu():3": 1},
    "fire": {"relu()": 1, "relu():2": 1, "relu():3": 1},
    "depthwise": {"wide": 1, "narrow": 1},
    "flattened": {"conv": 1, "act": 1, "dense": 1, "sigmoid()": 1},
    "max pooled, flattened": {"act": 1, "sigmoid()": 1},
    "dilated": {"a": 1, "norm": 1, "silu()": 1, "gelu()": 1},
    "twice": {"mlp.tanh()": 1, "mlp.tanh():2": 1},
    "recurrent": {"relu()": 1, "relu():2": 1},
    "tied": {"hidden": 1},
    "lstm": {"embed": 1, "head": 1},
    "experts": {"embed": 1, "router": 1},
    "wrapped": {"inner.relu()": 1},
    "hyper": {"up": 1, "down": 1},
}


@pytest.mark.parametrize("name", small.ZOO)
def test_layers_make_the_activations_of_their_site_from_what_they_read(name: str) -> None:
    model, x, facts = zoo(name)
    replayed: dict[str, int] = {}
    for site_name, site in facts.sites.items():
        found = layer(facts, site)
        if isinstance(found, str):
            assert found
            continue
        replayed[site_name] = len(found.linears)
        bent = bend(facts, site)
        wanted = (site.address, found.address, *found.held)
        here, inputs, *held = caught(model, x, *wanted, *(() if bent is None else bent[:1]))
        layout = facts.layout(site)
        assert layout is not None
        before = None if bent is None else rows(held.pop(), channels=layout.channels)
        kept = [rows(tensor, channels=layout.channels) for tensor in held]
        made = outputs(found, inputs)
        values = found.post((*made, *kept))
        axis = layout.axes[0] if len(layout.axes) == 1 else None
        assert axis is not None
        own = here.movedim(axis, -1)
        torch.testing.assert_close(
            values, own.reshape(-1, own.shape[-1]), rtol=1e-9, atol=1e-9, msg=site_name
        )
        if bent is not None and before is not None and found.pre is not None:
            pre = found.pre((*made, *kept))
            torch.testing.assert_close(pre, before, rtol=1e-9, atol=1e-9, msg=site_name)
            torch.testing.assert_close(bent[1](before), values, rtol=1e-9, atol=1e-9)
            # What it says not to read may be anything.
            given = [*made, *kept]
            left = [p if at in found.pre.reads else p * math.nan for at, p in enumerate(given)]
            torch.testing.assert_close(found.pre(tuple(left)), pre, rtol=0, atol=0)
    assert EXPECTED[name].items() <= replayed.items(), replayed


def test_what_a_residual_connection_carries_is_held() -> None:
    model, x, facts = zoo("stage")
    found = layer(facts, facts.sites["relu():3"])
    assert isinstance(found, Layer)
    assert len(found.held) == 1
    (kept,) = caught(model, x, found.held[0])
    with torch.no_grad():
        assert torch.equal(kept, F.relu(model.norm0(model.stem(x))))
    assert layer(facts, facts.sites["relu()"]).held == ()


def test_a_flattened_input_has_its_pixels_behind_every_channel() -> None:
    _, _, facts = zoo("flattened")
    found = layer(facts, facts.sites["sigmoid()"])
    assert isinstance(found, Layer)
    assert (found.width, found.repeat) == (4, 16)
    assert facts.layout(facts.sites["dense:in"]).repeat == 16


def test_windows_of_a_convolution_are_told() -> None:
    _, _, facts = zoo("dilated")
    found = layer(facts, facts.sites["silu()"])
    assert isinstance(found, Layer)
    cut = found.convolution
    assert (cut.kernel, cut.stride, cut.padding, cut.dilation) == ((3, 2), (2, 1), (1, 0), (1, 2))
    assert layer(facts, facts.sites["gelu()"]).convolution.padding == (0, 0)


@pytest.mark.parametrize(
    ("function", "why"),
    [(lambda x: x.cumsum(-1), "cumsum"), (lambda x: x.relu().sin(), "several nonlinearities"),
     (lambda x: F.layer_norm(x, (H,)), "lies between"),
     (lambda x: x + x @ x.T @ x, "lies between")],
)  # fmt: skip
def test_a_site_that_is_not_one_linear_map_away_says_why(function, why: str) -> None:
    model = small.Through(function).double().eval()
    facts = facts_of(model, small.rows(4, D))
    assert why in layer(facts, facts.sites["seen"])


def test_linear_maps_of_different_inputs_are_no_layer() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(D, H), nn.Linear(H, H), nn.Linear(H, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(F.silu(self.a(x)) * self.b(F.relu(self.a(x))))

    facts = facts_of(Two().double(), small.rows(4, D))
    assert "different inputs" in layer(facts, facts.sites["c:in"])


# --- weights as they are used ---------------------------------------------------------------------


class Spelled(nn.Module):
    """One linear map with a bias, written in one of several ways."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.w, self.b = (
            how,
            nn.Parameter(torch.randn(H, D)),
            nn.Parameter(torch.randn(H)),
        )
        self.v, self.down = nn.Parameter(self.w.data.T.clone()), nn.Linear(H, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = {
            "linear": lambda: F.linear(x, self.w, self.b),
            "keywords": lambda: F.linear(x, weight=self.w, bias=self.b),
            "matmul": lambda: x @ self.v + self.b,
            "torch.matmul": lambda: torch.matmul(x, self.v) + self.b,
            "transposed": lambda: x @ self.w.T + self.b,
            "t()": lambda: self.b + torch.mm(x, self.w.t()),
            "addmm": lambda: torch.addmm(self.b, x, self.v),
            "computed": lambda: F.linear(x, 2 * self.w - self.w, self.b),
        }[self.how]()
        return self.down(F.gelu(h))


@pytest.mark.parametrize(
    "how",
    ["linear", "keywords", "matmul", "torch.matmul", "transposed", "t()", "addmm", "computed"],
)
def test_a_linear_map_is_known_however_it_is_written(how: str) -> None:
    torch.manual_seed(0)
    model, x = Spelled(how).double(), small.rows(6, D)
    facts = facts_of(model, x)
    found = layer(facts, facts.sites["gelu()"])
    assert isinstance(found, Layer), found
    torch.testing.assert_close(found.weights[0], model.w.data)
    here, inputs = caught(model, x, facts.sites["gelu()"].address, found.address)
    torch.testing.assert_close(found.post(outputs(found, inputs)), here, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("how", ["matmul", "t()"])
def test_a_bias_that_is_added_by_hand_does_not_end_a_stream(how: str) -> None:
    model = Spelled(how).double()
    facts = facts_of(model, small.rows(6, D))
    site = facts.sites["gelu()"]
    before = facts.vertex(site).carried[0]
    stream = facts.streams[facts.stream_of[before]]
    assert [facts.graph.vertices[w].kind for w in stream.writers] == [Kind.LINEAR]


def test_weights_that_are_used_twice_are_found() -> None:
    for name, expected in {"recurrent": [False], "tied": [True], "relu": []}.items():
        assert [transposed for *_, transposed in shared(zoo(name)[2])] == expected
    assert len(list(shared(zoo("twice")[2]))) == 2


# --- regions --------------------------------------------------------------------------------------


def region(
    function: Callable[[Tensor], Tensor], width: int = H
) -> tuple[Shape, Tensor | None, Tensor | None]:
    """What was measured of a function between two linear maps."""
    model = small.Through(function, width).double().eval()
    facts = facts_of(model, small.rows(5, D))
    found = facts.regions[facts.vertex(facts.sites["seen"]).node]
    return found.shape, found.gain, found.bias


GAIN = torch.linspace(0.5, 2, H, dtype=torch.float64)
BIAS = torch.linspace(-1, 1, H, dtype=torch.float64)


@pytest.mark.parametrize(
    ("function", "shape"),
    [(torch.relu, Shape.ELEMENTWISE), (lambda x: x * torch.sigmoid(x), Shape.ELEMENTWISE),
     (lambda x: x.softmax(-1), Shape.COUPLED), (lambda x: x * x.softmax(-1), Shape.COUPLED),
     (lambda x: 3 * x, Shape.SCALE), (lambda x: x / 2 + x, Shape.SCALE),
     (lambda x: x * GAIN, Shape.DIAGONAL), (lambda x: x * GAIN + BIAS, Shape.DIAGONAL),
     (lambda x: x + 1, Shape.ELEMENTWISE), (lambda x: x - x.mean(-1, keepdim=True), Shape.COUPLED),
     (lambda x: F.normalize(x, dim=-1), Shape.RMS_NORM),
     (lambda x: x / x.norm(dim=-1, keepdim=True), Shape.RMS_NORM),
     (lambda x: F.rms_norm(x, (H,)), Shape.RMS_NORM),
     (lambda x: F.layer_norm(x, (H,)), Shape.LAYER_NORM),
     (lambda x: (x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True), Shape.LAYER_NORM),
     (lambda x: x / (1 + x.abs().mean(-1, keepdim=True)), Shape.COUPLED),
     (lambda x: x / x.abs().amax(-1, keepdim=True), Shape.COUPLED),
     (lambda x: F.rms_norm(x, (H,)).tanh(), Shape.COUPLED)],
)  # fmt: skip
def test_regions_are_what_they_compute(function, shape: Shape) -> None:
    assert region(function)[0] is shape


@pytest.mark.parametrize("name", ["nn.RMSNorm", "by hand", "LayerNorm", "float32", "unbiased"])
def test_gain_and_bias_of_a_norm_are_measured(name: str) -> None:
    def by_hand(x: Tensor) -> Tensor:
        return GAIN * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))

    def in_float32(x: Tensor) -> Tensor:
        y = x.to(torch.float32)
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)
        return GAIN * y.to(x.dtype)

    def unbiased(x: Tensor) -> Tensor:
        return GAIN * (x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True) + BIAS

    ratio = math.sqrt((H - 1) / H)
    function, shape, gain, bias = {
        "nn.RMSNorm": (lambda x: F.rms_norm(x, (H,), GAIN, 1e-6), Shape.RMS_NORM, GAIN, 0 * BIAS),
        "by hand": (by_hand, Shape.RMS_NORM, GAIN, 0 * BIAS),
        "LayerNorm": (lambda x: F.layer_norm(x, (H,), GAIN, BIAS), Shape.LAYER_NORM, GAIN, BIAS),
        "float32": (in_float32, Shape.RMS_NORM, GAIN, 0 * BIAS),
        "unbiased": (unbiased, Shape.LAYER_NORM, ratio * GAIN, BIAS),
    }[name]
    found, found_gain, found_bias = region(function)
    assert found is shape
    torch.testing.assert_close(found_gain, gain, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found_bias, bias, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "site", "centred"),
    [("pre-norm RMS", "blocks.0.mlp.1", False), ("pre-norm LayerNorm", "blocks.0.mlp.1", True),
     ("pre-norm RMS by hand", "blocks.1.mlp.1", False), ("post-norm", "blocks.0.mlp.1", True)],
)  # fmt: skip
def test_the_gain_of_a_norm_is_peeled_off_the_input_of_a_layer(
    name: str, site: str, centred: bool
) -> None:
    model, x, facts = zoo(name)
    found = layer(facts, facts.sites[site])
    assert isinstance(found, Layer)
    assert (found.normalised, found.centred) == (True, centred)
    block = model.get_submodule(site.rsplit(".", 2)[0])
    norm = block.ln1 if name == "post-norm" else block.ln2
    torch.testing.assert_close(found.gain, norm.weight.data, rtol=1e-8, atol=1e-8)
    (inputs,) = caught(model, x, found.address)
    bare = (inputs.reshape(-1, D) - found.bias) / found.gain
    torch.testing.assert_close(bare.square().mean(-1), torch.ones(len(bare)).double())
    if centred:
        torch.testing.assert_close(bare.mean(-1), torch.zeros(len(bare)).double())


def test_a_layer_behind_no_norm_is_not_normalised() -> None:
    _, _, facts = zoo("relu")
    found = layer(facts, facts.sites["act"])
    assert isinstance(found, Layer)
    assert (found.gain, found.normalised, found.centred) == (None, False, False)


def test_a_feature_that_the_gain_switches_off_is_left_in_the_input() -> None:
    model, x = small.built("pre-norm LayerNorm")
    model.blocks[0].ln2.weight.data[2] = 0
    facts = facts_of(model, x)
    found = layer(facts, facts.sites["blocks.0.mlp.1"])
    assert isinstance(found, Layer)
    assert found.gain is None
    assert found.normalised


# --- what bends -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", small.ZOO)
def test_the_nonlinearity_of_a_site_makes_it_from_what_is_caught_before(name: str) -> None:
    model, x, facts = zoo(name)
    count = 0
    for site in facts.sites.values():
        found = bend(facts, site)
        if found is None:
            continue
        count += 1
        address, function = found
        here, before = caught(model, x, site.address, address)
        channels = facts.layout(site).channels
        torch.testing.assert_close(
            function(rows(before, channels=channels)), rows(here, channels=channels),
            rtol=1e-9, atol=1e-9,
        )  # fmt: skip
    bent = {"linear chain": 0, "tied": 0, "hyper": 0, "lstm": 0, "experts": None}
    assert count == bent[name] if bent.get(name, 1) == 0 else count or name in bent


def test_linear_sites_bend_nothing() -> None:
    facts = zoo("relu")[2]
    assert bend(facts, facts.sites["up"]) is None
    assert bend(facts, facts.sites["act"]) is not None


# --- streams --------------------------------------------------------------------------------------


def test_a_residual_stream_is_one_stream() -> None:
    _, _, facts = zoo("pre-norm RMS")
    sites = ["embed", "blocks.0.mid", "blocks.0", "blocks.1.mid", "blocks.1", "blocks.0.attn.o"]
    streams = {facts.stream_of[facts.vertex(facts.sites[site]).node] for site in sites}
    assert len(streams) == 1
    stream = facts.streams[streams.pop()]
    kinds = sorted(facts.graph.vertices[w].kind.name for w in stream.writers)
    assert kinds == ["EMBEDDING"] + ["LINEAR"] * 4
    assert stream.learned
    assert not stream.returned
    assert stream.sums == 5
    assert len(stream.readers) == 5


def test_values_and_what_attention_makes_of_them_are_one_stream() -> None:
    facts = zoo("pre-norm RMS")[2]
    v, z = (facts.sites[f"blocks.0.attn.{name}"] for name in ("v", "z"))
    assert facts.stream_of[facts.vertex(v).node] == facts.stream_of[facts.vertex(z).node]
    assert facts.streams[facts.stream_of[facts.vertex(v).node]].value_mixed


@pytest.mark.filterwarnings("ignore")
def test_norms_of_hugging_face_that_compute_in_float32_are_recognised() -> None:
    import transformers as hf

    torch.manual_seed(0)
    config = hf.LlamaConfig(
        vocab_size=11, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    model, ids = hf.LlamaForCausalLM(config).eval(), small.ids()
    gain = model.model.layers[0].post_attention_layernorm.weight
    gain.data.uniform_(0.5, 1.5)
    trace = record(model, lambda: model(ids, use_cache=False), ids, len(ids))
    facts = collect(trace, module_sites(trace))
    found = layer(facts, facts.sites["model.layers.0.mlp.down_proj:in"])
    assert isinstance(found, Layer)
    assert (found.normalised, found.centred, len(found.linears)) == (True, False, 2)
    # Before the nonlinearity is the gate alone.
    assert found.pre is not None and len(found.pre.reads) == 1 and len(found.post.reads) == 2
    torch.testing.assert_close(found.gain.float(), gain.data, rtol=1e-5, atol=1e-5)
    address = facts.sites["model.layers.0.mlp.down_proj:in"].address
    here, inputs = caught(model, ids, address, found.address)
    torch.testing.assert_close(found.post(outputs(found, inputs)), here.reshape(-1, 24))
