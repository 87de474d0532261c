"""Two networks joined: twins without a seam, strangers within a group, originals untouched."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import assets
import pytest
import torch
import torch.nn.functional as F
from draws import seeded
from networks import Stage, images, labelled, mlp, rows
from torch import Tensor, nn

import basis_probe as bp
from basis_probe.compare.layers import Birkhoff, sinkhorn
from basis_probe.compare.stitching import Stitched, StitchedModel

TWINS: dict[str, tuple[Callable[[], nn.Module], str, str, Callable[[], Tensor]]] = {
    "relu": (lambda: mlp(0), "1", "positive-monomial", rows),
    "gelu": (lambda: mlp(0, nn.GELU), "3", "permutation", rows),
    "tanh": (lambda: mlp(0, nn.Tanh), "1", "signed-permutation", rows),
    "residual stage": (lambda: Stage(0), "relu():2", "positive-monomial", images),
    "inside the stage": (lambda: Stage(0), "relu()", "positive-monomial", images),
}


@pytest.mark.sample(default=3)
@pytest.mark.parametrize("name", TWINS)
def test_a_twin_is_joined_without_a_seam(name: str) -> None:
    build, site, kind, inputs = TWINS[name]
    model = build().eval()
    symmetry = bp.symmetries(model, inputs()[:2], certificates=False)[site]
    assert symmetry.group.name == kind
    planted = symmetry.group.draw(seeded(3))
    twin = bp.reparametrize(model, site, planted, example_input=inputs()[:2])
    found = bp.stitch(model, twin, site, labelled(model, inputs()))
    assert found.group == symmetry.group
    assert abs(found.penalty) < 0.001 and abs(found.loss_penalty) < 1e-5
    assert found.fit == pytest.approx(1.0, abs=1e-9)
    assert found.element is not None
    with torch.no_grad():
        live = model_site(model, site, inputs()).std(0) > 0
    learned, wanted = found.element.matrix(), planted.matrix()
    # A neuron that is dead on all data can be matched to any other one.
    learned, wanted = learned[:, live], wanted[:, live]
    assert torch.equal(learned != 0, wanted != 0)
    assert torch.allclose(learned, wanted, rtol=1e-4, atol=0)
    assert "nothing was trained" in " ".join(found.notes)


def model_site(model: nn.Module, site: str, x: Tensor) -> Tensor:
    from basis_probe.compare.running import Network
    from basis_probe.model.batches import batch_of
    from basis_probe.model.network import recognise

    batch = batch_of(x, number=0, tokenizer=None, device=torch.device("cpu"))
    return Network(recognise(model), batch, site).run(batch)[site].rows


def test_the_joined_network_is_the_front_the_layer_and_the_back() -> None:
    a, b = mlp(0), mlp(1)
    found = bp.stitch(a, b, "1", labelled(b, rows()), group="general-linear", epochs=1)
    x = rows()[:7]
    with torch.no_grad():
        expected = b[2:](a[:2](x) @ found.matrix.T.float())
        assert torch.allclose(found.model(x), expected, atol=1e-5)
    # Least squares is the closed form.
    closed = bp.stitch(a, b, "1", labelled(b, rows()), group="general-linear", epochs=0)
    with torch.no_grad():
        solution = torch.linalg.lstsq(a[:2](rows()).double(), b[:2](rows()).double()).solution
    live = a[:2](rows()).detach().std(0) > 0
    assert torch.allclose(closed.matrix.T[live], solution[live], atol=1e-4)
    assert closed.curve == () and closed.initial == closed.stitched


GROUPS = (
    {"group": "general-linear"},
    {"group": "general-linear", "rank": 2},
    {"group": "general-linear", "method": "lasso", "sparsity": 0.05},
    {"group": "orthogonal"},
    {"group": "permutation"},
    {"group": "permutation", "method": "birkhoff"},
    {"group": "positive-monomial"},
    {"group": "positive-monomial", "method": "birkhoff"},
    {"group": "monomial"},
    {"group": "trivial"},
    {"group": bp.groups.Blocks(bp.groups.Orthogonal(5), count=2)},
)


@pytest.mark.sample(default=6)
@pytest.mark.parametrize("options", GROUPS, ids=str)
def test_only_the_layer_is_trained_and_it_stays_in_its_group(options: dict[str, object]) -> None:
    a, b = mlp(0).train(), mlp(1).eval()
    before = [{n: v.clone() for n, v in m.state_dict().items()} for m in (a, b)]
    state = torch.get_rng_state()
    found = bp.stitch(a, b, "1", labelled(b, rows()), epochs=2, learning_rate=0.02, **options)
    for model, kept in zip((a, b), before, strict=True):
        assert all(torch.equal(kept[name], value) for name, value in model.state_dict().items())
        assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert a.training and not b.training and torch.equal(state, torch.get_rng_state())
    learned = [name for name, p in found.model.named_parameters() if p.requires_grad]
    assert all(name.startswith("layer.") for name in learned)
    for part, kept in zip((found.model.front, found.model.back), before, strict=True):
        assert all(torch.equal(kept[name], value) for name, value in part.state_dict().items())
    if options["group"] == "general-linear":
        if "rank" in options:
            assert int((torch.linalg.svdvals(found.matrix) > 1e-5).sum()) == 2
    else:
        assert found.group.contains(found.matrix, atol=1e-4)
    assert found.stitched.loss <= found.initial.loss + 1e-6 or options.get("method") == "birkhoff"
    assert math.isfinite(found.penalty) and "penalty" in str(found)


def test_larger_groups_stitch_better() -> None:
    a, b = mlp(0), mlp(1)
    data = labelled(b, rows())
    fits = [
        bp.stitch(a, b, "1", data, group=group, epochs=0).fit
        for group in ("trivial", "permutation", "positive-monomial", "general-linear")
    ]
    assert fits == sorted(fits)
    ranks = [
        bp.stitch(a, b, "1", data, group="general-linear", rank=rank, epochs=0).fit
        for rank in (1, 3, 10)
    ]
    assert ranks == sorted(ranks) and ranks[-1] == pytest.approx(fits[-1], abs=1e-6)


@pytest.mark.parametrize("rank", [1, 3, 7])
@pytest.mark.parametrize("spread", [0.0, 3.0])
def test_a_map_of_some_rank_is_the_best_of_its_rank(rank: int, spread: float) -> None:
    a, b = mlp(0), mlp(1)
    with torch.no_grad():
        a[0].weight *= torch.logspace(-spread, spread, 10)[:, None]  # pyright: ignore
        a[0].bias *= torch.logspace(-spread, spread, 10)  # pyright: ignore
        x, y = (model[:2](rows()).double() for model in (a, b))  # pyright: ignore
    data = labelled(b, rows())
    found = bp.stitch(a, b, "1", data, group="general-linear", rank=rank, epochs=0)
    full = torch.linalg.lstsq(x, y).solution
    leading = torch.linalg.svd(x @ full).Vh[:rank]
    best = 1 - float((y - x @ full @ leading.T @ leading).square().sum() / y.square().sum())
    assert found.fit == pytest.approx(best, abs=1e-5)
    # No map of that rank that is near it fits better.
    left, into = found.matrix.double(), seeded(rank)
    u, s, v = torch.linalg.svd(left)
    for _ in range(20):
        turned = u[:, :rank] * s[:rank] + 0.02 * torch.randn(10, rank, generator=into)
        other = turned @ (v[:rank] + 0.02 * torch.randn(rank, 10, generator=into)).double()
        assert 1 - float((y - x @ other.T).square().sum() / y.square().sum()) <= found.fit + 1e-6


def test_training_that_does_worse_on_what_was_held_out_is_taken_back() -> None:
    a, b = mlp(0), mlp(1)
    data, held_out = labelled(b, rows()[:40]), labelled(b, rows()[40:])
    for rank in (1, 4, None):
        found = bp.stitch(
            a, b, "1", data, group="general-linear", rank=rank, held_out=held_out,
            epochs=6, learning_rate=0.3,
        )  # fmt: skip
        assert found.stitched.loss <= found.initial.loss


def test_a_lasso_is_sparser() -> None:
    a, b = mlp(0), mlp(1)
    data = labelled(b, rows())
    sizes = [
        float(
            bp.stitch(
                a, b, "1", data, group="general-linear", method="lasso", sparsity=sparsity,
                epochs=8, learning_rate=0.02,
            ).matrix.abs().sum()
        )
        for sparsity in (0.0, 0.05)
    ]  # fmt: skip
    assert sizes[1] < 0.7 * sizes[0]


def test_the_birkhoff_matrix_is_doubly_stochastic_until_it_is_an_order() -> None:
    layer = Birkhoff(6, scales=True, reward=1e-3, generator=seeded(0))
    layer.mixing.data -= 0.1
    layer.project()
    for axis in (0, 1):
        assert torch.allclose(layer.mixing.sum(axis), torch.ones(6), atol=1e-3)
    layer.harden()
    assert torch.equal(layer.mixing.sum(0), torch.ones(6))
    assert torch.equal(layer.mixing.sum(1), torch.ones(6))
    assert bool(((layer.mixing == 0) | (layer.mixing == 1)).all())
    assert layer.penalty() is None and not layer.mixing.requires_grad
    assert torch.allclose(sinkhorn(torch.eye(3)), torch.eye(3))


def test_statistics_of_batch_normalisation_are_recomputed_and_that_is_said() -> None:
    a, b = Stage(0), Stage(1)
    data = labelled(b, images(), 40)
    found = bp.stitch(a, b, "relu():2", data, group="orthogonal", epochs=1)
    assert "averaged anew" in found.notes[-1]
    kept = bp.stitch(a, b, "relu()", data, group="orthogonal", epochs=1, batch_norm="kept")
    assert "those of the originals" in kept.notes[-1]
    for name, value in kept.model.back.named_buffers():
        assert torch.equal(value, dict(b.named_buffers())[name])
    # Behind the place the statistics are those of what now comes there.
    joined = bp.stitch(a, b, "relu()", data, group="trivial", epochs=0).model
    front = copy.deepcopy(a).train()
    with torch.no_grad():
        parts = [F.relu(front.norm(front.stem(part))) for part in images().split(40)]
        means = torch.stack([b.conv1(part).mean((0, 2, 3)) for part in parts]).mean(0)
    assert not joined.training and joined.back.norm1.momentum == 0.1
    assert torch.allclose(joined.back.norm1.running_mean, means, atol=1e-5)
    assert not torch.allclose(b.norm1.running_mean, means, atol=1e-4)
    # Before it, where nothing is read, they stay as they are.
    for name, value in joined.back.norm.named_buffers():
        assert torch.equal(value, dict(b.norm.named_buffers())[name])


def test_without_labels_the_second_network_is_the_target() -> None:
    a, b = mlp(0), mlp(1)
    found = bp.stitch(a, b, "1", list(rows().split(100)), epochs=3)
    assert math.isnan(found.penalty) and found.second.loss == pytest.approx(0, abs=1e-12)
    assert 0 < found.stitched.loss < found.first.loss and "loss" in str(found)
    own = bp.stitch(
        a, b, "1", list(rows().split(100)), epochs=0,
        objective=lambda outputs, raw: (outputs - raw[:, :4]).square().mean(),
    )  # fmt: skip
    with torch.no_grad():
        assert own.first.loss == pytest.approx(float((a(rows()) - rows()[:, :4]).square().mean()))


def test_different_widths_and_places_are_joined() -> None:
    a, b = mlp(0, width=14), mlp(1)
    for group in ("general-linear", "orthogonal", "permutation", "positive-monomial"):
        found = bp.stitch(a, b, "1", labelled(b, rows()), other_site="3", group=group, epochs=1)
        assert found.matrix.shape == (10, 14) and found.element is None
        assert found.sites == ("1", "3")
    small = Stage(1)
    small.stem.stride = (2, 2)
    assert bp.stitch(Stage(0), small, "relu()", labelled(small, images(), 40), epochs=0).fit < 1


def test_a_curve_over_places_and_groups() -> None:
    a, b = mlp(0), mlp(1)
    curve = bp.stitching_curve(a, b, labelled(b, rows()), groups=("general-linear", None), epochs=0)
    frame = curve.to_dataframe()
    assert list(frame.site) == ["1", "3", "1", "3"]
    assert list(frame.group) == ["general-linear"] * 2 + ["positive-monomial"] * 2
    assert len(curve.plot().axes[0].lines) == 2


REFUSED: dict[str, tuple[dict[str, object], type[Exception], str]] = {
    "site": ({"site": "nowhere"}, bp.SiteError, "no site matches"),
    "several sites": ({"site": "*"}, bp.SiteError, "sites were named where one is needed"),
    "read once": ({"data": iter([rows()])}, bp.DataError, "can be read only once"),
    "empty": ({"data": []}, bp.DataError, "no batch"),
    "rank": ({"rank": 2}, ValueError, "belong to linear maps"),
    "rank of zero": ({"rank": 0, "group": "GL"}, ValueError, "rank=0"),
    "method": ({"method": "softsort"}, ValueError, "method='softsort'"),
    "birkhoff": ({"method": "birkhoff", "group": "orthogonal"}, ValueError, "is neither"),
    "epochs": ({"epochs": -1}, ValueError, "epochs=-1"),
    "statistics": ({"batch_norm": "frozen"}, ValueError, "batch_norm='frozen'"),
    "an input": ({"site": "2:in", "other_site": "2:in"}, bp.SiteError, "name the place where"),
    "kinds": ({"other_site": "4"}, bp.SiteError, "compare places of one kind"),
    "in place": (
        {"other_site": "4", "group": "trivial"},
        ValueError,
        "10 axes cannot be joined to 4",
    ),
}


@pytest.mark.usefixtures("as_shipped")
@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_sense_is_refused(case: str) -> None:
    given, kind, message = REFUSED[case]
    options = {"site": "1", "data": [rows()], **given}
    with pytest.raises(kind, match=message):
        bp.stitch(mlp(0), mlp(1), options.pop("site"), options.pop("data"), **options)


def test_nan_is_refused() -> None:
    with pytest.raises(bp.DataError, match="NaN or infinite"):
        bp.stitch(mlp(0), mlp(1), "1", [torch.full((5, 6), math.nan)])


@pytest.mark.slow
def test_a_trained_resnet_is_joined_to_its_twin() -> None:
    model = assets.resnet(20)
    x, y = assets.cifar(1000, colours=assets.RESNET_COLOURS)
    data = list(zip(x.split(250), y.split(250), strict=True))
    for site in ("layer2.1", "layer1.2.relu()"):
        group = bp.symmetries(model, x[:2], certificates=False)[site].group
        # The shortcuts of a ResNet keep the channels of a stage in three parts.
        assert group.name == ("direct-sum" if site == "layer2.1" else "positive-monomial")
        planted = group.draw(seeded(5))
        twin = bp.reparametrize(model, site, planted, example_input=x[:2])
        found = bp.stitch(model, twin, site, data)
        assert abs(found.penalty) < 0.001
        assert found.element is not None
        live = model_site(model, site, x[:100]).std(0) > 0
        learned, wanted = found.element.matrix()[:, live], planted.matrix()[:, live]
        assert torch.equal(learned != 0, wanted != 0)
        assert torch.allclose(learned, wanted, rtol=1e-4, atol=0)


def test_a_joined_network_can_be_copied_and_moved() -> None:
    a, b = mlp(0), mlp(1)
    found: Stitched = bp.stitch(a, b, "1", labelled(b, rows()), epochs=0)
    again = copy.deepcopy(found.model).double()
    assert isinstance(again, StitchedModel)
    with torch.no_grad():
        made = again(rows().double())
    assert made.dtype == torch.float64
    assert torch.allclose(made.float(), found.model(rows()).detach(), atol=1e-5)


_RUNS: list[str] = []
"""What ran; beside the networks, whose own attributes are put back."""


class _Counting(nn.Module):
    """A network that says when it, or a copy of it, runs."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.act, self.second = nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        _RUNS.append("")
        return self.second(self.act(self.first(x)))


