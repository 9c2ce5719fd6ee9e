"""Qwen2-VL (arXiv 2409.12191): eyes for any resolution, a patch merger, and Qwen2 with positions on three axes."""

from __future__ import annotations

import dataclasses
from typing import Any, Mapping

from vlm_jax.models.connectors import ConnectorConfig
from vlm_jax.models.decoder import DecoderConfig
from vlm_jax.models.model import ModelConfig
from vlm_jax.models.native_vit import NativeViTConfig
from vlm_jax.models.tokens import Native
from vlm_jax.models.transformer import TransformerConfig
from vlm_jax.weights.huggingface.families import decoder, qwen2
from vlm_jax.weights.huggingface.families.encoder import activation, hf_activation, mlp
from vlm_jax.weights.huggingface.family import Family, HfConfig
from vlm_jax.weights.huggingface.table import FLAT, LINEAR, Weight, linear, norm

EPS = 1e-6  # of the eyes and the merger, in code
SECTIONS = (16, 24, 24)  # pairs that turn by time, row and column where config.json is silent
IDS = dict(image_token_id=151655, video_token_id=151656)
TEXT = dict(
    vocab_size=152064, hidden_size=8192, intermediate_size=29568, num_hidden_layers=80, num_attention_heads=64,
    num_key_value_heads=8, max_position_embeddings=32768, rms_norm_eps=1e-5, rope_theta=1_000_000.0,
    use_sliding_window=False, sliding_window=4096, max_window_layers=80, layer_types=None, bos_token_id=151643,
    eos_token_id=151645)
VISION = dict(
    depth=32, embed_dim=1280, hidden_size=3584, hidden_act="quick_gelu", mlp_ratio=4, num_heads=16, in_channels=3,
    patch_size=14, spatial_merge_size=2, temporal_patch_size=2, rope_parameters=None)


def language(model_type: str) -> decoder.Language:
    """Qwen2 as these checkpoints call it."""
    return decoder.Language(model_type, TEXT, qwen2.LANGUAGE.fixed)


LANGUAGE = language("qwen2_vl_text")


def _fill(hf: HfConfig) -> HfConfig:
    """The part of config.json about language: hub files keep it at the top level."""
    part = hf if hf.get("text_config") is None else hf["text_config"]
    tied = bool(hf.get("tie_word_embeddings") or part.get("tie_word_embeddings"))
    return {**part, "tie_word_embeddings": tied}


def text(hf: HfConfig) -> HfConfig:
    return IDS | LANGUAGE.fill(_fill(hf))


def text_config(hf: HfConfig) -> DecoderConfig:
    """Qwen2 whose rotary positions have three axes; raises ValueError for options that we cannot honour."""
    part, sections = _fill(hf), SECTIONS
    said = {key: dict(part[key]) for key in ("rope_scaling", "rope_parameters") if part.get(key)}
    for values in said.values():
        sections = tuple(values.pop("mrope_section", sections))
        for key in ("type", "rope_type"):
            if values.get(key) == "mrope":
                values[key] = "default"
    config = LANGUAGE.config(part | said)
    if config.transformer.window is not None:
        raise ValueError("config.json asks for sliding windows beside positions on three axes, which is not supported.")
    return dataclasses.replace(config, transformer=dataclasses.replace(config.transformer, rope_sections=sections))


def hf_text_config(config: DecoderConfig, language: decoder.Language) -> HfConfig:
    plain = dataclasses.replace(config, transformer=dataclasses.replace(config.transformer, rope_sections=()))
    hf, sections = language.hf_config(plain), {"mrope_section": list(config.transformer.rope_sections)}
    scaling = hf["rope_scaling"] or {"type": "mrope"}
    return hf | {"rope_parameters": hf["rope_parameters"] | sections, "rope_scaling": scaling | sections}


def checked(hf: HfConfig, defaults: Mapping[str, Any]) -> HfConfig:
    """vision_config, class defaults filled in; raises ValueError for what our eyes cannot be."""
    hf = {**defaults, **{key: value for key, value in (hf.get("vision_config") or {}).items() if value is not None}}
    channels = hf.get("in_chans", hf["in_channels"])
    kind = (hf["rope_parameters"] or {}).get("rope_type", "axial")
    if channels != 3 or kind != "axial":
        raise ValueError(f"config.json asks for eyes with {channels} channels and rotary positions of type '{kind}'; "
                         f"only 3 and 'axial' are supported.")
    return hf


