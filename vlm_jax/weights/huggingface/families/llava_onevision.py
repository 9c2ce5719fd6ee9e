"""LLaVA-OneVision (arXiv 2408.03326): SigLIP and Qwen2; a map of many tiles is shrunk, several images are not tiled."""

from __future__ import annotations

import re

from vlm_jax.models.tokens import AnyRes
from vlm_jax.models.vit import ViTConfig
from vlm_jax.weights.huggingface.families import llava_next
from vlm_jax.weights.huggingface.families.llava import Llava
from vlm_jax.weights.huggingface.family import HfConfig

SIDES = range(384, 2304 + 1, 384)
DEFAULTS = dict(
    vision_feature_select_strategy="full", vision_feature_layer=-1, vision_aspect_ratio="anyres_max_9",
    image_token_index=151646,
    image_grid_pinpoints=[[height, width] for height in SIDES for width in SIDES], vision_config=dict(
        model_type="siglip_vision_model", hidden_size=1152, intermediate_size=4304, patch_size=14, image_size=384,
        num_hidden_layers=26, num_attention_heads=16, vision_use_head=False))


def layout(hf: HfConfig, vision: ViTConfig) -> AnyRes:
    kind = re.fullmatch(r"anyres_max_([1-9]\d*)", hf["vision_aspect_ratio"])
    if not kind:
        raise ValueError(f"vision_aspect_ratio is '{hf['vision_aspect_ratio']}'; transformers computes anyres_max_N alone.")
    return llava_next.layout(hf, vision, int(kind[1]))


def hf_layout(layout: AnyRes) -> HfConfig:
    return {**llava_next.hf_layout(layout), "vision_aspect_ratio": f"anyres_max_{layout.max_tiles}"}


FAMILY = Llava("LlavaOnevisionForConditionalGeneration", "llava_onevision", DEFAULTS, language="qwen2",
               tower="siglip_vision_model", layout=layout, hf_layout=hf_layout).family()
