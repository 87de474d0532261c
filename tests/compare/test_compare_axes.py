"""Do several trainings come to the same axes: exact nulls, and axes that are the same."""

import copy
import itertools
import math

import pytest
import torch
from draws import seeded
from torch import Tensor, nn

import basis_probe as bp
from basis_probe.algebra.haar import haar, haar_fixing
from basis_probe.statistics.shared_axes import (
    AllAxes,
    Fit,
    InBlocks,
    Side,
    Turn,
    between,
    compare,
    interval,
    matched,
    polar,
)


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


# --- the numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 4), (5, 3)])
def test_the_best_matching_is_the_best_of_all(shape: tuple[int, int]) -> None:
    values = _normal(*shape)
    best = max(
        sum(float(values[row, column]) for column, row in enumerate(rows))
        for rows in itertools.permutations(range(shape[0]), shape[1])
    )
    assert math.isclose(matched(values), best / shape[1])


@pytest.mark.parametrize("line", [False, True])
def test_the_best_rotation_is_found(line: bool) -> None:
    ones = torch.ones(1, 9, dtype=torch.float64)
    turn = haar_fixing(ones, seeded(1)) if line else haar(9, seeded(1))
    x = _normal(60, 9)
    x = x - x.mean(1, keepdim=True) if line else x
    found = polar(x.T @ (x @ turn), line=line, seed=0)
    across = torch.eye(9, dtype=torch.float64) - line * ones.T @ ones / 9
    torch.testing.assert_close(found, across @ turn)


@pytest.mark.parametrize("line", [False, True])
def test_what_the_samples_do_not_say_is_random_and_orthogonal(line: bool) -> None:
    x, y = _normal(4, 9), _normal(4, 9, seed=1)
    found = polar(x.T @ y, line=line, seed=3)
    gram = torch.eye(9, dtype=torch.float64) - line * torch.full((9, 9), 1 / 9).double()
    torch.testing.assert_close(found @ found.T, gram)
    assert not torch.allclose(found, polar(x.T @ y, line=line, seed=4))
    torch.testing.assert_close(polar(x.T @ y, line=line, seed=3), found)


def test_turned_products_are_those_of_turned_samples() -> None:
    x, y = _normal(50, 7), _normal(50, 7, seed=1)
    some = torch.tensor([1, 4, 6])
    turns = [Turn(some, haar(3, seeded(s))) for s in (2, 3)]
    turned = [z.clone() for z in (x, y)]
    for z, turn in zip(turned, turns, strict=True):
        z[:, some] = z[:, some] @ turn.matrix
    fit = Fit(rotated=False, line=False, signs=True, seed=0)
    plain = Turn(some)
    one = between(x, y, fit)
    other = between(turned[0], turned[1], fit)
    assert math.isclose(one.shared(*turns), other.shared(plain, plain))
    assert math.isclose(one.convergence(*turns), other.convergence(plain, plain))
    correlations = torch.corrcoef(torch.cat([turned[0], turned[1][:, some]], 1).T)[:7, 7:]
    # Of products about zero, not about the mean.
    norm = torch.nn.functional.normalize
    cosines = norm(turned[0], dim=0).T @ norm(turned[1], dim=0)[:, some]
    assert correlations.shape == cosines.shape
    assert math.isclose(one.shared(*turns), matched(cosines.abs()))


def test_turns_of_blocks_stay_inside_and_copies_turn_alike() -> None:
    blocks = torch.arange(12).reshape(2, 2, 3)
    turn = InBlocks(blocks, reflections=True).draw(seeded(0)).matrix
    torch.testing.assert_close(turn[:3, :3], turn[3:6, 3:6])
    assert (turn[:3, 3:] == 0).all()
    assert (turn[6:9, :6] == 0).all()
    planes = InBlocks(torch.arange(8).reshape(4, 1, 2), reflections=False)
    for seed in range(8):
        whole = planes.draw(seeded(seed)).matrix
        dets = [float(torch.linalg.det(whole[i : i + 2, i : i + 2])) for i in range(0, 8, 2)]
        assert all(math.isclose(det, 1.0) for det in dets)


# --- the level, and what is shared ----------------------------------------------------------------

KINDS = ("stream", "line", "heads", "few rows", "neurons", "more neurons than inputs", "three")


