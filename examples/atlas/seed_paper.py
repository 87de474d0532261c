"""The tables of the paper on intertwiner groups: groups, stitching within them, likeness."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

import basis_probe as bp

from . import likeness, sources
from .entry import Entry, Notes, Settings, Verdict, span

Data = list[tuple[Tensor, Tensor]]
SITES = ("2", "5", "8")
BENDS: dict[str, type[nn.Module]] = {"ReLU": nn.ReLU, "GELU": nn.GELU, "tanh": nn.Tanh}
OWN = {"ReLU": "positive-monomial", "GELU": "permutation", "tanh": "signed-permutation"}

# The nonlinearities of Table 1, and GELU of the appendix: the group that is stated.
STATED = {
    "identity": ("x", lambda t: t, "general-linear"),
    "sigmoid": ("1/(1 + exp(-x))", torch.sigmoid, "permutation"),
    "ReLU": ("max(0, x)", torch.relu, "positive-monomial"),
    "LeakyReLU": ("slope 0.01", nn.functional.leaky_relu, "positive-monomial"),
    "Gaussian RBF": ("exp(-x²/2)", lambda t: torch.exp(-t * t / 2), "signed-permutation"),
    "monomial": ("x³", lambda t: t**3, "monomial"),
    "GELU": ("erf", nn.functional.gelu, "permutation"),
}


def run(notes: Notes, settings: Settings) -> None:
    """Table 1 measured, and networks from two seeds stitched within groups."""
    notes.say(
        "[Godfrey, Brown, Emerson and Kvinge](https://arxiv.org/abs/2205.14258) derive which "
        "linear "
        "maps a nonlinearity passes on. Here each group of their Table 1, and that of GELU, is "
        "*measured* from values of the function as a black box; sigmoid may be told by its name."
    )
    rows: list[list[str]] = []
    for name, (formula, function, stated) in STATED.items():
        measured = bp.intertwiner_group(function, 8).name
        rows.append([f"{name}, {formula}", stated, measured])
    agree = sum(row[1] == row[2] for row in rows)
    notes.number("groups", agree)
    notes.table(["nonlinearity", "stated", "measured"], rows)
    notes.holds("every group is measured as stated", agree == len(rows))
    notes.row(
        "Table 1: the groups of nonlinearities",
        "derived by hand",
        f"{agree} of {len(rows)} measured as stated",
        Verdict.HOLDS,
    )
    _stitched(notes, settings)
    likeness.run(notes, settings)


def _images(settings: Settings) -> tuple[Data, Data]:
    """Batches to train on and held-out ones, of the test images of CIFAR-10."""
    with np.load(sources.folder("cifar10_test") / "cifar10_test_4000.npz") as file:
        images = torch.as_tensor(file["x"]).movedim(-1, 1).float() / 255
        classes = torch.as_tensor(file["y"]).long()
    images = (images - images.mean((0, 2, 3), keepdim=True)) / images.std((0, 2, 3), keepdim=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, test = settings.of(3000, 1500), settings.of(1000, 500)
    parts = order[:train], order[-test:]
    made = [[(images[at], classes[at]) for at in part.split(100)] for part in parts]
    return made[0], made[1]


def _network(bend: type[nn.Module], seed: int) -> nn.Sequential:
    """Three convolutions with batch normalisation, and a linear map of the averaged channels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        blocks: list[nn.Module] = []
        for inputs, outputs in ((3, 16), (16, 24), (24, 32)):
            blocks += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.BatchNorm2d(outputs)]
            blocks += [bend()]
        last = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)]
        return nn.Sequential(*blocks, *last)


def _trained(name: str, seed: int, data: Data, settings: Settings) -> nn.Sequential:
    epochs = settings.of(8, 6)
    model = _network(BENDS[name], seed)

    def train() -> dict[str, Tensor]:
        optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
        order = torch.Generator().manual_seed(seed)
        for _ in range(epochs):
            for place in torch.randperm(len(data), generator=order).tolist():
                x, y = data[place]
                optimiser.zero_grad()
                nn.functional.cross_entropy(model(x), y).backward()
                optimiser.step()
        return model.state_dict()

    kept = sources.kept(settings, f"seed_paper_{name}_{seed}_{epochs}_{len(data)}", train)
    model.load_state_dict(kept)
    return model.eval()


def _untrained(name: str, data: Data) -> nn.Sequential:
    """A new network whose batch normalisation has seen the data."""
    model = _network(BENDS[name], 100)
    model.train()
    with torch.no_grad():
        for x, _ in data[:10]:
            model(x)
    return model.eval()


def _accuracy(model: nn.Module, data: Data) -> float:
    with torch.no_grad():
        right = [(model(x).argmax(1) == y).double() for x, y in data]
    return float(torch.cat(right).mean())


