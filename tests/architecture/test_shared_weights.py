"""Weights that serve in several places bind what they act on: together, or not at all."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from written import Written, drawn, moved

import basis_probe as bp
from basis_probe import groups as G

D, H = 6, 8


def linear(*sizes: int) -> nn.Linear:
    return nn.Linear(*sizes)


def tower(norm: nn.Module) -> nn.Sequential:
    return nn.Sequential(linear(9, H), norm, nn.ReLU(), linear(H, D))


def two_streams(norm: nn.Module) -> nn.Module:
    """One norm for two streams, each with a map of its own behind it."""
    parts = {"e": linear(9, H), "f": linear(9, H), "o": linear(H, 3), "p": linear(H, 3)}
    return Written(lambda s, x: s.o(s.n(s.e(x))) + s.p(s.n(s.f(x))), n=norm, **parts)


def one_tower_twice(norm: nn.Module) -> nn.Module:
    return Written(
        lambda s, x: s.o((s.t(x[:, :9]) - s.t(x[:, 9:])).abs()), t=tower(norm), o=linear(D, 2)
    )


def shifted(h: Tensor) -> Tensor:
    return F.pad(h, (0, 0, 1, -1))


def mixed(s: Written, x: Tensor) -> Tensor:
    """Each feature of a token, and of the one before it, by g and by 1 - g."""
    h = s.e(x)
    return s.o(F.gelu(s.a(h * s.g + shifted(h) * (1 - s.g))))


def interpolated(s: Written, x: Tensor) -> Tensor:
    h = s.e(x)
    return s.o(F.gelu(s.a(torch.lerp(h, shifted(h), 0.3))))


BOUND = {
    "a norm": (two_streams(nn.RMSNorm(H)), drawn(5, 9), "e", G.Orthogonal(H)),
    "batch normalisation": (two_streams(nn.BatchNorm1d(H)), drawn(5, 9), "f", G.Monomial(H)),
    "batch normalisation of two that meet": (
        Written(
            lambda s, x: s.o(F.relu(s.n(s.e(x)) + s.n(s.f(x)))),
            n=nn.BatchNorm1d(H), e=linear(9, H), f=linear(9, H), o=linear(H, 3),
        ),
        drawn(5, 9), "e", G.Monomial(H),
    ),
    "a tower": (one_tower_twice(nn.BatchNorm1d(H)), drawn(5, 18), "t.0", G.Monomial(H)),
    "a tower, later": (
        one_tower_twice(nn.BatchNorm1d(H)), drawn(5, 18), "t.2:2", G.PositiveMonomial(H),
    ),
    "its output": (one_tower_twice(nn.Identity()), drawn(5, 18), "t", G.Monomial(D)),
    "a gain and its rest": (
        Written(
            mixed, e=linear(9, D), a=linear(D, H), o=linear(H, 3), g=nn.Parameter(torch.rand(D)),
        ),
        drawn(4, 5, 9), "e", G.Monomial(D),
    ),
    "no gain": (
        Written(interpolated, e=linear(9, D), a=linear(D, H), o=linear(H, 3)),
        drawn(4, 5, 9), "e", G.GeneralLinear(D),
    ),
}  # fmt: skip


@pytest.mark.sample(default=5)
@pytest.mark.parametrize("name", BOUND)
def test_what_one_vector_acts_on_changes_together(name: str) -> None:
    model, x, site, group = BOUND[name]
    model = moved(model)
    claims = bp.symmetries(model, x, certificates=False)
    found = bp.symmetries(model, x)
    assert all(claims[key].group == claim.group for key, claim in found.items())
    assert found[site].group == group
    certificate = found[site].certificate
    assert certificate is not None and certificate.holds
    element = group.draw(torch.Generator().manual_seed(1)).matrix()
    twin = bp.reparametrize(model, site, element, example_input=x)
    other = drawn(*x.shape, seed=7)
    assert torch.allclose(twin(other), model(other), atol=1e-9)


@pytest.mark.parametrize("seed", [159, 336, 687])
def test_a_stranger_that_two_rows_cannot_show_is_drawn_again(seed: int) -> None:
    torch.manual_seed(seed)
    model = moved(
        Written(
            lambda s, x: s.o(F.relu(s.n(s.e(x)) + s.n(s.f(x)))),
            n=nn.BatchNorm1d(H), e=linear(9, H), f=linear(9, H), o=linear(H, 3),
        )
    )  # fmt: skip
    found = bp.symmetries(model, drawn(5, 9))
    assert all(claim.certificate is None or claim.certificate.holds for claim in found.values())
    assert found["relu()"].group == G.PositiveMonomial(H)


class Decoder(nn.Module):
    """A table of tokens that the model's own code reads again, as it is, behind a last norm."""

    def __init__(self, norm: type[nn.Module] | None) -> None:
        super().__init__()
        self.table, self.up, self.down = nn.Embedding(11, D), linear(D, H), linear(H, D)
        self.norm = nn.Identity() if norm is None else norm(D)

    def forward(self, t: Tensor) -> Tensor:
        h = self.table(t)
        h = h + self.down(F.gelu(self.up(h)))
        return F.linear(self.norm(h), self.table.weight)


