"""Small models whose symmetries are known by hand."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

D, H, V = 6, 8, 11
"""Width of streams, of hidden layers, and size of the vocabulary."""

NO_EPS = 1e-30
"""So small that a norm ignores the size of what it reads, and rotations pass it exactly."""


class MLP(nn.Module):
    """Two linear maps around a nonlinearity that is given as a module or called as a function."""

    def __init__(self, act: object, inner: int = H) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(D, inner), nn.Linear(inner, 3)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.up(x)))


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(D, H), nn.Linear(H, 3)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x)
        self.act(h)
        return self.down(h)


class Gated(nn.Module):
    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(D, H, bias=False), nn.Linear(D, H)
        self.down, self.act, self.product = nn.Linear(H, 3), act, nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.product(self.act(self.gate(x)) * self.up(x)))


class FusedGate(nn.Module):
    """Gate and up projection in one linear map, as Phi-3 has them."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.down = nn.Linear(D, 2 * H), nn.Linear(H, 3)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.both(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class RMSNorm(nn.Module):
    """As Hugging Face writes it, but in the precision it is given."""

    def __init__(self, dim: int, eps: float = NO_EPS) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.rand(dim) + 0.5), eps

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


class Attention(nn.Module):
    """Softmax attention; grouped queries by `repeat_interleave` or by `expand`."""

    def __init__(
        self,
        heads: int = 2,
        kv: int = 2,
        size: int = 3,
        how: str = "interleave",
        sdpa: bool = False,
    ) -> None:
        super().__init__()
        self.heads, self.kv, self.size, self.how, self.sdpa = heads, kv, size, how, sdpa
        self.q, self.k = nn.Linear(D, heads * size), nn.Linear(D, kv * size)
        self.v, self.o = nn.Linear(D, kv * size), nn.Linear(heads * size, D)
        self.z = nn.Identity()

    def apart(self, x: Tensor, count: int) -> Tensor:
        return x.view(*x.shape[:2], count, self.size).transpose(1, 2)

    def repeated(self, x: Tensor) -> Tensor:
        copies = self.heads // self.kv
        if copies == 1:
            return x
        if self.how == "interleave":
            return x.repeat_interleave(copies, dim=1)
        batch, kv, seq, size = x.shape
        spread = x[:, :, None, :, :].expand(batch, kv, copies, seq, size)
        return spread.reshape(batch, kv * copies, seq, size)

    def forward(self, x: Tensor) -> Tensor:
        q = self.apart(self.q(x), self.heads)
        k, v = (self.repeated(self.apart(m(x), self.kv)) for m in (self.k, self.v))
        if self.sdpa:
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            scores = q @ k.transpose(-1, -2) / math.sqrt(self.size)
            mixed = scores.softmax(-1) @ v
        z = mixed.transpose(1, 2).reshape(*x.shape[:2], self.heads * self.size)
        return self.o(self.z(z))