def test_a_closed_form_runs_the_first_network_once_and_the_second_twice_for_a_batch() -> None:
    """By itself, where it is judged and its activations are read; the second also as joined."""
    models, ran = (_Counting(1), _Counting(2)), dict[int, int]()
    generator = torch.Generator().manual_seed(3)
    for many in (5, 25):
        x = torch.randn(many, 40, 4, generator=generator)
        data = [(rows, rows.argmax(1) % 3) for rows in x]
        _RUNS.clear()
        found = bp.stitch(*models, "act", data, epochs=0, progress=False)
        ran[many] = len(_RUNS)
        again = bp.stitch(*models, "act", data, held_out=data, epochs=0, progress=False)
        assert found.first == again.first
        assert found.second == again.second
        assert found.stitched == found.initial == again.stitched
    assert ran[25] - ran[5] == 3 * 20


class _Block(nn.Module):
    """A layer that says when it, or a copy of it, runs."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.linear = name, nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        _RUNS.append(self.name)
        return F.relu(self.linear(x) + 0.5)


class _Blocks(nn.Module):
    """Three blocks one after the other."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.second, self.third = (_Block(f"{seed} {place}") for place in range(3))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.behind(self.first(x))

    def behind(self, x: Tensor) -> Tensor:
        return self.head(self.third(self.second(x)))


