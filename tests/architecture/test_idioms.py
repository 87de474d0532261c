"""The same small networks in the ways in which people write them: the same groups, with proofs."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from written import Written, drawn

import basis_probe as bp
from basis_probe import groups as G
from basis_probe.model.products import written_out
from tests.draws import seeded

D, H, SIZE, VOCAB = 8, 2, 4, 11


def weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(*shape))


def settled(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    return model.double().eval()


def require(model: nn.Module, x: Tensor, right: dict[str, G.Group], other: Tensor) -> None:
    """The groups are these, they are proved, and their elements act on other inputs too."""
    found = bp.symmetries(model, x)
    assert {site: found[site].group for site in right} == right
    for site in right:
        proof = found[site].certificate
        assert proof is not None and proof.holds, site
        element = found[site].group.sample(torch.Generator().manual_seed(1))
        twin = bp.reparametrize(model, site, element, example_input=x)
        torch.testing.assert_close(twin(other), model(other), rtol=1e-9, atol=1e-9)


def rows(*shape: int, seed: int = 1) -> Tensor:
    return drawn(*shape, seed=seed)


# --- linear maps ----------------------------------------------------------------------------------

MAPS: dict[str, tuple[Callable[..., Tensor], dict[str, nn.Parameter]]] = {
    "x @ W + b": (lambda s, x: x @ s.w + s.c, {"w": weight(D, 12), "c": weight(12)}),
    "addmm": (lambda s, x: torch.addmm(s.c, x, s.w), {"w": weight(D, 12), "c": weight(12)}),
    "addmm with factors": (
        lambda s, x: torch.addmm(s.c, x, s.w, beta=0.5, alpha=2.0),
        {"w": weight(D, 12), "c": weight(12)},
    ),
    "addmm in place": (
        lambda s, x: s.c.expand(len(x), -1).clone().addmm_(x, s.w),
        {"w": weight(D, 12), "c": weight(12)},
    ),
    "addmm in place with factors": (
        lambda s, x: s.c.expand(len(x), -1).clone().addmm_(x, s.w, beta=-0.5, alpha=2.0),
        {"w": weight(D, 12), "c": weight(12)},
    ),
    "baddbmm": (
        lambda s, x: torch.baddbmm(s.c, x[:, None], s.w.expand(len(x), -1, -1))[:, 0],
        {"w": weight(D, 12), "c": weight(12)},
    ),
    "baddbmm with factors": (
        lambda s, x: torch.baddbmm(s.c, x[None], s.w[None], beta=0.5, alpha=-3.0)[0],
        {"w": weight(D, 12), "c": weight(12)},
    ),
    "chain_matmul": (lambda s, x: torch.chain_matmul(x, s.w), {"w": weight(D, 12)}),
    "W x^T": (lambda s, x: torch.mm(s.w, x.T).T + s.c, {"w": weight(12, D), "c": weight(12)}),
    "half": (lambda s, x: (x @ s.w) * 0.5 + s.c, {"w": weight(D, 12), "c": weight(12)}),
    "tensordot": (lambda s, x: torch.tensordot(x, s.w, 1), {"w": weight(D, 12)}),
    "tensordot of axes": (
        lambda s, x: torch.tensordot(x, s.w, dims=([-1], [1])), {"w": weight(12, D)},
    ),
    "inner": (lambda s, x: torch.inner(x, s.w), {"w": weight(12, D)}),
    "einsum": (lambda s, x: torch.einsum("bd,dm->bm", x, s.w), {"w": weight(D, 12)}),
    "einsum, weight first": (
        lambda s, x: torch.einsum("md,bd->bm", s.w, x), {"w": weight(12, D)},
    ),
    "einsum of lists": (
        lambda s, x: torch.einsum(x, [0, 1], s.w, [1, 2], [0, 2]), {"w": weight(D, 12)},
    ),
    "einsum without an arrow": (
        lambda s, x: torch.einsum("bd,dm", x, s.w), {"w": weight(D, 12)},
    ),
    "multi_dot": (
        lambda s, x: torch.linalg.multi_dot([x, s.w, s.u]),
        {"w": weight(D, 5), "u": weight(5, 12)},
    ),
    "mT": (lambda s, x: x @ s.w.mT + s.c, {"w": weight(12, D), "c": weight(12)}),
}  # fmt: skip


@pytest.mark.sample(default=4)
@pytest.mark.parametrize("name", MAPS)
def test_a_linear_map_is_one_however_it_is_written(name: str) -> None:
    forward, parts = MAPS[name]
    model = Written(
        lambda s, x: s.o(s.h(torch.relu(forward(s, s.i(x))))),
        i=nn.Linear(6, D), h=nn.Identity(), o=nn.Linear(12, 3), **parts,
    )  # fmt: skip
    right = {"i": G.GeneralLinear(D), "h": G.PositiveMonomial(12)}
    require(settled(model), rows(4, 6), right, rows(7, 6, seed=2))


@pytest.mark.slow
def test_neurons_have_the_same_null_however_their_layer_is_written() -> None:
    matrix, x = rows(D, 12, seed=3), rows(200, 6)

    def scores(forward: Callable[..., Tensor]) -> dict[str, float]:
        model = settled(
            Written(
                lambda s, x: s.o(s.h(torch.relu(forward(s.w, s.i(x))))),
                i=nn.Linear(6, D),
                h=nn.Identity(),
                o=nn.Linear(12, 3),
                w=weight(D, 12),
            )
        )
        model.w.data = matrix
        report = bp.probe(model, [x], sites=["h"], certificates=False, progress=False)
        assert report["h"].null.name == "counterfactual"
        return {name: score.effect for name, score in report["h"].scores.items()}

    plain = scores(lambda w, x: x @ w)
    assert scores(lambda w, x: torch.tensordot(x, w, 1)) == pytest.approx(plain)
    assert scores(lambda w, x: torch.einsum("dm,bd->bm", w, x)) == pytest.approx(plain)


@pytest.mark.parametrize("proofs", [True, False])
def test_a_part_that_is_joined_to_itself_is_not_two(proofs: bool) -> None:
    def forward(s: nn.Module, x: Tensor) -> Tensor:
        h = s.a(x)
        both = torch.cat([torch.relu(h[:, :4]), h[:, :4]], -1)
        return s.o(s.p(torch.tanh(both))) + s.u(h[:, 4:])

    model = Written(
        forward, a=nn.Linear(6, D), p=nn.Identity(), o=nn.Linear(D, 3), u=nn.Linear(4, 3)
    )
    found = bp.symmetries(settled(model), rows(4, 6), certificates=proofs)["p"]
    assert found.group == G.Unknown(D)
    assert "joins features that change places together" in found.because


# --- embeddings -----------------------------------------------------------------------------------

TABLES: dict[str, tuple[Callable[..., Tensor], dict[str, nn.Parameter | nn.Module]]] = {
    "W[t]": (lambda s, t: s.w[t], {"w": weight(VOCAB, D)}),
    "W[:, t]": (lambda s, t: s.w[:, t].permute(1, 2, 0), {"w": weight(D, VOCAB)}),
    "embedding": (lambda s, t: F.embedding(t, s.w), {"w": weight(VOCAB, D)}),
    "one hot": (
        lambda s, t: F.one_hot(t, VOCAB).to(s.w.dtype) @ s.w, {"w": weight(VOCAB, D)},
    ),
    "index_select": (
        lambda s, t: s.w.index_select(0, t.flatten()).view(*t.shape, -1), {"w": weight(VOCAB, D)},
    ),
    "positions": (
        lambda s, t: s.w[t] + s.p[: t.shape[1]], {"w": weight(VOCAB, D), "p": weight(9, D)},
    ),
    "positions by number": (
        lambda s, t: s.w[t] + s.p(torch.arange(t.shape[1])[None]),
        {"w": weight(VOCAB, D), "p": nn.Embedding(9, D)},
    ),
}  # fmt: skip


@pytest.mark.sample(default=4)
@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("twice", [False, True])
def test_a_table_is_an_embedding_however_it_is_read(name: str, twice: bool) -> None:
    forward, parts = TABLES[name]

    def run(s: nn.Module, t: Tensor) -> Tensor:
        h = s.i(forward(s, t))
        branch = s.m(forward(s, t) if twice else h)
        return s.o(s.n(h + s.b(F.gelu(s.a(branch)))))

    model = Written(
        run, i=nn.Identity(), n=nn.RMSNorm(D), m=nn.RMSNorm(D), a=nn.Linear(D, 12),
        b=nn.Linear(12, D), o=nn.Linear(D, 3), **parts,
    )  # fmt: skip
    tokens = torch.randint(VOCAB, (3, 5), generator=torch.Generator().manual_seed(0))
    right: dict[str, G.Group] = {"i": G.Orthogonal(D), "o:in": G.Monomial(D)}
    require(settled(model), tokens, right, (tokens + 3) % VOCAB)


def test_a_matrix_that_is_a_table_of_tokens_keeps_their_order() -> None:
    model = settled(
        Written(lambda s, t: s.o(s.w[t] @ s.w.T), w=weight(VOCAB, D), o=nn.Linear(VOCAB, 3))
    )
    tokens = torch.arange(6).reshape(2, 3)
    for proofs in (True, False):
        found = bp.symmetries(model, tokens, certificates=proofs)["o:in"]
        assert found.group == G.Unknown(VOCAB)
        assert "rows of a table from which tokens pick" in found.because


def test_the_output_of_a_norm_that_serves_twice_keeps_its_scale() -> None:
    def forward(s: nn.Module, x: Tensor) -> Tensor:
        h = s.n(torch.relu(s.a(x)))
        return s.o(s.n(torch.relu(s.b(h)) + s.p(h)))

    model = Written(
        forward, a=nn.Linear(6, D), b=nn.Linear(D, D), p=nn.Identity(), n=nn.LayerNorm(D),
        o=nn.Linear(D, 3),
    )  # fmt: skip
    for proofs in (True, False):
        found = bp.symmetries(settled(model), rows(4, 6), certificates=proofs)["o:in"]
        assert found.group == G.Permutation(D), found


# --- attention ------------------------------------------------------------------------------------


def rms(x: Tensor) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + 0.1).rsqrt()


def pattern(scores: Tensor) -> Tensor:
    later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return (scores / math.sqrt(SIZE)).masked_fill(later, -1e9).softmax(-1)


def by_heads(s: nn.Module, h: Tensor) -> Tensor:
    q, k, v = (
        m(torch.einsum("bpd,hde->bphe", rms(h), w))
        for m, w in ((s.q, s.wq), (s.k, s.wk), (s.v, s.wv))
    )
    a = pattern(torch.einsum("bqhe,bkhe->bhqk", q, k))
    z = s.z(torch.einsum("bhqk,bkhe->bqhe", a, v))
    return h + torch.einsum("bqhe,hed->bqd", z, s.wo)


def by_results(s: nn.Module, h: Tensor) -> Tensor:
    q, k, v = (
        m(torch.einsum("hde,bpd->bhpe", w, rms(h)))
        for m, w in ((s.q, s.wq), (s.k, s.wk), (s.v, s.wv))
    )
    z = s.z(pattern(q @ k.mT) @ v)
    return h + torch.einsum("bhqe,hed->bqd", z, s.wo)


def by_rows(s: nn.Module, h: Tensor) -> Tensor:
    q, k, v = (
        m(torch.einsum("ihd,bpd->biph", w.transpose(1, 2), rms(h)))
        for m, w in ((s.q, s.wq), (s.k, s.wk), (s.v, s.wv))
    )
    a = pattern(torch.einsum("biph,biqh->biqp", k, q))
    z = s.z(torch.einsum("biph,biqp->biqh", v, a))
    return h + torch.einsum("df,bqf->bqd", s.wo.flatten(0, 1).T, z.permute(0, 2, 1, 3).flatten(2))


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("forward", [by_heads, by_results, by_rows])
def test_attention_is_what_it_is_however_it_is_written(forward: Callable[..., Tensor]) -> None:
    model = Written(
        lambda s, x: s.u(rms(forward(s, s.e(x)))),
        e=nn.Linear(5, D), q=nn.Identity(), k=nn.Identity(), v=nn.Identity(), z=nn.Identity(),
        u=nn.Linear(D, 3), wq=weight(H, D, SIZE), wk=weight(H, D, SIZE), wv=weight(H, D, SIZE),
        wo=weight(H, SIZE, D),
    )  # fmt: skip
    heads = G.Blocks(G.GeneralLinear(SIZE), H)
    right = {"e": G.Orthogonal(D), **dict.fromkeys("qkvz", heads)}
    require(settled(model), rows(2, 6, 5), right, rows(3, 9, 5, seed=2))


class Fused(nn.Module):
    """Attention whose queries, keys and values one map writes side by side."""

    def __init__(self, cut: Callable[[Tensor], tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.cut = cut
        self.c, self.p = nn.Linear(D, 3 * D), nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (H, SIZE)).transpose(1, 2) for t in self.cut(self.c(x)))
        return self.p((pattern(q @ k.mT) @ v).transpose(1, 2).flatten(2))


CUTS: dict[str, Callable[[Tensor], tuple[Tensor, ...]]] = {
    "split": lambda t: t.split(D, -1),
    "chunk": lambda t: t.chunk(3, dim=-1),
    "slices": lambda t: (t[..., :D], t[..., D : 2 * D], t[..., 2 * D :]),
    "narrow": lambda t: tuple(t.narrow(-1, D * i, D) for i in range(3)),
    "unbind": lambda t: t.unflatten(-1, (3, D)).unbind(-2),
}


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("name", CUTS)
def test_parts_of_one_projection_are_sites(name: str) -> None:
    model = settled(
        Written(
            lambda s, x: s.u(rms(s.e(x) + s.m(rms(s.e(x))))),
            e=nn.Linear(5, D),
            m=Fused(CUTS[name]),
            u=nn.Linear(D, 3),
        )
    )
    x, heads = rows(2, 6, 5), G.Blocks(G.GeneralLinear(SIZE), H)
    require(model, x, {f"m.{part}": heads for part in "qkv"}, rows(3, 9, 5, seed=2))
    seen = bp.observe(model, [x], sites=["m.q", "m.k", "m.v", "m.c"], progress=False).seen
    whole = seen["m.c"].moments.mean
    for number, part in enumerate("qkv"):
        own = whole[number * D : (number + 1) * D]
        torch.testing.assert_close(seen[f"m.{part}"].moments.mean, own)


# --- the calls themselves -------------------------------------------------------------------------

EQUATIONS = {
    "bpd,hde->bphe": ((2, 3, 4), (5, 4, 6)),
    "bqhe,bkhe->bhqk": ((2, 3, 5, 4), (2, 7, 5, 4)),
    "bhqk,bkhe->bqhe": ((2, 5, 3, 7), (2, 7, 5, 4)),
    "biph,biqp->biqh": ((2, 5, 7, 4), (2, 5, 3, 7)),
    "btd,d->bt": ((2, 3, 4), (4,)),
    "bdt,d->bt": ((2, 4, 3), (4,)),
    "bqhe,hed->bqd": ((2, 3, 5, 4), (5, 4, 6)),
    "bqhe,hed->bqhd": ((2, 3, 5, 4), (5, 4, 6)),
    "...qk,...kd->...qd": ((2, 5, 3, 7), (2, 5, 7, 4)),
    "b i d, b j d -> b i j": ((2, 3, 4), (2, 5, 4)),
    "ij,jk": ((3, 4), (4, 5)),
}


@pytest.mark.parametrize("equation", EQUATIONS)
def test_an_einsum_written_out_is_the_same(equation: str) -> None:
    one, two = (rows(*shape, seed=n) for n, shape in enumerate(EQUATIONS[equation]))
    steps = written_out(torch.einsum, (equation, one, two), {})
    assert steps is not None
    torch.testing.assert_close(steps(), torch.einsum(equation, one, two))


@pytest.mark.parametrize("equation", ["dbp -> bpd", "abc->ca", "ab->b", "abcd->dcba"])
def test_an_einsum_of_one_tensor_is_its_axes_in_another_order(equation: str) -> None:
    one = rows(*range(2, 2 + len(equation.partition("->")[0].strip())))
    steps = written_out(torch.einsum, (equation, one), {})
    assert steps is not None
    torch.testing.assert_close(steps(), torch.einsum(equation, one))


@pytest.mark.parametrize(
    "equation", ["i,j->ij", "ii->i", "ij,ij->ij", "ij,jk,kl->il", "ij,kj->i", "ab,ab->", "no"]
)
def test_other_forms_are_left_alone(equation: str) -> None:
    count = equation.count(",") + 1
    shapes = [(3,) * len(x) for x in equation.partition("->")[0].split(",")]
    assert written_out(torch.einsum, (equation, *(rows(*s) for s in shapes[:count])), {}) is None


# --- products with one vector -------------------------------------------------------------------

VECTORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "matmul": lambda h, q: h @ q,
    "a matrix of one column": lambda h, q: (h @ q[:, None])[..., 0],
    "mv": lambda h, q: torch.mv(h.flatten(0, 1), q).view(h.shape[:2]),
    "einsum": lambda h, q: torch.einsum("btd,d->bt", h, q),
    "einsum, the vector first": lambda h, q: torch.einsum("d,...d->...", q, h),
    "linear": lambda h, q: F.linear(h, q[None])[..., 0],
}


@pytest.mark.parametrize("bent", [False, True])
@pytest.mark.parametrize("name", VECTORS)
def test_pooling_by_a_learned_query_leaves_the_group_as_it_is(name: str, bent: bool) -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 5)
            self.q = nn.Parameter(torch.randn(8, generator=seeded(4)))

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x).relu() if bent else self.a(x)
            weights = VECTORS[name](h, self.q).softmax(1)
            return self.b((weights[..., None] * h).sum(1))

    model = Pooled().double()
    x, longer = (torch.randn(3, n, 6, generator=seeded(n)).double() for n in (4, 9))
    found = bp.symmetries(model, x)["a"]
    assert type(found.group) is (G.PositiveMonomial if bent else G.GeneralLinear)
    assert found.certificate is not None and found.certificate.holds
    element = found.group.sample(seeded(1))
    other = bp.reparametrize(model, "a", element, example_input=x)
    torch.testing.assert_close(other(longer), model(longer))