class Transformer(nn.Module):
    """A stack of blocks; `order` is where the norms are: "pre", "post", "sublayer" or "none"."""

    def __init__(
        self, norm: type[nn.Module] | None, order: str = "pre", *, tied: bool = False,
        learned: bool = False, blocks: int = 2,
    ) -> None:  # fmt: skip
        super().__init__()
        self.embed, self.order = nn.Embedding(V, D), order
        self.pos = nn.Parameter(torch.randn(5, D)) if learned else None
        self.blocks = nn.ModuleList(Block(norm, order) for _ in range(blocks))
        ends = norm is not None and order in ("pre", "sublayer")
        self.final = made(norm) if ends else nn.Identity()
        self.unembed = nn.Linear(D, V, bias=False)
        if tied:
            self.unembed.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        if self.pos is not None:
            x = x + self.pos[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.unembed(self.final(x))


def made(norm: type[nn.Module]) -> nn.Module:
    """A norm with generic gains and biases, whose epsilon is too small to matter."""
    found = norm(D, eps=NO_EPS)
    for parameter in found.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    return found


class Block(nn.Module):
    def __init__(self, norm: type[nn.Module] | None, order: str) -> None:
        super().__init__()
        self.order = order
        self.attn, self.mlp = (
            Attention(),
            nn.Sequential(nn.Linear(D, H), nn.GELU(), nn.Linear(H, D)),
        )
        self.mid = nn.Identity()
        if norm is not None:
            self.ln1, self.ln2 = made(norm), made(norm)

    def forward(self, x: Tensor) -> Tensor:
        if self.order == "pre":
            x = self.mid(x + self.attn(self.ln1(x)))
            return x + self.mlp(self.ln2(x))
        if self.order == "post":
            x = self.mid(self.ln1(x + self.attn(x)))
            return self.ln2(x + self.mlp(x))
        if self.order == "sublayer":
            x = self.mid(x + self.ln1(self.attn(x)))
            return x + self.ln2(self.mlp(x))
        x = self.mid(x + self.attn(x))
        return x + self.mlp(x)


class Linears(nn.Module):
    """A deep linear network."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(D, H), nn.Linear(H, 7, bias=False), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x)))


# --- images -------------------------------------------------------------------------------------


class Stage(nn.Module):
    """A residual stage in the way of ResNet20: batch norm, functional ReLU, sum below a ReLU."""

    def __init__(self, act: object = F.relu) -> None:
        super().__init__()
        self.stem, self.norm0 = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv1, self.norm1 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.norm2 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.head, self.act = nn.Linear(4, 3), act
        settle(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm0(self.stem(x)))
        y = F.relu(self.norm1(self.conv1(x)))
        x = F.relu(self.norm2(self.conv2(y)) + x)
        return self.head(x.mean((2, 3)))


class Padded(nn.Module):
    """Two stages joined by an option-A shortcut: every other pixel, channels of zeros around."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm0 = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv1, self.norm1 = nn.Conv2d(4, 8, 3, 2, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 3)
        settle(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm0(self.stem(x)))
        short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2), "constant", 0)
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        x = F.relu(y + short)
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Fire(nn.Module):
    """SqueezeNet's module: one squeeze, two expands side by side, max pooling, and a second one."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze1, self.left1 = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 4, 1)
        self.right1 = nn.Conv2d(3, 5, 3, padding=1)
        self.joined, self.pool = nn.Identity(), nn.MaxPool2d(2)
        self.last = nn.Conv2d(9, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze1(x))
        x = self.joined(torch.cat([F.relu(self.left1(x)), F.relu(self.right1(x))], 1))
        return self.last(self.pool(x)).mean((2, 3))


class Depthwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide, self.deep = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.narrow, self.head = nn.Conv2d(6, 4, 1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.narrow(F.relu(self.deep(self.wide(x)))).mean((2, 3)))


class Flattened(nn.Module):
    """Convolutions, then a linear map that reads all pixels of all channels."""

    def __init__(self, pool: nn.Module | None = None) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU()
        self.pool = pool or nn.Identity()
        side = 4 if pool is None else 2
        self.dense, self.head = nn.Linear(4 * side * side, H), nn.Linear(H, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.act(self.conv(x)))
        return self.head(torch.sigmoid(self.dense(x.flatten(1))))


class Dilated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2))
        self.norm, self.b = nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3, padding="valid")
        self.head = nn.Linear(5, 3)
        settle(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.gelu(self.b(F.silu(self.norm(self.a(x))))).mean((2, 3)))


def settle(model: nn.Module) -> None:
    """Gives batch norms statistics and gains as training would: generic, and positive gains."""
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            for tensor in (part.weight.data, part.running_var, part.bias.data, part.running_mean):
                tensor.uniform_(0.5, 1.5)


# --- what is used twice, and what is not understood -----------------------------------------------


class Twice(nn.Module):
    """One module called twice on one stream, which nothing fixed is tied to."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.mlp, self.last = nn.Linear(D, 5), MLPBlock(), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = x + self.mlp(x)
        x = x + self.mlp(x)
        return self.last(x)


class MLPBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(5, H), nn.Linear(H, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.tanh(self.up(x)))


class Recurrent(nn.Module):
    """A linear map that reads what it wrote itself, and the model's input before."""

    def __init__(self) -> None:
        super().__init__()
        self.again, self.last = nn.Linear(D, D), nn.Linear(D, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.again(torch.relu(self.again(x)))))


class TiedAutoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Linear(D, 4, bias=False)
        self.hidden = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.hidden(self.down(x)), self.down.weight.t())


class Hyper(nn.Module):
    """Weights that are computed from the input."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.make, self.down = nn.Linear(D, 4), nn.Linear(D, 16), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.make(x).mean(0).view(4, 4)
        return self.down(F.linear(self.up(x), weight))


class Recurrence(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm = nn.Linear(D, 5), nn.LSTM(5, 4, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(self.embed(x))[0])


class Through(nn.Module):
    """Any function of a hidden layer between two linear maps."""

    def __init__(self, function: object, width: int = H, read: int | None = None) -> None:
        super().__init__()
        self.up, self.seen = nn.Linear(D, width), nn.Identity()
        self.function, self.down = function, nn.Linear(read or width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.seen(self.function(self.up(x))))


class TopK(nn.Module):
    """Two of four experts, chosen by the features themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.router = nn.Linear(D, 5), nn.Linear(5, 4)
        self.experts = nn.ModuleList(nn.Linear(5, 5) for _ in range(4))
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        weights, chosen = self.router(x).softmax(-1).topk(2, dim=-1)
        y = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            rows, place = torch.where(chosen == number)
            y.index_add_(0, rows, expert(x[rows]) * weights[rows, place, None])
        return self.head(x + y)


class Wrapped(nn.Module):
    """Returns the output of the model inside in a dict, a tuple and a list."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> dict[str, object]:
        y = self.inner(x)
        return {"y": (y, [y + 1])}


def rows(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def ids() -> Tensor:
    return torch.tensor([[1, 5, 2, 9, 3], [4, 4, 10, 0, 7], [8, 6, 1, 2, 0]])


def images() -> Tensor:
    return rows(3, 3, 8, 8)


ZOO: dict[str, tuple[object, Tensor]] = {
    "relu": (lambda: MLP(nn.ReLU()), rows(10, D)),
    "functional relu": (lambda: MLP(F.relu), rows(10, D)),
    "gelu by hand": (lambda: MLP(lambda x: 0.5 * x * (1 + torch.erf(x / 2**0.5))), rows(10, D)),
    "relu in place": (InPlace, rows(10, D)),
    "method in place": (lambda: MLP(lambda x: x.sin_()), rows(10, D)),
    "softmax": (lambda: MLP(lambda x: x.softmax(-1)), rows(10, D)),
    "gated": (lambda: Gated(nn.SiLU()), rows(10, D)),
    "fused gate": (FusedGate, rows(10, D)),
    "linear chain": (Linears, rows(10, D)),
    "pre-norm RMS": (lambda: Transformer(nn.RMSNorm, learned=True), ids()),
    "pre-norm RMS by hand": (lambda: Transformer(RMSNorm), ids()),
    "pre-norm LayerNorm": (lambda: Transformer(nn.LayerNorm), ids()),
    "post-norm": (lambda: Transformer(nn.LayerNorm, "post"), ids()),
    "sublayer norm": (lambda: Transformer(nn.RMSNorm, "sublayer"), ids()),
    "stage": (Stage, images()),
    "padded stage": (Padded, images()),
    "fire": (Fire, images()),
    "depthwise": (Depthwise, images()),
    "flattened": (Flattened, images()),
    "max pooled, flattened": (lambda: Flattened(nn.MaxPool2d(2)), images()),
    "dilated": (Dilated, images()),
    "twice": (Twice, rows(10, D)),
    "recurrent": (Recurrent, rows(10, D)),
    "tied": (TiedAutoencoder, rows(10, D)),
    "lstm": (Recurrence, rows(2, 5, D)),
    "experts": (TopK, rows(10, D)),
    "wrapped": (lambda: Wrapped(MLP(F.relu)), rows(10, D)),
    "hyper": (Hyper, rows(10, D)),
}
"""One model of every kind that is probed here, and what it is called with."""


def built(name: str) -> tuple[nn.Module, Tensor]:
    """A model of the zoo in float64 and evaluation mode, with generic weights, and its input."""
    build, x = ZOO[name]
    torch.manual_seed(0)
    model = build().double()
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("bias"):
            nn.init.normal_(parameter)
    return model.eval(), x
