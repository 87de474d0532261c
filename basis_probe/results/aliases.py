"""What TransformerLens calls places of Hugging Face models."""

import re
from collections.abc import Iterable

# What a TransformerBridge calls a place -> how the modules of Hugging Face call it.
_LAYER = r"(?:.*\.)?(?:layers|layer|h|blocks)\.{}"
_MLP = r"\.(?:.*\.)?(?:down_proj|c_proj|dense_4h_to_h|fc2|fc_out|wo|w2|output\.dense):in"
_HEADS = r"\.(?:.*\.)?(?:o_proj|c_proj|out_proj|dense|out_lin):in"
_BRIDGE = {
    "hook_resid_pre": _LAYER + ":in",
    "hook_resid_post": _LAYER,
    "hook_resid_mid": _LAYER + r"\.(?:post_attention_layernorm|ln_2|norm2):in",
    "mlp.hook_post": _LAYER + r"\.(?:mlp|feed_forward|ffn)" + _MLP,
    "attn.hook_z": _LAYER + r"\.(?:self_attn|attn|attention|self_attention)" + _HEADS,
}


def of_bridge(pattern: str, names: Iterable[str]) -> list[str]:
    """The names of a plain model's places that a TransformerBridge calls as the pattern says.

    Example:
        >>> of_bridge("blocks.*.hook_resid_post", ["model.layers.0", "model.layers.0.mlp"])
        ['model.layers.0']
    """
    found = re.fullmatch(r"blocks\.(\d+|\*)\.(.+)", pattern)
    if found is None:
        return []
    layer = r"\d+" if found[1] == "*" else found[1]
    expert = re.fullmatch(r"mlp\.experts\.(\d+|\*)\.hook_post", found[2])
    if expert is not None:
        one = r"\d+" if expert[1] == "*" else expert[1]
        neurons = re.compile(_LAYER.format(layer) + rf"\..*\.{one}(?:\.[^.]+)?:in")
        return [name for name in names if "experts." in name and neurons.fullmatch(name)]
    if found[2] not in _BRIDGE:
        return []
    return [name for name in names if re.fullmatch(_BRIDGE[found[2]].format(layer), name)]
