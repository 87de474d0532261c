"""Attribution: whether few neurons carry a loss, beside turned neurons and untrained twins."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import basis_probe as bp
from basis_probe import demo

from . import sources
from .entry import Entry, Notes, Settings, Verdict, span

Batch = dict[str, Tensor]
HEADER = ("", "neurons", "by hand: neurons, turned", "elsewhere", "ahead of elsewhere",
          "untrained ahead", "p")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Question:
    """What neurons are asked to carry.

    Attributes:
        name: of the numbers that belong to it.
        model: a Llama.
        batches: what it reads.
        layers: whose neurons are looked at.
        loss: (output, batch) -> the number whose gradient is taken.
    """

    name: str
    model: Any
    batches: Sequence[Batch]
    layers: Sequence[int]
    loss: Callable[[Any, Batch], Tensor]


def run(notes: Notes, settings: Settings) -> None:
    """Activation times gradient on neurons: of the loss of stories, and of agreement."""
    tokens = sources.story_tokens(settings.of(24, 8))
    batches = [{"input_ids": part} for part in tokens.split(8)]
    layers = (0, 2, 4)[: settings.of(3, 1)]
    stories = Question("stories", sources.stories(), batches, layers, _next_token)
    notes.say(
        "That MLP neurons are a sparse basis for circuits, about as sparse as dictionaries, is the "
        "claim of [a study](https://arxiv.org/abs/2601.22594) whose control are random effects, "
        "never a turned basis. It counts what a circuit needs; here a Gini coefficient stands in "
        "for the size of circuits: activation times the gradient of the next token's loss on the "
        f"neurons of stories260k (172 a layer, {tokens.numel():,} tokens of stories), and the "
        "coefficient of its size across neurons, averaged over tokens: 0 where all carry as much, "
        "1 where one carries all. *Turned* is a random rotation of the neurons, gradients turned "
        "alike (five draws). *Elsewhere* are neurons that point elsewhere, with what reads them "
        "refitted to what the layer wrote. *Untrained* is how far six untrained twins are ahead "
        "of their own neurons that point elsewhere. *p* is the larger of two, "
        "against neurons that point elsewhere and against untrained twins, adjusted after Holm."
    )
    notes.table(HEADER, _rows(notes, stories))
    _say_of_stories(notes, stories)
    _agreement(notes, settings)


def _rows(notes: Notes, asked: Question) -> list[list[str]]:
    sites = [f"model.layers.{layer}.mlp.down_proj:in" for layer in asked.layers]
    report = bp.probe(
        asked.model, asked.batches, sites=sites, scores="attribution", loss=asked.loss,
        certificates=False, progress=False,
    )  # fmt: skip
    rows: list[list[str]] = []
    for layer, one in zip(asked.layers, report, strict=True):
        score = one.scores["attribution"]
        plain, turned = _turned(asked, layer)
        twins = list(score.untrained)
        ahead = score.observed - score.null_mean
        rows.append(
            [
                f"layer {layer}", f"{score.observed:.3f}",
                f"{plain:.3f}, {turned:.3f}",
                f"{score.null_mean:.3f} ± {score.null_std:.3f}", f"{ahead:+.3f}",
                f"{min(twins):+.3f} to {max(twins):+.3f}", f"{_p(score.p_adjusted)}",
            ]
        )  # fmt: skip
        key = f"{asked.name}/{layer}"
        notes.number(f"{key}/own", score.observed)
        notes.number(f"{key}/turned", turned)
        notes.number(f"{key}/plain", plain)
        notes.number(f"{key}/elsewhere", score.null_mean)
        notes.number(f"{key}/ahead", ahead)
        notes.number(f"{key}/twins", sum(twins) / len(twins))
        notes.number(f"{key}/p", score.p_adjusted)
    return rows


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.2f}"


def _next_token(output: Any, batch: Batch) -> Tensor:
    """The mean loss of the next token, padding left out."""
    logits, wanted = output.logits[:, :-1], batch["input_ids"][:, 1:]
    told = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))[:, 1:].bool()
    return torch.nn.functional.cross_entropy(logits[told], wanted[told])


def _turned(asked: Question, layer: int) -> tuple[float, float]:
    """The Gini coefficient of activation times gradient on neurons, and on turned ones."""
    read = asked.model.model.layers[layer].mlp.down_proj
    effects: list[Tensor] = []
    turned: list[list[Tensor]] = [[] for _ in range(5)]
    generator = torch.Generator().manual_seed(0)
    turns = [bp.groups.Orthogonal(read.in_features).sample(generator).float() for _ in turned]
    for batch in asked.batches:
        rows, gradient = _rows_and_slopes(asked, read, batch)
        effects.append(rows * gradient)
        for turn, several in zip(turns, turned, strict=True):
            several.append((rows @ turn) * (gradient @ turn))
    found = [_gini(torch.cat(several)) for several in turned]
    return _gini(torch.cat(effects)), sum(found) / len(found)


def _rows_and_slopes(asked: Question, read: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Activations and gradients, [tokens, neurons], of tokens that matter to the loss."""
    caught: list[Tensor] = []

    def catch(_: Any, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        caught.append(given[0].detach().requires_grad_(True))
        return (caught[-1],)

    handle = read.register_forward_pre_hook(catch)
    output = asked.model(**batch)
    handle.remove()
    (slope,) = torch.autograd.grad(asked.loss(output, batch), caught)
    rows, gradient = caught[0].detach().flatten(0, 1), slope.flatten(0, 1)
    kept = (gradient != 0).any(1)
    return rows[kept], gradient[kept]


def _gini(effects: Tensor) -> float:
    """Of the sizes of each row, averaged over rows."""
    ranked = effects.double().abs().sort(1).values
    size = ranked.shape[1]
    weight = 2 * torch.arange(1, size + 1) - size - 1
    return float(((ranked * weight).sum(1) / (size * ranked.sum(1))).mean())


def _kept(notes: Notes, asked: Question, key: str) -> list[float]:
    return [notes.numbers[f"{asked.name}/{layer}/{key}"] for layer in asked.layers]


def _judged(notes: Notes, asked: Question) -> tuple[list[float], int]:
    """By how much neurons are ahead of turned ones, and in how many layers more is claimed."""
    pairs = zip(_kept(notes, asked, "plain"), _kept(notes, asked, "turned"), strict=True)
    gained = [one - other for one, other in pairs]
    claimed = sum(value <= 0.05 for value in _kept(notes, asked, "p"))
    notes.number(f"{asked.name}/claimed", claimed)
    notes.holds(
        f"{asked.name}: neurons carry it more sparsely than turned ones", min(gained) > 0.03
    )
    return gained, claimed


def _say_of_stories(notes: Notes, asked: Question) -> None:
    gained, claimed = _judged(notes, asked)
    ahead, twins = _kept(notes, asked, "ahead"), _kept(notes, asked, "twins")
    notes.holds(
        "most of that is there for neurons that point elsewhere too",
        max(abs(a) / g for a, g in zip(ahead, gained, strict=True)) < 0.25,
    )
    notes.say(
        "Against turned neurons the claim is there: a Gini coefficient higher by "
        f"{span(gained, '.2f')}. But neurons that point elsewhere have it too: the trained ones "
        f"are ahead of them by {span(ahead, '+.3f')}, untrained ones of theirs by "
        f"{span(twins, '+.3f')} on average. In {claimed} of {len(asked.layers)} layers more is "
        "claimed. What makes the neurons' attribution sparse is the gate and the nonlinearity, "
        "which all neurons have, whichever way they point."
    )
    plain, turned, elsewhere = (
        _kept(notes, asked, key) for key in ("plain", "turned", "elsewhere")
    )
    of = len(asked.layers)
    notes.row(
        "Few neurons carry the loss (attribution, stories260k)",
        f"Gini {span(plain, '.2f')}, turned {span(turned, '.2f')}",
        f"neurons that point elsewhere {span(elsewhere, '.2f')}; claimed in {claimed} of {of} "
        "layers",
        Verdict.HOLDS if claimed > of / 2 else Verdict.ARTEFACT,
    )


# --- agreement ------------------------------------------------------------------------------------

FORMS = (("is", "are"), ("was", "were"))
"""Forms of a verb for one and for several."""


def _agreement(notes: Notes, settings: Settings) -> None:
    """The logit of the right form less that of the wrong one, in the demo's own grammar."""
    model, tokenizer = demo.load_hf()
    texts = demo.texts(96, seed=5)
    batches = [
        dict(tokenizer(texts[start : start + 12], return_tensors="pt", padding=True))
        for start in range(0, len(texts), 12)
    ]
    other = {}
    for one, several in FORMS:
        first, second = tokenizer.convert_tokens_to_ids([one, several])
        other[first], other[second] = second, first
    layers = (0, 1, 2, 3)[: settings.of(4, 1)]
    few = batches[: settings.of(len(batches), 2)]
    asked = Question(
        "agreement", model, few, layers, lambda out, batch: _margins(out, batch, other).sum()
    )
    loss = Question("demo", model, few, layers, _next_token)
    with torch.no_grad():
        margins = torch.cat([_margins(model(**batch), batch, other) for batch in batches])
    notes.number("agreement/right", float((margins > 0).double().mean()))
    notes.holds("the demo has learned agreement", notes.numbers["agreement/right"] > 0.9)
    notes.say(
        "*A single behaviour.* A loss asks for everything at once; circuits are asked for one "
        "thing. In the demo of this package the grammar is known: wherever it wrote *is*, *are*, "
        f"*was* or *were*, the logit of that form less that of the other number, "
        f"{len(margins):,} times in {len(texts)} texts ({notes.numbers['agreement/right']:.1%} are "
        "right). The same table for the neurons of the demo, and below it for the loss of the next "
        "token on the same texts:"
    )
    rows = [(asked, row) for row in _rows(notes, asked)] + [(loss, r) for r in _rows(notes, loss)]
    named = {"agreement": "agreement", "demo": "loss"}
    notes.table(HEADER, [[f"{named[one.name]}, {row[0]}", *row[1:]] for one, row in rows])
    _say_of_agreement(notes, asked, loss)


def _say_of_agreement(notes: Notes, asked: Question, loss: Question) -> None:
    gained, claimed = _judged(notes, asked)
    _, of_loss = _judged(notes, loss)
    ahead, twins = _kept(notes, asked, "ahead"), _kept(notes, asked, "twins")
    apart = [
        abs(one - other) for one, other in zip(ahead, _kept(notes, loss, "ahead"), strict=True)
    ]
    of = len(asked.layers)
    notes.holds("agreement is carried by few neurons, beyond others", claimed > of / 2)
    notes.holds("and so is the loss of the same network", of_loss > of / 2)
    notes.say(
        f"Here the claim holds: neurons are ahead of turned ones by {span(gained, '.2f')}, and of "
        f"neurons that point elsewhere by {span(ahead, '+.2f')}, where untrained ones are ahead of "
        f"theirs by {span(twins, '+.2f')}; claimed in {claimed} of {of} layers. But it is the "
        f"network and not the narrow question that makes the difference to stories260k: the loss "
        f"of every token is claimed in {of_loss} of {of} layers too, and the two answers differ by "
        f"{span(apart, '.2f')}. Whether neurons are a sparse basis is asked of each network anew."
    )
    plain, turned, elsewhere = (
        _kept(notes, asked, key) for key in ("plain", "turned", "elsewhere")
    )
    notes.row(
        "Few neurons carry one behaviour (agreement, the demo)",
        f"Gini {span(plain, '.2f')}, turned {span(turned, '.2f')}",
        f"neurons that point elsewhere {span(elsewhere, '.2f')}; claimed in {claimed} of {of} "
        f"layers, as is the loss ({of_loss} of {of})",
        Verdict.HOLDS,
    )


def _margins(output: Any, batch: Batch, other: dict[int, int]) -> Tensor:
    """The logit of the form that stands there less that of the other, wherever one stands."""
    wanted, logits = batch["input_ids"][:, 1:], output.logits[:, :-1]
    found: list[Tensor] = []
    for right, wrong in other.items():
        at = logits[wanted == right]
        found.append(at[:, right] - at[:, wrong])
    return torch.cat(found)


ENTRY = Entry(
    name="attribution",
    title="Attribution to neurons",
    needs="stories260k and a text (BASIS_PROBE_ASSETS).",
    run=run,
)
