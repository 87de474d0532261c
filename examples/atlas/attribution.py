"""Attribution: whether few neurons carry a loss, beside turned neurons and untrained twins."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import basis_probe as bp

from . import sources
from .entry import Entry, Notes, Settings, Verdict, span


def run(notes: Notes, settings: Settings) -> None:
    """Activation times gradient on the neurons of three layers."""
    tokens = sources.story_tokens(settings.of(24, 8))
    layers = (0, 2, 4)[: settings.of(3, 1)]
    sites = [f"model.layers.{layer}.mlp.down_proj:in" for layer in layers]
    model = sources.stories()
    asked: dict[str, Any] = {"scores": "attribution", "certificates": False, "progress": False}
    ours = bp.probe(model, tokens.split(8), sites=sites, **asked)
    notes.say(
        "That MLP neurons are a sparse basis for circuits, about as sparse as dictionaries, is the "
        "claim of [a study](https://arxiv.org/abs/2601.22594) whose control are random effects, "
        "never a turned basis. Here: activation times the gradient of the next token's loss on the "
        f"neurons of stories260k (172 a layer, {tokens.numel():,} tokens of stories), and the Gini "
        "coefficient of its size across neurons, averaged over tokens: 0 where all carry as much, "
        "1 where one carries all. *Turned* is a random rotation of the neurons, gradients turned "
        "alike (five draws). *Elsewhere* are neurons that point elsewhere, with what reads them "
        "refitted to "
        "what the layer wrote. *Untrained* is how far six untrained twins are ahead of their own "
        "neurons that point elsewhere."
    )
    rows: list[list[str]] = []
    for layer, one in zip(layers, ours, strict=True):
        score = one.scores["attribution"]
        plain, turned = _turned(model, tokens, layer)
        twins = list(score.untrained)
        ahead = score.observed - score.null_mean
        rows.append(
            [
                f"layer {layer}", f"{score.observed:.3f}",
                f"{plain:.3f}, {turned:.3f}",
                f"{score.null_mean:.3f} ± {score.null_std:.3f}", f"{ahead:+.3f}",
                f"{min(twins):+.3f} to {max(twins):+.3f}", f"{score.p_adjusted:.2f}",
            ]
        )  # fmt: skip
        notes.number(f"{layer}/own", score.observed)
        notes.number(f"{layer}/turned", turned)
        notes.number(f"{layer}/plain", plain)
        notes.number(f"{layer}/elsewhere", score.null_mean)
        notes.number(f"{layer}/ahead", ahead)
        notes.number(f"{layer}/twins", sum(twins) / len(twins))
        notes.number(f"{layer}/p", score.p_adjusted)
    notes.table(
        [
            "",
            "neurons",
            "by hand: neurons, turned",
            "elsewhere",
            "ahead of elsewhere",
            "untrained ahead",
            "p",
        ],
        rows,
    )
    _say_what_follows(notes, [str(layer) for layer in layers])


def _turned(model: Any, tokens: Tensor, layer: int) -> tuple[float, float]:
    """The Gini coefficient of activation times gradient on neurons, and on turned ones."""
    read = model.model.layers[layer].mlp.down_proj
    caught: list[Tensor] = []

    def catch(_: Any, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        caught.append(given[0].detach().requires_grad_(True))
        return (caught[-1],)

    handle = read.register_forward_pre_hook(catch)
    logits = model(tokens).logits[:, :-1]
    handle.remove()
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    (slope,) = torch.autograd.grad(loss, caught)
    rows, gradient = caught[0].detach()[:, :-1].flatten(0, 1), slope[:, :-1].flatten(0, 1)
    generator = torch.Generator().manual_seed(0)
    turns = [bp.groups.Orthogonal(rows.shape[1]).sample(generator).float() for _ in range(5)]
    turned = [_gini((rows @ turn) * (gradient @ turn)) for turn in turns]
    return _gini(rows * gradient), sum(turned) / len(turned)


def _gini(effects: Tensor) -> float:
    """Of the sizes of each row, averaged over rows."""
    ranked = effects.double().abs().sort(1).values
    size = ranked.shape[1]
    weight = 2 * torch.arange(1, size + 1) - size - 1
    return float(((ranked * weight).sum(1) / (size * ranked.sum(1))).mean())


def _say_what_follows(notes: Notes, layers: list[str]) -> None:
    plain, turned, elsewhere, ahead, twins, p = (
        [notes.numbers[f"{layer}/{key}"] for layer in layers]
        for key in ("plain", "turned", "elsewhere", "ahead", "twins", "p")
    )
    gained = [one - other for one, other in zip(plain, turned, strict=True)]
    claimed = sum(value <= 0.05 for value in p)
    notes.number("claimed", claimed)
    notes.holds("neurons carry the loss more sparsely than turned ones", min(gained) > 0.05)
    notes.holds(
        "most of that is there for neurons that point elsewhere too",
        max(abs(a) / g for a, g in zip(ahead, gained, strict=True)) < 0.25,
    )
    notes.say(
        f"Against turned neurons the claim is there: a Gini coefficient higher by "
        f"{span(gained, '.2f')}. But neurons that point elsewhere have it too: the trained ones "
        f"are "
        f"ahead of them by {span(ahead, '+.3f')}, untrained ones of theirs by "
        f"{span(twins, '+.3f')} "
        f"on average. In {claimed} of {len(layers)} layers more is claimed. What makes the "
        f"neurons' "
        "attribution sparse is the gate and the nonlinearity, which all neurons have, whichever "
        "way they point."
    )
    notes.row(
        "Few neurons carry the loss (attribution)",
        f"Gini {span(plain, '.2f')}, turned {span(turned, '.2f')}",
        f"neurons that point elsewhere {span(elsewhere, '.2f')}; claimed in {claimed} of "
        f"{len(layers)} layers",
        Verdict.HOLDS if claimed > len(layers) / 2 else Verdict.ARTEFACT,
    )


ENTRY = Entry(
    name="attribution",
    title="Attribution to neurons",
    needs="stories260k and a text (BASIS_PROBE_ASSETS).",
    run=run,
)
