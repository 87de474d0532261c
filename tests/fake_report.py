"""Reports made of invented numbers, shaped like those of real probes."""

import dataclasses
import math
from typing import Any

import numpy as np
import torch

from basis_probe.algebra.groups import (
    Blocks,
    GeneralLinear,
    Monomial,
    Orthogonal,
    Permutation,
    Planes,
    Privileged,
    Unknown,
)
from basis_probe.concepts.thumbnails import Thumbnails, encoded
from basis_probe.results.evidence import (
    BasisRanking,
    BasisRow,
    BasisStanding,
    ClosedFormRecord,
    NullRecord,
    OrderRecord,
    PathRecord,
    ScoreResult,
    Tail,
)
from basis_probe.results.examples import Context, Examples, TopContexts
from basis_probe.results.report import Outcome, Provenance, Report, SiteReport, Verdict
from basis_probe.results.symmetry import Certificate, Symmetry

HOSTILE = (
    "<script>alert(1)</script>",
    "\"'><img src=x onerror=alert(1)>",
    "a|b|c\n| --- |\n# heading",
    "`code` *bold* [link](javascript:alert(1)) <b>",
    "abc\u202egnp.exe\u2066\u200f",
    "nul\x00 bell\x07 escape\x1b[31m c1\x9b surrogate\ud800 end\ufffe",
    "[red]markup[/red] {{ 7 * 7 }} {% raw %} $\\frac{1$",
    "שלום עולם",
    "w" * 10_000,
    "&amp; &lt; --> ]]> </style></title></details>",
)
"""Names that must come out as text."""


def score(
    name: str,
    *,
    effect: float,
    seed: int,
    frames: int = 999,
    dim: int = 64,
    mean: float = 0.4,
    std: float = 0.03,
    decides: bool = True,
    tail: Tail = Tail.UPPER,
    null: str = "counterfactual",
    per_direction: bool = True,
    tests: int = 20,
    note: str = "",
) -> ScoreResult:
    """A score that lies `effect` standard deviations from its null."""
    rng = np.random.default_rng(seed)
    values = mean + std * rng.standard_normal(frames)
    observed = float(values.mean() + effect * values.std(ddof=1))
    if tail is Tail.UPPER:
        extreme = int((values >= observed).sum())
    else:
        extreme = int((abs(values - values.mean()) >= abs(observed - values.mean())).sum())
    p = (1 + extreme) / (frames + 1)
    p_tail = p if extreme >= 10 else max(math.exp(-min(effect * effect / 2, 600)), 1e-280)
    axes = rng.gamma(2.0, observed / 2 if observed > 0 else 0.1, dim)
    chances = np.clip(rng.random(dim) * math.exp(-max(effect, 0.0) / 4), 1 / (frames + 1), 1.0)
    # They are counted among 64 directions of every frame, and the largest value has the smallest.
    chances = np.ceil(chances * (64 * frames + 1)) / (64 * frames + 1)
    chances[np.argsort(-axes)] = np.sort(chances)
    empty = np.full(dim, math.nan)
    return ScoreResult(
        name=name,
        observed=observed,
        null_mean=float(values.mean()),
        null_std=float(values.std(ddof=1)),
        effect=effect,
        p_value=p,
        p_tail=p_tail,
        p_tail_method="Monte Carlo" if extreme >= 10 else "generalised Pareto",
        p_adjusted=min(1.0, tests * p_tail) if decides else math.nan,
        tail=tail,
        decides=decides,
        null=null,
        null_values=values,
        per_direction=axes if per_direction else empty,
        per_direction_p=chances if per_direction else empty,
        fraction_privileged=float((chances < 0.01).mean()) if per_direction else math.nan,
        effect_without_top_axes=0.7 * effect if per_direction else math.nan,
        all_samples=observed * 1.01 if per_direction else math.nan,
        closed_form=None
        if per_direction
        else ClosedFormRecord(mean=mean, std=std, source="3 (n - 1) / (n + 1)", exact=True),
        note=note,
        difference=observed - float(values.mean()),
        difference_error=0.02 if per_direction else math.nan,
    )


