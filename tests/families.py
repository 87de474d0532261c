"""Tiny random Transformers of many families, whose every gain, bias and matrix is generic.

A family is a Hugging Face class with a small configuration, or a shape of the Bridge's own model.
New models have gains of one and biases of zero, which hide what an architecture does; here every
parameter is drawn anew, so that a claim about a model is a claim about its architecture.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

D, HEADS, HEAD, MLP, VOCAB, POSITIONS, IMAGE = 32, 4, 8, 40, 50, 32, 8
BATCH, LENGTH = 2, 7


@dataclass(frozen=True)
class Family:
    """One architecture.

    Attributes:
        name: what tables call it.
        make: seed -> a model in eval mode, generic in every parameter.
        example: seed -> a batch that it takes.
        bridge: the name under which TransformerLens knows the architecture, "native" for models of
            its own, "" where its Bridge does not take the model.
    """

    name: str
    make: Callable[[int], nn.Module]
    example: Callable[[int], dict[str, Tensor]]
    bridge: str


def tokens(seed: int) -> dict[str, Tensor]:
    """Token ids [batch, position], none of which any model takes for padding."""
    generator = torch.Generator().manual_seed(seed)
    return {"input_ids": torch.randint(5, VOCAB, (BATCH, LENGTH), generator=generator)}


def pixels(seed: int) -> dict[str, Tensor]:
    """Images [batch, channel, height, width]."""
    generator = torch.Generator().manual_seed(seed)
    return {"pixel_values": torch.randn(BATCH, 3, IMAGE, IMAGE, generator=generator)}


def generic(model: nn.Module, seed: int) -> nn.Module:
    """The model in eval mode, every parameter drawn anew, of a size that keeps outputs of order 1.

    Gains move away from where they started, which is one, or zero for norms that add one.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if parameter.ndim > 1 or "bias" in name.rsplit(".", 1)[-1]:
                parameter.copy_(0.2 * noise)
            else:
                parameter.add_(0.3 * noise)
    return model.eval().requires_grad_(False)


