"""Sparse probes, spotlights and independent components: what other statistics say under a null."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import basis_probe as bp

from . import sources
from .entry import Entry, Notes, Settings, Verdict, span

FRAMES = 19


def run(notes: Notes, settings: Settings) -> None:
    """Three statistics, each against the null that is usual for it and against ours."""
    _probes(notes, settings)
    _spotlight(notes)
    _components(notes, settings)


# --- sparse probing -------------------------------------------------------------------------------


def _probes(notes: Notes, settings: Settings) -> None:
    from transformers import AutoTokenizer

    model = sources.stories()
    tokenizer = AutoTokenizer.from_pretrained(sources.folder("stories260k-llama"))
    path = sources.folder("ud_english_ewt") / "en_ewt-ud-dev.conllu"
    sentences = bp.concepts.read_conllu(path)[: settings.of(600, 250)]
    text = bp.concepts.annotated(sentences, tokenizer)
    concepts = {name: flags for name, flags in text.concepts.items() if name.startswith("upos")}
    rows: list[list[str]] = []
    ahead: dict[str, int] = {"counterfactual": 0, "rotation": 0}
    total = 0
    for layer in (0, 2, 4)[: settings.of(3, 1)]:
        site = f"model.layers.{layer}.mlp.down_proj:in"
        means: dict[tuple[str, int], tuple[float, float]] = {}
        for null in (bp.nulls.Counterfactual(frames=FRAMES), bp.nulls.Rotation(frames=FRAMES)):
            found = bp.sparse_probes(
                model, text.batches, concepts, site=site, sizes=(1, 4), null=null,
                max_samples=4000, progress=False,
            )  # fmt: skip
            for size in (1, 4):
                chosen = [probe for probe in found if probe.k == size]
                own = sum(probe.auc.observed for probe in chosen) / len(chosen)
                other = sum(probe.auc.null_mean for probe in chosen) / len(chosen)
                means[null.name, size] = own, other
                ahead[null.name] += sum(probe.auc.p_value <= 0.05 for probe in chosen)
            total += len(found)
        row = [f"layer {layer}"]
        for size in (1, 4):
            own, other = means["counterfactual", size]
            row += [f"{own:.3f}", f"{means['rotation', size][1]:.3f}", f"{other:.3f}"]
            notes.number(f"probes/{layer}/{size}", own)
            notes.number(f"probes/{layer}/{size} counterfactual", other)
            notes.number(f"probes/{layer}/{size} rotation", means["rotation", size][1])
        rows.append(row)
    total //= 2
    notes.say(
        "*Sparse probing* ([Gurnee et al. 2023](https://arxiv.org/abs/2305.01610)): how well the "
        "best one or four neurons tell a concept, chosen on half of the sentences and judged on "
        "the "
        f"other. Here parts of speech of {len(sentences)} sentences of English EWT on the neurons "
        "of stories260k (gated, 172 a layer); AUC, mean over concepts:"
    )
    notes.table(
        ["", "one neuron", "one direction", "one counterfactual", "four neurons",
         "four directions", "four counterfactual"],
        rows,
    )  # fmt: skip
    singles = [notes.numbers[f"probes/{row[0].split()[1]}/1"] for row in rows]
    turned = [notes.numbers[f"probes/{row[0].split()[1]}/1 rotation"] for row in rows]
    share = notes.number("probes/ahead", ahead["counterfactual"] / total)
    notes.number("probes/ahead of rotations", ahead["rotation"] / total)
    notes.holds("few concepts are told better by neurons than by counterfactuals", share < 0.25)
    notes.say(
        f"Of {total} tests (concept, size, layer) {ahead['counterfactual']} are ahead of "
        f"counterfactual neurons at p = 0.05, where chance gives {0.05 * total:.1f}, and "
        f"{ahead['rotation']} of rotations. Words are told, but by "
        "directions at large: a probe that finds a good neuron has not found that neurons are "
        "better than other directions. (In form the same neurons do stand out.)"
    )
    notes.row(
        "Single neurons tell parts of speech better than other directions (sparse probing)",
        f"AUC {span(singles, '.2f')}, above 0.5",
        f"rotations {span(turned, '.2f')}; {ahead['counterfactual']} of {total} ahead of "
        "counterfactuals at 5 %",
        Verdict.NOT_SEEN if share <= 0.1 else Verdict.HOLDS,
    )


# --- spotlight resonance --------------------------------------------------------------------------


def _spotlight(notes: Notes) -> None:
    networks = 16
    called = {"turned": 0, "counterfactual": 0}
    planted = {"turned": 0, "counterfactual": 0}
    for seed in range(networks):
        for counts, sparse in ((called, False), (planted, True)):
            inputs, weight = _layer(seed, sparse=sparse)
            post = (inputs @ weight.T).relu()
            counts["turned"] += bp.spotlight_resonance(post, planes=28, angles=32).p_value <= 0.05
            counts["counterfactual"] += _p_counterfactual(inputs, weight, seed) <= 0.05
    for name, count in called.items():
        notes.number(f"spotlight/untrained {name}", count / networks)
        notes.number(f"spotlight/planted {name}", planted[name] / networks)
    notes.holds("turned bases call untrained ReLU layers", called["turned"] >= 0.9 * networks)
    notes.holds("counterfactual neurons do not", called["counterfactual"] <= max(1, 0.2 * networks))
    notes.holds(
        "they still find features that lie on neurons",
        planted["counterfactual"] >= 0.7 * networks,
    )
    notes.say(
        "*Spotlight resonance* ([Bird 2025](https://arxiv.org/abs/2505.13471)): how many samples "
        "lie near a direction that turns from axis to axis; more on axes than halfway is read as "
        f"alignment with the privileged basis. {networks} untrained ReLU layers (8 neurons, "
        f"Gaussian inputs and weights): against turned bases {called['turned']} of {networks} are "
        f"called at 5 %, against counterfactual neurons {called['counterfactual']}. With "
        f"sparse features planted on the neurons {planted['turned']} and "
        f"{planted['counterfactual']}: the statistic sees alignment, once it is not paid for being "
        "one-sided. No trained network was looked at. Bird holds activation functions to be the "
        "cause of alignment; that a call shows what *training* did is a reading of it that these "
        "untrained layers contradict."
    )
    notes.row(
        "Spotlight resonance shows that *training* aligned representations with axes (read so)",
        f"called in {called['turned']} of {networks} untrained layers",
        f"{called['counterfactual']} of {networks}; planted features {planted['counterfactual']}; "
        "no trained network looked at",
        Verdict.ARTEFACT,
    )


def _layer(seed: int, *, sparse: bool) -> tuple[Tensor, Tensor]:
    """Inputs [samples, 8] and weights [8, 8] of a layer; with `sparse` a neuron reads a feature."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(1000, 8, generator=generator, dtype=torch.float64)
    if not sparse:
        return normal, torch.randn(8, 8, generator=generator, dtype=torch.float64)
    features = normal * (torch.rand(1000, 8, generator=generator) < 0.15)
    turn = bp.groups.Orthogonal(8).sample(generator)
    return features @ turn.T, turn.T.contiguous()