_ROTATION = NullRecord(
    name="rotation",
    frames=999,
    samples=8192,
    geometry="euclidean",
    holds_fixed="the activations, their norms and their covariance, up to a rotation",
    because="the site is linear and its group holds the rotations",
)
_COUNTERFACTUAL = NullRecord(
    name="counterfactual",
    frames=999,
    samples=8192,
    geometry="euclidean",
    holds_fixed="the weights, biases and nonlinearity, the input's mean and the input's data",
    because="the site lies behind silu and its input is one linear map away",
)
_PRE_ACTIVATION = NullRecord(
    name="pre-activation",
    frames=999,
    samples=8192,
    geometry="standardised",
    holds_fixed="each unit's mean and variance before the nonlinearity",
    because="the input of the layer is not one linear map away",
    approximate=True,
)


def _certificate(violation: float = 0.41) -> Certificate:
    return Certificate(holds=True, max_error=3.2e-13, tolerance=1e-9, violation=violation)


def _residual(layer: int, where: str, effect: float, outcome: Outcome, seed: int) -> SiteReport:
    site = f"blocks.{layer}.hook_resid_{where}"
    stands = outcome is Outcome.EMERGENT
    return SiteReport(
        site=site,
        kind="residual stream",
        layer=layer,
        shape=(64,),
        dim=64,
        n_samples=48_213,
        n_dead=0,
        symmetry=Symmetry(
            group=Orthogonal(64),
            privileged=Privileged.NONE,
            because=(
                "Every reader sees the stream through an RMSNorm whose gain folds into it, and an "
                "RMSNorm commutes with rotations."
            ),
            reference="Godfrey et al. 2022, section 3; checked by reparametrisation",
            certificate=_certificate() if layer != 3 else None,
        ),
        null=_ROTATION,
        scores={
            "non_gaussianity": score(
                "non_gaussianity", effect=effect, seed=seed, mean=0.21, std=0.012, null="rotation"
            ),
            "kurtosis": score(
                "kurtosis",
                effect=effect - 4,
                seed=seed + 1,
                mean=1.3,
                std=0.08,
                decides=False,
                tail=Tail.TWO_SIDED,
                null="rotation",
            ),
            "token_kurtosis": score(
                "token_kurtosis",
                effect=effect / 2,
                seed=seed + 2,
                mean=2.91,
                std=0.02,
                decides=False,
                null="rotation",
                per_direction=False,
            ),
        },
        beside={},
        verdict=Verdict(
            outcome,
            f"The architecture fixes no axis of {site}, "
            + (
                f"yet the data stand out on them (non-Gaussianity {effect:+.1f} sd of the null): "
                "training broke the symmetry."
                if stands
                else "and the data do not stand out on them: do not read coordinates."
            ),
        ),
        notes=("Three axes carry most of the finding.",) if stands else (),
    )


def _heads(layer: int, name: str, count: int, rotary: bool, effect: float, seed: int) -> SiteReport:
    site = f"blocks.{layer}.attn.hook_{name}"
    inner = Planes(8, "half") if rotary else GeneralLinear(8)
    kind = {"q": "attention queries", "k": "attention keys", "v": "attention values"}[name]
    return SiteReport(
        site=site,
        kind=kind,
        layer=layer,
        shape=(count, 8),
        dim=count * 8,
        n_samples=48_213,
        n_dead=0,
        symmetry=Symmetry(
            group=Blocks(inner, count),
            privileged=Privileged.PLANES if rotary else Privileged.BLOCKS,
            because=(
                "Rotary embeddings turn the pairs (i, i + d/2) of every head."
                if rotary
                else "Values meet only linear maps, head by head."
            ),
            reference="checked by reparametrisation",
            certificate=_certificate(),
        ),
        null=_ROTATION,
        scores={
            "non_gaussianity": score(
                "non_gaussianity",
                effect=effect,
                seed=seed,
                dim=count * 8,
                mean=0.18,
                std=0.02,
                null="rotation",
            ),
        },
        beside={},
        verdict=Verdict(
            Outcome.ARBITRARY,
            f"The architecture does not fix single axes of {site}, and the data do not stand out "
            "on them: do not read coordinates.",
        ),
    )


