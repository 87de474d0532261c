"""What stands between features and what reads them: masks, empty states, tables, sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import basis_probe as bp
from basis_probe import groups as G
from basis_probe.model import graph
from basis_probe.model.graph import replay
from basis_probe.model.trace import record

D, WIDE, TOKENS, OUT = 8, 12, 20, 5


class Net(nn.Module):
    """A forward function with the parts that it uses, generic in every parameter."""

    def __init__(self, run: Callable[[Net, Tensor], Tensor], **parts: nn.Module | Tensor) -> None:
        super().__init__()
        self.run = run
        self.embed, self.head = nn.Embedding(TOKENS, D), nn.Linear(D, OUT)
        for name, part in parts.items():
            setattr(self, name, nn.Parameter(part) if isinstance(part, Tensor) else part)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.run(self, tokens)


def tokens(*shape: int) -> Tensor:
    return torch.randint(TOKENS, shape, generator=torch.Generator().manual_seed(sum(shape)))


def require_absorbed(model: nn.Module, site: str, group: G.Group | None = None) -> None:
    """The claim is proved, and a twin computes the same on other inputs; UNKNOWN does, too."""
    found = bp.symmetries(model, tokens(2, 5))[site]
    assert group is None or found.group == group, found.because
    if found.privileged is bp.Privileged.UNKNOWN:
        assert found.certificate is None, found.because
        return
    assert found.certificate is not None and found.certificate.holds, found.unproved
    element = found.group.sample(torch.Generator().manual_seed(1))
    twin = bp.reparametrize(model, site, element, example_input=tokens(2, 5))
    with torch.no_grad():
        torch.testing.assert_close(twin(tokens(3, 7)), model(tokens(3, 7)), rtol=1e-8, atol=1e-8)


def masked(s: Net, t: Tensor) -> Tensor:
    """Rows that stand for nothing become zero, as in DeBERTa."""
    return s.head(F.gelu(s.up(s.embed(t)) * torch.ones_like(t)[..., None].double()) @ s.down)


def weighed(s: Net, t: Tensor) -> Tensor:
    """Every position has a weight of its own, which nobody learns."""
    h = s.embed(t) / torch.arange(1.0, t.shape[1] + 1)[:, None].double()
    return s.head(s.down(F.gelu(s.up(h))))


@pytest.mark.parametrize("run", [masked, weighed])
def test_numbers_of_rows_leave_features_alone(run: Callable[[Net, Tensor], Tensor]) -> None:
    down = torch.zeros(WIDE, D) if run is masked else nn.Linear(WIDE, D)
    model = Net(run, up=nn.Linear(D, WIDE), down=down).double().eval()
    require_absorbed(model, "embed", G.GeneralLinear(D))
    require_absorbed(model, "up", G.Permutation(WIDE))


def scanned(s: Net, t: Tensor) -> Tensor:
    """Linear attention in chunks: what the state gives is added to what the chunk gives."""
    h = s.norm(s.embed(t))
    q, k, v, b = s.q(h), s.k(h), s.v(h), torch.sigmoid(s.b(h))
    k, v = (x.view(*x.shape[:2], 2, 4).transpose(1, 2) for x in (k, v))
    q = q.view(*q.shape[:2], 2, 4).transpose(1, 2)
    v = v * b.transpose(1, 2)[..., None]
    state = torch.zeros(t.shape[0], 2, 4, 4, dtype=q.dtype)
    out = torch.zeros_like(v)
    out[:, :, :] = q @ state + (q @ k.transpose(-1, -2)).tril() @ v
    return s.head(s.embed(t) + s.o(out.transpose(1, 2).flatten(2)))


def test_what_is_added_to_an_empty_state_is_followed() -> None:
    parts = {name: nn.Linear(D, D) for name in ("q", "k", "v", "o")}
    model = Net(scanned, norm=nn.RMSNorm(D), b=nn.Linear(D, 2), **parts).double().eval()
    require_absorbed(model, "embed", G.Orthogonal(D))
    for site in ("b", "q", "k", "v", "o:in"):
        require_absorbed(model, site)


class Sines(nn.Module):
    """A table that nobody learns, read by numbers that are computed."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        table = torch.randn(rows, D, generator=torch.Generator().manual_seed(3))
        self.register_buffer("table", table)

    def forward(self, t: Tensor) -> Tensor:
        places = (t >= 0).int().cumsum(1).view(-1)
        assert isinstance(self.table, Tensor)
        return self.table.index_select(0, places).view(*t.shape, -1)


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_a_fixed_table_that_is_read_by_number_leaves_nothing(norm: type[nn.Module]) -> None:
    def run(s: Net, t: Tensor) -> Tensor:
        return s.head(s.norm(s.embed(t) + s.sines(t)))

    model = Net(run, norm=norm(D), sines=Sines(D + 4)).double().eval()
    require_absorbed(model, "embed", G.Trivial(D))


def folded(s: Net, t: Tensor) -> Tensor:
    """A gain behind a map to whose outputs rows of a table are added, as in MobileBERT."""
    places = s.places(torch.arange(t.shape[1]))
    h = (s.first(s.embed(t)) + places) * s.gain + s.shift
    h = (h + s.down(torch.relu(s.up(h)))) * s.gain2 + s.shift2
    return s.head(h)


