"""Decoders from a recipe: what is unlike it, and what is expected of them.

Pre-norm blocks under RMSNorm leave rotations of the stream, under LayerNorm those that fix the
all-ones direction; norms with a gain that write to the stream leave signed permutations.
"""

from __future__ import annotations

from families.building import Row, Sizes


def decoders(s: Sizes) -> dict[str, Row]:
    """Name -> a decoder."""
    d, h, g, head, m = s.width, s.heads, s.groups, s.head, s.mlp
    free = {
        "stream": f"O({d})",
        "neurons": f"S≠0({m})",
        "z": f"{g} x GL({head}) ({h // g} queries each)",
    }
    line = {**free, "stream": f"LINE({d})"}
    signed = {**free, "stream": f"S±({d})"}
    turned = f"{g} x O({{}}) ({h // g} queries each)".format
    own = f"{h} x GL({head})"
    scaled = f"{g} x S≠0({head}) ({h // g} queries each)"
    # A dense layer as wide as two experts.
    both = f"S≠0({m}) / S≠0({2 * m})"
    kept = f"{g} x GL({head}) ({h // g} queries each), kept"
    mixed = ["sliding_attention", "full_attention"]
    half = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    latent = {
        "kv_lora_rank": 12, "q_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 6,
        "v_head_dim": 5, "head_dim": 4, "num_key_value_heads": h,
    }  # fmt: skip
    narrow = {"stream": f"O({d})", "neurons": f"S≠0({m})", "z": f"{h} x GL(5), kept"}
    grouped = {"n_group": 2, "topk_group": 1}
    scan = {
        "mamba_d_head": 2 * d // h,
        "mamba_n_groups": 1,
        "mamba_chunk_size": 8,
        "mamba_expand": 2,
    }
    deltas = {
        "linear_num_value_heads": h, "linear_num_key_heads": g, "linear_key_head_dim": head,
        "linear_value_head_dim": head, "layer_types": ["linear_attention", "full_attention"],
    }  # fmt: skip
    return {
        "Arcee": Row("ArceeForCausalLM", {}, **{**free, "neurons": f"S>0({m})"}),
        # A gate behind attention leaves scales of each axis of the values.
        "AFMoE": Row(
            "AfmoeForCausalLM", {"num_dense_layers": 1, "layer_types": mixed},
            **{**signed, "neurons": both, "z": scaled},
        ),
        "ERNIE 4.5": Row("Ernie4_5ForCausalLM", {}, **free),
        "ERNIE 4.5 MoE": Row(
            "Ernie4_5_MoeForCausalLM",
            {"moe_k": 2, "moe_num_shared_experts": 1, "moe_layer_start_index": 1}, **free,
        ),
        "Bamba": Row("BambaForCausalLM", {"attn_layer_indices": [1], **scan}, **free),
        "BioGPT": Row("BioGptForCausalLM", {}, f"LINE({d})", f"S({m})", own),
        "BitNet": Row("BitNetForCausalLM", {}, f"O({d})", f"S≠0({m})", f"?({d})"),
        # Sines for positions, which span every axis.
        "CTRL": Row("CTRLLMHeadModel", {"dff": m}, f"trivial({d})", "", own),
        "DeepSeek-V2": Row(
            "DeepseekV2ForCausalLM", {**latent, **grouped, "first_k_dense_replace": 1},
            **{**narrow, "neurons": both},
        ),
        "Doge": Row("DogeForCausalLM", {}, f"S±({d})", f"S≠0({m})", kept),
        "EXAONE 4": Row("Exaone4ForCausalLM", {"layer_types": mixed}, **signed),
        "Falcon-Mamba": Row("FalconMambaForCausalLM", {}, f"O({d})"),
        "Falcon-H1": Row(
            "FalconH1ForCausalLM",
            {"mamba_d_ssm": 2 * d, "mamba_d_head": 2 * d // h, "mamba_n_groups": 1,
             "mamba_chunk_size": 8},
            **free,
        ),
        "FlexOlmo": Row("FlexOlmoForCausalLM", {}, **signed),
        "Gemma 4": Row(
            "Gemma4ForCausalLM",
            {"layer_types": mixed, "vocab_size_per_layer_input": s.vocabulary,
             "hidden_size_per_layer_input": 8},
            # Values have one length in every head.
            **{**signed, "z": f"{turned(512)}, kept / {turned(head)}"},
        ),
        "GLM-4-MoE": Row("Glm4MoeForCausalLM", {**grouped, "first_k_dense_replace": 1}, **free),
        "GLM-4-MoE Lite": Row("Glm4MoeLiteForCausalLM", {**latent, **grouped}, **narrow),
        "GPT-NeoX Japanese": Row(
            "GPTNeoXJapaneseForCausalLM", {"intermediate_multiple_size": 1},
            f"LINE({d})", f"S({d})", own,
        ),
        # Every head has a share of its own that goes to nothing, and keeps its place by it.
        "gpt-oss": Row("GptOssForCausalLM", {"layer_types": mixed}, f"O({d})", f"S({m})", kept),
        "Granite-MoE": Row("GraniteMoeForCausalLM", {}, **free),
        "Granite-MoE, shared expert": Row(
            "GraniteMoeSharedForCausalLM", {"shared_intermediate_size": 24}, **free
        ),
        "Granite 4 hybrid": Row(
            "GraniteMoeHybridForCausalLM",
            {"shared_intermediate_size": 24, "layer_types": ["mamba", "attention"], **scan}, **free,
        ),
        "Helium": Row("HeliumForCausalLM", {}, **free),
        "HunYuan": Row("HunYuanDenseV1ForCausalLM", {}, **{**free, "z": kept}),
        "HunYuan-MoE": Row(
            "HunYuanMoEV1ForCausalLM", {"moe_topk": 2}, **{**free, "z": kept}
        ),
        "Jais 2": Row("Jais2ForCausalLM", {}, **{**line, "neurons": f"S>0({m})"}),
        "Jamba": Row(
            "JambaForCausalLM",
            {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
             "expert_layer_offset": 1, "mamba_dt_rank": 3, "use_mamba_kernels": False},
            **free,
        ),
        "JetMoE": Row("JetMoeForCausalLM", {"kv_channels": head}, f"O({d})", f"S({m})"),
        "LFM2": Row(
            "Lfm2ForCausalLM",
            {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False,
             "conv_L_cache": 3},
            **free,
        ),
        "LFM2-MoE": Row(
            "Lfm2MoeForCausalLM",
            {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1, "conv_L_cache": 3},
            **free,
        ),
        "Llama 4": Row(
            "Llama4ForCausalLM",
            {"intermediate_size_mlp": m, "interleave_moe_layer_step": 2, "attention_chunk_size": 4,
             "num_experts_per_tok": 1},
            **free,
        ),
        "Mamba 2": Row(
            "Mamba2ForCausalLM",
            {"num_heads": h, "head_dim": 2 * d // h, "expand": 2, "n_groups": 1, "chunk_size": 8},
            f"O({d})",
        ),
        "MiniMax-M2": Row("MiniMaxM2ForCausalLM", {}, **free),
        "Ministral": Row("MinistralForCausalLM", {"layer_types": mixed}, **free),
        "Ministral 3": Row("Ministral3ForCausalLM", {}, **free),
        "MiniCPM 3": Row("MiniCPM3ForCausalLM", latent, **narrow),
        "nanochat": Row("NanoChatForCausalLM", {}, **{**free, "neurons": f"S>0({m})"}),
        "OLMo hybrid": Row(
            "OlmoHybridForCausalLM", {}, **{**signed, "z": f"{free['z']} / ?({6 * head})"}
        ),
        "Persimmon": Row(
            "PersimmonForCausalLM", {"rope_parameters": half}, f"LINE({d})", f"S>0({m})", own
        ),
        "Phi-3.5-MoE": Row("PhimoeForCausalLM", {}, **line),
        "Qwen3-Next": Row(
            "Qwen3NextForCausalLM", {**deltas, "shared_expert_intermediate_size": 24},
            f"O({d})", f"S≠0(24) / S≠0({m})", f"{scaled} / ?({d})",
        ),
        "Qwen3.5": Row(
            "Qwen3_5ForCausalLM", deltas, f"O({d})", f"S≠0({m})", f"{scaled}, kept / ?({d})"
        ),
        "RecurrentGemma": Row(
            "RecurrentGemmaForCausalLM",
            {"lru_width": d, "attention_window_size": 8, "block_types": ["recurrent", "attention"]},
            f"O({d})", f"S≠0({m // 2})", "",
        ),
        # Its norms and mixes of positions have a gain for every axis, and read it twice.
        "RWKV": Row(
            "RwkvForCausalLM", {"attention_hidden_size": d, "context_length": 32}, f"S({d})"
        ),
        "Seed-OSS": Row("SeedOssForCausalLM", {}, **free),
        "Solar Open": Row("SolarOpenForCausalLM", grouped, **free),
        "VaultGemma": Row(
            "VaultGemmaForCausalLM", {"layer_types": mixed, "query_pre_attn_scalar": head}, **free
        ),
        "Youtu": Row("YoutuForCausalLM", latent, **narrow),
        # As in ModernBERT, a norm with a gain writes the embedding to the stream.
        "ModernBERT decoder": Row(
            "ModernBertDecoderForCausalLM", {"layer_types": mixed}, f"S({d})", f"S≠0({m})", own
        ),
        "Cohere 2 MoE": Row("Cohere2MoeForCausalLM", {"layer_types": mixed}, **line),
        "Mellum": Row("MellumForCausalLM", {}, **free),
        "HY 3": Row("HYV3ForCausalLM", {}, **free),
        "EXAONE MoE": Row("ExaoneMoeForCausalLM", {}, **free),
        "TrOCR decoder": Row("TrOCRForCausalLM", {}, f"S({d})", f"S({m})", own),
        "ImageGPT": Row("ImageGPTForCausalImageModeling", {}, f"O({d})", f"S({m})", own),
    }  # fmt: skip