class _Bypassed(_Blocks):
    """What comes before the place is read beside it."""

    def forward(self, x: Tensor) -> Tensor:
        before = self.first(x)
        return self.behind(before) + before[:, :3]


class _Asking(_Blocks):
    """A number of what comes before the place decides what is done behind it."""

    def forward(self, x: Tensor) -> Tensor:
        before = self.first(x)
        behind = self.behind(before)
        return behind if float(before.sum()) > 1 else -behind


class _AskingOfLarge(_Blocks):
    """The same where zeros, and the first batches, have the same answer."""

    def forward(self, x: Tensor) -> Tensor:
        before = self.first(x)
        behind = self.behind(before)
        return behind if float(before.sum()) < 500 else -behind


class _Reading(_Blocks):
    """A number of what comes before the place is a number behind it."""

    def forward(self, x: Tensor) -> Tensor:
        before = self.first(x)
        return self.behind(before) * before.mean().item()


class _Writing(_Blocks):
    """What comes before the place is written over."""

    def forward(self, x: Tensor) -> Tensor:
        before = self.first(x)
        before += 1
        return self.behind(before)


class _Hooked(_Blocks):
    """What comes before the place is watched by others."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.first.register_forward_hook(lambda *_: None)


BEFORE = (_Blocks, _Writing, _Bypassed, _Asking, _AskingOfLarge, _Reading, _Hooked)


def _growing() -> Tensor:
    """Rows of which the first third are small, others large."""
    x = torch.randn(600, 6, generator=seeded(3))
    return x * torch.where(torch.arange(600) < 200, 1.0, 100.0)[:, None]


@pytest.mark.parametrize("build", BEFORE)
def test_what_comes_before_the_second_place_is_left_out_only_where_nothing_reads_it(
    build: type[_Blocks],
) -> None:
    models = build(1).eval(), build(2).eval()
    _RUNS.clear()
    data = labelled(models[1], _growing(), 20)
    _RUNS.clear()
    found = bp.stitch(*models, "second", data, epochs=0, progress=False)
    counts = Counter(_RUNS)
    with torch.no_grad():
        losses = [F.cross_entropy(found.model(x), labels) for x, labels in data]
    assert found.stitched.loss == pytest.approx(float(torch.stack(losses).mean()), rel=1e-6)
    # The first network runs once; a few runs besides are those in which the networks are looked at.
    assert counts["1 0"] < 40 and counts["2 2"] >= 60
    left_out = build in (_Blocks, _Writing)
    assert counts["2 0"] < 40 if left_out else counts["2 0"] >= 60


@pytest.mark.parametrize("build", [_Bypassed, _Asking, _Reading])
def test_a_module_that_is_missed_is_not_left_out_whatever_was_followed(
    build: type[_Blocks], monkeypatch: pytest.MonkeyPatch
) -> None:
    from basis_probe.compare import stitching

    monkeypatch.setattr(stitching, "unread_before", lambda *_: ("first",))
    models = build(1).eval(), build(2).eval()
    data = labelled(models[1], torch.randn(200, 6, generator=seeded(3)), 20)
    found = bp.stitch(*models, "second", data, epochs=0, progress=False)
    with torch.no_grad():
        losses = [F.cross_entropy(found.model(x), labels) for x, labels in data]
    assert found.stitched.loss == pytest.approx(float(torch.stack(losses).mean()), rel=1e-6)


class _Measuring(nn.Module):
    """A layer that leaves behind how long one axis of its input is."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis, self.linear, self.length = axis, nn.Linear(6, 6), 0

    def forward(self, x: Tensor) -> Tensor:
        self.length = x.shape[self.axis]
        return F.relu(self.linear(x) + 0.5)


