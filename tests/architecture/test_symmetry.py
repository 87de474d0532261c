"""The group of every site is checked by changing the weights by hand: outputs may not move.

What is absorbed where is written out here for every model, and shares nothing with the derivation.
"""

import copy
import dataclasses
import math
from collections.abc import Callable

import pytest
import small_models as small
import torch
import torch.nn.functional as F
from small_models import D, H
from torch import Tensor, nn

import basis_probe as bp
from basis_probe import groups as G

ROWS, IMAGES, IDS = small.rows(10, D), small.rows(3, 3, 8, 8), small.ids()

Absorb = Callable[[nn.Module, Tensor], None]


def settled(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in float64 and evaluation mode, with generic weights."""
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2:
            nn.init.normal_(parameter, std=1 / math.sqrt(parameter[0].numel()))
        elif name.endswith("bias"):
            nn.init.normal_(parameter)
    return model.double().eval()


# --- changing weights by hand ---------------------------------------------------------------------


def write(layer: nn.Module, a: Tensor) -> None:
    """What the layer writes is multiplied by a."""
    if isinstance(layer, nn.Embedding):
        layer.weight.data = layer.weight.data @ a.T
        return
    layer.weight.data = torch.einsum("ij,j...->i...", a, layer.weight.data)
    if layer.bias is not None:
        layer.bias.data = a @ layer.bias.data


def read(layer: nn.Module, a: Tensor, repeat: int = 1) -> None:
    """The layer undoes a on what it reads."""
    undo = torch.kron(torch.linalg.inv(a).contiguous(), torch.eye(repeat, dtype=a.dtype))
    layer.weight.data = torch.einsum("ij...,jk->ik...", layer.weight.data, undo)


def order(a: Tensor) -> Tensor:
    """The permutation matrix of a monomial one; of a rotation, the identity."""
    on = (a.abs() > 1e-9).to(a.dtype)
    return on if bool((on.sum(0) == 1).all()) else torch.eye(len(a), dtype=a.dtype)


def factors(a: Tensor) -> Tensor:
    """The numbers that a monomial matrix multiplies its outputs by."""
    return a.sum(1)


def normed(norm: nn.Module, a: Tensor, *, before: bool = False) -> None:
    """What batch norm writes, or what it reads, is multiplied by a monomial matrix."""
    p, d = order(a), factors(a)
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        tensor.data = p @ tensor.data
    if not before:
        norm.weight.data *= d
        norm.bias.data *= d
        return
    old = (norm.running_var + norm.eps).sqrt()
    norm.running_mean.data *= d
    norm.running_var.data *= d**2
    norm.weight.data *= (norm.running_var + norm.eps).sqrt() / old / d


def folded(norm: nn.Module, *readers: nn.Linear) -> None:
    """The norm's gain and bias go to the linear maps behind it."""
    for reader in readers:
        if getattr(norm, "bias", None) is not None:
            moved = reader.weight.data @ norm.bias.data
            reader.bias = nn.Parameter(moved if reader.bias is None else reader.bias.data + moved)
        reader.weight.data = reader.weight.data * norm.weight.data
    norm.weight.data = torch.ones_like(norm.weight)
    if getattr(norm, "bias", None) is not None:
        norm.bias.data = torch.zeros_like(norm.bias)


def output(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        found = model(x)
    return found


def at(model: nn.Module, module: str, x: Tensor) -> Tensor:
    """What a module returns, by a hook of our own."""
    found: list[Tensor] = []
    handle = model.get_submodule(module).register_forward_hook(
        lambda _, __, out: found.append(out.detach().clone())
    )
    output(model, x)
    handle.remove()
    return found[0]


def moved(model: nn.Module, x: Tensor, absorb: Absorb, a: Tensor) -> tuple[float, nn.Module]:
    """How far the outputs move, relative to their size, when a is absorbed; and the new model."""
    changed = copy.deepcopy(model)
    with torch.no_grad():
        absorb(changed, a)
    before, after = output(model, x), output(changed, x)
    return float((after - before).abs().max() / before.abs().max()), changed


def rotation(dim: int, seed: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    q, r = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))
    return q * r.diagonal().sign()


def act_on(values: Tensor, a: Tensor, axis: int) -> Tensor:
    return (values.movedim(axis, -1) @ a.T).movedim(-1, axis)


# --- what is claimed, and how it is absorbed ------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Case:
    """A site, the group it has by theory, and how the weights absorb its elements.

    Attributes:
        shown: a module that returns the site's tensor, if there is one.
        axis: its feature axis.
        outside: matrices that are in no such group and must be noticed.
    """

    name: str
    model: Callable[[], nn.Module]
    x: Tensor
    site: str
    group: G.Group
    absorb: Absorb
    shown: str | None = None
    axis: int = -1
    outside: tuple[Tensor, ...] | None = None


def neurons(before: Callable[[Tensor], Tensor] = lambda a: a) -> Absorb:
    """A two-layer network whose neurons change by a; `before` is what their inputs change by."""

    def absorb(model: nn.Module, a: Tensor) -> None:
        write(model.up, before(a))
        read(model.down, a)

    return absorb


def inputs_of(after: Callable[[Tensor], Tensor]) -> Absorb:
    """The same for the site before the nonlinearity; `after` is what comes out for a."""

    def absorb(model: nn.Module, a: Tensor) -> None:
        write(model.up, a)
        read(model.down, after(a))

    return absorb


def powered(power: float, *, even: bool) -> Callable[[Tensor], Tensor]:
    """P D -> P D^power, without its signs if even."""

    def change(a: Tensor) -> Tensor:
        if bool((order(a) != (a.abs() > 1e-9)).any()):
            return a
        return a.abs() ** power if even else a.sign() * a.abs() ** power

    return change


def gelu_by_hand(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def leaky_by_hand(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.2 * x)


def masked(x: Tensor) -> Tensor:
    return x * (x > 0).to(x.dtype) - 0.3 * x * (x <= 0)


def at_most_zero(x: Tensor) -> Tensor:
    return torch.minimum(x, torch.zeros_like(x))


def square_by_relu(x: Tensor) -> Tensor:
    return x * x.relu()


def even_product(x: Tensor) -> Tensor:
    return x * torch.tanh(x)


def loop(x: Tensor) -> Tensor:
    return x + x.relu() ** 2


def own_softmax(x: Tensor) -> Tensor:
    return x.softmax(-1)


def solu(x: Tensor) -> Tensor:
    return x * x.softmax(-1)


PER, POS = G.Permutation(H), G.PositiveMonomial(H)
SIG, ANY = G.SignedPermutation(H), G.Monomial(H)


def same(a: Tensor) -> Tensor:
    return a


ROOT, SQUARE = powered(0.5, even=True), powered(2, even=True)

# nonlinearity, the group before it, the group behind it, what changes before it and behind it
NONLINEARITIES = [
    ("relu module", nn.ReLU(), POS, POS, same, same),
    ("relu function", F.relu, POS, POS, same, same),
    ("relu of torch", torch.relu, POS, POS, same, same),
    ("relu method", lambda x: x.relu(), POS, POS, same, same),
    ("relu in place", nn.ReLU(inplace=True), POS, POS, same, same),
    ("relu method in place", lambda x: x.relu_(), POS, POS, same, same),
    ("clamp", lambda x: x.clamp(min=0), POS, POS, same, same),
    ("minimum", at_most_zero, POS, POS, same, same),
    ("leaky relu", nn.LeakyReLU(0.1), POS, POS, same, same),
    ("leaky relu by hand", leaky_by_hand, POS, POS, same, same),
    ("mask", masked, POS, POS, same, same),
    ("prelu, one slope", nn.PReLU(), POS, POS, same, same),
    ("relu squared", lambda x: F.relu(x) ** 2, POS, POS, ROOT, SQUARE),
    ("x relu(x)", square_by_relu, POS, POS, ROOT, SQUARE),
    ("abs", torch.abs, ANY, POS, same, powered(1, even=True)),
    ("cube", lambda x: x**3, ANY, ANY, powered(1 / 3, even=False), powered(3, even=False)),
    ("tanh", nn.Tanh(), SIG, SIG, same, same),
    ("tanh function", F.tanh, SIG, SIG, same, same),
    ("hardtanh", F.hardtanh, SIG, SIG, same, same),
    ("through integers", lambda x: x.to(torch.int64).to(x.dtype), SIG, SIG, same, same),
    ("cos", torch.cos, SIG, PER, same, powered(1, even=True)),
    ("x tanh(x)", even_product, SIG, PER, same, powered(1, even=True)),
    ("gelu module", nn.GELU(), PER, PER, same, same),
    ("gelu tanh", nn.GELU("tanh"), PER, PER, same, same),
    ("gelu by hand", gelu_by_hand, PER, PER, same, same),
    ("silu", F.silu, PER, PER, same, same),
    ("silu by hand", lambda x: x * torch.sigmoid(x), PER, PER, same, same),
    ("sigmoid", torch.sigmoid, PER, PER, same, same),
    ("shifted relu", lambda x: F.relu(x - 0.5), PER, PER, same, same),
    ("x + relu(x)^2", loop, PER, PER, same, same),
    ("softmax", own_softmax, PER, PER, same, same),
    ("solu", solu, PER, PER, same, same),
]  # fmt: skip


def mlp_cases() -> list[Case]:
    cases: list[Case] = []
    for name, act, before, behind, back, forth in NONLINEARITIES:
        model = lambda act=act: small.MLP(act)  # noqa: E731
        cases.append(
            Case(f"{name}: before", model, ROWS, "up", before, inputs_of(forth), shown="up")
        )
        cases.append(Case(f"{name}: behind", model, ROWS, "down:in", behind, neurons(back)))
    return cases


def slopes(model: nn.Module, a: Tensor) -> None:
    neurons()(model, a)
    model.act.weight.data = order(a) @ model.act.weight.data


def channelwise() -> nn.Module:
    return small.MLP(nn.PReLU(H, 0.1))


def gated(gate: Callable[[Tensor], Tensor], up: Callable[[Tensor], Tensor]) -> Absorb:
    """Gate and up projection change by functions of a, the product by both of them."""

    def absorb(model: nn.Module, a: Tensor) -> None:
        write(model.gate, gate(a))
        write(model.up, up(a))
        # The product of two permuted and scaled tensors is permuted once and scaled twice.
        both = order(a) * (factors(gate(a)) * factors(up(a)))[:, None] if _on_axes(a) else a
        read(model.down, both)

    return absorb


def _on_axes(a: Tensor) -> bool:
    return bool(((a.abs() > 1e-9).sum(0) == 1).all())


def gated_cases() -> list[Case]:
    cases: list[Case] = []
    for name, act, gates in (
        ("SwiGLU", nn.SiLU(), PER), ("GeGLU", nn.GELU(), PER), ("GLU", nn.Sigmoid(), PER),
        ("ReGLU", nn.ReLU(), POS), ("tanh gate", nn.Tanh(), SIG), ("bilinear", nn.Identity(), ANY),
    ):  # fmt: skip
        model = lambda act=act: small.Gated(act)  # noqa: E731
        cases += [
            Case(f"{name} gate", model, ROWS, "gate", gates, gated(same, order), shown="gate"),
            Case(f"{name} up", model, ROWS, "up", ANY, gated(order, same), shown="up"),
            Case(
                f"{name} product", model, ROWS, "product", ANY, gated(order, same), shown="product"
            ),
        ]
    return cases


def residual(model: nn.Module, a: Tensor) -> None:
    """A pre-norm residual stream changes by a; embeddings are untied, gains are folded."""
    model.unembed.weight = nn.Parameter(model.unembed.weight.data.clone())
    write(model.embed, a)
    if model.pos is not None:
        model.pos.data = model.pos.data @ a.T
    for block in model.blocks:
        attn, mlp = block.attn, block.mlp
        if hasattr(block, "ln1"):
            folded(block.ln1, attn.q, attn.k, attn.v)
            folded(block.ln2, mlp[0])
        for reader in (attn.q, attn.k, attn.v, mlp[0]):
            read(reader, inner(a))
        for writer in (attn.o, mlp[2]):
            write(writer, a)
    if not isinstance(model.final, nn.Identity):
        folded(model.final, model.unembed)
    read(model.unembed, inner(a))


def inner(a: Tensor) -> Tensor:
    """What a does behind a norm: nothing is left of what lies along the all-ones direction.

    For an orthogonal a this is a; for one that stabilises the line, its rotation.
    """
    n = len(a)
    across = a - a.mean(0)
    ones = torch.ones(n, n, dtype=a.dtype) / n
    fixes = torch.allclose(across @ torch.ones(n, dtype=a.dtype), torch.zeros(n, dtype=a.dtype))
    return across + ones if fixes else a


def axes_of_stream(model: nn.Module, a: Tensor) -> None:
    """A residual stream with norms on it, or on what is written to it, changes by a monomial a."""
    p = order(a)
    write(model.embed, a)
    for block in model.blocks:
        for norm in (block.ln1, block.ln2):
            for parameter in norm.parameters():
                parameter.data = p @ parameter.data
        for reader in (block.attn.q, block.attn.k, block.attn.v, block.mlp[0]):
            read(reader, a)
        for writer in (block.attn.o, block.mlp[2]):
            write(writer, a)
    if not isinstance(model.final, nn.Identity):
        for parameter in model.final.parameters():
            parameter.data = p @ parameter.data
    read(model.unembed, a)


def stretched(dim: int) -> Tensor:
    return torch.diag(torch.linspace(0.5, 2.0, dim, dtype=torch.float64))


def transformer(norm: type[nn.Module] | None, order: str = "pre", **given: bool):
    return lambda: small.Transformer(norm, order, **given)


def stream_cases() -> list[Case]:
    rotations, scales = (rotation(D),), (stretched(D),)
    cases: list[Case] = []
    for name, norm in (("RMSNorm", nn.RMSNorm), ("RMSNorm by hand", small.RMSNorm)):
        for more in ({}, {"tied": True}, {"learned": True}):
            cases.append(
                Case(f"pre-norm {name} {more}", transformer(norm, **more), IDS, "blocks.0.mid",
                     G.Orthogonal(D), residual, "blocks.0.mid" if not more else None,
                     outside=scales)
            )  # fmt: skip
    line = G.LineStabiliser(D)
    for more in ({}, {"learned": True}):
        cases.append(
            Case(f"pre-norm LayerNorm {more}", transformer(nn.LayerNorm, **more), IDS,
                 "blocks.1", line, residual, "blocks.1", outside=(*rotations, *scales))
        )  # fmt: skip
    cases += [
        Case("no norm", transformer(None, "none"), IDS, "blocks.0.mid", G.GeneralLinear(D),
             residual, "blocks.0.mid", outside=()),
        Case("post-norm LayerNorm", transformer(nn.LayerNorm, "post"), IDS, "blocks.0",
             G.Permutation(D), axes_of_stream, "blocks.0"),
        Case("post-norm RMSNorm", transformer(nn.RMSNorm, "post"), IDS, "blocks.0",
             G.SignedPermutation(D), axes_of_stream, "blocks.0"),
        Case("sublayer RMSNorm", transformer(nn.RMSNorm, "sublayer"), IDS, "blocks.0.mid",
             G.SignedPermutation(D), axes_of_stream, "blocks.0.mid"),
        Case("sublayer RMSNorm by hand", transformer(small.RMSNorm, "sublayer"), IDS, "blocks.0",
             G.SignedPermutation(D), axes_of_stream, "blocks.0"),
        Case("sublayer LayerNorm", transformer(nn.LayerNorm, "sublayer"), IDS, "blocks.0",
             G.Permutation(D), axes_of_stream, "blocks.0"),
    ]  # fmt: skip
    return cases


def heads(count: int, copies: int, size: int, *, at_z: bool) -> Absorb:
    """Values and z change by a: heads change places in queries and keys too."""

    def absorb(model: nn.Module, a: Tensor) -> None:
        attn = model.blocks[0].attn
        apart = a.reshape((count, copies if at_z else 1, size) * 2)
        values = apart[:, 0, :, :, 0, :].reshape(count * size, count * size)
        sizes = apart.abs().amax((1, 2, 4, 5))
        on = sizes > 1e-9
        p = on.to(a.dtype) if bool((on.sum(0) == 1).all()) else torch.eye(count, dtype=a.dtype)
        eye, spread = torch.eye(size, dtype=a.dtype), torch.eye(copies, dtype=a.dtype)
        write(attn.v, values)
        write(attn.k, torch.kron(p, eye))
        write(attn.q, torch.kron(torch.kron(p, spread), eye))
        parts = values.reshape(count, size, count, size)
        read(
            attn.o,
            torch.einsum("isjt,cd->icsjdt", parts, spread).reshape((len(attn.o.weight[0]),) * 2),
        )

    return absorb


def attention_cases() -> list[Case]:
    cases: list[Case] = []
    for name, given in {
        "eager": {}, "sdpa": {"sdpa": True}, "interleaved": {"heads": 4, "how": "interleave"},
        "expanded": {"heads": 4, "how": "expand"},
        "expanded sdpa": {"heads": 4, "how": "expand", "sdpa": True},
    }.items():  # fmt: skip
        count, copies = given.get("kv", 2), given.get("heads", 2) // given.get("kv", 2)

        def build(given=given):
            model = small.Transformer(nn.RMSNorm, blocks=1)
            model.blocks[0].attn = small.Attention(**{"kv": 2, "size": 3, **given})
            return model

        inside, where = G.GeneralLinear(3), "blocks.0.attn"
        width = count * copies * 3
        cases += [
            Case(f"values {name}", build, IDS, f"{where}.v", G.Blocks(inside, count),
                 heads(count, copies, 3, at_z=False), f"{where}.v",
                 outside=() if count == 1 else (rotation(count * 3),)),
            Case(f"z {name}", build, IDS, f"{where}.z", G.Blocks(inside, count, copies),
                 heads(count, copies, 3, at_z=True), f"{where}.z",
                 outside=() if width == 3 else (rotation(width),)),
        ]  # fmt: skip
    return cases


def linear_chain(model: nn.Module, a: Tensor) -> None:
    write(model.a, a)
    read(model.b, a)


def tied_code(model: nn.Module, a: Tensor) -> None:
    write(model.down, a)


# --- channels -------------------------------------------------------------------------------------


def stage(model: nn.Module, a: Tensor) -> None:
    """Every tensor of the residual stage behind a batch norm changes by a."""
    for conv, norm in ((model.stem, model.norm0), (model.conv2, model.norm2)):
        write(conv, order(a))
        normed(norm, a)
    read(model.conv1, a)
    read(model.head, a)


def inside_block(model: nn.Module, a: Tensor) -> None:
    write(model.conv1, order(a))
    normed(model.norm1, a)
    read(model.conv2, a)


def before_norm(model: nn.Module, a: Tensor) -> None:
    write(model.conv1, a)
    normed(model.norm1, a, before=True)
    read(model.conv2, order(a))


def padded_stage(model: nn.Module, a: Tensor) -> None:
    """The second stage changes by a, and the first by its part that the shortcut carries."""
    write(model.conv2, order(a))
    normed(model.norm2, a)
    read(model.head, a)
    short = a[2:6, 2:6]
    if float((a[2:6].abs().sum() - short.abs().sum()).abs()) > 1e-9:
        return
    write(model.stem, order(short))
    normed(model.norm0, short)
    read(model.conv1, short)


def fire(model: nn.Module, a: Tensor) -> None:
    left, right = a[:4, :4], a[4:, 4:]
    write(model.left1, left)
    write(model.right1, right)
    read(model.last, a)


def depthwise(model: nn.Module, a: Tensor) -> None:
    p, d = order(a), factors(a)
    write(model.wide, a)
    model.deep.weight.data = (
        torch.einsum("ij,j...->i...", p, model.deep.weight) / d[:, None, None, None]
    )
    model.deep.bias.data = p @ model.deep.bias
    read(model.narrow, p)


def behind_depthwise(model: nn.Module, a: Tensor) -> None:
    p, d = order(a), factors(a)
    write(model.wide, p)
    model.deep.weight.data = (
        torch.einsum("ij,j...->i...", p, model.deep.weight) * d[:, None, None, None]
    )
    model.deep.bias.data = d * (p @ model.deep.bias)
    read(model.narrow, a)


def averaged(model: nn.Module, a: Tensor) -> None:
    write(model.narrow, a)
    read(model.head, a)


def flattened(pixels: int) -> Absorb:
    def absorb(model: nn.Module, a: Tensor) -> None:
        write(model.conv, a)
        read(model.dense, a, repeat=pixels)

    return absorb


def swapped(dim: int, i: int, j: int) -> Tensor:
    found = torch.eye(dim, dtype=torch.float64)
    found[[i, j]] = found[[j, i]]
    return found


def channel_cases() -> list[Case]:
    pos4, parts = G.PositiveMonomial(4), (2, 4, 2)
    stage3 = G.DirectSum(tuple(G.PositiveMonomial(n) for n in parts))
    turned = (rotation(8), swapped(8, 0, 4))
    squeeze = G.DirectSum((G.PositiveMonomial(4), G.PositiveMonomial(5)))
    return [
        Case("stage after its sum", small.Stage, IMAGES, "relu():3", pos4, stage, axis=1),
        Case("stage after its stem", small.Stage, IMAGES, "norm0", pos4, stage, "norm0", axis=1),
        Case("inside a block", small.Stage, IMAGES, "relu():2", pos4, inside_block, axis=1),
        Case("before batch norm", small.Stage, IMAGES, "conv1", G.Monomial(4), before_norm,
             "conv1", axis=1),
        Case("padded stage", small.Padded, IMAGES, "relu():3", stage3, padded_stage, axis=1,
             outside=turned),
        Case("padded stage, written", small.Padded, IMAGES, "norm2", stage3, padded_stage, "norm2",
             axis=1, outside=turned),
        Case("fire", small.Fire, IMAGES, "joined", squeeze, fire, "joined", axis=1,
             outside=(rotation(9),)),
        Case("fire, pooled", small.Fire, IMAGES, "pool", squeeze, fire, "pool", axis=1,
             outside=(rotation(9),)),
        Case("before depthwise", small.Depthwise, IMAGES, "wide", G.Monomial(6), depthwise, "wide",
             axis=1),
        Case("behind depthwise", small.Depthwise, IMAGES, "deep", G.PositiveMonomial(6),
             behind_depthwise, "deep", axis=1),
        Case("averaged over pixels", small.Depthwise, IMAGES, "narrow", G.GeneralLinear(4),
             averaged, "narrow", axis=1, outside=()),
        Case("flattened", small.Flattened, IMAGES, "act", pos4, flattened(16), "act", axis=1),
        Case("max pooled, flattened", lambda: small.Flattened(nn.MaxPool2d(2)), IMAGES, "act", pos4,
             flattened(4), "act", axis=1),
        Case("average pooled, flattened", lambda: small.Flattened(nn.AvgPool2d(2)), IMAGES, "pool",
             pos4, flattened(4), "pool", axis=1),
    ]  # fmt: skip


CASES = [
    *mlp_cases(),
    Case("prelu, slope per channel", channelwise, ROWS, "act", POS, slopes, "act"),
    *gated_cases(),
    *stream_cases(),
    *attention_cases(),
    Case("linear chain", small.Linears, ROWS, "a", G.GeneralLinear(H), linear_chain, "a",
         outside=()),
    Case("tied autoencoder", small.TiedAutoencoder, ROWS, "hidden", G.Orthogonal(4), tied_code,
         "hidden", outside=(stretched(4),)),
    *channel_cases(),
]  # fmt: skip


_FOUND: dict[Callable[[], nn.Module], tuple[nn.Module, dict[str, bp.Symmetry]]] = {}


def derived(case: Case) -> tuple[nn.Module, dict[str, bp.Symmetry]]:
    """The case's model and the symmetries of all its sites, once for all cases of one model."""
    if case.model not in _FOUND:
        model = settled(case.model())
        _FOUND[case.model] = model, bp.symmetries(model, case.x)
    return _FOUND[case.model]


@pytest.mark.sample(default=9)
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_the_weights_absorb_the_group_of_a_site_and_nothing_outside_it(case: Case) -> None:
    model, found = derived(case)
    symmetry = found[case.site]
    assert symmetry.group == case.group, symmetry.because
    assert symmetry.because[0].isupper()
    assert symmetry.because.endswith(".")
    made = symmetry.certificate
    assert made is not None and made.holds and max(made.max_error, made.action_error) <= 1e-9
    assert not made.violation <= 1e-6
    generator = torch.Generator().manual_seed(5)
    for _ in range(3):
        a = symmetry.group.sample(generator)
        error, changed = moved(model, case.x, case.absorb, a)
        assert error <= 1e-9
        if case.shown is not None:
            before, after = (at(m, case.shown, case.x) for m in (model, changed))
            torch.testing.assert_close(act_on(before, a, case.axis), after, rtol=1e-9, atol=1e-9)
    outside = (rotation(case.group.dim),) if case.outside is None else case.outside
    for a in outside:
        assert not symmetry.group.contains(a)
        assert moved(model, case.x, case.absorb, a)[0] > 1e-3


def test_trivial_are_what_the_model_is_given_and_what_it_returns() -> None:
    found = bp.symmetries(settled(small.MLP(nn.ReLU())), ROWS)
    assert found["up:in"].group == G.Trivial(D)
    assert found["down"].group == G.Trivial(3)
    wrapped = bp.symmetries(settled(small.Wrapped(small.MLP(nn.GELU()))), ROWS)
    assert wrapped["inner"].group == G.Trivial(3)
    assert wrapped["inner.up"].group == PER


def test_what_a_nonlinearity_writes_is_trivial_where_the_model_returns_it() -> None:
    found = bp.symmetries(settled(nn.Sequential(nn.Linear(D, H), nn.ReLU())), ROWS)
    assert found["0"].group == G.Trivial(H)


# --- products of bent tensors ---------------------------------------------------------------------


class Joined(nn.Module):
    """Two linear maps, joined by a function."""

    def __init__(self, join: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.g, self.u, self.down = nn.Linear(D, H), nn.Linear(D, H), nn.Linear(H, 3)
        self.join, self.seen = join, nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.seen(self.join(self.g(x), self.u(x))))


JOINS = {
    "both rectified": (lambda g, u: g.relu() * u.relu(), POS, POS, POS),
    "product rectified": (lambda g, u: (g * u).relu(), ANY, ANY, POS),
    "product squashed": (lambda g, u: (g.relu() * u).tanh(), POS, ANY, SIG),
    "added to a factor": (lambda g, u: u + u * g, PER, ANY, ANY),
    "the factor of a sum": (lambda g, u: (g + u) * u, ANY, ANY, POS),
    "a gate of a rectified one": (lambda g, u: torch.sigmoid(g) * u.relu(), PER, POS, POS),
    "maxout": (torch.maximum, POS, POS, POS),
    "minimum": (torch.minimum, POS, POS, POS),
    "quotient": (lambda g, u: u / (1 + g.abs()), SIG, ANY, ANY),
    "highway": (lambda g, u: u * g.sigmoid() + (1 - g.sigmoid()) * u.tanh(), PER, SIG, SIG),
}


@pytest.mark.parametrize("name", JOINS)
def test_factors_of_a_product_bind_each_other(name: str) -> None:
    join, gate, up, product = JOINS[name]
    found = bp.symmetries(settled(Joined(join)), ROWS)
    assert found["g"].group == gate
    assert found["u"].group == up
    assert found["seen"].group == product


def test_a_factor_that_is_added_to_its_product_fixes_the_scale_of_the_other() -> None:
    model = settled(Joined(lambda g, u: u + u * g))
    d = stretched(H)

    def absorb(changed: nn.Module, a: Tensor) -> None:
        write(changed.u, a)
        read(changed.down, a)

    assert moved(model, ROWS, absorb, d)[0] <= 1e-9
    assert moved(model, ROWS, lambda m, a: (write(m.g, a), read(m.down, a)), d)[0] > 1e-3


# --- what must not be guessed ---------------------------------------------------------------------


def overwritten(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, ::2] = x[:, ::2].relu()
    return x


def through_a_view(x: Tensor) -> Tensor:
    x[:, :4].relu_()
    return x


def copied(x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y.copy_(x.relu())
    return y


def own_mix(x: Tensor) -> Tensor:
    return x + 0.1 * x.roll(1, -1) ** 2


UNKNOWN = {
    "cumsum": lambda x: x.cumsum(-1),
    "sort": lambda x: x.sort(-1)[0],
    "roll": own_mix,
    "always dropped out": lambda x: F.dropout(x, 0.5),
    "features pooled": lambda x: F.max_pool1d(x, 2).repeat(1, 2),
    "features averaged in pairs": lambda x: F.avg_pool1d(x, 2).repeat(1, 2),
    "some entries overwritten": overwritten,
    "overwritten through a view": through_a_view,
    "copied into": copied,
    "larger of neighbours": lambda x: x.view(len(x), -1, 2).amax(-1).repeat(1, 2),
    "rectified both ways": lambda x: torch.cat([x.relu(), (-x).relu()], -1)[:, :H],
    "mean over examples": lambda x: x - x.mean(0, keepdim=True),
    "weights of the input": lambda x: F.linear(x, x[:H].T @ x[:H]),
    "constants that are no weights": lambda x: F.relu(x * torch.arange(1, H + 1).double()),
    "only in part": lambda x: torch.cat([x[:, :4].relu(), x[:, :4]], -1),
    "matrix of features": lambda x: torch.einsum("bi,bj->bij", x, x).sum(1),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_no_rule_covers_is_unknown_and_says_why(name: str) -> None:
    found = bp.symmetries(settled(small.Through(UNKNOWN[name])), small.rows(H, D))
    for site in ("up", "seen"):
        if name == "constants that are no weights" and site == "seen":
            continue
        assert found[site].group == G.Unknown(H), found[site]
        assert found[site].privileged is bp.Privileged.UNKNOWN
        assert found[site].because.endswith("not guessed.")


def test_computed_weights_are_unknown() -> None:
    found = bp.symmetries(settled(small.Hyper()), ROWS)
    assert {found[site].group.name for site in ("up", "make", "down:in")} == {"unknown"}


def test_what_is_written_into_an_empty_tensor_is_what_wrote_it() -> None:
    def into(x: Tensor) -> Tensor:
        y = torch.empty_like(x)
        torch.sin(x, out=y)
        return y

    found = bp.symmetries(settled(small.Through(into)), small.rows(H, D))
    assert found["up"].group == G.SignedPermutation(H)


def test_a_pattern_made_of_its_own_values_is_unknown() -> None:
    found = bp.symmetries(settled(small.Through(lambda x: x.T @ x)), small.rows(H, D))
    assert found["up"].group == G.Unknown(H)
    assert "matmul" in found["up"].because


def test_a_stream_of_routed_experts_changes_with_all_that_reads_it() -> None:
    found = bp.symmetries(settled(small.TopK()), ROWS)
    for site in ("embed", "experts.0", "experts.3", "head:in"):
        assert found[site].group == G.GeneralLinear(5), found[site]
        assert found[site].certificate is not None and found[site].certificate.holds
    assert found["router"].group == G.Permutation(4)


def test_copies_of_a_single_head_are_told_from_positions() -> None:
    model = small.Transformer(nn.RMSNorm, blocks=1)
    model.blocks[0].attn = small.Attention(3, 1, 3, "expand")
    found = bp.symmetries(settled(model), IDS)
    assert found["blocks.0.attn.v"].group == G.Blocks(G.GeneralLinear(3), 1)
    assert found["blocks.0.attn.z"].group == G.Blocks(G.GeneralLinear(3), 1, 3)
    assert found["blocks.0.mid"].group == G.Orthogonal(D)


def test_heads_that_are_read_one_by_one_are_unknown() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.each, self.down = nn.Linear(D, H), nn.Linear(4, 4), nn.Linear(H, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.down(self.each(self.up(x).view(-1, 2, 4)).reshape(-1, H))

    assert bp.symmetries(settled(Shared()), ROWS)["up"].group == G.Unknown(H)


def test_a_linear_map_across_positions_is_no_reader_of_features() -> None:
    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.tokens = nn.Linear(D, H), nn.Linear(5, 5)
            self.head = nn.Linear(H, 3)

        def forward(self, x: Tensor) -> Tensor:
            mixed = F.gelu(self.tokens(self.embed(x).transpose(1, 2)))
            return self.head(mixed.transpose(1, 2))

    found = bp.symmetries(settled(Mixer()), small.rows(3, 5, D))
    assert found["embed"].group == G.Unknown(H)
    assert "across positions" in found["embed"].because


def test_tokens_flattened_in_front_of_their_features_are_unknown() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Linear(D, 4), nn.Linear(20, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.embed(x).flatten(1))

    found = bp.symmetries(settled(Flat()), small.rows(3, 5, D))
    assert found["head:in"].group.name == "unknown"
    assert found["embed"].group.name == "unknown"


def test_groups_of_channels_that_mix_keep_to_themselves_where_axes_are_kept_apart() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1, groups=2), nn.ReLU(), nn.Conv2d(6, 2, 1)
    )
    found = bp.symmetries(settled(model), IMAGES)
    assert found["0"].group == G.Unknown(6)
    assert found["1"].group == G.DirectSum((G.PositiveMonomial(3),) * 2)


def test_a_fused_projection_is_read_part_by_part() -> None:
    found = bp.symmetries(settled(small.FusedGate()), ROWS)
    assert found["both"].group == G.DirectSum((PER, ANY), order="shared")
    assert "feature by feature" in found["both"].because
    assert found["silu()"].group == PER
    assert found["down:in"].group == ANY
    model = settled(small.FusedGate())

    def absorb(changed: nn.Module, a: Tensor) -> None:
        p = order(a)
        write(changed.both, torch.block_diag(p, a))
        read(changed.down, a)

    a = ANY.sample(torch.Generator().manual_seed(0))
    assert moved(model, ROWS, absorb, a)[0] <= 1e-9


@pytest.mark.parametrize("second", [slice(2, 8), slice(0, 8, 3)])
def test_parts_that_overlap_are_unknown(second: slice) -> None:
    both = lambda x: torch.cat([x[:, :4].relu(), x[:, second].tanh()], -1)  # noqa: E731
    width = 4 + len(range(H)[second])
    found = bp.symmetries(settled(small.Through(both, read=width)), ROWS)
    assert found["relu()"].group == G.Unknown(4)


# --- weights that are used twice ------------------------------------------------------------------


def test_a_block_that_runs_twice_on_one_stream_changes_the_same_way_both_times() -> None:
    model = settled(small.Twice())
    found = bp.symmetries(model, ROWS)
    assert found["mlp"].group == found["mlp:2"].group == G.GeneralLinear(5)
    assert found["mlp.up"].group == found["mlp.up:2"].group == SIG

    def absorb(changed: nn.Module, a: Tensor) -> None:
        write(changed.mlp.up, a)
        read(changed.mlp.down, a)

    a = SIG.sample(torch.Generator().manual_seed(0))
    assert moved(model, ROWS, absorb, a)[0] <= 1e-9


def test_a_map_that_reads_the_input_and_what_it_wrote_is_unknown() -> None:
    model = settled(small.Recurrent())
    found = bp.symmetries(model, ROWS)
    assert found["relu()"].group == G.Unknown(D)
    assert "used in several places" in found["relu()"].because

    def absorb(changed: nn.Module, a: Tensor) -> None:
        write(changed.again, a)
        read(changed.last, a)

    a = G.PositiveMonomial(D).sample(torch.Generator().manual_seed(0))
    assert moved(model, ROWS, absorb, a)[0] > 1e-3


def test_gains_of_what_is_written_to_a_stream_fold_into_the_linear_map_before_them() -> None:
    class Scaled(nn.Module):
        """Layer scale, and biases that are added by hand."""

        def __init__(self) -> None:
            super().__init__()
            self.embed, self.f = nn.Embedding(small.V, D), nn.Linear(D, D)
            self.gain, self.bias = nn.Parameter(torch.rand(D)), nn.Parameter(torch.randn(D))
            self.w, self.norm = nn.Parameter(torch.randn(D, D)), small.made(nn.RMSNorm)
            self.mid, self.head = nn.Identity(), nn.Linear(D, 3)

        def forward(self, ids: Tensor) -> Tensor:
            x = self.embed(ids)
            x = self.mid(x + self.gain * self.f(x))
            return self.head(self.norm(x + (x @ self.w + self.bias)))

    model = settled(Scaled())
    found = bp.symmetries(model, IDS)
    assert found["mid"].group == G.Orthogonal(D)
    assert found["f"].group == G.Unknown(D)

    def absorb(changed: nn.Module, a: Tensor) -> None:
        write(changed.embed, a)
        write(changed.f, a @ torch.diag(changed.gain.data))
        read(changed.f, a)
        changed.gain.data = torch.ones_like(changed.gain)
        changed.w.data = a @ changed.w @ a.T
        changed.bias.data = a @ changed.bias
        folded(changed.norm, changed.head)
        read(changed.head, a)

    assert moved(model, IDS, absorb, rotation(D))[0] <= 1e-9
    assert moved(model, IDS, absorb, stretched(D))[0] > 1e-3


def test_a_matrix_and_its_transpose_leave_a_rectified_code_its_order_only() -> None:
    class Code(small.TiedAutoencoder):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(F.relu(self.down(x)), self.down.weight.T)

    model = settled(Code())
    assert bp.symmetries(model, ROWS)["relu()"].group == G.Permutation(4)
    a = G.Permutation(4).sample(torch.Generator().manual_seed(1))
    assert moved(model, ROWS, tied_code, a)[0] <= 1e-9
    assert moved(model, ROWS, tied_code, stretched(4))[0] > 1e-3


# --- models of other libraries --------------------------------------------------------------------


NO, LINE, SIGNED, ORDER = (
    G.Orthogonal,
    G.LineStabiliser,
    G.SignedPermutation,
    G.Permutation,
)


def native(**given: object) -> nn.Module:
    from transformer_lens import TransformerBridge, TransformerBridgeConfig

    plain = {"d_model": 16, "d_head": 4, "n_heads": 4, "n_layers": 2, "n_ctx": 16, "d_vocab": 11}
    return TransformerBridge.boot_native(
        TransformerBridgeConfig(**{**plain, "d_mlp": 24, "seed": 0, **given})
    )


BRIDGES = {
    "GPT-2": ({"act_fn": "gelu_new", "normalization_type": "LN"}, LINE, ORDER, 1),
    "ReLU": ({"act_fn": "relu", "normalization_type": "LN"}, LINE, G.PositiveMonomial, 1),
    "Llama": (
        {"act_fn": "silu", "normalization_type": "RMS", "gated_mlp": True, "n_key_value_heads": 2,
         "positional_embedding_type": "rotary", "final_rms": True},
        NO, G.Monomial, 2,
    ),
    "no norm": ({"act_fn": "gelu", "normalization_type": None}, G.GeneralLinear, ORDER, 1),
    "SoLU": ({"act_fn": "solu", "normalization_type": "LN"}, LINE, ORDER, 1),
}  # fmt: skip


SELDOM = {"ReLU", "SoLU", "Falcon", "MPT", "OPT", "OpenAI-GPT", "Phi 3"}
"""Models like others in all that matters here."""


def often(names: dict[str, object]) -> list[object]:
    """The names as parameters, with a mark on those that are left to the slow tests."""
    return [
        pytest.param(name, marks=pytest.mark.slow) if name in SELDOM else name for name in names
    ]


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("name", often(BRIDGES))
@pytest.mark.filterwarnings("ignore")
def test_bridges_have_the_groups_of_their_architecture(name: str) -> None:
    given, stream, neurons, copies = BRIDGES[name]
    found = bp.symmetries(native(**given), IDS)
    for block in ("blocks.0", "blocks.1"):
        assert found[f"{block}.hook_resid_pre"].group == stream(16)
        assert found[f"{block}.mlp.hook_post"].group == neurons(24)
        assert found[f"{block}.attn.hook_z"].group == G.Blocks(
            G.GeneralLinear(4), 4 // copies, copies
        )


def hugging_face(name: str) -> nn.Module:
    import transformers as hf

    new = {"vocab_size": 11, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
    new |= {"intermediate_size": 24, "max_position_embeddings": 16}
    old = {"vocab_size": 11, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 16}
    grouped = {**new, "num_key_value_heads": 2}
    wide = {**grouped, "head_dim": 4}
    mpt = {"vocab_size": 11, "d_model": 16, "n_layers": 2, "n_heads": 4, "max_seq_len": 16}
    bloom = {"vocab_size": 11, "hidden_size": 16, "n_layer": 2, "n_head": 4}
    opt = {key: value for key, value in new.items() if key != "intermediate_size"}
    falcon = {key: value for key, value in opt.items() if key != "max_position_embeddings"}
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    built: dict[str, Callable[[], nn.Module]] = {
        "GPT-2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**old, **ends)),
        "OpenAI-GPT": lambda: hf.OpenAIGPTLMHeadModel(hf.OpenAIGPTConfig(**old)),
        "Llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**grouped)),
        "GPT-NeoX": lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**new, bos_token_id=0)),
        "BLOOM": lambda: hf.BloomForCausalLM(hf.BloomConfig(**bloom)),
        "Falcon": lambda: hf.FalconForCausalLM(hf.FalconConfig(**falcon, **ends)),
        "MPT": lambda: hf.MptForCausalLM(hf.MptConfig(**mpt)),
        "Gemma 2": lambda: hf.Gemma2ForCausalLM(hf.Gemma2Config(**wide)),
        "Qwen 3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**wide)),
        "OLMo 2": lambda: hf.Olmo2ForCausalLM(hf.Olmo2Config(**new, pad_token_id=0)),
        "OPT": lambda: hf.OPTForCausalLM(hf.OPTConfig(**opt, ffn_dim=24, word_embed_proj_dim=16)),
        "BERT": lambda: hf.BertForMaskedLM(hf.BertConfig(**new)),
        "Phi 3": lambda: hf.Phi3ForCausalLM(hf.Phi3Config(**new, pad_token_id=0)),
        "Mixtral": lambda: hf.MixtralForCausalLM(hf.MixtralConfig(**grouped, num_local_experts=4)),
    }  # fmt: skip
    torch.manual_seed(0)
    model = built[name]()
    for parameter in model.parameters():
        # Gains and biases of a new model are all alike, which no trained model's are.
        parameter.data += 0.3 * torch.rand_like(parameter)
    return model.eval()


INSIDE = G.GeneralLinear(4)
Z1, Z2 = G.Blocks(INSIDE, 4), G.Blocks(INSIDE, 2, 2)

# the stream's site and group; the neurons' site and group; the site and group of z
HUGGING_FACE = {
    "GPT-2": ("transformer.h.0", LINE(16), "transformer.h.0.mlp.act", ORDER(64),
              "transformer.h.0.attn.c_proj:in", Z1),
    "OpenAI-GPT": ("transformer.h.0", ORDER(16), "transformer.h.0.mlp.act", ORDER(64),
                   "transformer.h.0.attn.c_proj:in", Z1),
    "Llama": ("model.layers.0", NO(16), "model.layers.0.mlp.down_proj:in", G.Monomial(24),
              "model.layers.0.self_attn.o_proj:in", Z2),
    "GPT-NeoX": ("gpt_neox.layers.0", LINE(16), "gpt_neox.layers.0.mlp.act", ORDER(24),
                 "gpt_neox.layers.0.attention.dense:in", Z1),
    "BLOOM": ("transformer.h.0", ORDER(16), "transformer.h.0.mlp.gelu_impl", ORDER(64),
              "transformer.h.0.self_attention.dense:in", dataclasses.replace(Z1, order="kept")),
    "Falcon": ("transformer.h.0", LINE(16), "transformer.h.0.mlp.act", ORDER(64),
               "transformer.h.0.self_attention.dense:in", G.Blocks(INSIDE, 1, 4)),
    # Every head has a slope of its own in the bias of its scores, and keeps its place.
    "MPT": ("transformer.blocks.0", LINE(16), "transformer.blocks.0.ffn.act", ORDER(64),
            "transformer.blocks.0.attn.out_proj:in", dataclasses.replace(Z1, order="kept")),
    "Gemma 2": ("model.layers.0", SIGNED(16), "model.layers.0.mlp.down_proj:in", G.Monomial(24),
                "model.layers.0.self_attn.o_proj:in", Z2),
    "Qwen 3": ("model.layers.0", NO(16), "model.layers.0.mlp.down_proj:in", G.Monomial(24),
               "model.layers.0.self_attn.o_proj:in", Z2),
    "OLMo 2": ("model.layers.0", SIGNED(16), "model.layers.0.mlp.down_proj:in", G.Monomial(24),
               "model.layers.0.self_attn.o_proj:in", Z1),
    "OPT": ("model.decoder.layers.0", LINE(16), "model.decoder.layers.0.activation_fn",
            G.PositiveMonomial(24), "model.decoder.layers.0.self_attn.out_proj:in", Z1),
    "BERT": ("bert.encoder.layer.0", ORDER(16), "bert.encoder.layer.0.intermediate", ORDER(24),
             "bert.encoder.layer.0.attention.output.dense:in", Z1),
    "Phi 3": ("model.layers.0", NO(16), "model.layers.0.mlp.down_proj:in", G.Monomial(24),
              "model.layers.0.self_attn.o_proj:in", Z1),
    "Mixtral": ("model.layers.0", NO(16), "model.layers.0.mlp.experts.act_fn",
                G.Permutation(24), "model.layers.0.self_attn.o_proj:in", Z2),
}  # fmt: skip


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("name", often(HUGGING_FACE))
@pytest.mark.filterwarnings("ignore")
def test_hugging_face_models_have_the_groups_of_their_architecture(name: str) -> None:
    stream, of_stream, post, of_post, z, of_z = HUGGING_FACE[name]
    found = bp.symmetries(hugging_face(name), {"input_ids": IDS})
    for site, group in ((stream, of_stream), (post, of_post), (z, of_z)):
        assert found[site].group == group, (site, found[site].because)


def turned_llama(model: nn.Module, a: Tensor) -> None:
    """The residual stream of a Hugging Face Llama changes by a."""
    body = model.model
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.data.clone())
    write(body.embed_tokens, a)
    for layer in body.layers:
        attn, mlp = layer.self_attn, layer.mlp
        folded(layer.input_layernorm, attn.q_proj, attn.k_proj, attn.v_proj)
        folded(layer.post_attention_layernorm, mlp.gate_proj, mlp.up_proj)
        for reader in (attn.q_proj, attn.k_proj, attn.v_proj, mlp.gate_proj, mlp.up_proj):
            read(reader, a)
        for writer in (attn.o_proj, mlp.down_proj):
            write(writer, a)
    folded(body.norm, model.lm_head)
    read(model.lm_head, a)


@pytest.mark.filterwarnings("ignore")
def test_a_llama_absorbs_the_group_of_its_residual_stream() -> None:
    model = hugging_face("Llama").double()
    group = bp.symmetries(model, {"input_ids": IDS})["model.layers.0"].group
    a = group.sample(torch.Generator().manual_seed(0))
    changed = copy.deepcopy(model)
    turned_llama(changed, a)
    before, after = model(IDS).logits, changed(IDS).logits
    # Its norms compute in float32.
    assert float((before - after).abs().max() / before.abs().max()) <= 1e-5
    stretch = copy.deepcopy(model)
    turned_llama(stretch, stretched(16))
    assert float((before - stretch(IDS).logits).abs().max()) > 1e-2
