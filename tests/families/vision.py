"""Networks that read images and videos: what is unlike the recipe, and what is expected.

Transformers of patches norm before every sublayer and keep the line of ones; convolutions in
residual stages that are rectified leave positive scales of channels, others only their order.
"""

from __future__ import annotations

from families.building import Row, Sizes, images, videos


def vision(s: Sizes) -> dict[str, Row]:
    """Name -> a network that reads images or videos."""
    d, h, head, m = s.width, s.heads, s.head, s.mlp
    patches = {
        "stream": f"LINE({d})", "neurons": f"S({m})", "z": f"{h} x GL({head})",
        "takes": images(s.image),
    }  # fmt: skip
    given = {**patches, "stream": f"trivial({d})"}
    # Their MLPs are as wide as the stream.
    dino = {**patches, "neurons": f"S({d})"}
    pooled = {
        "hidden_size": d, "intermediate_size": m, "num_hidden_layers": 2, "num_attention_heads": h,
        "image_size": s.image, "patch_size": s.image // 2,
    }  # fmt: skip
    windows = {
        "image_size": 16, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4],
        "window_size": 2,
    }  # fmt: skip
    pyramid = {
        "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 2, 3, 4], "mlp_ratios": [2, 2, 2, 2],
    }  # fmt: skip
    rectified = "S>0(16) / S>0(32) / S>0(4) / S>0(8)"
    counts = "1 x GL(8) / 2 x GL(8) / 3 x GL(8) / 4 x GL(8)"
    # Convolutions in groups of four channels.
    grouped = "S>0(16) / S>0(4) + S>0(4) / S>0(4) + S>0(4) + S>0(4) + S>0(4) / S>0(8)"
    stages = {"hidden_sizes": [8, 16], "depths": [2, 2]}
    return {
        "AIMv2": Row("Aimv2VisionModel", {}, f"trivial({d})", f"S≠0({m})", f"{h} x GL({head})",
                     takes=images(s.image)),
        "BEiT": Row(
            "BeitForImageClassification",
            {"use_relative_position_bias": True, "layer_scale_init_value": 0.1},
            **{**patches, "z": f"{h} x GL({head}), kept"},
        ),
        "CLIP, vision": Row(
            "CLIPVisionModelWithProjection", {"projection_dim": 16}, **{**given}
        ),
        "CLIP, classifying": Row(
            "CLIPForImageClassification", {"vision_config": pooled, "projection_dim": 16},
            **{**patches, "stream": f"S({d})"},
        ),
        "ConvNeXt": Row(
            "ConvNextForImageClassification", {**stages, "num_stages": 2, "patch_size": 2},
            "S(16) / S(8)", "S(32) / S(64)", takes=images(16),
        ),
        "ConvNeXt v2": Row(
            "ConvNextV2ForImageClassification", {**stages, "num_stages": 2, "patch_size": 2},
            "S(16) / S(8)", "?(32) / ?(64)", takes=images(16),
        ),
        "Data2Vec, vision": Row("Data2VecVisionForImageClassification", {}, **patches),
        "DeiT": Row("DeiTForImageClassification", {}, **patches),
        "DINOv2": Row("Dinov2ForImageClassification", {"mlp_ratio": 1}, **dino),
        "DINOv2, gated": Row(
            "Dinov2ForImageClassification", {"mlp_ratio": 1, "use_swiglu_ffn": True},
            **{**patches, "neurons": "S≠0(24)"},
        ),
        "DINOv2, registers": Row(
            "Dinov2WithRegistersForImageClassification", {"mlp_ratio": 1}, **dino
        ),
        "DINOv3": Row(
            "DINOv3ViTModel", {"num_register_tokens": 1}, **given
        ),
        "DINOv3, ConvNeXt": Row(
            "DINOv3ConvNextModel", {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]},
            "S(16) / S(24) / S(8) / trivial(3) / trivial(32)", "S(128) / S(32) / S(64) / S(96)",
            takes=images(32),
        ),
        "FocalNet": Row(
            "FocalNetForImageClassification",
            {"image_size": 16, "patch_size": 2, "embed_dim": 16, "hidden_sizes": [16, 32],
             "depths": [2, 2], "focal_levels": [2, 2], "focal_windows": [3, 3]},
            "S(16) / S(32)", "S(128) / S(64)", takes=images(16),
        ),
        "Hiera": Row(
            "HieraForImageClassification",
            {"image_size": [32, 32], "patch_size": [7, 7], "patch_stride": [4, 4],
             "patch_padding": [3, 3], "embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2],
             "query_stride": [2, 2], "mlp_ratio": 2.0, "masked_unit_size": [4, 4],
             "masked_unit_attention": [True, False], "num_query_pool": 1},
            "LINE(16)", "S(32) / S(64)", "1 x GL(16) / 2 x GL(16), kept", takes=images(32),
        ),
        "I-JEPA": Row("IJepaForImageClassification", {}, **patches),
        "MLCD": Row("MLCDVisionModel", {}, **given),
        "MobileNet v1": Row(
            "MobileNetV1ForImageClassification", {"depth_multiplier": 0.25, "min_depth": 8},
            "S(128) / S(16) / S(256) / S(32) / S(64) / S(8)", takes=images(32),
        ),
        "MobileNet v2": Row(
            "MobileNetV2ForImageClassification", {"depth_multiplier": 0.25},
            "GL(16) / GL(24) / GL(40) / GL(8)", takes=images(32),
        ),
        "Pixtral, vision": Row(
            "PixtralVisionModel", {}, f"trivial({d})", f"S≠0({m})", f"{h} x GL({head})",
            takes=images(s.image),
        ),
        "PoolFormer": Row(
            "PoolFormerForImageClassification",
            {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "mlp_ratio": 2.0},
            "", "S(16) / S(32) / S(48) / S(64)", takes=images(32),
        ),
        "PP-LCNet": Row(
            "PPLCNetForImageClassification", {"scale": 0.25},
            "S(128) / S(16) / S(32) / S(64) / S(8)", takes=images(32),
        ),
        "PVT": Row(
            "PvtForImageClassification",
            {**pyramid, "image_size": 64, "sequence_reduction_ratios": [8, 4, 2, 1],
             "patch_sizes": [4, 2, 2, 2], "strides": [4, 2, 2, 2]},
            None, "S(16) / S(32) / S(48) / S(64)", counts, takes=images(64),
        ),
        "PVT v2": Row(
            "PvtV2ForImageClassification", {**pyramid, "image_size": 64}, None, None, counts,
            takes=images(64),
        ),
        "RegNet X": Row(
            "RegNetForImageClassification",
            {**stages, "embedding_size": 8, "groups_width": 4, "layer_type": "x"}, grouped, grouped,
            takes=images(16),
        ),
        "RegNet Y": Row(
            "RegNetForImageClassification",
            {"hidden_sizes": [16, 32], "depths": [1, 1], "embedding_size": 8, "groups_width": 16},
            "S>0(16) / S>0(16) + S>0(16) / S>0(8)",
            "S>0(16) / S>0(16) + S>0(16) / S>0(32) / S>0(8)", takes=images(16),
        ),
        "ResNet": Row(
            "ResNetForImageClassification", {**stages, "embedding_size": 8, "layer_type": "basic"},
            "S>0(16) / S>0(8)", "S>0(16) / S>0(8)", takes=images(16),
        ),
        "ResNet, bottlenecks": Row(
            "ResNetForImageClassification",
            {"hidden_sizes": [16, 32], "depths": [2, 2], "embedding_size": 8},
            rectified, rectified, takes=images(16),
        ),
        "SegFormer": Row(
            "SegformerForImageClassification", pyramid, None, "S(16) / S(32) / S(48) / S(64)",
            counts, takes=images(64),
        ),
        "SigLIP, classifying": Row(
            "SiglipForImageClassification", {"vision_config": pooled},
            # The head that pools is not read by the classifier.
            **{**patches, "neurons": f"?({m}) / S({m})"},
        ),
        "SuperPoint": Row(
            "SuperPointForKeypointDetection",
            {"encoder_hidden_sizes": [8, 8, 16, 16], "decoder_hidden_size": 16,
             "keypoint_decoder_dim": 65, "descriptor_decoder_dim": 16},
            "", "S>0(16) / S>0(8)", takes=images(32),
        ),
        "SwiftFormer": Row(
            "SwiftFormerForImageClassification",
            {"depths": [1, 1, 1, 1], "embed_dims": [8, 16, 24, 32], "mlp_ratio": 2},
            "S>0(8) / S≠0(16) / S≠0(24) / S≠0(32)", "S(16) / S(32) / S(48) / S(64)",
            takes=images(64),
        ),
        "Swin": Row("SwinForImageClassification", windows, "?(16) / LINE(32)", "S(128) / S(64)",
            "2 x GL(8), kept / 4 x GL(8), kept", takes=images(16)),
        "Swin v2": Row("Swinv2ForImageClassification", windows, "S(16) / S(32)", "S(128) / S(64)",
            "2 x GL(8), kept / 4 x GL(8), kept", takes=images(16)),
        "TextNet": Row(
            "TextNetForImageClassification",
            {"stem_out_channels": 8, "hidden_sizes": [8, 8, 16, 16, 16],
             "conv_layer_kernel_sizes": [[[3, 3]], [[3, 3]], [[3, 3], [1, 3]], [[3, 1]]],
             "conv_layer_strides": [[1], [2], [2, 1], [2]]},
            "S>0(16) / S>0(8)", "S>0(8)", takes=images(32),
        ),
        "TimeSformer": Row(
            "TimesformerForVideoClassification", {"num_frames": 2}, f"?({d})", f"S({m})",
            f"{h} x GL({head})", takes=videos(2, s.image),
        ),
        "VideoMAE": Row(
            "VideoMAEForVideoClassification",
            {"num_frames": 16, "tubelet_size": 2, "decoder_hidden_size": 16,
             "decoder_num_attention_heads": 2, "decoder_num_hidden_layers": 1,
             "decoder_intermediate_size": 20},
            **{**patches, "stream": f"trivial({d})", "takes": videos(16, s.image)},
        ),
        "ViT-MSN": Row("ViTMSNForImageClassification", {}, **patches),
        "ViViT": Row(
            "VivitForVideoClassification", {"num_frames": 4, "tubelet_size": [2, 4, 4]},
            **{**patches, "takes": videos(4, s.image)},
        ),
        "YOLOS": Row(
            "YolosForObjectDetection",
            {"image_size": [s.image, s.image], "num_detection_tokens": 3},
            # Its heads are rectified layers, which are counted among blocks by their names.
            **{**given, "stream": f"S>0({d}) / trivial({d})"},
        ),
    }  # fmt: skip