class _Remembered(_Blocks):
    """What the first layer left behind is read at the end."""

    def __init__(self, seed: int, axis: int) -> None:
        super().__init__(seed)
        self.measuring = _Measuring(axis)

    def forward(self, x: Tensor) -> Tensor:
        made = self.behind(self.measuring(x))
        return made * self.measuring.length + self.measuring.length


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("other_data", [False, True])
def test_modules_run_that_leave_behind_what_later_ones_read(axis: int, other_data: bool) -> None:
    models = _Remembered(1, axis).eval(), _Remembered(2, axis).eval()
    shapes = [(20, 3, 6), (20, 3, 6), (4, 3, 6) if axis == 0 else (20, 5, 6)]
    data = [torch.randn(shape, generator=seeded(place)) for place, shape in enumerate(shapes)]
    read = data[1:] if other_data else data
    found = bp.stitch(
        *models, "second", data, held_out=read if other_data else None, epochs=0, progress=False
    )
    total = 0.0
    with torch.no_grad():
        for x in read:
            wanted = models[1](x)
            left = (found.model(x) - wanted).square().sum() / wanted.square().sum()
            total += float(left) * len(x)
    assert found.stitched.loss == pytest.approx(total / sum(map(len, read)), rel=1e-5)


class _TwoAnswers(_Blocks):
    """Of two answers the first, of which the loss is made, does not read the last block."""

    def forward(self, x: Tensor) -> Any:
        second = self.second(self.first(x))
        return self.head(second), self.third(second)


