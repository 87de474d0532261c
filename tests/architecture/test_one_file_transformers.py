"""Transformers written in one file, as papers and courses write them, beside their published twins.

Each has the weights of a small model of the library `transformers` and computes the same. Whatever
the style, every query, key, value, head, neuron and residual stream is a site, and its group is
that of the twin, and is proved.
"""

import functools
import itertools
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

import basis_probe as bp
from basis_probe.model.capture import catching
from basis_probe.model.facts import collect
from basis_probe.model.places import module_sites
from basis_probe.model.trace import record

D, HEADS, SIZE, WIDE, VOCAB, LAYERS = 16, 4, 4, 24, 13, 2
TOKENS = torch.randint(VOCAB, (2, 6), generator=torch.Generator().manual_seed(0))
OTHERS = torch.randint(VOCAB, (3, 9), generator=torch.Generator().manual_seed(1))


def parameter(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach().clone())


def moved(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.3 * torch.randn(value.shape, generator=generator))
    return model.double().eval()


class Returned(nn.Module):
    """A published model that returns its logits, or what is in their place."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.m = model

    def forward(self, tokens: Tensor) -> Tensor:
        return self.m(tokens, use_cache=False)[0]


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(
        n_embd=D, n_head=HEADS, n_layer=LAYERS, n_inner=WIDE, vocab_size=VOCAB, n_positions=12
    )
    return moved(Returned(transformers.GPT2LMHeadModel(config)))


def llama() -> nn.Module:
    config = transformers.LlamaConfig(
        hidden_size=D, num_attention_heads=HEADS, num_key_value_heads=2, num_hidden_layers=LAYERS,
        intermediate_size=WIDE, vocab_size=VOCAB, max_position_embeddings=12,
        tie_word_embeddings=False, attn_implementation="eager",
    )  # fmt: skip
    return moved(Returned(transformers.LlamaForCausalLM(config)))


def causal(scores: Tensor) -> Tensor:
    size = scores.shape[-1]
    later = torch.triu(torch.ones(size, size, dtype=torch.bool), 1)
    return scores.masked_fill(later, torch.finfo(scores.dtype).min).softmax(-1)


# --- GPT-2, in four styles ------------------------------------------------------------------------


class WithEinsum(nn.Module):
    """Parameters with an axis for heads, read by einsum, as in courses on circuits."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        q, k, v = block.attn.c_attn.weight.view(D, 3, HEADS, SIZE).unbind(1)
        self.W_Q, self.W_K, self.W_V = (parameter(w.transpose(0, 1)) for w in (q, k, v))
        self.b_Q, self.b_K, self.b_V = map(parameter, block.attn.c_attn.bias.view(3, HEADS, SIZE))
        self.W_O = parameter(block.attn.c_proj.weight.view(HEADS, SIZE, D))
        self.b_O = parameter(block.attn.c_proj.bias)
        self.W_in, self.b_in = parameter(block.mlp.c_fc.weight), parameter(block.mlp.c_fc.bias)
        self.W_out = parameter(block.mlp.c_proj.weight)
        self.b_out = parameter(block.mlp.c_proj.bias)
        self.ln1, self.ln2 = block.ln_1, block.ln_2

    def attention(self, x: Tensor) -> Tensor:
        q = torch.einsum("bpd,hdk->bphk", x, self.W_Q) + self.b_Q
        k = torch.einsum("bpd,hdk->bphk", x, self.W_K) + self.b_K
        v = torch.einsum("bpd,hdk->bphk", x, self.W_V) + self.b_V
        pattern = causal(torch.einsum("bqhk,bphk->bhqp", q, k) / math.sqrt(SIZE))
        z = torch.einsum("bhqp,bphk->bqhk", pattern, v)
        return torch.einsum("bqhk,hkd->bqd", z, self.W_O) + self.b_O

    def mlp(self, x: Tensor) -> Tensor:
        pre = torch.einsum("bpd,dm->bpm", x, self.W_in) + self.b_in
        post = F.gelu(pre, approximate="tanh")
        return torch.einsum("bpm,md->bpd", post, self.W_out) + self.b_out

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class WithMatrices(nn.Module):
    """Parameters and `@`, one projection for all three, a nonlinearity written out."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.qkv, self.c = parameter(block.attn.c_attn.weight), parameter(block.attn.c_attn.bias)
        self.out, self.d = parameter(block.attn.c_proj.weight), parameter(block.attn.c_proj.bias)
        self.up, self.e = parameter(block.mlp.c_fc.weight), parameter(block.mlp.c_fc.bias)
        self.down, self.f = parameter(block.mlp.c_proj.weight), parameter(block.mlp.c_proj.bias)
        self.g1, self.h1 = parameter(block.ln_1.weight), parameter(block.ln_1.bias)
        self.g2, self.h2 = parameter(block.ln_2.weight), parameter(block.ln_2.bias)

    def norm(self, x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * gain + bias

    def forward(self, x: Tensor) -> Tensor:
        many, positions, _ = x.shape
        read = self.norm(x, self.g1, self.h1) @ self.qkv + self.c
        q, k, v = (
            part.view(many, positions, HEADS, SIZE).transpose(1, 2) for part in read.split(D, -1)
        )
        pattern = causal(q @ k.transpose(-2, -1) * SIZE**-0.5)
        z = (pattern @ v).transpose(1, 2).reshape(many, positions, D)
        x = x + z @ self.out + self.d
        u = self.norm(x, self.g2, self.h2) @ self.up + self.e
        u = 0.5 * u * (1 + torch.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)))
        return x + u @ self.down + self.f


class Head(nn.Module):
    """One head, with linear maps of its own."""

    def __init__(self, block: nn.Module, number: int) -> None:
        super().__init__()
        self.maps = nn.ModuleList([nn.Linear(D, SIZE) for _ in range(3)])
        weights = block.attn.c_attn.weight.view(D, 3, HEADS, SIZE)[:, :, number]
        biases = block.attn.c_attn.bias.view(3, HEADS, SIZE)[:, number]
        for place, one in enumerate(self.maps):
            one.weight, one.bias = parameter(weights[:, place].T), parameter(biases[place])

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (one(x) for one in self.maps)
        return causal(q @ k.transpose(-2, -1) / math.sqrt(SIZE)) @ v


class WithListOfHeads(nn.Module):
    """Heads in a list of modules, joined by a concatenation."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.heads = nn.ModuleList([Head(block, number) for number in range(HEADS)])
        self.out, self.up, self.down = nn.Linear(D, D), nn.Linear(D, WIDE), nn.Linear(WIDE, D)
        given = (block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj)
        for own, other in zip((self.out, self.up, self.down), given, strict=True):
            own.weight, own.bias = parameter(other.weight.T), parameter(other.bias)
        self.ln1, self.ln2 = block.ln_1, block.ln_2

    def forward(self, x: Tensor) -> Tensor:
        read = self.ln1(x)
        x = x + self.out(torch.cat([head(read) for head in self.heads], -1))
        return x + self.down(F.gelu(self.up(self.ln2(x)), approximate="tanh"))