def _neurons(layer: int, effect: float, outcome: Outcome, seed: int) -> SiteReport:
    site = f"blocks.{layer}.mlp.hook_post"
    return SiteReport(
        site=site,
        kind="gated neurons behind silu",
        layer=layer,
        shape=(172,),
        dim=172,
        n_samples=48_213,
        n_dead=2 if layer == 1 else 0,
        symmetry=Symmetry(
            group=Monomial(172),
            privileged=Privileged.AXES,
            because=(
                "The product of gate and up branch admits one permutation and a diagonal that the "
                "up branch absorbs."
            ),
            reference="Godfrey et al. 2022, Table 1",
            certificate=_certificate(),
        ),
        null=_COUNTERFACTUAL,
        scores={
            "non_gaussianity": score(
                "non_gaussianity", effect=effect, seed=seed, dim=172, mean=0.41, std=0.03
            ),
            "heavy_tails": score(
                "heavy_tails", effect=effect / 3, seed=seed + 1, dim=172, mean=3.1, std=0.07
            ),
            "kurtosis": score(
                "kurtosis",
                effect=-10.0 if layer == 4 else effect / 2,
                seed=seed + 2,
                dim=172,
                mean=3.1,
                std=0.07,
                decides=False,
                tail=Tail.TWO_SIDED,
            ),
        },
        beside={
            "kurtosis": score(
                "kurtosis",
                effect=1717.0 / (layer + 1),
                seed=seed + 3,
                dim=172,
                mean=0.4,
                std=0.01,
                decides=False,
                null="raw rotation",
            ),
        },
        verdict=Verdict(
            outcome,
            f"The architecture fixes the axes of {site} and the data stand out on them "
            f"(non-Gaussianity {effect:+.1f} sd of the null, heavy tails {effect / 3:+.1f}): "
            "read neurons."
            if outcome is Outcome.PRIVILEGED
            else f"The architecture fixes the axes of {site} but the data do not stand out on "
            "them: look for a dictionary.",
        ),
        notes=("2 of 172 neurons never varied and are left out.",) if layer == 1 else (),
    )


def _unknown(seed: int) -> SiteReport:
    return SiteReport(
        site="ln_final.hook_normalized",
        kind="output of a norm",
        layer=None,
        shape=(64,),
        dim=64,
        n_samples=48_213,
        n_dead=0,
        symmetry=Symmetry(
            group=Unknown(64),
            privileged=Privileged.UNKNOWN,
            because="A module that reads this site computes something that was not recognised.",
            reference="",
        ),
        null=_PRE_ACTIVATION,
        scores={
            "non_gaussianity": score(
                "non_gaussianity", effect=1.2, seed=seed, null="pre-activation", decides=False
            )
        },
        beside={},
        verdict=Verdict(
            Outcome.UNDECIDED,
            "Nothing is claimed about the axes of ln_final.hook_normalized, because what reads "
            "them was not understood.",
        ),
    )


def without_null() -> SiteReport:
    """A site at which nothing could be compared."""
    return SiteReport(
        site="unembed.hook_logits",
        kind="logits",
        layer=None,
        shape=(512,),
        dim=512,
        n_samples=12,
        n_dead=500,
        symmetry=Symmetry(
            group=Permutation(512),
            privileged=Privileged.AXES,
            because="The axes are the vocabulary.",
            reference="by definition",
        ),
        null=None,
        scores={},
        beside={},
        verdict=Verdict(
            Outcome.UNDECIDED, "Only 12 samples for 512 axes: at least 1,000 are needed."
        ),
        notes=("500 of 512 axes never varied.",),
    )


def with_nan() -> SiteReport:
    """A site whose every number is missing."""
    nan = math.nan
    site = _neurons(0, 1.0, Outcome.UNUSED, 5)
    missing = dataclasses.replace(
        site.scores["kurtosis"],
        observed=nan,
        null_mean=nan,
        null_std=nan,
        effect=nan,
        p_value=nan,
        p_tail=nan,
        p_adjusted=nan,
        null_values=np.full(10, nan),
        per_direction=np.full(172, nan),
        per_direction_p=np.full(172, nan),
        fraction_privileged=nan,
        effect_without_top_axes=nan,
        all_samples=nan,
        note="Every axis was constant.",
    )
    return dataclasses.replace(
        site,
        site="blocks.0.mlp.hook_dead",
        scores={"kurtosis": missing},
        beside={},
        verdict=Verdict(Outcome.UNDECIDED, "Every axis was constant."),
    )


def provenance(model: str = "stories260k (LlamaForCausalLM)") -> Provenance:
    """How an invented run was made."""
    return Provenance(
        model=model,
        data="tinystories-valid.txt, 512 sequences of 96 tokens",
        seed=0,
        n_batches=16,
        n_examples=512,
        versions={
            "basis_probe": "0.1.0",
            "torch": "2.13.0",
            "transformer_lens": "4.3.0",
            "numpy": "2.4.6",
        },
        device="cpu",
        dtype="float32",
        level=0.05,
        settings={"sites": "default", "scores": "default", "null": "by site", "frames": "999"},
    )