def test_a_layer_that_the_loss_does_not_reach_is_not_trained() -> None:
    models = _TwoAnswers(1).eval(), _TwoAnswers(2).eval()
    data = [torch.randn(30, 6, generator=seeded(3))]
    options: dict[str, Any] = {"group": "general-linear", "progress": False}
    with pytest.raises(bp.errors.SiteError, match="does not depend on the place"):
        bp.stitch(*models, "third", data, **options)
    found = bp.stitch(*models, "third", data, epochs=0, **options)
    assert found.stitched.loss == pytest.approx(0, abs=1e-10)
    found = bp.stitch(
        *models, "third", data, objective=lambda out, _: out[1].square().sum(), **options
    )
    assert found.curve


class _Refilled:
    """Batches that come in the same memory every time."""

    def __init__(self, batches: list[Tensor], *, other_order: bool) -> None:
        self.batches, self.other_order, self.memory = batches, other_order, batches[0].clone()

    def __iter__(self) -> Iterator[Tensor]:
        for batch in self.batches:
            yield self.memory.copy_(batch)
        if self.other_order:
            self.batches.reverse()


@pytest.mark.parametrize("other_order", [False, True])
def test_what_was_made_of_a_batch_is_taken_again_for_the_same_numbers_only(
    other_order: bool,
) -> None:
    batches = list(rows().split(100))
    plain = bp.stitch(mlp(0), mlp(1), "1", batches, epochs=0, progress=False)
    data = _Refilled([*batches], other_order=other_order)
    found = bp.stitch(mlp(0), mlp(1), "1", data, epochs=0, progress=False)
    assert found.stitched.loss == pytest.approx(plain.stitched.loss, rel=1e-6)
    assert found.first.loss == pytest.approx(plain.first.loss, rel=1e-6)