def _stitched(notes: Notes, settings: Settings) -> None:
    data, test = _images(settings)
    names = list(BENDS)[: settings.of(3, 1)]
    rows: list[list[str]] = []
    for name in names:
        one, two = (_trained(name, seed, data, settings) for seed in (0, 1))
        empty = _untrained(name, data)
        fronts = {"other seed": one, "untrained": empty}
        lost: dict[tuple[str, str], list[float]] = {}
        for front, group in (
            ("other seed", "trivial"), ("other seed", OWN[name]), ("other seed", "orthogonal"),
            ("other seed", "general-linear"), ("untrained", OWN[name]),
            ("untrained", "general-linear"),
        ):  # fmt: skip
            lost[front, group] = [
                _penalty(name, front, fronts[front], two, group, site, (data, test), settings)
                for site in SITES[settings.of(0, 2) :]
            ]
        for (front, group), values in lost.items():
            key = "own" if group == OWN[name] else group
            notes.number(f"{name}/{front}/{key}", sum(values) / len(values))
            notes.number(f"{name}/{front}/{key}/first", values[0])
            notes.number(f"{name}/{front}/{key}/last", values[-1])
        cells = [", ".join(f"{100 * value:.0f}" for value in values) for values in lost.values()]
        rows.append([f"{name} ({OWN[name]}; accuracy {_accuracy(two, test):.0%})", *cells])
    notes.say(
        "*Stitching* (its section 4): the front of a network trained from one seed is joined to "
        "the "
        "back of one trained from another by a layer within a group. If the group of the "
        "nonlinearity accounts for what differs between seeds, little accuracy is lost. Small "
        "convolutional networks (16, 24 and 32 channels) trained here on CIFAR-10 images, behind "
        "each of three nonlinearities. Points of accuracy lost on held-out images; beside it the "
        "same with a front that was never trained, which shares nothing that is learned:"
    )
    notes.table(
        ["nonlinearity", "no layer", "own group", "orthogonal", "linear", "untrained, own group",
         "untrained, linear"],
        rows,
    )  # fmt: skip
    number = notes.numbers
    shares: list[float] = []
    last: list[tuple[float, float]] = []
    for name in names:
        none, own, linear = (
            number[f"{name}/other seed/{key}"] for key in ("trivial", "own", "general-linear")
        )
        notes.holds(f"{name}: its own group mends part of the difference", own < none)
        shares.append((none - own) / (none - linear))
        trained, empty = (number[f"{name}/{f}/own/last"] for f in ("other seed", "untrained"))
        last.append((100 * trained, 100 * empty))
    notes.holds(
        "behind the last convolution an untrained front loses more in the same group",
        all(other > own for own, other in last),
    )
    said = (
        f"Of what a linear layer mends beyond no layer, the group of the nonlinearity mends "
        f"{span(shares, '.0%')}. The untrained front says what that means. "
        f"Behind the last convolution it loses {span([other for _, other in last], '.0f')} points "
        f"in the same group where a trained one loses {span([own for own, _ in last], '.0f')}: "
        "there the two seeds have learned features in common, up to the group."
    )
    if not settings.short:
        early = [
            (
                100 * number[f"{name}/other seed/own/first"],
                100 * number[f"{name}/untrained/own/first"],
            )
            for name in names
        ]
        notes.holds(
            "behind the first convolution an untrained front loses less",
            all(other < own for own, other in early),
        )
        said += (
            f" Behind the first it loses {span([other for _, other in early], '.0f')} where a "
            f"trained one loses {span([own for own, _ in early], '.0f')}: a small penalty early in "
            "a network shows that the back can be fed, not that the fronts are alike."
        )
    notes.say(said)
    own = [100 * number[f"{name}/other seed/own"] for name in names]
    none = [100 * number[f"{name}/other seed/trivial"] for name in names]
    notes.row(
        "Stitching within the group of the nonlinearity costs little",
        f"{span(own, '.0f')} points lost; {span(none, '.0f')} without a layer",
        f"last layer {span([one for one, _ in last], '.0f')}, untrained front "
        f"{span([other for _, other in last], '.0f')}"
        + ("" if settings.short else "; the first layer loses more than an untrained one"),
        Verdict.PARTLY,
    )


def _penalty(
    name: str,
    words: str,
    front: nn.Module,
    back: nn.Module,
    group: str,
    site: str,
    data: tuple[Data, Data],
    settings: Settings,
) -> float:
    """Accuracy lost on held-out images where the front is joined to the back by a layer."""

    def join() -> Tensor:
        stitched = bp.stitch(
            front, back, site, data[0], group=group, held_out=data[1], epochs=1, progress=False
        )
        return torch.tensor(stitched.penalty, dtype=torch.float64)

    key = f"seed_paper_{name}_{words}_{group}_{site}_{len(data[0])}".replace(" ", "_")
    return float(sources.kept(settings, key, join))


ENTRY = Entry(
    name="seed_paper",
    title="Groups, stitching and likeness",
    needs="CIFAR-10 test images, ResNet20 and ResNet32 (BASIS_PROBE_ASSETS); it trains the small "
    "networks.",
    run=run,
)
