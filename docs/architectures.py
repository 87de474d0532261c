"""Writes architectures.md: what is derived for every family of the tests, and how it was proved.

    python docs/architectures.py

The models are small, random in every parameter, and built from the configurations of their
libraries; nothing is fetched.
"""

from __future__ import annotations

import concurrent.futures
import pathlib
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator

import torch

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))

import families  # noqa: E402
from families.places import KINDS, kind_of, most, unknown  # noqa: E402

import basis_probe as bp  # noqa: E402

EVERY = (*families.FAMILIES, *families.MORE)

COLUMNS = ("residual stream", "neurons", "queries", "keys", "z")


def main() -> None:
    """Writes the file beside this script."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    (HERE / "architectures.md").write_text("\n".join(lines()) + "\n", encoding="utf-8")


def counted(place: int) -> tuple[int, int, str]:
    """Claimed directions, those of the null space, and what is missing, for one family."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    family = families.TINIES[place]
    best = 0, 10_000, ""
    # A rectified neuron that is on for every input is linear there, and so has more symmetries
    # than its architecture: of several draws of the weights the one counts that has fewest.
    for seed in range(DRAWS if family.name in RECTIFIED else 1):
        model = families.without_epsilons(family.make(seed))
        found = bp.symmetries(model, family.example(seed)).completeness
        if found.nullity - found.claimed < best[1] - best[0]:
            best = found.claimed, found.nullity, str(found)
        if found.complete:
            break
    return best


def derived(place: int) -> tuple[bp.Symmetries, float]:
    """What is derived for one family, and the seconds of a processor that it took."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    family = EVERY[place]
    model, example = family.make(0), family.example(0)
    start = time.process_time()
    found = bp.symmetries(model, example)
    return found, time.process_time() - start


def counts_of_all() -> dict[str, tuple[int, int, str]]:
    """The count of every family that is known site by site."""
    with concurrent.futures.ProcessPoolExecutor(2) as pool:
        several = pool.map(counted, range(len(families.TINIES)))
        return dict(zip((family.name for family in families.TINIES), several, strict=True))


def lines() -> Iterator[str]:
    """The lines of the file."""
    counts = counts_of_all()
    with concurrent.futures.ProcessPoolExecutor(2) as pool:
        several = [*pool.map(derived, range(len(EVERY)))]
    found = {family.name: one for family, (one, _) in zip(EVERY, several, strict=True)}
    seconds = {family.name: spent for family, (_, spent) in zip(EVERY, several, strict=True)}
    claims = [s for one in found.values() for s in one.values() if not unknown(s)]
    proved = [s for s in claims if s.certificate is not None and s.certificate.holds]
    yield "# What the weights of each architecture absorb"
    yield ""
    yield (
        f"{len(found)} families ({counts_by_kind()}), each with two layers, or the fewest that "
        f"its stages allow, and random weights; {len(claims)} claims at "
        f"{sum(map(len, found.values()))} places, {len(proved)} of them proved, "
        f"{refuted(found)} refuted. *Error*: by how "
        "much elements of the claimed group moved the outputs at most, relative to the largest "
        "output, in float64. *Stranger*: by how much the least change outside a claimed group did. "
        "*Complete*: directions of the parameters that are claimed, of those that leave the "
        "function alone, counted on the smallest model of the family "
        "(`symmetries(...).completeness`), with norms whose epsilon is too small to be seen."
    )
    complete = sum(claimed == every for claimed, every, _ in counts.values())
    large = sum(claimed > every for claimed, every, _ in counts.values())
    yield ""
    yield (
        f"{complete} of the {len(counts)} families that are counted are complete: no continuous "
        f"symmetry is missed. {large} claim more directions than there are."
    )
    yield ""
    yield from rates(found)
    yield ""
    slowest = sorted(seconds, key=lambda name: -seconds[name])[:3]
    yield (
        f"`symmetries` takes {sum(seconds.values()) / len(seconds):.1f} s of one processor for a "
        "family on average, and at most "
        + ", ".join(f"{seconds[name]:.1f} s ({name})" for name in slowest)
        + ". "
        + growth()
    )
    yield ""
    yield "Written by `python docs/architectures.py`. " + GLOSSARY
    yield ""
    yield f"| family | {' | '.join(COLUMNS)} | proved | error | stranger | complete |"
    yield f"|---|{'---|' * len(COLUMNS)}---|---|---|---|"
    for name, one in found.items():
        cells = [most(one, kind) for kind in COLUMNS]
        made = [s.certificate for s in one.values() if s.certificate is not None]
        held = [proof for proof in made if proof.holds]
        total = sum(not unknown(s) for s in one.values())
        error = max((proof.max_error for proof in held), default=float("nan"))
        least = min((p.violation for p in held if p.violation == p.violation), default=float("nan"))
        yield (
            f"| {name} | {' | '.join(cells)} | {len(held)} of {total} | {error:.0e} | {least:.0e} "
            f"| {'{} of {}'.format(*counts[name]) if name in counts else '-'} |"
        )
    yield ""
    yield "## Where directions are missing"
    yield ""
    for name, (claimed, all_of_them, said) in counts.items():
        if claimed != all_of_them:
            yield f"- {name}: {WHY.get(name, '')} {said}.".replace(":  ", ": ")
    yield ""
    yield "## What is not claimed, and why"
    yield ""
    reasons: Counter[str] = Counter()
    where: dict[str, set[str]] = {}
    for name, one in found.items():
        for symmetry in one.values():
            if unknown(symmetry):
                reason = symmetry.because.split("; the group is not derived")[0].split(" in ")[0]
                reasons[reason] += 1
                where.setdefault(reason, set()).add(name)
    for reason, count in sorted(reasons.items(), key=lambda item: (-item[1], item[0])):
        names = sorted(where[reason])
        shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
        yield f"- {reason}: {count} places ({shown})"
    yield ""
    yield LEFT_OUT


LEFT_OUT = """## Tried, and not in the table