@pytest.mark.parametrize("noise", [0.0, 1e-6, 1e-3])
def test_wide_places_are_matched_and_what_is_left_over_is_told_to_nine_digits(
    noise: float,
) -> None:
    """So much is multiplied that single precision is worth its rounding."""
    generator = seeded(0)
    one = nn.Sequential(nn.Linear(16, 256), nn.ReLU(), nn.Linear(256, 3))
    order = torch.randperm(256, generator=generator)
    other = copy.deepcopy(one)
    with torch.no_grad():
        for part in ("weight", "bias"):
            given = getattr(one[0], part)
            near = given[order] + noise * torch.randn(given.shape, generator=generator)
            getattr(other[0], part).copy_(near)
        other[2].weight.copy_(one[2].weight[:, order])
    x = torch.randn(1100, 16, generator=generator)
    with torch.no_grad():
        data = [(x, other(x).argmax(1))]
        h, k = one[:2](x).double(), other[:2](x).double()
    found = bp.stitch(one, other, "1", data, epochs=0, progress=False)
    assert torch.equal(found.matrix.argmax(1), order)
    left = (k - h @ found.matrix.T).square().sum() / k.square().sum()
    tolerance = 1e-9 if left < 1e-5 else 1e-6
    assert found.fit == pytest.approx(1 - float(left), abs=tolerance)
    assert ("nothing was trained" in " ".join(found.notes)) == (float(left) <= 1e-9)