@pytest.mark.parametrize(
    ("norm", "group"),
    [
        (nn.RMSNorm, G.SignedPermutation(D)),
        (nn.LayerNorm, G.Permutation(D)),
        (None, G.Orthogonal(D)),
    ],
)
def test_a_table_that_cannot_be_untied_keeps_what_its_transpose_does(
    norm: type[nn.Module] | None, group: bp.groups.Group
) -> None:
    model, t = moved(Decoder(norm)), torch.randint(0, 11, (3, 5))
    # Without the norms the map inside reads the stream as it is.
    for site in ("table", "down", "norm"):
        assert bp.symmetries(model, t, certificates=False)[site].group == group
        assert bp.certify(model, site, t).holds
        element = group.draw(torch.Generator().manual_seed(1)).matrix()
        twin = bp.reparametrize(model, site, element, example_input=t)
        assert torch.allclose(twin(t), model(t), atol=1e-9)
        assert twin.table.weight is not model.table.weight


@pytest.mark.slow
def test_numbers_that_stand_in_several_places_do_not_move_alone() -> None:
    places = (torch.arange(D)[:, None] - torch.arange(D)) % D
    ring = Written(
        lambda s, x: s.o(F.gelu(F.linear(s.e(x), s.c[places]))),
        e=linear(9, D), o=linear(D, 3), c=nn.Parameter(drawn(D)),
    )  # fmt: skip
    halves = Written(
        lambda s, x: s.o(F.gelu(F.linear(x, s.w[:H])) + F.gelu(F.linear(x, s.w[4:]))),
        o=linear(H, 3), w=nn.Parameter(drawn(H + 4, 9)),
    )  # fmt: skip
    for model, site, why in ((ring, "e", "computed from parameters"), (halves, "o:in", "overlaps")):
        found = bp.symmetries(moved(model), drawn(5, 9), certificates=False)[site]
        assert found.group == G.Unknown(found.group.dim)
        assert why in found.because