Not all claims about these hold or can be proved; what was refuted is UNKNOWN there, with both
numbers. DiffLlama (values of two heads are one, normed together), MiniMax (queries, keys and
values are bent before they are parted) and LongCat-Flash's router (some experts do nothing):
claims refuted. BiT (standardised convolutions, 6 to 9 s), MarkupLM,
LayoutLMv3, MobileBERT, ConvBERT and RADIO: claims that cannot be proved, because what is added or
read is computed from several parameters. Gemma 3n: its stream is not followed. T5Gemma, Zamba,
CvT, LeViT, MobileViT, Kimi Linear, Nemotron-H, xLSTM, FNet and DBRX were not built at these
sizes."""

GLOSSARY = (
    "Groups: O(n) rotations; LINE rotations across the all-ones direction, with anything written "
    "along it; GL(n) every invertible matrix; S_n permutations, with signs (±), positive scales "
    "(>0) or any scales (≠0) of each axis; `h x G` the group G in each of h heads, which change "
    "places, or stay in theirs (kept)."
)

DRAWS = 5
RECTIFIED = {
    "OPT", "OPT, norms behind, narrow embedding", "Nemotron", "T5 encoder", "T5 encoder, no head",
    "native, LN, ReLU", "native, RMS, gated ReLU", "native, no norm, ReLU, rotary",
}  # fmt: skip

EXPERTS = (
    "the neurons of all experts of a block are claimed to change alike, so that the scales between "
    "the two factors of a product are not claimed expert by expert; the router's softmax does not "
    "see what is added to all of its logits."
)

FOLLOWED = (
    "a norm with a gain reads the table of tokens at once, and to first order one turn of the "
    "stream behind it, with a shear, a scale and a change of the gain, is followed by the table."
)

WHY = {
    **dict.fromkeys(["Mixtral", "Qwen2-MoE", "Qwen3-MoE", "OLMoE"], EXPERTS),
    "DeepSeek-V3": f"{EXPERTS} Compressed queries and keys are not claimed.",
    "BLOOM": FOLLOWED,
    "ModernBERT": FOLLOWED,
    "Mamba": "channels in front of the convolution, and the states of the scan, are not claimed.",
    "native, no norm, ReLU, rotary": (
        "some rectified neurons are on, or off, for all inputs in every draw that was made."
    ),
}


def refuted(found: dict[str, bp.Symmetries]) -> int:
    """How many claims were not true of the model."""
    made = [s.certificate for one in found.values() for s in one.values()]
    return sum(proof is not None and not proof.holds for proof in made)


def counts_by_kind() -> str:
    """How many families of each kind there are."""
    named = ("T5 encoder", "BERT", "RoBERTa", "DistilBERT", "ELECTRA", "ALBERT", "ModernBERT")
    known = [family.name for family in families.HUGGING_FACE]
    read = sum(name.startswith(named) for name in known)
    kinds = {kind: len(table(families.SMALL)) for kind, table in families.TABLES.items()}
    kinds["encoders"] += read
    kinds["vision"] += known.count("ViT")
    kinds["decoders"] += len(known) - read - known.count("ViT") + len(families.NATIVE)
    words = {
        "decoders": "decoders", "encoders": "encoders, with or without decoders",
        "vision": "that read images or videos", "speech": "that read sounds",
    }  # fmt: skip
    several = [f"{kinds[kind]} {word}" for kind, word in words.items()]
    return ", ".join((*several, f"{len(families.NETWORKS)} convolutional ones written by hand"))


def rates(found: dict[str, bp.Symmetries]) -> Iterator[str]:
    """How many places of each kind are unknown."""
    total: Counter[str] = Counter()
    missing: Counter[str] = Counter()
    for one in found.values():
        for name, symmetry in one.items():
            kind = kind_of(name)
            if kind is not None:
                total[kind] += 1
                missing[kind] += unknown(symmetry)
    cells = [f"{missing[kind]} of {total[kind]}" for kind in KINDS]
    yield (
        f"Of the places of the kinds that people read, {100 * missing.total() / total.total():.1f} "
        f"% are unknown ({missing.total()} of {total.total()}), each with its reason below:"
    )
    yield ""
    yield f"| {' | '.join(KINDS)} |"
    yield "|---|" + "---|" * (len(KINDS) - 1)
    yield f"| {' | '.join(cells)} |"


def growth() -> str:
    """How the time grows with the layers of a Llama."""
    from transformers import LlamaConfig, LlamaForCausalLM

    times: dict[int, float] = {}
    for layers in (8, 16, 32, 64):
        config = LlamaConfig(
            hidden_size=32, intermediate_size=40, num_hidden_layers=layers, num_attention_heads=4,
            num_key_value_heads=2, vocab_size=50,
        )  # fmt: skip
        model = families.generic(LlamaForCausalLM(config), 0)
        start = time.process_time()
        bp.symmetries(model, families.tokens(0))
        times[layers] = time.process_time() - start
    said = ", ".join(f"{layers} layers {spent:.1f} s" for layers, spent in times.items())
    return f"It grows with the depth of a model and no faster: {said} (Llama)."


if __name__ == "__main__":
    main()
