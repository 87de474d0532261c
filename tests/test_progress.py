"""What takes long shows how far it is and how far there is to go, and Ctrl-C keeps what it can."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import tqdm.auto
from torch import Tensor, nn

import basis_probe as bp

# What checks annotations draws random numbers of its own.
pytestmark = pytest.mark.usefixtures("as_shipped")

SIZE, COUNT = 60, 4


class _Model(nn.Module):
    """Raises Ctrl-C when a whole batch of a given number has passed; never for 0."""

    def __init__(self, at: int = 0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))
        self.at, self.passes = at, 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += len(x) == SIZE
        if self.at and self.passes == self.at:
            signal.raise_signal(signal.SIGINT)
        return self.layers(x)


def _data(count: int = COUNT) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(SIZE, 5, generator=generator) for _ in range(count)]


def _loss(output: Tensor, _: Tensor) -> Tensor:
    return output.square().mean()


def _similarity(model: nn.Module, data: Any, **settings: Any) -> bp.results.Similarity:
    settings = {"site": "layers.1", "progress": False} | settings
    return bp.similarity(model, _Model(), data, **settings)


def _ablate(model: nn.Module, data: Any, **settings: Any) -> bp.concepts.Effects:
    return bp.ablate(model, data, site="layers.1", loss=_loss, rotations=2, **settings)


def _top(model: nn.Module, data: Any, **settings: Any) -> bp.results.Examples:
    return bp.top_examples(model, data, site="layers.1", axes=[0, 3], rotated=2, **settings)


def _stitch(model: nn.Module, data: Any, **settings: Any) -> bp.compare.Stitched:
    settings = {"group": "orthogonal", "epochs": 3, "learning_rate": 1e-2} | settings
    torch.manual_seed(1)
    other = _Model()
    nn.init.normal_(other.layers[0].weight)
    return bp.stitch(model, other, "layers.1", data, **settings)


def _layers(model: nn.Module, data: Any, **settings: Any) -> bp.results.LayerMatrix:
    return bp.compare_layers(model, _Model(), data, **settings)


def _networks(model: nn.Module, data: Any, **settings: Any) -> bp.results.NetworkMatrix:
    models = {"one": model, "other": _Model()}
    return bp.compare_networks(models, data, sites="layers.1", **settings)


def _probe(model: nn.Module, data: Any, **settings: Any) -> bp.Report:
    return bp.probe(model, data, sites="layers.1", examples=1, certificates=False, **settings)


BARS: dict[str, tuple[Callable[..., Any], dict[str, int]]] = {
    "similarity": (_similarity, {"running the models": COUNT}),
    "compare_layers": (_layers, {"running the models": COUNT}),
    "compare_networks": (_networks, {"running the models": COUNT}),
    "top_examples": (_top, {"collecting examples": COUNT}),
    "ablate": (_ablate, {"ablating": 6}),
    "stitch": (_stitch, {"training the layer": 3}),
    "probe": (
        _probe,
        {
            "running the model": COUNT,
            "comparing axes with alternatives": 1,
            "collecting examples": COUNT,
        },
    ),
}


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every bar that is made."""
    made: list[Any] = []

    class Bar(tqdm.auto.tqdm):
        def __init__(self, *given: Any, **settings: Any) -> None:
            made.append(self)
            self.total = None
            super().__init__(*given, **settings)

        def close(self) -> None:
            self.reached = getattr(self, "n", 0)
            super().close()

    monkeypatch.setattr(tqdm.auto, "tqdm", Bar)
    return made