class Heads(nn.Module):
    """Attention of two heads, as `kind` says."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.q, self.o = linear(9, H), linear(H, 3)
        self.k = self.q if kind == "one projection" else linear(9, H)
        self.v = self.k if kind == "keys as values" else linear(9, H)
        self.mix = nn.Parameter(torch.rand(2, 2)) if kind == "mixed" else None

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (m(x).unflatten(-1, (2, 4)).transpose(1, 2) for m in (self.q, self.k, self.v))
        if self.kind == "one norm":
            q = F.rms_norm(q, (4,))
        weights = (q @ k.mT).softmax(-1)
        if self.kind == "mixed":
            weights = torch.einsum("hg,bgts->bhts", self.mix, weights)
        return self.o((weights @ v).transpose(1, 2).flatten(2))


KEPT = G.Blocks(G.GeneralLinear(4), 2, order="kept")
ATTENTION = {
    ("mixed", "q"): KEPT,
    ("mixed", "v"): KEPT,
    ("keys as values", "k"): KEPT,
    ("one projection", "q:2"): G.Blocks(G.Orthogonal(4), 2),
    ("one norm", "k"): G.Unknown(H),
    ("plain", "q"): G.Blocks(G.GeneralLinear(4), 2),
}


@pytest.mark.parametrize(("kind", "site"), ATTENTION)
def test_heads_change_as_far_as_all_that_they_share_allows(kind: str, site: str) -> None:
    model, x = moved(Heads(kind)), drawn(3, 5, 9)
    group = ATTENTION[kind, site]
    assert bp.symmetries(model, x, certificates=False)[site].group == group
    assert bp.symmetries(model, x)[site].group == group
    if group.name != "unknown":
        element = group.generic(torch.Generator().manual_seed(1)).matrix()
        twin = bp.reparametrize(model, site, element, example_input=x)
        other = drawn(2, 7, 9, seed=5)
        assert torch.allclose(twin(other), model(other), atol=1e-9)


def test_two_claims_of_one_order_of_two_heads_do_not_prove_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Exchanged for the queries and once more for the values, two heads are where they were."""
    from basis_probe.architecture import heads

    monkeypatch.setattr(heads.Heads, "_kept", lambda *_: "")
    found = bp.symmetries(moved(Heads("mixed")), drawn(3, 5, 9))
    assert {found[site].group for site in ("q", "k", "v", "o:in")} == {KEPT}


def test_what_a_model_takes_of_its_input_keeps_its_axes() -> None:
    model = Written(lambda s, x: s.a(x[:, :4]) + s.b(x[:, 2:]), a=linear(4, 3), b=linear(7, 3))
    found = bp.symmetries(moved(model), drawn(5, 9))
    assert found["a:in"].group == G.Trivial(4)
    assert found["b:in"].group == G.Trivial(7)


def test_numbers_without_features_side_by_side_are_no_error() -> None:
    def told(s: Written, x: Tensor) -> Tensor:
        h = s.e(x)
        return s.o(torch.cat([h.mean(1), torch.linalg.svdvals(h)[:, :D]], -1))

    model = moved(Written(told, e=linear(9, D), o=linear(2 * D - 1, 3)))
    found = bp.symmetries(model, drawn(4, 5, 9))
    assert found["o:in"].group == G.Unknown(2 * D - 1)


def test_what_is_added_and_read_elsewhere_does_not_follow() -> None:
    """Learned latents are the start of a stream, and made into queries as they are."""

    def latents(s: Written, x: Tensor) -> Tensor:
        start = s.start.expand(len(x), -1, -1)
        z = (s.q(start) @ s.k(x).mT).softmax(-1) @ s.v(x)
        return s.o(F.rms_norm(start + s.p(z), (D,)))

    maps = {"q": linear(D, D), "k": linear(9, D), "v": linear(9, D), "p": linear(D, D)}
    model = Written(latents, start=nn.Parameter(drawn(1, 3, D)), o=linear(D, 2), **maps)
    found = bp.symmetries(moved(model), drawn(2, 5, 9), certificates=False)
    assert found["p"].group == G.Unknown(D)
    assert "used elsewhere" in found["p"].because
    assert found["v"].group.privileged.name == "NONE"


@pytest.mark.parametrize("gained", [True, False])
def test_a_map_behind_a_norm_that_reads_something_else_does_not_follow(gained: bool) -> None:
    """What turns the normalised features would turn the other ones, too."""

    def twice(s: Written, x: Tensor) -> Tensor:
        normed = F.rms_norm(s.e(x), (D,), s.gain if gained else None)
        return s.o(torch.tanh(s.m(normed)) + torch.tanh(s.m(torch.tanh(s.f(x)))))

    maps = {"e": linear(9, D), "f": linear(9, D), "m": linear(D, D), "o": linear(D, 2)}
    found = bp.symmetries(
        moved(Written(twice, gain=nn.Parameter(1 + drawn(D)), **maps)), drawn(5, 9)
    )
    assert found["e"].group == G.Unknown(D)
    assert "used elsewhere" in found["e"].because


def test_features_that_choose_rows_of_a_table_are_read() -> None:
    def nearest(s: Written, x: Tensor) -> Tensor:
        h = s.e(x)
        code = s.table(torch.cdist(h, s.table.weight).argmin(-1))
        return s.o(h + (code - h))

    model = Written(nearest, e=linear(9, D), table=nn.Embedding(7, D), o=linear(D, 3))
    found = bp.symmetries(moved(model), drawn(5, 9), certificates=False)
    assert found["e"].group == G.Unknown(D)
    assert "cdist" in found["e"].because


