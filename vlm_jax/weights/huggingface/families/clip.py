"""CLIP (arXiv 2103.00020): CLIPModel, and its image tower alone, which LLaVA looks through."""

from __future__ import annotations

import dataclasses
import math

from vlm_jax.models.model import ModelConfig
from vlm_jax.models.text import TextConfig
from vlm_jax.models.two_tower import ContrastConfig
from vlm_jax.models.vit import ViTConfig
from vlm_jax.weights.huggingface.families import encoder
from vlm_jax.weights.huggingface.family import Family, HfConfig
from vlm_jax.weights.huggingface.table import PATCH, Weight, linear, norm

# What transformers' classes fill in where config.json is silent.
_STACK = dict(num_hidden_layers=12, hidden_act="quick_gelu", layer_norm_eps=1e-5)
VISION = dict(_STACK, hidden_size=768, intermediate_size=3072, num_attention_heads=12, num_channels=3,
              image_size=224, patch_size=32)
TEXT = dict(_STACK, hidden_size=512, intermediate_size=2048, num_attention_heads=8, vocab_size=49408,
            max_position_embeddings=77, eos_token_id=49407)
LARGEST_ID = 2  # as eos_token_id: files older than the right number pool where the id is largest


def vision_config(hf: HfConfig) -> ViTConfig:
    """The sizes in a CLIPVisionConfig; `feature_layer` stays at our default, the caller knows better.

    Raises ValueError for an activation or a number of channels that we do not have.
    """
    hf = VISION | hf
    return ViTConfig(**encoder.image_sizes(hf), transformer=encoder.transformer(hf))


def vision_hf_config(config: ViTConfig) -> HfConfig:
    return {"model_type": "clip_vision_model", **encoder.hf_transformer(config.transformer),
            **encoder.hf_image_sizes(config)}


def text_config(hf: HfConfig) -> TextConfig:
    hf = TEXT | hf
    end = hf["eos_token_id"]
    return TextConfig(vocab_size=hf["vocab_size"], context=hf["max_position_embeddings"],
                      end_id=None if end == LARGEST_ID else end, transformer=encoder.transformer(hf))


def text_hf_config(config: TextConfig) -> HfConfig:
    return {"model_type": "clip_text_model", **encoder.hf_transformer(config.transformer),
            "vocab_size": config.vocab_size, "max_position_embeddings": config.context,
            "eos_token_id": LARGEST_ID if config.end_id is None else config.end_id}


def config(hf: HfConfig) -> ModelConfig:
    """The sizes in a CLIPConfig. Where older files say a tower twice, transformers takes `*_config_dict`."""
    vision, text = (hf.get(f"{part}_config_dict") or hf.get(f"{part}_config") or {} for part in ("vision", "text"))
    scale = math.exp(hf.get("logit_scale_init_value", 2.6592))
    contrast = ContrastConfig(hf.get("projection_dim", 512), scale, max_scale=math.inf)
    return ModelConfig(vision=vision_config(vision), text=text_config(text), contrast=contrast)


def hf_config(config: ModelConfig) -> HfConfig:
    size = {"projection_dim": config.contrast.embed_dim}
    return {"architectures": ["CLIPModel"], "model_type": "clip", **size,
            "logit_scale_init_value": math.log(config.contrast.scale),
            "vision_config": vision_hf_config(config.vision) | size,
            "text_config": text_hf_config(config.text) | size}


def vision_table(config: ViTConfig, ours: str = "vision", theirs: str = "vision_model") -> list[Weight]:
    """The rows of the image tower, whatever it is called: `ours` in our tree, `theirs` in the files."""
    size, embeddings = config.patch_size, f"{theirs}.embeddings"
    return [
        Weight(f"{ours}/class_token", f"{embeddings}.class_embedding"),
        Weight(f"{ours}/patch_embed/kernel", f"{embeddings}.patch_embedding.weight", PATCH, (size, size, 3)),
        Weight(f"{ours}/position_embedding", f"{embeddings}.position_embedding.weight"),
        *norm(f"{ours}/norm_pre", f"{theirs}.pre_layrnorm"),  # so spelled in every checkpoint
        *encoder.blocks(ours, theirs),
        *norm(f"{ours}/norm_post", f"{theirs}.post_layernorm")]


def text_table(ours: str = "text", theirs: str = "text_model") -> list[Weight]:
    return [
        Weight(f"{ours}/token_embedding", f"{theirs}.embeddings.token_embedding.weight"),
        Weight(f"{ours}/position_embedding", f"{theirs}.embeddings.position_embedding.weight"),
        *encoder.blocks(ours, theirs),
        *norm(f"{ours}/norm_post", f"{theirs}.final_layer_norm")]


def table(config: ModelConfig) -> list[Weight]:
    return [*vision_table(config.vision), *text_table(), Weight("logit_scale", "logit_scale"),
            *linear("vision_projection", "visual_projection", bias=False),
            *linear("text_projection", "text_projection", bias=False)]


FAMILY = Family("CLIPModel", config, hf_config, table, encoder.passed_over)
VISION_FAMILY = encoder.vision_family(
    "CLIPVisionModel", lambda hf: dataclasses.replace(vision_config(hf), resize=encoder.RESIZE), vision_hf_config,
    vision_table)
