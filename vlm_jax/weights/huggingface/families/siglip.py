"""SigLIP (arXiv 2303.15343): SiglipModel, and its image tower alone."""

from __future__ import annotations

import dataclasses
import math

from vlm_jax.models.model import ModelConfig
from vlm_jax.models.naflex import NaFlexConfig
from vlm_jax.models.text import TextConfig
from vlm_jax.models.two_tower import ContrastConfig
from vlm_jax.models.vit import ViTConfig
from vlm_jax.weights.huggingface.families import clip, encoder
from vlm_jax.weights.huggingface.family import Family, HfConfig
from vlm_jax.weights.huggingface.table import LINEAR, PATCH, SCALAR, TOKEN, Weight, linear, norm

# What transformers' classes fill in where config.json is silent.
STACK = dict(num_hidden_layers=12, hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6, hidden_size=768,
             intermediate_size=3072, num_attention_heads=12)
VISION = dict(STACK, num_channels=3, image_size=224, patch_size=16, vision_use_head=True)
TEXT = dict(STACK, vocab_size=32000, max_position_embeddings=64)


def vision_config(hf: HfConfig) -> ViTConfig:
    """The sizes in a SiglipVisionConfig; `feature_layer` stays at our default, the caller knows better.

    Raises ValueError for an activation or a number of channels that we do not have.
    """
    hf = VISION | hf
    return ViTConfig(
        **encoder.image_sizes(hf), transformer=encoder.transformer(hf),
        pool="map" if hf["vision_use_head"] else "mean", pre_norm=False, patch_bias=True, final_norm="all")


def vision_hf_config(config: ViTConfig) -> HfConfig:
    return {"model_type": "siglip_vision_model", **encoder.hf_transformer(config.transformer),
            **encoder.hf_image_sizes(config), "vision_use_head": config.pool == "map"}


def text_parts(hf: HfConfig) -> tuple[TextConfig, ContrastConfig]:
    """The text tower and the shared space of a SiglipConfig."""
    text = TEXT | (hf.get("text_config") or {})
    tower = TextConfig(vocab_size=text["vocab_size"], context=text["max_position_embeddings"], end_id=None,
                       transformer=encoder.transformer(text), causal=False, pool="last")
    contrast = ContrastConfig(
        text.get("projection_size") or text["hidden_size"], scale=10.0, bias=-10.0, max_scale=math.inf,
        image_projection=False, text_projection_bias=True)
    return tower, contrast


def text_hf_config(config: ModelConfig) -> HfConfig:
    return {"model_type": "siglip_text_model", **encoder.hf_transformer(config.text.transformer),
            "vocab_size": config.text.vocab_size, "max_position_embeddings": config.text.context,
            "projection_size": config.contrast.embed_dim}


def config(hf: HfConfig) -> ModelConfig:
    """The sizes in a SiglipConfig."""
    text, contrast = text_parts(hf)
    return ModelConfig(vision=vision_config(hf.get("vision_config") or {}), text=text, contrast=contrast)


def hf_config(config: ModelConfig) -> HfConfig:
    return {"architectures": ["SiglipModel"], "model_type": "siglip",
            "vision_config": vision_hf_config(config.vision), "text_config": text_hf_config(config)}


def vision_table(config: ViTConfig, ours: str = "vision", theirs: str = "vision_model") -> list[Weight]:
    """The rows of the image tower, whatever it is called: `ours` in our tree, `theirs` in the files."""
    size, patch = config.patch_size, f"{theirs}.embeddings.patch_embedding"
    return [
        Weight(f"{ours}/patch_embed/kernel", f"{patch}.weight", PATCH, (size, size, 3)),
        Weight(f"{ours}/patch_embed/bias", f"{patch}.bias"),
        *tower_table(config, ours, theirs)]


def tower_table(config: ViTConfig | NaFlexConfig, ours: str, theirs: str) -> list[Weight]:
    """What comes after the patches."""
    rows = [
        Weight(f"{ours}/position_embedding", f"{theirs}.embeddings.position_embedding.weight"),
        *encoder.blocks(ours, theirs),
        *norm(f"{ours}/norm_post", f"{theirs}.post_layernorm")]
    head = _head(config.transformer.width, f"{ours}/head", f"{theirs}.head")
    return rows + head if config.pool == "map" else rows


def _head(width: int, ours: str, theirs: str) -> list[Weight]:
    """The pooling head; torch's MultiheadAttention keeps q, k and v in one tensor."""
    fused = [Weight(f"{ours}/{name}/{kind}", f"{theirs}.attention.in_proj_{hf_kind}", **form, part=(i, 3))
             for kind, hf_kind, form in (("kernel", "weight", {"form": LINEAR}), ("bias", "bias", {}))
             for i, name in enumerate("qkv")]
    return [Weight(f"{ours}/probe", f"{theirs}.probe", TOKEN, (1, 1, width)), *fused,
            *linear(f"{ours}/o", f"{theirs}.attention.out_proj"),
            *norm(f"{ours}/norm", f"{theirs}.layernorm"),
            *encoder.mlp(f"{ours}/mlp", f"{theirs}.mlp")]


def text_table() -> list[Weight]:
    """The text tower and what it is compared with."""
    scalars = [Weight(name, name, SCALAR, (1,)) for name in ("logit_scale", "logit_bias")]
    return [*clip.text_table(), *linear("text_projection", "text_model.head"), *scalars]


FAMILY = Family("SiglipModel", config, hf_config,
                lambda config: [*vision_table(config.vision), *text_table()], encoder.passed_over)
VISION_FAMILY = encoder.vision_family(
    "SiglipVisionModel", lambda hf: dataclasses.replace(vision_config(hf), resize=encoder.RESIZE), vision_hf_config,
    vision_table)