def test_a_gain_folds_into_all_that_is_added_before_it() -> None:
    rows = {name: torch.zeros(D) for name in ("gain", "shift", "gain2", "shift2")}
    maps = {"first": nn.Linear(D, D), "up": nn.Linear(D, WIDE), "down": nn.Linear(WIDE, D)}
    model = Net(folded, places=nn.Embedding(9, D), **maps, **rows).double().eval()
    found = bp.symmetries(model, tokens(2, 5))
    wrong = [n for n, s in found.items() if s.certificate is not None and not s.certificate.holds]
    assert not wrong
    require_absorbed(model, "up:in", G.Monomial(D))
    require_absorbed(model, "head:in", G.Monomial(D))


def dense(s: Net, t: Tensor) -> Tensor:
    """All experts work on all rows, one behind the other, and their results are summed."""
    rows = s.norm(s.embed(t)).flatten(0, 1)
    weights = s.router(rows).softmax(-1).T[..., None]
    inner = torch.bmm(rows.expand(3, -1, -1) * weights, s.first)
    made = torch.bmm(F.gelu(inner), s.second).sum(0)
    return s.head(s.final(s.embed(t) + made.view(*t.shape, D)))


def test_a_sum_over_experts_carries_features() -> None:
    stacks = {"first": torch.zeros(3, D, WIDE), "second": torch.zeros(3, WIDE, D)}
    norms = {"norm": nn.RMSNorm(D), "final": nn.RMSNorm(D)}
    model = Net(dense, router=nn.Linear(D, 3), **stacks, **norms).double().eval()
    require_absorbed(model, "embed")


def filled(s: Net, t: Tensor) -> Tensor:
    """Features are written side by side into memory that is there, piece by piece."""
    h = s.embed(t)
    whole = h.new_empty(*t.shape, 2 * WIDE)
    whole[..., :WIDE].copy_(s.up(h))
    whole[..., WIDE:].copy_(s.up2(h))
    return s.head(s.down(F.gelu(whole)))


def test_what_is_filled_piece_by_piece_depends_on_every_piece() -> None:
    maps = {"up": nn.Linear(D, WIDE), "up2": nn.Linear(D, WIDE), "down": nn.Linear(2 * WIDE, D)}
    model = Net(filled, **maps).double().eval()
    require_absorbed(model, "embed", G.GeneralLinear(D))
    for site in ("up", "up2", "down:in", "down"):
        require_absorbed(model, site)


