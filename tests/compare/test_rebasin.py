"""One network in the axes of another: planted orders are found, and functions stay."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from draws import seeded
from networks import Stage, images, labelled, mlp, rows
from torch import Tensor, nn

import basis_probe as bp


def test_planted_orders_are_found_and_undone() -> None:
    model = Stage(0)
    twin = model
    for site in ("relu()", "relu():2"):
        element = bp.groups.Permutation(8).draw(seeded(3))
        twin = bp.reparametrize(twin, site, element, example_input=images()[:2])
    data = labelled(model, images(), 60)
    found = bp.rebasin(model, twin, data, points=3)
    assert found.distance[0] > 0.3 and found.distance[1] == 0
    assert len(found.elements) == 2
    for name, value in model.state_dict().items():
        assert torch.equal(value, found.model.state_dict()[name])
    assert found.barriers[1] == pytest.approx(0, abs=1e-6)


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("bend", [nn.ReLU, nn.LeakyReLU, lambda: nn.LeakyReLU(-1.0)])
def test_planted_orders_and_scales_are_found_and_undone(bend: Any) -> None:
    """Scales that differ by a factor of hundreds hide which axes belong together."""
    model = mlp(0, bend)
    twin = model
    for seed, site in enumerate(("1", "3")):
        group = bp.symmetries(model, rows()[:2])[site].group
        assert group.rescales
        drawn = group.draw(seeded(4 + seed))
        spread = torch.exp(2 * torch.randn(10, generator=seeded(seed), dtype=torch.float64))
        element = type(drawn)(drawn.columns, drawn.factors * spread)  # pyright: ignore
        twin = bp.reparametrize(twin, site, element, example_input=rows()[:2])
    data = labelled(model, rows())
    kept = bp.rebasin(model, twin, data, points=0)
    matched = bp.rebasin(model, twin, data, points=0, scales="matched")
    assert kept.path == () and math.isnan(kept.barriers[0])
    assert kept.distance[1] > 0.1 and matched.distance[1] == pytest.approx(0, abs=1e-5)
    with torch.no_grad():
        assert torch.allclose(matched.model(rows()), twin(rows()), rtol=1e-4, atol=1e-4)
    again = bp.rebasin(model, matched.model, data, points=0, scales="matched")
    assert again.distance[1] == pytest.approx(0, abs=1e-5)


def test_axes_that_nothing_reads_keep_their_scale() -> None:
    a, b = mlp(0), mlp(1)
    with torch.no_grad():
        for model in (a, b):
            model[2].weight[:, 3] = 0
            model[0].weight[5] = 0
            model[0].bias[5] = 0
    found = bp.rebasin(a, b, labelled(a, rows()), points=0, scales="matched")
    assert all(bool(torch.isfinite(one.factors).all()) for one in found.elements.values())
    with torch.no_grad():
        assert torch.allclose(found.model(rows()), b(rows()), atol=1e-5)


@pytest.mark.parametrize(
    ("bend", "group"),
    [(nn.Tanh, bp.groups.SignedPermutation), (nn.Hardtanh, bp.groups.SignedPermutation)],
)
def test_planted_signs_are_found_and_undone(bend: type[nn.Module], group: Any) -> None:
    model = mlp(2, bend)
    twin = model
    for site in ("1", "3"):
        element = group(10).draw(seeded(5))
        assert bool((element.factors < 0).any())
        twin = bp.reparametrize(twin, site, element, example_input=rows()[:2])
    found = bp.rebasin(model, twin, labelled(model, rows()), points=0)
    assert found.distance[0] > 0.3 and found.distance[1] == pytest.approx(0, abs=1e-7)
    with torch.no_grad():
        assert torch.allclose(found.model(rows()), twin(rows()), atol=1e-5)


def _normalised(seed: int, dtype: torch.dtype) -> nn.Sequential:
    """Gains are ones, as a network begins with them: no order of axes changes these."""
    torch.manual_seed(seed)
    layers = nn.Linear(6, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 3)
    model = nn.Sequential(*layers).to(dtype)
    model(rows().to(dtype))
    return model.eval()


@pytest.mark.sample(default=2)
@pytest.mark.parametrize("scales", ["kept", "matched"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gains_that_are_all_one_count_where_signs_reach_them(dtype: Any, scales: Any) -> None:
    a, b = (_normalised(seed, dtype) for seed in (0, 1))
    x = rows().to(dtype)
    found = bp.rebasin(a, b, [(x, a(x).argmax(1))], points=0, scales=scales)
    with torch.no_grad():
        assert torch.allclose(found.model(x), b(x), atol=1e-4)
    if scales == "kept":
        assert found.distance[1] < found.distance[0]
    element = bp.symmetries(b, x)["0"].group.draw(seeded(3))
    signs = type(element)(element.columns, element.factors.sign())  # pyright: ignore
    twin = bp.reparametrize(a, "0", signs, example_input=x)
    again = bp.rebasin(a, twin, [(x, a(x).argmax(1))], points=0)
    assert again.distance[0] > 0.1 and again.distance[1] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("bend", [nn.ReLU, nn.GELU, nn.Tanh])
def test_the_second_network_keeps_its_function_and_comes_nearer(bend: type[nn.Module]) -> None:
    a, b = mlp(0, bend, width=16), mlp(1, bend, width=16)
    before = {name: value.clone() for name, value in b.state_dict().items()}
    data = labelled(a, rows())
    found = bp.rebasin(a, b, data, points=5)
    with torch.no_grad():
        assert torch.allclose(found.model(rows()), b(rows()), atol=1e-5)
    assert found.distance[1] < found.distance[0]
    assert all(torch.equal(before[name], value) for name, value in b.state_dict().items())
    frame = found.to_dataframe()
    assert list(frame.t) == [0, 0.25, 0.5, 0.75, 1]
    for end in (0, 4):
        assert frame.loss_before[end] == pytest.approx(frame.loss_after[end], abs=1e-6)
    with torch.no_grad():
        x, y = rows(), a(rows()).argmax(1)
        weights = [m.state_dict() for m in (a, b)]
        middle = mlp(0, bend, width=16)
        middle.load_state_dict({k: (weights[0][k] + weights[1][k]) / 2 for k in weights[0]})
        expected = float(nn.functional.cross_entropy(middle(x), y))
    assert frame.loss_before[2] == pytest.approx(expected, abs=1e-5)
    assert len(found.plot().axes[0].lines) == 2


def _small_gpt2(seed: int) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": 13, "n_positions": 8, "n_embd": 12, "n_layer": 2, "n_head": 3}
    torch.manual_seed(seed)
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).eval()


def _stages(seed: int) -> tuple[nn.Module, list[Any]]:
    return Stage(seed), [images()[:4]]


def _words(seed: int) -> tuple[nn.Module, list[Any]]:
    ids = torch.randint(0, 13, (3, 6), generator=seeded(0))
    return _small_gpt2(seed), [{"input_ids": ids}]


def _signed(seed: int) -> tuple[nn.Module, list[Any]]:
    return mlp(seed, nn.Tanh), [rows()]


def _gained(seed: int) -> tuple[nn.Module, list[Any]]:
    return _normalised(seed, torch.float64), [rows().double()]


@pytest.mark.parametrize("made", [_stages, _words, _signed, _gained])
def test_elements_act_together_as_they_do_one_after_the_other(made: Any) -> None:
    (one, data), (other, _) = made(0), made(1)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    found = bp.rebasin(one, other, data, points=0)
    moved = other
    for site, element in found.elements.items():
        moved = bp.reparametrize(moved, site, element, example_input=data[0])
    assert found.elements
    for name, value in found.model.state_dict().items():
        torch.testing.assert_close(value, moved.state_dict()[name], rtol=1e-6, atol=1e-7)
    for name, value in other.state_dict().items():
        assert torch.equal(value, before[name])


class _Tied(nn.Module):
    """A table that is read at both ends, with a residual stream between them."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.table, self.norm, self.last = nn.Embedding(11, 8), nn.LayerNorm(8), nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.table(ids)
        x = x + self.down(nn.functional.gelu(self.up(self.norm(x))))
        return self.head(self.last(x))


