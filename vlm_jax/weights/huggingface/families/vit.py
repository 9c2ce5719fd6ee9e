"""The Vision Transformer as first published (arXiv 2010.11929): ViTModel, and the names that DINOv2 and InternViT took
over from it."""

from __future__ import annotations

from vlm_jax.models.model import ModelConfig
from vlm_jax.models.vit import ViTConfig
from vlm_jax.weights.huggingface.families import encoder
from vlm_jax.weights.huggingface.family import Family, HfConfig
from vlm_jax.weights.huggingface.table import FIRST, PATCH, TOKEN, Weight, linear, norm

# What transformers' class fills in where config.json is silent.
DEFAULTS = dict(
    hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072, hidden_act="gelu",
    layer_norm_eps=1e-12, image_size=224, patch_size=16, num_channels=3, qkv_bias=True, pooler_output_size=None,
    pooler_act="tanh")


def vision_config(hf: HfConfig) -> ViTConfig:
    """The sizes in a ViTConfig of transformers; raises ValueError for options that we cannot honour.

    Images of other sizes are taken too, as its class does if asked to (`interpolate_pos_encoding`).
    """
    hf = DEFAULTS | hf
    return ViTConfig(
        **encoder.image_sizes(hf), transformer=encoder.transformer(hf, attention_bias=hf["qkv_bias"], out_bias=True),
        pool="dense", pre_norm=False, patch_bias=True, resize=encoder.RESIZE, final_norm="all",
        pool_width=hf["pooler_output_size"], pool_activation=encoder.activation(hf["pooler_act"]))


def hf_config(config: ModelConfig) -> HfConfig:
    c = config.vision
    return {"architectures": ["ViTModel"], "model_type": "vit", **encoder.hf_transformer(c.transformer),
            **encoder.hf_image_sizes(c), "qkv_bias": c.transformer.attention_bias,
            "pooler_output_size": c.pool_width or c.transformer.width,
            "pooler_act": encoder.hf_activation(c.pool_activation)}


def embeddings(config: ViTConfig, ours: str, theirs: str, mask_token: tuple[int, ...] = ()) -> list[Weight]:
    """The rows of what stands before the first block; `mask_token` is the shape of that token there."""
    size, width = config.patch_size, config.transformer.width
    rows = [Weight(f"{ours}/class_token", f"{theirs}.cls_token", TOKEN, (1, 1, width))]
    if config.mask_token:
        rows.append(Weight(f"{ours}/mask_token", f"{theirs}.mask_token", TOKEN, mask_token))
    if config.registers:
        rows.append(Weight(f"{ours}/registers", f"{theirs}.register_tokens", FIRST))
    patch = f"{theirs}.patch_embeddings.projection"
    return [*rows, Weight(f"{ours}/patch_embed/kernel", f"{patch}.weight", PATCH, (size, size, 3)),
            Weight(f"{ours}/patch_embed/bias", f"{patch}.bias"),
            Weight(f"{ours}/position_embedding", f"{theirs}.position_embeddings", FIRST)]


def attention(config: ViTConfig, ours: str, theirs: str) -> list[Weight]:
    names = {"q": "query", "k": "key", "v": "value"}
    bias = config.transformer.attention_bias
    rows = [row for name, hf_name in names.items()
            for row in linear(f"{ours}/{name}", f"{theirs}.attention.{hf_name}", bias)]
    return rows + linear(f"{ours}/o", f"{theirs}.output.dense")


def table(config: ModelConfig) -> list[Weight]:
    """In the names of the hub's files."""
    blocks, layer = "vision/blocks", "encoder.layer.{}"
    return [
        *embeddings(config.vision, "vision", "embeddings"),
        *norm(f"{blocks}/norm1", f"{layer}.layernorm_before"),
        *attention(config.vision, f"{blocks}/attn", f"{layer}.attention"),
        *norm(f"{blocks}/norm2", f"{layer}.layernorm_after"),
        *linear(f"{blocks}/mlp/up", f"{layer}.intermediate.dense"),
        *linear(f"{blocks}/mlp/down", f"{layer}.output.dense"),
        *norm("vision/norm_post", "layernorm"), *linear("vision/head", "pooler.dense")]


FAMILY = Family("ViTModel", lambda hf: ModelConfig(vision=vision_config(hf)), hf_config, table)