def elsewhere(s: Net, t: Tensor) -> Tensor:
    """A part of a tensor is computed from another part of it, into which nothing is written."""
    whole = s.up(s.embed(t))
    torch.mul(whole[..., : WIDE // 2], 2.0, out=whole[..., WIDE // 2 :])
    return s.head(s.down(F.gelu(whole)))


def test_a_result_that_is_written_elsewhere_changes_no_part_that_it_was_computed_from() -> None:
    maps = {"up": nn.Linear(D, WIDE), "down": nn.Linear(WIDE, D)}
    model = Net(elsewhere, **maps).double().eval().requires_grad_(False)
    found = bp.symmetries(model, tokens(2, 5))
    assert not [
        n for n, s in found.items() if s.certificate is not None and not s.certificate.holds
    ]
    for site in ("embed", "up", "down:in", "down"):
        require_absorbed(model, site)


def turned_back(s: Net, t: Tensor) -> Tensor:
    """One matrix writes a stream that a norm reads, and reads, transposed, another stream."""
    h = s.embed(t)
    return s.head(s.norm(h @ s.matrix)) + s.head2(s.other(h) @ s.matrix.T)


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_a_stream_that_follows_by_the_inverse_transpose(norm: type[nn.Module]) -> None:
    maps = {"other": nn.Linear(D, D), "head2": nn.Linear(D, OUT)}
    parts = {"norm": norm(D), **maps, "matrix": torch.zeros(D, D)}
    model = Net(turned_back, **parts).double().eval()
    group = G.Orthogonal(D) if norm is nn.RMSNorm else G.LineRotations(D)
    require_absorbed(model, "other", group)
    require_absorbed(model, "norm:in", group)


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_a_gain_does_not_fold_into_a_map_that_reads_something_else(norm: type[nn.Module]) -> None:
    def run(s: Net, t: Tensor) -> Tensor:
        h = s.embed(t)
        return s.head(s.norm(h)) + s.head(s.other(h))

    model = Net(run, norm=norm(D), other=nn.Linear(D, D)).double().eval()
    for asked in (True, False):
        found = bp.symmetries(model, tokens(2, 5), certificates=asked)
        for site in ("embed", "other"):
            assert found[site].privileged is bp.Privileged.UNKNOWN
            assert found[site].certificate is None, found[site].because


@pytest.mark.parametrize("run", [filled, elsewhere])
def test_a_record_returns_what_the_model_returns(run: Callable[[Net, Tensor], Tensor]) -> None:
    down = nn.Linear((2 if run is filled else 1) * WIDE, D)
    model = Net(run, up=nn.Linear(D, WIDE), up2=nn.Linear(D, WIDE), down=down)
    model = model.double().eval().requires_grad_(False)
    given = tokens(3, 7)
    trace = record(model, lambda: model(given), given, 3)
    other = tokens(3, 7).flip(0)
    if run is elsewhere:
        # It is not followed, and says so.
        with pytest.raises(ValueError, match="is needed and was not given"):
            replay(trace, trace.outputs[0], {0: other})
        return
    torch.testing.assert_close(replay(trace, trace.outputs[0], {0: other}), model(other))


def test_what_the_graph_loses_is_not_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(s: Net, t: Tensor) -> Tensor:
        h = s.norm(s.embed(t))
        return s.head(F.gelu(s.up(h)) @ s.down + F.gelu(s.up2(h)) @ s.down)

    maps = {"up": nn.Linear(D, WIDE), "up2": nn.Linear(D, WIDE)}
    model = Net(run, norm=nn.RMSNorm(D), down=torch.zeros(WIDE, D), **maps).double().eval()
    rule = graph._Builder._pointwise

    def forgetful(self: Any, node: Any, live: list[int]) -> None:
        # As if there were a rule by which a sum is its first addend.
        rule(self, node, live[:1] if node.op == "add" and len(live) == 2 else live)

    monkeypatch.setattr(graph._Builder, "_pointwise", forgetful)
    found = bp.symmetries(model, tokens(2, 5), certificates=False)
    # The map that is lost reads what the norm writes, which then is no stream of known readers.
    for site in ("up2", "up2:in"):
        assert found[site].privileged is not bp.Privileged.NONE, found[site].because
    assert "could not be followed" in found["up2"].because


def test_one_map_behind_two_norms_is_not_claimed() -> None:
    def run(s: Net, t: Tensor) -> Tensor:
        h = s.embed(t)
        h = h + s.inner(s.norm(h))
        return s.head(h + s.inner(s.other(h)))

    norms = {"norm": nn.LayerNorm(D), "other": nn.LayerNorm(D)}
    model = Net(run, inner=nn.Linear(D, D), **norms).double().eval()
    found = bp.symmetries(model, tokens(2, 5), certificates=False)
    assert found["embed"].privileged is bp.Privileged.UNKNOWN
    # One norm in both places has one gain, which folds once.
    model = Net(run, inner=nn.Linear(D, D), **dict.fromkeys(norms, nn.LayerNorm(D)))
    require_absorbed(model.double().eval(), "embed")


def test_a_constant_for_every_feature_that_is_computed_is_no_weight() -> None:
    def run(s: Net, t: Tensor) -> Tensor:
        h = s.embed(t)
        return s.head(h * (torch.arange(D) % 2).double() + F.gelu(s.up(h)))

    found = bp.symmetries(Net(run, up=nn.Linear(D, D)).double().eval(), tokens(2, 5))
    for site in ("embed", "up"):
        assert found[site].privileged is bp.Privileged.UNKNOWN
        assert "no weight" in found[site].because and found[site].certificate is None


class Numbered(nn.Module):
    """A learned table whose rows are read by numbers that the model holds, as in CLIP's vision."""

    numbers: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, D)
        self.register_buffer("numbers", torch.arange(9))

    def forward(self, count: int) -> Tensor:
        return self.table(self.numbers[:count])


def numbered(s: Net, t: Tensor) -> Tensor:
    return s.head(s.norm(s.embed(t) + s.places(t.shape[1]) + s.own))


def summed(s: Net, t: Tensor) -> Tensor:
    """A vector for the stream and one for every position are added to each other first."""
    return s.head(s.norm(s.embed(t) + (s.places(t.shape[1]) + s.own)))


def behind_each_other(s: Net, t: Tensor) -> Tensor:
    """Rows of which some are made of tables alone, as in ProphetNet's streams."""
    fixed = (s.places(t.shape[1]) + s.own).expand(t.shape[0], -1, -1)
    return s.head(s.norm(torch.cat([s.embed(t), fixed], 1)))


@pytest.mark.parametrize("run", [numbered, summed, behind_each_other])
def test_sums_of_tables_and_tables_read_by_fixed_numbers_change_with_their_stream(
    run: Callable[[Net, Tensor], Tensor],
) -> None:
    model = Net(run, norm=nn.RMSNorm(D), places=Numbered(), own=torch.zeros(D)).double().eval()
    require_absorbed(model, "embed", G.Orthogonal(D))


@pytest.mark.parametrize("frames", [12, 20])
def test_moments_of_a_sound_have_axes_of_their_own_and_no_stranger_that_weights_could_read(
    frames: int,
) -> None:
    class Sound(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv1d(1, 6, 3), nn.Conv1d(6, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(F.gelu(self.first(x[:, None])))

    torch.manual_seed(0)
    found = bp.symmetries(nn.Sequential(Sound()).double().eval(), torch.randn(2, frames).double())
    assert found["0:in"].group == G.Trivial(frames)
    proof = found["0:in"].certificate
    assert proof is not None and proof.holds, found["0:in"].unproved
    assert found["0.first"].group == G.Permutation(6)
