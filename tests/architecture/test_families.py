"""What is said of Transformers of many families, against what theory says, written by hand."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import families
import pytest
import torch
from families import FAMILIES, HEAD, HUGGING_FACE, MLP, NATIVE, D, Family
from torch import nn

import basis_probe as bp

# Annotations are checked in the other tests; here it would take most of the time.
pytestmark = pytest.mark.usefixtures("as_shipped")

LINE, ROUND, ALL = bp.groups.LineStabiliser(D), bp.groups.Orthogonal(D), bp.groups.GeneralLinear(D)
ORDER, SIGNS = bp.groups.Permutation(D), bp.groups.SignedPermutation(D)

INSIDE = bp.groups.GeneralLinear(HEAD)
HEADS = bp.groups.Blocks(INSIDE, 4)
GROUPED = bp.groups.Blocks(INSIDE, 2, 2)
ONE_VALUE = bp.groups.Blocks(INSIDE, 1, 4)
IN_PLACE = bp.groups.Blocks(INSIDE, 4, order="kept")
"""Heads that a constant of their own tells apart, as the slopes of ALiBi do."""

BENT, SCALED, GATED = (
    bp.groups.Permutation(MLP),
    bp.groups.PositiveMonomial(MLP),
    bp.groups.Monomial(MLP),
)

HALVES, NEIGHBOURS = (
    bp.groups.Planes(HEAD, pairing="half"),
    bp.groups.Planes(HEAD, pairing="adjacent"),
)
SOME_HALVES, SOME_NEIGHBOURS = (
    bp.groups.DirectSum((bp.groups.Planes(4, pairing=pairing), bp.groups.GeneralLinear(HEAD - 4)))
    for pairing in ("half", "adjacent")
)

EXPERTS = "which rows an expert reads is decided by the tokens"
NORMED = {"z": "norms read queries and keys first, and heads move only if the gains do"}
TABLE = {
    "z": "one table of biases serves the heads of all layers, which would have to move at once"
}


@dataclass(frozen=True)
class Truth:
    """What theory says of one family.

    Attributes:
        stream, post, z: (name of the site, its group) for the residual stream behind the first
            block, what the last map of its MLP reads, what the output projection of its attention
            reads; None where there is no such place.
        unknown: where less may be said, and why: of these places, and of queries and keys ("q"),
            the group may be UNKNOWN, or leave heads in their places.
    """

    stream: tuple[str, bp.groups.Group]
    post: tuple[str, bp.groups.Group] | None
    z: tuple[str, bp.groups.Group] | None
    unknown: dict[str, str]


def truth(
    block: str,
    stream: bp.groups.Group,
    post: tuple[str, bp.groups.Group] | None,
    z: tuple[str, bp.groups.Group] | None,
    unknown: dict[str, str] | None = None,
) -> Truth:
    """The truth of a family whose sites lie in its first block."""
    names = [None if place is None else (f"{block}.{place[0]}", place[1]) for place in (post, z)]
    return Truth((block, stream), *names, unknown or {})


H, L = "transformer.h.0", "model.layers.0"
DOWN, O_PROJ = "mlp.down_proj:in", "self_attn.o_proj:in"


def llama(
    stream: bp.groups.Group,
    post: bp.groups.Group = GATED,
    z: bp.groups.Group = GROUPED,
    unknown: dict[str, str] | None = None,
) -> Truth:
    """The truth of a family whose modules bear the names of Llama's."""
    return truth(L, stream, (DOWN, post), (O_PROJ, z), unknown)


def bert(path: str) -> Truth:
    return truth(path, ORDER, ("output.dense:in", BENT), ("attention.output.dense:in", HEADS))


def mixture(unknown: dict[str, str] | None = None) -> Truth:
    """The truth of a mixture of experts, all of which may order their neurons alike."""
    unknown = {"stream": EXPERTS, "post": EXPERTS, **(unknown or {})}
    return truth(L, ROUND, ("mlp.experts.act_fn", BENT), (O_PROJ, GROUPED), unknown)


