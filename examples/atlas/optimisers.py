"""Adam and SGD: whether the optimiser marks the axes of a stream that nothing else marks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

import basis_probe as bp
from basis_probe import demo

from . import sources
from .entry import Entry, Notes, Settings, Verdict, span

WIDTH = 64
HEADS = 4
LENGTH = 32
SITES = ("blocks.0:in", "blocks.1:in", "blocks.1")
ORDERS = ("offset", "scale", "form")


class Block(nn.Module):
    """Attention and neurons, each behind an RMSNorm whose gain is learned or left out."""

    def __init__(self, *, gains: bool) -> None:
        super().__init__()
        self.first = nn.RMSNorm(WIDTH, elementwise_affine=gains)
        self.second = nn.RMSNorm(WIDTH, elementwise_affine=gains)
        self.mixed = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.joined = nn.Linear(WIDTH, WIDTH, bias=False)
        self.up = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.down = nn.Linear(4 * WIDTH, WIDTH, bias=False)
        self.act = nn.GELU()

    def forward(self, stream: Tensor) -> Tensor:
        rows, length, _ = stream.shape
        mixed = self.mixed(self.first(stream)).view(rows, length, 3, HEADS, WIDTH // HEADS)
        query, key, value = mixed.permute(2, 0, 3, 1, 4)
        heads = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        stream = stream + self.joined(heads.transpose(1, 2).reshape(rows, length, WIDTH))
        return stream + self.down(self.act(self.up(self.second(stream))))


class Decoder(nn.Module):
    """Two blocks; every weight is Gaussian, so that nothing marks an axis before training."""

    def __init__(self, vocabulary: int, *, gains: bool, seed: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, WIDTH)
        self.places = nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.Sequential(Block(gains=gains), Block(gains=gains))
        self.norm = nn.RMSNorm(WIDTH, elementwise_affine=gains)
        self.out = nn.Linear(WIDTH, vocabulary, bias=False)
        generator = torch.Generator().manual_seed(seed)
        for weight in self.parameters():
            if weight.ndim == 2:
                nn.init.normal_(weight, std=0.02, generator=generator)

    def forward(self, words: Tensor) -> Tensor:
        stream = self.tokens(words) + self.places(torch.arange(words.shape[1]))
        return self.out(self.norm(self.blocks(stream)))


class Turned:
    """An optimiser that sees the weights as they are where the stream is turned by Q."""

    def __init__(self, model: Decoder, make: Callable[[list[Tensor]], Any], seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.turn = bp.groups.Orthogonal(WIDTH).sample(generator).float()
        self.pairs: list[tuple[nn.Parameter, Tensor, int | None]] = []
        for name, parameter in model.named_parameters():
            axis = _axis(name)
            self.pairs.append((parameter, self._turned(parameter.detach(), self.turn, axis), axis))
        self.inner = make([proxy for _, proxy, _ in self.pairs])

    @staticmethod
    def _turned(weight: Tensor, turn: Tensor, axis: int | None) -> Tensor:
        if axis is None:
            return weight.clone()
        return (weight.movedim(axis, -1) @ turn).movedim(-1, axis).contiguous()

    def step(self) -> None:
        """One step in the turned basis, brought back."""
        for parameter, proxy, axis in self.pairs:
            assert parameter.grad is not None
            proxy.grad = self._turned(parameter.grad, self.turn, axis)
        self.inner.step()
        with torch.no_grad():
            for parameter, proxy, axis in self.pairs:
                parameter.copy_(self._turned(proxy, self.turn.T, axis))


def _axis(name: str) -> int | None:
    """Along which of its axes a weight touches the stream."""
    if name.endswith(("joined.weight", "down.weight")):
        return 0
    return 1 if name.endswith(("tokens.weight", "places.weight", "out.weight")) or (
        name.endswith(("mixed.weight", "up.weight"))
    ) else None  # fmt: skip


def _adam(weights: Any) -> Any:
    return torch.optim.Adam(weights, lr=0.01)


@dataclasses.dataclass(frozen=True)
class Training:
    """How a network is trained."""

    name: str
    optimiser: Callable[[Decoder, int], Any]
    gains: bool = False


TRAININGS = [
    Training("Adam", lambda model, seed: _adam(model.parameters())),
    Training(
        "Adam, a third of the rate",
        lambda model, seed: torch.optim.Adam(model.parameters(), lr=0.01 / 3),
    ),
    Training("Adam, turned", lambda model, seed: Turned(model, _adam, seed)),
    Training(
        "SGD with momentum",
        lambda model, seed: torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9),
    ),
    Training(
        "SGD, learned gains",
        lambda model, seed: torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9),
        gains=True,
    ),
]
if hasattr(torch.optim, "Muon"):
    TRAININGS.append(
        Training(
            "Muon",
            lambda model, seed: torch.optim.Muon(model.parameters(), lr=0.02, weight_decay=0.0),
        )
    )


def run(notes: Notes, settings: Settings) -> None:
    """Trains every network, and follows offset, scale and form over steps."""
    words = text(settings.of(3000, 800))
    steps, seeds = settings.of(400, 200), settings.of(5, 1)
    every = steps // settings.of(2, 1)
    trainings = TRAININGS if not settings.short else [TRAININGS[0], TRAININGS[3]]
    notes.say(
        "That Adam marks the axes of a stream and SGD does not is what Elhage et al. suspected. "
        "Here it is in a decoder "
        f"of two blocks, d {WIDTH}, causal attention, RMSNorm, Gaussian initialisation, trained "
        f"for {steps:,} steps on the text of this package's demo, {seeds} seed"
        f"{'s' * (seeds > 1)} each. *Turned* is Adam that sees the same gradients in a turned "
        "basis. The group of the stream holds every rotation, unless gains are learned, which "
        "fold into the maps behind them but are trained axis by axis. Three places: in front of "
        "both blocks and behind the second."
    )
    followed = {
        training.name: [
            sources.kept(
                settings,
                f"optimisers {training.name} {seed} {steps} {every} {len(words)}".replace(" ", "_"),
                lambda training=training, seed=seed: _followed(training, seed, words, steps, every),
            )
            for seed in range(seeds)
        ]
        for training in trainings
    }
    _table(notes, followed, steps)
    if not settings.short:
        notes.figure(_figure(followed), "steps", _CAPTION)
    _say_what_follows(notes, followed, steps)


_CAPTION = (
    "How far the axes stand out, order by order, over steps: z, mean over the three places, and "
    "its 95 % interval over seeds. Grey: within two."
)


_INTERVAL = "averaged over seeds, with its 95 % interval (Student's t over seeds)"


def text(count: int) -> Tensor:
    """Texts of the demo as tokens, [rows, length], cut anywhere."""
    _, tokenizer = demo.load_hf()
    flat = [token for one in demo.texts(count, seed=3) for token in tokenizer(one)["input_ids"]]
    return torch.tensor(flat[: len(flat) // LENGTH * LENGTH]).view(-1, LENGTH)


HELD_OUT = 256
"""So many rows of a text are not trained on."""


def trained(
    training: Training, seed: int, words: Tensor, steps: int, every: int
) -> Iterator[tuple[int, Decoder]]:
    """A network as it is trained: before the first step, and after every so many."""
    model = Decoder(int(words.max()) + 1, gains=training.gains, seed=seed)
    optimiser = training.optimiser(model, seed)
    generator = torch.Generator().manual_seed(seed)
    rows = words[:-HELD_OUT]
    for step in range(steps + 1):
        if step % every == 0:
            yield step, model
        batch = rows[torch.randint(0, len(rows), (32,), generator=generator)]
        for parameter in model.parameters():
            parameter.grad = None
        _loss(model, batch).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()


def _followed(
    training: Training, seed: int, words: Tensor, steps: int, every: int
) -> dict[str, Any]:
    """Step -> loss, and z and claims of the orders at every place."""
    held_out = words[-HELD_OUT:]
    return {
        str(step): _look(model, held_out)
        for step, model in trained(training, seed, words, steps, every)
    }


def _loss(model: Decoder, batch: Tensor) -> Tensor:
    return F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())


def _look(model: Decoder, held_out: Tensor) -> dict[str, Any]:
    with torch.no_grad():
        loss = float(_loss(model, held_out))
    report = bp.probe(
        model, [held_out[:, :-1]], sites=SITES, effort="quick", certificates=False, progress=False
    )
    orders = [{one.order: one for one in site.orders} for site in report]
    return {
        "loss": loss,
        "z": [[site[order].effect for order in ORDERS] for site in orders],
        "claimed": [[site[order].claimed for order in ORDERS] for site in orders],
        "kurtosis": [site.per_sample.total for site in report],
    }


def _table(notes: Notes, followed: dict[str, list[Any]], steps: int) -> None:
    rows: list[list[str]] = []
    for name, runs in followed.items():
        last = [found[str(steps)] for found in runs]
        places = len(SITES) * len(runs)
        cells: list[str] = []
        for at, order in enumerate(ORDERS):
            count = sum(claims[at] for one in last for claims in one["claimed"])
            notes.number(f"{name}/{order}", count)
            middle, wide = over_seeds(runs, str(steps), at)
            notes.number(f"{name}/{order} z", middle)
            if not math.isnan(wide):
                notes.number(f"{name}/{order} z low", middle - wide)
            cells.append(f"{count} of {places}; z {middle:+.1f}" + _within(wide))
        kurtosis = [value for one in last for value in one["kurtosis"]]
        notes.number(f"{name}/kurtosis", max(kurtosis))
        losses = [one["loss"] for one in last]
        notes.number(f"{name}/loss", sum(losses) / len(losses))
        rows.append([name, span(losses, ".2f"), *cells, span(kurtosis, ".1f")])
    notes.table(["optimiser", "loss", *(f"{o} claimed" for o in ORDERS), "kurtosis"], rows)


def _within(wide: float) -> str:
    return "" if math.isnan(wide) else f" ± {wide:.1f}"


def over_seeds(runs: list[Any], step: str, order: int) -> tuple[float, float]:
    """The mean z over places, averaged over seeds, and half of its 95 % interval over seeds.

    Student's t over seeds: places of one network are not independent. NaN for one seed.
    """
    means: list[float] = []
    for found in runs:
        zs = [z[order] for z in found[step]["z"] if not math.isnan(z[order])]
        if zs:
            means.append(sum(zs) / len(zs))
    middle = sum(means) / len(means) if means else math.nan
    if len(means) < 2:
        return middle, math.nan
    spread = math.sqrt(sum((one - middle) ** 2 for one in means) / (len(means) - 1))
    # 97.5 % points of Student's t for 1, 2, ... degrees of freedom.
    point = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)[len(means) - 2]
    return middle, point * spread / math.sqrt(len(means))


def _say_what_follows(notes: Notes, followed: dict[str, list[Any]], steps: int) -> None:
    number = notes.numbers
    adam, sgd = "Adam", "SGD with momentum"
    places = len(SITES) * len(followed[adam])
    count = {n: sum(number[f"{n}/{order}"] for order in ORDERS) for n in followed}
    first = {name: [one["0"]["claimed"] for one in runs] for name, runs in followed.items()}
    early = sum(sum(map(sum, claims)) for claims in first[adam])
    tests = 3 * places
    notes.holds(
        "the trainings of a seed start alike", all(o == first[adam] for o in first.values())
    )
    notes.number("claimed before training", early)
    notes.holds("before training next to nothing stands out", early <= 0.05 * tests)
    notes.holds("under Adam scale stands out somewhere", number[f"{adam}/scale"] >= 1)
    notes.holds("under SGD next to nothing does", count[sgd] <= max(1, 0.1 * 3 * places))
    if len(followed[adam]) > 1:
        notes.holds("over seeds scale stands out under Adam", number[f"{adam}/scale z low"] > 0)
        notes.holds("and not under SGD", number[f"{sgd}/scale z low"] < 0)
    told = {name: f"{value:.0f} of {3 * places}" for name, value in count.items()}
    rest = "; ".join(f"{name}: {value}" for name, value in told.items())
    notes.say(
        f"z is the mean over places, {_INTERVAL if len(followed[adam]) > 1 else 'of one seed'}: "
        f"under Adam {_told(number, adam, 'scale')} by scale and {_told(number, adam, 'form')} by "
        f"form, under SGD {_told(number, sgd, 'scale')} and {_told(number, sgd, 'form')}. "
        f"Tests that are claimed at the end, of all orders at all places: {rest}. Before training "
        f"it is {early} of {tests} (the {len(followed)} trainings of a seed start alike). "
        + _reading(notes, count, 3 * places)
    )
    notes.row(
        "Adam privileges the residual stream, SGD does not, at one rate and without gains",
        f"kurtosis per token {number[f'{adam}/kurtosis']:.1f} at most, SGD "
        f"{number[f'{sgd}/kurtosis']:.1f}",
        f"scale at {number[f'{adam}/scale']:.0f} of {places} places, form at "
        f"{number[f'{adam}/form']:.0f}; SGD {number[f'{sgd}/scale']:.0f} and "
        f"{number[f'{sgd}/form']:.0f}" + _elsewhere(count, 3 * places),
        Verdict.HOLDS if _of_form(number, len(followed[adam])) else Verdict.OTHER_ORDER,
    )


def _elsewhere(count: dict[str, float], tests: int) -> str:
    """Of the tests of all orders: the trainings to which the claim does not extend."""
    slow, gains = "Adam, a third of the rate", "SGD, learned gains"
    if slow not in count:
        return ""
    return (
        f"; of {tests} tests Adam {count['Adam']:.0f}, at a third of the rate {count[slow]:.0f}; "
        f"SGD with learned gains {count[gains]:.0f}"
    )


def _told(number: dict[str, float], name: str, order: str) -> str:
    middle = number[f"{name}/{order} z"]
    return f"{middle:+.1f}" + _within(middle - number.get(f"{name}/{order} z low", math.nan))


def _of_form(number: dict[str, float], seeds: int) -> bool:
    """Whether form, too, stands out under Adam: over seeds, or as often as scale for one."""
    if seeds > 1:
        return number["Adam/form z low"] > 0
    return number["Adam/form"] >= number["Adam/scale"]


def _reading(notes: Notes, count: dict[str, float], tests: int) -> str:
    """What the other trainings say, where they were run."""
    if "Adam, turned" not in count:
        return ""
    number = notes.numbers
    notes.holds("Adam in a turned basis marks nothing", count["Adam, turned"] <= 0.1 * tests)
    gains = count["SGD, learned gains"]
    notes.holds("SGD with learned gains marks axes", gains >= 0.2 * tests)
    slow = count["Adam, a third of the rate"]
    notes.holds("Adam at a lower rate marks fewer", slow < count["Adam"])
    said = (
        "So the optimiser's coordinates are the cause, and they need not be Adam's: where norms "
        "have a gain for every axis, which folds into the maps behind it and so leaves the group "
        f"as it is, plain SGD marks axes too ({gains:.0f} of {tests}), because the gains "
        "are trained axis by axis. Adam's effect depends on its rate: at a third of it, after as "
        f"many steps, {slow:.0f} of {tests} tests are claimed, and the loss is "
        f"{number['Adam, a third of the rate/loss']:.2f} on average where the higher rate has "
        f"{number['Adam/loss']:.2f}: of these two rates the one that marks axes trains worse."
    )
    notes.holds(
        "the rate that marks axes trains worse",
        number["Adam, a third of the rate/loss"] < number["Adam/loss"],
    )
    if "Muon" in count:
        notes.holds("Muon marks nothing", count["Muon"] <= 0.1 * tests)
        said += f" Muon, whose steps turn along with the basis, marks {count['Muon']:.0f}."
    return said


def _figure(followed: dict[str, list[Any]]) -> Figure:
    figure = Figure(figsize=(9.5, 3), layout="constrained")
    for at, axes in enumerate(figure.subplots(1, len(ORDERS), sharey=True)):
        for colour, (name, runs) in enumerate(followed.items()):
            steps = list(runs[0])
            shown = [over_seeds(runs, step, at) for step in steps]
            # Side by side, so that intervals can be told apart.
            places = [int(step) + 8 * (colour - len(followed) / 2) for step in steps]
            middles, widths = zip(*shown, strict=True)
            axes.errorbar(
                places, middles, widths, fmt="o-", color=f"C{colour}", label=name, lw=1, ms=3,
                elinewidth=0.8, capsize=2,
            )  # fmt: skip
        axes.axhspan(-2, 2, color="0.93", zorder=0)
        axes.set_title(ORDERS[at], fontsize=10)
        axes.set_xticks([int(step) for step in followed[next(iter(followed))][0]])
        axes.set_xlabel("step")
    figure.axes[0].set_ylabel("z, mean over places")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=8)
    return figure


ENTRY = Entry(
    name="optimisers",
    title="Adam and SGD",
    needs="nothing; it trains its networks.",
    run=run,
)
