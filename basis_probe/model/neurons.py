"""Which weights are those of neurons: pairs of matrices by their names, shapes and order.

Nothing is run. Pairs are known by the names that families of models give them, or stand behind each
other in one module with the width of the first's outputs as that of the second's inputs; matrices
of attention are left alone. Where a name says too little, nothing is claimed.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence

from torch import nn

from basis_probe.model.stored import Stored


@dataclasses.dataclass(frozen=True)
class Matrix:
    """A weight as [outputs, inputs], or a part of it.

    Attributes:
        name: the weight.
        transposed: True if it is stored as [inputs, outputs].
        start, count, step: which of its outputs.
        expert: which matrix of a stack [expert, ...] it is; None where it is no stack.
    """

    name: str
    transposed: bool
    start: int
    count: int
    step: int = 1
    expert: int | None = None


@dataclasses.dataclass(frozen=True)
class Neurons:
    """The weights of one layer of neurons.

    Attributes:
        site: the place of the neurons: what the writing map reads.
        reading: the maps that make them; where one gates, it comes first.
        writing: the map that reads them.
        norm: the weight and the bias of the norm in front of the reading; None where not known.
        stream: what embeds and what makes logits, and the norm in front of the latter: names, each
            None where not known.
    """

    site: str
    reading: tuple[Matrix, ...]
    writing: Matrix
    norm: tuple[str, str | None] | None
    inputs: int
    outputs: int

    @property
    def count(self) -> int:
        """The number of neurons."""
        return self.reading[0].count


# What gates, what multiplies or is bent, what writes.
_FAMILIES: tuple[tuple[tuple[str, ...], str], ...] = (
    (("gate_proj", "up_proj"), "down_proj"),
    (("gate_up_proj",), "down_proj"),
    (("W_gate", "W_in"), "W_out"),
    (("wi_0", "wi_1"), "wo"),
    (("w1", "w3"), "w2"),
    (("gate", "up"), "down"),
    (("linear_fc1_gate", "linear_fc1_up"), "linear_fc2"),
    (("W_in",), "W_out"),
    (("c_fc",), "c_proj"),
    (("dense_h_to_4h",), "dense_4h_to_h"),
    (("intermediate.dense",), "output.dense"),
    (("intermediate_dense",), "output_dense"),
    (("up_proj",), "down_proj"),
    (("fc1",), "fc2"),
    (("fc_in",), "fc_out"),
    (("lin1",), "lin2"),
    (("linear1",), "linear2"),
    (("linear_1",), "linear_2"),
    (("wi",), "wo"),
    (("w1",), "w2"),
    (("fc",), "proj"),
    (("ffn",), "ffn_output"),
    (("up",), "down"),
)
_FUSED = "gate_up_proj"

_NORMS = (
    "pre_feedforward_layernorm",
    "pre_mlp_layernorm",
    "post_attention_layernorm",
    "attention.output.LayerNorm",
    "sa_layer_norm",
    "ffn_norm",
    "mlp_norm",
    "ln_2",
    "ln2",
    "norm2",
    "norm_2",
    "layer_norm2",
    "layernorm_after",
    "final_layer_norm",
    "layer_norm",
)
"""Norms in front of neurons, as blocks call them; the first that a block has counts."""
_ONLY_NORMS = ("input_layernorm", "ln_1")
"""Norms of blocks in which attention and neurons read the same."""
_BEHIND = ("post_feedforward_layernorm", "post_mlp_layernorm", "ffn_layernorm")
"""Norms behind what is written: blocks that have one, and none in front, norm outputs."""

_ATTENTION = re.compile(
    r"(?:^|[._])(?:q|k|v|o|qkv|query|key|value|keys|values|queries|attn|attention|mha|self_attn|"
    r"cross_attn|to_q|to_k|to_v|to_out|in_proj|out_proj|c_attn|query_key_value|Wqkv)(?:[._\d]|$)",
    re.IGNORECASE,
)


def neurons(stored: Stored, model: nn.Module | None = None) -> tuple[Neurons, ...]:
    """The layers of neurons among some weights, in the order in which they are stored.

    Args:
        stored: the weights.
        model: the model that they are of, where it is at hand.
    """
    paths = {_path(name): name for name, shape in stored.shapes.items() if len(shape) == 2}
    found: dict[str, Neurons] = {}
    used: set[str] = set()
    for reads, writes in _FAMILIES:
        for path in list(paths):
            prefix = _before(path, reads[-1])
            if prefix is None:
                continue
            names = [prefix + part for part in (*reads, writes)]
            if any(name in used or name not in paths for name in names):
                continue
            made = _neurons(stored, prefix, [paths[n] for n in names[:-1]], paths[names[-1]], names)
            if made is not None:
                found[names[-1]] = made
                used.update(names)
    for first, second in _chains(stored, paths, used, model):
        made = _neurons(stored, _parent(first), [paths[first]], paths[second], [first, second])
        if made is not None:
            found[second] = made
    order = {path: place for place, path in enumerate(paths)}
    return tuple(found[path] for path in sorted(found, key=lambda path: order[path]))


def _neurons(
    stored: Stored, prefix: str, reads: Sequence[str], writes: str, paths: Sequence[str]
) -> Neurons | None:
    """The layer of some weights, if their shapes fit each other one way or the other."""
    first, last = stored.shapes[reads[-1]], stored.shapes[writes]
    fused = paths[0].endswith(_FUSED)
    fitting = [
        transposed
        for transposed in (False, True)
        if _outputs(first, transposed) == (1 + fused) * _inputs(last, transposed)
        and all(stored.shapes[name] == first for name in reads)
    ]
    if not fitting:
        return None
    transposed = fitting[0] if len(fitting) == 1 else _orientation(stored, reads[-1], paths[-1])
    count = _inputs(last, transposed)
    reading = tuple(Matrix(name, transposed, 0, count) for name in reads)
    if fused:
        reading = tuple(Matrix(reads[0], transposed, part * count, count) for part in (0, 1))
    return Neurons(
        site=f"{paths[-1]}:in",
        reading=reading,
        writing=Matrix(writes, transposed, 0, _outputs(last, transposed)),
        # Blocks of torch have the norm in front or behind, and the names are the same.
        norm=None
        if paths[0].endswith("linear1")
        else norm_of(stored, prefix, _inputs(first, transposed)),
        inputs=_inputs(first, transposed),
        outputs=_outputs(last, transposed),
    )


def _orientation(stored: Stored, reads: str, writer: str) -> bool:
    """True for [inputs, outputs], where shapes would fit both ways."""
    known = stored.is_transposed(reads)
    if known is not None:
        return known
    rows, columns = stored.shapes[reads]
    if rows == columns:
        return writer.endswith("W_out")
    bias = stored.shapes.get(_bias(reads))
    if bias is not None and len(bias) == 1 and bias[0] in (rows, columns):
        return bias[0] == columns
    if writer.endswith("W_out"):
        return True
    if stored.config.get("model_type") in (
        "gpt2",
        "openai-gpt",
        "imagegpt",
        "decision_transformer",
    ):
        return True
    # Neurons are more than what they read, where nothing else says it.
    return writer.endswith("c_proj") and columns > rows


def _bias(name: str) -> str:
    if name.endswith("weight"):
        return name[: -len("weight")] + "bias"
    head, _, leaf = name.rpartition(".")
    return ".".join(filter(None, [head, leaf.replace("W_", "b_")]))


_EXPERTS = re.compile(r"\.(?:\w*experts?|mlp\.experts\.mlp)(?:\.\d+)?$")


def norm_of(stored: Stored, prefix: str, width: int) -> tuple[str, str | None] | None:
    """The norm that the block around some neurons has in front of them: its weight and its bias.

    Args:
        stored: the weights.
        prefix: what the names of the neurons' weights begin with.
        width: of what they read.
    """
    block = _EXPERTS.sub("", prefix.rstrip("."))
    blocks = [block, _parent(block).rstrip(".")]
    for home in dict.fromkeys(blocks):
        start = f"{home}." if home else ""
        has = [part for part in (*_NORMS, *_ONLY_NORMS) if f"{start}{part}.weight" in stored.shapes]
        if any(f"{start}{part}.weight" in stored.shapes for part in _BEHIND) and not any(
            part.startswith("pre_") for part in has
        ):
            return None
        for part in has:
            if part in _ONLY_NORMS and len(has) > 1:
                continue
            name = f"{start}{part}.weight"
            if stored.shapes[name] == (width,):
                bias = _bias(name)
                return name, bias if bias in stored.shapes else None
    return None


def _chains(
    stored: Stored, paths: Mapping[str, str], used: set[str], model: nn.Module | None
) -> Iterator[tuple[str, str]]:
    """Matrices of one module that stand behind each other, the second reading what the first gives.

    Raw parameters say neither which way they are stored nor what they are for.
    """
    several: dict[str, list[str]] = {}
    for path, name in paths.items():
        if name.endswith(".weight") and path not in used and not _ATTENTION.search(path):
            known = stored.is_transposed(name)
            if known is False or (known is None and model is None):
                several.setdefault(_parent(path), []).append(path)
    for parent, members in several.items():
        for first, second in itertools.pairwise(members):
            given, taken = stored.shapes[paths[first]], stored.shapes[paths[second]]
            if given[0] != taken[1] or not _bent(model, parent, first, second):
                continue
            if given[0] == given[1] == taken[0] and model is None and not _numbered(first, second):
                # Squares by unknown names may be anything.
                continue
            yield first, second


def _numbered(*paths: str) -> bool:
    return all(path.rpartition(".")[2].isdecimal() for path in paths)


def _bent(model: nn.Module | None, parent: str, first: str, second: str) -> bool:
    """False where a container is known to put no function of features between two of its parts."""
    if model is None:
        return True
    try:
        home = model.get_submodule(parent.rstrip("."))
    except AttributeError:
        return True
    if not isinstance(home, nn.Sequential):
        return True
    names = [name for name, _ in home.named_children()]
    start, end = (names.index(path.rpartition(".")[2]) for path in (first, second))
    between = [module for _, module in home.named_children()][start + 1 : end]
    return any(not isinstance(module, nn.Dropout | nn.Identity) for module in between)


# --- the stream -----------------------------------------------------------------------------------

_EMBEDDINGS = (
    "embed_tokens", "wte", "embed_in", "word_embeddings", "tok_embeddings", "shared",
    "token_embedding", "tok_emb", "embed.W_E", "embedding", "embed", "emb",
)  # fmt: skip
_LOGITS = ("lm_head", "embed_out", "output", "unembed.W_U", "head", "unembed", "decoder")
_LAST_NORMS = (
    "model.norm", "norm", "ln_f", "final_layer_norm", "final_layernorm", "ln_final", "norm_f",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """What stands for tokens at the ends of a residual stream.

    Attributes:
        embedding: the matrix [tokens, width] that embeds them; None if it is not known.
        logits: the matrix [tokens, width] that makes logits; None if it is not known.
        norm: the weight and the bias of the norm in front of the logits; None if not known.
    """

    embedding: str | None
    logits: Matrix | None
    norm: tuple[str, str | None] | None


def vocabulary(stored: Stored, width: int) -> Vocabulary:
    """The ends of the residual stream of a width, by their names."""
    embedding = next(_named(stored, _EMBEDDINGS, lambda shape: shape[1] == width), None)
    logits: Matrix | None = None
    for name in _named(stored, _LOGITS, lambda shape: width in shape):
        transposed = name.endswith("W_U")
        shape = stored.shapes[name]
        tokens = _outputs(shape, transposed)
        of_tokens = embedding is None or tokens == stored.shapes[embedding][0]
        if _inputs(shape, transposed) == width and of_tokens and tokens > 1:
            logits = Matrix(name, transposed, 0, tokens)
            break
    if logits is None and embedding is not None and _speaks(stored):
        logits = Matrix(embedding, False, 0, stored.shapes[embedding][0])
    if embedding is None and logits is not None and logits.count <= 2 * width:
        # A classifier, not a vocabulary.
        logits = None
    norm = None
    for name in stored.shapes:
        path = _path(name)
        if any(path == last or path.endswith(f".{last}") for last in _LAST_NORMS) and (
            stored.shapes[name] == (width,) and not re.search(r"\.\d+\.", f".{path}.")
        ):
            bias = _bias(name)
            norm = (name, bias if bias in stored.shapes else None)
    return Vocabulary(embedding, logits, norm)


def _speaks(stored: Stored) -> bool:
    """True if the configuration says that logits are read by the embedding."""
    given = stored.config.get("architectures")
    kinds = [str(kind) for kind in given] if isinstance(given, list) else []
    return any(re.search(r"CausalLM|LMHead|ConditionalGeneration", kind) for kind in kinds)


def _named(stored: Stored, words: Sequence[str], fits: object) -> Iterator[str]:
    assert callable(fits)
    for word in words:
        for name, shape in stored.shapes.items():
            path = _path(name)
            if (path == word or path.endswith(f".{word}")) and len(shape) == 2 and fits(shape):
                yield name


def adds_one(stored: Stored) -> bool:
    """True for families whose norms multiply by one more than their weight."""
    kind = str(stored.config.get("model_type", ""))
    return kind.startswith(("gemma", "paligemma", "recurrent_gemma")) and "3n" not in kind


def _outputs(shape: tuple[int, ...], transposed: bool) -> int:
    return shape[1] if transposed else shape[0]


def _inputs(shape: tuple[int, ...], transposed: bool) -> int:
    return shape[0] if transposed else shape[1]


def _path(name: str) -> str:
    return name[: -len(".weight")] if name.endswith(".weight") else name


def _parent(path: str) -> str:
    head, dot, _ = path.rpartition(".")
    return head + dot


def _before(path: str, part: str) -> str | None:
    """What comes before a part at the end of a path; None if it does not end so."""
    if path == part:
        return ""
    return path[: -len(part)] if path.endswith(f".{part}") else None