@pytest.mark.sample(default=2)
@pytest.mark.parametrize("name", BARS)
def test_a_bar_says_how_far_there_is_to_go(
    name: str, bars: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    call, expected = BARS[name]
    call(_Model(), _data(), progress=True)
    shown = {bar.desc.removesuffix(": "): bar for bar in bars}
    for what, total in expected.items():
        assert (shown[what].total, shown[what].reached) == (total, total), what
    assert all(what in capsys.readouterr().err for what in list(expected)[:1])
    call(_Model(), _data(), progress=False)
    assert capsys.readouterr() == ("", "")


def test_a_stream_that_does_not_know_its_length_has_no_total(bars: list[Any]) -> None:
    class Stream(torch.utils.data.IterableDataset[Tensor]):
        def __iter__(self) -> Iterator[Tensor]:
            return iter(_data())

    streams = (iter(_data()), torch.utils.data.DataLoader(Stream(), batch_size=None))
    for data in streams:
        _top(_Model(), data)
        assert bars[-1].total is None and bars[-1].reached == COUNT


def test_a_part_of_the_data_counts_its_own(bars: list[Any]) -> None:
    bp.observe(_Model(), _data(), sites="layers.1", shard=(1, 3))
    assert bars[-1].total == bars[-1].reached == 1


STOPPED: dict[str, Callable[..., Any]] = {
    "similarity": _similarity,
    "compare_layers": _layers,
    "compare_networks": _networks,
    "top_examples": _top,
}


@pytest.mark.parametrize("name", STOPPED)
def test_what_was_seen_before_an_interruption_is_returned(name: str) -> None:
    call, at = STOPPED[name], 4
    right = call(_Model(), _data(at - 1), progress=False)
    if name == "top_examples":
        with pytest.warns(UserWarning, match="after 3 batches, which the examples are of"):
            found = call(_Model(at), _data(), progress=False)
        assert found == right
        return
    found = call(_Model(at), _data(), progress=False)
    assert "It was interrupted after 3 batches, which this is of." in found.notes
    assert found.n_examples == right.n_examples == 3 * SIZE
    assert torch.as_tensor(found.similarity).equal(torch.as_tensor(right.similarity))


@pytest.mark.parametrize("name", [*STOPPED, "ablate", "stitch"])
def test_before_anything_is_seen_an_interruption_is_one(name: str) -> None:
    call = (STOPPED | {"ablate": _ablate, "stitch": _stitch})[name]
    with pytest.raises(KeyboardInterrupt):
        call(_Model(1), _data(), progress=False)


def test_too_few_batches_for_a_result_are_an_interruption() -> None:
    data = [x[:1] for x in _data()]

    class Early(_Model):
        def forward(self, x: Tensor) -> Tensor:
            self.passes += 1
            if self.passes == 3:
                signal.raise_signal(signal.SIGINT)
            return self.layers(x)

    with pytest.raises(KeyboardInterrupt, match=r"after 2 batches.* No result comes of them"):
        _similarity(Early(), data)


def test_an_ablation_that_is_stopped_has_the_axes_that_are_done() -> None:
    whole = _ablate(_Model(), _data(), progress=False)
    # All batches for the loss and for the mean, then for three directions of every axis.
    at = 2 * COUNT + 2 * 3 * COUNT + 5
    with pytest.warns(UserWarning, match="after 2 of 6 axes, which the effects are of"):
        found = _ablate(_Model(at), _data(), progress=False)
    assert found.directions == (0, 1) and found.loss == whole.loss
    assert found.axes.tolist() == whole.axes[:2].tolist()
    assert found.rotated.tolist() == whole.rotated[:, :2].tolist()


def test_a_stitching_that_is_stopped_has_the_layer_as_it_is_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from basis_probe.compare import stitching

    plain, passes = stitching.StitchedModel.run_behind, list[int]()

    def run(*given: Any) -> Any:
        passes.append(1)
        # Once over the data before the training, which is stopped in its second epoch.
        if len(passes) == 2 * COUNT + 2:
            signal.raise_signal(signal.SIGINT)
        return plain(*given)

    monkeypatch.setattr(stitching.StitchedModel, "run_behind", run)
    found = _stitch(_Model(), _data(), progress=False)
    assert found.interrupted and len(found.curve) == 1
    assert "The training was interrupted after 1 of 3 epochs" in " ".join(found.notes)
    whole = _stitch(_Model(), _data(), progress=False)
    assert not whole.interrupted and whole.curve[:1] == found.curve


def test_a_curve_that_is_stopped_has_the_networks_that_are_joined(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from basis_probe.compare import stitching

    plain, calls = stitching.stitch, list[int]()

    def stitch(*given: Any, **settings: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return plain(*given, **settings)

    monkeypatch.setattr(stitching, "stitch", stitch)
    settings = {"sites": ["layers.0", "layers.1"], "epochs": 0, "progress": False}
    with pytest.warns(UserWarning, match="after 1 of 2 joined networks"):
        found = bp.stitching_curve(_Model(), _Model(), _data(), **settings)
    assert [one.sites[0] for one in found.stitches] == ["layers.0"]
    calls[:] = [1]
    with pytest.raises(KeyboardInterrupt):
        bp.stitching_curve(_Model(), _Model(), _data(), **settings)
