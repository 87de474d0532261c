"""Writes architectures.md: what is derived for every family of the tests, and how it was proved.

    python docs/architectures.py

The models are small, random in every parameter, and built from the configurations of their
libraries; nothing is fetched.
"""

from __future__ import annotations

import concurrent.futures
import pathlib
import sys
import warnings
from collections import Counter
from collections.abc import Iterator

import torch

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))

import families  # noqa: E402

import basis_probe as bp  # noqa: E402

KINDS = {
    "stream": "residual stream",
    "neurons": "neurons",
    "queries": "queries",
    "keys": "keys",
    "z": "z",
}


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


def lines() -> Iterator[str]:
    """The lines of the file."""
    with concurrent.futures.ProcessPoolExecutor(2) as pool:
        counts = dict(
            zip(
                (family.name for family in families.TINIES),
                pool.map(counted, range(len(families.TINIES))),
                strict=True,
            )
        )
    found = {
        family.name: bp.symmetries(family.make(0), family.example(0))
        for family in families.FAMILIES
    }
    claims = [s for one in found.values() for s in one.values() if not unknown(s)]
    proved = [s for s in claims if s.certificate is not None and s.certificate.holds]
    yield "# What the weights of each architecture absorb"
    yield ""
    yield (
        f"{len(found)} families, each with two layers and random weights; {len(claims)} claims at "
        f"{sum(map(len, found.values()))} places, {len(proved)} of them proved. *Error*: by how "
        "much elements of the claimed group moved the outputs at most, relative to the largest "
        "output, in float64. *Stranger*: by how much the least change outside a claimed group did. "
        "*Complete*: directions of the parameters that are claimed, of those that leave the "
        "function alone, counted on the smallest model of the family "
        "(`symmetries(...).completeness`), with norms whose epsilon is too small to be seen."
    )
    complete = sum(claimed == all_of_them for claimed, all_of_them, _ in counts.values())
    yield ""
    yield f"{complete} of {len(counts)} families are complete: no continuous symmetry is missed."
    yield ""
    yield "Written by `python docs/architectures.py`. " + GLOSSARY
    yield ""
    yield f"| family | {' | '.join(KINDS.values())} | proved | error | stranger | complete |"
    yield f"|---|{'---|' * len(KINDS)}---|---|---|---|"
    for name, one in found.items():
        cells = [most(one, kind) for kind in KINDS]
        made = [s.certificate for s in one.values() if s.certificate is not None]
        held = [proof for proof in made if proof.holds]
        total = sum(not unknown(s) for s in one.values())
        error = max((proof.max_error for proof in held), default=float("nan"))
        least = min((p.violation for p in held if p.violation == p.violation), default=float("nan"))
        yield (
            f"| {name} | {' | '.join(cells)} | {len(held)} of {total} | {error:.0e} | {least:.0e} "
            f"| {counts[name][0]} of {counts[name][1]} |"
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

SHORT = {
    "general-linear": "GL",
    "orthogonal": "O",
    "line-stabiliser": "LINE",
    "permutation": "S",
    "signed-permutation": "S±",
    "positive-monomial": "S>0",
    "monomial": "S≠0",
    "trivial": "trivial",
    "planes": "planes",
    "signed-planes": "signed planes",
    "quarter-turns": "quarter turns",
    "unknown": "?",
}


def spoken(group: bp.groups.Group) -> str:
    """A group in a few characters."""
    if isinstance(group, bp.groups.Blocks):
        copies = f" ({group.copies} queries each)" if group.copies > 1 else ""
        kept = ", kept" if group.order == "kept" else ""
        return f"{group.count} x {spoken(group.inner)}{copies}{kept}"
    if isinstance(group, bp.groups.DirectSum):
        return " + ".join(spoken(part) for part in group.parts)
    return f"{SHORT.get(group.name, group.name)}({group.dim})"


def unknown(symmetry: bp.Symmetry) -> bool:
    """True if nothing is claimed."""
    return symmetry.privileged is bp.Privileged.UNKNOWN


def most(found: bp.Symmetries, kind: str) -> str:
    """The group that most places of a kind have, in a few characters."""
    seen = Counter(
        spoken(symmetry.group) for name, symmetry in found.items() if is_of(name, symmetry, kind)
    )
    return seen.most_common(1)[0][0] if seen else "-"


def is_of(name: str, symmetry: bp.Symmetry, kind: str) -> bool:
    """True if a name is one that libraries give to places of a kind."""
    last = name.removesuffix(":in").rsplit(".", 1)[-1]
    inside = name.endswith(":in")
    if kind == "stream":
        parts = name.removesuffix(":in").split(".")
        block = parts[-1].isdigit() and parts[-2] in ("layers", "layer", "h", "blocks", "block")
        # A layer that runs again and again bears one name.
        again = name.endswith("albert_layers.0:2:in")
        return (block and inside) or last == "hook_resid_pre" or again
    if kind == "neurons":
        reads = last in (
            "down_proj", "fc2", "c_proj", "dense_4h_to_h", "fc_out", "wo", "lin2", "Wo",
            "ffn_output",
        ) or name.endswith(".output.dense:in")  # fmt: skip
        return (inside and reads and not attends(name)) or last == "hook_post"
    if kind == "queries":
        return last in ("q_proj", "query", "q", "q_lin", "hook_q") and not inside
    if kind == "keys":
        return last in ("k_proj", "key", "k", "k_lin", "hook_k") and not inside
    reads = last in ("o_proj", "out_proj", "out_lin", "o", "dense", "c_proj", "Wo")
    return (inside and reads and attends(name)) or last == "hook_z"


def attends(name: str) -> bool:
    """True if a name is one that libraries give to parts of attention."""
    return "mlp" not in name and ("attn" in name or "attention" in name.lower())


if __name__ == "__main__":
    main()