def _sides(kind: str, seed: int, dim: int = 12) -> tuple[list[Side], Fit]:
    """Networks that share their input, and nothing else."""
    generator = seeded(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs = drawn(6 if kind == "few rows" else 60, 8) ** 3 @ drawn(8, 8) + drawn(8)
    sides: list[Side] = []
    for _ in range(3 if kind == "three" else 2):
        if "neurons" in kind:
            width = 8 if kind == "neurons" else 20
            x, turns = inputs @ drawn(8, width), AllAxes(width)
        else:
            x = (inputs @ drawn(8, 16)).relu() @ drawn(16, dim)
            turns = AllAxes(dim, line=kind == "line")
            if kind == "heads":
                turns = InBlocks(torch.arange(dim).reshape(3, 1, -1), reflections=True)
        x = x - x.mean(0)
        sides.append(Side(x - x.mean(1, keepdim=True) if kind == "line" else x, turns))
    rotated = "neurons" not in kind
    return sides, Fit(rotated=rotated, line=kind == "line", signs=rotated, seed=seed)


def _p_values(kind: str, seed: int) -> tuple[float, float]:
    sides, fit = _sides(kind, seed)
    pairs = [
        (a, b, between(sides[a].x, sides[b].x, fit))
        for a, b in itertools.combinations(range(len(sides)), 2)
    ]
    found = compare(sides, pairs, frames=19, seed=seed)
    return tuple(  # type: ignore[return-value]
        float((1 + (v[-1][1:] >= v[-1][0]).sum()) / 20) for v in (found.shared, found.convergence)
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("networks", [30, pytest.param(400, marks=pytest.mark.slow)])
def test_untrained_networks_share_nothing(kind: str, networks: int) -> None:
    several = [_p_values(kind, seed) for seed in range(networks)]
    for values in zip(*several, strict=True):
        low = sum(p <= 0.1 for p in values)
        # Of 30 more than 10 at a rate of 10 %: once in 10,000.
        assert low <= max(10, networks * (0.1 + 3.7 * math.sqrt(0.09 / networks)))


def test_the_interval_holds_what_is_seen_and_narrows() -> None:
    sides, fit = _sides("neurons", 3)
    observed = between(sides[0].x, sides[1].x, fit).shared(*(Turn(s.turns.axes) for s in sides))
    groups = torch.arange(60) % 10
    low, high = interval((sides[0], sides[1]), groups, observed, fit)
    assert 0 <= low < observed < high <= 1
    widths: list[float] = []
    for count in (60, 2400):
        x = _normal(count, 6)
        pair = (Side(x, AllAxes(6)), Side(x + _normal(count, 6, seed=1), AllAxes(6)))
        ends = interval(pair, torch.arange(count) % 10, 0.7, fit)
        widths.append(ends[1] - ends[0])
    assert widths[1] < widths[0] / 2
    assert math.isnan(interval((sides[0], sides[1]), torch.arange(60) % 3, observed, fit)[0])


# --- networks -------------------------------------------------------------------------------------


def _network(seed: int, width: int = 24, bend: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(10, width), bend(), nn.Linear(width, 3))


def _data() -> list[Tensor]:
    return list(torch.randn(4, 60, 10, generator=seeded(0)))


def _compared(models: object, **more: object) -> bp.results.AxesComparison:
    return bp.compare_axes(models, _data(), progress=False, **more)  # type: ignore[arg-type]


def test_the_same_neurons_in_another_order_and_scale_are_the_same() -> None:
    model, other = _network(0), _network(0)
    order, scale = (
        torch.randperm(24, generator=seeded(1)),
        torch.rand(24, generator=seeded(2)) + 0.1,
    )
    with torch.no_grad():
        other[0].weight.copy_((model[0].weight * scale[:, None])[order])
        other[0].bias.copy_((model[0].bias * scale)[order])
        other[2].weight.copy_((model[2].weight / scale)[:, order])
    found = _compared({"one": model, "other": other})["1"]
    assert math.isclose(found.observed, 1.0, abs_tol=1e-6)
    assert found.p_value == found.convergence_p_value == 0.01
    assert (found.first, found.second, found.axes, found.samples) == ("one", "other", 24, 240)
    assert "neurons turned" in found.null


def test_turned_neurons_and_other_seeds_are_not() -> None:
    model, turned = _network(0), _network(0)
    turn = haar(24, seeded(5)).float()
    with torch.no_grad():
        turned[0].weight.copy_(turn @ model[0].weight)
        turned[0].bias.copy_(turn @ model[0].bias)
    comparison = _compared([model, turned, _network(1)])
    frame = comparison.to_dataframe()
    assert list(frame["first"]) == ["0", "0", "1", "all"]
    assert (frame["p_value"] > 0.01).all()
    assert frame["p_adjusted"].max() <= 1
    assert "At none of 1 sites" in str(comparison)
    assert comparison["1"].first == "all"
    assert math.isclose(comparison["1"].observed, float(frame["observed"][:3].mean()))


class _Stream(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Linear(10, 16)
        self.norm, self.up, self.down = nn.RMSNorm(16), nn.Linear(16, 40), nn.Linear(40, 16)
        self.last, self.head = nn.RMSNorm(16), nn.Linear(16, 4)
        for part in (self.embed, self.up, self.down, self.head):
            nn.init.normal_(part.weight, std=0.3)
            nn.init.normal_(part.bias, std=0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.down(self.up(self.norm(x)).relu())
        return self.head(self.last(x))


def test_a_stream_is_compared_after_the_best_rotation() -> None:
    model = _Stream(0)
    same = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in same.parameters():
            parameter += 0.02 * parameter.std() * torch.randn_like(parameter)
    turned = bp.reparametrize(model, "last:in", haar(16, seeded(1)), example_input=_data()[0])
    found = _compared({"a": model, "b": same, "c": turned}, sites="last:in").to_dataframe()
    found = found.set_index(["first", "second"])
    assert found.loc[("a", "b"), "observed"] > 0.95
    assert found.loc[("a", "b"), "p_value"] == 0.01
    # The same function, with other axes.
    assert found.loc[("a", "c"), "p_value"] > 0.01
    assert set(found["null"]) == {"uniform rotations"}
    assert found.loc[("a", "b"), "low"] <= found.loc[("a", "b"), "observed"]


def test_what_cannot_be_compared_is_said() -> None:
    widths = _compared([_network(0), _network(1, width=30)])
    assert len(widths) == 0
    assert "24, 30 axes" in widths.notes[0]
    assert str(widths) == "No site could be compared."
    kinds = _compared([_network(0), _network(1, bend=nn.Tanh)])
    assert "groups of different kinds" in kinds.notes[0]
    broken = _network(1)
    with torch.no_grad():
        broken[0].weight[0] = math.nan
    assert "NaN or infinite" in _compared([_network(0), broken]).notes[0]
    few = bp.compare_axes([_network(0), _network(1)], [torch.randn(9, 10)], progress=False)
    assert "9 samples" in few.notes[0]
    assert next(iter(few.to_dataframe().columns)) == "site"
    with pytest.raises(KeyError, match="no axes were compared at '1'"):
        widths["1"]


def test_what_makes_no_sense_is_refused() -> None:
    model = _network(0)
    for models, message in [
        (model, "list of two or more"),
        ([model], "1 networks"),
        ([model, model], "given twice"),
        ([model, 5], "is a int"),
        (5, "list of two or more"),
    ]:
        with pytest.raises(bp.DataError, match=message):
            _compared(models)
    with pytest.raises(bp.DataError, match="no batch"):
        bp.compare_axes([model, _network(1)], [], progress=False)
    other = nn.Sequential(nn.Flatten(), nn.Linear(10, 5))
    with pytest.raises(bp.SiteError):
        _compared([model, other], sites="2")


@pytest.mark.parametrize("dead", [2, 5])
def test_neurons_that_never_vary_are_left_out(dead: int) -> None:
    def network(seed: int, width: int, first: int) -> nn.Sequential:
        torch.manual_seed(seed)
        layers = nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3)
        made = nn.Sequential(*layers).eval()
        with torch.no_grad():
            made[0].weight[:dead] = 0.0
        if width == 12:
            return made
        short = nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 3)).eval()
        with torch.no_grad():
            short[0].weight.copy_(made[0].weight[first:])
            short[0].bias.copy_(made[0].bias[first:])
        return short

    x = torch.randn(300, 8, generator=torch.Generator().manual_seed(5))
    whole = [network(seed, 12, 0) for seed in (1, 2)]
    alive = [network(seed, 12 - dead, dead) for seed in (1, 2)]
    one, other = (bp.compare_axes(m, [x], progress=False)["1"] for m in (whole, alive))
    assert one.compared == other.compared == 12 - dead and one.axes == 12
    assert one.observed == pytest.approx(other.observed, abs=1e-6)
    assert one.p_value == other.p_value
    assert f"{dead}, {dead} that never vary left out" in one.null
    twin = bp.compare_axes([whole[0], copy.deepcopy(whole[0])], [x], progress=False)["1"]
    assert twin.observed == pytest.approx(1.0) and twin.convergence == pytest.approx(1.0)