def eyes(vision: HfConfig, width: int, **options: Any) -> NativeViTConfig:
    """The tower of either generation; `options` are what their transformers differ in."""
    merge, theta = vision["spatial_merge_size"], (vision["rope_parameters"] or {}).get("rope_theta", 10_000.0)
    blocks = TransformerConfig(
        layers=vision["depth"], width=width, heads=vision["num_heads"], norm_eps=EPS,
        activation=activation(vision["hidden_act"]), rope_theta=theta,
        rope_sections=(width // vision["num_heads"] // 4,) * 2, rope_axial=True, **options)
    return NativeViTConfig(vision["patch_size"], vision["temporal_patch_size"], merge, blocks)


def assembled(hf: HfConfig, vision: NativeViTConfig) -> ModelConfig:
    """With the merger and the language model that both generations have."""
    return ModelConfig(
        vision=vision, connector=ConnectorConfig("mlp", hidden=vision.transformer.width * vision.merge**2),
        decoder=text_config(hf), layout=Native(vision.patch_size, vision.merge))


def config(hf: HfConfig) -> ModelConfig:
    """The sizes in a Qwen2VLConfig."""
    vision = checked(hf, VISION)
    return assembled(hf, eyes(
        vision, width=vision["embed_dim"], mlp_width=int(vision["embed_dim"] * vision["mlp_ratio"])))


def hf_eyes(config: NativeViTConfig) -> HfConfig:
    t = config.transformer
    return {
        "depth": t.layers, "num_heads": t.heads, "hidden_act": hf_activation(t.activation), "in_channels": 3,
        "patch_size": config.patch_size, "spatial_merge_size": config.merge,
        "temporal_patch_size": config.temporal_patch_size,
        "rope_parameters": {"rope_type": "axial", "rope_theta": t.rope_theta}}


def hf_config(config: ModelConfig) -> HfConfig:
    """The keys of config.json but for token ids; raises ValueError for a model that this class cannot be."""
    t = config.vision.transformer
    if t.mlp_width % t.width:
        raise ValueError(f"Qwen2-VL's eyes have an mlp_width that is a multiple of their width, not {t.mlp_width}.")
    vision = {"model_type": "qwen2_vl_vision", **hf_eyes(config.vision), "embed_dim": t.width,
              "hidden_size": config.decoder.transformer.width, "mlp_ratio": t.mlp_width // t.width}
    return {"architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl",
            "tie_word_embeddings": config.decoder.tie_embeddings, "vision_config": vision,
            "text_config": hf_text_config(config.decoder, LANGUAGE)}


def table(config: ModelConfig) -> list[Weight]:
    """In the names of the hub's files."""
    v, bias = config.vision, config.vision.transformer.norm == "layer"
    ours, layer = "vision/blocks", "visual.blocks.{}"
    fused = [Weight(f"{ours}/attn/{name}/{kind}", f"{layer}.attn.qkv.{hf_kind}", **form, part=(i, 3))
             for kind, hf_kind, form in (("kernel", "weight", {"form": LINEAR}), ("bias", "bias", {}))
             for i, name in enumerate("qkv")]
    patch = (3, v.temporal_patch_size, v.patch_size, v.patch_size)
    return [
        Weight("vision/patch_embed/kernel", "visual.patch_embed.proj.weight", FLAT, patch),
        *norm(f"{ours}/norm1", f"{layer}.norm1", bias), *norm(f"{ours}/norm2", f"{layer}.norm2", bias),
        *fused, *linear(f"{ours}/attn/o", f"{layer}.attn.proj"), *_mlp(v.transformer, f"{ours}/mlp", f"{layer}.mlp"),
        *norm("vision/norm_post", "visual.merger.ln_q", bias),
        *linear("connector/linear_1", "visual.merger.mlp.0"), *linear("connector/linear_2", "visual.merger.mlp.2"),
        *decoder.table(config.decoder)]


def _mlp(config: TransformerConfig, ours: str, theirs: str) -> list[Weight]:
    if not config.gated_mlp:
        return mlp(ours, theirs)
    return [row for name in ("gate", "up", "down") for row in linear(f"{ours}/{name}", f"{theirs}.{name}_proj")]


def rename(name: str) -> str | None:
    """transformers 4.52 and later, in memory, keep the parts under `model.visual` and `model.language_model`."""
    name = name.replace("model.language_model.", "model.", 1).replace("model.visual.", "visual.", 1)
    return None if name.startswith("visual.rotary_pos_emb.") else decoder.rename(name)


FAMILY = Family("Qwen2VLForConditionalGeneration", config, hf_config, table, rename, text)