# Biases, scales and positions that are weights do not show in these groups; where they would, the
# family has a line of its own.
TRUTH: dict[str, Truth] = {
    "GPT-2": truth(H, LINE, ("mlp.c_proj:in", BENT), ("attn.c_proj:in", HEADS)),
    "OpenAI-GPT": truth(
        H, ORDER, ("mlp.c_proj:in", bp.groups.Permutation(4 * D)), ("attn.c_proj:in", HEADS)
    ),
    "GPT-Neo": truth(H, LINE, ("mlp.c_proj:in", BENT), ("attn.attention.out_proj:in", HEADS)),
    "GPT-NeoX": truth(
        "gpt_neox.layers.0", LINE, ("mlp.dense_4h_to_h:in", BENT), ("attention.dense:in", HEADS)
    ),
    "GPT-NeoX, one branch after the other": truth(
        "gpt_neox.layers.0", LINE, ("mlp.dense_4h_to_h:in", BENT), ("attention.dense:in", HEADS)
    ),
    "GPT-J": truth(H, LINE, ("mlp.fc_out:in", BENT), ("attn.out_proj:in", HEADS)),
    "CodeGen": truth(H, LINE, ("mlp.fc_out:in", BENT), ("attn.out_proj:in", HEADS)),
    "GPT-BigCode": truth(
        H, LINE, ("mlp.c_proj:in", BENT), ("attn.c_proj:in", ONE_VALUE)
    ),
    # A norm with a gain writes the embedding straight to the stream.
    "BLOOM": truth(
        H, ORDER, ("mlp.dense_4h_to_h:in", bp.groups.Permutation(4 * D)),
        ("self_attention.dense:in", IN_PLACE),
        {"stream": "inside a Bridge two norms in a row are one function"},
    ),
    "OPT": truth(
        "model.decoder.layers.0", LINE, ("fc2:in", SCALED), ("self_attn.out_proj:in", HEADS)
    ),
    "OPT, norms behind, narrow embedding": truth(
        "model.decoder.layers.0", ORDER, ("fc2:in", SCALED), ("self_attn.out_proj:in", HEADS)
    ),
    "Falcon": truth(
        H, LINE, ("mlp.dense_4h_to_h:in", BENT), ("self_attention.dense:in", ONE_VALUE)
    ),
    "Falcon, ALiBi": truth(
        H, LINE, ("mlp.dense_4h_to_h:in", BENT), ("self_attention.dense:in", IN_PLACE)
    ),
    "Falcon, grouped queries": truth(
        H, LINE, ("mlp.dense_4h_to_h:in", BENT), ("self_attention.dense:in", GROUPED)
    ),
    "MPT": truth(
        "transformer.blocks.0", LINE, ("ffn.down_proj:in", bp.groups.Permutation(4 * D)),
        ("attn.out_proj:in", IN_PLACE),
    ),
    # Its positions are sinusoids, no weights: what moves them is absorbed by nothing, and they
    # span the whole space up to the all-ones direction.
    "XGLM": truth(
        L, bp.groups.Trivial(D), ("fc2:in", BENT), ("self_attn.out_proj:in", HEADS)
    ),
    "Phi": truth(L, LINE, ("mlp.fc2:in", BENT), ("self_attn.dense:in", HEADS)),
    "Phi, normed queries": truth(
        L, LINE, ("mlp.fc2:in", BENT), ("self_attn.dense:in", HEADS), NORMED
    ),
    "Phi-3": llama(ROUND),
    "Llama": llama(ROUND),
    "Mistral": llama(ROUND),
    "Mixtral": mixture(),
    "Qwen2": llama(ROUND),
    "Qwen2-MoE": mixture(),
    "Qwen3": llama(ROUND, unknown=NORMED),
    "Qwen3-MoE": mixture(NORMED),
    "Gemma": llama(ROUND),
    # Norms with a gain write to these streams.
    "Gemma 2": llama(SIGNS),
    "Gemma 3": llama(SIGNS, unknown=NORMED),
    "OLMo": llama(
        LINE, z=bp.groups.Blocks(bp.groups.SignedPermutation(HEAD), 2, 2),
        unknown={"z": "values are clipped before attention reads them"},
    ),
    "OLMo, queries not clipped": llama(LINE),
    "OLMo 2": llama(SIGNS, unknown=NORMED),
    "OLMo 3": llama(SIGNS, unknown=NORMED),
    "OLMoE": mixture(NORMED),
    "StableLM": llama(LINE),
    "StableLM, parallel, normed queries": llama(LINE, unknown=NORMED),
    "Starcoder2": truth(L, LINE, ("mlp.c_proj:in", BENT), (O_PROJ, GROUPED)),
    "Cohere": llama(LINE),
    "Cohere, normed queries": llama(LINE, unknown=NORMED),
    "Cohere 2": llama(LINE),
    "Granite": llama(ROUND),
    "SmolLM3": llama(ROUND),
    "GLM": llama(ROUND),
    "GLM-4": llama(SIGNS),
    # ReLU squared.
    "Nemotron": llama(LINE, SCALED),
    "Apertus": llama(
        ROUND, BENT,
        unknown={"post": "its nonlinearity takes the minimum of two tensors", **NORMED},
    ),
    "DeepSeek-V3": llama(
        ROUND, z=bp.groups.Blocks(bp.groups.GeneralLinear(5), 4),
        unknown={"stream": EXPERTS, "z": "keys and values are written into parts of one tensor"},
    ),
    "Mamba": truth(
        "backbone.layers.0", ROUND, ("mixer.out_proj:in", bp.groups.Permutation(2 * D)), None
    ),
    "BERT": bert("bert.encoder.layer.0"),
    "RoBERTa": bert("roberta.encoder.layer.0"),
    "DistilBERT": truth(
        "distilbert.transformer.layer.0", ORDER, ("ffn.lin2:in", BENT),
        ("attention.out_lin:in", HEADS),
    ),
    "ELECTRA": bert("electra.encoder.layer.0"),
    "ALBERT": truth(
        "albert.encoder.albert_layer_groups.0.albert_layers.0", ORDER, ("ffn_output:in", BENT),
        ("attention.dense:in", HEADS),
    ),
    # As in BLOOM, a norm with a gain writes the embedding straight to the stream.
    "ModernBERT": truth("model.layers.0", ORDER, ("mlp.Wo:in", GATED), ("attn.Wo:in", HEADS)),
    "T5 encoder": truth(
        "transformer.encoder.block.0", ROUND, ("layer.1.DenseReluDense.wo:in", SCALED),
        ("layer.0.SelfAttention.o:in", HEADS), TABLE,
    ),
    "T5 encoder, gated": truth(
        "transformer.encoder.block.0", ROUND, ("layer.1.DenseReluDense.wo:in", GATED),
        ("layer.0.SelfAttention.o:in", HEADS), TABLE,
    ),
    # Its hidden states are what it returns, and have to stay.
    "T5 encoder, no head": truth(
        "encoder.block.0", bp.groups.Trivial(D), ("layer.1.DenseReluDense.wo:in", SCALED),
        ("layer.0.SelfAttention.o:in", HEADS), TABLE,
    ),
    "ViT": truth("vit.layers.0", LINE, ("mlp.fc2:in", BENT), ("attention.o_proj:in", HEADS)),
}  # fmt: skip