def examples(
    site: str, *, seed: int, text: str = "", sides: int = 1, pictures: bool = False
) -> Examples:
    """Top contexts of five axes and five rotated directions; `text` is among all their tokens."""
    rng = np.random.default_rng(seed)
    vocabulary = ["once", " upon", " a", " time", ",", "\n", " ", " there", " was", *[text] * 3]

    def top(label: str, axis: int | None, sign: int) -> TopContexts:
        contexts: list[Context] = []
        for place in range(5):
            length = int(rng.integers(3, 26))
            values = rng.gamma(0.5, 2.0, length)
            at = int(values.argmax())
            tokens = tuple(vocabulary[int(i)] for i in rng.integers(0, len(vocabulary), length))
            found = Context(tokens, tuple(values.tolist()), at, place, at)
            if pictures:
                image = torch.from_numpy(rng.random((1, 3, 30, 20), dtype=np.float32))
                made = Thumbnails.of(image)
                assert made is not None
                patch = encoded(made.picture(image[0], (0, 0, 3 + place, 4 + 3 * place)))
                where = (f"example {place}, row 1, column 2",)
                found = Context(where, (float(values[at]),), 0, place, at, picture=patch)
            contexts.append(found)
        purity = {"token purity" + text: float(rng.random())}
        return TopContexts(label + text, axis, sign, tuple(contexts), purity, text)

    senses = (1, -1)[:sides]
    return Examples(
        site=site,
        axes=tuple(top(f"axis {i}", i, s) for i in range(5) for s in senses),
        rotated=tuple(top(f"rotated direction {i}", None, s) for i in range(5) for s in senses),
        chosen=f"by kurtosis, the highest of all axes{text}",
    )


def with_examples(report: Report, **settings: Any) -> Report:
    """The report with examples at every site that has scores."""
    sites = tuple(
        dataclasses.replace(site, examples=examples(site.site, seed=i, **settings))
        if site.scores
        else site
        for i, site in enumerate(report)
    )
    return dataclasses.replace(report, site_reports=sites)


def fake_report() -> Report:
    """A report of a five-layer Llama, with every outcome in it."""
    sites: list[SiteReport] = []
    neurons = (46.0, 7.1, 6.9, 5.2, 1.1)
    for layer in range(5):
        seed = 100 * layer
        emergent = layer in (0, 1)
        sites += [
            _residual(
                layer,
                "pre",
                (5.4, 6.3, 1.1, -0.4, 0.2)[layer],
                Outcome.EMERGENT if emergent else Outcome.ARBITRARY,
                seed,
            ),
            _heads(layer, "q", 8, True, 0.3 * layer - 0.5, seed + 10),
            _heads(layer, "k", 4, True, 0.9 - 0.4 * layer, seed + 20),
            _heads(layer, "v", 4, False, -2.6 + layer, seed + 30),
            _residual(
                layer,
                "mid",
                (140.0, 0.3, 1.0, -0.2, 0.4)[layer],
                Outcome.EMERGENT if layer == 0 else Outcome.ARBITRARY,
                seed + 40,
            ),
            _neurons(
                layer,
                3 * neurons[layer],
                Outcome.UNUSED if layer == 4 else Outcome.PRIVILEGED,
                seed + 50,
            ),
        ]
    sites += [_unknown(900), without_null()]
    return Report(
        site_reports=tuple(sites),
        provenance=provenance(),
        notes=("The model's config names another activation than the one it computes.",),
    )


def wide_report(n_sites: int = 100, *, frames: int = 999, dim: int = 768) -> Report:
    """A report with four scores under `frames` frames at each of `n_sites` sites."""
    base = _neurons(0, 30.0, Outcome.PRIVILEGED, 7)
    sites: list[SiteReport] = []
    for index in range(n_sites):
        scores = {
            name: score(
                name,
                effect=3.0 * place + index / 10,
                seed=4 * index + place,
                frames=frames,
                dim=dim,
                decides=place < 2,
            )
            for place, name in enumerate(("non_gaussianity", "heavy_tails", "kurtosis", "sparsity"))
        }
        sites.append(
            dataclasses.replace(
                base,
                site=f"blocks.{index // 2}.mlp.hook_{'pre' if index % 2 else 'post'}",
                layer=index // 2,
                shape=(dim,),
                dim=dim,
                scores=scores,
                # Behind a nonlinearity raw rotations are shown beside.
                beside={
                    name: score(
                        name, effect=found.effect, seed=index, frames=frames, dim=dim, decides=False
                    )
                    for name, found in base.beside.items()
                    if index % 2 == 0
                },
            )
        )
    return Report(tuple(sites), provenance("gpt2-like, 50 layers"))