def test_halves_of_normalised_features_that_meet_are_unknown() -> None:
    def gated(s: Written, x: Tensor) -> Tensor:
        first, second = s.n(s.e(x)).chunk(2, -1)
        return s.o(first * second.sigmoid())

    model = Written(gated, e=linear(9, 2 * D), n=nn.BatchNorm1d(2 * D), o=linear(D, 3))
    found = bp.symmetries(moved(model), drawn(5, 9), certificates=False)
    assert found["e"].group == G.Unknown(2 * D)
    assert "change places together" in found["e"].because


def test_a_computed_matrix_of_a_table_that_is_read_too_is_unknown() -> None:
    """Half the table reads what the table wrote, with a map between that shares the stream."""

    def scaled(s: Written, t: Tensor) -> Tensor:
        h = s.e(t)
        return F.linear(h + s.b(F.gelu(s.a(s.e(t)))), 0.5 * s.e.weight)

    model = Written(scaled, e=nn.Embedding(11, D), a=linear(D, H), b=linear(H, D))
    tokens = torch.randint(0, 11, (3, 5))
    found = bp.symmetries(moved(model), tokens, certificates=False)
    for site in ("e", "e:2", "a:in", "b"):
        assert found[site].group == G.Unknown(D)
        assert "used elsewhere" in found[site].because
    assert found["a"].group == G.Permutation(H)


def test_features_that_meet_their_neighbours_do_not_change_places() -> None:
    def beside(s: Written, x: Tensor) -> Tensor:
        h = F.relu(s.e(x))
        return s.o(h + h.roll(1, -1))

    found = bp.symmetries(moved(Written(beside, e=linear(9, D), o=linear(D, 3))), drawn(5, 9))
    assert found["e"].group == G.Unknown(D)
    assert "Roll takes features apart" in found["e"].because


def test_a_table_and_its_transpose_in_two_streams_rotate_together() -> None:
    """What is written along the all-ones direction in the one is read along it in the other."""

    def tied(s: Written, t: Tensor) -> Tensor:
        z = s.down(F.gelu(s.up(s.n(s.table(t)))))
        return F.linear(z + s.back(F.gelu(s.out(s.m(z)))), s.table.weight)

    maps = {"up": linear(D, H), "down": linear(H, D), "out": linear(D, H), "back": linear(H, D)}
    norms = {"n": nn.LayerNorm(D), "m": nn.LayerNorm(D)}
    model = moved(Written(tied, table=nn.Embedding(11, D), **maps, **norms))
    found = bp.symmetries(model, torch.randint(0, 11, (3, 5)))
    for site in ("table", "down", "back"):
        certificate = found[site].certificate
        assert found[site].group == G.LineRotations(D)
        assert certificate is not None and certificate.holds


@pytest.mark.parametrize("kernel", ((), (3,), (3, 3)), ids=str)
@pytest.mark.parametrize("inputs", (D, H), ids=("to more", "to as many"))
def test_a_weight_that_reads_what_its_transpose_writes_rescales_nothing(
    kernel: tuple[int, ...], inputs: int
) -> None:
    """An autoencoder with tied weights, of linear maps or of convolutions."""
    apply = (F.linear, F.conv1d, F.conv2d)[len(kernel)]
    model = Written(
        lambda s, x: apply(F.relu(apply(x, s.w)), s.w.transpose(0, 1)),
        w=nn.Parameter(drawn(H, inputs, *kernel)),
    )
    x = drawn(4, inputs, *(7 for _ in kernel))
    for certificates in (False, True):
        (found,) = bp.symmetries(model, x, certificates=certificates).values()
        assert found.group == G.Permutation(H)
    assert found.certificate is not None and found.certificate.holds
    turned = bp.reparametrize(model, "relu()", torch.eye(H)[torch.randperm(H)], example_input=x)
    assert torch.allclose(turned.double()(x.double()), model.double()(x.double()), atol=1e-5)
