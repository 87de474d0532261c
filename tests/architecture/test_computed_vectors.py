"""Vectors that a model computes from its parameters follow as far as the parameters can."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d, linear, prelu, relu, sigmoid, softplus

import basis_probe as bp

WIDTH = 12


class Vectors(nn.Module):
    """Two linear maps, and vectors of which something is made in between."""

    def __init__(self, way: Callable[[Vectors, Tensor], Tensor], width: int = WIDTH) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)

        def drawn(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        self.write, self.other = nn.Linear(6, width, bias=False), nn.Linear(6, width, bias=False)
        self.out = nn.Linear(width, 3)
        self.a, self.b = nn.Parameter(drawn(width)), nn.Parameter(drawn(width))
        self.six, self.five = nn.Parameter(drawn(width // 2)), nn.Parameter(drawn(5))
        self.table = nn.Parameter(drawn(width, 5))
        self.long = nn.Parameter(drawn(2 * width))
        self.register_buffer("order", torch.randperm(width, generator=generator))
        self.register_buffer("mask", (torch.arange(width) % 3 > 0).float())
        self.register_buffer("held", drawn(width))
        self.register_buffer("grid", torch.linspace(-2, 2, 5))
        self.way = way
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.way(self, x))


def _x(rows: int = 16) -> Tensor:
    return torch.randn(rows, 6, generator=torch.Generator().manual_seed(1)).double()


Vector = Callable[[Vectors], Tensor]

FREE: dict[str, Vector] = {
    "itself": lambda m: m.a,
    "in another order": lambda m: m.a[m.order],
    "flipped": lambda m: m.a.flip(0),
    "rolled": lambda m: m.a.roll(5),
    "written by columns": lambda m: m.a.view(3, 4).t().reshape(-1),
    "part of a longer one": lambda m: m.long[3 : 3 + WIDTH],
    "every second entry": lambda m: m.long[::2],
    "times a number": lambda m: -3 * m.a,
    "times a learned number": lambda m: m.a * m.five[0],
    "a difference": lambda m: m.a - m.b,
    "a product with a vector": lambda m: m.table @ m.five,
    "a row of a table": lambda m: m.table[:, 2],
    "a mean of rows": lambda m: m.table.mean(1),
    "two that follow each other": lambda m: torch.cat([m.six, m.long[: WIDTH // 2]]),
    "moved by a constant": lambda m: m.a + m.held,
}
"""What takes every value."""

ALIKE: dict[str, Vector] = {
    "exponential": lambda m: m.a.exp(),
    "square": lambda m: m.a.square(),
    "softplus": lambda m: softplus(m.a),
    "absolute value": lambda m: m.a.abs(),
    "positive part": lambda m: m.a.relu(),
    "sigmoid": lambda m: m.a.sigmoid(),
    "product of squares": lambda m: m.a.square() * m.b.square(),
    "probabilities": lambda m: m.a.softmax(0),
    "one number": lambda m: m.five[:1].expand(WIDTH),
    "a largest one": lambda m: m.a.max().expand(WIDTH),
    "at least": lambda m: m.a.clamp(min=-0.3),
}
"""What takes the values of one that it takes in any order, and not with any signs."""

HELD: dict[str, Vector] = {
    "two halves alike": lambda m: m.six.repeat(2),
    "pairs alike": lambda m: m.six.repeat_interleave(2),
    "a half and its negative": lambda m: torch.cat([m.six, -m.six]),
    "a mirror": lambda m: torch.cat([m.six, m.six.flip(0)]),
    "one entry in two places": lambda m: torch.cat([m.a[:-1], m.a[:1]]),
    "the first entry positive": lambda m: torch.cat([m.a[:1].abs(), m.a[1:]]),
    "masked": lambda m: m.a * m.mask,
    "scaled by fixed numbers, positive": lambda m: m.a.exp() * (1 + torch.arange(WIDTH)),
    "few numbers spread": lambda m: m.held[:, None].expand(-1, 5) @ m.five,
    "sorted": lambda m: m.a.sort().values,
    "cumulative, positive": lambda m: m.a.exp().cumsum(0),
}
"""What is not free in either."""

USES: dict[str, Callable[[Vectors, Tensor, Tensor], Tensor]] = {
    "bias": lambda m, x, v: linear(x, m.write.weight, v),
    "added": lambda m, x, v: m.write(x) + v,
    "taken away": lambda m, x, v: m.write(x) - v,
    "bias of channels": lambda m, x, v: conv1d(x[..., None], m.write.weight[..., None], v)[..., 0],
    "added to channels": lambda m, x, v: (
        conv1d(x[..., None], m.write.weight[..., None]) + v[:, None]
    )[..., 0],
}


def _group(found: bp.Symmetry) -> str:
    """The name of what is claimed; a claim is not to be refuted."""
    assert found.certificate is None or found.certificate.holds, found.because
    return found.group.name


@pytest.mark.sample(default=12)
@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize("vector", FREE.values(), ids=FREE)
def test_what_takes_every_value_holds_nothing(vector: Vector, use: Callable[..., Tensor]) -> None:
    for bent, name in ((torch.tanh, "signed-permutation"), (relu, "positive-monomial")):
        model = Vectors(lambda m, x, bent=bent: bent(use(m, x, vector(m))))
        assert _group(bp.symmetries(model, _x())["out:in"]) == name
        assert _group(bp.symmetries(model, _x(), certificates=False)["out:in"]) == name


@pytest.mark.sample(default=9)
@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize("vector", ALIKE.values(), ids=ALIKE)
def test_what_takes_values_in_any_order_leaves_orders(
    vector: Vector, use: Callable[..., Tensor]
) -> None:
    model = Vectors(lambda m, x: torch.tanh(use(m, x, vector(m))))
    found = bp.symmetries(model, _x(), certificates=False)["out:in"]
    assert _group(found) == "permutation", found.because
    proved = bp.symmetries(model, _x())["out:in"]
    # Of one that is bounded where nothing is at the bound more is absorbed as it is.
    assert proved.group.name in ("permutation", "unknown"), proved.because


@pytest.mark.sample(default=6)
@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize("vector", HELD.values(), ids=HELD)
def test_what_is_bound_to_its_places_moves_in_no_way_that_is_known(
    vector: Vector, use: Callable[..., Tensor]
) -> None:
    for bent in (torch.tanh, relu):
        model = Vectors(lambda m, x, bent=bent: bent(use(m, x, vector(m))))
        for certificates in (True, False):
            found = bp.symmetries(model, _x(), certificates=certificates)["out:in"]
            assert found.group.name == "unknown", found.because


GAINS: dict[str, tuple[Vector, str, str]] = {
    "itself": (lambda m: m.a, "positive-monomial", "monomial"),
    "one and a vector": (lambda m: 1 + m.a, "positive-monomial", "monomial"),
    "exponential": (lambda m: m.a.exp(), "positive-monomial", "positive-monomial"),
    "probabilities": (lambda m: m.a.softmax(0), "positive-monomial", "positive-monomial"),
    "two halves alike": (lambda m: m.six.repeat(2), "unknown", "unknown"),
    "the first entry positive": (
        lambda m: torch.cat([m.a[:1].abs(), m.a[1:]]),
        "unknown",
        "unknown",
    ),
}


@pytest.mark.parametrize(("vector", "before", "behind"), GAINS.values(), ids=GAINS)
def test_gains_that_are_computed_change_places_and_pass_scales_on(
    vector: Vector, before: str, behind: str
) -> None:
    model = Vectors(lambda m, x: relu(m.write(x)) * vector(m))
    for certificates in (True, False):
        found = bp.symmetries(model, _x(), certificates=certificates)
        assert [_group(found[site]) for site in ("write", "out:in")] == [before, behind]


BENT: dict[str, Callable[[Vectors, Tensor, Tensor], Tensor]] = {
    "PReLU": lambda m, h, v: prelu(h, v),
    "snake": lambda m, h, v: h + (h * v).sin().square(),
    "Swish": lambda m, h, v: h * sigmoid(h * v),
    "soft threshold": lambda m, h, v: softplus(h - v),
}


@pytest.mark.parametrize("bent", BENT.values(), ids=BENT)
def test_slopes_that_are_computed_change_places(bent: Callable[..., Tensor]) -> None:
    for vector, free in (
        (lambda m: m.a, True),
        (lambda m: m.a.exp(), True),
        (lambda m: m.six.repeat(2), False),
        (lambda m: torch.cat([m.a[:-1], m.a[:1]]), False),
    ):
        model = Vectors(lambda m, x, vector=vector: bent(m, m.write(x), vector(m)))
        for certificates in (True, False):
            group = _group(bp.symmetries(model, _x(), certificates=certificates)["out:in"])
            assert group.endswith(("permutation", "monomial")) if free else group == "unknown"


def test_parts_of_one_vector_in_two_places() -> None:
    """Apart they are free, the same ones change together, and overlapping ones are not claimed."""

    def two(first: slice, second: slice, use: str) -> list[str]:
        def way(m: Vectors, x: Tensor) -> Tensor:
            one, other = m.long[first], m.long[second]
            if use == "added":
                return torch.tanh(m.write(x) + one) + torch.tanh(m.other(x) + other)
            if use == "factor":
                return torch.tanh(m.write(x)) * one + torch.tanh(m.other(x)) * other
            return torch.tanh(linear(x, m.write.weight, one)) + torch.tanh(
                linear(x, m.other.weight, other)
            )

        return [
            _group(bp.symmetries(Vectors(way), _x(), certificates=certificates)["out:in"])
            for certificates in (True, False)
        ]

    for use in ("bias", "added", "factor"):
        apart = two(slice(0, WIDTH), slice(WIDTH, 2 * WIDTH), use)
        assert set(apart) == {"signed-permutation" if use != "factor" else "monomial"}
        for start in (1, 5, WIDTH - 1):
            assert set(two(slice(0, WIDTH), slice(start, start + WIDTH), use)) == {"unknown"}


@pytest.mark.parametrize("count", [2, 3])
def test_layers_that_show_the_same_part_as_their_bias_change_together(count: int) -> None:
    class Layers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.maps = nn.ModuleList(nn.Linear(6, 8, bias=False) for _ in range(count))
            self.outs = nn.ModuleList(nn.Linear(8, 3) for _ in range(count))
            self.long = nn.Parameter(torch.randn(20))

        def forward(self, x: Tensor) -> Tensor:
            each = zip(self.maps, self.outs, strict=True)
            return sum(o(linear(x, w.weight, self.long[4:12]).tanh()) for w, o in each)

    for certificates in (True, False):
        found = bp.symmetries(Layers(), torch.randn(16, 6), certificates=certificates)
        for place in range(count):
            assert _group(found[f"outs.{place}:in"]) == "signed-permutation"


def test_a_bias_that_is_part_of_a_matrix_holds_what_the_matrix_reads() -> None:
    class Column(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.write, self.out = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return linear(self.write(x).relu(), self.out.weight, self.out.weight[:, 2])

    for certificates in (True, False):
        found = bp.symmetries(Column(), torch.randn(16, 6), certificates=certificates)
        assert found["relu()"].group.name == "unknown"


TABLES: dict[str, tuple[Callable[[Vectors, Tensor], Tensor], str]] = {
    "one grid, numbers of all": (
        lambda m, h: ((-((h[..., None] - m.grid) ** 2)).exp() * m.five).sum(-1),
        "permutation",
    ),
    "one grid, fixed numbers": (
        lambda m, h: ((-((h[..., None] - m.grid) ** 2)).exp() * m.grid.exp()).sum(-1),
        "permutation",
    ),
    "a polynomial of fixed numbers": (
        lambda m, h: m.grid[0] * h + m.grid[1] * h**2,
        "permutation",
    ),
    "slopes of each": (lambda m, h: torch.tanh(h * m.held), "unknown"),
}


@pytest.mark.parametrize(("bent", "name"), TABLES.values(), ids=TABLES)
def test_a_table_holds_axes_if_it_has_other_numbers_for_each(
    bent: Callable[..., Tensor], name: str
) -> None:
    found = bp.symmetries(Vectors(lambda m, x: bent(m, m.write(x))), _x())["out:in"]
    assert _group(found) == name, found.because
    if name != "unknown":
        assert found.certificate is not None


def test_functions_that_are_weighed_by_a_vector_make_no_features() -> None:
    def way(m: Vectors, x: Tensor) -> Tensor:
        h = m.write(x)
        return torch.stack([h, h.tanh(), h.relu(), h.sin(), h**2], -1) @ m.five

    for certificates in (True, False):
        found = bp.symmetries(Vectors(way), _x(), certificates=certificates)
        assert found["out:in"].group.name == "unknown"
        assert found["write"].group.name == "unknown"


@pytest.mark.parametrize("width", [514, 1000])
def test_one_neuron_of_many_that_is_not_like_the_others_is_seen(width: int) -> None:
    """Wherever it is."""
    for place in (0, width // 2 - 1, width - 1):

        def tied(m: Vectors, x: Tensor, place: int = place) -> Tensor:
            weight = m.write.weight
            one = torch.arange(width)
            one[place] = (place + 1) % width
            return torch.tanh(linear(x, weight[one], m.a))

        def louder(m: Vectors, x: Tensor, place: int = place) -> Tensor:
            h = torch.tanh(m.write(x))
            return h + h[..., place : place + 1]

        for way in (tied, louder):
            found = bp.symmetries(Vectors(way, width), _x())
            for site in ("write", "tanh()", "out:in"):
                if site in found:
                    known = found[site].certificate
                    assert known is None or not known.holds or found[site].group.name == "unknown"


def _named(model: nn.Module, x: Tensor, *sites: str) -> list[str]:
    """What is claimed at some sites, with and without certificates, which is the same."""
    with_proof, without = (
        [_group(bp.symmetries(model, x, certificates=proof)[site]) for site in sites]
        for proof in (True, False)
    )
    assert with_proof == without
    return with_proof


BOUNDED: dict[str, Vector] = {
    "tanh": lambda m: m.zeros.tanh(),
    "little": lambda m: 0.1 * m.zeros.tanh(),
    "softsign": lambda m: m.zeros / (1 + m.zeros.abs()),
    "sine": lambda m: m.zeros.sin(),
    "clamped": lambda m: m.zeros.clamp(-1, 1),
    "clamped far out": lambda m: m.a.clamp(-100, 100),
}


@pytest.mark.parametrize("use", [USES["bias"], USES["added"]])
@pytest.mark.parametrize("vector", BOUNDED.values(), ids=BOUNDED)
def test_what_is_bounded_takes_no_scale_whatever_it_holds_now(
    vector: Vector, use: Callable[..., Tensor]
) -> None:
    """Zeros, as before training, let everything pass."""
    model = Vectors(lambda m, x: relu(use(m, x, vector(m))))
    model.zeros = nn.Parameter(torch.zeros(WIDTH, dtype=torch.float64))
    found = [bp.symmetries(model, _x(), certificates=proof)["out:in"] for proof in (True, False)]
    assert {one.group.name for one in found} <= {"permutation", "unknown"}
    model = Vectors(lambda m, x: use(m, x, vector(m)))
    model.zeros = nn.Parameter(torch.zeros(WIDTH, dtype=torch.float64))
    for proof in (True, False):
        found = bp.symmetries(model, _x(), certificates=proof)["out:in"]
        assert found.group.name in ("permutation", "unknown", "orthogonal"), found.because
        assert found.group.name != "orthogonal" or "clamped far" not in found.because


PAIRS: dict[str, tuple[Vector, Vector, str]] = {
    "the same": (lambda m: m.a, lambda m: m.a, "positive-monomial"),
    "twice it": (lambda m: m.a, lambda m: 2 * m.a, "positive-monomial"),
    "its exponential": (lambda m: m.a, lambda m: m.a.exp(), "permutation"),
    "less its mean": (lambda m: m.a, lambda m: m.a - m.a.mean(), "permutation"),
    "its running sum": (lambda m: m.a, lambda m: m.a.cumsum(0), "unknown"),
    "in another order": (lambda m: m.a, lambda m: m.a[m.order], "unknown"),
    "rolled": (lambda m: m.a.exp(), lambda m: m.a.exp().roll(1), "unknown"),
    "parts that overlap, in another order": (
        lambda m: m.long[:WIDTH][m.order],
        lambda m: m.long[2 : WIDTH + 2][m.order],
        "unknown",
    ),
}


@pytest.mark.parametrize("zero", [True, False])
@pytest.mark.parametrize(("one", "other", "name"), PAIRS.values(), ids=PAIRS)
def test_biases_of_one_vector_in_two_layers_change_together_or_not(
    one: Vector, other: Vector, name: str, zero: bool
) -> None:
    def way(m: Vectors, x: Tensor) -> Tensor:
        first = relu(linear(x, m.write.weight, one(m)))
        return relu(linear(first, m.between.weight, other(m)))

    model = Vectors(way)
    model.between = nn.Linear(WIDTH, WIDTH, bias=False).double()
    if zero:
        nn.init.zeros_(model.a)
        nn.init.zeros_(model.long)
    for proof in (True, False):
        found = bp.symmetries(model, _x(), certificates=proof)
        names = {found[site].group.name for site in ("relu()", "out:in")}
        # A vector that takes every value may keep the scale of its own layer.
        assert names == {name} or (name == "positive-monomial" and names <= {name, "unknown"})


def test_one_vector_twice_in_a_function_follows_both_ways_or_none() -> None:
    def of(second: Vector) -> Vectors:
        return Vectors(lambda m, x: torch.nn.functional.gelu(m.write(x) * (1 + m.a) + second(m)))

    for zero in (True, False):
        for second, name in (
            (lambda m: m.a.square(), "permutation"),
            (lambda m: m.a[m.order], "unknown"),
            (lambda m: m.a.flip(0), "unknown"),
        ):
            model = of(second)
            if zero:
                nn.init.zeros_(model.a)
            assert set(_named(model, _x(), "out:in")) == {name}


def test_scale_and_shift_may_be_parts_of_one_vector() -> None:
    model = Vectors(lambda m, x: relu(m.write(x) * (1 + m.long[:WIDTH]) + m.long[WIDTH:]))
    assert _named(model, _x(), "out:in")[0] in ("positive-monomial", "permutation")


def test_rows_of_one_table_serve_layers_one_by_one() -> None:
    def way(m: Vectors, x: Tensor) -> Tensor:
        first = relu(m.write(x) + m.rows[0])
        return relu(m.between(first) + m.rows[1])

    model = Vectors(way)
    model.between = nn.Linear(WIDTH, WIDTH, bias=False).double()
    model.rows = nn.Parameter(torch.randn(2, WIDTH).double())
    assert _named(model, _x(), "relu()", "out:in") == ["positive-monomial"] * 2
    assert bp.symmetries(model, _x())["relu()"].certificate is not None


FIXED: dict[str, Callable[[Vectors, Tensor], Tensor]] = {
    "a gain": lambda m, x: torch.nn.functional.gelu(m.write(x)) * (m.held.abs() + 0.1),
    "a mask": lambda m, x: relu(m.write(x)) * (m.mask > 0),
    "a gain of a norm": lambda m, x: torch.nn.functional.layer_norm(
        m.write(x), (WIDTH,), m.held.abs() + 0.1
    ),
    "a gain of whole numbers": lambda m, x: torch.sin(m.write(x)) * m.order.add(1),
    "sums of one grid": lambda m, x: (
        (-((m.write(x)[..., None] - m.grid) ** 2)).exp() * m.fixed
    ).sum(-1),
}


@pytest.mark.parametrize("way", FIXED.values(), ids=FIXED)
def test_behind_gains_that_are_no_parameters_axes_are_not_alike(
    way: Callable[[Vectors, Tensor], Tensor],
) -> None:
    model = Vectors(way)
    model.register_buffer("fixed", torch.rand(WIDTH, 5).double() + 0.1)
    assert set(_named(model, _x(), "out:in")) == {"unknown"}


@pytest.mark.parametrize("zero", [True, False])
def test_vectors_of_norms_over_channels_are_asked(zero: bool) -> None:
    def of(gain: Vector, bias: Vector) -> str:
        def way(m: Vectors, x: Tensor) -> Tensor:
            h = torch.nn.functional.batch_norm(
                m.write(x), None, None, gain(m), bias(m), training=True
            )
            return relu(h)

        model = Vectors(way)
        if zero:
            nn.init.zeros_(model.six)
        return _named(model, _x(), "out:in")[0]

    assert of(lambda m: m.a, lambda m: m.b) == "positive-monomial"
    assert of(lambda m: m.a, lambda m: m.six.repeat(2)) == "unknown"
    assert of(lambda m: m.six.repeat(2), lambda m: m.b) == "unknown"
    assert of(lambda m: m.a.exp(), lambda m: m.b) == "positive-monomial"


SCALES: dict[str, Vector] = {
    "itself": lambda m: m.a,
    "exponential": lambda m: m.a.exp(),
    "sigmoid": lambda m: m.a.sigmoid(),
    "two halves alike": lambda m: m.six.repeat(2),
}


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("vector", SCALES.values(), ids=SCALES)
def test_scales_of_what_is_written_to_a_stream_leave_it_free(
    vector: Vector, constant: bool
) -> None:
    """The map before them takes up what they would have to."""

    def way(m: Vectors, x: Tensor) -> Tensor:
        h = m.write(x)
        return m.norm(h + vector(m) * m.back(m.up(m.norm(h)).tanh()))

    model = Vectors(way)
    model.norm = nn.LayerNorm(WIDTH).double()
    model.up, model.back = nn.Linear(WIDTH, 9).double(), nn.Linear(9, WIDTH).double()
    if constant:
        nn.init.constant_(model.a, 0.3)
        nn.init.constant_(model.six, 0.3)
    found = bp.symmetries(model, _x())["write"]
    assert found.group.name == "line-stabiliser", found.because
    assert found.certificate is not None and found.certificate.holds


@pytest.mark.parametrize("zero", [True, False])
def test_a_norm_behind_what_is_bound_to_its_places_moves_in_no_way(zero: bool) -> None:
    for vector in (lambda m: m.a * m.mask, lambda m: m.six.repeat(2)):
        model = Vectors(lambda m, x, vector=vector: m.norm(m.write(x) + vector(m)))
        model.norm = nn.RMSNorm(WIDTH).double()
        if zero:
            nn.init.zeros_(model.a)
            nn.init.zeros_(model.six)
        assert set(_named(model, _x(), "write", "norm", "out:in")) == {"unknown"}


def test_learned_keys_beside_those_of_the_input_bind_the_queries_too() -> None:
    class Memory(nn.Module):
        def __init__(self, of: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(8, 8, bias=False) for _ in range(3))
            self.o, self.of = nn.Linear(8, 3), of
            self.keys, self.values = (nn.Parameter(torch.randn(2, 3, 4)) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (
                layer(x).view(len(x), -1, 2, 4).transpose(1, 2)
                for layer in (self.q, self.k, self.v)
            )
            k = torch.cat([self.of(self.keys).expand(len(x), -1, -1, -1), k], 2)
            v = torch.cat([self.values.expand(len(x), -1, -1, -1), v], 2)
            mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v)
            return self.o(mixed.transpose(1, 2).flatten(2))

    x = torch.randn(2, 5, 8)
    free = bp.symmetries(Memory(lambda keys: keys), x)
    for site in ("q", "k", "v", "o:in"):
        assert free[site].group.name == "blocks" and free[site].certificate is not None
    for of in (torch.exp, torch.abs):
        for proof in (True, False):
            bound = bp.symmetries(Memory(of), x, certificates=proof)
            assert {bound[site].group.name for site in ("q", "k")} == {"unknown"}
            assert {bound[site].group.name for site in ("v", "o:in")} == {"blocks"}