def _p_counterfactual(inputs: Tensor, weight: Tensor, seed: int) -> float:
    """Of the contrast: (1 + #{layers with as much or more}) / (1 + layers)."""
    generator = torch.Generator().manual_seed(1000 + seed)
    turns = [torch.eye(8, dtype=torch.float64)]
    turns += [bp.groups.Orthogonal(8).sample(generator) for _ in range(FRAMES)]
    contrasts = [
        bp.spotlight_resonance(
            (inputs @ turn @ weight.T).relu(), planes=28, angles=32, frames=19
        ).contrast
        for turn in turns
    ]
    return sum(value >= contrasts[0] for value in contrasts) / len(contrasts)


# --- independent components -----------------------------------------------------------------------


def _components(notes: Notes, settings: Settings) -> None:
    tokens = sources.story_tokens(settings.of(40, 24))
    examples = torch.arange(len(tokens)).repeat_interleave(tokens.shape[1])
    model = sources.stories()
    rows: list[list[str]] = []
    for name, network in (("trained", model), ("untrained", bp.reinitialised(model, seed=1))):
        caught: Any = network
        with torch.no_grad():
            hidden = caught(tokens, output_hidden_states=True).hidden_states[3].flatten(0, 1)
        site = bp.probe_activations(
            hidden, group="orthogonal", examples=examples, bases=("ica", "pca")
        )
        ranking = site.bases
        row = [name]
        for standing in ranking.standings:
            row.append(f"{standing.score:.2f} ({standing.effect:+.1f})")
            notes.number(f"{name}/{standing.name}", standing.effect)
            notes.number(f"{name}/{standing.name} score", standing.score)
        rows.append([*row, f"{ranking.null_mean:.2f}"])
    notes.say(
        "*Independent components* as a lens on the residual stream ([ICA Lens]"
        "(https://arxiv.org/abs/2606.11722)): directions that FastICA finds on half of the "
        "stories, judged on the others by |kurtosis - 3|, mean over directions; in brackets the "
        "distance from random rotations in their standard deviations. stories260k in front of "
        "block 3, and the same network untrained:"
    )
    notes.table(["network", "axes", "ICA", "PCA", "rotations"], rows)
    number = notes.numbers
    notes.holds("ICA stands out in the trained network", number["trained/ica"] > 5)
    notes.holds("and in the untrained one", number["untrained/ica"] > 5)
    notes.holds("the axes of the untrained one do not", abs(number["untrained/standard"]) < 4)
    own, other = number["trained/ica score"], number["untrained/ica score"]
    notes.holds("components of the trained network are further from Gaussian", own > other)
    notes.say(
        "Components stand out, and on held-out data: but they do in the untrained network too, "
        "since tokens alone make some directions of any embedding heavy-tailed. That components "
        "are far from Gaussian says that there is structure to be found, not that "
        f"training made it. Compared directly, the trained network's are {own:.2f} from Gaussian "
        f"and the untrained one's {other:.2f}: {own / other:.1f} times as far, of one network "
        "each. The untrained network belongs beside the lens."
    )
    notes.row(
        "That ICA's directions are further from Gaussian than rotations shows what training made",
        f"{number['trained/ica']:+.0f} sd from rotations",
        f"untrained twin {number['untrained/ica']:+.0f} sd; distance from Gaussian {own:.2f}, "
        f"untrained {other:.2f}",
        Verdict.ARTEFACT if number["untrained/ica"] > 5 else Verdict.HOLDS,
    )


ENTRY = Entry(
    name="other_statistics",
    title="Sparse probes, spotlights, components",
    needs="stories260k, a text and English EWT (BASIS_PROBE_ASSETS).",
    run=run,
)
