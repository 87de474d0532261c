"""What kind of place a name of a site stands for, and groups in a few characters."""

from __future__ import annotations

import re
from collections import Counter

import basis_probe as bp

KINDS = ("residual stream", "neurons", "queries", "keys", "values", "z", "router")
"""The kinds of places that people read, and routers."""

_BLOCKS = ("layers", "layer", "h", "blocks", "block", "stages")
_QUERIES = {"q_proj", "query", "q", "q_lin", "query_proj", "q_linear", "hook_q"}
_KEYS = {"k_proj", "key", "k", "k_lin", "key_proj", "k_linear", "hook_k"}
_VALUES = {"v_proj", "value", "v", "v_lin", "value_proj", "v_linear", "hook_v"}
_MIXED = {"o_proj", "out_proj", "out_lin", "o", "dense", "c_proj", "Wo", "projection", "proj"}
_READ = {
    "down_proj", "fc2", "c_proj", "dense_4h_to_h", "fc_out", "wo", "lin2", "Wo", "ffn_output", "w2",
    "output_dense", "weights_out",
}  # fmt: skip
_BENT = {
    "act", "act_fn", "activation", "activation_fn", "intermediate_act_fn", "gelu", "relu",
    "transform_act_fn", "hook_post",
}  # fmt: skip


def kind_of(name: str) -> str | None:
    """The kind of place that a name of a site stands for in the libraries; None for others.

    Example:
        >>> kind_of("model.layers.0.self_attn.q_proj"), kind_of("model.layers.0:in")
        ('queries', 'residual stream')
    """
    inside = name.endswith(":in")
    stem = re.sub(r":\d+$", "", name.removesuffix(":in"))
    parts = stem.split(".")
    last = parts[-1]
    attends = "mlp" not in name and ("attn" in name or "attention" in name.lower())
    numbered = len(parts) > 1 and last.isdigit() and parts[-2] in _BLOCKS
    # A layer that runs again and again bears one name.
    if (
        numbered
        or last in ("hook_resid_pre", "hook_resid_post")
        or stem.endswith("albert_layers.0")
    ):
        return "residual stream"
    for kind, names in (("queries", _QUERIES), ("keys", _KEYS), ("values", _VALUES)):
        if last in names and not inside:
            return kind
    behind = ".output.dense" in stem and "attention.output" not in stem
    if last == "hook_z" or (inside and last in _MIXED and attends and not behind):
        return "z"
    if (inside and (last in _READ or behind)) or (last in _BENT and not inside):
        return "neurons"
    if last in ("gate", "router") and not inside and re.search("mlp|moe|feed_forward|ffn", stem):
        return "router"
    return None


_SHORT = {
    "general-linear": "GL",
    "orthogonal": "O",
    "line-stabiliser": "LINE",
    "line-rotations": "LINE, no shear",
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
    """A group in a few characters.

    Example:
        >>> spoken(bp.groups.Blocks(bp.groups.GeneralLinear(8), 2))
        '2 x GL(8)'
    """
    if isinstance(group, bp.groups.Blocks):
        copies = f" ({group.copies} queries each)" if group.copies > 1 else ""
        kept = ", kept" if group.order == "kept" else ""
        return f"{group.count} x {spoken(group.inner)}{copies}{kept}"
    if isinstance(group, bp.groups.DirectSum):
        return " + ".join(spoken(part) for part in group.parts)
    return f"{_SHORT.get(group.name, group.name)}({group.dim})"


def all_of(found: dict[str, bp.Symmetry], kind: str) -> str:
    """The groups of all places of a kind, in order, with " / " between them.

    Of streams what runs between blocks counts; of neurons what their last maps read, where it is
    known, and else what is behind their nonlinearities."""
    here = _places(found, kind)
    return " / ".join(sorted({spoken(symmetry.group) for symmetry in here.values()}))


def most(found: dict[str, bp.Symmetry], kind: str) -> str:
    """The group that most places of a kind have, in a few characters; "-" where there are none.

    Of streams what runs between blocks counts.
    """
    here = _places(found, kind)
    seen = Counter(spoken(symmetry.group) for symmetry in here.values())
    return seen.most_common(1)[0][0] if seen else "-"


def _places(found: dict[str, bp.Symmetry], kind: str) -> dict[str, bp.Symmetry]:
    here = {name: s for name, s in found.items() if kind_of(name) == kind}
    read = {name: symmetry for name, symmetry in here.items() if _is_read(name)}
    return read if kind == "residual stream" or (kind == "neurons" and read) else here


def _is_read(name: str) -> bool:
    return name.endswith((":in", "hook_resid_pre"))


def unknown(symmetry: bp.Symmetry) -> bool:
    """True if nothing is claimed."""
    return symmetry.privileged is bp.Privileged.UNKNOWN