def test_what_is_tied_stays_tied_where_it_is_moved_alike() -> None:
    ids = torch.arange(22).reshape(2, 11) % 11
    one, other = _Tied(0), _Tied(1)
    moved = bp.rebasin(one, other, [ids], points=2).model
    assert not torch.equal(moved.table.weight, other.table.weight)
    assert moved.head.weight is moved.table.weight
    assert torch.allclose(moved(ids), other(ids), atol=1e-5)


def test_no_order_of_one_family_matches_better() -> None:
    """Pairwise exchanges of axes cannot improve what was found."""
    a, b = mlp(0, width=7), mlp(1, width=7)
    found = bp.rebasin(a, b, labelled(a, rows()), points=0).model

    def match(order: Tensor) -> float:
        # The first hidden layer: rows of the weight and the bias in front, columns behind.
        with torch.no_grad():
            total = (a[0].weight * found[0].weight[order]).sum()
            total += (a[0].bias * found[0].bias[order]).sum()
            return float(total + (a[2].weight * found[2].weight[:, order]).sum())

    best = match(torch.arange(7))
    for i in range(7):
        for j in range(i):
            order = torch.arange(7)
            order[[i, j]] = order[[j, i]]
            assert match(order) <= best + 1e-5


@pytest.mark.usefixtures("as_shipped")
def test_what_makes_no_sense_is_refused() -> None:
    data = labelled(mlp(0), rows())
    with pytest.raises(ValueError, match="give two of the same architecture"):
        bp.rebasin(mlp(0), mlp(0, width=12), data)
    with pytest.raises(ValueError, match="scales='free'"):
        bp.rebasin(mlp(0), mlp(1), data, scales="free")
    for points in (-1, 2.5, "3"):
        with pytest.raises(ValueError, match=f"points='?{points}'?: give a whole number"):
            bp.rebasin(mlp(0), mlp(1), data, points=points)  # pyright: ignore
    with pytest.raises(bp.DataError, match="read only once"):
        bp.rebasin(mlp(0), mlp(1), iter(data))
    linear = [nn.Linear(6, 4), nn.Linear(6, 4)]
    with pytest.raises(bp.SiteError, match="no place whose axes"):
        bp.rebasin(*linear, data)


