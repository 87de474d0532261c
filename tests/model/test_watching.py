"""Models and batches of unusual forms are watched on what their users would give them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import basis_probe as bp
from tests.draws import seeded


def _draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed))


class Own(nn.Module):
    """A model whose forward is a function of its parts."""

    def __init__(self, forward: Callable[..., Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.function = forward
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.function(self, *args, **kwargs)


def _heads(**more: nn.Module) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {"a": nn.Linear(8, 16), "c": nn.Linear(16, 16), "b": nn.Linear(16, 3), **more}


def _count(model: nn.Module, data: list[Any], site: str = "relu()") -> tuple[int, float]:
    found = bp.observe(model.eval(), data, sites=site, progress=False).seen[site].moments
    return found.count, float(found.kurtosis.nanmean())


def test_a_batch_of_one_size_is_given_whole() -> None:
    model = Own(lambda m, x: m.b(m.a(x.view(16, 8)).relu()), **_heads())
    assert _count(model, [_draw(16, 8, seed=seed) for seed in range(3)])[0] == 48


def test_an_image_without_an_axis_of_examples() -> None:
    layers = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(0), nn.Linear(8 * 64, 4)
    data = [_draw(3, 10, 10, seed=seed) for seed in range(4)]
    report = bp.probe(nn.Sequential(*layers).eval(), data, sites="1", progress=False)
    assert report["1"].n_samples == 4 * 64
    assert report["1"].symmetry.group.dim == 8


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_examples_on_the_second_axis_are_examples(kind: Any) -> None:
    torch.manual_seed(0)
    model = Own(lambda m, x: m.b(m.a(m.r(x)[0]).relu()), **_heads(r=kind(8, 8))).eval()
    whole = _draw(7, 24, 8)
    found = [
        bp.observe(model, [*whole.split(size, 1)], sites="relu()", progress=False).seen["relu()"]
        for size in (24, 6, 1)
    ]
    for one in found:
        assert one.moments.count == 7 * 24
        assert len(one.kept.rows["example"].unique()) == 24
        assert torch.equal(one.kept.priorities, found[0].kept.priorities)


def test_inputs_without_examples_are_left_whole() -> None:
    def forward(m: Any, prototypes: Tensor, x: Tensor) -> Tensor:
        return m.o((m.a(x) @ prototypes.T).relu())

    model = Own(forward, **_heads(o=nn.Linear(16, 2)))
    shared = _draw(16, 16, seed=9)
    data = [{"prototypes": shared, "x": _draw(16, 8, seed=seed)} for seed in range(3)]
    assert _count(model, data)[0] == 48


def test_states_and_dicts_go_with_the_examples() -> None:
    def forward(m: Any, x: Tensor, state: Any, more: Any) -> Tensor:
        return m.b((m.a(m.r(x, state)[0]) + more["deep"][0][:, None]).relu())

    model = Own(forward, **_heads(r=nn.LSTM(8, 8, batch_first=True)))
    batch = {
        "x": _draw(30, 5, 8),
        "state": (_draw(1, 30, 8, seed=1), _draw(1, 30, 8, seed=2)),
        "more": {"deep": [_draw(30, 16, seed=3)]},
    }
    assert _count(model, [batch, batch])[0] == 300


class Floor(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


OPAQUE: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "a function of autograd": lambda m, x: Floor.apply(m.a(x)),
    "numpy": lambda m, x: torch.from_numpy(np.maximum(m.a(x).detach().numpy(), 0)),
    "a script": lambda m, x: m.script(x),
    "vmap": lambda m, x: torch.vmap(lambda row: m.a.weight @ row)(x),
}


@pytest.mark.sample(default=1)
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("kind", OPAQUE)
def test_parts_that_run_out_of_sight_hide_nothing_behind_them(kind: str) -> None:
    script = torch.jit.trace(nn.Sequential(nn.Linear(8, 16), nn.ReLU()), torch.zeros(3, 8))
    model = Own(lambda m, x: m.b(m.c(OPAQUE[kind](m, x)).relu()), **_heads(script=script))
    data = [*_draw(300, 8).split(100)]
    report = bp.probe(model.eval(), data, sites=["c", "relu()"], progress=False)
    assert report["relu()"].n_samples == report["c"].n_samples == 300
    assert type(report["relu()"].symmetry.group) is bp.groups.PositiveMonomial


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_what_a_script_returns_is_a_site_of_which_nothing_is_claimed() -> None:
    script = torch.jit.trace(nn.Sequential(nn.Linear(8, 16), nn.ReLU()), torch.zeros(3, 8))
    model = Own(lambda m, x: m.b(m.script(x)), **_heads(script=script)).eval()
    found = bp.symmetries(model, _draw(5, 8))
    assert isinstance(found["script"].group, bp.groups.Unknown)


def test_lengths_that_are_not_read_are_named() -> None:
    def forward(m: Any, x: Tensor, lengths: Tensor) -> Tensor:
        rows = nn.utils.rnn.pack_padded_sequence(x, lengths, True, enforce_sorted=False)
        out, _ = nn.utils.rnn.pad_packed_sequence(m.r(rows)[0], batch_first=True)
        return m.b(m.a(out).relu())

    model = Own(forward, **_heads(r=nn.LSTM(8, 8, batch_first=True))).eval()
    batch = {"x": _draw(30, 5, 8), "lengths": torch.tensor([5, 3, 4] * 10)}
    report = bp.probe(model, [batch], sites="relu()", progress=False)
    assert report["relu()"].n_samples == 150
    assert any("lengths" in note and "padding is counted" in note for note in report.notes)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("added", [True, False])
def test_masks_that_mark_padding_are_read_the_other_way_round(first: bool, added: bool) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=first)
    model = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
    mask = torch.arange(7) >= torch.tensor([7, 3, 5, 4, 6, 2])[:, None]
    x = _draw(6, 7, 16) if first else _draw(7, 6, 16)
    told = torch.zeros(6, 7).masked_fill(mask, -torch.inf) if added else mask
    count, _ = _count(model, [{"src": x, "src_key_padding_mask": told}], "layers.0.linear1")
    assert count == int((~mask).sum())


MOVED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    # Each row is of the last position that it is made of.
    "the position before": lambda m, h: m.c(h + nn.functional.pad(h, (0, 0, 1, -1))),
    "a sum of all positions": lambda m, h: m.c(h + h.sum(1, keepdim=True)),
    # Of these it is not known of which position they are.
    "neighbours": lambda m, h: m.c(h[:, 1:] + h[:, :-1]),
    "turned round": lambda m, h: m.c(h + h.flip(1)),
    "sorted": lambda m, h: m.c(h.sort(1).values),
    "pooled by twos behind the first": lambda m, h: m.c(
        torch.cat([h[:, :1], nn.functional.avg_pool1d(h[:, 1:].mT, 2).mT], 1)
    ),
    "the mean of all beside each": lambda m, h: m.c(
        torch.cat([h[..., :8], h.mean(1, keepdim=True).expand_as(h)[..., 8:]], -1)
    ),
    "padded by a token of the model's own": lambda m, h: m.c(
        torch.cat([h, m.e(h.new_full((len(h), 2), 1.0).long())], 1)
    ),
    "the first attends to all": lambda m, h: m.c(
        nn.functional.scaled_dot_product_attention(h[:, :1], h, h)
    ),
}


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("kind", MOVED)
def test_rows_of_several_positions(kind: str) -> None:
    def forward(m: Any, x: Tensor, attention_mask: Tensor) -> Tensor:
        return m.b(MOVED[kind](m, m.a(x)).relu())

    mask = (torch.arange(7) < torch.tensor([7, 3, 5, 4, 6, 2])[:, None]).long()
    batch = {"x": _draw(6, 7, 8), "attention_mask": mask}
    model = Own(forward, **_heads(e=nn.Embedding(3, 16))).eval()
    settings = {"sites": "relu()", "progress": False, "certificates": False}
    site = bp.probe(model, [batch] * 9, **settings)["relu()"]
    known = kind not in ("neighbours", "sorted", "pooled by twos behind the first")
    told = any("attention_mask could not be applied" in note for note in site.notes)
    assert told is not known
    lengths = {"neighbours": 6, "pooled by twos behind the first": 4}
    rows = int(mask.sum()) if known else 6 * lengths.get(kind, 7)
    assert site.n_samples == 9 * (6 if kind == "the first attends to all" else rows)


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("entry", [0, 2, -1])
def test_a_position_that_is_picked_counts_where_it_is_no_padding(left: bool, entry: int) -> None:
    def forward(m: Any, x: Tensor, attention_mask: Tensor) -> Tensor:
        return m.b(m.a(m.c(m.a(x))[:, entry, :8]).relu())

    real = torch.arange(7) < torch.tensor([7, 3, 5, 1, 6, 2])[:, None]
    mask = (real.flip(1) if left else real).long()
    # Batches of other lengths, in which the last position is another one.
    short = {"x": _draw(6, 5, 8), "attention_mask": (mask[:, 2:] if left else mask[:, :5])}
    data = [{"x": _draw(6, 7, 8), "attention_mask": mask}, short]
    expected = sum(int(batch["attention_mask"][:, entry].sum()) for batch in data)
    assert _count(Own(forward, **_heads()), data)[0] == expected


@pytest.mark.slow
def test_a_module_that_runs_several_times_says_which_time_it_is() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.b(torch.stack([m.a(row) for row in x.unbind(1)], 1).relu())

    model = Own(forward, **_heads()).eval()
    report = bp.probe(model, [_draw(60, 4, 8)] * 4, sites=["a", "relu()"], progress=False)
    assert report["a"].n_samples == 240 and report["relu()"].n_samples == 960
    assert any("a runs 4 times in a pass" in note for note in report["a"].notes)
    assert not any("times in a pass" in note for note in report["relu()"].notes)


def test_a_mask_under_another_name_is_named() -> None:
    def forward(m: Any, x: Tensor, valid: Tensor) -> Tensor:
        return m.b((m.a(x) * valid[..., None]).relu())

    batch = {"x": _draw(60, 4, 8), "valid": (torch.arange(240) % 3 > 0).view(60, 4).long()}
    report = bp.probe(Own(forward, **_heads()).eval(), [batch], sites="relu()", progress=False)
    assert any(note.startswith("valid looks like") for note in report.notes)


def test_embeddings_in_place_of_token_ids_are_the_same_input() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.e, self.a, self.b = nn.Embedding(9, 8), nn.Linear(8, 16), nn.Linear(16, 3)

        def forward(
            self,
            input_ids: Tensor | None = None,
            inputs_embeds: Tensor | None = None,
            attention_mask: Tensor | None = None,
        ) -> Tensor:
            return self.b(self.a(self.e(input_ids) if inputs_embeds is None else inputs_embeds))

    model = Reader().eval()
    ids, mask = torch.randint(0, 9, (6, 7)), (torch.arange(7) < 4).long().expand(6, 7)
    with torch.no_grad(), bp.attach(model, sites="a") as probe:
        model(ids, attention_mask=mask)
        model(inputs_embeds=model.e(ids), attention_mask=mask)
    assert probe.report()["a"].n_samples == 48


@pytest.mark.slow
def test_edges_of_a_graph_are_no_rows_of_a_layer() -> None:
    def forward(m: Any, x: Tensor, src: Tensor, dst: Tensor) -> Tensor:
        h = m.a(x)
        return m.b(h.index_add(0, src, h[dst]).relu())

    # As many edges as nodes, so that sizes tell nothing.
    edges = {"src": torch.randint(0, 30, (30,)), "dst": torch.randint(0, 30, (30,))}
    model = Own(forward, **_heads()).eval()
    data = [{"x": _draw(30, 8, seed=seed), **edges} for seed in range(10)]
    assert bp.probe(model, data, sites="relu()", progress=False)["relu()"].n_samples == 300


class Growing:
    """What a model appends to, as a cache of keys and values."""

    def __init__(self) -> None:
        self.rows: list[Tensor] = []


def test_a_cache_in_a_batch_is_the_users() -> None:
    def forward(m: Any, x: Tensor, past_rows: Growing) -> Tensor:
        past_rows.rows.append(m.a(x))
        return m.b(sum(past_rows.rows).relu())

    model, cache = Own(forward, **_heads()).eval(), Growing()
    cache.rows.append(torch.ones(1, 16))
    batch = {"x": _draw(60, 8), "past_rows": cache}
    found = _count(model, [batch] * 4)
    assert found[0] == 240 and len(cache.rows) == 1
    rows = (torch.ones(1, 16) + model.a(batch["x"])).relu().detach().double()
    centred = rows - rows.mean(0)
    wanted = (centred.pow(4).mean(0) / centred.square().mean(0).square()).nanmean()
    assert found[1] == pytest.approx(float(wanted), rel=1e-4)


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("shape", [(60, 3), (60, 1, 4, 4)])
@pytest.mark.parametrize("floating", [True, False])
def test_a_mask_of_another_shape_is_named(shape: tuple[int, ...], floating: bool) -> None:
    def forward(m: Any, x: Tensor, visual_attention_mask: Tensor) -> Tensor:
        return m.b(m.a(x).relu())

    mask = torch.arange(torch.Size(shape).numel()).view(shape) % 3 > 0
    batch = {"x": _draw(60, 4, 8), "visual_attention_mask": mask.float() if floating else mask}
    report = bp.probe(Own(forward, **_heads()).eval(), [batch], sites="relu()", progress=False)
    assert any(note.startswith("visual_attention_mask looks like") for note in report.notes)
