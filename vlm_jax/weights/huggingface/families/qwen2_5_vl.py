"""Qwen2.5-VL (arXiv 2502.13923): Qwen2-VL whose eyes look through windows and are built like a language model."""

from __future__ import annotations

import dataclasses

from vlm_jax.models.model import ModelConfig
from vlm_jax.models.native_vit import NativeViTConfig
from vlm_jax.weights.huggingface.families import qwen2_vl
from vlm_jax.weights.huggingface.family import Family, HfConfig

VISION = dict(
    depth=32, hidden_size=3584, hidden_act="silu", intermediate_size=3420, num_heads=16, in_channels=3, patch_size=14,
    spatial_merge_size=2, temporal_patch_size=2, tokens_per_second=4, window_size=112, out_hidden_size=3584,
    fullatt_block_indexes=(7, 15, 23, 31), rope_parameters=None)
LANGUAGE = qwen2_vl.language("qwen2_5_vl_text")


def config(hf: HfConfig) -> ModelConfig:
    """The sizes in a Qwen2_5_VLConfig. `window_size` counts pixels; a window is whole visual tokens."""
    vision = qwen2_vl.checked(hf, VISION)
    eyes = qwen2_vl.eyes(
        vision, width=vision["hidden_size"], mlp_width=vision["intermediate_size"], norm="rms", gated_mlp=True)
    window = vision["window_size"] // eyes.merge // eyes.patch_size * eyes.merge
    eyes = dataclasses.replace(eyes, window=window, full_layers=tuple(vision["fullatt_block_indexes"]))
    return qwen2_vl.assembled(hf, eyes)


def hf_config(config: ModelConfig) -> HfConfig:
    """The keys of config.json but for token ids."""
    v, width = config.vision, config.decoder.transformer.width
    vision = {
        "model_type": "qwen2_5_vl_vision", **qwen2_vl.hf_eyes(v), "hidden_size": v.transformer.width,
        "intermediate_size": v.transformer.mlp_width, "out_hidden_size": width,
        "window_size": v.window * v.patch_size, "fullatt_block_indexes": list(v.full_layers)}
    return {"architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl",
            "tie_word_embeddings": config.decoder.tie_embeddings, "vision_config": vision,
            "text_config": qwen2_vl.hf_text_config(config.decoder, LANGUAGE)}


FAMILY = Family("Qwen2_5_VLForConditionalGeneration", config, hf_config, qwen2_vl.table, qwen2_vl.rename, qwen2_vl.text)
