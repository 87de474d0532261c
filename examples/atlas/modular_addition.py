"""One Fourier frequency for every neuron: trained one-layer transformers for modular addition."""

from __future__ import annotations

import json
import math
import pathlib

import torch
from matplotlib.figure import Figure
from safetensors.torch import load_file
from torch import Tensor, nn

import basis_probe as bp

from . import sources
from .entry import Entry, Notes, Settings, Verdict

MODULUS = 59


class Adder(nn.Module):
    """a, b -> the logits of a + b mod 59; no norm, no mask, the answer read behind the last token.

    Attention is `mixed` parts softmax and the rest uniform ones, as these networks were trained.
    """

    def __init__(self, path: pathlib.Path) -> None:
        super().__init__()
        weights = load_file(path)
        settings = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        self.mixed = float(settings["attn_coeff"])
        self.embed = nn.Parameter(weights["embed.W_E"].T)
        self.places = nn.Parameter(weights["pos_embed.W_pos"])
        self.queries, self.keys, self.values = (
            nn.Parameter(weights[f"blocks.0.attn.W_{name}"]) for name in "QKV"
        )
        self.joined = _linear(weights["blocks.0.attn.W_O"])
        self.up = _linear(weights["blocks.0.mlp.W_in"], weights["blocks.0.mlp.b_in"])
        self.act = nn.ReLU() if settings["act_fn"] == "ReLU" else nn.GELU(approximate="tanh")
        self.down = _linear(weights["blocks.0.mlp.W_out"], weights["blocks.0.mlp.b_out"])
        self.answer = _linear(weights["unembed.W_U"].T)

    def forward(self, pairs: Tensor) -> Tensor:
        """[batch, 2] numbers below 59 -> [batch, 59] logits."""
        stream = self.embed[pairs] + self.places
        query, key, value = (
            torch.einsum("bpd,hed->bhpe", stream, maps)
            for maps in (self.queries, self.keys, self.values)
        )
        scores = query @ key.transpose(2, 3) / math.sqrt(key.shape[-1])
        pattern = scores.softmax(-1) * self.mixed + (1 - self.mixed)
        heads = (pattern @ value).transpose(1, 2).flatten(2)
        last = (stream + self.joined(heads))[:, -1]
        return self.answer(last + self.down(self.act(self.up(last))))


def _linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight = nn.Parameter(weight)
    if bias is not None:
        layer.bias = nn.Parameter(bias)
    return layer


def pairs() -> Tensor:
    """All inputs, [59 * 59, 2]."""
    return torch.cartesian_prod(torch.arange(MODULUS), torch.arange(MODULUS))


NETWORKS = {
    "relu_uniform_attention": "ReLU, uniform attention",
    "relu_attention_seed_a": "ReLU, attention, seed a",
    "relu_attention_seed_b": "ReLU, attention, seed b",
    "gelu_uniform_attention": "GELU, uniform attention",
}
SEEDS = ("relu_attention_seed_a", "relu_attention_seed_b")
PHASES = 8
PURE = 0.85
CLEAR = 0.8


def run(notes: Notes, settings: Settings) -> None:
    """Frequencies, concepts and shared neurons of four networks."""
    home = sources.folder("modular_addition")
    notes.say(
        "Networks that learn to add modulo a number represent it by a few Fourier frequencies "
        "([Nanda et al. 2023](https://arxiv.org/abs/2301.05217)), and their neurons are said to "
        "hold one each ([Zhong et al. 2023](https://arxiv.org/abs/2306.17844), who published these "
        "four: one layer, 512 neurons, a + b mod 59, all 3,481 inputs). *Pure* is the share of "
        f"neurons whose pre-activation has more than {PURE:.0%} of its variance in one frequency. "
        "Beside it is the same of turned pre-activations, as is usual, and of counterfactual "
        "neurons: random ones of the same length and mean that read the same stream."
    )
    networks = {name: Adder(home / f"{name}.safetensors").eval() for name in NETWORKS}
    found = {name: _layer(network) for name, network in networks.items()}
    _frequencies(notes, networks, found, settings)
    _concepts(notes, networks, settings)
    _shared(notes, found)


def _layer(network: Adder) -> tuple[Tensor, Tensor]:
    """What the neurons read, [inputs, 128], and their pre-activations, [inputs, 512]."""
    caught: list[Tensor] = []
    handle = network.up.register_forward_hook(lambda _, given, made: caught.extend([*given, made]))
    with torch.no_grad():
        network(pairs())
    handle.remove()
    return caught[0].double(), caught[1].double()


