"""Tiny configs of architectures that read images or sounds beside text."""

from __future__ import annotations

from typing import Any

from support import tiny_models as models

_ROPE = {"rope_type": "default", "rope_theta": 1e4}
_IDS = {"image_token_id": 104, "image_token_index": 104, "video_token_id": 103}
_IDS |= {"vision_start_token_id": 102, "vision_end_token_id": 101}
_TEXT = {"vocab_size": models.SIZE, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
_TEXT |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
_TEXT |= {"eos_token_id": 1, "bos_token_id": 0, "pad_token_id": None}
_TOWER = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
_TOWER |= {"image_size": 8, "patch_size": 4}
_QWEN = {"depth": 1, "hidden_size": 16, "embed_dim": 16, "num_heads": 2, "intermediate_size": 24, "out_hidden_size": 32}
_QWEN |= {"patch_size": 4, "spatial_merge_size": 2, "in_channels": 3}
_STACKED = {**_QWEN, "deepstack_visual_indexes": [0], "num_position_embeddings": 16}
_SOUNDS = {"num_mel_bins": 8, "max_source_positions": 16}


def _text(kind: str | None = None, **given: Any) -> dict[str, Any]:
    return {**_TEXT, **({} if kind is None else {"model_type": kind}), **given}


def _tower(kind: str | None = None, **given: Any) -> dict[str, Any]:
    return {**_TOWER, **({} if kind is None else {"model_type": kind}), **given}


def _in_three(**given: Any) -> dict[str, Any]:
    """Positions of three axes."""
    return {"rope_parameters": {**_ROPE, "mrope_section": [1, 1, 2], **given}}


CONFIGS: dict[str, dict[str, Any]] = {
    "gemma3": {"text_config": _text(sliding_window=8), "vision_config": _TOWER, "mm_tokens_per_image": 4},
    "qwen2_vl": {"text_config": _text(**_in_three()), "vision_config": {**_QWEN, "hidden_size": 32}},
    "qwen2_5_vl": {"text_config": _text(**_in_three()), "vision_config": _QWEN},
    "qwen3_vl": {"text_config": _text(**_in_three(mrope_interleaved=True)), "vision_config": _STACKED},
    "qwen3_vl_moe": {
        "text_config": _text(
            **_in_three(mrope_interleaved=True), num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24
        ),
        "vision_config": _STACKED,
    },
    "qwen3_5": {
        "text_config": _text(
            **_in_three(mrope_section=[1, 1, 0], partial_rotary_factor=0.5, mrope_interleaved=True),
            layer_types=["linear_attention", "full_attention"],
            linear_num_key_heads=2,
            linear_num_value_heads=2,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
        ),
        "vision_config": {**_QWEN, "num_position_embeddings": 16},
    },
    "llava": {
        "text_config": _text("llama"),
        "vision_config": _tower("clip_vision_model", projection_dim=16),
        "vision_feature_layer": -1,
    },
    "llava_next": {
        "text_config": _text("llama"),
        "vision_config": _tower("clip_vision_model", projection_dim=16),
        "vision_feature_layer": -1,
    },
    "idefics3": {
        "text_config": _text("llama", pad_token_id=0),
        "vision_config": _TOWER,
        "pad_token_id": 0,
        "scale_factor": 2,
    },
    "smolvlm": {
        "text_config": _text("llama", pad_token_id=0),
        "vision_config": _TOWER,
        "pad_token_id": 0,
        "scale_factor": 2,
    },
    "internvl": {
        "text_config": _text("qwen2"),
        "vision_config": _tower(image_size=[8, 8], patch_size=[4, 4]),
    },
    "mistral3": {"text_config": _text("mistral"), "vision_config": _tower("pixtral")},
    "mllama": {
        "text_config": _text(
            "mllama_text_model",
            num_hidden_layers=3,
            cross_attention_layers=[1],
            pad_token_id=0,
            rope_parameters=_ROPE,
        ),
        "vision_config": _tower(
            "mllama_vision_model",
            attention_heads=2,
            num_global_layers=1,
            vision_output_dim=32,
            intermediate_layers_indices=[0],
            supported_aspect_ratios=[[1, 1]],
            max_num_tiles=1,
        ),
    },
    "llama4": {
        "text_config": _text(
            intermediate_size_mlp=48,
            num_local_experts=2,
            num_experts_per_tok=1,
            moe_layers=[1],
            attention_chunk_size=32,
        ),
        "vision_config": _tower(
            vision_output_dim=16, projector_input_dim=16, projector_output_dim=16, pixel_shuffle_ratio=0.5
        ),
    },
    "glm4v": {
        "text_config": _text(**_in_three(partial_rotary_factor=1.0)),
        "vision_config": {**_QWEN, "image_size": 8},
    },
    "ovis2": {
        "text_config": _text("qwen2"),
        "vision_config": _tower(vocab_size=16, hidden_stride=1),
        "hidden_size": 32,
        "vocab_size": models.SIZE,
        "visual_indicator_token_ids": [96, 97, 98, 99, 100],
    },
    "lfm2_vl": {
        "text_config": _text("lfm2", layer_types=["conv", "full_attention"]),
        "vision_config": _tower("siglip2_vision_model", num_patches=4),
        "projector_hidden_size": 16,
    },
    "git": {**_TEXT, "pad_token_id": 0, "vision_config": _TOWER},
    "qwen2_audio": {
        "text_config": _text("qwen2"),
        "audio_config": {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 24}
        | _SOUNDS,
        "audio_token_index": 104,
    },
    "voxtral": {
        "text_config": _text("llama"),
        "audio_config": {**_TOWER, **_SOUNDS, "head_dim": 8},
        "audio_token_id": 104,
    },
}
"""By `model_type`."""

PREFIX = {
    "text_config": _text("gemma"),
    "vision_config": _tower("siglip_vision_model", projection_dim=32),
    "projection_dim": 32,
}
"""PaliGemma, in which a prompt's tokens see what comes after them."""


def settings(kind: str) -> dict[str, Any]:
    """The whole config of one of them."""
    return {**_IDS, **({"paligemma": PREFIX} | CONFIGS)[kind]}
