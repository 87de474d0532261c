"""Families whose truth is written out site by site, and those that TransformerLens takes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from families.building import SMALL, Family, Sizes, generic, pixels, tokens

# --- Hugging Face -------------------------------------------------------------------------------


def _configurations(s: Sizes) -> dict[str, tuple[str, dict[str, Any], str]]:
    """Name -> the class of the model, its configuration, its name for the Bridge ("" for none)."""
    d, heads, groups, head, mlp = s.width, s.heads, s.groups, s.head, s.mlp
    vocab, positions, image = s.vocabulary, s.positions, s.image
    new = {
        "vocab_size": vocab, "hidden_size": d, "intermediate_size": mlp, "num_hidden_layers": 2,
        "num_attention_heads": heads, "max_position_embeddings": positions,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    grouped = {**new, "num_key_value_heads": groups}
    wide = {**grouped, "head_dim": head}
    ends = {"bos_token_id": 1, "eos_token_id": 2}
    old = {
        "vocab_size": vocab, "n_embd": d, "n_layer": 2, "n_head": heads, "n_positions": positions,
        "n_inner": mlp, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    falcon = {
        "vocab_size": vocab, "hidden_size": d, "num_hidden_layers": 2, "num_attention_heads": heads,
        "ffn_hidden_size": mlp, "max_position_embeddings": positions, **ends,
    }  # fmt: skip
    opt = {
        "vocab_size": vocab, "hidden_size": d, "num_hidden_layers": 2, "num_attention_heads": heads,
        "ffn_dim": mlp, "max_position_embeddings": positions, "word_embed_proj_dim": d,
        "pad_token_id": 0, **ends,
    }  # fmt: skip
    bert = {**new, "type_vocab_size": 2}
    half = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    mixed = ["sliding_attention", "full_attention"]
    moe = {"num_experts_per_tok": 2, "moe_intermediate_size": mlp}
    t5 = {
        "vocab_size": vocab, "d_model": d, "d_kv": head, "d_ff": mlp, "num_layers": 2,
        "num_heads": heads, "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 16, "dropout_rate": 0.0,
    }  # fmt: skip
    return {
        "GPT-2": ("GPT2LMHeadModel", old, "GPT2LMHeadModel"),
        "OpenAI-GPT": (
            "OpenAIGPTLMHeadModel",
            {key: value for key, value in old.items() if key != "n_inner"},
            "OpenAIGPTLMHeadModel",
        ),
        "GPT-Neo": (
            "GPTNeoForCausalLM",
            {
                "vocab_size": vocab, "hidden_size": d, "num_layers": 2, "num_heads": heads,
                "intermediate_size": mlp, "max_position_embeddings": positions,
                "attention_types": [[["global", "local"], 1]], "window_size": 3, **ends,
            },
            "GPTNeoForCausalLM",
        ),
        "GPT-NeoX": (
            "GPTNeoXForCausalLM", {**new, "rope_parameters": half}, "GPTNeoXForCausalLM",
        ),
        "GPT-NeoX, one branch after the other": (
            "GPTNeoXForCausalLM",
            {**new, "rope_parameters": half, "use_parallel_residual": False},
            "GPTNeoXForCausalLM",
        ),
        "GPT-J": ("GPTJForCausalLM", {**old, "rotary_dim": head // 2}, "GPTJForCausalLM"),
        "CodeGen": (
            "CodeGenForCausalLM",
            # It takes no fewer than four heads.
            {**old, "n_head": 4, "rotary_dim": head // 2},
            "CodeGenForCausalLM",
        ),
        "GPT-BigCode": (
            "GPTBigCodeForCausalLM", {**old, "multi_query": True}, "GPTBigCodeForCausalLM",
        ),
        "BLOOM": (
            "BloomForCausalLM",
            {"vocab_size": vocab, "hidden_size": d, "n_layer": 2, "n_head": heads, **ends},
            "BloomForCausalLM",
        ),
        "OPT": ("OPTForCausalLM", opt, "OPTForCausalLM"),
        "OPT, norms behind, narrow embedding": (
            "OPTForCausalLM",
            {**opt, "do_layer_norm_before": False, "word_embed_proj_dim": s.narrow},
            "",
        ),
        "Falcon": ("FalconForCausalLM", falcon, "FalconForCausalLM"),
        "Falcon, ALiBi": (
            "FalconForCausalLM",
            {**falcon, "alibi": True, "multi_query": False, "parallel_attn": False, "bias": True},
            "",  # the Bridge computes other logits
        ),
        "Falcon, grouped queries": (
            "FalconForCausalLM",
            {**falcon, "new_decoder_architecture": True, "num_kv_heads": groups},
            "",  # the Bridge splits the fused projection into parts of other sizes
        ),
        "MPT": (
            "MptForCausalLM",
            {
                "vocab_size": vocab, "d_model": d, "n_layers": 2, "n_heads": heads,
                "max_seq_len": positions,
            },
            "MPTForCausalLM",
        ),
        "XGLM": (
            "XGLMForCausalLM",
            {
                "vocab_size": vocab, "d_model": d, "ffn_dim": mlp, "num_layers": 2,
                "attention_heads": heads, "max_position_embeddings": positions,
                "pad_token_id": 0, **ends,
            },
            "XGLMForCausalLM",
        ),
        "Phi": ("PhiForCausalLM", {**new, "rope_parameters": half}, "PhiForCausalLM"),
        "Phi, normed queries": (
            "PhiForCausalLM",
            {**new, "rope_parameters": half, "qk_layernorm": True},
            "",  # the Bridge knows no norms of the queries here
        ),
        "Phi-3": ("Phi3ForCausalLM", grouped, "Phi3ForCausalLM"),
        "Llama": ("LlamaForCausalLM", grouped, "LlamaForCausalLM"),
        "Mistral": ("MistralForCausalLM", {**wide, "sliding_window": 3}, "MistralForCausalLM"),
        "Mixtral": (
            "MixtralForCausalLM", {**wide, "num_local_experts": 4}, "MixtralForCausalLM",
        ),
        "Qwen2": ("Qwen2ForCausalLM", grouped, "Qwen2ForCausalLM"),
        "Qwen2-MoE": (
            "Qwen2MoeForCausalLM",
            {**grouped, **moe, "num_experts": 4, "shared_expert_intermediate_size": mlp},
            "Qwen2MoeForCausalLM",
        ),
        "Qwen3": ("Qwen3ForCausalLM", wide, "Qwen3ForCausalLM"),
        "Qwen3-MoE": (
            "Qwen3MoeForCausalLM", {**wide, **moe, "num_experts": 4}, "Qwen3MoeForCausalLM",
        ),
        "Gemma": ("GemmaForCausalLM", wide, "GemmaForCausalLM"),
        "Gemma 2": (
            "Gemma2ForCausalLM",
            {**wide, "sliding_window": 3, "layer_types": mixed, "query_pre_attn_scalar": head,
             "attn_logit_softcapping": 4.0, "final_logit_softcapping": 4.0},
            "Gemma2ForCausalLM",
        ),
        "Gemma 3": (
            "Gemma3ForCausalLM",
            {**wide, "sliding_window": 3, "layer_types": mixed, "query_pre_attn_scalar": head},
            "Gemma3ForCausalLM",
        ),
        "OLMo": ("OlmoForCausalLM", {**grouped, "clip_qkv": 1.0}, "OlmoForCausalLM"),
        "OLMo, queries not clipped": ("OlmoForCausalLM", grouped, "OlmoForCausalLM"),
        "OLMo 2": ("Olmo2ForCausalLM", grouped, "Olmo2ForCausalLM"),
        "OLMo 3": (
            "Olmo3ForCausalLM",
            {**grouped, "sliding_window": 3, "layer_types": mixed},
            "Olmo3ForCausalLM",
        ),
        "OLMoE": (
            "OlmoeForCausalLM", {**grouped, "num_experts": 4, "num_experts_per_tok": 2},
            "OlmoeForCausalLM",
        ),
        "StableLM": (
            "StableLmForCausalLM", {**grouped, "rope_parameters": half}, "StableLmForCausalLM",
        ),
        "StableLM, parallel, normed queries": (
            "StableLmForCausalLM",
            {**grouped, "rope_parameters": half, "qk_layernorm": True,
             "use_parallel_residual": True, "use_qkv_bias": True},
            "StableLmForCausalLM",
        ),
        "Starcoder2": ("Starcoder2ForCausalLM", grouped, "Starcoder2ForCausalLM"),
        "Cohere": ("CohereForCausalLM", grouped, "CohereForCausalLM"),
        "Cohere, normed queries": (
            "CohereForCausalLM", {**grouped, "use_qk_norm": True}, "CohereForCausalLM",
        ),
        "Cohere 2": (
            "Cohere2ForCausalLM", {**wide, "sliding_window": 3, "layer_types": mixed}, "",
        ),
        "Granite": (
            "GraniteForCausalLM",
            {**grouped, "embedding_multiplier": 3.0, "residual_multiplier": 0.7,
             "attention_multiplier": 0.4, "logits_scaling": 2.0},
            "GraniteForCausalLM",
        ),
        "SmolLM3": (
            "SmolLM3ForCausalLM", {**grouped, "no_rope_layers": [1, 0]}, "SmolLM3ForCausalLM",
        ),
        "GLM": (
            "GlmForCausalLM", {**wide, "rope_parameters": half}, "GlmForCausalLM",
        ),
        "GLM-4": (
            "Glm4ForCausalLM", {**wide, "rope_parameters": half}, "Glm4ForCausalLM",
        ),
        "Nemotron": (
            "NemotronForCausalLM", {**wide, "rope_parameters": half}, "NemotronForCausalLM",
        ),
        "Apertus": ("ApertusForCausalLM", grouped, "ApertusForCausalLM"),
        "DeepSeek-V3": (
            "DeepseekV3ForCausalLM",
            {**new, **moe, "num_key_value_heads": heads, "n_routed_experts": 4, "n_group": 2,
             "topk_group": 1, "first_k_dense_replace": 1, "kv_lora_rank": 12, "q_lora_rank": 16,
             "qk_rope_head_dim": 4, "qk_nope_head_dim": 6, "v_head_dim": 5, "head_dim": 4},
            "DeepseekV3ForCausalLM",
        ),
        "Mamba": (
            "MambaForCausalLM",
            {"vocab_size": vocab, "hidden_size": d, "state_size": 4, "num_hidden_layers": 2,
             "pad_token_id": 0, **ends},
            "MambaForCausalLM",
        ),
        "BERT": ("BertForMaskedLM", bert, "BertForMaskedLM"),
        "RoBERTa": ("RobertaForMaskedLM", bert, "RobertaForMaskedLM"),
        "DistilBERT": (
            "DistilBertForMaskedLM",
            {"vocab_size": vocab, "dim": d, "hidden_dim": mlp, "n_layers": 2, "n_heads": heads,
             "max_position_embeddings": positions, "pad_token_id": 0},
            "",
        ),
        "ELECTRA": ("ElectraForMaskedLM", {**bert, "embedding_size": s.narrow}, ""),
        "ALBERT": ("AlbertForMaskedLM", {**bert, "embedding_size": s.narrow}, ""),
        "ModernBERT": (
            "ModernBertForMaskedLM",
            {**new, "layer_types": mixed, "local_attention": 4, "cls_token_id": 1,
             "sep_token_id": 2},
            "",
        ),
        "T5 encoder": ("T5ForTokenClassification", t5, ""),
        "T5 encoder, gated": (
            "T5ForTokenClassification", {**t5, "feed_forward_proj": "gated-gelu"}, "",
        ),
        "T5 encoder, no head": ("T5EncoderModel", t5, ""),
        "ViT": (
            "ViTForImageClassification",
            {"hidden_size": d, "intermediate_size": mlp, "num_hidden_layers": 2,
             "num_attention_heads": heads, "image_size": image, "patch_size": image // 2,
             "num_labels": 5},
            "ViTForImageClassification",
        ),
    }  # fmt: skip


def _hugging_face(kind: str, config: dict[str, Any], s: Sizes) -> Callable[[int], nn.Module]:
    def make(seed: int) -> nn.Module:
        import transformers

        built = getattr(transformers, kind)
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(seed)
            return generic(built(built.config_class(**config)), seed, s.spread)

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


def _native(config: dict[str, Any], s: Sizes) -> Callable[[int], nn.Module]:
    def make(seed: int) -> nn.Module:
        from transformer_lens import TransformerBridge, TransformerBridgeConfig

        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            plain: dict[str, Any] = {
                "d_model": s.width, "d_head": s.head, "n_heads": s.heads, "n_layers": 2,
                "n_ctx": s.positions, "d_vocab": s.vocabulary, "d_mlp": s.mlp, "seed": seed,
            }  # fmt: skip
            given: dict[str, Any] = {**plain, **config}
            if "n_key_value_heads" in given:
                given["n_key_value_heads"] = s.groups
            model = TransformerBridge.boot_native(TransformerBridgeConfig(**given))
            return generic(model, seed, s.spread)

    return make


def hugging_face(sizes: Sizes) -> tuple[Family, ...]:
    """The families that Hugging Face's classes give."""

    def example(name: str) -> Callable[[int], dict[str, Tensor]]:
        if name == "ViT":
            return lambda seed: pixels(seed, sizes.image)
        return lambda seed: tokens(seed, sizes.vocabulary, sizes.length)

    return tuple(
        Family(name, _hugging_face(kind, config, sizes), example(name), bridge)
        for name, (kind, config, bridge) in _configurations(sizes).items()
    )


def native(sizes: Sizes) -> tuple[Family, ...]:
    """The shapes of the Bridge's own model."""

    def example(seed: int) -> dict[str, Tensor]:
        return {"input": tokens(seed, sizes.vocabulary, sizes.length)["input_ids"]}

    return tuple(
        Family(name, _native(config, sizes), example, "native") for name, config in _NATIVE.items()
    )


HUGGING_FACE, NATIVE = hugging_face(SMALL), native(SMALL)