# What a head's queries absorb. Where a norm reads queries and keys first, or clips them, only what
# its gains leave of it: those families are not listed.
QUERIES: dict[str, bp.groups.Group] = {
    **dict.fromkeys(
        ["GPT-2", "OpenAI-GPT", "GPT-Neo", "GPT-BigCode", "BLOOM", "OPT", "Falcon, ALiBi", "MPT",
         "OPT, norms behind, narrow embedding", "XGLM", "BERT", "RoBERTa", "DistilBERT", "ELECTRA",
         "ALBERT", "T5 encoder", "T5 encoder, gated", "T5 encoder, no head", "ViT"],
        INSIDE,
    ),
    **dict.fromkeys(
        ["Falcon", "Falcon, grouped queries", "Phi-3", "Llama", "Mistral", "Mixtral", "Qwen2",
         "Qwen2-MoE", "Gemma", "Gemma 2", "OLMo, queries not clipped", "Starcoder2", "Granite",
         "SmolLM3", "ModernBERT"],
        HALVES,
    ),
    **dict.fromkeys(
        ["GPT-NeoX", "GPT-NeoX, one branch after the other", "Phi", "StableLM", "Nemotron"],
        SOME_HALVES,
    ),
    **dict.fromkeys(["Cohere", "Cohere 2"], NEIGHBOURS),
    **dict.fromkeys(["GPT-J", "CodeGen", "GLM", "GLM-4"], SOME_NEIGHBOURS),
}  # fmt: skip