class WithMergedHeads(nn.Module):
    """Examples and heads in one axis, products by bmm, biases by addmm."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        weights, biases = block.attn.c_attn.weight.split(D, 1), block.attn.c_attn.bias.split(D)
        for name, weight, bias in zip("qkv", weights, biases, strict=True):
            setattr(self, name, parameter(weight))
            setattr(self, f"{name}_bias", parameter(bias))
        self.o, self.o_bias = parameter(block.attn.c_proj.weight), parameter(block.attn.c_proj.bias)
        self.u, self.u_bias = parameter(block.mlp.c_fc.weight), parameter(block.mlp.c_fc.bias)
        self.w, self.w_bias = parameter(block.mlp.c_proj.weight), parameter(block.mlp.c_proj.bias)
        self.ln1, self.ln2 = block.ln_1, block.ln_2

    def apart(self, x: Tensor, many: int) -> Tensor:
        return x.view(many, -1, HEADS, SIZE).transpose(1, 2).reshape(many * HEADS, -1, SIZE)

    def forward(self, x: Tensor) -> Tensor:
        many, positions, _ = x.shape
        rows = self.ln1(x).reshape(-1, D)
        q, k, v = (
            self.apart(torch.addmm(bias, rows, weight), many)
            for weight, bias in (
                (self.q, self.q_bias),
                (self.k, self.k_bias),
                (self.v, self.v_bias),
            )
        )
        z = torch.bmm(causal(torch.bmm(q, k.transpose(1, 2)) / math.sqrt(SIZE)), v)
        z = z.view(many, HEADS, positions, SIZE).transpose(1, 2).reshape(-1, D)
        x = x + torch.addmm(self.o_bias, z, self.o).view(many, positions, D)
        rows = self.ln2(x).reshape(-1, D)
        pre = torch.addmm(self.u_bias, rows, self.u)
        post = F.gelu(pre, approximate="tanh")
        return x + torch.addmm(self.w_bias, post, self.w).view(many, positions, D)


class Decoder(nn.Module):
    """Tables that are indexed, blocks of one style, and a matrix of tokens behind a last norm."""

    def __init__(self, twin: nn.Module, block: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        body = twin.m.transformer
        self.W_E, self.W_pos = parameter(body.wte.weight), parameter(body.wpe.weight)
        self.W_U = parameter(twin.m.lm_head.weight.T)
        self.blocks = nn.ModuleList([block(one) for one in body.h])
        self.norm = body.ln_f

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.W_E[tokens] + self.W_pos[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.norm(x) @ self.W_U


# --- Llama, in two styles -------------------------------------------------------------------------


def angles(positions: int) -> Tensor:
    rates = 10000.0 ** (-torch.arange(0, SIZE, 2, dtype=torch.float64) / SIZE)
    return torch.outer(torch.arange(positions, dtype=torch.float64), rates)


class WithHalves(nn.Module):
    """Everything a Parameter; the rotary turn by halves; keys and values repeated for heads."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        attention, mlp = block.self_attn, block.mlp
        self.wq, self.wk = parameter(attention.q_proj.weight), parameter(attention.k_proj.weight)
        self.wv, self.wo = parameter(attention.v_proj.weight), parameter(attention.o_proj.weight)
        self.gate, self.up = parameter(mlp.gate_proj.weight), parameter(mlp.up_proj.weight)
        self.down = parameter(mlp.down_proj.weight)
        self.g1 = parameter(block.input_layernorm.weight)
        self.g2 = parameter(block.post_attention_layernorm.weight)

    def norm(self, x: Tensor, gain: Tensor) -> Tensor:
        return gain * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)

    def turn(self, x: Tensor) -> Tensor:
        at = torch.cat([angles(x.shape[1])] * 2, -1)[:, None]
        one, two = x.chunk(2, -1)
        return x * at.cos() + torch.cat([-two, one], -1) * at.sin()

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:2], -1, SIZE)
        read = self.norm(x, self.g1)
        q, k, v = (F.linear(read, w).view(shape) for w in (self.wq, self.wk, self.wv))
        q, k = self.turn(q), self.turn(k)
        k, v = (one.repeat_interleave(2, 2) for one in (k, v))
        q, k, v = (one.transpose(1, 2) for one in (q, k, v))
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + F.linear(z.transpose(1, 2).flatten(2), self.wo)
        read = self.norm(x, self.g2)
        return x + F.linear(F.silu(F.linear(read, self.gate)) * F.linear(read, self.up), self.down)


