"""DINOv2 (arXiv 2304.07193): Dinov2Model, and Dinov2WithRegistersModel (arXiv 2309.16588)."""

from __future__ import annotations

from vlm_jax.models.model import ModelConfig
from vlm_jax.models.vit import ViTConfig
from vlm_jax.weights.huggingface.families import encoder, vit
from vlm_jax.weights.huggingface.family import Family, HfConfig
from vlm_jax.weights.huggingface.table import LINEAR, Weight, linear, norm

# What transformers' classes fill in where config.json is silent.
DEFAULTS = dict(
    hidden_size=768, num_hidden_layers=12, num_attention_heads=12, mlp_ratio=4, hidden_act="gelu", layer_norm_eps=1e-6,
    image_size=224, patch_size=14, num_channels=3, qkv_bias=True, layerscale_value=1.0, use_swiglu_ffn=False,
    use_mask_token=True)
WITH_REGISTERS = DEFAULTS | dict(patch_size=16, num_register_tokens=4)
RESIZE, RESIZE_WITH_REGISTERS = "bicubic", "bicubic_antialias"


def mlp_width(width: int, ratio: float, swiglu: bool) -> int:
    """A SwiGLU has two thirds of the units, rounded up to a multiple of 8."""
    units = int(width * ratio)
    return (int(units * 2 / 3) + 7) // 8 * 8 if swiglu else units


def vision_config(hf: HfConfig) -> ViTConfig:
    """The sizes in a Dinov2Config, class defaults filled in; raises ValueError for options that we cannot honour."""
    registers, swiglu = hf.get("num_register_tokens"), hf["use_swiglu_ffn"]
    width = mlp_width(hf["hidden_size"], hf["mlp_ratio"], swiglu)
    blocks = encoder.transformer(
        hf | {"intermediate_size": width, "hidden_act": "silu" if swiglu else hf["hidden_act"]},
        gated_mlp=swiglu, attention_bias=hf["qkv_bias"], out_bias=True, layer_scale=hf["layerscale_value"])
    return ViTConfig(
        **encoder.image_sizes(hf), transformer=blocks, pre_norm=False, patch_bias=True, final_norm="all",
        registers=registers or 0, mask_token=registers is not None or hf["use_mask_token"],
        resize=RESIZE if registers is None else RESIZE_WITH_REGISTERS)


def hf_config(config: ModelConfig) -> HfConfig:
    """Raises ValueError for an MLP whose width is no whole multiple of the tower's."""
    c, t = config.vision, config.vision.transformer
    ratio = next((r for r in range(1, 33) if mlp_width(t.width, r, t.gated_mlp) == t.mlp_width), None)
    if ratio is None:
        raise ValueError(f"A Dinov2Config has no mlp_ratio for a width of {t.width} and an MLP of {t.mlp_width}.")
    hf = encoder.hf_transformer(t) | {"hidden_act": "gelu" if t.gated_mlp else encoder.hf_activation(t.activation)}
    del hf["intermediate_size"]
    kind = {"architectures": ["Dinov2Model"], "model_type": "dinov2", "use_mask_token": c.mask_token}
    if c.resize == RESIZE_WITH_REGISTERS:
        kind = {"architectures": ["Dinov2WithRegistersModel"], "model_type": "dinov2_with_registers",
                "num_register_tokens": c.registers}
    return {**kind, **hf, **encoder.hf_image_sizes(c), "mlp_ratio": ratio, "use_swiglu_ffn": t.gated_mlp,
            "qkv_bias": t.attention_bias, "layerscale_value": t.layer_scale}


def table(config: ModelConfig) -> list[Weight]:
    """In the names of the hub's files, whose SwiGLUs keep gate and up in one tensor."""
    t, blocks, layer = config.vision.transformer, "vision/blocks", "encoder.layer.{}"
    if t.gated_mlp:
        mlp = [Weight(f"{blocks}/mlp/{name}/{ours}", f"{layer}.mlp.weights_in.{theirs}", **form, part=(i, 2))
               for ours, theirs, form in (("kernel", "weight", {"form": LINEAR}), ("bias", "bias", {}))
               for i, name in enumerate(("gate", "up"))]
        mlp += linear(f"{blocks}/mlp/down", f"{layer}.mlp.weights_out")
    else:
        mlp = encoder.mlp(f"{blocks}/mlp", f"{layer}.mlp")
    scales = [Weight(f"{blocks}/scale{i}", f"{layer}.layer_scale{i}.lambda1") for i in (1, 2)]
    return [*vit.embeddings(config.vision, "vision", "embeddings", mask_token=(1, t.width)),
            *norm(f"{blocks}/norm1", f"{layer}.norm1"), *norm(f"{blocks}/norm2", f"{layer}.norm2"),
            *vit.attention(config.vision, f"{blocks}/attn", f"{layer}.attention"), *mlp, *scales,
            *norm("vision/norm_post", "layernorm")]


FAMILY = Family("Dinov2Model", lambda hf: ModelConfig(vision=vision_config(DEFAULTS | hf)), hf_config, table)
FAMILY_WITH_REGISTERS = Family(
    "Dinov2WithRegistersModel", lambda hf: ModelConfig(vision=vision_config(WITH_REGISTERS | hf)), hf_config, table)