# Where the output projection is -> the projections of queries and keys, if each has its own.
PROJECTIONS = {
    "self_attn.o_proj:in": ("self_attn.q_proj", "self_attn.k_proj"),
    "self_attn.out_proj:in": ("self_attn.q_proj", "self_attn.k_proj"),
    "attention.o_proj:in": ("attention.q_proj", "attention.k_proj"),
    "attn.out_proj:in": ("attn.q_proj", "attn.k_proj"),
    "attn.attention.out_proj:in": ("attn.attention.q_proj", "attn.attention.k_proj"),
    "self_attn.dense:in": ("self_attn.q_proj", "self_attn.k_proj"),
    "attention.output.dense:in": ("attention.self.query", "attention.self.key"),
    "attention.dense:in": ("attention.query", "attention.key"),
    "attention.out_lin:in": ("attention.q_lin", "attention.k_lin"),
    "layer.0.SelfAttention.o:in": ("layer.0.SelfAttention.q", "layer.0.SelfAttention.k"),
}
FUSED = {
    "GPT-2", "OpenAI-GPT", "GPT-NeoX", "GPT-NeoX, one branch after the other", "CodeGen",
    "GPT-BigCode", "BLOOM", "Falcon", "Falcon, ALiBi", "Falcon, grouped queries", "MPT", "Phi-3",
    "ModernBERT", "DeepSeek-V3", "Mamba",
}  # fmt: skip

# What a Bridge calls their neurons is as wide as the stream, or is not there.
NO_NEURONS = {"Mixtral", "Qwen2-MoE", "Qwen3-MoE", "OLMoE", "Mamba"}

NATIVE_TRUTH: dict[str, tuple[bp.groups.Group, bp.groups.Group | None, bp.groups.Group]] = {
    "native, LN, GELU": (LINE, BENT, HEADS),
    "native, LN, ReLU": (LINE, SCALED, HEADS),
    "native, RMS, gated SiLU, rotary, grouped queries": (ROUND, GATED, GROUPED),
    "native, RMS, gated ReLU": (ROUND, GATED, HEADS),
    "native, no norm, GELU": (ALL, BENT, HEADS),
    "native, no norm, ReLU, rotary": (ALL, SCALED, HEADS),
    "native, LN, SoLU": (LINE, BENT, HEADS),
    "native, LN, SoLU and LN": (LINE, None, HEADS),
    "native, LN, attention only": (LINE, None, HEADS),
}
STREAM, POST, Z = "blocks.1.hook_resid_pre", "blocks.0.mlp.hook_post", "blocks.0.attn.hook_z"


def check(
    found: dict[str, bp.Symmetry], name: str, group: bp.groups.Group, unknown: str | None = None
) -> None:
    """The group at a site is the one expected, or less where there is a reason for that."""
    symmetry = found[name]
    allowed = [group]
    if unknown is not None:
        allowed.append(bp.groups.Unknown(group.dim))
        if isinstance(group, bp.groups.Blocks):
            allowed.append(replace(group, order="kept"))
    assert symmetry.group in allowed, (name, symmetry.group, symmetry.because)


def check_queries(found: dict[str, bp.Symmetry], family: Family, q: str, k: str) -> None:
    """Queries and keys have the group of the family's heads, the key heads once each."""
    expected = TRUTH[family.name]
    if family.name in QUERIES and expected.z is not None:
        heads = replace(expected.z[1], inner=QUERIES[family.name])
        reason = expected.unknown.get("q", expected.unknown.get("z"))
        check(found, q, heads, reason)
        check(found, k, replace(heads, copies=1), reason)


def check_proofs(found: dict[str, bp.Symmetry], unproved: bool = False) -> None:
    """Every claim was proved on this very model, in float64, and nothing was refuted."""
    for name, symmetry in found.items():
        made = symmetry.certificate
        if made is None:
            claimed = symmetry.privileged is not bp.Privileged.UNKNOWN
            assert not claimed or (unproved and symmetry.unproved), (name, symmetry.unproved)
        else:
            assert made.holds, (name, symmetry.because)
            # A stranger moves them a thousand times further, or there is none to try.
            # Code that casts to float32, whatever it is given, leaves the rounding of float32.
            rounding = 1e-9 if made.tolerance <= 1e-9 else 1e-6
            assert max(made.max_error, made.action_error) <= rounding, name
            assert not made.violation <= 1e-6, name


def hooks(model: nn.Module) -> dict[str, tuple[int, int]]:
    return {
        name: (len(module._forward_hooks), len(module._forward_pre_hooks))
        for name, module in model.named_modules()
    }


SELDOM = frozenset(
    family.name
    for family in HUGGING_FACE
    if family.name
    not in {
        "GPT-2", "GPT-J", "BLOOM", "OPT", "Falcon", "MPT", "XGLM", "Phi-3", "Llama", "Qwen3",
        "Gemma 2", "OLMo 2", "Cohere", "Nemotron", "Mixtral", "Mamba", "BERT", "ViT",
    }
)  # fmt: skip
"""Families that are like another one in all that matters here."""