class WithGroups(nn.Module):
    """Linear maps; heads in groups of one key each by einsum; a gate written out."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        attention, mlp = block.self_attn, block.mlp
        self.q, self.k, self.v = attention.q_proj, attention.k_proj, attention.v_proj
        self.o = attention.o_proj
        self.gate, self.up, self.down = mlp.gate_proj, mlp.up_proj, mlp.down_proj
        self.n1, self.n2 = nn.RMSNorm(D, eps=1e-6), nn.RMSNorm(D, eps=1e-6)
        self.n1.weight = parameter(block.input_layernorm.weight)
        self.n2.weight = parameter(block.post_attention_layernorm.weight)

    def turn(self, x: Tensor) -> Tensor:
        at = angles(x.shape[1])[:, None]
        one, two = x[..., : SIZE // 2], x[..., SIZE // 2 :]
        return torch.cat([one * at.cos() - two * at.sin(), two * at.cos() + one * at.sin()], -1)

    def forward(self, x: Tensor) -> Tensor:
        many, positions, _ = x.shape
        read = self.n1(x)
        q = self.turn(self.q(read).view(many, positions, HEADS, SIZE))
        k = self.turn(self.k(read).view(many, positions, 2, SIZE))
        v = self.v(read).view(many, positions, 2, SIZE)
        q = q.view(many, positions, 2, HEADS // 2, SIZE)
        pattern = causal(torch.einsum("bqghd,bkgd->bghqk", q, k) / math.sqrt(SIZE))
        z = torch.einsum("bghqk,bkgd->bqghd", pattern, v)
        x = x + self.o(z.reshape(many, positions, D))
        read = self.n2(x)
        gate = self.gate(read)
        return x + self.down(gate * torch.sigmoid(gate) * self.up(read))


class RotaryDecoder(nn.Module):
    """An embedding, blocks of one style, a norm written out, and a matrix of tokens."""

    def __init__(self, twin: nn.Module, block: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        body = twin.m.model
        self.table, self.head = (
            parameter(body.embed_tokens.weight),
            parameter(twin.m.lm_head.weight),
        )
        self.blocks = nn.ModuleList([block(one) for one in body.layers])
        self.gain = parameter(body.norm.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        x = F.embedding(tokens, self.table)
        for block in self.blocks:
            x = block(x)
        x = x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * self.gain
        return x @ self.head.T


# What is asked of a layer -> the site of the twin, and that of each style, in layer {}.
GPT2 = {
    "q": "m.transformer.h.{}.attn.q", "k": "m.transformer.h.{}.attn.k",
    "v": "m.transformer.h.{}.attn.v", "z": "m.transformer.h.{}.attn.c_proj:in",
    "neurons": "m.transformer.h.{}.mlp.c_proj:in", "stream": "m.transformer.h.{}",
    "middle": "m.transformer.h.{}.ln_2:in",
}  # fmt: skip
LLAMA = {
    "q": "m.model.layers.{}.self_attn.q_proj", "k": "m.model.layers.{}.self_attn.k_proj",
    "v": "m.model.layers.{}.self_attn.v_proj", "z": "m.model.layers.{}.self_attn.o_proj:in",
    "neurons": "m.model.layers.{}.mlp.down_proj:in", "stream": "m.model.layers.{}",
    "middle": "m.model.layers.{}.post_attention_layernorm:in",
}  # fmt: skip
BLOCK = "blocks.{}"
OWN = {name: f"{BLOCK}.{name}" for name in ("q", "k", "v", "z")} | {"stream": BLOCK}
STYLES: dict[str, tuple[Callable[[], nn.Module], Callable[..., nn.Module], dict[str, str]]] = {
    "einsum": (
        gpt2, lambda twin: Decoder(twin, WithEinsum),
        OWN | {"neurons": f"{BLOCK}.gelu()", "middle": f"{BLOCK}.ln2:in"},
    ),
    "matrices": (
        gpt2, lambda twin: Decoder(twin, WithMatrices),
        OWN | {"neurons": f"{BLOCK}.mul()", "middle": f"{BLOCK}.add()"},
    ),
    "merged heads": (
        gpt2, lambda twin: Decoder(twin, WithMergedHeads),
        OWN | {"neurons": f"{BLOCK}.gelu()", "middle": f"{BLOCK}.ln2:in"},
    ),
    "halves": (
        llama, lambda twin: RotaryDecoder(twin, WithHalves),
        OWN | {"neurons": f"{BLOCK}.mul()", "middle": f"{BLOCK}.add()"},
    ),
    "groups": (
        llama, lambda twin: RotaryDecoder(twin, WithGroups),
        OWN | {name: f"{BLOCK}.{name}" for name in ("q", "k", "v")}
        | {"z": f"{BLOCK}.o:in", "neurons": f"{BLOCK}.down:in", "middle": f"{BLOCK}.n2:in"},
    ),
}  # fmt: skip


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("style", STYLES)
def test_a_style_has_the_groups_of_its_published_twin(style: str) -> None:
    published, make, own = STYLES[style]
    twin = published()
    model = make(twin).double().eval()
    torch.testing.assert_close(model(OTHERS), twin(OTHERS), rtol=1e-5, atol=1e-5)
    theirs, found = bp.symmetries(twin, TOKENS), bp.symmetries(model, TOKENS)
    names = GPT2 if published is gpt2 else LLAMA
    assert own.keys() == names.keys()
    for layer in range(LAYERS):
        for part, name in own.items():
            claim = found[name.format(layer)]
            assert claim.group == theirs[names[part].format(layer)].group, (part, layer)
            assert claim.certificate is not None and claim.certificate.holds, (part, layer)


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("style", STYLES)
def test_elements_at_its_places_are_absorbed_on_other_inputs(style: str) -> None:
    published, make, own = STYLES[style]
    model = make(published()).double().eval()
    found = bp.symmetries(model, TOKENS, certificates=False)
    for name in own.values():
        site = name.format(1)
        element = found[site].group.draw(torch.Generator().manual_seed(4)).matrix()
        changed = bp.reparametrize(model, site, element, example_input=TOKENS)
        torch.testing.assert_close(changed(OTHERS), model(OTHERS), rtol=1e-6, atol=1e-6)


def test_single_heads_in_a_list_are_free_each_by_itself() -> None:
    model = Decoder(gpt2(), WithListOfHeads).double().eval()
    found = bp.symmetries(model, TOKENS)
    for head, one in itertools.product(range(HEADS), range(3)):
        claim = found[f"blocks.0.heads.{head}.maps.{one}"]
        assert claim.group == bp.groups.Blocks(bp.groups.GeneralLinear(SIZE), 1)
        assert claim.certificate is not None and claim.certificate.holds
    assert found["blocks.0.gelu()"].group == bp.groups.Permutation(WIDE)
    assert found["blocks.0"].group == bp.groups.LineStabiliser(D)
    assert all(c.certificate is not None and c.certificate.holds for c in found.values())


class OfColumns(nn.Module):
    """Tables with tokens along their columns, and weights that stand first, without a norm."""

    def __init__(self) -> None:
        super().__init__()
        shapes = {
            "W_E": (D, VOCAB), "W_pos": (12, D), "W_U": (D, VOCAB),
            "W_Q": (HEADS, SIZE, D), "W_K": (HEADS, SIZE, D), "W_V": (HEADS, SIZE, D),
            "W_O": (D, HEADS * SIZE), "W_in": (WIDE, D), "b_in": (WIDE,), "W_out": (D, WIDE),
        }  # fmt: skip
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.zeros(shape)))

    def forward(self, tokens: Tensor) -> Tensor:
        x = torch.einsum("dbp->bpd", self.W_E[:, tokens]) + self.W_pos[: tokens.shape[1]]
        k = torch.einsum("ihd,bpd->biph", self.W_K, x)
        q = torch.einsum("ihd,bpd->biph", self.W_Q, x)
        v = torch.einsum("ihd,bpd->biph", self.W_V, x)
        pattern = causal(torch.einsum("biph,biqh->biqp", k, q) / math.sqrt(SIZE))
        z = torch.einsum("biph,biqp->biqh", v, pattern).permute(0, 2, 1, 3).flatten(2)
        x = x + torch.einsum("df,bqf->bqd", self.W_O, z)
        x = x + torch.einsum(
            "dm,bpm->bpd", self.W_out, F.relu(torch.einsum("md,bpd->bpm", self.W_in, x) + self.b_in)
        )
        return x @ self.W_U


def test_weights_that_stand_first_are_read_as_others_are() -> None:
    model = moved(OfColumns())
    found = bp.symmetries(model, TOKENS)
    for name in ("q", "k", "v", "z"):
        assert found[name].group == bp.groups.Blocks(bp.groups.GeneralLinear(SIZE), HEADS), name
    assert found["relu()"].group == bp.groups.PositiveMonomial(WIDE)
    streams = [name for name in found if name.startswith("add()")]
    assert len(streams) == 2
    assert all(found[name].group == bp.groups.GeneralLinear(D) for name in streams)
    for name, claim in found.items():
        assert claim.certificate is not None and claim.certificate.holds, name
        element = claim.group.draw(torch.Generator().manual_seed(4)).matrix()
        changed = bp.reparametrize(model, name, element, example_input=TOKENS)
        torch.testing.assert_close(changed(OTHERS), model(OTHERS), rtol=1e-6, atol=1e-6)


def test_what_is_probed_there_is_what_the_model_computes() -> None:
    model = Decoder(gpt2(), WithEinsum).double().eval()
    kept: list[Tensor] = []
    block = model.blocks[1]
    block.ln1.register_forward_hook(lambda _module, _given, out: kept.append(out.detach()))
    model(OTHERS)
    x = kept[0]
    values = torch.einsum("bpd,hdk->bphk", x, block.W_V) + block.b_V
    queries = torch.einsum("bpd,hdk->bphk", x, block.W_Q) + block.b_Q
    keys = torch.einsum("bpd,hdk->bphk", x, block.W_K) + block.b_K
    pattern = causal(torch.einsum("bqhk,bphk->bhqp", queries, keys) / math.sqrt(SIZE))
    expected = {
        "blocks.1.q": queries.flatten(2),
        "blocks.1.v": values.flatten(2),
        "blocks.1.z": torch.einsum("bhqp,bphk->bqhk", pattern, values).flatten(2),
    }
    trace = record(model, lambda: model(TOKENS), TOKENS, len(TOKENS))
    sites = collect(trace, module_sites(trace)).sites
    caught: dict[str, Tensor] = {}
    wanted = {sites[name].address: functools.partial(caught.__setitem__, name) for name in expected}
    with torch.no_grad(), catching(model, wanted):
        model(OTHERS)
    for name, right in expected.items():
        torch.testing.assert_close(caught[name].flatten(2), right.detach())
