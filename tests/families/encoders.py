"""Encoders, and encoders with decoders: what is unlike the recipe, and what is expected.

BERT and what follows it norm behind every sublayer, so that axes of the stream only change places;
the others norm before it, and leave rotations.
"""

from __future__ import annotations

from families.building import LOGITS, Row, Sizes, both


def encoders(s: Sizes) -> dict[str, Row]:
    """Name -> an encoder, or an encoder with a decoder."""
    d, h, g, head, m = s.width, s.heads, s.groups, s.head, s.mlp
    behind = {"stream": f"S({d})", "neurons": f"S({m})", "z": f"{h} x GL({head})"}
    # Hidden states that are returned have to stay.
    given = {**behind, "stream": f"trivial({d})"}
    before = {**behind, "stream": f"LINE({d})"}
    t5 = {
        "relative_attention_num_buckets": 8, "relative_attention_max_distance": 16,
        "dropout_rate": 0.0,
    }  # fmt: skip
    # One table of biases serves the heads of all layers; those that read the encoder have none.
    table = {
        "stream": f"O({d})",
        "neurons": f"S>0({m})",
        "z": f"{h} x GL({head}) / {h} x GL({head}), kept",
    }
    gated = {**table, "neurons": f"S≠0({m})"}
    pairs = {"takes": both, "wrap": LOGITS}
    sines = {"stream": f"trivial({d})", "neurons": f"S>0({m})", "z": f"{h} x GL({head})"}
    return {
        "ALIGN's text": Row("AlignTextModel", {}, **given),
        "BERT, generating": Row("BertGenerationDecoder", {}, **behind),
        "BigBird": Row("BigBirdForMaskedLM", {"attention_type": "original_full"}, **behind),
        "CamemBERT": Row("CamembertForMaskedLM", {}, **behind),
        "CLAP's text": Row("ClapTextModelWithProjection", {"projection_dim": 24}, **given),
        "Data2Vec, text": Row("Data2VecTextForMaskedLM", {}, **behind),
        "DeBERTa": Row(
            "DebertaForMaskedLM",
            {"relative_attention": True, "max_relative_positions": 8,
             "pos_att_type": ["p2c", "c2p"], "position_biased_input": False},
            f"S({d})", f"S({m})", f"?({d})",
        ),
        # The keys of tokens are those of relative positions, too, which stay.
        "DeBERTa-v2": Row(
            "DebertaV2ForMaskedLM",
            {"relative_attention": True, "position_buckets": 8, "max_relative_positions": 8,
             "pos_att_type": ["p2c", "c2p"], "position_biased_input": False,
             "share_att_key": True, "norm_rel_ebd": "layer_norm", "conv_kernel_size": 0},
            f"?({d})", f"S({m})", f"{h} x GL({head}), kept",
        ),
        "DPR": Row("DPRQuestionEncoder", {}, **given),
        "ERNIE": Row("ErnieForMaskedLM", {}, **behind),
        "ESM": Row(
            "EsmForMaskedLM",
            {"position_embedding_type": "rotary", "mask_token_id": 4, "token_dropout": False,
             "emb_layer_norm_before": False},
            **before,
        ),
        "ESM, positions": Row(
            "EsmForMaskedLM",
            {"position_embedding_type": "absolute", "mask_token_id": 4, "token_dropout": False,
             "emb_layer_norm_before": False},
            **before,
        ),
        "EuroBERT": Row(
            "EuroBertForMaskedLM", {},
            f"O({d})", f"S≠0({m})", f"{g} x GL({head}) ({h // g} queries each)",
        ),
        "I-BERT": Row("IBertForMaskedLM", {"quant_mode": False}, **behind),
        "Jina embeddings 3": Row("JinaEmbeddingsV3ForMaskedLM", {}, **behind),
        "LayoutLM": Row("LayoutLMForMaskedLM", {"max_2d_position_embeddings": 32}, **behind),
        "Longformer": Row(
            "LongformerForMaskedLM", {"attention_window": 4}, f"S({d})", f"S({m})", f"?({d})"
        ),
        "LUKE": Row("LukeForMaskedLM", {"entity_vocab_size": 20, "entity_emb_size": 16}, **behind),
        "Megatron-BERT": Row("MegatronBertForMaskedLM", {}, **before),
        # One table of biases serves the heads of all layers.
        "MPNet": Row("MPNetForMaskedLM", {}, **{**behind, "z": f"{h} x GL({head}), kept"}),
        "NomicBERT": Row("NomicBertForMaskedLM", {}, **{**behind, "neurons": f"S≠0({m})"}),
        "RemBERT": Row(
            "RemBertForMaskedLM", {"input_embedding_size": 16, "output_embedding_size": 24},
            **behind,
        ),
        # It norms the embedding, too, with a gain.
        "RoBERTa, norms before": Row("RobertaPreLayerNormForMaskedLM", {}, **behind),
        "RoFormer": Row("RoFormerForMaskedLM", {"embedding_size": d}, **behind),
        "TAPAS": Row("TapasForMaskedLM", {"type_vocab_sizes": [3, 4, 4, 2, 4, 2, 2]}, **behind),
        "XLM": Row(
            "XLMWithLMHeadModel", {"emb_dim": d, "sinusoidal_embeddings": False},
            "", f"S({4 * d})", f"{h} x GL({head}), kept",
        ),
        "FlauBERT": Row(
            "FlaubertWithLMHeadModel", {"emb_dim": d},
            "", f"S({4 * d})", f"{h} x GL({head}), kept",
        ),
        "XLM-RoBERTa": Row("XLMRobertaForMaskedLM", {}, **behind),
        "XLM-RoBERTa-XL": Row("XLMRobertaXLForMaskedLM", {}, **before),
        "X-MOD": Row(
            "XmodForMaskedLM",
            {"languages": ["en_XX"], "default_language": "en_XX", "adapter_reduction_factor": 2},
            **behind,
        ),
        "CLIP's text": Row("CLIPTextModelWithProjection", {"projection_dim": 24}, **given),
        "Chinese CLIP's text": Row("ChineseCLIPTextModel", {}, **given),
        "BART": Row("BartForConditionalGeneration", {}, **behind, **pairs),
        "mBART": Row("MBartForConditionalGeneration", {}, **behind, **pairs),
        # Sines for positions begin as numbers of a table that is a parameter like any other.
        "Marian": Row("MarianMTModel", {}, **behind, **pairs),
        "Pegasus": Row("PegasusForConditionalGeneration", {}, **before, **pairs),
        "BigBird-Pegasus": Row(
            "BigBirdPegasusForConditionalGeneration", {"attention_type": "original_full"},
            **before, **pairs,
        ),
        "Blenderbot": Row("BlenderbotForConditionalGeneration", {}, **before, **pairs),
        "Blenderbot, small": Row(
            "BlenderbotSmallForConditionalGeneration", {}, **behind, **pairs
        ),
        "FSMT": Row(
            "FSMTForConditionalGeneration",
            {"langs": ["en", "de"], "src_vocab_size": s.vocabulary, "tgt_vocab_size": s.vocabulary},
            **{**behind, "neurons": f"S>0({m})"}, **pairs,
        ),
        "M2M-100": Row("M2M100ForConditionalGeneration", {}, **sines, **pairs),
        "MVP": Row("MvpForConditionalGeneration", {}, **behind, **pairs),
        "PLBART": Row("PLBartForConditionalGeneration", {}, **behind, **pairs),
        "ProphetNet": Row(
            "ProphetNetForConditionalGeneration",
            {"num_encoder_layers": 2, "num_decoder_layers": 2, "num_encoder_attention_heads": h,
             "num_decoder_attention_heads": h, "num_buckets": 8, "relative_max_distance": 16},
            f"S({d})", f"S({m})", f"{h} x GL({head}) / ?({d})", **pairs,
        ),
        "T5": Row("T5ForConditionalGeneration", t5, **table, **pairs),
        "T5, gated": Row(
            "T5ForConditionalGeneration", {**t5, "feed_forward_proj": "gated-gelu"},
            **gated, **pairs,
        ),
        "mT5": Row("MT5ForConditionalGeneration", t5, **gated, **pairs),
        "UMT5": Row("UMT5ForConditionalGeneration", t5, **gated, **pairs),
        "LongT5": Row(
            "LongT5ForConditionalGeneration", {**t5, "local_radius": 4, "global_block_size": 4},
            **table, **pairs,
        ),
        "Switch Transformers": Row(
            "SwitchTransformersForConditionalGeneration",
            {**t5, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1},
            **table, **pairs,
        ),
        "Pop2Piano": Row("Pop2PianoForConditionalGeneration", t5, **gated, **pairs),
    }  # fmt: skip
