"""Networks that read sounds: what is unlike the recipe, and what is expected."""

from __future__ import annotations

from families.building import LOGITS, Row, Sizes, features, waves


def speech(s: Sizes) -> dict[str, Row]:
    """Name -> a network that reads sounds."""
    d, h, head, m = s.width, s.heads, s.head, s.mlp
    front = {
        "conv_dim": (8, 8), "conv_stride": (2, 2), "conv_kernel": (3, 3),
        "num_conv_pos_embeddings": 3, "num_conv_pos_embedding_groups": 2,
    }  # fmt: skip
    # Positions come from a convolution in two groups, which axes do not leave.
    behind = {
        "stream": f"S({d // 2}) + S({d // 2})", "neurons": f"S({m})", "z": f"{h} x GL({head})",
        "takes": waves(60),
    }  # fmt: skip
    return {
        "Audio spectrogram transformer": Row(
            "ASTForAudioClassification",
            {"max_length": 12, "num_mel_bins": 8, "patch_size": 4, "time_stride": 4,
             "frequency_stride": 4},
            # Its last norm is read by another norm.
            f"S({d})", f"S({m})", f"{h} x GL({head})", takes=features("input_values", 12, 8),
        ),
        "Data2Vec, audio": Row(
            "Data2VecAudioForCTC",
            {**front, "num_conv_pos_embeddings": 2, "conv_pos_kernel_size": 3}, **behind,
        ),
        "HuBERT": Row("HubertForCTC", front, **behind),
        "Moonshine": Row(
            "MoonshineForConditionalGeneration",
            {"encoder_num_hidden_layers": 2, "decoder_num_hidden_layers": 2,
             "encoder_num_attention_heads": h, "decoder_num_attention_heads": h,
             "partial_rotary_factor": 0.5},
            # Sounds come from a nonlinearity.
            f"LINE({d}) / S({d})", f"S({m}) / S≠0({m})", f"{h} x GL({head})",
            takes=waves(2000, decoder=True), wrap=LOGITS,
        ),
        "SEW": Row("SEWForCTC", {**front, "squeeze_factor": 2}, **behind),
        "Speech2Text": Row(
            "Speech2TextForConditionalGeneration",
            {"input_feat_per_channel": 8, "input_channels": 1, "conv_channels": 12,
             "conv_kernel_sizes": (3, 3), "num_conv_layers": 2, "max_source_positions": 64,
             "max_target_positions": 64, "pad_token_id": 1},
            f"trivial({d})", f"S>0({m})", f"{h} x GL({head})",
            takes=features("input_features", 20, 8, decoder=True), wrap=LOGITS,
        ),
        "UniSpeech": Row("UniSpeechForCTC", front, **behind),
        "UniSpeech-SAT": Row("UniSpeechSatForCTC", front, **behind),
        "wav2vec 2.0": Row("Wav2Vec2ForCTC", {**front, "feat_extract_norm": "group"}, **behind),
        "wav2vec 2.0, norms before": Row(
            "Wav2Vec2ForCTC",
            {**front, "feat_extract_norm": "layer", "do_stable_layer_norm": True,
             "conv_bias": True},
            **behind,
        ),
        "wav2vec 2.0, BERT": Row(
            "Wav2Vec2BertForCTC",
            {"feature_projection_input_dim": 10, "conv_depthwise_kernel_size": 3,
             "left_max_position_embeddings": 4, "right_max_position_embeddings": 2},
            f"S({d})", f"S({m})", takes=features("input_features", 9, 10),
        ),
        "Whisper": Row(
            "WhisperForConditionalGeneration",
            {"num_mel_bins": 8, "max_source_positions": 10, "max_target_positions": 32},
            f"LINE({d}) / S({d})", f"S({m})", f"{h} x GL({head})",
            takes=features("input_features", 20, 8, decoder=True, turned=True), wrap=LOGITS,
        ),
    }  # fmt: skip