def test_networks_whose_weights_lie_elsewhere_are_refused_by_the_name_of_one() -> None:
    here, there = (nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)) for _ in range(2))
    there.to("meta")
    for pair in ((here, there), (there, here)):
        with pytest.raises(ValueError, match=r"0\.weight is off-loaded or on the meta device"):
            bp.rebasin(*pair, [torch.randn(8, 4)])


def test_both_lines_begin_at_the_first_network() -> None:
    torch.manual_seed(0)
    one, other = (nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 3)) for _ in range(2))
    x = torch.randn(50, 4)
    found = bp.rebasin(one, other, [(x, one(x).argmax(1))], points=3)
    assert [point.t for point in found.path] == [0.0, 0.5, 1.0]
    assert found.path[0].before == found.path[0].after
    assert found.path[0].before.accuracy == 1.0
    assert found.path[1].before != found.path[1].after
    assert math.isclose(found.path[2].before.loss, found.path[2].after.loss, rel_tol=1e-5)


def test_lines_end_with_the_functions_of_the_first_network() -> None:
    """Signs that tanh allows change what ReLU makes of the same weights."""
    torch.manual_seed(0)
    one, other = (
        nn.Sequential(nn.Linear(4, 6), bend, nn.Linear(6, 3)) for bend in (nn.ReLU(), nn.Tanh())
    )
    x = torch.randn(50, 4)
    labels = other(x).argmax(1)
    found = bp.rebasin(one, other, [(x, labels)], points=2)
    for end, told in ((other, found.path[-1].before), (found.model, found.path[-1].after)):
        made = copy.deepcopy(one)
        made.load_state_dict(end.state_dict())
        loss = nn.functional.cross_entropy(made(x), labels).item()
        assert told.loss == pytest.approx(loss, rel=1e-5)
    assert found.path[-1].before.loss != pytest.approx(found.path[-1].after.loss, rel=1e-3)


_RUNS: list[int] = []


class _Counted(nn.Module):
    """A network that says when it, or a copy of it, runs."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.seed, self.first, self.bend = seed, nn.Linear(4, 6), nn.GELU()
        self.norm, self.second = nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _RUNS.append(self.seed)
        return self.second(self.norm(self.bend(self.first(x))))


@pytest.mark.parametrize("batch_norm", ["kept", "recomputed"])
def test_networks_on_a_line_are_those_of_interpolated_weights(batch_norm: Any) -> None:
    one, other = _Counted(0).eval(), _Counted(1).eval()
    data = list(torch.randn(200, 4, generator=torch.Generator().manual_seed(2)).split(50))
    found = bp.rebasin(one, other, data, points=4, batch_norm=batch_norm)
    for point in found.path:
        for end, told in ((other, point.before), (found.model, point.after)):
            made = copy.deepcopy(one)
            there = end.state_dict()
            made.load_state_dict(
                {
                    name: value + point.t * (there[name] - value)
                    for name, value in made.state_dict().items()
                }
            )
            with torch.no_grad():
                if batch_norm == "recomputed" and 0 < point.t < 1:
                    made.norm.reset_running_stats()
                    made.norm.momentum = None
                    made.train()
                    for x in data:
                        made(x)
                    made.eval()
                losses = [
                    float((made(x) - other(x)).square().sum() / other(x).square().sum())
                    for x in data
                ]
            assert told.loss == pytest.approx(sum(losses) / len(losses), rel=1e-4, abs=1e-10)


def test_the_second_network_is_asked_once_what_the_line_is_compared_with() -> None:
    one, other = _Counted(0).eval(), _Counted(1).eval()
    ran: dict[int, int] = {}
    for many in (5, 25):
        data = list(torch.randn(many, 40, 4, generator=torch.Generator().manual_seed(2)))
        _RUNS.clear()
        bp.rebasin(one, other, data, points=4, batch_norm="kept")
        ran[many] = len(_RUNS)
    # The first, two networks at each of three points, and the second itself.
    assert ran[25] - ran[5] == (1 + 2 * 3 + 1) * 20