BRIDGED_SELDOM = frozenset({"Falcon", "MPT", "XGLM", "Qwen3", "Nemotron", "Mixtral", "OLMo 2"})
"""Families that a bridge renames as it renames another one."""


def named(chosen: Iterable[Family], seldom: frozenset[str] = frozenset()) -> list[object]:
    """The families as parameters, with a mark on those that are left to the slow tests."""
    return [
        pytest.param(family, id=family.name, marks=[pytest.mark.slow] * (family.name in seldom))
        for family in chosen
    ]


@pytest.mark.sample(default=1)
@pytest.mark.parametrize("family", named(HUGGING_FACE, SELDOM))
def test_families_have_the_groups_that_theory_gives_them(family: Family) -> None:
    model, expected = family.make(0), TRUTH[family.name]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = hooks(model)
    found = bp.symmetries(model, family.example(0))
    for place in ("stream", "post", "z"):
        site = getattr(expected, place)
        if site is not None:
            check(found, *site, expected.unknown.get(place))
    if family.name not in FUSED:
        block, z = expected.stream[0], expected.z[0]
        names = PROJECTIONS[z.removeprefix(f"{block}.")]
        check_queries(found, family, *(f"{block}.{name}" for name in names))
    check_proofs(found)
    assert hooks(model) == before
    after = model.state_dict()
    assert state.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in state.items())
    assert not model.training


@pytest.mark.sample(default=1)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "family", named((family for family in HUGGING_FACE if family.bridge), SELDOM | BRIDGED_SELDOM)
)
def test_inside_a_bridge_families_compute_the_same_and_have_the_same_groups(
    family: Family,
) -> None:
    model, plain = families.bridged(family, 0), family.make(0)
    example = families.bridged_example(family, 0)
    with torch.no_grad():
        ours, theirs = model(**example), plain(**family.example(0)).logits
    logits = ours if isinstance(ours, torch.Tensor) else ours.logits
    assert float((logits - theirs).abs().max()) <= 1e-4 * float(theirs.abs().max())
    before = hooks(model)
    found, expected = bp.symmetries(model, example), TRUTH[family.name]
    check(found, STREAM, expected.stream[1], expected.unknown.get("stream"))
    if expected.post is not None and family.name not in NO_NEURONS:
        check(found, POST, expected.post[1], expected.unknown.get("post"))
    if expected.z is not None:
        check(found, Z, expected.z[1], expected.unknown.get("z"))
        check_queries(found, family, "blocks.0.attn.hook_q", "blocks.0.attn.hook_k")
    # The Bridge binds Falcon's forward to the very modules that it was made from.
    check_proofs(found, unproved=family.name.startswith("Falcon"))
    assert hooks(model) == before


@pytest.mark.sample(default=1)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", named(NATIVE))
def test_native_shapes_have_the_groups_that_theory_gives_them(family: Family) -> None:
    stream, post, z = NATIVE_TRUTH[family.name]
    found = bp.symmetries(family.make(0), family.example(0))
    check(found, STREAM, stream)
    check(found, Z, z)
    if post is not None:
        check(found, POST, post)
    check_proofs(found)


def test_every_family_has_its_truth_and_every_truth_its_family() -> None:
    assert set(TRUTH) == {family.name for family in HUGGING_FACE}
    assert set(NATIVE_TRUTH) == {family.name for family in NATIVE}
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)


@pytest.mark.sample(default=9)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", named(FAMILIES, SELDOM))
def test_families_are_generic_and_drawn_from_their_seed_alone(family: Family) -> None:
    state = torch.random.get_rng_state()
    model, same, other = family.make(1), family.make(1), family.make(2)
    assert torch.equal(torch.random.get_rng_state(), state)
    for (name, a), b, c in zip(
        model.named_parameters(), same.parameters(), other.parameters(), strict=True
    ):
        assert torch.equal(a, b), name
        assert not torch.equal(a, c), name
        # No two numbers of a gain, a bias or a matrix are the same.
        assert len(a.unique()) == a.numel() or a.numel() > 500, name
    with torch.no_grad():
        out = model(**family.example(0))
    values = next(t for t in ([out] if isinstance(out, torch.Tensor) else out.values()))
    assert bool(torch.isfinite(values).all())
    assert 0.01 < float(values.std()) < 10


def test_a_bridge_is_put_around_models_that_it_takes_only() -> None:
    family = next(family for family in FAMILIES if not family.bridge)
    with pytest.raises(ValueError, match="is not a model that a Bridge is put around"):
        families.bridged(family, 0)