def by_scale(site: SiteReport, *, effect: float, outcome: Outcome = Outcome.EMERGENT) -> SiteReport:
    """The site where its axes stand out by their variances alone, if at all."""
    scale = OrderRecord(
        "scale", "variances", 1.0 + 0.02 * effect, 1.0, 0.02, effect, 1e-4, "Variances.", 1e-3
    )
    orders = ("scale",) if outcome is Outcome.EMERGENT else ()
    verdict = Verdict(outcome, "By their variances.", orders=orders)
    return dataclasses.replace(site, orders=(scale,), verdict=verdict)


def with_companions(text: str = "") -> Report:
    """A report with the three orders, a ranking of bases and a path; `text` stands in all names."""
    generator = np.random.default_rng(3)
    site = _neurons(0, 12.0, Outcome.PRIVILEGED, 0)
    nan = math.nan
    orders = (
        OrderRecord(
            "first" + text, "offset" + text, 0.4, 0.1, 0.02, 15.0, 0.005, "Offsets." + text
        ),
        OrderRecord("second", "variances", 1.2, 1.1, 0.1, 1.0, 0.2, "Variances do not."),
        OrderRecord("higher", "form", nan, nan, nan, nan, nan, "Nothing can be said."),
    )
    standings = (
        BasisStanding("standard" + text, 1.5, 8.0, 0.6, 1.0, 4),
        BasisStanding("ica", 2.2, 14.0, 1.0, 0.55, 4, "Found by FastICA." + text),
        BasisStanding("pca", 1.1, nan, nan, 0.4, 4),
    )
    ranking = BasisRanking(
        score="kurtosis" + text, standings=standings, best="ica", directions=np.eye(4),
        geometry="euclidean", reads="the activations", null_mean=1.0, null_std=0.06, frames=99,
        fitted_on=600, judged_on=600,
        table=(
            BasisRow("axes", "directions", "kurtosis" + text, 3.25, 3.125, 3.375, 4),
            BasisRow("sae" + text, "directions", "kurtosis" + text, 6.5, 6.25, 6.75, 40, text),
            BasisRow("sae" + text, "codes", "active", 7.75, nan, nan, 40, "2 zero" + text),
        ),
    )  # fmt: skip
    powers = tuple(float(power) for power in np.linspace(0, 1, 5))
    values = 2.0 - np.linspace(0, 1, 5) + 0.05 * generator.standard_normal((6, 5))
    path = PathRecord("kurtosis" + text, powers, values)
    first = next(iter(site.scores))
    scores = dict(site.scores)
    scores[first] = dataclasses.replace(scores[first], effect_interval=(9.5, 14.25))
    full = dataclasses.replace(site, scores=scores, orders=orders, bases=ranking, path=path)
    return Report((full,), provenance())


def hostile_report() -> Report:
    """A report in which every text is one of `HOSTILE`."""
    sites: list[SiteReport] = []
    for index, text in enumerate(HOSTILE):
        site = _neurons(index, 12.0, Outcome.PRIVILEGED, index)
        assert site.null is not None
        renamed = {
            f"{text}{place}": dataclasses.replace(
                entry, name=f"{text}{place}", note=text, null=text, p_tail_method=text
            )
            for place, entry in enumerate(site.scores.values())
        }
        sites.append(
            dataclasses.replace(
                site,
                site=f"{text}.{index}",
                kind=text,
                scores=renamed,
                beside=renamed,
                symmetry=dataclasses.replace(site.symmetry, because=text, reference=text),
                null=dataclasses.replace(
                    site.null, name=text, geometry=text, holds_fixed=text, because=text
                ),
                verdict=Verdict(site.verdict.outcome, text),
                notes=(text, text),
                examples=examples(text, seed=index, text=text),
            )
        )
    whole = " ".join(HOSTILE)
    return Report(
        tuple(sites),
        dataclasses.replace(
            provenance(whole), data=whole, versions={whole: whole}, settings={whole: whole}
        ),
        partial=True,
        notes=HOSTILE,
    )