def bridged(family: Family, seed: int) -> nn.Module:
    """The same model inside a TransformerBridge.

    Raises:
        ValueError: if the Bridge does not take the family.
    """
    if family.bridge in ("", "native"):
        raise ValueError(f"{family.name} is not a model that a Bridge is put around")
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    model = family.make(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return build_bridge_from_module(model, family.bridge, hf_config=model.config).eval()


def bridged_example(family: Family, seed: int) -> dict[str, Tensor]:
    """The batch of the family under the name by which a Bridge takes it."""
    (batch,) = family.example(seed).values()
    return {"input": batch}


# --- Hugging Face -------------------------------------------------------------------------------

_NEW = {
    "vocab_size": VOCAB, "hidden_size": D, "intermediate_size": MLP, "num_hidden_layers": 2,
    "num_attention_heads": HEADS, "max_position_embeddings": POSITIONS,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_GROUPED = {**_NEW, "num_key_value_heads": 2}
_WIDE = {**_GROUPED, "head_dim": HEAD}
_ENDS = {"bos_token_id": 1, "eos_token_id": 2}
_OLD = {
    "vocab_size": VOCAB, "n_embd": D, "n_layer": 2, "n_head": HEADS, "n_positions": POSITIONS,
    "n_inner": MLP, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_FALCON = {
    "vocab_size": VOCAB, "hidden_size": D, "num_hidden_layers": 2, "num_attention_heads": HEADS,
    "ffn_hidden_size": MLP, "max_position_embeddings": POSITIONS, **_ENDS,
}  # fmt: skip
_OPT = {
    "vocab_size": VOCAB, "hidden_size": D, "num_hidden_layers": 2, "num_attention_heads": HEADS,
    "ffn_dim": MLP, "max_position_embeddings": POSITIONS, "word_embed_proj_dim": D,
    "pad_token_id": 0, **_ENDS,
}  # fmt: skip
_BERT = {**_NEW, "type_vocab_size": 2}
_HALF = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
_MIXED = ["sliding_attention", "full_attention"]
_MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": MLP}
_T5 = {
    "vocab_size": VOCAB, "d_model": D, "d_kv": HEAD, "d_ff": MLP, "num_layers": 2,
    "num_heads": HEADS, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 16,
    "dropout_rate": 0.0,
}  # fmt: skip

# name -> (class of the model, its configuration, name of the architecture for the Bridge)
_HUGGING_FACE: dict[str, tuple[str, dict[str, Any], str]] = {
    "GPT-2": ("GPT2LMHeadModel", _OLD, "GPT2LMHeadModel"),
    "OpenAI-GPT": (
        "OpenAIGPTLMHeadModel",
        {key: value for key, value in _OLD.items() if key != "n_inner"},
        "OpenAIGPTLMHeadModel",
    ),
    "GPT-Neo": (
        "GPTNeoForCausalLM",
        {
            "vocab_size": VOCAB, "hidden_size": D, "num_layers": 2, "num_heads": HEADS,
            "intermediate_size": MLP, "max_position_embeddings": POSITIONS,
            "attention_types": [[["global", "local"], 1]], "window_size": 3, **_ENDS,
        },
        "GPTNeoForCausalLM",
    ),
    "GPT-NeoX": (
        "GPTNeoXForCausalLM", {**_NEW, "rope_parameters": _HALF}, "GPTNeoXForCausalLM",
    ),
    "GPT-NeoX, one branch after the other": (
        "GPTNeoXForCausalLM",
        {**_NEW, "rope_parameters": _HALF, "use_parallel_residual": False},
        "GPTNeoXForCausalLM",
    ),
    "GPT-J": ("GPTJForCausalLM", {**_OLD, "rotary_dim": 4}, "GPTJForCausalLM"),
    "CodeGen": ("CodeGenForCausalLM", {**_OLD, "rotary_dim": 4}, "CodeGenForCausalLM"),
    "GPT-BigCode": (
        "GPTBigCodeForCausalLM", {**_OLD, "multi_query": True}, "GPTBigCodeForCausalLM",
    ),
    "BLOOM": (
        "BloomForCausalLM",
        {"vocab_size": VOCAB, "hidden_size": D, "n_layer": 2, "n_head": HEADS, **_ENDS},
        "BloomForCausalLM",
    ),
    "OPT": ("OPTForCausalLM", _OPT, "OPTForCausalLM"),
    "OPT, norms behind, narrow embedding": (
        "OPTForCausalLM", {**_OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 16}, "",
    ),
    "Falcon": ("FalconForCausalLM", _FALCON, "FalconForCausalLM"),
    "Falcon, ALiBi": (
        "FalconForCausalLM",
        {**_FALCON, "alibi": True, "multi_query": False, "parallel_attn": False, "bias": True},
        "",  # the Bridge computes other logits
    ),
    "Falcon, grouped queries": (
        "FalconForCausalLM",
        {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 2},
        "",  # the Bridge splits the fused projection into parts of other sizes
    ),
    "MPT": (
        "MptForCausalLM",
        {
            "vocab_size": VOCAB, "d_model": D, "n_layers": 2, "n_heads": HEADS,
            "max_seq_len": POSITIONS,
        },
        "MPTForCausalLM",
    ),
    "XGLM": (
        "XGLMForCausalLM",
        {
            "vocab_size": VOCAB, "d_model": D, "ffn_dim": MLP, "num_layers": 2,
            "attention_heads": HEADS, "max_position_embeddings": POSITIONS,
            "pad_token_id": 0, **_ENDS,
        },
        "XGLMForCausalLM",
    ),
    "Phi": ("PhiForCausalLM", {**_NEW, "rope_parameters": _HALF}, "PhiForCausalLM"),
    "Phi, normed queries": (
        "PhiForCausalLM",
        {**_NEW, "rope_parameters": _HALF, "qk_layernorm": True},
        "",  # the Bridge knows no norms of the queries here
    ),
    "Phi-3": ("Phi3ForCausalLM", _GROUPED, "Phi3ForCausalLM"),
    "Llama": ("LlamaForCausalLM", _GROUPED, "LlamaForCausalLM"),
    "Mistral": ("MistralForCausalLM", {**_WIDE, "sliding_window": 3}, "MistralForCausalLM"),
    "Mixtral": (
        "MixtralForCausalLM", {**_WIDE, "num_local_experts": 4}, "MixtralForCausalLM",
    ),
    "Qwen2": ("Qwen2ForCausalLM", _GROUPED, "Qwen2ForCausalLM"),
    "Qwen2-MoE": (
        "Qwen2MoeForCausalLM",
        {**_GROUPED, **_MOE, "num_experts": 4, "shared_expert_intermediate_size": MLP},
        "Qwen2MoeForCausalLM",
    ),
    "Qwen3": ("Qwen3ForCausalLM", _WIDE, "Qwen3ForCausalLM"),
    "Qwen3-MoE": (
        "Qwen3MoeForCausalLM", {**_WIDE, **_MOE, "num_experts": 4}, "Qwen3MoeForCausalLM",
    ),
    "Gemma": ("GemmaForCausalLM", _WIDE, "GemmaForCausalLM"),
    "Gemma 2": (
        "Gemma2ForCausalLM",
        {**_WIDE, "sliding_window": 3, "layer_types": _MIXED, "query_pre_attn_scalar": HEAD,
         "attn_logit_softcapping": 4.0, "final_logit_softcapping": 4.0},
        "Gemma2ForCausalLM",
    ),
    "Gemma 3": (
        "Gemma3ForCausalLM",
        {**_WIDE, "sliding_window": 3, "layer_types": _MIXED, "query_pre_attn_scalar": HEAD},
        "Gemma3ForCausalLM",
    ),
    "OLMo": ("OlmoForCausalLM", {**_GROUPED, "clip_qkv": 1.0}, "OlmoForCausalLM"),
    "OLMo, queries not clipped": ("OlmoForCausalLM", _GROUPED, "OlmoForCausalLM"),
    "OLMo 2": ("Olmo2ForCausalLM", _GROUPED, "Olmo2ForCausalLM"),
    "OLMo 3": (
        "Olmo3ForCausalLM",
        {**_GROUPED, "sliding_window": 3, "layer_types": _MIXED},
        "Olmo3ForCausalLM",
    ),
    "OLMoE": (
        "OlmoeForCausalLM", {**_GROUPED, "num_experts": 4, "num_experts_per_tok": 2},
        "OlmoeForCausalLM",
    ),
    "StableLM": (
        "StableLmForCausalLM", {**_GROUPED, "rope_parameters": _HALF}, "StableLmForCausalLM",
    ),
    "StableLM, parallel, normed queries": (
        "StableLmForCausalLM",
        {**_GROUPED, "rope_parameters": _HALF, "qk_layernorm": True,
         "use_parallel_residual": True, "use_qkv_bias": True},
        "StableLmForCausalLM",
    ),
    "Starcoder2": ("Starcoder2ForCausalLM", _GROUPED, "Starcoder2ForCausalLM"),
    "Cohere": ("CohereForCausalLM", _GROUPED, "CohereForCausalLM"),
    "Cohere, normed queries": (
        "CohereForCausalLM", {**_GROUPED, "use_qk_norm": True}, "CohereForCausalLM",
    ),
    "Cohere 2": (
        "Cohere2ForCausalLM", {**_WIDE, "sliding_window": 3, "layer_types": _MIXED}, "",
    ),
    "Granite": (
        "GraniteForCausalLM",
        {**_GROUPED, "embedding_multiplier": 3.0, "residual_multiplier": 0.7,
         "attention_multiplier": 0.4, "logits_scaling": 2.0},
        "GraniteForCausalLM",
    ),
    "SmolLM3": ("SmolLM3ForCausalLM", {**_GROUPED, "no_rope_layers": [1, 0]}, "SmolLM3ForCausalLM"),
    "GLM": (
        "GlmForCausalLM", {**_WIDE, "rope_parameters": _HALF}, "GlmForCausalLM",
    ),
    "GLM-4": (
        "Glm4ForCausalLM", {**_WIDE, "rope_parameters": _HALF}, "Glm4ForCausalLM",
    ),
    "Nemotron": (
        "NemotronForCausalLM", {**_WIDE, "rope_parameters": _HALF}, "NemotronForCausalLM",
    ),
    "Apertus": ("ApertusForCausalLM", _GROUPED, "ApertusForCausalLM"),
    "DeepSeek-V3": (
        "DeepseekV3ForCausalLM",
        {**_NEW, **_MOE, "num_key_value_heads": HEADS, "n_routed_experts": 4, "n_group": 2,
         "topk_group": 1, "first_k_dense_replace": 1, "kv_lora_rank": 12, "q_lora_rank": 16,
         "qk_rope_head_dim": 4, "qk_nope_head_dim": 6, "v_head_dim": 5, "head_dim": 4},
        "DeepseekV3ForCausalLM",
    ),
    "Mamba": (
        "MambaForCausalLM",
        {"vocab_size": VOCAB, "hidden_size": D, "state_size": 4, "num_hidden_layers": 2,
         "pad_token_id": 0, **_ENDS},
        "MambaForCausalLM",
    ),
    "BERT": ("BertForMaskedLM", _BERT, "BertForMaskedLM"),
    "RoBERTa": ("RobertaForMaskedLM", _BERT, "RobertaForMaskedLM"),
    "DistilBERT": (
        "DistilBertForMaskedLM",
        {"vocab_size": VOCAB, "dim": D, "hidden_dim": MLP, "n_layers": 2, "n_heads": HEADS,
         "max_position_embeddings": POSITIONS, "pad_token_id": 0},
        "",
    ),
    "ELECTRA": ("ElectraForMaskedLM", {**_BERT, "embedding_size": 16}, ""),
    "ALBERT": ("AlbertForMaskedLM", {**_BERT, "embedding_size": 16}, ""),
    "ModernBERT": (
        "ModernBertForMaskedLM",
        {**_NEW, "layer_types": _MIXED, "local_attention": 4, "cls_token_id": 1, "sep_token_id": 2},
        "",
    ),
    "T5 encoder": ("T5ForTokenClassification", _T5, ""),
    "T5 encoder, gated": (
        "T5ForTokenClassification", {**_T5, "feed_forward_proj": "gated-gelu"}, "",
    ),
    "T5 encoder, no head": ("T5EncoderModel", _T5, ""),
    "ViT": (
        "ViTForImageClassification",
        {"hidden_size": D, "intermediate_size": MLP, "num_hidden_layers": 2,
         "num_attention_heads": HEADS, "image_size": IMAGE, "patch_size": 4, "num_labels": 5},
        "ViTForImageClassification",
    ),
}  # fmt: skip


def _hugging_face(kind: str, config: dict[str, Any]) -> Callable[[int], nn.Module]:
    def make(seed: int) -> nn.Module:
        import transformers

        built = getattr(transformers, kind)
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(seed)
            return generic(built(built.config_class(**config)), seed)

    return make


# --- the Bridge's own models --------------------------------------------------------------------

_NATIVE: dict[str, dict[str, Any]] = {
    "native, LN, GELU": {"act_fn": "gelu", "normalization_type": "LN"},
    "native, LN, ReLU": {"act_fn": "relu", "normalization_type": "LN"},
    "native, RMS, gated SiLU, rotary, grouped queries": {
        "act_fn": "silu", "normalization_type": "RMS", "gated_mlp": True, "final_rms": True,
        "positional_embedding_type": "rotary", "n_key_value_heads": 2,
    },
    "native, RMS, gated ReLU": {
        "act_fn": "relu", "normalization_type": "RMS", "gated_mlp": True, "final_rms": True,
    },
    "native, no norm, GELU": {"act_fn": "gelu", "normalization_type": None},
    "native, no norm, ReLU, rotary": {
        "act_fn": "relu", "normalization_type": None, "positional_embedding_type": "rotary",
    },
    "native, LN, SoLU": {"act_fn": "solu", "normalization_type": "LN"},
    "native, LN, SoLU and LN": {"act_fn": "solu_ln", "normalization_type": "LN"},
    "native, LN, attention only": {"normalization_type": "LN", "attn_only": True},
}  # fmt: skip


def _native(config: dict[str, Any]) -> Callable[[int], nn.Module]:
    def make(seed: int) -> nn.Module:
        from transformer_lens import TransformerBridge, TransformerBridgeConfig

        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            plain = {
                "d_model": D, "d_head": HEAD, "n_heads": HEADS, "n_layers": 2, "n_ctx": POSITIONS,
                "d_vocab": VOCAB, "d_mlp": MLP, "seed": seed,
            }  # fmt: skip
            model = TransformerBridge.boot_native(TransformerBridgeConfig(**{**plain, **config}))
            return generic(model, seed)

    return make


def _positional(seed: int) -> dict[str, Tensor]:
    return {"input": tokens(seed)["input_ids"]}


HUGGING_FACE: tuple[Family, ...] = tuple(
    Family(name, _hugging_face(kind, config), pixels if name == "ViT" else tokens, bridge)
    for name, (kind, config, bridge) in _HUGGING_FACE.items()
)

NATIVE: tuple[Family, ...] = tuple(
    Family(name, _native(config), _positional, "native") for name, config in _NATIVE.items()
)

FAMILIES: tuple[Family, ...] = HUGGING_FACE + NATIVE