def shares(pre: Tensor) -> Tensor:
    """[neurons, 29], the share of a neuron's variance that each frequency has, in both inputs."""
    grid = pre.T.reshape(-1, MODULUS, MODULUS)
    grid = grid - grid.mean((1, 2), keepdim=True)
    power = torch.fft.fft2(grid).abs().square()
    wave = torch.arange(MODULUS)
    wave = torch.minimum(wave, MODULUS - wave)
    own = []
    for frequency in range(1, MODULUS // 2 + 1):
        mine = (wave == frequency) | (wave == 0)
        own.append(power[:, mine[:, None] & mine].sum(1))
    return torch.stack(own, 1) / power.sum((1, 2))[:, None]


def _turned(columns: Tensor, generator: torch.Generator) -> Tensor:
    """A random rotation of the columns."""
    size = columns.shape[1]
    return columns @ bp.groups.Orthogonal(size).sample(generator)


def _counterfactual(network: Adder, read: Tensor, generator: torch.Generator) -> Tensor:
    """Pre-activations of the same layer reading its input turned about the input's mean."""
    mean = read.mean(0)
    mean = mean / mean.norm()
    free = torch.linalg.svd(mean[None], full_matrices=True).Vh[1:]
    turned = read @ torch.outer(mean, mean) + _turned(read @ free.T, generator) @ free
    weight, bias = network.up.weight.detach().double(), network.up.bias.detach().double()
    return turned @ weight.T + bias


def _frequencies(
    notes: Notes,
    networks: dict[str, Adder],
    found: dict[str, tuple[Tensor, Tensor]],
    settings: Settings,
) -> None:
    draws = settings.of(20, 4)
    rows: list[list[str]] = []
    for name, network in networks.items():
        read, pre = found[name]
        own = shares(pre).max(1)
        others = {}
        for null in ("turned", "counterfactual"):
            generator = torch.Generator().manual_seed(0)
            frames = [
                _turned(pre, generator)
                if null == "turned"
                else _counterfactual(network, read, generator)
                for _ in range(draws)
            ]
            best = [shares(frame).max(1).values for frame in frames]
            others[null] = [float((one > PURE).double().mean()) for one in best]
            notes.number(f"{name}/mean {null}", float(torch.stack(best).mean()))
        with torch.no_grad():
            right = (network(pairs()).argmax(1) == pairs().sum(1) % MODULUS).double().mean()
        report = bp.probe(network, [pairs()], sites="act", progress=False)["act"]
        pure = float((own.values > PURE).double().mean())
        notes.number(f"{name}/pure", pure)
        notes.number(f"{name}/pure, most of the null", max(others["counterfactual"]))
        notes.number(f"{name}/effect", report.scores["negentropy"].effect)
        notes.number(f"{name}/kurtosis effect", report.scores["kurtosis"].effect)
        rows.append(
            [
                NETWORKS[name],
                f"{float(right):.1%}",
                ", ".join(str(int(one) + 1) for one in own.indices[own.values > PURE].unique()),
                f"{pure:.1%}",
                *(f"{_mean(others[null]):.1%}" for null in others),
                f"{float(own.values.mean()):.2f}, {notes.numbers[f'{name}/mean turned']:.2f}, "
                f"{notes.numbers[f'{name}/mean counterfactual']:.2f}",
                f"{report.verdict.outcome.name} ({report.scores['negentropy'].effect:+.0f}, "
                f"{report.scores['kurtosis'].effect:+.0f})",
            ]
        )
    notes.table(
        ["network", "right", "frequencies of pure neurons", "pure", "turned", "counterfactual",
         "mean share: own, turned, counterfactual",
         "verdict (effects on negentropy and kurtosis, in standard deviations of the null)"],
        rows,
    )  # fmt: skip
    notes.figure(_figure(networks, found), "shares", _CAPTION)
    every = list(NETWORKS)
    pure = [notes.numbers[f"{name}/pure"] for name in every]
    null = [notes.numbers[f"{name}/pure, most of the null"] for name in every]
    mean = [notes.numbers[f"{name}/mean counterfactual"] for name in every[:3]]
    low = [notes.numbers[f"{name}/kurtosis effect"] for name in every]
    notes.holds(
        "in every network more neurons are pure than in any counterfactual layer",
        all(own > other for own, other in zip(pure, null, strict=True)),
    )
    notes.holds("in the ReLU networks at least nine of ten neurons are pure", min(pure[:3]) > 0.9)
    notes.holds("the kurtosis of neurons is below that of counterfactuals", max(low) < -3)
    notes.say(
        f"The claim holds for ReLU ({1 - pure[3]:.0%} of the GELU network's neurons are not pure), "
        "and "
        "the right baseline is not that of 29 equal frequencies: the stream "
        "carries three or four only, so that any direction of it has "
        f"{min(mean):.2f} to {max(mean):.2f} of its variance in one. The verdict is reached "
        "without naming any frequency. Kurtosis taken alone, as "
        "a sign of privilege when it is *high*, would have missed it: sinusoids have little, and "
        "every network's neurons lie far below their alternatives."
    )
    notes.row(
        "Neurons of modular addition hold one frequency each (ReLU)",
        f"{min(pure[:3]):.0%} to {pure[0]:.0%} of ReLU neurons, {pure[3]:.0%} of GELU's",
        f"at most {max(null[:3]):.0%} and {null[3]:.0%} of counterfactual ones",
        Verdict.HOLDS,
    )


_CAPTION = (
    "Every neuron's largest share of variance in one frequency (blue), and the same of one "
    "counterfactual layer (grey)."
)


def _figure(networks: dict[str, Adder], found: dict[str, tuple[Tensor, Tensor]]) -> Figure:
    figure = Figure(figsize=(9, 2.4), layout="constrained")
    for axes, (name, network) in zip(
        figure.subplots(1, 4, sharey=True), networks.items(), strict=True
    ):
        read, pre = found[name]
        other = _counterfactual(network, read, torch.Generator().manual_seed(0))
        edges = [place / 25 for place in range(26)]
        for layer, colour in ((other, "0.7"), (pre, "C0")):
            axes.hist(shares(layer).max(1).values.tolist(), edges, color=colour, alpha=0.7)
        axes.set_title(NETWORKS[name], fontsize=8)
        axes.set_xlabel("share of one frequency")
    figure.axes[0].set_ylabel("neurons")
    return figure


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _labels() -> dict[str, Tensor]:
    """Frequency and phase -> where cos(w a + p) + cos(w b + p) is in its highest quarter."""
    angle = pairs().double() * 2 * math.pi / MODULUS
    found: dict[str, Tensor] = {}
    for frequency in range(1, MODULUS // 2 + 1):
        for phase in range(PHASES):
            wave = torch.cos(frequency * angle + 2 * math.pi * phase / PHASES).sum(1)
            found[f"frequency {frequency}, phase {phase}/{PHASES}"] = wave >= wave.quantile(0.75)
    return found


def _concepts(notes: Notes, networks: dict[str, Adder], settings: Settings) -> None:
    chosen = list(NETWORKS)[: settings.of(4, 1)]
    rows: list[list[str]] = []
    for name in chosen:
        counts: list[str] = []
        for least in (0.04, CLEAR):
            dissected = bp.dissect(
                networks[name],
                [pairs()],
                _labels(),
                sites="act",
                measures="iou",
                top=0.25,
                threshold=least,
                frames=19,
                progress=False,
            )["act"]
            tallies = {one.null.name: one.distinct for one in dissected.comparisons}
            tally = tallies["counterfactual"]
            counts += [f"{tally.observed:.0f}", f"{tallies['rotation'].null_mean:.1f}"]
            counts += [f"{tally.null_mean:.1f} (p {tally.p_value:.2f})"]
            notes.number(f"{name}/concepts above {least}", tally.observed)
            notes.number(f"{name}/counterfactual concepts above {least}", tally.null_mean)
            notes.number(f"{name}/p above {least}", tally.p_value)
        rows.append([NETWORKS[name], *counts])
    notes.say(
        f"*Concepts.* Frequency and phase make {29 * PHASES} concepts: where cos(wa + p) + cos(wb "
        f"+ "
        "p) is in its highest quarter. Distinct concepts that a neuron tells, chosen on half of "
        "the inputs and scored on the other half:"
    )
    notes.table(
        ["network", "IoU > 0.04", "rotations", "counterfactual", f"IoU > {CLEAR}", "rotations",
         "counterfactual"],
        rows,
    )  # fmt: skip
    first = chosen[0]
    number = notes.numbers
    notes.holds(
        "at the usual threshold the count of concepts sees nothing",
        number[f"{first}/p above 0.04"] > 0.3,
    )
    clear = [
        (number[f"{n}/concepts above {CLEAR}"], number[f"{n}/p above {CLEAR}"]) for n in chosen
    ]
    null = [number[f"{n}/counterfactual concepts above {CLEAR}"] for n in chosen]
    notes.holds(
        "of ReLU networks the neurons tell clearly many concepts, counterfactual ones few",
        all(
            own > 5 * other + 5 and p <= 0.05
            for (own, p), other in zip(clear[:3], null, strict=False)
        ),
    )
    notes.say(
        "At network dissection's threshold of 0.04 counterfactual neurons of the ReLU networks "
        "tell "
        "nearly as many as the trained ones, because every direction tells them a little. At "
        f"{CLEAR} the networks tell {min(own for own, _ in clear[:3]):.0f} to "
        f"{max(own for own, _ in clear[:3]):.0f}, and their counterfactuals "
        f"{min(null[:3]):.1f} to {max(null[:3]):.1f}. How *many* concepts there are is a "
        "property of the stream; how *well* a neuron tells one is a property of the axes."
    )
    notes.row(
        "Neurons tell more concepts (frequency and phase) than other directions",
        f"IoU > {CLEAR}: {clear[0][0]:.0f} against {float(rows[0][5]):.1f} of rotations",
        f"{clear[0][0]:.0f} against {null[0]:.1f}; at IoU > 0.04 {rows[0][1]} against "
        f"{float(rows[0][3].split()[0]):.1f}",
        Verdict.HOLDS if number[f"{first}/p above 0.04"] <= 0.05 else Verdict.PARTLY,
    )


def _shared(notes: Notes, found: dict[str, tuple[Tensor, Tensor]]) -> None:
    one, two = (found[name][1] for name in SEEDS)
    cosines = _correlations(one, two)
    generator = torch.Generator().manual_seed(0)
    turned = _correlations(one, _turned(two, generator))
    best, usual = cosines.max(1).values, turned.max(1).values
    own = [shares(pre).max(1) for pre in (one, two)]
    pure = [set((top.indices[top.values > PURE] + 1).tolist()) for top in own]
    common = pure[0] & pure[1]
    excess = notes.number("shared", float((best - usual > 0.5).double().mean()))
    counts = [
        sum(int(((top.values > PURE) & (top.indices + 1 == one)).sum()) for one in common)
        for top in own
    ]
    notes.number("common frequencies", len(common))
    notes.holds("hardly any neuron is shared between the two seeds", excess < 0.05)
    there = torch.tensor([int(place) + 1 in common for place in own[0].indices])
    there &= own[0].values > PURE
    notes.holds("neurons of a common frequency have a counterpart", float(best[there].mean()) > 0.8)
    notes.holds("neurons of other frequencies have none", float(best[~there].mean()) < 0.3)
    notes.number("alike", float(best[there].mean()))
    notes.number("turned alike", float(usual[there].mean()))
    notes.say(
        "*Two seeds.* The same configuration trained twice has pure neurons of frequencies "
        f"{_listed(pure[0])} and {_listed(pure[1])}; {len(common)} in common"
        + (f" ({_listed(common)}: {counts[0]} and {counts[1]} neurons)" if common else "")
        + f". There a neuron of the first has one in the second with which it correlates by "
        f"{notes.numbers['alike']:.2f} on average; elsewhere the best is "
        f"{float(best[~there].mean()):.2f}. But by the rule of [universal neurons]"
        "(https://arxiv.org/abs/2401.12181), a best correlation more than 0.5 above that with "
        f"turned neurons, {excess:.1%} are shared: of 512 turned neurons the best has "
        f"{notes.numbers['turned alike']:.2f} at the common frequency, since a hundred neurons "
        "that differ in phase fill a space of few dimensions. So where a frequency is shared its "
        "*space* is, and most neurons have no counterpart at all: privilege in each of two "
        "networks does not make their axes the same."
    )
    notes.row(
        "Two trainings learn the same neurons",
        f"best correlation {float(best.mean()):.2f} on average, turned {float(usual.mean()):.2f}",
        f"{excess:.1%} shared; {len(common)} frequency in common",
        Verdict.NOT_SEEN,
    )


def _listed(numbers: set[int]) -> str:
    return ", ".join(map(str, sorted(numbers)))


def _correlations(one: Tensor, two: Tensor) -> Tensor:
    """[axes of one, axes of two], absolute."""
    parts = [x - x.mean(0) for x in (one, two)]
    parts = [x / x.norm(dim=0) for x in parts]
    return (parts[0].T @ parts[1]).abs()


ENTRY = Entry(
    name="modular_addition",
    title="Neurons of modular addition",
    needs="four networks of The Clock and the Pizza (BASIS_PROBE_ASSETS, MIT licence).",
    run=run,
)
